//! Real clients of etcd against three real nodes: what they print and what they do.
//!
//! nodes (witnesses, no PostgreSQL) -> etcdctl as Debian ships it | JSON over HTTP | a real Patroni
//!                                  -> a concurrent history under kills and pauses -> a checker
//! Expected texts and numbers are etcd's own.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test fails loudly and may talk")]

#[path = "compat/auth.rs"]
mod auth;
#[path = "compat/etcdctl.rs"]
mod etcdctl;
#[path = "compat/etcdctl_forms.rs"]
mod etcdctl_forms;
#[path = "compat/gateway.rs"]
mod gateway;
#[path = "compat/history.rs"]
mod history;
#[path = "compat/libraries.rs"]
mod libraries;
#[path = "compat/malformed.rs"]
mod malformed;
#[path = "compat/nodes.rs"]
mod nodes;
#[path = "compat/patroni.rs"]
mod patroni;
#[path = "compat/queues.rs"]
mod queues;
