//! Nodes without PostgreSQL, as processes, on free ports of the loopback, with whatever is said about TLS.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use howdah::telemetry::clock::now;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// Long enough for anything that works.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Voters {
    directory: TempDir,
    pub ports: Vec<u16>,
    children: Vec<Option<Child>>,
}

/// Free ports, all different: they are held until all are known.
pub fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<_> = (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = now() + PATIENCE;
    while !done() {
        assert!(now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Puts `patch` into `tree`, maps into maps.
pub fn merge(tree: &mut Value, patch: &Value) {
    match (tree, patch) {
        (Value::Object(tree), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(tree.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (tree, patch) => *tree = patch.clone(),
    }
}

impl Voters {
    /// Chooses ports, and starts nothing.
    pub fn new(count: usize) -> Self {
        let directory = tempfile::Builder::new().prefix("howdah-tls-").tempdir().unwrap();
        Self { directory, ports: free_ports(count), children: (0..count).map(|_| None).collect() }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn file(&self, index: usize) -> PathBuf {
        self.path().join(format!("n{}.yml", index + 1))
    }

    pub fn address(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.ports[index])
    }

    /// Writes a node's file.
    pub fn write(&self, index: usize, patch: &Value) {
        let members: Map<String, Value> =
            (0..self.ports.len()).map(|at| (format!("n{}", at + 1), json!(self.address(at)))).collect();
        let name = format!("n{}", index + 1);
        let mut tree = json!({
            "scope": "tls",
            "name": name,
            "raft": {"data_dir": self.path().join(&name), "secret": "only for these tests", "members": members},
            "restapi": {"listen": self.address(index)},
        });
        merge(&mut tree, patch);
        // JSON is YAML.
        std::fs::write(self.file(index), tree.to_string()).unwrap();
    }

    pub fn start(&mut self, index: usize) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log(index)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_howdah"));
        command.arg("run").arg(self.file(index)).stdin(Stdio::null());
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.children[index] = Some(child);
    }

    /// Ends a node in good order.
    pub fn stop(&mut self, index: usize) {
        let mut child = self.children[index].take().unwrap();
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap();
    }

    pub fn hang_up(&self, index: usize) {
        let child = self.children[index].as_ref().unwrap();
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    }

    fn log(&self, index: usize) -> PathBuf {
        self.path().join(format!("n{}.log", index + 1))
    }

    pub fn logged(&self, index: usize) -> String {
        std::fs::read_to_string(self.log(index)).unwrap_or_default()
    }
}

impl Drop for Voters {
    fn drop(&mut self) {
        for index in 0..self.ports.len() {
            if std::thread::panicking() {
                eprintln!("n{}:\n{}", index + 1, self.logged(index));
            }
            if let Some(mut child) = self.children[index].take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
