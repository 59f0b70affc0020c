//! The leadership that this node has asked to end, kept for the next agent of this node.
//!
//! A request to end a leadership may lie in a log or on its way, and be carried out when its asker is long gone. An agent that
//! was started meanwhile and knew nothing of it would lead on, under a permit that lasts longer than the key: two would write.
//!
//! One line of constant length beside the store, overwritten in place: that works on a full disk, too.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::warn;

use crate::types::Term;

/// A disk that takes longer does not hold up a hand-over: that needs this process to live on, no more.
const PATIENCE: Duration = Duration::from_secs(1);

/// Remembers one term.
#[derive(Debug, Clone)]
pub struct EndedTerm {
    path: PathBuf,
}

impl EndedTerm {
    /// In the directory of the store: whoever begins a new store begins with terms of its own.
    pub fn beside(store: &Path) -> Self {
        Self { path: store.join("ended-term") }
    }

    /// The term that an earlier process has asked to end; and makes room for the next one.
    pub fn read(&self) -> Option<Term> {
        let unread = |error: io::Error, what: &str| {
            warn!(path = %self.path.display(), %error, "{what}");
            None
        };
        match std::fs::read_to_string(&self.path) {
            Ok(text) => text.trim().parse().ok().filter(|term| *term != 0).map(Term),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                write(&self.path, Term(0)).err().and_then(|error| unread(error, "make room for the last ended term"))
            }
            // Not to be read is not absent: what stands there stays.
            Err(error) => unread(error, "read the last ended term"),
        }
    }

    /// To be called before anybody is asked to end `term`.
    pub async fn remember(&self, term: Term) {
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || write(&path, term));
        let trouble = match tokio::time::timeout(PATIENCE, written).await {
            Ok(Ok(Ok(()))) => return,
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the disk does not answer".to_owned(),
        };
        warn!(path = %self.path.display(), %term, %trouble, "remember the ended term");
    }
}

fn write(path: &Path, term: Term) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    file.write_all(format!("{:020}\n", term.0).as_bytes())?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by the simulation (seed 11415 of its clusters with two sites): an agent was restarted after it had asked to hand
    /// over, started PostgreSQL again, and the request was carried out then.
    #[tokio::test]
    async fn the_next_process_knows_what_the_last_one_has_asked_for() {
        let dir = tempfile::tempdir().expect("it can be made");
        let ended = EndedTerm::beside(dir.path());
        assert_eq!(ended.read(), None);
        let empty = std::fs::metadata(&ended.path).expect("there is room for it").len();
        ended.remember(Term(1500)).await;
        assert_eq!(EndedTerm::beside(dir.path()).read(), Some(Term(1500)));
        ended.remember(Term(7)).await;
        assert_eq!(ended.read(), Some(Term(7)));
        assert_eq!(std::fs::metadata(&ended.path).expect("it is there").len(), empty, "it never grows");
    }
}
