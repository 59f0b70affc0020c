//! Every PostgreSQL that is found here plays the smoke set: boot, writes, switchover, crash, a lost node that is rewound,
//! a fresh copy, settings that wait for a restart.
//!
//! Debian's directories and `target/clients/postgresql/MAJOR`, where `make setup-clients` puts a newer one. The other
//! end-to-end tests run on whichever is found first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use howdah::dev::rest;
use howdah::postgres::ControlData;
use serde_json::{Value, json};

use crate::cluster::{Cluster, LIMIT, Options};
use crate::log_gate::LogGate;
use crate::report::measured;
use crate::scenario::{self, History};

/// An answer may take as long as a new copy does.
const PATIENCE: Duration = Duration::from_secs(60);

/// The programs of each major, by its number.
fn found() -> BTreeMap<u32, PathBuf> {
    let places = ["/usr/lib/postgresql", concat!(env!("CARGO_MANIFEST_DIR"), "/target/clients/postgresql")];
    let mut majors = BTreeMap::new();
    for entry in places.iter().filter_map(|place| std::fs::read_dir(place).ok()).flatten().flatten() {
        let major = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let programs = entry.path().join("bin");
        if let Some(major) = major.filter(|_| programs.join("pg_basebackup").exists()) {
            majors.insert(major, programs);
        }
    }
    majors
}

#[test]
fn the_smoke_set_runs_on_every_major_that_is_found() {
    let majors = found();
    assert!(1 < majors.len(), "only {majors:?} is here: make setup-clients installs a newer one");
    for (major, programs) in &majors {
        measured(&format!("PostgreSQL {major}: the smoke set begins"));
        smoke(*major, programs);
    }
}

fn smoke(major: u32, programs: &Path) {
    let options = Options { bin_dir: Some(programs.to_owned()), ..Options::default() };
    let mut cluster = Cluster::boot_with(&format!("major-{major}"), &options);
    let first = cluster.expect_primary();
    let version = cluster.sql(&first, "show server_version_num").unwrap();
    assert_eq!(version[0].parse::<u32>().unwrap() / 10_000, major);
    let (rounds, report) = scenario::switchovers(&cluster, 2);
    assert_eq!((rounds.len(), report.lost.len(), report.duplicates), (2, 0, 0));
    let crash = scenario::postmaster_kill(&cluster);
    assert_eq!(crash.report.lost, [], "{crash}");
    let old = cluster.expect_primary();
    let inode = cluster.data_inode(&old);
    let lost = scenario::node_kill(&mut cluster, History::Diverged);
    assert_ne!(lost.new, lost.old);
    assert_eq!(lost.report.lost, [], "{lost}");
    assert_eq!(cluster.data_inode(&old), inode, "the directory was replaced where a rewind would do");
    assert_eq!(cluster.sql(&old, "select to_regclass('secret_history') is null").unwrap(), ["t"]);
    a_fresh_copy(&cluster, &old);
    settings_that_wait(&cluster);
    control_data(&cluster, programs);
    LogGate::new()
        .allow("*", "connection closed during the handshake")
        .allow(&old, "moved the data directory aside")
        .check(&cluster);
}

fn get(cluster: &Cluster, name: &str) -> Value {
    rest::get(cluster.node(name).rest, "/patroni", PATIENCE).map_or(Value::Null, |answer| answer.json())
}

fn a_fresh_copy(cluster: &Cluster, replica: &str) {
    let before = cluster.data_inode(replica);
    let asked = rest::post(cluster.node(replica).rest, "/reinitialize", &json!({"force": true}), PATIENCE).unwrap();
    assert_eq!(asked.status, 200, "{}", asked.body);
    cluster.until(&format!("{replica} has other data"), LIMIT, |c| {
        c.node(replica).data.exists() && c.data_inode(replica) != before
    });
    cluster.until_healthy();
}

fn settings_that_wait(cluster: &Cluster) {
    let primary = cluster.expect_primary();
    let change = json!({"postgresql": {"parameters": {"max_connections": 123, "work_mem": "5MB"}}});
    let changed = rest::patch(cluster.node(&primary).rest, "/config", &change, PATIENCE).unwrap();
    assert_eq!(changed.status, 200, "{}", changed.body);
    cluster.until("all wait for a restart, and have what needs none", LIMIT, |c| {
        c.names().iter().all(|name| {
            get(c, name)["pending_restart_reason"]["max_connections"]["new_value"] == "123"
                && c.sql(name, "show work_mem").is_ok_and(|rows| rows == ["5MB"])
        })
    });
    for name in std::iter::once(primary.clone()).chain(cluster.others(&primary)) {
        let answer = rest::post(cluster.node(&name).rest, "/restart", &json!({}), PATIENCE).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        cluster.until_healthy();
    }
    cluster.until("nobody waits any more", LIMIT, |c| {
        c.names().iter().all(|name| {
            get(c, name)["pending_restart"].is_null()
                && c.sql(name, "show max_connections").is_ok_and(|rows| rows == ["123"])
        })
    });
}

fn control_data(cluster: &Cluster, programs: &Path) {
    for name in cluster.names() {
        let mut command = Command::new(programs.join("pg_controldata"));
        let output = command.env("LC_ALL", "C").arg("-D").arg(cluster.node(&name).data).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let read = ControlData::parse(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!((read.wal_level.as_str(), read.floors.max_connections), ("replica", 123), "{text}");
        assert!(read.checksums && 1 < read.timeline.0, "{text}");
    }
}
