//! The store: the real replicated state machine, behind a model of consensus.
//!
//! ```text
//! request --delay, loss--> leader --majority?--> State::apply --delay, loss--> answer      (or no answer at all)
//! lease renewal --> leader --majority?--> deadline on the leader's clock; a new leader grants everything anew
//! applied entry --delay--> each node's local copy, which is what agents read
//! ```
//!
//! Linearizable: there is one state, and what is applied stays. A request may be applied after its asker has given up.
//! Deliberately absent: votes and logs; openraft's own tests and `tests/raft_store` are about those.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use howdah::agent::lock::Moving;
use howdah::agent::tick::fingerprint;
use howdah::cluster::{ClusterRecord, Key, KeySpace};
use howdah::kv::State;
use howdah::kv::command::{Command, Event as KvEvent, Response, TxnRequest};
use howdah::types::{LeaseId, Mono, Term};

use crate::clock::{MS, SEC};
use crate::mutations::Mutation;
use crate::node::Asking;
use crate::world::{Event, World};

/// A node that restarts may have to apply so many entries again.
const KEPT: usize = 8;
/// So many changes arrive at once.
const MANY: u64 = 64;

/// What the record was after a change.
pub struct Entry {
    pub revision: i64,
    pub record: Rc<ClusterRecord>,
    /// What agents wake up for.
    pub fingerprint: Rc<(Vec<i64>, String)>,
}

#[derive(Debug, Clone, Copy)]
struct Life {
    ttl: Duration,
    granted: u64,
    deadline: Mono,
    expiring: bool,
}

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    Keeper,
    Actor,
    Chore,
    Operator,
}

/// What is asked.
#[derive(Debug, Clone)]
pub enum Ask {
    Grant(Duration),
    Renew(LeaseId, Option<Term>),
    Move(TxnRequest),
    Write(TxnRequest),
}

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Granted(LeaseId),
    Renewed(Duration),
    GuardBroken,
    LeaseGone,
    Moved(bool),
    Written { succeeded: bool, revision: i64 },
}

/// A request on its way.
#[derive(Debug, Clone)]
pub struct Request {
    pub from: usize,
    pub epoch: u32,
    pub asker: Asker,
    pub ask: Ask,
    term: u64,
    tries: u32,
}

/// The whole store.
pub struct Store {
    pub state: State,
    pub space: KeySpace,
    pub entries: Vec<Entry>,
    pub leader: Option<usize>,
    /// Counts the leaders.
    pub term: u64,
    pub requests: BTreeMap<u64, Request>,
    lives: BTreeMap<LeaseId, Life>,
    electing: bool,
    /// The entries before this one hold nothing any more.
    forgotten: usize,
    pub next_request: u64,
    next_lease: i64,
    pub expiry_at: u64,
}

impl Store {
    pub fn new(space: KeySpace) -> Self {
        let empty = Rc::new(ClusterRecord { revision: 1, ..ClusterRecord::default() });
        let fingerprint = Rc::new(fingerprint(&empty));
        Self {
            state: State::new(),
            space,
            entries: vec![Entry { revision: 1, record: empty, fingerprint }],
            leader: None,
            term: 0,
            requests: BTreeMap::new(),
            lives: BTreeMap::new(),
            electing: false,
            forgotten: 0,
            next_request: 0,
            next_lease: 100,
            expiry_at: u64::MAX,
        }
    }

    /// The record after `events`. Only what has changed is read again: reading is most of a run's work otherwise.
    fn after(&self, before: &Rc<ClusterRecord>, revision: i64, events: &[KvEvent]) -> Entry {
        let present = events.iter().filter_map(|event| self.state.get(&event.kv.key));
        let new = ClusterRecord::read(&self.space, revision, present);
        let mut record = ClusterRecord { revision, ..(**before).clone() };
        let mut told = false;
        for event in events {
            let Some(key) = self.space.parse(&event.kv.key) else { continue };
            told |= key != Key::Status;
            match key {
                Key::Initialize => record.initialize.clone_from(&new.initialize),
                Key::Leader => record.leader.clone_from(&new.leader),
                Key::Member(name) => {
                    record.members.remove(&name);
                    if let Some(member) = new.members.get(&name) {
                        record.members.insert(name, member.clone());
                    }
                }
                Key::Config => record.config.clone_from(&new.config),
                Key::Status => record.status.clone_from(&new.status),
                Key::Failover => record.failover.clone_from(&new.failover),
                Key::History => {
                    record.history.clone_from(&new.history);
                    record.history_revision = new.history_revision;
                }
                Key::Reserved => record.reserved.clone_from(&new.reserved),
                Key::Handover => record.handover.clone_from(&new.handover),
                Key::Bootstrap => record.bootstrap.clone_from(&new.bootstrap),
                Key::Sync => {
                    record.sync.clone_from(&new.sync);
                    record.sync_revision = new.sync_revision;
                }
                Key::Credentials | Key::Ended | Key::Timeline => (),
            }
        }
        let last = &self.entries[self.entries.len() - 1].fingerprint;
        let fingerprint = if told { Rc::new(fingerprint(&record)) } else { last.clone() };
        Entry { revision, record: Rc::new(record), fingerprint }
    }

    /// Every lease gets so much longer: it would have been renewed again and again.
    pub fn postpone(&mut self, by: Duration) {
        for life in self.lives.values_mut() {
            life.deadline = life.deadline + by;
        }
    }

    pub fn deadlines(&self) -> Vec<(LeaseId, Mono)> {
        self.lives.iter().map(|(id, life)| (*id, life.deadline)).collect()
    }

    pub fn set_deadlines(&mut self, deadlines: &[(LeaseId, Mono)]) {
        for (id, deadline) in deadlines {
            if let Some(life) = self.lives.get_mut(id) {
                life.deadline = *deadline;
            }
        }
    }

    /// The record as it truly is.
    pub fn truth(&self) -> &Rc<ClusterRecord> {
        &self.entries[self.entries.len() - 1].record
    }
}

impl World {
    /// Whether `node` can prove to be the store's leader now, or could become it.
    pub fn majority(&self, node: usize) -> bool {
        let answers = |other: &usize| {
            let it = &self.nodes[*other];
            it.voter && it.power && !it.suspended && it.agent_runs() && (*other == node || self.net.talk(node, *other))
        };
        answers(&node) && self.nodes.len() < 2 * (0..self.nodes.len()).filter(|other| answers(other)).count()
    }

    /// Somebody else leads the store if the one who did cannot any more.
    pub fn store_reconsiders(&mut self) {
        let fine = self.store.leader.is_some_and(|leader| self.majority(leader));
        if fine || self.store.electing {
            return;
        }
        self.store.electing = true;
        let takes = self.chance.between(500 * MS, 1500 * MS);
        self.after(takes, Event::Election);
    }

    pub fn on_election(&mut self) {
        self.store.electing = false;
        if self.store.leader.is_some_and(|leader| self.majority(leader)) {
            // It stood still, and nobody has taken its place: it looks at its leases again.
            self.store_watches_leases();
            return;
        }
        let able: Vec<usize> = (0..self.nodes.len()).filter(|node| self.majority(*node)).collect();
        if able.is_empty() {
            // Whoever heals something asks for the next election.
            self.store.leader = None;
            return;
        }
        let leader = *self.chance.pick(&able);
        self.store_leads(leader);
    }

    /// `leader` leads from now on; every lease gets its whole time again, counted on its clock.
    pub fn store_leads(&mut self, leader: usize) {
        self.store.leader = Some(leader);
        self.store.term += 1;
        self.stats.store_leaders += 1;
        self.stirs();
        let clock = self.nodes[leader].clock;
        let by_grant = self.mutated(Mutation::LeasesExpireUnconfirmed);
        let now = self.now;
        for life in self.store.lives.values_mut() {
            let from = if by_grant { life.granted } else { now };
            (life.deadline, life.expiring) = (clock.at(from) + life.ttl, false);
        }
        self.store_watches_leases();
        self.store_sends_news();
        for node in 0..self.nodes.len() {
            self.nodes[node].agent.leader_changed = true;
            if self.mutated(Mutation::StoreLeaderCostsThePermit) {
                self.nodes[node].keeper.state.permit = None;
                if let Some(permit) = &mut self.nodes[node].guardian.status.permit {
                    permit.valid_until = Mono(0);
                }
                self.guardian_guards(node);
            }
            self.wake(node);
        }
        self.trace(leader, || "store: leads".to_owned());
    }

    /// A leader that stood still gives those who could not reach it a little time.
    pub fn store_postpones(&mut self, node: usize) {
        if self.store.leader == Some(node) {
            let until = self.nodes[node].clock.at(self.now) + Duration::from_millis(500);
            for life in self.store.lives.values_mut().filter(|life| !life.expiring) {
                life.deadline = life.deadline.max(until);
            }
        }
    }

    fn store_watches_leases(&mut self) {
        let Some(leader) = self.store.leader else { return };
        let waiting = self.store.lives.values().filter(|life| !life.expiring);
        let Some(first) = waiting.map(|life| life.deadline).min() else { return };
        let at = self.nodes[leader].clock.when(first).max(self.now + MS);
        if at < self.store.expiry_at || self.store.expiry_at <= self.now {
            self.store.expiry_at = at;
            self.at(at, Event::Expiry);
        }
    }

    pub fn on_expiry(&mut self) {
        if self.now < self.store.expiry_at {
            return;
        }
        self.store.expiry_at = u64::MAX;
        let Some(leader) = self.store.leader else { return };
        if !self.majority(leader) {
            // Not confirmed: nothing expires. The next leader begins afresh, or this one looks again.
            let again = self.now + 50 * MS;
            if self.nodes[leader].agent_runs() {
                self.store.expiry_at = again;
                self.at(again, Event::Expiry);
            }
            return;
        }
        let now = self.nodes[leader].clock.at(self.now);
        let mut due = Vec::new();
        for (id, life) in &mut self.store.lives {
            if life.deadline <= now && !life.expiring {
                life.expiring = true;
                due.push(*id);
            }
        }
        if due.is_empty() {
            self.store_watches_leases();
        } else {
            let takes = self.store_delay();
            let term = self.store.term;
            self.after(takes, Event::Expire { ids: due, term });
        }
    }

    pub fn on_expire(&mut self, ids: Vec<LeaseId>, term: u64) {
        let leads = self.store.term == term && self.store.leader.is_some_and(|leader| self.majority(leader));
        if !leads {
            if self.store.term == term {
                // Still marked, and proposed again.
                self.after(50 * MS, Event::Expire { ids, term });
            }
            return;
        }
        for id in &ids {
            self.store.lives.remove(id);
        }
        self.stats.expiries += ids.len() as u64;
        self.store_applies(&Command::LeasesExpire { ids });
        self.store_watches_leases();
    }

    /// How long a write takes: a round to a majority, and disks.
    fn store_delay(&mut self) -> u64 {
        let disk =
            if self.slow_disks { self.chance.between(100 * MS, 1500 * MS) } else { self.chance.between(MS, 8 * MS) };
        disk + 2 * self.net.delay(&mut self.chance)
    }

    /// Sends a request. Whatever happens, the asker hears of it after `patience` at the latest.
    pub fn store_asks(&mut self, from: usize, asker: Asker, ask: Ask, patience: u64) -> u64 {
        let id = self.store.next_request;
        self.store.next_request += 1;
        let epoch = self.nodes[from].agent.epoch;
        self.store.requests.insert(id, Request { from, epoch, asker, ask, term: 0, tries: 0 });
        self.after(patience, Event::NoAnswer { id });
        let Some(leader) = self.store.leader else { return id };
        if self.net.passes(from, leader, &mut self.chance) {
            let delay = if from == leader { 0 } else { self.net.delay(&mut self.chance) };
            self.after(delay, Event::Arrived { id });
        }
        id
    }

    pub fn on_arrived(&mut self, id: u64) {
        let Some(leader) = self.store.leader else { return };
        if !self.nodes[leader].agent.alive {
            // What lay in its sockets is gone with it.
            return;
        }
        if self.nodes[leader].agent.frozen || self.nodes[leader].suspended {
            self.nodes[leader].deferred.push(Event::Arrived { id });
            return;
        }
        let renewal = match self.store.requests.get_mut(&id) {
            Some(request) => {
                request.term = self.store.term;
                matches!(request.ask, Ask::Renew(..))
            }
            None => return,
        };
        if !self.majority(leader) && renewal {
            return;
        }
        let takes = if renewal { 2 * self.net.delay(&mut self.chance) } else { self.store_delay() };
        self.after(takes, Event::Committed { id });
    }

    pub fn on_committed(&mut self, id: u64) {
        let Some(request) = self.store.requests.get(&id).cloned() else { return };
        let leads = self.store.term == request.term && self.store.leader.is_some_and(|leader| self.majority(leader));
        let renewal = matches!(request.ask, Ask::Renew(..));
        if !leads {
            // What is in a log may be committed later by whoever leads then, or be gone for good.
            if !renewal && request.tries < 20 && !self.chance.one_in(3) {
                if let Some(request) = self.store.requests.get_mut(&id) {
                    request.tries += 1;
                    request.term = self.store.term;
                }
                let later = self.chance.between(50 * MS, 2 * SEC);
                self.after(later, Event::Committed { id });
            }
            return;
        }
        let leader = self.store.leader.expect("it leads");
        let answer = match &request.ask {
            Ask::Grant(ttl) => self.store_grants(*ttl),
            Ask::Renew(lease, guard) => self.store_renews(leader, *lease, *guard),
            Ask::Move(txn) => {
                let answer = self.store_applies(&Command::Txn(txn.clone()));
                Answer::Moved(answer.is_some_and(|answer| Moving::is_done(&answer)))
            }
            Ask::Write(txn) => self.store_writes(txn),
        };
        if self.net.passes(leader, request.from, &mut self.chance) {
            let delay = if request.from == leader { 0 } else { self.net.delay(&mut self.chance) };
            self.after(delay, Event::Answered { id, answer });
        }
        if request.asker == Asker::Operator {
            self.store.requests.remove(&id);
        }
    }

    fn store_grants(&mut self, ttl: Duration) -> Answer {
        self.store.next_lease += 1;
        let id = LeaseId(self.store.next_lease);
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap();
        self.store_applies(&Command::LeaseGrant { id, ttl_ms });
        let clock = self.nodes[self.store.leader.expect("it leads")].clock;
        let life = Life { ttl, granted: self.now, deadline: clock.at(self.now) + ttl, expiring: false };
        self.store.lives.insert(id, life);
        self.store_watches_leases();
        Answer::Granted(id)
    }

    fn store_renews(&mut self, leader: usize, id: LeaseId, guard: Option<Term>) -> Answer {
        let lax = self.mutated(Mutation::RenewsAfterLosingTheLease);
        let now = self.nodes[leader].clock.at(self.now);
        let leader_key = self.store.space.key(&Key::Leader);
        let Some(life) = self.store.lives.get_mut(&id).filter(|life| !life.expiring) else {
            let ttl = self.nodes[leader].keeper.ttl;
            return if lax && guard.is_some() { Answer::Renewed(ttl) } else { Answer::LeaseGone };
        };
        if let Some(term) = guard {
            let holds = self
                .store
                .state
                .get(&leader_key)
                .is_some_and(|pair| pair.create_revision == term.0 && pair.lease == id);
            if !holds && !lax {
                return Answer::GuardBroken;
            }
        }
        life.deadline = now + life.ttl;
        Answer::Renewed(life.ttl)
    }

    fn store_writes(&mut self, txn: &TxnRequest) -> Answer {
        match self.store_applies(&Command::Txn(txn.clone())) {
            Some(Response::Txn(answer)) => Answer::Written { succeeded: answer.succeeded, revision: answer.revision },
            _ => Answer::Written { succeeded: false, revision: 0 },
        }
    }

    /// Applies a command, and sends the news to everybody.
    pub fn store_applies(&mut self, command: &Command) -> Option<Response> {
        let applied = self.store.state.apply(command);
        let revision = self.store.state.revision();
        if revision != self.store.entries[self.store.entries.len() - 1].revision {
            self.stats.writes += 1;
            self.stirs();
            let before = self.store.truth().clone();
            let entry = self.store.after(&before, revision, &applied.events);
            if self.stats.writes.is_multiple_of(64) {
                let space = &self.store.space;
                let whole = ClusterRecord::read(space, revision, self.store.state.prefix(space.prefix()));
                assert_eq!(whole, *entry.record, "read bit by bit the record is the same");
                assert_eq!(fingerprint(&whole), *entry.fingerprint);
            }
            self.store.entries.push(entry);
            self.store_forgets();
            self.record_changed(&before);
            self.store_sends_news();
        }
        applied.response.ok()
    }

    /// What nobody can look at any more goes: a run remembers thousands of records otherwise. A node that loses what it
    /// has of the store sees all of it again.
    fn store_forgets(&mut self) {
        let seen = self.nodes.iter().flat_map(|node| [node.applied, node.agent.seen]).min().unwrap_or(0);
        let needed = if self.profile.lost_disks == 0 { seen.saturating_sub(KEPT) } else { 0 };
        let nothing = self.store.entries[0].record.clone();
        for at in self.store.forgotten..needed {
            self.store.entries[at].record = nothing.clone();
        }
        self.store.forgotten = self.store.forgotten.max(needed);
    }

    /// The leader sends what the others do not have.
    pub fn store_sends_news(&mut self) {
        let Some(leader) = self.store.leader else { return };
        for node in 0..self.nodes.len() {
            if self.nodes[node].replicating || self.nodes[node].applied + 1 == self.store.entries.len() {
                continue;
            }
            self.nodes[node].replicating = true;
            let delay = if node == leader { 0 } else { self.net.delay(&mut self.chance) };
            self.after(delay, Event::News { node });
        }
    }

    pub fn on_news(&mut self, node: usize) {
        self.nodes[node].replicating = false;
        let Some(leader) = self.store.leader else { return };
        let it = &self.nodes[node];
        let arrives = it.power && !it.suspended && it.agent_runs() && self.majority(leader);
        if !arrives || (node != leader && !self.net.talk(leader, node)) {
            return;
        }
        let newest = self.store.entries.len() - 1;
        let behind = (newest - self.nodes[node].applied) as u64;
        // Who has a lot to catch up on shows on the way what the record was long ago.
        let part = MANY < behind && !self.chance.one_in(3);
        let skipped = if part { self.chance.below(behind) } else { behind };
        let it = &mut self.nodes[node];
        it.applied += usize::try_from(skipped).unwrap();
        it.voter |= it.applied == newest;
        if part {
            self.store_sends_news();
        }
        self.store_reconsiders();
        self.seen_here(node);
    }

    pub fn on_no_answer(&mut self, id: u64) {
        // A request that is in a log goes on without its asker.
        let Some(request) = self.store.requests.get_mut(&id) else { return };
        let (from, epoch, asker) = (request.from, request.epoch, request.asker);
        request.asker = Asker::Operator;
        self.deliver(from, epoch, asker, id, None);
    }

    pub fn on_answered(&mut self, id: u64, answer: Answer) {
        let Some(request) = self.store.requests.get(&id) else { return };
        let (from, epoch, asker) = (request.from, request.epoch, request.asker);
        if self.nodes[from].agent.epoch == epoch && (self.nodes[from].agent.frozen || self.nodes[from].suspended) {
            self.nodes[from].deferred.push(Event::Answered { id, answer });
            return;
        }
        self.store.requests.remove(&id);
        self.deliver(from, epoch, asker, id, Some(answer));
    }

    fn deliver(&mut self, from: usize, epoch: u32, asker: Asker, id: u64, answer: Option<Answer>) {
        if self.nodes[from].agent.epoch != epoch || !self.nodes[from].agent.alive {
            return;
        }
        if self.nodes[from].agent.frozen || self.nodes[from].suspended {
            self.nodes[from].deferred.push(Event::Deliver { from, epoch, asker, id, answer });
            return;
        }
        match asker {
            Asker::Keeper => {
                if self.nodes[from].keeper.request == id && self.nodes[from].keeper.asking != Asking::Nothing {
                    self.keeper_hears(from, answer);
                }
            }
            Asker::Actor => self.actor_hears(from, id, answer),
            Asker::Chore => self.chore_hears(from, id, answer),
            Asker::Operator => (),
        }
    }

    pub fn on_deliver(&mut self, from: usize, epoch: u32, asker: Asker, id: u64, answer: Option<Answer>) {
        self.deliver(from, epoch, asker, id, answer);
    }
}
