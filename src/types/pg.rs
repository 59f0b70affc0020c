//! PostgreSQL's versions and ways to stop.

use std::fmt;

use serde::{Deserialize, Serialize};

/// `server_version_num`: 150018 is 15.18.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PgVersion(pub u32);

impl PgVersion {
    /// The major version, 15 for 150018.
    pub fn major(self) -> u32 {
        self.0 / 10_000
    }
}

impl fmt::Display for PgVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 10_000, self.0 % 10_000)
    }
}

/// How PostgreSQL is asked to stop.
///
/// Source: PostgreSQL documentation, "Shutting Down the Server".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopMode {
    /// Roll back, write the shutdown checkpoint, send it to the standbys, end (SIGINT).
    Fast,
    /// End at once; the next start recovers from WAL (SIGQUIT).
    Immediate,
}

/// What a standby may not have less of than its primary. Source: PostgreSQL documentation, section "Hot Standby". So
/// these are raised on standbys first, and lowered on the primary first.
pub const STANDBY_FLOORS: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];
