//! The only place that reads a clock; everything else is told the time.

use rustix::time::{ClockId, clock_gettime};

use crate::types::{Mono, WallTime};

/// The moment now, on the clock that also counts suspension.
pub fn now() -> Mono {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let spec = clock_gettime(ClockId::Boottime);
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let spec = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(spec.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(spec.tv_nsec).unwrap_or(0);
    Mono(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// The wall clock, for people and records only.
pub fn wall() -> WallTime {
    let spec = clock_gettime(ClockId::Realtime);
    WallTime(spec.tv_sec.saturating_mul(1000).saturating_add(spec.tv_nsec / 1_000_000))
}
