//! What etcd serves besides its API: version, health checks, metrics.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;

use super::{Etcd, MINOR_VERSION, VERSION};
use crate::raft::{PeerTally, Tally};
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
    let tally = etcd.store.tally();
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    page.counter("etcd_server_leader_changes_seen_total", "Leaders seen.", load(&tally.leader_changes));
    page.gauge("etcd_server_proposals_pending", "Changes that the leader is working on.", load(&tally.pending));
    page.counter("etcd_server_proposals_failed_total", "Changes that failed at the leader.", load(&tally.failed));
    page.gauge("etcd_server_proposals_committed_total", "Index of the log.", status.last_log.unwrap_or(0));
    page.gauge("etcd_server_proposals_applied_total", "Index of the last applied entry.", status.applied.unwrap_or(0));
    page.gauge("etcd_mvcc_db_total_size_in_bytes", "Size of the data.", size);
    page.gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Size of the data in use.", size);
    page.gauge("etcd_server_quota_backend_bytes", "Size that the data may have.", etcd.quota);
    page.gauge("etcd_debugging_mvcc_current_revision", "Revision of the store.", revision);
    page.gauge("etcd_debugging_mvcc_compact_revision", "Oldest revision that can be read.", compacted);
    page.header("etcd_server_version", "Which version is served.", MetricKind::Gauge);
    page.sample("etcd_server_version", &[("server_version", VERSION)], 1);
    page.header("etcd_cluster_version", "Which version the cluster serves.", MetricKind::Gauge);
    page.sample("etcd_cluster_version", &[("cluster_version", "3.6")], 1);
    page.header("etcd_server_id", "This member.", MetricKind::Gauge);
    page.sample("etcd_server_id", &[("server_id", &format!("{:x}", status.id.map_or(0, |id| id.0)))], 1);
    // There is one commit point: what is appended is what is committed.
    for name in ["etcd_disk_wal_fsync_duration_seconds", "etcd_disk_backend_commit_duration_seconds"] {
        page.header(name, "How long the log's syncs took.", MetricKind::Histogram);
        page.histogram(name, &[], etcd.store.syncs());
    }
    show_peers(&mut page, tally);
    etcd.traffic.show(&mut page);
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], page.finish()).into_response()
}

/// Traffic between members, over the connections that this one makes.
fn show_peers(page: &mut MetricsText, tally: &Tally) {
    let peers: Vec<(String, Arc<PeerTally>)> =
        tally.peers().into_iter().filter(|(id, _)| *id != 0).map(|(id, peer)| (format!("{id:x}"), peer)).collect();
    let mut counters = |name: &str, help: &str, label: &str, of: fn(&PeerTally) -> &AtomicU64| {
        page.header(name, help, MetricKind::Counter);
        for (id, peer) in &peers {
            page.sample(name, &[(label, id)], of(peer).load(Ordering::Relaxed));
        }
    };
    counters("etcd_network_peer_sent_bytes_total", "Bytes of requests to a member.", "To", |peer| &peer.sent);
    counters("etcd_network_peer_received_bytes_total", "Bytes of a member's answers.", "From", |peer| &peer.received);
    let lost = "Requests to a member that failed.";
    counters("etcd_network_peer_sent_failures_total", lost, "To", |peer| &peer.failures);
    let name = "etcd_network_peer_round_trip_time_seconds";
    page.header(name, "From a request to a member until its answer.", MetricKind::Histogram);
    for (id, peer) in &peers {
        page.histogram(name, &[("To", id)], &peer.round_trips);
    }
}

/// Any other path. Source: Go's HTTP server, which etcd uses.
pub async fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "404 page not found\n").into_response()
}
