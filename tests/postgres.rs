//! One local instance against a real PostgreSQL: bootstrap, copy, stream, promote, diverge, rewind.
//!
//! The postmaster is started plainly from the instance's own start command; nothing of the guardian is needed here.
//! Free ports, one temporary directory per test, every server killed on drop.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test fails loudly and may talk")]

mod postgres {
    mod bootstrap;
    mod copy;
    mod fixture;
    mod refusals;
    mod rejoin;
    mod settings;
}
