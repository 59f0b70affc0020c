//! etcdctl 3.4 as Debian ships it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::nodes::{Nodes, shared, until};

#[test]
fn keys_are_put_read_and_deleted_from_any_node() {
    let nodes = shared();
    assert_eq!(nodes.ctl(0, &["put", "keys/a", "1"]), "OK\n");
    assert_eq!(nodes.ctl(1, &["put", "keys/b", "2"]), "OK\n");
    assert_eq!(nodes.ctl(2, &["put", "keys/a", "3", "--prev-kv"]), "OK\nkeys/a\n1\n");
    for node in 0..3 {
        assert_eq!(nodes.ctl(node, &["get", "keys/a"]), "keys/a\n3\n");
        assert_eq!(
            nodes.ctl(node, &["get", "--prefix", "keys/", "--order=DESCEND", "--keys-only"]),
            "keys/b\n\nkeys/a\n\n"
        );
        assert_eq!(nodes.ctl(node, &["get", "keys/none"]), "");
    }
    let json: Value = serde_json::from_str(&nodes.ctl(0, &["get", "keys/a", "-w", "json"])).unwrap();
    assert_eq!((&json["count"], &json["kvs"][0]["version"]), (&Value::from(1), &Value::from(2)));
    assert_eq!(nodes.ctl(1, &["del", "--prefix", "keys/", "--prev-kv"]), "2\nkeys/a\n3\nkeys/b\n2\n");
    assert_eq!(nodes.ctl(2, &["del", "keys/a"]), "0\n");
}

#[test]
fn transactions_take_one_side_or_the_other() {
    let nodes = shared();
    nodes.ctl(0, &["put", "txn/a", "1"]);
    let script = "value(\"txn/a\") = \"1\"\n\nput txn/a 2\nget txn/a\n\nput txn/a 9\n\n";
    for expected in ["SUCCESS\n\nOK\n\ntxn/a\n2\n", "FAILURE\n\nOK\n"] {
        let mut child = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args([&format!("--endpoints={}", nodes.etcd_port(1)), "txn"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    }
}

#[test]
fn leases_hold_keys_and_let_go() {
    let nodes = shared();
    let granted = nodes.ctl(0, &["lease", "grant", "100"]);
    let id = granted.split_whitespace().nth(1).unwrap().to_owned();
    assert_eq!(granted, format!("lease {id} granted with TTL(100s)\n"));
    nodes.ctl(1, &["put", "--lease", &id, "leases/a", "1"]);
    let left = nodes.ctl(2, &["lease", "timetolive", &id, "--keys"]);
    assert!(left.starts_with(&format!("lease {id} granted with TTL(100s), remaining(")), "{left}");
    assert!(left.ends_with("), attached keys([leases/a])\n"), "{left}");
    assert!(nodes.ctl(0, &["lease", "list"]).contains(&id));
    for node in 0..3 {
        assert_eq!(
            nodes.ctl(node, &["lease", "keep-alive", "--once", &id]),
            format!("lease {id} keepalived with TTL(100)\n")
        );
    }
    assert_eq!(nodes.ctl(1, &["lease", "revoke", &id]), format!("lease {id} revoked\n"));
    assert_eq!(nodes.ctl(2, &["get", "leases/a"]), "");
    assert_eq!(nodes.ctl(2, &["lease", "timetolive", &id]), format!("lease {id} already expired\n"));
    assert_eq!(
        nodes.ctl_error(0, &["lease", "keep-alive", "--once", &id]),
        "Error: etcdserver: requested lease not found",
    );
    assert_eq!(
        nodes.ctl_error(0, &["put", "--lease", &id, "leases/a", "1"]),
        "Error: etcdserver: requested lease not found",
    );
}

#[test]
fn watches_see_the_past_and_the_present_in_order() {
    let nodes = shared();
    nodes.ctl(0, &["put", "watch/a", "1"]);
    let json: Value = serde_json::from_str(&nodes.ctl(0, &["get", "watch/a", "-w", "json"])).unwrap();
    let revision = json["kvs"][0]["mod_revision"].to_string();
    let mut child = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={}", nodes.etcd_port(2)))
        .args(["watch", "--prefix", "watch/", "--prev-kv", "--rev", &revision])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = |count: usize| lines.by_ref().take(count).collect::<Result<Vec<_>, _>>().unwrap();
    assert_eq!(next(3), ["PUT", "watch/a", "1"]);
    nodes.ctl(1, &["put", "watch/a", "2"]);
    assert_eq!(next(5), ["PUT", "watch/a", "1", "watch/a", "2"]);
    nodes.ctl(0, &["del", "watch/a"]);
    assert_eq!(next(5), ["DELETE", "watch/a", "2", "watch/a", ""]);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn locks_and_elections_are_built_from_it() {
    let nodes = shared();
    let run = |args: &[&str]| {
        Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", nodes.etcd_port(0)))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut holder = run(&["lock", "--ttl=2", "mutex"]);
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    let key = lines.next().unwrap().unwrap();
    assert!(key.starts_with("mutex/"), "{key}");
    let mut waiter = run(&["lock", "--ttl=2", "mutex"]);
    // The holder vanishes; its lease ends, and the other one gets the lock.
    holder.kill().unwrap();
    holder.wait().unwrap();
    let mut lines = BufReader::new(waiter.stdout.take().unwrap()).lines();
    let next = lines.next().unwrap().unwrap();
    assert!(next.starts_with("mutex/") && next != key, "{key} {next}");
    waiter.kill().unwrap();
    waiter.wait().unwrap();
    let mut candidate = run(&["elect", "office", "p1"]);
    let mut lines = BufReader::new(candidate.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("office/"));
    assert_eq!(lines.next().unwrap().unwrap(), "p1");
    candidate.kill().unwrap();
    candidate.wait().unwrap();
}

#[test]
fn endpoints_are_healthy_and_say_who_leads() {
    let nodes = shared();
    let all = (0..3).map(|node| nodes.etcd_port(node)).collect::<Vec<_>>().join(",");
    let run = |args: &[&str]| {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={all}"))
            .args(args)
            .output()
            .unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let (healthy, text) = run(&["endpoint", "health"]);
    assert!(healthy && text.matches("is healthy: successfully committed proposal: took =").count() == 3, "{text}");
    let (_, text) = run(&["endpoint", "status", "-w", "json"]);
    let status: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let leaders: Vec<&Value> = status.as_array().unwrap().iter().map(|one| &one["Status"]["leader"]).collect();
    assert!(leaders.iter().all(|leader| leader.is_u64() && *leader == leaders[0]), "{text}");
    assert_eq!(nodes.ctl(0, &["alarm", "list"]), "");
    let members = nodes.ctl(1, &["member", "list"]);
    assert_eq!(members.lines().count(), 3);
    for (index, name) in ["n1", "n2", "n3"].iter().enumerate() {
        let url = format!("http://{}", nodes.main_port(index));
        assert!(members.contains(&format!(", started, {name}, {url}, {url}, false\n")), "{members}");
    }
    let hashes: Vec<String> = (0..3)
        .map(|node| nodes.ctl(node, &["endpoint", "hashkv", "--rev=1"]).split(", ").nth(1).unwrap().to_owned())
        .collect();
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
    assert!(nodes.ctl(0, &["defrag"]).starts_with("Finished defragmenting etcd member["));
}

#[test]
fn what_is_not_served_is_said_in_etcds_words() {
    let nodes = shared();
    assert_eq!(
        nodes.ctl_error(0, &["member", "add", "n9", "--peer-urls=http://127.0.0.1:1"]),
        "Error: etcdserver: permission denied"
    );
    assert_eq!(nodes.ctl_error(0, &["put", "/service/compat/leader", "me"]), "Error: etcdserver: permission denied");
    assert_eq!(nodes.ctl_error(0, &["del", "", "--from-key"]), "Error: etcdserver: permission denied");
    assert_eq!(
        nodes.ctl_error(0, &["get", "/service/compat/howdah/credentials"]),
        "Error: etcdserver: permission denied",
    );
    assert_eq!(
        nodes.ctl_error(0, &["get", "--rev=999999999", "x"]),
        "Error: etcdserver: mvcc: required revision is a future revision",
    );
}

#[test]
fn without_a_majority_it_says_so_and_with_one_it_goes_on() {
    let mut nodes = Nodes::start();
    nodes.ctl(0, &["put", "lonely/a", "1"]);
    nodes.kill(1);
    nodes.kill(2);
    until("the node has noticed", || {
        let error = String::from_utf8_lossy(&nodes.etcdctl(0, &["put", "lonely/a", "2"]).stderr).into_owned();
        error.contains("etcdserver: no leader") || error.contains("etcdserver: request timed out")
    });
    assert_eq!(nodes.ctl(0, &["get", "--consistency=s", "lonely/a"]), "lonely/a\n1\n");
    assert_eq!(nodes.ctl(0, &["member", "list"]).lines().count(), 3);
    nodes.run(1);
    until("there is a leader again", || nodes.etcdctl(0, &["get", "lonely/a"]).status.success());
    assert_eq!(nodes.ctl(1, &["put", "lonely/a", "3"]), "OK\n");
}
