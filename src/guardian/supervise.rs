//! PostgreSQL's processes under the guardian: what runs, how long it may, and how it ends.
//!
//! ```text
//! Absent -> Running -> (stop asked) -> exited -> sweep --clear--> Exited
//!              \---- deadline, request, escalation -> fence --clear--> Exited, and a report
//! ```
//!
//! `guard` is called first on every wake-up and before every request, so that a permit which lay in the socket while
//! everything was frozen comes too late. Deliberately absent: the requests themselves (`requests.rs`), waiting
//! (`run.rs`).

use std::time::Duration;

use rustix::process::WaitStatus;

use super::deadline::{DEAD_MAN_SLACK, Verdict, verdict};
use super::deadman::{Timer, protect};
use super::home::Home;
use super::journal::Journal;
use super::kill::{Handle, Kill, Purpose};
use super::lock::{DataDirLock, Holder, SocketLock};
use super::process::{Census, DirectoryId, Search, stat};
use super::protocol::{Answer, Escalate};
use super::server::ClientId;
use super::spawn;
use super::status::{Exit, FenceReport, GuardianStatus, Link, PostgresProcess, Privileges};
use super::tether::{Followed, Tether};
use super::watchdog::Watchdog;
use crate::telemetry::clock;
use crate::types::{LeaderPermit, Mono, StopMode};

/// How often is looked for what nothing announces.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How often is looked whether a running standby has been promoted. By looking, not by a file notification: closing
/// one of those waits for the kernel's other users of them, seconds on a busy machine, and all of that before a dying
/// guardian's parent-death signal is sent.
const PROMOTION_LOOK: Duration = Duration::from_millis(100);

/// The postmaster under this guardian.
#[derive(Debug)]
pub struct Postmaster {
    /// Signals go through it.
    pub handle: Handle,
    /// When it was started.
    pub started: Mono,
    /// Whether it may accept writes.
    pub writable: bool,
    /// Whether its signal handlers are known to be in place.
    pub ready: bool,
    /// User and group that it was started as.
    pub owner: Option<(u32, Option<u32>)>,
    /// The directory that it runs in, whatever that is called by now.
    pub home: Option<DirectoryId>,
    /// How it ended, once it has.
    pub ended: Option<Ended>,
    /// Asked to promote, and not seen to have left recovery yet.
    pub promoting: bool,
    /// Not this process's child: its end is seen, but not how, and its parent is somebody else.
    pub adopted: bool,
}

/// How a postmaster ended, as far as its parent is told.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ended {
    /// The exit code.
    pub code: Option<i32>,
    /// The signal.
    pub signal: Option<i32>,
}

impl From<WaitStatus> for Ended {
    fn from(status: WaitStatus) -> Self {
        Self { code: status.exit_status(), signal: status.terminating_signal() }
    }
}

/// A stop under way.
#[derive(Debug, Clone, Copy)]
pub struct Stop {
    /// How.
    pub mode: StopMode,
    /// Since when.
    pub since: Mono,
    /// Until when; `None` once that has passed without consequence.
    pub until: Option<Mono>,
    /// What then.
    pub then: Escalate,
}

/// A request that is answered later.
#[derive(Debug, Clone, Copy)]
pub struct Waiting {
    /// Who asked.
    pub client: ClientId,
    /// The request's number.
    pub id: u64,
    /// For what.
    pub what: Awaited,
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// The end of a stop.
    Stopped,
    /// The end of a fence.
    Fenced,
}

/// The guardian's whole state, beside its connections.
#[derive(Debug)]
pub struct Core {
    pub(super) home: Home,
    pub(super) permit: Option<LeaderPermit>,
    pub(super) postmaster: Option<Postmaster>,
    pub(super) stop: Option<Stop>,
    pub(super) kill: Option<Kill>,
    pub(super) leftovers: u32,
    /// A child that this guardian has let go of and that would not outlive it.
    pub(super) released: Option<i32>,
    pub(super) watchdog: Watchdog,
    pub(super) privileges: Privileges,
    pub(super) lock: SocketLock,
    pub(super) data_lock: Option<DataDirLock>,
    pub(super) journal: Journal,
    /// The attached agent's connection and process.
    pub(super) agent: Option<(ClientId, u32)>,
    pub(super) waiting: Vec<Waiting>,
    /// Answers that became due; sent by the main loop.
    pub(super) due: Vec<(Waiting, Answer)>,
    /// The process is to end as soon as nothing runs.
    pub(super) ending: bool,
    pub(super) changed: bool,
    pub(super) census: Census,
    pub(super) tether: Option<Tether>,
    pub(super) exit: Option<Exit>,
    pub(super) last_fence: Option<FenceReport>,
    timer: Timer,
    heartbeat: Mono,
    change: u64,
    pid: i32,
}

impl Core {
    /// Takes every protection, ends what a dead guardian left, and looks for leftovers. After the last fork.
    ///
    /// # Errors
    /// When `/proc` cannot be read: without it nothing can be proved gone.
    pub fn new(
        home: Home,
        lock: SocketLock,
        data_lock: Option<DataDirLock>,
        journal: Journal,
    ) -> rustix::io::Result<Self> {
        let timer = Timer::new();
        let privileges = Privileges { dead_man: timer.kind(), ..protect() };
        let mut core = Self {
            home,
            permit: None,
            postmaster: None,
            stop: None,
            kill: None,
            leftovers: 0,
            released: None,
            watchdog: Watchdog::default(),
            privileges,
            lock,
            data_lock,
            journal,
            agent: None,
            waiting: Vec::with_capacity(16),
            due: Vec::with_capacity(16),
            ending: false,
            changed: true,
            census: Census::new()?,
            timer,
            tether: None,
            exit: None,
            last_fence: None,
            heartbeat: Mono(0),
            change: 0,
            pid: rustix::process::getpid().as_raw_nonzero().get(),
        };
        core.begin();
        Ok(core)
    }

    fn begin(&mut self) {
        let now = clock::now();
        self.note(now, format!("guardian {} of {}", env!("CARGO_PKG_VERSION"), self.home.path().display()));
        if self.lock.end_previous_tether() {
            self.note(now, "ended the tether of a guardian that had died".to_owned());
        }
        self.restart_tether(now);
        self.write_holder();
        // Also the rehearsal of the fence: what it needs of memory is in memory from now on.
        self.count_leftovers();
        if self.leftovers != 0 {
            match self.foreign_postmaster() {
                Some(pid) => self.note(now, format!("postmaster {pid} runs here, not started by this guardian")),
                None => self.kill = Some(Kill::begin(now, Purpose::Orphans, None)),
            }
        }
    }

    /// Adds a line to the journal.
    pub(super) fn note(&mut self, now: Mono, text: String) {
        self.journal.note(now, text);
    }

    /// Whether PostgreSQL may accept writes.
    pub fn writable(&self) -> bool {
        self.postmaster.as_ref().is_some_and(|postmaster| postmaster.writable)
    }

    /// The deadline. Called first on every wake-up and before every request.
    pub fn guard(&mut self, now: Mono) {
        if self.kill.is_none()
            && let Verdict::Fence(why) = verdict(now, self.permit, self.writable())
        {
            self.fence(now, why);
        }
    }

    /// Everything that is due, after the deadline: ended children, a kill under way, time-outs, the heartbeat.
    pub fn turn(&mut self, now: Mono) {
        self.reap(now);
        self.step_kill(now);
        if spawn::take_terminate() {
            self.terminate(now);
        }
        self.check_stop(now);
        self.notice_promotion(now);
        if now >= self.heartbeat {
            self.heartbeat = now + HEARTBEAT;
            if self.leftovers != 0 && self.postmaster.is_none() && self.kill.is_none() {
                self.count_leftovers();
            }
        }
        self.arm();
        if !self.writable() {
            self.journal.write_out();
        }
    }

    /// When to wake up next without being called.
    pub fn next_wake(&self, now: Mono) -> Mono {
        let standby = self.postmaster.as_ref().is_some_and(|postmaster| !postmaster.writable || postmaster.promoting);
        let mut next = now + if standby { PROMOTION_LOOK } else { HEARTBEAT };
        if let Some(kill) = &self.kill {
            next = next.min(kill.next());
        } else if let Verdict::Until(end) = verdict(now, self.permit, self.writable()) {
            next = next.min(end);
        }
        if let Some(until) = self.stop.and_then(|stop| stop.until) {
            next = next.min(until);
        }
        next
    }

    /// What becomes readable when a postmaster ends that is not this process's child. Children announce their end.
    pub fn end_of_adopted(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        let postmaster = self.postmaster.as_ref()?;
        if postmaster.adopted && postmaster.ended.is_none() { postmaster.handle.ends() } else { None }
    }

    /// Whether the process can end now.
    pub fn is_finished(&self) -> bool {
        self.ending && self.postmaster.is_none() && self.kill.is_none() && self.released.is_none()
    }

    /// Everyone who belongs to this data directory.
    pub(super) fn survey(&mut self) -> &[super::process::Stat] {
        let except = self.tether_pid();
        let home = self.residence();
        self.census.take(&Search { ancestor: self.pid, home, except: &[except] })
    }

    /// The search for [`Self::survey`], for those who hold another part of this.
    pub(super) fn search_parts(&self) -> (i32, Option<DirectoryId>, i32) {
        (self.pid, self.residence(), self.tether_pid())
    }

    fn residence(&self) -> Option<DirectoryId> {
        // While PostgreSQL runs its directory counts, even if it has been renamed since.
        match &self.postmaster {
            Some(postmaster) => postmaster.home,
            None => self.home.id(),
        }
    }

    /// 0, which no process has, when there is no tether.
    fn tether_pid(&self) -> i32 {
        self.tether.as_ref().map_or(0, |tether| tether.who().pid)
    }

    /// Counts processes that use the data directory although this guardian has no PostgreSQL.
    pub(super) fn count_leftovers(&mut self) {
        let count = u32::try_from(self.survey().len()).unwrap_or(u32::MAX);
        if count != self.leftovers {
            self.leftovers = count;
            self.changed = true;
        }
    }

    /// A living postmaster, or standalone backend, that this guardian did not start.
    pub(super) fn foreign_postmaster(&mut self) -> Option<i32> {
        let pid = self.home.pid_file()?.pid;
        self.survey().iter().any(|found| found.who.pid == pid).then_some(pid)
    }

    /// Starts the tether, again if need be.
    pub(super) fn restart_tether(&mut self, now: Mono) {
        // The old one first: its writing end must not outlive it for the new companion to inherit.
        self.tether = None;
        match Tether::start() {
            Ok(tether) => self.tether = Some(tether),
            Err(error) => self.note(now, format!("no tether: {error}; backends may outlive a frozen guardian")),
        }
        self.privileges.tether = self.tether.is_some();
        self.changed = true;
    }

    /// Tells the kernel what holds now: when to kill this process, and whom with it.
    pub(super) fn arm(&mut self) {
        let writable = self.writable();
        // Once everything has been sent SIGKILL, nothing is left for the dead man to do.
        let guarded = writable && !self.kill.as_ref().is_some_and(Kill::has_struck);
        self.timer.set(self.permit.filter(|_| guarded).map(|permit| permit.valid_until + DEAD_MAN_SLACK));
        let followed =
            self.postmaster.as_ref().filter(|postmaster| postmaster.writable && postmaster.ended.is_none()).and_then(
                |postmaster| {
                    let (pid, adopted) = (postmaster.handle.who().pid, postmaster.adopted);
                    Some(Followed { postmaster: pid, home: postmaster.home?, adopted })
                },
            );
        if let Some(tether) = &mut self.tether {
            tether.follow(followed);
        }
    }

    /// Writes down for a successor who holds the lock. May wait for the disk.
    pub(super) fn write_holder(&mut self) {
        let holder = Holder {
            guardian: stat(self.pid).map(|stat| stat.who),
            tether: self.tether.as_ref().map(Tether::who),
            watchdog: self.watchdog.armed().or(self.lock.previous_watchdog()).map(std::path::Path::to_owned),
        };
        if let Err(error) = self.lock.write(&holder) {
            self.note(clock::now(), format!("write the lock file: {error}"));
        }
    }

    /// Looks whether PostgreSQL has left recovery: `standby.signal` goes before the first write is possible. If nobody
    /// here had asked for it, PostgreSQL needs a permit from now on like any other primary, and without one it is
    /// fenced on the next call of `guard`.
    pub(super) fn notice_promotion(&mut self, now: Mono) {
        let Some(postmaster) = &mut self.postmaster else { return };
        let awaited = !postmaster.writable || postmaster.promoting;
        if postmaster.ended.is_some() || !awaited || !self.home.lost_standby_signal() {
            return;
        }
        self.changed = true;
        if std::mem::take(&mut postmaster.promoting) {
            // A repeated promotion may have written it after PostgreSQL had taken the first.
            self.home.remove_promote_file();
            self.note(now, "postgres has left recovery".to_owned());
        } else {
            postmaster.writable = true;
            self.note(now, "postgres was promoted by somebody else; it needs a permit from now on".to_owned());
            self.guard(now);
        }
    }

    /// The status, if it has changed since the last call.
    pub fn news(&mut self) -> Option<GuardianStatus> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        self.change += 1;
        Some(self.status())
    }

    /// The status.
    pub fn status(&self) -> GuardianStatus {
        GuardianStatus {
            pid: u32::try_from(self.pid).unwrap_or(0),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            change: self.change,
            link: Link::Attached,
            permit: self.permit,
            postgres: self.postgres(),
            last_fence: self.last_fence.clone(),
            leftovers: self.leftovers,
            privileges: self.privileges,
            watchdog: self.watchdog.state().clone(),
        }
    }

    fn postgres(&self) -> PostgresProcess {
        if let Some(kill) = &self.kill
            && let Purpose::Fence(why) = kill.purpose()
        {
            return PostgresProcess::Fencing { why: why.clone(), since: kill.since() };
        }
        let Some(postmaster) = &self.postmaster else {
            return self.exit.map_or(PostgresProcess::Absent, PostgresProcess::Exited);
        };
        let (pid, writable) = (postmaster.handle.who().number(), postmaster.writable);
        match self.stop {
            Some(Stop { mode, .. }) => PostgresProcess::Stopping { pid, mode, writable },
            None => PostgresProcess::Running { pid, started: postmaster.started, writable },
        }
    }
}

/// The handle on a postmaster that has not ended.
pub(super) fn living(postmaster: Option<&Postmaster>) -> Option<&Handle> {
    postmaster.filter(|postmaster| postmaster.ended.is_none()).map(|postmaster| &postmaster.handle)
}
