//! The service `Maintenance`: status, alarms, hashes, a new leader.

use std::pin::Pin;

use futures_util::Stream;
use tonic::{Request, Response as Answer, Status};

use super::pb::etcdserverpb as pb;
use super::pb::etcdserverpb::maintenance_server::Maintenance;
use super::{Etcd, MINOR_VERSION, VERSION, error};
use crate::kv::command::RangeRequest;

/// What etcd shows of an empty database. Never less: its tools divide by it.
const DB_SIZE_MIN: u64 = 20_480;

/// Checksum of all pairs at a revision; equal on members that are in the same state, and comparable with nothing else.
fn hash(pairs: &[crate::kv::KeyValue]) -> u32 {
    // Some clients take zero for an error: an empty store has a checksum, too.
    pairs.iter().fold(crc32c::crc32c(b"key"), |hash, kv| {
        let mut bytes = Vec::with_capacity(kv.key.len() + kv.value.len() + 48);
        for number in [kv.key.len() as u64, kv.value.len() as u64] {
            bytes.extend(number.to_le_bytes());
        }
        for number in [kv.create_revision, kv.mod_revision, kv.version, kv.lease.0] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(&kv.key);
        bytes.extend(&kv.value);
        crc32c::crc32c_append(hash, &bytes)
    })
}

impl Etcd {
    fn hash_at(&self, revision: i64) -> Result<pb::HashKvResponse, Status> {
        let all = RangeRequest { key: vec![0], range_end: vec![0], revision, ..RangeRequest::default() };
        let (response, compact_revision) = self.store.read(|state| (state.range(&all), state.compact_revision()));
        let response = response.map_err(|refusal| error::rejected(&refusal))?;
        let hash_revision = if revision > 0 { revision } else { response.revision };
        let hash = hash(&response.kvs);
        Ok(pb::HashKvResponse {
            header: Some(self.header_at(response.revision)),
            hash,
            compact_revision,
            hash_revision,
        })
    }
}

#[tonic::async_trait]
impl Maintenance for Etcd {
    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<pb::SnapshotResponse, Status>> + Send>>;

    /// The one alarm is the quota's. It ends by itself when there is room again, so clearing it is nothing to do.
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Answer<pb::AlarmResponse>, Status> {
        let action = request.get_ref().action;
        if action == i32::from(pb::alarm_request::AlarmAction::Get) {
            self.somebody(request.metadata()).await?;
        } else {
            self.root(request.metadata()).await?;
        }
        if action == i32::from(pb::alarm_request::AlarmAction::Activate) {
            return Err(error::permission_denied());
        }
        self.linearize().await?;
        let full = self
            .is_full()
            .then(|| pb::AlarmMember { member_id: self.store.vitals().id, alarm: pb::AlarmType::Nospace.into() });
        Ok(Answer::new(pb::AlarmResponse { header: Some(self.header()), alarms: full.into_iter().collect() }))
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Result<Answer<pb::StatusResponse>, Status> {
        self.somebody(request.metadata()).await?;
        let status = self.store.status();
        let in_use = self.store.read(crate::kv::State::size_bytes);
        let size = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let is_learner = status.learners.iter().any(|member| Some(member.id) == status.id);
        let errors = match status.leader {
            Some(_) => Vec::new(),
            None => vec![error::no_leader().message().to_owned()],
        };
        Ok(Answer::new(pb::StatusResponse {
            header: Some(self.header()),
            version: VERSION.to_owned(),
            db_size: size(in_use.max(DB_SIZE_MIN)),
            leader: status.leader.map_or(0, |(id, _)| id.0),
            raft_index: status.last_log.unwrap_or(0),
            raft_term: status.term,
            raft_applied_index: status.applied.unwrap_or(0),
            errors,
            db_size_in_use: size(in_use.max(1)),
            is_learner,
            storage_version: MINOR_VERSION.to_owned(),
            db_size_quota: size(self.quota),
            downgrade_info: None,
        }))
    }

    /// There is nothing to do: the store takes no more space than its data. The header is absent, as in etcd.
    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Result<Answer<pb::DefragmentResponse>, Status> {
        self.root(request.metadata()).await?;
        Ok(Answer::new(pb::DefragmentResponse { header: None }))
    }

    async fn hash(&self, request: Request<pb::HashRequest>) -> Result<Answer<pb::HashResponse>, Status> {
        self.root(request.metadata()).await?;
        let pb::HashKvResponse { header, hash, .. } = self.hash_at(0)?;
        Ok(Answer::new(pb::HashResponse { header, hash }))
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Result<Answer<pb::HashKvResponse>, Status> {
        self.root(request.metadata()).await?;
        Ok(Answer::new(self.hash_at(request.into_inner().revision)?))
    }

    async fn snapshot(&self, request: Request<pb::SnapshotRequest>) -> Result<Answer<Self::SnapshotStream>, Status> {
        self.linearize().await?;
        self.root(request.metadata()).await?;
        let pieces = self.export()?;
        Ok(Answer::new(Box::pin(futures_util::stream::iter(pieces.into_iter().map(Ok)))))
    }

    /// Asked of the leader only, as in etcd.
    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Answer<pb::MoveLeaderResponse>, Status> {
        self.root(request.metadata()).await?;
        let target = request.into_inner().target_id;
        let status = self.store.status();
        if status.leader.as_ref().map(|(id, _)| *id) != status.id {
            return Err(Status::failed_precondition("etcdserver: not leader"));
        }
        let voter = status.voters.iter().find(|member| member.id.0 == target);
        let name = voter.and_then(|member| member.name.parse().ok());
        let name = name.ok_or_else(|| Status::failed_precondition("etcdserver: bad leader transferee"))?;
        self.store.transfer_leader(&name).await.map_err(|failure| error::status(&failure))?;
        Ok(Answer::new(pb::MoveLeaderResponse { header: None }))
    }

    async fn downgrade(&self, _: Request<pb::DowngradeRequest>) -> Result<Answer<pb::DowngradeResponse>, Status> {
        Err(error::not_supported())
    }
}
