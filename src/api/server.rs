//! The main port: HTTP/1.1 and HTTP/2, with TLS or without, on one listener, with upgrades.
//!
//! ```text
//! accept -> a slot (bounded) -> TLS? -> version by the first bytes -> router, with the peer's address in each request
//! ```
//! The router is whatever was merged: REST here, the members' own protocol by an HTTP upgrade beside it. Who speaks
//! without TLS where it is wanted is told so in plain words.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::auth::PeerAddress;
use super::authority::Authorities;
use crate::tls::{Acceptor, Arrival, Session, Stream};

/// Connections at a time. Load balancers and members need a few dozen.
const CONNECTIONS: usize = 1024;
/// Requests at a time on one connection. Watches of etcd's clients stay open, thousands over one connection.
const STREAMS: u32 = 16_384;
/// A client that has connected must send its request's head within this time; also bounds idle keep-alive.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
/// How long requests in progress may take to end at shutdown.
const DRAIN: Duration = Duration::from_secs(3);

/// The main port could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process has it, most likely another howdah.
    #[error("listen on {address}: the port is in use; stop what uses it, or change {key}")]
    InUse {
        /// Where.
        address: String,
        /// The setting that names it.
        key: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Anything else.
    #[error(
        "listen on {address}: check that {key} names an address of this machine and a port that this user may open"
    )]
    Failed {
        /// Where.
        address: String,
        /// The setting that names it.
        key: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// Opens the listeners of the setting `key`, one for each host.
///
/// # Errors
/// [`ListenError`], naming the address.
pub async fn listen(
    addresses: &crate::config::ListenAddresses,
    key: &'static str,
) -> Result<Vec<TcpListener>, ListenError> {
    let mut listeners = Vec::new();
    for host in &addresses.hosts {
        let host = if host == "*" { "0.0.0.0" } else { host };
        match TcpListener::bind((host, addresses.port)).await {
            Ok(listener) => listeners.push(listener),
            Err(source) => {
                let address = format!("{host}:{}", addresses.port);
                return Err(match source.kind() {
                    std::io::ErrorKind::AddrInUse => ListenError::InUse { address, key, source },
                    _ => ListenError::Failed { address, key, source },
                });
            }
        }
    }
    Ok(listeners)
}

/// What a port serves.
#[derive(Clone)]
pub struct Port {
    /// Everything.
    pub router: Router,
    /// Makes TLS of connections; none = the port does not speak it.
    pub tls: Option<Arc<Acceptor>>,
    /// What a port that speaks TLS serves to those who do not.
    pub without_tls: Option<Router>,
}

impl Port {
    /// A port that speaks no TLS.
    pub fn plain(router: Router) -> Self {
        Self { router, tls: None, without_tls: None }
    }
}

/// What who speaks no TLS is told.
const SPEAK_TLS: &str = "this port speaks TLS: use https:// instead of http://\n";

/// Serves until `shutdown`, then lets requests in progress end, for a few seconds.
pub async fn serve(listener: TcpListener, port: Port, shutdown: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let slot = tokio::select! {
            () = shutdown.cancelled() => break,
            slot = slots.clone().acquire_owned() => slot.expect("the semaphore is never closed"),
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (port, shutdown) = (port.clone(), shutdown.clone());
                connections.spawn(async move {
                    connection(stream, peer, port, shutdown).await;
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely; accepting again at once would spin.
                tracing::warn!(%error, "main port: accept failed");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    if timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await.is_err() {
        connections.shutdown().await;
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, port: Port, shutdown: CancellationToken) {
    // A connection that stays silent must not hold its slot: hyper's own deadlines begin after the first bytes.
    match timeout(HEAD_DEADLINE, stream.readable()).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) | Err(_) => return,
    }
    let _ = stream.set_nodelay(true);
    let arrival = match &port.tls {
        None => Ok(Arrival::Plain(stream)),
        Some(acceptor) => acceptor.accept(stream).await,
    };
    match arrival {
        Ok(Arrival::Secured(stream, session)) => {
            converse(stream, Some(session), peer, port.router, shutdown).await;
        }
        Ok(Arrival::Plain(stream)) => {
            let router = match port.tls {
                None => port.router,
                Some(_) => port.without_tls.unwrap_or_else(|| Router::new().fallback(speak_tls)),
            };
            converse(Stream::Plain(stream), None, peer, router, shutdown).await;
        }
        Err(error) => tracing::debug!(%peer, %error, "main port: no TLS session"),
    }
}

/// The answer to everything that came without TLS.
pub async fn speak_tls() -> (StatusCode, [(header::HeaderName, &'static str); 1], &'static str) {
    (StatusCode::BAD_REQUEST, [(header::CONNECTION, "close")], SPEAK_TLS)
}

async fn converse(
    stream: Stream,
    session: Option<Session>,
    peer: SocketAddr,
    router: Router,
    shutdown: CancellationToken,
) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(PeerAddress(peer));
        if let Some(session) = session {
            request.extensions_mut().insert(session);
        }
        let router = router.clone();
        async move { Ok::<_, Infallible>(router.oneshot(request).await.unwrap_or_else(|never| match never {})) }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE).keep_alive(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .max_concurrent_streams(STREAMS);
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(Authorities::new(stream)), service);
    tokio::pin!(serving);
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        // The client went away, or sent no HTTP: its own affair.
        tracing::debug!(%peer, %error, "main port: connection ended");
    }
}
