//! Brings a data directory that diverged back to its upstream with pg_rewind; and reads the end of its WAL.
//!
//! checks -> archive what only this node has -> note "unfinished" -> pg_rewind -> this node's own files back ->
//! standby.signal -> note away. Whether a rewind is needed is decided elsewhere. A failure leaves the note, so the
//! directory counts as incomplete and is rebuilt.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::basebackup::{Progress, Stage, parse_progress};
use super::conninfo::{Conninfo, Upstream};
use super::control_data::ControlData;
use super::credentials::Credentials;
use super::data_dir::{DataDir, remove_signal, write_standby_signal};
use super::error::Error;
use super::files::{remove_durably, rename_durably, write_if_different};
use super::process::{QUICK, Tool};
use super::unfinished::{Operation, Unfinished};
use super::{Instance, RemoteState, check_same_cluster};
use crate::types::Lsn;

/// Limit for reading what a rewind gives up, which is for people.
const END_OF_WAL_LIMIT: Duration = Duration::from_secs(20);
/// Limit for archiving one segment.
const ARCHIVE_LIMIT: Duration = Duration::from_secs(120);
/// Files up to this size at the top of the data directory are kept over a rewind.
const LARGEST_OWN_FILE: u64 = 4 << 20;
/// Top-level files that are PostgreSQL's or ours, not this node's configuration.
const NOT_OWN: [&str; 11] = [
    "PG_VERSION",
    "backup_label",
    "backup_label.old",
    "backup_manifest",
    "current_logfiles",
    "postmaster.opts",
    "postmaster.pid",
    "recovery.signal",
    "standby.signal",
    "tablespace_map",
    "tablespace_map.old",
];

/// WAL that this node had and the cluster does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GivenUp {
    /// Where the cluster's history leaves this node's.
    pub shared: Lsn,
    /// Where this node's WAL ended.
    pub ours: Lsn,
}

impl Instance {
    /// Rewinds the stopped data directory to `from`'s history; afterwards it starts as a standby.
    ///
    /// An unclean stop is allowed: pg_rewind lets PostgreSQL recover first. Not so over an unfinished base backup.
    /// Returns what the rewind gives up, where the end of the WAL could be read.
    ///
    /// # Errors
    /// `RewindRefused`, `SystemIdDiffers`: rebuild. `UpstreamNotReady`, `Sql`, `ArchiveReadyWal`: nothing was
    /// changed, try again. `RunTool`, `Cancelled` after the start: the directory is marked and must be rebuilt.
    pub async fn rewind(
        &self,
        from: &Upstream,
        credentials: &Credentials,
        progress: &watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<Option<GivenUp>, Error> {
        progress.send_replace(Progress::default());
        self.set_credentials(credentials);
        self.prepare_places(credentials)?;
        let data_dir = &self.config.data_dir;
        // Now: pg_rewind lets PostgreSQL recover, which writes more.
        let given_up = self.check_target_and_source(from).await?;
        self.archive_ready_wal().await?;
        let restore = self.configured_value("restore_command").await?;
        let own_files = OwnFiles::read(data_dir)?;
        let conninfo = Conninfo::to(from, &credentials.rewind, &self.password_file())?
            .with("dbname", &self.config.database)
            .with("application_name", "howdah rewind")
            .with("options", "-c statement_timeout=0 -c lock_timeout=0")
            .text();
        Unfinished::write(data_dir, Operation::Rewind, None, &self.user)?;
        // PostgreSQL in single-user mode refuses to recover a standby; the note keeps it from being started otherwise.
        remove_signal(data_dir, "standby.signal")?;
        let program = self.binaries.program("pg_rewind");
        let mut tool = Tool::new(&program, &self.user)
            .arg("--target-pgdata")
            .arg(data_dir)
            .arg("--progress")
            .arg("--source-server")
            .arg(&conninfo)
            .directory(data_dir);
        if !restore.is_empty() {
            tool = tool.arg("--restore-target-wal");
        }
        tool.follow(
            cancel,
            "rewind",
            |pid| Unfinished::write(data_dir, Operation::Rewind, Some(pid), &self.user),
            |line| {
                if let Some(now) = parse_progress(line) {
                    progress.send_replace(now);
                }
            },
        )
        .await?;
        progress.send_modify(|p| p.stage = Stage::Finishing);
        own_files.write_back(self)?;
        write_standby_signal(data_dir, &self.user)?;
        Unfinished::remove(data_dir)?;
        Ok(given_up)
    }

    /// The directory must be whole, stopped, of a kind that pg_rewind can work on, and of the source's cluster.
    async fn check_target_and_source(&self, from: &Upstream) -> Result<Option<GivenUp>, Error> {
        let state = self.inspect().await;
        let DataDir::Present(present) = &state else { return Err(self.not_usable("rewind", &state)) };
        if let Some(pid) = present.postmaster_pid {
            return Err(Error::ServerRunning { operation: "rewind", pid });
        }
        // Proven to be nobody's. A zombie that its parent has not reaped yet would still stop the recovery that
        // pg_rewind lets PostgreSQL do first: to kill(pid, 0) it is alive.
        remove_durably(&self.config.data_dir.join("postmaster.pid"))?;
        if present.backup_label || present.control.backup_in_progress {
            // Recovering alone over a backup label ends in a history that never was.
            return Err(Error::RewindRefused {
                why: "it is a base backup that was never replayed to its end".to_owned(),
            });
        }
        if !present.control.can_be_rewound() {
            return Err(Error::RewindRefused { why: "it has neither data checksums nor wal_log_hints".to_owned() });
        }
        let remote = self.remote_state(from).await?;
        check_same_cluster("rewind", from, present.system_id, remote.system_id)?;
        self.check_source(from, &remote)?;
        let shared = remote.history.as_ref().and_then(|history| history.switchpoint_of(present.control.timeline));
        let Some(shared) = shared else { return Ok(None) };
        Ok(self.end_of_wal(&present.control, shared).await.map(|ours| GivenUp { shared, ours }))
    }

    /// Where the WAL ends that goes on from `shared`; none when that cannot be read, or not in time.
    async fn end_of_wal(&self, control: &ControlData, shared: Lsn) -> Option<Lsn> {
        let program = self.binaries.program("pg_waldump");
        let tool = Tool::new(&program, &self.user)
            .arg("-p")
            .arg(self.config.data_dir.join("pg_wal"))
            .arg("-t")
            .arg(control.timeline.to_string())
            .arg("-s")
            .arg(shared.to_string());
        // It ends with an error where the WAL does: the last record that it prints is what counts.
        let finished = tool.finish(END_OF_WAL_LIMIT).await.ok()?;
        match finished.last_line.as_deref() {
            None if finished.stderr.contains("could not find a valid record") => Some(shared),
            None => None,
            Some(line) => {
                let start = record_start(line)?;
                Some(end_position(start, record_length(line)?, control.wal_block_size, control.wal_segment_size))
            }
        }
    }

    /// pg_rewind reads the source's timeline from its control file, which learns it with the first checkpoint.
    fn check_source(&self, from: &Upstream, remote: &RemoteState) -> Result<(), Error> {
        let not_ready = |why: String| Error::UpstreamNotReady { operation: "rewind", upstream: from.address(), why };
        if remote.in_recovery && self.binaries.version().major() < 14 {
            // The leader of a standby cluster stays one: waiting for it would have no end.
            let why = "its source is a standby, and pg_rewind before 14 needs a primary".to_owned();
            return Err(Error::RewindRefused { why });
        }
        if !remote.in_recovery && remote.checkpoint_timeline != remote.timeline {
            return Err(not_ready(format!("it has not made a checkpoint on timeline {} yet", remote.timeline)));
        }
        Ok(())
    }

    /// Archives finished segments that wait for it: pg_rewind may remove them, and no other node has them.
    async fn archive_ready_wal(&self) -> Result<(), Error> {
        let status_dir = self.config.data_dir.join("pg_wal/archive_status");
        let mut ready: Vec<String> = fs::read_dir(&status_dir)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".ready").map(str::to_owned))
            .collect();
        if ready.is_empty() {
            return Ok(());
        }
        ready.sort();
        let command = self.configured_value("archive_command").await?;
        let mode = self.configured_value("archive_mode").await?;
        if command.is_empty() || mode == "off" {
            return Ok(());
        }
        let waiting = ready.len();
        for segment in ready {
            let line = expand_archive_command(&command, &segment);
            let shell = Path::new("/bin/sh");
            let tool = Tool::new(shell, &self.user).arg("-c").arg(line).directory(&self.config.data_dir);
            tool.output(ARCHIVE_LIMIT).await.map_err(|error| Error::ArchiveReadyWal {
                segments: waiting,
                first: segment.clone(),
                detail: error.to_string(),
            })?;
            let from = status_dir.join(format!("{segment}.ready"));
            rename_durably(&from, &status_dir.join(format!("{segment}.done")))?;
        }
        Ok(())
    }

    /// What a parameter would be after a start, by PostgreSQL itself.
    pub(super) async fn configured_value(&self, parameter: &str) -> Result<String, Error> {
        let program = self.binaries.program("postgres");
        let text = Tool::new(&program, &self.user)
            .arg("-D")
            .arg(&self.config.data_dir)
            .arg("-C")
            .arg(parameter)
            .output(QUICK)
            .await?;
        Ok(text.trim().to_owned())
    }
}

/// Replaces `%p`, `%f` and `%%`.
///
/// Source: PostgreSQL documentation, "Setting Up WAL Archiving".
fn expand_archive_command(command: &str, segment: &str) -> String {
    let mut expanded = String::new();
    let mut rest = command.chars();
    while let Some(c) = rest.next() {
        match (c, c == '%') {
            (_, true) => match rest.next() {
                Some('p') => expanded.push_str(&format!("pg_wal/{segment}")),
                Some('f') => expanded.push_str(segment),
                Some('%') => expanded.push('%'),
                Some(other) => expanded.extend(['%', other]),
                None => expanded.push('%'),
            },
            (plain, false) => expanded.push(plain),
        }
    }
    expanded
}

/// Small files at the top of the data directory that are this node's own: configuration, keys, certificates.
/// pg_rewind replaces them by the source's.
struct OwnFiles(Vec<(PathBuf, Vec<u8>, u32)>);

impl OwnFiles {
    fn read(data_dir: &Path) -> Result<Self, Error> {
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::ReadFile { path, source }
        };
        let mut files = Vec::new();
        for entry in fs::read_dir(data_dir).map_err(fail(data_dir))? {
            let entry = entry.map_err(fail(data_dir))?;
            let path = entry.path();
            let meta = entry.metadata().map_err(fail(&path))?;
            let own = !NOT_OWN.contains(&entry.file_name().to_string_lossy().as_ref());
            if own && meta.is_file() && meta.len() <= LARGEST_OWN_FILE {
                let content = read_no_follow(&path).map_err(fail(&path))?;
                files.push((path, content, meta.permissions().mode() & 0o7777));
            }
        }
        Ok(Self(files))
    }

    fn write_back(&self, instance: &Instance) -> Result<(), Error> {
        for (path, content, mode) in &self.0 {
            write_if_different(path, content, *mode, &instance.user)?;
        }
        Ok(())
    }
}

/// Reads a file that is not a symbolic link: we may be root, and the directory belongs to someone who is not.
fn read_no_follow(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    file.take(LARGEST_OWN_FILE).read_to_end(&mut content)?;
    Ok(content)
}

/// Where the record of the latest checkpoint ends, from its length in WAL.
pub(super) async fn end_of_record(instance: &Instance, control: &ControlData) -> Result<Lsn, Error> {
    let program = instance.binaries.program("pg_waldump");
    let text = Tool::new(&program, &instance.user)
        .arg("-p")
        .arg(instance.config.data_dir.join("pg_wal"))
        .arg("-t")
        .arg(control.timeline.to_string())
        .arg("-s")
        .arg(control.checkpoint.to_string())
        .args(["-n", "1"])
        .output(QUICK)
        .await?;
    let length = record_length(&text).ok_or_else(|| Error::UnexpectedAnswer {
        operation: "read shutdown checkpoint",
        why: format!("pg_waldump printed {:?}", text.trim()),
    })?;
    Ok(end_position(control.checkpoint, length, control.wal_block_size, control.wal_segment_size))
}

/// Reads the total from `… len (rec/tot):    114/   114, tx: …`.
fn record_length(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once("len (rec/tot):")?;
    rest.split(',').next()?.split('/').nth(1)?.trim().parse().ok()
}

/// Reads the position from `…, lsn: 0/03000148, prev …`.
fn record_start(text: &str) -> Option<Lsn> {
    let (_, rest) = text.split_once("lsn:")?;
    rest.split(',').next()?.trim().parse().ok()
}

/// Adds a record's length, the headers of the pages that it crosses, and the padding to eight bytes.
///
/// Source: PostgreSQL `xlog.c`, `XLogBytePosToEndRecPtr`; page headers have 24 bytes, the first of a segment 40.
fn end_position(start: Lsn, length: u64, page: u64, segment: u64) -> Lsn {
    let mut position = start.0;
    let mut left = length.next_multiple_of(8);
    while left != 0 {
        let room = page - position % page;
        if left <= room {
            return Lsn(position + left);
        }
        left -= room;
        position += room;
        position += if position.is_multiple_of(segment) { 40 } else { 24 };
    }
    Lsn(position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_commands_are_expanded() {
        let line = expand_archive_command("cp %p /a/%f; echo 100%% %x %", "000000010000000000000003");
        assert_eq!(line, "cp pg_wal/000000010000000000000003 /a/000000010000000000000003; echo 100% %x %");
    }

    #[test]
    fn record_ends_count_page_headers() {
        let text = "rmgr: XLOG        len (rec/tot):    114/   114, tx:          0, lsn: 0/03000028, prev 0/02000100, desc: CHECKPOINT_SHUTDOWN redo 0/3000028";
        assert_eq!(record_length(text), Some(114));
        let end = |start| end_position(Lsn(start), 114, 8192, 16 << 20).0;
        assert_eq!(end(0x0300_0028), 0x0300_00A0);
        // Begins 24 bytes before the end of a page.
        assert_eq!(end(0x0300_1FE8), 0x0300_2000 + 24 + 96);
        // Begins 24 bytes before the end of a segment.
        assert_eq!(end(0x03FF_FFE8), 0x0400_0000 + 40 + 96);
        // Ends exactly with the page.
        assert_eq!(end(0x0300_2000 - 120), 0x0300_2000);
    }

    #[test]
    fn this_nodes_own_files_survive() {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::write(dir.path().join("server.key"), "mine").expect("file");
        fs::write(dir.path().join("PG_VERSION"), "15").expect("file");
        fs::create_dir(dir.path().join("base")).expect("directory");
        let own = OwnFiles::read(dir.path()).expect("read");
        assert_eq!(own.0.len(), 1);
        assert_eq!(own.0[0].1, b"mine");
    }
}
