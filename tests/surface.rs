//! What a person and a tool see: the built binary, and the REST interface over a real socket.
//!
//! The server is the real one over a fixed snapshot and a `Control` that only writes down what it was asked.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test fails loudly and may talk")]

#[path = "surface/config_files.rs"]
mod config_files;
#[path = "surface/drill.rs"]
mod drill;
#[path = "surface/fake_node.rs"]
mod fake_node;
#[path = "surface/http.rs"]
mod http;
#[path = "surface/no_quorum.rs"]
mod no_quorum;
#[path = "surface/openapi.rs"]
mod openapi;
#[path = "surface/tables.rs"]
mod tables;
#[path = "surface/verbs.rs"]
mod verbs;
#[path = "surface/why.rs"]
mod why;
