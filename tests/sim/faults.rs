//! What goes wrong, and how it is mended: crashes, freezes, suspended machines, cut ways, full and slow disks.

use howdah::cluster::records::Initialize;
use howdah::types::SystemId;

use crate::clock::{MS, SEC};
use crate::model_postgres::{Data, Disk, Proc};
use crate::mutations::Mutation;
use crate::profiles::Theme;
use crate::quiet::Quiet;
use crate::world::{Event, World};

/// Longer than the lease of the runs in which nothing may be felt.
const LEASE: u64 = 6 * SEC;

/// The end of a fault.
#[derive(Debug, Clone, Copy)]
pub enum Mending {
    Agent(usize),
    Power(usize),
    Thaw(usize),
    Resume(usize),
    Net,
    Disks,
    Disk(usize),
    /// The server outside starts again.
    Outside,
    /// An operator's pause ends.
    Unpause,
}

impl World {
    /// Faults begin.
    pub fn danger(&mut self) {
        self.dangerous = true;
        let first = self.chance.below(self.profile.fault_every);
        self.after(first, Event::Fault);
        if 0 < self.profile.operator_every {
            let first = self.chance.below(self.profile.operator_every);
            self.after(first, Event::Operator);
        }
    }

    pub fn on_fault(&mut self) {
        if !self.dangerous {
            return;
        }
        // Where nothing may be felt, a lease passes between two faults: if the store loses its leader twice within one, the
        // primary may hear no majority for longer than its permit, and must end (seed 1795563856819).
        let soonest = if self.profile.theme == Theme::Anything { SEC / 2 } else { LEASE };
        let next = self.chance.between(soonest, 2 * self.profile.fault_every);
        // What ends hours of quiet seldom comes alone.
        let next = if self.profile.quiet != Quiet::No && self.chance.one_in(2) { next % (20 * SEC) } else { next };
        self.after(next, Event::Fault);
        self.stats.faults += 1;
        let node = self.chance.node(self.nodes.len());
        let lasts = self.chance.skewed(100 * MS, self.profile.fault_lasts);
        match self.profile.theme {
            Theme::Anything => self.any_fault(node, lasts),
            Theme::StoreLeaders => self.store_leader_fault(node),
            Theme::AgentRestarts => {
                if self.nodes.iter().all(|other| other.agent.alive) {
                    self.trace(node, || "fault: the agent is killed".to_owned());
                    self.agent_dies(node);
                    let back = self.chance.between(50 * MS, 2 * SEC);
                    self.after(back, Event::Mend(Mending::Agent(node)));
                }
            }
        }
        let busy = self.now + lasts + 6 * SEC;
        self.clients_write(busy);
    }

    /// The store's leader moves, or its process stands still for less than a lease.
    fn store_leader_fault(&mut self, node: usize) {
        if self.chance.one_in(2) && self.majority(node) {
            self.store_leads(node);
        } else if let Some(leader) = self.store.leader.filter(|leader| !self.acknowledges(*leader)) {
            self.trace(leader, || "fault: the store's leader is stopped".to_owned());
            self.freeze(leader, true, false, false);
            let lasts = self.chance.between(100 * MS, 2 * SEC);
            self.after(lasts, Event::Mend(Mending::Thaw(leader)));
        }
    }

    fn any_fault(&mut self, node: usize, lasts: u64) {
        self.disturbed(node);
        // The one who writes is the most rewarding victim.
        let writer = (0..self.nodes.len()).find(|other| self.acknowledges(*other));
        let node = if self.chance.one_in(2) { writer.unwrap_or(node) } else { node };
        let end = |mending| Event::Mend(mending);
        if self.chance.one_in(self.profile.lost_disks) {
            self.disk_is_lost(node, lasts);
            return;
        }
        if self.outside.is_some() && self.chance.one_in(8) {
            self.outside_fault(node, lasts);
            return;
        }
        let kind = if self.chance.one_in(self.profile.blackouts) { 17 } else { self.chance.below(18) };
        match kind {
            17 => self.many_lose_power(lasts),
            0 => self.agent_killed(node, lasts),
            1 => self.guardian_dies(node),
            2 => self.postmaster_crashes(node),
            3 => self.power_fails(node, lasts),
            4..=7 => {
                let (agent, guardian, pg) = *self.chance.pick(&[
                    (true, false, false),
                    (false, true, false),
                    (false, false, true),
                    (true, true, false),
                    (true, true, true),
                ]);
                self.trace(node, || format!("fault: stopped: agent {agent}, guardian {guardian}, postgres {pg}"));
                self.freeze(node, agent, guardian, pg);
                self.after(lasts, end(Mending::Thaw(node)));
            }
            8 => {
                self.trace(node, || "fault: the machine is suspended".to_owned());
                self.suspend(node);
                self.after(lasts, end(Mending::Resume(node)));
            }
            9 | 10 => self.isolate(node, lasts),
            11 => {
                let other = self.chance.node(self.nodes.len());
                self.cut(&[(node, other)]);
                self.after(lasts, end(Mending::Net));
            }
            12 => {
                self.trace(node, || "fault: the network is slow and loses messages".to_owned());
                self.net.slow = true;
                self.net.loses = *self.chance.pick(&[0, 4, 20]);
                self.after(lasts, end(Mending::Net));
            }
            13 => {
                self.slow_disks = true;
                self.after(lasts, end(Mending::Disks));
            }
            14 => {
                self.trace(node, || "fault: the disk is full".to_owned());
                self.nodes[node].disk.full = true;
                self.after(lasts, end(Mending::Disk(node)));
            }
            15 => {
                self.trace(node, || "fault: the data cannot be read".to_owned());
                self.nodes[node].disk.unreadable = true;
                self.after(lasts, end(Mending::Disk(node)));
            }
            _ => {
                if self.majority(node) {
                    self.store_leads(node);
                }
            }
        }
    }

    /// A crash between two steps of a plan. True if the agent is gone.
    pub fn crash_between_steps(&mut self, node: usize) -> bool {
        if !self.dangerous || !self.chance.one_in(self.profile.crash_between) {
            return false;
        }
        self.stats.crashes_between_steps += 1;
        self.disturbed(node);
        let lasts = self.chance.skewed(100 * MS, 10 * SEC);
        match self.chance.below(10) {
            0..=4 => self.agent_killed(node, lasts),
            5 => self.guardian_dies(node),
            6 => self.postmaster_crashes(node),
            7 => {
                self.isolate(node, lasts);
                return false;
            }
            _ => self.power_fails(node, lasts),
        }
        !self.nodes[node].agent.alive
    }

    fn agent_killed(&mut self, node: usize, lasts: u64) {
        if self.nodes[node].agent.alive {
            self.trace(node, || "fault: the agent is killed".to_owned());
            self.agent_dies(node);
            self.after(lasts, Event::Mend(Mending::Agent(node)));
        }
    }

    /// The agent's process ends, and with it the local replica of the store.
    pub fn agent_dies(&mut self, node: usize) {
        let agent = &mut self.nodes[node].agent;
        (agent.alive, agent.frozen) = (false, false);
        agent.epoch += 1;
        self.task_is_lost(node);
        if self.mutated(Mutation::PostgresEndsWithTheAgent) {
            self.guardian_dies(node);
        }
        self.store_reconsiders();
    }

    /// The agent ends in order; its guardian too, unless PostgreSQL goes on.
    pub fn agent_exits(&mut self, node: usize) {
        self.trace(node, || "agent: ends".to_owned());
        self.agent_dies(node);
        if self.nodes[node].pg.proc == Proc::Gone && self.nodes[node].guardian_runs() {
            self.guardian_dies(node);
        }
        let back = self.chance.between(SEC, 20 * SEC);
        self.after(back, Event::Mend(Mending::Agent(node)));
    }

    fn postmaster_crashes(&mut self, node: usize) {
        if self.nodes[node].pg.proc != Proc::Gone {
            self.trace(node, || "fault: the postmaster crashes".to_owned());
            self.pg_gone(node, true);
        }
    }

    fn power_fails(&mut self, node: usize, lasts: u64) {
        if !self.nodes[node].power {
            return;
        }
        self.trace(node, || "fault: the power fails".to_owned());
        self.guardian_dies(node);
        self.agent_dies(node);
        let it = &mut self.nodes[node];
        (it.power, it.suspended, it.pg.frozen) = (false, false, false);
        it.deferred.clear();
        self.settle_all();
        self.net_changed();
        self.store_reconsiders();
        self.after(lasts + SEC, Event::Mend(Mending::Power(node)));
    }

    /// The machine comes back with an empty disk, as an operator would replace it: without its data, without what the
    /// store had here, or without both. One after the other: who was replaced must have caught up before the next.
    fn disk_is_lost(&mut self, node: usize, lasts: u64) {
        self.settle_all();
        let again = self.watched.replaced.is_some_and(|earlier| !self.has_caught_up(earlier));
        let (data, store) = *self.chance.pick(&[(true, false), (false, true), (true, true)]);
        if !self.nodes[node].power || again || !self.others_have_data(node) {
            return;
        }
        self.trace(node, || format!("fault: the disk is lost, data {data}, store {store}"));
        self.watched.replaced = Some(node);
        self.power_fails(node, lasts);
        let it = &mut self.nodes[node];
        if store {
            // A new member takes the old one's place, and votes when it has everything.
            (it.applied, it.voter, it.ended) = (0, false, None);
        }
        if data {
            it.disk = Disk::default();
            self.note_lost_disk(node);
        }
        self.store_reconsiders();
    }

    /// Whether somebody else could lead on with what it has. Not who is a timeline behind: a primary that loses its disk
    /// within moments of its promotion leaves nobody whom the record lets lead, not even by force.
    fn others_have_data(&self, node: usize) -> bool {
        let record = self.store.truth();
        let cluster = match record.initialize.as_ref().map(|initialize| initialize.value) {
            Some(Initialize::Done(SystemId(cluster))) => cluster,
            Some(Initialize::Running) | None => return false,
        };
        let own = self.nodes[node].disk.data.as_ref().map_or(0, |data| self.wal.timeline(data.tip.0));
        let timeline = record.timeline().0.max(own);
        self.nodes.iter().enumerate().filter(|(other, _)| *other != node).any(|(_, other)| {
            let whole = |data: &&Data| {
                data.incomplete.is_none() && data.system == cluster && timeline <= self.wal.timeline(data.tip.0)
            };
            // Whoever is told to make a new copy moves its data aside, and has nothing to copy from then.
            let copies = other.agent.orders.is_busy() || other.agent.task.is_some();
            !copies && !other.standing.place.nofailover && other.disk.data.as_ref().filter(whole).is_some()
        })
    }

    /// Whether a node that was replaced has what the others have.
    pub fn has_caught_up(&self, node: usize) -> bool {
        let it = &self.nodes[node];
        let tip = |node: usize| self.nodes[node].disk.data.as_ref().map_or(0, |data| data.tip.1);
        let most = (0..self.nodes.len()).map(tip).max().unwrap_or(0);
        let whole = it.disk.data.as_ref().is_some_and(|data| data.incomplete.is_none() && data.tip.1 == most);
        it.voter && (it.standing.witness || whole)
    }

    /// More than one machine at once, all of them perhaps: a rack, or the house.
    fn many_lose_power(&mut self, lasts: u64) {
        let all = self.chance.one_in(2);
        for node in 0..self.nodes.len() {
            if all || self.chance.one_in(2) {
                self.disturbed(node);
                let lasts = self.chance.between(0, lasts);
                self.power_fails(node, lasts);
            }
        }
    }

    pub fn freeze(&mut self, node: usize, agent: bool, guardian: bool, pg: bool) {
        self.settle_all();
        let it = &mut self.nodes[node];
        it.agent.frozen |= agent && it.agent.alive;
        it.guardian.frozen |= guardian && it.guardian.alive;
        it.pg.frozen |= pg && it.pg.proc != Proc::Gone;
        if self.nodes[node].guardian.frozen {
            self.guardian_is_stopped(node);
        }
        self.net_changed();
        self.store_reconsiders();
    }

    fn suspend(&mut self, node: usize) {
        self.settle_all();
        self.nodes[node].suspended = true;
        self.guardian_is_stopped(node);
        self.net_changed();
        self.store_reconsiders();
    }

    /// A node is cut off: from everybody in both directions, or in one.
    fn isolate(&mut self, node: usize, lasts: u64) {
        let mut others: Vec<usize> = (0..self.nodes.len()).filter(|other| *other != node).collect();
        if self.outside.is_some() && self.chance.one_in(2) {
            others.push(self.way_outside());
        }
        let (inward, outward) = *self.chance.pick(&[(true, true), (true, true), (true, false), (false, true)]);
        let mut ways = Vec::new();
        for other in others {
            if inward {
                ways.push((other, node));
            }
            if outward {
                ways.push((node, other));
            }
        }
        self.cut(&ways);
        self.after(lasts, Event::Mend(Mending::Net));
    }

    /// The request has gone out; nothing comes in any more, least of all the answer.
    pub fn on_deaf(&mut self, node: usize) {
        if self.dangerous {
            self.disturbed(node);
            let ways: Vec<(usize, usize)> = (0..self.nodes.len()).map(|other| (other, node)).collect();
            self.cut(&ways);
            let lasts = self.chance.skewed(100 * MS, 10 * SEC);
            self.after(lasts, Event::Mend(Mending::Net));
        }
    }

    pub fn cut(&mut self, ways: &[(usize, usize)]) {
        self.trace(ways[0].0, || format!("fault: cut {ways:?}"));
        self.settle_all();
        for (from, to) in ways.iter().filter(|(from, to)| from != to) {
            self.net.cut(*from, *to);
            self.disturbed(*from);
            self.disturbed(*to);
        }
        self.net_changed();
        self.store_reconsiders();
    }

    pub fn on_mend(&mut self, mending: Mending) {
        match mending {
            Mending::Agent(node) => {
                if self.nodes[node].power && !self.nodes[node].agent.alive {
                    self.disturbed(node);
                    let back = self.chance.below(4);
                    let it = &mut self.nodes[node];
                    // What was applied but not marked so is applied again from the log.
                    it.applied = it.applied.saturating_sub(usize::try_from(back).unwrap());
                    self.agent_begins(node);
                }
            }
            Mending::Power(node) => {
                self.nodes[node].power = true;
                self.trace(node, || "the power is back".to_owned());
                self.on_mend(Mending::Agent(node));
            }
            Mending::Thaw(node) | Mending::Resume(node) => self.thaw(node),
            Mending::Net => {
                self.trace(0, || "the network is whole".to_owned());
                self.settle_all();
                self.net.heal();
                for node in 0..self.nodes.len() {
                    self.disturbed(node);
                }
                self.net_changed();
                self.store_reconsiders();
                self.store_sends_news();
            }
            Mending::Disks => self.slow_disks = false,
            Mending::Disk(node) => {
                (self.nodes[node].disk.full, self.nodes[node].disk.unreadable) = (false, false);
            }
            Mending::Outside => self.outside_is_back(),
            Mending::Unpause => self.operator_pauses(false),
        }
    }

    fn thaw(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        if !(it.suspended || it.agent.frozen || it.guardian.frozen || it.pg.frozen) {
            return;
        }
        it.suspended = false;
        (it.agent.frozen, it.guardian.frozen, it.pg.frozen) = (false, false, false);
        let deferred = std::mem::take(&mut it.deferred);
        self.trace(node, || "goes on".to_owned());
        self.disturbed(node);
        // The kernel's timers first, then the guardian: its first look is at the clock.
        let (kernel, rest): (Vec<Event>, Vec<Event>) =
            deferred.into_iter().partition(|event| matches!(event, Event::DeadMan { .. }));
        for event in kernel {
            if let Event::DeadMan { node, epoch } = event {
                self.on_dead_man(node, epoch);
            }
        }
        if self.nodes[node].guardian.alive {
            self.guardian_guards(node);
        }
        for event in rest {
            self.after(0, event);
        }
        self.store_postpones(node);
        self.net_changed();
        self.store_reconsiders();
        self.store_sends_news();
    }

    /// All faults end.
    pub fn heal(&mut self) {
        self.trace(0, || "HEAL: no more faults".to_owned());
        self.dangerous = false;
        self.slow_disks = false;
        for node in 0..self.nodes.len() {
            self.on_mend(Mending::Disk(node));
            self.thaw(node);
            self.on_mend(Mending::Power(node));
            self.nodes[node].agent.shutting_down &= self.nodes[node].agent.alive;
        }
        self.on_mend(Mending::Net);
        self.clients_write(self.now + 30 * SEC);
    }
}
