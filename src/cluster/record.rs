//! The whole record as read at one revision.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::changes::EndedRecord;
use super::keys::{Key, KeySpace};
use super::records::{
    BootstrapRecord, FailoverRecord, HandoverRecord, HistoryLine, Initialize, MemberRecord, ReservedTimeline,
    StatusRecord, SyncRecord,
};
use crate::kv::command::KeyValue;
use crate::types::{LeaseId, NodeName, Term, TimelineHistory, TimelineId};

/// A value with the numbers that a compare-and-swap needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned<T> {
    /// The value.
    pub value: T,
    /// When the key came to be.
    pub create_revision: i64,
    /// When it last changed.
    pub mod_revision: i64,
    /// The lease it hangs on.
    pub lease: LeaseId,
}

/// Everything shared, as of `revision`.
///
/// A value that cannot be understood is listed in `damaged` and treated as unreadable, never as absent:
/// rules that need it refuse and name it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// The store's revision at the read.
    pub revision: i64,
    /// Whether the cluster exists.
    pub initialize: Option<Versioned<Initialize>>,
    /// Who may write.
    pub leader: Option<Versioned<NodeName>>,
    /// Members that live or lived within their lease.
    pub members: BTreeMap<NodeName, Versioned<MemberRecord>>,
    /// Dynamic configuration, unparsed.
    pub config: Option<Versioned<serde_json::Value>>,
    /// The leader's last position.
    pub status: Option<Versioned<StatusRecord>>,
    /// A requested role change; none also for `{}`.
    pub failover: Option<Versioned<FailoverRecord>>,
    /// The last finished hand-over.
    pub handover: Option<Versioned<HandoverRecord>>,
    /// A running creation of the cluster.
    pub bootstrap: Option<Versioned<BootstrapRecord>>,
    /// Promotions so far.
    pub history: Vec<HistoryLine>,
    /// `mod_revision` of the history key; zero when there is none.
    pub history_revision: i64,
    /// Which timeline numbers are used up; none where no promotion has asked for one yet.
    #[serde(default)]
    pub reserved: Option<Versioned<ReservedTimeline>>,
    /// Who has confirmed commits, and may lead therefore. None also when it cannot be understood.
    pub sync: Option<SyncRecord>,
    /// `mod_revision` of the sync key, understood or not; zero when there is none.
    pub sync_revision: i64,
    /// How the last leadership was ended by its holder; for people.
    #[serde(default)]
    pub ended: Option<EndedRecord>,
    /// `mod_revision` of the timeline key, which is read by whoever shows it; zero when there is none.
    #[serde(default)]
    pub timeline_revision: i64,
    /// Keys whose values could not be understood, with why.
    pub damaged: BTreeMap<String, String>,
}

impl ClusterRecord {
    /// Builds the record from the pairs below the cluster's prefix.
    pub fn read<'a>(space: &KeySpace, revision: i64, pairs: impl Iterator<Item = &'a KeyValue>) -> Self {
        let mut record = ClusterRecord { revision, ..ClusterRecord::default() };
        for pair in pairs {
            if let Some(key) = space.parse(&pair.key)
                && let Err(why) = record.absorb(&key, pair)
            {
                record.damaged.insert(String::from_utf8_lossy(&pair.key).into_owned(), why);
            }
        }
        record
    }

    fn absorb(&mut self, key: &Key, pair: &KeyValue) -> Result<(), String> {
        match key {
            Key::Initialize => {
                let text = text(pair)?;
                let value = if text.is_empty() {
                    Initialize::Running
                } else {
                    Initialize::Done(text.parse().map_err(|_| format!("{text:?} is no system identifier"))?)
                };
                self.initialize = Some(versioned(pair, value));
            }
            Key::Leader => {
                let name = text(pair)?.parse::<NodeName>().map_err(|e| e.to_string())?;
                self.leader = Some(versioned(pair, name));
            }
            Key::Member(name) => {
                self.members.insert(name.clone(), versioned(pair, json(pair)?));
            }
            Key::Config => self.config = Some(versioned(pair, json(pair)?)),
            Key::Status => self.status = Some(versioned(pair, json(pair)?)),
            Key::Failover => {
                let value: FailoverRecord = json(pair)?;
                self.failover = (!value.is_empty()).then(|| versioned(pair, value));
            }
            Key::Handover => self.handover = Some(versioned(pair, json(pair)?)),
            Key::Bootstrap => self.bootstrap = Some(versioned(pair, json(pair)?)),
            Key::History => {
                self.history = json(pair)?;
                self.history_revision = pair.mod_revision;
            }
            Key::Sync => {
                self.sync_revision = pair.mod_revision;
                self.sync = Some(json(pair)?);
            }
            // For people: what cannot be read there stops nothing.
            Key::Ended => self.ended = json(pair).ok(),
            Key::Timeline => self.timeline_revision = pair.mod_revision,
            Key::Reserved => self.reserved = Some(versioned(pair, json(pair)?)),
            Key::Credentials => (),
        }
        Ok(())
    }

    /// Why the sync key cannot be understood; none when it can, or is not there.
    pub fn sync_damage(&self) -> Option<&str> {
        let sync = |key: &str| key.ends_with("/sync") && !key.ends_with("/members/sync");
        self.damaged.iter().find(|(key, _)| sync(key)).map(|(_, why)| why.as_str())
    }

    /// The current term; none while nobody leads.
    pub fn term(&self) -> Option<Term> {
        self.leader.as_ref().map(|leader| Term(leader.create_revision))
    }

    /// Whether a node is creating the cluster now.
    pub fn is_being_created(&self) -> bool {
        self.initialize.as_ref().is_some_and(|initialize| matches!(initialize.value, Initialize::Running))
    }

    /// Whether `name` holds the leader key.
    pub fn is_leader(&self, name: &NodeName) -> bool {
        self.leader.as_ref().is_some_and(|leader| leader.value == *name)
    }

    /// What the leader says of itself; none while nobody leads or it has not spoken.
    pub fn leader_member(&self) -> Option<(&NodeName, &MemberRecord)> {
        let name = &self.leader.as_ref()?.value;
        self.members.get(name).map(|member| (name, &member.value))
    }

    /// Why the key of used numbers cannot be understood; none when it can, or is not there.
    pub fn reserved_damage(&self) -> Option<&str> {
        self.damaged.iter().find(|(key, _)| key.ends_with("/howdah/reserved")).map(|(_, why)| why.as_str())
    }

    /// The timeline that the cluster has reached: the last promotion's.
    pub fn timeline(&self) -> TimelineId {
        let next = TimelineId(self.history.last().map_or(1, |line| line.0.saturating_add(1)));
        self.reserved.as_ref().map_or(next, |reserved| reserved.value.reached.max(next))
    }

    /// The number that a promotion from `timeline` gets: one that nobody has been given before.
    pub fn next_timeline(&self, timeline: TimelineId) -> TimelineId {
        let given = self.reserved.as_ref().map_or(timeline, |reserved| reserved.value.timeline.max(timeline));
        TimelineId(given.max(self.timeline()).0.saturating_add(1))
    }

    /// The number that the present leadership has for its promotion from `timeline`; none when it has to be given one.
    pub fn reserved_from(&self, timeline: TimelineId) -> Option<TimelineId> {
        let reserved = self.reserved.as_ref()?;
        let given = reserved.value.timeline;
        let unused = reserved.value.reached.max(self.timeline()).max(timeline) < given;
        (self.term()?.0 <= reserved.mod_revision && unused).then_some(given)
    }

    /// The history of the cluster's timeline.
    pub fn timeline_history(&self) -> TimelineHistory {
        let ancestors = self
            .history
            .iter()
            .map(|line| crate::types::timeline::HistoryEntry {
                timeline: TimelineId(line.0),
                switchpoint: line.1,
                reason: line.2.clone(),
            })
            .collect();
        TimelineHistory { timeline: self.timeline(), ancestors }
    }
}

fn versioned<T>(pair: &KeyValue, value: T) -> Versioned<T> {
    Versioned { value, create_revision: pair.create_revision, mod_revision: pair.mod_revision, lease: pair.lease }
}

fn text(pair: &KeyValue) -> Result<&str, String> {
    std::str::from_utf8(&pair.value).map_err(|_| "it is not text".to_owned())
}

fn json<T: DeserializeOwned>(pair: &KeyValue) -> Result<T, String> {
    serde_json::from_slice(&pair.value).map_err(|e| e.to_string())
}
