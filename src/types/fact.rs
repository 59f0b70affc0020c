//! Three-valued facts: "could not read" is never "absent".

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Something that a decision may use, with how well it is known.
///
/// A rule that looks at a fact must say what it does when blind: there is no default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact<T> {
    /// Read for this very decision.
    Fresh(T),
    /// Read some time ago; the newer attempt failed or has not finished.
    Stale {
        /// The last value that was read.
        value: T,
        /// How long ago it was read.
        age: Duration,
    },
    /// Never read, or read so long ago that it says nothing.
    Unknown {
        /// Why it is not known, in words for people.
        why: String,
    },
}

impl<T> Fact<T> {
    /// Builds an unknown fact from its cause.
    pub fn unknown(why: impl Into<String>) -> Self {
        Self::Unknown { why: why.into() }
    }

    /// The value if it was read for this decision.
    pub fn fresh(&self) -> Option<&T> {
        match self {
            Self::Fresh(value) => Some(value),
            Self::Stale { .. } | Self::Unknown { .. } => None,
        }
    }

    /// The value however old it is. For display and for rules where age does no harm.
    pub fn any(&self) -> Option<&T> {
        match self {
            Self::Fresh(value) | Self::Stale { value, .. } => Some(value),
            Self::Unknown { .. } => None,
        }
    }

    /// Applies `f` to the value, keeping how well it is known.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Fact<U> {
        match self {
            Self::Fresh(value) => Fact::Fresh(f(value)),
            Self::Stale { value, age } => Fact::Stale { value: f(value), age },
            Self::Unknown { why } => Fact::Unknown { why },
        }
    }
}
