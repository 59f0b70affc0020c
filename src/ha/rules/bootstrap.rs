//! No data here: create the cluster, or copy it.

use crate::cluster::ClusterRecord;
use crate::cluster::records::Initialize;
use crate::ha::decide::{Action, Decision, act, begin, wait};
use crate::ha::reason::Reason;
use crate::ha::rejoin;
use crate::ha::view::{ClusterView, DataDirView, ProcessView};

/// One node wins the `initialize` key and creates the database; the others wait and copy.
///
/// The creator holds the leader key from the beginning: the first start already needs a permit.
pub(in crate::ha) fn no_data(view: &ClusterView) -> Option<Decision> {
    // What still runs, runs on the files that it has open; the other rules know it better.
    let ProcessView::Absent { .. } = view.process else { return None };
    let record = view.record.fresh()?;
    let unfinished = match &view.data_dir {
        DataDirView::Empty => None,
        DataDirView::Incomplete { why } => Some(why.clone()),
        DataDirView::Present(_) | DataDirView::Foreign { .. } | DataDirView::Unreadable { .. } => return None,
    };
    if record.is_leader(&view.me) {
        return Some(as_leader(view, record, unfinished));
    }
    match (&record.initialize, &record.leader) {
        (None, None) if view.settings.nofailover => Some(wait(view, Reason::BootstrapForbidden)),
        // There was a cluster, and only its identity is missing: a new database would bury it.
        (None, None) if !record.history.is_empty() => {
            Some(wait(view, Reason::ClusterForgotten { timeline: record.timeline() }))
        }
        (None, None) => Some(act(Action::ClaimBootstrap, Reason::NewCluster)),
        (Some(initialize), Some(leader)) if matches!(initialize.value, Initialize::Running) => {
            Some(wait(view, Reason::BootstrapRunningOn { node: leader.value.clone() }))
        }
        (Some(_), Some(leader)) => match rejoin::ready(record, &leader.value) {
            Ok(()) => {
                let why = unfinished.clone().unwrap_or_else(|| "there is no data here".to_owned());
                let from = rejoin::copy_source(view, record, &leader.value);
                let reason = Reason::CloneFrom { leader: from.clone(), why };
                Some(begin(view, Action::Clone { from, aside: unfinished }, reason))
            }
            Err(reason) => Some(wait(view, reason)),
        },
        (_, None) | (None, Some(_)) => Some(wait(view, Reason::NoLeaderToCloneFrom)),
    }
}

fn as_leader(view: &ClusterView, record: &ClusterRecord, unfinished: Option<String>) -> Decision {
    let creating = record.initialize.as_ref().is_some_and(|i| matches!(i.value, Initialize::Running));
    match (creating, unfinished, record.term()) {
        (true, Some(why), _) => {
            begin(view, Action::MoveFailedAside { why: why.clone() }, Reason::RemoveFailedCreation { why })
        }
        (true, None, _) if let Some(outside) = &view.settings.standby_cluster => {
            begin(view, Action::CloneOutside, Reason::CopyOutside { outside: outside.clone() })
        }
        (true, None, _) if view.permit_to_lead().is_some() => begin(view, Action::Initdb, Reason::CreateDatabase),
        (true, None, _) => wait(view, Reason::AwaitingRenewal),
        // A leader without data, in a cluster that exists: somebody else must lead.
        (false, _, Some(term)) => act(Action::ReleaseLeader { term }, Reason::NoLeaderToCloneFrom),
        (false, _, None) => wait(view, Reason::NoLeaderToCloneFrom),
    }
}
