//! The loop, as `agent/tick.rs` runs it: look, decide by the real core, act one step at a time, keep in order, wait.

use std::collections::BTreeMap;
use std::time::Duration;

use howdah::agent::local::Place;
use howdah::agent::observe::{peers_matter, process_view, record_fact, remember, rules};
use howdah::agent::orders::{Orders, Working};
use howdah::agent::publish::candidate;
use howdah::agent::tick::note;
use howdah::cluster::ClusterRecord;
use howdah::cluster::record::Versioned;
use howdah::config::ClusterSettings;
use howdah::guardian::status::Link;
use howdah::ha::view::{Attempts, ClusterView, DataDirView, Memory, PeerView, ProcessView, TaskKind};
use howdah::ha::{Action, Decision, Step, decide, plan};
use howdah::types::{Fact, NodeName, WallTime};

use crate::clock::MS;
use crate::mutations::Mutation;
use crate::node::Phase;
use crate::world::{Event, World};

/// A member that has not answered by then is taken as unreachable; as in `agent/peers.rs`.
const PEER_PATIENCE: u64 = 400 * MS;
/// Asked again then; as there.
const PEER_AGAIN: u64 = 150 * MS;
/// After a step that failed; as in `agent/tick.rs`.
const AFTER_FAILURE: u64 = 100 * MS;
/// Two decisions in a row that change nothing are at least so far apart; as there.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);

impl World {
    /// The loop looks again after `after`, unless something happens before.
    pub fn tick_in(&mut self, node: usize, after: u64, phase: Phase) {
        let agent = &mut self.nodes[node].agent;
        agent.phase = phase;
        agent.ticket += 1;
        let (epoch, ticket) = (agent.epoch, agent.ticket);
        self.after(after, Event::Tick { node, epoch, ticket });
    }

    /// Something has happened that the loop waits for.
    pub fn wake(&mut self, node: usize) {
        if self.nodes[node].agent.phase == Phase::Waiting && self.is_news(node) {
            let after = self.chance.below(2 * MS);
            self.tick_in(node, after, Phase::Observing);
        }
    }

    /// What changed since the view was made, as far as the loop waits for it.
    fn is_news(&mut self, node: usize) -> bool {
        let it = &self.nodes[node];
        let (seen, now) = (&self.store.entries[it.agent.seen], &self.store.entries[it.applied]);
        let view = &it.agent.view;
        seen.fingerprint != now.fingerprint
            || process_view(&it.guardian.status) != view.process
            || it.agent.task.as_ref().is_some_and(|task| task.ended.is_some())
            || (it.agent.shutting_down && !view.shutting_down)
            || it.agent.leader_changed
            || (it.agent.orders.is_busy() && view.memory.by_hand.is_none())
            || (it.agent.lock_changed
                && self.lock_state(node).permit.map(|permit| permit.term) != view.permit.map(|permit| permit.term))
    }

    /// The local copy of the record has changed.
    pub fn seen_here(&mut self, node: usize) {
        if let Some((revision, _)) = self.nodes[node].agent.unseen
            && revision <= self.store.entries[self.nodes[node].applied].revision
        {
            self.nodes[node].agent.unseen = None;
            self.write_is_seen(node, true);
        }
        self.wake(node);
    }

    pub fn on_tick(&mut self, node: usize, epoch: u32, ticket: u64) {
        let agent = &mut self.nodes[node].agent;
        if agent.epoch != epoch || agent.ticket != ticket || !agent.alive {
            return;
        }
        if agent.frozen || self.nodes[node].suspended {
            self.nodes[node].deferred.push(Event::Tick { node, epoch, ticket });
            return;
        }
        self.stats.ticks += 1;
        if self.nodes[node].guardian.status.link == Link::Gone {
            self.guardian_begins(node);
            self.trace(node, || "agent: starts a new guardian".to_owned());
            let takes = self.chance.between(20 * MS, 500 * MS);
            self.tick_in(node, takes, Phase::Pausing);
            return;
        }
        self.collect(node);
        self.observe(node);
    }

    /// A long task that has ended.
    fn collect(&mut self, node: usize) {
        if self.nodes[node].agent.task.as_ref().is_none_or(|task| task.ended.is_none()) {
            return;
        }
        let now = self.nodes[node].clock.at(self.now);
        let agent = &mut self.nodes[node].agent;
        let Some(task) = agent.task.take() else { return };
        match task.ended {
            Some(Ok(())) => {
                agent.view.memory.failed_tasks = Attempts::default();
                agent.created = task.kind == TaskKind::Initdb;
                agent.view.memory.rewind_failed = None;
            }
            Some(Err(_)) if task.cancelled => (),
            Some(Err((why, transient))) => {
                agent.view.memory.failed_tasks = agent.view.memory.failed_tasks.again(now);
                if task.kind == TaskKind::Rewind && !transient {
                    agent.view.memory.rewind_failed = Some(why);
                }
            }
            None => (),
        }
        (agent.data_dir, agent.newest_timeline) = (None, None);
    }

    /// Takes over what the record says about this node's leadership and the cluster's settings.
    fn follow_record(&mut self, node: usize) {
        let it = &self.nodes[node];
        let record = it.record(&self.store.entries).clone();
        let term = record.term().filter(|_| record.is_leader(&it.name));
        self.keeper_holds(node, term);
        let agent = &mut self.nodes[node].agent;
        if let Some(config) = &record.config
            && config.mod_revision != agent.settings_revision
        {
            agent.settings_revision = config.mod_revision;
            if let Ok((parsed, _)) = ClusterSettings::parse(&config.value) {
                agent.settings = parsed;
            }
        }
        let ttl = agent.settings.ttl;
        self.keeper_has_ttl(node, ttl);
    }

    /// The first half of a look: the store, the guardian, PostgreSQL, the data. The other members may take a moment.
    fn observe(&mut self, node: usize) {
        self.follow_record(node);
        let now = self.nodes[node].clock.at(self.now);
        let seen = self.nodes[node].applied;
        let lock = self.lock_state(node);
        let agent = &mut self.nodes[node].agent;
        if agent.orders.is_busy() {
            let memory = &mut agent.view.memory;
            agent.working.take_up(&agent.orders, &self.unpublished, memory, now, WallTime(0));
        }
        (agent.lock_changed, agent.leader_changed) = (false, false);
        if agent.seen != seen || agent.view.record.any().is_none() {
            let new = &self.store.entries[seen].record;
            match &mut agent.view.record {
                Fact::Fresh(known) | Fact::Stale { value: known, .. } => take_over(known, new),
                Fact::Unknown { .. } => agent.view.record = Fact::Fresh((**new).clone()),
            }
            agent.seen = seen;
        }
        let forgotten = self.mutated(Mutation::TagIsForgotten);
        let it = &self.nodes[node];
        let mut settings = rules(&it.agent.settings, &it.standing.place);
        settings.nofailover &= !forgotten;
        if self.mutated(Mutation::StandbyClusterIsForgotten) {
            settings.standby_cluster = None;
        }
        let agent = &mut self.nodes[node].agent;
        agent.view.settings = settings;
        agent.view.task = agent.task.as_ref().map(|task| task.view.clone());
        agent.view.shutting_down = agent.shutting_down;
        agent.view.permit = lock.permit;
        let status = &self.nodes[node].guardian.status;
        let (process, guardian_permit) = (process_view(status), status.permit);
        self.nodes[node].agent.view.guardian_permit = guardian_permit;
        let (server, takes) = match process {
            ProcessView::Running { .. } => self.server_fact(node),
            _ => {
                self.nodes[node].agent.sighted = None;
                (Fact::unknown("PostgreSQL does not run"), 0)
            }
        };
        let known = matches!(self.nodes[node].agent.data_dir, Some(DataDirView::Present(_)));
        if !matches!(process, ProcessView::Running { .. }) || !known {
            let found = self.inspect(node);
            self.nodes[node].agent.data_dir = Some(found);
        }
        let name = self.nodes[node].name.clone();
        let record = self.store.entries[seen].record.clone();
        let agent = &mut self.nodes[node].agent;
        agent.view.process = process;
        agent.view.server = server;
        agent.view.data_dir = agent.data_dir.clone().unwrap_or(DataDirView::Empty);
        remember(&record, &agent.view.server, now, &mut agent.last_received, &mut agent.view.memory);
        let view = &agent.view;
        let ask = peers_matter(&record, &name, &view.process, &view.server, &view.memory, view.shutting_down);
        agent.peers.clear();
        agent.phase = Phase::Observing;
        agent.ticket += 1;
        let (epoch, ticket) = (agent.epoch, agent.ticket);
        let mut takes = takes + if self.chance.one_in(64) { self.chance.below(400 * MS) } else { 0 };
        if ask {
            takes += self.ask_peers(node, &record);
        }
        if takes == 0 {
            self.decide(node);
        } else {
            self.after(takes, Event::Decide { node, epoch, ticket });
        }
    }

    /// Asks all members at once; each answers at its own moment, or not. Returns how long it takes.
    fn ask_peers(&mut self, node: usize, record: &ClusterRecord) -> u64 {
        let (epoch, ticket) = (self.nodes[node].agent.epoch, self.nodes[node].agent.ticket);
        let mut takes = 0;
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            if !record.members.contains_key(&self.nodes[other].name) {
                continue;
            }
            let name = self.name(other);
            self.nodes[node].agent.peers.insert(name, Fact::unknown("no answer in time"));
            let (mut there, mut back) = (self.net.delay(&mut self.chance), self.net.delay(&mut self.chance));
            if PEER_AGAIN < there + back {
                let again = (PEER_AGAIN + self.net.delay(&mut self.chance), self.net.delay(&mut self.chance));
                if again.0 + again.1 < there + back {
                    (there, back) = again;
                }
            }
            if there + back < PEER_PATIENCE && self.net.talk(node, other) {
                takes = takes.max(there + back);
                self.after(there, Event::PeerAsked { node, epoch, ticket, other });
                if !self.nodes[other].agent_runs() && self.nodes[other].power {
                    takes = PEER_PATIENCE;
                }
            } else {
                takes = PEER_PATIENCE;
            }
        }
        takes + MS / 2
    }

    /// `GET /howdah/position`, answered afresh.
    pub fn on_peer_asked(&mut self, node: usize, epoch: u32, ticket: u64, other: usize) {
        let asker = &self.nodes[node].agent;
        let there = &self.nodes[other];
        let answers = there.power && !there.suspended && there.agent_runs() && self.net.talk(node, other);
        if asker.epoch != epoch || asker.ticket != ticket || !answers || there.pg.frozen {
            return;
        }
        let takes_part = there.agent.candidate;
        let status = self.sql(other).ok();
        let recovery = status.as_ref().is_some_and(|status| status.in_recovery);
        let replays = status.as_ref().is_none_or(|status| status.replaying);
        let answer = PeerView {
            writable: status.as_ref().is_some_and(|status| !status.in_recovery),
            promotable: takes_part && recovery,
            timeline: status.as_ref().map(|status| status.timeline),
            position: status.as_ref().map(|status| status.position),
            pending: takes_part && replays,
            receiving: status.as_ref().is_none_or(|status| status.receiving),
        };
        let name: NodeName = self.name(other);
        self.nodes[node].agent.peers.insert(name, Fact::Fresh(answer));
    }

    pub fn on_decide(&mut self, node: usize, epoch: u32, ticket: u64) {
        let agent = &self.nodes[node].agent;
        if agent.epoch != epoch || agent.ticket != ticket || !agent.alive {
            return;
        }
        if agent.frozen || self.nodes[node].suspended {
            self.nodes[node].deferred.push(Event::Decide { node, epoch, ticket });
            return;
        }
        self.decide(node);
    }

    /// The second half: the view is complete.
    fn decide(&mut self, node: usize) {
        let now = self.nodes[node].clock.at(self.now);
        let lock = self.lock_state(node);
        let trusting = self.mutated(Mutation::StaleIsTakenAsFresh);
        let agent = &mut self.nodes[node].agent;
        let loop_wait = agent.settings.loop_wait;
        let record = match std::mem::replace(&mut agent.view.record, Fact::unknown("")) {
            Fact::Fresh(record) | Fact::Stale { value: record, .. } => record,
            Fact::Unknown { .. } => (*self.store.entries[agent.seen].record).clone(),
        };
        agent.view.record = match record_fact(record, &lock, now, loop_wait) {
            Fact::Stale { value, .. } if trusting => Fact::Fresh(value),
            fact => fact,
        };
        if self.mutated(Mutation::SyncRecordIsTooGenerous) {
            self.everybody_is_in_the_set(node);
        }
        let agent = &mut self.nodes[node].agent;
        agent.view.now = now;
        agent.view.peers = std::mem::take(&mut agent.peers);
        agent.view.request_due = true;
        if self.mutated(Mutation::PauseIsIgnored) {
            self.nodes[node].agent.view.settings.pause = false;
        }
        let agent = &mut self.nodes[node].agent;
        if agent.view.memory.by_hand.is_some() {
            let mut memory = agent.view.memory.clone();
            agent.working.settle(&agent.orders, &agent.view, &mut memory);
            agent.view.memory = memory;
        }
        let decision = decide(&agent.view);
        let mut memory = std::mem::take(&mut agent.view.memory);
        note(&agent.view, &decision, &mut memory);
        agent.view.memory = memory;
        agent.candidate = candidate(&agent.view);
        self.trace_decision(node, &decision);
        let acting = !matches!(decision.action, Action::Hold | Action::Wait);
        if acting || self.nodes[node].agent.decision.as_ref() != Some(&decision) {
            self.stirs();
        }
        if acting {
            let steps = plan(&decision.action, &self.nodes[node].agent.view);
            let steps = self.in_some_order(node, &decision, steps);
            self.check_plan(node, &decision, &steps);
            self.stats.actions += 1;
            self.nodes[node].agent.decision = Some(decision);
            self.act(node, steps);
        } else {
            self.nodes[node].agent.decision = Some(decision);
            self.keep_in_order(node);
        }
    }

    /// The record as it is, but for who may lead next.
    fn everybody_is_in_the_set(&mut self, node: usize) {
        let all: Vec<NodeName> = self.nodes.iter().map(|node| node.name.clone()).collect();
        let view = &mut self.nodes[node].agent.view;
        if let Fact::Fresh(record) = &mut view.record
            && !record.is_leader(&view.me)
            && let Some(sync) = &mut record.sync
            && let Some(leader) = &sync.leader
        {
            let others = all.into_iter().filter(|name| name != leader).collect();
            (sync.sync_standby, sync.quorum) = (others, Some(0));
        }
    }

    fn trace_decision(&mut self, node: usize, decision: &Decision) {
        if self.tracing {
            let code = (decision.action.code(), decision.reason.code());
            if self.nodes[node].agent.last_code != code {
                self.nodes[node].agent.last_code = code;
                let line = format!("{}: {}", decision.action.code(), decision.reason);
                self.trace(node, || line);
            }
        }
    }

    fn act(&mut self, node: usize, steps: Vec<Step>) {
        let agent = &mut self.nodes[node].agent;
        agent.phase = Phase::Acting;
        agent.ticket += 1;
        agent.steps = steps.into();
        self.next_step(node);
    }

    /// All steps of a plan are done, or one has failed.
    pub fn acted(&mut self, node: usize, well: bool) {
        let agent = &mut self.nodes[node].agent;
        agent.steps.clear();
        let action = agent.decision.as_ref().map(|decision| decision.action.clone());
        if !matches!(action, Some(Action::Checkpoint { .. } | Action::TakeLeader)) {
            agent.data_dir = None;
        }
        if well {
            self.rest(node);
        } else {
            self.tick_in(node, AFTER_FAILURE, Phase::Pausing);
        }
    }

    /// A tick is over: wait for what comes, for as long as was decided.
    pub fn rest(&mut self, node: usize) {
        let Some(decision) = &self.nodes[node].agent.decision else { return };
        let still = matches!(decision.action, Action::Hold | Action::Wait);
        let pause = if still { decision.recheck_after.max(SHORTEST_PAUSE) } else { decision.recheck_after };
        let spin = self.chance.between(MS / 20, MS / 2);
        let after = if pause.is_zero() { spin } else { self.nodes[node].clock.lasts(pause) };
        self.tick_in(node, after, Phase::Waiting);
        if !pause.is_zero() {
            self.wake(node);
        }
    }

    /// A new process of the agent: it remembers nothing.
    pub fn agent_begins(&mut self, node: usize) {
        let initial = self.initial_settings.clone();
        let ttl = initial.ttl;
        let name = self.name(node);
        let it = &mut self.nodes[node];
        it.agent = new_agent(name, it.agent.epoch + 1, it.agent.ticket, initial, &it.standing.place);
        let witness = it.standing.witness;
        if !it.guardian.alive && !witness {
            self.guardian_begins(node);
        }
        self.keeper_begins(node, ttl);
        if let Some(term) = self.nodes[node].ended {
            self.nodes[node].memory().ending_term = Some(term);
            self.keeper_gives_up(node, term);
        }
        let after = self.chance.between(MS, 50 * MS);
        if !witness {
            self.tick_in(node, after, Phase::Pausing);
        }
        self.trace(node, || "agent: begins".to_owned());
        self.store_reconsiders();
        self.store_sends_news();
    }
}

/// Makes `known` equal to `new`, copying only what differs: most of a tick goes into copies otherwise.
fn take_over(known: &mut ClusterRecord, new: &ClusterRecord) {
    fn newer<T: Clone>(known: &mut Option<Versioned<T>>, new: &Option<Versioned<T>>) {
        let revisions = |it: &Option<Versioned<T>>| it.as_ref().map(|it| (it.create_revision, it.mod_revision));
        if revisions(known) != revisions(new) {
            known.clone_from(new);
        }
    }
    newer(&mut known.initialize, &new.initialize);
    newer(&mut known.leader, &new.leader);
    newer(&mut known.config, &new.config);
    newer(&mut known.status, &new.status);
    newer(&mut known.failover, &new.failover);
    newer(&mut known.handover, &new.handover);
    newer(&mut known.bootstrap, &new.bootstrap);
    newer(&mut known.reserved, &new.reserved);
    known.members.retain(|name, _| new.members.contains_key(name));
    for (name, member) in &new.members {
        match known.members.get_mut(name) {
            Some(old) if old.mod_revision == member.mod_revision => (),
            Some(old) => old.clone_from(member),
            None => drop(known.members.insert(name.clone(), member.clone())),
        }
    }
    if known.history_revision != new.history_revision {
        (known.history, known.history_revision) = (new.history.clone(), new.history_revision);
    }
    if known.sync_revision != new.sync_revision {
        (known.sync, known.sync_revision) = (new.sync.clone(), new.sync_revision);
    }
    known.revision = new.revision;
}

/// An agent that has not looked yet.
pub fn new_agent(
    name: NodeName,
    epoch: u32,
    ticket: u64,
    initial: ClusterSettings,
    place: &Place,
) -> crate::node::Agent {
    let view = ClusterView {
        now: howdah::types::Mono(0),
        me: name,
        settings: rules(&initial, place),
        record: Fact::unknown("not read yet"),
        request_due: true,
        data_dir: DataDirView::Empty,
        process: ProcessView::Unknown,
        server: Fact::unknown("not asked yet"),
        permit: None,
        guardian_permit: None,
        peers: BTreeMap::new(),
        task: None,
        shutting_down: false,
        memory: Memory::default(),
    };
    crate::node::Agent {
        alive: true,
        frozen: false,
        epoch,
        phase: Phase::Pausing,
        ticket,
        view,
        seen: 0,
        decision: None,
        last_code: Default::default(),
        steps: Default::default(),
        doing: None,
        request: 0,
        chores: Default::default(),
        unseen: None,
        await_permit: None,
        peers: BTreeMap::new(),
        settings: initial,
        settings_revision: 0,
        data_dir: None,
        newest_timeline: None,
        last_received: None,
        sighted: None,
        follows: None,
        follows_outside: false,
        names: None,
        created: false,
        promoted: false,
        task: None,
        published: None,
        status: None,
        raft_move_at: None,
        checkpointing: false,
        candidate: false,
        shutting_down: false,
        orders: Orders::default(),
        working: Working::default(),
        lock_changed: false,
        leader_changed: false,
    }
}
