//! The REST interface over a socket, as load balancers and scripts use it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::fake_node::{FakeNode, Guard, ask, exchange, nothing};

#[tokio::test]
async fn probes() {
    let node = FakeNode::start(|_| {}).await;
    let cases = [
        ("GET", "/replica", 200),
        ("GET", "//replica", 200),
        ("GET", "/replica?lag=16MB&tag_zone=b", 200),
        ("GET", "/sync", 200),
        ("GET", "/leader", 503),
        ("GET", "//leader", 503),
        ("GET", "/", 503),
        ("GET", "/nonsense", 503),
        ("HEAD", "/replica", 200),
        ("OPTIONS", "/", 503),
        ("OPTIONS", "/replica", 200),
        ("GET", "/liveness", 200),
        ("HEAD", "/liveness", 503),
        ("GET", "/readiness", 200),
        ("GET", "/patroni", 200),
        ("GET", "/cluster", 200),
        ("GET", "/history", 200),
        ("GET", "/config", 200),
        ("GET", "/failsafe", 502),
        ("GET", "/metrics", 200),
        ("GET", "/howdah", 200),
        ("GET", "/raft/members", 200),
        ("POST", "/nonsense", 501),
        ("PUT", "/leader", 501),
        ("DELETE", "/restart", 404),
        ("POST", "/failsafe", 502),
    ];
    for (method, target, status) in cases {
        assert_eq!(ask(node.port, method, target, None).await.0, status, "{method} {target}");
    }
    let (_, _, body) = exchange(node.port, "OPTIONS /replica HTTP/1.0\r\n\r\n").await;
    assert_eq!(body, "", "HAProxy's check, in its oldest form");
    let (_, body) = ask(node.port, "GET", "/nonsense", None).await;
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["patroni"]["name"], "n2");
}

#[tokio::test]
async fn before_the_store_was_read() {
    let node = FakeNode::start(|snapshot| snapshot.cluster = None).await;
    for (target, status) in [("/cluster", 503), ("/history", 503), ("/config", 502), ("/patroni", 200), ("/async", 503)]
    {
        assert_eq!(ask(node.port, "GET", target, None).await.0, status, "{target}");
    }
    assert_eq!(ask(node.port, "PATCH", "/config", Some(json!({"ttl": 6}))).await.0, 503);
}

#[tokio::test]
async fn settings_are_checked_before_anybody_is_asked() {
    let node = FakeNode::start(|_| {}).await;
    let (status, text) = ask(node.port, "PATCH", "/config", Some(json!({"ttl": 2}))).await;
    assert_eq!(status, 400);
    assert!(text.starts_with("ttl: loop_wait + 2*retry_timeout <= ttl (rule C1) does not hold"), "{text}");
    let (status, text) = ask(node.port, "PUT", "/config", Some(json!({"tttl": 2}))).await;
    assert_eq!((status, text.as_str()), (400, "tttl: unknown key; did you mean ttl?"));
    assert!(node.calls().is_empty());
    let (status, text) = ask(node.port, "PATCH", "/config", Some(json!({"ttl": 6, "loop_wait": null}))).await;
    assert_eq!(status, 200);
    assert_eq!(
        serde_json::from_str::<Value>(&text).unwrap(),
        json!({"ttl": 6, "retry_timeout": 2, "synchronous_mode": "on"})
    );
    assert_eq!(ask(node.port, "GET", "/config", None).await.1, text, "and it is what is read from now on");
}

#[tokio::test]
async fn switchover_codes() {
    let node = FakeNode::start(|_| {}).await;
    let cases = [
        (Some(json!({"leader": "n1", "candidate": "n2"})), 200, "Successfully switched over to \"n2\""),
        (Some(json!({"leader": "n2", "scheduled_at": "2999-01-01T00:00+00:00"})), 202, "Switchover scheduled"),
        (Some(nothing()), 400, "a switchover starts from a named leader; send leader"),
        (Some(json!([])), 400, "the body is JSON, but no object; send {...}"),
        (None, 400, "the body is empty; send a JSON object"),
        (Some(json!({"leader": "n1"})), 412, "the leader is n2, not n1; name n2 as leader"),
    ];
    for (body, status, text) in cases {
        assert_eq!(ask(node.port, "POST", "/switchover", body).await, (status, text.to_owned()));
    }
}

#[tokio::test]
async fn bodies_that_are_too_large_are_refused() {
    let node = FakeNode::start(|_| {}).await;
    let body = format!("{{\"a\": \"{}\"}}", "x".repeat(2 << 20));
    let mut stream = TcpStream::connect(("127.0.0.1", node.port)).await.unwrap();
    let head =
        format!("PUT /config HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server answers before it has read everything, and may then close.
    let _ = stream.write_all(body.as_bytes()).await;
    let mut start = [0u8; 12];
    timeout(Duration::from_secs(20), stream.read_exact(&mut start)).await.unwrap().unwrap();
    assert_eq!(&start, b"HTTP/1.1 400");
    assert!(node.calls().is_empty());
}

#[tokio::test]
async fn a_password_is_asked_for_changes_only() {
    let node = FakeNode::guarded(Guard { password: Some("s3cret"), ..Guard::default() }, |_| {}).await;
    let post = |authorization: &str| {
        let head = "POST /reload HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n";
        format!("{head}{authorization}\r\n")
    };
    let (status, head, _) = exchange(node.port, &post("")).await;
    assert_eq!(status, 401);
    assert!(head.contains("www-authenticate: basic realm=\"patroni\""), "{head}");
    // howdah:wrong, howdah:s3cret
    assert_eq!(exchange(node.port, &post("Authorization: Basic aG93ZGFoOndyb25n\r\n")).await.0, 401);
    assert_eq!(exchange(node.port, &post("Authorization: Bearer aG93ZGFoOnMzY3JldA==\r\n")).await.0, 401);
    assert_eq!(exchange(node.port, &post("Authorization: Basic aG93ZGFoOnMzY3JldA==\r\n")).await.0, 202);
    assert_eq!(ask(node.port, "GET", "/patroni", None).await.0, 200);
    assert_eq!(node.calls(), ["reload"]);
}

#[tokio::test]
async fn an_allow_list_comes_before_the_password() {
    let list = |allowlist: &[&'static str], include_members| Guard {
        password: Some("s3cret"),
        allowlist: allowlist.to_vec(),
        include_members,
    };
    for (guard, status) in [
        (list(&["10.0.0.0/8"], false), 403),
        (list(&["127.0.0.0/8"], false), 401),
        (list(&["10.0.0.0/8", "localhost"], false), 401),
        (list(&[], true), 401),
        (list(&[], false), 401),
    ] {
        let node = FakeNode::guarded(guard, |_| {}).await;
        assert_eq!(ask(node.port, "POST", "/reload", None).await.0, status);
        assert_eq!(ask(node.port, "GET", "/replica", None).await.0, 200);
    }
}

#[tokio::test]
async fn both_versions_of_http_and_keep_alive() {
    use http_body_util::{BodyExt, Empty};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let node = FakeNode::start(|_| {}).await;
    let stream = TcpStream::connect(("127.0.0.1", node.port)).await.unwrap();
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for target in ["/replica", "/patroni"] {
        let uri = format!("http://127.0.0.1:{}{target}", node.port);
        let request = hyper::Request::get(uri).body(Empty::<bytes::Bytes>::new()).unwrap();
        let response = send.send_request(request).await.unwrap();
        assert_eq!((response.version(), response.status().as_u16()), (hyper::Version::HTTP_2, 200));
        assert!(!response.into_body().collect().await.unwrap().to_bytes().is_empty());
    }
    let mut stream = TcpStream::connect(("127.0.0.1", node.port)).await.unwrap();
    for _ in 0..3 {
        stream.write_all(b"HEAD /replica HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(timeout(Duration::from_secs(20), stream.read_u8()).await.unwrap().unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
    }
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let node = FakeNode::start(|_| {}).await;
    let addresses = format!("127.0.0.1:{}", node.port).parse().unwrap();
    let error = howdah::api::server::listen(&addresses, "restapi.listen").await.expect_err("in use");
    let said =
        format!("listen on 127.0.0.1:{}: the port is in use; stop what uses it, or change restapi.listen", node.port);
    assert_eq!(error.to_string(), said);
}
