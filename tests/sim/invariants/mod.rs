//! The promises, one file each: what is looked at, when, and what would break it.
//!
//! Called by the world at the moment at which a promise could be broken: an acknowledgement, a plan, a promotion, a
//! change of the record. P6 and P9 are about words and inputs, which a simulation has none of.

mod p1_one_writer;
mod p2_nothing_lost;
mod p3_it_comes_back;
mod p4_p8_undisturbed;
mod p5_nothing_deleted;
mod p7_pause;
mod tags_are_kept;

use std::collections::BTreeMap;

use howdah::types::NodeName;

use crate::world::World;

/// What the checks remember.
#[derive(Debug)]
pub struct Watched {
    /// Who became writable last.
    pub writer: Option<usize>,
    /// The term in which somebody became writable last.
    pub wrote_in: Option<i64>,
    /// Who was told to lead in which term.
    pub terms: BTreeMap<i64, usize>,
    /// When something last happened to each node or its ways, and to the ways to the outside.
    pub disturbed: Vec<u64>,
    /// The term that was won by a proven successor.
    pub planned: Option<i64>,
    /// The term that was won by comparison, nobody having forced it.
    pub compared: Option<i64>,
    /// Who was a member when the key was taken, and undisturbed: nobody else is asked and sure to answer.
    pub asked: Vec<NodeName>,
    /// The term that a person has forced, and on whom. It is that until a promotion: who was forced may need a second term.
    pub forced: Option<(i64, usize)>,
    /// Counts the times that the configuration has ended the promise to lose nothing.
    pub promises: u32,
    /// A node whose disk was replaced, until it has caught up.
    pub replaced: Option<usize>,
    /// From here on nothing may disturb PostgreSQL (P4, P8).
    pub settled: bool,
}

impl Watched {
    pub fn new(nodes: usize) -> Self {
        Self {
            writer: None,
            wrote_in: None,
            terms: BTreeMap::new(),
            disturbed: vec![0; nodes + 1],
            planned: None,
            compared: None,
            asked: Vec::new(),
            forced: None,
            promises: 0,
            replaced: None,
            settled: false,
        }
    }
}

impl World {
    /// Something happens to a node: what it is compared with afterwards takes that into account.
    pub fn disturbed(&mut self, node: usize) {
        self.watched.disturbed[node] = self.now;
    }
}
