//! What etcdctl prints in its other forms, and the commands that are seldom used.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::nodes::{Nodes, shared, until};

/// etcdctl that goes on, talking to one node.
fn start(nodes: &Nodes, node: usize, args: &[&str]) -> Child {
    Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={}", nodes.etcd_port(node)))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|why| panic!("{why}: {text}"))
}

/// The number of the first line `"name" : number`.
fn number(fields: &str, name: &str) -> i64 {
    let start = format!("\"{name}\" : ");
    let line = fields.lines().find_map(|line| line.strip_prefix(&start));
    line.unwrap_or_else(|| panic!("{name} is missing: {fields}")).parse().unwrap()
}

#[test]
fn answers_in_fields_and_json() {
    let nodes = shared();
    let put = json(&nodes.ctl(0, &["put", "forms/a", "bar", "-w", "json"]));
    let revision = put["header"]["revision"].as_i64().unwrap();
    let get = json(&nodes.ctl(1, &["get", "forms/a", "-w", "json"]));
    let pair = &get["kvs"][0];
    assert_eq!((&pair["key"], &pair["value"]), (&"Zm9ybXMvYQ==".into(), &"YmFy".into()));
    assert_eq!((&pair["create_revision"], &pair["mod_revision"]), (&revision.into(), &revision.into()));
    assert!(pair.get("lease").is_none() && get.get("more").is_none(), "{get}");
    nodes.ctl(2, &["put", "forms/b", "x"]);
    let more = json(&nodes.ctl(1, &["get", "--prefix", "forms/", "--limit=1", "-w", "json"]));
    assert_eq!((&more["more"], &more["count"]), (&true.into(), &2.into()));
    let fields = nodes.ctl(2, &["get", "forms/a", "-w", "fields"]);
    for (name, expected) in
        [("CreateRevision", revision), ("ModRevision", revision), ("Version", 1), ("Lease", 0), ("Count", 1)]
    {
        assert_eq!(number(&fields, name), expected, "{fields}");
    }
    assert!(fields.contains("\"Key\" : \"forms/a\"\n") && fields.contains("\"More\" : false\n"), "{fields}");
    assert!(number(&fields, "RaftTerm") > 0 && number(&fields, "Revision") > revision);
    let hex = nodes.ctl(0, &["get", "forms/a", "--hex"]);
    assert_eq!(hex, "\\x66\\x6f\\x72\\x6d\\x73\\x2f\\x61\n\\x62\\x61\\x72\n");
    assert_eq!(nodes.ctl(0, &["get", "forms/a", "--print-value-only"]), "bar\n");
    assert_eq!(nodes.ctl(0, &["get", "forms/a", "forms/c", "--keys-only"]), "forms/a\n\nforms/b\n\n");
    assert_eq!(nodes.ctl(0, &["del", "forms/a", "forms/c"]), "2\n");
    let old = nodes.ctl(1, &["get", "forms/a", "--rev", &revision.to_string()]);
    assert_eq!(old, "forms/a\nbar\n");
    assert!(nodes.ctl(0, &["version"]).contains("API version: 3.4"));
}

#[test]
fn members_and_endpoints_in_other_forms() {
    let nodes = shared();
    let members = json(&nodes.ctl(0, &["member", "list", "-w", "json"]));
    let ids: Vec<u64> =
        members["members"].as_array().unwrap().iter().map(|member| member["ID"].as_u64().unwrap()).collect();
    assert!(ids.len() == 3 && ids.is_sorted() && ids.iter().all(|id| *id != 0), "{members}");
    assert!(members["header"]["cluster_id"].as_u64().unwrap() != 0);
    let table = nodes.ctl(1, &["member", "list", "-w", "table"]);
    for cell in
        ["ID", "STATUS", "NAME", "PEER ADDRS", "CLIENT ADDRS", "IS LEARNER", "started", "n1", "n2", "n3", "false"]
    {
        assert!(table.contains(cell), "{cell}: {table}");
    }
    let health = json(&nodes.ctl(2, &["endpoint", "health", "-w", "json"]));
    assert_eq!((&health[0]["health"], &health[0]["endpoint"]), (&true.into(), &nodes.etcd_port(2).into()));
    let status = nodes.ctl(0, &["endpoint", "status"]);
    let cells: Vec<&str> = status.trim_end().split(", ").collect();
    assert_eq!((cells[0], cells[2]), (nodes.etcd_port(0).as_str(), "3.6.8"), "{status}");
    assert!(ids.iter().any(|id| format!("{id:x}") == cells[1]), "{status}");
    assert!(cells[3].ends_with("kB") || cells[3].ends_with("MB"), "{status}");
    assert!(["true", "false"].contains(&cells[4]) && cells[5] == "false", "{status}");
    let full = nodes.ctl(0, &["endpoint", "status", "--cluster", "-w", "table"]);
    assert!(full.contains("3.6.8") && full.contains("RAFT APPLIED INDEX"), "{full}");
    assert_eq!(nodes.ctl(0, &["alarm", "disarm"]), "");
    // Endpoints as URLs, one and several.
    let urls = (0..3).map(|node| format!("http://{}", nodes.etcd_port(node))).collect::<Vec<_>>().join(",");
    for endpoints in [&urls, &format!("http://{}", nodes.main_port(0))] {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args([&format!("--endpoints={endpoints}"), "endpoint", "health"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn history_is_forgotten_by_hand() {
    let nodes = shared();
    nodes.ctl(0, &["put", "compact/a", "1"]);
    let revision = json(&nodes.ctl(0, &["put", "compact/a", "2", "-w", "json"]))["header"]["revision"].clone();
    let revision = revision.to_string();
    nodes.ctl(0, &["put", "compact/a", "3"]);
    assert_eq!(nodes.ctl(1, &["compaction", &revision]), format!("compacted revision {revision}\n"));
    let gone = "Error: etcdserver: mvcc: required revision has been compacted";
    assert_eq!(nodes.ctl_error(2, &["compaction", &revision]), gone);
    assert_eq!(nodes.ctl_error(0, &["get", "compact/a", "--rev=1"]), gone);
    let future = "Error: etcdserver: mvcc: required revision is a future revision";
    assert_eq!(nodes.ctl_error(1, &["compaction", "999999999"]), future);
    let watch = nodes.etcdctl(2, &["watch", "compact/a", "--rev=1"]);
    let said = String::from_utf8_lossy(&watch.stderr);
    assert_eq!(watch.status.code(), Some(5), "{said}");
    assert!(said.contains("required revision has been compacted"), "{said}");
}

#[test]
fn a_watcher_asks_how_far_it_is_and_observers_see_leaders() {
    let nodes = shared();
    let mut child = start(nodes, 1, &["watch", "-i"]);
    let mut input = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    input.write_all(b"watch far/a\n").unwrap();
    // What is put before the watch is made is not seen by it: put until it is.
    until("the watch sees a put", || {
        nodes.ctl(0, &["put", "far/a", "1"]);
        nodes.ctl(0, &["put", "far/a", "1"]);
        true
    });
    assert_eq!(lines.next().unwrap().unwrap(), "PUT");
    input.write_all(b"progress\n").unwrap();
    let progress = lines.map(Result::unwrap).find(|line| line.starts_with("progress notify: ")).unwrap();
    assert!(progress["progress notify: ".len()..].parse::<i64>().unwrap() > 0);
    child.kill().unwrap();
    child.wait().unwrap();

    let mut leader = start(nodes, 0, &["elect", "forms-office", "p1"]);
    let mut won = BufReader::new(leader.stdout.take().unwrap()).lines();
    let key = won.next().unwrap().unwrap();
    let mut observer = start(nodes, 2, &["elect", "-l", "forms-office"]);
    let mut seen = BufReader::new(observer.stdout.take().unwrap()).lines();
    assert_eq!(seen.next().unwrap().unwrap(), key);
    assert_eq!(seen.next().unwrap().unwrap(), "p1");
    for child in [&mut leader, &mut observer] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn keys_are_mirrored() {
    let nodes = shared();
    nodes.ctl(0, &["put", "mirror/a", "1"]);
    let target = nodes.etcd_port(1);
    let mut mirror = start(nodes, 0, &["make-mirror", "--prefix=mirror/", "--dest-prefix=copied/", &target]);
    until("what was there is copied", || nodes.ctl(2, &["get", "copied/a"]) == "copied/a\n1\n");
    nodes.ctl(2, &["put", "mirror/b", "2"]);
    until("what comes is copied", || nodes.ctl(0, &["get", "copied/b"]) == "copied/b\n2\n");
    mirror.kill().unwrap();
    mirror.wait().unwrap();
}

#[test]
fn leadership_is_moved_by_hand() {
    let nodes = Nodes::start();
    let status = |node: usize| json(&nodes.ctl(node, &["endpoint", "status", "-w", "json"]))[0]["Status"].clone();
    let leader = nodes.leader().unwrap();
    let other = (leader + 1) % 3;
    let hex = |status: &Value| format!("{:x}", status["header"]["member_id"].as_u64().unwrap());
    let (from, to) = (hex(&status(leader)), hex(&status(other)));
    assert_eq!(nodes.ctl(leader, &["move-leader", &to]), format!("Leadership transferred from {from} to {to}\n"));
    until("the other one leads", || nodes.leader() == Some(other));
    let said = nodes.etcdctl(other, &["move-leader", "123"]);
    assert!(!said.status.success());
    assert!(String::from_utf8_lossy(&said.stderr).contains("etcdserver: bad leader transferee"));
}
