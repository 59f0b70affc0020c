//! Bytes for disk and wire: bincode inside a seal of version tag and checksum.
//!
//! `sealed = tag (u8) | crc32c of context, tag and payload (u32 LE) | payload`
//!
//! The checksum is looked at before the payload is decoded, because most damaged messages decode
//! successfully into something else. Decoding allocates at most [`MAX_DECODED`] bytes, and nested
//! transactions are followed to [`MAX_TXN_DEPTH`]: the decoder itself would recurse without end.
//!
//! Absent on purpose: compression and self-describing formats. Layout is positional; append only.

use std::cell::Cell;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::types::Proposal;
use crate::kv::auth::AuthChange;
use crate::kv::command::{
    Command, Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
    RequestOp, Response, ResponseOp, TxnRequest, TxnResponse,
};
use crate::types::LeaseId;

/// Upper bound of what one message may make the decoder allocate.
pub const MAX_DECODED: usize = 16 * 1024 * 1024;
/// How deep transactions may be nested.
pub const MAX_TXN_DEPTH: u32 = 16;
/// Version tag of every record that this build writes.
pub const TAG: u8 = 1;
const SEAL: usize = 5;

/// Why bytes were not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Shorter than its own frame.
    #[error("record is cut short ({0} bytes)")]
    Short(usize),
    /// Written by a newer version.
    #[error("record has version {0}, this program knows versions up to {TAG}")]
    Version(u8),
    /// The checksum does not fit.
    #[error("checksum does not match")]
    Checksum,
    /// The payload is not what it should be.
    #[error("record cannot be decoded: {0}")]
    Decode(String),
    /// The value cannot be written.
    #[error("record cannot be encoded: {0}")]
    Encode(String),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_DECODED>()
}

/// Encodes a value, without a seal.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    bincode::serde::encode_to_vec(value, config()).map_err(|e| CodecError::Encode(e.to_string()))
}

/// Decodes a whole buffer; bytes left over are an error.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (value, used) =
        bincode::serde::decode_from_slice(bytes, config()).map_err(|e| CodecError::Decode(e.to_string()))?;
    if used != bytes.len() {
        return Err(CodecError::Decode(format!("{} bytes left over", bytes.len() - used)));
    }
    Ok(value)
}

fn checksum(context: &[u8], tag: u8, payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c(context);
    let crc = crc32c::crc32c_append(crc, &[tag]);
    crc32c::crc32c_append(crc, payload)
}

/// Puts tag and checksum before a payload. `context` (for example the key) is covered but not stored.
pub fn seal(context: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(SEAL + payload.len());
    sealed.push(TAG);
    sealed.extend_from_slice(&checksum(context, TAG, payload).to_le_bytes());
    sealed.extend_from_slice(payload);
    sealed
}

/// Takes a payload out of its seal.
pub fn unseal<'a>(context: &[u8], sealed: &'a [u8]) -> Result<&'a [u8], CodecError> {
    let Some((head, payload)) = sealed.split_at_checked(SEAL) else {
        return Err(CodecError::Short(sealed.len()));
    };
    let tag = head[0];
    let expected = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
    // The checksum first: a flipped bit in the tag is damage, not a newer version.
    if checksum(context, tag, payload) != expected {
        return Err(CodecError::Checksum);
    }
    if tag > TAG {
        return Err(CodecError::Version(tag));
    }
    Ok(payload)
}

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Counts how many transactions are being decoded around this one, on this thread.
struct Nesting;

impl Nesting {
    fn enter<E: serde::de::Error>() -> Result<Self, E> {
        let depth = DEPTH.with(|d| {
            d.set(d.get() + 1);
            d.get()
        });
        let nesting = Self;
        if depth > MAX_TXN_DEPTH {
            return Err(E::custom("transactions are nested too deeply"));
        }
        Ok(nesting)
    }
}

impl Drop for Nesting {
    fn drop(&mut self) {
        DEPTH.with(|d| d.set(d.get().saturating_sub(1)));
    }
}

/// Whether a command can be decoded again: its transactions are not nested too deeply.
pub fn nesting_is_bounded(command: &Command) -> bool {
    fn fits(txn: &TxnRequest, left: u32) -> bool {
        left > 0
            && txn.success.iter().chain(&txn.failure).all(|op| match op {
                RequestOp::Txn(inner) => fits(inner, left - 1),
                RequestOp::Empty | RequestOp::Range(_) | RequestOp::Put(_) | RequestOp::DeleteRange(_) => true,
            })
    }
    match command {
        Command::Txn(txn) => fits(txn, MAX_TXN_DEPTH),
        Command::Put(_)
        | Command::DeleteRange(_)
        | Command::Compact { .. }
        | Command::LeaseGrant { .. }
        | Command::LeaseRevoke { .. }
        | Command::LeasesExpire { .. }
        | Command::Auth(_) => true,
        Command::As { command, .. } | Command::ByToken { command, .. } => {
            !matches!(**command, Command::As { .. } | Command::ByToken { .. } | Command::Many(_))
                && nesting_is_bounded(command)
        }
        Command::Many(commands) => {
            commands.iter().all(|command| !matches!(command, Command::Many(_)) && nesting_is_bounded(command))
        }
    }
}

// Mirrors of the recursive command types with the same layout, so that their decoding can be bounded.
// A variant or field that is added there does not compile here until it is added too.

#[derive(Serialize, Deserialize)]
#[serde(remote = "Command")]
enum CommandLayout {
    Put(PutRequest),
    DeleteRange(DeleteRangeRequest),
    Txn(#[serde(with = "txn")] TxnRequest),
    Compact {
        revision: i64,
    },
    LeaseGrant {
        id: LeaseId,
        ttl_ms: u64,
    },
    LeaseRevoke {
        id: LeaseId,
    },
    LeasesExpire {
        ids: Vec<LeaseId>,
    },
    Auth(AuthChange),
    As {
        user: String,
        #[serde(with = "boxed")]
        command: Box<Command>,
    },
    Many(#[serde(with = "several")] Vec<Command>),
    ByToken {
        token: u64,
        #[serde(with = "boxed")]
        command: Box<Command>,
    },
}

/// [`CommandLayout`] without lists: there is one level of these, too.
#[derive(Deserialize)]
#[serde(remote = "Command")]
enum ItemLayout {
    Put(PutRequest),
    DeleteRange(DeleteRangeRequest),
    Txn(#[serde(with = "txn")] TxnRequest),
    Compact {
        revision: i64,
    },
    LeaseGrant {
        id: LeaseId,
        ttl_ms: u64,
    },
    LeaseRevoke {
        id: LeaseId,
    },
    LeasesExpire {
        ids: Vec<LeaseId>,
    },
    Auth(AuthChange),
    As {
        user: String,
        #[serde(with = "boxed")]
        command: Box<Command>,
    },
    Many(#[serde(deserialize_with = "refused")] Vec<Command>),
    ByToken {
        token: u64,
        #[serde(with = "boxed")]
        command: Box<Command>,
    },
}

/// What holds a place in a layout, and is not allowed there.
fn refused<'de, D: Deserializer<'de>, T>(_: D) -> Result<T, D::Error> {
    Err(serde::de::Error::custom("a list of commands in a list of commands"))
}

/// [`CommandLayout`] without the commands that hold another one: there is one level of these.
#[derive(Deserialize)]
#[serde(remote = "Command")]
enum InnerLayout {
    Put(PutRequest),
    DeleteRange(DeleteRangeRequest),
    Txn(#[serde(with = "txn")] TxnRequest),
    Compact { revision: i64 },
    LeaseGrant { id: LeaseId, ttl_ms: u64 },
    LeaseRevoke { id: LeaseId },
    LeasesExpire { ids: Vec<LeaseId> },
    Auth(AuthChange),
}

mod boxed {
    use super::{Command, CommandLayout, Deserializer, InnerLayout, Serializer};
    pub fn serialize<S: Serializer>(value: &Command, s: S) -> Result<S::Ok, S::Error> {
        CommandLayout::serialize(value, s)
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Box<Command>, D::Error> {
        InnerLayout::deserialize(d).map(Box::new)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "TxnRequest")]
struct TxnLayout {
    compare: Vec<Compare>,
    #[serde(with = "ops")]
    success: Vec<RequestOp>,
    #[serde(with = "ops")]
    failure: Vec<RequestOp>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "RequestOp")]
enum OpLayout {
    Empty,
    Range(RangeRequest),
    Put(PutRequest),
    DeleteRange(DeleteRangeRequest),
    Txn(#[serde(with = "txn")] TxnRequest),
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Response")]
enum ResponseLayout {
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(#[serde(with = "txn_answer")] TxnResponse),
    Compact { revision: i64 },
    LeaseGrant { revision: i64, id: LeaseId, ttl_ms: u64 },
    LeaseRevoke { revision: i64 },
    LeasesExpire { revision: i64, expired: Vec<LeaseId> },
    Auth { revision: i64 },
    Many(#[serde(with = "outcomes")] Vec<Result<Response, crate::kv::Error>>),
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "TxnResponse")]
struct TxnAnswerLayout {
    revision: i64,
    succeeded: bool,
    #[serde(with = "answers")]
    responses: Vec<ResponseOp>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "ResponseOp")]
enum AnswerLayout {
    Range(RangeResponse),
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(#[serde(with = "txn_answer")] TxnResponse),
}

macro_rules! bounded {
    ($module:ident, $layout:ident, $type:ident) => {
        mod $module {
            use super::{Deserializer, Nesting, Serializer, $layout, $type};
            pub fn serialize<S: Serializer>(value: &$type, s: S) -> Result<S::Ok, S::Error> {
                $layout::serialize(value, s)
            }
            pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<$type, D::Error> {
                let _nesting = Nesting::enter()?;
                $layout::deserialize(d)
            }
        }
    };
}
bounded!(txn, TxnLayout, TxnRequest);
bounded!(txn_answer, TxnAnswerLayout, TxnResponse);

macro_rules! bounded_list {
    ($module:ident, $layout:literal, $type:ty) => {
        mod $module {
            use super::*;
            #[derive(Deserialize)]
            struct Item(#[serde(with = $layout)] $type);
            pub fn serialize<S: Serializer>(value: &Vec<$type>, s: S) -> Result<S::Ok, S::Error> {
                value.serialize(s)
            }
            pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<$type>, D::Error> {
                let items = Vec::<Item>::deserialize(d)?;
                Ok(items.into_iter().map(|item| item.0).collect())
            }
        }
    };
}
bounded_list!(ops, "OpLayout", RequestOp);
bounded_list!(several, "ItemLayout", Command);
bounded_list!(answers, "AnswerLayout", ResponseOp);

impl Serialize for Proposal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        CommandLayout::serialize(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Proposal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Arc::new(CommandLayout::deserialize(deserializer)?)))
    }
}

/// [`ResponseLayout`] without lists: there is one level of these.
#[derive(Deserialize)]
#[serde(remote = "Response")]
enum AnswerOfOneLayout {
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(#[serde(with = "txn_answer")] TxnResponse),
    Compact { revision: i64 },
    LeaseGrant { revision: i64, id: LeaseId, ttl_ms: u64 },
    LeaseRevoke { revision: i64 },
    LeasesExpire { revision: i64, expired: Vec<LeaseId> },
    Auth { revision: i64 },
}

mod outcomes {
    use super::{AnswerOfOneLayout, Deserialize, Deserializer, Response, Serialize, Serializer};
    use crate::kv;

    type Outcome = Result<Response, kv::Error>;

    #[derive(Deserialize)]
    struct Owned(#[serde(with = "AnswerOfOneLayout")] Response);

    pub fn serialize<S: Serializer>(value: &Vec<Outcome>, s: S) -> Result<S::Ok, S::Error> {
        value.serialize(s)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Outcome>, D::Error> {
        let outcomes = Vec::<Result<Owned, kv::Error>>::deserialize(d)?;
        Ok(outcomes.into_iter().map(|outcome| outcome.map(|owned| owned.0)).collect())
    }
}

/// `Result<Response, kv::Error>` with bounded nesting, for `#[serde(with)]`.
pub mod outcome {
    use super::{Deserialize, Deserializer, Response, ResponseLayout, Serialize, Serializer};
    use crate::kv;

    #[derive(Serialize)]
    struct Ref<'a>(#[serde(with = "ResponseLayout")] &'a Response);
    #[derive(Deserialize)]
    struct Owned(#[serde(with = "ResponseLayout")] Response);

    /// Writes as the derived form would.
    pub fn serialize<S: Serializer>(value: &Result<Response, kv::Error>, s: S) -> Result<S::Ok, S::Error> {
        value.as_ref().map(Ref).serialize(s)
    }

    /// Reads back, refusing deep nesting.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Result<Response, kv::Error>, D::Error> {
        Ok(Result::<Owned, kv::Error>::deserialize(d)?.map(|owned| owned.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(depth: u32) -> Command {
        let mut txn = TxnRequest::default();
        for _ in 1..depth {
            txn = TxnRequest { success: vec![RequestOp::Txn(txn)], ..TxnRequest::default() };
        }
        Command::Txn(txn)
    }

    #[test]
    fn layout_equals_the_derived_one() {
        for command in [nested(3), Command::Compact { revision: 7 }, Command::LeasesExpire { ids: vec![LeaseId(3)] }] {
            let ours = encode(&Proposal::new(command.clone())).expect("encodes");
            assert_eq!(ours, encode(&command).expect("encodes"));
            assert_eq!(decode::<Proposal>(&ours).expect("decodes"), Proposal::new(command));
        }
    }

    #[test]
    fn deep_nesting_is_refused_without_recursion() {
        assert!(nesting_is_bounded(&nested(MAX_TXN_DEPTH)));
        let fits = encode(&nested(MAX_TXN_DEPTH)).expect("encodes");
        assert!(decode::<Proposal>(&fits).is_ok());
        assert!(!nesting_is_bounded(&nested(MAX_TXN_DEPTH + 1)));
        let deep = encode(&nested(MAX_TXN_DEPTH + 1)).expect("encodes");
        assert!(decode::<Proposal>(&deep).is_err());
        // One level is "no comparisons, one operation, a transaction": 0, 1, 4. By hand, because
        // encoding such a value would itself recurse.
        let mut abyss = vec![2_u8];
        abyss.extend([0_u8, 1, 4].repeat(300_000));
        assert!(decode::<Proposal>(&abyss).is_err());
        assert!(decode::<Proposal>(&fits).is_ok(), "the counter is back at zero");
    }

    /// What version 1 wrote, later versions must read: disks and peers hold these bytes.
    #[test]
    fn written_bytes_stay_as_they_are() {
        use super::super::identity::{Identity, Stage};
        use super::super::types::{Entry, LogId, Member, Membership, Vote};
        use openraft::EntryPayload;
        use openraft::vote::leader_id_std::CommittedLeaderId;

        fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T, golden: &str) {
            let bytes = encode(value).expect("encodes");
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(hex, golden, "{value:?}");
            assert_eq!(&decode::<T>(&bytes).expect("decodes"), value);
        }
        let at = LogId::new(CommittedLeaderId::new(3), 300);
        let put = PutRequest {
            key: b"k".to_vec(),
            value: b"v".to_vec(),
            lease: LeaseId(5),
            prev_kv: true,
            ignore_value: false,
            ignore_lease: false,
        };
        let by_token = Command::ByToken { token: 9, command: Box::new(Command::Put(put.clone())) };
        let several = EntryPayload::Normal(Proposal::new(Command::Many(vec![by_token])));
        check(&Entry { log_id: at, payload: several }, "03fb2c010109010a0900016b01760a010000");
        let normal = EntryPayload::Normal(Proposal::new(Command::Put(put)));
        let member = Member { name: "n1".to_owned(), addr: "h:1".to_owned() };
        let members = std::collections::BTreeMap::from([(7_u64, member)]);
        let membership = Membership::new(vec![[7].into()], members).expect("valid");
        let identity =
            Identity { id: 7, name: "n1".to_owned(), cluster: "c".to_owned(), generation: 0, stage: Stage::Member };
        check(&Entry { log_id: at, payload: normal }, "03fb2c010100016b01760a010000");
        check(
            &Entry { log_id: at, payload: EntryPayload::Membership(membership) },
            "03fb2c01020101070107026e3103683a31",
        );
        check(&Vote::new_committed(3, 7), "03010701");
        check(&identity, "07026e3101630002");
        let sealed: String = seal(b"key", b"payload").iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(sealed, "0171f2dfbd7061796c6f6164");
    }

    proptest::proptest! {
        #[test]
        fn damage_is_always_seen(payload: Vec<u8>, at: usize, bit in 0_u8..8) {
            let mut sealed = seal(b"key", &payload);
            let at = at % sealed.len();
            sealed[at] ^= 1 << bit;
            proptest::prop_assert!(unseal(b"key", &sealed).is_err());
        }

        #[test]
        fn any_bytes_decode_or_fail_quietly(bytes: Vec<u8>) {
            let _ = decode::<Proposal>(&bytes);
            let _ = decode::<super::super::types::Reply>(&bytes);
            let _ = decode::<super::super::types::Entry>(&bytes);
        }
    }
}
