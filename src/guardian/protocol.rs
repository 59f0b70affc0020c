//! The language of agent and guardian: JSON lines over a unix stream socket, at most 64 KiB each.
//!
//! ```text
//! agent    -> {"v":1,"id":7,"request":{"permit":{"permit":{"term":3,"valid_until":123}}}}
//! guardian -> {"v":1,"reply":{"id":7,"answer":{"done":"accepted"}}}
//! guardian -> {"v":1,"status":{...}}                       whenever something changed
//! guardian -> {"v":1,"replaced":{"by":4711}}               and the connection is closed
//! ```
//!
//! A guardian may be older than its agent (it survives upgrades): within one major version fields may be added,
//! never changed, and unknown fields are ignored. Deliberately absent: the transport (`server.rs`, `client.rs`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::status::{Exit, FenceReport, GuardianStatus};
use crate::types::{LeaderPermit, Mono, StopMode, Term};

/// The protocol's major version.
pub const PROTOCOL: u32 = 1;

/// The longest line that either side accepts, without its newline.
pub const LINE_LIMIT: usize = 64 * 1024;

/// One line from the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestLine {
    /// [`PROTOCOL`].
    pub v: u32,
    /// Chosen by the client; the reply carries it.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// What an agent may ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Become the agent of this guardian. The last one wins; the one before is told and its connection closed.
    Attach {
        /// The agent's process, for the log.
        agent_pid: u32,
        /// What to do with the watchdog device from now on.
        #[serde(default)]
        watchdog: WatchdogConfig,
    },
    /// Answer with the status. The only request that needs no `Attach`.
    Status,
    /// Start PostgreSQL.
    Start(Box<StartRequest>),
    /// Take over a PostgreSQL that runs already.
    Adopt(AdoptRequest),
    /// Hold this permit from now on.
    Permit {
        /// The new or extended permit.
        permit: LeaderPermit,
    },
    /// Hold this permit, then promote. May be repeated.
    Promote {
        /// The right to do so.
        permit: LeaderPermit,
    },
    /// Have PostgreSQL read its configuration again.
    Reload,
    /// Stop PostgreSQL. The answer comes when it is gone or the time is up.
    Stop {
        /// How.
        mode: StopMode,
        /// How long to wait.
        timeout_ms: u64,
        /// What then.
        then: Escalate,
    },
    /// Kill everything of this data directory now. The answer comes when nothing is left.
    Fence {
        /// For the log and the report.
        why: String,
    },
    /// Let go of the running PostgreSQL: from now on nobody ends it but people. A guardian that started it stays until
    /// it ends, as nothing but its parent.
    Release,
    /// End the guardian. Refused while PostgreSQL runs.
    Shutdown,
}

/// What happens when a stop takes too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Escalate {
    /// Kill everything.
    Kill,
    /// Answer `StopTimedOut`; PostgreSQL goes on stopping.
    Wait,
}

/// As what PostgreSQL is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartMode {
    /// Needs `standby.signal` in the data directory.
    Standby,
    /// Needs a permit that holds, and neither `standby.signal` nor `recovery.signal`.
    Primary {
        /// The right to accept writes.
        permit: LeaderPermit,
    },
}

/// How to start the postmaster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartRequest {
    /// The `postgres` program itself, absolute; not `pg_ctl`, which would come between.
    pub program: PathBuf,
    /// Its arguments, without the program's name. `-D` is added when absent.
    pub args: Vec<String>,
    /// The whole environment; nothing is inherited (so neither is `NOTIFY_SOCKET`).
    pub env: BTreeMap<String, String>,
    /// The directories of its unix sockets: a stale lock there, of the process that the stale `postmaster.pid` names,
    /// is removed with it.
    #[serde(default)]
    pub socket_dirs: Vec<PathBuf>,
    /// Where to start it; the data directory when `None`.
    pub cwd: Option<PathBuf>,
    /// The user to become; the guardian's own when `None`.
    pub uid: Option<u32>,
    /// The group to become.
    pub gid: Option<u32>,
    /// The supplementary groups; used only when `uid` is given.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// Where its standard output and error go (appended, created 0600 as that user); `/dev/null` when `None`.
    pub log_file: Option<PathBuf>,
    /// As what.
    pub mode: StartMode,
}

/// Which running PostgreSQL to take over: the one of the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptRequest {
    /// The `postgres` program that runs, for its name in the process list.
    pub program: PathBuf,
    /// The user that it runs as; the guardian's own when `None`.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
    /// As what it runs. A primary needs a permit that holds.
    pub mode: StartMode,
}

/// Whether a watchdog device guards the permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchdogMode {
    /// Never opened.
    #[default]
    Off,
    /// Used when it can be had.
    Automatic,
    /// PostgreSQL is not made writable without it.
    Required,
}

/// What to do with the watchdog device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchdogConfig {
    /// Whether to use it.
    pub mode: WatchdogMode,
    /// The device.
    pub device: PathBuf,
    /// Seconds from the last accepted permit to the machine's reset. Must be below the lease's ttl by at least the
    /// time that a store answer may take, and above `ttl - margin`, or the machine resets before the guardian fences.
    pub timeout_s: u32,
    /// The device is any file: what it would be asked by ioctl is written into it as text.
    #[serde(default)]
    pub testing: bool,
}

impl Default for WatchdogConfig {
    fn default() -> Self {
        Self { mode: WatchdogMode::Off, device: PathBuf::from("/dev/watchdog"), timeout_s: 5, testing: false }
    }
}

/// One line from the guardian.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardianLine {
    /// [`PROTOCOL`].
    pub v: u32,
    /// What it says.
    #[serde(flatten)]
    pub says: Says,
}

/// What the guardian says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Says {
    /// The answer to one request.
    Reply {
        /// The request's number.
        id: u64,
        /// The answer.
        answer: Answer,
    },
    /// Something changed.
    Status(Box<GuardianStatus>),
    /// One line of the guardian's journal, for the agent's log.
    Log {
        /// When.
        at: Mono,
        /// What happened.
        text: String,
    },
    /// Another agent attached; this connection is closed.
    Replaced {
        /// The other agent's process.
        by: u32,
    },
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It was done.
    Done(Done),
    /// It was not, and nothing was changed.
    Refused(Refusal),
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Done {
    /// Accepted; nothing more to say.
    Accepted,
    /// To `Status` and `Attach`.
    Status(Box<GuardianStatus>),
    /// The postmaster was started; it may still fail, which the status will tell.
    Started {
        /// Its process id.
        pid: u32,
    },
    /// PostgreSQL is stopped; `None` when there was nothing to stop.
    Stopped(Option<Exit>),
    /// Nothing is left.
    Fenced(FenceReport),
}

/// Why a request was refused. The rule, with the values that broke it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Refusal {
    /// Requests count only from the attached agent.
    #[error("this connection is not the attached agent; attach first")]
    NotAttached,
    /// A permit that has ended gives no right.
    #[error("the permit of term {term} ended {late_ms} ms ago")]
    PermitExpired {
        /// Its term.
        term: Term,
        /// How long ago.
        late_ms: u64,
    },
    /// An older leadership cannot replace a newer one.
    #[error("the permit of term {offered} is older than the one held, of term {held}")]
    TermTooLow {
        /// Held.
        held: Term,
        /// Offered.
        offered: Term,
    },
    /// Within a term the end only moves away.
    #[error("the permit of term {term} ends {short_ms} ms earlier than the one held")]
    PermitShrinks {
        /// The term.
        term: Term,
        /// By how much.
        short_ms: u64,
    },
    /// A primary was to be started or promoted without a permit of its own.
    #[error("start postgres as standby: {path} is missing; create it, or present a permit")]
    NoStandbySignal {
        /// The file.
        path: PathBuf,
    },
    /// PostgreSQL would come up as something other than a primary.
    #[error("start postgres as primary: {path} is present and would make it a standby; remove it first")]
    SignalFilePresent {
        /// The file.
        path: PathBuf,
    },
    /// The data directory is not usable.
    #[error("start postgres: {path}: {why}")]
    DataDirectory {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// One at a time.
    #[error("postgres already runs under this guardian as pid {pid}")]
    AlreadyRunning {
        /// The postmaster.
        pid: u32,
    },
    /// Somebody else's PostgreSQL uses the directory.
    #[error(
        "start postgres: the data directory is in use by pid {pid}, which this guardian did not start; \
         stop it (pg_ctl stop), or ask for a fence"
    )]
    InUse {
        /// A process that uses it.
        pid: u32,
    },
    /// No PostgreSQL runs on the data directory.
    #[error("adopt postgres: no postmaster runs on {path}; start it instead")]
    NothingToAdopt {
        /// The data directory.
        path: PathBuf,
    },
    /// The request needs a running PostgreSQL.
    #[error("postgres is not running")]
    NotRunning,
    /// The postmaster cannot take signals yet.
    #[error("postgres was started just now and cannot take signals yet; try again in a moment")]
    NotReady,
    /// A kill is under way.
    #[error("postgres is being killed; wait until the status says that nothing is left")]
    Fencing,
    /// A stop is under way.
    #[error("postgres is stopping; a start or a promotion must wait until it is gone")]
    Stopping,
    /// PostgreSQL did not stop in time.
    #[error("postgres did not stop within {waited_ms} ms; it goes on stopping")]
    StopTimedOut {
        /// How long.
        waited_ms: u64,
    },
    /// The guardian may not leave PostgreSQL alone.
    #[error("the guardian cannot end while postgres runs as pid {pid}; stop postgres first")]
    StillRunning {
        /// The postmaster.
        pid: u32,
    },
    /// The watchdog is required and cannot be had.
    #[error("watchdog {device} is required and not usable: {why}")]
    Watchdog {
        /// The device.
        device: PathBuf,
        /// What failed.
        why: String,
    },
    /// The operating system refused.
    #[error("{what}: {why}")]
    Failed {
        /// The operation.
        what: String,
        /// The system's answer.
        why: String,
    },
    /// The line was not understood.
    #[error("the guardian does not understand this request: {why}")]
    Malformed {
        /// Where and why.
        why: String,
    },
    /// Another major version.
    #[error(
        "the guardian speaks protocol {speaks}, the request is of protocol {asked}; \
         stop postgres, then restart the guardian"
    )]
    Protocol {
        /// The guardian's.
        speaks: u32,
        /// The request's.
        asked: u32,
    },
    /// A newer guardian's refusal that this agent does not know.
    #[error("refused for a reason that this version does not know")]
    #[serde(other)]
    Unknown,
}

/// Writes one line, with its newline.
///
/// # Errors
/// When the line is longer than [`LINE_LIMIT`].
pub fn encode<T: Serialize>(line: &T) -> Result<Vec<u8>, LineError> {
    let mut text = serde_json::to_vec(line).map_err(|e| LineError::Syntax { why: e.to_string() })?;
    if text.len() > LINE_LIMIT {
        return Err(LineError::TooLong { bytes: text.len() });
    }
    text.push(b'\n');
    Ok(text)
}

/// Reads one line, without its newline.
///
/// # Errors
/// When it is too long or not of the expected form.
pub fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<T, LineError> {
    if line.len() > LINE_LIMIT {
        return Err(LineError::TooLong { bytes: line.len() });
    }
    serde_json::from_slice(line).map_err(|e| LineError::Syntax { why: e.to_string() })
}

/// Why a line is unusable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Longer than the limit.
    #[error("a line of {bytes} bytes is longer than the limit of {LINE_LIMIT}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Not JSON, or not of the expected form.
    #[error("{why}")]
    Syntax {
        /// Where and why.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_stable_and_round_trip() {
        let permit = LeaderPermit { term: Term(3), valid_until: Mono(u64::MAX) };
        let line = RequestLine { v: PROTOCOL, id: 7, request: Request::Permit { permit } };
        let text = encode(&line).unwrap();
        assert_eq!(
            String::from_utf8_lossy(&text),
            "{\"v\":1,\"id\":7,\"request\":{\"permit\":{\"permit\":{\"term\":3,\"valid_until\":18446744073709551615}}}}\n"
        );
        assert_eq!(decode::<RequestLine>(text.trim_ascii_end()).unwrap(), line);

        let says = GuardianLine { v: 1, says: Says::Status(Box::default()) };
        let text = encode(&says).unwrap();
        assert_eq!(decode::<GuardianLine>(text.trim_ascii_end()).unwrap(), says);
    }

    #[test]
    fn unknown_fields_and_refusals_of_a_newer_guardian_are_survived() {
        let line = br#"{"v":1,"reply":{"id":1,"answer":{"refused":{"code":"moon_phase","full":1}},"more":true}}"#;
        let read: GuardianLine = decode(line).unwrap();
        assert_eq!(read.says, Says::Reply { id: 1, answer: Answer::Refused(Refusal::Unknown) });
    }

    #[test]
    fn too_long_is_refused_before_parsing() {
        assert!(matches!(decode::<RequestLine>(&vec![b' '; LINE_LIMIT + 1]), Err(LineError::TooLong { .. })));
        let line = RequestLine { v: 1, id: 1, request: Request::Fence { why: "x".repeat(LINE_LIMIT) } };
        assert!(matches!(encode(&line), Err(LineError::TooLong { .. })));
    }
}
