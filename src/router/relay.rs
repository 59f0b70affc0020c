//! Copies bytes both ways until a side closes or the session's fate says otherwise.
//!
//! One task a session. A read goes into a buffer of the thread and from there straight to the other side; only what
//! that side does not take at once is kept. So an idle session holds no buffer, and a message costs one read and one
//! write. Messages are followed in place (`frames.rs`).

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;

use super::backends::Backend;
use super::frames::Follower;
use super::keeper::{Bond, Fate, Gate, Routes};

/// Largest piece that is copied at once.
const PIECE: usize = 64 * 1024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; PIECE].into_boxed_slice());
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// A side closed.
    Closed,
    /// At a boundary, by us: the client has not been told yet.
    Drained,
    /// It has to be cut off.
    Reset,
}

/// What a session depends on, and where it is counted.
pub struct Terms<'a> {
    /// Changes of the routes.
    pub routes: &'a mut watch::Receiver<Arc<Routes>>,
    /// What the session is bound to.
    pub bond: &'a Bond,
    /// Whether anything may be forwarded by sessions of a term.
    pub gate: &'a Gate,
    /// Counters.
    pub backend: &'a Backend,
    /// How long a session that must end may go on until it is at a boundary.
    pub drain_timeout: Duration,
}

/// What wakes a session beside its bytes.
enum Event {
    Routes,
    Boundary,
    Late,
    Ended(End),
}

/// Copies until the session ends. `on_key` is called with the key for cancel requests when it passes by.
pub async fn run(
    client: &mut TcpStream,
    server: &mut TcpStream,
    follower: &mut Option<Follower>,
    terms: Terms<'_>,
    mut on_key: impl FnMut(Vec<u8>),
) -> End {
    let Terms { routes, bond, gate, backend, drain_timeout } = terms;
    let gate = matches!(bond, Bond::Term(_)).then_some(gate);
    let (client_read, client_write) = client.split();
    let (server_read, server_write) = server.split();
    let mut up = Pump::new(client_read, server_write);
    let mut down = Pump::new(server_read, client_write);
    let mut late = pin!(tokio::time::sleep(drain_timeout));
    let mut draining = false;
    loop {
        let fate = routes.borrow_and_update().fate(bond);
        let quiet = |follower: &Option<Follower>| follower.as_ref().is_some_and(Follower::at_boundary);
        match fate {
            Fate::Reset => return End::Reset,
            Fate::End if quiet(follower) => return End::Drained,
            Fate::End => return End::Reset,
            Fate::Drain if !draining => {
                draining = true;
                late.as_mut().reset(tokio::time::Instant::now() + drain_timeout);
            }
            Fate::Drain => (),
            Fate::GoOn => draining = false,
        }
        let mut changed = pin!(routes.changed());
        let event = poll_fn(|cx| {
            if changed.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Event::Routes);
            }
            let down_end = down.poll(cx, |bytes| {
                backend.count_to_client(bytes.len());
                if let Some(follower) = follower.as_mut() {
                    follower.from_server(bytes);
                    if let Some(key) = follower.take_key() {
                        on_key(key);
                    }
                }
                true
            });
            // Nothing more from a client that is about to be told goodbye.
            if draining && quiet(follower) && down.is_flushed() && up.is_flushed() {
                return Poll::Ready(Event::Boundary);
            }
            let up_end = up.poll(cx, |bytes| {
                if gate.is_some_and(|gate| !gate.is_open()) {
                    return false;
                }
                backend.count_from_client(bytes.len());
                if let Some(follower) = follower.as_mut() {
                    follower.from_client(bytes);
                }
                true
            });
            if draining && late.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Event::Late);
            }
            match (up_end, down_end) {
                (Poll::Ready(Stop::Forbidden), _) => Poll::Ready(Event::Ended(End::Reset)),
                // The server has closed, or a side is broken: there is nobody to talk to.
                (_, Poll::Ready(_)) | (Poll::Ready(Stop::Broken), _) => Poll::Ready(Event::Ended(End::Closed)),
                // A client that has closed its side may still wait for an answer.
                (Poll::Ready(Stop::Eof) | Poll::Pending, Poll::Pending) => Poll::Pending,
            }
        })
        .await;
        match event {
            Event::Routes => (),
            Event::Boundary => return End::Drained,
            Event::Late => return End::Reset,
            Event::Ended(end) => return end,
        }
    }
}

/// Why a direction stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The reading side closed, and the writing side has been told.
    Eof,
    /// A side is broken.
    Broken,
    /// The bytes may not be forwarded.
    Forbidden,
}

/// One direction.
struct Pump<'a> {
    from: ReadHalf<'a>,
    to: WriteHalf<'a>,
    kept: Vec<u8>,
    written: usize,
    eof: bool,
    stopped: Option<Stop>,
}

impl<'a> Pump<'a> {
    fn new(from: ReadHalf<'a>, to: WriteHalf<'a>) -> Self {
        Self { from, to, kept: Vec::new(), written: 0, eof: false, stopped: None }
    }

    /// Whether everything that was read has been written.
    fn is_flushed(&self) -> bool {
        self.kept.is_empty()
    }

    /// Goes on until nothing moves. `look` sees all bytes before they are written, and may forbid it.
    fn poll(&mut self, cx: &mut Context<'_>, mut look: impl FnMut(&[u8]) -> bool) -> Poll<Stop> {
        if let Some(stop) = self.stopped {
            return Poll::Ready(stop);
        }
        let stop = match ready!(self.poll_copy(cx, &mut look)) {
            Ok(stop) => stop,
            Err(_) => Stop::Broken,
        };
        self.stopped = Some(stop);
        Poll::Ready(stop)
    }

    fn poll_copy(&mut self, cx: &mut Context<'_>, look: &mut impl FnMut(&[u8]) -> bool) -> Poll<io::Result<Stop>> {
        loop {
            while let Some(rest) = self.kept.get(self.written..).filter(|rest| !rest.is_empty()) {
                match ready!(Pin::new(&mut self.to).poll_write(cx, rest))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    written => self.written += written,
                }
            }
            self.kept = Vec::new();
            self.written = 0;
            if self.eof {
                ready!(Pin::new(&mut self.to).poll_shutdown(cx))?;
                return Poll::Ready(Ok(Stop::Eof));
            }
            let Self { from, to, kept, .. } = self;
            let step = BUFFER.with_borrow_mut(|buffer| {
                let mut piece = ReadBuf::new(buffer);
                ready!(Pin::new(from).poll_read(cx, &mut piece))?;
                let bytes = piece.filled();
                if bytes.is_empty() {
                    return Poll::Ready(Ok(Step::Eof));
                }
                if !look(bytes) {
                    return Poll::Ready(Ok(Step::Forbidden));
                }
                let written = match Pin::new(to).poll_write(cx, bytes) {
                    Poll::Ready(written) => written?,
                    Poll::Pending => 0,
                };
                kept.extend_from_slice(bytes.get(written..).unwrap_or_default());
                Poll::Ready(Ok::<_, io::Error>(Step::Copied))
            });
            match ready!(step)? {
                Step::Copied => (),
                Step::Eof => self.eof = true,
                Step::Forbidden => return Poll::Ready(Ok(Stop::Forbidden)),
            }
        }
    }
}

enum Step {
    Copied,
    Eof,
    Forbidden,
}
