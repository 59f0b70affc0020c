//! The agent's side of the guardian: attach to the one that runs, or start one; ask; follow its status.
//!
//! ```text
//! Guardian (clone) --Call--> link task --lines--> guardian
//!        watch <-- GuardianStatus --'    reconnects while the guardian lives
//! ```
//!
//! Requests are never repeated by themselves: one whose connection broke fails with `LinkLost`, and the agent
//! decides again on a fresh status. Deliberately absent: any decision, and any process but the guardian's own start.

mod link;

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use self::link::{LinkTask, Wire};
use super::protocol::{AdoptRequest, Done, Escalate, Refusal, Request, StartRequest, WatchdogConfig};
use super::status::{Exit, FenceReport, GuardianStatus};
use crate::types::{LeaderPermit, NodeName, StopMode};

/// How long a guardian may take to come up, including the killing of leftovers.
const SPAWN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an ordinary answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a fence may take before the caller hears about it; the guardian goes on killing.
const FENCE_TIMEOUT: Duration = Duration::from_secs(30);
/// Between attempts to connect.
const RETRY: Duration = Duration::from_millis(20);

/// Where the guardian is, and how to start it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardianConfig {
    /// Its socket; the lock file lies beside it. At most about 100 bytes long.
    pub socket: PathBuf,
    /// PostgreSQL's data directory. Its parent must exist; it may itself appear later.
    pub data_dir: PathBuf,
    /// The `howdah` binary, usually `std::env::current_exe()`.
    pub program: PathBuf,
    /// The node, shown in the process list and the log.
    pub name: NodeName,
    /// The guardian's own log.
    pub log_file: Option<PathBuf>,
    /// The watchdog device; takes effect with each attach.
    pub watchdog: WatchdogConfig,
}

/// Why a request to the guardian failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process could not be started.
    #[error("start guardian {program}")]
    Spawn {
        /// The binary.
        program: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// It started, and ended with a sentence.
    #[error("start guardian: {message}")]
    StartRefused {
        /// What it said.
        message: String,
    },
    /// Its socket does not answer.
    #[error("connect to guardian {socket}")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The guardian refused, by a rule.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The connection broke before the answer; whether the request was carried out is in the next status.
    #[error("the connection to the guardian broke before it answered")]
    LinkLost,
    /// No guardian runs. Attach again.
    #[error("the guardian is gone, and postgres with it; attach again to start a new one")]
    Gone,
    /// Another agent attached.
    #[error("another agent (pid {by}) has attached to the guardian; this one must not act")]
    Replaced {
        /// Its process.
        by: u32,
    },
    /// No answer in time.
    #[error("the guardian did not answer within {} ms", .after.as_millis())]
    NoAnswer {
        /// How long was waited.
        after: Duration,
    },
    /// The request cannot be sent.
    #[error("the request cannot be sent: {why}")]
    Unsendable {
        /// Why.
        why: String,
    },
    /// An answer of another kind than the request calls for.
    #[error("the guardian answered {request} with something else: {answer}")]
    UnexpectedAnswer {
        /// The request.
        request: &'static str,
        /// The answer.
        answer: String,
    },
}

impl Error {
    /// Whether the same request may succeed on another try with a fresh status.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::LinkLost
                | Self::NoAnswer { .. }
                | Self::Refused(Refusal::NotReady | Refusal::Fencing | Refusal::Stopping | Refusal::NotAttached)
        )
    }
}

/// A handle on the node's guardian. Cheap to clone; dropping the last one closes the connection, which disturbs
/// nothing within the permit.
#[derive(Debug, Clone)]
pub struct Guardian {
    calls: mpsc::Sender<Call>,
    status: watch::Receiver<GuardianStatus>,
}

#[derive(Debug)]
struct Call {
    request: Request,
    answer: oneshot::Sender<Result<Done, Error>>,
}

impl Guardian {
    /// Connects to the guardian that runs, or starts one, and becomes its agent: an agent attached before is told
    /// so and disconnected. The receiver always holds the newest status.
    ///
    /// # Errors
    /// `Spawn` or `StartRefused` when there was none and it could not be started (the message says what to do);
    /// `Connect` when a process holds the lock and does not answer; `Refused` when it speaks another protocol.
    pub async fn attach(config: GuardianConfig) -> Result<(Self, watch::Receiver<GuardianStatus>), Error> {
        let stream = match UnixStream::connect(&config.socket).await {
            Ok(stream) => stream,
            Err(error) if nobody_listens(&error) => {
                spawn(&config).await?;
                connect_until(&config.socket, SPAWN_TIMEOUT).await?
            }
            Err(source) => return Err(Error::Connect { socket: config.socket, source }),
        };
        let mut wire = Wire::new(stream);
        let first = timeout(ANSWER_TIMEOUT, wire.attach(&config.watchdog))
            .await
            .map_err(|_| Error::NoAnswer { after: ANSWER_TIMEOUT })??;
        let (status_in, status) = watch::channel(first);
        let (calls, calls_in) = mpsc::channel(64);
        tokio::spawn(LinkTask::new(config, calls_in, status_in).run(wire));
        Ok((Self { calls, status: status.clone() }, status))
    }

    /// The newest status.
    pub fn status(&self) -> GuardianStatus {
        self.status.borrow().clone()
    }

    /// Starts PostgreSQL and returns the postmaster's process id. That it was started does not mean that it stays:
    /// follow the status and ask PostgreSQL.
    ///
    /// # Errors
    /// Among the refusals: `NoStandbySignal`, `SignalFilePresent`, `PermitExpired`, `InUse`, `AlreadyRunning`.
    pub async fn start(&self, request: StartRequest) -> Result<u32, Error> {
        match self.ask(Request::Start(Box::new(request)), ANSWER_TIMEOUT).await? {
            Done::Started { pid } => Ok(pid),
            other => Err(unexpected("start", &other)),
        }
    }

    /// Takes over a PostgreSQL that runs already and that no guardian started, without disturbing it, and returns the
    /// postmaster's process id. From then on it is guarded like any other, with one exception: the kernel ties it to
    /// the guardian through the tether only (`Privileges::tether`).
    ///
    /// # Errors
    /// `NothingToAdopt`; as for `start`, the signal files and the permit must fit.
    pub async fn adopt(&self, request: AdoptRequest) -> Result<u32, Error> {
        match self.ask(Request::Adopt(request), ANSWER_TIMEOUT).await? {
            Done::Started { pid } => Ok(pid),
            other => Err(unexpected("adopt", &other)),
        }
    }

    /// Extends the permit. Harmless while PostgreSQL is a standby.
    ///
    /// # Errors
    /// `PermitExpired`, `TermTooLow`, `PermitShrinks`.
    pub async fn permit(&self, permit: LeaderPermit) -> Result<(), Error> {
        accepted("permit", self.ask(Request::Permit { permit }, ANSWER_TIMEOUT).await?)
    }

    /// Promotes the running standby under this permit. Safe to repeat until PostgreSQL has left recovery; repeating
    /// bounds the stall of a promotion that arrives while the startup process sleeps between WAL sources.
    ///
    /// # Errors
    /// As for `permit`; `NotRunning`, `NotReady`, `Watchdog`.
    pub async fn promote(&self, permit: &LeaderPermit) -> Result<(), Error> {
        accepted("promote", self.ask(Request::Promote { permit: *permit }, ANSWER_TIMEOUT).await?)
    }

    /// Lets go of the running PostgreSQL: it goes on, and nobody ends it but people.
    ///
    /// # Errors
    /// `NotRunning`, `NotReady`, `Stopping` and the like.
    pub async fn release(&self) -> Result<(), Error> {
        accepted("release", self.ask(Request::Release, ANSWER_TIMEOUT).await?)
    }

    /// Has PostgreSQL read its configuration again.
    ///
    /// # Errors
    /// `NotRunning`, `NotReady`.
    pub async fn reload(&self) -> Result<(), Error> {
        accepted("reload", self.ask(Request::Reload, ANSWER_TIMEOUT).await?)
    }

    /// Stops PostgreSQL and returns when no process of it is left; `None` when none ran.
    ///
    /// # Errors
    /// `StopTimedOut` with [`Escalate::Wait`].
    pub async fn stop(&self, mode: StopMode, within: Duration, then: Escalate) -> Result<Option<Exit>, Error> {
        let timeout_ms = super::deadline::millis(within);
        match self.ask(Request::Stop { mode, timeout_ms, then }, within + FENCE_TIMEOUT).await? {
            Done::Stopped(exit) => Ok(exit),
            other => Err(unexpected("stop", &other)),
        }
    }

    /// Kills everything that uses the data directory, now, and returns when nothing is left.
    ///
    /// # Errors
    /// `NoAnswer` when a process cannot be killed (it waits for a disk); the guardian goes on trying.
    pub async fn fence(&self, why: &str) -> Result<FenceReport, Error> {
        match self.ask(Request::Fence { why: why.chars().take(1000).collect() }, FENCE_TIMEOUT).await? {
            Done::Fenced(report) => Ok(report),
            other => Err(unexpected("fence", &other)),
        }
    }

    /// Ends the guardian.
    ///
    /// # Errors
    /// `StillRunning` while PostgreSQL runs.
    pub async fn shutdown(&self) -> Result<(), Error> {
        accepted("shutdown", self.ask(Request::Shutdown, ANSWER_TIMEOUT).await?)
    }

    async fn ask(&self, request: Request, within: Duration) -> Result<Done, Error> {
        let (answer, heard) = oneshot::channel();
        let call = Call { request, answer };
        let exchange = async {
            self.calls.send(call).await.map_err(|_| Error::Gone)?;
            heard.await.map_err(|_| Error::LinkLost)?
        };
        timeout(within, exchange).await.map_err(|_| Error::NoAnswer { after: within })?
    }
}

fn accepted(request: &'static str, done: Done) -> Result<(), Error> {
    match done {
        Done::Accepted => Ok(()),
        other => Err(unexpected(request, &other)),
    }
}

fn unexpected(request: &'static str, answer: &Done) -> Error {
    Error::UnexpectedAnswer { request, answer: format!("{answer:?}") }
}

/// Whether connecting failed because no guardian runs.
fn nobody_listens(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Starts a guardian. The process returns as soon as the real one, detached, listens.
async fn spawn(config: &GuardianConfig) -> Result<(), Error> {
    let mut command = tokio::process::Command::new(&config.program);
    command.arg("guardian").arg("--detach");
    command.arg("--socket").arg(&config.socket);
    command.arg("--data-dir").arg(&config.data_dir);
    command.arg("--name").arg(config.name.as_str());
    if let Some(log) = &config.log_file {
        command.arg("--log").arg(log);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let failed = |source| Error::Spawn { program: config.program.clone(), source };
    let output = timeout(SPAWN_TIMEOUT, command.output())
        .await
        .map_err(|_| Error::StartRefused { message: format!("no sign of life within {SPAWN_TIMEOUT:?}") })?
        .map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let message = if said.is_empty() { output.status.to_string() } else { said };
    Err(Error::StartRefused { message })
}

async fn connect_until(socket: &Path, within: Duration) -> Result<UnixStream, Error> {
    let attempts = async {
        loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => return Ok(stream),
                Err(error) if nobody_listens(&error) => sleep(RETRY).await,
                Err(source) => return Err(source),
            }
        }
    };
    match timeout(within, attempts).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) => Err(Error::Connect { socket: socket.to_owned(), source }),
        Err(_) => Err(Error::Connect { socket: socket.to_owned(), source: io::ErrorKind::TimedOut.into() }),
    }
}
