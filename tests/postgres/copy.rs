//! Base backups: whole, cancelled, and killed in the middle.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use howdah::postgres::{Credentials, DataDir, Error, Instance, MovedAs, Progress, SqlRole, Stage, Upstream};
use howdah::types::{StopMode, TimelineId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::fixture::{Node, beside, config, eventually, test_directory};

#[tokio::test]
async fn a_copy_streams_through_its_slot() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let mut primary = Node::primary(dir.path(), "n1", &credentials).await;
    primary.psql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS i").await;
    let mut standby = Node::standby(dir.path(), "n2", &primary, &credentials).await;
    assert_eq!(beside(standby.data_dir()), ["data"]);

    primary.psql("INSERT INTO t VALUES (1001)").await;
    let status = primary.instance.status().await.expect("status");
    let target = status.position();
    let status = standby.until("caught up", |s| match &s.role {
        SqlRole::Replica(replica) => target <= replica.replayed,
        SqlRole::Primary(_) => false,
    });
    let status = status.await;
    let SqlRole::Replica(replica) = &status.role else { panic!("{status:?}") };
    let receiver = replica.receiver.as_ref().expect("receiver");
    assert_eq!(
        (receiver.sender_port, receiver.slot_name.as_deref()),
        (Some(primary.instance.config().port), Some("n2"))
    );
    assert_eq!(receiver.received_timeline, Some(TimelineId(1)));
    assert!(replica.replayed <= replica.received && !replica.replay_paused);
    assert!(!replica.primary_conninfo.contains(credentials.replication.password.expose().as_str()));
    assert_eq!(standby.psql("SELECT count(*) FROM t").await, "1001");

    let status = primary.instance.status().await.expect("status");
    let sender = status.replication.first().expect("sender");
    assert_eq!((sender.application_name.as_str(), sender.state.as_str()), ("n2", "streaming"));
    assert_eq!((sender.usename.as_str(), sender.slot_name.as_deref()), ("replicator", Some("n2")));
    assert_eq!(sender.client_addr.as_deref(), Some("127.0.0.1"));
    assert!(status.slots.iter().any(|s| s.name == "n2" && s.active));

    let remote = standby.instance.remote_state(&primary.as_upstream("n2")).await.expect("remote");
    assert!(!remote.in_recovery && remote.system_id == status.system_id && target <= remote.lsn);
    let remote = primary.instance.remote_state(&standby.as_upstream("n1")).await.expect("remote");
    assert!(remote.in_recovery && remote.timeline == TimelineId(1) && target <= remote.lsn);

    // The proof of a switchover: a clean stop waits until the standby has the shutdown checkpoint.
    primary.stop(StopMode::Fast).await;
    let shutdown = primary.instance.shutdown_checkpoint().await.expect("checkpoint");
    assert!(shutdown.start < shutdown.end);
    let has_it = standby.until("has the shutdown checkpoint", |s| shutdown.end <= s.position()).await;
    assert_eq!(has_it.position(), shutdown.end, "exactly the end of the record");
    assert!(matches!(standby.instance.shutdown_checkpoint().await, Err(Error::DataDirState { .. })));
    standby.stop(StopMode::Fast).await;
}

/// A source that is slow to copy: 32 kB per second.
fn slow(dir: &std::path::Path, name: &str) -> Node {
    let mut slow = config(dir, name);
    slow.basebackup = vec![("max-rate".to_owned(), Some("32k".to_owned()))];
    Node::with(slow)
}

#[tokio::test]
async fn a_cancelled_copy_leaves_no_data_directory() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let primary = Node::primary(dir.path(), "n1", &credentials).await;
    let node = slow(dir.path(), "n2");
    let (progress, mut seen) = watch::channel(Progress::default());
    let cancel = CancellationToken::new();
    let upstream = Upstream { slot: None, ..primary.as_upstream("n2") };
    let watcher = async {
        seen.wait_for(|p| p.stage == Stage::Copying && 0 < p.done_bytes).await.expect("progress").percent();
        assert!(matches!(node.instance.inspect().await, DataDir::Missing), "not there before it is whole");
        cancel.cancel();
    };
    let copy = node.instance.basebackup(&upstream, &credentials, &progress, &cancel);
    let (result, ()) = tokio::join!(copy, watcher);
    assert!(matches!(result, Err(Error::Cancelled { .. })), "{result:?}");
    assert_eq!(node.instance.inspect().await, DataDir::Missing);
    assert!(beside(node.data_dir()).is_empty(), "{:?}", beside(node.data_dir()));
    let no_sender = async || {
        let status = primary.instance.status().await.expect("status");
        if status.replication.is_empty() { Ok(()) } else { Err(format!("{:?}", status.replication)) }
    };
    eventually("no copy runs", no_sender).await.expect("the tool is gone");
}

#[tokio::test]
async fn the_rewind_login_needs_no_superuser_rights() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let mut primary = Node::primary(dir.path(), "n1", &credentials).await;
    let mut wanted = super::fixture::settings(&credentials);
    wanted.parameters.insert("shared_preload_libraries".to_owned(), "pg_stat_statements".to_owned());
    primary.instance.configure(&wanted).await.expect("configure");
    primary.stop(StopMode::Fast).await;
    primary.start();
    primary.until_accepting().await;
    let other = Node::new(dir.path(), "n2");
    other.instance.set_credentials(&credentials);
    other.instance.remote_state(&primary.as_upstream("n2")).await.expect("remote");
    let plain = other.instance.remote_state(&primary.as_upstream("n2")).await.expect("without TLS");
    let mut over_tls = credentials.clone();
    over_tls.rewind.options.insert("sslmode".to_owned(), "require".to_owned());
    other.instance.set_credentials(&over_tls);
    let error = other.instance.remote_state(&primary.as_upstream("n2")).await.expect_err("no TLS there");
    assert!(error.to_string().contains("SSL"), "{error}");

    let (key, certificate) = (dir.path().join("server.key"), dir.path().join("server.crt"));
    let made = Command::new("openssl")
        .args(["req", "-new", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-newkey", "rsa:2048"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl");
    assert!(made.status.success(), "{made:?}");
    for file in [&key, &certificate] {
        let user = primary.instance.user();
        let owner = user.switch.then_some(user.uid);
        std::os::unix::fs::chown(file, owner, None).expect("owner");
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("mode");
    for (name, value) in [
        ("ssl", "on".to_owned()),
        ("ssl_key_file", key.display().to_string()),
        ("ssl_cert_file", certificate.display().to_string()),
    ] {
        wanted.parameters.insert(name.to_owned(), value);
    }
    wanted.pg_hba =
        Some(vec!["local all all peer map=howdah".to_owned(), "hostssl all all all scram-sha-256".to_owned()]);
    assert!(primary.instance.configure(&wanted).await.expect("configure").refused.is_empty());
    primary.instance.reload().expect("reload");
    let ask = async || other.instance.remote_state(&primary.as_upstream("n2")).await.map_err(|e| e.to_string());
    assert_eq!(eventually("over TLS", ask).await.expect("over TLS").system_id, plain.system_id);
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_named() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let node = Node::new(dir.path(), "n2");
    let (progress, _) = watch::channel(Progress::default());
    let nowhere = Node::new(dir.path(), "n1").as_upstream("n2");
    let error = node.instance.basebackup(&nowhere, &credentials, &progress, &CancellationToken::new()).await;
    let error = error.expect_err("nobody there");
    assert!(error.is_transient() && error.to_string().contains("Connection refused"), "{error}");
    assert_eq!(node.instance.inspect().await, DataDir::Missing);
}

#[tokio::test]
async fn tablespaces_go_where_their_cluster_goes() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let primary = Node::primary(dir.path(), "n1", &credentials).await;
    let (there, here) = (dir.path().join("space-n1"), dir.path().join("space-n2"));
    fs::create_dir(&there).expect("directory");
    if primary.instance.user().switch {
        std::os::unix::fs::chown(&there, Some(primary.instance.user().uid), None).expect("owner");
    }
    primary.psql(&format!("CREATE TABLESPACE space LOCATION '{}'", there.display())).await;
    primary.psql("CREATE TABLE t TABLESPACE space AS SELECT generate_series(1, 100000) AS i").await;
    let upstream = Upstream { slot: None, ..primary.as_upstream("n2") };
    let mapping = ("tablespace-mapping".to_owned(), Some(format!("{}={}", there.display(), here.display())));
    let (progress, mut seen) = watch::channel(Progress::default());
    let cancel = CancellationToken::new();

    let mut plain = config(dir.path(), "n2");
    let error = Node::with(plain.clone()).instance.basebackup(&upstream, &credentials, &progress, &cancel).await;
    assert!(error.expect_err("its place is taken").to_string().contains("tablespace-mapping"));

    plain.basebackup = vec![mapping.clone(), ("max-rate".to_owned(), Some("32k".to_owned()))];
    let slow = Node::with(plain.clone());
    let watcher = async {
        let began = |p: &Progress| p.stage == Stage::Copying && here.join(first_entry(&there)).exists();
        seen.wait_for(began).await.expect("progress").percent();
        cancel.cancel();
    };
    let copy = slow.instance.basebackup(&upstream, &credentials, &progress, &cancel);
    let (result, ()) = tokio::join!(copy, watcher);
    assert!(matches!(result, Err(Error::Cancelled { .. })), "{result:?}");
    assert!(fs::read_dir(&here).into_iter().flatten().next().is_none(), "the place is empty again");

    plain.basebackup = vec![mapping];
    let node = Node::with(plain);
    let cancel = CancellationToken::new();
    node.instance.basebackup(&upstream, &credentials, &progress, &cancel).await.expect("copy");
    let kept = node.instance.move_aside("test", MovedAs::Failed).await.expect("moved").expect("was there");
    let suffix = kept.to_string_lossy().rsplit_once("data").expect("name").1.to_owned();
    assert!(dir.path().join(format!("space-n2{suffix}")).join(first_entry(&there)).exists());
    node.instance.basebackup(&upstream, &credentials, &progress, &cancel).await.expect("a second copy");
    assert!(here.join(first_entry(&there)).exists());
}

fn first_entry(dir: &std::path::Path) -> std::ffi::OsString {
    fs::read_dir(dir).expect("list").flatten().next().expect("an entry").file_name()
}

/// The part of a killed agent in the next test; does nothing by itself.
#[tokio::test]
async fn agent_that_gets_killed() {
    let Ok(dir) = std::env::var("TEST_DIRECTORY") else { return };
    let dir = std::path::PathBuf::from(dir);
    let credentials: Credentials =
        serde_json::from_slice(&fs::read(dir.join("credentials")).expect("file")).expect("credentials");
    let upstream: Upstream = serde_json::from_slice(&fs::read(dir.join("upstream")).expect("file")).expect("upstream");
    let node = slow(&dir, "n2");
    let (progress, _) = watch::channel(Progress::default());
    let _ = node.instance.basebackup(&upstream, &credentials, &progress, &CancellationToken::new()).await;
}

#[tokio::test]
async fn a_killed_copy_is_cleaned_up_and_repeated() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let primary = Node::primary(dir.path(), "n1", &credentials).await;
    let upstream = Upstream { slot: None, ..primary.as_upstream("n2") };
    fs::write(dir.path().join("credentials"), serde_json::to_vec(&credentials).expect("text")).expect("file");
    fs::write(dir.path().join("upstream"), serde_json::to_vec(&upstream).expect("text")).expect("file");
    let mut agent = Command::new(std::env::current_exe().expect("path"))
        .args(["--exact", "postgres::copy::agent_that_gets_killed"])
        .env("TEST_DIRECTORY", dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("agent");
    let copying = async || {
        let status = primary.instance.status().await.expect("status");
        let found = status.replication.iter().any(|s| s.state == "backup");
        if found { Ok(()) } else { Err(format!("{:?}", status.replication)) }
    };
    let began = eventually("the copy runs", copying).await;
    agent.kill().expect("killed");
    agent.wait().expect("gone");
    began.expect("the copy ran");

    let node = Node::new(dir.path(), "n2");
    assert_eq!(node.instance.inspect().await, DataDir::Missing);
    assert_eq!(beside(node.data_dir()).len(), 1, "the staging directory was left behind");
    let (progress, _) = watch::channel(Progress::default());
    node.instance.basebackup(&upstream, &credentials, &progress, &CancellationToken::new()).await.expect("second try");
    assert_eq!(beside(node.data_dir()), ["data"]);
    let present = node.present().await;
    assert!(present.backup_label && present.standby_signal && !present.is_promotable());
    let no_sender = async || {
        let status = primary.instance.status().await.expect("status");
        if status.replication.is_empty() { Ok(()) } else { Err(format!("{:?}", status.replication)) }
    };
    eventually("the first tool is gone", no_sender).await.expect("gone");
    drop(Instance::new(node.instance.config().clone()));
}
