//! The node was asked to stop: hand over first when somebody is fit, release the key by an explicit write, end.

use std::time::Duration;

use crate::cluster::ClusterRecord;
use crate::ha::candidate;
use crate::ha::decide::{Action, Decision, act};
use crate::ha::reason::Reason;
use crate::ha::view::{ClusterView, ControlState, DataDirView, ProcessView};
use crate::types::{StopMode, Term};

/// How long a stopped primary waits for somebody to have its last record before it just releases the key.
const PROOF_PATIENCE: Duration = Duration::from_secs(2);

/// Applies from the request to stop until the process ends. A paused cluster's PostgreSQL keeps running.
pub(in crate::ha) fn stopping(view: &ClusterView) -> Option<Decision> {
    if !view.shutting_down {
        return None;
    }
    if view.settings.pause {
        return Some(act(Action::Exit, Reason::Paused));
    }
    let record = view.record.any();
    let term = record.filter(|record| record.is_leader(&view.me)).and_then(ClusterRecord::term);
    Some(match (&view.process, term) {
        (ProcessView::Running { .. }, _) => act(Action::Stop { mode: StopMode::Fast }, Reason::ShutdownStop),
        (_, Some(term)) => release(view, record, term),
        (_, None) => act(Action::Exit, Reason::ShutdownDone),
    })
}

fn release(view: &ClusterView, record: Option<&ClusterRecord>, term: Term) -> Decision {
    if view.record.fresh().is_none() {
        // No majority: the lease ends by itself.
        return act(Action::Exit, Reason::ShutdownDone);
    }
    if let DataDirView::Present(control) = &view.data_dir
        && control.state == ControlState::ShutDown
        && record.is_some_and(|record| candidate::anybody_else(view, record))
    {
        let shutdown_lsn = control.checkpoint;
        let waited = view.memory.stopped_for_handover.map_or(PROOF_PATIENCE, |at| view.now.since(at));
        match candidate::proven(view, shutdown_lsn, None) {
            Ok(to) => {
                let action = Action::HandOver { term, to: to.clone(), shutdown_lsn, why: "shutdown".to_owned() };
                return act(action, Reason::SwitchoverHandOver { to, shutdown_lsn });
            }
            Err(why) if waited < PROOF_PATIENCE => {
                return Decision {
                    action: Action::Wait,
                    reason: Reason::SwitchoverAwaitsProof { why },
                    recheck_after: Duration::from_millis(20),
                };
            }
            Err(_) => (),
        }
    }
    act(Action::ReleaseLeader { term }, Reason::ShutdownRelease)
}
