//! The guardian's main loop: one thread that waits for everything at once.
//!
//! ```text
//! wake (timer on the clock that counts suspension | child | socket | signal)
//!   -> deadline -> what is due -> requests, each after another look at the deadline -> answers, status, log -> wait
//! ```
//!
//! Nothing here waits for a client or, while PostgreSQL is writable, for a disk. Deliberately absent: every rule.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::protocol::{Request, Says};
use super::server::{Asked, Server};
use super::spawn::drain;
use super::supervise::Core;
use crate::telemetry::clock;
use crate::types::Mono;

/// Runs until the guardian is told to end.
pub fn run(mut core: Core, mut server: Server, signals: &OwnedFd) {
    let alarm = Alarm::new();
    let mut asked = Vec::with_capacity(16);
    loop {
        let now = clock::now();
        core.guard(now);
        core.turn(now);
        serve(&mut core, &mut server, &mut asked);
        publish(&mut core, &mut server);
        server.flush();
        if core.is_finished() {
            core.journal.write_out();
            return;
        }
        let next = core.next_wake(clock::now());
        wait(&core, &server, signals, &alarm, next);
        core.guard(clock::now());
        drain(signals.as_fd());
        alarm.drain();
    }
}

/// Takes requests, oldest first.
fn serve(core: &mut Core, server: &mut Server, asked: &mut Vec<Asked>) {
    server.accept(core.agent.map(|(client, _)| client));
    server.read(asked);
    for request in asked.drain(..) {
        let before = core.agent;
        let (client, id) = (request.client, request.id);
        let attaches = matches!(request.request, Ok(Request::Attach { .. }));
        let now = clock::now();
        core.guard(now);
        let answer = core.handle(now, request);
        if let (true, Some((old, _)), Some((new, by))) = (attaches, before, core.agent)
            && old != new
        {
            server.say(old, Says::Replaced { by });
            server.close(old);
        }
        if let Some(answer) = answer {
            // The change first: whoever has the answer can rely on the status.
            tell_news(core, server);
            server.say(client, Says::Reply { id, answer });
        }
    }
    // A request that took long, such as a start, may have used up the permit.
    core.guard(clock::now());
    if let Some((client, pid)) = core.agent
        && !server.has(client)
    {
        core.agent = None;
        core.note(clock::now(), format!("agent {pid} is gone; the permit goes on until its end"));
    }
}

/// Tells what changed, then sends the answers that have become due.
fn publish(core: &mut Core, server: &mut Server) {
    tell_news(core, server);
    for (waiting, answer) in core.due.drain(..) {
        server.say(waiting.client, Says::Reply { id: waiting.id, answer });
    }
    let agent = core.agent.map(|(client, _)| client).filter(|client| server.has(*client));
    let Some(agent) = agent else { return };
    while let Some(line) = core.journal.next_untold() {
        server.say(agent, Says::Log { at: line.at, text: line.text });
    }
}

fn tell_news(core: &mut Core, server: &mut Server) {
    let Some((agent, _)) = core.agent else { return };
    if let Some(status) = core.news() {
        server.say(agent, Says::Status(Box::new(status)));
    }
}

fn wait(core: &Core, server: &Server, signals: &OwnedFd, alarm: &Alarm, next: Mono) {
    let readable = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
    let mut fds = Vec::with_capacity(16);
    fds.push(readable(signals.as_fd()));
    fds.extend(alarm.set(next).map(readable));
    fds.extend(core.end_of_adopted().map(readable));
    for (fd, writes) in server.descriptors() {
        let flags = if writes { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        fds.push(PollFd::from_borrowed_fd(fd, flags));
    }
    // Also when there is an alarm: one that fails must not stop the loop.
    let timeout = timespec(next.since(clock::now()));
    // An interruption is a signal, which is a reason to wake up.
    let _ = poll(&mut fds, Some(&timeout));
}

fn timespec(span: Duration) -> Timespec {
    let seconds = i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    Timespec { tv_sec: seconds, tv_nsec: i64::from(span.subsec_nanos()) }
}

/// Waits a moment, for nothing else.
pub(super) fn pause(span: Duration) {
    let _ = poll(&mut [], Some(&timespec(span)));
}

/// A timer on the clock that counts suspension, so that a machine that wakes up finds the deadline passed at once;
/// the time-out of `poll` would stand still meanwhile.
struct Alarm {
    timer: Option<OwnedFd>,
}

#[cfg(target_os = "linux")]
impl Alarm {
    fn new() -> Self {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Self { timer: timerfd_create(TimerfdClockId::Boottime, flags).ok() }
    }

    /// Sets it and returns what to wait for.
    fn set(&self, at: Mono) -> Option<BorrowedFd<'_>> {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, timerfd_settime};
        let timer = self.timer.as_ref()?;
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let setting = Itimerspec { it_interval: zero, it_value: timespec(Duration::from_nanos(at.0.max(1))) };
        timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &setting).ok()?;
        Some(timer.as_fd())
    }
}

#[cfg(not(target_os = "linux"))]
impl Alarm {
    fn new() -> Self {
        Self { timer: None }
    }

    fn set(&self, _at: Mono) -> Option<BorrowedFd<'_>> {
        self.timer.as_ref().map(AsFd::as_fd)
    }
}

impl Alarm {
    fn drain(&self) {
        if let Some(timer) = &self.timer {
            drain(timer.as_fd());
        }
    }
}
