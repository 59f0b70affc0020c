//! PostgreSQL runs as the primary, under a permit.

use std::time::Duration;

use crate::cluster::ClusterRecord;
use crate::cluster::record::Versioned;
use crate::cluster::records::{FailoverRecord, Initialize};
use crate::ha::candidate;
use crate::ha::decide::{Action, Decision, act, hold, wait, wait_briefly};
use crate::ha::reason::Reason;
use crate::ha::view::{ClusterView, DataDirView, ProcessView, ServerView};
use crate::types::{Fact, StopMode, WalBytes};

use super::stopped::start_took_too_long;
use super::sync;

/// A candidate that lacks no more than this is caught up during the stop itself.
const NEARLY_CAUGHT_UP: WalBytes = WalBytes(1 << 20);

/// How long a switchover waits for its candidate.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(10);

/// Applies while a permit holds; without one the first rule has demoted already.
pub(in crate::ha) fn running(view: &ClusterView) -> Option<Decision> {
    let ProcessView::Running { writable } = view.process else { return None };
    let record = view.record.fresh()?;
    if !record.is_leader(&view.me) {
        // The permit still holds, yet this node's key is not in the record: either the copy of the record
        // is older than the key, or the key has ended. The permit's end decides; until then nothing changes.
        return Some(wait_briefly(Reason::LeaderKeyGone));
    }
    let server = match &view.server {
        Fact::Fresh(server) => server,
        Fact::Stale { age, .. } => {
            return Some(wait(view, Reason::ServerSilent { why: format!("for {:.1} s", age.as_secs_f64()) }));
        }
        Fact::Unknown { why } if writable => return Some(starting(view, record, why)),
        Fact::Unknown { why } => return Some(wait_briefly(Reason::ServerSilent { why: why.clone() })),
    };
    let term = record.term()?;
    if let Some(outside) = &view.settings.standby_cluster {
        return Some(act(Action::StopPrimary, Reason::DemoteCluster { outside: outside.clone() }));
    }
    if record.is_being_created()
        && let DataDirView::Incomplete { why } = &view.data_dir
    {
        // Another process of this node began the creation, and what it was to end with is not known any more.
        let reason = Reason::RemoveFailedCreation { why: why.clone() };
        return Some(act(Action::Stop { mode: StopMode::Immediate }, reason));
    }
    if record.initialize.as_ref().is_none_or(|i| matches!(i.value, Initialize::Running))
        && let DataDirView::Present(control) = &view.data_dir
    {
        let system_id = control.system_id;
        return Some(act(Action::FinishBootstrap { term, system_id }, Reason::DatabaseCreated { system_id }));
    }
    if let Some(request) = &record.failover
        && view.request_due
    {
        return Some(switchover(view, record, server, request));
    }
    if let Some(decision) = sync::adjust(view, record, server, term) {
        return Some(decision);
    }
    Some(hold(view, sync::state(view, record, server, term)))
}

/// It does not accept connections yet, perhaps because it replays a lot of WAL after a crash.
fn starting(view: &ClusterView, record: &ClusterRecord, why: &str) -> Decision {
    if start_took_too_long(view) && candidate::may_others_lead(view, record) {
        let limit = view.settings.primary_start_timeout;
        return act(Action::Stop { mode: StopMode::Immediate }, Reason::StartTooSlow { limit });
    }
    wait_briefly(Reason::Starting { why: why.to_owned() })
}

/// A planned change of the leader: checkpoint, let the candidate catch up, stop.
fn switchover(
    view: &ClusterView,
    record: &ClusterRecord,
    server: &ServerView,
    request: &Versioned<FailoverRecord>,
) -> Decision {
    let mod_revision = request.mod_revision;
    let refuse = |why: String| act(Action::ClearRequest { mod_revision }, Reason::RequestRefused { why });
    if let Some(leader) = &request.value.leader
        && *leader != view.me
    {
        return refuse(format!("it names {leader} as the leader, but {} leads", view.me));
    }
    if request.value.member.as_ref() == Some(&view.me) {
        return refuse(format!("{} leads already", view.me));
    }
    let (to, flushed) = match candidate::successor(record, server, request.value.member.as_ref()) {
        Ok(found) => found,
        Err(why) => return refuse(why),
    };
    if view.memory.checkpointed_for != Some(mod_revision) {
        let action = Action::Checkpoint { request_revision: mod_revision };
        return act(action, Reason::SwitchoverCheckpoint { to });
    }
    let behind = server.position.ahead_of(flushed);
    if NEARLY_CAUGHT_UP < behind {
        let waited = view.memory.catching_up_since.map_or(Duration::ZERO, |since| view.now.since(since));
        if CATCH_UP_PATIENCE < waited {
            return refuse(format!("{to} is still {} bytes of WAL behind after {} s", behind.0, waited.as_secs()));
        }
        return wait_briefly(Reason::SwitchoverWaitsForCandidate { to, behind });
    }
    act(Action::StopPrimary, Reason::SwitchoverStop { to })
}
