//! Names and numbers that identify things; parsed once.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not usable: {why}")]
pub struct InvalidName {
    /// Which kind of name, for example "node name".
    pub what: &'static str,
    /// The text that was refused.
    pub value: String,
    /// The rule that it breaks.
    pub why: &'static str,
}

fn check_name(what: &'static str, value: &str) -> Result<(), InvalidName> {
    let refuse = |why| Err(InvalidName { what, value: value.to_owned(), why });
    if value.is_empty() {
        return refuse("it is empty");
    }
    if value.len() > 63 {
        return refuse("it is longer than 63 bytes");
    }
    if !value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return refuse("only letters, digits, '-', '_' and '.' are allowed");
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(value: &str) -> Result<Self, InvalidName> {
                check_name($what, value)?;
                Ok(Self(value.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(value: String) -> Result<Self, InvalidName> {
                check_name($what, &value)?;
                Ok(Self(value))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// The cluster's name; Patroni calls it `scope`.
    ClusterName,
    "cluster name"
);
name!(
    /// A member's name, unique in its cluster. Also its `application_name` in replication.
    NodeName,
    "node name"
);

impl NodeName {
    /// The physical replication slot for this member: lower case, `-` and `.` become `_`, 63 bytes.
    ///
    /// Source: reference of Patroni's `slot_name_from_member_name`, so that existing slots are found.
    pub fn slot_name(&self) -> String {
        self.0.chars().map(|c| if matches!(c, '-' | '.') { '_' } else { c.to_ascii_lowercase() }).collect()
    }
}

/// PostgreSQL's database system identifier, from `pg_control`; decimal text for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for SystemId {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// A Raft member's number. Never zero. A wiped node comes back under a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RaftId(pub u64);

impl fmt::Display for RaftId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The term of a PostgreSQL leadership: the leader key's `create_revision`, unique and growing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Term(pub i64);

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A lease's number in the store, etcd's `ID`. Zero means "no lease".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub i64);

impl LeaseId {
    /// What the numbers of howdah's own leases begin with, "howd" where they are shown in hexadecimal. A number tells
    /// at once that a lease is not a client's, also on a node that has not heard yet which keys hang on it.
    const OWN: i64 = 0x686f_7764;

    /// A number for one of howdah's own leases.
    pub fn own(draw: u32) -> Self {
        Self(Self::OWN << 32 | i64::from(draw))
    }

    /// Whether it is one of them.
    pub fn is_own(self) -> bool {
        self.0 >> 32 == Self::OWN
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_leases_are_known_by_their_numbers() {
        for draw in [0, 1, u32::MAX] {
            assert!(LeaseId::own(draw).is_own() && LeaseId(0) < LeaseId::own(draw));
        }
        assert_eq!(LeaseId::own(0xab).to_string(), "686f7764000000ab");
        for others in [i64::MIN, -1, 0, 7, LeaseId::own(0).0 - 1, LeaseId::own(u32::MAX).0 + 1, i64::MAX] {
            assert!(!LeaseId(others).is_own(), "{others}");
        }
    }

    #[test]
    fn names_are_checked_and_slots_follow() {
        assert!("n1".parse::<NodeName>().is_ok());
        assert!("".parse::<NodeName>().is_err());
        assert!("a/b".parse::<NodeName>().is_err());
        assert_eq!("PG-1.eu".parse::<NodeName>().map(|n| n.slot_name()), Ok("pg_1_eu".to_owned()));
    }
}
