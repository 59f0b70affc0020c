//! What has happened to the leadership: one lasting entry for each failover, switchover, restart and rejoin.
//!
//! ```text
//! the former leader ends its term --howdah/ended--> the next one --howdah/timeline--> people (history, REST, dashboard)
//! a former primary has come back  --------------------howdah/timeline--> the same
//! ```
//! Read by people alone: no decision depends on it, and a value that cannot be understood stops nothing. The newest
//! [`KEPT`] entries are kept; Patroni's `history` beside it keeps its own form.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::types::{Lsn, NodeName, TimelineId, WallTime};

/// So many entries are kept; the oldest go first.
pub const KEPT: usize = 50;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeRecord {
    /// When it was over, for people.
    pub at: WallTime,
    /// What it was.
    pub kind: ChangeKind,
    /// Who leads since, or has come back.
    pub node: NodeName,
    /// Who led before; whom the node that has come back follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<NodeName>,
    /// The term that began with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<i64>,
    /// The timeline since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<TimelineId>,
    /// Why it happened.
    pub cause: Why,
    /// Why it was this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<Why>,
    /// How long each part took.
    #[serde(default)]
    pub phases: Phases,
    /// All of it, in milliseconds.
    pub total_ms: u64,
    /// What the node had of the former primary's WAL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Lsn>,
    /// The last position that the former primary had published; the shared part, for who has come back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Lsn>,
    /// What was lost.
    pub loss: Loss,
}

/// Kinds of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// Another node leads although nobody had planned it.
    Failover,
    /// Another node leads as it was asked to, or because the former one was stopped in good order.
    Switchover,
    /// PostgreSQL of the leader ended, and started again under the same leadership.
    Restart,
    /// A node that had other data follows again.
    Rejoin,
}

/// A reason, as the decision journal has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// The stable code.
    pub code: String,
    /// The sentence.
    pub sentence: String,
}

/// Milliseconds of each part; none where it cannot be told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phases {
    /// From the last sign of life to the end of the leadership, when the leader fell silent. Its permit ended before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detect_ms: Option<u64>,
    /// What was thought about: checkpoint and catching up when planned, and the race when not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decide_ms: Option<u64>,
    /// From the first step of the stop, or the crash, until the former leader gave up the leadership.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence_ms: Option<u64>,
    /// From the leadership to a PostgreSQL that takes writes; the copy or rewind of who comes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promote_ms: Option<u64>,
    /// Until routers were told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route_ms: Option<u64>,
}

impl Phases {
    /// The parts with their names, in order.
    pub fn named(&self) -> [(&'static str, Option<u64>); 5] {
        let Self { detect_ms, decide_ms, fence_ms, promote_ms, route_ms } = *self;
        [
            ("detect", detect_ms),
            ("decide", decide_ms),
            ("fence", fence_ms),
            ("promote", promote_ms),
            ("route", route_ms),
        ]
    }

    /// All that is known together.
    pub fn total(&self) -> u64 {
        self.named().iter().filter_map(|(_, span)| *span).sum()
    }
}

/// What a change has cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Nothing that was acknowledged: the node was proven to have it.
    Nothing,
    /// Replication was asynchronous: so much of what the former primary had published was missing, perhaps more.
    AtLeast {
        /// Bytes of WAL.
        bytes: u64,
    },
    /// So much that nobody had received was given up by who came back.
    GivenUp {
        /// Bytes of WAL.
        bytes: u64,
    },
    /// It cannot be told.
    Unknown,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => write!(f, "nothing"),
            Self::AtLeast { bytes: 0 } => write!(f, "nothing known"),
            Self::AtLeast { bytes } => write!(f, "{bytes} bytes or more"),
            Self::GivenUp { bytes } => write!(f, "{bytes} bytes given up"),
            Self::Unknown => write!(f, "unknown"),
        }
    }
}

impl ChangeKind {
    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failover => "failover",
            Self::Switchover => "switchover",
            Self::Restart => "restart",
            Self::Rejoin => "rejoin",
        }
    }
}

/// How a leadership was ended by its own holder (`howdah/ended`), written with the key's release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedRecord {
    /// Whose it was.
    pub by: NodeName,
    /// Which.
    pub term: i64,
    /// When, for people.
    pub at: WallTime,
    /// As asked for, or because the node was stopped.
    pub planned: bool,
    /// Why.
    pub cause: Why,
    /// From the request to the first step of the stop.
    pub decide_ms: u64,
    /// From there to this record.
    pub fence_ms: u64,
}

/// Adds an entry behind the others and drops the oldest beyond [`KEPT`].
pub fn append(entries: &mut Vec<ChangeRecord>, entry: ChangeRecord) {
    entries.push(entry);
    let excess = entries.len().saturating_sub(KEPT);
    entries.drain(..excess);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(at: i64) -> ChangeRecord {
        ChangeRecord {
            at: WallTime(at),
            kind: ChangeKind::Failover,
            node: "n2".parse().expect("valid"),
            other: Some("n1".parse().expect("valid")),
            term: Some(7),
            timeline: Some(TimelineId(2)),
            cause: Why { code: "leader_silent".into(), sentence: "n1 fell silent".into() },
            choice: None,
            phases: Phases { detect_ms: Some(4800), promote_ms: Some(30), ..Phases::default() },
            total_ms: 4830,
            position: Some(Lsn(100)),
            reference: None,
            loss: Loss::AtLeast { bytes: 5 },
        }
    }

    #[test]
    fn the_newest_are_kept() {
        let mut entries = Vec::new();
        let kept = i64::try_from(KEPT).expect("small");
        (0..kept + 3).for_each(|at| append(&mut entries, entry(at)));
        assert_eq!((entries.len(), entries[0].at, entries[KEPT - 1].at), (KEPT, WallTime(3), WallTime(kept + 2)));
    }

    #[test]
    fn an_entry_comes_back_and_an_older_one_is_read() {
        let text = serde_json::to_string(&entry(1)).expect("json");
        assert!(text.contains(r#""kind":"failover""#) && text.contains(r#""loss":{"at_least":{"bytes":5}}"#), "{text}");
        assert_eq!(serde_json::from_str::<ChangeRecord>(&text).expect("json"), entry(1));
        assert_eq!(entry(1).phases.total(), 4830);
        let short = r#"{"at":1,"kind":"rejoin","node":"n1","cause":{"code":"a","sentence":"b"},"total_ms":3,"loss":"nothing","new":1}"#;
        assert_eq!(serde_json::from_str::<ChangeRecord>(short).expect("json").loss, Loss::Nothing);
    }
}
