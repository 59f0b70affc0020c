//! How PostgreSQL ends: on request, by itself, or by force; and what is told afterwards.
//!
//! ```text
//! stop: signal -> postmaster exits -> sweep of what outlived it -> answer
//! fence: kill.rs -> twice nothing found -> report, answer
//! ```
//!
//! Whatever the way, "exited" is only said when no process of the data directory is left: a backend that outlives its
//! postmaster can still answer a client. Deliberately absent: when a fence is due (`supervise.rs`, `deadline.rs`).

use std::time::Duration;

use rustix::process::Signal;

use super::deadline::millis;
use super::kill::{Kill, Progress, Purpose};
use super::process::{Search, stat};
use super::protocol::{Answer, Done, Escalate, Refusal};
use super::spawn;
use super::status::{Exit, FenceReason, FenceReport};
use super::supervise::{Awaited, Core, Ended, Stop, living};
use crate::telemetry::clock;
use crate::types::{Mono, StopMode};

/// How long PostgreSQL may take to stop when the guardian is told to end.
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a start may wait for orphans to die.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(2);

impl Core {
    /// Begins to kill everything, or makes a reported fence of a kill that is under way.
    pub(super) fn fence(&mut self, now: Mono, why: FenceReason) {
        self.changed = true;
        if let Some(kill) = &mut self.kill {
            kill.turn_into(why);
            return;
        }
        self.kill = Some(Kill::begin(now, Purpose::Fence(why.clone()), living(self.postmaster.as_ref())));
        self.note(now, format!("fencing: {why}"));
        self.step_kill(now);
    }

    /// Goes on with a kill that is under way.
    pub(super) fn step_kill(&mut self, now: Mono) {
        let (ancestor, home, except) = self.search_parts();
        let Some(kill) = &mut self.kill else { return };
        let postmaster = living(self.postmaster.as_ref());
        let search = Search { ancestor, home, except: &[except] };
        if kill.step(now, postmaster, &mut self.census, &search) == Progress::Clear {
            self.finish_kill(clock::now());
        }
    }

    /// Collects ended children: the postmaster, the tether, orphans.
    pub(super) fn reap(&mut self, now: Mono) {
        while let Some((pid, status)) = spawn::reap() {
            if self.tether.as_ref().is_some_and(|tether| tether.who().pid == pid) {
                self.note(now, "the tether ended; starting another".to_owned());
                self.restart_tether(now);
                self.arm();
                if !self.writable() {
                    self.write_holder();
                }
            } else if let Some(postmaster) = &self.postmaster
                && postmaster.handle.who().pid == pid
                && postmaster.ended.is_none()
            {
                self.postmaster_ended(now, status.into());
            } else if self.released == Some(pid) {
                self.released = None;
                self.note(now, format!("postgres, pid {pid}, which was released, has ended"));
            }
        }
        if let Some(postmaster) = &self.postmaster
            && postmaster.adopted
            && postmaster.ended.is_none()
            && !stat(postmaster.handle.who().pid)
                .is_some_and(|stat| stat.who == postmaster.handle.who() && stat.is_alive())
        {
            self.postmaster_ended(now, Ended::default());
        }
    }

    fn postmaster_ended(&mut self, now: Mono, how: Ended) {
        if let Some(postmaster) = &mut self.postmaster {
            postmaster.ended = Some(how);
        }
        if self.kill.is_none() {
            self.kill = Some(Kill::begin(now, Purpose::Sweep, None));
        }
    }

    /// Nothing is left.
    fn finish_kill(&mut self, now: Mono) {
        let Some(kill) = self.kill.take() else { return };
        self.changed = true;
        self.leftovers = 0;
        if *kill.purpose() == Purpose::Orphans {
            self.note(now, format!("killed {} processes that a dead guardian had left", kill.killed()));
        }
        let asked = self.stop.take().is_some();
        if let Purpose::Fence(why) = kill.purpose() {
            let (killed, took_ms) = (kill.killed(), millis(now.since(kill.since())));
            self.note(now, format!("fenced in {took_ms} ms, {killed} killed, nothing is left"));
            let (at, wall, why) = (now, clock::wall(), why.clone());
            self.last_fence = Some(FenceReport { at, wall, why, killed, took_ms });
        }
        if let Some(postmaster) = self.postmaster.take() {
            let Ended { code, signal } = postmaster.ended.unwrap_or_default();
            let exit = Exit {
                code,
                signal,
                at: now,
                expected: asked || matches!(kill.purpose(), Purpose::Fence(_)),
                swept: if matches!(kill.purpose(), Purpose::Sweep) { kill.killed() } else { 0 },
            };
            let manner = if exit.expected { "as asked" } else { "unexpectedly" };
            let swept = exit.swept;
            self.note(now, format!("postgres ended {manner}: code {code:?}, signal {signal:?}, {swept} swept"));
            self.exit = Some(exit);
        }
        // Only now: the watchdog stays armed until the last backend is gone.
        if self.watchdog.armed().is_some() {
            self.watchdog.disarm();
            self.write_holder();
        }
        self.arm();
        self.answer_waiting(kill.purpose());
    }

    fn answer_waiting(&mut self, purpose: &Purpose) {
        let (exit, report) = (self.exit, self.last_fence.clone());
        for waiting in self.waiting.drain(..) {
            let done = match (waiting.what, &report) {
                (Awaited::Fenced, Some(report)) if matches!(purpose, Purpose::Fence(_)) => Done::Fenced(report.clone()),
                (Awaited::Stopped | Awaited::Fenced, _) => Done::Stopped(exit),
            };
            self.due.push((waiting, Answer::Done(done)));
        }
    }

    /// Asks PostgreSQL to stop. A second stop may only be harder than the first.
    pub(super) fn begin_stop(&mut self, now: Mono, mode: StopMode, within: Duration, then: Escalate) {
        let mode = match self.stop {
            Some(Stop { mode: StopMode::Immediate, .. }) => StopMode::Immediate,
            Some(_) | None => mode,
        };
        let signal = match mode {
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        };
        if let Some(postmaster) = living(self.postmaster.as_ref())
            && let Err(error) = postmaster.signal(signal)
        {
            self.note(now, format!("signal the postmaster: {error}"));
        }
        self.stop = Some(Stop { mode, since: now, until: Some(now + within), then });
        self.changed = true;
        self.note(now, format!("stopping postgres: {mode:?}, at most {} ms, then {then:?}", within.as_millis()));
    }

    /// A stop that takes too long.
    pub(super) fn check_stop(&mut self, now: Mono) {
        let Some(stop) = &mut self.stop else { return };
        if self.kill.is_some() || stop.until.is_none_or(|until| now < until) {
            return;
        }
        stop.until = None;
        let Stop { mode, since, then, .. } = *stop;
        match then {
            Escalate::Kill => self.fence(now, FenceReason::StopTimedOut { mode }),
            Escalate::Wait => {
                let refusal = Refusal::StopTimedOut { waited_ms: millis(now.since(since)) };
                for waiting in self.waiting.extract_if(.., |waiting| waiting.what == Awaited::Stopped) {
                    self.due.push((waiting, Answer::Refused(refusal.clone())));
                }
            }
        }
    }

    /// SIGTERM: stop PostgreSQL in order if it may still do that, kill it if not or if this is the second time; then
    /// end.
    pub(super) fn terminate(&mut self, now: Mono) {
        let again = std::mem::replace(&mut self.ending, true);
        self.note(now, "told to end (SIGTERM)".to_owned());
        if self.postmaster.is_none() || self.kill.is_some() {
            return;
        }
        let may_stop = !self.writable() || self.permit.is_some_and(|permit| permit.holds_at(now));
        if again || !may_stop {
            self.fence(now, FenceReason::GuardianTerminated);
        } else {
            self.begin_stop(now, StopMode::Fast, TERMINATE_TIMEOUT, Escalate::Kill);
        }
    }

    /// Kills orphans before a start and waits for it; nothing can be writable meanwhile.
    pub(super) fn clear_orphans(&mut self, now: Mono) -> Result<(), Refusal> {
        if self.kill.is_none() && !self.survey().is_empty() {
            self.kill = Some(Kill::begin(now, Purpose::Orphans, None));
        }
        // Also one that began when this guardian came up: it must not meet what is about to be started.
        while self.kill.is_some() {
            let at = clock::now();
            if now + ORPHAN_TIMEOUT < at {
                // The kill goes on; this start does not wait for it any longer.
                return Err(Refusal::Fencing);
            }
            self.reap(at);
            self.step_kill(at);
            if let Some(kill) = &self.kill {
                super::run::pause(kill.next().since(clock::now()));
            }
        }
        Ok(())
    }
}
