//! What the nodes say about themselves over REST, and what follows from it.
//!
//! GET /patroni and GET /howdah of every node at once -> [`Seen`] -> primary? healthy? who leads Raft?
//! Judged only from what a user of the API can see; nothing looks inside a node.

use std::time::Duration;

use howdah::dev::layout::Layout;
use howdah::dev::rest;
use serde_json::Value;

/// A node that does not answer within this is taken as silent.
const PATIENCE: Duration = Duration::from_millis(700);

/// One node's answers; null where it stayed silent.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The node.
    pub name: String,
    /// `GET /patroni`.
    pub patroni: Value,
    /// `GET /howdah`.
    pub howdah: Value,
}

impl Seen {
    fn text(&self, field: &str) -> &str {
        self.patroni.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    fn is_running_primary(&self) -> bool {
        self.text("role") == "primary" && self.text("state") == "running"
    }

    fn timeline(&self) -> Option<i64> {
        self.patroni.get("timeline").and_then(Value::as_i64)
    }

    /// Whether this node, as a primary, streams to `name`.
    fn sends_to(&self, name: &str) -> bool {
        let rows = self.patroni.get("replication").and_then(Value::as_array);
        rows.is_some_and(|rows| rows.iter().any(|row| row["application_name"] == name && row["state"] == "streaming"))
    }

    /// Whether this node has read in the record that `name` runs: until then it refuses to hand over to it.
    pub fn knows(&self, name: &str) -> bool {
        let members = self.howdah.pointer("/snapshot/cluster/members").and_then(Value::as_array);
        members
            .is_some_and(|members| members.iter().any(|member| member["name"] == name && member["state"] == "running"))
    }

    /// A few lines for a person: what the node is, its part in the store, and its last decisions.
    pub fn summary(&self) -> String {
        if self.patroni.is_null() {
            return "(nothing)".to_owned();
        }
        let part = |path: &str| self.howdah.pointer(path).cloned().unwrap_or_default();
        let raft = format!(
            "{} of {}, term {}",
            part("/snapshot/raft/role"),
            part("/snapshot/raft/leader"),
            part("/snapshot/raft/term")
        );
        let decisions = part("/snapshot/decisions");
        let rows = decisions.as_array().cloned().unwrap_or_default();
        let last = rows.iter().rev().take(3).rev().map(|row| format!("\n    decided: {row}"));
        format!("{}\n    raft: {raft}{}", self.patroni, last.collect::<String>())
    }
}

/// Asks all nodes at the same time, so that frozen ones cost one time-out and not their sum.
pub fn all(layout: &Layout) -> Vec<Seen> {
    let ask = |address, path| rest::get(address, path, PATIENCE).map(|answer| answer.json()).unwrap_or(Value::Null);
    std::thread::scope(|scope| {
        let asked: Vec<_> = layout
            .nodes()
            .into_iter()
            .map(|node| {
                scope.spawn(move || Seen {
                    patroni: ask(node.rest, "/patroni"),
                    howdah: ask(node.rest, "/howdah"),
                    name: node.name,
                })
            })
            .collect();
        asked.into_iter().map(|thread| thread.join().expect("asking does not panic")).collect()
    })
}

/// The one node that says it is the running primary.
pub fn primary(seen: &[Seen]) -> Option<String> {
    let mut primaries = seen.iter().filter(|node| node.is_running_primary());
    match (primaries.next(), primaries.next()) {
        (Some(only), None) => Some(only.name.clone()),
        _ => None,
    }
}

/// Whether `name` streams as a replica of the one primary: both sides say so, on the same timeline, and in the record.
pub fn is_streaming(seen: &[Seen], name: &str) -> bool {
    let Some(primary) = primary(seen) else { return false };
    let Some(primary) = seen.iter().find(|node| node.name == primary) else { return false };
    let replica = seen.iter().any(|node| {
        node.name == name
            && node.text("role") == "replica"
            && node.text("state") == "running"
            && node.text("replication_state") == "streaming"
            && node.timeline() == primary.timeline()
            && node.knows(name)
    });
    replica && primary.sends_to(name) && primary.knows(name)
}

/// Whether there is one primary and every other node streams from it.
pub fn is_healthy(seen: &[Seen]) -> bool {
    let Some(primary) = primary(seen) else { return false };
    seen.iter().all(|node| node.name == primary || is_streaming(seen, &node.name)) && is_protected(seen)
}

/// Whether a failover would lose nothing, as far as that was asked for: the record of the primary counts on every replica
/// that it can.
pub fn is_protected(seen: &[Seen]) -> bool {
    let Some(primary) = primary(seen) else { return false };
    let Some(primary) = seen.iter().find(|node| node.name == primary) else { return false };
    let part = |path: &str| primary.howdah.pointer(&format!("/snapshot/cluster/{path}")).cloned().unwrap_or_default();
    let counted = part("sync/standbys").as_array().map_or(0, Vec::len);
    let wanted = match part("settings/synchronous_mode").as_str() {
        Some("quorum") => seen.len() - 1,
        Some("on") => part("settings/synchronous_node_count").as_u64().map_or(0, |n| usize::try_from(n).unwrap_or(0)),
        _ => 0,
    };
    wanted <= counted
}

/// The timeline of the one primary.
pub fn timeline(seen: &[Seen]) -> Option<i64> {
    let primary = primary(seen)?;
    seen.iter().find(|node| node.name == primary).and_then(Seen::timeline)
}

/// The term of the leadership, as the one primary knows it.
pub fn leader_term(seen: &[Seen]) -> Option<i64> {
    let primary = primary(seen)?;
    let primary = seen.iter().find(|node| node.name == primary)?;
    primary.howdah.pointer("/snapshot/cluster/leader/term").and_then(Value::as_i64)
}

/// The node that leads Raft, when a majority of the nodes names the same one.
pub fn raft_leader(seen: &[Seen]) -> Option<String> {
    let named = |node: &Seen| node.howdah.pointer("/snapshot/raft/leader").and_then(Value::as_str).map(str::to_owned);
    let votes: Vec<String> = seen.iter().filter_map(named).collect();
    votes.iter().find(|name| votes.iter().filter(|other| other == name).count() * 2 > seen.len()).cloned()
}

mod tests {
    use super::*;
    use serde_json::json;

    fn primary_of(name: &str, timeline: i64, replicas: &[&str]) -> Seen {
        let row = |replica: &&str| json!({"application_name": replica, "state": "streaming"});
        let replication: Vec<Value> = replicas.iter().map(row).collect();
        let patroni = json!({"role": "primary", "state": "running", "timeline": timeline, "replication": replication});
        Seen { name: name.to_owned(), patroni, howdah: record(replicas) }
    }

    fn record(running: &[&str]) -> Value {
        let members: Vec<Value> = running.iter().map(|name| json!({"name": name, "state": "running"})).collect();
        json!({"snapshot": {"raft": {"leader": "n2"}, "cluster": {"members": members}}})
    }

    fn replica(name: &str, timeline: i64) -> Seen {
        let patroni =
            json!({"role": "replica", "state": "running", "timeline": timeline, "replication_state": "streaming"});
        Seen { name: name.to_owned(), patroni, howdah: record(&[name]) }
    }

    #[test]
    fn two_nodes_that_both_claim_to_be_primary_are_not_healthy() {
        let mut seen = vec![primary_of("n1", 2, &["n2"]), replica("n2", 2)];
        assert!(is_healthy(&seen));
        assert_eq!(primary(&seen).as_deref(), Some("n1"));
        seen.push(primary_of("n3", 1, &[]));
        assert!(!is_healthy(&seen));
        assert_eq!(primary(&seen), None);
    }

    #[test]
    fn a_replica_that_one_side_does_not_know_or_on_another_timeline_is_not_healthy() {
        assert!(!is_healthy(&[primary_of("n1", 2, &["n2"]), replica("n2", 1)]));
        assert!(!is_healthy(&[primary_of("n1", 2, &["n3"]), replica("n2", 2)]), "the primary does not send to n2");
        let mut unread = [primary_of("n1", 2, &["n2"]), replica("n2", 2)];
        unread[1].howdah = record(&["n1"]);
        assert!(!is_healthy(&unread), "n2 would refuse to lead, because it has not read that it runs");
        let silent = Seen { name: "n3".to_owned(), patroni: Value::Null, howdah: Value::Null };
        let seen = [primary_of("n1", 2, &["n2", "n3"]), replica("n2", 2), silent];
        assert!(!is_healthy(&seen));
        assert!(is_streaming(&seen, "n2"));
        assert_eq!(raft_leader(&seen).as_deref(), Some("n2"));
    }
}
