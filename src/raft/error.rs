//! What can go wrong: once when a store is opened ([`Error`]), and for each request ([`StoreError`]).
//!
//! `Error` is for the person who starts the node, so every variant names the file and what to do.
//! `StoreError` is for code: it says whether the request may have taken effect.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::kv;

/// Why a store cannot be opened, started or repaired.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory or file of the store cannot be created, read or written.
    #[error("{operation} {path}")]
    File {
        /// What was tried, for example "create directory".
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: std::io::Error,
    },
    /// Another process holds the directory.
    #[error(
        "open store {path}: it is in use by another process; stop that process, or give this node a data directory of its own"
    )]
    Locked {
        /// The data directory.
        path: PathBuf,
    },
    /// Something that was written is not there, or not what was written.
    #[error("open store {path}: {what}; move {dir} aside and start again: the node will be rebuilt from its peers as a new member (if no peer has the data any more, keep the directory and ask for help before `force-new-cluster`)", dir = dir.display())]
    Damaged {
        /// The file that is damaged.
        path: PathBuf,
        /// The data directory.
        dir: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Written by a newer version of this program.
    #[error(
        "open store {path}: it has format {found}, this program knows formats up to {known}; start the newer version that wrote it"
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The format found.
        found: u32,
        /// The newest format known.
        known: u32,
    },
    /// The directory belongs to another node or cluster.
    #[error(
        "open store {path}: it belongs to node {found_name} of cluster {found_cluster}, but the configuration says node {name} of cluster {cluster}; correct the configuration or the data directory"
    )]
    WrongIdentity {
        /// The data directory.
        path: PathBuf,
        /// Who wrote it.
        found_name: String,
        /// In which cluster.
        found_cluster: String,
        /// The configured name.
        name: String,
        /// The configured cluster.
        cluster: String,
    },
    /// The configuration cannot work.
    #[error("configure store: {why}")]
    Config {
        /// Which rule it breaks, as a sentence.
        why: String,
    },
    /// The log on disk refused a write; this node can be no member any more.
    #[error("write store {path}: {why}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What happened.
        why: String,
    },
    /// The consensus engine did not start.
    #[error("start consensus: {why}")]
    Start {
        /// What it said.
        why: String,
    },
    /// An offline repair was asked for that makes no sense.
    #[error("force new cluster in {path}: {why}")]
    Force {
        /// The data directory.
        path: PathBuf,
        /// Why not.
        why: String,
    },
}

/// Why a request to the store failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum StoreError {
    /// No leader is known or it cannot be reached; certainly not applied.
    #[error("the store has no leader at the moment")]
    NoLeader,
    /// No answer within the deadline.
    #[error("the store did not answer in time{}", if *maybe_applied { "; the change may or may not have been made" } else { "" })]
    Timeout {
        /// Whether the change may have taken effect, or may still do so.
        maybe_applied: bool,
    },
    /// The state machine answered with an error; nothing changed.
    #[error("{0}")]
    Rejected(kv::Error),
    /// A rule of the store or of its membership refuses it; nothing changed.
    #[error("{why}")]
    Refused {
        /// The rule, as a sentence.
        why: String,
    },
    /// This node is stopping.
    #[error("the store is shutting down")]
    Shutdown,
}

impl StoreError {
    /// Builds a refusal from its sentence.
    pub(super) fn refused(why: impl Into<String>) -> Self {
        Self::Refused { why: why.into() }
    }
}
