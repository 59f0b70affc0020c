//! What an idle node costs: processor, memory and disk of agent and guardian, PostgreSQL apart.
//!
//! ```text
//! cargo bench --bench idle [-- SECONDS]      default: 120
//! ```
//! Boot, wait until all is healthy and the Raft leader has settled, then read /proc twice. Figures of the
//! agent are per process and node; Linux only, because they come from /proc.

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

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use cluster::{Cluster, now};
use howdah::dev::processes::{Kind, ProcessId};

/// How long the nodes are watched when nothing else is asked for.
const SECONDS: u64 = 120;

/// Counters of one process at one moment.
#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    cpu_ticks: u64,
    context_switches: u64,
    written_bytes: u64,
}

fn counters(id: ProcessId) -> Counters {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", id.pid)).unwrap_or_default();
    let stat = read("stat");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let context_switches = std::fs::read_dir(format!("/proc/{}/task", id.pid))
        .map(|tasks| {
            let status = tasks.flatten().map(|task| std::fs::read_to_string(task.path().join("status")));
            status.flatten().map(|status| number(&status, "voluntary_ctxt_switches:")).sum()
        })
        .unwrap_or(0);
    // utime and stime are fields 14 and 15 of the line, the 12th and 13th after the name. Source: proc_pid_stat(5).
    Counters { cpu_ticks: field(11) + field(12), context_switches, written_bytes: number(&read("io"), "write_bytes:") }
}

/// The number behind a label at the start of a line.
fn number(text: &str, label: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(label));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// Resident and proportional memory in MiB.
fn memory(id: ProcessId) -> (f64, f64) {
    let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", id.pid)).unwrap_or_default();
    let mib = |label| number(&text, label) as f64 / 1024.0;
    (mib("Rss:"), mib("Pss:"))
}

fn directory_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => directory_bytes(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

fn watched(cluster: &Cluster) -> Vec<(String, Kind, ProcessId)> {
    let mut found = Vec::new();
    for name in cluster.names() {
        for process in cluster.processes(&name).into_iter().filter(|process| process.kind != Kind::Postgres) {
            found.push((name.clone(), process.kind, process.id));
        }
    }
    found
}

fn main() {
    let seconds = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(SECONDS);
    let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
    let cluster = Cluster::boot("idle");
    cluster.until_raft_leader_elsewhere();
    let (primary, leader) = (cluster.expect_primary(), cluster.raft_leader().unwrap_or_default());
    let processes = watched(&cluster);
    let sizes = |cluster: &Cluster| -> BTreeMap<String, u64> {
        cluster.names().into_iter().map(|name| (name.clone(), directory_bytes(&cluster.node(&name).raft))).collect()
    };
    let raft_before = sizes(&cluster);
    let started = now();
    let before: Vec<Counters> = processes.iter().map(|(_, _, id)| counters(*id)).collect();
    std::thread::sleep(Duration::from_secs(seconds));
    let after: Vec<Counters> = processes.iter().map(|(_, _, id)| counters(*id)).collect();
    let span = now().since(started).as_secs_f64();
    let raft_after = sizes(&cluster);

    println!("\nIdle for {span:.0} s; primary {primary}, Raft leader {leader}.\n");
    println!("| node | process | CPU % of a core | RSS MiB | PSS MiB | disk write KiB/s | context switches/s |");
    println!("|---|---|---|---|---|---|---|");
    let mut totals: BTreeMap<&str, [f64; 3]> = BTreeMap::new();
    for ((name, kind, id), (before, after)) in processes.iter().zip(before.iter().zip(&after)) {
        let rate = |later: u64, earlier: u64| later.saturating_sub(earlier) as f64 / span;
        let cpu = 100.0 * rate(after.cpu_ticks, before.cpu_ticks) / ticks_per_second;
        let (rss, pss) = memory(*id);
        let disk = rate(after.written_bytes, before.written_bytes) / 1024.0;
        let switches = rate(after.context_switches, before.context_switches);
        let total = totals.entry(name).or_default();
        for (sum, part) in total.iter_mut().zip([cpu, rss, pss]) {
            *sum += part;
        }
        println!("| {name} | {kind} | {cpu:.2} | {rss:.1} | {pss:.1} | {disk:.2} | {switches:.1} |");
    }
    for (name, [cpu, rss, pss]) in totals {
        println!("| {name} | all of it | {cpu:.2} | {rss:.1} | {pss:.1} | | |");
    }
    println!();
    for (name, bytes) in raft_after {
        let grown = bytes.saturating_sub(raft_before.get(&name).copied().unwrap_or(0));
        println!("{name}: Raft directory {} KiB, {} KiB more than before", bytes / 1024, grown / 1024);
    }
    println!();
    for name in cluster.names() {
        let gone = processes.iter().any(|(node, _, id)| *node == name && !id.is_alive());
        if gone {
            println!("{name}: a process ended while it was watched; its figures are not those of an idle node");
        }
    }
}
