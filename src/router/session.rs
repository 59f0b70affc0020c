//! One client's connection, from its first byte to its last.
//!
//! ```text
//! accepted -> who (PROXY header, allow list) -> first packet -> cancel request: delivered, done
//!          -> a slot -> a target, waited for up to hold_timeout -> connected, first answer -> relay -> end
//!                   \-> none in time: ErrorResponse 57P03 with the cause
//! ```
//! Until the first byte of an answer has gone to the client, any failure of a backend is our own affair: the client
//! waits, and the next attempt goes wherever the routes then point. Source: PostgreSQL documentation, "Message Flow".

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

use super::backends::Seat;
use super::frames::Follower;
use super::keeper::{Bond, Fate, Routes};
use super::relay::{self, End, Terms};
use super::startup::{self, FirstAnswer, HEAD, Opening};
use super::target::{Cause, Target};
use super::{Port, PortKind, Shared, cancel, proxy_header, socket};

/// How long a client may take to say what it wants. PostgreSQL's own limit for all of the authentication.
const FIRST_WORD: Duration = Duration::from_secs(60);

/// One attempt to connect may take so long.
const CONNECT: Duration = Duration::from_secs(2);

/// Pause between attempts at a backend that did not take the connection; changed routes end it.
const RETRY: Duration = Duration::from_millis(50);

/// Terminate.
const TERMINATE: &[u8] = b"X\0\0\0\x04";

/// The client, or the router, is not interested any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Over;

/// What the client has asked for last.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Request {
    /// Whether the server speaks TLS or GSSAPI.
    Encryption([u8; HEAD]),
    /// A session in plain text.
    Startup(Vec<u8>),
    /// A session under TLS, without asking.
    Tls([u8; HEAD]),
}

/// A backend that has answered.
struct Opened {
    server: TcpStream,
    target: Target,
    bond: Bond,
    seat: Seat,
    /// Its first answer, not yet sent to the client.
    answer: Vec<u8>,
}

/// Why there is no backend.
enum Unopened {
    /// Nobody in time.
    Late(Cause),
    /// The client has gone, or the router stops.
    Over,
}

/// Counts a client that waits, as long as this lives.
struct Held<'a>(&'a Port);

impl<'a> Held<'a> {
    fn new(port: &'a Port) -> Self {
        port.held.fetch_add(1, Ordering::Relaxed);
        port.held_total.fetch_add(1, Ordering::Relaxed);
        Self(port)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves one accepted connection.
pub async fn serve(shared: Arc<Shared>, kind: PortKind, mut client: TcpStream, peer: SocketAddr) {
    socket::set_up(&client);
    let port = shared.port(kind);
    let ip = match timeout(FIRST_WORD, client_address(&shared, &mut client, peer.ip())).await {
        Ok(Some(ip)) => ip,
        Ok(None) | Err(_) => {
            debug!(%peer, "router: a trusted proxy sent no PROXY header of version 2");
            port.refused_total.fetch_add(1, Ordering::Relaxed);
            return;
        }
    };
    let allowlist = &shared.config.allowlist;
    if !allowlist.is_empty() && !allowlist.iter().any(|network| network.contains(ip)) {
        debug!(%ip, "router: not in router.allowlist");
        port.refused_total.fetch_add(1, Ordering::Relaxed);
        return socket::reset(client);
    }
    let session = Session { routes: shared.routes.clone(), shared: &shared, kind, port };
    session.serve(client).await;
}

/// Whose connection it is; none when a proxy did not say so.
async fn client_address(shared: &Shared, client: &mut TcpStream, peer: IpAddr) -> Option<IpAddr> {
    let peer = peer.to_canonical();
    if !shared.config.proxy_protocol.iter().any(|network| network.contains(peer)) {
        return Some(peer);
    }
    let mut prefix = [0; proxy_header::PREFIX];
    client.read_exact(&mut prefix).await.ok()?;
    let mut rest = vec![0; proxy_header::rest_len(&prefix).ok()?];
    client.read_exact(&mut rest).await.ok()?;
    Some(proxy_header::client(&prefix, &rest).ok()?.unwrap_or(peer))
}

struct Session<'a> {
    shared: &'a Shared,
    kind: PortKind,
    port: &'a Port,
    routes: watch::Receiver<Arc<Routes>>,
}

impl Session<'_> {
    async fn serve(&self, mut client: TcpStream) {
        let Ok(mut request) = self.next_request(&mut client).await else { return };
        let until = Instant::now() + self.shared.config.hold_timeout;
        let mut held = None;
        let _slot = match self.slot(&client, until, &mut held).await {
            Ok(slot) => slot,
            Err(Unopened::Over) => return,
            Err(Unopened::Late(cause)) => return self.refuse(client, &request, &cause).await,
        };
        let mut kept: Option<Opened> = None;
        loop {
            let opened = match self.open(&client, &request, until, kept.take(), &mut held).await {
                Ok(opened) => opened,
                Err(Unopened::Over) => return,
                Err(Unopened::Late(cause)) => {
                    drop(held);
                    return self.refuse(client, &request, &cause).await;
                }
            };
            held = None;
            if client.write_all(&opened.answer).await.is_err() {
                return;
            }
            match &request {
                Request::Startup(_) => return self.relay(client, opened, Some(Follower::new())).await,
                Request::Tls(_) => return self.relay(client, opened, None).await,
                Request::Encryption(_) if matches!(opened.answer.as_slice(), b"S" | b"G") => {
                    return self.relay(client, opened, None).await;
                }
                Request::Encryption(_) => {
                    // Refused: the client may ask for another kind, begin in plain text, or go away.
                    kept = Some(opened);
                    request = match self.next_request(&mut client).await {
                        Ok(request) => request,
                        Err(Over) => return,
                    };
                }
            }
        }
    }

    /// Reads what the client asks for. A cancel request is delivered right here.
    async fn next_request(&self, client: &mut TcpStream) -> Result<Request, Over> {
        let reading = async {
            let mut head = [0; HEAD];
            client.read_exact(&mut head).await.map_err(|_| Over)?;
            let opening = startup::opening(head);
            let rest = match opening {
                Opening::Cancel { rest } | Opening::Startup { rest } => rest,
                Opening::Encryption | Opening::Tls | Opening::Unknown => 0,
            };
            let mut packet = head.to_vec();
            packet.resize(HEAD + rest, 0);
            client.read_exact(packet.get_mut(HEAD..).unwrap_or_default()).await.map_err(|_| Over)?;
            Ok((opening, head, packet))
        };
        let stopped = self.shared.stopping.cancelled();
        let (opening, head, packet) = tokio::select! {
            read = timeout(FIRST_WORD, reading) => read.map_err(|_| Over)??,
            () = stopped => return Err(Over),
        };
        match opening {
            Opening::Encryption => Ok(Request::Encryption(head)),
            Opening::Tls => Ok(Request::Tls(head)),
            Opening::Startup { .. } => Ok(Request::Startup(packet)),
            Opening::Unknown => {
                let _ = client.write_all(&startup::fatal("0A000", "unsupported frontend protocol")).await;
                Err(Over)
            }
            Opening::Cancel { .. } => {
                self.port.cancels_total.fetch_add(1, Ordering::Relaxed);
                let routes = Arc::clone(&self.routes.borrow());
                let rest = packet.get(HEAD..).unwrap_or_default();
                cancel::forward(&self.shared.keys, self.kind, &routes, &head, rest).await;
                Err(Over)
            }
        }
    }

    /// A place among the clients that may be connected; those who wait get it in the order they came.
    async fn slot<'s>(
        &'s self,
        client: &TcpStream,
        until: Instant,
        held: &mut Option<Held<'s>>,
    ) -> Result<tokio::sync::SemaphorePermit<'s>, Unopened> {
        if let Ok(slot) = self.shared.slots.try_acquire() {
            return Ok(slot);
        }
        held.get_or_insert_with(|| Held::new(self.port));
        tokio::select! {
            slot = timeout_at(until, self.shared.slots.acquire()) => match slot {
                Ok(Ok(slot)) => Ok(slot),
                Ok(Err(_)) => Err(Unopened::Over),
                Err(_) => Err(Unopened::Late(Cause::Full { limit: self.shared.config.max_connections })),
            },
            () = socket::gone(client) => Err(Unopened::Over),
            () = self.shared.stopping.cancelled() => Err(Unopened::Over),
        }
    }

    /// A backend that has answered `request`: the one that answered the client's last question if it still may, else
    /// another.
    async fn open<'s>(
        &'s self,
        client: &TcpStream,
        request: &Request,
        until: Instant,
        kept: Option<Opened>,
        held: &mut Option<Held<'s>>,
    ) -> Result<Opened, Unopened> {
        let mut routes = self.routes.clone();
        if let Some(Opened { server, target, bond, seat, .. }) = kept
            && routes.borrow_and_update().fate(&bond) == Fate::GoOn
            && let Ok((server, answer)) = ask(server, request, &mut routes, &bond).await
        {
            return Ok(Opened { server, target, bond, seat, answer });
        }
        let mut tried: Vec<Target> = Vec::new();
        loop {
            let picked = self.pick(&routes.borrow_and_update(), &tried);
            let cause = match picked {
                Ok((target, bond, seat)) => match self.attempt(&target, &bond, request, &mut routes).await {
                    Ok((server, answer)) => {
                        seat.opened();
                        return Ok(Opened { server, target, bond, seat, answer });
                    }
                    Err(why) => {
                        debug!(target = %target.name, why, "router: not connected");
                        seat.backend().count_failed();
                        let name = target.name.clone();
                        tried.push(target);
                        // Another replica may do at once.
                        if self.kind == PortKind::Replicas && self.pick(&routes.borrow(), &tried).is_ok() {
                            continue;
                        }
                        tried.clear();
                        Cause::Unreachable { name, why }
                    }
                },
                Err(cause) => cause,
            };
            held.get_or_insert_with(|| Held::new(self.port));
            let unreachable = matches!(cause, Cause::Unreachable { .. });
            let again = if unreachable { until.min(Instant::now() + RETRY) } else { until };
            tokio::select! {
                _ = routes.changed() => (),
                () = tokio::time::sleep_until(again) => (),
                () = socket::gone(client) => return Err(Unopened::Over),
                () = self.shared.stopping.cancelled() => return Err(Unopened::Over),
            }
            if until <= Instant::now() {
                return Err(Unopened::Late(cause));
            }
        }
    }

    /// Where to go now, without those that have just been tried.
    fn pick(&self, routes: &Routes, tried: &[Target]) -> Result<(Target, Bond, Seat), Cause> {
        if self.kind == PortKind::Replicas {
            let replicas: Vec<Target> =
                routes.replicas.iter().filter(|target| !tried.contains(target)).cloned().collect();
            if let Some((target, seat)) = self.port.backends.least_connected(&replicas) {
                let bond = Bond::Replica(target.name.clone());
                return Ok((target, bond, seat));
            }
            if !self.shared.config.fallback_to_primary {
                return Err(Cause::NoReplica);
            }
        }
        let target = routes.write.clone()?;
        let term = routes.term.ok_or(Cause::NoLeader)?;
        let seat = self.port.backends.seat(&target);
        Ok((target, Bond::Term(term), seat))
    }

    /// Connects and asks; the reason in a few words when nothing came of it.
    async fn attempt(
        &self,
        target: &Target,
        bond: &Bond,
        request: &Request,
        routes: &mut watch::Receiver<Arc<Routes>>,
    ) -> Result<(TcpStream, Vec<u8>), String> {
        let connecting = timeout(CONNECT, TcpStream::connect((target.host.as_str(), target.port)));
        let server = match connecting.await {
            Ok(Ok(server)) => server,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err(format!("no answer within {} s", CONNECT.as_secs())),
        };
        socket::set_up(&server);
        ask(server, request, routes, bond).await
    }

    /// Tells the client why it got no session.
    async fn refuse(&self, mut client: TcpStream, request: &Request, cause: &Cause) {
        self.port.refused_total.fetch_add(1, Ordering::Relaxed);
        let sqlstate = if matches!(cause, Cause::Full { .. }) { "53300" } else { "57P03" };
        let whom = match self.kind {
            PortKind::Primary => "the primary",
            PortKind::Replicas => "a replica",
        };
        let seconds = self.shared.config.hold_timeout.as_secs_f64();
        let error = startup::fatal(sqlstate, &format!("no connection to {whom} within {seconds} s: {cause}"));
        let mut request = request.clone();
        // An error is understood only in answer to a StartupMessage. Asked for encryption: not here.
        for _ in 0..2 {
            match request {
                Request::Startup(_) => return socket::last_word(client, &error).await,
                Request::Tls(_) => return,
                Request::Encryption(_) => {
                    if client.write_all(b"N").await.is_err() {
                        return;
                    }
                    match self.next_request(&mut client).await {
                        Ok(next) => request = next,
                        Err(Over) => return,
                    }
                }
            }
        }
        if let Request::Startup(_) = request {
            socket::last_word(client, &error).await;
        }
    }

    async fn relay(&self, mut client: TcpStream, opened: Opened, mut follower: Option<Follower>) {
        let Opened { mut server, target, bond, seat, answer } = opened;
        let mut known = None;
        let mut on_key = |key| known = Some(self.shared.keys.remember(key, target.clone()));
        if let Some(follower) = &mut follower {
            follower.from_server(&answer);
            if let Some(key) = follower.take_key() {
                on_key(key);
            }
        }
        seat.backend().count_to_client(answer.len());
        let mut routes = self.routes.clone();
        let terms = Terms {
            routes: &mut routes,
            bond: &bond,
            gate: &self.shared.gate,
            backend: seat.backend(),
            drain_timeout: self.shared.config.drain_timeout,
        };
        let end = relay::run(&mut client, &mut server, &mut follower, terms, on_key).await;
        match end {
            End::Closed => {
                drop(server);
                socket::last_word(client, &[]).await;
            }
            End::Drained => {
                seat.backend().count_drained();
                let _ = server.try_write(TERMINATE);
                drop(server);
                let why = if self.shared.stopping.is_cancelled() {
                    "this router stops".to_owned()
                } else {
                    format!("{} hands over to another node; connect again", target.name)
                };
                let error = startup::fatal("57P01", &format!("terminating connection: {why}"));
                socket::last_word(client, &error).await;
            }
            End::Reset => {
                seat.backend().count_reset();
                socket::reset(server);
                socket::reset(client);
            }
        }
    }
}

/// Sends the request and waits for the first answer, unless the session's fate changes meanwhile.
async fn ask(
    mut server: TcpStream,
    request: &Request,
    routes: &mut watch::Receiver<Arc<Routes>>,
    bond: &Bond,
) -> Result<(TcpStream, Vec<u8>), String> {
    let asking = async {
        let packet = match request {
            Request::Encryption(head) | Request::Tls(head) => head.as_slice(),
            Request::Startup(packet) => packet,
        };
        server.write_all(packet).await.map_err(|error| error.to_string())?;
        let mut answer = Vec::new();
        if let Request::Tls(_) = request {
            return Ok(answer);
        }
        loop {
            let one = matches!(request, Request::Encryption(_));
            let mut piece = [0; 2048];
            let room = if one { 1 } else { piece.len() };
            let read = server.read(piece.get_mut(..room).unwrap_or_default()).await;
            match read.map_err(|error| error.to_string())? {
                0 => return Err("it closed the connection".to_owned()),
                count => answer.extend_from_slice(piece.get(..count).unwrap_or_default()),
            }
            match startup::first_answer(&answer) {
                _ if one => return Ok(answer),
                FirstAnswer::ForClient => return Ok(answer),
                FirstAnswer::Incomplete => (),
                FirstAnswer::ComeAgain(why) => return Err(why),
            }
        }
    };
    let ended = async {
        while routes.changed().await.is_ok() {
            if routes.borrow_and_update().fate(bond) == Fate::Reset {
                return;
            }
        }
        std::future::pending().await
    };
    let answer = tokio::select! {
        answer = asking => answer?,
        () = ended => return Err("its role ended".to_owned()),
    };
    Ok((server, answer))
}
