//! Processes as `/proc` shows them.
//!
//! Deliberately absent: allocation, on the way that a census takes.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, SeekFrom, openat, readlinkat_raw, seek, statat};

use super::{Census, DirectoryId, Search, Stat, as_u64, is_program, parse_stat};

pub(super) fn open_proc() -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(c"/proc", flags, Mode::empty())
}

/// `PID/what`, without allocating.
struct ProcPath {
    text: [u8; 32],
    length: usize,
}

impl ProcPath {
    fn new(pid: i32, what: &[u8]) -> Self {
        let mut path = Self { text: [0; 32], length: 0 };
        let mut digits = [0_u8; 10];
        let mut rest = pid.unsigned_abs();
        let mut first = digits.len();
        loop {
            first -= 1;
            digits[first] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        path.push(&digits[first..]);
        path.push(b"/");
        path.push(what);
        path
    }

    fn push(&mut self, part: &[u8]) {
        self.text[self.length..self.length + part.len()].copy_from_slice(part);
        self.length += part.len();
    }

    fn as_bytes(&self) -> &[u8] {
        &self.text[..self.length]
    }
}

/// The state of one process; `None` when there is no such process.
pub fn stat(pid: i32) -> Option<Stat> {
    stat_at(&open_proc().ok()?, pid)
}

fn stat_at(proc: &OwnedFd, pid: i32) -> Option<Stat> {
    let path = ProcPath::new(pid, b"stat");
    let file = openat(proc, path.as_bytes(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut buffer = [0_u8; 1024];
    let length = rustix::io::read(&file, &mut buffer).ok()?;
    parse_stat(buffer.get(..length)?)
}

/// The children of a process, by its own list; `None` when it is gone or the kernel keeps no such list.
pub fn children_of(pid: i32, into: &mut Vec<i32>) -> Option<()> {
    into.clear();
    let mut path = [0_u8; 64];
    let text = format!("/proc/{pid}/task/{pid}/children");
    path.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
    let file = rustix::fs::open(path.get(..text.len())?, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut buffer = [0_u8; 4096];
    let mut number: Option<i32> = None;
    loop {
        let length = rustix::io::read(&file, &mut buffer).ok()?;
        if length == 0 {
            break;
        }
        for byte in &buffer[..length] {
            if byte.is_ascii_digit() {
                number = Some(number.unwrap_or(0).saturating_mul(10).saturating_add(i32::from(byte - b'0')));
            } else {
                into.extend(number.take());
            }
        }
    }
    into.extend(number);
    Some(())
}

impl Census {
    pub(super) fn enumerate(&mut self) {
        if seek(&self.proc, SeekFrom::Start(0)).is_err() {
            return;
        }
        let mut buffer = [MaybeUninit::<u8>::uninit(); 8192];
        let mut entries = RawDir::new(&self.proc, &mut buffer);
        while let Some(Ok(entry)) = entries.next() {
            let Some(pid) = entry.file_name().to_str().ok().and_then(|name| name.parse().ok()) else { continue };
            self.all.extend(stat_at(&self.proc, pid));
        }
    }

    /// Adds the tenants of the home directory among the processes that are no descendants.
    pub(super) fn keep_tenants(&mut self, search: &Search<'_>) {
        let Some(home) = search.home else { return };
        let own = rustix::process::getpid().as_raw_nonzero().get();
        for candidate in &self.all {
            let pid = candidate.who.pid;
            // The kernel's own threads are children of process 2.
            if !candidate.is_alive() || candidate.parent == 2 || pid == own || search.except.contains(&pid) {
                continue;
            }
            // The program first, which costs no file access: the working directory of a process that has nothing to
            // do with PostgreSQL may be on a file server that does not answer.
            if runs(&self.proc, pid, &self.program) && lives_in(&self.proc, pid, home) {
                self.found.push(*candidate);
            }
        }
    }
}

fn lives_in(proc: &OwnedFd, pid: i32, home: DirectoryId) -> bool {
    statat(proc, ProcPath::new(pid, b"cwd").as_bytes(), AtFlags::empty())
        .is_ok_and(|stat| DirectoryId { device: as_u64(stat.st_dev), inode: stat.st_ino } == home)
}

/// Whether it may be the program. A process that is about to be gone has no program any more, while its files and
/// sockets may still be open: it counts.
fn runs(proc: &OwnedFd, pid: i32, program: &std::ffi::CStr) -> bool {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
    match readlinkat_raw(proc, ProcPath::new(pid, b"exe").as_bytes(), &mut buffer) {
        Ok((path, _)) => is_program(path, program),
        Err(error) => error == rustix::io::Errno::NOENT,
    }
}

/// The user on the other side of a unix socket.
///
/// # Errors
/// When the system does not tell.
pub fn peer_uid(socket: &std::os::unix::net::UnixStream) -> std::io::Result<u32> {
    Ok(rustix::net::sockopt::socket_peercred(socket)?.uid.as_raw())
}
