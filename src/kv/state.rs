//! The store, and what each command does to it.
//!
//! ```text
//!   apply: check (no state) -> the command's own function -> Applied { response, events }
//! ```
//!
//! Writing is in `write`, transactions in `txn`, reading in `range`, history in `history`.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use super::auth::Auth;
use super::check;
use super::command::{Command, Event, KeyValue, RangeRequest, RangeResponse, Response, TxnRequest, TxnResponse};
use super::error::Error;
use super::key_index::KeyHistory;
use super::key_range::prefix_end;
use super::lease::{LeaseView, Leases};
use super::revision::Revision;
use super::write::Writer;
use super::{range, txn};
use crate::types::LeaseId;

/// Bookkeeping per key, per change and per lease, for [`State::size_bytes`]: tree and list entries,
/// allocation headers. An estimate, but the same on every member.
const KEY_OVERHEAD: u64 = 192;
const CHANGE_OVERHEAD: u64 = 96;
const LEASE_OVERHEAD: u64 = 96;

/// The whole store at one point of the log.
///
/// Fresh, it is at revision 1 with nothing compacted (-1), as a fresh etcd is.
#[derive(Debug, PartialEq, Eq)]
pub struct State {
    pub(super) revision: i64,
    pub(super) compact_revision: i64,
    pub(super) keys: BTreeMap<Arc<[u8]>, KeyHistory>,
    /// Every change at or after the compact revision, in order.
    pub(super) log: VecDeque<(Revision, Arc<[u8]>)>,
    pub(super) leases: Leases,
    pub(super) auth: Auth,
    /// Bytes of keys and changes, without leases.
    pub(super) data_bytes: u64,
}

/// What came of one command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The answer for the one who asked.
    pub response: Result<Response, Error>,
    /// The changes, in order. All of one revision, but for expired leases and several commands: there each has its own.
    pub events: Vec<Event>,
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    /// An empty store.
    pub fn new() -> Self {
        Self {
            revision: 1,
            compact_revision: -1,
            keys: BTreeMap::new(),
            log: VecDeque::new(),
            leases: Leases::default(),
            auth: Auth::default(),
            data_bytes: 0,
        }
    }

    /// Apply the next command of the log. The caller sees to it that each is applied exactly once.
    ///
    /// A refused command changes nothing. Equal states answer equally and stay equal.
    pub fn apply(&mut self, command: &Command) -> Applied {
        match self.run(command) {
            Ok((response, events)) => Applied { response: Ok(response), events },
            Err(error) => Applied { response: Err(error), events: Vec::new() },
        }
    }

    fn run(&mut self, command: &Command) -> Result<(Response, Vec<Event>), Error> {
        check::command(command)?;
        self.run_checked(command)
    }

    fn run_checked(&mut self, command: &Command) -> Result<(Response, Vec<Event>), Error> {
        match command {
            Command::Many(commands) => {
                let (mut responses, mut events) = (Vec::with_capacity(commands.len()), Vec::new());
                for command in commands {
                    let mut applied = self.apply(command);
                    responses.push(applied.response);
                    events.append(&mut applied.events);
                }
                Ok((Response::Many(responses), events))
            }
            Command::As { user, command } => {
                self.permits(user, command)?;
                self.run_checked(command)
            }
            Command::ByToken { token, command } => {
                self.permits(self.auth.user_by_token(*token)?, command)?;
                self.run_checked(command)
            }
            Command::Auth(change) => {
                self.auth.apply(change)?;
                Ok((Response::Auth { revision: self.revision }, Vec::new()))
            }
            Command::Put(request) => {
                // A put by itself looks at its lease first, one in a transaction last. Source: etcd's `apply.go`.
                txn::check_lease(self, request)?;
                txn::check_put(self, request)?;
                let mut writer = Writer::new(self);
                let response = writer.put(request);
                Ok((Response::Put(response), writer.finish()))
            }
            Command::DeleteRange(request) => {
                let mut writer = Writer::new(self);
                let response = writer.delete_range(request);
                Ok((Response::DeleteRange(response), writer.finish()))
            }
            Command::Txn(request) => {
                let (response, events) = txn::apply(self, request)?;
                Ok((Response::Txn(response), events))
            }
            Command::Compact { revision } => {
                self.compact(*revision)?;
                Ok((Response::Compact { revision: self.revision }, Vec::new()))
            }
            Command::LeaseGrant { id, ttl_ms } => {
                self.leases.grant(*id, *ttl_ms)?;
                Ok((Response::LeaseGrant { revision: self.revision, id: *id, ttl_ms: *ttl_ms }, Vec::new()))
            }
            Command::LeaseRevoke { id } => {
                let events = self.end_lease(*id).ok_or(Error::LeaseNotFound)?;
                Ok((Response::LeaseRevoke { revision: self.revision }, events))
            }
            Command::LeasesExpire { ids } => {
                let (mut expired, mut events) = (Vec::new(), Vec::new());
                for &id in ids {
                    if let Some(deleted) = self.end_lease(id) {
                        expired.push(id);
                        events.extend(deleted);
                    }
                }
                Ok((Response::LeasesExpire { revision: self.revision, expired }, events))
            }
        }
    }

    /// Remove a lease and, in one revision, its keys. `None` if there is no such lease.
    fn end_lease(&mut self, id: LeaseId) -> Option<Vec<Event>> {
        let keys = self.leases.remove(id)?;
        let mut writer = Writer::new(self);
        for key in &keys {
            writer.delete(key);
        }
        Some(writer.finish())
    }

    fn compact(&mut self, revision: i64) -> Result<(), Error> {
        if revision <= self.compact_revision {
            return Err(Error::Compacted { compact_revision: self.compact_revision });
        }
        if revision > self.revision {
            return Err(Error::FutureRevision { revision: self.revision });
        }
        self.compact_revision = revision;
        // Only a key that changed at or before `revision` since the last compaction can have
        // anything to forget, and all those changes are in the log.
        let reached = self.log.partition_point(|(at, _)| at.main <= revision);
        for (_, key) in self.log.range(..reached) {
            // A key that changed several times may be gone already.
            let Some(history) = self.keys.get_mut(key) else { continue };
            let mut freed = 0;
            history.compact(revision, |value| freed += change_size(value));
            if history.len() == 0 {
                freed += key_size(key);
                self.keys.remove(key);
            }
            self.data_bytes -= freed;
        }
        // Changes at `revision` itself can still be watched.
        let before = self.log.partition_point(|(at, _)| at.main < revision);
        self.log.drain(..before);
        if self.log.capacity() > 4 * self.log.len() + 64 {
            self.log.shrink_to_fit();
        }
        Ok(())
    }

    /// Refuse what can be refused without looking at the state: sizes, counts, contradictions, empty keys.
    /// To be called before proposing, so that the log holds no nonsense; `apply` calls it again.
    pub fn check(&self, command: &Command) -> Result<(), Error> {
        check::command(command)
    }

    /// Read a range.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        check::range(request)?;
        range::check_revision(self, request.revision)?;
        Ok(range::read(self, request, self.revision))
    }

    /// Answer a transaction that only reads, whichever branch it takes; `None` if it might write,
    /// or holds an operation that sets nothing.
    pub fn read_txn(&self, request: &TxnRequest) -> Option<Result<TxnResponse, Error>> {
        txn::read(self, request)
    }

    /// The store's revision: 1 at first, one more with each command that changed a key.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The oldest revision that can be read; -1 before the first compaction.
    pub fn compact_revision(&self) -> i64 {
        self.compact_revision
    }

    /// The present pair of one key.
    pub fn get(&self, key: &[u8]) -> Option<&KeyValue> {
        self.keys.get(key)?.live()
    }

    /// The present pairs whose keys begin with `prefix`, in key order; all of them for an empty one.
    pub fn prefix<'a>(&'a self, prefix: &[u8]) -> impl Iterator<Item = &'a KeyValue> + use<'a> {
        let end = prefix_end(prefix);
        let end = if end == [0] { Bound::Unbounded } else { Bound::Excluded(end.as_slice()) };
        self.keys.range::<[u8], _>((Bound::Included(prefix), end)).filter_map(|(_, history)| history.live())
    }

    /// One lease.
    pub fn lease(&self, id: LeaseId) -> Option<LeaseView<'_>> {
        self.leases.get(id)
    }

    /// All leases with their times to live in milliseconds, by number.
    pub fn leases(&self) -> impl Iterator<Item = (LeaseId, u64)> {
        self.leases.iter()
    }

    /// An estimate of the memory that the store takes, in bytes. Equal on all members at the same point of the log.
    pub fn size_bytes(&self) -> u64 {
        self.data_bytes + self.leases.len() as u64 * LEASE_OVERHEAD
    }
}

/// What a key costs, without its changes. It is stored twice: in the tree, and in the live pair.
pub(super) fn key_size(key: &[u8]) -> u64 {
    KEY_OVERHEAD + 2 * key.len() as u64
}

/// What one change costs.
pub(super) fn change_size(value: usize) -> u64 {
    CHANGE_OVERHEAD + value as u64
}

#[cfg(test)]
mod tests {
    use super::{Command, Error, LeaseId, Response, State};
    use crate::kv::command::{DeleteRangeRequest, PutRequest};

    fn put(state: &mut State, key: String, lease: i64) {
        let request = PutRequest {
            key: key.into_bytes(),
            value: vec![7; 100],
            lease: LeaseId(lease),
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        };
        state.apply(&Command::Put(request)).response.unwrap();
    }

    fn compact(state: &mut State) {
        let revision = state.revision();
        state.apply(&Command::Compact { revision }).response.unwrap();
    }

    #[test]
    fn compaction_gives_everything_back() {
        let mut state = State::new();
        assert_eq!(state.size_bytes(), 0);
        state.apply(&Command::LeaseGrant { id: LeaseId(1), ttl_ms: 5000 }).response.unwrap();
        for round in 0..20 {
            for key in 0..50 {
                put(&mut state, format!("key{key}"), round % 2);
            }
            compact(&mut state);
            assert!(state.size_bytes() < 50 * 1000, "only the live pairs are left: {}", state.size_bytes());
            assert!(state.log.len() <= 1 && state.log.capacity() < 200);
        }
        let all = DeleteRangeRequest { key: vec![0], range_end: vec![0], prev_kv: false };
        state.apply(&Command::DeleteRange(all.clone())).response.unwrap();
        state.apply(&Command::LeaseRevoke { id: LeaseId(1) }).response.unwrap();
        put(&mut state, "last".to_owned(), 0);
        state.apply(&Command::DeleteRange(all)).response.unwrap();
        put(&mut state, "last".to_owned(), 0);
        compact(&mut state);
        assert_eq!((state.keys.len(), state.log.len()), (1, 1));
        assert_eq!(state.size_bytes(), super::key_size(b"last") + super::change_size(100));
    }

    #[test]
    fn an_invalid_command_in_the_log_is_answered_and_changes_nothing() {
        let mut state = State::new();
        let zero = state.apply(&Command::LeaseGrant { id: LeaseId(0), ttl_ms: 1 });
        assert_eq!((zero.response, zero.events), (Err(Error::LeaseNotFound), Vec::new()));
        let none = state.apply(&Command::LeasesExpire { ids: vec![LeaseId(1)] });
        assert_eq!(none.response, Ok(Response::LeasesExpire { revision: 1, expired: Vec::new() }));
        assert_eq!(state, State::new());
    }
}
