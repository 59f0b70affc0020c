//! One node's worth of world: a data directory, a guardian, a PostgreSQL, and ways to look at and hurt them.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use howdah::guardian::{
    Error, Guardian, GuardianConfig, GuardianStatus, PostgresProcess, Refusal, StartMode, StartRequest, WatchdogConfig,
};
use howdah::telemetry::clock::now;
use howdah::types::{LeaderPermit, Mono, Term};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::{Mutex, MutexGuard, watch};

/// No processes.
pub const NOBODY: [i32; 0] = [];

/// How long anything may take before a test fails.
pub const LONG: Duration = Duration::from_secs(20);

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

pub struct World {
    pub data_dir: PathBuf,
    pub config: GuardianConfig,
    pub port: u16,
    directory: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

pub fn bin(program: &str) -> PathBuf {
    let directory = std::env::var_os("PG_BIN").map_or_else(|| "/usr/lib/postgresql/15/bin".into(), PathBuf::from);
    let path = directory.join(program);
    assert!(path.exists(), "{} is missing; set PG_BIN to PostgreSQL's programs", path.display());
    path
}

/// The user that PostgreSQL runs as: `postgres` for root, else whoever runs the tests.
pub fn user() -> Option<(u32, u32)> {
    static USER: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *USER.get_or_init(|| {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        let line = passwd.lines().find(|line| line.starts_with("postgres:")).expect("root needs a user postgres");
        let mut fields = line.split(':').skip(2).map(|field| field.parse().unwrap());
        Some((fields.next().unwrap(), fields.next().unwrap()))
    })
}

pub fn as_user(command: &mut Command) -> &mut Command {
    if let Some((uid, gid)) = user() {
        command.uid(uid).gid(gid);
    }
    command.current_dir("/")
}

/// A data directory made once and copied for each test; removed when the process exits, since statics never drop.
fn template() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    extern "C" fn remove() {
        if let Some(parent) = PATH.get().and_then(|path| path.parent()) {
            let _ = fs::remove_dir_all(parent);
        }
    }
    PATH.get_or_init(|| {
        let path = open_directory().keep().join("data");
        #[allow(unsafe_code)]
        // SAFETY: the function neither panics nor needs anything that is gone at exit.
        unsafe {
            libc::atexit(remove);
        }
        let done = as_user(&mut Command::new(bin("initdb")))
            .args(["-N", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "-D"])
            .arg(&path)
            .output()
            .unwrap();
        assert!(done.status.success(), "initdb: {}", String::from_utf8_lossy(&done.stderr));
        path
    })
}

/// Owned by PostgreSQL's user, and reachable for it.
fn open_directory() -> tempfile::TempDir {
    let directory = tempfile::Builder::new().prefix("guardian").tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    if let Some((uid, gid)) = user() {
        chown(directory.path(), Some(uid), Some(gid)).unwrap();
    }
    directory
}

impl World {
    pub async fn new() -> Self {
        let turn = ONE_AT_A_TIME.lock().await;
        let directory = open_directory();
        let data_dir = directory.path().join("data");
        let copied = Command::new("cp").arg("-a").arg(template()).arg(&data_dir).status().unwrap();
        assert!(copied.success());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = GuardianConfig {
            socket: directory.path().join("guardian.sock"),
            data_dir: data_dir.clone(),
            program: env!("CARGO_BIN_EXE_howdah").into(),
            name: "n1".parse().unwrap(),
            log_file: Some(directory.path().join("guardian.log")),
            watchdog: WatchdogConfig::default(),
        };
        Self { data_dir, config, port, directory, _turn: turn }
    }

    pub async fn attach(&self) -> (Guardian, watch::Receiver<GuardianStatus>) {
        Guardian::attach(self.config.clone()).await.unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.data_dir.join(name)
    }

    /// As PostgreSQL's user would.
    pub fn put(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        if let Some((uid, gid)) = user() {
            chown(self.path(name), Some(uid), Some(gid)).unwrap();
        }
    }

    pub fn log(&self) -> String {
        let read = |name| fs::read_to_string(self.directory.path().join(name)).unwrap_or_default();
        format!("guardian:\n{}\npostgres:\n{}", read("guardian.log"), read("postgres.log"))
    }

    pub fn request(&self, mode: StartMode) -> StartRequest {
        let directory = self.directory.path().display();
        let settings = [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("unix_socket_directories={directory}"),
            "fsync=off".to_owned(),
            "shared_buffers=16MB".to_owned(),
            "max_connections=150".to_owned(),
        ];
        let mut args = vec!["-p".to_owned(), self.port.to_string()];
        args.extend(settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]));
        StartRequest {
            program: bin("postgres"),
            args,
            env: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]),
            socket_dirs: vec![self.directory.path().to_owned()],
            cwd: None,
            uid: user().map(|(uid, _)| uid),
            gid: user().map(|(_, gid)| gid),
            groups: user().map(|(_, gid)| gid).into_iter().collect(),
            log_file: Some(self.directory.path().join("postgres.log")),
            mode,
        }
    }

    /// A guardian with a primary that accepts connections.
    pub async fn primary(&self, permit: LeaderPermit) -> (Guardian, watch::Receiver<GuardianStatus>) {
        let (guardian, status) = self.attach().await;
        guardian.start(self.request(StartMode::Primary { permit })).await.unwrap_or_else(|e| panic!("{e}"));
        self.connect().await;
        (guardian, status)
    }

    /// A guardian with a standby that accepts connections. It has no primary and needs none.
    pub async fn standby(&self) -> (Guardian, watch::Receiver<GuardianStatus>) {
        self.put("standby.signal", "");
        let (guardian, status) = self.attach().await;
        guardian.start(self.request(StartMode::Standby)).await.unwrap_or_else(|e| panic!("{e}"));
        self.connect().await;
        (guardian, status)
    }

    /// A session, as soon as PostgreSQL gives one.
    pub async fn connect(&self) -> tokio_postgres::Client {
        let begun = now();
        let conninfo = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port);
        loop {
            match tokio_postgres::connect(&conninfo, tokio_postgres::NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    return client;
                }
                Err(error) => assert!(now().since(begun) < LONG, "connect: {error}\n{}", self.log()),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A backend that does nothing for a long time; returns its process.
    pub async fn sleeping_backend(&self) -> i32 {
        let client = self.connect().await;
        let pid: i32 = client.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
        tokio::spawn(async move { client.batch_execute("select pg_sleep(1000)").await });
        until("the backend sleeps", || async {
            let other = self.connect().await;
            let row = other
                .query_one("select count(*) from pg_stat_activity where pid = $1 and wait_event = 'PgSleep'", &[&pid])
                .await;
            row.is_ok_and(|row| row.get::<_, i64>(0) == 1)
        })
        .await;
        pid
    }

    /// Every process whose working directory is the data directory, zombies not counted.
    pub fn tenants(&self) -> Vec<i32> {
        let Ok(home) = fs::metadata(&self.data_dir) else { return Vec::new() };
        processes()
            .filter(|pid| {
                fs::metadata(format!("/proc/{pid}/cwd"))
                    .is_ok_and(|cwd| (cwd.dev(), cwd.ino()) == (home.dev(), home.ino()))
                    && alive(*pid)
            })
            .collect()
    }

    /// The guardian's and the tether's process, as the lock file has them.
    pub fn keepers(&self) -> Vec<i32> {
        let mut lock = self.config.socket.clone().into_os_string();
        lock.push(".lock");
        let text = fs::read_to_string(lock).unwrap_or_default();
        let holders = text.lines().filter(|line| line.starts_with("guardian ") || line.starts_with("tether "));
        holders.filter_map(|line| line.split(' ').nth(1)?.parse().ok()).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let is_ours = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let socket = self.config.socket.to_string_lossy().into_owned();
            String::from_utf8_lossy(&line).contains(&socket)
        };
        for pid in self.keepers().into_iter().filter(is_ours) {
            send(pid, Signal::KILL);
        }
        let begun = now();
        loop {
            let left = self.tenants();
            if left.is_empty() {
                break;
            }
            left.into_iter().for_each(|pid| send(pid, Signal::KILL));
            assert!(now().since(begun) < LONG, "processes of a test cannot be killed");
            std::thread::sleep(Duration::from_millis(5));
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

fn processes() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Whether a process can still execute anything.
pub fn alive(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

pub fn stopped(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
}

/// A process that is gone already is fine.
pub fn send(pid: i32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

pub fn permit(term: i64, within: Duration) -> LeaderPermit {
    LeaderPermit { term: Term(term), valid_until: now() + within }
}

/// Waits for a condition; fails after [`LONG`].
pub async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let begun = now();
    while !condition().await {
        assert!(now().since(begun) < LONG, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits for a status; fails after [`LONG`].
pub async fn status_until(
    status: &mut watch::Receiver<GuardianStatus>,
    what: &str,
    condition: impl FnMut(&GuardianStatus) -> bool,
) -> GuardianStatus {
    let reached = tokio::time::timeout(LONG, status.wait_for(condition)).await;
    match reached {
        Ok(Ok(status)) => status.clone(),
        Ok(Err(_)) => panic!("the client ended before {what}"),
        Err(_) => panic!("waited too long until {what}"),
    }
}

pub fn exited(status: &GuardianStatus) -> bool {
    matches!(status.postgres, PostgresProcess::Exited(_))
}

pub fn postmaster(status: &GuardianStatus) -> i32 {
    match status.postgres {
        PostgresProcess::Running { pid, .. } => i32::try_from(pid).unwrap(),
        ref other => panic!("postgres is {other:?}"),
    }
}

pub fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> Refusal {
    match result {
        Err(Error::Refused(refusal)) => refusal,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// Sleeps until a moment of the clock that the guardian uses.
pub async fn sleep_until(moment: Mono) {
    tokio::time::sleep(moment.since(now())).await;
}
