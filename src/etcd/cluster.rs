//! The service `Cluster`: who the members are, and who shall go.
//!
//! Only who has proved to be root changes members: without users and roles anybody could take the quorum apart.

use tonic::metadata::MetadataMap;
use tonic::{Request, Response as Answer, Status};

use super::pb::etcdserverpb as pb;
use super::pb::etcdserverpb::cluster_server::Cluster;
use super::{Etcd, error};

fn unknown() -> Status {
    Status::not_found("etcdserver: member not found")
}

impl Etcd {
    /// The members, by id. All of them serve clients on their main port, where members also talk to each other.
    pub(super) fn member_list(&self) -> Vec<pb::Member> {
        let mut members: Vec<pb::Member> = self
            .store
            .members()
            .into_iter()
            .map(|member| {
                let url = format!("{}://{}", self.scheme, member.addr);
                pb::Member {
                    id: member.id.0,
                    name: member.name,
                    peer_ur_ls: vec![url.clone()],
                    client_ur_ls: vec![url],
                    is_learner: !member.voter,
                }
            })
            .collect();
        members.sort_by_key(|member| member.id);
        members
    }

    fn member(&self, id: u64) -> Result<pb::Member, Status> {
        self.member_list().into_iter().find(|member| member.id == id).ok_or_else(unknown)
    }

    async fn permits_members(&self, metadata: &MetadataMap) -> Result<(), Status> {
        // Who was root when this node heard of it last may not be any more, and this is not asked again.
        self.linearize().await?;
        self.root(metadata).await?;
        let proved = self.store.read(|state| state.auth().is_enabled());
        if proved { Ok(()) } else { Err(error::permission_denied()) }
    }
}

#[tonic::async_trait]
impl Cluster for Etcd {
    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Answer<pb::MemberListResponse>, Status> {
        self.somebody(request.metadata()).await?;
        if request.into_inner().linearizable {
            self.linearize().await?;
        }
        let members = Etcd::member_list(self);
        Ok(Answer::new(pb::MemberListResponse { header: Some(self.header_at(0)), members }))
    }

    /// A node joins by itself when it is started with the others' addresses: nobody needs to announce it.
    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Answer<pb::MemberAddResponse>, Status> {
        self.permits_members(request.metadata()).await?;
        Err(Status::failed_precondition(
            "etcdserver: a howdah node joins by itself: start it with this cluster's addresses under raft.members",
        ))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Answer<pb::MemberRemoveResponse>, Status> {
        self.permits_members(request.metadata()).await?;
        let member = self.member(request.into_inner().id)?;
        let name = member.name.parse().map_err(|_| unknown())?;
        self.store.member_remove(&name).await.map_err(|failure| error::status(&failure))?;
        let members = Etcd::member_list(self);
        Ok(Answer::new(pb::MemberRemoveResponse { header: Some(self.header_at(0)), members }))
    }

    /// A member tells its new address itself when it is started with it.
    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Answer<pb::MemberUpdateResponse>, Status> {
        self.permits_members(request.metadata()).await?;
        self.member(request.into_inner().id)?;
        Err(Status::failed_precondition(
            "etcdserver: a howdah node tells its address itself: change restapi.connect_address and restart it",
        ))
    }

    /// A learner that has caught up is made a voter at once: one that is still a learner has not.
    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Answer<pb::MemberPromoteResponse>, Status> {
        self.permits_members(request.metadata()).await?;
        let why = if self.member(request.into_inner().id)?.is_learner {
            "etcdserver: can only promote a learner member which is in sync with leader"
        } else {
            "etcdserver: can only promote a learner member"
        };
        Err(Status::failed_precondition(why))
    }
}
