//! P3: once a majority of voters can talk and one promotable PostgreSQL exists, there is a primary within a bound.
//!
//! Judged after all faults have ended: first a primary that accepts writes, then everybody else streaming from it. Where
//! the cluster follows another: first a leader that streams from the primary outside.

use crate::clock::SEC;
use crate::model_postgres::{Proc, Receiver, Source};
use crate::outside::follows_outside;
use crate::world::World;

/// Until somebody accepts writes. The longest ways: a stop that takes a minute until it is forced, the pauses between
/// attempts, a recovery, a ttl or two.
const PRIMARY_WITHIN: u64 = 150 * SEC;
/// Until all others follow it.
const ORDER_WITHIN: u64 = 360 * SEC;
/// A person looks after so long, where disks were lost.
const FORCED_AFTER: u64 = 60 * SEC;
/// What may be missing where log comes from an archive: what is written between two looks.
const ARCHIVED_WITHIN: u64 = 8 << 20;
/// How long order must last.
const ORDER_LASTS: u64 = 15 * SEC;

impl World {
    /// The second phase of a run: everything is healed, and the cluster must come back by itself.
    pub fn must_come_back(&mut self) {
        let healed = self.now;
        let mut primary_at = None;
        let mut order_at: Option<u64> = None;
        while self.failure.is_none() {
            self.run_until(self.now + SEC);
            self.operator_obeys();
            if healed + FORCED_AFTER < self.now && primary_at.is_none() {
                self.operator_forces();
                self.operator_takes_the_demotion_back();
            }
            let primary = self.primary();
            if primary.is_some() {
                primary_at = primary_at.or(Some(self.now));
            }
            order_at = if self.in_order() { order_at.or(Some(self.now)) } else { None };
            if order_at.is_some_and(|at| ORDER_LASTS <= self.now - at) {
                break;
            }
            if primary_at.is_none() && healed + PRIMARY_WITHIN < self.now {
                let states = self.reasons();
                self.fail(
                    "P3",
                    0,
                    format!("nobody leads as it should {} s after the last fault: {states}", PRIMARY_WITHIN / SEC),
                );
            }
            if healed + ORDER_WITHIN < self.now {
                let states = self.reasons();
                self.fail(
                    "P3",
                    0,
                    format!("not everybody follows {} s after the last fault: {states}", ORDER_WITHIN / SEC),
                );
            }
        }
        self.check_everything_is_there();
    }

    fn primary(&self) -> Option<usize> {
        let leader = self.leader()?;
        let serves = if follows_outside(self.store.truth()) {
            let pg = &self.nodes[leader].pg;
            let streams = pg.receiver.as_ref().is_some_and(|receiver| receiver.from == Source::Outside);
            pg.up && streams && self.outside.as_ref().is_some_and(|outside| outside.writes)
        } else {
            self.acknowledges(leader)
        };
        serves.then_some(leader)
    }

    /// Whether everybody streams from the primary and shares its history.
    fn in_order(&mut self) -> bool {
        let Some(primary) = self.primary() else { return false };
        self.settle_all();
        (0..self.nodes.len()).filter(|node| *node != primary && !self.nodes[*node].standing.witness).all(|node| {
            let it = &self.nodes[node];
            let follows = self.streams_from(node, primary);
            it.pg.proc == Proc::Running && it.pg.up && it.pg.recovery && follows
        })
    }

    /// Whether `node` takes its log from an archive, and has nearly all of it.
    fn restores_enough(&self, node: usize, primary: usize) -> bool {
        let (Some(own), Some(theirs)) = (self.tip_of(Source::Member(node)), self.tip_of(Source::Member(primary)))
        else {
            return false;
        };
        let receives = self.nodes[node].pg.receiver.is_some();
        self.restores(node) && !receives && own.1 <= self.wal.shared(own, theirs) && theirs.1 < own.1 + ARCHIVED_WITHIN
    }

    /// Whether `node` has more than the member that it is told to follow, whose log comes from an archive: it streamed from
    /// somebody else before. PostgreSQL connects all the same, from the beginning of the segment, and hears nothing until
    /// the archive has more.
    fn is_ahead_of_an_archive(&self, node: usize, primary: usize) -> bool {
        let data = self.nodes[node].disk.data.as_ref();
        let Some(upstream @ Source::Member(member)) = data.and_then(|data| data.follow) else { return false };
        let tips = (self.tip_of(Source::Member(node)), self.tip_of(upstream), self.tip_of(Source::Member(primary)));
        let (Some(own), Some(theirs), Some(all)) = tips else { return false };
        self.restores_enough(member, primary)
            && self.wal.shared(own, theirs) == theirs.1
            && self.wal.shared(own, all) == own.1
    }

    /// Whether the log of `node` comes from `primary`, over however many others.
    fn streams_from(&self, node: usize, primary: usize) -> bool {
        let mut at = node;
        for _ in 0..self.nodes.len() {
            if self.restores_enough(at, primary) || self.is_ahead_of_an_archive(at, primary) {
                return true;
            }
            match self.nodes[at].pg.receiver.as_ref() {
                Some(Receiver { from: Source::Member(from), .. }) if *from == primary => return true,
                Some(Receiver { from: Source::Member(from), .. }) => at = *from,
                Some(Receiver { from: Source::Outside, .. }) | None => return false,
            }
        }
        false
    }

    fn reasons(&self) -> String {
        let all = self.nodes.iter().map(|node| {
            let decision = node.agent.decision.as_ref();
            let text = decision.map_or_else(|| "-".to_owned(), |d| format!("{}: {}", d.action.code(), d.reason));
            format!("{} {text}", node.name)
        });
        all.collect::<Vec<_>>().join(" | ")
    }

    /// In the end the primary holds every acknowledged commit that no failover has counted as lost.
    fn check_everything_is_there(&mut self) {
        let Some(primary) = self.primary().filter(|_| self.failure.is_none()) else { return };
        let tip = self.data(primary).tip;
        let missing = self.ledger.commits.iter().filter(|commit| !commit.lost && !self.wal.holds(tip, commit.end));
        let count = missing.count();
        if 0 < count {
            self.fail(
                "P2",
                primary,
                format!("{count} acknowledged commits are gone, and no failover has counted them"),
            );
        }
        for node in 0..self.nodes.len() {
            let own = self.nodes[node].disk.data.as_ref().map(|data| data.tip);
            if let Some(own) = own
                && self.wal.shared(own, tip) < own.1
            {
                self.fail("one history", node, "in the end it holds log that the primary does not".to_owned());
            }
        }
    }
}
