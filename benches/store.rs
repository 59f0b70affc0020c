//! What the replicated store does per second: three nodes in this process, over loopback, with real disks.
//!
//! `cargo bench --bench store`. Numbers of one machine; compare ratios, not machines.

#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt;
use howdah::kv::command::{Command, PutRequest};
use howdah::raft::{FatalHook, Store, StoreConfig, raft_routes};
use howdah::telemetry::clock;
use howdah::telemetry::redact::Secret;
use howdah::types::{LeaseId, NodeName};

const MEASURE: Duration = Duration::from_secs(3);
const WARM_UP: Duration = Duration::from_millis(500);
const CALL: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(20);

async fn start(
    name: NodeName,
    members: BTreeMap<NodeName, String>,
    listener: std::net::TcpListener,
    dir: &std::path::Path,
) -> Store {
    let config = StoreConfig {
        cluster: "bench".parse().expect("a name"),
        advertise: members[&name].clone(),
        data_dir: dir.join(name.as_str()),
        name,
        members,
        secret: Secret::new("only for benchmarks".to_owned()),
        dialer: howdah::tls::Dialer::plain(),
        heartbeat: Duration::from_millis(100),
        election_min: Duration::from_millis(500),
        election_max: Duration::from_millis(1000),
        snapshot_after: 5000,
        retention: howdah::raft::Retention::default(),
    };
    let fatal: FatalHook = Arc::new(|why: &str| panic!("{why}"));
    let (store, server) = Store::start(config, fatal).await.expect("starts");
    listener.set_nonblocking(true).expect("sets");
    let listener = tokio::net::TcpListener::from_std(listener).expect("listens");
    // As the program's own server does.
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("sets"));
    tokio::spawn(async move { axum::serve(listener, raft_routes(server)).await });
    store
}

#[derive(Clone, Copy)]
enum Work {
    Write,
    Read,
    Renew(LeaseId),
}

async fn once(store: &Store, work: Work, client: usize, turn: u64) {
    match work {
        Work::Write => {
            let put = PutRequest {
                key: format!("bench/{client}/{}", turn % 16).into_bytes(),
                value: vec![b'x'; 256],
                lease: LeaseId(0),
                prev_kv: false,
                ignore_value: false,
                ignore_lease: false,
            };
            store.propose(Command::Put(put), CALL).await.map(drop).expect("writes");
        }
        Work::Read => {
            let _guarantee = store.linearize(CALL).await.expect("reads");
        }
        Work::Renew(lease) => {
            store.lease_renew(lease, None, CALL).await.map(drop).expect("renews");
        }
    }
}

/// Requests per second, median and 99th percentile in milliseconds.
async fn measure(stores: &[Store], work: Work, clients: usize) -> (f64, f64, f64) {
    let begin = clock::now() + WARM_UP;
    let end = begin + MEASURE;
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let store = stores[client % stores.len()].clone();
            tokio::spawn(async move {
                let mut took = Vec::new();
                for turn in 0.. {
                    let before = clock::now();
                    if before >= end {
                        break;
                    }
                    once(&store, work, client, turn).await;
                    if before >= begin {
                        took.push(clock::now().since(before).as_secs_f64() * 1000.0);
                    }
                }
                took
            })
        })
        .collect();
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await.expect("a client ends"));
    }
    took.sort_by(f64::total_cmp);
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    (took.len() as f64 / MEASURE.as_secs_f64(), at(0.5), at(0.99))
}

/// Processor time of this process so far.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields.iter().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn resident_mb() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split_whitespace().nth(1).and_then(|f| f.parse().ok()).unwrap_or(0);
    pages * 4 / 1024
}

fn disk_bytes(dir: &std::path::Path) -> u64 {
    let list = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |item: std::fs::DirEntry| match item.metadata() {
        Ok(meta) if meta.is_dir() => disk_bytes(&item.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    list.map(size).sum()
}

/// Forgets history once per second, as a program that uses the store must.
async fn compact(store: Store) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let revision = store.read(howdah::kv::State::revision);
        // An error says that nothing was written since.
        let _ = store.propose(Command::Compact { revision }, CALL).await;
    }
}

fn report(when: &str, dir: &std::path::Path) {
    println!("{when}: {} MB resident, {} MB on disk, for three nodes", resident_mb(), disk_bytes(dir) >> 20);
}

async fn run(dir: &std::path::Path) {
    let mut members = BTreeMap::new();
    let mut listeners = BTreeMap::new();
    for name in ["n1", "n2", "n3"] {
        let name: NodeName = name.parse().expect("a name");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        members.insert(name.clone(), listener.local_addr().expect("an address").to_string());
        listeners.insert(name, listener);
    }
    let mut stores = Vec::new();
    for (name, listener) in listeners {
        stores.push(start(name, members.clone(), listener, dir).await);
    }
    report("before the first request", dir);
    let lease = stores[0].lease_grant(Duration::from_secs(3600), Duration::from_secs(30)).await.expect("a leader");
    let leader = stores.iter().position(|s| s.status().leader.is_some_and(|(_, name)| name == s.status().name));
    let at_leader = vec![stores[leader.expect("somebody leads")].clone()];
    let compactor = tokio::spawn(compact(stores[0].clone()));
    println!("{:<28} {:>8} {:>10} {:>9} {:>9}", "three nodes, one process", "clients", "per s", "p50 ms", "p99 ms");
    for (what, work) in
        [("write", Work::Write), ("linearizable read", Work::Read), ("lease renewal", Work::Renew(lease))]
    {
        for (place, at) in [("at the leader", &at_leader), ("at any node", &stores)] {
            for clients in [1, 16, 64] {
                let (rate, p50, p99) = measure(at, work, clients).await;
                println!("{:<28} {clients:>8} {rate:>10.0} {p50:>9.2} {p99:>9.2}", format!("{what} {place}"));
            }
        }
    }
    report("after that", dir);
    compactor.abort();
    idle(&stores, lease).await;
    for store in &stores {
        store.shutdown().await;
    }
}

/// Three nodes that only beat, each renewing a lease once per second.
async fn idle(stores: &[Store], lease: LeaseId) {
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (before, started) = (cpu(), clock::now());
    let end = started + IDLE;
    while clock::now() < end {
        for store in stores {
            once(store, Work::Renew(lease), 0, 0).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let share = (cpu() - before).as_secs_f64() / clock::now().since(started).as_secs_f64() * 100.0;
    println!("idle: {:.2} % of a core per node", share / stores.len() as f64);
}

fn main() {
    let dir = tempfile::tempdir().expect("a directory");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(dir.path()));
}
