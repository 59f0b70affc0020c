//! The service `Auth`: authentication is off, and says so. Users and roles are not served yet.

use tonic::{Request, Response as Answer, Status};

use super::pb::etcdserverpb as pb;
use super::pb::etcdserverpb::auth_server::Auth;
use super::{Etcd, error};

#[tonic::async_trait]
impl Auth for Etcd {
    async fn auth_status(&self, _: Request<pb::AuthStatusRequest>) -> Result<Answer<pb::AuthStatusResponse>, Status> {
        let header = Some(self.header());
        Ok(Answer::new(pb::AuthStatusResponse { header, enabled: false, auth_revision: 1 }))
    }

    /// Clients that were given a name go on without a token when they are told this.
    async fn authenticate(
        &self,
        _: Request<pb::AuthenticateRequest>,
    ) -> Result<Answer<pb::AuthenticateResponse>, Status> {
        Err(Status::failed_precondition("etcdserver: authentication is not enabled"))
    }

    async fn auth_enable(&self, _: Request<pb::AuthEnableRequest>) -> Result<Answer<pb::AuthEnableResponse>, Status> {
        Err(error::not_supported())
    }

    async fn auth_disable(
        &self,
        _: Request<pb::AuthDisableRequest>,
    ) -> Result<Answer<pb::AuthDisableResponse>, Status> {
        Err(error::not_supported())
    }

    async fn user_add(&self, _: Request<pb::AuthUserAddRequest>) -> Result<Answer<pb::AuthUserAddResponse>, Status> {
        Err(error::not_supported())
    }

    async fn user_get(&self, _: Request<pb::AuthUserGetRequest>) -> Result<Answer<pb::AuthUserGetResponse>, Status> {
        Err(error::not_supported())
    }

    async fn user_list(&self, _: Request<pb::AuthUserListRequest>) -> Result<Answer<pb::AuthUserListResponse>, Status> {
        Err(error::not_supported())
    }

    async fn user_delete(
        &self,
        _: Request<pb::AuthUserDeleteRequest>,
    ) -> Result<Answer<pb::AuthUserDeleteResponse>, Status> {
        Err(error::not_supported())
    }

    async fn user_change_password(
        &self,
        _: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Result<Answer<pb::AuthUserChangePasswordResponse>, Status> {
        Err(error::not_supported())
    }

    async fn user_grant_role(
        &self,
        _: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Result<Answer<pb::AuthUserGrantRoleResponse>, Status> {
        Err(error::not_supported())
    }

    async fn user_revoke_role(
        &self,
        _: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Result<Answer<pb::AuthUserRevokeRoleResponse>, Status> {
        Err(error::not_supported())
    }

    async fn role_add(&self, _: Request<pb::AuthRoleAddRequest>) -> Result<Answer<pb::AuthRoleAddResponse>, Status> {
        Err(error::not_supported())
    }

    async fn role_get(&self, _: Request<pb::AuthRoleGetRequest>) -> Result<Answer<pb::AuthRoleGetResponse>, Status> {
        Err(error::not_supported())
    }

    async fn role_list(&self, _: Request<pb::AuthRoleListRequest>) -> Result<Answer<pb::AuthRoleListResponse>, Status> {
        Err(error::not_supported())
    }

    async fn role_delete(
        &self,
        _: Request<pb::AuthRoleDeleteRequest>,
    ) -> Result<Answer<pb::AuthRoleDeleteResponse>, Status> {
        Err(error::not_supported())
    }

    async fn role_grant_permission(
        &self,
        _: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Result<Answer<pb::AuthRoleGrantPermissionResponse>, Status> {
        Err(error::not_supported())
    }

    async fn role_revoke_permission(
        &self,
        _: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Result<Answer<pb::AuthRoleRevokePermissionResponse>, Status> {
        Err(error::not_supported())
    }
}
