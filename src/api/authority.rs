//! HTTP/2 connections of clients that name the server by a whole URL where only host and port belong.
//!
//! ```text
//! bytes -> preface? -> frames; in HEADERS the value of `:authority`: "http://h:1" becomes "httpj--h:1" -> hyper
//! ```
//! etcd's client up to 3.4 puts an endpoint's URL into `:authority` (`etcdctl --cluster` always does). Go's servers do
//! not look at it; hyper's ends the stream with PROTOCOL_ERROR before anybody is asked. So three characters are replaced
//! by others of the same length, in plain text and in Huffman's code alike: neither the frame nor the table that both
//! sides keep of past headers changes its size. Nothing here looks at the authority's meaning: nobody uses it.
//!
//! Source: RFC 9113, sections 4 and 6.2; RFC 7541, sections 5 and 6, appendix B.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// A HEADERS frame beyond this goes through as it is: hyper refuses it anyway.
const HEADERS_MAX: usize = 64 * 1024;
const CHUNK: usize = 16 * 1024;

/// What is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The first bytes: HTTP/2 or something else.
    Preface,
    /// HTTP/2 frames; so many bytes of the present one go through.
    Frames { pass: usize },
    /// Something else: everything goes through.
    Through,
}

/// A connection whose requests hyper can read.
pub struct Authorities<S> {
    inner: S,
    stage: Stage,
    /// Bytes that were read. The first `given` were handed on, those up to `ready` may be.
    held: Vec<u8>,
    given: usize,
    ready: usize,
}

impl<S> Authorities<S> {
    /// Around a connection from which nothing was read yet.
    pub fn new(inner: S) -> Self {
        Self { inner, stage: Stage::Preface, held: Vec::new(), given: 0, ready: 0 }
    }

    /// Looks at what was read last.
    fn look(&mut self) {
        loop {
            let left = self.held.len() - self.ready;
            match self.stage {
                Stage::Preface => {
                    let known = left.min(PREFACE.len());
                    if self.held[..known] != PREFACE[..known] {
                        self.stage = Stage::Through;
                    } else if known == PREFACE.len() {
                        self.ready = known;
                        self.stage = Stage::Frames { pass: 0 };
                    } else {
                        return;
                    }
                }
                Stage::Frames { pass: 0 } => {
                    let frame = &mut self.held[self.ready..];
                    let [a, b, c, kind, flags, ..] = *frame else { return };
                    let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                    let whole = FRAME_HEAD + length;
                    if kind != HEADERS || length > HEADERS_MAX {
                        self.stage = Stage::Frames { pass: whole };
                    } else if frame.len() < whole {
                        return;
                    } else {
                        repair(flags, &mut frame[FRAME_HEAD..whole]);
                        self.ready += whole;
                    }
                }
                Stage::Frames { pass } => {
                    let now = pass.min(left);
                    self.ready += now;
                    self.stage = Stage::Frames { pass: pass - now };
                    if now < pass {
                        return;
                    }
                }
                Stage::Through => {
                    self.ready = self.held.len();
                    return;
                }
            }
        }
    }
}

/// Repairs the payload of a HEADERS frame.
fn repair(flags: u8, payload: &mut [u8]) {
    let before = usize::from(flags & PADDED != 0) + if flags & PRIORITY != 0 { 5 } else { 0 };
    let padding = if flags & PADDED != 0 { payload.first().copied().map_or(0, usize::from) } else { 0 };
    let end = payload.len().saturating_sub(padding);
    if let Some(block) = payload.get_mut(before..end) {
        // None: it is cut off or wrong, which hyper will notice.
        let _ = repair_block(block);
    }
}

/// Walks over a header block, field by field.
fn repair_block(block: &mut [u8]) -> Option<()> {
    /// The number of `:authority` in the table that everybody knows.
    const AUTHORITY: usize = 1;
    let mut at = 0;
    while let Some(first) = block.get(at).copied() {
        let (prefix, literal) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        let (index, next) = integer(block, at, prefix)?;
        at = next;
        if !literal {
            continue;
        }
        if index == 0 {
            let (length, start) = integer(block, at, 7)?;
            at = start.checked_add(length)?;
        }
        let huffman = *block.get(at)? & 0x80 != 0;
        let (length, start) = integer(block, at, 7)?;
        let end = start.checked_add(length)?;
        let value = block.get_mut(start..end)?;
        if index == AUTHORITY {
            if huffman { repair_huffman(value) } else { repair_text(value) }
        }
        at = end;
    }
    Some(())
}

/// Reads a number with a prefix of so many bits; the number and where it ends.
fn integer(block: &[u8], at: usize, prefix: u32) -> Option<(usize, usize)> {
    let mask = (1_usize << prefix) - 1;
    let mut number = usize::from(*block.get(at)?) & mask;
    if number < mask {
        return Some((number, at + 1));
    }
    for step in 0..4 {
        let byte = usize::from(*block.get(at + 1 + step)?);
        number += (byte & 0x7f) << (7 * step);
        if byte & 0x80 == 0 {
            return Some((number, at + 2 + step));
        }
    }
    None
}

fn repair_text(value: &mut [u8]) {
    for scheme in ["http", "https"] {
        if value.starts_with(scheme.as_bytes()) && value[scheme.len()..].starts_with(b"://") {
            value[scheme.len()..scheme.len() + 3].copy_from_slice(b"j--");
        }
    }
}

/// Huffman's codes with their lengths in bits.
const HTTP: [(u64, u32); 4] = [(0b100111, 6), (0b01001, 5), (0b01001, 5), (0b101011, 6)];
const S: (u64, u32) = (0b01000, 5);
const COLON_SLASHES: [(u64, u32); 3] = [(0b1011100, 7), (0b011000, 6), (0b011000, 6)];
/// `j--`, which is as long.
const J_DASHES: [(u64, u32); 3] = [(0b1110100, 7), (0b010110, 6), (0b010110, 6)];

fn joined(codes: impl IntoIterator<Item = (u64, u32)>) -> (u64, u32) {
    codes.into_iter().fold((0, 0), |(bits, length), (code, more)| (bits << more | code, length + more))
}

fn repair_huffman(value: &mut [u8]) {
    let mut first = [0; 8];
    let known = value.len().min(8);
    first[..known].copy_from_slice(&value[..known]);
    let bits = u64::from_be_bytes(first);
    for scheme in [HTTP.to_vec(), [HTTP.as_slice(), &[S]].concat()] {
        let (wrong, length) = joined(scheme.iter().copied().chain(COLON_SLASHES));
        let (right, _) = joined(scheme.iter().copied().chain(J_DASHES));
        let shift = u64::BITS - length;
        if bits >> shift == wrong {
            let repaired = right << shift | bits & ((1 << shift) - 1);
            value[..known].copy_from_slice(&repaired.to_be_bytes()[..known]);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Authorities<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.given < this.ready {
                let count = buf.remaining().min(this.ready - this.given);
                buf.put_slice(&this.held[this.given..this.given + count]);
                this.given += count;
                if this.given == this.held.len() {
                    this.held.clear();
                    (this.given, this.ready) = (0, 0);
                }
                return Poll::Ready(Ok(()));
            }
            if this.stage == Stage::Through {
                return Pin::new(&mut this.inner).poll_read(cx, buf);
            }
            this.held.drain(..this.given);
            this.ready -= this.given;
            this.given = 0;
            let had = this.held.len();
            this.held.resize(had + CHUNK, 0);
            let mut fresh = ReadBuf::new(&mut this.held[had..]);
            let read = Pin::new(&mut this.inner).poll_read(cx, &mut fresh);
            let count = fresh.filled().len();
            this.held.truncate(had + count);
            ready!(read)?;
            if count == 0 {
                // The end: what is incomplete is hyper's to judge.
                this.stage = Stage::Through;
            }
            this.look();
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Authorities<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, u8::try_from(payload.len()).unwrap(), kind, flags, 0, 0, 0, 1];
        bytes.extend(payload);
        bytes
    }

    /// A block with `:method POST` and an authority between other fields.
    fn block(authority: &[u8], huffman: bool) -> Vec<u8> {
        let mut bytes = vec![0x83, 0x3f, 0x01, 0x40, 1, b'a', 1, b'b', 0x41];
        bytes.push(u8::try_from(authority.len()).unwrap() | if huffman { 0x80 } else { 0 });
        bytes.extend(authority);
        bytes.extend([0x10, 1, b'x', 0]);
        bytes
    }

    async fn read_in_pieces(bytes: Vec<u8>, piece: usize) -> Vec<u8> {
        let (mut writer, reader) = tokio::io::duplex(piece);
        let writing = tokio::spawn(async move {
            tokio::io::AsyncWriteExt::write_all(&mut writer, &bytes).await.unwrap();
        });
        let mut seen = Vec::new();
        Authorities::new(reader).read_to_end(&mut seen).await.unwrap();
        writing.await.unwrap();
        seen
    }

    #[tokio::test]
    async fn only_wrong_authorities_change_however_bytes_arrive() {
        // "http://1" and "httpj--1" in Huffman's code, padded with ones.
        let (wrong, length) = joined(HTTP.into_iter().chain(COLON_SLASHES).chain([(0b00001, 5), (0b11, 2)]));
        let (right, _) = joined(HTTP.into_iter().chain(J_DASHES).chain([(0b00001, 5), (0b11, 2)]));
        assert_eq!(length, 48);
        let (wrong, right) = (wrong.to_be_bytes()[2..].to_vec(), right.to_be_bytes()[2..].to_vec());
        for (given, expected, huffman) in [
            (&b"http://h:1"[..], &b"httpj--h:1"[..], false),
            (b"https://h:1", b"httpsj--h:1", false),
            (b"127.0.0.1:1", b"127.0.0.1:1", false),
            (b"httpd:80", b"httpd:80", false),
            (b"h", b"h", false),
            (&wrong, &right, true),
        ] {
            let all = |authority: &[u8]| {
                let padded = [&[2, 0, 0, 0, 0, 0][..], &block(authority, huffman), &[0, 0]].concat();
                [
                    PREFACE,
                    &frame(4, 0, &[0; 6]),
                    &frame(HEADERS, 4, &block(authority, huffman)),
                    &frame(0, 0, b"http://data"),
                    &frame(HEADERS, 4 | PADDED | PRIORITY, &padded),
                ]
                .concat()
            };
            for piece in [1, 7, 4096] {
                assert_eq!(read_in_pieces(all(given), piece).await, all(expected), "{piece}");
            }
        }
    }

    #[tokio::test]
    async fn anything_else_goes_through() {
        for bytes in [&b"GET / HTTP/1.1\r\nHost: http://x\r\n\r\n"[..], b"PRI", b"PRI * HTTP/2.1 http://", b""] {
            assert_eq!(read_in_pieces(bytes.to_vec(), 5).await, bytes);
        }
        // Cut off, or nonsense in a block.
        for payload in [&[0x41, 0xff, 0xff, 0xff, 0xff, 0xff][..], &[0x41, 50, b'h'], &[0x41], &[0xff; 20]] {
            let mut bytes = [PREFACE, &frame(HEADERS, 4, payload)].concat();
            assert_eq!(read_in_pieces(bytes.clone(), 3).await, bytes);
            bytes.pop();
            assert_eq!(read_in_pieces(bytes.clone(), 3).await, bytes);
        }
    }
}
