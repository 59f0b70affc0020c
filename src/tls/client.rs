//! The connecting side: to other members' main ports, and from the command line.
//!
//! A [`Dialer`] connects to `host:port` with TLS or without, as it was made; its files can be replaced while it is used.
//! It is also what hyper's client connects by, for `http://` and `https://` as the address says.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::{TlsConnector, rustls};

use super::trust::{Servers, Strictness};
use super::{Error, Stream, binding, pem, provider};
use crate::config::tls::{ClientTls, KeyPair};

/// How long a connection may take, and then its handshake, unless told otherwise.
const WITHIN: Duration = Duration::from_secs(2);

/// Who is connected to, and by whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peers {
    /// Members among each other: host names are not looked at, and authorities only where some are named. Source:
    /// reference section 1.6. What a member must not believe of a stranger, the cluster's secret proves.
    Members,
    /// The command line to nodes: everything must be right, unless told otherwise.
    Nodes,
}

/// Connects. Cheap to clone; clones share what is replaced.
#[derive(Clone)]
pub struct Dialer {
    current: Arc<RwLock<Option<Arc<rustls::ClientConfig>>>>,
    /// Whether a member that does not speak TLS yet is good enough.
    plain_too: bool,
    within: Duration,
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialer").field("secure", &self.is_secure()).field("plain_too", &self.plain_too).finish()
    }
}

impl Dialer {
    /// Without TLS.
    pub fn plain() -> Self {
        Self { current: Arc::default(), plain_too: true, within: WITHIN }
    }

    /// With TLS by these files. `own` is shown where `config` names no certificate.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn secure(config: &ClientTls, own: Option<&KeyPair>, peers: Peers) -> Result<Self, Error> {
        let built = build(config, own, peers)?;
        let current = Arc::new(RwLock::new(Some(built)));
        Ok(Self { current, plain_too: false, within: WITHIN })
    }

    /// Takes so long for a connection at most.
    #[must_use]
    pub fn within(self, within: Duration) -> Self {
        Self { within, ..self }
    }

    /// Speaks without TLS to whoever does not speak it.
    #[must_use]
    pub fn plain_too(self, plain_too: bool) -> Self {
        Self { plain_too, ..self }
    }

    /// Whether it speaks TLS.
    pub fn is_secure(&self) -> bool {
        self.current.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Uses other files for connections from now on, if it speaks TLS at all.
    ///
    /// # Errors
    /// What is wrong with them; the old ones are used then.
    pub fn replace(&self, config: &ClientTls, own: Option<&KeyPair>, peers: Peers) -> Result<(), Error> {
        if self.is_secure() {
            let built = build(config, own, peers)?;
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(built);
        }
        Ok(())
    }

    /// Connects to `host:port`. With TLS also says what is the same on both sides of this session and on no other.
    ///
    /// # Errors
    /// No connection, or a handshake that failed.
    pub async fn connect(&self, address: &str) -> io::Result<(Stream, Option<[u8; 32]>)> {
        let config = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let tcp = self.tcp(address).await?;
        let Some(config) = config else { return Ok((Stream::Plain(tcp), None)) };
        match handshake(config, tcp, address, self.within).await {
            Err(error) if self.plain_too && is_no_tls(&error) => Ok((Stream::Plain(self.tcp(address).await?), None)),
            other => other,
        }
    }

    async fn tcp(&self, address: &str) -> io::Result<TcpStream> {
        let late = || io::Error::from(io::ErrorKind::TimedOut);
        let stream = timeout(self.within, TcpStream::connect(address)).await.map_err(|_| late())??;
        // Best effort: without it the connection works, only slower.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

async fn handshake(
    config: Arc<rustls::ClientConfig>,
    tcp: TcpStream,
    address: &str,
    within: Duration,
) -> io::Result<(Stream, Option<[u8; 32]>)> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{host:?} is no host name")))?;
    let connecting = TlsConnector::from(config).connect(name, tcp);
    let stream = timeout(within, connecting).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let bound = binding(stream.get_ref().1);
    Ok((Stream::Tls(Box::new(stream.into())), bound))
}

/// Whether the other side answered, and not with TLS.
fn is_no_tls(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidMessage(_)))
}

fn build(config: &ClientTls, own: Option<&KeyPair>, peers: Peers) -> Result<Arc<rustls::ClientConfig>, Error> {
    let ClientTls { insecure, cacert, cafile, pair } = config;
    let strictness = match peers {
        // A certificate of one's own says that certificates matter here, and so does an authority for this very purpose.
        Peers::Members if pair.is_some() || (cacert.is_some() && !insecure) => Strictness::Authority,
        Peers::Members => Strictness::Nothing,
        Peers::Nodes if *insecure && pair.is_none() => Strictness::Nothing,
        Peers::Nodes if *insecure => Strictness::Authority,
        Peers::Nodes => Strictness::HostName,
    };
    let provider = Arc::new(provider());
    let servers = Servers::new(provider.clone(), cacert.as_deref().or(cafile.as_deref()), strictness)?;
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().map_err(Error::Library)?;
    let builder = builder.dangerous().with_custom_certificate_verifier(servers);
    let built = match pair.as_ref().or(own) {
        Some(pair) => {
            let (chain, key) = pem::pair(pair)?;
            let failed = |source| Error::Pair { path: pair.certfile.clone(), source };
            builder.with_client_auth_cert(chain, key).map_err(failed)?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(built))
}

impl tower::Service<Uri> for Dialer {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move {
            let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
            if uri.scheme_str() == Some("https") && !dialer.is_secure() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "https:// without TLS set up"));
            }
            if uri.scheme_str() == Some("http") {
                return Ok(TokioIo::new(Stream::Plain(dialer.tcp(&authority).await?)));
            }
            Ok(TokioIo::new(dialer.connect(&authority).await?.0))
        })
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
