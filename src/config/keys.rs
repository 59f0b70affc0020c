//! Every configuration key, once: its kind, what we do with it, its default, its documentation.
//!
//! ```text
//! this table -> raw.rs (is the key known?) | reader.rs (its default) | example.rs (config/full.yml)
//! ```
//! A default that is written here is the default that is used: nothing else holds one. Deliberately absent: the rules
//! between keys (`check.rs`, `cluster_settings.rs`).
//!
//! Source: reference section 5, the configuration tree of Patroni 4.1.

/// What a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Further keys of this table.
    Section,
    /// The shared settings, which have a table of their own.
    Settings,
    /// Free text.
    Text,
    /// A secret text.
    Secret,
    /// One of a few words.
    Word(&'static [&'static str]),
    /// true or false.
    Flag,
    /// A whole number, zero or more.
    Integer,
    /// Seconds, with fractions, or a number with a unit: 500ms, 10s, 30min, 1h.
    Duration,
    /// Bytes, or a number with a unit: 16MB.
    Size,
    /// HOST:PORT.
    Address,
    /// A file or directory.
    Path,
    /// A list.
    List,
    /// A map with keys of the operator's choice.
    Map,
}

/// What we do with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It does what it says.
    Honoured,
    /// Known from Patroni and without effect here, so far. Reported as a warning.
    Accepted,
    /// Known and without effect for good; says why. Reported as a warning, with all that is below it.
    Ignored(&'static str),
    /// Honoured, and better written under this newer name. Reported as a warning.
    Renamed(&'static str),
    /// Known, and doing without it would be dangerous; says what to do. An error.
    Unsupported(&'static str),
}

/// What a key has when the file says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// This value, as YAML.
    Default(&'static str),
    /// Nothing; this is what a value looks like.
    Example(&'static str),
    /// Nothing, and the file must say something like this.
    Required(&'static str),
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Where it stands, dots between the levels.
    pub path: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// What we do with it.
    pub status: Status,
    /// Its default or an example.
    pub given: Given,
    /// What it means, for people; lines are broken by the writer of the example.
    pub doc: &'static str,
}

/// A table of keys, with lookups.
#[derive(Debug, Clone, Copy)]
pub struct KeyTable(pub &'static [Key]);

impl KeyTable {
    /// The key at `path`.
    pub fn find(self, path: &str) -> Option<&'static Key> {
        self.0.iter().find(|key| key.path == path)
    }

    /// The keys directly below `path`; the top level for the empty path.
    pub fn children(self, path: &str) -> impl Iterator<Item = &'static Key> {
        let prefix = if path.is_empty() { String::new() } else { format!("{path}.") };
        self.0.iter().filter(move |key| key.path.strip_prefix(&prefix).is_some_and(|rest| !rest.contains('.')))
    }
}

impl Key {
    /// The last part of the path.
    pub fn name(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or(self.path)
    }
}

const fn key(path: &'static str, kind: Kind, given: Given, doc: &'static str) -> Key {
    Key { path, kind, status: Status::Honoured, given, doc }
}

const fn section(path: &'static str, doc: &'static str) -> Key {
    key(path, Kind::Section, Given::Example("{}"), doc)
}

const fn accepted(path: &'static str) -> Key {
    Key { path, kind: Kind::Map, status: Status::Accepted, given: Given::Example(""), doc: "" }
}

const fn ignored(path: &'static str, why: &'static str) -> Key {
    Key { path, kind: Kind::Map, status: Status::Ignored(why), given: Given::Example(""), doc: "" }
}

const fn unsupported(path: &'static str, remedy: &'static str) -> Key {
    Key { path, kind: Kind::Map, status: Status::Unsupported(remedy), given: Given::Example(""), doc: "" }
}

use Given::{Default, Example, Required};
use Kind::{Address, Duration, Flag, Integer, List, Map, Path, Secret, Settings, Size, Text, Word};

const OWN_STORE: &str = "howdah keeps its own store";

/// The keys of a node's file.
pub const NODE_KEYS: &[Key] = &[
    key("scope", Text, Required("main"), "The cluster's name, the same on all nodes. Also PostgreSQL's cluster_name."),
    key("name", Text, Required("n1"), "This node's name, unique in the cluster and kept for life."),
    key(
        "namespace",
        Text,
        Default("/service"),
        "The first part of the cluster's keys in the store: /NAMESPACE/SCOPE/...",
    ),
    accepted("thread_pool_size"),
    accepted("thread_stack_size"),
    section("raft", "The store that every node carries. All nodes list the same members."),
    key(
        "raft.members",
        Map,
        Example("{n1: '127.0.0.1:8008', n2: '127.0.0.1:8009', n3: '127.0.0.1:8010'}"),
        "The main port of every node by name, this node's own included. Also accepted: a list of {name, addr}. Absent = a cluster of this one node.",
    ),
    key(
        "raft.secret",
        Secret,
        Example("change-me-to-something-long"),
        "What members prove to each other, the same on all nodes, at least 12 characters. Either this or secret_file.",
    ),
    key(
        "raft.secret_file",
        Path,
        Example("/etc/howdah/secret"),
        "A file that holds the secret; only its owner may read it.",
    ),
    key(
        "raft.data_dir",
        Path,
        Example("/var/lib/howdah/main/n1"),
        "Where the store keeps its log. Default: /var/lib/howdah/SCOPE/NAME, so that it survives a change of postgresql.data_dir. Must not lie inside postgresql.data_dir. A fast disk pays off: each write is synced.",
    ),
    key(
        "raft.self_addr",
        Address,
        Example("127.0.0.1:8008"),
        "Where the other members reach this node. Default: this node's entry in members, else restapi.connect_address.",
    ),
    key("raft.heartbeat", Duration, Default("100ms"), "How often the store's leader shows that it lives."),
    key(
        "raft.election_timeout",
        Text,
        Default("500ms..1s"),
        "How long members wait for the leader before they elect another: a range, from which each draws. At least three heartbeats (rule R1), and twice a round trip between members. Raise it for slow disks and long distances.",
    ),
    key(
        "raft.history_time",
        Duration,
        Default("1h"),
        "How long changes of keys can be read and watched afterwards by etcd's clients.",
    ),
    key(
        "raft.history_revisions",
        Integer,
        Default("10000"),
        "How many changes are kept at most, whatever their age. At least 100.",
    ),
    key(
        "raft.allow_plaintext",
        Flag,
        Default("false"),
        "For the time in which a cluster is moved to TLS, one node after the other: members that do not speak TLS yet may talk to this one, and it to them. Everything else on the port must speak TLS already.",
    ),
    ignored("raft.bind_addr", "members talk over the main port, restapi.listen"),
    ignored("raft.partner_addrs", "name all nodes under raft.members instead"),
    ignored("raft.password", "use raft.secret or raft.secret_file instead"),
    section("restapi", "The main port: REST, and everything between members and tools."),
    key("restapi.listen", Address, Default("0.0.0.0:8008"), "Where the main port listens."),
    key(
        "restapi.connect_address",
        Address,
        Example("127.0.0.1:8008"),
        "Where others reach it. Default: this node's entry in raft.members, else restapi.listen if that names one address.",
    ),
    section("restapi.authentication", "Asked for by all requests that change something. Absent = not asked."),
    key("restapi.authentication.username", Text, Example("howdah"), "User name."),
    key("restapi.authentication.password", Secret, Example("change-me"), "Password."),
    key(
        "restapi.allowlist",
        List,
        Example("[127.0.0.1, 10.0.0.0/8]"),
        "Addresses, networks and host names that may send requests that change something. Absent = all. Host names are looked up at the start.",
    ),
    key("restapi.allowlist_include_members", Flag, Default("false"), "Whether all members may, too."),
    key(
        "restapi.certfile",
        Path,
        Example("/etc/howdah/node.crt"),
        "This node's certificate, with those that signed it behind it. With it the main port speaks TLS: REST, etcd's API and the members' links. Read again at SIGHUP and POST /reload; files that are not good are refused, and the old certificate stays. Members show it to each other unless ctl.certfile is given, so where verify_client asks for certificates it must be good for clients, too.",
    ),
    key("restapi.keyfile", Path, Example("/etc/howdah/node.key"), "Its key. Default: in the same file."),
    key("restapi.keyfile_password", Secret, Example("change-me"), "What the key is encrypted with."),
    key(
        "restapi.cafile",
        Path,
        Example("/etc/howdah/ca.crt"),
        "Who signs the certificates of clients; of nodes too, for `howdah list` and its like, unless ctl.cacert says otherwise.",
    ),
    key(
        "restapi.ciphers",
        Text,
        Example("ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"),
        "The cipher suites of TLS 1.2 in OpenSSL's words, out of the six that are spoken. TLS 1.3 is always spoken, nothing older than 1.2 ever.",
    ),
    key(
        "restapi.verify_client",
        Word(&["none", "optional", "required"]),
        Default("none"),
        "Whether clients must show a certificate: never, for requests that change something, for all. With `required` that is true of the members' links and of etcd's clients as well.",
    ),
    key("restapi.http_extra_headers", Map, Default("{}"), "Headers of every answer of REST and the dashboard."),
    key("restapi.https_extra_headers", Map, Default("{}"), "Headers of those answers over TLS; they win."),
    accepted("restapi.request_queue_size"),
    accepted("restapi.thread_pool_size"),
    key(
        "restapi.server_tokens",
        Word(&["original", "minimal", "productonly"]),
        Default("original"),
        "What the header `Server` says: howdah and its version, or with productonly howdah alone.",
    ),
    section("ctl", "What `howdah switchover` and its like send along."),
    section("ctl.authentication", "Default: restapi.authentication."),
    key("ctl.authentication.username", Text, Example("howdah"), "User name."),
    key("ctl.authentication.password", Secret, Example("change-me"), "Password."),
    key(
        "ctl.insecure",
        Flag,
        Default("false"),
        "Whether to believe whoever answers, without a look at the certificate; if certfile is given, without a look at the host name only.",
    ),
    key(
        "ctl.cacert",
        Path,
        Example("/etc/howdah/ca.crt"),
        "Who signs the nodes' certificates. Default: restapi.cafile, else whom this machine trusts. Members check each other by it, without host names, if it or ctl.certfile is given; each other's secret they check in any case.",
    ),
    key("ctl.certfile", Path, Example("/etc/howdah/client.crt"), "What to show to nodes that ask for a certificate."),
    key("ctl.keyfile", Path, Example("/etc/howdah/client.key"), "Its key. Default: in the same file."),
    key("ctl.keyfile_password", Secret, Example("change-me"), "What the key is encrypted with."),
    section("postgresql", "The local PostgreSQL. Absent = a witness: it votes and stores, and runs no database."),
    key(
        "postgresql.listen",
        Address,
        Default("0.0.0.0:5432"),
        "Where PostgreSQL listens; several hosts with commas: 10.0.0.1,127.0.0.1:5432.",
    ),
    key(
        "postgresql.connect_address",
        Address,
        Required("127.0.0.1:5432"),
        "Where the other nodes and the clients reach it.",
    ),
    key(
        "postgresql.data_dir",
        Path,
        Required("/var/lib/postgresql/16/main"),
        "Its data directory. May be empty or absent: the node then bootstraps or clones.",
    ),
    key(
        "postgresql.bin_dir",
        Path,
        Example("/usr/lib/postgresql/16/bin"),
        "Where postgres, initdb, pg_rewind and pg_basebackup are. Default: looked for.",
    ),
    key(
        "postgresql.os_user",
        Text,
        Example("postgres"),
        "The operating-system user that PostgreSQL runs as when howdah runs as root.",
    ),
    key(
        "postgresql.pgpass",
        Path,
        Example("/var/lib/postgresql/pgpass"),
        "A password file that howdah writes for replication. Default: beside the data directory.",
    ),
    section("postgresql.authentication", "The roles that howdah creates at bootstrap and uses from then on."),
    section("postgresql.authentication.superuser", "Manages the local server."),
    key("postgresql.authentication.superuser.username", Text, Default("postgres"), "Its name."),
    key(
        "postgresql.authentication.superuser.password",
        Secret,
        Example("change-me"),
        "Its password. Absent = pg_hba must let it in over the Unix socket.",
    ),
    section("postgresql.authentication.replication", "What standbys connect as."),
    key("postgresql.authentication.replication.username", Text, Default("replicator"), "Its name."),
    key("postgresql.authentication.replication.password", Secret, Example("change-me"), "Its password."),
    section("postgresql.authentication.rewind", "What pg_rewind connects as. Default: the superuser."),
    key("postgresql.authentication.rewind.username", Text, Example("rewinder"), "Its name."),
    key("postgresql.authentication.rewind.password", Secret, Example("change-me"), "Its password."),
    key(
        "postgresql.parameters",
        Map,
        Default("{}"),
        "Server settings of this node alone. Those that all nodes share belong under bootstrap.dcs.postgresql.parameters.",
    ),
    key(
        "postgresql.pg_hba",
        List,
        Example("['host all all 10.0.0.0/8 scram-sha-256']"),
        "Lines of this node's pg_hba.conf. Absent = those of the shared settings.",
    ),
    key(
        "postgresql.use_unix_socket",
        Flag,
        Default("true"),
        "Whether howdah talks to the local server over its Unix socket.",
    ),
    key(
        "postgresql.remove_data_directory_on_rewind_failure",
        Flag,
        Default("true"),
        "Whether a server that cannot be rewound is rebuilt from the primary. Its old data directory is moved aside, never deleted.",
    ),
    key(
        "postgresql.remove_data_directory_on_diverged_timelines",
        Flag,
        Default("true"),
        "Whether a diverged server is rebuilt when it may not be rewound. Moved aside, never deleted.",
    ),
    accepted("postgresql.proxy_address"),
    accepted("postgresql.bin_name"),
    accepted("postgresql.config_dir"),
    accepted("postgresql.config_base_name"),
    key(
        "postgresql.custom_conf",
        Path,
        Example("/etc/postgresql/base.conf"),
        "A file to include rather than the postgresql.conf that was in the data directory.",
    ),
    key("postgresql.database", Text, Default("postgres"), "What howdah's own sessions connect to."),
    section(
        "postgresql.callbacks",
        "Commands that are told of what has happened: the words as written, then the event, the role, the cluster's name. One after the other, never cut short by the next, again if howdah ended before they did.",
    ),
    key("postgresql.callbacks.on_start", Text, Example("/etc/howdah/on_start"), "PostgreSQL accepts connections."),
    key("postgresql.callbacks.on_stop", Text, Example("/etc/howdah/on_stop"), "It has ended."),
    key("postgresql.callbacks.on_restart", Text, Example("/etc/howdah/on_restart"), "It was restarted by hand."),
    key(
        "postgresql.callbacks.on_reload",
        Text,
        Example("/etc/howdah/on_reload"),
        "It was told to read its files again.",
    ),
    key(
        "postgresql.callbacks.on_role_change",
        Text,
        Example("/etc/howdah/on_role_change"),
        "It is a primary, or a replica, and was not before; then there is no on_start besides.",
    ),
    key(
        "postgresql.callback_timeout",
        Duration,
        Default("60s"),
        "A callback, pre_promote or before_stop that takes longer is ended.",
    ),
    key(
        "postgresql.pre_promote",
        Text,
        Example("/etc/howdah/pre_promote"),
        "A command that is asked before a promotion, and before anything has changed. Unless it ends with 0 this node gives the leadership back and stands aside for a ttl.",
    ),
    key(
        "postgresql.before_stop",
        Text,
        Example("/etc/howdah/before_stop"),
        "A command that runs before PostgreSQL is stopped in order; however it ends, the stop follows.",
    ),
    key(
        "postgresql.create_replica_methods",
        List,
        Default("[basebackup]"),
        "How a copy is made: basebackup is pg_basebackup; any other name is a section of its own beside this key, with command, no_params, and keys that are given as --KEY=VALUE. Tried in this order. A command also gets --scope, --role=replica, --datadir (an empty place) and --connstring; the password is in PGPASSFILE.",
    ),
    key(
        "postgresql.basebackup",
        Map,
        Example("{max-rate: 100M, checkpoint: fast}"),
        "Options of pg_basebackup: a map, or a list of words and maps.",
    ),
    key(
        "postgresql.pg_ident",
        List,
        Example("['map1 app_os app_db']"),
        "Lines of this node's pg_ident.conf. Absent = those of the shared settings.",
    ),
    key(
        "postgresql.recovery_conf",
        Map,
        Example("{restore_command: 'cp /archive/%f %p'}"),
        "For standbys: restore_command, archive_cleanup_command, recovery_end_command, recovery_min_apply_delay of this node alone.",
    ),
    accepted("postgresql.use_unix_socket_repl"),
    accepted("postgresql.pg_ctl_timeout"),
    accepted("postgresql.use_pg_rewind"),
    accepted("postgresql.rewind"),
    accepted("postgresql.krbsrvname"),
    key(
        "tags",
        Map,
        Default("{}"),
        "nofailover, nosync, noloadbalance, clonefrom, nostream (true or false), failover_priority, sync_priority (numbers), replicatefrom (a name), and any of your own.",
    ),
    section("log", "What this process writes to standard error."),
    key(
        "log.level",
        Word(&["debug", "info", "warn", "warning", "error", "critical"]),
        Default("info"),
        "The least important level that is written. DEBUG, INFO, WARNING and ERROR, in any case.",
    ),
    key("log.type", Word(&["plain", "json"]), Default("plain"), "plain for people, json for collectors."),
    key("log.static_fields", Map, Default("{}"), "Fields added to every JSON line."),
    accepted("log.traceback_level"),
    accepted("log.format"),
    accepted("log.dateformat"),
    accepted("log.max_queue_size"),
    accepted("log.dir"),
    accepted("log.mode"),
    accepted("log.file_num"),
    accepted("log.file_size"),
    accepted("log.loggers"),
    accepted("log.deduplicate_heartbeat_logs"),
    section("watchdog", "A device that resets the machine when nobody feeds it."),
    key(
        "watchdog.mode",
        Word(&["off", "automatic", "required"]),
        Default("automatic"),
        "automatic = if there is one; required = no promotion without it.",
    ),
    key("watchdog.device", Path, Default("/dev/watchdog"), "The device."),
    key(
        "watchdog.driver",
        Word(&["default", "testing"]),
        Default("default"),
        "testing = the device is any file, and what would be asked of it is written into it as text; it resets nothing.",
    ),
    key("watchdog.safety_margin", Duration, Default("1s"), "It fires this much before the leadership ends."),
    section(
        "bootstrap",
        "What the first node does when the cluster does not exist yet. Later changes here have no effect.",
    ),
    key(
        "bootstrap.dcs",
        Settings,
        Example(""),
        "The settings that all members share. They are copied into the store once; from then on `howdah edit-config` changes them.",
    ),
    key(
        "bootstrap.initdb",
        List,
        Default("[data-checksums, {encoding: UTF8}]"),
        "Options of initdb: words, and maps of option to value.",
    ),
    key(
        "bootstrap.pg_hba",
        List,
        Example("['host all all 10.0.0.0/8 scram-sha-256']"),
        "Lines of pg_hba.conf when nothing else gives any.",
    ),
    key(
        "bootstrap.adopt",
        Flag,
        Default("false"),
        "The cluster begins with a database that exists, on all nodes the same: a node without data waits for it rather than creating one. For `howdah adopt`; without effect once the cluster exists.",
    ),
    key(
        "bootstrap.method",
        Text,
        Default("initdb"),
        "How the first data directory comes to be: initdb, or the name of a section beside this key with command, no_params, keep_existing_recovery_conf, recovery_conf, and keys that are given as --KEY=VALUE. The command also gets --scope and --datadir (an empty place). It may restore a backup; recovery_conf says how far it is recovered.",
    ),
    key(
        "bootstrap.post_bootstrap",
        Text,
        Example("/etc/howdah/post_bootstrap"),
        "A command that runs on the new primary with its connection string as the last word; the password is in PGPASSFILE. Unless it ends with 0 the new cluster is moved aside.",
    ),
    Key { status: Status::Renamed("bootstrap.post_bootstrap"), ..accepted("bootstrap.post_init") },
    Key { status: Status::Ignored("Patroni 4 dropped it too; create roles with SQL"), ..accepted("bootstrap.users") },
    section("dashboard", "An extra port for the dashboard; the main port serves it, too, at /ui."),
    key(
        "dashboard.listen",
        Address,
        Example("0.0.0.0:7000"),
        "Where it listens, for those who look for HAProxy's statistics there: / leads to /ui. REST answers here as well, under the same rules. Absent = main port only.",
    ),
    section("etcd", "An extra listener for etcd's clients; the main port serves them, too."),
    key(
        "etcd.listen",
        Address,
        Example("127.0.0.1:2379"),
        "Where it listens. Here /health and /metrics answer as etcd's. Absent = main port only.",
    ),
    key(
        "etcd.cert_file",
        Path,
        Example("/etc/howdah/etcd.crt"),
        "The certificate of this listener, as etcd's --cert-file. With it the listener speaks TLS, without it it does not, whatever the main port does.",
    ),
    key("etcd.key_file", Path, Example("/etc/howdah/etcd.key"), "Its key. Default: in the same file."),
    key(
        "etcd.client_cert_auth",
        Flag,
        Default("false"),
        "Whether clients must show a certificate, as etcd's --client-cert-auth. It lets them in; it makes no user of them.",
    ),
    key("etcd.trusted_ca_file", Path, Example("/etc/howdah/ca.crt"), "Who signs those certificates."),
    key(
        "etcd.quota",
        Size,
        Default("256MB"),
        "How large the data of etcd's clients may become. It is held in memory. Above it they can only delete; howdah's own record is not concerned.",
    ),
    section(
        "router",
        "Ports that lead clients to the right PostgreSQL, on every node. A session belongs to one leadership and is reset when that ends.",
    ),
    key(
        "router.listen",
        Address,
        Example("0.0.0.0:5000"),
        "Where clients that write connect: leads to the primary. Absent = off.",
    ),
    key(
        "router.listen_replicas",
        Address,
        Example("0.0.0.0:5001"),
        "Where clients that only read connect: leads to the replica with the fewest sessions. Absent = off.",
    ),
    key(
        "router.hold_timeout",
        Duration,
        Default("10s"),
        "How long a new connection waits while there is nobody to lead it to, as during a failover. Then it gets the error 57P03.",
    ),
    key(
        "router.drain_timeout",
        Duration,
        Default("3s"),
        "How long sessions may go on when the primary hands over, until they are at the end of a transaction.",
    ),
    key(
        "router.maximum_lag",
        Size,
        Default("-1"),
        "Replicas that have so much less replayed get no new connections. Positions are as old as loop_wait. -1 = no limit.",
    ),
    key(
        "router.fallback_to_primary",
        Flag,
        Default("false"),
        "Whether the port for reads leads to the primary while no replica may serve.",
    ),
    key(
        "router.max_connections",
        Integer,
        Default("1000"),
        "How many clients may be connected. Further ones wait in the order they came, up to hold_timeout.",
    ),
    key(
        "router.allowlist",
        List,
        Default("[]"),
        "Addresses and networks that may connect. Empty = all. pg_hba sees the router's address, not the client's.",
    ),
    key(
        "router.proxy_protocol",
        List,
        Default("[]"),
        "Addresses and networks of proxies whose connections begin with a PROXY header, version 2; without one they are closed.",
    ),
    ignored("etcd.host", OWN_STORE),
    ignored("etcd.hosts", OWN_STORE),
    ignored("etcd.url", OWN_STORE),
    ignored("etcd.proxy", OWN_STORE),
    ignored("etcd.srv", OWN_STORE),
    ignored("etcd.srv_suffix", OWN_STORE),
    ignored("etcd.use_proxies", OWN_STORE),
    ignored("etcd.protocol", OWN_STORE),
    ignored("etcd.username", OWN_STORE),
    ignored("etcd.password", OWN_STORE),
    ignored("etcd.cacert", OWN_STORE),
    ignored("etcd.cert", OWN_STORE),
    ignored("etcd.key", OWN_STORE),
    ignored("etcd3", OWN_STORE),
    ignored("consul", OWN_STORE),
    ignored("zookeeper", OWN_STORE),
    ignored("exhibitor", OWN_STORE),
    ignored("kubernetes", OWN_STORE),
    unsupported(
        "citus",
        "Citus groups are not coordinated; remove it, and run one howdah cluster per group without it",
    ),
];

/// The keys of the shared settings: `bootstrap.dcs`, and the store's `config` key.
pub const CLUSTER_KEYS: &[Key] = &[
    key(
        "ttl",
        Duration,
        Default("5"),
        "How long a leadership lasts without renewal. Losing the primary's host costs this much, and about a second. loop_wait + 2*retry_timeout <= ttl (rule C1), at least 1 s (rule C2), at most a day (rule C7).",
    ),
    key(
        "loop_wait",
        Duration,
        Default("1"),
        "The heartbeat of the loop; events wake it earlier. At least 0.1 s (rule C3).",
    ),
    key(
        "retry_timeout",
        Duration,
        Default("2"),
        "How long a failing operation on the store or on PostgreSQL is retried. In a race for the lead a member has a fifth of it, at least 0.4 s, to answer. At least 0.2 s (rule C4).",
    ),
    key(
        "maximum_lag_on_failover",
        Size,
        Default("1MB"),
        "A standby that is further behind takes no part in a failover.",
    ),
    key(
        "maximum_lag_on_syncnode",
        Size,
        Default("-1"),
        "A synchronous standby that is further behind is replaced. -1 = never.",
    ),
    key("check_timeline", Flag, Default("false"), "Whether a candidate must be on the newest timeline."),
    key("max_timelines_history", Integer, Default("0"), "How many rows of history are kept. 0 = all."),
    key(
        "primary_start_timeout",
        Duration,
        Default("300"),
        "How long a crashed primary may take to come back before another takes over. 0 = at once.",
    ),
    key(
        "primary_stop_timeout",
        Duration,
        Default("0"),
        "How long a stop may take in the synchronous modes before it is forced. 0 = no limit.",
    ),
    key(
        "synchronous_mode",
        Word(&["off", "on", "quorum"]),
        Default("off"),
        "off = a failover may lose the last commits, and says how many bytes; on, quorum = no acknowledged commit is lost.",
    ),
    key("synchronous_mode_strict", Flag, Default("false"), "Whether commits wait when no synchronous standby is left."),
    key(
        "synchronous_node_count",
        Integer,
        Default("1"),
        "How many standbys confirm each commit. At least 1 (rule C5).",
    ),
    key(
        "failsafe_mode",
        Flag,
        Default("false"),
        "Known from Patroni and without effect: the store is on the members themselves, and where all of them can be reached there is a majority.",
    ),
    key("pause", Flag, Default("false"), "Hands off: nothing is started, stopped, promoted or demoted."),
    key(
        "member_slots_ttl",
        Duration,
        Default("30min"),
        "How long the replication slot of a vanished member is kept. 0 = not at all.",
    ),
    key(
        "slots",
        Map,
        Default("{}"),
        "Permanent replication slots: NAME: {type: physical} or {type: logical, database: D, plugin: P}.",
    ),
    key("ignore_slots", List, Default("[]"), "Slots that howdah leaves alone: maps of name, type, database, plugin."),
    key(
        "standby_cluster",
        Map,
        Example("{host: 10.1.0.1, port: 5432}"),
        "The primary outside that this whole cluster follows: host (or several with commas), port, primary_slot_name (must exist there), restore_command, archive_cleanup_command, recovery_min_apply_delay. Taken out again, the cluster's leader is promoted.",
    ),
    section("postgresql", "What all PostgreSQL servers of the cluster share."),
    key(
        "postgresql.use_pg_rewind",
        Flag,
        Default("true"),
        "Whether a diverged server is rewound; otherwise it is rebuilt.",
    ),
    key("postgresql.use_slots", Flag, Default("true"), "Whether members stream through replication slots."),
    key("postgresql.parameters", Map, Default("{}"), "Server settings by name."),
    key(
        "postgresql.pg_hba",
        List,
        Example("['host all all 10.0.0.0/8 scram-sha-256']"),
        "Lines of pg_hba.conf on all nodes.",
    ),
    key("postgresql.pg_ident", List, Example("['map1 app_os app_db']"), "Lines of pg_ident.conf on all nodes."),
    Key { status: Status::Renamed("primary_start_timeout"), ..accepted("master_start_timeout") },
    Key { status: Status::Renamed("primary_stop_timeout"), ..accepted("master_stop_timeout") },
    Key { status: Status::Renamed("slots"), ..accepted("permanent_slots") },
    Key { status: Status::Renamed("slots"), ..accepted("permanent_replication_slots") },
    accepted("primary_race_backoff"),
    key(
        "postgresql.recovery_conf",
        Map,
        Example("{restore_command: 'cp /archive/%f %p'}"),
        "For standbys: restore_command, archive_cleanup_command, recovery_end_command, recovery_min_apply_delay.",
    ),
    accepted("postgresql.bin_name"),
    accepted("postgresql.config_base_name"),
    accepted("postgresql.custom_conf"),
    accepted("postgresql.database"),
    accepted("postgresql.callbacks"),
    accepted("postgresql.create_replica_methods"),
    accepted("postgresql.basebackup"),
    accepted("postgresql.bin_dir"),
    accepted("postgresql.use_unix_socket"),
    accepted("postgresql.use_unix_socket_repl"),
    accepted("postgresql.pg_ctl_timeout"),
    accepted("postgresql.remove_data_directory_on_rewind_failure"),
    accepted("postgresql.remove_data_directory_on_diverged_timelines"),
    accepted("postgresql.rewind"),
    accepted("postgresql.krbsrvname"),
    unsupported("postgresql.before_stop", "it belongs to each node's own file, under postgresql"),
    unsupported("postgresql.pre_promote", "it belongs to each node's own file, under postgresql"),
    unsupported("postgresql.listen", "it belongs to each node's own file, under postgresql"),
    unsupported("postgresql.connect_address", "it belongs to each node's own file, under postgresql"),
    unsupported("postgresql.proxy_address", "it belongs to each node's own file, under postgresql"),
    unsupported("postgresql.data_dir", "it belongs to each node's own file, under postgresql"),
    unsupported("postgresql.config_dir", "it belongs to each node's own file, under postgresql"),
    unsupported("postgresql.pgpass", "it belongs to each node's own file, under postgresql"),
    unsupported("postgresql.authentication", "it belongs to each node's own file, under postgresql"),
];
