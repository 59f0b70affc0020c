//! The three logins that a cluster needs, and how their passwords reach PostgreSQL without being seen.
//!
//! A password goes into an owner-only password file or, as a SCRAM verifier, into SQL. Never into arguments, never
//! into `postgresql.conf`, never into a log. Distribution between nodes is the record's task, not this file's.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use rand::RngCore;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::telemetry::redact::Secret;

/// Rounds of the SCRAM hash, PostgreSQL's own default.
const SCRAM_ITERATIONS: u32 = 4096;

/// One login role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// Role name.
    pub username: String,
    /// Its password.
    pub password: Secret<String>,
    /// libpq options that go with it: `sslmode`, `sslrootcert`, `channel_binding`, … (the list is in `conninfo.rs`).
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

impl Login {
    /// A login without options.
    pub fn new(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self { username: username.into(), password: Secret::new(password.into()), options: BTreeMap::new() }
    }
}

/// The logins of a cluster: the same on every node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Owns the cluster; used locally.
    pub superuser: Login,
    /// Streams WAL and takes base backups.
    pub replication: Login,
    /// Used by pg_rewind and to ask another node for its state.
    pub rewind: Login,
}

impl Credentials {
    /// The usual role names with fresh random passwords.
    pub fn generate() -> Self {
        Self {
            superuser: Login::new("postgres", generate_password()),
            replication: Login::new("replicator", generate_password()),
            rewind: Login::new("rewind_user", generate_password()),
        }
    }

    /// Every login, for the password file.
    pub(super) fn all(&self) -> [&Login; 3] {
        [&self.superuser, &self.replication, &self.rewind]
    }
}

/// 32 characters that need no quoting anywhere: 192 random bits.
pub fn generate_password() -> String {
    let mut bytes = [0_u8; 24];
    rand::rng().fill_bytes(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The text of a libpq password file that holds these logins for any host, port and database.
///
/// Source: PostgreSQL documentation, "The Password File".
pub(super) fn password_file(credentials: &Credentials) -> String {
    let escape = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
    credentials
        .all()
        .iter()
        .map(|login| format!("*:*:*:{}:{}\n", escape(&login.username), escape(login.password.expose())))
        .collect()
}

/// The verifier that PostgreSQL stores for a password, so that the password itself is in no statement.
///
/// None for a password that is not plain ASCII: it would need SASLprep; the server does that.
///
/// Source: RFC 5802; PostgreSQL `scram_build_secret`.
pub(super) fn scram_verifier(password: &str) -> Option<String> {
    let mut salt = [0_u8; 16];
    rand::rng().fill_bytes(&mut salt);
    password.bytes().all(|b| (0x20..0x7f).contains(&b)).then(|| verifier_with(password, &salt, SCRAM_ITERATIONS))
}

fn verifier_with(password: &str, salt: &[u8], iterations: u32) -> String {
    let mut block = salt.to_vec();
    block.extend_from_slice(&1_u32.to_be_bytes());
    let mut round = hmac_sha256(password.as_bytes(), &block);
    let mut salted = round;
    for _ in 1..iterations {
        round = hmac_sha256(password.as_bytes(), &round);
        salted.iter_mut().zip(round).for_each(|(a, b)| *a ^= b);
    }
    let stored: [u8; 32] = Sha256::digest(hmac_sha256(&salted, b"Client Key")).into();
    let server = hmac_sha256(&salted, b"Server Key");
    format!(
        "SCRAM-SHA-256${iterations}:{}${}:{}",
        STANDARD.encode(salt),
        STANDARD.encode(stored),
        STANDARD.encode(server)
    )
}

fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_long_different_and_harmless() {
        let (one, two) = (generate_password(), generate_password());
        assert_eq!(one.len(), 32);
        assert_ne!(one, two);
        assert!(one.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
        let shown = format!("{:?}", Credentials::generate());
        assert!(shown.contains("***") && shown.matches("***").count() == 3, "{shown}");
    }

    #[test]
    fn the_password_file_escapes() {
        let credentials = Credentials {
            superuser: Login::new("post:gres", r"a\b:c"),
            replication: Login::new("r", "p"),
            rewind: Login::new("w", "q"),
        };
        assert_eq!(password_file(&credentials), "*:*:*:post\\:gres:a\\\\b\\:c\n*:*:*:r:p\n*:*:*:w:q\n");
    }

    #[test]
    fn verifier_matches_the_published_example() {
        // RFC 7677 section 3: user "user", password "pencil"; its server key signs the example exchange.
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("base64");
        let verifier = verifier_with("pencil", &salt, 4096);
        assert_eq!(
            verifier,
            "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
        );
        assert!(scram_verifier("grün").is_none());
    }
}
