//! What people ask a real cluster: drills, why, and what has happened to the leadership.

use std::process::{Command, Output, Stdio};

use howdah::dev::processes;
use howdah::dev::status::ask_beyond;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::cluster::{Cluster, LIMIT, Options};
use crate::report::measured;

/// Runs a command of the binary against this cluster, as in its directory's terminal.
fn howdah(cluster: &Cluster, args: &[&str]) -> Output {
    command(cluster, args).output().expect("the binary runs")
}

fn command(cluster: &Cluster, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_howdah"));
    command
        .args(args)
        .env("HOWDAH_DEV_DIR", &cluster.layout.dir)
        .env_remove("HOWDAH_URL")
        .env_remove("HOWDAH_CONFIG")
        .env_remove("PGPASSWORD")
        .current_dir(&cluster.layout.dir);
    command
}

fn said(cluster: &Cluster, args: &[&str]) -> String {
    let output = howdah(cluster, args);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "howdah {args:?}: {out}{err}");
    out.into_owned()
}

fn json(cluster: &Cluster, args: &[&str]) -> Value {
    let text = said(cluster, &[args, &["-f", "json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("howdah {args:?}: {error}: {text}"))
}

/// Whether the record has everybody's commits proven: before that nobody but the leader may lead.
fn is_proven(cluster: &Cluster) -> bool {
    let leader = cluster.expect_primary();
    json(cluster, &["what-if", "kill", &leader])["outcome"]["taken_over"]["proven"] == true
}

fn parts(change: &Value) -> Vec<u64> {
    let phases = ["detect_ms", "decide_ms", "fence_ms", "promote_ms", "route_ms"];
    phases.iter().filter_map(|phase| change["phases"][phase].as_u64()).collect()
}

#[test]
fn drills_count_what_they_cost_and_the_cluster_says_why() {
    let cluster = Cluster::boot("drill");
    cluster.until("all commits are proven", LIMIT, is_proven);

    // What would happen is what then happens.
    let old = cluster.expect_primary();
    let why = json(&cluster, &["why"]);
    assert_eq!((&why["leader"], &why["because"][0]["reason"]), (&old.clone().into(), &"new_cluster".into()));
    let other = &cluster.others(&old)[0];
    let not = said(&cluster, &["why", "not", other]);
    assert!(not.starts_with(&format!("{other} could lead. It does not because {old} leads")), "{not}");

    // A setting that takes back what commits promise is named, and nothing is promised while it is there.
    let set = |sql: &str| {
        cluster.sql(&old, sql).expect("set");
        cluster.sql(&old, "select pg_reload_conf()").expect("reloaded");
    };
    assert_eq!(ask_beyond(&cluster.layout).zero_loss, Some(1));
    set("alter system set synchronous_commit = off");
    cluster.until("the lowered setting is known", LIMIT, |c| ask_beyond(&c.layout).zero_loss == Some(0));
    let why = said(&cluster, &["why"]);
    assert!(why.contains(&format!("synchronous_commit is off on {old} (by ALTER SYSTEM, ")), "{why}");
    set("alter system reset synchronous_commit");
    cluster.until("all is promised again", LIMIT, |c| ask_beyond(&c.layout).zero_loss == Some(1));

    let page = cluster.layout.dir.join("report.html");
    let drilled = json(&cluster, &["drill", "switchover", "--report", page.to_str().unwrap()]);
    let new = drilled["new"].as_str().unwrap().to_owned();
    assert_ne!(new, old, "{drilled}");
    assert_eq!((&drilled["lost"], &drilled["refused_connections"]), (&0.into(), &0.into()), "{drilled}");
    assert!(drilled["acknowledged"].as_u64() > Some(100) && drilled["healthy_after_ms"].is_u64(), "{drilled}");
    let change = &drilled["changes"][0];
    assert_eq!(
        (&change["kind"], &change["node"], &change["loss"]),
        (&"switchover".into(), &new.clone().into(), &"nothing".into())
    );
    assert_eq!(parts(change).len(), 5, "{change}");
    measured(&format!("drill switchover: no write for {} ms, {change}", drilled["write_outage_ms"]));
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("No acknowledged write was lost.") && page.contains("<svg"), "{page}");

    cluster.until("all commits are proven", LIMIT, is_proven);
    let drilled = json(&cluster, &["drill", "kill-postgres"]);
    assert_eq!(drilled["lost"], 0, "{drilled}");
    measured(&format!("drill kill-postgres: no write for {} ms, {}", drilled["write_outage_ms"], drilled["changes"]));

    cluster.until("all commits are proven", LIMIT, is_proven);
    let victim = cluster.expect_primary();
    let forecast = json(&cluster, &["what-if", "kill", &victim]);
    assert_eq!(forecast["outcome"]["taken_over"]["proven"], true, "{forecast}");
    let drilled = json(&cluster, &["drill", "kill-node"]);
    assert_eq!(drilled["lost"], 0, "{drilled}");
    assert!(drilled["old"] == *victim && drilled["new"] != *victim, "{drilled}");
    let kinds: Vec<&str> = drilled["changes"].as_array().unwrap().iter().filter_map(|c| c["kind"].as_str()).collect();
    assert_eq!(kinds.first(), Some(&"failover"), "{drilled}");
    assert_eq!(drilled["changes"][0]["cause"]["code"], "leader_silent", "{drilled}");
    measured(&format!("drill kill-node: no write for {} ms, {}", drilled["write_outage_ms"], drilled["changes"][0]));

    // It stays written down, with the same words, and who leads knows it.
    cluster.until("the return is written down, too", LIMIT, |c| {
        json(c, &["history", "--verbose"])
            .as_array()
            .unwrap()
            .iter()
            .any(|e| e["What"] == "rejoin" && e["Node"] == *victim)
    });
    let why = json(&cluster, &["why"]);
    assert_eq!(why["because"][0]["reason"], "leader_silent", "{why}");

    // Every decision since is made again by the same core, the same.
    let journal = cluster.node(drilled["new"].as_str().unwrap()).raft.join("decisions.jsonl");
    let again = json(&cluster, &["explain", "--journal", journal.to_str().unwrap()]);
    let rows = again.as_array().unwrap();
    assert!(rows.iter().any(|row| row["Action"] == "take_leader") && rows.iter().all(|row| row["As recorded"] == true));
    let refused = howdah(&cluster, &["drill", "partition"]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("--fresh"), "{refused:?}");

    // One that is interrupted leaves nothing behind, and says so.
    cluster.until("all commits are proven", LIMIT, is_proven);
    let victim = cluster.expect_primary();
    let is_frozen = |c: &Cluster| processes::of_node(&c.node(&victim)).iter().any(|process| process.frozen);
    let mut drill = command(&cluster, &["drill", "freeze"]);
    let drill = drill.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    cluster.until("the drill has frozen the primary's node", LIMIT, is_frozen);
    let pid = Pid::from_child(&drill);
    kill_process(pid, Signal::INT).expect("it runs");
    let ended = drill.wait_with_output().expect("it ends");
    let err = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(130), "{err}");
    assert!(err.contains(&format!("thawing {victim}\n")) && err.contains("table howdah_drill is dropped\n"), "{err}");
    assert!(!is_frozen(&cluster), "{err}");
    cluster.until_healthy();
    let left = said(&cluster, &["query", "--command", "select count(*) from pg_class where relname = 'howdah_drill'"]);
    assert!(left.lines().any(|line| line == "0"), "{left}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_node_that_is_cut_off_is_succeeded_and_comes_back() {
    let cluster = Cluster::boot_with("partition", &Options { links: true, ..Options::default() });
    cluster.until("all commits are proven", LIMIT, is_proven);
    let old = cluster.expect_primary();
    let drilled = json(&cluster, &["drill", "partition"]);
    assert_eq!((&drilled["lost"], &drilled["old"]), (&0.into(), &old.clone().into()), "{drilled}");
    assert_ne!(drilled["new"], *old, "{drilled}");
    measured(&format!("drill partition: no write for {} ms, {}", drilled["write_outage_ms"], drilled["changes"]));
    // By hand, and seen.
    let new = drilled["new"].as_str().unwrap();
    said(&cluster, &["dev", "partition", new]);
    let status = json(&cluster, &["dev", "status"]);
    let life = status["nodes"].as_array().unwrap().iter().find(|node| node["name"] == *new).unwrap()["life"].clone();
    assert_eq!(life, "cut_off", "{status}");
    said(&cluster, &["dev", "heal"]);
    cluster.until_healthy();
    assert!(howdah(&cluster, &["dev", "heal", new]).status.code() != Some(0), "it is not cut off any more");
}

/// The runbook of the README: two of three hosts burn, one of them the primary's.
#[test]
fn from_one_host_of_three_a_cluster_comes_back() {
    let mut cluster = Cluster::boot("one-left");
    let primary = cluster.expect_primary();
    let left = cluster.others(&primary).remove(0);
    let write = |c: &Cluster, name: &str, text: &str| c.sql(name, &format!("insert into kept values ('{text}')"));
    cluster.sql(&primary, "create table kept (what text)").expect("writes");
    write(&cluster, &primary, "before").expect("writes");
    cluster
        .until("it is replicated", LIMIT, |c| c.sql(&left, "select what from kept").is_ok_and(|rows| !rows.is_empty()));

    let file = cluster.node(&left).yaml.to_string_lossy().into_owned();
    let force = ["member", "force-new-cluster", file.as_str(), "--reason", "two of three burnt", "--force"];
    let refused = howdah(&cluster, &force);
    assert_eq!(refused.status.code(), Some(3), "a running node's store is left alone: {refused:?}");
    let others = cluster.others(&left);
    for name in &others {
        cluster.kill_node(name);
    }
    cluster.kill_node(&left);
    cluster.until("its store is free", LIMIT, |c| howdah(c, &force).status.success());
    cluster.start_agent(&left);
    cluster.until("its PostgreSQL runs", LIMIT, |c| c.sql(&left, "select 1").is_ok());
    // It does not know whether the others had more: a person says that it may lead.
    cluster.until("it leads", LIMIT, |c| {
        c.primary().as_ref() == Some(&left)
            || howdah(c, &["failover", "--candidate", &left, "--force"]).status.success()
    });
    cluster.until("it takes writes", LIMIT, |c| write(c, &left, "after").is_ok());

    // The others come back with the disks that nobody thought to see again: shut out until their stores are gone.
    for name in &others {
        let store = cluster.node(name).raft;
        std::fs::rename(&store, store.with_extension("old")).expect("moved away");
        cluster.start_agent(name);
    }
    cluster.until_healthy();
    assert_eq!(cluster.primary(), Some(left.clone()));
    for name in cluster.names() {
        let rows = cluster.sql(&name, "select distinct what from kept order by what").expect("reads");
        assert_eq!(rows, ["after", "before"], "{name}");
    }
}
