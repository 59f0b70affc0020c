//! Watchers as data: who has seen what, and which events go to whom.
//!
//! ```text
//!   create --+--> Future        start revision not reached: waits, gets nothing below it
//!            +--> Synced        gets each revision as it is applied         (on_applied)
//!            +--> CatchingUp    reads history until nothing is left         (catch_up)  --> Synced
//!                     |   ^ fall_behind, resync
//!                     '-> gone, if the history it needs is compacted away
//! ```
//!
//! One [`Watchers`] serves one stream: numbers are given per stream, and progress concerns all
//! watchers of a stream together. Batches of one watcher come out in order, and a revision is never
//! spread over two of them (but for fragments, which say so).
//!
//! The one rule for callers: `create`, `on_applied` and `catch_up` are called under the lock under
//! which commands are applied, and what they return goes through one ordered queue per stream,
//! progress included. Otherwise a progress mark could overtake the events that it covers.
//!
//! Deliberately absent: streams, queues, timers (when to notify progress), permissions.

use std::collections::BTreeMap;

use super::MAX_REQUEST_BYTES;
use super::command::{Event, EventKind};
use super::history::{Budget, event_bytes};
use super::key_range::KeyRange;
use super::state::{Applied, State};

/// Changes that one [`Watchers::catch_up`] looks at, wanted or not. Bounds the time under the lock.
const CATCH_UP_CHANGES: usize = 50_000;

/// A watcher's number, unique in its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(pub i64);

/// etcd's `WatchCreateRequest`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WatchRequest {
    /// First key; empty stands for the zero byte.
    pub key: Vec<u8>,
    /// As in [`super::command::DeleteRangeRequest::range_end`].
    pub range_end: Vec<u8>,
    /// The first revision to see; zero for the next one.
    pub start_revision: i64,
    /// Whether to tell progress while nothing happens.
    pub progress_notify: bool,
    /// Leave puts out.
    pub no_put: bool,
    /// Leave deletions out.
    pub no_delete: bool,
    /// Whether events carry the pair before.
    pub prev_kv: bool,
    /// A number of the client's choice; zero for one of ours.
    pub watch_id: i64,
    /// Whether batches may be split.
    pub fragment: bool,
}

/// Why a watcher was not created; the text is the `cancel_reason` that etcd gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// The range's end is not after its key.
    #[error("mvcc: watcher range is empty")]
    EmptyRange,
    /// The number is taken.
    #[error("mvcc: duplicate watch ID provided on the WatchStream")]
    DuplicateId,
    /// A negative start revision.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    NegativeStart,
}

/// A new watcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Created {
    /// Its number.
    pub id: WatchId,
    /// The store's revision now; without a start revision, the watcher sees everything after it.
    pub revision: i64,
}

/// Events for one watcher, in order; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchBatch {
    /// The store's revision when this was made: what the answer's header tells.
    pub revision: i64,
    /// The events, whole revisions unless `fragment` is set here or on the batch before.
    pub events: Vec<Event>,
    /// Whether the next batch of this watcher continues this one.
    pub fragment: bool,
}

/// What catching up brought one watcher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// Older events.
    Events(WatchBatch),
    /// The history that it needs is gone, and the watcher with it.
    Compacted {
        /// The oldest revision that could be watched.
        compact_revision: i64,
    },
}

/// Where a watcher stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Has seen everything.
    Synced,
    /// Reads history.
    CatchingUp {
        /// The next revision to look at.
        next_revision: i64,
    },
    /// Waits.
    Future {
        /// The first revision that it wants.
        start_revision: i64,
    },
}

#[derive(Debug)]
struct Watcher {
    request: WatchRequest,
    /// Nothing below it is delivered (any more).
    floor: i64,
    catching_up: bool,
}

/// The watchers of one stream.
#[derive(Debug)]
pub struct Watchers {
    by_id: BTreeMap<WatchId, Watcher>,
    next_id: i64,
    /// The revision up to which applied events came by.
    seen: i64,
    /// The watcher that caught up last; the others are served first next time.
    last_served: WatchId,
}

impl Watchers {
    /// A stream without watchers, opened on the present state.
    pub fn new(state: &State) -> Self {
        Self { by_id: BTreeMap::new(), next_id: 0, seen: state.revision(), last_served: WatchId(i64::MIN) }
    }

    /// Add a watcher. Any start revision is accepted but negative ones: a future one waits, a
    /// compacted one is created and then ended by [`Watchers::catch_up`].
    pub fn create(&mut self, state: &State, mut request: WatchRequest) -> Result<Created, CreateError> {
        if request.key.is_empty() {
            request.key.push(0);
        }
        if KeyRange::new(&request.key, &request.range_end).is_empty() {
            return Err(CreateError::EmptyRange);
        }
        if request.start_revision < 0 {
            return Err(CreateError::NegativeStart);
        }
        let id = self.choose_id(request.watch_id)?;
        let (revision, start) = (state.revision(), request.start_revision);
        let floor = if start == 0 { revision + 1 } else { start };
        self.by_id.insert(id, Watcher { request, floor, catching_up: floor <= revision });
        Ok(Created { id, revision })
    }

    fn choose_id(&mut self, wanted: i64) -> Result<WatchId, CreateError> {
        if wanted != 0 {
            let id = WatchId(wanted);
            return if self.by_id.contains_key(&id) { Err(CreateError::DuplicateId) } else { Ok(id) };
        }
        while self.by_id.contains_key(&WatchId(self.next_id)) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Ok(WatchId(self.next_id - 1))
    }

    /// Remove a watcher; whether there was one.
    pub fn cancel(&mut self, id: WatchId) -> bool {
        self.by_id.remove(&id).is_some()
    }

    /// Hand the events of a command that was just applied to the watchers that are waiting for them.
    pub fn on_applied(&mut self, applied: &Applied) -> Vec<(WatchId, WatchBatch)> {
        self.on_events(&applied.events)
    }

    /// As [`Watchers::on_applied`], for callers that have only the events. They may come later than the state
    /// moves: a watcher that was created or caught up meanwhile takes nothing twice.
    pub fn on_events(&mut self, events: &[Event]) -> Vec<(WatchId, WatchBatch)> {
        let mut out = Vec::new();
        for events in events.chunk_by(|a, b| a.kv.mod_revision == b.kv.mod_revision) {
            let revision = events[0].kv.mod_revision;
            for (&id, watcher) in &self.by_id {
                if watcher.catching_up || watcher.floor > revision {
                    continue;
                }
                let wanted = events.iter().filter(|event| watcher.wants(event)).cloned().collect();
                out.extend(watcher.batches(revision, wanted).map(|batch| (id, batch)));
            }
            self.seen = self.seen.max(revision);
        }
        out
    }

    /// Whether some watcher needs [`Watchers::catch_up`].
    pub fn is_behind(&self) -> bool {
        self.by_id.values().any(|watcher| watcher.catching_up)
    }

    /// Give watchers that are behind the next piece of history: about `limit` events, and not much more
    /// than a request's size, altogether. They take turns. Call again while [`Watchers::is_behind`].
    pub fn catch_up(&mut self, state: &State, limit: usize) -> Vec<(WatchId, Delivery)> {
        let mut budget = Budget { events: limit.max(1), bytes: MAX_REQUEST_BYTES, changes: CATCH_UP_CHANGES };
        let mut out = Vec::new();
        let behind = |(id, watcher): (&WatchId, &Watcher)| watcher.catching_up.then_some(*id);
        let (mut turn, first): (Vec<_>, Vec<_>) =
            self.by_id.iter().filter_map(behind).partition(|id| *id <= self.last_served);
        turn.splice(0..0, first);
        for id in turn {
            if budget.is_spent() {
                break;
            }
            self.last_served = id;
            self.catch_up_one(state, id, &mut budget, &mut out);
        }
        out
    }

    fn catch_up_one(&mut self, state: &State, id: WatchId, budget: &mut Budget, out: &mut Vec<(WatchId, Delivery)>) {
        let Some(watcher) = self.by_id.get_mut(&id) else { return };
        let keys = KeyRange::new(&watcher.request.key, &watcher.request.range_end);
        let Ok(history) = state.history(watcher.floor, keys, budget) else {
            self.by_id.remove(&id);
            out.push((id, Delivery::Compacted { compact_revision: state.compact_revision() }));
            return;
        };
        watcher.floor = history.next_revision;
        watcher.catching_up = watcher.floor <= state.revision();
        let wanted = history.batches.into_iter().flatten().filter(|event| watcher.wants(event)).collect();
        let batches = watcher.batches(state.revision(), wanted);
        out.extend(batches.map(|batch| (id, Delivery::Events(batch))));
    }

    /// Take back a batch that could not be delivered: the watcher reads history again from the
    /// revision of the first undelivered event. Later batches must not be delivered either.
    pub fn fall_behind(&mut self, id: WatchId, from_revision: i64) {
        if let Some(watcher) = self.by_id.get_mut(&id) {
            watcher.floor = from_revision;
            watcher.catching_up = true;
        }
    }

    /// The state jumped ahead without [`Watchers::on_applied`], as when a snapshot is installed: every
    /// watcher reads what it missed from history.
    pub fn resync(&mut self, state: &State) {
        for watcher in self.by_id.values_mut() {
            if !watcher.catching_up {
                watcher.floor = watcher.floor.max(self.seen + 1);
                watcher.catching_up = watcher.floor <= state.revision();
            }
        }
        self.seen = state.revision();
    }

    /// The answer to a client that asks for progress: the revision up to which every watcher of the
    /// stream has been served. `None`, to be answered with silence, while one is behind or in the future.
    pub fn progress(&self) -> Option<i64> {
        self.by_id.values().all(|watcher| self.is_synced(watcher)).then_some(self.seen)
    }

    /// The revision for a periodic progress mark, if this watcher wants them and is synced.
    pub fn progress_of(&self, id: WatchId) -> Option<i64> {
        let watcher = self.by_id.get(&id)?;
        (watcher.request.progress_notify && self.is_synced(watcher)).then_some(self.seen)
    }

    fn is_synced(&self, watcher: &Watcher) -> bool {
        !watcher.catching_up && watcher.request.start_revision <= self.seen
    }

    /// Where a watcher stands.
    pub fn position(&self, id: WatchId) -> Option<Position> {
        let watcher = self.by_id.get(&id)?;
        Some(if watcher.catching_up {
            Position::CatchingUp { next_revision: watcher.floor }
        } else if self.is_synced(watcher) {
            Position::Synced
        } else {
            Position::Future { start_revision: watcher.request.start_revision }
        })
    }

    /// The watchers' numbers, ascending.
    pub fn ids(&self) -> impl Iterator<Item = WatchId> {
        self.by_id.keys().copied()
    }

    /// How many watchers there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

impl Watcher {
    fn wants(&self, event: &Event) -> bool {
        let filtered = match event.kind {
            EventKind::Put => self.request.no_put,
            EventKind::Delete => self.request.no_delete,
        };
        !filtered && KeyRange::new(&self.request.key, &self.request.range_end).contains(&event.kv.key)
    }

    /// Wanted events as this watcher gets them: none, one batch, or fragments of one.
    fn batches(&self, revision: i64, mut events: Vec<Event>) -> impl Iterator<Item = WatchBatch> + use<> {
        if !self.request.prev_kv {
            for event in &mut events {
                event.prev_kv = None;
            }
        }
        let pieces = match events.is_empty() {
            true => Vec::new(),
            false if self.request.fragment => split(events, MAX_REQUEST_BYTES),
            false => vec![events],
        };
        let last = pieces.len();
        pieces.into_iter().zip(1..).map(move |(events, number)| WatchBatch {
            revision,
            events,
            fragment: number < last,
        })
    }
}

/// Pieces that stay below `max_bytes` each, unless a single event is larger.
fn split(events: Vec<Event>, max_bytes: usize) -> Vec<Vec<Event>> {
    let mut pieces: Vec<Vec<Event>> = Vec::new();
    let mut filled = 0;
    for event in events {
        let bytes = event_bytes(&event);
        match pieces.last_mut() {
            Some(piece) if filled + bytes < max_bytes => {
                filled += bytes;
                piece.push(event);
            }
            _ => {
                filled = bytes;
                pieces.push(vec![event]);
            }
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::{MAX_REQUEST_BYTES, State, WatchBatch, WatchRequest, Watchers, event_bytes};
    use crate::kv::command::{Command, DeleteRangeRequest, PutRequest};
    use crate::types::LeaseId;

    fn put(state: &mut State, key: &str, length: usize) {
        let (key, value, lease) = (key.into(), vec![0; length], LeaseId(0));
        let request = PutRequest { key, value, lease, prev_kv: false, ignore_value: false, ignore_lease: false };
        state.apply(&Command::Put(request)).response.unwrap();
    }

    /// Deleting large pairs makes one revision that is larger than any request may be.
    fn batches_of_a_large_deletion(fragment: bool) -> Vec<WatchBatch> {
        let mut state = State::new();
        for key in ["a", "b", "c", "d", "e"] {
            put(&mut state, key, 600_000);
        }
        let mut watchers = Watchers::new(&state);
        let range_end = vec![0];
        let request = WatchRequest { range_end: range_end.clone(), prev_kv: true, fragment, ..WatchRequest::default() };
        watchers.create(&state, request).unwrap();
        let delete = DeleteRangeRequest { key: vec![0], range_end, prev_kv: false };
        let applied = state.apply(&Command::DeleteRange(delete));
        watchers.on_applied(&applied).into_iter().map(|(_, batch)| batch).collect()
    }

    #[test]
    fn large_batches_are_split_for_those_who_asked() {
        let pieces = batches_of_a_large_deletion(true);
        let shape: Vec<_> = pieces.iter().map(|piece| (piece.events.len(), piece.fragment)).collect();
        assert_eq!(shape, [(2, true), (2, true), (1, false)]);
        for piece in &pieces {
            assert!(piece.events.iter().map(event_bytes).sum::<usize>() < MAX_REQUEST_BYTES);
            assert_eq!(piece.revision, 7);
        }
        let whole = batches_of_a_large_deletion(false);
        assert_eq!(whole.len(), 1);
        let joined: Vec<_> = pieces.into_iter().flat_map(|piece| piece.events).collect();
        assert_eq!(whole[0].events, joined);
    }

    #[test]
    fn catching_up_stops_at_about_a_requests_size() {
        let mut state = State::new();
        for _ in 0..6 {
            put(&mut state, "k", 600_000);
        }
        let mut watchers = Watchers::new(&state);
        let request = WatchRequest { key: b"k".to_vec(), start_revision: 2, ..WatchRequest::default() };
        watchers.create(&state, request).unwrap();
        let mut sizes = Vec::new();
        while watchers.is_behind() {
            let served = watchers.catch_up(&state, 1000);
            sizes.push(served.len());
            assert!(sizes.len() < 10, "each call brings something");
        }
        // Previous pairs are read, and counted, before they are left out.
        assert_eq!(sizes, [1, 1, 1]);
    }
}
