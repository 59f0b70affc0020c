//! P5: nothing is deleted. What takes the place of a data directory finds the place empty: the old one was moved aside.

use crate::world::World;

impl World {
    pub fn check_room(&mut self, node: usize, what: &str) {
        if let Some(data) = &self.nodes[node].disk.data {
            let why = format!("{what} over data of database {} that was not moved aside", data.system);
            self.fail("P5", node, why);
        }
    }
}
