//! The operator's own commands that fill a data directory: a copy from an archive, a restored backup to begin with.
//!
//! command beside the place -> is it a data directory? -> signal file -> rename. As with pg_basebackup and initdb, the
//! place is either free or whole; what the command needs to know it gets as `--NAME=VALUE`, as Patroni gives it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Instance;
use super::basebackup::Progress;
use super::conninfo::{Conninfo, Upstream};
use super::credentials::Credentials;
use super::data_dir::{DataDir, read_control_data, remove_signal, write_standby_signal};
use super::error::Error;
use super::files::{remove_durably, write_atomic};
use super::hba;
use super::process::Tool;
use super::staging::{Staging, discard_on_error};
use super::unfinished::{Operation, Unfinished};
use crate::types::SystemId;

/// The method that is no command of the operator.
const BASEBACKUP: &str = "basebackup";

/// A command of the operator that fills a data directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Method {
    /// Its name in the configuration; `basebackup` is pg_basebackup.
    pub name: String,
    /// Its words.
    pub command: Vec<String>,
    /// Given as `--NAME=VALUE`.
    pub parameters: Vec<(String, String)>,
    /// Whether it is told nothing beside its own words.
    pub no_params: bool,
}

/// How the first data directory of a cluster is made from a backup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// The command.
    pub method: Method,
    /// Whether recovery settings that it leaves behind are kept.
    pub keep_recovery: bool,
    /// Recovery settings to begin with; empty = the backup is started as it is.
    pub recovery: BTreeMap<String, String>,
}

impl Method {
    /// All words: its own, its parameters, and what we know.
    fn words(&self, known: &[(&str, String)]) -> Vec<String> {
        let mut words = self.command.clone();
        if !self.no_params {
            words.extend(self.parameters.iter().map(|(name, value)| format!("--{name}={value}")));
            words.extend(known.iter().map(|(name, value)| format!("--{name}={value}")));
        }
        words
    }
}

impl Instance {
    /// Makes a copy of `from` in a missing or empty data directory, by the configured methods in their order, or by
    /// pg_basebackup alone.
    ///
    /// # Errors
    /// The last method's; `Cancelled` at once. The data directory is then as before.
    pub async fn copy(
        &self,
        from: &Upstream,
        credentials: &Credentials,
        plainly: bool,
        progress: &watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        let methods = &self.config.copy_methods;
        if plainly || methods.is_empty() {
            return self.basebackup(from, credentials, progress, cancel).await;
        }
        let mut last = Ok(());
        for method in methods {
            last = match method.name.as_str() {
                BASEBACKUP => self.basebackup(from, credentials, progress, cancel).await,
                _ => self.copy_by(method, from, credentials, progress, cancel).await,
            };
            match &last {
                Ok(()) | Err(Error::Cancelled { .. }) => break,
                Err(error) => tracing::warn!(method = method.name, %error, "this way to make a copy failed"),
            }
        }
        last
    }

    async fn copy_by(
        &self,
        method: &Method,
        from: &Upstream,
        credentials: &Credentials,
        progress: &watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        progress.send_replace(Progress::default());
        let staging = self.begin_by_command("copy", credentials).await?;
        let conninfo = Conninfo::to(from, &credentials.replication, &self.password_file())?
            .with("dbname", &self.config.database)
            .text();
        let known = [
            ("scope", self.config.cluster.to_string()),
            ("role", "replica".to_owned()),
            ("datadir", staging.target().to_string_lossy().into_owned()),
            ("connstring", conninfo),
        ];
        let made = self.fill(method, &known, &staging, cancel).await;
        let (_, staging) = discard_on_error(staging, made).await?;
        let target = staging.target();
        // Whatever the command has left there, this directory starts as a standby of ours and never as a second primary.
        remove_signal(&target, "recovery.signal")?;
        write_standby_signal(&target, &self.user)?;
        staging.commit()
    }

    /// Makes the first data directory of a cluster by the operator's command, and leaves it unsealed.
    ///
    /// # Errors
    /// `DataDirState` when something is there; `RunTool` with the command's words; `Cancelled`. Nothing is left behind.
    pub async fn restore(
        &self,
        restore: &Restore,
        credentials: &Credentials,
        cancel: &CancellationToken,
    ) -> Result<SystemId, Error> {
        let staging = self.begin_by_command("bootstrap", credentials).await?;
        let known =
            [("scope", self.config.cluster.to_string()), ("datadir", staging.target().to_string_lossy().into_owned())];
        let made = self.fill(&restore.method, &known, &staging, cancel).await;
        let (system_id, staging) = discard_on_error(staging, made).await?;
        let target = staging.target();
        remove_signal(&target, "standby.signal")?;
        if !restore.recovery.is_empty() {
            write_atomic(&target.join("recovery.signal"), b"", 0o600, &self.user)?;
        } else if !restore.keep_recovery {
            remove_signal(&target, "recovery.signal")?;
        }
        // Who may connect is what a new cluster has; the backup's own rules are for another place.
        let hba = hba::render_hba(None, Some(credentials), &BTreeSet::new());
        write_atomic(&target.join("pg_hba.conf"), hba.as_bytes(), 0o600, &self.user)?;
        let ident = hba::render_ident(None, Some(credentials), &self.socket_users());
        write_atomic(&target.join("pg_ident.conf"), ident.as_bytes(), 0o600, &self.user)?;
        Unfinished::write(&self.config.data_dir, Operation::Bootstrap, None, &self.user)?;
        staging.commit()?;
        Ok(system_id)
    }

    /// Runs the command after the first start of a new cluster's primary.
    ///
    /// # Errors
    /// `StartTool`, `RunTool`, `ToolTimeout`.
    pub async fn post_bootstrap(
        &self,
        words: &[String],
        credentials: &Credentials,
        limit: Duration,
    ) -> Result<(), Error> {
        let Some((program, rest)) = words.split_first() else { return Ok(()) };
        self.prepare_places(credentials)?;
        let (host, port) = self.config.connect_address.clone();
        let here = Upstream { name: None, host, port, slot: None };
        let conninfo = Conninfo::to(&here, &credentials.superuser, &self.password_file())?
            .with("dbname", &self.config.database)
            .text();
        let finished = Tool::new(Path::new(program), &self.user)
            .args(rest)
            .arg(conninfo)
            .env("PGPASSFILE", self.password_file())
            // Nobody confirms anything yet.
            .env("PGOPTIONS", "-c synchronous_commit=local -c statement_timeout=0")
            .output(limit);
        finished.await.map(|_| ())
    }

    async fn begin_by_command(&self, operation: &'static str, credentials: &Credentials) -> Result<Staging<'_>, Error> {
        self.set_credentials(credentials);
        self.prepare_places(credentials)?;
        let data_dir = &self.config.data_dir;
        let state = self.inspect().await;
        if !matches!(state, DataDir::Missing | DataDir::Empty) {
            return Err(self.not_usable(operation, &state));
        }
        Unfinished::end_orphan(data_dir).await?;
        Unfinished::remove(data_dir)?;
        Staging::begin(data_dir, &self.user).await
    }

    /// Runs the command, and makes sure that what it has left is a data directory that this server can start.
    async fn fill(
        &self,
        method: &Method,
        known: &[(&str, String)],
        staging: &Staging<'_>,
        cancel: &CancellationToken,
    ) -> Result<SystemId, Error> {
        let words = method.words(known);
        let Some((program, rest)) = words.split_first() else { return Err(nothing_to_run(&method.name)) };
        super::files::ensure_dir(&staging.target(), 0o700, &self.user)?;
        Tool::new(Path::new(program), &self.user)
            .args(rest)
            .env("PGPASSFILE", self.password_file())
            .follow(
                cancel,
                "copy by command",
                |pid| staging.mark(Some(pid)),
                |line| tracing::info!(line, "{}", method.name),
            )
            .await?;
        let target = staging.target();
        let control = read_control_data(&target, &self.binaries, &self.user).await?;
        remove_durably(&target.join("postmaster.pid"))?;
        Ok(control.system_id)
    }
}

fn nothing_to_run(name: &str) -> Error {
    Error::CheckConfig { what: "postgresql.create_replica_methods", why: format!("{name} has no command") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_gets_its_parameters_and_what_we_know() {
        let method = Method {
            name: "wal_e".to_owned(),
            command: vec!["/bin/restore".to_owned(), "-v".to_owned()],
            parameters: vec![("retries".to_owned(), "2".to_owned())],
            no_params: false,
        };
        let known = [("scope", "main".to_owned())];
        assert_eq!(method.words(&known), ["/bin/restore", "-v", "--retries=2", "--scope=main"]);
        assert_eq!(Method { no_params: true, ..method }.words(&known), ["/bin/restore", "-v"]);
    }
}
