//! The promises, one test each. Names are what a user would say.
//!
//! Clusters of `howdah dev` replicate with `synchronous_mode: quorum`, so that no failover loses an acknowledged write.

use std::time::Duration;

use crate::cluster::Cluster;
use crate::log_gate::LogGate;
use crate::observe;
use crate::report::{Overlap, Window, measured};
use crate::scenario::{self, History, Outcome};

/// A frozen agent is held this long by `make soak`; a test holds it until the new primary is steady.
fn freeze_span() -> Duration {
    if std::env::var_os("SOAK").is_some() { Duration::from_secs(60) } else { Duration::ZERO }
}

/// What a node says that was frozen past its lease and goes on.
const THAWED: [&str; 3] = [
    "the node's lease has expired",
    "the guardian is gone, and PostgreSQL with it",
    "the guardian is gone, and postgres with it",
];

/// Any node may see a peer vanish in the middle of introducing itself.
const CUT_OFF: &str = "connection closed during the handshake";

fn assert_nothing_lost(outcome: &Outcome) {
    assert_eq!(outcome.report.lost, [], "acknowledged writes are gone: {outcome}");
    assert_eq!(outcome.report.duplicates, 0, "{outcome}");
}

fn assert_never_two_writers(outcome: &Outcome) {
    let Overlap { split, late, span: _ } = outcome.overlap;
    assert_eq!((split, late), (0, 0), "the old primary acknowledged writes in the new one's time: {outcome}");
}

fn assert_undisturbed(outcome: &Outcome) {
    let Outcome { old, new, report, .. } = outcome;
    assert_eq!(old, new, "PostgreSQL moved: {outcome}");
    let first = report.acks.first().expect("there are acks").received;
    let last = report.acks.last().expect("there are acks").received;
    let failures = report.failures_on(old, Window { from: first, to: last });
    assert!(failures.is_empty(), "writes on {old} failed: {failures:?}");
    assert_nothing_lost(outcome);
}

#[test]
fn ten_planned_switchovers_lose_nothing() {
    let cluster = Cluster::boot("switchover");
    let (rounds, report) = scenario::switchovers(&cluster, 10);
    assert_eq!(rounds.len(), 10);
    for round in &rounds {
        assert_eq!((round.overlap.split, round.overlap.late), (0, 0), "two primaries at a time: {round:?}");
    }
    assert_eq!(report.lost, [], "a planned switchover lost acknowledged writes");
    assert_eq!(report.duplicates, 0);
    LogGate::new().check(&cluster);
}

#[test]
fn a_killed_postmaster_is_replaced() {
    let cluster = Cluster::boot("postmaster-kill");
    let outcome = scenario::postmaster_kill(&cluster);
    assert_never_two_writers(&outcome);
    assert_nothing_lost(&outcome);
    LogGate::new().check(&cluster);
}

#[test]
fn a_primary_whose_data_directory_is_gone_is_succeeded_and_copied_anew() {
    let cluster = Cluster::boot("data-gone");
    let outcome = scenario::data_gone(&cluster);
    assert_ne!(outcome.new, outcome.old);
    assert_never_two_writers(&outcome);
    assert_nothing_lost(&outcome);
    LogGate::new().allow("*", CUT_OFF).check(&cluster);
}

#[test]
fn a_killed_node_is_succeeded_and_returns_as_a_replica() {
    let mut cluster = Cluster::boot("node-kill");
    cluster.until_raft_leader_elsewhere();
    let outcome = scenario::node_kill(&mut cluster, History::AsItWas);
    assert_ne!(outcome.new, outcome.old);
    assert_never_two_writers(&outcome);
    assert_nothing_lost(&outcome);
    LogGate::new().allow("*", CUT_OFF).check(&cluster);
}

#[test]
fn a_killed_node_whose_history_diverged_is_rewound() {
    let mut cluster = Cluster::boot("rewind");
    let old = cluster.expect_primary();
    let inode = cluster.data_inode(&old);
    let outcome = scenario::node_kill(&mut cluster, History::Diverged);
    assert_ne!(outcome.new, outcome.old);
    assert_never_two_writers(&outcome);
    assert_eq!(cluster.data_inode(&old), inode, "the directory was replaced where a rewind would do");
    let secret = cluster.sql(&old, "select to_regclass('secret_history') is null").expect("a readable replica");
    assert_eq!(secret, ["t"], "a write that no other node has seen is still there");
    assert_nothing_lost(&outcome);
    LogGate::new().allow("*", CUT_OFF).check(&cluster);
}

#[test]
fn an_agent_restarted_inside_its_permit_disturbs_nobody() {
    let mut cluster = Cluster::boot("agent-restart");
    let primary = cluster.expect_primary();
    let postmaster = cluster.postmaster(&primary).expect("a postmaster");
    let timeline = observe::timeline(&cluster.seen());
    let outcome = scenario::agent_kill_and_restart(&mut cluster);
    assert_undisturbed(&outcome);
    assert_eq!(cluster.postmaster(&primary), Some(postmaster), "PostgreSQL was restarted");
    assert_eq!(observe::timeline(&cluster.seen()), timeline);
    LogGate::new().allow("*", CUT_OFF).check(&cluster);
}

#[test]
fn an_agent_killed_for_good_is_fenced_by_its_guardian() {
    let mut cluster = Cluster::boot("agent-kill");
    let outcome = scenario::agent_kill(&mut cluster);
    assert_ne!(outcome.new, outcome.old);
    assert_never_two_writers(&outcome);
    LogGate::new().allow_all(&outcome.old, &THAWED).allow("*", CUT_OFF).check(&cluster);
}

#[test]
fn a_frozen_agent_never_makes_two_writers() {
    let mut cluster = Cluster::boot("agent-freeze");
    let outcome = scenario::agent_freeze(&mut cluster, freeze_span());
    assert_ne!(outcome.new, outcome.old);
    assert_never_two_writers(&outcome);
    LogGate::new().allow_all(&outcome.old, &THAWED).allow("*", CUT_OFF).check(&cluster);
}

#[test]
fn a_thawed_node_is_fenced_before_it_serves() {
    let cluster = Cluster::boot("node-freeze");
    let outcome = scenario::node_freeze(&cluster);
    assert_ne!(outcome.new, outcome.old);
    // A backend that is woken together with its guardian may still answer what a standby had confirmed before: these
    // are counted, and bounded by what waited. No standby confirms anything to it any more.
    assert_nothing_lost(&outcome);
    let Overlap { split, late, span } = outcome.overlap;
    measured(&format!("node freeze: {split} split and {late} late acks within {span:.2?} of the new primary's first"));
    let waiting = 8 + 1;
    assert!(split + late <= waiting, "the thawed node served: {outcome}");
    LogGate::new().allow_all(&outcome.old, &THAWED).allow("*", CUT_OFF).check(&cluster);
}

#[test]
fn losing_the_raft_leader_or_a_follower_disturbs_no_write() {
    let mut cluster = Cluster::boot("raft-kill");
    cluster.until_raft_leader_elsewhere();
    let primary = cluster.expect_primary();
    let timeline = observe::timeline(&cluster.seen());
    let leader = cluster.raft_leader().expect("a Raft leader");
    let outcome = scenario::replica_node_kill(&mut cluster, "raft leader kill", &leader);
    assert_undisturbed(&outcome);
    cluster.until_raft_leader_elsewhere();
    let leader = cluster.raft_leader().expect("a Raft leader");
    let follower = cluster.others(&primary).into_iter().find(|name| *name != leader).expect("three nodes");
    let outcome = scenario::replica_node_kill(&mut cluster, "raft follower kill", &follower);
    assert_undisturbed(&outcome);
    assert_eq!(observe::timeline(&cluster.seen()), timeline, "PostgreSQL was promoted for nothing");
    LogGate::new().allow("*", CUT_OFF).check(&cluster);
}

#[test]
fn without_a_majority_nobody_writes_and_with_one_service_returns() {
    let mut cluster = Cluster::boot("quorum-loss");
    let outcome = scenario::quorum_loss(&mut cluster);
    assert_eq!(outcome.report.duplicates, 0);
    assert_never_two_writers(&outcome);
    LogGate::new().allow("*", CUT_OFF).check(&cluster);
}

#[test]
fn after_a_power_cut_every_acknowledged_write_is_there() {
    let mut cluster = Cluster::boot("power-cut");
    let outcome = scenario::power_cut(&mut cluster);
    assert_nothing_lost(&outcome);
    LogGate::new().allow("*", CUT_OFF).check(&cluster);
}
