//! What is refused, in words that help, without changing anything.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use howdah::postgres::{Credentials, DataDir, Error, Instance, MovedAs, NotAccepting, Progress, StatusError};
use howdah::types::{StopMode, TimelineId};
use rustix::process::Signal;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::fixture::{Node, beside, config, eventually, listing, test_directory};

#[tokio::test]
async fn a_foreign_directory_is_not_touched() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let node = Node::new(dir.path(), "n1");
    fs::create_dir_all(node.data_dir()).expect("directory");
    assert_eq!(node.instance.inspect().await, DataDir::Empty);
    fs::write(node.data_dir().join("thesis.txt"), "years of work").expect("file");
    let before = listing(dir.path());

    let state = node.instance.inspect().await;
    assert!(matches!(&state, DataDir::Foreign { why } if why.contains("no PG_VERSION")), "{state:?}");
    let cancel = CancellationToken::new();
    let error = node.instance.initdb(&credentials, &cancel).await.expect_err("refused");
    assert!(error.to_string().contains("move its content away"), "{error}");
    let error = node.instance.configure(&super::fixture::settings(&credentials)).await.expect_err("refused");
    assert!(matches!(error, Error::DataDirState { operation: "configure", .. }), "{error}");
    assert_eq!(listing(dir.path()), before);

    let (progress, _) = watch::channel(Progress::default());
    let result = node.instance.basebackup(&node.as_upstream("x"), &credentials, &progress, &cancel).await;
    assert!(matches!(result, Err(Error::DataDirState { operation: "base backup", .. })), "{result:?}");
    assert!(node.data_dir().join("thesis.txt").exists());
}

#[tokio::test]
async fn another_major_version_is_named() {
    let dir = test_directory();
    let node = Node::new(dir.path(), "n1");
    fs::create_dir_all(node.data_dir()).expect("directory");
    fs::write(node.data_dir().join("PG_VERSION"), "9.6\n").expect("file");
    let state = node.instance.inspect().await;
    assert!(matches!(&state, DataDir::Foreign { why } if why.contains("9.6") && why.contains("bin_dir")), "{state:?}");
}

#[tokio::test]
async fn a_damaged_control_file_is_incomplete_not_absent() {
    let dir = test_directory();
    let node = Node::new(dir.path(), "n1");
    node.instance.initdb(&Credentials::generate(), &CancellationToken::new()).await.expect("initdb");
    node.instance.seal().expect("seal");
    assert!(matches!(node.instance.inspect().await, DataDir::Present(_)));
    fs::remove_file(node.data_dir().join("global/pg_control")).expect("damage");
    let state = node.instance.inspect().await;
    assert!(matches!(&state, DataDir::Incomplete { why, .. } if why.contains("pg_control")), "{state:?}");
}

#[test]
fn bad_configuration_is_refused_before_anything_happens() {
    let dir = test_directory();
    let mut wrong = config(dir.path(), "n1");
    wrong.bin_dir = Some(dir.path().join("nowhere"));
    let error = Instance::new(wrong).expect_err("no programs").to_string();
    assert!(error.contains("nowhere") && error.contains("set postgresql.bin_dir"), "{error}");

    let mut wrong = config(dir.path(), "n1");
    wrong.data_dir = "relative".into();
    let error = Instance::new(wrong).expect_err("relative").to_string();
    assert!(error.contains("postgresql.data_dir") && error.contains("absolute"), "{error}");

    let mut wrong = config(dir.path(), "n1");
    wrong.run_dir = wrong.data_dir.join("run");
    assert!(Instance::new(wrong).is_err(), "the run directory must not be replaced with the data");

    let mut wrong = config(dir.path(), "n1");
    wrong.os_user = Some("root".to_owned());
    let error = Instance::new(wrong).expect_err("root").to_string();
    assert!(error.contains("os_user"), "{error}");
    assert!(listing(dir.path()).is_empty());
}

#[tokio::test]
async fn a_directory_is_moved_aside_and_kept() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let mut node = Node::primary(dir.path(), "n1", &credentials).await;
    let name = MovedAs::Diverged(TimelineId(1));
    let error = node.instance.move_aside("test", name).await.expect_err("running");
    assert!(matches!(error, Error::ServerRunning { pid, .. } if pid == node.pid()), "{error}");
    node.stop(StopMode::Fast).await;
    let kept = node.instance.move_aside("diverged in a test", name).await.expect("moved").expect("was there");
    assert!(kept.to_string_lossy().contains("data.diverged-1-"), "{kept:?}");
    assert!(kept.join("PG_VERSION").exists());
    assert_eq!(node.instance.inspect().await, DataDir::Missing);
    assert_eq!(node.instance.move_aside("again", MovedAs::Failed).await.expect("nothing there"), None);
    let list = node.instance.kept_aside().expect("list");
    assert_eq!(list.len(), 1);
    assert_eq!((list[0].path.clone(), list[0].why.as_str()), (kept, "diverged in a test"));
}

#[tokio::test]
async fn only_the_configured_number_is_kept() {
    let dir = test_directory();
    let mut limited = config(dir.path(), "n1");
    limited.keep_aside = Some(1);
    let node = Node::with(limited);
    for round in ["first", "second"] {
        fs::create_dir_all(node.data_dir()).expect("directory");
        fs::write(node.data_dir().join("PG_VERSION"), "15").expect("file");
        node.instance.move_aside(round, MovedAs::Failed).await.expect("moved");
    }
    let kept = node.instance.kept_aside().expect("list");
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].why, "second");
    assert_eq!(beside(node.data_dir()).len(), 1);
}

#[tokio::test]
async fn a_parent_that_is_not_writable_is_explained() {
    if rustix::process::geteuid().is_root() {
        // Root may write anywhere.
        return;
    }
    let dir = test_directory();
    let node = Node::new(dir.path(), "n1");
    fs::create_dir_all(node.data_dir()).expect("directory");
    fs::write(node.data_dir().join("PG_VERSION"), "15").expect("file");
    let parent = node.data_dir().parent().expect("parent");
    fs::set_permissions(parent, fs::Permissions::from_mode(0o555)).expect("closed");
    let error = node.instance.move_aside("test", MovedAs::Failed).await.expect_err("closed");
    fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).expect("open");
    assert!(error.to_string().contains("must be writable"), "{error}");
}

#[tokio::test]
async fn a_wrong_password_is_no_dead_server() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let node = Node::primary(dir.path(), "n1", &credentials).await;
    let mut config = node.instance.config().clone();
    config.use_unix_socket = false;
    let other = Instance::new(config).expect("usable");
    assert!(matches!(other.status().await, Err(StatusError::Authentication { .. })));
    other.set_credentials(&credentials);
    other.status().await.expect("over TCP with the password");
    other.set_credentials(&Credentials::generate());
    other.status().await.expect("the kept session goes on");
}

#[tokio::test]
async fn another_nodes_server_is_not_taken_for_ours() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let node = Node::primary(dir.path(), "n1", &credentials).await;
    let mut same_port = config(dir.path(), "n2");
    same_port.port = node.instance.config().port;
    let other = Node::with(same_port);
    other.instance.set_credentials(&credentials);
    let answer = other.instance.status().await;
    assert!(matches!(&answer, Err(StatusError::OtherServer { found, .. }) if found == node.data_dir()), "{answer:?}");
}

#[tokio::test]
async fn a_frozen_server_times_out_and_a_stopping_one_says_so() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let mut node = Node::primary(dir.path(), "n1", &credentials).await;
    node.instance.status().await.expect("fine");
    node.signal(Signal::STOP);
    // The kept session has its own process, so only a new session sees the frozen postmaster.
    let fresh = Instance::new(node.instance.config().clone()).expect("usable");
    fresh.set_credentials(&credentials);
    let answer = fresh.status().await;
    node.signal(Signal::CONT);
    assert!(matches!(answer, Err(StatusError::Timeout { .. })), "{answer:?}");

    // SIGTERM: no new sessions while an old one is open, which is what the kept one is.
    node.signal(Signal::TERM);
    let stopping = async || match fresh.status().await {
        Err(StatusError::NotAccepting { state: NotAccepting::ShuttingDown, .. }) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually("shutting down", stopping).await.expect("said so");
    node.stop(StopMode::Fast).await;
}
