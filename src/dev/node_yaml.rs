//! Writes the configuration of each node of a development cluster, with passwords made once.
//!
//! layout + secrets -> DIR/nX.yml, DIR/secret, DIR/pgpass, all 0600. What is here is what a person
//! would write for three hosts, apart from the loopback addresses.

use std::fmt::Write as _;
use std::fs;

use anyhow::Context;
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::layout::{Layout, NodePaths, write_file};
use crate::telemetry::redact::Secret;

/// Longest path of a Unix socket that every platform accepts.
const SOCKET_PATH_BYTES_MAX: usize = 100;

/// The passwords of a development cluster; `DIR/passwords.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Passwords {
    /// Of the superuser `postgres`.
    pub superuser: Secret<String>,
    /// Of the user `replicator`.
    pub replication: Secret<String>,
    /// Of the user `rewinder`.
    pub rewind: Secret<String>,
}

/// What differs between clusters; the rest is fixed.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Seconds: `ttl`, `loop_wait`, `retry_timeout`.
    pub timing: [f64; 3],
    /// Settings of PostgreSQL for all nodes.
    pub parameters: Map<String, Value>,
    /// `synchronous_mode`; a node that is alone has nobody to wait for.
    pub synchronous_mode: &'static str,
}

impl Default for Settings {
    /// The product's own defaults, and no acknowledged commit is lost.
    fn default() -> Self {
        Self { timing: [5.0, 1.0, 2.0], parameters: Map::new(), synchronous_mode: "quorum" }
    }
}

/// Writes every file that the nodes are started from, and returns the passwords in them.
/// Passwords and the members' secret are made on the first call and kept from then on.
///
/// # Errors
/// When the directory cannot be written or holds files that cannot be read.
pub fn write_all(layout: &Layout, settings: &Settings) -> anyhow::Result<Passwords> {
    let passwords = passwords(layout)?;
    let secret = layout.dir.join("secret");
    if !secret.exists() {
        write_file(&secret, &format!("{}\n", random_password()), 0o600)?;
    }
    for node in layout.nodes() {
        let config = node_config(layout, &node, settings, &passwords);
        let yaml = render(&config).with_context(|| format!("render {}", node.yaml.display()))?;
        write_file(&node.yaml, &yaml, 0o600)?;
    }
    let mut pgpass = String::new();
    for node in &layout.file.nodes {
        let routed = node.router.iter().flat_map(|router| [router.primary, router.replicas]);
        let linked = node.links.map(|links| links.postgres);
        for port in std::iter::once(node.postgres).chain(linked).chain(routed) {
            let _ = writeln!(pgpass, "{}:{port}:*:postgres:{}", node.address(), passwords.superuser.expose());
        }
    }
    write_file(&layout.pgpass(), &pgpass, 0o600)?;
    Ok(passwords)
}

/// The superuser's password of an existing cluster.
///
/// # Errors
/// When its files cannot be read.
pub fn superuser_password(layout: &Layout) -> anyhow::Result<String> {
    Ok(passwords(layout)?.superuser.expose().clone())
}

/// The superuser's password of a cluster that is there already; none when it cannot be read here. Writes nothing.
pub fn known_superuser_password(layout: &Layout) -> Option<Secret<String>> {
    let text = fs::read_to_string(layout.dir.join("passwords.json")).ok()?;
    serde_json::from_str::<Passwords>(&text).ok().map(|passwords| passwords.superuser)
}

/// The passwords of an existing cluster, or new ones that are stored first.
fn passwords(layout: &Layout) -> anyhow::Result<Passwords> {
    let path = layout.dir.join("passwords.json");
    if path.exists() {
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        return serde_json::from_str(&text).with_context(|| format!("read {}", path.display()));
    }
    let fresh = Passwords {
        superuser: Secret::new(random_password()),
        replication: Secret::new(random_password()),
        rewind: Secret::new(random_password()),
    };
    write_file(&path, &serde_json::to_string(&fresh).context("render passwords.json")?, 0o600)?;
    Ok(fresh)
}

/// 24 letters and digits: about 142 bits, and no character that any file format would have to quote.
fn random_password() -> String {
    let mut rng = rand::rng();
    (0..24).map(|_| char::from(rng.sample(rand::distr::Alphanumeric))).collect()
}

/// The sections in the order in which a person would write them.
const SECTIONS: [&str; 8] = ["scope", "name", "restapi", "raft", "bootstrap", "postgresql", "router", "log"];

fn render(config: &Value) -> anyhow::Result<String> {
    let mut text = String::new();
    for section in SECTIONS.into_iter().filter(|section| !config[section].is_null()) {
        text += &serde_yaml_ng::to_string(&json!({section: config[section]}))?;
    }
    Ok(text)
}

/// 5 rather than 5.0, as a person would write it.
fn seconds(value: f64) -> Value {
    if value.fract() == 0.0 { json!(value as i64) } else { json!(value) }
}

fn node_config(layout: &Layout, node: &NodePaths, settings: &Settings, passwords: &Passwords) -> Value {
    let members: Map<String, Value> = layout
        .nodes()
        .into_iter()
        .map(|member| (member.name.clone(), json!(member.rest_for_others().to_string())))
        .collect();
    let [ttl, loop_wait, retry_timeout] = settings.timing.map(seconds);
    let mut postgresql = json!({
        "listen": node.postgres.to_string(),
        "connect_address": node.postgres_for_others().to_string(),
        "data_dir": node.data,
        "authentication": {
            "superuser": {"username": "postgres", "password": passwords.superuser},
            "replication": {"username": "replicator", "password": passwords.replication},
            "rewind": {"username": "rewinder", "password": passwords.rewind},
        },
        "parameters": {"unix_socket_directories": socket_directory(node)},
    });
    if let Some(user) = &layout.file.os_user {
        postgresql["os_user"] = json!(user);
    }
    let router = node.router.map(|router| {
        json!({
            "listen": format!("{}:{}", node.rest.ip(), router.primary),
            "listen_replicas": format!("{}:{}", node.rest.ip(), router.replicas),
        })
    });
    json!({
        "scope": layout.file.scope,
        "name": node.name,
        "restapi": {"listen": node.rest.to_string(), "connect_address": node.rest_for_others().to_string()},
        "raft": {"data_dir": node.raft, "secret_file": layout.dir.join("secret"), "members": members},
        "bootstrap": {
            "dcs": {
                "ttl": ttl,
                "loop_wait": loop_wait,
                "retry_timeout": retry_timeout,
                "synchronous_mode": if layout.file.nodes.len() < 2 { "off" } else { settings.synchronous_mode },
                "postgresql": {"use_pg_rewind": true, "parameters": settings.parameters},
            },
        },
        "postgresql": postgresql,
        "router": router,
        "log": {"level": "INFO"},
    })
}

/// The node's own directory, so that nothing outside the cluster's directory is touched; none when the
/// path would be longer than a socket's name may be.
fn socket_directory(node: &NodePaths) -> String {
    let dir = node.dir.display().to_string();
    let longest = format!("{dir}/.s.PGSQL.{}.lock", node.postgres.port());
    if longest.len() <= SOCKET_PATH_BYTES_MAX { dir } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::layout::{ClusterFile, NodePorts};
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    fn layout(dir: &Path, os_user: Option<&str>) -> Layout {
        let nodes = (1..=3)
            .map(|i| NodePorts {
                name: format!("n{i}"),
                rest: 8007 + i,
                postgres: 5431 + i,
                router: None,
                links: None,
                host: None,
            })
            .collect();
        let os_user = os_user.map(str::to_owned);
        Layout { dir: dir.to_owned(), file: ClusterFile { format: 1, scope: "demo".to_owned(), os_user, nodes } }
    }

    #[test]
    fn each_node_gets_its_own_addresses_and_all_members() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let layout = layout(dir.path(), Some("postgres"));
        write_all(&layout, &Settings::default()).expect("write");
        let text = fs::read_to_string(dir.path().join("n2.yml")).expect("read");
        let yaml: Value = serde_yaml_ng::from_str(&text).expect("valid YAML");
        assert_eq!(yaml["name"], "n2");
        assert_eq!(yaml["restapi"]["listen"], "127.0.0.1:8009");
        assert_eq!(yaml["postgresql"]["connect_address"], "127.0.0.1:5433");
        assert_eq!(yaml["postgresql"]["os_user"], "postgres");
        assert_eq!(yaml["raft"]["members"]["n3"], "127.0.0.1:8010");
        assert_eq!(yaml["bootstrap"]["dcs"]["ttl"], 5);
        assert_eq!(yaml["bootstrap"]["dcs"]["synchronous_mode"], "quorum");
        assert!(text.starts_with("scope: demo\nname: n2\n"), "{text}");
        assert_eq!(seconds(0.5), json!(0.5));
        assert_eq!(yaml["bootstrap"]["dcs"]["postgresql"]["use_pg_rewind"], true);
    }

    #[test]
    fn passwords_are_made_once_and_are_for_the_owner_only() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let layout = layout(dir.path(), None);
        let first = write_all(&layout, &Settings::default()).expect("write");
        let secret = fs::read_to_string(dir.path().join("secret")).expect("read");
        let second = write_all(&layout, &Settings::default()).expect("write again");
        assert_eq!(first.superuser.expose(), second.superuser.expose());
        assert_eq!(secret, fs::read_to_string(dir.path().join("secret")).expect("read"));
        assert_ne!(first.superuser.expose(), first.replication.expose());
        assert!(first.superuser.expose().len() >= 20);
        for file in ["secret", "passwords.json", "pgpass", "n1.yml", "n2.yml", "n3.yml"] {
            let mode = fs::metadata(dir.path().join(file)).expect(file).permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{file}");
        }
    }

    #[test]
    fn a_path_too_long_for_a_socket_gives_none() {
        let short = layout(Path::new("/d"), None).node("n1").expect("n1");
        assert_eq!(socket_directory(&short), "/d/n1");
        let long = layout(Path::new(&format!("/{}", "d".repeat(100))), None).node("n1").expect("n1");
        assert_eq!(socket_directory(&long), "");
    }

    #[test]
    fn what_is_written_is_a_valid_configuration_without_a_warning() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let layout = layout(dir.path(), None);
        write_all(&layout, &Settings::default()).expect("write");
        for node in layout.nodes() {
            let config = crate::config::load(&node.yaml).expect("valid");
            assert_eq!(config.name.as_str(), node.name);
            assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        }
    }
}
