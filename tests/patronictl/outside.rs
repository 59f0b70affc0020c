//! A PostgreSQL that nobody manages: a primary outside the cluster, or the place that a backup came from.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use howdah::dev::ports;

use crate::cluster::Cluster;

/// One server, started by `pg_ctl`, with the cluster's passwords. Stopped when dropped.
pub struct Outside {
    data: PathBuf,
    port: u16,
    password: String,
    commands: Box<dyn Fn(&str) -> Command>,
    running: bool,
}

impl Outside {
    /// A new database with the cluster's three roles, running.
    pub fn create(cluster: &Cluster) -> Self {
        let place = cluster.layout.dir.join("outside");
        std::fs::create_dir(&place).expect("a directory");
        if let Some(user) = &cluster.user {
            std::os::unix::fs::chown(&place, Some(user.uid), user.groups.first().copied()).expect("give it away");
        }
        let (taken, _) = ports::choose(31_500, 1, &mut Vec::new(), ports::is_free);
        let user = cluster.user.clone();
        let commands = move |program: &str| crate::cluster::postgres_command(user.as_ref(), program);
        let outside = Self {
            data: place.join("data"),
            port: taken[0],
            password: cluster.passwords.superuser.expose().clone(),
            commands: Box::new(commands),
            running: false,
        };
        outside.run(
            "initdb",
            &["--username=postgres", "--auth=trust", "--data-checksums", "--encoding=UTF8", "--locale=C.UTF-8"],
        );
        let hba = "local all all trust\nhost all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n";
        std::fs::write(outside.data.join("pg_hba.conf"), hba).expect("pg_hba.conf");
        let mut outside = outside;
        outside.start();
        let role =
            |name: &str, more: &str, password: &str| format!("create role {name} login {more} password '{password}'");
        outside.sql(&format!("alter role postgres password '{}'", outside.password));
        outside.sql(&role("replicator", "replication", cluster.passwords.replication.expose()));
        outside.sql(&role("rewinder", "", cluster.passwords.rewind.expose()));
        for function in [
            "pg_ls_dir(text, boolean, boolean)",
            "pg_stat_file(text, boolean)",
            "pg_read_binary_file(text)",
            "pg_read_binary_file(text, bigint, bigint, boolean)",
        ] {
            outside.sql(&format!("grant execute on function {function} to rewinder"));
        }
        outside
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let mut command = (self.commands)(program);
        command.arg("-D").arg(&self.data).args(arguments).stdin(Stdio::null());
        // A server that outlives pg_ctl keeps what it is given open.
        let log = self.data.with_file_name("tools.log");
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).expect("a log");
        command.stdout(file.try_clone().expect("a log")).stderr(file);
        let status = command.status().expect("start the program");
        assert!(status.success(), "{program} {arguments:?}: {}", std::fs::read_to_string(&log).unwrap_or_default());
    }

    pub fn start(&mut self) {
        let options = format!(
            "-c listen_addresses=127.0.0.1 -c port={} -c unix_socket_directories= -c wal_level=replica -c max_wal_senders=10",
            self.port
        );
        self.run("pg_ctl", &["-w", "-o", &options, "start"]);
        self.running = true;
    }

    pub fn stop(&mut self) {
        if std::mem::take(&mut self.running) {
            self.run("pg_ctl", &["-w", "-m", "fast", "stop"]);
        }
    }

    pub fn promote(&self) {
        self.run("pg_ctl", &["-w", "promote"]);
    }

    /// What it has is replaced by a copy of a member's, which it follows.
    pub fn become_standby_of(&mut self, cluster: &Cluster, member: &str) {
        assert!(!self.running);
        std::fs::remove_dir_all(&self.data).expect("the old data");
        let port = cluster.node(member).postgres.port();
        let from = format!(
            "host=127.0.0.1 port={port} user=replicator password={} application_name=outside",
            cluster.passwords.replication.expose()
        );
        self.run("pg_basebackup", &["-X", "stream", "-c", "fast", "-R", "-d", &from]);
        let hba = "local all all trust\nhost all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n";
        std::fs::write(self.data.join("pg_hba.conf"), hba).expect("pg_hba.conf");
        // The member's file speaks of its own places.
        std::fs::write(self.data.join("postgresql.conf"), "").expect("postgresql.conf");
        self.start();
    }

    pub fn sql(&self, sql: &str) -> Vec<String> {
        let mut command = (self.commands)("psql");
        command.env("PGPASSWORD", &self.password);
        command.args(["-X", "-A", "-t", "-q", "-h", "127.0.0.1", "-U", "postgres", "-d", "postgres", "-p"]);
        let output = command.arg(self.port.to_string()).args(["-c", sql]).output().expect("start psql");
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        if std::mem::take(&mut self.running) {
            let mut command = (self.commands)("pg_ctl");
            let _ = command.arg("-D").arg(&self.data).args(["-w", "-m", "immediate", "stop"]).output();
        }
    }
}
