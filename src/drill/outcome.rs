//! What a drill has shown, as numbers; and the little arithmetic that makes them.

use std::time::Duration;

use serde::Serialize;

use super::load::{Ack, Counters, Proof};
use crate::types::{Mono, WallTime};

/// Bars of the plot are so wide.
pub const BIN: Duration = Duration::from_millis(50);

/// The result of a drill.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// What was done: `switchover`, `kill-node`, ...
    pub kind: String,
    /// The cluster's name.
    pub cluster: String,
    /// When it was done, for people.
    pub at: WallTime,
    /// The primary before.
    pub old: String,
    /// The primary after.
    pub new: String,
    /// The longest time without an acknowledged write, in milliseconds.
    pub write_outage_ms: u64,
    /// The longest time without an answered read.
    pub read_outage_ms: u64,
    /// Until all nodes were well again, from the fault on. None: not within the drill.
    pub healthy_after_ms: Option<u64>,
    /// Writes whose clients were told that they are committed.
    pub acknowledged: u64,
    /// Of these, not there afterwards.
    pub lost: u64,
    /// There more than once: repeated after an answer that got lost.
    pub duplicated: u64,
    /// Sent once more because the outcome was not known.
    pub retried: u64,
    /// Connections that routers refused, or that broke while they were opened. None: not through routers.
    pub refused_connections: Option<u64>,
    /// The median and the longest time that a write took, in milliseconds.
    pub latency_ms: [f64; 2],
    /// Entries of the timeline that this has made, as `/timeline` has them.
    pub changes: Vec<serde_json::Value>,
    /// Acknowledged writes in each bin of `bin_ms`, from `plot_from_ms` on (the fault is at zero).
    pub plot: Vec<u32>,
    /// Width of a bin.
    pub bin_ms: u64,
    /// Where the plot begins.
    pub plot_from_ms: i64,
}

/// What is measured, before it is named.
#[derive(Debug, Clone)]
pub struct Measured {
    /// When the fault was made.
    pub fault: Mono,
    /// When it was over.
    pub end: Mono,
    /// Every acknowledgement.
    pub acks: Vec<Ack>,
    /// Every answered read.
    pub reads: Vec<Mono>,
    /// What was counted.
    pub counters: Counters,
    /// What the database has.
    pub proof: Proof,
}

/// The longest gap between two moments that touches the time from `fault` on. Without any moment after it: until `end`.
pub fn longest_gap(moments: &[Mono], fault: Mono, end: Mono) -> Duration {
    let mut longest = Duration::ZERO;
    let mut last: Option<Mono> = None;
    for moment in moments.iter().copied().chain([end]) {
        if let Some(last) = last
            && fault < moment
        {
            longest = longest.max(moment.since(last));
        }
        last = Some(moment);
    }
    longest
}

/// How many moments fall into each bin of the time around `fault`.
pub fn bins(moments: &[Mono], from: Mono, end: Mono) -> Vec<u32> {
    let width = BIN.as_nanos().max(1);
    let count = usize::try_from(end.since(from).as_nanos() / width + 1).unwrap_or(1);
    let mut bins = vec![0_u32; count];
    for moment in moments.iter().filter(|moment| from <= **moment) {
        let place = usize::try_from(moment.since(from).as_nanos() / width).unwrap_or(usize::MAX);
        if let Some(bin) = bins.get_mut(place) {
            *bin += 1;
        }
    }
    bins
}

/// The median and the longest, in milliseconds.
pub fn latency(acks: &[Ack]) -> [f64; 2] {
    let mut spans: Vec<Duration> = acks.iter().map(|ack| ack.took).collect();
    spans.sort_unstable();
    let ms = |span: Option<&Duration>| span.map_or(0.0, |span| span.as_secs_f64() * 1000.0);
    [ms(spans.get(spans.len() / 2)), ms(spans.last())]
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

impl Outcome {
    /// Fills in what is measured. The caller adds who led, and what the timeline says.
    pub fn of(kind: &str, measured: &Measured) -> Self {
        let Measured { fault, end, acks, reads, counters, proof } = measured;
        let moments: Vec<Mono> = acks.iter().map(|ack| ack.at).collect();
        let from = fault.minus(Duration::from_secs(2)).max(moments.first().copied().unwrap_or(*fault)).min(*fault);
        Self {
            kind: kind.to_owned(),
            cluster: String::new(),
            at: WallTime::default(),
            old: String::new(),
            new: String::new(),
            write_outage_ms: millis(longest_gap(&moments, *fault, *end)),
            read_outage_ms: millis(longest_gap(reads, *fault, *end)),
            healthy_after_ms: None,
            acknowledged: counters.acknowledged,
            lost: proof.lost,
            duplicated: proof.duplicated,
            retried: counters.retried,
            refused_connections: None,
            latency_ms: latency(acks),
            changes: Vec::new(),
            plot: bins(&moments, from, *end),
            bin_ms: millis(BIN),
            plot_from_ms: -i64::try_from(fault.since(from).as_millis()).unwrap_or(0),
        }
    }

    /// The result for people.
    pub fn text(&self) -> String {
        let seconds = |ms: u64| format!("{}.{:03} s", ms / 1000, ms % 1000);
        let moved = if self.old == self.new {
            format!("{} leads as before", self.new)
        } else {
            format!("{} -> {}", self.old, self.new)
        };
        let mut lines = vec![
            format!("{} of {}: {moved}", self.kind, self.cluster),
            format!("  no write for     {}", seconds(self.write_outage_ms)),
            format!("  no read for      {}", seconds(self.read_outage_ms)),
            format!(
                "  acknowledged     {} writes, {} lost, {} duplicated",
                self.acknowledged, self.lost, self.duplicated
            ),
            format!("  retried          {}", self.retried),
        ];
        if let Some(refused) = self.refused_connections {
            lines.push(format!("  refused          {refused} connections through routers"));
        }
        lines.push(format!(
            "  a write took     {:.1} ms (median), {:.1} ms (longest)",
            self.latency_ms[0], self.latency_ms[1]
        ));
        match self.healthy_after_ms {
            Some(ms) => lines.push(format!("  all well after   {}", seconds(ms))),
            None => lines.push("  not all well yet when this ended".to_owned()),
        }
        for change in &self.changes {
            lines.push(format!("  {}", change_line(change)));
        }
        lines.join("\n")
    }
}

/// An entry of the timeline in one line.
pub fn change_line(change: &serde_json::Value) -> String {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let phases: Vec<String> = ["detect", "decide", "fence", "promote", "route"]
        .iter()
        .filter_map(|phase| Some(format!("{phase} {}", change["phases"][format!("{phase}_ms")].as_u64()?)))
        .collect();
    let mut line = format!("{} {} in {} ms", text(&change["kind"]), text(&change["node"]), change["total_ms"]);
    if !phases.is_empty() {
        line.push_str(&format!(" ({})", phases.join(", ")));
    }
    line.push_str(&format!(": {}", text(&change["cause"]["sentence"])));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono((10_000 + ms) * 1_000_000)
    }

    fn sample() -> Measured {
        let moments = [0, 10, 20, 30, 700, 710, 990];
        let acks = moments.map(|ms| Ack { at: at(ms), took: Duration::from_millis(ms / 10) }).to_vec();
        let counters = Counters { acknowledged: 7, retried: 2, ..Counters::default() };
        let proof = Proof { lost: 0, duplicated: 1 };
        Measured { fault: at(25), end: at(1000), acks, reads: vec![at(0), at(400)], counters, proof }
    }

    #[test]
    fn the_outage_is_the_longest_gap_after_the_fault() {
        let outcome = Outcome::of("switchover", &sample());
        assert_eq!((outcome.write_outage_ms, outcome.read_outage_ms), (670, 600));
        assert_eq!(outcome.latency_ms, [3.0, 99.0]);
        assert_eq!(outcome.plot.iter().sum::<u32>(), 7, "{:?}", outcome.plot);
        assert_eq!((outcome.plot[0], outcome.plot_from_ms, outcome.bin_ms), (4, -25, 50));
        // A gap that was over before the fault is none of its doing.
        let quiet = longest_gap(&[at(0), at(500), at(510), at(520)], at(505), at(530));
        assert_eq!(quiet, Duration::from_millis(10));
        // Never again: until the end.
        assert_eq!(longest_gap(&[at(0), at(20)], at(25), at(1000)), Duration::from_millis(980));
    }

    #[test]
    fn the_text_names_every_number() {
        let mut outcome = Outcome::of("kill-node", &sample());
        (outcome.old, outcome.new, outcome.cluster) = ("n1".into(), "n2".into(), "demo".into());
        outcome.changes.push(serde_json::json!({
            "kind": "failover", "node": "n2", "total_ms": 670, "phases": {"detect_ms": 600, "promote_ms": 70},
            "cause": {"sentence": "n1 fell silent, and its lease ran out"},
        }));
        let text = outcome.text();
        for said in [
            "kill-node of demo: n1 -> n2",
            "no write for     0.670 s",
            "7 writes, 0 lost, 1 duplicated",
            "retried          2",
            "failover n2 in 670 ms (detect 600, promote 70): n1 fell silent, and its lease ran out",
        ] {
            assert!(text.contains(said), "{said}\n{text}");
        }
    }
}
