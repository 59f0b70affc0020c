//! Follows the nodes' log files and picks the lines that a person at the terminal should see.
//!
//! file from where it ended -> complete lines -> WARN and ERROR only, the same text once in ten seconds.
//! Changes of role are not read from logs: they are asked of the nodes (`watch`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;

use crate::types::Mono;

/// How long the same text stays quiet after it was shown.
const QUIET: Duration = Duration::from_secs(10);
/// At most this much of a log is read at a time; a flood is followed in steps.
const CHUNK_BYTES_MAX: u64 = 256 << 10;
/// Texts remembered for the ten seconds; forgotten together when there are more.
const REMEMBERED_MAX: usize = 1_000;

/// One followed log.
#[derive(Debug)]
pub struct LogTail {
    path: PathBuf,
    position: u64,
    partial: Vec<u8>,
    shown: BTreeMap<String, Mono>,
}

impl LogTail {
    /// Follows `path` from its present end: what an earlier run said is not shown again.
    pub fn from_end(path: PathBuf) -> Self {
        let position = std::fs::metadata(&path).map(|meta| meta.len()).unwrap_or(0);
        Self { path, position, partial: Vec::new(), shown: BTreeMap::new() }
    }

    /// The important lines since the last call, without their time stamps.
    pub fn news(&mut self, now: Mono) -> Vec<String> {
        let mut news = Vec::new();
        for line in self.lines() {
            let Some(text) = important(&line) else { continue };
            let recent = self.shown.get(&text).is_some_and(|at| now.since(*at) < QUIET);
            if !recent {
                if self.shown.len() >= REMEMBERED_MAX {
                    self.shown.clear();
                }
                self.shown.insert(text.clone(), now);
                news.push(text);
            }
        }
        news
    }

    fn lines(&mut self) -> Vec<String> {
        let mut fresh = Vec::new();
        let mut read = || -> std::io::Result<()> {
            let mut file = File::open(&self.path)?;
            if file.metadata()?.len() < self.position {
                self.position = 0; // it was truncated: somebody cleaned up
            }
            file.seek(SeekFrom::Start(self.position))?;
            file.take(CHUNK_BYTES_MAX).read_to_end(&mut fresh)?;
            Ok(())
        };
        if read().is_err() {
            return Vec::new(); // not there yet; the next call looks again
        }
        self.position += u64::try_from(fresh.len()).unwrap_or(0);
        self.partial.extend_from_slice(&fresh);
        let Some(end) = self.partial.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        let complete: Vec<u8> = self.partial.drain(..=end).collect();
        String::from_utf8_lossy(&complete).lines().map(str::to_owned).collect()
    }
}

/// The text of a line of level WARN or ERROR, from the level on; also of a panic.
fn important(line: &str) -> Option<String> {
    if line.contains("panicked at") {
        return Some(line.to_owned());
    }
    let head = line.get(..60.min(line.len())).unwrap_or(line);
    let at = ["WARN ", "ERROR "].iter().filter_map(|level| head.find(level)).min()?;
    line.get(at..).map(|text| text.trim_end().to_owned())
}

/// The last lines of a file, for a node that ended.
pub fn last_lines(path: &std::path::Path, count: usize) -> Vec<String> {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(count)).map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn only_new_important_and_complete_lines_are_news() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("howdah.log");
        std::fs::write(&path, "12:00:00 ERROR of an earlier run\n").expect("write");
        let mut tail = LogTail::from_end(path.clone());
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).expect("open");
        let second = Duration::from_secs(1);
        file.write_all(b"12:00:01  INFO fine\n12:00:02  WARN slow disk\n12:00:03 ERR").expect("write");
        assert_eq!(tail.news(Mono(0) + second), ["WARN slow disk"]);
        file.write_all(b"OR broken\n12:00:04  WARN slow disk\n").expect("write");
        assert_eq!(tail.news(Mono(0) + second * 2), ["ERROR broken"]);
        file.write_all(b"12:00:14  WARN slow disk\n").expect("write");
        assert_eq!(tail.news(Mono(0) + second * 12), ["WARN slow disk"], "ten seconds later it is news again");
    }

    #[test]
    fn a_level_inside_the_text_is_not_a_level() {
        let line = format!("12:00:00 INFO {} ERROR said PostgreSQL", "x".repeat(60));
        assert_eq!(important(&line), None);
        assert!(important("thread 'main' panicked at src/node.rs:1").is_some());
    }
}
