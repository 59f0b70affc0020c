//! What a node keeps in order besides its role: its member record, the leader's position and history,
//! replication slots, the roles that members log in with, the checkpoint after a promotion, and Raft leadership off the
//! primary's node.
//!
//! Everything here is repeated until it holds; a failure is logged and tried again at the next tick.

use std::time::Duration;

use serde_json::json;
use tracing::{debug, info, warn};

use super::act::{Actor, Failure, chain};
use super::kept::KeptSlots;
use super::observe::Sighting;
use super::slots::{Keeper, Known, Part, Plan, published};
use crate::cluster::ClusterRecord;
use crate::cluster::records::{HistoryLine, MemberRecord, ProgressRecord, Promotions, ReservedTimeline, StatusRecord};
use crate::config::ClusterSettings;
use crate::ha::ClusterView;
use crate::ha::sync_wish;
use crate::ha::view::{ByHand, DataDirView, ProcessView, ServerView, TaskKind};
use crate::postgres::{PendingRestart, SqlRole, SqlStatus};
use crate::raft::RaftStatus;
use crate::telemetry::clock;
use crate::types::timeline::HistoryEntry;
use crate::types::{Mono, NodeName, Term, TimelineHistory, WallTime};

/// Slots are compared and moved forward this often; a new member's is made at once.
const SLOTS_EVERY: Duration = Duration::from_secs(10);

/// The leader looks for the cluster's roles this often ...
const ROLES_EVERY: Duration = Duration::from_secs(60);

/// ... and as soon as a standby has not streamed for so long: its role may have been dropped.
const UNSTREAMED: Duration = Duration::from_secs(3);

/// Raft leadership is moved without hurry after a promotion, and not again sooner than this.
const RAFT_MOVE_EVERY: Duration = Duration::from_secs(3);

/// How long routers have from the announcement of a stop to the stop: the record reaches them in a few milliseconds,
/// and connections that were just being opened get through.
const ROUTERS_TURN: Duration = Duration::from_millis(100);

/// What a node says about itself that does not change while it runs.
#[derive(Debug, Clone)]
pub struct Identity {
    /// This node.
    pub me: NodeName,
    /// `postgres://host:port/postgres`.
    pub conn_url: String,
    /// `http://host:port/patroni`.
    pub api_url: String,
    /// Tags that are set.
    pub tags: std::collections::BTreeMap<String, serde_json::Value>,
}

/// What has been done already.
pub struct Upkeep {
    identity: Identity,
    published: Option<(MemberRecord, crate::types::LeaseId, Mono)>,
    status: Option<StatusRecord>,
    slots_at: Option<Mono>,
    keeper: Keeper,
    kept: KeptSlots,
    planned: Option<Plan>,
    roles_at: Option<Mono>,
    unstreamed_since: Option<Mono>,
    raft_move_at: Option<Mono>,
    primary_said: Option<Mono>,
    checkpoint: Option<tokio::task::JoinHandle<Result<(), crate::postgres::Error>>>,
}

impl Upkeep {
    /// Nothing done yet, but for the slots that an earlier agent has made.
    pub fn new(identity: Identity, mut kept: KeptSlots) -> Self {
        Self {
            identity,
            keeper: Keeper::resume(kept.read(), clock::now()),
            kept,
            published: None,
            status: None,
            slots_at: None,
            planned: None,
            roles_at: None,
            unstreamed_since: None,
            raft_move_at: None,
            primary_said: None,
            checkpoint: None,
        }
    }

    /// When this node said that it takes writes; none while it does not lead.
    pub fn primary_said(&self) -> Option<Mono> {
        self.primary_said
    }

    /// The node's file has been read again.
    pub fn set_tags(&mut self, tags: std::collections::BTreeMap<String, serde_json::Value>) {
        self.identity.tags = tags;
    }

    /// One round.
    pub async fn round(
        &mut self,
        actor: &mut Actor,
        view: &ClusterView,
        sighting: &Sighting,
        settings: &ClusterSettings,
        scheduled_restart: Option<serde_json::Value>,
    ) {
        let leading = view.permit_holds()
            && view.record.fresh().is_some_and(|record| record.is_leader(&view.me))
            && view.server.fresh().is_some_and(|server| !server.in_recovery);
        if leading && self.published.as_ref().is_none_or(|(published, ..)| published.role != "primary") {
            // Routers let clients write at this word; everything else can follow it.
            let member = self.member(actor, view, sighting);
            let published = self.publish(actor, view, member).await;
            if published.is_ok() {
                self.primary_said = Some(clock::now());
            }
            report(published, "publish the member record");
        }
        if leading && let (Some(record), Some(server)) = (view.record.fresh(), view.server.fresh()) {
            // Also when an agent before this one has promoted: until this checkpoint nobody can rewind from here.
            actor.promoted |= sighting.sql.as_ref().is_some_and(|sql| sql.checkpoint_timeline != sql.timeline);
            self.checkpoint(actor, sync_wish::wants_checkpoint(view)).await;
            if let Some(term) = record.term() {
                report(self.history(actor, record, server, term).await, "publish the timeline history");
                report(self.status(actor, sighting, record, server, term).await, "publish the leader's position");
            }
            self.move_raft_leadership(actor, view, record).await;
            report(self.roles(actor, view, record, server).await, "look after the cluster's roles");
        } else if leads_standby_cluster(view)
            && let (Some(record), Some(server)) = (view.record.fresh(), view.server.fresh())
            && let Some(term) = record.term()
        {
            report(self.history(actor, record, server, term).await, "publish the timeline history");
            report(self.status(actor, sighting, record, server, term).await, "publish the leader's position");
        } else {
            self.status = None;
            self.primary_said = None;
            (self.roles_at, self.unstreamed_since) = (None, None);
            if let Some(record) = view.record.fresh() {
                self.stand_aside(actor, view, record);
            }
        }
        // A paused cluster's slots stay as they are.
        if let (Some(record), Some(_), Some(sql)) = (view.record.fresh(), view.server.fresh(), &sighting.sql)
            && !view.settings.pause
            && record.leader.is_some()
        {
            report(self.slots(actor, view, record, sql, settings).await, "adjust replication slots");
        }
        let member = MemberRecord { scheduled_restart, ..self.member(actor, view, sighting) };
        report(self.publish(actor, view, member).await, "publish the member record");
    }

    /// Says that this primary is about to stop in good order, and gives routers a moment to hear of it: they hold new
    /// connections and end idle sessions before the server does it without a word.
    pub async fn announce_stop(&mut self, actor: &Actor, view: &ClusterView, sighting: &Sighting) {
        let member = MemberRecord { state: "stopping".to_owned(), ..self.member(actor, view, sighting) };
        if self.published.as_ref().is_some_and(|(published, ..)| published.state == member.state) {
            return;
        }
        let published = self.publish(actor, view, member).await;
        let heard = published.is_ok();
        report(published, "announce the stop");
        if heard {
            tokio::time::sleep(ROUTERS_TURN).await;
        }
    }

    /// pg_rewind from a new primary is unreliable before its first checkpoint (source: design section 6); and the first
    /// standbys of a synchronous set are proven by one.
    async fn checkpoint(&mut self, actor: &mut Actor, wanted: bool) {
        if !actor.promoted && !wanted && self.checkpoint.is_none() {
            return;
        }
        match self.checkpoint.take() {
            None => {
                let instance = actor.instance.clone();
                self.checkpoint =
                    Some(tokio::spawn(async move { instance.checkpoint(Duration::from_secs(600)).await }));
            }
            Some(task) if task.is_finished() => match task.await {
                Ok(Ok(())) => actor.promoted = false,
                Ok(Err(error)) => warn!(error = %chain(&error), "checkpoint after promotion failed; again"),
                Err(error) => warn!(%error, "checkpoint after promotion failed; again"),
            },
            Some(task) => self.checkpoint = Some(task),
        }
    }

    async fn history(
        &mut self,
        actor: &Actor,
        record: &ClusterRecord,
        server: &ServerView,
        term: Term,
    ) -> Result<(), Failure> {
        if record.timeline() == server.timeline {
            return Ok(());
        }
        let history = actor.instance.timeline_history(server.timeline)?;
        let promotions = promotions(record, &history, &self.identity.me, clock::wall());
        actor.write(actor.writes.history(term, &promotions)).await?;
        info!(timeline = server.timeline.0, "timeline history published");
        Ok(())
    }

    async fn status(
        &mut self,
        actor: &Actor,
        sighting: &Sighting,
        record: &ClusterRecord,
        server: &ServerView,
        term: Term,
    ) -> Result<(), Failure> {
        let slots = sighting.sql.as_ref().map_or(&[][..], |sql| &sql.slots);
        let status = match &self.planned {
            Some(plan) => published(plan, &self.identity.me, server.position, slots),
            // What this leader has not looked at yet stays as it was said.
            None => {
                let said = record.status.as_ref().map(|status| status.value.clone());
                StatusRecord { optime: server.position, ..said.unwrap_or_default() }
            }
        };
        if self.status.as_ref() == Some(&status) {
            return Ok(());
        }
        actor.write(actor.writes.status(term, &status)).await?;
        self.status = Some(status);
        Ok(())
    }

    /// Without its role a standby streams no more, and its own log is the only place that says why.
    async fn roles(
        &mut self,
        actor: &mut Actor,
        view: &ClusterView,
        record: &ClusterRecord,
        server: &ServerView,
    ) -> Result<(), Failure> {
        let since = self.unstreamed_since.unwrap_or(view.now);
        self.unstreamed_since = lacks_a_stream(record, server, &view.me).then_some(since);
        let looked = *self.roles_at.get_or_insert(view.now);
        // A paused cluster's PostgreSQL is left alone. Of a role without a password nobody knows how it is to be made.
        if view.settings.pause || !roles_due(looked, self.unstreamed_since, view.now) {
            return Ok(());
        }
        self.roles_at = Some(view.now);
        let Ok(credentials) = actor.credentials().cloned() else { return Ok(()) };
        for role in actor.instance.restore_roles(&credentials).await? {
            warn!(role, "a role that the cluster needs was missing; it is created");
        }
        Ok(())
    }

    /// Brings the server's slots to the plan; what could not be done is tried again with the next round that is due.
    async fn slots(
        &mut self,
        actor: &mut Actor,
        view: &ClusterView,
        record: &ClusterRecord,
        sql: &SqlStatus,
        settings: &ClusterSettings,
    ) -> Result<(), Failure> {
        let part = if record.is_leader(&view.me) {
            Part::Leader
        } else if view.settings.nofailover {
            Part::Bystander
        } else {
            Part::Candidate
        };
        let known = Known {
            me: &view.me,
            part,
            record,
            settings,
            slots: &sql.slots,
            major: actor.instance.binaries().version().major(),
            now: view.now,
        };
        let plan = self.keeper.plan(&known);
        let there = |name: &String| sql.slots.iter().any(|slot| slot.name == *name);
        let lacking = plan.physical.iter().chain(plan.logical.keys()).any(|name| !there(name))
            || plan.retired.iter().chain(&plan.retired_logical).any(there);
        let due = self.slots_at.is_none_or(|at| SLOTS_EVERY < view.now.since(at));
        let changed = self.planned.as_ref().is_none_or(|before| {
            (&before.physical, &before.logical) != (&plan.physical, &plan.logical)
                || (&before.retired, &before.retired_logical) != (&plan.retired, &plan.retired_logical)
        });
        if due || changed {
            // Before any is made: what is not remembered is never taken away.
            self.kept.remember(self.keeper.kept()).await;
        }
        if due || (changed && lacking) {
            self.slots_at = Some(view.now);
            let mut changes = actor.instance.sync_member_slots(&plan.physical, &plan.retired).await?;
            actor.instance.sync_logical_slots(&plan.logical, &plan.retired_logical, &mut changes).await?;
            changes.failed.extend(actor.instance.advance_slots(&plan.advance).await?);
            for (slot, why) in &changes.failed {
                warn!(slot, why, "replication slot not as it should be; again later");
            }
            for slot in changes.created.iter().chain(&changes.recreated) {
                info!(slot, "replication slot created");
            }
            for slot in &changes.dropped {
                info!(slot, "replication slot dropped: it was kept for a member or a setting that is gone");
            }
            if view.server.fresh().is_some_and(|server| server.streaming) && !plan.copies.is_empty() {
                actor.fetch_slots(&plan.copies, record).await?;
                self.keeper.copying(plan.copies.iter().cloned(), view.now);
            }
        }
        self.planned = Some(plan);
        Ok(())
    }

    /// Losing this host shall cost the rest of the lease, not an election and a whole new ttl.
    /// Source: design section 5.2.
    async fn move_raft_leadership(&mut self, actor: &Actor, view: &ClusterView, record: &ClusterRecord) {
        let due = self.raft_move_at.is_none_or(|at| RAFT_MOVE_EVERY < view.now.since(at));
        let status = actor.store.status();
        if !due || status.leader.as_ref().is_none_or(|(_, name)| *name != view.me) {
            return;
        }
        let Some(to) = heir(&status, |name| record.members.contains_key(name)) else { return };
        self.raft_move_at = Some(view.now);
        match actor.store.transfer_leader(&to).await {
            Ok(()) => info!(%to, "raft leadership moved off the primary's node"),
            Err(error) => debug!(%to, %error, "raft leadership could not be moved; again later"),
        }
    }

    /// A primary that the store's leader does not hear renews no permit, although the others hear both. If one of them
    /// does, it leads the store from now on.
    fn stand_aside(&mut self, actor: &Actor, view: &ClusterView, record: &ClusterRecord) {
        let Some(leader) = record.leader.as_ref().filter(|leader| leader.value != view.me) else { return };
        let due = self.raft_move_at.is_none_or(|at| RAFT_MOVE_EVERY < view.now.since(at));
        if !due || !actor.store.leads_without(&leader.value) {
            return;
        }
        self.raft_move_at = Some(view.now);
        let (store, primary) = (actor.store.clone(), leader.value.clone());
        tokio::spawn(async move {
            // Nobody reaches it: then it is not the network between two nodes.
            let Some(to) = store.between(&primary).await else { return };
            match store.transfer_leader(&to).await {
                Ok(()) => info!(%to, %primary, "raft leadership moved to a member that reaches the primary"),
                Err(error) => debug!(%to, %error, "raft leadership could not be moved; again later"),
            }
        });
    }

    fn member(&self, actor: &Actor, view: &ClusterView, sighting: &Sighting) -> MemberRecord {
        let server = view.server.fresh();
        let writable = server.is_some_and(|server| !server.in_recovery);
        let sql = sighting.sql.as_ref().filter(|_| server.is_some());
        let replica = sql.and_then(|sql| match &sql.role {
            SqlRole::Replica(replica) => Some(replica),
            SqlRole::Primary(_) => None,
        });
        MemberRecord {
            conn_url: self.identity.conn_url.clone(),
            api_url: self.identity.api_url.clone(),
            state: state_words(view).to_owned(),
            role: role_words(view).to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            xlog_location: server.map(|server| server.position),
            receive_lsn: replica.map(|replica| replica.received),
            replay_lsn: replica.map(|replica| replica.replayed),
            replication_state: server.filter(|s| s.in_recovery && s.streaming).map(|_| "streaming".to_owned()),
            replay_paused: replica.is_some_and(|replica| replica.replay_paused),
            timeline: server.map(|server| server.timeline),
            checkpoint_after_promote: (writable && actor.promoted).then_some(false),
            pending_restart: sql.is_some_and(|sql| !sql.pending_restart.is_empty()),
            pending_restart_reason: sql.map_or_else(Default::default, |sql| {
                let change = |setting: &PendingRestart| json!({"old_value": setting.old, "new_value": setting.new});
                sql.pending_restart.iter().map(|setting| (setting.name.clone(), change(setting))).collect()
            }),
            scheduled_restart: None,
            progress: actor.task.as_ref().map(|task| {
                let progress = *task.progress.borrow();
                ProgressRecord { done_bytes: progress.done_bytes, total_bytes: progress.total_bytes }
            }),
            pause: view.settings.pause,
            tags: self.identity.tags.clone(),
        }
    }

    /// Written when something that others wait for has changed, else once per heartbeat.
    async fn publish(&mut self, actor: &Actor, view: &ClusterView, member: MemberRecord) -> Result<(), Failure> {
        let Some(lease) = actor.lock.state().lease else { return Ok(()) };
        if let Some((published, on, at)) = &self.published
            && *on == lease
        {
            let quiet = MemberRecord {
                xlog_location: published.xlog_location,
                receive_lsn: published.receive_lsn,
                replay_lsn: published.replay_lsn,
                progress: published.progress,
                ..member.clone()
            } == *published;
            let recently = view.now.since(*at) < view.settings.loop_wait;
            // Members do not survive their lease: if the key is gone, it is written again.
            let there = view.record.any().is_some_and(|record| record.members.contains_key(&view.me));
            if there && (member == *published || (quiet && recently)) {
                return Ok(());
            }
        }
        actor.write(actor.writes.member(&self.identity.me, &member, lease)).await?;
        self.published = Some((member, lease, view.now));
        Ok(())
    }
}

/// Whether a standby that runs and follows this primary does not stream from it.
fn lacks_a_stream(record: &ClusterRecord, server: &ServerView, me: &NodeName) -> bool {
    record.members.iter().any(|(name, member)| {
        let member = &member.value;
        name != me
            && member.state == "running"
            && member.role == "replica"
            && !member.tags.contains_key("replicatefrom")
            && !member.has_tag("nostream")
            && !server.standbys.get(name).is_some_and(|standby| standby.streaming)
    })
}

/// Whether to look for the roles: once in a while, and once per wait for a standby that lacks its stream.
fn roles_due(looked: Mono, unstreamed_since: Option<Mono>, now: Mono) -> bool {
    let suspicious = unstreamed_since.map(|since| since + UNSTREAMED);
    suspicious.is_some_and(|from| looked < from && from <= now) || ROLES_EVERY <= now.since(looked)
}

/// The promotions until `history`'s timeline, for the record: what it knows stays as it is, the newest is `me`'s.
pub fn promotions(record: &ClusterRecord, history: &TimelineHistory, me: &NodeName, now: WallTime) -> Promotions {
    let newest = history.ancestors.len().saturating_sub(1);
    let line = |(index, entry): (usize, &HistoryEntry)| {
        let known = record.history.iter().find(|line| line.0 == entry.timeline.0 && line.1 == entry.switchpoint);
        let (at, who) = if index == newest { (now.iso(), me.to_string()) } else { (String::new(), String::new()) };
        let new = || HistoryLine(entry.timeline.0, entry.switchpoint, entry.reason.clone(), at, who);
        known.cloned().unwrap_or_else(new)
    };
    let reached = history.timeline;
    let given = record.reserved.as_ref().map_or(reached, |reserved| reserved.value.timeline.max(reached));
    Promotions {
        lines: history.ancestors.iter().enumerate().map(line).collect(),
        reserved: ReservedTimeline { timeline: given, reached },
    }
}

/// Logs what did not work; it is tried again.
pub fn report(result: Result<(), Failure>, what: &str) {
    match result {
        Ok(()) => (),
        Err(Failure::Lost) => debug!(what, "not done: the record had changed meanwhile"),
        Err(Failure::Store(error)) => debug!(what, error, "not done"),
        Err(failure) => warn!(what, error = %chain(&failure), "not done; again at the next tick"),
    }
}

/// Patroni's word for what PostgreSQL does.
pub fn state_words(view: &ClusterView) -> &'static str {
    if let Some(task) = &view.task {
        return match task.kind {
            TaskKind::Initdb => "initializing new cluster",
            TaskKind::BaseBackup | TaskKind::Rewind => "creating replica",
        };
    }
    if let Some(ByHand::Restart { .. }) = view.memory.by_hand
        && !(matches!(view.process, ProcessView::Running { .. }) && view.server.fresh().is_some())
    {
        return "restarting";
    }
    match (&view.process, view.server.fresh()) {
        (ProcessView::Running { .. }, Some(_)) => "running",
        (ProcessView::Running { .. }, None) => "starting",
        (ProcessView::Stopping, _) => "stopping",
        (ProcessView::Absent { crashed: true }, _) => "crashed",
        (ProcessView::Absent { crashed: false }, _) => "stopped",
        (ProcessView::Unknown, _) => "unknown",
    }
}

/// Patroni's word for what PostgreSQL is.
pub fn role_words(view: &ClusterView) -> &'static str {
    match (&view.data_dir, view.server.any()) {
        (_, Some(server)) if !server.in_recovery => "primary",
        (_, Some(server)) if server.follows_outside && leads_standby_cluster(view) => "standby_leader",
        (_, Some(_)) => "replica",
        // Stopped only to be started again as what it was.
        (_, None) if view.memory.by_hand.is_some() && view.record.any().is_some_and(|r| r.is_leader(&view.me)) => {
            "primary"
        }
        (DataDirView::Empty, None) => "uninitialized",
        (_, None) if matches!(view.process, ProcessView::Running { writable: true }) => "promoted",
        (_, None) => "replica",
    }
}

/// Whether this node leads a cluster that follows a primary outside.
pub fn leads_standby_cluster(view: &ClusterView) -> bool {
    view.settings.standby_cluster.is_some() && view.record.any().is_some_and(|record| record.is_leader(&view.me))
}

/// The voter to whom Raft leadership may go without loss of time: it answers and has the most of the log.
pub fn heir(status: &RaftStatus, accept: impl Fn(&NodeName) -> bool) -> Option<NodeName> {
    status
        .voters
        .iter()
        .filter(|voter| Some(voter.id) != status.id && voter.reachable == Some(true))
        .filter_map(|voter| Some((voter.matched, voter.name.parse::<NodeName>().ok()?)))
        .filter(|(_, name)| accept(name))
        .max()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_looked_for_in_a_while_and_when_a_standby_lacks_its_stream() {
        let at = |seconds: u64| Mono(0) + Duration::from_secs(seconds);
        assert!(!roles_due(at(100), None, at(159)));
        assert!(roles_due(at(100), None, at(160)));
        assert!(!roles_due(at(100), Some(at(110)), at(112)), "it may be on its way back");
        assert!(roles_due(at(100), Some(at(110)), at(113)));
        assert!(!roles_due(at(113), Some(at(110)), at(172)), "it is something else");
        assert!(roles_due(at(113), Some(at(110)), at(173)));
    }
}
