//! Typed reading from a tree of keys, collecting everything that is wrong instead of stopping at the first.
//!
//! ```text
//! tree + key table -> reader.duration("ttl") -> a value, or the default and a Problem
//! ```
//! Deliberately absent: which keys exist (`keys.rs`) and how they relate (`check.rs`).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;

use super::address::HostPort;
use super::keys::{Given, KeyTable, Kind};
use crate::telemetry::redact::Secret;
use crate::types::ByteSize;

/// One thing that is wrong: where, and a sentence that says what and how to put it right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key, dots between the levels.
    pub path: String,
    /// Cause and remedy.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// Reads one tree. Getters return a usable value in any case, so that reading goes on after a problem.
#[derive(Debug)]
pub struct Reader<'a> {
    tree: &'a Value,
    table: KeyTable,
    prefix: String,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    /// Reads `tree` by `table`; `prefix` (empty, or ending in a dot) is put before every path shown to people.
    pub fn new(tree: &'a Value, table: KeyTable, prefix: &str) -> Self {
        Self { tree, table, prefix: prefix.to_owned(), problems: Vec::new(), warnings: Vec::new() }
    }

    /// What was found wrong, and what to warn of.
    pub fn finish(self) -> (Vec<Problem>, Vec<String>) {
        (self.problems, self.warnings)
    }

    /// Takes over the findings of another reader.
    pub fn absorb(&mut self, other: Reader<'_>) {
        self.problems.extend(other.problems);
        self.warnings.extend(other.warnings);
    }

    /// The tree.
    pub fn tree(&self) -> &'a Value {
        self.tree
    }

    /// The table of known keys.
    pub fn table(&self) -> KeyTable {
        self.table
    }

    /// Notes a problem at `path`.
    pub fn problem(&mut self, path: &str, message: impl Into<String>) {
        self.problems.push(Problem { path: format!("{}{path}", self.prefix), message: message.into() });
    }

    /// Notes a warning at `path`.
    pub fn warning(&mut self, path: &str, message: impl Into<String>) {
        self.warnings.push(format!("{}{path}: {}", self.prefix, message.into()));
    }

    /// The value at `path` as it stands; null counts as absent.
    pub fn value(&self, path: &str) -> Option<&'a Value> {
        let mut here = self.tree;
        for part in path.split('.') {
            here = here.as_object()?.get(part)?;
        }
        Some(here).filter(|value| !value.is_null())
    }

    /// Whether the file says anything at `path`.
    pub fn has(&self, path: &str) -> bool {
        self.value(path).is_some()
    }

    fn default_value(&self, path: &str) -> Option<Value> {
        match self.table.find(path)?.given {
            Given::Default(text) => serde_yaml_ng::from_str(text).ok(),
            Given::Example(_) | Given::Required(_) => None,
        }
    }

    /// The value, parsed; none when absent or wrong (then noted).
    fn parsed<T>(&mut self, path: &str, parse: impl Fn(&Value) -> Result<T, String>) -> Option<T> {
        match parse(self.value(path)?) {
            Ok(value) => Some(value),
            Err(message) => {
                self.problem(path, message);
                None
            }
        }
    }

    /// The value, or the default of the table.
    fn with_default<T: Default>(&mut self, path: &str, parse: impl Fn(&Value) -> Result<T, String>) -> T {
        let read = self.parsed(path, &parse);
        read.unwrap_or_else(|| self.default_value(path).and_then(|value| parse(&value).ok()).unwrap_or_default())
    }

    /// A duration, or its default.
    pub fn duration(&mut self, path: &str) -> Duration {
        self.with_default(path, duration_of)
    }

    /// A duration that had another name in earlier versions of Patroni.
    pub fn aliased_duration(&mut self, path: &str, old: &str) -> Duration {
        if !self.has(path) && self.has(old) {
            return self.parsed(old, duration_of).unwrap_or_default();
        }
        self.duration(path)
    }

    /// A size, or its default.
    pub fn size(&mut self, path: &str) -> ByteSize {
        self.with_default(path, size_of)
    }

    /// A size where -1 means none.
    pub fn optional_size(&mut self, path: &str) -> Option<ByteSize> {
        self.with_default(path, |value| match value.as_i64() {
            Some(-1) => Ok(None),
            _ => size_of(value).map(Some).map_err(|message| format!("{message}, or -1 for none")),
        })
    }

    /// True or false, or its default.
    pub fn flag(&mut self, path: &str) -> bool {
        self.with_default(path, flag_of)
    }

    /// A whole number, or its default.
    pub fn integer(&mut self, path: &str) -> u32 {
        self.with_default(path, |value| {
            let number = match value {
                Value::String(text) => text.trim().parse().ok(),
                other => other.as_u64(),
            };
            number
                .and_then(|n: u64| u32::try_from(n).ok())
                .ok_or_else(|| format!("{value} is not a whole number; write 0 or more"))
        })
    }

    /// A port, if there is one.
    pub fn optional_port(&mut self, path: &str) -> Option<u16> {
        self.parsed(path, |value| {
            let number = match value {
                Value::String(text) => text.trim().parse().ok(),
                other => other.as_u64(),
            };
            number
                .and_then(|n: u64| u16::try_from(n).ok())
                .filter(|port| *port != 0)
                .ok_or_else(|| format!("{value} is not a port; write a number from 1 to 65535"))
        })
    }

    /// One of the table's words for `path`, in lower case, or its default. YAML's true and false count as on and off.
    pub fn word(&mut self, path: &str) -> String {
        let words = match self.table.find(path).map(|key| key.kind) {
            Some(Kind::Word(words)) => words,
            _ => &[],
        };
        self.with_default(path, |value| {
            let written = match value {
                Value::Bool(true) => "on".to_owned(),
                Value::Bool(false) => "off".to_owned(),
                Value::String(text) => text.trim().to_ascii_lowercase(),
                other => other.to_string(),
            };
            let meant = match written.as_str() {
                "true" | "yes" if words.contains(&"on") => "on",
                "false" | "no" if words.contains(&"off") => "off",
                other => other,
            };
            if words.contains(&meant) {
                Ok(meant.to_owned())
            } else {
                Err(format!("{value} is not one of {}; write one of them", words.join(", ")))
            }
        })
    }

    /// A text, or its default.
    pub fn text(&mut self, path: &str) -> String {
        self.with_default(path, text_of)
    }

    /// A text, if there is one.
    pub fn optional_text(&mut self, path: &str) -> Option<String> {
        self.parsed(path, text_of)
    }

    /// A secret, if there is one. It never appears in a problem.
    pub fn optional_secret(&mut self, path: &str) -> Option<Secret<String>> {
        self.parsed(path, |value| text_of(value).map_err(|_| "is not a text; put it in quotes".to_owned()))
            .map(Secret::new)
    }

    /// A value that parses from text, if there is one. The parser's error ends the sentence.
    pub fn optional<T: FromStr<Err: fmt::Display>>(&mut self, path: &str) -> Option<T> {
        self.parsed(path, |value| text_of(value)?.parse::<T>().map_err(|error| error.to_string()))
    }

    /// A value that the file must have.
    pub fn required<T: FromStr<Err: fmt::Display>>(&mut self, path: &str) -> Option<T> {
        if !self.has(path) {
            let example = match self.table.find(path).map(|key| key.given) {
                Some(Given::Required(text) | Given::Example(text) | Given::Default(text)) => text,
                None => "VALUE",
            };
            let name = path.rsplit('.').next().unwrap_or(path);
            self.problem(path, format!("is missing; add it, for example `{name}: {example}`"));
        }
        self.optional(path)
    }

    /// An address, or the default of the table.
    pub fn address<T: FromStr<Err: fmt::Display>>(&mut self, path: &str) -> Option<T> {
        let default =
            self.default_value(path).and_then(|value| text_of(&value).ok()).and_then(|text| text.parse().ok());
        self.optional(path).or(default)
    }

    /// An address with one host, if there is one.
    pub fn optional_address(&mut self, path: &str) -> Option<HostPort> {
        self.optional(path)
    }

    /// A map, empty when absent.
    pub fn map(&mut self, path: &str) -> BTreeMap<String, Value> {
        self.with_default(path, |value| match value {
            Value::Object(fields) => Ok(fields.iter().map(|(k, v)| (k.clone(), v.clone())).collect()),
            other => Err(format!("{} is not a map; write `key: value` lines below it", shown(other))),
        })
    }

    /// A map to texts: numbers as written, true and false as on and off, null entries left out.
    pub fn text_map(&mut self, path: &str) -> BTreeMap<String, String> {
        let mut texts = BTreeMap::new();
        for (name, value) in self.map(path) {
            match &value {
                Value::Null => {}
                Value::Bool(on) => drop(texts.insert(name, if *on { "on" } else { "off" }.to_owned())),
                Value::String(text) => drop(texts.insert(name, text.clone())),
                Value::Number(number) => drop(texts.insert(name, number.to_string())),
                Value::Array(_) | Value::Object(_) => {
                    self.problem(&format!("{path}.{name}"), "is not a single value; write a text, number or boolean");
                }
            }
        }
        texts
    }

    /// A list, empty when absent.
    pub fn list(&mut self, path: &str) -> Vec<Value> {
        self.with_default(path, |value| match value {
            Value::Array(items) => Ok(items.clone()),
            other => Err(format!("{} is not a list; write `- item` lines below it", shown(other))),
        })
    }

    /// A list of texts, if there is one.
    pub fn optional_text_list(&mut self, path: &str) -> Option<Vec<String>> {
        if !self.has(path) {
            return None;
        }
        let mut texts = Vec::new();
        for (index, value) in self.list(path).iter().enumerate() {
            match text_of(value) {
                Ok(text) => texts.push(text),
                Err(message) => self.problem(&format!("{path}[{index}]"), message),
            }
        }
        Some(texts)
    }
}

/// A value in a sentence: long ones by their kind.
fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) => "a map".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        other => other.to_string(),
    }
}

fn text_of(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(flag.to_string()),
        other => Err(format!("{} is not a text; write a single value", shown(other))),
    }
}

fn flag_of(value: &Value) -> Result<bool, String> {
    match value {
        Value::Bool(flag) => Ok(*flag),
        Value::String(text) => match text.trim().to_ascii_lowercase().as_str() {
            "true" | "on" | "yes" | "1" => Ok(true),
            "false" | "off" | "no" | "0" => Ok(false),
            _ => Err(format!("{value} is neither true nor false; write one of them")),
        },
        Value::Number(number) if number.as_u64() == Some(0) => Ok(false),
        Value::Number(number) if number.as_u64() == Some(1) => Ok(true),
        other => Err(format!("{} is neither true nor false; write one of them", shown(other))),
    }
}

fn size_of(value: &Value) -> Result<ByteSize, String> {
    let refuse =
        || format!("{} is not a size; write bytes or a number with a unit, such as 1048576 or 16MB", shown(value));
    match value {
        Value::Number(number) => number.as_u64().map(ByteSize).ok_or_else(refuse),
        Value::String(text) => text.parse().map_err(|_| refuse()),
        _ => Err(refuse()),
    }
}

fn duration_of(value: &Value) -> Result<Duration, String> {
    let refuse = || {
        format!(
            "{} is not a duration; write seconds or a number with a unit, such as 10, 0.5, 500ms or 30min",
            shown(value)
        )
    };
    match value {
        Value::Number(number) => {
            number.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).ok_or_else(refuse)
        }
        Value::String(text) => parse_duration(text).ok_or_else(refuse),
        _ => Err(refuse()),
    }
}

/// Reads `10`, `0.5`, `500ms`, `10s`, `30min`, `1h`, `1d`. Units are PostgreSQL's.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(end);
    let number: f64 = number.parse().ok()?;
    let factor = match unit.trim() {
        "" | "s" => 1.0,
        "us" => 1e-6,
        "ms" => 1e-3,
        "min" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return None,
    };
    // Micro-second steps: 0.1 s as a float is not exactly 100 ms.
    let micros = (number * factor * 1e6).round();
    Duration::try_from_secs_f64(micros / 1e6)
        .ok()
        .map(|span| Duration::from_micros(span.as_micros().try_into().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let ms = Duration::from_millis;
        for (text, span) in
            [("10", ms(10_000)), ("0.5", ms(500)), ("500ms", ms(500)), ("30min", ms(1_800_000)), ("1 h", ms(3_600_000))]
        {
            assert_eq!(parse_duration(text), Some(span), "{text}");
        }
        for text in ["", "s", "-1", "10 parsecs", "1.2.3", "ten"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
