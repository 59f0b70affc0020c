//! Runs the cluster in the foreground: starts the agents, tells what happens, stops them at the end.
//!
//! ```text
//! start agents -> loop { Ctrl-C | SIGTERM | a second terminal | every 200 ms: look and tell } -> stop
//! ```
//! Nothing here decides for the cluster, and nobody restarts an agent that ended: the user is told, and
//! `howdah dev start` is one command away. A launcher that was killed leaves its nodes running; the next
//! one takes them over.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, ExitCode};
use std::time::Duration;

use anyhow::Context;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::args::DevArgs;
use super::control::{self, Request};
use super::layout::{Layout, NodePaths};
use super::log_tail::{self, LogTail};
use super::prepare::{self, Prepared};
use super::processes::{self, ProcessId};
use super::screen::Screen;
use super::status::{self, Beyond, NodeStatus};
use super::{agent_process, links, load_line, write_probe};
use crate::telemetry::clock;
use crate::types::Mono;

/// How often the nodes are looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How often a node is asked for what takes more than a look: its whole state, and what happened.
const ASK: Duration = Duration::from_secs(1);
/// How long a clean stop of all nodes may take before it is said what is left.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// How long killed processes may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// Lines of its log that are shown when an agent ends without having been asked to.
const LAST_LINES: usize = 8;

/// One node's agent, ours or taken over.
#[derive(Debug)]
struct Agent {
    id: ProcessId,
    /// None when an earlier launcher started it.
    child: Option<Child>,
}

/// What of the whole is worth a line when it changes.
#[derive(Debug, PartialEq, Eq)]
struct Outlook {
    primary: Option<String>,
    may_fail: usize,
    zero_loss: bool,
    healthy: bool,
}

/// The running launcher.
struct Launcher {
    layout: Layout,
    password: String,
    program: PathBuf,
    screen: Screen,
    started: Mono,
    agents: BTreeMap<String, Agent>,
    tails: BTreeMap<String, LogTail>,
    told: BTreeMap<String, String>,
    outlook: Option<Outlook>,
    first_write_told: bool,
    /// The process through which the nodes reach each other, if this launcher has started it.
    linking: Option<Child>,
    /// Clients that write all the time, once somebody takes writes.
    load: Option<load_line::LoadLine>,
    with_load: bool,
    /// What the nodes know beyond their own state, and when they were asked.
    beyond: Beyond,
    beyond_at: Option<Mono>,
}

/// Starts the cluster and stays until it is told to stop.
///
/// # Errors
/// When the cluster cannot be prepared or an agent cannot be started.
pub async fn run(args: &DevArgs) -> anyhow::Result<ExitCode> {
    let Prepared { layout, passwords, notes, resumed, lock: _lock } = prepare::prepare(args)?;
    let names = layout.file.nodes.iter().map(|node| node.name.clone()).collect();
    let mut launcher = Launcher {
        password: passwords.superuser.expose().clone(),
        program: std::env::current_exe().context("find the own program")?,
        screen: Screen::new(names),
        started: clock::now(),
        agents: BTreeMap::new(),
        tails: BTreeMap::new(),
        told: BTreeMap::new(),
        outlook: None,
        first_write_told: false,
        linking: None,
        load: None,
        with_load: args.load,
        beyond: Beyond::default(),
        beyond_at: None,
        layout,
    };
    launcher.introduce(&notes, resumed);
    let control = control::listen(&launcher.layout.control_socket());
    if let Err(error) = &control {
        launcher.screen.say(&format!("note: {error:#}; `howdah dev start` will start nodes on its own"));
    }
    launcher.linking = links::ensure(&launcher.program, &launcher.layout)?;
    for node in launcher.layout.nodes() {
        launcher.start(&node)?;
    }
    launcher.serve(control.ok()).await?;
    if let Some(load) = launcher.load.take() {
        load.stop(&launcher.screen).await;
    }
    let stopped = launcher.stop().await;
    // Nodes that have not stopped still need each other.
    if launcher.left().is_empty() {
        links::end(&launcher.layout)?;
        if let Some(linking) = &mut launcher.linking {
            let _ = linking.wait();
        }
    }
    let _ = std::fs::remove_file(launcher.layout.control_socket());
    stopped
}

impl Launcher {
    fn introduce(&self, notes: &[String], resumed: bool) {
        let Layout { dir, file } = &self.layout;
        let verb = if resumed { "resuming" } else { "starting" };
        self.screen.say(&format!("howdah dev: {verb} {} nodes in {}", file.nodes.len(), dir.display()));
        for note in notes {
            self.screen.say(&format!("note: {note}"));
        }
        for node in prepare::left_over(&self.layout) {
            let what = processes::describe(&processes::of_node(&node));
            self.screen.say(&format!("note: {} was left running: {what}", node.name));
        }
    }

    fn start(&mut self, node: &NodePaths) -> anyhow::Result<()> {
        self.tails.entry(node.name.clone()).or_insert_with(|| LogTail::from_end(node.log.clone()));
        let agent = match agent_process::running(node) {
            Some(id) => Agent { id, child: None },
            None => {
                let (child, id) = agent_process::spawn(&self.program, node)?;
                Agent { id, child: Some(child) }
            }
        };
        let verb = if agent.child.is_some() { "started" } else { "runs already" };
        self.tell(&node.name, &format!("agent {verb} (pid {}), REST on {}", agent.id.pid, node.rest));
        self.agents.insert(node.name.clone(), agent);
        Ok(())
    }

    fn tell(&self, name: &str, text: &str) {
        self.screen.node(clock::now().since(self.started), name, text);
    }

    /// Until Ctrl-C or SIGTERM.
    async fn serve(&mut self, mut control: Option<mpsc::Receiver<Request>>) -> anyhow::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                Some((request, stream)) = next_request(control.as_mut()) => {
                    let result = self.obey(&request);
                    control::answer(stream, &result).await;
                }
                _ = look.tick() => self.look().await,
            }
        }
    }

    fn obey(&mut self, request: &str) -> anyhow::Result<String> {
        let Some(name) = request.strip_prefix("start ") else {
            anyhow::bail!("understand {request:?}: only `start NODE` is known");
        };
        let node = self.layout.node(name)?;
        self.reap();
        if let Some(id) = agent_process::running(&node) {
            anyhow::bail!("start {name}: its agent runs already (pid {})", id.pid);
        }
        self.start(&node)?;
        Ok(format!("{name} is starting."))
    }

    /// One look at everything; tells what changed.
    async fn look(&mut self) {
        self.reap();
        let now = clock::now();
        let mut news = Vec::new();
        for (name, tail) in &mut self.tails {
            news.extend(tail.news(now).into_iter().map(|line| (name.clone(), line)));
        }
        for (name, line) in news {
            self.tell(&name, &line);
        }
        let layout = self.layout.clone();
        let Ok(nodes) = tokio::task::spawn_blocking(move || status::observe(&layout)).await else { return };
        for node in &nodes {
            let text = describe(node);
            if !text.is_empty() && self.told.get(&node.name) != Some(&text) {
                self.tell(&node.name, &text);
                self.told.insert(node.name.clone(), text);
            }
        }
        if !self.first_write_told {
            self.try_first_write().await;
        } else {
            self.tell_sentence(&nodes).await;
        }
        self.look_at_load().await;
        self.keep_links();
    }

    async fn try_first_write(&mut self) {
        let Some(name) = write_probe::first_writable(&self.layout.nodes(), &self.password).await else { return };
        self.first_write_told = true;
        self.tell(&name, "takes writes");
        let (uri, pgpass) = (self.layout.write_uri(), self.layout.pgpass());
        self.screen.say("");
        self.screen.say(&format!("  PGPASSFILE={} psql '{uri}'", pgpass.display()));
        if let Some(uri) = self.layout.router_uri() {
            self.screen.say(&format!("  PGPASSFILE={} psql '{uri}'    (through the router)", pgpass.display()));
        }
        if let Some(node) = self.layout.nodes().first() {
            self.screen.say(&format!("  Dashboard: http://{}/ui", node.rest));
        }
        self.screen.say("");
        let node = &self.layout.file.nodes.first().map_or("n1", |node| node.name.as_str());
        self.screen.say(&format!(
            "  In another terminal: howdah dev status | kill {node} | freeze {node} | thaw {node} | partition {node} | heal | start {node}"
        ));
        self.screen.say("  howdah top | why | history --verbose | drill kill-node");
        self.screen.say("  Ctrl-C stops all nodes; the data stays, and starting again resumes.");
        self.screen.say("");
    }

    /// Says how the whole is when it matters: who takes writes, how much may fail, or whether all is well has changed.
    async fn tell_sentence(&mut self, nodes: &[NodeStatus]) {
        if self.beyond_at.is_none_or(|at| ASK < clock::now().since(at)) {
            let layout = self.layout.clone();
            self.beyond = tokio::task::spawn_blocking(move || status::ask_beyond(&layout)).await.unwrap_or_default();
            self.beyond_at = Some(clock::now());
        }
        let beyond = &self.beyond;
        let summary = status::summarise(nodes, beyond);
        let zero_loss = beyond.zero_loss.is_some_and(|proven| summary.may_fail <= proven);
        let outlook =
            Outlook { primary: summary.primary, may_fail: summary.may_fail, zero_loss, healthy: summary.healthy };
        let sentence = summary.sentence;
        // While a new cluster grows, its nodes say enough; the first word on the whole is that it is healthy.
        let growing = self.outlook.is_none() && !outlook.healthy;
        if growing || self.outlook.as_ref() == Some(&outlook) {
            return;
        }
        let time = clock::now().since(self.started).as_secs_f64();
        self.screen.say(&format!("{time:6.1} s  {sentence}"));
        self.outlook = Some(outlook);
    }

    /// Starts the clients of `--load` when somebody takes writes, and tells what they count.
    async fn look_at_load(&mut self) {
        if !self.with_load || !self.first_write_told {
            return;
        }
        match &mut self.load {
            Some(load) => load.look(&self.screen, clock::now().since(self.started)).await,
            None => match load_line::LoadLine::start(&self.layout, &self.password).await {
                Ok(load) => self.load = Some(load),
                Err(error) => {
                    self.screen.say(&format!("note: no load yet: {error:#}"));
                }
            },
        }
    }

    /// Nodes that lose their links lose each other: not a fault that anybody has asked for.
    fn keep_links(&mut self) {
        if links::are_used(&self.layout) && links::running(&self.layout).is_none() {
            if let Some(child) = &mut self.linking {
                let _ = child.wait();
            }
            match links::ensure(&self.program, &self.layout) {
                Ok(child) => {
                    self.screen.say("note: the links between the nodes had ended; started again, with no cut");
                    self.linking = child;
                }
                Err(error) => self.screen.say(&format!("note: {error:#}")),
            }
        }
    }

    /// Notices agents that have ended.
    fn reap(&mut self) {
        let ended: Vec<String> = self
            .agents
            .iter_mut()
            .filter_map(|(name, agent)| match &mut agent.child {
                Some(child) => matches!(child.try_wait(), Ok(Some(_))).then(|| name.clone()),
                None => (!agent.id.is_alive()).then(|| name.clone()),
            })
            .collect();
        for name in ended {
            let Some(mut agent) = self.agents.remove(&name) else { continue };
            let status = agent.child.as_mut().and_then(|child| child.wait().ok());
            let how = status.map_or_else(|| "ended".to_owned(), |status| format!("ended ({status})"));
            self.tell(&name, &format!("its agent {how}"));
            let failed = status.is_some_and(|status| status.code().is_some_and(|code| code != 0));
            if failed && let Ok(node) = self.layout.node(&name) {
                for line in log_tail::last_lines(&node.log, LAST_LINES) {
                    self.tell(&name, &format!("| {line}"));
                }
                self.tell(&name, &format!("its whole log: {}", node.log.display()));
            }
        }
    }

    /// Stops all nodes cleanly; a second Ctrl-C, or too much time, ends the wait and says what is left.
    async fn stop(&mut self) -> anyhow::Result<ExitCode> {
        self.screen.say("stopping all nodes (Ctrl-C again kills them)");
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
        for node in self.layout.nodes() {
            if let Err(error) = self.ask_to_stop(&node) {
                self.tell(&node.name, &format!("{error:#}"));
            }
        }
        let deadline = clock::now() + STOP_PATIENCE;
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                _ = interrupt.recv() => return self.kill_all(),
                _ = look.tick() => {}
            }
            self.reap();
            let left = self.left();
            if left.is_empty() {
                self.screen.say("all nodes are stopped; `howdah dev` resumes");
                return Ok(ExitCode::SUCCESS);
            }
            if clock::now() > deadline {
                self.screen.say(&format!("after {} s these still run:", STOP_PATIENCE.as_secs()));
                for (name, what) in left {
                    self.screen.say(&format!("  {name}: {what} (end it with: howdah dev kill {name})"));
                }
                return Ok(ExitCode::FAILURE);
            }
        }
    }

    /// An agent stops its node. A node without one would run for ever, and is killed.
    fn ask_to_stop(&self, node: &NodePaths) -> anyhow::Result<()> {
        if let Some(agent) = agent_process::running(node) {
            agent.signal(Signal::TERM)?;
            // A frozen process hears of it only when it goes on.
            processes::thaw_node(node)?;
            return Ok(());
        }
        let killed = processes::kill_node(node, KILL_PATIENCE)?;
        if !killed.is_empty() {
            self.tell(&node.name, &format!("had no agent to stop it; killed {}", processes::describe(&killed)));
        }
        Ok(())
    }

    fn left(&self) -> Vec<(String, String)> {
        let nodes = self.layout.nodes().into_iter().map(|node| {
            let living = processes::of_node(&node);
            (node.name, living)
        });
        nodes
            .filter(|(_, living)| !living.is_empty())
            .map(|(name, living)| (name, processes::describe(&living)))
            .collect()
    }

    fn kill_all(&mut self) -> anyhow::Result<ExitCode> {
        for node in self.layout.nodes() {
            let killed = processes::kill_node(&node, KILL_PATIENCE)?;
            self.screen.say(&format!("{}: killed {}", node.name, processes::describe(&killed)));
        }
        self.reap();
        Ok(ExitCode::FAILURE)
    }
}

/// Waits for ever when there is no socket to wait on.
async fn next_request(control: Option<&mut mpsc::Receiver<Request>>) -> Option<Request> {
    match control {
        Some(requests) => requests.recv().await,
        None => std::future::pending().await,
    }
}

/// What a node is, in a few words; empty while it says nothing.
fn describe(node: &NodeStatus) -> String {
    match node.life {
        status::Life::Down => "is down".to_owned(),
        status::Life::Frozen => "is frozen".to_owned(),
        status::Life::CutOff => "is cut off from the others".to_owned(),
        status::Life::Leaderless => format!("has no agent; still there: {}", node.processes),
        status::Life::Up if node.role.is_empty() => String::new(),
        status::Life::Up => {
            let timeline = node.timeline.map(|number| format!(", timeline {number}")).unwrap_or_default();
            format!("{}, {}{timeline}", node.role, node.state)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use status::Life;

    #[test]
    fn a_node_is_told_in_a_few_words() {
        let mut node = NodeStatus {
            name: "n1".to_owned(),
            life: Life::Up,
            role: "replica".to_owned(),
            state: "streaming".to_owned(),
            timeline: Some(2),
            rest: String::new(),
            postgres: String::new(),
            processes: "guardian (pid 3)".to_owned(),
        };
        assert_eq!(describe(&node), "replica, streaming, timeline 2");
        node.role = String::new();
        assert_eq!(describe(&node), "", "silence is not news");
        node.life = Life::Leaderless;
        assert_eq!(describe(&node), "has no agent; still there: guardian (pid 3)");
    }
}
