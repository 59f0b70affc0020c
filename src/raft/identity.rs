//! Who this node is in its store, decided once and kept on disk.
//!
//! The ids of a cluster's first members follow from cluster and name, so that all of them form the
//! same membership without talking about it. Everyone later, and everyone whose disk was lost, gets a
//! random id: an id that has voted must never come back with an empty log, it would vote twice.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::types::{ClusterName, NodeName};

/// How far this node's membership has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Ready to form a new cluster together with all configured members. Nothing was voted or stored.
    Forming,
    /// Has its id and asks to be taken in; has never been a voter.
    Joining,
    /// Has been a voter, or is about to be one.
    Member,
}

/// The identity record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The Raft id, never zero.
    pub id: u64,
    /// The node's name.
    pub name: String,
    /// The cluster's name.
    pub cluster: String,
    /// Zero from formation; a random number after each forced new cluster. Members of different
    /// generations refuse each other, so that left-behind members cannot overrule a forced one.
    pub generation: u64,
    /// How far the membership has come.
    pub stage: Stage,
}

/// The id of a first member: the first eight bytes of `sha256(cluster/name)`.
pub fn founding_id(cluster: &ClusterName, name: &NodeName) -> u64 {
    let digest = Sha256::digest(format!("{cluster}/{name}"));
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(bytes).max(1)
}

/// A random number that is not zero.
pub fn random_id() -> u64 {
    rand::random::<u64>().max(1)
}

/// `0011223344556677`, as ids are shown.
pub fn show(id: u64) -> String {
    format!("{id:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn founding_ids_are_fixed_and_differ() {
        let cluster: ClusterName = "demo".parse().expect("valid");
        let id = |name: &str| founding_id(&cluster, &name.parse().expect("valid"));
        // These numbers are on disks: they may never change.
        assert_eq!(show(id("n1")), "1c1c890c00392bca");
        assert_ne!(id("n1"), id("n2"));
    }
}
