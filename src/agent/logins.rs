//! The cluster's roles: as configured, completed from the record or by generated passwords.

use std::collections::BTreeMap;

use crate::cluster::records::CredentialsRecord;
use crate::postgres::{Credentials, Login, generate_password};
use crate::telemetry::redact::Secret;

/// A role as the configuration file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Its name.
    pub username: String,
    /// Its password; none = it is generated once and kept in the record.
    pub password: Option<Secret<String>>,
}

/// The three roles that howdah uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logins {
    /// Owns the cluster.
    pub superuser: Role,
    /// Streams.
    pub replication: Role,
    /// For pg_rewind.
    pub rewind: Role,
}

impl Logins {
    /// All passwords, from the configuration or from `recorded` (by role name); none if one is missing.
    pub fn complete(&self, recorded: &BTreeMap<String, String>) -> Option<Credentials> {
        let login = |role: &Role| {
            let password = match &role.password {
                Some(password) => password.expose().clone(),
                None => recorded.get(&role.username)?.clone(),
            };
            Some(Login::new(role.username.clone(), password))
        };
        Some(Credentials {
            superuser: login(&self.superuser)?,
            replication: login(&self.replication)?,
            rewind: login(&self.rewind)?,
        })
    }

    /// All passwords for a new cluster.
    pub fn generate(&self) -> Credentials {
        let login = |role: &Role| {
            let password = role.password.as_ref().map_or_else(generate_password, |password| password.expose().clone());
            Login::new(role.username.clone(), password)
        };
        let superuser = login(&self.superuser);
        let rewind = if self.rewind == self.superuser { superuser.clone() } else { login(&self.rewind) };
        Credentials { superuser, replication: login(&self.replication), rewind }
    }

    /// What of `known` was generated and therefore belongs into the record; none if nothing.
    pub fn generated(&self, known: &Credentials) -> Option<CredentialsRecord> {
        let pairs = [
            (&self.superuser, &known.superuser),
            (&self.replication, &known.replication),
            (&self.rewind, &known.rewind),
        ];
        let passwords: BTreeMap<String, String> = pairs
            .into_iter()
            .filter(|(role, _)| role.password.is_none())
            .map(|(_, login)| (login.username.clone(), login.password.expose().clone()))
            .collect();
        (!passwords.is_empty()).then_some(CredentialsRecord { passwords })
    }
}
