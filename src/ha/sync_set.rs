//! Who must confirm a commit, who may lead after its primary, and one safe step from what is to what is wished.
//!
//! ```text
//! CommitRule    what PostgreSQL enforces: a commit returns when `count` of `names` have it (and the primary)
//! ElectionRule  what the record lets lead: who has heard `quorum` + 1 of `voters`, itself included, and is the
//!               most advanced of them - or the primary itself
//! ```
//! **The rule of overlap**: whoever may be elected has heard somebody who has confirmed the commit. Every group of
//! `quorum` + 1 voters shares a member with every group of `count` names; WAL is one line, so the most advanced of the
//! group then has all that was ever acknowledged. No moment may break it, whatever crashes between two steps:
//!
//! ```text
//! 1. narrow the record, until it overlaps what is enforced *and* what is wished
//! 2. have PostgreSQL enforce what is wished
//! 3. when as many as are wished have everything from before step 2: the record follows
//! ```
//! A record without voters lets only the primary lead and overlaps everything: it is where each of them begins.
//! Absent: PostgreSQL's words (`sync_names.rs`), which standbys are fit (`sync_wish.rs`).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::cluster::records::SyncRecord;
use crate::types::NodeName;

/// What PostgreSQL enforces.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CommitRule {
    /// So many of `names` must have a commit. More than there are names: no commit returns.
    pub count: usize,
    /// Who counts.
    pub names: BTreeSet<NodeName>,
}

/// What the record lets lead.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ElectionRule {
    /// Whose positions count.
    pub voters: BTreeSet<NodeName>,
    /// So many of them must be heard beside the candidate, which is one of them.
    pub quorum: usize,
}

/// One safe step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    /// Write this to the record.
    Record(ElectionRule),
    /// Have PostgreSQL enforce this.
    Enforce(CommitRule),
}

impl CommitRule {
    /// No commit returns: nobody is there who could confirm it.
    pub fn nobody_confirms() -> Self {
        Self { count: 1, names: BTreeSet::new() }
    }

    /// What a primary enforces that starts with nothing but the record: as many copies as the record counts on.
    pub fn of_record(rule: &ElectionRule) -> Self {
        Self { count: rule.voters.len().saturating_sub(rule.quorum), names: rule.voters.clone() }
    }

    /// Whether commits return at all.
    fn is_met_by_somebody(&self) -> bool {
        self.count <= self.names.len()
    }
}

impl ElectionRule {
    /// Only the primary itself may lead.
    pub fn only_the_primary() -> Self {
        Self::default()
    }

    /// What a record says.
    pub fn of(record: &SyncRecord) -> Self {
        let quorum = usize::try_from(record.quorum.unwrap_or(0)).unwrap_or(usize::MAX);
        Self { voters: record.sync_standby.clone(), quorum }.plain()
    }

    /// The least that still overlaps `rule`.
    pub(super) fn for_commits(rule: &CommitRule) -> Self {
        if !rule.is_met_by_somebody() {
            return Self::only_the_primary();
        }
        Self { voters: rule.names.clone(), quorum: rule.names.len().saturating_sub(rule.count) }.plain()
    }

    /// Rules that nobody can meet are one and the same.
    fn plain(self) -> Self {
        if self.quorum < self.voters.len() { self } else { Self::only_the_primary() }
    }

    /// Whether every group that this rule lets elect shares a member with every group that `commits` lets confirm.
    pub fn overlaps(&self, commits: &CommitRule) -> bool {
        if self.voters.len() <= self.quorum || !commits.is_met_by_somebody() {
            return true;
        }
        let shared = self.voters.intersection(&commits.names).count();
        // Whoever wants to avoid the others takes first of what only it has.
        let of_shared = |wanted: usize, all: usize| wanted.saturating_sub(all - shared);
        let (heard, confirmed) =
            (of_shared(self.quorum + 1, self.voters.len()), of_shared(commits.count, commits.names.len()));
        shared < heard + confirmed
    }

    /// A rule under which every group contains one that this rule lets elect, and that overlaps both.
    fn narrowed(&self, enforced: &CommitRule, wish: &CommitRule) -> Self {
        let mut voters = self.voters.clone();
        voters.extend(enforced.names.iter().chain(&wish.names).cloned());
        let newcomers = voters.len() - self.voters.len();
        let fewest = [enforced, wish].into_iter().filter(|rule| rule.is_met_by_somebody()).map(|rule| rule.count).min();
        let quorum = (self.quorum + newcomers).max(voters.len() - fewest.unwrap_or(voters.len()).min(voters.len()));
        Self { voters, quorum }.plain()
    }
}

/// The next step towards `wish`; none when all is as wished, or when somebody must confirm first.
///
/// `confirmed`: as many of `wish` as it counts on have everything that was acknowledged before `enforced` came into
/// force, and every process of PostgreSQL goes by it.
pub fn next(enforced: &CommitRule, record: &ElectionRule, wish: &CommitRule, confirmed: bool) -> Option<Move> {
    if !record.overlaps(enforced) {
        return Some(Move::Record(ElectionRule::only_the_primary()));
    }
    if enforced != wish {
        return Some(if record.overlaps(wish) {
            Move::Enforce(wish.clone())
        } else {
            Move::Record(record.narrowed(enforced, wish))
        });
    }
    let target = ElectionRule::for_commits(wish);
    (*record != target && confirmed).then_some(Move::Record(target))
}

#[cfg(test)]
mod tests;
