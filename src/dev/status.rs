//! What runs in a development cluster, and what may still fail: a table and one sentence.
//!
//! processes + REST of every node -> [`NodeStatus`] -> [`Summary`] (pure) -> table, sentence, JSON.
//! The sentence is the reason for this file: it says who takes writes and what may be killed next.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;

use super::args::Format;
use super::layout::{Layout, NodePaths};
use super::links;
use super::processes::{self, Kind};
use super::rest;
use super::screen::print_line;
use crate::telemetry::clock;
use crate::types::WallTime;

/// A node that does not answer within this shows as silent.
const PATIENCE: Duration = Duration::from_millis(700);

/// How a node's processes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// Its agent runs.
    Up,
    /// Its agent stands still.
    Frozen,
    /// Its agent runs, and cannot reach the other nodes.
    CutOff,
    /// No agent, but PostgreSQL or the guardian still runs.
    Leaderless,
    /// Nothing runs.
    Down,
}

/// One node as seen from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its processes.
    pub life: Life,
    /// `primary`, `replica`, ...; empty when it stays silent.
    pub role: String,
    /// PostgreSQL's state; `streaming` for a replica that streams.
    pub state: String,
    /// The timeline, when known.
    pub timeline: Option<i64>,
    /// Where REST listens.
    pub rest: String,
    /// Where PostgreSQL listens.
    pub postgres: String,
    /// Its processes in words.
    pub processes: String,
}

impl NodeStatus {
    /// Whether this node is the running primary, as it says itself.
    pub fn is_primary(&self) -> bool {
        self.life == Life::Up && self.role == "primary" && self.state == "running"
    }

    fn is_streaming(&self) -> bool {
        self.life == Life::Up && self.role == "replica" && self.state == "streaming"
    }
}

/// Looks at all nodes at the same time.
pub fn observe(layout: &Layout) -> Vec<NodeStatus> {
    let cut = links::cut_off(layout);
    let mut nodes: Vec<NodeStatus> = std::thread::scope(|scope| {
        let asked: Vec<_> = layout.nodes().into_iter().map(|node| scope.spawn(move || observe_node(&node))).collect();
        asked.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    for node in nodes.iter_mut().filter(|node| node.life == Life::Up && cut.contains(&node.name)) {
        node.life = Life::CutOff;
    }
    nodes
}

/// What the nodes know beyond their own state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Beyond {
    /// So many nodes may die without the loss of an acknowledged write, as the record proves; none when nobody knows.
    pub zero_loss: Option<usize>,
    /// How long the last change of the primary took, in milliseconds, and how long ago it was, in seconds.
    pub last_change: Option<(u64, u64)>,
}

/// Asks the primary, or the first node that answers.
pub fn ask_beyond(layout: &Layout) -> Beyond {
    let cut = links::cut_off(layout);
    let mut nodes = layout.nodes();
    nodes.sort_by_key(|node| cut.contains(&node.name));
    let mut first = None;
    for node in nodes {
        let ask = |path: &str| rest::get(node.rest, path, PATIENCE).ok().map(|answer| answer.json());
        let (Some(full), Some(timeline)) = (ask("/howdah"), ask("/timeline")) else { continue };
        let leads = full["snapshot"]["postgres"]["role"] == "primary";
        let known = beyond(&full, &timeline, clock::wall());
        if leads {
            return known;
        }
        first.get_or_insert(known);
    }
    first.unwrap_or_default()
}

fn beyond(full: &Value, timeline: &Value, now: WallTime) -> Beyond {
    let sync = &full["snapshot"]["cluster"]["sync"];
    let standbys = sync["standbys"].as_array().map_or(0, Vec::len);
    // Every commit is on the primary and on so many of the standbys: as many may die as hold it beside the last one.
    let quorum = sync["quorum"].as_u64().and_then(|quorum| usize::try_from(quorum).ok()).unwrap_or(0);
    // Nothing is proven where the server acknowledges what no disk or no standby has.
    let promised = full["snapshot"]["postgres"]["lowered"].is_null();
    let zero_loss = sync.is_object().then(|| if promised { standbys.saturating_sub(quorum) } else { 0 });
    let changed = |entry: &&Value| matches!(entry["kind"].as_str(), Some("failover" | "switchover"));
    let last = timeline.as_array().and_then(|entries| entries.iter().rev().find(changed));
    let last_change = last.and_then(|entry| {
        let ago = now.0.saturating_sub(entry["at"].as_i64()?).max(0) / 1000;
        Some((entry["total_ms"].as_u64()?, u64::try_from(ago).ok()?))
    });
    Beyond { zero_loss, last_change }
}

/// `1.9 s, 3 minutes ago`.
fn measured((took_ms, ago): (u64, u64)) -> String {
    let (count, unit) = match ago {
        0..60 => (ago, "second"),
        60..3600 => (ago / 60, "minute"),
        3600..86_400 => (ago / 3600, "hour"),
        _ => (ago / 86_400, "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("Last measured failover {:.1} s, {count} {unit}{plural} ago.", took_ms as f64 / 1000.0)
}

fn observe_node(node: &NodePaths) -> NodeStatus {
    let living = processes::of_node(node);
    let agent = living.iter().find(|process| process.kind == Kind::Agent);
    let life = match agent {
        Some(agent) if agent.frozen => Life::Frozen,
        Some(_) => Life::Up,
        None if living.is_empty() => Life::Down,
        None => Life::Leaderless,
    };
    let patroni = match life {
        Life::Up | Life::CutOff => {
            rest::get(node.rest, "/patroni", PATIENCE).map(|answer| answer.json()).unwrap_or(Value::Null)
        }
        Life::Frozen | Life::Leaderless | Life::Down => Value::Null,
    };
    let text = |field: &str| patroni.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (role, state, replication) = (text("role"), text("state"), text("replication_state"));
    let state = if role != "primary" && !replication.is_empty() { replication } else { state };
    NodeStatus {
        name: node.name.clone(),
        life,
        role,
        state,
        timeline: patroni.get("timeline").and_then(Value::as_i64),
        rest: node.rest.to_string(),
        postgres: node.postgres.to_string(),
        processes: processes::describe(&living),
    }
}

/// What the nodes together come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The node that takes writes.
    pub primary: Option<String>,
    /// How many more nodes may fail, whichever they are, with service going on or coming back by itself.
    pub may_fail: usize,
    /// Whether there is one primary and every other node streams from it.
    pub healthy: bool,
    /// All of it for a person.
    pub sentence: String,
}

/// Judges the whole from the parts.
pub fn summarise(nodes: &[NodeStatus], beyond: &Beyond) -> Summary {
    let majority = nodes.len() / 2 + 1;
    let up = nodes.iter().filter(|node| node.life == Life::Up).count();
    let primaries: Vec<&NodeStatus> = nodes.iter().filter(|node| node.is_primary()).collect();
    let streaming = nodes.iter().filter(|node| node.is_streaming()).count();
    let ailing: Vec<String> = nodes
        .iter()
        .filter(|node| !node.is_primary() && !node.is_streaming())
        .map(|node| format!("{} {}", node.name, ailment(node)))
        .collect();
    let healthy = ailing.is_empty() && primaries.len() == 1;
    let ailing = ailing.join(", ");
    let (primary, may_fail, sentence) = match primaries.as_slice() {
        [] if up == 0 => (None, 0, "Down. No node runs; `howdah dev` starts them again.".to_owned()),
        [] if up < majority => {
            let missing = majority - up;
            let text = format!("No majority: nobody may write until {missing} more of these come back: {ailing}.");
            (None, 0, text)
        }
        [] if ailing.is_empty() => (None, 0, "No primary at this moment; one is being chosen.".to_owned()),
        [] => (None, 0, format!("No primary at this moment; one is being chosen ({ailing}).")),
        [primary] if up < majority => {
            let text = format!("No majority: {} must stop taking writes within its ttl ({ailing}).", primary.name);
            (Some(primary.name.clone()), 0, text)
        }
        [primary] => {
            let may_fail = up.saturating_sub(majority).min(streaming);
            let verdict = verdict(nodes.len(), may_fail, beyond.zero_loss, &ailing);
            let mut text = format!("{verdict} Writes go to {}.", primary.name);
            if let Some(last) = beyond.last_change {
                text.push(' ');
                text.push_str(&measured(last));
            }
            (Some(primary.name.clone()), may_fail, text)
        }
        _ => {
            let names: Vec<&str> = primaries.iter().map(|node| node.name.as_str()).collect();
            let text = format!("A change is under way: {} each call themselves primary.", names.join(" and "));
            (None, 0, text)
        }
    };
    Summary { primary, may_fail, healthy, sentence }
}

fn ailment(node: &NodeStatus) -> String {
    match node.life {
        Life::Down => "is down".to_owned(),
        Life::Frozen => "is frozen".to_owned(),
        Life::CutOff => "is cut off".to_owned(),
        Life::Leaderless => "has lost its agent".to_owned(),
        Life::Up if node.role.is_empty() => "does not answer yet".to_owned(),
        Life::Up => format!("is {}", node.state),
    }
}

fn verdict(nodes: usize, may_fail: usize, zero_loss: Option<usize>, ailing: &str) -> String {
    let loss = match zero_loss {
        Some(proven) if may_fail <= proven => " with zero loss",
        Some(_) => ", and the newest writes with it",
        None => "",
    };
    let rest = match (nodes, may_fail) {
        (1, _) => "It is the only node: nothing may fail.".to_owned(),
        (_, 0) => "No node more may fail.".to_owned(),
        (_, 1) => format!("Any one node may fail{loss}."),
        (_, count) => format!("Any {count} nodes may fail{loss}."),
    };
    if ailing.is_empty() { format!("Healthy. {rest}") } else { format!("Degraded: {ailing}. {rest}") }
}

/// Prints the status.
///
/// # Errors
/// When it cannot be rendered.
pub fn run(layout: &Layout, format: Format) -> anyhow::Result<ExitCode> {
    let nodes = observe(layout);
    let beyond = ask_beyond(layout);
    let summary = summarise(&nodes, &beyond);
    let text = match format {
        Format::Pretty => format!("{}\n{}", table(&nodes), summary.sentence),
        Format::Json => {
            let all = serde_json::json!({
                "scope": layout.file.scope,
                "dir": layout.dir,
                "uri": layout.write_uri(),
                "nodes": nodes,
                "primary": summary.primary,
                "may_fail": summary.may_fail,
                "healthy": summary.healthy,
                "beyond": beyond,
                "sentence": summary.sentence,
            });
            serde_json::to_string_pretty(&all).context("render the status")?
        }
    };
    print_line(&text);
    Ok(ExitCode::SUCCESS)
}

fn table(nodes: &[NodeStatus]) -> String {
    let head = ["NODE", "ROLE", "STATE", "TL", "REST", "POSTGRESQL", "PROCESSES"].map(str::to_owned);
    let mut rows = vec![head];
    for node in nodes {
        let state = match node.life {
            Life::Up if node.state.is_empty() => "silent".to_owned(),
            Life::Up => node.state.clone(),
            Life::Frozen => "frozen".to_owned(),
            Life::CutOff => "cut off".to_owned(),
            Life::Leaderless => "no agent".to_owned(),
            Life::Down => "down".to_owned(),
        };
        let role = if node.role.is_empty() { "-".to_owned() } else { node.role.clone() };
        let timeline = node.timeline.map_or_else(|| "-".to_owned(), |number| number.to_string());
        let NodeStatus { name, rest, postgres, processes, .. } = node.clone();
        rows.push([name, role, state, timeline, rest, postgres, processes]);
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width =
                rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, life: Life, role: &str, state: &str) -> NodeStatus {
        NodeStatus {
            name: name.to_owned(),
            life,
            role: role.to_owned(),
            state: state.to_owned(),
            timeline: Some(1),
            rest: "127.0.0.1:8008".to_owned(),
            postgres: "127.0.0.1:5432".to_owned(),
            processes: "nothing".to_owned(),
        }
    }

    fn primary(name: &str) -> NodeStatus {
        node(name, Life::Up, "primary", "running")
    }

    fn replica(name: &str) -> NodeStatus {
        node(name, Life::Up, "replica", "streaming")
    }

    fn down(name: &str) -> NodeStatus {
        node(name, Life::Down, "", "")
    }

    fn summarise(nodes: &[NodeStatus]) -> Summary {
        super::summarise(nodes, &Beyond::default())
    }

    fn sentence(nodes: &[NodeStatus]) -> String {
        summarise(nodes).sentence
    }

    #[test]
    fn the_sentence_says_what_a_failure_costs_and_what_the_last_one_took() {
        let nodes = [primary("n1"), replica("n2"), replica("n3")];
        let full = serde_json::json!({"snapshot": {"cluster": {"sync": {"standbys": ["n2", "n3"], "quorum": 1}}}});
        let timeline = serde_json::json!([
            {"kind": "failover", "at": 0, "total_ms": 9000},
            {"kind": "switchover", "at": 1_000_000, "total_ms": 1900},
            {"kind": "rejoin", "at": 1_100_000, "total_ms": 5},
        ]);
        let known = beyond(&full, &timeline, WallTime(1_185_000));
        assert_eq!(known, Beyond { zero_loss: Some(1), last_change: Some((1900, 185)) });
        assert_eq!(
            super::summarise(&nodes, &known).sentence,
            "Healthy. Any one node may fail with zero loss. Writes go to n1. Last measured failover 1.9 s, 3 minutes ago."
        );
        let mut lowered = full.clone();
        lowered["snapshot"]["postgres"] = serde_json::json!({"lowered": {"synchronous_commit": "off"}});
        assert_eq!(beyond(&lowered, &timeline, WallTime(1_185_000)).zero_loss, Some(0));
        let alone = Beyond { zero_loss: Some(0), last_change: Some((80, 1)) };
        assert_eq!(
            super::summarise(&nodes, &alone).sentence,
            "Healthy. Any one node may fail, and the newest writes with it. Writes go to n1. Last measured failover 0.1 s, 1 second ago."
        );
    }

    #[test]
    fn who_is_cut_off_counts_for_nothing() {
        let mut cut = primary("n1");
        cut.life = Life::CutOff;
        let summary = summarise(&[cut.clone(), primary("n2"), replica("n3")]);
        assert_eq!((summary.primary.as_deref(), summary.may_fail), (Some("n2"), 0));
        assert!(summary.sentence.starts_with("Degraded: n1 is cut off."), "{}", summary.sentence);
    }

    #[test]
    fn the_sentence_says_who_writes_and_what_may_fail() {
        let (one, two) = (replica("n1"), primary("n2"));
        assert_eq!(
            sentence(&[one.clone(), two.clone(), replica("n3")]),
            "Healthy. Any one node may fail. Writes go to n2."
        );
        assert_eq!(
            sentence(&[one.clone(), two.clone(), down("n3")]),
            "Degraded: n3 is down. No node more may fail. Writes go to n2."
        );
        let five = [one, two, replica("n3"), replica("n4"), replica("n5")];
        assert_eq!(sentence(&five), "Healthy. Any 2 nodes may fail. Writes go to n2.");
        assert_eq!(sentence(&[primary("n1")]), "Healthy. It is the only node: nothing may fail. Writes go to n1.");
    }

    #[test]
    fn without_a_primary_the_sentence_says_what_is_missing() {
        assert!(sentence(&[down("n1"), down("n2"), down("n3")]).starts_with("Down."));
        let frozen = node("n2", Life::Frozen, "", "");
        assert_eq!(
            sentence(&[replica("n1"), frozen, down("n3")]),
            "No majority: nobody may write until 1 more of these come back: n2 is frozen, n3 is down."
        );
        assert_eq!(
            sentence(&[primary("n1"), down("n2"), down("n3")]),
            "No majority: n1 must stop taking writes within its ttl (n2 is down, n3 is down)."
        );
        assert_eq!(
            sentence(&[replica("n1"), replica("n2"), replica("n3")]),
            "No primary at this moment; one is being chosen."
        );
        let starting = node("n3", Life::Up, "replica", "starting");
        assert_eq!(
            sentence(&[replica("n1"), replica("n2"), starting]),
            "No primary at this moment; one is being chosen (n3 is starting)."
        );
    }

    #[test]
    fn a_replica_that_does_not_stream_carries_no_promise() {
        let starting = node("n3", Life::Up, "replica", "starting");
        let summary = summarise(&[primary("n1"), starting.clone(), starting]);
        assert_eq!(summary.may_fail, 0, "two voters are not two copies");
        assert!(summary.sentence.starts_with("Degraded:"), "{}", summary.sentence);
    }

    #[test]
    fn two_primaries_are_never_called_healthy() {
        let summary = summarise(&[primary("n1"), primary("n2"), replica("n3")]);
        assert_eq!((summary.primary, summary.healthy), (None, false));
        assert!(summary.sentence.contains("n1 and n2"), "{}", summary.sentence);
    }

    #[test]
    fn the_table_is_aligned() {
        let text = table(&[primary("n1"), down("long-name")]);
        let columns: Vec<Option<usize>> = text.lines().map(|line| line.find("127.0.0.1:8008")).collect();
        assert_eq!(columns[1], columns[2]);
    }
}
