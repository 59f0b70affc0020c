//! The cluster follows a primary outside: its leader is a standby, and nobody here writes.
//!
//! ```text
//! created:   copy from outside -> start as a standby of it -> the cluster exists
//! demoted:   the primary stops in order -> starts as a standby of the one outside
//! promoted:  standby_cluster is taken out of the settings -> the ordinary rules promote the leader
//! ```
//! Only the leader receives from outside; the other members follow it by the ordinary rules. Deliberately absent:
//! whether the outside shares our history. PostgreSQL finds out, and does not stream then.

use crate::cluster::ClusterRecord;
use crate::cluster::record::Versioned;
use crate::cluster::records::{FailoverRecord, Initialize};
use crate::ha::candidate;
use crate::ha::decide::{Action, Decision, act, hold};
use crate::ha::reason::Reason;
use crate::ha::view::{ClusterView, DataDirView, ProcessView, ServerView};

/// The leader runs as a standby, as it should.
pub(super) fn lead(view: &ClusterView, record: &ClusterRecord, server: &ServerView, outside: &str) -> Decision {
    let outside = outside.to_owned();
    // Its promotion was asked for before the cluster was to follow, and may still come true: it would write.
    if matches!(view.process, ProcessView::Running { writable: true }) {
        return act(Action::StopStandby, Reason::DemoteCluster { outside });
    }
    let Some(term) = record.term() else { return hold(view, Reason::LeaderKeyGone) };
    if !server.follows_outside {
        return act(Action::FollowOutside, Reason::FollowOutside { outside });
    }
    if record.initialize.as_ref().is_none_or(|i| matches!(i.value, Initialize::Running))
        && let DataDirView::Present(control) = &view.data_dir
    {
        let system_id = control.system_id;
        return act(Action::FinishBootstrap { term, system_id }, Reason::DatabaseCreated { system_id });
    }
    // The number that the primary outside will use if it is promoted next. Whoever leads after this node gets another:
    // what a member has received from there is then never taken for its own.
    if record.reserved_from(server.timeline).is_none() && record.reserved_damage().is_none() {
        let timeline = record.next_timeline(server.timeline);
        return act(Action::ReserveTimeline { term, timeline }, Reason::ReserveTimeline { timeline });
    }
    // What was confirmed to a primary of this cluster says nothing about WAL from outside.
    if record.sync.is_some() {
        return act(Action::EndSync { term, mod_revision: record.sync_revision }, Reason::SyncOff);
    }
    if let Some(request) = record.failover.as_ref().filter(|_| view.request_due) {
        return change(view, record, request);
    }
    hold(view, Reason::StandbyLeader { outside, streaming: server.streaming })
}

/// There is nothing to hand over but the key: whoever leads next goes on from where it is.
fn change(view: &ClusterView, record: &ClusterRecord, request: &Versioned<FailoverRecord>) -> Decision {
    let FailoverRecord { leader, member, .. } = &request.value;
    let wanted = match member {
        Some(member) => candidate::is_able(view, record, member).then_some(member),
        None => record.members.keys().find(|name| candidate::is_able(view, record, name)),
    };
    match (wanted, record.term()) {
        (Some(to), Some(term)) if leader.as_ref().is_none_or(|leader| *leader == view.me) => {
            act(Action::ReleaseLeader { term }, Reason::ReleaseTo { to: to.clone() })
        }
        _ => {
            let mod_revision = request.mod_revision;
            let why = "no member that it names can lead now".to_owned();
            act(Action::ClearRequest { mod_revision }, Reason::RequestRefused { why })
        }
    }
}
