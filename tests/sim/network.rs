//! The ways between the nodes: cut in one direction or both, slow, or losing a message now and then.

use crate::chance::Chance;
use crate::clock::MS;

/// All ways.
#[derive(Debug)]
pub struct Net {
    cut: Vec<Vec<bool>>,
    pub slow: bool,
    pub always_slow: bool,
    /// One message in so many is lost; zero for none.
    pub loses: u64,
}

impl Net {
    /// Between `ends` of which the last is outside the cluster.
    pub fn new(ends: usize, always_slow: bool) -> Self {
        Self { cut: vec![vec![false; ends]; ends], slow: always_slow, always_slow, loses: 0 }
    }

    pub fn cut(&mut self, from: usize, to: usize) {
        self.cut[from][to] = true;
    }

    pub fn heal(&mut self) {
        for ways in &mut self.cut {
            ways.fill(false);
        }
        (self.slow, self.loses) = (self.always_slow, 0);
    }

    /// Whether two nodes can converse: a connection needs both directions.
    pub fn talk(&self, one: usize, other: usize) -> bool {
        !self.cut[one][other] && !self.cut[other][one]
    }

    /// Whether nothing is cut, slow or lost beyond what is always so.
    pub fn is_whole(&self) -> bool {
        self.loses == 0 && self.slow == self.always_slow && !self.cut.iter().flatten().any(|cut| *cut)
    }

    /// Whether whoever is asked is heard in time: nothing is lost or late anywhere.
    pub fn answers(&self) -> bool {
        !self.slow && self.loses == 0
    }

    /// Whether one message gets through.
    pub fn passes(&self, from: usize, to: usize, chance: &mut Chance) -> bool {
        from == to || (!self.cut[from][to] && !chance.one_in(self.loses))
    }

    pub fn delay(&self, chance: &mut Chance) -> u64 {
        if self.slow && chance.one_in(2) {
            return chance.between(20 * MS, 900 * MS);
        }
        chance.between(MS / 10, MS)
    }
}
