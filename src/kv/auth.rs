//! Users, roles and what they may do: etcd's role-based access control.
//!
//! ```text
//!   token -> user -> roles -> permissions: READ | WRITE | READWRITE over a range of keys
//!                       |
//!                       +- "root": everything
//! ```
//! It is part of the replicated state, so that a permission that was taken away is gone on every member from one point
//! of the log on: [`State::permits`] is asked again when a command is applied, and so is whose the token is.
//!
//! What must hold: while authentication is on, the user `root` exists and has the role `root`; every role that a user
//! has exists, but for `root`, which needs no entry; every token belongs to a user.
//!
//! Source of rules and texts: etcd, role-based access control. Deliberately absent: hashing of passwords (they arrive
//! hashed), random tokens (they arrive drawn), and when an idle token ends (each member's own clock).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::command::{Command, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest};
use super::error::Error;
use super::snapshot::{Raw, SnapshotError, rule};
use super::state::State;
use crate::types::LeaseId;

/// The user and the role that may do everything.
pub const ROOT: &str = "root";

/// Tokens that are kept. The oldest one makes room: its client authenticates again.
pub const MAX_TOKENS: usize = 4096;

/// A change of users and roles. Format rule as for [`Command`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuthChange {
    /// Ask for identities from now on.
    Enable,
    /// Ask for none, and forget all tokens.
    Disable,
    /// A new user.
    UserAdd {
        /// Its name.
        name: String,
        /// The hash of its password; none for a user who cannot log in with one.
        password: Option<String>,
    },
    /// Forget a user.
    UserDelete {
        /// Its name.
        name: String,
    },
    /// Another password; tokens that the old one got are void.
    UserChangePassword {
        /// The user.
        name: String,
        /// The hash.
        password: String,
    },
    /// Give a role to a user.
    UserGrantRole {
        /// The user.
        user: String,
        /// The role.
        role: String,
    },
    /// Take a role from a user.
    UserRevokeRole {
        /// The user.
        user: String,
        /// The role.
        role: String,
    },
    /// A new role, which may do nothing yet.
    RoleAdd {
        /// Its name.
        name: String,
    },
    /// Forget a role; users lose it.
    RoleDelete {
        /// Its name.
        name: String,
    },
    /// Allow something to a role, or change what it may do with the same range.
    RoleGrantPermission {
        /// The role.
        role: String,
        /// What it may do.
        permission: Permission,
    },
    /// Take a permission back; the range must be the one that was granted.
    RoleRevokePermission {
        /// The role.
        role: String,
        /// First key.
        key: Vec<u8>,
        /// As in [`DeleteRangeRequest::range_end`].
        range_end: Vec<u8>,
    },
    /// A user has proved its password and gets a token.
    TokenIssue {
        /// The user.
        user: String,
        /// The token.
        token: String,
        /// [`Auth::revision`] when the password was compared: if it has changed since, nothing was proved.
        revision: u64,
    },
}

/// What a role may do with a range of keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permission {
    /// Read, write, or both.
    pub kind: PermissionKind,
    /// First key.
    pub key: Vec<u8>,
    /// As in [`DeleteRangeRequest::range_end`].
    pub range_end: Vec<u8>,
}

/// Read, write, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PermissionKind {
    /// Ranges, watches, comparisons.
    Read,
    /// Puts and deletions.
    Write,
    /// All of them.
    ReadWrite,
}

impl PermissionKind {
    fn reads(self) -> bool {
        self != Self::Write
    }

    fn writes(self) -> bool {
        self != Self::Read
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct User {
    /// The hash of the password; none for a user who cannot log in with one.
    password: Option<String>,
    roles: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Token {
    user: String,
    /// Tokens are forgotten in the order of their numbers.
    number: u64,
}

/// Users, roles and tokens of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Auth {
    enabled: bool,
    revision: u64,
    users: BTreeMap<String, User>,
    /// Permissions in the order of their ranges.
    roles: BTreeMap<String, Vec<Permission>>,
    tokens: BTreeMap<String, Token>,
    next_token: u64,
    /// The tokens by their numbers.
    #[serde(skip)]
    numbers: BTreeMap<u64, String>,
}

impl Default for Auth {
    fn default() -> Self {
        // A fresh etcd shows revision 1.
        Self {
            enabled: false,
            revision: 1,
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
            tokens: BTreeMap::new(),
            next_token: 0,
            numbers: BTreeMap::new(),
        }
    }
}

/// As [`Auth`] is written, without a copy: a damaged length cannot make a reader ask for memory.
#[derive(Deserialize)]
pub(super) struct AuthRecord<'a> {
    enabled: bool,
    revision: u64,
    #[serde(borrow)]
    users: Vec<(&'a str, UserRecord<'a>)>,
    #[serde(borrow)]
    roles: Vec<(&'a str, Vec<PermissionRecord<'a>>)>,
    #[serde(borrow)]
    tokens: Vec<(&'a str, TokenRecord<'a>)>,
    next_token: u64,
}

#[derive(Deserialize)]
struct UserRecord<'a> {
    password: Option<&'a str>,
    #[serde(borrow)]
    roles: Vec<&'a str>,
}

#[derive(Deserialize)]
struct PermissionRecord<'a> {
    kind: PermissionKind,
    #[serde(borrow)]
    key: Raw<'a>,
    #[serde(borrow)]
    range_end: Raw<'a>,
}

#[derive(Deserialize)]
struct TokenRecord<'a> {
    user: &'a str,
    number: u64,
}

impl AuthRecord<'_> {
    /// The users and roles that were written, when they can be some.
    pub fn restore(self) -> Result<Auth, SnapshotError> {
        let counts = (self.users.len(), self.roles.len(), self.tokens.len());
        let user = |(name, user): (&str, UserRecord<'_>)| {
            let roles: BTreeSet<String> = user.roles.iter().map(|&role| role.to_owned()).collect();
            rule(roles.len() == user.roles.len(), "a user has a role twice")?;
            Ok((name.to_owned(), User { password: user.password.map(str::to_owned), roles }))
        };
        let role = |(name, permissions): (&str, Vec<PermissionRecord<'_>>)| {
            let permissions: Vec<Permission> = permissions
                .into_iter()
                .map(|p| Permission { kind: p.kind, key: p.key.0.to_vec(), range_end: p.range_end.0.to_vec() })
                .collect();
            rule(permissions.iter().all(Permission::is_valid), "a permission is for an impossible range")?;
            rule(permissions.is_sorted_by(|a, b| a.range() < b.range()), "permissions are not in order")?;
            Ok((name.to_owned(), permissions))
        };
        let token = |(token, record): (&str, TokenRecord<'_>)| {
            (token.to_owned(), Token { user: record.user.to_owned(), number: record.number })
        };
        let numbers: BTreeMap<u64, String> =
            self.tokens.iter().map(|(token, record)| (record.number, (*token).to_owned())).collect();
        let auth = Auth {
            enabled: self.enabled,
            revision: self.revision,
            users: self.users.into_iter().map(user).collect::<Result<_, SnapshotError>>()?,
            roles: self.roles.into_iter().map(role).collect::<Result<_, SnapshotError>>()?,
            tokens: self.tokens.into_iter().map(token).collect(),
            next_token: self.next_token,
            numbers,
        };
        rule(
            counts == (auth.users.len(), auth.roles.len(), auth.tokens.len()),
            "a user, role or token is there twice",
        )?;
        // Half of all numbers are left for the future: no later addition can overflow.
        rule((1..=u64::MAX / 2).contains(&auth.revision), "the revision of users and roles is out of bounds")?;
        rule(auth.next_token <= u64::MAX / 2, "the number of tokens is out of bounds")?;
        let known = |role: &String| role == ROOT || auth.roles.contains_key(role);
        rule(auth.users.values().all(|user| user.roles.iter().all(known)), "a user has a role that does not exist")?;
        rule(
            auth.numbers.len() == auth.tokens.len()
                && auth.tokens.len() <= MAX_TOKENS
                && auth
                    .tokens
                    .values()
                    .all(|token| auth.users.contains_key(&token.user) && token.number < auth.next_token),
            "a token is nobody's, or there are too many",
        )?;
        rule(!auth.enabled || auth.is_root(ROOT), "authentication is on without a root user")?;
        Ok(auth)
    }
}

impl Permission {
    fn range(&self) -> (&[u8], &[u8]) {
        (&self.key, &self.range_end)
    }

    fn is_valid(&self) -> bool {
        let ends = self.range_end.is_empty() || self.range_end == [0] || self.key < self.range_end;
        !self.key.is_empty() && ends
    }
}

/// A stretch of keys: the first one, and the first one not included; `None` for no end.
type Stretch = (Vec<u8>, Option<Vec<u8>>);

pub(super) fn stretch(key: &[u8], range_end: &[u8]) -> Stretch {
    let end = match range_end {
        [] => Some([key, &[0]].concat()),
        [0] => None,
        end => Some(end.to_vec()),
    };
    (key.to_vec(), end)
}

/// Whether stretches together hold every key of another.
pub(super) fn cover(mut granted: Vec<Stretch>, (mut from, until): Stretch) -> bool {
    granted.sort();
    for (start, end) in granted {
        if until.as_ref().is_some_and(|until| *until <= from) || from < start {
            break;
        }
        match end {
            None => return true,
            Some(end) => from = from.max(end),
        }
    }
    until.is_some_and(|until| until <= from)
}

impl Auth {
    /// Whether identities are asked for.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// One more with each change of users and roles.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The user who got a token, and the token's number, which no other one ever has.
    pub fn token(&self, token: &str) -> Option<(&str, u64)> {
        self.tokens.get(token).map(|token| (token.user.as_str(), token.number))
    }

    /// The user who got the token with a number; nobody while identities are not asked for.
    pub(super) fn user_by_token(&self, number: u64) -> Result<&str, Error> {
        if !self.enabled {
            return Ok("");
        }
        let token = self.numbers.get(&number).and_then(|token| self.tokens.get(token));
        token.map(|token| token.user.as_str()).ok_or(Error::InvalidAuthToken)
    }

    /// All tokens.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.tokens.keys().map(String::as_str)
    }

    /// How many tokens were given so far.
    pub fn tokens_given(&self) -> u64 {
        self.next_token
    }

    /// The names of all users.
    pub fn users(&self) -> impl Iterator<Item = &str> {
        self.users.keys().map(String::as_str)
    }

    /// The roles of a user.
    pub fn roles_of(&self, user: &str) -> Result<impl Iterator<Item = &str>, Error> {
        let user = self.users.get(user).ok_or(Error::UserNotFound)?;
        Ok(user.roles.iter().map(String::as_str))
    }

    /// The hash of a user's password, if there is such a user and it has one.
    pub fn password_of(&self, user: &str) -> Option<&str> {
        self.users.get(user)?.password.as_deref()
    }

    /// The names of all roles.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.roles.keys().map(String::as_str)
    }

    /// What a role may do.
    pub fn permissions_of(&self, role: &str) -> Result<Vec<Permission>, Error> {
        let permissions = self.roles.get(role);
        if role == ROOT {
            return Ok(vec![Permission { kind: PermissionKind::ReadWrite, key: Vec::new(), range_end: vec![0] }]);
        }
        permissions.cloned().ok_or(Error::RoleNotFound)
    }

    fn is_root(&self, user: &str) -> bool {
        self.users.get(user).is_some_and(|user| user.roles.contains(ROOT))
    }

    /// Refuses who is not somebody. Nothing is refused while authentication is off.
    pub fn permits_anybody(&self, user: &str) -> Result<(), Error> {
        match (self.enabled, user) {
            (false, _) => Ok(()),
            (true, "") => Err(Error::UserEmpty),
            (true, user) if self.users.contains_key(user) => Ok(()),
            (true, _) => Err(Error::PermissionDenied),
        }
    }

    /// Refuses who does not have the role `root`.
    pub fn permits_root(&self, user: &str) -> Result<(), Error> {
        self.permits_anybody(user)?;
        if !self.enabled || self.is_root(user) { Ok(()) } else { Err(Error::PermissionDenied) }
    }

    /// Refuses who may not read every key of a range.
    pub fn permits_read(&self, user: &str, key: &[u8], range_end: &[u8]) -> Result<(), Error> {
        self.permits_range(user, key, range_end, PermissionKind::reads)
    }

    fn permits_write(&self, user: &str, key: &[u8], range_end: &[u8]) -> Result<(), Error> {
        self.permits_range(user, key, range_end, PermissionKind::writes)
    }

    fn permits_range(
        &self,
        user: &str,
        key: &[u8],
        range_end: &[u8],
        suffices: fn(PermissionKind) -> bool,
    ) -> Result<(), Error> {
        self.permits_anybody(user)?;
        if !self.enabled || self.is_root(user) {
            return Ok(());
        }
        let roles = self.users.get(user).into_iter().flat_map(|user| &user.roles);
        let permissions = roles.filter_map(|role| self.roles.get(role)).flatten();
        let granted = permissions.filter(|permission| suffices(permission.kind));
        let granted = granted.map(|permission| stretch(&permission.key, &permission.range_end)).collect();
        if cover(granted, stretch(key, range_end)) { Ok(()) } else { Err(Error::PermissionDenied) }
    }

    /// Does a change, or refuses it and changes nothing.
    pub(super) fn apply(&mut self, change: &AuthChange) -> Result<(), Error> {
        match change {
            AuthChange::Enable => {
                let root = self.users.get(ROOT).ok_or(Error::RootUserNotExist)?;
                if !root.roles.contains(ROOT) {
                    return Err(Error::RootRoleNotExist);
                }
                // The revision stays. Source: etcd.
                self.enabled = true;
                return Ok(());
            }
            AuthChange::Disable => {
                if !self.enabled {
                    return Ok(());
                }
                self.enabled = false;
                self.keep_tokens(|_| false);
            }
            AuthChange::UserAdd { name, password } => self.add_user(name, password.clone())?,
            AuthChange::UserDelete { name } => self.delete_user(name)?,
            AuthChange::UserChangePassword { name, password } => {
                let user = self.user(name)?;
                if user.password.is_some() {
                    user.password = Some(password.clone());
                }
                self.keep_tokens(|token| token.user != *name);
            }
            AuthChange::UserGrantRole { user, role } => {
                let exists = role == ROOT || self.roles.contains_key(role);
                let user = self.user(user)?;
                if !exists {
                    return Err(Error::RoleNotFound);
                }
                if !user.roles.insert(role.clone()) {
                    return Ok(());
                }
            }
            AuthChange::UserRevokeRole { user, role } => {
                if self.enabled && user == ROOT && role == ROOT {
                    return Err(Error::InvalidAuthManagement);
                }
                if !self.user(user)?.roles.remove(role) {
                    return Err(Error::RoleNotGranted);
                }
            }
            AuthChange::RoleAdd { name } => {
                if name.is_empty() {
                    return Err(Error::RoleEmpty);
                }
                if self.roles.contains_key(name) {
                    return Err(Error::RoleAlreadyExists);
                }
                self.roles.insert(name.clone(), Vec::new());
            }
            AuthChange::RoleDelete { name } => {
                if self.enabled && name == ROOT {
                    return Err(Error::InvalidAuthManagement);
                }
                self.roles.remove(name).ok_or(Error::RoleNotFound)?;
                for user in self.users.values_mut() {
                    user.roles.remove(name);
                }
            }
            AuthChange::RoleGrantPermission { role, permission } => self.grant(role, permission)?,
            AuthChange::RoleRevokePermission { role, key, range_end } => {
                let permissions = self.roles.get_mut(role).ok_or(Error::RoleNotFound)?;
                let before = permissions.len();
                permissions.retain(|permission| permission.range() != (key, range_end));
                if permissions.len() == before {
                    return Err(Error::PermissionNotGranted);
                }
            }
            AuthChange::TokenIssue { user, token, revision } => return self.issue(user, token, *revision),
        }
        self.revision += 1;
        Ok(())
    }

    fn user(&mut self, name: &str) -> Result<&mut User, Error> {
        self.users.get_mut(name).ok_or(Error::UserNotFound)
    }

    fn add_user(&mut self, name: &str, password: Option<String>) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::UserEmpty);
        }
        if self.users.contains_key(name) {
            return Err(Error::UserAlreadyExists);
        }
        self.users.insert(name.to_owned(), User { password, roles: BTreeSet::new() });
        Ok(())
    }

    fn delete_user(&mut self, name: &str) -> Result<(), Error> {
        if self.enabled && name == ROOT {
            return Err(Error::InvalidAuthManagement);
        }
        self.users.remove(name).ok_or(Error::UserNotFound)?;
        self.keep_tokens(|token| token.user != name);
        Ok(())
    }

    fn keep_tokens(&mut self, keeps: impl Fn(&Token) -> bool) {
        let numbers = &mut self.numbers;
        self.tokens.retain(|_, token| keeps(token) || numbers.remove(&token.number).is_none());
    }

    fn grant(&mut self, role: &str, permission: &Permission) -> Result<(), Error> {
        if !permission.is_valid() {
            return Err(Error::InvalidAuthManagement);
        }
        let permissions = self.roles.get_mut(role).ok_or(Error::RoleNotFound)?;
        match permissions.binary_search_by(|held| held.range().cmp(&permission.range())) {
            Ok(place) => permissions[place].kind = permission.kind,
            Err(place) => permissions.insert(place, permission.clone()),
        }
        Ok(())
    }

    fn issue(&mut self, user: &str, token: &str, revision: u64) -> Result<(), Error> {
        if !self.enabled {
            return Err(Error::AuthNotEnabled);
        }
        if revision != self.revision {
            return Err(Error::AuthOldRevision);
        }
        if self.password_of(user).is_none() || self.tokens.contains_key(token) {
            return Err(Error::AuthFailed);
        }
        if self.tokens.len() >= MAX_TOKENS {
            let oldest = self.numbers.pop_first();
            oldest.and_then(|(_, oldest)| self.tokens.remove(&oldest));
        }
        self.numbers.insert(self.next_token, token.to_owned());
        self.tokens.insert(token.to_owned(), Token { user: user.to_owned(), number: self.next_token });
        self.next_token += 1;
        Ok(())
    }
}

impl State {
    /// Refuses a command that a user may not give; nobody's name is empty. To be asked before proposing, and asked
    /// again when the command is applied, because permissions and the keys of a lease may have changed in between.
    ///
    /// The command must have passed [`State::check`], which bounds its nesting.
    pub fn permits(&self, user: &str, command: &Command) -> Result<(), Error> {
        match command {
            Command::Put(put) => self.permits_put(user, put),
            Command::DeleteRange(delete) => self.permits_delete(user, delete),
            Command::Txn(txn) => self.permits_txn(user, txn),
            Command::LeaseGrant { .. } => self.auth.permits_anybody(user),
            Command::LeaseRevoke { id } => self.permits_lease(user, *id),
            Command::Compact { .. } => self.auth.permits_root(user),
            // A token is given for a password, which whoever proposes it has compared.
            Command::Auth(AuthChange::TokenIssue { .. })
            | Command::As { .. }
            | Command::ByToken { .. }
            | Command::Many(_)
            | Command::LeasesExpire { .. } => Err(Error::PermissionDenied),
            Command::Auth(_) => self.auth.permits_root(user),
        }
    }

    /// Refuses who may not write every key of a lease.
    pub fn permits_lease(&self, user: &str, id: LeaseId) -> Result<(), Error> {
        self.auth.permits_anybody(user)?;
        let keys = self.lease(id).into_iter().flat_map(|lease| lease.keys);
        keys.into_iter().try_for_each(|key| self.auth.permits_write(user, key, &[]))
    }

    fn permits_put(&self, user: &str, put: &PutRequest) -> Result<(), Error> {
        self.auth.permits_write(user, &put.key, &[])?;
        if put.prev_kv {
            self.auth.permits_read(user, &put.key, &[])?;
        }
        // Whoever hangs a key on a lease decides with its holder how long the others live.
        if put.lease == LeaseId(0) { Ok(()) } else { self.permits_lease(user, put.lease) }
    }

    fn permits_delete(&self, user: &str, delete: &DeleteRangeRequest) -> Result<(), Error> {
        self.auth.permits_write(user, &delete.key, &delete.range_end)?;
        if delete.prev_kv { self.auth.permits_read(user, &delete.key, &delete.range_end) } else { Ok(()) }
    }

    /// Both branches, because the answer tells which one was taken.
    fn permits_txn(&self, user: &str, txn: &TxnRequest) -> Result<(), Error> {
        self.auth.permits_anybody(user)?;
        for compare in &txn.compare {
            self.auth.permits_read(user, &compare.key, &compare.range_end)?;
        }
        txn.success.iter().chain(&txn.failure).try_for_each(|op| match op {
            RequestOp::Empty => Ok(()),
            RequestOp::Range(range) => self.auth.permits_read(user, &range.key, &range.range_end),
            RequestOp::Put(put) => self.permits_put(user, put),
            RequestOp::DeleteRange(delete) => self.permits_delete(user, delete),
            RequestOp::Txn(inner) => self.permits_txn(user, inner),
        })
    }

    /// Users, roles and tokens.
    pub fn auth(&self) -> &Auth {
        &self.auth
    }
}
