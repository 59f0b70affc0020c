//! One page: from a view to a decision. Ordered rules, the first match wins; the order is the policy.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::reason::Reason;
use super::rules;
use super::view::ClusterView;
use crate::cluster::records::SyncRecord;
use crate::types::{Lsn, NodeName, StopMode, SystemId, Term, TimelineId};

/// What a node does next about its own PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each is explained by the steps that plan.rs gives it")]
pub enum Action {
    /// Nothing to change. Upkeep may run.
    Hold,
    /// Nothing can be done yet. PostgreSQL is left as it is.
    Wait,
    ClaimBootstrap,
    Initdb,
    MoveFailedAside {
        why: String,
    },
    FinishBootstrap {
        term: Term,
        system_id: SystemId,
    },
    Clone {
        from: NodeName,
        aside: Option<String>,
    },
    Rewind {
        from: NodeName,
    },
    StartStandby {
        follow: Option<NodeName>,
    },
    StartPrimary,
    TakeLeader,
    /// Get a timeline number that no other leadership has.
    ReserveTimeline {
        /// The term it is for.
        term: Term,
        /// The number.
        timeline: TimelineId,
    },
    PrePromote {
        term: Term,
    },
    Promote,
    /// The leader of a standby cluster: follow the primary outside.
    FollowOutside,
    StartStandbyLeader,
    CloneOutside,
    Follow {
        leader: Option<NodeName>,
    },
    StopStandby,
    StopToRestart,
    Demote,
    ReleaseLeader {
        term: Term,
    },
    Checkpoint {
        request_revision: i64,
    },
    StopPrimary,
    HandOver {
        term: Term,
        to: NodeName,
        shutdown_lsn: Lsn,
        why: String,
    },
    ClearRequest {
        mod_revision: i64,
    },
    AbandonHandover {
        mod_revision: i64,
    },
    /// Stop receiving from the former primary, so that what was confirmed can be counted.
    StopReceiving,
    /// Write who may lead after this primary.
    WriteSync {
        term: Term,
        record: SyncRecord,
        mod_revision: i64,
    },
    /// Have commits wait for others than before.
    Enforce {
        names: String,
    },
    /// Have commits wait for nobody, and remove the record of the synchronous set.
    EndSync {
        term: Term,
        mod_revision: i64,
    },
    CancelTask,
    Stop {
        mode: StopMode,
    },
    Exit,
}

impl Action {
    /// The stable code, for logs and metrics.
    pub fn code(&self) -> String {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::String(code)) => code,
            Ok(serde_json::Value::Object(map)) => map.keys().next().cloned().unwrap_or_default(),
            _ => String::new(),
        }
    }
}

/// An action with its reason, and when to look again at the latest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// Why.
    pub reason: Reason,
    /// When to decide again if nothing happens before.
    pub recheck_after: Duration,
}

/// Decides. Total: every view gets a decision, and an unknown fact never leads to a promotion.
pub fn decide(view: &ClusterView) -> Decision {
    let rules: [fn(&ClusterView) -> Option<Decision>; 13] = [
        rules::safety::writable_without_permit,
        rules::safety::process_in_transition,
        rules::task::running,
        rules::shutdown::stopping,
        rules::by_hand::asked,
        rules::safety::paused,
        rules::safety::record_unusable,
        rules::safety::data_gone,
        rules::safety::data_unusable,
        rules::bootstrap::no_data,
        rules::stopped::stopped,
        rules::standby::running,
        rules::primary::running,
    ];
    rules
        .iter()
        .find_map(|rule| rule(view))
        .unwrap_or_else(|| wait(view, Reason::ServerSilent { why: "PostgreSQL's state is not known".to_owned() }))
}

/// Stay as it is, for the loop's heartbeat.
pub(super) fn hold(view: &ClusterView, reason: Reason) -> Decision {
    Decision { action: Action::Hold, reason, recheck_after: view.settings.loop_wait }
}

/// Wait for something that an event will announce.
pub(super) fn wait(view: &ClusterView, reason: Reason) -> Decision {
    Decision { action: Action::Wait, reason, recheck_after: view.settings.loop_wait }
}

/// Wait for something that only looking again shows.
pub(super) fn wait_briefly(reason: Reason) -> Decision {
    Decision { action: Action::Wait, reason, recheck_after: Duration::from_millis(100) }
}

/// Begin a long task, unless the last ones have failed and it is too early for the next.
pub(super) fn begin(view: &ClusterView, action: Action, reason: Reason) -> Decision {
    let failed = view.memory.failed_tasks;
    let left = failed.pause_left(0, view.now);
    if left.is_zero() {
        return act(action, reason);
    }
    let reason = Reason::TaskFailed { attempts: failed.count, wanted: reason.to_string() };
    Decision { action: Action::Wait, reason, recheck_after: left.min(view.settings.loop_wait) }
}

/// Start PostgreSQL as a standby of `follow`, unless it has just been tried in vain.
pub(super) fn start_standby(view: &ClusterView, follow: Option<&NodeName>, reason: Reason) -> Decision {
    let starts = view.memory.standby_starts;
    let left = starts.pause_left(1, view.now);
    if left.is_zero() {
        return act(Action::StartStandby { follow: follow.cloned() }, reason);
    }
    let reason = Reason::StandbyKeepsEnding { attempts: starts.count };
    Decision { action: Action::Wait, reason, recheck_after: left.min(view.settings.loop_wait) }
}

/// Start PostgreSQL as the leader of a standby cluster, unless it has just been tried in vain.
pub(super) fn start_standby_leader(view: &ClusterView, reason: Reason) -> Decision {
    let decision = start_standby(view, None, reason);
    match decision.action {
        Action::StartStandby { .. } => Decision { action: Action::StartStandbyLeader, ..decision },
        _ => decision,
    }
}

/// Act, and decide again at once on a new view.
pub(super) fn act(action: Action, reason: Reason) -> Decision {
    Decision { action, reason, recheck_after: Duration::ZERO }
}
