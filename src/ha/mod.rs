//! THE DECISION CORE. A failover is decided in `candidate.rs` (who may) and `rules/` (when);
//! who must have a commit before its client hears of it, in `sync_set.rs`.
//!
//! ```text
//! ClusterView --decide--> Decision { action, reason, recheck_after } --plan--> [Step]
//! ```
//!
//! Pure: no async, no clock, no randomness, no log, no I/O, and it cannot fail. Time is a field of the
//! view. It runs unchanged in production, under simulation, and when a journal is replayed.
//! A node decides only about its own PostgreSQL; the shared record is the only coordination.

pub mod candidate;
pub mod decide;
pub mod plan;
pub mod reason;
pub mod rejoin;
mod rules;
pub mod step;
mod sync_names;
mod sync_proof;
pub mod sync_set;
pub mod sync_wish;
pub mod view;
pub mod what_if;
pub mod why;

pub use decide::{Action, Decision, decide};
pub use plan::plan;
pub use reason::Reason;
pub use rules::sync::names_to_start_with;
pub use step::{PgStep, RecordStep, Step};
pub use view::ClusterView;
