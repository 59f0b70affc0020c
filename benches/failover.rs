//! How long clients cannot write: each kind of failure, many times, as median (minimum - maximum).
//!
//! ```text
//! cargo bench --bench failover [-- TRIALS] [-- TRIALS SCENARIO...]      default: 10 trials of everything
//! ```
//! The same functions as the end-to-end tests, on the same ledger. The fault comes at a random phase of the
//! heartbeat, because an outage depends on when the lease was last renewed. One cluster serves all trials of a
//! scenario and is healthy again before each. Nothing is asserted but that the cluster comes back.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test fails loudly and may talk")]

// Shared with the end-to-end tests, which need more of it than a bench does.
#[allow(dead_code, unused_imports)]
#[path = "../tests/e2e/cluster.rs"]
mod cluster;
#[allow(dead_code, unused_imports)]
#[path = "../tests/e2e/ledger.rs"]
mod ledger;
#[allow(dead_code, unused_imports)]
#[path = "../tests/e2e/observe.rs"]
mod observe;
#[allow(dead_code, unused_imports)]
#[path = "../tests/e2e/report.rs"]
mod report;
#[allow(dead_code, unused_imports)]
#[path = "../tests/e2e/scenario.rs"]
mod scenario;

use std::time::Duration;

use cluster::Cluster;
use scenario::{History, Outcome};

/// Trials of each scenario when none are asked for.
const TRIALS: usize = 10;
/// The heartbeat that the phase is drawn from: the default `loop_wait`.
const HEARTBEAT_MS: u64 = 1_000;

/// One row of the table.
struct Row {
    name: String,
    client: Vec<Duration>,
    server: Vec<Duration>,
    takeover: Vec<Duration>,
    rejoin: Vec<Duration>,
    lost: Vec<usize>,
    split: usize,
    late: usize,
}

impl Row {
    fn new(name: &str) -> Self {
        let name = name.to_owned();
        Self { name, client: vec![], server: vec![], takeover: vec![], rejoin: vec![], lost: vec![], split: 0, late: 0 }
    }

    fn add(&mut self, outcome: &Outcome) {
        self.client.push(outcome.client_gap);
        self.server.push(outcome.server_gap);
        self.takeover.extend(outcome.takeover);
        self.rejoin.extend(outcome.rejoin);
        self.lost.push(outcome.report.lost.len());
        self.split += outcome.overlap.split;
        self.late += outcome.overlap.late;
    }

    fn print(&self) {
        let Self { name, client, server, takeover, rejoin, lost, split, late } = self;
        let (count, client, server) = (client.len(), spread(client), spread(server));
        let (takeover, rejoin) = (spread(takeover), spread(rejoin));
        let lost: Vec<String> = lost.iter().map(usize::to_string).collect();
        let lost = lost.join(",");
        println!("| {name} | {count} | {client} | {server} | {takeover} | {rejoin} | {lost} | {split} / {late} |");
    }
}

/// `2.31 (2.10-2.80)` in seconds; `-` when there is nothing.
fn spread(values: &[Duration]) -> String {
    let mut seconds: Vec<f64> = values.iter().map(Duration::as_secs_f64).collect();
    seconds.sort_by(f64::total_cmp);
    let (Some(first), Some(last)) = (seconds.first(), seconds.last()) else { return "-".to_owned() };
    let upper = seconds[seconds.len() / 2];
    let lower = seconds[(seconds.len() - 1) / 2];
    format!("{:.2} ({first:.2}-{last:.2})", f64::midpoint(lower, upper))
}

fn random_phase() {
    std::thread::sleep(Duration::from_millis(rand::Rng::random_range(&mut rand::rng(), 0..HEARTBEAT_MS)));
}

/// Repeats one scenario on a cluster of its own.
fn repeat(name: &str, trials: usize, mut trial: impl FnMut(&mut Cluster) -> Outcome) -> Row {
    let mut cluster = Cluster::boot(&name.replace(',', "").replace(' ', "-"));
    let mut row = Row::new(name);
    for _ in 0..trials {
        cluster.until_healthy();
        cluster.until_raft_leader_elsewhere();
        random_phase();
        row.add(&trial(&mut cluster));
    }
    row
}

fn switchover(trials: usize) -> Row {
    let cluster = Cluster::boot("switchover");
    let (rounds, report) = scenario::switchovers(&cluster, trials);
    let mut row = Row::new("planned switchover");
    for round in rounds {
        row.client.push(round.client_gap);
        row.server.push(round.server_gap);
        row.takeover.extend(round.takeover);
        row.split += round.overlap.split;
        row.late += round.overlap.late;
    }
    row.lost = vec![report.lost.len()];
    row
}

/// Everything that can be asked for by name.
fn run(name: &str, trials: usize) -> Option<Row> {
    let row = match name {
        "switchover" => switchover(trials),
        "postmaster-kill" => repeat("postmaster kill", trials, |c| scenario::postmaster_kill(c)),
        "node-kill" => repeat("node kill", trials, |c| scenario::node_kill(c, History::AsItWas)),
        "agent-restart" => repeat("agent kill, restarted", trials, scenario::agent_kill_and_restart),
        "agent-kill" => repeat("agent kill", trials, scenario::agent_kill),
        "agent-freeze" => repeat("agent freeze", trials, |c| scenario::agent_freeze(c, Duration::ZERO)),
        "node-freeze" => repeat("node freeze", trials, |c| scenario::node_freeze(c)),
        "power-cut" => repeat("power cut", trials, scenario::power_cut),
        _ => return None,
    };
    Some(row)
}

const SCENARIOS: [&str; 8] = [
    "switchover",
    "postmaster-kill",
    "node-kill",
    "agent-restart",
    "agent-kill",
    "agent-freeze",
    "node-freeze",
    "power-cut",
];

fn boots(trials: usize) {
    let times: Vec<cluster::BootTimes> = (0..trials).map(|_| Cluster::boot("boot").boot).collect();
    let first: Vec<Duration> = times.iter().map(|boot| boot.first_write).collect();
    let healthy: Vec<Duration> = times.iter().map(|boot| boot.healthy).collect();
    println!("\nempty directories to the first write: {} s", spread(&first));
    println!("empty directories to three healthy nodes: {} s", spread(&healthy));
}

fn main() {
    // `cargo bench` adds --bench; a number is the count of trials; the rest are names.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let trials = words.iter().find_map(|word| word.parse().ok()).unwrap_or(TRIALS);
    let mut names: Vec<&str> = words.iter().map(String::as_str).filter(|word| word.parse::<usize>().is_err()).collect();
    let everything = names.is_empty();
    if everything {
        names = SCENARIOS.to_vec();
    }
    let mut rows = Vec::new();
    for name in names {
        match run(name, trials) {
            Some(row) => rows.push(row),
            None => println!("unknown scenario {name}; known are: {}", SCENARIOS.join(" ")),
        }
    }
    println!("\nSeconds: median (minimum-maximum). Default settings, quorum mode, three nodes on loopback.\n");
    println!(
        "| event | n | no writes, client | no writes, server | new primary writes after | back as replica after | lost \
         acked per trial | split / late acks |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for row in &rows {
        row.print();
    }
    if everything {
        boots(trials.min(5));
    }
}
