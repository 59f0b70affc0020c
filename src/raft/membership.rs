//! Changes of who is a member, on the leader. A node enters as a learner, catches up, then votes.
//!
//! `join: learner -> caught up -> voter (and the wiped predecessor of the same name goes, in one joint change)`
//!
//! A joining node repeats its request until it is a voter; each call takes the step that is due, so
//! a change of leader in between loses nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::Instant;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::{sleep, timeout};

use super::error::StoreError;
use super::leader::{Served, left, write_error};
use super::node::Node;
use super::types::{Member, Metrics, Raft};
use super::wire::{Class, ClientError, ClientResponse, Formation, Request, Response};
use crate::telemetry::clock;
use crate::types::Mono;

/// A learner this close behind becomes a voter.
const CLOSE: u64 = 100;
const STEP: Duration = Duration::from_millis(50);
const ASK: Duration = Duration::from_secs(1);

fn refused<T>(why: impl Into<String>) -> Result<T, ClientError> {
    Err(ClientError::Store(StoreError::refused(why)))
}

fn joining(waiting_for: impl Into<String>) -> Served {
    Ok(ClientResponse::Joining { voter: false, waiting_for: waiting_for.into() })
}

/// The engine and its state, if this node leads.
fn leading(node: &Node) -> Result<(&Raft, Metrics), ClientError> {
    let raft = node.raft().ok_or(ClientError::NotLeader)?;
    let metrics = raft.metrics().borrow_watched().clone();
    if metrics.current_leader == Some(metrics.id) { Ok((raft, metrics)) } else { Err(ClientError::NotLeader) }
}

fn named(metrics: &Metrics, name: &str) -> Vec<(u64, Member)> {
    let nodes = metrics.membership_config.nodes();
    nodes.filter(|(_, member)| member.name == name).map(|(id, member)| (*id, member.clone())).collect()
}

/// How long ago a member answered the leader; none if never in this term.
pub fn heard(metrics: &Metrics, id: u64) -> Option<Duration> {
    let beats = metrics.heartbeat.as_ref()?;
    beats.get(&id).copied().flatten().map(|at| at.into_inner().elapsed())
}

/// What the leader knows about whether a member lives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Alive,
    Silent,
    /// The leader is too young to know.
    Unknown,
}

fn life(node: &Node, metrics: &Metrics, id: u64) -> Life {
    let patience = node.config.election_max * 2;
    if id == metrics.id || heard(metrics, id).is_some_and(|ago| ago < patience) {
        Life::Alive
    } else if node.leading_for().is_some_and(|led| led > patience) {
        Life::Silent
    } else {
        Life::Unknown
    }
}

/// Makes one change and waits until it is committed.
async fn change(
    node: &Node,
    raft: &Raft,
    what: ChangeMembers<u64, Member>,
    retain: bool,
    until: Mono,
) -> Result<(), ClientError> {
    let Ok(_only) = timeout(left(until), node.changing.lock()).await else {
        return refused("another change of the membership is going on");
    };
    match timeout(left(until), raft.change_membership(what, retain)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => {
            Err(write_error(&error).unwrap_or(ClientError::Store(StoreError::Timeout { maybe_applied: true })))
        }
        Err(_) => Err(ClientError::Store(StoreError::Timeout { maybe_applied: true })),
    }
}

/// Takes the next step for a node that wants to be a member.
pub async fn join(node: &Arc<Node>, id: u64, name: &str, addr: &str, until: Mono) -> Served {
    let (raft, metrics) = leading(node)?;
    let membership = metrics.membership_config.membership();
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    if voters.contains(&id) {
        return Ok(ClientResponse::Joining { voter: true, waiting_for: String::new() });
    }
    let old: Vec<u64> = named(&metrics, name).into_iter().map(|(old, _)| old).filter(|old| *old != id).collect();
    for other in &old {
        let at = membership.get_node(other).map(|m| m.addr.clone()).unwrap_or_default();
        match life(node, &metrics, *other) {
            Life::Alive => {
                return refused(format!("a member named {name} is alive at {at}; give the new node a name of its own"));
            }
            Life::Unknown => return joining(format!("certainty that the member {name} at {at} is gone")),
            Life::Silent => {}
        }
    }
    if membership.get_node(&id).is_none() {
        tracing::info!(name, addr, replaces = !old.is_empty(), "raft: a node joins as learner");
        let member = Member { name: name.to_owned(), addr: addr.to_owned() };
        change(node, raft, ChangeMembers::AddNodes(BTreeMap::from([(id, member)])), true, until).await?;
        return joining("the first entries");
    }
    let last = metrics.last_log_index.unwrap_or(0);
    let matched = metrics.replication.as_ref().and_then(|all| all.get(&id).copied().flatten());
    match matched {
        None => return joining("the first entries"),
        Some(at) if at.index + CLOSE < last => return joining(format!("entries {} to {last}", at.index)),
        Some(_) => {}
    }
    if membership.get_joint_config().len() > 1 {
        return joining("another change of the membership");
    }
    tracing::info!(name, addr, "raft: the learner becomes a voter");
    // As differences, which the engine applies to the voters that there are then: those seen here can be others by now.
    // A whole set, made of what was seen, has thrown out a node that had become a voter a moment before.
    let leaving: BTreeSet<u64> = old.iter().copied().filter(|old| voters.contains(old)).collect();
    let steps = vec![ChangeMembers::AddVoterIds(BTreeSet::from([id])), ChangeMembers::RemoveVoters(leaving)];
    change(node, raft, ChangeMembers::Batch(steps), false, until).await?;
    let learners: BTreeSet<u64> = old.into_iter().filter(|old| !voters.contains(old)).collect();
    if !learners.is_empty() {
        change(node, raft, ChangeMembers::RemoveNodes(learners), false, until).await?;
    }
    Ok(ClientResponse::Joining { voter: true, waiting_for: String::new() })
}

/// Records a member's new address.
pub async fn set_address(node: &Arc<Node>, id: u64, addr: &str, until: Mono) -> Served {
    let (raft, metrics) = leading(node)?;
    let Some(member) = metrics.membership_config.get_node(&id) else {
        return refused("this node is no member any more");
    };
    if member.addr != addr {
        tracing::info!(name = member.name, from = member.addr, to = addr, "raft: a member has a new address");
        let member = Member { name: member.name.clone(), addr: addr.to_owned() };
        change(node, raft, ChangeMembers::SetNodes(BTreeMap::from([(id, member)])), true, until).await?;
    }
    Ok(ClientResponse::Done)
}

/// Invites the node at an address and waits until it is a voter.
pub async fn add(node: &Arc<Node>, name: &str, addr: &str, until: Mono) -> Served {
    let (_, metrics) = leading(node)?;
    if named(&metrics, name).iter().any(|(id, _)| life(node, &metrics, *id) != Life::Silent) {
        return refused(format!("there is a member named {name} already"));
    }
    let members = metrics.membership_config.nodes().map(|(_, m)| (m.name.clone(), m.addr.clone())).collect();
    let link = node.peers.link(0, addr, Class::Control);
    match link.call(&Request::Invite(members), ASK.min(left(until))).await {
        Ok(Response::State(state)) => match state.formation {
            Formation::Blank | Formation::Forming => {}
            Formation::Initialized(others) if others.is_empty() => {}
            Formation::Initialized(_) => {
                return refused(format!(
                    "the node at {addr} has a store of its own; move its data directory aside first"
                ));
            }
        },
        Ok(_) => return refused(format!("the node at {addr} gave no sensible answer")),
        Err(error) => return refused(format!("the node at {addr} cannot be reached: {error}")),
    }
    loop {
        let (_, metrics) = leading(node)?;
        let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
        if named(&metrics, name).iter().any(|(id, _)| voters.contains(id)) {
            return Ok(ClientResponse::Done);
        }
        if left(until).is_zero() {
            return Err(ClientError::Store(StoreError::Timeout { maybe_applied: true }));
        }
        sleep(STEP).await;
    }
}

/// Removes a member, if those who stay can still decide.
pub async fn remove(node: &Arc<Node>, name: &str, until: Mono) -> Served {
    let (raft, metrics) = leading(node)?;
    let ids: BTreeSet<u64> = named(&metrics, name).into_iter().map(|(id, _)| id).collect();
    if ids.is_empty() {
        return refused(format!("there is no member named {name}"));
    }
    let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
    let staying: BTreeSet<u64> = voters.difference(&ids).copied().collect();
    if staying.is_empty() {
        return refused(format!("{name} is the last voter; a store without voters decides nothing"));
    }
    majority_lives(node, name, &staying, until).await?;
    if ids.contains(&metrics.id) {
        if let Some(heir) = heir(node, &metrics, &staying) {
            hand_over(node, raft, heir, until).await?;
        }
        // The new leader removes this node: the request is asked again there.
        return Err(ClientError::NotLeader);
    }
    tracing::info!(name, "raft: removing a member");
    let leaving: BTreeSet<u64> = voters.intersection(&ids).copied().collect();
    if !leaving.is_empty() {
        change(node, raft, ChangeMembers::RemoveVoters(leaving), false, until).await?;
    }
    let learners: BTreeSet<u64> = ids.difference(&voters).copied().collect();
    if !learners.is_empty() {
        change(node, raft, ChangeMembers::RemoveNodes(learners), false, until).await?;
    }
    Ok(ClientResponse::Done)
}

/// Refuses a removal after which the living were no majority. A young leader waits until it knows.
async fn majority_lives(node: &Node, name: &str, staying: &BTreeSet<u64>, until: Mono) -> Result<(), ClientError> {
    loop {
        let (_, metrics) = leading(node)?;
        let lives: Vec<Life> = staying.iter().map(|id| life(node, &metrics, *id)).collect();
        let alive = lives.iter().filter(|life| **life == Life::Alive).count();
        if alive * 2 > staying.len() {
            return Ok(());
        }
        if !lives.contains(&Life::Unknown) || left(until).is_zero() {
            return refused(format!(
                "without {name}, {alive} of {} voters would be alive, which is no majority; bring others back first",
                staying.len()
            ));
        }
        sleep(STEP).await;
    }
}

/// The living member among these that has most of the log.
fn heir(node: &Node, metrics: &Metrics, among: &BTreeSet<u64>) -> Option<u64> {
    let matched = |id: &u64| metrics.replication.as_ref().and_then(|all| all.get(id).copied().flatten());
    let others = among.iter().copied().filter(|id| *id != metrics.id);
    others.filter(|id| life(node, metrics, *id) == Life::Alive).max_by_key(|id| matched(id).map(|at| at.index))
}

/// Gives leadership to anyone, if this node has it: the others need not wait for an election then.
pub async fn abdicate(node: &Node, until: Mono) {
    let Ok((raft, metrics)) = leading(node) else { return };
    let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
    let Some(heir) = heir(node, &metrics, &voters) else { return };
    if hand_over(node, raft, heir, until).await.is_err() {
        // Nothing is lost by it, and the last of many that stop finds nobody.
        tracing::info!("raft: nobody took over leadership before this node stops; a majority of the others elects");
    }
}

async fn hand_over(node: &Node, raft: &Raft, to: u64, until: Mono) -> Result<(), ClientError> {
    let mut metrics = raft.metrics();
    // The engine gives up quietly when the target is not ready: ask again, a few times.
    loop {
        if raft.trigger().transfer_leader(to).await.is_err() {
            return Err(ClientError::NotLeader);
        }
        let pause = (node.config.election_min).min(left(until));
        let changed = metrics.wait_until(|m: &Metrics| m.current_leader.is_some_and(|leader| leader != m.id));
        if matches!(timeout(pause, changed).await, Ok(Ok(_))) {
            return Ok(());
        }
        if left(until).is_zero() {
            return refused("the other member did not take over in time; this one still leads");
        }
    }
}

/// Gives leadership to a member.
pub async fn transfer(node: &Arc<Node>, name: &str, until: Mono) -> Served {
    let (raft, metrics) = leading(node)?;
    let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
    let Some((to, _)) = named(&metrics, name).into_iter().find(|(id, _)| voters.contains(id)) else {
        return refused(format!("there is no voting member named {name}"));
    };
    if to == metrics.id {
        return Ok(ClientResponse::Done);
    }
    if life(node, &metrics, to) == Life::Silent {
        return refused(format!("{name} has not answered the leader lately"));
    }
    let before = clock::now();
    hand_over(node, raft, to, until).await?;
    tracing::info!(to = name, elapsed_ms = clock::now().since(before).as_millis(), "raft: leadership handed over");
    Ok(ClientResponse::Done)
}
