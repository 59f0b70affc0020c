//! A node's configuration after all checks: what `check.rs` makes and everything else uses.
//!
//! Deliberately absent: how it is read. A value of these types is valid.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::tls::{ClientTls, ServerTls};
use super::{ClusterSettings, HostPort, ListenAddresses};
use crate::telemetry::redact::Secret;
use crate::types::{ByteSize, ClusterName, Network, NodeName};

/// A node's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file or directory that it came from.
    pub path: PathBuf,
    /// The cluster's name.
    pub scope: ClusterName,
    /// This node's name.
    pub name: NodeName,
    /// The first part of the cluster's keys, with a slash in front and none behind: `/service`.
    pub namespace: String,
    /// The store.
    pub raft: RaftConfig,
    /// The main port.
    pub restapi: RestApiConfig,
    /// Where etcd's clients find a listener of their own; none = on the main port only.
    pub etcd_listen: Option<ListenAddresses>,
    /// Where people find the dashboard on a port of its own; none = on the main port only.
    pub dashboard_listen: Option<ListenAddresses>,
    /// How that listener speaks TLS; none = it does not.
    pub etcd_tls: Option<ServerTls>,
    /// How many bytes the data of etcd's clients may take.
    pub etcd_quota: u64,
    /// The ports that lead clients to PostgreSQL.
    pub router: RouterConfig,
    /// What clients of the main port send along.
    pub ctl: Option<Credentials>,
    /// How they speak TLS; members among each other, too.
    pub ctl_tls: ClientTls,
    /// The local PostgreSQL; none = a witness.
    pub postgresql: Option<PostgresqlConfig>,
    /// How a new cluster begins.
    pub bootstrap: BootstrapConfig,
    /// This node's tags, falsy standard ones left out.
    pub tags: Tags,
    /// What is written to standard error.
    pub log: LogConfig,
    /// The device that resets the machine.
    pub watchdog: WatchdogConfig,
    /// What the operator should know, each a sentence with its key in front. Log them once at start.
    pub warnings: Vec<String>,
}

/// The store.
#[derive(Debug, Clone, PartialEq)]
pub struct RaftConfig {
    /// Where its log is.
    pub data_dir: PathBuf,
    /// Where the other members reach this node.
    pub self_addr: HostPort,
    /// All members by name, this node included. Never empty.
    pub members: BTreeMap<NodeName, HostPort>,
    /// What members prove to each other. None only in a cluster of one.
    pub secret: Option<Secret<String>>,
    /// Whether members may talk without TLS where the main port speaks it.
    pub allow_plaintext: bool,
    /// How often the leader shows that it lives.
    pub heartbeat: Duration,
    /// The shortest wait for the leader.
    pub election_timeout_min: Duration,
    /// The longest wait for the leader.
    pub election_timeout_max: Duration,
    /// How long changes of keys can be read and watched afterwards.
    pub history_time: Duration,
    /// How many of them at most.
    pub history_revisions: u32,
}

/// The main port.
#[derive(Debug, Clone, PartialEq)]
pub struct RestApiConfig {
    /// Where it listens.
    pub listen: ListenAddresses,
    /// Where others reach it.
    pub connect_address: HostPort,
    /// Asked for by requests that change something; none = not asked.
    pub authentication: Option<Credentials>,
    /// Who may send such requests: addresses, networks, host names; empty = all.
    pub allowlist: Vec<String>,
    /// Whether all members may, too.
    pub allowlist_include_members: bool,
    /// How it speaks TLS; none = it does not.
    pub tls: Option<ServerTls>,
    /// Headers of every answer.
    pub http_extra_headers: BTreeMap<String, String>,
    /// Headers of every answer over TLS; they win.
    pub https_extra_headers: BTreeMap<String, String>,
    /// What the `Server` header says.
    pub server_tokens: ServerTokens,
}

/// What the `Server` header says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ServerTokens {
    /// Program and version; so does `minimal`.
    #[default]
    Original,
    /// The program alone.
    ProductOnly,
}

/// The ports that lead clients to PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterConfig {
    /// Leads to whoever may write; none = off.
    pub listen: Option<ListenAddresses>,
    /// Leads to replicas; none = off.
    pub listen_replicas: Option<ListenAddresses>,
    /// How long a new connection waits for somebody to be led to.
    pub hold_timeout: Duration,
    /// How long sessions may go on when the primary hands over.
    pub drain_timeout: Duration,
    /// Replicas that lack more get no new connections; none = no limit.
    pub maximum_lag: Option<ByteSize>,
    /// Whether the primary serves reads while no replica may.
    pub fallback_to_primary: bool,
    /// How many clients may be connected.
    pub max_connections: u32,
    /// Who may connect; empty = all.
    pub allowlist: Vec<Network>,
    /// Whose connections begin with a PROXY header.
    pub proxy_protocol: Vec<Network>,
}

/// A name with a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The name.
    pub username: String,
    /// The password.
    pub password: Secret<String>,
}

/// A PostgreSQL role that howdah uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleConfig {
    /// Its name.
    pub username: String,
    /// Its password; none = pg_hba lets it in without.
    pub password: Option<Secret<String>>,
}

/// The local PostgreSQL.
#[derive(Debug, Clone, PartialEq)]
pub struct PostgresqlConfig {
    /// Where it listens.
    pub listen: ListenAddresses,
    /// Where others reach it.
    pub connect_address: HostPort,
    /// Its data directory, absolute.
    pub data_dir: PathBuf,
    /// Its programs; none = look for them.
    pub bin_dir: Option<PathBuf>,
    /// The user that it runs as when howdah is root.
    pub os_user: Option<String>,
    /// The password file that howdah writes; none = beside the data directory.
    pub pgpass: Option<PathBuf>,
    /// Manages the local server.
    pub superuser: RoleConfig,
    /// What standbys connect as.
    pub replication: RoleConfig,
    /// What pg_rewind connects as; none = the superuser.
    pub rewind: Option<RoleConfig>,
    /// Settings of this server alone.
    pub parameters: BTreeMap<String, String>,
    /// Lines of pg_hba.conf; none = the shared ones.
    pub pg_hba: Option<Vec<String>>,
    /// Lines of pg_ident.conf; none = the shared ones.
    pub pg_ident: Option<Vec<String>>,
    /// `restore_command` and its like, of this server alone.
    pub recovery: BTreeMap<String, String>,
    /// A file to include rather than the `postgresql.conf` that was in the data directory.
    pub custom_conf: Option<PathBuf>,
    /// What howdah's own sessions connect to.
    pub database: String,
    /// Options of pg_basebackup, in order.
    pub basebackup: Vec<ToolOption>,
    /// How a copy is made, in the order in which the ways are tried. Empty = pg_basebackup.
    pub copy_methods: Vec<Method>,
    /// Who is told of what has happened.
    pub callbacks: CallbacksConfig,
    /// Whether to talk to it over its Unix socket.
    pub use_unix_socket: bool,
    /// Rebuild after a failed rewind (the old directory is moved aside).
    pub rebuild_on_rewind_failure: bool,
    /// Rebuild when diverged and rewind is off (the old directory is moved aside).
    pub rebuild_on_diverged_timelines: bool,
}

/// Commands that are told of what has happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallbacksConfig {
    /// Patroni's name of the event, and the words of the command.
    pub commands: BTreeMap<String, Vec<String>>,
    /// Asked before a promotion; anything but a clean end keeps this node from leading. Empty = nobody is asked.
    pub pre_promote: Vec<String>,
    /// Run before PostgreSQL is stopped in order. Empty = nothing.
    pub before_stop: Vec<String>,
    /// One that takes longer is ended.
    pub timeout: Duration,
}

/// A command of the operator that fills a data directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Method {
    /// Its name in the file; `basebackup` is pg_basebackup.
    pub name: String,
    /// Its words.
    pub command: Vec<String>,
    /// Given as `--NAME=VALUE`.
    pub parameters: Vec<(String, String)>,
    /// Whether it is told nothing beside its own words.
    pub no_params: bool,
}

/// How a new cluster begins.
#[derive(Debug, Clone, PartialEq)]
pub struct BootstrapConfig {
    /// The first shared settings as written, to be stored; `{}` when the file gives none.
    pub dcs: Value,
    /// The same, checked.
    pub settings: ClusterSettings,
    /// Options of initdb, in order.
    pub initdb: Vec<ToolOption>,
    /// A database exists: no node creates one.
    pub adopt: bool,
    /// A command that makes the first data directory; none = initdb.
    pub method: Option<RestoreMethod>,
    /// Run on the new primary once it accepts connections. Empty = nothing.
    pub post_bootstrap: Vec<String>,
    /// Lines of pg_hba.conf when nothing else gives any.
    pub pg_hba: Option<Vec<String>>,
}

/// How a new cluster begins from a backup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestoreMethod {
    /// The command.
    pub method: Method,
    /// Whether the recovery settings that it leaves are kept.
    pub keep_recovery: bool,
    /// Recovery settings to begin with; empty = the backup is started as it is.
    pub recovery: BTreeMap<String, String>,
}

/// One option of initdb or pg_basebackup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolOption {
    /// Without dashes.
    pub name: String,
    /// Its value; none = the bare word.
    pub value: Option<String>,
}

/// A node's tags.
///
/// Source: reference section 3.13: the boolean wins over the priority when both are given.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tags {
    /// All tags as published.
    pub all: BTreeMap<String, Value>,
    /// Never promoted: `nofailover`, or `failover_priority` of zero.
    pub nofailover: bool,
    /// Higher wins between equals; 1 when not given.
    pub failover_priority: u32,
    /// Never synchronous: `nosync`, or `sync_priority` of zero.
    pub nosync: bool,
    /// Higher wins; 1 when not given.
    pub sync_priority: u32,
    /// `/replica` answers 503.
    pub noloadbalance: bool,
    /// A preferred source of base backups.
    pub clonefrom: bool,
    /// Does not stream at all.
    pub nostream: bool,
    /// Follows this member instead of the primary.
    pub replicatefrom: Option<NodeName>,
}

/// What is written to standard error.
#[derive(Debug, Clone, PartialEq)]
pub struct LogConfig {
    /// `debug`, `info`, `warn` or `error`.
    pub level: &'static str,
    /// Lines of JSON instead of text.
    pub json: bool,
    /// Added to every JSON line.
    pub static_fields: BTreeMap<String, String>,
}

/// The device that resets the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchdogConfig {
    /// Whether to use it.
    pub mode: WatchdogMode,
    /// The device.
    pub device: PathBuf,
    /// The device is any file, for tests.
    pub testing: bool,
    /// It fires this much before the permit ends.
    pub safety_margin: Duration,
}

/// Whether to use a watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchdogMode {
    /// No.
    Off,
    /// If there is one.
    Automatic,
    /// Yes, and no promotion without it.
    Required,
}

impl Config {
    /// `http` or `https`: how the main port is spoken to.
    pub fn scheme(&self) -> &'static str {
        if self.restapi.tls.is_some() { "https" } else { "http" }
    }

    /// Whether this node runs no PostgreSQL.
    pub fn is_witness(&self) -> bool {
        self.postgresql.is_none()
    }
}
