//! The listening side: a handshake for each connection, with the files as they are now.
//!
//! ```text
//! first byte -> 0x16: handshake -> Stream + Session
//!            -> anything else: whoever it is speaks without TLS
//! ```

use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, rustls};

use super::trust::Clients;
use super::{Error, Session, Stream, binding, ciphers, limited, pem, provider};
use crate::config::tls::{ServerTls, VerifyClient};

/// A handshake must be through in this time.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// With this byte a client begins TLS. Source: RFC 8446, section 5.1: content type `handshake`.
const TLS: u8 = 0x16;

/// Makes TLS of connections that come in.
pub struct Acceptor {
    current: RwLock<Arc<rustls::ServerConfig>>,
}

/// What came in.
pub enum Arrival {
    /// A client that speaks TLS.
    Secured(Stream, Session),
    /// One that does not; nothing was read from it.
    Plain(TcpStream),
}

impl Acceptor {
    /// With these files.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn new(config: &ServerTls) -> Result<Self, Error> {
        Ok(Self { current: RwLock::new(build(config)?) })
    }

    /// Shows other files to clients that come from now on.
    ///
    /// # Errors
    /// What is wrong with them; the old ones are shown then.
    pub fn replace(&self, config: &ServerTls) -> Result<(), Error> {
        let built = build(config)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = built;
        Ok(())
    }

    /// Waits for the client's first byte, and for the handshake if it begins one.
    ///
    /// # Errors
    /// The client went away, is too slow, or its handshake failed.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<Arrival> {
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first != [TLS] {
            return Ok(Arrival::Plain(stream));
        }
        let config = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let handshake = timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await;
        let stream = handshake.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let connection = stream.get_ref().1;
        let certified = connection.peer_certificates().is_some_and(|chain| !chain.is_empty());
        let session = Session { certified, binding: binding(connection) };
        Ok(Arrival::Secured(Stream::Tls(Box::new(stream.into())), session))
    }
}

fn build(config: &ServerTls) -> Result<Arc<rustls::ServerConfig>, Error> {
    let ServerTls { pair, cafile, verify_client, ciphers } = config;
    let provider = match ciphers {
        Some(list) => limited(ciphers::select(list)?),
        None => Arc::new(provider()),
    };
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(Error::Library)?;
    let builder = match (verify_client, cafile) {
        (VerifyClient::None, _) | (_, None) => builder.with_no_client_auth(),
        (VerifyClient::Optional, Some(file)) => {
            builder.with_client_cert_verifier(Clients::new(&provider, file, false)?)
        }
        (VerifyClient::Required, Some(file)) => builder.with_client_cert_verifier(Clients::new(&provider, file, true)?),
    };
    let (chain, key) = pem::pair(pair)?;
    let mut built =
        builder.with_single_cert(chain, key).map_err(|source| Error::Pair { path: pair.certfile.clone(), source })?;
    built.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(built))
}
