//! Nodes are killed, frozen, slowed and relieved of leadership at random, while holders take and renew
//! a lock and readers read. Nobody may ever hold the lock together with another, and no read may miss
//! a write that was acknowledged before it began.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::Duration;

use howdah::kv::command::{
    Command, Compare, CompareResult, CompareTarget, PutRequest, RequestOp, Response, TxnRequest,
};
use howdah::raft::{KeyGuard, RenewOutcome};
use howdah::telemetry::clock;
use howdah::types::{LeaseId, Mono};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::cluster::{Cluster, TestNode, put};

const LENGTH: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_secs(1);
const TRY: Duration = Duration::from_millis(800);

/// A time in which a holder believed that the lock was its own.
#[derive(Debug, Clone, Copy)]
struct Held {
    term: i64,
    from: Mono,
    until: Mono,
}

/// Takes the lock if nobody has it; answers its creation.
fn take(node: &TestNode, lease: LeaseId) -> Option<i64> {
    let put = PutRequest {
        key: b"lock".to_vec(),
        value: Vec::new(),
        lease,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    };
    let free = Compare {
        key: b"lock".to_vec(),
        range_end: Vec::new(),
        result: CompareResult::Equal,
        target: CompareTarget::Create(0),
    };
    let txn = TxnRequest { compare: vec![free], success: vec![RequestOp::Put(put)], failure: Vec::new() };
    let store = node.store.clone();
    match node.run(async move { store.propose(Command::Txn(txn), TRY).await }) {
        Ok(Response::Txn(answer)) if answer.succeeded => Some(answer.revision),
        _ => None,
    }
}

fn renew(node: &TestNode, lease: LeaseId, term: i64) -> bool {
    let guard = Some(KeyGuard { key: b"lock".to_vec(), create_revision: term });
    let store = node.store.clone();
    let outcome = node.run(async move { store.lease_renew(lease, guard, TRY).await });
    matches!(outcome, Ok(RenewOutcome::Renewed { .. }))
}

type Nodes = [RwLock<Option<TestNode>>];

/// Holds the lock as often and as long as it can, through one node after the other.
fn hold(nodes: &Nodes, holder: usize, end: Mono, ledger: &Mutex<Vec<Held>>) {
    let mut random = StdRng::seed_from_u64(holder as u64);
    let on_any = |random: &mut StdRng, work: &mut dyn FnMut(&TestNode)| {
        if let Some(node) = nodes[random.random_range(0..nodes.len())].read().expect("not poisoned").as_ref() {
            work(node);
        }
    };
    while clock::now() < end {
        let (mut lease, mut term) = (None, None);
        let mut until = Mono(0);
        on_any(&mut random, &mut |node| {
            let store = node.store.clone();
            lease = node.run(async move { store.lease_grant(TTL, TRY).await }).ok();
        });
        let Some(lease) = lease else { continue };
        for _ in 0..5 {
            let before = clock::now();
            let mut got = None;
            on_any(&mut random, &mut |node| got = take(node, lease));
            if let Some(got) = got {
                // The lease may be older than the lock: only a renewal says how long it lives.
                term = Some(got);
                until = before;
                break;
            }
        }
        let Some(term) = term else { continue };
        // Sometimes it falls silent, and somebody else shall get the lock.
        for _ in 0..random.random_range(1..30) {
            let before = clock::now();
            let mut renewed = false;
            on_any(&mut random, &mut |node| renewed = renew(node, lease, term));
            let now = clock::now();
            if renewed && now < before + TTL {
                until = before + TTL;
                ledger.lock().expect("not poisoned").push(Held { term, from: now, until });
            } else if now > until + TTL {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn count_up(nodes: &Nodes, end: Mono, acknowledged: &AtomicU64) {
    let mut value = 0;
    while clock::now() < end {
        for slot in nodes {
            let node = slot.read().expect("not poisoned");
            let Some(node) = node.as_ref() else { continue };
            value += 1;
            let command = put("count", &value.to_string(), LeaseId(0));
            let store = node.store.clone();
            if node.run(async move { store.propose(command, TRY).await }).is_ok() {
                acknowledged.fetch_max(value, Ordering::SeqCst);
            }
        }
    }
}

fn read(nodes: &Nodes, end: Mono, acknowledged: &AtomicU64, reads: &AtomicU64) {
    while clock::now() < end {
        for slot in nodes {
            let node = slot.read().expect("not poisoned");
            let Some(node) = node.as_ref() else { continue };
            let least = acknowledged.load(Ordering::SeqCst);
            let store = node.store.clone();
            if let Ok(guarantee) = node.run(async move { store.linearize(TRY).await }) {
                let seen: u64 = node.local("count").map_or(0, |text| text.parse().expect("a number"));
                assert!(seen >= least, "{} read {seen}, but {least} was acknowledged before", node.name);
                assert!(guarantee.revision > 0);
                reads.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// One disturbance after the other.
fn disturb(cluster: &Cluster, nodes: &Nodes, names: &[String], end: Mono) {
    let mut random = StdRng::seed_from_u64(99);
    while clock::now() < end {
        let victim = random.random_range(0..nodes.len());
        let kind = random.random_range(0..4);
        match kind {
            0 => {
                drop(nodes[victim].write().expect("not poisoned").take());
                std::thread::sleep(Duration::from_millis(random.random_range(100..1500)));
                let started = super::cluster::until("it starts again", Duration::from_secs(20), || {
                    TestNode::start(cluster.config(&names[victim])).ok()
                });
                *nodes[victim].write().expect("not poisoned") = Some(started);
            }
            1 => {
                let node = nodes[victim].read().expect("not poisoned");
                let pause = Duration::from_millis(random.random_range(100..2500));
                #[allow(clippy::disallowed_methods)]
                node.as_ref().expect("only this thread stops nodes").run(async move { std::thread::sleep(pause) });
            }
            2 => {
                let node = nodes[victim].read().expect("not poisoned");
                let store = &node.as_ref().expect("only this thread stops nodes").store;
                store.slow_disk(Duration::from_millis(random.random_range(10..200)));
                std::thread::sleep(Duration::from_secs(1));
                store.slow_disk(Duration::ZERO);
            }
            _ => {
                let node = nodes[victim].read().expect("not poisoned");
                let node = node.as_ref().expect("only this thread stops nodes");
                let to = names[random.random_range(0..names.len())].parse().expect("a name");
                let store = node.store.clone();
                let _ = node.run(async move { store.transfer_leader(&to).await });
            }
        }
        std::thread::sleep(Duration::from_millis(random.random_range(0..1500)));
    }
}

#[test]
fn nobody_holds_the_lock_together_and_no_read_is_stale() {
    let mut cluster = Cluster::start(&["n1", "n2", "n3"]);
    let names: Vec<String> = cluster.nodes.keys().cloned().collect();
    let nodes: Vec<RwLock<Option<TestNode>>> =
        names.iter().map(|name| RwLock::new(cluster.nodes.remove(name))).collect();
    let (ledger, acknowledged, reads) = (Mutex::new(Vec::new()), AtomicU64::new(0), AtomicU64::new(0));
    let end = clock::now() + LENGTH;
    std::thread::scope(|scope| {
        scope.spawn(|| disturb(&cluster, &nodes, &names, end));
        for holder in 0..3 {
            let (nodes, ledger) = (&nodes, &ledger);
            scope.spawn(move || hold(nodes, holder, end, ledger));
        }
        scope.spawn(|| count_up(&nodes, end, &acknowledged));
        scope.spawn(|| read(&nodes, end, &acknowledged, &reads));
    });
    let mut ledger = ledger.into_inner().expect("not poisoned");
    ledger.sort_by_key(|held| held.from);
    let terms: std::collections::BTreeSet<i64> = ledger.iter().map(|held| held.term).collect();
    // A holder's time ends with its last renewal; nobody else's begins before that.
    let mut last: Option<Held> = None;
    for held in &ledger {
        if let Some(last) = last.filter(|last| last.term != held.term) {
            assert!(held.from >= last.until, "{last:?} and {held:?} overlap");
        }
        last = Some(last.map_or(*held, |last| if last.until > held.until { last } else { *held }));
    }
    assert!(terms.len() >= 3, "the lock changed hands only {} times", terms.len());
    assert!(reads.load(Ordering::Relaxed) > 100 && acknowledged.load(Ordering::Relaxed) > 50);
}
