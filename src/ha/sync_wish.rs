//! Which standbys shall confirm commits, and when what PostgreSQL was told is what it does.
//!
//! A primary's own question; nobody else's view of the standbys counts. Kept apart from `sync_set.rs`, which knows no
//! standby's fitness, no time and no WAL.

use std::collections::BTreeSet;
use std::time::Duration;

use super::sync_names;
use super::sync_set::{CommitRule, ElectionRule};
use super::view::{ClusterView, InForce, Memory, ServerView, StandbyView, SyncMode};
use crate::cluster::ClusterRecord;
use crate::cluster::records::MemberRecord;
use crate::types::{Lsn, Mono, NodeName};

/// So long after the first sight of a rule every WAL sender goes by it: each reads it as soon as it is run.
///
/// A WAL sender that has not read it yet lets commits return by the rule before. What it counts is also seen
/// (`StandbyView::counted`), but not whether it counts *how many*.
const SETTLING: Duration = Duration::from_secs(1);

/// Keeps in mind what was just seen of standbys and of the rule in force.
pub fn remember(memory: &mut Memory, record: &ClusterRecord, server: &ServerView, now: Mono) {
    let names = &server.synchronous_standby_names;
    match &mut memory.commit_rule {
        Some(known) if known.names == *names => {
            if server.in_recovery {
                // Its commits begin after its promotion: what was measured before says nothing about them.
                (known.from, known.seen) = (None, server.position);
            } else if known.from.is_none() && SETTLING <= now.since(known.since) && agreed(server) {
                known.from = Some(server.position);
            }
        }
        other => {
            *other = Some(InForce { names: names.clone(), since: now, seen: server.position, from: None });
        }
    }
    if server.in_recovery {
        memory.standbys_seen.clear();
        return;
    }
    let voters = record.sync.iter().flat_map(|sync| &sync.sync_standby);
    let mut counted = sync_names::parse(names).unwrap_or_default().names;
    counted.extend(voters.cloned());
    memory.standbys_seen.retain(|name, _| counted.contains(name));
    for name in counted {
        let streams = server.standbys.get(&name).is_some_and(|standby| standby.streaming);
        let seen = memory.standbys_seen.entry(name).or_insert(now);
        *seen = if streams { now } else { *seen };
    }
}

/// Whether each WAL sender counts whom the rule in force names, and nobody else.
fn agreed(server: &ServerView) -> bool {
    let Some(rule) = sync_names::parse(&server.synchronous_standby_names) else { return true };
    server.standbys.iter().all(|(name, standby)| !standby.streaming || standby.counted == rule.names.contains(name))
}

/// What is known of the rule in force, once every process goes by it.
fn settled(view: &ClusterView, server: &ServerView) -> Option<(InForce, Lsn)> {
    let known = view.memory.commit_rule.as_ref().filter(|known| known.names == server.synchronous_standby_names)?;
    Some((known.clone(), known.from?))
}

/// Whether every process goes by the rule in force: another change is not begun before.
pub(super) fn is_settled(view: &ClusterView, server: &ServerView) -> bool {
    settled(view, server).is_some()
}

/// Whether as many standbys as `wish` counts on have everything from before the rule in force.
pub(super) fn confirmed(view: &ClusterView, server: &ServerView, record: &ElectionRule, wish: &CommitRule) -> bool {
    let Some((known, from)) = settled(view, server) else { return false };
    if record.voters.is_empty() && server.checkpoint_redo <= known.seen {
        return false;
    }
    let has =
        |name: &NodeName| server.standbys.get(name).is_some_and(|s| s.streaming && s.counted && from <= s.flushed);
    wish.count <= wish.names.iter().filter(|name| has(name)).count()
}

/// Whether a checkpoint is all that is missing before the record may name voters.
///
/// Whether commits wait at all is a switch that the checkpointer turns, and it reads its files only between two
/// checkpoints: one that began after the rule was in the files proves that it has. One that began where the rule was first
/// seen proves nothing: where nobody writes, that can be long before. Source: PostgreSQL
/// `checkpointer.c`, `syncrep.c` (`SyncRepUpdateSyncStandbysDefined`), versions 13 to 18.
pub fn wants_checkpoint(view: &ClusterView) -> bool {
    let (Some(record), Some(server)) = (view.record.fresh(), view.server.fresh()) else { return false };
    let Some(sync) = record.sync.as_ref().filter(|_| view.settings.synchronous.mode != SyncMode::Off) else {
        return false;
    };
    let counts = sync_names::parse(&server.synchronous_standby_names).is_some_and(|rule| 0 < rule.count);
    let switched = settled(view, server).is_some_and(|(known, _)| server.checkpoint_redo <= known.seen);
    counts && switched && !server.in_recovery && sync.sync_standby.is_empty()
}

/// Who shall confirm commits, and how many of them.
pub(super) fn wish(
    view: &ClusterView,
    record: &ClusterRecord,
    server: &ServerView,
    enforced: Option<&CommitRule>,
) -> CommitRule {
    let settings = &view.settings.synchronous;
    let kept = |name: &NodeName| {
        enforced.is_some_and(|rule| rule.names.contains(name))
            || record.sync.as_ref().is_some_and(|sync| sync.sync_standby.contains(name))
    };
    let most = server.standbys.values().filter(|standby| standby.streaming).map(|standby| standby.flushed).max();
    let newest = if server.standbys.len() < 2 { Some(server.position) } else { most };
    let mut fit: Vec<(i64, bool, Lsn, &NodeName)> = record
        .members
        .iter()
        .filter(|(name, _)| **name != view.me)
        .filter_map(|(name, member)| {
            let priority = sync_priority(&member.value)?;
            let standby = server.standbys.get(name).filter(|standby| standby.streaming);
            let there = match standby {
                Some(standby) => near_enough(view, newest, standby),
                None => kept(name) && missed(view, name, &member.value),
            };
            there.then(|| (priority, kept(name), standby.map_or(Lsn(0), |standby| standby.flushed), name))
        })
        .collect();
    let names: BTreeSet<NodeName> = match settings.mode {
        SyncMode::Off => BTreeSet::new(),
        SyncMode::Quorum => fit.into_iter().map(|(_, _, _, name)| name.clone()).collect(),
        SyncMode::On => {
            fit.sort_by(|a, b| (b.0, b.1, b.2, a.3).cmp(&(a.0, a.1, a.2, b.3)));
            fit.into_iter().take(settings.node_count).map(|(_, _, _, name)| name.clone()).collect()
        }
    };
    if names.is_empty() && settings.strict {
        // Commits go on waiting for those who are proven: whoever of them comes back first confirms.
        let waiting = enforced.filter(|rule| 0 < rule.count);
        return waiting.cloned().unwrap_or_else(CommitRule::nobody_confirms);
    }
    CommitRule { count: settings.node_count.min(names.len()), names }
}

/// The member's place among candidates for confirming; none when its tags forbid it.
///
/// A standby that may not be promoted confirms nothing that a failover could use.
fn sync_priority(member: &MemberRecord) -> Option<i64> {
    let number = |tag: &str| member.tags.get(tag).and_then(serde_json::Value::as_i64);
    let excluded = member.has_tag("nosync") || member.failover_priority() == 0;
    let priority = number("sync_priority").unwrap_or(1);
    (!excluded && 0 < priority).then_some(priority)
}

fn near_enough(view: &ClusterView, newest: Option<Lsn>, standby: &StandbyView) -> bool {
    let limit = view.settings.synchronous.maximum_lag;
    limit.is_none_or(|limit| newest.unwrap_or_default().ahead_of(standby.flushed) <= limit)
}

/// Whether a standby that does not stream now is expected back in a moment: a restart changes nothing.
fn missed(view: &ClusterView, name: &NodeName, member: &MemberRecord) -> bool {
    let lately = view.memory.standbys_seen.get(name).is_some_and(|seen| view.now.since(*seen) < view.settings.ttl);
    lately && !matches!(member.state.as_str(), "stopped" | "stopping")
}
