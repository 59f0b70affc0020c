//! Leases: renewed from anywhere, late but never early in expiring, independent of slow disks.

use std::time::Duration;

use howdah::kv::command::Response;
use howdah::raft::{KeyGuard, RenewOutcome, StoreError};
use howdah::telemetry::clock;
use howdah::types::{LeaseId, Mono};

use super::cluster::{CALL, Cluster, SOON, TestNode, put, until};

fn grant(node: &TestNode, ttl: Duration) -> LeaseId {
    let store = node.store.clone();
    node.run(async move { store.lease_grant(ttl, CALL).await }).expect("grants")
}

fn renew(node: &TestNode, id: LeaseId, guard: Option<KeyGuard>) -> Result<RenewOutcome, StoreError> {
    let store = node.store.clone();
    node.run(async move { store.lease_renew(id, guard, CALL).await })
}

fn hold(node: &TestNode, key: &str, id: LeaseId) -> i64 {
    match node.propose(put(key, "held", id)) {
        Ok(Response::Put(answer)) => answer.revision,
        other => panic!("{other:?}"),
    }
}

/// Waits until the key is gone here, and says when.
fn gone(node: &TestNode, key: &str, within: Duration) -> Mono {
    until("the lease expires", within, || node.local(key).is_none().then(clock::now))
}

#[test]
fn a_lease_lives_while_it_is_renewed_and_not_much_longer() {
    let cluster = Cluster::start(&["n1", "n2", "n3"]);
    let node = cluster.node(&cluster.follower());
    let ttl = Duration::from_secs(1);
    let id = grant(node, ttl);
    hold(node, "key", id);
    let mut last = clock::now();
    for _ in 0..8 {
        last = clock::now();
        assert_eq!(renew(node, id, None), Ok(RenewOutcome::Renewed { ttl }));
        let store = node.store.clone();
        let left = node.run(async move { store.lease_remaining(id, CALL).await }).expect("answers").expect("exists");
        assert!(left <= ttl && left > ttl / 2, "{left:?}");
        std::thread::sleep(Duration::from_millis(300));
        assert!(node.local("key").is_some());
    }
    let end = gone(node, "key", SOON);
    let lived = end.since(last);
    assert!(lived >= ttl, "expired after {lived:?}");
    assert!(lived < ttl + Duration::from_secs(3), "expired only after {lived:?}");
    assert_eq!(renew(node, id, None), Ok(RenewOutcome::LeaseGone));
}

#[test]
fn a_guard_notices_when_its_key_is_another() {
    let cluster = Cluster::start(&["n1"]);
    let node = cluster.node("n1");
    let ttl = Duration::from_secs(30);
    let id = grant(node, ttl);
    let created = hold(node, "key", id);
    let guard = |create_revision| Some(KeyGuard { key: b"key".to_vec(), create_revision });
    assert_eq!(renew(node, id, guard(created)), Ok(RenewOutcome::Renewed { ttl }));
    assert_eq!(renew(node, id, guard(created + 1)), Ok(RenewOutcome::GuardBroken));
    node.put("key", "stolen").expect("writes");
    assert_eq!(renew(node, id, guard(created)), Ok(RenewOutcome::GuardBroken), "the key hangs on no lease now");
    assert_eq!(renew(node, id, None), Ok(RenewOutcome::Renewed { ttl }));
    let store = node.store.clone();
    node.run(async move { store.lease_revoke(id, CALL).await }).expect("revokes");
    assert_eq!(renew(node, id, guard(created)), Ok(RenewOutcome::LeaseGone));
}

#[test]
fn a_new_leader_grants_the_full_time_again() {
    let mut cluster = Cluster::start(&["n1", "n2", "n3"]);
    let leader = cluster.wait_leader();
    let ttl = Duration::from_secs(2);
    let id = grant(cluster.node(&leader), ttl);
    hold(cluster.node(&leader), "key", id);
    // Most of the first time passes before the leader is lost.
    std::thread::sleep(ttl * 3 / 4);
    // Taken before: killing a node takes a moment, in which the others may already elect.
    let lost = clock::now();
    cluster.kill(&leader);
    let second = cluster.wait_leader();
    let node = cluster.node(&second);
    let end = gone(node, "key", SOON);
    let lived = end.since(lost);
    assert!(lived >= ttl, "expired {lived:?} after the old leader was lost");
    assert!(lived < ttl + Duration::from_secs(3), "expired only after {lived:?}");
}

#[test]
fn renewals_do_not_wait_for_slow_disks() {
    let cluster = Cluster::start(&["n1", "n2", "n3"]);
    let node = cluster.node(&cluster.follower());
    let ttl = Duration::from_secs(5);
    let id = grant(node, ttl);
    let slow = Duration::from_millis(200);
    cluster.nodes.values().for_each(|node| node.store.slow_disk(slow));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (mut writes, mut times) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut took = Vec::new();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let before = clock::now();
                cluster.node(&cluster.wait_leader()).put("busy", "value").expect("writes");
                took.push(clock::now().since(before));
            }
            took
        });
        for _ in 0..200 {
            let before = clock::now();
            assert_eq!(renew(node, id, None), Ok(RenewOutcome::Renewed { ttl }));
            times.push(clock::now().since(before));
            std::thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        writes = writer.join().expect("the writer ends");
    });
    times.sort_unstable();
    assert!(writes.iter().all(|took| *took >= slow), "the disk was not slow: {writes:?}");
    // A renewal that waited for the log would never be faster than the disk. How fast it is, the benchmark says.
    let median = times[times.len() / 2];
    assert!(median < slow, "p50 {median:?}, most {:?}", times[times.len() - 1]);
    cluster.nodes.values().for_each(|node| node.store.slow_disk(Duration::ZERO));
}

#[test]
fn a_leader_that_stood_still_expires_nothing_that_was_renewed_elsewhere() {
    let cluster = Cluster::start(&["n1", "n2", "n3"]);
    let first = cluster.wait_leader();
    let ttl = Duration::from_secs(2);
    let id = grant(cluster.node(&first), ttl);
    hold(cluster.node(&first), "key", id);
    let mut restored = cluster.node(&first).store.events();
    let holder = cluster.nodes.keys().find(|name| **name != first).expect("another node").clone();
    std::thread::scope(|scope| {
        let frozen = scope.spawn(|| {
            // The node's only worker thread: nothing of it runs meanwhile.
            #[allow(clippy::disallowed_methods)]
            cluster.node(&first).run(async { std::thread::sleep(Duration::from_secs(5)) });
        });
        let end = clock::now() + Duration::from_secs(8);
        while clock::now() < end {
            assert_eq!(renew(cluster.node(&holder), id, None), Ok(RenewOutcome::Renewed { ttl }));
            std::thread::sleep(Duration::from_millis(100));
        }
        frozen.join().expect("thaws");
    });
    assert_ne!(cluster.wait_leader(), first, "another node took over");
    for node in cluster.nodes.values() {
        assert!(node.local("key").is_some(), "{} lost the key", node.name);
    }
    while let Ok(news) = restored.try_recv() {
        assert!(news.events.iter().all(|e| e.kind == howdah::kv::command::EventKind::Put), "{news:?}");
    }
}

#[test]
fn a_leader_that_stood_still_answers_nothing_out_of_the_past() {
    let cluster = Cluster::start(&["n1", "n2", "n3"]);
    let first = cluster.wait_leader();
    let frozen = cluster.node(&first);
    let id = grant(frozen, Duration::from_secs(60));
    frozen.put("key", "old").expect("writes");
    let (freeze, thaw) = std::sync::mpsc::channel::<()>();
    // The node's only worker thread: nothing of it runs until it is told to.
    let stood_still = frozen.later(async move { thaw.recv() });
    let other = cluster.nodes.keys().find(|name| **name != first).expect("another node").clone();
    until("the others elect", SOON, || {
        cluster.node(&other).leader().filter(|leader| leader.as_str() != first).map(drop)
    });
    until("the others go on", SOON, || cluster.node(&other).put("key", "new").ok());
    let store = cluster.node(&other).store.clone();
    cluster.node(&other).run(async move { store.lease_revoke(id, CALL).await }).expect("revokes");
    let asked: Vec<_> = (0..50)
        .map(|_| {
            let store = frozen.store.clone();
            frozen.later(async move {
                let renewed = store.lease_renew(id, None, CALL).await;
                let guarantee = store.linearize(CALL).await;
                let read = store.read(|kv| kv.get(b"key").map(|pair| pair.value.clone()));
                (renewed, guarantee.is_ok().then_some(read))
            })
        })
        .collect();
    drop(freeze);
    stood_still.recv_timeout(SOON).expect("thaws").expect_err("the other end was dropped");
    for answer in asked {
        let (renewed, read) = answer.recv_timeout(SOON).expect("answers");
        assert!(!matches!(renewed, Ok(RenewOutcome::Renewed { .. })), "a revoked lease was renewed");
        assert!(read.is_none_or(|read| read.as_deref() == Some(b"new")), "a read saw the past");
    }
}

/// In a process with [`JUMPING`], the wall clock is really mad.
const JUMPING: &str = "HOWDAH_WALL_CLOCK_JUMPS";

/// Two readings in a row, in seconds apart.
#[expect(clippy::disallowed_methods, reason = "the clock itself is looked at")]
fn wall_clock_moves_by() -> u64 {
    let (first, second) = (std::time::SystemTime::now(), std::time::SystemTime::now());
    second.duration_since(first).unwrap_or_else(|error| error.duration()).as_secs()
}

/// Whoever corrects a machine's clock ends no lease and keeps none alive: how long a lease lives is counted on a clock that
/// nobody can set. The tests above pass in a process whose wall clock jumps by two hours with every reading.
#[test]
#[cfg(target_os = "linux")]
fn a_wall_clock_that_jumps_ends_no_lease_and_keeps_none() {
    if std::env::var_os(JUMPING).is_some() {
        let moved = wall_clock_moves_by();
        assert!(3600 < moved, "the clock is not mad: {moved} s");
        return;
    }
    let root = tempfile::tempdir().expect("a directory");
    let library = root.path().join("wall_shim.so");
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/raft_store/wall_shim.c");
    let mut cc = std::process::Command::new("cc");
    let built = cc.args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
    assert!(built.expect("cc is there: Rust links with it").success());
    let done = std::process::Command::new(std::env::current_exe().expect("a program"))
        .args([
            "--exact",
            "leases::a_wall_clock_that_jumps_ends_no_lease_and_keeps_none",
            "leases::a_lease_lives_while_it_is_renewed_and_not_much_longer",
            "leases::a_new_leader_grants_the_full_time_again",
        ])
        .env(JUMPING, "1")
        .env("LD_PRELOAD", &library)
        .output()
        .expect("runs");
    let told = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success() && told.contains("3 passed"), "{told}{}", String::from_utf8_lossy(&done.stderr));
}
