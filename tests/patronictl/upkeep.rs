//! Restart, reload, a new copy, settings: what is asked for by hand happens, and nothing else.

use std::fs;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::cluster::{Cluster, LIMIT};
use crate::log_gate::LogGate;
use crate::observe;

/// What a node says when it replaces data: worth a look, and expected here.
pub const KEPT: &str = "moved the data directory aside";

#[test]
fn a_restart_by_hand_keeps_primary_timeline_and_term() {
    let cluster = Cluster::boot("restart");
    let primary = cluster.expect_primary();
    let replica = cluster.others(&primary).remove(0);
    let (term, timeline) = (cluster.term(&primary), observe::timeline(&cluster.seen()));
    for name in [&replica, &primary] {
        let before = cluster.postmaster(name).expect("a postmaster");
        let answer = cluster.post(name, "/restart", &json!({}));
        assert_eq!((answer.status, answer.body.as_str()), (200, "restarted successfully"));
        assert_ne!(cluster.postmaster(name), Some(before), "{name} has not been restarted");
        assert!(cluster.has_decided(name, "restart_by_hand") && cluster.has_decided(name, "start_by_hand"));
        cluster.until_healthy();
    }
    assert_eq!((cluster.term(&primary), cluster.primary()), (term.clone(), Some(primary.clone())));
    // In a pause people may do what howdah does not.
    assert_eq!(cluster.howdah(&["pause", "--wait", "--force"]).code, Some(0));
    for name in [&replica, &primary] {
        let before = cluster.postmaster(name).expect("a postmaster");
        let ran = cluster.howdah(&["restart", "restart", name, "--force"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert_ne!(cluster.postmaster(name), Some(before), "{name} has not been restarted");
    }
    let refused = cluster.post(&replica, "/restart", &json!({"schedule": "2999-01-01T00:00:00+00:00"}));
    assert_eq!(refused.status, 500, "{}", refused.body);
    assert_eq!(cluster.howdah(&["resume", "--wait", "--force"]).code, Some(0));
    cluster.until_healthy();
    assert_eq!(cluster.term(&primary), term);
    assert_eq!(observe::timeline(&cluster.seen()), timeline, "a restart is no failover");
    // Conditions.
    let before = cluster.postmaster(&replica);
    let unmet = [json!({"role": "primary"}), json!({"postgres_version": "9.6"}), json!({"restart_pending": true})];
    for condition in [&unmet[0], &unmet[2]] {
        let answer = cluster.post(&replica, "/restart", condition);
        assert_eq!(answer.status, 503, "{condition}: {}", answer.body);
        assert!(answer.body.starts_with("restart conditions are not satisfied"), "{}", answer.body);
    }
    assert_eq!(cluster.post(&replica, "/restart", &unmet[1]).status, 400, "older than 10 is no version of ours");
    assert_eq!(cluster.postmaster(&replica), before);
    // Later.
    let later = json!({"schedule": "2999-01-01T00:00:00+00:00", "role": "replica"});
    let scheduled = cluster.post(&replica, "/restart", &later);
    assert_eq!((scheduled.status, scheduled.body.as_str()), (202, "Restart scheduled"));
    assert_eq!(cluster.post(&replica, "/restart", &later).status, 409);
    cluster.until("everybody shows the scheduled restart", LIMIT, |c| {
        c.get(&replica, "/patroni")["scheduled_restart"]["role"] == "replica"
            && c.howdah(&["list"]).out.contains("2999-01-01T00:00:00.000+00:00, role: \"replica\"")
    });
    let flushed = cluster.howdah(&["flush", "restart", &replica, "restart", "--force"]);
    assert_eq!(flushed.code, Some(0), "{flushed:?}");
    let soon = howdah::types::WallTime(howdah::telemetry::clock::wall().0 + 1500).iso();
    let before = cluster.postmaster(&replica);
    assert_eq!(cluster.post(&replica, "/restart", &json!({"schedule": soon})).status, 202);
    cluster.until("the scheduled restart has happened", LIMIT, |c| {
        let now = c.postmaster(&replica);
        now.is_some() && now != before
    });
    cluster.until_healthy();
    LogGate::new().check(&cluster);
}

#[test]
fn settings_reach_running_servers_and_name_what_waits_for_a_restart() {
    let cluster = Cluster::boot("settings");
    let primary = cluster.expect_primary();
    let before: Vec<_> = cluster.names().iter().map(|name| cluster.postmaster(name)).collect();
    let changed = cluster.howdah(&["edit-config", "-p", "work_mem=9MB", "-p", "max_connections=123", "--force"]);
    assert_eq!(changed.code, Some(0), "{changed:?}");
    for name in cluster.names() {
        cluster.until_setting(&name, "work_mem", "9MB");
        cluster.until_setting(&name, "max_connections", "100");
        cluster.until(&format!("{name} says what waits for a restart"), LIMIT, |c| {
            let reason = c.get(&name, "/patroni")["pending_restart_reason"].clone();
            reason == json!({"max_connections": {"old_value": "100", "new_value": "123"}})
        });
    }
    let now: Vec<_> = cluster.names().iter().map(|name| cluster.postmaster(name)).collect();
    assert_eq!(now, before, "a setting restarted PostgreSQL");
    cluster.until("the list shows it", LIMIT, |c| {
        c.howdah(&["list"]).out.matches("max_connections: 100->123").count() == 3
    });
    let ran = cluster.howdah(&["restart", "settings", "--pending", "--force"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for name in cluster.names() {
        cluster.until_setting(&name, "max_connections", "123");
    }
    cluster.until("nothing waits any more", LIMIT, |c| {
        c.names().iter().all(|name| c.get(name, "/patroni").get("pending_restart").is_none())
    });
    cluster.until_healthy();
    assert_eq!(cluster.primary(), Some(primary.clone()), "the rolling restart moved the primary");
    // Lower: a standby can have it only once its primary has. One command does both, in that order.
    // At once: the command itself waits until everybody knows of the change, so that raised, it reaches standbys first.
    for value in ["110", "130"] {
        let changed = cluster.howdah(&["edit-config", "-p", &format!("max_connections={value}"), "--force"]);
        assert_eq!(changed.code, Some(0), "{changed:?}");
        let ran = cluster.howdah(&["restart", "settings", "--pending", "--force"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        for name in cluster.names() {
            cluster.until_setting(&name, "max_connections", value);
        }
        cluster.until_healthy();
    }
    let ran = cluster.howdah(&["restart", "settings", "--pending", "--force"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "No setting waits for a restart\n"), "{ran:?}");
    cluster.until_healthy();
    assert_eq!(cluster.primary(), Some(primary.clone()), "the rolling restart moved the primary");
    // Refused by name before anything is written.
    let config = cluster.get(&primary, "/config");
    for (parameter, word) in
        [("work_memm=9MB", "work_memm"), ("work_mem=lots", "work_mem"), ("wal_level=minimal", "wal_level")]
    {
        let ran = cluster.howdah(&["edit-config", "-p", parameter, "--force"]);
        assert!(ran.code == Some(2) && ran.err.contains(&format!("postgresql.parameters.{word}")), "{ran:?}");
    }
    let ran = cluster.howdah(&["edit-config", "-s", "postgresql.pg_hba=[\"nonsense line\"]", "--force"]);
    assert!(ran.code == Some(2) && ran.err.contains("postgresql.pg_hba: line 1, \"nonsense line\""), "{ran:?}");
    assert_eq!(cluster.get(&primary, "/config"), config);
    a_paused_replay_is_shown(&cluster, &primary);
    a_dropped_role_comes_back(&cluster, &primary);
    LogGate::new().allow(&primary, "a role that the cluster needs was missing").check(&cluster);
}

fn a_paused_replay_is_shown(cluster: &Cluster, primary: &str) {
    let replica = cluster.others(primary).remove(0);
    let paused = |c: &Cluster| {
        let rows: Value = serde_json::from_str(&c.howdah(&["list", "-f", "json"]).out).unwrap_or_default();
        let replay = |name: &str| {
            let row = rows.as_array()?.iter().find(|row| row["Member"] == name)?;
            row["Replay"].as_str().map(str::to_owned)
        };
        c.names().into_iter().filter(|name| replay(name).is_some_and(|word| word == "paused")).collect::<Vec<_>>()
    };
    cluster.sql(&replica, "SELECT pg_wal_replay_pause()").expect("paused");
    cluster.until("the list says whose replay is paused", LIMIT, |c| paused(c) == [replica.clone()]);
    cluster.sql(&replica, "SELECT pg_wal_replay_resume()").expect("resumed");
    cluster.until("and that it goes on", LIMIT, |c| paused(c).is_empty());
}

fn a_dropped_role_comes_back(cluster: &Cluster, primary: &str) {
    cluster.sql(primary, "DROP ROLE replicator").expect("dropped");
    cluster.sql(primary, "SELECT pg_terminate_backend(pid) FROM pg_stat_replication").expect("ended");
    cluster.until("all standbys stream again", LIMIT, |c| {
        let streaming = c.sql(primary, "SELECT count(*) FROM pg_stat_replication WHERE usename = 'replicator'");
        streaming.is_ok_and(|rows| rows == [c.others(primary).len().to_string()])
    });
    cluster.until_healthy();
}

#[test]
fn a_nodes_file_is_read_again() {
    let mut cluster = Cluster::boot("reload");
    let primary = cluster.expect_primary();
    let replica = cluster.others(&primary).remove(0);
    let postmaster = cluster.postmaster(&replica);
    let file = cluster.node(&replica).yaml;
    let old = fs::read_to_string(&file).unwrap();
    let mut tree: Value = serde_yaml_ng::from_str(&old).unwrap();
    tree["tags"] = json!({"zone": "b", "nofailover": true});
    tree["postgresql"]["parameters"]["work_mem"] = json!("11MB");
    fs::write(&file, tree.to_string()).unwrap();
    let ran = cluster.howdah(&["reload", "reload", &replica, "--force"]);
    assert!(ran.code == Some(0) && ran.out.contains("reload scheduled"), "{ran:?}");
    cluster.until_setting(&replica, "work_mem", "11MB");
    cluster.until("the tags are everybody's knowledge", LIMIT, |c| {
        c.get(&replica, "/patroni")["tags"]["zone"] == "b" && c.howdah(&["list"]).out.contains("nofailover: true")
    });
    let refused = cluster.post(&primary, "/switchover", &json!({"leader": primary, "candidate": replica}));
    assert_eq!(refused.status, 412, "{}", refused.body);
    // A wrong file changes nothing, and says so.
    fs::write(&file, old.replace("scope:", "scoop:")).unwrap();
    let wrong = cluster.post(&replica, "/reload", &json!({}));
    assert!(wrong.status == 400 && wrong.body.contains("scoop: unknown key"), "{}", wrong.body);
    // SIGHUP does the same.
    fs::write(&file, &old).unwrap();
    cluster.signal_agent(&replica, Signal::HUP);
    cluster.until_setting(&replica, "work_mem", "4MB");
    cluster.until("the tags are gone", LIMIT, |c| c.get(&replica, "/patroni").get("tags").is_none());
    assert_eq!(cluster.postmaster(&replica), postmaster, "a reload restarted PostgreSQL");
    // What counts later is named.
    fs::write(&file, old.replace("level: INFO", "level: DEBUG")).unwrap();
    let later = cluster.post(&replica, "/reload", &json!({}));
    assert_eq!((later.status, later.body.ends_with(": log")), (202, true), "{}", later.body);
    LogGate::new().check(&cluster);
}

#[test]
fn a_replica_is_made_anew_and_its_old_data_kept() {
    let cluster = Cluster::boot("reinit");
    let primary = cluster.expect_primary();
    let replica = cluster.others(&primary).remove(0);
    let refused = cluster.post(&primary, "/reinitialize", &json!({}));
    assert_eq!((refused.status, refused.body.as_str()), (503, "I am the leader, can not reinitialize"));
    let mut kept = 0;
    for pause in [false, true] {
        if pause {
            assert_eq!(cluster.howdah(&["pause", "--wait", "--force"]).code, Some(0));
        }
        let inode = cluster.data_inode(&replica);
        let ran = cluster.howdah(&["reinit", "reinit", &replica, "--from-leader", "--wait", "--force"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        cluster.until_replica(&replica);
        assert_ne!(cluster.data_inode(&replica), inode, "the directory is the old one");
        assert!(cluster.has_decided(&replica, "reinitialize_by_hand"));
        let aside = aside(&cluster, &replica);
        assert_eq!(aside.len(), kept + 1, "{aside:?}");
        kept = aside.len();
    }
    assert_eq!(cluster.howdah(&["resume", "--wait", "--force"]).code, Some(0));
    cluster.until_healthy();
    LogGate::new().allow(&replica, KEPT).check(&cluster);
}

/// Directories beside the node's data directory that are named after it.
fn aside(cluster: &Cluster, name: &str) -> Vec<String> {
    let data = cluster.node(name).data;
    let prefix = format!("{}.diverged-", data.file_name().unwrap().to_string_lossy());
    let entries = fs::read_dir(data.parent().unwrap()).unwrap().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|n| n.starts_with(&prefix)).collect()
}
