//! One outgoing connection to one member, for one class of traffic; made when needed, remade when lost.
//!
//! `call -> bounded queue -> [connect, handshake] -> write | read -> answer`
//!
//! A dead peer costs nothing: calls fail at once between two attempts, and attempts are spaced by
//! 50 to 200 ms. Whoever calls learns whether the request was certainly not sent ([`CallError::NotSent`]).

use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::auth::{self, AuthError, Key, Local, Wire};
use super::codec;
use super::tally::{PeerTally, Tally};
use super::wire::{Class, Frame, Kind, Request, Response};
use crate::telemetry::clock;
use crate::telemetry::redact::Secret;
use crate::tls::{Dialer, Stream};
use crate::types::Mono;

const QUEUE: usize = 256;
/// A connection, and a session of TLS on it, each must be there in this time.
pub const CONNECT: Duration = Duration::from_millis(500);
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_millis(200);
/// Sent data that nobody acknowledges for so long means that the path is dead.
const USER_TIMEOUT_MS: u32 = 2_000;
/// The same failure is logged once in this time.
const LOG_EVERY: Duration = Duration::from_secs(5);
/// A member that cannot be reached for so long is worth a line, and another one when it is back.
const AWAY: Duration = Duration::from_secs(1);

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The request certainly never left this node.
    #[error("not connected: {0}")]
    NotSent(String),
    /// The request may have been received.
    #[error("connection lost: {0}")]
    Lost(String),
    /// No answer in time; the request may have been received.
    #[error("no answer in time")]
    Timeout,
}

struct Call {
    payload: Bytes,
    answer: oneshot::Sender<Result<Bytes, CallError>>,
}

/// What every link of this node shares.
pub struct Presence {
    /// The shared secret.
    pub secret: Secret<String>,
    /// With TLS or without.
    pub dialer: Dialer,
    /// This node as it presents itself now.
    pub local: Mutex<Local>,
    /// Where members are, by id, as the membership says now. A member may move while links to it exist.
    pub addresses: Mutex<HashMap<u64, String>>,
    /// What is counted.
    pub tally: Tally,
}

impl Presence {
    /// A copy of what this node presents now.
    pub fn local(&self) -> Local {
        self.local.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn address_of(&self, target: &Target) -> String {
        let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.get(&target.id).unwrap_or(&target.addr).clone()
    }
}

/// Where a link leads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Who must answer; zero for whoever is there.
    pub id: u64,
    /// `host:port`; for a member only where it is looked for until the membership is known.
    pub addr: String,
    /// The class of traffic.
    pub class: Class,
}

/// A handle to the connection's task; the task ends when the last one is dropped.
#[derive(Clone)]
pub struct Link {
    queue: mpsc::Sender<Call>,
}

/// A request that is queued, in order; the answer comes later.
pub type Pending = oneshot::Receiver<Result<Bytes, CallError>>;

impl Link {
    /// Starts the task; it connects when the first request comes.
    pub fn start(target: Target, presence: Arc<Presence>) -> Self {
        let (queue, calls) = mpsc::channel(QUEUE);
        let tally = presence.tally.peer(target.id);
        let (retry, retry_at) = (RETRY_MIN, Mono(0));
        let task = Task { target, presence, tally, calls, retry, retry_at, logged: None, away: None };
        tokio::spawn(task.run());
        Self { queue }
    }

    /// Queues a request without waiting for its answer: requests leave in the order of these calls.
    ///
    /// # Errors
    /// [`CallError::NotSent`] when the request cannot be encoded or the queue is full.
    pub fn submit(&self, request: &Request) -> Result<Pending, CallError> {
        let not_sent = |why: String| CallError::NotSent(why);
        let payload = Bytes::from(codec::encode(request).map_err(|e| not_sent(e.to_string()))?);
        let (answer, pending) = oneshot::channel();
        self.queue.try_send(Call { payload, answer }).map_err(|e| not_sent(e.to_string()))?;
        Ok(pending)
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call(&self, request: &Request, within: Duration) -> Result<Response, CallError> {
        let pending = self.submit(request)?;
        answer(pending, within).await
    }
}

/// Waits for a queued request's answer.
///
/// # Errors
/// [`CallError`].
pub async fn answer(pending: Pending, within: Duration) -> Result<Response, CallError> {
    let bytes = match timeout(within, pending).await {
        Err(_) => return Err(CallError::Timeout),
        Ok(Err(_)) => return Err(CallError::Lost("the connection's task ended".to_owned())),
        Ok(Ok(result)) => result?,
    };
    codec::decode(&bytes).map_err(|e| CallError::Lost(e.to_string()))
}

/// Who waits for which answer, and since when.
type Waiting = Arc<Mutex<HashMap<u64, (Mono, oneshot::Sender<Result<Bytes, CallError>>)>>>;
type Conversation = Wire<BufReader<Stream>>;

struct Task {
    target: Target,
    presence: Arc<Presence>,
    tally: Arc<PeerTally>,
    calls: mpsc::Receiver<Call>,
    retry: Duration,
    retry_at: Mono,
    logged: Option<Mono>,
    /// Since when the member cannot be reached, and whether that was said.
    away: Option<(Mono, bool)>,
}

impl Task {
    async fn run(mut self) {
        while let Some(call) = self.calls.recv().await {
            if call.answer.is_closed() {
                continue;
            }
            if clock::now() < self.retry_at {
                let _ = call.answer.send(Err(CallError::NotSent("waiting to connect again".to_owned())));
                continue;
            }
            match self.connect().await {
                Ok(wire) => {
                    self.retry = RETRY_MIN;
                    self.logged = None;
                    if let Some((since, true)) = self.away.take() {
                        let seconds = clock::now().since(since).as_secs();
                        tracing::info!(addr = self.target.addr, seconds, "raft: the member answers again");
                    }
                    tracing::debug!(addr = self.target.addr, class = ?self.target.class, "raft: connected");
                    let why = self.converse(wire, call).await;
                    tracing::debug!(addr = self.target.addr, class = ?self.target.class, why, "raft: connection ended");
                    self.retry_at = clock::now() + RETRY_MIN;
                }
                Err(error) => self.failed(call, &error),
            }
        }
    }

    fn failed(&mut self, call: Call, error: &AuthError) {
        let now = clock::now();
        self.retry_at = now + self.retry;
        self.retry = (self.retry * 2).min(RETRY_MAX);
        let why = error.to_string();
        let refused = !matches!(error, AuthError::Io(_));
        let (since, told) = self.away.get_or_insert((now, false));
        // One of the connections to a member speaks for all.
        if self.target.class == Class::Control && !refused && !*told && AWAY <= now.since(*since) {
            *told = true;
            tracing::info!(addr = self.target.addr, why, "raft: a member cannot be reached");
        }
        if self.logged.is_none_or(|at| now.since(at) > LOG_EVERY) {
            self.logged = Some(now);
            if refused {
                tracing::warn!(addr = self.target.addr, why, "raft: handshake with member failed");
            } else {
                tracing::debug!(addr = self.target.addr, why, "raft: cannot reach member");
            }
        }
        self.tally.failures.fetch_add(1, Ordering::Relaxed);
        let _ = call.answer.send(Err(CallError::NotSent(why.clone())));
        while let Ok(call) = self.calls.try_recv() {
            let _ = call.answer.send(Err(CallError::NotSent(why.clone())));
        }
    }

    async fn connect(&mut self) -> Result<Conversation, AuthError> {
        let late = || io::Error::from(io::ErrorKind::TimedOut);
        self.target.addr = self.presence.address_of(&self.target);
        let (stream, binding) = self.presence.dialer.connect(&self.target.addr).await?;
        tune(stream.tcp());
        timeout(auth::TIMEOUT, self.open(stream, binding)).await.map_err(|_| late())?
    }

    async fn open(&self, stream: Stream, binding: Option<[u8; 32]>) -> Result<Conversation, AuthError> {
        let mut io = BufReader::new(stream);
        upgrade(&mut io, &self.target.addr).await?;
        let Target { id, class, .. } = self.target;
        let (wire, _) =
            auth::connect(io, Key(&self.presence.secret, binding), &self.presence.local(), id, class).await?;
        Ok(wire)
    }

    /// Runs until the connection breaks; says why it did.
    async fn converse(&mut self, wire: Conversation, first: Call) -> String {
        let (mut sink, stream) = wire.split();
        let waiting = Waiting::default();
        let mut reader = tokio::spawn(read(stream, Arc::clone(&waiting), Arc::clone(&self.tally)));
        let mut next_id = 1;
        let mut next = Some(first);
        let why = loop {
            let call = match next.take() {
                Some(call) => call,
                None => tokio::select! {
                    call = self.calls.recv() => match call {
                        Some(call) => call,
                        None => break "no longer needed".to_owned(),
                    },
                    ended = &mut reader => break ended.unwrap_or_else(|e| e.to_string()),
                },
            };
            if let Err(error) = self.write(&mut sink, &waiting, call, &mut next_id).await {
                break error.to_string();
            }
        };
        reader.abort();
        let lost: Vec<_> = waiting.lock().unwrap_or_else(PoisonError::into_inner).drain().collect();
        self.tally.failures.fetch_add(lost.len() as u64, Ordering::Relaxed);
        for (_, (_, answer)) in lost {
            let _ = answer.send(Err(CallError::Lost(why.clone())));
        }
        why
    }

    /// Writes one call and those that are queued behind it, then flushes.
    async fn write(
        &mut self,
        sink: &mut SplitSink<Conversation, Bytes>,
        waiting: &Waiting,
        first: Call,
        next_id: &mut u64,
    ) -> io::Result<()> {
        let mut next = Some(first);
        while let Some(call) = next.take() {
            let id = *next_id;
            *next_id += 1;
            let payload = call.payload;
            {
                let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                // Callers that gave up must not stay here for ever.
                if waiting.len() > 64 {
                    waiting.retain(|_, (_, answer)| !answer.is_closed());
                }
                waiting.insert(id, (clock::now(), call.answer));
            }
            self.tally.sent.fetch_add(payload.len() as u64, Ordering::Relaxed);
            sink.feed(Frame { kind: Kind::Request, id, payload }.to_bytes()).await?;
            next = self.calls.try_recv().ok();
        }
        sink.flush().await
    }
}

async fn read(mut stream: SplitStream<Conversation>, waiting: Waiting, tally: Arc<PeerTally>) -> String {
    loop {
        let frame = match stream.next().await {
            None => return "closed by the peer".to_owned(),
            Some(Err(error)) => return error.to_string(),
            Some(Ok(bytes)) => Frame::from_bytes(bytes),
        };
        match frame {
            Ok(frame) if frame.kind == Kind::Response => {
                let answer = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&frame.id);
                tally.received.fetch_add(frame.payload.len() as u64, Ordering::Relaxed);
                if let Some((since, answer)) = answer {
                    tally.round_trips.observe(clock::now().since(since));
                    let _ = answer.send(Ok(frame.payload));
                }
            }
            Ok(_) => return "the peer sent something that is no answer".to_owned(),
            Err(error) => return error.to_string(),
        }
    }
}

/// Asks the peer's HTTP server to hand the connection over.
async fn upgrade(io: &mut BufReader<Stream>, addr: &str) -> io::Result<()> {
    let request = format!(
        "GET /raft HTTP/1.1\r\nHost: {addr}\r\nConnection: Upgrade\r\nUpgrade: {}\r\n\r\n",
        super::server::PROTOCOL
    );
    io.write_all(request.as_bytes()).await?;
    let mut status = String::new();
    for line in 0..64 {
        let mut text = String::new();
        let read = tokio::io::AsyncReadExt::take(&mut *io, 1024).read_line(&mut text).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line == 0 {
            status = text.clone();
        }
        if text == "\r\n" {
            if status.starts_with("HTTP/1.1 101") {
                return Ok(());
            }
            let why = format!("the peer answered {:?} instead of switching protocols", status.trim_end());
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the peer's answer has too many headers"))
}

/// Small messages leave at once; a dead path is noticed.
pub fn tune(stream: &tokio::net::TcpStream) {
    // Best effort: without these the connection works, only slower.
    let _ = stream.set_nodelay(true);
    #[cfg(target_os = "linux")]
    let _ = rustix::net::sockopt::set_tcp_user_timeout(stream, USER_TIMEOUT_MS);
    #[cfg(not(target_os = "linux"))]
    let _ = USER_TIMEOUT_MS;
}
