//! What a client may ask of a node: the trait between the REST endpoints and the agent.
//!
//! The endpoints parse, check what the snapshot can tell, and call; the implementation writes a request into the
//! record and waits for its outcome. Deliberately absent: PostgreSQL and Raft themselves.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use axum::http::StatusCode;
use serde_json::Value;

use crate::agent::peers::Position;
use crate::agent::snapshot::{RaftMember, Role};
use crate::config::HostPort;
use crate::types::{NodeName, WallTime};

/// An answer that takes time.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, ControlError>> + Send + 'a>>;

/// What a node can be asked to do. Every method returns within its own deadline; the endpoint drops the future later
/// than that, so dropping it must be safe.
pub trait Control: Send + Sync + 'static {
    /// Moves the leadership in good order. The request has a leader and passed the checks against the snapshot.
    fn switchover(&self, request: SwitchoverRequest) -> Answer<'_, ControlOutcome>;
    /// Makes the candidate leader, whether or not there is one. The request has a candidate.
    fn failover(&self, request: SwitchoverRequest) -> Answer<'_, ControlOutcome>;
    /// Drops a scheduled switchover. `NotFound` when there is none.
    fn cancel_switchover(&self) -> Answer<'_, ControlOutcome>;
    /// Merges `patch` into the shared settings by compare-and-swap, checks the result, returns it whole.
    fn patch_config(&self, patch: Value) -> Answer<'_, Value>;
    /// Replaces the shared settings, after checking them; returns them.
    fn put_config(&self, config: Value) -> Answer<'_, Value>;
    /// Restarts PostgreSQL here, now or at a time.
    fn restart(&self, request: RestartRequest) -> Answer<'_, ControlOutcome>;
    /// Drops a scheduled restart. `NotFound` when there is none.
    fn cancel_restart(&self) -> Answer<'_, ControlOutcome>;
    /// Reads the node's file again.
    fn reload(&self) -> Answer<'_, ControlOutcome>;
    /// Replaces the local data directory with a new copy of the leader's; the old one is moved aside.
    fn reinitialize(&self, request: ReinitializeRequest) -> Answer<'_, ControlOutcome>;
    /// What the server is like that somebody else runs here, and what would be different.
    fn preflight(&self) -> Answer<'_, Value>;
    /// Takes over the server that somebody else runs here, as it runs.
    fn adopt(&self) -> Answer<'_, ControlOutcome>;
    /// Lets PostgreSQL go on without howdah, and ends the node.
    fn release(&self) -> Answer<'_, ControlOutcome>;
    /// Adds a member to the store; returns all.
    fn add_member(&self, member: NewMember) -> Answer<'_, Vec<RaftMember>>;
    /// Removes a member from the store; returns those that are left.
    fn remove_member(&self, name: NodeName) -> Answer<'_, Vec<RaftMember>>;
    /// Moves the store's own leadership, to the named member or to any other.
    fn transfer(&self, to: Option<NodeName>) -> Answer<'_, ControlOutcome>;
    /// Where the local PostgreSQL is at this moment, for the other members' comparison.
    fn position(&self) -> Answer<'_, Position>;
}

/// A switchover or failover.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SwitchoverRequest {
    /// From this leader.
    pub leader: Option<NodeName>,
    /// To this member; none = the best one.
    pub candidate: Option<NodeName>,
    /// Not before; none = now.
    pub scheduled_at: Option<WallTime>,
}

/// A restart of the local PostgreSQL. All conditions must hold when the time has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestartRequest {
    /// Not before; none = now.
    pub schedule: Option<WallTime>,
    /// Only in this role.
    pub role: Option<Role>,
    /// Only if the server is older than this `server_version_num`.
    pub older_than: Option<u32>,
    /// How long it may take to come up.
    pub timeout: Option<Duration>,
    /// Only if settings wait for a restart.
    pub restart_pending: bool,
}

/// A new copy of the leader's data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReinitializeRequest {
    /// Cancel a long task that runs.
    pub force: bool,
    /// From the leader, not from another replica.
    pub from_leader: bool,
}

/// A node that joins the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMember {
    /// Its name.
    pub name: NodeName,
    /// Its main port.
    pub addr: HostPort,
}

/// A success, with the text that the client is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlOutcome {
    /// It is done: 200.
    Done(String),
    /// It will be done: 202.
    Accepted(String),
}

impl ControlOutcome {
    /// After a switchover. `leader` is who leads now, which may be another than the candidate. Tools match the text.
    pub fn switched_over(leader: &NodeName) -> Self {
        Self::Done(format!("Successfully switched over to \"{leader}\""))
    }

    /// After a failover. Tools match the text.
    pub fn failed_over(leader: &NodeName) -> Self {
        Self::Done(format!("Successfully failed over to \"{leader}\""))
    }

    /// After scheduling a switchover. Tools match the text.
    pub fn scheduled() -> Self {
        Self::Accepted("Switchover scheduled".to_owned())
    }
}

/// A failure: what the client did wrong, or what is in the way. The text is a sentence for people, with the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The request makes no sense: 400.
    #[error("{0}")]
    BadRequest(String),
    /// There is nothing to act on: 404.
    #[error("{0}")]
    NotFound(String),
    /// Somebody else changed the same thing first: 409.
    #[error("{0}")]
    Conflict(String),
    /// A rule says no: 412.
    #[error("{0}")]
    Refused(String),
    /// A time in the past or unreadable: 422.
    #[error("{0}")]
    Unprocessable(String),
    /// Nothing is scheduled in a pause: 500, which is Patroni's answer for it.
    #[error("{0}")]
    Paused(String),
    /// Not offered: 501.
    #[error("{0}")]
    Unsupported(String),
    /// What is asked about does not exist yet: 502.
    #[error("{0}")]
    Missing(String),
    /// The store cannot be written: 503.
    #[error("{0}")]
    NoQuorum(String),
    /// It was tried and failed, or its outcome is not known: 503.
    #[error("{0}")]
    Failed(String),
}

impl ControlError {
    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Refused(_) => StatusCode::PRECONDITION_FAILED,
            Self::Unprocessable(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Paused(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            Self::Missing(_) => StatusCode::BAD_GATEWAY,
            Self::NoQuorum(_) | Self::Failed(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The word in the `howdah-code` header: what the status alone does not tell apart.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadRequest(_) | Self::Unprocessable(_) => "bad_request",
            Self::NotFound(_) | Self::Missing(_) => "not_found",
            Self::Conflict(_) => "conflict",
            Self::Refused(_) | Self::Paused(_) => "refused",
            Self::Unsupported(_) => "unsupported",
            Self::NoQuorum(_) => "no_quorum",
            Self::Failed(_) => "failed",
        }
    }
}
