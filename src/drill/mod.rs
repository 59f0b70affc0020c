//! A drill: clients that write and read, a fault, and what it has cost.
//!
//! ```text
//! load (writers, a reader: every acknowledgement noted) -> the fault, by whoever runs the drill -> Outcome -> text, JSON, HTML
//! ```
//! A writer repeats what it got no answer for, as a careful application does: an acknowledged write that is missing
//! afterwards is lost, one that is there twice was repeated although it had been done. Deliberately absent: the faults.

pub mod load;
pub mod outcome;
pub mod report;

pub use load::{Counters, Door, Load, Plan, Proof};
pub use outcome::Outcome;
