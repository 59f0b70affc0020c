//! The guardian: a small process of its own that is PostgreSQL's parent and holds the permit's deadline.
//!
//! ```text
//! agent (tokio) --unix socket--> guardian (one thread, poll) --fork--> postmaster -> backends
//!   client.rs      protocol.rs     run.rs, supervise.rs                    spawn.rs
//!                                  deadline.rs + timer -> kill.rs          all of them, and only then "fenced"
//!                                  deadman.rs: the kernel kills a frozen guardian, and PostgreSQL with it
//!                                  tether.rs: ... and every backend
//! ```
//!
//! It outlives the agent's crash, restart and upgrade; a restarted agent attaches again over the socket.
//! While PostgreSQL is a standby nothing here stops it. While PostgreSQL may accept writes, it lives only as
//! long as the permit, whatever becomes of the agent, the guardian, or the processor time of either.
//!
//! Deliberately absent: async (except in the agent's side, `client.rs`), Raft, the store, SQL, and any decision
//! about who should be primary. Writing to a file while PostgreSQL is writable is absent too: a disk that
//! stalls must not be able to hold up the deadline.

pub mod args;
pub mod client;
pub mod deadline;
mod deadman;
mod ending;
mod home;
mod journal;
mod kill;
mod lock;
mod process;
pub mod protocol;
mod requests;
mod run;
mod server;
mod spawn;
pub mod status;
mod supervise;
mod tether;
mod watchdog;

pub use client::{Error, Guardian, GuardianConfig};
pub use protocol::{AdoptRequest, Escalate, Refusal, StartMode, StartRequest, WatchdogConfig, WatchdogMode};
pub use status::{Exit, FenceReason, FenceReport, GuardianStatus, Link, PostgresProcess};
