//! Sizes with their units, as PostgreSQL and Patroni write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes. Text: a plain number, or with B, kB, MB, GB, TB (1024-based, as PostgreSQL).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

/// How much of `total` is done, 0 to 100; none while the total is unknown or zero.
pub fn percent(done: u64, total: Option<u64>) -> Option<u8> {
    let total = total.filter(|total| 0 < *total)?;
    u8::try_from(done.min(total).saturating_mul(100) / total).ok()
}

/// A text that is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a size such as 1048576, 16MB or 1GB")]
pub struct InvalidByteSize(pub String);

impl ByteSize {
    /// `n` kibibytes.
    pub const fn kib(n: u64) -> Self {
        Self(n * 1024)
    }

    /// `n` mebibytes.
    pub const fn mib(n: u64) -> Self {
        Self(n * 1024 * 1024)
    }
}

impl FromStr for ByteSize {
    type Err = InvalidByteSize;
    fn from_str(text: &str) -> Result<Self, InvalidByteSize> {
        let bad = || InvalidByteSize(text.to_owned());
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kb" | "k" => 1 << 10,
            "mb" | "m" => 1 << 20,
            "gb" | "g" => 1 << 30,
            "tb" | "t" => 1 << 40,
            _ => return Err(bad()),
        };
        number.checked_mul(factor).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in [("TB", 40), ("GB", 30), ("MB", 20), ("kB", 10)] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_units() {
        assert_eq!("16MB".parse(), Ok(ByteSize::mib(16)));
        assert_eq!("1048576".parse(), Ok(ByteSize::mib(1)));
        assert_eq!(ByteSize::mib(1).to_string(), "1MB");
        assert_eq!(ByteSize(1025).to_string(), "1025B");
        assert!("16 parsecs".parse::<ByteSize>().is_err());
        assert!("99999999999TB".parse::<ByteSize>().is_err());
    }
}
