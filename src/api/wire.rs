//! JSON bodies of the read endpoints, built from the snapshot.
//!
//! Names, types and the rules for absent fields are Patroni's, because check_patroni, dashboards and patronictl read
//! them. Deliberately absent: anything that is not in the snapshot.
//!
//! Source: reference section 1.3.

use serde_json::{Map, Value, json};

use super::health::young_view;
use crate::agent::snapshot::{
    ClusterStatus, MemberRole, MemberStatus, PostgresState, PostgresStatus, Role, RouterStatus, Snapshot, WalPosition,
};
use crate::types::{Lsn, Mono, WallTime};

/// The version of Patroni whose interface this is. Tools read it as numbers between dots.
pub const PATRONI_VERSION: &str = "4.1.5";

/// `/patroni`, and the body of every health check.
pub fn patroni(snapshot: &Snapshot, now: Mono) -> Value {
    let mut body = Map::new();
    let mut put = |key: &str, value: Value| drop(body.insert(key.to_owned(), value));
    let cluster = snapshot.cluster.as_ref();
    match &snapshot.postgres {
        Some(pg) => postgres_fields(pg, &mut put),
        // A witness has no database; these words are ours, and no check takes them for a healthy one.
        None => {
            put("state", json!("no postgresql"));
            put("role", json!("witness"));
        }
    }
    if snapshot.postgres.as_ref().is_some_and(|pg| pg.role == Role::Replica)
        && let Some(view) = young_view(snapshot, now)
    {
        match view.role_of(snapshot.name.as_str()) {
            MemberRole::SyncStandby => put("sync_standby", json!(true)),
            MemberRole::QuorumStandby => put("quorum_standby", json!(true)),
            MemberRole::Leader | MemberRole::StandbyLeader | MemberRole::Replica => {}
        }
    }
    let flags = [
        ("pause", snapshot.is_paused()),
        ("cluster_unlocked", cluster.is_none_or(|cluster| cluster.leader.is_none())),
        ("failsafe_mode_is_active", snapshot.failsafe_active),
        ("watchdog_failed", snapshot.watchdog_failed),
    ];
    for (key, _) in flags.into_iter().filter(|(_, set)| *set) {
        put(key, json!(true));
    }
    put("dcs_last_seen", json!(cluster.map_or(0, |cluster| cluster.seen_wall.0.div_euclid(1000))));
    if !snapshot.tags.is_empty() {
        put("tags", json!(snapshot.tags));
    }
    put("patroni", json!({"version": PATRONI_VERSION, "scope": snapshot.scope, "name": snapshot.name}));
    put("howdah", json!({"version": snapshot.version}));
    Value::Object(body)
}

fn postgres_fields(pg: &PostgresStatus, put: &mut impl FnMut(&str, Value)) {
    put("state", json!(pg.state.as_str()));
    put("role", json!(pg.role.as_str()));
    if let Some(at) = pg.postmaster_start_time {
        put("postmaster_start_time", json!(spaced(at)));
    }
    if let Some(version) = pg.server_version {
        put("server_version", json!(version.0));
    }
    match pg.wal {
        WalPosition::Unknown => {}
        WalPosition::Primary { location } => put("xlog", json!({"location": location.0})),
        WalPosition::Standby { received, replayed, replayed_at, paused, .. } => put(
            "xlog",
            json!({
                "received_location": received.0,
                "replayed_location": replayed.0,
                "replayed_timestamp": replayed_at.map(spaced),
                "paused": paused,
            }),
        ),
    }
    if let Some(timeline) = pg.timeline {
        put("timeline", json!(timeline.0));
    }
    if let Some(source) = pg.replication_state.filter(|_| pg.role != Role::Primary) {
        put("replication_state", json!(source.as_str()));
    }
    if !pg.replication.is_empty() {
        put("replication", json!(pg.replication));
    }
    if !pg.pending_restart.is_empty() {
        put("pending_restart", json!(true));
        put("pending_restart_reason", json!(pg.pending_restart));
    }
    if let Some(restart) = &pg.scheduled_restart {
        put("scheduled_restart", restart.clone());
    }
    if let Some(id) = pg.system_id {
        put("database_system_identifier", json!(id.to_string()));
    }
}

/// `2026-11-22 20:00:00.123000+00:00`, as Python prints it.
fn spaced(at: WallTime) -> String {
    at.iso().replacen('T', " ", 1).replace("+00:00", "000+00:00")
}

/// `/cluster`; none before the store was read once.
pub fn cluster(snapshot: &Snapshot) -> Option<Value> {
    let cluster = snapshot.cluster.as_ref()?;
    let mut members: Vec<&MemberStatus> = cluster.members.iter().collect();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    let members: Vec<Value> = members.into_iter().map(|member| cluster_member(cluster, member)).collect();
    let mut body = json!({"members": members, "scope": snapshot.scope});
    if cluster.settings.pause {
        body["pause"] = json!(true);
    }
    if let Some((request, at)) = cluster.switchover.as_ref().and_then(|request| Some((request, request.scheduled_at?)))
    {
        let mut scheduled = json!({"at": at.iso()});
        for (key, name) in [("from", &request.leader), ("to", &request.candidate)] {
            if let Some(name) = name {
                scheduled[key] = json!(name);
            }
        }
        body["scheduled_switchover"] = scheduled;
    }
    if let (Some(unconfirmed), Some(hint)) = (&cluster.unconfirmed, cluster.doubt(&snapshot.name)) {
        let leader = unconfirmed.leader.as_ref().map(|leader| &leader.name);
        body["unconfirmed"] = json!({"since": cluster.seen_wall.iso(), "last_leader": leader, "hint": hint});
    }
    Some(body)
}

fn cluster_member(cluster: &ClusterStatus, member: &MemberStatus) -> Value {
    let role = cluster.role_of(member.name.as_str());
    let mut body = Map::new();
    let mut put = |key: &str, value: Value| drop(body.insert(key.to_owned(), value));
    put("name", json!(member.name));
    put("role", json!(role.as_str()));
    put("state", json!(member_state(role, member)));
    put("api_url", json!(member.api_url));
    if let Some(host) = &member.host {
        put("host", json!(host));
    }
    if let Some(port) = member.port {
        put("port", json!(port));
    }
    if let Some(timeline) = member.timeline {
        put("timeline", json!(timeline.0));
    }
    if !member.pending_restart.is_empty() {
        put("pending_restart", json!(true));
        put("pending_restart_reason", json!(member.pending_restart));
    }
    if let Some(restart) = &member.scheduled_restart {
        put("scheduled_restart", restart.clone());
    }
    if let Some(progress) = member.progress {
        let percent = progress.percent();
        put(
            "progress",
            json!({"done_bytes": progress.done_bytes, "total_bytes": progress.total_bytes, "percent": percent}),
        );
    }
    if !member.tags.is_empty() {
        put("tags", json!(member.tags));
    }
    if role != MemberRole::Leader {
        let positions = [
            ("receive_lsn", "receive_lag", member.receive_lsn),
            ("replay_lsn", "replay_lag", member.replay_lsn),
            ("lsn", "lag", member.xlog_location),
        ];
        for (position_key, lag_key, position) in positions {
            put(position_key, position.map_or_else(|| json!("unknown"), |lsn| json!(lsn.to_string())));
            put(lag_key, lag_bytes(cluster, position).map_or_else(|| json!("unknown"), |bytes| json!(bytes)));
        }
        if member.replay_paused {
            put("replay_paused", json!(true));
        }
    }
    Value::Object(body)
}

/// What `/cluster` and `howdah list` show as a member's state: for all but the leader, where its WAL comes from if that
/// is known and the server runs.
pub fn member_state(role: MemberRole, member: &MemberStatus) -> &'static str {
    match member.replication_state {
        Some(source) if role != MemberRole::Leader && member.state == PostgresState::Running => source.as_str(),
        _ => member.state.as_str(),
    }
}

/// How far `position` is behind the leader's last published one, in bytes; none when either is not known.
pub fn lag_bytes(cluster: &ClusterStatus, position: Option<Lsn>) -> Option<u64> {
    let end = cluster.optime.filter(|end| end.0 != 0)?;
    Some(end.ahead_of(position?).0)
}

/// `/history`; none before the store was read once.
pub fn history(snapshot: &Snapshot) -> Option<Value> {
    let rows = snapshot.cluster.as_ref()?.history.iter().map(|row| {
        let mut fields = vec![json!(row.timeline.0), json!(row.lsn.0), json!(row.reason)];
        if let Some(at) = &row.at {
            fields.push(json!(at));
            fields.extend(row.new_leader.as_ref().map(|name| json!(name)));
        }
        Value::Array(fields)
    });
    Some(Value::Array(rows.collect()))
}

/// `/howdah`: the snapshot itself, what it means at this moment, and what the router does.
pub fn full(snapshot: &Snapshot, router: Option<&RouterStatus>, now: Mono) -> Value {
    let remaining = snapshot.lock.leader_until.filter(|until| now < *until).map(|until| (until - now).as_secs_f64());
    json!({
        "is_leader": snapshot.lock.holds_at(now),
        "permit_remaining_seconds": remaining,
        "last_tick_age_seconds": (now - snapshot.last_tick).as_secs_f64(),
        "view_age_seconds": snapshot.cluster.as_ref().map(|cluster| (now - cluster.seen_at).as_secs_f64()),
        "router": router,
        "snapshot": snapshot,
    })
}

#[cfg(test)]
mod tests;
