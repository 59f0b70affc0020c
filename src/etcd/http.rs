//! What etcd serves besides its API: version, health checks, metrics.

use std::fmt::Write as _;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;

use super::{Etcd, MINOR_VERSION, VERSION};
use crate::telemetry::metrics::{CONTENT_TYPE, MetricKind, MetricsText};

/// `GET /version`, for any listener.
pub fn version_route() -> Router {
    Router::new().route("/version", get(version))
}

/// Health checks and metrics, for a listener of etcd's own.
pub fn probe_routes(etcd: Etcd) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/readyz/{check}", get(ready_check))
        .route("/metrics", get(metrics))
        .with_state(etcd)
}

async fn version() -> Response {
    axum::Json(json!({"etcdserver": VERSION, "etcdcluster": MINOR_VERSION, "storage": MINOR_VERSION})).into_response()
}

/// Whether a query has a flag, as `serializable=true`.
fn flag(query: Option<&str>, name: &str) -> bool {
    query.unwrap_or_default().split('&').any(|pair| pair == format!("{name}=true"))
}

async fn health(State(etcd): State<Etcd>, RawQuery(query): RawQuery) -> Response {
    let excluded = query.as_deref().unwrap_or_default().split('&').any(|pair| pair == "exclude=NOSPACE");
    let why = if etcd.is_full() && !excluded {
        Some("ALARM NOSPACE".to_owned())
    } else if flag(query.as_deref(), "serializable") {
        None
    } else if !etcd.store.vitals().has_leader {
        Some("RAFT NO LEADER".to_owned())
    } else {
        etcd.linearize().await.err().map(|status| format!("RANGE ERROR:{}", status.message()))
    };
    let status = if why.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // Both are texts. Source: etcd.
    let body = json!({"health": why.is_none().to_string(), "reason": why.unwrap_or_default()});
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body.to_string()).into_response()
}

/// Checks by name with what is wrong, in etcd's form.
fn checks(results: &[(&str, Option<String>)], verbose: bool) -> Response {
    let failed = results.iter().any(|(_, why)| why.is_some());
    if !failed && !verbose {
        return (StatusCode::OK, "ok\n").into_response();
    }
    let mut text = String::new();
    for (name, why) in results {
        let _ = match why {
            None => writeln!(text, "[+]{name} ok"),
            Some(why) => writeln!(text, "[-]{name} failed: {why}"),
        };
    }
    text.push_str(if failed { "check failed\n" } else { "ok\n" });
    let status = if failed { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (status, text).into_response()
}

async fn livez(RawQuery(query): RawQuery) -> Response {
    checks(&[("serializable_read", None)], is_verbose(query.as_deref()))
}

fn is_verbose(query: Option<&str>) -> bool {
    query.unwrap_or_default().split('&').any(|pair| pair.split('=').next() == Some("verbose"))
}

impl Etcd {
    async fn readiness(&self) -> Vec<(&'static str, Option<String>)> {
        let read = self.linearize().await.err().map(|status| status.message().to_owned());
        let status = self.store.status();
        let votes = status.voters.iter().any(|member| Some(member.id) == status.id);
        let learner = (!votes).then(|| "the member does not vote yet".to_owned());
        vec![
            ("data_corruption", None),
            ("serializable_read", None),
            ("linearizable_read", read),
            ("non_learner", learner),
        ]
    }
}

async fn readyz(State(etcd): State<Etcd>, RawQuery(query): RawQuery) -> Response {
    checks(&etcd.readiness().await, is_verbose(query.as_deref()))
}

async fn ready_check(State(etcd): State<Etcd>, Path(check): Path<String>) -> Response {
    let all = etcd.readiness().await;
    match all.into_iter().find(|(name, _)| *name == check) {
        Some(result) => checks(&[result], false),
        None => not_found().await,
    }
}

/// The figures that this node has, under etcd's names.
async fn metrics(State(etcd): State<Etcd>) -> Response {
    let status = etcd.store.status();
    let (size, revision, compacted) =
        etcd.store.read(|state| (state.size_bytes(), state.revision(), state.compact_revision()));
    let leads = status.leader.as_ref().map(|(id, _)| *id) == status.id && status.id.is_some();
    let mut page = MetricsText::new(&[]);
    page.gauge("etcd_server_has_leader", "Whether a leader is known.", u8::from(status.leader.is_some()));
    page.gauge("etcd_server_is_leader", "Whether this member leads.", u8::from(leads));
    page.gauge("etcd_server_proposals_committed_total", "Index of the log.", status.last_log.unwrap_or(0));
    page.gauge("etcd_server_proposals_applied_total", "Index of the last applied entry.", status.applied.unwrap_or(0));
    page.gauge("etcd_mvcc_db_total_size_in_bytes", "Size of the data.", size);
    page.gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Size of the data in use.", size);
    page.gauge("etcd_server_quota_backend_bytes", "Size that the data may have.", etcd.quota);
    page.gauge("etcd_debugging_mvcc_current_revision", "Revision of the store.", revision);
    page.gauge("etcd_debugging_mvcc_compact_revision", "Oldest revision that can be read.", compacted);
    page.header("etcd_server_version", "Which version is served.", MetricKind::Gauge);
    page.sample("etcd_server_version", &[("server_version", VERSION)], 1);
    etcd.traffic.show(&mut page);
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], page.finish()).into_response()
}

/// Any other path. Source: Go's HTTP server, which etcd uses.
pub async fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "404 page not found\n").into_response()
}
