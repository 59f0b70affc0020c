//! While a long task runs: let it, unless what it copies from is no longer the leader.

use std::time::Duration;

use crate::ha::decide::{Action, Decision, wait};
use crate::ha::reason::Reason;
use crate::ha::rejoin;
use crate::ha::view::{ByHand, ClusterView, TaskKind};
use crate::types::Fact;

/// A copy or rewind from a node that has lost the leadership to another is ended; it would have to be done again.
pub(in crate::ha) fn running(view: &ClusterView) -> Option<Decision> {
    let task = view.task.as_ref()?;
    if view.shutting_down {
        return Some(cancel(Reason::ShutdownStop));
    }
    if let (Some(from), Fact::Fresh(record)) = (&task.from, &view.record)
        && !view.settings.pause
        && let Some(leader) = &record.leader
        && leader.value != *from
        && !(task.kind == TaskKind::BaseBackup && rejoin::serves_copies(view, record, from))
    {
        return Some(cancel(Reason::FollowNewLeader { leader: leader.value.clone() }));
    }
    if let Some(ByHand::Reinitialize { force: true, moved: false, .. }) = view.memory.by_hand
        && let Some(leader) = view.record.fresh().and_then(|record| record.leader.as_ref())
        && leader.value != view.me
    {
        return Some(cancel(Reason::ReinitializeByHand { leader: leader.value.clone() }));
    }
    let what = match task.kind {
        TaskKind::Initdb => "creating the database".to_owned(),
        TaskKind::BaseBackup => format!("copying from {}", name(&task.from)),
        TaskKind::Rewind => format!("rewinding from {}", name(&task.from)),
    };
    Some(wait(view, Reason::TaskRunning { task: what }))
}

/// A task needs a moment to end; its end is an event.
fn cancel(reason: Reason) -> Decision {
    Decision { action: Action::CancelTask, reason, recheck_after: Duration::from_millis(100) }
}

fn name(from: &Option<crate::types::NodeName>) -> String {
    from.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string)
}
