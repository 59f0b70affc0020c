//! The service `Lock`: one holder at a time, as long as its lease lives.
//!
//! As in etcd, a lock tells who may go on; it cannot stop who was slow to hear that its lease has ended. Whoever guards
//! something real compares the key's creation in the same transaction.

use tonic::{Request, Response as Answer, Status};

use super::Etcd;
use super::pb::v3lockpb as pb;
use super::pb::v3lockpb::lock_server::Lock;
use crate::kv::command::{Command, DeleteRangeRequest, Response};

#[tonic::async_trait]
impl Lock for Etcd {
    async fn lock(&self, request: Request<pb::LockRequest>) -> Result<Answer<pb::LockResponse>, Status> {
        let caller = self.caller(request.metadata()).await?;
        let pb::LockRequest { name, lease } = request.into_inner();
        let (place, _) = self.enqueue(&caller, &name, lease, &[]).await?;
        self.wait_turn(&caller, &name, &place).await?;
        Ok(Answer::new(pb::LockResponse { header: Some(self.header()), key: place.key }))
    }

    async fn unlock(&self, request: Request<pb::UnlockRequest>) -> Result<Answer<pb::UnlockResponse>, Status> {
        let caller = self.caller(request.metadata()).await?;
        let key = request.into_inner().key;
        let delete = DeleteRangeRequest { key, range_end: Vec::new(), prev_kv: false };
        match self.change(&caller, Command::DeleteRange(delete)).await? {
            Response::DeleteRange(answer) => {
                Ok(Answer::new(pb::UnlockResponse { header: Some(self.header_at(answer.revision)) }))
            }
            other => Err(Status::internal(format!("etcdserver: unexpected answer {other:?}"))),
        }
    }
}
