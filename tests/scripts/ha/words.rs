//! One line of a story as words: some by position, some by name, none left over at the end.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use howdah::types::{Lsn, NodeName, TimelineId};

pub struct Words {
    line: u32,
    positional: VecDeque<String>,
    named: BTreeMap<String, String>,
}

impl Words {
    pub fn of(command: &goldenscript::Command) -> Self {
        let mut words = Self { line: command.line_number, positional: VecDeque::new(), named: BTreeMap::new() };
        for argument in &command.args {
            match &argument.key {
                Some(key) => drop(words.named.insert(key.clone(), argument.value.clone())),
                None => words.positional.push_back(argument.value.clone()),
            }
        }
        words
    }

    pub fn next(&mut self) -> Option<String> {
        self.positional.pop_front()
    }

    pub fn word(&mut self) -> String {
        self.next().unwrap_or_else(|| panic!("line {}: a word is missing", self.line))
    }

    pub fn named(&mut self, key: &str) -> Option<String> {
        self.named.remove(key)
    }

    /// The named words that are left, as pairs.
    pub fn rest(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.named).into_iter().collect()
    }

    pub fn yes(&mut self, key: &str) -> Option<bool> {
        self.named(key).map(|value| yes(&value))
    }

    pub fn node(&mut self, key: &str) -> Option<NodeName> {
        self.named(key).map(|value| node(&value))
    }

    pub fn number(&mut self, key: &str) -> Option<i64> {
        self.named(key).map(|value| value.parse().unwrap())
    }

    pub fn lsn(&mut self, key: &str) -> Option<Lsn> {
        self.named(key).map(|value| lsn(&value))
    }

    pub fn timeline(&mut self) -> Option<TimelineId> {
        self.named("timeline").map(|value| TimelineId(value.parse().unwrap()))
    }

    pub fn finish(self) {
        let Self { line, positional, named } = self;
        assert!(positional.is_empty() && named.is_empty(), "line {line}: not understood: {positional:?} {named:?}");
    }
}

pub fn node(text: &str) -> NodeName {
    text.parse().unwrap()
}

pub fn lsn(text: &str) -> Lsn {
    text.parse().unwrap()
}

pub fn yes(text: &str) -> bool {
    match text {
        "yes" => true,
        "no" => false,
        other => panic!("{other:?} is neither yes nor no"),
    }
}

pub fn span(text: &str) -> Duration {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().unwrap();
    match &text[digits.len()..] {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        unit => panic!("{unit:?} is neither ms nor s"),
    }
}
