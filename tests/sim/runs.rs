//! One run from a seed: the cluster creates itself, then faults, then peace in which it must come back.

use crate::clock::SEC;
use crate::mutations::Mutation;
use crate::profiles::{Profile, Theme};
use crate::world::{Failure, Stats, World};

/// What a run came to.
pub struct Outcome {
    pub stats: Stats,
    pub failure: Option<Failure>,
    pub lines: Vec<String>,
}

pub fn run(seed: u64, profile: Profile, mutation: Option<Mutation>, tracing: bool) -> Outcome {
    let theme = profile.theme;
    let lasts = profile.lasts;
    let mut world = World::new(seed, profile, mutation, tracing);
    // Sometimes nothing is there yet when the first fault comes.
    let peace = if theme == Theme::Anything { world.chance.below(40) * SEC } else { 60 * SEC };
    world.run_until(peace);
    if theme != Theme::Anything {
        world.watched.settled = true;
    }
    world.danger();
    world.run_until(peace + lasts);
    if world.failure.is_none() {
        world.heal();
        world.operator_relents();
        world.must_come_back();
    }
    world.stats.ended_at = world.now;
    Outcome { stats: world.stats, failure: world.failure, lines: world.lines.into() }
}

/// What is printed about a run that broke a promise: the same run again, watched.
pub fn told(seed: u64, profile: &Profile, mutation: Option<Mutation>) -> String {
    let again = run(seed, profile.clone(), mutation, true);
    let mut text = String::new();
    if let Some(failure) = &again.failure {
        text.push_str(&format!(
            "promise {} is broken by {} after {:.3} s: {}\n",
            failure.promise,
            failure.node,
            failure.at as f64 / SEC as f64,
            failure.why
        ));
    }
    text.push_str(&format!("seed {seed}, {profile:?}\n"));
    text.push_str(&format!("again: SIM_SEED={seed} cargo test --locked --test sim -- --nocapture one_seed\n"));
    text.push_str("the last steps:\n");
    for line in &again.lines {
        text.push_str(line);
        text.push('\n');
    }
    text
}
