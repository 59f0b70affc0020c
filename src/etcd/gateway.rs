//! The same calls as JSON over HTTP: `POST /v3/kv/range` and so on.
//!
//! Not a proxy: each route reads the JSON into the same message and calls the same method as gRPC does. Zero values
//! are left out of answers, 64-bit numbers are strings, bytes are base64; what is read may be written in any way that
//! etcd's own gateways accept. Errors carry the fields of all its versions, because each client looks at others.
//!
//! Source: etcd's gRPC gateway, versions 3.4 to 3.6.

use std::convert::Infallible;
use std::future::Future;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, any, post};
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tonic::{Code, Request, Response as Answer, Status};
use tower::util::MapRequest;

use super::pb::etcdserverpb as pb;
use super::pb::etcdserverpb::auth_server::Auth;
use super::pb::etcdserverpb::cluster_server::Cluster;
use super::pb::etcdserverpb::kv_server::Kv;
use super::pb::etcdserverpb::lease_server::Lease;
use super::pb::etcdserverpb::maintenance_server::Maintenance;
use super::pb::v3electionpb::election_server::Election;
use super::pb::v3lockpb::lock_server::Lock;
use super::{Etcd, MESSAGE_MAX};

/// Largest body. A message in base64 takes a third more than it is; what is still too large can be told so.
const BODY_MAX: usize = 3 * MESSAGE_MAX;

/// All routes under `/v3`, and under the older name `/v3beta`.
pub fn routes(etcd: Etcd) -> Router {
    let routes = current(etcd);
    let older = MapRequest::new(routes.clone(), |mut request: axum::extract::Request| {
        let path = request.uri().path().replacen("/v3beta/", "/v3/", 1);
        if let Ok(uri) = path.parse() {
            *request.uri_mut() = uri;
        }
        request
    });
    routes.route_service("/v3beta/{*rest}", older)
}

fn current(etcd: Etcd) -> Router {
    Router::new()
        .merge(kv_and_leases())
        .merge(members_and_maintenance())
        .merge(users_and_roles())
        .merge(locks_and_elections())
        .route("/v3/maintenance/snapshot", post(snapshot))
        .route("/v3/election/observe", post(observe))
        .route("/v3/watch", post(watch))
        .route("/v3/lease/keepalive", post(keep_alive))
        .route("/v3/{*rest}", any(not_found))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(etcd)
}

fn kv_and_leases() -> Router<Etcd> {
    Router::new()
        .route("/v3/kv/range", call(|etcd, request| async move { Kv::range(&etcd, request).await }))
        .route("/v3/kv/put", call(|etcd, request| async move { Kv::put(&etcd, request).await }))
        .route("/v3/kv/deleterange", call(|etcd, request| async move { Kv::delete_range(&etcd, request).await }))
        .route("/v3/kv/txn", call(|etcd, request| async move { Kv::txn(&etcd, request).await }))
        .route("/v3/kv/compaction", call(|etcd, request| async move { Kv::compact(&etcd, request).await }))
        .route("/v3/lease/grant", call(|etcd, request| async move { Lease::lease_grant(&etcd, request).await }))
        .route("/v3/lease/revoke", revoke())
        .route("/v3/kv/lease/revoke", revoke())
        .route("/v3/lease/timetolive", time_to_live())
        .route("/v3/kv/lease/timetolive", time_to_live())
        .route("/v3/lease/leases", leases())
        .route("/v3/kv/lease/leases", leases())
}

fn revoke() -> MethodRouter<Etcd> {
    call(|etcd, request| async move { Lease::lease_revoke(&etcd, request).await })
}

fn time_to_live() -> MethodRouter<Etcd> {
    call(|etcd, request| async move { Lease::lease_time_to_live(&etcd, request).await })
}

fn leases() -> MethodRouter<Etcd> {
    call(|etcd, request| async move { Lease::lease_leases(&etcd, request).await })
}

fn members_and_maintenance() -> Router<Etcd> {
    Router::new()
        .route("/v3/cluster/member/list", call(|e, request| async move { Cluster::member_list(&e, request).await }))
        .route("/v3/cluster/member/add", call(|e, request| async move { Cluster::member_add(&e, request).await }))
        .route("/v3/cluster/member/remove", call(|e, request| async move { Cluster::member_remove(&e, request).await }))
        .route("/v3/cluster/member/update", call(|e, request| async move { Cluster::member_update(&e, request).await }))
        .route(
            "/v3/cluster/member/promote",
            call(|e, request| async move { Cluster::member_promote(&e, request).await }),
        )
        .route("/v3/maintenance/alarm", call(|e, request| async move { Maintenance::alarm(&e, request).await }))
        .route("/v3/maintenance/status", call(|e, request| async move { Maintenance::status(&e, request).await }))
        .route(
            "/v3/maintenance/defragment",
            call(|e, request| async move { Maintenance::defragment(&e, request).await }),
        )
        .route("/v3/maintenance/hash", call(|e, request| async move { Maintenance::hash(&e, request).await }))
        .route("/v3/maintenance/hashkv", call(|e, request| async move { Maintenance::hash_kv(&e, request).await }))
        .route(
            "/v3/maintenance/transfer-leadership",
            call(|e, request| async move { Maintenance::move_leader(&e, request).await }),
        )
        .route("/v3/maintenance/downgrade", call(|e, request| async move { Maintenance::downgrade(&e, request).await }))
}

fn users_and_roles() -> Router<Etcd> {
    Router::new()
        .route("/v3/auth/status", call(|e, request| async move { Auth::auth_status(&e, request).await }))
        .route("/v3/auth/authenticate", call(|e, request| async move { Auth::authenticate(&e, request).await }))
        .route("/v3/auth/enable", call(|e, request| async move { Auth::auth_enable(&e, request).await }))
        .route("/v3/auth/disable", call(|e, request| async move { Auth::auth_disable(&e, request).await }))
        .route("/v3/auth/user/add", call(|e, request| async move { Auth::user_add(&e, request).await }))
        .route("/v3/auth/user/get", call(|e, request| async move { Auth::user_get(&e, request).await }))
        .route("/v3/auth/user/delete", call(|e, request| async move { Auth::user_delete(&e, request).await }))
        .route(
            "/v3/auth/user/changepw",
            call(|e, request| async move { Auth::user_change_password(&e, request).await }),
        )
        .route("/v3/auth/user/grant", call(|e, request| async move { Auth::user_grant_role(&e, request).await }))
        .route("/v3/auth/user/revoke", call(|e, request| async move { Auth::user_revoke_role(&e, request).await }))
        .route("/v3/auth/role/add", call(|e, request| async move { Auth::role_add(&e, request).await }))
        .route("/v3/auth/role/get", call(|e, request| async move { Auth::role_get(&e, request).await }))
        .route("/v3/auth/role/delete", call(|e, request| async move { Auth::role_delete(&e, request).await }))
        .route("/v3/auth/role/grant", call(|e, request| async move { Auth::role_grant_permission(&e, request).await }))
        .route(
            "/v3/auth/role/revoke",
            call(|e, request| async move { Auth::role_revoke_permission(&e, request).await }),
        )
        .route("/v3/auth/user/list", call(|e, request| async move { Auth::user_list(&e, request).await }))
        .route("/v3/auth/role/list", call(|e, request| async move { Auth::role_list(&e, request).await }))
}

fn locks_and_elections() -> Router<Etcd> {
    Router::new()
        .route("/v3/lock/lock", call(|e, request| async move { Lock::lock(&e, request).await }))
        .route("/v3/lock/unlock", call(|e, request| async move { Lock::unlock(&e, request).await }))
        .route("/v3/election/campaign", call(|e, request| async move { Election::campaign(&e, request).await }))
        .route("/v3/election/proclaim", call(|e, request| async move { Election::proclaim(&e, request).await }))
        .route("/v3/election/leader", call(|e, request| async move { Election::leader(&e, request).await }))
        .route("/v3/election/resign", call(|e, request| async move { Election::resign(&e, request).await }))
}

/// A call with one answer.
fn call<Req, Res, F, Fut>(method: F) -> MethodRouter<Etcd>
where
    Req: DeserializeOwned + prost::Message + Default + Send + 'static,
    Res: Serialize + 'static,
    F: Fn(Etcd, Request<Req>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Answer<Res>, Status>> + Send + 'static,
{
    post(move |State(etcd): State<Etcd>, headers: HeaderMap, body: Bytes| async move {
        let request = match read::<Req>(&body).and_then(fitting) {
            Ok(message) => request(message, &headers),
            Err(status) => return failure(&status),
        };
        match method(etcd, request).await.map(|answer| serde_json::to_vec(answer.get_ref())) {
            Ok(Ok(body)) => {
                ([(header::CONTENT_TYPE, "application/json"), (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*")], body)
                    .into_response()
            }
            Ok(Err(why)) => failure(&Status::internal(why.to_string())),
            Err(status) => failure(&status),
        }
    })
}

/// Refuses a message that gRPC would not take, in the words of Go's servers.
fn fitting<T: prost::Message>(message: T) -> Result<T, Status> {
    match message.encoded_len() {
        length if length > MESSAGE_MAX => Err(Status::resource_exhausted(format!(
            "grpc: received message larger than max ({length} vs. {MESSAGE_MAX})"
        ))),
        _ => Ok(message),
    }
}

/// Reads a message; no body at all is an empty message.
pub(super) fn read<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, Status> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|why| Status::invalid_argument(why.to_string()))
}

/// A message with what the headers say: `Grpc-Metadata-<name>` is metadata.
fn request<T>(message: T, headers: &HeaderMap) -> Request<T> {
    let mut request = Request::new(message);
    // The token is `authorization`, with or without the prefix.
    let names = [
        ("grpc-metadata-hasleader", "hasleader"),
        ("authorization", "authorization"),
        ("grpc-metadata-authorization", "authorization"),
        ("grpc-metadata-token", "token"),
    ];
    for (header, name) in names {
        if let Some(value) = headers.get(header).and_then(|value| value.to_str().ok())
            && let Ok(value) = value.parse()
        {
            request.metadata_mut().insert(name, value);
        }
    }
    request
}

/// Source: grpc-gateway, `HTTPStatusFromCode`.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn failure(status: &Status) -> Response {
    let body = json!({ "error": status.message(), "message": status.message(), "code": status.code() as i32 });
    (http_status(status.code()), axum::Json(body)).into_response()
}

/// A failure inside a stream: the fields of both generations of gateways.
fn stream_failure(status: &Status) -> Value {
    let http = http_status(status.code());
    let code = status.code() as i32;
    json!({ "error": {
        "code": code,
        "grpc_code": code,
        "http_code": http.as_u16(),
        "http_status": http.canonical_reason().unwrap_or_default(),
        "message": status.message(),
    }})
}

fn line(value: &Value) -> Result<Bytes, Infallible> {
    let mut text = value.to_string();
    text.push('\n');
    Ok(Bytes::from(text))
}

/// A stream of answers, a line each. A failure before the first one is the answer's status.
async fn streamed<T, S>(answers: S) -> Response
where
    T: Serialize + Send + 'static,
    S: Stream<Item = Result<T, Status>> + Send + Unpin + 'static,
{
    let mut answers = answers;
    let first = answers.next().await;
    let status = match &first {
        Some(Err(status)) => http_status(status.code()),
        Some(Ok(_)) | None => StatusCode::OK,
    };
    let lines = stream::iter(first).chain(answers).map(|answer| {
        let value = answer.and_then(|message| {
            let message = serde_json::to_value(&message).map_err(|why| Status::internal(why.to_string()))?;
            Ok(json!({ "result": message }))
        });
        line(&value.unwrap_or_else(|status| stream_failure(&status)))
    });
    let headers = [(header::CONTENT_TYPE, "application/json")];
    (status, headers, Body::from_stream(lines)).into_response()
}

/// Reads the requests that a body holds, one JSON object after the other.
fn read_all<T: DeserializeOwned>(body: &[u8]) -> Result<Vec<T>, Status> {
    serde_json::Deserializer::from_slice(body)
        .into_iter()
        .collect::<Result<Vec<T>, _>>()
        .map_err(|why| Status::invalid_argument(why.to_string()))
}

async fn watch(State(etcd): State<Etcd>, headers: HeaderMap, body: Bytes) -> Response {
    let requests = match read_all::<pb::WatchRequest>(&body) {
        Ok(requests) => requests,
        Err(status) => return failure(&status),
    };
    let request = request((), &headers);
    let needs_leader = match etcd.require_leader(request.metadata()) {
        Ok(needs_leader) => needs_leader,
        Err(status) => return failure(&status),
    };
    match etcd.caller(request.metadata()).await {
        Ok(caller) => {
            let requests = stream::iter(requests.into_iter().map(Ok));
            streamed(etcd.watch_stream(requests, needs_leader, caller)).await
        }
        Err(status) => failure(&status),
    }
}

async fn keep_alive(State(etcd): State<Etcd>, headers: HeaderMap, body: Bytes) -> Response {
    let requests = match read_all::<pb::LeaseKeepAliveRequest>(&body) {
        Ok(requests) => requests,
        Err(status) => return failure(&status),
    };
    let caller = match etcd.somebody(request((), &headers).metadata()).await {
        Ok(caller) => caller,
        Err(status) => return failure(&status),
    };
    let answers = stream::iter(requests).then(move |request| {
        let (etcd, caller) = (etcd.clone(), caller.clone());
        async move { etcd.keep_alive(&caller, request).await }
    });
    streamed(answers.boxed()).await
}

async fn snapshot(State(etcd): State<Etcd>, headers: HeaderMap) -> Response {
    match Maintenance::snapshot(&etcd, request(pb::SnapshotRequest {}, &headers)).await {
        Ok(pieces) => streamed(pieces.into_inner()).await,
        Err(status) => failure(&status),
    }
}

async fn observe(State(etcd): State<Etcd>, headers: HeaderMap, body: Bytes) -> Response {
    let message = match read(&body) {
        Ok(message) => message,
        Err(status) => return failure(&status),
    };
    match Election::observe(&etcd, request(message, &headers)).await {
        Ok(leaders) => streamed(leaders.into_inner()).await,
        Err(status) => failure(&status),
    }
}

async fn not_found() -> Response {
    failure(&Status::not_found("Not Found"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_in_every_spelling() {
        let expected = pb::RangeRequest {
            key: b"foo?".to_vec(),
            limit: 5,
            sort_order: pb::range_request::SortOrder::Descend.into(),
            keys_only: true,
            ..pb::RangeRequest::default()
        };
        for text in [
            r#"{"key": "Zm9vPw==", "limit": "5", "sort_order": "DESCEND", "keys_only": true}"#,
            r#"{"key": "Zm9vPw", "limit": 5, "sortOrder": 2, "keysOnly": true, "unknown": [1]}"#,
        ] {
            assert_eq!(read::<pb::RangeRequest>(text.as_bytes()).unwrap(), expected, "{text}");
        }
        assert_eq!(read::<pb::RangeRequest>(b" \n").unwrap(), pb::RangeRequest::default());
        let bad = read::<pb::RangeRequest>(br#"{"key": "!"}"#).unwrap_err();
        assert_eq!(bad.code(), Code::InvalidArgument);
    }

    #[test]
    fn answers_leave_zeros_out() {
        let header = pb::ResponseHeader { cluster_id: 1, member_id: u64::MAX, revision: 7, raft_term: 2 };
        let dead = pb::LeaseKeepAliveResponse { header: Some(header), id: 777, ttl: 0 };
        assert_eq!(
            serde_json::to_value(dead).unwrap(),
            json!({"header": {"cluster_id": "1", "member_id": "18446744073709551615", "revision": "7", "raft_term": "2"},
                   "ID": "777"}),
        );
    }
}
