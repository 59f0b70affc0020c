//! Ends that are asked for, ends that are not, and what the guardian says about them.

use std::time::Duration;

use howdah::guardian::{Escalate, FenceReason, PostgresProcess, Refusal};
use howdah::telemetry::clock::now;
use howdah::types::StopMode;
use rustix::process::Signal;

use crate::world::{NOBODY, World, alive, exited, permit, postmaster, refusal, send, status_until, stopped, until};

const LONG_PERMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_fast_stop_ends_in_order_and_says_so() {
    let world = World::new().await;
    let (guardian, _) = world.primary(permit(1, LONG_PERMIT)).await;
    world.sleeping_backend().await;
    let begun = now();
    let exit = guardian.stop(StopMode::Fast, Duration::from_secs(20), Escalate::Wait).await.unwrap().unwrap();
    println!("fast stop took {} ms", now().since(begun).as_millis());
    assert_eq!((exit.code, exit.expected, exit.swept), (Some(0), true, 0));
    assert_eq!(world.tenants(), NOBODY);
    assert!(!world.path("postmaster.pid").exists());
    assert_eq!(guardian.stop(StopMode::Fast, Duration::ZERO, Escalate::Wait).await.unwrap(), None, "nothing to stop");
    guardian.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_immediate_stop_is_immediate() {
    let world = World::new().await;
    let (guardian, _) = world.primary(permit(1, LONG_PERMIT)).await;
    world.sleeping_backend().await;
    let exit = guardian.stop(StopMode::Immediate, Duration::from_secs(20), Escalate::Wait).await.unwrap().unwrap();
    assert!(exit.expected);
    assert_eq!(world.tenants(), NOBODY);
    assert!(guardian.status().last_fence.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_takes_too_long_waits_or_kills_as_asked() {
    let world = World::new().await;
    let (guardian, mut status) = world.primary(permit(1, LONG_PERMIT)).await;
    let running = postmaster(&guardian.status());
    send(running, Signal::STOP);
    until("it is stopped", async || stopped(running)).await;
    let stop = |then| guardian.stop(StopMode::Fast, Duration::from_millis(200), then);
    assert!(matches!(refusal(stop(Escalate::Wait).await), Refusal::StopTimedOut { waited_ms } if waited_ms >= 200));
    assert!(alive(running));
    assert!(matches!(guardian.status().postgres, PostgresProcess::Stopping { mode: StopMode::Fast, .. }));
    assert!(matches!(refusal(guardian.shutdown().await), Refusal::StillRunning { .. }));

    let exit = stop(Escalate::Kill).await.unwrap().unwrap();
    assert_eq!((exit.signal, exit.expected), (Some(9), true));
    assert_eq!(world.tenants(), NOBODY);
    let seen = status_until(&mut status, "it is told", exited).await;
    assert_eq!(seen.last_fence.unwrap().why, FenceReason::StopTimedOut { mode: StopMode::Fast });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_outlast_the_permit() {
    let world = World::new().await;
    let (guardian, _) = world.primary(permit(1, LONG_PERMIT)).await;
    let running = postmaster(&guardian.status());
    send(running, Signal::STOP);
    let end = permit(2, Duration::from_millis(400));
    guardian.permit(end).await.unwrap();
    guardian.stop(StopMode::Fast, LONG_PERMIT, Escalate::Wait).await.unwrap();
    assert!(now() >= end.valid_until);
    assert_eq!(world.tenants(), NOBODY);
    assert!(matches!(guardian.status().last_fence.unwrap().why, FenceReason::DeadlinePassed { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_postmaster_is_told_only_when_its_backends_are_gone() {
    let world = World::new().await;
    let (guardian, mut status) = world.primary(permit(1, LONG_PERMIT)).await;
    let backend = world.sleeping_backend().await;
    send(backend, Signal::STOP);
    until("it is stopped", async || stopped(backend)).await;
    let killed = now();
    send(postmaster(&guardian.status()), Signal::KILL);
    let seen = status_until(&mut status, "it exits", exited).await;
    println!("postmaster killed to nothing left and told {} ms", now().since(killed).as_millis());
    assert_eq!(world.tenants(), NOBODY);
    let PostgresProcess::Exited(exit) = seen.postgres else { unreachable!() };
    assert_eq!((exit.signal, exit.expected), (Some(9), false));
    assert!(exit.swept >= 1, "the stopped backend could not end by itself: {exit:?}");
    assert!(seen.last_fence.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_on_request_is_reported() {
    let world = World::new().await;
    let (guardian, mut status) = world.primary(permit(1, LONG_PERMIT)).await;
    world.sleeping_backend().await;
    let report = guardian.fence("lost the race").await.unwrap();
    assert_eq!(world.tenants(), NOBODY);
    assert_eq!(report.why, FenceReason::Requested { why: "lost the race".to_owned() });
    println!("fence on request took {} ms, {} killed", report.took_ms, report.killed);
    let seen = status_until(&mut status, "it is told", exited).await;
    assert_eq!(seen.last_fence, Some(report));
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_stops_postgres_in_order_and_ends_the_guardian() {
    let world = World::new().await;
    let (guardian, mut status) = world.primary(permit(1, LONG_PERMIT)).await;
    let keepers = world.keepers();
    send(i32::try_from(guardian.status().pid).unwrap(), Signal::TERM);
    status_until(&mut status, "the guardian is gone", |status| status.link == howdah::guardian::Link::Gone).await;
    until("its processes are gone", async || !keepers.iter().any(|pid| alive(*pid))).await;
    assert_eq!(world.tenants(), NOBODY);
    assert!(!world.path("postmaster.pid").exists(), "a fast stop, not a kill:\n{}", world.log());
    assert!(!world.config.socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_leaves_bystanders_alone() {
    let world = World::new().await;
    let (guardian, _) = world.primary(permit(1, LONG_PERMIT)).await;
    // A person's shell in the data directory, and another program's child with nothing to do with it.
    let mut shell = std::process::Command::new("sleep").arg("1000").current_dir(&world.data_dir).spawn().unwrap();
    let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    guardian.fence("a test").await.unwrap();
    assert_eq!(world.tenants(), [i32::try_from(shell.id()).unwrap()]);
    for bystander in [&mut shell, &mut other] {
        assert!(bystander.try_wait().unwrap().is_none());
        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }
}
