//! Which replication slots a server has to keep, and until where each of them may let WAL go.
//!
//! ```text
//! record + settings + what was kept before -> plan (pure) -> postgres/replication.rs; status.slots tells the others
//! ```
//! Every server that may lead keeps a slot for each member, so that nobody lacks WAL after a failover; where a slot is
//! not in use it follows the leader's. A silent member's slot stays for `member_slots_ttl`, by each server's own count, and
//! for as long as the leader says so.
//!
//! A slot that is neither a member's nor permanent belongs to somebody else and is left alone, whatever it holds back.
//! So each node remembers which ones it has made ([`super::kept`]): whatever an agent has made goes in the end, also when
//! its member or its setting went while no agent was there to see it. Source: reference section 3.12.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::snapshot::HeldBack;
use crate::cluster::ClusterRecord;
use crate::cluster::records::{MemberRecord, StatusRecord};
use crate::config::ClusterSettings;
use crate::config::cluster_settings::{PermanentSlot, SlotPattern};
use crate::postgres::Slot;
use crate::types::{Lsn, Mono, NodeName};

/// PostgreSQL carries logical slots to standbys by itself from this version on.
pub const FAILOVER_SLOTS: u32 = 17;

/// A slot that could not be copied is not tried again so soon: each attempt restarts the standby.
const COPY_AGAIN: Duration = Duration::from_secs(300);

/// So much WAL for one slot is told to people, in bytes: PostgreSQL's default of `max_wal_size`, which is about what it
/// keeps without any slot.
pub const MUCH: u64 = 1 << 30;

/// What a server is in this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It leads: others take its slots as the measure.
    Leader,
    /// It may lead one day.
    Candidate,
    /// It never leads: only those who take WAL from here need slots here.
    Bystander,
}

/// What is known for the plan.
pub struct Known<'a> {
    /// This node.
    pub me: &'a NodeName,
    /// What it is.
    pub part: Part,
    /// The record.
    pub record: &'a ClusterRecord,
    /// The shared settings.
    pub settings: &'a ClusterSettings,
    /// The server's slots now.
    pub slots: &'a [Slot],
    /// PostgreSQL's major version.
    pub major: u32,
    /// When.
    pub now: Mono,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Physical slots that must be there.
    pub physical: BTreeSet<String>,
    /// Logical slots that must be there: database and plugin.
    pub logical: BTreeMap<String, (String, String)>,
    /// Logical slots of the leader that are to be copied to this standby.
    pub copies: BTreeSet<String>,
    /// Physical slots that were kept and are not any more.
    pub retired: BTreeSet<String>,
    /// Logical ones. Apart: a member's name gives no right to somebody's logical slot of that name.
    pub retired_logical: BTreeSet<String>,
    /// Slots that nobody uses here: until where they may let WAL go.
    pub advance: BTreeMap<String, Lsn>,
    /// Of the physical ones: those whose member is silent.
    pub retained: BTreeSet<String>,
}

/// The slots that a node has made and has to see to, for its next agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Members'.
    pub members: BTreeSet<String>,
    /// Permanent physical ones, and physical ones that are still to go.
    pub permanent: BTreeSet<String>,
    /// Permanent logical ones, and logical ones that are still to go.
    pub logical: BTreeSet<String>,
}

/// What is remembered between two plans.
#[derive(Debug, Default)]
pub struct Keeper {
    /// Members' slots, and when their member was there last.
    seen: BTreeMap<String, Mono>,
    /// Permanent physical slots.
    permanent: BTreeSet<String>,
    /// Permanent logical slots.
    logical: BTreeSet<String>,
    /// Physical slots that are not kept any more and may still be there.
    retiring: BTreeSet<String>,
    /// Logical ones.
    retiring_logical: BTreeSet<String>,
    /// Whether the last plan was a leader's.
    led: bool,
    /// When a copy of a logical slot was begun.
    copied: BTreeMap<String, Mono>,
}

impl Keeper {
    /// Goes on with what an earlier agent has kept. It may be long ago: members count as silent from now on.
    pub fn resume(kept: Kept, now: Mono) -> Self {
        let Kept { members, permanent, logical } = kept;
        Self { seen: members.into_iter().map(|name| (name, now)).collect(), permanent, logical, ..Self::default() }
    }

    /// What the next agent has to know.
    pub fn kept(&self) -> Kept {
        Kept {
            members: self.seen.keys().cloned().collect(),
            permanent: self.permanent.union(&self.retiring).cloned().collect(),
            logical: self.logical.union(&self.retiring_logical).cloned().collect(),
        }
    }

    /// The plan for now.
    pub fn plan(&mut self, known: &Known<'_>) -> Plan {
        let mut plan = Plan::default();
        if known.settings.postgresql.use_slots {
            self.members(known, &mut plan);
        } else {
            plan.retired.extend(std::mem::take(&mut self.seen).into_keys());
        }
        self.permanent(known, &mut plan);
        self.led = known.part == Part::Leader;
        let find = |name: &String, logical| known.slots.iter().find(|s| s.name == *name && s.logical == logical);
        let ignored = |name: &String, logical| {
            let patterns = &known.settings.ignore_slots;
            find(name, logical).is_some_and(|slot| patterns.iter().any(|pattern| matches(pattern, slot)))
        };
        plan.retired.append(&mut self.retiring);
        plan.retired.retain(|name| !plan.physical.contains(name) && !ignored(name, false));
        plan.retired_logical.append(&mut self.retiring_logical);
        plan.retired_logical.retain(|name| !plan.logical.contains_key(name) && !ignored(name, true));
        self.retiring = plan.retired.iter().filter(|name| find(name, false).is_some()).cloned().collect();
        self.retiring_logical =
            plan.retired_logical.iter().filter(|name| find(name, true).is_some()).cloned().collect();
        advance(known, &mut plan);
        plan
    }

    /// A copy of these logical slots is under way.
    pub fn copying(&mut self, names: impl IntoIterator<Item = String>, now: Mono) {
        self.copied.extend(names.into_iter().map(|name| (name, now)));
    }

    fn members(&mut self, known: &Known<'_>, plan: &mut Plan) {
        let Known { me, part, record, settings, now, .. } = *known;
        let ttl = settings.member_slots_ttl;
        let everybody = part == Part::Leader || (part == Part::Candidate && !ttl.is_zero());
        for (name, member) in record.members.iter().filter(|(name, _)| *name != me) {
            let fed_here = feeds(record, name, &member.value) == Some(me.clone());
            let wanted = fed_here || (everybody && (!ttl.is_zero() || part != Part::Leader));
            if wanted && !member.value.has_tag("nostream") {
                self.seen.insert(name.slot_name(), now);
            }
        }
        let status = record.status.as_ref().map(|status| &status.value);
        let mut retained_elsewhere = BTreeSet::new();
        for name in status.into_iter().flat_map(|status| &status.retain_slots) {
            match part {
                // A new leader grants them the whole time again: how long they have been silent is not recorded.
                // Later it knows better than what it has published itself.
                Part::Leader if !ttl.is_zero() && !self.led => drop(self.seen.entry(name.clone()).or_insert(now)),
                // The leader's word counts as well as what was seen here.
                Part::Candidate => {
                    self.seen.entry(name.clone()).or_insert(now);
                    retained_elsewhere.insert(name);
                }
                Part::Leader | Part::Bystander => (),
            }
        }
        let own = me.slot_name();
        for (name, at) in std::mem::take(&mut self.seen) {
            let fresh = at == now;
            if name == own {
                continue;
            }
            // Not only the leader counts the time: when a member falls silent, the leader's word comes later.
            let recent = part != Part::Bystander && now.since(at) < ttl;
            if fresh || recent || retained_elsewhere.contains(&name) {
                if !fresh {
                    plan.retained.insert(name.clone());
                }
                plan.physical.insert(name.clone());
                self.seen.insert(name, at);
            } else {
                plan.retired.insert(name);
            }
        }
    }

    fn permanent(&mut self, known: &Known<'_>, plan: &mut Plan) {
        let Known { me, part, settings, slots, major, now, .. } = *known;
        let (mut kept, mut kept_logical) = (BTreeSet::new(), BTreeSet::new());
        let leads_elsewhere = settings.standby_cluster.is_some();
        for (name, slot) in settings.slots.iter().filter(|(name, _)| **name != me.slot_name()) {
            match slot {
                PermanentSlot::Physical { cluster_type } => {
                    let here = match cluster_type.as_deref() {
                        Some("primary") => !leads_elsewhere,
                        Some("standby") => leads_elsewhere,
                        Some(_) | None => true,
                    };
                    if here && part != Part::Bystander {
                        plan.physical.insert(name.clone());
                        kept.insert(name.clone());
                    }
                }
                PermanentSlot::Logical { .. } if leads_elsewhere || part == Part::Bystander => (),
                PermanentSlot::Logical { database, plugin } => {
                    kept_logical.insert(name.clone());
                    let there = slots.iter().any(|slot| slot.name == *name);
                    if part == Part::Leader {
                        plan.logical.insert(name.clone(), (database.clone(), plugin.clone()));
                    } else if major < FAILOVER_SLOTS && !there && self.may_copy(name, now) && leader_has(known, name) {
                        plan.copies.insert(name.clone());
                    } else if FAILOVER_SLOTS <= major && slots.iter().any(|slot| slot.name == *name && !slot.synced) {
                        // Left from a time as the leader: PostgreSQL's own copy needs its place.
                        plan.retired_logical.insert(name.clone());
                    }
                }
            }
        }
        plan.retired.extend(self.permanent.difference(&kept).cloned());
        plan.retired_logical.extend(self.logical.difference(&kept_logical).cloned());
        (self.permanent, self.logical) = (kept, kept_logical);
    }

    fn may_copy(&self, name: &str, now: Mono) -> bool {
        self.copied.get(name).is_none_or(|at| COPY_AGAIN < now.since(*at))
    }
}

/// Whose WAL `name` takes, as everybody sees it.
fn feeds(record: &ClusterRecord, name: &NodeName, member: &MemberRecord) -> Option<NodeName> {
    let from = member.tags.get("replicatefrom").and_then(serde_json::Value::as_str);
    let from = from.and_then(|from| record.members.keys().find(|known| known.as_str() == from && *known != name));
    from.or(record.leader.as_ref().map(|leader| &leader.value)).cloned()
}

fn leader_has(known: &Known<'_>, name: &str) -> bool {
    known.record.status.as_ref().is_some_and(|status| status.value.slots.contains_key(name))
}

/// Slots that nobody uses here follow those that are in use elsewhere: the leader's, as it has published them; on the
/// leader itself what the member says that it has.
fn advance(known: &Known<'_>, plan: &mut Plan) {
    let Known { part, record, slots, me, .. } = known;
    let published = record.status.as_ref().map(|status| &status.value.slots);
    for slot in slots.iter().filter(|slot| !slot.active && !slot.synced) {
        let kept = plan.physical.contains(&slot.name) || (slot.logical && leader_has(known, &slot.name));
        if !kept {
            continue;
        }
        let target = match part {
            Part::Leader if slot.logical => None,
            Part::Leader => record.members.iter().find_map(|(name, member)| {
                let cascades =
                    name.slot_name() == slot.name && feeds(record, name, &member.value).as_ref() != Some(*me);
                member.value.xlog_location.filter(|_| cascades)
            }),
            Part::Candidate | Part::Bystander => published.and_then(|slots| slots.get(&slot.name)).copied(),
        };
        let at = if slot.logical { slot.confirmed_flush_lsn } else { slot.restart_lsn };
        if let Some(target) = target.filter(|target| at.is_none_or(|at| at < *target)) {
            plan.advance.insert(slot.name.clone(), target);
        }
    }
}

/// What the leader publishes of its slots: those that are planned, and one in its own name for the time after it.
pub fn published(plan: &Plan, me: &NodeName, position: Lsn, slots: &[Slot]) -> StatusRecord {
    let planned = |slot: &&Slot| plan.physical.contains(&slot.name) || plan.logical.contains_key(&slot.name);
    let mut all: BTreeMap<String, Lsn> = slots
        .iter()
        .filter(planned)
        .filter_map(|slot| {
            Some((slot.name.clone(), if slot.logical { slot.confirmed_flush_lsn } else { slot.restart_lsn }?))
        })
        .collect();
    if !all.is_empty() {
        all.insert(me.slot_name(), position);
    }
    StatusRecord { optime: position, slots: all, retain_slots: plan.retained.clone() }
}

/// The slots for which more than [`MUCH`] is kept: they fill the disk in the end, whosever they are.
pub fn held_back(slots: &[Slot], position: Lsn) -> BTreeMap<String, HeldBack> {
    let held = |slot: &Slot| {
        let bytes = position.0.saturating_sub(slot.restart_lsn?.0);
        (MUCH < bytes).then(|| (slot.name.clone(), HeldBack { bytes, active: slot.active }))
    };
    slots.iter().filter_map(held).collect()
}

fn matches(pattern: &SlotPattern, slot: &Slot) -> bool {
    let SlotPattern { name, kind, database, plugin } = pattern;
    let own_kind = if slot.logical { "logical" } else { "physical" };
    name.as_ref().is_none_or(|name| *name == slot.name)
        && kind.as_ref().is_none_or(|kind| kind == own_kind)
        && database.as_ref().is_none_or(|database| Some(database) == slot.database.as_ref())
        && plugin.as_ref().is_none_or(|plugin| Some(plugin) == slot.plugin.as_ref())
}

#[cfg(test)]
mod histories;
#[cfg(test)]
mod tests;
