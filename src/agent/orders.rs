//! What people ask of this node's PostgreSQL over REST: noted here, done by the loop, answered when it is done.
//!
//! ```text
//! control -> Orders (the newest request of each kind) -> tick: Memory::by_hand -> rules -> steps -> settle -> answer
//! ```
//! In memory alone: a node that ends has nothing left to restart. Deliberately absent: any effect.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::oneshot;
use tracing::info;

use super::snapshot::{PostgresStatus, Role, Snapshot};
use crate::ha::ClusterView;
use crate::ha::view::{ByHand, Memory, ProcessView};
use crate::types::{Mono, PgVersion, WallTime};

/// How long a stop and a start may take when nobody says.
const PATIENCE: Duration = Duration::from_secs(360);

/// Patroni's names for what is under way; its tools show them.
const RESTART: &str = "restart";
const REINITIALIZE: &str = "reinitialize";
const ADOPTION: &str = "adoption";
const RELEASE: &str = "release";

/// What must hold for a restart to take place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RestartFilter {
    /// Only in this role.
    pub role: Option<Role>,
    /// Only if the server is older than this.
    pub older_than: Option<PgVersion>,
    /// Only if settings wait for a restart.
    pub restart_pending: bool,
}

impl RestartFilter {
    /// Why `pg` is not restarted; none if it is.
    pub fn unmet(&self, pg: &PostgresStatus) -> Option<&'static str> {
        if self.role.is_some_and(|role| role != pg.role) {
            return Some("it has another role");
        }
        if self.older_than.is_some_and(|limit| pg.server_version.is_none_or(|version| limit <= version)) {
            return Some("its version is new enough");
        }
        (self.restart_pending && pg.pending_restart.is_empty()).then_some("no setting waits for a restart")
    }
}

/// How a restart ended: what to tell who asked.
pub type RestartOutcome = Result<(), String>;

struct Restart {
    timeout: Option<Duration>,
    /// None for a scheduled one.
    answer: Option<oneshot::Sender<RestartOutcome>>,
}

/// A restart at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduledRestart {
    /// When.
    pub at: WallTime,
    /// If this holds then.
    pub filter: RestartFilter,
    /// How long it may take.
    pub timeout: Option<Duration>,
    /// When the server to be restarted was started: another one is left alone.
    pub postmaster_start_time: Option<WallTime>,
}

impl ScheduledRestart {
    /// As `/patroni`, `/cluster` and the member record show it.
    pub fn json(&self) -> Value {
        let mut fields = Map::new();
        let mut put = |key: &str, value: Value| drop(fields.insert(key.to_owned(), value));
        put("schedule", json!(self.at.iso()));
        if let Some(role) = self.filter.role {
            put("role", json!(role.as_str()));
        }
        if let Some(version) = self.filter.older_than {
            put("postgres_version", json!(format!("{}.{}", version.0 / 10_000, version.0 % 10_000)));
        }
        if let Some(timeout) = self.timeout {
            put("timeout", json!(timeout.as_secs()));
        }
        if self.filter.restart_pending {
            put("restart_pending", json!(true));
        }
        if let Some(at) = self.postmaster_start_time {
            put("postmaster_start_time", json!(at.iso().replacen('T', " ", 1)));
        }
        Value::Object(fields)
    }
}

/// A new copy, as it was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reinitialize {
    /// Whether it ends a long task that runs.
    pub force: bool,
    /// Whether it comes from the leader, whoever else is preferred.
    pub from_leader: bool,
}

#[derive(Default)]
struct State {
    restart: Option<Restart>,
    scheduled: Option<ScheduledRestart>,
    reinitialize: Option<Reinitialize>,
    /// What the loop is at.
    busy: Option<&'static str>,
    adoption: Option<Adoption>,
    release: Option<oneshot::Sender<RestartOutcome>>,
}

/// A running server that is to be taken over.
struct Adoption {
    /// Shared parameters that become the cluster's; none once the loop has them.
    parameters: Option<BTreeMap<String, String>>,
    answer: oneshot::Sender<RestartOutcome>,
}

/// What is asked for and not taken up yet. Shared by the endpoints and the loop.
#[derive(Default)]
pub struct Orders {
    state: Mutex<State>,
}

impl Orders {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a restart now.
    ///
    /// # Errors
    /// The name of what has been asked for already.
    pub fn restart(&self, timeout: Option<Duration>) -> Result<oneshot::Receiver<RestartOutcome>, &'static str> {
        let mut state = self.state();
        if let Some(busy) = state.busy {
            return Err(busy);
        }
        let (answer, outcome) = oneshot::channel();
        state.restart = Some(Restart { timeout, answer: Some(answer) });
        state.busy = Some(RESTART);
        Ok(outcome)
    }

    /// Whether something is under way.
    pub fn is_busy(&self) -> bool {
        self.state().busy.is_some()
    }

    /// Asks for a restart later. False if there is one already.
    pub fn schedule(&self, restart: ScheduledRestart) -> bool {
        let mut state = self.state();
        let free = state.scheduled.is_none();
        if free {
            state.scheduled = Some(restart);
        }
        free
    }

    /// Drops the scheduled restart. False if there is none.
    pub fn cancel_scheduled(&self) -> bool {
        self.state().scheduled.take().is_some()
    }

    /// The scheduled restart, for publishing.
    pub fn scheduled(&self) -> Option<ScheduledRestart> {
        self.state().scheduled.clone()
    }

    /// Asks for the server that runs here to be taken over as it runs. `parameters`: what a new cluster begins with.
    ///
    /// # Errors
    /// The name of what has been asked for already.
    pub fn adopt(
        &self,
        parameters: BTreeMap<String, String>,
    ) -> Result<oneshot::Receiver<RestartOutcome>, &'static str> {
        let mut state = self.state();
        if let Some(busy) = state.busy {
            return Err(busy);
        }
        let (answer, outcome) = oneshot::channel();
        state.adoption = Some(Adoption { parameters: Some(parameters), answer });
        state.busy = Some(ADOPTION);
        Ok(outcome)
    }

    /// Whether a server is to be taken over.
    pub fn is_adopting(&self) -> bool {
        self.state().adoption.is_some()
    }

    /// What a new cluster begins with; once.
    pub fn take_parameters(&self) -> Option<BTreeMap<String, String>> {
        self.state().adoption.as_mut()?.parameters.take()
    }

    /// It is taken over, or it is not.
    pub fn end_adoption(&self, outcome: RestartOutcome) {
        let mut state = self.state();
        if let Some(adoption) = state.adoption.take() {
            state.busy = None;
            // Who asked may have gone away.
            let _ = adoption.answer.send(outcome);
        }
    }

    /// Asks for the running server to be let go, and for the node to end.
    ///
    /// # Errors
    /// The name of what has been asked for already.
    pub fn release(&self) -> Result<oneshot::Receiver<RestartOutcome>, &'static str> {
        let mut state = self.state();
        if let Some(busy) = state.busy {
            return Err(busy);
        }
        let (answer, outcome) = oneshot::channel();
        state.release = Some(answer);
        state.busy = Some(RELEASE);
        Ok(outcome)
    }

    /// Takes up the request to let go.
    pub fn take_release(&self) -> Option<oneshot::Sender<RestartOutcome>> {
        let mut state = self.state();
        let release = state.release.take()?;
        state.busy = None;
        Some(release)
    }

    /// Asks for a new copy; `force` ends a long task that runs.
    ///
    /// # Errors
    /// The name of what has been asked for already.
    pub fn reinitialize(&self, wanted: Reinitialize) -> Result<(), &'static str> {
        let mut state = self.state();
        match state.busy {
            // Asked again with more force.
            Some(REINITIALIZE) if wanted.force => (),
            Some(busy) => return Err(busy),
            None => (),
        }
        state.reinitialize = Some(wanted);
        state.busy = Some(REINITIALIZE);
        Ok(())
    }
}

/// The one request that the loop works on.
#[derive(Default)]
pub struct Working {
    restart: Option<Restart>,
    until: Option<Mono>,
}

impl Working {
    /// Takes up what has been asked for, one thing after the other. `snapshot` is what was published last.
    pub fn take_up(&mut self, orders: &Orders, snapshot: &Snapshot, memory: &mut Memory, now: Mono, wall: WallTime) {
        let mut state = orders.state();
        if let Some(scheduled) = state.scheduled.clone().filter(|scheduled| scheduled.at <= wall) {
            state.scheduled = None;
            match not_now(&scheduled, snapshot) {
                Some(why) => info!(why, "the scheduled restart is dropped"),
                None if state.busy.is_none() => {
                    state.restart = Some(Restart { timeout: scheduled.timeout, answer: None });
                    state.busy = Some(RESTART);
                }
                None => info!("the scheduled restart is dropped: another request is under way"),
            }
        }
        if let Some(ByHand::Reinitialize { force, from_leader, .. }) = &mut memory.by_hand {
            let again = state.reinitialize.take().unwrap_or_default();
            *force |= again.force;
            *from_leader |= again.from_leader;
        }
        if memory.by_hand.is_some() {
            return;
        }
        if let Some(restart) = state.restart.take() {
            memory.by_hand = Some(ByHand::Restart { stopped: false });
            self.until = Some(now + restart.timeout.unwrap_or(PATIENCE));
            self.restart = Some(restart);
        } else if let Some(Reinitialize { force, from_leader }) = state.reinitialize.take() {
            memory.by_hand = Some(ByHand::Reinitialize { force, from_leader, moved: false });
        }
    }

    /// Ends what is done, what has become impossible, and what takes too long.
    pub fn settle(&mut self, orders: &Orders, view: &ClusterView, memory: &mut Memory) {
        let runs = matches!(view.process, ProcessView::Running { .. }) && view.server.fresh().is_some();
        let leads = view.record.fresh().is_some_and(|record| record.is_leader(&view.me));
        let outcome = match memory.by_hand {
            None => return,
            Some(ByHand::Restart { stopped: true }) if runs => Ok(()),
            Some(ByHand::Reinitialize { moved: true, .. }) if runs => Ok(()),
            Some(ByHand::Reinitialize { .. }) if leads => Err("this node leads now".to_owned()),
            Some(ByHand::Restart { .. }) if view.shutting_down => Err("the node is stopping".to_owned()),
            Some(ByHand::Restart { stopped }) if self.until.is_some_and(|until| until <= view.now) => {
                Err(if stopped { "postgres is still starting" } else { "restart failed" }.to_owned())
            }
            Some(ByHand::Restart { .. } | ByHand::Reinitialize { .. }) => return,
        };
        match &outcome {
            Ok(()) => info!(asked = ?memory.by_hand, "done by hand"),
            Err(why) => info!(asked = ?memory.by_hand, why, "not done by hand"),
        }
        memory.by_hand = None;
        self.until = None;
        orders.state().busy = None;
        if let Some(answer) = self.restart.take().and_then(|restart| restart.answer) {
            // Who asked may have gone away.
            let _ = answer.send(outcome);
        }
    }
}

/// Why a scheduled restart whose time has come does not take place.
fn not_now(scheduled: &ScheduledRestart, snapshot: &Snapshot) -> Option<&'static str> {
    let Some(pg) = &snapshot.postgres else { return Some("there is no PostgreSQL here") };
    if snapshot.is_paused() {
        return Some("the cluster is paused, and nothing scheduled runs in a pause");
    }
    if scheduled.postmaster_start_time.is_some() && scheduled.postmaster_start_time != pg.postmaster_start_time {
        return Some("PostgreSQL has been restarted meanwhile");
    }
    scheduled.filter.unmet(pg)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::publish;

    #[test]
    fn filters() {
        let mut pg = publish::unseen();
        pg.role = Role::Replica;
        pg.server_version = Some(PgVersion(150_006));
        assert_eq!(RestartFilter::default().unmet(&pg), None);
        let older = |version| RestartFilter { older_than: Some(PgVersion(version)), ..RestartFilter::default() };
        assert_eq!(older(150_007).unmet(&pg), None);
        assert_eq!(older(150_006).unmet(&pg), Some("its version is new enough"));
        let primary = RestartFilter { role: Some(Role::Primary), ..RestartFilter::default() };
        assert_eq!(primary.unmet(&pg), Some("it has another role"));
        let pending = RestartFilter { restart_pending: true, ..RestartFilter::default() };
        assert_eq!(pending.unmet(&pg), Some("no setting waits for a restart"));
    }

    #[test]
    fn a_scheduled_restart_is_for_the_server_that_runs_now() {
        let text = include_str!("../../tests/surface/three_nodes.json");
        let mut snapshot: Snapshot = serde_json::from_str(text).expect("a snapshot");
        let started = snapshot.postgres.as_ref().and_then(|pg| pg.postmaster_start_time);
        let restart = |postmaster_start_time| ScheduledRestart {
            at: WallTime(5),
            filter: RestartFilter::default(),
            timeout: None,
            postmaster_start_time,
        };
        let (orders, mut working, mut memory) = (Orders::default(), Working::default(), Memory::default());
        assert!(orders.schedule(restart(Some(WallTime(1)))) && !orders.schedule(restart(None)));
        working.take_up(&orders, &snapshot, &mut memory, Mono(0), WallTime(4));
        assert!(orders.scheduled().is_some() && memory.by_hand.is_none(), "not yet");
        working.take_up(&orders, &snapshot, &mut memory, Mono(0), WallTime(5));
        assert!(orders.scheduled().is_none() && memory.by_hand.is_none(), "another server runs");
        assert!(orders.schedule(restart(started)));
        if let Some(cluster) = &mut snapshot.cluster {
            cluster.settings.pause = true;
        }
        working.take_up(&orders, &snapshot, &mut memory, Mono(0), WallTime(5));
        assert!(memory.by_hand.is_none(), "not in a pause");
        if let Some(cluster) = &mut snapshot.cluster {
            cluster.settings.pause = false;
        }
        assert!(orders.schedule(restart(started)));
        working.take_up(&orders, &snapshot, &mut memory, Mono(0), WallTime(5));
        assert_eq!(memory.by_hand, Some(ByHand::Restart { stopped: false }));
    }
}
