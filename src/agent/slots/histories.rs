//! Random histories of a cluster's slots: members that fall silent for a while or for good, leaders and settings that
//! change, agents that are away meanwhile and views that are some seconds old.
//!
//! What must hold: nobody takes away the slot of a member that was there within the retention, so that it finds its WAL
//! wherever it is led; and when all is quiet nothing is left of who and what has gone.

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use super::tests::{cluster, names, node, settings, slot, versioned};
use super::*;

const NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];
/// `member_slots_ttl`, seconds.
const RETENTION: u64 = 60;
/// A member's record outlives its node by this, seconds.
const LEASE: u64 = 5;
/// How old the record may be that a node looks at, seconds.
const LAG: u64 = 3;

fn at(second: u64) -> Mono {
    Mono(1_000_000_000) + Duration::from_secs(second)
}

/// The record and the settings as they were at a second.
struct Moment {
    second: u64,
    record: ClusterRecord,
    settings: ClusterSettings,
}

#[derive(Default)]
struct Node {
    /// None while it is down.
    agent: Option<(Keeper, Option<Plan>)>,
    /// What outlives it.
    kept: Kept,
    slots: BTreeSet<String>,
    /// The last second at which it was up.
    seen: u64,
    looked: u64,
}

struct World {
    dice: StdRng,
    second: u64,
    record: ClusterRecord,
    permanent: bool,
    nodes: BTreeMap<&'static str, Node>,
    past: Vec<Moment>,
}

impl World {
    fn new(seed: u64) -> Self {
        let nodes = NODES.iter().map(|name| (*name, Node::default())).collect();
        let (dice, record) = (StdRng::seed_from_u64(seed), cluster(&[]));
        let mut world = Self { dice, second: 0, record, permanent: false, nodes, past: Vec::new() };
        NODES.iter().for_each(|name| world.start(name));
        world
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.dice.random_range(0..n) == 0
    }

    fn start(&mut self, name: &'static str) {
        let node = self.nodes.get_mut(name).expect("there");
        if node.agent.is_none() {
            node.agent = Some((Keeper::resume(node.kept.clone(), at(self.second)), None));
        }
    }

    fn faults(&mut self) {
        for name in NODES {
            if self.one_in(40) {
                self.nodes.get_mut(name).expect("there").agent = None;
            }
            if self.one_in(if name == "n4" { 200 } else { 20 }) {
                self.start(name);
            }
        }
        if self.one_in(60) {
            let name = NODES[self.dice.random_range(0..NODES.len())];
            if self.nodes[name].agent.is_some() {
                self.record.leader = Some(versioned(node(name)));
            }
        }
        if self.one_in(50) {
            self.permanent = !self.permanent;
        }
    }

    /// One second.
    fn pass(&mut self, faulty: bool) -> Result<(), TestCaseError> {
        self.second += 1;
        if faulty {
            self.faults();
        }
        for name in NODES {
            let up = self.nodes[name].agent.is_some();
            if up {
                self.nodes.get_mut(name).expect("there").seen = self.second;
                self.record.members.entry(node(name)).or_insert_with(|| versioned(MemberRecord::default()));
            } else if LEASE < self.second - self.nodes[name].seen {
                self.record.members.remove(&node(name));
                if self.record.is_leader(&node(name)) {
                    self.record.leader = None;
                }
            }
        }
        let up: Vec<&str> = NODES.into_iter().filter(|name| self.nodes[name].agent.is_some()).collect();
        if self.record.leader.is_none() && !up.is_empty() {
            self.record.leader = Some(versioned(node(up[self.dice.random_range(0..up.len())])));
        }
        let slots = if self.permanent { json!({"backup": {"type": "physical"}}) } else { json!({}) };
        let settings = settings(json!({"member_slots_ttl": format!("{RETENTION}s"), "slots": slots}));
        self.past.push(Moment { second: self.second, record: self.record.clone(), settings });
        let first = self.dice.random_range(0..NODES.len());
        for place in 0..NODES.len() {
            self.round(NODES[(first + place) % NODES.len()], faulty)?;
        }
        Ok(())
    }

    /// A node's round, as [`crate::agent::upkeep`] does it.
    fn round(&mut self, name: &'static str, faulty: bool) -> Result<(), TestCaseError> {
        let lag = if faulty { self.dice.random_range(0..=LAG) } else { 0 };
        let other = self.nodes.get_mut(name).expect("there");
        let looked = other.looked.max(self.second.saturating_sub(lag)).max(1);
        let Some((mut keeper, planned)) = other.agent.take() else { return Ok(()) };
        other.looked = looked;
        let seen = &self.past[usize::try_from(looked).expect("small") - 1];
        let (me, now) = (node(name), at(self.second));
        let found: Vec<Slot> = other.slots.iter().map(|name| slot(name, false, 1)).collect();
        let leads = seen.record.is_leader(&me);
        if leads && self.record.is_leader(&me) {
            let said = self.record.status.as_ref().map(|status| status.value.clone()).unwrap_or_default();
            let status = planned.as_ref().map_or(said, |plan| published(plan, &me, Lsn(9), &found));
            self.record.status = Some(versioned(status));
        }
        if seen.record.leader.is_none() {
            other.agent = Some((keeper, planned));
            return Ok(());
        }
        let part = if leads { Part::Leader } else { Part::Candidate };
        let Moment { record, settings, .. } = seen;
        let plan = keeper.plan(&Known { me: &me, part, record, settings, slots: &found, major: 15, now });
        other.kept = keeper.kept();
        other.slots.extend(plan.physical.iter().cloned());
        for gone in &plan.retired {
            let recent = self.past.iter().rev().find(|past| {
                past.second <= seen.second && past.record.members.keys().any(|member| member.slot_name() == *gone)
            });
            let silent = recent.map_or(u64::MAX, |recent| seen.second - recent.second);
            let removed = other.slots.remove(gone);
            prop_assert!(
                !removed || gone == "backup" || RETENTION <= silent + LAG,
                "second {}: {name} ({part:?}) drops {gone}, which was there {silent} s before",
                self.second
            );
        }
        other.agent = Some((keeper, Some(plan)));
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn slots_stay_as_long_as_they_are_needed_and_no_longer(seed: u64) {
        let mut world = World::new(seed);
        for _ in 0..300 {
            world.pass(true)?;
        }
        for _ in 0..3 * RETENTION {
            world.pass(false)?;
        }
        let up: BTreeSet<String> =
            NODES.iter().filter(|name| world.nodes[**name].agent.is_some()).map(|name| (*name).to_owned()).collect();
        for name in &up {
            let mut expected: BTreeSet<String> = up.iter().filter(|other| *other != name).cloned().collect();
            if world.permanent {
                expected.insert("backup".to_owned());
            }
            prop_assert_eq!(names(&world.nodes[name.as_str()].slots), names(&expected), "the slots of {}", name);
        }
    }
}
