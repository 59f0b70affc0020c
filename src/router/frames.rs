//! Follows PostgreSQL's messages by their headers, to know when a session is idle between two transactions.
//!
//! ```text
//! client's bytes  -> Frames -> Query, Sync, FunctionCall: one more ReadyForQuery is due
//! server's bytes  -> Frames -> ReadyForQuery(I | T | E): one less; BackendKeyData: whom a cancel request means
//! ```
//! At a boundary = nothing is due, the last word was `I`, and no message is half sent. Whatever is not understood makes
//! the follower give up for that session, which is then never at a boundary. Headers are read in place; nothing is
//! allocated. Absent: sockets, TLS (such a session cannot be followed).
//!
//! A client that sends Sync during a COPY in the extended protocol, where the server ignores it, is never found at a
//! boundary again. That is the safe side.

/// The longest body that is kept: a BackendKeyData of protocol 3.2, process id and up to 256 bytes.
const KEPT: usize = 4 + 256;

/// Type and length.
const HEADER: usize = 5;

/// Splits one direction into messages.
#[derive(Debug, Clone)]
struct Frames {
    header: [u8; HEADER],
    have: usize,
    /// Bytes of the body still to come.
    left: usize,
    kept: [u8; KEPT],
    kept_len: usize,
}

/// A length that no message has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Garbage;

impl Frames {
    fn new() -> Self {
        Self { header: [0; HEADER], have: 0, left: 0, kept: [0; KEPT], kept_len: 0 }
    }

    /// Whether no message is half done.
    fn at_end(&self) -> bool {
        self.have == 0
    }

    /// Calls `on` at the end of each message, with its type and, for the types in `keep`, the start of its body.
    fn feed(&mut self, mut bytes: &[u8], keep: &[u8], mut on: impl FnMut(u8, &[u8])) -> Result<(), Garbage> {
        while !bytes.is_empty() {
            if self.have < HEADER {
                let take = bytes.len().min(HEADER - self.have);
                let (head, rest) = bytes.split_at(take);
                if let Some(place) = self.header.get_mut(self.have..self.have + take) {
                    place.copy_from_slice(head);
                }
                self.have += take;
                bytes = rest;
                if self.have < HEADER {
                    return Ok(());
                }
                let [_, a, b, c, d] = self.header;
                let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).map_err(|_| Garbage)?;
                if length < 4 || length > i32::MAX as usize {
                    return Err(Garbage);
                }
                self.left = length - 4;
                self.kept_len = 0;
            }
            let (body, rest) = bytes.split_at(bytes.len().min(self.left));
            if keep.contains(&self.header[0]) {
                let take = body.len().min(KEPT - self.kept_len);
                if let (Some(place), Some(body)) =
                    (self.kept.get_mut(self.kept_len..self.kept_len + take), body.get(..take))
                {
                    place.copy_from_slice(body);
                }
                self.kept_len += take;
            }
            self.left -= body.len();
            bytes = rest;
            if self.left == 0 {
                on(self.header[0], self.kept.get(..self.kept_len).unwrap_or_default());
                self.have = 0;
            }
        }
        Ok(())
    }
}

/// Follows one session from its StartupMessage on.
#[derive(Debug, Clone)]
pub struct Follower {
    client: Frames,
    server: Frames,
    /// So many ReadyForQuery are due. The start-up itself ends with one.
    due: u64,
    /// Whether the client's last message ends what it asks for.
    synced: bool,
    /// The last ReadyForQuery said: not in a transaction.
    idle: bool,
    /// Something was not understood.
    lost: bool,
    key: Option<Vec<u8>>,
}

impl Default for Follower {
    fn default() -> Self {
        Self::new()
    }
}

impl Follower {
    /// The StartupMessage has been sent.
    pub fn new() -> Self {
        let (client, server) = (Frames::new(), Frames::new());
        Self { client, server, due: 1, synced: true, idle: false, lost: false, key: None }
    }

    /// Bytes on their way to the server.
    pub fn from_client(&mut self, bytes: &[u8]) {
        if self.lost {
            return;
        }
        let (due, synced) = (&mut self.due, &mut self.synced);
        let result = self.client.feed(bytes, &[], |kind, _| match kind {
            b'Q' | b'S' | b'F' => {
                *due += 1;
                *synced = true;
            }
            // Answers during authentication, and what belongs to a COPY that a query has begun.
            b'p' | b'd' | b'c' | b'f' => (),
            _ => *synced = false,
        });
        self.lost = result.is_err();
    }

    /// Bytes on their way to the client.
    pub fn from_server(&mut self, bytes: &[u8]) {
        if self.lost {
            return;
        }
        let (due, idle, key) = (&mut self.due, &mut self.idle, &mut self.key);
        let result = self.server.feed(bytes, b"ZK", |kind, body| match kind {
            b'Z' => {
                *due = due.saturating_sub(1);
                *idle = body == b"I";
            }
            b'K' => *key = Some(body.to_vec()),
            _ => (),
        });
        self.lost = result.is_err();
    }

    /// Whether the session is idle and outside of a transaction, with nothing on the way.
    pub fn at_boundary(&self) -> bool {
        !self.lost && self.due == 0 && self.synced && self.idle && self.client.at_end() && self.server.at_end()
    }

    /// What a cancel request for this session will carry; once.
    pub fn take_key(&mut self) -> Option<Vec<u8>> {
        self.key.take()
    }
}

#[cfg(test)]
mod tests;
