//! What is started, what is refused, and what is cleared away before.

use std::fs;
use std::process::Command;
use std::time::Duration;

use howdah::guardian::{AdoptRequest, FenceReason, Link, PostgresProcess, Refusal, StartMode};
use howdah::telemetry::clock::now;
use howdah::types::{LeaderPermit, Mono, Term};
use rustix::process::Signal;

use crate::world::{
    NOBODY, World, alive, as_user, bin, exited, permit, postmaster, refusal, send, sleep_until, status_until, stopped,
    until, user,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_needs_its_signal_file_and_a_primary_a_permit() {
    let world = World::new().await;
    let (guardian, _) = world.attach().await;
    let start = |mode| guardian.start(world.request(mode));

    assert!(matches!(refusal(start(StartMode::Standby).await), Refusal::NoStandbySignal { .. }));
    let expired = LeaderPermit { term: Term(1), valid_until: Mono(now().0 - 1) };
    assert!(matches!(refusal(start(StartMode::Primary { permit: expired }).await), Refusal::PermitExpired { .. }));
    world.put("standby.signal", "");
    let valid = permit(1, Duration::from_secs(60));
    assert!(matches!(refusal(start(StartMode::Primary { permit: valid }).await), Refusal::SignalFilePresent { .. }));
    assert_eq!(guardian.status().postgres, PostgresProcess::Absent, "nothing of this started anything");
    assert!(guardian.status().permit.is_none(), "nor left a permit");

    let pid = start(StartMode::Standby).await.unwrap();
    let client = world.connect().await;
    let recovering: bool = client.query_one("select pg_is_in_recovery()", &[]).await.unwrap().get(0);
    assert!(recovering);
    assert!(
        matches!(refusal(start(StartMode::Standby).await), Refusal::AlreadyRunning { pid: running } if running == pid)
    );
    if let Some((uid, _)) = user() {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.lines().any(|line| line.starts_with("Uid:") && line.contains(&uid.to_string())), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_not_there_is_refused_and_not_made() {
    let world = World::new().await;
    fs::rename(&world.data_dir, world.data_dir.with_extension("unmounted")).unwrap();
    let (guardian, _) = world.attach().await;
    let refused = refusal(guardian.start(world.request(StartMode::Standby)).await);
    assert!(matches!(refused, Refusal::DataDirectory { .. }), "{refused}");
    assert!(!world.data_dir.exists());
    fs::rename(world.data_dir.with_extension("unmounted"), &world.data_dir).unwrap();
    world.put("standby.signal", "");
    guardian.start(world.request(StartMode::Standby)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_is_told() {
    let world = World::new().await;
    let (guardian, mut status) = world.attach().await;
    world.put("standby.signal", "");
    let mut request = world.request(StartMode::Standby);
    request.program = "/nowhere/postgres".into();
    assert!(
        matches!(refusal(guardian.start(request).await), Refusal::Failed { what, .. } if what.contains("/nowhere"))
    );

    let mut request = world.request(StartMode::Standby);
    request.args.extend(["-c".to_owned(), "no_such_setting=1".to_owned()]);
    guardian.start(request).await.unwrap();
    let seen = status_until(&mut status, "it exits", exited).await;
    let PostgresProcess::Exited(exit) = seen.postgres else { unreachable!() };
    assert_eq!((exit.code, exit.expected), (Some(1), false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reused_pid_in_postmaster_pid_does_not_block_the_start() {
    let world = World::new().await;
    world.put("standby.signal", "");
    let mut other = as_user(Command::new("sleep").arg("1000")).spawn().unwrap();
    // PostgreSQL alone would refuse for ever: the number is alive, and it is the same user's.
    let stale = format!("{}\n{}\n1\n", other.id(), world.data_dir.display());
    world.put("postmaster.pid", &stale);
    // So it would for the locks of its sockets.
    let lock = world.data_dir.parent().unwrap().join(format!(".s.PGSQL.{}.lock", world.port));
    std::fs::write(&lock, &stale).unwrap();
    let (guardian, _) = world.attach().await;
    guardian.start(world.request(StartMode::Standby)).await.unwrap();
    world.connect().await;
    assert!(other.try_wait().unwrap().is_none(), "the innocent process is left alone");
    other.kill().unwrap();
    other.wait().unwrap();
}

/// A postmaster that no guardian started, accepting connections.
async fn start_by_hand(world: &World) -> std::process::Child {
    let child = as_user(&mut Command::new(bin("postgres")))
        .arg("-D")
        .arg(&world.data_dir)
        .args(&world.request(StartMode::Standby).args)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    world.connect().await;
    child
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_postmaster_is_left_alone_until_a_fence_is_asked_for() {
    let world = World::new().await;
    world.put("standby.signal", "");
    let mut other = start_by_hand(&world).await;
    let (guardian, _) = world.attach().await;
    assert!(guardian.status().leftovers > 0);
    let request = world.request(StartMode::Standby);
    let refused = refusal(guardian.start(request.clone()).await);
    assert!(matches!(refused, Refusal::InUse { pid } if pid == other.id()), "{refused}");
    assert!(other.try_wait().unwrap().is_none());

    let report = guardian.fence("taken over").await.unwrap();
    assert!(report.killed > 1);
    other.wait().unwrap();
    assert_eq!(world.tenants(), NOBODY);
    guardian.start(request).await.unwrap();
    world.connect().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_primary_is_adopted_undisturbed_and_then_lives_by_its_permit() {
    let world = World::new().await;
    let (guardian, mut status) = world.attach().await;
    let adopt = |mode| {
        let request = world.request(mode);
        guardian.adopt(AdoptRequest { program: request.program, uid: request.uid, gid: request.gid, mode })
    };
    let first = StartMode::Primary { permit: permit(1, Duration::from_secs(60)) };
    assert!(matches!(refusal(adopt(first).await), Refusal::NothingToAdopt { .. }));

    let mut other = start_by_hand(&world).await;
    let session = world.connect().await;
    assert!(matches!(refusal(adopt(StartMode::Standby).await), Refusal::NoStandbySignal { .. }));
    assert_eq!(adopt(first).await.unwrap(), other.id());
    let seen = guardian.status();
    assert!(matches!(seen.postgres, PostgresProcess::Running { writable: true, .. }) && seen.leftovers == 0);
    session.batch_execute("create table t (i int)").await.unwrap();

    // An end that is nobody's child's is noticed too.
    guardian.permit(permit(2, Duration::from_millis(300))).await.unwrap();
    let seen = status_until(&mut status, "it is fenced", exited).await;
    assert!(matches!(seen.last_fence.unwrap().why, FenceReason::DeadlinePassed { .. }));
    assert_eq!(world.tenants(), NOBODY);
    other.wait().unwrap();
    let mode = StartMode::Primary { permit: permit(3, Duration::from_secs(60)) };
    guardian.start(world.request(mode)).await.unwrap();
    world.connect().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adopted_primary_dies_with_its_guardian() {
    let world = World::new().await;
    let mut other = start_by_hand(&world).await;
    let (guardian, _) = world.attach().await;
    let request = world.request(StartMode::Primary { permit: permit(1, Duration::from_secs(60)) });
    let (program, uid, gid, mode) = (request.program, request.uid, request.gid, request.mode);
    guardian.adopt(AdoptRequest { program, uid, gid, mode }).await.unwrap();
    world.sleeping_backend().await;
    // The tether looks for new backends every 100 ms.
    tokio::time::sleep(Duration::from_millis(250)).await;
    let end = permit(2, Duration::from_millis(500));
    guardian.permit(end).await.unwrap();
    // Only the kernel can act now.
    for pid in world.keepers().into_iter().chain(world.tenants()) {
        send(pid, Signal::STOP);
    }
    other.wait().unwrap();
    assert!(now() > end.valid_until);
    until("nothing is left", async || world.tenants().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_primary_outlives_its_permit_and_comes_back_under_one() {
    let world = World::new().await;
    let end = permit(7, Duration::from_millis(1500));
    let (guardian, mut status) = world.primary(end).await;
    let running = postmaster(&guardian.status());
    let session = world.connect().await;
    guardian.release().await.unwrap();
    let seen = guardian.status();
    assert!(seen.postgres == PostgresProcess::Absent && seen.leftovers > 0 && seen.permit.is_none(), "{seen:?}");
    assert!(matches!(refusal(guardian.release().await), Refusal::NotRunning));
    // Its parent stays: the kernel would end it otherwise.
    guardian.shutdown().await.unwrap();
    sleep_until(end.valid_until + Duration::from_millis(700)).await;
    session.batch_execute("create table t (i int)").await.unwrap();
    assert!(alive(running));
    // Only its own end ends what is left of the guardian.
    send(running, Signal::INT);
    status_until(&mut status, "the guardian has ended, too", |status| status.link == Link::Gone).await;
    assert_eq!(world.tenants(), NOBODY);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_primary_is_adopted_by_the_guardian_that_started_it() {
    let world = World::new().await;
    let (guardian, mut status) = world.primary(permit(7, Duration::from_secs(60))).await;
    let running = postmaster(&guardian.status());
    guardian.release().await.unwrap();
    let mode = StartMode::Primary { permit: permit(8, Duration::from_millis(500)) };
    let request = world.request(mode);
    let (program, uid, gid) = (request.program, request.uid, request.gid);
    let adopted = guardian.adopt(AdoptRequest { program, uid, gid, mode }).await.unwrap();
    assert_eq!(i32::try_from(adopted).unwrap(), running);
    let seen = status_until(&mut status, "it is fenced", exited).await;
    assert!(matches!(seen.last_fence.unwrap().why, FenceReason::DeadlinePassed { .. }));
    assert_eq!(world.tenants(), NOBODY);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_guardian_takes_postgres_and_its_backends_with_it() {
    let world = World::new().await;
    let (guardian, mut status) = world.primary(permit(7, Duration::from_secs(60))).await;
    world.sleeping_backend().await;
    let killed = now();
    send(i32::try_from(guardian.status().pid).unwrap(), Signal::KILL);
    until("nothing is left", async || world.tenants().is_empty()).await;
    println!("guardian killed to nothing left {} ms", now().since(killed).as_millis());
    status_until(&mut status, "the guardian is gone", |status| status.link == Link::Gone).await;
    assert!(matches!(guardian.reload().await, Err(howdah::guardian::Error::Gone)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_guardian_left_is_killed_by_the_next_one() {
    let world = World::new().await;
    let (guardian, mut status) = world.primary(permit(7, Duration::from_secs(60))).await;
    let (keeper, running) = (guardian.status().pid, postmaster(&guardian.status()));
    let orphan = world.sleeping_backend().await;
    // No tether, and a backend that cannot notice anything: it is left.
    send(i32::try_from(keeper).unwrap(), Signal::STOP);
    let tether = world.keepers()[1];
    for (pid, signal) in [(tether, Signal::KILL), (orphan, Signal::STOP)] {
        send(pid, signal);
    }
    until("the tether is dead and the backend stopped", async || !alive(tether) && stopped(orphan)).await;
    send(i32::try_from(keeper).unwrap(), Signal::KILL);
    status_until(&mut status, "the guardian is gone", |status| status.link == Link::Gone).await;
    until("the postmaster is dead", async || !alive(running)).await;
    assert!(alive(orphan));

    let (guardian, _) = world.attach().await;
    assert_ne!(guardian.status().pid, keeper);
    until("nothing is left", async || world.tenants().is_empty()).await;
    let mode = StartMode::Primary { permit: permit(8, Duration::from_secs(60)) };
    until("it is started again", async || guardian.start(world.request(mode)).await.is_ok()).await;
    world.connect().await;
    assert_eq!(guardian.status().leftovers, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_tether_of_a_dead_guardian_is_ended_by_the_next_one() {
    let world = World::new().await;
    let (_guardian, mut status) = world.primary(permit(7, Duration::from_secs(60))).await;
    let [keeper, tether] = world.keepers()[..] else { panic!("a guardian and a tether") };
    send(tether, Signal::STOP);
    send(keeper, Signal::KILL);
    status_until(&mut status, "the guardian is gone", |status| status.link == Link::Gone).await;
    let (_guardian, _) = world.attach().await;
    until("the old tether is ended", async || !alive(tether)).await;
}
