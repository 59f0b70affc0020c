//! The services of locks and elections, and the copy for backup scripts.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::nodes::{Nodes, post, shared};

fn b64(text: &str) -> String {
    STANDARD.encode(text)
}

async fn ok(nodes: &Nodes, node: usize, path: &str, body: Value) -> Value {
    let (status, answer) = post(&nodes.main_port(node), &format!("/v3/{path}"), &body).await;
    assert_eq!(status, 200, "{path}: {answer}");
    answer
}

async fn lease(nodes: &Nodes, ttl: i64) -> String {
    ok(nodes, 0, "lease/grant", json!({"TTL": ttl})).await["ID"].as_str().unwrap().to_owned()
}

/// How many keys stand in a queue.
async fn standing(nodes: &Nodes, name: &str) -> i64 {
    let (key, end) = (b64(&format!("{name}/")), b64(&format!("{name}0")));
    let answer = ok(nodes, 1, "kv/range", json!({"key": key, "range_end": end, "count_only": true})).await;
    answer["count"].as_str().map_or(0, |count| count.parse().unwrap())
}

async fn until_standing(nodes: &Nodes, name: &str, count: i64) {
    while standing(nodes, name).await != count {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_has_one_holder_and_the_next_one_gets_it() {
    let nodes = tokio::task::spawn_blocking(shared).await.unwrap();
    let leases = [lease(nodes, 60).await, lease(nodes, 60).await, lease(nodes, 60).await];
    let lock =
        |node: usize, lease: String| ok(nodes, node, "lock/lock", json!({"name": b64("lock-a"), "lease": lease}));
    let first = lock(0, leases[0].clone()).await;
    let hex = format!("lock-a/{:x}", leases[0].parse::<i64>().unwrap());
    assert_eq!(first["key"], b64(&hex));
    // Asked again by the same holder it is still its own.
    assert_eq!(lock(2, leases[0].clone()).await["key"], first["key"]);
    let second = tokio::spawn(lock(1, leases[1].clone()));
    until_standing(nodes, "lock-a", 2).await;
    let third = tokio::spawn(lock(2, leases[2].clone()));
    until_standing(nodes, "lock-a", 3).await;
    assert!(!second.is_finished() && !third.is_finished(), "there is one holder");
    // The one in the middle falls out; the one behind it stays behind the first.
    let (status, gone) = {
        ok(nodes, 0, "lease/revoke", json!({"ID": leases[1]})).await;
        let answer = second.await;
        (answer.is_err(), answer.err().map(|error| error.to_string()))
    };
    assert!(status, "its session has ended: {gone:?}");
    assert!(!third.is_finished());
    ok(nodes, 1, "lock/unlock", json!({"key": first["key"]})).await;
    assert!(third.await.unwrap()["key"].is_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_hangs_up_leaves_the_queue() {
    let nodes = tokio::task::spawn_blocking(shared).await.unwrap();
    let leases = [lease(nodes, 60).await, lease(nodes, 60).await];
    let lock =
        |node: usize, lease: String| ok(nodes, node, "lock/lock", json!({"name": b64("lock-b"), "lease": lease}));
    lock(0, leases[0].clone()).await;
    let waiting = tokio::spawn(lock(1, leases[1].clone()));
    until_standing(nodes, "lock-b", 2).await;
    waiting.abort();
    until_standing(nodes, "lock-b", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_follow_each_other_and_observers_see_each_word() {
    let nodes = tokio::task::spawn_blocking(shared).await.unwrap();
    let leases = [lease(nodes, 60).await, lease(nodes, 60).await];
    let (status, none) = post(&nodes.main_port(0), "/v3/election/leader", &json!({"name": b64("vote")})).await;
    assert_eq!((status, &none["error"]), (404, &json!("election: no leader")));
    let mut observed = crate::nodes::lines(&nodes.main_port(2), "/v3/election/observe", &json!({"name": b64("vote")}));
    let campaign = |node: usize, lease: String, value: &str| {
        let body = json!({"name": b64("vote"), "lease": lease, "value": b64(value)});
        ok(nodes, node, "election/campaign", body)
    };
    let first = campaign(0, leases[0].clone(), "a").await["leader"].clone();
    let second = tokio::spawn(campaign(1, leases[1].clone(), "b"));
    until_standing(nodes, "vote", 2).await;
    let leader = ok(nodes, 2, "election/leader", json!({"name": b64("vote")})).await;
    assert_eq!(leader["kv"]["value"], b64("a"));
    for value in ["a1", "a2", "a3"] {
        ok(nodes, 1, "election/proclaim", json!({"leader": first, "value": b64(value)})).await;
    }
    assert!(!second.is_finished());
    ok(nodes, 2, "election/resign", json!({"leader": first})).await;
    let second = second.await.unwrap()["leader"].clone();
    let stale = json!({"leader": first, "value": b64("x")});
    let (status, refused) = post(&nodes.main_port(0), "/v3/election/proclaim", &stale).await;
    assert_eq!((status, &refused["error"]), (400, &json!("election: not leader")));
    ok(nodes, 0, "election/resign", json!({"leader": second})).await;
    let mut seen = Vec::new();
    while seen.len() < 5 {
        let answer: Value = serde_json::from_str(&observed.recv().await.expect("the stream goes on")).unwrap();
        seen.push(answer["result"]["kv"]["value"].clone());
    }
    assert_eq!(seen, ["a", "a1", "a2", "a3", "b"].map(b64));
}

#[test]
fn a_copy_is_fetched_as_a_file() {
    let nodes = shared();
    nodes.ctl(0, &["put", "saved/a", "1"]);
    let file = nodes.path().join("saved.db");
    let name = file.display().to_string();
    let said = nodes.ctl(1, &["snapshot", "save", &name]);
    assert!(said.contains(&format!("Snapshot saved at {name}")), "{said}");
    let bytes = std::fs::read(&file).unwrap();
    assert_eq!(bytes.len() % 512, 32, "a checksum follows the data");
    let text = String::from_utf8_lossy(&bytes[..bytes.len() - 32]).into_owned();
    let mut lines = text.lines();
    let head: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    assert_eq!(head["howdah"], "store");
    let pairs: Vec<Value> =
        lines.filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(pairs.iter().any(|pair| pair["key"] == b64("saved/a") && pair["value"] == b64("1")));
    let secret = STANDARD.encode("/service/compat/howdah/credentials");
    assert!(pairs.iter().all(|pair| pair["key"] != secret.as_str()));
}
