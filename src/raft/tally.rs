//! What the store counts about itself, for whoever watches it with Prometheus.
//!
//! `links, disk thread, leader's word -> counters -> Store::tally`. Nothing here decides anything.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::telemetry::histogram::Histogram;

/// Traffic with one member over the connections that this node makes.
#[derive(Debug)]
pub struct PeerTally {
    /// Bytes of requests.
    pub sent: AtomicU64,
    /// Bytes of answers.
    pub received: AtomicU64,
    /// Requests that could not be sent, or whose answer was lost with the connection.
    pub failures: AtomicU64,
    /// From a request to its answer. Bounds as etcd's: 0.1 ms to 3.3 s.
    pub round_trips: Histogram,
}

impl Default for PeerTally {
    fn default() -> Self {
        Self {
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            round_trips: Histogram::new(Duration::from_micros(100), 16),
        }
    }
}

/// All counters of one store.
#[derive(Debug, Default)]
pub struct Tally {
    peers: Mutex<BTreeMap<u64, Arc<PeerTally>>>,
    /// Leaders that took over from another one, as seen here.
    pub leader_changes: AtomicU64,
    /// Changes that were asked of this node as the leader and failed.
    pub failed: AtomicU64,
    /// Changes that this node as the leader is working on.
    pub pending: AtomicU64,
}

impl Tally {
    /// The counters of the member with that id.
    pub fn peer(&self, id: u64) -> Arc<PeerTally> {
        Arc::clone(self.peers.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default())
    }

    /// The counters of all members that were talked to.
    pub fn peers(&self) -> BTreeMap<u64, Arc<PeerTally>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Counts one more, until dropped.
pub struct Pending<'a>(&'a Tally);

impl<'a> Pending<'a> {
    /// One more change is being worked on.
    pub fn new(tally: &'a Tally) -> Self {
        tally.pending.fetch_add(1, Ordering::Relaxed);
        Self(tally)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::Relaxed);
    }
}
