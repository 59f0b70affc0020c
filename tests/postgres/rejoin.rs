//! An old primary comes back: rewound, or refused with the reason.

use std::fs;
use std::time::Duration;

use howdah::postgres::{ControlState, Credentials, DataDir, Error, Progress, SqlRole, Stage};
use howdah::types::{Lsn, StopMode, TimelineId};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::fixture::{Node, is_streaming, test_directory};

/// Two nodes whose histories have parted: n1 wrote more after n2 was promoted.
async fn diverged(dir: &std::path::Path, credentials: &Credentials, end: StopMode) -> (Node, Node, Lsn) {
    let mut old = Node::primary(dir, "n1", credentials).await;
    old.psql("CREATE TABLE t AS SELECT generate_series(1, 10) AS i").await;
    let new = Node::standby(dir, "n2", &old, credentials).await;
    let shared = old.instance.status().await.expect("status").position();
    new.until("caught up", |s| shared <= s.position()).await;
    new.promote().await;
    old.psql("INSERT INTO t SELECT generate_series(11, 500)").await;
    old.psql("CREATE TABLE only_here (i int)").await;
    new.psql("INSERT INTO t VALUES (-1)").await;
    let written = old.instance.status().await.expect("status").position();
    old.stop(end).await;
    (old, new, written)
}

#[tokio::test]
async fn a_diverged_primary_is_rewound_and_streams() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let (mut old, new, written) = diverged(dir.path(), &credentials, StopMode::Fast).await;
    rejoin(&mut old, &new, written, &credentials).await;
}

#[tokio::test]
async fn a_crashed_primary_is_rewound_and_streams() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let (mut old, new, written) = diverged(dir.path(), &credentials, StopMode::Immediate).await;
    assert_eq!(old.control_state().await, ControlState::InProduction);
    // As the agent leaves it: every boot is as a standby.
    old.instance.prepare_standby().expect("prepare");
    rejoin(&mut old, &new, written, &credentials).await;
}

async fn rejoin(old: &mut Node, new: &Node, written: Lsn, credentials: &Credentials) {
    new.instance.checkpoint(Duration::from_secs(30)).await.expect("checkpoint");
    let upstream = new.as_upstream("n1");
    let remote = old.instance.remote_state(&upstream).await.expect("remote");
    assert_eq!((remote.timeline, remote.checkpoint_timeline), (TimelineId(2), TimelineId(2)));
    let history = remote.history.expect("history");
    let here = old.present().await;
    let ours = here.history.expect("timeline 1 has an empty one");
    let (timeline, parted) = history.shared_until(&ours, here.control.checkpoint).expect("something is shared");
    assert_eq!(timeline, TimelineId(1));
    assert!(parted <= here.control.checkpoint, "it went beyond the switch");

    fs::write(old.data_dir().join("server.key"), "n1's own").expect("own file");
    let (progress, seen) = watch::channel(Progress::default());
    let given_up = old.instance.rewind(&upstream, credentials, &progress, &CancellationToken::new()).await;
    let given_up = given_up.expect("rewind").expect("the end of its WAL can be read");
    assert_eq!(Some(given_up.shared), history.switchpoint_of(TimelineId(1)));
    assert!(given_up.shared < given_up.ours && written <= given_up.ours, "{given_up:?}, {written} was written");
    assert_eq!(seen.borrow().stage, Stage::Finishing);
    let present = old.present().await;
    assert!(present.standby_signal);
    assert_eq!(old.read("server.key"), "n1's own");
    let slots = std::collections::BTreeSet::from(["n1".to_owned()]);
    new.instance.sync_member_slots(&slots, &std::collections::BTreeSet::new()).await.expect("slot");
    old.follow(&upstream, credentials).await;
    old.start();
    let status = old.until("streams from the new primary", |s| is_streaming(s) && s.timeline == TimelineId(2)).await;
    assert!(matches!(status.role, SqlRole::Replica(_)));
    assert_eq!(old.psql("SELECT count(*), min(i) FROM t").await, "11|-1");
    assert_eq!(old.psql("SELECT to_regclass('only_here') IS NULL").await, "t");
    assert_eq!(old.instance.config().port.to_string(), old.psql("SHOW port").await);
}

/// n2 is lost right after its promotion, before anybody has heard of it. The next promotion gets another number, and so
/// n2's history is seen to be another one; who comes late finds the way over the number that is passed over.
#[tokio::test]
async fn a_promotion_uses_the_timeline_that_it_was_given() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let mut first = Node::primary(dir.path(), "n1", &credentials).await;
    first.psql("CREATE TABLE t AS SELECT generate_series(1, 10) AS i").await;
    let mut lost = Node::standby(dir.path(), "n2", &first, &credentials).await;
    let next = Node::standby(dir.path(), "n3", &first, &credentials).await;
    first.stop(StopMode::Fast).await;
    lost.promote().await;
    lost.psql("INSERT INTO t VALUES (-2)").await;
    lost.stop(StopMode::Immediate).await;

    let pass_over = |node: &Node| node.instance.pass_over_timelines(TimelineId(1), TimelineId(3)).unwrap();
    assert_eq!(pass_over(&next), [TimelineId(2)]);
    let owner = |name: &str| std::os::unix::fs::MetadataExt::uid(&fs::metadata(next.data_dir().join(name)).unwrap());
    assert_eq!(owner("pg_wal/00000002.history"), owner("PG_VERSION"));
    assert_eq!(pass_over(&next), [TimelineId(2)], "as often as it takes");
    next.promote().await;
    next.psql("INSERT INTO t VALUES (-3)").await;
    next.until("on the timeline that it was given", |status| status.timeline == TimelineId(3)).await;
    next.instance.checkpoint(Duration::from_secs(30)).await.expect("checkpoint");

    // Who crashed as a primary of the number that was passed over.
    let upstream = next.as_upstream("n2");
    let here = lost.present().await;
    assert_eq!(here.control.newest_timeline(), TimelineId(2));
    lost.instance.prepare_standby().expect("prepare");
    let (progress, _) = watch::channel(Progress::default());
    lost.instance.rewind(&upstream, &credentials, &progress, &CancellationToken::new()).await.expect("rewind");
    // Who stopped on the timeline before it.
    for (node, name) in [(&mut lost, "n2"), (&mut first, "n1")] {
        let slots = std::collections::BTreeSet::from([name.to_owned()]);
        next.instance.sync_member_slots(&slots, &std::collections::BTreeSet::new()).await.expect("slot");
        node.follow(&next.as_upstream(name), &credentials).await;
        node.start();
        node.until("streams over the gap", |s| is_streaming(s) && s.timeline == TimelineId(3)).await;
        assert_eq!(node.psql("SELECT count(*), min(i) FROM t").await, "11|-3");
    }
}

#[tokio::test]
async fn a_rewind_waits_for_the_checkpoint_after_a_promotion() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let mut old = Node::primary(dir.path(), "n1", &credentials).await;
    let new = Node::standby(dir.path(), "n2", &old, &credentials).await;
    let pid = new.psql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'").await;
    let checkpointer = pid.parse().ok().and_then(Pid::from_raw).expect("pid");
    kill_process(checkpointer, Signal::STOP).expect("no checkpoint from here on");
    new.promote().await;
    old.stop(StopMode::Immediate).await;
    let (progress, _) = watch::channel(Progress::default());
    let cancel = CancellationToken::new();
    let result = old.instance.rewind(&new.as_upstream("n1"), &credentials, &progress, &cancel).await;
    kill_process(checkpointer, Signal::CONT).expect("goes on");
    let error = result.expect_err("too early");
    assert!(matches!(error, Error::UpstreamNotReady { .. }) && error.is_transient(), "{error}");
    assert!(matches!(old.instance.inspect().await, DataDir::Present(_)), "nothing was changed");
    new.instance.checkpoint(Duration::from_secs(30)).await.expect("checkpoint");
    old.instance.rewind(&new.as_upstream("n1"), &credentials, &progress, &cancel).await.expect("now it works");
}

#[tokio::test]
async fn a_rewind_refuses_strangers_and_running_servers() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let (old, new, _) = diverged(dir.path(), &credentials, StopMode::Fast).await;
    let (progress, _) = watch::channel(Progress::default());
    let cancel = CancellationToken::new();
    let stranger = Node::primary(dir.path(), "n3", &credentials).await;
    let result = old.instance.rewind(&stranger.as_upstream("n1"), &credentials, &progress, &cancel).await;
    assert!(matches!(result, Err(Error::SystemIdDiffers { .. })), "{result:?}");
    let result = new.instance.rewind(&stranger.as_upstream("n2"), &credentials, &progress, &cancel).await;
    assert!(matches!(result, Err(Error::ServerRunning { .. })), "{result:?}");
    assert!(matches!(old.instance.inspect().await, DataDir::Present(_)), "nothing was changed");
}

#[tokio::test]
async fn a_broken_rewind_leaves_an_incomplete_directory() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let (old, new, _) = diverged(dir.path(), &credentials, StopMode::Fast).await;
    new.instance.checkpoint(Duration::from_secs(30)).await.expect("checkpoint");
    // Without the WAL that both share pg_rewind cannot find where they parted.
    for entry in fs::read_dir(old.data_dir().join("pg_wal")).expect("list").flatten() {
        if entry.file_name().to_string_lossy().starts_with("00000001") {
            fs::remove_file(entry.path()).expect("removed");
        }
    }
    let (progress, _) = watch::channel(Progress::default());
    let result = old.instance.rewind(&new.as_upstream("n1"), &credentials, &progress, &CancellationToken::new()).await;
    assert!(matches!(&result, Err(Error::RunTool { tool, .. }) if tool == "pg_rewind"), "{result:?}");
    let state = old.instance.inspect().await;
    assert!(matches!(&state, DataDir::Incomplete { why, .. } if why.contains("rewind")), "{state:?}");
}

#[tokio::test]
async fn wal_that_only_the_old_primary_has_is_archived_first() {
    let dir = test_directory();
    let credentials = Credentials::generate();
    let (old, new, _) = diverged(dir.path(), &credentials, StopMode::Fast).await;
    new.instance.checkpoint(Duration::from_secs(30)).await.expect("checkpoint");
    let archive = dir.path().join("n1").join("archive");
    let archive_mode = |command: &str| {
        let mut wanted = super::fixture::settings(&credentials);
        wanted.parameters.insert("archive_mode".to_owned(), "on".to_owned());
        wanted.parameters.insert("archive_command".to_owned(), command.to_owned());
        wanted
    };
    let segment = fs::read_dir(old.data_dir().join("pg_wal"))
        .expect("list")
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .find(|name| name.len() == 24)
        .expect("a segment");
    let ready = old.data_dir().join("pg_wal/archive_status").join(format!("{segment}.ready"));
    fs::write(&ready, "").expect("ready");
    old.instance.configure(&archive_mode("false")).await.expect("configure");
    let (progress, _) = watch::channel(Progress::default());
    let cancel = CancellationToken::new();
    let result = old.instance.rewind(&new.as_upstream("n1"), &credentials, &progress, &cancel).await;
    assert!(matches!(&result, Err(Error::ArchiveReadyWal { segments: 1, .. })), "{result:?}");
    assert!(matches!(old.instance.inspect().await, DataDir::Present(_)), "nothing was changed");
    let command = format!("mkdir -p {0} && cp %p {0}/%f", archive.display());
    old.instance.configure(&archive_mode(&command)).await.expect("configure");
    old.instance.rewind(&new.as_upstream("n1"), &credentials, &progress, &cancel).await.expect("rewind");
    assert!(archive.join(&segment).exists());
}
