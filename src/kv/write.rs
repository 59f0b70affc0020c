//! Writing: all changes of one command, under one revision.
//!
//! ```text
//!   Writer::new -> put / delete / delete_range / range, in order -> finish: the revision counts if anything changed
//! ```
//!
//! Nothing here can fail: whoever holds a [`Writer`] has checked the whole command before.

use std::sync::Arc;

use super::command::{
    DeleteRangeRequest, DeleteRangeResponse, Event, EventKind, KeyValue, PutRequest, PutResponse, RangeRequest,
    RangeResponse,
};
use super::key_index::{KeyHistory, Pair};
use super::key_range::KeyRange;
use super::range;
use super::revision::Revision;
use super::state::{State, change_size, key_size};
use crate::types::LeaseId;

/// One revision in the making.
pub(super) struct Writer<'a> {
    state: &'a mut State,
    /// As many as there are changes so far, so their number is the next `sub`.
    events: Vec<Event>,
}

impl<'a> Writer<'a> {
    pub fn new(state: &'a mut State) -> Self {
        Self { state, events: Vec::new() }
    }

    /// The revision that an answer shows at this point: the new one as soon as something was written.
    pub fn shown_revision(&self) -> i64 {
        self.state.revision + i64::from(!self.events.is_empty())
    }

    /// Close the revision. The changes, in order.
    pub fn finish(self) -> Vec<Event> {
        self.state.revision = self.shown_revision();
        self.events
    }

    /// Where the next change goes.
    fn next(&self) -> Revision {
        let sub = u32::try_from(self.events.len()).expect("a command is far smaller than four billion changes");
        Revision { main: self.state.revision + 1, sub }
    }

    /// Read, seeing what was written so far.
    pub fn range(&self, request: &RangeRequest) -> RangeResponse {
        range::read(self.state, request, self.shown_revision())
    }

    pub fn put(&mut self, request: &PutRequest) -> PutResponse {
        let at = self.next();
        let state = &mut *self.state;
        let key = match state.keys.get_key_value(request.key.as_slice()) {
            Some((key, _)) => Arc::clone(key),
            None => {
                state.data_bytes += key_size(&request.key);
                Arc::from(request.key.as_slice())
            }
        };
        let history = state.keys.entry(Arc::clone(&key)).or_default();
        let before = before_revision(history, &key, at);
        let old = history.live();
        let old_lease = old.map_or(LeaseId(0), |old| old.lease);
        let pair = KeyValue {
            key: key.to_vec(),
            value: match old {
                Some(old) if request.ignore_value => old.value.clone(),
                _ => request.value.clone(),
            },
            create_revision: old.map_or(at.main, |old| old.create_revision),
            mod_revision: at.main,
            version: old.map_or(1, |old| old.version + 1),
            lease: if request.ignore_lease { old_lease } else { request.lease },
        };
        let answer = if request.prev_kv { old.cloned() } else { None };
        state.leases.move_key(&key, old_lease, pair.lease);
        state.data_bytes += change_size(pair.value.len());
        self.events.push(Event { kind: EventKind::Put, kv: pair.clone(), prev_kv: before });
        history.put(at.sub, pair);
        state.log.push_back((at, key));
        PutResponse { revision: at.main, prev_kv: answer }
    }

    /// Delete one key; nothing happens if it is not there.
    pub fn delete(&mut self, key: &Arc<[u8]>) {
        let at = self.next();
        let state = &mut *self.state;
        let Some(history) = state.keys.get_mut(key) else { return };
        let Some(lease) = history.live().map(|pair| pair.lease) else { return };
        let before = before_revision(history, key, at);
        history.delete(at);
        state.leases.move_key(key, lease, LeaseId(0));
        state.data_bytes += change_size(0);
        let tombstone = KeyValue { key: key.to_vec(), mod_revision: at.main, ..KeyValue::default() };
        self.events.push(Event { kind: EventKind::Delete, kv: tombstone, prev_kv: before });
        state.log.push_back((at, Arc::clone(key)));
    }

    pub fn delete_range(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let mut doomed = Vec::new();
        let mut prev_kvs = Vec::new();
        let keys = KeyRange::new(&request.key, &request.range_end);
        for (key, pair) in range::live(self.state, keys) {
            doomed.push(Arc::clone(key));
            if request.prev_kv {
                prev_kvs.push(pair.clone());
            }
        }
        for key in &doomed {
            self.delete(key);
        }
        let deleted = i64::try_from(doomed.len()).expect("fewer keys than bytes of memory");
        DeleteRangeResponse { revision: self.shown_revision(), deleted, prev_kvs }
    }
}

/// The pair that an event shows as its predecessor: the one at the end of the revision before, even if
/// the same transaction has changed the key already. Source: etcd reads it at `mod_revision - 1`.
fn before_revision(history: &KeyHistory, key: &[u8], at: Revision) -> Option<KeyValue> {
    history.as_of(key, at.main - 1).map(Pair::to_key_value)
}
