//! A primary and a standby that others have run so far come under howdah as they run, and go from it as they run.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use howdah::dev::processes;
use howdah::telemetry::clock;
use rustix::process::Signal;
use serde_json::Value;

use crate::cluster::{Cluster, LIMIT, Options};
use crate::log_gate::LogGate;
use crate::observe;

const REPLICATION: &str = "replicator";

/// Runs a program of PostgreSQL and fails with its words.
fn run(mut command: Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
    output
}

/// Starts a server as its operator did until today.
fn start(cluster: &Cluster, name: &str) {
    let node = cluster.node(name);
    let mut command = cluster.postgres_command("pg_ctl");
    command.args(["-w", "-s", "-D"]).arg(&node.data).arg("-l").arg(node.dir.join("by-hand.log")).arg("start");
    let output = command.status().expect("pg_ctl starts");
    assert!(output.success(), "{}", std::fs::read_to_string(node.dir.join("by-hand.log")).unwrap_or_default());
}

fn write(cluster: &Cluster, name: &str, file: &str, text: &str) {
    let path = cluster.node(name).data.join(file);
    std::fs::write(&path, text).unwrap();
    if let Some(user) = &cluster.user {
        std::os::unix::fs::chown(&path, Some(user.uid), user.groups.first().copied()).unwrap();
    }
}

fn settings(cluster: &Cluster, name: &str) -> String {
    let node = cluster.node(name);
    format!(
        "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\nmax_connections = 57\n\
         wal_level = logical\nwork_mem = '7MB'\n",
        node.postgres.port(),
        node.dir.display()
    )
}

/// A primary with data, made without howdah. `more`: settings after the usual ones.
fn a_primary_of_old(cluster: &Cluster, more: &str) {
    let primary = cluster.node("n1");
    let password = primary.dir.join("superuser");
    std::fs::write(&password, cluster.passwords.superuser.expose()).unwrap();
    if let Some(user) = &cluster.user {
        std::os::unix::fs::chown(&password, Some(user.uid), user.groups.first().copied()).unwrap();
    }
    let mut initdb = cluster.postgres_command("initdb");
    initdb
        .args(["-k", "-U", "postgres", "-A", "scram-sha-256", "--pwfile"])
        .arg(&password)
        .arg("-D")
        .arg(&primary.data);
    run(initdb);
    write(cluster, "n1", "postgresql.conf", &(settings(cluster, "n1") + more));
    let access = "local all all scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256\n\
                  host replication all 127.0.0.1/32 scram-sha-256\n";
    write(cluster, "n1", "pg_hba.conf", access);
    start(cluster, "n1");
    let role =
        format!("create role {REPLICATION} login replication password '{}'", cluster.passwords.replication.expose());
    cluster.sql("n1", &role).unwrap();
    cluster.sql("n1", "create table of_old as select i from generate_series(1, 1000) as i").unwrap();
}

/// A primary with data, and a standby of it, made without howdah.
fn a_site_of_old(cluster: &Cluster) {
    a_primary_of_old(cluster, "");
    let (primary, standby) = (cluster.node("n1"), cluster.node("n2"));
    let mut copy = cluster.postgres_command("pg_basebackup");
    copy.env("PGPASSWORD", cluster.passwords.replication.expose()).args(["-R", "-c", "fast", "-U", REPLICATION]);
    copy.args(["-h", "127.0.0.1", "-p", &primary.postgres.port().to_string(), "-D"]).arg(&standby.data);
    run(copy);
    write(cluster, "n2", "postgresql.conf", &settings(cluster, "n2"));
    start(cluster, "n2");
}

/// The built `howdah` with n1's file.
fn howdah(cluster: &Cluster, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_howdah"));
    command.arg("-c").arg(cluster.node("n1").yaml).args(args);
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn reason(cluster: &Cluster, name: &str) -> String {
    let seen = cluster.seen().into_iter().find(|seen| seen.name == name).expect("a node of this cluster");
    let rows = seen.howdah.pointer("/snapshot/decisions").and_then(Value::as_array).cloned().unwrap_or_default();
    rows.last().and_then(|row| row["reason"].as_str()).unwrap_or_default().to_owned()
}

/// Whether all nodes have heard of a majority.
fn knows_the_store(cluster: &Cluster) -> bool {
    let known = |seen: &observe::Seen| seen.howdah.pointer("/snapshot/store_has_quorum") == Some(&true.into());
    cluster.seen().iter().all(known)
}

fn config_file(cluster: &Cluster, name: &str) -> String {
    std::fs::read_to_string(cluster.node(name).data.join("postgresql.base.conf")).unwrap_or_default()
}

#[test]
fn a_site_of_old_is_adopted_as_it_runs_and_released_as_it_runs() {
    let mut cluster = Cluster::prepare("adopt", &Options::default());
    for node in cluster.layout.nodes() {
        let mut tree: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(&node.yaml).unwrap()).unwrap();
        tree["bootstrap"]["adopt"] = true.into();
        std::fs::write(&node.yaml, tree.to_string()).unwrap();
    }
    a_site_of_old(&cluster);
    let of_old = [cluster.postmaster("n1").unwrap(), cluster.postmaster("n2").unwrap()];
    let copy = cluster.data_inode("n2");
    for name in cluster.names() {
        cluster.start_agent(&name);
    }
    cluster.until("both servers are seen and left alone", LIMIT, |c| {
        reason(c, "n1") == "unmanaged"
            && reason(c, "n2") == "unmanaged"
            && reason(c, "n3") == "bootstrap_forbidden"
            && knows_the_store(c)
    });
    let (code, out, err) = howdah(&cluster, &["adopt", "n1", "--dry-run", "-f", "json"]);
    assert_eq!(code, Some(0), "{out}{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&report["member"], &report["adopted"]), (&"n1".into(), &false.into()), "{report}");
    let found = &report["report"];
    assert_eq!((&found["kept"]["max_connections"], &found["kept"]["wal_level"]), (&"57".into(), &"logical".into()));
    assert_eq!((&found["checksums"], &found["problems"]), (&true.into(), &Value::Array(Vec::new())), "{report}");
    assert_eq!(found["standbys"], serde_json::json!(["walreceiver"]), "{report}");
    let (code, out, err) = howdah(&cluster, &["adopt", "n2", "--force"]);
    assert_eq!(code, Some(3), "a standby without a cluster: {out}{err}");
    assert!(err.contains("adopt the primary first"), "{err}");
    assert_eq!(reason(&cluster, "n1"), "unmanaged", "nothing was changed so far");

    let (code, out, err) = howdah(&cluster, &["adopt", "n1", "--force"]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("n1: adopted as it runs") && err.contains("it is not restarted"), "{out}{err}");
    assert_eq!(cluster.postmaster("n1"), Some(of_old[0]), "the primary was restarted");
    assert_eq!(cluster.sql("n1", "select count(*) from of_old").unwrap(), ["1000"]);
    let (code, out, err) = howdah(&cluster, &["adopt", "n2", "--force"]);
    assert_eq!(code, Some(0), "{out}{err}");
    cluster.until_healthy();
    assert_eq!(
        (cluster.postmaster("n2"), cluster.data_inode("n2")),
        (Some(of_old[1]), copy),
        "n2 was not left as it was"
    );
    assert_eq!(cluster.sql("n3", "select count(*) from of_old").unwrap(), ["1000"], "n3 has a copy of it");
    for name in ["n1", "n2", "n3"] {
        assert_eq!(cluster.sql(name, "show max_connections").unwrap(), ["57"], "{name}");
    }
    for name in ["n1", "n2"] {
        assert!(config_file(&cluster, name).contains("work_mem = '7MB'"), "the operator's settings are kept");
        assert_eq!(cluster.sql(name, "show work_mem").unwrap(), ["7MB"]);
    }

    // It is a cluster like any other.
    cluster.kill_node("n1");
    cluster.until("another node leads", LIMIT, |c| c.primary().is_some_and(|name| name != "n1"));
    cluster.start_agent("n1");
    cluster.until_healthy();
    let primary = cluster.expect_primary();
    assert_eq!(cluster.sql(&primary, "select count(*) from of_old").unwrap(), ["1000"]);

    let running: Vec<_> = cluster.names().iter().map(|name| cluster.postmaster(name)).collect();
    // As if one had been released before: it is told of, and the others are released.
    let gone = cluster.others(&primary).remove(0);
    cluster.signal_agent(&gone, Signal::KILL);
    cluster
        .until("its agent is gone", LIMIT, |c| c.seen().iter().any(|seen| seen.name == gone && seen.patroni.is_null()));
    let (code, out, err) = howdah(&cluster, &["release", "--force"]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(
        err.contains(&format!("{gone} does not answer")) && !out.contains(&format!("{gone}: released")),
        "{out}{err}"
    );
    assert!(out.find(&format!("{primary}: released")) == Some(0), "the primary is first: {out}");
    cluster.until("no agent is left", LIMIT, |c| c.seen().iter().all(|seen| seen.patroni.is_null()));
    goes_on_alone(&cluster, &primary);
    assert_eq!(cluster.names().iter().map(|name| cluster.postmaster(name)).collect::<Vec<_>>(), running);
    LogGate::new().allow("*", "connection closed during the handshake").check(&cluster);
}

#[test]
fn a_server_that_nobody_could_follow_is_restarted_once() {
    let mut cluster = Cluster::prepare("adopt-alone", &Options { nodes: 1, ..Options::default() });
    a_primary_of_old(&cluster, "wal_level = minimal\nmax_wal_senders = 0\n");
    let of_old = cluster.postmaster("n1").unwrap();
    cluster.start_agent("n1");
    cluster.until("the server is seen and left alone", LIMIT, |c| reason(c, "n1") == "unmanaged" && knows_the_store(c));
    let (code, out, err) = howdah(&cluster, &["adopt", "n1", "--dry-run"]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(
        out.contains("wal_level is minimal: nobody can follow it") && out.contains("max_wal_senders is 0"),
        "{out}"
    );
    assert_eq!(cluster.postmaster("n1"), Some(of_old));
    let (code, out, err) = howdah(&cluster, &["adopt", "n1", "--force"]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(
        err.contains("restarts it once, because wal_level is minimal") && out.contains("adopted and restarted"),
        "{err}"
    );
    cluster.until_healthy();
    assert_ne!(cluster.postmaster("n1"), Some(of_old));
    assert_eq!(cluster.sql("n1", "show wal_level").unwrap(), ["replica"]);
    assert_eq!(cluster.sql("n1", "show max_connections").unwrap(), ["57"]);
    assert_eq!(cluster.sql("n1", "select count(*) from of_old").unwrap(), ["1000"]);
    LogGate::new().check(&cluster);
}

/// For longer than any permit could last it can be written to, and its standbys get what is written.
fn goes_on_alone(cluster: &Cluster, primary: &str) {
    let end = clock::now() + Duration::from_secs(8);
    let mut written = 0;
    while clock::now() < end {
        cluster.sql(primary, "insert into of_old values (0)").unwrap_or_else(|error| panic!("{error}"));
        written += 1;
        std::thread::sleep(Duration::from_millis(100));
    }
    for name in cluster.names() {
        let count = format!("{}", 1000 + written);
        cluster.until(&format!("{name} has what was written"), LIMIT, |c| {
            c.sql(&name, "select count(*) from of_old").is_ok_and(|rows| rows == [count.clone()])
        });
        let left = processes::of_node(&cluster.node(&name));
        assert!(!left.iter().any(|process| process.kind == processes::Kind::Agent), "{name}: {left:?}");
    }
    assert!(Path::new(&cluster.node(primary).data).join("postmaster.pid").exists());
    assert_eq!(observe::primary(&cluster.seen()), None);
}
