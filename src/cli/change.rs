//! `switchover`, `failover`, `pause` and `resume`.

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::args::{FailoverArgs, Format, PauseArgs, SwitchoverArgs};
use super::client::{Change, Client};
use super::list::listing;
use super::output::{confirm, note, print};
use super::{Failure, Outcome, exit};
use crate::agent::snapshot::Snapshot;
use crate::config::HostPort;
use crate::telemetry::clock;

/// How long `--wait` waits.
const NOTICE: Duration = Duration::from_secs(60);

/// `howdah switchover`
pub(super) async fn switchover(client: &Client, args: &SwitchoverArgs) -> Outcome {
    let status = client.status(args.cluster.as_deref()).await?;
    let snapshot = &status.snapshot;
    if args.cancel {
        let change = Change { method: Method::DELETE, path: "/switchover".into(), body: None };
        return print(&client.change(&leader_first(snapshot), &change).await?);
    }
    let Some(leader) = args.leader.clone().or_else(|| leader_of(snapshot)) else {
        return Err(no_leader(snapshot));
    };
    let scheduled = (args.scheduled != "now").then(|| args.scheduled.clone());
    print(&listing(snapshot, Format::Pretty, false))?;
    let plan = format!(
        "Switches over cluster {} from {leader} to {} {}.",
        snapshot.scope,
        args.candidate.as_deref().unwrap_or("the best standby"),
        scheduled.as_ref().map_or("now".to_owned(), |at| format!("at {at}")),
    );
    confirm(&plan, args.force)?;
    let body =
        only_given([("leader", Some(leader)), ("candidate", args.candidate.clone()), ("scheduled_at", scheduled)]);
    let change = Change { method: Method::POST, path: "/switchover".into(), body: Some(body) };
    finish(client, snapshot, &change).await
}

/// `howdah failover`
pub(super) async fn failover(client: &Client, args: &FailoverArgs) -> Outcome {
    let status = client.status(args.cluster.as_deref()).await?;
    let snapshot = &status.snapshot;
    print(&listing(snapshot, Format::Pretty, false))?;
    let leader = leader_of(snapshot).map_or("which has no leader".to_owned(), |name| format!("whose leader is {name}"));
    let plan = format!(
        "Fails over cluster {}, {leader}, to {}. Commits that it has not received are lost.",
        snapshot.scope, args.candidate
    );
    confirm(&plan, args.force)?;
    let body = only_given([("candidate", Some(args.candidate.clone()))]);
    let change = Change { method: Method::POST, path: "/failover".into(), body: Some(body) };
    finish(client, snapshot, &change).await
}

async fn finish(client: &Client, before: &Snapshot, change: &Change) -> Outcome {
    let text = client.change(&leader_first(before), change).await?;
    print(&text)?;
    let after = client.status(None).await?;
    print(&listing(&after.snapshot, Format::Pretty, false))
}

/// `howdah pause`, `howdah resume`
pub(super) async fn pause(client: &Client, args: &PauseArgs, on: bool) -> Outcome {
    let status = client.status(args.cluster.as_deref()).await?;
    let snapshot = &status.snapshot;
    if snapshot.is_paused() == on {
        let text = if on { "is paused already" } else { "is not paused" };
        return Err(Failure::new(exit::REFUSED, format!("cluster {} {text}", snapshot.scope)));
    }
    let plan = match on {
        true => format!("Pauses cluster {}: until `howdah resume`, nothing fails over.", snapshot.scope),
        false => format!("Resumes cluster {}: howdah acts again.", snapshot.scope),
    };
    confirm(&plan, args.force)?;
    let body = json!({"pause": if on { json!(true) } else { Value::Null }});
    let change = Change { method: Method::PATCH, path: "/config".into(), body: Some(body) };
    client.change(&leader_first(snapshot), &change).await?;
    if args.wait {
        wait_until_noticed(client, snapshot, on, &[]).await?;
    }
    print(if on { "Success: cluster management is paused" } else { "Success: cluster management is resumed" })
}

/// Until every member but those that are `gone` says whether the cluster is paused as it was asked to.
pub(super) async fn wait_until_noticed(client: &Client, snapshot: &Snapshot, on: bool, gone: &[String]) -> Outcome {
    let deadline = clock::now() + NOTICE;
    let mut waiting: Vec<(String, HostPort)> = snapshot
        .raft
        .members
        .iter()
        .filter(|member| !gone.contains(&member.name))
        .filter_map(|member| Some((member.name.clone(), member.addr.parse().ok()?)))
        .collect();
    loop {
        let mut still = Vec::new();
        for (name, address) in waiting {
            let answer = client.get(&address, "/patroni").await;
            let paused = answer.map(|body| body.get("pause") == Some(&json!(true)));
            if paused != Some(on) {
                still.push((name, address));
            }
        }
        if still.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = still.iter().map(|(name, _)| name.as_str()).collect();
        if deadline <= clock::now() {
            let text = format!(
                "the change is stored, but {} did not notice it within {} s",
                names.join(", "),
                NOTICE.as_secs()
            );
            return Err(Failure::new(exit::FAILED, text));
        }
        note(&format!("waiting for {}", names.join(", ")));
        waiting = still;
        sleep(Duration::from_secs(1)).await;
    }
}

fn leader_of(snapshot: &Snapshot) -> Option<String> {
    Some(snapshot.cluster.as_ref()?.leader.as_ref()?.name.to_string())
}

fn no_leader(snapshot: &Snapshot) -> Failure {
    if !snapshot.store_has_quorum {
        return Failure::new(
            exit::NO_QUORUM,
            "the store has no quorum, so nobody can say who leads; bring a majority of the nodes back",
        );
    }
    Failure::new(exit::REFUSED, "there is no leader to switch over from; use `howdah failover --candidate NAME`")
}

/// The leader's main port, if it is known: it acts soonest on what it is told itself.
pub(super) fn leader_first(snapshot: &Snapshot) -> Vec<HostPort> {
    let leader = snapshot.cluster.as_ref().and_then(|cluster| cluster.member(cluster.leader.as_ref()?.name.as_str()));
    leader.and_then(|member| api_address(&member.api_url)).into_iter().collect()
}

/// `http://10.0.0.1:8008/patroni` -> 10.0.0.1:8008
pub(super) fn api_address(api_url: &str) -> Option<HostPort> {
    api_url.split_once("://")?.1.split('/').next()?.parse().ok()
}

fn only_given<const N: usize>(fields: [(&str, Option<String>); N]) -> Value {
    fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), json!(value?)))).collect()
}
