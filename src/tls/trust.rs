//! Whom to believe: an authority's signature, with or without the host name, or the very certificate that is listed.
//!
//! The last is what OpenSSL does with a self-signed certificate that stands in its own list of authorities, and what
//! many a small installation relies on; the library alone refuses it, because such a certificate may sign others.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use tokio_rustls::rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use tokio_rustls::rustls::{
    self, CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
};

use super::{Error, pem};

/// Where systems keep the authorities that they trust.
const SYSTEM: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/opt/homebrew/etc/ca-certificates/cert.pem",
];

/// How much of a server's certificate must be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strictness {
    /// Nothing.
    Nothing,
    /// Who has signed it.
    Authority,
    /// That, and that it is for the host name.
    HostName,
}

/// The authorities of a file; without one, those that this machine trusts.
#[derive(Debug, Clone)]
struct Authorities {
    roots: Arc<RootCertStore>,
    listed: Vec<CertificateDer<'static>>,
}

impl Authorities {
    fn read(file: Option<&Path>) -> Result<Self, Error> {
        let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
        let system = || named.into_iter().chain(SYSTEM.iter().map(PathBuf::from)).find(|path| path.is_file());
        let Some(path) = file.map(Path::to_owned).or_else(system) else {
            // Nobody is believed then, and the error at the connection says what to do.
            return Ok(Self { roots: Arc::new(RootCertStore::empty()), listed: Vec::new() });
        };
        let listed = pem::certificates(&path)?;
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(listed.iter().cloned());
        if added == 0 {
            return Err(Error::Content { path, why: "holds no certificate that could be an authority".to_owned() });
        }
        Ok(Self { roots: Arc::new(roots), listed })
    }

    /// Accepts what was refused for its form alone, where the certificate itself is listed.
    fn or_listed(
        &self,
        end_entity: &CertificateDer<'_>,
        verdict: Result<(), rustls::Error>,
    ) -> Result<(), rustls::Error> {
        use CertificateError::{BadSignature, Expired, ExpiredContext, NotValidYet, NotValidYetContext};
        match verdict {
            Err(rustls::Error::InvalidCertificate(
                Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. } | BadSignature,
            )) => verdict,
            Err(rustls::Error::InvalidCertificate(_)) if self.listed.iter().any(|one| one == end_entity) => Ok(()),
            other => other,
        }
    }
}

/// Judges servers.
#[derive(Debug)]
pub(super) struct Servers {
    provider: Arc<CryptoProvider>,
    authorities: Authorities,
    strictness: Strictness,
}

impl Servers {
    /// By the authorities of a file, or those of this machine.
    pub(super) fn new(
        provider: Arc<CryptoProvider>,
        cacert: Option<&Path>,
        strictness: Strictness,
    ) -> Result<Arc<Self>, Error> {
        let authorities = match strictness {
            Strictness::Nothing => Authorities { roots: Arc::new(RootCertStore::empty()), listed: Vec::new() },
            Strictness::Authority | Strictness::HostName => Authorities::read(cacert)?,
        };
        Ok(Arc::new(Self { provider, authorities, strictness }))
    }
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.strictness == Strictness::Nothing {
            return Ok(ServerCertVerified::assertion());
        }
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let roots = &self.authorities.roots;
        let signed = verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms);
        self.authorities.or_listed(end_entity, signed)?;
        if self.strictness == Strictness::HostName {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Judges clients.
#[derive(Debug)]
pub(super) struct Clients {
    library: Arc<dyn ClientCertVerifier>,
    authorities: Authorities,
}

impl Clients {
    /// By the authorities of a file. `mandatory`: without a certificate there is no connection.
    pub(super) fn new(provider: &Arc<CryptoProvider>, cafile: &Path, mandatory: bool) -> Result<Arc<Self>, Error> {
        let authorities = Authorities::read(Some(cafile))?;
        let builder = WebPkiClientVerifier::builder_with_provider(authorities.roots.clone(), provider.clone());
        let builder = if mandatory { builder } else { builder.allow_unauthenticated() };
        let library =
            builder.build().map_err(|error| Error::Content { path: cafile.to_owned(), why: error.to_string() })?;
        Ok(Arc::new(Self { library, authorities }))
    }
}

impl ClientCertVerifier for Clients {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        self.library.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.library.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verdict = self.library.verify_client_cert(end_entity, intermediates, now).map(|_| ());
        self.authorities.or_listed(end_entity, verdict)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.library.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.library.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.library.supported_verify_schemes()
    }
}
