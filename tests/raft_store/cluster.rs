//! Nodes for tests: each in a runtime of its own, with a real listener, so that it can be killed
//! by dropping it and started again at the same address.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use howdah::kv::command::{Command, PutRequest, Response};
use howdah::raft::{Error, FatalHook, Store, StoreConfig, StoreError, raft_routes};
use howdah::telemetry::clock;
use howdah::telemetry::redact::Secret;
use howdah::types::{LeaseId, NodeName};
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};

pub const SOON: Duration = Duration::from_secs(20);
pub const CALL: Duration = Duration::from_secs(5);

/// One node; dropping it is like pulling the plug of its process.
pub struct TestNode {
    pub name: NodeName,
    pub store: Store,
    pub fatal: Arc<Mutex<Vec<String>>>,
    /// Whether the test expects it to stop being a member.
    pub may_end: bool,
    runtime: Option<Runtime>,
}

impl TestNode {
    pub fn start(config: StoreConfig) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let fatal = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&fatal);
        let hook: FatalHook = Arc::new(move |why: &str| heard.lock().expect("not poisoned").push(why.to_owned()));
        let name = config.name.clone();
        let addr: SocketAddr = config.advertise.parse().expect("an address");
        let (store, server) = on(runtime.handle(), Store::start(config, hook))?;
        on(runtime.handle(), async move {
            let listener = bind(addr).await;
            tokio::spawn(async move { axum::serve(listener, raft_routes(server)).await });
        });
        Ok(Self { name, store, fatal, may_end: false, runtime: Some(runtime) })
    }

    /// Runs something in the node's own runtime.
    pub fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        on(self.runtime.as_ref().expect("runs").handle(), work)
    }

    /// Hands something to the node's own runtime; the answer comes when it gets around to it.
    pub fn later<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Receiver<T> {
        let (tell, told) = std::sync::mpsc::channel();
        self.runtime.as_ref().expect("runs").spawn(async move { tell.send(work.await) });
        told
    }

    pub fn put(&self, key: &str, value: &str) -> Result<Response, StoreError> {
        self.propose(put(key, value, LeaseId(0)))
    }

    pub fn propose(&self, command: Command) -> Result<Response, StoreError> {
        let store = self.store.clone();
        self.run(async move { store.propose(command, CALL).await })
    }

    /// What a linearizable read sees.
    pub fn get(&self, key: &str) -> Result<Option<String>, StoreError> {
        let store = self.store.clone();
        let _guarantee = self.run(async move { store.linearize(CALL).await })?;
        Ok(self.local(key))
    }

    pub fn local(&self, key: &str) -> Option<String> {
        self.store.read(|kv| kv.get(key.as_bytes()).map(|pair| String::from_utf8_lossy(&pair.value).into_owned()))
    }

    pub fn leader(&self) -> Option<NodeName> {
        self.store.status().leader.map(|(_, name)| name)
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
        if !std::thread::panicking() && !self.may_end {
            assert_eq!(
                *self.fatal.lock().expect("not poisoned"),
                Vec::<String>::new(),
                "{} had a fatal end",
                self.name
            );
        }
    }
}

fn on<T: Send + 'static>(handle: &Handle, work: impl Future<Output = T> + Send + 'static) -> T {
    let (tell, told) = std::sync::mpsc::channel();
    handle.spawn(async move { tell.send(work.await) });
    told.recv_timeout(Duration::from_secs(120)).expect("the node's runtime answers")
}

async fn bind(addr: SocketAddr) -> TcpListener {
    let until = clock::now() + SOON;
    loop {
        match TcpListener::bind(addr).await {
            Ok(listener) => return listener,
            Err(error) if clock::now() > until => panic!("bind {addr}: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

pub fn put(key: &str, value: &str, lease: LeaseId) -> Command {
    Command::Put(PutRequest {
        key: key.into(),
        value: value.into(),
        lease,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    })
}

/// Waits for a condition.
#[track_caller]
pub fn until<T>(what: &str, within: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let end = clock::now() + within;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(clock::now() < end, "still waiting after {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A cluster of nodes under one directory.
pub struct Cluster {
    pub dir: tempfile::TempDir,
    pub members: BTreeMap<NodeName, String>,
    pub nodes: BTreeMap<String, TestNode>,
}

/// An address that nobody uses at the moment.
pub fn free_addr() -> String {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("an address").to_string()
}

impl Cluster {
    /// Names and addresses, nothing running.
    pub fn plan(names: &[&str]) -> Self {
        let members = names.iter().map(|name| (name.parse().expect("a name"), free_addr())).collect();
        Self { dir: tempfile::tempdir().expect("a directory"), members, nodes: BTreeMap::new() }
    }

    /// All members running, with a leader.
    pub fn start(names: &[&str]) -> Self {
        let mut cluster = Self::plan(names);
        for name in names {
            cluster.launch(name);
        }
        cluster.wait_leader();
        cluster
    }

    pub fn data_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn config(&self, name: &str) -> StoreConfig {
        let name: NodeName = name.parse().expect("a name");
        StoreConfig {
            cluster: "test".parse().expect("a name"),
            advertise: self.members.get(&name).cloned().unwrap_or_else(free_addr),
            members: self.members.clone(),
            data_dir: self.data_dir(name.as_str()),
            name,
            secret: Secret::new("correct horse battery".to_owned()),
            dialer: howdah::tls::Dialer::plain(),
            heartbeat: Duration::from_millis(50),
            election_min: Duration::from_millis(250),
            election_max: Duration::from_millis(500),
            snapshot_after: 500,
            retention: howdah::raft::Retention::default(),
        }
    }

    pub fn launch(&mut self, name: &str) {
        let config = self.config(name);
        self.launch_with(config);
    }

    pub fn launch_with(&mut self, config: StoreConfig) {
        let node = until("the data directory is free", SOON, || match TestNode::start(config.clone()) {
            Ok(node) => Some(node),
            // The disk thread of a node that was dropped just now may still be ending.
            Err(Error::Locked { .. }) => None,
            Err(error) => panic!("start {}: {error}", config.name),
        });
        self.nodes.insert(config.name.to_string(), node);
    }

    pub fn kill(&mut self, name: &str) {
        self.nodes.remove(name).expect("it runs");
    }

    pub fn node(&self, name: &str) -> &TestNode {
        &self.nodes[name]
    }

    /// The leader that all running nodes agree on and that runs.
    #[track_caller]
    pub fn wait_leader(&self) -> String {
        until("all running nodes agree on a running leader", SOON, || {
            let mut seen = self.nodes.values().map(TestNode::leader);
            let first = seen.next().flatten()?;
            (seen.all(|other| other.as_ref() == Some(&first)) && self.nodes.contains_key(first.as_str()))
                .then(|| first.to_string())
        })
    }

    pub fn follower(&self) -> String {
        let leader = self.wait_leader();
        self.nodes.keys().find(|name| **name != leader).expect("more than one node").clone()
    }
}
