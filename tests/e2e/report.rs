//! Judges a run: which acknowledged writes are missing, how long nobody could write, who wrote when.
//!
//! acks (who, where, sent, received) + the rows that the last primary holds -> [`Report`]. Pure.
//! The client's pause is the longest gap between acks of one follower; the server's pause is the longest
//! gap between acks of all direct writers together, that is without the clients' time to reconnect.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::Duration;

use howdah::types::Mono;

/// One write: the writer, and the number it gave to this attempt. No number is used twice.
pub type Id = (String, i64);

/// A commit that a client was told of.
#[derive(Debug, Clone)]
pub struct Ack {
    /// Which write.
    pub id: Id,
    /// The node that answered.
    pub node: String,
    /// Just before the INSERT was sent.
    pub sent: Mono,
    /// Just after the answer had come.
    pub received: Mono,
}

/// An attempt that brought no ack. `id` and `why` are for the people who read a failed test.
#[derive(Debug, Clone)]
#[allow(dead_code)] // read by Debug
pub struct Failure {
    /// Which write.
    pub id: Id,
    /// The node that was asked.
    pub node: String,
    /// When the client knew.
    pub at: Mono,
    /// SQLSTATE, or what became of the connection.
    pub why: String,
}

/// What a run came to.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Every ack, in order of arrival.
    pub acks: Vec<Ack>,
    /// Every attempt without one.
    pub failures: Vec<Failure>,
    /// Acknowledged and not there in the end.
    pub lost: Vec<Id>,
    /// There more than once.
    pub duplicates: usize,
    /// There, though nobody was told: allowed, and counted.
    pub unconfirmed: usize,
}

/// Acks of an old primary in the time of the new one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overlap {
    /// For writes *sent* after the new primary had acknowledged one: two writers at a time.
    pub split: usize,
    /// For writes sent before, *received* after: on the way when the new primary began.
    pub late: usize,
    /// From the new primary's first ack to the old one's last.
    pub span: Duration,
}

/// A stretch of time, without its ends.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    pub from: Mono,
    pub to: Mono,
}

impl Report {
    /// Compares what was acknowledged with the rows that are there.
    pub fn new(mut acks: Vec<Ack>, failures: Vec<Failure>, rows: &[Id]) -> Self {
        acks.sort_by_key(|ack| ack.received);
        let present: BTreeSet<&Id> = rows.iter().collect();
        let acked: BTreeSet<&Id> = acks.iter().map(|ack| &ack.id).collect();
        let lost = acked.iter().filter(|id| !present.contains(**id)).map(|id| (*id).clone()).collect();
        let duplicates = rows.len() - present.len();
        let unconfirmed = present.iter().filter(|id| !acked.contains(**id)).count();
        Self { lost, duplicates, unconfirmed, acks, failures }
    }

    /// Lost writes of each writer that lost any.
    pub fn lost_by_writer(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for (writer, _) in &self.lost {
            *counts.entry(writer.as_str()).or_default() += 1;
        }
        counts
    }

    /// The longest time in the window in which some follower got no ack.
    pub fn client_gap(&self, window: Window) -> Duration {
        let followers: BTreeSet<&str> = self.acks.iter().map(|a| a.id.0.as_str()).filter(|w| is_follower(w)).collect();
        followers.iter().map(|one| self.gap(window, |writer| writer == *one)).max().unwrap_or_default()
    }

    /// The longest time in the window in which no direct writer got an ack from any node.
    pub fn server_gap(&self, window: Window) -> Duration {
        self.gap(window, |writer| writer.contains("direct"))
    }

    fn gap(&self, window: Window, whose: impl Fn(&str) -> bool) -> Duration {
        let Window { from, to } = window;
        let times: Vec<Mono> = self.acks.iter().filter(|ack| whose(&ack.id.0)).map(|ack| ack.received).collect();
        let before = times.iter().filter(|time| **time <= from).max().copied().unwrap_or(from);
        let after = times.iter().filter(|time| **time >= to).min().copied().unwrap_or(to);
        let inside = times.iter().filter(|time| from < **time && **time < to).copied();
        let mut last = before;
        let mut longest = Duration::ZERO;
        for time in inside.chain([after]) {
            longest = longest.max(time.since(last));
            last = time;
        }
        longest
    }

    /// The first ack that a direct writer got from `node` for a write sent after `since`.
    pub fn first_write(&self, node: &str, since: Mono) -> Option<Mono> {
        first_write(&self.acks, node, since)
    }

    /// Acks of `old` in the time of `new`: from the first write that `new` acknowledged in the window to its end.
    pub fn overlap(&self, old: &str, new: &str, window: Window) -> Overlap {
        let Window { from, to } = window;
        let of_new = self.acks.iter().filter(|ack| ack.node == new && ack.sent > from && ack.received < to);
        let Some(began) = of_new.map(|ack| ack.received).min() else { return Overlap::default() };
        let mut overlap = Overlap::default();
        for ack in self.acks.iter().filter(|ack| ack.node == old && began < ack.received && ack.received < to) {
            if ack.sent > began {
                overlap.split += 1;
            } else {
                overlap.late += 1;
            }
            overlap.span = overlap.span.max(ack.received.since(began));
        }
        overlap
    }

    /// Attempts on `node` within the window that brought no ack.
    pub fn failures_on(&self, node: &str, window: Window) -> Vec<&Failure> {
        let Window { from, to } = window;
        self.failures.iter().filter(|failure| failure.node == node && from < failure.at && failure.at < to).collect()
    }
}

/// Prints a figure so that it is seen in the output of a passing test too.
pub fn measured(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "measured: {text}");
}

/// The first ack in time that a direct writer got from `node` for a write sent after `since`.
pub fn first_write(acks: &[Ack], node: &str, since: Mono) -> Option<Mono> {
    let direct = |ack: &&Ack| ack.node == node && ack.sent > since && !is_follower(&ack.id.0);
    acks.iter().filter(direct).map(|ack| ack.received).min()
}

fn is_follower(writer: &str) -> bool {
    writer.contains("follower")
}

mod tests {
    use super::*;

    fn ms(value: u64) -> Mono {
        Mono(value * 1_000_000)
    }

    fn ack(writer: &str, seq: i64, node: &str, times: [u64; 2]) -> Ack {
        Ack { id: (writer.to_owned(), seq), node: node.to_owned(), sent: ms(times[0]), received: ms(times[1]) }
    }

    #[test]
    fn lost_duplicate_and_unconfirmed_rows_are_told_apart() {
        let acks = vec![ack("direct-n1", 1, "n1", [0, 1]), ack("direct-n1", 2, "n1", [1, 2])];
        let row = |seq| ("direct-n1".to_owned(), seq);
        let report = Report::new(acks, Vec::new(), &[row(1), row(1), row(3)]);
        assert_eq!(report.lost, [row(2)]);
        assert_eq!(report.lost_by_writer(), BTreeMap::from([("direct-n1", 1)]));
        assert_eq!((report.duplicates, report.unconfirmed), (1, 1));
    }

    #[test]
    fn an_ack_counts_as_split_only_when_it_was_sent_after_the_new_primary_wrote() {
        let acks = vec![
            ack("direct-n1", 1, "n1", [0, 10]),
            ack("direct-n2", 1, "n2", [95, 100]),
            ack("direct-n1", 2, "n1", [90, 110]),
            ack("direct-n1", 3, "n1", [101, 130]),
        ];
        let report = Report::new(acks, Vec::new(), &[]);
        let window = |from, to| Window { from: ms(from), to: ms(to) };
        let both = Overlap { split: 1, late: 1, span: Duration::from_millis(30) };
        assert_eq!(report.overlap("n1", "n2", window(20, 200)), both);
        assert_eq!(
            report.overlap("n1", "n2", window(20, 120)),
            Overlap { split: 0, late: 1, span: Duration::from_millis(10) }
        );
        assert_eq!(report.overlap("n1", "n3", window(20, 200)), Overlap::default());
    }

    #[test]
    fn a_gap_at_the_edge_of_the_window_counts_whole() {
        let acks = vec![
            ack("follower-1", 1, "n1", [0, 10]),
            ack("direct-n1", 1, "n1", [0, 12]),
            ack("direct-n2", 1, "n2", [40, 50]),
            ack("follower-1", 2, "n2", [60, 90]),
        ];
        let report = Report::new(acks, Vec::new(), &[]);
        assert_eq!(report.client_gap(Window { from: ms(20), to: ms(30) }), Duration::from_millis(80));
        assert_eq!(report.server_gap(Window { from: ms(20), to: ms(95) }), Duration::from_millis(45));
    }
}
