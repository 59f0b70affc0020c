//! What a node's REST interface takes: health checks under load, and the time of `howdah list`.
//!
//! ```text
//! cargo bench --bench rest [-- SECONDS]      default: 10 for each endpoint
//! ```
//! Boot, wait until all is healthy, then 16 clients ask the primary as load balancers do: a new connection for each
//! check. Latency is from before the connection to the end of the answer.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test fails loudly and may talk")]

#[allow(dead_code, unused_imports)]
#[path = "../tests/e2e/cluster.rs"]
mod cluster;
#[allow(dead_code, unused_imports)]
#[path = "../tests/e2e/observe.rs"]
mod observe;
#[allow(dead_code, unused_imports)]
#[path = "../tests/e2e/report.rs"]
mod report;

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use cluster::{Cluster, now};
use howdah::dev::rest;

/// How long each endpoint is asked when nothing else is said.
const SECONDS: u64 = 10;
/// Clients at a time.
const CLIENTS: usize = 16;
/// How often the command line is timed.
const LISTS: usize = 20;

/// Asks until the time is over; the latency of each answer.
fn ask(address: SocketAddr, path: &str, span: Duration) -> Vec<Duration> {
    let deadline = now() + span;
    let mut latencies = Vec::new();
    while now() < deadline {
        let before = now();
        let answer = rest::get(address, path, Duration::from_secs(5)).expect("an answer");
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        latencies.push(now().since(before));
    }
    latencies
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

fn main() {
    let seconds = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(SECONDS);
    let cluster = Cluster::boot("rest");
    let primary = cluster.expect_primary();
    let address = cluster.node(&primary).rest;
    println!("| request | per second | p50 | p99 |\n|---|---|---|---|");
    for path in ["/patroni", "/primary"] {
        let span = Duration::from_secs(seconds);
        let mut all: Vec<Duration> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(move || ask(address, path, span))).collect();
            clients.into_iter().flat_map(|client| client.join().expect("a client")).collect()
        });
        all.sort_unstable();
        let (p50, p99) = (percentile(&all, 50), percentile(&all, 99));
        println!("| GET {path} | {:.0} | {p50:.1?} | {p99:.1?} |", all.len() as f64 / span.as_secs_f64());
    }
    let mut lists: Vec<Duration> = (0..LISTS)
        .map(|_| {
            let before = now();
            let url = format!("http://{address}");
            let output = Command::new(env!("CARGO_BIN_EXE_howdah")).args(["list", "--url", &url]).output().unwrap();
            assert!(output.status.success());
            now().since(before)
        })
        .collect();
    lists.sort_unstable();
    println!("| howdah list | | {:.1?} | {:.1?} |", percentile(&lists, 50), percentile(&lists, 99));
}
