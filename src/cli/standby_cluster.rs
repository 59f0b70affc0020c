//! `demote-cluster` and `promote-cluster`: whether the whole cluster follows a primary outside.
//!
//! Both change one key of the shared settings and wait until the leader is what it says. Source: reference section 4.

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::args::{DemoteClusterArgs, PromoteClusterArgs};
use super::change::leader_first;
use super::client::{Change, Client};
use super::output::{confirm, note, print};
use super::{Failure, Outcome, exit};
use crate::agent::snapshot::{PostgresState, Role, Snapshot};
use crate::telemetry::clock;

/// How long a clean stop, a start and a promotion may take together.
const PATIENCE: Duration = Duration::from_secs(120);

/// `howdah demote-cluster`
pub(super) async fn demote(client: &Client, args: &DemoteClusterArgs) -> Outcome {
    let status = client.status(args.cluster.as_deref()).await?;
    let snapshot = &status.snapshot;
    if is_standby_cluster(snapshot) {
        return Err(refused(snapshot, "is a standby cluster already"));
    }
    if args.host.is_none() && args.restore_command.is_none() {
        let text = "name whom to follow: --host (and --port), or --restore-command".to_owned();
        return Err(Failure::new(exit::USAGE, text));
    }
    let source = args.host.as_ref().map_or("the archive", String::as_str);
    let plan = format!(
        "Demotes cluster {}: its primary stops in order and follows {source} from then on. Nobody can write to it, \
         and what was written here and not there is lost with the next new copy.",
        snapshot.scope
    );
    confirm(&plan, args.force)?;
    let mut target = serde_json::Map::new();
    for (key, value) in [
        ("host", args.host.clone().map(Value::from)),
        ("port", args.port.map(Value::from)),
        ("primary_slot_name", args.primary_slot_name.clone().map(Value::from)),
        ("restore_command", args.restore_command.clone().map(Value::from)),
    ] {
        target.extend(value.map(|value| (key.to_owned(), value)));
    }
    patch(client, snapshot, &json!({"standby_cluster": target})).await?;
    until(client, Role::StandbyLeader).await?;
    print("Success: cluster is demoted")
}

/// `howdah promote-cluster`
pub(super) async fn promote(client: &Client, args: &PromoteClusterArgs) -> Outcome {
    let status = client.status(args.cluster.as_deref()).await?;
    let snapshot = &status.snapshot;
    if !is_standby_cluster(snapshot) {
        return Err(refused(snapshot, "is no standby cluster"));
    }
    let plan = format!(
        "Promotes cluster {}: its leader becomes a primary and follows nobody any more. Make sure that nothing writes \
         to the primary that it followed.",
        snapshot.scope
    );
    confirm(&plan, args.force)?;
    patch(client, snapshot, &json!({"standby_cluster": null})).await?;
    until(client, Role::Primary).await?;
    print("Success: cluster is promoted")
}

fn is_standby_cluster(snapshot: &Snapshot) -> bool {
    snapshot.cluster.as_ref().is_some_and(|cluster| cluster.settings.standby_cluster.is_some())
}

fn refused(snapshot: &Snapshot, text: &str) -> Failure {
    Failure::new(exit::REFUSED, format!("cluster {} {text}", snapshot.scope))
}

async fn patch(client: &Client, snapshot: &Snapshot, body: &Value) -> Outcome {
    let change = Change { method: Method::PATCH, path: "/config".into(), body: Some(body.clone()) };
    client.change(&leader_first(snapshot), &change).await.map(|_| ())
}

/// Waits until the leader runs as `role`.
async fn until(client: &Client, role: Role) -> Outcome {
    let deadline = clock::now() + PATIENCE;
    loop {
        let status = client.status(None).await?;
        let leader = status.snapshot.cluster.as_ref().and_then(|cluster| {
            let name = &cluster.leader.as_ref()?.name;
            cluster.member(name.as_str())
        });
        if leader.is_some_and(|leader| leader.role == role && leader.state == PostgresState::Running) {
            return Ok(());
        }
        if deadline <= clock::now() {
            let text = format!(
                "the change is stored, but no leader runs as {} after {} s; see `howdah list` and `howdah why`",
                role.as_str(),
                PATIENCE.as_secs()
            );
            return Err(Failure::new(exit::FAILED, text));
        }
        note(&format!("waiting for the leader to run as {}", role.as_str()));
        sleep(Duration::from_secs(1)).await;
    }
}
