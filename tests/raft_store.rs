//! The replicated store from outside: whole nodes over real listeners, and its storage alone.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test fails loudly and may talk")]

#[path = "raft_store/chaos.rs"]
mod chaos;
#[path = "raft_store/cluster.rs"]
mod cluster;
#[path = "raft_store/consensus.rs"]
mod consensus;
#[path = "raft_store/damage.rs"]
mod damage;
#[path = "raft_store/installing.rs"]
mod installing;
#[path = "raft_store/leases.rs"]
mod leases;
#[path = "raft_store/membership.rs"]
mod membership;
#[cfg(target_os = "linux")]
#[path = "raft_store/power.rs"]
mod power;
#[path = "raft_store/storage.rs"]
mod storage;
#[path = "raft_store/torture.rs"]
mod torture;
