//! What the router costs: latency of one client, throughput of sixteen, directly, through it, and through HAProxy.
//!
//! ```text
//! cargo bench --bench router [-- ROUNDS]      default: 5 rounds of 5 s for each way
//! ```
//! The ways take turns within each round, so that whatever else the machine does meets all of them; ratios are of the
//! rounds, and their median is printed. HAProxy is left out when it is not installed. Clients, router and PostgreSQL
//! share the machine: what the router takes of the processor, the others lack.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a bench fails loudly and talks")]

// Shared with the end-to-end tests, which need more of it than a bench does.
#[allow(dead_code, unused_imports)]
#[path = "../tests/e2e/cluster.rs"]
mod cluster;
#[allow(dead_code, unused_imports)]
#[path = "../tests/e2e/observe.rs"]
mod observe;
#[allow(dead_code, unused_imports)]
#[path = "../tests/e2e/report.rs"]
mod report;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cluster::{Cluster, LIMIT, now};

/// Questions of one client in one turn.
const QUESTIONS: usize = 2_000;
/// Turns of one client.
const TURNS: usize = 20;
const CLIENTS: &str = "16";
const SECONDS: &str = "5";

/// One way to the primary.
struct Way {
    name: &'static str,
    port: u16,
}

/// The system's HAProxy, or the one that `make setup-haproxy` unpacks.
fn haproxy() -> Command {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients/haproxy");
    let program = unpacked.join("usr/sbin/haproxy");
    if !program.is_file() {
        return Command::new("haproxy");
    }
    let mut command = Command::new(program);
    if let Ok(libraries) = std::fs::read_dir(unpacked.join("usr/lib")) {
        let paths = libraries.flatten().map(|entry| entry.path());
        command.env("LD_LIBRARY_PATH", std::env::join_paths(paths).expect("paths without colons"));
    }
    command
}

/// HAProxy in front of the primary; ends with this.
struct HaProxy {
    child: Child,
    port: u16,
}

impl HaProxy {
    fn start(cluster: &Cluster, primary: u16) -> Option<Self> {
        let version = haproxy().arg("-v").output().ok().filter(|output| output.status.success())?;
        println!("{}", String::from_utf8_lossy(&version.stdout).lines().next().unwrap_or_default());
        let port = (23_000..24_000).find(|port| howdah::dev::ports::is_free(*port)).expect("a free port");
        let file = cluster.layout.dir.join("haproxy.cfg");
        let text = format!(
            "global\n    maxconn 1000\ndefaults\n    mode tcp\n    timeout connect 5s\n    timeout client 60s\n    \
             timeout server 60s\nlisten primary\n    bind 127.0.0.1:{port}\n    server p 127.0.0.1:{primary}\n"
        );
        std::fs::write(&file, text).expect("written");
        let child = haproxy().arg("-db").arg("-q").arg("-f").arg(&file).spawn().expect("it starts");
        let deadline = now() + LIMIT;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(now() < deadline, "haproxy does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(Self { child, port })
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client that does nothing but ask `select 1` and wait: a library's own work would hide what is measured.
struct Asker(TcpStream);

impl Asker {
    fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).expect("connected");
        stream.set_nodelay(true).expect("set");
        let mut asker = Self(stream);
        let words = b"user\0bench\0database\0postgres\0\0";
        let mut startup = (u32::try_from(words.len()).unwrap() + 8).to_be_bytes().to_vec();
        startup.extend((3u32 << 16).to_be_bytes());
        startup.extend(words);
        asker.0.write_all(&startup).expect("sent");
        asker.until_ready();
        asker
    }

    /// Reads until ReadyForQuery, which ends each answer: `Z`, length 5, idle.
    fn until_ready(&mut self) {
        let mut all = Vec::new();
        let mut piece = [0; 4096];
        while !all.ends_with(b"Z\0\0\0\x05I") {
            let count = self.0.read(&mut piece).expect("an answer");
            assert!(count != 0, "closed: {}", String::from_utf8_lossy(&all));
            all.extend_from_slice(&piece[..count]);
        }
    }

    fn ask(&mut self) -> Duration {
        let from = now();
        self.0.write_all(b"Q\0\0\0\x0dselect 1\0").expect("sent");
        self.until_ready();
        now().since(from)
    }
}

fn median<T: Copy + PartialOrd>(values: &mut [T]) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).expect("comparable"));
    values[values.len() / 2]
}

fn latency(ways: &[Way]) {
    let mut askers: Vec<Asker> = ways.iter().map(|way| Asker::connect(way.port)).collect();
    let mut times: Vec<Vec<Duration>> = ways.iter().map(|_| Vec::new()).collect();
    for turn in 0..TURNS {
        for (asker, times) in askers.iter_mut().zip(&mut times) {
            let asked: Vec<Duration> = (0..QUESTIONS).map(|_| asker.ask()).collect();
            // The first turn warms up.
            if turn != 0 {
                times.extend(asked);
            }
        }
    }
    println!("\n| one client, select 1 | p50 us | p99 us | added p50 us |\n|---|---|---|---|");
    let micros = |span: Duration| span.as_secs_f64() * 1e6;
    let direct = micros(median(&mut times[0]));
    for (way, times) in ways.iter().zip(&mut times) {
        let (p50, p99) = (micros(median(times)), micros(times[times.len() * 99 / 100]));
        println!("| {} | {p50:.1} | {p99:.1} | {:.1} |", way.name, p50 - direct);
    }
}

fn pgbench(cluster: &Cluster, port: u16, args: &[&str]) -> String {
    let mut command = cluster.postgres_command("pgbench");
    command.args(["-h", "127.0.0.1", "-U", "bench", "-p"]).arg(port.to_string()).args(args).arg("postgres");
    let output = command.stderr(Stdio::piped()).output().expect("pgbench runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn throughput(cluster: &Cluster, ways: &[Way], rounds: usize) {
    let mut rates: Vec<Vec<f64>> = ways.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        // Whoever comes first in a round differs.
        for turn in 0..ways.len() {
            let at = (round + turn) % ways.len();
            let text = pgbench(cluster, ways[at].port, &["-n", "-S", "-c", CLIENTS, "-j", "2", "-T", SECONDS]);
            let line = text.lines().find_map(|line| line.strip_prefix("tps = ")).expect("a rate");
            rates[at].push(line.split(' ').next().and_then(|rate| rate.parse().ok()).expect("a number"));
        }
    }
    println!("\n| pgbench -S, {CLIENTS} clients | per second | of direct |\n|---|---|---|");
    let direct = rates[0].clone();
    for (way, rates) in ways.iter().zip(&mut rates) {
        let mut ratios: Vec<f64> = rates.iter().zip(&direct).map(|(rate, direct)| rate / direct).collect();
        println!("| {} | {:.0} | {:.0} % |", way.name, median(rates), median(&mut ratios) * 100.0);
    }
}

fn main() {
    let rounds = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(5);
    let options = cluster::Options::default();
    let prepared = Cluster::boot_with("router-bench", &options);
    let primary = prepared.expect_primary();
    let node = prepared.node(&primary);
    // Password hashing is not what is measured here.
    let role = "create role bench superuser login";
    prepared.sql(&primary, role).expect("a role");
    let trust = "host all bench 127.0.0.1/32 trust\n";
    let hba = node.data.join("pg_hba.conf");
    let old = std::fs::read_to_string(&hba).expect("pg_hba.conf");
    std::fs::write(&hba, format!("{trust}{old}")).expect("written");
    prepared.sql(&primary, "select pg_reload_conf()").expect("reloaded");
    let router = node.router.expect("a router").primary;
    let haproxy = HaProxy::start(&prepared, node.postgres.port());
    let mut ways = vec![Way { name: "direct", port: node.postgres.port() }, Way { name: "router", port: router }];
    ways.extend(haproxy.as_ref().map(|haproxy| Way { name: "HAProxy", port: haproxy.port }));
    pgbench(&prepared, node.postgres.port(), &["-i", "-q", "-s", "10"]);
    prepared.until_raft_leader_elsewhere();
    latency(&ways);
    throughput(&prepared, &ways, rounds);
}
