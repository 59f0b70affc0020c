//! A file of Patroni starts a node after adding `raft:`.

use std::fs;

use rustix::process::Signal;

use crate::cluster::{Cluster, LIMIT, Options};
use crate::log_gate::LogGate;

const FILE: &str = include_str!("patroni.yml");

#[test]
fn a_patroni_file_with_a_raft_section_starts_a_node() {
    let mut cluster = Cluster::prepare("patroni-file", &Options { nodes: 1, ..Options::default() });
    let node = cluster.node("n1");
    let data = node.data.display().to_string();
    let text = FILE
        .replace("REST-ADDRESS", &node.rest.to_string())
        .replace("POSTGRESQL-ADDRESS", &node.postgres.to_string())
        .replace("DATA-DIRECTORY", &data)
        .replace("PASSWORD-FILE", &format!("{data}.pgpass"))
        .replace("CALLBACK", &format!("/bin/sh -c 'echo \"$*\" >> {data}.told' sh"))
        .replace("SUPERUSER-PASSWORD", cluster.passwords.superuser.expose());
    let raft = format!("raft:\n  data_dir: {}\n  members: {{n1: '{}'}}\n", node.raft.display(), node.rest);
    fs::write(&node.yaml, text + &raft).unwrap();
    let checked = cluster.howdah(&["config", "check", &node.yaml.display().to_string()]);
    assert!(checked.code == Some(0), "{checked:?}");
    // One warning says why a section means nothing any more; what has no effect yet is named.
    assert!(checked.err.contains("etcd3") && !checked.err.contains("callbacks"), "{checked:?}");
    cluster.start_agent("n1");
    cluster.until("it is a primary", LIMIT, |c| c.primary().as_deref() == Some("n1"));
    cluster.until_setting("n1", "work_mem", "6MB");
    cluster.until_setting("n1", "max_connections", "110");
    cluster.until_setting("n1", "log_min_duration_statement", "1s");
    let patroni = cluster.get("n1", "/patroni");
    assert_eq!(patroni["patroni"]["scope"], "batman");
    cluster.until("the shared settings are stored", LIMIT, |c| c.get("n1", "/config")["ttl"] == 30);
    assert_eq!(cluster.post("n1", "/reload", &serde_json::json!({})).status, 401, "the password is asked for");
    told(&cluster, &["on_start primary batman"]);
    // Its callbacks go on where they were, also with another process of howdah.
    cluster.signal_agent("n1", Signal::KILL);
    cluster.start_agent("n1");
    cluster.until("it is a primary again", LIMIT, |c| c.primary().as_deref() == Some("n1"));
    cluster.signal_agent("n1", Signal::HUP);
    told(&cluster, &["on_start primary batman", "on_reload primary batman"]);
    cluster.signal_agent("n1", Signal::TERM);
    let stopped = ["on_start primary batman", "on_reload primary batman", "on_stop primary batman"];
    told(&cluster, &stopped);
    LogGate::new().allow("n1", "configuration:").check(&cluster);
}

/// Waits until the callbacks have been told exactly this, in this order.
fn told(cluster: &Cluster, wanted: &[&str]) {
    let file = format!("{}.told", cluster.node("n1").data.display());
    cluster.until(&format!("callbacks have been told {wanted:?}"), LIMIT, |_| {
        fs::read_to_string(&file).unwrap_or_default().lines().eq(wanted.iter().copied())
    });
}
