//! How much history the store keeps: changes of keys, for reads in the past and for watchers that catch up.
//!
//! Without an end the history of a cluster at rest would grow by a few kilobytes a second, since its members renew
//! what they say of themselves. The Raft leader proposes a compaction when there is more than is to be kept; all
//! members then forget the same. Deliberately absent: the proposing itself (`upkeep.rs`).

use std::collections::VecDeque;
use std::time::Duration;

use crate::types::Mono;

/// How much is kept: no more than so many changes, and none that is older.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Changes older than this are forgotten.
    pub time: Duration,
    /// At most so many revisions are kept, give or take a tenth.
    pub revisions: i64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { time: Duration::from_secs(3600), revisions: 10_000 }
    }
}

/// What a node remembers of when which revision was reached.
#[derive(Debug, Default)]
pub struct Calendar {
    marks: VecDeque<(Mono, i64)>,
}

impl Calendar {
    /// Notes the revision of now; the marks are a sixtieth of the retention apart.
    pub fn note(&mut self, now: Mono, revision: i64, retention: Retention) {
        if self.marks.back().is_none_or(|(at, _)| retention.time / 60 <= now.since(*at)) {
            self.marks.push_back((now, revision));
        }
    }

    /// Up to where to compact now, if anything is to be forgotten.
    pub fn due(&mut self, now: Mono, revision: i64, compacted: i64, retention: Retention) -> Option<i64> {
        let mut old = None;
        while let Some((at, reached)) = self.marks.front().copied() {
            if now.since(at) < retention.time {
                break;
            }
            old = Some(reached);
            self.marks.pop_front();
        }
        let slack = (retention.revisions / 10).max(1);
        let kept = revision - compacted.max(0);
        let many = (retention.revisions + slack < kept).then_some(revision - retention.revisions);
        old.max(many).filter(|target| compacted < *target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEPT: Retention = Retention { time: Duration::from_secs(60), revisions: 100 };

    fn at(seconds: u64) -> Mono {
        Mono(1_000_000_000 * (1000 + seconds))
    }

    #[test]
    fn what_is_old_is_forgotten() {
        let mut calendar = Calendar::default();
        for second in 0..60 {
            calendar.note(at(second), 10 + i64::try_from(second).unwrap(), KEPT);
        }
        assert_eq!(calendar.due(at(59), 69, -1, KEPT), None);
        assert_eq!(calendar.due(at(60), 69, -1, KEPT), Some(10));
        assert_eq!(calendar.due(at(60), 69, 10, KEPT), None);
        assert_eq!(calendar.due(at(75), 69, 10, KEPT), Some(25));
        // Somebody has compacted more already.
        assert_eq!(calendar.due(at(80), 69, 69, KEPT), None);
    }

    #[test]
    fn what_is_many_is_forgotten_in_pieces() {
        let mut calendar = Calendar::default();
        assert_eq!(calendar.due(at(0), 110, -1, KEPT), None);
        assert_eq!(calendar.due(at(0), 111, -1, KEPT), Some(11));
        assert_eq!(calendar.due(at(0), 121, 11, KEPT), None);
        assert_eq!(calendar.due(at(0), 122, 11, KEPT), Some(22));
    }

    #[test]
    fn marks_do_not_pile_up() {
        let mut calendar = Calendar::default();
        for tick in 0..100_000_u64 {
            let now = Mono(tick * 500_000_000 + 1);
            calendar.note(now, 5, KEPT);
            calendar.due(now, 5, 5, KEPT);
        }
        assert!(calendar.marks.len() <= 61, "{}", calendar.marks.len());
    }
}
