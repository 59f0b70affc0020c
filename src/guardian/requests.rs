//! What an agent may ask, and the rules by which it is refused.
//!
//! ```text
//! line -> attached? -> rule -> effect -> answer now, or when PostgreSQL has ended
//! ```
//!
//! The deadline was looked at just before each call. Deliberately absent: the socket (`server.rs`), what happens
//! without being asked (`supervise.rs`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use super::deadline::accept;
use super::kill::{Handle, Purpose};
use super::lock::DataDirLock;
use super::process::{shared_memory_users, stat};
use super::protocol::{
    AdoptRequest, Answer, Done, Escalate, Refusal, Request, StartMode, StartRequest, WatchdogConfig,
};
use super::server::{Asked, ClientId};
use super::spawn::{self, Inherited};
use super::status::FenceReason;
use super::supervise::{Awaited, Core, Postmaster, Waiting};
use super::watchdog::Watchdog;
use crate::telemetry::clock;
use crate::types::{LeaderPermit, Mono, StopMode};

/// How many answers may be outstanding.
const WAITING: usize = 64;
/// A stop may be asked to wait no longer than this; a day.
const LONGEST_STOP: Duration = Duration::from_secs(24 * 3600);

impl Core {
    /// Carries out one request. `None`: the answer comes later.
    pub fn handle(&mut self, now: Mono, asked: Asked) -> Option<Answer> {
        let Asked { client, id, request } = asked;
        let asker = Waiting { client, id, what: Awaited::Stopped };
        match request.and_then(|request| self.carry_out(now, asker, request)) {
            Ok(done) => done.map(Answer::Done),
            Err(refusal) => Some(Answer::Refused(refusal)),
        }
    }

    fn carry_out(&mut self, now: Mono, asker: Waiting, request: Request) -> Result<Option<Done>, Refusal> {
        let attached = self.agent.is_some_and(|(client, _)| client == asker.client);
        if !attached && !matches!(request, Request::Attach { .. } | Request::Status) {
            return Err(Refusal::NotAttached);
        }
        match request {
            Request::Attach { agent_pid, watchdog } => {
                self.attach(now, (asker.client, agent_pid), watchdog);
                Ok(Some(Done::Status(Box::new(self.status()))))
            }
            Request::Status => {
                if self.postmaster.is_none() && self.kill.is_none() {
                    self.count_leftovers();
                }
                Ok(Some(Done::Status(Box::new(self.status()))))
            }
            Request::Start(mut start) => {
                start.mode = self.with_newest_permit(start.mode);
                self.start(now, &start).map(|pid| Some(Done::Started { pid }))
            }
            Request::Adopt(adopt) => self.adopt(now, &adopt).map(|pid| Some(Done::Started { pid })),
            Request::Permit { permit } => self.hold(now, permit).map(|()| Some(Done::Accepted)),
            Request::Promote { permit } => self.promote(now, self.newest(permit)).map(|()| Some(Done::Accepted)),
            Request::Reload => {
                self.ready()?.signal(Signal::HUP).map_err(|error| failed("reload postgres", &error.into()))?;
                Ok(Some(Done::Accepted))
            }
            Request::Stop { mode, timeout_ms, then } => {
                self.stop_on_request(now, asker, (mode, Duration::from_millis(timeout_ms), then))
            }
            Request::Fence { why } => {
                self.fence(now, FenceReason::Requested { why });
                self.wait(Waiting { what: Awaited::Fenced, ..asker })
            }
            Request::Release => self.release(now).map(|()| Some(Done::Accepted)),
            Request::Shutdown => match (&self.postmaster, &self.kill) {
                (Some(postmaster), _) => Err(Refusal::StillRunning { pid: postmaster.handle.who().number() }),
                (None, Some(_)) => Err(Refusal::Fencing),
                (None, None) => {
                    self.ending = true;
                    self.note(now, "told to end by the agent".to_owned());
                    Ok(Some(Done::Accepted))
                }
            },
        }
    }

    /// Answers when what is under way is over; at once when it is over already.
    fn wait(&mut self, waiting: Waiting) -> Result<Option<Done>, Refusal> {
        if self.kill.is_none() && (waiting.what == Awaited::Fenced || self.postmaster.is_none()) {
            let fenced = self.last_fence.clone().filter(|_| waiting.what == Awaited::Fenced);
            return Ok(Some(fenced.map_or(Done::Stopped(self.exit), Done::Fenced)));
        }
        if self.waiting.len() == WAITING {
            return Err(Refusal::Failed { what: "wait".to_owned(), why: "too many requests wait already".to_owned() });
        }
        self.waiting.push(waiting);
        Ok(None)
    }

    fn attach(&mut self, now: Mono, agent: (ClientId, u32), watchdog: WatchdogConfig) {
        self.note(now, format!("agent {} attached", agent.1));
        self.agent = Some(agent);
        self.watchdog.configure(watchdog);
        if self.postmaster.is_none() && self.kill.is_none() {
            self.count_leftovers();
            self.put_inherited_watchdog_to_sleep(now);
        }
    }

    /// A guardian that died while its watchdog was armed has left a machine that is about to reset, although nothing
    /// of its PostgreSQL is left.
    fn put_inherited_watchdog_to_sleep(&mut self, now: Mono) {
        if self.leftovers != 0 {
            return;
        }
        if let Some(device) = self.lock.take_previous_watchdog() {
            let text = match Watchdog::disarm_inherited(&device) {
                Ok(()) => format!("put watchdog {} to sleep, which a dead guardian had armed", device.display()),
                Err(error) => format!("put watchdog {} to sleep: {error}", device.display()),
            };
            self.note(now, text);
        }
    }

    /// A start or a promotion was decided a moment ago; a renewal may have overtaken it. The proof is the term, the
    /// end is the later one.
    fn newest(&self, offered: LeaderPermit) -> LeaderPermit {
        self.permit
            .filter(|held| held.term == offered.term && offered.valid_until < held.valid_until)
            .unwrap_or(offered)
    }

    fn with_newest_permit(&self, mode: StartMode) -> StartMode {
        match mode {
            StartMode::Standby => StartMode::Standby,
            StartMode::Primary { permit } => StartMode::Primary { permit: self.newest(permit) },
        }
    }

    /// Holds a permit.
    fn hold(&mut self, now: Mono, permit: LeaderPermit) -> Result<(), Refusal> {
        if self.kill.is_some() && self.postmaster.is_some() {
            return Err(Refusal::Fencing);
        }
        accept(now, self.permit, permit)?;
        self.changed |= self.permit != Some(permit);
        self.permit = Some(permit);
        if self.writable() {
            self.watchdog.pet();
        }
        self.arm();
        Ok(())
    }

    /// The postmaster, once it can take signals: before its handlers are in place they would end it. It writes
    /// `postmaster.pid` afterwards, which is read until it is there and not again, since a read can wait for a disk.
    fn ready(&mut self) -> Result<&Handle, Refusal> {
        if self.kill.is_some() {
            return Err(Refusal::Fencing);
        }
        let postmaster = self.postmaster.as_mut().filter(|postmaster| postmaster.ended.is_none());
        let postmaster = postmaster.ok_or(Refusal::NotRunning)?;
        if !postmaster.ready {
            postmaster.ready = self.home.pid_file().is_some_and(|file| file.pid == postmaster.handle.who().pid);
        }
        if postmaster.ready { Ok(&postmaster.handle) } else { Err(Refusal::NotReady) }
    }

    /// The deadline first, then the promotion: at no moment is PostgreSQL writable without one.
    fn promote(&mut self, now: Mono, permit: LeaderPermit) -> Result<(), Refusal> {
        self.ready()?;
        if self.stop.is_some() {
            return Err(Refusal::Stopping);
        }
        accept(now, self.permit, permit)?;
        self.watchdog.arm()?;
        let was_writable = self.set_writable(true);
        self.hold(now, permit)?;
        let over = was_writable && !self.postmaster.as_ref().is_some_and(|postmaster| postmaster.promoting);
        // A file that PostgreSQL no longer looks for would stay and be copied around.
        if over || !self.home.has_standby_signal() {
            return Ok(());
        }
        if !was_writable {
            self.note(now, format!("promoting under the permit of term {}", permit.term));
        }
        if self.watchdog.armed().is_some() {
            self.write_holder();
        }
        let owner = self.postmaster.as_ref().and_then(|postmaster| postmaster.owner);
        if let Err(error) = self.home.write_promote_file(owner) {
            // Nothing was asked of PostgreSQL, so it still is what it was.
            self.set_writable(was_writable);
            self.arm();
            return Err(failed("write the promote file", &error));
        }
        if let Some(postmaster) = &mut self.postmaster {
            postmaster.promoting = true;
        }
        self.ready()?.signal(Signal::USR1).map_err(|error| failed("signal the postmaster", &error.into()))
    }

    /// Returns what it was.
    fn set_writable(&mut self, writable: bool) -> bool {
        let Some(postmaster) = &mut self.postmaster else { return false };
        self.changed |= postmaster.writable != writable;
        std::mem::replace(&mut postmaster.writable, writable)
    }

    fn stop_on_request(
        &mut self,
        now: Mono,
        asker: Waiting,
        (mode, within, then): (StopMode, Duration, Escalate),
    ) -> Result<Option<Done>, Refusal> {
        if self.postmaster.is_none() && self.kill.is_none() {
            return Ok(Some(Done::Stopped(None)));
        }
        if self.kill.is_none() {
            self.begin_stop(now, mode, within.min(LONGEST_STOP), then);
        }
        self.wait(asker)
    }

    /// Whether there is room for a PostgreSQL, and for one of this mode.
    fn may_begin(&mut self, now: Mono, program: &Path, mode: StartMode) -> Result<(), Refusal> {
        if let Some(postmaster) = &self.postmaster {
            let pid = postmaster.handle.who().number();
            return Err(if self.kill.is_some() {
                Refusal::Fencing
            } else if self.stop.is_some() {
                Refusal::Stopping
            } else {
                Refusal::AlreadyRunning { pid }
            });
        }
        if self.ending {
            return Err(Refusal::Stopping);
        }
        if self.kill.as_ref().is_some_and(|kill| matches!(kill.purpose(), Purpose::Fence(_))) {
            return Err(Refusal::Fencing);
        }
        self.census.set_program(program);
        if let StartMode::Primary { permit } = mode {
            accept(now, self.permit, permit)?;
        }
        self.home.check(mode)?;
        self.lock_data_dir()
    }

    fn start(&mut self, now: Mono, start: &StartRequest) -> Result<u32, Refusal> {
        self.may_begin(now, &start.program, start.mode)?;
        if let Some(pid) = self.foreign_postmaster() {
            return Err(Refusal::InUse { pid: u32::try_from(pid).unwrap_or(0) });
        }
        self.clear_orphans(now)?;
        self.leftovers = 0;
        self.put_inherited_watchdog_to_sleep(now);
        self.clear_pid_file(now)?;
        self.clear_socket_locks(now, &start.socket_dirs)?;
        self.launch(start)
    }

    /// The directory may be another than the one of the last start: moved aside and cloned anew.
    fn lock_data_dir(&mut self) -> Result<(), Refusal> {
        if self.data_lock.as_ref().is_some_and(|lock| lock.is_on(self.home.path())) {
            return Ok(());
        }
        self.data_lock = DataDirLock::take(self.home.path())
            .map_err(|error| Refusal::DataDirectory { path: self.home.path().to_owned(), why: error.to_string() })?;
        Ok(())
    }

    /// Locks of unix sockets make PostgreSQL refuse for the same reasons as a stale `postmaster.pid`. They name their
    /// data directory, and nobody uses this one.
    fn clear_socket_locks(&mut self, now: Mono, directories: &[PathBuf]) -> Result<(), Refusal> {
        for (lock, pid) in self.home.socket_locks(directories) {
            if stat(pid).is_none() {
                continue;
            }
            let name = lock.display();
            std::fs::remove_file(&lock).map_err(|error| failed(&format!("remove the stale {name}"), &error))?;
            self.note(now, format!("removed a stale {name}: its pid {pid} is no longer PostgreSQL's"));
        }
        Ok(())
    }

    /// PostgreSQL overwrites a stale `postmaster.pid` by itself, unless its number has been given to another process,
    /// or still is a zombie's (in a container whose first process reaps nobody); then it refuses. It is proved here
    /// that nobody uses the directory: no process lives in it, and nobody is attached to the shared memory that the
    /// file names.
    fn clear_pid_file(&mut self, now: Mono) -> Result<(), Refusal> {
        let Some(file) = self.home.pid_file() else { return Ok(()) };
        let Some(other) = stat(file.pid) else { return Ok(()) };
        let path = self.home.path().join("postmaster.pid");
        let attached = match file.shared_memory.map(shared_memory_users) {
            None => 0,
            Some(Ok(users)) => users.unwrap_or(0),
            Some(Err(error)) => {
                let why = format!("names pid {}, and its shared memory cannot be looked at: {error}", file.pid);
                return Err(Refusal::DataDirectory { path, why });
            }
        };
        if attached != 0 {
            let why = format!("{attached} processes that cannot be seen here use its shared memory (a container?)");
            return Err(Refusal::DataDirectory { path, why });
        }
        self.home.remove_pid_file().map_err(|error| failed("remove the stale postmaster.pid", &error))?;
        let whose = if other.is_alive() { "now another process's" } else { "a zombie's" };
        self.note(now, format!("removed a stale postmaster.pid: its pid {} is {whose}", file.pid));
        Ok(())
    }

    fn launch(&mut self, start: &StartRequest) -> Result<u32, Refusal> {
        self.become_writable(start.mode)?;
        let inherited = Inherited { oom_protected: self.privileges.oom_protected };
        let pid = spawn::postmaster(start, self.home.path(), inherited).map_err(|error| {
            self.watchdog.disarm();
            failed(&format!("start {}", start.program.display()), &error)
        })?;
        // A child that nobody has waited for keeps its number, even if it has ended already.
        let handle = stat(pid).and_then(|stat| Handle::on(stat.who)).ok_or_else(|| Refusal::Failed {
            what: format!("find postmaster {pid}"),
            why: "it is not in the process table".to_owned(),
        })?;
        let owner = start.uid.map(|uid| (uid, start.gid));
        self.take_charge(Found { handle, owner, adopted: false }, start.mode);
        Ok(u32::try_from(pid).unwrap_or(0))
    }

    /// Takes over what runs. Nothing is sent to it.
    fn adopt(&mut self, now: Mono, adopt: &AdoptRequest) -> Result<u32, Refusal> {
        self.may_begin(now, &adopt.program, adopt.mode)?;
        if self.kill.is_some() {
            return Err(Refusal::Fencing);
        }
        let nothing = Refusal::NothingToAdopt { path: self.home.path().to_owned() };
        let Some(pid) = self.foreign_postmaster() else { return Err(nothing) };
        let handle = stat(pid).and_then(|stat| Handle::on(stat.who)).ok_or(nothing)?;
        self.become_writable(adopt.mode)?;
        let owner = adopt.uid.map(|uid| (uid, adopt.gid));
        self.leftovers = 0;
        // One that was released here is a child all the same.
        let child = self.released.take() == Some(pid);
        self.take_charge(Found { handle, owner, adopted: !child }, adopt.mode);
        // It may have been promoted since the signal files were looked at.
        self.notice_promotion(clock::now());
        Ok(u32::try_from(pid).unwrap_or(0))
    }

    /// Lets go of what runs. Nothing is sent to it. First everything that would end it goes, then the knowledge of it.
    fn release(&mut self, now: Mono) -> Result<(), Refusal> {
        self.ready()?;
        if self.stop.is_some() {
            return Err(Refusal::Stopping);
        }
        let Some(postmaster) = self.postmaster.take() else { return Err(Refusal::NotRunning) };
        let pid = postmaster.handle.who().pid;
        (self.permit, self.exit) = (None, None);
        self.arm();
        if self.watchdog.armed().is_some() {
            self.watchdog.disarm();
            self.write_holder();
        }
        // The kernel kills a child of ours when this process ends.
        self.released = (!postmaster.adopted).then_some(pid);
        self.count_leftovers();
        self.changed = true;
        self.note(now, format!("released postgres, pid {pid}: it goes on without a guardian"));
        Ok(())
    }

    /// What must be in force before a PostgreSQL of this mode is under this guardian.
    fn become_writable(&mut self, mode: StartMode) -> Result<(), Refusal> {
        let StartMode::Primary { permit } = mode else { return Ok(()) };
        self.watchdog.arm()?;
        self.permit = Some(permit);
        self.watchdog.pet();
        if self.watchdog.armed().is_some() {
            self.write_holder();
        }
        Ok(())
    }

    fn take_charge(&mut self, found: Found, mode: StartMode) {
        let Found { handle, owner, adopted } = found;
        let (started, home) = (clock::now(), self.home.id());
        let writable = matches!(mode, StartMode::Primary { .. });
        let pid = handle.who().pid;
        self.postmaster = Some(Postmaster {
            handle,
            started,
            writable,
            owner,
            home,
            ended: None,
            ready: false,
            promoting: false,
            adopted,
        });
        (self.stop, self.exit) = (None, None);
        self.changed = true;
        self.arm();
        let verb = if adopted { "adopted" } else { "started" };
        let kind = if writable { "primary" } else { "standby" };
        self.note(started, format!("{verb} postgres as {kind}, pid {pid}"));
    }
}

/// A postmaster to take charge of.
struct Found {
    handle: Handle,
    owner: Option<(u32, Option<u32>)>,
    adopted: bool,
}

fn failed(what: &str, error: &std::io::Error) -> Refusal {
    Refusal::Failed { what: what.to_owned(), why: error.to_string() }
}
