//! The real `patronictl` 4.1 from PyPI: etcd's API for the record, REST for the rest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::cluster::{Cluster, LIMIT};
use crate::log_gate::LogGate;
use crate::site::{Ran, run};
use crate::upkeep::KEPT;

/// Where `make setup-clients` puts Patroni.
const PATRONI: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/clients/patroni");

struct Patronictl<'a> {
    cluster: &'a Cluster,
    file: PathBuf,
}

impl<'a> Patronictl<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        assert!(Path::new(PATRONI).exists(), "{PATRONI} is missing: make setup-clients puts Patroni there");
        let hosts: Vec<String> = cluster.layout.nodes().iter().map(|node| node.rest.to_string()).collect();
        let file = cluster.layout.dir.join("patronictl.yml");
        let tree = json!({"scope": cluster.layout.file.scope, "etcd3": {"hosts": hosts}});
        fs::write(&file, tree.to_string()).unwrap();
        Self { cluster, file }
    }

    fn run(&self, args: &[&str]) -> Ran {
        let system = Path::new("/usr/bin/python3");
        let mut command = Command::new(if system.exists() { system } else { Path::new("python3") });
        command.env("PYTHONPATH", PATRONI).env("PYTHONDONTWRITEBYTECODE", "1").env("EDITOR", "true");
        command.env("PGPASSWORD", self.cluster.passwords.superuser.expose());
        command.args(["-c", "import sys; from patroni.ctl import ctl; sys.argv[0] = 'patronictl'; ctl()", "-c"]);
        run(command.arg(&self.file).args(args))
    }

    /// Runs it, and fails unless it succeeds and says `wanted`.
    fn says(&self, args: &[&str], wanted: &str) -> String {
        let ran = self.run(args);
        let text = ran.text();
        assert!(ran.code == Some(0) && text.contains(wanted), "patronictl {args:?}: wanted {wanted:?}, got {ran:?}");
        text
    }

    /// The rows of `list`.
    fn rows(&self) -> Vec<Value> {
        let text = self.run(&["list", "-f", "json"]).out;
        let rows: Value = text.lines().find_map(|line| serde_json::from_str(line).ok()).unwrap_or_default();
        rows.as_array().cloned().unwrap_or_default()
    }

    fn until_it_lists(&self, what: &str, condition: impl Fn(&[Value]) -> bool) {
        self.cluster.until(&format!("patronictl lists {what}"), LIMIT, |_| condition(&self.rows()));
    }

    fn until_healthy(&self, leader: &str) {
        self.until_it_lists(&format!("{leader} as the leader of two that stream"), |rows| {
            // A replica that confirms commits is a Quorum Standby.
            let streaming = rows.iter().filter(|row| row["Role"] != "Leader" && row["State"] == "streaming").count();
            let leads = |row: &&Value| row["Role"] == "Leader" && row["State"] == "running";
            streaming == 2 && rows.iter().filter(leads).all(|row| row["Member"] == leader)
        });
    }
}

#[test]
fn every_verb_of_patronictl_works() {
    let cluster = Cluster::boot("ctl");
    let ctl = Patronictl::new(&cluster);
    let old = cluster.expect_primary();
    let others = cluster.others(&old);
    let (new, third) = (others[0].as_str(), others[1].as_str());
    ctl.until_healthy(&old);
    readers(&ctl, &old, new);
    settings(&ctl, &old);
    ctl.says(
        &["switchover", "--leader", &old, "--candidate", new, "--force"],
        &format!("Successfully switched over to \"{new}\""),
    );
    ctl.until_healthy(new);
    ctl.says(&["failover", "--candidate", third, "--force"], &format!("Successfully failed over to \"{third}\""));
    ctl.until_healthy(third);
    ctl.says(&["history"], "no recovery target specified");
    upkeep(&ctl, third, new);
    ctl.says(&["pause", "--wait"], "Success: cluster management is paused");
    ctl.says(&["list"], "Maintenance mode: on");
    ctl.says(&["resume", "--wait"], "Success: cluster management is resumed");
    let later = "2999-01-01T00:00+00:00";
    ctl.says(
        &["switchover", "--leader", third, "--candidate", new, "--scheduled", later, "--force"],
        "Switchover scheduled",
    );
    ctl.says(&["list"], "Switchover scheduled at: 2999-01-01T00:00:00");
    ctl.says(&["flush", "ctl", "switchover", "--force"], "Success: ");
    ctl.until_healthy(third);
    LogGate::new().allow(new, KEPT).check(&cluster);
}

fn readers(ctl: &Patronictl<'_>, leader: &str, replica: &str) {
    ctl.says(&["topology"], &format!("+ {replica}"));
    ctl.says(&["version", "ctl"], &format!("{leader}: Patroni 4.1."));
    let address = ctl.cluster.node(leader).postgres;
    ctl.says(&["dsn"], &format!("host={} port={}", address.ip(), address.port()));
    let standby = ctl.cluster.node(replica).postgres;
    ctl.says(&["dsn", "-m", replica], &format!("port={}", standby.port()));
    let asked = ["query", "-U", "postgres", "-d", "postgres", "-c", "select pg_is_in_recovery()", "--format", "json"];
    ctl.says(&asked, "false");
    ctl.says(&[&asked[..], &["-m", replica]].concat(), "true");
}

fn settings(ctl: &Patronictl<'_>, leader: &str) {
    ctl.says(&["show-config"], "loop_wait: 1");
    ctl.says(&["edit-config", "-s", "maximum_lag_on_failover=2097152", "--force"], "Configuration changed");
    ctl.says(&["edit-config", "-p", "work_mem=7MB", "-p", "max_connections=111", "--force"], "Configuration changed");
    ctl.says(&["show-config"], "maximum_lag_on_failover: 2097152");
    for name in ctl.cluster.names() {
        ctl.cluster.until_setting(&name, "work_mem", "7MB");
    }
    ctl.until_it_lists("a pending restart everywhere", |rows| {
        rows.len() == 3
            && rows.iter().all(|row| {
                row["Pending restart"] == "*" && row["Pending restart reason"].to_string().contains("100->111")
            })
    });
    ctl.says(&["restart", "ctl", "--pending", "--force"], "Success: restart on member");
    for name in ctl.cluster.names() {
        ctl.cluster.until_setting(&name, "max_connections", "111");
    }
    ctl.until_healthy(leader);
}

fn upkeep(ctl: &Patronictl<'_>, leader: &str, replica: &str) {
    let before = ctl.cluster.postmaster(replica);
    ctl.says(&["restart", "ctl", replica, "--force"], &format!("Success: restart on member {replica}"));
    assert_ne!(ctl.cluster.postmaster(replica), before);
    ctl.says(&["restart", "ctl", leader, "--force"], &format!("Success: restart on member {leader}"));
    ctl.until_healthy(leader);
    ctl.says(
        &["restart", "ctl", replica, "--scheduled", "2999-01-01T00:00+00:00", "--force"],
        "Success: restart scheduled on member",
    );
    ctl.until_it_lists("the scheduled restart", |rows| {
        rows.iter().any(|row| row["Scheduled restart"].to_string().contains("2999-01-01T00:00:00"))
    });
    ctl.says(
        &["flush", "ctl", replica, "restart", "--force"],
        &format!("Success: flush scheduled restart for member {replica}"),
    );
    ctl.says(&["reload", "ctl", replica, "--force"], &format!("Reload request received for member {replica}"));
    let inode = ctl.cluster.data_inode(replica);
    ctl.says(&["reinit", "ctl", replica, "--force", "--wait"], &format!("Reinitialize is completed on: {replica}"));
    ctl.until_healthy(leader);
    assert_ne!(ctl.cluster.data_inode(replica), inode);
    let refused = ctl.run(&["reinit", "ctl", leader, "--force"]);
    assert_ne!(refused.code, Some(0), "{refused:?}");
}
