//! Makes a new database cluster.
//!
//! initdb beside the place -> access files -> note "not sealed" -> rename. The note stays until the record of the
//! cluster knows the new system identifier, so a crash in a bootstrap never leaves a directory that looks finished.

use std::collections::BTreeSet;

use tokio_util::sync::CancellationToken;

use super::Instance;
use super::credentials::Credentials;
use super::data_dir::{DataDir, read_control_data};
use super::error::Error;
use super::files::write_atomic;
use super::hba;
use super::process::Tool;
use super::staging::{Staging, TOOL_SYNC};
use super::unfinished::{Operation, Unfinished};
use crate::types::SystemId;

/// Options of initdb that are ours to set, or that make no sense here.
const NOT_ALLOWED: [&str; 10] =
    ["pgdata", "username", "pwfile", "pwprompt", "auth", "auth-host", "auth-local", "no-sync", "nosync", "sync-only"];

/// Checks the names of the operator's options.
pub(super) fn check_options(options: &[(String, Option<String>)]) -> Result<(), Error> {
    for (name, _) in options {
        let known_form = name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') && !name.starts_with('-');
        if !known_form || NOT_ALLOWED.contains(&name.as_str()) || name == "version" {
            return Err(Error::CheckConfig {
                what: "bootstrap.initdb",
                why: format!("option {name:?} cannot be set; howdah sets user, password, access and place itself"),
            });
        }
    }
    Ok(())
}

impl Instance {
    /// Makes a new database cluster in a missing or empty data directory and leaves it unsealed.
    ///
    /// # Errors
    /// `DataDirState` when something is there; `RunTool` with initdb's words; `Cancelled`. Nothing is left behind.
    pub async fn initdb(&self, credentials: &Credentials, cancel: &CancellationToken) -> Result<SystemId, Error> {
        self.set_credentials(credentials);
        let data_dir = &self.config.data_dir;
        let state = self.inspect().await;
        if !matches!(state, DataDir::Missing | DataDir::Empty) {
            return Err(self.not_usable("initdb", &state));
        }
        Unfinished::end_orphan(data_dir).await?;
        let staging = Staging::begin(data_dir, &self.user).await?;
        match self.run_initdb(&staging, credentials, Locale::Utf8, cancel).await {
            // Some systems have no C.UTF-8; the encoding is UTF8 all the same.
            Err(Error::RunTool { detail, .. }) if detail.contains("invalid locale name") && !self.has_locale() => {
                self.run_initdb(&staging, credentials, Locale::Plain, cancel).await?;
            }
            other => other?,
        }
        let target = staging.target();
        let hba = hba::render_hba(None, Some(credentials), &BTreeSet::new());
        write_atomic(&target.join("pg_hba.conf"), hba.as_bytes(), 0o600, &self.user)?;
        let ident = hba::render_ident(None, Some(credentials), &self.socket_users());
        write_atomic(&target.join("pg_ident.conf"), ident.as_bytes(), 0o600, &self.user)?;
        let control = read_control_data(&target, &self.binaries, &self.user).await?;
        Unfinished::write(data_dir, Operation::Bootstrap, None, &self.user)?;
        staging.commit()?;
        Ok(control.system_id)
    }

    async fn run_initdb(
        &self,
        staging: &Staging<'_>,
        credentials: &Credentials,
        locale: Locale,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        let password_file = staging.file("password");
        let password = format!("{}\n", credentials.superuser.password.expose());
        write_atomic(&password_file, password.as_bytes(), 0o600, &self.user)?;
        let program = self.binaries.program("initdb");
        let mut tool = Tool::new(&program, &self.user)
            .arg("-D")
            .arg(staging.target())
            .arg(format!("--username={}", credentials.superuser.username))
            .arg(format!("--pwfile={}", password_file.display()))
            .args(["--auth-local=scram-sha-256", "--auth-host=scram-sha-256"]);
        if let Some(option) = TOOL_SYNC {
            tool = tool.arg(option);
        }
        let given = |name: &str| self.config.initdb.iter().any(|(n, _)| n == name);
        if !given("data-checksums") && !given("no-data-checksums") {
            tool = tool.arg("--data-checksums");
        }
        if !given("encoding") {
            tool = tool.arg("--encoding=UTF8");
        }
        if !self.has_locale() {
            tool = tool.arg(match locale {
                Locale::Utf8 => "--locale=C.UTF-8",
                Locale::Plain => "--locale=C",
            });
        }
        for (name, value) in &self.config.initdb {
            tool = tool.arg(value.as_ref().map_or_else(|| format!("--{name}"), |v| format!("--{name}={v}")));
        }
        tool.follow(cancel, "initdb", |pid| staging.mark(Some(pid)), |line| tracing::debug!(line, "initdb")).await
    }

    fn has_locale(&self) -> bool {
        self.config.initdb.iter().any(|(name, _)| name == "no-locale" || name == "locale" || name.starts_with("lc-"))
    }
}

#[derive(Clone, Copy)]
enum Locale {
    Utf8,
    Plain,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_are_ours_are_refused() {
        let option = |name: &str| vec![(name.to_owned(), None)];
        assert!(check_options(&option("data-checksums")).is_ok());
        for name in ["pwfile", "username", "version", "-k", "locale=x; rm"] {
            assert!(check_options(&option(name)).is_err(), "{name}");
        }
    }
}
