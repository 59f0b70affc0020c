//! `restart`, `reload` and `reinit`: one request to each member, by its own address.

use hyper::Method;
use serde_json::{Map, Value, json};

use super::args::{ReinitArgs, ReloadArgs, RestartArgs};
use super::change::api_address;
use super::client::{Change, Client};
use super::output::{confirm, note, print};
use super::{Failure, Outcome, exit};
use crate::agent::snapshot::Snapshot;
use crate::config::HostPort;

/// `howdah restart`
pub(super) async fn restart(client: &Client, args: &RestartArgs) -> Outcome {
    let status = client.status(Some(&args.cluster)).await?;
    let members = chosen(&status.snapshot, &args.members, |name| {
        let waits = |snapshot: &Snapshot| Some(!snapshot.cluster.as_ref()?.member(name)?.pending_restart.is_empty());
        !args.pending || waits(&status.snapshot).unwrap_or(false)
    })?;
    let when = if args.scheduled == "now" { String::new() } else { format!(" at {}", args.scheduled) };
    confirm(&format!("Restarts PostgreSQL on {}{when}.", names(&members)), args.force)?;
    let mut body = Map::new();
    if args.scheduled != "now" {
        body.insert("schedule".into(), json!(args.scheduled));
    }
    if args.pending {
        body.insert("restart_pending".into(), json!(true));
    }
    if let Some(timeout) = &args.timeout {
        body.insert("timeout".into(), json!(timeout));
    }
    send(client, &members, "/restart", Some(Value::Object(body))).await
}

/// `howdah reload`
pub(super) async fn reload(client: &Client, args: &ReloadArgs) -> Outcome {
    let status = client.status(Some(&args.cluster)).await?;
    let members = chosen(&status.snapshot, &args.members, |_| true)?;
    confirm(&format!("Reloads the configuration of {}.", names(&members)), args.force)?;
    send(client, &members, "/reload", None).await
}

/// `howdah reinit`
pub(super) async fn reinit(client: &Client, args: &ReinitArgs) -> Outcome {
    let status = client.status(Some(&args.cluster)).await?;
    let members = chosen(&status.snapshot, &args.members, |_| true)?;
    let plan = format!("Replaces the data directories of {}; the old ones are moved aside.", names(&members));
    confirm(&plan, args.force)?;
    let body = json!({"force": args.force, "from_leader": args.from_leader});
    send(client, &members, "/reinitialize", Some(body)).await
}

/// The named members, or all; the leader last, so that a restart of all disturbs it once the others are back.
fn chosen(snapshot: &Snapshot, wanted: &[String], filter: impl Fn(&str) -> bool) -> Outcome<Vec<(String, HostPort)>> {
    let Some(cluster) = &snapshot.cluster else {
        let text =
            format!("{} has not read the cluster's state yet; try again, or name another node by --url", snapshot.name);
        return Err(Failure::new(exit::FAILED, text));
    };
    if let Some(unknown) = wanted.iter().find(|name| cluster.member(name).is_none()) {
        let text = format!("{unknown} is no member of cluster {}; see `howdah list`", snapshot.scope);
        return Err(Failure::new(exit::USAGE, text));
    }
    let mut members: Vec<(String, HostPort)> = cluster
        .members
        .iter()
        .filter(|member| wanted.is_empty() || wanted.iter().any(|name| name == member.name.as_str()))
        .filter(|member| filter(member.name.as_str()))
        .filter_map(|member| Some((member.name.to_string(), api_address(&member.api_url)?)))
        .collect();
    members.sort_by_key(|(name, _)| (cluster.is_leader(name), name.clone()));
    if members.is_empty() {
        return Err(Failure::new(exit::REFUSED, "no member matches"));
    }
    Ok(members)
}

fn names(members: &[(String, HostPort)]) -> String {
    members.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
}

async fn send(client: &Client, members: &[(String, HostPort)], path: &str, body: Option<Value>) -> Outcome {
    let mut worst: Option<Failure> = None;
    for (name, address) in members {
        let change = Change { method: Method::POST, path: path.to_owned(), body: body.clone() };
        match client.change_only_at(address, &change).await {
            Ok(text) => print(&format!("{name}: {text}"))?,
            Err(failure) => {
                note(&format!("{name}: {failure}"));
                worst = worst.or(Some(failure));
            }
        }
    }
    worst.map_or(Ok(()), |failure| Err(Failure::new(failure.exit, format!("{path}: not every member succeeded"))))
}
