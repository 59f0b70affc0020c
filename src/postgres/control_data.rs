//! What `pg_controldata` says about a data directory, running or not.
//!
//! text of `LC_ALL=C pg_controldata` -> [`ControlData`]. The text is the stable interface: the binary layout of
//! `pg_control` changes between versions, the labels that are read here have not from 13 to 18.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::Error;
use crate::types::{Lsn, SystemId, TimelineId};

/// The state in which PostgreSQL left the data directory, or is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlState {
    /// Being started for the first time.
    StartingUp,
    /// A primary that was stopped cleanly.
    ShutDown,
    /// A standby that was stopped cleanly.
    ShutDownInRecovery,
    /// Writing its shutdown checkpoint (or died while doing it).
    ShuttingDown,
    /// Replaying after a crash (or died while doing it).
    InCrashRecovery,
    /// A running standby (or one that died).
    InArchiveRecovery,
    /// A running primary (or one that died).
    InProduction,
    /// A text that no known version writes.
    Unknown,
}

impl ControlState {
    fn parse(text: &str) -> Self {
        match text {
            "starting up" => Self::StartingUp,
            "shut down" => Self::ShutDown,
            "shut down in recovery" => Self::ShutDownInRecovery,
            "shutting down" => Self::ShuttingDown,
            "in crash recovery" => Self::InCrashRecovery,
            "in archive recovery" => Self::InArchiveRecovery,
            "in production" => Self::InProduction,
            _ => Self::Unknown,
        }
    }

    /// Whether the server was stopped cleanly: nothing remains to be recovered.
    pub fn is_clean(self) -> bool {
        matches!(self, Self::ShutDown | Self::ShutDownInRecovery)
    }

    /// Whether the last role was primary, as far as the state tells.
    pub fn was_primary(self) -> bool {
        matches!(self, Self::ShutDown | Self::ShuttingDown | Self::InProduction | Self::InCrashRecovery)
    }
}

/// Settings that a standby must not go below.
///
/// Source: PostgreSQL documentation, "Hot Standby", administrator's overview.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyFloors {
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
}

/// The part of `pg_control` that decisions are made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlData {
    /// Which database cluster this is.
    pub system_id: SystemId,
    /// See [`ControlState`].
    pub state: ControlState,
    /// Timeline of the latest checkpoint.
    pub timeline: TimelineId,
    /// The timeline before it; differs only in the checkpoint right after a promotion.
    pub previous_timeline: TimelineId,
    /// Where the latest checkpoint record begins.
    pub checkpoint: Lsn,
    /// From where recovery would replay.
    pub redo: Lsn,
    /// A standby must replay up to here before it is consistent; none on a primary.
    pub minimum_recovery_end: Option<Lsn>,
    /// The timeline of `minimum_recovery_end`.
    pub minimum_recovery_timeline: Option<TimelineId>,
    /// True from the start of a restored base backup until its end has been replayed.
    pub backup_in_progress: bool,
    /// `wal_log_hints` at the last start.
    pub wal_log_hints: bool,
    /// Whether data pages carry checksums.
    pub checksums: bool,
    /// `wal_level` at the last start.
    pub wal_level: String,
    /// What a standby of this cluster needs at least.
    pub floors: StandbyFloors,
    /// Bytes per WAL segment file.
    pub wal_segment_size: u64,
    /// Bytes per WAL page.
    pub wal_block_size: u64,
}

impl ControlData {
    /// Reads the output of `LC_ALL=C pg_controldata`.
    ///
    /// # Errors
    /// `ParseControlData` names the first field that is missing or malformed.
    pub fn parse(text: &str) -> Result<Self, Error> {
        // pg_controldata ends with success nevertheless.
        if text.contains("CRC checksum does not match") {
            return Err(Error::ParseControlData {
                why: "pg_control is damaged: its checksum does not match".to_owned(),
            });
        }
        let fields = Fields::read(text);
        let minimum_recovery_end: Lsn = fields.get("Minimum recovery ending location")?;
        let minimum_timeline: u32 = fields.get("Min recovery ending loc's timeline")?;
        let backup_start: Lsn = fields.get("Backup start location")?;
        let backup_end: Lsn = fields.get("Backup end location")?;
        Ok(Self {
            system_id: fields.get("Database system identifier")?,
            state: ControlState::parse(fields.text("Database cluster state")?),
            timeline: TimelineId(fields.get("Latest checkpoint's TimeLineID")?),
            previous_timeline: TimelineId(fields.get("Latest checkpoint's PrevTimeLineID")?),
            checkpoint: fields.get("Latest checkpoint location")?,
            redo: fields.get("Latest checkpoint's REDO location")?,
            minimum_recovery_end: (minimum_recovery_end != Lsn(0)).then_some(minimum_recovery_end),
            minimum_recovery_timeline: (minimum_timeline != 0).then_some(TimelineId(minimum_timeline)),
            backup_in_progress: backup_start != Lsn(0)
                || backup_end != Lsn(0)
                || fields.text("End-of-backup record required")? == "yes",
            wal_log_hints: fields.text("wal_log_hints setting")? == "on",
            checksums: fields.get::<u32>("Data page checksum version")? != 0,
            wal_level: fields.text("wal_level setting")?.to_owned(),
            floors: StandbyFloors {
                max_connections: fields.get("max_connections setting")?,
                max_worker_processes: fields.get("max_worker_processes setting")?,
                max_wal_senders: fields.get("max_wal_senders setting")?,
                max_prepared_transactions: fields.get("max_prepared_xacts setting")?,
                max_locks_per_transaction: fields.get("max_locks_per_xact setting")?,
            },
            wal_segment_size: fields.get("Bytes per WAL segment")?,
            wal_block_size: fields.get("WAL block size")?,
        })
    }

    /// The newest timeline that this directory certainly is on: replay may be past the last checkpoint.
    pub fn newest_timeline(&self) -> TimelineId {
        self.minimum_recovery_timeline.map_or(self.timeline, |t| t.max(self.timeline))
    }

    /// The furthest position that the control file proves to be there.
    pub fn proven_position(&self) -> Lsn {
        self.minimum_recovery_end.map_or(self.checkpoint, |end| end.max(self.checkpoint))
    }

    /// Whether pg_rewind can work on this directory.
    ///
    /// Source: PostgreSQL documentation, pg_rewind, prerequisites.
    pub fn can_be_rewound(&self) -> bool {
        self.wal_log_hints || self.checksums
    }
}

struct Fields<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Fields<'a> {
    fn read(text: &'a str) -> Self {
        // "Time of latest checkpoint: Sun Nov 22 20:00:00 2026": only the first colon separates.
        Self(text.lines().filter_map(|line| line.split_once(':')).map(|(k, v)| (k.trim(), v.trim())).collect())
    }

    fn text(&self, label: &str) -> Result<&'a str, Error> {
        self.0.get(label).copied().ok_or_else(|| Error::ParseControlData { why: format!("{label:?} is missing") })
    }

    fn get<T: FromStr>(&self, label: &str) -> Result<T, Error> {
        let text = self.text(label)?;
        text.parse().map_err(|_| Error::ParseControlData { why: format!("{label:?} has the value {text:?}") })
    }
}

#[cfg(test)]
mod tests;
