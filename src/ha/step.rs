//! The complete list of what this program may do to PostgreSQL or to the shared record.
//!
//! A reviewer reads this file first. Whatever is not here does not happen. Record steps carry what they
//! were decided on: if that has changed, the write does not take place.

use serde::{Deserialize, Serialize};

use crate::cluster::records::SyncRecord;
use crate::types::{LeaderPermit, Lsn, NodeName, StopMode, SystemId, Term, TimelineId};

/// One effect. A crash may fall between any two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// On the local PostgreSQL.
    Pg(PgStep),
    /// On the shared record.
    Record(RecordStep),
    /// The node's process ends.
    Exit,
}

/// In the place of a request's `mod_revision`: a person asked this node alone, and the record has no request.
pub const BY_HAND: i64 = 0;

/// An effect on the local PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PgStep {
    /// Create a new database (long).
    Initdb,
    /// Write the configuration to follow `follow`, or nobody; reload if it runs.
    Configure {
        /// Upstream.
        follow: Option<NodeName>,
    },
    /// Write the configuration to follow the primary outside the cluster; reload if it runs.
    ConfigureOutside,
    /// Start as a standby. The guardian refuses without `standby.signal`.
    StartStandby,
    /// Start as the primary. The guardian holds the permit's deadline from before the start.
    StartPrimary {
        /// The proof.
        permit: LeaderPermit,
    },
    /// Turn the running standby into the primary, on the timeline that it has been given.
    Promote {
        /// The proof.
        permit: LeaderPermit,
        /// The number. What PostgreSQL would use before it is passed over.
        timeline: TimelineId,
    },
    /// Stop.
    Stop {
        /// How.
        mode: StopMode,
    },
    /// Kill everything of it, now.
    Fence,
    /// Write a checkpoint, so that the stop that follows is short.
    Checkpoint {
        /// The request that it serves; [`BY_HAND`] for a restart, which goes on without it.
        request_revision: i64,
    },
    /// Copy the database from `from` beside the old directory, then put it in place (long).
    BaseBackup {
        /// Source.
        from: NodeName,
    },
    /// Copy the database of the primary outside the cluster (long).
    BaseBackupOutside,
    /// Ask the operator's command whether to promote.
    PrePromote {
        /// The leadership that it would be for.
        term: Term,
    },
    /// Make diverged data equal to `from`'s again (long).
    Rewind {
        /// Source.
        from: NodeName,
    },
    /// Rename the data directory; nothing is deleted.
    MoveAside {
        /// For the log.
        why: String,
    },
    /// Create the roles that the cluster needs.
    CreateRoles,
    /// Have commits wait for those whom the text of `synchronous_standby_names` names, before anything goes on; none
    /// leaves it to the user's own parameter. Follows nobody.
    Enforce {
        /// The text.
        names: Option<String>,
    },
    /// End the long task.
    CancelTask,
}

/// An effect on the shared record. Each is a compare-and-swap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordStep {
    /// If neither `initialize` nor `leader` exists: take both, on this node's lease.
    ClaimBootstrap,
    /// If this node still leads in `term`: the cluster exists, with this identity.
    FinishBootstrap {
        /// The term in which it was created.
        term: Term,
        /// The new database's identity.
        system_id: SystemId,
    },
    /// If nobody leads: lead.
    TakeLeader {
        /// The number for the promotion that follows; none when none does.
        reserve: Option<TimelineId>,
    },
    /// If this node still leads in `term`: its promotion gets this number.
    ReserveTimeline {
        /// The term.
        term: Term,
        /// The number, greater than any that was given before.
        timeline: TimelineId,
    },
    /// If this node still leads in `term`: nobody leads. Only after PostgreSQL has stopped, or as a standby's.
    ReleaseLeader {
        /// The term that ends.
        term: Term,
    },
    /// If this node still leads in `term`: nobody leads, and `to` is the proven successor.
    HandOver {
        /// The term that ends.
        term: Term,
        /// The successor.
        to: NodeName,
        /// What it has received.
        shutdown_lsn: Lsn,
        /// `switchover` or `shutdown`.
        why: String,
    },
    /// If this node still leads in `term` and nobody else has written the key: who may lead after it.
    WriteSync {
        /// The term.
        term: Term,
        /// What it says.
        record: SyncRecord,
        /// The key's `mod_revision`; zero: it is not there.
        mod_revision: i64,
    },
    /// If this node still leads in `term` and nobody else has written the key: whoever has enough WAL may lead.
    RemoveSync {
        /// The term.
        term: Term,
        /// The key's `mod_revision`.
        mod_revision: i64,
    },
    /// If the request is still the one that was judged: it is done or refused.
    ClearRequest {
        /// Its `mod_revision`.
        mod_revision: i64,
    },
}
