//! The synchronous set of a primary: the record and PostgreSQL, one step at a time.

use crate::cluster::ClusterRecord;
use crate::cluster::records::{Degraded, SyncRecord};
use crate::ha::decide::{Action, Decision, act, wait_briefly};
use crate::ha::reason::Reason;
use crate::ha::sync_set::{CommitRule, ElectionRule, Move, next};
use crate::ha::view::{ClusterView, ServerView, SyncMode};
use crate::ha::{sync_names, sync_proof, sync_wish};
use crate::types::{NodeName, Term};

/// The next change of a running primary's synchronous set; none when all is as it should be, or waits for a standby.
pub(super) fn adjust(view: &ClusterView, record: &ClusterRecord, server: &ServerView, term: Term) -> Option<Decision> {
    let settings = &view.settings.synchronous;
    let write = Write { view, record, term };
    if settings.mode == SyncMode::Off {
        return record.sync.as_ref().map(|sync| switch_off(&write, sync));
    }
    let enforced = sync_names::parse(&server.synchronous_standby_names);
    let wish = sync_wish::wish(view, record, server, enforced.as_ref());
    let short = shortage(view, &wish);
    // What another primary wrote, or a stranger, is about other commits than this one's.
    let Some(sync) = record.sync.as_ref().filter(|sync| sync.leader.as_ref() == Some(&view.me)) else {
        return Some(write.rule(&ElectionRule::only_the_primary(), short));
    };
    let rule = ElectionRule::of(sync);
    let confirmed = sync_wish::confirmed(view, server, &rule, &wish);
    // Words that are not about our members promise nothing.
    let nothing = CommitRule::default();
    let known = enforced.as_ref().unwrap_or(&nothing);
    let step = next(known, &rule, &wish, confirmed);
    let text = sync_names::render(&wish, settings.mode);
    match step {
        Some(Move::Record(rule)) => Some(write.rule(&rule, short.or(still_short(sync, &wish, known)))),
        // Fewer copies are recorded first.
        Some(Move::Enforce(_)) if short.is_some() && !same_shortage(sync, short) => Some(write.rule(&rule, short)),
        Some(Move::Enforce(_)) if sync_wish::is_settled(view, server) => Some(enforce(text, &wish)),
        Some(Move::Enforce(_)) => None,
        // The same rule in other words.
        None if server.synchronous_standby_names != text => {
            sync_wish::is_settled(view, server).then(|| enforce(text, &wish))
        }
        None if rule == ElectionRule::for_commits(&wish) && !as_written(sync, &write, &rule, short) => {
            Some(write.rule(&rule, short))
        }
        None => None,
    }
}

/// The last thing that a leader does as a standby: whatever it promotes to, commits that nobody proves are waited for,
/// and nobody else may lead on the former primary's terms.
///
/// PostgreSQL first, with the copies that the record counts on, of those whom it names; then the record, which lets
/// only this node lead until others have confirmed.
pub(super) fn before_promotion(
    view: &ClusterView,
    record: &ClusterRecord,
    server: &ServerView,
    term: Term,
) -> Option<Decision> {
    let settings = &view.settings.synchronous;
    let write = Write { view, record, term };
    if let Some(reason) = sync_proof::unreadable(view, record) {
        return Some(wait_briefly(reason));
    }
    if settings.mode == SyncMode::Off {
        return record.sync.as_ref().map(|sync| switch_off(&write, sync));
    }
    let mine = record.sync.as_ref().filter(|s| s.leader.as_ref() == Some(&view.me) && s.sync_standby.is_empty());
    let enforced = sync_names::parse(&server.synchronous_standby_names);
    let first = match (mine, &record.sync) {
        (Some(_), _) if settings.strict && enforced.as_ref().is_none_or(|rule| rule.count == 0) => {
            CommitRule::nobody_confirms()
        }
        (Some(_), _) => return None,
        (None, Some(former)) => rule_of_successor(former, &view.me, settings.strict),
        (None, None) if settings.strict => CommitRule::nobody_confirms(),
        (None, None) => CommitRule::default(),
    };
    if enforced.as_ref() != Some(&first) {
        return Some(enforce(sync_names::render(&first, settings.mode), &first));
    }
    Some(write.rule(&ElectionRule::only_the_primary(), None))
}

/// As many copies as the former primary's record counted on, among those whom it names.
fn rule_of_successor(former: &SyncRecord, me: &NodeName, strict: bool) -> CommitRule {
    let names: std::collections::BTreeSet<NodeName> =
        former.sync_standby.iter().chain(&former.leader).filter(|name| *name != me).cloned().collect();
    let count = CommitRule::of_record(&ElectionRule::of(former)).count.min(names.len());
    match (count, strict) {
        (0, true) if names.is_empty() => CommitRule::nobody_confirms(),
        (0, true) => CommitRule { count: 1, names },
        (0, false) => CommitRule::default(),
        (count, _) => CommitRule { count, names },
    }
}

/// What a primary that starts in place enforces from its first commit on; none when the mode is off.
pub fn names_to_start_with(view: &ClusterView) -> Option<String> {
    let settings = &view.settings.synchronous;
    if settings.mode == SyncMode::Off {
        return None;
    }
    let mine = view.record.any().and_then(|record| record.sync.as_ref());
    let mine = mine.filter(|sync| sync.leader.as_ref() == Some(&view.me));
    let mut rule = mine.map(|sync| CommitRule::of_record(&ElectionRule::of(sync))).unwrap_or_default();
    if settings.strict && rule.count == 0 {
        rule = CommitRule::nobody_confirms();
    }
    Some(sync_names::render(&rule, settings.mode))
}

/// How a healthy primary's commits fare.
pub(super) fn state(view: &ClusterView, record: &ClusterRecord, server: &ServerView, term: Term) -> Reason {
    let rule = sync_names::parse(&server.synchronous_standby_names)
        .filter(|_| view.settings.synchronous.mode != SyncMode::Off)
        .unwrap_or_default();
    let confirming = |name: &&NodeName| server.standbys.get(*name).is_some_and(|standby| standby.streaming);
    let there = rule.names.iter().filter(confirming).count();
    if there < rule.count {
        return Reason::CommitsWait { term: term.0, there, needed: rule.count };
    }
    match record.sync.as_ref().and_then(|sync| sync.degraded) {
        Some(Degraded { copies, wanted, .. }) => Reason::LeaderDegraded { term: term.0, copies, wanted },
        None => Reason::LeaderHealthy { term: term.0 },
    }
}

/// PostgreSQL enforces nothing any more only when the record lets nobody rely on it.
fn switch_off(write: &Write<'_>, sync: &SyncRecord) -> Decision {
    if sync.leader.as_ref() != Some(&write.view.me) || !sync.sync_standby.is_empty() {
        return write.rule(&ElectionRule::only_the_primary(), None);
    }
    let action = Action::EndSync { term: write.term, mod_revision: write.record.sync_revision };
    act(action, Reason::SyncOff)
}

fn enforce(names: String, rule: &CommitRule) -> Decision {
    let members: Vec<&str> = rule.names.iter().map(NodeName::as_str).collect();
    let of = if members.is_empty() { "nobody".to_owned() } else { members.join(", ") };
    act(Action::Enforce { names }, Reason::SyncNames { count: rule.count, of })
}

/// Fewer copies than are wished for; without the time, which only the writer knows.
fn shortage(view: &ClusterView, wish: &CommitRule) -> Option<Degraded> {
    let wanted = view.settings.synchronous.node_count;
    let copies = |standbys: usize| u32::try_from(standbys).unwrap_or(u32::MAX).saturating_add(1);
    // Where no commit returns at all, none has too few copies.
    let returns = wish.count <= wish.names.len();
    (returns && wish.count < wanted).then(|| Degraded {
        copies: copies(wish.count),
        wanted: copies(wanted),
        since: None,
    })
}

/// A shortage is over when the record counts on all copies again, not when they are wished for.
fn still_short(sync: &SyncRecord, wish: &CommitRule, enforced: &CommitRule) -> Option<Degraded> {
    sync.degraded.filter(|_| enforced != wish)
}

fn same_shortage(sync: &SyncRecord, short: Option<Degraded>) -> bool {
    let size = |degraded: Option<Degraded>| degraded.map(|d| (d.copies, d.wanted));
    size(sync.degraded) == size(short)
}

fn as_written(sync: &SyncRecord, write: &Write<'_>, rule: &ElectionRule, short: Option<Degraded>) -> bool {
    sync.quorum == write.record_of(rule, short).quorum && same_shortage(sync, short)
}

/// What a write of the record needs.
struct Write<'a> {
    view: &'a ClusterView,
    record: &'a ClusterRecord,
    term: Term,
}

impl Write<'_> {
    fn record_of(&self, rule: &ElectionRule, short: Option<Degraded>) -> SyncRecord {
        let before = self.record.sync.as_ref().and_then(|sync| sync.degraded);
        // The first moment of a shortage stays.
        let since = before.filter(|before| short.is_some_and(|s| s.copies == before.copies)).and_then(|b| b.since);
        let quorum = u32::try_from(rule.quorum).unwrap_or(u32::MAX);
        let named = self.view.settings.synchronous.mode == SyncMode::Quorum || 0 < quorum;
        SyncRecord {
            leader: Some(self.view.me.clone()),
            sync_standby: rule.voters.clone(),
            quorum: named.then_some(quorum),
            degraded: short.map(|short| Degraded { since, ..short }),
        }
    }

    fn rule(&self, rule: &ElectionRule, short: Option<Degraded>) -> Decision {
        let record = self.record_of(rule, short);
        let before = self.record.sync.as_ref().and_then(|sync| sync.degraded);
        let reason = match (record.degraded, before) {
            (Some(now), before) if before.is_none_or(|before| now.copies < before.copies) => {
                Reason::SyncDegraded { copies: now.copies, wanted: now.wanted }
            }
            _ => Reason::SyncRecord {
                needed: rule.quorum + 1,
                voters: rule.voters.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", "),
            },
        };
        let mod_revision = self.record.sync_revision;
        act(Action::WriteSync { term: self.term, record, mod_revision }, reason)
    }
}
