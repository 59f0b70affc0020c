//! The bodies that tools read, whole.

use super::*;
use crate::api::metrics;

const NOW: Mono = Mono(101_000_000_000);

fn snapshot() -> Snapshot {
    serde_json::from_str(include_str!("../../../tests/surface/three_nodes.json")).expect("a snapshot")
}

#[test]
fn a_replica() {
    let wanted = json!({
        "state": "running", "role": "replica",
        "postmaster_start_time": "2026-11-22 17:53:20.500000+00:00",
        "server_version": 150018,
        "xlog": {"received_location": 83886464, "replayed_location": 83886080, "replayed_timestamp": "2026-11-22 19:59:59.000000+00:00", "paused": false},
        "timeline": 3, "replication_state": "streaming", "sync_standby": true,
        "pending_restart": true, "pending_restart_reason": {"max_connections": {"old_value": "100", "new_value": "200"}},
        "database_system_identifier": "7508153532268044335",
        "dcs_last_seen": 1795377600, "tags": {"zone": "b", "clonefrom": true},
        "patroni": {"version": "4.1.5", "scope": "main", "name": "n2"},
        "howdah": {"version": "0.1.0"},
    });
    assert_eq!(patroni(&snapshot(), NOW), wanted);
}

#[test]
fn before_the_first_tick() {
    let starting =
        Snapshot::starting("main".parse().expect("valid"), "w".parse().expect("valid"), Mono(0), WallTime(0));
    let wanted = json!({
        "state": "no postgresql", "role": "witness", "cluster_unlocked": true, "dcs_last_seen": 0,
        "patroni": {"version": "4.1.5", "scope": "main", "name": "w"}, "howdah": {"version": starting.version},
    });
    assert_eq!(patroni(&starting, Mono(0)), wanted);
    assert_eq!((cluster(&starting), history(&starting)), (None, None));
}

#[test]
fn the_cluster() {
    let body = cluster(&snapshot()).expect("known");
    let members = body["members"].as_array().expect("a list");
    let of = |key: &str| members.iter().map(|m| m[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("name"), ["n1", "n2", "n3"]);
    assert_eq!(of("role"), ["leader", "sync_standby", "replica"]);
    assert_eq!(of("state"), ["running", "streaming", "in archive recovery"]);
    assert_eq!(of("lag"), [json!(null), json!(0), json!(31457664)]);
    assert_eq!(of("replay_lag"), [json!(null), json!(384), json!(33554816)]);
    assert_eq!(of("receive_lsn"), [json!(null), json!("0/5000180"), json!("0/3200000")]);
    assert_eq!((&members[0]["host"], &members[0]["port"]), (&json!("10.0.0.1"), &json!(5432)));
    assert_eq!(members[2]["tags"], json!({"nofailover": true}));
    assert_eq!((body.get("pause"), body.get("scheduled_switchover")), (None, None));
}

#[test]
fn unknown_positions_have_unknown_lag() {
    let mut snapshot = snapshot();
    let view = snapshot.cluster.as_mut().expect("known");
    view.settings.pause = true;
    view.members[0].receive_lsn = None;
    view.switchover = Some(crate::agent::snapshot::SwitchoverStatus {
        leader: None,
        candidate: Some("n2".parse().expect("valid")),
        scheduled_at: Some(WallTime(1_795_377_600_000)),
    });
    let body = cluster(&snapshot).expect("known");
    assert_eq!(body["members"][2]["receive_lag"], "unknown");
    assert_eq!(body["pause"], true);
    assert_eq!(body["scheduled_switchover"], json!({"at": "2026-11-22T20:00:00.000+00:00", "to": "n2"}));
}

#[test]
fn rows_of_history_end_where_their_knowledge_ends() {
    let wanted = json!([
        [1, 25165824, "no recovery target specified", "2026-11-22T18:00:00.000+00:00", "n2"],
        [2, 41943040, "no recovery target specified"],
    ]);
    assert_eq!(history(&snapshot()), Some(wanted));
}

#[test]
fn metrics_have_patronis_names() {
    let page = metrics::page(&snapshot(), None, NOW);
    let label = "{scope=\"main\",name=\"n2\"}";
    for (name, value) in [
        ("patroni_version", "040105"),
        ("patroni_postgres_running", "1"),
        ("patroni_postmaster_start_time", "1795370000.5"),
        ("patroni_primary", "0"),
        ("patroni_replica", "1"),
        ("patroni_sync_standby", "1"),
        ("patroni_xlog_received_location", "83886464"),
        ("patroni_xlog_replayed_timestamp", "1795377599"),
        ("patroni_postgres_streaming", "1"),
        ("patroni_postgres_server_version", "150018"),
        ("patroni_cluster_unlocked", "0"),
        ("patroni_postgres_timeline", "3"),
        ("patroni_dcs_last_seen", "1795377600"),
        ("patroni_pending_restart", "1"),
        ("patroni_postgres_state", "5"),
        ("howdah_raft_voters", "3"),
        ("howdah_permit_remaining_seconds", "0"),
    ] {
        assert!(page.contains(&format!("\n{name}{label} {value}\n")), "{name} {value} in\n{page}");
    }
    assert!(page.contains("howdah_decisions_total{scope=\"main\",name=\"n2\",reason=\"following\"} 12\n"));
    let names: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let mut unique = names.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), names.len(), "a name has one block only");
}

#[test]
fn the_whole_snapshot_round_trips() {
    let body = full(&snapshot(), None, NOW);
    assert_eq!(body["last_tick_age_seconds"], 1.0);
    assert_eq!(body["is_leader"], false);
    let again: Snapshot = serde_json::from_value(body["snapshot"].clone()).expect("a snapshot");
    assert_eq!(again, snapshot());
}
