//! TLS for everything that a node listens on and connects to.
//!
//! ```text
//! files -> pem.rs -> server.rs: Acceptor   main port, etcd's listener      both can be given new files at any time
//!                 -> client.rs: Dialer     other members, `howdah list` and its like
//! ```
//! Whom to believe is [`trust`]. Deliberately absent: what a certificate permits. A listener says whether one was shown
//! ([`Session`]), and REST and the store's links decide what that is worth.
//!
//! The store's links prove the cluster's secret over TLS, too, bound to the session ([`Session::binding`]): who sits in
//! between with a certificate of its own has another session on each side, and fails.

mod ciphers;
mod client;
mod pem;
mod server;
mod stream;
mod trust;

use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::rustls;

pub use client::{Dialer, Peers};
pub use server::{Acceptor, Arrival};
pub use stream::Stream;

/// Why TLS is not possible with these files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is not there, or not readable.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// Certificate and key are no pair, or the key is of a kind that cannot be used.
    #[error("certificate {}: {source}", path.display())]
    Pair {
        /// The certificate.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// Nothing is left of the list of cipher suites.
    #[error("restapi.ciphers: {0}")]
    Ciphers(String),
    /// The library refuses.
    #[error("set up TLS")]
    Library(#[source] rustls::Error),
}

/// What a listener knows of the connection that a request came by. In the extensions of each request that came by TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// The client has shown a certificate that is good.
    pub certified: bool,
    /// The same on both sides of this session, and on no other. None where the client's TLS is too old for it.
    pub binding: Option<[u8; 32]>,
}

/// The cryptography, with all its cipher suites.
fn provider() -> rustls::crypto::CryptoProvider {
    rustls::crypto::ring::default_provider()
}

/// A value of a session that both sides compute and nobody else can.
///
/// Source: RFC 5705, and RFC 9266 for its use as a channel binding.
fn binding<Data>(connection: &rustls::ConnectionCommon<Data>) -> Option<[u8; 32]> {
    connection.export_keying_material([0; 32], b"EXPORTER-howdah-raft", None).ok()
}

/// What a failed connection means to a person, where the library's words do not say it.
pub fn explain(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    use rustls::{AlertDescription, CertificateError, InvalidMessage};
    let mut here = Some(error);
    while let Some(error) = here {
        let inside = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let found = error.downcast_ref::<rustls::Error>().or_else(|| inside.and_then(|inner| inner.downcast_ref()));
        if let Some(error) = found {
            return match error {
                rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
                    Some("it does not speak TLS: write http://, or give that node a certificate")
                }
                rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                ) => {
                    Some("its certificate is for another host name; connect by a name that it holds, or use --insecure")
                }
                rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => Some(
                    "nobody here vouches for its certificate; name its authority by ctl.cacert or --cacert, or use --insecure",
                ),
                rustls::Error::InvalidCertificate(
                    CertificateError::Expired | CertificateError::ExpiredContext { .. },
                ) => Some("its certificate has expired"),
                rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
                    Some("it wants a certificate to be shown: ctl.certfile and ctl.keyfile, or --cert and --key")
                }
                rustls::Error::AlertReceived(
                    AlertDescription::UnknownCA | AlertDescription::BadCertificate | AlertDescription::DecryptError,
                ) => Some("it does not believe the certificate that was shown"),
                _ => None,
            };
        }
        here = error.source();
    }
    None
}

/// Shared by listeners and clients: a certificate with its key, as the library wants it.
type Certified = (Vec<rustls::pki_types::CertificateDer<'static>>, rustls::pki_types::PrivateKeyDer<'static>);

/// A provider limited to some suites.
fn limited(suites: Vec<rustls::SupportedCipherSuite>) -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::CryptoProvider { cipher_suites: suites, ..provider() })
}
