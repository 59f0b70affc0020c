//! One key for a person: what it means, what it holds, what it is when the file says nothing, which variable sets it.
//!
//! Deliberately absent: the value that a node has.

use super::env::variables_of;
use super::keys::{CLUSTER_KEYS, Given, Key, KeyTable, Kind, NODE_KEYS, Status};

/// The explanation of `path`, a key of the node's file or a shared setting; a hint if there is none of that name.
///
/// # Errors
/// A sentence with the nearest name.
pub fn explain(path: &str) -> Result<String, String> {
    let shared = path.strip_prefix("bootstrap.dcs.");
    if let Some(key) = KeyTable(NODE_KEYS).find(path).filter(|_| shared.is_none()) {
        return Ok(text(key, NODE_KEYS, None));
    }
    match KeyTable(CLUSTER_KEYS).find(shared.unwrap_or(path)) {
        Some(key) => Ok(text(key, CLUSTER_KEYS, Some("howdah edit-config"))),
        None => {
            let table = KeyTable(if shared.is_some() { CLUSTER_KEYS } else { NODE_KEYS });
            let here = shared.unwrap_or(path);
            let (parent, name) = here.rsplit_once('.').unwrap_or(("", here));
            Err(format!("{path}: {}", super::raw::unknown_key(table, parent, name)))
        }
    }
}

fn text(key: &Key, table: &'static [Key], changed_by: Option<&str>) -> String {
    let mut lines = vec![key.path.to_owned()];
    let mut add = |title: &str, what: &str| lines.push(format!("  {title:<9} {what}"));
    if !key.doc.is_empty() {
        add("meaning", key.doc);
    }
    add("holds", &holds(key.kind));
    match key.given {
        Given::Default(value) => add("default", value),
        Given::Example(value) if !value.is_empty() => add("example", value),
        Given::Required(value) => add("required", &format!("for example {value}")),
        Given::Example(_) => (),
    }
    match key.status {
        Status::Honoured => (),
        Status::Accepted => add("status", "known from Patroni, and without effect here so far"),
        Status::Ignored(why) => add("status", &format!("without effect here: {why}")),
        Status::Renamed(name) => add("status", &format!("honoured; better written as {name}")),
        Status::Unsupported(remedy) => add("status", &format!("refused: {remedy}")),
    }
    match changed_by {
        Some(command) => add("change", &format!("{command}; all members share it")),
        None => add("variable", &variables_of(key.path).join(", ")),
    }
    let below: Vec<&str> = KeyTable(table).children(key.path).map(Key::name).collect();
    if !below.is_empty() {
        add("keys", &below.join(", "));
    }
    lines.join("\n")
}

fn holds(kind: Kind) -> String {
    match kind {
        Kind::Section => "further keys".to_owned(),
        Kind::Settings => "the shared settings that a new cluster begins with".to_owned(),
        Kind::Text => "text".to_owned(),
        Kind::Secret => "a secret text".to_owned(),
        Kind::Word(words) => format!("one of {}", words.join(", ")),
        Kind::Flag => "true or false".to_owned(),
        Kind::Integer => "a whole number".to_owned(),
        Kind::Duration => "seconds, or a number with a unit: 500ms, 10s, 30min, 1h".to_owned(),
        Kind::Size => "bytes, or a number with a unit: 16MB".to_owned(),
        Kind::Address => "HOST:PORT".to_owned(),
        Kind::Path => "a file or directory".to_owned(),
        Kind::List => "a list".to_owned(),
        Kind::Map => "a map with keys of your choice".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_both_tables_and_of_none() {
        let listen = explain("restapi.listen").expect("known");
        assert!(listen.contains("default   0.0.0.0:8008") && listen.contains("HOWDAH_RESTAPI_LISTEN"), "{listen}");
        let ttl = explain("ttl").expect("known");
        assert!(ttl.starts_with("ttl\n  meaning") && ttl.contains("edit-config"), "{ttl}");
        assert_eq!(explain("bootstrap.dcs.ttl"), Ok(ttl));
        for (typed, meant) in [("tll", "bootstrap.dcs.ttl"), ("bootstrap.dcs.tll", "ttl")] {
            assert_eq!(explain(typed), Err(format!("{typed}: unknown key; did you mean {meant}?")));
        }
        assert_eq!(explain("restapi.listn"), Err("restapi.listn: unknown key; did you mean listen?".to_owned()));
    }
}
