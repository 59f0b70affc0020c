//! Drives one real cluster: boots it, harms it, waits for conditions, and leaves nothing behind.
//!
//! temporary directory -> free ports -> the same files that `howdah dev` writes -> one agent per node.
//! Dropped: every process of every node is killed. Failed: the data stays, and its path is printed.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use howdah::dev::layout::{ClusterFile, Layout, LinkPorts, NodePaths, NodePorts, RouterPorts};
use howdah::dev::node_yaml::{self, Passwords, Settings};
use howdah::dev::place::{self, OsUser};
use howdah::dev::processes::{self, Kind, NodeProcess, ProcessId};
use howdah::dev::{agent_process, links, ports};
use howdah::telemetry::clock;
use howdah::types::Mono;
use rustix::process::Signal;

use crate::observe::{self, Seen};
use crate::report::measured;

/// The binary under test.
const HOWDAH: &str = env!("CARGO_BIN_EXE_howdah");
/// Longest wait for anything; generous, because the machine may be busy with something else.
pub const LIMIT: Duration = Duration::from_secs(90);
/// How long a killed or frozen process may take to be gone or to stand still.
const PATIENCE: Duration = Duration::from_secs(10);
/// Ports are taken from below the range that the kernel gives to outgoing connections: otherwise a
/// client's connection can sit on a killed node's port when the node comes back.
const PORTS: std::ops::Range<u16> = 12_000..31_000;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Where a node runs, when that is not simply here on loopback.
pub trait Ground: fmt::Debug + Send + Sync {
    /// The node's address.
    fn address(&self) -> Ipv4Addr;
    /// Takes the calling thread there; what it starts is there too.
    fn enter(&self);
}

/// How a cluster is to be made.
#[derive(Debug, Clone)]
pub struct Options {
    /// 1, 3 or 5.
    pub nodes: usize,
    /// Times and PostgreSQL settings; the product's defaults unless a test is about others.
    pub settings: Settings,
    /// Where PostgreSQL's programs are; none where they are found.
    pub bin_dir: Option<PathBuf>,
    /// The nodes reach each other through links, and can be cut off.
    pub links: bool,
    /// Where each node runs; none where all run here.
    pub grounds: Vec<Arc<dyn Ground>>,
    /// What is started as the agent; none for the binary under test itself.
    pub program: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        let grounds = Vec::new();
        Self { nodes: 3, settings: Settings::default(), bin_dir: None, links: false, grounds, program: None }
    }
}

/// What booting took.
#[derive(Debug, Clone, Copy, Default)]
pub struct BootTimes {
    /// From the start of the first agent to the first committed write.
    pub first_write: Duration,
    /// From the start of the first agent to a primary and streaming replicas.
    pub healthy: Duration,
}

/// A running cluster.
pub struct Cluster {
    pub layout: Layout,
    pub passwords: Passwords,
    pub boot: BootTimes,
    pub user: Option<OsUser>,
    bin_dir: Option<PathBuf>,
    grounds: Vec<Arc<dyn Ground>>,
    program: PathBuf,
    agents: BTreeMap<String, Child>,
    linking: Option<Child>,
    runtime: tokio::runtime::Runtime,
    // Before the directory: what lies in it goes first.
    belongings: Vec<Box<dyn Any + Send>>,
    directory: Option<tempfile::TempDir>,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Boots three nodes on empty directories and waits until all are healthy.
    pub fn boot(title: &str) -> Self {
        Self::boot_with(title, &Options::default())
    }

    /// Boots a cluster and waits until all nodes are healthy.
    pub fn boot_with(title: &str, options: &Options) -> Self {
        let mut cluster = Self::prepare(title, options);
        cluster.start();
        cluster
    }

    /// Starts every agent and waits until all nodes are healthy.
    pub fn start(&mut self) {
        let started = clock::now();
        for name in self.names() {
            self.start_agent(&name);
        }
        self.until("the first write is committed", LIMIT, |c| c.write_once());
        self.boot.first_write = clock::now().since(started);
        self.until_healthy();
        self.boot.healthy = clock::now().since(started);
        let BootTimes { first_write, healthy } = self.boot;
        let title = &self.layout.file.scope;
        measured(&format!("{title}: boot: first write {first_write:.2?}, all nodes healthy {healthy:.2?}"));
    }

    /// Writes a cluster's files and starts nothing.
    pub fn prepare(title: &str, options: &Options) -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let user = place::postgres_user().expect("a user who may run PostgreSQL");
        let directory =
            tempfile::Builder::new().prefix(&format!("howdah-{title}-")).tempdir().expect("temporary directory");
        let dir = directory.path().canonicalize().expect("it exists");
        place::create_passable(&dir).expect("open the directory to PostgreSQL's user");
        if let Some(user) = &user {
            let barrier = place::barrier(&dir, user);
            assert_eq!(barrier, None, "user {} cannot reach the test's directory; set TMPDIR to another", user.name);
        }
        let os_user = user.as_ref().map(|user| user.name.clone());
        let file = ClusterFile { format: 1, scope: title.to_owned(), os_user, nodes: reserve(options) };
        let layout = Layout { dir, file };
        layout.save().expect("cluster.json");
        for node in layout.nodes() {
            place::create_node_dir(&node.dir, user.as_ref()).expect("the node's directory");
        }
        let passwords = node_yaml::write_all(&layout, &options.settings).expect("the nodes' configuration");
        let bin_dir = options.bin_dir.clone();
        for node in layout.nodes().iter().filter(|_| bin_dir.is_some()) {
            edit_yaml(node, |tree| tree["postgresql"]["bin_dir"] = serde_json::json!(bin_dir));
        }
        let linking = links::ensure(Path::new(HOWDAH), &layout).expect("the links");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (agents, directory, boot) = (BTreeMap::new(), Some(directory), BootTimes::default());
        Self {
            layout,
            passwords,
            boot,
            user,
            bin_dir,
            grounds: options.grounds.clone(),
            program: options.program.clone().unwrap_or_else(|| PathBuf::from(HOWDAH)),
            agents,
            linking,
            runtime,
            belongings: Vec::new(),
            directory,
            _turn: turn,
        }
    }

    /// The nodes' names, in order.
    pub fn names(&self) -> Vec<String> {
        self.layout.file.nodes.iter().map(|node| node.name.clone()).collect()
    }

    /// All nodes but one.
    pub fn others(&self, name: &str) -> Vec<String> {
        self.names().into_iter().filter(|other| other != name).collect()
    }

    /// Paths and addresses of a node.
    pub fn node(&self, name: &str) -> NodePaths {
        self.layout.node(name).expect("a node of this cluster")
    }

    /// What the nodes say about themselves now.
    pub fn seen(&self) -> Vec<Seen> {
        observe::all(&self.layout)
    }

    /// The one node that says it is the running primary; none when no node or more than one says so.
    pub fn primary(&self) -> Option<String> {
        observe::primary(&self.seen())
    }

    /// The primary of a cluster that is known to have one.
    pub fn expect_primary(&self) -> String {
        self.primary().unwrap_or_else(|| panic!("there is no single primary\n{}", self.diagnosis()))
    }

    /// The node whose Raft replica leads, as the nodes agree on it.
    pub fn raft_leader(&self) -> Option<String> {
        observe::raft_leader(&self.seen())
    }

    /// Waits for a condition and fails with everything that is known when it does not come.
    pub fn until(&self, what: &str, limit: Duration, condition: impl Fn(&Self) -> bool) {
        let deadline = clock::now() + limit;
        while !condition(self) {
            if deadline <= clock::now() {
                // Short, for who has only an excerpt of the output.
                measured(&format!("waited {limit:?} in vain until {what}"));
                for seen in self.seen() {
                    measured(&format!("{} says: {}", seen.name, seen.summary().replace("\n   ", ";")));
                }
                panic!("waited {limit:?} in vain until {what}\n{}", self.diagnosis());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until there is one primary and every other node streams from it on its timeline.
    pub fn until_healthy(&self) {
        self.until("one primary and all others stream from it", LIMIT, |c| observe::is_healthy(&c.seen()));
    }

    /// Waits until the node is a streaming replica of a running primary.
    pub fn until_replica(&self, name: &str) {
        self.until(&format!("{name} is a streaming replica"), LIMIT, |c| observe::is_streaming(&c.seen(), name));
    }

    /// Waits until Raft's leader is not on the primary's node, where it is moved without hurry.
    pub fn until_raft_leader_elsewhere(&self) {
        self.until("the Raft leader is off the primary's node", LIMIT, |c| {
            let seen = c.seen();
            matches!((observe::raft_leader(&seen), observe::primary(&seen)), (Some(a), Some(b)) if a != b)
        });
    }

    /// Starts a node's agent, as a person or systemd would.
    pub fn start_agent(&mut self, name: &str) {
        self.reap();
        let node = self.node(name);
        let place = self.layout.file.nodes.iter().position(|other| other.name == name).expect("a node of this cluster");
        let ground = self.grounds.get(place).cloned();
        let program = &self.program;
        // In a thread of its own, because there is no way back from other ground.
        let started = std::thread::scope(|scope| {
            let work = scope.spawn(move || {
                ground.iter().for_each(|ground| ground.enter());
                agent_process::spawn(program, &node)
            });
            work.join().expect("starting does not panic")
        });
        let (child, _) = started.expect("start the agent");
        self.agents.insert(name.to_owned(), child);
    }

    /// Whether the node's agent, started from here, has not ended.
    pub fn agent_lives(&mut self, name: &str) -> bool {
        self.reap();
        self.agents.contains_key(name)
    }

    /// Changes a node's configuration before its agent is started.
    pub fn edit_yaml(&self, name: &str, change: impl FnOnce(&mut serde_json::Value)) {
        edit_yaml(&self.node(name), change);
    }

    /// Takes something over that must outlive the nodes' processes, but not the directory.
    pub fn take_over(&mut self, belonging: impl Any + Send) {
        self.belongings.push(Box::new(belonging));
    }

    /// Sends a signal to a node's agent alone.
    pub fn signal_agent(&mut self, name: &str, signal: Signal) {
        let id = agent_process::running(&self.node(name)).expect("the agent runs");
        assert!(id.signal(signal).expect("permitted"), "the agent of {name} was gone");
        if signal == Signal::KILL {
            let child = self.agents.get_mut(name).expect("we started it");
            child.wait().expect("reap the agent");
        }
    }

    /// Kills agent, guardian and PostgreSQL of a node, as a power cut would.
    pub fn kill_node(&mut self, name: &str) {
        processes::kill_node(&self.node(name), PATIENCE).expect("kill the node");
        self.reap();
    }

    /// Kills every process of every node at the same time.
    pub fn kill_everything(&mut self) {
        std::thread::scope(|scope| {
            for node in self.layout.nodes() {
                scope.spawn(move || processes::kill_node(&node, PATIENCE).expect("kill the node"));
            }
        });
        self.reap();
    }

    /// Stops every process of a node in its tracks.
    pub fn freeze_node(&self, name: &str) {
        processes::freeze_node(&self.node(name), PATIENCE).expect("freeze the node");
    }

    /// Lets every process of a node go on.
    pub fn thaw_node(&self, name: &str) {
        processes::thaw_node(&self.node(name)).expect("thaw the node");
    }

    /// The living processes of a node.
    pub fn processes(&self, name: &str) -> Vec<NodeProcess> {
        processes::of_node(&self.node(name))
    }

    /// Whether any process of the node's PostgreSQL lives.
    pub fn postgres_lives(&self, name: &str) -> bool {
        self.processes(name).iter().any(|process| process.kind == Kind::Postgres)
    }

    /// The node's postmaster, when it lives.
    pub fn postmaster(&self, name: &str) -> Option<ProcessId> {
        let text = std::fs::read_to_string(self.node(name).data.join("postmaster.pid")).ok()?;
        processes::identify(text.lines().next()?.trim().parse().ok()?)
    }

    /// The data directory's inode: it stays when the directory was repaired, and differs when replaced.
    pub fn data_inode(&self, name: &str) -> u64 {
        std::fs::metadata(self.node(name).data).expect("a data directory").ino()
    }

    /// Runs SQL on a node and returns the first column of each row as text.
    pub fn sql(&self, name: &str, sql: &str) -> Result<Vec<String>, String> {
        let config = self.connection(name);
        let work = async {
            let (client, connection) = config.connect(tokio_postgres::NoTls).await.map_err(|e| format!("{e:?}"))?;
            let driver = tokio::spawn(connection);
            let rows = client.simple_query(sql).await.map_err(|e| format!("{e:?}"))?;
            driver.abort();
            Ok(rows
                .iter()
                .filter_map(|message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
                    _ => None,
                })
                .collect())
        };
        self.runtime.block_on(async {
            let limit = Duration::from_secs(5);
            tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err("no answer within 5 s".to_owned()))
        })
    }

    /// How a client connects to one node as the superuser.
    pub fn connection(&self, name: &str) -> tokio_postgres::Config {
        let address = self.node(name).postgres;
        let mut config = tokio_postgres::Config::new();
        config
            .host(address.ip().to_string())
            .port(address.port())
            .user("postgres")
            .password(self.passwords.superuser.expose())
            .dbname("postgres")
            .application_name("howdah-e2e");
        config
    }

    fn write_once(&self) -> bool {
        // A commit that leaves no object behind.
        let write = "select pg_logical_emit_message(true, 'howdah', 'first write')";
        self.names().iter().any(|name| self.sql(name, write).is_ok())
    }

    /// A program of PostgreSQL, to be run by the user who may.
    pub fn postgres_command(&self, program: &str) -> Command {
        match &self.bin_dir {
            Some(dir) => command_of(self.user.as_ref(), dir.join(program)),
            None => postgres_command(self.user.as_ref(), program),
        }
    }

    /// Makes a killed primary's history differ from its successor's: writes to it while it is alone.
    pub fn write_in_secret(&self, name: &str) {
        assert_eq!(self.processes(name), [], "{name} must be down for this");
        let mut command = self.postgres_command("postgres");
        // Alone it has nobody to wait for.
        command.args(["--single", "-c", "synchronous_standby_names=", "-D"]).arg(self.node(name).data).arg("postgres");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("start postgres --single");
        let script = b"create table secret_history as select generate_series(1, 1000) as i;\ncheckpoint;\n";
        std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), script).expect("send SQL");
        let output = child.wait_with_output().expect("it ends");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !text.contains("ERROR"), "postgres --single failed: {text}");
    }

    /// Ends the children that have ended.
    fn reap(&mut self) {
        self.agents.retain(|_, child| matches!(child.try_wait(), Ok(None)));
    }

    /// Everything that helps to understand a failure.
    pub fn diagnosis(&self) -> String {
        let mut text = String::new();
        for seen in self.seen() {
            text += &format!("--- {} says: {}\n", seen.name, seen.summary());
            let node = self.node(&seen.name);
            text += &format!("    processes: {}\n", processes::describe(&processes::of_node(&node)));
            for log in [&node.log, &node.guardian_log()] {
                text += &format!("    {}:\n{}", log.display(), last_lines(log, 25));
            }
        }
        text
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(directory) = self.directory.take()
        {
            measured(&format!("kept {}", directory.keep().display()));
        }
        for node in self.layout.nodes() {
            if let Err(error) = processes::kill_node(&node, PATIENCE) {
                measured(&format!("left behind: {error:#}"));
            }
        }
        for child in self.agents.values_mut() {
            let _ = child.wait();
        }
        if let Some(child) = &mut self.linking {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn edit_yaml(node: &NodePaths, change: impl FnOnce(&mut serde_json::Value)) {
    let text = std::fs::read_to_string(&node.yaml).expect("written a moment ago");
    let mut tree: serde_json::Value = serde_yaml_ng::from_str(&text).expect("valid");
    change(&mut tree);
    std::fs::write(&node.yaml, tree.to_string()).expect("writable");
}

/// Names and free ports for the nodes.
fn reserve(options: &Options) -> Vec<NodePorts> {
    let count = options.nodes;
    let wanted = u16::try_from(count * 6).expect("a handful of nodes");
    let first = rand::Rng::random_range(&mut rand::rng(), PORTS);
    let (ports, _) = ports::choose(first, wanted, &mut Vec::new(), ports::is_free);
    assert_eq!(ports.len(), usize::from(wanted), "no free ports from {first} upwards");
    (0..count)
        .map(|i| NodePorts {
            name: format!("n{}", i + 1),
            rest: ports[i * 6],
            postgres: ports[i * 6 + 1],
            router: Some(RouterPorts { primary: ports[i * 6 + 2], replicas: ports[i * 6 + 3] }),
            links: options.links.then(|| LinkPorts { rest: ports[i * 6 + 4], postgres: ports[i * 6 + 5] }),
            host: options.grounds.get(i).map(|ground| ground.address()),
        })
        .collect()
}

/// A program of PostgreSQL, to be run by the user who may.
pub fn postgres_command(user: Option<&OsUser>, program: &str) -> Command {
    command_of(user, postgres_program(program))
}

fn command_of(user: Option<&OsUser>, program: PathBuf) -> Command {
    let mut command = Command::new(program);
    if let Some(user) = user {
        command.uid(user.uid).gid(user.groups.first().copied().expect("a group"));
    }
    command.current_dir("/");
    command
}

/// Finds a program of PostgreSQL as a person would: PATH, then the newest of Debian's directories.
pub fn postgres_program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    versions.sort();
    places.extend(versions.into_iter().rev());
    places
        .into_iter()
        .map(|place| place.join(name))
        .find(|program| program.is_file())
        .expect("PostgreSQL is installed (run `make setup`)")
}

/// Settings for [`Options`] with other times than the defaults.
#[allow(dead_code)] // not every program that includes this file needs it
pub fn timing(ttl: f64, loop_wait: f64, retry_timeout: f64) -> Settings {
    Settings { timing: [ttl, loop_wait, retry_timeout], ..Settings::default() }
}

fn last_lines(path: &Path, count: usize) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(count)).map(|line| format!("      {line}\n")).collect()
}

/// The clock that every figure is measured on.
pub fn now() -> Mono {
    clock::now()
}
