//! Several faults in a row under one ledger: harm, watch, heal, wait until all is well; judge at the end.
//!
//! ```text
//! moves  another node must write; the old primary must come back by itself once it can
//! stays  for longer than any lease lives the leadership must not change, and writes must go on
//! ```
//! A boot is dear, so a cluster serves many rounds. What was acknowledged in all of them must be there in the end, and
//! in no round may the old primary have acknowledged anything after the new one had.

use std::time::Duration;

use howdah::types::Mono;

use crate::cluster::{Cluster, LIMIT, now};
use crate::ledger::Ledger;
use crate::observe;
use crate::report::{Overlap, Report, Window, measured};

use super::HOLD;

/// One direct writer per node, and so many that go where the primary is found: eight that write.
const FOLLOWERS: usize = 7;
/// Acks that followers must get before something counts as survived.
pub const STEADY: usize = 50;

/// What a fault did, to be judged with the whole ledger.
struct Round {
    what: String,
    old: String,
    new: String,
    window: Window,
}

/// A cluster under a ledger.
pub struct Rounds {
    pub cluster: Cluster,
    pub ledger: Ledger,
    title: &'static str,
    done: Vec<Round>,
}

impl Rounds {
    /// Takes over a healthy cluster and lets eight writers loose on it.
    pub fn begin(title: &'static str, cluster: Cluster) -> Self {
        let ledger = Ledger::start_with(&cluster, &cluster.expect_primary(), FOLLOWERS);
        Self { cluster, ledger, title, done: Vec::new() }
    }

    /// The primary of a cluster in which all is well, with writers at work.
    pub fn settle(&self) -> String {
        self.cluster.until_healthy();
        self.ledger.until_more(&self.cluster, STEADY);
        self.cluster.expect_primary()
    }

    /// A fault that must move the leadership. `heal` ends it, once the new primary is at work.
    pub fn moves(&mut self, what: &str, harm: impl FnOnce(&mut Cluster, &str), heal: impl FnOnce(&mut Cluster, &str)) {
        let old = self.settle();
        let from = now();
        harm(&mut self.cluster, &old);
        let Self { cluster, ledger, .. } = self;
        cluster.until(&format!("{what}: another node writes"), LIMIT, |_| ledger.successor(&old, from).is_some());
        let takeover = now().since(from);
        ledger.until_more(cluster, STEADY);
        let new = ledger.successor(&old, from).expect("it has just been there");
        let healed = now();
        heal(&mut self.cluster, &old);
        self.cluster.until(&format!("{what}: {old} is back"), LIMIT, |c| observe::is_streaming(&c.seen(), &old));
        let rejoin = now().since(healed);
        self.cluster.until_healthy();
        measured(&format!(
            "{}: {what}: {old} -> {new}, new primary writes after {takeover:.2?}, old one back {rejoin:.2?} after the end",
            self.title
        ));
        self.note(what, old, new, from);
    }

    /// A fault that must leave the leadership where it is, for as long as `watch` watches.
    pub fn stays(
        &mut self,
        what: &str,
        harm: impl FnOnce(&mut Cluster, &str),
        watch: impl FnOnce(&Self),
        heal: impl FnOnce(&mut Cluster, &str),
    ) {
        let old = self.settle();
        let seen = self.cluster.seen();
        let led = (observe::leader_term(&seen), observe::timeline(&seen));
        let from = now();
        harm(&mut self.cluster, &old);
        watch(self);
        let healed = now();
        heal(&mut self.cluster, &old);
        self.cluster.until_healthy();
        let back = now().since(healed);
        let cluster = &self.cluster;
        assert_eq!(cluster.primary().as_ref(), Some(&old), "{what}: failover for nothing\n{}", cluster.diagnosis());
        let seen = cluster.seen();
        let after = (observe::leader_term(&seen), observe::timeline(&seen));
        assert_eq!(after, led, "{what}: the leader key or PostgreSQL was lost and came back\n{}", cluster.diagnosis());
        let failed = self.ledger.failures_on(&old, from);
        measured(&format!(
            "{}: {what}: {old} stays, {failed} writes failed, all well {back:.2?} after the end",
            self.title
        ));
        self.note(what, old.clone(), old, from);
    }

    /// Watches for longer than any lease lives, and until writers are acknowledged at the end of it.
    pub fn hold(&self) {
        let from = now();
        self.cluster.until("no lease is older than the fault", LIMIT, |_| now().since(from) > HOLD);
        self.ledger.until_more(&self.cluster, STEADY);
    }

    fn note(&mut self, what: &str, old: String, new: String, from: Mono) {
        self.ledger.until_more(&self.cluster, STEADY);
        self.done.push(Round { what: what.to_owned(), old, new, window: Window { from, to: now() } });
    }

    /// Judges all rounds; the cluster goes on.
    pub fn judge(self) -> Cluster {
        let Self { cluster, ledger, title, done } = self;
        cluster.until_healthy();
        ledger.until_more(&cluster, STEADY);
        let report = ledger.finish(&cluster);
        for Round { what, old, new, window } in &done {
            let (clients, servers) = (report.client_gap(*window), report.server_gap(*window));
            measured(&format!("{title}: {what}: no writes for {clients:.2?} (client) {servers:.2?} (server)"));
            if old != new {
                let Overlap { split, late, span } = report.overlap(old, new, *window);
                assert_eq!((split, late), (0, 0), "{what}: {old} acknowledged in the time of {new}, for {span:?}");
            }
        }
        let Report { acks, lost, duplicates, unconfirmed, failures } = &report;
        measured(&format!(
            "{title}: {} rounds, {} acks, {} lost {:?}, {duplicates} duplicate, {unconfirmed} unconfirmed, {} failed",
            done.len(),
            acks.len(),
            lost.len(),
            report.lost_by_writer(),
            failures.len()
        ));
        assert_eq!(*lost, [], "acknowledged writes are gone");
        assert_eq!(*duplicates, 0);
        cluster
    }
}

/// Waits until `span` has passed since `from`.
pub fn until_passed(cluster: &Cluster, from: Mono, span: Duration) {
    cluster.until(&format!("{span:?} have passed"), LIMIT + span, |_| now().since(from) > span);
}
