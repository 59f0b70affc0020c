//! People: switchovers, failovers by hand, pauses, other settings, nodes stopped for maintenance, at any moment.

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
        self.ledger.busy_until = self.ledger.busy_until.max(self.now + 8 * SEC);
        let node = self.chance.node(self.nodes.len());
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
                if self.nodes[node].agent_runs() {
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
        let key = self.store.space.key(&howdah::cluster::Key::Failover);
        let revision = self.store.state.get(&key).map_or(0, |pair| pair.mod_revision);
        self.trace(node, || format!("operator: from {leader:?} to {member:?}"));
        let request = FailoverRecord { leader, member, scheduled_at: None };
        let txn = self.writes.request(&request, revision);
        self.store_asks(node, Asker::Operator, Ask::Write(txn), 30 * SEC);
    }

    pub fn operator_pauses(&mut self, pause: bool) {
        self.operator_sets("pause", json!(pause));
    }

    fn operator_sets(&mut self, key: &str, value: Value) {
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
        settings.as_object_mut()?.insert(key.to_owned(), value);
        Some(self.writes.config(&settings, config.mod_revision))
    }

    /// What a person would do when all is over: hands on again, no limits that keep everybody from leading.
    pub fn operator_relents(&mut self) {
        for (key, value) in [("pause", json!(false)), ("maximum_lag_on_failover", json!(1 << 20))] {
            if let Some(txn) = self.setting(key, value) {
                self.store_applies(&Command::Txn(txn));
            }
        }
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
