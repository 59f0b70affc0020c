//! `restart`, `reload`, `reinit` and `flush`: one request to each member, by its own address.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::Method;
use serde_json::{Map, Value, json};
use tokio::time::sleep;

use super::args::{FlushArgs, ReinitArgs, ReloadArgs, RestartArgs, RoleFilter};
use super::change::{api_address, leader_first};
use super::client::{Change, Client};
use super::output::{confirm, note, print};
use super::{Failure, Outcome, exit};
use crate::agent::snapshot::{ClusterStatus, MemberRole, MemberStatus, PostgresState, SettingChange, Snapshot};
use crate::config::{ClusterSettings, HostPort};
use crate::telemetry::clock;
use crate::types::pg::STANDBY_FLOORS;

/// How long `reinit --wait` waits.
const COPY: Duration = Duration::from_secs(6 * 3600);

/// How long a standby may take to hear of its primary's restart; it looks every few seconds.
const FOLLOW: Duration = Duration::from_secs(60);

/// How a node begins its answer when it is not one of those that are meant.
const UNMET: &str = "restart conditions are not satisfied";

/// How long `restart --pending` waits for members that have not taken over the newest settings; and two heartbeats.
const NOTICE: Duration = Duration::from_secs(10);

/// Settings that wait for a restart, by name.
type PendingRestart = BTreeMap<String, SettingChange>;

/// A member's name and main port.
type Addressed = (String, HostPort);

/// `howdah restart`
pub(super) async fn restart(client: &Client, args: &RestartArgs) -> Outcome {
    let (snapshot, names) = cluster_and_members(client, &args.names).await?;
    let scheduled = (args.scheduled != "now").then_some(&args.scheduled);
    // Who will need a restart later is not known now.
    let only_pending = args.pending && scheduled.is_none();
    let mut members = chosen(&snapshot, &names, |cluster, member| in_role(cluster, member, args.role))?;
    let waits = if only_pending { what_waits(client, &snapshot, &members).await? } else { BTreeMap::new() };
    if only_pending {
        members.retain(|(name, _)| waits.get(name).is_some_and(|waits| !waits.is_empty()));
        if members.is_empty() {
            return print("No setting waits for a restart");
        }
    }
    if args.any {
        members.truncate(1);
    }
    let when = scheduled.map_or(String::new(), |at| format!(" at {at}"));
    let lowered = snapshot
        .cluster
        .as_ref()
        .and_then(|cluster| cluster.leader.as_ref())
        .filter(|leader| !args.any && members.iter().any(|(name, _)| name == leader.name.as_str()))
        .and_then(|leader| waits.get(leader.name.as_str()))
        .map(lowered_by)
        .unwrap_or_default();
    let then = if lowered.is_empty() {
        String::new()
    } else {
        format!(" Then on its standbys, which can have the lower {} only after it.", lowered.join(", "))
    };
    confirm(&format!("Restarts PostgreSQL on {}{when}.{then}", list_of(&members)), args.force)?;
    let mut body = Map::new();
    let texts =
        [("schedule", scheduled), ("timeout", args.timeout.as_ref()), ("postgres_version", args.pg_version.as_ref())];
    for (key, text) in texts {
        body.extend(text.map(|text| (key.to_owned(), json!(text))));
    }
    if args.pending {
        body.insert("restart_pending".into(), json!(true));
    }
    let body = Value::Object(body);
    if scheduled.is_some() {
        return send(client, &members, Method::POST, "/restart", Some(body)).await;
    }
    restart_each(client, &members, &body).await?;
    if lowered.is_empty() {
        return Ok(());
    }
    let (snapshot, names) = cluster_and_members(client, &args.names).await?;
    let followers = chosen(&snapshot, &names, |cluster, member| {
        !cluster.is_leader(member.name.as_str())
            && in_role(cluster, member, args.role)
            && member.state == PostgresState::Running
    });
    let Ok(followers) = followers else { return Ok(()) };
    note(&format!("{} became lower on the primary; now its standbys may follow", lowered.join(", ")));
    for (name, address) in followers {
        until_it_may_lower(client, &name, &lowered).await?;
        restart_each(client, &[(name, address)], &body).await?;
    }
    Ok(())
}

/// One after the other, and none after one that has not come back: the next one could be the last that serves.
async fn restart_each(client: &Client, members: &[Addressed], body: &Value) -> Outcome {
    let mut unmet = None;
    for (index, (name, address)) in members.iter().enumerate() {
        let change = Change { method: Method::POST, path: "/restart".to_owned(), body: Some(body.clone()) };
        match client.change_only_at(address, &change).await {
            Ok(text) => print(&format!("{name}: {text}"))?,
            Err(failure) => {
                note(&format!("{name}: {failure}"));
                // It runs as before.
                if failure.to_string().contains(UNMET) {
                    unmet = unmet.or(Some(failure.exit));
                    continue;
                }
                let text = match &members[index + 1..] {
                    [] => format!("{name} has not come back from its restart; its log says why"),
                    left => format!(
                        "{name} has not come back from its restart, so {} {} left alone: a second member that is down \
                         could be one too many; see the log of {name}, and give the command again",
                        list_of(left),
                        if left.len() == 1 { "is" } else { "are" }
                    ),
                };
                return Err(Failure::new(failure.exit, text));
            }
        }
    }
    unmet.map_or(Ok(()), |exit| Err(Failure::new(exit, "/restart: not every member succeeded")))
}

/// What waits for a restart at each of `members`, in its own words. Decided once all of them have the newest settings: one
/// restarted before the others know of a raised setting may be the leader, and then its standbys replay no more.
async fn what_waits(
    client: &Client,
    snapshot: &Snapshot,
    members: &[Addressed],
) -> Outcome<BTreeMap<String, PendingRestart>> {
    let patience = NOTICE + 2 * snapshot.loop_wait;
    let deadline = clock::now() + patience;
    let mut said = false;
    loop {
        let newest = client.read(&leader_first(snapshot), "/config").await?;
        let newest = ClusterSettings::parse(&newest).map_err(anyhow::Error::new)?.0;
        let mut waits = BTreeMap::new();
        let mut behind = Vec::new();
        for (name, address) in members {
            let seen = client.look(address).await;
            match seen.map(|status| pending_of(&status.snapshot, &newest)) {
                Ok(Some(pending)) => drop(waits.insert(name.clone(), pending)),
                Ok(None) => behind.push(name.clone()),
                Err(why) => behind.push(format!("{name} ({why})")),
            }
        }
        if behind.is_empty() {
            return Ok(waits);
        }
        let behind = behind.join(", ");
        if deadline <= clock::now() {
            let text = format!(
                "the newest settings have not been taken over within {} s by {behind}, so it is not known what waits for \
                 a restart there; nothing has been restarted; see the log there, or name the members to restart",
                patience.as_secs()
            );
            return Err(Failure::new(exit::REFUSED, text));
        }
        if !said {
            note(&format!("Waiting until the newest settings have been taken over by {behind}"));
            said = true;
        }
        sleep(Duration::from_millis(250)).await;
    }
}

/// What waits for a restart at the node of `snapshot`; none: it has not taken over `newest` yet.
fn pending_of(snapshot: &Snapshot, newest: &ClusterSettings) -> Option<PendingRestart> {
    let Some(pg) = &snapshot.postgres else { return Some(PendingRestart::new()) };
    let has_newest = snapshot.cluster.as_ref().is_some_and(|cluster| cluster.settings.postgresql == newest.postgresql);
    match pg.state {
        PostgresState::Running => (has_newest && pg.has_settings).then(|| pg.pending_restart.clone()),
        // It may have begun to start with the settings before.
        PostgresState::Starting | PostgresState::BootstrapStarting | PostgresState::Restarting => None,
        // Whatever starts it brings the settings.
        _ => Some(PendingRestart::new()),
    }
}

/// What only standbys whose primary has it can have: settings that a restart of the leader, where `waits` waits, lowers.
///
/// Source: PostgreSQL documentation, 26.4.3 "Administrator's Overview" of hot standby.
fn lowered_by(waits: &PendingRestart) -> Vec<String> {
    let lower = |change: &SettingChange| {
        let number = |text: &str| text.trim().parse::<i64>().ok();
        number(&change.new_value).zip(number(&change.old_value)).is_some_and(|(new, old)| new < old)
    };
    let lowered = waits.iter().filter(|(name, change)| STANDBY_FLOORS.contains(&name.as_str()) && lower(change));
    lowered.map(|(name, _)| name.clone()).collect()
}

/// Waits until the member has replayed what its primary's restart has changed.
async fn until_it_may_lower(client: &Client, name: &str, lowered: &[String]) -> Outcome {
    let deadline = clock::now() + FOLLOW;
    loop {
        let snapshot = client.status(None).await?.snapshot;
        let member = snapshot.cluster.as_ref().and_then(|cluster| cluster.member(name));
        if member.is_some_and(|member| lowered.iter().any(|setting| member.pending_restart.contains_key(setting))) {
            return Ok(());
        }
        if deadline <= clock::now() {
            let text = format!(
                "{name} has not taken over the lower {} from its primary within {} s; once `howdah list` shows it as \
                 pending, give `howdah restart --pending` again",
                lowered.join(", "),
                FOLLOW.as_secs()
            );
            return Err(Failure::new(exit::FAILED, text));
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// `howdah reload`
pub(super) async fn reload(client: &Client, args: &ReloadArgs) -> Outcome {
    let (snapshot, names) = cluster_and_members(client, &args.names).await?;
    let members = chosen(&snapshot, &names, |cluster, member| in_role(cluster, member, args.role))?;
    confirm(&format!("Reloads the configuration of {}.", list_of(&members)), args.force)?;
    send(client, &members, Method::POST, "/reload", None).await
}

/// `howdah reinit`
pub(super) async fn reinit(client: &Client, args: &ReinitArgs) -> Outcome {
    let (snapshot, names) = cluster_and_members(client, &args.names).await?;
    if names.is_empty() {
        return Err(Failure::new(exit::USAGE, "name the members that get a new copy; not all at once"));
    }
    let members = chosen(&snapshot, &names, |_, _| true)?;
    let plan = format!("Replaces the data directories of {}; the old ones are moved aside.", list_of(&members));
    confirm(&plan, args.force)?;
    let body = json!({"force": args.force, "from_leader": args.from_leader});
    send(client, &members, Method::POST, "/reinitialize", Some(body)).await?;
    if args.wait { wait_for_copies(client, members).await } else { Ok(()) }
}

async fn wait_for_copies(client: &Client, mut waiting: Vec<Addressed>) -> Outcome {
    let deadline = clock::now() + COPY;
    let mut said = 0;
    while !waiting.is_empty() {
        if said != waiting.len() {
            note(&format!("Waiting for reinitialize to complete on: {}", list_of(&waiting)));
            said = waiting.len();
        }
        if deadline <= clock::now() {
            return Err(Failure::new(exit::FAILED, format!("no end after 6 hours on {}", list_of(&waiting))));
        }
        sleep(Duration::from_millis(500)).await;
        let mut still = Vec::new();
        for (name, address) in waiting {
            let state = client.get(&address, "/patroni").await.and_then(|body| body.get("state").cloned());
            if state == Some(json!("running")) {
                print(&format!("Reinitialize is completed on: {name}"))?;
            } else {
                still.push((name, address));
            }
        }
        waiting = still;
    }
    Ok(())
}

/// `howdah flush`
pub(super) async fn flush(client: &Client, args: &FlushArgs) -> Outcome {
    let Some((target, names)) = args.names.split_last() else {
        return Err(Failure::new(exit::USAGE, "say what to drop: restart or switchover"));
    };
    let (snapshot, names) = cluster_and_members(client, names).await?;
    match target.as_str() {
        "restart" => {
            let members = chosen(&snapshot, &names, |cluster, member| {
                member.scheduled_restart.is_some() && in_role(cluster, member, args.role)
            })?;
            confirm(&format!("Drops the scheduled restart of {}.", list_of(&members)), args.force)?;
            send(client, &members, Method::DELETE, "/restart", None).await
        }
        "switchover" => {
            confirm(&format!("Drops the scheduled switchover of cluster {}.", snapshot.scope), args.force)?;
            let change = Change { method: Method::DELETE, path: "/switchover".into(), body: None };
            print(&client.change(&leader_first(&snapshot), &change).await?)
        }
        other => Err(Failure::new(exit::USAGE, format!("{other}: what can be dropped is a restart or a switchover"))),
    }
}

/// The cluster, and the names that are members: the first may be the cluster's own.
async fn cluster_and_members(client: &Client, names: &[String]) -> Outcome<(Snapshot, Vec<String>)> {
    let snapshot = client.status(None).await?.snapshot;
    let rest = match names.split_first() {
        Some((first, rest)) if first == snapshot.scope.as_str() => rest,
        _ => names,
    };
    Ok((snapshot, rest.to_vec()))
}

/// Whether `member` is what was asked for.
pub(super) fn in_role(cluster: &ClusterStatus, member: &MemberStatus, wanted: Option<RoleFilter>) -> bool {
    let role = cluster.role_of(member.name.as_str());
    let leads = matches!(role, MemberRole::Leader | MemberRole::StandbyLeader);
    match wanted {
        None | Some(RoleFilter::Any) => true,
        Some(RoleFilter::Leader) => leads,
        Some(RoleFilter::Primary) => role == MemberRole::Leader,
        Some(RoleFilter::StandbyLeader) => role == MemberRole::StandbyLeader,
        Some(RoleFilter::Replica | RoleFilter::Standby) => !leads,
    }
}

/// The named members, or all; the leader last, so that a restart of all disturbs it once the others are back.
fn chosen(
    snapshot: &Snapshot,
    wanted: &[String],
    filter: impl Fn(&ClusterStatus, &MemberStatus) -> bool,
) -> Outcome<Vec<Addressed>> {
    let Some(cluster) = &snapshot.cluster else {
        let text =
            format!("{} has not read the cluster's state yet; try again, or name another node by --url", snapshot.name);
        return Err(Failure::new(exit::FAILED, text));
    };
    if let Some(unknown) = wanted.iter().find(|name| cluster.member(name).is_none()) {
        let text = format!("{unknown} is no member of cluster {}; see `howdah list`", snapshot.scope);
        return Err(Failure::new(exit::USAGE, text));
    }
    let mut members: Vec<Addressed> = cluster
        .members
        .iter()
        .filter(|member| wanted.is_empty() || wanted.iter().any(|name| name == member.name.as_str()))
        .filter(|member| filter(cluster, member))
        .filter_map(|member| Some((member.name.to_string(), api_address(&member.api_url)?)))
        .collect();
    members.sort_by_key(|(name, _)| (cluster.is_leader(name), name.clone()));
    if members.is_empty() {
        return Err(Failure::new(exit::REFUSED, "no member matches"));
    }
    Ok(members)
}

fn list_of(members: &[Addressed]) -> String {
    members.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
}

async fn send(client: &Client, members: &[Addressed], method: Method, path: &str, body: Option<Value>) -> Outcome {
    let mut worst: Option<Failure> = None;
    for (name, address) in members {
        let change = Change { method: method.clone(), path: path.to_owned(), body: body.clone() };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_has_not_taken_over_the_newest_settings_cannot_say_what_waits() {
        let mut snapshot: Snapshot =
            serde_json::from_str(include_str!("../../tests/surface/three_nodes.json")).expect("a snapshot");
        let known = |snapshot: &Snapshot, newest: Value| {
            let newest = ClusterSettings::parse(&newest).expect("valid").0;
            pending_of(snapshot, &newest).map(|pending| pending.len())
        };
        let raised = json!({"postgresql": {"parameters": {"max_connections": 200}}});
        assert_eq!(known(&snapshot, raised), None);
        assert_eq!(known(&snapshot, json!({"loop_wait": 0.5})), Some(1), "these are no settings of PostgreSQL's");
        let pg = snapshot.postgres.as_mut().expect("it has one");
        pg.has_settings = false;
        assert_eq!(known(&snapshot, json!({})), None);
        for (state, waits) in [(PostgresState::Starting, None), (PostgresState::Stopped, Some(0))] {
            snapshot.postgres.as_mut().expect("it has one").state = state;
            assert_eq!(known(&snapshot, json!({})), waits, "{state:?}");
        }
        snapshot.postgres = None;
        assert_eq!(known(&snapshot, json!({})), Some(0), "a witness");
    }
}
