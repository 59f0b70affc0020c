//! P1: at no time do two nodes acknowledge writes under the same or overlapping permits.
//!
//! An acknowledgement is wrong as soon as the leader key is another node's, even if that one does not write yet, and
//! when another node has become writable later. A term belongs to one node for ever. No plan starts or promotes a
//! primary without a permit that holds, of the very term that the record shows.
//!
//! While the server outside accepts writes nobody here does, and nobody who has read that the cluster follows it is told to.

use std::rc::Rc;

use howdah::cluster::ClusterRecord;
use howdah::ha::{Decision, PgStep, Reason, Step};

use crate::clock::SEC;
use crate::outside::follows_outside;
use crate::world::World;

impl World {
    pub fn became_writable(&mut self, node: usize) {
        self.watched.writer = Some(node);
        self.watched.wrote_in = self.store.truth().term().map(|term| term.0);
    }

    pub fn check_acknowledgement(&mut self, node: usize) {
        if self.outside.as_ref().is_some_and(|outside| outside.writes) {
            self.fail("P1", node, "a write is acknowledged while the primary outside accepts writes".to_owned());
            return;
        }
        if let Some(leader) = &self.store.truth().leader
            && leader.value != self.nodes[node].name
        {
            let why =
                format!("a write is acknowledged while {} leads in term {}", leader.value, leader.create_revision);
            self.fail("P1", node, why);
            return;
        }
        if let Some(writer) = self.watched.writer.filter(|writer| *writer != node) {
            let why = format!("a write is acknowledged after {} has become writable", self.nodes[writer].name);
            self.fail("P1", node, why);
        }
    }

    pub fn check_plan(&mut self, node: usize, decision: &Decision, steps: &[Step]) {
        self.check_pause(node, decision, steps);
        let now = self.nodes[node].clock.at(self.now);
        for step in steps {
            let Step::Pg(PgStep::Promote { permit, .. } | PgStep::StartPrimary { permit }) = step else { continue };
            if self.nodes[node].agent.settings.standby_cluster.is_some() {
                self.fail("P1", node, "told to lead in a cluster that follows another".to_owned());
            }
            let owner = *self.watched.terms.entry(permit.term.0).or_insert(node);
            if owner != node {
                let why = format!("told to lead in term {}, which is {}'s", permit.term, self.nodes[owner].name);
                self.fail("P1", node, why);
            }
            if !permit.holds_at(now) {
                self.fail("P1", node, format!("told to lead under a permit of term {} that is over", permit.term));
            }
            if self.nodes[node].agent.view.record.any().is_none_or(|record| record.term() != Some(permit.term)) {
                self.fail("P1", node, format!("told to lead in term {}, which the record does not show", permit.term));
            }
        }
    }

    /// The record has changed; `before` is what it was.
    pub fn record_changed(&mut self, before: &Rc<ClusterRecord>) {
        self.note_mode(before);
        let now = self.store.truth().clone();
        let Some(leader) = &now.leader else { return };
        let Some(node) = self.nodes.iter().position(|node| node.name == leader.value) else { return };
        let term = leader.create_revision;
        let owner = *self.watched.terms.entry(term).or_insert(node);
        if owner != node {
            self.fail("P1", node, format!("leads in term {term}, which was {}'s", self.nodes[owner].name));
        }
        if before.term() == now.term() {
            return;
        }
        self.leadership_changed(node);
        self.trace(node, || format!("record: leads in term {term}"));
        // Whoever was disturbed then may have been silent in the race, however long the promotion takes after it (seed
        // 1795986824857).
        let quiet = |at: usize| self.watched.disturbed[at] + 10 * SEC < self.now;
        let there = (0..self.nodes.len()).filter(|at| quiet(*at)).map(|at| &self.nodes[at].name);
        self.watched.asked = there.filter(|name| before.members.contains_key(*name)).cloned().collect();
        // On what the key was taken; nothing is known if that process has ended since.
        let reason = self.nodes[node].agent.decision.as_ref().map(|decision| &decision.reason);
        // Who leads a cluster that follows another is promoted some other day, if at all.
        let alive = self.nodes[node].agent.alive && !follows_outside(before);
        self.watched.planned = (alive && matches!(reason, Some(Reason::NamedSuccessor { .. }))).then_some(term);
        let forced = before.failover.as_ref().is_some_and(|request| request.value.leader.is_none());
        let forced = forced && matches!(reason, Some(Reason::NamedByRequest));
        let again = self.watched.forced.is_some_and(|(_, on)| on == node);
        self.watched.forced = (forced || again).then_some((term, node));
        self.watched.compared = (alive && matches!(reason, Some(Reason::BestCandidate { .. }))).then_some(term);
    }
}
