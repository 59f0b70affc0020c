//! What a server is like that somebody else runs here, and what would be different under howdah.
//!
//! ```text
//! running server -> facts (SQL, postmaster.pid) -> Preflight: facts, what is kept, problems, restarts, warnings
//! ```
//! Nothing is changed. Deliberately absent: taking the server over, which is the guardian's.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Instance;
use super::data_dir::running_postmaster;
use super::error::Error;
use super::session::{Purpose, TextRow};
use super::settings::{controlled_default, controlled_least};
use super::status::read_system_id;
use super::units::{Kind, parse_bool, parse_integer, same_value};
use crate::types::{PgVersion, SystemId};

/// How long the questions may take: sizes are counted file by file.
const LIMIT: Duration = Duration::from_secs(30);

/// So many senders a cluster needs: the other members, and one for a base backup.
const SENDERS: i64 = 3;

/// What was found, and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preflight {
    /// The postmaster.
    pub pid: u32,
    /// Which database.
    pub system_id: SystemId,
    /// `server_version_num`.
    pub version: u32,
    /// Whether it follows another server.
    pub standby: bool,
    /// The file that it was configured by.
    pub config_file: String,
    /// Whether pages carry checksums.
    pub checksums: bool,
    /// Whether `wal_log_hints` is on.
    pub wal_log_hints: bool,
    /// All databases.
    pub databases: Vec<DatabaseFacts>,
    /// Bytes of all databases.
    pub bytes: u64,
    /// Replication slots.
    pub slots: Vec<SlotFacts>,
    /// Who streams from it: names, or addresses where they give none.
    pub standbys: Vec<String>,
    /// Shared parameters that the server has and that become the cluster's.
    pub kept: BTreeMap<String, String>,
    /// Roles that are created or get the password of the node's file.
    pub roles: Vec<String>,
    /// What must be put right before.
    pub problems: Vec<String>,
    /// Why it must be restarted once; none: it goes on as it runs.
    pub restart: Vec<String>,
    /// What is good to know.
    pub warnings: Vec<String>,
}

/// A database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseFacts {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// `LC_COLLATE`.
    pub collate: String,
    /// The version of the collation that its indexes were made with, where PostgreSQL keeps it (15 and newer).
    pub collation_version: Option<String>,
    /// The version that this machine has.
    pub actual_version: Option<String>,
}

/// A replication slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotFacts {
    /// Its name.
    pub name: String,
    /// Logical, not physical.
    pub logical: bool,
    /// In use.
    pub active: bool,
}

/// The settings that matter, by name, with what is needed to compare them.
struct Running(BTreeMap<String, (String, String, String)>);

impl Running {
    fn read(rows: &[TextRow]) -> Self {
        let text = |row: &TextRow, column: &str| row.text(column).unwrap_or_default().to_owned();
        let entry = |row| (text(row, "name"), (text(row, "setting"), text(row, "unit"), text(row, "vartype")));
        Self(rows.iter().map(entry).collect())
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", |(setting, ..)| setting)
    }

    fn on(&self, name: &str) -> bool {
        parse_bool(self.text(name)) == Some(true)
    }

    fn number(&self, name: &str) -> i64 {
        parse_integer(self.text(name)).unwrap_or(0)
    }

    fn is(&self, name: &str, wanted: &str) -> bool {
        self.0.get(name).is_some_and(|(setting, unit, vartype)| same_value(Kind { vartype, unit }, setting, wanted))
    }
}

const QUESTIONS: &str = r"
SELECT name, setting, coalesce(unit, '') AS unit, vartype FROM pg_settings;
SELECT pg_is_in_recovery() AS standby, current_setting('server_version_num') AS version,
       (SELECT system_identifier FROM pg_control_system()) AS system_id;
SELECT d.datname AS name, pg_database_size(d.oid) AS bytes, d.datcollate AS collate,
       to_jsonb(d)->>'datcollversion' AS collation_version, d.oid AS oid
  FROM pg_database d WHERE d.datallowconn ORDER BY d.datname LIMIT 1000;
SELECT slot_name, slot_type, active FROM pg_replication_slots WHERE NOT temporary ORDER BY slot_name LIMIT 1000;
SELECT DISTINCT coalesce(nullif(application_name, ''), host(client_addr), 'over a socket') AS name
  FROM pg_stat_replication WHERE state <> 'backup' ORDER BY 1 LIMIT 1000;
SELECT rolname AS name FROM pg_roles;
SELECT line_number, type, array_to_string(database, ',') AS database, array_to_string(user_name, ',') AS users,
       auth_method, error FROM pg_hba_file_rules ORDER BY line_number LIMIT 10000;
";

impl Instance {
    /// Looks at the server that runs here. Changes nothing.
    ///
    /// # Errors
    /// `DataDirState` when none runs; `Sql` when it does not let us in.
    pub async fn preflight(&self) -> Result<Preflight, Error> {
        let Some(pid) = running_postmaster(&self.config.data_dir)? else {
            let state = self.inspect().await;
            return Err(self.not_usable("look at the running server", &state));
        };
        let fail = |source| Error::Sql { operation: "look at the running server", source };
        let session = self.open(Purpose::local(LIMIT)).await.map_err(fail)?;
        let results = session.run(QUESTIONS, LIMIT).await.map_err(fail)?;
        let [settings, server, databases, slots, standbys, roles, hba] = results.as_slice() else {
            let why = format!("{} result sets instead of 7", results.len());
            return Err(fail(super::error::StatusError::Answer { why }));
        };
        let running = Running::read(settings);
        let standby = server.first().is_some_and(|row| row.flag("standby"));
        let version: u32 = server.first().and_then(|row| row.parse("version").ok().flatten()).unwrap_or(0);
        let system_id = server.first().map_or(Ok(SystemId(0)), read_system_id).map_err(fail)?;
        let mut databases: Vec<DatabaseFacts> = databases.iter().map(read_database).collect();
        if 150_000 <= version {
            let actual = "SELECT datname AS name, pg_database_collation_actual_version(oid) AS actual FROM pg_database";
            let rows = session.run(actual, LIMIT).await.map_err(fail)?;
            for row in rows.iter().flatten() {
                let found = databases.iter_mut().find(|database| Some(database.name.as_str()) == row.text("name"));
                if let Some(database) = found {
                    database.actual_version = row.text("actual").map(str::to_owned);
                }
            }
        }
        let mut report = Preflight {
            pid,
            system_id,
            version,
            standby,
            config_file: running.text("config_file").to_owned(),
            checksums: running.on("data_checksums"),
            wal_log_hints: running.on("wal_log_hints"),
            bytes: databases.iter().map(|database| database.bytes).sum(),
            databases,
            slots: slots.iter().map(read_slot).collect(),
            standbys: standbys.iter().filter_map(|row| row.text("name").map(str::to_owned)).collect(),
            kept: if standby { BTreeMap::new() } else { kept(&running) },
            roles: Vec::new(),
            problems: Vec::new(),
            restart: Vec::new(),
            warnings: Vec::new(),
        };
        self.judge(&mut report, &running);
        self.judge_roles(&mut report, roles);
        judge_access(&mut report, hba);
        judge_collations(&mut report);
        Ok(report)
    }

    fn judge(&self, report: &mut Preflight, running: &Running) {
        let programs = self.binaries.version();
        if PgVersion(report.version).major() != programs.major() {
            report.problems.push(format!(
                "the server is version {}, and the programs in {} are {}; set postgresql.bin_dir",
                PgVersion(report.version).major(),
                self.binaries.dir().display(),
                programs.major()
            ));
        }
        let port = self.config.port.to_string();
        if !running.is("port", &port) {
            let port_now = running.text("port");
            report
                .problems
                .push(format!("the server is on port {port_now}, and postgresql.listen says {port}; correct it"));
        }
        let inside = self.config.data_dir.join("postgresql.conf");
        let configured =
            self.config.base_conf.as_deref().is_some_and(|file| file.to_string_lossy() == report.config_file);
        let here = inside.canonicalize().ok() == std::path::Path::new(&report.config_file).canonicalize().ok();
        if !here && !configured {
            report.problems.push(format!(
                "the server is configured by {}, which would no longer be read; set postgresql.custom_conf to it",
                report.config_file
            ));
        }
        if !report.checksums && !report.wal_log_hints {
            report.warnings.push(
                "without checksums and wal_log_hints it cannot be rewound, and would be copied anew after a failover; \
                 wal_log_hints comes on with the next restart"
                    .to_owned(),
            );
        }
        let must: [(bool, String); 5] = [
            (running.is("wal_level", "minimal"), "wal_level is minimal: nobody can follow it".to_owned()),
            (
                running.number("max_wal_senders") < SENDERS,
                format!("max_wal_senders is {}, and at least {SENDERS} are needed", running.text("max_wal_senders")),
            ),
            (
                running.number("max_replication_slots") < 1,
                "max_replication_slots is 0, and each member needs one".to_owned(),
            ),
            (report.standby && !running.on("hot_standby"), "hot_standby is off: it cannot be asked".to_owned()),
            (
                !listens_to_others(running.text("listen_addresses"), &self.config.connect_address.0),
                format!(
                    "it listens on {:?} alone, where {} does not lead",
                    running.text("listen_addresses"),
                    self.config.connect_address.0
                ),
            ),
        ];
        report.restart.extend(must.into_iter().filter(|(must, _)| *must).map(|(_, why)| why));
        if let Some(unit) = systemd_unit(report.pid) {
            report.warnings.push(format!(
                "systemd's {unit} started it, and would start it again beside howdah: systemctl disable {unit}"
            ));
        }
    }

    fn judge_roles(&self, report: &mut Preflight, roles: &[TextRow]) {
        let Some(credentials) = self.credentials() else {
            report.problems.push("the passwords in postgresql.authentication are not complete; add them".to_owned());
            return;
        };
        // A standby has its primary's.
        for login in credentials.all().into_iter().filter(|_| !report.standby) {
            let name = &login.username;
            let exists = roles.iter().any(|row| row.text("name") == Some(name.as_str()));
            let what = if exists { "gets the password of the node's file" } else { "new" };
            report.roles.push(format!("{name} ({what})"));
        }
        report.roles.dedup();
    }
}

fn read_database(row: &TextRow) -> DatabaseFacts {
    DatabaseFacts {
        name: row.text("name").unwrap_or_default().to_owned(),
        bytes: row.parse("bytes").ok().flatten().unwrap_or(0),
        collate: row.text("collate").unwrap_or_default().to_owned(),
        collation_version: row.text("collation_version").map(str::to_owned),
        actual_version: None,
    }
}

fn read_slot(row: &TextRow) -> SlotFacts {
    SlotFacts {
        name: row.text("slot_name").unwrap_or_default().to_owned(),
        logical: row.text("slot_type") == Some("logical"),
        active: row.flag("active"),
    }
}

/// The shared parameters in which the server differs from what it would get, and which are good enough to be kept.
fn kept(running: &Running) -> BTreeMap<String, String> {
    let mut kept = BTreeMap::new();
    for (name, (value, ..)) in &running.0 {
        let Some(default) = controlled_default(name) else { continue };
        let enough = controlled_least(name).is_none_or(|least| parse_integer(value).is_some_and(|now| least <= now));
        let usable = enough && !(name == "wal_level" && value == "minimal") && name != "wal_log_hints";
        if usable && !running.is(name, default) {
            kept.insert(name.clone(), value.clone());
        }
    }
    kept
}

/// Whether `listen_addresses` leaves a way in for other nodes that connect to `host`.
fn listens_to_others(addresses: &str, host: &str) -> bool {
    let mut hosts = addresses.split(',').map(str::trim);
    hosts.any(|address| ["*", "0.0.0.0", "::"].contains(&address) || address == host)
        || (["127.0.0.1", "::1"].contains(&host) && addresses.split(',').any(|address| address.trim() == "localhost"))
}

/// Errors in the access list, and whether it lets anybody replicate over the network.
fn judge_access(report: &mut Preflight, rules: &[TextRow]) {
    for row in rules {
        if let (Some(line), Some(error)) = (row.text("line_number"), row.text("error")) {
            report
                .problems
                .push(format!("line {line} of pg_hba.conf is wrong, and would keep it from starting: {error}"));
        }
    }
    let lets_in = |row: &&TextRow| {
        row.text("type").is_some_and(|kind| kind.starts_with("host"))
            && row.text("auth_method").is_some_and(|method| method != "reject")
            && row.text("database").is_some_and(|list| list.split(',').any(|name| name == "replication"))
    };
    if rules.iter().find(lets_in).is_none() {
        report.warnings.push(
            "pg_hba.conf lets nobody replicate over the network: add a line `host replication ROLE ADDRESS scram-sha-256`, \
             or set postgresql.pg_hba"
                .to_owned(),
        );
    }
}

fn judge_collations(report: &mut Preflight) {
    for database in &report.databases {
        if let (Some(made), Some(actual)) = (&database.collation_version, &database.actual_version)
            && made != actual
        {
            report.warnings.push(format!(
                "database {}: its indexes were made with collation version {made}, and this machine has {actual}; reindex it",
                database.name
            ));
        }
    }
}

/// The service that a process belongs to, if systemd started it as one and it is not ours.
fn systemd_unit(pid: u32) -> Option<String> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let unit = groups.lines().filter_map(|line| line.rsplit('/').next()).find(|name| name.ends_with(".service"))?;
    (unit.contains("postgres")).then(|| unit.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_can_reach_it() {
        assert!(listens_to_others("*", "10.0.0.1"));
        assert!(listens_to_others("localhost, 10.0.0.1", "10.0.0.1"));
        assert!(listens_to_others("localhost", "127.0.0.1"));
        assert!(!listens_to_others("localhost", "10.0.0.1"));
        assert!(!listens_to_others("", "10.0.0.1"));
    }
}
