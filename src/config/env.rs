//! Settings from the environment: `PATRONI_*` as Patroni has them, and `HOWDAH_*`, which win.
//!
//! ```text
//! tree of the file + variables -> tree, before anything is checked
//! ```
//! Every key of the table has a variable: `restapi.listen` is `HOWDAH_RESTAPI_LISTEN`. A few have a shorter one, which is
//! Patroni's. Values are texts; lists, maps and whole sections are YAML. Deliberately absent: reading the process environment on its own account,
//! so that tests can say what is in it.
//!
//! Source: reference section 5, environment variables.

use serde_json::{Map, Value};

use super::keys::{KeyTable, Kind, NODE_KEYS};

/// Suffix of the variable and the key that it sets, where Patroni has one of its own.
const VARIABLES: &[(&str, &str)] = &[
    ("RESTAPI_USERNAME", "restapi.authentication.username"),
    ("RESTAPI_PASSWORD", "restapi.authentication.password"),
    ("CTL_USERNAME", "ctl.authentication.username"),
    ("CTL_PASSWORD", "ctl.authentication.password"),
    ("SUPERUSER_USERNAME", "postgresql.authentication.superuser.username"),
    ("SUPERUSER_PASSWORD", "postgresql.authentication.superuser.password"),
    ("REPLICATION_USERNAME", "postgresql.authentication.replication.username"),
    ("REPLICATION_PASSWORD", "postgresql.authentication.replication.password"),
    ("REWIND_USERNAME", "postgresql.authentication.rewind.username"),
    ("REWIND_PASSWORD", "postgresql.authentication.rewind.password"),
];

/// Variables that are ours but no settings of a node.
const OTHER_VARIABLES: &[&str] = &["CONFIG", "URL", "LOG", "DEV_DIR"];

/// Puts the environment's settings over the file's. Returns warnings.
pub fn overlay(tree: &mut Value, variables: &[(String, String)]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (prefix, own) in [("PATRONI_", false), ("HOWDAH_", true)] {
        for (name, text) in variables {
            let Some(suffix) = name.strip_prefix(prefix) else { continue };
            if own && OTHER_VARIABLES.contains(&suffix) {
                continue;
            }
            match path_of(suffix) {
                Some(path) => set(tree, path, value_of(path, text)),
                None => warnings.push(format!("environment variable {name}: is ignored: howdah has no setting for it")),
            }
        }
    }
    warnings
}

/// The key that a variable sets, by what follows its prefix.
fn path_of(suffix: &str) -> Option<&'static str> {
    let short = VARIABLES.iter().find(|(known, _)| *known == suffix).map(|(_, path)| *path);
    short.or_else(|| NODE_KEYS.iter().map(|key| key.path).find(|path| suffix_of(path) == suffix))
}

fn suffix_of(path: &str) -> String {
    path.to_ascii_uppercase().replace('.', "_")
}

/// The variables that set `path`, the shortest first.
pub fn variables_of(path: &str) -> Vec<String> {
    let short = VARIABLES.iter().filter(|(_, known)| *known == path).map(|(suffix, _)| (*suffix).to_owned());
    let mut suffixes: Vec<String> = short.collect();
    if !suffixes.contains(&suffix_of(path)) {
        suffixes.push(suffix_of(path));
    }
    suffixes.into_iter().map(|suffix| format!("HOWDAH_{suffix}")).collect()
}

/// Texts stay texts, so that a password of digits stays one; lists, maps and sections are YAML.
fn value_of(path: &str, text: &str) -> Value {
    let kind = KeyTable(NODE_KEYS).find(path).map(|key| key.kind);
    match kind {
        Some(Kind::List | Kind::Map | Kind::Section | Kind::Settings) => {
            serde_yaml_ng::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
        }
        Some(Kind::Flag) => match text.to_ascii_lowercase().as_str() {
            "true" | "on" | "yes" | "1" => Value::Bool(true),
            "false" | "off" | "no" | "0" => Value::Bool(false),
            _ => Value::String(text.to_owned()),
        },
        _ => Value::String(text.to_owned()),
    }
}

fn set(tree: &mut Value, path: &str, value: Value) {
    let mut here = tree;
    for part in path.split('.') {
        if !here.is_object() {
            *here = Value::Object(Map::new());
        }
        let Value::Object(fields) = here else { return };
        here = fields.entry(part).or_insert(Value::Null);
    }
    *here = value;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ours_win_over_patronis_and_both_over_the_file() {
        let mut tree = json!({"name": "file", "scope": "s"});
        let variables = [
            ("HOWDAH_NAME", "ours"),
            ("PATRONI_NAME", "theirs"),
            ("PATRONI_SUPERUSER_PASSWORD", "0123"),
            ("HOWDAH_RAFT_MEMBERS", "{a: 'h:1'}"),
            ("PATRONI_ETCD3_HOSTS", "x:2379"),
            ("HOWDAH_CONFIG", "/x.yml"),
            ("HOWDAH_DEV_DIR", "/x"),
            ("HOME", "/root"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let warnings = overlay(&mut tree, &variables);
        assert_eq!(tree["name"], "ours");
        assert_eq!(tree["postgresql"]["authentication"]["superuser"]["password"], "0123");
        assert_eq!(tree["raft"]["members"], json!({"a": "h:1"}));
        assert_eq!(warnings, ["environment variable PATRONI_ETCD3_HOSTS: is ignored: howdah has no setting for it"]);
    }

    #[test]
    fn every_key_has_its_variable() {
        for key in NODE_KEYS {
            for variable in variables_of(key.path) {
                assert_eq!(variable.strip_prefix("HOWDAH_").and_then(path_of), Some(key.path), "{variable}");
            }
        }
        let mut tree = json!({});
        let variables = [("HOWDAH_BOOTSTRAP_DCS", "{ttl: 8}"), ("PATRONI_RESTAPI_ALLOWLIST_INCLUDE_MEMBERS", "on")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(overlay(&mut tree, &variables), [""; 0]);
        assert_eq!(tree["bootstrap"]["dcs"]["ttl"], 8);
        assert_eq!(tree["restapi"]["allowlist_include_members"], true);
    }
}
