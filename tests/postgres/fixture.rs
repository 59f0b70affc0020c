//! A node: an instance in a temporary directory, and its postmaster while one runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::Future;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use howdah::postgres::{
    ControlState, Credentials, DataDir, Follow, Instance, InstanceConfig, Progress, ServerSettings, SqlStatus, Upstream,
};
use howdah::types::StopMode;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Longest wait for anything here.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The directory of one test, open for the user that PostgreSQL runs as.
pub fn test_directory() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("howdah-pg-").tempdir().expect("temporary directory");
    // Root's temporary directories are closed to others; PostgreSQL's user must get in and make directories.
    if rustix::process::geteuid().is_root() {
        let user = howdah::postgres::OsUser::resolve(None, Path::new("/nonexistent")).expect("user postgres");
        std::os::unix::fs::chown(dir.path(), Some(user.uid), Some(user.gid)).expect("change owner");
    }
    dir
}

/// A configuration of a node below `dir`.
pub fn config(dir: &Path, name: &str) -> InstanceConfig {
    let listener = TcpListener::bind("127.0.0.1:0").expect("free port");
    let port = listener.local_addr().expect("address").port();
    InstanceConfig {
        name: name.parse().expect("name"),
        cluster: "demo".parse().expect("name"),
        data_dir: dir.join(name).join("data"),
        bin_dir: None,
        listen: "127.0.0.1".to_owned(),
        port,
        connect_address: ("127.0.0.1".to_owned(), port),
        os_user: None,
        run_dir: dir.join(name).join("run"),
        log_file: dir.join(name).join("postgresql.log"),
        parameters: BTreeMap::from([("fsync".to_owned(), "off".to_owned())]),
        pg_hba: None,
        pg_ident: None,
        recovery: BTreeMap::new(),
        copy_methods: Vec::new(),
        restore: None,
        base_conf: None,
        database: "postgres".to_owned(),
        initdb: Vec::new(),
        basebackup: Vec::new(),
        use_unix_socket: true,
        keep_aside: None,
    }
}

/// What a primary is asked to be.
pub fn settings(credentials: &Credentials) -> ServerSettings {
    ServerSettings {
        parameters: BTreeMap::new(),
        pg_hba: None,
        pg_ident: None,
        member_hosts: BTreeSet::from(["127.0.0.1".to_owned()]),
        synchronous_standby_names: None,
        follow: Follow::Nothing,
        recovery: BTreeMap::new(),
        credentials: credentials.clone(),
    }
}

/// An instance, and its postmaster while one runs.
pub struct Node {
    pub instance: Instance,
    pub server: Option<Child>,
}

impl Node {
    pub fn new(dir: &Path, name: &str) -> Self {
        Self::with(config(dir, name))
    }

    pub fn with(config: InstanceConfig) -> Self {
        Self { instance: Instance::new(config).expect("usable configuration"), server: None }
    }

    pub fn data_dir(&self) -> &Path {
        &self.instance.config().data_dir
    }

    /// A running primary on timeline 1, sealed.
    pub async fn primary(dir: &Path, name: &str, credentials: &Credentials) -> Self {
        let mut node = Self::new(dir, name);
        node.instance.initdb(credentials, &CancellationToken::new()).await.expect("initdb");
        node.instance.configure(&settings(credentials)).await.expect("configure");
        node.instance.prepare_primary().expect("prepare");
        node.start();
        node.until_accepting().await;
        node.instance.bootstrap_roles(credentials).await.expect("roles");
        node.instance.seal().expect("seal");
        node
    }

    /// A running standby of `of`, streaming through a slot of its own name.
    pub async fn standby(dir: &Path, name: &str, of: &Node, credentials: &Credentials) -> Self {
        let mut node = Self::new(dir, name);
        let slots = BTreeSet::from([name.to_owned()]);
        of.instance.sync_member_slots(&slots, &BTreeSet::new()).await.expect("slot");
        let (progress, _) = watch::channel(Progress::default());
        let upstream = of.as_upstream(name);
        node.instance.basebackup(&upstream, credentials, &progress, &CancellationToken::new()).await.expect("copy");
        node.follow(&upstream, credentials).await;
        node.start();
        node.until("streaming", is_streaming).await;
        node
    }

    /// Configures to follow and writes the standby signal.
    pub async fn follow(&self, upstream: &Upstream, credentials: &Credentials) {
        let wanted = ServerSettings { follow: Follow::Upstream(upstream.clone()), ..settings(credentials) };
        self.instance.configure(&wanted).await.expect("configure");
        self.instance.prepare_standby().expect("prepare");
    }

    /// This node as somebody's upstream.
    pub fn as_upstream(&self, slot: &str) -> Upstream {
        let config = self.instance.config();
        let (host, port) = config.connect_address.clone();
        Upstream { name: Some(config.name.clone()), host, port, slot: Some(slot.to_owned()) }
    }

    /// Starts the postmaster from the start command, as the guardian would.
    pub fn start(&mut self) {
        let spec = self.instance.start_spec();
        let log = fs::OpenOptions::new().append(true).open(&spec.log_file).expect("log file");
        let mut command = Command::new(&spec.program);
        command.args(&spec.args).env_clear().envs(&spec.env).current_dir(&spec.cwd).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("handle")).stderr(log);
        if let (Some(uid), Some(gid)) = (spec.uid, spec.gid) {
            command.gid(gid).uid(uid);
        }
        self.server = Some(command.spawn().expect("postmaster"));
    }

    pub fn pid(&self) -> u32 {
        self.server.as_ref().expect("running").id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("pid");
        kill_process(pid, signal).expect("signal");
    }

    /// Stops the server and waits for its end.
    pub async fn stop(&mut self, mode: StopMode) {
        self.signal(match mode {
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        });
        self.until_gone().await;
    }

    pub async fn until_gone(&mut self) {
        let mut server = self.server.take().expect("running");
        let ended = tokio::task::spawn_blocking(move || server.wait());
        tokio::time::timeout(PATIENCE, ended).await.expect("stops in time").expect("joined").expect("waited");
    }

    /// Makes the server promote itself, as `pg_ctl promote` does.
    pub async fn promote(&self) {
        self.psql("SELECT pg_promote(true, 30)").await;
        self.until("promoted", |status| !status.in_recovery()).await;
    }

    pub async fn until_accepting(&self) {
        self.until("accepting sessions", |_| true).await;
    }

    /// Waits until the status is as wanted and returns it.
    pub async fn until(&self, what: &str, wanted: impl Fn(&SqlStatus) -> bool) -> SqlStatus {
        let question = async || match self.instance.status().await {
            Ok(status) if wanted(&status) => Ok(status),
            other => Err(format!("{other:?}")),
        };
        eventually(&format!("{}: {what}", self.instance.config().name), question)
            .await
            .unwrap_or_else(|last| panic!("{last}\n{}", self.log()))
    }

    /// Runs SQL as the superuser over the socket and returns the output.
    pub async fn psql(&self, sql: &str) -> String {
        let config = self.instance.config();
        let user = self.instance.user();
        let mut command = tokio::process::Command::new(self.instance.binaries().program("psql"));
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-c", sql]);
        command.arg("-h").arg(&config.run_dir).arg("-p").arg(config.port.to_string()).env_clear();
        command.current_dir("/").stdin(Stdio::null()).kill_on_drop(true);
        if user.switch {
            command.gid(user.gid).uid(user.uid);
        }
        let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("answers in time").expect("psql");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{sql}: {errors}\n{}", self.log());
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.instance.config().log_file).unwrap_or_default()
    }

    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.data_dir().join(file)).expect("file of the data directory")
    }

    pub async fn control_state(&self) -> ControlState {
        let state = self.instance.inspect().await;
        state.control().unwrap_or_else(|| panic!("{state:?}")).state
    }

    pub async fn present(&self) -> howdah::postgres::PresentDataDir {
        match self.instance.inspect().await {
            DataDir::Present(present) => *present,
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // SIGQUIT makes the postmaster end its children; SIGKILL follows only if that does not help.
            let pid = i32::try_from(server.id()).ok().and_then(Pid::from_raw);
            let _ = pid.map(|pid| kill_process(pid, Signal::QUIT));
            for _ in 0..200 {
                if matches!(server.try_wait(), Ok(Some(_))) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

pub fn is_streaming(status: &SqlStatus) -> bool {
    match &status.role {
        howdah::postgres::SqlRole::Replica(replica) => replica.replication_state() == Some("streaming"),
        howdah::postgres::SqlRole::Primary(_) => false,
    }
}

/// Asks again until the answer is Ok, at most for [`PATIENCE`]; then the last answer is the error.
pub async fn eventually<T, F: Future<Output = Result<T, String>>>(
    what: &str,
    mut question: impl FnMut() -> F,
) -> Result<T, String> {
    let mut last = String::new();
    let asking = async {
        loop {
            match question().await {
                Ok(answer) => return answer,
                Err(why) => last = why,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let result = tokio::time::timeout(PATIENCE, asking).await;
    result.map_err(|_| format!("{what}: not within {PATIENCE:?}: {last}"))
}

/// Everything beside the data directory whose name begins like it.
pub fn beside(data_dir: &Path) -> Vec<String> {
    let parent = data_dir.parent().expect("parent");
    let mut names: Vec<String> = fs::read_dir(parent)
        .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.retain(|name| name.starts_with("data"));
    names.sort();
    names
}

/// Names of all files below a directory, for "nothing was changed".
pub fn listing(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                open.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}
