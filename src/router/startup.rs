//! How a connection begins, before messages have types: requests for encryption, cancel requests, StartupMessage; and
//! the error that the router itself may answer with.
//!
//! Source: PostgreSQL documentation, "Message Formats". Absent: sockets.

/// The first eight bytes: length and code. For TLS without a request they are the start of a ClientHello.
pub const HEAD: usize = 8;

/// Longest StartupMessage that PostgreSQL takes.
const STARTUP_MAX: usize = 10_000;

/// A cancel request carries a process id and, since protocol 3.2, up to 256 bytes of secret.
const CANCEL_MAX: usize = 8 + 4 + 256;

const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSSENC: u32 = 80_877_104;

/// What the first eight bytes begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// A question for encryption, complete; the server answers with one byte.
    Encryption,
    /// A cancel request with so many more bytes.
    Cancel {
        /// Bytes to come.
        rest: usize,
    },
    /// A StartupMessage with so many more bytes.
    Startup {
        /// Bytes to come.
        rest: usize,
    },
    /// TLS at once, without a question.
    Tls,
    /// Nothing that PostgreSQL understands.
    Unknown,
}

/// Tells what `head` begins.
pub fn opening(head: [u8; HEAD]) -> Opening {
    // A TLS record: handshake, version 3.x. As a length it would be far above any StartupMessage.
    if head[0] == 0x16 && head[1] == 0x03 {
        return Opening::Tls;
    }
    let [a, b, c, d, e, f, g, h] = head;
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    match u32::from_be_bytes([e, f, g, h]) {
        SSL | GSSENC if length == HEAD => Opening::Encryption,
        CANCEL if (HEAD + 5..=CANCEL_MAX).contains(&length) => Opening::Cancel { rest: length - HEAD },
        code if code >> 16 == 3 && (HEAD..=STARTUP_MAX).contains(&length) => Opening::Startup { rest: length - HEAD },
        _ => Opening::Unknown,
    }
}

/// An ErrorResponse of severity FATAL.
pub fn fatal(sqlstate: &str, message: &str) -> Vec<u8> {
    let mut body = Vec::with_capacity(message.len() + 32);
    for (field, value) in [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', sqlstate), (b'M', message)] {
        body.push(field);
        body.extend(value.bytes().filter(|byte| *byte != 0));
        body.push(0);
    }
    body.push(0);
    let mut all = vec![b'E'];
    all.extend(u32::try_from(body.len() + 4).unwrap_or(u32::MAX).to_be_bytes());
    all.extend(body);
    all
}

/// What the server's first bytes say about a connection that it has just been asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstAnswer {
    /// Anything the client shall see.
    ForClient,
    /// More bytes are needed to tell.
    Incomplete,
    /// It starts up or goes down, in its own words: another attempt may succeed.
    ComeAgain(String),
}

/// Longest error that is waited for.
const ERROR_MAX: usize = 4096;

/// Reads the first bytes of the server's answer to a StartupMessage.
pub fn first_answer(bytes: &[u8]) -> FirstAnswer {
    let (Some(b'E'), Some(length)) = (bytes.first(), bytes.get(1..5)) else {
        return if bytes.is_empty() || (bytes[0] == b'E' && bytes.len() < 5) {
            FirstAnswer::Incomplete
        } else {
            FirstAnswer::ForClient
        };
    };
    let length = length.iter().fold(0usize, |sum, byte| (sum << 8) | usize::from(*byte));
    // A postmaster that cannot even fork says so without a length.
    if !(4..=ERROR_MAX).contains(&length) {
        return FirstAnswer::ForClient;
    }
    let Some(body) = bytes.get(5..1 + length) else { return FirstAnswer::Incomplete };
    let field = |wanted: u8| {
        let mut fields = body.split(|byte| *byte == 0).filter(|field| field.first() == Some(&wanted));
        fields.next().and_then(|field| std::str::from_utf8(field.get(1..)?).ok())
    };
    match field(b'C') {
        // cannot_connect_now, admin_shutdown, crash_shutdown.
        Some("57P03" | "57P01" | "57P02") => FirstAnswer::ComeAgain(field(b'M').unwrap_or_default().to_owned()),
        _ => FirstAnswer::ForClient,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(length: u32, code: u32) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[..4].copy_from_slice(&length.to_be_bytes());
        head[4..].copy_from_slice(&code.to_be_bytes());
        head
    }

    #[test]
    fn each_opening_is_told_from_the_others() {
        assert_eq!(opening(head(8, SSL)), Opening::Encryption);
        assert_eq!(opening(head(8, GSSENC)), Opening::Encryption);
        assert_eq!(opening(head(9, SSL)), Opening::Unknown);
        assert_eq!(opening(head(16, CANCEL)), Opening::Cancel { rest: 8 });
        assert_eq!(opening(head(268, CANCEL)), Opening::Cancel { rest: 260 });
        assert_eq!(opening(head(12, CANCEL)), Opening::Unknown);
        assert_eq!(opening(head(41, 3 << 16)), Opening::Startup { rest: 33 });
        assert_eq!(opening(head(41, 3 << 16 | 2)), Opening::Startup { rest: 33 });
        assert_eq!(opening(head(41, 2 << 16)), Opening::Unknown);
        assert_eq!(opening(head(20_000, 3 << 16)), Opening::Unknown);
        assert_eq!(opening(*b"\x16\x03\x01\x02\x00\x01\x00\x01"), Opening::Tls);
        assert_eq!(opening(*b"GET / HT"), Opening::Unknown);
    }

    #[test]
    fn an_error_of_our_own_reads_as_one() {
        let error = fatal("57P03", "no node leads");
        assert_eq!(first_answer(&error), FirstAnswer::ComeAgain("no node leads".to_owned()));
        assert_eq!(error, b"E\x00\x00\x00\x29SFATAL\0VFATAL\0C57P03\0Mno node leads\0\0");
    }

    #[test]
    fn only_a_server_that_starts_or_stops_is_asked_again() {
        assert_eq!(first_answer(b""), FirstAnswer::Incomplete);
        assert_eq!(first_answer(b"R\0\0\0\x08\0\0\0\0"), FirstAnswer::ForClient);
        assert_eq!(first_answer(&fatal("28P01", "no")), FirstAnswer::ForClient);
        assert_eq!(first_answer(&fatal("53300", "too many")), FirstAnswer::ForClient);
        assert_eq!(first_answer(b"Ecould not fork new process for connection\n\0"), FirstAnswer::ForClient);
        let stopping = fatal("57P01", "terminating");
        for cut in 1..stopping.len() {
            assert_eq!(first_answer(&stopping[..cut]), FirstAnswer::Incomplete, "{cut}");
        }
        assert_eq!(first_answer(&stopping), FirstAnswer::ComeAgain("terminating".to_owned()));
    }
}
