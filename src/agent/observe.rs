//! Gathers the facts for one decision. Every probe has a deadline; what fails is said, never guessed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::{ClusterRecord, KeySpace};
use crate::config::cluster_settings::StandbyCluster;
use crate::config::{ClusterSettings, SynchronousMode};
use crate::guardian::client::Guardian;
use crate::guardian::status::{GuardianStatus, Link, PostgresProcess};
use crate::ha::candidate;
use crate::ha::sync_wish;
use crate::ha::view::{
    Attempts, ClusterView, ControlState, ControlView, DataDirView, Memory, ProcessView, ServerView, Settings,
    StandbyView, SyncMode, Synchronous, TaskView,
};
use crate::postgres::{self, ControlData, DataDir, Instance, SqlRole, SqlStatus};
use crate::raft::Store;
use crate::telemetry::clock;
use crate::types::{Fact, Lsn, Mono, NodeName, TimelineId, WalBytes};

use super::local::Place;
use super::lock::{Lock, LockState};
use super::peers::{Peers, patience};

/// A record confirmed this recently counts as current; twice the loop's heartbeat if that is longer.
const RECORD_FRESH: Duration = Duration::from_secs(3);

/// What the agent saw besides the view: for publishing, not for deciding.
#[derive(Debug, Clone, Default)]
pub struct Sighting {
    /// The last answer of PostgreSQL.
    pub sql: Option<SqlStatus>,
    /// When it answered.
    pub sql_at: Option<Mono>,
}

/// Everything that is asked.
pub struct Observer {
    /// The store.
    pub store: Store,
    /// Keys.
    pub space: KeySpace,
    /// This node.
    pub me: NodeName,
    /// The local PostgreSQL.
    pub instance: Arc<Instance>,
    /// Its parent.
    pub guardian: Guardian,
    /// Lease and permit.
    pub lock: Lock,
    /// The other members.
    pub peers: Peers,
    /// This node's tags, as far as decisions go, and whether a command decides before a promotion.
    pub place: Place,
    /// Whom the configuration follows, as last written.
    pub follows: Option<NodeName>,
    /// It follows the primary outside.
    pub follows_outside: bool,
    /// The data directory as last looked at while PostgreSQL did not run.
    pub data_dir: Option<DataDirView>,
    /// For publishing.
    pub sighting: Sighting,
    /// The greatest position seen while following, to notice WAL that still flows.
    pub last_received: Option<Lsn>,
    /// The newest timeline that this data has been seen on: without a WAL receiver PostgreSQL's own answer may lag.
    pub newest_timeline: Option<TimelineId>,
    /// This process ran initdb: the directory may be started although the creation is not sealed yet.
    pub creating: bool,
    /// A server that somebody else started here is to be taken over: for decisions it counts as one to be started.
    pub adopting: bool,
    /// The cluster begins with a database that exists elsewhere.
    pub awaits_adoption: bool,
}

/// What the loop adds.
pub struct Circumstances {
    /// From the record's configuration.
    pub settings: ClusterSettings,
    /// From earlier decisions.
    pub memory: Memory,
    /// The long task.
    pub task: Option<TaskView>,
    /// Asked to stop.
    pub shutting_down: bool,
    /// Wall clock against the request's schedule.
    pub request_due: bool,
}

impl Observer {
    /// Reads the shared record from the local replica.
    pub fn record(&self) -> ClusterRecord {
        self.store.read(|kv| ClusterRecord::read(&self.space, kv.revision(), kv.prefix(self.space.prefix())))
    }

    /// Looks at everything and returns the view for one decision.
    pub async fn view(&mut self, circumstances: Circumstances) -> ClusterView {
        let Circumstances { settings, mut memory, task, shutting_down, request_due } = circumstances;
        let lock = self.lock.state();
        let record = self.record();
        let guardian = self.guardian.status();
        let process = if self.adopting { taken_over(&guardian) } else { process_view(&guardian) };
        memory.unmanaged = is_unmanaged(&guardian);
        let server = self.server(&process).await;
        let known = matches!(self.data_dir, Some(DataDirView::Present(_)));
        // What runs holds its directory, and nobody looks at it. If PostgreSQL is silent, that may be why.
        let vanished = server.fresh().is_none() && !self.instance.data_is_there();
        if !matches!(process, ProcessView::Running { .. }) || !known || vanished {
            let newest = self.instance.newest_wal_timeline();
            self.newest_timeline = self.newest_timeline.max(newest);
            self.data_dir = Some(data_dir_view(self.instance.inspect().await, self.newest_timeline, self.creating));
        }
        let data_dir = self.data_dir.clone().unwrap_or(DataDirView::Empty);
        let now = clock::now();
        remember(&record, &server, now, &mut self.last_received, &mut memory);
        let peers = if peers_matter(&record, &self.me, &process, &server, &memory, shutting_down) {
            self.ask_peers(&record, patience(settings.retry_timeout)).await
        } else {
            BTreeMap::new()
        };
        let now = clock::now();
        let (loop_wait, mut settings) = (settings.loop_wait, rules(&settings, &self.place));
        // Who has no data creates none where a database exists.
        settings.nofailover |= self.awaits_adoption
            && record.initialize.is_none()
            && matches!(data_dir, DataDirView::Empty | DataDirView::Incomplete { .. });
        ClusterView {
            now,
            me: self.me.clone(),
            record: record_fact(record, &lock, now, loop_wait),
            settings,
            request_due,
            data_dir,
            process,
            server,
            permit: lock.permit,
            guardian_permit: guardian.permit,
            peers,
            task,
            shutting_down,
            memory,
        }
    }

    async fn server(&mut self, process: &ProcessView) -> Fact<ServerView> {
        if !matches!(process, ProcessView::Running { .. }) {
            self.sighting = Sighting::default();
            return Fact::unknown("PostgreSQL does not run");
        }
        match self.instance.status().await {
            Ok(sql) => {
                self.newest_timeline = self.newest_timeline.max(Some(sql.timeline));
                let view = self.server_view(&sql);
                self.sighting = Sighting { sql: Some(sql), sql_at: Some(clock::now()) };
                Fact::Fresh(view)
            }
            Err(error) => match (&self.sighting.sql, self.sighting.sql_at) {
                (Some(sql), Some(at)) if error.is_transient() => {
                    Fact::Stale { value: self.server_view(sql), age: clock::now().since(at) }
                }
                _ => Fact::unknown(error.to_string()),
            },
        }
    }

    fn server_view(&self, sql: &SqlStatus) -> ServerView {
        let streaming = match &sql.role {
            SqlRole::Replica(replica) => replica.replication_state() == Some("streaming"),
            SqlRole::Primary(_) => false,
        };
        let replaying = matches!(&sql.role, SqlRole::Replica(replica) if replica.replaying);
        let timeline = if sql.in_recovery() {
            self.newest_timeline.map_or(sql.timeline, |newest| newest.max(sql.timeline))
        } else {
            sql.timeline
        };
        ServerView {
            in_recovery: sql.in_recovery(),
            timeline,
            position: sql.position(),
            replaying,
            streaming,
            receiving: sql.receives(),
            follows: self.follows.clone(),
            follows_outside: self.follows_outside,
            standbys: standbys(sql),
            synchronous_standby_names: sql.synchronous_standby_names.clone(),
            checkpoint_redo: sql.checkpoint_redo,
        }
    }

    async fn ask_peers(
        &self,
        record: &ClusterRecord,
        patience: Duration,
    ) -> BTreeMap<NodeName, Fact<crate::ha::view::PeerView>> {
        let members = record.members.iter().filter(|(name, _)| **name != self.me);
        let addresses = members.filter_map(|(name, m)| Some((name.clone(), m.value.api_address()?))).collect();
        self.peers.ask(addresses, patience).await
    }
}

/// The rules in force: the shared settings, and this node's place among the others.
pub fn rules(settings: &ClusterSettings, place: &Place) -> Settings {
    Settings {
        ttl: settings.ttl,
        loop_wait: settings.loop_wait,
        maximum_lag_on_failover: WalBytes(settings.maximum_lag_on_failover.0),
        primary_start_timeout: settings.primary_start_timeout,
        pause: settings.pause,
        use_pg_rewind: settings.postgresql.use_pg_rewind,
        nofailover: place.nofailover,
        failover_priority: place.failover_priority,
        upstream: place.upstream.clone(),
        pre_promote: place.pre_promote,
        standby_cluster: settings.standby_cluster.as_ref().map(StandbyCluster::address),
        synchronous: synchronous(settings),
    }
}

/// Who streams from here. Of two that call themselves the same, the worse counts: one of them is no member.
fn standbys(sql: &SqlStatus) -> BTreeMap<NodeName, StandbyView> {
    let mut standbys: BTreeMap<NodeName, StandbyView> = BTreeMap::new();
    for row in &sql.replication {
        let Ok(name) = row.application_name.parse::<NodeName>() else { continue };
        let streaming = row.state == "streaming";
        let flushed = row.flush.unwrap_or_default();
        let standby = StandbyView { streaming, flushed, counted: 0 < row.sync_priority };
        standbys
            .entry(name)
            .and_modify(|other| {
                other.streaming &= streaming;
                other.counted &= standby.counted;
                other.flushed = other.flushed.min(flushed);
            })
            .or_insert(standby);
    }
    standbys
}

/// Who must confirm commits. A cluster that follows another has no commits of its own.
pub fn synchronous(settings: &ClusterSettings) -> Synchronous {
    let mode = match settings.synchronous_mode {
        _ if settings.standby_cluster.is_some() => SyncMode::Off,
        SynchronousMode::Off => SyncMode::Off,
        SynchronousMode::On => SyncMode::On,
        SynchronousMode::Quorum => SyncMode::Quorum,
    };
    Synchronous {
        mode,
        strict: settings.synchronous_mode_strict,
        node_count: usize::try_from(settings.synchronous_node_count).unwrap_or(usize::MAX),
        maximum_lag: settings.maximum_lag_on_syncnode.map(|size| WalBytes(size.0)),
    }
}

/// The record as a fact: how well it is known depends on when a majority last confirmed anything to this node.
pub fn record_fact(record: ClusterRecord, lock: &LockState, now: Mono, loop_wait: Duration) -> Fact<ClusterRecord> {
    match lock.last_contact {
        None => Fact::unknown(lock.trouble.clone().unwrap_or_else(|| "no answer from a majority yet".to_owned())),
        Some(at) if now.since(at) <= RECORD_FRESH.max(loop_wait * 2) => Fact::Fresh(record),
        Some(at) => Fact::Stale { value: record, age: now.since(at) },
    }
}

/// Updates what is remembered from what was just seen. `last_received` is the position of the look before.
pub fn remember(
    record: &ClusterRecord,
    server: &Fact<ServerView>,
    now: Mono,
    last_received: &mut Option<Lsn>,
    memory: &mut Memory,
) {
    memory.leaderless_since = match record.leader {
        Some(_) => None,
        None => memory.leaderless_since.or(Some(now)),
    };
    if server.fresh().is_some() {
        memory.starting_since = None;
        memory.standby_starts = Attempts::default();
    }
    if let Some(server) = server.fresh() {
        sync_wish::remember(memory, record, server, now);
    }
    let ahead = |server: &&ServerView| server.in_recovery && !server.streaming && record.timeline() < server.timeline;
    memory.ahead_since = server.fresh().filter(ahead).map(|_| memory.ahead_since.unwrap_or(now));
    match server.fresh() {
        Some(server) if server.in_recovery => {
            if last_received.is_some_and(|last| last < server.position) && server.streaming {
                memory.wal_advanced_at = Some(now);
            }
            *last_received = Some(server.position);
        }
        _ => *last_received = None,
    }
}

/// Whether the decision to come depends on where the other members are.
pub fn peers_matter(
    record: &ClusterRecord,
    me: &NodeName,
    process: &ProcessView,
    server: &Fact<ServerView>,
    memory: &Memory,
    shutting_down: bool,
) -> bool {
    let racing = record.leader.is_none() && server.fresh().is_some_and(|server| server.in_recovery);
    let handing_over = matches!(process, ProcessView::Absent { .. })
        && record.is_leader(me)
        && (memory.stopped_for_handover.is_some() || shutting_down);
    // A named successor needs no comparison: every millisecond counts then.
    let named = server.fresh().is_some_and(|server| candidate::proven_successor(record, me, server).is_some());
    handing_over || (racing && !named)
}

/// Whether PostgreSQL runs here that the guardian does not know: started by others, or released.
pub fn is_unmanaged(status: &GuardianStatus) -> bool {
    status.link == Link::Attached && status.postgres == PostgresProcess::Absent && 0 < status.leftovers
}

/// As [`process_view`], for a node that takes over what runs.
pub fn taken_over(status: &GuardianStatus) -> ProcessView {
    if is_unmanaged(status) { ProcessView::Absent { crashed: false } } else { process_view(status) }
}

/// What the guardian says of PostgreSQL, in the core's words.
pub fn process_view(status: &GuardianStatus) -> ProcessView {
    match status.link {
        Link::Attached => (),
        Link::Starting | Link::Reconnecting | Link::Gone | Link::Replaced => return ProcessView::Unknown,
    }
    match &status.postgres {
        PostgresProcess::Absent if 0 < status.leftovers => ProcessView::Stopping,
        PostgresProcess::Absent => ProcessView::Absent { crashed: false },
        PostgresProcess::Running { writable, .. } => ProcessView::Running { writable: *writable },
        PostgresProcess::Stopping { .. } | PostgresProcess::Fencing { .. } => ProcessView::Stopping,
        PostgresProcess::Exited(exit) => ProcessView::Absent { crashed: !exit.expected },
    }
}

/// What was found in the data directory, in the core's words. `newest` is the newest timeline that it has been seen on.
pub fn data_dir_view(state: DataDir, newest: Option<TimelineId>, creating: bool) -> DataDirView {
    match state {
        DataDir::Missing | DataDir::Empty => DataDirView::Empty,
        DataDir::Foreign { why } => DataDirView::Foreign { why },
        DataDir::Incomplete { control: Some(control), .. } if creating => {
            DataDirView::Present(control_view(&control, newest, false))
        }
        DataDir::Incomplete { why, .. } => DataDirView::Incomplete { why },
        DataDir::Unreadable { why } => DataDirView::Unreadable { why },
        DataDir::Present(present) => {
            DataDirView::Present(control_view(&present.control, newest, present.standby_signal))
        }
    }
}

fn control_view(control: &ControlData, newest: Option<TimelineId>, standby_signal: bool) -> ControlView {
    let state = control_state(control.state);
    // A primary's control file names its timeline; a standby may have replayed further than its last checkpoint.
    let timeline = match state {
        ControlState::ShutDown => control.timeline,
        _ => newest.map_or(control.newest_timeline(), |newest| newest.max(control.newest_timeline())),
    };
    ControlView {
        system_id: control.system_id,
        state,
        timeline,
        checkpoint: control.checkpoint,
        min_recovery_end: control.minimum_recovery_end.unwrap_or_default(),
        standby_signal,
    }
}

fn control_state(state: postgres::ControlState) -> ControlState {
    match state {
        postgres::ControlState::ShutDown => ControlState::ShutDown,
        postgres::ControlState::ShutDownInRecovery => ControlState::ShutDownInRecovery,
        postgres::ControlState::InProduction => ControlState::InProduction,
        postgres::ControlState::InArchiveRecovery => ControlState::InRecovery,
        _ => ControlState::Other,
    }
}
