//! Who may change something: the allow list, then the certificate, then the password. Reads are open to all.
//!
//! Source: reference section 1.6. Deliberately absent: whether a certificate is good; the connection knows.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::agent::snapshot::Snapshot;
use crate::config::node::{Credentials, RestApiConfig};
use crate::config::tls::VerifyClient;
use crate::tls::Session;
use crate::types::Network;

/// How long a name may take to be looked up.
const LOOKUP: Duration = Duration::from_secs(2);

/// The other end of the connection; [`super::serve`] puts it into every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAddress(pub SocketAddr);

/// Who may change something. Replaced when the node's file is read again.
#[derive(Debug, Default)]
pub struct Access {
    rules: RwLock<Arc<Rules>>,
}

#[derive(Debug, Default)]
struct Rules {
    credentials: Option<Credentials>,
    /// None = everybody.
    networks: Option<Vec<Network>>,
    include_members: bool,
    /// Only over TLS, and with a certificate that was shown.
    certificate: bool,
}

/// Why a request was not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// Not from there: 403.
    Address,
    /// Not without a certificate: 403.
    Certificate,
    /// Not without the right password: 401.
    Password,
}

impl Access {
    /// From the configuration. Host names in the allow list are looked up here, once; a name that cannot be resolved
    /// is logged and lets nobody in.
    pub async fn resolve(config: &RestApiConfig) -> Self {
        Self { rules: RwLock::new(Arc::new(Rules::resolve(config).await)) }
    }

    /// Takes over another configuration for all requests from now on.
    pub async fn replace(&self, config: &RestApiConfig) {
        let rules = Arc::new(Rules::resolve(config).await);
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = rules;
    }

    /// Whether a request may change something.
    ///
    /// # Errors
    /// The first check that it did not pass: the address, then the certificate, then the password.
    pub async fn check(&self, request: &Parts, snapshot: &Snapshot) -> Result<(), Denied> {
        let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner).clone();
        rules.check(request, snapshot).await
    }
}

impl Rules {
    async fn resolve(config: &RestApiConfig) -> Self {
        let mut networks = Vec::new();
        for entry in &config.allowlist {
            match entry.parse::<Network>() {
                Ok(network) => networks.push(network),
                Err(_) => {
                    let found = addresses_of(entry).await;
                    if found.is_empty() {
                        tracing::warn!(
                            host = entry,
                            "restapi.allowlist: host name does not resolve, it lets nobody in"
                        );
                    }
                    networks.extend(found.into_iter().map(Network::single));
                }
            }
        }
        let restricted = !config.allowlist.is_empty() || config.allowlist_include_members;
        Self {
            credentials: config.authentication.clone(),
            networks: restricted.then_some(networks),
            include_members: config.allowlist_include_members,
            certificate: config.tls.as_ref().is_some_and(|tls| tls.verify_client != VerifyClient::None),
        }
    }

    async fn check(&self, request: &Parts, snapshot: &Snapshot) -> Result<(), Denied> {
        let peer = request.extensions.get::<PeerAddress>().copied();
        if let Some(networks) = &self.networks {
            let peer = peer.ok_or(Denied::Address)?.0.ip().to_canonical();
            let listed = networks.iter().any(|network| network.contains(peer));
            let admitted = listed || (self.include_members && is_member(peer, snapshot).await);
            if !admitted {
                return Err(Denied::Address);
            }
        }
        let certified = request.extensions.get::<Session>().is_some_and(|session| session.certified);
        if self.certificate && !certified {
            return Err(Denied::Certificate);
        }
        match &self.credentials {
            Some(wanted) if !password_matches(wanted, &request.headers) => Err(Denied::Password),
            _ => Ok(()),
        }
    }
}

/// Hashes first, so that neither content nor length shows in the time that the comparison takes.
fn password_matches(wanted: &Credentials, headers: &HeaderMap) -> bool {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
        .and_then(|(_, encoded)| STANDARD.decode(encoded.trim()).ok())
        .unwrap_or_default();
    let wanted = format!("{}:{}", wanted.username, wanted.password.expose());
    Sha256::digest(given).ct_eq(&Sha256::digest(wanted)).into()
}

/// The value of an `Authorization` header.
pub fn basic_header(credentials: &Credentials) -> String {
    format!("Basic {}", STANDARD.encode(format!("{}:{}", credentials.username, credentials.password.expose())))
}

async fn is_member(peer: IpAddr, snapshot: &Snapshot) -> bool {
    let members = snapshot.cluster.iter().flat_map(|cluster| &cluster.members);
    let urls = members.filter_map(|member| host_of(&member.api_url).map(str::to_owned));
    let stores = snapshot.raft.members.iter().filter_map(|member| Some(member.addr.rsplit_once(':')?.0.to_owned()));
    for host in urls.chain(stores) {
        let host = host.trim_matches(['[', ']']);
        let matches = match host.parse::<IpAddr>() {
            Ok(address) => address.to_canonical() == peer,
            Err(_) => addresses_of(host).await.contains(&peer),
        };
        if matches {
            return true;
        }
    }
    false
}

fn host_of(url: &str) -> Option<&str> {
    let authority = url.split_once("://")?.1.split('/').next()?;
    Some(authority.rsplit_once(':').map_or(authority, |(host, _)| host))
}

async fn addresses_of(host: &str) -> Vec<IpAddr> {
    match timeout(LOOKUP, lookup_host((host, 0))).await {
        Ok(Ok(found)) => found.map(|address| address.ip().to_canonical()).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        let inside = |network: &str, address: &str| {
            network.parse::<Network>().expect("valid").contains(address.parse().expect("valid"))
        };
        assert!(inside("10.0.0.0/8", "10.255.0.1"));
        assert!(!inside("10.0.0.0/8", "11.0.0.1"));
        assert!(inside("0.0.0.0/0", "8.8.8.8"));
        assert!(inside("127.0.0.1", "127.0.0.1"));
        assert!(inside("fd00::/8", "fd12::1"));
        assert!(!inside("::/0", "1.2.3.4"));
        assert!("10.0.0.0/33".parse::<Network>().is_err());
        assert!("db.example".parse::<Network>().is_err());
    }

    #[test]
    fn hosts_of_member_addresses() {
        assert_eq!(host_of("http://10.0.0.1:8008/patroni"), Some("10.0.0.1"));
        assert_eq!(host_of("https://[fd00::1]:8008/patroni"), Some("[fd00::1]"));
    }
}
