//! What can go wrong around one local PostgreSQL, named for the operation that failed.
//!
//! Absent on purpose: logging. An error is logged once, by the caller that handles it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::types::{PgVersion, SystemId};

/// A failed operation on the local PostgreSQL instance.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No PostgreSQL programs where we looked.
    #[error("find PostgreSQL programs: {missing} not found in {searched}; {remedy}")]
    FindBinaries {
        /// The program that is missing.
        missing: String,
        /// Every place that was searched, in order.
        searched: String,
        /// What the operator can do.
        remedy: String,
    },
    /// `postgres --version` said something that is no version.
    #[error("read the version of {program:?}: {output:?} is not a PostgreSQL version")]
    ReadVersion {
        /// The program that was asked.
        program: PathBuf,
        /// What it printed.
        output: String,
    },
    /// The programs are too old.
    #[error(
        "use PostgreSQL {version} from {program:?}: versions 13 and newer are supported; install a newer one or set postgresql.bin_dir"
    )]
    UnsupportedVersion {
        /// The version found.
        version: PgVersion,
        /// Where.
        program: PathBuf,
    },
    /// The operating-system user that PostgreSQL is to run as cannot be found or used.
    #[error("resolve operating-system user {user:?}: {why}")]
    ResolveUser {
        /// Name of the user.
        user: String,
        /// Why, with the remedy.
        why: String,
    },
    /// A value of the configuration cannot be used.
    #[error("check {what}: {why}")]
    CheckConfig {
        /// The key.
        what: &'static str,
        /// Why, with the remedy.
        why: String,
    },
    /// A file or directory could not be read.
    #[error("read {path:?}")]
    ReadFile {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A file could not be written durably.
    #[error("write {path:?}")]
    WriteFile {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A directory could not be made.
    #[error("create directory {path:?}")]
    CreateDir {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Something of ours could not be removed.
    #[error("remove {path:?}")]
    Remove {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A directory could not be renamed.
    #[error("rename {from:?} to {to:?}: {why}")]
    Rename {
        /// Old name.
        from: PathBuf,
        /// New name.
        to: PathBuf,
        /// Why, with the remedy.
        why: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A tool could not be started.
    #[error("start {tool}")]
    StartTool {
        /// Program name.
        tool: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A tool ended with a failure.
    #[error("run {tool}: {status}: {detail}")]
    RunTool {
        /// Program name.
        tool: String,
        /// Exit code or signal.
        status: String,
        /// The last lines that it wrote to its error output.
        detail: String,
    },
    /// A tool did not end in time and was killed.
    #[error("run {tool}: no end within {after:?}, killed")]
    ToolTimeout {
        /// Program name.
        tool: String,
        /// The limit.
        after: Duration,
    },
    /// The caller cancelled the operation; what it had made was removed.
    #[error("{operation}: cancelled")]
    Cancelled {
        /// Which operation.
        operation: &'static str,
    },
    /// The output of `pg_controldata` was not understood.
    #[error("parse pg_controldata: {why}")]
    ParseControlData {
        /// Which field.
        why: String,
    },
    /// A timeline history file was not understood.
    #[error("parse timeline history {name}")]
    ParseHistory {
        /// The file's name.
        name: String,
        /// Where it is wrong.
        #[source]
        source: crate::types::timeline::InvalidHistory,
    },
    /// The data directory is not in the state that the operation needs.
    #[error("{operation}: data directory {path:?} {state}")]
    DataDirState {
        /// The operation that was refused.
        operation: &'static str,
        /// The data directory.
        path: PathBuf,
        /// Its state and the remedy, as the rest of the sentence.
        state: String,
    },
    /// The operation needs PostgreSQL to be stopped.
    #[error("{operation}: PostgreSQL is running with pid {pid}; stop it first")]
    ServerRunning {
        /// The operation that was refused.
        operation: &'static str,
        /// The postmaster.
        pid: u32,
    },
    /// PostgreSQL refuses the settings, and not because of a single parameter of ours.
    #[error("check settings: PostgreSQL refuses them: {detail}")]
    SettingsRefused {
        /// PostgreSQL's own words.
        detail: String,
    },
    /// pg_rewind cannot help here; a new copy is needed.
    #[error("rewind: {why}; this data directory must be rebuilt from a base backup")]
    RewindRefused {
        /// Why.
        why: String,
    },
    /// The upstream cannot serve this now but will soon.
    #[error("{operation}: {upstream} is not ready: {why}")]
    UpstreamNotReady {
        /// The operation that waits.
        operation: &'static str,
        /// host:port.
        upstream: String,
        /// What is missing.
        why: String,
    },
    /// WAL that only this node has could not be archived before a rewind would remove it.
    #[error(
        "rewind: {segments} WAL segments wait to be archived and archive_command failed for {first}: {detail}; repair the archive, or rebuild from a base backup (the old directory is kept)"
    )]
    ArchiveReadyWal {
        /// How many segments wait.
        segments: usize,
        /// The one that failed.
        first: String,
        /// The command's words.
        detail: String,
    },
    /// The upstream belongs to another cluster.
    #[error(
        "{operation}: {upstream} has system identifier {theirs}, this cluster has {ours}; it is another database cluster"
    )]
    SystemIdDiffers {
        /// The operation that was refused.
        operation: &'static str,
        /// host:port.
        upstream: String,
        /// This cluster's.
        ours: SystemId,
        /// The upstream's.
        theirs: SystemId,
    },
    /// A question to a PostgreSQL server failed.
    #[error("{operation}")]
    Sql {
        /// What was asked.
        operation: &'static str,
        /// How it failed.
        #[source]
        source: StatusError,
    },
    /// An answer of PostgreSQL did not have the expected form.
    #[error("{operation}: unexpected answer: {why}")]
    UnexpectedAnswer {
        /// What was asked.
        operation: &'static str,
        /// What is odd.
        why: String,
    },
}

impl Error {
    /// Whether trying again later, with nothing repaired by a person, may succeed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::ToolTimeout { .. } | Self::UpstreamNotReady { .. } | Self::RunTool { .. } => true,
            Self::Sql { source, .. } => source.is_transient(),
            Self::FindBinaries { .. }
            | Self::ReadVersion { .. }
            | Self::UnsupportedVersion { .. }
            | Self::ResolveUser { .. }
            | Self::CheckConfig { .. }
            | Self::ReadFile { .. }
            | Self::WriteFile { .. }
            | Self::CreateDir { .. }
            | Self::Remove { .. }
            | Self::Rename { .. }
            | Self::StartTool { .. }
            | Self::Cancelled { .. }
            | Self::ParseControlData { .. }
            | Self::ParseHistory { .. }
            | Self::DataDirState { .. }
            | Self::ServerRunning { .. }
            | Self::SettingsRefused { .. }
            | Self::RewindRefused { .. }
            | Self::ArchiveReadyWal { .. }
            | Self::SystemIdDiffers { .. }
            | Self::UnexpectedAnswer { .. } => false,
        }
    }
}

/// Why a server that is there does not let us in yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAccepting {
    /// Starting, or replaying WAL before consistency.
    StartingUp,
    /// On its way down.
    ShuttingDown,
    /// Recovering after a crash of one of its processes.
    Recovering,
    /// It said so in words that we do not know (another language).
    Unspecified,
}

/// How a question to a PostgreSQL server failed. A failed *query* is not a dead server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatusError {
    /// The server is there, and not open to sessions.
    #[error("connect to {endpoint}: server is not accepting connections: {message}")]
    NotAccepting {
        /// Where.
        endpoint: String,
        /// Which state it is in.
        state: NotAccepting,
        /// Its own words.
        message: String,
    },
    /// Nobody listens.
    #[error("connect to {endpoint}: {message}")]
    Refused {
        /// Where.
        endpoint: String,
        /// The system's answer.
        message: String,
    },
    /// No answer in time.
    #[error("no answer within {after:?}")]
    Timeout {
        /// The limit.
        after: Duration,
    },
    /// The server does not let this user in.
    #[error(
        "connect to {endpoint} as {user:?}: {message}; pg_hba.conf must admit this user and the password must match"
    )]
    Authentication {
        /// Where.
        endpoint: String,
        /// As whom.
        user: String,
        /// The server's words.
        message: String,
    },
    /// Somebody else's server answers at our address; about ours this says nothing.
    #[error(
        "connect to {expected:?}: the server that answers works in {found:?}; two servers are configured with one port"
    )]
    OtherServer {
        /// Our data directory.
        expected: PathBuf,
        /// The data directory of the server that answered.
        found: PathBuf,
    },
    /// All connection slots are taken, even the reserved ones. The server is alive.
    #[error("connect to {endpoint}: all connection slots are taken")]
    TooManyConnections {
        /// Where.
        endpoint: String,
    },
    /// The server answered with an error.
    #[error("query failed: {message} (SQLSTATE {sqlstate})")]
    Query {
        /// Five characters.
        sqlstate: String,
        /// The server's words.
        message: String,
    },
    /// The connection broke during the question.
    #[error("connection lost: {message}")]
    ConnectionLost {
        /// What is known.
        message: String,
    },
    /// The answer has no sense.
    #[error("unexpected answer: {why}")]
    Answer {
        /// What is odd.
        why: String,
    },
}

impl StatusError {
    /// Whether the same question may succeed later without anyone's help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NotAccepting { .. }
            | Self::Refused { .. }
            | Self::Timeout { .. }
            | Self::TooManyConnections { .. }
            | Self::Query { .. }
            | Self::ConnectionLost { .. } => true,
            Self::Authentication { .. } | Self::OtherServer { .. } | Self::Answer { .. } => false,
        }
    }
}
