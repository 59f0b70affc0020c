//! libpq connection strings: built from parts, quoted, and never with a password in them.
//!
//! The password comes from the password file that `passfile` names.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::credentials::Login;
use super::error::Error;
use crate::types::NodeName;

/// Options of a login that may appear in a connection string.
const LOGIN_OPTIONS: [&str; 10] = [
    "channel_binding",
    "gssencmode",
    "krbsrvname",
    "sslcert",
    "sslcrl",
    "sslcrldir",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslrootcert",
];

/// Where to stream or copy from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// The member's name; none for a server outside the cluster.
    pub name: Option<NodeName>,
    /// Host name or address; a comma-separated list for a server outside the cluster.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The physical slot on the upstream that is ours.
    pub slot: Option<String>,
}

impl Upstream {
    /// host:port for messages.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// A connection string under construction; parts keep their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Conninfo(Vec<(String, String)>);

impl Conninfo {
    /// Host, port, user, password file, fast failure detection, and the login's own options.
    ///
    /// `tcp_user_timeout` and the keepalives end a half-open connection in seconds instead of hours.
    pub(super) fn to(upstream: &Upstream, login: &Login, passfile: &Path) -> Result<Self, Error> {
        let mut parts = Self::default()
            .with("host", &upstream.host)
            .with("port", &upstream.port.to_string())
            .with("user", &login.username)
            .with("passfile", &passfile.to_string_lossy())
            .with("connect_timeout", "3")
            .with("keepalives_idle", "5")
            .with("keepalives_interval", "2")
            .with("keepalives_count", "3")
            .with("tcp_user_timeout", "10000");
        parts.add_login_options(&login.options)?;
        if !login.options.contains_key("sslmode") {
            parts = parts.with("sslmode", "prefer");
        }
        Ok(parts)
    }

    pub(super) fn with(mut self, key: &str, value: &str) -> Self {
        self.0.push((key.to_owned(), value.to_owned()));
        self
    }

    fn add_login_options(&mut self, options: &BTreeMap<String, String>) -> Result<(), Error> {
        for (key, value) in options {
            if !LOGIN_OPTIONS.contains(&key.as_str()) {
                return Err(Error::CheckConfig {
                    what: "postgresql.authentication",
                    why: format!("option {key:?} is not known; known are {}", LOGIN_OPTIONS.join(", ")),
                });
            }
            self.0.push((key.clone(), value.clone()));
        }
        Ok(())
    }

    /// The text for libpq.
    ///
    /// Source: PostgreSQL documentation, "Keyword/Value Connection Strings".
    pub(super) fn text(&self) -> String {
        self.0.iter().map(|(key, value)| format!("{key}={}", quote(value))).collect::<Vec<_>>().join(" ")
    }
}

/// The connection string of a standby that calls itself `application`.
///
/// # Errors
/// As for a login with an option that is not known.
pub fn conninfo(upstream: &Upstream, login: &Login, passfile: &Path, application: &str) -> Result<String, Error> {
    Ok(Conninfo::to(upstream, login, passfile)?.with("application_name", application).text())
}

fn quote(value: &str) -> String {
    let plain = !value.is_empty()
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/' | b':' | b','));
    if plain {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_and_passwords_absent() {
        let upstream = Upstream { name: None, host: "::1".to_owned(), port: 5433, slot: None };
        let mut login = Login::new("it's me", "secret");
        login.options.insert("sslmode".to_owned(), "verify-full".to_owned());
        let text = Conninfo::to(&upstream, &login, Path::new("/run/my node/pgpass"))
            .expect("known options")
            .with("application_name", "n1")
            .with("options", "")
            .text();
        assert_eq!(
            text,
            "host=::1 port=5433 user='it\\'s me' passfile='/run/my node/pgpass' connect_timeout=3 keepalives_idle=5 \
             keepalives_interval=2 keepalives_count=3 tcp_user_timeout=10000 sslmode=verify-full application_name=n1 \
             options=''"
        );
    }

    #[test]
    fn unknown_options_are_refused() {
        let upstream = Upstream { name: None, host: "h".to_owned(), port: 1, slot: None };
        let mut login = Login::new("u", "p");
        login.options.insert("host".to_owned(), "evil".to_owned());
        assert!(Conninfo::to(&upstream, &login, Path::new("/p")).is_err());
    }
}
