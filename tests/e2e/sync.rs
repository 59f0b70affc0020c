//! Synchronous replication: what was acknowledged is there, whoever dies, and whoever cannot confirm.
//!
//! The ledger decides. Replicas are kept from confirming by closing the door for their login, not by killing them: two of
//! three nodes without a process would be no majority any more, and that is another story.

use std::time::Duration;

use howdah::dev::rest;
use serde_json::{Value, json};

use crate::cluster::{Cluster, LIMIT, now};
use crate::ledger::Ledger;
use crate::log_gate::LogGate;
use crate::observe;
use crate::report::{Overlap, Report, Window, measured};

/// Writers that are acknowledged at the same time: one on the primary, the others wherever it is found.
const WRITERS: usize = 8;
/// Acks that followers must get before a change counts as survived.
const STEADY: usize = 50;
/// Any node may see a peer vanish in the middle of introducing itself.
const CUT_OFF: &str = "connection closed during the handshake";

/// `make soak` kills twenty times.
fn rounds() -> usize {
    if std::env::var_os("SOAK").is_some() { 20 } else { 3 }
}

fn assert_nothing_lost(what: &str, report: &Report) {
    let Report { acks, lost, duplicates, unconfirmed, failures: _ } = report;
    measured(&format!(
        "{what}: {} acks, {} lost {:?}, {duplicates} duplicate, {unconfirmed} unconfirmed",
        acks.len(),
        lost.len(),
        report.lost_by_writer()
    ));
    assert_eq!(*lost, [], "acknowledged writes are gone");
    assert_eq!(*duplicates, 0);
}

/// A part of what a node publishes.
fn published(cluster: &Cluster, node: &str, path: &str) -> Value {
    let seen = cluster.seen();
    let howdah = seen.iter().find(|seen| seen.name == node).map(|seen| seen.howdah.clone()).unwrap_or_default();
    howdah.pointer(&format!("/snapshot/{path}")).cloned().unwrap_or_default()
}

fn last_reason(cluster: &Cluster, node: &str) -> String {
    let decisions = published(cluster, node, "decisions");
    let last = decisions.as_array().and_then(|rows| rows.last()).cloned().unwrap_or_default();
    last["reason"].as_str().unwrap_or_default().to_owned()
}

fn patch_config(cluster: &Cluster, patch: &Value) {
    let primary = cluster.expect_primary();
    let answer = rest::patch(cluster.node(&primary).rest, "/config", patch, LIMIT).expect("an answer");
    assert_eq!(answer.status, 200, "{patch}: {}", answer.body);
}

/// Nobody may replicate from the primary, until [`open_the_door`].
fn close_the_door(cluster: &Cluster, primary: &str) {
    // Committed before anybody is sent away: else they are back before it counts.
    for close in [
        "set synchronous_commit = local; alter role replicator nologin",
        "select pg_terminate_backend(pid) from pg_stat_replication",
    ] {
        cluster.sql(primary, close).expect("close the door");
    }
}

fn open_the_door(cluster: &Cluster, primary: &str) {
    cluster.sql(primary, "set synchronous_commit = local; alter role replicator login").expect("open the door");
}

#[test]
fn killing_the_primarys_node_again_and_again_loses_no_acknowledged_write() {
    let mut cluster = Cluster::boot("quorum-kills");
    let ledger = Ledger::start_with(&cluster, &cluster.expect_primary(), WRITERS - 1);
    let mut changes = Vec::new();
    for round in 1..=rounds() {
        cluster.until_healthy();
        ledger.until_more(&cluster, STEADY * 4);
        let old = cluster.expect_primary();
        let from = now();
        cluster.kill_node(&old);
        cluster.until("another node writes", LIMIT, |_| ledger.successor(&old, from).is_some());
        ledger.until_more(&cluster, STEADY);
        let new = ledger.successor(&old, from).expect("it has just been there");
        measured(&format!("quorum kills: round {round}: {old} -> {new}"));
        cluster.start_agent(&old);
        cluster.until_replica(&old);
        changes.push((old, new, Window { from, to: now() }));
    }
    cluster.until_healthy();
    ledger.until_more(&cluster, STEADY);
    let report = ledger.finish(&cluster);
    assert_nothing_lost("quorum kills", &report);
    for (old, new, window) in changes {
        let Overlap { split, late, span: _ } = report.overlap(&old, &new, window);
        assert_eq!((split, late), (0, 0), "{old} acknowledged writes in the time of {new}");
    }
    LogGate::new().allow("*", CUT_OFF).check(&cluster);
}

#[test]
fn a_freeze_of_the_primarys_node_loses_no_acknowledged_write() {
    let cluster = Cluster::boot("quorum-freeze");
    let mut ledger = Ledger::start_with(&cluster, &cluster.expect_primary(), WRITERS - 1);
    let old = cluster.expect_primary();
    ledger.until_more(&cluster, STEADY);
    ledger.arm(&old, 8);
    let from = now();
    cluster.freeze_node(&old);
    cluster.until("another node writes", LIMIT, |_| ledger.successor(&old, from).is_some());
    ledger.until_more(&cluster, STEADY);
    // Writes lie in the frozen node's sockets when it wakes.
    ledger.fire();
    cluster.thaw_node(&old);
    cluster.until_replica(&old);
    cluster.until_healthy();
    ledger.until_more(&cluster, STEADY);
    assert_nothing_lost("quorum freeze", &ledger.finish(&cluster));
    let woken = [
        "the node's lease has expired",
        "the guardian is gone, and PostgreSQL with it",
        "the guardian is gone, and postgres with it",
    ];
    LogGate::new().allow_all(&old, &woken).allow("*", CUT_OFF).check(&cluster);
}

#[test]
fn writes_go_on_with_one_replica_and_after_a_record_with_none() {
    let mut cluster = Cluster::boot("quorum-degraded");
    let primary = cluster.expect_primary();
    let ledger = Ledger::start(&cluster);
    let gone = cluster.others(&primary)[0].clone();
    let from = now();
    cluster.kill_node(&gone);
    ledger.until_more(&cluster, STEADY);
    cluster.until("the record counts on the other replica alone", LIMIT, |c| {
        published(c, &primary, "cluster/sync/standbys").as_array().is_some_and(|names| names.len() == 1)
    });
    assert_eq!(
        published(&cluster, &primary, "cluster/sync/degraded"),
        Value::Null,
        "two copies are what was asked for"
    );
    ledger.until_more(&cluster, STEADY);
    let hiccups = ledger.failures_on(&primary, from);
    assert_eq!(hiccups, 0, "the loss of one replica of two was felt");

    close_the_door(&cluster, &primary);
    cluster.until("the shortage is recorded", LIMIT, |c| {
        published(c, &primary, "cluster/sync/degraded/copies") == json!(1)
    });
    assert_eq!(published(&cluster, &primary, "cluster/sync/standbys"), json!([]), "nobody else may lead now");
    assert!(published(&cluster, &primary, "cluster/sync/degraded/since").is_i64(), "since when is recorded");
    ledger.until_more(&cluster, STEADY);
    cluster.until("the primary says so", LIMIT, |c| last_reason(c, &primary) == "leader_degraded");

    open_the_door(&cluster, &primary);
    cluster.start_agent(&gone);
    cluster.until_healthy();
    assert_eq!(published(&cluster, &primary, "cluster/sync/degraded"), Value::Null);
    ledger.until_more(&cluster, STEADY);
    assert_nothing_lost("quorum degraded", &ledger.finish(&cluster));
    LogGate::new().allow("*", CUT_OFF).check(&cluster);
}

#[test]
fn strict_mode_waits_rather_than_degrade() {
    let cluster = Cluster::boot("quorum-strict");
    let primary = cluster.expect_primary();
    patch_config(&cluster, &json!({"synchronous_mode_strict": true}));
    let ledger = Ledger::start(&cluster);
    close_the_door(&cluster, &primary);
    cluster.until("commits wait", LIMIT, |c| last_reason(c, &primary) == "commits_wait");
    // Longer than the time after which a mode that is not strict gives in, and no commit returns in all of it.
    let blocked = now();
    cluster.until("two ttl have passed", LIMIT, |_| Duration::from_secs(10) < now().since(blocked));
    assert_eq!(ledger.acks_on(&primary, blocked), 0, "a commit returned that no standby has");
    assert_eq!(published(&cluster, &primary, "cluster/sync/degraded"), Value::Null);
    assert_eq!(last_reason(&cluster, &primary), "commits_wait");
    open_the_door(&cluster, &primary);
    cluster.until_healthy();
    ledger.until_more(&cluster, STEADY);
    assert_nothing_lost("quorum strict", &ledger.finish(&cluster));
    LogGate::new().check(&cluster);
}

#[test]
fn the_mode_changes_at_run_time_and_a_chosen_standby_succeeds() {
    let mut cluster = Cluster::boot("sync-on");
    let old = cluster.expect_primary();
    let ledger = Ledger::start(&cluster);
    let roles = |c: &Cluster, wanted: &str| -> Vec<String> {
        let answer = rest::get(c.node(&old).rest, "/cluster", LIMIT).map(|answer| answer.json()).unwrap_or_default();
        let members = answer["members"].as_array().cloned().unwrap_or_default();
        let named = members.iter().filter(|member| member["role"] == wanted);
        named.filter_map(|member| member["name"].as_str().map(str::to_owned)).collect()
    };
    assert_eq!(roles(&cluster, "quorum_standby").len(), 2);
    let status = |c: &Cluster, node: &str, path: &str| {
        rest::get(c.node(node).rest, path, LIMIT).map(|answer| answer.status).unwrap_or_default()
    };
    let replica = &cluster.others(&old)[0];
    cluster.until("a replica knows its part", LIMIT, |c| status(c, replica, "/quorum") == 200);
    assert_eq!(status(&cluster, replica, "/sync"), 503);

    patch_config(&cluster, &json!({"synchronous_mode": "on"}));
    cluster.until("one standby is chosen", LIMIT, |c| {
        published(c, &old, "cluster/sync/quorum") == Value::Null && roles(c, "sync_standby").len() == 1
    });
    let chosen = roles(&cluster, "sync_standby").remove(0);
    let other = cluster.others(&old).into_iter().find(|name| *name != chosen).expect("three nodes");
    cluster.until("both know their part", LIMIT, |c| {
        status(c, &chosen, "/synchronous") == 200 && status(c, &other, "/asynchronous") == 200
    });
    ledger.until_more(&cluster, STEADY);
    let from = now();
    cluster.kill_node(&old);
    cluster.until("another node writes", LIMIT, |_| ledger.successor(&old, from).is_some());
    assert_eq!(ledger.successor(&old, from).as_ref(), Some(&chosen), "only the chosen standby is proven");
    cluster.start_agent(&old);
    cluster.until_healthy();

    patch_config(&cluster, &json!({"synchronous_mode": "off"}));
    let primary = cluster.expect_primary();
    cluster.until("nothing is left of it", LIMIT, |c| {
        published(c, &primary, "cluster/sync/leader") == Value::Null
            && c.sql(&primary, "show synchronous_standby_names").is_ok_and(|rows| rows == [""])
    });
    ledger.until_more(&cluster, STEADY);
    assert_nothing_lost("sync on", &ledger.finish(&cluster));
    assert!(observe::is_healthy(&cluster.seen()));
    LogGate::new().allow("*", CUT_OFF).check(&cluster);
}

/// What is lost without synchronous replication is said, in bytes; and it is what the clients miss.
#[test]
fn without_synchronous_replication_the_loss_that_is_told_is_the_one_there_is() {
    let mut cluster = Cluster::boot("async-loss");
    patch_config(&cluster, &json!({"synchronous_mode": "off"}));
    let old = cluster.expect_primary();
    cluster.until("commits wait for nobody", LIMIT, |c| {
        c.sql(&old, "show synchronous_standby_names").is_ok_and(|names| names == [""])
            && published(c, &old, "cluster/sync/leader").is_null()
    });
    let ledger = Ledger::start_with(&cluster, &old, WRITERS - 1);
    ledger.until_more(&cluster, STEADY);
    close_the_door(&cluster, &old);
    cluster.until("nobody receives", LIMIT, |c| {
        c.sql(&old, "select count(*) from pg_stat_replication").is_ok_and(|rows| rows == ["0"])
    });
    ledger.until_more(&cluster, STEADY * 4);
    // Each of those was acknowledged before this position was written, and after nobody received any more.
    let position = |c: &Cluster, node: &str| -> u64 {
        c.sql(node, "select pg_current_wal_insert_lsn() - '0/0'").expect("its position")[0].parse().expect("a number")
    };
    let promised = position(&cluster, &old);
    let from = now();
    cluster.kill_node(&old);
    cluster.until("another node writes", LIMIT, |_| ledger.successor(&old, from).is_some());
    let new = ledger.successor(&old, from).expect("it has just been there");
    // That nobody may log in was the last thing that was received.
    open_the_door(&cluster, &new);
    ledger.until_more(&cluster, STEADY);
    cluster.start_agent(&old);
    cluster.until_replica(&old);
    cluster.until_healthy();
    let report = ledger.finish(&cluster);
    let rows = u64::try_from(report.lost.len()).expect("few");

    let entries = || {
        let shown = rest::get(cluster.node(&new).rest, "/timeline", LIMIT).expect("an answer");
        serde_json::from_str::<Vec<Value>>(&shown.body).expect("a list")
    };
    let of_kind = |kind: &str| entries().into_iter().rev().find(|entry| entry["kind"] == kind).unwrap_or_default();
    cluster.until("its return is in the timeline", LIMIT, |_| of_kind("rejoin")["node"] == json!(old));
    let (failover, rejoin) = (of_kind("failover"), of_kind("rejoin"));
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{failover} {rejoin}"));
    let at_least = number(&failover["loss"]["at_least"]["bytes"]);
    let given_up = number(&rejoin["loss"]["given_up"]["bytes"]);
    let (ours, shared) = (number(&rejoin["position"]), number(&rejoin["reference"]));
    measured(&format!("async loss: {rows} rows lost; told: at least {at_least} bytes, then {given_up} bytes given up"));
    assert!(u64::try_from(STEADY * 4).expect("few") <= rows, "{rows} rows");
    assert_eq!(given_up, ours - shared);
    assert!(at_least <= given_up, "{failover} {rejoin}");
    // All that was promised is counted, and not much besides: what came while the node was being killed.
    assert!(shared < promised && promised <= ours, "{promised} {rejoin}");
    // An inserted row and its commit are 64 and 34 bytes of WAL; a page's first change and a checkpoint's records add some.
    assert!((90..1000).contains(&(given_up / rows)), "{given_up} bytes for {rows} rows");
    LogGate::new().allow("*", CUT_OFF).check(&cluster);
}
