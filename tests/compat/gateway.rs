//! The JSON gateway: the semantics that were probed on a real etcd, and the shape of its answers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::nodes::{Nodes, post, send, shared};

fn b64(text: impl AsRef<[u8]>) -> String {
    STANDARD.encode(text)
}

/// A store that nobody else writes to, and what it answers.
struct Probe {
    nodes: Nodes,
    /// Its revision when the probe began, minus one: etcd's own begins at 1.
    base: i64,
}

impl Probe {
    async fn start() -> Self {
        let nodes = tokio::task::spawn_blocking(Nodes::start).await.unwrap();
        let mut probe = Self { nodes, base: 0 };
        let (_, answer) = probe.ask("kv/range", json!({"key": b64("a")})).await;
        probe.base = revision(&answer) - 1;
        probe
    }

    async fn ask(&self, path: &str, body: Value) -> (u16, Value) {
        // Each request goes to another node: all of them are etcd.
        let node = path.len() % 3;
        post(&self.nodes.main_port(node), &format!("/v3/{path}"), &body).await
    }

    async fn ok(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.ask(path, body.clone()).await;
        assert_eq!(status, 200, "{path} {body}: {answer}");
        answer
    }

    /// Status, gRPC code and text of a refusal; all three error bodies agree.
    async fn refused(&self, path: &str, body: Value) -> (u16, i64, String) {
        let (status, answer) = self.ask(path, body.clone()).await;
        assert_ne!(status, 200, "{path}: {answer}");
        assert_eq!(answer["error"], answer["message"]);
        (status, answer["code"].as_i64().unwrap(), answer["error"].as_str().unwrap().to_owned())
    }

    async fn put(&self, key: &str, value: &str) -> i64 {
        self.rev(&self.ok("kv/put", json!({"key": b64(key), "value": b64(value)})).await)
    }

    /// The revision, as etcd would count it.
    fn rev(&self, answer: &Value) -> i64 {
        revision(answer) - self.base
    }

    async fn now(&self) -> i64 {
        self.rev(&self.ok("kv/range", json!({"key": b64("a")})).await)
    }
}

fn revision(answer: &Value) -> i64 {
    answer["header"]["revision"].as_str().unwrap_or_else(|| panic!("{answer}")).parse().unwrap()
}

fn puts(count: usize) -> Vec<Value> {
    (0..count).map(|n| json!({"request_put": {"key": b64(format!("k{n:03}")), "value": b64("v")}})).collect()
}

fn keys(answer: &Value) -> Vec<String> {
    let text = |kv: &Value| String::from_utf8(STANDARD.decode(kv["key"].as_str().unwrap()).unwrap()).unwrap();
    answer["kvs"].as_array().map(|kvs| kvs.iter().map(text).collect()).unwrap_or_default()
}

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const FUTURE: &str = "etcdserver: mvcc: required revision is a future revision";

/// In the order in which they were probed: each builds on what those before have left.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_fresh_etcd_answered() {
    let etcd = Probe::start().await;
    // An empty store; nothing is zero, everything is absent.
    let answer = etcd.ok("kv/range", json!({"key": b64("a")})).await;
    assert_eq!(answer.as_object().unwrap().keys().collect::<Vec<_>>(), ["header"]);
    // Comparing with what is not there.
    for (compare, expected) in [
        (json!({"target": "VALUE", "result": "NOT_EQUAL", "key": b64("nx"), "value": b64("x")}), false),
        (json!({"target": "VALUE", "key": b64("nx"), "value": ""}), false),
        (json!({"target": "VERSION", "key": b64("nx"), "version": "0"}), true),
        (json!({"target": "LEASE", "key": b64("nx"), "lease": 0}), true),
        (json!({"target": "CREATE", "key": b64("nx"), "range_end": b64("ny"), "create_revision": 0}), true),
        (
            json!({"target": 1, "result": "GREATER", "key": b64("nx"), "range_end": b64("ny"), "createRevision": "0"}),
            false,
        ),
    ] {
        let answer = etcd.ok("kv/txn", json!({"compare": [compare.clone()]})).await;
        assert_eq!(answer.get("succeeded"), expected.then_some(&Value::Bool(true)), "{compare}");
        assert_eq!(etcd.rev(&answer), 1);
    }
    assert_eq!(etcd.ok("kv/txn", json!({})).await["succeeded"], true);
    // One transaction, one revision; inside, headers carry nothing else.
    let txn = json!({"success": [
        {"request_put": {"key": b64("t1"), "value": b64("1")}},
        {"request_put": {"key": b64("t2"), "value": b64("2")}},
        {"request_delete_range": {"key": b64("zz")}},
        {"request_range": {"key": b64("t"), "range_end": b64("u")}},
    ]});
    let answer = etcd.ok("kv/txn", txn).await;
    assert_eq!(etcd.rev(&answer), 2);
    let inner = json!({"revision": (etcd.base + 2).to_string()});
    assert_eq!(answer["responses"][0], json!({"response_put": {"header": inner}}));
    assert_eq!(answer["responses"][2], json!({"response_delete_range": {"header": inner}}));
    assert_eq!(keys(&answer["responses"][3]["response_range"]), ["t1", "t2"]);
    let txn = json!({"success": [
        {"request_delete_range": {"key": b64("t1")}}, {"request_put": {"key": b64("t3"), "value": b64("3")}},
    ]});
    let answer = etcd.ok("kv/txn", txn).await;
    assert_eq!((etcd.rev(&answer), &answer["responses"][0]["response_delete_range"]["deleted"]), (3, &json!("1")));
    // The past is readable, and the head tells the present.
    let then = etcd.base + 2;
    let answer = etcd.ok("kv/range", json!({"key": b64("t"), "range_end": b64("u"), "revision": then})).await;
    assert_eq!((etcd.rev(&answer), keys(&answer)), (3, vec!["t1".to_owned(), "t2".to_owned()]));
    // All or nothing.
    let txn = json!({"success": [
        {"request_put": {"key": b64("q"), "value": ""}}, {"request_range": {"key": b64("q"), "revision": etcd.base + 4}},
    ]});
    assert_eq!(etcd.refused("kv/txn", txn).await, (400, 11, FUTURE.to_owned()));
    let txn = json!({"success": [
        {"request_put": {"key": b64("q2"), "value": ""}}, {"request_put": {"key": b64("q"), "value": "", "lease": 42}},
    ]});
    let no_lease = (404, 5, "etcdserver: requested lease not found".to_owned());
    assert_eq!(etcd.refused("kv/txn", txn).await, no_lease);
    assert_eq!((etcd.now().await, keys(&etcd.ok("kv/range", json!({"key": b64("q2")})).await).len()), (3, 0));
    // Limits.
    let too_many = (400, 3, "etcdserver: too many operations in txn request".to_owned());
    assert_eq!(etcd.refused("kv/txn", json!({"success": puts(129)})).await, too_many);
    assert_eq!(etcd.rev(&etcd.ok("kv/txn", json!({"success": puts(128)})).await), 4);
    let nested = json!({"success": [{"request_txn": {"success": puts(128)}}]});
    assert_eq!(etcd.refused("kv/txn", nested).await, too_many);
    let large = |bytes: usize| json!({"key": b64("big"), "value": b64(vec![7; bytes])});
    assert_eq!(etcd.refused("kv/put", large(1_600_000)).await, (400, 3, "etcdserver: request is too large".to_owned()),);
    let larger = "grpc: received message larger than max (2300010 vs. 2097152)".to_owned();
    assert_eq!(etcd.refused("kv/put", large(2_300_000)).await, (429, 8, larger));
    assert_eq!(etcd.rev(&etcd.ok("kv/put", large(1_500_000)).await), 5);
    assert_eq!(etcd.rev(&etcd.ok("kv/compaction", json!({"revision": 0})).await), 5);
    assert_eq!(etcd.refused("kv/compaction", json!({"revision": -1})).await, (400, 11, COMPACTED.to_owned()));
    leases_and_ranges(&etcd).await;
}

async fn leases_and_ranges(etcd: &Probe) {
    for (request, ttl) in [(json!({"TTL": 0}), "2"), (json!({"TTL": "-5"}), "2"), (json!({"TTL": 5, "ID": -7}), "5")] {
        let answer = etcd.ok("lease/grant", request.clone()).await;
        assert_eq!(answer["TTL"], ttl, "{request}");
        if let Some(id) = request.get("ID") {
            assert_eq!(answer["ID"], id.to_string());
        }
    }
    assert_eq!(
        etcd.refused("lease/grant", json!({"TTL": 9_000_000_001_i64})).await,
        (400, 11, "etcdserver: too large lease TTL".to_owned()),
    );
    etcd.ok("lease/grant", json!({"ID": 900, "TTL": 60})).await;
    assert_eq!(
        etcd.refused("lease/grant", json!({"ID": 900, "TTL": 60})).await,
        (400, 9, "etcdserver: lease already exists".to_owned()),
    );
    for key in ["l3", "l1", "l2"] {
        etcd.ok("kv/put", json!({"key": b64(key), "value": "", "lease": 900})).await;
    }
    assert_eq!(etcd.put("l2", "x").await, 9);
    let attached = |answer: Value| {
        let mut keys: Vec<String> =
            answer["keys"].as_array().unwrap().iter().map(|key| key.as_str().unwrap().to_owned()).collect();
        keys.sort();
        keys
    };
    let answer = etcd.ok("lease/timetolive", json!({"ID": "900", "keys": true})).await;
    assert_eq!(attached(answer), [b64("l1"), b64("l3")]);
    let answer = etcd.ok("kv/put", json!({"key": b64("l1"), "value": "", "ignore_lease": true})).await;
    assert_eq!(etcd.rev(&answer), 10);
    let answer = etcd.ok("kv/put", json!({"key": b64("l1"), "ignore_value": true})).await;
    assert_eq!(etcd.rev(&answer), 11);
    let answer = etcd.ok("kv/lease/timetolive", json!({"ID": 900, "keys": true})).await;
    assert_eq!(attached(answer), [b64("l3")]);
    assert_eq!(etcd.rev(&etcd.ok("lease/revoke", json!({"ID": 900})).await), 12);
    let answer = etcd.ok("kv/range", json!({"key": b64("l"), "range_end": b64("m")})).await;
    let versions: Vec<_> = answer["kvs"].as_array().unwrap().iter().map(|kv| kv["version"].clone()).collect();
    assert_eq!((keys(&answer), versions), (vec!["l1".into(), "l2".into()], vec![json!("3"), json!("2")]));
    etcd.ok("lease/grant", json!({"ID": 901, "TTL": 60})).await;
    assert_eq!(etcd.rev(&etcd.ok("kv/lease/revoke", json!({"ID": 901})).await), 12);
    // Ranges.
    let range = |more: Value| {
        let mut body = json!({"key": b64("k"), "range_end": b64("l")});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let answer = etcd.ok("kv/range", range(json!({"limit": 3, "min_mod_revision": etcd.base + 9999}))).await;
    assert_eq!((answer["count"].as_str(), answer.get("kvs"), answer.get("more")), (Some("128"), None, None));
    let answer = etcd.ok("kv/range", range(json!({"limit": 3}))).await;
    assert_eq!((keys(&answer).len(), &answer["more"], &answer["count"]), (3, &json!(true), &json!("128")));
    let answer = etcd.ok("kv/range", range(json!({"limit": 3, "count_only": true}))).await;
    assert_eq!((answer["count"].as_str(), answer.get("kvs"), answer.get("more")), (Some("128"), None, None));
    let answer = etcd.ok("kv/range", json!({"key": b64("z"), "range_end": b64("a")})).await;
    assert_eq!(answer.as_object().unwrap().len(), 1, "{answer}");
    assert_eq!(keys(&etcd.ok("kv/range", range(json!({"limit": -3, "revision": -3}))).await).len(), 128);
    let answer = etcd.ok("kv/deleterange", range(json!({"prev_kv": true}))).await;
    assert_eq!((etcd.rev(&answer), &answer["deleted"]), (13, &json!("128")));
    assert_eq!(answer["prev_kvs"].as_array().unwrap().len(), 128);
    // Compaction: what is at its revision stays readable.
    for value in ["1", "2", "3"] {
        etcd.put("cc", value).await;
    }
    let at = |revision: i64| json!({"key": b64("cc"), "revision": etcd.base + revision});
    etcd.ok("kv/compaction", json!({"revision": etcd.base + 15, "physical": true})).await;
    let answer = etcd.ok("kv/range", at(15)).await;
    assert_eq!(
        (etcd.rev(&answer), &answer["kvs"][0]["version"], &answer["kvs"][0]["value"]),
        (16, &json!("2"), &json!(b64("2")))
    );
    assert_eq!(etcd.refused("kv/range", at(14)).await, (400, 11, COMPACTED.to_owned()));
    assert_eq!(
        etcd.refused("kv/txn", json!({"success": [{}]})).await,
        (400, 3, "etcdserver: key not found".to_owned()),
    );
    assert_eq!(
        etcd.refused("kv/compaction", json!({"revision": etcd.base + 15})).await,
        (400, 11, COMPACTED.to_owned()),
    );
    assert_eq!(etcd.refused("kv/compaction", json!({"revision": etcd.base + 999})).await, (400, 11, FUTURE.to_owned()),);
}

/// A streamed answer over HTTP/1.1, line by line, as Patroni reads it.
pub struct Lines {
    stream: tokio::io::BufReader<tokio::net::TcpStream>,
}

impl Lines {
    async fn post(address: &str, path: &str, body: &Value) -> Self {
        Self::try_post(address, path, body).await.unwrap()
    }

    /// As [`Lines::post`], when the node may be gone.
    pub async fn try_post(address: &str, path: &str, body: &Value) -> std::io::Result<Self> {
        use tokio::io::AsyncWriteExt;
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        let body = body.to_string();
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).await?;
        let mut lines = Self { stream: tokio::io::BufReader::new(stream) };
        let mut chunked = false;
        loop {
            let line = lines.line().await?;
            chunked |= line.eq_ignore_ascii_case("transfer-encoding: chunked");
            if line.is_empty() {
                break;
            }
        }
        assert!(chunked, "the answer is chunked");
        Ok(lines)
    }

    async fn line(&mut self) -> std::io::Result<String> {
        use tokio::io::AsyncBufReadExt;
        let mut line = String::new();
        if self.stream.read_line(&mut line).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    /// The next chunk: one JSON object.
    async fn next(&mut self) -> Value {
        self.try_next().await.unwrap()
    }

    /// As [`Lines::next`], when the node may be gone.
    pub async fn try_next(&mut self) -> std::io::Result<Value> {
        let size = self.line().await?;
        let size = usize::from_str_radix(&size, 16).map_err(std::io::Error::other)?;
        let text = self.line().await?;
        assert_eq!(text.len() + 1, size, "one object and its newline make a chunk");
        assert_eq!(self.line().await?, "");
        serde_json::from_str(&text).map_err(std::io::Error::other)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_stream_one_object_a_chunk() {
    let nodes = tokio::task::spawn_blocking(shared).await.unwrap();
    let address = nodes.main_port(1);
    let range = json!({"key": b64("gw/"), "range_end": b64("gw0")});
    let mut create = range.clone();
    create["prev_kv"] = json!(true);
    let mut watch = Lines::post(&address, "/v3/watch", &json!({"create_request": create})).await;
    let created = watch.next().await;
    assert_eq!(created["result"]["created"], true);
    assert_eq!(created["result"].get("watch_id"), None, "zero is absent");
    for value in ["1", "2"] {
        let body = json!({"key": b64("gw/a"), "value": b64(value)});
        assert_eq!(post(&nodes.main_port(2), "/v3/kv/put", &body).await.0, 200);
    }
    assert_eq!(post(&nodes.main_port(0), "/v3/kv/deleterange", &range).await.0, 200);
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let message = watch.next().await;
        seen.extend(message["result"]["events"].as_array().unwrap().clone());
    }
    assert_eq!((seen[0].get("type"), seen[0].get("prev_kv")), (None, None));
    assert_eq!(seen[1]["prev_kv"]["value"], b64("1"));
    assert_eq!(seen[2]["type"], "DELETE");
    let deleted = seen[2]["kv"].as_object().unwrap();
    assert_eq!(deleted.keys().collect::<Vec<_>>(), ["key", "mod_revision"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_on_what_is_compacted_is_created_and_ended() {
    let nodes = tokio::task::spawn_blocking(shared).await.unwrap();
    let put = json!({"key": b64("past"), "value": ""});
    let mut last = 0;
    for _ in 0..3 {
        last = revision(&post(&nodes.main_port(0), "/v3/kv/put", &put).await.1);
    }
    let (status, answer) = post(&nodes.main_port(0), "/v3/kv/compaction", &json!({"revision": last})).await;
    assert_eq!(status, 200, "{answer}");
    let create = json!({"create_request": {"key": b64("past"), "start_revision": last - 1}});
    let mut watch = Lines::post(&nodes.main_port(0), "/v3/watch", &create).await;
    assert_eq!(watch.next().await["result"]["created"], true);
    let ended = watch.next().await["result"].clone();
    assert_eq!((&ended["canceled"], &ended["compact_revision"]), (&json!(true), &json!(last.to_string())));
    assert_eq!(ended["header"].get("revision"), None);
}

/// etcd's members answer when they have applied a change themselves, and clients that keep to one member rely on it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_through_a_node_is_found_there() {
    let nodes = tokio::task::spawn_blocking(Nodes::start).await.unwrap();
    for round in 0..30 {
        for address in (0..3).map(|node| nodes.main_port(node)) {
            let (key, value) = (b64("own"), b64(format!("{round} through {address}")));
            let put = revision(&post(&address, "/v3/kv/put", &json!({"key": key, "value": value})).await.1);
            let (_, read) = post(&address, "/v3/kv/range", &json!({"key": key, "serializable": true})).await;
            assert_eq!(read["kvs"][0]["value"], value);
            assert!(put <= revision(&read), "the revision went back from {put}: {read}");
            let (_, granted) = post(&address, "/v3/lease/grant", &json!({"TTL": 60})).await;
            let leases = post(&address, "/v3/lease/leases", &json!({})).await.1["leases"].clone();
            assert!(leases.as_array().unwrap().iter().any(|lease| lease["ID"] == granted["ID"]), "{leases}");
            let revoke = json!({"ID": granted["ID"]});
            assert_eq!(post(&address, "/v3/lease/revoke", &revoke).await.0, 200);
            assert_eq!(post(&address, "/v3/kv/compaction", &json!({"revision": put})).await.0, 200);
            let old = json!({"key": key, "revision": put - 1, "serializable": true});
            assert_eq!(post(&address, "/v3/kv/range", &old).await.0, 400, "what is compacted is not read");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_lease_is_told_by_what_is_missing() {
    let nodes = tokio::task::spawn_blocking(shared).await.unwrap();
    let address = nodes.main_port(2);
    let (_, granted) = post(&address, "/v3/lease/grant", &json!({"TTL": 30})).await;
    let alive = json!({"ID": granted["ID"]});
    assert_eq!(post(&address, "/v3/lease/keepalive", &alive).await.1["result"]["TTL"], "30");
    assert_eq!(post(&address, "/v3/lease/revoke", &alive).await.0, 200);
    let (status, dead) = post(&address, "/v3/lease/keepalive", &alive).await;
    assert_eq!((status, &dead["result"]["ID"], dead["result"].get("TTL")), (200, &granted["ID"], None));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_etcds_errors() {
    let nodes = tokio::task::spawn_blocking(shared).await.unwrap();
    let address = nodes.main_port(0);
    for (path, body) in [
        ("/v3/kv/put", "{"),
        ("/v3/kv/put", r#"{"key": "***"}"#),
        ("/v3/kv/range", r#"{"key": 7}"#),
        ("/v3/kv/range", r#"{"key": "YQ==", "limit": "many"}"#),
        ("/v3/watch", "[]"),
    ] {
        let (status, answer) = send(&address, "POST", path, body.to_owned()).await;
        assert_eq!((status, &answer["code"]), (400, &json!(3)), "{path} {body}: {answer}");
    }
    let (status, answer) = post(&address, "/v3/maintenance/downgrade", &json!({})).await;
    assert_eq!((status, &answer["error"]), (501, &json!("etcdserver: not supported")));
    assert_eq!(post(&address, "/v3/kv/put", &json!({})).await.1["error"], "etcdserver: key is not provided",);
    assert_eq!(send(&address, "GET", "/v3/kv/put", String::new()).await.0, 405);
    assert_eq!(post(&address, "/v3/no/such", &json!({})).await.0, 404);
    let (status, answer) = post(&address, "/v3/auth/authenticate", &json!({"name": "u", "password": "p"})).await;
    assert_eq!((status, &answer["error"]), (400, &json!("etcdserver: authentication is not enabled")));
}

#[tokio::test(flavor = "multi_thread")]
async fn version_and_health_are_etcds() {
    let nodes = tokio::task::spawn_blocking(shared).await.unwrap();
    for address in [nodes.main_port(0), nodes.etcd_port(0)] {
        let (_, version) = send(&address, "GET", "/version", String::new()).await;
        for part in ["etcdserver", "etcdcluster"] {
            let text = version[part].as_str().unwrap();
            assert!(text.split('.').all(|number| number.parse::<u32>().is_ok()), "{text}");
        }
    }
    let etcd = nodes.etcd_port(1);
    assert_eq!(send(&etcd, "GET", "/health", String::new()).await, (200, json!({"health": "true", "reason": ""})));
    for path in ["/livez", "/readyz", "/readyz/linearizable_read"] {
        assert_eq!(send(&etcd, "GET", path, String::new()).await, (200, json!("ok\n")), "{path}");
    }
    tokio::task::spawn_blocking(|| shared().ctl_error(1, &["get", "--rev=999999999", "x"])).await.unwrap();
    let (_, metrics) = send(&etcd, "GET", "/metrics", String::new()).await;
    let metrics = metrics.as_str().unwrap();
    assert!(metrics.contains("\netcd_server_has_leader 1\n"), "{metrics}");
    let range = "grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} ";
    assert!(metrics.contains(&format!("\ngrpc_server_started_total{{{range}")), "{metrics}");
    assert!(metrics.contains(&format!("\ngrpc_server_handled_total{{grpc_code=\"OutOfRange\",{range}")), "{metrics}");
    // The name that the path had in etcd 3.3.
    let older = post(&etcd, "/v3beta/kv/range", &json!({"key": b64("none")})).await;
    assert!(older.0 == 200 && older.1["header"]["revision"].is_string(), "{older:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_lets_clients_delete_and_goes_on() {
    let etcd = Probe::start().await;
    let value = b64(vec![7; 1_000_000]);
    let mut written = 0;
    let full = loop {
        let put = json!({"key": b64(format!("big{written}")), "value": value});
        let (status, answer) = etcd.ask("kv/put", put).await;
        if status != 200 {
            break (status, answer["code"].clone(), answer["error"].clone());
        }
        written += 1;
        assert!(written < 100, "32 MB hold no hundred megabytes");
    };
    assert_eq!(full, (429, json!(8), json!("etcdserver: mvcc: database space exceeded")));
    let alarms = etcd.ok("maintenance/alarm", json!({})).await;
    assert_eq!(alarms["alarms"][0]["alarm"], "NOSPACE");
    let health = send(&etcd.nodes.etcd_port(0), "GET", "/health", String::new()).await;
    assert_eq!(health, (503, json!({"health": "false", "reason": "ALARM NOSPACE"})));
    assert_eq!(etcd.refused("lease/grant", json!({"TTL": 60})).await.0, 429);
    // What is deleted and forgotten makes room.
    let all = json!({"key": b64("big"), "range_end": b64("bih")});
    let deleted = etcd.ok("kv/deleterange", all).await;
    etcd.ok("kv/compaction", json!({"revision": revision(&deleted)})).await;
    etcd.put("small", "x").await;
    let alarms = etcd.ok("maintenance/alarm", json!({})).await;
    assert_eq!(alarms.get("alarms"), None);
}
