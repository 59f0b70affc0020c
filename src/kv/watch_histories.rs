//! Watchers over random histories: whatever happens, each gets every event it wants, once and in order.
//!
//! ```text
//!   random actions: apply, watch, cancel, catch up a little, lose a batch, lose contact, resync
//!   after each:     a progress mark covers only what was delivered
//!   at the end:     catch up fully; delivered == the live events since the start, or a canceled beginning of them
//! ```

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::command::{Command, DeleteRangeRequest, Event, EventKind, PutRequest, RequestOp, TxnRequest};
use super::key_range::KeyRange;
use super::state::State;
use super::watch::{Delivery, WatchBatch, WatchId, WatchRequest, Watchers};
use crate::types::LeaseId;

#[derive(Debug, Clone)]
enum Action {
    Apply(Command),
    /// So many revisions behind the present one.
    Compact(i64),
    /// With a start revision relative to the present one; `None` for "now".
    Watch(WatchRequest, Option<i64>),
    Cancel(i64),
    CatchUp(usize),
    /// The next batch for this watcher does not reach it.
    Lose(i64),
    Cut,
    Resync,
}

fn a_key() -> impl Strategy<Value = Vec<u8>> {
    (0_u8..4).prop_map(|key| vec![b'a' + key])
}

fn a_put() -> impl Strategy<Value = PutRequest> {
    (a_key(), 0..9_i64).prop_map(|(key, lease)| PutRequest {
        key,
        value: vec![1],
        // Two leases exist; mostly none is used.
        lease: LeaseId(if lease <= 2 { lease } else { 0 }),
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    })
}

fn a_delete() -> impl Strategy<Value = DeleteRangeRequest> {
    let end = prop_oneof![Just(Vec::new()), a_key()];
    (a_key(), end).prop_map(|(key, range_end)| DeleteRangeRequest { key, range_end, prev_kv: false })
}

fn a_command() -> impl Strategy<Value = Command> {
    let op = || prop_oneof![a_put().prop_map(RequestOp::Put), a_delete().prop_map(RequestOp::DeleteRange)];
    prop_oneof![
        4 => a_put().prop_map(Command::Put),
        2 => a_delete().prop_map(Command::DeleteRange),
        2 => vec(op(), 1..4).prop_map(|success| Command::Txn(TxnRequest { success, ..TxnRequest::default() })),
        1 => (1..3_i64).prop_map(|id| Command::LeaseGrant { id: LeaseId(id), ttl_ms: 1 }),
        1 => Just(Command::LeasesExpire { ids: vec![LeaseId(2), LeaseId(1)] }),
    ]
}

fn a_watch() -> impl Strategy<Value = Action> {
    let end = prop_oneof![Just(Vec::new()), Just(vec![0]), Just(b"c".to_vec())];
    let start = prop_oneof![Just(None), (-9..4_i64).prop_map(Some)];
    (0_u8..2, end, start, 0..4, any::<bool>()).prop_map(|(key, range_end, start, filter, prev_kv)| {
        let request = WatchRequest {
            key: vec![b'a' + key],
            range_end,
            no_put: filter == 0,
            no_delete: filter == 1,
            prev_kv,
            progress_notify: true,
            ..WatchRequest::default()
        };
        Action::Watch(request, start)
    })
}

fn an_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        12 => a_command().prop_map(Action::Apply),
        1 => (0..5_i64).prop_map(Action::Compact),
        3 => a_watch(),
        1 => (0..5_i64).prop_map(Action::Cancel),
        3 => (1..5_usize).prop_map(Action::CatchUp),
        1 => (0..5_i64).prop_map(Action::Lose),
        1 => Just(Action::Cut),
        2 => Just(Action::Resync),
    ]
}

/// The client's side of one watcher.
struct Session {
    request: WatchRequest,
    from: i64,
    got: Vec<Event>,
    ended_by: Option<i64>,
}

impl Session {
    fn expected(&self, live: &[Event]) -> Vec<Event> {
        let keys = KeyRange::new(&self.request.key, &self.request.range_end);
        let filtered = |kind| if kind == EventKind::Put { self.request.no_put } else { self.request.no_delete };
        live.iter()
            .filter(|event| event.kv.mod_revision >= self.from && keys.contains(&event.kv.key) && !filtered(event.kind))
            .map(|event| Event { prev_kv: event.prev_kv.clone().filter(|_| self.request.prev_kv), ..event.clone() })
            .collect()
    }

    fn receive(&mut self, batch: &WatchBatch) {
        assert!(!batch.events.is_empty() && !batch.fragment);
        let last = self.got.last().map_or(0, |event| event.kv.mod_revision);
        assert!(batch.events[0].kv.mod_revision > last, "a revision is complete in its batch");
        assert!(batch.events.iter().all(|event| event.kv.mod_revision <= batch.revision));
        self.got.extend_from_slice(&batch.events);
    }
}

struct World {
    state: State,
    watchers: Watchers,
    live: Vec<Event>,
    sessions: BTreeMap<WatchId, Session>,
    connected: bool,
    lose: Option<WatchId>,
}

impl World {
    fn apply(&mut self, command: &Command) {
        let applied = self.state.apply(command);
        self.live.extend_from_slice(&applied.events);
        if !self.connected {
            return;
        }
        for (id, batch) in self.watchers.on_applied(&applied) {
            if self.lose == Some(id) {
                // The first lost batch decides from where to read again; later ones are dropped too.
                let first = batch.events[0].kv.mod_revision;
                if !matches!(self.watchers.position(id), Some(super::watch::Position::CatchingUp { .. })) {
                    self.watchers.fall_behind(id, first);
                }
                continue;
            }
            self.sessions.get_mut(&id).expect("only known watchers get events").receive(&batch);
        }
        self.lose = None;
    }

    fn catch_up(&mut self, limit: usize) {
        for (id, delivery) in self.watchers.catch_up(&self.state, limit) {
            let session = self.sessions.get_mut(&id).expect("only known watchers get events");
            match delivery {
                Delivery::Events(batch) => session.receive(&batch),
                Delivery::Compacted { compact_revision } => session.ended_by = Some(compact_revision),
            }
        }
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Apply(command) => self.apply(command),
            Action::Compact(behind) => self.apply(&Command::Compact { revision: self.state.revision() - behind }),
            Action::Watch(request, start) => {
                let now = self.state.revision();
                let start_revision = start.map_or(0, |start| (now + start).max(1));
                let request = WatchRequest { start_revision, ..request.clone() };
                let from = if start_revision == 0 { now + 1 } else { start_revision };
                let created = self.watchers.create(&self.state, request.clone()).unwrap();
                assert_eq!(created.revision, now);
                self.sessions.insert(created.id, Session { request, from, got: Vec::new(), ended_by: None });
            }
            Action::Cancel(id) => {
                self.watchers.cancel(WatchId(*id));
                self.sessions.remove(&WatchId(*id));
            }
            Action::CatchUp(limit) => self.catch_up(*limit),
            Action::Lose(id) => self.lose = Some(WatchId(*id)),
            Action::Cut => self.connected = false,
            Action::Resync => {
                self.connected = true;
                self.watchers.resync(&self.state);
            }
        }
    }

    /// A mark may be late, never early.
    fn check_progress(&self) {
        let covers = |session: &Session, revision: i64| {
            let before = |events: Vec<Event>| -> Vec<(i64, Vec<u8>)> {
                let upto = events.into_iter().filter(|event| event.kv.mod_revision <= revision);
                upto.map(|event| (event.kv.mod_revision, event.kv.key)).collect()
            };
            assert_eq!(before(session.got.clone()), before(session.expected(&self.live)));
        };
        let alive = || self.sessions.iter().filter(|(_, session)| session.ended_by.is_none());
        if let Some(revision) = self.watchers.progress() {
            assert!(revision <= self.state.revision() && !self.watchers.is_behind());
            alive().for_each(|(_, session)| covers(session, revision));
        }
        for (id, session) in alive() {
            self.watchers.progress_of(*id).into_iter().for_each(|revision| covers(session, revision));
        }
    }

    fn check_end(&self) {
        let compacted = self.state.compact_revision();
        for (id, session) in &self.sessions {
            let mut expected = session.expected(&self.live);
            if let Some(ended_by) = session.ended_by {
                let missed = expected.split_off(session.got.len());
                assert!(missed.iter().all(|event| event.kv.mod_revision >= session.from));
                assert!(session.from < ended_by && ended_by <= compacted);
            } else {
                assert_eq!(session.got.len(), expected.len(), "watcher {id:?}");
            }
            for (got, expected) in session.got.iter().zip(expected) {
                // The pair before may have been compacted away by the time it was read.
                let forgotten = got.prev_kv.is_none() && got.kv.mod_revision <= compacted;
                let prev_kv = if forgotten { None } else { expected.prev_kv.clone() };
                assert_eq!(*got, Event { prev_kv, ..expected });
            }
        }
    }
}

proptest! {
    #[test]
    fn watchers_get_everything_once_and_in_order(actions in vec(an_action(), 1..80)) {
        let state = State::new();
        let watchers = Watchers::new(&state);
        let (live, sessions) = (Vec::new(), BTreeMap::new());
        let mut world = World { state, watchers, live, sessions, connected: true, lose: None };
        for action in &actions {
            world.act(action);
            world.check_progress();
        }
        world.act(&Action::Resync);
        let mut calls = 0;
        while world.watchers.is_behind() {
            world.catch_up(3);
            world.check_progress();
            calls += 1;
            prop_assert!(calls < 10_000, "catching up ends");
        }
        prop_assert_eq!(world.watchers.progress().is_some(), world.sessions.values().all(|session| {
            session.ended_by.is_some() || session.request.start_revision <= world.state.revision()
        }));
        world.check_end();
    }
}
