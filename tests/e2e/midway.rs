//! SIGKILL in the middle: of the creation of a cluster, a base backup, a promotion, a rewind, a switchover.
//!
//! Each round waits until the thing is seen under way (`gates.rs`), kills one of those who are at it, lets everything go on,
//! and waits until all nodes are healthy by themselves. A ledger runs through all rounds: nothing acknowledged is lost, and
//! nobody writes in another's time. A data directory that is replaced must be found moved aside.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use howdah::dev::process_table;
use howdah::dev::processes::{Kind, ProcessId};
use howdah::dev::rest;
use rustix::process::Signal;
use serde_json::json;

use crate::cluster::{Cluster, LIMIT, Options, now};
use crate::gates::{self, Found, Gate, Gates};
use crate::ledger::Ledger;
use crate::log_gate::LogGate;
use crate::report::{Overlap, Report, Window, measured};

/// Acks that followers must get before a change counts as survived.
const STEADY: usize = 50;
/// So often a round is played again whose program was through before it could be killed.
const ATTEMPTS: usize = 4;

/// What nodes say that lose a process, or somebody they talk to, in the middle of something.
const KILLED: [&str; 11] = [
    "connection closed during the handshake",
    "the node's lease has expired",
    "the guardian is gone, and PostgreSQL with it",
    "the guardian is gone, and postgres with it",
    "long task failed",
    "killing a tool that an earlier run left behind",
    "step failed",
    "moved the data directory aside",
    "old data directories use disk space",
    "PostgreSQL was killed",
    "postgres was killed",
];

/// Whom a kill hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    /// The agent, which is started again at once.
    Agent,
    /// The guardian; PostgreSQL goes with it.
    Guardian,
    /// The postmaster alone.
    Postmaster,
    /// The program of PostgreSQL that is at work.
    Program,
    /// Everything on the node, which is started again at once.
    Node,
}

fn is_soak() -> bool {
    std::env::var_os("SOAK").is_some()
}

/// The guardian itself, not those that it forks.
fn guardian(cluster: &Cluster, name: &str) -> ProcessId {
    let all: Vec<ProcessId> =
        cluster.processes(name).into_iter().filter(|p| p.kind == Kind::Guardian).map(|p| p.id).collect();
    let parent = |id: &ProcessId| process_table::row(id.pid).map_or(0, |row| row.parent);
    let first = all.iter().find(|id| all.iter().all(|other| other.pid != parent(id)));
    *first.unwrap_or_else(|| panic!("{name} has no guardian: {all:?}"))
}

/// Kills, and starts again what a person or systemd would. `program`: who stands at the gate.
fn strike(cluster: &mut Cluster, name: &str, victim: Victim, program: ProcessId) {
    measured(&format!("midway: SIGKILL to {victim:?} of {name}"));
    match victim {
        Victim::Agent => {
            cluster.signal_agent(name, Signal::KILL);
            cluster.start_agent(name);
        }
        Victim::Guardian => gates::kill(guardian(cluster, name)),
        Victim::Postmaster => gates::kill(cluster.postmaster(name).expect("a postmaster")),
        Victim::Program => gates::kill(program),
        Victim::Node => {
            cluster.kill_node(name);
            cluster.start_agent(name);
        }
    }
}

/// The data directory of that inode, at its place or wherever it was moved to.
fn place_of(cluster: &Cluster, name: &str, inode: u64) -> Option<PathBuf> {
    let entries = std::fs::read_dir(cluster.node(name).dir).expect("the node's directory").flatten();
    let mut dirs = entries.map(|entry| entry.path()).filter(|path| path.is_dir());
    dirs.find(|path| std::fs::metadata(path).is_ok_and(|meta| meta.ino() == inode))
}

/// A directory that others had relied on is never erased.
fn assert_kept(cluster: &Cluster, name: &str, inode: u64) {
    let place = place_of(cluster, name, inode);
    let kept = place.as_ref().is_some_and(|place| place.join("PG_VERSION").exists());
    assert!(kept, "the data directory of {name} is gone: {place:?}");
}

/// Whether files have come for a copy on this node.
fn is_copying(cluster: &Cluster, name: &str) -> bool {
    let entries = std::fs::read_dir(cluster.node(name).dir).expect("the node's directory").flatten();
    let mut dirs = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("data.new-"));
    dirs.any(|entry| std::fs::read_dir(entry.path().join("data")).is_ok_and(|files| files.count() != 0))
}

/// Waits until a base backup for `name` is under way, other than the one before.
fn copies(cluster: &Cluster, gates: &Gates, name: &str, before: Option<ProcessId>) -> ProcessId {
    let (_, id) = gates.stands(cluster, &[name.to_owned()], Gate::Copy, before);
    cluster.until(&format!("{name} copies"), LIMIT, |c| is_copying(c, name));
    id
}

/// What the ledger of all rounds must come to.
fn assert_unharmed(what: &str, report: &Report, changes: &[(String, String, Window)]) {
    let Report { acks, lost, duplicates, unconfirmed, failures: _ } = report;
    measured(&format!(
        "{what}: {} acks, {} lost {:?}, {duplicates} duplicate, {unconfirmed} unconfirmed",
        acks.len(),
        lost.len(),
        report.lost_by_writer()
    ));
    assert_eq!(*lost, [], "acknowledged writes are gone");
    assert_eq!(*duplicates, 0);
    for (old, new, window) in changes.iter().filter(|(old, new, _)| old != new) {
        let Overlap { split, late, span: _ } = report.overlap(old, new, *window);
        assert_eq!((split, late), (0, 0), "{old} acknowledged writes in the time of {new}");
    }
}

#[test]
fn a_cluster_whose_creation_and_copies_are_killed_midway_comes_to_be() {
    let mut cluster = Cluster::prepare("midway-creation", &Options::default());
    let gates = Gates::install(&cluster);
    let all = cluster.names();
    gates.close_all(Gate::Initdb);
    gates.close_all(Gate::PostBootstrap);
    gates.close_all(Gate::Copy);
    for name in &all {
        cluster.start_agent(name);
    }

    let mut victims = vec![Victim::Program, Victim::Agent];
    if is_soak() {
        victims.push(Victim::Node);
    }
    let mut standing = gates.stands(&cluster, &all, Gate::Initdb, None);
    for victim in victims {
        strike(&mut cluster, &standing.0, victim, standing.1);
        standing = gates.stands(&cluster, &all, Gate::Initdb, Some(standing.1));
    }
    gates.open_all(Gate::Initdb);

    // The database runs, and the cluster does not exist yet.
    let mut standing = gates.stands(&cluster, &all, Gate::PostBootstrap, None);
    let victims: &[Victim] = if is_soak() {
        &[Victim::Agent, Victim::Postmaster, Victim::Guardian, Victim::Node]
    } else {
        &[Victim::Agent, Victim::Node]
    };
    for victim in victims {
        assert!(cluster.postgres_lives(&standing.0), "its PostgreSQL runs");
        let inode = cluster.data_inode(&standing.0);
        strike(&mut cluster, &standing.0, *victim, standing.1);
        if matches!(victim, Victim::Postmaster | Victim::Guardian) {
            // A command that works on a server fails with it.
            gates::kill(standing.1);
        }
        let before = standing.clone();
        standing = gates.stands(&cluster, &all, Gate::PostBootstrap, Some(standing.1));
        assert_kept(&cluster, &before.0, inode);
        assert_ne!(cluster.data_inode(&standing.0), inode, "a creation that was cut short counts for nothing");
    }
    gates.open_all(Gate::PostBootstrap);
    let primary = standing.0;
    cluster.until("the first primary leads", LIMIT, |c| c.primary().as_ref() == Some(&primary));

    // Both others copy from it.
    let ledger = Ledger::start_on(&cluster, &primary);
    let others = cluster.others(&primary);
    let (first, second) = (&others[0], &others[1]);
    let before = copies(&cluster, &gates, first, None);
    strike(&mut cluster, first, Victim::Program, before);
    let again = copies(&cluster, &gates, first, Some(before));
    strike(&mut cluster, first, Victim::Guardian, again);
    let before = copies(&cluster, &gates, second, None);
    strike(&mut cluster, second, Victim::Agent, before);
    let mut again = copies(&cluster, &gates, second, Some(before));
    cluster.until("nothing of the killed agent's is left", LIMIT, |_| gates::is_gone(before));
    if is_soak() {
        strike(&mut cluster, second, Victim::Node, again);
        again = copies(&cluster, &gates, second, Some(again));
    }
    // The source: nobody else has the data.
    let (inode, from) = (cluster.data_inode(&primary), now());
    strike(&mut cluster, &primary, Victim::Node, again);
    cluster.until("the only node with data leads again", LIMIT, |_| STEADY < ledger.acks_on(&primary, from));
    assert_eq!(cluster.data_inode(&primary), inode);
    copies(&cluster, &gates, second, Some(again));
    gates.open_all(Gate::Copy);
    cluster.until_healthy();
    ledger.until_more(&cluster, STEADY);
    assert_unharmed("midway creation", &ledger.finish(&cluster), &[]);
    for node in cluster.layout.nodes() {
        let left = gates::at_work_on(&node.dir);
        assert_eq!(left, [], "{} has left somebody behind", node.name);
    }
    LogGate::new().allow_all("*", &KILLED).check(&cluster);
}

/// A change of the primary: from whom, to whom, and when.
type Change = (String, String, Window);

/// Kills the primary's node, strikes in the middle of its successor's promotion, and then in the middle of the rewind of the
/// old primary. Says whether the rewind was met.
fn promotion_and_rewind(
    cluster: &mut Cluster,
    gates: &Gates,
    ledger: &Ledger,
    promotion: (Gate, Victim),
    rewind: Victim,
) -> (Change, bool) {
    cluster.until_healthy();
    ledger.until_more(cluster, STEADY);
    let old = cluster.expect_primary();
    let others = cluster.others(&old);
    let (gate, victim) = promotion;
    gates.close_all(gate);
    let from = now();
    cluster.kill_node(&old);
    let (candidate, at) = gates.stands(cluster, &others, gate, None);
    assert_eq!(ledger.successor(&old, from), None, "somebody writes in the middle of a promotion");
    strike(cluster, &candidate, victim, at);
    gates.open_all(gate);
    cluster.until("another node writes", LIMIT, |_| ledger.successor(&old, from).is_some());
    ledger.until_more(cluster, STEADY);
    let new = ledger.successor(&old, from).expect("it has just been there");
    measured(&format!("midway: {victim:?} struck at {gate:?} of {candidate}: {old} -> {new}"));
    let met = rewind_killed(cluster, gates, &old, rewind);
    ((old, new, Window { from, to: now() }), met)
}

/// Brings a killed primary back, whose rewind is killed in the middle.
fn rewind_killed(cluster: &mut Cluster, gates: &Gates, old: &str, victim: Victim) -> bool {
    cluster.write_in_secret(old);
    let inode = cluster.data_inode(old);
    gates.close(old, Gate::Rewind);
    cluster.start_agent(old);
    let (_, found) = gates.wait(cluster, &[old.to_owned()], Gate::Rewind, None);
    let met = match found {
        // A label is its last deed but one: then it would be as good as done.
        Found::Held(id) if !cluster.node(old).data.join("backup_label").exists() => {
            strike(cluster, old, victim, id);
            cluster.until("nothing of the rewind is left", LIMIT, |_| gates::is_gone(id));
            true
        }
        Found::Held(_) | Found::Missed => false,
    };
    gates.open(old, Gate::Rewind);
    cluster.until_replica(old);
    cluster.until_healthy();
    assert_kept(cluster, old, inode);
    if met {
        assert_ne!(cluster.data_inode(old), inode, "data that was rewound by halves is used");
    }
    let secret = cluster.sql(old, "select to_regclass('secret_history') is null").expect("a readable replica");
    assert_eq!(secret, ["t"], "a write that no other node has seen is still there");
    met
}

/// Where a switchover is struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Switchover {
    /// The old primary's node, whose PostgreSQL is stopping.
    OldStops,
    /// The agent of the node that has taken over and asks before it promotes.
    CandidateAgent,
    /// The node whose PostgreSQL is in its promotion.
    CandidateNode,
}

fn switchover_killed(cluster: &mut Cluster, gates: &Gates, ledger: &Ledger, at: Switchover) -> Change {
    cluster.until_healthy();
    ledger.until_more(cluster, STEADY);
    let old = cluster.expect_primary();
    let others = cluster.others(&old);
    let (candidate, third) = (&others[0], &others[1]);
    let inode = cluster.data_inode(&old);
    let from = now();
    let asked = {
        let (rest, body) = (cluster.node(candidate).rest, json!({"leader": old, "candidate": candidate}));
        move || std::thread::spawn(move || rest::post(rest, "/switchover", &body, LIMIT))
    };
    let asking = match at {
        Switchover::OldStops => {
            // A server that stops waits for everybody who streams from it.
            let receiver = wal_receiver(cluster, third);
            assert!(receiver.signal(Signal::STOP).expect("permitted"));
            let asking = asked();
            cluster.until("the old primary is stopping", LIMIT, |c| is_stopping(c, &old));
            strike(cluster, &old, Victim::Node, receiver);
            // It may have ended with its connection.
            receiver.signal(Signal::CONT).expect("permitted");
            asking
        }
        Switchover::CandidateAgent | Switchover::CandidateNode => {
            let (gate, victim) = match at {
                Switchover::CandidateAgent => (Gate::PrePromote, Victim::Agent),
                Switchover::CandidateNode | Switchover::OldStops => (Gate::Promotion, Victim::Node),
            };
            gates.close(candidate, gate);
            let asking = asked();
            let (_, id) = gates.stands(cluster, std::slice::from_ref(candidate), gate, None);
            assert_eq!(ledger.successor(&old, from), None, "somebody writes in the middle of a promotion");
            strike(cluster, candidate, victim, id);
            gates.open(candidate, gate);
            asking
        }
    };
    let struck = now();
    cluster.until("somebody writes again", LIMIT, |_| STEADY <= ledger.follower_acks(struck));
    cluster.until_healthy();
    let answer = asking.join().expect("asking does not panic").map(|answer| (answer.status, answer.body));
    let new = cluster.expect_primary();
    measured(&format!("midway: {at:?}: {old} -> {new}, the switchover was answered {answer:?}"));
    assert_kept(cluster, &old, inode);
    (old, new, Window { from, to: now() })
}

/// The process that receives WAL on a standby.
fn wal_receiver(cluster: &Cluster, name: &str) -> ProcessId {
    let ours: Vec<ProcessId> = cluster.processes(name).into_iter().map(|process| process.id).collect();
    let is_receiver = |row: &process_table::Row| row.arguments.iter().any(|argument| argument.contains("walreceiver"));
    let mut rows = process_table::read().into_iter().filter(|row| ours.contains(&row.id));
    rows.find(is_receiver).unwrap_or_else(|| panic!("{name} receives nothing")).id
}

/// Whether the postmaster says of itself that it is stopping.
fn is_stopping(cluster: &Cluster, name: &str) -> bool {
    let text = std::fs::read_to_string(cluster.node(name).data.join("postmaster.pid")).unwrap_or_default();
    text.lines().nth(7).is_some_and(|state| state.trim() == "stopping")
}

#[test]
fn a_change_of_the_primary_that_is_killed_midway_loses_nothing() {
    let mut cluster = Cluster::prepare("midway-change", &Options::default());
    let gates = Gates::install(&cluster);
    for name in cluster.names() {
        cluster.start_agent(&name);
    }
    cluster.until_healthy();
    let ledger = Ledger::start(&cluster);
    let mut changes = Vec::new();

    let few = [((Gate::Promotion, Victim::Agent), Victim::Program), ((Gate::Promotion, Victim::Node), Victim::Agent)];
    let more = [
        ((Gate::Promotion, Victim::Guardian), Victim::Node),
        ((Gate::Promotion, Victim::Postmaster), Victim::Agent),
        ((Gate::PrePromote, Victim::Agent), Victim::Program),
        ((Gate::PrePromote, Victim::Guardian), Victim::Node),
        ((Gate::PrePromote, Victim::Postmaster), Victim::Program),
        ((Gate::PrePromote, Victim::Node), Victim::Agent),
    ];
    let rounds = few.iter().chain(more.iter().filter(|_| is_soak()));
    for (promotion, rewind) in rounds {
        let mut met = false;
        for _ in 0..ATTEMPTS {
            let (change, at_work) = promotion_and_rewind(&mut cluster, &gates, &ledger, *promotion, *rewind);
            changes.push(change);
            met = at_work;
            if met {
                break;
            }
        }
        assert!(met, "the rewind was through before it could be killed, {ATTEMPTS} times");
    }

    let few = [Switchover::OldStops, Switchover::CandidateAgent];
    let more = [Switchover::CandidateNode, Switchover::OldStops];
    for at in few.into_iter().chain(more.into_iter().filter(|_| is_soak())) {
        changes.push(switchover_killed(&mut cluster, &gates, &ledger, at));
    }

    ledger.until_more(&cluster, STEADY);
    assert_unharmed("midway change", &ledger.finish(&cluster), &changes);
    LogGate::new().allow_all("*", &KILLED).check(&cluster);
}
