//! Keeps what decisions were made on: for `why`, for the journal over REST, and for a file that outlives the process.
//!
//! ```text
//! tick -> the newest view and decision (in memory) ; a change of mind -> the last 64, and a line of decisions.jsonl
//! ```
//! The file is written by a thread of its own: a disk that stands still must not hold up the loop. What does not fit is
//! left out, and counted. At most [`FILE_BYTES`] are written before the file becomes `decisions.jsonl.old`.

use std::collections::VecDeque;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::ha::{ClusterView, Decision};
use crate::types::WallTime;

/// The file's name in the node's own directory.
pub const FILE: &str = "decisions.jsonl";
/// Size at which the file is put aside; the one before is dropped.
pub const FILE_BYTES: u64 = 4 << 20;
/// So many changes of mind are kept in memory.
const KEPT: usize = 64;
/// Lines that may wait for the disk.
const WAITING: usize = 64;

/// A decision and everything that it was made on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Recorded {
    /// When, for people.
    pub at: WallTime,
    /// What was known.
    pub view: ClusterView,
    /// What came of it.
    pub decision: Decision,
}

#[derive(Debug, Default)]
struct State {
    newest: Option<Arc<Recorded>>,
    changes: VecDeque<Arc<Recorded>>,
}

/// Shared by the loop, which writes, and whoever shows it.
#[derive(Debug, Clone, Default)]
pub struct Recorder {
    state: Arc<Mutex<State>>,
    file: Option<SyncSender<String>>,
    left_out: Arc<AtomicU64>,
}

impl Recorder {
    /// Keeps a file in `dir`, too.
    pub fn with_file(dir: &Path) -> Self {
        let (lines, waiting) = sync_channel(WAITING);
        let path = dir.join(FILE);
        let started = std::thread::Builder::new().name("decisions".to_owned()).spawn(move || write(&path, &waiting));
        if let Err(error) = &started {
            tracing::warn!(%error, "decisions are not written to a file");
        }
        Self { file: started.is_ok().then_some(lines), ..Self::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a decision; `changed`: it is another than the last one.
    pub fn keep(&self, view: &ClusterView, decision: &Decision, at: WallTime, changed: bool) {
        let recorded = Arc::new(Recorded { at, view: view.clone(), decision: decision.clone() });
        if changed
            && let Some(file) = &self.file
            && let Ok(line) = serde_json::to_string(&*recorded)
            && file.try_send(line).is_err()
        {
            let lines = self.left_out.fetch_add(1, Ordering::Relaxed) + 1;
            tracing::warn!(lines, file = FILE, "a decision is not in its file: the disk does not keep up");
        }
        let mut state = self.state();
        if changed {
            if state.changes.len() == KEPT {
                state.changes.pop_front();
            }
            state.changes.push_back(recorded.clone());
        }
        state.newest = Some(recorded);
    }

    /// The newest decision; none before the first.
    pub fn newest(&self) -> Option<Arc<Recorded>> {
        self.state().newest.clone()
    }

    /// The last changes of mind, oldest first.
    pub fn changes(&self) -> Vec<Arc<Recorded>> {
        self.state().changes.iter().cloned().collect()
    }

    /// Lines that the disk was too slow for.
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }
}

fn write(path: &Path, lines: &Receiver<String>) {
    let mut written = fs::metadata(path).map_or(0, |meta| meta.len());
    while let Ok(line) = lines.recv() {
        if FILE_BYTES < written {
            // If it cannot be renamed it grows on; a full disk then ends it.
            if fs::rename(path, old(path)).is_ok() {
                written = 0;
            }
        }
        let opened = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        if opened.and_then(|mut file| writeln!(file, "{line}")).is_ok() {
            written = written.saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX).saturating_add(1));
        }
    }
}

fn old(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".old");
    PathBuf::from(name)
}

/// Reads lines as the file and REST have them.
///
/// # Errors
/// The number of the first line that is none, and why.
pub fn parse(text: &str) -> Result<Vec<Recorded>, String> {
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    lines
        .map(|(line, number)| {
            serde_json::from_str(line).map_err(|error| format!("line {number} is no decision of this version: {error}"))
        })
        .collect()
}
