//! SIGSTOP of one part of a node at a time, and SIGCONT: what stands still must neither keep the cluster from going on nor
//! make two writers. The agent alone and the primary's whole node are in `stories.rs`.

use std::time::Duration;

use howdah::dev::processes::Kind;
use rustix::process::Signal;

use crate::cluster::{Cluster, LIMIT, now};
use crate::ledger::Ledger;
use crate::log_gate::LogGate;
use crate::observe;
use crate::report::{Overlap, Window, measured};

/// Acks that followers must get before a change counts as survived.
const STEADY: usize = 50;
/// Longer than a lease of the default settings.
const PAST_THE_LEASE: Duration = Duration::from_secs(6);

#[test]
fn a_frozen_postmaster_guardian_or_raft_leader_makes_no_two_writers() {
    let cluster = Cluster::boot("freezes");
    let ledger = Ledger::start(&cluster);

    // The store's leader, with everything on its node: nobody may notice.
    cluster.until_raft_leader_elsewhere();
    let (primary, timeline) = (cluster.expect_primary(), observe::timeline(&cluster.seen()));
    let leader = cluster.raft_leader().expect("a Raft leader");
    let from = now();
    cluster.freeze_node(&leader);
    cluster.until("the others agree on another Raft leader", LIMIT, |c| c.raft_leader().is_some_and(|l| l != leader));
    cluster.until("a lease has passed", LIMIT, |_| PAST_THE_LEASE < now().since(from));
    cluster.thaw_node(&leader);
    cluster.until_healthy();
    ledger.until_more(&cluster, STEADY);
    assert_eq!((cluster.expect_primary(), observe::timeline(&cluster.seen())), (primary.clone(), timeline));
    let felt = ledger.failures_on(&primary, from);
    assert_eq!(felt, 0, "writes failed while the Raft leader's node stood still");

    // The postmaster alone: its backends go on, and nobody new comes in. No reason to move anything.
    let postmaster = cluster.postmaster(&primary).expect("a postmaster");
    let from = now();
    assert!(postmaster.signal(Signal::STOP).expect("permitted"));
    cluster.until("a lease has passed", LIMIT, |_| PAST_THE_LEASE < now().since(from));
    let (acks, moved) = (ledger.acks_on(&primary, from), ledger.successor(&primary, from));
    assert!(postmaster.signal(Signal::CONT).expect("permitted"));
    measured(&format!("freezes: postmaster: {acks} writes went on meanwhile, successor {moved:?}"));
    cluster.until_healthy();
    ledger.until_more(&cluster, STEADY);
    assert_eq!(moved, None, "open sessions could write, and were taken away");
    assert!(STEADY < acks, "open sessions go on: {acks}");
    assert_eq!((cluster.postmaster(&primary), observe::timeline(&cluster.seen())), (Some(postmaster), timeline));

    // The guardian alone: the kernel ends it with the permit, and PostgreSQL with it. Its node goes on if it is the first.
    let keepers = cluster.processes(&primary).into_iter().filter(|process| process.kind == Kind::Guardian);
    let keepers: Vec<_> = keepers.map(|process| process.id).collect();
    let from = now();
    for keeper in &keepers {
        assert!(keeper.signal(Signal::STOP).expect("permitted"));
    }
    cluster.until("the kernel has ended the old PostgreSQL", LIMIT, |_| !postmaster.is_alive());
    let ended = now();
    cluster.until("somebody writes again", LIMIT, |_| STEADY <= ledger.follower_acks(ended));
    for keeper in &keepers {
        // Gone, as a rule; one that lives must not do any harm now.
        keeper.signal(Signal::CONT).expect("permitted");
    }
    cluster.until_healthy();
    ledger.until_more(&cluster, STEADY);
    let new = cluster.expect_primary();
    let window = Window { from, to: now() };
    let report = ledger.finish(&cluster);
    measured(&format!(
        "freezes: guardian: {primary} -> {new}, no writes for {:.2?}; {} acks, {} lost",
        report.server_gap(window),
        report.acks.len(),
        report.lost.len()
    ));
    assert_eq!((report.lost.len(), report.duplicates), (0, 0));
    if new != primary {
        let Overlap { split, late, span: _ } = report.overlap(&primary, &new, window);
        assert_eq!((split, late), (0, 0), "{primary} acknowledged writes in the time of {new}");
    }
    let woken = [
        "the node's lease has expired",
        "the guardian is gone, and PostgreSQL with it",
        "the guardian is gone, and postgres with it",
        "step failed",
    ];
    LogGate::new()
        .allow("*", "connection closed during the handshake")
        .allow_all(&leader, &woken)
        .allow_all(&primary, &woken)
        // Whoever asks a postmaster that stands still for a session waits in vain: every so often that is its own agent.
        .allow(&primary, "again at the next tick")
        .check(&cluster);
}
