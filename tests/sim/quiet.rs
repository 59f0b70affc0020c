//! Hours in which nothing happens, passed over in one step.
//!
//! Clusters are quiet nearly all the time: each look gives the decision that the one before it gave, permits are renewed,
//! nothing is written. Once nothing else has been seen for longer than the core counts back, all that a later moment
//! differs in is the time: the world can be moved to shortly before the next thing that happens to it.
//!
//! ```text
//! what is to come (ticks, renewals, ends of permits and leases)     moves along
//! what was granted or confirmed just now                            moves along: it would have been again and again
//! what is remembered from before                                    stays, and is that much older
//! ```
//! [`Quiet::Checked`] plays each of these times event by event as well, and requires that nothing came of it.

use std::cmp::Reverse;

use howdah::ha::view::Memory;
use howdah::ha::{Action, ClusterView, Decision};
use howdah::types::{LeaderPermit, LeaseId, Mono};

use crate::chance::Chance;
use crate::clock::SEC;
use crate::model_postgres::{PgNews, Proc};
use crate::model_store::Ask;
use crate::node::{Agent, Asking, Keeper, Phase};
use crate::world::{Event, Queued, Stats, World};

/// Nothing that the core counts lasts longer.
const STILL: u64 = 40 * SEC;
/// It goes on event by event so long before something happens.
const BEFORE: u64 = 3 * SEC;
/// Less is not worth a look at everything.
const WORTH: u64 = 60 * SEC;

/// Whether there are quiet hours, and how they pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quiet {
    /// There are none.
    No,
    /// In one step.
    Skipped,
    /// In one step, after they were played, to see that both come to the same.
    Checked,
}

/// What an event means for a quiet world.
enum Meaning {
    /// It ends the quiet.
    Cause,
    /// It comes again and again, and changes nothing.
    Routine,
    /// Part of such a thing, which will be over in a moment.
    UnderWay,
    /// Nobody waits for it any more.
    Stale,
    /// Something is under way.
    Business,
}

/// What may change about a node while nothing happens.
struct Still {
    phase: Phase,
    ticket: u64,
    request: u64,
    view: ClusterView,
    decision: Option<Decision>,
    published_at: Option<Mono>,
    sighted: Option<Mono>,
    keeper: Keeper,
    guardian_permit: Option<LeaderPermit>,
    wake_at: u64,
}

/// What may change about the world.
struct Moment {
    now: u64,
    chance: Chance,
    order: u64,
    queue: Vec<Queued>,
    nodes: Vec<Still>,
    deadlines: Vec<(LeaseId, Mono)>,
    expiry_at: u64,
    next_request: u64,
    stats: Stats,
}

impl World {
    /// Something has happened that is no routine.
    pub fn stirs(&mut self) {
        self.stirred_at = self.now;
    }

    /// `event` is about to happen.
    pub fn notices(&mut self, event: &Event) {
        if self.profile.quiet != Quiet::No && matches!(self.meaning(event), Meaning::Cause | Meaning::Business) {
            self.stirs();
        }
    }

    /// Moves on to shortly before the next thing that happens, or to `until`, if nothing but time passes until then.
    pub fn pass_quiet_time(&mut self, until: u64) {
        if self.profile.quiet == Quiet::No
            || !self.dangerous
            || self.now < self.stirred_at + STILL
            || self.now < self.look_again
        {
            return;
        }
        self.look_again = self.now + SEC;
        let Some(cause) = self.next_cause().filter(|_| self.is_quiet()) else { return };
        let span = cause.min(until).saturating_sub(self.now + BEFORE);
        if span < WORTH {
            self.look_again = self.now + 10 * SEC;
            return;
        }
        if self.profile.quiet == Quiet::Checked {
            let before = self.moment();
            self.run_plainly(self.now + span);
            self.nothing_came_of_it(&before);
            self.go_back_to(before);
        }
        self.skip(span);
    }

    fn meaning(&self, event: &Event) -> Meaning {
        let is = |business: bool| if business { Meaning::Business } else { Meaning::Stale };
        let awaited = |node: usize, epoch: u32, ticket: u64| {
            let agent = &self.nodes[node].agent;
            agent.epoch == epoch && agent.ticket == ticket
        };
        let keeper = |node: usize, epoch: u32, ticket: u64| {
            let it = &self.nodes[node];
            it.agent.epoch == epoch && it.keeper.ticket == ticket
        };
        match event {
            Event::Fault | Event::Operator => Meaning::Cause,
            Event::Tick { node, epoch, ticket } if awaited(*node, *epoch, *ticket) => Meaning::Routine,
            Event::Keeper { node, epoch, ticket } if keeper(*node, *epoch, *ticket) => Meaning::Routine,
            Event::Tick { .. } | Event::Keeper { .. } => Meaning::Stale,
            Event::Expiry | Event::GuardianWakes { .. } | Event::DeadMan { .. } => Meaning::Routine,
            Event::Arrived { id } | Event::Committed { id } | Event::Answered { id, .. } | Event::NoAnswer { id } => {
                match self.store.requests.get(id).map(|request| &request.ask) {
                    Some(Ask::Renew(..)) => Meaning::UnderWay,
                    other => is(other.is_some()),
                }
            }
            Event::Decide { node, epoch, ticket } | Event::PeerAsked { node, epoch, ticket, .. } => {
                if awaited(*node, *epoch, *ticket) { Meaning::UnderWay } else { Meaning::Stale }
            }
            Event::StepEnds { node, epoch, ticket, .. }
            | Event::PromoteLook { node, epoch, ticket, .. }
            | Event::ConfigLook { node, epoch, ticket }
            | Event::NotSeen { node, epoch, ticket, .. } => is(awaited(*node, *epoch, *ticket)),
            Event::TaskEnds { node, .. } => is(self.nodes[*node].agent.task.is_some()),
            Event::GuardianSilent { node, epoch, ticket } => is(keeper(*node, *epoch, *ticket)),
            Event::Pg { node, epoch, news } => {
                let pg = &self.nodes[*node].pg;
                let idle = *news == PgNews::Connect && (!pg.recovery || pg.receiver.is_some());
                if *news == PgNews::Restores && pg.epoch == *epoch && self.archive_has(*node).is_none() {
                    return Meaning::Routine;
                }
                is(pg.epoch == *epoch && !idle)
            }
            Event::SyncReply { .. }
            | Event::GuardianSees { .. }
            | Event::Wish { .. }
            | Event::Deliver { .. }
            | Event::News { .. }
            | Event::Election
            | Event::Expire { .. }
            | Event::Write
            | Event::Deaf { .. }
            | Event::Outside
            | Event::Regret
            | Event::Mend(_) => Meaning::Business,
        }
    }

    /// When something happens next; none while something is under way.
    fn next_cause(&self) -> Option<u64> {
        let mut first = u64::MAX;
        for Reverse(queued) in &self.queue {
            match self.meaning(&queued.event) {
                Meaning::Cause => first = first.min(queued.at),
                Meaning::Routine | Meaning::Stale => (),
                Meaning::UnderWay | Meaning::Business => return None,
            }
        }
        Some(first)
    }

    /// Whether everybody is well and waits for nothing.
    fn is_quiet(&self) -> bool {
        let newest = self.store.entries.len() - 1;
        self.net.is_whole()
            && !self.slow_disks
            && self.store.leader.is_some_and(|leader| self.majority(leader))
            && self.nodes.iter().all(|it| {
                let votes = it.power && !it.suspended && it.agent_runs() && it.deferred.is_empty();
                let current = it.applied == newest && !it.replicating && it.voter;
                let keeps = it.keeper.asking == Asking::Nothing
                    && it.keeper.moving.is_none()
                    && it.keeper.refused_since.is_none()
                    && it.keeper.state.lease.is_some();
                let server = it.standing.witness
                    || self.server_is_quiet(&it.agent)
                        && { it.guardian_runs() && it.pg.proc == Proc::Running && it.pg.up && !it.pg.frozen }
                        && it.pg.replaying.is_none()
                        && !it.disk.full
                        && !it.disk.unreadable
                        && it.pg.receiver.iter().all(|receiver| receiver.queue.iter().all(|(at, _)| *at <= self.now));
                votes && current && keeps && server
            })
    }

    fn server_is_quiet(&self, agent: &Agent) -> bool {
        let holds = agent.decision.as_ref().is_some_and(|decision| decision.action == Action::Hold);
        let idle = agent.task.is_none() && agent.chores.is_empty() && !agent.orders.is_busy();
        agent.phase == Phase::Waiting && holds && idle && !agent.shutting_down && !agent.checkpointing
    }

    /// All times that move, moved.
    fn skip(&mut self, span: u64) {
        let (now, then) = (self.now, self.now + span);
        for node in &mut self.nodes {
            let by = node.clock.at(then).since(node.clock.at(now));
            let later = |at: &mut Mono| *at = *at + by;
            let permit =
                |permit: &mut Option<LeaderPermit>| permit.iter_mut().for_each(|it| later(&mut it.valid_until));
            permit(&mut node.keeper.state.permit);
            node.keeper.state.last_contact.iter_mut().for_each(later);
            later(&mut node.keeper.asked_at);
            permit(&mut node.guardian.status.permit);
            node.guardian.wake_at += span;
            let agent = &mut node.agent;
            permit(&mut agent.view.permit);
            permit(&mut agent.view.guardian_permit);
            later(&mut agent.view.now);
            agent.published.iter_mut().for_each(|(_, _, at)| later(at));
            agent.sighted.iter_mut().for_each(later);
            agent.view.memory.standbys_seen.values_mut().for_each(later);
        }
        if let Some(leader) = self.store.leader {
            let clock = self.nodes[leader].clock;
            let by = clock.at(then).since(clock.at(now));
            self.store.postpone(by);
            self.store.expiry_at = self.store.expiry_at.saturating_add(span);
        }
        let queue = std::mem::take(&mut self.queue).into_vec();
        for Reverse(mut queued) in queue {
            match self.meaning(&queued.event) {
                Meaning::Cause => (),
                Meaning::Routine | Meaning::UnderWay | Meaning::Business => queued.at += span,
                Meaning::Stale => continue,
            }
            self.queue.push(Reverse(queued));
        }
        self.now = then;
        self.stats.quiet += span;
    }

    fn moment(&self) -> Moment {
        let still = |node: &crate::node::Node| Still {
            phase: node.agent.phase,
            ticket: node.agent.ticket,
            request: node.agent.request,
            view: node.agent.view.clone(),
            decision: node.agent.decision.clone(),
            published_at: node.agent.published.as_ref().map(|(_, _, at)| *at),
            sighted: node.agent.sighted,
            keeper: node.keeper.clone(),
            guardian_permit: node.guardian.status.permit,
            wake_at: node.guardian.wake_at,
        };
        Moment {
            now: self.now,
            chance: self.chance.clone(),
            order: self.order,
            queue: self.queue.iter().map(|Reverse(queued)| queued.clone()).collect(),
            nodes: self.nodes.iter().map(still).collect(),
            deadlines: self.store.deadlines(),
            expiry_at: self.store.expiry_at,
            next_request: self.store.next_request,
            stats: self.stats,
        }
    }

    /// The time has been played: what is there now is what was there `before`, but for times.
    fn nothing_came_of_it(&self, before: &Moment) {
        assert!(
            self.stirred_at <= before.now && self.failure.is_none(),
            "quiet time was disturbed at {}",
            self.stirred_at
        );
        let leases = |deadlines: &[(LeaseId, Mono)]| deadlines.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        assert_eq!(leases(&before.deadlines), leases(&self.store.deadlines()));
        for (then, node) in before.nodes.iter().zip(&self.nodes) {
            let (was, is) = (&then.view, &node.agent.view);
            assert_eq!(then.decision, node.agent.decision, "the same is decided");
            assert_eq!((was.record.any(), &was.server), (is.record.any(), &is.server), "on the same facts");
            assert_eq!((&was.data_dir, was.process, &was.settings), (&is.data_dir, is.process, &is.settings));
            let timeless = |memory: &Memory| Memory { standbys_seen: Default::default(), ..memory.clone() };
            assert_eq!(timeless(&was.memory), timeless(&is.memory), "and the same is remembered");
            assert!(was.memory.standbys_seen.keys().eq(is.memory.standbys_seen.keys()));
            let term = |permit: Option<LeaderPermit>| permit.map(|permit| permit.term);
            let (kept, keeps) = (&then.keeper, &node.keeper);
            assert_eq!((kept.wanted, kept.state.lease, kept.ttl), (keeps.wanted, keeps.state.lease, keeps.ttl));
            assert_eq!(term(kept.state.permit), term(keeps.state.permit));
            assert_eq!(term(then.guardian_permit), term(node.guardian.status.permit));
            let now = node.clock.at(self.now);
            assert!(keeps.state.permit.is_none_or(|permit| permit.holds_at(now)), "a permit has run out");
        }
    }

    fn go_back_to(&mut self, moment: Moment) {
        (self.now, self.chance, self.order, self.stats) = (moment.now, moment.chance, moment.order, moment.stats);
        self.queue = moment.queue.into_iter().map(Reverse).collect();
        (self.store.expiry_at, self.store.next_request) = (moment.expiry_at, moment.next_request);
        self.store.requests.clear();
        self.store.set_deadlines(&moment.deadlines);
        for (then, node) in moment.nodes.into_iter().zip(&mut self.nodes) {
            let agent = &mut node.agent;
            (agent.phase, agent.ticket, agent.request) = (then.phase, then.ticket, then.request);
            (agent.view, agent.decision, agent.sighted) = (then.view, then.decision, then.sighted);
            if let (Some((_, _, at)), Some(then)) = (&mut agent.published, then.published_at) {
                *at = then;
            }
            node.keeper = then.keeper;
            (node.guardian.status.permit, node.guardian.wake_at) = (then.guardian_permit, then.wake_at);
        }
        self.look_again = self.now + SEC;
    }
}
