//! The data directory, as far as the guardian must know it: signal files, `postmaster.pid`, the promote file.
//!
//! Deliberately absent: everything else about PostgreSQL's files (`postgres/`), and running processes (`process.rs`).

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, OFlags, Uid, fchown, open};

use super::process::DirectoryId;
use super::protocol::{Refusal, StartMode};

/// A data directory by its path.
#[derive(Debug, Clone)]
pub struct Home {
    path: PathBuf,
}

/// What `postmaster.pid` says.
///
/// Source: PostgreSQL, `miscadmin.h`, lines of the lock file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PidFile {
    /// The postmaster, or a standalone backend (which writes it negated).
    pub pid: i32,
    /// Its System V shared memory segment, once it has one.
    pub shared_memory: Option<i32>,
}

impl PidFile {
    /// Reads the text; a file that is being written may be cut short.
    pub fn parse(text: &str) -> Option<Self> {
        let lines: Vec<&str> = text.lines().collect();
        let line = |number: usize| lines.get(number).copied().unwrap_or("").trim();
        let pid: i32 = line(0).parse().ok()?;
        let shared_memory = line(6).split_whitespace().nth(1).and_then(|id| id.parse().ok());
        Some(Self { pid: pid.checked_abs()?, shared_memory })
    }
}

impl Home {
    /// The directory at a path, which need not exist yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which directory is there now.
    pub fn id(&self) -> Option<DirectoryId> {
        DirectoryId::of(&self.path).ok()
    }

    /// Whether PostgreSQL, started now, would come up as what is asked. A directory that is not there, perhaps since
    /// its file system is not mounted, is refused and never made.
    ///
    /// # Errors
    /// `DataDirectory`, `NoStandbySignal`, `SignalFilePresent`.
    pub fn check(&self, mode: StartMode) -> Result<(), Refusal> {
        let version = self.path.join("PG_VERSION");
        if let Err(error) = version.metadata() {
            let why = format!("is not a postgres data directory ({error}); is its file system mounted?");
            return Err(Refusal::DataDirectory { path: version, why });
        }
        let standby = self.path.join("standby.signal");
        match mode {
            StartMode::Standby if self.has_standby_signal() => Ok(()),
            StartMode::Standby => Err(Refusal::NoStandbySignal { path: standby }),
            StartMode::Primary { .. } => match [standby, self.path.join("recovery.signal")]
                .into_iter()
                // Unreadable is not absent.
                .find(|path| !is_absent(path))
            {
                Some(path) => Err(Refusal::SignalFilePresent { path }),
                None => Ok(()),
            },
        }
    }

    /// Whether `standby.signal` is there for certain. PostgreSQL removes it when it leaves recovery, before the first
    /// write is possible.
    pub fn has_standby_signal(&self) -> bool {
        self.path.join("standby.signal").metadata().is_ok()
    }

    /// Whether `standby.signal` is gone for certain.
    pub fn lost_standby_signal(&self) -> bool {
        is_absent(&self.path.join("standby.signal"))
    }

    /// `postmaster.pid`; `None` when absent or not readable as such.
    pub fn pid_file(&self) -> Option<PidFile> {
        PidFile::parse(&std::fs::read_to_string(self.path.join("postmaster.pid")).ok()?)
    }

    /// Removes `postmaster.pid`.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_pid_file(&self) -> io::Result<()> {
        std::fs::remove_file(self.path.join("postmaster.pid"))
    }

    /// The locks of unix sockets in `directories` that say they belong to a PostgreSQL of this data directory, with
    /// their pids. Nothing runs here when it is about to be started, so that they are stale.
    ///
    /// Source: PostgreSQL, `miscinit.c`, `CreateLockFile`: the data directory is the second line.
    pub fn socket_locks(&self, directories: &[PathBuf]) -> Vec<(PathBuf, i32)> {
        let real = std::fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let files = directories.iter().filter_map(|directory| std::fs::read_dir(directory).ok()).flatten().flatten();
        let locks = files.filter_map(|file| {
            let name = file.file_name();
            let name = name.to_str()?;
            if !(name.starts_with(".s.PGSQL.") && name.ends_with(".lock")) {
                return None;
            }
            let text = std::fs::read_to_string(file.path()).ok()?;
            let whose = Path::new(text.lines().nth(1)?);
            let ours = whose == self.path || std::fs::canonicalize(whose).is_ok_and(|whose| whose == real);
            ours.then(|| Some((file.path(), PidFile::parse(&text)?.pid)))?
        });
        locks.collect()
    }

    /// Writes the file whose presence, with SIGUSR1, makes PostgreSQL leave recovery. It belongs to PostgreSQL's
    /// user, who removes it.
    ///
    /// # Errors
    /// When it cannot be written.
    ///
    /// Source: PostgreSQL, `xlog.h`, `PROMOTE_SIGNAL_FILE`; `pg_ctl promote` does the same.
    pub fn write_promote_file(&self, owner: Option<(u32, Option<u32>)>) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = open(self.path.join("promote"), flags, Mode::RUSR | Mode::WUSR)?;
        if let Some((uid, gid)) = owner {
            fchown(&file, Some(Uid::from_raw(uid)), gid.map(Gid::from_raw))?;
        }
        Ok(())
    }

    /// Removes the promote file, if there is one.
    pub fn remove_promote_file(&self) {
        // PostgreSQL removes it itself when it starts the next time.
        let _ = std::fs::remove_file(self.path.join("promote"));
    }
}

fn is_absent(path: &Path) -> bool {
    matches!(path.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LeaderPermit, Mono, Term};

    const PRIMARY: StartMode =
        StartMode::Primary { permit: LeaderPermit { term: Term(1), valid_until: Mono(u64::MAX) } };

    #[test]
    fn the_signal_files_decide() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::new(directory.path().to_owned());
        assert!(matches!(home.check(StartMode::Standby), Err(Refusal::DataDirectory { .. })));
        let put = |name: &str| std::fs::write(directory.path().join(name), "15\n").unwrap();
        put("PG_VERSION");
        assert!(matches!(home.check(StartMode::Standby), Err(Refusal::NoStandbySignal { .. })));
        assert_eq!(home.check(PRIMARY), Ok(()));
        put("recovery.signal");
        assert!(matches!(home.check(StartMode::Standby), Err(Refusal::NoStandbySignal { .. })));
        assert!(matches!(home.check(PRIMARY), Err(Refusal::SignalFilePresent { .. })));
        put("standby.signal");
        assert_eq!(home.check(StartMode::Standby), Ok(()));
        assert!(!home.lost_standby_signal());
        // A link to nowhere is not proof of absence.
        std::fs::remove_file(directory.path().join("recovery.signal")).unwrap();
        std::fs::remove_file(directory.path().join("standby.signal")).unwrap();
        std::os::unix::fs::symlink("/nowhere/at/all", directory.path().join("standby.signal")).unwrap();
        assert!(matches!(home.check(PRIMARY), Err(Refusal::SignalFilePresent { .. })));
    }

    #[test]
    fn the_pid_file_is_read_at_every_stage_of_its_writing() {
        let whole = "4711\n/pg/data\n1700000000\n5432\n/tmp\nlocalhost\n  16908292    131078\nready   \n";
        assert_eq!(PidFile::parse(whole), Some(PidFile { pid: 4711, shared_memory: Some(131_078) }));
        let cut = PidFile { pid: 4711, shared_memory: None };
        assert_eq!(PidFile::parse("4711\n/pg/data\n1\n5432\n"), Some(cut));
        assert_eq!(PidFile::parse("-4711\n/pg/data\n").map(|file| file.pid), Some(4711), "standalone");
        assert_eq!(PidFile::parse(""), None);
        assert_eq!(PidFile::parse("x\n"), None);
    }

    #[test]
    fn socket_locks_of_this_data_directory_are_found_wherever_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["data", "run", "tmp"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::os::unix::fs::symlink(at("data"), at("link")).unwrap();
        let text = |pid: i32, data: &Path| format!("{pid}\n{}\n1\n5432\n/tmp\n", data.display());
        std::fs::write(at("run/.s.PGSQL.5432.lock"), text(1, &at("data"))).unwrap();
        std::fs::write(at("tmp/.s.PGSQL.5433.lock"), text(2, &at("link"))).unwrap();
        std::fs::write(at("tmp/.s.PGSQL.5434.lock"), text(3, &at("other"))).unwrap();
        std::fs::write(at("tmp/.s.PGSQL.5435.lock"), "4").unwrap();
        std::fs::write(at("tmp/notes.lock"), text(5, &at("data"))).unwrap();
        let home = Home::new(at("data"));
        let found = home.socket_locks(&[at("run"), at("tmp"), at("missing")]);
        assert_eq!(found, [(at("run/.s.PGSQL.5432.lock"), 1), (at("tmp/.s.PGSQL.5433.lock"), 2)]);
    }
}
