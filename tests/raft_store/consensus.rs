//! Three nodes over real listeners: election, writes from anywhere, linearizable reads, failure.

use std::time::Duration;

use super::cluster::{CALL, Cluster, SOON, until};

#[test]
fn three_nodes_elect_and_write_from_anywhere() {
    let cluster = Cluster::start(&["n1", "n2", "n3"]);
    for (at, name) in ["n1", "n2", "n3"].into_iter().enumerate() {
        cluster.node(name).put("key", &at.to_string()).expect("writes");
        for reader in ["n1", "n2", "n3"] {
            assert_eq!(cluster.node(reader).get("key"), Ok(Some(at.to_string())), "{name} wrote, {reader} reads");
        }
    }
}

#[test]
fn a_killed_leader_is_replaced_and_comes_back() {
    let mut cluster = Cluster::start(&["n1", "n2", "n3"]);
    let first = cluster.wait_leader();
    cluster.node(&first).put("key", "before").expect("writes");
    cluster.kill(&first);
    let second = cluster.wait_leader();
    assert_ne!(first, second);
    let follower = cluster.follower();
    assert_eq!(cluster.node(&follower).get("key"), Ok(Some("before".to_owned())));
    cluster.node(&follower).put("key", "after").expect("writes");
    cluster.launch(&first);
    until("the old leader follows", SOON, || (cluster.node(&first).local("key")? == "after").then_some(()));
    assert_eq!(cluster.node(&first).get("key"), Ok(Some("after".to_owned())));
}

#[test]
fn without_a_majority_nothing_is_acknowledged() {
    let mut cluster = Cluster::start(&["n1", "n2", "n3"]);
    let leader = cluster.wait_leader();
    let others: Vec<String> = cluster.nodes.keys().filter(|n| **n != leader).cloned().collect();
    for other in &others {
        cluster.kill(other);
    }
    let store = cluster.node(&leader).store.clone();
    let short = Duration::from_millis(300);
    assert!(cluster.node(&leader).run(async move { store.linearize(short).await }).is_err());
    until("the leader stops to believe in itself", SOON, || cluster.node(&leader).leader().is_none().then_some(()));
    cluster.launch(&others[0]);
    cluster.wait_leader();
    until("writes work again", CALL, || cluster.node(&leader).put("key", "value").ok());
}

#[test]
fn a_node_whose_disk_fails_stops_being_a_member() {
    let mut cluster = Cluster::start(&["n1", "n2", "n3"]);
    for _ in 0..2 {
        let victim = cluster.wait_leader();
        let node = cluster.nodes.get_mut(&victim).expect("it runs");
        node.may_end = true;
        node.store.break_disk();
        // Its own disk counts for nothing now; the others may still commit what it proposes.
        let _ = node.put("key", "while broken");
        let fatal = std::sync::Arc::clone(&node.fatal);
        until("the program is told to end", SOON, || (!fatal.lock().expect("not poisoned").is_empty()).then_some(()));
        cluster.kill(&victim);
        let told = fatal.lock().expect("not poisoned").clone();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("broken by a test"), "{told:?}");
        cluster.wait_leader();
        let follower = cluster.follower();
        cluster.node(&follower).put("key", "after").expect("the others go on");
        cluster.launch(&victim);
        cluster.wait_leader();
        until("it follows again", SOON, || (cluster.node(&victim).local("key")? == "after").then_some(()));
    }
}

#[test]
fn history_is_forgotten_on_all_members_alike() {
    let names = ["n1", "n2", "n3"];
    let mut cluster = Cluster::plan(&names);
    for name in names {
        let mut config = cluster.config(name);
        config.retention.revisions = 100;
        cluster.launch_with(config);
    }
    let leader = cluster.wait_leader();
    for number in 0..150 {
        cluster.node(&leader).put(&format!("key{}", number % 3), &number.to_string()).expect("writes");
    }
    let forgotten = |name: &str| {
        until("history is forgotten", SOON, || {
            let (revision, compacted) = cluster.node(name).store.read(|kv| (kv.revision(), kv.compact_revision()));
            // What is kept, and the tenth more that may pile up.
            (compacted > 0 && revision - compacted <= 110).then_some((revision, compacted))
        })
    };
    for name in names {
        let (revision, compacted) = forgotten(name);
        assert!(100 <= revision - compacted, "{name} keeps only {compacted} to {revision}");
        assert_eq!(cluster.node(name).get("key2"), Ok(Some("149".to_owned())));
    }
    let compacted: Vec<i64> = names.iter().map(|name| forgotten(name).1).collect();
    assert_eq!(compacted, [compacted[0]; 3]);
}
