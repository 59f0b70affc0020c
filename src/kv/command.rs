//! What goes through the log, and what comes back.
//!
//! Format rule: these types are written to disk and sent between versions by bincode, where variants
//! and fields are positional. Append variants at the end; never reorder, remove or insert. A golden
//! file of bytes keeps it true.

use serde::{Deserialize, Serialize};

use super::auth::AuthChange;
use super::error::Error;
use crate::types::LeaseId;

/// A change of the store, as proposed to the log. Applying it is deterministic: no clock, no randomness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Write one key.
    Put(PutRequest),
    /// Delete a range of keys.
    DeleteRange(DeleteRangeRequest),
    /// Compare, then one of two lists of operations, atomically.
    Txn(TxnRequest),
    /// Forget history up to a revision.
    Compact {
        /// The oldest revision that stays readable.
        revision: i64,
    },
    /// Create a lease. The proposer has chosen a free id.
    LeaseGrant {
        /// Not zero.
        id: LeaseId,
        /// Time to live in milliseconds, already raised to the minimum.
        ttl_ms: u64,
    },
    /// Delete a lease with its keys at its holder's wish.
    LeaseRevoke {
        /// The lease.
        id: LeaseId,
    },
    /// Delete leases whose holders stayed silent. Proposed only by a Raft leader that has just
    /// confirmed its leadership. Each lease that still exists is deleted in a revision of its own.
    LeasesExpire {
        /// The leases; unknown ones are ignored.
        ids: Vec<LeaseId>,
    },
    /// Change users and roles.
    Auth(AuthChange),
    /// A client's command: applied if its user may give it then. howdah's own commands come without.
    As {
        /// The user; empty for nobody in particular.
        user: String,
        /// Anything but another one of these, or of [`Command::ByToken`].
        command: Box<Command>,
    },
    /// Several commands that travel together, done one after the other: each is refused or done by itself.
    Many(Vec<Command>),
    /// As [`Command::As`], of the user whose token it is when this is applied. A member that has not heard yet that a
    /// token is void may still take it; the log does not.
    ByToken {
        /// The number of the token: `Auth::token`.
        token: u64,
        /// Anything but another one of these, or of [`Command::As`].
        command: Box<Command>,
    },
}

impl Command {
    /// About what it takes on the wire, in bytes.
    pub fn size(&self) -> usize {
        super::check::size(self)
    }

    /// What is to be done, whoever asks for it.
    pub fn inner(&self) -> &Command {
        match self {
            Command::As { command, .. } | Command::ByToken { command, .. } => command,
            plain => plain,
        }
    }
}

/// What applying a [`Command`] answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// To [`Command::Put`].
    Put(PutResponse),
    /// To [`Command::DeleteRange`].
    DeleteRange(DeleteRangeResponse),
    /// To [`Command::Txn`].
    Txn(TxnResponse),
    /// To [`Command::Compact`].
    Compact {
        /// The store's revision.
        revision: i64,
    },
    /// To [`Command::LeaseGrant`].
    LeaseGrant {
        /// The store's revision.
        revision: i64,
        /// The lease.
        id: LeaseId,
        /// Its granted time to live in milliseconds.
        ttl_ms: u64,
    },
    /// To [`Command::LeaseRevoke`].
    LeaseRevoke {
        /// The store's revision after the keys are gone.
        revision: i64,
    },
    /// To [`Command::LeasesExpire`].
    LeasesExpire {
        /// The store's revision after the keys are gone.
        revision: i64,
        /// Those that existed and are gone now.
        expired: Vec<LeaseId>,
    },
    /// To [`Command::Auth`].
    Auth {
        /// The store's revision.
        revision: i64,
    },
    /// To [`Command::Many`]: an answer for each, in order.
    Many(Vec<Result<Response, Error>>),
}

/// A key with its value and history numbers, as etcd's `mvccpb.KeyValue`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KeyValue {
    /// The key.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// The value.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
    /// Revision of the put that created the key (since its last deletion).
    pub create_revision: i64,
    /// Revision of the last change.
    pub mod_revision: i64,
    /// Number of puts since creation; 1 for a new key.
    pub version: i64,
    /// The lease that the key hangs on; zero for none.
    pub lease: LeaseId,
}

/// etcd's `PutRequest`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutRequest {
    /// The key; not empty.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// The value.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
    /// The lease to hang the key on; zero for none.
    pub lease: LeaseId,
    /// Whether to answer the previous pair.
    pub prev_kv: bool,
    /// Keep the present value.
    pub ignore_value: bool,
    /// Keep the present lease.
    pub ignore_lease: bool,
}

/// etcd's `PutResponse`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutResponse {
    /// The store's revision after the put.
    pub revision: i64,
    /// The pair before, if asked for and there was one.
    pub prev_kv: Option<KeyValue>,
}

/// etcd's `DeleteRangeRequest`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteRangeRequest {
    /// First key.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// Empty: `key` alone; one zero byte: everything from `key` on; else the first key not included.
    #[serde(with = "serde_bytes")]
    pub range_end: Vec<u8>,
    /// Whether to answer the deleted pairs.
    pub prev_kv: bool,
}

/// etcd's `DeleteRangeResponse`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteRangeResponse {
    /// The store's revision after the deletion.
    pub revision: i64,
    /// How many keys were deleted.
    pub deleted: i64,
    /// The deleted pairs, if asked for.
    pub prev_kvs: Vec<KeyValue>,
}

/// Sort order of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum SortOrder {
    /// By key, ascending, unless the target says otherwise.
    #[default]
    None,
    /// Ascending.
    Ascend,
    /// Descending.
    Descend,
}

/// What a range is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum SortTarget {
    /// The key.
    #[default]
    Key,
    /// The version.
    Version,
    /// The creation revision.
    Create,
    /// The last change's revision.
    Mod,
    /// The value.
    Value,
}

/// etcd's `RangeRequest`, without `serializable`: where to read is the caller's choice, not the store's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RangeRequest {
    /// First key.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// As in [`DeleteRangeRequest::range_end`].
    #[serde(with = "serde_bytes")]
    pub range_end: Vec<u8>,
    /// At most so many pairs; zero or less for all.
    pub limit: i64,
    /// Read as of this revision; zero or less for now.
    pub revision: i64,
    /// Sort order.
    pub sort_order: SortOrder,
    /// What to sort by.
    pub sort_target: SortTarget,
    /// Leave values out.
    pub keys_only: bool,
    /// Only count.
    pub count_only: bool,
    /// Lower bound on `mod_revision`; zero for none.
    pub min_mod_revision: i64,
    /// Upper bound on `mod_revision`; zero for none.
    pub max_mod_revision: i64,
    /// Lower bound on `create_revision`; zero for none.
    pub min_create_revision: i64,
    /// Upper bound on `create_revision`; zero for none.
    pub max_create_revision: i64,
}

/// etcd's `RangeResponse`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RangeResponse {
    /// The store's current revision, not the one that was asked for.
    pub revision: i64,
    /// The pairs.
    pub kvs: Vec<KeyValue>,
    /// Whether the limit cut something off.
    pub more: bool,
    /// Number of keys in the range, ignoring limit and filters.
    pub count: i64,
}

/// How a [`Compare`] relates the two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompareResult {
    /// The key's value equals the given one.
    Equal,
    /// The key's value is greater.
    Greater,
    /// The key's value is less.
    Less,
    /// The key's value differs.
    NotEqual,
}

/// What a [`Compare`] looks at, and the value it is compared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompareTarget {
    /// `version`; 0 for a missing key.
    Version(i64),
    /// `create_revision`; 0 for a missing key.
    Create(i64),
    /// `mod_revision`; 0 for a missing key.
    Mod(i64),
    /// The value; never true for a missing key.
    Value(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The lease; 0 for a missing key or none.
    Lease(LeaseId),
}

/// etcd's `Compare`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// First key.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// As in [`DeleteRangeRequest::range_end`]; true only if every key matches.
    #[serde(with = "serde_bytes")]
    pub range_end: Vec<u8>,
    /// The relation.
    pub result: CompareResult,
    /// What is compared.
    pub target: CompareTarget,
}

/// One operation of a transaction. `Empty` is what a client sends that sets nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RequestOp {
    /// Nothing set: an error, worded as etcd words it.
    Empty,
    /// Read.
    Range(RangeRequest),
    /// Write.
    Put(PutRequest),
    /// Delete.
    DeleteRange(DeleteRangeRequest),
    /// A transaction inside.
    Txn(TxnRequest),
}

/// What a [`RequestOp`] answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResponseOp {
    /// To [`RequestOp::Range`].
    Range(RangeResponse),
    /// To [`RequestOp::Put`].
    Put(PutResponse),
    /// To [`RequestOp::DeleteRange`].
    DeleteRange(DeleteRangeResponse),
    /// To [`RequestOp::Txn`].
    Txn(TxnResponse),
}

/// etcd's `TxnRequest`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TxnRequest {
    /// All must hold, evaluated on the state before the transaction.
    pub compare: Vec<Compare>,
    /// Done if all hold.
    pub success: Vec<RequestOp>,
    /// Done otherwise.
    pub failure: Vec<RequestOp>,
}

/// etcd's `TxnResponse`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnResponse {
    /// The store's revision after the transaction.
    pub revision: i64,
    /// Whether the comparisons held.
    pub succeeded: bool,
    /// One answer per operation of the list that was taken.
    pub responses: Vec<ResponseOp>,
}

/// A change of one key, as watchers see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The pair after the change. For a deletion only `key` and `mod_revision` are set.
    pub kv: KeyValue,
    /// The pair before the change, none if it did not exist or is compacted away.
    pub prev_kv: Option<KeyValue>,
}

/// Put or delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// The key was written.
    Put,
    /// The key was deleted.
    Delete,
}
