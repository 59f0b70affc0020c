//! Fails a test whose nodes logged a warning or an error that nobody expected, or any password.
//!
//! logs from a mark on -> lines of level WARN and ERROR -> minus what the test allows -> must be none.
//! A warning that is normal teaches people to overlook warnings; then it belongs at another level.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::cluster::Cluster;

/// What any node may say on a machine that is busy with something else; it is about the machine, not about us.
const OF_THE_MACHINE: [&str; 3] = ["the disk is slow", "this disk is slow", "this process stood still"];

/// What a test expects to find, and from where on it looks.
pub struct LogGate {
    from: BTreeMap<PathBuf, usize>,
    allowed: Vec<(String, &'static str)>,
}

impl LogGate {
    /// Looks at everything from the cluster's first line on.
    pub fn new() -> Self {
        Self { from: BTreeMap::new(), allowed: Vec::new() }
    }

    /// Expects lines of `node` ("*" for all) that contain `text`.
    pub fn allow(mut self, node: &str, text: &'static str) -> Self {
        self.allowed.push((node.to_owned(), text));
        self
    }

    /// Expects the same of several nodes or texts.
    pub fn allow_all(self, node: &str, texts: &[&'static str]) -> Self {
        texts.iter().fold(self, |gate, text| gate.allow(node, text))
    }

    /// Reads what was logged since the last call.
    pub fn check(&mut self, cluster: &Cluster) {
        let mut unexpected = Vec::new();
        for node in cluster.layout.nodes() {
            for path in [node.log.clone(), node.guardian_log()] {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                self.check_secrets(cluster, &path, &text);
                let from = self.from.insert(path.clone(), text.len()).unwrap_or(0);
                for line in text.get(from..).unwrap_or_default().lines() {
                    if level(line).is_some() && !self.is_allowed(&node.name, line) {
                        unexpected.push(format!("{}: {line}", path.display()));
                    }
                }
            }
        }
        assert!(unexpected.is_empty(), "unexpected warnings or errors:\n{}", unexpected.join("\n"));
    }

    fn is_allowed(&self, node: &str, line: &str) -> bool {
        OF_THE_MACHINE.iter().any(|text| line.contains(text))
            || self.allowed.iter().any(|(who, text)| (who == "*" || who == node) && line.contains(text))
    }

    fn check_secrets(&self, cluster: &Cluster, path: &std::path::Path, text: &str) {
        let passwords = &cluster.passwords;
        let members = std::fs::read_to_string(cluster.layout.dir.join("secret")).expect("the members' secret");
        for secret in
            [passwords.superuser.expose(), passwords.replication.expose(), passwords.rewind.expose(), members.trim()]
        {
            assert!(!text.contains(secret), "{} contains a password", path.display());
        }
    }
}

/// WARN or ERROR when the line is one of that level: the level stands among its first words.
fn level(line: &str) -> Option<&'static str> {
    let mut words = line.split_whitespace().take(3);
    words.find_map(|word| match word.trim_matches(|c: char| !c.is_ascii_alphabetic()) {
        "WARN" => Some("WARN"),
        "ERROR" => Some("ERROR"),
        "PANIC" | "panicked" => Some("PANIC"),
        _ => None,
    })
}

mod tests {
    use super::*;

    #[test]
    fn only_the_level_of_a_line_counts() {
        assert_eq!(level("2026-11-22T20:18:54Z  WARN howdah::agent: permit not renewed"), Some("WARN"));
        assert_eq!(level("2026-11-22T20:18:54Z ERROR start postgres: ERROR"), Some("ERROR"));
        assert_eq!(level("2026-11-22T20:18:54Z  INFO postgres said ERROR"), None);
        assert_eq!(level("thread 'main' panicked at src/node.rs"), Some("PANIC"));
        assert_eq!(level(""), None);
    }
}
