//! What the kernel does for a guardian that cannot act: the dead man's timer, the kill on close, and the
//! protections against swapping, the out-of-memory killer and starvation.
//!
//! ```text
//! permit's end + 300 ms --kernel timer--> SIGKILL to the guardian, stopped or not
//!   guardian's death --kernel, parent-death signal (spawn.rs)--> SIGKILL to the postmaster
//!   guardian's death --kernel, its end of a pipe closes (tether.rs)--> SIGKILL to each tethered backend
//! ```
//!
//! A stopped process executes nothing, so no process can be trusted to fence when everything on the node is
//! frozen. Outside Linux none of this exists, and the status says so.

use std::os::fd::BorrowedFd;

use super::status::{DeadMan, Privileges, Scheduling};
use crate::types::Mono;

/// A kernel timer that kills this process.
#[derive(Debug)]
pub struct Timer {
    #[cfg(target_os = "linux")]
    timer: Option<libc::timer_t>,
    kind: DeadMan,
    armed: Option<Mono>,
}

#[cfg(target_os = "linux")]
impl Timer {
    /// Creates it, disarmed. It belongs to the process, so this must come after the last fork.
    pub fn new() -> Self {
        let tries = [(libc::CLOCK_BOOTTIME_ALARM, DeadMan::AlarmTimer), (libc::CLOCK_BOOTTIME, DeadMan::Timer)];
        for (clock, kind) in tries {
            if let Some(timer) = create(clock) {
                return Self { timer: Some(timer), kind, armed: None };
            }
        }
        Self { timer: None, kind: DeadMan::None, armed: None }
    }

    /// Arms it for a moment, or disarms it. Costs nothing when nothing changes.
    pub fn set(&mut self, at: Option<Mono>) {
        let Some(timer) = self.timer else { return };
        if at == self.armed {
            return;
        }
        // A zero time would disarm; the clock's origin is past, and one nanosecond after it is too.
        let nanos = at.map_or(0, |at| at.0.max(1));
        let value = libc::timespec {
            tv_sec: libc::time_t::try_from(nanos / 1_000_000_000).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::try_from(nanos % 1_000_000_000).unwrap_or(0),
        };
        let interval = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let setting = libc::itimerspec { it_interval: interval, it_value: value };
        #[allow(unsafe_code)]
        // SAFETY: the timer is this process's own and never deleted; the setting is valid; no old value is asked for.
        let result =
            unsafe { libc::timer_settime(timer, libc::TIMER_ABSTIME, &raw const setting, std::ptr::null_mut()) };
        if result == 0 {
            self.armed = at;
        }
    }
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn create(clock: libc::clockid_t) -> Option<libc::timer_t> {
    // SAFETY: all-zero is a valid sigevent.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = libc::SIGKILL;
    let mut timer: libc::timer_t = std::ptr::null_mut();
    // SAFETY: both addresses are those of live values of the right types.
    let result = unsafe { libc::timer_create(clock, &raw mut event, &raw mut timer) };
    (result == 0).then_some(timer)
}

#[cfg(not(target_os = "linux"))]
impl Timer {
    /// There is no such timer here.
    pub fn new() -> Self {
        Self { kind: DeadMan::None, armed: None }
    }

    /// Does nothing.
    pub fn set(&mut self, at: Option<Mono>) {
        self.armed = at;
    }
}

impl Default for Timer {
    fn default() -> Self {
        Self::new()
    }
}

impl Timer {
    /// Which kind the system granted.
    pub fn kind(&self) -> DeadMan {
        self.kind
    }
}

/// Makes the kernel send SIGKILL to a process when something happens on this end of a pipe, which for a pipe that
/// nobody writes to means: when the last writing end closes. It takes no process to act, so it works while the
/// victim and this process are stopped. The descriptor must have been opened for this victim alone, since the
/// owner belongs to the open file.
///
/// Only the first half: the victim is pinned but safe until [`arm_kill`].
///
/// # Errors
/// When the process is gone.
///
/// Source: fcntl(2), F_SETOWN, F_SETSIG and O_ASYNC.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub fn aim_kill(pipe: BorrowedFd<'_>, pid: i32) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: plain system calls on an open descriptor.
    let results = unsafe {
        [
            libc::fcntl(pipe.as_raw_fd(), libc::F_SETOWN, pid),
            // F_SETSIG, which the libc crate does not name everywhere; 10 on every architecture.
            libc::fcntl(pipe.as_raw_fd(), 10, libc::SIGKILL),
        ]
    };
    if results.contains(&-1) { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// The second half of [`aim_kill`].
///
/// # Errors
/// When the system refuses.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub fn arm_kill(pipe: BorrowedFd<'_>) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: a plain system call on an open descriptor.
    let result = unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK) };
    if result == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// Asks for every protection and reports what was granted. `tether` and `dead_man` are filled in by the caller.
#[cfg(target_os = "linux")]
pub fn protect() -> Privileges {
    use rustix::mm::{MlockAllFlags, mlockall};
    let own = rustix::process::getpid();
    // As they come in, not all at once: locking the whole binary would cost more memory than the guardian uses.
    let lock = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    Privileges {
        memory_locked: mlockall(lock).is_ok(),
        oom_protected: std::fs::write("/proc/self/oom_score_adj", "-1000").is_ok(),
        scheduling: schedule(),
        subreaper: rustix::process::set_child_subreaper(Some(own)).is_ok(),
        dead_man: DeadMan::None,
        tether: false,
    }
}

/// Nothing can be asked for here but a better nice value.
#[cfg(not(target_os = "linux"))]
pub fn protect() -> Privileges {
    Privileges { scheduling: nice(), ..Privileges::default() }
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn schedule() -> Scheduling {
    let lowest = libc::sched_param { sched_priority: 1 };
    // PostgreSQL must not inherit it, hence the reset on fork.
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the address is that of a live sched_param, and 0 is this process.
    if unsafe { libc::sched_setscheduler(0, policy, &raw const lowest) } == 0 {
        return Scheduling::Fifo;
    }
    let ordinary = libc::sched_param { sched_priority: 0 };
    let policy = libc::SCHED_OTHER | libc::SCHED_RESET_ON_FORK;
    // SAFETY: as above. Only when children do not inherit the nice value may it be raised.
    if unsafe { libc::sched_setscheduler(0, policy, &raw const ordinary) } == 0 { nice() } else { Scheduling::Normal }
}

fn nice() -> Scheduling {
    match rustix::process::setpriority_process(None, -10) {
        Ok(()) => Scheduling::Nice,
        Err(_) => Scheduling::Normal,
    }
}

/// Sets a watchdog device's time-out and returns the one in force.
///
/// # Errors
/// When the device refuses.
///
/// Source: Linux watchdog API, WDIOC_SETTIMEOUT.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub fn set_watchdog_timeout(device: BorrowedFd<'_>, seconds: u32) -> std::io::Result<u32> {
    use std::os::fd::AsRawFd;
    // _IOWR('W', 6, int), in the generic encoding of x86, ARM, RISC-V and s390.
    const WDIOC_SETTIMEOUT: u32 = 0xC004_5706;
    let mut value = libc::c_int::try_from(seconds).unwrap_or(libc::c_int::MAX);
    // SAFETY: the device reads and writes one int at the address, which is that of one.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::Ioctl::from(WDIOC_SETTIMEOUT), &raw mut value) };
    if result == -1 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(u32::try_from(value).unwrap_or(seconds))
}

/// There are no such devices here.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn set_watchdog_timeout(_device: BorrowedFd<'_>, _seconds: u32) -> std::io::Result<u32> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn closing_the_pipe_kills_a_stopped_process() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        let (reading, writing) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        aim_kill(reading.as_fd(), pid.as_raw_nonzero().get()).unwrap();
        arm_kill(reading.as_fd()).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "alive while the other end is open");
        drop(writing);
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn closing_the_reading_end_kills_nobody() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let (reading, _writing) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        aim_kill(reading.as_fd(), i32::try_from(child.id()).unwrap()).unwrap();
        arm_kill(reading.as_fd()).unwrap();
        drop(reading);
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success(), "ended by itself, not by a signal");
    }

    #[test]
    fn the_timer_exists_here() {
        let mut timer = Timer::new();
        assert_ne!(timer.kind(), DeadMan::None);
        timer.set(Some(crate::telemetry::clock::now() + std::time::Duration::from_secs(3600)));
        timer.set(None);
        assert_eq!(timer.armed, None);
    }
}
