//! Three nodes without PostgreSQL, as processes, on free ports of the loopback.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use howdah::telemetry::clock::now;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Long enough for anything that works.
const PATIENCE: Duration = Duration::from_secs(60);
/// A client that is asked to try again elsewhere does not wait longer.
const ANSWER: Duration = Duration::from_secs(2);

pub struct Nodes {
    directory: TempDir,
    ports: Vec<u16>,
    etcd_ports: Vec<u16>,
    children: Vec<Option<Child>>,
}

/// Free ports, all different: they are held until all are known.
pub fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = now() + PATIENCE;
    while !done() {
        assert!(now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Nodes {
    /// Starts them and waits for a leader.
    pub fn start() -> Self {
        Self::start_with_quota("32MB")
    }

    /// As [`Nodes::start`], with room for so much data.
    pub fn start_with_quota(quota: &str) -> Self {
        let ports = free_ports(6);
        let (ports, etcd_ports) = ports.split_at(3);
        let directory = tempfile::Builder::new().prefix("howdah-compat-").tempdir().unwrap();
        let mut nodes = Self {
            directory,
            ports: ports.to_vec(),
            etcd_ports: etcd_ports.to_vec(),
            children: vec![None, None, None],
        };
        for index in 0..3 {
            nodes.write_file(index, quota);
            nodes.run(index);
        }
        until("there is a leader everywhere", || {
            (0..3).all(|index| nodes.etcdctl(index, &["get", "x"]).status.success())
        });
        nodes
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    fn write_file(&self, index: usize, quota: &str) {
        let members: serde_json::Map<String, Value> =
            (0..3).map(|at| (format!("n{}", at + 1), json!(format!("127.0.0.1:{}", self.ports[at])))).collect();
        let name = format!("n{}", index + 1);
        let file = json!({
            "scope": "compat",
            "name": name,
            "raft": {
                "data_dir": self.path().join(&name),
                "secret": "only for these tests",
                "members": members,
            },
            "restapi": {"listen": format!("127.0.0.1:{}", self.ports[index])},
            "etcd": {"listen": format!("127.0.0.1:{}", self.etcd_ports[index]), "quota": quota},
        });
        // JSON is YAML.
        std::fs::write(self.path().join(format!("{name}.yml")), file.to_string()).unwrap();
    }

    pub fn run(&mut self, index: usize) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path().join(format!("n{}.log", index + 1)))
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_howdah"))
            .arg("run")
            .arg(self.path().join(format!("n{}.yml", index + 1)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.children[index] = Some(child);
    }

    pub fn kill(&mut self, index: usize) {
        if let Some(mut child) = self.children[index].take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// The processes of those that run.
    pub fn pids(&self) -> Vec<u32> {
        self.children.iter().flatten().map(Child::id).collect()
    }

    pub fn signal(&self, index: usize, signal: rustix::process::Signal) {
        if let Some(child) = &self.children[index] {
            let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
            rustix::process::kill_process(pid, signal).unwrap();
        }
    }

    /// The node that leads the store, by its own account.
    pub fn leader(&self) -> Option<usize> {
        (0..3).find(|index| {
            let output = self.etcdctl(*index, &["endpoint", "status", "--command-timeout=1s", "-w", "json"]);
            let Ok(status) = serde_json::from_slice::<Value>(&output.stdout) else { return false };
            let status = &status[0]["Status"];
            status["leader"].is_u64() && status["leader"] == status["header"]["member_id"]
        })
    }

    /// The address of a node's main port.
    pub fn main_port(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.ports[index])
    }

    /// The address of a node's listener for etcd's clients.
    pub fn etcd_port(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.etcd_ports[index])
    }

    /// Debian's etcdctl against one node.
    pub fn etcdctl(&self, index: usize, args: &[&str]) -> Output {
        Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.etcd_port(index)))
            .args(args)
            .stdin(Stdio::null())
            .output()
            .expect("etcdctl runs: make setup installs it")
    }

    /// What etcdctl prints when it succeeds.
    pub fn ctl(&self, index: usize, args: &[&str]) -> String {
        let output = self.etcdctl(index, args);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "etcdctl {args:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// What etcdctl says when it fails, without its log lines.
    pub fn ctl_error(&self, index: usize, args: &[&str]) -> String {
        let output = self.etcdctl(index, args);
        assert!(!output.status.success(), "etcdctl {args:?} succeeded");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        text.lines().filter(|line| line.starts_with("Error:")).collect::<Vec<_>>().join("\n")
    }

    pub fn logs(&self) -> String {
        let read = |index| std::fs::read_to_string(self.path().join(format!("n{index}.log"))).unwrap_or_default();
        (1..=3).map(|index| format!("n{index}:\n{}", read(index))).collect()
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        for index in 0..3 {
            self.kill(index);
        }
    }
}

/// One cluster for all tests that only use it; each takes keys of its own.
pub fn shared() -> &'static Nodes {
    static NODES: OnceLock<Nodes> = OnceLock::new();
    let nodes = NODES.get_or_init(|| {
        // A static is never dropped: the nodes end with this process.
        end_with_us();
        Nodes::start()
    });
    for pid in nodes.pids() {
        assert!(Path::new(&format!("/proc/{pid}")).exists(), "a node has ended:\n{}", nodes.logs());
    }
    nodes
}

/// A process that waits for this one to end and then ends the nodes.
fn end_with_us() {
    extern "C" fn kill_children() {
        // Only children of this very process: the nodes that these tests started.
        let mine = std::process::id().to_string();
        let _ = Command::new("pkill").args(["-KILL", "-P", &mine, "howdah"]).status();
    }
    // SAFETY: the function takes nothing, returns nothing and does not unwind: its one call reports errors as values.
    #[allow(unsafe_code, reason = "the only way to be called at the end of a process")]
    unsafe {
        libc::atexit(kill_children);
    }
}

/// One JSON request; the status, and the answer if it is JSON.
pub async fn post(address: &str, path: &str, body: &Value) -> (u16, Value) {
    send(address, "POST", path, body.to_string()).await
}

/// As [`post`], when a node may be gone. The error says whether it is certain that nothing was received.
pub async fn try_post(address: &str, path: &str, body: &Value) -> Result<(u16, Value), bool> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let request =
        hyper::Request::post(format!("http://{address}{path}")).body(Full::new(Bytes::from(body.to_string()))).unwrap();
    let exchange = async {
        let response = client.request(request).await.map_err(|error| error.is_connect())?;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.map_err(|_| false)?.to_bytes();
        Ok((status, serde_json::from_slice(&bytes).map_err(|_| false)?))
    };
    tokio::time::timeout(ANSWER, exchange).await.unwrap_or(Err(false))
}

/// As [`post`], with headers.
pub async fn post_with(address: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> (u16, Value) {
    exchange(address, "POST", path, headers, body.to_string()).await
}

/// The lines of an answer that goes on, as they come.
pub fn lines(address: &str, path: &str, body: &Value) -> tokio::sync::mpsc::Receiver<String> {
    let (lines, received) = tokio::sync::mpsc::channel(64);
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let request =
        hyper::Request::post(format!("http://{address}{path}")).body(Full::new(Bytes::from(body.to_string()))).unwrap();
    tokio::spawn(async move {
        let mut body = client.request(request).await.unwrap().into_body();
        let mut text = String::new();
        while let Some(Ok(frame)) = body.frame().await {
            text.push_str(&String::from_utf8_lossy(&frame.into_data().unwrap_or_default()));
            while let Some((line, rest)) = text.split_once('\n') {
                let (line, rest) = (line.to_owned(), rest.to_owned());
                text = rest;
                if lines.send(line).await.is_err() {
                    return;
                }
            }
        }
    });
    received
}

pub async fn send(address: &str, method: &str, path: &str, body: String) -> (u16, Value) {
    exchange(address, method, path, &[], body).await
}

async fn exchange(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: String) -> (u16, Value) {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let mut request = hyper::Request::builder().method(method).uri(format!("http://{address}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body))).unwrap();
    let response = tokio::time::timeout(PATIENCE, client.request(request)).await.expect("an answer").unwrap();
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::String(String::from_utf8_lossy(&bytes).into_owned())))
}
