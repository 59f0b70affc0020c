//! A real Patroni with its own real PostgreSQL, and howdah as its etcd.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::nodes::{Nodes, free_ports, until};

/// Where `make setup-clients` puts Patroni.
const PATRONI: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/clients/patroni");

/// PostgreSQL refuses to run as root.
fn unprivileged() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.starts_with("postgres:")).expect("root needs a user postgres");
    let mut fields = line.split(':').skip(2).map(|field| field.parse().unwrap());
    Some((fields.next().unwrap(), fields.next().unwrap()))
}

/// Where PostgreSQL's programs are.
fn bin_dir() -> PathBuf {
    let newest = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path()).max();
    let debian = newest.map(|path| path.join("bin"));
    debian.filter(|path| path.join("initdb").exists()).unwrap_or_else(|| {
        let output = Command::new("pg_config").arg("--bindir").output().expect("pg_config is there");
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    })
}

struct Patroni {
    directory: TempDir,
    /// Readable for the user that PostgreSQL runs as, who may not look into root's directories.
    modules: PathBuf,
    children: [Option<Child>; 2],
}

impl Patroni {
    fn new(nodes: &Nodes) -> Self {
        assert!(Path::new(PATRONI).exists(), "{PATRONI} is missing: make setup-clients puts Patroni there");
        let directory = tempfile::Builder::new().prefix("howdah-patroni-").tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let modules = directory.path().join("modules");
        let copied = Command::new("cp").arg("-r").arg(PATRONI).arg(&modules).status().unwrap();
        let readable = Command::new("chmod").args(["-R", "a+rX"]).arg(&modules).status().unwrap();
        assert!(copied.success() && readable.success());
        let patroni = Self { directory, modules, children: [None, None] };
        let ports = free_ports(4);
        let hosts: Vec<String> = (0..3).map(|node| nodes.main_port(node)).collect();
        for index in 0..2 {
            let home = patroni.home(index);
            fs::create_dir(&home).unwrap();
            if let Some((uid, gid)) = unprivileged() {
                chown(&home, Some(uid), Some(gid)).unwrap();
            }
            let (rest, postgres) = (format!("127.0.0.1:{}", ports[index]), format!("127.0.0.1:{}", ports[2 + index]));
            let file = json!({
                "scope": "guest",
                "name": format!("p{}", index + 1),
                "restapi": {"listen": rest, "connect_address": rest},
                "etcd3": {"hosts": hosts},
                "bootstrap": {
                    "dcs": {"ttl": 20, "loop_wait": 1, "retry_timeout": 3},
                    "initdb": ["data-checksums"],
                },
                "postgresql": {
                    "listen": postgres,
                    "connect_address": postgres,
                    "data_dir": home.join("data"),
                    "pgpass": home.join("pgpass"),
                    "bin_dir": bin_dir(),
                    "pg_hba": ["host replication all 127.0.0.1/32 trust", "host all all 127.0.0.1/32 trust"],
                    "authentication": {
                        "superuser": {"username": "postgres", "password": "x"},
                        "replication": {"username": "rep", "password": "y"},
                    },
                    "parameters": {"unix_socket_directories": "", "fsync": "off"},
                },
            });
            fs::write(patroni.file(index), file.to_string()).unwrap();
        }
        patroni
    }

    fn home(&self, index: usize) -> PathBuf {
        self.directory.path().join(format!("p{}", index + 1))
    }

    fn file(&self, index: usize) -> PathBuf {
        self.directory.path().join(format!("p{}.yml", index + 1))
    }

    /// Debian's own Python: one in root's home could not be run by others.
    fn python(&self) -> Command {
        let system = Path::new("/usr/bin/python3");
        let mut command = Command::new(if system.exists() { system } else { Path::new("python3") });
        command.env("PYTHONPATH", &self.modules).env("PYTHONDONTWRITEBYTECODE", "1").current_dir("/");
        if let Some((uid, gid)) = unprivileged() {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn start(&mut self, index: usize) {
        let log = fs::File::create(self.directory.path().join(format!("p{}.log", index + 1))).unwrap();
        let child = self
            .python()
            .args(["-m", "patroni"])
            .arg(self.file(index))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.children[index] = Some(child);
    }

    /// SIGKILL of Patroni and its postmaster; the backends notice and go.
    fn kill(&mut self, index: usize) {
        if let Some(mut child) = self.children[index].take() {
            let _ = child.kill();
            child.wait().unwrap();
        }
        let pid_file = fs::read_to_string(self.home(index).join("data/postmaster.pid")).unwrap_or_default();
        let mut lines = pid_file.lines();
        let pid = lines.next().and_then(|line| line.trim().parse().ok()).and_then(rustix::process::Pid::from_raw);
        // Only the one that runs in this very directory.
        if let Some(pid) = pid
            && fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == self.home(index).join("data"))
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    /// What `patronictl` prints.
    fn ctl(&self, args: &[&str]) -> (bool, String) {
        let program = "import sys; from patroni.ctl import ctl; sys.argv[0] = 'patronictl'; ctl()";
        let output = self.python().args(["-c", program, "-c"]).arg(self.file(0)).args(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    }

    /// Role and state by member, as `patronictl list` tells them.
    fn members(&self) -> Vec<(String, String, String)> {
        let (_, text) = self.ctl(&["list", "-f", "json"]);
        let rows: Value = text.lines().find_map(|line| serde_json::from_str(line).ok()).unwrap_or_default();
        let cell = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let row = |row: &Value| (cell(row, "Member"), cell(row, "Role"), cell(row, "State"));
        rows.as_array().into_iter().flatten().map(row).collect()
    }

    fn until_they_are(&self, expected: &[(&str, &str, &str)]) {
        until(&format!("patronictl lists {expected:?}"), || {
            let members = self.members();
            expected
                .iter()
                .all(|(name, role, state)| members.iter().any(|m| (&*m.0, &*m.1, &*m.2) == (*name, *role, *state)))
        });
    }

    fn logs(&self) -> String {
        let read = |index| fs::read_to_string(self.directory.path().join(format!("p{index}.log"))).unwrap_or_default();
        format!("p1:\n{}\np2:\n{}", read(1), read(2))
    }
}

impl Drop for Patroni {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        for index in 0..2 {
            self.kill(index);
        }
    }
}

#[test]
fn a_real_patroni_lives_on_it() {
    let mut nodes = Nodes::start();
    let mut patroni = Patroni::new(&nodes);
    patroni.start(0);
    patroni.until_they_are(&[("p1", "Leader", "running")]);
    patroni.start(1);
    patroni.until_they_are(&[("p1", "Leader", "running"), ("p2", "Replica", "streaming")]);
    let (done, text) = patroni.ctl(&["switchover", "--primary", "p1", "--candidate", "p2", "--force"]);
    assert!(done && text.contains("Successfully switched over to \"p2\""), "{text}");
    patroni.until_they_are(&[("p2", "Leader", "running"), ("p1", "Replica", "streaming")]);
    let (done, text) = patroni.ctl(&["edit-config", "-s", "maximum_lag_on_failover=2097152", "--force"]);
    assert!(done && text.contains("Configuration changed"), "{text}");
    assert!(patroni.ctl(&["show-config"]).1.contains("maximum_lag_on_failover: 2097152"));
    // The node under the store's feet goes; Patroni's primary stays.
    let leader = nodes.leader().expect("a leader");
    nodes.kill(leader);
    until("the store has another leader", || nodes.leader().is_some());
    nodes.run(leader);
    patroni.until_they_are(&[("p2", "Leader", "running"), ("p1", "Replica", "streaming")]);
    // Its primary goes; the lease ends, and the other one takes over.
    patroni.kill(1);
    patroni.until_they_are(&[("p1", "Leader", "running")]);
}
