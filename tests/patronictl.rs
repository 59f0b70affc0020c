//! What a Patroni user has in the fingers, against three real nodes with PostgreSQL: the verbs and endpoints of upkeep,
//! the real `patronictl` from PyPI, and the real HAProxy.
//!
//! The cluster is that of the end-to-end tests. Each test waits on conditions; how fast something was is not judged.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test fails loudly and may talk")]

#[path = "patronictl/balancer.rs"]
mod balancer;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "e2e/cluster.rs"]
mod cluster;
#[path = "patronictl/ctl.rs"]
mod ctl;
#[path = "patronictl/features.rs"]
mod features;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "e2e/log_gate.rs"]
mod log_gate;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "e2e/observe.rs"]
mod observe;
#[path = "patronictl/old_file.rs"]
mod old_file;
#[path = "patronictl/outside.rs"]
mod outside;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "e2e/report.rs"]
mod report;
#[path = "patronictl/site.rs"]
mod site;
#[path = "patronictl/upkeep.rs"]
mod upkeep;
