//! Three nodes with PostgreSQL, certificates on both sides of every connection, through a failover.

use std::path::{Path, PathBuf};
use std::process::Command;

use howdah::dev::ports;
use serde_json::{Value, json};

use crate::authority::{Authority, Ran, curl, howdah, run};
use crate::cluster::{Cluster, LIMIT, Options};
use crate::log_gate::LogGate;
use crate::voters::merge;

/// Where `make setup-clients` puts Patroni.
const PATRONI: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/clients/patroni");

struct Secured {
    cluster: Cluster,
    etcd: Vec<String>,
}

impl Secured {
    /// Three nodes whose files ask for certificates everywhere.
    fn boot() -> Self {
        let mut cluster = Cluster::prepare("tls", &Options::default());
        let dir = cluster.layout.dir.clone();
        let authority = Authority::new(&dir, "ca");
        authority.issue("admin", &[]);
        let first = rand::Rng::random_range(&mut rand::rng(), 12_000..31_000);
        let (chosen, _) = ports::choose(first, 3, &mut Vec::new(), ports::is_free);
        let etcd: Vec<String> = chosen.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        for (name, etcd) in cluster.names().iter().zip(&etcd) {
            authority.issue(name, &["127.0.0.1"]);
            let node = cluster.node(name);
            let own = |ending: &str| dir.join(format!("{name}.{ending}"));
            let mut tree: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(&node.yaml).unwrap()).unwrap();
            merge(
                &mut tree,
                &json!({
                    "restapi": {
                        "certfile": own("crt"), "keyfile": own("key"), "cafile": dir.join("ca.crt"),
                        "verify_client": "required",
                    },
                    "ctl": {
                        "cacert": dir.join("ca.crt"), "certfile": dir.join("admin.crt"), "keyfile": dir.join("admin.key"),
                    },
                    "etcd": {
                        "listen": etcd, "cert_file": own("crt"), "key_file": own("key"),
                        "trusted_ca_file": dir.join("ca.crt"), "client_cert_auth": true,
                    },
                }),
            );
            std::fs::write(&node.yaml, tree.to_string()).unwrap();
        }
        for name in cluster.names() {
            cluster.start_agent(&name);
        }
        let secured = Self { cluster, etcd };
        secured.until_whole();
        secured
    }

    fn file(&self, name: &str) -> PathBuf {
        self.cluster.layout.dir.join(name)
    }

    fn howdah(&self, args: &[&str]) -> Ran {
        let file = self.cluster.node("n1").yaml;
        howdah(&[&["-c", file.to_str().unwrap()], args].concat())
    }

    /// The rows of `howdah list`.
    fn rows(&self) -> Vec<Value> {
        let rows: Value = serde_json::from_str(&self.howdah(&["list", "-f", "json"]).out).unwrap_or_default();
        rows.as_array().cloned().unwrap_or_default()
    }

    fn leader(&self) -> Option<String> {
        let rows = self.rows();
        let row = rows.iter().find(|row| row["Role"] == "Leader" && row["State"] == "running")?;
        row["Member"].as_str().map(str::to_owned)
    }

    fn until_whole(&self) {
        let proven = |row: &&Value| row["State"] == "streaming" && row["Role"] == "Quorum Standby";
        self.cluster.until("there is a leader, and either of the others may succeed it", LIMIT, |_| {
            self.leader().is_some() && self.rows().iter().filter(proven).count() == 2
        });
    }

    fn patronictl(&self, args: &[&str]) -> Ran {
        let hosts: Vec<&str> = self.etcd.iter().map(String::as_str).collect();
        let (ca, cert, key) = (self.file("ca.crt"), self.file("admin.crt"), self.file("admin.key"));
        let tree = json!({
            "scope": "tls",
            "ctl": {"cacert": ca, "certfile": cert, "keyfile": key},
            "etcd3": {"hosts": hosts, "protocol": "https", "cacert": ca, "cert": cert, "key": key},
        });
        let file = self.file("patronictl.yml");
        std::fs::write(&file, tree.to_string()).unwrap();
        let system = Path::new("/usr/bin/python3");
        let mut command = Command::new(if system.exists() { system } else { Path::new("python3") });
        command.env("PYTHONPATH", PATRONI).env("PYTHONDONTWRITEBYTECODE", "1");
        command.args(["-c", "import sys; from patroni.ctl import ctl; sys.argv[0] = 'patronictl'; ctl()", "-c"]);
        run(command.arg(&file).args(args))
    }

    fn etcdctl(&self, index: usize, args: &[&str]) -> Ran {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints=https://{}", self.etcd[index]));
        for (option, file) in [("--cacert", "ca.crt"), ("--cert", "admin.crt"), ("--key", "admin.key")] {
            command.arg(format!("{option}={}", self.file(file).display()));
        }
        run(command.args(args))
    }
}

#[test]
fn a_cluster_with_certificates_everywhere_survives_a_failover() {
    let mut secured = Secured::boot();
    let old = secured.leader().unwrap();
    secured.cluster.sql(&old, "create table kept as select 1 as i").unwrap();
    let leader = secured.etcdctl(0, &["get", "--print-value-only", "/service/tls/leader"]);
    assert_eq!(leader.out.trim(), old, "{leader:?}");
    let member = secured.etcdctl(1, &["get", "--print-value-only", &format!("/service/tls/members/{old}")]);
    assert!(member.out.contains("\"api_url\":\"https://127.0.0.1:"), "{member:?}");
    let new = secured.cluster.others(&old)[0].clone();
    let moved = secured.patronictl(&["switchover", "--leader", &old, "--candidate", &new, "--force"]);
    assert!(moved.out.contains(&format!("Successfully switched over to \"{new}\"")), "{moved:?}");
    secured.until_whole();
    let listed = secured.patronictl(&["list"]);
    assert!(listed.code == Some(0) && listed.out.contains("Leader"), "{listed:?}");
    secured.cluster.kill_node(&new);
    secured.cluster.until("another node leads", LIMIT, |_| secured.leader().is_some_and(|name| name != new));
    let third = secured.leader().unwrap();
    assert_eq!(secured.cluster.sql(&third, "select i from kept").unwrap(), ["1"]);
    secured.cluster.start_agent(&new);
    secured.until_whole();
    // Nobody gets in without a certificate, and none of it goes over the network in the clear.
    let rest = secured.cluster.node(&third).rest;
    let ca = secured.file("ca.crt");
    assert_ne!(curl(&format!("--cacert {} https://{rest}/patroni", ca.display())).code, Some(0));
    assert!(curl(&format!("http://{rest}/patroni")).out.ends_with("400"));
    LogGate::new().allow("*", "connection closed during the handshake").check(&secured.cluster);
}
