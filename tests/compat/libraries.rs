//! Client libraries, unchanged: etcd-client for Rust, python-etcd3 and etcd3gw for Python.
//!
//! The semantics of keys and watches are `tests/kv`'s business, which drives the Rust client; here is the rest of it.

use std::process::Command;
use std::time::Duration;

use etcd_client::{
    AlarmAction, AlarmType, Client, Compare, CompareOp, GetOptions, LockOptions, Permission, ProclaimOptions,
    PutOptions, ResignOptions, Txn, TxnOp,
};

use crate::nodes::{Nodes, shared};

/// A client that knows all nodes.
async fn connect(nodes: &Nodes) -> Client {
    let endpoints: Vec<String> = (0..3).map(|node| nodes.main_port(node)).collect();
    Client::connect(endpoints, None).await.unwrap()
}

#[test]
fn clients_for_python_work_unchanged() {
    let nodes = shared();
    let root = env!("CARGO_MANIFEST_DIR");
    let output = Command::new("python3")
        .arg(format!("{root}/tests/compat/clients.py"))
        .args((0..3).map(|node| nodes.etcd_port(node)))
        .env("PYTHONPATH", format!("{root}/target/clients/python"))
        .output()
        .expect("python3 runs: make setup-python installs the clients");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.ends_with("all of it works\n"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_for_rust_keeps_leases_and_locks() {
    let nodes = tokio::task::spawn_blocking(shared).await.unwrap();
    let mut client = connect(nodes).await;
    let lease = client.lease_grant(60, None).await.unwrap().id();
    let (mut keeper, mut kept) = client.lease_keep_alive(lease).await.unwrap();
    for _ in 0..3 {
        keeper.keep_alive().await.unwrap();
        assert_eq!(kept.message().await.unwrap().unwrap().ttl(), 60);
    }
    client.put("crate/leased", "1", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    let left = client.lease_time_to_live(lease, None).await.unwrap();
    assert!(left.granted_ttl() == 60 && (1..=60).contains(&left.ttl()), "{left:?}");
    assert!(client.leases().await.unwrap().leases().iter().any(|known| known.id() == lease));

    let lock = client.lock("crate-lock", Some(LockOptions::new().with_lease(lease))).await.unwrap();
    let mut rival = connect(nodes).await;
    let waiting = tokio::spawn(async move { rival.lock("crate-lock", None).await });
    // The rival stands in the queue, and stays there.
    while client.get("crate-lock", Some(GetOptions::new().with_prefix())).await.unwrap().count() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!waiting.is_finished());
    client.unlock(lock.key().to_vec()).await.unwrap();
    let held = waiting.await.unwrap().unwrap().key().to_vec();
    client.unlock(held).await.unwrap();
    client.lease_revoke(lease).await.unwrap();
    assert_eq!(client.get("crate/leased", None).await.unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_for_rust_holds_elections() {
    let nodes = tokio::task::spawn_blocking(shared).await.unwrap();
    let mut client = connect(nodes).await;
    let lease = client.lease_grant(60, None).await.unwrap().id();
    let won = client.campaign("crate-vote", "first", lease).await.unwrap();
    let leader = won.leader().unwrap().clone();
    assert_eq!(leader.name(), b"crate-vote");
    let mut observed = client.observe(leader.name()).await.unwrap();
    assert_eq!(observed.message().await.unwrap().unwrap().kv().unwrap().value(), b"first");
    client.proclaim("second", Some(ProclaimOptions::new().with_leader(leader.clone()))).await.unwrap();
    assert_eq!(observed.message().await.unwrap().unwrap().kv().unwrap().value(), b"second");
    assert_eq!(client.leader("crate-vote").await.unwrap().kv().unwrap().value(), b"second");
    client.resign(Some(ResignOptions::new().with_leader(leader))).await.unwrap();
    assert!(client.leader("crate-vote").await.is_err(), "nobody leads any more");
    client.lease_revoke(lease).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_for_rust_looks_after_the_cluster() {
    let nodes = tokio::task::spawn_blocking(shared).await.unwrap();
    let mut client = connect(nodes).await;
    let status = client.status().await.unwrap();
    assert!(status.version() == "3.6.8" && status.db_size() > 0 && status.leader() != 0, "{status:?}");
    let mut names: Vec<String> =
        client.member_list().await.unwrap().members().iter().map(|member| member.name().to_owned()).collect();
    names.sort();
    assert_eq!(names, ["n1", "n2", "n3"]);
    let alarms = client.alarm(AlarmAction::Get, AlarmType::None, None).await.unwrap();
    assert!(alarms.alarms().is_empty());
    client.defragment().await.unwrap();
    assert!(client.hash_kv(0).await.unwrap().hash() > 0);
    let mut copy = client.snapshot().await.unwrap();
    let mut bytes = 0;
    while let Some(piece) = copy.message().await.unwrap() {
        bytes += piece.blob().len();
    }
    assert_eq!(bytes % 512, 32, "a checksum follows the data");
    client.role_add("crate-role").await.unwrap();
    client.role_grant_permission("crate-role", Permission::read("crate/").with_prefix()).await.unwrap();
    assert_eq!(client.role_get("crate-role").await.unwrap().permissions().len(), 1);
    client.user_add("crate-user", "secret", None).await.unwrap();
    client.user_grant_role("crate-user", "crate-role").await.unwrap();
    assert_eq!(client.user_get("crate-user").await.unwrap().roles(), ["crate-role"]);
    client.user_delete("crate-user").await.unwrap();
    client.role_delete("crate-role").await.unwrap();
    let txn = Txn::new()
        .when([Compare::create_revision("crate/nested", CompareOp::Equal, 0)])
        .and_then([TxnOp::txn(Txn::new().and_then([TxnOp::put("crate/nested", "1", None)]))]);
    assert!(client.txn(txn).await.unwrap().succeeded());
    assert_eq!(client.delete("crate/nested", None).await.unwrap().deleted(), 1);
}
