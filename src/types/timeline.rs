//! Timelines, their history files, and where two histories part.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Lsn;

/// PostgreSQL's timeline number; grows by one at each promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimelineId(pub u32);

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One line of a history file: the timeline that ended and where the next one began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The timeline that ended.
    pub timeline: TimelineId,
    /// The first position that no longer belongs to it.
    pub switchpoint: Lsn,
    /// PostgreSQL's own words for why.
    pub reason: String,
}

/// How a timeline came to be: its ancestors, oldest first, and itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineHistory {
    /// The timeline that this history leads to.
    pub timeline: TimelineId,
    /// Its ancestors, oldest first. Empty for timeline 1.
    pub ancestors: Vec<HistoryEntry>,
}

/// A history file that could not be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("timeline history line {line_number}: {line:?} is not '<timeline> <position> <reason>' in growing order")]
pub struct InvalidHistory {
    /// 1-based.
    pub line_number: usize,
    /// The line as read.
    pub line: String,
}

impl TimelineHistory {
    /// Parses the text of `0000000N.history` for timeline `timeline`.
    ///
    /// # Errors
    /// Names the first line that is malformed or out of order.
    ///
    /// Source: PostgreSQL `timeline.c`, `readTimeLineHistory`.
    pub fn parse(timeline: TimelineId, text: &str) -> Result<Self, InvalidHistory> {
        let mut ancestors: Vec<HistoryEntry> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let bad = || InvalidHistory { line_number: index + 1, line: line.to_owned() };
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            let mut parts = trimmed.splitn(3, |c: char| c.is_ascii_whitespace());
            let number = parts.next().and_then(|t| t.parse().ok()).ok_or_else(bad)?;
            let switchpoint = parts.next().and_then(|t| t.parse().ok()).ok_or_else(bad)?;
            let reason = parts.next().unwrap_or("").trim().to_owned();
            let entry = HistoryEntry { timeline: TimelineId(number), switchpoint, reason };
            if ancestors.last().is_some_and(|last| entry.timeline <= last.timeline) || timeline <= entry.timeline {
                return Err(bad());
            }
            ancestors.push(entry);
        }
        Ok(Self { timeline, ancestors })
    }

    /// Where `timeline` ended on the way to `self.timeline`; none if it is not an ancestor.
    pub fn switchpoint_of(&self, timeline: TimelineId) -> Option<Lsn> {
        self.ancestors.iter().find(|e| e.timeline == timeline).map(|e| e.switchpoint)
    }

    /// The last position that a node on (`timeline`, `position`) shares with this history.
    ///
    /// None when nothing is shared at all. A node whose own position is at or below the answer can
    /// simply follow; one that is beyond it has diverged and must be rewound or rebuilt.
    pub fn shared_until(&self, theirs: &TimelineHistory, position: Lsn) -> Option<(TimelineId, Lsn)> {
        let end_of =
            |history: &TimelineHistory, timeline: TimelineId, current_end: Option<Lsn>| -> Option<Option<Lsn>> {
                if timeline == history.timeline {
                    return Some(current_end);
                }
                history.switchpoint_of(timeline).map(Some)
            };
        let mut timelines: Vec<TimelineId> = theirs.ancestors.iter().map(|e| e.timeline).collect();
        timelines.push(theirs.timeline);
        for timeline in timelines.into_iter().rev() {
            let Some(their_end) = end_of(theirs, timeline, Some(position)) else { continue };
            let Some(our_end) = end_of(self, timeline, None) else { continue };
            return match (their_end, our_end) {
                (Some(a), Some(b)) => Some((timeline, a.min(b))),
                (Some(a), None) | (None, Some(a)) => Some((timeline, a)),
                (None, None) => None,
            };
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(timeline: u32, ancestors: &[(u32, u64)]) -> TimelineHistory {
        TimelineHistory {
            timeline: TimelineId(timeline),
            ancestors: ancestors
                .iter()
                .map(|&(t, p)| HistoryEntry { timeline: TimelineId(t), switchpoint: Lsn(p), reason: String::new() })
                .collect(),
        }
    }

    #[test]
    fn parses_what_postgres_writes() {
        let text = "1\t0/3000060\tno recovery target specified\n\n2\t0/5000000\tbefore 2000-01-01 00:00:00+00\n";
        let parsed = TimelineHistory::parse(TimelineId(3), text).expect("valid");
        assert_eq!(parsed.ancestors.len(), 2);
        assert_eq!(parsed.switchpoint_of(TimelineId(1)), Some(Lsn(0x0300_0060)));
        assert!(TimelineHistory::parse(TimelineId(2), text).is_err(), "timeline 2 cannot be its own ancestor");
        assert!(TimelineHistory::parse(TimelineId(3), "1 zero why").is_err());
    }

    #[test]
    fn finds_where_histories_part() {
        let new_primary = history(3, &[(1, 100), (2, 200)]);
        // Behind on the same line: shares all it has.
        assert_eq!(new_primary.shared_until(&history(2, &[(1, 100)]), Lsn(150)), Some((TimelineId(2), Lsn(150))));
        // Old primary that wrote past the switch.
        assert_eq!(new_primary.shared_until(&history(2, &[(1, 100)]), Lsn(250)), Some((TimelineId(2), Lsn(200))));
        // Another child of timeline 1 under a number that the other side used differently.
        assert_eq!(new_primary.shared_until(&history(4, &[(1, 90)]), Lsn(500)), Some((TimelineId(1), Lsn(90))));
        assert_eq!(history(1, &[]).shared_until(&history(2, &[(1, 50)]), Lsn(80)), Some((TimelineId(1), Lsn(50))));
    }
}
