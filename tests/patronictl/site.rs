//! A cluster with what these tests ask of it: programs run against it, and single answers.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use howdah::dev::rest::{self, Answer};
use serde_json::Value;

use crate::cluster::{Cluster, LIMIT};

/// An answer may take as long as a restart does.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a program left.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Both streams, for looking into.
    pub fn text(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

/// Runs a program to its end.
pub fn run(command: &mut Command) -> Ran {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

impl Cluster {
    /// The built `howdah` against all nodes.
    pub fn howdah(&self, args: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_howdah"));
        for variable in std::env::vars_os().map(|(name, _)| name) {
            if variable.to_string_lossy().starts_with("HOWDAH_") || variable.to_string_lossy().starts_with("PATRONI") {
                command.env_remove(variable);
            }
        }
        command.args(args).env("PGPASSFILE", self.layout.pgpass());
        for node in self.layout.nodes() {
            command.arg("--url").arg(format!("http://{}", node.rest));
        }
        run(&mut command)
    }

    /// Runs SQL on whoever answers at a port of this machine; the first column of each row.
    pub fn sql_at(&self, port: u16, sql: &str) -> Result<Vec<String>, String> {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(port).user("postgres").password(self.passwords.superuser.expose());
        config.dbname("postgres").connect_timeout(Duration::from_secs(3));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let work = async {
            let (client, connection) = config.connect(tokio_postgres::NoTls).await.map_err(|e| format!("{e:?}"))?;
            let driver = tokio::spawn(connection);
            let rows = client.simple_query(sql).await.map_err(|e| format!("{e:?}"))?;
            driver.abort();
            let first = |message: &tokio_postgres::SimpleQueryMessage| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            };
            Ok(rows.iter().filter_map(first).collect())
        };
        let limit = Duration::from_secs(5);
        runtime.block_on(async { tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err("late".to_owned())) })
    }

    pub fn rest_of(&self, name: &str) -> SocketAddr {
        self.node(name).rest
    }

    /// `GET` at a node; null when it does not answer.
    pub fn get(&self, name: &str, path: &str) -> Value {
        rest::get(self.rest_of(name), path, PATIENCE).map_or(Value::Null, |answer| answer.json())
    }

    pub fn post(&self, name: &str, path: &str, body: &Value) -> Answer {
        rest::post(self.rest_of(name), path, body, PATIENCE).unwrap_or_else(|error| panic!("POST {path}: {error}"))
    }

    /// The term of the leadership, from the primary's own permit.
    pub fn term(&self, primary: &str) -> Value {
        self.get(primary, "/howdah").pointer("/snapshot/lock/term").cloned().unwrap_or_default()
    }

    /// Whether the node has decided for this reason.
    pub fn has_decided(&self, name: &str, reason: &str) -> bool {
        let snapshot = self.get(name, "/howdah");
        let rows = snapshot.pointer("/snapshot/decisions").and_then(Value::as_array).cloned().unwrap_or_default();
        rows.iter().any(|row| row["reason"] == reason)
    }

    /// Waits until a setting has a value on a node.
    pub fn until_setting(&self, node: &str, setting: &str, value: &str) {
        self.until(&format!("{setting} is {value} on {node}"), LIMIT, |c| {
            c.sql(node, &format!("show {setting}")).is_ok_and(|rows| rows == [value])
        });
    }
}
