//! A new data directory grows beside its place and takes it in one rename.
//!
//! `<data_dir>.new-<time>-<pid>/` holds a marker and `data/`. A half-made directory can never be mistaken for a whole
//! one: it is not at the place. What a killed run leaves behind carries the marker, so it is ours and is removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::Error;
use super::files::{compact_utc, ensure_dir, read_optional, rename_durably, sync_dir, with_suffix, write_atomic};
use super::process::{kill_orphan, start_time};
use super::user::OsUser;
use crate::telemetry::clock;

/// Name of the marker inside the staging directory.
const MARKER: &str = "howdah.staging";

/// The content of the marker: the tool that works here.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Marker {
    pid: Option<u32>,
    started: Option<u64>,
    /// Directories elsewhere that were empty before and that the tool fills.
    #[serde(default)]
    outside: Vec<PathBuf>,
}

/// A staging directory. Dropped without [`Staging::commit`], it is removed.
pub(super) struct Staging<'a> {
    dir: PathBuf,
    data_dir: &'a Path,
    user: &'a OsUser,
    outside: Vec<PathBuf>,
    committed: bool,
}

impl<'a> Staging<'a> {
    /// Removes what earlier runs left behind and makes a new staging directory.
    pub(super) async fn begin(data_dir: &'a Path, user: &'a OsUser) -> Result<Self, Error> {
        remove_leftovers(data_dir, user).await?;
        if let Some(parent) = data_dir.parent() {
            ensure_dir(parent, 0o755, user)?;
        }
        let name = format!(".new-{}-{}", compact_utc(clock::wall()), std::process::id());
        let dir = with_suffix(data_dir, &name);
        ensure_dir(&dir, 0o700, user)?;
        let staging = Self { dir, data_dir, user, outside: Vec::new(), committed: false };
        staging.mark(None)?;
        Ok(staging)
    }

    /// Where the tool makes the new data directory.
    pub(super) fn target(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// A file beside the target that goes away with the staging directory.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Notes directories elsewhere, missing or empty now, that the tool will fill.
    pub(super) fn fills(&mut self, outside: Vec<PathBuf>) -> Result<(), Error> {
        self.outside = outside;
        self.mark(None)
    }

    /// Notes which tool works here, so that an orphan can be ended before its directory is removed.
    pub(super) fn mark(&self, pid: Option<u32>) -> Result<(), Error> {
        let path = self.dir.join(MARKER);
        let marker = Marker { pid, started: pid.and_then(start_time), outside: self.outside.clone() };
        let text = serde_json::to_vec(&marker)
            .map_err(|error| Error::WriteFile { path: path.clone(), source: error.into() })?;
        write_atomic(&path, &text, 0o600, self.user)
    }

    /// Puts the finished directory at its place; the place must be free or an empty directory.
    pub(super) fn commit(mut self) -> Result<(), Error> {
        let target = self.target();
        for dir in self.outside.iter().chain([&target]) {
            sync_tree(dir).map_err(|source| Error::WriteFile { path: dir.clone(), source })?;
        }
        rename_durably(&target, self.data_dir)?;
        self.committed = true;
        remove_tree(&self.dir)
    }
}

/// What a tool that fills a staging directory is told about syncing: where [`sync_tree`] does it for the whole file
/// system at once, a thousand single syncs by the tool would only take time.
pub(super) const TOOL_SYNC: Option<&str> = if cfg!(target_os = "linux") { Some("--no-sync") } else { None };

/// Puts everything below `dir` on disk.
///
/// Source: syncfs(2): since Linux 5.8 it reports writeback errors.
fn sync_tree(dir: &Path) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::fs::syncfs(std::fs::File::open(dir)?)?;
    sync_dir(dir)
}

/// Makes sure that a failed operation's staging directory is gone before its error is reported.
///
/// Removing a large copy takes time, so it happens beside the asynchronous threads.
pub(super) async fn discard_on_error<T>(
    staging: Staging<'_>,
    result: Result<T, Error>,
) -> Result<(T, Staging<'_>), Error> {
    match result {
        Ok(value) => Ok((value, staging)),
        Err(error) => {
            if let Err(problem) = remove_with_outside(&staging.dir, &staging.outside, staging.user).await {
                tracing::warn!(error = %problem, "staging directory stays behind; the next run removes it");
            }
            Err(error)
        }
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        // With directories elsewhere there is more to do than a destructor can; the marker tells the next run.
        let simple = self.outside.is_empty();
        if !self.committed
            && simple
            && let Err(error) = remove_tree(&self.dir)
        {
            tracing::warn!(dir = %self.dir.display(), %error, "staging directory stays behind; the next run removes it");
        }
    }
}

/// Removes the staging directories of earlier runs: named by us and carrying our marker, both.
pub(super) async fn remove_leftovers(data_dir: &Path, user: &OsUser) -> Result<(), Error> {
    let (Some(parent), Some(name)) = (data_dir.parent(), data_dir.file_name()) else { return Ok(()) };
    let prefix = format!("{}.new-", name.to_string_lossy());
    let read_failed = |source| Error::ReadFile { path: parent.to_owned(), source };
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(read_failed(error)),
    };
    for entry in entries {
        let entry = entry.map_err(read_failed)?;
        if !entry.file_name().to_string_lossy().starts_with(&prefix) {
            continue;
        }
        let dir = entry.path();
        let Some(marker) = read_optional(&dir.join(MARKER))? else {
            // Ours after all if it is empty: a crash came right after the marker's removal. Else it is left alone.
            let _ = fs::remove_dir(&dir);
            continue;
        };
        let marker: Marker = serde_json::from_slice(&marker).unwrap_or_default();
        if let Some(pid) = marker.pid {
            kill_orphan(pid, marker.started).await;
        }
        tracing::info!(dir = %dir.display(), "removing what an interrupted copy left behind");
        remove_with_outside(&dir, &marker.outside, user).await?;
    }
    Ok(())
}

/// Removes a staging directory and what its tool had filled elsewhere.
///
/// Without `data` inside the copy is either not begun or in its place already: then nothing elsewhere is touched.
async fn remove_with_outside(dir: &Path, outside: &[PathBuf], user: &OsUser) -> Result<(), Error> {
    if dir.join("data").exists() {
        super::tablespaces::empty(outside, user).await?;
    }
    let (path, tree) = (dir.to_owned(), dir.to_owned());
    let removed = tokio::task::spawn_blocking(move || remove_tree(&tree)).await;
    removed.unwrap_or_else(|error| Err(Error::Remove { path, source: io::Error::other(error) }))
}

/// Removes a staging directory, the marker last: a crash in between leaves it recognisable.
fn remove_tree(dir: &Path) -> Result<(), Error> {
    let fail = |source| Error::Remove { path: dir.to_owned(), source };
    match fs::remove_dir_all(dir.join("data")) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail(error)),
    }
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(fail(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).expect("list").flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn commit_takes_the_place_and_drop_leaves_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let data_dir = dir.path().join("main");
        let user = OsUser::current().expect("user");
        let staging = Staging::begin(&data_dir, &user).await.expect("begin");
        fs::create_dir(staging.target()).expect("target");
        drop(staging);
        assert!(names(dir.path()).is_empty());
        fs::create_dir(&data_dir).expect("an empty directory at the place");
        let staging = Staging::begin(&data_dir, &user).await.expect("begin");
        fs::create_dir(staging.target()).expect("target");
        fs::write(staging.target().join("PG_VERSION"), "15").expect("file");
        staging.commit().expect("commit");
        assert_eq!(names(dir.path()), ["main"]);
        assert_eq!(names(&data_dir), ["PG_VERSION"]);
    }

    #[tokio::test]
    async fn a_full_place_is_not_overwritten() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let data_dir = dir.path().join("main");
        let user = OsUser::current().expect("user");
        fs::create_dir(&data_dir).expect("directory");
        fs::write(data_dir.join("precious"), "data").expect("file");
        let staging = Staging::begin(&data_dir, &user).await.expect("begin");
        fs::create_dir(staging.target()).expect("target");
        assert!(matches!(staging.commit(), Err(Error::Rename { .. })));
        assert_eq!(names(&data_dir), ["precious"]);
        assert_eq!(names(dir.path()), ["main"], "the staging directory went away");
    }

    #[tokio::test]
    async fn only_marked_leftovers_are_removed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let data_dir = dir.path().join("main");
        for name in ["main.new-20260101T000000Z-1", "main.new-mine", "other.new-x"] {
            fs::create_dir_all(dir.path().join(name).join("data")).expect("directory");
        }
        fs::write(dir.path().join("main.new-20260101T000000Z-1").join(MARKER), "{}").expect("marker");
        let user = OsUser::current().expect("user");
        remove_leftovers(&data_dir, &user).await.expect("removed");
        assert_eq!(names(dir.path()), ["main.new-mine", "other.new-x"]);
    }
}
