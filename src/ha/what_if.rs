//! What would happen if a node died now: the core itself, on copies of what one node knows.
//!
//! ```text
//! one view -> a view for each survivor, the victim gone -> decide, round by round, with the little that a race does
//!          -> who would lead, and why the others would not
//! ```
//! The positions of the others are those that they have published, at most a heartbeat old. Nothing is done.
//! Deliberately absent: the whole promotion; a node that takes the key promotes by the ordinary rules.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::decide::{Action, decide};
use super::reason::Reason;
use super::view::{
    ByHand, ClusterView, ControlState, ControlView, DataDirView, Memory, PeerView, ProcessView, ServerView, Settings,
    TaskKind, TaskView, UpstreamTag,
};
use crate::cluster::ClusterRecord;
use crate::cluster::records::{Initialize, MemberRecord};
use crate::types::{Fact, Lsn, NodeName};

/// One round of the imagined race.
const ROUND: Duration = Duration::from_millis(100);

/// A vote in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voter {
    /// Whose.
    pub name: NodeName,
    /// Whether it answers; none = nobody here knows.
    pub up: Option<bool>,
}

/// What would happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// Who is imagined dead.
    pub victim: NodeName,
    /// Whether it leads now.
    pub leads: bool,
    /// What comes of it.
    pub outcome: Outcome,
    /// What the survivors would decide, one after the other.
    pub decisions: Vec<Imagined>,
    /// Who would not lead, and the first reason.
    pub others: BTreeMap<NodeName, Reason>,
    /// Voters of which nobody here knows whether they answer; they are taken to.
    pub assumed: Vec<NodeName>,
}

/// What comes of a death.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The leader stays. Commits wait where too few standbys are left that confirm them.
    LeaderStays {
        /// Who.
        leader: NodeName,
        /// Standbys that would still be there to confirm, and how many must; none without a synchronous set.
        confirming: Option<(usize, usize)>,
    },
    /// Another takes over.
    TakenOver {
        /// Who.
        by: NodeName,
        /// After how long at most: the rest of the lease, and what the race takes.
        within: Duration,
        /// Whether it is proven to have every acknowledged commit.
        proven: bool,
        /// Bytes that the leader had published and the successor lacks; of interest where it is not proven.
        missing: u64,
    },
    /// Nobody can decide anything: too few voters of the store are left.
    NoMajority {
        /// So many would answer.
        left: usize,
        /// So many must.
        needed: usize,
    },
    /// Nobody here knows who leads, and nobody can take over: no majority has been heard for longer than a lease lasts.
    Unconfirmed {
        /// For so long.
        age: Duration,
    },
    /// Nobody can take over, as things are.
    Nobody,
    /// There is no such node.
    UnknownNode,
}

/// One imagined decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imagined {
    /// Whose.
    pub node: NodeName,
    /// What.
    pub action: String,
    /// Why.
    pub reason: Reason,
}

/// Runs the race that would follow the death of `victim`. None before the record has been read.
pub fn kill(view: &ClusterView, voters: &[Voter], victim: &NodeName) -> Option<Forecast> {
    let record = view.record.any()?;
    let leads = record.is_leader(victim);
    let up = voters.iter().filter(|voter| voter.name != *victim && voter.up != Some(false));
    let assumed: Vec<NodeName> =
        voters.iter().filter(|v| v.name != *victim && v.up.is_none()).map(|v| v.name.clone()).collect();
    let forecast = |outcome| Forecast {
        victim: victim.clone(),
        leads,
        outcome,
        decisions: Vec::new(),
        others: BTreeMap::new(),
        assumed: assumed.clone(),
    };
    if !record.members.contains_key(victim) && voters.iter().all(|voter| voter.name != *victim) {
        return Some(forecast(Outcome::UnknownNode));
    }
    if let Some(age) = view.unconfirmed_for() {
        return Some(Forecast { leads: false, assumed: Vec::new(), ..forecast(Outcome::Unconfirmed { age }) });
    }
    let (left, needed) = (up.count(), voters.len() / 2 + 1);
    if left < needed {
        return Some(forecast(Outcome::NoMajority { left, needed }));
    }
    match record.leader.as_ref().map(|leader| &leader.value) {
        Some(leader) if leader != victim => {
            let confirming = confirming(view, record, victim);
            Some(forecast(Outcome::LeaderStays { leader: leader.clone(), confirming }))
        }
        Some(_) | None => {
            let survivors = survivors(view, record, Some(victim));
            let (outcome, decisions, others) = race(survivors, view.settings.ttl, published(record));
            Some(Forecast { decisions, others, ..forecast(outcome) })
        }
    }
}

/// Standbys of the synchronous set that would be left, and how many of them a commit needs.
fn confirming(view: &ClusterView, record: &ClusterRecord, victim: &NodeName) -> Option<(usize, usize)> {
    let sync = record.sync.as_ref().filter(|sync| !sync.sync_standby.is_empty())?;
    let quorum = sync.quorum.map_or(0, |quorum| usize::try_from(quorum).unwrap_or(usize::MAX));
    let needed = sync.sync_standby.len().saturating_sub(quorum);
    let streams = |name: &&NodeName| {
        let here = view.server.fresh().filter(|server| !server.in_recovery);
        match here {
            Some(server) => server.standbys.get(*name).is_some_and(|standby| standby.streaming),
            None => {
                record.members.get(*name).is_some_and(|m| m.value.replication_state.as_deref() == Some("streaming"))
            }
        }
    };
    let there = sync.sync_standby.iter().filter(|name| *name != victim).filter(streams).count();
    Some((there, needed))
}

fn published(record: &ClusterRecord) -> Lsn {
    record.status.as_ref().map_or(Lsn(0), |status| status.value.optime)
}

type Ran = (Outcome, Vec<Imagined>, BTreeMap<NodeName, Reason>);

fn race(mut views: BTreeMap<NodeName, ClusterView>, ttl: Duration, optime: Lsn) -> Ran {
    let mut decisions: Vec<Imagined> = Vec::new();
    let mut last: BTreeMap<NodeName, Reason> = BTreeMap::new();
    let mut passed = Duration::ZERO;
    // After two lifetimes of the lease every patience is at its end.
    while passed < ttl * 2 + ROUND {
        let seen: BTreeMap<NodeName, PeerView> =
            views.iter().map(|(name, view)| (name.clone(), as_peer(view))).collect();
        let mut acted = false;
        let names: Vec<NodeName> = views.keys().cloned().collect();
        for name in names {
            let Some(view) = views.get_mut(&name) else { continue };
            view.peers = seen
                .iter()
                .filter(|(other, _)| **other != name)
                .map(|(other, peer)| (other.clone(), Fact::Fresh(peer.clone())))
                .collect();
            let decision = decide(view);
            if last.get(&name).is_none_or(|reason| reason.code() != decision.reason.code()) {
                let action = decision.action.code();
                decisions.push(Imagined { node: name.clone(), action, reason: decision.reason.clone() });
            }
            last.insert(name.clone(), decision.reason.clone());
            match &decision.action {
                Action::TakeLeader => {
                    let position = view.server.fresh().map_or(Lsn(0), |server| server.position);
                    let proven =
                        matches!(decision.reason, Reason::ProvenCandidate { .. } | Reason::NamedSuccessor { .. });
                    last.remove(&name);
                    let missing = optime.ahead_of(position).0;
                    // The lease was renewed when this was asked; it ends a whole lifetime after the last renewal.
                    let outcome = Outcome::TakenOver { by: name, within: ttl + passed, proven, missing };
                    return (outcome, decisions, last);
                }
                Action::StopReceiving => {
                    acted = true;
                    if let Fact::Fresh(server) = &mut view.server {
                        server.receiving = false;
                        server.streaming = false;
                        server.follows = None;
                    }
                }
                // What takes longer than a race, and waiting: the survivors are judged as they are.
                _ => (),
            }
        }
        if !acted {
            passed += ROUND;
            views.values_mut().for_each(|view| view.now = view.now + ROUND);
        }
    }
    (Outcome::Nobody, decisions, last)
}

/// What the other members would hear from this one.
fn as_peer(view: &ClusterView) -> PeerView {
    let server = view.server.fresh();
    let runs = matches!(view.process, ProcessView::Running { .. });
    let whole = matches!(view.data_dir, DataDirView::Present(_));
    let able = !view.settings.nofailover && !view.settings.pause && view.task.is_none() && whole;
    PeerView {
        writable: server.is_some_and(|server| !server.in_recovery),
        promotable: able && runs && server.is_some_and(|server| server.in_recovery),
        timeline: server.map(|server| server.timeline),
        position: server.map(|server| server.position),
        pending: able && server.is_none_or(|server| server.replaying),
        receiving: server.is_some_and(|server| server.receiving),
    }
}

/// The views of all members, with `victim` gone and nobody leading.
pub(super) fn survivors(
    view: &ClusterView,
    record: &ClusterRecord,
    victim: Option<&NodeName>,
) -> BTreeMap<NodeName, ClusterView> {
    let mut without = record.clone();
    without.leader = None;
    if let Some(victim) = victim {
        without.members.remove(victim);
    }
    let names: Vec<NodeName> = without.members.keys().cloned().collect();
    names
        .into_iter()
        .map(|name| {
            let mut imagined = match record.members.get(&name) {
                Some(member) if name != view.me => view_of(view, record, &name, &member.value),
                Some(_) | None => view.clone(),
            };
            imagined.record = Fact::Fresh(without.clone());
            imagined.permit = None;
            imagined.guardian_permit = None;
            imagined.memory.leaderless_since = Some(imagined.now);
            imagined.memory.wal_advanced_at = None;
            if let Fact::Fresh(server) = &mut imagined.server {
                server.streaming = false;
            }
            (name, imagined)
        })
        .collect()
}

/// What another member most likely sees, from what it has published and what its primary sees of it.
fn view_of(base: &ClusterView, record: &ClusterRecord, name: &NodeName, member: &MemberRecord) -> ClusterView {
    let flushed = base.server.fresh().and_then(|server| server.standbys.get(name)).map(|standby| standby.flushed);
    let position = member.xlog_location.max(flushed);
    let timeline = member.timeline.unwrap_or(record.timeline());
    let runs = member.state == "running";
    let writable = member.role == "primary";
    let system_id = match record.initialize.as_ref().map(|initialize| initialize.value) {
        Some(Initialize::Done(id)) => Some(id),
        Some(Initialize::Running) | None => None,
    };
    let copying = member.state == "creating replica";
    let task = TaskView { kind: TaskKind::BaseBackup, from: None, since: base.now };
    let state = if writable { ControlState::InProduction } else { ControlState::InRecovery };
    let data_dir = match system_id {
        Some(system_id) if !copying => DataDirView::Present(ControlView {
            system_id,
            state,
            timeline,
            checkpoint: Lsn(0),
            min_recovery_end: Lsn(0),
            standby_signal: !writable,
        }),
        Some(_) | None => DataDirView::Empty,
    };
    let follows = record.leader.as_ref().map(|leader| leader.value.clone()).filter(|leader| leader != name);
    let server = ServerView {
        in_recovery: !writable,
        timeline,
        position: position.unwrap_or_default(),
        replaying: false,
        streaming: member.replication_state.as_deref() == Some("streaming"),
        receiving: member.replication_state.is_some(),
        follows,
        follows_outside: member.role == "standby_leader",
        standbys: BTreeMap::new(),
        synchronous_standby_names: String::new(),
        checkpoint_redo: Lsn(0),
    };
    ClusterView {
        me: name.clone(),
        settings: Settings {
            nofailover: member.failover_priority() == 0,
            failover_priority: member.failover_priority(),
            upstream: UpstreamTag::Leader,
            pre_promote: false,
            ..base.settings.clone()
        },
        data_dir,
        process: match member.state.as_str() {
            "running" | "starting" | "restarting" => ProcessView::Running { writable },
            "stopping" => ProcessView::Stopping,
            other => ProcessView::Absent { crashed: other == "crashed" },
        },
        server: if runs {
            Fact::Fresh(server)
        } else {
            Fact::unknown(format!("{name} says that it is {}", member.state))
        },
        task: copying.then_some(task),
        shutting_down: false,
        peers: BTreeMap::new(),
        memory: Memory { by_hand: None::<ByHand>, ..Memory::default() },
        ..base.clone()
    }
}
