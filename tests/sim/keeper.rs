//! The keeper of lease and permit, as `agent/lock.rs` runs it: one question at a time, with the real rule of the permit.

use std::time::Duration;

use howdah::agent::lock::{LockState, Moving, next_permit};
use howdah::cluster::Key;
use howdah::types::{LeaseId, Mono, Term};

use crate::clock::{MS, SEC};
use crate::model_guardian::{Reply, Wish};
use crate::model_store::{Answer, Ask, Asker};
use crate::mutations::Mutation;
use crate::node::{Asking, Keeper};
use crate::world::{Event, World};

/// One attempt may take so long; as in `agent/lock.rs`.
const ATTEMPT: u64 = SEC;
/// Pause between failed attempts; as there.
const RETRY: u64 = 50 * MS;
/// How long an answer of the guardian is waited for; as in `guardian/client.rs`.
pub const GUARDIAN_PATIENCE: u64 = 5 * SEC;

impl Keeper {
    pub fn new(ttl: Duration) -> Self {
        Self {
            state: LockState::default(),
            given_up: 0,
            wanted: None,
            ttl,
            lease_ttl: Duration::ZERO,
            round_ttl: ttl,
            moving: None,
            refused_since: None,
            asking: Asking::Nothing,
            asked_at: Mono(0),
            request: 0,
            ticket: 0,
            poked: false,
        }
    }
}

impl World {
    fn keeper_in(&mut self, node: usize, after: u64) {
        let keeper = &mut self.nodes[node].keeper;
        keeper.ticket += 1;
        let ticket = keeper.ticket;
        let epoch = self.nodes[node].agent.epoch;
        self.after(after, Event::Keeper { node, epoch, ticket });
    }

    /// Begins, with a new agent process.
    pub fn keeper_begins(&mut self, node: usize, ttl: Duration) {
        let ticket = self.nodes[node].keeper.ticket;
        self.nodes[node].keeper = Keeper { ticket, ..Keeper::new(ttl) };
        self.keeper_in(node, MS);
    }

    fn keeper_is_poked(&mut self, node: usize) {
        if self.nodes[node].keeper.asking == Asking::Nothing {
            self.keeper_in(node, 0);
        } else {
            self.nodes[node].keeper.poked = true;
        }
    }

    /// Which leadership to keep.
    pub fn keeper_holds(&mut self, node: usize, term: Option<Term>) {
        if self.nodes[node].keeper.wanted != term {
            self.nodes[node].keeper.wanted = term;
            self.keeper_is_poked(node);
        }
    }

    pub fn keeper_has_ttl(&mut self, node: usize, ttl: Duration) {
        if self.nodes[node].keeper.ttl != ttl {
            self.nodes[node].keeper.ttl = ttl;
            self.keeper_is_poked(node);
        }
    }

    /// This node is about to give up `term`.
    pub fn keeper_gives_up(&mut self, node: usize, term: Term) {
        if !self.mutated(Mutation::PermitOutlivesTheRelease) {
            let keeper = &mut self.nodes[node].keeper;
            keeper.given_up = keeper.given_up.max(term.0);
        }
        self.keeper_holds(node, None);
    }

    /// The state as the loop sees it.
    pub fn lock_state(&self, node: usize) -> LockState {
        let keeper = &self.nodes[node].keeper;
        keeper.state.clone().less_given_up(keeper.given_up)
    }

    fn keeper_asks(&mut self, node: usize, asking: Asking, ask: Ask) {
        let now = self.nodes[node].clock.at(self.now);
        let request = self.store_asks(node, Asker::Keeper, ask, ATTEMPT);
        let keeper = &mut self.nodes[node].keeper;
        (keeper.asking, keeper.request) = (asking, request);
        if !matches!(keeper.asking, Asking::Replace { .. } | Asking::Confirm(_) | Asking::Move(_)) {
            keeper.asked_at = now;
        }
    }

    pub fn on_keeper(&mut self, node: usize, epoch: u32, ticket: u64) {
        let it = &mut self.nodes[node];
        if it.agent.epoch != epoch || !it.agent.alive || it.keeper.ticket != ticket {
            return;
        }
        if it.agent.frozen || it.suspended {
            it.deferred.push(Event::Keeper { node, epoch, ticket });
            return;
        }
        if it.keeper.asking != Asking::Nothing {
            return;
        }
        if let Some(moving) = it.keeper.moving {
            self.keeper_asks(node, Asking::Confirm(moving), Ask::Renew(moving.to, None));
            return;
        }
        let ttl = it.keeper.ttl;
        it.keeper.round_ttl = ttl;
        let Some(lease) = it.keeper.state.lease.or_else(|| self.lease_found(node)) else {
            self.keeper_asks(node, Asking::Grant { ttl }, Ask::Grant(ttl));
            return;
        };
        let keeper = &self.nodes[node].keeper;
        let now = self.nodes[node].clock.at(self.now);
        if keeper.refused_since.is_some_and(|since| ttl < now.since(since)) {
            if self.store.state.lease(lease).is_some() {
                self.keeper_fails(node, "the guardian takes no permit: letting the lease end");
                return;
            }
            self.nodes[node].keeper.refused_since = None;
            self.keeper_drops(node, None);
            self.keeper_asks(node, Asking::Grant { ttl }, Ask::Grant(ttl));
            return;
        }
        let term = keeper.wanted;
        self.keeper_asks(node, Asking::Renew { term, lease }, Ask::Renew(lease, term));
    }

    /// The lease that an earlier process of this node left.
    fn lease_found(&self, node: usize) -> Option<LeaseId> {
        let it = &self.nodes[node];
        let record = it.record(&self.store.entries);
        let of_leader = record.leader.as_ref().filter(|leader| leader.value == it.name).map(|leader| leader.lease);
        let lease = of_leader.or_else(|| record.members.get(&it.name).map(|member| member.lease))?;
        (lease != LeaseId(0)).then_some(lease)
    }

    pub fn keeper_hears(&mut self, node: usize, answer: Option<Answer>) {
        let asking = std::mem::replace(&mut self.nodes[node].keeper.asking, Asking::Nothing);
        let asked_at = self.nodes[node].keeper.asked_at;
        match (asking, answer) {
            (_, None) => self.keeper_fails(node, "no answer in time"),
            (Asking::Grant { ttl }, Some(Answer::Granted(lease))) => {
                let keeper = &mut self.nodes[node].keeper;
                keeper.lease_ttl = ttl;
                (keeper.state.lease, keeper.state.last_contact) = (Some(lease), Some(asked_at));
                self.keeper_is_done(node);
                self.lock_changed(node);
            }
            (Asking::Renew { term: Some(term), lease }, Some(Answer::Renewed(ttl))) => {
                let counted = if self.mutated(Mutation::PermitCountsFromTheAnswer) {
                    self.nodes[node].clock.at(self.now)
                } else {
                    asked_at
                };
                let keeper = &mut self.nodes[node].keeper;
                let Some(mut permit) = next_permit(keeper.state.permit, term, counted, ttl, keeper.round_ttl) else {
                    (keeper.state.lease, keeper.state.last_contact) = (Some(lease), Some(asked_at));
                    self.keeper_is_done(node);
                    return;
                };
                if self.mutated(Mutation::PermitHasNoMargin) {
                    permit.valid_until = counted + ttl;
                }
                self.nodes[node].keeper.asking = Asking::Permit { term, lease, ttl };
                let reply = self.guardian_asked(node, Wish::Permit(permit));
                if reply == Reply::Silence {
                    let ticket = self.nodes[node].keeper.ticket;
                    let epoch = self.nodes[node].agent.epoch;
                    self.after(GUARDIAN_PATIENCE, Event::GuardianSilent { node, epoch, ticket });
                } else {
                    self.keeper_hears_guardian(node, reply);
                }
            }
            (Asking::Renew { term: None, lease }, Some(Answer::Renewed(ttl))) => {
                self.keeper_drops(node, Some(lease));
                self.keeper_knows_ttl(node, ttl);
                self.keeper_changes_ttl(node, lease, None);
            }
            (Asking::Renew { term, lease }, Some(Answer::GuardBroken)) => {
                let it = &self.nodes[node];
                let leader = it.record(&self.store.entries).leader.as_ref().filter(|leader| leader.value == it.name);
                let under =
                    leader.filter(|leader| Some(Term(leader.create_revision)) == term).map(|leader| leader.lease);
                if let Some(other) = under.filter(|other| *other != lease) {
                    self.nodes[node].keeper.lease_ttl = Duration::ZERO;
                    self.keeper_drops(node, Some(other));
                    self.keeper_fails(node, "the leader key hangs on another lease of this node");
                    return;
                }
                self.keeper_drops(node, Some(lease));
                self.keeper_is_done(node);
            }
            (Asking::Renew { .. }, Some(Answer::LeaseGone)) => {
                self.keeper_drops(node, None);
                let ttl = self.nodes[node].keeper.ttl;
                self.keeper_asks(node, Asking::Grant { ttl }, Ask::Grant(ttl));
            }
            (Asking::Replace { ttl, from, term }, Some(Answer::Granted(to))) => match term {
                Some(term) => self.keeper_moves(node, Moving { term, from, to, ttl }),
                None => self.keeper_has_lease(node, to, ttl),
            },
            (Asking::Confirm(moving), Some(Answer::Renewed(_))) => self.keeper_moves(node, moving),
            (Asking::Confirm(_), Some(_)) => {
                self.nodes[node].keeper.moving = None;
                self.keeper_in(node, 0);
            }
            (Asking::Move(moving), Some(Answer::Moved(true))) => {
                self.nodes[node].keeper.moving = None;
                self.keeper_has_lease(node, moving.to, moving.ttl);
            }
            (_, Some(_)) => {
                self.nodes[node].keeper.moving = None;
                self.keeper_fails(node, "the leader key is no longer this node's");
            }
        }
    }

    fn keeper_has_lease(&mut self, node: usize, lease: LeaseId, ttl: Duration) {
        let keeper = &mut self.nodes[node].keeper;
        (keeper.lease_ttl, keeper.state.lease) = (ttl, Some(lease));
        self.keeper_is_done(node);
        self.lock_changed(node);
    }

    /// A permit is worth nothing before the guardian holds it too.
    pub fn keeper_hears_guardian(&mut self, node: usize, reply: Reply) {
        let Asking::Permit { term, lease, ttl } = self.nodes[node].keeper.asking else { return };
        self.nodes[node].keeper.asking = Asking::Nothing;
        let asked_at = self.nodes[node].keeper.asked_at;
        let keeper = &mut self.nodes[node].keeper;
        if reply != Reply::Done {
            keeper.refused_since = keeper.refused_since.or(Some(asked_at));
            self.keeper_fails(node, "the guardian did not take the permit");
            return;
        }
        keeper.refused_since = None;
        let held = self.nodes[node].guardian.status.permit.filter(|held| held.term == term);
        let keeper = &mut self.nodes[node].keeper;
        keeper.state.permit = held;
        (keeper.state.lease, keeper.state.last_contact) = (Some(lease), Some(asked_at));
        self.keeper_knows_ttl(node, ttl);
        self.lock_changed(node);
        self.keeper_changes_ttl(node, lease, Some(term));
    }

    pub fn on_guardian_silent(&mut self, node: usize, epoch: u32, ticket: u64) {
        let it = &mut self.nodes[node];
        if it.agent.epoch != epoch || !it.agent.alive || it.keeper.ticket != ticket {
            return;
        }
        if it.agent.frozen || it.suspended {
            it.deferred.push(Event::GuardianSilent { node, epoch, ticket });
            return;
        }
        self.keeper_hears_guardian(node, Reply::Silence);
    }

    fn keeper_knows_ttl(&mut self, node: usize, ttl: Duration) {
        let keeper = &mut self.nodes[node].keeper;
        if keeper.lease_ttl == Duration::ZERO {
            keeper.lease_ttl = ttl;
        }
    }

    fn keeper_changes_ttl(&mut self, node: usize, from: LeaseId, term: Option<Term>) {
        let keeper = &self.nodes[node].keeper;
        let ttl = keeper.round_ttl;
        if keeper.lease_ttl == ttl {
            self.keeper_is_done(node);
        } else {
            self.keeper_asks(node, Asking::Replace { ttl, from, term }, Ask::Grant(ttl));
        }
    }

    fn keeper_is_done(&mut self, node: usize) {
        let keeper = &mut self.nodes[node].keeper;
        keeper.state.trouble = None;
        let pause = self.every.min(keeper.ttl / 4);
        let after = if std::mem::take(&mut keeper.poked) { 0 } else { self.nodes[node].clock.lasts(pause) };
        self.keeper_in(node, after);
    }

    fn keeper_fails(&mut self, node: usize, why: &str) {
        let keeper = &mut self.nodes[node].keeper;
        keeper.state.trouble = Some(why.to_owned());
        keeper.poked = false;
        self.keeper_in(node, RETRY);
    }

    fn keeper_drops(&mut self, node: usize, lease: Option<LeaseId>) {
        let keeper = &mut self.nodes[node].keeper;
        (keeper.state.lease, keeper.state.permit) = (lease, None);
        keeper.state.last_contact = Some(keeper.asked_at);
        self.lock_changed(node);
    }

    fn lock_changed(&mut self, node: usize) {
        self.nodes[node].agent.lock_changed = true;
        let permit = self.lock_state(node).permit.map(|permit| permit.term);
        if permit != self.nodes[node].agent.view.permit.map(|permit| permit.term) {
            self.wake(node);
        }
        self.permit_arrived(node);
    }

    fn keeper_moves(&mut self, node: usize, moving: Moving) {
        self.nodes[node].keeper.moving = Some(moving);
        let txn = moving.txn(&self.store.space.key(&Key::Leader), &self.nodes[node].name);
        self.keeper_asks(node, Asking::Move(moving), Ask::Move(txn));
    }
}
