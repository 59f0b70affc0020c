//! One machine: its agent, its guardian, its PostgreSQL, its disk, its clock. Plain data; what happens to it is elsewhere.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use howdah::agent::lock::{LockState, Moving};
use howdah::agent::orders::{Orders, Working};
use howdah::cluster::ClusterRecord;
use howdah::cluster::records::{MemberRecord, StatusRecord};
use howdah::config::ClusterSettings;
use howdah::guardian::status::GuardianStatus;
use howdah::ha::view::{ClusterView, DataDirView, Memory, PeerView, TaskKind, TaskView};
use howdah::ha::{Decision, Step};
use howdah::types::{Fact, LeaseId, Lsn, Mono, NodeName, Term, TimelineId};

use crate::clock::Clock;
use crate::model_postgres::{Disk, Pg, Source};
use crate::places::Standing;
use crate::world::Event;

/// A machine.
pub struct Node {
    pub name: NodeName,
    /// Tags, and whether it has a PostgreSQL.
    pub standing: Standing,
    /// It takes part in votes: not while what it had promised is lost with its disk.
    pub voter: bool,
    pub clock: Clock,
    /// The machine has power.
    pub power: bool,
    /// Its processors stand still: not even the kernel's timers run.
    pub suspended: bool,
    pub agent: Agent,
    pub keeper: Keeper,
    pub guardian: Guardian,
    pub pg: Pg,
    pub disk: Disk,
    /// The leadership that an agent here has asked to end; on the disk of the store.
    pub ended: Option<Term>,
    /// What the local replica of the store has applied: an index of the store's entries.
    pub applied: usize,
    /// News of the store is on its way.
    pub replicating: bool,
    /// What waits for a stopped process to go on.
    pub deferred: Vec<Event>,
}

/// What the loop is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Waiting,
    Observing,
    Acting,
    Upkeep,
    Pausing,
}

/// A write of the upkeep that waits for its turn.
#[derive(Debug, Clone)]
pub enum Chore {
    History(Term),
    Status(Term, StatusRecord),
    Member(Box<MemberRecord>, LeaseId),
}

/// The agent's process: the loop and its memory, all lost with it.
pub struct Agent {
    pub alive: bool,
    pub frozen: bool,
    /// Counts the processes: what was meant for an earlier one does not reach a later one.
    pub epoch: u32,
    pub phase: Phase,
    /// The tick that is awaited; others have been overtaken.
    pub ticket: u64,
    pub view: ClusterView,
    /// Which entry of the store the view was made from.
    pub seen: usize,
    pub decision: Option<Decision>,
    pub last_code: (String, String),
    pub steps: VecDeque<Step>,
    /// The step under way.
    pub doing: Option<Step>,
    /// The request to the store that the loop waits for.
    pub request: u64,
    pub chores: VecDeque<Chore>,
    /// A write is done and not yet seen here: its revision, and until when it is waited for.
    pub unseen: Option<(i64, u64)>,
    pub await_permit: Option<Term>,
    pub peers: BTreeMap<NodeName, Fact<PeerView>>,
    pub settings: ClusterSettings,
    pub settings_revision: i64,
    pub data_dir: Option<DataDirView>,
    pub newest_timeline: Option<TimelineId>,
    pub last_received: Option<Lsn>,
    /// PostgreSQL has answered since it was last seen to run, and when.
    pub sighted: Option<Mono>,
    pub follows: Option<NodeName>,
    pub follows_outside: bool,
    /// `synchronous_standby_names` as last decided.
    pub names: Option<String>,
    pub created: bool,
    pub promoted: bool,
    pub task: Option<Task>,
    pub published: Option<(MemberRecord, LeaseId, Mono)>,
    pub status: Option<StatusRecord>,
    pub raft_move_at: Option<Mono>,
    pub checkpointing: bool,
    pub candidate: bool,
    pub shutting_down: bool,
    /// What people have asked of this node alone.
    pub orders: Orders,
    pub working: Working,
    pub lock_changed: bool,
    pub leader_changed: bool,
}

/// A long task.
#[derive(Debug, Clone)]
pub struct Task {
    pub view: TaskView,
    pub kind: TaskKind,
    pub from: Option<Source>,
    pub from_epoch: u32,
    pub serial: u64,
    pub cancelled: bool,
    /// Ended, and with what; not collected yet.
    pub ended: Option<Result<(), (String, bool)>>,
}

/// What the keeper of the lease is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asking {
    Nothing,
    Grant { ttl: Duration },
    Renew { term: Option<Term>, lease: LeaseId },
    Permit { term: Term, lease: LeaseId, ttl: Duration },
    Replace { ttl: Duration, from: LeaseId, term: Option<Term> },
    Confirm(Moving),
    Move(Moving),
}

#[derive(Debug, Clone)]
/// The keeper of lease and permit, a task of the agent's process.
pub struct Keeper {
    pub state: LockState,
    pub given_up: i64,
    pub wanted: Option<Term>,
    pub ttl: Duration,
    pub lease_ttl: Duration,
    /// The configured lifetime when this round began.
    pub round_ttl: Duration,
    pub moving: Option<Moving>,
    pub refused_since: Option<Mono>,
    pub asking: Asking,
    pub asked_at: Mono,
    pub request: u64,
    pub ticket: u64,
    pub poked: bool,
}

/// The guardian's process.
pub struct Guardian {
    pub alive: bool,
    pub frozen: bool,
    pub epoch: u32,
    pub status: GuardianStatus,
    /// A stop under way began then.
    pub stopping_since: Option<u64>,
    /// A wake-up at the end of the permit is set for then.
    pub wake_at: u64,
}

impl Node {
    /// The record as the local replica has it.
    pub fn record<'a>(&self, entries: &'a [crate::model_store::Entry]) -> &'a Rc<ClusterRecord> {
        &entries[self.applied].record
    }

    /// Whether the agent's process runs and is scheduled.
    pub fn agent_runs(&self) -> bool {
        self.agent.alive && !self.agent.frozen
    }

    pub fn guardian_runs(&self) -> bool {
        self.guardian.alive && !self.guardian.frozen
    }

    pub fn memory(&mut self) -> &mut Memory {
        &mut self.agent.view.memory
    }
}
