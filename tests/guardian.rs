//! The guardian against a real PostgreSQL: what it starts, what it refuses, and that nothing outlives a permit.
//!
//! Each test has a data directory, a socket and a port of its own; they run one after another, because several of
//! them measure. PostgreSQL refuses to run as root, so root runs it as `postgres`.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test, which also measures")]

#[path = "guardian/load.rs"]
mod load;
#[path = "guardian/world.rs"]
mod world;

#[path = "guardian/deadline.rs"]
mod deadline;
#[path = "guardian/frozen.rs"]
mod frozen;
#[path = "guardian/socket.rs"]
mod socket;
#[path = "guardian/starting.rs"]
mod starting;
#[path = "guardian/stopping.rs"]
mod stopping;
