//! True time, which only the world knows, and the clocks of the nodes, which run fast or slow within the margin.

use std::time::Duration;

use howdah::types::Mono;

/// A millisecond and a second of true time, which is counted in nanoseconds.
pub const MS: u64 = 1_000_000;
pub const SEC: u64 = 1000 * MS;

/// How much a clock may run fast or slow, in millionths: two nodes differ by one percent at most, which is what the
/// margin of a permit allows for.
pub const DRIFT: i64 = 5_000;

/// A clock that also counts suspension: nothing that happens to its node stops it.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    pub offset: u64,
    pub ppm: i64,
}

impl Clock {
    pub fn at(&self, now: u64) -> Mono {
        let drift = i128::from(now) * i128::from(self.ppm) / 1_000_000;
        Mono(u64::try_from(i128::from(self.offset + now) + drift).unwrap())
    }

    /// The first moment of true time at which this clock shows `at`.
    pub fn when(&self, at: Mono) -> u64 {
        let local = i128::from(at.0.saturating_sub(self.offset));
        let scaled = local * 1_000_000 / i128::from(1_000_000 + self.ppm);
        u64::try_from(scaled).unwrap() + 2
    }

    /// How much true time passes while this clock counts `span`.
    pub fn lasts(&self, span: Duration) -> u64 {
        let nanos = i128::try_from(span.as_nanos()).unwrap();
        u64::try_from(nanos * 1_000_000 / i128::from(1_000_000 + self.ppm)).unwrap() + 1
    }
}
