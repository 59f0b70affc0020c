//! `list`, `topology` and `history`: the cluster as patronictl shows it.
//!
//! Source: reference section 4 (columns, units, what is left out).

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::Outcome;
use super::args::{Format, HistoryArgs, ListArgs, VersionArgs, WatchArgs};
use super::change::api_address;
use super::client::Client;
use super::output::print;
use super::render::{Cell, Column, Table};
use crate::agent::snapshot::{ClusterStatus, MemberRole, MemberStatus, Snapshot};
use crate::api::wire;
use crate::telemetry::clock;
use crate::types::Lsn;

/// `howdah list`
pub(super) async fn list(client: &Client, args: &ListArgs) -> Outcome {
    loop {
        let status = client.status(args.watch.cluster.as_deref()).await?;
        if args.timestamp {
            print(&clock::wall().iso())?;
        }
        print(&listing(&status.snapshot, args.format, args.extended))?;
        let Some(pause) = interval(&args.watch) else { return Ok(()) };
        sleep(pause).await;
    }
}

/// `howdah topology`
pub(super) async fn topology(client: &Client, args: &WatchArgs) -> Outcome {
    loop {
        let status = client.status(args.cluster.as_deref()).await?;
        let text = match &status.snapshot.cluster {
            Some(cluster) => {
                let members = tree(cluster);
                let table = members_table(&status.snapshot, cluster, &members, Shown::PRETTY).render(Format::Pretty);
                with_footer(table, &status.snapshot, cluster)
            }
            None => unknown(&status.snapshot),
        };
        print(&text)?;
        let Some(pause) = interval(args) else { return Ok(()) };
        sleep(pause).await;
    }
}

/// `howdah history`
pub(super) async fn history(client: &Client, args: &HistoryArgs) -> Outcome {
    if args.verbose {
        return super::timeline::verbose(client, &args.reader).await;
    }
    let args = &args.reader;
    let status = client.status(args.cluster.as_deref()).await?;
    let rows = status.snapshot.cluster.iter().flat_map(|cluster| &cluster.history).map(|row| {
        vec![json!(row.timeline.0), json!(row.lsn.0), json!(row.reason), json!(row.at), json!(row.new_leader)]
    });
    let table = Table {
        columns: vec![
            Column::right("TL"),
            Column::right("LSN"),
            Column::left("Reason"),
            Column::left("Timestamp"),
            Column::left("New Leader"),
        ],
        rows: rows.collect(),
        ..Table::default()
    };
    print(&table.render(args.format))
}

/// `howdah version CLUSTER`
pub(super) async fn versions(client: &Client, args: &VersionArgs) -> Outcome {
    super::file::version(args.format)?;
    let status = client.status(args.cluster.as_deref()).await?;
    let members = status.snapshot.cluster.iter().flat_map(|cluster| &cluster.members);
    let mut rows = Vec::new();
    for member in members.filter(|m| args.members.is_empty() || args.members.iter().any(|n| n == m.name.as_str())) {
        let answer = match api_address(&member.api_url) {
            Some(address) => client.get(&address, "/patroni").await,
            None => None,
        };
        let version = |pointer: &str| answer.as_ref().and_then(|body| body.pointer(pointer)).cloned();
        let postgres = version("/server_version").and_then(|version| version.as_u64());
        rows.push(vec![
            json!(member.name),
            version("/howdah/version").unwrap_or_else(|| json!("does not answer")),
            version("/patroni/version").unwrap_or_default(),
            json!(postgres.map(|number| format!("{}.{}", number / 10_000, number % 10_000))),
        ]);
    }
    let columns = ["Member", "howdah", "Patroni", "PostgreSQL"].map(Column::left).to_vec();
    print(&Table { columns, rows, ..Table::default() }.render(args.format))
}

fn interval(args: &WatchArgs) -> Option<Duration> {
    let seconds = args.watch.or(args.watch_2s.then_some(2))?;
    Some(Duration::from_secs(seconds.into()))
}

/// The listing of a snapshot.
pub(super) fn listing(snapshot: &Snapshot, format: Format, extended: bool) -> String {
    let Some(cluster) = &snapshot.cluster else {
        return match format {
            Format::Pretty => unknown(snapshot),
            other => Table::default().render(other),
        };
    };
    let mut members: Vec<&MemberStatus> = cluster.members.iter().collect();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    let members: Vec<(usize, &MemberStatus)> = members.into_iter().map(|member| (0, member)).collect();
    let shown = Shown { extended, progress: format == Format::Pretty };
    let text = members_table(snapshot, cluster, &members, shown).render(format);
    if format == Format::Pretty { with_footer(text, snapshot, cluster) } else { text }
}

fn unknown(snapshot: &Snapshot) -> String {
    format!("Cluster: {}: {} has not read its state yet", snapshot.scope, snapshot.name)
}

/// Rows with their depth below the leader.
fn members_table(
    snapshot: &Snapshot,
    cluster: &ClusterStatus,
    members: &[(usize, &MemberStatus)],
    shown: Shown,
) -> Table<'static> {
    let mut columns = vec![
        Column::left("Cluster"),
        Column::left("Member"),
        Column::left("Host"),
        Column::left("Role"),
        Column::left("State"),
        Column::right("TL"),
        Column::right("Receive LSN"),
        Column { title: "Lag", key: "Receive Lag", right: true },
        Column::right("Replay LSN"),
        Column { title: "Lag", key: "Replay Lag", right: true },
    ];
    let optional = ["Pending restart", "Pending restart reason", "Scheduled restart", "Tags"];
    columns.extend(optional.map(Column::left));
    let with_port = shows_ports(members);
    let mut rows: Vec<Vec<Cell>> = members
        .iter()
        .map(|(depth, member)| {
            member_row(snapshot, cluster, member, RowStyle { depth: *depth, with_port, progress: shown.progress })
        })
        .collect();
    let base = columns.len() - optional.len();
    for index in (base..columns.len()).rev() {
        if !shown.extended && rows.iter().all(|row| row[index].is_null()) {
            columns.remove(index);
            rows.iter_mut().for_each(|row| drop(row.remove(index)));
        }
    }
    // Beside the state, which scripts compare with Patroni's words.
    if members.iter().any(|(_, member)| member.replay_paused) {
        columns.push(Column::left("Replay"));
        let word = |member: &MemberStatus| member.replay_paused.then_some("paused");
        rows.iter_mut().zip(members).for_each(|(row, (_, member))| row.push(json!(word(member))));
    }
    if cluster.unconfirmed.is_some() {
        // Programs read no footer.
        columns.push(Column::left("Last confirmed"));
        rows.iter_mut().for_each(|row| row.push(json!(cluster.seen_wall.iso())));
    }
    let id = match cluster.initialize.as_deref() {
        None => "uninitialized",
        Some("") => "initializing",
        Some(id) => id,
    };
    Table { title: format!("Cluster: {} ({id})", snapshot.scope), columns, rows, in_title: 1 }
}

/// Ports are shown when one is unusual, or hosts alone do not tell members apart.
fn shows_ports(members: &[(usize, &MemberStatus)]) -> bool {
    let mut hosts: Vec<&str> = members.iter().filter_map(|(_, member)| member.host.as_deref()).collect();
    let count = hosts.len();
    hosts.sort_unstable();
    hosts.dedup();
    hosts.len() < count || members.iter().any(|(_, member)| member.port.is_some_and(|port| port != 5432))
}

/// What a table of members shows beside the usual.
#[derive(Clone, Copy)]
struct Shown {
    /// Columns in which nobody has anything.
    extended: bool,
    /// How far a copy is, beside the state: for people, not for scripts that compare the state.
    progress: bool,
}

impl Shown {
    const PRETTY: Self = Self { extended: false, progress: true };
}

struct RowStyle {
    depth: usize,
    with_port: bool,
    progress: bool,
}

fn member_row(snapshot: &Snapshot, cluster: &ClusterStatus, member: &MemberStatus, style: RowStyle) -> Vec<Cell> {
    let role = cluster.role_of(member.name.as_str());
    let name = match style.depth {
        0 => member.name.to_string(),
        depth => format!("{}+ {}", "  ".repeat(depth - 1), member.name),
    };
    let host = member.host.as_ref().map(|host| match member.port.filter(|_| style.with_port) {
        Some(port) => format!("{host}:{port}"),
        None => host.clone(),
    });
    let reasons = member
        .pending_restart
        .iter()
        .map(|(name, change)| (name.clone(), json!(format!("{}->{}", change.old_value, change.new_value))));
    let reasons: serde_json::Map<String, Value> = reasons.collect();
    let tags: serde_json::Map<String, Value> = member.tags.clone().into_iter().collect();
    let state = wire::member_state(role, member);
    let state = match member.progress.filter(|_| style.progress).and_then(|progress| progress.percent()) {
        Some(percent) => format!("{state} ({percent}%)"),
        None => state.to_owned(),
    };
    let [receive, receive_lag] = position(cluster, role, member.receive_lsn);
    let [replay, replay_lag] = position(cluster, role, member.replay_lsn);
    vec![
        json!(snapshot.scope),
        json!(name),
        json!(host),
        json!(role.title()),
        json!(state),
        json!(member.timeline.map(|timeline| timeline.0)),
        receive,
        receive_lag,
        replay,
        replay_lag,
        if reasons.is_empty() { Value::Null } else { json!("*") },
        if reasons.is_empty() { Value::Null } else { Value::Object(reasons) },
        member.scheduled_restart.as_ref().map_or(Value::Null, scheduled_restart),
        if tags.is_empty() { Value::Null } else { Value::Object(tags) },
    ]
}

/// A standby's position, and its lag in MiB, rounded; both empty for the leader.
fn position(cluster: &ClusterStatus, role: MemberRole, lsn: Option<Lsn>) -> [Cell; 2] {
    if role == MemberRole::Leader {
        return [Value::Null, Value::Null];
    }
    let mebibytes = wire::lag_bytes(cluster, lsn).map(|bytes| (bytes + (1 << 19)) >> 20);
    let known = |value: Option<Value>| value.unwrap_or_else(|| json!("unknown"));
    [known(lsn.map(|lsn| json!(lsn.to_string()))), known(mebibytes.map(|lag| json!(lag)))]
}

fn scheduled_restart(restart: &Value) -> Cell {
    let at = restart.get("schedule").and_then(Value::as_str).unwrap_or("yes");
    let mut text = at.to_owned();
    for (key, value) in restart.as_object().into_iter().flatten() {
        if !matches!(key.as_str(), "schedule" | "postmaster_start_time") {
            text.push_str(&format!(", {key}: {value}"));
        }
    }
    json!(text)
}

fn with_footer(table: String, snapshot: &Snapshot, cluster: &ClusterStatus) -> String {
    let mut lines = vec![table];
    if cluster.settings.pause {
        lines.push(" Maintenance mode: on".to_owned());
    }
    if let Some((request, at)) = cluster.switchover.as_ref().and_then(|request| Some((request, request.scheduled_at?)))
    {
        lines.push(format!(" Switchover scheduled at: {at}"));
        for (label, name) in [("from", &request.leader), ("to", &request.candidate)] {
            if let Some(name) = name {
                lines.push(format!(" {label:>24}: {name}"));
            }
        }
    }
    if let Some(degraded) = &cluster.sync.degraded {
        let since = degraded.since.map_or_else(String::new, |since| format!(" since {since}"));
        lines.push(format!(" Commits are on {} instead of {} nodes{since}", degraded.copies, degraded.wanted));
    }
    if let Some(doubt) = cluster.doubt(&snapshot.name) {
        lines.push(format!(" {doubt}"));
    } else if cluster.leader.is_none()
        && let Some(last) = snapshot.decisions.last()
    {
        lines.push(format!(" Nobody leads. {} ({}): {}", snapshot.name, last.reason, last.sentence));
    }
    lines.join("\n")
}

/// The members as a tree, each with its depth: the leader, then who follows whom by the tag `replicatefrom`. A circle
/// is cut: everybody appears once.
fn tree(cluster: &ClusterStatus) -> Vec<(usize, &MemberStatus)> {
    let source_of = |member: &MemberStatus| -> Option<String> {
        if cluster.is_leader(member.name.as_str()) {
            return None;
        }
        let wanted = member.tags.get("replicatefrom").and_then(Value::as_str).map(str::to_owned);
        let known = wanted.filter(|name| name != member.name.as_str() && cluster.member(name).is_some());
        known.or_else(|| cluster.leader.as_ref().map(|leader| leader.name.to_string()))
    };
    let mut left: Vec<&MemberStatus> = cluster.members.iter().collect();
    left.sort_by(|a, b| a.name.cmp(&b.name));
    let mut placed: Vec<(usize, &MemberStatus)> = Vec::new();
    let mut open: Vec<(usize, &MemberStatus)> = Vec::new();
    while !left.is_empty() || !open.is_empty() {
        let Some((depth, member)) = open.pop() else {
            // A root: the leader, else somebody without a source, else whoever is left in a circle.
            let is_root = |member: &&MemberStatus| source_of(member).is_none();
            let index = left.iter().position(|member| cluster.is_leader(member.name.as_str()));
            let index = index.or_else(|| left.iter().position(is_root)).unwrap_or(0);
            open.push((0, left.remove(index)));
            continue;
        };
        placed.push((depth, member));
        let (followers, others): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|other| source_of(other).as_deref() == Some(member.name.as_str()));
        left = others;
        open.extend(followers.into_iter().rev().map(|follower| (depth + 1, follower)));
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::snapshot::{DecisionRow, DegradedStatus};
    use crate::cluster::records::ProgressRecord;

    fn snapshot() -> Snapshot {
        serde_json::from_str(include_str!("../../tests/surface/three_nodes.json")).expect("a snapshot")
    }

    #[test]
    fn what_is_missing_is_said_below_the_table() {
        let mut snapshot = snapshot();
        assert!(!listing(&snapshot, Format::Pretty, false).contains("Commits are on"));
        let view = snapshot.cluster.as_mut().expect("known");
        let since = Some(crate::types::WallTime(1_700_000_000_000));
        view.sync.degraded = Some(DegradedStatus { copies: 1, wanted: 2, since });
        view.leader = None;
        let (at, sentence) = (crate::types::WallTime(0), "this node may lack acknowledged commits".to_owned());
        let (action, reason) = ("wait".to_owned(), "not_synchronous".to_owned());
        snapshot.decisions = vec![DecisionRow { at, action, reason, sentence }];
        let text = listing(&snapshot, Format::Pretty, false);
        assert!(text.contains(" Commits are on 1 instead of 2 nodes since 2023-11-14T22:13:20.000+00:00"), "{text}");
        assert!(text.contains("(not_synchronous): this node may lack acknowledged commits"), "{text}");
    }

    #[test]
    fn how_far_a_copy_is_is_shown_to_people() {
        let mut snapshot = snapshot();
        let view = snapshot.cluster.as_mut().expect("known");
        view.members[0].progress = Some(ProgressRecord { done_bytes: 48 << 20, total_bytes: Some(100 << 20) });
        assert!(listing(&snapshot, Format::Pretty, false).contains(" (48%) |"));
        assert!(!listing(&snapshot, Format::Json, false).contains("48%"));
    }

    #[test]
    fn trees_show_everybody_once() {
        let mut snapshot = snapshot();
        let view = snapshot.cluster.as_mut().expect("known");
        let shown = |view: &ClusterStatus| -> Vec<(usize, String)> {
            tree(view).into_iter().map(|(depth, member)| (depth, member.name.to_string())).collect()
        };
        let at = |depth: usize, name: &str| (depth, name.to_owned());
        assert_eq!(shown(view), [at(0, "n1"), at(1, "n2"), at(1, "n3")]);
        view.members[0].tags.insert("replicatefrom".into(), json!("n2"));
        assert_eq!(shown(view), [at(0, "n1"), at(1, "n2"), at(2, "n3")]);
        view.members[2].tags.insert("replicatefrom".into(), json!("n3"));
        assert_eq!(shown(view), [at(0, "n1"), at(0, "n2"), at(1, "n3")], "a circle is cut");
        view.leader = None;
        assert_eq!(shown(view).len(), 3);
    }
}
