//! The permit: what keeps PostgreSQL alive, and that nothing of it outlives the end.

use std::time::Duration;

use howdah::guardian::{FenceReason, PostgresProcess, Refusal, StartMode};
use howdah::telemetry::clock::now;
use howdah::types::{LeaderPermit, Mono, Term};
use rustix::process::Signal;

use crate::load::Load;
use crate::world::{
    NOBODY, World, alive, exited, permit, postmaster, refusal, send, sleep_until, status_until, stopped, until,
};

fn by_deadline(why: &FenceReason) -> bool {
    matches!(why, FenceReason::DeadlinePassed { .. })
}

#[tokio::test(flavor = "multi_thread")]
async fn past_the_deadline_nothing_is_left_not_even_what_is_stopped() {
    let world = World::new().await;
    let (guardian, mut status) = world.primary(permit(3, Duration::from_secs(60))).await;
    let sleeping = world.sleeping_backend().await;
    let frozen = world.sleeping_backend().await;
    let checkpointer = world.tenants().into_iter().find(|pid| *pid != sleeping && *pid != frozen).unwrap();
    for pid in [frozen, checkpointer] {
        send(pid, Signal::STOP);
        until("it is stopped", async || stopped(pid)).await;
    }
    // A term of its own, so that the end can be near.
    let end = permit(4, Duration::from_millis(500));
    guardian.permit(end).await.unwrap();
    sleep_until(end.valid_until).await;
    until("everything is gone", async || world.tenants().is_empty()).await;
    let gone = now().since(end.valid_until);

    let seen = status_until(&mut status, "it is fenced", exited).await;
    let report = seen.last_fence.unwrap();
    assert!(by_deadline(&report.why), "{:?}", report.why);
    assert!(report.killed >= 2, "the stopped ones needed SIGKILL: {report:?}");
    assert!(gone < Duration::from_millis(1000), "took {gone:?}");
    println!("stopped backends: deadline to last process gone {} ms, {report:?}", gone.as_millis());

    // Fenced stays fenced: only a start makes a primary again.
    guardian.permit(permit(4, Duration::from_secs(60))).await.unwrap();
    assert!(exited(&guardian.status()));
    assert_eq!(refusal(guardian.promote(&permit(4, Duration::from_secs(61))).await), Refusal::NotRunning);
    guardian.start(world.request(StartMode::Primary { permit: permit(4, Duration::from_secs(62)) })).await.unwrap();
    world.connect().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fence_is_quick_with_a_hundred_busy_backends() {
    let world = World::new().await;
    let (guardian, mut status) = world.primary(permit(1, Duration::from_secs(60))).await;
    let mut clients = Vec::new();
    for _ in 0..100 {
        let client = world.connect().await;
        clients.push(tokio::spawn(async move { client.batch_execute("select pg_sleep(1000)").await }));
    }
    until("all are there", async || world.tenants().len() >= 100).await;
    let end = permit(2, Duration::from_millis(500));
    guardian.permit(end).await.unwrap();
    let seen = status_until(&mut status, "it is fenced", exited).await;
    assert_eq!(world.tenants(), NOBODY);
    let report = seen.last_fence.unwrap();
    let gone = report.at.since(end.valid_until);
    println!("100 backends: deadline to last process gone {} ms, {report:?}", gone.as_millis());
    assert!(gone < Duration::from_millis(1500), "took {gone:?}");
    for client in clients {
        assert!(client.await.unwrap().is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writing_clients_get_little_after_the_deadline() {
    let world = World::new().await;
    let (guardian, mut status) = world.primary(permit(1, Duration::from_secs(60))).await;
    let end = permit(2, Duration::from_millis(1500));
    guardian.permit(end).await.unwrap();
    let load = Load::start(&world, 8, 1, end.valid_until).await;
    let seen = status_until(&mut status, "it is fenced", exited).await;
    let gone = seen.last_fence.unwrap().at.since(end.valid_until);
    let counts = load.finish().await;
    println!("fence under load: {} late of {}, nothing left after {} ms", counts.late, counts.total, gone.as_millis());
    println!("last acknowledgement {} ms after the deadline", counts.latest.as_millis());
    // The time to stop is what the margin of a permit is for.
    assert!(counts.latest < Duration::from_millis(1000));
    assert!(gone < Duration::from_millis(1000), "took {gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn renewals_keep_it_alive_and_the_agents_absence_changes_nothing_until_the_end() {
    let world = World::new().await;
    let (guardian, status) = world.primary(permit(1, Duration::from_millis(900))).await;
    let running = postmaster(&guardian.status());
    let mut last = now();
    for _ in 0..15 {
        let renewed = permit(1, Duration::from_millis(900));
        guardian.permit(renewed).await.unwrap();
        last = renewed.valid_until;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(postmaster(&guardian.status()), running, "1.5 s on permits of 0.9 s");

    let end = permit(1, Duration::from_millis(1500));
    assert!(end.valid_until > last);
    guardian.permit(end).await.unwrap();
    drop((guardian, status));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let client = world.connect().await;
    client.batch_execute("create table t (i int)").await.unwrap();
    assert!(now() < end.valid_until, "this machine was too slow for the test to mean anything");
    until("everything is gone", async || world.tenants().is_empty()).await;
    assert!(now() >= end.valid_until, "not before the end");

    let (guardian, mut status) = world.attach().await;
    let seen = status_until(&mut status, "it is fenced", exited).await;
    assert!(by_deadline(&seen.last_fence.unwrap().why));
    drop(guardian);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_outlives_agents_and_permits() {
    let world = World::new().await;
    let (guardian, status) = world.standby().await;
    let end = permit(1, Duration::from_millis(50));
    guardian.permit(end).await.unwrap();
    let running = postmaster(&guardian.status());
    drop((guardian, status));
    sleep_until(end.valid_until + Duration::from_millis(600)).await;
    assert!(alive(running));
    let (guardian, _) = world.attach().await;
    assert_eq!(postmaster(&guardian.status()), running);
    guardian.reload().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn permits_are_checked() {
    let world = World::new().await;
    let (guardian, _) = world.standby().await;
    let held = permit(5, Duration::from_secs(30));
    guardian.permit(held).await.unwrap();
    assert!(matches!(refusal(guardian.permit(permit(4, Duration::from_secs(60))).await), Refusal::TermTooLow { .. }));
    let shorter = permit(5, Duration::from_secs(10));
    assert!(matches!(refusal(guardian.permit(shorter).await), Refusal::PermitShrinks { .. }));
    let expired = LeaderPermit { term: Term(6), valid_until: Mono(now().0 - 1) };
    assert!(matches!(refusal(guardian.promote(&expired).await), Refusal::PermitExpired { .. }));
    assert_eq!(guardian.status().permit, Some(held));
    assert!(matches!(guardian.status().postgres, PostgresProcess::Running { writable: false, .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_is_under_a_deadline_from_the_start_and_may_be_repeated() {
    let world = World::new().await;
    let (guardian, mut status) = world.standby().await;
    let client = world.connect().await;
    let first = permit(2, Duration::from_secs(30));
    let begun = now();
    guardian.promote(&first).await.unwrap();
    assert!(matches!(guardian.status().postgres, PostgresProcess::Running { writable: true, .. }));
    guardian.promote(&first).await.unwrap();
    until("it is promoted", async || {
        client.query_one("select not pg_is_in_recovery()", &[]).await.is_ok_and(|row| row.get(0))
    })
    .await;
    println!("promotion took {} ms", now().since(begun).as_millis());
    client.batch_execute("create table t (i int)").await.unwrap();
    guardian.promote(&permit(2, Duration::from_secs(31))).await.unwrap();
    until("no file is left of it", async || !world.path("promote").exists()).await;

    guardian.permit(permit(3, Duration::from_millis(300))).await.unwrap();
    let seen = status_until(&mut status, "it is fenced", exited).await;
    assert!(by_deadline(&seen.last_fence.unwrap().why));
    assert_eq!(world.tenants(), NOBODY);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_by_somebody_else_is_fenced_without_a_permit() {
    let world = World::new().await;
    let (_guardian, mut status) = world.standby().await;
    let client = world.connect().await;
    let _ = client.batch_execute("select pg_promote(wait => false)").await;
    let seen = status_until(&mut status, "it is fenced", exited).await;
    assert_eq!(seen.last_fence.unwrap().why, FenceReason::PromotedWithoutPermit);
    assert_eq!(world.tenants(), NOBODY);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_by_somebody_else_lives_as_long_as_the_permit_that_is_held() {
    let world = World::new().await;
    let (guardian, mut status) = world.standby().await;
    guardian.permit(permit(1, Duration::from_secs(30))).await.unwrap();
    let client = world.connect().await;
    client.batch_execute("select pg_promote(wait => true)").await.unwrap();
    let writable = |status: &howdah::guardian::GuardianStatus| {
        matches!(status.postgres, PostgresProcess::Running { writable: true, .. })
    };
    status_until(&mut status, "it is noticed", writable).await;
    client.batch_execute("create table t (i int)").await.unwrap();
    guardian.permit(permit(2, Duration::from_millis(200))).await.unwrap();
    status_until(&mut status, "it is fenced", exited).await;
}
