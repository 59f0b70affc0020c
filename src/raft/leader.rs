//! What only the leader does, asked here or by another member.
//!
//! `ClientRequest -> is this the leader, provably where it matters? -> ClientResponse`
//!
//! [`ClientError::NotLeader`] always means that nothing was proposed, so the asker may ask again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::errors::{ClientWriteError, RaftError};
use tokio::time::{sleep, timeout};

use super::confirm::{Confirmed, Unconfirmed};
use super::error::StoreError;
use super::gather::Way;
use super::node::{Node, ROOM};
use super::tally::Pending;
use super::types::{Proposal, Reply, TypeConfig};
use super::wire::{ClientError, ClientRequest, ClientResponse, KeyGuard};
use super::{codec, membership};
use crate::telemetry::clock;
use crate::types::{LeaseId, Mono};

/// What a request here ends in.
pub type Served = Result<ClientResponse, ClientError>;
/// Pause before asking for leadership again.
const AGAIN: Duration = Duration::from_millis(5);

/// Serves a request within a time.
pub async fn serve(node: &Arc<Node>, request: ClientRequest, within: Duration) -> Served {
    let until = clock::now() + within;
    match request {
        ClientRequest::Propose(proposal) => propose(node, proposal, until).await,
        ClientRequest::ReadIndex => {
            confirm(node, until).await.map(|confirmed| ClientResponse::ReadIndex(confirmed.read_index))
        }
        ClientRequest::Renew(id, guard) => renew(node, id, guard.as_ref(), until).await,
        ClientRequest::Remaining(id) => remaining(node, id, until).await,
        ClientRequest::TransferTo(name) => membership::transfer(node, &name, until).await,
        ClientRequest::Join { id, name, addr } => membership::join(node, id, &name, &addr, until).await,
        ClientRequest::SetAddress { id, addr } => membership::set_address(node, id, &addr, until).await,
        ClientRequest::AddMember { name, addr } => membership::add(node, &name, &addr, until).await,
        ClientRequest::RemoveMember(name) => membership::remove(node, &name, until).await,
    }
}

/// The time left until a moment.
pub fn left(until: Mono) -> Duration {
    until.since(clock::now())
}

/// Proves leadership, trying again while a new leader settles or a majority is slow.
pub async fn confirm(node: &Node, until: Mono) -> Result<Confirmed, ClientError> {
    loop {
        match timeout(left(until), node.confirmer.confirm()).await {
            Ok(Ok(confirmed)) => return Ok(confirmed),
            Ok(Err(Unconfirmed::NotLeader)) | Err(_) => return Err(ClientError::NotLeader),
            Ok(Err(Unconfirmed::Settling | Unconfirmed::NoQuorum)) => sleep(AGAIN.min(left(until))).await,
        }
        if left(until).is_zero() {
            return Err(ClientError::NotLeader);
        }
    }
}

/// Waits until so many entries are applied here.
pub async fn applied(node: &Node, index: u64, until: Mono) -> bool {
    let mut applied = node.machine.applied();
    let waited = timeout(left(until), applied.wait_for(|applied| *applied >= index)).await;
    matches!(waited, Ok(Ok(_)))
}

/// Waits for room in the log; a snapshot makes some.
async fn room(node: &Node, until: Mono) -> Result<(), ClientError> {
    while node.log.room() < ROOM {
        if let Some(raft) = node.raft() {
            // An error says that the engine has ended; the proposal will say so too.
            let _ = raft.trigger().snapshot().await;
        }
        if left(until).is_zero() {
            return Err(ClientError::Store(StoreError::Timeout { maybe_applied: false }));
        }
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

async fn propose(node: &Arc<Node>, proposal: Proposal, until: Mono) -> Served {
    let Some(raft) = node.raft() else { return Err(ClientError::NotLeader) };
    if !raft.is_leader() {
        return Err(ClientError::NotLeader);
    }
    if !codec::nesting_is_bounded(&proposal.0) {
        return Err(ClientError::Store(StoreError::refused("transactions are nested too deeply")));
    }
    let checked = node.machine.read().kv.check(&proposal.0);
    checked.map_err(|e| ClientError::Store(StoreError::Rejected(e)))?;
    let tally = &node.presence.tally;
    let _pending = Pending::new(tally);
    room(node, until).await?;
    let served = node.gatherer(Way::Log).propose(node, proposal, until).await;
    tally.failed.fetch_add(u64::from(served.is_err()), Ordering::Relaxed);
    served
}

/// What a failed write means; none when it may have taken effect.
pub fn write_error(error: &RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> Option<ClientError> {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => Some(ClientError::NotLeader),
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) | RaftError::Fatal(_) => None,
        RaftError::APIError(
            error @ (ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_)),
        ) => Some(ClientError::Store(StoreError::refused(error.to_string()))),
    }
}

async fn renew(node: &Arc<Node>, id: LeaseId, guard: Option<&KeyGuard>, until: Mono) -> Served {
    let confirmed = confirm(node, until).await?;
    if !applied(node, confirmed.read_index, until).await {
        return Err(ClientError::Store(StoreError::Timeout { maybe_applied: false }));
    }
    let outcome = node.lease_clock.renew(node, confirmed.term, id, guard);
    outcome.map(ClientResponse::Renewed).ok_or(ClientError::NotLeader)
}

async fn remaining(node: &Arc<Node>, id: LeaseId, until: Mono) -> Served {
    let confirmed = confirm(node, until).await?;
    if !applied(node, confirmed.read_index, until).await {
        return Err(ClientError::Store(StoreError::Timeout { maybe_applied: false }));
    }
    let left = node.lease_clock.remaining(node, confirmed.term, id).ok_or(ClientError::NotLeader)?;
    let millis = left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
    Ok(ClientResponse::Remaining(millis))
}

/// The state machine's answer, if that is what came back.
pub fn reply(response: ClientResponse) -> Result<crate::kv::command::Response, StoreError> {
    match response {
        ClientResponse::Applied(Reply::Done(outcome)) => outcome.map_err(StoreError::Rejected),
        other => Err(unexpected(&other)),
    }
}

/// An answer to another question; only a peer of another version could give it.
pub fn unexpected(response: &ClientResponse) -> StoreError {
    StoreError::refused(format!("the leader answered something else: {response:?}"))
}
