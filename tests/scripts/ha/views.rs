//! Any mixture of facts, and what must never be decided on it.
//!
//! The facts are mixed without regard to sense: a rule that is safe only because two facts "cannot" come
//! together is not safe, for each fact is read at its own moment.

use std::collections::BTreeMap;
use std::time::Duration;

use howdah::cluster::ClusterRecord;
use howdah::cluster::records::{
    Degraded, FailoverRecord, HandoverRecord, HistoryLine, Initialize, MemberRecord, ReservedTimeline, StatusRecord,
    SyncRecord,
};
use howdah::ha::view::{
    Attempts, ByHand, ClusterView, ControlState, ControlView, DataDirView, InForce, Memory, PeerView, ProcessView,
    ServerView, StandbyView, SyncMode, Synchronous, TaskKind, TaskView, UpstreamTag,
};
use howdah::ha::{Action, Decision, PgStep, RecordStep, Step, decide, plan};
use howdah::types::{Fact, LeaderPermit, Lsn, Mono, NodeName, SystemId, Term, TimelineId, WallTime};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use crate::story::{settings, versioned};
use crate::words::node;

/// The moment of every view.
const NOW: Mono = Mono(1_000_000_000_000);

fn name() -> impl Strategy<Value = NodeName> {
    prop::sample::select(vec!["n1", "n2", "n3"]).prop_map(node)
}

fn position() -> impl Strategy<Value = Lsn> {
    prop::sample::select(vec![0, 0x1000, 0x2000, 0x2001, 0x3000, 0x3078, 0x40_0000]).prop_map(Lsn)
}

fn timeline() -> impl Strategy<Value = TimelineId> {
    (1..4u32).prop_map(TimelineId)
}

fn ago() -> impl Strategy<Value = Mono> {
    prop::sample::select(vec![0, 20, 1_000, 4_000, 6_000, 400_000]).prop_map(|ms| NOW.minus(Duration::from_millis(ms)))
}

/// Mostly read now, sometimes old or missing.
fn fact<T: std::fmt::Debug>(value: impl Strategy<Value = T>) -> impl Strategy<Value = Fact<T>> {
    (value, 0..6_u8, 0..10_u64).prop_map(|(value, how, age)| match how {
        0 => Fact::unknown("it was not read"),
        1 => Fact::Stale { value, age: Duration::from_secs(age) },
        _ => Fact::Fresh(value),
    })
}

prop_compose! {
    fn member()(
        state in prop::sample::select(vec!["running", "stopped", "starting"]),
        role in prop::sample::select(vec!["primary", "replica", "uninitialized"]),
        timeline in option::of(timeline()),
        checkpoint_after_promote in option::of(any::<bool>()),
        (nofailover, clonefrom) in any::<(bool, bool)>(),
    ) -> MemberRecord {
        let tags = BTreeMap::from([("nofailover".to_owned(), nofailover.into()), ("clonefrom".to_owned(), clonefrom.into())]);
        let (state, role) = (state.to_owned(), role.to_owned());
        MemberRecord { state, role, timeline, checkpoint_after_promote, tags, ..MemberRecord::default() }
    }
}

prop_compose! {
    fn shared()(
        initialize in option::weighted(0.8, prop_oneof![
            1 => Just(Initialize::Running),
            4 => Just(Initialize::Done(SystemId(7))),
            1 => Just(Initialize::Done(SystemId(8))),
        ]),
        leader in option::of((name(), prop::sample::select(vec![100, 120]))),
        members in btree_map(name(), member(), 0..4),
    )(
        initialize in Just(initialize),
        leader in Just(leader),
        members in Just(members),
        status in option::of(position()),
        failover in option::weighted(0.3, (option::of(name()), option::of(name()))),
        handover in option::weighted(0.2, (name(), name(), position())),
        history in vec(position(), 0..3),
        sync in option::of(sync()),
        damaged in prop::sample::select(vec![
            None, None, None, None, None, Some("leader"), Some("members/n2"), Some("sync"), Some("howdah/reserved"),
        ]),
        reserved in option::of((timeline(), timeline(), prop::sample::select(vec![90, 100, 110, 120]))),
    ) -> ClusterRecord {
        let handover = handover.map(|(from, to, shutdown_lsn)| HandoverRecord {
            from, to, shutdown_lsn, ended_term: 90, at: WallTime(0), why: "switchover".into(),
        });
        let mut history = history;
        history.sort();
        let line = |(at, lsn): (usize, Lsn)| {
            HistoryLine(u32::try_from(at).unwrap() + 1, lsn, String::new(), String::new(), String::new())
        };
        ClusterRecord {
            revision: 100,
            initialize: initialize.map(|value| versioned(value, 5)),
            leader: leader.map(|(name, term)| versioned(name, term)),
            members: members.into_iter().map(|(name, member)| (name, versioned(member, 10))).collect(),
            status: status.map(|optime| versioned(StatusRecord { optime, ..StatusRecord::default() }, 60)),
            failover: failover.map(|(leader, member)| {
                versioned(FailoverRecord { leader, member, scheduled_at: None }, 77)
            }),
            handover: handover.map(|value| versioned(value, 95)),
            history: history.into_iter().enumerate().map(line).collect(),
            damaged: damaged.map(|key| (format!("/service/demo/{key}"), "nonsense".to_owned())).into_iter().collect(),
            sync_revision: 88,
            sync: sync.filter(|_| damaged != Some("sync")),
            reserved: reserved.filter(|_| damaged != Some("howdah/reserved")).map(|(timeline, reached, revision)| {
                versioned(ReservedTimeline { timeline, reached }, revision)
            }),
            ..ClusterRecord::default()
        }
    }
}

fn data_dir() -> impl Strategy<Value = DataDirView> {
    let states = vec![
        ControlState::ShutDown,
        ControlState::ShutDownInRecovery,
        ControlState::InProduction,
        ControlState::InRecovery,
        ControlState::Other,
    ];
    let present = (prop::sample::select(states), timeline(), position(), position(), any::<bool>(), 7..9_u64).prop_map(
        |(state, timeline, checkpoint, min_recovery_end, standby_signal, id)| {
            let system_id = SystemId(id);
            DataDirView::Present(ControlView {
                system_id,
                state,
                timeline,
                checkpoint,
                min_recovery_end,
                standby_signal,
            })
        },
    );
    let why = || "why".to_owned();
    prop_oneof![
        8 => present,
        1 => Just(DataDirView::Empty),
        1 => Just(DataDirView::Foreign { why: why() }),
        1 => Just(DataDirView::Incomplete { why: why() }),
        1 => Just(DataDirView::Unreadable { why: why() }),
    ]
}

fn process() -> impl Strategy<Value = ProcessView> {
    prop_oneof![
        4 => any::<bool>().prop_map(|crashed| ProcessView::Absent { crashed }),
        4 => any::<bool>().prop_map(|writable| ProcessView::Running { writable }),
        1 => Just(ProcessView::Stopping),
        1 => Just(ProcessView::Unknown),
    ]
}

fn names() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["", "*", "n2", "\"n2\"", "ANY 1 (\"n2\")", "ANY 1 (\"n2\",\"n3\")", "2 (\"n2\",\"n3\")"])
}

prop_compose! {
    fn sync()(
        leader in option::weighted(0.9, name()),
        sync_standby in btree_set(name(), 0..4),
        quorum in option::of(0..3_u32),
        short in any::<bool>(),
    ) -> SyncRecord {
        let degraded = short.then_some(Degraded { copies: 1, wanted: 2, since: None });
        SyncRecord { leader, sync_standby, quorum, degraded }
    }
}

prop_compose! {
    fn server()(
        in_recovery in any::<bool>(),
        timeline in timeline(),
        position in position(),
        (streaming, receiving) in (any::<bool>(), any::<bool>()),
        replaying in any::<bool>(),
        (follows, follows_outside) in (option::of(name()), prop::bool::weighted(0.1)),
        standbys in btree_map(name(), (any::<bool>(), position(), any::<bool>()), 0..3),
        names in names(),
        checkpoint_redo in position(),
    ) -> ServerView {
        let standbys = standbys
            .into_iter()
            .map(|(name, (streaming, flushed, counted))| (name, StandbyView { streaming, flushed, counted }))
            .collect();
        let synchronous_standby_names = names.to_owned();
        ServerView {
            in_recovery, timeline, position, replaying, streaming, receiving, follows, follows_outside, standbys,
            synchronous_standby_names, checkpoint_redo,
        }
    }
}

prop_compose! {
    fn peer()(
        writable in prop::bool::weighted(0.2),
        promotable in any::<bool>(),
        timeline in option::of(timeline()),
        position in option::of(position()),
        pending in prop::bool::weighted(0.2),
        receiving in prop::bool::weighted(0.3),
    ) -> PeerView {
        PeerView { writable, promotable, timeline, position, pending, receiving }
    }
}

fn by_hand() -> impl Strategy<Value = ByHand> {
    prop_oneof![
        any::<bool>().prop_map(|stopped| ByHand::Restart { stopped }),
        any::<(bool, bool, bool)>().prop_map(|(force, from_leader, moved)| ByHand::Reinitialize {
            force,
            from_leader,
            moved
        }),
    ]
}

prop_compose! {
    fn memory()(
        leaderless_since in option::of(ago()),
        crash_restarts in vec(ago(), 0..5),
        rewind_failed in option::of(Just("it failed".to_owned())),
        checkpointed_for in option::of(Just(77)),
        stopped_for_handover in option::of(ago()),
        wal_advanced_at in option::of(ago()),
        catching_up_since in option::of(ago()),
        ending_term in option::weighted(0.2, prop::sample::select(vec![Term(100), Term(120)])),
        starting_since in option::of(ago()),
        standby_starts in (0..8_u32, ago()),
        failed_tasks in (0..8_u32, ago()),
        (by_hand, commit_rule) in (
            option::weighted(0.2, by_hand()), option::of((names(), ago(), position(), option::of(position()))),
        ),
        (pre_promote_failed, slot_to_copy, ahead_since) in (
            option::weighted(0.1, ago()), prop::bool::weighted(0.1), option::of(ago()),
        ),
    ) -> Memory {
        let attempts = |(count, last)| Attempts { count, last };
        let (standby_starts, failed_tasks) = (attempts(standby_starts), attempts(failed_tasks));
        let commit_rule = commit_rule.map(|(names, since, seen, from)| InForce { names: names.to_owned(), since, seen, from });
        Memory {
            standbys_seen: BTreeMap::new(), commit_rule, unmanaged: false, pre_promoted: None, pre_promote_failed,
            stops_to_rewind: u32::from(slot_to_copy) * 2,
            slots_to_copy: if slot_to_copy { vec!["cdc".to_owned()] } else { Vec::new() },
            leaderless_since, ahead_since, crash_restarts, rewind_failed, checkpointed_for, stopped_for_handover, wal_advanced_at,
            catching_up_since, ending_term, starting_since, standby_starts, failed_tasks, by_hand,
        }
    }
}

prop_compose! {
    /// A view of node n1, made of anything.
    pub fn any_view()(
        record in fact(shared()),
        data_dir in data_dir(),
        process in process(),
        server in fact(server()),
        own_permit in option::of((prop::sample::select(vec![100, 120]), prop::sample::select(vec![-5_i64, 0, 3_000]))),
        guardian_permit in option::weighted(0.3, (
            prop::sample::select(vec![100, 120]), prop::sample::select(vec![-5_i64, 0, 3_000]),
        )),
        peers in btree_map(prop::sample::select(vec!["n2", "n3"]).prop_map(node), fact(peer()), 0..3),
        task in option::weighted(0.1, (
            prop::sample::select(vec![TaskKind::Initdb, TaskKind::BaseBackup, TaskKind::Rewind]), option::of(name()),
        )),
        memory in memory(),
        switches in (prop::bool::weighted(0.15), prop::bool::weighted(0.15), any::<bool>(), any::<bool>(), any::<bool>()),
        limits in prop::sample::select(vec![(0, 0), (300, 1 << 20), (10, 0x1000)]),
        synchronous in (
            prop::sample::select(vec![SyncMode::Off, SyncMode::On, SyncMode::Quorum]), any::<bool>(), 1..3_usize,
        ),
        place in (
            prop::sample::select(vec![UpstreamTag::Leader, UpstreamTag::Leader, UpstreamTag::Member(node("n2")), UpstreamTag::Archive]),
            0..3_u32, prop::bool::weighted(0.2), prop::bool::weighted(0.1),
        ),
    ) -> ClusterView {
        let mut settings = settings();
        (settings.upstream, settings.failover_priority, settings.pre_promote) = (place.0, place.1, place.2);
        settings.standby_cluster = place.3.then(|| "10.1.0.1:5432".to_owned());
        let (pause, shutting_down, request_due, nofailover, use_pg_rewind) = switches;
        (settings.pause, settings.use_pg_rewind) = (pause, use_pg_rewind);
        settings.nofailover = nofailover && use_pg_rewind;
        settings.primary_start_timeout = Duration::from_secs(limits.0);
        settings.maximum_lag_on_failover.0 = limits.1;
        let (mode, strict, node_count) = synchronous;
        settings.synchronous = Synchronous { mode, strict, node_count, maximum_lag: None };
        let permit = |term, left: i64| LeaderPermit {
            term: Term(term), valid_until: Mono(NOW.0.saturating_add_signed(left * 1_000_000)),
        };
        ClusterView {
            now: NOW,
            me: node("n1"),
            settings,
            record,
            request_due,
            data_dir,
            process,
            server,
            permit: own_permit.map(|(term, left)| permit(term, left)),
            guardian_permit: guardian_permit.map(|(term, left)| permit(term, left)),
            peers,
            task: task.map(|(kind, from)| TaskView { kind, from, since: NOW }),
            shutting_down,
            memory,
        }
    }
}

/// One judged view, for the rules below to look at.
struct Case<'a> {
    view: &'a ClusterView,
    decision: &'a Decision,
    pg: Vec<&'a PgStep>,
    record: Vec<&'a RecordStep>,
}

impl Case<'_> {
    fn leads(&self) -> bool {
        self.view.record.fresh().is_some_and(|record| record.is_leader(&self.view.me))
    }

    fn absent(&self) -> bool {
        matches!(self.view.process, ProcessView::Absent { .. })
    }

    fn unusable_data(&self) -> bool {
        let cluster = self.view.record.any().and_then(|record| record.initialize.as_ref()).map(|i| i.value);
        match (&self.view.data_dir, cluster) {
            (DataDirView::Foreign { .. } | DataDirView::Unreadable { .. }, _) => true,
            (DataDirView::Present(control), Some(Initialize::Done(id))) => id != control.system_id,
            _ => false,
        }
    }

    /// Nobody writes without a permit, and nothing comes before that.
    fn writers_have_permits(&self) {
        let view = self.view;
        let ProcessView::Running { writable } = view.process else { return };
        if (writable || view.server.any().is_some_and(|server| !server.in_recovery)) && !view.running_is_permitted() {
            assert_eq!(self.decision.action, Action::Demote);
        }
    }

    fn promotions_have_permits(&self) {
        for step in &self.pg {
            let (PgStep::Promote { permit, .. } | PgStep::StartPrimary { permit }) = step else { continue };
            let record = self.view.record.fresh().expect("a promotion needs a record that is read now");
            assert!(permit.holds_at(self.view.now) && self.leads() && record.term() == Some(permit.term));
            assert_eq!(self.view.permit, Some(*permit), "a permit from before this process makes no primary");
            assert_ne!(self.view.memory.ending_term, Some(permit.term));
            let by_hand = self.view.memory.by_hand.is_some() && matches!(step, PgStep::StartPrimary { .. });
            assert!((!self.view.settings.pause || by_hand) && !self.view.shutting_down && self.view.task.is_none());
            let cluster = record.timeline();
            match step {
                PgStep::Promote { timeline, .. } => {
                    let server = self.view.server.fresh().expect("a promotion needs a server that answers");
                    let reserved = record.reserved.as_ref().expect("a number of its own");
                    assert!(server.timeline < *timeline && cluster < *timeline && reserved.value.timeline == *timeline);
                    assert!(permit.term.0 <= reserved.mod_revision, "the number was another leadership's");
                    assert!(server.in_recovery && cluster <= server.timeline);
                }
                _ => {
                    let DataDirView::Present(control) = &self.view.data_dir else { panic!("there is no data") };
                    assert!(!control.standby_signal, "a standby's data must be promoted, not started");
                    let creating = record.initialize.as_ref().is_some_and(|i| i.value == Initialize::Running);
                    assert!(cluster <= control.timeline || creating);
                }
            }
        }
    }

    fn the_key_is_taken_with_open_eyes(&self) {
        if !self.record.iter().any(|step| matches!(step, RecordStep::TakeLeader { .. })) {
            return;
        }
        let view = self.view;
        let record = view.record.fresh().expect("the record is read now");
        assert!(record.leader.is_none() && record.initialize.is_some() && !view.settings.nofailover);
        let server = view.server.fresh().expect("the position is known now");
        assert!(server.in_recovery && record.timeline() <= server.timeline);
        assert!(matches!(view.data_dir, DataDirView::Present(_) | DataDirView::Empty));
    }

    /// Nobody takes the key who may lack an acknowledged commit, unless a person said so.
    fn the_key_is_taken_by_whoever_has_every_commit(&self) {
        if !self.record.iter().any(|step| matches!(step, RecordStep::TakeLeader { .. })) {
            return;
        }
        let (view, me) = (self.view, &self.view.me);
        let record = view.record.fresh().expect("the record is read now");
        let server = view.server.fresh().expect("the position is known now");
        assert!(view.settings.synchronous.mode == SyncMode::Off || record.sync_damage().is_none());
        let Some(sync) = record.sync.as_ref().filter(|sync| sync.leader.is_some()) else { return };
        let by_hand =
            record.failover.as_ref().is_some_and(|f| f.value.member.as_ref() == Some(me) && f.value.leader.is_none());
        let named =
            record.handover.as_ref().is_some_and(|h| h.value.to == *me && h.value.shutdown_lsn < server.position);
        if named || (by_hand && view.request_due) {
            return;
        }
        assert!(
            !server.receiving && server.follows.is_none() && !server.follows_outside,
            "what may still grow is not counted"
        );
        if sync.leader.as_ref() == Some(me) {
            return;
        }
        let votes = |name: &&NodeName| match view.peers.get(*name) {
            Some(Fact::Fresh(peer)) => {
                let comparable = peer.timeline == Some(server.timeline) && !peer.receiving && !peer.pending;
                comparable && peer.position.is_some_and(|at| at <= server.position)
            }
            _ => *name == me,
        };
        let heard = sync.sync_standby.iter().filter(votes).count();
        assert!(sync.sync_standby.contains(me) && usize::try_from(sync.quorum.unwrap_or(0)).unwrap() < heard);
    }

    /// Who promotes has made sure that nobody leads on the terms of the one before.
    fn the_synchronous_set_is_written_by_its_leader(&self) {
        let sync = self.view.record.fresh().and_then(|record| record.sync.as_ref());
        for step in &self.record {
            if let RecordStep::WriteSync { term, .. } | RecordStep::RemoveSync { term, .. } = step {
                assert!(self.leads() && self.view.record.fresh().and_then(ClusterRecord::term) == Some(*term));
            }
        }
        let promotes = self.pg.iter().any(|step| matches!(step, PgStep::Promote { .. }));
        if promotes && self.view.settings.synchronous.mode != SyncMode::Off {
            let sync = sync.expect("a set is recorded before a promotion");
            assert!(sync.leader.as_ref() == Some(&self.view.me) && sync.sync_standby.is_empty());
            let names = &self.view.server.fresh().expect("it answers").synchronous_standby_names;
            assert!(!self.view.settings.synchronous.strict || !names.is_empty(), "strict: no commit without a standby");
        }
    }

    fn the_key_is_given_back_by_a_stopped_leader_only(&self) {
        for step in &self.record {
            match step {
                RecordStep::ReleaseLeader { .. } => {
                    let never_wrote = self.view.settings.standby_cluster.is_some()
                        && matches!(self.view.process, ProcessView::Running { writable: false })
                        && self.view.server.fresh().is_some_and(|server| server.in_recovery);
                    assert!((self.absent() || never_wrote) && self.leads());
                }
                RecordStep::HandOver { to, shutdown_lsn, .. } => {
                    assert!(self.absent() && self.leads());
                    let peer = self.view.peers[to].fresh().expect("the successor has answered");
                    assert!(peer.promotable && peer.position.is_some_and(|at| *shutdown_lsn < at));
                }
                _ => (),
            }
        }
    }

    fn pause_means_hands_off(&self) {
        if self.view.settings.pause {
            let asked = |by_hand: fn(&ByHand) -> bool| self.view.memory.by_hand.is_some_and(|asked| by_hand(&asked));
            let fence_only = |step: &&PgStep| match step {
                PgStep::Fence => true,
                PgStep::CancelTask => {
                    self.view.shutting_down
                        || asked(|by_hand| matches!(by_hand, ByHand::Reinitialize { force: true, .. }))
                }
                PgStep::Checkpoint { .. } => asked(|by_hand| matches!(by_hand, ByHand::Restart { .. })),
                PgStep::MoveAside { .. } | PgStep::BaseBackup { .. } => {
                    asked(|by_hand| matches!(by_hand, ByHand::Reinitialize { .. }))
                }
                PgStep::Stop { .. }
                | PgStep::Configure { .. }
                | PgStep::ConfigureOutside
                | PgStep::StartStandby
                | PgStep::StartPrimary { .. } => asked(|_| true),
                _ => false,
            };
            assert!(self.pg.iter().all(fence_only) && self.record.is_empty());
        }
    }

    fn unusable_data_is_not_touched(&self) {
        if self.unusable_data() {
            let harmless = |step: &&PgStep| matches!(step, PgStep::Stop { .. } | PgStep::Fence | PgStep::CancelTask);
            assert!(self.pg.iter().all(harmless));
        }
    }

    fn files_change_only_under_a_stopped_server(&self) {
        for step in &self.pg {
            match step {
                PgStep::Initdb => {
                    assert!(self.absent() && self.leads() && self.view.data_dir == DataDirView::Empty);
                    assert!(self.view.permit_to_lead().is_some());
                    assert_ne!(self.view.memory.ending_term, self.view.permit.map(|permit| permit.term));
                }
                PgStep::BaseBackupOutside => {
                    assert!(self.absent() && self.leads() && self.view.data_dir == DataDirView::Empty);
                    assert!(self.view.settings.standby_cluster.is_some());
                }
                PgStep::BaseBackup { from } | PgStep::Rewind { from } => {
                    let record = self.view.record.fresh().expect("the leader is known now");
                    let done = record.initialize.as_ref().is_some_and(|i| matches!(i.value, Initialize::Done(_)));
                    let offers = record.members.get(from).is_some_and(|member| {
                        let healthy = member.value.role == "replica" && member.value.state == "running";
                        healthy && member.value.has_tag("clonefrom") && matches!(step, PgStep::BaseBackup { .. })
                    });
                    assert!(self.absent() && done && *from != self.view.me && (record.is_leader(from) || offers));
                }
                PgStep::MoveAside { .. } => {
                    let replaced = self.pg.iter().any(|step| matches!(step, PgStep::BaseBackup { .. }));
                    assert!(
                        self.absent() && (replaced || matches!(self.view.data_dir, DataDirView::Incomplete { .. }))
                    );
                }
                PgStep::StartStandby | PgStep::StartPrimary { .. } => {
                    assert!(self.absent() && matches!(self.view.data_dir, DataDirView::Present(_)));
                }
                _ => (),
            }
        }
    }

    fn blind_nodes_change_nothing(&self) {
        if self.view.record.fresh().is_none() {
            assert!(self.record.is_empty());
            let safe = |step: &&PgStep| match step {
                PgStep::Fence | PgStep::CancelTask | PgStep::StartStandby | PgStep::Configure { follow: None } => true,
                PgStep::Stop { .. } => self.view.shutting_down,
                _ => false,
            };
            assert!(self.pg.iter().all(safe));
        }
    }

    /// Whoever acts, does something; whoever waits, pauses. Otherwise the loop would spin.
    fn nothing_spins(&self) {
        let steps = self.pg.len() + self.record.len();
        let Decision { action, recheck_after, reason } = self.decision;
        match action {
            Action::Hold | Action::Wait => {
                assert!(steps == 0 && !recheck_after.is_zero() && *recheck_after <= self.view.settings.loop_wait);
            }
            Action::Exit => assert_eq!(steps, 0),
            _ => assert!(0 < steps),
        }
        assert!(!reason.to_string().is_empty() && !action.code().is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_mixture_of_facts_leads_astray(view in any_view()) {
        let decision = decide(&view);
        let steps = plan(&decision.action, &view);
        let mut case = Case { view: &view, decision: &decision, pg: Vec::new(), record: Vec::new() };
        for step in &steps {
            match step {
                Step::Pg(step) => case.pg.push(step),
                Step::Record(step) => case.record.push(step),
                Step::Exit => assert!(view.shutting_down),
            }
        }
        case.writers_have_permits();
        case.promotions_have_permits();
        case.the_key_is_taken_with_open_eyes();
        case.the_key_is_taken_by_whoever_has_every_commit();
        case.the_synchronous_set_is_written_by_its_leader();
        case.the_key_is_given_back_by_a_stopped_leader_only();
        case.pause_means_hands_off();
        case.unusable_data_is_not_touched();
        case.files_change_only_under_a_stopped_server();
        case.blind_nodes_change_nothing();
        case.nothing_spins();
    }
}
