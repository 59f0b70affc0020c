//! Which parameters this server should have, and from whom each one comes.
//!
//! our defaults <- dynamic configuration (the record) <- local configuration; then the controlled ones, which only
//! the record may set, and the ones that follow from this node's place and task. Pure; writing is `conf.rs`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::control_data::StandbyFloors;
use super::units::parse_integer;
use crate::types::pg::STANDBY_FLOORS;

/// Shared-memory and identity parameters: must be the same everywhere, so the local file cannot set them.
/// (name, default, least value; none = not a number)
///
/// Source: reference of Patroni's configuration, "PostgreSQL parameters controlled by Patroni".
const CONTROLLED: [(&str, &str, Option<i64>); 9] = [
    ("max_connections", "100", Some(25)),
    ("max_locks_per_transaction", "64", Some(32)),
    ("max_prepared_transactions", "0", Some(0)),
    ("max_replication_slots", "10", Some(4)),
    ("max_wal_senders", "10", Some(3)),
    ("max_worker_processes", "8", Some(2)),
    ("track_commit_timestamp", "off", None),
    ("wal_level", "replica", None),
    ("wal_log_hints", "on", None),
];

/// What a server of ours has unless someone says otherwise: even the operator's base file wins over these.
///
/// `wal_retrieve_retry_interval`: a promotion right after the primary's death may sleep for this long, so the
/// default of 5 s is no choice. The timeouts end half-open replication connections in seconds.
const DEFAULTS: [(&str, &str); 12] = [
    ("log_line_prefix", "%m [%p] %q%u@%d "),
    ("log_destination", "stderr"),
    ("logging_collector", "off"),
    ("password_encryption", "scram-sha-256"),
    ("tcp_keepalives_count", "3"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("wal_keep_size", "128MB"),
    ("wal_receiver_status_interval", "1s"),
    ("wal_receiver_timeout", "10s"),
    ("wal_retrieve_retry_interval", "100ms"),
    ("wal_sender_timeout", "5s"),
];

/// Set by howdah alone: the node's identity, the files, and who is followed.
const MANAGED: [&str; 23] = [
    "cluster_name",
    "config_file",
    "data_directory",
    "external_pid_file",
    "hba_file",
    "hot_standby",
    "ident_file",
    "include",
    "include_dir",
    "include_if_exists",
    "listen_addresses",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
];

/// Something that was asked for and is not done, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedSetting {
    /// Parameter name.
    pub name: String,
    /// The value that was asked for.
    pub value: String,
    /// Why it is not used, and what is used instead.
    pub why: String,
}

impl fmt::Display for RefusedSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, value, why } = self;
        write!(f, "{name} = {value:?}: {why}")
    }
}

/// Everything that the wanted parameters are made from.
#[derive(Debug, Clone)]
pub(super) struct Inputs<'a> {
    /// Shared parameters from the record.
    pub dynamic: &'a BTreeMap<String, String>,
    /// Parameters of the node's own file.
    pub local: &'a BTreeMap<String, String>,
    /// `listen_addresses`.
    pub listen: &'a str,
    /// `port`.
    pub port: u16,
    /// `cluster_name`.
    pub cluster_name: &'a str,
    /// Our socket directory; none when sockets are off.
    pub socket_dir: Option<&'a str>,
    /// What the server may not go below while it is a standby.
    pub floors: Option<StandbyFloors>,
    /// Text for `synchronous_standby_names`; none leaves it to the user's own parameter.
    pub synchronous_standby_names: Option<&'a str>,
}

/// The wanted parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Go on the command line too, so that neither `ALTER SYSTEM` nor the base file can change them.
    pub forced: BTreeMap<String, String>,
    /// Go into the file before the base file.
    pub defaults: BTreeMap<String, String>,
    /// Go into the file after the base file.
    pub file: BTreeMap<String, String>,
    /// Asked for and not done.
    pub refused: Vec<RefusedSetting>,
    /// Something is higher than asked for, because a standby needs it as long as its primary has it.
    pub raised: bool,
}

/// Works out the wanted parameters.
pub(super) fn wanted(inputs: &Inputs<'_>) -> Wanted {
    let mut result = Wanted::default();
    for (name, value) in DEFAULTS {
        result.defaults.insert(name.to_owned(), value.to_owned());
    }
    for (source, parameters) in [(Source::Dynamic, inputs.dynamic), (Source::Local, inputs.local)] {
        for (name, value) in parameters {
            result.take(source, name, value, inputs);
        }
    }
    for (name, default, _) in CONTROLLED {
        result.forced.entry(name.to_owned()).or_insert_with(|| default.to_owned());
    }
    if let Some(floors) = inputs.floors {
        result.raise_to(floors);
    }
    result.forced.insert("hot_standby".to_owned(), "on".to_owned());
    result.forced.insert("listen_addresses".to_owned(), inputs.listen.to_owned());
    result.forced.insert("port".to_owned(), inputs.port.to_string());
    result.forced.insert("cluster_name".to_owned(), inputs.cluster_name.to_owned());
    let theirs = result.file.remove("unix_socket_directories");
    let sockets = match (inputs.socket_dir, theirs) {
        (Some(ours), Some(theirs)) if !theirs.trim().is_empty() => format!("{},{theirs}", quote_directory(ours)),
        (Some(ours), _) => quote_directory(ours),
        (None, theirs) => theirs.unwrap_or_default(),
    };
    result.forced.insert("unix_socket_directories".to_owned(), sockets);
    if let Some(names) = inputs.synchronous_standby_names {
        result.file.insert("synchronous_standby_names".to_owned(), names.to_owned());
    }
    result
}

/// The default of a shared parameter; none if this is none.
pub(super) fn controlled_default(name: &str) -> Option<&'static str> {
    CONTROLLED.iter().find(|(controlled, ..)| *controlled == name).map(|(_, default, _)| *default)
}

/// The least value of a shared parameter that is a number.
pub(super) fn controlled_least(name: &str) -> Option<i64> {
    CONTROLLED.iter().find(|(controlled, ..)| *controlled == name).and_then(|(.., least)| *least)
}

/// Whether only howdah may set this parameter; `ALTER SYSTEM` may not either.
pub(super) fn is_managed(name: &str) -> bool {
    MANAGED.contains(&name)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Dynamic,
    Local,
}

impl Wanted {
    fn take(&mut self, source: Source, name: &str, value: &str, inputs: &Inputs<'_>) {
        let name = name.trim().to_ascii_lowercase();
        let mut refuse = |why: String| {
            self.refused.push(RefusedSetting { name: name.clone(), value: value.to_owned(), why });
        };
        if !is_parameter_name(&name) {
            return refuse("this is not a parameter name".to_owned());
        }
        if value.contains('\0') {
            return refuse("the value contains a zero byte".to_owned());
        }
        if name == "wal_keep_segments" {
            return refuse("PostgreSQL 13 replaced it by wal_keep_size".to_owned());
        }
        if is_managed(&name) {
            return refuse("howdah sets this itself".to_owned());
        }
        if name == "synchronous_standby_names" && inputs.synchronous_standby_names.is_some() {
            return refuse("synchronous_mode is on, so howdah sets this itself".to_owned());
        }
        let Some(&(_, default, least)) = CONTROLLED.iter().find(|(controlled, ..)| *controlled == name) else {
            self.file.insert(name, value.to_owned());
            return;
        };
        if source == Source::Local {
            return refuse("it must be the same on all nodes; set it with edit-config".to_owned());
        }
        if let Some(why) = refuse_controlled(&name, value, least) {
            return refuse(format!("{why}; {default} is used"));
        }
        let value = if name == "wal_level" { value.to_ascii_lowercase() } else { value.to_owned() };
        self.forced.insert(name, value);
    }

    /// Raises what a standby needs: with less it would refuse to start.
    fn raise_to(&mut self, floors: StandbyFloors) {
        let StandbyFloors {
            max_connections,
            max_worker_processes,
            max_wal_senders,
            max_prepared_transactions,
            max_locks_per_transaction,
        } = floors;
        let floors = [
            max_connections,
            max_worker_processes,
            max_wal_senders,
            max_prepared_transactions,
            max_locks_per_transaction,
        ];
        for (name, floor) in STANDBY_FLOORS.into_iter().zip(floors) {
            let wanted = self.forced.get(name).and_then(|v| parse_integer(v)).unwrap_or(0);
            if wanted < i64::from(floor) {
                self.forced.insert(name.to_owned(), floor.to_string());
                self.raised = true;
            }
        }
    }
}

fn refuse_controlled(name: &str, value: &str, least: Option<i64>) -> Option<String> {
    match (name, least) {
        ("wal_level", _) => {
            let known = ["replica", "logical"].contains(&value.to_ascii_lowercase().as_str());
            (!known).then(|| "replication needs replica or logical".to_owned())
        }
        (_, Some(least)) => match parse_integer(value) {
            Some(number) if least <= number => None,
            Some(_) => Some(format!("less than {least} cannot work")),
            None => Some("this is not a whole number".to_owned()),
        },
        (_, None) => super::units::parse_bool(value).is_none().then(|| "this is neither on nor off".to_owned()),
    }
}

/// Whether a name may be written into a configuration file at all.
///
/// Source: PostgreSQL `guc-file.l`, ID and QUALIFIED_ID.
fn is_parameter_name(name: &str) -> bool {
    let part = |p: &str| {
        p.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && p.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'$')
    };
    let mut parts = name.split('.');
    parts.clone().count() <= 2 && parts.all(part)
}

/// A directory inside a comma-separated list.
///
/// Source: PostgreSQL `SplitDirectoriesString`.
fn quote_directory(dir: &str) -> String {
    if dir.contains([',', '"', ' ']) { format!("\"{}\"", dir.replace('"', "\"\"")) } else { dir.to_owned() }
}

/// The directories of such a list; what is no path from the root (an abstract socket has no lock file) is left out.
///
/// Source: PostgreSQL `SplitDirectoriesString`.
pub(super) fn split_directories(list: &str) -> Vec<String> {
    let mut directories = Vec::new();
    let mut rest = list.trim();
    while !rest.is_empty() {
        let (directory, after) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let mut end = 0;
                while let Some(at) = quoted[end..].find('"') {
                    end += at;
                    if !quoted[end + 1..].starts_with('"') {
                        break;
                    }
                    end += 2;
                }
                (quoted[..end].replace("\"\"", "\""), quoted.get(end + 1..).unwrap_or_default())
            }
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                (rest[..end].trim().to_owned(), &rest[end..])
            }
        };
        if directory.starts_with('/') {
            directories.push(directory);
        }
        rest = after.trim_start().trim_start_matches(',').trim_start();
    }
    directories
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn inputs<'a>(dynamic: &'a BTreeMap<String, String>, local: &'a BTreeMap<String, String>) -> Inputs<'a> {
        Inputs {
            dynamic,
            local,
            listen: "127.0.0.1",
            port: 5432,
            cluster_name: "demo",
            socket_dir: Some("/run/howdah"),
            floors: None,
            synchronous_standby_names: None,
        }
    }

    #[test]
    fn layers_override_each_other_but_not_the_controlled() {
        let dynamic = map(&[("max_connections", "200"), ("work_mem", "8MB"), ("Wal_Level", "LOGICAL")]);
        let local = map(&[("work_mem", "16MB"), ("max_connections", "300"), ("unix_socket_directories", "/tmp")]);
        let wanted = wanted(&inputs(&dynamic, &local));
        assert_eq!(wanted.forced["max_connections"], "200");
        assert_eq!(wanted.forced["wal_level"], "logical");
        assert_eq!(wanted.forced["wal_log_hints"], "on");
        assert_eq!(wanted.forced["unix_socket_directories"], "/run/howdah,/tmp");
        assert_eq!(wanted.file["work_mem"], "16MB");
        assert_eq!(wanted.defaults["wal_retrieve_retry_interval"], "100ms");
        assert_eq!(wanted.refused.len(), 1);
        assert_eq!(wanted.refused[0].name, "max_connections");
    }

    #[test]
    fn nonsense_is_refused_by_name_and_the_default_is_used() {
        let dynamic = map(&[
            ("max_wal_senders", "1"),
            ("max_worker_processes", "many"),
            ("wal_level", "minimal"),
            ("wal_log_hints", "perhaps"),
            ("port", "1"),
            ("a b", "1"),
            ("primary_conninfo", "host=evil"),
        ]);
        let wanted = wanted(&inputs(&dynamic, &BTreeMap::new()));
        let refused: Vec<&str> = wanted.refused.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(
            refused,
            [
                "a b",
                "max_wal_senders",
                "max_worker_processes",
                "port",
                "primary_conninfo",
                "wal_level",
                "wal_log_hints"
            ]
        );
        assert_eq!(wanted.forced["max_wal_senders"], "10");
        assert_eq!(wanted.forced["wal_level"], "replica");
        assert_eq!(wanted.forced["port"], "5432");
    }

    #[test]
    fn a_standby_is_never_below_its_primary() {
        let dynamic = map(&[("max_connections", "50"), ("max_wal_senders", "20")]);
        let local = BTreeMap::new();
        let floors = StandbyFloors {
            max_connections: 100,
            max_worker_processes: 8,
            max_wal_senders: 10,
            max_prepared_transactions: 7,
            max_locks_per_transaction: 64,
        };
        let wanted = wanted(&Inputs { floors: Some(floors), ..inputs(&dynamic, &local) });
        assert_eq!(wanted.forced["max_connections"], "100");
        assert_eq!(wanted.forced["max_wal_senders"], "20");
        assert_eq!(wanted.forced["max_prepared_transactions"], "7");
    }

    #[test]
    fn synchronous_names_have_one_owner() {
        let dynamic = map(&[("synchronous_standby_names", "*")]);
        let local = BTreeMap::new();
        assert_eq!(wanted(&inputs(&dynamic, &local)).file["synchronous_standby_names"], "*");
        let managed = wanted(&Inputs { synchronous_standby_names: Some("ANY 1 (\"b\")"), ..inputs(&dynamic, &local) });
        assert_eq!(managed.file["synchronous_standby_names"], "ANY 1 (\"b\")");
        assert_eq!(managed.refused.len(), 1);
    }

    #[test]
    fn directories_come_out_of_a_list_as_they_went_in() {
        for odd in ["/run/a", "/run/a b", "/run/a,b", "/run/\"a\"", "/run/\""] {
            let list = format!("/tmp, {},@abstract,/var/run", quote_directory(odd));
            assert_eq!(split_directories(&list), ["/tmp", odd, "/var/run"], "{list}");
        }
        assert!(split_directories("").is_empty());
        assert_eq!(split_directories("\"/unfinished"), [""; 0]);
    }

    #[test]
    fn odd_socket_directories_are_quoted() {
        assert_eq!(quote_directory("/run/a"), "/run/a");
        assert_eq!(quote_directory("/run/a, b\"c"), "\"/run/a, b\"\"c\"");
    }
}
