//! The answer to "how are you" of the local server, as typed rows.
//!
//! one round trip, at most two seconds, one kept session -> [`SqlStatus`]. No decision is made here.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::StatusError;
use super::session::{Purpose, Session, TextRow};
use super::sql;
use super::units::{Kind, same_value};
use crate::types::{Lsn, PgVersion, SystemId, TimelineId};

/// Nobody waits longer for the state of the local server.
pub(super) const STATUS_LIMIT: Duration = Duration::from_secs(2);

/// The kept session for this question.
pub(super) const STATUS_PURPOSE: Purpose =
    Purpose { name: "howdah status", statement_timeout: Duration::from_millis(1900), superuser: true };

/// The kept session, and what was asked in it less often.
pub(super) struct Kept {
    session: Session,
    /// When the server had read its files, as of `settings`.
    loaded: String,
    settings: Vec<TextRow>,
}

impl Kept {
    pub(super) fn new(session: Session) -> Self {
        Self { session, loaded: String::new(), settings: Vec::new() }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.session.is_closed()
    }

    /// Asks for the state; for the settings only if the server has read its files since.
    pub(super) async fn ask(&mut self, controlled: &BTreeMap<String, String>) -> Result<SqlStatus, StatusError> {
        let results = self.session.run(sql::STATUS, STATUS_LIMIT).await?;
        let loaded = results.first().and_then(|rows| rows.first()).and_then(|row| row.text("loaded"));
        if loaded != Some(self.loaded.as_str()) {
            let loaded = loaded.unwrap_or_default().to_owned();
            let settings = self.session.run(sql::SETTINGS, STATUS_LIMIT).await?;
            self.settings = settings.into_iter().flatten().collect();
            self.loaded = loaded;
        }
        read_status(&results, &self.settings, controlled)
    }
}

/// What the local server says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SqlStatus {
    /// `server_version_num`.
    pub version: PgVersion,
    /// Which database cluster.
    pub system_id: SystemId,
    /// `YYYY-MM-DD HH:MM:SS.ffffff+00:00`.
    pub postmaster_start_time: String,
    /// The newest timeline that it writes, receives or has replayed.
    pub timeline: TimelineId,
    /// The timeline of its last checkpoint; behind `timeline` until the checkpoint after a promotion is done.
    pub checkpoint_timeline: TimelineId,
    /// Where its last checkpoint began.
    pub checkpoint_redo: Lsn,
    /// Primary or replica.
    pub role: SqlRole,
    /// Everybody who streams from it.
    pub replication: Vec<WalSender>,
    /// All its slots.
    pub slots: Vec<Slot>,
    /// Settings that were changed and wait for a restart.
    pub pending_restart: Vec<PendingRestart>,
    /// Settings with which an acknowledged commit may be gone after a crash, and their values. Empty as a rule.
    #[serde(default)]
    pub lowered: BTreeMap<String, String>,
    /// As it is in force now.
    pub synchronous_standby_names: String,
    /// When the server last read its configuration files, in microseconds since 1970.
    pub configuration_loaded_micros: i64,
}

/// A setting that is in force with one value and configured with another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingRestart {
    /// Parameter name.
    pub name: String,
    /// In force, with its unit.
    pub old: String,
    /// After a restart.
    pub new: String,
}

impl SqlStatus {
    /// Whether it is a standby.
    pub fn in_recovery(&self) -> bool {
        matches!(self.role, SqlRole::Replica(_))
    }

    /// Whether it is a standby to which WAL could arrive: a receiver is there, whatever it does.
    pub fn receives(&self) -> bool {
        matches!(&self.role, SqlRole::Replica(replica) if replica.receiver.is_some())
    }

    /// The position that counts in comparisons: flushed on a primary, received on a replica.
    pub fn position(&self) -> Lsn {
        match &self.role {
            SqlRole::Primary(primary) => primary.flush,
            SqlRole::Replica(replica) => replica.received,
        }
    }
}

/// What differs between the two roles.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SqlRole {
    /// Accepts writes.
    Primary(PrimaryPositions),
    /// Replays WAL.
    Replica(Box<ReplicaState>),
}

/// WAL positions of a primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrimaryPositions {
    /// Written to the operating system.
    pub write: Lsn,
    /// Safe on disk.
    pub flush: Lsn,
    /// Made, perhaps only in memory.
    pub insert: Lsn,
}

/// What a replica does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaState {
    /// Received and safe on disk; never below `replayed`. The server forgets it at a restart, hence the maximum of
    /// all that is known.
    pub received: Lsn,
    /// Replayed.
    pub replayed: Lsn,
    /// It has not read all the WAL yet that it had when it started: there may be more than `received`.
    pub replaying: bool,
    /// Replay was paused, by a person or by a parameter that is too small.
    pub replay_paused: bool,
    /// Commit time of the last replayed transaction, `YYYY-MM-DD HH:MM:SS.ffffff+00:00`.
    pub replayed_timestamp: Option<String>,
    /// The WAL receiver, when there is one.
    pub receiver: Option<WalReceiver>,
    /// As configured and in force.
    pub primary_conninfo: String,
    /// As configured and in force.
    pub primary_slot_name: String,
    /// As configured and in force.
    pub restore_command: String,
}

impl ReplicaState {
    /// Patroni's `replication_state`: `streaming`, `in archive recovery`, or nothing.
    pub fn replication_state(&self) -> Option<&'static str> {
        if self.receiver.as_ref().is_some_and(|r| r.status == "streaming") {
            Some("streaming")
        } else {
            (!self.restore_command.is_empty()).then_some("in archive recovery")
        }
    }
}

/// A row of `pg_stat_wal_receiver`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalReceiver {
    /// `starting`, `streaming`, `waiting`, `restarting`, `stopping`.
    pub status: String,
    /// Whom it is connected to.
    pub sender_host: Option<String>,
    /// On which port.
    pub sender_port: Option<u16>,
    /// The slot that it uses.
    pub slot_name: Option<String>,
    /// The connection string in use, passwords hidden by the server.
    pub conninfo: Option<String>,
    /// Timeline of what it received last.
    pub received_timeline: Option<TimelineId>,
    /// Written, not necessarily safe.
    pub written: Option<Lsn>,
    /// Safe on disk.
    pub flushed: Option<Lsn>,
    /// The sender's own end of WAL, as last reported.
    pub latest_end: Option<Lsn>,
}

/// A row of `pg_stat_replication`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalSender {
    /// Process.
    pub pid: u32,
    /// Role it logged in as.
    pub usename: String,
    /// The member's name.
    pub application_name: String,
    /// Where it comes from; none over a socket.
    pub client_addr: Option<String>,
    /// `startup`, `catchup`, `streaming`, `backup`, `stopping`.
    pub state: String,
    /// `async`, `potential`, `sync`, `quorum`.
    pub sync_state: String,
    /// Position in a priority list.
    pub sync_priority: i32,
    /// Sent.
    pub sent: Option<Lsn>,
    /// Written there.
    pub write: Option<Lsn>,
    /// Safe there.
    pub flush: Option<Lsn>,
    /// Replayed there.
    pub replay: Option<Lsn>,
    /// The slot that it uses.
    pub slot_name: Option<String>,
}

/// A row of `pg_replication_slots`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Name.
    pub name: String,
    /// Logical, not physical.
    pub logical: bool,
    /// Of a logical slot.
    pub database: Option<String>,
    /// Of a logical slot.
    pub plugin: Option<String>,
    /// Goes away with its session.
    pub temporary: bool,
    /// In use.
    pub active: bool,
    /// WAL from here on is kept for it; none when it reserves nothing.
    pub restart_lsn: Option<Lsn>,
    /// Of a logical slot.
    pub confirmed_flush_lsn: Option<Lsn>,
    /// Holds back vacuum.
    pub has_xmin: bool,
    /// Holds back vacuum of the catalogs.
    pub has_catalog_xmin: bool,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: Option<String>,
    /// PostgreSQL 17: synchronised to standbys by PostgreSQL itself.
    pub failover: bool,
    /// PostgreSQL 17: made by that synchronisation.
    pub synced: bool,
    /// PostgreSQL 17: why it became unusable.
    pub invalidation_reason: Option<String>,
}

/// Reads the result sets of [`super::sql::STATUS`].
///
/// `settings` are the rows of [`super::sql::SETTINGS`], `controlled` the values that the next start will have on its command line.
pub(super) fn read_status(
    results: &[Vec<TextRow>],
    settings: &[TextRow],
    controlled: &BTreeMap<String, String>,
) -> Result<SqlStatus, StatusError> {
    let [scalars, receivers, senders, slots] = results else {
        return Err(StatusError::Answer { why: format!("{} result sets instead of 4", results.len()) });
    };
    let row = scalars.first().ok_or_else(|| StatusError::Answer { why: "no row of scalars".to_owned() })?;
    let receiver = receivers.first().map(read_receiver).transpose()?;
    let checkpoint_timeline: u32 = row.parse_required("checkpoint_timeline")?;
    let timeline = [
        row.parse("primary_timeline")?,
        row.parse("recovery_timeline")?,
        receiver.as_ref().and_then(|r| r.received_timeline).map(|t| t.0),
        Some(checkpoint_timeline),
    ];
    let role = if row.flag("in_recovery") {
        SqlRole::Replica(Box::new(read_replica(row, receiver)?))
    } else {
        SqlRole::Primary(PrimaryPositions {
            write: row.parse_required("write_lsn")?,
            flush: row.parse_required("flush_lsn")?,
            insert: row.parse_required("insert_lsn")?,
        })
    };
    Ok(SqlStatus {
        version: PgVersion(row.parse_required("version")?),
        system_id: read_system_id(row)?,
        postmaster_start_time: row.required("started")?.to_owned(),
        timeline: TimelineId(timeline.into_iter().flatten().max().unwrap_or(checkpoint_timeline)),
        checkpoint_timeline: TimelineId(checkpoint_timeline),
        checkpoint_redo: row.parse_required("checkpoint_redo")?,
        role,
        replication: senders.iter().map(read_sender).collect::<Result<_, _>>()?,
        slots: slots.iter().map(read_slot).collect::<Result<_, _>>()?,
        pending_restart: settings.iter().filter_map(|r| read_pending(r, controlled)).collect(),
        lowered: settings.iter().filter_map(read_lowered).collect(),
        synchronous_standby_names: row.required("synchronous_standby_names")?.to_owned(),
        configuration_loaded_micros: row.parse_required("loaded")?,
    })
}

/// A row is pending if PostgreSQL says so or if the next command line differs.
fn read_pending(row: &TextRow, controlled: &BTreeMap<String, String>) -> Option<PendingRestart> {
    let name = row.text("name")?;
    let kind = Kind { vartype: row.text("vartype")?, unit: row.text("unit")? };
    let new = match controlled.get(name) {
        Some(wanted) if same_value(kind, row.text("setting")?, wanted) => return None,
        Some(wanted) => wanted.clone(),
        None if row.flag("pending_restart") => row.text("in_file").unwrap_or("its default").to_owned(),
        None => return None,
    };
    let old = row.text("shown").or(row.text("setting")).unwrap_or_default().to_owned();
    Some(PendingRestart { name: name.to_owned(), old, new })
}

/// A setting of the whole server that takes back what a commit promises. What roles and databases have set for themselves
/// is theirs.
///
/// Source: PostgreSQL documentation, `synchronous_commit` (`local` and `off` wait for no standby), `fsync`, `full_page_writes`.
fn read_lowered(row: &TextRow) -> Option<(String, String)> {
    let name = row.text("name")?;
    let (value, lowers): (_, &[&str]) = match name {
        "synchronous_commit" => (row.text("in_file")?, &["local", "off", "false", "no", "0", "f", "n"]),
        "fsync" | "full_page_writes" => (row.text("setting")?, &["off"]),
        _ => return None,
    };
    lowers.iter().any(|lower| value.eq_ignore_ascii_case(lower)).then(|| (name.to_owned(), value.to_owned()))
}

/// The identifier is unsigned, SQL shows it as a signed number.
pub(super) fn read_system_id(row: &TextRow) -> Result<SystemId, StatusError> {
    Ok(SystemId(row.parse_required::<i64>("system_id")?.cast_unsigned()))
}

fn read_replica(row: &TextRow, receiver: Option<WalReceiver>) -> Result<ReplicaState, StatusError> {
    let replayed: Lsn = row.parse("replay_lsn")?.unwrap_or_default();
    let received: Lsn = row.parse("receive_lsn")?.unwrap_or_default();
    let flushed = receiver.as_ref().and_then(|r| r.flushed).unwrap_or_default();
    Ok(ReplicaState {
        received: replayed.max(received).max(flushed),
        replayed,
        replaying: row.flag("replaying"),
        replay_paused: row.flag("replay_paused"),
        replayed_timestamp: row.text("replay_time").map(str::to_owned),
        receiver,
        primary_conninfo: row.text("primary_conninfo").unwrap_or_default().to_owned(),
        primary_slot_name: row.text("primary_slot_name").unwrap_or_default().to_owned(),
        restore_command: row.text("restore_command").unwrap_or_default().to_owned(),
    })
}

fn read_receiver(row: &TextRow) -> Result<WalReceiver, StatusError> {
    Ok(WalReceiver {
        status: row.text("status").unwrap_or_default().to_owned(),
        sender_host: row.text("sender_host").map(str::to_owned),
        sender_port: row.parse("sender_port")?,
        slot_name: row.text("slot_name").map(str::to_owned),
        conninfo: row.text("conninfo").map(str::to_owned),
        received_timeline: row.parse("received_tli")?.filter(|&t: &u32| t != 0).map(TimelineId),
        written: row.parse("written_lsn")?,
        flushed: row.parse("flushed_lsn")?,
        latest_end: row.parse("latest_end_lsn")?,
    })
}

fn read_sender(row: &TextRow) -> Result<WalSender, StatusError> {
    let text = |column| row.text(column).unwrap_or_default().to_owned();
    Ok(WalSender {
        pid: row.parse_required("pid")?,
        usename: text("usename"),
        application_name: text("application_name"),
        client_addr: row.text("client_addr").map(str::to_owned),
        state: text("state"),
        sync_state: text("sync_state"),
        sync_priority: row.parse("sync_priority")?.unwrap_or(0),
        sent: row.parse("sent_lsn")?,
        write: row.parse("write_lsn")?,
        flush: row.parse("flush_lsn")?,
        replay: row.parse("replay_lsn")?,
        slot_name: row.text("slot_name").map(str::to_owned),
    })
}

fn read_slot(row: &TextRow) -> Result<Slot, StatusError> {
    Ok(Slot {
        name: row.required("slot_name")?.to_owned(),
        logical: row.text("slot_type") == Some("logical"),
        database: row.text("database").map(str::to_owned),
        plugin: row.text("plugin").map(str::to_owned),
        temporary: row.flag("temporary"),
        active: row.flag("active"),
        restart_lsn: row.parse("restart_lsn")?,
        confirmed_flush_lsn: row.parse("confirmed_flush_lsn")?,
        has_xmin: row.flag("has_xmin"),
        has_catalog_xmin: row.flag("has_catalog_xmin"),
        wal_status: row.text("wal_status").map(str::to_owned),
        failover: row.text("failover") == Some("true"),
        synced: row.text("synced") == Some("true"),
        invalidation_reason: row.text("invalidation_reason").map(str::to_owned),
    })
}
