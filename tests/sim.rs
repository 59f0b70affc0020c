//! The real decision core in a simulated world: faults, crashes between any two steps, and the promises judged.
//!
//! ```text
//! seed -> profile -> world.rs: one queue of events in true time
//!   agent.rs     observe -> ha::decide -> ha::plan     the real core, with the real rules of views and permits
//!   effects.rs   Step -> model_postgres.rs, model_guardian.rs (real deadline rules), model_store.rs (real kv::State)
//!   faults.rs operators.rs workload.rs                 what happens to them
//!   invariants/  one file for each promise             what must never be seen
//! ```
//!
//! Bit for bit repeatable: `SIM_SEED=7 cargo test --locked --test sim -- --nocapture one_seed` plays one run again;
//! `SIM_TRACE=1` prints every step of it. `SIM_MINUTES=60` makes the soak last an hour. No tokio, no clock, one thread
//! for each run.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a test binary has no users, and may talk")]

#[path = "sim/agent.rs"]
mod agent;
#[path = "sim/archive.rs"]
mod archive;
#[path = "sim/chance.rs"]
mod chance;
#[path = "sim/clock.rs"]
mod clock;
#[path = "sim/effects.rs"]
mod effects;
#[path = "sim/faults.rs"]
mod faults;
#[path = "sim/invariants/mod.rs"]
mod invariants;
#[path = "sim/keeper.rs"]
mod keeper;
#[path = "sim/model_guardian.rs"]
mod model_guardian;
#[path = "sim/model_postgres.rs"]
mod model_postgres;
#[path = "sim/model_store.rs"]
mod model_store;
#[path = "sim/mutations.rs"]
mod mutations;
#[path = "sim/network.rs"]
mod network;
#[path = "sim/node.rs"]
mod node;
#[path = "sim/operators.rs"]
mod operators;
#[path = "sim/out_of_order.rs"]
mod out_of_order;
#[path = "sim/outside.rs"]
mod outside;
#[path = "sim/places.rs"]
mod places;
#[path = "sim/profiles.rs"]
mod profiles;
#[path = "sim/quiet.rs"]
mod quiet;
#[path = "sim/report.rs"]
mod report;
#[path = "sim/runs.rs"]
mod runs;
#[path = "sim/streaming.rs"]
mod streaming;
#[path = "sim/sync_replication.rs"]
mod sync_replication;
#[path = "sim/tasks.rs"]
mod tasks;
#[path = "sim/totality.rs"]
mod totality;
#[path = "sim/wal.rs"]
mod wal;
#[path = "sim/workload.rs"]
mod workload;
#[path = "sim/world.rs"]
mod world;

use mimalloc::MiMalloc;
use profiles::Profile;
use quiet::Quiet;
use runs::{run, told};
use world::{Failure, Stats};

/// Half of a run is the making and forgetting of small things.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// The seeds that every test run plays.
const FIXED: std::ops::Range<u64> = 0..150;

/// Seeds at which something was found (`src/docs/reliability.md`). They mean the same only while the world is the same.
const FOUND: [u64; 7] = [501_914, 700_098, 700_784, 700_864, 701_121, 830_208, 1_795_564_271_114];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// After so many broken runs there is enough to look at.
const BROKEN_ENOUGH: usize = 5;

fn add(sum: &mut Stats, one: &Stats) {
    sum.events += one.events;
    sum.ticks += one.ticks;
    sum.actions += one.actions;
    sum.faults += one.faults;
    sum.crashes_between_steps += one.crashes_between_steps;
    sum.operations += one.operations;
    sum.writes += one.writes;
    sum.expiries += one.expiries;
    sum.store_leaders += one.store_leaders;
    sum.fences += one.fences;
    sum.promotions += one.promotions;
    sum.acknowledged += one.acknowledged;
    sum.lost += one.lost;
    sum.quiet += one.quiet;
    sum.ended_at += one.ended_at;
}

fn summary(seeds: u64, sum: &Stats) -> String {
    let hours = sum.ended_at as f64 / 3600e9;
    format!("{seeds} seeds, {hours:.1} simulated cluster-hours, {sum:?}")
}

/// Plays seeds until `enough`, or until some have broken a promise.
fn play(seeds: impl Iterator<Item = u64>, profile: impl Fn(u64) -> Profile, mut enough: impl FnMut() -> bool) {
    let (mut count, mut sum) = (0, Stats::default());
    let mut broken = Vec::new();
    for seed in seeds {
        let profile = profile(seed);
        let outcome = run(seed, profile.clone(), None, false);
        add(&mut sum, &outcome.stats);
        count += 1;
        if let Some(failure) = outcome.failure {
            println!("measured: seed {seed} breaks a promise: {}: {}: {}", failure.promise, failure.node, failure.why);
            broken.push((seed, profile));
        }
        if enough() || broken.len() == BROKEN_ENOUGH {
            break;
        }
    }
    println!("{}", summary(count, &sum));
    if let Some((seed, profile)) = broken.first() {
        panic!("{} of {count} seeds break a promise; the first:\n{}", broken.len(), told(*seed, profile, None));
    }
}

#[test]
fn fixed_seeds_keep_every_promise() {
    let from = number("SIM_FROM").unwrap_or(FIXED.start);
    play((from..from + (FIXED.end - FIXED.start)).chain(FOUND), Profile::of, || false);
}

#[expect(clippy::disallowed_methods, reason = "it is the test that takes time, not the simulation")]
fn stopwatch() -> std::time::Instant {
    std::time::Instant::now()
}

/// New seeds each time, for a minute, or with `SIM_MINUTES=60` for as long as that.
#[test]
#[expect(clippy::disallowed_methods, reason = "seeds that nobody has seen before")]
fn fresh_seeds_keep_every_promise() {
    let begun = stopwatch();
    let enough = 60 * number("SIM_MINUTES").unwrap_or(1);
    let first = number("SIM_FROM").unwrap_or_else(|| {
        let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        u64::try_from(wall.as_millis()).unwrap()
    });
    println!("seeds from {first}");
    play(first.., Profile::of, || enough <= begun.elapsed().as_secs());
}

/// A harness that finds nothing proves nothing: each of these is found, and quickly enough.
#[test]
fn every_known_bad_change_is_noticed() {
    let only = std::env::var("SIM_MUTATION").ok();
    let mut unnoticed = Vec::new();
    let asked = |mutation: &mutations::Mutation| only.as_ref().is_some_and(|only| *only == format!("{mutation:?}"));
    let long = number("SIM_MINUTES").is_some();
    for (mutation, promises, budget) in mutations::ALL.iter().chain(mutations::UNNOTICED) {
        let known = mutations::ALL.iter().any(|(other, ..)| other == mutation);
        let wanted = if only.is_some() { asked(mutation) } else { known && (long || *budget <= 1000) };
        if !wanted {
            continue;
        }
        let mut noticed = None;
        let begun = stopwatch();
        for seed in 0..*budget {
            let profile = mutation.profile(seed);
            let Some(failure) = run(seed, profile, Some(*mutation), false).failure else { continue };
            if promises.contains(&failure.promise.as_str()) {
                noticed = Some((seed, failure));
                break;
            }
        }
        match noticed {
            Some((seed, failure)) => {
                let took = begun.elapsed().as_secs_f64();
                let Failure { promise, why, .. } = failure;
                let sound = run(seed, mutation.profile(seed), None, false);
                assert_eq!(sound.failure, None, "the same world, and nothing wrong with it");
                println!("{mutation:?}: after {} of {budget} seeds, {took:.1} s: {promise}: {why}", seed + 1);
            }
            None => unnoticed.push(format!("{mutation:?} within {budget} seeds")),
        }
    }
    assert!(unnoticed.is_empty(), "not noticed: {unnoticed:?}");
}

/// The same seed gives the same run, to the last event.
#[test]
fn a_run_can_be_repeated() {
    for seed in 1000..1010 {
        let once = run(seed, Profile::of(seed), None, false);
        let again = run(seed, Profile::of(seed), None, true);
        assert_eq!((once.stats, once.failure), (again.stats, again.failure), "seed {seed}");
    }
}

/// Days with a few faults in them, and hours of quiet between. With `SIM_MINUTES=60` for so long.
#[test]
fn quiet_days_keep_every_promise() {
    let begun = stopwatch();
    let (first, minutes) = (number("SIM_FROM").unwrap_or(0), number("SIM_MINUTES"));
    let enough = || minutes.is_some_and(|minutes| 60 * minutes <= begun.elapsed().as_secs());
    let seeds = first..if minutes.is_some() { u64::MAX } else { first + 10 };
    play(seeds, |seed| Profile::quiet(seed, Quiet::Skipped, 48), enough);
}

/// Clusters that follow another one and are followed by it, in turn. With `SIM_MINUTES=60` for so long.
#[test]
fn clusters_that_follow_another_keep_every_promise() {
    let begun = stopwatch();
    let (first, minutes) = (number("SIM_FROM").unwrap_or(0), number("SIM_MINUTES"));
    let enough = || minutes.is_some_and(|minutes| 60 * minutes <= begun.elapsed().as_secs());
    let seeds = first..if minutes.is_some() { u64::MAX } else { first + 20 };
    play(seeds, Profile::elsewhere, enough);
}

/// What is skipped would have changed nothing: the same days, played event by event as well, come to the same.
#[test]
fn quiet_hours_can_be_passed_over() {
    for seed in 0..number("SIM_SEEDS").unwrap_or(4) {
        let skipped = run(seed, Profile::quiet(seed, Quiet::Skipped, 4), None, false);
        let checked = run(seed, Profile::quiet(seed, Quiet::Checked, 4), None, false);
        assert!(0 < skipped.stats.quiet, "seed {seed}: nothing was skipped");
        assert_eq!((skipped.stats, skipped.failure), (checked.stats, checked.failure), "seed {seed}");
    }
}

/// `SIM_SEED=7`: that run again. Without it, seed 0. With `SIM_MUTATION=TermIsReused` in the world of that change.
#[test]
fn one_seed() {
    let seed = number("SIM_SEED").unwrap_or(0);
    let named = std::env::var("SIM_MUTATION").ok();
    let all = mutations::ALL.iter().chain(mutations::UNNOTICED).map(|(mutation, ..)| *mutation);
    let mutation = named.and_then(|named| all.clone().find(|mutation| format!("{mutation:?}") == named));
    let plain = || match std::env::var("SIM_QUIET").as_deref() {
        Ok(_) => Profile::quiet(seed, Quiet::Skipped, number("SIM_QUIET").unwrap_or(48)),
        Err(_) if std::env::var_os("SIM_ELSEWHERE").is_some() => Profile::elsewhere(seed),
        Err(_) => Profile::of(seed),
    };
    let profile = mutation.map_or_else(plain, |mutation| mutation.profile(seed));
    let outcome = run(seed, profile.clone(), mutation, std::env::var_os("SIM_TRACE").is_some());
    assert!(outcome.failure.is_none(), "{}", told(seed, &profile, mutation));
    println!("{}", summary(1, &outcome.stats));
}
