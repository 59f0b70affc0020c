//! The guardian: the real rules of the permit's deadline over the modelled server.
//!
//! A request that lies in the socket of a stopped guardian is carried out when it goes on, after a look at the deadline.
//! A guardian that is stopped past the deadline is killed by the kernel, and PostgreSQL with it.

use howdah::guardian::deadline::{DEAD_MAN_SLACK, Verdict, accept, verdict};
use howdah::guardian::status::{FenceReason, GuardianStatus, Link, PostgresProcess};
use howdah::types::{LeaderPermit, Mono, StopMode};

use crate::clock::{MS, SEC};
use crate::model_postgres::Proc;
use crate::mutations::Mutation;
use crate::node::Guardian;
use crate::world::{Event, World};

/// How long a fast stop may take; as in `agent/act.rs`.
const STOP: u64 = 60 * SEC;

/// What an agent asks of its guardian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    Permit(LeaderPermit),
    Start(Option<LeaderPermit>),
    Promote(LeaderPermit),
    Reload,
    Stop(StopMode),
    Fence,
}

/// What a wish comes to at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    Done,
    /// The answer comes when PostgreSQL has ended.
    Later,
    Refused,
    NotYet,
    /// It is stopped; perhaps it is carried out later.
    Silence,
    Gone,
}

impl World {
    /// A new guardian process, which knows nothing of an earlier one.
    pub fn guardian_begins(&mut self, node: usize) {
        let epoch = self.nodes[node].guardian.epoch + 1;
        self.nodes[node].guardian = Guardian {
            alive: true,
            frozen: false,
            epoch,
            status: GuardianStatus { link: Link::Attached, ..GuardianStatus::default() },
            stopping_since: None,
            wake_at: 0,
        };
    }

    /// The process ends, and the kernel ends PostgreSQL with it.
    pub fn guardian_dies(&mut self, node: usize) {
        if !self.nodes[node].guardian.alive {
            return;
        }
        self.trace(node, || "guardian: dies".to_owned());
        if self.nodes[node].pg.proc != Proc::Gone {
            self.check_undisturbed(node, "killed with its guardian");
        }
        let guardian = &mut self.nodes[node].guardian;
        guardian.alive = false;
        guardian.frozen = false;
        guardian.epoch += 1;
        guardian.status.link = Link::Gone;
        self.pg_gone(node, true);
        self.nodes[node].pg.frozen = false;
        self.wish_fulfilled(node, false);
        self.wake(node);
    }

    pub fn guardian_asked(&mut self, node: usize, wish: Wish) -> Reply {
        let it = &self.nodes[node];
        if !it.guardian.alive {
            return Reply::Gone;
        }
        if it.guardian.frozen || it.suspended {
            let epoch = it.guardian.epoch;
            if let Wish::Start(_) = wish {
                self.nodes[node].guardian.status.link = Link::Starting;
            }
            self.nodes[node].deferred.push(Event::Wish { node, epoch, wish });
            return Reply::Silence;
        }
        self.guardian_guards(node);
        match wish {
            Wish::Permit(permit) => self.guardian_holds(node, permit),
            Wish::Start(permit) => self.guardian_starts(node, permit),
            Wish::Promote(permit) => self.guardian_promotes(node, permit),
            Wish::Reload => {
                if self.nodes[node].pg.proc != Proc::Running {
                    return Reply::Refused;
                }
                self.pg_reload(node);
                Reply::Done
            }
            Wish::Stop(mode) => self.guardian_stops(node, mode),
            Wish::Fence => {
                if self.nodes[node].pg.proc == Proc::Gone {
                    return Reply::Done;
                }
                self.guardian_fences(node, "asked to");
                Reply::Later
            }
        }
    }

    /// The deadline. Looked at first, whatever the guardian wakes up for.
    pub fn guardian_guards(&mut self, node: usize) {
        let it = &self.nodes[node];
        if matches!(it.pg.proc, Proc::Gone | Proc::Killing) || self.mutated(Mutation::GuardianSkipsTheDeadline) {
            return;
        }
        let now = it.clock.at(self.now);
        match verdict(now, it.guardian.status.permit, it.pg.writable) {
            Verdict::NotWritable => (),
            Verdict::Until(end) => self.guardian_wakes_at(node, end),
            Verdict::Fence(_) => self.guardian_fences(node, "the permit has ended"),
        }
    }

    fn guardian_wakes_at(&mut self, node: usize, end: Mono) {
        let at = self.nodes[node].clock.when(end);
        let guardian = &mut self.nodes[node].guardian;
        if guardian.wake_at <= self.now || at < guardian.wake_at {
            guardian.wake_at = at;
            let epoch = guardian.epoch;
            self.at(at, Event::GuardianWakes { node, epoch });
        }
    }

    pub fn on_guardian_wakes(&mut self, node: usize, epoch: u32) {
        let it = &mut self.nodes[node];
        if it.guardian.epoch != epoch || !it.guardian.alive {
            return;
        }
        if it.guardian.frozen || it.suspended {
            it.deferred.push(Event::GuardianWakes { node, epoch });
            return;
        }
        self.guardian_guards(node);
        let since = self.nodes[node].guardian.stopping_since;
        if since.is_some_and(|since| since + STOP <= self.now) {
            self.guardian_fences(node, "the stop took too long");
        }
    }

    /// The kernel's timer: it fires whatever is stopped, but not while the machine is suspended.
    pub fn on_dead_man(&mut self, node: usize, epoch: u32) {
        let it = &mut self.nodes[node];
        if it.guardian.epoch != epoch || !it.guardian.alive || !it.power {
            return;
        }
        if it.suspended {
            it.deferred.insert(0, Event::DeadMan { node, epoch });
            return;
        }
        let guarded = it.pg.writable && !matches!(it.pg.proc, Proc::Gone);
        let over = it
            .guardian
            .status
            .permit
            .is_some_and(|permit| permit.valid_until + DEAD_MAN_SLACK <= it.clock.at(self.now));
        if guarded && over && !self.mutated(Mutation::GuardianSkipsTheDeadline) {
            self.guardian_dies(node);
        }
    }

    /// The timer is armed all the time; it can only matter while the guardian is stopped.
    pub fn guardian_is_stopped(&mut self, node: usize) {
        let it = &self.nodes[node];
        if let (true, Some(permit)) = (it.pg.writable, it.guardian.status.permit) {
            let at = it.clock.when(permit.valid_until + DEAD_MAN_SLACK);
            let epoch = it.guardian.epoch;
            self.at(at, Event::DeadMan { node, epoch });
        }
    }

    fn guardian_holds(&mut self, node: usize, permit: LeaderPermit) -> Reply {
        let now = self.nodes[node].clock.at(self.now);
        let it = &mut self.nodes[node];
        if it.pg.proc == Proc::Killing || accept(now, it.guardian.status.permit, permit).is_err() {
            return Reply::Refused;
        }
        it.guardian.status.permit = Some(permit);
        if it.pg.writable {
            self.guardian_wakes_at(node, permit.valid_until);
        }
        Reply::Done
    }

    /// A renewal may have overtaken the decision: the proof is the term, the end is the later one.
    fn newest(&self, node: usize, offered: LeaderPermit) -> LeaderPermit {
        let held = self.nodes[node].guardian.status.permit;
        held.filter(|held| held.term == offered.term && offered.valid_until < held.valid_until).unwrap_or(offered)
    }

    fn guardian_starts(&mut self, node: usize, permit: Option<LeaderPermit>) -> Reply {
        if self.nodes[node].pg.proc != Proc::Gone || self.nodes[node].disk.data.is_none() {
            return Reply::Refused;
        }
        let now = self.nodes[node].clock.at(self.now);
        if let Some(permit) = permit.map(|permit| self.newest(node, permit)) {
            if accept(now, self.nodes[node].guardian.status.permit, permit).is_err() {
                return Reply::Refused;
            }
            self.nodes[node].guardian.status.permit = Some(permit);
        }
        self.nodes[node].guardian.stopping_since = None;
        self.pg_start(node, permit.is_some());
        self.guardian_shows(node);
        self.guardian_guards(node);
        Reply::Done
    }

    fn guardian_promotes(&mut self, node: usize, permit: LeaderPermit) -> Reply {
        let permit = self.newest(node, permit);
        let now = self.nodes[node].clock.at(self.now);
        let it = &self.nodes[node];
        match it.pg.proc {
            Proc::Gone => return Reply::Refused,
            Proc::Stopping { .. } | Proc::Killing => return Reply::NotYet,
            Proc::Running => (),
        }
        if accept(now, it.guardian.status.permit, permit).is_err() {
            return Reply::Refused;
        }
        self.nodes[node].guardian.status.permit = Some(permit);
        self.nodes[node].pg.writable = true;
        self.guardian_shows(node);
        self.guardian_wakes_at(node, permit.valid_until);
        self.pg_promote(node);
        Reply::Done
    }

    fn guardian_stops(&mut self, node: usize, mode: StopMode) -> Reply {
        if self.nodes[node].pg.proc == Proc::Gone {
            return Reply::Done;
        }
        if self.nodes[node].pg.proc == Proc::Running {
            self.nodes[node].guardian.stopping_since = Some(self.now);
            self.pg_stop(node, mode);
            self.guardian_shows(node);
            let epoch = self.nodes[node].guardian.epoch;
            self.after(STOP + MS, Event::GuardianWakes { node, epoch });
        }
        if self.mutated(Mutation::StopIsDoneWhenAsked) && !self.nodes[node].pg.recovery {
            // PostgreSQL goes on behind the report.
            self.nodes[node].pg.ghosts_until = self.now + 3 * SEC;
            self.pg_gone(node, false);
            return Reply::Done;
        }
        Reply::Later
    }

    fn guardian_fences(&mut self, node: usize, why: &str) {
        if self.nodes[node].pg.proc == Proc::Killing {
            return;
        }
        self.trace(node, || format!("guardian: fences, {why}"));
        self.stats.fences += 1;
        self.nodes[node].guardian.stopping_since = Some(self.now);
        self.pg_kill(node);
        self.guardian_shows(node);
        self.check_fence(node, why);
    }

    /// Tells the agent what there is now.
    fn guardian_shows(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        let writable = it.pg.writable;
        it.guardian.status.postgres = match it.pg.proc {
            Proc::Gone => return,
            Proc::Running => PostgresProcess::Running { pid: 1, started: Mono(0), writable },
            Proc::Stopping { .. } => PostgresProcess::Stopping { pid: 1, mode: StopMode::Fast, writable },
            Proc::Killing => {
                let why = FenceReason::Requested { why: String::new() };
                PostgresProcess::Fencing { why, since: Mono(0) }
            }
        };
        self.wake(node);
    }

    /// Nothing of PostgreSQL is left; if the guardian is stopped it sees it later.
    pub fn guardian_sees_the_end(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        it.pg.writable = false;
        let epoch = it.guardian.epoch;
        if !it.guardian.alive {
            return;
        }
        if it.guardian.frozen || it.suspended {
            it.deferred.push(Event::GuardianSees { node, epoch });
            return;
        }
        self.on_guardian_sees(node, epoch);
    }

    pub fn on_guardian_sees(&mut self, node: usize, epoch: u32) {
        let it = &mut self.nodes[node];
        if it.guardian.epoch != epoch || !it.guardian.alive || it.pg.proc != Proc::Gone {
            return;
        }
        let expected = it.guardian.stopping_since.take().is_some();
        let report = self.exit_report(expected);
        self.nodes[node].guardian.status.postgres = report;
        self.wish_fulfilled(node, true);
        self.wake(node);
    }

    /// PostgreSQL has left recovery: the mark of the promotion goes.
    pub fn guardian_notices_promotion(&mut self, node: usize) {
        if !self.nodes[node].pg.writable {
            // Nobody here had asked for it: from now on it needs a permit.
            self.nodes[node].pg.writable = true;
        }
        if self.nodes[node].guardian_runs() {
            self.guardian_shows(node);
            self.guardian_guards(node);
        }
    }

    /// A wish that lay in the socket of a stopped guardian.
    pub fn on_wish(&mut self, node: usize, epoch: u32, wish: Wish) {
        if self.nodes[node].guardian.epoch == epoch {
            let reply = self.guardian_asked(node, wish);
            if let (Wish::Start(_), true) = (wish, reply != Reply::Silence) {
                self.nodes[node].guardian.status.link = Link::Attached;
                self.wake(node);
            }
            if let Wish::Permit(_) = wish {
                self.keeper_hears_guardian(node, reply);
            }
        }
    }
}
