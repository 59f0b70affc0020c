//! The proof of leadership that everything which lets writes through must hold.

use serde::{Deserialize, Serialize};

use super::{Mono, Term};

/// The right to accept writes, until a moment.
///
/// Built only in `agent/lock.rs` (`tests/tidy.rs` checks it), from a successful answer of the store,
/// with `valid_until` = the time *before* the request was sent + ttl - margin. A promotion cannot be
/// asked for without one, and the guardian stops PostgreSQL when the last one has run out.
///
/// Source: design section 5.1; decision record 0002.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderPermit {
    /// Which leadership this is.
    pub term: Term,
    /// From here on nothing may be acknowledged any more.
    pub valid_until: Mono,
}

impl LeaderPermit {
    /// Whether writes may still be accepted at `now`.
    pub fn holds_at(&self, now: Mono) -> bool {
        now < self.valid_until
    }
}
