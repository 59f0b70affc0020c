//! Looking back: the changes since a revision, and a checksum of all that is stored.
//!
//! ```text
//!   log (revision, key) -> KeyHistory::change_at -> Event        whole revisions only
//! ```

use super::command::{Event, EventKind, KeyValue};
use super::error::Error;
use super::key_index::{KeyHistory, Pair};
use super::key_range::KeyRange;
use super::revision::Revision;
use super::state::State;

/// A piece of history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// One list per revision that touched the range, in order; each is complete.
    pub batches: Vec<Vec<Event>>,
    /// Everything before this revision has been looked at; continue here.
    pub next_revision: i64,
}

/// How much history may be taken. Counted down, and looked at only between two revisions: unless it is
/// spent before, it covers at least one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    pub events: usize,
    /// Bytes of keys and values, previous values included.
    pub bytes: usize,
    /// Changes looked at, wanted or not.
    pub changes: usize,
}

impl Budget {
    pub fn is_spent(&self) -> bool {
        self.events == 0 || self.bytes == 0 || self.changes == 0
    }
}

impl State {
    /// The changes of a range from `revision` on, grouped by revision.
    ///
    /// Stops after the revision with which `limit` events are reached, so fewer than `limit` events
    /// mean that nothing is left. A revision that has not happened yet has no events.
    ///
    /// Errors: [`Error::Compacted`] if `revision` is older than the compact revision.
    pub fn events_since(
        &self,
        revision: i64,
        key: &[u8],
        range_end: &[u8],
        limit: usize,
    ) -> Result<Vec<Vec<Event>>, Error> {
        let mut budget = Budget { events: limit.max(1), bytes: usize::MAX, changes: usize::MAX };
        self.history(revision, KeyRange::new(key, range_end), &mut budget).map(|history| history.batches)
    }

    pub(super) fn history(&self, from: i64, keys: KeyRange<'_>, budget: &mut Budget) -> Result<History, Error> {
        if from < self.compact_revision {
            return Err(Error::Compacted { compact_revision: self.compact_revision });
        }
        let mut history = History { batches: Vec::new(), next_revision: from };
        let first = self.log.partition_point(|(at, _)| at.main < from);
        for (at, key) in self.log.range(first..) {
            if at.main >= history.next_revision {
                if budget.is_spent() {
                    return Ok(history);
                }
                history.next_revision = at.main + 1;
            }
            budget.changes = budget.changes.saturating_sub(1);
            if !keys.contains(key) {
                continue;
            }
            let event = self.event(*at, key);
            budget.events = budget.events.saturating_sub(1);
            budget.bytes = budget.bytes.saturating_sub(event_bytes(&event));
            match history.batches.last_mut() {
                Some(batch) if batch[0].kv.mod_revision == at.main => batch.push(event),
                _ => history.batches.push(vec![event]),
            }
        }
        history.next_revision = from.max(self.revision + 1);
        Ok(history)
    }

    fn event(&self, at: Revision, key: &[u8]) -> Event {
        let history = self.keys.get(key).expect("a key in the log has a history");
        let change = history.change_at(key, at).expect("a change in the log is in its key's history");
        // None for a change at the compact revision: what was before it is forgotten.
        let prev_kv = history.as_of(key, at.main - 1);
        let (kind, kv) = match change.put {
            Some(pair) => (EventKind::Put, pair.to_key_value()),
            None => {
                let tombstone = KeyValue { key: key.to_vec(), mod_revision: at.main, ..KeyValue::default() };
                (EventKind::Delete, tombstone)
            }
        };
        Event { kind, kv, prev_kv: prev_kv.map(Pair::to_key_value) }
    }

    /// A checksum (CRC-32C) of everything stored up to `revision` (zero or less: now), with the compact
    /// revision and the revision it was made for. Members whose three numbers should agree, but whose
    /// checksums differ, have diverged.
    ///
    /// The value is ours: it does not equal etcd's, which depends on its file format.
    ///
    /// Errors: [`Error::Compacted`], [`Error::FutureRevision`].
    pub fn hash_kv(&self, revision: i64) -> Result<(u32, i64, i64), Error> {
        super::range::check_revision(self, revision)?;
        let upto = if revision <= 0 { self.revision } else { revision };
        let hash = self.keys.iter().fold(0, |hash, (key, history)| hash_key(hash, key, history, upto));
        Ok((hash, self.compact_revision, upto))
    }
}

fn hash_key(hash: u32, key: &[u8], history: &KeyHistory, upto: i64) -> u32 {
    let bytes = |hash, bytes: &[u8]| {
        crc32c::crc32c_append(crc32c::crc32c_append(hash, &(bytes.len() as u64).to_le_bytes()), bytes)
    };
    let number = |hash, number: i64| crc32c::crc32c_append(hash, &number.to_le_bytes());
    history.changes(key).take_while(|change| change.at.main <= upto).fold(hash, |hash, change| {
        let hash = number(number(bytes(hash, key), change.at.main), i64::from(change.at.sub));
        let Some(pair) = change.put else { return number(hash, 0) };
        let hash = number(number(hash, pair.version), pair.create_revision);
        bytes(number(hash, pair.lease.0), pair.value)
    })
}

/// About what an event takes on the wire.
pub(super) fn event_bytes(event: &Event) -> usize {
    let pair_bytes = |pair: &KeyValue| 40 + pair.key.len() + pair.value.len();
    pair_bytes(&event.kv) + event.prev_kv.as_ref().map_or(0, pair_bytes)
}

#[cfg(test)]
mod tests {
    use super::{Budget, KeyRange, State};
    use crate::kv::command::{Command, PutRequest, RequestOp, TxnRequest};
    use crate::types::LeaseId;

    fn put(key: &str) -> PutRequest {
        let (key, lease) = (key.into(), LeaseId(0));
        PutRequest { key, value: vec![0; 100], lease, prev_kv: false, ignore_value: false, ignore_lease: false }
    }

    /// Revision 2: a, b. 3: a. 4: b. 5: a, b.
    fn store() -> State {
        let mut state = State::new();
        for keys in [&["a", "b"][..], &["a"], &["b"], &["a", "b"]] {
            let success = keys.iter().map(|key| RequestOp::Put(put(key))).collect();
            state.apply(&Command::Txn(TxnRequest { success, ..TxnRequest::default() })).response.unwrap();
        }
        state
    }

    #[test]
    fn a_budget_ends_between_two_revisions() {
        let state = store();
        let ample = Budget { events: 100, bytes: 100_000, changes: 100 };
        let take = |mut budget: Budget, from| {
            let history = state.history(from, KeyRange::new(b"a", b""), &mut budget).unwrap();
            (history.batches.len(), history.next_revision, budget.is_spent())
        };
        assert_eq!(take(ample, 2), (3, 6, false));
        assert_eq!(take(Budget { events: 1, ..ample }, 2), (1, 3, true));
        assert_eq!(take(Budget { bytes: 10, ..ample }, 3), (1, 4, true));
        // Two changes of revision 2, one of them wanted; one of revision 4, unwanted.
        assert_eq!(take(Budget { changes: 1, ..ample }, 2), (1, 3, true));
        assert_eq!(take(Budget { changes: 1, ..ample }, 4), (0, 5, true));
        assert_eq!(take(ample, 6), (0, 6, false));
        assert_eq!(take(ample, 9), (0, 9, false));
    }

    #[test]
    fn whole_revisions_up_to_a_limit() {
        let state = store();
        let sizes = |limit| {
            let batches = state.events_since(0, b"a", b"\0", limit).unwrap();
            batches.iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(sizes(0), [2]);
        assert_eq!(sizes(1), [2]);
        assert_eq!(sizes(3), [2, 1]);
        assert_eq!(sizes(5), [2, 1, 1, 2]);
    }
}
