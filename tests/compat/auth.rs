//! Users, roles and passwords, as etcdctl manages them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::nodes::{Nodes, post};

#[test]
fn users_may_do_what_their_roles_may() {
    let mut nodes = Nodes::start();
    assert_eq!(nodes.ctl_error(1, &["auth", "enable"]), "Error: etcdserver: root user does not exist");
    assert_eq!(nodes.ctl(0, &["user", "add", "root:pw"]), "User root created\n");
    assert_eq!(nodes.ctl(1, &["user", "grant-role", "root", "root"]), "Role root is granted to user root\n");
    assert_eq!(nodes.ctl(2, &["role", "add", "r1"]), "Role r1 created\n");
    assert_eq!(nodes.ctl(0, &["role", "grant-permission", "r1", "readwrite", "foo"]), "Role r1 updated\n");
    let prefix = ["role", "grant-permission", "--prefix", "r1", "read", "app/"];
    assert_eq!(nodes.ctl(1, &prefix), "Role r1 updated\n");
    assert_eq!(nodes.ctl(2, &["user", "add", "u1:one"]), "User u1 created\n");
    assert_eq!(nodes.ctl(0, &["user", "grant-role", "u1", "r1"]), "Role r1 is granted to user u1\n");
    nodes.ctl(0, &["put", "app/x", "1"]);
    assert_eq!(nodes.ctl(1, &["auth", "enable"]), "Authentication Enabled\n");

    let (root, u1) = ("--user=root:pw", "--user=u1:one");
    for node in 0..3 {
        assert_eq!(nodes.ctl(node, &[u1, "put", "foo", "1"]), "OK\n");
        assert_eq!(nodes.ctl(node, &[u1, "get", "foo"]), "foo\n1\n");
        assert_eq!(nodes.ctl(node, &[u1, "get", "--prefix", "app/"]), "app/x\n1\n");
        for refused in [
            &[u1, "get", "zzz"][..],
            &[u1, "put", "app/x", "2"],
            &[u1, "get", "--prefix", ""],
            &[u1, "compaction", "1"],
            &[u1, "user", "list"],
            &[u1, "endpoint", "hashkv"],
            &[root, "put", "/service/compat/leader", "n1"],
        ] {
            let said = nodes.ctl_error(node, refused);
            // Some commands go on after the error and say less.
            assert!(said.is_empty() || said.ends_with("etcdserver: permission denied"), "{refused:?}: {said}");
        }
        assert_eq!(nodes.ctl_error(node, &["get", "foo"]), "Error: etcdserver: user name is empty");
        let wrong = nodes.ctl_error(node, &["--user=u1:two", "get", "foo"]);
        assert_eq!(wrong, "Error: etcdserver: authentication failed, invalid user ID or password");
        let unknown = nodes.ctl_error(node, &["--user=u2:two", "get", "foo"]);
        assert_eq!(unknown, wrong);
        let health = nodes.etcdctl(node, &[u1, "endpoint", "health"]);
        assert!(health.status.success(), "{}", String::from_utf8_lossy(&health.stderr));
        assert_eq!(nodes.ctl(node, &[root, "user", "list"]), "root\nu1\n");
    }
    assert_eq!(nodes.ctl(0, &[root, "user", "get", "u1"]), "User: u1\nRoles: r1\n");
    let role = nodes.ctl(0, &[u1, "role", "get", "r1"]);
    assert!(role.contains("KV Read:\n\t[app/, app0) (prefix app/)\n\tfoo\nKV Write:\n\tfoo\n"), "{role}");
    // Who has proved to be root may change howdah's settings as Patroni's tools do.
    let config = r#"{"ttl": 30, "loop_wait": 10, "retry_timeout": 10}"#;
    assert_eq!(nodes.ctl(1, &[root, "put", "/service/compat/config", config]), "OK\n");

    // A token is good on every node, also on one that was not there when it was given.
    nodes.kill(2);
    let token = runtime().block_on(async {
        let (status, answer) = authenticate(&nodes, 0, "u1", "one").await;
        assert_eq!(status, 200, "{answer}");
        answer["token"].as_str().unwrap().to_owned()
    });
    nodes.run(2);
    crate::nodes::until("the third node answers", || nodes.etcdctl(2, &[u1, "get", "foo"]).status.success());
    for node in 0..3 {
        assert_eq!(get(&nodes, node, "Zm9v", Some(&token)).0, 200);
        assert_eq!(get(&nodes, node, "enp6", Some(&token)).0, 403);
        assert_eq!(get(&nodes, node, "Zm9v", Some("made.1")).0, 401);
        assert_eq!(get(&nodes, node, "Zm9v", None), (400, json!("etcdserver: user name is empty")));
    }
    // A permission that is taken back is gone at once, everywhere, and with the password go the tokens.
    nodes.ctl(0, &[root, "role", "revoke-permission", "r1", "foo"]);
    for node in 0..3 {
        assert_eq!(get(&nodes, node, "Zm9v", Some(&token)).0, 403);
    }
    nodes.ctl(1, &[root, "user", "delete", "u1"]);
    for node in 0..3 {
        assert_eq!(get(&nodes, node, "Zm9v", Some(&token)).0, 401);
    }
    // Who has proved to be root may send a member away.
    assert_eq!(nodes.ctl_error(0, &[root, "member", "remove", "1"]), "Error: etcdserver: member not found");
    let members = nodes.ctl(0, &[root, "member", "list"]);
    let third = members.lines().find(|line| line.contains(", n3, ")).unwrap().split(',').next().unwrap().to_owned();
    assert_eq!(
        nodes.ctl_error(0, &[root, "member", "promote", &third]),
        "Error: etcdserver: can only promote a learner member",
    );
    nodes.kill(2);
    assert!(nodes.ctl(0, &[root, "member", "remove", &third]).starts_with(&format!("Member {third} removed from")));
    assert_eq!(nodes.ctl(1, &[root, "member", "list"]).lines().count(), 2);
    assert_eq!(nodes.ctl(0, &[root, "auth", "disable"]), "Authentication Disabled\n");
    assert_eq!(nodes.ctl(1, &[root, "get", "foo"]), "foo\n1\n", "a name is not asked for and does no harm");
    assert_eq!(nodes.ctl(0, &["get", "foo"]), "foo\n1\n");
    assert_eq!(nodes.ctl_error(0, &["member", "remove", &third]), "Error: etcdserver: permission denied");
}

/// A node that stood still takes up what clients have sent to it before it hears what happened in the meantime.
#[test]
fn a_token_that_is_void_is_void_on_a_node_that_stood_still() {
    let nodes = Nodes::start();
    let mut leads = None;
    crate::nodes::until("somebody leads", || {
        leads = nodes.leader();
        leads.is_some()
    });
    let leader = leads.unwrap();
    for args in [
        &["user", "add", "root:pw"][..],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "r1"],
        &["role", "grant-permission", "r1", "readwrite", "foo"],
        &["user", "add", "u1:one"],
        &["user", "grant-role", "u1", "r1"],
        &["put", "foo", "before"],
        &["auth", "enable"],
    ] {
        nodes.ctl(0, args);
    }
    let still = (leader + 1) % 3;
    let login = |name: &str, password: &str| {
        let (status, answer) = runtime().block_on(authenticate(&nodes, leader, name, password));
        assert_eq!(status, 200, "{answer}");
        answer["token"].as_str().unwrap().to_owned()
    };
    let (root, mut password) = (login("root", "pw"), "one".to_owned());
    for round in 0..5 {
        let token = login("u1", &password);
        assert_eq!(get(&nodes, still, "Zm9v", Some(&token)).0, 200, "the node has heard of the token");
        nodes.signal(still, rustix::process::Signal::STOP);
        password = format!("other{round}");
        let change = json!({"name": "u1", "password": password});
        let path = "/v3/auth/user/changepw";
        let headers = [("Authorization", root.as_str())];
        let changed = runtime().block_on(crate::nodes::post_with(&nodes.main_port(leader), path, &headers, &change));
        assert_eq!(changed.0, 200, "{}", changed.1);
        let sent: Vec<_> = ["put", "range", "txn"]
            .into_iter()
            .cycle()
            .take(12)
            .map(|call| {
                let range = json!({"key": "Zm9v"});
                let body = match call {
                    "put" => json!({"key": "Zm9v", "value": "bG9zdA=="}),
                    "range" => range,
                    _ => json!({"success": [{"request_range": range}]}),
                };
                (call, leave(&nodes.main_port(still), &format!("/v3/kv/{call}"), &token, &body.to_string()))
            })
            .collect();
        nodes.signal(still, rustix::process::Signal::CONT);
        for (call, mut connection) in sent {
            let mut answer = String::new();
            connection.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("invalid auth token"), "{call}: {answer}");
        }
    }
    assert_eq!(nodes.ctl(0, &["--user=root:pw", "get", "foo"]), "foo\nbefore\n");
}

/// Sends a request and does not wait for the answer: the kernel has it, also for a process that stands still.
fn leave(address: &str, path: &str, token: &str, body: &str) -> TcpStream {
    let mut connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: {token}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    connection.write_all(request.as_bytes()).unwrap();
    connection
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn authenticate(nodes: &Nodes, node: usize, name: &str, password: &str) -> (u16, Value) {
    let body = json!({"name": name, "password": password});
    post(&nodes.main_port(node), "/v3/auth/authenticate", &body).await
}

/// Reads a key with a token; the status, and the text of the error.
fn get(nodes: &Nodes, node: usize, key: &str, token: Option<&str>) -> (u16, Value) {
    let headers: Vec<(&str, &str)> = token.map(|token| ("Authorization", token)).into_iter().collect();
    let (status, answer) = runtime().block_on(crate::nodes::post_with(
        &nodes.main_port(node),
        "/v3/kv/range",
        &headers,
        &json!({"key": key}),
    ));
    (status, answer["error"].clone())
}
