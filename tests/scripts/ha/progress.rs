//! Whatever the facts are, a node comes to rest: decisions that succeed lead somewhere.
//!
//! The view is changed as each action would change it if it went well and nobody else did anything. No time
//! passes, so a node that never waits or holds would run in circles at full speed.

use howdah::agent::tick::note;
use howdah::cluster::ClusterRecord;
use howdah::cluster::records::{Initialize, ReservedTimeline};
use howdah::ha::view::{ByHand, ClusterView, ControlState, ControlView, DataDirView, InForce, ProcessView, ServerView};
use howdah::ha::{Action, decide};
use howdah::types::{Fact, LeaderPermit, Lsn, NodeName, SystemId, Term, TimelineId};
use proptest::prelude::*;

use crate::story::versioned;
use crate::views::any_view;

/// The longest way to rest that is not a circle: give up, stop, release, start, race, win, promote.
const ENOUGH: usize = 20;

/// A view that actions change.
struct World {
    view: ClusterView,
    record: ClusterRecord,
}

impl World {
    fn control(&mut self) -> Option<&mut ControlView> {
        match &mut self.view.data_dir {
            DataDirView::Present(control) => Some(control),
            _ => None,
        }
    }

    fn created(&mut self, state: ControlState, standby_signal: bool) {
        let system_id = match self.record.initialize.as_ref().map(|i| i.value) {
            Some(Initialize::Done(id)) => id,
            _ => SystemId(9),
        };
        let (timeline, zero) = (self.record.timeline(), Lsn(0));
        self.view.data_dir = DataDirView::Present(ControlView {
            system_id,
            state,
            timeline,
            checkpoint: zero,
            min_recovery_end: zero,
            standby_signal,
        });
    }

    fn lead(&mut self) {
        self.record.revision += 100;
        let term = self.record.revision;
        self.record.leader = Some(versioned(self.view.me.clone(), term));
        let valid_until = self.view.now + self.view.settings.ttl;
        self.view.permit = Some(LeaderPermit { term: Term(term), valid_until });
    }

    fn reserve(&mut self, timeline: TimelineId) {
        let reached = self.record.timeline();
        let revision = self.record.term().map_or(0, |term| term.0).max(self.record.revision);
        self.record.reserved = Some(versioned(ReservedTimeline { timeline, reached }, revision));
    }

    fn stop(&mut self) {
        let server = self.view.server.any().cloned();
        if let Some(control) = self.control() {
            let primary = server.as_ref().is_some_and(|server| !server.in_recovery);
            control.state = if primary { ControlState::ShutDown } else { ControlState::ShutDownInRecovery };
            control.standby_signal = !primary;
            if let Some(server) = server {
                (control.timeline, control.checkpoint) = (server.timeline, server.position);
            }
        }
        self.view.process = ProcessView::Absent { crashed: false };
        self.view.server = Fact::unknown("PostgreSQL does not run");
        self.view.memory.stopped_for_handover = Some(self.view.now);
    }

    fn start(&mut self, writable: bool, follows: Option<NodeName>) {
        let control = self.control().expect("there is data to start").clone();
        let server = ServerView {
            in_recovery: !writable,
            timeline: control.timeline,
            position: control.checkpoint.max(control.min_recovery_end),
            replaying: false,
            streaming: false,
            receiving: false,
            follows,
            follows_outside: false,
            standbys: std::collections::BTreeMap::new(),
            synchronous_standby_names: String::new(),
            checkpoint_redo: Lsn(0),
        };
        self.view.server = Fact::Fresh(server);
        self.view.process = ProcessView::Running { writable };
        self.view.memory.stopped_for_handover = None;
        self.view.memory.standby_starts.count = 0;
        self.view.memory.slots_to_copy.clear();
        if let Some(ByHand::Restart { .. } | ByHand::Reinitialize { moved: true, .. }) = self.view.memory.by_hand {
            self.view.memory.by_hand = None;
        }
    }

    fn server(&mut self) -> &mut ServerView {
        match &mut self.view.server {
            Fact::Fresh(server) => server,
            _ => panic!("it was decided about a server that does not answer"),
        }
    }

    fn enforce(&mut self, names: String) {
        let now = self.view.now;
        let server = self.server();
        let seen = server.position;
        server.synchronous_standby_names.clone_from(&names);
        self.view.memory.commit_rule = Some(InForce { names, since: now, seen, from: Some(seen) });
    }

    /// What `action` comes to. False when the node is at rest.
    fn act(&mut self, action: Action) -> bool {
        match action {
            Action::Hold | Action::Wait | Action::Exit => return false,
            Action::ClaimBootstrap => {
                self.record.initialize = Some(versioned(Initialize::Running, 5));
                self.lead();
            }
            Action::Initdb => self.created(ControlState::ShutDown, false),
            Action::MoveFailedAside { .. } => self.view.data_dir = DataDirView::Empty,
            Action::FinishBootstrap { system_id, .. } => {
                self.record.initialize = Some(versioned(Initialize::Done(system_id), 5));
            }
            Action::Clone { .. } => {
                if let Some(ByHand::Reinitialize { moved, .. }) = &mut self.view.memory.by_hand {
                    *moved = true;
                }
                self.created(ControlState::InRecovery, true);
            }
            Action::CloneOutside => self.created(ControlState::InRecovery, true),
            Action::PrePromote { term } => self.view.memory.pre_promoted = Some(term),
            Action::FollowOutside => {
                let server = self.server();
                (server.follows, server.follows_outside) = (None, true);
            }
            Action::StartStandbyLeader => {
                let control = self.control().expect("there is data to start");
                (control.state, control.standby_signal) = (ControlState::InRecovery, true);
                self.start(false, None);
                self.server().follows_outside = true;
            }
            Action::Rewind { .. } => self.created(ControlState::InRecovery, true),
            Action::StartStandby { follow } => {
                let control = self.control().expect("there is data to start");
                (control.state, control.standby_signal) = (ControlState::InRecovery, true);
                self.start(false, follow);
            }
            Action::StartPrimary => self.start(true, None),
            Action::TakeLeader => {
                (self.record.handover, self.record.failover) = (None, None);
                let here = self.server().timeline;
                let timeline = self.record.next_timeline(here);
                self.lead();
                if self.view.settings.standby_cluster.is_none() {
                    self.reserve(timeline);
                }
            }
            Action::ReserveTimeline { timeline, .. } => self.reserve(timeline),
            Action::Promote => {
                self.view.process = ProcessView::Running { writable: true };
                let given = self.record.reserved.as_ref().expect("the promotion has a number").value.timeline;
                let server = self.server();
                (server.in_recovery, server.timeline) = (false, given);
            }
            Action::Follow { leader } => {
                let server = self.server();
                (server.follows, server.follows_outside) = (leader, false);
            }
            Action::StopReceiving => {
                let server = self.server();
                (server.follows, server.receiving, server.streaming) = (None, false, false);
                server.follows_outside = false;
            }
            Action::Enforce { names } => self.enforce(names),
            Action::WriteSync { term, record, mod_revision } => {
                assert_eq!((self.record.term(), self.record.sync_revision), (Some(term), mod_revision));
                self.record.sync = Some(record);
                self.record.sync_revision += 1;
                self.record.damaged.retain(|key, _| !key.ends_with("/sync"));
            }
            Action::EndSync { .. } => {
                self.enforce(String::new());
                (self.record.sync, self.record.sync_revision) = (None, 0);
            }
            Action::StopStandby | Action::StopPrimary | Action::Stop { .. } => self.stop(),
            Action::StopToRestart => {
                self.stop();
                self.view.memory.stopped_for_handover = None;
                self.view.memory.by_hand = Some(ByHand::Restart { stopped: true });
            }
            Action::Demote => {
                self.stop();
                if let Some(control) = self.control() {
                    control.state = ControlState::InProduction;
                }
            }
            Action::ReleaseLeader { term } | Action::HandOver { term, .. } => {
                assert_eq!(self.record.term(), Some(term));
                self.record.leader = None;
                self.view.memory.ending_term = Some(term);
                self.view.memory.leaderless_since = Some(self.view.now);
                self.view.memory.crash_restarts.clear();
                self.view.memory.starting_since = None;
            }
            Action::Checkpoint { request_revision } => self.view.memory.checkpointed_for = Some(request_revision),
            Action::ClearRequest { .. } | Action::AbandonHandover { .. } => {
                self.record.failover = None;
                self.view.memory.stopped_for_handover = None;
            }
            // It is asked again after a pause.
            Action::CancelTask => return false,
        }
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_node_comes_to_rest(view in any_view()) {
        let record = view.record.any().cloned().unwrap_or_default();
        let fresh = view.record.fresh().is_some();
        let mut world = World { view, record };
        let mut way = Vec::new();
        loop {
            if fresh {
                world.view.record = Fact::Fresh(world.record.clone());
            }
            let decision = decide(&world.view);
            way.push(format!("{}: {}", decision.action.code(), decision.reason));
            let mut memory = world.view.memory.clone();
            note(&world.view, &decision, &mut memory);
            world.view.memory = memory;
            if !world.act(decision.action) {
                break;
            }
            prop_assert!(way.len() < ENOUGH, "it runs in circles: {way:#?}");
        }
    }
}
