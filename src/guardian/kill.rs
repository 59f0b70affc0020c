//! Killing everything of a data directory, and knowing when nothing is left.
//!
//! ```text
//! SIGQUIT to the postmaster --at most 100 ms--> SIGKILL to all --census--> again --until twice empty--> clear
//! ```
//!
//! A state machine that is stepped by the main loop: no step waits, so requests and deadlines are served between
//! steps even when a process hangs in the kernel and cannot die. Backends have sessions of their own, so no process
//! group reaches them; the census does. Deliberately absent: when to kill (`deadline.rs`, `supervise.rs`).

use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Signal;

use super::deadline::QUIT_GRACE;
use super::process::{Census, Identity, Search, stat};
use super::status::FenceReason;
use crate::types::Mono;

/// A handle on one process: signals reach it or nobody.
#[derive(Debug)]
pub struct Handle {
    who: Identity,
    #[cfg(target_os = "linux")]
    pidfd: Option<std::os::fd::OwnedFd>,
}

impl Handle {
    /// A handle on a process; `None` when it is gone, or another has its number.
    #[cfg(target_os = "linux")]
    pub fn on(who: Identity) -> Option<Self> {
        use rustix::process::{PidfdFlags, pidfd_open};
        let pidfd = match pidfd_open(who.rustix()?, PidfdFlags::empty()) {
            Ok(pidfd) => Some(pidfd),
            Err(Errno::SRCH | Errno::INVAL) => return None,
            // A kernel before 5.3.
            Err(_) => None,
        };
        // Opened first and compared then: what the handle is on cannot change any more.
        is_still(who).then_some(Self { who, pidfd })
    }

    /// A handle on a process; `None` when it is gone, or another has its number.
    #[cfg(not(target_os = "linux"))]
    pub fn on(who: Identity) -> Option<Self> {
        is_still(who).then_some(Self { who })
    }

    /// Who it is on.
    pub fn who(&self) -> Identity {
        self.who
    }

    /// Becomes readable when the process ends; `None` where there is no such thing.
    pub fn ends(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        #[cfg(target_os = "linux")]
        return self.pidfd.as_ref().map(std::os::fd::AsFd::as_fd);
        #[cfg(not(target_os = "linux"))]
        None
    }

    /// Sends a signal. Sending to a process that has ended is no error.
    ///
    /// # Errors
    /// When the system refuses, which for one's own PostgreSQL it does not.
    pub fn signal(&self, signal: Signal) -> rustix::io::Result<()> {
        match self.send(signal) {
            Err(Errno::SRCH) => Ok(()),
            other => other,
        }
    }

    fn send(&self, signal: Signal) -> rustix::io::Result<()> {
        #[cfg(target_os = "linux")]
        if let Some(pidfd) = &self.pidfd {
            return rustix::process::pidfd_send_signal(pidfd, signal);
        }
        match self.who.rustix().filter(|_| is_still(self.who)) {
            Some(pid) => rustix::process::kill_process(pid, signal),
            None => Ok(()),
        }
    }
}

fn is_still(who: Identity) -> bool {
    stat(who.pid).is_some_and(|now| now.who == who)
}

/// Why a kill is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// A fence, which is reported.
    Fence(FenceReason),
    /// The postmaster has ended; whoever outlived it must not answer anyone.
    Sweep,
    /// Orphans of an earlier guardian.
    Orphans,
}

/// One kill under way.
#[derive(Debug)]
pub struct Kill {
    purpose: Purpose,
    since: Mono,
    stage: Stage,
    hit: Vec<Identity>,
    scans: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The postmaster has been sent SIGQUIT and is ending its children.
    Quitting { until: Mono },
    /// SIGKILL; look again at this moment.
    Killing { next: Mono },
}

/// Where a kill stands after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Not done; step again at this moment, or when a child ends.
    Again(Mono),
    /// Nothing is left.
    Clear,
}

/// How many victims are remembered without allocating.
const ROOM: usize = 4096;

impl Kill {
    /// Begins. A fence asks the postmaster to end first, unless it is stopped and cannot hear.
    pub fn begin(now: Mono, purpose: Purpose, postmaster: Option<&Handle>) -> Self {
        let polite = matches!(purpose, Purpose::Fence(_));
        let asked = postmaster.filter(|_| polite).is_some_and(|postmaster| {
            let hears = stat(postmaster.who().pid).is_some_and(|stat| stat.is_alive() && !stat.is_stopped());
            hears && postmaster.signal(Signal::QUIT).is_ok()
        });
        let stage = if asked { Stage::Quitting { until: now + QUIT_GRACE } } else { Stage::Killing { next: now } };
        Self { purpose, since: now, stage, hit: Vec::with_capacity(ROOM), scans: 0 }
    }

    /// Why.
    pub fn purpose(&self) -> &Purpose {
        &self.purpose
    }

    /// Since when.
    pub fn since(&self) -> Mono {
        self.since
    }

    /// How many processes were sent SIGKILL.
    pub fn killed(&self) -> u32 {
        u32::try_from(self.hit.len()).unwrap_or(u32::MAX)
    }

    /// When to step again.
    pub fn next(&self) -> Mono {
        match self.stage {
            Stage::Quitting { until: at } | Stage::Killing { next: at } => at,
        }
    }

    /// Whether everything that was found has been sent SIGKILL at least once.
    pub fn has_struck(&self) -> bool {
        self.scans > 0
    }

    /// Makes a fence of a sweep that is under way, so that it is reported.
    pub fn turn_into(&mut self, why: FenceReason) {
        if !matches!(self.purpose, Purpose::Fence(_)) {
            self.purpose = Purpose::Fence(why);
        }
    }

    /// Goes on. `postmaster` is `None` once it has been reaped; ended children are reaped before.
    pub fn step(
        &mut self,
        now: Mono,
        postmaster: Option<&Handle>,
        census: &mut Census,
        search: &Search<'_>,
    ) -> Progress {
        match self.stage {
            // The postmaster ends last, so while it is there, nothing is won by looking.
            Stage::Quitting { until } if postmaster.is_some() && now < until => return Progress::Again(until),
            Stage::Killing { next } if now < next => return Progress::Again(next),
            Stage::Quitting { .. } | Stage::Killing { .. } => (),
        }
        if let Some(postmaster) = postmaster {
            // First, so that it starts no further backends.
            self.hit(postmaster);
        }
        let left = self.scan(census, search);
        // Twice: a process that starts and one that ends between two entries of one reading can hide a third.
        if left == 0 && postmaster.is_none() && self.scan(census, search) == 0 {
            return Progress::Clear;
        }
        self.scans += 1;
        // Soon at first, since SIGKILL takes effect in a millisecond; seldom when something hangs in the kernel.
        let pause = Duration::from_millis(1 << self.scans.min(5));
        let next = now + pause;
        self.stage = Stage::Killing { next };
        Progress::Again(next)
    }

    fn scan(&mut self, census: &mut Census, search: &Search<'_>) -> usize {
        let found = census.take(search);
        for process in found {
            if let Some(handle) = Handle::on(process.who) {
                self.hit(&handle);
            }
        }
        found.len()
    }

    fn hit(&mut self, victim: &Handle) {
        // A failure shows as a process that stays, and is tried again.
        let _ = victim.signal(Signal::KILL);
        if !self.hit.contains(&victim.who()) {
            self.hit.push(victim.who());
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use crate::telemetry::clock;

    fn sleeper() -> (std::process::Child, Identity) {
        let child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        (child, stat(pid).unwrap().who)
    }

    #[test]
    fn a_reused_number_is_somebody_else() {
        let (mut child, who) = sleeper();
        let other = Identity { start: who.start + 1, ..who };
        assert!(Handle::on(other).is_none(), "same pid, another start time");
        let handle = Handle::on(who).unwrap();
        handle.signal(Signal::KILL).unwrap();
        child.wait().unwrap();
        assert!(Handle::on(who).is_none());
        assert_eq!(handle.signal(Signal::KILL), Ok(()), "a dead process is not an error");
    }

    #[test]
    fn a_stopped_child_is_killed_and_only_then_it_is_clear() {
        // Everything below a shell of this test, so that tests beside it are left alone.
        let script = "sleep 1000 & kill -STOP $!; sleep 1000 & echo ready; wait";
        let mut shell =
            std::process::Command::new("sh").args(["-c", script]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut said = [0_u8; 6];
        std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut said).unwrap();
        let root = i32::try_from(shell.id()).unwrap();
        let search = Search { ancestor: root, home: None, except: &[] };
        let mut census = Census::new().unwrap();
        let begun = clock::now();
        let mut kill = Kill::begin(begun, Purpose::Sweep, None);
        loop {
            match kill.step(clock::now(), None, &mut census, &search) {
                Progress::Clear => break,
                Progress::Again(_) => std::thread::yield_now(),
            }
            assert!(clock::now().since(begun) < Duration::from_secs(10), "still alive after ten seconds");
        }
        assert_eq!(kill.killed(), 2);
        assert!(census.take(&search).is_empty());
        shell.wait().unwrap();
    }
}
