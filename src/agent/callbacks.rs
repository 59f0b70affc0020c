//! The operator's commands are told of what has happened to PostgreSQL.
//!
//! ```text
//! view -> state (running as what, since when | stopped) -> different from what was told? -> event -> queue
//!      -> one command after the other, each to its end or its time limit -> what was told, durably
//! ```
//! Told by comparison and not by moments: a node that ended before its commands did tells them again (at least once),
//! and what came and went between two looks is not told. None cuts another short.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::act::chain;
use crate::config::node::CallbacksConfig;
use crate::ha::ClusterView;
use crate::ha::view::{ByHand, ProcessView};
use crate::postgres::{Instance, SqlStatus};

/// So many events may wait.
const QUEUE: usize = 64;

/// What the commands know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// `primary` or `replica`; none = it does not run.
    role: Option<String>,
    /// What it was when it ran last.
    last_role: Option<String>,
    /// When the server that they know was started.
    started: String,
}

/// One event.
struct Event {
    name: &'static str,
    role: String,
    command: Vec<String>,
    limit: Duration,
    then: Option<State>,
}

/// Compares and queues.
pub struct Callbacks {
    config: CallbacksConfig,
    told: State,
    by_hand: bool,
    queue: Option<mpsc::Sender<Event>>,
    runner: JoinHandle<()>,
}

impl Callbacks {
    /// Starts with what was told before this process.
    pub fn start(config: CallbacksConfig, instance: Arc<Instance>, scope: String) -> Self {
        let told = instance.told().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let (queue, events) = mpsc::channel(QUEUE);
        let runner = tokio::spawn(run(events, instance, scope));
        Self { config, told, by_hand: false, queue: Some(queue), runner }
    }

    /// The node's file has been read again.
    pub fn set_config(&mut self, config: CallbacksConfig) {
        self.config = config;
    }

    /// Looks at what is the case now, and queues what it means.
    pub fn look(&mut self, view: &ClusterView, sql: Option<&SqlStatus>) {
        self.by_hand |= matches!(view.memory.by_hand, Some(ByHand::Restart { stopped: true }));
        let now = match (view.process, sql.filter(|_| view.server.fresh().is_some())) {
            (ProcessView::Running { .. }, Some(sql)) => {
                let role = if sql.in_recovery() { "replica" } else { "primary" }.to_owned();
                State { role: Some(role.clone()), last_role: Some(role), started: sql.postmaster_start_time.clone() }
            }
            // A restart by hand is one event, and not two.
            (ProcessView::Absent { .. }, _) if view.memory.by_hand.is_none() => {
                State { role: None, ..self.told.clone() }
            }
            _ => return,
        };
        let Some(event) = event(&self.told, &now, self.by_hand) else { return };
        let role = now.last_role.clone().unwrap_or_default();
        if self.queue(event, role, Some(now.clone())) {
            self.told = now;
            self.by_hand = false;
        }
    }

    /// The server has been told to read its files again.
    pub fn reloaded(&mut self) {
        let Some(role) = self.told.role.clone() else { return };
        self.queue("on_reload", role, None);
    }

    /// True if it is in the queue; else it is tried again at the next look.
    fn queue(&self, name: &'static str, role: String, then: Option<State>) -> bool {
        let command = self.config.commands.get(name).cloned().unwrap_or_default();
        let event = Event { name, role, command, limit: self.config.timeout, then };
        self.queue.as_ref().is_some_and(|queue| queue.try_send(event).is_ok())
    }

    /// Waits until all have been told, for the time limit of one of them.
    pub async fn finish(&mut self) {
        self.queue = None;
        if tokio::time::timeout(self.config.timeout, &mut self.runner).await.is_err() {
            warn!("not all callbacks have ended; those that have not are told again at the next start");
            self.runner.abort();
        }
    }
}

/// What the difference is called.
fn event(told: &State, now: &State, by_hand: bool) -> Option<&'static str> {
    match (&told.role, &now.role) {
        (None, None) => None,
        (Some(_), None) => Some("on_stop"),
        (before, Some(role)) if before.as_ref().or(told.last_role.as_ref()).is_some_and(|old| old != role) => {
            Some("on_role_change")
        }
        (None, Some(_)) => Some("on_start"),
        (Some(_), Some(_)) if told.started != now.started => Some(if by_hand { "on_restart" } else { "on_start" }),
        (Some(_), Some(_)) => None,
    }
}

async fn run(mut events: mpsc::Receiver<Event>, instance: Arc<Instance>, scope: String) {
    while let Some(Event { name, role, command, limit, then }) = events.recv().await {
        if !command.is_empty() {
            match instance.run_hook(&command, &[name, &role, &scope], limit).await {
                Ok(()) => info!(event = name, role, "callback done"),
                Err(error) => warn!(event = name, role, error = %chain(&error), "callback failed"),
            }
        }
        let written = then.and_then(|state| serde_json::to_string(&state).ok()).map(|text| instance.set_told(&text));
        if let Some(Err(error)) = written {
            warn!(error = %chain(&error), "what callbacks were told is not written down; they may be told again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(role: &str, started: &str) -> State {
        State { role: Some(role.into()), last_role: Some(role.into()), started: started.into() }
    }

    #[test]
    fn differences_have_names() {
        let nothing = State::default();
        let (replica, primary) = (running("replica", "1"), running("primary", "1"));
        let stopped = State { role: None, ..replica.clone() };
        assert_eq!(event(&nothing, &replica, false), Some("on_start"));
        assert_eq!(event(&replica, &replica, false), None);
        assert_eq!(event(&replica, &primary, false), Some("on_role_change"));
        assert_eq!(event(&replica, &stopped, false), Some("on_stop"));
        assert_eq!(event(&stopped, &running("replica", "2"), false), Some("on_start"));
        assert_eq!(event(&stopped, &running("primary", "2"), false), Some("on_role_change"));
        assert_eq!(event(&replica, &running("replica", "2"), false), Some("on_start"));
        assert_eq!(event(&replica, &running("replica", "2"), true), Some("on_restart"));
        assert_eq!(event(&nothing, &nothing, false), None);
    }
}
