//! What clients may ask of the node: requests become writes to the record, and their outcome is awaited.
//!
//! Nothing here touches PostgreSQL or decides: the agent reads the record and does.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{Mutex, Notify, watch};

use crate::agent::act::chain;
use crate::agent::orders::{Orders, Reinitialize, RestartFilter, ScheduledRestart};
use crate::agent::peers::Position;
use crate::agent::publish;
use crate::agent::snapshot::{PostgresState, RaftMember, Snapshot};
use crate::agent::upkeep::heir;
use crate::api::control::{
    Answer, Control, ControlError, ControlOutcome, NewMember, ReinitializeRequest, RestartRequest, SwitchoverRequest,
};
use crate::cluster::records::{FailoverRecord, Initialize};
use crate::cluster::writes::Writes;
use crate::cluster::{ClusterRecord, Key};
use crate::config::ClusterSettings;
use crate::config::cluster_settings::merge_patch;
use crate::kv::command::{Command, Response, TxnRequest};
use crate::postgres::{AccessFile, Instance, Preflight, SqlRole, wrong_lines};
use crate::raft::{Store, StoreError};
use crate::types::{NodeName, PgVersion};

use super::reload::Reloader;

/// A write must be answered within.
const WRITE: Duration = Duration::from_secs(3);

/// So long is a role change awaited before its outcome is called unknown.
const ROLE_CHANGE: Duration = Duration::from_secs(30);

/// A membership change copies the whole store to the new member.
const MEMBERSHIP: Duration = Duration::from_secs(30);

/// A server is taken over within. The first node of a cluster waits for the others' replicas of the store.
const ADOPTION: Duration = Duration::from_secs(60);

/// A copy begins within, usually: the old server has to stop first.
const BEGIN: Duration = Duration::from_secs(20);

/// The node, as the REST endpoints see it.
pub(super) struct NodeControl {
    pub(super) store: Store,
    pub(super) writes: Writes,
    pub(super) me: NodeName,
    pub(super) snapshot: watch::Receiver<Arc<Snapshot>>,
    pub(super) asked: Arc<Notify>,
    pub(super) instance: Option<Arc<Instance>>,
    /// One question to PostgreSQL at a time, however many members ask.
    pub(super) asking: Mutex<()>,
    /// What is asked of the local PostgreSQL.
    pub(super) orders: Arc<Orders>,
    pub(super) reloader: Arc<Reloader>,
}

impl NodeControl {
    fn record(&self) -> ClusterRecord {
        let space = self.writes.space();
        self.store.read(|kv| ClusterRecord::read(space, kv.revision(), kv.prefix(space.prefix())))
    }

    async fn write(&self, txn: TxnRequest) -> Result<bool, ControlError> {
        match self.store.propose(Command::Txn(txn), WRITE).await {
            Ok(Response::Txn(answer)) => {
                // What is awaited next must not be judged on a record from before this write.
                let mut applied = self.store.applied();
                let seen = tokio::time::timeout(WRITE, applied.wait_for(|revision| answer.revision <= *revision)).await;
                match seen {
                    Ok(Ok(_)) => Ok(answer.succeeded),
                    Ok(Err(_)) | Err(_) => {
                        Err(ControlError::Failed("the change is written; this node has not seen it yet".to_owned()))
                    }
                }
            }
            Ok(other) => Err(ControlError::Failed(format!("the store gave an unexpected answer: {other:?}"))),
            Err(error) => Err(store_error(error)),
        }
    }

    /// Writes the request and waits until the leader has changed or the request has been refused.
    async fn change_role(&self, request: SwitchoverRequest, failover: bool) -> Result<ControlOutcome, ControlError> {
        let _seen = self.store.linearize(WRITE).await.map_err(store_error)?;
        let before = self.record();
        let key = self.writes.space().key(&Key::Failover);
        let revision = self.store.read(|kv| kv.get(&key).map_or(0, |pair| pair.mod_revision));
        let wanted = FailoverRecord {
            leader: request.leader.clone(),
            member: request.candidate.clone(),
            scheduled_at: request.scheduled_at.map(|at| at.iso()),
        };
        if !self.write(self.writes.request(&wanted, revision)).await? {
            return Err(ControlError::Conflict("another role change was requested at the same moment".to_owned()));
        }
        self.asked.notify_one();
        if request.scheduled_at.is_some() {
            return Ok(ControlOutcome::scheduled());
        }
        let old_term = before.term();
        let mut applied = self.store.applied();
        let outcome = tokio::time::timeout(ROLE_CHANGE, async {
            loop {
                let record = self.record();
                if let (Some(leader), Some(term)) = (&record.leader, record.term())
                    && Some(term) != old_term
                    && leads(&record, &leader.value)
                {
                    return Ok(leader.value.clone());
                }
                if record.failover.is_none() && record.term() == old_term && record.handover.is_none() {
                    return Err(self.refusal(&before));
                }
                if applied.changed().await.is_err() {
                    return Err(ControlError::Failed("the node is stopping".to_owned()));
                }
            }
        })
        .await;
        match outcome {
            Ok(Ok(leader)) if failover => Ok(ControlOutcome::failed_over(&leader)),
            Ok(Ok(leader)) => Ok(ControlOutcome::switched_over(&leader)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(ControlError::Failed(format!(
                "no new leader after {} s; the request stands, see `howdah list` and the leader's log",
                ROLE_CHANGE.as_secs()
            ))),
        }
    }

    /// Why the leader did not follow the request; its own words when it is this node.
    fn refusal(&self, before: &ClusterRecord) -> ControlError {
        let snapshot = self.snapshot.borrow();
        let words = snapshot
            .decisions
            .iter()
            .rev()
            .find(|row| matches!(row.reason.as_str(), "request_refused" | "switchover_unproven"))
            .map(|row| row.sentence.clone());
        let leader = before.leader.as_ref().map_or("the leader", |leader| leader.value.as_str());
        ControlError::Refused(words.unwrap_or_else(|| {
            format!("{leader} did not hand over; `howdah list` and its log say why, the request was dropped")
        }))
    }

    async fn store_config(&self, change: impl FnOnce(&mut Value)) -> Result<Value, ControlError> {
        let _seen = self.store.linearize(WRITE).await.map_err(store_error)?;
        let record = self.record();
        let (mut value, revision) = match &record.config {
            Some(config) => (config.value.clone(), config.mod_revision),
            None => (Value::Object(serde_json::Map::new()), 0),
        };
        let old = value.clone();
        change(&mut value);
        let (settings, _) =
            ClusterSettings::parse(&value).map_err(|error| ControlError::BadRequest(error.to_string()))?;
        let (before, _) = ClusterSettings::parse(&old).unwrap_or_default();
        self.refuse_access(&before, &settings)?;
        self.refuse_parameters(&before, &settings).await?;
        if old != value && !self.write(self.writes.config(&value, revision)).await? {
            return Err(ControlError::Conflict(
                "the settings were changed by somebody else at the same moment; look at them and try again".to_owned(),
            ));
        }
        self.asked.notify_one();
        Ok(value)
    }

    async fn restart_postgres(&self, request: RestartRequest) -> Result<ControlOutcome, ControlError> {
        let filter = RestartFilter {
            role: request.role,
            older_than: request.older_than.map(PgVersion),
            restart_pending: request.restart_pending,
        };
        let pg = self.snapshot.borrow().postgres.clone();
        let Some(pg) = pg else {
            return Err(ControlError::Failed("this node is a witness and has no PostgreSQL to restart".to_owned()));
        };
        if let Some(at) = request.schedule {
            let postmaster_start_time = pg.postmaster_start_time;
            let restart = ScheduledRestart { at, filter, timeout: request.timeout, postmaster_start_time };
            if !self.orders.schedule(restart) {
                return Err(ControlError::Conflict("Another restart is already scheduled".to_owned()));
            }
            self.asked.notify_one();
            return Ok(ControlOutcome::Accepted("Restart scheduled".to_owned()));
        }
        if let Some(why) = filter.unmet(&pg) {
            return Err(ControlError::Failed(format!("restart conditions are not satisfied: {why}")));
        }
        let outcome = self.orders.restart(request.timeout).map_err(busy)?;
        self.asked.notify_one();
        match outcome.await {
            Ok(Ok(())) => Ok(ControlOutcome::Done("restarted successfully".to_owned())),
            Ok(Err(why)) => Err(ControlError::Failed(why)),
            Err(_) => Err(ControlError::Failed("the node is stopping".to_owned())),
        }
    }

    /// What of the changed access rules PostgreSQL would not take: with one wrong line of `pg_hba.conf` no node starts.
    fn refuse_access(&self, old: &ClusterSettings, new: &ClusterSettings) -> Result<(), ControlError> {
        let (old, new) = (&old.postgresql, &new.postgresql);
        let major = self.instance.as_ref().map(|instance| instance.binaries().version().major());
        let refused = |key: &str,
                       file: AccessFile,
                       old: &Option<Vec<String>>,
                       new: &Option<Vec<String>>|
         -> Vec<String> {
            let changed = new.iter().filter(|_| old != new);
            changed.flat_map(|lines| wrong_lines(file, lines, major)).map(|wrong| format!("{key}: {wrong}")).collect()
        };
        let mut all = refused("postgresql.pg_hba", AccessFile::Hba, &old.pg_hba, &new.pg_hba);
        all.extend(refused("postgresql.pg_ident", AccessFile::Ident, &old.pg_ident, &new.pg_ident));
        if all.is_empty() { Ok(()) } else { Err(ControlError::BadRequest(all.join("; "))) }
    }

    /// What of the changed parameters PostgreSQL would not take, asked of its own program before anything is written.
    async fn refuse_parameters(&self, old: &ClusterSettings, new: &ClusterSettings) -> Result<(), ControlError> {
        let (old, new) = (&old.postgresql.parameters, &new.postgresql.parameters);
        let Some(instance) = self.instance.as_ref().filter(|_| old != new) else { return Ok(()) };
        // Not known here, for example while there is no data yet: it is looked at when it is put into force.
        let Ok(refused) = instance.refused(new).await else { return Ok(()) };
        let ours: Vec<String> = refused
            .iter()
            .filter(|setting| old.get(&setting.name) != new.get(&setting.name))
            .map(|setting| format!("postgresql.parameters.{setting}"))
            .collect();
        if ours.is_empty() { Ok(()) } else { Err(ControlError::BadRequest(ours.join("; "))) }
    }

    /// At the server that somebody else runs here.
    async fn look(&self) -> Result<Preflight, ControlError> {
        let Some(instance) = &self.instance else {
            return Err(ControlError::Failed("this node is a witness and has no PostgreSQL to adopt".to_owned()));
        };
        let runs_ours = self.snapshot.borrow().postgres.as_ref().is_some_and(|pg| pg.state == PostgresState::Running);
        if runs_ours {
            return Err(ControlError::Refused("PostgreSQL on this node is howdah's already".to_owned()));
        }
        instance.preflight().await.map_err(|error| ControlError::Failed(chain(&error)))
    }

    fn members(&self) -> Vec<RaftMember> {
        publish::raft(&self.store.status()).members
    }
}

fn busy(what: &'static str) -> ControlError {
    // Tools match the end of this text.
    ControlError::Failed(format!("{what} already in progress"))
}

/// Whether `leader` has said itself that it runs as the primary.
fn leads(record: &ClusterRecord, leader: &NodeName) -> bool {
    record.members.get(leader).is_some_and(|member| {
        matches!(member.value.role.as_str(), "primary" | "standby_leader") && member.value.state == "running"
    })
}

fn store_error(error: StoreError) -> ControlError {
    match error {
        StoreError::Refused { why } => ControlError::Refused(why),
        StoreError::NoLeader => {
            let text = "no majority of the members can be reached; see `howdah list`. If they are lost for good: `howdah member force-new-cluster`";
            ControlError::NoQuorum(text.to_owned())
        }
        other => ControlError::Failed(format!("the store did not take the change: {other}")),
    }
}

impl Control for NodeControl {
    fn switchover(&self, request: SwitchoverRequest) -> Answer<'_, ControlOutcome> {
        Box::pin(self.change_role(request, false))
    }

    fn failover(&self, request: SwitchoverRequest) -> Answer<'_, ControlOutcome> {
        Box::pin(self.change_role(request, true))
    }

    fn cancel_switchover(&self) -> Answer<'_, ControlOutcome> {
        Box::pin(async {
            let _seen = self.store.linearize(WRITE).await.map_err(store_error)?;
            let Some(request) = self.record().failover else {
                return Err(ControlError::NotFound("no switchover is scheduled".to_owned()));
            };
            if self.write(self.writes.clear_request(request.mod_revision)).await? {
                Ok(ControlOutcome::Done("scheduled switchover deleted".to_owned()))
            } else {
                Err(ControlError::Conflict("the request changed at the same moment".to_owned()))
            }
        })
    }

    fn patch_config(&self, patch: Value) -> Answer<'_, Value> {
        Box::pin(self.store_config(move |value| merge_patch(value, &patch)))
    }

    fn put_config(&self, config: Value) -> Answer<'_, Value> {
        Box::pin(self.store_config(move |value| *value = config))
    }

    fn restart(&self, request: RestartRequest) -> Answer<'_, ControlOutcome> {
        Box::pin(self.restart_postgres(request))
    }

    fn cancel_restart(&self) -> Answer<'_, ControlOutcome> {
        Box::pin(async {
            if !self.orders.cancel_scheduled() {
                return Err(ControlError::NotFound("no restarts are scheduled".to_owned()));
            }
            self.asked.notify_one();
            Ok(ControlOutcome::Done("scheduled restart deleted".to_owned()))
        })
    }

    fn reload(&self) -> Answer<'_, ControlOutcome> {
        Box::pin(async {
            let later = self.reloader.reload().await.map_err(ControlError::BadRequest)?;
            let text = match later.as_slice() {
                [] => "reload scheduled".to_owned(),
                keys => format!("reload scheduled; these need a restart of the node: {}", keys.join(", ")),
            };
            Ok(ControlOutcome::Accepted(text))
        })
    }

    fn reinitialize(&self, request: ReinitializeRequest) -> Answer<'_, ControlOutcome> {
        Box::pin(async move {
            self.orders
                .reinitialize(Reinitialize { force: request.force, from_leader: request.from_leader })
                .map_err(busy)?;
            self.asked.notify_one();
            // Clients poll the state until it is another than `creating replica`: it must be that before they begin.
            let mut snapshot = self.snapshot.clone();
            let begun = snapshot.wait_for(|snapshot| snapshot.task.is_some() || !self.orders.is_busy());
            let _ = tokio::time::timeout(BEGIN, begun).await.is_ok();
            Ok(ControlOutcome::Done("reinitialize started".to_owned()))
        })
    }

    fn preflight(&self) -> Answer<'_, Value> {
        Box::pin(async { Ok(serde_json::json!(self.look().await?)) })
    }

    fn adopt(&self) -> Answer<'_, ControlOutcome> {
        Box::pin(async {
            let report = self.look().await?;
            if !report.problems.is_empty() {
                return Err(ControlError::Refused(report.problems.join("; ")));
            }
            match self.record().initialize.map(|initialize| initialize.value) {
                Some(Initialize::Done(cluster)) if cluster != report.system_id => {
                    let text = format!(
                        "this is database {}, and the cluster is database {cluster}; a node without data must not have \
                         created one: see bootstrap.adopt",
                        report.system_id
                    );
                    return Err(ControlError::Refused(text));
                }
                _ => (),
            }
            if report.standby && self.record().initialize.is_none() {
                let text = "it is a standby, and there is no cluster yet; adopt the primary first";
                return Err(ControlError::Refused(text.to_owned()));
            }
            let outcome = self.orders.adopt(report.kept).map_err(busy)?;
            self.asked.notify_one();
            match tokio::time::timeout(ADOPTION, outcome).await {
                Ok(Ok(Ok(()))) => Ok(ControlOutcome::Done("adopted".to_owned())),
                Ok(Ok(Err(why))) => Err(ControlError::Refused(why)),
                Ok(Err(_)) => Err(ControlError::Failed("the node is stopping".to_owned())),
                Err(_) => {
                    self.orders.end_adoption(Err("it took too long".to_owned()));
                    let snapshot = self.snapshot.borrow();
                    let why = snapshot.decisions.last().map_or("the log says why", |row| row.sentence.as_str());
                    Err(ControlError::Failed(format!("not taken over within {} s: {why}", ADOPTION.as_secs())))
                }
            }
        })
    }

    fn release(&self) -> Answer<'_, ControlOutcome> {
        Box::pin(async {
            let outcome = self.orders.release().map_err(busy)?;
            self.asked.notify_one();
            match outcome.await {
                Ok(Ok(())) => Ok(ControlOutcome::Done("released".to_owned())),
                Ok(Err(why)) => Err(ControlError::Failed(why)),
                Err(_) => Err(ControlError::Failed("the node is stopping".to_owned())),
            }
        })
    }

    fn add_member(&self, member: NewMember) -> Answer<'_, Vec<RaftMember>> {
        Box::pin(async move {
            let addr = member.addr.to_string();
            let added = self.store.member_add(&member.name, &addr);
            match tokio::time::timeout(MEMBERSHIP, added).await {
                Ok(result) => result.map_err(store_error)?,
                Err(_) => return Err(ControlError::Failed("the member has not caught up yet".to_owned())),
            }
            Ok(self.members())
        })
    }

    fn remove_member(&self, name: NodeName) -> Answer<'_, Vec<RaftMember>> {
        Box::pin(async move {
            match tokio::time::timeout(MEMBERSHIP, self.store.member_remove(&name)).await {
                Ok(result) => result.map_err(store_error)?,
                Err(_) => return Err(ControlError::Failed("the change has not been confirmed yet".to_owned())),
            }
            Ok(self.members())
        })
    }

    fn transfer(&self, to: Option<NodeName>) -> Answer<'_, ControlOutcome> {
        Box::pin(async move {
            let Some(to) = to.or_else(|| heir(&self.store.status(), |_| true)) else {
                return Err(ControlError::Refused("no other voter is up to date".to_owned()));
            };
            self.store.transfer_leader(&to).await.map_err(store_error)?;
            Ok(ControlOutcome::Done(format!("raft leadership moved to {to}")))
        })
    }

    fn position(&self) -> Answer<'_, Position> {
        Box::pin(async {
            let candidate = self.snapshot.borrow().candidate;
            let Some(instance) = &self.instance else {
                return Ok(Position {
                    name: self.me.clone(),
                    writable: false,
                    promotable: false,
                    timeline: None,
                    position: None,
                    pending: false,
                    receiving: false,
                });
            };
            let _one = self.asking.lock().await;
            // Asked afresh: the answer decides who leads, the snapshot may be a heartbeat old.
            let status = instance.status().await.ok();
            // A standby that receives nothing at the moment has seen the newest timeline only in its WAL: PostgreSQL's own
            // answer is that of its last checkpoint, and two such nodes would wait for each other for ever.
            let seen = status.as_ref().filter(|status| status.in_recovery()).and(instance.newest_wal_timeline());
            let writable = status.as_ref().is_some_and(|status| !status.in_recovery());
            let pending = match status.as_ref().map(|status| &status.role) {
                None => true,
                Some(SqlRole::Replica(replica)) => replica.replaying,
                Some(SqlRole::Primary(_)) => false,
            };
            Ok(Position {
                name: self.me.clone(),
                writable,
                promotable: candidate && status.as_ref().is_some_and(|status| status.in_recovery()),
                timeline: status.as_ref().map(|status| status.timeline).max(seen),
                position: status.as_ref().map(|status| status.position()),
                pending: candidate && pending,
                receiving: status.as_ref().is_none_or(|status| status.receives()),
            })
        })
    }
}
