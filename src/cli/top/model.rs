//! What `top` shows, as text: pure, so that it can be tested without a terminal.

use crate::agent::snapshot::{ClusterStatus, MemberStatus, RouterPort, Snapshot};
use crate::api::wire;
use crate::cli::client::Status;
use crate::cluster::changes::ChangeRecord;
use crate::config::SynchronousMode;
use crate::types::{NodeName, WallTime};

/// The lower half.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Pane {
    /// What the node has decided, newest first.
    #[default]
    Decisions,
    /// What has happened to the leadership, newest first.
    Timeline,
}

impl Pane {
    pub(super) fn next(self) -> Self {
        match self {
            Self::Decisions => Self::Timeline,
            Self::Timeline => Self::Decisions,
        }
    }
}

/// Everything that is drawn.
#[derive(Debug, Default)]
pub(super) struct Model {
    /// The last answer.
    pub(super) status: Option<Status>,
    /// The changes so far.
    pub(super) timeline: Vec<ChangeRecord>,
    /// Why there is no newer answer.
    pub(super) trouble: Option<String>,
    /// When it was asked last.
    pub(super) at: WallTime,
    /// What the lower half shows.
    pub(super) pane: Pane,
    /// The first row that it shows.
    pub(super) scroll: usize,
    /// Nothing is asked: for reading.
    pub(super) still: bool,
    /// The node that is asked, by its place among the addresses; none: whichever has a quorum.
    pub(super) node: Option<usize>,
}

/// Whether something is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Good,
    Warn,
    Bad,
}

/// A member in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) cells: [String; 6],
    pub(super) mood: Mood,
}

impl Model {
    /// Turns to the next of `count` nodes; after the last one to whichever has a quorum.
    pub(super) fn next_node(&mut self, count: usize) {
        self.node = match self.node {
            None if 0 < count => Some(0),
            Some(place) if place + 1 < count => Some(place + 1),
            Some(_) | None => None,
        };
        self.scroll = 0;
    }

    fn snapshot(&self) -> Option<&Snapshot> {
        self.status.as_ref().map(|status| &status.snapshot)
    }

    fn cluster(&self) -> Option<&ClusterStatus> {
        self.snapshot()?.cluster.as_ref()
    }

    /// Who and when.
    pub(super) fn title(&self) -> String {
        let time = self.at.iso();
        let time = time.split('T').nth(1).and_then(|time| time.split('.').next()).unwrap_or_default().to_owned();
        match self.snapshot() {
            Some(snapshot) => format!("howdah {}, seen by {}, {time} UTC", snapshot.scope, snapshot.name),
            None => format!("howdah, {time} UTC"),
        }
    }

    /// How the whole is.
    pub(super) fn verdict(&self) -> (String, Mood) {
        if let Some(trouble) = &self.trouble {
            return (trouble.clone(), Mood::Bad);
        }
        let Some(snapshot) = self.snapshot() else { return ("Asking.".to_owned(), Mood::Warn) };
        let Some(cluster) = &snapshot.cluster else {
            return (format!("{} has not read the cluster's state yet.", snapshot.name), Mood::Bad);
        };
        if !snapshot.store_has_quorum {
            return (
                format!("{} hears no majority of the store; this is what it knew last.", snapshot.name),
                Mood::Bad,
            );
        }
        let Some(leader) = &cluster.leader else {
            return ("Nobody leads: clients cannot write.".to_owned(), Mood::Bad);
        };
        let ailing: Vec<String> = cluster
            .members
            .iter()
            .filter(|member| !works(cluster, member))
            .map(|member| format!("{} is {}", member.name, state(cluster, member)))
            .collect();
        let pause = if snapshot.is_paused() { " Paused: nothing fails over." } else { "" };
        if ailing.is_empty() && pause.is_empty() {
            return (format!("Healthy. Writes go to {}, term {}.", leader.name, leader.term), Mood::Good);
        }
        let ailing = if ailing.is_empty() { String::new() } else { format!(" {}.", ailing.join(", ")) };
        (format!("Writes go to {}, term {}.{ailing}{pause}", leader.name, leader.term), Mood::Warn)
    }

    /// The members, the leader first.
    pub(super) fn members(&self) -> Vec<Row> {
        let Some(cluster) = self.cluster() else { return Vec::new() };
        let mut members: Vec<&MemberStatus> = cluster.members.iter().collect();
        members.sort_by_key(|member| (!cluster.is_leader(member.name.as_str()), member.name.clone()));
        members
            .into_iter()
            .map(|member| {
                let name = member.name.as_str();
                let role = cluster.role_of(name);
                let leads = cluster.is_leader(name);
                let lag = |position| match wire::lag_bytes(cluster, position) {
                    _ if leads => String::new(),
                    Some(lag) => bytes(lag),
                    None => "unknown".to_owned(),
                };
                let waits = if member.pending_restart.is_empty() { "" } else { " *" };
                let cells = [
                    format!("{name}{waits}"),
                    role.title().to_owned(),
                    state(cluster, member).to_owned(),
                    member.timeline.map_or_else(String::new, |timeline| timeline.to_string()),
                    lag(member.receive_lsn),
                    lag(member.replay_lsn),
                ];
                let mood = match works(cluster, member) {
                    false => Mood::Bad,
                    true if waits.is_empty() => Mood::Good,
                    true => Mood::Warn,
                };
                Row { cells, mood }
            })
            .collect()
    }

    /// Copies, lease, store, router: a line each.
    pub(super) fn facts(&self) -> Vec<(&'static str, String)> {
        let Some(status) = &self.status else { return Vec::new() };
        let snapshot = &status.snapshot;
        let mut facts = Vec::new();
        if let Some(cluster) = &snapshot.cluster {
            facts.push(("Copies", copies(cluster)));
            if let Some(request) = &cluster.switchover {
                let to = request.candidate.as_ref().map_or("the best candidate", NodeName::as_str);
                facts.push(("Asked", format!("a change of the leader to {to}")));
            }
        }
        let permit = status.permit_remaining_seconds.map_or(String::new(), |left| format!("; permit {left:.1} s left"));
        facts.push(("Lease", format!("{} s{permit}", snapshot.lock.ttl.as_secs_f64())));
        let raft = &snapshot.raft;
        let voters = raft.members.iter().filter(|member| member.voter).count();
        let leader = raft.leader.as_deref().unwrap_or("nobody");
        facts.push((
            "Store",
            format!("{leader} leads, {voters} voters, term {}, log {}", raft.term, raft.last_log_index),
        ));
        if let Some(router) = &status.router {
            let ports = [("writes", &router.primary), ("reads", &router.replicas)];
            let ports: Vec<String> =
                ports.into_iter().filter_map(|(what, port)| Some(routed(what, port.as_ref()?))).collect();
            if !ports.is_empty() {
                facts.push(("Router", ports.join("; ")));
            }
        }
        if let Some(task) = &snapshot.task {
            let percent = task.percent().map_or(String::new(), |percent| format!(" {percent} %"));
            facts.push(("Task", format!("{}{percent} on {}", task.kind, snapshot.name)));
        }
        facts
    }

    /// The lower half, newest first.
    pub(super) fn lines(&self) -> Vec<String> {
        match self.pane {
            Pane::Decisions => self
                .snapshot()
                .iter()
                .flat_map(|snapshot| snapshot.decisions.iter().rev())
                .map(|row| format!("{} {}: {}", clock_time(row.at), row.action, row.sentence))
                .collect(),
            Pane::Timeline if self.timeline.is_empty() => {
                vec!["Nothing has happened to the leadership yet.".to_owned()]
            }
            Pane::Timeline => self
                .timeline
                .iter()
                .rev()
                .map(|entry| {
                    format!(
                        "{} {} {} in {} ms, lost {}: {}",
                        clock_time(entry.at),
                        entry.kind.as_str(),
                        entry.node,
                        entry.total_ms,
                        entry.loss,
                        entry.cause.sentence
                    )
                })
                .collect(),
        }
    }

    /// The title of the lower half.
    pub(super) fn pane_title(&self) -> String {
        match self.pane {
            Pane::Decisions => {
                format!(" Decisions of {} ", self.snapshot().map_or("nobody", |snapshot| snapshot.name.as_str()))
            }
            Pane::Timeline => " Timeline ".to_owned(),
        }
    }
}

fn clock_time(at: WallTime) -> String {
    at.iso().get(11..19).unwrap_or_default().to_owned()
}

fn state(cluster: &ClusterStatus, member: &MemberStatus) -> &'static str {
    wire::member_state(cluster.role_of(member.name.as_str()), member)
}

fn works(cluster: &ClusterStatus, member: &MemberStatus) -> bool {
    matches!(state(cluster, member), "running" | "streaming")
}

/// Who has each commit, with the arithmetic.
fn copies(cluster: &ClusterStatus) -> String {
    let sync = &cluster.sync;
    let names: Vec<&str> = sync.standbys.iter().map(NodeName::as_str).collect();
    let names = names.join(", ");
    match (cluster.settings.synchronous_mode, sync.standbys.len(), sync.quorum) {
        (SynchronousMode::Off, ..) => "asynchronous: the newest commits are lost with the primary".to_owned(),
        (_, 0, _) => "on the primary alone: no standby is confirmed".to_owned(),
        (SynchronousMode::Quorum, count, Some(quorum)) => {
            let needed = count.saturating_sub(usize::try_from(quorum).unwrap_or(count));
            let nodes = if needed == 1 { "any one node may".to_owned() } else { format!("any {needed} nodes may") };
            format!("quorum {needed} of {count} ({names}): {nodes} die with zero loss")
        }
        (SynchronousMode::Quorum | SynchronousMode::On, ..) => format!("on the primary and each of {names}"),
    }
}

fn routed(what: &str, port: &RouterPort) -> String {
    let sessions: u64 = port.backends.iter().map(|backend| backend.sessions).sum();
    let to = match port.targets.as_slice() {
        [] => "nobody".to_owned(),
        targets => targets.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", "),
    };
    format!("{what} to {to}, {sessions} sessions, {} held", port.held)
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut size = count as f64 / 1024.0;
    let mut unit = 0;
    while 1024.0 <= size && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}
