//! Between etcd's messages and the store's vocabulary.

use tonic::Status;

use super::pb::etcdserverpb as pb;
use super::pb::etcdserverpb::{request_op, response_op};
use super::pb::mvccpb;
use crate::kv::command::{
    Compare, CompareResult, CompareTarget, DeleteRangeRequest, DeleteRangeResponse, Event, EventKind, KeyValue,
    PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp, ResponseOp, SortOrder, SortTarget, TxnRequest,
    TxnResponse,
};
use crate::types::LeaseId;

fn invalid_sort() -> Status {
    Status::invalid_argument("etcdserver: invalid sort option")
}

/// Reads a range request; where to read it stays with the caller.
pub fn range_in(request: pb::RangeRequest) -> Result<RangeRequest, Status> {
    use pb::range_request as wire;
    let sort_order = match wire::SortOrder::try_from(request.sort_order).map_err(|_| invalid_sort())? {
        wire::SortOrder::None => SortOrder::None,
        wire::SortOrder::Ascend => SortOrder::Ascend,
        wire::SortOrder::Descend => SortOrder::Descend,
    };
    let sort_target = match wire::SortTarget::try_from(request.sort_target).map_err(|_| invalid_sort())? {
        wire::SortTarget::Key => SortTarget::Key,
        wire::SortTarget::Version => SortTarget::Version,
        wire::SortTarget::Create => SortTarget::Create,
        wire::SortTarget::Mod => SortTarget::Mod,
        wire::SortTarget::Value => SortTarget::Value,
    };
    Ok(RangeRequest {
        key: request.key,
        range_end: request.range_end,
        limit: request.limit,
        revision: request.revision,
        sort_order,
        sort_target,
        keys_only: request.keys_only,
        count_only: request.count_only,
        min_mod_revision: request.min_mod_revision,
        max_mod_revision: request.max_mod_revision,
        min_create_revision: request.min_create_revision,
        max_create_revision: request.max_create_revision,
    })
}

/// Reads a put.
pub fn put_in(request: pb::PutRequest) -> PutRequest {
    PutRequest {
        key: request.key,
        value: request.value,
        lease: LeaseId(request.lease),
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    }
}

/// Reads a deletion.
pub fn delete_in(request: pb::DeleteRangeRequest) -> DeleteRangeRequest {
    DeleteRangeRequest { key: request.key, range_end: request.range_end, prev_kv: request.prev_kv }
}

/// Reads a transaction.
pub fn txn_in(request: pb::TxnRequest) -> Result<TxnRequest, Status> {
    let ops = |list: Vec<pb::RequestOp>| list.into_iter().map(op_in).collect::<Result<Vec<_>, _>>();
    Ok(TxnRequest {
        compare: request.compare.into_iter().map(compare_in).collect::<Result<_, _>>()?,
        success: ops(request.success)?,
        failure: ops(request.failure)?,
    })
}

fn op_in(op: pb::RequestOp) -> Result<RequestOp, Status> {
    Ok(match op.request {
        None => RequestOp::Empty,
        Some(request_op::Request::RequestRange(request)) => RequestOp::Range(range_in(request)?),
        Some(request_op::Request::RequestPut(request)) => RequestOp::Put(put_in(request)),
        Some(request_op::Request::RequestDeleteRange(request)) => RequestOp::DeleteRange(delete_in(request)),
        Some(request_op::Request::RequestTxn(request)) => RequestOp::Txn(txn_in(request)?),
    })
}

/// The target says what is compared; a value of another kind counts as the kind's zero, as in etcd.
fn compare_in(compare: pb::Compare) -> Result<Compare, Status> {
    use pb::compare as wire;
    let invalid = |_| Status::invalid_argument("etcdserver: invalid compare");
    let result = match wire::CompareResult::try_from(compare.result).map_err(invalid)? {
        wire::CompareResult::Equal => CompareResult::Equal,
        wire::CompareResult::Greater => CompareResult::Greater,
        wire::CompareResult::Less => CompareResult::Less,
        wire::CompareResult::NotEqual => CompareResult::NotEqual,
    };
    let union = compare.target_union;
    let target = match wire::CompareTarget::try_from(compare.target).map_err(invalid)? {
        wire::CompareTarget::Version => CompareTarget::Version(match union {
            Some(wire::TargetUnion::Version(version)) => version,
            _ => 0,
        }),
        wire::CompareTarget::Create => CompareTarget::Create(match union {
            Some(wire::TargetUnion::CreateRevision(revision)) => revision,
            _ => 0,
        }),
        wire::CompareTarget::Mod => CompareTarget::Mod(match union {
            Some(wire::TargetUnion::ModRevision(revision)) => revision,
            _ => 0,
        }),
        wire::CompareTarget::Value => CompareTarget::Value(match union {
            Some(wire::TargetUnion::Value(value)) => value,
            _ => Vec::new(),
        }),
        wire::CompareTarget::Lease => CompareTarget::Lease(LeaseId(match union {
            Some(wire::TargetUnion::Lease(lease)) => lease,
            _ => 0,
        })),
    };
    Ok(Compare { key: compare.key, range_end: compare.range_end, result, target })
}

/// Writes a pair.
pub fn pair_out(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value,
        lease: kv.lease.0,
    }
}

/// Writes a change.
pub fn event_out(event: Event) -> mvccpb::Event {
    let kind = match event.kind {
        EventKind::Put => mvccpb::event::EventType::Put,
        EventKind::Delete => mvccpb::event::EventType::Delete,
    };
    mvccpb::Event { r#type: kind.into(), kv: Some(pair_out(event.kv)), prev_kv: event.prev_kv.map(pair_out) }
}

/// Writes the answer to a range.
pub fn range_out(response: RangeResponse, header: pb::ResponseHeader) -> pb::RangeResponse {
    pb::RangeResponse {
        header: Some(header),
        kvs: response.kvs.into_iter().map(pair_out).collect(),
        more: response.more,
        count: response.count,
    }
}

/// Writes the answer to a put.
pub fn put_out(response: PutResponse, header: pb::ResponseHeader) -> pb::PutResponse {
    pb::PutResponse { header: Some(header), prev_kv: response.prev_kv.map(pair_out) }
}

/// Writes the answer to a deletion.
pub fn delete_out(response: DeleteRangeResponse, header: pb::ResponseHeader) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse {
        header: Some(header),
        deleted: response.deleted,
        prev_kvs: response.prev_kvs.into_iter().map(pair_out).collect(),
    }
}

/// Writes the answer to a transaction.
pub fn txn_out(response: TxnResponse, header: pb::ResponseHeader) -> pb::TxnResponse {
    let responses = response.responses.into_iter().map(op_out).collect();
    pb::TxnResponse { header: Some(header), succeeded: response.succeeded, responses }
}

/// Inside a transaction, headers carry the revision and nothing else. Source: etcd; python-etcd3 reads it there.
fn op_out(response: ResponseOp) -> pb::ResponseOp {
    let header = |revision| pb::ResponseHeader { revision, ..pb::ResponseHeader::default() };
    let response = match response {
        ResponseOp::Range(inner) => {
            let header = header(inner.revision);
            response_op::Response::ResponseRange(range_out(inner, header))
        }
        ResponseOp::Put(inner) => {
            let header = header(inner.revision);
            response_op::Response::ResponsePut(put_out(inner, header))
        }
        ResponseOp::DeleteRange(inner) => {
            let header = header(inner.revision);
            response_op::Response::ResponseDeleteRange(delete_out(inner, header))
        }
        ResponseOp::Txn(inner) => {
            let header = header(inner.revision);
            response_op::Response::ResponseTxn(txn_out(inner, header))
        }
    };
    pb::ResponseOp { response: Some(response) }
}
