//! `drill`: a fault, on purpose, under clients; and what it has cost.
//!
//! ```text
//! cluster is well -> clients write and read -> the fault -> writes again -> mended -> well again -> counted, reported
//! ```
//! Faults are for clusters of `howdah dev`; elsewhere only a switchover is drilled, and it asks first. Progress goes to
//! standard error, the result to standard output. Deliberately absent: a fault that a person could not make as well.

use std::cell::Cell;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use hyper::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::args::{DrillArgs, DrillKind, Format};
use super::change::leader_first;
use super::client::{Change, Client};
use super::output::{confirm, note, print};
use super::query;
use super::{Failure, Outcome, exit};
use crate::agent::snapshot::{MemberStatus, PostgresState, ReplicationState, Snapshot};
use crate::dev;
use crate::dev::layout::{Layout, NodePaths};
use crate::dev::processes::{self, Kind};
use crate::dev::{agent_process, links};
use crate::drill::outcome::Measured;
use crate::drill::{Door, Load, Plan, outcome, report};
use crate::telemetry::clock;
use crate::telemetry::redact::Secret;
use crate::types::Mono;

/// Made for the drill, and dropped after it.
const TABLE: &str = "howdah_drill";
/// Clients write so long before the fault, and after it is over.
const BEFORE: Duration = Duration::from_secs(2);
const AFTER: Duration = Duration::from_secs(1);
/// A cluster that does not come back within this time is reported as it is.
const PATIENCE: Duration = Duration::from_secs(120);
/// Signals reach all processes of a node within this time.
const SIGNALS: Duration = Duration::from_secs(10);
/// After a drill that has been interrupted somebody takes the order to drop the table within this time, or it stays.
const TIDY: Duration = Duration::from_secs(30);

/// `howdah drill`
pub(super) async fn drill(client: &Client, args: &DrillArgs) -> Outcome {
    let layout = dev_cluster(client)?;
    if layout.is_none() && args.kind != DrillKind::Switchover {
        return Err(Failure::new(
            exit::REFUSED,
            format!(
                "drill {} is for clusters of `howdah dev`; on this one only `howdah drill switchover` is offered",
                args.kind.word()
            ),
        ));
    }
    if args.kind == DrillKind::Partition && !layout.as_ref().is_some_and(links::are_used) {
        let text = "the nodes of this cluster reach each other directly, so nothing is there to cut; make a new one with: howdah dev --fresh";
        return Err(Failure::new(exit::REFUSED, text));
    }
    let status = client.status(args.cluster.as_deref()).await?;
    let before = &status.snapshot;
    let leader = well(before, 2).map_err(|why| Failure::new(exit::REFUSED, format!("no drill now: {why}")))?;
    let (door, doors) = door(client, layout.as_ref(), before, args)?;
    let plan = format!(
        "Drills {} on cluster {}, whose primary is {leader}: {} clients write to a table {TABLE}, made for it in \
         database {} and dropped afterwards, through {doors}. {}",
        args.kind.word(),
        before.scope,
        args.writers,
        door.database,
        args.kind.consequence(),
    );
    match &layout {
        // What is made for being harmed needs no question.
        Some(_) => note(&plan),
        None => confirm(&plan, args.force)?,
    }
    let interrupted = interruption()?;
    let drill = Drill {
        client,
        layout: layout.as_ref(),
        args,
        before,
        leader: &leader,
        started: clock::now(),
        harmed: Cell::new(false),
    };
    let outcome = drill.run(door, interrupted).await?;
    if let Some(path) = &args.report {
        write_report(path, &report::page(&outcome))?;
        note(&format!("report: {}", path.display()));
    }
    match args.format {
        Format::Pretty => print(&outcome.text())?,
        Format::Json => print(&json!(outcome).to_string())?,
        Format::Yaml => print(&serde_yaml_ng::to_string(&outcome).context("render the result")?)?,
        Format::Tsv => return Err(Failure::new(exit::USAGE, "a drill is written as pretty, json or yaml")),
    }
    match outcome.lost {
        0 => Ok(()),
        lost => Err(Failure::new(exit::FAILED, format!("{lost} acknowledged writes were lost"))),
    }
}

/// The development cluster that is talked to, if it is one.
fn dev_cluster(client: &Client) -> Outcome<Option<Layout>> {
    for dir in dev::place::candidates(None) {
        if let Some(layout) = Layout::load(&dir)? {
            let ours = client.addresses().iter().any(|address| {
                let port = address.port;
                address.host == "127.0.0.1" && layout.file.nodes.iter().any(|node| node.rest == port)
            });
            return Ok(ours.then_some(layout));
        }
    }
    Ok(None)
}

/// The leader of a cluster that is fit for a drill: as many as `members` are there, and work.
fn well(snapshot: &Snapshot, members: usize) -> Result<String, String> {
    let cluster = snapshot.cluster.as_ref().ok_or("the cluster is not known yet")?;
    let leader = cluster.leader.as_ref().ok_or("nobody leads")?.name.to_string();
    if snapshot.is_paused() {
        return Err("the cluster is paused".to_owned());
    }
    let works = |member: &MemberStatus| match member.name.as_str() == leader {
        true => member.state == PostgresState::Running,
        false => member.replication_state == Some(ReplicationState::Streaming),
    };
    let ailing: Vec<&str> = cluster.members.iter().filter(|m| !works(m)).map(|m| m.name.as_str()).collect();
    if !ailing.is_empty() {
        return Err(format!("not well: {}", ailing.join(", ")));
    }
    match cluster.members.len() {
        0 | 1 => Err("there is no replica".to_owned()),
        count if count < members => Err(format!("{count} of {members} members are there")),
        _ => Ok(leader),
    }
}

/// How clients reach the primary, and that in words.
fn door(
    client: &Client,
    layout: Option<&Layout>,
    snapshot: &Snapshot,
    args: &DrillArgs,
) -> Outcome<(Door, &'static str)> {
    if let Some(layout) = layout {
        let ports: Vec<u16> = layout.file.nodes.iter().filter_map(|node| Some(node.router?.primary)).collect();
        let routed = !ports.is_empty() && !args.direct;
        let ports = if routed { ports } else { layout.file.nodes.iter().map(|node| node.postgres).collect() };
        let door = Door {
            hosts: ports.into_iter().map(|port| ("127.0.0.1".to_owned(), port)).collect(),
            routed,
            user: "postgres".to_owned(),
            password: Some(Secret::new(dev::node_yaml::superuser_password(layout)?)),
            database: "postgres".to_owned(),
            table: TABLE,
        };
        return Ok((door, if routed { "the routers of all nodes" } else { "direct connections" }));
    }
    let members = snapshot.cluster.iter().flat_map(|cluster| &cluster.members);
    let hosts: Vec<(String, u16)> = members.filter_map(|member| Some((member.host.clone()?, member.port?))).collect();
    let Some((host, port)) = hosts.first() else {
        return Err(Failure::new(exit::FAILED, "no member says where its PostgreSQL listens"));
    };
    let login = query::login_of(client, args.username.as_ref(), args.dbname.as_ref(), host, *port);
    let door = Door {
        routed: false,
        user: login.user,
        password: login.password.map(Secret::new),
        database: login.database,
        table: TABLE,
        hosts,
    };
    Ok((door, "direct connections"))
}

fn write_report(path: &Path, page: &str) -> Outcome {
    std::fs::write(path, page).map_err(|error| anyhow!(error).context(format!("write {}", path.display())).into())
}

struct Drill<'a> {
    client: &'a Client,
    layout: Option<&'a Layout>,
    args: &'a DrillArgs,
    before: &'a Snapshot,
    leader: &'a str,
    started: Mono,
    /// Something is to be mended.
    harmed: Cell<bool>,
}

/// Resolves with SIGINT or SIGTERM. A second one ends this process.
fn interruption() -> anyhow::Result<oneshot::Receiver<()>> {
    let (tell, interrupted) = oneshot::channel();
    // On a thread of its own: some of what a drill does blocks, and the second signal must not wait for that.
    let runtime = Builder::new_current_thread().enable_all().build().context("start a runtime for signals")?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        let listen = |kind| signal(kind).context("listen for signals");
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            let mut tell = Some(tell);
            loop {
                tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
                match tell.take() {
                    Some(tell) => drop(tell.send(())),
                    None => std::process::exit(exit::INTERRUPTED.into()),
                }
            }
        });
    });
    Ok(interrupted)
}

impl Drill<'_> {
    fn say(&self, text: &str) {
        let _ = writeln!(std::io::stderr(), "{:6.1} s  {text}", clock::now().since(self.started).as_secs_f64());
    }

    /// A drill that ends before its end leaves nothing behind.
    async fn run(&self, door: Door, interrupted: oneshot::Receiver<()>) -> Outcome<outcome::Outcome> {
        let routed = door.routed;
        let plan = Plan { writers: usize::from(self.args.writers), pause: Duration::from_millis(5), samples: true };
        let mut load = Load::start(door, plan).await?;
        let played = tokio::select! {
            played = self.play(&mut load, routed) => played,
            Ok(()) = interrupted => {
                self.say("interrupted: undoing what was done; once more ends that, too");
                Err(Failure::new(exit::INTERRUPTED, "interrupted"))
            }
        };
        if played.is_err() {
            self.undo(&mut load).await;
        }
        played
    }

    async fn undo(&self, load: &mut Load) {
        load.stop().await;
        if self.harmed.get()
            && let Err(failure) = self.mend().await
        {
            self.say(&format!("{} is left as it is: {failure}; see `howdah dev status`", self.leader));
        }
        let deadline = clock::now() + TIDY;
        loop {
            let dropped = timeout(deadline.since(clock::now()), load.tidy_up()).await;
            let error = match dropped {
                Ok(Ok(())) => return self.say(&format!("table {TABLE} is dropped")),
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => "nobody takes a write".to_owned(),
            };
            if deadline <= clock::now() {
                return self.say(&format!("table {TABLE} is still there, drop it yourself: {error}"));
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    async fn play(&self, load: &mut Load, routed: bool) -> Outcome<outcome::Outcome> {
        self.say("clients write");
        self.watch(load, BEFORE).await;
        let changes_before = self.changes().await.len();
        let (fault, wall) = (clock::now(), clock::wall());
        self.say(&format!("{} {}", self.args.kind.word(), self.leader));
        self.harm().await?;
        // The old primary may acknowledge for a moment yet: another must lead first, where that is to come.
        let moved = self.until(load, "the leadership has not settled", |_, seen| self.is_over(seen)).await;
        let settled = clock::now();
        let written = self.until(load, "no write yet", |load, _| {
            let counters = load.counters();
            counters.blocked == 0 && counters.last_ack.is_some_and(|at| settled < at)
        });
        if written.await && moved {
            let longest = load.counters().longest_gap.as_secs_f64();
            self.say(&format!("writes again; the longest pause was {longest:.3} s"));
        }
        self.watch(load, AFTER).await;
        self.mend().await?;
        let members = self.before.cluster.as_ref().map_or(2, |cluster| cluster.members.len());
        let all_well = |_: &Load, seen: Option<&Snapshot>| seen.is_some_and(|seen| well(seen, members).is_ok());
        let healthy = self.until(load, "not all well yet", all_well).await;
        let healthy_at = clock::now();
        self.watch(load, AFTER).await;
        load.stop().await;
        let end = load.counters().last_ack.unwrap_or(healthy_at).max(fault);
        let proof = load.check().await?;
        load.tidy_up().await?;
        let measured =
            Measured { fault, end, acks: load.acks(), reads: load.reads(), counters: load.counters(), proof };
        let mut outcome = outcome::Outcome::of(self.args.kind.word(), &measured);
        outcome.at = wall;
        outcome.cluster = self.before.scope.to_string();
        outcome.old = self.leader.to_owned();
        outcome.new = match self.client.status(None).await {
            Ok(status) => leader_of(&status.snapshot).unwrap_or_default(),
            Err(_) => String::new(),
        };
        outcome.healthy_after_ms =
            healthy.then(|| u64::try_from(healthy_at.since(fault).as_millis()).unwrap_or(u64::MAX));
        outcome.refused_connections = routed.then_some(measured.counters.refused);
        outcome.changes = self.changes().await.split_off(changes_before);
        Ok(outcome)
    }

    /// What the timeline has; the newest fifty, so that a full one shifts.
    async fn changes(&self) -> Vec<Value> {
        match self.client.read(&[], "/timeline").await {
            Ok(Value::Array(entries)) => {
                let since = self.started_wall();
                entries.into_iter().filter(|entry| entry["at"].as_i64().is_some_and(|at| since <= at)).collect()
            }
            Ok(_) | Err(_) => Vec::new(),
        }
    }

    fn started_wall(&self) -> i64 {
        let ago = i64::try_from(clock::now().since(self.started).as_millis()).unwrap_or(i64::MAX);
        clock::wall().0.saturating_sub(ago)
    }

    /// Whether the change that the fault brings has come: another leader, or the same one on its feet again.
    fn is_over(&self, seen: Option<&Snapshot>) -> bool {
        let Some(leader) = seen.and_then(leader_of) else { return false };
        match self.args.kind {
            DrillKind::KillPostgres => true,
            DrillKind::Switchover | DrillKind::KillNode | DrillKind::Freeze | DrillKind::Partition => {
                leader != self.leader
            }
        }
    }

    fn node(&self) -> Outcome<(NodePaths, &Layout)> {
        let layout = self.layout.ok_or_else(|| anyhow!("this is no cluster of howdah dev"))?;
        Ok((layout.node(self.leader)?, layout))
    }

    async fn harm(&self) -> Outcome {
        self.harmed.set(true);
        match self.args.kind {
            DrillKind::Switchover => {
                let mut body = json!({"leader": self.leader});
                if let Some(candidate) = &self.args.candidate {
                    body["candidate"] = json!(candidate);
                }
                let change = Change { method: Method::POST, path: "/switchover".into(), body: Some(body) };
                let said = self.client.change(&leader_first(self.before), &change).await?;
                self.say(&said);
            }
            DrillKind::KillPostgres => {
                let (node, _) = self.node()?;
                let postmaster = postmaster(&node)?;
                postmaster.signal(Signal::KILL)?;
            }
            DrillKind::KillNode => drop(processes::kill_node(&self.node()?.0, SIGNALS)?),
            DrillKind::Freeze => drop(processes::freeze_node(&self.node()?.0, SIGNALS)?),
            DrillKind::Partition => {
                let (node, layout) = self.node()?;
                links::order(layout, &format!("cut {}", node.name))?;
            }
        }
        Ok(())
    }

    async fn mend(&self) -> Outcome {
        match self.args.kind {
            DrillKind::Switchover | DrillKind::KillPostgres => {}
            DrillKind::KillNode => {
                let (node, layout) = self.node()?;
                self.say(&format!("starting {} again", node.name));
                let asked = dev::control::ask(&layout.control_socket(), &format!("start {}", node.name))?;
                if asked.is_none() {
                    let program = std::env::current_exe().context("find the own program")?;
                    agent_process::spawn(&program, &node)?;
                }
            }
            DrillKind::Freeze => {
                let (node, _) = self.node()?;
                self.say(&format!("thawing {}", node.name));
                processes::thaw_node(&node)?;
                // It may find itself fenced, and its agent ended: then it is started as a person would.
                sleep(Duration::from_secs(1)).await;
                if agent_process::running(&node).is_none() {
                    let program = std::env::current_exe().context("find the own program")?;
                    agent_process::spawn(&program, &node)?;
                }
            }
            DrillKind::Partition => {
                let (node, layout) = self.node()?;
                self.say(&format!("healing {}", node.name));
                links::order(layout, &format!("heal {}", node.name))?;
            }
        }
        self.harmed.set(false);
        Ok(())
    }

    /// Waits until `done`, telling every second how it goes. False: not in time.
    async fn until(&self, load: &Load, waits: &str, done: impl Fn(&Load, Option<&Snapshot>) -> bool) -> bool {
        let deadline = clock::now() + PATIENCE;
        let mut told = clock::now();
        loop {
            let status = self.client.status_quietly().await;
            if done(load, status.as_ref()) {
                return true;
            }
            if deadline < clock::now() {
                self.say(&format!("given up after {} s: {waits}", PATIENCE.as_secs()));
                return false;
            }
            if Duration::from_secs(1) < clock::now().since(told) {
                told = clock::now();
                self.say(&format!("{waits}; {}", counted(load)));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn watch(&self, load: &Load, span: Duration) {
        sleep(span).await;
        self.say(&counted(load));
    }
}

fn counted(load: &Load) -> String {
    let counters = load.counters();
    format!(
        "{} acknowledged, {} retried, {} of the writers blocked",
        counters.acknowledged, counters.retried, counters.blocked
    )
}

fn leader_of(snapshot: &Snapshot) -> Option<String> {
    Some(snapshot.cluster.as_ref()?.leader.as_ref()?.name.to_string())
}

/// The postmaster: the process that its own file names, among those of the node.
fn postmaster(node: &NodePaths) -> anyhow::Result<processes::ProcessId> {
    let path = node.data.join("postmaster.pid");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let pid: i32 = text.lines().next().unwrap_or_default().trim().parse().context("read the postmaster's number")?;
    processes::of_node(node)
        .into_iter()
        .find(|process| process.id.pid == pid && process.kind == Kind::Postgres)
        .map(|process| process.id)
        .with_context(|| format!("find the postmaster of {}", node.name))
}
