//! What the outside may see of a node: one immutable value, published by the agent after every tick.
//!
//! ```text
//! tick -> Snapshot -> watch channel -> REST, metrics, dashboard, router   (readers never ask anything else)
//! ```
//! Plain data. Deliberately absent: secrets, handles, anything that could block, and any clock: a reader that must
//! know "now" (is the permit still valid, is the view still young) brings its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cluster::changes::ChangeRecord;
use crate::cluster::records::ProgressRecord;
use crate::config::{ClusterSettings, SynchronousMode};
use crate::types::bytes::percent;
use crate::types::{ClusterName, Lsn, Mono, NodeName, PgVersion, RaftId, SystemId, Term, TimelineId, WallTime};

/// Everything a node says about itself and about its cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When it was published, for people.
    pub at: WallTime,
    /// howdah's own version.
    pub version: String,
    /// The cluster's name.
    pub scope: ClusterName,
    /// This node's name.
    pub name: NodeName,
    /// This node's tags, as configured.
    pub tags: BTreeMap<String, Value>,
    /// The local PostgreSQL; none on a witness.
    pub postgres: Option<PostgresStatus>,
    /// What this node believes about the leader key.
    pub lock: LockBelief,
    /// When the last tick ended. `/liveness` compares it with now.
    pub last_tick: Mono,
    /// The time within which the next tick is due (`loop_wait`).
    #[serde(with = "seconds")]
    pub loop_wait: Duration,
    /// Whether the store answered this node's last linearizable read, that is: whether it has a quorum.
    pub store_has_quorum: bool,
    /// Whether the primary runs on the word of all members instead of the store's (failsafe mode).
    pub failsafe_active: bool,
    /// Whether the data here takes part in a leader race, now or as soon as PostgreSQL answers (no tag, long task or damage
    /// forbids it).
    pub candidate: bool,
    /// Whether a required watchdog could not be used.
    pub watchdog_failed: bool,
    /// The cluster as last read from the store; none before the first read.
    pub cluster: Option<ClusterStatus>,
    /// The Raft replica in this process.
    pub raft: RaftStatus,
    /// The newest decisions, oldest first, bounded by the agent.
    pub decisions: Vec<DecisionRow>,
    /// How often each reason code was decided since the start of this process.
    pub decision_counts: BTreeMap<String, u64>,
    /// The long task that runs now, if any.
    pub task: Option<LongTask>,
    /// What has happened to the leadership, oldest first. Shown by `/timeline`, not with everything else: it is long.
    #[serde(default, skip_serializing)]
    pub timeline: Arc<Vec<ChangeRecord>>,
}

/// The local PostgreSQL as seen at the last tick. Positions that could not be read are none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PostgresStatus {
    /// What the process does.
    pub state: PostgresState,
    /// What it is in its cluster.
    pub role: Role,
    /// When its postmaster started.
    pub postmaster_start_time: Option<WallTime>,
    /// `server_version_num`; none while it does not run.
    pub server_version: Option<PgVersion>,
    /// The database system identifier; none before there is a data directory.
    pub system_id: Option<SystemId>,
    /// The timeline it writes or replays.
    pub timeline: Option<TimelineId>,
    /// Positions in the write-ahead log.
    pub wal: WalPosition,
    /// Where a standby gets its WAL from; none on a primary and when it gets none.
    pub replication_state: Option<ReplicationState>,
    /// The rows of `pg_stat_replication`.
    pub replication: Vec<ReplicationRow>,
    /// Settings that wait for a restart. Empty when none does.
    pub pending_restart: BTreeMap<String, SettingChange>,
    /// Settings with which an acknowledged commit may be gone after a crash, and their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lowered: BTreeMap<String, String>,
    /// Slots for which the server keeps more WAL than [`super::slots::MUCH`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub held_back: BTreeMap<String, HeldBack>,
    /// Whether the server had the settings that this snapshot shows, and had read them, when `pending_restart` was asked.
    #[serde(default)]
    pub has_settings: bool,
    /// A restart that was asked for at a later time.
    pub scheduled_restart: Option<Value>,
}

/// What the PostgreSQL process does. Texts and metric codes are Patroni's.
///
/// Source: reference section 1.3 (`state`) and 1.4 (`patroni_postgres_state`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PostgresState {
    /// `initdb` runs.
    #[serde(rename = "initializing new cluster")]
    Initdb,
    /// `initdb` failed.
    #[serde(rename = "initdb failed")]
    InitdbFailed,
    /// A bootstrap script of the operator runs.
    #[serde(rename = "running custom bootstrap script")]
    CustomBootstrap,
    /// That script failed.
    #[serde(rename = "custom bootstrap failed")]
    CustomBootstrapFailed,
    /// A base backup runs.
    #[serde(rename = "creating replica")]
    CreatingReplica,
    /// Accepts connections.
    #[serde(rename = "running")]
    Running,
    /// Started, not yet accepting connections.
    #[serde(rename = "starting")]
    Starting,
    /// As `Starting`, after a custom bootstrap.
    #[serde(rename = "starting after custom bootstrap")]
    BootstrapStarting,
    /// Did not come up.
    #[serde(rename = "start failed")]
    StartFailed,
    /// Is being restarted.
    #[serde(rename = "restarting")]
    Restarting,
    /// Did not come up again.
    #[serde(rename = "restart failed")]
    RestartFailed,
    /// Is being stopped.
    #[serde(rename = "stopping")]
    Stopping,
    /// Stopped in good order.
    #[serde(rename = "stopped")]
    Stopped,
    /// Refused to stop.
    #[serde(rename = "stop failed")]
    StopFailed,
    /// Ended without being asked to.
    #[serde(rename = "crashed")]
    Crashed,
    /// Thought to be running, but did not answer.
    #[serde(rename = "unknown")]
    Unknown,
}

/// What a PostgreSQL is in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Accepts writes.
    Primary,
    /// Follows another.
    Replica,
    /// The leader of a standby cluster: follows a primary outside.
    StandbyLeader,
    /// Was primary and has been taken down.
    Demoted,
    /// No data directory yet.
    Uninitialized,
    /// Told to promote; recovery has not ended yet.
    Promoted,
}

/// Where a PostgreSQL is in the write-ahead log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WalPosition {
    /// Not read.
    Unknown,
    /// A primary.
    Primary {
        /// The insert position.
        location: Lsn,
    },
    /// A standby.
    Standby {
        /// The end of what was received (written if known, else flushed, else replayed).
        received: Lsn,
        /// The end of what was replayed.
        replayed: Lsn,
        /// When the last replayed transaction was committed on the primary.
        replayed_at: Option<WallTime>,
        /// Whether replay is paused.
        paused: bool,
        /// The primary's end of WAL as last heard by the WAL receiver.
        latest_end: Option<Lsn>,
    },
}

/// Where a standby gets its WAL from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicationState {
    /// From a WAL sender.
    #[serde(rename = "streaming")]
    Streaming,
    /// From the archive.
    #[serde(rename = "in archive recovery")]
    InArchiveRecovery,
}

/// One row of `pg_stat_replication`. Field names are the view's and Patroni's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicationRow {
    /// The role that the standby connects as.
    pub usename: String,
    /// The standby's name.
    pub application_name: String,
    /// Its address; none for a Unix socket.
    pub client_addr: Option<String>,
    /// `startup`, `catchup`, `streaming`, `backup`, `stopping`.
    pub state: String,
    /// `async`, `potential`, `sync`, `quorum`.
    pub sync_state: String,
    /// Its place in `synchronous_standby_names`; 0 when it has none.
    pub sync_priority: i32,
}

/// A setting that differs between the running PostgreSQL and its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingChange {
    /// In force.
    pub old_value: String,
    /// After a restart.
    pub new_value: String,
}

/// What this node believes about the leader key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockBelief {
    /// The end of this node's permit; none when it holds none.
    pub leader_until: Option<Mono>,
    /// The term of that permit.
    pub term: Option<Term>,
    /// The lease's time to live.
    #[serde(with = "seconds")]
    pub ttl: Duration,
}

impl LockBelief {
    /// Whether this node is the leader at `now`, by its own permit alone. An expired permit says no at once, whatever
    /// the store might say later.
    pub fn holds_at(&self, now: Mono) -> bool {
        self.leader_until.is_some_and(|until| now < until)
    }
}

/// The cluster as read from the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// When the read was sent. A view older than the ttl is no longer used by the health checks.
    pub seen_at: Mono,
    /// The same moment, for people (`dcs_last_seen`).
    pub seen_wall: WallTime,
    /// The revision that was read.
    pub revision: i64,
    /// Content of the `initialize` key: none = absent, empty = a bootstrap is running, else the system identifier.
    pub initialize: Option<String>,
    /// Who holds the leader key.
    pub leader: Option<LeaderStatus>,
    /// The leader's last published position (`status.optime`); none or 0 when it published none.
    pub optime: Option<Lsn>,
    /// All members that published themselves, in any order.
    pub members: Vec<MemberStatus>,
    /// The synchronous set.
    pub sync: SyncStatus,
    /// A switchover or failover that was asked for and has not happened.
    pub switchover: Option<SwitchoverStatus>,
    /// Timeline changes, oldest first.
    pub history: Vec<HistoryRow>,
    /// The settings in force.
    pub settings: ClusterSettings,
    /// The text behind `settings`, the store's `config` key; none when the key is missing.
    pub settings_json: Option<Value>,
    /// Content of the `failsafe` key: member name to API address.
    pub failsafe: Option<BTreeMap<String, String>>,
    /// Set once no majority has confirmed the view for a ttl: no lease in it can be relied on any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfirmed: Option<Unconfirmed>,
}

/// What a view said while it was confirmed, and says no longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unconfirmed {
    /// Who held the leader key.
    pub leader: Option<LeaderStatus>,
}

/// The holder of the leader key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderStatus {
    /// Its name.
    pub name: NodeName,
    /// The term of its leadership.
    pub term: Term,
}

/// What a server keeps for a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldBack {
    /// Bytes of WAL.
    pub bytes: u64,
    /// Whether somebody reads it.
    pub active: bool,
}

/// One member as it published itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its name.
    pub name: NodeName,
    /// Its own word for its role; the cluster's view of the role is [`ClusterStatus::role_of`].
    pub role: Role,
    /// Its own word for its state.
    pub state: PostgresState,
    /// Its REST API, for example `http://10.0.0.1:8008/patroni`.
    pub api_url: String,
    /// Where PostgreSQL listens; none on a witness or before the first start.
    pub host: Option<String>,
    /// And on which port.
    pub port: Option<u16>,
    /// Its timeline.
    pub timeline: Option<TimelineId>,
    /// The furthest position: written on a primary, the larger of received and replayed on a standby.
    pub xlog_location: Option<Lsn>,
    /// The end of what was received.
    pub receive_lsn: Option<Lsn>,
    /// The end of what was replayed.
    pub replay_lsn: Option<Lsn>,
    /// Where it gets its WAL from.
    pub replication_state: Option<ReplicationState>,
    /// Whether it receives WAL and does not replay it, because replay is paused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replay_paused: bool,
    /// Its tags.
    pub tags: BTreeMap<String, Value>,
    /// Settings that wait for a restart. Empty when none does.
    pub pending_restart: BTreeMap<String, SettingChange>,
    /// A restart that was asked for at a later time.
    pub scheduled_restart: Option<Value>,
    /// How far a long copy or rewind is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<ProgressRecord>,
    /// Its version of howdah (or of Patroni).
    pub version: Option<String>,
}

/// Who confirms commits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncStatus {
    /// The primary that the set belongs to.
    pub leader: Option<NodeName>,
    /// Its synchronous standbys.
    pub standbys: Vec<NodeName>,
    /// How many of them a promotion must hear; none outside quorum mode.
    pub quorum: Option<u32>,
    /// Commits are on fewer nodes than they should be.
    #[serde(default)]
    pub degraded: Option<DegradedStatus>,
}

/// Commits are on too few nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DegradedStatus {
    /// So many have a commit, the primary included.
    pub copies: u32,
    /// So many should.
    pub wanted: u32,
    /// Since when.
    pub since: Option<WallTime>,
}

/// A switchover that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchoverStatus {
    /// From which leader; none for a failover.
    pub leader: Option<NodeName>,
    /// To which member; none = the best one.
    pub candidate: Option<NodeName>,
    /// When; none = now.
    pub scheduled_at: Option<WallTime>,
}

/// One change of the timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRow {
    /// The timeline that ended.
    pub timeline: TimelineId,
    /// Where it ended.
    pub lsn: Lsn,
    /// PostgreSQL's words for why.
    pub reason: String,
    /// When, as ISO 8601 text.
    pub at: Option<String>,
    /// Who was promoted.
    pub new_leader: Option<String>,
}

/// The Raft replica in this process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftStatus {
    /// Its number; none before it has joined.
    pub id: Option<RaftId>,
    /// `leader`, `follower`, `candidate`, `learner` or `down`.
    pub role: String,
    /// The Raft leader's name, if it is known.
    pub leader: Option<String>,
    /// The Raft term. Not the term of a PostgreSQL leadership.
    pub term: u64,
    /// Index of the last log entry.
    pub last_log_index: u64,
    /// Index of the last applied entry.
    pub applied_index: u64,
    /// All members.
    pub members: Vec<RaftMember>,
}

/// One member of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftMember {
    /// Its number.
    pub id: RaftId,
    /// Its node's name.
    pub name: String,
    /// Its main port, `host:port`.
    pub addr: String,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it answers; only the store's leader knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reachable: Option<bool>,
}

/// What the router of a node does and has done; counters begin with the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterStatus {
    /// The term whose sessions may write; none while it cannot be confirmed.
    pub term: Option<Term>,
    /// The port that leads to whoever may write; none = off.
    pub primary: Option<RouterPort>,
    /// The port that leads to replicas; none = off.
    pub replicas: Option<RouterPort>,
}

/// One port of the router.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterPort {
    /// Where it listens.
    pub listen: String,
    /// Where new connections go.
    pub targets: Vec<NodeName>,
    /// Why new connections wait; none while they do not.
    pub waits_for: Option<String>,
    /// Clients that wait now.
    pub held: u64,
    /// Clients that had to wait.
    pub held_total: u64,
    /// Clients that were turned away: nobody in time, too many clients, not allowed.
    pub refused_total: u64,
    /// Cancel requests.
    pub cancels_total: u64,
    /// Those that have had sessions.
    pub backends: Vec<RouterBackend>,
}

/// One PostgreSQL behind a port of the router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterBackend {
    /// The member.
    pub name: NodeName,
    /// Its address.
    pub address: String,
    /// Sessions now.
    pub sessions: u64,
    /// Sessions so far.
    pub sessions_total: u64,
    /// Sessions that were ended at a transaction boundary.
    pub drained_total: u64,
    /// Sessions that were cut off.
    pub reset_total: u64,
    /// Connections that it did not take.
    pub failed_total: u64,
    /// Bytes from clients.
    pub bytes_from_clients: u64,
    /// Bytes to clients.
    pub bytes_to_clients: u64,
}

/// One decision with its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionRow {
    /// When it was first made; the same decision made again adds no row.
    pub at: WallTime,
    /// Code of the action, for example `promote` or `hold`.
    pub action: String,
    /// Code of the reason, for example `permit_lost`.
    pub reason: String,
    /// The reason as a sentence for people.
    pub sentence: String,
}

/// A task that takes longer than a tick.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LongTask {
    /// `basebackup`, `rewind`, `initdb`, `restart`.
    pub kind: String,
    /// Since when it runs.
    pub since: WallTime,
    /// Bytes done.
    pub bytes_done: Option<u64>,
    /// Bytes expected.
    pub bytes_total: Option<u64>,
}

impl LongTask {
    /// How much is done, 0 to 100; none when the total is unknown or zero.
    pub fn percent(&self) -> Option<u8> {
        percent(self.bytes_done?, self.bytes_total)
    }
}

/// A member's role as the whole cluster sees it. Text form is `/cluster`'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberRole {
    /// Holds the leader key.
    Leader,
    /// Holds it in a standby cluster.
    StandbyLeader,
    /// Confirms every commit.
    SyncStandby,
    /// One of those of which a quorum confirms every commit.
    QuorumStandby,
    /// Any other.
    Replica,
}

impl ClusterStatus {
    /// The view, if it is younger than `ttl` at `now`. Health checks trust no older one.
    pub fn is_young(&self, now: Mono, ttl: Duration) -> bool {
        now.since(self.seen_at) < ttl
    }

    /// What people must know of a view that no majority confirms, as `node` has it; none while one does.
    pub fn doubt(&self, node: &NodeName) -> Option<String> {
        let unconfirmed = self.unconfirmed.as_ref()?;
        let led = unconfirmed.leader.as_ref().map_or("nobody", |leader| leader.name.as_str());
        Some(format!(
            "{node} has heard no majority of the store since {}, when {led} led: nobody is known to lead now, and \
             without a majority nobody can take over",
            self.seen_wall.iso()
        ))
    }

    /// The member of that name.
    pub fn member(&self, name: &str) -> Option<&MemberStatus> {
        self.members.iter().find(|member| member.name.as_str() == name)
    }

    /// Whether `name` holds the leader key in this view.
    pub fn is_leader(&self, name: &str) -> bool {
        self.leader.as_ref().is_some_and(|leader| leader.name.as_str() == name)
    }

    /// The role of `name`, from the leader key and the synchronous set. Names in the set compare without regard to
    /// case, as PostgreSQL compares `application_name`.
    pub fn role_of(&self, name: &str) -> MemberRole {
        if self.is_leader(name) {
            return match self.settings.standby_cluster {
                Some(_) => MemberRole::StandbyLeader,
                None => MemberRole::Leader,
            };
        }
        let synchronous = self.sync.standbys.iter().any(|standby| standby.as_str().eq_ignore_ascii_case(name));
        // While a set of chosen standbys changes, its record is a quorum's for a moment.
        let chosen = self.settings.synchronous_mode == SynchronousMode::On;
        match (synchronous, self.sync.quorum) {
            (false, _) => MemberRole::Replica,
            (true, Some(_)) if !chosen => MemberRole::QuorumStandby,
            (true, _) => MemberRole::SyncStandby,
        }
    }
}

impl Snapshot {
    /// What a node says before its first tick: nothing is known, nothing is held.
    pub fn starting(scope: ClusterName, name: NodeName, now: Mono, at: WallTime) -> Self {
        let settings = ClusterSettings::default();
        Self {
            at,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            scope,
            name,
            tags: BTreeMap::new(),
            postgres: None,
            lock: LockBelief { leader_until: None, term: None, ttl: settings.ttl },
            last_tick: now,
            loop_wait: settings.loop_wait,
            store_has_quorum: false,
            failsafe_active: false,
            candidate: false,
            watchdog_failed: false,
            cluster: None,
            raft: RaftStatus::default(),
            decisions: Vec::new(),
            decision_counts: BTreeMap::new(),
            task: None,
            timeline: Arc::default(),
        }
    }

    /// The snapshot as it may be told at `now`. From a view that no majority has confirmed for a ttl nobody can be named
    /// leader, and of the other members' states it says nothing. A confirmed one is told as it is.
    #[must_use]
    pub fn told_at(self: &Arc<Self>, now: Mono) -> Arc<Self> {
        let confirmed = |cluster: &ClusterStatus| self.store_has_quorum || cluster.is_young(now, self.lock.ttl);
        if self.cluster.as_ref().is_none_or(confirmed) {
            return self.clone();
        }
        let mut told = Self::clone(self);
        let Some(cluster) = &mut told.cluster else { return self.clone() };
        cluster.unconfirmed = Some(Unconfirmed { leader: cluster.leader.take() });
        for member in &mut cluster.members {
            let own = self.postgres.as_ref().filter(|_| member.name == self.name);
            member.state = own.map_or(PostgresState::Unknown, |pg| pg.state);
            member.replication_state = own.and_then(|pg| pg.replication_state);
        }
        Arc::new(told)
    }

    /// Whether the cluster is paused, as far as this node knows.
    pub fn is_paused(&self) -> bool {
        self.cluster.as_ref().is_some_and(|cluster| cluster.settings.pause)
    }
}

impl PostgresState {
    /// The text that `/patroni` and the member record carry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Initdb => "initializing new cluster",
            Self::InitdbFailed => "initdb failed",
            Self::CustomBootstrap => "running custom bootstrap script",
            Self::CustomBootstrapFailed => "custom bootstrap failed",
            Self::CreatingReplica => "creating replica",
            Self::Running => "running",
            Self::Starting => "starting",
            Self::BootstrapStarting => "starting after custom bootstrap",
            Self::StartFailed => "start failed",
            Self::Restarting => "restarting",
            Self::RestartFailed => "restart failed",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::StopFailed => "stop failed",
            Self::Crashed => "crashed",
            Self::Unknown => "unknown",
        }
    }

    /// The value of `patroni_postgres_state`.
    pub fn metric_code(self) -> i8 {
        match self {
            Self::Initdb => 0,
            Self::InitdbFailed => 1,
            Self::CustomBootstrap => 2,
            Self::CustomBootstrapFailed => 3,
            Self::CreatingReplica => 4,
            Self::Running => 5,
            Self::Starting => 6,
            Self::BootstrapStarting => 7,
            Self::StartFailed => 8,
            Self::Restarting => 9,
            Self::RestartFailed => 10,
            Self::Stopping => 11,
            Self::Stopped => 12,
            Self::StopFailed => 13,
            Self::Crashed => 14,
            Self::Unknown => -1,
        }
    }
}

impl Role {
    /// The text that `/patroni` and the member record carry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
            Self::StandbyLeader => "standby_leader",
            Self::Demoted => "demoted",
            Self::Uninitialized => "uninitialized",
            Self::Promoted => "promoted",
        }
    }
}

impl ReplicationState {
    /// The text that `/patroni` and the member record carry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Streaming => "streaming",
            Self::InArchiveRecovery => "in archive recovery",
        }
    }
}

impl MemberRole {
    /// The text that `/cluster` carries.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::StandbyLeader => "standby_leader",
            Self::SyncStandby => "sync_standby",
            Self::QuorumStandby => "quorum_standby",
            Self::Replica => "replica",
        }
    }

    /// The text of tables for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Leader => "Leader",
            Self::StandbyLeader => "Standby Leader",
            Self::SyncStandby => "Sync Standby",
            Self::QuorumStandby => "Quorum Standby",
            Self::Replica => "Replica",
        }
    }
}

/// A duration as a number of seconds, the form that people read in JSON.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(span.as_secs_f64())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
