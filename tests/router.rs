//! The router, with real PostgreSQL behind it and real clients in front: psql, pgbench, tokio-postgres.
//!
//! Clusters are booted, harmed and awaited as in the end-to-end tests. One runs at a time. Nothing here asserts how
//! fast something was; figures are printed as `measured:` lines and belong to `benches/router.rs`.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test fails loudly and may talk")]

// Shared with the end-to-end tests, which need more of it.
#[allow(dead_code, unused_imports)]
#[path = "e2e/cluster.rs"]
mod cluster;
#[allow(dead_code, unused_imports)]
#[path = "e2e/observe.rs"]
mod observe;
#[allow(dead_code, unused_imports)]
#[path = "e2e/report.rs"]
mod report;

#[path = "router/alone.rs"]
mod alone;
#[path = "router/changes.rs"]
mod changes;
#[path = "router/clients.rs"]
mod clients;
#[path = "router/encryption.rs"]
mod encryption;
#[path = "router/quorum.rs"]
mod quorum;
#[path = "router/routing.rs"]
mod routing;
