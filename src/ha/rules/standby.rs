//! PostgreSQL runs as a standby: follow, race, or become the primary.

use std::time::Duration;

use crate::cluster::ClusterRecord;
use crate::ha::candidate;
use crate::ha::decide::{Action, Decision, act, hold, wait_briefly};
use crate::ha::reason::Reason;
use crate::ha::rejoin;
use crate::ha::sync_proof;
use crate::ha::view::{ClusterView, DataDirView, ProcessView, ServerView};
use crate::types::{Fact, NodeName};

use super::{standby_cluster, stopped, sync};

/// Members are asked again so soon while they prepare their votes.
const VOTES_AGAIN: Duration = Duration::from_millis(30);

/// Applies while the server says that it is in recovery, or does not say anything yet.
pub(in crate::ha) fn running(view: &ClusterView) -> Option<Decision> {
    let ProcessView::Running { writable } = view.process else { return None };
    let record = view.record.fresh()?;
    let server = match &view.server {
        Fact::Fresh(server) if server.in_recovery => server,
        Fact::Fresh(_) => return None,
        Fact::Stale { .. } | Fact::Unknown { .. } if writable => return None,
        Fact::Stale { age, .. } => {
            return Some(wait_briefly(Reason::ServerSilent { why: format!("for {:.1} s", age.as_secs_f64()) }));
        }
        Fact::Unknown { why } => return Some(wait_briefly(Reason::Starting { why: why.clone() })),
    };
    Some(match &record.leader {
        Some(leader) if leader.value == view.me => as_leader(view, record, server),
        Some(leader) => as_follower(view, record, server, &leader.value),
        None => race(view, record, server),
    })
}

/// The key is won. Promoting is a decision of its own, on a view of its own.
fn as_leader(view: &ClusterView, record: &ClusterRecord, server: &ServerView) -> Decision {
    // The key was taken on a copy of the record that was behind: somebody has led, and written, since.
    // It is given back as soon as PostgreSQL has stopped.
    if server.timeline < record.timeline() {
        let reason = Reason::BehindOwnCluster { ours: server.timeline, cluster: record.timeline() };
        return act(Action::StopStandby, reason);
    }
    if view.memory.ending_term.is_some() && view.memory.ending_term == record.term() {
        return act(Action::StopStandby, Reason::ReleaseAgain);
    }
    if let Some(outside) = &view.settings.standby_cluster {
        return standby_cluster::lead(view, record, server, outside);
    }
    if record.is_being_created() && matches!(view.process, ProcessView::Running { writable: true }) {
        // Restored from a backup: it ends its recovery where it was told to.
        return wait_briefly(Reason::Recovering { position: server.position });
    }
    if let Some(pause) = view.pre_promote_pause() {
        return act(Action::StopStandby, Reason::PrePromoteRefused { pause });
    }
    if view.permit_to_lead().is_none() {
        return wait_briefly(Reason::AwaitingRenewal);
    }
    if let Some(term) =
        record.term().filter(|term| view.settings.pre_promote && view.memory.pre_promoted != Some(*term))
    {
        return act(Action::PrePromote { term }, Reason::PrePromote);
    }
    if let Some(term) = record.term()
        && let Some(decision) = sync::before_promotion(view, record, server, term)
    {
        return decision;
    }
    if let Some(term) = record.term().filter(|_| record.reserved_from(server.timeline).is_none()) {
        if let Some(why) = record.reserved_damage() {
            return wait_briefly(Reason::ReservedUnreadable { why: why.to_owned() });
        }
        let timeline = record.next_timeline(server.timeline);
        return act(Action::ReserveTimeline { term, timeline }, Reason::ReserveTimeline { timeline });
    }
    act(Action::Promote, Reason::WonRace { position: server.position })
}

fn as_follower(view: &ClusterView, record: &ClusterRecord, server: &ServerView, leader: &NodeName) -> Decision {
    // Judged only against a history that reaches the leader's own timeline.
    if rejoin::ready(record, leader).is_ok()
        && !rejoin::awaits_outside(view, record, leader, server)
        && let Some(shared) = rejoin::beyond(&record.timeline_history(), server)
    {
        let reason = Reason::StopToRewind { ours: server.position, shared, timeline: server.timeline };
        return act(Action::StopStandby, reason);
    }
    let Some(upstream) = rejoin::upstream(view, record, leader) else {
        let reason = Reason::ArchiveOnly { leader: leader.clone() };
        let follows = server.follows.is_some() || server.follows_outside;
        return if follows { act(Action::Follow { leader: None }, reason) } else { hold(view, reason) };
    };
    if server.follows.as_ref() != Some(&upstream) {
        if !record.members.contains_key(&upstream) {
            // Where it listens is not known yet.
            return wait_briefly(Reason::LeaderNotReady { leader: upstream });
        }
        let reason = if upstream == *leader {
            Reason::FollowNewLeader { leader: upstream.clone() }
        } else {
            Reason::FollowByTag { upstream: upstream.clone() }
        };
        return act(Action::Follow { leader: Some(upstream) }, reason);
    }
    if !view.memory.slots_to_copy.is_empty() && server.streaming {
        return act(Action::StopStandby, Reason::RestartForSlots { slots: view.memory.slots_to_copy.join(", ") });
    }
    hold(view, Reason::Following { leader: upstream, streaming: server.streaming })
}

fn race(view: &ClusterView, record: &ClusterRecord, server: &ServerView) -> Decision {
    if record.initialize.is_none() {
        return match &view.data_dir {
            DataDirView::Present(control) if view.settings.standby_cluster.is_some() => {
                stopped::unclaimed(view, record, control)
            }
            _ => wait_briefly(Reason::StandbyWithoutCluster),
        };
    }
    let judged = candidate::may_lead(view, record, server);
    let counted = sync_proof::in_force(record).is_some();
    if counted && (server.receiving || server.follows.is_some() || server.follows_outside) {
        // Votes count only when no more can be received: the former primary may still run somewhere, and a commit that
        // is confirmed to it now would be on no successor.
        return match judged {
            Ok(reason @ Reason::NamedSuccessor { .. }) => act(Action::TakeLeader, reason),
            Err(
                reason @ (Reason::HandoverToOther { .. }
                | Reason::RequestForOther { .. }
                | Reason::WalStillFlowing { .. }
                | Reason::SyncUnreadable { .. }
                | Reason::ReservedUnreadable { .. }),
            ) => wait_briefly(reason),
            Ok(_) | Err(_) => act(Action::StopReceiving, Reason::StopReceiving),
        };
    }
    match judged {
        Ok(reason) => act(Action::TakeLeader, reason),
        Err(reason @ Reason::SyncVotesMissing { .. }) if view.leaderless_for() < view.settings.ttl => {
            Decision { action: Action::Wait, reason, recheck_after: VOTES_AGAIN }
        }
        Err(reason) => wait_briefly(reason),
    }
}
