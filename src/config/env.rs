//! Settings from the environment: `PATRONI_*` as Patroni has them, and `HOWDAH_*`, which win.
//!
//! ```text
//! tree of the file + variables -> tree, before anything is checked
//! ```
//! Values are texts; lists and maps are YAML. Deliberately absent: reading the process environment on its own account,
//! so that tests can say what is in it.
//!
//! Source: reference section 5, environment variables.

use serde_json::{Map, Value};

/// Suffix of the variable and the key that it sets.
const VARIABLES: &[(&str, &str)] = &[
    ("SCOPE", "scope"),
    ("NAME", "name"),
    ("NAMESPACE", "namespace"),
    ("LOG_LEVEL", "log.level"),
    ("LOG_TYPE", "log.type"),
    ("RESTAPI_LISTEN", "restapi.listen"),
    ("RESTAPI_CONNECT_ADDRESS", "restapi.connect_address"),
    ("RESTAPI_USERNAME", "restapi.authentication.username"),
    ("RESTAPI_PASSWORD", "restapi.authentication.password"),
    ("RESTAPI_ALLOWLIST", "restapi.allowlist"),
    ("RESTAPI_ALLOWLIST_INCLUDE_MEMBERS", "restapi.allowlist_include_members"),
    ("CTL_USERNAME", "ctl.authentication.username"),
    ("CTL_PASSWORD", "ctl.authentication.password"),
    ("POSTGRESQL_LISTEN", "postgresql.listen"),
    ("POSTGRESQL_CONNECT_ADDRESS", "postgresql.connect_address"),
    ("POSTGRESQL_DATA_DIR", "postgresql.data_dir"),
    ("POSTGRESQL_BIN_DIR", "postgresql.bin_dir"),
    ("POSTGRESQL_PGPASS", "postgresql.pgpass"),
    ("SUPERUSER_USERNAME", "postgresql.authentication.superuser.username"),
    ("SUPERUSER_PASSWORD", "postgresql.authentication.superuser.password"),
    ("REPLICATION_USERNAME", "postgresql.authentication.replication.username"),
    ("REPLICATION_PASSWORD", "postgresql.authentication.replication.password"),
    ("REWIND_USERNAME", "postgresql.authentication.rewind.username"),
    ("REWIND_PASSWORD", "postgresql.authentication.rewind.password"),
];

/// Those that only we have.
const OWN_VARIABLES: &[(&str, &str)] = &[
    ("RAFT_SECRET", "raft.secret"),
    ("RAFT_SECRET_FILE", "raft.secret_file"),
    ("RAFT_DATA_DIR", "raft.data_dir"),
    ("RAFT_SELF_ADDR", "raft.self_addr"),
    ("RAFT_MEMBERS", "raft.members"),
    ("POSTGRESQL_OS_USER", "postgresql.os_user"),
];

/// Variables that are ours but no settings of a node.
const OTHER_VARIABLES: &[&str] = &["CONFIG", "URL", "LOG"];

/// Puts the environment's settings over the file's. Returns warnings.
pub fn overlay(tree: &mut Value, variables: &[(String, String)]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (prefix, own) in [("PATRONI_", false), ("HOWDAH_", true)] {
        for (name, text) in variables {
            let Some(suffix) = name.strip_prefix(prefix) else { continue };
            if own && OTHER_VARIABLES.contains(&suffix) {
                continue;
            }
            let mut known = VARIABLES.iter().chain(if own { OWN_VARIABLES } else { &[] });
            match known.find(|(known, _)| *known == suffix) {
                Some((_, path)) => set(tree, path, value_of(path, text)),
                None => warnings.push(format!("environment variable {name}: is ignored: howdah has no setting for it")),
            }
        }
    }
    warnings
}

/// Texts stay texts, so that a password of digits stays one; lists and maps are YAML.
fn value_of(path: &str, text: &str) -> Value {
    if matches!(path, "raft.members" | "restapi.allowlist") {
        return serde_yaml_ng::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
    }
    Value::String(text.to_owned())
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
            ("HOME", "/root"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let warnings = overlay(&mut tree, &variables);
        assert_eq!(tree["name"], "ours");
        assert_eq!(tree["postgresql"]["authentication"]["superuser"]["password"], "0123");
        assert_eq!(tree["raft"]["members"], json!({"a": "h:1"}));
        assert_eq!(warnings, ["environment variable PATRONI_ETCD3_HOSTS: is ignored: howdah has no setting for it"]);
    }
}
