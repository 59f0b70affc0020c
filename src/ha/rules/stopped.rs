//! Data is there and PostgreSQL does not run.

use std::time::Duration;

use crate::cluster::ClusterRecord;
use crate::cluster::records::Initialize;
use crate::ha::candidate;
use crate::ha::decide::{Action, Decision, act, begin, start_standby, start_standby_leader, wait, wait_briefly};
use crate::ha::reason::Reason;
use crate::ha::rejoin::{self, Rejoin};
use crate::ha::sync_proof;
use crate::ha::view::{ClusterView, ControlState, ControlView, DataDirView, ProcessView, SyncMode};
use crate::types::{NodeName, Term};

/// So many crashes in a row make another node preferable.
const CRASHES_TOLERATED: usize = 3;

/// After so many stops to be rewound of data that then need not be, another start would end in the next one. The first
/// may have found it in the middle of its replay.
const STOPS_BELIEVED: u32 = 2;

/// Pause between starts of a PostgreSQL that keeps crashing when nobody else can lead.
const CRASH_PAUSE: Duration = Duration::from_secs(5);

/// How long a stopped primary looks for a successor with its shutdown checkpoint before it starts again.
const HANDOVER_PATIENCE: Duration = Duration::from_secs(3);

/// Start as what the record says; never as a primary without the key and a permit.
pub(in crate::ha) fn stopped(view: &ClusterView) -> Option<Decision> {
    let ProcessView::Absent { crashed } = view.process else { return None };
    let DataDirView::Present(control) = &view.data_dir else { return None };
    let record = view.record.fresh()?;
    match &record.leader {
        Some(leader) if leader.value == view.me => {
            Some(as_leader(view, record, control, Term(leader.create_revision), crashed))
        }
        Some(leader) => Some(as_follower(view, record, control, &leader.value)),
        None if record.initialize.is_none() => Some(unclaimed(view, record, control)),
        None => Some(start_standby(view, None, Reason::JoinAsStandby { leader: None })),
    }
}

/// There is data but no cluster: whoever was primary brings it in. A standby cluster begins with a standby's data, and
/// whoever copied it may have been stopped before the cluster existed.
pub(super) fn unclaimed(view: &ClusterView, record: &ClusterRecord, control: &ControlView) -> Decision {
    if control.standby_signal && view.settings.standby_cluster.is_none() {
        return wait(view, Reason::StandbyWithoutCluster);
    }
    if view.settings.nofailover {
        return wait(view, Reason::BootstrapForbidden);
    }
    if control.timeline < record.timeline() {
        return wait(view, Reason::TimelineBehind { ours: control.timeline, cluster: record.timeline() });
    }
    act(Action::ClaimBootstrap, Reason::AdoptCluster { system_id: control.system_id })
}

fn as_leader(view: &ClusterView, record: &ClusterRecord, control: &ControlView, term: Term, crashed: bool) -> Decision {
    if view.memory.ending_term == Some(term) {
        return act(Action::ReleaseLeader { term }, Reason::ReleaseAgain);
    }
    if control.timeline < record.timeline() {
        let reason = Reason::BehindOwnCluster { ours: control.timeline, cluster: record.timeline() };
        return act(Action::ReleaseLeader { term }, reason);
    }
    if let Some(outside) = &view.settings.standby_cluster {
        return start_standby_leader(view, Reason::FollowOutside { outside: outside.clone() });
    }
    if let Some(pause) = view.pre_promote_pause() {
        return act(Action::ReleaseLeader { term }, Reason::PrePromoteRefused { pause });
    }
    if view.permit_to_lead().is_none() {
        return wait_briefly(Reason::AwaitingRenewal);
    }
    // The key was won by a standby that has not been promoted yet. Started as a primary it would go on in
    // the timeline of the former primary, and nobody could tell their histories apart afterwards.
    // What a restored backup was when it was made says nothing.
    let was_standby = matches!(control.state, ControlState::InRecovery | ControlState::ShutDownInRecovery);
    if control.standby_signal || (was_standby && !record.is_being_created()) {
        return start_standby(view, None, Reason::StartToPromote);
    }
    // Another was the last to acknowledge commits: this data is no primary's to go on with.
    if let Some(sync) = sync_proof::in_force(record)
        && sync.leader.as_ref() != Some(&view.me)
        && view.settings.synchronous.mode != SyncMode::Off
    {
        let proven = sync.leader.iter().chain(&sync.sync_standby).map(NodeName::as_str).collect::<Vec<_>>().join(", ");
        return act(Action::ReleaseLeader { term }, Reason::NotSynchronous { proven });
    }
    if let Some(request) = &record.failover
        && view.memory.stopped_for_handover.is_some()
    {
        return hand_over(view, control, term, request.mod_revision, request.value.member.as_ref());
    }
    start_primary(view, record, term, crashed)
}

/// A restart in place loses nothing, as long as it comes to something.
fn start_primary(view: &ClusterView, record: &ClusterRecord, term: Term, crashed: bool) -> Decision {
    let starts = &view.memory.crash_restarts;
    if candidate::may_others_lead(view, record) {
        let limit = view.settings.primary_start_timeout;
        let give_up = if crashed && limit.is_zero() {
            Some(Reason::FailoverRatherThanRestart)
        } else if start_took_too_long(view) {
            Some(Reason::StartTooSlow { limit })
        } else if CRASHES_TOLERATED <= starts.len() {
            Some(Reason::CrashLoop { attempts: starts.len() })
        } else {
            None
        };
        if let Some(reason) = give_up {
            return act(Action::ReleaseLeader { term }, reason);
        }
    }
    if CRASHES_TOLERATED <= starts.len() && starts.last().is_some_and(|last| view.now.since(*last) < CRASH_PAUSE) {
        // Nobody else can lead: keep trying, but not in a tight loop.
        return wait_briefly(Reason::CrashLoop { attempts: starts.len() });
    }
    let attempt = starts.len() + 1;
    let creating = record.initialize.as_ref().is_some_and(|i| matches!(i.value, Initialize::Running));
    let reason = match crashed {
        true => Reason::CrashedRestartInPlace { attempt },
        false if creating => Reason::StartNewCluster,
        false => Reason::StartAfterOutage,
    };
    act(Action::StartPrimary, reason)
}

/// Whether PostgreSQL has been starting as the primary for longer than `primary_start_timeout`.
pub(super) fn start_took_too_long(view: &ClusterView) -> bool {
    let limit = view.settings.primary_start_timeout;
    !limit.is_zero() && view.memory.starting_since.is_some_and(|since| limit < view.now.since(since))
}

/// PostgreSQL was stopped to hand over: find the one that has everything, or take the job back.
fn hand_over(
    view: &ClusterView,
    control: &ControlView,
    term: Term,
    request: i64,
    wanted: Option<&NodeName>,
) -> Decision {
    if control.state == ControlState::ShutDown {
        match candidate::proven(view, control.checkpoint, wanted) {
            Ok(to) => {
                let shutdown_lsn = control.checkpoint;
                let why = "switchover".to_owned();
                let action = Action::HandOver { term, to: to.clone(), shutdown_lsn, why };
                return act(action, Reason::SwitchoverHandOver { to, shutdown_lsn });
            }
            Err(why) => {
                let waited = view.memory.stopped_for_handover.map_or(HANDOVER_PATIENCE, |at| view.now.since(at));
                if waited < HANDOVER_PATIENCE {
                    return Decision {
                        action: Action::Wait,
                        reason: Reason::SwitchoverAwaitsProof { why },
                        recheck_after: Duration::from_millis(10),
                    };
                }
                return act(Action::AbandonHandover { mod_revision: request }, Reason::SwitchoverUnproven { why });
            }
        }
    }
    let why = "PostgreSQL did not shut down cleanly".to_owned();
    act(Action::AbandonHandover { mod_revision: request }, Reason::SwitchoverUnproven { why })
}

fn as_follower(view: &ClusterView, record: &ClusterRecord, control: &ControlView, leader: &NodeName) -> Decision {
    // Before the cluster says which database it is, data from elsewhere would look like diverged data.
    if !record.initialize.as_ref().is_some_and(|i| matches!(i.value, Initialize::Done(_))) {
        return wait(view, Reason::BootstrapRunningOn { node: leader.clone() });
    }
    if let Err(reason) = rejoin::ready(record, leader) {
        // A standby's data may be served meanwhile; a former primary's must be judged first.
        if control.standby_signal
            && record.members.contains_key(leader)
            && !matches!(control.state, ControlState::ShutDown | ControlState::InProduction)
        {
            return join(view, record, leader);
        }
        return wait_briefly(reason);
    }
    let was_standby = matches!(control.state, ControlState::InRecovery | ControlState::ShutDownInRecovery);
    // Whether it is a side branch shows when it runs.
    let judged = 0 < view.memory.stops_to_rewind;
    if was_standby && !judged && rejoin::may_be_from_outside(record, leader, control.timeline) {
        return join(view, record, leader);
    }
    match rejoin::judge(control, &record.timeline_history(), leader) {
        Rejoin::AsItIs if STOPS_BELIEVED <= view.memory.stops_to_rewind => {
            let why =
                "when it runs it is beyond what the cluster shares, and when it is stopped nothing shows that: there \
                       is part of a record that it cannot replay"
                    .to_owned();
            copy(view, record, leader, why)
        }
        Rejoin::AsItIs => join(view, record, leader),
        Rejoin::Diverged(reason) => match &view.memory.rewind_failed {
            None if view.settings.use_pg_rewind => begin(view, Action::Rewind { from: leader.clone() }, reason),
            None => copy(view, record, leader, "use_pg_rewind is off and the data has diverged".to_owned()),
            Some(failed) => copy(view, record, leader, failed.clone()),
        },
        Rejoin::SameTimeline(why) => copy(view, record, leader, why),
    }
}

fn join(view: &ClusterView, record: &ClusterRecord, leader: &NodeName) -> Decision {
    let upstream = rejoin::upstream(view, record, leader);
    start_standby(view, upstream.as_ref(), Reason::JoinAsStandby { leader: upstream.clone() })
}

fn copy(view: &ClusterView, record: &ClusterRecord, leader: &NodeName, why: String) -> Decision {
    let from = rejoin::copy_source(view, record, leader);
    let action = Action::Clone { from: from.clone(), aside: Some(why.clone()) };
    begin(view, action, Reason::CloneFrom { leader: from, why })
}
