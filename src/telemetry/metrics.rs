//! Prometheus' text format: names, help, labels, values.
//!
//! ```text
//! MetricsText::new(&[("scope", ..)]) -> gauge(..) counter(..) -> finish() -> the body of /metrics
//! ```
//! Deliberately absent: a registry. Values come from the published snapshot, not from counters spread over the code.
//!
//! Source: Prometheus documentation, "Exposition formats", text-based format 0.0.4.

use std::fmt::Write;

use super::histogram::Histogram;

/// Content type of the text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Builds one page of metrics. Each name must be used in one block only.
#[derive(Debug)]
pub struct MetricsText {
    text: String,
    common: String,
}

/// What kind of metric a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Goes up and down.
    Gauge,
    /// Only goes up.
    Counter,
    /// How long things took.
    Histogram,
}

impl MetricsText {
    /// A page whose every sample carries `labels`.
    pub fn new(labels: &[(&str, &str)]) -> Self {
        Self { text: String::with_capacity(8 * 1024), common: rendered(labels) }
    }

    /// A gauge with one sample.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.header(name, help, MetricKind::Gauge);
        self.sample(name, &[], value);
    }

    /// A counter with one sample.
    pub fn counter(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.header(name, help, MetricKind::Counter);
        self.sample(name, &[], value);
    }

    /// HELP and TYPE of `name`; its samples follow.
    pub fn header(&mut self, name: &str, help: &str, kind: MetricKind) {
        self.header_with_note(name, help, "", kind);
    }

    /// As [`Self::header`], with a comment line between HELP and TYPE unless `note` is empty.
    pub fn header_with_note(&mut self, name: &str, help: &str, note: &str, kind: MetricKind) {
        let kind = match kind {
            MetricKind::Gauge => "gauge",
            MetricKind::Counter => "counter",
            MetricKind::Histogram => "histogram",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let note = if note.is_empty() { String::new() } else { format!("# {note}\n") };
        let _ = write!(self.text, "# HELP {name} {help}\n{note}# TYPE {name} {kind}\n");
    }

    /// One sample of `name` with labels of its own.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let own = rendered(labels);
        let _ = match (self.common.as_str(), own.as_str()) {
            ("", "") => writeln!(self.text, "{name} {value}"),
            (labels, "") | ("", labels) => writeln!(self.text, "{name}{{{labels}}} {value}"),
            (common, own) => writeln!(self.text, "{name}{{{common},{own}}} {value}"),
        };
    }

    /// The samples of one histogram; its header stands before them.
    pub fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let (buckets, count, sum) = histogram.totals();
        let bucket = format!("{name}_bucket");
        let bounded = |bound: &str| -> Vec<(String, String)> {
            let own = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            own.chain([("le".to_owned(), bound.to_owned())]).collect()
        };
        let unbounded = [("+Inf".to_owned(), count)];
        for (bound, so_far) in buckets.iter().map(|(bound, n)| (bound.to_string(), *n)).chain(unbounded) {
            let labels = bounded(&bound);
            let labels: Vec<(&str, &str)> =
                labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            self.sample(&bucket, &labels, so_far);
        }
        self.sample(&format!("{name}_sum"), labels, sum);
        self.sample(&format!("{name}_count"), labels, count);
    }

    /// The page.
    pub fn finish(self) -> String {
        self.text
    }
}

fn rendered(labels: &[(&str, &str)]) -> String {
    let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let pairs: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    pairs.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_page() {
        let mut page = MetricsText::new(&[("scope", "a\"b")]);
        page.gauge("up", "Whether it is up.", 1);
        page.header("n_total", "Counts.", MetricKind::Counter);
        page.sample("n_total", &[("reason", "x\\y")], 2.5);
        assert_eq!(
            page.finish(),
            "# HELP up Whether it is up.\n# TYPE up gauge\nup{scope=\"a\\\"b\"} 1\n\
             # HELP n_total Counts.\n# TYPE n_total counter\nn_total{scope=\"a\\\"b\",reason=\"x\\\\y\"} 2.5\n"
        );
    }
}
