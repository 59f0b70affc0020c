//! A primary outside the cluster, and the people who move the lead between it and the cluster.
//!
//! ```text
//! it was there first     it writes; the cluster is created as a copy of it, and follows
//! the cluster was first  it is a standby of the cluster
//! demoted                standby_cluster is put in; once the cluster's leader follows, and everything that it wrote is
//!                        outside, it is promoted outside
//! promoted               outside it stops; standby_cluster is taken out; it becomes a standby of the cluster again
//! ```
//! It is one server without agents: people look after it. They promote it only when they see that nobody writes here and
//! nothing is missing there; a demotion that does not come to that is taken back some day.
//!
//! Deliberately absent: two sites that use one timeline number (no record is shared between them), its slots, an archive.

use howdah::cluster::ClusterRecord;
use howdah::ha::{Action, Reason};
use serde_json::{Value, json};

use crate::clock::{MS, SEC};
use crate::faults::Mending;
use crate::model_postgres::{Data, Proc, Source};
use crate::quiet::Quiet;
use crate::wal::Tip;
use crate::world::{Event, World};

/// Who was there first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    Outside,
    Cluster,
}

/// The server outside.
#[derive(Debug)]
pub struct Outside {
    pub system: u64,
    /// The end of its log; none before it has been copied from the cluster.
    pub tip: Option<Tip>,
    /// It accepts writes; else it is a standby.
    pub writes: bool,
    pub up: bool,
    /// Counts its starts and promotions.
    pub epoch: u32,
    /// The revision of the configuration from which somebody has asked to take `standby_cluster` out: that may still be
    /// done.
    leaving: i64,
    /// Nothing is to be done there until clients write again.
    pub asleep: bool,
}

/// Whether the cluster is configured to follow somebody.
pub fn follows_outside(record: &ClusterRecord) -> bool {
    record.config.as_ref().is_some_and(|config| config.value.get("standby_cluster").is_some())
}

/// What the settings say of it.
pub fn address() -> Value {
    json!({ "host": "outside", "port": 5432 })
}

impl Outside {
    fn new() -> Self {
        Self { system: 0, tip: None, writes: false, up: true, epoch: 0, leaving: 0, asleep: false }
    }

    /// A copy of its files.
    pub fn copied(&self, timeline: u32) -> Option<Data> {
        let tip = self.tip?;
        Some(Data {
            system: self.system,
            tip,
            control: howdah::postgres::ControlState::InProduction,
            checkpoint: tip.1.saturating_sub(200),
            checkpoint_timeline: timeline,
            min_recovery_end: 0,
            signal: !self.writes,
            known: timeline,
            incomplete: None,
            torn: false,
            follow: None,
            names: String::new(),
            redo: tip.1.saturating_sub(200),
        })
    }
}

impl World {
    /// The server outside, if this world has one.
    pub fn outside_begins(&mut self) {
        let Some(first) = self.profile.outside else { return };
        let mut outside = Outside::new();
        let writer = self.nodes.len();
        if first == First::Outside {
            // It has been promoted before.
            let mut tip = None;
            for timeline in 1..=1 + u32::try_from(self.chance.below(3)).unwrap() {
                let branch = self.wal.branch(timeline, tip, writer);
                tip = Some(self.wal.append((branch, tip.map_or(0, |(_, at)| at)), 1000, writer));
            }
            (outside.tip, outside.writes) = (tip, true);
            outside.system = crate::tasks::DATABASE + self.created;
            self.created += 1;
        }
        self.outside = Some(outside);
        self.after(SEC, Event::Outside);
    }

    /// Its place among the ways of the network: after all nodes.
    pub fn way_outside(&self) -> usize {
        self.nodes.len()
    }

    /// It writes, or receives, and people look at it.
    pub fn on_outside(&mut self) {
        if self.outside_rests() {
            if let Some(outside) = &mut self.outside {
                outside.asleep = true;
            }
            return;
        }
        let busy = self.now < self.ledger.busy_until;
        let next = if busy { self.chance.between(20 * MS, 400 * MS) } else { self.chance.between(SEC, 5 * SEC) };
        self.after(next, Event::Outside);
        let Some(outside) = &self.outside else { return };
        if !outside.up {
            return;
        }
        if outside.writes {
            self.outside_writes();
            return;
        }
        self.outside_receives();
        if self.outside_has_everything() {
            self.outside_is_promoted();
        }
    }

    /// All is as it should be, and nobody writes: as the clients of the cluster, its own sleep too.
    fn outside_rests(&mut self) -> bool {
        if !self.ledger.asleep || self.profile.quiet == Quiet::No {
            return false;
        }
        let follows = follows_outside(self.store.truth());
        let leader = self.leader();
        let theirs = leader.and_then(|leader| self.nodes[leader].disk.data.as_ref()).map(|data| data.tip);
        self.outside.as_ref().is_some_and(|it| it.up && it.writes == follows && it.tip == theirs)
    }

    pub fn leader(&self) -> Option<usize> {
        let leader = self.store.truth().leader.as_ref()?;
        self.nodes.iter().position(|node| node.name == leader.value)
    }

    fn outside_writes(&mut self) {
        let bytes = self.chance.between(60, 3000);
        let writer = self.nodes.len();
        let Some(outside) = &mut self.outside else { return };
        let Some(tip) = outside.tip else { return };
        let tip = self.wal.append(tip, bytes, writer);
        outside.tip = Some(tip);
        self.outside_sends(tip);
    }

    /// As a standby it takes what the cluster's leader has; what does not fit is copied anew by people.
    fn outside_receives(&mut self) {
        let Some(leader) = self.leader() else { return };
        let it = &self.nodes[leader];
        let serves = it.power && !it.suspended && !it.pg.frozen && it.pg.up && it.pg.proc == Proc::Running;
        if !serves || it.pg.replaying.is_some() || !self.net.talk(leader, self.way_outside()) {
            return;
        }
        self.settle(leader);
        let (theirs, system) = (self.data(leader).tip, self.data(leader).system);
        let Some(outside) = &self.outside else { return };
        if outside.tip == Some(theirs) {
            return;
        }
        let fits = outside.tip.is_some_and(|own| own.1 <= self.wal.shared(own, theirs));
        // A copy takes a while.
        if fits || self.chance.one_in(10) {
            let Some(outside) = &mut self.outside else { return };
            (outside.tip, outside.system) = (Some(theirs), system);
            if fits {
                self.outside_sends(theirs);
            } else {
                self.outside_restarts();
            }
        }
    }

    fn outside_sends(&mut self, tip: Tip) {
        let epoch = self.epoch_of(Source::Outside);
        for node in 0..self.nodes.len() {
            let connected = self.nodes[node].pg.receiver.as_ref();
            if connected.is_some_and(|receiver| receiver.from == Source::Outside && receiver.from_epoch == epoch)
                && self.talks(node, Source::Outside)
                && self.flows(Source::Member(node))
            {
                let at = self.now + self.net.delay(&mut self.chance);
                let at = self.pg_arrives(Source::Outside, node, tip, at);
                self.pg_sends(node, tip, at);
            }
        }
    }

    /// Whoever streams from it is cut off for a moment.
    fn outside_restarts(&mut self) {
        if let Some(outside) = &mut self.outside {
            outside.epoch += 1;
        }
        self.disconnect_from(Source::Outside);
    }

    /// What people look at before they promote it: the cluster follows, its leader says so, and has nothing that is not
    /// here.
    fn outside_has_everything(&mut self) -> bool {
        let record = self.store.truth().clone();
        let (Some(outside), Some(config), Some(leader)) = (&self.outside, &record.config, self.leader()) else {
            return false;
        };
        if !follows_outside(&record) || config.mod_revision <= outside.leaving {
            return false;
        }
        let tip = outside.tip;
        let agent = &self.nodes[leader].agent;
        let says = agent.decision.as_ref().is_some_and(|decision| {
            decision.action == Action::Hold && matches!(decision.reason, Reason::StandbyLeader { .. })
        });
        let seen = agent.settings_revision == config.mod_revision;
        let more = self.somebody_has_more(leader);
        let runs =
            self.nodes[leader].agent_runs() && self.nodes[leader].power && self.net.talk(leader, self.way_outside());
        says && seen
            && runs
            && !more
            && self.sql(leader).is_ok_and(|status| status.in_recovery)
            && tip == Some(self.data(leader).tip)
    }

    /// A member has log of this timeline that its leader does not have: it could lead next, and never follow.
    fn somebody_has_more(&self, leader: usize) -> bool {
        let Some(tip) = self.tip_of(Source::Member(leader)) else { return false };
        let timeline = self.wal.timeline(tip.0);
        self.nodes
            .iter()
            .filter_map(|node| node.disk.data.as_ref())
            .any(|data| timeline <= self.wal.timeline(data.tip.0) && self.wal.shared(tip, data.tip) < data.tip.1)
    }

    /// A demotion that has come to nothing is taken back.
    pub fn operator_takes_the_demotion_back(&mut self) {
        if follows_outside(self.store.truth()) && self.outside.as_ref().is_some_and(|outside| !outside.writes) {
            self.operator_has_set("standby_cluster", Value::Null);
        }
    }

    fn outside_is_promoted(&mut self) {
        let timeline = self.wal.unused();
        let writer = self.nodes.len();
        let Some(outside) = &mut self.outside else { return };
        let Some(tip) = outside.tip else { return };
        let branch = self.wal.branch(timeline, Some(tip), writer);
        (outside.tip, outside.writes) = (Some((branch, tip.1)), true);
        self.trace_text(format!("outside: promoted at {:x} to timeline {timeline}", tip.1));
        self.note_promotion_outside(tip);
        self.outside_restarts();
        self.pg_reconnect_all();
    }

    /// People change their mind, at the worst moment.
    pub fn on_regret(&mut self) {
        if self.dangerous {
            self.operator_moves_the_lead();
        }
    }

    /// People move the lead: to the outside, or to the cluster.
    pub fn operator_moves_the_lead(&mut self) {
        if self.chance.one_in(3) {
            let soon = self.chance.skewed(10 * MS, 10 * SEC);
            self.after(soon, Event::Regret);
        }
        let record = self.store.truth().clone();
        let Some(config) = &record.config else { return };
        let reached = self.leader().and_then(|leader| self.tip_of(Source::Member(leader)));
        let Some(outside) = &mut self.outside else { return };
        if !follows_outside(&record) || config.mod_revision <= outside.leaving && self.chance.one_in(2) {
            self.operator_sets("standby_cluster", address());
            return;
        }
        // It stops first, when the cluster has reached its timeline. Two sites have no record in common: from an earlier
        // one both would use the same number, and nobody could tell their logs apart.
        let numbers = (reached.map(|tip| self.wal.timeline(tip.0)), outside.tip.map(|tip| self.wal.timeline(tip.0)));
        if numbers.0 != numbers.1 {
            return;
        }
        (outside.writes, outside.leaving) = (false, config.mod_revision);
        self.trace_text("outside: stops to become a standby".to_owned());
        self.operator_sets("standby_cluster", Value::Null);
    }

    /// When all faults are over: whatever people have begun they bring to its end.
    pub fn operator_settles_the_lead(&mut self) {
        let record = self.store.truth().clone();
        let (Some(outside), Some(config)) = (&mut self.outside, &record.config) else { return };
        outside.up = true;
        if follows_outside(&record) && config.mod_revision <= outside.leaving {
            let to = if self.chance.one_in(2) { address() } else { Value::Null };
            self.operator_has_set("standby_cluster", to);
        }
        self.pg_reconnect_all();
    }

    pub fn outside_fault(&mut self, node: usize, lasts: u64) {
        match self.chance.below(3) {
            0 => {
                self.trace_text("fault: the server outside is down".to_owned());
                if let Some(outside) = &mut self.outside {
                    outside.up = false;
                }
                self.settle_all();
                self.outside_restarts();
                self.after(lasts, Event::Mend(Mending::Outside));
            }
            1 => {
                self.cut(&[(node, self.way_outside()), (self.way_outside(), node)]);
                self.after(lasts, Event::Mend(Mending::Net));
            }
            _ => {
                let ways: Vec<(usize, usize)> = (0..self.nodes.len()).map(|node| (node, self.way_outside())).collect();
                self.cut(&ways);
                self.after(lasts, Event::Mend(Mending::Net));
            }
        }
    }

    pub fn outside_is_back(&mut self) {
        if let Some(outside) = &mut self.outside {
            outside.up = true;
            self.pg_reconnect_all();
        }
    }
}
