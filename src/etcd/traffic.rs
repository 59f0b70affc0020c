//! Counts gRPC calls and bytes, and words one refusal as Go's servers do.
//!
//! A call is counted as handled when its answer has ended, with the code that it ended with; a client that hangs up
//! ends it as cancelled. So open watches are what was started and not handled yet, as dashboards expect.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt;
use tonic::Code;

use super::{Etcd, MESSAGE_MAX};
use crate::kv::Error;
use crate::telemetry::metrics::{MetricKind, MetricsText};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Names that are counted. Clients choose them, and what is not served is answered, too.
const METHODS: usize = 128;

/// What clients have done so far.
#[derive(Default)]
pub struct Traffic {
    /// By path: `/service/method`.
    calls: RwLock<BTreeMap<Box<str>, Arc<Calls>>>,
    received: AtomicU64,
    sent: AtomicU64,
}

/// Calls of one method.
#[derive(Default)]
struct Calls {
    started: AtomicU64,
    /// By code.
    handled: [AtomicU64; 17],
}

/// etcd's name for a code. Source: grpc-go, `codes.Code.String`.
fn name(code: i32) -> String {
    match Code::from_i32(code) {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    }
}

fn kind(method: &str) -> &'static str {
    match method {
        "Watch" | "LeaseKeepAlive" => "bidi_stream",
        "Snapshot" | "Observe" => "server_stream",
        _ => "unary",
    }
}

impl Traffic {
    fn calls(&self, path: &str) -> Arc<Calls> {
        let known = self.calls.read().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
        known.unwrap_or_else(|| {
            let mut calls = self.calls.write().unwrap_or_else(PoisonError::into_inner);
            if calls.len() >= METHODS { Arc::default() } else { Arc::clone(calls.entry(path.into()).or_default()) }
        })
    }

    /// Writes the counts.
    pub fn show(&self, page: &mut MetricsText) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let calls = self.calls.read().unwrap_or_else(PoisonError::into_inner);
        let named = || {
            calls.iter().filter_map(|(path, calls)| {
                let (service, method) = path.trim_start_matches('/').split_once('/')?;
                Some((service, method, calls))
            })
        };
        page.header("grpc_server_started_total", "Calls that were started.", MetricKind::Counter);
        for (service, method, calls) in named() {
            let labels = [("grpc_method", method), ("grpc_service", service), ("grpc_type", kind(method))];
            page.sample("grpc_server_started_total", &labels, load(&calls.started));
        }
        page.header("grpc_server_handled_total", "Calls that have ended, by their code.", MetricKind::Counter);
        for (service, method, calls) in named() {
            for (code, count) in (0..).zip(&calls.handled).filter(|(_, count)| load(count) > 0) {
                let code = name(code);
                let labels = [
                    ("grpc_code", code.as_str()),
                    ("grpc_method", method),
                    ("grpc_service", service),
                    ("grpc_type", kind(method)),
                ];
                page.sample("grpc_server_handled_total", &labels, load(count));
            }
        }
        let received = "Bytes of gRPC messages from clients.";
        page.counter("etcd_network_client_grpc_received_bytes_total", received, load(&self.received));
        let sent = "Bytes of gRPC messages to clients.";
        page.counter("etcd_network_client_grpc_sent_bytes_total", sent, load(&self.sent));
    }
}

/// One call until it ends.
struct Call {
    etcd: Etcd,
    calls: Arc<Calls>,
    code: Code,
}

impl Call {
    fn ends(&mut self, fields: &HeaderMap) {
        if let Some(status) = fields.get(STATUS) {
            self.code = Code::from_bytes(status.as_bytes());
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.calls.handled[self.code as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// A message that is too large, or none: Go's servers have other codes and texts for that than tonic.
fn reworded(fields: &mut HeaderMap) {
    let unimplemented = fields.get(STATUS).is_some_and(|code| code == "12") && !fields.contains_key(MESSAGE);
    if unimplemented {
        return reword(fields, Code::Unimplemented, "etcdserver:%20not%20supported");
    }
    let Some(text) = fields.get(MESSAGE).and_then(|text| text.to_str().ok()) else { return };
    if let Some((_, why)) = text.split_once("failed%20to%20decode%20Protobuf%20message:%20") {
        // Only transactions can be nested: the reader has a limit of its own, below the one for operations.
        let (code, text) = if why.contains("recursion%20limit%20reached") {
            (Code::InvalidArgument, Error::TooManyOps.to_string().replace(' ', "%20"))
        } else {
            (Code::Internal, format!("grpc:%20error%20unmarshalling%20request:%20{why}"))
        };
        return reword(fields, code, &text);
    }
    // "Error, decoded message length too large: found 2300010 bytes, the limit is: 2097152 bytes"
    let found = text.contains("message%20length%20too%20large").then(|| text.split("found%20").nth(1)).flatten();
    let Some(found) = found.and_then(|rest| rest.split("%20").next()).and_then(|found| found.parse::<u64>().ok())
    else {
        return;
    };
    reword(
        fields,
        Code::ResourceExhausted,
        &format!("grpc: received message larger than max ({found} vs. {MESSAGE_MAX})"),
    );
}

fn reword(fields: &mut HeaderMap, code: Code, text: &str) {
    if let Ok(text) = HeaderValue::from_str(text) {
        fields.insert(STATUS, HeaderValue::from(code as i32));
        fields.insert(MESSAGE, text);
    }
}

/// Watches one call.
pub async fn layer(State(etcd): State<Etcd>, request: Request, next: Next) -> Response {
    let calls = etcd.traffic.calls(request.uri().path());
    calls.started.fetch_add(1, Ordering::Relaxed);
    let counted = {
        let etcd = etcd.clone();
        request.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let length = frame.data_ref().map_or(0, axum::body::Bytes::len);
                etcd.traffic.received.fetch_add(length as u64, Ordering::Relaxed);
                frame
            }))
        })
    };
    let mut call = Call { etcd, calls, code: Code::Cancelled };
    let mut response = next.run(counted).await;
    reworded(response.headers_mut());
    call.ends(response.headers());
    response.map(|body| {
        Body::new(body.map_frame(move |mut frame| {
            if let Some(data) = frame.data_ref() {
                call.etcd.traffic.sent.fetch_add(data.len() as u64, Ordering::Relaxed);
            } else if let Some(trailers) = frame.trailers_mut() {
                reworded(trailers);
                call.ends(trailers);
            }
            frame
        }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_too_large_is_refused_in_gos_words() {
        let status = tonic::Status::out_of_range(
            "Error, decoded message length too large: found 2300010 bytes, the limit is: 2097152 bytes",
        );
        let mut fields = status.into_http::<Body>().headers().clone();
        reworded(&mut fields);
        assert_eq!(fields[STATUS], "8");
        assert_eq!(fields[MESSAGE], "grpc: received message larger than max (2300010 vs. 2097152)");
        let other = tonic::Status::out_of_range("etcdserver: mvcc: required revision has been compacted");
        let mut fields = other.into_http::<Body>().headers().clone();
        let before = fields.clone();
        reworded(&mut fields);
        assert_eq!(fields, before);
    }

    #[test]
    fn codes_have_gos_names() {
        assert_eq!([0, 1, 5, 14].map(name), ["OK", "Canceled", "NotFound", "Unavailable"]);
    }
}
