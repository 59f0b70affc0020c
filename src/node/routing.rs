//! What the router goes by: the record as the local store applies it, and a majority's word that it still holds.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;
use tracing::info;

use crate::api;
use crate::cluster::ClusterRecord;
use crate::cluster::keys::KeySpace;
use crate::config::Config;
use crate::raft::Store;
use crate::router::{Confirm, Listeners, Router, Source};

/// One question to the majority may take so long; another follows.
const ATTEMPT: Duration = Duration::from_secs(1);

/// Starts the node's router; none when no port is configured.
pub(super) fn start(config: &Config, listeners: Listeners, store: &Store, space: &KeySpace) -> Option<Router> {
    if listeners.primary.is_empty() && listeners.replicas.is_empty() {
        return None;
    }
    make_room(config.router.max_connections);
    let source = source(store.clone(), space.clone());
    Some(Router::start(config.router.clone(), listeners, source, &config.bootstrap.settings))
}

/// Files that the rest of the node may need beside two for each client.
const OTHER_FILES: u64 = 2048;

/// Raises the limit of open files as far as clients may need it and the system allows it.
fn make_room(max_connections: u32) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let needed = u64::from(max_connections) * 2 + OTHER_FILES;
    let mut limit = getrlimit(Resource::Nofile);
    let Some(current) = limit.current.filter(|current| *current < needed) else { return };
    let raised = limit.maximum.map_or(needed, |maximum| maximum.min(needed));
    limit.current = Some(raised);
    if raised < needed || setrlimit(Resource::Nofile, limit).is_err() {
        let enough = (raised.max(current).saturating_sub(OTHER_FILES)) / 2;
        info!(limit = raised.max(current), needed, enough, "router: too few open files are allowed for all clients");
    }
}

/// Opens the router's ports.
pub(super) async fn listen(config: &Config) -> Result<Listeners> {
    let mut listeners = Listeners::default();
    if let Some(addresses) = &config.router.listen {
        listeners.primary = api::server::listen(addresses, "router.listen").await?;
    }
    if let Some(addresses) = &config.router.listen_replicas {
        listeners.replicas = api::server::listen(addresses, "router.listen_replicas").await?;
    }
    Ok(listeners)
}

/// Publishes the record whenever a key of it changes.
struct Feed {
    store: Store,
    space: KeySpace,
    record: watch::Sender<Arc<ClusterRecord>>,
    /// Number of keys and newest change: foreign keys change a thousand times a second and concern nobody here.
    seen: Mutex<(usize, i64)>,
}

impl Feed {
    fn refresh(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let read = self.store.read(|kv| {
            let prefix = self.space.prefix();
            let now =
                kv.prefix(prefix).fold((0, 0), |(count, newest), pair| (count + 1, pair.mod_revision.max(newest)));
            (now != *seen).then(|| (now, ClusterRecord::read(&self.space, kv.revision(), kv.prefix(prefix))))
        });
        if let Some((now, record)) = read {
            *seen = now;
            self.record.send_replace(Arc::new(record));
        }
    }
}

fn source(store: Store, space: KeySpace) -> Source {
    let (sender, record) = watch::channel(Arc::new(ClusterRecord::default()));
    let feed = Arc::new(Feed { store, space, record: sender, seen: Mutex::new((0, 0)) });
    feed.refresh();
    tokio::spawn({
        let feed = Arc::clone(&feed);
        let mut applied = feed.store.applied();
        async move {
            while applied.changed().await.is_ok() {
                feed.refresh();
            }
        }
    });
    let confirm: Confirm = Arc::new(move || {
        let feed = Arc::clone(&feed);
        Box::pin(async move {
            let heard = feed.store.linearize(ATTEMPT).await.is_ok();
            feed.refresh();
            heard
        })
    });
    Source { record, confirm }
}
