//! A node's file that is read again while the node runs: what of it counts at once, and what with the next start.
//!
//! Deliberately absent: putting it into force.

use super::node::{Config, PostgresqlConfig};

/// Sections and keys that differ between the file of the start and `new` and count only when the node is started again.
pub fn needs_start(old: &Config, new: &Config) -> Vec<&'static str> {
    let rest = (&old.restapi, &new.restapi);
    let mut differ = vec![
        ("scope", old.scope != new.scope),
        ("name", old.name != new.name),
        ("namespace", old.namespace != new.namespace),
        ("raft", old.raft != new.raft),
        ("restapi.listen", rest.0.listen != rest.1.listen),
        ("restapi.connect_address", rest.0.connect_address != rest.1.connect_address),
        ("restapi.certfile", rest.0.tls.is_some() != rest.1.tls.is_some()),
        ("etcd.cert_file", old.etcd_tls.is_some() != new.etcd_tls.is_some()),
        ("etcd.listen", old.etcd_listen != new.etcd_listen),
        ("dashboard.listen", old.dashboard_listen != new.dashboard_listen),
        ("etcd.quota", old.etcd_quota != new.etcd_quota),
        ("router", old.router != new.router),
        ("log", old.log != new.log),
        ("watchdog", old.watchdog != new.watchdog),
    ];
    match (&old.postgresql, &new.postgresql) {
        (None, None) => (),
        (Some(old), Some(new)) => differ.extend(postgresql(old, new)),
        (Some(_), None) | (None, Some(_)) => differ.push(("postgresql", true)),
    }
    differ.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
}

/// Parameters and access lists are left out: they count at once.
fn postgresql(old: &PostgresqlConfig, new: &PostgresqlConfig) -> Vec<(&'static str, bool)> {
    vec![
        ("postgresql.listen", old.listen != new.listen),
        ("postgresql.connect_address", old.connect_address != new.connect_address),
        ("postgresql.data_dir", old.data_dir != new.data_dir),
        ("postgresql.bin_dir", old.bin_dir != new.bin_dir),
        ("postgresql.os_user", old.os_user != new.os_user),
        ("postgresql.pgpass", old.pgpass != new.pgpass),
        ("postgresql.authentication", {
            (&old.superuser, &old.replication, &old.rewind) != (&new.superuser, &new.replication, &new.rewind)
        }),
        ("postgresql.use_unix_socket", old.use_unix_socket != new.use_unix_socket),
        ("postgresql.custom_conf", old.custom_conf != new.custom_conf),
        ("postgresql.database", old.database != new.database),
        ("postgresql.basebackup", old.basebackup != new.basebackup),
        ("postgresql.create_replica_methods", old.copy_methods != new.copy_methods),
    ]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::config::check::check;

    #[test]
    fn what_is_different_and_counts_later_is_named() {
        let mut tree = json!({
            "scope": "s", "name": "n1",
            "restapi": {"listen": "127.0.0.1:8008"},
            "postgresql": {"listen": "127.0.0.1:5432", "connect_address": "127.0.0.1:5432", "data_dir": "/d/pg"},
        });
        let old = check(&tree, Path::new("x.yml")).expect("valid");
        tree["postgresql"]["parameters"] = json!({"work_mem": "8MB"});
        tree["tags"] = json!({"zone": "b"});
        let quick = check(&tree, Path::new("x.yml")).expect("valid");
        assert_eq!(needs_start(&old, &quick), [""; 0]);
        tree["restapi"]["listen"] = json!("127.0.0.1:8009");
        tree["postgresql"]["data_dir"] = json!("/d/other");
        tree["router"] = json!({"listen": "127.0.0.1:5000"});
        let slow = check(&tree, Path::new("x.yml")).expect("valid");
        let named = needs_start(&old, &slow);
        assert!(named.contains(&"restapi.listen") && named.contains(&"postgresql.data_dir"), "{named:?}");
        assert!(named.contains(&"router"), "{named:?}");
        assert!(!named.contains(&"log"), "{named:?}");
    }
}
