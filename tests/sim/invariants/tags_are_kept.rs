//! What a node's tags forbid is not done, whatever happens and whoever asks.

use crate::world::World;

impl World {
    /// `node` has been promoted.
    pub fn check_tags(&mut self, node: usize) {
        if self.nodes[node].standing.place.nofailover {
            self.fail("tags", node, "promoted although its tag forbids it".to_owned());
        }
    }
}
