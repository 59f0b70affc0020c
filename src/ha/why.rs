//! Why a node would not lead: every rule that stops it, found by asking the core again and again.
//!
//! ```text
//! a view without a leader -> decide -> a refusal -> the same view with that obstacle lifted -> decide -> ...
//! ```
//! So the list holds what the rules themselves say, and nothing that they do not. Deliberately absent: a second opinion.

use super::decide::{Action, decide};
use super::reason::Reason;
use super::view::ClusterView;
use super::what_if::survivors;
use crate::types::{Fact, NodeName, WalBytes};

/// Obstacles in a row; each is lifted once.
const MOST: usize = 24;

/// Each rule that would keep `name` from leading if nobody led now, in the order in which they are met. Empty: it would
/// lead. None: it is no member as far as `view` knows.
pub fn obstacles(view: &ClusterView, name: &NodeName) -> Option<Vec<Reason>> {
    let record = view.record.any()?;
    let leader = record.leader.as_ref().map(|leader| leader.value.clone());
    let victim = leader.filter(|leader| leader != name);
    let mut all = survivors(view, record, victim.as_ref());
    let mut imagined = all.remove(name)?;
    if *name == view.me || view.unconfirmed_for().is_some() {
        // What it knows of its own connection to the store counts, too; of another's while no majority answers.
        imagined.record = match (&view.record, imagined.record) {
            (Fact::Stale { age, .. }, Fact::Fresh(record)) => Fact::Stale { value: record, age: *age },
            (_, record) => record,
        };
    }
    for (other, seen) in &all {
        let server = seen.server.fresh();
        let peer = super::view::PeerView {
            writable: false,
            promotable: !seen.settings.nofailover && server.is_some(),
            timeline: server.map(|server| server.timeline),
            position: server.map(|server| server.position),
            pending: false,
            receiving: false,
        };
        imagined.peers.insert(other.clone(), Fact::Fresh(peer));
    }
    Some(peel(imagined))
}

fn peel(mut view: ClusterView) -> Vec<Reason> {
    let mut found: Vec<Reason> = Vec::new();
    for _ in 0..MOST {
        let decision = decide(&view);
        match decision.action {
            Action::TakeLeader => break,
            Action::StopReceiving => {
                if let Fact::Fresh(server) = &mut view.server {
                    server.receiving = false;
                    server.follows = None;
                }
                continue;
            }
            _ => (),
        }
        if found.contains(&decision.reason) {
            break;
        }
        let lifted = lift(&mut view, &decision.reason);
        found.push(decision.reason);
        if !lifted {
            break;
        }
    }
    found
}

/// Changes `view` so that `reason` holds no longer; false where that is not one fact.
fn lift(view: &mut ClusterView, reason: &Reason) -> bool {
    if let Fact::Stale { value, .. } = &view.record
        && matches!(reason, Reason::StoreStale { .. })
    {
        view.record = Fact::Fresh(value.clone());
        return true;
    }
    let Fact::Fresh(record) = &mut view.record else { return false };
    match reason {
        Reason::Paused | Reason::PausedWithoutPrimary => view.settings.pause = false,
        Reason::NoFailoverTag => view.settings.nofailover = false,
        Reason::LagTooHigh { .. } => view.settings.maximum_lag_on_failover = WalBytes(u64::MAX),
        Reason::PeerAhead { peer, .. }
        | Reason::PeerTimelineAhead { peer, .. }
        | Reason::LivePrimary { peer }
        | Reason::PeerPreferred { peer, .. }
        | Reason::PeerStillReplaying { peer } => return view.peers.remove(peer).is_some(),
        Reason::HandoverToOther { .. } => record.handover = None,
        Reason::RequestForOther { .. } => record.failover = None,
        Reason::WalStillFlowing { .. } => view.memory.wal_advanced_at = None,
        Reason::PrePromoteRefused { .. } => view.memory.pre_promote_failed = None,
        Reason::NotSynchronous { .. } => {
            let Some(sync) = &mut record.sync else { return false };
            sync.sync_standby.insert(view.me.clone());
        }
        Reason::SyncVotesMissing { .. } => {
            let Some(sync) = &mut record.sync else { return false };
            sync.quorum = Some(0);
        }
        Reason::SyncUnreadable { .. } => {
            let sync = |key: &String| key.ends_with("/sync") && !key.ends_with("/members/sync");
            record.damaged.retain(|key, _| !sync(key));
        }
        Reason::ReservedUnreadable { .. } => record.damaged.retain(|key, _| !key.ends_with("/howdah/reserved")),
        Reason::StillReplaying { .. } => {
            let Fact::Fresh(server) = &mut view.server else { return false };
            server.replaying = false;
        }
        Reason::TimelineBehind { .. } => {
            let timeline = record.timeline();
            let Fact::Fresh(server) = &mut view.server else { return false };
            server.timeline = timeline;
        }
        _ => return false,
    }
    true
}
