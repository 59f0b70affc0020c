//! The way of bytes that a client made, up to where something would be done: what the fuzz targets drive.
//!
//! `JSON or protobuf -> message -> kv::Command | RangeRequest`. Nothing here is used by a node.

use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::pb::etcdserverpb as pb;
use super::{convert, gateway};
use crate::kv::command::{Command, RangeRequest};
use crate::types::LeaseId;

/// What a client may ask of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// A change.
    Change(Command),
    /// A read.
    Range(RangeRequest),
    /// Something that is not about keys, and was understood.
    Other,
}

/// Names of the JSON routes that [`json`] knows.
pub const ROUTES: usize = 14;

/// Reads a JSON body as the route of that number does; none when it is refused.
///
/// # Panics
/// When a message that was read cannot be written and read again as the same one: a bug that fuzzing looks for.
pub fn json(route: usize, body: &[u8]) -> Option<Asked> {
    match route % ROUTES {
        0 => message::<pb::RangeRequest>(body).and_then(range),
        1 => message(body).map(|put| Asked::Change(Command::Put(convert::put_in(put)))),
        2 => message(body).map(|delete| Asked::Change(Command::DeleteRange(convert::delete_in(delete)))),
        3 => message(body).and_then(txn),
        4 => message::<pb::CompactionRequest>(body)
            .map(|compact| Asked::Change(Command::Compact { revision: compact.revision })),
        5 => message::<pb::LeaseRevokeRequest>(body)
            .map(|revoke| Asked::Change(Command::LeaseRevoke { id: LeaseId(revoke.id) })),
        6 => message::<pb::WatchRequest>(body).map(|_| Asked::Other),
        7 => message::<pb::LeaseKeepAliveRequest>(body).map(|_| Asked::Other),
        8 => message::<pb::LeaseGrantRequest>(body).map(|_| Asked::Other),
        9 => message::<pb::AuthRoleGrantPermissionRequest>(body).map(|_| Asked::Other),
        10 => message::<pb::AuthUserAddRequest>(body).map(|_| Asked::Other),
        11 => message::<pb::AlarmRequest>(body).map(|_| Asked::Other),
        12 => message::<super::pb::v3lockpb::LockRequest>(body).map(|_| Asked::Other),
        _ => message::<super::pb::v3electionpb::ProclaimRequest>(body).map(|_| Asked::Other),
    }
}

/// Reads a protobuf transaction.
pub fn protobuf_txn(bytes: &[u8]) -> Option<Asked> {
    pb::TxnRequest::decode(bytes).ok().and_then(txn)
}

/// Reads a protobuf range request.
pub fn protobuf_range(bytes: &[u8]) -> Option<Asked> {
    pb::RangeRequest::decode(bytes).ok().and_then(range)
}

fn range(request: pb::RangeRequest) -> Option<Asked> {
    convert::range_in(request).ok().map(Asked::Range)
}

fn txn(request: pb::TxnRequest) -> Option<Asked> {
    convert::txn_in(request).ok().map(|txn| Asked::Change(Command::Txn(txn)))
}

fn message<T>(body: &[u8]) -> Option<T>
where
    T: DeserializeOwned + Serialize + Message + Default + PartialEq + std::fmt::Debug,
{
    let message: T = gateway::read(body).ok()?;
    // Numbers that no name stands for are refused by the reader, so what was read can be written.
    let text = serde_json::to_vec(&message).expect("a message that was read can be written");
    let again: T = gateway::read(&text).expect("what was written can be read");
    assert!(again == message, "{message:?} became {again:?}");
    Some(message)
}
