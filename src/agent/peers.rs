//! Asks the other members directly where they are. Used when the record is too old to decide on: in a
//! leader race and for the proof of a hand-over.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, join_all, select};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::{Deserialize, Serialize};

use crate::ha::view::PeerView;
use crate::tls::Dialer;
use crate::types::{Fact, Lsn, NodeName, TimelineId};

/// A member that has not answered by then is taken as unreachable: with the default `retry_timeout`, or a shorter one.
const PATIENCE: Duration = Duration::from_millis(400);

/// So many questions fit into `retry_timeout`. Members that are far apart need more than [`PATIENCE`] for a connection and
/// an answer, and would fail over never; where all are near, a dead one must not hold up a race for longer.
const QUESTIONS: u32 = 5;

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// How long a member may take to answer.
pub fn patience(retry_timeout: Duration) -> Duration {
    PATIENCE.max(retry_timeout / QUESTIONS)
}

/// Asked again then, on another connection: TCP repeats the first packet of a connection only after a second, and a member
/// that seems silent counts for nothing in a race.
const AGAIN: Duration = Duration::from_millis(150);

/// No honest answer is longer.
const ANSWER_LIMIT: usize = 16 * 1024;

/// What a member answers on `GET /howdah/position`, read from its PostgreSQL for this very request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Who answers.
    pub name: NodeName,
    /// It may accept writes.
    pub writable: bool,
    /// It runs as a standby that nothing forbids to promote.
    pub promotable: bool,
    /// Its timeline; none when PostgreSQL does not answer.
    pub timeline: Option<TimelineId>,
    /// Written or received.
    pub position: Option<Lsn>,
    /// PostgreSQL starts here, or still reads the WAL that it had: there may be more than `position`.
    #[serde(default)]
    pub pending: bool,
    /// WAL could still arrive here. What a member does not say is taken as yes.
    #[serde(default = "yes")]
    pub receiving: bool,
}

fn yes() -> bool {
    true
}

/// Client for the members' main ports. Keeps connections.
#[derive(Clone)]
pub struct Peers {
    client: Client<Dialer, Empty<Bytes>>,
    scheme: &'static str,
}

impl Peers {
    /// A client without connections yet, that connects by `dialer`.
    pub fn new(dialer: Dialer) -> Self {
        // Each question has its own patience; no connection is given more than any of them.
        let dialer = dialer.within(CONNECT);
        let scheme = if dialer.is_secure() { "https" } else { "http" };
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(Duration::from_secs(30))
            .build(dialer);
        Self { client, scheme }
    }

    /// Asks all of `addresses` at once. Every one gets an entry; silence is `Unknown` with its cause.
    pub async fn ask(
        &self,
        addresses: BTreeMap<NodeName, String>,
        patience: Duration,
    ) -> BTreeMap<NodeName, Fact<PeerView>> {
        let questions = addresses.into_iter().map(|(name, address)| async move {
            let answer = match tokio::time::timeout(patience, self.twice(&name, &address)).await {
                Ok(Ok(position)) => Fact::Fresh(PeerView {
                    writable: position.writable,
                    promotable: position.promotable,
                    timeline: position.timeline,
                    position: position.position,
                    pending: position.pending,
                    receiving: position.receiving,
                }),
                Ok(Err(why)) => Fact::unknown(why),
                Err(_) => Fact::unknown(format!("{address} did not answer within {} ms", patience.as_millis())),
            };
            (name, answer)
        });
        join_all(questions).await.into_iter().collect()
    }

    /// A refusal is an answer; only silence is asked again.
    async fn twice(&self, name: &NodeName, address: &str) -> Result<Position, String> {
        let first = pin!(self.one(name, address));
        let second = pin!(async {
            tokio::time::sleep(AGAIN).await;
            self.one(name, address).await
        });
        match select(first, second).await {
            Either::Left((answer, _)) | Either::Right((answer @ Ok(_), _)) => answer,
            Either::Right((Err(_), first)) => first.await,
        }
    }

    async fn one(&self, name: &NodeName, address: &str) -> Result<Position, String> {
        let request = Request::get(format!("{}://{address}/howdah/position", self.scheme))
            .body(Empty::new())
            .map_err(|e| format!("{address}: {e}"))?;
        let response = self.client.request(request).await.map_err(|e| format!("{address}: {e}"))?;
        if !response.status().is_success() {
            return Err(format!("{address} answered {}", response.status()));
        }
        let body = Limited::new(response.into_body(), ANSWER_LIMIT);
        let bytes = body.collect().await.map_err(|e| format!("{address}: {e}"))?.to_bytes();
        let position: Position = serde_json::from_slice(&bytes).map_err(|e| format!("{address}: {e}"))?;
        if position.name != *name {
            return Err(format!("{address} is {}, not {name}", position.name));
        }
        Ok(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gives_everything_more_time_gives_members_more_time_to_answer() {
        let ms = Duration::from_millis;
        assert_eq!([500, 2000, 5000, 10_000].map(|retry| patience(ms(retry))), [400, 400, 1000, 2000].map(ms));
    }
}
