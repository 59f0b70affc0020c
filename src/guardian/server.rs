//! The guardian's side of the socket: connections, lines, and nothing that waits.
//!
//! ```text
//! accept (owner or root only, at most 8) -> bytes -> whole lines -> supervise.rs
//!                                      bytes <- bounded buffer <- replies, status, log
//! ```
//!
//! A client that sends garbage, or does not take its answers, loses its connection and nothing else happens.
//! Deliberately absent: what requests mean.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use serde::Deserialize;

use super::process::peer_uid;
use super::protocol::{Answer, GuardianLine, LINE_LIMIT, PROTOCOL, Refusal, Request, Says, decode, encode};

/// Names a connection; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientId(u64);

/// How many connections at a time.
const CLIENTS: usize = 8;
/// How much a client may leave unread.
const OUTGOING_LIMIT: usize = 4 * LINE_LIMIT;

/// All connections.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    clients: Vec<Client>,
    next: u64,
}

#[derive(Debug)]
struct Client {
    id: ClientId,
    stream: UnixStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// Closed as soon as what is to be said is said.
    closing: bool,
    dead: bool,
}

/// A request, and who asked.
#[derive(Debug)]
pub struct Asked {
    /// The connection.
    pub client: ClientId,
    /// The number that the reply carries.
    pub id: u64,
    /// The request, or why it is none that this version can carry out; the connection survives that, since a newer
    /// agent may ask what an older guardian does not know.
    pub request: Result<Request, Refusal>,
}

/// A line of which only the outside has been understood.
#[derive(Deserialize)]
struct Envelope {
    v: u32,
    id: u64,
    request: serde_json::Value,
}

impl Envelope {
    fn open(self) -> Result<Request, Refusal> {
        if self.v != PROTOCOL {
            return Err(Refusal::Protocol { speaks: PROTOCOL, asked: self.v });
        }
        serde_json::from_value(self.request).map_err(|error| Refusal::Malformed { why: error.to_string() })
    }
}

impl Server {
    /// Listens. Only the owner may connect; a socket file left by a dead guardian is replaced, so the lock must be
    /// held.
    ///
    /// # Errors
    /// When the path is too long or cannot be used.
    pub fn listen(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => (),
        }
        // The file's mode comes from the mask, so that it is never open to others, not even for a moment.
        let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        rustix::process::umask(mask);
        let listener = bound?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, clients: Vec::with_capacity(CLIENTS), next: 1 })
    }

    /// What to wait for: the listener, then each client, and whether it wants to write.
    pub fn descriptors(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        let clients = self.clients.iter().map(|client| (client.stream.as_fd(), !client.outgoing.is_empty()));
        std::iter::once((self.listener.as_fd(), false)).chain(clients)
    }

    /// Whether a client is still there.
    pub fn has(&self, id: ClientId) -> bool {
        self.clients.iter().any(|client| client.id == id && !client.dead && !client.closing)
    }

    /// Takes new connections. When there are too many, the oldest gives way, unless it is `keep`.
    pub fn accept(&mut self, keep: Option<ClientId>) {
        for _ in 0..CLIENTS {
            let Ok((stream, _)) = self.listener.accept() else { return };
            let own = rustix::process::geteuid().as_raw();
            let allowed = peer_uid(&stream).is_ok_and(|uid| uid == own || uid == 0);
            if !allowed || stream.set_nonblocking(true).is_err() {
                continue;
            }
            if self.clients.len() == CLIENTS {
                let oldest = self.clients.iter().position(|client| Some(client.id) != keep);
                if let Some(index) = oldest {
                    self.clients.remove(index);
                }
            }
            let id = ClientId(self.next);
            self.next += 1;
            let (incoming, outgoing) = (Vec::new(), Vec::new());
            self.clients.push(Client { id, stream, incoming, outgoing, closing: false, dead: false });
        }
    }

    /// Reads what has come, one portion from each client, and appends the whole lines to `asked`.
    pub fn read(&mut self, asked: &mut Vec<Asked>) {
        for client in &mut self.clients {
            if client.dead || client.closing {
                continue;
            }
            client.read_portion();
            while let Some(end) = client.incoming.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = client.incoming.drain(..=end).collect();
                match decode::<Envelope>(line.trim_ascii_end()) {
                    Ok(line) => asked.push(Asked { client: client.id, id: line.id, request: line.open() }),
                    Err(error) => {
                        client.reject(&error.to_string());
                        break;
                    }
                }
            }
            if client.incoming.len() > LINE_LIMIT {
                client.reject("a line is longer than the limit");
            }
        }
    }

    /// Queues something for a client. What is too much for it ends its connection.
    pub fn say(&mut self, id: ClientId, says: Says) {
        if let Some(client) = self.clients.iter_mut().find(|client| client.id == id) {
            client.say(says);
        }
    }

    /// Ends a connection once what was queued is sent.
    pub fn close(&mut self, id: ClientId) {
        if let Some(client) = self.clients.iter_mut().find(|client| client.id == id) {
            client.closing = true;
        }
    }

    /// Sends what can be sent without waiting, and forgets the dead.
    pub fn flush(&mut self) {
        for client in &mut self.clients {
            client.flush();
        }
        self.clients.retain(|client| !(client.dead || client.closing && client.outgoing.is_empty()));
    }
}

impl Client {
    fn read_portion(&mut self) {
        let mut portion = [0_u8; 16 * 1024];
        match self.stream.read(&mut portion) {
            Ok(0) => self.dead = true,
            Ok(length) => self.incoming.extend_from_slice(&portion[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => (),
            Err(_) => self.dead = true,
        }
    }

    /// Tells the client what is wrong, without a request number since none was understood, and hangs up.
    fn reject(&mut self, why: &str) {
        let answer = Answer::Refused(Refusal::Malformed { why: why.to_owned() });
        self.say(Says::Reply { id: 0, answer });
        self.closing = true;
        self.incoming.clear();
    }

    fn say(&mut self, says: Says) {
        match encode(&GuardianLine { v: PROTOCOL, says }) {
            Ok(line) if self.outgoing.len() + line.len() <= OUTGOING_LIMIT => self.outgoing.extend_from_slice(&line),
            Ok(_) | Err(_) => self.dead = true,
        }
    }

    fn flush(&mut self) {
        while !self.outgoing.is_empty() && !self.dead {
            match self.stream.write(&self.outgoing) {
                Ok(0) => self.dead = true,
                Ok(length) => drop(self.outgoing.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(_) => self.dead = true,
            }
        }
    }
}
