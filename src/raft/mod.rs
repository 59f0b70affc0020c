//! The replicated store: `kv::State` under Raft, with leases, on disk and between members.
//!
//! ```text
//!  Store (handle)                      RaftServer (server) <- GET /raft, Upgrade
//!    | propose, linearize, renew            | auth: both sides know the secret
//!    v                                      v
//!  leader (what only the leader does) <- Node -> openraft -> log -> commit -> disk (sled)
//!    | confirm: quorum round from memory        |-> machine -> kv::State -> watchers
//!    | lease_clock: deadlines in memory         |-> snapshot files
//!    | membership: learner, voter, removal      `-> network -> link -> other members
//!  bootstrap: form, or join, once               force: a new cluster from one copy
//! ```
//!
//! Where to look: `disk.rs` is the only file that names sled and the only commit point; `confirm.rs`
//! has the proof on which reads and leases rest; `lease_clock.rs` the rules of leases.
//!
//! Absent on purpose: openraft's types outside this module, clocks and randomness in what is
//! replicated, and any way for a peer to talk to this node without the cluster's secret.

mod auth;
mod between;
mod bootstrap;
mod codec;
mod commit;
mod confirm;
mod disk;
mod error;
mod file_range;
mod files;
mod force;
mod forget;
mod gather;
mod handle;
mod identity;
mod leader;
mod lease_clock;
mod link;
mod log;
mod machine;
mod membership;
mod network;
mod node;
mod server;
mod snapshot;
mod status;
mod tally;
mod types;
mod upkeep;
mod wire;

use std::sync::Arc;

pub use error::{Error, StoreError};
pub(crate) use files::write_whole;
pub use force::{ForceReport, force_new_cluster};
pub use forget::Retention;
pub use handle::{Consistency, ReadGuarantee, Store, StoreConfig};
pub use machine::Applied;
pub use server::{RaftServer, raft_routes};
pub use status::{MemberInfo, RaftStatus, Role, Vitals};
pub use tally::{PeerTally, Tally};
pub use wire::{KeyGuard, RenewOutcome};

/// Called once, with a sentence, when this node cannot be a member any more (its disk failed, the
/// engine stopped on an inconsistency). The program must end the process: what it promised to others
/// may be lost already.
pub type FatalHook = Arc<dyn Fn(&str) + Send + Sync>;

/// Parts of the module that its own tests and benchmarks drive directly. No promise of stability.
#[doc(hidden)]
pub mod internals {
    pub use super::codec::{decode, encode};
    pub use super::disk::{Batch, Contents, Disk, Fact};
    pub use super::log::LogStore;
    pub use super::machine::Machine;
    pub use super::snapshot::{Header, Snapshots};
    pub use super::types::{Entry, LogId, Member, Membership, Proposal, SnapshotMeta, TypeConfig, Vote};
    pub use super::wire::{ClientRequest, Frame, Kind, Request};
}
