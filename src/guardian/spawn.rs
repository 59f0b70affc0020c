//! The edges of the process: leaving the agent, hearing signals, starting the postmaster, reaping children.
//!
//! ```text
//! howdah guardian --detach --fork--> setsid --fork--> the guardian (nobody's child, no terminal, cwd /)
//! guardian --fork--> [oom score, user, log, parent-death signal] --exec--> postgres
//! ```
//!
//! Forks come from the only thread, which lives as long as the process: the parent-death signal is tied to the
//! thread that forked. Deliberately absent: whether PostgreSQL may start (`supervise.rs`, `home.rs`).

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use rustix::process::{WaitOptions, WaitStatus};

use super::protocol::StartRequest;

/// Set by SIGTERM; counted down by the main loop.
static TERMINATE: AtomicBool = AtomicBool::new(false);
/// The writing end of the pipe that a signal handler wakes the main loop with.
static WAKE: AtomicI32 = AtomicI32::new(-1);

/// Async-signal-safe: an atomic store and a write, and errno as it was found.
extern "C" fn on_signal(signal: libc::c_int) {
    if signal == libc::SIGTERM {
        TERMINATE.store(true, Ordering::Relaxed);
    }
    let saved = io::Error::last_os_error().raw_os_error();
    let wake = WAKE.load(Ordering::Relaxed);
    if wake >= 0 {
        #[allow(unsafe_code)]
        // SAFETY: the descriptor is never closed while handlers are installed; one byte is read from a constant. A
        // full pipe wakes as well as one more byte does.
        unsafe {
            libc::write(wake, [0_u8].as_ptr().cast(), 1);
        }
    }
    if let Some(saved) = saved {
        set_errno(saved);
    }
}

#[cfg(target_os = "linux")]
fn set_errno(value: i32) {
    #[allow(unsafe_code)]
    // SAFETY: the address of this thread's errno is always valid.
    unsafe {
        *libc::__errno_location() = value;
    }
}

#[cfg(not(target_os = "linux"))]
fn set_errno(value: i32) {
    #[cfg(target_vendor = "apple")]
    #[allow(unsafe_code)]
    // SAFETY: the address of this thread's errno is always valid.
    unsafe {
        *libc::__error() = value;
    }
    #[cfg(not(target_vendor = "apple"))]
    let _ = value;
}

/// Ignores SIGHUP, SIGINT and SIGPIPE; makes SIGCHLD and SIGTERM wake the main loop. Returns the end of the pipe to
/// poll and drain.
///
/// # Errors
/// When there are no descriptors.
pub fn hear_signals() -> io::Result<OwnedFd> {
    let (reading, writing) = wake_pipe()?;
    // Never closed: a handler may run at any moment until the process ends.
    WAKE.store(std::os::fd::IntoRawFd::into_raw_fd(writing), Ordering::Relaxed);
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGPIPE] {
        dispose(signal, libc::SIG_IGN)?;
    }
    for signal in [libc::SIGCHLD, libc::SIGTERM] {
        dispose(signal, on_signal as *const () as libc::sighandler_t)?;
    }
    Ok(reading)
}

/// Whether SIGTERM arrived since the last call.
pub fn take_terminate() -> bool {
    TERMINATE.swap(false, Ordering::Relaxed)
}

/// A pipe, both ends non-blocking and closed on exec.
///
/// # Errors
/// When there are no descriptors.
pub fn wake_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reading, writing) = rustix::pipe::pipe()?;
    for end in [&reading, &writing] {
        rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(end, rustix::fs::OFlags::NONBLOCK)?;
    }
    Ok((reading, writing))
}

#[allow(unsafe_code)]
fn dispose(signal: libc::c_int, disposition: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: all-zero is a valid sigaction (no flags, empty mask).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = disposition;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler is async-signal-safe, the address is that of a live sigaction, no old one is asked for.
    match unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Closes whatever the caller had open and let slip, such as a listener that a restarted agent will want to bind
/// again. To be called before anything is opened.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub fn close_inherited() {
    // SAFETY: nothing above the standard streams belongs to this process yet.
    unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
}

/// Nothing: there is no such call here, and Rust programs let nothing slip.
#[cfg(not(target_os = "linux"))]
pub fn close_inherited() {}

/// Leaves the process that started this one: two forks and a session of its own, so that it is nobody's child, has no
/// terminal, and shares no standard stream. Returns in the grandchild only; its parents end with status 0.
///
/// Must be called before any thread is started.
///
/// # Errors
/// When the system cannot fork, in the first process only.
pub fn detach(log: Option<&Path>) -> io::Result<()> {
    if !fork()? {
        leave(0);
    }
    // In the child, an error cannot be told to anyone but through the exit that nobody sees: the agent will find
    // that nobody listens.
    let _ = rustix::process::setsid();
    match fork() {
        Ok(true) => (),
        Ok(false) => leave(0),
        Err(_) => leave(1),
    }
    let _ = rustix::process::chdir(c"/");
    redirect_streams(log)
}

/// Standard input from `/dev/null`; output and error to the log, where a panic's message would end up.
fn redirect_streams(log: Option<&Path>) -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let out = log.and_then(|log| OpenOptions::new().append(true).create(true).open(log).ok());
    let out = out.as_ref().unwrap_or(&null);
    duplicate(null.as_fd(), libc::STDIN_FILENO)?;
    duplicate(out.as_fd(), libc::STDOUT_FILENO)?;
    duplicate(out.as_fd(), libc::STDERR_FILENO)
}

/// Makes a standard stream of an open file.
#[allow(unsafe_code)]
fn duplicate(file: BorrowedFd<'_>, stream: libc::c_int) -> io::Result<()> {
    // SAFETY: replaces one of the three standard streams, which Rust does not own.
    match unsafe { libc::dup2(file.as_raw_fd(), stream) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Forks. `true` in the child.
#[allow(unsafe_code)]
fn fork() -> io::Result<bool> {
    // SAFETY: the process has one thread, so the child's memory is consistent and it may do anything.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(true),
        _ => Ok(false),
    }
}

/// Ends at once, without destructors or exit handlers of the parent's copy.
#[allow(unsafe_code)]
fn leave(code: i32) -> ! {
    // SAFETY: always allowed.
    unsafe { libc::_exit(code) }
}

/// Forks a companion process that runs `body` with only the given descriptors open, beside standard error, and ends
/// with it. It ignores the signals that end programs politely: it must outlive the guardian.
///
/// # Errors
/// When the system cannot fork.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub fn companion(keep: [OwnedFd; 2], body: impl FnOnce([OwnedFd; 2]) -> i32) -> io::Result<i32> {
    use std::os::fd::FromRawFd;
    // SAFETY: the guardian has one thread, so the child's memory is consistent and it may do anything.
    let pid = unsafe { libc::fork() };
    if pid != 0 {
        return if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) };
    }
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGPIPE] {
        let _ = dispose(signal, libc::SIG_IGN);
    }
    let _ = dispose(libc::SIGCHLD, libc::SIG_DFL);
    let _ = rustix::process::setsid();
    // The guardian's locks, sockets and watchdog must not stay open here. First out of the way, then into place.
    let high: [i32; 2] = std::array::from_fn(|index| {
        // SAFETY: duplicates an open descriptor to a free number above 63.
        unsafe { libc::fcntl(keep[index].as_raw_fd(), libc::F_DUPFD_CLOEXEC, 64) }
    });
    for (index, from) in (3..).zip(high) {
        // SAFETY: takes over numbers 3 and 4; their former owners are in memory that nobody uses again.
        unsafe { libc::dup3(from, index, libc::O_CLOEXEC) };
    }
    std::mem::forget(keep);
    // SAFETY: closes what lies above; nothing in this process uses it again.
    unsafe { libc::syscall(libc::SYS_close_range, 5_u32, u32::MAX, 0_u32) };
    // SAFETY: numbers 3 and 4 are open, and nobody else in this process owns them any more.
    let kept = [3, 4].map(|number| unsafe { OwnedFd::from_raw_fd(number) });
    leave(body(kept))
}

/// The guardian's own protections, which PostgreSQL must not inherit.
#[derive(Debug, Clone, Copy)]
pub struct Inherited {
    /// The guardian has `oom_score_adj` -1000.
    pub oom_protected: bool,
}

/// Starts the postmaster and returns its process id. The child dies with this process (Linux).
///
/// # Errors
/// The operation that failed, up to and including exec.
#[allow(unsafe_code)]
pub fn postmaster(request: &StartRequest, home: &Path, inherited: Inherited) -> io::Result<i32> {
    let mut command = Command::new(&request.program);
    command.args(&request.args);
    if !request.args.iter().any(|arg| arg.starts_with("-D")) {
        command.arg("-D").arg(home);
    }
    command.env_clear().envs(&request.env);
    if inherited.oom_protected && !request.env.contains_key("PG_OOM_ADJUST_FILE") {
        // The postmaster protected, its backends as any process.
        // Source: PostgreSQL documentation, "Linux Memory Overcommit".
        command.env("PG_OOM_ADJUST_FILE", "/proc/self/oom_score_adj").env("PG_OOM_ADJUST_VALUE", "0");
    }
    command.current_dir(request.cwd.as_deref().unwrap_or(home));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = Child {
        uid: request.uid,
        gid: request.gid,
        groups: request.groups.clone(),
        log: request.log_file.as_deref().map(c_path).transpose()?,
        guardian: rustix::process::getpid().as_raw_nonzero().get(),
        oom_protected: inherited.oom_protected,
    };
    // SAFETY: `prepare` makes only async-signal-safe calls and allocates nothing.
    unsafe { command.pre_exec(move || child.prepare()) };
    let started = command.spawn()?;
    i32::try_from(started.id()).map_err(io::Error::other)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// What the child does to itself between fork and exec.
struct Child {
    uid: Option<u32>,
    gid: Option<u32>,
    groups: Vec<u32>,
    log: Option<CString>,
    guardian: i32,
    oom_protected: bool,
}

impl Child {
    fn prepare(&self) -> io::Result<()> {
        rustix::process::setsid()?;
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGPIPE, libc::SIGTERM, libc::SIGCHLD] {
            dispose(signal, libc::SIG_DFL)?;
        }
        if self.oom_protected {
            write_oom_score();
        }
        self.become_user()?;
        if let Some(log) = &self.log {
            redirect_output(log)?;
        }
        self.die_with_parent()
    }

    #[allow(unsafe_code)]
    fn become_user(&self) -> io::Result<()> {
        let check = |result: libc::c_int| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        if let Some(uid) = self.uid.filter(|_| rustix::process::geteuid().is_root()) {
            // SAFETY: the pointer and the count describe one live list.
            let result = unsafe { libc::setgroups(count(self.groups.len()), self.groups.as_ptr()) };
            check(result)?;
            if let Some(gid) = self.gid {
                // SAFETY: always allowed.
                check(unsafe { libc::setgid(gid) })?;
            }
            // SAFETY: always allowed.
            check(unsafe { libc::setuid(uid) })?;
        }
        Ok(())
    }

    /// After the change of user, which clears it.
    #[cfg(target_os = "linux")]
    fn die_with_parent(&self) -> io::Result<()> {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // The guardian may have died before the line above, and then nothing would ever come.
        if rustix::process::getppid().map(|parent| parent.as_raw_nonzero().get()) != Some(self.guardian) {
            leave(1);
        }
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    fn die_with_parent(&self) -> io::Result<()> {
        let _ = self.guardian;
        Ok(())
    }
}

/// The count's type differs between systems.
fn count<T: TryFrom<usize> + Default>(length: usize) -> T {
    T::try_from(length).unwrap_or_default()
}

/// Best effort: the postmaster a little less protected than the guardian, as packagers do.
fn write_oom_score() {
    use rustix::fs::{Mode, OFlags, open};
    if let Ok(file) = open(c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        let _ = rustix::io::write(&file, b"-900");
    }
}

fn redirect_output(log: &CString) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = open(log.as_c_str(), flags, Mode::RUSR | Mode::WUSR)?;
    duplicate(file.as_fd(), libc::STDOUT_FILENO)?;
    duplicate(file.as_fd(), libc::STDERR_FILENO)
}

/// The next child that has ended: its number and how. Also orphans, whose reaper this process is.
pub fn reap() -> Option<(i32, WaitStatus)> {
    let (pid, status) = rustix::process::wait(WaitOptions::NOHANG).ok()??;
    Some((pid.as_raw_nonzero().get(), status))
}

/// Empties a non-blocking pipe, timer or event descriptor.
pub fn drain(fd: BorrowedFd<'_>) {
    let mut buffer = [0_u8; 512];
    while rustix::io::read(fd.as_fd(), &mut buffer).is_ok_and(|length| length == buffer.len()) {}
}
