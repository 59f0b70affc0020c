//! Stories about the decision core, read and judged as text, and properties of every view.
//!
//! ```text
//! tests/scripts/ha/*.txt --story.rs--> ClusterView -> decide -> plan -> text, compared with the file
//! views.rs: any mixture of facts -> decide, plan -> what must never happen
//! progress.rs: any mixture of facts -> decide, act, decide ... -> rest
//! ```
//!
//! The name of a story is a sentence. Its language is explained at the top of `scripts/ha/story.rs`.
//! After a change: `UPDATE_GOLDENFILES=1 cargo test --test scripts`, then read every line of the difference.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test binary has no users, and may end where it stands")]

#[path = "scripts/ha/progress.rs"]
mod progress;
#[path = "scripts/ha/show.rs"]
mod show;
#[path = "scripts/ha/story.rs"]
mod story;
#[path = "scripts/ha/views.rs"]
mod views;
#[path = "scripts/ha/words.rs"]
mod words;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use howdah::ha::reason::CODES;
use story::Story;

fn stories() -> Vec<PathBuf> {
    let dir = format!("{}/tests/scripts/ha", env!("CARGO_MANIFEST_DIR"));
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    paths.sort();
    paths
}

#[test]
fn every_story_ends_as_it_is_told() {
    let mut wrong = Vec::new();
    let paths = stories();
    assert!(40 < paths.len(), "the stories are gone: {paths:?}");
    for path in paths {
        let run = || goldenscript::run(&mut Story::new(), &path);
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(())) => (),
            Ok(Err(error)) => wrong.push(format!("{}: {error}", path.display())),
            Err(_) => wrong.push(path.display().to_string()),
        }
    }
    assert!(wrong.is_empty(), "{} stories end differently: {wrong:#?}", wrong.len());
}

/// A reason that no story tells of is a rule that nobody has read.
#[test]
fn every_reason_has_a_story() {
    let told: String = stories().iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let untold: Vec<&&str> = CODES.iter().filter(|code| !told.contains(&format!(" [{code}, again "))).collect();
    assert!(untold.is_empty(), "no story tells of {untold:?}");
}

/// `src/docs/rules.md` has a row for each code, in the order of the list, and no other.
#[test]
fn every_reason_is_documented() {
    let text = std::fs::read_to_string(format!("{}/src/docs/rules.md", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let rows: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(code, _)| code)).collect();
    let codes: Vec<&str> = CODES.to_vec();
    assert_eq!(rows, codes);
}

/// The sentences in `src/docs/rules.md` are those that the stories print, with `{what varies}` left open.
#[test]
fn every_reason_is_documented_in_its_own_words() {
    let text = std::fs::read_to_string(format!("{}/src/docs/rules.md", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let told: String = stories().iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    for row in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert!(cells.len() == 3 && cells.iter().all(|cell| !cell.is_empty()), "a row has three cells: {row}");
        let code = cells[0].trim_matches('`');
        for line in told.lines().filter(|line| line.contains(&format!(" [{code}, again "))) {
            let (_, rest) = line.split_once(": ").unwrap();
            let (sentence, _) = rest.rsplit_once(" [").unwrap();
            assert!(fits(cells[1], sentence), "{code} is documented as {:?}, but reads {sentence:?}", cells[1]);
        }
    }
}

/// Whether `sentence` is `template` with something in the place of each `{..}`.
fn fits(template: &str, sentence: &str) -> bool {
    let mut fixed = template.split('{').map(|part| part.split_once('}').map_or(part, |(_, after)| after));
    let Some(mut rest) = fixed.next().and_then(|start| sentence.strip_prefix(start)) else { return false };
    let ends_open = template.ends_with('}');
    for part in fixed {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    ends_open || rest.is_empty()
}
