//! Who is a member: forming, joining, leaving, replacing a lost disk, and who is refused.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::time::Duration;

use howdah::raft::{Error, StoreError, force_new_cluster};
use howdah::telemetry::redact::Secret;
use howdah::types::{LeaseId, NodeName};

use super::cluster::{Cluster, SOON, TestNode, put, until};

fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}

fn voters(node: &TestNode) -> Vec<String> {
    let mut names: Vec<String> = node.store.status().voters.into_iter().map(|m| m.name).collect();
    names.sort();
    names
}

#[test]
fn one_node_starts_at_once_and_keeps_its_data() {
    let mut cluster = Cluster::start(&["n1"]);
    for i in 0..100 {
        cluster.node("n1").put(&format!("key{i}"), "value").expect("writes");
    }
    let revision = cluster.node("n1").store.read(howdah::kv::State::revision);
    cluster.kill("n1");
    cluster.launch("n1");
    cluster.wait_leader();
    assert_eq!(cluster.node("n1").get("key99"), Ok(Some("value".to_owned())));
    assert_eq!(cluster.node("n1").store.read(howdah::kv::State::revision), revision);
}

#[test]
fn founders_wait_for_all_of_them() {
    let mut cluster = Cluster::plan(&["n1", "n2", "n3"]);
    cluster.launch("n1");
    cluster.launch("n2");
    let short = Duration::from_millis(300);
    for node in cluster.nodes.values() {
        let store = node.store.clone();
        let result = node.run(async move { store.propose(put("key", "value", LeaseId(0)), short).await });
        assert_eq!(result, Err(StoreError::NoLeader));
    }
    cluster.launch("n3");
    cluster.wait_leader();
    assert_eq!(voters(cluster.node("n3")), ["n1", "n2", "n3"]);
    let founder = cluster.node("n1").store.status();
    assert_eq!(founder.generation, 0);
}

#[test]
fn a_follower_far_behind_gets_a_snapshot() {
    let mut cluster = Cluster::start(&["n1", "n2", "n3"]);
    let away = cluster.follower();
    cluster.kill(&away);
    let leader = cluster.wait_leader();
    let node = cluster.node(&leader);
    for i in 0..2500 {
        node.put(&format!("key{}", i % 50), &i.to_string()).expect("writes");
    }
    until("the log is cut", SOON, || node.store.status().purged.filter(|purged| *purged > 100));
    cluster.launch(&away);
    until("it has everything", SOON, || (cluster.node(&away).local("key49")? == "2499").then_some(()));
    assert!(cluster.node(&away).store.status().snapshot.is_some_and(|at| at > 100));
    assert_eq!(cluster.node(&away).get("key49"), Ok(Some("2499".to_owned())));
}

#[test]
fn a_member_that_lost_its_disk_is_replaced_under_a_new_id() {
    let mut cluster = Cluster::start(&["n1", "n2", "n3"]);
    cluster.node("n1").put("key", "value").expect("writes");
    let old = cluster.node("n2").store.status().id.expect("an id");
    cluster.kill("n2");
    std::fs::remove_dir_all(cluster.data_dir("n2")).expect("removes");
    cluster.wait_leader();
    cluster.launch("n2");
    let new = until("it votes again, and the old one is gone", SOON, || {
        let leader = cluster.wait_leader();
        let status = cluster.node(&leader).store.status();
        let ids: Vec<_> = status.voters.iter().filter(|m| m.name == "n2").map(|m| m.id).collect();
        (status.voters.len() == 3 && status.learners.is_empty() && ids.len() == 1 && ids[0] != old).then(|| ids[0])
    });
    assert_eq!(cluster.node("n2").store.status().id, Some(new));
    assert_eq!(cluster.node("n2").get("key"), Ok(Some("value".to_owned())));
    // It is a full member: the store survives the loss of another one.
    cluster.kill("n1");
    cluster.wait_leader();
    assert!(cluster.node("n2").put("key", "later").is_ok());
}

#[test]
fn members_come_and_go_and_the_majority_is_kept() {
    let mut cluster = Cluster::start(&["n1", "n2"]);
    let founders = cluster.members.clone();
    // A third node that knows the others joins by itself.
    let mut third = cluster.config("n3");
    third.members = founders.clone();
    let addr = third.advertise.clone();
    cluster.launch_with(third);
    until("n3 votes", SOON, || (voters(cluster.node("n3")) == ["n1", "n2", "n3"]).then_some(()));
    // A fourth one knows nobody and is invited.
    let mut fourth = cluster.config("n4");
    fourth.members = BTreeMap::new();
    let fourth_addr = fourth.advertise.clone();
    cluster.launch_with(fourth);
    let store = cluster.node("n1").store.clone();
    cluster.node("n1").run(async move { store.member_add(&name("n4"), &fourth_addr).await }).expect("is added");
    until("n4 votes", SOON, || (voters(cluster.node("n4")).len() == 4).then_some(()));
    // Two nodes cannot have one name.
    let store = cluster.node("n1").store.clone();
    let twice = cluster.node("n1").run(async move { store.member_add(&name("n3"), &addr).await });
    assert!(matches!(twice, Err(StoreError::Refused { .. })), "{twice:?}");
    // With n3 and n4 dead, removing a living one would leave no majority; removing a dead one helps.
    cluster.kill("n4");
    let leader = cluster.wait_leader();
    let remove = |whom: &'static str, by: &str| {
        let store = cluster.node(by).store.clone();
        cluster.node(by).run(async move { store.member_remove(&name(whom)).await })
    };
    until("the leader has noticed that n4 is gone", SOON, || {
        let leader = cluster.wait_leader();
        let status = cluster.node(&leader).store.status();
        status.voters.iter().any(|m| m.name == "n4" && m.reachable == Some(false)).then_some(())
    });
    assert_eq!(remove("n4", &leader), Ok(()));
    assert_eq!(remove("n9", &leader), Err(StoreError::Refused { why: "there is no member named n9".to_owned() }));
    // Whoever leads can be removed too: it hands over first.
    let leader: &'static str = Box::leak(cluster.wait_leader().into_boxed_str());
    let asker = cluster.follower();
    assert_eq!(remove(leader, &asker), Ok(()));
    until("two voters are left", SOON, || (voters(cluster.node(&asker)).len() == 2).then_some(()));
    assert!(cluster.node(&asker).put("key", "value").is_ok());
}

/// Whoever became a voter while another one was about to was thrown out by it, and nobody told him.
#[test]
fn who_joins_at_the_same_time_as_another_stays() {
    for _ in 0..5 {
        let mut cluster = Cluster::start(&["n1"]);
        let founders = cluster.members.clone();
        let joining = ["n2", "n3", "n4", "n5"];
        let configs = joining.map(|node| {
            let mut config = cluster.config(node);
            config.members = founders.clone();
            config
        });
        let started = configs.map(|config| std::thread::spawn(move || TestNode::start(config).expect("starts")));
        for (node, started) in joining.into_iter().zip(started) {
            cluster.nodes.insert(node.to_owned(), started.join().expect("starts"));
        }
        let all = ["n1", "n2", "n3", "n4", "n5"];
        until("all of them vote", SOON, || cluster.nodes.values().all(|node| voters(node) == all).then_some(()));
    }
}

#[test]
fn a_leader_that_stops_orderly_leaves_a_leader_behind() {
    let mut cluster = Cluster::start(&["n1", "n2", "n3"]);
    let first = cluster.wait_leader();
    let mut leaders = cluster.node(&cluster.follower()).store.leader_changes();
    let _ = leaders.borrow_and_update();
    let store = cluster.node(&first).store.clone();
    cluster.node(&first).run(async move { store.shutdown().await });
    until("another one leads", SOON, || leaders.borrow().clone().filter(|name| name.as_str() != first));
    let store = cluster.node(&first).store.clone();
    let after = cluster.node(&first).run(async move { store.propose(put("k", "v", LeaseId(0)), SOON).await });
    assert_eq!(after, Err(StoreError::Shutdown));
    cluster.kill(&first);
    cluster.launch(&first);
    cluster.wait_leader();
}

#[test]
fn the_last_voter_stays() {
    let cluster = Cluster::start(&["n1"]);
    let store = cluster.node("n1").store.clone();
    let result = cluster.node("n1").run(async move { store.member_remove(&name("n1")).await });
    assert!(matches!(&result, Err(StoreError::Refused { why }) if why.contains("last voter")), "{result:?}");
}

#[test]
fn leadership_is_handed_over() {
    let cluster = Cluster::start(&["n1", "n2", "n3"]);
    for _ in 0..5 {
        let target = cluster.follower();
        let store = cluster.node("n1").store.clone();
        let to = name(&target);
        assert_eq!(cluster.node("n1").run(async move { store.transfer_leader(&to).await }), Ok(()));
        until("all follow", SOON, || (cluster.wait_leader() == target).then_some(()));
        cluster.node("n1").put("key", &target).expect("writes");
    }
    let store = cluster.node("n1").store.clone();
    let nobody = cluster.node("n1").run(async move { store.transfer_leader(&name("n9")).await });
    assert!(matches!(nobody, Err(StoreError::Refused { .. })), "{nobody:?}");
}

#[test]
fn a_new_cluster_is_forced_from_one_copy_and_the_others_stay_out() {
    let mut cluster = Cluster::start(&["n1", "n2", "n3"]);
    cluster.node("n1").put("key", "value").expect("writes");
    until("n1 has it", SOON, || cluster.node("n1").local("key"));
    assert!(matches!(force_new_cluster(&cluster.data_dir("n1"), "test"), Err(Error::Locked { .. })));
    for node in ["n1", "n2", "n3"] {
        cluster.kill(node);
    }
    let report = until("n1's directory is free", SOON, || {
        match force_new_cluster(&cluster.data_dir("n1"), "two of three burnt") {
            Ok(report) => Some(report),
            Err(Error::Locked { .. }) => None,
            Err(error) => panic!("{error}"),
        }
    });
    let mut left_behind = report.left_behind.clone();
    left_behind.sort();
    assert_eq!(left_behind, ["n2", "n3"]);
    assert_ne!(report.old_id, report.new_id);
    cluster.launch("n1");
    until("n1 leads alone", SOON, || (voters(cluster.node("n1")) == ["n1"]).then_some(()));
    assert_eq!(cluster.node("n1").get("key"), Ok(Some("value".to_owned())));
    cluster.node("n1").put("key", "new").expect("writes");
    assert_eq!(cluster.node("n1").store.status().generation, report.generation);
    // The others have a majority of the old membership, but of the old generation: they do not meet n1 again.
    cluster.launch("n2");
    cluster.launch("n3");
    until("the old two elect among themselves", SOON, || cluster.node("n2").leader().or(cluster.node("n3").leader()));
    assert_eq!(cluster.node("n1").get("key"), Ok(Some("new".to_owned())));
    assert_eq!(voters(cluster.node("n1")), ["n1"]);
    // Emptied, they join the new one.
    cluster.kill("n2");
    cluster.kill("n3");
    for node in ["n2", "n3"] {
        until("the directory goes", SOON, || std::fs::remove_dir_all(cluster.data_dir(node)).ok());
        cluster.launch(node);
    }
    until("all are members", SOON, || (voters(cluster.node("n1")) == ["n1", "n2", "n3"]).then_some(()));
    until("n3 has the new data", SOON, || (cluster.node("n3").local("key")? == "new").then_some(()));
}

#[test]
fn strangers_and_garbage_are_refused() {
    let mut cluster = Cluster::start(&["n1"]);
    // A node with another secret, and one of another cluster, never become members.
    for (other, change) in [("n2", 0), ("n3", 1)] {
        let mut config = cluster.config(other);
        if change == 0 {
            config.secret = Secret::new("another secret".to_owned());
        } else {
            config.cluster = "elsewhere".parse().expect("a name");
        }
        cluster.launch_with(config);
    }
    let addr = cluster.members[&name("n1")].clone();
    let talk = |bytes: &[u8]| {
        let mut stream = std::net::TcpStream::connect(&addr).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("sets");
        // The other side may close while we still write; what counts is that it survives.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer
    };
    let upgrade = "GET /raft HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: howdah-raft/1\r\n\r\n";
    let plain = talk(b"GET /raft HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(plain.starts_with(b"HTTP/1.1 426"), "{}", String::from_utf8_lossy(&plain));
    for garbage in [
        vec![0xff_u8; 64],
        // A frame that says it is 4 GiB long, one that is empty, one that lies about its checksum.
        [&0xffff_ffff_u32.to_be_bytes()[..], &[1; 32]].concat(),
        0_u32.to_be_bytes().to_vec(),
        [&20_u32.to_be_bytes()[..], &[1, 3], &[0; 18]].concat(),
        (0..10_000).map(|i| (i * 7 % 251) as u8).collect(),
    ] {
        let answer = talk(&[upgrade.as_bytes(), &garbage].concat());
        let text = String::from_utf8_lossy(&answer).into_owned();
        assert!(text.starts_with("HTTP/1.1 101"), "{text}");
        assert!(answer.len() < 200, "a stranger got an answer: {text}");
    }
    assert!(cluster.node("n1").put("key", "value").is_ok());
    assert_eq!(voters(cluster.node("n1")), ["n1"]);
    for other in ["n2", "n3"] {
        assert!(cluster.node(other).leader().is_none());
    }
}

#[test]
fn a_directory_of_another_node_is_refused() {
    let mut cluster = Cluster::start(&["n1"]);
    let in_use = TestNode::start(cluster.config("n1")).map(|_| ());
    assert!(matches!(in_use, Err(Error::Locked { .. })), "{in_use:?}");
    cluster.kill("n1");
    let mut config = cluster.config("n1");
    config.name = name("n2");
    config.advertise = super::cluster::free_addr();
    let refused = until("the directory is free", SOON, || match TestNode::start(config.clone()) {
        Err(Error::Locked { .. }) => None,
        other => Some(other.map(|_| ())),
    });
    assert!(matches!(refused, Err(Error::WrongIdentity { .. })), "{refused:?}");
}

#[test]
fn a_member_that_moved_is_found_again() {
    let mut cluster = Cluster::start(&["n1", "n2", "n3"]);
    cluster.kill("n3");
    let moved = super::cluster::free_addr();
    cluster.members.insert(name("n3"), moved.clone());
    cluster.launch("n3");
    until("the membership has the new address", SOON, || {
        let status = cluster.node("n1").store.status();
        status.voters.iter().any(|m| m.name == "n3" && m.addr == moved).then_some(())
    });
    cluster.node("n1").put("key", "value").expect("writes");
    until("n3 follows", SOON, || cluster.node("n3").local("key"));
}
