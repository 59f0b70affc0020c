//! The replicated state machine: applies committed entries to `kv::State`, tells who waits.
//!
//! `log -> apply -> state (readable) -> revision watch, events, lease feed, answer to the proposer`
//!
//! The state lives in memory. After a restart it is rebuilt from the newest snapshot and the log.
//! Nothing here reads a clock or draws a number: equal logs give equal states.

use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, SnapshotMeta as EngineMeta};
use tokio::sync::{broadcast, watch};

use super::error::Error;
use super::lease_clock::{LeaseChange, LeaseFeed};
use super::snapshot::{Header, Snapshots};
use super::types::{Entry, LogId, Reply, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use crate::kv;
use crate::kv::command::{Command, Event, Response};

/// How many entries a slow watcher may lag before it must read the state afresh.
const EVENTS: usize = 256;
/// What is larger than this is told as a jump: together with [`EVENTS`] it bounds what slow watchers hold in memory.
const EVENT_BYTES: usize = 256 * 1024;

/// What watchers are told: one applied command that changed keys, or a jump.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The store's revision after it.
    pub revision: i64,
    /// The changes, in order; empty for a jump.
    pub events: Vec<Event>,
    /// What changed is not told one by one, because it is too much or the state came as a leader's snapshot: the state
    /// and its history have it.
    pub restored: bool,
}

/// The state with its position in the log.
pub struct Position {
    /// The key-value state.
    pub kv: kv::State,
    /// The last applied entry.
    pub last: Option<LogId>,
    /// The last applied membership.
    pub membership: StoredMembership,
}

struct Shared {
    position: RwLock<Position>,
    snapshots: Snapshots,
    revision: watch::Sender<i64>,
    /// Number of applied entries, that is, the index after the last applied one.
    applied: watch::Sender<u64>,
    events: broadcast::Sender<Arc<Applied>>,
    leases: LeaseFeed,
}

/// The state machine; clones share it.
#[derive(Clone)]
pub struct Machine {
    shared: Arc<Shared>,
}

impl Machine {
    /// An empty state over a directory of snapshots; the engine restores from there.
    pub fn new(snapshots: Snapshots) -> Self {
        let kv = kv::State::new();
        let shared = Shared {
            revision: watch::Sender::new(kv.revision()),
            position: RwLock::new(Position { kv, last: None, membership: StoredMembership::default() }),
            snapshots,
            applied: watch::Sender::new(0),
            events: broadcast::Sender::new(EVENTS),
            leases: LeaseFeed::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The state, for reading.
    pub fn read(&self) -> RwLockReadGuard<'_, Position> {
        self.shared.position.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Position> {
        // A panic inside `apply` poisons the lock and ends the engine, which ends the process.
        self.shared.position.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store's revision, each time it grows.
    pub fn revision(&self) -> watch::Receiver<i64> {
        self.shared.revision.subscribe()
    }

    /// The number of applied entries, each time it grows.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.shared.applied.subscribe()
    }

    /// Changes from now on.
    pub fn events(&self) -> broadcast::Receiver<Arc<Applied>> {
        self.shared.events.subscribe()
    }

    /// Changes of leases.
    pub fn leases(&self) -> &LeaseFeed {
        &self.shared.leases
    }

    /// The newest snapshot's description.
    pub fn snapshot(&self) -> Option<Header> {
        self.shared.snapshots.current()
    }

    /// Applies one entry.
    fn apply_one(&self, entry: Entry) -> (Reply, Option<Applied>) {
        let mut position = self.write();
        let id = entry.log_id();
        position.last = Some(id);
        match entry.payload {
            EntryPayload::Blank => (Reply::Nothing, None),
            EntryPayload::Membership(membership) => {
                position.membership = StoredMembership::new(Some(id), membership);
                (Reply::Nothing, None)
            }
            EntryPayload::Normal(proposal) => {
                let kv::Applied { response, events } = position.kv.apply(&proposal.0);
                let revision = position.kv.revision();
                drop(position);
                self.feed_leases(&proposal.0, &response);
                let news = (!events.is_empty()).then(|| told(revision, events));
                (Reply::Done(response), news)
            }
        }
    }

    fn feed_leases(&self, command: &Command, response: &Result<Response, kv::Error>) {
        let leases = &self.shared.leases;
        if let (Command::Many(commands), Ok(Response::Many(responses))) = (command, response) {
            return commands.iter().zip(responses).for_each(|(command, response)| self.feed_leases(command, response));
        }
        match (command.inner(), response) {
            (_, Ok(Response::LeaseGrant { id, ttl_ms, .. })) => leases.push(LeaseChange::Granted(*id, *ttl_ms)),
            (Command::LeaseRevoke { id }, Ok(_)) => leases.push(LeaseChange::Gone(*id)),
            (_, Ok(Response::LeasesExpire { expired, .. })) => {
                for id in expired {
                    leases.push(LeaseChange::Gone(*id));
                }
            }
            _ => {}
        }
    }

    fn publish(&self, news: Option<Applied>, applied: u64) {
        if let Some(news) = news {
            self.shared.revision.send_replace(news.revision);
            // An error only says that nobody is watching.
            let _ = self.shared.events.send(Arc::new(news));
        }
        self.shared.applied.send_replace(applied);
    }

    /// Serialises the state as it is now and makes it the newest snapshot.
    fn take_snapshot(&self) -> io::Result<Snapshot> {
        let (meta, body) = {
            let position = self.read();
            let meta = EngineMeta { last_log_id: position.last, last_membership: position.membership.clone() };
            (meta, Bytes::from(position.kv.to_bytes()))
        };
        self.shared.snapshots.save(&Header::new(&meta, &body), &body).map_err(io::Error::other)?;
        Ok(Snapshot { meta, snapshot: body })
    }

    fn restore(&self, meta: &SnapshotMeta, body: &Bytes) -> Result<(), Error> {
        let header = Header::new(meta, body);
        let kv = kv::State::from_bytes(body).map_err(|e| Error::Start { why: format!("read snapshot: {e}") })?;
        self.shared.snapshots.save(&header, body)?;
        let revision = kv.revision();
        *self.write() = Position { kv, last: meta.last_log_id, membership: meta.last_membership.clone() };
        self.shared.leases.push(LeaseChange::Everything);
        let applied = meta.last_log_id.map_or(0, |id| id.index + 1);
        self.publish(Some(Applied { revision, events: Vec::new(), restored: true }), applied);
        Ok(())
    }
}

/// What watchers are told of an entry's changes.
fn told(revision: i64, events: Vec<Event>) -> Applied {
    let size = |event: &Event| {
        let before = event.prev_kv.as_ref().map_or(0, |pair| pair.value.len());
        event.kv.key.len() + event.kv.value.len() + before
    };
    let restored = events.iter().map(size).sum::<usize>() > EVENT_BYTES;
    Applied { revision, events: if restored { Vec::new() } else { events }, restored }
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let machine = self.clone();
        tokio::task::spawn_blocking(move || machine.take_snapshot()).await.map_err(io::Error::other)?
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Machine;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let position = self.read();
        Ok((position.last, position.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let applied = entry.log_id().index + 1;
            let (reply, news) = self.apply_one(entry);
            self.publish(news, applied);
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Machine {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Bytes) -> Result<(), io::Error> {
        let machine = self.clone();
        let meta = meta.clone();
        let restored = tokio::task::spawn_blocking(move || machine.restore(&meta, &snapshot)).await;
        restored.map_err(io::Error::other)?.map_err(io::Error::other)
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let machine = self.clone();
        let loaded = tokio::task::spawn_blocking(move || machine.shared.snapshots.load()).await;
        let loaded = loaded.map_err(io::Error::other)?.map_err(io::Error::other)?;
        Ok(loaded.map(|(header, body)| Snapshot { meta: header.meta(), snapshot: body }))
    }
}
