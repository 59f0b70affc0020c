//! `/metrics`: Patroni's names, so that dashboards keep working, and ours, which begin with `howdah_`.
//!
//! Source: reference section 1.4.

use super::health::young_view;
use super::wire::PATRONI_VERSION;
use crate::agent::snapshot::{
    MemberRole, PostgresState, PostgresStatus, ReplicationState, Role, RouterBackend, RouterPort, RouterStatus,
    Snapshot, WalPosition,
};
use crate::telemetry::metrics::{MetricKind, MetricsText};
use crate::types::Mono;

const STATES: &[PostgresState] = &[
    PostgresState::Initdb,
    PostgresState::InitdbFailed,
    PostgresState::CustomBootstrap,
    PostgresState::CustomBootstrapFailed,
    PostgresState::CreatingReplica,
    PostgresState::Running,
    PostgresState::Starting,
    PostgresState::BootstrapStarting,
    PostgresState::StartFailed,
    PostgresState::Restarting,
    PostgresState::RestartFailed,
    PostgresState::Stopping,
    PostgresState::Stopped,
    PostgresState::StopFailed,
    PostgresState::Crashed,
    PostgresState::Unknown,
];

/// The page at `now`.
pub fn page(snapshot: &Snapshot, router: Option<&RouterStatus>, now: Mono) -> String {
    let mut page = MetricsText::new(&[("scope", snapshot.scope.as_str()), ("name", snapshot.name.as_str())]);
    page.gauge("patroni_version", "Patroni semver without periods, of the interface that is served.", padded_version());
    if let Some(pg) = &snapshot.postgres {
        local(&mut page, snapshot, pg, now);
    }
    let cluster = snapshot.cluster.as_ref();
    let unlocked = cluster.is_none_or(|cluster| cluster.leader.is_none());
    page.gauge("patroni_cluster_unlocked", "1 if no member holds the leader key.", u8::from(unlocked));
    page.gauge(
        "patroni_failsafe_mode_is_active",
        "1 if the primary runs on the word of all members.",
        u8::from(snapshot.failsafe_active),
    );
    page.gauge(
        "patroni_dcs_last_seen",
        "Epoch of the last read of the store.",
        cluster.map_or(0, |cluster| cluster.seen_wall.0.div_euclid(1000)),
    );
    page.gauge("patroni_is_paused", "1 if the cluster is paused.", u8::from(snapshot.is_paused()));
    own(&mut page, snapshot, now);
    if let Some(router) = router {
        routed(&mut page, router);
    }
    page.finish()
}

/// 4.1.5 becomes 040105.
fn padded_version() -> String {
    PATRONI_VERSION.split('.').map(|part| format!("{part:0>2}")).collect()
}

fn local(page: &mut MetricsText, snapshot: &Snapshot, pg: &PostgresStatus, now: Mono) {
    let is = |yes: bool| u8::from(yes);
    let sync_role = young_view(snapshot, now)
        .filter(|_| pg.role == Role::Replica)
        .map(|cluster| cluster.role_of(snapshot.name.as_str()));
    page.gauge("patroni_postgres_running", "1 if PostgreSQL runs.", is(pg.state == PostgresState::Running));
    #[allow(clippy::cast_precision_loss)]
    let started = pg.postmaster_start_time.map_or(0.0, |at| at.0 as f64 / 1000.0);
    page.gauge("patroni_postmaster_start_time", "Epoch of the start of PostgreSQL.", started);
    page.gauge("patroni_primary", "1 if this node is the primary.", is(pg.role == Role::Primary));
    let (location, received, replayed, replayed_at, paused) = match pg.wal {
        WalPosition::Unknown => (0, 0, 0, None, false),
        WalPosition::Primary { location } => (location.0, 0, 0, None, false),
        WalPosition::Standby { received, replayed, replayed_at, paused, .. } => {
            (0, received.0, replayed.0, replayed_at, paused)
        }
    };
    page.counter("patroni_xlog_location", "Position in the WAL of the primary, 0 on a standby.", location);
    page.gauge("patroni_standby_leader", "1 if this node leads a standby cluster.", is(pg.role == Role::StandbyLeader));
    page.gauge("patroni_replica", "1 if this node is a replica.", is(pg.role == Role::Replica));
    page.gauge(
        "patroni_sync_standby",
        "1 if this node is a synchronous standby.",
        is(sync_role == Some(MemberRole::SyncStandby)),
    );
    page.gauge(
        "patroni_quorum_standby",
        "1 if this node is a quorum standby.",
        is(sync_role == Some(MemberRole::QuorumStandby)),
    );
    page.counter("patroni_xlog_received_location", "End of the WAL received, 0 on a primary.", received);
    page.counter("patroni_xlog_replayed_location", "End of the WAL replayed, 0 on a primary.", replayed);
    #[allow(clippy::cast_precision_loss)]
    let replayed_at = replayed_at.map_or(0.0, |at| at.0 as f64 / 1000.0);
    page.gauge("patroni_xlog_replayed_timestamp", "Epoch of the last transaction replayed, 0 if none.", replayed_at);
    page.gauge("patroni_xlog_paused", "1 if replay is paused.", is(paused));
    if pg.server_version.is_some() {
        let from = |source| is(pg.replication_state == Some(source));
        page.gauge("patroni_postgres_streaming", "1 if PostgreSQL streams.", from(ReplicationState::Streaming));
        page.gauge(
            "patroni_postgres_in_archive_recovery",
            "1 if PostgreSQL replays from the archive.",
            from(ReplicationState::InArchiveRecovery),
        );
    }
    page.gauge(
        "patroni_postgres_server_version",
        "Version of PostgreSQL, 0 if it does not run.",
        pg.server_version.map_or(0, |v| v.0),
    );
    page.gauge("patroni_postgres_timeline", "Timeline, 0 if it is not known.", pg.timeline.map_or(0, |t| t.0));
    page.gauge("patroni_pending_restart", "1 if settings wait for a restart.", is(!pg.pending_restart.is_empty()));
    let values: Vec<String> =
        STATES.iter().map(|s| format!("{}={}", s.metric_code(), s.as_str().replace(' ', "_"))).collect();
    page.header_with_note(
        "patroni_postgres_state",
        "State of PostgreSQL, as a number.",
        &format!("Values: {}", values.join(", ")),
        MetricKind::Gauge,
    );
    page.sample("patroni_postgres_state", &[], pg.state.metric_code());
}

fn own(page: &mut MetricsText, snapshot: &Snapshot, now: Mono) {
    page.header("howdah_info", "1, with the version of howdah.", MetricKind::Gauge);
    page.sample("howdah_info", &[("version", &snapshot.version)], 1);
    let remaining = snapshot.lock.leader_until.map_or(0.0, |until| (until - now).as_secs_f64());
    page.gauge("howdah_is_leader", "1 while this node holds a valid permit.", u8::from(snapshot.lock.holds_at(now)));
    page.gauge("howdah_permit_remaining_seconds", "Time until this node's permit ends, 0 without one.", remaining);
    let term = snapshot.cluster.as_ref().and_then(|c| c.leader.as_ref()).map_or(0, |leader| leader.term.0);
    page.gauge("howdah_leadership_term", "Term of the PostgreSQL leadership, 0 without a leader.", term);
    let degraded = snapshot.cluster.as_ref().and_then(|cluster| cluster.sync.degraded);
    page.gauge(
        "howdah_commit_copies_missing",
        "On how many nodes fewer than configured commits are now.",
        degraded.map_or(0, |degraded| degraded.wanted.saturating_sub(degraded.copies)),
    );
    page.gauge(
        "howdah_last_tick_age_seconds",
        "Time since the loop last turned.",
        (now - snapshot.last_tick).as_secs_f64(),
    );
    page.gauge("howdah_store_has_quorum", "1 if the store answers.", u8::from(snapshot.store_has_quorum));
    page.gauge("howdah_watchdog_failed", "1 if the watchdog cannot be used.", u8::from(snapshot.watchdog_failed));
    let raft = &snapshot.raft;
    page.gauge("howdah_raft_term", "Term of the store's own leadership.", raft.term);
    page.gauge("howdah_raft_is_leader", "1 if this node leads the store.", u8::from(raft.role == "leader"));
    page.gauge("howdah_raft_voters", "Voting members of the store.", raft.members.iter().filter(|m| m.voter).count());
    page.gauge("howdah_raft_last_log_index", "Last entry of the store's log.", raft.last_log_index);
    page.gauge("howdah_raft_applied_index", "Last applied entry of the store's log.", raft.applied_index);
    page.header("howdah_decisions_total", "Decisions since the start, by reason.", MetricKind::Counter);
    for (reason, count) in &snapshot.decision_counts {
        page.sample("howdah_decisions_total", &[("reason", reason)], count);
    }
    if let Some(task) = &snapshot.task {
        page.header("howdah_task_bytes_done", "Bytes done by the long task that runs.", MetricKind::Gauge);
        page.sample("howdah_task_bytes_done", &[("kind", &task.kind)], task.bytes_done.unwrap_or(0));
        page.header(
            "howdah_task_bytes_expected",
            "Bytes that it will have done at its end, 0 if not known.",
            MetricKind::Gauge,
        );
        page.sample("howdah_task_bytes_expected", &[("kind", &task.kind)], task.bytes_total.unwrap_or(0));
    }
}

/// What is counted for each port of the router.
type PortMetric = (&'static str, &'static str, MetricKind, fn(&RouterPort) -> u64);

const PORT_METRICS: [PortMetric; 5] = [
    ("howdah_router_targets", "Members that new connections go to.", MetricKind::Gauge, |port| {
        u64::try_from(port.targets.len()).unwrap_or(0)
    }),
    ("howdah_router_held", "Clients that wait for somebody to be led to.", MetricKind::Gauge, |port| port.held),
    ("howdah_router_held_total", "Clients that had to wait.", MetricKind::Counter, |port| port.held_total),
    ("howdah_router_refused_total", "Clients that were turned away.", MetricKind::Counter, |port| port.refused_total),
    ("howdah_router_cancels_total", "Cancel requests.", MetricKind::Counter, |port| port.cancels_total),
];

/// What is counted for each backend of a port.
type BackendMetric = (&'static str, &'static str, MetricKind, fn(&RouterBackend) -> u64);

const BACKEND_METRICS: [BackendMetric; 7] = [
    ("howdah_router_sessions", "Sessions now.", MetricKind::Gauge, |backend| backend.sessions),
    ("howdah_router_sessions_total", "Sessions so far.", MetricKind::Counter, |backend| backend.sessions_total),
    (
        "howdah_router_drained_total",
        "Sessions ended at a transaction boundary, for a planned change.",
        MetricKind::Counter,
        |backend| backend.drained_total,
    ),
    ("howdah_router_reset_total", "Sessions cut off.", MetricKind::Counter, |backend| backend.reset_total),
    (
        "howdah_router_failed_connections_total",
        "Connections that the backend did not take.",
        MetricKind::Counter,
        |backend| backend.failed_total,
    ),
    ("howdah_router_received_bytes_total", "Bytes from clients.", MetricKind::Counter, |backend| {
        backend.bytes_from_clients
    }),
    ("howdah_router_sent_bytes_total", "Bytes to clients.", MetricKind::Counter, |backend| backend.bytes_to_clients),
];

fn routed(page: &mut MetricsText, router: &RouterStatus) {
    page.gauge(
        "howdah_router_term",
        "Term whose sessions may write through this router, 0 while it cannot be confirmed.",
        router.term.map_or(0, |term| term.0),
    );
    let ports: Vec<(&str, &RouterPort)> = [("primary", &router.primary), ("replicas", &router.replicas)]
        .into_iter()
        .filter_map(|(name, port)| Some((name, port.as_ref()?)))
        .collect();
    for (metric, help, kind, value) in PORT_METRICS {
        page.header(metric, help, kind);
        for (name, port) in &ports {
            page.sample(metric, &[("port", name)], value(port));
        }
    }
    for (metric, help, kind, value) in BACKEND_METRICS {
        page.header(metric, help, kind);
        for (name, port) in &ports {
            for backend in &port.backends {
                page.sample(metric, &[("port", name), ("backend", backend.name.as_str())], value(backend));
            }
        }
    }
}
