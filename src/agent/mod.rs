//! The loop: the only place where the core meets effects.
//!
//! ```text
//! event.rs -> observe.rs -> ha::decide -> ha::plan -> act.rs -> journal.rs, recorder.rs, chronicle.rs -> publish.rs
//! lock.rs beside it: the lease, and every permit that there is
//! ```

pub mod act;
pub mod callbacks;
pub mod chronicle;
pub mod ended;
pub mod event;
pub mod follow;
pub mod journal;
pub mod kept;
pub mod local;
pub mod lock;
pub mod logins;
pub mod observe;
pub mod orders;
pub mod peers;
pub mod publish;
pub mod recorder;
pub mod slots;
pub mod snapshot;
pub mod tick;
pub mod upkeep;
