//! People: switchovers, failovers by hand, pauses, other settings, nodes stopped for maintenance, at any moment.

use howdah::agent::orders::Reinitialize;
use howdah::cluster::records::FailoverRecord;
use howdah::ha::Reason;
use howdah::kv::command::Command;
use serde_json::{Value, json};

use crate::clock::SEC;
use crate::faults::Mending;
use crate::model_postgres::Proc;
use crate::model_store::{Ask, Asker};
use crate::world::{Event, World};

impl World {
    pub fn on_operator(&mut self) {
        if !self.dangerous {
            return;
        }
        let next = self.chance.between(SEC, 2 * self.profile.operator_every);
        self.after(next, Event::Operator);
        self.stats.operations += 1;
        self.clients_write(self.now + 8 * SEC);
        let node = self.chance.node(self.nodes.len());
        if self.chance.one_in(self.profile.orders) {
            self.operator_orders(node);
            return;
        }
        if self.outside.is_some() && self.chance.one_in(3) {
            self.operator_moves_the_lead();
            return;
        }
        if self.profile.modes_change && self.chance.one_in(4) {
            self.operator_changes_mode();
            return;
        }
        match self.chance.below(12) {
            0..=5 => self.operator_switches(node),
            6 => {
                self.operator_pauses(true);
                let lasts = self.chance.between(SEC, 30 * SEC);
                self.after(lasts, Event::Mend(Mending::Unpause));
            }
            7 => {
                let ttl = *self.chance.pick(&[4, 5, 8]);
                self.operator_sets("ttl", json!(ttl));
            }
            8 => {
                let limit = *self.chance.pick(&[0, 5, 300]);
                self.operator_sets("primary_start_timeout", json!(limit));
            }
            9 => {
                let limit = *self.chance.pick(&[0, 10_000, 1 << 20]);
                self.operator_sets("maximum_lag_on_failover", json!(limit));
            }
            _ => {
                if self.nodes[node].agent_runs() && !self.nodes[node].standing.witness {
                    self.trace(node, || "operator: stops the node".to_owned());
                    self.disturbed(node);
                    self.nodes[node].agent.shutting_down = true;
                    self.wake(node);
                }
            }
        }
    }

    /// A switchover, or a failover that names no leader.
    fn operator_switches(&mut self, node: usize) {
        if !self.nodes[node].agent_runs() {
            return;
        }
        let record = self.nodes[node].record(&self.store.entries).clone();
        let leader = record.leader.as_ref().map(|leader| leader.value.clone()).filter(|_| !self.chance.one_in(4));
        let to = self.chance.node(self.nodes.len());
        let member = (leader.is_none() || self.chance.one_in(2)).then(|| self.name(to));
        let revision = self.request_revision();
        self.trace(node, || format!("operator: from {leader:?} to {member:?}"));
        let request = FailoverRecord { leader, member, scheduled_at: None };
        let txn = self.writes.request(&request, revision);
        self.store_asks(node, Asker::Operator, Ask::Write(txn), 30 * SEC);
    }

    fn request_revision(&self) -> i64 {
        let key = self.store.space.key(&howdah::cluster::Key::Failover);
        self.store.state.get(&key).map_or(0, |pair| pair.mod_revision)
    }

    /// A restart or a new copy, asked of one node.
    fn operator_orders(&mut self, node: usize) {
        if !self.nodes[node].agent_runs() || self.nodes[node].standing.witness {
            return;
        }
        // Nobody gives away data while another's are lost.
        let careful = self.watched.replaced.is_some_and(|replaced| !self.has_caught_up(replaced));
        let restart = self.chance.one_in(2) || careful;
        let (force, from_leader) = (self.chance.one_in(2), self.chance.one_in(3));
        let orders = &self.nodes[node].agent.orders;
        let taken = match restart {
            true => orders.restart(None).is_ok(),
            false => orders.reinitialize(Reinitialize { force, from_leader }).is_ok(),
        };
        if taken {
            self.trace(node, || if restart { "operator: restart" } else { "operator: a new copy" }.to_owned());
            self.disturbed(node);
            self.wake(node);
        }
    }

    /// Other rules of who must confirm.
    fn operator_changes_mode(&mut self) {
        match self.chance.below(5) {
            0 => {
                let strict = self.chance.one_in(2);
                self.operator_sets("synchronous_mode_strict", json!(strict));
            }
            1 => {
                let count = self.chance.between(1, 3);
                self.operator_sets("synchronous_node_count", json!(count));
            }
            _ => {
                let mode = *self.chance.pick(&["off", "on", "quorum"]);
                self.operator_sets("synchronous_mode", json!(mode));
            }
        }
    }

    pub fn operator_pauses(&mut self, pause: bool) {
        self.operator_sets("pause", json!(pause));
    }

    /// A null takes it out.
    pub fn operator_sets(&mut self, key: &str, value: Value) {
        let Some(txn) = self.setting(key, value) else { return };
        let node = self.chance.node(self.nodes.len());
        if self.nodes[node].agent_runs() {
            self.trace(node, || format!("operator: sets {key}"));
            self.store_asks(node, Asker::Operator, Ask::Write(txn), 30 * SEC);
        }
    }

    fn setting(&mut self, key: &str, value: Value) -> Option<howdah::kv::command::TxnRequest> {
        let config = self.store.truth().config.clone()?;
        let mut settings = config.value;
        let keys = settings.as_object_mut()?;
        match value {
            Value::Null => drop(keys.remove(key)),
            value => drop(keys.insert(key.to_owned(), value)),
        }
        Some(self.writes.config(&settings, config.mod_revision))
    }

    /// What a person would do when all is over: hands on again, no limits that keep everybody from leading.
    pub fn operator_relents(&mut self) {
        for (key, value) in [("pause", json!(false)), ("maximum_lag_on_failover", json!(1 << 20))] {
            self.operator_has_set(key, value);
        }
        self.operator_settles_the_lead();
    }

    /// As [`World::operator_sets`], and it has come to pass.
    pub fn operator_has_set(&mut self, key: &str, value: Value) {
        if let Some(txn) = self.setting(key, value) {
            self.store_applies(&Command::Txn(txn));
        }
    }

    /// Whoever was proven to have everything may have lost it with its disk. The others say whom they wait for, and a
    /// person decides for the one that has most.
    pub fn operator_forces(&mut self) {
        let record = self.store.truth();
        if self.watched.replaced.is_none() || record.leader.is_some() {
            return;
        }
        let timeline = record.timeline().0;
        let able = |node: &usize| {
            let it = &self.nodes[*node];
            let data = it.disk.data.as_ref().filter(|data| timeline <= self.wal.timeline(data.tip.0));
            !it.standing.place.nofailover && it.agent.candidate && data.is_some()
        };
        let has =
            |node: &usize| self.nodes[*node].disk.data.as_ref().map(|data| (self.wal.timeline(data.tip.0), data.tip.1));
        let Some(best) = (0..self.nodes.len()).filter(able).max_by_key(has) else { return };
        let request = FailoverRecord { leader: None, member: Some(self.name(best)), scheduled_at: None };
        if record.failover.as_ref().is_some_and(|asked| asked.value == request) {
            return;
        }
        self.trace(best, || "operator: this one leads, whatever it lacks".to_owned());
        let revision = self.request_revision();
        let txn = self.writes.request(&request, revision);
        self.store_applies(&Command::Txn(txn));
    }

    /// A creation that lost its lease at the last moment leaves a database of its own. The node says what to do
    /// (`wrong_system_id`), and a person does it.
    pub fn operator_obeys(&mut self) {
        for node in 0..self.nodes.len() {
            let it = &self.nodes[node];
            let told = it.agent.decision.as_ref().is_some_and(|decision| {
                matches!(decision.reason, Reason::WrongSystemId { .. }) && it.pg.proc == Proc::Gone
            });
            if told {
                self.trace(node, || "operator: moves the directory away".to_owned());
                let disk = &mut self.nodes[node].disk;
                disk.aside.extend(disk.data.take());
            }
        }
    }
}
