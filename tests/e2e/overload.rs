//! A machine with more to do than it can: no reason to move the primary.
//!
//! ```text
//! busy threads, three for each core | pgbench | a ledger | CHECKPOINT again and again, and little WAL between two of them
//!   -> as long as asked (OVERLOAD_SECONDS)
//!   -> judged: term, timeline, postmasters are those of before; nobody was fenced, demoted or promoted
//!   -> told: elections of Raft, how near the permit came to its end, the longest time without an acknowledgement
//! ```

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use howdah::dev::node_yaml::Settings;
use howdah::dev::processes::ProcessId;
use howdah::dev::rest;
use serde_json::{Value, json};

use crate::cluster::{Cluster, LIMIT, Options, now};
use crate::ledger::Ledger;
use crate::log_gate::LogGate;
use crate::observe;
use crate::report::{Window, measured};

/// Busy threads for each core.
const THREADS_FOR_A_CORE: usize = 3;
/// Time between two checkpoints of the storm.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// Time between two looks at the primary.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Reasons that say that a leadership ended, or was about to.
const ENDS: [&str; 5] =
    ["permit_lost", "leader_key_gone", "leader_is_other", "release_again", "crashed_restart_in_place"];

/// `make soak` gives it the rest of its time.
fn span() -> Duration {
    let asked = std::env::var("OVERLOAD_SECONDS").ok();
    Duration::from_secs(asked.map_or(30, |text| text.parse().expect("OVERLOAD_SECONDS is a number of seconds")))
}

/// What must be the same afterwards.
#[derive(Debug, PartialEq, Eq)]
struct Standing {
    primary: Option<String>,
    term: Value,
    timeline: Option<i64>,
    postmasters: BTreeMap<String, Option<ProcessId>>,
    ends: BTreeMap<String, u64>,
}

impl Standing {
    fn of(cluster: &Cluster) -> Self {
        let seen = cluster.seen();
        let primary = observe::primary(&seen);
        let of_primary = seen.iter().find(|node| Some(&node.name) == primary.as_ref());
        let term = of_primary.and_then(|node| node.howdah.pointer("/snapshot/cluster/leader/term").cloned());
        let mut ends = BTreeMap::new();
        for node in &seen {
            for reason in ENDS {
                let count = node.howdah.pointer(&format!("/snapshot/decision_counts/{reason}")).and_then(Value::as_u64);
                ends.insert(format!("{} {reason}", node.name), count.unwrap_or(0));
            }
        }
        let postmasters = cluster.names().into_iter().map(|name| (name.clone(), cluster.postmaster(&name))).collect();
        Self { term: term.unwrap_or_default(), timeline: observe::timeline(&seen), primary, postmasters, ends }
    }
}

/// Everything that keeps the machine busy; ends with this value.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    checkpoints: Arc<AtomicU64>,
    bench: Child,
}

impl Load {
    fn start(cluster: &Cluster, primary: &str, span: Duration) -> Self {
        let address = cluster.node(primary).postgres;
        let pgbench = || {
            let mut command = cluster.postgres_command("pgbench");
            command.env("PGPASSWORD", cluster.passwords.superuser.expose()).args(["-h", "127.0.0.1", "-U", "postgres"]);
            command.args(["-p", &address.port().to_string()]);
            command
        };
        let filled = pgbench().args(["-i", "-q", "-s", "5", "postgres"]).output().expect("pgbench is there");
        assert!(filled.status.success(), "{}", String::from_utf8_lossy(&filled.stderr));
        let bench = pgbench()
            .args(["-n", "-c", "8", "-j", "2", "-T", &span.as_secs().to_string(), "postgres"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("pgbench is there");
        let (stop, checkpoints) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let mut threads: Vec<JoinHandle<()>> = (0..cores * THREADS_FOR_A_CORE)
            .map(|_| {
                let stop = stop.clone();
                std::thread::spawn(move || {
                    let mut number = 1_u64;
                    while !stop.load(Ordering::Relaxed) {
                        number = std::hint::black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
                    }
                })
            })
            .collect();
        let (config, storm, done) = (cluster.connection(primary), stop.clone(), checkpoints.clone());
        threads.push(std::thread::spawn(move || checkpoints_until(&config, &storm, &done)));
        Self { stop, threads, checkpoints, bench }
    }

    /// Ends everything, and returns what pgbench has to say.
    fn finish(mut self) -> String {
        let said = self.bench.wait().map(|_| ());
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("no part of the load fails");
        }
        let mut text = String::new();
        for stream in [self.bench.stdout.take().map(read_all), self.bench.stderr.take().map(read_all)] {
            text += &stream.unwrap_or_default();
        }
        assert!(said.is_ok(), "{text}");
        text
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.bench.kill();
        let _ = self.bench.wait();
    }
}

fn read_all(mut stream: impl std::io::Read) -> String {
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

fn checkpoints_until(config: &tokio_postgres::Config, stop: &AtomicBool, done: &AtomicU64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.expect("the primary is there");
        let driver = tokio::spawn(connection);
        while !stop.load(Ordering::Relaxed) {
            client.batch_execute("checkpoint").await.expect("the primary is there all the time");
            done.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(CHECKPOINT_EVERY).await;
        }
        driver.abort();
    });
}

/// A number from the text that Prometheus reads.
fn metric(page: &str, name: &str) -> Option<f64> {
    let line = page.lines().find(|line| line.starts_with(name) && !line.starts_with('#'))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// What was seen of the primary while it was under load.
#[derive(Debug, Default)]
struct Looks {
    /// What was left of the permit, in seconds, each time.
    permit: Vec<f64>,
    raft_terms: Vec<f64>,
    silent: usize,
}

impl Looks {
    fn look(&mut self, cluster: &Cluster, primary: &str) {
        let page = rest::get(cluster.node(primary).rest, "/metrics", Duration::from_secs(5));
        let page = page.map(|answer| answer.body).unwrap_or_default();
        let found = (metric(&page, "howdah_permit_remaining_seconds"), metric(&page, "howdah_raft_term"));
        let (Some(permit), Some(term)) = found else {
            self.silent += 1;
            return;
        };
        self.permit.push(permit);
        self.raft_terms.push(term);
    }

    /// The permit's rest that so many of a hundred looks fell below.
    fn permit_left(&self, percent: usize) -> f64 {
        let mut sorted = self.permit.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() * percent / 100).copied().unwrap_or_default()
    }
}

#[test]
fn a_machine_that_is_overloaded_sees_no_failover() {
    let mut parameters = serde_json::Map::new();
    for (name, value) in [("max_wal_size", json!("32MB")), ("min_wal_size", json!("32MB"))] {
        parameters.insert(name.to_owned(), value);
    }
    let settings = Settings { parameters, ..Settings::default() };
    let cluster = Cluster::boot_with("overload", &Options { settings, ..Options::default() });
    cluster.until_raft_leader_elsewhere();
    let primary = cluster.expect_primary();
    let before = Standing::of(&cluster);
    let ledger = Ledger::start(&cluster);
    let load = Load::start(&cluster, &primary, span());
    let from = now();
    let mut looks = Looks::default();
    while now().since(from) < span() {
        looks.look(&cluster, &primary);
        std::thread::sleep(LOOK_EVERY);
    }
    let window = Window { from, to: now() };
    let checkpoints = load.checkpoints.load(Ordering::Relaxed);
    let bench = load.finish();
    looks.look(&cluster, &primary);
    cluster.until("there is a primary", LIMIT, |c| c.primary().is_some());
    cluster.until_healthy();
    let after = Standing::of(&cluster);
    let report = ledger.finish(&cluster);

    let elections = looks.raft_terms.last().unwrap_or(&0.0) - looks.raft_terms.first().unwrap_or(&0.0);
    let tps = bench.lines().find(|line| line.starts_with("tps")).unwrap_or("no tps").to_owned();
    measured(&format!(
        "overload: {:.0} s, {checkpoints} checkpoints, {} acks, pgbench {tps}; Raft elections {elections}; permit left: \
         least {:.2} s, 1 % {:.2} s, median {:.2} s of {} looks ({} unanswered); longest without an ack: server {:.2?}, \
         client {:.2?}",
        window.to.since(from).as_secs_f64(),
        report.acks.len(),
        looks.permit_left(0),
        looks.permit_left(1),
        looks.permit_left(50),
        looks.permit.len(),
        looks.silent,
        report.server_gap(window),
        report.client_gap(window)
    ));
    assert_eq!(before, after, "something moved under load\n{}", cluster.diagnosis());
    assert_eq!((report.lost.len(), report.duplicates), (0, 0));
    assert!(!looks.permit.is_empty() && 0 < checkpoints && bench.contains("tps"), "there was load: {bench}");
    assert!(!bench.contains("aborted"), "no session of pgbench was cut off: {bench}");
    LogGate::new().check(&cluster);
}
