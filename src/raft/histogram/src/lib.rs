//! The part of `base2histogram`'s interface that openraft uses, with one bucket for each power of two.
//!
//! The original builds look-up tables for sixteen resolutions at first use, 25 MiB that stay resident, of which
//! openraft reads those of one. howdah shows none of the figures, and a node's memory is promised.
//! See `src/docs/decisions/0006-a-small-histogram.md`.

#![deny(unsafe_code, missing_docs)]

use std::fmt;
use std::marker::PhantomData;

/// Bucket 0 holds zeros, bucket `n` the values of `n` binary digits.
const BUCKETS: usize = 65;

/// Counts of values by their number of binary digits. The original keeps a `T` beside them, and openraft none.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: [u64; BUCKETS],
    nothing: PhantomData<T>,
}

/// Percentiles of a [`Histogram`]; each is the least value of the bucket that it falls into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    /// Number of values.
    pub samples: u64,
    /// 0.1 %.
    pub p0_1: u64,
    /// 1 %.
    pub p1: u64,
    /// 5 %.
    pub p5: u64,
    /// 10 %.
    pub p10: u64,
    /// 50 %.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p99_9: u64,
}

/// Histograms under their names, to be shown as text.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart {
    series: Vec<(String, Histogram)>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], nothing: PhantomData }
    }
}

impl<T> Histogram<T> {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value `times` times.
    pub fn record_n(&mut self, value: u64, times: u64) {
        let digits = u64::BITS - value.leading_zeros();
        if let Some(count) = self.counts.get_mut(digits as usize) {
            *count = count.saturating_add(times);
        }
    }

    /// How many values were counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The usual percentiles.
    pub fn percentile_stats(&self) -> PercentileStats {
        let samples = self.total();
        let at = |permille: u64| self.at(samples, permille);
        PercentileStats {
            samples,
            p0_1: at(1),
            p1: at(10),
            p5: at(50),
            p10: at(100),
            p50: at(500),
            p90: at(900),
            p99: at(990),
            p99_9: at(999),
        }
    }

    fn at(&self, samples: u64, permille: u64) -> u64 {
        let rank = (u128::from(samples) * u128::from(permille)).div_ceil(1000).max(1);
        let mut seen = 0_u128;
        for (digits, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if rank <= seen {
                return if digits == 0 { 0 } else { 1 << (digits - 1) };
            }
        }
        0
    }
}

impl<T> fmt::Debug for Histogram<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Histogram").field(&self.percentile_stats()).finish()
    }
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, p50, p90, p99, p99_9, .. } = self;
        write!(f, "{samples} samples, p50 {p50}, p90 {p90}, p99 {p99}, p99.9 {p99_9}")
    }
}

impl AsciiChart {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more series.
    #[must_use]
    pub fn add(mut self, name: impl Into<String>, histogram: Histogram) -> Self {
        self.series.push((name.into(), histogram));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, histogram) in &self.series {
            writeln!(f, "{name}: {}", histogram.percentile_stats())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_the_bucket_of_their_length() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile_stats().p50, 0);
        for value in [0, 1, 2, 3, 1000, u64::MAX] {
            histogram.record(value);
        }
        let stats = histogram.percentile_stats();
        assert_eq!(stats.samples, 6);
        assert_eq!((stats.p0_1, stats.p50, stats.p99_9), (0, 2, 1 << 63));
    }

    #[test]
    fn a_chart_names_its_series() {
        let mut histogram = Histogram::new();
        histogram.record_n(5, 1);
        let chart = AsciiChart::new().add("written", histogram).to_string();
        assert_eq!(chart, "written: 1 samples, p50 4, p90 4, p99 4, p99.9 4\n");
    }
}
