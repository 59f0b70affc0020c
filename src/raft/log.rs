//! The Raft log as the engine sees it: readable at once, durable a moment later.
//!
//! `append -> view (memory, readable) -> disk thread -> IOFlushed`
//!
//! The view keeps the newest entries, and always those that the disk does not have yet; older ones
//! are read from the disk. The last vote is also kept here, recorded *before* it is written:
//! `confirm.rs` relies on that order.
//!
//! Absent on purpose: sled (`disk.rs`) and waiting for the disk, except for a vote.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};

use super::FatalHook;
use super::codec;
use super::commit::{Committer, Done, Operation, Progress};
use super::disk::{Contents, Disk, Fact, MAX_ENTRY, RING, Reader};
use super::error::Error;
use super::types::{Entry, LogId, TypeConfig, Vote};

/// Entries kept in memory, in bytes as written, beyond those that are not durable yet.
const CACHE_BYTES: usize = 2 * 1024 * 1024;
/// At most so much goes into one message to a follower (plus one entry).
const READ_BYTES: usize = 1024 * 1024;

struct Cached {
    entry: Entry,
    size: usize,
    append: u64,
}

/// The log's state in memory.
struct View {
    purged: Option<LogId>,
    last: Option<LogId>,
    /// The first entry's index: after `purged`, or where a first append began.
    begin: u64,
    /// The newest entries, consecutive, the last one is `last`.
    cache: VecDeque<Cached>,
    cached_bytes: usize,
    /// Bytes appended since the last purge; tells when a snapshot is due before the entry count does.
    grown: u64,
    appends: u64,
    vote: Option<Vote>,
    committed: Option<LogId>,
}

/// The log store; clones share everything and also serve as readers.
#[derive(Clone)]
pub struct LogStore {
    view: Arc<Mutex<View>>,
    reader: Reader,
    committer: Committer,
}

fn index_of(id: Option<&LogId>) -> Option<u64> {
    id.map(|id| id.index)
}

fn after(id: Option<&LogId>) -> u64 {
    id.map_or(0, |id| id.index + 1)
}

fn encode_error(error: codec::CodecError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Decodes the log from what the disk holds and refuses holes.
fn recover(dir: &Path, contents: &Contents) -> Result<View, Error> {
    let damaged = |what: String| Error::Damaged { path: dir.join("log").join("db"), dir: dir.to_owned(), what };
    fn fact<T: serde::de::DeserializeOwned>(contents: &Contents, fact: Fact) -> Result<Option<T>, String> {
        let bytes = contents.facts.get(&fact);
        bytes.map(|b| codec::decode(b)).transpose().map_err(|e| format!("{fact:?}: {e}"))
    }
    let purged: Option<LogId> = fact(contents, Fact::Purged).map_err(damaged)?;
    let vote: Option<Vote> = fact(contents, Fact::Vote).map_err(damaged)?;
    let mut committed: Option<LogId> = fact(contents, Fact::Committed).map_err(damaged)?;
    let mut cache = VecDeque::new();
    let (mut last, mut cached_bytes, mut grown) = (purged, 0, 0);
    for (index, bytes) in contents.entries.range(after(purged.as_ref())..) {
        if *index != after(last.as_ref()) {
            return Err(damaged(format!("entries {} to {} are missing", after(last.as_ref()), index - 1)));
        }
        let entry: Entry = codec::decode(bytes).map_err(|e| damaged(format!("entry {index}: {e}")))?;
        if entry.log_id.index != *index || last.as_ref().is_some_and(|last| *last >= entry.log_id) {
            return Err(damaged(format!("entry {index} says that it is {}", entry.log_id)));
        }
        last = Some(entry.log_id);
        cached_bytes += bytes.len();
        grown += bytes.len() as u64;
        cache.push_back(Cached { entry, size: bytes.len(), append: 0 });
    }
    // The very first membership entry (term 0) is written before the first vote.
    if last.is_some_and(|last| last.committed_leader_id().term > 0) && vote.is_none() {
        return Err(damaged("the vote is missing".to_owned()));
    }
    // A crash while a large entry was written leaves a part of it at the very end: nobody was told of it.
    let torn = |index: u64| index < after(purged.as_ref()) || index == after(last.as_ref());
    if let Some(index) = contents.incomplete.iter().find(|index| !torn(**index)) {
        return Err(damaged(format!("entry {index} is incomplete")));
    }
    if committed > last {
        // The hint may name entries that a newer leader has replaced since.
        committed = last;
    }
    Ok(View { purged, last, begin: after(purged.as_ref()), cache, cached_bytes, grown, appends: 0, vote, committed })
}

impl LogStore {
    /// Takes over an open disk.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the log has holes or something in it cannot be decoded.
    pub fn open(disk: Disk, contents: &Contents, fatal: FatalHook) -> Result<Self, Error> {
        let view = recover(disk.dir(), contents)?;
        let reader = disk.reader();
        // Entries that a crash has left behind after they were purged.
        let removed = contents.entries.keys().chain(&contents.incomplete).copied();
        let leftovers = removed.filter(|index| *index < view.begin).collect();
        let committer = Committer::start(disk, view.purged.map_or(0, |id| id.index), leftovers, fatal)?;
        let store = Self { view: Arc::new(Mutex::new(view)), reader, committer };
        store.evict(&mut store.view());
        Ok(store)
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk thread.
    pub fn committer(&self) -> &Committer {
        &self.committer
    }

    /// What the disk thread has achieved.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.committer.progress
    }

    /// The newest vote that was handed to [`RaftLogStorage::save_vote`], durable or not.
    pub fn vote(&self) -> Option<Vote> {
        self.view().vote
    }

    /// The last entry's position.
    pub fn last(&self) -> Option<LogId> {
        self.view().last
    }

    /// Up to where the log was removed.
    pub fn purged(&self) -> Option<LogId> {
        self.view().purged
    }

    /// Entries and bytes in the log.
    pub fn size(&self) -> (u64, u64) {
        let view = self.view();
        (after(view.last.as_ref()) - after(view.purged.as_ref()), view.grown)
    }

    /// How many more entries the ring can take.
    pub fn room(&self) -> u64 {
        RING.saturating_sub(self.size().0)
    }

    fn evict(&self, view: &mut View) {
        let written = self.committer.progress.written.load(Ordering::Acquire);
        while view.cached_bytes > CACHE_BYTES && view.cache.len() > 1 {
            match view.cache.front() {
                Some(oldest) if oldest.append <= written => {
                    view.cached_bytes -= oldest.size;
                    view.cache.pop_front();
                }
                Some(_) | None => return,
            }
        }
    }

    /// Entries of `[start, end)` that exist, up to `bytes` (at least one).
    fn read(&self, start: u64, end: u64, bytes: usize) -> io::Result<Vec<Entry>> {
        let (start, end, first_cached, mut cached) = {
            let view = self.view();
            let start = start.max(view.begin);
            let end = end.min(after(view.last.as_ref()));
            let first_cached = after(view.last.as_ref()) - view.cache.len() as u64;
            let mut budget = bytes;
            let mut entries = Vec::new();
            let skip = usize::try_from(start.max(first_cached) - first_cached).unwrap_or(usize::MAX);
            let take = usize::try_from(end.saturating_sub(start.max(first_cached))).unwrap_or(usize::MAX);
            for item in view.cache.iter().skip(skip).take(take) {
                if budget < item.size && !entries.is_empty() {
                    break;
                }
                budget = budget.saturating_sub(item.size);
                entries.push(item.entry.clone());
            }
            (start, end, first_cached, entries)
        };
        if start >= end || start >= first_cached {
            return Ok(cached);
        }
        // Older entries come from the disk, outside the lock: nothing but a purge touches them.
        let mut entries = Vec::new();
        let mut budget = bytes;
        for index in start..end.min(first_cached) {
            let Some(raw) = self.reader.read(index)? else {
                if index < self.view().begin {
                    entries.clear();
                    continue;
                }
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("log entry {index} is missing")));
            };
            if budget < raw.len() && !entries.is_empty() {
                return Ok(entries);
            }
            budget = budget.saturating_sub(raw.len());
            entries.push(codec::decode(&raw).map_err(encode_error)?);
        }
        if bytes == usize::MAX || entries.is_empty() {
            entries.append(&mut cached);
        }
        Ok(entries)
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, READ_BYTES)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.vote())
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let view = self.view();
        Ok(LogState { last_purged_log_id: view.purged, last_log_id: view.last })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let bytes = codec::encode(vote).map_err(encode_error)?;
        // Memory first: whoever asks from now on must not hear the old vote any more.
        self.view().vote = Some(*vote);
        self.committer.fact(Fact::Vote, bytes).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let Some(committed) = committed else { return Ok(()) };
        self.view().committed = Some(committed);
        let bytes = codec::encode(&committed).map_err(encode_error)?;
        self.committer.submit(Operation::Hint(Fact::Committed, bytes)).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.view().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut encoded = Vec::new();
        for entry in entries {
            let bytes = codec::encode(&entry).map_err(encode_error)?;
            if bytes.len() > MAX_ENTRY {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "log entry is too large"));
            }
            encoded.push((entry, bytes));
        }
        let operation = {
            let mut view = self.view();
            let first = encoded.first().map_or_else(|| after(view.last.as_ref()), |(e, _)| e.log_id.index);
            if view.last.is_none() {
                view.begin = first;
            } else if first != after(view.last.as_ref()) {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "append would leave a hole in the log"));
            }
            let end = first + encoded.len() as u64;
            if end - after(view.purged.as_ref()) > RING {
                return Err(io::Error::new(io::ErrorKind::StorageFull, "the log's ring is full"));
            }
            view.appends += 1;
            let number = view.appends;
            let mut records = Vec::with_capacity(encoded.len());
            for (entry, bytes) in encoded {
                view.last = Some(entry.log_id);
                view.cached_bytes += bytes.len();
                view.grown += bytes.len() as u64;
                view.cache.push_back(Cached { size: bytes.len(), append: number, entry: entry.clone() });
                records.push((entry.log_id.index, bytes));
            }
            self.evict(&mut view);
            let done: Done = Box::new(move |result| callback.io_completed(result));
            Operation::Append { entries: records, number, done }
        };
        self.committer.submit(operation).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let range = {
            let mut view = self.view();
            let (from, to) = (after(last_log_id.as_ref()), index_of(view.last.as_ref()));
            let Some(to) = to.filter(|to| *to >= from) else { return Ok(()) };
            for _ in from..=to {
                if let Some(gone) = view.cache.pop_back() {
                    view.cached_bytes -= gone.size;
                }
            }
            view.last = last_log_id;
            (from, to)
        };
        self.committer.submit(Operation::Truncate(range.0, range.1)).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let operation = {
            let mut view = self.view();
            let from = after(view.purged.as_ref());
            let last = view.last.map_or(0, |last| last.index);
            if log_id.index < from {
                return Ok(());
            }
            let keep = usize::try_from(last.saturating_sub(log_id.index)).unwrap_or(usize::MAX);
            while view.cache.len() > keep {
                if let Some(gone) = view.cache.pop_front() {
                    view.cached_bytes -= gone.size;
                }
            }
            let existing = from..=log_id.index.min(last);
            let kept = after(view.last.as_ref()).saturating_sub(log_id.index + 1);
            // Sizes of entries outside memory are unknown; their average is good enough here.
            let before = after(view.last.as_ref()).saturating_sub(from).max(1);
            view.grown = view.grown * kept / before;
            view.purged = Some(log_id);
            view.begin = log_id.index + 1;
            if view.last < Some(log_id) {
                view.last = Some(log_id);
            }
            let fact = codec::encode(&log_id).map_err(encode_error)?;
            Operation::Purge { existing, upto: log_id.index, fact }
        };
        self.committer.submit(operation).await
    }
}
