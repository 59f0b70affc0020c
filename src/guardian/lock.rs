//! One guardian for a socket and for a data directory.
//!
//! ```text
//! SOCKET.lock : flock, and inside it who holds it: "guardian PID START", "tether PID START", "watchdog DEVICE"
//! PGDATA      : flock on the directory itself
//! ```
//!
//! The kernel releases the locks with the process, whatever ends it. What the file says is for the successor: the
//! tether of a dead guardian is ended before anything new starts, and an armed watchdog is known to be one's own.
//! Deliberately absent: process ids as locks.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;

use super::kill::Handle;
use super::process::Identity;

/// Why a lock was not to be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another guardian serves the socket.
    #[error("another guardian{} already serves {socket}; there can be only one, attach to it instead", .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    SocketTaken {
        /// The socket.
        socket: PathBuf,
        /// The other.
        pid: Option<i32>,
    },
    /// Another guardian has the data directory.
    #[error("another guardian holds data directory {data_dir}; stop it, or give this node a directory of its own")]
    DataDirTaken {
        /// The directory.
        data_dir: PathBuf,
    },
    /// The file cannot be used.
    #[error("open lock file {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// The lock beside the socket.
#[derive(Debug)]
pub struct SocketLock {
    file: File,
    previous: Holder,
}

/// What a lock file says about its holder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holder {
    /// The guardian.
    pub guardian: Option<Identity>,
    /// Its tether.
    pub tether: Option<Identity>,
    /// The watchdog device that it had armed.
    pub watchdog: Option<PathBuf>,
}

impl Holder {
    fn parse(text: &str) -> Self {
        let mut holder = Self::default();
        for line in text.lines() {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            match key {
                "guardian" => holder.guardian = parse_identity(value),
                "tether" => holder.tether = parse_identity(value),
                "watchdog" => holder.watchdog = Some(PathBuf::from(value)),
                _ => (),
            }
        }
        holder
    }

    fn render(&self) -> String {
        let mut text = String::new();
        for (key, who) in [("guardian", self.guardian), ("tether", self.tether)] {
            if let Some(who) = who {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{key} {} {}", who.pid, who.start);
            }
        }
        if let Some(device) = &self.watchdog {
            let _ = writeln!(text, "watchdog {}", device.display());
        }
        text
    }
}

fn parse_identity(value: &str) -> Option<Identity> {
    let (pid, start) = value.split_once(' ')?;
    Some(Identity { pid: pid.parse().ok()?, start: start.parse().ok()? })
}

impl SocketLock {
    /// Takes it.
    ///
    /// # Errors
    /// `SocketTaken` when another process has it.
    pub fn take(socket: &Path) -> Result<Self, Error> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let failed = |source| Error::Open { path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(failed)?;
        let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
        let mut text = String::new();
        // Garbage in the file costs only what it would have told.
        let _ = file.read_to_string(&mut text);
        let previous = Holder::parse(&text);
        match locked {
            Ok(()) => Ok(Self { file, previous }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(Error::SocketTaken { socket: socket.to_owned(), pid: previous.guardian.map(|who| who.pid) })
            }
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// Ends the tether of a guardian that died. The kernel has done its work already, and this process takes over
    /// what the tether itself would still do. Returns whether there was one.
    pub fn end_previous_tether(&self) -> bool {
        let handle = self.previous.tether.and_then(Handle::on);
        handle.is_some_and(|handle| handle.signal(Signal::KILL).is_ok())
    }

    /// The watchdog that a dead guardian had armed and nobody has put to sleep yet.
    pub fn previous_watchdog(&self) -> Option<&Path> {
        self.previous.watchdog.as_deref()
    }

    /// The same, told once.
    pub fn take_previous_watchdog(&mut self) -> Option<PathBuf> {
        self.previous.watchdog.take()
    }

    /// Writes down who holds it now.
    ///
    /// # Errors
    /// When the file cannot be written; the lock holds all the same.
    pub fn write(&mut self, holder: &Holder) -> io::Result<()> {
        let text = holder.render();
        self.file.rewind()?;
        self.file.write_all(text.as_bytes())?;
        self.file.set_len(text.len() as u64)
    }
}

/// The lock on a data directory.
#[derive(Debug)]
pub struct DataDirLock {
    directory: File,
}

impl DataDirLock {
    /// Takes it; `None` when there is no such directory yet, or its file system has no locks.
    ///
    /// # Errors
    /// `DataDirTaken` when another guardian has it.
    pub fn take(data_dir: &Path) -> Result<Option<Self>, Error> {
        let Ok(directory) = File::open(data_dir) else { return Ok(None) };
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { directory })),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::DataDirTaken { data_dir: data_dir.to_owned() }),
            Err(_) => Ok(None),
        }
    }

    /// Whether it is on the directory that has this path now.
    pub fn is_on(&self, data_dir: &Path) -> bool {
        let (Ok(held), Ok(there)) = (self.directory.metadata(), data_dir.metadata()) else { return false };
        (held.dev(), held.ino()) == (there.dev(), there.ino())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_file_says_survives() {
        let who = |pid| Some(Identity { pid, start: 99 });
        let holder = Holder { guardian: who(1), tether: who(2), watchdog: Some("/dev/watchdog 0".into()) };
        assert_eq!(Holder::parse(&holder.render()), holder);
        assert_eq!(Holder::parse("garbage\nguardian x y\n\u{0}"), Holder::default());
    }

    #[test]
    fn the_second_is_told_who_is_first() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("g.sock");
        let mut first = SocketLock::take(&socket).unwrap();
        let me = Identity { pid: 4711, start: 1 };
        first.write(&Holder { guardian: Some(me), ..Holder::default() }).unwrap();
        let told = SocketLock::take(&socket).unwrap_err().to_string();
        assert!(told.contains("pid 4711") && told.contains("attach to it"), "{told}");
        drop(first);
        assert_eq!(SocketLock::take(&socket).unwrap().previous.guardian, Some(me));

        let held = DataDirLock::take(directory.path()).unwrap();
        assert!(held.as_ref().unwrap().is_on(directory.path()));
        assert!(!held.as_ref().unwrap().is_on(Path::new("/")));
        assert!(matches!(DataDirLock::take(directory.path()), Err(Error::DataDirTaken { .. })));
        assert!(DataDirLock::take(&directory.path().join("absent")).unwrap().is_none());
    }
}
