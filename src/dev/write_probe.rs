//! Tries whether the cluster takes a write: the moment that a person at the terminal waits for.
//!
//! all nodes at once -> connect -> commit a WAL message that leaves no object behind -> the node's name.

use std::time::Duration;

use tokio_postgres::{Config, NoTls};

use super::layout::NodePaths;

/// Patience with one node.
const PATIENCE: Duration = Duration::from_secs(1);

/// The first node that committed a write just now; none when no node did.
pub async fn first_writable(nodes: &[NodePaths], password: &str) -> Option<String> {
    let attempts = nodes.iter().map(|node| async move {
        let written = tokio::time::timeout(PATIENCE, write(node, password)).await;
        matches!(written, Ok(Ok(()))).then(|| node.name.clone())
    });
    futures_util::future::join_all(attempts).await.into_iter().flatten().next()
}

async fn write(node: &NodePaths, password: &str) -> Result<(), tokio_postgres::Error> {
    let mut config = Config::new();
    config
        .host(node.postgres.ip().to_string())
        .port(node.postgres.port())
        .user("postgres")
        .password(password)
        .dbname("postgres")
        .application_name("howdah dev");
    let (client, connection) = config.connect(NoTls).await?;
    let driver = tokio::spawn(connection);
    // Refused with 25006 on a standby. Source: PostgreSQL documentation, "Replication Management Functions".
    let outcome = client.batch_execute("select pg_logical_emit_message(true, 'howdah', 'first write')").await;
    driver.abort();
    outcome
}
