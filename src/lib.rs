//! # howdah: high availability for PostgreSQL in one binary
//!
//! Each node carries a Raft replica of a small key-value store, drives its own PostgreSQL, and answers REST. There is
//! no coordinator: a node decides only about its own PostgreSQL, and the shared record, written by compare-and-swap,
//! is the only coordination.
//!
//! ```text
//!  timer | record changed | postgres ended | somebody asked          agent::event::Event, a closed list
//!    -> observe   agent/observe.rs   record at a revision + local facts + now = ha::ClusterView
//!    -> decide    ha/decide.rs       pure, ordered rules, first match wins = Decision { action, reason }
//!    -> plan      ha/plan.rs         pure = [Step]
//!    -> act       agent/act.rs       one Step at a time; a crash may fall between any two
//!    -> record    agent/journal.rs, agent/publish.rs
//! ```
//!
//! **Where is a failover decided?** In [`ha`]: *who* may take over in `ha/candidate.rs`, *when* in `ha/rules/standby.rs`
//! (the race) and `ha/rules/primary.rs` (a planned change). What the decision may do at all is the list in
//! `ha/step.rs`. Who must have a commit before its client hears of it, and who may lead therefore, is `ha/sync_set.rs`.
//! Why it was decided is a [`ha::Reason`], the same in log, REST and history.
//!
//! **What keeps two primaries apart?** A [`types::LeaderPermit`], made in one place (`agent/lock.rs`) from a lease that a
//! quorum has just confirmed, counted from before the request. PostgreSQL starts as a standby unless one is presented,
//! and the [`guardian`], a process of its own, kills PostgreSQL with every backend when the last one has run out.
//!
//! ## Layers
//!
//! Dependencies point upwards in this list; `tests/tidy.rs` reads the `use` lines and holds them to it.
//!
//! | module | what it is | what is deliberately absent |
//! |---|---|---|
//! | [`types`] | vocabulary | behaviour that needs the world |
//! | [`kv`] | the replicated state machine: etcd's data model | I/O, clock, randomness, logging |
//! | [`cluster`] | what our keys mean: typed records and their writes | I/O |
//! | [`ha`] | the decision core | I/O, clock, randomness, logging, failure |
//! | [`config`], [`telemetry`] | the node's file; logs, metrics, the clock | |
//! | [`tls`] | certificates, listeners and connections with TLS | what a certificate permits |
//! | [`raft`] | runs `kv` under openraft on sled, between nodes over the main port | meaning of keys |
//! | [`guardian`] | parent of the postmaster, holder of the permit's deadline | async, decisions |
//! | [`postgres`] | effects on one local PostgreSQL | decisions, other nodes' roles |
//! | [`agent`] | the loop: where the core meets effects | HTTP handlers |
//! | [`api`] | REST, answered from the published snapshot | PostgreSQL, Raft |
//! | [`etcd`] | etcd's API, gRPC and JSON, for etcd's clients | decisions; users and roles |
//! | [`dashboard`] | one page that follows the published snapshot | a build step, anything from elsewhere |
//! | [`router`] | leads clients to whoever may write, and to replicas | decisions, PostgreSQL, the store |
//! | [`drill`] | clients that write and read through a fault, and what it cost | the faults |
//! | [`cli`], [`dev`] | the command line; a whole cluster on one machine | |
//! | [`node`] | builds and wires all of it | |
//!
//! Read in this order: `types/permit.rs`, `ha/view.rs`, `ha/decide.rs`, `ha/step.rs`, `agent/tick.rs`, `agent/lock.rs`,
//! `guardian/mod.rs`. The reasons for what is surprising are in `src/docs/decisions/`.

pub mod agent;
pub mod api;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod dashboard;
pub mod dev;
pub mod drill;
pub mod etcd;
pub mod guardian;
pub mod ha;
pub mod kv;
pub mod node;
pub mod postgres;
pub mod raft;
pub mod router;
pub mod telemetry;
pub mod tls;
pub mod types;
