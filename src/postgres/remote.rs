//! Questions to another node's server, asked as the rewind login.
//!
//! Plain TCP from this process; when the login demands TLS, libpq's `psql` asks, because it knows every `sslmode`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Instance;
use super::conninfo::{Conninfo, Upstream};
use super::credentials::Login;
use super::data_dir::history_file_name;
use super::error::{Error, StatusError};
use super::process::Tool;
use super::session::{Endpoint, Purpose, Session};
use super::sql;
use crate::types::{Lsn, PgVersion, SystemId, TimelineHistory, TimelineId};

/// Nobody waits longer for another node.
const LIMIT: Duration = Duration::from_secs(4);

/// What another node is and has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteState {
    /// Which database cluster.
    pub system_id: SystemId,
    /// Its version.
    pub version: PgVersion,
    /// A standby.
    pub in_recovery: bool,
    /// The timeline it writes or replays.
    pub timeline: TimelineId,
    /// The timeline of its last checkpoint: pg_rewind goes by this one.
    pub checkpoint_timeline: TimelineId,
    /// Flushed on a primary, received on a standby.
    pub lsn: Lsn,
    /// How its timeline came to be; none when it has no history file.
    pub history: Option<TimelineHistory>,
}

/// One row of text values by column name, from either way of asking.
pub(super) type RemoteRow = Vec<(String, Option<String>)>;

impl Instance {
    /// Asks another server of the cluster who and where it is.
    ///
    /// # Errors
    /// `Sql` when it cannot be reached or refuses; `ParseHistory`, `UnexpectedAnswer`.
    pub async fn remote_state(&self, upstream: &Upstream) -> Result<RemoteState, Error> {
        let results = self.ask_remote(upstream, sql::REMOTE).await?;
        let row = results.first().and_then(|rows| rows.first()).cloned().unwrap_or_default();
        let timeline = number(&row, "primary_timeline").or(number(&row, "control_timeline"));
        let odd = |why: &str| Error::UnexpectedAnswer { operation: "ask upstream", why: why.to_owned() };
        let timeline = TimelineId(timeline.ok_or_else(|| odd("no timeline"))?);
        let lsn = column(&row, "lsn").and_then(|t| t.parse().ok()).ok_or_else(|| odd("no position"))?;
        let system_id: i64 = number(&row, "system_id").ok_or_else(|| odd("no system identifier"))?;
        Ok(RemoteState {
            system_id: SystemId(system_id.cast_unsigned()),
            version: PgVersion(number(&row, "version").ok_or_else(|| odd("no version"))?),
            in_recovery: column(&row, "in_recovery") == Some("t"),
            timeline,
            checkpoint_timeline: TimelineId(number(&row, "checkpoint_timeline").ok_or_else(|| odd("no checkpoint"))?),
            lsn,
            history: self.remote_history(upstream, timeline).await?,
        })
    }

    /// Reads the history file of a timeline from another server.
    ///
    /// # Errors
    /// As [`Instance::remote_state`].
    pub async fn remote_history(
        &self,
        upstream: &Upstream,
        timeline: TimelineId,
    ) -> Result<Option<TimelineHistory>, Error> {
        if timeline.0 <= 1 {
            return Ok(Some(TimelineHistory { timeline, ancestors: Vec::new() }));
        }
        let name = history_file_name(timeline);
        let results = self.ask_remote(upstream, &sql::read_file(&format!("pg_wal/{name}"))).await?;
        let content = results.first().and_then(|rows| rows.first()).and_then(|row| column(row, "content"));
        let Some(bytes) = content.and_then(decode_hex) else { return Ok(None) };
        let text = String::from_utf8_lossy(&bytes);
        TimelineHistory::parse(timeline, &text).map(Some).map_err(|source| Error::ParseHistory { name, source })
    }

    /// Asks another server; one list of rows for each statement.
    pub(super) async fn ask_remote(&self, upstream: &Upstream, sql: &str) -> Result<Vec<Vec<RemoteRow>>, Error> {
        let login = self.credentials().map_or_else(|| Login::new("postgres", ""), |c| c.rewind);
        if demands_tls(&login) {
            return self.ask_with_psql(upstream, &login, sql).await;
        }
        let purpose = Purpose::remote(LIMIT);
        let endpoints: Vec<Endpoint> =
            upstream.host.split(',').map(|h| Endpoint::Tcp(h.trim().to_owned(), upstream.port)).collect();
        let work = async {
            let session = Session::open(&endpoints, &login, &self.config.database, purpose).await?;
            session.run(sql, LIMIT).await
        };
        let results = tokio::time::timeout(LIMIT, work).await.unwrap_or(Err(StatusError::Timeout { after: LIMIT }));
        let results = results.map_err(|source| Error::Sql { operation: "ask upstream", source })?;
        Ok(results.iter().map(|rows| rows.iter().map(super::session::TextRow::to_pairs).collect()).collect())
    }

    async fn ask_with_psql(&self, upstream: &Upstream, login: &Login, sql: &str) -> Result<Vec<Vec<RemoteRow>>, Error> {
        // The password file may not be there yet: a node asks before it has a data directory to configure.
        if let Some(credentials) = self.credentials() {
            self.prepare_places(&credentials)?;
        }
        let conninfo = Conninfo::to(upstream, login, &self.password_file())?
            .with("dbname", &self.config.database)
            .with("application_name", "howdah")
            .text();
        let program = self.binaries.program("psql");
        let text = Tool::new(&program, &self.user)
            .args(["-X", "-q", "-w", "--csv", "-v", "ON_ERROR_STOP=1", "-d"])
            .arg(conninfo)
            .arg("-c")
            .arg(format!("SET search_path = pg_catalog; SET TimeZone = 'UTC'; {sql}"))
            .output(LIMIT)
            .await?;
        Ok(vec![parse_csv(&text)])
    }
}

fn demands_tls(login: &Login) -> bool {
    login.options.get("sslmode").is_some_and(|mode| mode.starts_with("verify") || mode == "require")
}

pub(super) fn column<'a>(row: &'a RemoteRow, name: &str) -> Option<&'a str> {
    row.iter().find(|(n, _)| n == name).and_then(|(_, value)| value.as_deref())
}

fn number<T: std::str::FromStr>(row: &RemoteRow, name: &str) -> Option<T> {
    column(row, name).and_then(|text| text.parse().ok())
}

pub(super) fn decode_hex(text: &str) -> Option<Vec<u8>> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| std::str::from_utf8(pair).ok().and_then(|p| u8::from_str_radix(p, 16).ok()))
        .collect()
}

/// Reads psql's CSV with a header. None of our columns holds a comma or a quote.
fn parse_csv(text: &str) -> Vec<RemoteRow> {
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    lines
        .map(|line| {
            let values = line.split(',').map(|v| (!v.is_empty()).then(|| v.to_owned()));
            header.iter().map(|h| (*h).to_owned()).zip(values).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_asking_give_the_same_rows() {
        let rows = parse_csv("in_recovery,system_id,primary_timeline,lsn\nf,7711096617197452235,,0/3000060\n");
        assert_eq!(rows.len(), 1);
        assert_eq!(column(&rows[0], "lsn"), Some("0/3000060"));
        assert_eq!(column(&rows[0], "primary_timeline"), None);
        assert_eq!(number::<i64>(&rows[0], "system_id"), Some(7_711_096_617_197_452_235));
    }

    #[test]
    fn hexadecimal_is_decoded() {
        assert_eq!(decode_hex("310930"), Some(b"1\t0".to_vec()));
        assert_eq!(decode_hex("3z"), None);
    }
}
