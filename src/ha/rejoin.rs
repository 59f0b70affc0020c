//! How stopped data gets back into the cluster: as it is, rewound, or copied anew.
//!
//! Decided from the control file and the cluster's timeline history, before anything is started.

use crate::cluster::ClusterRecord;
use crate::types::{Lsn, NodeName, TimelineHistory, TimelineId};

use super::reason::Reason;
use super::view::{ClusterView, ControlState, ControlView, ServerView, UpstreamTag};

/// What stopped data needs before it can follow the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejoin {
    /// It is a prefix of the leader's history.
    AsItIs,
    /// It has WAL that the leader does not share, or may have.
    Diverged(Reason),
    /// It wrote as a primary on the timeline on which another node leads now. Two nodes have used the same
    /// number, and `pg_rewind` takes equal timelines for equal histories: only a copy helps. In words for people.
    SameTimeline(String),
}

/// Whether `leader` can be copied or rewound from, and if not, why.
pub fn ready(record: &ClusterRecord, leader: &NodeName) -> Result<(), Reason> {
    let Some(member) = record.members.get(leader) else {
        return Err(Reason::LeaderNotReady { leader: leader.clone() });
    };
    if member.value.state != "running" || !matches!(member.value.role.as_str(), "primary" | "standby_leader") {
        return Err(Reason::LeaderNotReady { leader: leader.clone() });
    }
    if member.value.checkpoint_after_promote == Some(false) {
        return Err(Reason::LeaderCheckpointPending { leader: leader.clone() });
    }
    if member.value.timeline != Some(record.timeline()) {
        return Err(Reason::LeaderTimelineUnknown { leader: leader.clone() });
    }
    Ok(())
}

/// Whose WAL this node takes while `leader` leads; none: an archive has it.
///
/// A member that its tag names serves as long as it lives and does not get its own WAL from here.
pub fn upstream(view: &ClusterView, record: &ClusterRecord, leader: &NodeName) -> Option<NodeName> {
    match &view.settings.upstream {
        UpstreamTag::Archive => None,
        UpstreamTag::Leader => Some(leader.clone()),
        UpstreamTag::Member(name) => {
            let lives = record
                .members
                .get(name)
                .is_some_and(|member| matches!(member.value.state.as_str(), "running" | "restarting" | "starting"));
            Some(if lives && !comes_from(record, name, &view.me) { name } else { leader }.clone())
        }
    }
}

/// Whether `name`'s WAL comes from `me`, over however many members.
fn comes_from(record: &ClusterRecord, name: &NodeName, me: &NodeName) -> bool {
    let mut at = name.as_str();
    // As many steps as there are members reach the beginning, or go round in a circle without this node.
    for _ in 0..=record.members.len() {
        if at == me.as_str() {
            return true;
        }
        let next = record.members.iter().find(|(known, _)| known.as_str() == at);
        match next.and_then(|(_, member)| member.value.tags.get("replicatefrom")?.as_str()) {
            Some(from) => at = from,
            None => return false,
        }
    }
    false
}

/// Whom to copy from while `leader` leads: the standby with the tag `clonefrom` that has the most, so that the primary
/// is spared; else the leader.
pub fn copy_source(view: &ClusterView, record: &ClusterRecord, leader: &NodeName) -> NodeName {
    let offers = record.members.iter().filter(|(name, _)| serves_copies(view, record, name));
    let best =
        offers.max_by(|(a, left), (b, right)| (left.value.xlog_location, b).cmp(&(right.value.xlog_location, a)));
    best.map_or(leader, |(name, _)| name).clone()
}

/// Whether `name` is a standby that offers itself for copies, on the cluster's timeline.
pub fn serves_copies(view: &ClusterView, record: &ClusterRecord, name: &NodeName) -> bool {
    record.members.get(name).is_some_and(|member| {
        *name != view.me
            && member.value.has_tag("clonefrom")
            && member.value.state == "running"
            && member.value.role == "replica"
            && member.value.timeline == Some(record.timeline())
    })
}

/// Judges stopped data against the cluster's history. The leader must be [`ready`].
///
/// Source: PostgreSQL `pg_rewind`; design section 6; the shutdown checkpoint of a primary is the last
/// record that it wrote, so a switchpoint beyond its start proves that all of it is shared.
pub fn judge(control: &ControlView, history: &TimelineHistory, leader: &NodeName) -> Rejoin {
    let timeline = control.timeline;
    let diverged = |ours: Lsn, shared: Lsn| {
        Rejoin::Diverged(Reason::RewindFrom { leader: leader.clone(), timeline, ours, shared })
    };
    if timeline == history.timeline {
        // A base backup says "in production" too, beside its signal file. Nobody but a primary says "shut down": it was
        // promoted to this number, and stopped before anybody knew.
        let wrote = match control.state {
            ControlState::ShutDown => true,
            ControlState::InProduction | ControlState::Other => !control.standby_signal,
            ControlState::ShutDownInRecovery | ControlState::InRecovery => false,
        };
        if wrote {
            let why = format!("it wrote as a primary on timeline {timeline}, on which {leader} leads");
            return Rejoin::SameTimeline(why);
        }
        return Rejoin::AsItIs;
    }
    let Some(switchpoint) = history.switchpoint_of(timeline) else {
        return diverged(control.checkpoint, Lsn(0));
    };
    match control.state {
        ControlState::ShutDown if control.checkpoint < switchpoint => Rejoin::AsItIs,
        ControlState::ShutDown => diverged(control.checkpoint, switchpoint),
        ControlState::ShutDownInRecovery | ControlState::InRecovery => {
            let reached = control.min_recovery_end.max(control.checkpoint);
            if reached <= switchpoint { Rejoin::AsItIs } else { diverged(reached, switchpoint) }
        }
        // Crashed as a primary: how far its WAL goes is not in the control file.
        ControlState::InProduction | ControlState::Other => {
            Rejoin::Diverged(Reason::RewindAfterCrash { leader: leader.clone(), timeline })
        }
    }
}

/// Whether `timeline`, which is newer than the record knows, may have come from the primary outside that `leader` follows.
/// The leader tells of it when it sees it, which is after it has sent some of it on, and may be lost in between.
pub fn may_be_from_outside(record: &ClusterRecord, leader: &NodeName, timeline: TimelineId) -> bool {
    let follows = record.members.get(leader).is_some_and(|member| member.value.role == "standby_leader");
    follows && record.timeline() < timeline
}

/// Whether it is too early to call such a timeline a side branch: nothing has arrived here for less time than it takes a
/// lost leader's key to end.
pub fn awaits_outside(view: &ClusterView, record: &ClusterRecord, leader: &NodeName, server: &ServerView) -> bool {
    let patient = view.memory.ahead_since.is_none_or(|since| view.now.since(since) < view.settings.ttl * 2);
    patient && may_be_from_outside(record, leader, server.timeline)
}

/// Judges a running standby: the shared part if it has gone beyond it, none if all is well.
pub fn beyond(history: &TimelineHistory, server: &ServerView) -> Option<Lsn> {
    let ServerView { timeline, position, streaming, .. } = *server;
    if timeline == history.timeline {
        return None;
    }
    match history.switchpoint_of(timeline) {
        Some(switchpoint) if position <= switchpoint => None,
        Some(switchpoint) => Some(switchpoint),
        // A newer timeline than the record knows, and it arrives: it can be read about soon. If nothing
        // arrives, it is a side branch, and waiting would last for ever.
        None if history.timeline < timeline && streaming => None,
        None => Some(Lsn(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SystemId;
    use crate::types::timeline::HistoryEntry;

    fn control(state: ControlState, timeline: u32, checkpoint: u64, min_recovery_end: u64) -> ControlView {
        ControlView {
            system_id: SystemId(1),
            state,
            timeline: TimelineId(timeline),
            checkpoint: Lsn(checkpoint),
            min_recovery_end: Lsn(min_recovery_end),
            standby_signal: false,
        }
    }

    fn judged(control: ControlView) -> bool {
        let history = TimelineHistory {
            timeline: TimelineId(2),
            ancestors: vec![HistoryEntry { timeline: TimelineId(1), switchpoint: Lsn(1000), reason: String::new() }],
        };
        judge(&control, &history, &"n2".parse().expect("valid")) == Rejoin::AsItIs
    }

    #[test]
    fn table() {
        use ControlState::{InProduction, InRecovery, ShutDown, ShutDownInRecovery};
        // Clean shutdown whose checkpoint the new primary has.
        assert!(judged(control(ShutDown, 1, 880, 0)));
        // Clean shutdown whose checkpoint nobody received.
        assert!(!judged(control(ShutDown, 1, 1000, 0)));
        assert!(!judged(control(ShutDown, 1, 1500, 0)));
        // Standby that stopped before, at, and beyond the switch.
        assert!(judged(control(ShutDownInRecovery, 1, 500, 900)));
        assert!(judged(control(InRecovery, 1, 500, 1000)));
        assert!(!judged(control(ShutDownInRecovery, 1, 500, 1001)));
        // Crashed primary: cannot be known.
        assert!(!judged(control(InProduction, 1, 500, 0)));
        // Standby on the same timeline; crashed "primary" of it; unknown timeline.
        assert!(judged(control(ShutDownInRecovery, 2, 2000, 2100)));
        assert!(!judged(control(InProduction, 2, 2000, 0)));
        assert!(!judged(control(ShutDown, 2, 2000, 0)));
        assert!(!judged(control(ShutDownInRecovery, 7, 500, 900)));
    }
}
