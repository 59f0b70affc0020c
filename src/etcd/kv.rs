//! The service `KV`: ranges, puts, deletions, transactions, compaction.

use tonic::metadata::MetadataMap;
use tonic::{Request, Response as Answer, Status};

use super::convert;
use super::pb::etcdserverpb as pb;
use super::pb::etcdserverpb::kv_server::Kv;
use super::{Etcd, error};
use crate::kv::command::{Command, Response};

/// The store has answered a change with the answer to another one.
fn unexpected(response: &Response) -> Status {
    Status::internal(format!("etcdserver: unexpected answer {response:?}"))
}

/// Whether all ranges of a transaction that only reads may be answered from local state.
fn all_serializable(ops: &[pb::RequestOp]) -> bool {
    use super::pb::etcdserverpb::request_op::Request;
    ops.iter().all(|op| match &op.request {
        Some(Request::RequestRange(range)) => range.serializable,
        Some(Request::RequestTxn(txn)) => all_serializable(&txn.success) && all_serializable(&txn.failure),
        _ => true,
    })
}

impl Etcd {
    /// Sees to it that the state here is what the reader asks for.
    async fn see(&self, local: bool) -> Result<(), Status> {
        if !local {
            return self.linearize().await;
        }
        self.catch_up().await;
        Ok(())
    }

    /// Answers a transaction that cannot write, without an entry in the log.
    async fn read_txn(
        &self,
        metadata: &MetadataMap,
        command: &Command,
        local: bool,
    ) -> Result<Option<Answer<pb::TxnResponse>>, Status> {
        let Command::Txn(txn) = command else { return Ok(None) };
        if !txn.only_reads() {
            return Ok(None);
        }
        self.store.read(|state| state.check(command)).map_err(|refusal| error::rejected(&refusal))?;
        self.see(local).await?;
        let caller = self.caller(metadata).await?;
        self.allow(&caller, command)?;
        let result = self.store.read(|state| {
            let response = state.read_txn(txn)?;
            Some(response.and_then(|response| state.permits(&caller.user, command).map(|()| response)))
        });
        let Some(result) = result else { return Ok(None) };
        let mut response = result.map_err(|refusal| error::rejected(&refusal))?;
        self.guard.hide_in_txn(&mut response);
        let header = self.header_at(response.revision);
        Ok(Some(Answer::new(convert::txn_out(response, header))))
    }
}

#[tonic::async_trait]
impl Kv for Etcd {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Answer<pb::RangeResponse>, Status> {
        self.require_leader(request.metadata())?;
        let (metadata, _, request) = request.into_parts();
        let local = request.serializable;
        let range = convert::range_in(request)?;
        self.guard.range(&range)?;
        self.see(local).await?;
        let caller = self.caller(&metadata).await?;
        let response = self.read_range(&caller, &range)?;
        let header = self.header_at(response.revision);
        Ok(Answer::new(convert::range_out(response, header)))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Answer<pb::PutResponse>, Status> {
        self.require_leader(request.metadata())?;
        let caller = self.caller(request.metadata()).await?;
        match self.change(&caller, Command::Put(convert::put_in(request.into_inner()))).await? {
            Response::Put(response) => {
                let header = self.header_at(response.revision);
                Ok(Answer::new(convert::put_out(response, header)))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Answer<pb::DeleteRangeResponse>, Status> {
        self.require_leader(request.metadata())?;
        let caller = self.caller(request.metadata()).await?;
        match self.change(&caller, Command::DeleteRange(convert::delete_in(request.into_inner()))).await? {
            Response::DeleteRange(response) => {
                let header = self.header_at(response.revision);
                Ok(Answer::new(convert::delete_out(response, header)))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Answer<pb::TxnResponse>, Status> {
        self.require_leader(request.metadata())?;
        let (metadata, _, request) = request.into_parts();
        let local = all_serializable(&request.success) && all_serializable(&request.failure);
        let has_ops = !request.success.is_empty() || !request.failure.is_empty();
        let command = Command::Txn(convert::txn_in(request)?);
        if let Some(answer) = self.read_txn(&metadata, &command, local && has_ops).await? {
            return Ok(answer);
        }
        let caller = self.caller(&metadata).await?;
        match self.change(&caller, command).await? {
            Response::Txn(mut response) => {
                self.guard.hide_in_txn(&mut response);
                let header = self.header_at(response.revision);
                Ok(Answer::new(convert::txn_out(response, header)))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn compact(&self, request: Request<pb::CompactionRequest>) -> Result<Answer<pb::CompactionResponse>, Status> {
        self.require_leader(request.metadata())?;
        let caller = self.caller(request.metadata()).await?;
        let revision = request.into_inner().revision;
        match self.change(&caller, Command::Compact { revision }).await? {
            Response::Compact { revision } => {
                Ok(Answer::new(pb::CompactionResponse { header: Some(self.header_at(revision)) }))
            }
            other => Err(unexpected(&other)),
        }
    }
}
