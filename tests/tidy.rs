//! The house rules that a compiler does not check: who may use whom, what a file begins with, how large it is.
//!
//! source files -> small checks over their lines -> a list of breaches, each with its place and the rule.
//! The table of dependencies is the one that `src/lib.rs` explains. Text is searched, not parsed: a breach
//! that hides behind a macro is not found, and has not been worth a parser so far.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test fails loudly and may talk")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What each module may use of this crate, from the ground up: each may use some of those above it, and none below.
/// A module that is missing here is refused.
const MAY_USE: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("telemetry", &["types"]),
    ("kv", &["types"]),
    ("cluster", &["types", "kv"]),
    ("ha", &["types", "cluster"]),
    ("config", &["types", "telemetry"]),
    ("tls", &["config"]),
    ("raft", &["types", "telemetry", "kv", "config", "tls"]),
    ("guardian", &["types", "telemetry"]),
    ("postgres", &["types", "telemetry"]),
    ("agent", &["types", "telemetry", "kv", "cluster", "ha", "config", "tls", "raft", "guardian", "postgres"]),
    ("api", &["types", "telemetry", "cluster", "ha", "config", "tls", "agent"]),
    ("etcd", &["types", "telemetry", "kv", "cluster", "config", "raft"]),
    ("router", &["types", "telemetry", "cluster", "config", "agent"]),
    ("dashboard", &["telemetry", "agent", "api"]),
    (
        "node",
        &[
            "types",
            "telemetry",
            "kv",
            "cluster",
            "ha",
            "config",
            "tls",
            "raft",
            "guardian",
            "postgres",
            "agent",
            "api",
            "etcd",
            "router",
            "dashboard",
        ],
    ),
    ("drill", &["types", "telemetry"]),
    ("dev", &["types", "telemetry", "config", "drill"]),
    (
        "cli",
        &[
            "types",
            "telemetry",
            "kv",
            "cluster",
            "ha",
            "config",
            "tls",
            "raft",
            "guardian",
            "agent",
            "api",
            "node",
            "drill",
            "dev",
        ],
    ),
    ("docs", &[]),
];

/// `guardian` may read the clock and nothing else of `telemetry`: it must stay small.
const GUARDIAN_TELEMETRY: &str = "telemetry::clock";

/// Words that the pure modules may not contain, and why.
const PURE: [&str; 3] = ["kv", "cluster", "ha"];
const IMPURE_WORDS: &[&str] = &[
    "tokio",
    "async fn",
    "async move",
    ".await",
    "Instant",
    "SystemTime",
    "rand::",
    "std::fs",
    "std::net",
    "std::process",
    "tracing",
    "HashMap",
    "HashSet",
    "telemetry",
    "println!",
    "std::thread",
    "std::env",
];

/// Crates and the places that may name them.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("openraft", &["src/raft/"]),
    ("sled", &["src/raft/disk.rs", "src/raft/disk/"]),
    ("tonic", &["src/etcd/"]),
    ("axum", &["src/api/", "src/dashboard/", "src/etcd/", "src/raft/server.rs", "src/node.rs", "src/node/"]),
    ("ratatui", &["src/cli/top.rs", "src/cli/top/"]),
    ("tokio_postgres", &["src/postgres/", "src/dev/write_probe.rs", "src/drill/load.rs", "src/cli/"]),
];

/// Places that may write the literal `LeaderPermit {`, beside tests: its definition and its only maker.
const PERMIT_MAKERS: &[&str] = &["src/types/permit.rs", "src/agent/lock.rs"];

/// Names without a meaning.
const REFUGES: &[&str] = &["util", "utils", "helper", "helpers", "common", "manager", "misc"];

/// Words of unfinished work.
const UNFINISHED: &[&str] = &["TODO", "FIXME", "XXX", "unimplemented!", "todo!(", "#[ignore"];

/// Paths of the machine that a file was written on.
const LOCAL_PATHS: &[&str] = &["/Users/", "/home/runner/"];

/// Lines of a file: from here on it is listed, from there on it is refused.
const LINES_LISTED: usize = 500;
const LINES_MAX: usize = 800;

/// Largest tracked file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A text file of the repository.
struct Source {
    /// Relative to the repository, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// Its lines with their numbers, without comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().zip(1..).map(|(line, number)| (number, strip_comment(line)))
    }

    /// As [`Source::code`], up to where the unit tests at the end of the file begin.
    fn product_code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code().take_while(|(_, line)| line.trim() != "#[cfg(test)]")
    }

    fn is_unit_test(&self) -> bool {
        // Stories are scripts with recorded answers, and the code that plays them.
        ["/tests.rs", "/tests/", "/stories.rs", "/stories/"].iter().any(|mark| self.path.contains(mark))
    }

    fn module(&self) -> Option<&str> {
        let rest = self.path.strip_prefix("src/")?;
        rest.split('/').next().map(|first| first.trim_end_matches(".rs"))
    }
}

fn strip_comment(line: &str) -> &str {
    let start = line.trim_start();
    if start.starts_with("//") {
        return "";
    }
    match line.find(" // ") {
        Some(at) => &line[..at],
        None => line,
    }
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file that belongs to the repository: tracked, or new and not ignored.
fn files() -> Vec<String> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(repository())
        .output();
    let mut files: Vec<String> = match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
        }
        // A source archive without git: everything but what a build leaves.
        Ok(_) | Err(_) => {
            let mut found = Vec::new();
            walk(&repository(), &repository(), &mut found);
            found
        }
    };
    files.retain(|path| repository().join(path).is_file());
    files.sort();
    assert!(files.iter().any(|path| path == "src/lib.rs"), "the repository's files were not found: {files:?}");
    files
}

fn walk(root: &Path, dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).expect("readable directory").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if !["target", ".git", ".howdah-dev"].iter().any(|skipped| name == *skipped) {
                walk(root, &path, found);
            }
        } else if let Ok(relative) = path.strip_prefix(root) {
            found.push(relative.to_string_lossy().into_owned());
        }
    }
}

fn rust_sources() -> Vec<Source> {
    let read =
        |path: String| Source { text: fs::read_to_string(repository().join(&path)).expect("UTF-8 source"), path };
    files().into_iter().filter(|path| path.ends_with(".rs")).map(read).collect()
}

fn product_sources() -> Vec<Source> {
    rust_sources().into_iter().filter(|source| source.path.starts_with("src/")).collect()
}

fn assert_none(rule: &str, breaches: &[String]) {
    assert!(breaches.is_empty(), "{rule}:\n  {}", breaches.join("\n  "));
}

#[test]
fn every_source_file_says_first_what_it_is_for() {
    let breaches: Vec<String> = rust_sources()
        .into_iter()
        .filter(|source| !source.text.starts_with("//! "))
        .map(|source| source.path)
        .collect();
    assert_none("a source file begins with `//! ` and its purpose", &breaches);
}

/// The modules that one line of code names by `crate::`.
fn uses(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let before = line[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &line[at + "crate::".len()..];
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        if end > 0 {
            found.push(&rest[..end]);
        }
    }
    found
}

#[test]
fn modules_use_only_what_the_table_allows() {
    let mut breaches = Vec::new();
    for source in product_sources() {
        let Some(module) = source.module() else { continue };
        if ["lib", "main"].contains(&module) || source.is_unit_test() {
            continue;
        }
        let allowed = MAY_USE.iter().find(|(name, _)| *name == module).map(|(_, allowed)| *allowed);
        let Some(allowed) = allowed else {
            breaches.push(format!("{}: module `{module}` is not in the table of tests/tidy.rs", source.path));
            continue;
        };
        for (number, line) in source.product_code() {
            if line.contains("use crate::{") {
                breaches.push(format!(
                    "{}:{number}: one `use crate::module` a line, so that it can be checked",
                    source.path
                ));
            }
            for used in uses(line).into_iter().filter(|used| *used != module && !allowed.contains(used)) {
                breaches.push(format!("{}:{number}: `{module}` may not use `{used}`", source.path));
            }
            let more_than_clock = line.contains("crate::telemetry") && !line.contains(GUARDIAN_TELEMETRY);
            if module == "guardian" && more_than_clock {
                breaches.push(format!("{}:{number}: the guardian uses {GUARDIAN_TELEMETRY} alone", source.path));
            }
        }
    }
    assert_none("dependencies point down the table in src/lib.rs", &breaches);
}

#[test]
fn the_table_has_no_circle() {
    for (place, (module, uses)) in MAY_USE.iter().enumerate() {
        for used in *uses {
            let above = MAY_USE[..place].iter().any(|(name, _)| name == used);
            assert!(above, "`{module}` may use `{used}`, which does not stand above it");
        }
    }
}

#[test]
fn the_core_is_pure() {
    let mut breaches = Vec::new();
    for source in product_sources() {
        if source.is_unit_test() || !source.module().is_some_and(|module| PURE.contains(&module)) {
            continue;
        }
        for (number, line) in source.product_code() {
            for word in IMPURE_WORDS.iter().filter(|word| contains_word(line, word)) {
                breaches.push(format!("{}:{number}: `{word}`", source.path));
            }
        }
    }
    assert_none(
        "kv/, cluster/ and ha/ have no clock, no I/O, no randomness, no async, no log, no unordered maps",
        &breaches,
    );
}

#[test]
fn each_library_stays_in_its_place() {
    let mut breaches = Vec::new();
    for source in product_sources() {
        for (library, places) in ONLY_IN {
            if places.iter().any(|place| source.path.starts_with(place)) {
                continue;
            }
            for (number, line) in source.code() {
                if contains_word(line, &format!("{library}::")) {
                    breaches.push(format!("{}:{number}: `{library}` is for {places:?}", source.path));
                }
            }
        }
    }
    assert_none("a library is named only where it is wrapped", &breaches);
}

#[test]
fn permits_are_made_in_one_place() {
    let mut breaches = Vec::new();
    for source in product_sources() {
        if PERMIT_MAKERS.contains(&source.path.as_str()) || source.is_unit_test() {
            continue;
        }
        for (number, line) in source.product_code() {
            if line.contains("LeaderPermit {") && !line.contains("-> LeaderPermit {") && !line.contains("impl") {
                breaches.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    assert_none("a LeaderPermit is made only in agent/lock.rs", &breaches);
}

/// The wall clock can be set by anybody, and is for people.
#[test]
fn what_lives_by_time_does_not_read_the_wall_clock() {
    let counts =
        ["src/raft/", "src/guardian/deadline.rs", "src/guardian/deadman.rs", "src/agent/lock.rs", "src/types/"];
    // What a forced new cluster leaves behind for people.
    let for_people = ["src/raft/force.rs"];
    let mut breaches = Vec::new();
    for source in product_sources() {
        let counted = counts.iter().any(|place| source.path.starts_with(place));
        if !counted || for_people.contains(&source.path.as_str()) {
            continue;
        }
        for (number, line) in
            source.product_code().filter(|(_, line)| line.contains("wall(") || line.contains("SystemTime"))
        {
            breaches.push(format!("{}:{number}: {}", source.path, line.trim()));
        }
    }
    assert_none("leases, permits and deadlines are counted on the clock that nobody can set", &breaches);
}

#[test]
fn names_say_something() {
    let mut breaches = Vec::new();
    for path in files() {
        for part in path.split('/') {
            let stem = part.split('.').next().unwrap_or(part);
            if REFUGES.contains(&stem) {
                breaches.push(path.clone());
            }
        }
    }
    for source in product_sources() {
        for (number, line) in source.code() {
            for keyword in ["mod ", "struct ", "enum ", "trait ", "fn "] {
                let Some(at) = line.find(keyword) else { continue };
                let rest = &line[at + keyword.len()..];
                let name = rest.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or_default();
                if REFUGES.contains(&name.to_lowercase().as_str())
                    || name.ends_with("Manager")
                    || name.ends_with("Helper")
                {
                    breaches.push(format!("{}:{number}: {name}", source.path));
                }
            }
        }
    }
    assert_none("a thing without a name has no place yet", &breaches);
}

#[test]
fn nothing_is_left_unfinished() {
    let mut breaches = Vec::new();
    for source in rust_sources().iter().filter(|source| source.path != "tests/tidy.rs") {
        for (line, number) in source.text.lines().zip(1..) {
            for word in UNFINISHED.iter().filter(|word| contains_word(line, word)) {
                breaches.push(format!("{}:{number}: {word}", source.path));
            }
        }
    }
    assert_none("no unfinished work and no test that does not run", &breaches);
}

#[test]
fn files_can_be_read_in_one_sitting() {
    let mut breaches = Vec::new();
    let mut listed = String::new();
    for source in rust_sources() {
        let lines = source.text.lines().count();
        if lines > LINES_MAX {
            breaches.push(format!("{}: {lines} lines", source.path));
        } else if lines > LINES_LISTED {
            let _ = writeln!(listed, "  {}: {lines} lines", source.path);
        }
    }
    if !listed.is_empty() {
        eprintln!("long files, look again:\n{listed}");
    }
    assert_none(&format!("a source file has at most {LINES_MAX} lines"), &breaches);
}

#[test]
fn the_repository_holds_no_large_files_and_no_local_paths() {
    let mut breaches = Vec::new();
    for path in files() {
        let full = repository().join(&path);
        let bytes = fs::metadata(&full).map(|meta| meta.len()).unwrap_or(0);
        if bytes > FILE_BYTES_MAX {
            breaches.push(format!("{path}: {bytes} bytes"));
        }
        if path == "tests/tidy.rs" || path == "Cargo.lock" {
            continue;
        }
        let Ok(text) = fs::read_to_string(&full) else { continue };
        for (line, number) in text.lines().zip(1..) {
            for local in LOCAL_PATHS.iter().filter(|local| line.contains(**local)) {
                breaches.push(format!("{path}:{number}: {local}"));
            }
        }
    }
    assert_none("no file above 1 MiB, no path of one machine", &breaches);
}

/// Where the reasons of decisions are defined, and where they are explained to people.
const REASONS: &str = "src/ha/reason.rs";
const REASONS_EXPLAINED: &str = "src/docs/rules.md";

/// The codes of all decisions' reasons: the variants of `enum Reason` in [`REASONS`], in snake case, which is how they
/// are serialised.
fn reason_codes(text: &str) -> Vec<String> {
    let body = text.split("pub enum Reason {").nth(1).unwrap_or_default();
    let body = body.split("\n}").next().unwrap_or_default();
    let variants = body.lines().filter_map(|line| line.strip_prefix("    "));
    let names = variants.filter(|line| line.starts_with(|first: char| first.is_ascii_uppercase()));
    names.filter_map(|line| line.split(|c: char| !c.is_alphanumeric()).next()).map(snake_case).collect()
}

fn snake_case(name: &str) -> String {
    let mut text = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

#[test]
fn every_reason_is_documented() {
    let reasons = fs::read_to_string(repository().join(REASONS)).expect(REASONS);
    let documented = fs::read_to_string(repository().join(REASONS_EXPLAINED)).expect(REASONS_EXPLAINED);
    let codes = reason_codes(&reasons);
    assert!(codes.len() > 10, "the codes were not found in {REASONS}: {codes:?}");
    let missing: Vec<String> = codes.into_iter().filter(|code| !documented.contains(&format!("`{code}`"))).collect();
    assert_none(&format!("{REASONS_EXPLAINED} explains the code of every reason"), &missing);
}

/// Whether `line` contains `word` with no letter, digit or underscore beside it.
fn contains_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let starts_open = !word.starts_with(is_part) || !before.is_some_and(is_part);
        let ends_open = !word.ends_with(is_part) || !after.is_some_and(is_part);
        starts_open && ends_open
    })
}

#[test]
fn the_checks_find_what_they_look_for() {
    assert_eq!(uses("use crate::ha::view; crate::kv::X"), ["ha", "kv"]);
    assert_eq!(uses("mycrate::ha $crate::kv"), Vec::<&str>::new());
    assert!(contains_word("let m: HashMap<u8, u8>", "HashMap"));
    assert!(!contains_word("let m: MyHashMapLike", "HashMap"));
    assert!(contains_word("use tokio::net", "tokio") && !contains_word("use tokio_postgres::x", "tokio"));
    assert_eq!(strip_comment("let a = 1; // tokio"), "let a = 1;");
    assert_eq!(strip_comment("/// tokio"), "");
    let reasons =
        "pub enum Reason {\n    // steady\n    LeaderHealthy { term: i64 },\n    Paused,\n}\nenum Other {\n    No,\n}";
    assert_eq!(reason_codes(reasons), ["leader_healthy", "paused"]);
    let source = Source { path: "src/ha/x.rs".to_owned(), text: "a\n#[cfg(test)]\nmod tests {}\n".to_owned() };
    assert_eq!(source.product_code().count(), 1);
    assert_eq!(source.module(), Some("ha"));
}
