//! The bounded flight recorder: what was decided, why, and what came of it.

use std::collections::{BTreeMap, VecDeque};

use crate::ha::{ClusterView, Decision};
use crate::types::WallTime;

/// So many different decisions are kept.
const KEPT: usize = 50;

/// One change of mind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When, for people.
    pub at: WallTime,
    /// The action's code.
    pub action: String,
    /// The reason's code.
    pub reason: String,
    /// The reason as a sentence.
    pub sentence: String,
}

/// Decisions of this process, newest last; repeated ones are counted, not kept.
#[derive(Debug, Default)]
pub struct Journal {
    entries: VecDeque<Entry>,
    counts: BTreeMap<String, u64>,
}

impl Journal {
    /// Records a decision. True if action or reason differ from the last one: then it is worth a log line.
    pub fn record(&mut self, _view: &ClusterView, decision: &Decision, at: WallTime) -> bool {
        let action = decision.action.code();
        let reason = decision.reason.code();
        let known = self.counts.entry(reason.clone()).or_insert(0);
        *known = known.saturating_add(1);
        if self.entries.back().is_some_and(|last| last.action == action && last.reason == reason) {
            return false;
        }
        if self.entries.len() == KEPT {
            self.entries.pop_front();
        }
        self.entries.push_back(Entry { at, action, reason, sentence: decision.reason.to_string() });
        true
    }

    /// The kept decisions, oldest first.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// How often each reason was decided.
    pub fn counts(&self) -> &BTreeMap<String, u64> {
        &self.counts
    }
}
