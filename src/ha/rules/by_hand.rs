//! A person asked this node for a restart or for a new copy. Goes before the pause: that keeps howdah's hands off, not
//! people's.
//!
//! ```text
//! restart: stop (a primary keeps the leader key) -> start by the ordinary rules
//! new copy: stop the standby -> move the old directory aside, copy -> start by the ordinary rules
//! ```
//! Deliberately absent: conditions and schedules. Who asks has checked them.

use crate::cluster::ClusterRecord;
use crate::cluster::records::Initialize;
use crate::ha::decide::{Action, Decision, act, begin};
use crate::ha::reason::Reason;
use crate::ha::rejoin;
use crate::ha::view::{ByHand, ClusterView, DataDirView, ProcessView};

use super::{bootstrap, safety, stopped};

/// Applies from the request until PostgreSQL answers again. What forbids everything forbids this too.
pub(in crate::ha) fn asked(view: &ClusterView) -> Option<Decision> {
    let asked = view.memory.by_hand?;
    if safety::record_unusable(view).is_some() || safety::data_unusable(view).is_some() {
        return None;
    }
    let record = view.record.fresh()?;
    match asked {
        ByHand::Restart { stopped: false } => stop(view, record),
        ByHand::Restart { stopped: true } => start_again(view),
        ByHand::Reinitialize { moved: false, .. } => replace(view, record),
        ByHand::Reinitialize { moved: true, .. } => copy_again(view).or_else(|| start(view)),
    }
}

fn stop(view: &ClusterView, record: &ClusterRecord) -> Option<Decision> {
    let ProcessView::Running { writable } = view.process else { return start_again(view) };
    let primary = writable || view.server.any().is_some_and(|server| !server.in_recovery);
    // A primary that is stopped without being sure of its permit could not be started again.
    let sure = if primary { view.permit_to_lead().is_some() } else { !record.is_leader(&view.me) };
    sure.then(|| act(Action::StopToRestart, Reason::RestartByHand))
}

/// As the ordinary rules start it, paused or not. Whatever else they would do is theirs.
fn start(view: &ClusterView) -> Option<Decision> {
    let decision = stopped::stopped(view)?;
    matches!(decision.action, Action::StartPrimary | Action::StartStandby { .. }).then_some(decision)
}

fn start_again(view: &ClusterView) -> Option<Decision> {
    start(view).map(|decision| Decision { reason: Reason::StartByHand, ..decision })
}

/// A copy that did not come to an end is made again, paused or not.
fn copy_again(view: &ClusterView) -> Option<Decision> {
    bootstrap::no_data(view).filter(|decision| matches!(decision.action, Action::Clone { .. }))
}

fn replace(view: &ClusterView, record: &ClusterRecord) -> Option<Decision> {
    let leader = record.leader.as_ref().map(|leader| &leader.value).filter(|leader| **leader != view.me)?;
    // Stopped only when it can be copied: until then the old data serves.
    rejoin::ready(record, leader).ok()?;
    record.initialize.as_ref().filter(|initialize| matches!(initialize.value, Initialize::Done(_)))?;
    let reason = Reason::ReinitializeByHand { leader: leader.clone() };
    match view.process {
        ProcessView::Running { writable: true } | ProcessView::Stopping | ProcessView::Unknown => None,
        ProcessView::Running { writable: false } => Some(act(Action::StopStandby, reason)),
        ProcessView::Absent { .. } => {
            let aside = (view.data_dir != DataDirView::Empty).then(|| "a new copy was asked for".to_owned());
            let from_leader = matches!(view.memory.by_hand, Some(ByHand::Reinitialize { from_leader: true, .. }));
            let from = if from_leader { leader.clone() } else { rejoin::copy_source(view, record, leader) };
            Some(begin(view, Action::Clone { from, aside }, reason))
        }
    }
}
