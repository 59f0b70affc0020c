//! REST: Patroni's endpoints, and a few of our own, over the main port.
//!
//! ```text
//! request -> dispatch (method, first path segment) -> read : wire.rs, health.rs, metrics.rs   from the snapshot alone
//!                                                  -> change : auth.rs -> changes.rs -> Control
//! ```
//! Reads are answered from memory: no PostgreSQL, no store, no lock that either could hold. `/cluster` too, where
//! Patroni reads its store anew: the snapshot is at most a tick old, and says in `/howdah` how old. A node without a
//! quorum therefore still answers, with what it last knew; after a ttl it names no leader any more.
//!
//! Source: reference section 1 (Patroni 4.1.5).

pub mod auth;
mod authority;
pub mod changes;
pub mod control;
pub mod headers;
pub mod health;
pub mod metrics;
pub mod openapi;
pub mod server;
pub mod why;
pub mod wire;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::sync::watch;

pub use auth::{Access, PeerAddress};
pub use control::{Control, ControlError, ControlOutcome};
pub use headers::ExtraHeaders;
pub use server::{Port, serve};

use crate::agent::recorder::Recorder;
use crate::agent::snapshot::{RouterStatus, Snapshot};
use crate::telemetry::{clock, metrics as text_format};

/// Tells clients what kind of failure a status stands for; see [`ControlError::code`].
pub const CODE_HEADER: &str = "howdah-code";

/// What the handlers need.
#[derive(Clone)]
pub struct ApiState {
    /// What may be seen.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// What may be done.
    pub control: Arc<dyn Control>,
    /// Who may do it.
    pub access: Arc<Access>,
    /// What the node's router does; none when it has none.
    pub router: Option<RouterView>,
    /// What the node's decisions are made on.
    pub recorder: Recorder,
}

/// Asks the router for its counters, now.
pub type RouterView = Arc<dyn Fn() -> RouterStatus + Send + Sync>;

/// A set of endpoints; other modules name it without naming the library behind it.
pub type Routes = Router;

/// All REST endpoints, as the fallback of a router: exact routes of other modules go first when merged. None of those
/// may have a fallback of its own.
pub fn routes(state: ApiState) -> Router {
    Router::new().route("/howdah/position", get(position)).fallback(dispatch).with_state(state)
}

/// What members ask each other, and no other request: for a port on which everything else must come by TLS.
pub fn members_alone(state: ApiState) -> Router {
    Router::new().route("/howdah/position", get(position)).with_state(state).fallback(server::speak_tls)
}

/// Where this node's PostgreSQL is right now. The one read that asks PostgreSQL: in a leader race a value that is a
/// heartbeat old could elect the wrong node. Asked by members, not by load balancers.
async fn position(State(state): State<ApiState>) -> Response {
    match state.control.position().await {
        Ok(position) => json_response(StatusCode::OK, &json!(position)),
        Err(error) => changes::error_response(&error),
    }
}

/// Finds the handler. Patroni takes the first path segment, and falls back to the health rules for any other GET; HEAD
/// and OPTIONS are always health checks.
async fn dispatch(State(state): State<ApiState>, request: Request) -> Response {
    let path = format!("/{}", request.uri().path().trim_start_matches('/'));
    let query = health::parse_query(request.uri().query().unwrap_or(""));
    let now = clock::now();
    let method = request.method().clone();
    if method == Method::GET {
        let snapshot = state.snapshot.borrow().told_at(now);
        return read(&snapshot, &state, &path, &query, now);
    }
    if method == Method::HEAD || method == Method::OPTIONS {
        let snapshot = state.snapshot.borrow().clone();
        return health_status(health::check(&snapshot, &path, &query, now)).into_response();
    }
    changes::handle(&state, &path, request).await
}

fn health_status(healthy: bool) -> StatusCode {
    if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn read(snapshot: &Snapshot, state: &ApiState, path: &str, query: &health::Query, now: crate::types::Mono) -> Response {
    let router = state.router.as_ref();
    let segments: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match segments.as_slice() {
        ["patroni", ..] => json_response(StatusCode::OK, &wire::patroni(snapshot, now)),
        ["liveness", ..] => health_status(health::is_live(snapshot, now)).into_response(),
        ["readiness", ..] => health_status(health::is_ready(snapshot, query, now)).into_response(),
        ["metrics", ..] => text_response(
            StatusCode::OK,
            text_format::CONTENT_TYPE,
            metrics::page(snapshot, router.map(|view| view()).as_ref(), now),
        ),
        ["howdah", "journal"] => text_response(StatusCode::OK, JSON_LINES, journal(&state.recorder)),
        ["timeline"] => json_response(StatusCode::OK, &json!(*snapshot.timeline)),
        ["why"] => match why::answer(snapshot, &state.recorder, query) {
            Ok(body) => json_response(StatusCode::OK, &body),
            Err(error) => changes::error_response(&error),
        },
        ["howdah", ..] => json_response(StatusCode::OK, &wire::full(snapshot, router.map(|view| view()).as_ref(), now)),
        ["openapi.json"] => json_response(StatusCode::OK, &openapi::document()),
        ["raft", "members"] => json_response(StatusCode::OK, &json!(snapshot.raft.members)),
        ["cluster", ..] => known(wire::cluster(snapshot), StatusCode::SERVICE_UNAVAILABLE, "cluster"),
        ["history", ..] => known(wire::history(snapshot), StatusCode::SERVICE_UNAVAILABLE, "history"),
        ["config", ..] => known(
            snapshot.cluster.as_ref().and_then(|cluster| cluster.settings_json.clone()),
            StatusCode::BAD_GATEWAY,
            "cluster settings",
        ),
        ["failsafe", ..] => known(
            snapshot.cluster.as_ref().and_then(|cluster| Some(json!(cluster.failsafe.as_ref()?))),
            StatusCode::BAD_GATEWAY,
            "failsafe map",
        ),
        _ => json_response(health_status(health::check(snapshot, path, query, now)), &wire::patroni(snapshot, now)),
    }
}

fn known(body: Option<Value>, otherwise: StatusCode, what: &str) -> Response {
    match body {
        Some(body) => json_response(StatusCode::OK, &body),
        None => {
            let text = format!(
                "the {what} is not known to this node yet; ask another one, or wait until the store has a quorum"
            );
            text_response(otherwise, PLAIN, text)
        }
    }
}

/// Decisions with all that they were made on, a line each: what `howdah explain` reads.
fn journal(recorder: &Recorder) -> String {
    let lines = recorder.changes();
    let lines = lines.iter().filter_map(|recorded| serde_json::to_string(&**recorded).ok());
    lines.map(|line| line + "\n").collect()
}

const JSON_LINES: &str = "application/jsonl";

const PLAIN: &str = "text/plain; charset=utf-8";

fn json_response(status: StatusCode, body: &Value) -> Response {
    text_response(status, "application/json", body.to_string())
}

fn text_response(status: StatusCode, content_type: &'static str, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
