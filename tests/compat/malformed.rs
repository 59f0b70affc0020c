//! What a client should not send, and very much of what it may: answered with etcd's errors, and nothing is harmed.

use std::time::Duration;

use etcd_client::Client;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioExecutor;
use serde_json::json;

use crate::nodes::{Nodes, post, send, shared};

/// A gRPC message with its head: not compressed, and so long.
fn framed(message: &[u8]) -> Vec<u8> {
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend(message);
    frame
}

/// One gRPC call with these very bytes; code and text of the answer.
async fn call(address: &str, method: &str, bytes: Vec<u8>) -> (i32, String) {
    let client =
        hyper_util::client::legacy::Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Full<Bytes>>();
    let request = hyper::Request::post(format!("http://{address}/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from(bytes)))
        .unwrap();
    let response = tokio::time::timeout(Duration::from_secs(30), client.request(request)).await.unwrap().unwrap();
    let mut fields = response.headers().clone();
    if let Some(trailers) = response.into_body().collect().await.unwrap().trailers() {
        fields.extend(trailers.clone());
    }
    let text = |name: &str| fields.get(name).map_or(String::new(), |value| value.to_str().unwrap().to_owned());
    (text("grpc-status").parse().unwrap(), text("grpc-message").replace("%20", " "))
}

/// A field of a protobuf message that holds bytes.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut length = content.len();
    let mut bytes = vec![number << 3 | 2];
    while length >= 0x80 {
        bytes.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        length >>= 7;
    }
    bytes.push(u8::try_from(length).unwrap());
    bytes.extend(content);
    bytes
}

/// Transactions in transactions: `success` (2) holds operations, whose fourth kind is a transaction.
fn nested(depth: usize) -> Vec<u8> {
    (0..depth).fold(Vec::new(), |inner, _| field(2, &field(4, &inner)))
}

async fn works(nodes: &Nodes) {
    for node in 0..3 {
        let (status, answer) = post(&nodes.main_port(node), "/v3/kv/range", &json!({"key": "eA=="})).await;
        assert_eq!(status, 200, "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_messages_are_refused_in_gos_words() {
    let nodes = tokio::task::spawn_blocking(shared).await.unwrap();
    let address = nodes.etcd_port(0);
    // A key that claims to be longer than the message.
    let (code, text) = call(&address, "etcdserverpb.KV/Range", framed(&[0x0a, 0x7f, b'x'])).await;
    assert!(code == 13 && text.starts_with("grpc: error unmarshalling request: "), "{code} {text}");
    // A message that ends before its announced length.
    let mut cut = framed(&field(1, b"foo"));
    cut.truncate(7);
    let (code, _) = call(&address, "etcdserverpb.KV/Range", cut).await;
    assert!(code != 0, "half a message is none");
    let (code, text) = call(&address, "etcdserverpb.KV/Put", framed(&vec![0; 2_300_000])).await;
    assert_eq!((code, text.as_str()), (8, "grpc: received message larger than max (2300000 vs. 2097152)"));
    let (code, text) = call(&address, "etcdserverpb.KV/Put", vec![0, 0xff, 0xff, 0xff, 0xff]).await;
    assert_eq!((code, text.as_str()), (8, "grpc: received message larger than max (4294967295 vs. 2097152)"));
    let (code, text) = call(&address, "etcdserverpb.KV/RangeStream", framed(&[])).await;
    assert_eq!((code, text.as_str()), (12, "etcdserver: not supported"));
    for depth in [100, 1_000, 100_000] {
        let (code, text) = call(&address, "etcdserverpb.KV/Txn", framed(&nested(depth))).await;
        assert_eq!((code, text.as_str()), (3, "etcdserver: too many operations in txn request"), "{depth}");
    }
    let (code, text) = call(&address, "etcdserverpb.KV/Txn", framed(&nested(3))).await;
    assert_eq!((code, text.as_str()), (0, ""));
    works(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_json_is_refused() {
    let nodes = tokio::task::spawn_blocking(shared).await.unwrap();
    let address = nodes.main_port(1);
    let bomb = format!("{}{}", "{\"success\":[{\"request_txn\":".repeat(5_000), "}]}".repeat(5_000));
    for body in ["{", "[]", "\"x\"", r#"{"key": "!"}"#, r#"{"key": 5}"#, r#"{"limit": "ten"}"#, "\u{feff}{}", &bomb] {
        let (status, answer) = send(&address, "POST", "/v3/kv/txn", body.to_owned()).await;
        let (range_status, _) = send(&address, "POST", "/v3/kv/range", body.to_owned()).await;
        assert!(status == 400 || range_status == 400, "{}: {status} {answer}", &body[..body.len().min(80)]);
        assert!(status == 200 || answer["code"] == 3, "{answer}");
    }
    for (path, body, error) in [
        ("kv/compaction", json!({"revision": "-1"}), "etcdserver: mvcc: required revision has been compacted"),
        (
            "kv/range",
            json!({"key": "eA==", "revision": i64::MAX}),
            "etcdserver: mvcc: required revision is a future revision",
        ),
        ("lease/revoke", json!({"ID": "-1"}), "etcdserver: requested lease not found"),
        ("kv/put", json!({"key": ""}), "etcdserver: key is not provided"),
    ] {
        let (status, answer) = post(&address, &format!("/v3/{path}"), &body).await;
        assert!(status >= 400 && answer["error"] == error, "{path}: {status} {answer}");
    }
    let (status, answer) = post(&address, "/v3/kv/range", &json!({"key": "eA==", "revision": "-5"})).await;
    assert_eq!(status, 200, "what is negative is the present: {answer}");
    works(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_streams_are_no_burden() {
    const STREAMS: usize = 10_000;
    let nodes = tokio::task::spawn_blocking(Nodes::start).await.unwrap();
    let mut client = Client::connect([nodes.etcd_port(0)], None).await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = client.watch("idle", None).await.unwrap();
        assert!(stream.message().await.unwrap().unwrap().created());
        streams.push(stream);
    }
    works(&nodes).await;
    client.put("busy", "1", None).await.unwrap();
    client.put("idle", "1", None).await.unwrap();
    for stream in &mut streams {
        let answer = stream.message().await.unwrap().unwrap();
        assert_eq!(answer.events()[0].kv().unwrap().key(), b"idle");
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", nodes.pids()[0])).unwrap();
    let resident = status.lines().find(|line| line.starts_with("VmRSS")).unwrap().to_owned();
    println!("{STREAMS} streams: {resident}");
    drop(streams);
    works(&nodes).await;
}
