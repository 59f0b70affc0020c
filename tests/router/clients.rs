//! Clients of the router's ports, as people use them.

use std::process::{Command, Output};
use std::time::Duration;

use howdah::dev::rest;
use serde_json::{Value, json};

use crate::cluster::{Cluster, LIMIT};

/// Which of a node's two ports.
#[derive(Debug, Clone, Copy)]
pub enum To {
    /// `router.listen`.
    Primary,
    /// `router.listen_replicas`.
    Replicas,
}

/// The port of `node`'s router.
pub fn port(cluster: &Cluster, node: &str, to: To) -> u16 {
    let ports = cluster.node(node).router.expect("a router");
    match to {
        To::Primary => ports.primary,
        To::Replicas => ports.replicas,
    }
}

/// How tokio-postgres connects through the router of `node`.
pub fn config(cluster: &Cluster, node: &str, to: To) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(port(cluster, node, to))
        .user("postgres")
        .password(cluster.passwords.superuser.expose())
        .dbname("postgres")
        .connect_timeout(LIMIT);
    config
}

/// A session through the router, and the task that drives it.
pub struct Line {
    pub client: tokio_postgres::Client,
    pub driver: tokio::task::JoinHandle<Result<(), tokio_postgres::Error>>,
}

/// Connects, or says what the client was told.
pub async fn connect(config: &tokio_postgres::Config) -> Result<Line, tokio_postgres::Error> {
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    Ok(Line { client, driver: tokio::spawn(connection) })
}

impl Line {
    /// The first column of the first row, as text.
    pub async fn ask(&self, sql: &str) -> Result<String, tokio_postgres::Error> {
        let rows = self.client.simple_query(sql).await?;
        let first = rows.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
            _ => None,
        });
        Ok(first.unwrap_or_default())
    }

    /// Waits until the server's side is closed, and returns the SQLSTATE that it was closed with; none for a reset.
    pub async fn end(self) -> Option<String> {
        let ended = tokio::time::timeout(LIMIT, self.driver).await.expect("the session ends in time");
        ended.expect("no panic").err()?.code().map(|code| code.code().to_owned())
    }
}

/// A runtime for a test's clients.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// psql through the router, with further words of a connection string.
pub fn psql(cluster: &Cluster, port: u16, words: &str, sql: &str) -> Output {
    let target = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres connect_timeout=60 {words}");
    let mut command = psql_command(cluster);
    command.args(["-X", "-A", "-t", "-q", "-c", sql, &target]);
    command.output().expect("psql runs")
}

/// psql or another client with the password in its environment.
pub fn psql_command(cluster: &Cluster) -> Command {
    let mut command = cluster.postgres_command("psql");
    // Not the home of whoever runs the tests: PostgreSQL's user may not look for certificates there.
    command.env("PGPASSWORD", cluster.passwords.superuser.expose()).env("HOME", &cluster.layout.dir);
    command
}

/// What psql printed, when it succeeded.
pub fn printed(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "psql failed: {err}");
    out.trim().to_owned()
}

/// The name of the node that answers; every node is started with its own.
pub const WHO: &str = "select inet_server_port()";

/// The node whose PostgreSQL listens on `port`.
pub fn node_of(cluster: &Cluster, port: &str) -> String {
    let nodes = cluster.layout.nodes().into_iter();
    let found = nodes.into_iter().find(|node| node.postgres.port().to_string() == port);
    found.unwrap_or_else(|| panic!("no node listens on {port:?}")).name
}

/// What the router of `node` says about itself.
pub fn status(cluster: &Cluster, node: &str) -> Value {
    let answer = rest::get(cluster.node(node).rest, "/howdah", Duration::from_secs(2));
    answer.map(|answer| answer.json()["router"].clone()).unwrap_or_default()
}

/// A counter of one backend, summed over the port's backends.
pub fn sum(cluster: &Cluster, node: &str, port: &str, counter: &str) -> u64 {
    let status = status(cluster, node);
    let backends = status[port]["backends"].as_array().cloned().unwrap_or_default();
    backends.iter().filter_map(|backend| backend[counter].as_u64()).sum()
}

/// Asks for a switchover and waits until it has happened.
pub fn switch_over(cluster: &Cluster, from: &str, to: &str) {
    let body = json!({"leader": from, "candidate": to});
    let answer = rest::post(cluster.node(to).rest, "/switchover", &body, LIMIT).expect("an answer");
    assert_eq!(answer.status, 200, "switchover from {from} to {to}: {}\n{}", answer.body, cluster.diagnosis());
}

/// Waits until the router of `node` leads clients that write to `primary`.
pub fn until_routed(cluster: &Cluster, node: &str, primary: &str) {
    cluster.until(&format!("{node} leads to {primary}"), LIMIT, |c| {
        status(c, node)["primary"]["targets"] == json!([primary])
    });
}

/// Waits until the router of `node` has exactly these replicas.
pub fn until_replicas(cluster: &Cluster, node: &str, replicas: &[String]) {
    let what = format!("{node} has the replicas {replicas:?}");
    cluster.until(&what, LIMIT, |c| status(c, node)["replicas"]["targets"] == json!(replicas));
}
