//! The store against a naive model of it, over random histories.
//!
//! ```text
//!   random steps --+--> State    --> answers, events, watchers' batches, snapshots
//!                  '--> Model    --> the same, found by scanning a list of all changes that ever were
//! ```
//!
//! The model (first part) shares only the vocabulary with the store: it keeps every change for ever,
//! answers by scanning, and is all or nothing by working on a copy.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test fails loudly and may talk")]

use std::collections::BTreeMap;

use howdah::kv::command::{
    Command, Compare, CompareResult, CompareTarget, DeleteRangeRequest, DeleteRangeResponse, Event, EventKind,
    KeyValue, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp, Response, ResponseOp, SortOrder,
    SortTarget, TxnRequest, TxnResponse,
};
use howdah::kv::{Applied, Error, State};
use howdah::types::LeaseId;
use proptest::collection::vec;
use proptest::prelude::*;

// ---- the model ----

#[derive(Clone)]
struct Model {
    revision: i64,
    compacted: i64,
    /// Every change that ever was, as the event that a watcher with nothing compacted sees.
    changes: Vec<Event>,
    leases: BTreeMap<i64, u64>,
}

fn inside(key: &[u8], range_end: &[u8], other: &[u8]) -> bool {
    match range_end {
        [] => other == key,
        [0] => other >= key,
        end => other >= key && other < end,
    }
}

impl Model {
    fn new() -> Self {
        Self { revision: 1, compacted: -1, changes: Vec::new(), leases: BTreeMap::new() }
    }

    /// All live pairs as of a revision.
    fn at(&self, revision: i64) -> BTreeMap<Vec<u8>, KeyValue> {
        let mut pairs = BTreeMap::new();
        for change in self.changes.iter().filter(|change| change.kv.mod_revision <= revision) {
            match change.kind {
                EventKind::Put => pairs.insert(change.kv.key.clone(), change.kv.clone()),
                EventKind::Delete => pairs.remove(&change.kv.key),
            };
        }
        pairs
    }

    fn pairs(&self, key: &[u8], range_end: &[u8], revision: i64) -> Vec<KeyValue> {
        let all = self.at(if revision <= 0 { i64::MAX } else { revision });
        all.into_values().filter(|pair| inside(key, range_end, &pair.key)).collect()
    }

    fn shown(&self) -> i64 {
        self.changes.last().map_or(self.revision, |change| change.kv.mod_revision.max(self.revision))
    }

    fn readable(&self, revision: i64) -> Result<(), Error> {
        match revision {
            ..=0 => Ok(()),
            _ if revision > self.revision => Err(Error::FutureRevision { revision: self.revision }),
            _ if revision < self.compacted => Err(Error::Compacted { compact_revision: self.compacted }),
            _ => Ok(()),
        }
    }

    fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        self.readable(request.revision)?;
        let mut kvs = self.pairs(&request.key, &request.range_end, request.revision);
        let count = kvs.len() as i64;
        kvs.retain(|pair| {
            (request.min_mod_revision == 0 || pair.mod_revision >= request.min_mod_revision)
                && (request.max_mod_revision == 0 || pair.mod_revision <= request.max_mod_revision)
                && (request.min_create_revision == 0 || pair.create_revision >= request.min_create_revision)
                && (request.max_create_revision == 0 || pair.create_revision <= request.max_create_revision)
        });
        let by = |pair: &KeyValue| match request.sort_target {
            SortTarget::Key => (0, pair.key.clone()),
            SortTarget::Version => (pair.version, Vec::new()),
            SortTarget::Create => (pair.create_revision, Vec::new()),
            SortTarget::Mod => (pair.mod_revision, Vec::new()),
            SortTarget::Value => (0, pair.value.clone()),
        };
        kvs.sort_by(|a, b| match request.sort_order {
            SortOrder::Descend => (by(b), &a.key).cmp(&(by(a), &b.key)),
            SortOrder::None | SortOrder::Ascend => (by(a), &a.key).cmp(&(by(b), &b.key)),
        });
        let limit = if request.limit <= 0 { usize::MAX } else { request.limit as usize };
        let more = !request.count_only && kvs.len() > limit;
        kvs.truncate(if request.count_only { 0 } else { limit });
        if request.keys_only {
            kvs.iter_mut().for_each(|pair| pair.value.clear());
        }
        Ok(RangeResponse { revision: self.shown(), kvs, more, count })
    }

    fn change(&mut self, kind: EventKind, kv: KeyValue) {
        let prev_kv = self.at(kv.mod_revision - 1).remove(&kv.key);
        self.changes.push(Event { kind, kv, prev_kv });
    }

    fn put(&mut self, request: &PutRequest, before: &Model, alone: bool) -> Result<PutResponse, Error> {
        let lease_is_missing = request.lease.0 != 0 && !self.leases.contains_key(&request.lease.0);
        if alone && lease_is_missing {
            return Err(Error::LeaseNotFound);
        }
        if (request.ignore_value || request.ignore_lease) && !before.at(i64::MAX).contains_key(&request.key) {
            return Err(Error::KeyNotFound);
        }
        if lease_is_missing {
            return Err(Error::LeaseNotFound);
        }
        let old = self.at(i64::MAX).remove(&request.key);
        let mod_revision = self.revision + 1;
        let mut kv = KeyValue {
            key: request.key.clone(),
            value: request.value.clone(),
            create_revision: mod_revision,
            mod_revision,
            version: 1,
            lease: request.lease,
        };
        if let Some(old) = &old {
            kv.create_revision = old.create_revision;
            kv.version = old.version + 1;
            kv.value = if request.ignore_value { old.value.clone() } else { kv.value };
            kv.lease = if request.ignore_lease { old.lease } else { kv.lease };
        }
        self.change(EventKind::Put, kv);
        Ok(PutResponse { revision: mod_revision, prev_kv: old.filter(|_| request.prev_kv) })
    }

    fn delete(&mut self, doomed: &[KeyValue]) {
        for pair in doomed {
            let mod_revision = self.revision + 1;
            let kv = KeyValue { key: pair.key.clone(), mod_revision, ..KeyValue::default() };
            self.change(EventKind::Delete, kv);
        }
    }

    fn delete_range(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let doomed = self.pairs(&request.key, &request.range_end, 0);
        self.delete(&doomed);
        let prev_kvs = if request.prev_kv { doomed.clone() } else { Vec::new() };
        DeleteRangeResponse { revision: self.shown(), deleted: doomed.len() as i64, prev_kvs }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let mut pairs = self.pairs(&compare.key, &compare.range_end, 0);
        if pairs.is_empty() && matches!(compare.target, CompareTarget::Value(_)) {
            return false;
        }
        if pairs.is_empty() {
            pairs.push(KeyValue::default());
        }
        pairs.iter().all(|pair| {
            let order = match &compare.target {
                CompareTarget::Version(it) => pair.version.cmp(it),
                CompareTarget::Create(it) => pair.create_revision.cmp(it),
                CompareTarget::Mod(it) => pair.mod_revision.cmp(it),
                CompareTarget::Value(it) => pair.value.cmp(it),
                CompareTarget::Lease(it) => pair.lease.cmp(it),
            };
            match compare.result {
                CompareResult::Equal => order.is_eq(),
                CompareResult::NotEqual => order.is_ne(),
                CompareResult::Greater => order.is_gt(),
                CompareResult::Less => order.is_lt(),
            }
        })
    }

    fn txn(&mut self, request: &TxnRequest, before: &Model) -> Result<TxnResponse, Error> {
        let succeeded = request.compare.iter().all(|compare| before.holds(compare));
        let mut responses = Vec::new();
        for op in if succeeded { &request.success } else { &request.failure } {
            responses.push(match op {
                RequestOp::Empty => return Err(Error::KeyNotFound),
                RequestOp::Range(range) => ResponseOp::Range(self.range(range)?),
                RequestOp::Put(put) => ResponseOp::Put(self.put(put, before, false)?),
                RequestOp::DeleteRange(delete) => ResponseOp::DeleteRange(self.delete_range(delete)),
                RequestOp::Txn(inner) => ResponseOp::Txn(self.txn(inner, before)?),
            });
        }
        Ok(TxnResponse { revision: self.shown(), succeeded, responses })
    }

    fn end_lease(&mut self, id: LeaseId) -> bool {
        let attached: Vec<_> = self.at(i64::MAX).into_values().filter(|pair| pair.lease == id).collect();
        let known = self.leases.remove(&id.0).is_some();
        if known {
            self.delete(&attached);
            self.revision = self.shown();
        }
        known
    }

    fn run(&mut self, command: &Command) -> Result<Response, Error> {
        let before = self.clone();
        let revision = self.revision;
        Ok(match command {
            Command::Put(request) => Response::Put(self.put(request, &before, true)?),
            Command::DeleteRange(request) => Response::DeleteRange(self.delete_range(request)),
            Command::Txn(request) => {
                overlap(&request.success)?;
                overlap(&request.failure)?;
                Response::Txn(self.txn(request, &before)?)
            }
            &Command::Compact { revision: to } => {
                if to <= self.compacted {
                    return Err(Error::Compacted { compact_revision: self.compacted });
                } else if to > revision {
                    return Err(Error::FutureRevision { revision });
                }
                self.compacted = to;
                Response::Compact { revision }
            }
            &Command::LeaseGrant { id, ttl_ms } => {
                if self.leases.insert(id.0, ttl_ms).is_some() {
                    return Err(Error::LeaseAlreadyExists);
                }
                Response::LeaseGrant { revision, id, ttl_ms }
            }
            &Command::LeaseRevoke { id } => {
                self.end_lease(id).then_some(()).ok_or(Error::LeaseNotFound)?;
                Response::LeaseRevoke { revision: self.revision }
            }
            Command::LeasesExpire { ids } => {
                let expired = ids.iter().copied().filter(|id| self.end_lease(*id)).collect();
                Response::LeasesExpire { revision: self.revision, expired }
            }
            Command::Many(commands) => Response::Many(commands.iter().map(|command| self.run(command)).collect()),
            Command::Auth(_) | Command::As { .. } | Command::ByToken { .. } => {
                panic!("the model has no users: the store's own tests have")
            }
        })
    }

    fn apply(&mut self, command: &Command) -> Applied {
        let mut next = self.clone();
        let response = next.run(command);
        let mut events = Vec::new();
        if response.is_ok() {
            next.revision = next.shown();
            events.extend_from_slice(&next.changes[self.changes.len()..]);
            *self = next;
        }
        Applied { response, events }
    }

    /// What a watcher from `from` on must have seen, previous pairs as far as they can still be read.
    fn events(&self, from: i64, key: &[u8], range_end: &[u8]) -> Vec<Event> {
        let wanted = |event: &&Event| event.kv.mod_revision >= from && inside(key, range_end, &event.kv.key);
        self.changes.iter().filter(wanted).cloned().collect()
    }
}

// ---- the rule against writing a key twice ----

/// The keys that an operation may put, and the ranges that it may delete.
type Writes<'a> = (Vec<&'a [u8]>, Vec<(&'a [u8], &'a [u8])>);

fn writes(op: &RequestOp) -> Writes<'_> {
    match op {
        RequestOp::Put(put) => (vec![&put.key], vec![]),
        RequestOp::DeleteRange(delete) => (vec![], vec![(&delete.key, &delete.range_end)]),
        RequestOp::Txn(txn) => {
            let (puts, deletes): (Vec<_>, Vec<_>) = txn.success.iter().chain(&txn.failure).map(writes).unzip();
            (puts.concat(), deletes.concat())
        }
        RequestOp::Empty | RequestOp::Range(_) => (vec![], vec![]),
    }
}

/// Every pair of operations in a list, and the lists inside: no key put twice, none put and deleted;
/// only a deletion in a later transaction may follow a put in an earlier one.
fn overlap(ops: &[RequestOp]) -> Result<(), Error> {
    for (i, one) in ops.iter().enumerate() {
        if let RequestOp::Txn(txn) = one {
            overlap(&txn.success)?;
            overlap(&txn.failure)?;
        }
        for (j, other) in ops.iter().enumerate().filter(|(j, _)| *j != i) {
            let both_txn = matches!((one, other), (RequestOp::Txn(_), RequestOp::Txn(_)));
            let deletes = if both_txn && j > i { vec![] } else { writes(other).1 };
            for put in writes(one).0 {
                if writes(other).0.contains(&put) || deletes.iter().any(|(key, end)| inside(key, end, put)) {
                    return Err(Error::DuplicateKey);
                }
            }
        }
    }
    Ok(())
}

// ---- random histories ----

fn a_key() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(vec![b"a".to_vec(), b"b".to_vec(), b"ba".to_vec(), b"c".to_vec(), b"\xff".to_vec()])
}

fn a_range() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let end = prop_oneof![3 => Just(Vec::new()), 1 => Just(vec![0]), 2 => a_key()];
    (a_key(), end)
}

fn a_lease() -> impl Strategy<Value = LeaseId> {
    prop::sample::select(vec![-2, 1, 3]).prop_map(LeaseId)
}

fn a_put() -> impl Strategy<Value = PutRequest> {
    let lease = prop_oneof![4 => Just(LeaseId(0)), 2 => a_lease()];
    (a_key(), vec(0_u8..3, 0..3), lease, any::<bool>(), 0..10).prop_map(|(key, value, lease, prev_kv, keep)| {
        let (ignore_value, ignore_lease) = (keep == 0 || keep == 1, keep == 1 || keep == 2);
        let value = if ignore_value { Vec::new() } else { value };
        let lease = if ignore_lease { LeaseId(0) } else { lease };
        PutRequest { key, value, lease, prev_kv, ignore_value, ignore_lease }
    })
}

fn a_delete() -> impl Strategy<Value = DeleteRangeRequest> {
    (a_range(), any::<bool>()).prop_map(|((key, range_end), prev_kv)| DeleteRangeRequest { key, range_end, prev_kv })
}

fn a_read() -> impl Strategy<Value = RangeRequest> {
    let target = prop::sample::select(vec![
        SortTarget::Key,
        SortTarget::Version,
        SortTarget::Create,
        SortTarget::Mod,
        SortTarget::Value,
    ]);
    let order = prop::sample::select(vec![SortOrder::None, SortOrder::Ascend, SortOrder::Descend]);
    let bound = || prop_oneof![4 => Just(0_i64), 1 => 1..30_i64];
    let flags = (0..6, 0..6, -1..4_i64);
    (a_range(), bound(), (target, order), flags, [bound(), bound(), bound(), bound()]).prop_map(
        |((key, range_end), revision, (sort_target, sort_order), (keys, count, limit), bounds)| RangeRequest {
            key,
            range_end,
            limit,
            revision,
            sort_order,
            sort_target,
            keys_only: keys == 0,
            count_only: count == 0,
            min_mod_revision: bounds[0],
            max_mod_revision: bounds[1],
            min_create_revision: bounds[2],
            max_create_revision: bounds[3],
        },
    )
}

fn a_compare() -> impl Strategy<Value = Compare> {
    let target = prop_oneof![
        (0..4_i64).prop_map(CompareTarget::Version),
        (0..20_i64).prop_map(CompareTarget::Create),
        (0..20_i64).prop_map(CompareTarget::Mod),
        vec(0_u8..3, 0..2).prop_map(CompareTarget::Value),
        a_lease().prop_map(CompareTarget::Lease),
    ];
    let result = prop::sample::select(vec![
        CompareResult::Equal,
        CompareResult::Greater,
        CompareResult::Less,
        CompareResult::NotEqual,
    ]);
    (a_range(), result, target).prop_map(|((key, range_end), result, target)| Compare {
        key,
        range_end,
        result,
        target,
    })
}

fn a_txn() -> impl Strategy<Value = TxnRequest> {
    let plain = prop_oneof![
        2 => a_read().prop_map(RequestOp::Range),
        3 => a_put().prop_map(RequestOp::Put),
        1 => a_delete().prop_map(RequestOp::DeleteRange),
    ];
    let txn = |op: BoxedStrategy<RequestOp>| {
        (vec(a_compare(), 0..2), vec(op.clone(), 0..4), vec(op, 0..3))
            .prop_map(|(compare, success, failure)| TxnRequest { compare, success, failure })
    };
    let op = plain.prop_recursive(3, 12, 3, move |inner| txn(inner).prop_map(RequestOp::Txn));
    txn(op.boxed())
}

fn a_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        8 => a_put().prop_map(Command::Put),
        3 => a_delete().prop_map(Command::DeleteRange),
        6 => a_txn().prop_map(Command::Txn),
        1 => (0..30_i64).prop_map(|revision| Command::Compact { revision }),
        3 => (a_lease(), 1..9_u64).prop_map(|(id, ttl_ms)| Command::LeaseGrant { id, ttl_ms }),
        1 => a_lease().prop_map(|id| Command::LeaseRevoke { id }),
        1 => vec(a_lease(), 0..4).prop_map(|ids| Command::LeasesExpire { ids }),
    ]
}

fn compare_reads(state: &State, model: &Model, read: &RangeRequest, txn: &TxnRequest, from: i64) {
    assert_eq!(state.range(read), model.range(read));
    if let Some(answer) = state.read_txn(txn) {
        assert_eq!(answer, model.clone().txn(txn, model));
    }
    let now = model.at(i64::MAX);
    assert!(state.prefix(b"").eq(now.values()));
    assert!(state.prefix(b"b").eq(now.values().filter(|pair| pair.key.starts_with(b"b"))));
    assert_eq!(state.get(&read.key), now.get(&read.key));
    assert!(state.leases().map(|(id, ttl_ms)| (id.0, ttl_ms)).eq(model.leases.clone()));
    for (id, _) in state.leases() {
        let attached: Vec<_> = now.values().filter(|pair| pair.lease == id).map(|pair| pair.key.as_slice()).collect();
        assert!(state.lease(id).expect("a listed lease").keys.iter().map(|key| &**key).eq(attached));
    }
    let mut expected = model.events(from, &read.key, &read.range_end);
    for event in expected.iter_mut().filter(|event| event.kv.mod_revision <= model.compacted) {
        event.prev_kv = None;
    }
    match state.events_since(from, &read.key, &read.range_end, usize::MAX) {
        Ok(batches) => assert_eq!(batches.concat(), expected),
        Err(error) => {
            assert_eq!((error, from < model.compacted), (Error::Compacted { compact_revision: model.compacted }, true))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Answers, events and every way to read agree after each command; a store that was written out
    /// and read back goes on as the one that was not.
    #[test]
    fn the_store_does_what_the_model_does(
        steps in vec((a_command(), a_read(), a_txn(), 0..30_i64), 1..50),
        restart in 0..50_usize,
    ) {
        let (mut state, mut model) = (State::new(), Model::new());
        let mut twin = State::new();
        for (number, (command, read, txn, from)) in steps.iter().enumerate() {
            let applied = state.apply(command);
            prop_assert_eq!(&applied, &model.apply(command), "step {}: {:?}", number, command);
            prop_assert_eq!(&applied, &twin.apply(command));
            prop_assert_eq!((state.revision(), state.compact_revision()), (model.revision, model.compacted));
            compare_reads(&state, &model, read, txn, *from);
            if number == restart {
                twin = State::from_bytes(&state.to_bytes()).unwrap();
            }
        }
        prop_assert_eq!(state.hash_kv(0), twin.hash_kv(0));
        prop_assert_eq!(state.to_bytes(), twin.to_bytes());
        prop_assert_eq!(state, twin);
    }

    /// The checksum depends on what was written and on the last compaction, not on earlier ones, nor
    /// on what came later.
    #[test]
    fn compacting_often_or_once_comes_to_the_same(
        writes in vec((a_put(), a_delete()), 1..40),
        last in a_put().prop_map(Command::Put),
    ) {
        let (mut often, mut once) = (State::new(), State::new());
        for (put, delete) in writes {
            for command in [Command::Put(put), Command::DeleteRange(delete)] {
                prop_assert_eq!(often.apply(&command), once.apply(&command));
            }
            let behind = Command::Compact { revision: often.revision() - 3 };
            drop(often.apply(&behind));
        }
        let at = once.revision();
        let compact = Command::Compact { revision: at - 1 };
        drop((often.apply(&compact), once.apply(&compact)));
        prop_assert_eq!(often.hash_kv(at), once.hash_kv(at));
        prop_assert_eq!(often.to_bytes(), once.to_bytes());
        prop_assert_eq!(often.size_bytes(), once.size_bytes());
        let hash = often.hash_kv(at);
        drop(often.apply(&last));
        prop_assert_eq!(often.hash_kv(at), hash);
    }
}
