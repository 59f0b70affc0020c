//! The router: one port that leads to whoever may write, another that leads to replicas, on every node.
//!
//! ```text
//! store's watch -> ClusterRecord -> target.rs (pure) -+
//! majority's confirmation --------------------------- keeper.rs -> Routes -> session.rs (one task a client)
//!                                                                             |- held while there is no target
//!                                                                             '- relay.rs, followed by frames.rs
//! ```
//! Plain TCP: authentication, TLS and everything behind them are between client and PostgreSQL. Sessions of the
//! writing port are bound to a *term*: when it ends, or cannot be confirmed any longer, they are reset at once. In a
//! planned change they end at a transaction boundary, and new ones wait for the next primary. Deliberately absent: any
//! decision about who leads, any question to PostgreSQL, polling.
//!
//! Sessions under TLS cannot be followed: they are not ended at a boundary but when their server stops, and a cancel
//! request for them is delivered by trying. PostgreSQL sees the router's address, not the client's.

pub mod backends;
pub mod cancel;
pub mod frames;
pub mod keeper;
pub mod proxy_header;
pub mod relay;
pub mod session;
pub mod socket;
pub mod startup;
pub mod target;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use keeper::{Confirm, Source};

use crate::agent::snapshot::{RouterPort, RouterStatus};
use crate::config::ClusterSettings;
use crate::config::node::RouterConfig;
use backends::Backends;
use cancel::CancelKeys;
use keeper::{Gate, Keeper, Routes};

/// Clients that have connected and not got a session yet, beyond `max_connections`. More are left to the kernel.
const WAITING_ROOM: usize = 1024;

/// How long sessions may take to end when the router stops.
const GOODBYE: Duration = Duration::from_secs(1);

/// Which port a client has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortKind {
    /// To whoever may write.
    Primary,
    /// To those who serve reads.
    Replicas,
}

/// What was counted at one port.
#[derive(Debug, Default)]
pub struct Port {
    backends: Backends,
    held: AtomicU64,
    held_total: AtomicU64,
    refused_total: AtomicU64,
    cancels_total: AtomicU64,
}

/// The open listeners; empty for a port that is off.
#[derive(Debug, Default)]
pub struct Listeners {
    /// To whoever may write.
    pub primary: Vec<TcpListener>,
    /// To replicas.
    pub replicas: Vec<TcpListener>,
}

/// What all sessions share.
pub struct Shared {
    config: RouterConfig,
    /// Kept, so that sessions outlive the keeper's end.
    _routes_sender: watch::Sender<Arc<Routes>>,
    routes: watch::Receiver<Arc<Routes>>,
    gate: Arc<Gate>,
    primary: Arc<Port>,
    replicas: Arc<Port>,
    keys: Arc<CancelKeys>,
    slots: Semaphore,
    stopping: CancellationToken,
}

impl Shared {
    fn port(&self, kind: PortKind) -> &Port {
        match kind {
            PortKind::Primary => &self.primary,
            PortKind::Replicas => &self.replicas,
        }
    }
}

/// A running router. Cheap to clone.
#[derive(Clone)]
pub struct Router {
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

impl Router {
    /// Starts to accept. `settings` hold until the record has some.
    pub fn start(config: RouterConfig, listeners: Listeners, source: Source, settings: &ClusterSettings) -> Self {
        let (routes_sender, routes) = watch::channel(Arc::new(Routes::unknown()));
        let gate = Arc::new(Gate::default());
        let (primary, replicas) = (Arc::new(Port::default()), Arc::new(Port::default()));
        let slots = Semaphore::new(usize::try_from(config.max_connections).unwrap_or(usize::MAX));
        let stopping = CancellationToken::new();
        let keeper = Keeper::new(
            source,
            routes_sender.clone(),
            Arc::clone(&gate),
            Arc::clone(&primary),
            config.maximum_lag,
            settings,
        );
        let tasks = TaskTracker::new();
        tasks.spawn(keeper.run(stopping.clone()));
        let keys = Arc::default();
        let shared = Arc::new(Shared {
            config,
            _routes_sender: routes_sender,
            routes,
            gate,
            primary,
            replicas,
            keys,
            slots,
            stopping,
        });
        let router = Self { shared, tasks };
        for (kind, listeners) in [(PortKind::Primary, listeners.primary), (PortKind::Replicas, listeners.replicas)] {
            for listener in listeners {
                router.tasks.spawn(router.clone().accept(kind, listener));
            }
        }
        router
    }

    async fn accept(self, kind: PortKind, listener: TcpListener) {
        let most = self.shared.slots.available_permits().saturating_add(WAITING_ROOM).min(Semaphore::MAX_PERMITS);
        let room = Arc::new(Semaphore::new(most));
        loop {
            let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.shared.stopping.cancelled() => return,
            };
            match accepted {
                Ok((client, peer)) => {
                    let shared = Arc::clone(&self.shared);
                    self.tasks.spawn(async move {
                        session::serve(shared, kind, client, peer).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    // Out of file descriptors, most likely; accepting again at once would spin.
                    tracing::warn!(%error, "router: accept failed");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Ends all sessions: at a boundary if they are at one, else at once.
    pub async fn stop(&self) {
        self.shared.stopping.cancel();
        self.tasks.close();
        if timeout(GOODBYE, self.tasks.wait()).await.is_err() {
            tracing::debug!("router: some sessions did not end in time");
        }
    }

    /// What it does and has done.
    pub fn status(&self) -> RouterStatus {
        let routes = Arc::clone(&self.shared.routes.borrow());
        let config = &self.shared.config;
        let port = |port: &Port, listen: String, targets: Vec<_>, waits_for: Option<String>| RouterPort {
            listen,
            targets,
            waits_for,
            held: port.held.load(Ordering::Relaxed),
            held_total: port.held_total.load(Ordering::Relaxed),
            refused_total: port.refused_total.load(Ordering::Relaxed),
            cancels_total: port.cancels_total.load(Ordering::Relaxed),
            backends: port.backends.status(),
        };
        let primary = config.listen.as_ref().map(|listen| {
            let waits_for = routes.write.as_ref().err().map(ToString::to_string);
            let targets = routes.write.iter().map(|target| target.name.clone()).collect();
            port(&self.shared.primary, listen.to_string(), targets, waits_for)
        });
        let replicas = config.listen_replicas.as_ref().map(|listen| {
            let mut targets: Vec<_> = routes.replicas.iter().map(|target| target.name.clone()).collect();
            if targets.is_empty() && config.fallback_to_primary {
                targets.extend(routes.write.iter().map(|target| target.name.clone()));
            }
            let waits_for = targets.is_empty().then(|| target::Cause::NoReplica.to_string());
            port(&self.shared.replicas, listen.to_string(), targets, waits_for)
        });
        RouterStatus { term: routes.term, primary, replicas }
    }
}
