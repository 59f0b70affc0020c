//! The service `Auth`: users, roles, passwords and tokens. What they may do is decided in [`crate::kv::auth`].
//!
//! Passwords are hashed here, before anything is proposed: the log never holds one. Comparing one takes a core for
//! some 50 ms, so that it is done one at a time, and only a few may wait.

use rand::Rng as _;
use rand::distr::Alphabetic;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response as Answer, Status};

use super::pb::authpb;
use super::pb::etcdserverpb as pb;
use super::pb::etcdserverpb::auth_server::Auth;
use super::{Etcd, error};
use crate::kv::auth::{AuthChange, Permission, PermissionKind};
use crate::kv::{self, Command, Response};

/// Work that a hash costs. Source: etcd's default.
const COST: u32 = 10;
/// Passwords that wait to be compared; more of them are turned away.
const WAITING: usize = 32;
/// Letters of a token. Source: etcd's simple tokens.
const TOKEN_LETTERS: usize = 16;
/// Compared with when there is no such user, so that the time does not tell which names exist. No password fits.
const NOBODYS_HASH: &str = "$2b$10$.....................................................";

/// Hashing of passwords, one at a time.
#[derive(Clone)]
pub struct Passwords {
    turn: std::sync::Arc<tokio::sync::Semaphore>,
    waiting: std::sync::Arc<tokio::sync::Semaphore>,
}

impl Default for Passwords {
    fn default() -> Self {
        let semaphore = |permits| std::sync::Arc::new(tokio::sync::Semaphore::new(permits));
        Self { turn: semaphore(1), waiting: semaphore(WAITING) }
    }
}

impl Passwords {
    async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
        let _place =
            self.waiting.try_acquire().map_err(|_| Status::resource_exhausted("etcdserver: too many requests"))?;
        let _turn = self.turn.acquire().await.map_err(|_| error::stopped())?;
        tokio::task::spawn_blocking(work).await.map_err(|_| error::stopped())
    }

    async fn hash(&self, password: String) -> Result<String, Status> {
        if password.len() > 72 {
            // Longer ones would be cut off silently. Source: bcrypt.
            return Err(Status::invalid_argument("etcdserver: a password has at most 72 bytes"));
        }
        self.work(move || bcrypt::hash(password, COST))
            .await?
            .map_err(|why| Status::internal(format!("etcdserver: hash a password: {why}")))
    }

    async fn matches(&self, password: String, hash: Option<String>) -> Result<bool, Status> {
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| NOBODYS_HASH.to_owned());
        // A hash that cannot be read fits nothing.
        let equal = self.work(move || bcrypt::verify(password, &hash).unwrap_or(false)).await?;
        Ok(known && equal)
    }
}

fn kind_in(kind: i32) -> Result<PermissionKind, Status> {
    match authpb::permission::Type::try_from(kind) {
        Ok(authpb::permission::Type::Read) => Ok(PermissionKind::Read),
        Ok(authpb::permission::Type::Write) => Ok(PermissionKind::Write),
        Ok(authpb::permission::Type::Readwrite) => Ok(PermissionKind::ReadWrite),
        Err(_) => Err(error::rejected(&kv::Error::InvalidAuthManagement)),
    }
}

fn permission_out(permission: Permission) -> authpb::Permission {
    let kind = match permission.kind {
        PermissionKind::Read => authpb::permission::Type::Read,
        PermissionKind::Write => authpb::permission::Type::Write,
        PermissionKind::ReadWrite => authpb::permission::Type::Readwrite,
    };
    authpb::Permission { perm_type: kind.into(), key: permission.key, range_end: permission.range_end }
}

impl Etcd {
    /// Changes users and roles in the caller's name.
    async fn manage(&self, metadata: &MetadataMap, change: AuthChange) -> Result<Option<pb::ResponseHeader>, Status> {
        let caller = self.caller(metadata).await?;
        match self.change(&caller, Command::Auth(change)).await? {
            Response::Auth { revision } => Ok(Some(self.header_at(revision))),
            other => Err(Status::internal(format!("etcdserver: unexpected answer {other:?}"))),
        }
    }

    /// A token for who knows a user's password.
    async fn give_token(&self, name: &str, password: &str) -> Result<(pb::ResponseHeader, String), Status> {
        loop {
            self.linearize().await?;
            let (enabled, revision, hash) = self.store.read(|state| {
                let auth = state.auth();
                (auth.is_enabled(), auth.revision(), auth.password_of(name).map(str::to_owned))
            });
            if !enabled {
                return Err(error::rejected(&kv::Error::AuthNotEnabled));
            }
            if !self.passwords.matches(password.to_owned(), hash).await? {
                return Err(error::rejected(&kv::Error::AuthFailed));
            }
            let letters: String = rand::rng().sample_iter(Alphabetic).take(TOKEN_LETTERS).map(char::from).collect();
            let token = format!("{letters}.{}", self.store.status().applied.unwrap_or(0));
            let issue = AuthChange::TokenIssue { user: name.to_owned(), token: token.clone(), revision };
            match self.store.propose(Command::Auth(issue), self.patience()).await {
                Ok(_) => return Ok((self.header(), token)),
                // The password may have been changed while it was compared.
                Err(crate::raft::StoreError::Rejected(kv::Error::AuthOldRevision)) => {}
                Err(failure) => return Err(error::status(&failure)),
            }
        }
    }
}

#[tonic::async_trait]
impl Auth for Etcd {
    async fn auth_status(&self, _: Request<pb::AuthStatusRequest>) -> Result<Answer<pb::AuthStatusResponse>, Status> {
        let (enabled, auth_revision) = self.store.read(|state| (state.auth().is_enabled(), state.auth().revision()));
        Ok(Answer::new(pb::AuthStatusResponse { header: Some(self.header()), enabled, auth_revision }))
    }

    /// Clients that were given a name go on without a token when they are told that none is needed.
    async fn authenticate(
        &self,
        request: Request<pb::AuthenticateRequest>,
    ) -> Result<Answer<pb::AuthenticateResponse>, Status> {
        let pb::AuthenticateRequest { name, password } = request.into_inner();
        let (header, token) = self.give_token(&name, &password).await?;
        Ok(Answer::new(pb::AuthenticateResponse { header: Some(header), token }))
    }

    async fn auth_enable(
        &self,
        request: Request<pb::AuthEnableRequest>,
    ) -> Result<Answer<pb::AuthEnableResponse>, Status> {
        let header = self.manage(request.metadata(), AuthChange::Enable).await?;
        Ok(Answer::new(pb::AuthEnableResponse { header }))
    }

    async fn auth_disable(
        &self,
        request: Request<pb::AuthDisableRequest>,
    ) -> Result<Answer<pb::AuthDisableResponse>, Status> {
        let header = self.manage(request.metadata(), AuthChange::Disable).await?;
        Ok(Answer::new(pb::AuthDisableResponse { header }))
    }

    async fn user_add(
        &self,
        request: Request<pb::AuthUserAddRequest>,
    ) -> Result<Answer<pb::AuthUserAddResponse>, Status> {
        // Before the hash, which is work.
        self.root(request.metadata()).await?;
        let (metadata, _, user) = request.into_parts();
        let hashed = if user.options.is_some_and(|options| options.no_password) {
            None
        } else {
            Some(self.passwords.hash(user.password).await?)
        };
        let header = self.manage(&metadata, AuthChange::UserAdd { name: user.name, password: hashed }).await?;
        Ok(Answer::new(pb::AuthUserAddResponse { header }))
    }

    /// To root, and to the user about itself.
    async fn user_get(
        &self,
        request: Request<pb::AuthUserGetRequest>,
    ) -> Result<Answer<pb::AuthUserGetResponse>, Status> {
        self.linearize().await?;
        let caller = self.caller(request.metadata()).await?;
        let name = request.into_inner().name;
        let roles = self.store.read(|state| {
            let auth = state.auth();
            if caller.user.is_empty() || caller.user != name {
                auth.permits_root(&caller.user)?;
            }
            Ok(auth.roles_of(&name)?.map(str::to_owned).collect())
        });
        let roles = roles.map_err(|refusal| error::rejected(&refusal))?;
        Ok(Answer::new(pb::AuthUserGetResponse { header: Some(self.header()), roles }))
    }

    async fn user_list(
        &self,
        request: Request<pb::AuthUserListRequest>,
    ) -> Result<Answer<pb::AuthUserListResponse>, Status> {
        self.linearize().await?;
        self.root(request.metadata()).await?;
        let users = self.store.read(|state| state.auth().users().map(str::to_owned).collect());
        Ok(Answer::new(pb::AuthUserListResponse { header: Some(self.header()), users }))
    }

    async fn user_delete(
        &self,
        request: Request<pb::AuthUserDeleteRequest>,
    ) -> Result<Answer<pb::AuthUserDeleteResponse>, Status> {
        let (metadata, _, user) = request.into_parts();
        let header = self.manage(&metadata, AuthChange::UserDelete { name: user.name }).await?;
        Ok(Answer::new(pb::AuthUserDeleteResponse { header }))
    }

    async fn user_change_password(
        &self,
        request: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Result<Answer<pb::AuthUserChangePasswordResponse>, Status> {
        self.root(request.metadata()).await?;
        let (metadata, _, user) = request.into_parts();
        let password = self.passwords.hash(user.password).await?;
        let header = self.manage(&metadata, AuthChange::UserChangePassword { name: user.name, password }).await?;
        Ok(Answer::new(pb::AuthUserChangePasswordResponse { header }))
    }

    async fn user_grant_role(
        &self,
        request: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Result<Answer<pb::AuthUserGrantRoleResponse>, Status> {
        let (metadata, _, pb::AuthUserGrantRoleRequest { user, role }) = request.into_parts();
        let header = self.manage(&metadata, AuthChange::UserGrantRole { user, role }).await?;
        Ok(Answer::new(pb::AuthUserGrantRoleResponse { header }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Result<Answer<pb::AuthUserRevokeRoleResponse>, Status> {
        let (metadata, _, pb::AuthUserRevokeRoleRequest { name, role }) = request.into_parts();
        let header = self.manage(&metadata, AuthChange::UserRevokeRole { user: name, role }).await?;
        Ok(Answer::new(pb::AuthUserRevokeRoleResponse { header }))
    }

    async fn role_add(
        &self,
        request: Request<pb::AuthRoleAddRequest>,
    ) -> Result<Answer<pb::AuthRoleAddResponse>, Status> {
        let (metadata, _, role) = request.into_parts();
        let header = self.manage(&metadata, AuthChange::RoleAdd { name: role.name }).await?;
        Ok(Answer::new(pb::AuthRoleAddResponse { header }))
    }

    /// To root, and to users who have the role.
    async fn role_get(
        &self,
        request: Request<pb::AuthRoleGetRequest>,
    ) -> Result<Answer<pb::AuthRoleGetResponse>, Status> {
        self.linearize().await?;
        let caller = self.caller(request.metadata()).await?;
        let role = request.into_inner().role;
        let permissions = self.store.read(|state| {
            let auth = state.auth();
            let holds = |user: &str| auth.roles_of(user).is_ok_and(|mut roles| roles.any(|held| held == role));
            if caller.user.is_empty() || !holds(&caller.user) {
                auth.permits_root(&caller.user)?;
            }
            auth.permissions_of(&role)
        });
        let permissions = permissions.map_err(|refusal| error::rejected(&refusal))?;
        let perm = permissions.into_iter().map(permission_out).collect();
        Ok(Answer::new(pb::AuthRoleGetResponse { header: Some(self.header()), perm }))
    }

    async fn role_list(
        &self,
        request: Request<pb::AuthRoleListRequest>,
    ) -> Result<Answer<pb::AuthRoleListResponse>, Status> {
        self.linearize().await?;
        self.root(request.metadata()).await?;
        let roles = self.store.read(|state| state.auth().roles().map(str::to_owned).collect());
        Ok(Answer::new(pb::AuthRoleListResponse { header: Some(self.header()), roles }))
    }

    async fn role_delete(
        &self,
        request: Request<pb::AuthRoleDeleteRequest>,
    ) -> Result<Answer<pb::AuthRoleDeleteResponse>, Status> {
        let (metadata, _, pb::AuthRoleDeleteRequest { role }) = request.into_parts();
        let header = self.manage(&metadata, AuthChange::RoleDelete { name: role }).await?;
        Ok(Answer::new(pb::AuthRoleDeleteResponse { header }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Result<Answer<pb::AuthRoleGrantPermissionResponse>, Status> {
        let (metadata, _, pb::AuthRoleGrantPermissionRequest { name, perm }) = request.into_parts();
        let perm = perm.ok_or_else(|| error::rejected(&kv::Error::PermissionNotGiven))?;
        let permission = Permission { kind: kind_in(perm.perm_type)?, key: perm.key, range_end: perm.range_end };
        let header = self.manage(&metadata, AuthChange::RoleGrantPermission { role: name, permission }).await?;
        Ok(Answer::new(pb::AuthRoleGrantPermissionResponse { header }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Result<Answer<pb::AuthRoleRevokePermissionResponse>, Status> {
        let (metadata, _, pb::AuthRoleRevokePermissionRequest { role, key, range_end }) = request.into_parts();
        let change = AuthChange::RoleRevokePermission { role, key, range_end };
        let header = self.manage(&metadata, change).await?;
        Ok(Answer::new(pb::AuthRoleRevokePermissionResponse { header }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn passwords_are_compared_and_never_kept() {
        let passwords = Passwords::default();
        let hash = passwords.hash("secret".to_owned()).await.unwrap();
        assert!(hash.starts_with("$2b$10$") && !hash.contains("secret"), "{hash}");
        assert!(passwords.matches("secret".to_owned(), Some(hash.clone())).await.unwrap());
        assert!(!passwords.matches("other".to_owned(), Some(hash)).await.unwrap());
        assert!(!passwords.matches("secret".to_owned(), None).await.unwrap());
        assert!(bcrypt::verify("x", NOBODYS_HASH).is_ok_and(|fits| !fits), "it is a hash like any other");
        assert_eq!(passwords.hash("x".repeat(73)).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    }
}
