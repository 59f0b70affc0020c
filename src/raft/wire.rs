//! What members say to each other, and how it is framed.
//!
//! `length (u32 BE) | version u8 | kind u8 | request id u64 BE | crc32c u32 BE | bincode payload`
//!
//! The checksum covers everything after the length except itself. Requests on one connection are
//! multiplexed by their id. Each class of traffic has a connection of its own, so that a snapshot
//! never delays a heartbeat. Who may speak at all is settled first, in `auth.rs`.
//!
//! Format rule: variants and fields are positional; append at the end, never reorder.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio_util::codec::LengthDelimitedCodec;

use super::error::StoreError;
use super::snapshot::Header;
use super::types::{Proposal, Reply, TypeConfig, Vote};
use crate::types::LeaseId;

/// Version of framing and messages.
pub const VERSION: u8 = 1;
/// Largest frame after the handshake.
pub const MAX_FRAME: usize = 8 * 1024 * 1024;
/// Largest frame during the handshake, when the other side is nobody yet.
pub const MAX_GREETING: usize = 2 * 1024;
/// Snapshot bodies are sent in pieces of this size.
pub const CHUNK: usize = 1024 * 1024;
const HEAD: usize = 14;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Part of the handshake.
    Greeting = 1,
    /// The handshake failed; the payload says why.
    Refusal = 2,
    /// A [`Request`].
    Request = 3,
    /// A [`Response`].
    Response = 4,
}

/// The purpose of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Class {
    /// Votes, heartbeats, confirmations, forwarded requests: never waits behind bulk.
    Control,
    /// Log entries.
    Append,
    /// Snapshots.
    Snapshot,
}

/// One frame.
#[derive(Debug, Clone)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Which request it belongs to.
    pub id: u64,
    /// The encoded message.
    pub payload: Bytes,
}

/// The codec that cuts a byte stream into frames.
pub fn framing(max: usize) -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().length_field_length(4).max_frame_length(max + HEAD).new_codec()
}

fn frame_checksum(head: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), payload)
}

impl Frame {
    /// The bytes after the length.
    pub fn to_bytes(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(HEAD + self.payload.len());
        bytes.put_u8(VERSION);
        bytes.put_u8(self.kind as u8);
        bytes.put_u64(self.id);
        let checksum = frame_checksum(&bytes, &self.payload);
        bytes.put_u32(checksum);
        bytes.put_slice(&self.payload);
        bytes.freeze()
    }

    /// Reads and verifies a frame.
    ///
    /// # Errors
    /// `InvalidData`: the connection must be closed, its position in the stream means nothing any more.
    pub fn from_bytes(bytes: BytesMut) -> io::Result<Self> {
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("frame {what}"));
        let mut bytes = bytes.freeze();
        if bytes.len() < HEAD {
            return Err(bad("is cut short"));
        }
        let head = bytes.slice(..10);
        let version = bytes.get_u8();
        let kind = match bytes.get_u8() {
            1 => Kind::Greeting,
            2 => Kind::Refusal,
            3 => Kind::Request,
            4 => Kind::Response,
            _ => return Err(bad("is of an unknown kind")),
        };
        let id = bytes.get_u64();
        let checksum = bytes.get_u32();
        if checksum != frame_checksum(&head, &bytes) {
            return Err(bad("does not match its checksum"));
        }
        if version != VERSION {
            return Err(bad("has an unknown version"));
        }
        Ok(Self { kind, id, payload: bytes })
    }
}

/// A request between members.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// How far is your membership?
    State,
    /// The engine's vote.
    Vote(openraft::raft::VoteRequest<TypeConfig>),
    /// The engine's question before a vote.
    PreVote(openraft::raft::VoteRequest<TypeConfig>),
    /// Entries or a heartbeat.
    Append(openraft::raft::AppendEntriesRequest<TypeConfig>),
    /// A snapshot follows.
    SnapshotBegin(Vote, Header),
    /// A piece of its body.
    SnapshotChunk(Vec<u8>),
    /// That was all: install it.
    SnapshotEnd,
    /// The engine's leadership transfer.
    Transfer(openraft::raft::TransferLeaderRequest<TypeConfig>),
    /// Is there, as far as you have promised, no leader after this one?
    Confirm {
        /// The asking leader's term.
        term: u64,
        /// The asking leader.
        leader: u64,
    },
    /// Something that only the leader can do, with the time that the client will still wait.
    Client(ClientRequest, u64),
    /// These members (name, address) would have you: join them if your store is empty.
    Invite(Vec<(String, String)>),
    /// Does the member with this id answer you?
    Reaches(u64),
}

/// What the leader does for others.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ClientRequest {
    /// Put a command into the log and answer when it is applied.
    Propose(Proposal),
    /// Up to where must a reader have applied the log?
    ReadIndex,
    /// Extend a lease.
    Renew(LeaseId, Option<KeyGuard>),
    /// How long has a lease left?
    Remaining(LeaseId),
    /// Give leadership to this member.
    TransferTo(String),
    /// A node with an empty store wants to be a member.
    Join {
        /// Its new id.
        id: u64,
        /// Its name.
        name: String,
        /// Its address.
        addr: String,
    },
    /// A member is reachable under another address now.
    SetAddress {
        /// Which member.
        id: u64,
        /// Where.
        addr: String,
    },
    /// Expect a member of this name at this address.
    AddMember {
        /// Its name.
        name: String,
        /// Its address.
        addr: String,
    },
    /// Remove the member of this name.
    RemoveMember(String),
}

/// A key that must still be held by the lease that is renewed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyGuard {
    /// The key.
    pub key: Vec<u8>,
    /// Its creation: the same key created again is another one.
    pub create_revision: i64,
}

/// How a renewal ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenewOutcome {
    /// Extended. Count the time from before the request was sent.
    Renewed {
        /// The lease's time to live.
        ttl: std::time::Duration,
    },
    /// The lease is gone or about to go.
    LeaseGone,
    /// The lease lives, but the guarded key is gone, was created again, or hangs on another lease.
    GuardBroken,
}

/// What the leader answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ClientResponse {
    /// To a proposal.
    Applied(Reply),
    /// The number of entries that must be applied.
    ReadIndex(u64),
    /// To a renewal.
    Renewed(RenewOutcome),
    /// Milliseconds; none if the lease does not exist.
    Remaining(Option<u64>),
    /// To a joining node: whether it is a voter now, or why not yet.
    Joining {
        /// Done.
        voter: bool,
        /// What is still missing.
        waiting_for: String,
    },
    /// Done.
    Done,
}

/// Why the leader did not do it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ClientError {
    /// This is not the leader, or it could not prove that it is. Nothing was proposed.
    NotLeader,
    /// Everything else.
    Store(StoreError),
}

/// How far a node's membership is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Formation {
    /// Empty store, nothing promised.
    Blank,
    /// Empty store, promised to form a cluster of these members.
    Forming,
    /// Has a store with these members (id, name, address).
    Initialized(Vec<(u64, String, String)>),
}

/// Answer to [`Request::State`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// How far.
    pub formation: Formation,
    /// The configured members: name and address.
    pub configured: Vec<(String, String)>,
    /// The store's generation.
    pub generation: u64,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Response {
    /// To [`Request::State`].
    State(NodeState),
    /// To votes.
    Vote(openraft::raft::VoteResponse<TypeConfig>),
    /// To [`Request::Append`].
    Append(openraft::raft::AppendEntriesResponse<TypeConfig>),
    /// A piece of a snapshot has arrived.
    SnapshotProgress,
    /// The snapshot is installed.
    SnapshotDone(openraft::raft::SnapshotResponse<TypeConfig>),
    /// To [`Request::Transfer`].
    Transfer(openraft::raft::TransferLeaderResponse<TypeConfig>),
    /// To [`Request::Confirm`] and [`Request::Reaches`].
    Confirm(bool),
    /// To [`Request::Client`].
    Client(Result<ClientResponse, ClientError>),
    /// This node cannot answer that at the moment; nothing was done.
    NotReady(String),
}
