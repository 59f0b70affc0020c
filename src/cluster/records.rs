//! The values of the record, typed; JSON as Patroni writes it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::types::bytes::percent;
use crate::types::{Lsn, NodeName, SystemId, TimelineId, WallTime};

/// What a member says of itself (`members/NAME`). Unknown fields are kept out, missing ones tolerated:
/// another version may write more or less.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemberRecord {
    /// `postgres://host:port/postgres`.
    #[serde(default)]
    pub conn_url: String,
    /// `http://host:port/patroni`.
    #[serde(default)]
    pub api_url: String,
    /// Patroni's words: `running`, `stopped`, `starting`, `creating replica`, `crashed`, ...
    #[serde(default)]
    pub state: String,
    /// `primary`, `replica`, `demoted`, `uninitialized`.
    #[serde(default)]
    pub role: String,
    /// The manager's version.
    #[serde(default)]
    pub version: String,
    /// Primary: write position. Replica: the greater of received and replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xlog_location: Option<Lsn>,
    /// Replica: received and flushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_lsn: Option<Lsn>,
    /// Replica: replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_lsn: Option<Lsn>,
    /// `streaming` or `in archive recovery`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication_state: Option<String>,
    /// Ours: replay is paused, by an operator or because a parameter here is too low.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replay_paused: bool,
    /// The timeline it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<TimelineId>,
    /// `false` from a promotion until its checkpoint is done: nobody may rewind from it before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_after_promote: Option<bool>,
    /// A parameter waits for a restart.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pending_restart: bool,
    /// Which parameters, each with `old_value` and `new_value`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pending_restart_reason: BTreeMap<String, Value>,
    /// A restart at a later time: `schedule` and its conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled_restart: Option<Value>,
    /// Ours: how far a long copy or rewind is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<ProgressRecord>,
    /// The node leaves PostgreSQL alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pause: bool,
    /// Tags that are set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, Value>,
}

impl MemberRecord {
    /// Whether the boolean tag `name` is set; numbers and text as Patroni reads them.
    pub fn has_tag(&self, name: &str) -> bool {
        match self.tags.get(name) {
            Some(Value::Bool(set)) => *set,
            Some(Value::Number(number)) => number.as_f64() != Some(0.0),
            Some(Value::String(text)) => matches!(text.to_ascii_lowercase().as_str(), "true" | "yes" | "on" | "1"),
            Some(Value::Null | Value::Array(_) | Value::Object(_)) | None => false,
        }
    }

    /// Between equals the member with the higher one leads; zero never does.
    ///
    /// Source: reference section 3.13: where both tags are set, the boolean one wins.
    pub fn failover_priority(&self) -> u32 {
        let number = self.tags.get("failover_priority").and_then(Value::as_i64);
        let number = number.map_or(1, |number| u32::try_from(number.max(0)).unwrap_or(u32::MAX));
        match self.tags.get("nofailover") {
            Some(_) if self.has_tag("nofailover") => 0,
            Some(_) => number.max(1),
            None => number,
        }
    }

    /// Host and port of PostgreSQL, from `conn_url`.
    pub fn postgres_address(&self) -> Option<(String, u16)> {
        let rest = self.conn_url.split_once("://")?.1;
        let authority = rest.split('/').next()?;
        let address = authority.rsplit('@').next()?;
        let (host, port) = address.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Some((host.to_owned(), port.parse().ok()?))
    }

    /// `host:port` of the main port, from `api_url`.
    pub fn api_address(&self) -> Option<String> {
        let rest = self.api_url.split_once("://")?.1;
        rest.split('/').next().map(str::to_owned)
    }
}

/// How far a long copy or rewind is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProgressRecord {
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
}

impl ProgressRecord {
    /// 0 to 100; none while the total is not known.
    pub fn percent(&self) -> Option<u8> {
        percent(self.done_bytes, self.total_bytes)
    }
}

/// The leader's last known position (`status`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StatusRecord {
    /// WAL position.
    pub optime: Lsn,
    /// The slots that howdah keeps, and from where each of them needs WAL.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub slots: BTreeMap<String, Lsn>,
    /// Those of them whose member is silent at present.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub retain_slots: BTreeSet<String>,
}

/// Who has confirmed the commits of `leader`, and may lead after it (`sync`): the most advanced of any `quorum` + 1 of
/// `sync_standby`, or `leader` itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SyncRecord {
    /// The primary that the set belongs to.
    #[serde(default)]
    pub leader: Option<NodeName>,
    /// So many must be heard beside the candidate. None where each of them has every commit.
    #[serde(default)]
    pub quorum: Option<u32>,
    /// In JSON `"a,b"`, or null when there are none.
    #[serde(default, with = "comma_separated")]
    pub sync_standby: BTreeSet<NodeName>,
    /// Ours: commits are on fewer nodes than they should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<Degraded>,
}

/// Too few nodes have what is committed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Degraded {
    /// So many have it, the primary included.
    pub copies: u32,
    /// So many should.
    pub wanted: u32,
    /// Since when, for people. None until it is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<WallTime>,
}

/// Names as Patroni writes them: one text, or null.
mod comma_separated {
    use std::collections::BTreeSet;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::types::NodeName;

    pub(super) fn serialize<S: Serializer>(names: &BTreeSet<NodeName>, serializer: S) -> Result<S::Ok, S::Error> {
        let text = names.iter().map(NodeName::as_str).collect::<Vec<_>>().join(",");
        (!text.is_empty()).then_some(text).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<NodeName>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
        text.split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(|name| name.parse().map_err(D::Error::custom))
            .collect()
    }
}

/// A requested role change (`failover`). Empty when nothing is requested.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FailoverRecord {
    /// Who must be leader for the request to be valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<NodeName>,
    /// Who shall become leader; anybody fit when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<NodeName>,
    /// Not before; ISO 8601.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled_at: Option<String>,
}

impl FailoverRecord {
    /// Whether nothing is requested.
    pub fn is_empty(&self) -> bool {
        self.leader.is_none() && self.member.is_none() && self.scheduled_at.is_none()
    }
}

/// A finished hand-over by a stopped primary (`howdah/handover`): the key was released for `to`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoverRecord {
    /// Who stopped.
    pub from: NodeName,
    /// Who was proven to have everything.
    pub to: NodeName,
    /// The shutdown checkpoint record that `to` has received.
    pub shutdown_lsn: Lsn,
    /// The term that ended.
    pub ended_term: i64,
    /// When, for people.
    pub at: WallTime,
    /// `switchover` or `shutdown`.
    pub why: String,
}

/// Who is creating the cluster (`howdah/bootstrap`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootstrapRecord {
    /// The node.
    pub by: NodeName,
    /// When it began, for people.
    pub at: WallTime,
}

/// The `initialize` key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Initialize {
    /// A node is creating the cluster.
    Running,
    /// The cluster exists.
    Done(SystemId),
}

/// One promotion (`history`): `[timeline, lsn, reason, iso time, new leader]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryLine(
    /// The timeline that ended.
    pub u32,
    /// Where.
    pub Lsn,
    /// PostgreSQL's reason.
    pub String,
    /// When, ISO 8601.
    #[serde(default)]
    pub String,
    /// Who was promoted.
    #[serde(default)]
    pub String,
);

/// Which timeline numbers are used up (`howdah/reserved`). Source: decision record 0019.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservedTimeline {
    /// The greatest number that a leadership has been given for its promotion. No other gets it, whether it was used
    /// or not.
    pub timeline: TimelineId,
    /// The timeline of the newest promotion in `history`. Not always one more than its last line: numbers that were
    /// given and not used are passed over.
    pub reached: TimelineId,
}

/// The promotions so far, and what numbers they have used up: what a leader publishes after its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promotions {
    /// The value of `history`.
    pub lines: Vec<HistoryLine>,
    /// The value of `howdah/reserved`.
    pub reserved: ReservedTimeline,
}

/// Passwords that the cluster's creator generated (`howdah/credentials`).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialsRecord {
    /// Role name to password.
    pub passwords: BTreeMap<String, String>,
}

impl std::fmt::Debug for CredentialsRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.passwords.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_patroni_writes() {
        let json = r#"{"conn_url":"postgres://10.0.0.1:5432/postgres","api_url":"http://10.0.0.1:8008/patroni",
            "state":"running","role":"replica","version":"4.1.0","xlog_location":67108960,"receive_lsn":67108960,
            "replay_lsn":67108960,"replication_state":"streaming","timeline":3,"tags":{"nofailover":true,"n":0},"new":[1]}"#;
        let member: MemberRecord = serde_json::from_str(json).expect("valid");
        assert_eq!(member.postgres_address(), Some(("10.0.0.1".to_owned(), 5432)));
        assert_eq!(member.api_address().as_deref(), Some("10.0.0.1:8008"));
        assert!(member.has_tag("nofailover") && !member.has_tag("n") && !member.has_tag("absent"));
    }

    #[test]
    fn the_synchronous_set_is_written_as_patroni_writes_it() {
        for text in [
            r#"{"leader":"n1","quorum":1,"sync_standby":"n2,n3"}"#,
            r#"{"leader":"n1","quorum":null,"sync_standby":"n2"}"#,
            r#"{"leader":"n1","quorum":0,"sync_standby":null}"#,
            r#"{"leader":"n1","quorum":0,"sync_standby":null,"degraded":{"copies":1,"wanted":2,"since":1700000000000}}"#,
        ] {
            let record: SyncRecord = serde_json::from_str(text).expect("valid");
            assert_eq!(serde_json::to_string(&record).expect("json"), text);
        }
        let short: SyncRecord = serde_json::from_str(r#"{"leader":null}"#).expect("valid");
        assert_eq!(short, SyncRecord::default());
        assert!(serde_json::from_str::<SyncRecord>(r#"{"leader":"n1","sync_standby":"n 2"}"#).is_err());
    }

    #[test]
    fn history_lines_are_arrays() {
        let line = HistoryLine(1, Lsn(83_886_176), "no recovery target specified".into(), "2026".into(), "n2".into());
        let text = serde_json::to_string(&line).expect("json");
        assert_eq!(text, r#"[1,83886176,"no recovery target specified","2026","n2"]"#);
        assert_eq!(serde_json::from_str::<HistoryLine>(&text).expect("json"), line);
        let short: HistoryLine = serde_json::from_str(r#"[1,2,"why"]"#).expect("old lines are shorter");
        assert_eq!(short.4, "");
    }
}
