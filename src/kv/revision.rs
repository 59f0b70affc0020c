//! When a change happened: the store's revision, and its place inside that revision.
//!
//! `main` rises by exactly one with every command that changed at least one key; `sub` numbers the
//! changes that share it (0, 1, 2, ...) and is visible to clients only as the order of events.

use std::fmt;

/// The moment of one change of one key. Ordered as the changes were made; unique in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// The store's revision. The first change of a store has 2.
    pub main: i64,
    /// The place inside `main`, from zero.
    pub sub: u32,
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.main, self.sub)
    }
}
