//! What is in the data directory, found without asking PostgreSQL.
//!
//! files + pg_controldata -> [`DataDir`]. "Could not read" is `Unreadable`, never `Missing`. Nothing is changed here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::binaries::Binaries;
use super::control_data::ControlData;
use super::error::Error;
use super::files::{read_text_optional, sync_dir, write_atomic};
use super::process::{QUICK, Tool, start_time};
use super::unfinished::Unfinished;
use super::user::OsUser;
use crate::types::{SystemId, TimelineHistory, TimelineId};

/// How often a control file with a wrong checksum is read before it counts as damaged.
const CONTROL_DATA_TRIES: u32 = 3;

/// The state of the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataDir {
    /// It does not exist. With a mount that did not happen it looks the same: compare with the record.
    Missing,
    /// It exists and has nothing in it (but perhaps `lost+found`).
    Empty,
    /// Not a directory that these programs can work with. Never touched.
    Foreign {
        /// Why, with the remedy.
        why: String,
    },
    /// Ours, and left in the middle of an operation: must not be started as it is, except to go on with a bootstrap.
    Incomplete {
        /// Why.
        why: String,
        /// What could be read nevertheless.
        control: Option<ControlData>,
    },
    /// A database cluster.
    Present(Box<PresentDataDir>),
    /// It could not be examined now.
    Unreadable {
        /// Why.
        why: String,
    },
}

/// A whole database cluster on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresentDataDir {
    /// Which database cluster.
    pub system_id: SystemId,
    /// Major version that made it.
    pub major_version: u32,
    /// See [`ControlData`].
    pub control: ControlData,
    /// A base backup that has not been started yet, or not replayed to its end: must never be promoted.
    pub backup_label: bool,
    /// The next start will be as a standby.
    pub standby_signal: bool,
    /// The next start will be a targeted recovery (point in time); not ours.
    pub recovery_signal: bool,
    /// The history of [`ControlData::newest_timeline`], when its file is there (timeline 1 has none and needs none).
    pub history: Option<TimelineHistory>,
    /// The postmaster that works in it, when one is alive.
    pub postmaster_pid: Option<u32>,
}

impl PresentDataDir {
    /// Whether it may ever become primary as it is. A copy counts from the end of its backup on, not before.
    pub fn is_promotable(&self) -> bool {
        !self.backup_label && !self.control.backup_in_progress
    }
}

impl DataDir {
    /// The cluster that is in it, if it is whole.
    pub fn present(&self) -> Option<&PresentDataDir> {
        match self {
            Self::Present(present) => Some(present),
            Self::Missing | Self::Empty | Self::Foreign { .. } | Self::Incomplete { .. } | Self::Unreadable { .. } => {
                None
            }
        }
    }

    /// The control data, whole or not.
    pub fn control(&self) -> Option<&ControlData> {
        match self {
            Self::Present(present) => Some(&present.control),
            Self::Incomplete { control, .. } => control.as_ref(),
            Self::Missing | Self::Empty | Self::Foreign { .. } | Self::Unreadable { .. } => None,
        }
    }

    /// As the rest of the sentence "data directory … ".
    pub fn in_words(&self) -> String {
        match self {
            Self::Missing => "does not exist".to_owned(),
            Self::Empty => "is empty".to_owned(),
            Self::Foreign { why } => format!("is not usable: {why}"),
            Self::Incomplete { why, .. } => format!("is not complete: {why}"),
            Self::Present(present) => format!("holds database cluster {}", present.system_id),
            Self::Unreadable { why } => format!("cannot be examined: {why}"),
        }
    }
}

/// Examines a data directory.
pub(super) async fn inspect(data_dir: &Path, binaries: &Binaries, user: &OsUser) -> DataDir {
    match classify(data_dir, binaries, user).await {
        Ok(state) => state,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
            DataDir::Unreadable { why: format!("{error}{cause}") }
        }
    }
}

async fn classify(data_dir: &Path, binaries: &Binaries, user: &OsUser) -> Result<DataDir, Error> {
    let read_failed = |source| Error::ReadFile { path: data_dir.to_owned(), source };
    let unfinished = Unfinished::read(data_dir)?;
    match fs::metadata(data_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(DataDir::Missing),
        Err(error) => return Err(read_failed(error)),
        Ok(meta) if !meta.is_dir() => {
            return Ok(DataDir::Foreign { why: "it is not a directory; change postgresql.data_dir".to_owned() });
        }
        Ok(_) => {}
    }
    if is_empty(data_dir).map_err(read_failed)? {
        return Ok(DataDir::Empty);
    }
    let Some(version) = read_text_optional(&data_dir.join("PG_VERSION"))? else {
        if let Some(note) = unfinished {
            return Ok(DataDir::Incomplete { why: note.in_words(), control: None });
        }
        return Ok(DataDir::Foreign {
            why: "it is not empty and has no PG_VERSION, so it holds something else; move its content away or change \
                  postgresql.data_dir"
                .to_owned(),
        });
    };
    let ours = binaries.version().major();
    let major = version.trim().parse::<u32>().ok();
    if major != Some(ours) {
        return Ok(other_version(version.trim(), binaries));
    }
    let control = read_control_data(data_dir, binaries, user).await;
    if let Some(note) = unfinished {
        return Ok(DataDir::Incomplete { why: note.in_words(), control: control.ok() });
    }
    let control = match control {
        Ok(control) => control,
        Err(error @ Error::ParseControlData { .. }) => {
            return Ok(DataDir::Incomplete { why: error.to_string(), control: None });
        }
        Err(error) if !data_dir.join("global/pg_control").exists() => {
            return Ok(DataDir::Incomplete { why: format!("pg_control is missing: {error}"), control: None });
        }
        Err(error) => return Err(error),
    };
    let history = read_history(data_dir, control.newest_timeline())?;
    Ok(DataDir::Present(Box::new(PresentDataDir {
        system_id: control.system_id,
        major_version: ours,
        backup_label: data_dir.join("backup_label").exists(),
        standby_signal: data_dir.join("standby.signal").exists(),
        recovery_signal: data_dir.join("recovery.signal").exists(),
        history,
        postmaster_pid: running_postmaster(data_dir)?,
        control,
    })))
}

fn other_version(version: &str, binaries: &Binaries) -> DataDir {
    let (dir, ours) = (binaries.dir(), binaries.version().major());
    DataDir::Foreign {
        why: format!(
            "it was made by PostgreSQL {version} and the programs in {dir:?} are version {ours}; set \
             postgresql.bin_dir to the right version or run pg_upgrade"
        ),
    }
}

/// Whether there is nothing in it; a fresh file system's `lost+found` does not count.
pub(super) fn is_empty(data_dir: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(data_dir)? {
        if entry?.file_name() != "lost+found" {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Runs `pg_controldata`; again when it was caught in the middle of a write by the running server.
pub(super) async fn read_control_data(
    data_dir: &Path,
    binaries: &Binaries,
    user: &OsUser,
) -> Result<ControlData, Error> {
    let program = binaries.program("pg_controldata");
    let read = async || {
        let text = Tool::new(&program, user).arg("-D").arg(data_dir).output(QUICK).await?;
        ControlData::parse(&text)
    };
    for _ in 1..CONTROL_DATA_TRIES {
        match read().await {
            Err(Error::ParseControlData { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
            other => return other,
        }
    }
    read().await
}

/// Reads `pg_wal/0000000N.history`; none when it is not there. Timeline 1 has an empty history.
pub(super) fn read_history(data_dir: &Path, timeline: TimelineId) -> Result<Option<TimelineHistory>, Error> {
    if timeline.0 <= 1 {
        return Ok(Some(TimelineHistory { timeline, ancestors: Vec::new() }));
    }
    let name = history_file_name(timeline);
    let Some(text) = read_text_optional(&data_dir.join("pg_wal").join(&name))? else { return Ok(None) };
    TimelineHistory::parse(timeline, &text).map(Some).map_err(|source| Error::ParseHistory { name, source })
}

/// Has history files for the numbers between `here` and `timeline`, so that a promotion uses `timeline`. What is there
/// stays as it is.
pub(super) fn pass_over_timelines(
    data_dir: &Path,
    owner: &OsUser,
    here: TimelineId,
    timeline: TimelineId,
) -> Result<Vec<TimelineId>, Error> {
    let passed: Vec<TimelineId> = (here.0.saturating_add(1)..timeline.0).map(TimelineId).collect();
    for number in &passed {
        let path = data_dir.join("pg_wal").join(history_file_name(*number));
        let text =
            format!("# Timeline {number} is not used here: another leadership was given it for its promotion.\n");
        match path.try_exists() {
            Ok(true) => (),
            Ok(false) => write_atomic(&path, text.as_bytes(), 0o600, owner)?,
            Err(source) => return Err(Error::ReadFile { path, source }),
        }
    }
    Ok(passed)
}

/// The highest timeline among the WAL segment files' names.
pub(super) fn newest_wal_timeline(data_dir: &Path) -> Option<TimelineId> {
    let entries = fs::read_dir(data_dir.join("pg_wal")).ok()?;
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let name = entry.file_name();
            let name = name.to_str()?;
            let segment = name.len() == 24 && name.bytes().all(|b| b.is_ascii_hexdigit());
            if !segment {
                return None;
            }
            u32::from_str_radix(name.get(..8)?, 16).ok().map(TimelineId)
        })
        .max()
}

/// `0000000A.history` for timeline 10.
pub(super) fn history_file_name(timeline: TimelineId) -> String {
    format!("{:08X}.history", timeline.0)
}

/// How to reach the running server, as it says itself in `postmaster.pid`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listening {
    pub port: u16,
    /// Its first socket directory, if it has one.
    pub socket_dir: Option<PathBuf>,
}

/// Reads where the server listens; none when there is no file or it is not filled in yet.
///
/// Source: PostgreSQL `pidfile.h`.
pub(super) fn listening(data_dir: &Path) -> Option<Listening> {
    let text = read_text_optional(&data_dir.join("postmaster.pid")).ok().flatten()?;
    let mut lines = text.lines().skip(3);
    let port = lines.next()?.trim().parse().ok()?;
    let socket_dir = lines.next().map(str::trim).filter(|d| d.starts_with('/')).map(PathBuf::from);
    Some(Listening { port, socket_dir })
}

/// The postmaster that works in the directory, from `postmaster.pid`, when it is alive.
///
/// A pid alone proves nothing after a crash, because it may have been given away again; the working directory of
/// the process does: a postmaster stands in its data directory.
pub(super) fn running_postmaster(data_dir: &Path) -> Result<Option<u32>, Error> {
    let Some(text) = read_text_optional(&data_dir.join("postmaster.pid"))? else { return Ok(None) };
    // A stand-alone backend writes its pid with a minus sign.
    let pid = text.lines().next().and_then(|line| line.trim().trim_start_matches('-').parse::<u32>().ok());
    Ok(pid.filter(|&pid| works_in(pid, data_dir)))
}

#[cfg(target_os = "linux")]
fn works_in(pid: u32, data_dir: &Path) -> bool {
    if start_time(pid).is_none() {
        return false;
    }
    let same = |cwd: PathBuf| fs::canonicalize(data_dir).is_ok_and(|real| real == cwd);
    // Not allowed to look (another user's process): believe the file, which is the safe side.
    match fs::read_link(format!("/proc/{pid}/cwd")) {
        Ok(cwd) => same(cwd),
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    }
}

#[cfg(not(target_os = "linux"))]
fn works_in(pid: u32, _data_dir: &Path) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}

/// Makes the next start a standby's, durably.
pub(super) fn write_standby_signal(data_dir: &Path, user: &OsUser) -> Result<(), Error> {
    let path = data_dir.join("standby.signal");
    if !path.exists() {
        write_atomic(&path, b"", 0o600, user)?;
    }
    remove_signal(data_dir, "recovery.signal")
}

/// Removes a signal file, durably.
pub(super) fn remove_signal(data_dir: &Path, name: &str) -> Result<(), Error> {
    let path = data_dir.join(name);
    match fs::remove_file(&path) {
        Ok(()) => sync_dir(data_dir).map_err(|source| Error::Remove { path, source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Remove { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_files_have_hexadecimal_names() {
        assert_eq!(history_file_name(TimelineId(10)), "0000000A.history");
        let dir = tempfile::tempdir().expect("temporary directory");
        assert!(read_history(dir.path(), TimelineId(1)).expect("none needed").is_some());
        assert!(read_history(dir.path(), TimelineId(2)).expect("not there").is_none());
        fs::create_dir(dir.path().join("pg_wal")).expect("directory");
        fs::write(dir.path().join("pg_wal/00000002.history"), "1\t0/3000060\tno recovery target specified\n")
            .expect("file");
        let history = read_history(dir.path(), TimelineId(2)).expect("read").expect("there");
        assert_eq!(history.ancestors.len(), 1);
    }

    #[test]
    fn a_stale_pid_file_is_not_a_running_server() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert_eq!(running_postmaster(dir.path()).expect("none"), None);
        // Our own process is alive but does not stand in that directory.
        fs::write(dir.path().join("postmaster.pid"), format!("{}\n{}\n", std::process::id(), dir.path().display()))
            .expect("file");
        if cfg!(target_os = "linux") {
            assert_eq!(running_postmaster(dir.path()).expect("stale"), None);
        }
        fs::write(dir.path().join("postmaster.pid"), "nonsense").expect("file");
        assert_eq!(running_postmaster(dir.path()).expect("nonsense"), None);
    }

    #[test]
    fn where_a_server_listens_is_read() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert_eq!(listening(dir.path()), None);
        fs::write(dir.path().join("postmaster.pid"), "12\n/d\n1795378530\n5433\n/run/x\n127.0.0.1\n  1 2\nready   \n")
            .expect("file");
        let expected = Listening { port: 5433, socket_dir: Some(PathBuf::from("/run/x")) };
        assert_eq!(listening(dir.path()), Some(expected));
        fs::write(dir.path().join("postmaster.pid"), "12\n/d\n1795378530\n5433\n\n").expect("file");
        assert_eq!(listening(dir.path()), Some(Listening { port: 5433, socket_dir: None }));
    }

    #[test]
    fn signals_exclude_each_other() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let user = OsUser::current().expect("user");
        fs::write(dir.path().join("recovery.signal"), "").expect("file");
        write_standby_signal(dir.path(), &user).expect("written");
        write_standby_signal(dir.path(), &user).expect("again");
        assert!(dir.path().join("standby.signal").exists() && !dir.path().join("recovery.signal").exists());
    }
}
