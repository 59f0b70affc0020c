//! The replication slots that this node has made, kept for its next agent.
//!
//! A slot holds back WAL until it is dropped, and nothing about it tells who made it. An agent that was away when a member or a
//! setting went would take what is left of it for somebody else's, and the disk would fill up.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::slots::Kept;
use crate::raft::write_whole;

/// A disk that takes longer does not hold up the agent.
const PATIENCE: Duration = Duration::from_secs(1);

/// Remembers the slots.
#[derive(Debug)]
pub struct KeptSlots {
    path: PathBuf,
    written: Option<Kept>,
    /// A write that the disk has not done yet. Nothing newer is written beside it: it could be the last to be done.
    writing: Option<JoinHandle<Result<(), String>>>,
}

impl KeptSlots {
    /// In the directory of the store.
    pub fn beside(store: &Path) -> Self {
        Self { path: store.join("kept-slots.json"), written: None, writing: None }
    }

    /// What an earlier agent has remembered. When that cannot be read its slots are nobody's, and a person is told.
    pub fn read(&mut self) -> Kept {
        let read = std::fs::read(&self.path).and_then(|bytes| Ok(serde_json::from_slice::<Kept>(&bytes)?));
        match read {
            Ok(kept) => {
                self.written = Some(kept.clone());
                kept
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Kept::default(),
            Err(error) => {
                let path = self.path.display();
                warn!(%path, %error, "which replication slots were made here before is unknown; look for unused ones in pg_replication_slots");
                Kept::default()
            }
        }
    }

    /// To be called before a slot is made, and again: what could not be written is written then.
    pub async fn remember(&mut self, kept: Kept) {
        if self.written.as_ref() == Some(&kept) || self.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            return;
        }
        let (path, bytes) = (self.path.clone(), serde_json::to_vec(&kept));
        let mut writing = tokio::task::spawn_blocking(move || {
            let bytes = bytes.map_err(|error| error.to_string())?;
            write_whole(&path, &bytes).map_err(|error| error.to_string())
        });
        let result = match tokio::time::timeout(PATIENCE, &mut writing).await {
            Ok(result) => result.unwrap_or_else(|error| Err(error.to_string())),
            Err(_) => {
                self.writing = Some(writing);
                Err("the disk does not answer".to_owned())
            }
        };
        match result {
            Ok(()) => self.written = Some(kept),
            Err(why) => debug!(path = %self.path.display(), why, "remember the replication slots; again later"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_next_process_knows_the_slots() {
        let dir = tempfile::tempdir().expect("it can be made");
        let mut slots = KeptSlots::beside(dir.path());
        assert_eq!(slots.read(), Kept::default());
        let kept = Kept { members: ["n2".to_owned()].into(), ..Kept::default() };
        slots.remember(kept.clone()).await;
        assert_eq!(KeptSlots::beside(dir.path()).read(), kept);
        std::fs::write(dir.path().join("kept-slots.json"), "{").expect("written");
        assert_eq!(KeptSlots::beside(dir.path()).read(), Kept::default());
        // What cannot be written stays to be written.
        let mut nowhere = KeptSlots::beside(&dir.path().join("nowhere"));
        nowhere.remember(kept.clone()).await;
        assert_eq!(nowhere.written, None);
        std::fs::create_dir(dir.path().join("nowhere")).expect("made");
        nowhere.remember(kept.clone()).await;
        assert_eq!(nowhere.written, Some(kept));
    }
}
