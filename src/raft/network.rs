//! The engine's way to other members, and everybody else's: a registry of links.
//!
//! Three links per member, one for each class of traffic, so that a snapshot never delays a
//! heartbeat and a slow disk's appends never delay a vote.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, Either, select};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{RaftNetworkFactory, RaftNetworkV2};

use tokio::runtime::Handle;

use super::link::{self, CallError, Link, Presence, Target};
use super::snapshot::Header;
use super::types::{LogId, Member, Snapshot, TypeConfig, Vote};
use super::wire::{CHUNK, Class, Request, Response};

/// How many append requests may be on their way to one follower.
const PIPELINE: usize = 16;
/// A follower may need a slow disk's fsync before it answers.
const APPEND: Duration = Duration::from_secs(5);
const SNAPSHOT_STEP: Duration = Duration::from_secs(10);

/// A member by id alone, a stranger (zero) by address.
type Key = (u64, String, Class);

/// All links of this node.
#[derive(Clone)]
pub struct Peers {
    presence: Arc<Presence>,
    /// Where links run, whoever asks first: not in the runtime of some caller.
    runtime: Handle,
    links: Arc<Mutex<HashMap<Key, Link>>>,
}

impl Peers {
    /// No links yet. They run in the runtime in which this is called.
    pub fn new(presence: Arc<Presence>) -> Self {
        Self { presence, runtime: Handle::current(), links: Arc::default() }
    }

    /// The link to a member; `id` zero means whoever answers at that address.
    pub fn link(&self, id: u64, addr: &str, class: Class) -> Link {
        let target = Target { id, addr: addr.to_owned(), class };
        let key = if id == 0 { (0, addr.to_owned(), class) } else { (id, String::new(), class) };
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let start = || {
            let _runtime = self.runtime.enter();
            Link::start(target, Arc::clone(&self.presence))
        };
        links.entry(key).or_insert_with(start).clone()
    }

    /// Takes over who the members are and where. Links to others end when their users let go.
    pub fn know(&self, members: HashMap<u64, String>) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|(id, ..), _| *id == 0 || members.contains_key(id));
        drop(links);
        *self.presence.addresses.lock().unwrap_or_else(PoisonError::into_inner) = members;
    }
}

/// The engine's client for one member.
pub struct Client {
    target: u64,
    control: Link,
    /// Where appends go: heartbeats have the control link.
    append: Link,
    snapshot: Link,
}

impl Peers {
    fn client(&self, target: u64, node: &Member, append: Class) -> Client {
        Client {
            target,
            control: self.link(target, &node.addr, Class::Control),
            append: self.link(target, &node.addr, append),
            snapshot: self.link(target, &node.addr, Class::Snapshot),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &Member) -> Client {
        self.client(target, node, Class::Append)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Member) -> Client {
        self.client(target, node, Class::Control)
    }
}

fn rpc_error(error: &CallError) -> RPCError<TypeConfig> {
    match error {
        CallError::NotSent(_) => RPCError::Unreachable(Unreachable::new(error)),
        CallError::Lost(_) | CallError::Timeout => RPCError::Network(NetworkError::new(error)),
    }
}

fn unexpected(response: &Response) -> RPCError<TypeConfig> {
    match response {
        Response::NotReady(why) => RPCError::Unreachable(Unreachable::from_string(why)),
        _ => RPCError::Network(NetworkError::from_string("the peer answered something else")),
    }
}

impl Client {
    async fn snapshot_step(&self, request: Request) -> Result<Response, StreamingError<TypeConfig>> {
        match self.snapshot.call(&request, SNAPSHOT_STEP).await {
            Ok(response @ (Response::SnapshotProgress | Response::SnapshotDone(_))) => Ok(response),
            Ok(other) => Err(unexpected(&other).into()),
            Err(error) => Err(rpc_error(&error).into()),
        }
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let header = Header::new(&snapshot.meta, &snapshot.snapshot);
        tracing::info!(bytes = header.length, target = self.target, "raft: sending snapshot");
        self.snapshot_step(Request::SnapshotBegin(vote, header)).await?;
        for piece in snapshot.snapshot.chunks(CHUNK) {
            self.snapshot_step(Request::SnapshotChunk(piece.to_vec())).await?;
        }
        match self.snapshot_step(Request::SnapshotEnd).await? {
            Response::SnapshotDone(response) => Ok(response),
            other => Err(unexpected(&other).into()),
        }
    }

    async fn vote_rpc(
        &self,
        request: Request,
        option: &RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.control.call(&request, option.hard_ttl()).await {
            Ok(Response::Vote(response)) => Ok(response),
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(rpc_error(&error)),
        }
    }
}

type AppendResult = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

async fn append_answer(
    pending: Result<link::Pending, CallError>,
    previous: Option<LogId>,
    last: Option<LogId>,
) -> AppendResult {
    let pending = pending.map_err(|e| rpc_error(&e))?;
    match link::answer(pending, APPEND).await {
        Ok(Response::Append(AppendEntriesResponse::Conflict)) if previous.is_none() => {
            // Nothing before the first entry can conflict; whoever says so is not to be believed.
            Err(RPCError::Network(NetworkError::from_string("conflict before the first entry")))
        }
        Ok(Response::Append(response)) => Ok(response.into_stream_result(previous, last)),
        Ok(other) => Err(unexpected(&other)),
        Err(error) => Err(rpc_error(&error)),
    }
}

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.append.call(&Request::Append(rpc), APPEND).await {
            Ok(Response::Append(response)) => Ok(response),
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(rpc_error(&error)),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, AppendResult>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let link = self.append.clone();
        let answers = input
            .map(move |rpc| {
                let previous = rpc.prev_log_id;
                let last = rpc.entries.last().map(|entry| entry.log_id).or(previous);
                // Submitted here, not when polled: the order on the wire is the order of the stream.
                let pending = link.submit(&Request::Append(rpc));
                append_answer(pending, previous, last)
            })
            .buffered(PIPELINE)
            .scan(false, |ended, answer| {
                let item = (!*ended).then_some(answer);
                *ended |= !matches!(item, Some(Ok(Ok(_))));
                std::future::ready(item)
            });
        let answers: BoxStream<'s, AppendResult> = answers.boxed();
        Box::pin(std::future::ready(Ok(answers)))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.vote_rpc(Request::Vote(rpc), &option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.vote_rpc(Request::PreVote(rpc), &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let sending = std::pin::pin!(self.send_snapshot(vote, snapshot));
        let cancel = std::pin::pin!(cancel);
        match select(cancel, sending).await {
            Either::Left((closed, _)) => Err(closed.into()),
            Either::Right((result, _)) => result,
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.control.call(&Request::Transfer(req), option.hard_ttl()).await {
            Ok(Response::Transfer(response)) => Ok(response),
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(rpc_error(&error)),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        // The link itself spaces its attempts and fails in between without cost.
        Some(Backoff::new(std::iter::repeat(Duration::from_millis(100))))
    }
}
