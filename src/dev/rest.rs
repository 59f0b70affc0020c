//! Asks a node's REST API: one request, one connection, one deadline for all of it.
//!
//! Speaks HTTP/1.0, where the end of the connection is the end of the answer, so that forty lines of
//! standard library are a complete client. No TLS, no redirects: these are our own nodes on loopback.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use crate::telemetry::clock;
use crate::types::Mono;

/// No answer of ours is larger; a larger one is not from us.
const BODY_BYTES_MAX: usize = 8 << 20;

/// An answer of the REST API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body as text.
    pub body: String,
}

impl Answer {
    /// The body as JSON; null when it is not.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }
}

/// `GET path`.
///
/// # Errors
/// When nobody answers within `patience`, or not in HTTP.
pub fn get(addr: SocketAddr, path: &str, patience: Duration) -> io::Result<Answer> {
    exchange(addr, &format!("GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n"), patience)
}

/// `POST path` with a JSON body.
///
/// # Errors
/// As [`get`].
pub fn post(addr: SocketAddr, path: &str, body: &Value, patience: Duration) -> io::Result<Answer> {
    send("POST", addr, path, body, patience)
}

/// `PATCH path` with a JSON body.
///
/// # Errors
/// As [`get`].
pub fn patch(addr: SocketAddr, path: &str, body: &Value, patience: Duration) -> io::Result<Answer> {
    send("PATCH", addr, path, body, patience)
}

fn send(method: &str, addr: SocketAddr, path: &str, body: &Value, patience: Duration) -> io::Result<Answer> {
    let body = body.to_string();
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: {addr}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    exchange(addr, &(head + &body), patience)
}

fn exchange(addr: SocketAddr, request: &str, patience: Duration) -> io::Result<Answer> {
    let deadline = clock::now() + patience;
    let mut stream = TcpStream::connect_timeout(&addr, left(deadline)?)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut chunk = [0_u8; 8192];
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut chunk)? {
            0 => break,
            count => answer.extend_from_slice(chunk.get(..count).unwrap_or_default()),
        }
        if answer.len() > BODY_BYTES_MAX {
            return Err(io::Error::other("the answer is too large to be from a node"));
        }
    }
    parse(&answer).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP"))
}

fn left(deadline: Mono) -> io::Result<Duration> {
    match deadline.since(clock::now()) {
        Duration::ZERO => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")),
        span => Ok(span),
    }
}

fn parse(answer: &[u8]) -> Option<Answer> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(answer.get(..end)?).ok()?;
    let status = head.strip_prefix("HTTP/1.")?.split_whitespace().nth(1)?.parse().ok()?;
    Some(Answer { status, body: String::from_utf8_lossy(answer.get(end + 4..)?).into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn an_answer_is_split_into_status_and_body() {
        let answer = parse(b"HTTP/1.0 503 Service Unavailable\r\ncontent-length: 9\r\n\r\n{\"a\": 1}\n").expect("HTTP");
        assert_eq!(answer.status, 503);
        assert_eq!(answer.json()["a"], 1);
        assert_eq!(parse(b"SSH-2.0-OpenSSH\r\n"), None);
    }

    #[test]
    fn a_request_is_answered_over_a_real_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let addr = listener.local_addr().expect("address");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accept");
            let mut request = [0_u8; 512];
            let count = stream.read(&mut request).expect("read");
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nfine").expect("write");
            String::from_utf8_lossy(&request[..count]).into_owned()
        });
        let answer = get(addr, "/patroni", Duration::from_secs(10)).expect("answer");
        assert_eq!(answer, Answer { status: 200, body: "fine".to_owned() });
        assert!(server.join().expect("join").starts_with("GET /patroni HTTP/1.0\r\n"));
    }

    #[test]
    fn a_silent_server_ends_at_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let addr = listener.local_addr().expect("address");
        let error = get(addr, "/", Duration::from_millis(50)).expect_err("nobody answers");
        assert!(matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{error}");
    }
}
