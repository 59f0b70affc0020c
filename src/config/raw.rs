//! From text to a tree, and whether every key in the tree is known.
//!
//! ```text
//! file or directory -> YAML -> tree -> recognise: honoured | accepted | ignored | unsupported | unknown (nearest name)
//! ```
//! An unknown key is an error: a setting with a typing error in it must not pass for one in force. Deliberately
//! absent: values (`reader.rs`).

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::cluster_settings::merge_patch;
use super::keys::{CLUSTER_KEYS, KeyTable, Kind, NODE_KEYS, Status};
use super::reader::Reader;

/// Why a file gave no tree.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is not there, or not readable.
    #[error("read configuration {path}: give the path of an existing file that this user may read")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is no text.
    #[error(
        "read configuration {path}: line {line} is not in UTF-8, so it is no YAML; save the file as UTF-8, or give another one"
    )]
    NotText {
        /// The file.
        path: PathBuf,
        /// Where the first letter stands that is none.
        line: usize,
    },
    /// It is no YAML.
    #[error("read configuration {path}: not valid YAML")]
    Yaml {
        /// The file.
        path: PathBuf,
        /// Line, column and cause.
        #[source]
        source: serde_yaml_ng::Error,
    },
    /// It is YAML, but no map.
    #[error(
        "read configuration {path}: the file holds {found} instead of `key: value` lines; start from `howdah config example`"
    )]
    NotAMap {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: &'static str,
    },
    /// A directory without any YAML file.
    #[error("read configuration {path}: the directory holds no *.yml file")]
    EmptyDirectory {
        /// The directory.
        path: PathBuf,
    },
}

/// Reads a YAML file, or all `*.yml` and `*.yaml` files of a directory, merged in the order of their names.
///
/// # Errors
/// See [`ReadError`].
pub fn read_tree(path: &Path) -> Result<Value, ReadError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ReadError::Read { path, source }
    };
    if !path.is_dir() {
        return parse_tree(&read_text(path)?, path);
    }
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed(path))? {
        let file = entry.map_err(failed(path))?.path();
        if file.extension().is_some_and(|ext| ext == "yml" || ext == "yaml") {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(ReadError::EmptyDirectory { path: path.to_owned() });
    }
    files.sort();
    let mut tree = Value::Object(Map::new());
    for file in files {
        merge_patch(&mut tree, &parse_tree(&read_text(&file)?, &file)?);
    }
    Ok(tree)
}

fn read_text(path: &Path) -> Result<String, ReadError> {
    let bytes = std::fs::read(path).map_err(|source| ReadError::Read { path: path.to_owned(), source })?;
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        ReadError::NotText { path: path.to_owned(), line }
    })
}

/// Parses YAML text; `path` is for messages.
///
/// # Errors
/// [`ReadError::Yaml`] with line and column, [`ReadError::NotAMap`].
pub fn parse_tree(text: &str, path: &Path) -> Result<Value, ReadError> {
    let failed = |source| ReadError::Yaml { path: path.to_owned(), source };
    // By way of YAML's own value: it refuses a key that stands twice, where JSON's would take the last one.
    let yaml: serde_yaml_ng::Value = serde_yaml_ng::from_str(text).map_err(failed)?;
    let tree: Value = serde_yaml_ng::from_value(yaml).map_err(failed)?;
    let found = match tree {
        Value::Object(_) => return Ok(tree),
        Value::Null => "nothing",
        Value::Array(_) => "a list",
        Value::Bool(_) | Value::Number(_) | Value::String(_) => "a single value",
    };
    Err(ReadError::NotAMap { path: path.to_owned(), found })
}

/// Checks that every key of the reader's tree is in its table; notes unknown ones as problems, and those without
/// effect as warnings.
pub fn recognise(reader: &mut Reader<'_>) {
    recognise_below(reader, reader.tree(), "");
}

fn recognise_below(reader: &mut Reader<'_>, value: &Value, path: &str) {
    let Value::Object(fields) = value else {
        if !path.is_empty() && !value.is_null() {
            reader.problem(path, "is a section; write its keys below it, indented");
        }
        return;
    };
    for (name, value) in fields {
        let here = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let Some(key) = reader.table().find(&here) else {
            match is_method_section(reader, path, name) {
                true => (),
                false => reader.problem(&here, unknown_key(reader.table(), path, name)),
            }
            continue;
        };
        match key.status {
            Status::Honoured if key.kind == Kind::Section => recognise_below(reader, value, &here),
            Status::Honoured => {}
            Status::Accepted => reader.warning(&here, "is accepted, but not honoured yet"),
            Status::Renamed(new) => reader.warning(&here, format!("is the old name of {new}; rename it")),
            Status::Ignored(why) => reader.warning(&here, format!("is ignored: {why}")),
            Status::Unsupported(_) if value.is_null() => {}
            Status::Unsupported(remedy) => reader.problem(&here, remedy),
        }
    }
}

/// Sections named after a method of the operator: `create_replica_methods: [pgbackrest]`, `method: restore`.
fn is_method_section(reader: &Reader<'_>, path: &str, name: &str) -> bool {
    match path {
        "postgresql" => reader
            .value("postgresql.create_replica_methods")
            .and_then(Value::as_array)
            .is_some_and(|methods| methods.iter().any(|method| method.as_str() == Some(name))),
        "bootstrap" => reader.value("bootstrap.method").and_then(Value::as_str) == Some(name),
        _ => false,
    }
}

pub(super) fn unknown_key(table: KeyTable, path: &str, name: &str) -> String {
    let near = |names: &mut dyn Iterator<Item = &'static str>| {
        let mut best: Option<(usize, &'static str)> = None;
        for candidate in names {
            let distance = edit_distance(name, candidate);
            if best.is_none_or(|(least, _)| distance < least) {
                best = Some((distance, candidate));
            }
        }
        best.filter(|(distance, candidate)| *distance <= (candidate.len().min(name.len()) / 3).max(1))
            .map(|(_, candidate)| candidate)
    };
    let elsewhere = [(KeyTable(NODE_KEYS), ""), (KeyTable(CLUSTER_KEYS), "bootstrap.dcs.")];
    for (table, prefix) in elsewhere {
        if let Some(key) = table.0.iter().find(|key| key.name() == name && key.status == Status::Honoured) {
            return format!("unknown key here; it belongs at {prefix}{}", key.path);
        }
    }
    if let Some(candidate) = near(&mut table.children(path).map(|key| key.name())) {
        return format!("unknown key; did you mean {candidate}?");
    }
    if path.is_empty()
        && let Some(candidate) = near(&mut KeyTable(CLUSTER_KEYS).children("").map(|key| key.name()))
    {
        return format!("unknown key; did you mean bootstrap.dcs.{candidate}?");
    }
    "unknown key; remove it, or see `howdah config example` for all keys".to_owned()
}

/// Levenshtein's distance, in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(from != *to)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(edit_distance("ttl", "ttl"), 0);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
    }

    #[test]
    fn unknown_keys_get_a_hint() {
        let table = KeyTable(NODE_KEYS);
        assert_eq!(unknown_key(table, "postgresql", "listn"), "unknown key; did you mean listen?");
        assert_eq!(unknown_key(table, "", "tll"), "unknown key; did you mean bootstrap.dcs.ttl?");
        assert_eq!(unknown_key(table, "", "loop_wait"), "unknown key here; it belongs at bootstrap.dcs.loop_wait");
        assert_eq!(
            unknown_key(table, "", "frobnicate"),
            "unknown key; remove it, or see `howdah config example` for all keys"
        );
    }
}
