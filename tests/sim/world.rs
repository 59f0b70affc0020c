//! The world: nodes, ways, store, log, and one queue of events in true time. One thread, and nothing but the seed decides.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

use howdah::agent::snapshot::Snapshot;
use howdah::cluster::KeySpace;
use howdah::cluster::writes::Writes;
use howdah::config::ClusterSettings;
use howdah::guardian::status::GuardianStatus;
use howdah::types::{LeaderPermit, LeaseId, Mono, NodeName, WallTime};

use crate::agent::new_agent;
use crate::chance::Chance;
use crate::clock::{Clock, DRIFT, SEC};
use crate::faults::Mending;
use crate::invariants::Watched;
use crate::model_guardian::Wish;
use crate::model_postgres::{Disk, Pg, PgNews};
use crate::model_store::{Answer, Asker, Store};
use crate::mutations::Mutation;
use crate::network::Net;
use crate::node::{Guardian, Keeper, Node};
use crate::outside::Outside;
use crate::places::standings;
use crate::profiles::Profile;
use crate::quiet::Quiet;
use crate::wal::Wal;
use crate::workload::Ledger;

/// Everything that happens at a moment.
#[derive(Debug, Clone)]
pub enum Event {
    Tick { node: usize, epoch: u32, ticket: u64 },
    Decide { node: usize, epoch: u32, ticket: u64 },
    PeerAsked { node: usize, epoch: u32, ticket: u64, other: usize },
    StepEnds { node: usize, epoch: u32, ticket: u64, well: bool },
    PromoteLook { node: usize, epoch: u32, ticket: u64, permit: LeaderPermit, looks: u64 },
    ConfigLook { node: usize, epoch: u32, ticket: u64 },
    SyncReply { node: usize, epoch: u32, from: usize, position: u64 },
    NotSeen { node: usize, epoch: u32, ticket: u64, revision: i64 },
    TaskEnds { node: usize, epoch: u32, serial: u64 },
    Keeper { node: usize, epoch: u32, ticket: u64 },
    GuardianSilent { node: usize, epoch: u32, ticket: u64 },
    GuardianWakes { node: usize, epoch: u32 },
    GuardianSees { node: usize, epoch: u32 },
    DeadMan { node: usize, epoch: u32 },
    Wish { node: usize, epoch: u32, wish: Wish },
    Pg { node: usize, epoch: u32, news: PgNews },
    Arrived { id: u64 },
    Committed { id: u64 },
    Answered { id: u64, answer: Answer },
    NoAnswer { id: u64 },
    Deliver { from: usize, epoch: u32, asker: Asker, id: u64, answer: Option<Answer> },
    News { node: usize },
    Election,
    Expiry,
    Expire { ids: Vec<LeaseId>, term: u64 },
    Write,
    Fault,
    Deaf { node: usize },
    Operator,
    Outside,
    Regret,
    Mend(Mending),
}

#[derive(Clone)]
pub struct Queued {
    pub at: u64,
    order: u64,
    pub event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// What a run came to, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    pub events: u64,
    pub ticks: u64,
    pub actions: u64,
    pub faults: u64,
    pub crashes_between_steps: u64,
    pub operations: u64,
    pub writes: u64,
    pub expiries: u64,
    pub store_leaders: u64,
    pub fences: u64,
    pub promotions: u64,
    pub acknowledged: u64,
    pub lost: u64,
    /// Quiet time that was passed over.
    pub quiet: u64,
    pub ended_at: u64,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub promise: String,
    pub at: u64,
    pub node: String,
    pub why: String,
}

/// Everything.
pub struct World {
    pub now: u64,
    pub chance: Chance,
    pub queue: BinaryHeap<Reverse<Queued>>,
    pub order: u64,
    pub nodes: Vec<Node>,
    pub net: Net,
    pub store: Store,
    pub writes: Writes,
    pub wal: Wal,
    /// How far the archive has each branch of the log.
    pub archived: BTreeMap<usize, u64>,
    /// The primary that the cluster follows, or its standby elsewhere.
    pub outside: Option<Outside>,
    pub ledger: Ledger,
    pub profile: Profile,
    pub mutation: Option<Mutation>,
    pub watched: Watched,
    pub stats: Stats,
    pub failure: Option<Failure>,
    pub tracing: bool,
    pub lines: VecDeque<String>,
    /// Something that is no routine happened last then.
    pub stirred_at: u64,
    /// Whether it is quiet is looked at again then.
    pub look_again: u64,
    /// Faults may still happen.
    pub dangerous: bool,
    pub slow_disks: bool,
    pub every: Duration,
    pub initial_settings: ClusterSettings,
    /// What a node shows before it has looked; orders are asked for it only when they have a schedule.
    pub unpublished: Snapshot,
    pub initial_config: serde_json::Value,
    /// Databases created so far.
    pub created: u64,
}

impl World {
    pub fn new(seed: u64, profile: Profile, mutation: Option<Mutation>, tracing: bool) -> Self {
        let mut chance = Chance::new(seed);
        let initial_config = profile.config(&mut chance);
        let (initial_settings, _) = ClusterSettings::parse(&initial_config).unwrap();
        let space = KeySpace::new("service", &"sim".parse().unwrap());
        let names: Vec<NodeName> = (0..profile.nodes).map(|node| format!("n{}", node + 1).parse().unwrap()).collect();
        let standings = standings(&profile, &names, &mut chance);
        let mut nodes = Vec::new();
        for (name, standing) in names.into_iter().zip(standings) {
            let drift = i64::try_from(chance.below(2 * DRIFT.unsigned_abs() + 1)).unwrap() - DRIFT;
            let clock = Clock { offset: chance.between(SEC, 1000 * SEC), ppm: drift };
            let mut agent = new_agent(name.clone(), 0, 0, initial_settings.clone(), &standing.place);
            agent.alive = false;
            nodes.push(Node {
                name,
                standing,
                voter: true,
                clock,
                power: true,
                suspended: false,
                agent,
                keeper: Keeper::new(initial_settings.ttl),
                guardian: Guardian {
                    alive: false,
                    frozen: false,
                    epoch: 0,
                    status: GuardianStatus::default(),
                    stopping_since: None,
                    wake_at: 0,
                },
                pg: Pg::default(),
                disk: Disk::default(),
                ended: None,
                applied: 0,
                replicating: false,
                deferred: Vec::new(),
            });
        }
        let count = nodes.len();
        let every = initial_settings.loop_wait;
        let mut world = Self {
            now: 0,
            chance,
            queue: BinaryHeap::new(),
            order: 0,
            net: Net::new(count + 1, profile.slow),
            nodes,
            store: Store::new(space.clone()),
            writes: Writes::new(space),
            wal: Wal::default(),
            archived: BTreeMap::new(),
            outside: None,
            ledger: Ledger::default(),
            profile,
            mutation,
            watched: Watched::new(count),
            stats: Stats::default(),
            failure: None,
            tracing,
            lines: VecDeque::new(),
            stirred_at: 0,
            look_again: 0,
            dangerous: false,
            slow_disks: false,
            every,
            initial_settings,
            unpublished: Snapshot::starting("sim".parse().unwrap(), "n1".parse().unwrap(), Mono(0), WallTime(0)),
            initial_config,
            created: 0,
        };
        for node in 0..count {
            let after = world.chance.between(0, 2 * SEC);
            world.after(after, Event::Mend(Mending::Agent(node)));
        }
        world.after(SEC, Event::Write);
        world.outside_begins();
        world
    }

    pub fn at(&mut self, at: u64, event: Event) {
        self.order += 1;
        let at = at.max(self.now);
        self.queue.push(Reverse(Queued { at, order: self.order, event }));
    }

    pub fn after(&mut self, span: u64, event: Event) {
        self.at(self.now + span, event);
    }

    pub fn mutated(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// Runs until `until`, or until a promise is broken.
    pub fn run_until(&mut self, until: u64) {
        if self.profile.quiet == Quiet::No {
            self.run_plainly(until);
        }
        while self.failure.is_none() && self.now < until {
            self.pass_quiet_time(until);
            self.run_plainly(until.min(self.now + SEC));
        }
    }

    /// Event by event.
    pub fn run_plainly(&mut self, until: u64) {
        while self.failure.is_none() {
            match self.queue.peek() {
                Some(Reverse(next)) if next.at <= until => (),
                _ => {
                    self.now = until;
                    return;
                }
            }
            let Some(Reverse(Queued { at, event, .. })) = self.queue.pop() else { return };
            self.now = at;
            self.stats.events += 1;
            self.happen(event);
        }
    }

    fn happen(&mut self, event: Event) {
        self.notices(&event);
        match event {
            Event::Tick { node, epoch, ticket } => self.on_tick(node, epoch, ticket),
            Event::Decide { node, epoch, ticket } => self.on_decide(node, epoch, ticket),
            Event::PeerAsked { node, epoch, ticket, other } => self.on_peer_asked(node, epoch, ticket, other),
            Event::StepEnds { node, epoch, ticket, well } => self.on_step_ends(node, epoch, ticket, well),
            Event::PromoteLook { node, epoch, ticket, permit, looks } => {
                self.on_promote_look(node, epoch, ticket, permit, looks);
            }
            Event::ConfigLook { node, epoch, ticket } => self.on_config_look(node, epoch, ticket),
            Event::SyncReply { node, epoch, from, position } => self.on_sync_reply(node, epoch, from, position),
            Event::NotSeen { node, epoch, ticket, revision } => self.on_not_seen(node, epoch, ticket, revision),
            Event::TaskEnds { node, epoch, serial } => self.on_task_ends(node, epoch, serial),
            Event::Keeper { node, epoch, ticket } => self.on_keeper(node, epoch, ticket),
            Event::GuardianSilent { node, epoch, ticket } => self.on_guardian_silent(node, epoch, ticket),
            Event::GuardianWakes { node, epoch } => self.on_guardian_wakes(node, epoch),
            Event::GuardianSees { node, epoch } => self.on_guardian_sees(node, epoch),
            Event::DeadMan { node, epoch } => self.on_dead_man(node, epoch),
            Event::Wish { node, epoch, wish } => self.on_wish(node, epoch, wish),
            Event::Pg { node, epoch, news } => self.on_pg(node, epoch, news),
            Event::Arrived { id } => self.on_arrived(id),
            Event::Committed { id } => self.on_committed(id),
            Event::Answered { id, answer } => self.on_answered(id, answer),
            Event::NoAnswer { id } => self.on_no_answer(id),
            Event::Deliver { from, epoch, asker, id, answer } => self.on_deliver(from, epoch, asker, id, answer),
            Event::News { node } => self.on_news(node),
            Event::Election => self.on_election(),
            Event::Expiry => self.on_expiry(),
            Event::Expire { ids, term } => self.on_expire(ids, term),
            Event::Write => self.on_write(),
            Event::Fault => self.on_fault(),
            Event::Deaf { node } => self.on_deaf(node),
            Event::Operator => self.on_operator(),
            Event::Outside => self.on_outside(),
            Event::Regret => self.on_regret(),
            Event::Mend(mending) => self.on_mend(mending),
        }
    }

    /// A promise is broken: the run ends here.
    pub fn fail(&mut self, promise: &str, node: usize, why: String) {
        if self.failure.is_none() {
            let node = self.nodes[node].name.to_string();
            self.trace_text(format!("BROKEN {promise}: {node}: {why}"));
            self.failure = Some(Failure { promise: promise.to_owned(), at: self.now, node, why });
        }
    }
}
