//! The handshake: both sides prove that they know the cluster's secret, without sending it.
//!
//! ```text
//! client                                   server
//!   Hello {cluster, who, to whom, nonce} ->
//!                                        <- Challenge {who, nonce}
//!   Proof  HMAC(secret, client | all)    ->
//!                                        <- Welcome HMAC(secret, server | all), or a refusal
//! ```
//!
//! The client proves itself first, so that a stranger gets nothing to guess against. Both proofs
//! cover both nonces and both identities, so neither can be replayed or reflected. Names, ids and
//! generation are compared only after the proof: strangers learn nothing about the cluster.
//!
//! Over TLS both proofs also cover the session: who sits in between, with a session on each side, can pass on neither.
//! Absent on purpose: encryption. Without TLS below, frames after the handshake are plain.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use hmac::{Hmac, Mac};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::codec;
use super::identity::{Identity, show};
use super::wire::{Class, Frame, Kind, MAX_FRAME, MAX_GREETING, framing};
use crate::telemetry::redact::Secret;

/// The whole handshake must be done in this time: three round trips, of members that are 400 ms apart and more.
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// This node, as it presents itself.
#[derive(Debug, Clone)]
pub struct Local {
    /// The cluster's name.
    pub cluster: String,
    /// This node's name.
    pub name: String,
    /// Who it is, once that is decided.
    pub identity: Option<Identity>,
}

/// The other side, proven.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// What the connection is for.
    pub class: Class,
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The connection broke or was garbage.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The other side said no.
    #[error("refused by the peer: {0}")]
    RefusedByPeer(String),
    /// This side says no.
    #[error("{0}")]
    Refused(String),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Hello {
    cluster: String,
    generation: Option<u64>,
    id: u64,
    name: String,
    /// Zero: whoever is there.
    to: u64,
    class: Class,
    nonce: [u8; 32],
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Challenge {
    generation: Option<u64>,
    id: u64,
    name: String,
    nonce: [u8; 32],
}

type Proof = [u8; 32];
/// A framed connection.
pub type Wire<S> = Framed<S, LengthDelimitedCodec>;

/// What a proof is made with: the cluster's secret, and the session of TLS below, if there is one.
#[derive(Clone, Copy)]
pub struct Key<'a>(pub &'a Secret<String>, pub Option<[u8; 32]>);

fn proof(key: Key<'_>, side: &str, hello: &Hello, challenge: &Challenge) -> io::Result<Hmac<Sha256>> {
    let Key(secret, session) = key;
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()).map_err(io::Error::other)?;
    let transcript = match session {
        None => codec::encode(&("howdah-raft/1", side, hello, challenge)),
        Some(session) => codec::encode(&("howdah-raft/1 over TLS", side, hello, challenge, session)),
    };
    mac.update(&transcript.map_err(io::Error::other)?);
    Ok(mac)
}

async fn send<S: AsyncWrite + Unpin, T: Serialize>(wire: &mut Wire<S>, kind: Kind, value: &T) -> io::Result<()> {
    let payload = Bytes::from(codec::encode(value).map_err(io::Error::other)?);
    wire.send(Frame { kind, id: 0, payload }.to_bytes()).await.map_err(cut_off)
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "connection closed during the handshake")
}

/// The connection of a member that dies while it introduces itself ends in one of several ways, by chance.
fn cut_off(error: io::Error) -> io::Error {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    match error.kind() {
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof => closed(),
        _ => error,
    }
}

async fn receive<S: AsyncRead + Unpin, T: DeserializeOwned>(wire: &mut Wire<S>) -> Result<T, AuthError> {
    let bytes: BytesMut = wire.next().await.ok_or_else(closed)?.map_err(cut_off)?;
    let frame = Frame::from_bytes(bytes)?;
    let garbage = |e: codec::CodecError| io::Error::new(io::ErrorKind::InvalidData, e);
    match frame.kind {
        Kind::Greeting => Ok(codec::decode(&frame.payload).map_err(garbage)?),
        Kind::Refusal => Err(AuthError::RefusedByPeer(codec::decode(&frame.payload).map_err(garbage)?)),
        Kind::Request | Kind::Response => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "message before the handshake").into())
        }
    }
}

fn generation(local: &Local) -> Option<u64> {
    local.identity.as_ref().map(|identity| identity.generation)
}

fn id(local: &Local) -> u64 {
    local.identity.as_ref().map_or(0, |identity| identity.id)
}

/// Opens a connection's conversation. `to` is the id that must answer, zero for whoever is there.
///
/// # Errors
/// [`AuthError`]; the connection is of no use then.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    io: S,
    key: Key<'_>,
    local: &Local,
    to: u64,
    class: Class,
) -> Result<(Wire<S>, Peer), AuthError> {
    let mut wire = Framed::new(io, framing(MAX_GREETING));
    let hello = Hello {
        cluster: local.cluster.clone(),
        generation: generation(local),
        id: id(local),
        name: local.name.clone(),
        to,
        class,
        nonce: rand::random(),
    };
    send(&mut wire, Kind::Greeting, &hello).await?;
    let challenge: Challenge = receive(&mut wire).await?;
    let mine: Proof = proof(key, "client", &hello, &challenge)?.finalize().into_bytes().into();
    send(&mut wire, Kind::Greeting, &mine).await?;
    let theirs: Proof = receive(&mut wire).await?;
    // `verify_slice` compares in constant time.
    let known = proof(key, "server", &hello, &challenge)?.verify_slice(&theirs);
    if known.is_err() {
        return Err(AuthError::Refused("the peer does not know the cluster's secret".to_owned()));
    }
    if to != 0 && challenge.id != to {
        return Err(AuthError::Refused(format!("node {} answered instead of {}", show(challenge.id), show(to))));
    }
    wire.codec_mut().set_max_frame_length(MAX_FRAME);
    Ok((wire, Peer { name: challenge.name, class }))
}

fn judge(local: &Local, hello: &Hello) -> Result<(), String> {
    if hello.cluster != local.cluster {
        return Err(format!("cluster names differ: here it is {}, the peer says {}", local.cluster, hello.cluster));
    }
    if hello.to != 0 && hello.to != id(local) {
        return Err(format!("node {} is not here: this is {} {}", show(hello.to), local.name, show(id(local))));
    }
    match (generation(local), hello.generation) {
        (Some(ours), Some(theirs)) if ours != theirs => Err(format!(
            "{} and {} belong to different generations of the cluster (a new one was forced); \
             move aside the data directory of the one that shall join again",
            local.name, hello.name
        )),
        _ => Ok(()),
    }
}

/// Answers a connection's opening.
///
/// # Errors
/// [`AuthError`]; the peer has been told why if it proved that it knows the secret, else only "no".
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    io: S,
    key: Key<'_>,
    local: &Local,
) -> Result<(Wire<S>, Peer), AuthError> {
    let mut wire = Framed::new(io, framing(MAX_GREETING));
    let hello: Hello = receive(&mut wire).await?;
    let challenge =
        Challenge { generation: generation(local), id: id(local), name: local.name.clone(), nonce: rand::random() };
    send(&mut wire, Kind::Greeting, &challenge).await?;
    let theirs: Proof = receive(&mut wire).await?;
    if proof(key, "client", &hello, &challenge)?.verify_slice(&theirs).is_err() {
        let why = "the cluster's secret is not the same on both nodes".to_owned();
        send(&mut wire, Kind::Refusal, &why).await?;
        return Err(AuthError::Refused(why));
    }
    if let Err(why) = judge(local, &hello) {
        send(&mut wire, Kind::Refusal, &why).await?;
        return Err(AuthError::Refused(why));
    }
    let mine: Proof = proof(key, "server", &hello, &challenge)?.finalize().into_bytes().into();
    send(&mut wire, Kind::Greeting, &mine).await?;
    wire.codec_mut().set_max_frame_length(MAX_FRAME);
    Ok((wire, Peer { name: hello.name, class: hello.class }))
}
