//! The connection to the guardian, and the task that owns it.
//!
//! ```text
//! calls -> line with a number -> guardian -> reply with that number -> caller
//!                                         -> status, log
//! broken -> reconnect while somebody listens; nobody listens -> gone
//! ```
//!
//! Deliberately absent: the starting of guardians, which only an attach does.

use std::collections::HashMap;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::super::protocol::{
    Answer, Done, GuardianLine, LINE_LIMIT, PROTOCOL, Request, RequestLine, Says, WatchdogConfig, decode, encode,
};
use super::super::status::{GuardianStatus, Link};
use super::{ANSWER_TIMEOUT, Call, Error, GuardianConfig, RETRY, nobody_listens, unexpected};

/// How long writing one line may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a broken connection is tried again before the guardian counts as gone although its socket answers.
const RECONNECTS: u32 = 100;

/// One connection: lines out, lines in.
pub(super) struct Wire {
    reading: OwnedReadHalf,
    writing: OwnedWriteHalf,
    buffer: Vec<u8>,
    next_id: u64,
}

impl Wire {
    pub(super) fn new(stream: UnixStream) -> Self {
        let (reading, writing) = stream.into_split();
        Self { reading, writing, buffer: Vec::new(), next_id: 1 }
    }

    /// Sends a request and returns its number.
    async fn send(&mut self, request: Request) -> Result<u64, Error> {
        let id = self.next_id;
        let line = encode(&RequestLine { v: PROTOCOL, id, request })
            .map_err(|error| Error::Unsendable { why: error.to_string() })?;
        self.next_id += 1;
        match timeout(WRITE_TIMEOUT, self.writing.write_all(&line)).await {
            Ok(Ok(())) => Ok(id),
            Ok(Err(_)) | Err(_) => Err(Error::LinkLost),
        }
    }

    /// The next thing the guardian says. Cancel-safe: what was read so far stays in the buffer.
    async fn hear(&mut self) -> Result<Says, Error> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                match decode::<GuardianLine>(line.trim_ascii_end()) {
                    Ok(line) => return Ok(line.says),
                    Err(error) => tracing::warn!(%error, "ignored a line from the guardian"),
                }
                continue;
            }
            if self.buffer.len() > LINE_LIMIT {
                return Err(Error::LinkLost);
            }
            match self.reading.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return Err(Error::LinkLost),
                Ok(_) => (),
            }
        }
    }

    /// Becomes the guardian's agent.
    pub(super) async fn attach(&mut self, watchdog: &WatchdogConfig) -> Result<GuardianStatus, Error> {
        let asked = self.send(Request::Attach { agent_pid: std::process::id(), watchdog: watchdog.clone() }).await?;
        loop {
            match self.hear().await? {
                Says::Reply { id, answer } if id == asked => {
                    return match answer {
                        Answer::Done(Done::Status(status)) => Ok(*status),
                        Answer::Done(other) => Err(unexpected("attach", &other)),
                        Answer::Refused(refusal) => Err(Error::Refused(refusal)),
                    };
                }
                Says::Replaced { by } => return Err(Error::Replaced { by }),
                Says::Log { text, .. } => tracing::info!(guardian = %text),
                Says::Reply { .. } | Says::Status(_) => (),
            }
        }
    }
}

/// Owns the connection, and makes a new one when it breaks.
pub(super) struct LinkTask {
    config: GuardianConfig,
    calls: mpsc::Receiver<Call>,
    status: watch::Sender<GuardianStatus>,
}

/// Why a connection is over.
enum End {
    /// Nobody holds a handle any more.
    Dropped,
    Broken,
    Replaced(u32),
}

impl LinkTask {
    pub(super) fn new(
        config: GuardianConfig,
        calls: mpsc::Receiver<Call>,
        status: watch::Sender<GuardianStatus>,
    ) -> Self {
        Self { config, calls, status }
    }

    pub(super) async fn run(mut self, mut wire: Wire) {
        loop {
            match self.serve(&mut wire).await {
                End::Dropped => return,
                End::Replaced(by) => {
                    self.set_link(Link::Replaced);
                    return self.refuse_all(|| Error::Replaced { by }).await;
                }
                End::Broken => self.set_link(Link::Reconnecting),
            }
            match self.reconnect().await {
                Some((again, status)) => {
                    wire = again;
                    self.status.send_replace(status);
                }
                None => {
                    self.set_link(Link::Gone);
                    return self.refuse_all(|| Error::Gone).await;
                }
            }
        }
    }

    /// Carries requests and answers until the connection ends. Requests without an answer fail by being dropped.
    async fn serve(&mut self, wire: &mut Wire) -> End {
        let mut waiting: HashMap<u64, oneshot::Sender<Result<Done, Error>>> = HashMap::new();
        // Also after its caller has given up: nobody may build or rewind a data directory in which PostgreSQL could be
        // started at any moment.
        let mut starting: Option<u64> = None;
        loop {
            tokio::select! {
                said = wire.hear() => match said {
                    Ok(Says::Reply { id, answer }) => {
                        let heard = match answer {
                            Answer::Done(done) => Ok(done),
                            Answer::Refused(refusal) => Err(Error::Refused(refusal)),
                        };
                        if starting == Some(id) {
                            starting = None;
                            self.set_link(Link::Attached);
                        }
                        // The caller may have given up; then nobody needs the answer.
                        let _ = waiting.remove(&id).map(|caller| caller.send(heard));
                    }
                    Ok(Says::Status(status)) => {
                        let link = if starting.is_some() { Link::Starting } else { Link::Attached };
                        self.status.send_replace(GuardianStatus { link, ..*status });
                    }
                    Ok(Says::Log { text, .. }) => tracing::info!(guardian = %text),
                    Ok(Says::Replaced { by }) => return End::Replaced(by),
                    Err(_) => return End::Broken,
                },
                call = self.calls.recv() => {
                    let Some(Call { request, answer }) = call else { return End::Dropped };
                    waiting.retain(|_, caller| !caller.is_closed());
                    let starts = matches!(request, Request::Start(_) | Request::Adopt(_));
                    match wire.send(request).await {
                        Ok(id) => {
                            waiting.insert(id, answer);
                            if starts {
                                starting = Some(id);
                                self.set_link(Link::Starting);
                            }
                        }
                        Err(Error::LinkLost) => {
                            let _ = answer.send(Err(Error::LinkLost));
                            return End::Broken;
                        }
                        Err(error) => { let _ = answer.send(Err(error)); }
                    }
                }
            }
        }
    }

    /// `None` when no guardian runs any more.
    async fn reconnect(&mut self) -> Option<(Wire, GuardianStatus)> {
        for _ in 0..RECONNECTS {
            match UnixStream::connect(&self.config.socket).await {
                Ok(stream) => {
                    let mut wire = Wire::new(stream);
                    match timeout(ANSWER_TIMEOUT, wire.attach(&self.config.watchdog)).await {
                        Ok(Ok(status)) => return Some((wire, status)),
                        Ok(Err(error)) => tracing::warn!(%error, "the guardian did not take this agent back"),
                        Err(_) => tracing::warn!("the guardian accepts connections and does not answer"),
                    }
                }
                Err(error) if nobody_listens(&error) => return None,
                Err(error) => tracing::warn!(%error, "connect to the guardian"),
            }
            while let Ok(call) = self.calls.try_recv() {
                let _ = call.answer.send(Err(Error::LinkLost));
            }
            sleep(RETRY).await;
        }
        None
    }

    fn set_link(&self, link: Link) {
        self.status.send_modify(|status| status.link = link);
    }

    /// Answers every further request with the same error, until the last handle is dropped.
    async fn refuse_all(&mut self, error: impl Fn() -> Error) {
        while let Some(call) = self.calls.recv().await {
            let _ = call.answer.send(Err(error()));
        }
    }
}
