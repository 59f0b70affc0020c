//! The load of etcd's own benchmark, on howdah and on a real etcd side by side.
//!
//! ```text
//! cargo bench --bench etcd [-- [--endpoints a:1,b:2] [--clients 1,16,64,256] [--conns N] [--val-size 256]
//!                              [--key-space-size 10000] [--seconds 5] [MODE ...]]
//! ```
//! Modes: put, range (linearizable), range-serializable, txn-mixed (half reads, half writes), watch-latency,
//! lease-keepalive. Without `--endpoints` it starts three nodes of howdah and, if there is one, an etcd of three
//! members, on this machine, and loads them in turn, so that whatever else happens here happens to both. Clients are
//! spread over all members; each has one request under way.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test fails loudly and may talk")]

#[allow(dead_code, unused_imports)]
#[path = "../tests/compat/nodes.rs"]
mod nodes;
#[path = "../tests/kv/etcd.rs"]
mod real;

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp, WatchOptions};
use howdah::telemetry::clock::now;
use howdah::types::Mono;
use nodes::Nodes;
use real::Etcd;

const MODES: [&str; 6] = ["put", "range", "range-serializable", "txn-mixed", "watch-latency", "lease-keepalive"];
const WARM_UP: Duration = Duration::from_secs(1);

struct Options {
    endpoints: Option<Vec<String>>,
    clients: Vec<usize>,
    conns: Option<usize>,
    value: usize,
    keys: usize,
    seconds: u64,
    modes: Vec<String>,
}

fn options() -> Options {
    let mut options = Options {
        endpoints: None,
        clients: vec![1, 16, 64, 256],
        conns: None,
        value: 256,
        keys: 10_000,
        seconds: 5,
        modes: Vec::new(),
    };
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
        match word.as_str() {
            "--endpoints" => options.endpoints = Some(value().split(',').map(str::to_owned).collect()),
            "--clients" => options.clients = value().split(',').map(|n| n.parse().unwrap()).collect(),
            "--conns" => options.conns = Some(value().parse().unwrap()),
            "--val-size" => options.value = value().parse().unwrap(),
            "--key-space-size" => options.keys = value().parse().unwrap(),
            "--seconds" => options.seconds = value().parse().unwrap(),
            mode if MODES.contains(&mode) => options.modes.push(mode.to_owned()),
            other => panic!("{other}: a mode is one of {}", MODES.join(", ")),
        }
    }
    if options.modes.is_empty() {
        options.modes = MODES.map(str::to_owned).to_vec();
    }
    options
}

/// One server under test.
struct Target {
    name: &'static str,
    endpoints: Vec<String>,
    pids: Vec<u32>,
}

impl Target {
    async fn connect(&self, count: usize) -> Vec<Client> {
        let mut clients = Vec::new();
        for at in 0..count {
            let endpoint = &self.endpoints[at % self.endpoints.len()];
            clients.push(Client::connect([endpoint], None).await.unwrap());
        }
        clients
    }

    async fn until_ready(&self) {
        for endpoint in &self.endpoints {
            loop {
                if let Ok(mut client) = Client::connect([endpoint], None).await
                    && client.get("x", None).await.is_ok()
                {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    fn resident_mib(&self) -> Vec<f64> {
        let pages = |pid: &u32| {
            let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
            text.split_whitespace().nth(1).and_then(|pages| pages.parse::<f64>().ok()).unwrap_or(0.0)
        };
        self.pids.iter().map(|pid| pages(pid) * 4096.0 / f64::from(1 << 20)).collect()
    }
}

#[derive(Clone, Copy)]
struct Work {
    begin: Mono,
    end: Mono,
    value: usize,
    keys: usize,
}

/// A number that looks drawn, the same in each run.
fn mixed(number: u64) -> u64 {
    let mut x = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 32;
    x.wrapping_mul(0xd6e8_feb8_6659_fd93) ^ (x >> 29)
}

async fn once(client: &mut Client, mode: &str, key: String, value: &[u8], turn: u64) {
    match mode {
        "put" => drop(client.put(key, value, None).await.unwrap()),
        "range" => drop(client.get(key, None).await.unwrap()),
        "range-serializable" => {
            drop(client.get(key, Some(GetOptions::new().with_serializable())).await.unwrap());
        }
        "txn-mixed" if turn.is_multiple_of(2) => {
            let ops = [TxnOp::get(key.clone(), None)];
            drop(client.txn(Txn::new().and_then(ops)).await.unwrap());
        }
        "txn-mixed" => {
            let ops = [TxnOp::put(key.clone(), value, None)];
            let condition = [Compare::version(key, CompareOp::Greater, -1)];
            drop(client.txn(Txn::new().when(condition).and_then(ops)).await.unwrap());
        }
        other => unreachable!("{other}"),
    }
}

/// Milliseconds of each request.
async fn requests(mut client: Client, mode: String, work: Work, number: u64) -> Vec<f64> {
    let mut took = Vec::new();
    let value = vec![b'x'; work.value];
    if mode == "lease-keepalive" {
        let lease = client.lease_grant(3600, None).await.unwrap().id();
        let (mut keeper, mut answers) = client.lease_keep_alive(lease).await.unwrap();
        loop {
            let before = now();
            if before >= work.end {
                return took;
            }
            keeper.keep_alive().await.unwrap();
            assert!(answers.message().await.unwrap().unwrap().ttl() > 0);
            if before >= work.begin {
                took.push(now().since(before).as_secs_f64() * 1000.0);
            }
        }
    }
    for turn in 0_u64.. {
        let before = now();
        if before >= work.end {
            break;
        }
        let key = format!("bench/{:08}", mixed(number << 32 | turn) % work.keys as u64);
        once(&mut client, &mode, key, &value, turn).await;
        if before >= work.begin {
            took.push(now().since(before).as_secs_f64() * 1000.0);
        }
    }
    took
}

/// From before each put until each of ten watchers has its event, as etcd's benchmark counts it.
async fn watch_latency(target: &Target, clients: usize, work: Work) -> Vec<f64> {
    let latencies = Arc::new(tokio::sync::Mutex::new(Vec::new()));
    let mut putter = target.connect(1).await.remove(0);
    let mut tasks = Vec::new();
    let (put_at, _) = tokio::sync::watch::channel((0_i64, Mono(0)));
    for mut client in target.connect(clients).await {
        let stream = client.watch("watched", Some(WatchOptions::new())).await.unwrap();
        let (latencies, put_at) = (Arc::clone(&latencies), put_at.subscribe());
        tasks.push(tokio::spawn(async move {
            let mut stream = stream;
            while let Ok(Some(answer)) = stream.message().await {
                if answer.events().is_empty() {
                    continue;
                }
                let arrived = now();
                let (_, before) = *put_at.borrow();
                if before >= work.begin {
                    latencies.lock().await.push(arrived.since(before).as_secs_f64() * 1000.0);
                }
            }
        }));
    }
    let mut turn = 0;
    while now() < work.end {
        turn += 1;
        put_at.send_replace((turn, now()));
        putter.put("watched", vec![b'x'; work.value], None).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    std::mem::take(&mut *latencies.lock().await)
}

async fn measure(target: &Target, mode: &str, clients: usize, options: &Options) -> Vec<f64> {
    let begin = now() + WARM_UP;
    let end = begin + Duration::from_secs(options.seconds);
    let work = Work { begin, end, value: options.value, keys: options.keys };
    let mut took = if mode == "watch-latency" {
        watch_latency(target, clients, work).await
    } else {
        // A connection carries many requests, as in etcd's benchmark.
        let connections = options.conns.unwrap_or(clients.min(3 * target.endpoints.len()));
        let connected = target.connect(connections).await;
        let tasks: Vec<_> = (0..clients)
            .map(|number| {
                let client = connected[number % connected.len()].clone();
                tokio::spawn(requests(client, mode.to_owned(), work, number as u64))
            })
            .collect();
        let mut took = Vec::new();
        for task in tasks {
            took.extend(task.await.unwrap());
        }
        took
    };
    took.sort_by(f64::total_cmp);
    took
}

fn line(target: &Target, mode: &str, clients: usize, took: &[f64], seconds: u64) {
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    let rate = took.len() as f64 / seconds as f64;
    let name = target.name;
    println!("{mode:<20} {clients:>7} {name:<8} {rate:>10.0} {:>9.2} {:>9.2}", at(0.5), at(0.99));
}

async fn run(options: Options) {
    let mut targets = Vec::new();
    let mut nodes = None;
    let etcd = match &options.endpoints {
        Some(endpoints) => {
            targets.push(Target { name: "given", endpoints: endpoints.clone(), pids: Vec::new() });
            None
        }
        None => {
            let started = tokio::task::spawn_blocking(|| Nodes::start_with_quota("4GB")).await.unwrap();
            let endpoints = (0..3).map(|at| started.etcd_port(at)).collect();
            targets.push(Target { name: "howdah", endpoints, pids: started.pids() });
            nodes = Some(started);
            let etcd = Etcd::start();
            if let Some(etcd) = &etcd {
                targets.push(Target { name: "etcd", endpoints: etcd.endpoints.clone(), pids: etcd.pids() });
            }
            etcd
        }
    };
    for target in &targets {
        target.until_ready().await;
        println!("{}: resident at rest, MiB: {:.1?}", target.name, target.resident_mib());
    }
    println!("{:<20} {:>7} {:<8} {:>10} {:>9} {:>9}", "mode", "clients", "server", "per s", "p50 ms", "p99 ms");
    for target in &targets {
        // What is read must be there.
        let mut client = target.connect(1).await.remove(0);
        let value = vec![b'x'; options.value];
        for first in (0..options.keys).step_by(100) {
            let puts = (first..options.keys.min(first + 100))
                .map(|key| TxnOp::put(format!("bench/{key:08}"), value.clone(), Some(PutOptions::new())));
            client.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await.unwrap();
        }
    }
    for mode in &options.modes {
        for &clients in &options.clients {
            for target in &targets {
                let took = measure(target, mode, clients, &options).await;
                line(target, mode, clients, &took, options.seconds);
            }
        }
    }
    for target in &targets {
        println!("{}: resident after the load, MiB: {:.1?}", target.name, target.resident_mib());
    }
    drop(etcd);
    tokio::task::spawn_blocking(move || drop(nodes)).await.unwrap();
}

fn main() {
    let options = options();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(run(options));
}
