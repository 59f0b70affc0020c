//! What was counted: sessions and bytes of each backend, and what became of clients without one.
//!
//! Sessions write, REST and metrics read; nothing here decides. Counters start at zero with the process.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::target::{Target, least_connected};
use crate::agent::snapshot::RouterBackend;
use crate::types::NodeName;

/// One backend of one port.
#[derive(Debug, Default)]
pub struct Backend {
    address: Mutex<String>,
    sessions: AtomicU64,
    sessions_total: AtomicU64,
    drained: AtomicU64,
    reset: AtomicU64,
    failed: AtomicU64,
    from_clients: AtomicU64,
    to_clients: AtomicU64,
}

impl Backend {
    /// Bytes on their way to PostgreSQL.
    pub fn count_from_client(&self, bytes: usize) {
        self.from_clients.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes on their way to the client.
    pub fn count_to_client(&self, bytes: usize) {
        self.to_clients.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A session ended at a boundary, by us.
    pub fn count_drained(&self) {
        self.drained.fetch_add(1, Ordering::Relaxed);
    }

    /// A session was cut off.
    pub fn count_reset(&self) {
        self.reset.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection was not taken.
    pub fn count_failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }
}

/// A session that is counted as long as this lives.
#[derive(Debug)]
pub struct Seat {
    backend: Arc<Backend>,
}

impl Seat {
    fn take(backend: &Arc<Backend>) -> Self {
        backend.sessions.fetch_add(1, Ordering::Relaxed);
        Self { backend: Arc::clone(backend) }
    }

    /// Its backend.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// The session has begun: until now it was only being opened.
    pub fn opened(&self) {
        self.backend.sessions_total.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.backend.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The backends of one port, by name.
#[derive(Debug, Default)]
pub struct Backends {
    by_name: Mutex<BTreeMap<NodeName, Arc<Backend>>>,
    turn: AtomicU64,
}

impl Backends {
    /// A seat at this target.
    pub fn seat(&self, target: &Target) -> Seat {
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        Seat::take(entry(&mut by_name, target))
    }

    /// A seat at the target with the fewest sessions; none without targets.
    pub fn least_connected(&self, targets: &[Target]) -> Option<(Target, Seat)> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        let backends: Vec<Arc<Backend>> =
            targets.iter().map(|target| Arc::clone(entry(&mut by_name, target))).collect();
        let sessions: Vec<u64> = backends.iter().map(|backend| backend.sessions.load(Ordering::Relaxed)).collect();
        let chosen = least_connected(&sessions, turn)?;
        Some((targets.get(chosen)?.clone(), Seat::take(backends.get(chosen)?)))
    }

    /// Sessions at one backend now.
    pub fn sessions(&self, name: &NodeName) -> u64 {
        let by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        by_name.get(name).map_or(0, |backend| backend.sessions.load(Ordering::Relaxed))
    }

    /// All of it, for the outside.
    pub fn status(&self) -> Vec<RouterBackend> {
        let by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        by_name
            .iter()
            .map(|(name, backend)| RouterBackend {
                name: name.clone(),
                address: backend.address.lock().unwrap_or_else(PoisonError::into_inner).clone(),
                sessions: read(&backend.sessions),
                sessions_total: read(&backend.sessions_total),
                drained_total: read(&backend.drained),
                reset_total: read(&backend.reset),
                failed_total: read(&backend.failed),
                bytes_from_clients: read(&backend.from_clients),
                bytes_to_clients: read(&backend.to_clients),
            })
            .collect()
    }
}

fn entry<'a>(by_name: &'a mut BTreeMap<NodeName, Arc<Backend>>, target: &Target) -> &'a Arc<Backend> {
    let backend = by_name.entry(target.name.clone()).or_default();
    let address = format!("{}:{}", target.host, target.port);
    *backend.address.lock().unwrap_or_else(PoisonError::into_inner) = address;
    backend
}
