//! From nothing to a primary with roles.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use howdah::postgres::{ControlState, Credentials, DataDir, Error, Needs, SqlRole, StatusError};
use howdah::types::{PgVersion, StopMode, TimelineId};
use tokio_util::sync::CancellationToken;

use super::fixture::{Node, beside, settings, test_directory};

#[tokio::test]
async fn a_new_cluster_comes_up_with_roles_and_a_status() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let mut node = Node::new(dir.path(), "n1");
    assert_eq!(node.instance.inspect().await, DataDir::Missing);
    assert!(matches!(node.instance.status().await, Err(StatusError::Refused { .. })));

    let system_id = node.instance.initdb(&credentials, &CancellationToken::new()).await.expect("initdb");
    let state = node.instance.inspect().await;
    assert!(matches!(&state, DataDir::Incomplete { why, .. } if why.contains("bootstrap")), "{state:?}");
    assert_eq!(beside(node.data_dir()), ["data", "data.howdah-unfinished"], "no staging directory stays");

    let outcome = node.instance.configure(&settings(&credentials)).await.expect("configure");
    assert_eq!((outcome.needs, outcome.refused.len(), outcome.foreign_hba), (Needs::Nothing, 0, false));
    node.instance.prepare_primary().expect("prepare");
    node.start();
    node.until_accepting().await;
    node.instance.bootstrap_roles(&credentials).await.expect("roles");
    node.instance.bootstrap_roles(&credentials).await.expect("roles again");
    assert_eq!(node.instance.postmaster(), Some(node.pid()), "found also while the creation is not finished");
    node.instance.seal().expect("seal");

    let status = node.instance.status().await.expect("status");
    assert_eq!(status.system_id, system_id);
    assert_eq!((status.timeline, status.checkpoint_timeline), (TimelineId(1), TimelineId(1)));
    assert_eq!(status.version.major(), node.instance.binaries().version().major());
    assert!(status.version >= PgVersion(130_000));
    assert!(matches!(&status.role, SqlRole::Primary(p) if p.flush.0 != 0 && p.flush <= p.insert), "{status:?}");
    assert!(status.postmaster_start_time.ends_with("+00:00"), "{}", status.postmaster_start_time);
    assert!(status.pending_restart.is_empty(), "{:?}", status.pending_restart);

    let present = node.present().await;
    assert_eq!((present.system_id, present.control.state), (system_id, ControlState::InProduction));
    assert_eq!(present.postmaster_pid, Some(node.pid()));
    assert!(present.control.checksums && present.control.wal_log_hints && present.is_promotable());

    let roles = node.psql("SELECT rolname, rolsuper, rolreplication FROM pg_roles WHERE rolcanlogin ORDER BY 1").await;
    assert_eq!(roles, "postgres|t|t\nreplicator|f|t\nrewind_user|f|f");
    assert!(node.instance.restore_roles(&credentials).await.expect("nothing to do").is_empty());
    node.psql("DROP OWNED BY rewind_user").await;
    node.psql("DROP ROLE replicator, rewind_user").await;
    let restored = node.instance.restore_roles(&credentials).await.expect("roles restored");
    assert_eq!(restored, ["replicator", "rewind_user"]);
    let restored =
        node.psql("SELECT rolname, rolsuper, rolreplication FROM pg_roles WHERE rolcanlogin ORDER BY 1").await;
    assert_eq!(restored, roles);
    assert_eq!(node.psql("SHOW server_encoding").await, "UTF8");
    secrets_stay_secret(&node, &credentials);

    node.stop(StopMode::Fast).await;
    assert_eq!(node.control_state().await, ControlState::ShutDown);
    assert!(matches!(node.instance.status().await, Err(StatusError::Refused { .. })));
    assert_eq!(node.present().await.postmaster_pid, None);
}

/// No password in the configuration, the log, or the command line; files belong to PostgreSQL's user.
fn secrets_stay_secret(node: &Node, credentials: &Credentials) {
    let command_line = fs::read_to_string(format!("/proc/{}/cmdline", node.pid())).unwrap_or_default();
    let places = [node.read("postgresql.conf"), node.read("pg_hba.conf"), node.log(), command_line];
    for login in [&credentials.superuser, &credentials.replication, &credentials.rewind] {
        for place in &places {
            assert!(!place.contains(login.password.expose().as_str()), "a password is visible in {place}");
        }
    }
    let pgpass = fs::metadata(node.instance.config().run_dir.join("pgpass")).expect("password file");
    assert_eq!(pgpass.permissions().mode() & 0o777, 0o600);
    assert_eq!(pgpass.uid(), node.instance.user().uid);
    assert_eq!(fs::metadata(node.data_dir()).expect("data directory").uid(), node.instance.user().uid);
}

#[tokio::test]
async fn a_cancelled_initdb_leaves_nothing() {
    let dir = test_directory();
    let node = Node::new(dir.path(), "n1");
    let cancel = CancellationToken::new();
    cancel.cancel();
    let result = node.instance.initdb(&Credentials::generate(), &cancel).await;
    assert!(matches!(result, Err(Error::Cancelled { operation: "initdb" })), "{result:?}");
    assert_eq!(node.instance.inspect().await, DataDir::Missing);
    assert!(beside(node.data_dir()).is_empty(), "{:?}", beside(node.data_dir()));
}

#[tokio::test]
async fn initdb_takes_the_operators_options() {
    let dir = test_directory();
    let mut config = super::fixture::config(dir.path(), "n1");
    config.initdb = vec![("wal-segsize".to_owned(), Some("4".to_owned())), ("locale".to_owned(), Some("C".to_owned()))];
    let node = Node::with(config);
    node.instance.initdb(&Credentials::generate(), &CancellationToken::new()).await.expect("initdb");
    let state = node.instance.inspect().await;
    assert_eq!(state.control().map(|c| c.wal_segment_size), Some(4 << 20), "{state:?}");
}

/// The agent runs these as tasks of their own; that they can be is checked by compiling.
#[test]
fn every_operation_can_be_a_task() {
    fn is_send(_: impl Send) {}
    let dir = test_directory();
    let credentials = Credentials::generate();
    let node = Node::new(dir.path(), "n1");
    let instance = &node.instance;
    let (progress, _) = tokio::sync::watch::channel(howdah::postgres::Progress::default());
    let (upstream, cancel) = (node.as_upstream("n1"), CancellationToken::new());
    let none = std::collections::BTreeSet::new();
    let nowhere = std::collections::BTreeMap::new();
    let limit = std::time::Duration::from_secs(1);
    is_send(instance.inspect());
    is_send(instance.status());
    is_send(instance.initdb(&credentials, &cancel));
    is_send(instance.configure(&settings(&credentials)));
    is_send(instance.basebackup(&upstream, &credentials, &progress, &cancel));
    is_send(instance.rewind(&upstream, &credentials, &progress, &cancel));
    is_send(instance.move_aside("why", howdah::postgres::MovedAs::Failed));
    is_send(instance.sync_member_slots(&none, &none));
    is_send(instance.advance_slots(&nowhere));
    is_send(instance.bootstrap_roles(&credentials));
    is_send(instance.checkpoint(limit));
    is_send(instance.shutdown_checkpoint());
    is_send(instance.remote_state(&upstream));
    is_send(instance.terminate_senders("n2"));
}

/// The whole bootstrap again as an ordinary user; only root can arrange that.
#[test]
fn an_ordinary_user_can_do_the_same() {
    if !rustix::process::geteuid().is_root() {
        // Then the test above was that.
        return;
    }
    let copy = test_directory();
    let program = copy.path().join("test-binary");
    fs::copy(std::env::current_exe().expect("path"), &program).expect("copy");
    let output = std::process::Command::new("setpriv")
        .args(["--reuid=postgres", "--regid=postgres", "--init-groups"])
        .arg(&program)
        .args(["--exact", "postgres::bootstrap::a_new_cluster_comes_up_with_roles_and_a_status"])
        .env("HOME", "/tmp")
        .current_dir("/")
        .output()
        .expect("setpriv");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}
