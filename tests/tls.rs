//! TLS everywhere: the main port, members' links, etcd's listener, and the clients that people use with them.
//!
//! An authority is made for each test. What is believed and what is refused is asked by real clients: curl, etcdctl,
//! patronictl, and howdah's own command line.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test fails loudly and may talk")]

#[path = "tls/authority.rs"]
mod authority;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "e2e/cluster.rs"]
mod cluster;
#[path = "tls/everywhere.rs"]
mod everywhere;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "e2e/log_gate.rs"]
mod log_gate;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "e2e/observe.rs"]
mod observe;
#[path = "tls/port.rs"]
mod port;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "e2e/report.rs"]
mod report;
#[path = "tls/voters.rs"]
mod voters;
