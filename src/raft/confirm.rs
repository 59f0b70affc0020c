//! Proof of leadership from memory: a quorum round that waits for no disk.
//!
//! `request -> next round -> { Confirm(term) -> every voter } -> majority -> read index`
//!
//! The engine's own read index is answered by heartbeats, and a follower answers a heartbeat only
//! after the entries before it are on its disk: measured, a follower with 200 ms fsyncs delays such a
//! read by that much. Lease renewals must not depend on that, so the round is our own.
//!
//! Why it is safe. Let leader L of term T start a round at t0; let a majority of each voter set of
//! its membership answer at times after t0 that the newest vote handed to their log store is of a term
//! below T, or is (T, L). A vote is recorded there (`log.rs`, `save_vote`) *before* it is written, and a
//! ballot leaves the node only after it is written. So none of the majority had, when it answered, cast a ballot
//! above T. Whoever leads a term above T needs ballots of a majority, which shares a node with ours
//! (voter sets change by joint steps, so also across one change); that ballot was cast after the answer,
//! so after t0. Hence at t0 no later leader existed, and every entry acknowledged before t0 was committed by L
//! or by leaders before it. L has committed an entry of its own term (checked), so its commit index
//! at t0 covers all of those: that is the read index. Answers of nodes that crash and come back do
//! not harm: a ballot that was cast is on disk, and one that is only in memory counts against us.
//!
//! A round starts after all requests that it serves have arrived; those that arrive later share the next one.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::ServerState;
use openraft::vote::RaftLeaderId;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::node::Node;
use super::types::{Membership, Vote};
use super::wire::{Class, Request, Response};

const QUEUE: usize = 4096;
/// A round that a majority has not answered by then has failed; its requests may try again. A round trip to the far end
/// of the world, and a lost packet sent again, are no failure: asking again would be no faster.
const ROUND: Duration = Duration::from_millis(1000);

/// Leadership, proven for a moment after the request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confirmed {
    /// The term of the leadership.
    pub term: u64,
    /// So many entries must be applied before a read.
    pub read_index: u64,
}

/// Why there is no proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unconfirmed {
    /// This node does not lead.
    NotLeader,
    /// It leads, but has not committed an entry of its term yet.
    Settling,
    /// No majority answered in time.
    NoQuorum,
}

type Answer = Result<Confirmed, Unconfirmed>;

/// Starts rounds for whoever asks. Cheap to clone.
#[derive(Clone)]
pub struct Confirmer {
    queue: mpsc::Sender<oneshot::Sender<Answer>>,
}

impl Confirmer {
    /// A queue that [`run`] serves.
    pub fn new() -> (Self, mpsc::Receiver<oneshot::Sender<Answer>>) {
        let (queue, requests) = mpsc::channel(QUEUE);
        (Self { queue }, requests)
    }

    /// Proves that this node leads at a moment after this call.
    ///
    /// # Errors
    /// [`Unconfirmed`]; nothing may be concluded then.
    pub async fn confirm(&self) -> Answer {
        let (answer, told) = oneshot::channel();
        if self.queue.send(answer).await.is_err() {
            return Err(Unconfirmed::NotLeader);
        }
        told.await.unwrap_or(Err(Unconfirmed::NotLeader))
    }
}

/// Serves rounds until the node is gone.
pub async fn run(node: Weak<Node>, mut requests: mpsc::Receiver<oneshot::Sender<Answer>>) {
    while let Some(first) = requests.recv().await {
        let Some(node) = node.upgrade() else { return };
        let mut waiting = vec![first];
        while let Ok(next) = requests.try_recv() {
            waiting.push(next);
        }
        let answer = match timeout(ROUND, round(&node)).await {
            Ok(answer) => answer,
            Err(_) => Err(Unconfirmed::NoQuorum),
        };
        for request in waiting {
            // An error says that the asker gave up.
            let _ = request.send(answer);
        }
    }
}

/// What the engine says about its leadership, all at one moment.
struct Claim {
    vote: Vote,
    leading: bool,
    committed: Option<super::types::LogId>,
    membership: Membership,
}

async fn claim(node: &Node) -> Option<Claim> {
    let raft = node.raft()?;
    let claim = raft.with_raft_state(|state| Claim {
        vote: *state.vote_ref(),
        leading: state.server_state == ServerState::Leader,
        // A follower may apply what the leader knows to be committed before the leader itself does.
        committed: state.local_committed().max(state.cluster_committed()).copied(),
        membership: state.membership_state.effective().membership().clone(),
    });
    claim.await.ok()
}

async fn round(node: &Arc<Node>) -> Answer {
    let Some(claim) = claim(node).await else { return Err(Unconfirmed::NotLeader) };
    let me = node.id();
    let term = claim.vote.leader_id.term();
    if !claim.leading || !claim.vote.committed || claim.vote.leader_id.voted_for != me {
        return Err(Unconfirmed::NotLeader);
    }
    let Some(committed) = claim.committed.filter(|id| id.committed_leader_id().term == term) else {
        return Err(Unconfirmed::Settling);
    };
    if !node.confirms(term, me) {
        return Err(Unconfirmed::NotLeader);
    }
    let confirmed = Confirmed { term, read_index: committed.index + 1 };
    let mut agreed = BTreeSet::from([me]);
    if is_quorum(&claim.membership, &agreed) {
        return Ok(confirmed);
    }
    let mut asked = FuturesUnordered::new();
    for id in claim.membership.voter_ids().filter(|id| *id != me) {
        let Some(member) = claim.membership.get_node(&id) else { continue };
        let link = node.peers.link(id, &member.addr, Class::Control);
        asked.push(async move { (id, link.call(&Request::Confirm { term, leader: me }, ROUND).await) });
    }
    while let Some((id, answer)) = asked.next().await {
        match answer {
            Ok(Response::Confirm(true)) => agreed.insert(id),
            Ok(Response::Confirm(false)) => return Err(Unconfirmed::NotLeader),
            Ok(_) | Err(_) => false,
        };
        if is_quorum(&claim.membership, &agreed) {
            return Ok(confirmed);
        }
    }
    Err(Unconfirmed::NoQuorum)
}

fn is_quorum(membership: &Membership, agreed: &BTreeSet<u64>) -> bool {
    let configs = membership.get_joint_config();
    !configs.is_empty()
        && configs.iter().all(|config| config.iter().filter(|id| agreed.contains(id)).count() > config.len() / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::Member;

    #[test]
    fn a_joint_membership_needs_both_majorities() {
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<_>>();
        let nodes =
            |ids: &[u64]| ids.iter().map(|id| (*id, Member::default())).collect::<std::collections::BTreeMap<_, _>>();
        let joint = Membership::new(vec![set(&[1, 2, 3]), set(&[3, 4, 5])], nodes(&[1, 2, 3, 4, 5])).expect("valid");
        assert!(!is_quorum(&joint, &set(&[1, 2])));
        assert!(!is_quorum(&joint, &set(&[1, 3])));
        assert!(is_quorum(&joint, &set(&[1, 3, 4])));
        let single = Membership::new(vec![set(&[1])], nodes(&[1])).expect("valid");
        assert!(is_quorum(&single, &set(&[1])));
        let even = Membership::new(vec![set(&[1, 2])], nodes(&[1, 2])).expect("valid");
        assert!(!is_quorum(&even, &set(&[1])));
    }
}
