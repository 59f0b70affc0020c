//! The service `Cluster`: who the members are. They are changed by `howdah member`, which knows the members' names.

use tonic::{Request, Response as Answer, Status};

use super::pb::etcdserverpb as pb;
use super::pb::etcdserverpb::cluster_server::Cluster;
use super::{Etcd, error};

impl Etcd {
    /// The members, by id. All of them serve clients on their main port, where members also talk to each other.
    pub(super) fn member_list(&self) -> Vec<pb::Member> {
        let mut members: Vec<pb::Member> = self
            .store
            .members()
            .into_iter()
            .map(|member| {
                let url = format!("http://{}", member.addr);
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
}

#[tonic::async_trait]
impl Cluster for Etcd {
    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Answer<pb::MemberListResponse>, Status> {
        if request.into_inner().linearizable {
            self.linearize().await?;
        }
        let members = Etcd::member_list(self);
        Ok(Answer::new(pb::MemberListResponse { header: Some(self.header_at(0)), members }))
    }

    async fn member_add(&self, _: Request<pb::MemberAddRequest>) -> Result<Answer<pb::MemberAddResponse>, Status> {
        Err(error::permission_denied())
    }

    async fn member_remove(
        &self,
        _: Request<pb::MemberRemoveRequest>,
    ) -> Result<Answer<pb::MemberRemoveResponse>, Status> {
        Err(error::permission_denied())
    }

    async fn member_update(
        &self,
        _: Request<pb::MemberUpdateRequest>,
    ) -> Result<Answer<pb::MemberUpdateResponse>, Status> {
        Err(error::permission_denied())
    }

    async fn member_promote(
        &self,
        _: Request<pb::MemberPromoteRequest>,
    ) -> Result<Answer<pb::MemberPromoteResponse>, Status> {
        Err(error::permission_denied())
    }
}
