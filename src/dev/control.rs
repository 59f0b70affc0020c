//! The line between a second terminal and the running `howdah dev`: one request, one answer.
//!
//! `start n1\n` over DIR/dev.sock -> `ok n1 is starting\n` | `error ...\n`. Only starting needs it: a child
//! belongs to who starts it, and the launcher is who stops all of them at the end. Access is the
//! directory's: the socket is for its owner.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

/// Longest request or answer.
const LINE_BYTES_MAX: u64 = 4096;
/// Requests that may wait for the launcher.
const REQUESTS_MAX: usize = 8;
/// Longest wait for either side.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the running launcher; none when there is none.
///
/// # Errors
/// When it answers with an error, or not at all.
pub fn ask(socket: &Path, request: &str) -> anyhow::Result<Option<String>> {
    let mut stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("connect to {}", socket.display())),
    };
    stream.set_read_timeout(Some(PATIENCE)).context("set a deadline")?;
    stream.set_write_timeout(Some(PATIENCE)).context("set a deadline")?;
    writeln!(stream, "{request}").context("ask the running howdah dev")?;
    let mut answer = String::new();
    BufReader::new(stream.take(LINE_BYTES_MAX)).read_line(&mut answer).context("hear from the running howdah dev")?;
    match answer.trim_end().split_once(' ') {
        Some(("ok", text)) => Ok(Some(text.to_owned())),
        Some(("error", text)) => bail!("{text}"),
        _ => bail!("hear from the running howdah dev: it said {answer:?}"),
    }
}

/// A request of a second terminal, and the stream on which it waits for the answer.
pub type Request = (String, tokio::net::UnixStream);

/// Listens on the socket and passes requests on. The caller holds the directory's lock, so an older
/// socket is a left-over. Must be called inside a tokio runtime, and listens as long as that lives.
///
/// # Errors
/// When the socket cannot be made, for example because its path is too long.
pub fn listen(socket: &Path) -> anyhow::Result<mpsc::Receiver<Request>> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove the old {}", socket.display()));
        }
        Ok(()) | Err(_) => {}
    }
    let listener = tokio::net::UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("set the mode of {}", socket.display()))?;
    let (sender, receiver) = mpsc::channel(REQUESTS_MAX);
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of file descriptors, for example: it will not get better by asking at once.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            if let Some(request) = read_request(stream).await
                && sender.send(request).await.is_err()
            {
                return; // the launcher has ended
            }
        }
    });
    Ok(receiver)
}

/// Broken and silent callers are passed over.
async fn read_request(mut stream: tokio::net::UnixStream) -> Option<Request> {
    let mut request = String::new();
    let read = async {
        let mut reader = tokio::io::BufReader::new((&mut stream).take(LINE_BYTES_MAX));
        reader.read_line(&mut request).await
    };
    match tokio::time::timeout(PATIENCE, read).await {
        Ok(Ok(1..)) => Some((request.trim_end().to_owned(), stream)),
        _ => None,
    }
}

/// Answers a request. A caller that has gone away is no error.
pub async fn answer(mut stream: tokio::net::UnixStream, result: &anyhow::Result<String>) {
    let line = match result {
        Ok(text) => format!("ok {text}\n"),
        Err(error) => format!("error {error:#}\n"),
    };
    let _ = tokio::time::timeout(PATIENCE, stream.write_all(line.as_bytes())).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_listening_is_none_and_not_an_error() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let socket = dir.path().join("dev.sock");
        assert!(ask(&socket, "start n1").expect("none").is_none());
        drop(std::os::unix::net::UnixListener::bind(&socket).expect("bind"));
        assert!(ask(&socket, "start n1").expect("none").is_none(), "a left-over socket file");
    }

    #[tokio::test]
    async fn a_request_is_heard_and_answered() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let socket = dir.path().join("dev.sock");
        let mut requests = listen(&socket).expect("bind");
        for (result, expected) in [(Ok("n1 is starting".to_owned()), true), (Err(anyhow::anyhow!("no n9")), false)] {
            let path = socket.clone();
            let caller = tokio::task::spawn_blocking(move || ask(&path, "start n1"));
            let (request, stream) = requests.recv().await.expect("a request");
            assert_eq!(request, "start n1");
            answer(stream, &result).await;
            let heard = caller.await.expect("join");
            assert_eq!(heard.is_ok(), expected, "{heard:?}");
        }
    }
}
