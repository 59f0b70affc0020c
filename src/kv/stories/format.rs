//! The bytes of [`Command`] and [`Response`], one line per variant: what is on disk in logs, and goes between versions.

use std::error::Error as StdError;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::command::{
    Command, Compare, CompareResult, CompareTarget, DeleteRangeRequest, DeleteRangeResponse, KeyValue, PutRequest,
    PutResponse, RangeRequest, RangeResponse, RequestOp, Response, ResponseOp, SortOrder, SortTarget, TxnRequest,
    TxnResponse,
};
use crate::types::LeaseId;

struct Format;

fn put() -> PutRequest {
    PutRequest {
        key: b"key".to_vec(),
        value: b"value".to_vec(),
        lease: LeaseId(7),
        prev_kv: true,
        ignore_value: false,
        ignore_lease: false,
    }
}

fn delete_range() -> DeleteRangeRequest {
    DeleteRangeRequest { key: b"a".to_vec(), range_end: b"b".to_vec(), prev_kv: false }
}

/// Every field has a number of its own, so that two exchanged fields show.
fn range() -> RangeRequest {
    RangeRequest {
        key: b"k".to_vec(),
        range_end: b"l".to_vec(),
        limit: 1,
        revision: 2,
        sort_order: SortOrder::Descend,
        sort_target: SortTarget::Value,
        keys_only: true,
        count_only: false,
        min_mod_revision: 3,
        max_mod_revision: 4,
        min_create_revision: 5,
        max_create_revision: 6,
    }
}

fn compare(result: CompareResult, target: CompareTarget) -> Command {
    let compare = Compare { key: b"k".to_vec(), range_end: b"l".to_vec(), result, target };
    Command::Txn(TxnRequest { compare: vec![compare], ..TxnRequest::default() })
}

fn then(op: RequestOp) -> Command {
    Command::Txn(TxnRequest { success: vec![op], ..TxnRequest::default() })
}

fn sorted(sort_order: SortOrder, sort_target: SortTarget) -> Command {
    then(RequestOp::Range(RangeRequest { key: b"k".to_vec(), sort_order, sort_target, ..RangeRequest::default() }))
}

fn sample(name: &str) -> Command {
    let flags =
        |ignore_value, ignore_lease| Command::Put(PutRequest { ignore_value, ignore_lease, prev_kv: false, ..put() });
    match name {
        "put" => Command::Put(put()),
        "put-ignore-value" => flags(true, false),
        "put-ignore-lease" => flags(false, true),
        "delete-range" => Command::DeleteRange(delete_range()),
        "txn-empty" => Command::Txn(TxnRequest::default()),
        "txn-failure" => Command::Txn(TxnRequest { failure: vec![RequestOp::Empty], ..TxnRequest::default() }),
        "txn-version-equal" => compare(CompareResult::Equal, CompareTarget::Version(1)),
        "txn-create-greater" => compare(CompareResult::Greater, CompareTarget::Create(2)),
        "txn-mod-less" => compare(CompareResult::Less, CompareTarget::Mod(3)),
        "txn-value-not-equal" => compare(CompareResult::NotEqual, CompareTarget::Value(b"v".to_vec())),
        "txn-lease" => compare(CompareResult::Equal, CompareTarget::Lease(LeaseId(-7))),
        "op-empty" => then(RequestOp::Empty),
        "op-range" => then(RequestOp::Range(range())),
        "op-put" => then(RequestOp::Put(put())),
        "op-delete-range" => then(RequestOp::DeleteRange(delete_range())),
        "op-txn" => then(RequestOp::Txn(TxnRequest::default())),
        "sort-none-key" => sorted(SortOrder::None, SortTarget::Key),
        "sort-ascend-version" => sorted(SortOrder::Ascend, SortTarget::Version),
        "sort-descend-create" => sorted(SortOrder::Descend, SortTarget::Create),
        "sort-none-mod" => sorted(SortOrder::None, SortTarget::Mod),
        "compact" => Command::Compact { revision: 300 },
        "lease-grant" => Command::LeaseGrant { id: LeaseId(-7), ttl_ms: 5000 },
        "lease-revoke" => Command::LeaseRevoke { id: LeaseId(7) },
        "leases-expire" => Command::LeasesExpire { ids: vec![LeaseId(1), LeaseId(i64::MAX)] },
        other => panic!("no sample {other}"),
    }
}

fn answer(name: &str) -> Response {
    let revision = 9;
    let pair = KeyValue {
        key: b"k".to_vec(),
        value: b"v".to_vec(),
        create_revision: 1,
        mod_revision: 2,
        version: 3,
        lease: LeaseId(4),
    };
    let put = PutResponse { revision, prev_kv: Some(pair.clone()) };
    let delete_range = DeleteRangeResponse { revision, deleted: 1, prev_kvs: vec![pair.clone()] };
    let txn = |op| Response::Txn(TxnResponse { revision, succeeded: true, responses: Vec::from_iter(op) });
    match name {
        "answer-put" => Response::Put(put),
        "answer-delete-range" => Response::DeleteRange(delete_range),
        "answer-txn" => txn(None),
        "answer-txn-range" => {
            txn(Some(ResponseOp::Range(RangeResponse { revision, kvs: vec![pair], more: true, count: 5 })))
        }
        "answer-txn-put" => txn(Some(ResponseOp::Put(put))),
        "answer-txn-delete-range" => txn(Some(ResponseOp::DeleteRange(delete_range))),
        "answer-txn-txn" => {
            txn(Some(ResponseOp::Txn(TxnResponse { revision, succeeded: false, responses: Vec::new() })))
        }
        "answer-compact" => Response::Compact { revision },
        "answer-lease-grant" => Response::LeaseGrant { revision, id: LeaseId(4), ttl_ms: 5000 },
        "answer-lease-revoke" => Response::LeaseRevoke { revision },
        "answer-leases-expire" => Response::LeasesExpire { revision, expired: vec![LeaseId(4)] },
        other => panic!("no sample {other}"),
    }
}

/// As hexadecimal digits, and back again.
fn hex<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(sample: T) -> Result<String, Box<dyn StdError>> {
    let config = bincode::config::standard();
    let bytes = bincode::serde::encode_to_vec(&sample, config)?;
    let (decoded, length): (T, usize) = bincode::serde::decode_from_slice(&bytes, config)?;
    assert_eq!((decoded, length), (sample, bytes.len()));
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

impl goldenscript::Runner for Format {
    fn run(&mut self, command: &goldenscript::Command) -> Result<String, Box<dyn StdError>> {
        let name = command.name.as_str();
        let hex = if name.starts_with("answer-") { hex(answer(name))? } else { hex(sample(name))? };
        Ok(format!("{name} {hex}\n"))
    }
}

#[test]
fn command_format() {
    let path = format!("{}/tests/scripts/kv/command_format.txt", env!("CARGO_MANIFEST_DIR"));
    goldenscript::run(&mut Format, path).unwrap();
}
