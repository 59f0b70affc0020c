//! Finds and signals the processes of one node: agent, guardian, and everything of its PostgreSQL.
//!
//! agent.pid + process table -> the processes that are this node's, each with its start time
//! -> open a handle, compare the start time again, signal. A number alone is never signalled:
//! the kernel gives it to somebody else one day.
//!
//! PostgreSQL's processes are found by their working directory, which is the data directory, because
//! each backend has called setsid: no process group or session holds them together.
//! Source: PostgreSQL, `src/backend/postmaster` (`InitPostmasterChild`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal};

use super::layout::{NodePaths, write_file};
use super::process_table::{self, Row};
use crate::telemetry::clock;

/// Programs that work on a data directory; only these are taken for PostgreSQL's by their directory.
const POSTGRES_PROGRAMS: [&str; 6] = ["postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_ctl", "pg_controldata"];

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessId {
    /// The number.
    pub pid: i32,
    /// When it started, in the kernel's ticks since boot.
    pub started: u64,
}

/// What a process is to its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `howdah run`.
    Agent,
    /// `howdah guardian`.
    Guardian,
    /// The postmaster, its children, and tools like pg_basebackup.
    Postgres,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Agent => "agent",
            Kind::Guardian => "guardian",
            Kind::Postgres => "PostgreSQL",
        })
    }
}

/// One process of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeProcess {
    /// Which.
    pub id: ProcessId,
    /// What it is.
    pub kind: Kind,
    /// Whether it was stopped by a signal (frozen).
    pub frozen: bool,
}

/// The living processes of a node, agent first, then guardian, then PostgreSQL in order of their numbers.
pub fn of_node(node: &NodePaths) -> Vec<NodeProcess> {
    pick(node, &process_table::read())
}

/// As [`of_node`], from a table that has been read already.
pub fn pick(node: &NodePaths, table: &[Row]) -> Vec<NodeProcess> {
    let mut found: BTreeMap<i32, Kind> = BTreeMap::new();
    if let Some(agent) = read_agent_pid(&node.agent_pid)
        && table.iter().any(|row| row.id == agent)
    {
        found.insert(agent.pid, Kind::Agent);
    }
    for row in table.iter().filter(|row| is_guardian_of(row, node)) {
        found.insert(row.id.pid, Kind::Guardian);
    }
    let roots: BTreeSet<i32> = found.keys().copied().collect();
    for row in table {
        if found.contains_key(&row.id.pid) {
            continue;
        }
        let works_here = row.cwd.as_deref().is_some_and(|cwd| is_within(cwd, &node.dir));
        let by_directory = works_here && POSTGRES_PROGRAMS.contains(&row.program.as_str());
        if by_directory || descends_from(row, &roots, table) {
            found.insert(row.id.pid, Kind::Postgres);
        }
    }
    let mut processes: Vec<NodeProcess> = table
        .iter()
        .filter_map(|row| {
            found.get(&row.id.pid).map(|kind| NodeProcess { id: row.id, kind: *kind, frozen: row.frozen })
        })
        .collect();
    processes.sort_by_key(|process| (process.kind, process.id.pid));
    processes
}

fn is_within(cwd: &Path, dir: &Path) -> bool {
    let canonical = dir.canonicalize().unwrap_or_else(|_| PathBuf::from(dir));
    cwd.starts_with(canonical)
}

/// Whether it is this node's guardian, or the companion that the guardian forks: both carry the command line that
/// names the node's socket and data directory. The companion outlives its guardian by a moment.
fn is_guardian_of(row: &Row, node: &NodePaths) -> bool {
    if !row.arguments.iter().any(|argument| argument == "guardian") {
        return false;
    }
    let socket = node.guardian_socket();
    row.arguments.iter().zip(row.arguments.iter().skip(1)).any(|(option, value)| match option.as_str() {
        "--socket" => is_same(Path::new(value), &socket),
        "--data-dir" => is_same(Path::new(value), &node.data),
        _ => false,
    })
}

fn is_same(left: &Path, right: &Path) -> bool {
    left == right || matches!((left.canonicalize(), right.canonicalize()), (Ok(left), Ok(right)) if left == right)
}

fn descends_from(row: &Row, roots: &BTreeSet<i32>, table: &[Row]) -> bool {
    let mut parent = row.parent;
    // The table is no single moment: a bound keeps a strange one from looping.
    for _ in 0..64 {
        if roots.contains(&parent) {
            return true;
        }
        match table.iter().find(|candidate| candidate.id.pid == parent) {
            Some(next) if next.parent != parent => parent = next.parent,
            _ => return false,
        }
    }
    false
}

/// Identifies a living process by its number; none when there is none, or only its zombie.
pub fn identify(pid: i32) -> Option<ProcessId> {
    process_table::row(pid).map(|row| row.id)
}

/// Notes which process is a node's agent.
///
/// # Errors
/// When the file cannot be written.
pub fn write_agent_pid(path: &Path, id: ProcessId) -> anyhow::Result<()> {
    write_file(path, &format!("{} {}\n", id.pid, id.started), 0o644)
}

/// The agent that a pid file names, whether or not it still lives.
pub fn read_agent_pid(path: &Path) -> Option<ProcessId> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut words = text.split_whitespace();
    let pid = words.next()?.parse().ok()?;
    let started = words.next()?.parse().ok()?;
    Some(ProcessId { pid, started })
}

impl ProcessId {
    /// Whether exactly this process still lives.
    pub fn is_alive(self) -> bool {
        identify(self.pid) == Some(self)
    }

    /// Sends a signal to exactly this process; false when it is gone.
    ///
    /// # Errors
    /// When the signal is not permitted.
    pub fn signal(self, signal: Signal) -> anyhow::Result<bool> {
        let Some(pid) = Pid::from_raw(self.pid) else { bail!("signal process {}: not a process number", self.pid) };
        send(self, pid, signal).with_context(|| format!("send {signal:?} to process {}", self.pid))
    }
}

/// The handle pins the process: after the start time was compared, the number cannot be reused unnoticed.
#[cfg(target_os = "linux")]
fn send(id: ProcessId, pid: Pid, signal: Signal) -> rustix::io::Result<bool> {
    use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};
    let handle = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(rustix::io::Errno::SRCH) => return Ok(false),
        Err(error) => return Err(error),
    };
    if !id.is_alive() {
        return Ok(false);
    }
    match pidfd_send_signal(&handle, signal) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Without process handles a moment remains between the comparison and the signal.
#[cfg(not(target_os = "linux"))]
fn send(id: ProcessId, pid: Pid, signal: Signal) -> rustix::io::Result<bool> {
    if !id.is_alive() {
        return Ok(false);
    }
    match rustix::process::kill_process(pid, signal) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Kills every process of a node and returns those that were there. Returns when all are gone.
///
/// # Errors
/// When some outlive `patience`, or may not be signalled; the message names them.
pub fn kill_node(node: &NodePaths, patience: Duration) -> anyhow::Result<Vec<NodeProcess>> {
    let deadline = clock::now() + patience;
    let mut killed: BTreeMap<ProcessId, NodeProcess> = BTreeMap::new();
    loop {
        let living = of_node(node);
        if living.is_empty() {
            return Ok(killed.into_values().collect());
        }
        for process in living.iter() {
            process.id.signal(Signal::KILL)?;
            killed.insert(process.id, process.clone());
        }
        if clock::now() > deadline {
            bail!("kill node {}: still there after {patience:?}: {}", node.name, describe(&living));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Stops every process of a node in its tracks, in the order of `of_node`; returns when all stand still.
///
/// # Errors
/// As [`kill_node`].
pub fn freeze_node(node: &NodePaths, patience: Duration) -> anyhow::Result<Vec<NodeProcess>> {
    let deadline = clock::now() + patience;
    loop {
        let living = of_node(node);
        if living.iter().all(|process| process.frozen) {
            return Ok(living);
        }
        for process in living.iter().filter(|process| !process.frozen) {
            process.id.signal(Signal::STOP)?;
        }
        if clock::now() > deadline {
            bail!("freeze node {}: still running after {patience:?}: {}", node.name, describe(&living));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Lets every process of a node go on, within microseconds of each other as a thawed host would.
///
/// # Errors
/// When one may not be signalled.
pub fn thaw_node(node: &NodePaths) -> anyhow::Result<Vec<NodeProcess>> {
    let living = of_node(node);
    for process in &living {
        process.id.signal(Signal::CONT)?;
    }
    Ok(living)
}

/// `agent (pid 12), guardian (pid 13), PostgreSQL (7 processes)`.
pub fn describe(processes: &[NodeProcess]) -> String {
    let mut parts = Vec::new();
    for kind in [Kind::Agent, Kind::Guardian, Kind::Postgres] {
        let pids: Vec<i32> = processes.iter().filter(|p| p.kind == kind).map(|p| p.id.pid).collect();
        match pids.as_slice() {
            [] => {}
            [pid] => parts.push(format!("{kind} (pid {pid})")),
            many => parts.push(format!("{kind} ({} processes)", many.len())),
        }
    }
    if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::layout::{ClusterFile, Layout, NodePorts};
    use std::process::{Child, Command};

    fn node(dir: &Path) -> NodePaths {
        let nodes =
            vec![NodePorts { name: "n1".to_owned(), rest: 1, postgres: 2, router: None, links: None, host: None }];
        let file = ClusterFile { format: 1, scope: "demo".to_owned(), os_user: None, nodes };
        let node = Layout { dir: dir.to_owned(), file }.node("n1").expect("n1");
        std::fs::create_dir_all(&node.raft).expect("create");
        node
    }

    fn row(pid: i32, parent: i32, program: &str, cwd: Option<&Path>, arguments: &[&str]) -> Row {
        Row {
            id: ProcessId { pid, started: 100 },
            parent,
            program: program.to_owned(),
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
            cwd: cwd.map(Path::to_owned),
            frozen: false,
        }
    }

    #[test]
    fn a_node_is_its_agent_guardian_and_postgres_and_nothing_else() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let node = node(dir.path());
        std::fs::create_dir_all(&node.data).expect("create");
        let data = node.data.canonicalize().expect("there");
        write_agent_pid(&node.agent_pid, ProcessId { pid: 10, started: 100 }).expect("write");
        let (socket, data_dir) = (node.guardian_socket().display().to_string(), node.data.display().to_string());
        let table = [
            row(10, 1, "howdah", None, &["howdah", "run", "n1.yml"]),
            row(11, 10, "pg_basebackup", None, &["pg_basebackup"]),
            row(20, 1, "howdah", None, &["howdah", "guardian", "--detach", "--socket", &socket]),
            row(23, 20, "howdah", None, &["howdah", "guardian", "--data-dir", &data_dir]),
            row(60, 1, "howdah", None, &["howdah", "guardian", "--detach", "--socket", "/other/raft/guardian.sock"]),
            row(21, 20, "postgres", Some(&data), &["postgres"]),
            row(22, 21, "postgres", Some(&data), &["postgres: checkpointer"]),
            row(30, 1, "postgres", Some(&data), &["postgres: orphan"]),
            row(40, 1, "bash", Some(&data), &["bash"]),
            row(50, 1, "postgres", Some(Path::new("/elsewhere")), &["postgres"]),
        ];
        let found: Vec<(i32, Kind)> = pick(&node, &table).iter().map(|p| (p.id.pid, p.kind)).collect();
        let postgres = Kind::Postgres;
        assert_eq!(
            found,
            [
                (10, Kind::Agent),
                (20, Kind::Guardian),
                (23, Kind::Guardian),
                (11, postgres),
                (21, postgres),
                (22, postgres),
                (30, postgres)
            ]
        );
    }

    #[test]
    fn a_reused_number_is_not_taken_for_the_agent() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let node = node(dir.path());
        write_agent_pid(&node.agent_pid, ProcessId { pid: 10, started: 99 }).expect("write");
        let table = [row(10, 1, "vim", None, &["vim"])];
        assert_eq!(pick(&node, &table), []);
    }

    /// A real child, ended by its handle whatever the test does.
    struct Sleeper(Child);

    impl Sleeper {
        fn start() -> (Self, ProcessId) {
            let child = Command::new("sleep").arg("60").spawn().expect("sleep");
            let pid = i32::try_from(child.id()).expect("a pid");
            (Self(child), identify(pid).expect("it lives"))
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_signal_reaches_exactly_the_process_that_was_meant() {
        let (mut sleeper, id) = Sleeper::start();
        let impostor = ProcessId { started: id.started + 1, ..id };
        assert!(!impostor.signal(Signal::KILL).expect("permitted"), "the start time differs");
        assert!(id.is_alive());
        assert!(id.signal(Signal::KILL).expect("permitted"));
        sleeper.0.wait().expect("reap");
        assert!(!id.is_alive());
        assert!(!id.signal(Signal::KILL).expect("gone is no error"));
    }

    #[test]
    fn a_zombie_is_not_alive() {
        let mut child = Command::new("true").spawn().expect("true");
        let pid = i32::try_from(child.id()).expect("a pid");
        let deadline = clock::now() + Duration::from_secs(10);
        while identify(pid).is_some() {
            assert!(clock::now() < deadline, "the child never became a zombie");
            std::thread::yield_now();
        }
        child.wait().expect("reap");
    }

    #[test]
    fn a_node_freezes_thaws_and_dies_as_a_whole() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let node = node(dir.path());
        let (mut sleeper, id) = Sleeper::start();
        write_agent_pid(&node.agent_pid, id).expect("write");
        let patience = Duration::from_secs(10);
        assert!(freeze_node(&node, patience).expect("freeze").iter().all(|process| process.frozen));
        thaw_node(&node).expect("thaw");
        assert!(of_node(&node).iter().all(|process| !process.frozen));
        // The test is the parent, so the killed child must be reaped while `kill_node` waits.
        let reaper = std::thread::spawn(move || sleeper.0.wait().expect("reap"));
        let killed = kill_node(&node, patience).expect("kill");
        assert_eq!(describe(&killed), format!("agent (pid {})", id.pid));
        reaper.join().expect("join");
        assert_eq!(describe(&of_node(&node)), "nothing");
    }
}
