//! What comes before everything else: nobody writes without a permit, and blind nodes change nothing.

use std::time::Duration;

use crate::cluster::ClusterRecord;
use crate::cluster::records::Initialize;
use crate::ha::decide::{Action, Decision, act, hold, start_standby, wait, wait_briefly};
use crate::ha::reason::Reason;
use crate::ha::view::{ClusterView, DataDirView, ProcessView};
use crate::types::{Fact, StopMode};

/// A server that is busy answers within that.
const SILENT: Duration = Duration::from_secs(2);

/// A server that may accept writes while no permit holds is killed, paused or not, busy or not.
///
/// The guardian does the same by itself at the deadline; this rule covers a guardian that was told
/// later than the agent knows.
pub(in crate::ha) fn writable_without_permit(view: &ClusterView) -> Option<Decision> {
    if !may_write(view) {
        return None;
    }
    if let Fact::Fresh(record) = &view.record
        && let Some(leader) = &record.leader
        && leader.value != view.me
        && [view.permit, view.guardian_permit].iter().flatten().all(|permit| permit.term.0 < leader.create_revision)
    {
        return Some(act(Action::Demote, Reason::LeaderIsOther { leader: leader.value.clone() }));
    }
    if !view.running_is_permitted() {
        return Some(act(Action::Demote, Reason::PermitLost));
    }
    None
}

/// Whether the running server may accept writes: as its parent started it, or as it says itself.
fn may_write(view: &ClusterView) -> bool {
    match view.process {
        ProcessView::Running { writable } => writable || view.server.any().is_some_and(|server| !server.in_recovery),
        ProcessView::Absent { .. } | ProcessView::Stopping | ProcessView::Unknown => false,
    }
}

/// While the postmaster is going down, or nobody can see it, there is nothing to decide on.
pub(in crate::ha) fn process_in_transition(view: &ClusterView) -> Option<Decision> {
    match view.process {
        ProcessView::Stopping if view.memory.unmanaged && view.shutting_down => {
            Some(act(Action::Exit, Reason::Unmanaged))
        }
        ProcessView::Stopping if view.memory.unmanaged => Some(wait(view, Reason::Unmanaged)),
        ProcessView::Stopping => Some(wait_briefly(Reason::Stopping)),
        ProcessView::Unknown => Some(wait_briefly(Reason::GuardianUnreachable)),
        ProcessView::Absent { .. } | ProcessView::Running { .. } => None,
    }
}

/// Pause means hands off (P7): nothing is started, stopped or promoted, and the leader key stays where it is.
pub(in crate::ha) fn paused(view: &ClusterView) -> Option<Decision> {
    if !view.settings.pause {
        return None;
    }
    let leads = view.record.any().is_some_and(|record| record.is_leader(&view.me));
    let primary = matches!(view.process, ProcessView::Running { .. })
        && view.server.any().is_none_or(|server| !server.in_recovery);
    Some(hold(view, if leads && !primary { Reason::PausedWithoutPrimary } else { Reason::Paused }))
}

/// Without a usable record nothing changes, with one exception: data that lies there stopped may be
/// served read-only, following nobody, when a majority has been silent for a while.
pub(in crate::ha) fn record_unusable(view: &ClusterView) -> Option<Decision> {
    match &view.record {
        Fact::Fresh(record) => {
            let keys = needed_and_damaged(record);
            (!keys.is_empty()).then(|| wait(view, Reason::RecordDamaged { keys: keys.join("; ") }))
        }
        Fact::Stale { value: record, age } => {
            let reason = Reason::StoreStale { age: *age };
            let long = view.settings.ttl < *age;
            let stopped = matches!(view.process, ProcessView::Absent { .. });
            let ours = match (&view.data_dir, &record.initialize) {
                (DataDirView::Present(control), Some(initialize)) => {
                    matches!(initialize.value, Initialize::Done(id) if id == control.system_id)
                }
                _ => false,
            };
            Some(if long && stopped && ours { start_standby(view, None, reason) } else { wait_briefly(reason) })
        }
        Fact::Unknown { why } => Some(wait_briefly(Reason::StoreUnknown { why: why.clone() })),
    }
}

/// The damaged keys without which no rule can judge: who leads, which database, which timelines.
///
/// Any other key stands for less: a damaged request is no request, a damaged member does not answer, and a
/// stranger's scribble in one of them must not stop the cluster from failing over.
fn needed_and_damaged(record: &ClusterRecord) -> Vec<String> {
    let needed = |key: &str| {
        let mut parts = key.rsplit('/');
        let name = parts.next().unwrap_or_default();
        matches!(name, "initialize" | "leader" | "history") && parts.next() != Some("members")
    };
    record.damaged.iter().filter(|(key, _)| needed(key)).map(|(key, why)| format!("{key}: {why}")).collect()
}

/// PostgreSQL that does not answer, and whose directory is not there any more, has nothing to go on with: it is ended, so
/// that another node can lead, or this one can be copied anew. PostgreSQL looks for its directory once a minute only.
/// One that answers is left alone: its files are open. So is one whose directory cannot be read: that says nothing.
pub(in crate::ha) fn data_gone(view: &ClusterView) -> Option<Decision> {
    let ProcessView::Running { .. } = view.process else { return None };
    let what = match &view.data_dir {
        DataDirView::Empty => "it is missing or empty".to_owned(),
        DataDirView::Foreign { why } => why.clone(),
        DataDirView::Present(_) | DataDirView::Incomplete { .. } | DataDirView::Unreadable { .. } => return None,
    };
    match view.server {
        Fact::Fresh(_) => None,
        Fact::Stale { age, .. } if age < SILENT => None,
        Fact::Stale { .. } | Fact::Unknown { .. } => {
            Some(act(Action::Stop { mode: StopMode::Immediate }, Reason::DataDirGone { what }))
        }
    }
}

/// Data that this cluster cannot use is never started. A node that leads with it makes way: a standby is
/// stopped, then the key is released. A running primary goes on under its permit: its files are open, and
/// a label that has changed under it is more likely wrong than it is.
pub(in crate::ha) fn data_unusable(view: &ClusterView) -> Option<Decision> {
    let record = view.record.fresh()?;
    let reason = match &view.data_dir {
        DataDirView::Foreign { why } => Reason::ForeignDataDir { why: why.clone() },
        DataDirView::Unreadable { why } => Reason::UnreadableDataDir { why: why.clone() },
        DataDirView::Present(control) => match record.initialize.as_ref().map(|i| i.value) {
            Some(Initialize::Done(cluster)) if cluster != control.system_id => {
                Reason::WrongSystemId { ours: control.system_id, cluster }
            }
            _ => return None,
        },
        DataDirView::Empty | DataDirView::Incomplete { .. } => return None,
    };
    let leading = record.term().filter(|_| record.is_leader(&view.me));
    let wrong_database = matches!(reason, Reason::WrongSystemId { .. });
    let action = match (view.process, leading) {
        (ProcessView::Absent { .. }, Some(term)) => Action::ReleaseLeader { term },
        (ProcessView::Running { .. }, _) if may_write(view) => Action::Wait,
        (ProcessView::Running { .. }, Some(_)) => Action::StopStandby,
        (ProcessView::Running { .. }, None) if wrong_database => Action::StopStandby,
        (ProcessView::Running { .. } | ProcessView::Absent { .. }, None)
        | (ProcessView::Stopping | ProcessView::Unknown, _) => Action::Wait,
    };
    Some(if action == Action::Wait { wait(view, reason) } else { act(action, reason) })
}
