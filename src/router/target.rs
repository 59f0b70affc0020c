//! Where a new connection goes: pure functions over the record.
//!
//! ```text
//! record (+ was this term's promotion seen to be finished?) -> write_target -> a target, or why there is none
//! record + lag limit                                        -> replica_targets -> those that may serve reads
//! ```
//! Source: design section 5.3 (a). Routing goes by *term*: a member that calls itself primary is no target unless it
//! holds the leader key and has said so after it got it. Absent: clocks, sockets, and whether the record is fresh
//! (`keeper.rs`).

use std::fmt;
use std::time::Duration;

use crate::cluster::ClusterRecord;
use crate::cluster::records::MemberRecord;
use crate::types::{ByteSize, NodeName, Term};

/// A PostgreSQL that may be connected to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The member.
    pub name: NodeName,
    /// Its host, as the member published it.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// Why a connection has to wait; ends the sentence that a client is refused with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// No leader key.
    NoLeader,
    /// This router has not heard a majority of the members for longer than a leadership lasts.
    Unconfirmed {
        /// So long.
        ttl: Duration,
    },
    /// The leader key is new; its holder has not finished the promotion.
    TakingOver {
        /// Who.
        leader: NodeName,
    },
    /// The leader stops in good order, to let another lead.
    HandingOver {
        /// Who.
        leader: NodeName,
    },
    /// The leader's PostgreSQL does not run.
    NotRunning {
        /// Who.
        leader: NodeName,
        /// Its own word.
        state: String,
    },
    /// The leader published no address.
    NoAddress {
        /// Who.
        leader: NodeName,
    },
    /// Nobody may serve reads.
    NoReplica,
    /// It was tried, and did not take the connection.
    Unreachable {
        /// Who.
        name: NodeName,
        /// What was said.
        why: String,
    },
    /// As many clients as allowed are connected.
    Full {
        /// So many.
        limit: u32,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::NoLeader => f.write_str("no node leads the cluster"),
            Cause::Unconfirmed { ttl } => {
                write!(f, "this router has not heard a majority of the members for {} s", ttl.as_secs_f64())
            }
            Cause::TakingOver { leader } => write!(f, "{leader} is taking over and has not finished"),
            Cause::HandingOver { leader } => write!(f, "{leader} is handing over to another node"),
            Cause::NotRunning { leader, state } => write!(f, "{leader} leads, but its PostgreSQL is {state}"),
            Cause::NoAddress { leader } => write!(f, "{leader} leads, but has published no address"),
            Cause::NoReplica => f.write_str("no replica runs, streams and is close enough to the primary"),
            Cause::Unreachable { name, why } => write!(f, "{name} did not take the connection: {why}"),
            Cause::Full { limit } => write!(f, "{limit} clients are connected (router.max_connections)"),
        }
    }
}

/// What PostgreSQL's own states mean for a leader that has finished its promotion. A monitor that was too slow to say
/// "running" is no reason to turn clients away: PostgreSQL answers them itself.
const LEADER_IS_DOWN: [&str; 4] = ["stopped", "crashed", "creating replica", "initializing new cluster"];

/// Whether the leader has said that it stops in good order.
pub fn is_handing_over(record: &ClusterRecord) -> bool {
    record.leader_member().is_some_and(|(_, member)| member.state == "stopping")
}

/// Whether the leader has said, after it got the key, that it runs as the primary.
pub fn is_established(record: &ClusterRecord) -> bool {
    let Some(leader) = &record.leader else { return false };
    let Some(member) = record.members.get(&leader.value) else { return false };
    leader.create_revision < member.mod_revision && member.value.role == "primary" && member.value.state == "running"
}

/// Who may be written to. `established` is the newest term whose promotion was seen to be finished.
///
/// # Errors
/// Why nobody may.
pub fn write_target(record: &ClusterRecord, established: Option<Term>) -> Result<Target, Cause> {
    let Some(leader) = record.leader.as_ref().map(|leader| leader.value.clone()) else { return Err(Cause::NoLeader) };
    let Some((_, member)) = record.leader_member() else { return Err(Cause::TakingOver { leader }) };
    if is_handing_over(record) {
        return Err(Cause::HandingOver { leader });
    }
    if !is_established(record) && (established.is_none() || established != record.term()) {
        return Err(Cause::TakingOver { leader });
    }
    if LEADER_IS_DOWN.contains(&member.state.as_str()) {
        return Err(Cause::NotRunning { leader, state: member.state.clone() });
    }
    target(&leader, member).ok_or(Cause::NoAddress { leader })
}

/// Who may serve reads: runs, streams, is not tagged `noloadbalance`, and is within `maximum_lag` if its position and
/// the leader's are known.
pub fn replica_targets(record: &ClusterRecord, maximum_lag: Option<ByteSize>) -> Vec<Target> {
    let leader = record.leader.as_ref().map(|leader| &leader.value);
    let members = record.members.iter().filter(|(name, _)| Some(*name) != leader);
    members
        .filter(|(_, member)| {
            let member = &member.value;
            member.role == "replica"
                && member.state == "running"
                && member.replication_state.as_deref() == Some("streaming")
                && !member.has_tag("noloadbalance")
                && maximum_lag.is_none_or(|limit| lag(record, member).is_none_or(|lag| lag <= limit.0))
        })
        .filter_map(|(name, member)| target(name, &member.value))
        .collect()
}

/// How many bytes a replica has not replayed yet, as far as both have said.
fn lag(record: &ClusterRecord, member: &MemberRecord) -> Option<u64> {
    let written = record.leader_member().and_then(|(_, leader)| leader.xlog_location);
    let end = written.max(record.status.as_ref().map(|status| status.value.optime))?;
    Some(end.ahead_of(member.replay_lsn.or(member.xlog_location)?).0)
}

fn target(name: &NodeName, member: &MemberRecord) -> Option<Target> {
    let (host, port) = member.postgres_address()?;
    Some(Target { name: name.clone(), host, port })
}

/// The one with the fewest sessions; among equals each in turn. None when there is none.
pub fn least_connected(sessions: &[u64], turn: u64) -> Option<usize> {
    let least = *sessions.iter().min()?;
    let equals: Vec<usize> = (0..sessions.len()).filter(|at| sessions.get(*at) == Some(&least)).collect();
    let turn = usize::try_from(turn % u64::try_from(equals.len()).ok()?).ok()?;
    equals.get(turn).copied()
}

#[cfg(test)]
mod tests;
