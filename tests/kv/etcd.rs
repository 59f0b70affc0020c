//! A real etcd of three members, in a directory of its own, on free ports of the loopback.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

/// Three members; they end with it.
pub struct Etcd {
    _directory: tempfile::TempDir,
    members: Vec<Child>,
    /// Where clients find them.
    pub endpoints: Vec<String>,
}

impl Etcd {
    /// Starts them; none where there is no etcd, neither on the path nor where `make setup-etcd` unpacks it.
    pub fn start() -> Option<Self> {
        let unpacked = concat!(env!("CARGO_MANIFEST_DIR"), "/target/clients/etcd/usr/bin/etcd");
        let starts = |program: &&str| Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok();
        let program = ["etcd", unpacked].into_iter().find(starts)?;
        let directory = tempfile::tempdir().unwrap();
        let held: Vec<TcpListener> = (0..6).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<u16> = held.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        drop(held);
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let cluster: Vec<String> = (0..3).map(|at| format!("m{at}={}", url(ports[at]))).collect();
        let member = |at: usize| {
            Command::new(program)
                .args(["--name", &format!("m{at}"), "--log-level", "error", "--logger", "zap"])
                .args(["--data-dir", &directory.path().join(format!("m{at}")).display().to_string()])
                .args(["--listen-peer-urls", &url(ports[at]), "--initial-advertise-peer-urls", &url(ports[at])])
                .args(["--listen-client-urls", &url(ports[at + 3]), "--advertise-client-urls", &url(ports[at + 3])])
                .args(["--initial-cluster", &cluster.join(",")])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        };
        let members = (0..3).map(member).collect();
        let endpoints = ports[3..].iter().map(|port| format!("127.0.0.1:{port}")).collect();
        Some(Self { _directory: directory, members, endpoints })
    }

    /// The processes.
    pub fn pids(&self) -> Vec<u32> {
        self.members.iter().map(Child::id).collect()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}
