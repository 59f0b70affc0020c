//! Every fact that a decision may use.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cluster::ClusterRecord;
use crate::types::{Fact, LeaderPermit, Lsn, Mono, NodeName, SystemId, Term, TimelineId, WalBytes};

/// What a node knows when it decides. Serialisable for the journal, with no promise of format.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterView {
    /// When the facts were gathered.
    pub now: Mono,
    /// This node.
    pub me: NodeName,
    /// The rules in force.
    pub settings: Settings,
    /// The shared record. Stale when no majority has answered lately.
    pub record: Fact<ClusterRecord>,
    /// Whether a requested role change is due (its schedule has come, or it has none).
    pub request_due: bool,
    /// The data directory.
    pub data_dir: DataDirView,
    /// The postmaster, as its parent (the guardian) sees it.
    pub process: ProcessView,
    /// PostgreSQL's own account, by SQL.
    pub server: Fact<ServerView>,
    /// The newest permit that this process won, valid or not. Every start as primary and promotion needs it.
    pub permit: Option<LeaderPermit>,
    /// The permit that the guardian holds, perhaps from an agent before this one. It lets a running primary
    /// be, and gives no right to make one.
    pub guardian_permit: Option<LeaderPermit>,
    /// Direct answers of the other members; gathered only when a rule may need them.
    pub peers: BTreeMap<NodeName, Fact<PeerView>>,
    /// The long task that is running.
    pub task: Option<TaskView>,
    /// The node has been asked to stop.
    pub shutting_down: bool,
    /// What the node remembers from earlier decisions.
    pub memory: Memory,
}

/// Settings that decisions depend on; from the record's configuration and the node's own tags.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Lifetime of the leader's lease.
    pub ttl: Duration,
    /// Heartbeat of the loop.
    pub loop_wait: Duration,
    /// A replica further behind than this does not take over by itself.
    pub maximum_lag_on_failover: WalBytes,
    /// How long a crashed primary may take to come back before others are preferred.
    pub primary_start_timeout: Duration,
    /// Hands off.
    pub pause: bool,
    /// Rewind diverged data rather than copying everything.
    pub use_pg_rewind: bool,
    /// This node's tag.
    pub nofailover: bool,
    /// This node's tag: between equals the higher one leads.
    pub failover_priority: u32,
    /// Whose WAL this node's tags have it take.
    pub upstream: UpstreamTag,
    /// A command decides before each promotion.
    pub pre_promote: bool,
    /// The primary outside that this whole cluster follows, in words.
    pub standby_cluster: Option<String>,
    /// Who must confirm commits.
    pub synchronous: Synchronous,
}

/// Whose WAL a standby takes, by its tags.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamTag {
    /// The leader's.
    #[default]
    Leader,
    /// This member's (`replicatefrom`), and the leader's while that one is not there.
    Member(NodeName),
    /// Nobody's: an archive has it (`nostream`).
    Archive,
}

/// Who must confirm commits, as configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Synchronous {
    /// Nobody, chosen standbys, or any of all.
    pub mode: SyncMode,
    /// Commits wait when nobody can confirm them.
    pub strict: bool,
    /// So many standbys confirm.
    pub node_count: usize,
    /// A standby further behind than this does not confirm; none: however far.
    pub maximum_lag: Option<WalBytes>,
}

/// Kinds of synchronous replication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncMode {
    /// None.
    Off,
    /// Chosen standbys, all of which confirm.
    On,
    /// Any of all fit standbys.
    Quorum,
}

/// The data directory's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataDirView {
    /// Nothing there, or an empty directory.
    Empty,
    /// Something that is no PostgreSQL data.
    Foreign {
        /// What was found.
        why: String,
    },
    /// A copy or a rewind that did not finish. Never promotable, never started.
    Incomplete {
        /// What was interrupted.
        why: String,
    },
    /// Could not be looked at.
    Unreadable {
        /// Why.
        why: String,
    },
    /// PostgreSQL data.
    Present(ControlView),
}

/// What the control file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlView {
    /// Identity of the database.
    pub system_id: SystemId,
    /// How it was left.
    pub state: ControlState,
    /// Timeline of the last checkpoint.
    pub timeline: TimelineId,
    /// Start of the last checkpoint record.
    pub checkpoint: Lsn,
    /// Where recovery must reach for consistency; zero when it does not apply.
    pub min_recovery_end: Lsn,
    /// Whether `standby.signal` is there.
    pub standby_signal: bool,
}

/// `pg_control`'s cluster state, as far as decisions tell it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlState {
    /// A primary that was shut down properly.
    ShutDown,
    /// A standby that was shut down properly.
    ShutDownInRecovery,
    /// A primary that runs or has crashed.
    InProduction,
    /// A standby that runs or has crashed.
    InRecovery,
    /// Starting, shutting down, crash recovery, or unknown words.
    Other,
}

/// The postmaster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessView {
    /// Not running, and no process of it is left.
    Absent {
        /// It ended without having been asked to.
        crashed: bool,
    },
    /// Running.
    Running {
        /// Started or promoted under a permit: it may accept writes.
        writable: bool,
    },
    /// On its way down.
    Stopping,
    /// The guardian cannot be reached.
    Unknown,
}

/// PostgreSQL's own account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerView {
    /// Standby (true) or primary.
    pub in_recovery: bool,
    /// Its timeline.
    pub timeline: TimelineId,
    /// Primary: flushed. Standby: the greater of received and replayed.
    pub position: Lsn,
    /// Standby: it still reads the WAL that it had when it started, so it may have more than `position` says.
    pub replaying: bool,
    /// Whether WAL arrives over a connection.
    pub streaming: bool,
    /// Standby: whether WAL could still arrive: a receiver is there, whatever it does.
    pub receiving: bool,
    /// Whom its configuration follows.
    pub follows: Option<NodeName>,
    /// Its configuration follows the primary outside the cluster.
    pub follows_outside: bool,
    /// Primary: who streams from it.
    pub standbys: BTreeMap<NodeName, StandbyView>,
    /// As it is in force.
    pub synchronous_standby_names: String,
    /// Where the last checkpoint began.
    pub checkpoint_redo: Lsn,
}

/// A standby as the primary sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyView {
    /// State is `streaming`.
    pub streaming: bool,
    /// Flushed there.
    pub flushed: Lsn,
    /// Its WAL sender counts what it confirms.
    pub counted: bool,
}

/// A member's direct answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerView {
    /// Accepts writes.
    pub writable: bool,
    /// Runs as a standby that could be promoted (no tag, pause or damage forbids it).
    pub promotable: bool,
    /// Its timeline; none while PostgreSQL does not answer.
    pub timeline: Option<TimelineId>,
    /// Received or written.
    pub position: Option<Lsn>,
    /// Its PostgreSQL starts, or still reads the WAL that it had: it may have more than it can say now.
    pub pending: bool,
    /// WAL could still arrive there from somebody: its position may grow after it was said.
    pub receiving: bool,
}

/// A long task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskView {
    /// Which.
    pub kind: TaskKind,
    /// Whom it copies from, where it does.
    pub from: Option<NodeName>,
    /// Since when.
    pub since: Mono,
}

/// Kinds of long tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// Creating a database.
    Initdb,
    /// Copying one.
    BaseBackup,
    /// Rewinding one.
    Rewind,
}

/// What a node remembers; lost with the process, and nothing that is unsafe to lose.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Memory {
    /// Since when nobody has led.
    pub leaderless_since: Option<Mono>,
    /// Starts as primary after a crash, newest last; cleared by a running primary.
    pub crash_restarts: Vec<Mono>,
    /// Why the last rewind failed; the next attempt is a copy.
    pub rewind_failed: Option<String>,
    /// The request (its `mod_revision`) for which the checkpoint was written.
    pub checkpointed_for: Option<i64>,
    /// When PostgreSQL was stopped for a hand-over.
    pub stopped_for_handover: Option<Mono>,
    /// When WAL last grew here while following somebody.
    pub wal_advanced_at: Option<Mono>,
    /// Since when a switchover waits for its candidate to catch up.
    pub catching_up_since: Option<Mono>,
    /// The leadership that this node has asked to end, set *before* the asking: an answer that got lost
    /// may still have been a yes. In this term PostgreSQL is never started or promoted again.
    pub ending_term: Option<Term>,
    /// Since the first start as primary after which PostgreSQL has not answered yet; none once it has.
    pub starting_since: Option<Mono>,
    /// Starts as a standby since PostgreSQL last answered here.
    pub standby_starts: Attempts,
    /// Long tasks that have failed since one succeeded.
    pub failed_tasks: Attempts,
    /// What a person asked for, until it is done.
    pub by_hand: Option<ByHand>,
    /// The leadership for which the command before the promotion has said yes.
    pub pre_promoted: Option<Term>,
    /// When it said no.
    pub pre_promote_failed: Option<Mono>,
    /// Logical slots that have been fetched from the leader: they can be put in place while PostgreSQL does not run.
    pub slots_to_copy: Vec<String>,
    /// How often it was stopped to be rewound since it last streamed or was made equal.
    #[serde(default)]
    pub stops_to_rewind: u32,
    /// Since when this standby is on a timeline that is newer than the record knows, and receives nothing.
    #[serde(default)]
    pub ahead_since: Option<Mono>,
    /// The text of `synchronous_standby_names` that is in force.
    pub commit_rule: Option<InForce>,
    /// PostgreSQL runs here, and the guardian did not start it.
    #[serde(default)]
    pub unmanaged: bool,
    /// Primary: when each standby that confirms, or may be elected, was last seen streaming.
    pub standbys_seen: BTreeMap<NodeName, Mono>,
}

/// What a person asked a node to do with its PostgreSQL. Also in a paused cluster: pause keeps howdah's hands off,
/// not people's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ByHand {
    /// Stop it and start it as what it was.
    Restart {
        /// It has been stopped for this.
        stopped: bool,
    },
    /// Replace the data directory by a new copy of the leader's; the old one is moved aside.
    Reinitialize {
        /// A long task that runs is ended for it.
        force: bool,
        /// From the leader and by pg_basebackup, whoever else is preferred.
        from_leader: bool,
        /// The old directory has been moved aside, and the copy has begun.
        moved: bool,
    },
}

/// What is known of the rule by which commits are confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// Its text.
    pub names: String,
    /// Since when it has been seen.
    pub since: Mono,
    /// The position at that moment.
    pub seen: Lsn,
    /// The primary's position when every process went by it: whoever has this has what came before the rule.
    pub from: Option<Lsn>,
}

/// Attempts in a row that have come to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Attempts {
    /// How many.
    pub count: u32,
    /// When the last one was made, or failed.
    pub last: Mono,
}

/// The longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

impl Attempts {
    /// One more.
    pub fn again(self, now: Mono) -> Self {
        Self { count: self.count.saturating_add(1), last: now }
    }

    /// How long to wait before the next one, when `free` of them need no pause: 1 s, 2 s, 4 s ... 30 s.
    pub fn pause_left(self, free: u32, now: Mono) -> Duration {
        let Some(doublings) = self.count.checked_sub(free + 1) else { return Duration::ZERO };
        let pause = Duration::from_secs(1 << doublings.min(5)).min(LONGEST_PAUSE);
        pause.saturating_sub(now.since(self.last))
    }
}

impl ClusterView {
    /// Whether this process may make or keep a primary now.
    pub fn permit_holds(&self) -> bool {
        self.permit.is_some_and(|permit| permit.holds_at(self.now))
    }

    /// Whether a primary that runs may be left running: by this process's permit, or by the one before it.
    pub fn running_is_permitted(&self) -> bool {
        self.permit_holds() || self.guardian_permit.is_some_and(|permit| permit.holds_at(self.now))
    }

    /// The permit under which this node may start or promote PostgreSQL as the primary: it holds, and it is
    /// of the very leadership that the record shows and that this node has not asked to end.
    pub fn permit_to_lead(&self) -> Option<LeaderPermit> {
        let record = self.record.fresh()?;
        let term = record.term().filter(|_| record.is_leader(&self.me))?;
        let permit = self.permit.filter(|permit| permit.term == term && permit.holds_at(self.now))?;
        (self.memory.ending_term != Some(term)).then_some(permit)
    }

    /// How long the command before a promotion is not asked again, and nobody else is kept from leading.
    pub fn pre_promote_pause(&self) -> Option<Duration> {
        let passed = self.now.since(self.memory.pre_promote_failed?);
        (passed < self.settings.ttl).then(|| self.settings.ttl.saturating_sub(passed))
    }

    /// For how long no majority has confirmed the record; none while that is shorter than a lease lasts: until then who
    /// holds the leader key in it may hold it still.
    pub fn unconfirmed_for(&self) -> Option<Duration> {
        match &self.record {
            Fact::Stale { age, .. } if self.settings.ttl <= *age => Some(*age),
            Fact::Fresh(_) | Fact::Stale { .. } | Fact::Unknown { .. } => None,
        }
    }

    /// How long nobody has led.
    pub fn leaderless_for(&self) -> Duration {
        self.memory.leaderless_since.map_or(Duration::ZERO, |since| self.now.since(since))
    }
}
