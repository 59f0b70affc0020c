//! The real HAProxy with the configuration of Patroni's documentation: writes to the primary, reads to replicas. And
//! Prometheus's own opinion of the metrics.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use howdah::dev::{ports, rest};
use serde_json::json;

use crate::cluster::{Cluster, LIMIT};

/// Where `make setup-clients` unpacks programs that are not installed.
const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/clients");

/// A program of this machine, or an unpacked one with its libraries.
fn program(directory: &str, path: &str) -> Command {
    let root = Path::new(CLIENTS).join(directory);
    let unpacked = root.join(path);
    if !unpacked.exists() {
        return Command::new(Path::new(path).file_name().unwrap());
    }
    let libraries = fs::read_dir(root.join("usr/lib")).into_iter().flatten().flatten().map(|entry| entry.path());
    let libraries: Vec<String> = libraries.map(|path| path.display().to_string()).collect();
    let mut command = Command::new(unpacked);
    command.env("LD_LIBRARY_PATH", libraries.join(":"));
    command
}

/// A running HAProxy; killed when dropped.
struct Balancer {
    child: Child,
    writes: u16,
    reads: u16,
    log: PathBuf,
}

impl Balancer {
    fn start(cluster: &Cluster) -> Self {
        let first = rand::Rng::random_range(&mut rand::rng(), 12_000..31_000);
        let (ports, _) = ports::choose(first, 2, &mut Vec::new(), ports::is_free);
        let (writes, reads) = (ports[0], ports[1]);
        let mut text = "global\n    maxconn 100\n\ndefaults\n    mode tcp\n    retries 2\n    timeout client 30m\n    \
            timeout connect 4s\n    timeout server 30m\n    timeout check 5s\n"
            .to_owned();
        for (name, port, check) in [("primary", writes, "/primary"), ("replicas", reads, "/replica")] {
            text += &format!("\nlisten {name}\n    bind 127.0.0.1:{port}\n    option httpchk OPTIONS {check}\n");
            text += "    http-check expect status 200\n    default-server inter 3s fall 3 rise 2 on-marked-down shutdown-sessions\n";
            for node in cluster.layout.nodes() {
                let (postgres, rest) = (node.postgres, node.rest.port());
                text += &format!("    server {} {postgres} maxconn 100 check port {rest}\n", node.name);
            }
        }
        let file = cluster.layout.dir.join("haproxy.cfg");
        fs::write(&file, text).unwrap();
        let log = cluster.layout.dir.join("haproxy.log");
        let output = fs::File::create(&log).unwrap();
        let mut command = program("haproxy", "usr/sbin/haproxy");
        command.arg("-db").arg("-f").arg(file).stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let child = command.spawn().expect("make setup-clients puts HAProxy there");
        Self { child, writes, reads, log }
    }

    /// Which node answers behind a port: by its own data directory.
    fn node_behind(&self, cluster: &Cluster, port: u16) -> Option<String> {
        let row = cluster.sql_at(port, "show data_directory").ok()?.pop()?;
        cluster.names().into_iter().find(|name| cluster.node(name).data.to_string_lossy() == row)
    }

    /// Waits until writes go to `primary`, and reads to the others, in turn to all of them.
    fn until_it_routes(&self, cluster: &Cluster, primary: &str, replicas: &[&str]) {
        cluster.until(&format!("writes reach {primary} (see {})", self.log.display()), LIMIT, |c| {
            self.node_behind(c, self.writes).as_deref() == Some(primary)
        });
        cluster.until(&format!("reads reach {replicas:?} and nobody else"), LIMIT, |c| {
            let mut seen: Vec<String> = (0..6).filter_map(|_| self.node_behind(c, self.reads)).collect();
            seen.sort();
            seen.dedup();
            seen == replicas
        });
        let write = "select pg_logical_emit_message(true, 'howdah', 'by HAProxy')";
        assert!(cluster.sql_at(self.writes, write).is_ok(), "the port for writes takes none");
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn haproxy_routes_by_patronis_checks_through_a_switchover_and_a_failover() {
    let mut cluster = Cluster::boot("haproxy");
    let balancer = Balancer::start(&cluster);
    let old = cluster.expect_primary();
    let others = cluster.others(&old);
    let both: Vec<&str> = others.iter().map(String::as_str).collect();
    balancer.until_it_routes(&cluster, &old, &both);
    let new = others[0].clone();
    let answer = cluster.post(&old, "/switchover", &json!({"leader": old, "candidate": new}));
    assert_eq!(answer.status, 200, "{}", answer.body);
    let mut left = vec![old.as_str(), others[1].as_str()];
    left.sort_unstable();
    balancer.until_it_routes(&cluster, &new, &left);
    cluster.kill_node(&new);
    cluster.until("another node leads", LIMIT, |c| c.primary().is_some_and(|name| name != new));
    let third = cluster.expect_primary();
    let replica = if third == old { others[1].clone() } else { old.clone() };
    balancer.until_it_routes(&cluster, &third, &[&replica]);
    cluster.start_agent(&new);
    cluster.until_healthy();
    let mut back = vec![replica.as_str(), new.as_str()];
    back.sort_unstable();
    balancer.until_it_routes(&cluster, &third, &back);
    prometheus_takes_the_metrics(&cluster);
}

/// Its lint wants other names for three counters; those are Patroni's, which dashboards ask for.
fn prometheus_takes_the_metrics(cluster: &Cluster) {
    for name in cluster.names() {
        let page = rest::get(cluster.rest_of(&name), "/metrics", Duration::from_secs(5)).unwrap().body;
        let mut command = program("prometheus", "usr/bin/promtool");
        command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("make setup-clients puts promtool there");
        child.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        let other: Vec<&str> = said
            .lines()
            .filter(|line| !(line.starts_with("patroni_xlog_") && line.ends_with("should have \"_total\" suffix")))
            .collect();
        assert_eq!(other, [""; 0], "promtool on {name}");
        assert!(matches!(output.status.code(), Some(0 | 3)), "{:?}", output.status);
    }
}
