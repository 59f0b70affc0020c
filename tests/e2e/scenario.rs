//! One function per kind of failure: harm a healthy cluster, watch, and leave a healthy cluster behind.
//!
//! ledger starts -> fault -> the condition that ends the outage -> repair -> healthy -> ledger judged.
//! Tests assert on the [`Outcome`]; `benches/failover.rs` runs the same functions and keeps the times.

use std::fmt;
use std::time::Duration;

use howdah::dev::rest;
use howdah::types::Mono;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::cluster::{Cluster, LIMIT, now};
use crate::ledger::Ledger;
use crate::report::{Overlap, Report, Window, measured};

/// Acks that followers must get after a fault before the outage counts as over.
const STEADY: usize = 50;

/// What a scenario came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Which scenario.
    pub name: &'static str,
    /// Primary before.
    pub old: String,
    /// Primary after.
    pub new: String,
    /// Longest time that a following client could not write.
    pub client_gap: Duration,
    /// Longest time that nobody could write anywhere.
    pub server_gap: Duration,
    /// From the fault to the first write that another node acknowledged.
    pub takeover: Option<Duration>,
    /// From the node's restart (or thaw) to its being a streaming replica.
    pub rejoin: Option<Duration>,
    /// Acks of the old primary in the time of the new one.
    pub overlap: Overlap,
    /// The judged ledger.
    pub report: Report,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, old, new, client_gap, server_gap, takeover, rejoin, overlap, report } = self;
        let Report { acks, failures: _, lost, duplicates, unconfirmed } = report;
        let Overlap { split, late, span } = overlap;
        write!(f, "{name}: {old} -> {new}, no writes for {client_gap:.2?} (client) {server_gap:.2?} (server)")?;
        if let Some(takeover) = takeover {
            write!(f, ", new primary writes after {takeover:.2?}")?;
        }
        if let Some(rejoin) = rejoin {
            write!(f, ", back as replica after {rejoin:.2?}")?;
        }
        write!(f, "; {} acks, {} lost {:?}", acks.len(), lost.len(), report.lost_by_writer())?;
        write!(f, ", {duplicates} duplicate, {unconfirmed} unconfirmed; split {split}, late {late} within {span:.2?}")
    }
}

/// A ledger that runs, and the moment of the fault.
struct Watch {
    ledger: Ledger,
    old: String,
    fault: Mono,
}

impl Watch {
    fn start(cluster: &Cluster) -> Self {
        cluster.until_healthy();
        let old = cluster.expect_primary();
        let ledger = Ledger::start(cluster);
        Self { ledger, old, fault: now() }
    }

    fn mark(&mut self) {
        self.fault = now();
    }

    /// Waits until another node than the old primary writes, and followers have found it.
    fn until_successor(&self, cluster: &Cluster) -> String {
        cluster.until("another node writes", LIMIT, |_| self.ledger.successor(&self.old, self.fault).is_some());
        self.ledger.until_more(cluster, STEADY);
        self.ledger.successor(&self.old, self.fault).expect("it has just been there")
    }

    fn finish(self, cluster: &Cluster, name: &'static str, rejoin: Option<Duration>) -> Outcome {
        cluster.until_healthy();
        self.ledger.until_more(cluster, STEADY);
        let Self { ledger, old, fault } = self;
        let end = now();
        let new = cluster.expect_primary();
        let report = ledger.finish(cluster);
        let takeover =
            if new == old { None } else { report.first_write(&new, fault).map(|written| written.since(fault)) };
        let window = Window { from: fault, to: end };
        let outcome = Outcome {
            name,
            client_gap: report.client_gap(window),
            server_gap: report.server_gap(window),
            takeover,
            rejoin,
            overlap: if new == old { Overlap::default() } else { report.overlap(&old, &new, window) },
            old,
            new,
            report,
        };
        measured(&outcome.to_string());
        outcome
    }
}

/// Starts the node's agent and waits until the node is a streaming replica.
fn bring_back(cluster: &mut Cluster, name: &str) -> Duration {
    let from = now();
    cluster.start_agent(name);
    cluster.until_replica(name);
    now().since(from)
}

/// One of several switchovers in a row.
#[derive(Debug, Clone)]
pub struct Round {
    /// Longest time that a following client could not write.
    pub client_gap: Duration,
    /// Longest time that nobody could write anywhere.
    pub server_gap: Duration,
    /// From the request to the first write that the new primary acknowledged.
    pub takeover: Option<Duration>,
    /// Acks of the old primary in the time of the new one.
    pub overlap: Overlap,
}

/// Planned switchovers, `count` in a row under one ledger.
pub fn switchovers(cluster: &Cluster, count: usize) -> (Vec<Round>, Report) {
    let watch = Watch::start(cluster);
    let mut windows = Vec::new();
    for _ in 0..count {
        cluster.until_healthy();
        let old = cluster.expect_primary();
        // In a circle, so that every node is stopped and promoted in turn.
        let names = cluster.names();
        let place = names.iter().position(|name| *name == old).expect("one of the cluster's nodes");
        let candidate = names[(place + 1) % names.len()].clone();
        let from = now();
        request_switchover(cluster, &old, &candidate);
        cluster.until(&format!("{candidate} is primary"), LIMIT, |c| c.primary().as_ref() == Some(&candidate));
        watch.ledger.until_more(cluster, STEADY);
        windows.push((old, candidate, Window { from, to: now() }));
    }
    cluster.until_healthy();
    let report = watch.ledger.finish(cluster);
    let judge = |(old, new, window): &(String, String, Window)| Round {
        client_gap: report.client_gap(*window),
        server_gap: report.server_gap(*window),
        takeover: report.first_write(new, window.from).map(|written| written.since(window.from)),
        overlap: report.overlap(old, new, *window),
    };
    let rounds: Vec<Round> = windows.iter().map(judge).collect();
    for (round, (old, new, _)) in rounds.iter().zip(&windows) {
        let Round { client_gap, server_gap, takeover, overlap } = round;
        measured(&format!(
            "switchover: {old} -> {new}, no writes for {client_gap:.2?} (client) {server_gap:.2?} (server), new primary \
             writes after {:.2?}, {overlap:?}",
            takeover.unwrap_or_default()
        ));
    }
    (rounds, report)
}

fn request_switchover(cluster: &Cluster, leader: &str, candidate: &str) {
    let body = json!({"leader": leader, "candidate": candidate});
    let answer = rest::post(cluster.node(candidate).rest, "/switchover", &body, LIMIT).expect("an answer");
    assert_eq!(answer.status, 200, "switchover from {leader} to {candidate}: {}\n{}", answer.body, cluster.diagnosis());
}

/// SIGKILL of the primary's postmaster; agent and guardian live. Restart in place or failover, as decided.
pub fn postmaster_kill(cluster: &Cluster) -> Outcome {
    let mut watch = Watch::start(cluster);
    let postmaster = cluster.postmaster(&watch.old).expect("a postmaster");
    watch.mark();
    assert!(postmaster.signal(Signal::KILL).expect("permitted"));
    cluster.until("followers write again", LIMIT, |_| watch.ledger.follower_acks(watch.fault) >= STEADY);
    watch.finish(cluster, "postmaster kill", None)
}

/// Somebody moves the data directory away under the running primary, which goes on in what it has open.
pub fn data_gone(cluster: &Cluster) -> Outcome {
    let mut watch = Watch::start(cluster);
    watch.mark();
    let data = &cluster.node(&watch.old).data;
    std::fs::rename(data, data.with_extension("taken")).expect("moved away");
    watch.until_successor(cluster);
    let from = now();
    cluster.until_replica(&watch.old);
    watch.finish(cluster, "data directory gone", Some(now().since(from)))
}

/// What happens to the killed node before it is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum History {
    /// Nothing.
    AsItWas,
    /// It gets WAL that its successor never saw.
    Diverged,
}

/// SIGKILL of agent, guardian and PostgreSQL of the primary's node, which comes back later.
pub fn node_kill(cluster: &mut Cluster, history: History) -> Outcome {
    let mut watch = Watch::start(cluster);
    watch.mark();
    cluster.kill_node(&watch.old);
    watch.until_successor(cluster);
    if history == History::Diverged {
        cluster.write_in_secret(&watch.old);
    }
    let rejoin = bring_back(cluster, &watch.old);
    watch.finish(cluster, "node kill", Some(rejoin))
}

/// SIGKILL of the primary's agent, restarted at once: inside its permit.
pub fn agent_kill_and_restart(cluster: &mut Cluster) -> Outcome {
    let mut watch = Watch::start(cluster);
    watch.mark();
    cluster.signal_agent(&watch.old, Signal::KILL);
    let old = watch.old.clone();
    cluster.start_agent(&old);
    cluster.until_healthy();
    // Longer than the permit that the dead agent had: the new one has renewed it.
    cluster.until("the permit of the killed agent has ended", LIMIT, |_| {
        now().since(watch.fault) > Duration::from_secs(8)
    });
    watch.finish(cluster, "agent kill, restarted", None)
}

/// SIGKILL of the primary's agent, not restarted: the guardian fences, another node takes over.
pub fn agent_kill(cluster: &mut Cluster) -> Outcome {
    let mut watch = Watch::start(cluster);
    watch.mark();
    cluster.signal_agent(&watch.old, Signal::KILL);
    watch.until_successor(cluster);
    cluster.until("the guardian has fenced", LIMIT, |c| !c.postgres_lives(&watch.old));
    let rejoin = bring_back(cluster, &watch.old);
    watch.finish(cluster, "agent kill", Some(rejoin))
}

/// SIGSTOP of the primary's agent alone, for at least `hold`: guardian and PostgreSQL run on.
pub fn agent_freeze(cluster: &mut Cluster, hold: Duration) -> Outcome {
    let mut watch = Watch::start(cluster);
    watch.mark();
    cluster.signal_agent(&watch.old, Signal::STOP);
    watch.until_successor(cluster);
    cluster.until("the guardian has fenced", LIMIT, |c| !c.postgres_lives(&watch.old));
    cluster.until("the freeze has lasted long enough", LIMIT + hold, |_| now().since(watch.fault) > hold);
    watch.ledger.until_more(cluster, STEADY * 4);
    let from = now();
    cluster.signal_agent(&watch.old, Signal::CONT);
    cluster.until_replica(&watch.old);
    watch.finish(cluster, "agent freeze", Some(now().since(from)))
}

/// SIGSTOP of every process of the primary's node; SIGCONT after the new primary writes, with writes
/// already waiting in the frozen node's sockets.
pub fn node_freeze(cluster: &Cluster) -> Outcome {
    let mut watch = Watch::start(cluster);
    let old = watch.old.clone();
    watch.ledger.arm(&old, 8);
    watch.mark();
    cluster.freeze_node(&old);
    watch.until_successor(cluster);
    watch.ledger.fire();
    let from = now();
    cluster.thaw_node(&old);
    cluster.until_replica(&old);
    watch.finish(cluster, "node freeze", Some(now().since(from)))
}

/// SIGKILL of every process of a node that is not the primary's, and its return.
pub fn replica_node_kill(cluster: &mut Cluster, name: &'static str, victim: &str) -> Outcome {
    let mut watch = Watch::start(cluster);
    assert_ne!(victim, watch.old, "the victim must not be the primary's node");
    watch.mark();
    cluster.kill_node(victim);
    watch.ledger.until_more(cluster, STEADY);
    cluster.until("the survivors agree on a Raft leader", LIMIT, |c| c.raft_leader().is_some_and(|l| l != victim));
    watch.ledger.until_more(cluster, STEADY * 4);
    let rejoin = bring_back(cluster, victim);
    watch.finish(cluster, name, Some(rejoin))
}

/// Both replicas' nodes gone: the primary must stop writing. One returns: service must return.
pub fn quorum_loss(cluster: &mut Cluster) -> Outcome {
    let mut watch = Watch::start(cluster);
    let gone = cluster.others(&watch.old);
    watch.mark();
    for name in &gone {
        cluster.kill_node(name);
    }
    let alone = now();
    cluster.until("the primary without a majority has stopped writing", LIMIT, |c| {
        let read_only = c.sql(&watch.old, "show transaction_read_only").is_ok_and(|rows| rows == ["on"]);
        c.primary().is_none() && (read_only || !c.postgres_lives(&watch.old))
    });
    let stopped = now();
    cluster.until("two seconds have passed", LIMIT, |_| now().since(stopped) > Duration::from_secs(2));
    assert_eq!(watch.ledger.acks_on(&watch.old, stopped), 0, "it went on writing\n{}", cluster.diagnosis());
    measured(&format!("quorum loss: the primary stopped after {:.2?}", stopped.since(alone)));
    cluster.until("it says that nobody is known to lead", LIMIT, |c| {
        let told =
            rest::get(c.node(&watch.old).rest, "/cluster", LIMIT).map(|answer| answer.json()).unwrap_or_default();
        let leads = |member: &Value| member["role"] == "leader";
        told["unconfirmed"]["last_leader"] == watch.old.as_str()
            && !told["members"].as_array().is_some_and(|members| members.iter().any(leads))
    });
    let from = now();
    cluster.start_agent(&gone[0]);
    cluster.until("service is back with two nodes of three", LIMIT, |_| watch.ledger.follower_acks(from) >= STEADY);
    measured(&format!("quorum loss: service was back {:.2?} after the second node was started", now().since(from)));
    cluster.start_agent(&gone[1]);
    watch.finish(cluster, "quorum loss", None)
}

/// SIGKILL of everything at once, as a power cut, and the start of all nodes.
pub fn power_cut(cluster: &mut Cluster) -> Outcome {
    let mut watch = Watch::start(cluster);
    watch.mark();
    cluster.kill_everything();
    let from = now();
    for name in cluster.names() {
        cluster.start_agent(&name);
    }
    cluster.until_healthy();
    let rejoin = now().since(from);
    watch.ledger.until_more(cluster, STEADY);
    watch.finish(cluster, "power cut", Some(rejoin))
}
