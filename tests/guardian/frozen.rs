//! Frozen guardians and frozen nodes: only the kernel can act, and it must.

use std::time::Duration;

use howdah::agent::observe::process_view;
use howdah::guardian::{Link, StartMode};
use howdah::ha::view::ProcessView;
use howdah::telemetry::clock::now;
use howdah::types::LeaderPermit;
use rustix::process::Signal;

use crate::load::{Counts, Load};
use crate::world::{World, alive, permit, postmaster, send, sleep_until, status_until, stopped, until};

/// Stops the guardian first, so that it cannot react to what happens to the others.
async fn freeze(pids: &[i32]) {
    for pid in pids {
        send(*pid, Signal::STOP);
    }
    until("all are stopped", async || pids.iter().all(|pid| stopped(*pid) || !alive(*pid))).await;
}

/// Freezes a loaded primary past its deadline, thaws what is left, and counts acknowledgements.
async fn freeze_past_the_deadline(tethered: bool, depth: usize) -> Counts {
    let world = World::new().await;
    let (guardian, mut status) = world.primary(permit(1, Duration::from_secs(60))).await;
    let end = permit(2, Duration::from_millis(2000));
    guardian.permit(end).await.unwrap();
    let load = Load::start(&world, 8, depth, end.valid_until).await;
    let running = postmaster(&guardian.status());
    until("clients are at work", async || load.total() > 100).await;
    // Time for the tether to see the sessions: it looks every 100 ms.
    tokio::time::sleep(Duration::from_millis(250)).await;

    let mut victims = world.keepers();
    assert_eq!(victims.len(), 2, "a guardian and a tether");
    send(victims[0], Signal::STOP);
    if !tethered {
        send(victims[1], Signal::KILL);
    }
    victims.extend(world.tenants());
    freeze(&victims).await;
    assert!(now() < end.valid_until, "this machine was too slow for the test to mean anything");

    until("the postmaster is dead, and nobody was thawed", async || !alive(running)).await;
    let after = now().since(end.valid_until);
    println!("frozen node: postmaster dead {} ms after the deadline", after.as_millis());
    assert!(after < Duration::from_millis(1000), "took {after:?}");
    if tethered {
        until("so are the backends", async || world.tenants().is_empty()).await;
    } else {
        assert!(world.tenants().iter().all(|pid| stopped(*pid)) && !world.tenants().is_empty());
    }
    for pid in victims {
        send(pid, Signal::CONT);
    }
    let counts = load.finish().await;
    status_until(&mut status, "the guardian is gone", |status| status.link == Link::Gone).await;
    until("nothing is left", async || world.tenants().is_empty()).await;
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_node_acknowledges_nothing_after_the_thaw() {
    let Counts { late, total, .. } = freeze_past_the_deadline(true, 1).await;
    println!("tethered, one statement at a time: {late} late of {total}");
    assert_eq!(late, 0);
    let Counts { late, total, .. } = freeze_past_the_deadline(true, 50).await;
    println!("tethered, 50 statements on their way: {late} late of {total}");
    assert_eq!(late, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_tether_the_postmaster_dies_and_the_backends_follow_after_the_thaw() {
    for depth in [1, 50] {
        let Counts { late, total, .. } = freeze_past_the_deadline(false, depth).await;
        println!("no tether, {depth} statements on their way: {late} late of {total}");
        // How many is PostgreSQL's doing: a backend looks for its postmaster only when it would wait.
        assert!(late < total / 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_guardian_alone_is_killed_with_everything_under_it() {
    let world = World::new().await;
    let (guardian, mut status) = world.primary(permit(1, Duration::from_secs(60))).await;
    world.sleeping_backend().await;
    let end = permit(2, Duration::from_millis(800));
    guardian.permit(end).await.unwrap();
    send(i32::try_from(guardian.status().pid).unwrap(), Signal::STOP);
    sleep_until(end.valid_until).await;
    until("everything is gone", async || world.tenants().is_empty()).await;
    let after = now().since(end.valid_until);
    println!("frozen guardian: nothing left {} ms after the deadline", after.as_millis());
    assert!(after < Duration::from_millis(1000), "took {after:?}");
    status_until(&mut status, "the guardian is gone", |status| status.link == Link::Gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guardian_that_thaws_in_time_goes_on_and_takes_no_expired_permit() {
    let world = World::new().await;
    let (guardian, _) = world.primary(permit(1, Duration::from_secs(60))).await;
    let keeper = i32::try_from(guardian.status().pid).unwrap();
    let running = postmaster(&guardian.status());
    send(keeper, Signal::STOP);
    until("it is stopped", async || stopped(keeper)).await;
    let stale = LeaderPermit { valid_until: now() + Duration::from_millis(100), ..permit(2, Duration::ZERO) };
    let asked = tokio::spawn({
        let guardian = guardian.clone();
        async move { guardian.permit(stale).await }
    });
    sleep_until(stale.valid_until).await;
    send(keeper, Signal::CONT);
    let refused = crate::world::refusal(asked.await.unwrap());
    assert!(matches!(refused, howdah::guardian::Refusal::PermitExpired { .. }), "{refused}");
    assert_eq!(postmaster(&guardian.status()), running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permit_that_waited_in_the_socket_past_the_deadline_comes_too_late() {
    let world = World::new().await;
    let (guardian, mut status) = world.primary(permit(1, Duration::from_secs(60))).await;
    let keeper = i32::try_from(guardian.status().pid).unwrap();
    let end = permit(2, Duration::from_millis(300));
    guardian.permit(end).await.unwrap();
    send(keeper, Signal::STOP);
    // Valid for long, and sent in time; but the guardian wakes up after the end of the one that it holds, and before
    // the dead man's timer.
    let asked = tokio::spawn({
        let guardian = guardian.clone();
        async move { guardian.permit(permit(2, Duration::from_secs(60))).await }
    });
    sleep_until(end.valid_until + Duration::from_millis(100)).await;
    send(keeper, Signal::CONT);
    assert!(asked.await.unwrap().is_err(), "refused, or the guardian is gone");
    let over = |status: &howdah::guardian::GuardianStatus| crate::world::exited(status) || status.link == Link::Gone;
    status_until(&mut status, "it is over", over).await;
    until("nothing is left", async || world.tenants().is_empty()).await;
}

/// Found by the simulation (seed 501914): the agent went on as if nothing ran, and rewound the directory in which
/// PostgreSQL was started when the guardian came to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_waits_in_the_socket_leaves_open_what_runs() {
    let world = World::new().await;
    let (guardian, mut status) = world.attach().await;
    world.put("standby.signal", "");
    let keeper = i32::try_from(guardian.status().pid).unwrap();
    send(keeper, Signal::STOP);
    until("it is stopped", async || stopped(keeper)).await;
    let given_up = tokio::time::timeout(Duration::from_millis(300), guardian.start(world.request(StartMode::Standby)));
    assert!(given_up.await.is_err(), "a stopped guardian answers nothing");
    assert_eq!(process_view(&guardian.status()), ProcessView::Unknown, "{:?}", guardian.status());
    send(keeper, Signal::CONT);
    status_until(&mut status, "the start is answered", |status| status.link == Link::Attached).await;
    assert_eq!(process_view(&guardian.status()), ProcessView::Running { writable: false }, "it was carried out");
    assert!(alive(postmaster(&guardian.status())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tether_that_dies_is_replaced_and_nothing_else_happens() {
    let world = World::new().await;
    let (guardian, mut status) = world.primary(permit(1, Duration::from_secs(60))).await;
    let backend = world.sleeping_backend().await;
    let before = guardian.status();
    tokio::time::sleep(Duration::from_millis(250)).await;
    send(world.keepers()[1], Signal::KILL);
    status_until(&mut status, "it is replaced", |status| status.change > before.change).await;
    assert!(alive(backend));
    assert_eq!(postmaster(&guardian.status()), postmaster(&before));
    assert!(guardian.status().privileges.tether);
}
