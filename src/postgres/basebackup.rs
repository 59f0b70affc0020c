//! Copies another server's data directory with pg_basebackup.
//!
//! copy beside the place -> standby.signal -> rename. Progress is published while it runs. Cancelled or killed at any
//! moment, the data directory is either absent or whole.

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Instance;
use super::conninfo::{Conninfo, Upstream};
use super::credentials::Credentials;
use super::data_dir::{DataDir, write_standby_signal};
use super::error::Error;
use super::process::Tool;
use super::sql;
use super::staging::{Staging, TOOL_SYNC, discard_on_error};
use super::unfinished::Unfinished;
use crate::types::bytes::percent;

/// Options of pg_basebackup that an operator may set.
const ALLOWED: [&str; 10] = [
    "checkpoint",
    "compress",
    "max-rate",
    "no-estimate-size",
    "no-manifest",
    "manifest-checksums",
    "manifest-force-encode",
    "no-verify-checksums",
    "tablespace-mapping",
    "waldir",
];

/// How far a copy or a rewind is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// Bytes copied so far.
    pub done_bytes: u64,
    /// Bytes to copy, when known.
    pub total_bytes: Option<u64>,
}

impl Progress {
    /// 0 to 100, when the total is known.
    pub fn percent(&self) -> Option<u8> {
        percent(self.done_bytes, self.total_bytes)
    }
}

/// The part of the work that is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Connecting, and waiting for the upstream's checkpoint.
    #[default]
    Starting,
    /// Data is flowing.
    Copying,
    /// Making it durable and putting it in place.
    Finishing,
}

/// Checks the names of the operator's options.
pub(super) fn check_options(options: &[(String, Option<String>)]) -> Result<(), Error> {
    match options.iter().find(|(name, _)| !ALLOWED.contains(&name.as_str())) {
        None => Ok(()),
        Some((name, _)) => Err(Error::CheckConfig {
            what: "postgresql.basebackup",
            why: format!("option {name:?} cannot be set; these can: {}", ALLOWED.join(", ")),
        }),
    }
}

impl Instance {
    /// Makes a copy of `from` in a missing or empty data directory, ready to start as a standby.
    ///
    /// Uses `from.slot` when the upstream has that slot and it is free, so that no WAL is missing between the copy
    /// and the first streaming.
    ///
    /// # Errors
    /// `DataDirState` when something is there; `RunTool` with pg_basebackup's words; `Cancelled`. In all of them the
    /// data directory is as before.
    pub async fn basebackup(
        &self,
        from: &Upstream,
        credentials: &Credentials,
        progress: &watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        progress.send_replace(Progress::default());
        self.set_credentials(credentials);
        self.prepare_places(credentials)?;
        let data_dir = &self.config.data_dir;
        let state = self.inspect().await;
        if !matches!(state, DataDir::Missing | DataDir::Empty) {
            return Err(self.not_usable("base backup", &state));
        }
        Unfinished::end_orphan(data_dir).await?;
        Unfinished::remove(data_dir)?;
        let mut staging = Staging::begin(data_dir, &self.user).await?;
        self.move_outside_along()?;
        staging.fills(self.outside_of_copy(from).await?)?;
        let conninfo = Conninfo::to(from, &credentials.replication, &self.password_file())?
            .with("application_name", self.config.name.as_str())
            // The upstream's own limit is for standbys; a slow disk here may take longer.
            .with("options", "-c wal_sender_timeout=60s")
            .text();
        let program = self.binaries.program("pg_basebackup");
        let mut tool = Tool::new(&program, &self.user)
            .arg("-D")
            .arg(staging.target())
            .args(["-X", "stream", "--no-password", "--progress", "--dbname"])
            .arg(&conninfo);
        if let Some(option) = TOOL_SYNC {
            tool = tool.arg(option);
        }
        if !self.config.basebackup.iter().any(|(name, _)| name == "checkpoint") {
            tool = tool.arg("--checkpoint=fast");
        }
        if let Some(slot) = &from.slot
            && self.slot_is_free(from, slot).await
        {
            tool = tool.arg("--slot").arg(slot);
        }
        for (name, value) in &self.config.basebackup {
            tool = tool.arg(value.as_ref().map_or_else(|| format!("--{name}"), |v| format!("--{name}={v}")));
        }
        let copied = tool.follow(
            cancel,
            "base backup",
            |pid| staging.mark(Some(pid)),
            |line| {
                if let Some(now) = parse_progress(line) {
                    progress.send_replace(now);
                }
            },
        );
        let copied = copied.await;
        let ((), staging) = discard_on_error(staging, copied).await?;
        progress.send_modify(|p| p.stage = Stage::Finishing);
        // Whatever happens next, this directory starts as a standby and never as a second primary.
        write_standby_signal(&staging.target(), &self.user)?;
        staging.commit()
    }

    async fn slot_is_free(&self, from: &Upstream, slot: &str) -> bool {
        match self.ask_remote(from, &sql::slot_is_free(slot)).await {
            Ok(results) => results.first().is_some_and(|rows| !rows.is_empty()),
            Err(error) => {
                tracing::debug!(slot, %error, "copying without slot: the upstream could not be asked");
                false
            }
        }
    }
}

/// Reads `  12345/67890 kB (18%), 0/1 tablespace`, which pg_basebackup and pg_rewind both print.
pub(super) fn parse_progress(line: &str) -> Option<Progress> {
    let (numbers, _) = line.split_once(" kB (")?;
    let (done, total) = numbers.trim().split_once('/')?;
    let done: u64 = done.trim().parse().ok()?;
    let total: u64 = total.trim().parse().ok()?;
    Some(Progress { stage: Stage::Copying, done_bytes: done * 1024, total_bytes: Some(total * 1024) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_lines_are_read() {
        let progress =
            parse_progress(" 11267/23034 kB (48%), 0/1 tablespace (...015Z-99/data/base/5/2608)").expect("progress");
        assert_eq!(progress.done_bytes, 11267 * 1024);
        assert_eq!(progress.percent(), Some(48));
        assert_eq!(parse_progress("  5/0 kB (100%) copied").and_then(|p| p.percent()), None);
        assert_eq!(parse_progress("pg_basebackup: initiating base backup"), None);
    }

    #[test]
    fn only_harmless_options_are_allowed() {
        assert!(check_options(&[("max-rate".to_owned(), Some("10M".to_owned()))]).is_ok());
        assert!(check_options(&[("pgdata".to_owned(), Some("/".to_owned()))]).is_err());
    }
}
