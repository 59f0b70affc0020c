//! The guardian's own log: told to the agent at once, written to a file when nothing can be held up by it.
//!
//! ```text
//! note -> ring of 256 lines -> attached agent (socket, never waited for)
//!                          \-> file, only while PostgreSQL is not writable
//! ```
//!
//! Writing to a file can take as long as the disk likes, and a guardian that waits for a disk does not fence.
//! Deliberately absent: levels and filters; there are few lines and all matter.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::types::{Mono, WallTime};

/// How many lines are kept for an agent or a file that does not take them.
const ROOM: usize = 256;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When, for deciding.
    pub at: Mono,
    /// When, for people.
    pub wall: WallTime,
    /// What.
    pub text: String,
}

/// The lines that somebody has not taken yet.
#[derive(Debug)]
pub struct Journal {
    name: String,
    file: Option<PathBuf>,
    lines: VecDeque<Entry>,
    /// The number of the first line in `lines`.
    first: u64,
    told: u64,
    written: u64,
}

impl Journal {
    /// An empty one. Without a file, lines go to the agent only.
    pub fn new(name: String, file: Option<PathBuf>) -> Self {
        Self { name, file, lines: VecDeque::with_capacity(ROOM), first: 0, told: 0, written: 0 }
    }

    /// Adds a line; the oldest gives way.
    pub fn note(&mut self, at: Mono, text: String) {
        if self.lines.len() == ROOM {
            self.lines.pop_front();
            self.first += 1;
        }
        self.lines.push_back(Entry { at, wall: crate::telemetry::clock::wall(), text });
    }

    /// The next line that no agent has been told.
    pub fn next_untold(&mut self) -> Option<Entry> {
        let line = self.after(self.told)?.clone();
        self.told = self.told.max(self.first) + 1;
        Some(line)
    }

    /// Writes what is not in the file yet. May wait for the disk.
    pub fn write_out(&mut self) {
        if self.after(self.written).is_none() {
            return;
        }
        // Opened for each use: a file that is open must be closed before a dying guardian's children are killed, and
        // on a file server closing can wait.
        let mut file = self.file.as_ref().and_then(|path| open(path).ok());
        while let Some(Entry { wall, text, .. }) = self.after(self.written) {
            let line = format!("{} guardian {}[{}]: {text}\n", wall.iso(), self.name, std::process::id());
            self.written = self.written.max(self.first) + 1;
            if let Some(file) = &mut file {
                // There is nobody to tell that the log does not work but the agent, who is told the line itself.
                let _ = file.write_all(line.as_bytes());
            }
        }
    }

    fn after(&self, number: u64) -> Option<&Entry> {
        let index = number.saturating_sub(self.first);
        self.lines.get(usize::try_from(index).ok()?)
    }
}

/// Opens a log for appending.
///
/// # Errors
/// When it cannot be opened.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_wait_for_the_agent_and_the_oldest_give_way() {
        let mut journal = Journal::new("n1".into(), None);
        journal.note(Mono(1), "first".into());
        assert_eq!(journal.next_untold().map(|line| line.text), Some("first".into()));
        assert_eq!(journal.next_untold(), None);
        for number in 0..300 {
            journal.note(Mono(2), number.to_string());
        }
        assert_eq!(journal.next_untold().map(|line| line.text), Some("44".into()), "300 lines, room for 256");
        assert_eq!(journal.next_untold().map(|line| line.text), Some("45".into()));
    }

    #[test]
    fn the_file_gets_each_line_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut journal = Journal::new("n1".into(), Some(path.clone()));
        journal.note(Mono(1), "one".into());
        journal.write_out();
        journal.write_out();
        journal.note(Mono(1), "two".into());
        journal.write_out();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].ends_with(": one") && lines[1].contains("guardian n1["));
    }
}
