//! Where everything of a development cluster lies: `cluster.json`, and the paths of each node.
//!
//! ```text
//! DIR/cluster.json   names, ports, operating system user      DIR/pgpass   passwords for psql (0600)
//! DIR/n1.yml         the node's configuration (0600)          DIR/secret   shared by the members (0600)
//! DIR/n1/howdah.log  agent.pid  raft/  data/                  DIR/dev.sock to the running `howdah dev`
//! ```
//! Deliberately absent: anything about what runs. That is asked of the operating system (`processes`).

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// What must stay the same from one start to the next; `DIR/cluster.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFile {
    /// The version of this file's format: 1.
    pub format: u32,
    /// The cluster's name.
    pub scope: String,
    /// The user who runs PostgreSQL when howdah is run by root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_user: Option<String>,
    /// The nodes, in order.
    pub nodes: Vec<NodePorts>,
}

/// A node's name and its ports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePorts {
    /// `n1`, `n2`, ...
    pub name: String,
    /// The main port: REST, Raft, dashboard.
    pub rest: u16,
    /// PostgreSQL's port.
    pub postgres: u16,
    /// The router's ports; none in a cluster that was made before there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<RouterPorts>,
    /// Ports through which the other nodes reach this one; none where they do it directly, and cannot be cut off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub links: Option<LinkPorts>,
    /// Its address; none for loopback, where all nodes of a development cluster are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Ipv4Addr>,
}

impl NodePorts {
    /// Where its ports are.
    pub fn address(&self) -> Ipv4Addr {
        self.host.unwrap_or(Ipv4Addr::LOCALHOST)
    }
}

/// The ports of a node's links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkPorts {
    /// To the main port.
    pub rest: u16,
    /// To PostgreSQL.
    pub postgres: u16,
}

/// The two ports of a node's router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterPorts {
    /// Leads to the primary.
    pub primary: u16,
    /// Leads to replicas.
    pub replicas: u16,
}

/// A development cluster's directory and its lasting facts.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The directory, absolute.
    pub dir: PathBuf,
    /// The content of `cluster.json`.
    pub file: ClusterFile,
}

impl Layout {
    /// Reads `DIR/cluster.json`; none when it does not exist.
    ///
    /// # Errors
    /// When the file is there but cannot be understood: the answer is never to start over in silence.
    pub fn load(dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = dir.join("cluster.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let file: ClusterFile = serde_json::from_str(&text)
            .with_context(|| format!("read {}: not a cluster of this program (try --fresh)", path.display()))?;
        if file.format != 1 {
            bail!("read {}: format {} is unknown to this version (try --fresh)", path.display(), file.format);
        }
        Ok(Some(Self { dir: dir.to_owned(), file }))
    }

    /// Writes `DIR/cluster.json`.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn save(&self) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(&self.file).context("render cluster.json")?;
        write_file(&self.dir.join("cluster.json"), &text, 0o644)
    }

    /// The nodes, in order.
    pub fn nodes(&self) -> Vec<NodePaths> {
        self.file.nodes.iter().map(|ports| NodePaths::new(&self.dir, ports)).collect()
    }

    /// One node by its name.
    ///
    /// # Errors
    /// When there is no such node; the message lists those that exist.
    pub fn node(&self, name: &str) -> anyhow::Result<NodePaths> {
        match self.file.nodes.iter().find(|node| node.name == name) {
            Some(ports) => Ok(NodePaths::new(&self.dir, ports)),
            None => {
                let known: Vec<&str> = self.file.nodes.iter().map(|node| node.name.as_str()).collect();
                bail!("find node {name}: this cluster has {}", known.join(", "))
            }
        }
    }

    /// The socket on which the running `howdah dev` takes requests.
    pub fn control_socket(&self) -> PathBuf {
        self.dir.join("dev.sock")
    }

    /// The socket on which the links between the nodes take requests.
    pub fn links_socket(&self) -> PathBuf {
        self.dir.join("links.sock")
    }

    /// Process id and start time of the links.
    pub fn links_pid(&self) -> PathBuf {
        self.dir.join("links.pid")
    }

    /// The password file for psql.
    pub fn pgpass(&self) -> PathBuf {
        self.dir.join("pgpass")
    }

    /// A connection string through the routers of all nodes, one after the other: each leads to whoever may write. None
    /// without routers. It carries no password.
    pub fn router_uri(&self) -> Option<String> {
        let routers = self.file.nodes.iter().filter_map(|node| Some((node.address(), node.router?.primary)));
        let hosts: Vec<String> = routers.map(|(host, port)| format!("{host}:{port}")).collect();
        (!hosts.is_empty()).then(|| format!("postgresql://postgres@{}/postgres", hosts.join(",")))
    }

    /// A connection string that finds whichever node may write. It carries no password.
    pub fn write_uri(&self) -> String {
        let nodes = self.file.nodes.iter();
        let hosts: Vec<String> = nodes.map(|node| format!("{}:{}", node.address(), node.postgres)).collect();
        format!("postgresql://postgres@{}/postgres?target_session_attrs=read-write", hosts.join(","))
    }
}

/// Paths and addresses of one node.
#[derive(Debug, Clone)]
pub struct NodePaths {
    /// The node's name.
    pub name: String,
    /// `DIR/NODE`.
    pub dir: PathBuf,
    /// The configuration that its agent is started with.
    pub yaml: PathBuf,
    /// What the agent prints.
    pub log: PathBuf,
    /// Process id and start time of the agent, written by who started it.
    pub agent_pid: PathBuf,
    /// The Raft store; also the place of the guardian's socket and log.
    pub raft: PathBuf,
    /// PostgreSQL's data directory.
    pub data: PathBuf,
    /// The main port.
    pub rest: SocketAddr,
    /// PostgreSQL's address.
    pub postgres: SocketAddr,
    /// The router's ports, if it has any.
    pub router: Option<RouterPorts>,
    /// The ports of its links, if the nodes reach each other through links.
    pub links: Option<LinkPorts>,
}

impl NodePaths {
    fn new(cluster_dir: &Path, ports: &NodePorts) -> Self {
        let dir = cluster_dir.join(&ports.name);
        Self {
            name: ports.name.clone(),
            yaml: cluster_dir.join(format!("{}.yml", ports.name)),
            log: dir.join("howdah.log"),
            agent_pid: dir.join("agent.pid"),
            raft: dir.join("raft"),
            data: dir.join("data"),
            rest: SocketAddr::from((ports.address(), ports.rest)),
            postgres: SocketAddr::from((ports.address(), ports.postgres)),
            router: ports.router,
            links: ports.links,
            dir,
        }
    }

    /// Where the other nodes reach its main port.
    pub fn rest_for_others(&self) -> SocketAddr {
        self.links.map_or(self.rest, |links| SocketAddr::from((Ipv4Addr::LOCALHOST, links.rest)))
    }

    /// Where the other nodes reach its PostgreSQL.
    pub fn postgres_for_others(&self) -> SocketAddr {
        self.links.map_or(self.postgres, |links| SocketAddr::from((Ipv4Addr::LOCALHOST, links.postgres)))
    }

    /// The guardian's socket, which also names it in the process table.
    pub fn guardian_socket(&self) -> PathBuf {
        self.raft.join("guardian.sock")
    }

    /// The guardian's own log.
    pub fn guardian_log(&self) -> PathBuf {
        self.raft.join("guardian.log")
    }
}

/// Writes a whole file with exactly this mode, replacing an older one in one step.
///
/// # Errors
/// When the directory cannot be written; the message names the file.
pub fn write_file(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let draft = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        // An older draft may carry a wider mode, which opening would keep.
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn sample(dir: &Path) -> Layout {
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
        let file = ClusterFile { format: 1, scope: "demo".to_owned(), os_user: Some("postgres".to_owned()), nodes };
        Layout { dir: dir.to_owned(), file }
    }

    #[test]
    fn what_was_saved_is_loaded_again() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert!(Layout::load(dir.path()).expect("an empty directory is fine").is_none());
        let layout = sample(dir.path());
        layout.save().expect("save");
        let again = Layout::load(dir.path()).expect("load").expect("there is one");
        assert_eq!(again.file, layout.file);
    }

    #[test]
    fn a_broken_file_is_an_error_and_not_a_fresh_start() {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::write(dir.path().join("cluster.json"), "{").expect("write");
        let error = Layout::load(dir.path()).expect_err("broken");
        assert!(format!("{error:#}").contains("--fresh"), "{error:#}");
        fs::write(dir.path().join("cluster.json"), r#"{"format":2,"scope":"x","nodes":[]}"#).expect("write");
        assert!(Layout::load(dir.path()).is_err());
    }

    #[test]
    fn the_connection_string_names_every_node_and_no_password() {
        let uri = sample(Path::new("/d")).write_uri();
        assert_eq!(
            uri,
            "postgresql://postgres@127.0.0.1:5432,127.0.0.1:5433,127.0.0.1:5434/postgres?target_session_attrs=read-write"
        );
    }

    #[test]
    fn an_unknown_node_is_refused_with_those_that_exist() {
        let error = sample(Path::new("/d")).node("n9").expect_err("n9").to_string();
        assert!(error.contains("n1, n2, n3"), "{error}");
    }

    #[test]
    fn a_secret_file_keeps_its_mode_even_over_an_open_draft() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("secret");
        fs::write(path.with_extension("new"), "old draft").expect("write");
        write_file(&path, "s3cret", 0o600).expect("write");
        let mode = fs::metadata(&path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert_eq!(fs::read_to_string(&path).expect("read"), "s3cret");
    }
}
