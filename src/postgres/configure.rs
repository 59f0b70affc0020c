//! Brings the server's files to what is wanted, and says what the running server must do about it.
//!
//! wanted parameters -> text -> PostgreSQL's own check -> write if different -> nothing | reload | restart.
//! A parameter that PostgreSQL refuses is left out and reported by name: one bad value must not keep a node from
//! following its primary. The operator's files are renamed once, never overwritten.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Instance;
use super::conf::{self, Conf};
use super::conninfo::{Conninfo, Upstream};
use super::credentials::{Credentials, password_file};
use super::data_dir::{DataDir, running_postmaster};
use super::error::Error;
use super::files::{
    compact_utc, ensure_dir, read_text_optional, remove_durably, rename_durably, with_suffix, write_atomic,
    write_if_different,
};
use super::hba;
use super::process::{QUICK, Tool};
use super::settings::{self, Inputs, RefusedSetting, Wanted};
use super::status::PendingRestart;
use crate::telemetry::clock;

/// The operator's own file after we took the name.
const BASE_CONF: &str = "postgresql.base.conf";

/// How many parameters PostgreSQL may refuse one after the other before we give up.
const MOST_ROUNDS: usize = 20;

/// What may be set for standbys beside whom they follow.
const RECOVERY: [&str; 4] =
    ["restore_command", "archive_cleanup_command", "recovery_end_command", "recovery_min_apply_delay"];

/// How far a backup that a cluster begins with is recovered. Source: PostgreSQL documentation, "Recovery Target".
const TARGETS: [&str; 8] = [
    "recovery_target",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
    "recovery_target_lsn",
    "recovery_target_inclusive",
    "recovery_target_timeline",
    "recovery_target_action",
];

/// From whom this server receives WAL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Follow {
    /// From nobody.
    Nothing,
    /// From this server.
    Upstream(Upstream),
}

/// What the record and the decision ask of the local server.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// Shared parameters (`postgresql.parameters` of the dynamic configuration), values as text.
    pub parameters: BTreeMap<String, String>,
    /// Shared lines of `pg_hba.conf`.
    pub pg_hba: Option<Vec<String>>,
    /// Shared lines of `pg_ident.conf`.
    pub pg_ident: Option<Vec<String>>,
    /// Hosts of all members, for the default `pg_hba.conf`; empty lets members in from anywhere.
    pub member_hosts: BTreeSet<String>,
    /// Text for `synchronous_standby_names`; none leaves it to the user's own parameter.
    pub synchronous_standby_names: Option<String>,
    /// From whom to receive.
    pub follow: Follow,
    /// `restore_command`, `archive_cleanup_command`, `recovery_end_command`, `recovery_min_apply_delay`.
    pub recovery: BTreeMap<String, String>,
    /// The cluster's logins.
    pub credentials: Credentials,
}

/// What the running server must do to have what is in its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Needs {
    /// Nothing (or no server runs).
    Nothing,
    /// [`Instance::reload`].
    Reload,
    /// A restart; a reload is useful before it.
    Restart,
}

/// What [`Instance::configure`] did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigureOutcome {
    /// Names of the files that were written.
    pub changed: Vec<String>,
    /// What the running server must do.
    pub needs: Needs,
    /// The running server has not read the files as they are now; also true beside a needed restart.
    pub reload: bool,
    /// Why a restart is needed.
    pub pending_restart: Vec<PendingRestart>,
    /// Parameters that were asked for and are not used, each with the reason.
    pub refused: Vec<RefusedSetting>,
    /// A parameter is higher than asked for, because this standby's primary still has the higher value; once the primary
    /// has been restarted and that was replayed here, the same call leads to what was asked for.
    pub raised: bool,
    /// Parameters that were removed from `postgresql.auto.conf`, where they would have overridden ours.
    pub removed_from_auto_conf: Vec<String>,
    /// `pg_hba.conf` belongs to the operator and no list was given: it was left alone.
    pub foreign_hba: bool,
}

impl Instance {
    /// Writes the configuration files, each only if it differs, and compares with the running server.
    ///
    /// # Errors
    /// `DataDirState` without a usable data directory; `SettingsRefused` when PostgreSQL refuses more than single
    /// parameters of ours (then nothing was changed); file errors.
    pub async fn configure(&self, wanted: &ServerSettings) -> Result<ConfigureOutcome, Error> {
        self.set_credentials(&wanted.credentials);
        let dir = &self.config.data_dir;
        let state = self.inspect().await;
        let Some(control) = state.control() else { return Err(self.not_usable("configure", &state)) };
        let stays_standby = matches!(wanted.follow, Follow::Upstream(_)) || dir.join("standby.signal").exists();
        let local = self.local();
        let socket_dir = self.socket_dir().map(|d| d.to_string_lossy().into_owned());
        let mut parameters = settings::wanted(&Inputs {
            dynamic: &wanted.parameters,
            local: &local.parameters,
            listen: &self.config.listen,
            port: self.config.port,
            cluster_name: self.config.cluster.as_str(),
            socket_dir: socket_dir.as_deref(),
            floors: stays_standby.then_some(control.floors),
            synchronous_standby_names: wanted.synchronous_standby_names.as_deref(),
        });
        if cfg!(target_os = "linux") && 14 <= self.binaries.version().major() {
            // After a crash PostgreSQL syncs every file of the directory before it recovers; one call for the file
            // system does the same in a fraction of the time that clients wait.
            let name = "recovery_init_sync_method".to_owned();
            parameters.defaults.entry(name).or_insert_with(|| "syncfs".to_owned());
        }
        for (name, value) in &wanted.recovery {
            if !RECOVERY.contains(&name.as_str()) {
                let why = format!("only {} can be set for standbys", RECOVERY.join(", "));
                parameters.refused.push(RefusedSetting { name: name.clone(), value: value.clone(), why });
            }
        }
        self.prepare_places(&wanted.credentials)?;
        let mut changed = Vec::new();
        self.write_conf(wanted, &mut parameters, &mut changed).await?;
        let foreign_hba = self.write_access_files(wanted, &mut changed)?;
        let removed_from_auto_conf = self.clean_auto_conf(&parameters, wanted, &mut changed)?;
        *self.controlled.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = parameters.forced.clone();
        let (reload, pending_restart) = self.compare_with_running(!changed.is_empty()).await?;
        let needs = match (pending_restart.is_empty(), reload) {
            (false, _) => Needs::Restart,
            (true, true) => Needs::Reload,
            (true, false) => Needs::Nothing,
        };
        let Wanted { refused, raised, .. } = parameters;
        Ok(ConfigureOutcome {
            changed,
            needs,
            reload,
            pending_restart,
            refused,
            raised,
            removed_from_auto_conf,
            foreign_hba,
        })
    }

    /// Which of `parameters`, if they were the shared ones, PostgreSQL or howdah would refuse here. Changes nothing.
    ///
    /// # Errors
    /// As [`Instance::configure`].
    pub async fn refused(&self, parameters: &BTreeMap<String, String>) -> Result<Vec<RefusedSetting>, Error> {
        let (none, state) = (BTreeMap::new(), self.inspect().await);
        if state.control().is_none() {
            return Err(self.not_usable("check parameters", &state));
        }
        let mut wanted = settings::wanted(&Inputs {
            dynamic: parameters,
            local: &none,
            listen: &self.config.listen,
            port: self.config.port,
            cluster_name: self.config.cluster.as_str(),
            socket_dir: None,
            floors: None,
            synchronous_standby_names: None,
        });
        wanted.defaults.clear();
        for _ in 0..MOST_ROUNDS {
            let text = render(None, &wanted, &BTreeMap::new());
            let Some(found) = self.check_conf(&text, "postgresql.conf.howdah-try", &wanted).await? else { break };
            leave_out(&mut wanted, found);
        }
        Ok(wanted.refused)
    }

    pub(super) fn not_usable(&self, operation: &'static str, state: &DataDir) -> Error {
        Error::DataDirState { operation, path: self.config.data_dir.clone(), state: state.in_words() }
    }

    /// Run directory, password file and log file, all owned by the server's user.
    pub(super) fn prepare_places(&self, credentials: &Credentials) -> Result<(), Error> {
        ensure_dir(&self.config.run_dir, 0o755, &self.user)?;
        write_if_different(&self.password_file(), password_file(credentials).as_bytes(), 0o600, &self.user)?;
        if let Some(parent) = self.config.log_file.parent() {
            ensure_dir(parent, 0o755, &self.user)?;
        }
        if !self.config.log_file.exists() {
            write_atomic(&self.config.log_file, b"", 0o640, &self.user)?;
        }
        Ok(())
    }

    async fn write_conf(
        &self,
        wanted: &ServerSettings,
        parameters: &mut Wanted,
        changed: &mut Vec<String>,
    ) -> Result<(), Error> {
        let path = self.config.data_dir.join("postgresql.conf");
        let managed = self.managed(wanted)?;
        let base = self.find_base(&path)?;
        let mut text = render(base.as_ref(), parameters, &managed);
        let current = read_text_optional(&path)?;
        // A file that PostgreSQL has refused in part before is not asked about again.
        let known = self.refused.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if let Some((_, refused)) = known.filter(|(asked, _)| *asked == text) {
            leave_out(parameters, refused);
            text = render(base.as_ref(), parameters, &managed);
        }
        if current.as_deref() == Some(text.as_str()) {
            return Ok(());
        }
        let asked = text.clone();
        let mut refused = Vec::new();
        // Whom to follow and whom commits wait for is said in words that we have made, in the midst of a failover: what
        // PostgreSQL has taken otherwise need not be asked about again.
        let names_are_ours = wanted.synchronous_standby_names.is_some();
        let known_good = current.as_deref().is_some_and(|current| differs_in_our_words(current, &text, names_are_ours));
        for _ in 0..if known_good { 0 } else { MOST_ROUNDS } {
            let Some(found) = self.check_conf(&text, "postgresql.conf.howdah-check", parameters).await? else { break };
            leave_out(parameters, found.clone());
            refused.extend(found);
            text = render(base.as_ref(), parameters, &managed);
        }
        if !refused.is_empty() {
            let mut known = self.refused.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *known = Some((asked, refused));
        }
        if base.as_ref().is_some_and(|b| b.must_rename) {
            rename_durably(&path, &self.config.data_dir.join(BASE_CONF))?;
        } else if current.as_ref().is_some_and(|c| !conf::is_generated(c)) {
            // Someone put a new file there; ours wins, theirs is kept.
            rename_durably(&path, &with_suffix(&path, &format!(".replaced-{}", compact_utc(clock::wall()))))?;
        }
        if write_if_different(&path, text.as_bytes(), 0o600, &self.user)? {
            changed.push("postgresql.conf".to_owned());
        }
        Ok(())
    }

    /// Parameters that say whom to follow and where files are; each is always written, so that nothing else decides.
    fn managed(&self, wanted: &ServerSettings) -> Result<BTreeMap<&'static str, String>, Error> {
        let local = self.local();
        let mut managed = BTreeMap::from([("recovery_target_timeline", "latest".to_owned())]);
        let (conninfo, slot) = match &wanted.follow {
            Follow::Nothing => (String::new(), String::new()),
            Follow::Upstream(upstream) => {
                let login = &wanted.credentials.replication;
                let conninfo = Conninfo::to(upstream, login, &self.password_file())?
                    .with("application_name", self.config.name.as_str())
                    .text();
                (conninfo, upstream.slot.clone().unwrap_or_default())
            }
        };
        managed.insert("primary_conninfo", conninfo);
        managed.insert("primary_slot_name", slot);
        for name in RECOVERY {
            if let Some(value) = local.recovery.get(name).or_else(|| wanted.recovery.get(name)) {
                managed.insert(name, value.clone());
            }
        }
        if let Some(restore) = self.config.restore.as_ref().filter(|_| self.recovers_from_backup()) {
            // Who restores a backup to begin with wants a primary in the end, and not one that waits.
            managed.insert("recovery_target_action", "promote".to_owned());
            for name in RECOVERY.into_iter().chain(TARGETS) {
                if let Some(value) = restore.recovery.get(name) {
                    managed.insert(name, value.clone());
                }
            }
        }
        for (parameter, file, list) in [
            ("hba_file", "pg_hba.conf", local.pg_hba.is_some() || wanted.pg_hba.is_some()),
            ("ident_file", "pg_ident.conf", local.pg_ident.is_some() || wanted.pg_ident.is_some()),
        ] {
            let path = self.config.data_dir.join(file);
            let ours = read_text_optional(&path)?.is_some_and(|t| conf::is_ours(&t));
            if list || ours {
                managed.insert(parameter, path.to_string_lossy().into_owned());
            }
        }
        Ok(managed)
    }

    /// Which file to include, and whether it still has the name that we need.
    fn find_base(&self, path: &Path) -> Result<Option<Base>, Error> {
        if let Some(configured) = &self.config.base_conf {
            return Ok(Some(Base { name: configured.to_string_lossy().into_owned(), must_rename: false }));
        }
        if self.config.data_dir.join(BASE_CONF).exists() {
            return Ok(Some(Base { name: BASE_CONF.to_owned(), must_rename: false }));
        }
        let original = read_text_optional(path)?.is_some_and(|text| !conf::is_generated(&text));
        Ok(original.then(|| Base { name: BASE_CONF.to_owned(), must_rename: true }))
    }

    /// Lets PostgreSQL read the file without starting. None: it takes it. Else the parameters that it refuses.
    async fn check_conf(
        &self,
        text: &str,
        file: &str,
        parameters: &Wanted,
    ) -> Result<Option<Vec<RefusedSetting>>, Error> {
        let dir = &self.config.data_dir;
        let candidate = dir.join(file);
        // The base file may still be called postgresql.conf; for the check it is included under that name.
        let renamed = dir.join(BASE_CONF).exists();
        let text = if renamed { text.to_owned() } else { text.replace(BASE_CONF, "postgresql.conf") };
        write_atomic(&candidate, text.as_bytes(), 0o600, &self.user)?;
        let program = self.binaries.program("postgres");
        let finished = Tool::new(&program, &self.user)
            .arg("-D")
            .arg(dir)
            .arg("-c")
            .arg(format!("config_file={}", candidate.display()))
            .args(["-c", "lc_messages=C", "-C", "cluster_name"])
            .finish(QUICK)
            .await;
        remove_durably(&candidate)?;
        let finished = finished?;
        if finished.status.success() {
            return Ok(None);
        }
        let refused = name_refused(&finished.stderr, parameters);
        if refused.is_empty() {
            let detail: Vec<&str> = finished.stderr.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
            return Err(Error::SettingsRefused { detail: detail.join("; ") });
        }
        Ok(Some(refused))
    }

    /// Writes `pg_hba.conf` and `pg_ident.conf`. Returns whether the former is the operator's and was left alone.
    fn write_access_files(&self, wanted: &ServerSettings, changed: &mut Vec<String>) -> Result<bool, Error> {
        let local = self.local();
        let hba_list = local.pg_hba.as_deref().or(wanted.pg_hba.as_deref());
        let ident_list = local.pg_ident.as_deref().or(wanted.pg_ident.as_deref());
        let credentials = Some(&wanted.credentials);
        let hba = hba::render_hba(hba_list, credentials, &wanted.member_hosts);
        let ident = hba::render_ident(ident_list, credentials, &self.socket_users());
        let mut foreign_hba = false;
        for (file, list, text) in
            [("pg_hba.conf", hba_list.is_some(), hba), ("pg_ident.conf", ident_list.is_some(), ident)]
        {
            let path = self.config.data_dir.join(file);
            let theirs = read_text_optional(&path)?.is_some_and(|current| !conf::is_ours(&current));
            if theirs && !list {
                foreign_hba |= file == "pg_hba.conf";
                continue;
            }
            let kept = with_suffix(&path, ".before-howdah");
            if theirs && !kept.exists() {
                rename_durably(&path, &kept)?;
            }
            if write_if_different(&path, text.as_bytes(), 0o600, &self.user)? {
                changed.push(file.to_owned());
            }
        }
        Ok(foreign_hba)
    }

    /// Who may be the superuser over the socket: the server's own user, and howdah's.
    pub(super) fn socket_users(&self) -> Vec<&str> {
        if self.user.switch { vec![self.user.name.as_str(), "root"] } else { vec![self.user.name.as_str()] }
    }

    fn clean_auto_conf(
        &self,
        parameters: &Wanted,
        wanted: &ServerSettings,
        changed: &mut Vec<String>,
    ) -> Result<Vec<String>, Error> {
        let path = self.config.data_dir.join("postgresql.auto.conf");
        let Some(text) = read_text_optional(&path)? else { return Ok(Vec::new()) };
        let recovers = self.recovers_from_backup();
        let managed = |name: &str| {
            if recovers && (RECOVERY.contains(&name) || TARGETS.contains(&name)) {
                return false;
            }
            settings::is_managed(name)
                || parameters.forced.contains_key(name)
                || wanted.recovery.contains_key(name)
                || (name == "synchronous_standby_names" && wanted.synchronous_standby_names.is_some())
        };
        let (kept, removed) = conf::clean_auto_conf(&text, managed);
        if !removed.is_empty() {
            write_atomic(&path, kept.as_bytes(), 0o600, &self.user)?;
            changed.push("postgresql.auto.conf".to_owned());
        }
        Ok(removed)
    }

    /// What the running server lacks: whether it must read its files, and what only a restart brings.
    async fn compare_with_running(&self, changed: bool) -> Result<(bool, Vec<PendingRestart>), Error> {
        if running_postmaster(&self.config.data_dir)?.is_none() {
            return Ok((false, Vec::new()));
        }
        // A crash may have come between an earlier write and its reload, so the files' times are looked at as well.
        match self.status().await {
            Ok(status) => {
                let reload = changed || self.files_are_newer_than(Some(status.configuration_loaded_micros));
                Ok((reload, status.pending_restart))
            }
            // It cannot be asked now; it has read its files when it started, at the latest.
            Err(_) => Ok((changed || self.files_are_newer_than(self.written_at("postmaster.pid")), Vec::new())),
        }
    }

    /// Whether a configuration file was written after `loaded`, in microseconds since 1970.
    fn files_are_newer_than(&self, loaded: Option<i64>) -> bool {
        let files = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf", "postgresql.auto.conf", BASE_CONF];
        loaded < files.into_iter().filter_map(|file| self.written_at(file)).max()
    }

    fn written_at(&self, file: &str) -> Option<i64> {
        let meta = fs::metadata(self.config.data_dir.join(file)).ok()?;
        Some(meta.mtime().saturating_mul(1_000_000).saturating_add(meta.mtime_nsec() / 1000))
    }
}

/// The operator's configuration file.
struct Base {
    name: String,
    must_rename: bool,
}

fn render(base: Option<&Base>, wanted: &Wanted, managed: &BTreeMap<&'static str, String>) -> String {
    conf::render(&Conf { base: base.map(|b| b.name.as_str()), wanted, managed: managed.clone() })
}

/// Whether two generated files say the same beside whom to follow and, if those names are ours, whom commits wait for.
fn differs_in_our_words(current: &str, text: &str, names_are_ours: bool) -> bool {
    let others = |line: &&str| {
        let name = line.split(' ').next().unwrap_or_default();
        let ours = matches!(name, "primary_conninfo" | "primary_slot_name");
        !(ours || names_are_ours && name == "synchronous_standby_names")
    };
    current.lines().filter(others).eq(text.lines().filter(others))
}

/// Takes refused parameters out; a controlled one falls back to PostgreSQL's own default.
fn leave_out(parameters: &mut Wanted, refused: Vec<RefusedSetting>) {
    for setting in refused {
        parameters.file.remove(&setting.name);
        parameters.defaults.remove(&setting.name);
        parameters.forced.remove(&setting.name);
        parameters.refused.push(setting);
    }
}

/// Finds which of our parameters PostgreSQL complains about.
fn name_refused(stderr: &str, parameters: &Wanted) -> Vec<RefusedSetting> {
    let mut found: BTreeMap<String, RefusedSetting> = BTreeMap::new();
    for line in stderr.lines() {
        for quoted in line.split("parameter \"").skip(1) {
            let Some(name) = quoted.split('"').next().map(str::to_ascii_lowercase) else { continue };
            let value = parameters.file.get(&name).or(parameters.defaults.get(&name)).or(parameters.forced.get(&name));
            if let Some(value) = value {
                let why = line.trim().trim_start_matches(|c: char| c != ':').trim_start_matches(':').trim();
                let refused = RefusedSetting {
                    name: name.clone(),
                    value: value.clone(),
                    why: format!("PostgreSQL refuses it: {why}"),
                };
                found.entry(name).or_insert(refused);
            }
        }
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_words_need_no_check() {
        let file = |follow: &str, names: &str, memory: &str| {
            format!("work_mem = '{memory}'\nprimary_conninfo = '{follow}'\nsynchronous_standby_names = '{names}'\n")
        };
        let current = file("host=a", "", "4MB");
        assert!(differs_in_our_words(&current, &file("host=b", "ANY 1 (x)", "4MB"), true));
        assert!(differs_in_our_words(&current, &current.replace("synchronous_standby_names = ''\n", ""), true));
        assert!(!differs_in_our_words(&current, &file("host=b", "ANY 1 (x)", "4MB"), false));
        assert!(!differs_in_our_words(&current, &file("host=b", "", "5MB"), true));
    }

    #[test]
    fn refused_parameters_are_named() {
        let wanted = Wanted {
            file: BTreeMap::from([
                ("work_mem".to_owned(), "lots".to_owned()),
                ("nonsense".to_owned(), "1".to_owned()),
                ("fine".to_owned(), "1".to_owned()),
            ]),
            ..Wanted::default()
        };
        let stderr = "2026-11-22 20:00:00.000 GMT [1] LOG:  invalid value for parameter \"work_mem\": \"lots\"\n\
                      LOG:  unrecognized configuration parameter \"nonsense\" in file \"/d/postgresql.conf\" line 5\n\
                      FATAL:  configuration file \"/d/postgresql.conf\" contains errors\n";
        let refused = name_refused(stderr, &wanted);
        let names: Vec<&str> = refused.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["nonsense", "work_mem"]);
        assert!(refused[0].to_string().contains("unrecognized configuration parameter"), "{}", refused[0]);
        assert!(name_refused("FATAL:  could not open directory", &wanted).is_empty());
    }
}
