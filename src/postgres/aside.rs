//! Moves a data directory out of the way, and never deletes it.
//!
//! `<data_dir>` -> `<data_dir>.diverged-<timeline>-<time>` or `.failed-<time>`: one rename in one file system.
//! A note inside says why. Old ones are removed only beyond a limit that the operator has set.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Instance;
use super::data_dir::running_postmaster;
use super::error::Error;
use super::files::{compact_utc, rename_durably, with_suffix, write_atomic};
use super::tablespaces;
use super::unfinished::Unfinished;
use crate::telemetry::clock;
use crate::types::{TimelineId, WallTime};

/// Name of the note inside a directory that was moved aside.
const NOTE: &str = "howdah.moved-aside";

/// From this many on, a warning tells about the disk space.
const MANY: usize = 3;

/// Under which name a directory is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MovedAs {
    /// It may hold changes that no other node has; it was on this timeline.
    Diverged(TimelineId),
    /// What is left of an operation that failed.
    Failed,
}

/// A directory that was moved aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptAside {
    /// Where it is.
    pub path: PathBuf,
    /// Why it was moved.
    pub why: String,
    /// When.
    pub when: WallTime,
}

#[derive(Debug, Serialize, Deserialize)]
struct Note {
    why: String,
    when: WallTime,
}

impl Instance {
    /// Moves the data directory aside and returns where it is now. None when there was nothing to move.
    ///
    /// # Errors
    /// `ServerRunning`; `Rename` for a mount point or a parent that is not writable, with the remedy.
    pub async fn move_aside(&self, why: &str, name: MovedAs) -> Result<Option<PathBuf>, Error> {
        let data_dir = &self.config.data_dir;
        Unfinished::end_orphan(data_dir).await?;
        if let Some(pid) = running_postmaster(data_dir)? {
            return Err(Error::ServerRunning { operation: "move data directory aside", pid });
        }
        match fs::symlink_metadata(data_dir) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.move_outside_along()?;
                Unfinished::remove(data_dir)?;
                return Ok(None);
            }
            Err(source) => return Err(Error::ReadFile { path: data_dir.clone(), source }),
        }
        tablespaces::check_movable(data_dir, "move data directory aside")?;
        let now = clock::wall();
        let target = free_name(data_dir, name, now);
        rename_durably(data_dir, &target)?;
        self.move_outside_along()?;
        let note = Note { why: why.to_owned(), when: now };
        if target.is_dir()
            && let Ok(text) = serde_json::to_vec_pretty(&note)
        {
            write_atomic(&target.join(NOTE), &text, 0o600, &self.user)?;
        }
        // The note of an unfinished operation spoke of what has just left.
        Unfinished::remove(data_dir)?;
        tracing::warn!(from = %data_dir.display(), to = %target.display(), why, "moved the data directory aside");
        self.respect_limit().await?;
        Ok(Some(target))
    }

    /// Directories that were moved aside, oldest first.
    ///
    /// # Errors
    /// `ReadFile`.
    pub fn kept_aside(&self) -> Result<Vec<KeptAside>, Error> {
        let data_dir = &self.config.data_dir;
        let (Some(parent), Some(name)) = (data_dir.parent(), data_dir.file_name()) else { return Ok(Vec::new()) };
        let name = name.to_string_lossy();
        let prefixes = [format!("{name}.diverged-"), format!("{name}.failed-")];
        let read_failed = |source| Error::ReadFile { path: parent.to_owned(), source };
        let mut kept = Vec::new();
        for entry in fs::read_dir(parent).map_err(read_failed)? {
            let entry = entry.map_err(read_failed)?;
            let file_name = entry.file_name();
            let ours = prefixes.iter().any(|p| file_name.to_string_lossy().starts_with(p));
            // Without our note it may be anything, so it neither counts nor is ever touched.
            let note = ours.then(|| fs::read(entry.path().join(NOTE)).ok()).flatten();
            if let Some(note) = note.and_then(|text| serde_json::from_slice::<Note>(&text).ok()) {
                kept.push(KeptAside { path: entry.path(), why: note.why, when: note.when });
            }
        }
        kept.sort_by(|a, b| (a.when, &a.path).cmp(&(b.when, &b.path)));
        Ok(kept)
    }

    /// Moves tablespaces along with the newest directory that was moved aside; a crash may have come in between.
    ///
    /// Only while there is no data directory: what a living one uses is never touched.
    pub(super) fn move_outside_along(&self) -> Result<(), Error> {
        let data_dir = &self.config.data_dir;
        let (Some(parent), Some(name)) = (data_dir.parent(), data_dir.file_name()) else { return Ok(()) };
        let entries = match fs::read_dir(parent) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(Error::ReadFile { path: parent.to_owned(), source }),
        };
        let name = name.to_string_lossy();
        let suffix_of = |entry: fs::DirEntry| {
            let file_name = entry.file_name().to_string_lossy().into_owned();
            let suffix = file_name.strip_prefix(name.as_ref())?.to_owned();
            let ours = suffix.starts_with(".diverged-") || suffix.starts_with(".failed-");
            // The time is the last part but perhaps a number, and sorts as text.
            let time = suffix.split('-').find(|part| part.len() == 16 && part.ends_with('Z'))?.to_owned();
            (ours && entry.path().join("PG_VERSION").exists()).then(|| (time, entry.path(), suffix))
        };
        match entries.flatten().filter_map(suffix_of).max() {
            Some((_, newest, suffix)) => tablespaces::move_along(&newest, &suffix, &self.user),
            None => Ok(()),
        }
    }

    async fn respect_limit(&self) -> Result<(), Error> {
        let kept = self.kept_aside()?;
        let Some(limit) = self.config.keep_aside else {
            if MANY <= kept.len() {
                tracing::warn!(count = kept.len(), "old data directories use disk space; remove those not needed");
            }
            return Ok(());
        };
        for old in kept.iter().take(kept.len().saturating_sub(limit)) {
            let path = old.path.clone();
            tracing::warn!(path = %path.display(), why = old.why, "removing an old data directory: more than keep_aside");
            let name = self.config.data_dir.to_string_lossy();
            if let Some(suffix) = path.to_string_lossy().strip_prefix(name.as_ref()) {
                tablespaces::remove_along(&path, suffix, &self.user).await?;
            }
            let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(path)).await;
            removed
                .unwrap_or_else(|error| Err(io::Error::other(error)))
                .map_err(|source| Error::Remove { path: old.path.clone(), source })?;
        }
        Ok(())
    }
}

fn free_name(data_dir: &Path, name: MovedAs, now: WallTime) -> PathBuf {
    let time = compact_utc(now);
    let base = match name {
        MovedAs::Diverged(timeline) => format!(".diverged-{timeline}-{time}"),
        MovedAs::Failed => format!(".failed-{time}"),
    };
    let mut candidate = with_suffix(data_dir, &base);
    let mut number = 2;
    while fs::symlink_metadata(&candidate).is_ok() {
        candidate = with_suffix(data_dir, &format!("{base}-{number}"));
        number += 1;
    }
    candidate
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_timeline_and_time_and_never_collide() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let data_dir = dir.path().join("main");
        let now = WallTime(1_795_378_530_123);
        let first = free_name(&data_dir, MovedAs::Diverged(TimelineId(3)), now);
        assert_eq!(first, dir.path().join("main.diverged-3-20261122T201530Z"));
        fs::create_dir(&first).expect("taken");
        let second = free_name(&data_dir, MovedAs::Diverged(TimelineId(3)), now);
        assert_eq!(second, dir.path().join("main.diverged-3-20261122T201530Z-2"));
        assert_eq!(free_name(&data_dir, MovedAs::Failed, now), dir.path().join("main.failed-20261122T201530Z"));
    }
}
