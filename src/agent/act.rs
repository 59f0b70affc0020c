//! From a step to its effect: the only place where the core's words become deeds.
//!
//! One step at a time. The first step that fails ends the plan; the next decision sees what is there.

mod record;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::ended::EndedTerm;
use super::follow::{Configured, Whom, outside, parameters, recovery, upstream};
use super::lock::Lock;
use super::logins::Logins;
use super::observe::{is_unmanaged, process_view};
use crate::cluster::ClusterRecord;
use crate::cluster::changes::EndedRecord;
use crate::cluster::records::CredentialsRecord;
use crate::cluster::writes::Writes;
use crate::config::node::CallbacksConfig;
use crate::config::{ClusterSettings, SynchronousMode};
use crate::guardian::client::Guardian;
use crate::guardian::protocol::{AdoptRequest, Escalate, StartMode, StartRequest};
use crate::ha::step::BY_HAND;
use crate::ha::view::{Attempts, ByHand, DataDirView, Memory, ProcessView, TaskKind, TaskView};
use crate::ha::{ClusterView, PgStep, Step, names_to_start_with};
use crate::postgres::{
    ConfigureOutcome, Credentials, Follow, GivenUp, Instance, MovedAs, Needs, Progress, ServerSettings,
};
use crate::raft::Store;
use crate::telemetry::clock;
use crate::types::{LeaderPermit, Mono, NodeName, StopMode, TimelineId, WallTime};

/// A fast stop that takes longer is ended by force.
const STOP: Duration = Duration::from_secs(60);

/// What a reload asks for is there within; a busy machine may need a second.
const TAKEN_OVER: Duration = Duration::from_secs(5);

/// A standby that could not lower a setting with its primary tries again after.
const LOWER_AGAIN: Duration = Duration::from_secs(5);

/// The promote signal is repeated this often: one that lands between two waits of the startup process is
/// lost until `wal_retrieve_retry_interval`. Source: design section 6, "Promotion has a trap".
const PROMOTE_AGAIN: Duration = Duration::from_millis(100);

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The record had changed: somebody else was first. Harmless.
    #[error("the record had changed meanwhile")]
    Lost,
    /// The store did not take the write.
    #[error("write to the record: {0}")]
    Store(String),
    /// The guardian refused or is gone.
    #[error("guardian: {0}")]
    Guardian(#[from] crate::guardian::client::Error),
    /// PostgreSQL or one of its tools failed.
    #[error(transparent)]
    Postgres(#[from] crate::postgres::Error),
    /// Something that the step needs is not known.
    #[error("{0}")]
    Missing(String),
    /// PostgreSQL was promoted but did not leave recovery while the permit held.
    #[error("promotion did not finish while the permit held")]
    PromotionUnfinished,
    /// The data is to be replaced, and a server that howdah did not start uses it.
    #[error(
        "a server that howdah did not start uses this data, which the cluster would have to replace; stop it first"
    )]
    InUse,
}

/// A long task that runs beside the loop.
pub struct Task {
    /// What the view shows.
    pub view: TaskView,
    /// When it began, for people.
    pub since: crate::types::WallTime,
    /// How far it is.
    pub progress: watch::Receiver<Progress>,
    cancel: CancellationToken,
    result: tokio::task::JoinHandle<Result<Option<GivenUp>, crate::postgres::Error>>,
}

/// What a plan came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All steps done.
    Done,
    /// The process shall end.
    Exit,
    /// A step failed; it has been logged.
    Failed,
}

/// Everything that steps work on.
pub struct Actor {
    /// The store.
    pub store: Store,
    /// Transactions.
    pub writes: Writes,
    /// This node.
    pub me: NodeName,
    /// The local PostgreSQL.
    pub instance: Arc<Instance>,
    /// Its parent.
    pub guardian: Guardian,
    /// Lease and permit.
    pub lock: Lock,
    /// The roles as configured; a role without a password gets it from the record, or a generated one.
    pub logins: Logins,
    /// The roles with all their passwords, once they are known.
    pub credentials: Option<Credentials>,
    /// What the cluster's configuration is to begin with.
    pub initial_config: serde_json::Value,
    /// The long task.
    pub task: Option<Task>,
    /// Whom the configuration follows, as last written.
    pub follows: Option<NodeName>,
    /// The configuration follows the primary outside, as last written.
    pub follows_outside: bool,
    /// Logical slots of the leader, to be put in place while PostgreSQL does not run.
    pub slot_files: std::collections::BTreeMap<String, Vec<u8>>,
    /// What the rewind that has just ended gave up.
    pub given_up: Option<GivenUp>,
    /// What the operator has run before a promotion and before a stop.
    pub hooks: CallbacksConfig,
    /// What the operator has run on the first primary.
    pub post_bootstrap: Vec<String>,
    /// `synchronous_standby_names` as last decided; none: as PostgreSQL has it.
    pub names: Option<String>,
    /// This node was promoted and its checkpoint is not done yet.
    pub promoted: bool,
    /// This process ran initdb last.
    pub created: bool,
    /// The shared settings as last written to the server's files; none = not by this process, or the node's own file
    /// has changed since.
    pub configured: Option<Configured>,
    /// Before this tick's look at the server its files had been written for the shared settings of this tick.
    pub had_settings: bool,
    /// When the server was last told to read its files.
    pub told: Option<WallTime>,
    /// When it was last found that this standby cannot have a lower setting before its primary has it.
    pub raised_at: Option<Mono>,
    /// The server has been told to read its files again, and the callback has not.
    pub reloaded: bool,
    /// A person asked the server to read its files again.
    pub reload_asked: bool,
    /// What is to be written about a leadership with its end.
    pub ending: Option<EndedRecord>,
    /// What this node's processes have asked to end.
    pub ended: EndedTerm,
    /// A server that somebody else started here is to be taken over.
    pub adopting: bool,
}

impl Actor {
    /// Runs `steps` in order.
    pub async fn run(
        &mut self,
        steps: Vec<Step>,
        view: &ClusterView,
        settings: &ClusterSettings,
        memory: &mut Memory,
    ) -> Outcome {
        for step in steps {
            let result = match &step {
                Step::Pg(step) => self.pg(step, view, settings, memory).await,
                Step::Record(step) => self.record(step, view, memory).await,
                Step::Exit => return Outcome::Exit,
            };
            match result {
                Ok(()) => (),
                Err(Failure::Lost) => {
                    info!(?step, "not done: the record had changed meanwhile");
                    return Outcome::Failed;
                }
                Err(failure) => {
                    warn!(?step, error = %chain(&failure), "step failed");
                    return Outcome::Failed;
                }
            }
        }
        Outcome::Done
    }

    async fn pg(
        &mut self,
        step: &PgStep,
        view: &ClusterView,
        settings: &ClusterSettings,
        memory: &mut Memory,
    ) -> Result<(), Failure> {
        let replaces = matches!(
            step,
            PgStep::Initdb | PgStep::BaseBackup { .. } | PgStep::Rewind { .. } | PgStep::MoveAside { .. }
        );
        if replaces && is_unmanaged(&self.guardian.status()) {
            // Its files are in use. The adoption ends here; what the reason says must be put right first.
            return Err(Failure::InUse);
        }
        match step {
            PgStep::Initdb => self.begin(TaskKind::Initdb, Whom::Nobody, view, settings, memory),
            PgStep::BaseBackupOutside => self.begin(TaskKind::BaseBackup, Whom::Outside, view, settings, memory),
            PgStep::BaseBackup { from } => {
                self.begin(TaskKind::BaseBackup, Whom::Member(from), view, settings, memory)?;
                if let Some(ByHand::Reinitialize { moved, .. }) = &mut memory.by_hand {
                    *moved = true;
                }
                Ok(())
            }
            PgStep::Rewind { from } => self.begin(TaskKind::Rewind, Whom::Member(from), view, settings, memory),
            PgStep::CancelTask => self.cancel(),
            PgStep::Configure { follow } => {
                if follow.is_some() {
                    // Whom its commits waited for as a primary means nothing to a standby.
                    self.names = None;
                }
                self.configure(follow.as_ref().map_or(Whom::Nobody, Whom::Member), view, settings).await?;
                self.stop_receiving(follow.as_ref(), view).await
            }
            PgStep::ConfigureOutside => {
                self.names = None;
                self.configure(Whom::Outside, view, settings).await
            }
            PgStep::PrePromote { term } => {
                let CallbacksConfig { pre_promote, timeout, .. } = &self.hooks;
                match self.instance.run_hook(pre_promote, &[], *timeout).await {
                    Ok(()) => {
                        memory.pre_promoted = Some(*term);
                        Ok(())
                    }
                    Err(error) => {
                        memory.pre_promote_failed = Some(clock::now());
                        Err(error.into())
                    }
                }
            }
            PgStep::Enforce { names } => {
                self.names.clone_from(names);
                self.configure(Whom::Nobody, view, settings).await?;
                self.enforced(names.as_deref(), view).await
            }
            PgStep::StartStandby => {
                self.instance.prepare_standby()?;
                memory.slots_to_copy.clear();
                for (name, state) in std::mem::take(&mut self.slot_files) {
                    self.instance.put_slot(&name, &state)?;
                    info!(name, "logical slot copied from the leader");
                }
                restarted(memory);
                memory.standby_starts = memory.standby_starts.again(view.now);
                memory.stopped_for_handover = None;
                self.start(StartMode::Standby).await?;
                Ok(())
            }
            PgStep::StartPrimary { permit } => {
                self.instance.prepare_primary()?;
                restarted(memory);
                memory.crash_restarts.push(view.now);
                memory.starting_since = memory.starting_since.or(Some(view.now));
                memory.stopped_for_handover = None;
                self.start(StartMode::Primary { permit: *permit }).await?;
                Ok(())
            }
            PgStep::Promote { permit, timeline } => self.promote(permit, *timeline, view).await,
            PgStep::Stop { mode } => {
                if *mode == StopMode::Fast && !self.hooks.before_stop.is_empty() {
                    let CallbacksConfig { before_stop, timeout, .. } = &self.hooks;
                    if let Err(error) = self.instance.run_hook(before_stop, &[], *timeout).await {
                        warn!(error = %chain(&error), "before_stop failed; the stop follows all the same");
                    }
                }
                self.guardian.stop(*mode, STOP, Escalate::Kill).await?;
                match &mut memory.by_hand {
                    // No crash, and no hand-over: it starts again as what it was.
                    Some(ByHand::Restart { stopped }) => {
                        *stopped = true;
                        memory.crash_restarts.clear();
                        memory.standby_starts = Attempts::default();
                    }
                    Some(ByHand::Reinitialize { .. }) | None => memory.stopped_for_handover = Some(clock::now()),
                }
                Ok(())
            }
            PgStep::Fence => {
                self.guardian.fence("no permit to write").await?;
                Ok(())
            }
            PgStep::Checkpoint { request_revision: BY_HAND } => {
                if let Err(error) = self.instance.checkpoint(Duration::from_secs(30)).await {
                    info!(error = %chain(&error), "no checkpoint before the restart: the stop may take longer");
                }
                Ok(())
            }
            PgStep::Checkpoint { request_revision } => {
                self.instance.checkpoint(Duration::from_secs(30)).await?;
                memory.checkpointed_for = Some(*request_revision);
                Ok(())
            }
            PgStep::MoveAside { why } => {
                let name = match &view.data_dir {
                    DataDirView::Present(control) => MovedAs::Diverged(control.timeline),
                    _ => MovedAs::Failed,
                };
                if let Some(kept) = self.instance.move_aside(why, name).await? {
                    info!(kept = %kept.display(), why, "data directory moved aside; nothing was deleted");
                }
                memory.rewind_failed = None;
                Ok(())
            }
            PgStep::CreateRoles => {
                let credentials = self.credentials()?.clone();
                self.instance.bootstrap_roles(&credentials).await?;
                if !self.post_bootstrap.is_empty()
                    && self.created
                    && let Err(error) =
                        self.instance.post_bootstrap(&self.post_bootstrap, &credentials, self.hooks.timeout).await
                {
                    // What it has done by halves is not repeated on top: the creation begins anew.
                    self.created = false;
                    memory.failed_tasks = memory.failed_tasks.again(clock::now());
                    return Err(error.into());
                }
                // Sealed before the record says so: a crash in between leaves data that is adopted, not data that
                // counts as half made in a cluster that exists.
                Ok(self.instance.seal()?)
            }
        }
    }

    async fn start(&self, mode: StartMode) -> Result<(), Failure> {
        let spec = self.instance.start_spec();
        let before = self.guardian.status().change;
        if self.adopting && is_unmanaged(&self.guardian.status()) {
            let request = AdoptRequest { program: spec.program, uid: spec.uid, gid: spec.gid, mode };
            let pid = self.guardian.adopt(request).await?;
            info!(pid, "took over PostgreSQL as it runs");
            // It has not read what has just been written for it.
            self.guardian.reload().await?;
            return Ok(());
        }
        self.guardian
            .start(StartRequest {
                program: spec.program,
                args: spec.args,
                env: spec.env,
                socket_dirs: spec.socket_dirs,
                cwd: Some(spec.cwd),
                uid: spec.uid,
                gid: spec.gid,
                groups: spec.groups,
                log_file: Some(spec.log_file),
                mode,
            })
            .await?;
        // The answer and the status feed are two messages: the next decision must see the process.
        let shown = clock::now() + Duration::from_millis(500);
        while matches!(process_view(&self.guardian.status()), ProcessView::Absent { .. })
            && self.guardian.status().change == before
            && clock::now() < shown
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Promotes and waits until PostgreSQL has left recovery, as long as the permit holds.
    async fn promote(
        &mut self,
        permit: &LeaderPermit,
        timeline: TimelineId,
        view: &ClusterView,
    ) -> Result<(), Failure> {
        let cluster = record::decided_on(view)?.timeline();
        let here = view.server.any().map_or(cluster, |server| server.timeline.max(cluster));
        let passed = self.instance.pass_over_timelines(here, timeline)?;
        if !passed.is_empty() {
            let passed = passed.iter().map(TimelineId::to_string).collect::<Vec<_>>().join(", ");
            info!(passed, timeline = timeline.0, "timelines are passed over: others were given them for promotions");
        }
        loop {
            let current = self.lock.state().permit.filter(|p| p.term == permit.term).unwrap_or(*permit);
            if !current.holds_at(clock::now()) {
                return Err(Failure::PromotionUnfinished);
            }
            match self.guardian.promote(&current).await {
                Ok(()) => (),
                Err(error) if error.is_transient() => (),
                Err(error) => return Err(error.into()),
            }
            let again = clock::now() + PROMOTE_AGAIN;
            while clock::now() < again {
                if self.instance.status().await.is_ok_and(|status| !status.in_recovery()) {
                    self.promoted = true;
                    self.slot_files.clear();
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        }
    }

    /// Writes the configuration and has a running server read it.
    pub async fn configure(
        &mut self,
        follow: Whom<'_>,
        view: &ClusterView,
        settings: &ClusterSettings,
    ) -> Result<(), Failure> {
        let record = view.record.any();
        let follow_target = match follow {
            Whom::Member(leader) => Follow::Upstream(upstream(leader, &self.me, record)?),
            Whom::Outside => outside(settings)?.map_or(Follow::Nothing, Follow::Upstream),
            Whom::Nobody => Follow::Nothing,
        };
        let wanted = ServerSettings {
            parameters: parameters(settings, self.instance.binaries().version().major(), &view.settings.upstream),
            pg_hba: settings.postgresql.pg_hba.clone(),
            pg_ident: settings.postgresql.pg_ident.clone(),
            member_hosts: std::collections::BTreeSet::new(),
            synchronous_standby_names: self.synchronous_standby_names(view, settings),
            follow: follow_target,
            recovery: recovery(settings, follow),
            credentials: self.credentials()?.clone(),
        };
        let outcome: ConfigureOutcome = self.instance.configure(&wanted).await?;
        self.follows = match follow {
            Whom::Member(leader) => Some(leader.clone()),
            Whom::Nobody | Whom::Outside => None,
        };
        self.follows_outside = follow == Whom::Outside;
        for refused in &outcome.refused {
            warn!(?refused, "a parameter is refused by PostgreSQL and left out");
        }
        for parameter in &outcome.removed_from_auto_conf {
            info!(parameter, "set by ALTER SYSTEM, and howdah decides it: removed from postgresql.auto.conf");
        }
        let running = matches!(view.process, ProcessView::Running { .. });
        let new = !outcome.changed.is_empty() && outcome.needs != Needs::Nothing;
        if running && (new || self.reload_asked) {
            self.told = Some(clock::wall());
            self.guardian.reload().await?;
            self.reloaded = true;
        }
        self.reload_asked = false;
        self.configured = Some(Configured::of(settings));
        self.raised_at = outcome.raised.then(clock::now);
        Ok(())
    }

    /// Whether the server's files are as the settings ask for, as far as it is known. What a standby could not lower is
    /// looked at again from time to time: its primary's restart is not announced.
    pub fn is_configured(&self, settings: &ClusterSettings) -> bool {
        let due = self.raised_at.is_some_and(|at| LOWER_AGAIN < clock::now().since(at));
        !due && self.configured.as_ref() == Some(&Configured::of(settings))
    }

    /// Before the look at the server: remembers whether its files are as the settings ask for.
    pub fn note_settings(&mut self, settings: &ClusterSettings) {
        self.had_settings = self.configured.as_ref() == Some(&Configured::of(settings));
    }

    /// Whether a server that last read its files at `loaded` (microseconds since 1970) has this tick's settings.
    pub fn has_settings_since(&self, loaded: i64) -> bool {
        self.had_settings && self.told.is_none_or(|told| told.0.saturating_mul(1000) <= loaded)
    }

    /// What the files say of synchronous replication: what was decided, else what is in force, else what the record
    /// counts on. Rewriting them for another reason must never make a commit easier to acknowledge.
    fn synchronous_standby_names(&self, view: &ClusterView, settings: &ClusterSettings) -> Option<String> {
        let off = settings.synchronous_mode == SynchronousMode::Off || settings.standby_cluster.is_some();
        // Turned off, it ends only after the record has said that nobody relies on it.
        let relied_on = view.record.any().is_none_or(|record| {
            record.sync.as_ref().is_some_and(|sync| !sync.sync_standby.is_empty()) || record.sync_damage().is_some()
        });
        if off && !relied_on {
            return None;
        }
        let in_force = || match view.server.any() {
            Some(server) if server.in_recovery => Some(String::new()),
            Some(server) => Some(server.synchronous_standby_names.clone()),
            None => names_to_start_with(view),
        };
        Some(self.names.clone().or_else(in_force).unwrap_or_default())
    }

    /// A reload is read by each process on its own: waits until PostgreSQL answers with `names`.
    async fn enforced(&self, names: Option<&str>, view: &ClusterView) -> Result<(), Failure> {
        let (ProcessView::Running { .. }, Some(names)) = (view.process, names) else { return Ok(()) };
        let deadline = clock::now() + TAKEN_OVER;
        let mut told = false;
        loop {
            let status = self.instance.status().await;
            if status.is_ok_and(|status| status.synchronous_standby_names == names) {
                return Ok(());
            }
            // An agent before this one may have written the file and not lived to tell.
            if !std::mem::replace(&mut told, true) {
                self.guardian.reload().await?;
            }
            if deadline <= clock::now() {
                return Err(Failure::Missing(format!(
                    "PostgreSQL does not go by synchronous_standby_names = {names:?}"
                )));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the WAL receiver of a running standby that follows nobody now is gone.
    async fn stop_receiving(&self, follow: Option<&NodeName>, view: &ClusterView) -> Result<(), Failure> {
        let receives = view.server.any().is_some_and(|server| server.in_recovery && server.receiving);
        if follow.is_some() || !receives || !matches!(view.process, ProcessView::Running { .. }) {
            return Ok(());
        }
        let deadline = clock::now() + TAKEN_OVER;
        let mut told = false;
        while self.instance.status().await.map_or(true, |status| status.receives()) {
            if !std::mem::replace(&mut told, true) {
                self.guardian.reload().await?;
            }
            if deadline <= clock::now() {
                return Err(Failure::Missing("the WAL receiver does not end".to_owned()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Tells the local PostgreSQL's sessions how to log in, as soon as it is known: an agent that takes over a running
    /// server has configured nothing yet, and the operator's access list need not admit anybody without a password.
    pub fn log_in(&mut self) {
        if self.credentials.is_none() && self.credentials().is_ok() {
            self.credentials.iter().for_each(|known| self.instance.set_credentials(known));
        }
    }

    /// All passwords of the cluster's roles.
    pub(super) fn credentials(&mut self) -> Result<&Credentials, Failure> {
        if self.credentials.is_none() {
            let recorded = self.store.read(|kv| {
                let key = self.writes.space().key(&crate::cluster::Key::Credentials);
                kv.get(&key).and_then(|pair| serde_json::from_slice::<CredentialsRecord>(&pair.value).ok())
            });
            let passwords = recorded.map(|record| record.passwords).unwrap_or_default();
            self.credentials = self.logins.complete(&passwords);
        }
        self.credentials.as_ref().ok_or_else(|| {
            Failure::Missing(
                "the passwords of the cluster are neither configured (postgresql.authentication) nor in the record"
                    .to_owned(),
            )
        })
    }

    fn begin(
        &mut self,
        kind: TaskKind,
        from: Whom<'_>,
        view: &ClusterView,
        settings: &ClusterSettings,
        memory: &Memory,
    ) -> Result<(), Failure> {
        // Whatever this task leaves half done is not what this process has created.
        self.created = false;
        if kind == TaskKind::Initdb {
            self.credentials = Some(self.logins.generate());
        }
        let credentials = self.credentials()?.clone();
        let source = match from {
            Whom::Member(from) => Some(upstream(from, &self.me, view.record.any())?),
            Whom::Outside => Some(outside(settings)?.ok_or_else(|| {
                Failure::Missing("standby_cluster names no host to copy from: give host and port".to_owned())
            })?),
            Whom::Nobody => None,
        };
        let plainly = matches!(memory.by_hand, Some(ByHand::Reinitialize { from_leader: true, .. }));
        let instance = self.instance.clone();
        let (progress_tx, progress) = watch::channel(Progress::default());
        let cancel = CancellationToken::new();
        let token = cancel.clone();
        let result = tokio::spawn(async move {
            match (kind, source) {
                (TaskKind::Initdb, _) => match &instance.config().restore {
                    Some(restore) => instance.restore(restore, &credentials, &token).await.map(|_| None),
                    None => instance.initdb(&credentials, &token).await.map(|_| None),
                },
                (TaskKind::BaseBackup, Some(source)) => {
                    instance.copy(&source, &credentials, plainly, &progress_tx, &token).await.map(|()| None)
                }
                (TaskKind::Rewind, Some(source)) => instance.rewind(&source, &credentials, &progress_tx, &token).await,
                (TaskKind::BaseBackup | TaskKind::Rewind, None) => Ok(None),
            }
        });
        let from = match from {
            Whom::Member(from) => Some(from.clone()),
            Whom::Nobody | Whom::Outside => None,
        };
        let task_view = TaskView { kind, from, since: view.now };
        self.task = Some(Task { view: task_view, since: clock::wall(), progress, cancel, result });
        Ok(())
    }

    /// Reads the leader's logical slots, to be put in place here with the next start.
    pub async fn fetch_slots(
        &mut self,
        names: &std::collections::BTreeSet<String>,
        record: &ClusterRecord,
    ) -> Result<(), Failure> {
        let Some(leader) = record.leader.as_ref() else { return Ok(()) };
        let from = upstream(&leader.value, &self.me, Some(record))?;
        self.log_in();
        for name in names {
            if let Some(state) = self.instance.remote_slot(&from, name).await? {
                self.slot_files.insert(name.clone(), state);
            }
        }
        Ok(())
    }

    fn cancel(&mut self) -> Result<(), Failure> {
        if let Some(task) = &self.task {
            task.cancel.cancel();
        }
        Ok(())
    }

    /// Collects a long task that has ended. True if there was one.
    pub async fn collect(&mut self, memory: &mut Memory) -> bool {
        if !self.task.as_ref().is_some_and(|task| task.result.is_finished()) {
            return false;
        }
        let Some(task) = self.task.take() else { return false };
        let kind = task.view.kind;
        let took_ms = u64::try_from(clock::now().since(task.view.since).as_millis()).unwrap_or(u64::MAX);
        match task.result.await {
            Ok(Ok(given_up)) => {
                info!(?kind, took_ms, "long task done");
                self.given_up = given_up;
                memory.failed_tasks = Attempts::default();
                // What was fetched for the data before is not for this.
                self.slot_files.clear();
                self.created = kind == TaskKind::Initdb;
                memory.rewind_failed = None;
            }
            Ok(Err(crate::postgres::Error::Cancelled { .. })) => info!(?kind, took_ms, "long task cancelled"),
            Ok(Err(error)) => {
                memory.failed_tasks = memory.failed_tasks.again(clock::now());
                warn!(?kind, took_ms, error = %chain(&error), "long task failed");
                // A leader that went away is no fault of the rewind: the next one is tried again.
                if kind == TaskKind::Rewind && !error.is_transient() {
                    memory.rewind_failed = Some(format!("pg_rewind failed: {error}"));
                }
            }
            Err(error) => warn!(?kind, took_ms, %error, "long task ended abnormally"),
        }
        true
    }

    /// Resolves when the long task ends; never if there is none.
    pub async fn task_ended(&mut self) {
        match &mut self.task {
            Some(task) => {
                while !task.result.is_finished() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            None => std::future::pending().await,
        }
    }
}

/// Whoever asked for a restart has it with this start, also if there was nothing to stop.
fn restarted(memory: &mut Memory) {
    if let Some(ByHand::Restart { stopped }) = &mut memory.by_hand {
        *stopped = true;
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
