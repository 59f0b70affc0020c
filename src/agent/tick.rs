//! The loop: event -> observe -> decide -> plan -> act -> record.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::act::{Actor, Outcome};
use super::callbacks::Callbacks;
use super::chronicle::Chronicle;
use super::event::Event;
use super::follow::Whom;
use super::journal::Journal;
use super::local::Local;
use super::lock::LockState;
use super::observe::{Circumstances, Observer, process_view, taken_over};
use super::orders::{Orders, Working};
use super::publish::{self, Published};
use super::recorder::Recorder;
use super::snapshot::Snapshot;
use super::upkeep::{self, Upkeep};
use crate::cluster::ClusterRecord;
use crate::cluster::records::Initialize;
use crate::config::ClusterSettings;
use crate::guardian::client::Guardian;
use crate::guardian::status::{GuardianStatus, Link, PostgresProcess};
use crate::ha::view::{Memory, ProcessView};
use crate::ha::{Action, ClusterView, Decision, Reason, decide, plan};
use crate::telemetry::clock;
use crate::types::{Mono, NodeName, WallTime};

/// Two decisions in a row that change nothing are at least so far apart.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);

/// A primary that has been well for so long after a crash has recovered from it: the next crash is the first again.
/// Giving leadership away for crashes that lie further apart would lose writes to gain nothing.
const STEADY: Duration = Duration::from_secs(2);

/// The loop of one node with PostgreSQL.
pub struct Agent {
    /// Looks.
    pub observer: Observer,
    /// Does.
    pub actor: Actor,
    /// Keeps in order.
    pub upkeep: Upkeep,
    /// Remembers why.
    pub journal: Journal,
    /// Remembers on what.
    pub recorder: Recorder,
    /// Writes down who led when, and how it came to that.
    pub chronicle: Chronicle,
    /// What is the same in every snapshot.
    pub published: Published,
    /// Shows.
    pub snapshot: watch::Sender<Arc<Snapshot>>,
    /// Somebody asked for a look.
    pub asked: Arc<Notify>,
    /// The node shall stop.
    pub shutdown: CancellationToken,
    /// Settings until the record has some.
    pub initial_settings: ClusterSettings,
    /// Who is told of what has happened.
    pub callbacks: Callbacks,
    /// What the node's file says; it may be read again.
    pub local: watch::Receiver<Arc<Local>>,
    /// What people ask for.
    pub orders: Arc<Orders>,
    /// What of it is under way.
    pub working: Working,
}

/// What the loop waits on.
struct Wakers {
    applied: watch::Receiver<i64>,
    guardian: watch::Receiver<GuardianStatus>,
    lock: watch::Receiver<LockState>,
    raft_leader: watch::Receiver<Option<NodeName>>,
}

impl Agent {
    /// Runs until the node has stopped in order. `guardian` is the status feed that came with attaching.
    ///
    /// # Errors
    /// The reason, when this node can be no member of this cluster until a person has changed something.
    pub async fn run(mut self, guardian: watch::Receiver<GuardianStatus>) -> Result<(), Reason> {
        let mut wakers = Wakers {
            applied: self.actor.store.applied(),
            guardian,
            lock: self.actor.lock.watch(),
            raft_leader: self.actor.store.leader_changes(),
        };
        // An earlier process of this node may have asked for it, and it may be done any time.
        let ending_term = self.actor.ended.read();
        ending_term.into_iter().for_each(|term| self.actor.lock.give_up(term));
        let mut memory = Memory { ending_term, ..Memory::default() };
        let mut event = Event::Timer;
        let mut settings = self.initial_settings.clone();
        loop {
            debug!(?event, "tick");
            if self.actor.collect(&mut memory).await {
                // The data is another's now: what was seen of the old says nothing.
                self.observer.data_dir = None;
                self.observer.newest_timeline = None;
                self.chronicle.gave_up(self.actor.given_up.take());
            }
            let (view, decision) = self.tick(&mut memory, &mut settings).await;
            if decision.action == Action::Exit {
                self.end_guardian().await;
                self.callbacks.finish().await;
                return Ok(());
            }
            if let Reason::WrongSystemId { .. } = decision.reason
                && matches!(view.process, ProcessView::Absent { .. })
            {
                self.end_guardian().await;
                return Err(decision.reason);
            }
            let pause = if matches!(decision.action, Action::Hold | Action::Wait) {
                decision.recheck_after.max(SHORTEST_PAUSE)
            } else {
                decision.recheck_after
            };
            event = self.wait(&mut wakers, pause, &view).await;
            if self.actor.guardian.status().link == Link::Gone {
                self.replace_guardian(&mut wakers).await;
            }
        }
    }

    /// One round. Returns what it was decided on, and what was decided.
    async fn tick(&mut self, memory: &mut Memory, settings: &mut ClusterSettings) -> (ClusterView, Decision) {
        self.follow_record(settings);
        self.follow_file();
        self.actor.log_in();
        let record = self.observer.record();
        self.observer.follows.clone_from(&self.actor.follows);
        self.observer.follows_outside = self.actor.follows_outside;
        self.observer.creating = self.actor.created;
        self.take_up_adoption(settings);
        self.release().await;
        self.actor.note_settings(settings);
        let published = self.snapshot.borrow().clone();
        self.working.take_up(&self.orders, &published, memory, clock::now(), clock::wall());
        let circumstances = Circumstances {
            settings: settings.clone(),
            memory: memory.clone(),
            task: self.actor.task.as_ref().map(|task| task.view.clone()),
            shutting_down: self.shutdown.is_cancelled(),
            request_due: publish::request_due(&record, clock::wall()),
        };
        let mut view = self.observer.view(circumstances).await;
        *memory = view.memory.clone();
        self.working.settle(&self.orders, &view, memory);
        self.callbacks.look(&view, self.observer.sighting.sql.as_ref());
        if std::mem::take(&mut self.actor.reloaded) {
            self.callbacks.reloaded();
        }
        view.memory.by_hand = memory.by_hand;
        let decision = decide(&view);
        note(&view, &decision, memory);
        let at: WallTime = clock::wall();
        let changed = self.journal.record(&view, &decision, at);
        self.recorder.keep(&view, &decision, at, changed);
        self.chronicle.look(&view, &decision, at);
        if changed {
            let action = decision.action.code();
            let reason = decision.reason.code();
            info!(action, reason, "{}", decision.reason);
        }
        // What others wait for is said before a step that may take long, and after one that has changed it.
        let acting = !matches!(decision.action, Action::Hold | Action::Wait);
        if acting {
            self.publish(&view, settings);
            if is_planned_stop(&view, &decision) {
                self.upkeep.announce_stop(&self.actor, &view, &self.observer.sighting).await;
            }
            self.actor.ending = self.chronicle.ending(&view, &decision, at);
            let steps = plan(&decision.action, &view);
            let replaces = matches!(decision.action, Action::Clone { .. } | Action::Rewind { .. });
            if self.observer.adopting && replaces {
                let why = format!("it cannot go on as it runs: {}; stop it, and howdah does that", decision.reason);
                self.orders.end_adoption(Err(why));
            } else if self.actor.run(steps, &view, settings, memory).await == Outcome::Failed {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            if !matches!(decision.action, Action::Checkpoint { .. } | Action::TakeLeader) {
                self.observer.data_dir = None;
            }
        } else {
            self.reconfigure(&view, &decision, settings).await;
            let scheduled = self.orders.scheduled().map(|restart| restart.json());
            self.upkeep.round(&mut self.actor, &view, &self.observer.sighting, settings, scheduled).await;
            memory.slots_to_copy = self.actor.slot_files.keys().cloned().collect();
            if let Some(said) = self.upkeep.primary_said() {
                self.chronicle.routed(&view, said, clock::wall());
            }
            self.chronicle.write(&self.actor).await;
            self.publish(&view, settings);
        }
        (view, decision)
    }

    /// Takes over what the record says about this node's leadership and the cluster's settings.
    fn follow_record(&mut self, settings: &mut ClusterSettings) {
        let record = self.observer.record();
        let term = record.is_leader(&self.actor.me).then(|| record.term()).flatten();
        self.actor.lock.hold(term);
        if let Some(config) = &record.config {
            match ClusterSettings::parse(&config.value) {
                Ok((parsed, _)) => *settings = parsed,
                Err(error) => warn!(%error, "the cluster's configuration is not usable; keeping the last good one"),
            }
        }
        self.actor.lock.set_ttl(settings.ttl);
    }

    /// A server that somebody else started is to be taken over, or has been.
    fn take_up_adoption(&mut self, settings: &mut ClusterSettings) {
        let runs = || matches!(process_view(&self.actor.guardian.status()), ProcessView::Running { .. });
        let known = |record: ClusterRecord| record.initialize.is_some_and(|i| matches!(i.value, Initialize::Done(_)));
        let mut adopting = self.orders.is_adopting();
        if adopting && runs() && known(self.observer.record()) {
            self.orders.end_adoption(Ok(()));
            adopting = false;
        }
        (self.observer.adopting, self.actor.adopting) = (adopting, adopting);
        let Some(parameters) = self.orders.take_parameters() else { return };
        let mut config = self.actor.initial_config.clone();
        keep_parameters(&mut config, parameters);
        if let Ok((parsed, _)) = ClusterSettings::parse(&config) {
            (self.actor.initial_config, *settings) = (config, parsed);
        }
    }

    /// Lets go of PostgreSQL and ends the node, if that has been asked for.
    async fn release(&mut self) {
        let Some(answer) = self.orders.take_release() else { return };
        let outcome = match self.actor.guardian.status().postgres {
            PostgresProcess::Absent | PostgresProcess::Exited(_) => Ok(()),
            _ => self.actor.guardian.release().await.map_err(|error| super::act::chain(&error)),
        };
        match &outcome {
            Ok(()) => {
                info!("PostgreSQL goes on without howdah; this node ends");
                self.shutdown.cancel();
            }
            Err(why) => warn!(why, "PostgreSQL is not released"),
        }
        // Who asked may have gone away.
        let _ = answer.send(outcome);
    }

    /// Takes over the node's file if it has been read again.
    fn follow_file(&mut self) {
        if !self.local.has_changed().unwrap_or(false) {
            return;
        }
        let local = self.local.borrow_and_update().clone();
        self.observer.place = local.place.clone();
        self.actor.hooks = local.callbacks.clone();
        self.published.tags.clone_from(&local.tags);
        self.upkeep.set_tags(local.tags.clone());
        self.callbacks.set_config(local.callbacks.clone());
        self.actor.instance.set_local(local.postgres.clone());
        self.actor.configured = None;
        self.actor.reload_asked = true;
    }

    /// A server that runs steadily gets what has changed in the shared settings or in the node's file.
    async fn reconfigure(&mut self, view: &ClusterView, decision: &Decision, settings: &ClusterSettings) {
        let steady = matches!(
            decision.reason,
            Reason::LeaderHealthy { .. }
                | Reason::LeaderDegraded { .. }
                | Reason::CommitsWait { .. }
                | Reason::Following { .. }
                | Reason::ArchiveOnly { .. }
                | Reason::StandbyLeader { .. }
                | Reason::Paused
        );
        let Some(server) = view.server.fresh().filter(|_| steady) else { return };
        if !matches!(view.process, ProcessView::Running { .. }) || self.actor.is_configured(settings) {
            return;
        }
        let member = self.actor.follows.clone();
        let follow = match &member {
            _ if !server.in_recovery => Whom::Nobody,
            Some(member) => Whom::Member(member),
            None if self.actor.follows_outside && settings.standby_cluster.is_some() => Whom::Outside,
            None if matches!(decision.reason, Reason::ArchiveOnly { .. }) => Whom::Nobody,
            // In a pause nobody may have said yet whom it follows: written now, it would follow nobody.
            None => return,
        };
        let done = self.actor.configure(follow, view, settings).await;
        upkeep::report(done, "bring the server's settings up to date");
    }

    fn publish(&mut self, view: &ClusterView, settings: &ClusterSettings) {
        let mut snapshot =
            publish::snapshot(&self.published, view, &self.observer, &self.actor, &self.journal, settings);
        if let Some(pg) = &mut snapshot.postgres {
            pg.scheduled_restart = self.orders.scheduled().map(|restart| restart.json());
        }
        let revision = view.record.any().map_or(0, |record| record.timeline_revision);
        snapshot.timeline = self.chronicle.entries(&self.actor.store, self.actor.writes.space(), revision);
        self.snapshot.send_replace(Arc::new(snapshot));
    }

    async fn wait(&mut self, wakers: &mut Wakers, pause: Duration, view: &ClusterView) -> Event {
        if pause.is_zero() {
            return Event::Timer;
        }
        let seen = view.record.any().map(fingerprint).unwrap_or_default();
        let had_permit = view.permit.map(|permit| permit.term);
        let until = clock::now() + pause;
        // What changed while this tick was acting announces itself no more: compare with what it was decided on.
        if view.record.any().is_some() && fingerprint(&self.observer.record()) != seen {
            return Event::RecordChanged;
        }
        if process_changed(&wakers.guardian.borrow_and_update(), view, self.observer.adopting) {
            return Event::ProcessChanged;
        }
        loop {
            let left = until.since(clock::now());
            tokio::select! {
                () = tokio::time::sleep(left) => return Event::Timer,
                () = self.asked.notified() => return Event::Asked,
                () = self.shutdown.cancelled(), if !view.shutting_down => return Event::Shutdown,
                Ok(()) = wakers.guardian.changed() => {
                    // Every renewal changes the permit in the status; only processes are news here.
                    if process_changed(&wakers.guardian.borrow_and_update(), view, self.observer.adopting) { return Event::ProcessChanged }
                }
                Ok(()) = wakers.lock.changed() => {
                    let permit = wakers.lock.borrow_and_update().permit;
                    if permit.map(|permit| permit.term) != had_permit { return Event::LockChanged }
                }
                Ok(()) = wakers.raft_leader.changed() => {
                    return Event::RaftLeaderChanged(wakers.raft_leader.borrow_and_update().clone());
                }
                Ok(()) = wakers.applied.changed() => {
                    wakers.applied.borrow_and_update();
                    let record = self.observer.record();
                    self.chronicle.heard(&record, clock::now());
                    if fingerprint(&record) != seen { return Event::RecordChanged }
                }
                () = self.actor.task_ended() => return Event::TaskEnded,
            }
        }
    }

    /// The guardian has nothing to guard once PostgreSQL has stopped. In pause it stays, and so does PostgreSQL.
    async fn end_guardian(&self) {
        if let Err(error) = self.actor.guardian.shutdown().await {
            info!(%error, "the guardian stays");
        }
    }

    /// The guardian died and took PostgreSQL with it: start another, which sweeps what is left.
    async fn replace_guardian(&mut self, wakers: &mut Wakers) {
        warn!("the guardian is gone, and PostgreSQL with it; starting a new one");
        let config = self.published.guardian.clone();
        match Guardian::attach(config).await {
            Ok((guardian, feed)) => {
                self.actor.lock.set_guardian(guardian.clone());
                self.actor.guardian = guardian.clone();
                self.observer.guardian = guardian;
                wakers.guardian = feed;
            }
            Err(error) => {
                warn!(error = %super::act::chain(&error), "the guardian could not be started; again shortly");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

/// Whether a primary that works is about to be stopped in good order.
fn is_planned_stop(view: &ClusterView, decision: &Decision) -> bool {
    let writable = matches!(view.process, ProcessView::Running { writable: true });
    let planned =
        matches!(decision.reason, Reason::SwitchoverStop { .. } | Reason::ShutdownStop | Reason::DemoteCluster { .. });
    writable && planned && view.permit_holds() && view.record.fresh().is_some_and(|record| record.is_leader(&view.me))
}

/// Book-keeping that belongs to a decision and not to a step.
pub fn note(view: &ClusterView, decision: &Decision, memory: &mut Memory) {
    match &decision.reason {
        Reason::SwitchoverWaitsForCandidate { .. } => {
            memory.catching_up_since = memory.catching_up_since.or(Some(view.now));
        }
        Reason::LeaderHealthy { .. } | Reason::LeaderDegraded { .. } | Reason::CommitsWait { .. } => {
            memory.catching_up_since = None;
            let settled = |at: &Mono| STEADY < view.now.since(*at);
            if memory.crash_restarts.last().is_some_and(settled) {
                memory.crash_restarts.clear();
            }
        }
        Reason::StopToRewind { .. } => memory.stops_to_rewind = memory.stops_to_rewind.saturating_add(1),
        Reason::Following { streaming: true, .. } | Reason::RewindFrom { .. } | Reason::CloneFrom { .. } => {
            memory.stops_to_rewind = 0;
        }
        // Nobody may lead in a pause: patience with the other members begins when it ends.
        Reason::Paused | Reason::PausedWithoutPrimary => {
            memory.leaderless_since = memory.leaderless_since.and(Some(view.now));
        }
        _ => (),
    }
}

/// What of the record decisions wait for. Positions are not part of it: they change all the time.
pub fn fingerprint(record: &ClusterRecord) -> (Vec<i64>, String) {
    let revisions = [
        record.leader.as_ref().map(|v| v.create_revision),
        record.initialize.as_ref().map(|v| v.mod_revision),
        record.failover.as_ref().map(|v| v.mod_revision),
        record.config.as_ref().map(|v| v.mod_revision),
        record.handover.as_ref().map(|v| v.mod_revision),
        Some(record.history_revision),
        Some(record.sync_revision),
    ];
    let mut members = String::new();
    for (name, member) in &record.members {
        let value = &member.value;
        members.push_str(&format!(
            "{name} {} {} {:?} {:?};",
            value.state, value.role, value.timeline, value.checkpoint_after_promote
        ));
    }
    (revisions.iter().map(|revision| revision.unwrap_or(0)).collect(), members)
}

/// Parameters that a server has go before nothing but what the file says of them.
fn keep_parameters(config: &mut Value, parameters: BTreeMap<String, String>) {
    let mut here = config;
    for key in ["postgresql", "parameters"] {
        if !here.is_object() {
            *here = Value::Object(serde_json::Map::new());
        }
        here = &mut here[key];
    }
    if !here.is_object() {
        *here = Value::Object(serde_json::Map::new());
    }
    for (name, value) in parameters {
        if here.get(&name).is_none() {
            here[name] = Value::String(value);
        }
    }
}

fn process_changed(status: &GuardianStatus, view: &ClusterView, adopting: bool) -> bool {
    let now = if adopting { taken_over(status) } else { process_view(status) };
    now != view.process
}
