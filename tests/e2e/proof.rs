//! Proves that the harness sees what it is there to see: two real PostgreSQL servers that both accept writes.
//!
//! No howdah runs here. If the ledger, the discovery of processes or the ambush were blind, every story
//! would pass for nothing; this one would fail.

use std::process::{Child, Stdio};
use std::time::Duration;

use crate::cluster::{Cluster, LIMIT, Options, now};
use crate::ledger::{self, Ledger};
use crate::report::Window;

/// A postmaster that the test started itself.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A primary of its own on the node's port and data directory.
fn start_primary(cluster: &Cluster, name: &str) -> Server {
    let node = cluster.node(name);
    let mut initdb = cluster.postgres_command("initdb");
    initdb.args(["--no-sync", "--auth=trust", "--username=postgres", "-D"]).arg(&node.data);
    let output = initdb.output().expect("start initdb");
    assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
    let mut postgres = cluster.postgres_command("postgres");
    postgres.arg("-D").arg(&node.data).arg("-p").arg(node.postgres.port().to_string());
    postgres.args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]);
    let server = Server(postgres.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start postgres"));
    cluster.until(&format!("{name} answers"), LIMIT, |c| c.sql(name, ledger::CREATE).is_ok());
    server
}

#[test]
fn the_harness_sees_two_primaries_lost_writes_and_late_answers() {
    let cluster = Cluster::prepare("proof", &Options::default());
    let _first = start_primary(&cluster, "n1");
    let mut second = start_primary(&cluster, "n2");
    let mut ledger = Ledger::start_on(&cluster, "n1");
    let start = now();
    cluster
        .until("both are written to", LIMIT, |_| ledger.acks_on("n1", start) > 20 && ledger.acks_on("n2", start) > 20);
    assert_eq!(ledger.successor("n1", start).as_deref(), Some("n2"));

    // n1 freezes: its clients wait or move on, and what is sent to it now is answered only later.
    ledger.arm("n1", 4);
    assert!(cluster.postgres_lives("n1") && cluster.postmaster("n1").is_some());
    cluster.freeze_node("n1");
    let frozen = now();
    ledger.until_more(&cluster, 20);
    ledger.fire();
    assert_eq!(ledger.acks_on("n1", frozen), 0, "a frozen server answered");
    cluster.thaw_node("n1");
    cluster.until("n1 answers what was waiting", LIMIT, |_| ledger.acks_on("n1", frozen) >= 4);
    let thawed = now();

    // The rows of n1 are what counts in the end, so that all of n2's are missing.
    let freeze = Window { from: frozen, to: thawed };
    let report = ledger.finish_on("n1");
    let overlap = report.overlap("n1", "n2", Window { from: start, to: thawed });
    assert!(overlap.split >= 4, "{overlap:?}");
    let late = report.overlap("n1", "n2", freeze);
    assert!(late.split >= 4, "writes fired into the frozen server count: {late:?}");
    assert!(!report.lost.is_empty(), "writes to n2 are not on n1");
    assert!(report.lost.iter().all(|(_, seq)| *seq > 0));
    assert!(
        report.lost_by_writer().keys().any(|writer| writer.ends_with("direct-n2")),
        "{:?}",
        report.lost_by_writer()
    );
    assert!(
        !report.lost_by_writer().keys().any(|writer| writer.ends_with("direct-n1")),
        "{:?}",
        report.lost_by_writer()
    );
    assert_eq!(report.duplicates, 0);
    assert!(report.client_gap(freeze) > Duration::from_millis(500), "followers had to find n2");
    assert!(report.server_gap(freeze) < Duration::from_millis(500), "n2 took writes all the time");

    // The discovery finds every process of a server, and ends it.
    let victims = cluster.processes("n2").len();
    assert!(victims > 5, "postmaster and its children: {victims}");
    let reaper = std::thread::spawn(move || second.0.wait());
    howdah::dev::processes::kill_node(&cluster.node("n2"), Duration::from_secs(10)).expect("kill");
    reaper.join().expect("the thread ends").expect("reaped");
    assert!(!cluster.postgres_lives("n2"));
    assert!(cluster.postgres_lives("n1"));
}
