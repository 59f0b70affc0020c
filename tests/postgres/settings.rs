//! What the files say, what the server has, and what it takes to bring them together.

use std::collections::{BTreeMap, BTreeSet};

use howdah::postgres::{Credentials, Needs, ServerSettings, SqlStatus};
use howdah::types::StopMode;
use tokio_util::sync::CancellationToken;

use super::fixture::{Node, config, eventually, settings, test_directory};

fn with(credentials: &Credentials, parameters: &[(&str, &str)]) -> ServerSettings {
    let parameters = parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    ServerSettings { parameters, ..settings(credentials) }
}

#[tokio::test]
async fn a_change_needs_what_postgresql_needs() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let mut node = Node::primary(dir.path(), "n1", &credentials).await;
    let same = node.instance.configure(&settings(&credentials)).await.expect("same");
    assert_eq!((same.changed.len(), same.needs), (0, Needs::Nothing), "{same:?}");

    let wanted = with(&credentials, &[("work_mem", "12345kB"), ("custom.note", "it's\n\"here\" \\ now")]);
    let outcome = node.instance.configure(&wanted).await.expect("configure");
    assert_eq!((outcome.changed.as_slice(), outcome.needs), (["postgresql.conf".to_owned()].as_slice(), Needs::Reload));
    // As if a crash had come between writing and reloading.
    let again = node.instance.configure(&wanted).await.expect("configure");
    assert_eq!((again.changed.len(), again.needs), (0, Needs::Reload), "{again:?}");
    node.instance.reload().expect("reload");
    let settled = async || match node.instance.configure(&wanted).await.expect("configure").needs {
        Needs::Nothing => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually("reloaded", settled).await.expect("reloaded");
    assert_eq!(node.psql("SHOW work_mem").await, "12345kB");
    assert_eq!(node.psql("SHOW custom.note").await, "it's\n\"here\" \\ now");

    let wanted = with(&credentials, &[("max_connections", "120"), ("shared_buffers", "16MB")]);
    let outcome = node.instance.configure(&wanted).await.expect("configure");
    assert_eq!((outcome.needs, outcome.reload), (Needs::Restart, true));
    node.instance.reload().expect("reload");
    let status = node.until("two settings wait", |s| s.pending_restart.len() == 2).await;
    let pending: Vec<_> = status.pending_restart.iter().map(|p| (p.name.as_str(), p.new.as_str())).collect();
    assert_eq!(pending, [("max_connections", "120"), ("shared_buffers", "16MB")]);
    assert_eq!(status.pending_restart[0].old, "100");
    node.stop(StopMode::Fast).await;
    node.start();
    let status = node.until("restarted", |_| true).await;
    assert!(status.pending_restart.is_empty(), "{:?}", status.pending_restart);
    assert_eq!(node.psql("SHOW max_connections").await, "120");
    the_server_finds_the_same_lines_wrong(&node).await;
}

/// The view reads the file anew; the running server keeps to what it has read at its start.
async fn the_server_finds_the_same_lines_wrong(node: &Node) {
    let table: Vec<(bool, &str)> =
        include_str!("hba_lines.txt").lines().map(|line| (line.starts_with('+'), &line[2..])).collect();
    let text: String = table.iter().map(|(_, line)| format!("{line}\n")).collect();
    std::fs::write(node.data_dir().join("pg_hba.conf"), text).expect("written");
    let found = node
        .psql(
            "SELECT line_number, error FROM pg_hba_file_rules WHERE error IS NOT NULL AND error NOT LIKE '%cannot match%'",
        )
        .await;
    let found: BTreeMap<usize, &str> = found
        .lines()
        .filter_map(|row| row.split_once('|'))
        .map(|(line, why)| (line.parse().expect("number"), why))
        .collect();
    for (index, (good, line)) in table.iter().enumerate() {
        let refused = found.get(&(index + 1));
        assert_eq!(refused.is_none(), *good, "{line}: {refused:?}");
    }
}

#[tokio::test]
async fn a_server_started_by_someone_else_is_found() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let mut node = Node::primary(dir.path(), "n1", &credentials).await;
    let mut other = node.instance.config().clone();
    other.run_dir = dir.path().join("n1").join("elsewhere");
    other.port = config(dir.path(), "unused").port;
    let adopted = howdah::postgres::Instance::new(other.clone()).expect("usable");
    adopted.status().await.expect("found through its own pid file, without a password");
    let outcome = adopted.configure(&settings(&credentials)).await.expect("configure");
    let names: Vec<&str> = outcome.pending_restart.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["port", "unix_socket_directories"]);
    node.stop(StopMode::Fast).await;
    let mut moved = Node::with(other);
    moved.instance.configure(&settings(&credentials)).await.expect("configure");
    moved.start();
    moved.until("restarted at its new place", |s| s.pending_restart.is_empty()).await;
    moved.stop(StopMode::Fast).await;
}

#[tokio::test]
async fn a_refused_parameter_does_not_keep_the_others_away() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let mut node = Node::primary(dir.path(), "n1", &credentials).await;
    let wanted = with(
        &credentials,
        &[
            ("effective_io_concurency", "1"),
            ("work_mem", "lots"),
            ("max_wal_size", "1"),
            ("maintenance_work_mem", "77MB"),
        ],
    );
    for _ in 0..2 {
        let outcome = node.instance.configure(&wanted).await.expect("configure");
        let names: BTreeSet<&str> = outcome.refused.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, BTreeSet::from(["effective_io_concurency", "work_mem", "max_wal_size"]), "{outcome:?}");
    }
    let text = node.read("postgresql.conf");
    assert!(text.contains("maintenance_work_mem = '77MB'") && !text.contains("work_mem = 'lots'"), "{text}");
    node.stop(StopMode::Fast).await;
    node.start();
    node.until_accepting().await;
    assert_eq!(node.psql("SHOW maintenance_work_mem").await, "77MB");
}

#[tokio::test]
async fn the_operators_base_file_stays_and_weighs_less_than_the_record() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let mut node = Node::new(dir.path(), "n1");
    node.instance.initdb(&credentials, &CancellationToken::new()).await.expect("initdb");
    let original = node.read("postgresql.conf")
        + "\nport = 1\nwal_keep_size = 64MB\nwork_mem = 5MB\nmaintenance_work_mem = 66MB\n";
    std::fs::write(node.data_dir().join("postgresql.conf"), &original).expect("edited");
    node.instance.configure(&with(&credentials, &[("work_mem", "6MB")])).await.expect("configure");
    assert_eq!(node.read("postgresql.base.conf"), original);
    node.instance.prepare_primary().expect("prepare");
    node.start();
    node.until_accepting().await;
    let shown = node.psql("SELECT string_agg(current_setting(n), ' ') FROM unnest(ARRAY['wal_keep_size', 'work_mem', 'maintenance_work_mem', 'wal_log_hints']) n").await;
    assert_eq!(shown, "64MB 6MB 66MB on", "base wins over our defaults, the record over the base");
    // Somebody edits the generated file into one of his own: kept, and replaced.
    std::fs::write(node.data_dir().join("postgresql.conf"), "work_mem = 1MB\n").expect("edited");
    let outcome = node.instance.configure(&with(&credentials, &[("work_mem", "6MB")])).await.expect("configure");
    assert_eq!(outcome.needs, Needs::Reload);
    assert_eq!(node.read("postgresql.base.conf"), original);
    let kept = std::fs::read_dir(node.data_dir())
        .expect("list")
        .flatten()
        .any(|e| e.file_name().to_string_lossy().contains(".replaced-"));
    assert!(kept, "the edited file is kept");
}

#[tokio::test]
async fn alter_system_cannot_take_over() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let mut node = Node::primary(dir.path(), "n1", &credentials).await;
    for sql in [
        "ALTER SYSTEM SET synchronous_standby_names = '*'",
        "ALTER SYSTEM SET primary_conninfo = 'host=evil'",
        "ALTER SYSTEM SET max_connections = 50",
        "ALTER SYSTEM SET work_mem = '9MB'",
    ] {
        node.psql(sql).await;
    }
    let wanted = ServerSettings {
        synchronous_standby_names: Some("ANY 1 (\"n2\",\"n3\")".to_owned()),
        ..settings(&credentials)
    };
    let outcome = node.instance.configure(&wanted).await.expect("configure");
    assert_eq!(outcome.removed_from_auto_conf, ["synchronous_standby_names", "primary_conninfo", "max_connections"]);
    node.instance.reload().expect("reload");
    node.until("names are in force", |s| s.synchronous_standby_names == "ANY 1 (\"n2\",\"n3\")").await;
    node.stop(StopMode::Fast).await;
    node.start();
    node.until_accepting().await;
    assert_eq!(node.psql("SELECT current_setting('work_mem') || current_setting('max_connections')").await, "9MB100");
}

/// Nobody forbids it, and nobody may be promised then what does not hold.
#[tokio::test]
async fn settings_that_take_back_what_commits_promise_are_seen() {
    let dir = test_directory();
    let mut node = Node::primary(dir.path(), "n1", &Credentials::generate()).await;
    // These tests run without fsync, and it is seen.
    let seen = |s: &SqlStatus| s.lowered.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>();
    node.until("fsync is off", |s| seen(s) == ["fsync=off"]).await;
    node.psql("ALTER SYSTEM SET synchronous_commit = local").await;
    node.instance.reload().expect("reload");
    node.until("both are seen", |s| seen(s) == ["fsync=off", "synchronous_commit=local"]).await;
    node.psql("ALTER SYSTEM SET synchronous_commit = remote_write").await;
    node.psql("ALTER SYSTEM SET fsync = on").await;
    node.instance.reload().expect("reload");
    node.until("nothing is lowered", |s| s.lowered.is_empty()).await;
    node.stop(StopMode::Fast).await;
}

#[tokio::test]
async fn the_operators_access_list_wins_and_a_foreign_one_stays() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let lines = vec!["local all all peer map=howdah".to_owned(), "host all all 127.0.0.1/32 scram-sha-256".to_owned()];
    let mut own = config(dir.path(), "n1");
    own.pg_hba = Some(lines);
    let node = Node::with(own);
    node.instance.initdb(&credentials, &CancellationToken::new()).await.expect("initdb");
    node.instance.configure(&settings(&credentials)).await.expect("configure");
    let text = node.read("pg_hba.conf");
    assert!(text.ends_with("local all all peer map=howdah\nhost all all 127.0.0.1/32 scram-sha-256\n"), "{text}");
    assert!(!text.contains("replicator"));

    let other = Node::new(dir.path(), "n2");
    other.instance.initdb(&credentials, &CancellationToken::new()).await.expect("initdb");
    std::fs::write(other.data_dir().join("pg_hba.conf"), "# mine\nlocal all all trust\n").expect("foreign file");
    let outcome = other.instance.configure(&settings(&credentials)).await.expect("configure");
    assert!(outcome.foreign_hba);
    assert_eq!(other.read("pg_hba.conf"), "# mine\nlocal all all trust\n");
    let given = ServerSettings { pg_hba: Some(vec!["local all all reject".to_owned()]), ..settings(&credentials) };
    other.instance.configure(&given).await.expect("configure");
    assert_eq!(other.read("pg_hba.conf.before-howdah"), "# mine\nlocal all all trust\n");
}

#[tokio::test]
async fn slots_of_members_come_and_go_and_others_stay() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let node = Node::primary(dir.path(), "n1", &credentials).await;
    node.psql("SELECT pg_create_physical_replication_slot('backup_tool'), pg_create_physical_replication_slot('n3')")
        .await;
    let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
    let changes = node.instance.sync_member_slots(&set(&["n2", "n3"]), &BTreeSet::new()).await.expect("slots");
    assert_eq!(
        (changes.created.as_slice(), changes.recreated.as_slice()),
        (["n2".to_owned()].as_slice(), ["n3".to_owned()].as_slice())
    );
    let again = node.instance.sync_member_slots(&set(&["n2", "n3"]), &set(&["n2"])).await.expect("slots");
    assert!(again.is_empty(), "{again:?}");
    let status = node.instance.status().await.expect("status");
    assert!(
        status.slots.iter().filter(|s| s.name != "backup_tool").all(|s| s.restart_lsn.is_some()),
        "{:?}",
        status.slots
    );
    let target = status.position();
    let failed = node.instance.advance_slots(&BTreeMap::from([("n2".to_owned(), target)])).await.expect("advance");
    assert!(failed.is_empty(), "{failed:?}");
    let dropped = node.instance.sync_member_slots(&set(&["n2"]), &set(&["n3", "n4"])).await.expect("slots");
    assert_eq!(dropped.dropped, ["n3"]);
    let names: Vec<String> = node.instance.status().await.expect("status").slots.into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["backup_tool", "n2"]);
}
