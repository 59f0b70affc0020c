//! Every combination of the finite facts: what is decided can be done, and something comes after it.
//!
//! Not drawn by lot, as `tests/scripts/ha/views.rs` does with all facts: here the facts that rules branch on are few, and
//! every combination of them is looked at.

use std::collections::BTreeMap;
use std::time::Duration;

use howdah::agent::local::Place;
use howdah::agent::observe::rules;
use howdah::cluster::ClusterRecord;
use howdah::cluster::record::Versioned;
use howdah::cluster::records::{FailoverRecord, HistoryLine, Initialize, MemberRecord, ReservedTimeline, SyncRecord};
use howdah::config::ClusterSettings;
use howdah::ha::view::{
    ClusterView, ControlState, ControlView, DataDirView, Memory, PeerView, ProcessView, ServerView, StandbyView,
    SyncMode,
};
use howdah::ha::{Action, PgStep, RecordStep, Step, decide, plan};
use howdah::types::{Fact, LeaderPermit, LeaseId, Lsn, Mono, NodeName, SystemId, Term, TimelineId};

const NOW: Mono = Mono(1_000_000_000_000);
const TERM: i64 = 100;
const CLUSTER: SystemId = SystemId(7);

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn versioned<T>(value: T, revision: i64) -> Versioned<T> {
    Versioned { value, create_revision: revision, mod_revision: revision, lease: LeaseId(1) }
}

/// What can be found in the data directory.
fn data_dirs() -> Vec<DataDirView> {
    let why = || "why".to_owned();
    let mut all = vec![
        DataDirView::Empty,
        DataDirView::Foreign { why: why() },
        DataDirView::Incomplete { why: why() },
        DataDirView::Unreadable { why: why() },
    ];
    let states = [
        ControlState::ShutDown,
        ControlState::ShutDownInRecovery,
        ControlState::InProduction,
        ControlState::InRecovery,
        ControlState::Other,
    ];
    for state in states {
        for standby_signal in [false, true] {
            for (system_id, timeline) in [(CLUSTER, 1), (CLUSTER, 2), (SystemId(8), 2)] {
                all.push(DataDirView::Present(ControlView {
                    system_id,
                    state,
                    timeline: TimelineId(timeline),
                    checkpoint: Lsn(0x1000),
                    min_recovery_end: Lsn(0x2000),
                    standby_signal,
                }));
            }
        }
    }
    all
}

/// What PostgreSQL can be, by its parent and by its own account.
fn servers() -> Vec<(ProcessView, Fact<ServerView>)> {
    let silent = || Fact::unknown("it does not answer");
    let mut all = vec![
        (ProcessView::Absent { crashed: false }, silent()),
        (ProcessView::Absent { crashed: true }, silent()),
        (ProcessView::Stopping, silent()),
        (ProcessView::Unknown, silent()),
        (ProcessView::Running { writable: false }, silent()),
        (ProcessView::Running { writable: true }, silent()),
    ];
    for writable in [false, true] {
        for in_recovery in [false, true] {
            for timeline in [1, 2] {
                for (replaying, follows) in [(false, None), (false, Some(node("n2"))), (true, None)] {
                    let standbys = match in_recovery {
                        true => BTreeMap::new(),
                        false => {
                            let there = StandbyView { streaming: true, flushed: Lsn(0x3000), counted: true };
                            BTreeMap::from([(node("n2"), there)])
                        }
                    };
                    let view = ServerView {
                        follows_outside: false,
                        in_recovery,
                        timeline: TimelineId(timeline),
                        position: Lsn(0x3000),
                        replaying,
                        streaming: follows.is_some(),
                        receiving: follows.is_some(),
                        follows,
                        standbys,
                        synchronous_standby_names: String::new(),
                        checkpoint_redo: Lsn(0x1000),
                    };
                    all.push((ProcessView::Running { writable }, Fact::Fresh(view.clone())));
                    if !replaying {
                        let age = Duration::from_secs(1);
                        all.push((ProcessView::Running { writable }, Fact::Stale { value: view, age }));
                    }
                }
            }
        }
    }
    all
}

/// What the record can say.
fn records() -> Vec<Fact<ClusterRecord>> {
    let mut all = vec![Fact::unknown("not read yet")];
    for initialize in [None, Some(Initialize::Running), Some(Initialize::Done(CLUSTER))] {
        for leader in [None, Some("n1"), Some("n2")] {
            for history in [0, 1] {
                for request in
                    [None, Some((None, Some("n1"))), Some((Some("n1"), Some("n2"))), Some((Some("n1"), None))]
                {
                    for sync in [None, Some("n1"), Some("n3")] {
                        let mut record = ClusterRecord { revision: TERM, ..ClusterRecord::default() };
                        record.initialize = initialize.map(|value| versioned(value, 5));
                        record.leader = leader.map(|name| versioned(node(name), TERM));
                        let line = HistoryLine(1, Lsn(0x2000), String::new(), String::new(), String::new());
                        record.history = vec![line; history];
                        record.failover = request.map(|(from, to): (Option<&str>, Option<&str>)| {
                            let (leader, member) = (from.map(node), to.map(node));
                            versioned(FailoverRecord { leader, member, scheduled_at: None }, 77)
                        });
                        record.sync = sync.map(|leader| SyncRecord {
                            leader: Some(node(leader)),
                            quorum: Some(0),
                            sync_standby: [node("n2")].into(),
                            degraded: None,
                        });
                        record.sync_revision = if sync.is_some() { 60 } else { 0 };
                        let timeline = Some(record.timeline());
                        for name in ["n1", "n2", "n3"] {
                            let role = if leader == Some(name) { "primary" } else { "replica" };
                            let (state, role) = ("running".to_owned(), role.to_owned());
                            let member = MemberRecord { state, role, timeline, ..MemberRecord::default() };
                            record.members.insert(node(name), versioned(member, 10));
                        }
                        let age = Duration::from_secs(20);
                        if request.is_none() && sync.is_none() && history == 1 {
                            all.push(Fact::Stale { value: record.clone(), age });
                        }
                        all.push(Fact::Fresh(record.clone()));
                        if leader == Some("n1") {
                            let given = ReservedTimeline { timeline: TimelineId(3), reached: record.timeline() };
                            record.reserved = Some(versioned(given, TERM));
                            all.push(Fact::Fresh(record));
                        }
                    }
                }
            }
        }
    }
    all
}

struct Case<'a> {
    view: &'a ClusterView,
    me: &'a NodeName,
}

impl Case<'_> {
    /// What a step needs, it has.
    fn can_be_done(&self, step: &Step) {
        let view = self.view;
        let absent = matches!(view.process, ProcessView::Absent { .. });
        let running = matches!(view.process, ProcessView::Running { .. });
        let whole = matches!(view.data_dir, DataDirView::Present(_));
        let record = view.record.fresh();
        let leads = record.is_some_and(|record| record.is_leader(self.me));
        match step {
            Step::Pg(PgStep::Promote { permit, timeline }) => {
                assert!(record.is_some_and(|record| record.timeline() < *timeline));
                assert!(running && leads && permit.holds_at(view.now) && permit.term == Term(TERM));
                assert!(view.server.fresh().is_some_and(|server| server.in_recovery));
            }
            Step::Pg(PgStep::StartPrimary { permit }) => {
                assert!(absent && whole && leads && permit.holds_at(view.now) && permit.term == Term(TERM));
            }
            Step::Pg(PgStep::StartStandby) => assert!(absent && whole),
            Step::Pg(PgStep::Initdb) => assert!(absent && leads && view.data_dir == DataDirView::Empty),
            Step::Pg(PgStep::BaseBackup { from } | PgStep::Rewind { from }) => {
                assert!(absent && from != self.me && record.is_some_and(|record| record.is_leader(from)));
            }
            Step::Pg(PgStep::MoveAside { .. }) => assert!(absent && view.data_dir != DataDirView::Empty),
            Step::Pg(PgStep::Checkpoint { .. } | PgStep::CreateRoles) => {
                assert!(running && view.server.fresh().is_some_and(|server| !server.in_recovery));
            }
            Step::Pg(PgStep::Stop { .. } | PgStep::Fence) => assert!(running),
            Step::Pg(PgStep::Configure { .. } | PgStep::Enforce { .. }) => assert!(absent || running),
            Step::Pg(PgStep::ConfigureOutside | PgStep::BaseBackupOutside | PgStep::PrePromote { .. }) => {
                panic!("nobody has asked for this")
            }
            Step::Pg(PgStep::CancelTask) => assert!(view.task.is_some()),
            Step::Record(RecordStep::ClaimBootstrap) => {
                assert!(record.is_some_and(|record| record.initialize.is_none() && record.leader.is_none()));
            }
            Step::Record(RecordStep::TakeLeader { .. }) => {
                assert!(record.is_some_and(|record| record.leader.is_none()))
            }
            // Guarded by the very term that was read.
            Step::Record(
                RecordStep::FinishBootstrap { term, .. }
                | RecordStep::ReserveTimeline { term, .. }
                | RecordStep::ReleaseLeader { term }
                | RecordStep::HandOver { term, .. }
                | RecordStep::WriteSync { term, .. }
                | RecordStep::RemoveSync { term, .. },
            ) => assert!(leads && *term == Term(TERM)),
            Step::Record(RecordStep::ClearRequest { mod_revision }) => assert_eq!(*mod_revision, 77),
            Step::Exit => assert!(view.shutting_down),
        }
    }
}

/// While PostgreSQL runs, its files are open and its own account says more than they do.
fn matters_while_running(data_dir: &DataDirView) -> bool {
    match data_dir {
        DataDirView::Present(control) => match control.state {
            ControlState::InProduction => !control.standby_signal,
            ControlState::InRecovery => control.standby_signal && control.system_id == CLUSTER,
            ControlState::ShutDown | ControlState::ShutDownInRecovery | ControlState::Other => false,
        },
        _ => true,
    }
}

/// Paused, asked to stop, a leadership that it has asked to end, and the mode of commits. All matter to a node that may
/// lead; to the others one after the other.
fn circumstances(may_lead: bool) -> Vec<(bool, bool, Option<Term>, SyncMode)> {
    let mut all = vec![(false, false, None, SyncMode::Off), (false, false, None, SyncMode::Quorum)];
    if may_lead {
        all.push((true, false, None, SyncMode::Off));
        all.push((false, true, None, SyncMode::Off));
        all.push((false, false, Some(Term(TERM)), SyncMode::Off));
    }
    all
}

/// Whether this decision tells the node to become the primary.
fn leads_on(action: &Action) -> bool {
    matches!(action, Action::Promote | Action::StartPrimary)
}

#[test]
fn every_combination_of_facts_has_a_decision_that_can_be_carried_out() {
    let (config, _) = ClusterSettings::parse(&serde_json::json!({})).unwrap();
    let holds = LeaderPermit { term: Term(TERM), valid_until: NOW + Duration::from_secs(3) };
    let over = LeaderPermit { term: Term(TERM), valid_until: NOW };
    let old = LeaderPermit { term: Term(TERM - 10), valid_until: NOW + Duration::from_secs(3) };
    let (data_dirs, servers) = (data_dirs(), servers());
    let (mut combinations, mut told) = (0_u64, 0_u64);
    for record in records() {
        for me in ["n1", "n2"].map(node) {
            let mut view = ClusterView {
                now: NOW,
                me: me.clone(),
                settings: rules(&config, &Place::default()),
                record: record.clone(),
                request_due: true,
                data_dir: DataDirView::Empty,
                process: ProcessView::Unknown,
                server: Fact::unknown(""),
                permit: None,
                guardian_permit: None,
                peers: BTreeMap::new(),
                task: None,
                shutting_down: false,
                memory: Memory::default(),
            };
            let answer = PeerView {
                writable: false,
                promotable: true,
                timeline: Some(TimelineId(2)),
                position: Some(Lsn(0x3000)),
                pending: false,
                receiving: false,
            };
            view.peers.insert(node("n3"), Fact::Fresh(answer));
            for data_dir in &data_dirs {
                view.data_dir = data_dir.clone();
                for (process, server) in &servers {
                    (view.process, view.server) = (*process, server.clone());
                    if matches!(process, ProcessView::Running { .. }) && !matters_while_running(data_dir) {
                        continue;
                    }
                    for permit in [None, Some(holds), Some(over), Some(old)] {
                        for (pause, shutting_down, ending, mode) in circumstances(permit == Some(holds)) {
                            view.permit = permit;
                            (view.settings.pause, view.shutting_down) = (pause, shutting_down);
                            view.settings.synchronous.mode = mode;
                            view.memory.ending_term = ending;
                            combinations += 1;
                            let decision = decide(&view);
                            let steps = plan(&decision.action, &view);
                            let case = Case { view: &view, me: &me };
                            for step in &steps {
                                case.can_be_done(step);
                            }
                            let still = matches!(decision.action, Action::Hold | Action::Wait);
                            let wait = decision.recheck_after;
                            assert!(!still || (!wait.is_zero() && wait <= view.settings.loop_wait), "{decision:?}");
                            assert!(still || !steps.is_empty(), "it acts without doing anything: {decision:?}");
                            if leads_on(&decision.action) {
                                told += 1;
                                let leader = record.fresh().and_then(|r| r.leader.as_ref()).map(|leader| &leader.value);
                                assert_eq!(leader, Some(&me), "only one node can be told to lead in a term");
                                assert_eq!(permit, Some(holds));
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(0 < told && 1_000_000 < combinations);
    println!("{combinations} combinations, {told} of them tell the node to lead");
}
