//! Watches the leadership go from node to node and writes down what happened, once for good.
//!
//! ```text
//! each tick: look (who leads, since when, what was decided) -> ChangeRecord -> write by compare-and-swap, until it holds
//! ```
//! The former leader measures its own end and leaves it in the record with the release of the key (`Ended`); the next
//! one adds what it has seen and measured. Each uses its own clock for its own part: the parts of a node that died are
//! counted from its last sign of life. Deliberately absent: anything that decides.

use std::collections::VecDeque;
use std::sync::Arc;

use tracing::{debug, warn};

use super::act::{Actor, Failure};
use crate::cluster::changes::{self, ChangeKind, ChangeRecord, EndedRecord, Loss, Phases, Why};
use crate::cluster::{ClusterRecord, Key, KeySpace};
use crate::ha::view::{ControlState, DataDirView, ProcessView};
use crate::ha::{Action, ClusterView, Decision, Reason};
use crate::postgres::GivenUp;
use crate::raft::Store;
use crate::types::{Lsn, Mono, NodeName, TimelineId, WallTime};

/// Entries that wait for the store. More than one is rare.
const DUE_MAX: usize = 8;

/// The code of a leader that ended without a word.
const SILENT: &str = "leader_silent";

/// What has been written so far, for showing.
#[derive(Debug, Default)]
pub struct ChangeLog {
    revision: i64,
    entries: Arc<Vec<ChangeRecord>>,
}

impl ChangeLog {
    /// The entries as the local replica has them, oldest first; read again only when the key has changed.
    pub fn read(&mut self, store: &Store, space: &KeySpace, revision: i64) -> Arc<Vec<ChangeRecord>> {
        if self.revision != revision {
            let (read, entries) = stored(store, space);
            self.revision = read;
            self.entries = Arc::new(entries.unwrap_or_default());
        }
        self.entries.clone()
    }
}

/// The key's revision and its entries; none when they cannot be understood.
fn stored(store: &Store, space: &KeySpace) -> (i64, Option<Vec<ChangeRecord>>) {
    store.read(|kv| match kv.get(&space.key(&Key::Timeline)) {
        None => (0, Some(Vec::new())),
        Some(pair) => (pair.mod_revision, serde_json::from_slice(&pair.value).ok()),
    })
}

/// Another node's leadership.
#[derive(Debug, Clone)]
struct Former {
    name: NodeName,
    term: i64,
    /// The last sign that it lived.
    alive_at: Mono,
    /// Revisions of what it writes all the time.
    words: (i64, i64),
}

/// This node has taken the key, and is on its way.
#[derive(Debug, Clone)]
struct Taking {
    choice: Reason,
    /// A person named this node and accepted what it lacks.
    forced: bool,
    position: Lsn,
    /// The former primary's last published position.
    optime: Lsn,
    former: Option<Former>,
    free_at: Mono,
    term: Option<i64>,
    taken_at: Mono,
    promoted_at: Option<Mono>,
}

/// A node that had other data comes back.
#[derive(Debug, Clone)]
struct Return {
    since: Mono,
    cause: Why,
    loss: Loss,
    ours: Option<Lsn>,
    shared: Option<Lsn>,
}

/// The end of this node's own leadership, as far as it has come.
#[derive(Debug, Clone, Default)]
struct OwnEnd {
    /// A request that is due has been seen.
    asked_at: Option<Mono>,
    /// PostgreSQL is being stopped, or has ended by itself.
    down_at: Option<Mono>,
    /// It ended by itself, with what was decided about it.
    crash: Option<Why>,
}

/// What is being followed.
#[derive(Debug, Default)]
pub struct Chronicle {
    log: ChangeLog,
    former: Option<Former>,
    taking: Option<Taking>,
    own_end: OwnEnd,
    back: Option<Return>,
    due: VecDeque<ChangeRecord>,
}

impl Chronicle {
    /// Takes note of a tick.
    pub fn look(&mut self, view: &ClusterView, decision: &Decision, wall: WallTime) {
        let Some(record) = view.record.fresh() else { return };
        match &record.leader {
            Some(leader) if leader.value != view.me => {
                self.follow_other(view, record, &leader.value, leader.create_revision);
                self.follow_return(view, decision, wall);
            }
            Some(leader) => self.follow_own(view, record, leader.create_revision, decision, wall),
            None => self.follow_race(view, record, decision),
        }
    }

    /// The record has changed between two looks: perhaps the leader has said something.
    pub fn heard(&mut self, record: &ClusterRecord, now: Mono) {
        let (Some(leader), Some(former)) = (&record.leader, &mut self.former) else { return };
        if leader.create_revision != former.term {
            return;
        }
        let words = words(record, &former.name);
        if former.words != words {
            former.alive_at = now;
            former.words = words;
        }
    }

    fn follow_other(&mut self, view: &ClusterView, record: &ClusterRecord, name: &NodeName, term: i64) {
        self.taking = None;
        self.own_end = OwnEnd::default();
        let words = words(record, name);
        match &mut self.former {
            Some(former) if former.term == term => {
                if former.words != words {
                    former.alive_at = view.now;
                    former.words = words;
                }
            }
            Some(_) | None => self.former = Some(Former { name: name.clone(), term, alive_at: view.now, words }),
        }
    }

    fn follow_race(&mut self, view: &ClusterView, record: &ClusterRecord, decision: &Decision) {
        let (Action::TakeLeader, Some(server)) = (&decision.action, view.server.fresh()) else { return };
        let request = record.failover.as_ref().filter(|_| view.request_due).map(|request| &request.value);
        self.taking = Some(Taking {
            choice: decision.reason.clone(),
            forced: request
                .is_some_and(|request| request.leader.is_none() && request.member.as_ref() == Some(&view.me)),
            position: server.position,
            optime: record.status.as_ref().map_or(Lsn(0), |status| status.value.optime),
            former: self.former.clone(),
            free_at: view.memory.leaderless_since.unwrap_or(view.now),
            term: None,
            taken_at: view.now,
            promoted_at: None,
        });
    }

    fn follow_own(
        &mut self,
        view: &ClusterView,
        record: &ClusterRecord,
        term: i64,
        decision: &Decision,
        wall: WallTime,
    ) {
        self.back = None;
        let works = view.server.fresh().is_some_and(|server| !server.in_recovery);
        if let Some(taking) = &mut self.taking {
            if taking.term.is_none() {
                taking.term = Some(term);
                taking.taken_at = view.now;
            }
            if taking.term != Some(term) {
                self.taking = None;
            } else if works {
                taking.promoted_at = taking.promoted_at.or(Some(view.now));
            }
        }
        let end = &mut self.own_end;
        if record.failover.is_some() && view.request_due {
            end.asked_at = end.asked_at.or(Some(view.now));
        } else if works {
            end.asked_at = None;
        }
        let stops = matches!(decision.action, Action::StopPrimary | Action::Stop { .. } | Action::Demote);
        let crashed = matches!(view.process, ProcessView::Absent { crashed: true });
        if stops || crashed {
            end.down_at = end.down_at.or(Some(view.now));
        }
        if crashed && !matches!(decision.action, Action::Wait) {
            end.crash = end.crash.take().or_else(|| Some(why(&decision.reason)));
        }
        if works
            && !stops
            && let Some(down_at) = end.down_at
        {
            if let Some(cause) = end.crash.take() {
                let took = ms(down_at, view.now);
                let phases = Phases { promote_ms: Some(took), ..Phases::default() };
                let server = view.server.fresh();
                self.add(ChangeRecord {
                    at: wall,
                    kind: ChangeKind::Restart,
                    node: view.me.clone(),
                    other: None,
                    term: Some(term),
                    timeline: server.map(|server| server.timeline),
                    cause,
                    choice: None,
                    phases,
                    total_ms: took,
                    position: server.map(|server| server.position),
                    reference: None,
                    loss: Loss::Nothing,
                });
            }
            self.own_end = OwnEnd::default();
        }
    }

    /// What is to be written with the release of the key, if `decision` releases it.
    pub fn ending(&self, view: &ClusterView, decision: &Decision, wall: WallTime) -> Option<EndedRecord> {
        let (planned, term) = match &decision.action {
            Action::HandOver { term, .. } => (true, term),
            Action::ReleaseLeader { term } => (matches!(decision.reason, Reason::ShutdownRelease), term),
            _ => return None,
        };
        let down_at = self.own_end.down_at.unwrap_or(view.now);
        let asked_at = self.own_end.asked_at.unwrap_or(down_at).min(down_at);
        Some(EndedRecord {
            by: view.me.clone(),
            term: term.0,
            at: wall,
            planned,
            cause: why(&decision.reason),
            decide_ms: ms(asked_at, down_at),
            fence_ms: ms(down_at, view.now),
        })
    }

    /// Routers were told at `at` that this node takes writes: the change is over.
    pub fn routed(&mut self, view: &ClusterView, at: Mono, wall: WallTime) {
        let (Some(record), Some(server)) = (view.record.fresh(), view.server.fresh()) else { return };
        let Some(taking) = self.taking.take() else { return };
        let (Some(term), Some(promoted_at)) = (taking.term, taking.promoted_at) else {
            self.taking = Some(taking);
            return;
        };
        // An agent that has just been started has not seen who led before; the last entry knows.
        let last = last_failover(&self.log.entries);
        let former_term = taking.former.as_ref().map(|former| former.term).or(last.and_then(|last| last.term));
        let ended = record.ended.as_ref().filter(|ended| former_term.is_none_or(|known| known == ended.term));
        let former_name = taking.former.as_ref().map(|former| &former.name).or(last.map(|last| &last.node));
        let planned = ended.is_some_and(|ended| ended.planned);
        let former = taking.former.as_ref();
        let silent = |name: &NodeName| Why {
            code: SILENT.to_owned(),
            sentence: format!("{name} fell silent, and its lease ran out"),
        };
        let detected = former.map(|former| ms(former.alive_at, taking.free_at));
        let phases = Phases {
            detect_ms: if ended.is_some() { Some(0) } else { detected },
            decide_ms: Some(ended.map_or(0, |ended| ended.decide_ms) + ms(taking.free_at, taking.taken_at)),
            fence_ms: Some(ended.map_or(0, |ended| ended.fence_ms)),
            promote_ms: Some(ms(taking.taken_at, promoted_at)),
            route_ms: Some(ms(promoted_at, at)),
        };
        let proven = matches!(taking.choice, Reason::NamedSuccessor { .. } | Reason::ProvenCandidate { .. })
            || (record.sync.is_some() && !taking.forced);
        let missing = taking.optime.ahead_of(taking.position).0;
        let fallback = || Why { code: SILENT.to_owned(), sentence: "nobody led".to_owned() };
        self.add(ChangeRecord {
            at: wall,
            kind: if planned { ChangeKind::Switchover } else { ChangeKind::Failover },
            node: view.me.clone(),
            other: former_name.or(ended.map(|ended| &ended.by)).cloned(),
            term: Some(term),
            timeline: Some(server.timeline),
            cause: ended.map(|ended| ended.cause.clone()).or_else(|| former_name.map(silent)).unwrap_or_else(fallback),
            choice: Some(why(&taking.choice)),
            phases,
            total_ms: phases.total(),
            position: Some(taking.position),
            reference: Some(taking.optime),
            loss: if proven { Loss::Nothing } else { Loss::AtLeast { bytes: missing } },
        });
    }

    fn follow_return(&mut self, view: &ClusterView, decision: &Decision, wall: WallTime) {
        if let Some((cause, loss, ours, shared)) = begins_return(view, decision) {
            let since = self.back.as_ref().map_or(view.now, |back| back.since);
            // The last step before it works is what it took; what was said of positions before stays.
            let before = self.back.take();
            self.back = Some(Return {
                since,
                cause,
                loss: before.as_ref().map_or(loss, |back| if loss == Loss::Nothing { back.loss } else { loss }),
                ours: ours.or_else(|| before.as_ref().and_then(|back| back.ours)),
                shared: shared.or_else(|| before.as_ref().and_then(|back| back.shared)),
            });
        }
        let Some(server) = view.server.fresh().filter(|server| server.in_recovery && server.streaming) else { return };
        if view.task.is_some() || !matches!(decision.reason, Reason::Following { .. }) {
            return;
        }
        let Some(back) = self.back.take() else { return };
        let took = ms(back.since, view.now);
        self.add(ChangeRecord {
            at: wall,
            kind: ChangeKind::Rejoin,
            node: view.me.clone(),
            other: server.follows.clone(),
            term: None,
            timeline: Some(server.timeline),
            cause: back.cause,
            choice: None,
            phases: Phases { promote_ms: Some(took), ..Phases::default() },
            total_ms: took,
            position: back.ours,
            reference: back.shared,
            loss: back.loss,
        });
    }

    /// What a rewind has found that it gives up.
    pub fn gave_up(&mut self, found: Option<GivenUp>) {
        let (Some(GivenUp { shared, ours }), Some(back)) = (found, &mut self.back) else { return };
        back.loss = Loss::GivenUp { bytes: ours.ahead_of(shared).0 };
        (back.ours, back.shared) = (Some(ours), Some(shared));
    }

    fn add(&mut self, entry: ChangeRecord) {
        if self.due.len() == DUE_MAX
            && let Some(oldest) = self.due.pop_front()
        {
            warn!(at = %oldest.at, kind = ?oldest.kind, "an entry of the timeline is dropped: the store takes none");
        }
        self.due.push_back(entry);
    }

    /// Writes what is due; what another node has written at the same moment is read and kept, at the next tick.
    pub async fn write(&mut self, actor: &Actor) {
        let Some(entry) = self.due.front() else { return };
        let space = actor.writes.space();
        let (revision, Some(mut entries)) = stored(&actor.store, space) else {
            warn!("the timeline of changes cannot be understood; it is left as it is, and this entry is dropped");
            self.due.pop_front();
            return;
        };
        changes::append(&mut entries, entry.clone());
        match actor.write(actor.writes.timeline(&entries, revision)).await {
            Ok(_) => drop(self.due.pop_front()),
            Err(Failure::Lost) => debug!("the timeline had changed meanwhile; again at the next tick"),
            Err(failure) => debug!(%failure, "the timeline was not written; again at the next tick"),
        }
    }

    /// The entries so far.
    pub fn entries(&mut self, store: &Store, space: &KeySpace, revision: i64) -> Arc<Vec<ChangeRecord>> {
        self.log.read(store, space, revision)
    }
}

/// Whether this decision brings back data that has been another's: with the reason, the loss, what this node had, and
/// what of it the cluster shares.
fn begins_return(view: &ClusterView, decision: &Decision) -> Option<(Why, Loss, Option<Lsn>, Option<Lsn>)> {
    let cause = why(&decision.reason);
    let present = match &view.data_dir {
        DataDirView::Present(control) => Some(control),
        _ => None,
    };
    match (&decision.reason, &decision.action) {
        (Reason::RewindFrom { ours, shared, .. } | Reason::StopToRewind { ours, shared, .. }, _) => {
            let bytes = ours.ahead_of(*shared).0;
            Some((cause, Loss::GivenUp { bytes }, Some(*ours), Some(*shared)))
        }
        (Reason::RewindAfterCrash { .. }, _) => {
            Some((cause, Loss::Unknown, present.map(|control| control.checkpoint), None))
        }
        (Reason::CloneFrom { .. } | Reason::ReinitializeByHand { .. }, Action::Clone { aside: Some(_), .. }) => {
            Some((cause, Loss::Unknown, present.map(|control| control.checkpoint), None))
        }
        (Reason::JoinAsStandby { leader: Some(_) }, Action::StartStandby { .. }) => {
            let control = present.filter(|control| {
                matches!(control.state, ControlState::ShutDown | ControlState::InProduction) && !control.standby_signal
            })?;
            Some((cause, Loss::Nothing, Some(control.checkpoint), None))
        }
        _ => None,
    }
}

/// Revisions of what a leader writes all the time.
fn words(record: &ClusterRecord, leader: &NodeName) -> (i64, i64) {
    let member = record.members.get(leader).map_or(0, |member| member.mod_revision);
    (member, record.status.as_ref().map_or(0, |status| status.mod_revision))
}

fn why(reason: &Reason) -> Why {
    Why { code: reason.code(), sentence: reason.to_string() }
}

fn ms(from: Mono, to: Mono) -> u64 {
    u64::try_from(to.since(from).as_millis()).unwrap_or(u64::MAX)
}

/// The newest change after which another node led, for a sentence on how long it took.
pub fn last_failover(entries: &[ChangeRecord]) -> Option<&ChangeRecord> {
    entries.iter().rev().find(|entry| matches!(entry.kind, ChangeKind::Failover | ChangeKind::Switchover))
}

/// The entry that made the present leadership, if it is known.
pub fn of_timeline(entries: &[ChangeRecord], timeline: TimelineId) -> Option<&ChangeRecord> {
    let led = |entry: &&ChangeRecord| matches!(entry.kind, ChangeKind::Failover | ChangeKind::Switchover);
    entries.iter().rev().filter(led).find(|entry| entry.timeline == Some(timeline))
}

#[cfg(test)]
mod tests;
