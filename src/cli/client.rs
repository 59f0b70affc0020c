//! A small HTTP client: one request to one node after the other, until one answers.
//!
//! A read may go to any node, and goes on to the next one when a node does not answer or has lost the quorum. A change
//! goes on only while it is certain that the last node has not received it. Deliberately absent: retries.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;

use super::discover::Place;
use super::{Failure, Outcome, exit};
use crate::agent::snapshot::{RouterStatus, Snapshot};
use crate::api::CODE_HEADER;
use crate::api::auth::basic_header;
use crate::config::HostPort;
use crate::config::node::RoleConfig;
use crate::tls::{self, Dialer, Peers};

const CONNECT: Duration = Duration::from_secs(2);
const READ: Duration = Duration::from_secs(5);
/// A switchover waits for its outcome.
const CHANGE: Duration = Duration::from_secs(130);
/// A look that is repeated anyway.
const QUIET: Duration = Duration::from_millis(500);
const ANSWER_LIMIT: usize = 16 << 20;

/// Talks to a cluster.
pub(super) struct Client {
    place: Place,
    http: legacy::Client<Dialer, Full<Bytes>>,
    /// What proves the user to etcd's API.
    token: Option<String>,
}

/// What `/howdah` answers.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Status {
    /// The node's snapshot.
    pub(super) snapshot: Snapshot,
    /// How old its view of the cluster is.
    #[serde(default)]
    pub(super) view_age_seconds: Option<f64>,
    /// How long its permit holds yet; none while it has none.
    #[serde(default)]
    pub(super) permit_remaining_seconds: Option<f64>,
    /// What its router does.
    #[serde(default)]
    pub(super) router: Option<RouterStatus>,
}

/// One answer.
struct Answer {
    status: StatusCode,
    code: Option<String>,
    text: String,
}

/// Why a node gave no answer.
struct Silence {
    why: String,
    /// Whether it is certain that the node has not received the request.
    unsent: bool,
}

/// A request that changes something.
pub(super) struct Change {
    /// The method.
    pub(super) method: Method,
    /// The path.
    pub(super) path: String,
    /// The body.
    pub(super) body: Option<Value>,
}

impl Client {
    /// A client for the cluster at `place`.
    ///
    /// # Errors
    /// A certificate that cannot be used.
    pub(super) fn new(place: Place) -> Outcome<Self> {
        let dialer = match &place.tls {
            None => Dialer::plain(),
            Some(tls) => Dialer::secure(tls, None, Peers::Nodes).map_err(anyhow::Error::new)?,
        };
        let http = legacy::Client::builder(TokioExecutor::new()).build(dialer.within(CONNECT));
        Ok(Self { place, http, token: None })
    }

    fn url(&self, address: &HostPort, path: &str) -> String {
        let scheme = if self.place.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{address}{path}")
    }

    /// The main ports that are tried.
    pub(super) fn addresses(&self) -> &[HostPort] {
        &self.place.addresses
    }

    /// As [`Client::status`], without a word about what does not answer; none without a quorum.
    pub(super) async fn status_quietly(&self) -> Option<Snapshot> {
        for address in &self.place.addresses {
            let asked = timeout(QUIET, self.status_of(address)).await;
            if let Ok(Ok(status)) = asked
                && status.snapshot.store_has_quorum
            {
                return Some(status.snapshot);
            }
        }
        None
    }

    /// What one node says of itself and the cluster.
    pub(super) async fn look(&self, address: &HostPort) -> Result<Status, String> {
        self.status_of(address).await
    }

    /// As [`Client::status`], without a remark on what is outdated.
    pub(super) async fn first_look(&self) -> Outcome<Status> {
        let mut silent = Vec::new();
        let mut without_quorum = None;
        for address in &self.place.addresses {
            match self.status_of(address).await {
                Ok(status) if status.snapshot.store_has_quorum => return Ok(status),
                Ok(status) => without_quorum = without_quorum.or(Some(status)),
                Err(why) => silent.push((address.clone(), why)),
            }
        }
        without_quorum.ok_or_else(|| self.nobody(&silent))
    }

    /// The database's superuser, where a node's file says it.
    pub(super) fn superuser(&self) -> Option<&RoleConfig> {
        self.place.superuser.as_ref()
    }

    /// Speaks for a user of etcd's API from now on.
    pub(super) fn use_token(&mut self, token: String) {
        self.token = Some(token).filter(|token| !token.is_empty());
    }

    /// The cluster as a node with a quorum sees it; if no node has one, as the first that answers does, with a note.
    pub(super) async fn status(&self, cluster: Option<&str>) -> Outcome<Status> {
        let mut silent = Vec::new();
        let mut without_quorum: Option<Status> = None;
        for address in &self.place.addresses {
            match self.status_of(address).await {
                Ok(status) => {
                    check_name(cluster, &status.snapshot)?;
                    if status.snapshot.store_has_quorum {
                        return Ok(status);
                    }
                    without_quorum = without_quorum.or(Some(status));
                }
                Err(why) => silent.push((address.clone(), why)),
            }
        }
        match without_quorum {
            Some(status) => {
                let name = &status.snapshot.name;
                let age = status
                    .view_age_seconds
                    .map_or("and has never seen it".to_owned(), |age| format!("and last saw it {age:.0} s ago"));
                super::output::note(&format!(
                    "{name} sees no quorum of the store, {age}; what follows may be outdated"
                ));
                Ok(status)
            }
            None => Err(self.nobody(&silent)),
        }
    }

    async fn status_of(&self, address: &HostPort) -> Result<Status, String> {
        let answer = self.request(address, &Method::GET, "/howdah", None, READ).await.map_err(|silence| silence.why)?;
        if answer.status != StatusCode::OK {
            return Err(format!("answers with status {}; is it a howdah node?", answer.status.as_u16()));
        }
        serde_json::from_str(&answer.text).map_err(|_| "answers, but not as this version of howdah does".to_owned())
    }

    /// One GET to one node, as JSON, whatever its status.
    pub(super) async fn get(&self, address: &HostPort, path: &str) -> Option<Value> {
        let answer = self.request(address, &Method::GET, path, None, READ).await.ok()?;
        serde_json::from_str(&answer.text).ok()
    }

    /// One GET to the nodes of `order`, then to the others that are known, until one can answer it. Returns JSON.
    pub(super) async fn read(&self, order: &[HostPort], path: &str) -> Outcome<Value> {
        let text = self.text(order, path).await?;
        serde_json::from_str(&text).map_err(|error| Failure::new(exit::FAILED, format!("{path}: {error}")))
    }

    /// The same, as text.
    pub(super) async fn text(&self, order: &[HostPort], path: &str) -> Outcome<String> {
        let mut silent = Vec::new();
        let mut refused = None;
        let others = self.place.addresses.iter().filter(|address| !order.contains(address));
        for address in order.iter().chain(others) {
            match self.request(address, &Method::GET, path, None, READ).await {
                // Another node may know what this one does not.
                Ok(answer) if answer.status == StatusCode::SERVICE_UNAVAILABLE => {
                    refused = Some(judged(address, answer));
                }
                Ok(answer) => return judged(address, answer),
                Err(silence) => silent.push((address.clone(), silence.why)),
            }
        }
        refused.unwrap_or_else(|| Err(self.nobody(&silent)))
    }

    /// The same of one node and no other.
    pub(super) async fn text_only_at(&self, address: &HostPort, path: &str) -> Outcome<String> {
        match self.request(address, &Method::GET, path, None, READ).await {
            Ok(answer) => judged(address, answer),
            Err(silence) => Err(self.nobody(&[(address.clone(), silence.why)])),
        }
    }

    /// Sends a change to the nodes of `order`, then to the others that are known, until one has received it. Returns
    /// the text of its answer.
    pub(super) async fn change(&self, order: &[HostPort], change: &Change) -> Outcome<String> {
        let mut silent = Vec::new();
        let others = self.place.addresses.iter().filter(|address| !order.contains(address));
        for address in order.iter().chain(others) {
            if let Some(text) = self.change_at(address, change, &mut silent).await? {
                return Ok(text);
            }
        }
        Err(self.nobody(&silent))
    }

    /// Sends a change to one node and no other.
    pub(super) async fn change_only_at(&self, address: &HostPort, change: &Change) -> Outcome<String> {
        let mut silent = Vec::new();
        match self.change_at(address, change, &mut silent).await? {
            Some(text) => Ok(text),
            None => Err(self.nobody(&silent)),
        }
    }

    async fn change_at(
        &self,
        address: &HostPort,
        change: &Change,
        silent: &mut Vec<(HostPort, String)>,
    ) -> Outcome<Option<String>> {
        match self.request(address, &change.method, &change.path, change.body.as_ref(), CHANGE).await {
            Ok(answer) => judged(address, answer).map(Some),
            Err(silence) if silence.unsent => {
                silent.push((address.clone(), silence.why));
                Ok(None)
            }
            Err(silence) => Err(Failure::new(
                exit::FAILED,
                format!("{address} was asked and {}; it may have acted, so look at `howdah list` first", silence.why),
            )),
        }
    }

    /// One call to etcd's API, to the first node that has received it and hears a leader.
    pub(super) async fn etcd(&self, path: &str, body: &Value) -> Outcome<Value> {
        let mut silent = Vec::new();
        let mut leaderless = None;
        for address in &self.place.addresses {
            match self.request(address, &Method::POST, path, Some(body), READ).await {
                Ok(answer) => {
                    let value = serde_json::from_str(&answer.text).unwrap_or(Value::Null);
                    if answer.status.is_success() {
                        return Ok(value);
                    }
                    let failure = etcd_failure(address, &value);
                    // It has done nothing; another node may be on the side of the majority.
                    if value["error"] != "etcdserver: no leader" {
                        return Err(failure);
                    }
                    leaderless = Some(failure);
                }
                Err(silence) if silence.unsent => silent.push((address.clone(), silence.why)),
                Err(silence) => {
                    return Err(Failure::new(
                        exit::FAILED,
                        format!("{address} was asked and {}; a change may have been made, so look first", silence.why),
                    ));
                }
            }
        }
        Err(leaderless.unwrap_or_else(|| self.nobody(&silent)))
    }

    /// A call whose answer does not end: gives each line to `show` until it fails, or the node goes away.
    pub(super) async fn etcd_stream(
        &self,
        path: &str,
        body: &Value,
        mut show: impl FnMut(&Value) -> Outcome,
    ) -> Outcome {
        let mut silent = Vec::new();
        for address in &self.place.addresses {
            let mut request = Request::post(self.url(address, path));
            if let Some(token) = &self.token {
                request = request.header(header::AUTHORIZATION, token);
            }
            let request = request
                .body(Full::new(Bytes::from(body.to_string())))
                .map_err(|error| Failure::new(exit::FAILED, error))?;
            let response = match self.http.request(request).await {
                Ok(response) => response,
                Err(error) => {
                    silent.push((address.clone(), innermost(&error)));
                    continue;
                }
            };
            let ok = response.status().is_success();
            let mut stream = response.into_body();
            let mut text = Vec::new();
            while let Some(frame) = stream.frame().await {
                let ended = |why: String| Failure::new(exit::FAILED, format!("{address} broke off: {why}"));
                let frame = frame.map_err(|error| ended(innermost(&error)))?;
                text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                if text.len() > ANSWER_LIMIT {
                    return Err(ended("one line of its answer is too long".to_owned()));
                }
                while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = text.drain(..=end).collect();
                    let value: Value = serde_json::from_slice(&line).unwrap_or(Value::Null);
                    if !value["error"].is_null() {
                        return Err(etcd_failure(address, &value));
                    }
                    show(&value)?;
                }
            }
            let value = serde_json::from_slice(&text).unwrap_or(Value::Null);
            return if ok {
                Err(Failure::new(exit::FAILED, format!("{address} ended the stream")))
            } else {
                Err(etcd_failure(address, &value))
            };
        }
        Err(self.nobody(&silent))
    }

    async fn request(
        &self,
        address: &HostPort,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Answer, Silence> {
        let certain = |why: String| Silence { why, unsent: true };
        let mut request = Request::builder().method(method).uri(self.url(address, path));
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        } else if let Some(credentials) = self.place.credentials.as_ref().filter(|_| method != Method::GET) {
            request = request.header(header::AUTHORIZATION, basic_header(credentials));
        }
        let bytes = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        let request = request.body(Full::new(bytes)).map_err(|error| certain(error.to_string()))?;
        let exchange = async {
            let response = self
                .http
                .request(request)
                .await
                .map_err(|error| Silence { unsent: error.is_connect(), why: innermost(&error) })?;
            let status = response.status();
            let code = response.headers().get(CODE_HEADER).and_then(|value| value.to_str().ok()).map(str::to_owned);
            let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
            let body = body.map_err(|_| Silence { why: "broke off its answer".to_owned(), unsent: false })?;
            Ok(Answer { status, code, text: String::from_utf8_lossy(&body.to_bytes()).into_owned() })
        };
        timeout(limit, exchange).await.unwrap_or_else(|_| {
            Err(Silence { why: format!("did not answer within {} s", limit.as_secs()), unsent: false })
        })
    }

    fn nobody(&self, silent: &[(HostPort, String)]) -> Failure {
        let tried: Vec<String> = silent.iter().map(|(address, why)| format!("{address} ({why})")).collect();
        let text = format!(
            "no node answers: tried {}; addresses are from {}; check that howdah runs there",
            tried.join(", "),
            self.place.source
        );
        Failure::new(exit::FAILED, text)
    }
}

/// The cause that says most: `connection refused` rather than `client error (Connect)`.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    if let Some(words) = tls::explain(error) {
        return words.to_owned();
    }
    let mut here = error;
    while let Some(cause) = here.source() {
        here = cause;
    }
    let text = here.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// What a refusal of etcd's API means for the exit code.
fn etcd_failure(address: &HostPort, answer: &Value) -> Failure {
    let error = &answer["error"];
    let (text, code) = match error {
        Value::Object(fields) => (fields.get("message").cloned(), fields.get("code").cloned()),
        text => (Some(text.clone()), answer.get("code").cloned()),
    };
    let text = text.as_ref().and_then(Value::as_str).unwrap_or("gave no reason").to_owned();
    // gRPC's codes: invalid argument, permission denied, failed precondition, unavailable.
    match code.as_ref().and_then(Value::as_i64) {
        Some(3) => Failure::new(exit::USAGE, text),
        Some(7) => Failure::new(
            exit::REFUSED,
            format!("{text}; howdah's own keys are changed by its own commands, such as switchover and edit-config"),
        ),
        Some(9) => Failure::new(exit::REFUSED, text),
        Some(14) => Failure::new(exit::NO_QUORUM, text),
        _ => Failure::new(exit::FAILED, format!("{address}: {text}")),
    }
}

/// Whether the cluster is the one that the person meant.
fn check_name(wanted: Option<&str>, snapshot: &Snapshot) -> Outcome {
    match wanted {
        Some(wanted) if wanted != snapshot.scope.as_str() => Err(Failure::new(
            exit::USAGE,
            format!(
                "the cluster here is {}, not {wanted}; leave the name out, or name another node by --url",
                snapshot.scope
            ),
        )),
        _ => Ok(()),
    }
}

/// The text of a success, or what a refusal means for the exit code.
fn judged(address: &HostPort, answer: Answer) -> Outcome<String> {
    let text = answer.text.trim().to_owned();
    let said = if text.is_empty() { format!("status {}", answer.status.as_u16()) } else { text.clone() };
    let fail = |code: u8, text: String| Err(Failure::new(code, text));
    match (answer.status, answer.code.as_deref()) {
        (status, _) if status.is_success() => Ok(text),
        (_, Some("no_quorum")) => fail(exit::NO_QUORUM, said),
        (_, Some("refused" | "conflict")) => fail(exit::REFUSED, said),
        (_, Some("bad_request")) => fail(exit::USAGE, said),
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => fail(
            exit::FAILED,
            format!(
                "{address} refuses: {said}; give a node's file by -c, with ctl.authentication or restapi.authentication in it"
            ),
        ),
        _ => fail(exit::FAILED, format!("{address}: {said}")),
    }
}
