//! Leases: a number, a time to live, and the keys that die with it.
//!
//! Only the data. The countdown runs on the Raft leader's clock and ends in a
//! [`super::command::Command::LeasesExpire`]; here a lease lives until a command ends it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::error::Error;
use crate::types::LeaseId;

/// The longest time to live: 9,000,000,000 seconds, in milliseconds. Source: etcd's `MaxLeaseTTL`.
pub const MAX_LEASE_TTL_MS: u64 = 9_000_000_000 * 1000;

/// One lease, for reading.
#[derive(Debug, Clone, Copy)]
pub struct LeaseView<'a> {
    /// The granted time to live in milliseconds.
    pub ttl_ms: u64,
    /// The keys that hang on it, ascending.
    pub keys: &'a BTreeSet<Arc<[u8]>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Lease {
    ttl_ms: u64,
    keys: BTreeSet<Arc<[u8]>>,
}

/// All leases of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Leases {
    by_id: BTreeMap<LeaseId, Lease>,
}

impl Leases {
    /// The part of a grant's validity that needs no state.
    pub fn check_grant(id: LeaseId, ttl_ms: u64) -> Result<(), Error> {
        if id == LeaseId(0) {
            return Err(Error::LeaseNotFound);
        }
        if ttl_ms > MAX_LEASE_TTL_MS {
            return Err(Error::LeaseTtlTooLarge);
        }
        Ok(())
    }

    pub fn grant(&mut self, id: LeaseId, ttl_ms: u64) -> Result<(), Error> {
        Self::check_grant(id, ttl_ms)?;
        if self.contains(id) {
            return Err(Error::LeaseAlreadyExists);
        }
        self.by_id.insert(id, Lease { ttl_ms, keys: BTreeSet::new() });
        Ok(())
    }

    pub fn contains(&self, id: LeaseId) -> bool {
        self.by_id.contains_key(&id)
    }

    pub fn get(&self, id: LeaseId) -> Option<LeaseView<'_>> {
        self.by_id.get(&id).map(|lease| LeaseView { ttl_ms: lease.ttl_ms, keys: &lease.keys })
    }

    pub fn iter(&self) -> impl Iterator<Item = (LeaseId, u64)> {
        self.by_id.iter().map(|(id, lease)| (*id, lease.ttl_ms))
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Take a lease away and answer its keys, ascending. They still name it until they are deleted.
    pub fn remove(&mut self, id: LeaseId) -> Option<BTreeSet<Arc<[u8]>>> {
        self.by_id.remove(&id).map(|lease| lease.keys)
    }

    /// Hang `key` on lease `to` instead of `from`. Zero, and a lease that is just being removed, hold no keys.
    pub fn move_key(&mut self, key: &Arc<[u8]>, from: LeaseId, to: LeaseId) {
        if from == to {
            return;
        }
        if let Some(lease) = self.by_id.get_mut(&from) {
            lease.keys.remove(key);
        }
        if let Some(lease) = self.by_id.get_mut(&to) {
            lease.keys.insert(Arc::clone(key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Error, LeaseId, Leases, MAX_LEASE_TTL_MS};

    #[test]
    fn grants_are_checked() {
        let mut leases = Leases::default();
        assert_eq!(leases.grant(LeaseId(0), 1), Err(Error::LeaseNotFound));
        assert_eq!(leases.grant(LeaseId(1), MAX_LEASE_TTL_MS + 1), Err(Error::LeaseTtlTooLarge));
        assert_eq!(leases.grant(LeaseId(1), MAX_LEASE_TTL_MS), Ok(()));
        assert_eq!(leases.grant(LeaseId(1), 1), Err(Error::LeaseAlreadyExists));
        assert_eq!(leases.grant(LeaseId(-7), 5000), Ok(()));
        assert_eq!(leases.iter().collect::<Vec<_>>(), [(LeaseId(-7), 5000), (LeaseId(1), MAX_LEASE_TTL_MS)]);
    }

    #[test]
    fn a_key_hangs_on_one_lease() {
        let mut leases = Leases::default();
        leases.grant(LeaseId(1), 1).unwrap();
        leases.grant(LeaseId(2), 1).unwrap();
        let key = b"k"[..].into();
        leases.move_key(&key, LeaseId(0), LeaseId(1));
        leases.move_key(&key, LeaseId(1), LeaseId(2));
        assert_eq!(leases.get(LeaseId(1)).map(|lease| lease.keys.len()), Some(0));
        assert_eq!(leases.remove(LeaseId(2)).map(|keys| keys.len()), Some(1));
        leases.move_key(&key, LeaseId(2), LeaseId(0));
        assert_eq!(leases.len(), 1);
    }
}
