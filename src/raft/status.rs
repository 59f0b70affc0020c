//! What the store shows about itself.

use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::Instant;
use openraft::async_runtime::watch::WatchReceiver;
use serde::Serialize;

use super::membership::heard;
use super::node::Node;
use super::types::Metrics;
use crate::types::{NodeName, RaftId};

/// This node's part in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Not a member yet: forming, or joining.
    Starting,
    /// Receives the log, does not vote.
    Learner,
    /// Votes and follows.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
    /// Stopping or stopped.
    Stopped,
}

/// One member, as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemberInfo {
    /// Its id.
    pub id: RaftId,
    /// Its name.
    pub name: String,
    /// `host:port` of its main port.
    pub addr: String,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it answers; only the leader knows that of others.
    pub reachable: Option<bool>,
    /// How long ago it answered; known to the leader only.
    pub last_heard: Option<Duration>,
    /// The last entry known to be on its disk; known to the leader only.
    pub matched: Option<u64>,
}

/// The store as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RaftStatus {
    /// This node's id; none while it has no part in a store.
    pub id: Option<RaftId>,
    /// This node's name.
    pub name: NodeName,
    /// The leader, if there is one that this node believes in. A leader without a majority shows none.
    pub leader: Option<(RaftId, NodeName)>,
    /// The Raft term.
    pub term: u64,
    /// This node's part.
    pub role: Role,
    /// Those who vote.
    pub voters: Vec<MemberInfo>,
    /// Those who do not vote yet.
    pub learners: Vec<MemberInfo>,
    /// Index of the last entry in this node's log.
    pub last_log: Option<u64>,
    /// Index of the last applied entry.
    pub applied: Option<u64>,
    /// Index that the newest snapshot covers.
    pub snapshot: Option<u64>,
    /// Up to where the log was removed.
    pub purged: Option<u64>,
    /// Entries in the log.
    pub log_entries: u64,
    /// The 99th percentile of the last log syncs.
    pub sync_p99: Option<Duration>,
    /// The shortest election timeout in use; longer than configured when the disk is slow.
    pub election_min: Duration,
    /// The store's generation: not zero after a forced new cluster.
    pub generation: u64,
}

/// The little of a [`RaftStatus`] that is asked for with every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vitals {
    /// This node's id; zero while it has none.
    pub id: u64,
    /// The Raft term; never goes back on one node.
    pub term: u64,
    /// Whether a leader is known that this node believes in.
    pub has_leader: bool,
}

impl Vitals {
    pub(super) fn of(node: &Node) -> Self {
        let Some(raft) = node.raft() else { return Self { id: node.id(), term: 0, has_leader: false } };
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        let has_leader = metrics.current_leader.is_some() && !is_stale_leader(node, &metrics);
        Self { id: metrics.id, term: metrics.current_term, has_leader }
    }
}

fn role(metrics: &Metrics) -> Role {
    match metrics.state {
        ServerState::Learner => Role::Learner,
        ServerState::Follower => Role::Follower,
        ServerState::Candidate => Role::Candidate,
        ServerState::Leader => Role::Leader,
        ServerState::Shutdown => Role::Stopped,
    }
}

/// A leader that has not heard a majority for an election timeout may have a successor; one that its followers have not
/// heard for so long is not there.
fn is_stale_leader(node: &Node, metrics: &Metrics) -> bool {
    if metrics.state != ServerState::Leader {
        return node.leader_heard().is_none_or(|ago| ago > node.config.election_max * 2);
    }
    if metrics.membership_config.voter_ids().count() <= 1 {
        return false;
    }
    metrics.last_quorum_acked.is_none_or(|at| at.into_inner().elapsed() > node.config.election_max * 2)
}

fn member_info(node: &Node, metrics: &Metrics, id: u64, voter: bool) -> MemberInfo {
    let member = metrics.membership_config.get_node(&id).cloned().unwrap_or_default();
    let me = id == metrics.id;
    let leads = metrics.state == ServerState::Leader;
    let last_heard = if me { Some(Duration::ZERO) } else { heard(metrics, id) };
    let reachable = last_heard.map(|ago| ago < node.config.election_max * 2).or(leads.then_some(false));
    let matched = metrics.replication.as_ref().and_then(|all| all.get(&id).copied().flatten()).map(|at| at.index);
    MemberInfo {
        id: RaftId(id),
        name: member.name,
        addr: member.addr,
        voter,
        reachable,
        last_heard,
        matched: if me { metrics.last_log_index } else { matched },
    }
}

impl RaftStatus {
    /// Reads the present state.
    pub(super) fn of(node: &Node) -> Self {
        let identity = node.identity();
        let mut status = Self {
            id: identity.as_ref().map(|identity| RaftId(identity.id)),
            name: node.config.name.clone(),
            leader: None,
            term: 0,
            role: Role::Starting,
            voters: Vec::new(),
            learners: Vec::new(),
            last_log: None,
            applied: None,
            snapshot: None,
            purged: None,
            log_entries: node.log.size().0,
            sync_p99: node.log.progress().sync_p99(),
            election_min: node.election_min.get().copied().unwrap_or(node.config.election_min),
            generation: identity.map_or(0, |identity| identity.generation),
        };
        let Some(metrics) = node.metrics() else { return status };
        let believed = metrics.current_leader.filter(|_| !is_stale_leader(node, &metrics));
        status.leader = believed.and_then(|id| {
            let name = metrics.membership_config.get_node(&id)?.name.parse().ok()?;
            Some((RaftId(id), name))
        });
        status.term = metrics.current_term;
        status.role = if node.stopping.is_cancelled() { Role::Stopped } else { role(&metrics) };
        let membership = metrics.membership_config.membership();
        status.voters = membership.voter_ids().map(|id| member_info(node, &metrics, id, true)).collect();
        status.learners = membership.learner_ids().map(|id| member_info(node, &metrics, id, false)).collect();
        status.last_log = metrics.last_log_index;
        status.applied = metrics.last_applied.map(|id| id.index);
        status.snapshot = metrics.snapshot.map(|id| id.index);
        status.purged = metrics.purged.map(|id| id.index);
        status
    }
}
