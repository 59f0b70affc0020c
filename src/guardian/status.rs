//! What the guardian tells about itself: the status that is pushed to the agent on every change.
//!
//! Plain values that cross the socket as JSON. Deliberately absent: how they come about (`supervise.rs`).

use serde::{Deserialize, Serialize};

use crate::types::{LeaderPermit, Mono, StopMode, Term, WallTime};

/// Everything an agent needs to know about its guardian and the PostgreSQL under it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardianStatus {
    /// The guardian's process id; 0 before the first contact.
    pub pid: u32,
    /// The version of the binary that the guardian runs; older than the agent's after an upgrade.
    pub version: String,
    /// Counts the changes, so that two equal-looking statuses can be told apart.
    pub change: u64,
    /// How the client stands with the guardian. Filled in by the client; the guardian always says `Attached`.
    pub link: Link,
    /// The last accepted permit, expired or not; kept over stops, since a lower term must never follow.
    pub permit: Option<LeaderPermit>,
    /// The PostgreSQL under this guardian.
    pub postgres: PostgresProcess,
    /// The last fence that is complete.
    pub last_fence: Option<FenceReport>,
    /// Processes that use the data directory and are not this guardian's: a postmaster that someone else started,
    /// or what a killed guardian left behind. Orphans are killed as soon as they are found.
    pub leftovers: u32,
    /// Which protections the operating system granted.
    pub privileges: Privileges,
    /// The watchdog device.
    pub watchdog: WatchdogState,
}

impl Default for GuardianStatus {
    fn default() -> Self {
        Self {
            pid: 0,
            version: String::new(),
            change: 0,
            link: Link::Gone,
            permit: None,
            postgres: PostgresProcess::Absent,
            last_fence: None,
            leftovers: 0,
            privileges: Privileges::default(),
            watchdog: WatchdogState::Off,
        }
    }
}

/// How the agent's client stands with the guardian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// Connected, and the one whose requests count.
    Attached,
    /// Connected, and a start was asked for that has not been answered. However long ago that was, it is carried out as
    /// soon as the guardian comes to it: what runs cannot be known before the answer.
    Starting,
    /// The connection broke; the client is trying again. The rest of the status is the last one heard.
    Reconnecting,
    /// No guardian runs any more. It took PostgreSQL with it; `Guardian::attach` starts a new one, which
    /// finds and kills what is left.
    Gone,
    /// Another agent attached. This one must not act any more.
    Replaced,
}

/// The state of PostgreSQL's processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PostgresProcess {
    /// Not started by this guardian yet.
    Absent,
    /// The postmaster runs. Says nothing about whether it accepts connections yet.
    Running {
        /// The postmaster.
        pid: u32,
        /// When this guardian started it.
        started: Mono,
        /// Whether it may accept writes: started as primary, or told to promote.
        writable: bool,
    },
    /// Asked to stop; still there.
    Stopping {
        /// The postmaster.
        pid: u32,
        /// How it was asked.
        mode: StopMode,
        /// Whether it may still acknowledge writes that were under way.
        writable: bool,
    },
    /// Being killed; processes may be left.
    Fencing {
        /// Why.
        why: FenceReason,
        /// Since when.
        since: Mono,
    },
    /// The postmaster ended, and no process of this data directory is left.
    Exited(Exit),
}

/// How the postmaster ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code, when it exited.
    pub code: Option<i32>,
    /// The signal, when one ended it.
    pub signal: Option<i32>,
    /// When the last process of the data directory was gone.
    pub at: Mono,
    /// Whether this guardian had asked for it.
    pub expected: bool,
    /// Backends and other children that outlived the postmaster and had to be killed.
    pub swept: u32,
}

/// Why PostgreSQL was killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FenceReason {
    /// The permit ran out while PostgreSQL could accept writes.
    DeadlinePassed {
        /// The permit's term.
        term: Term,
        /// The permit's end.
        valid_until: Mono,
        /// How long after the end the guardian acted; large when the machine or the guardian had been frozen.
        late_ms: u64,
    },
    /// Somebody promoted PostgreSQL, and no permit was ever presented.
    PromotedWithoutPermit,
    /// The agent asked for it.
    Requested {
        /// The agent's reason, for people.
        why: String,
    },
    /// A stop with `Escalate::Kill` took too long.
    StopTimedOut {
        /// How PostgreSQL had been asked.
        mode: StopMode,
    },
    /// The guardian was told to end (SIGTERM) and PostgreSQL did not stop in time, or had no valid permit.
    GuardianTerminated,
}

impl std::fmt::Display for FenceReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::DeadlinePassed { term, late_ms, .. } => {
                write!(f, "the permit of term {term} ended, acted on {late_ms} ms later")
            }
            Self::PromotedWithoutPermit => f.write_str("promoted without a permit"),
            Self::Requested { why } => write!(f, "asked to: {why}"),
            Self::StopTimedOut { mode: StopMode::Fast } => f.write_str("fast stop took too long"),
            Self::StopTimedOut { mode: StopMode::Immediate } => f.write_str("immediate stop took too long"),
            Self::GuardianTerminated => f.write_str("the guardian was told to end"),
        }
    }
}

/// A complete fence: nothing of this data directory runs any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceReport {
    /// When the last process was gone.
    pub at: Mono,
    /// The same, for people.
    pub wall: WallTime,
    /// Why.
    pub why: FenceReason,
    /// Processes that needed SIGKILL; the others ended on the postmaster's SIGQUIT.
    pub killed: u32,
    /// From the decision to the last process gone.
    pub took_ms: u64,
}

/// How the guardian's thread is scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheduling {
    /// As any process.
    #[default]
    Normal,
    /// With a better nice value.
    Nice,
    /// Before every ordinary process (SCHED_FIFO, lowest priority).
    Fifo,
}

/// What ends a guardian that is itself frozen past the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadMan {
    /// Nothing: this system has no such timer.
    #[default]
    None,
    /// A kernel timer that kills the guardian.
    Timer,
    /// The same, and it also wakes a suspended machine.
    AlarmTimer,
}

/// Which protections the operating system granted; each one missing makes the fence slower or less certain under
/// pressure, never wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Privileges {
    /// The guardian's memory cannot be swapped out.
    pub memory_locked: bool,
    /// The out-of-memory killer leaves it alone (`oom_score_adj` -1000).
    pub oom_protected: bool,
    /// How it is scheduled.
    pub scheduling: Scheduling,
    /// Orphans of the postmaster become its children.
    pub subreaper: bool,
    /// What ends it when it is frozen past the deadline.
    pub dead_man: DeadMan,
    /// Whether the kernel also kills the known backends when the guardian dies (`tether.rs`).
    pub tether: bool,
}

/// The watchdog device.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchdogState {
    /// Not asked for, or not needed now: PostgreSQL is not writable.
    #[default]
    Off,
    /// The machine resets when the permit is no longer renewed.
    Armed {
        /// The device's time-out in force.
        timeout_s: u32,
    },
    /// Asked for, and not to be had.
    Unavailable {
        /// What failed.
        why: String,
    },
}
