//! P4: a change of the store's leader never moves PostgreSQL. P8: an agent that restarts within its permit never disturbs
//! it.
//!
//! Judged in runs in which nothing else happens: once the cluster has settled, no leadership may change, nothing may be
//! stopped, killed, started or promoted.

use crate::profiles::Theme;
use crate::world::World;

impl World {
    pub fn check_undisturbed(&mut self, node: usize, what: &str) {
        if !self.watched.settled {
            return;
        }
        match self.profile.theme {
            Theme::Anything => (),
            Theme::StoreLeaders => self.fail("P4", node, format!("{what}, and only the store's leader has changed")),
            Theme::AgentRestarts => self.fail("P8", node, format!("{what}, and only agents have restarted")),
        }
    }

    pub fn check_fence(&mut self, node: usize, why: &str) {
        self.check_undisturbed(node, &format!("fenced because {why}"));
    }

    pub fn leadership_changed(&mut self, node: usize) {
        self.check_undisturbed(node, "leads anew");
    }
}
