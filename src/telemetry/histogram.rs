//! A histogram of durations with fixed bounds that double, as Prometheus wants it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bounds of one histogram.
const BUCKETS: usize = 16;

/// Counts durations; any thread may add.
#[derive(Debug)]
pub struct Histogram {
    /// The first bound; each next one is twice as long.
    first: Duration,
    bounds: usize,
    /// One more than there are bounds: what is longer than all of them.
    counts: [AtomicU64; BUCKETS + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// `bounds` bounds, at most sixteen, beginning with `first`.
    pub const fn new(first: Duration, bounds: usize) -> Self {
        assert!(bounds <= BUCKETS, "there are so many counters");
        Self { first, bounds, counts: [const { AtomicU64::new(0) }; BUCKETS + 1], sum_us: AtomicU64::new(0) }
    }

    /// Adds one.
    pub fn observe(&self, duration: Duration) {
        let bucket = (0..self.bounds).find(|bucket| duration <= self.bound(*bucket)).unwrap_or(self.bounds);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.sum_us.fetch_add(micros, Ordering::Relaxed);
    }

    fn bound(&self, bucket: usize) -> Duration {
        self.first * (1 << bucket)
    }

    /// Each bound in seconds with how many were not longer; then how many there were, and their sum in seconds.
    pub fn totals(&self) -> (Vec<(f64, u64)>, u64, f64) {
        let mut so_far = 0;
        let mut cumulated = Vec::with_capacity(self.bounds);
        for bucket in 0..self.bounds {
            so_far += self.counts[bucket].load(Ordering::Relaxed);
            cumulated.push((self.bound(bucket).as_secs_f64(), so_far));
        }
        let all = so_far + self.counts[self.bounds].load(Ordering::Relaxed);
        (cumulated, all, Duration::from_micros(self.sum_us.load(Ordering::Relaxed)).as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_between_bounds() {
        let histogram = Histogram::new(Duration::from_millis(1), 3);
        for micros in [1, 1000, 1001, 4000, 4001, 1_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let (buckets, all, sum) = histogram.totals();
        assert_eq!(buckets, [(0.001, 2), (0.002, 3), (0.004, 4)]);
        assert_eq!((all, sum), (6, 1.010003));
    }
}
