//! Leaderships as one node sees them, tick by tick, and the entry that comes of each.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::agent::local::Place;
use crate::agent::observe::rules;
use crate::cluster::record::Versioned;
use crate::cluster::records::{StatusRecord, SyncRecord};
use crate::config::ClusterSettings;
use crate::ha::decide::{Action, Decision};
use crate::ha::view::{ControlView, Memory, ServerView};
use crate::types::{Fact, LeaseId, SystemId, Term};

const SECOND: Duration = Duration::from_secs(1);
const WALL: WallTime = WallTime(1_700_000_000_000);

fn name(text: &str) -> NodeName {
    text.parse().expect("valid")
}

fn at<T>(revision: i64, value: T) -> Versioned<T> {
    Versioned { value, create_revision: revision, mod_revision: revision, lease: LeaseId(1) }
}

/// n2's view: a standby at 0/5000 that follows nobody yet.
struct Scene {
    view: ClusterView,
    record: ClusterRecord,
    chronicle: Chronicle,
}

impl Scene {
    fn new() -> Self {
        let server = ServerView {
            follows_outside: false,
            in_recovery: true,
            timeline: TimelineId(1),
            position: Lsn(0x5000),
            replaying: false,
            streaming: true,
            receiving: true,
            follows: Some(name("n1")),
            standbys: BTreeMap::new(),
            synchronous_standby_names: String::new(),
            checkpoint_redo: Lsn(0),
        };
        let control = ControlView {
            system_id: SystemId(7),
            state: ControlState::InRecovery,
            timeline: TimelineId(1),
            checkpoint: Lsn(0x4000),
            min_recovery_end: Lsn(0),
            standby_signal: true,
        };
        let view = ClusterView {
            now: Mono(1_000_000_000_000),
            me: name("n2"),
            settings: rules(&ClusterSettings::default(), &Place::default()),
            record: Fact::unknown("not yet"),
            request_due: true,
            data_dir: DataDirView::Present(control),
            process: ProcessView::Running { writable: false },
            server: Fact::Fresh(server),
            permit: None,
            guardian_permit: None,
            peers: BTreeMap::new(),
            task: None,
            shutting_down: false,
            memory: Memory::default(),
        };
        Self { view, record: ClusterRecord::default(), chronicle: Chronicle::default() }
    }

    fn leads(&mut self, who: &str, term: i64) {
        self.record.leader = Some(at(term, name(who)));
        self.view.memory.leaderless_since = None;
    }

    fn free(&mut self) {
        self.record.leader = None;
        self.view.memory.leaderless_since = Some(self.view.now);
    }

    fn after(&mut self, span: Duration) {
        self.view.now = self.view.now + span;
    }

    fn tick(&mut self, action: Action, reason: Reason) -> Decision {
        self.view.record = Fact::Fresh(self.record.clone());
        let decision = Decision { action, reason, recheck_after: SECOND };
        self.chronicle.look(&self.view, &decision, WALL);
        decision
    }

    fn hold(&mut self) {
        let leader = name("n1");
        self.tick(Action::Hold, Reason::Following { leader, streaming: true });
    }

    /// Takes the key 20 ms after it was free, is promoted 30 ms later, and says so 4 ms after that.
    fn win(&mut self, term: i64, reason: Reason) {
        self.after(Duration::from_millis(20));
        self.tick(Action::TakeLeader, reason);
        self.leads("n2", term);
        self.tick(Action::Promote, Reason::WonRace { position: Lsn(0x5000) });
        self.after(Duration::from_millis(30));
        if let Fact::Fresh(server) = &mut self.view.server {
            server.in_recovery = false;
            server.timeline = TimelineId(2);
        }
        self.view.process = ProcessView::Running { writable: true };
        self.tick(Action::Hold, Reason::LeaderHealthy { term });
        let said = self.view.now + Duration::from_millis(4);
        self.chronicle.routed(&self.view, said, WALL);
    }

    fn entry(&mut self) -> ChangeRecord {
        assert_eq!(self.chronicle.due.len(), 1, "{:?}", self.chronicle.due);
        self.chronicle.due.pop_front().expect("one")
    }
}

fn best() -> Reason {
    Reason::BestCandidate { leaderless_ms: 20, position: Lsn(0x5000) }
}

#[test]
fn a_leader_that_falls_silent() {
    let mut scene = Scene::new();
    scene.leads("n1", 40);
    scene.record.status = Some(at(50, StatusRecord { optime: Lsn(0x5000), ..StatusRecord::default() }));
    scene.hold();
    scene.after(SECOND);
    scene.record.status = Some(at(51, StatusRecord { optime: Lsn(0x5010), ..StatusRecord::default() }));
    scene.hold();
    scene.after(4 * SECOND);
    scene.hold();
    scene.free();
    scene.win(60, best());
    let entry = scene.entry();
    assert_eq!((entry.kind, entry.node.as_str(), entry.other), (ChangeKind::Failover, "n2", Some(name("n1"))));
    assert_eq!((entry.term, entry.timeline), (Some(60), Some(TimelineId(2))));
    assert_eq!(entry.cause.code, "leader_silent");
    assert_eq!(entry.choice.map(|why| why.code).as_deref(), Some("best_candidate"));
    let wanted = Phases {
        detect_ms: Some(4000),
        decide_ms: Some(20),
        fence_ms: Some(0),
        promote_ms: Some(30),
        route_ms: Some(4),
    };
    assert_eq!((entry.phases, entry.total_ms), (wanted, 4054));
    assert_eq!(entry.loss, Loss::AtLeast { bytes: 0x10 });
    scene.chronicle.routed(&scene.view, scene.view.now, WALL);
    assert!(scene.chronicle.due.is_empty(), "once");
}

#[test]
fn a_switchover_has_what_the_former_leader_has_measured() {
    let mut scene = Scene::new();
    scene.leads("n1", 40);
    scene.hold();
    scene.after(SECOND);
    scene.free();
    let cause = Why { code: "switchover_hand_over".into(), sentence: "n2 has it".into() };
    let ended = |term| EndedRecord {
        by: name("n1"),
        term,
        at: WALL,
        planned: true,
        cause: cause.clone(),
        decide_ms: 100,
        fence_ms: 200,
    };
    scene.record.ended = Some(ended(40));
    scene.win(60, Reason::NamedSuccessor { from: name("n1"), shutdown_lsn: Lsn(0x4f00) });
    let entry = scene.entry();
    assert_eq!((entry.kind, entry.loss), (ChangeKind::Switchover, Loss::Nothing));
    assert_eq!(
        (entry.phases.detect_ms, entry.phases.decide_ms, entry.phases.fence_ms),
        (Some(0), Some(120), Some(200))
    );
    // A word on an older leadership is not taken for this one's.
    let mut scene = Scene::new();
    scene.leads("n1", 40);
    scene.hold();
    scene.record.ended = Some(ended(30));
    scene.free();
    scene.win(60, best());
    assert_eq!(scene.entry().kind, ChangeKind::Failover);
}

#[test]
fn what_is_proven_is_not_lost_and_what_is_forced_may_be() {
    let mut scene = Scene::new();
    scene.record.sync = Some(SyncRecord { leader: Some(name("n1")), ..SyncRecord::default() });
    scene.record.status = Some(at(50, StatusRecord { optime: Lsn(0x6000), ..StatusRecord::default() }));
    scene.leads("n1", 40);
    scene.hold();
    scene.free();
    scene.win(60, Reason::ProvenCandidate { leaderless_ms: 20, position: Lsn(0x5000) });
    assert_eq!(scene.entry().loss, Loss::Nothing);
}

#[test]
fn the_end_of_ones_own_leadership_is_measured() {
    let mut scene = Scene::new();
    scene.win(60, best());
    scene.entry();
    let request = crate::cluster::records::FailoverRecord { member: Some(name("n1")), ..Default::default() };
    scene.record.failover = Some(at(70, request));
    scene.tick(Action::Checkpoint { request_revision: 70 }, Reason::SwitchoverCheckpoint { to: name("n1") });
    scene.after(Duration::from_millis(80));
    scene.tick(Action::StopPrimary, Reason::SwitchoverStop { to: name("n1") });
    scene.view.process = ProcessView::Absent { crashed: false };
    scene.view.server = Fact::unknown("PostgreSQL does not run");
    scene.after(Duration::from_millis(150));
    let (term, to, shutdown_lsn) = (Term(60), name("n1"), Lsn(0x5000));
    let reason = Reason::SwitchoverHandOver { to: to.clone(), shutdown_lsn };
    let decision = scene.tick(Action::HandOver { term, to, shutdown_lsn, why: "switchover".into() }, reason);
    let ended = scene.chronicle.ending(&scene.view, &decision, WALL).expect("it ends the leadership");
    assert_eq!((ended.term, ended.planned, ended.decide_ms, ended.fence_ms), (60, true, 80, 150));
    assert!(scene.chronicle.due.is_empty());
}

#[test]
fn a_crash_that_is_survived_in_place() {
    let mut scene = Scene::new();
    scene.win(60, best());
    scene.entry();
    let server = scene.view.server.clone();
    scene.view.process = ProcessView::Absent { crashed: true };
    scene.view.server = Fact::unknown("PostgreSQL does not run");
    scene.tick(Action::StartPrimary, Reason::CrashedRestartInPlace { attempt: 1 });
    scene.after(Duration::from_millis(300));
    scene.view.process = ProcessView::Running { writable: true };
    scene.view.server = server;
    scene.tick(Action::Hold, Reason::LeaderHealthy { term: 60 });
    let entry = scene.entry();
    assert_eq!((entry.kind, entry.total_ms), (ChangeKind::Restart, 300));
    assert_eq!(entry.cause.code, "crashed_restart_in_place");
}

#[test]
fn who_comes_back_says_what_it_gave_up() {
    let mut scene = Scene::new();
    scene.leads("n1", 40);
    scene.view.process = ProcessView::Absent { crashed: false };
    let server = scene.view.server.clone();
    scene.view.server = Fact::unknown("PostgreSQL does not run");
    let reason =
        Reason::RewindFrom { leader: name("n1"), timeline: TimelineId(1), ours: Lsn(0x5000), shared: Lsn(0x4800) };
    scene.tick(Action::Rewind { from: name("n1") }, reason);
    scene.after(SECOND);
    // Started after the rewind: that it joins now takes nothing back.
    let leader = Some(name("n1"));
    scene.tick(Action::StartStandby { follow: leader.clone() }, Reason::JoinAsStandby { leader });
    scene.after(SECOND);
    scene.view.process = ProcessView::Running { writable: false };
    scene.view.server = server;
    scene.hold();
    let entry = scene.entry();
    assert_eq!((entry.kind, entry.node.as_str(), entry.total_ms), (ChangeKind::Rejoin, "n2", 2000));
    assert_eq!((entry.loss, entry.cause.code.as_str()), (Loss::GivenUp { bytes: 0x800 }, "rewind_from"));
    scene.hold();
    assert!(scene.chronicle.due.is_empty(), "once");
}

#[test]
fn who_crashed_and_comes_back_says_what_its_wal_had() {
    let mut scene = Scene::new();
    scene.leads("n1", 40);
    let (process, server) = (scene.view.process, scene.view.server.clone());
    let reason = Reason::RewindAfterCrash { leader: name("n1"), timeline: TimelineId(1) };
    for (found, loss) in [
        (None, Loss::Unknown),
        (Some(GivenUp { shared: Lsn(0x4800), ours: Lsn(0x4900) }), Loss::GivenUp { bytes: 0x100 }),
    ] {
        scene.view.process = ProcessView::Absent { crashed: true };
        scene.view.server = Fact::unknown("PostgreSQL does not run");
        scene.tick(Action::Rewind { from: name("n1") }, reason.clone());
        scene.chronicle.gave_up(found);
        (scene.view.process, scene.view.server) = (process, server.clone());
        scene.hold();
        let entry = scene.entry();
        assert_eq!((entry.kind, entry.loss), (ChangeKind::Rejoin, loss));
        assert_eq!(
            entry.position,
            Some(found.map_or(Lsn(0x4000), |found| found.ours)),
            "the control file's word at least"
        );
    }
}
