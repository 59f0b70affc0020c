//! Real binary, real PostgreSQL, real processes: what a cluster does when its parts fail.
//!
//! Each test boots its own cluster in its own directory, harms it, and lets a ledger of acknowledged
//! writes and a gate over the logs judge. One runs at a time: on a small machine two clusters would
//! disturb each other's clocks. No test asserts how *fast* something was; figures are printed as
//! `measured:` lines and belong to `benches/failover.rs`.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test fails loudly and may talk")]

#[path = "e2e/cluster.rs"]
mod cluster;
#[path = "e2e/dashboard.rs"]
mod dashboard;
#[cfg(target_os = "linux")]
#[path = "e2e/disk.rs"]
mod disk;
#[path = "e2e/freezes.rs"]
mod freezes;
#[path = "e2e/gates.rs"]
mod gates;
#[path = "e2e/ledger.rs"]
mod ledger;
#[path = "e2e/log_gate.rs"]
mod log_gate;
#[path = "e2e/majors.rs"]
mod majors;
#[path = "e2e/midway.rs"]
mod midway;
#[cfg(target_os = "linux")]
#[path = "e2e/network.rs"]
mod network;
#[path = "e2e/observe.rs"]
mod observe;
#[path = "e2e/overload.rs"]
mod overload;
#[path = "e2e/people.rs"]
mod people;
#[path = "e2e/proof.rs"]
mod proof;
#[path = "e2e/report.rs"]
mod report;
#[path = "e2e/scenario.rs"]
mod scenario;
#[path = "e2e/stories.rs"]
mod stories;
#[path = "e2e/sync.rs"]
mod sync;
#[path = "e2e/takeover.rs"]
mod takeover;
