//! Why the store refuses a request, in etcd's own words.
//!
//! Clients compare these texts byte for byte, so they carry etcd's prefix and are the one exception
//! to the house style of messages. The enum travels between members inside forwarded answers:
//! append variants at the end, never reorder, remove or insert.

use serde::{Deserialize, Serialize};

/// A refusal. Nothing was changed by the request that got it.
///
/// Source: etcd's error table (`rpctypes`), text and code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Error {
    /// A request without a key.
    #[error("etcdserver: key is not provided")]
    KeyNotProvided,
    /// `ignore_value` or `ignore_lease` on a missing key, or an operation that sets nothing.
    #[error("etcdserver: key not found")]
    KeyNotFound,
    /// `ignore_value` together with a value.
    #[error("etcdserver: value is provided")]
    ValueProvided,
    /// `ignore_lease` together with a lease.
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    /// More than [`super::MAX_TXN_OPS`] operations, counted along the nesting.
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    /// A key that one transaction would write twice, or write and delete.
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    /// More than [`super::MAX_REQUEST_BYTES`].
    #[error("etcdserver: request is too large")]
    RequestTooLarge,
    /// No such lease; also the answer to lease number zero.
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    /// The lease number is taken.
    #[error("etcdserver: lease already exists")]
    LeaseAlreadyExists,
    /// More than [`super::MAX_LEASE_TTL_MS`].
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
    /// The revision is older than what history still holds.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted {
        /// The oldest revision that can be read.
        compact_revision: i64,
    },
    /// The revision has not happened yet.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision {
        /// The store's revision.
        revision: i64,
    },
    /// Authentication is on and the request names nobody; or a user without a name.
    #[error("etcdserver: user name is empty")]
    UserEmpty,
    /// A role without a name.
    #[error("etcdserver: role name is empty")]
    RoleEmpty,
    /// A wrong name or password; which of them is not told.
    #[error("etcdserver: authentication failed, invalid user ID or password")]
    AuthFailed,
    /// A permission to grant is missing.
    #[error("etcdserver: permission not given")]
    PermissionNotGiven,
    /// It would take the right of root from root, or is no range of keys.
    #[error("etcdserver: invalid auth management")]
    InvalidAuthManagement,
    /// Users or roles have changed since the request was looked at.
    #[error("etcdserver: revision of auth store is old")]
    AuthOldRevision,
    /// Authentication needs a user `root`.
    #[error("etcdserver: root user does not exist")]
    RootUserNotExist,
    /// Authentication needs a user `root` who has the role `root`.
    #[error("etcdserver: root user does not have root role")]
    RootRoleNotExist,
    /// The name is taken.
    #[error("etcdserver: user name already exists")]
    UserAlreadyExists,
    /// No such user.
    #[error("etcdserver: user name not found")]
    UserNotFound,
    /// The name is taken.
    #[error("etcdserver: role name already exists")]
    RoleAlreadyExists,
    /// No such role.
    #[error("etcdserver: role name not found")]
    RoleNotFound,
    /// The user does not have the role.
    #[error("etcdserver: role is not granted to the user")]
    RoleNotGranted,
    /// The role does not have the permission.
    #[error("etcdserver: permission is not granted to the role")]
    PermissionNotGranted,
    /// Nobody is asked who they are.
    #[error("etcdserver: authentication is not enabled")]
    AuthNotEnabled,
    /// The user may not do it.
    #[error("etcdserver: permission denied")]
    PermissionDenied,
    /// A token that nobody was given, or that has run out.
    #[error("etcdserver: invalid auth token")]
    InvalidAuthToken,
}

/// The gRPC status codes that go with [`Error`]; the numbers are gRPC's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    /// The request is wrong in itself.
    InvalidArgument = 3,
    /// What it names does not exist.
    NotFound = 5,
    /// The caller may not.
    PermissionDenied = 7,
    /// The state does not allow it.
    FailedPrecondition = 9,
    /// A number outside the present bounds.
    OutOfRange = 11,
    /// The caller has not proved who it is.
    Unauthenticated = 16,
}

impl Error {
    /// The gRPC code that goes with the text.
    pub fn code(&self) -> Code {
        match self {
            Error::KeyNotProvided
            | Error::KeyNotFound
            | Error::ValueProvided
            | Error::LeaseProvided
            | Error::TooManyOps
            | Error::DuplicateKey
            | Error::RequestTooLarge
            | Error::UserEmpty
            | Error::RoleEmpty
            | Error::AuthFailed
            | Error::PermissionNotGiven
            | Error::InvalidAuthManagement
            | Error::AuthOldRevision => Code::InvalidArgument,
            Error::LeaseNotFound => Code::NotFound,
            Error::LeaseAlreadyExists
            | Error::RootUserNotExist
            | Error::RootRoleNotExist
            | Error::UserAlreadyExists
            | Error::UserNotFound
            | Error::RoleAlreadyExists
            | Error::RoleNotFound
            | Error::RoleNotGranted
            | Error::PermissionNotGranted
            | Error::AuthNotEnabled => Code::FailedPrecondition,
            Error::LeaseTtlTooLarge | Error::Compacted { .. } | Error::FutureRevision { .. } => Code::OutOfRange,
            Error::PermissionDenied => Code::PermissionDenied,
            Error::InvalidAuthToken => Code::Unauthenticated,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Code, Error};

    #[test]
    fn texts_and_codes_are_those_that_clients_match_on() {
        let table = [
            (Error::KeyNotProvided, 3, "etcdserver: key is not provided"),
            (Error::KeyNotFound, 3, "etcdserver: key not found"),
            (Error::ValueProvided, 3, "etcdserver: value is provided"),
            (Error::LeaseProvided, 3, "etcdserver: lease is provided"),
            (Error::TooManyOps, 3, "etcdserver: too many operations in txn request"),
            (Error::DuplicateKey, 3, "etcdserver: duplicate key given in txn request"),
            (Error::RequestTooLarge, 3, "etcdserver: request is too large"),
            (Error::LeaseNotFound, 5, "etcdserver: requested lease not found"),
            (Error::LeaseAlreadyExists, 9, "etcdserver: lease already exists"),
            (Error::LeaseTtlTooLarge, 11, "etcdserver: too large lease TTL"),
            (Error::Compacted { compact_revision: 7 }, 11, "etcdserver: mvcc: required revision has been compacted"),
            (Error::FutureRevision { revision: 7 }, 11, "etcdserver: mvcc: required revision is a future revision"),
            (Error::UserEmpty, 3, "etcdserver: user name is empty"),
            (Error::RoleEmpty, 3, "etcdserver: role name is empty"),
            (Error::AuthFailed, 3, "etcdserver: authentication failed, invalid user ID or password"),
            (Error::PermissionNotGiven, 3, "etcdserver: permission not given"),
            (Error::InvalidAuthManagement, 3, "etcdserver: invalid auth management"),
            (Error::AuthOldRevision, 3, "etcdserver: revision of auth store is old"),
            (Error::RootUserNotExist, 9, "etcdserver: root user does not exist"),
            (Error::RootRoleNotExist, 9, "etcdserver: root user does not have root role"),
            (Error::UserAlreadyExists, 9, "etcdserver: user name already exists"),
            (Error::UserNotFound, 9, "etcdserver: user name not found"),
            (Error::RoleAlreadyExists, 9, "etcdserver: role name already exists"),
            (Error::RoleNotFound, 9, "etcdserver: role name not found"),
            (Error::RoleNotGranted, 9, "etcdserver: role is not granted to the user"),
            (Error::PermissionNotGranted, 9, "etcdserver: permission is not granted to the role"),
            (Error::AuthNotEnabled, 9, "etcdserver: authentication is not enabled"),
            (Error::PermissionDenied, 7, "etcdserver: permission denied"),
            (Error::InvalidAuthToken, 16, "etcdserver: invalid auth token"),
        ];
        for (position, (error, code, text)) in table.into_iter().enumerate() {
            assert_eq!(error.code() as i32, code, "{error:?}");
            assert_eq!(error.to_string(), text);
            // The number on the wire is the variant's position.
            let bytes = bincode::serde::encode_to_vec(&error, bincode::config::standard()).unwrap();
            assert_eq!(usize::from(bytes[0]), position, "{error:?}");
        }
        assert_eq!(Code::FailedPrecondition as i32, 9);
    }
}
