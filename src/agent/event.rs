//! Everything that can wake the loop, in one place.

use crate::types::NodeName;

/// Why a tick happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The heartbeat, or the last decision's own deadline.
    Timer,
    /// A key that decisions depend on has changed.
    RecordChanged,
    /// The guardian reported a change: PostgreSQL started, stopped, crashed or was fenced.
    ProcessChanged,
    /// This node's permit was won, lost or extended for the first time in a term.
    LockChanged,
    /// A long task has ended.
    TaskEnded,
    /// Somebody asked over REST or the command line.
    Asked,
    /// The Raft leader changed.
    RaftLeaderChanged(Option<NodeName>),
    /// The node shall stop.
    Shutdown,
}
