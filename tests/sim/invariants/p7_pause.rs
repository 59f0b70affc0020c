//! P7: pause means hands off. A node that knows of the pause starts, stops, promotes and writes nothing.
//!
//! What is known is taken from the configuration that the node has read, not from the view that it decided on.

use howdah::ha::{Decision, PgStep, Step};

use crate::world::World;

impl World {
    pub fn check_pause(&mut self, node: usize, decision: &Decision, steps: &[Step]) {
        let agent = &self.nodes[node].agent;
        // Pause keeps the program's hands off, not people's.
        if !agent.settings.pause || agent.view.memory.by_hand.is_some() {
            return;
        }
        for step in steps {
            let allowed = match step {
                // The permit's end and a task that is to be cancelled know no pause.
                Step::Pg(PgStep::Fence | PgStep::CancelTask) | Step::Exit => true,
                Step::Pg(_) | Step::Record(_) => false,
            };
            if !allowed {
                let step = crate::report::flat(step);
                self.fail("P7", node, format!("{step} in a paused cluster, because: {}", decision.reason));
            }
        }
    }
}
