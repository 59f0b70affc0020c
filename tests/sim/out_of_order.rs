//! The right steps in the wrong order: what the core would do next comes before what it has decided.
//!
//! ```text
//! narrow the record -> PostgreSQL is told        PostgreSQL is told -> narrow the record
//! PostgreSQL is told -> the record follows       the record follows -> PostgreSQL is told
//! PostgreSQL is told -> record -> promote        promote -> PostgreSQL is told -> record
//! ```
//! What comes next is the core's own answer to a view in which its decision has had its effect. Only for mutations.

use howdah::ha::view::{ClusterView, InForce};
use howdah::ha::{Action, Decision, Step, decide, plan};
use howdah::types::Fact;

use crate::mutations::Mutation;
use crate::world::World;

impl World {
    /// The steps of `decision`, as the world without a mutation takes them, or with others before them.
    pub fn in_some_order(&self, node: usize, decision: &Decision, steps: Vec<Step>) -> Vec<Step> {
        let view = &self.nodes[node].agent.view;
        let standby = view.server.fresh().is_some_and(|server| server.in_recovery);
        let first = match (&decision.action, self.mutation) {
            (Action::WriteSync { .. }, Some(Mutation::SyncRecordShrinksLast)) if !standby => {
                let next = decide(&after(view, &decision.action)).action;
                matches!(next, Action::Enforce { .. }).then(|| plan(&next, view))
            }
            (Action::Enforce { .. }, Some(Mutation::SyncRecordGrowsFirst)) if !standby => {
                let next = decide(&after(view, &decision.action)).action;
                matches!(next, Action::WriteSync { .. }).then(|| plan(&next, view))
            }
            (Action::Enforce { .. }, Some(Mutation::PromotesBeforeNamesAreSet)) if standby => {
                return promoted_first(view, decision, &steps).unwrap_or(steps);
            }
            _ => None,
        };
        first.into_iter().flatten().chain(steps).collect()
    }
}

fn promoted_first(view: &ClusterView, decision: &Decision, steps: &[Step]) -> Option<Vec<Step>> {
    let told = after(view, &decision.action);
    let write = decide(&told).action;
    if !matches!(write, Action::WriteSync { .. }) {
        return None;
    }
    let written = after(&told, &write);
    let promote = decide(&written).action;
    (promote == Action::Promote).then(|| [plan(&promote, &written), steps.to_vec(), plan(&write, view)].concat())
}

/// The view after `action` has done all that it is for: the record is written, or every process goes by the names and
/// every standby has what came before.
fn after(view: &ClusterView, action: &Action) -> ClusterView {
    let mut view = view.clone();
    match (action, &mut view.record, &mut view.server) {
        (Action::WriteSync { record: sync, .. }, Fact::Fresh(record), _) => record.sync = Some(sync.clone()),
        (Action::Enforce { names }, _, Fact::Fresh(server)) => {
            server.synchronous_standby_names.clone_from(names);
            server.checkpoint_redo = server.position;
            for standby in server.standbys.values_mut() {
                (standby.counted, standby.flushed) = (true, server.position);
            }
            let (names, from) = (names.clone(), Some(server.position));
            view.memory.commit_rule = Some(InForce { names, since: view.now, seen: Default::default(), from });
        }
        _ => (),
    }
    view
}
