//! A note beside the data directory that says: what is in there is not finished.
//!
//! Lies beside and not inside, because pg_rewind removes files that the source does not have, and initdb wants an
//! empty directory. Written before the first change, removed after the last; a crash leaves it behind.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::Error;
use super::files::{read_optional, remove_durably, with_suffix, write_atomic};
use super::process::{kill_orphan, start_time};
use super::user::OsUser;
use crate::telemetry::clock;
use crate::types::WallTime;

/// The operations that leave a data directory unusable when they are interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// From initdb until the cluster's record knows the system identifier.
    Bootstrap,
    /// pg_rewind and what follows it.
    Rewind,
}

impl Operation {
    fn in_words(self) -> &'static str {
        match self {
            Self::Bootstrap => "the bootstrap of a new cluster",
            Self::Rewind => "a rewind",
        }
    }
}

/// The note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    /// What was going on.
    pub operation: Operation,
    /// Since when.
    pub since: WallTime,
    /// The tool that did it and its start time, so that an orphan can be found and not mistaken.
    #[serde(default)]
    pub tool: Option<(u32, Option<u64>)>,
}

impl Unfinished {
    /// Where the note of a data directory lies.
    pub fn path(data_dir: &Path) -> PathBuf {
        with_suffix(data_dir, ".howdah-unfinished")
    }

    /// Reads the note; none when there is none. A note that cannot be read is an error: never "finished".
    pub(super) fn read(data_dir: &Path) -> Result<Option<Self>, Error> {
        let path = Self::path(data_dir);
        let Some(bytes) = read_optional(&path)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| Error::ReadFile { path, source: error.into() })
    }

    /// Writes the note; a crash from here on leaves the directory marked.
    pub(super) fn write(
        data_dir: &Path,
        operation: Operation,
        tool_pid: Option<u32>,
        owner: &OsUser,
    ) -> Result<(), Error> {
        let note = Self { operation, since: clock::wall(), tool: tool_pid.map(|pid| (pid, start_time(pid))) };
        let path = Self::path(data_dir);
        let text =
            serde_json::to_vec(&note).map_err(|error| Error::WriteFile { path: path.clone(), source: error.into() })?;
        write_atomic(&path, &text, 0o600, owner)
    }

    /// Removes the note: the directory is whole.
    pub(super) fn remove(data_dir: &Path) -> Result<(), Error> {
        remove_durably(&Self::path(data_dir)).map(|_| ())
    }

    /// Ends a tool of an earlier run that still works in the directory.
    pub(super) async fn end_orphan(data_dir: &Path) -> Result<(), Error> {
        if let Some(Self { tool: Some((pid, started)), .. }) = Self::read(data_dir)? {
            kill_orphan(pid, started).await;
        }
        Ok(())
    }

    /// For people.
    pub fn in_words(&self) -> String {
        format!("{} that began at {} was not finished", self.operation.in_words(), self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_lies_beside_and_goes_away() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let data_dir = dir.path().join("main");
        let owner = OsUser::current().expect("user");
        assert_eq!(Unfinished::read(&data_dir).expect("read"), None);
        Unfinished::write(&data_dir, Operation::Rewind, Some(std::process::id()), &owner).expect("write");
        let note = Unfinished::read(&data_dir).expect("read").expect("there");
        assert_eq!(note.operation, Operation::Rewind);
        assert!(note.in_words().starts_with("a rewind that began at"));
        std::fs::write(Unfinished::path(&data_dir), "{").expect("damage");
        assert!(Unfinished::read(&data_dir).is_err(), "damage is not absence");
        Unfinished::remove(&data_dir).expect("remove");
        assert_eq!(Unfinished::read(&data_dir).expect("read"), None);
    }
}
