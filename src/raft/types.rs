//! The types with which the consensus engine is instantiated; its generics stop in this module.

use std::fmt;
use std::sync::Arc;

use openraft::impls::leader_id_std::LeaderId;
use serde::{Deserialize, Serialize};

use crate::kv;
use crate::kv::command::{Command, Response};

/// One change on its way through the log. Cheap to clone; written by `codec` in the layout of [`Command`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal(pub Arc<Command>);

impl Proposal {
    /// Wraps a command.
    pub fn new(command: Command) -> Self {
        Self(Arc::new(command))
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys and values stay out of logs: values can hold passwords.
        f.write_str(match self.0.inner() {
            Command::Put(_) => "put",
            Command::DeleteRange(_) => "delete range",
            Command::Txn(_) => "transaction",
            Command::Compact { .. } => "compact",
            Command::LeaseGrant { .. } => "lease grant",
            Command::LeaseRevoke { .. } => "lease revoke",
            Command::LeasesExpire { .. } => "leases expire",
            Command::Auth(_) => "users and roles",
            Command::As { .. } | Command::ByToken { .. } => "somebody's",
            Command::Many(_) => "several",
        })
    }
}

/// What applying an entry answers to its proposer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The entry held no command (a leader's first entry, or a membership change).
    Nothing,
    /// The state machine's answer.
    Done(#[serde(with = "super::codec::outcome")] Result<Response, kv::Error>),
}

/// A member as the membership entry records it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its configured name.
    pub name: String,
    /// `host:port` of its main port.
    pub addr: String,
}

openraft::declare_raft_types!(
    /// The one instantiation of the engine.
    pub TypeConfig:
        D = Proposal,
        R = Reply,
        NodeId = u64,
        Node = Member,
        Term = u64,
        LeaderId = LeaderId<u64, u64>,
);

/// A log position.
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
/// A log entry.
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
/// A vote.
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
/// A membership together with where in the log it stands.
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
/// A membership.
pub type Membership = openraft::Membership<u64, Member>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
/// A snapshot with its bytes.
pub type Snapshot = openraft::alias::SnapshotOf<TypeConfig, bytes::Bytes>;
/// The engine's handle.
pub type Raft = openraft::Raft<TypeConfig, super::machine::Machine>;
/// Tells when the engine's published state changes.
pub type MetricsWatch = openraft::alias::WatchReceiverOf<TypeConfig, Metrics>;
/// Announces changes of leadership and membership only; the other one also each heartbeat.
pub type ServerWatch = openraft::alias::WatchReceiverOf<TypeConfig, openraft::metrics::RaftServerMetrics<TypeConfig>>;
/// The engine's published state.
pub type Metrics = openraft::RaftMetrics<TypeConfig>;
