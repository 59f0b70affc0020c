//! Each row of the table of reference section 1.2.

use serde_json::json;

use super::*;
use crate::config::SynchronousMode;
use crate::types::{Mono, NodeName};

const NOW: Mono = Mono(101_000_000_000);

fn replica() -> Snapshot {
    serde_json::from_str(include_str!("../../../tests/surface/three_nodes.json")).expect("a snapshot")
}

/// n2 holds the permit; PostgreSQL is whatever `change` makes of it.
fn leader(change: impl FnOnce(&mut Snapshot)) -> Snapshot {
    let mut snapshot = replica();
    snapshot.lock.leader_until = Some(Mono(103_000_000_000));
    if let Some(pg) = &mut snapshot.postgres {
        pg.role = Role::Primary;
        pg.wal = WalPosition::Primary { location: Lsn(83_886_464) };
        pg.replication_state = None;
    }
    change(&mut snapshot);
    snapshot
}

fn changed(change: impl FnOnce(&mut Snapshot)) -> Snapshot {
    let mut snapshot = replica();
    change(&mut snapshot);
    snapshot
}

fn set_sync(snapshot: &mut Snapshot, standbys: &[&str], quorum: Option<u32>) {
    if let Some(cluster) = &mut snapshot.cluster {
        cluster.sync.standbys = standbys.iter().map(|name| name.parse::<NodeName>().expect("valid")).collect();
        cluster.sync.quorum = quorum;
        let mode = if quorum.is_some() { SynchronousMode::Quorum } else { SynchronousMode::On };
        cluster.settings.synchronous_mode = mode;
    }
}

fn set_standby_cluster(snapshot: &mut Snapshot) {
    if let Some(cluster) = &mut snapshot.cluster {
        let (settings, _) =
            crate::config::ClusterSettings::parse(&json!({"standby_cluster": {"host": "h"}})).expect("valid");
        cluster.settings = settings;
    }
}

/// Asserts which of `paths` succeed.
fn expect(what: &str, snapshot: &Snapshot, healthy: &[&str], unhealthy: &[&str]) {
    for (paths, wanted) in [(healthy, true), (unhealthy, false)] {
        for target in paths {
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            assert_eq!(check(snapshot, path, &parse_query(query), NOW), wanted, "{what}: {target}");
        }
    }
}

#[test]
fn rows_1_to_3_follow_the_lock_and_not_postgresql() {
    let leading = ["/", "/primary", "/master", "/read-write", "/leader", "/foo-leader-bar", "/x/primary"];
    let others = ["/standby-leader", "/standby_leader", "/replica", "/async", "/sync"];
    expect("leader", &leader(|_| {}), &leading, &others);
    let starting = leader(|s| {
        if let Some(pg) = &mut s.postgres {
            pg.state = PostgresState::Starting;
        }
    });
    expect("leader whose PostgreSQL starts", &starting, &leading, &["/health"]);
    let expired = leader(|s| s.lock.leader_until = Some(NOW));
    expect("permit has ended", &expired, &["/health"], &leading);
    expect("replica", &replica(), &["/replica", "/health"], &leading);
}

#[test]
fn rows_1_to_3_in_a_standby_cluster() {
    let standby_leader = leader(|s| {
        set_standby_cluster(s);
        if let Some(pg) = &mut s.postgres {
            pg.role = Role::StandbyLeader;
        }
    });
    expect(
        "standby leader",
        &standby_leader,
        &["/standby-leader", "/standby_leader", "/leader", "/read-only"],
        &["/", "/primary", "/replica", "/read-write"],
    );
    let promoting = leader(|s| {
        set_standby_cluster(s);
        if let Some(pg) = &mut s.postgres {
            pg.role = Role::Replica;
        }
    });
    expect("lock in a standby cluster forces replica off", &promoting, &["/leader", "/standby-leader"], &["/replica"]);
}

#[test]
fn rows_4_and_5() {
    let no_load = changed(|s| drop(s.tags.insert("noloadbalance".into(), json!(true))));
    let starting = changed(|s| {
        if let Some(pg) = &mut s.postgres {
            pg.state = PostgresState::Starting;
        }
    });
    expect("replica", &replica(), &["/replica", "/read-only", "/read-only-x"], &[]);
    expect("noloadbalance", &no_load, &["/health"], &["/replica", "/read-only"]);
    expect("starting", &starting, &[], &["/replica", "/read-only", "/health"]);
    expect("leader", &leader(|_| {}), &["/read-only"], &["/replica"]);
}

#[test]
fn row_6_needs_only_a_running_server() {
    expect("primary without the lock", &leader(|s| s.lock.leader_until = None), &["/health"], &["/primary"]);
    expect("witness", &changed(|s| s.postgres = None), &[], &["/health", "/replica", "/primary"]);
}

#[test]
fn rows_7_to_10_need_a_young_view() {
    let sync = ["/sync", "/synchronous", "/read-only-sync", "/read-only-synchronous"];
    let quorum = ["/quorum", "/read-only-quorum"];
    let none = ["/async", "/asynchronous"];
    let all: Vec<&str> = sync.iter().chain(&quorum).chain(&none).copied().collect();
    let is_sync = changed(|s| set_sync(s, &["N2"], None));
    expect("sync standby, other case", &is_sync, &sync, &[quorum.as_slice(), none.as_slice()].concat());
    let is_quorum = changed(|s| set_sync(s, &["n2", "n3"], Some(1)));
    expect("quorum standby", &is_quorum, &quorum, &[sync.as_slice(), none.as_slice()].concat());
    let is_none = changed(|s| set_sync(s, &["n3"], None));
    expect("neither", &is_none, &none, &[sync.as_slice(), quorum.as_slice()].concat());
    let old = changed(|s| {
        if let Some(cluster) = &mut s.cluster {
            cluster.seen_at = Mono(96_000_000_000);
        }
    });
    expect("view as old as the ttl", &old, &["/replica"], &all);
    let leading = leader(|s| set_sync(s, &["n3"], None));
    expect("leader", &leading, &["/read-only-sync", "/read-only-quorum"], &["/sync", "/async", "/quorum"]);
    expect("inexact paths", &is_sync, &[], &["/sync/", "/synch", "/asyncs"]);
}

#[test]
fn unknown_paths_fail() {
    expect("replica", &replica(), &[], &["/foo", "/liveness", "/patroni", "/cluster", "/metrics", "/readiness"]);
}

#[test]
fn lag_counts_on_every_replica_check() {
    // n2 replayed 384 bytes less than the leader wrote.
    expect("behind", &replica(), &["/replica?lag=384", "/replica?lag=1kB", "/replica?lag=16MB"], &["/replica?lag=383"]);
    expect("behind", &replica(), &["/sync?lag=1MB", "/read-only?lag=1MB"], &["/sync?lag=0", "/read-only?lag=0"]);
    expect("garbage is ignored", &replica(), &["/replica?lag=soon", "/replica?lag=", "/replica?lag"], &[]);
    let no_optime = changed(|s| {
        if let Some(cluster) = &mut s.cluster {
            cluster.optime = None;
        }
    });
    expect("nothing to compare with", &no_optime, &["/replica?lag=0"], &[]);
    let heard = changed(|s| {
        if let Some(WalPosition::Standby { latest_end, .. }) = s.postgres.as_mut().map(|pg| &mut pg.wal) {
            *latest_end = Some(Lsn(83_886_080 + 5000));
        }
    });
    expect("the receiver heard of more", &heard, &["/replica?lag=5000"], &["/replica?lag=4999"]);
}

#[test]
fn tags_filter_from_row_4_on() {
    let good = ["/replica?tag_zone=b", "/replica?tag_clonefrom=true", "/health?tag_zone=b&tag_clonefrom=true"];
    let bad = ["/replica?tag_zone=a", "/replica?tag_rack=1", "/health?tag_clonefrom=false", "/async?tag_zone=a"];
    expect("tags", &replica(), &good, &bad);
    expect("rows 1 to 3 ignore them", &leader(|_| {}), &["/primary?tag_zone=a", "/leader?tag_zone=a"], &[]);
    let typed = changed(|s| drop(s.tags.insert("n".into(), json!(1))));
    expect("a number", &typed, &["/replica?tag_n=1"], &["/replica?tag_n=2"]);
}

#[test]
fn a_pause_without_a_view_goes_by_the_actual_role() {
    let paused = |role: Role| {
        leader(|s| {
            s.lock.leader_until = None;
            if let Some(pg) = &mut s.postgres {
                pg.role = role;
            }
            if let Some(cluster) = &mut s.cluster {
                cluster.settings.pause = true;
                cluster.seen_at = Mono(0);
            }
        })
    };
    expect("primary", &paused(Role::Primary), &["/primary", "/leader"], &["/standby-leader"]);
    expect("standby leader", &paused(Role::StandbyLeader), &["/standby-leader", "/leader"], &["/primary"]);
    expect("replica", &paused(Role::Replica), &["/replica"], &["/primary", "/leader", "/standby-leader"]);
}

#[test]
fn liveness_is_the_turning_of_the_loop() {
    let at = |seconds: u64| Mono(seconds * 1_000_000_000);
    assert!(is_live(&replica(), at(110)) && !is_live(&replica(), at(111)), "replica: tick + loop_wait + 2 ttl");
    assert!(is_live(&leader(|_| {}), at(105)) && !is_live(&leader(|_| {}), at(106)), "primary: tick + loop_wait + ttl");
    let paused = changed(|s| {
        if let Some(cluster) = &mut s.cluster {
            cluster.settings.pause = true;
        }
    });
    assert!(is_live(&paused, at(9999)));
}

#[test]
fn readiness() {
    let ready = |snapshot: &Snapshot, query: &str| is_ready(snapshot, &parse_query(query), NOW);
    assert!(ready(&leader(|_| {}), ""));
    assert!(ready(&replica(), "") && ready(&replica(), "lag=384") && !ready(&replica(), "lag=383"));
    assert!(ready(&replica(), "lag=0&mode=write"), "all was received, not all replayed");
    assert!(ready(&replica(), "lag=garbage"), "the default applies");
    let archive = changed(|s| {
        if let Some(pg) = &mut s.postgres {
            pg.replication_state = Some(ReplicationState::InArchiveRecovery);
        }
    });
    assert!(!ready(&archive, ""));
    let blind = |failsafe| {
        changed(|s| {
            s.cluster = None;
            s.failsafe_active = failsafe;
        })
    };
    assert!(!ready(&blind(false), "") && ready(&blind(true), ""));
    assert!(!ready(&changed(|s| s.postgres = None), ""));
}

#[test]
fn queries_are_decoded() {
    let query = parse_query("a=1%20b+c&a=2&tag_x=%C3%A4&empty=&odd=%zz&cut=%2");
    assert_eq!(query.get("a"), Some("1 b c"));
    assert_eq!(query.get("tag_x"), Some("ä"));
    assert_eq!(query.get("empty"), None);
    assert_eq!((query.get("odd"), query.get("cut")), (Some("%zz"), Some("%2")));
}
