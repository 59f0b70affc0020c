//! From an action to its effects, in order. A crash may fall between any two steps; the next decision,
//! made from what is then there, goes on.

use super::decide::Action;
use super::names_to_start_with;
use super::step::{BY_HAND, PgStep, RecordStep, Step};
use super::view::ClusterView;
use crate::types::{StopMode, TimelineId};

/// The steps of `action`. Empty when nothing is to be done, or when a permit that the action needs does
/// not hold any more: a promotion cannot be expressed without one, nor without a timeline of its own.
pub fn plan(action: &Action, view: &ClusterView) -> Vec<Step> {
    let permit = view.permit_to_lead();
    match action {
        Action::Hold | Action::Wait => Vec::new(),
        Action::ClaimBootstrap => vec![Step::Record(RecordStep::ClaimBootstrap)],
        Action::Initdb => vec![Step::Pg(PgStep::Initdb)],
        Action::MoveFailedAside { why } => vec![Step::Pg(PgStep::MoveAside { why: why.clone() })],
        // Nothing can be created on a standby: the roles are those of the primary outside.
        Action::FinishBootstrap { term, system_id } if view.settings.standby_cluster.is_some() => {
            vec![Step::Record(RecordStep::FinishBootstrap { term: *term, system_id: *system_id })]
        }
        Action::FinishBootstrap { term, system_id } => vec![
            Step::Pg(PgStep::CreateRoles),
            Step::Record(RecordStep::FinishBootstrap { term: *term, system_id: *system_id }),
        ],
        Action::Clone { from, aside } => {
            let mut steps = Vec::new();
            if let Some(why) = aside {
                steps.push(Step::Pg(PgStep::MoveAside { why: why.clone() }));
            }
            steps.push(Step::Pg(PgStep::BaseBackup { from: from.clone() }));
            steps
        }
        Action::Rewind { from } => vec![Step::Pg(PgStep::Rewind { from: from.clone() })],
        Action::StartStandby { follow } => {
            vec![Step::Pg(PgStep::Configure { follow: follow.clone() }), Step::Pg(PgStep::StartStandby)]
        }
        Action::StartPrimary => match permit {
            Some(permit) => {
                let configure = match names_to_start_with(view) {
                    Some(names) => PgStep::Enforce { names: Some(names) },
                    None => PgStep::Configure { follow: None },
                };
                vec![Step::Pg(configure), Step::Pg(PgStep::StartPrimary { permit })]
            }
            None => Vec::new(),
        },
        Action::TakeLeader => vec![Step::Record(RecordStep::TakeLeader { reserve: reservation(view) })],
        Action::ReserveTimeline { term, timeline } => {
            vec![Step::Record(RecordStep::ReserveTimeline { term: *term, timeline: *timeline })]
        }
        Action::PrePromote { term } => vec![Step::Pg(PgStep::PrePromote { term: *term })],
        Action::FollowOutside => vec![Step::Pg(PgStep::ConfigureOutside)],
        Action::StartStandbyLeader => vec![Step::Pg(PgStep::ConfigureOutside), Step::Pg(PgStep::StartStandby)],
        Action::CloneOutside => vec![Step::Pg(PgStep::BaseBackupOutside)],
        Action::Promote => match (permit, reserved(view)) {
            (Some(permit), Some(timeline)) => vec![Step::Pg(PgStep::Promote { permit, timeline })],
            _ => Vec::new(),
        },
        Action::Follow { leader } => vec![Step::Pg(PgStep::Configure { follow: leader.clone() })],
        Action::StopStandby => vec![Step::Pg(PgStep::Stop { mode: StopMode::Fast })],
        Action::StopToRestart => vec![
            Step::Pg(PgStep::Checkpoint { request_revision: BY_HAND }),
            Step::Pg(PgStep::Stop { mode: StopMode::Fast }),
        ],
        Action::Demote => vec![Step::Pg(PgStep::Fence)],
        Action::ReleaseLeader { term } => vec![Step::Record(RecordStep::ReleaseLeader { term: *term })],
        Action::Checkpoint { request_revision } => {
            vec![Step::Pg(PgStep::Checkpoint { request_revision: *request_revision })]
        }
        Action::StopPrimary => vec![Step::Pg(PgStep::Stop { mode: StopMode::Fast })],
        Action::HandOver { term, to, shutdown_lsn, why } => vec![Step::Record(RecordStep::HandOver {
            term: *term,
            to: to.clone(),
            shutdown_lsn: *shutdown_lsn,
            why: why.clone(),
        })],
        Action::ClearRequest { mod_revision } | Action::AbandonHandover { mod_revision } => {
            vec![Step::Record(RecordStep::ClearRequest { mod_revision: *mod_revision })]
        }
        Action::StopReceiving => vec![Step::Pg(PgStep::Configure { follow: None })],
        Action::WriteSync { term, record, mod_revision } => vec![Step::Record(RecordStep::WriteSync {
            term: *term,
            record: record.clone(),
            mod_revision: *mod_revision,
        })],
        Action::Enforce { names } => vec![Step::Pg(PgStep::Enforce { names: Some(names.clone()) })],
        Action::EndSync { term, mod_revision } if view.settings.standby_cluster.is_some() => {
            vec![Step::Record(RecordStep::RemoveSync { term: *term, mod_revision: *mod_revision })]
        }
        Action::EndSync { term, mod_revision } => vec![
            Step::Pg(PgStep::Enforce { names: None }),
            Step::Record(RecordStep::RemoveSync { term: *term, mod_revision: *mod_revision }),
        ],
        Action::CancelTask => vec![Step::Pg(PgStep::CancelTask)],
        Action::Stop { mode } => vec![Step::Pg(PgStep::Stop { mode: *mode })],
        Action::Exit => vec![Step::Exit],
    }
}

/// The number that goes with the leader key.
fn reservation(view: &ClusterView) -> Option<TimelineId> {
    let server = view.server.fresh().filter(|server| server.in_recovery)?;
    Some(view.record.fresh()?.next_timeline(server.timeline))
}

/// The number that this leadership has been given.
fn reserved(view: &ClusterView) -> Option<TimelineId> {
    view.record.fresh()?.reserved_from(view.server.fresh()?.timeline)
}
