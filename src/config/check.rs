//! From a tree to a [`Config`]: every problem at once, each a sentence that names key, cause and remedy.
//!
//! ```text
//! file -> raw::read_tree -> env::overlay -> raw::recognise -> read each section -> rules between keys -> Config
//! ```
//! Rules between keys have names: R1 to R7 here, C1 to C8 for the shared settings. Deliberately absent: looking at the
//! network or at PostgreSQL. The file is right or wrong whatever runs.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::address::is_wildcard;
use super::cluster_settings::ClusterSettings;
use super::keys::{CLUSTER_KEYS, KeyTable, NODE_KEYS};
use super::node::{
    BootstrapConfig, CallbacksConfig, Config, Credentials, LogConfig, Method, PostgresqlConfig, RaftConfig,
    RestApiConfig, RestoreMethod, RoleConfig, RouterConfig, ServerTokens, Tags, ToolOption, WatchdogConfig,
    WatchdogMode,
};
use super::raw::{self, ReadError};
use super::reader::{Problem, Reader, parse_duration};
use super::{HostPort, ListenAddresses, env, listeners, tls};
use crate::telemetry::redact::Secret;
use crate::types::{ClusterName, Network, NodeName};

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file gave no tree.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Its content is wrong.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// Everything that is wrong with a file, one problem a line.
#[derive(Debug, thiserror::Error)]
pub struct Invalid {
    /// The file.
    pub path: PathBuf,
    /// At least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, problems } = self;
        let count = match problems.len() {
            1 => "1 problem".to_owned(),
            many => format!("{many} problems"),
        };
        write!(f, "configuration {}: {count}", path.display())?;
        problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// Reads and checks a node's file with the environment of this process over it.
///
/// # Errors
/// [`ConfigError::Read`] when there is no YAML map; [`ConfigError::Invalid`] with all problems at once.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let mut tree = raw::read_tree(path)?;
    let variables: Vec<(String, String)> =
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
    let warnings = env::overlay(&mut tree, &variables);
    let mut config = check(&tree, path)?;
    config.warnings.splice(0..0, warnings);
    Ok(config)
}

/// Checks a tree. `path` is for messages.
///
/// # Errors
/// All problems at once.
pub fn check(tree: &Value, path: &Path) -> Result<Config, Invalid> {
    let mut reader = Reader::new(tree, KeyTable(NODE_KEYS), "");
    raw::recognise(&mut reader);
    let config = read_config(&mut reader, path);
    let (problems, warnings) = reader.finish();
    match config {
        Some(config) if problems.is_empty() => Ok(Config { warnings, ..config }),
        _ => Err(Invalid { path: path.to_owned(), problems }),
    }
}

/// None only when a problem was noted.
fn read_config(reader: &mut Reader<'_>, path: &Path) -> Option<Config> {
    let scope = reader.required("scope");
    let name: Option<NodeName> = reader.required("name");
    let members = read_members(reader);
    let own_entry = name.as_ref().and_then(|name| members.as_ref()?.get(name)).cloned();
    let restapi = read_restapi(reader, own_entry.as_ref());
    let postgresql = reader.has("postgresql").then(|| read_postgresql(reader));
    let bootstrap = read_bootstrap(reader);
    let namespace = format!("/{}", reader.text("namespace").trim_matches('/'));
    let log = read_log(reader);
    let watchdog = read_watchdog(reader);
    let tags = read_tags(reader);
    let ctl = read_credentials(reader, "ctl.authentication");
    let ctl_tls = tls::read_ctl(reader);
    let etcd_tls = tls::read_etcd(reader);
    let known = name.as_ref().zip(scope.as_ref());
    let identity = RaftIdentity {
        name: name.as_ref(),
        default_dir: known.map(|(name, scope): (&NodeName, &ClusterName)| format!("/var/lib/howdah/{scope}/{name}")),
        connect_address: restapi.as_ref().map(|api| &api.connect_address),
        pg_data_dir: postgresql.as_ref().and_then(|pg| Some(pg.as_ref()?.data_dir.as_path())),
    };
    let etcd_listen = reader.optional("etcd.listen");
    let dashboard_listen = reader.optional("dashboard.listen");
    let etcd_quota = reader.size("etcd.quota").0;
    let router = read_router(reader);
    let raft = read_raft(reader, members, identity);
    listeners::check(
        reader,
        &[
            ("restapi.listen", restapi.as_ref().map(|api| &api.listen)),
            ("postgresql.listen", postgresql.as_ref().and_then(|pg| Some(&pg.as_ref()?.listen))),
            ("etcd.listen", etcd_listen.as_ref()),
            ("dashboard.listen", dashboard_listen.as_ref()),
            ("router.listen", router.listen.as_ref()),
            ("router.listen_replicas", router.listen_replicas.as_ref()),
        ],
    );
    Some(Config {
        path: path.to_owned(),
        raft: raft?,
        scope: scope?,
        name: name?,
        namespace,
        etcd_listen,
        dashboard_listen,
        etcd_tls,
        ctl_tls,
        etcd_quota,
        router,
        ctl: ctl.or_else(|| restapi.as_ref()?.authentication.clone()),
        restapi: restapi?,
        postgresql: match postgresql {
            Some(section) => Some(section?),
            None => None,
        },
        bootstrap,
        tags,
        log,
        watchdog,
        warnings: Vec::new(),
    })
}

/// All members, as a map of name to address or a list of {name, addr}; none when absent.
fn read_members(reader: &mut Reader<'_>) -> Option<BTreeMap<NodeName, HostPort>> {
    let entries: Vec<(String, Value)> = match reader.value("raft.members")? {
        Value::Object(fields) => fields.iter().map(|(name, addr)| (name.clone(), addr.clone())).collect(),
        Value::Array(items) => {
            let field = |item: &Value, key: &str| item.get(key).cloned().unwrap_or(Value::Null);
            items
                .iter()
                .map(|item| (field(item, "name").as_str().unwrap_or("").to_owned(), field(item, "addr")))
                .collect()
        }
        _ => {
            reader.problem("raft.members", "is neither a map nor a list; write `n1: HOST:PORT` lines below it");
            return Some(BTreeMap::new());
        }
    };
    let mut members: BTreeMap<NodeName, HostPort> = BTreeMap::new();
    for (index, (name, addr)) in entries.iter().enumerate() {
        let here = if name.is_empty() { format!("raft.members[{index}]") } else { format!("raft.members.{name}") };
        let parsed_name = name.parse::<NodeName>().map_err(|error| error.to_string());
        let parsed_addr = addr
            .as_str()
            .ok_or_else(|| "has no address; write it as HOST:PORT".to_owned())
            .and_then(|text| text.parse::<HostPort>().map_err(|error| error.to_string()));
        match (parsed_name, parsed_addr) {
            (Ok(name), Ok(addr)) => {
                if let Some((twin, _)) = members.iter().find(|(_, known)| **known == addr) {
                    reader.problem(
                        &here,
                        format!("has the address {addr} of {twin}; each member needs its own (rule R2)"),
                    );
                }
                if members.insert(name, addr).is_some() {
                    reader.problem(&here, "stands twice; each name may stand once (rule R2), so rename or remove one");
                }
            }
            (name, addr) => {
                for message in [name.err(), addr.err()].into_iter().flatten() {
                    reader.problem(&here, message);
                }
            }
        }
    }
    Some(members)
}

/// What the raft section needs to know from elsewhere.
struct RaftIdentity<'a> {
    name: Option<&'a NodeName>,
    /// None while cluster or node have no usable name.
    default_dir: Option<String>,
    connect_address: Option<&'a HostPort>,
    pg_data_dir: Option<&'a Path>,
}

fn read_raft(
    reader: &mut Reader<'_>,
    members: Option<BTreeMap<NodeName, HostPort>>,
    identity: RaftIdentity<'_>,
) -> Option<RaftConfig> {
    let RaftIdentity { name, default_dir, connect_address, pg_data_dir } = identity;
    if let (Some(members), Some(name)) = (&members, name)
        && !members.contains_key(name)
        && !members.is_empty()
    {
        let listed: Vec<&str> = members.keys().map(NodeName::as_str).collect();
        reader.problem(
            "raft.members",
            format!(
                "does not list this node, {name} (rule R3); add `{name}: HOST:PORT`, or set name to one of {}",
                listed.join(", ")
            ),
        );
    }
    let own_entry = name.and_then(|name| members.as_ref()?.get(name)).cloned();
    let self_addr = reader.optional_address("raft.self_addr").or(own_entry).or_else(|| connect_address.cloned());
    let members = match members.filter(|members| !members.is_empty()) {
        Some(members) => members,
        None => {
            reader
                .warning("raft.members", "is absent: this is a cluster of one node, and nothing can take over from it");
            name.zip(self_addr.as_ref()).map(|(name, addr)| (name.clone(), addr.clone())).into_iter().collect()
        }
    };
    let secret = read_secret(reader, 1 < members.len());
    let data_dir = reader.optional_text("raft.data_dir").inspect(|text| warn_relative(reader, "raft.data_dir", text));
    let data_dir = data_dir.or(default_dir).map(|text| absolute(&text));
    if let Some(data_dir) = &data_dir
        && pg_data_dir.is_some_and(|pg| data_dir.starts_with(pg) || pg.starts_with(data_dir))
    {
        reader.problem(
            "raft.data_dir",
            format!("{} and postgresql.data_dir lie within each other (rule R4); base backups would copy it, so choose another directory", data_dir.display()),
        );
    }
    let heartbeat = reader.duration("raft.heartbeat");
    let (election_timeout_min, election_timeout_max) = read_election(reader, heartbeat);
    let history_revisions = reader.integer("raft.history_revisions");
    if history_revisions < 100 {
        reader.problem("raft.history_revisions", "is less than 100; watchers that catch up need some history");
    }
    let history_time = reader.duration("raft.history_time");
    if history_time < Duration::from_secs(60) {
        reader.problem("raft.history_time", "is less than 60s; watchers that catch up need some history");
    }
    let allow_plaintext = reader.flag("raft.allow_plaintext");
    if allow_plaintext {
        reader.warning("raft.allow_plaintext", "lets members talk without TLS; remove it when all of them speak TLS");
    }
    Some(RaftConfig {
        allow_plaintext,
        history_time,
        history_revisions,
        data_dir: data_dir?,
        self_addr: self_addr?,
        members,
        secret,
        heartbeat,
        election_timeout_min,
        election_timeout_max,
    })
}

fn read_election(reader: &mut Reader<'_>, heartbeat: Duration) -> (Duration, Duration) {
    let written = reader.text("raft.election_timeout");
    let range = match written.split_once("..") {
        Some((low, high)) => parse_duration(low).zip(parse_duration(high)),
        None => parse_duration(&written).map(|low| (low, 2 * low)),
    };
    let Some((low, high)) = range else {
        reader.problem(
            "raft.election_timeout",
            format!("{written:?} is not a range of durations; write it as 500ms..1s"),
        );
        return (heartbeat * 5, heartbeat * 10);
    };
    if heartbeat.is_zero() || low < 3 * heartbeat {
        let cause = format!(
            "3 * raft.heartbeat <= raft.election_timeout (rule R1) does not hold: {} is less than 3 * {}; raise it, or lower a heartbeat that is above zero",
            millis(low),
            millis(heartbeat)
        );
        reader.problem("raft.election_timeout", cause);
    }
    if high <= low {
        reader.problem(
            "raft.election_timeout",
            format!("{written:?} has its end before its start; write it as 500ms..1s"),
        );
    }
    (low, high)
}

fn millis(span: Duration) -> String {
    format!("{} ms", span.as_millis())
}

fn read_secret(reader: &mut Reader<'_>, needed: bool) -> Option<Secret<String>> {
    let direct = reader.optional_secret("raft.secret");
    let file = reader.optional_text("raft.secret_file");
    let secret = match (direct, file) {
        (Some(_), Some(_)) => {
            reader.problem("raft.secret_file", "stands beside raft.secret; keep one of the two");
            return None;
        }
        (Some(secret), None) => secret,
        (None, Some(file)) => match std::fs::read_to_string(&file) {
            Ok(text) => Secret::new(text.trim().to_owned()),
            Err(error) => {
                reader.problem(
                    "raft.secret_file",
                    format!("read {file}: {error}; create it with the cluster's secret, readable by the user that runs howdah"),
                );
                return None;
            }
        },
        (None, None) if needed => {
            reader.problem(
                "raft.secret",
                "is missing; give all nodes the same secret of at least 12 characters, here or by raft.secret_file",
            );
            return None;
        }
        (None, None) => return None,
    };
    if secret.expose().len() < 12 {
        let at = if reader.has("raft.secret") { "raft.secret" } else { "raft.secret_file" };
        reader.problem(at, format!("the secret has {} characters; use at least 12 (rule R5)", secret.expose().len()));
    }
    Some(secret)
}

fn read_restapi(reader: &mut Reader<'_>, own_entry: Option<&HostPort>) -> Option<RestApiConfig> {
    let listen: Option<ListenAddresses> = reader.address("restapi.listen");
    let from_listen = listen.as_ref().and_then(|listen| match listen.hosts.as_slice() {
        [host] if !is_wildcard(host) => Some(HostPort { host: host.clone(), port: listen.port }),
        _ => None,
    });
    // With members given, the problem is the missing entry there, and it has been noted.
    let given = reader.has("restapi.connect_address") || reader.has("raft.members");
    let connect_address =
        reader.optional_address("restapi.connect_address").or_else(|| own_entry.cloned()).or(from_listen);
    if connect_address.is_none() && !given {
        reader.problem(
            "restapi.connect_address",
            "is missing; add the address where others reach this node, for example `connect_address: 10.0.0.1:8008`",
        );
    }
    if let Some(address) = connect_address.as_ref().filter(|address| is_wildcard(&address.host)) {
        reader.problem(
            "restapi.connect_address",
            format!("{address} is no address that others can connect to; write this node's own (rule R6)"),
        );
    }
    Some(RestApiConfig {
        listen: listen?,
        connect_address: connect_address?,
        authentication: read_credentials(reader, "restapi.authentication"),
        allowlist: reader.optional_text_list("restapi.allowlist").unwrap_or_default(),
        allowlist_include_members: reader.flag("restapi.allowlist_include_members"),
        tls: tls::read_restapi(reader),
        http_extra_headers: read_headers(reader, "restapi.http_extra_headers"),
        https_extra_headers: read_headers(reader, "restapi.https_extra_headers"),
        server_tokens: match reader.word("restapi.server_tokens").as_str() {
            "productonly" => ServerTokens::ProductOnly,
            _ => ServerTokens::Original,
        },
    })
}

/// Headers that HTTP permits: a name, and a line of text.
fn read_headers(reader: &mut Reader<'_>, path: &str) -> BTreeMap<String, String> {
    let headers = reader.text_map(path);
    for (name, value) in &headers {
        let valid =
            hyper::header::HeaderName::try_from(name).is_ok() && hyper::header::HeaderValue::try_from(value).is_ok();
        if !valid {
            reader.problem(
                &format!("{path}.{name}"),
                "is no HTTP header; write a name without spaces and one line of text",
            );
        }
    }
    headers
}

fn read_router(reader: &mut Reader<'_>) -> RouterConfig {
    let max_connections = reader.integer("router.max_connections");
    if max_connections == 0 {
        reader.problem("router.max_connections", "is 0, which lets nobody in; write 1 or more, or remove the ports");
    }
    RouterConfig {
        listen: reader.optional("router.listen"),
        listen_replicas: reader.optional("router.listen_replicas"),
        hold_timeout: reader.duration("router.hold_timeout"),
        drain_timeout: reader.duration("router.drain_timeout"),
        maximum_lag: reader.optional_size("router.maximum_lag"),
        fallback_to_primary: reader.flag("router.fallback_to_primary"),
        max_connections,
        allowlist: read_networks(reader, "router.allowlist"),
        proxy_protocol: read_networks(reader, "router.proxy_protocol"),
    }
}

fn read_networks(reader: &mut Reader<'_>, path: &str) -> Vec<Network> {
    let mut networks = Vec::new();
    for (index, text) in reader.optional_text_list(path).unwrap_or_default().iter().enumerate() {
        match text.parse() {
            Ok(network) => networks.push(network),
            Err(error) => reader.problem(&format!("{path}[{index}]"), format!("{text:?} {error}")),
        }
    }
    networks
}

fn read_credentials(reader: &mut Reader<'_>, path: &str) -> Option<Credentials> {
    if !reader.has(path) {
        return None;
    }
    let username = reader.optional_text(&format!("{path}.username"));
    let password = reader.optional_secret(&format!("{path}.password"));
    if username.is_none() || password.is_none() {
        reader.problem(path, "needs both username and password; add the missing one, or remove the section");
    }
    Some(Credentials { username: username?, password: password? })
}

fn read_postgresql(reader: &mut Reader<'_>) -> Option<PostgresqlConfig> {
    let listen: Option<ListenAddresses> = reader.address("postgresql.listen");
    let connect_address: Option<HostPort> = reader.required("postgresql.connect_address");
    if let Some(address) = connect_address.as_ref().filter(|address| is_wildcard(&address.host)) {
        reader.problem(
            "postgresql.connect_address",
            format!("{address} is no address that others can connect to; write this node's own (rule R6)"),
        );
    }
    let data_dir: Option<PathBuf> = reader.required("postgresql.data_dir");
    if let Some(data_dir) = &data_dir {
        warn_relative(reader, "postgresql.data_dir", &data_dir.to_string_lossy());
    }
    let role = |reader: &mut Reader<'_>, which: &str| RoleConfig {
        username: reader.text(&format!("postgresql.authentication.{which}.username")),
        password: reader.optional_secret(&format!("postgresql.authentication.{which}.password")),
    };
    let superuser = role(reader, "superuser");
    let replication = role(reader, "replication");
    let rewind = reader.has("postgresql.authentication.rewind").then(|| role(reader, "rewind"));
    if rewind.as_ref().is_some_and(|role| role.username.is_empty()) {
        reader.problem(
            "postgresql.authentication.rewind",
            "has no username; add it, or remove the section to use the superuser",
        );
    }
    let path = |reader: &mut Reader<'_>, key: &str| reader.optional_text(key).map(|text| absolute(&text));
    let callbacks = read_callbacks(reader);
    Some(PostgresqlConfig {
        callbacks,
        bin_dir: path(reader, "postgresql.bin_dir"),
        pgpass: path(reader, "postgresql.pgpass"),
        os_user: reader.optional_text("postgresql.os_user"),
        superuser,
        replication,
        rewind,
        parameters: reader.text_map("postgresql.parameters"),
        pg_hba: reader.optional_text_list("postgresql.pg_hba"),
        pg_ident: reader.optional_text_list("postgresql.pg_ident"),
        recovery: reader.text_map("postgresql.recovery_conf"),
        custom_conf: path(reader, "postgresql.custom_conf"),
        database: reader.text("postgresql.database"),
        basebackup: reader
            .value("postgresql.basebackup")
            .cloned()
            .map_or_else(Vec::new, |value| read_options(reader, "postgresql.basebackup", value)),
        copy_methods: read_copy_methods(reader),
        use_unix_socket: reader.flag("postgresql.use_unix_socket"),
        rebuild_on_rewind_failure: reader.flag("postgresql.remove_data_directory_on_rewind_failure"),
        rebuild_on_diverged_timelines: reader.flag("postgresql.remove_data_directory_on_diverged_timelines"),
        listen: listen?,
        connect_address: connect_address?,
        data_dir: absolute(&data_dir?.to_string_lossy()),
    })
}

fn read_callbacks(reader: &mut Reader<'_>) -> CallbacksConfig {
    let mut commands = BTreeMap::new();
    for event in ["on_start", "on_stop", "on_restart", "on_reload", "on_role_change"] {
        let key = format!("postgresql.callbacks.{event}");
        let words = read_command(reader, &key);
        if !words.is_empty() {
            commands.insert(event.to_owned(), words);
        }
    }
    CallbacksConfig {
        commands,
        pre_promote: read_command(reader, "postgresql.pre_promote"),
        before_stop: read_command(reader, "postgresql.before_stop"),
        timeout: reader.duration("postgresql.callback_timeout"),
    }
}

/// The words of a command; none if there is none, or if a problem was noted.
fn read_command(reader: &mut Reader<'_>, key: &str) -> Vec<String> {
    let Some(text) = reader.optional_text(key) else { return Vec::new() };
    match words(&text) {
        Some(words) if !words.is_empty() => words,
        Some(_) => {
            reader.problem(key, "is empty; name a command, or remove the key");
            Vec::new()
        }
        None => {
            reader.problem(key, "has a quotation mark that is not closed; close it, or remove it");
            Vec::new()
        }
    }
}

/// Keys of a method's section that are not given to its command.
const METHOD_KEYS: [&str; 6] =
    ["command", "no_params", "keep_data", "no_leader", "keep_existing_recovery_conf", "recovery_conf"];

fn read_copy_methods(reader: &mut Reader<'_>) -> Vec<Method> {
    let mut methods = Vec::new();
    for name in reader.optional_text_list("postgresql.create_replica_methods").unwrap_or_default() {
        if name == "basebackup" {
            methods.push(Method { name, ..Method::default() });
            continue;
        }
        let section = format!("postgresql.{name}");
        if let Some(method) = read_method(reader, &section, &name) {
            let fields = reader.value(&section).and_then(Value::as_object).cloned().unwrap_or_default();
            if is_on(fields.get("no_leader")) {
                reader
                    .warning(&format!("{section}.no_leader"), "has no effect: a copy is made while there is a leader");
            }
            if is_on(fields.get("keep_data")) {
                let why =
                    "has no effect: the copy is made in an empty place, and the old data directory is moved aside";
                reader.warning(&format!("{section}.keep_data"), why);
            }
            methods.push(method);
        }
    }
    methods
}

fn read_method(reader: &mut Reader<'_>, section: &str, name: &str) -> Option<Method> {
    let Some(Value::Object(fields)) = reader.value(section).cloned() else {
        reader.problem(section, format!("is missing; {name} needs a section of its own with a command"));
        return None;
    };
    let command = fields.get("command").and_then(Value::as_str).and_then(words).filter(|words| !words.is_empty());
    let Some(command) = command else {
        reader.problem(&format!("{section}.command"), "is missing or not to be read; write the command as in a shell");
        return None;
    };
    let parameters = fields.iter().filter(|(key, _)| !METHOD_KEYS.contains(&key.as_str()));
    Some(Method {
        name: name.to_owned(),
        command,
        parameters: parameters.map(|(key, value)| (key.clone(), as_text(value))).collect(),
        no_params: is_on(fields.get("no_params")),
    })
}

/// A value as the word that a command gets.
fn as_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Truth as Patroni's sections write it.
fn is_on(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Bool(on)) => *on,
        Some(Value::Number(number)) => number.as_i64() != Some(0),
        Some(Value::String(text)) => matches!(text.as_str(), "true" | "on" | "yes" | "1"),
        Some(_) | None => false,
    }
}

fn read_restore(reader: &mut Reader<'_>) -> Option<RestoreMethod> {
    let name = reader.text("bootstrap.method");
    if name == "initdb" {
        return None;
    }
    let section = format!("bootstrap.{name}");
    let method = read_method(reader, &section, &name)?;
    let fields = reader.value(&section).and_then(Value::as_object).cloned().unwrap_or_default();
    let recovery = fields.get("recovery_conf").and_then(Value::as_object).cloned().unwrap_or_default();
    Some(RestoreMethod {
        method,
        keep_recovery: is_on(fields.get("keep_existing_recovery_conf")),
        recovery: recovery.iter().map(|(key, value)| (key.clone(), as_text(value))).collect(),
    })
}

/// Options of a tool: words, and maps of option to value.
fn read_options(reader: &mut Reader<'_>, path: &str, value: Value) -> Vec<ToolOption> {
    let items = match value {
        Value::Array(items) => items,
        Value::Null => Vec::new(),
        other => vec![other],
    };
    let mut options = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        match item {
            Value::String(name) => options.push(ToolOption { name, value: None }),
            Value::Object(fields) if fields.values().all(|value| !value.is_object() && !value.is_array()) => {
                options
                    .extend(fields.into_iter().map(|(name, value)| ToolOption { name, value: Some(as_text(&value)) }));
            }
            _ => {
                reader.problem(&format!("{path}[{index}]"), "is neither a word nor `option: value`; write one of them")
            }
        }
    }
    options
}

/// The words of a command, quoted as in a shell; no variables, no wildcards. None if a quotation is not closed.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words: Vec<String> = Vec::new();
    let (mut open, mut quote) = (false, None);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        let begins = !open && (quote.is_some() || !letter.is_whitespace());
        if begins {
            words.push(String::new());
            open = true;
        }
        match (quote, letter) {
            (Some(mark), _) if letter == mark => quote = None,
            (None, '\'' | '"') => quote = Some(letter),
            (None, _) if letter.is_whitespace() => open = false,
            (None | Some('"'), '\\') => words.last_mut()?.push(letters.next()?),
            _ => words.last_mut()?.push(letter),
        }
    }
    quote.is_none().then_some(words)
}

/// A relative path counts from the directory that the program was started in.
pub(super) fn absolute(text: &str) -> PathBuf {
    std::path::absolute(text).unwrap_or_else(|_| PathBuf::from(text))
}

fn warn_relative(reader: &mut Reader<'_>, key: &str, text: &str) {
    if Path::new(text).is_relative() {
        let text = format!("{text} counts from the directory that howdah is started in; write it from / on");
        reader.warning(key, text);
    }
}

fn read_bootstrap(reader: &mut Reader<'_>) -> BootstrapConfig {
    let empty = json!({});
    let dcs = reader.value("bootstrap.dcs").unwrap_or(&empty);
    let mut shared = Reader::new(dcs, KeyTable(CLUSTER_KEYS), "bootstrap.dcs.");
    raw::recognise(&mut shared);
    let settings = ClusterSettings::read(&mut shared);
    reader.absorb(shared);
    let items = Value::Array(reader.list("bootstrap.initdb"));
    let initdb = read_options(reader, "bootstrap.initdb", items);
    for option in &initdb {
        if matches!(option.name.as_str(), "pgdata" | "nosync" | "no-sync" | "pwfile" | "sync-only" | "version") {
            reader.problem("bootstrap.initdb", format!("{} is set by howdah itself; remove it", option.name));
        }
    }
    let mut post_bootstrap = read_command(reader, "bootstrap.post_bootstrap");
    if post_bootstrap.is_empty() {
        post_bootstrap = read_command(reader, "bootstrap.post_init");
    }
    BootstrapConfig {
        dcs: dcs.clone(),
        settings,
        initdb,
        adopt: reader.flag("bootstrap.adopt"),
        method: read_restore(reader),
        post_bootstrap,
        pg_hba: reader.optional_text_list("bootstrap.pg_hba"),
    }
}

fn read_log(reader: &mut Reader<'_>) -> LogConfig {
    let level = match reader.word("log.level").as_str() {
        "debug" => "debug",
        "warn" | "warning" => "warn",
        "error" | "critical" => "error",
        _ => "info",
    };
    LogConfig { level, json: reader.word("log.type") == "json", static_fields: reader.text_map("log.static_fields") }
}

fn read_watchdog(reader: &mut Reader<'_>) -> WatchdogConfig {
    let mode = match reader.word("watchdog.mode").as_str() {
        "off" => WatchdogMode::Off,
        "required" => WatchdogMode::Required,
        _ => WatchdogMode::Automatic,
    };
    WatchdogConfig {
        mode,
        device: PathBuf::from(reader.text("watchdog.device")),
        testing: reader.word("watchdog.driver") == "testing",
        safety_margin: reader.duration("watchdog.safety_margin"),
    }
}

fn read_tags(reader: &mut Reader<'_>) -> Tags {
    let mut all = reader.map("tags");
    let flag = |reader: &mut Reader<'_>, name: &str| -> Option<bool> {
        match all.get(name)? {
            Value::Bool(on) => Some(*on),
            Value::String(text) if matches!(text.as_str(), "true" | "on" | "yes") => Some(true),
            Value::String(text) if matches!(text.as_str(), "false" | "off" | "no") => Some(false),
            Value::Null => None,
            other => {
                reader
                    .problem(&format!("tags.{name}"), format!("{other} is neither true nor false; write one of them"));
                None
            }
        }
    };
    let priority = |reader: &mut Reader<'_>, name: &str| -> Option<u32> {
        let value = all.get(name)?;
        let number = value.as_i64().and_then(|number| u32::try_from(number.max(0)).ok());
        if number.is_none() {
            reader.problem(&format!("tags.{name}"), format!("{value} is not a whole number; write 0 or more"));
        } else if value.as_i64().is_some_and(|number| number < 0) {
            reader.warning(&format!("tags.{name}"), format!("{value} counts as 0, which means never; write 0"));
        }
        number
    };
    let (nofailover, failover_priority) = (flag(reader, "nofailover"), priority(reader, "failover_priority"));
    let (nosync, sync_priority) = (flag(reader, "nosync"), priority(reader, "sync_priority"));
    let mut tags = Tags {
        nofailover: nofailover.unwrap_or(failover_priority == Some(0)),
        failover_priority: failover_priority.unwrap_or(1),
        nosync: nosync.unwrap_or(sync_priority == Some(0)),
        sync_priority: sync_priority.unwrap_or(1),
        noloadbalance: flag(reader, "noloadbalance").unwrap_or(false),
        clonefrom: flag(reader, "clonefrom").unwrap_or(false),
        nostream: flag(reader, "nostream").unwrap_or(false),
        replicatefrom: reader.optional("tags.replicatefrom"),
        all: BTreeMap::new(),
    };
    for (name, twin) in [
        ("nofailover", "failover_priority"),
        ("nosync", "sync_priority"),
        ("noloadbalance", ""),
        ("clonefrom", ""),
        ("nostream", ""),
    ] {
        let falsy = matches!(all.get(name), Some(Value::Bool(false) | Value::Null));
        if falsy && !all.contains_key(twin) {
            all.remove(name);
        }
    }
    tags.all = all;
    tags
}

#[cfg(test)]
mod tests;
