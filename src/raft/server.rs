//! The incoming side: `GET /raft` on the main port is handed over to the members' protocol.
//!
//! `upgrade -> handshake (bounded in time and number) -> frames -> answers`
//!
//! Appends of one connection are given to the engine in their order and answered in it; everything
//! else is answered as it gets done. Nothing is accepted before the handshake is through.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request as HttpRequest, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response as HttpResponse};
use axum::routing::get;
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper_util::rt::TokioIo;
use openraft::raft::AppendEntriesRequest;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use super::auth::{self, AuthError, Key, Peer, Wire};
use super::codec;
use super::error::StoreError;
use super::node::Node;
use super::snapshot::{Header, MAX_BODY};
use super::types::{Snapshot, TypeConfig, Vote};
use super::wire::{ClientError, Frame, Kind, MAX_FRAME, Request, Response};
use crate::telemetry::clock;
use crate::tls::Session;
use crate::types::Mono;

/// What the connection is upgraded to.
pub const PROTOCOL: &str = "howdah-raft/1";
/// Strangers can hold so many for two seconds each; members still get in beside them.
const HANDSHAKES: usize = 256;
const CONNECTIONS: usize = 1024;
/// Requests of one connection that are worked on at the same time.
const IN_FLIGHT: usize = 256;
const ANSWERS: usize = 256;
/// Appends whose answer is outstanding, on one connection.
const APPENDS: usize = 64;
const LOG_EVERY: Duration = Duration::from_secs(5);

/// Serves other members. Cheap to clone; put it into the router of the main port with [`raft_routes`].
#[derive(Clone)]
pub struct RaftServer {
    node: Arc<Node>,
    handshakes: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    refusals: Arc<Mutex<Refusals>>,
}

#[derive(Default)]
struct Refusals {
    logged: Option<Mono>,
    suppressed: u64,
}

impl RaftServer {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self {
            node,
            handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            refusals: Arc::default(),
        }
    }

    fn log_refusal(&self, error: &AuthError) {
        let now = clock::now();
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.logged.is_some_and(|at| now.since(at) < LOG_EVERY) {
            refusals.suppressed += 1;
            return;
        }
        let suppressed = std::mem::take(&mut refusals.suppressed);
        refusals.logged = Some(now);
        tracing::warn!(why = %error, suppressed, "raft: refused a connection");
    }

    /// Speaks the members' protocol on a connection, until it ends.
    ///
    /// `binding`: the session of TLS that the connection runs over, if there is one.
    pub async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(&self, io: S, binding: Option<[u8; 32]>) {
        let Ok(_connection) = self.connections.try_acquire() else {
            return self.log_refusal(&AuthError::Refused("too many connections".to_owned()));
        };
        let accepted = {
            let Ok(_handshake) = self.handshakes.try_acquire() else {
                return self.log_refusal(&AuthError::Refused("too many handshakes at once".to_owned()));
            };
            let local = self.node.presence.local();
            match timeout(auth::TIMEOUT * 2, auth::accept(io, Key(&self.node.presence.secret, binding), &local)).await {
                Err(_) => Err(AuthError::Io(io::ErrorKind::TimedOut.into())),
                Ok(result) => result,
            }
        };
        match accepted {
            Ok((wire, peer)) => {
                tracing::debug!(peer = peer.name, class = ?peer.class, "raft: member connected");
                tokio::select! {
                    () = converse(Arc::clone(&self.node), wire, peer) => {}
                    () = self.node.stopping.cancelled() => {}
                }
            }
            Err(error) => self.log_refusal(&error),
        }
    }
}

/// The route on which members meet. Merge it into the main port's router; the server that runs it
/// must serve connections with upgrades enabled, and should set `TCP_NODELAY`.
pub fn raft_routes(server: RaftServer) -> Router {
    Router::new().route("/raft", get(hand_over)).with_state(server)
}

fn wants(headers: &HeaderMap, name: header::HeaderName, what: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case(what))
}

async fn hand_over(State(server): State<RaftServer>, mut request: HttpRequest) -> HttpResponse {
    let headers = request.headers();
    if !wants(headers, header::CONNECTION, "upgrade") || !wants(headers, header::UPGRADE, PROTOCOL) {
        let required = [(header::UPGRADE, PROTOCOL)];
        return (StatusCode::UPGRADE_REQUIRED, required, "this is where members meet\n").into_response();
    }
    let binding = request.extensions().get::<Session>().and_then(|session| session.binding);
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match timeout(auth::TIMEOUT, upgrade).await {
            Ok(Ok(io)) => server.serve(TokioIo::new(io), binding).await,
            Ok(Err(error)) => tracing::debug!(%error, "raft: upgrade failed"),
            Err(_) => tracing::debug!("raft: upgrade took too long"),
        }
    });
    let switch = [(header::CONNECTION, "upgrade"), (header::UPGRADE, PROTOCOL)];
    (StatusCode::SWITCHING_PROTOCOLS, switch, Body::empty()).into_response()
}

/// A snapshot on its way in.
struct Incoming {
    vote: Vote,
    header: Header,
    body: BytesMut,
}

struct Conversation {
    node: Arc<Node>,
    answers: mpsc::Sender<(u64, Response)>,
    appends: mpsc::Sender<(u64, AppendEntriesRequest<TypeConfig>)>,
    in_flight: Arc<Semaphore>,
    incoming: Option<Incoming>,
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(node: Arc<Node>, wire: Wire<S>, peer: Peer) {
    let (sink, stream) = wire.split();
    let (answers, to_write) = mpsc::channel(ANSWERS);
    let (appends, to_append) = mpsc::channel(APPENDS);
    let appender = append_in_order(Arc::clone(&node), to_append, answers.clone());
    let conversation =
        Conversation { node, answers, appends, in_flight: Arc::new(Semaphore::new(IN_FLIGHT)), incoming: None };
    let why = tokio::select! {
        result = conversation.read(stream) => result.err(),
        result = write(sink, to_write) => result.err(),
        () = appender => None,
    };
    let why = why.map(|e| e.to_string()).unwrap_or_default();
    tracing::debug!(peer = peer.name, class = ?peer.class, why, "raft: member's connection ended");
}

async fn write<S: AsyncWrite + Unpin>(
    mut sink: SplitSink<Wire<S>, Bytes>,
    mut answers: mpsc::Receiver<(u64, Response)>,
) -> io::Result<()> {
    while let Some(first) = answers.recv().await {
        let mut next = Some(first);
        while let Some((id, response)) = next.take() {
            let mut payload = codec::encode(&response).map_err(io::Error::other)?;
            if payload.len() > MAX_FRAME {
                // Only an answer with many pairs in it can be that long; it was applied.
                let unknown = ClientError::Store(StoreError::Timeout { maybe_applied: true });
                payload = codec::encode(&Response::Client(Err(unknown))).map_err(io::Error::other)?;
            }
            let payload = Bytes::from(payload);
            sink.feed(Frame { kind: Kind::Response, id, payload }.to_bytes()).await?;
            next = answers.try_recv().ok();
        }
        sink.flush().await?;
    }
    Ok(())
}

/// Gives appends to the engine in their order, without waiting for the disk in between.
async fn append_in_order(
    node: Arc<Node>,
    mut requests: mpsc::Receiver<(u64, AppendEntriesRequest<TypeConfig>)>,
    answers: mpsc::Sender<(u64, Response)>,
) {
    let mut working: FuturesOrdered<BoxFuture<'static, (u64, Response)>> = FuturesOrdered::new();
    loop {
        tokio::select! {
            biased;
            Some(answer) = working.next() => {
                if answers.send(answer).await.is_err() {
                    return;
                }
            }
            request = requests.recv(), if working.len() < APPENDS => {
                let Some((id, rpc)) = request else { return };
                let node = Arc::clone(&node);
                working.push_back(Box::pin(async move { (id, node.append(rpc).await) }));
            }
        }
    }
}

impl Conversation {
    async fn read<S: AsyncRead + AsyncWrite + Unpin>(mut self, mut stream: SplitStream<Wire<S>>) -> io::Result<()> {
        while let Some(bytes) = stream.next().await {
            let frame = Frame::from_bytes(bytes?)?;
            if frame.kind != Kind::Request {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "frame is no request"));
            }
            let request: Request =
                codec::decode(&frame.payload).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            self.handle(frame.id, request).await?;
        }
        Ok(())
    }

    async fn handle(&mut self, id: u64, request: Request) -> io::Result<()> {
        match request {
            Request::Append(rpc) => match self.appends.try_send((id, rpc)) {
                Ok(()) => Ok(()),
                // Never wait here, as below: the leader sends it again.
                Err(_) => self.answer(id, Response::NotReady("too many appends wait for the disk".to_owned())).await,
            },
            Request::SnapshotBegin(vote, header) => {
                if header.length > MAX_BODY {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "snapshot is too large"));
                }
                self.incoming = Some(Incoming { vote, header, body: BytesMut::new() });
                self.answer(id, Response::SnapshotProgress).await
            }
            Request::SnapshotChunk(piece) => {
                let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
                let incoming = self.incoming.as_mut().ok_or_else(|| bad("piece of no snapshot"))?;
                if incoming.body.len() as u64 + piece.len() as u64 > incoming.header.length {
                    return Err(bad("snapshot is longer than it said"));
                }
                incoming.body.extend_from_slice(&piece);
                self.answer(id, Response::SnapshotProgress).await
            }
            Request::SnapshotEnd => {
                let response = match self.incoming.take() {
                    Some(incoming) if incoming.header.fits(&incoming.body) => {
                        let meta = incoming.header.meta();
                        let snapshot = Snapshot { meta, snapshot: incoming.body.freeze() };
                        self.node.install(incoming.vote, snapshot).await
                    }
                    Some(_) | None => Response::NotReady("the snapshot did not arrive completely".to_owned()),
                };
                self.answer(id, response).await
            }
            // Answered from memory, at once: lease renewals wait for it.
            Request::Confirm { term, leader } => {
                let response = Response::Confirm(self.node.confirms(term, leader));
                self.answer(id, response).await
            }
            Request::Client(..) => match Arc::clone(&self.in_flight).try_acquire_owned() {
                Ok(permit) => {
                    self.answer_later(id, request, Some(permit));
                    Ok(())
                }
                // Never wait here: votes come over this connection too.
                Err(_) => self.answer(id, Response::NotReady("too many requests".to_owned())).await,
            },
            Request::State
            | Request::Vote(_)
            | Request::PreVote(_)
            | Request::Transfer(_)
            | Request::Invite(_)
            | Request::Reaches(_) => {
                self.answer_later(id, request, None);
                Ok(())
            }
        }
    }

    async fn answer(&self, id: u64, response: Response) -> io::Result<()> {
        self.answers.send((id, response)).await.map_err(io::Error::other)
    }

    fn answer_later(&self, id: u64, request: Request, permit: Option<OwnedSemaphorePermit>) {
        let (node, answers) = (Arc::clone(&self.node), self.answers.clone());
        tokio::spawn(async move {
            let response = node.serve(request).await;
            drop(permit);
            // An error says that the connection is gone; the asker will ask again.
            let _ = answers.send((id, response)).await;
        });
    }
}
