//! From a step to its effect on the model. Every match is exhaustive: a new step must be given a meaning here.
//!
//! The book-keeping beside each step is that of `agent/act.rs`. A crash may fall before and after every step.

use howdah::agent::follow::Whom;
use howdah::agent::upkeep::{leads_standby_cluster, promotions, role_words, state_words};
use howdah::cluster::ClusterRecord;
use howdah::cluster::records::{BootstrapRecord, HandoverRecord, MemberRecord, Promotions, StatusRecord};
use howdah::ha::step::BY_HAND;
use howdah::ha::view::{Attempts, ByHand, DataDirView, Memory, ProcessView, SyncMode, TaskKind, TaskView};
use howdah::ha::{PgStep, RecordStep, Step, names_to_start_with, sync_wish};
use howdah::kv::command::TxnRequest;
use howdah::types::timeline::HistoryEntry;
use howdah::types::{LeaderPermit, Lsn, Term, TimelineHistory, TimelineId, WallTime};

use crate::clock::{MS, SEC};
use crate::keeper::GUARDIAN_PATIENCE;
use crate::model_guardian::{Reply, Wish};
use crate::model_postgres::{Proc, Source};
use crate::model_store::{Answer, Ask, Asker};
use crate::mutations::Mutation;
use crate::node::{Chore, Phase, Task};
use crate::world::{Event, World};

/// A write to the record must be answered within; as in `agent/act.rs`.
const WRITE: u64 = 2 * SEC;
/// The answer to a fence is waited for so long; as in `guardian/client.rs`.
const FENCE_PATIENCE: u64 = 30 * SEC;
/// What a reload asks for is there within; as in `agent/act.rs`.
const TAKEN_OVER: u64 = 5 * SEC;
/// How often a promotion is looked at, and asked for again after so many looks.
const PROMOTE_LOOK: u64 = 20 * MS;
const PROMOTE_AGAIN: u64 = 5;
/// Raft leadership is not moved again sooner than this; as in `agent/upkeep.rs`.
const RAFT_MOVE_EVERY: std::time::Duration = std::time::Duration::from_secs(3);

/// Whoever asked for a restart has it with this start; as in `agent/act.rs`.
fn restarted(memory: &mut Memory) {
    if let Some(ByHand::Restart { stopped }) = &mut memory.by_hand {
        *stopped = true;
    }
}

/// How a step stands after it was begun.
enum Begun {
    Done,
    Failed,
    /// Something will end it, at the latest after so long.
    Waits(u64),
}

impl World {
    /// Goes on with the plan. A crash may fall here.
    pub fn next_step(&mut self, node: usize) {
        if self.crash_between_steps(node) {
            return;
        }
        let Some(step) = self.nodes[node].agent.steps.pop_front() else {
            self.nodes[node].agent.doing = None;
            self.acted(node, true);
            return;
        };
        self.trace(node, || format!("  step {}", crate::report::flat(&step)));
        self.nodes[node].agent.doing = Some(step.clone());
        self.nodes[node].agent.ticket += 1;
        let begun = match &step {
            Step::Pg(step) => self.pg_step(node, step),
            Step::Record(step) => self.record_step(node, step),
            Step::Exit => {
                self.agent_exits(node);
                return;
            }
        };
        match begun {
            Begun::Done => self.step_ends(node, true),
            Begun::Failed => self.step_ends(node, false),
            Begun::Waits(patience) => {
                let (epoch, ticket) = (self.nodes[node].agent.epoch, self.nodes[node].agent.ticket);
                self.after(patience, Event::StepEnds { node, epoch, ticket, well: false });
            }
        }
    }

    /// The step under way has ended; told by an event, so that a stopped agent hears of it when it goes on.
    fn step_ends(&mut self, node: usize, well: bool) {
        let (epoch, ticket) = (self.nodes[node].agent.epoch, self.nodes[node].agent.ticket);
        let after = self.chance.below(MS);
        self.after(after, Event::StepEnds { node, epoch, ticket, well });
    }

    pub fn on_step_ends(&mut self, node: usize, epoch: u32, ticket: u64, well: bool) {
        let agent = &mut self.nodes[node].agent;
        if agent.epoch != epoch || agent.ticket != ticket || agent.phase != Phase::Acting || !agent.alive {
            return;
        }
        if agent.frozen || self.nodes[node].suspended {
            self.nodes[node].deferred.push(Event::StepEnds { node, epoch, ticket, well });
            return;
        }
        let now = self.nodes[node].clock.at(self.now);
        let agent = &mut self.nodes[node].agent;
        agent.ticket += 1;
        let step = agent.doing.take();
        let memory = &mut agent.view.memory;
        let mut well = well;
        match (&step, &mut memory.by_hand) {
            (Some(Step::Pg(PgStep::Stop { .. })), Some(ByHand::Restart { stopped })) if well => {
                *stopped = true;
                memory.crash_restarts.clear();
                memory.standby_starts = Attempts::default();
            }
            (Some(Step::Pg(PgStep::Stop { .. })), _) if well => memory.stopped_for_handover = Some(now),
            // Without a checkpoint the stop takes longer, no more.
            (Some(Step::Pg(PgStep::Checkpoint { request_revision: BY_HAND })), _) => well = true,
            (Some(Step::Pg(PgStep::Checkpoint { request_revision })), _) if well => {
                memory.checkpointed_for = Some(*request_revision);
            }
            _ => (),
        }
        if well {
            self.next_step(node);
        } else {
            self.trace(node, || "  failed".to_owned());
            self.acted(node, false);
        }
    }

    fn pg_step(&mut self, node: usize, step: &PgStep) -> Begun {
        let now = self.nodes[node].clock.at(self.now);
        let at = self.nodes[node].agent.view.now;
        match step {
            PgStep::Initdb => self.begin_task(node, TaskKind::Initdb, Whom::Nobody),
            PgStep::BaseBackup { from } => {
                let begun = self.begin_task(node, TaskKind::BaseBackup, Whom::Member(from));
                if let (Begun::Done, Some(ByHand::Reinitialize { moved, .. })) =
                    (&begun, &mut self.nodes[node].memory().by_hand)
                {
                    *moved = true;
                }
                begun
            }
            PgStep::BaseBackupOutside => self.begin_task(node, TaskKind::BaseBackup, Whom::Outside),
            PgStep::Rewind { from } => self.begin_task(node, TaskKind::Rewind, Whom::Member(from)),
            PgStep::PrePromote { .. } => panic!("no world here has a command before promotions"),
            PgStep::CancelTask => {
                if let Some(task) = &mut self.nodes[node].agent.task {
                    task.cancelled = true;
                }
                if let Some(serial) = self.nodes[node].agent.task.as_ref().map(|task| task.serial) {
                    let epoch = self.nodes[node].agent.epoch;
                    self.after(20 * MS, Event::TaskEnds { node, epoch, serial });
                }
                Begun::Done
            }
            PgStep::Configure { follow } => {
                if follow.is_some() {
                    self.nodes[node].agent.names = None;
                }
                self.configure(node, follow.as_ref().map_or(Whom::Nobody, Whom::Member))
            }
            PgStep::ConfigureOutside => {
                self.nodes[node].agent.names = None;
                self.configure(node, Whom::Outside)
            }
            PgStep::Enforce { names } => {
                self.nodes[node].agent.names.clone_from(names);
                self.configure(node, Whom::Nobody)
            }
            PgStep::StartStandby => {
                let memory = self.nodes[node].memory();
                restarted(memory);
                memory.standby_starts = memory.standby_starts.again(at);
                memory.stopped_for_handover = None;
                self.start(node, None)
            }
            PgStep::StartPrimary { permit } => {
                let memory = self.nodes[node].memory();
                restarted(memory);
                memory.crash_restarts.push(at);
                memory.starting_since = memory.starting_since.or(Some(at));
                memory.stopped_for_handover = None;
                self.start(node, Some(*permit))
            }
            PgStep::Promote { permit, timeline } => {
                let (tip, known) = (self.data(node).tip.0, self.data(node).known);
                let newest = self.wal.timeline(tip).max(known);
                if newest + 1 < timeline.0 && !self.mutated(Mutation::PostgresNumbersItsTimelines) {
                    if self.nodes[node].disk.full {
                        return Begun::Failed;
                    }
                    self.data(node).known = timeline.0 - 1;
                }
                let (epoch, ticket) = (self.nodes[node].agent.epoch, self.nodes[node].agent.ticket);
                self.after(0, Event::PromoteLook { node, epoch, ticket, permit: *permit, looks: 0 });
                let left = self.nodes[node].agent.settings.ttl + permit.valid_until.since(now);
                Begun::Waits(u64::try_from(left.as_nanos()).unwrap() + 3600 * SEC)
            }
            PgStep::Stop { mode } => match self.guardian_asked(node, Wish::Stop(*mode)) {
                Reply::Done => Begun::Done,
                Reply::Later => Begun::Waits(70 * SEC),
                Reply::Silence => Begun::Waits(65 * SEC),
                Reply::Refused | Reply::NotYet | Reply::Gone => Begun::Failed,
            },
            PgStep::Fence => match self.guardian_asked(node, Wish::Fence) {
                Reply::Done => Begun::Done,
                Reply::Later | Reply::Silence => Begun::Waits(FENCE_PATIENCE),
                Reply::Refused | Reply::NotYet | Reply::Gone => Begun::Failed,
            },
            PgStep::Checkpoint { .. } => {
                if self.nodes[node].pg.proc != Proc::Running {
                    return Begun::Failed;
                }
                self.pg_checkpoint(node);
                Begun::Waits(30 * SEC)
            }
            PgStep::MoveAside { .. } => {
                if self.nodes[node].disk.full || self.nodes[node].pg.proc != Proc::Gone {
                    return Begun::Failed;
                }
                if !self.mutated(Mutation::NothingIsMovedAside) {
                    let disk = &mut self.nodes[node].disk;
                    disk.aside.extend(disk.data.take());
                }
                self.nodes[node].memory().rewind_failed = None;
                Begun::Done
            }
            PgStep::CreateRoles => {
                if !self.nodes[node].pg.up || self.nodes[node].pg.frozen {
                    return Begun::Failed;
                }
                self.data(node).incomplete = None;
                Begun::Done
            }
        }
    }

    fn configure(&mut self, node: usize, follow: Whom<'_>) -> Begun {
        let running = matches!(self.nodes[node].agent.view.process, ProcessView::Running { .. });
        let Some(target) = self.source_of(node, follow).filter(|_| !self.nodes[node].disk.full) else {
            return Begun::Failed;
        };
        let names = self.names_for(node).unwrap_or_default();
        let receives = self.nodes[node].agent.view.server.any().is_some_and(|s| s.in_recovery && s.receiving);
        let Some(data) = &mut self.nodes[node].disk.data else { return Begun::Failed };
        let changed = data.follow != target || data.names != names;
        (data.follow, data.names) = (target, names);
        let agent = &mut self.nodes[node].agent;
        agent.follows = if let Whom::Member(leader) = follow { Some(leader.clone()) } else { None };
        agent.follows_outside = follow == Whom::Outside;
        if !running {
            return Begun::Done;
        }
        let told = !self.mutated(Mutation::FilesAreTakenAsInForce)
            || !matches!(self.nodes[node].agent.doing, Some(Step::Pg(PgStep::Enforce { .. })));
        if changed && told && self.guardian_asked(node, Wish::Reload) != Reply::Done {
            return Begun::Failed;
        }
        let waits = match &self.nodes[node].agent.doing {
            Some(Step::Pg(PgStep::Enforce { names })) => names.is_some(),
            _ => follow == Whom::Nobody && receives,
        };
        if !waits {
            return Begun::Done;
        }
        let (epoch, ticket) = (self.nodes[node].agent.epoch, self.nodes[node].agent.ticket);
        self.after(5 * MS, Event::ConfigLook { node, epoch, ticket });
        Begun::Waits(TAKEN_OVER)
    }

    /// Where the log of `whom` comes from: the outer none while that is not known.
    #[expect(clippy::option_option, reason = "nobody is followed, or it is not known where they are")]
    fn source_of(&self, node: usize, whom: Whom<'_>) -> Option<Option<Source>> {
        let agent = &self.nodes[node].agent;
        match whom {
            Whom::Nobody => Some(None),
            Whom::Outside => agent.settings.standby_cluster.is_some().then_some(Some(Source::Outside)),
            Whom::Member(name) => {
                let member = agent.view.record.any().is_some_and(|record| record.members.contains_key(name));
                let at = self.nodes.iter().position(|other| other.name == *name).filter(|_| member)?;
                Some(Some(Source::Member(at)))
            }
        }
    }

    /// What the files say of synchronous replication; as in `agent/act.rs`.
    fn names_for(&self, node: usize) -> Option<String> {
        let agent = &self.nodes[node].agent;
        let relied_on = agent.view.record.any().is_none_or(|record| {
            record.sync.as_ref().is_some_and(|sync| !sync.sync_standby.is_empty()) || record.sync_damage().is_some()
        });
        if agent.view.settings.synchronous.mode == SyncMode::Off && !relied_on {
            return None;
        }
        let in_force = || match agent.view.server.any() {
            Some(server) if server.in_recovery => Some(String::new()),
            Some(server) => Some(server.synchronous_standby_names.clone()),
            None => names_to_start_with(&agent.view),
        };
        Some(agent.names.clone().or_else(in_force).unwrap_or_default())
    }

    /// A reload is read by each process on its own: waits until PostgreSQL goes by it.
    pub fn on_config_look(&mut self, node: usize, epoch: u32, ticket: u64) {
        let agent = &mut self.nodes[node].agent;
        if agent.epoch != epoch || agent.ticket != ticket || agent.phase != Phase::Acting || !agent.alive {
            return;
        }
        if agent.frozen || self.nodes[node].suspended {
            self.nodes[node].deferred.push(Event::ConfigLook { node, epoch, ticket });
            return;
        }
        let status = if self.nodes[node].pg.frozen { None } else { self.sql(node).ok() };
        let over = match &self.nodes[node].agent.doing {
            Some(Step::Pg(PgStep::Enforce { names: Some(names) })) => {
                status.is_some_and(|status| status.synchronous_standby_names == *names)
            }
            _ => status.is_some_and(|status| !status.receiving),
        };
        if over {
            self.step_ends(node, true);
        } else {
            self.after(10 * MS, Event::ConfigLook { node, epoch, ticket });
        }
    }

    fn start(&mut self, node: usize, permit: Option<LeaderPermit>) -> Begun {
        if self.nodes[node].disk.full || self.nodes[node].disk.unreadable {
            return Begun::Failed;
        }
        let unsealed = self.mutated(Mutation::StandbysStartWithoutSignal);
        if let Some(data) = &mut self.nodes[node].disk.data {
            data.signal = permit.is_none() && !unsealed;
        }
        match self.guardian_asked(node, Wish::Start(permit)) {
            Reply::Done => Begun::Done,
            Reply::Silence => Begun::Waits(GUARDIAN_PATIENCE),
            Reply::Later | Reply::Refused | Reply::NotYet | Reply::Gone => Begun::Failed,
        }
    }

    /// Promotes until PostgreSQL has left recovery, as long as the permit holds.
    pub fn on_promote_look(&mut self, node: usize, epoch: u32, ticket: u64, permit: LeaderPermit, looks: u64) {
        let agent = &mut self.nodes[node].agent;
        if agent.epoch != epoch || agent.ticket != ticket || agent.phase != Phase::Acting || !agent.alive {
            return;
        }
        if agent.frozen || self.nodes[node].suspended {
            self.nodes[node].deferred.push(Event::PromoteLook { node, epoch, ticket, permit, looks });
            return;
        }
        if looks.is_multiple_of(PROMOTE_AGAIN) {
            let held = self.lock_state(node).permit.filter(|held| held.term == permit.term).unwrap_or(permit);
            if !held.holds_at(self.nodes[node].clock.at(self.now)) {
                self.step_ends(node, false);
                return;
            }
            match self.guardian_asked(node, Wish::Promote(held)) {
                Reply::Done | Reply::NotYet | Reply::Silence | Reply::Later => (),
                Reply::Refused | Reply::Gone => {
                    self.step_ends(node, false);
                    return;
                }
            }
        }
        if !self.nodes[node].pg.frozen && self.sql(node).is_ok_and(|status| !status.in_recovery) {
            self.nodes[node].agent.promoted = true;
            self.step_ends(node, true);
            return;
        }
        self.after(PROMOTE_LOOK, Event::PromoteLook { node, epoch, ticket, permit, looks: looks + 1 });
    }

    /// What was asked of the guardian and takes time has come to its end.
    pub fn wish_fulfilled(&mut self, node: usize, well: bool) {
        let doing = &self.nodes[node].agent.doing;
        if matches!(doing, Some(Step::Pg(PgStep::Stop { .. } | PgStep::Fence))) {
            self.step_ends(node, well);
        }
    }

    pub fn checkpoint_done(&mut self, node: usize) {
        let agent = &mut self.nodes[node].agent;
        if std::mem::take(&mut agent.checkpointing) {
            agent.promoted = false;
        }
        if matches!(agent.doing, Some(Step::Pg(PgStep::Checkpoint { .. }))) {
            self.step_ends(node, true);
        }
    }

    fn begin_task(&mut self, node: usize, kind: TaskKind, whom: Whom<'_>) -> Begun {
        let Some(from) = self.source_of(node, whom) else { return Begun::Failed };
        let name = if let Whom::Member(name) = whom { Some(name.clone()) } else { None };
        let view = TaskView { kind, from: name, since: self.nodes[node].agent.view.now };
        let from_epoch = from.map_or(0, |from| self.epoch_of(from));
        let serial = self.nodes[node].agent.ticket;
        let task = Task { view, kind, from, from_epoch, serial, cancelled: false, ended: None };
        self.nodes[node].agent.task = Some(task);
        self.nodes[node].agent.created = false;
        self.task_begins(node, kind, serial);
        Begun::Done
    }

    /// The pure part of each write is the record's own; see `cluster/writes.rs`.
    fn record_step(&mut self, node: usize, step: &RecordStep) -> Begun {
        let me = self.name(node);
        let lease = self.nodes[node].keeper.state.lease;
        let view = &self.nodes[node].agent.view;
        let txn = match step {
            RecordStep::ClaimBootstrap => {
                let Some(lease) = lease else { return Begun::Failed };
                let record = BootstrapRecord { by: me.clone(), at: WallTime(0) };
                self.writes.claim_bootstrap(&me, lease, &record)
            }
            RecordStep::FinishBootstrap { term, system_id } => {
                let present = view.record.any().is_some_and(|record| record.config.is_some());
                let config = (!present).then_some(&self.initial_config);
                self.writes.finish_bootstrap(*term, *system_id, config, None)
            }
            RecordStep::TakeLeader { reserve } => {
                let (Some(lease), Some(record)) = (lease, view.record.any()) else { return Begun::Failed };
                let mut txn = self.writes.take_leader(&me, lease, record, *reserve);
                if self.mutated(Mutation::TermIsReused) {
                    txn.compare.clear();
                }
                txn
            }
            RecordStep::ReserveTimeline { term, timeline } => {
                let Some(record) = view.record.any() else { return Begun::Failed };
                self.writes.reserve_timeline(*term, record, *timeline)
            }
            RecordStep::ReleaseLeader { term } => {
                let optime = match &view.data_dir {
                    DataDirView::Present(control) => Some(control.checkpoint),
                    _ => None,
                };
                let history = self.unpublished_history(node);
                let status = optime.map(|optime| StatusRecord { optime, ..StatusRecord::default() });
                let creating = view.record.any().is_some_and(ClusterRecord::is_being_created);
                let txn = self.writes.release_leader(*term, status.as_ref(), history.as_ref(), creating);
                self.keeper_gives_up(node, *term);
                self.remembers_the_end(node, *term);
                txn
            }
            RecordStep::HandOver { term, to, shutdown_lsn, why } => {
                let handover = HandoverRecord {
                    from: me,
                    to: to.clone(),
                    shutdown_lsn: *shutdown_lsn,
                    ended_term: term.0,
                    at: WallTime(0),
                    why: why.clone(),
                };
                let history = self.unpublished_history(node);
                let txn = self.writes.hand_over(*term, &handover, &StatusRecord::default(), history.as_ref());
                self.keeper_gives_up(node, *term);
                self.remembers_the_end(node, *term);
                txn
            }
            RecordStep::WriteSync { term, record, mod_revision } => self.writes.sync(*term, record, *mod_revision),
            RecordStep::RemoveSync { term, mod_revision } => self.writes.remove_sync(*term, *mod_revision),
            RecordStep::ClearRequest { mod_revision } => self.writes.clear_request(*mod_revision),
        };
        self.write(node, Asker::Actor, txn);
        Begun::Waits(WRITE + WRITE + 2 * SEC)
    }

    fn promotions(&self, node: usize, branch: usize) -> Promotions {
        let entry = |(timeline, at): (u32, u64)| HistoryEntry {
            timeline: TimelineId(timeline),
            switchpoint: Lsn(at),
            reason: String::new(),
        };
        let ancestors = self.wal.history(branch).into_iter().map(entry).collect();
        let history = TimelineHistory { timeline: TimelineId(self.wal.timeline(branch)), ancestors };
        let it = &self.nodes[node];
        let empty = ClusterRecord::default();
        promotions(it.agent.view.record.any().unwrap_or(&empty), &history, &it.name, WallTime(0))
    }

    fn unpublished_history(&self, node: usize) -> Option<Promotions> {
        let DataDirView::Present(control) = &self.nodes[node].agent.view.data_dir else { return None };
        self.nodes[node].agent.view.record.any().filter(|record| record.timeline() < control.timeline)?;
        let data = self.nodes[node].disk.data.as_ref()?;
        Some(self.promotions(node, data.tip.0))
    }

    fn remembers_the_end(&mut self, node: usize, term: Term) {
        if !self.mutated(Mutation::PermitOutlivesTheRelease) {
            self.nodes[node].memory().ending_term = Some(term);
            self.nodes[node].ended = Some(term);
        }
    }

    fn write(&mut self, node: usize, asker: Asker, txn: TxnRequest) {
        if self.dangerous && asker == Asker::Actor && self.chance.one_in(self.profile.crash_between) {
            let soon = self.chance.between(0, 5 * MS);
            self.after(soon, Event::Deaf { node });
        }
        let request = self.store_asks(node, asker, Ask::Write(txn), WRITE);
        let agent = &mut self.nodes[node].agent;
        (agent.request, agent.unseen) = (request, None);
    }

    pub fn actor_hears(&mut self, node: usize, id: u64, answer: Option<Answer>) {
        if self.nodes[node].agent.request == id && self.nodes[node].agent.phase == Phase::Acting {
            self.written(node, answer);
        }
    }

    pub fn chore_hears(&mut self, node: usize, id: u64, answer: Option<Answer>) {
        if self.nodes[node].agent.request == id && self.nodes[node].agent.phase == Phase::Upkeep {
            self.written(node, answer);
        }
    }

    /// The next decision must not be made on a record from before this write.
    fn written(&mut self, node: usize, answer: Option<Answer>) {
        let Some(Answer::Written { succeeded: true, revision }) = answer else {
            self.write_is_seen(node, false);
            return;
        };
        self.nodes[node].agent.unseen = Some((revision, self.now + WRITE));
        let (epoch, ticket) = (self.nodes[node].agent.epoch, self.nodes[node].agent.ticket);
        self.after(WRITE, Event::NotSeen { node, epoch, ticket, revision });
        self.seen_here(node);
    }

    pub fn on_not_seen(&mut self, node: usize, epoch: u32, ticket: u64, revision: i64) {
        let agent = &mut self.nodes[node].agent;
        if agent.epoch != epoch || agent.ticket != ticket || agent.unseen.is_none_or(|(at, _)| at != revision) {
            return;
        }
        if agent.frozen || self.nodes[node].suspended {
            self.nodes[node].deferred.push(Event::NotSeen { node, epoch, ticket, revision });
            return;
        }
        self.nodes[node].agent.unseen = None;
        self.write_is_seen(node, false);
    }

    /// A write is done and its effect is here, or it is not known.
    pub fn write_is_seen(&mut self, node: usize, well: bool) {
        match self.nodes[node].agent.phase {
            Phase::Acting => self.record_step_done(node, well),
            Phase::Upkeep => self.chore_done(node, well),
            Phase::Waiting | Phase::Observing | Phase::Pausing => (),
        }
    }

    fn record_step_done(&mut self, node: usize, well: bool) {
        let Some(Step::Record(step)) = self.nodes[node].agent.doing.clone() else { return };
        if !well {
            self.step_ends(node, false);
            return;
        }
        let record = self.nodes[node].record(&self.store.entries).clone();
        // The real agent has the revision from the answer; the key that it wrote then has the same.
        let term = record.leader.as_ref().map(|leader| Term(leader.create_revision));
        let memory = self.nodes[node].memory();
        match step {
            RecordStep::ClaimBootstrap => self.keeper_holds(node, term),
            RecordStep::TakeLeader { .. } => {
                self.keeper_holds(node, term);
                self.nodes[node].agent.await_permit = term;
                let (epoch, ticket) = (self.nodes[node].agent.epoch, self.nodes[node].agent.ticket);
                self.after(SEC, Event::StepEnds { node, epoch, ticket, well: true });
                self.permit_arrived(node);
                return;
            }
            RecordStep::FinishBootstrap { .. }
            | RecordStep::ReserveTimeline { .. }
            | RecordStep::WriteSync { .. }
            | RecordStep::RemoveSync { .. } => (),
            RecordStep::ReleaseLeader { .. } => memory.crash_restarts.clear(),
            RecordStep::HandOver { .. } => memory.stopped_for_handover = None,
            RecordStep::ClearRequest { .. } => {
                memory.stopped_for_handover = None;
                memory.catching_up_since = None;
            }
        }
        self.step_ends(node, true);
    }

    /// The permit follows the key by one quorum round; waiting for it saves a tick.
    pub fn permit_arrived(&mut self, node: usize) {
        let Some(term) = self.nodes[node].agent.await_permit else { return };
        if self.lock_state(node).permit.is_some_and(|permit| permit.term == term) {
            self.nodes[node].agent.await_permit = None;
            self.step_ends(node, true);
        }
    }

    /// What a node does besides its role; as in `agent/upkeep.rs`.
    pub fn keep_in_order(&mut self, node: usize) {
        self.nodes[node].agent.phase = Phase::Upkeep;
        self.nodes[node].agent.ticket += 1;
        let agent = &self.nodes[node].agent;
        let view = &agent.view;
        let record = view.record.fresh();
        let leads = record.is_some_and(|record| record.is_leader(&view.me));
        let server = view.server.fresh().map(|server| (server.in_recovery, server.timeline, server.position));
        if let (true, true, Some((false, timeline, optime))) = (view.permit_holds(), leads, server) {
            let term = record.and_then(|record| record.term());
            let behind = record.is_some_and(|record| record.timeline() != timeline);
            let unseen = self.nodes[node]
                .disk
                .data
                .as_ref()
                .is_some_and(|data| data.checkpoint_timeline != self.wal.timeline(data.tip.0));
            self.nodes[node].agent.promoted |= unseen;
            let wanted = sync_wish::wants_checkpoint(&self.nodes[node].agent.view);
            if (self.nodes[node].agent.promoted || wanted) && !self.nodes[node].agent.checkpointing {
                self.nodes[node].agent.checkpointing = true;
                self.pg_checkpoint(node);
            }
            if let Some(term) = term {
                self.publish_leader(node, term, behind, optime);
            }
            self.move_raft_leadership(node);
        } else if let (true, Some((_, timeline, optime))) = (leads_standby_cluster(view), server)
            && let Some(term) = record.and_then(|record| record.term())
        {
            let behind = record.is_some_and(|record| record.timeline() != timeline);
            self.publish_leader(node, term, behind, optime);
        } else {
            self.nodes[node].agent.status = None;
        }
        self.publish_member(node);
        self.next_chore(node);
    }

    fn publish_leader(&mut self, node: usize, term: Term, behind: bool, optime: Lsn) {
        let agent = &mut self.nodes[node].agent;
        if behind {
            agent.chores.push_back(Chore::History(term));
        }
        let status = StatusRecord { optime, ..StatusRecord::default() };
        if agent.status.as_ref() != Some(&status) {
            agent.chores.push_back(Chore::Status(term, status));
        }
    }

    fn move_raft_leadership(&mut self, node: usize) {
        let now = self.nodes[node].agent.view.now;
        let recently = self.nodes[node].agent.raft_move_at.is_some_and(|at| now.since(at) <= RAFT_MOVE_EVERY);
        if recently || self.store.leader != Some(node) || !self.majority(node) {
            return;
        }
        let heir =
            (0..self.nodes.len()).find(|other| *other != node && self.net.talk(node, *other) && self.majority(*other));
        let Some(heir) = heir else { return };
        self.nodes[node].agent.raft_move_at = Some(now);
        self.store_leads(heir);
    }

    fn publish_member(&mut self, node: usize) {
        let Some(lease) = self.nodes[node].keeper.state.lease else { return };
        let agent = &self.nodes[node].agent;
        let view = &agent.view;
        let server = view.server.fresh();
        let writable = server.is_some_and(|server| !server.in_recovery);
        if let Some((published, on, at)) = &agent.published
            && *on == lease
        {
            // The same questions as in `agent/upkeep.rs`, without building the record first: this is asked at every tick.
            let position = server.map(|server| server.position);
            let there = view.record.any().is_some_and(|record| record.members.contains_key(&view.me));
            let same = published.state == state_words(view)
                && published.role == role_words(view)
                && published.timeline == server.map(|server| server.timeline)
                && published.checkpoint_after_promote.is_some() == (writable && agent.promoted)
                && published.replication_state.is_some() == server.is_some_and(|s| s.in_recovery && s.streaming)
                && published.pause == view.settings.pause;
            let recently = view.now.since(*at) < view.settings.loop_wait;
            if there && same && (recently || published.xlog_location == position) {
                return;
            }
        }
        let tags = self.nodes[node].standing.tags.clone();
        let member = MemberRecord {
            conn_url: format!("postgres://{}:5432/postgres", view.me),
            api_url: format!("http://{}:8008/patroni", view.me),
            state: state_words(view).to_owned(),
            role: role_words(view).to_owned(),
            xlog_location: server.map(|server| server.position),
            replication_state: server.filter(|s| s.in_recovery && s.streaming).map(|_| "streaming".to_owned()),
            timeline: server.map(|server| server.timeline),
            checkpoint_after_promote: (writable && agent.promoted).then_some(false),
            pause: view.settings.pause,
            tags,
            ..MemberRecord::default()
        };
        self.nodes[node].agent.chores.push_back(Chore::Member(Box::new(member), lease));
    }

    fn next_chore(&mut self, node: usize) {
        let Some(chore) = self.nodes[node].agent.chores.front().cloned() else {
            self.rest(node);
            return;
        };
        let me = self.name(node);
        let txn = match &chore {
            Chore::History(term) => {
                let Some(data) = &self.nodes[node].disk.data else {
                    self.chore_done(node, false);
                    return;
                };
                let promotions = self.promotions(node, data.tip.0);
                self.writes.history(*term, &promotions)
            }
            Chore::Status(term, status) => self.writes.status(*term, status),
            Chore::Member(member, lease) => self.writes.member(&me, member, *lease),
        };
        self.nodes[node].agent.ticket += 1;
        self.write(node, Asker::Chore, txn);
    }

    fn chore_done(&mut self, node: usize, well: bool) {
        let agent = &mut self.nodes[node].agent;
        let now = agent.view.now;
        match agent.chores.pop_front() {
            Some(Chore::Status(_, status)) if well => agent.status = Some(status),
            Some(Chore::Member(member, lease)) if well => agent.published = Some((*member, lease, now)),
            Some(Chore::History(_) | Chore::Status(..) | Chore::Member(..)) | None => (),
        }
        self.next_chore(node);
    }
}
