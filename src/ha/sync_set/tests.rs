//! Every small configuration, and every order in which commits and crashes can fall between the steps.

use std::collections::BTreeSet;

use super::*;

/// The standbys of these tests.
fn standby(index: usize) -> NodeName {
    format!("s{index}").parse().expect("valid")
}

/// The members of `all` whose bit is set.
fn subset(bits: usize, of: usize) -> BTreeSet<NodeName> {
    (0..of).filter(|index| bits >> index & 1 == 1).map(standby).collect()
}

fn groups(of: &BTreeSet<NodeName>, size: usize) -> Vec<BTreeSet<NodeName>> {
    let members: Vec<&NodeName> = of.iter().collect();
    (0..1_usize << members.len())
        .filter(|bits| usize::try_from(bits.count_ones()).expect("small") == size)
        .map(|bits| {
            members.iter().enumerate().filter(|(at, _)| bits >> at & 1 == 1).map(|(_, n)| (*n).clone()).collect()
        })
        .collect()
}

/// The rule of overlap as its words say it.
fn overlaps_by_counting(record: &ElectionRule, commits: &CommitRule) -> bool {
    let confirming = groups(&commits.names, commits.count);
    groups(&record.voters, record.quorum + 1)
        .iter()
        .all(|elect| confirming.iter().all(|confirm| !elect.is_disjoint(confirm)))
}

/// Every rule over `standbys` standbys, `nobody_confirms` included.
fn commit_rules(standbys: usize) -> Vec<CommitRule> {
    let mut rules = vec![CommitRule::nobody_confirms()];
    for bits in 0..1 << standbys {
        let names = subset(bits, standbys);
        rules.extend((0..=names.len()).map(|count| CommitRule { count, names: names.clone() }));
    }
    rules
}

fn election_rules(standbys: usize) -> Vec<ElectionRule> {
    let mut rules = Vec::new();
    for bits in 0..1 << standbys {
        let voters = subset(bits, standbys);
        rules.extend((0..=voters.len()).map(|quorum| ElectionRule { voters: voters.clone(), quorum }));
    }
    rules
}

#[test]
fn the_formula_is_the_rule_of_overlap() {
    for record in election_rules(4) {
        for commits in commit_rules(4) {
            assert_eq!(record.overlaps(&commits), overlaps_by_counting(&record, &commits), "{record:?} {commits:?}");
        }
    }
}

/// From every state, also from those that should never be, to every wish: overlap after each step, and an end.
fn every_way_is_safe_and_ends(standbys: usize) -> usize {
    let mut ways = 0;
    for record in election_rules(standbys) {
        for enforced in commit_rules(standbys) {
            for wish in commit_rules(standbys) {
                let (mut record, mut enforced) = (record.clone(), enforced.clone());
                let mut steps = 0;
                while let Some(step) = next(&enforced, &record, &wish, true) {
                    match step {
                        Move::Record(rule) => record = rule,
                        Move::Enforce(rule) => enforced = rule,
                    }
                    assert!(overlaps_by_counting(&record, &enforced), "{record:?} {enforced:?} on the way to {wish:?}");
                    steps += 1;
                    assert!(steps <= 4, "no end on the way to {wish:?}: {record:?} {enforced:?}");
                }
                assert_eq!(enforced, wish);
                assert_eq!(record, ElectionRule::for_commits(&wish));
                ways += 1;
            }
        }
    }
    ways
}

#[test]
fn every_way_over_three_standbys_is_safe_and_ends() {
    assert_eq!(every_way_is_safe_and_ends(3), 20 * 21 * 21);
}

#[test]
fn every_way_over_four_standbys_is_safe_and_ends() {
    assert_eq!(every_way_is_safe_and_ends(4), 48 * 49 * 49);
}

/// While nobody has confirmed anything, the record does not become easier to meet: every group that it lets elect
/// contains one that the record before it let elect.
#[test]
fn nothing_is_given_away_before_it_is_confirmed() {
    for standbys in 0..=4 {
        for start in commit_rules(standbys) {
            for wish in commit_rules(standbys) {
                let (mut record, mut enforced) = (ElectionRule::for_commits(&start), start.clone());
                while let Some(step) = next(&enforced, &record, &wish, false) {
                    match step {
                        Move::Enforce(rule) => enforced = rule,
                        Move::Record(rule) => {
                            let before = groups(&record.voters, record.quorum + 1);
                            for group in groups(&rule.voters, rule.quorum + 1) {
                                assert!(before.iter().any(|old| old.is_subset(&group)), "{record:?} -> {rule:?}");
                            }
                            record = rule;
                        }
                    }
                }
                assert_eq!(enforced, wish, "what is wished comes into force without waiting for anybody");
            }
        }
    }
}

/// A primary and its standbys, with an adversary who decides who receives what and when anything happens.
struct World {
    /// How many commits each standby has.
    has: Vec<u64>,
    /// The last commit that was acknowledged.
    acknowledged: u64,
    /// Commits so far.
    written: u64,
    enforced: CommitRule,
    /// Some process of PostgreSQL may still go by this one.
    before: Option<CommitRule>,
    /// What had been acknowledged when the last process had read the rule.
    from: u64,
    record: ElectionRule,
}

impl World {
    /// A commit that a group confirms which the adversary chooses; others receive as much as it likes.
    fn commit(&mut self, dice: &mut Dice) {
        self.written += 1;
        let rule = match &self.before {
            Some(before) if dice.roll(2) == 0 => before.clone(),
            _ => self.enforced.clone(),
        };
        let confirming = groups(&rule.names, rule.count);
        if confirming.is_empty() {
            return;
        }
        let group = &confirming[dice.roll(confirming.len())];
        for (index, has) in self.has.iter_mut().enumerate() {
            if group.contains(&standby(index)) {
                *has = self.written;
            } else if dice.roll(4) == 0 {
                *has = (*has).max(self.acknowledged.min(*has + 1));
            }
        }
        self.acknowledged = self.written;
    }

    /// Every group that may elect has all that was acknowledged.
    fn nothing_can_be_lost(&self) {
        for group in groups(&self.record.voters, self.record.quorum + 1) {
            let most = (0..self.has.len()).filter(|index| group.contains(&standby(*index))).map(|i| self.has[i]).max();
            assert!(
                self.acknowledged <= most.unwrap_or(0),
                "{group:?} may elect and lacks commits: {:?} of {}, {:?}, {:?}",
                self.has,
                self.acknowledged,
                self.record,
                self.enforced
            );
        }
    }

    fn confirmed(&self, wish: &CommitRule) -> bool {
        let have = (0..self.has.len()).filter(|i| wish.names.contains(&standby(*i)) && self.from <= self.has[*i]);
        self.before.is_none() && wish.count <= have.count()
    }
}

/// A small generator of its own: the runs are the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % sides
    }
}

/// Wishes change in the middle of everything, and no acknowledged commit is ever out of an elector's reach.
#[test]
fn no_acknowledged_commit_is_out_of_reach_whatever_is_wished_when() {
    let mut reached = 0;
    for seed in 0..2_000 {
        let mut dice = Dice(seed);
        let standbys = 1 + dice.roll(5);
        let wishes = commit_rules(standbys);
        let mut world = World {
            has: vec![0; standbys],
            acknowledged: 0,
            written: 0,
            enforced: CommitRule::default(),
            before: None,
            from: 0,
            record: ElectionRule::only_the_primary(),
        };
        let mut wish = wishes[dice.roll(wishes.len())].clone();
        for _ in 0..120 {
            match dice.roll(12) {
                0 => wish = wishes[dice.roll(wishes.len())].clone(),
                1..=3 => world.commit(&mut dice),
                4 if world.before.is_some() => {
                    world.before = None;
                    world.from = world.acknowledged;
                }
                5 => {
                    let index = dice.roll(standbys);
                    world.has[index] = world.written;
                }
                _ => {
                    let confirmed = world.confirmed(&wish);
                    match next(&world.enforced, &world.record, &wish, confirmed) {
                        Some(Move::Record(rule)) => world.record = rule,
                        // While one change is on its way, another is not begun: see `sync_wish::settled`.
                        Some(Move::Enforce(rule)) if world.before.is_none() => {
                            world.before = Some(std::mem::replace(&mut world.enforced, rule));
                        }
                        Some(Move::Enforce(_)) => (),
                        None => reached += usize::from(!world.record.voters.is_empty()),
                    }
                }
            }
            world.nothing_can_be_lost();
        }
    }
    assert!(1_000 < reached, "the runs must come to something: {reached}");
}
