//! Who is who among processes: identity, family and tenancy of a data directory.
//!
//! ```text
//! /proc/PID/stat -> Stat (pid, parent, state, start)      an Identity is pid + start time, so a reused pid is another
//! Census: all of /proc -> descendants of the guardian  +  postgres programs whose working directory is PGDATA
//! ```
//!
//! A zombie is never alive. The census is taken while PostgreSQL is being killed, so it works in buffers that exist
//! already. On macOS it asks libproc instead of /proc. Deliberately absent: signals (`kill.rs`).

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod macos;

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::Pid;

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The number.
    pub pid: i32,
    /// When it started, in clock ticks since boot; 0 where the system does not tell.
    pub start: u64,
}

impl Identity {
    /// For rustix, which has no number 0.
    pub fn rustix(self) -> Option<Pid> {
        Pid::from_raw(self.pid)
    }

    /// For the protocol.
    pub fn number(self) -> u32 {
        u32::try_from(self.pid).unwrap_or(0)
    }
}

/// The part of `/proc/PID/stat` that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Who.
    pub who: Identity,
    /// Its parent.
    pub parent: i32,
    /// `R`, `S`, `D`, `T`, `Z`, ...
    pub state: u8,
}

impl Stat {
    /// Whether it can still execute anything.
    pub fn is_alive(&self) -> bool {
        !matches!(self.state, b'Z' | b'X' | b'x')
    }

    /// Whether it is stopped (SIGSTOP, debugger) and so cannot act on a polite signal.
    pub fn is_stopped(&self) -> bool {
        matches!(self.state, b'T' | b't')
    }
}

/// Reads the text of `/proc/PID/stat`. The program's name in it may contain anything, also `") S 1"`: the last
/// parenthesis counts.
///
/// Source: proc_pid_stat(5), fields 1, 3, 4 and 22.
#[cfg(any(target_os = "linux", test))]
pub fn parse_stat(text: &[u8]) -> Option<Stat> {
    let open = text.iter().position(|byte| *byte == b'(')?;
    let close = text.iter().rposition(|byte| *byte == b')')?;
    let pid = number(text.get(..open)?.trim_ascii())?;
    let mut fields = text.get(close + 1..)?.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
    let state = *fields.next()?.first()?;
    let parent = number(fields.next()?)?;
    // The parent is field 4; the start time is field 22.
    let start = number(fields.nth(17)?)?;
    Some(Stat { who: Identity { pid: i32::try_from(pid).ok()?, start }, parent: i32::try_from(parent).ok()?, state })
}

#[cfg(any(target_os = "linux", test))]
fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// Which directory, whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectoryId {
    device: u64,
    inode: u64,
}

impl DirectoryId {
    /// The directory at a path.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(path: &Path) -> rustix::io::Result<Self> {
        let stat = rustix::fs::stat(path)?;
        Ok(Self { device: as_u64(stat.st_dev), inode: stat.st_ino })
    }

    /// Device and inode, for the tether's messages.
    #[cfg(target_os = "linux")]
    pub fn numbers(self) -> [u64; 2] {
        [self.device, self.inode]
    }

    /// The reverse of [`Self::numbers`].
    #[cfg(target_os = "linux")]
    pub fn from_numbers([device, inode]: [u64; 2]) -> Self {
        Self { device, inode }
    }
}

/// `dev_t` is signed on some systems and has another width on others.
fn as_u64<T: TryInto<u64>>(value: T) -> u64 {
    value.try_into().unwrap_or(u64::MAX)
}

/// Whom a census looks for.
#[derive(Debug, Clone, Copy)]
pub struct Search<'a> {
    /// Every descendant of this process counts, itself not.
    pub ancestor: i32,
    /// So does every `postgres` program whose working directory this is.
    pub home: Option<DirectoryId>,
    /// Except these, and their descendants.
    pub except: &'a [i32],
}

/// Finds the processes of a data directory. Holds its buffers, so that taking it again allocates nothing.
#[derive(Debug)]
pub struct Census {
    #[cfg(target_os = "linux")]
    proc: std::os::fd::OwnedFd,
    all: Vec<Stat>,
    found: Vec<Stat>,
    program: CString,
}

/// How many processes a machine may have before the census has to allocate.
const ROOM: usize = 16 * 1024;

impl Census {
    /// Prepares the buffers.
    ///
    /// # Errors
    /// When `/proc` cannot be opened.
    pub fn new() -> rustix::io::Result<Self> {
        Ok(Self {
            #[cfg(target_os = "linux")]
            proc: linux::open_proc()?,
            all: Vec::with_capacity(ROOM),
            found: Vec::with_capacity(ROOM),
            program: c"postgres".to_owned(),
        })
    }

    /// What the server's program is called, when it is not `postgres`.
    pub fn set_program(&mut self, program: &Path) {
        if let Some(name) = program.file_name().and_then(|name| CString::new(name.as_bytes()).ok()) {
            self.program = name;
        }
    }

    /// Every living process that the search describes.
    pub fn take(&mut self, search: &Search<'_>) -> &[Stat] {
        self.all.clear();
        self.found.clear();
        self.enumerate();
        self.keep_descendants(search);
        self.keep_tenants(search);
        &self.found
    }

    /// Moves descendants from `all` to `found`, generation by generation. Zombies pass on the kinship (their children
    /// may live) and are left out at the end.
    fn keep_descendants(&mut self, search: &Search<'_>) {
        let mut done = 0;
        let mut parent = search.ancestor;
        loop {
            let mut index = 0;
            while index < self.all.len() {
                let candidate = self.all[index];
                if candidate.parent == parent && !search.except.contains(&candidate.who.pid) {
                    self.found.push(candidate);
                    self.all.swap_remove(index);
                } else {
                    index += 1;
                }
            }
            match self.found.get(done) {
                Some(next) => parent = next.who.pid,
                None => break,
            }
            done += 1;
        }
        self.found.retain(Stat::is_alive);
    }
}

/// Whether an executable's path names the program: the last part, without the kernel's mark for a file that an
/// upgrade has replaced.
fn is_program(executable: &[u8], program: &CStr) -> bool {
    let path = executable.strip_suffix(b" (deleted)").unwrap_or(executable);
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    name == program.to_bytes() || name == b"postgres"
}

#[cfg(target_os = "linux")]
pub use linux::{children_of, peer_uid, stat};
#[cfg(not(target_os = "linux"))]
pub use macos::{peer_uid, stat};

/// How many processes have the System V shared memory segment attached; `None` when there is no such segment.
///
/// # Errors
/// When the system does not tell.
#[allow(unsafe_code)]
pub fn shared_memory_users(id: i32) -> std::io::Result<Option<u64>> {
    let mut info = std::mem::MaybeUninit::<libc::shmid_ds>::zeroed();
    // SAFETY: IPC_STAT writes one shmid_ds to the address, which is that of one.
    if unsafe { libc::shmctl(id, libc::IPC_STAT, info.as_mut_ptr()) } == 0 {
        // SAFETY: all-zero is a valid shmid_ds, and the call has filled it in besides.
        let attached = unsafe { info.assume_init() }.shm_nattch;
        return Ok(Some(as_u64(attached)));
    }
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::EIDRM) => Ok(None),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] = b"4711 (post) gres) S 12 4711 4711 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3";

    #[test]
    fn the_last_parenthesis_ends_the_name() {
        let read = parse_stat(LINE).unwrap();
        assert_eq!(read.who, Identity { pid: 4711, start: 987_654 });
        assert_eq!((read.parent, read.state), (12, b'S'));
        assert!(parse_stat(b"").is_none());
        assert!(parse_stat(b"12 (x) S").is_none());
        assert!(parse_stat(b") 12 (x").is_none());
    }

    #[test]
    fn zombies_are_dead_and_stopped_processes_are_alive() {
        let with = |state| Stat { state, ..parse_stat(LINE).unwrap() };
        assert!(with(b'D').is_alive() && with(b'T').is_alive() && with(b'T').is_stopped());
        assert!(!with(b'Z').is_alive() && !with(b'X').is_alive());
    }

    #[test]
    fn a_replaced_binary_is_still_the_program() {
        assert!(is_program(b"/usr/lib/postgresql/15/bin/postgres", c"postgres"));
        assert!(is_program(b"/usr/lib/postgresql/15/bin/postgres (deleted)", c"postgres"));
        assert!(is_program(b"/opt/pg/edb-postgres", c"edb-postgres"));
        assert!(!is_program(b"/usr/bin/psql", c"postgres"));
        assert!(!is_program(b"/home/postgres/sh", c"postgres"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_known_and_its_child_is_family_until_it_is_a_zombie() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(stat(own).unwrap().who.pid, own);
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let search = Search { ancestor: own, home: None, except: &[] };
        let mut census = Census::new().unwrap();
        assert!(census.take(&search).iter().any(|found| found.who.pid == pid));
        assert!(!census.take(&Search { except: &[pid], ..search }).iter().any(|found| found.who.pid == pid));
        child.kill().unwrap();
        // Not waited for: it stays a zombie, which the census must not count.
        let deadline = crate::telemetry::clock::now() + std::time::Duration::from_secs(10);
        while census.take(&search).iter().any(|found| found.who.pid == pid) {
            assert!(crate::telemetry::clock::now() < deadline, "a killed child still counts as alive");
            std::thread::yield_now();
        }
        assert_eq!(stat(pid).map(|stat| stat.state), Some(b'Z'));
        child.wait().unwrap();
    }
}
