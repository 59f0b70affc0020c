//! From what the agent knows to what the outside may see.

use std::collections::BTreeMap;

use serde_json::Value;

use super::act::Actor;
use super::journal::Journal;
use super::lock::LockState;
use super::observe::{Observer, Sighting};
use super::slots::held_back;
use super::snapshot::{
    ClusterStatus, DecisionRow, DegradedStatus, HistoryRow, LeaderStatus, LockBelief, LongTask, MemberStatus,
    PostgresState, PostgresStatus, RaftMember, RaftStatus, ReplicationRow, ReplicationState, Role, SettingChange,
    Snapshot, SwitchoverStatus, SyncStatus, WalPosition,
};
use crate::cluster::ClusterRecord;
use crate::cluster::records::{Initialize, MemberRecord};
use crate::config::ClusterSettings;
use crate::guardian::client::GuardianConfig;
use crate::ha::ClusterView;
use crate::ha::view::{DataDirView, ProcessView, TaskKind};
use crate::postgres::SqlRole;
use crate::raft::{RaftStatus as StoreStatus, Store};
use crate::telemetry::clock;
use crate::types::{ClusterName, NodeName, Term, TimelineId, WallTime};

/// What is the same in every snapshot of a node.
#[derive(Debug, Clone)]
pub struct Published {
    /// The cluster.
    pub scope: ClusterName,
    /// The node.
    pub name: NodeName,
    /// Its tags.
    pub tags: BTreeMap<String, Value>,
    /// Where its guardian is.
    pub guardian: GuardianConfig,
}

/// Builds the snapshot after a tick.
pub fn snapshot(
    fixed: &Published,
    view: &ClusterView,
    observer: &Observer,
    actor: &Actor,
    journal: &Journal,
    settings: &ClusterSettings,
) -> Snapshot {
    let lock = actor.lock.state();
    let mut snapshot = Snapshot::starting(fixed.scope.clone(), fixed.name.clone(), clock::now(), clock::wall());
    snapshot.tags.clone_from(&fixed.tags);
    snapshot.postgres = Some(postgres(view, &observer.sighting, actor));
    let permit = lock.permit;
    snapshot.lock = LockBelief {
        leader_until: permit.map(|permit| permit.valid_until),
        term: permit.map(|permit| permit.term),
        ttl: settings.ttl,
    };
    snapshot.loop_wait = settings.loop_wait;
    snapshot.store_has_quorum = view.record.fresh().is_some();
    snapshot.cluster = view.record.any().map(|record| cluster(record, settings, &lock));
    snapshot.candidate = candidate(view);
    snapshot.raft = raft(&actor.store.status());
    snapshot.decisions = journal
        .entries()
        .map(|entry| DecisionRow {
            at: entry.at,
            action: entry.action.clone(),
            reason: entry.reason.clone(),
            sentence: entry.sentence.clone(),
        })
        .collect();
    snapshot.decision_counts = journal.counts().clone();
    snapshot.task = actor.task.as_ref().map(|task| {
        let progress = *task.progress.borrow();
        LongTask {
            kind: match task.view.kind {
                TaskKind::Initdb => "initdb",
                TaskKind::BaseBackup => "basebackup",
                TaskKind::Rewind => "rewind",
            }
            .to_owned(),
            since: task.since,
            bytes_done: Some(progress.done_bytes),
            bytes_total: progress.total_bytes,
        }
    });
    snapshot
}

/// A snapshot of a node without PostgreSQL.
pub fn witness(
    fixed: &Snapshot,
    store: &Store,
    record: &ClusterRecord,
    settings: &ClusterSettings,
    lock: &LockState,
) -> Snapshot {
    let mut snapshot = fixed.clone();
    snapshot.at = clock::wall();
    snapshot.last_tick = clock::now();
    snapshot.loop_wait = settings.loop_wait;
    snapshot.store_has_quorum = lock.last_contact.is_some_and(|at| clock::now().since(at) < settings.ttl);
    snapshot.cluster = lock.last_contact.map(|_| cluster(record, settings, lock));
    snapshot.raft = raft(&store.status());
    snapshot
}

/// What a node with PostgreSQL says of it before the first look.
pub fn unseen() -> PostgresStatus {
    PostgresStatus {
        state: PostgresState::Unknown,
        role: Role::Uninitialized,
        postmaster_start_time: None,
        server_version: None,
        system_id: None,
        timeline: None,
        wal: WalPosition::Unknown,
        replication_state: None,
        replication: Vec::new(),
        pending_restart: BTreeMap::new(),
        lowered: BTreeMap::new(),
        held_back: BTreeMap::new(),
        has_settings: false,
        scheduled_restart: None,
    }
}

fn postgres(view: &ClusterView, sighting: &Sighting, actor: &Actor) -> PostgresStatus {
    let server = view.server.any();
    let fresh = view.server.fresh();
    let sql = sighting.sql.as_ref().filter(|_| fresh.is_some());
    let state: PostgresState = word(super::upkeep::state_words(view)).unwrap_or(PostgresState::Unknown);
    let role: Role = word(super::upkeep::role_words(view)).unwrap_or(Role::Uninitialized);
    let wal = match sql.map(|sql| &sql.role) {
        Some(SqlRole::Primary(primary)) => WalPosition::Primary { location: primary.write },
        Some(SqlRole::Replica(replica)) => WalPosition::Standby {
            received: replica.received,
            replayed: replica.replayed,
            replayed_at: replica.replayed_timestamp.as_deref().and_then(parse_time),
            paused: replica.replay_paused,
            latest_end: replica.receiver.as_ref().and_then(|receiver| receiver.latest_end),
        },
        None => WalPosition::Unknown,
    };
    PostgresStatus {
        state,
        role,
        postmaster_start_time: sql.and_then(|sql| parse_time(&sql.postmaster_start_time)),
        server_version: sql.map(|sql| sql.version),
        system_id: match &view.data_dir {
            DataDirView::Present(control) => Some(control.system_id),
            _ => None,
        },
        timeline: server.map(|server| server.timeline),
        wal,
        replication_state: fresh.filter(|s| s.in_recovery && s.streaming).map(|_| ReplicationState::Streaming),
        replication: sql.map_or_else(Vec::new, |sql| {
            sql.replication
                .iter()
                .map(|row| ReplicationRow {
                    usename: row.usename.clone(),
                    application_name: row.application_name.clone(),
                    client_addr: row.client_addr.clone(),
                    state: row.state.clone(),
                    sync_state: row.sync_state.clone(),
                    sync_priority: row.sync_priority,
                })
                .collect()
        }),
        pending_restart: sql.map_or_else(BTreeMap::new, |sql| {
            sql.pending_restart
                .iter()
                .map(|setting| {
                    let change = SettingChange { old_value: setting.old.clone(), new_value: setting.new.clone() };
                    (setting.name.clone(), change)
                })
                .collect()
        }),
        lowered: sql.map_or_else(BTreeMap::new, |sql| sql.lowered.clone()),
        held_back: match (sql, server) {
            (Some(sql), Some(server)) => held_back(&sql.slots, server.position),
            _ => BTreeMap::new(),
        },
        has_settings: sql.is_some_and(|sql| actor.has_settings_since(sql.configuration_loaded_micros)),
        scheduled_restart: None,
    }
}

fn cluster(record: &ClusterRecord, settings: &ClusterSettings, lock: &LockState) -> ClusterStatus {
    let seen_at = lock.last_contact.unwrap_or_default();
    let age = clock::now().since(seen_at);
    let wall = clock::wall();
    let age_ms = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    ClusterStatus {
        seen_at,
        seen_wall: WallTime(wall.0.saturating_sub(age_ms)),
        revision: record.revision,
        initialize: record.initialize.as_ref().map(|initialize| match initialize.value {
            Initialize::Running => String::new(),
            Initialize::Done(id) => id.to_string(),
        }),
        leader: record
            .leader
            .as_ref()
            .map(|leader| LeaderStatus { name: leader.value.clone(), term: Term(leader.create_revision) }),
        optime: record.status.as_ref().map(|status| status.value.optime),
        members: record.members.iter().map(|(name, member)| member_status(name, &member.value)).collect(),
        sync: sync(record),
        switchover: record.failover.as_ref().map(|failover| SwitchoverStatus {
            leader: failover.value.leader.clone(),
            candidate: failover.value.member.clone(),
            scheduled_at: failover.value.scheduled_at.as_deref().and_then(parse_time),
        }),
        history: record
            .history
            .iter()
            .map(|line| HistoryRow {
                timeline: TimelineId(line.0),
                lsn: line.1,
                reason: line.2.clone(),
                at: (!line.3.is_empty()).then(|| line.3.clone()),
                new_leader: (!line.4.is_empty()).then(|| line.4.clone()),
            })
            .collect(),
        settings: settings.clone(),
        settings_json: record.config.as_ref().map(|config| config.value.clone()),
        failsafe: None,
        unconfirmed: None,
    }
}

fn sync(record: &ClusterRecord) -> SyncStatus {
    let Some(sync) = &record.sync else { return SyncStatus::default() };
    SyncStatus {
        leader: sync.leader.clone(),
        standbys: sync.sync_standby.iter().cloned().collect(),
        quorum: sync.quorum,
        degraded: sync.degraded.map(|degraded| DegradedStatus {
            copies: degraded.copies,
            wanted: degraded.wanted,
            since: degraded.since,
        }),
    }
}

fn member_status(name: &NodeName, record: &MemberRecord) -> MemberStatus {
    let address = record.postgres_address();
    MemberStatus {
        name: name.clone(),
        role: word(&record.role).unwrap_or(Role::Replica),
        state: word(&record.state).unwrap_or(PostgresState::Unknown),
        api_url: record.api_url.clone(),
        host: address.as_ref().map(|(host, _)| host.clone()),
        port: address.map(|(_, port)| port),
        timeline: record.timeline,
        xlog_location: record.xlog_location,
        receive_lsn: record.receive_lsn,
        replay_lsn: record.replay_lsn,
        replication_state: record.replication_state.as_deref().and_then(word),
        replay_paused: record.replay_paused,
        tags: record.tags.clone(),
        pending_restart: record
            .pending_restart_reason
            .iter()
            .filter_map(|(name, change)| Some((name.clone(), serde_json::from_value(change.clone()).ok()?)))
            .collect(),
        scheduled_restart: record.scheduled_restart.clone(),
        progress: record.progress,
        version: Some(record.version.clone()),
    }
}

/// The store's own state, for people.
pub fn raft(status: &StoreStatus) -> RaftStatus {
    RaftStatus {
        id: status.id,
        role: json_word(&status.role),
        leader: status.leader.as_ref().map(|(_, name)| name.to_string()),
        term: status.term,
        last_log_index: status.last_log.unwrap_or(0),
        applied_index: status.applied.unwrap_or(0),
        members: status
            .voters
            .iter()
            .chain(&status.learners)
            .map(|member| RaftMember {
                id: member.id,
                name: member.name.clone(),
                addr: member.addr.clone(),
                voter: member.voter,
                reachable: member.reachable,
            })
            .collect(),
    }
}

fn json_word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        _ => String::new(),
    }
}

/// Whether the requested role change is due: it has no schedule, or its time has come.
pub fn request_due(record: &ClusterRecord, now: WallTime) -> bool {
    match record.failover.as_ref().and_then(|failover| failover.value.scheduled_at.as_deref()) {
        None => true,
        Some(text) => parse_time(text).is_some_and(|at| at <= now),
    }
}

fn parse_time(text: &str) -> Option<WallTime> {
    let parsed =
        time::OffsetDateTime::parse(&text.replacen(' ', "T", 1), &time::format_description::well_known::Rfc3339)
            .ok()?;
    i64::try_from(parsed.unix_timestamp_nanos() / 1_000_000).ok().map(WallTime)
}

/// Reads one of Patroni's words.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_value(Value::String(text.to_owned())).ok()
}

/// So many starts without an answer are usual: one, and one that the configuration asked for.
const PATIENT_STARTS: u32 = 2;

/// Whether the data here takes part in a leader race, now or as soon as PostgreSQL answers: others wait for it a
/// little. Not when nothing comes of its starts. Whether it answers is asked when somebody wants to know: a server that
/// has come up since the last look has as much as it says.
///
/// A pause says nothing about the data: the members learn of its end one after the other, and one that knows must not
/// pass over another that has more and does not know yet.
pub fn candidate(view: &ClusterView) -> bool {
    !view.settings.nofailover
        && !view.shutting_down
        && view.task.is_none()
        && view.memory.standby_starts.count <= PATIENT_STARTS
        && matches!(view.process, ProcessView::Running { .. } | ProcessView::Absent { .. })
        && matches!(view.data_dir, DataDirView::Present(_))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::ClusterSettings;
    use crate::ha::view::{ControlState, ControlView, Memory};
    use crate::types::{Fact, Lsn, Mono, SystemId};

    /// A stopped standby with data.
    fn view() -> ClusterView {
        let config = ClusterSettings::default();
        let control = ControlView {
            system_id: SystemId(1),
            state: ControlState::InRecovery,
            timeline: TimelineId(1),
            checkpoint: Lsn(1000),
            min_recovery_end: Lsn(2000),
            standby_signal: true,
        };
        ClusterView {
            now: Mono(0),
            me: "n1".parse().expect("valid"),
            settings: crate::agent::observe::rules(&config, &crate::agent::local::Place::default()),
            record: Fact::unknown("not read"),
            request_due: true,
            data_dir: DataDirView::Present(control),
            process: ProcessView::Absent { crashed: true },
            server: Fact::unknown("it does not run"),
            permit: None,
            guardian_permit: None,
            peers: BTreeMap::new(),
            task: None,
            shutting_down: false,
            memory: Memory::default(),
        }
    }

    /// Found by the simulation (seed 700098): the first member to learn of a pause's end passed over another that had more
    /// WAL and did not know of it yet.
    #[test]
    fn a_pause_says_nothing_about_what_the_data_is_worth() {
        let mut view = view();
        assert!(candidate(&view));
        view.settings.pause = true;
        assert!(candidate(&view));
        view.settings.nofailover = true;
        assert!(!candidate(&view));
    }

    /// Found by the simulation (seed 2809 of its clusters with two sites): PostgreSQL had come up since its agent's last look.
    /// It was neither waited for as one that starts nor counted as one that answers, and one with less took the lead.
    #[test]
    fn a_server_that_nobody_here_has_seen_yet_takes_part() {
        let mut view = view();
        view.process = ProcessView::Running { writable: false };
        view.server = Fact::unknown("the database system is starting up");
        assert!(candidate(&view));
    }

    /// Found by the simulation (seed 900037): a cluster was paused for longer than a ttl while nobody led. When the pause
    /// ended everybody started at once, and the first to answer led, although another that was still starting had more.
    #[test]
    fn patience_with_the_others_begins_when_a_pause_ends() {
        let mut view = view();
        view.record = Fact::Fresh(ClusterRecord::default());
        view.settings.pause = true;
        view.memory.leaderless_since = Some(Mono(0));
        view.now = Mono(0) + view.settings.ttl * 10;
        let mut memory = view.memory.clone();
        crate::agent::tick::note(&view, &crate::ha::decide(&view), &mut memory);
        assert_eq!(memory.leaderless_since, Some(view.now));
        memory.leaderless_since = None;
        crate::agent::tick::note(&view, &crate::ha::decide(&view), &mut memory);
        assert_eq!(memory.leaderless_since, None, "somebody leads");
    }
}
