//! Every key of the shared record.

use crate::types::{ClusterName, NodeName};

/// Where one cluster's keys live: `/<namespace>/<scope>/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySpace {
    prefix: String,
}

/// One key of the record. Source of names and values: Patroni's DCS layout.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// The database system identifier; empty while a bootstrap runs.
    Initialize,
    /// The name of the node that may write. Its `create_revision` is the term.
    Leader,
    /// What a member says of itself, on the member's lease.
    Member(NodeName),
    /// Dynamic configuration, JSON.
    Config,
    /// The leader's last WAL position.
    Status,
    /// A requested switchover or failover; cleared by writing `{}`.
    Failover,
    /// Synchronous replication state.
    Sync,
    /// Timeline history with who was promoted when.
    History,
    /// Ours: to whom a stopped primary handed over, and the proof that the successor has everything.
    Handover,
    /// Ours: which node is creating the cluster, on that node's lease.
    Bootstrap,
    /// Ours: passwords that were generated rather than configured.
    Credentials,
    /// Ours: how the last leadership was ended by its holder, for the next entry of the timeline.
    Ended,
    /// Ours: what has happened to the leadership, for people.
    Timeline,
    /// Ours: which timeline numbers are used up.
    Reserved,
}

impl KeySpace {
    /// The key space of `scope` under `namespace` (slashes around the namespace do not matter).
    pub fn new(namespace: &str, scope: &ClusterName) -> Self {
        let namespace = namespace.trim_matches('/');
        let prefix = if namespace.is_empty() { format!("/{scope}/") } else { format!("/{namespace}/{scope}/") };
        Self { prefix }
    }

    /// What all keys of the cluster begin with.
    pub fn prefix(&self) -> &[u8] {
        self.prefix.as_bytes()
    }

    /// The bytes of `key`.
    pub fn key(&self, key: &Key) -> Vec<u8> {
        let tail = match key {
            Key::Initialize => "initialize",
            Key::Leader => "leader",
            Key::Member(name) => return format!("{}members/{name}", self.prefix).into_bytes(),
            Key::Config => "config",
            Key::Status => "status",
            Key::Failover => "failover",
            Key::Sync => "sync",
            Key::History => "history",
            Key::Handover => "howdah/handover",
            Key::Bootstrap => "howdah/bootstrap",
            Key::Credentials => "howdah/credentials",
            Key::Ended => "howdah/ended",
            Key::Timeline => "howdah/timeline",
            Key::Reserved => "howdah/reserved",
        };
        format!("{}{tail}", self.prefix).into_bytes()
    }

    /// The key behind `bytes`; none for another cluster's or a foreign key.
    pub fn parse(&self, bytes: &[u8]) -> Option<Key> {
        let tail = std::str::from_utf8(bytes.strip_prefix(self.prefix())?).ok()?;
        Some(match tail {
            "initialize" => Key::Initialize,
            "leader" => Key::Leader,
            "config" => Key::Config,
            "status" => Key::Status,
            "failover" => Key::Failover,
            "sync" => Key::Sync,
            "history" => Key::History,
            "howdah/handover" => Key::Handover,
            "howdah/bootstrap" => Key::Bootstrap,
            "howdah/credentials" => Key::Credentials,
            "howdah/ended" => Key::Ended,
            "howdah/timeline" => Key::Timeline,
            "howdah/reserved" => Key::Reserved,
            other => Key::Member(other.strip_prefix("members/")?.parse().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_comes_back() {
        let space = KeySpace::new("/service/", &"demo".parse().expect("valid"));
        let member = Key::Member("n1".parse().expect("valid"));
        for key in [
            Key::Initialize,
            Key::Leader,
            member,
            Key::Config,
            Key::Status,
            Key::Failover,
            Key::Sync,
            Key::History,
            Key::Handover,
            Key::Bootstrap,
            Key::Credentials,
            Key::Ended,
            Key::Timeline,
            Key::Reserved,
        ] {
            assert_eq!(space.parse(&space.key(&key)), Some(key));
        }
        assert_eq!(space.key(&Key::Leader), b"/service/demo/leader".to_vec());
        assert_eq!(space.parse(b"/service/other/leader"), None);
        assert_eq!(space.parse(b"/service/demo/members/a b"), None);
    }
}
