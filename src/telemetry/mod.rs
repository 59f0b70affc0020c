//! What the program tells about itself: clocks, logs, metrics, and secrets that stay out of them.

pub mod clock;
pub mod histogram;
pub mod log;
pub mod metrics;
pub mod redact;
