//! P2, synchronous: no acknowledged commit is lost, whatever happens, unless a person forces a failover.
//!
//! Where people change the mode, the promise is given to a commit that a standby has confirmed, or that the record leaves
//! to its primary alone, and ends when the configuration says off: what is lost after that was given up.
//!
//! A cluster that shall follow another stops its primary in order: what that one has acknowledged is outside when people
//! see that nothing is missing there and promote it. If another has taken the lead here meanwhile, what it lacks is lost
//! as in asynchronous mode: the promise ends when the configuration says whom to follow.
//!
//! P2, asynchronous: what is lost in a failover is what no reachable standby had received; a planned change loses nothing.
//!
//! Lost is an acknowledged commit that the log of the new primary does not hold. After a hand-over to a proven successor
//! there is none. In a race by comparison there may be some, but no standby that could be asked and promoted, and to
//! which nothing has happened for a while, has more than the winner.

use howdah::cluster::ClusterRecord;

use crate::clock::SEC;
use crate::model_postgres::Proc;
use crate::outside::follows_outside;
use crate::wal::Tip;
use crate::world::World;

fn is_off(record: &ClusterRecord) -> bool {
    let mode = record.config.as_ref().and_then(|config| config.value.get("synchronous_mode"));
    mode.is_none_or(|mode| mode == "off") || follows_outside(record)
}

impl World {
    /// What is promised for a commit that `node` acknowledges now.
    pub fn promise(&self, node: usize, confirmed: bool) -> Option<u32> {
        if !self.promises_end() {
            return (self.profile.synchronous != "off").then_some(0);
        }
        let record = self.store.truth();
        let alone = record
            .sync
            .as_ref()
            .is_some_and(|sync| sync.leader.as_ref() == Some(&self.nodes[node].name) && sync.sync_standby.is_empty());
        (!is_off(record) && (confirmed || alone)).then_some(self.watched.promises)
    }

    /// Whether there is a configuration that ends what was promised.
    fn promises_end(&self) -> bool {
        self.profile.modes_change || self.outside.is_some()
    }

    /// The record has changed: the configuration may have ended the promise.
    pub fn note_mode(&mut self, before: &ClusterRecord) {
        if self.promises_end() && !is_off(before) && is_off(self.store.truth()) {
            self.watched.promises += 1;
        }
    }

    /// The disk of `node` is gone for good. What nobody else has is lost with it, unless the record says that somebody has.
    pub fn note_lost_disk(&mut self, node: usize) {
        let record = self.store.truth();
        let proven = record
            .sync
            .as_ref()
            .is_some_and(|sync| sync.leader.as_ref() == Some(&self.nodes[node].name) && !sync.sync_standby.is_empty());
        if proven {
            return;
        }
        let tips: Vec<Tip> = self.nodes.iter().filter_map(|node| Some(node.disk.data.as_ref()?.tip)).collect();
        for commit in self.ledger.commits.iter_mut().filter(|commit| !commit.lost) {
            if !tips.iter().any(|tip| self.wal.holds(*tip, commit.end)) {
                commit.lost = true;
                self.stats.lost += 1;
            }
        }
    }

    /// `node` has been promoted at `tip`.
    pub fn note_promotion(&mut self, node: usize, tip: Tip) {
        self.stats.promotions += 1;
        let term = self.store.truth().term().map(|term| term.0);
        let (mut newly, mut promised) = (0, 0);
        for at in 0..self.ledger.commits.len() {
            let commit = self.ledger.commits[at];
            if !commit.lost && !self.wal.holds(tip, commit.end) {
                self.ledger.commits[at].lost = true;
                newly += 1;
                promised += u64::from(commit.promise == Some(self.watched.promises));
            }
        }
        self.stats.lost += newly;
        self.trace(node, || format!("postgres: promoted at {:x}, {newly} acknowledged commits are not there", tip.1));
        let forced = self.watched.forced.take().map(|(term, _)| term);
        if 0 < promised && term != forced {
            let mode = if self.promises_end() { "on or quorum" } else { self.profile.synchronous };
            self.fail("P2", node, format!("{promised} commits that were acknowledged in mode {mode} are lost"));
        }
        if 0 < newly && term.is_some() && term == self.watched.planned {
            self.fail("P2", node, format!("a planned change lost {newly} acknowledged commits"));
        }
        if term.is_some() && term == self.watched.compared {
            self.check_nobody_had_more(node, tip);
        }
        self.check_tags(node);
        self.check_undisturbed(node, "promoted");
    }

    /// The server outside has been promoted at `tip`. What is not there now is lost.
    pub fn note_promotion_outside(&mut self, tip: Tip) {
        let missing: Vec<usize> = (0..self.ledger.commits.len())
            .filter(|at| !self.ledger.commits[*at].lost && !self.wal.holds(tip, self.ledger.commits[*at].end))
            .collect();
        let (count, leader) = (missing.len(), self.leader().unwrap_or(0));
        for at in missing {
            self.ledger.commits[at].lost = true;
        }
        self.stats.lost += count as u64;
        let in_order = self.store.truth().term().map(|term| term.0) == self.watched.wrote_in;
        if 0 < count && in_order {
            self.fail("P2", leader, format!("{count} acknowledged commits are lost by a demotion in order"));
        }
    }

    fn check_nobody_had_more(&mut self, node: usize, tip: Tip) {
        let quiet = |world: &World, at: usize| world.watched.disturbed[at] + 10 * SEC < world.now;
        // On a network that loses or delays messages a member may be silent in the moment of the race (seed
        // 1795564271114): asynchronous replication promises no more than to ask.
        if !quiet(self, node) || !self.net.answers() {
            return;
        }
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            let there = &self.nodes[other];
            let sound =
                there.power && !there.suspended && there.agent_runs() && there.guardian_runs() && !there.pg.frozen;
            let standby = there.pg.proc == Proc::Running && there.pg.up && there.pg.recovery;
            // A former primary whose lease has ended is no member until it has another (seed 6000583).
            let asked = self.watched.asked.contains(&there.name);
            let may = asked && there.agent.candidate && self.net.talk(node, other);
            let Some(data) = &there.disk.data else { continue };
            let same = self.wal.timeline(data.tip.0) == self.wal.timeline(tip.0);
            let still = there.pg.moved_at + 5 * SEC < self.now && there.pg.replaying.is_none();
            if sound && standby && may && same && still && quiet(self, other) && tip.1 < data.tip.1 {
                let why =
                    format!("promoted at {:x} although {} can be asked and has {:x}", tip.1, there.name, data.tip.1);
                self.fail("P2", node, why);
                return;
            }
        }
    }
}
