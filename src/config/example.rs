//! `config/full.yml`, made from the key table: every honoured key with its documentation and default.
//!
//! Keys with a default are written as they are; required ones with an example; optional ones as a comment. What is
//! written passes `howdah config check`.

use std::fmt::Write;

use super::keys::{CLUSTER_KEYS, Given, Key, KeyTable, Kind, NODE_KEYS, Status};

const WIDTH: usize = 110;

/// The text of `config/full.yml`.
pub fn full() -> String {
    let mut text = String::from(
        "# Every key that howdah honours, with its default. Made by `howdah config example`; start from minimal.yml instead\n\
         # and take from here what you need. Durations are seconds, or have a unit (500ms, 10s, 30min, 1h); sizes are bytes,\n\
         # or have a unit (16MB). Lines that start with '#KEY' show optional keys without a default.\n",
    );
    write_level(&mut text, KeyTable(NODE_KEYS), "", 0);
    text
}

fn write_level(text: &mut String, table: KeyTable, path: &str, depth: usize) {
    let indent = "  ".repeat(depth);
    for key in table.children(path).filter(|key| key.status == Status::Honoured) {
        if depth == 0 || key.kind == Kind::Section {
            text.push('\n');
        }
        for line in wrapped(key.doc, WIDTH.saturating_sub(indent.len() + 2)) {
            let _ = writeln!(text, "{indent}# {line}");
        }
        let name = key.name();
        match key.kind {
            Kind::Section if has_active_keys(table, key.path) => {
                let _ = writeln!(text, "{indent}{name}:");
                write_level(text, table, key.path, depth + 1);
            }
            Kind::Section => {
                let _ = writeln!(text, "{indent}#{name}:");
                let mut below = String::new();
                write_level(&mut below, table, key.path, 0);
                // The keys below lose their own mark: one mark in front of the whole section is enough.
                for line in below.lines().filter(|line| !line.is_empty()) {
                    let line =
                        if line.trim_start().starts_with("# ") { line.to_owned() } else { line.replacen('#', "", 1) };
                    let _ = writeln!(text, "{indent}#  {line}");
                }
            }
            Kind::Settings => {
                let _ = writeln!(text, "{indent}{name}:");
                write_level(text, KeyTable(CLUSTER_KEYS), "", depth + 1);
            }
            _ => write_key(text, &indent, key),
        }
    }
}

/// The example is a cluster of three nodes, so these are written although they are optional.
fn is_shown_active(key: &Key) -> bool {
    !matches!(key.given, Given::Example(_)) || matches!(key.path, "raft.members" | "raft.secret")
}

fn has_active_keys(table: KeyTable, path: &str) -> bool {
    table.children(path).filter(|key| key.status == Status::Honoured).any(|key| match key.kind {
        Kind::Section => has_active_keys(table, key.path),
        Kind::Settings => true,
        _ => is_shown_active(key),
    })
}

fn write_key(text: &mut String, indent: &str, key: &Key) {
    let (Given::Default(value) | Given::Example(value) | Given::Required(value)) = key.given;
    let mark = if is_shown_active(key) { "" } else { "#" };
    let _ = writeln!(text, "{indent}{mark}{}: {value}", key.name());
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{check, raw};

    #[test]
    fn every_honoured_key_is_documented() {
        for key in NODE_KEYS.iter().chain(CLUSTER_KEYS).filter(|key| key.status == Status::Honoured) {
            assert!(key.doc.ends_with('.') || key.doc.ends_with("..."), "{} has no documentation", key.path);
        }
    }

    #[test]
    fn the_example_passes_its_own_check() {
        let tree = raw::parse_tree(&full(), Path::new("full.yml")).expect("is YAML");
        let config = check::check(&tree, Path::new("full.yml")).expect("is valid");
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    }

    #[test]
    fn the_checked_in_example_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/full.yml");
        if std::env::var_os("HOWDAH_BLESS").is_some() {
            std::fs::write(path, full()).expect("config/full.yml is writable");
        }
        let checked_in = std::fs::read_to_string(path).expect("config/full.yml exists");
        assert!(checked_in == full(), "config/full.yml differs: run `howdah config example > config/full.yml`");
    }
}
