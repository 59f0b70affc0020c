//! The replicated state machine: etcd's data model, pure.
//!
//! ```text
//!            Command (from the log, in log order)
//!               |
//!   check ----> State::apply ----> Applied { response, events }
//!  (before      |  txn: decide, check, then write       |
//!   proposing)  |  write: one revision                  v
//!               |  lease: who hangs on what        Watchers::on_applied -> batches per watcher
//!               v
//!   keys: key -> KeyHistory (live pair + older changes)       <- range, get, prefix
//!   log:  (revision, key) in order, back to the last compaction <- events_since, Watchers::catch_up
//! ```
//!
//! Every member applies the same commands in the same order and must reach the same state, bit for
//! bit. So there is no clock, no randomness, no I/O, no hash map, no logging and no async here, and
//! `apply` cannot fail: a bad request is an answer ([`Error`]) like any other.
//!
//! Reading order: [`command`] (the vocabulary), `key_index` (revisions per key, with an example),
//! `state` (what one command does), `txn`, [`watch`], [`auth`] (who may do it).
//!
//! Deliberately absent: how a client proves who it is, when a lease runs out (the Raft leader
//! decides and proposes [`command::Command::LeasesExpire`]), where a read takes place
//! (linearizable or not), space quotas (the proposer looks at [`State::size_bytes`]).

pub mod auth;
#[cfg(test)]
mod auth_stories;
mod check;
pub mod command;
mod error;
mod history;
mod key_index;
mod key_range;
mod lease;
mod range;
mod revision;
mod snapshot;
mod state;
#[cfg(test)]
mod stories;
mod txn;
pub mod watch;
#[cfg(test)]
mod watch_histories;
mod write;

pub use check::{MAX_REQUEST_BYTES, MAX_TXN_OPS};
pub use command::{Command, Event, EventKind, KeyValue, Response};
pub use error::{Code, Error};
pub use history::History;
pub use key_range::{KeyRange, prefix_end};
pub use lease::{LeaseView, MAX_LEASE_TTL_MS};
pub use revision::Revision;
pub use snapshot::SnapshotError;
pub use state::{Applied, State};
