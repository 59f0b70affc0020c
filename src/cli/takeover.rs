//! `adopt` and `release`: a PostgreSQL that others have run so far comes under howdah, or goes from it, as it runs.
//!
//! ```text
//! adopt:   POST /adopt {dry_run} -> report -> ask -> POST /adopt -> POST /restart, only where the report says why
//! release: pause -> every member has noticed -> POST /release to the leader, then to the replicas
//! ```
//! Deliberately absent: looking at PostgreSQL, which the node does.

use hyper::Method;
use serde_json::{Value, json};

use super::args::{AdoptArgs, Format, ReleaseArgs};
use super::change::{leader_first, wait_until_noticed};
use super::client::{Change, Client};
use super::output::{confirm, note, print};
use super::{Failure, Outcome, exit};
use crate::config::HostPort;

/// `howdah adopt`
pub(super) async fn adopt(client: &Client, args: &AdoptArgs) -> Outcome {
    let (name, address) = node(client, &args.member).await?;
    let report = post(client, &address, "/adopt", json!({"dry_run": true})).await?;
    let report: Value = serde_json::from_str(&report)
        .map_err(|_| Failure::new(exit::FAILED, format!("{name} answers, but not as this version of howdah does")))?;
    let pretty = matches!(args.format, Format::Pretty | Format::Tsv);
    if pretty {
        print(&describe(&name, &report))?;
    }
    let problems = texts(&report["problems"]);
    let restart = texts(&report["restart"]);
    let print_document = |adopted: bool, restarted: bool| {
        let all = json!({"member": name, "adopted": adopted, "restarted": restarted, "report": report});
        match args.format {
            Format::Pretty | Format::Tsv => Ok(()),
            Format::Json => print(&serde_json::to_string_pretty(&all).unwrap_or_default()),
            Format::Yaml => print(&serde_yaml_ng::to_string(&all).unwrap_or_default()),
        }
    };
    if !problems.is_empty() {
        print_document(false, false)?;
        let text = format!("{name} is not adopted: {}", problems.join("; "));
        return Err(Failure::new(exit::REFUSED, text));
    }
    if args.dry_run {
        return print_document(false, false);
    }
    let how = match restart.as_slice() {
        [] => "as it runs; it is not restarted".to_owned(),
        why => format!("and restarts it once, because {}", why.join("; ")),
    };
    confirm(&format!("Takes over PostgreSQL on {name} {how}."), args.force)?;
    post(client, &address, "/adopt", json!({})).await?;
    if !restart.is_empty() {
        note("adopted; restarting PostgreSQL");
        post(client, &address, "/restart", json!({})).await?;
    }
    print_document(true, !restart.is_empty())?;
    let told = if restart.is_empty() { "adopted as it runs" } else { "adopted and restarted" };
    if pretty { print(&format!("{name}: {told}")) } else { Ok(()) }
}

/// `howdah release`
pub(super) async fn release(client: &Client, args: &ReleaseArgs) -> Outcome {
    let status = client.status(args.cluster.as_deref()).await?;
    let snapshot = &status.snapshot;
    let leader =
        snapshot.cluster.as_ref().and_then(|cluster| cluster.leader.as_ref()).map(|leader| leader.name.to_string());
    let mut members: Vec<(String, HostPort)> = snapshot
        .raft
        .members
        .iter()
        .filter_map(|member| Some((member.name.clone(), member.addr.parse().ok()?)))
        .collect();
    // The leader first: while it lets go a majority must still renew its permit, or its guardian ends PostgreSQL.
    members.sort_by_key(|(name, _)| (leader.as_ref() != Some(name), name.clone()));
    let names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
    let plan = format!(
        "Pauses cluster {}, then lets PostgreSQL on {} go on without howdah, whose processes end. Nothing fails over from then on.",
        snapshot.scope,
        names.join(", ")
    );
    if args.dry_run {
        return print(&plan);
    }
    confirm(&plan, args.force)?;
    if !snapshot.is_paused() {
        let change = Change { method: Method::PATCH, path: "/config".into(), body: Some(json!({"pause": true})) };
        client.change(&leader_first(snapshot), &change).await?;
    }
    let mut gone = Vec::new();
    for (name, address) in &members {
        if client.get(address, "/patroni").await.is_none() {
            gone.push(name.clone());
        }
    }
    if members.len() / 2 < gone.len() {
        let text = format!(
            "{} do not answer, and such a majority could elect a new primary while the old one runs on; stop howdah there \
             first (the cluster is paused: PostgreSQL goes on)",
            gone.join(", ")
        );
        return Err(Failure::new(exit::REFUSED, text));
    }
    for name in &gone {
        note(&format!("{name} does not answer: if it has been released before, nothing is left to do there"));
    }
    // Whoever has not noticed would take over from those that are gone.
    wait_until_noticed(client, snapshot, true, &gone).await?;
    for (name, address) in members.iter().filter(|(name, _)| !gone.contains(name)) {
        let text = post(client, address, "/release", json!({})).await?;
        print(&format!("{name}: {text}"))?;
    }
    Ok(())
}

async fn post(client: &Client, address: &HostPort, path: &str, body: Value) -> Outcome<String> {
    let change = Change { method: Method::POST, path: path.to_owned(), body: Some(body) };
    client.change_only_at(address, &change).await
}

/// The main port of a member. Before there is a cluster only the store knows it.
async fn node(client: &Client, wanted: &str) -> Outcome<(String, HostPort)> {
    let snapshot = client.status(None).await?.snapshot;
    if !snapshot.store_has_quorum {
        let text =
            "the store has no quorum yet; start howdah on a majority of the nodes first, PostgreSQL goes on meanwhile";
        return Err(Failure::new(exit::NO_QUORUM, text));
    }
    let known = snapshot.raft.members.iter().find(|known| known.name == wanted);
    let address = known.and_then(|known| known.addr.parse().ok());
    match address {
        Some(address) => Ok((wanted.to_owned(), address)),
        None => Err(Failure::new(exit::USAGE, format!("{wanted} is no member of cluster {}", snapshot.scope))),
    }
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The report for people.
fn describe(name: &str, report: &Value) -> String {
    let number = |field: &str| report[field].as_u64().unwrap_or(0);
    let yes = |field: &str| if report[field] == json!(true) { "yes" } else { "no" };
    let role = if report["standby"] == json!(true) { "a standby" } else { "a primary" };
    let version = number("version");
    let mut lines = vec![
        format!("{name}: PostgreSQL {}.{}, {role}, pid {}", version / 10_000, version % 10_000, number("pid")),
        format!("  configured by   {}", report["config_file"].as_str().unwrap_or_default()),
        format!("  checksums       {}, wal_log_hints {}", yes("checksums"), yes("wal_log_hints")),
        format!("  size            {} MB in all", number("bytes") >> 20),
    ];
    for database in report["databases"].as_array().into_iter().flatten() {
        let text = |field: &str| database[field].as_str().unwrap_or("-").to_owned();
        lines.push(format!(
            "  database        {}: {} MB, collation {} {}",
            text("name"),
            database["bytes"].as_u64().unwrap_or(0) >> 20,
            text("collate"),
            text("collation_version")
        ));
    }
    for slot in report["slots"].as_array().into_iter().flatten() {
        let kind = if slot["logical"] == json!(true) { "logical" } else { "physical" };
        let used = if slot["active"] == json!(true) { "in use" } else { "not in use" };
        lines.push(format!("  slot            {}: {kind}, {used}", slot["name"].as_str().unwrap_or_default()));
    }
    for standby in texts(&report["standbys"]) {
        lines.push(format!("  followed by     {standby}"));
    }
    for (parameter, value) in report["kept"].as_object().into_iter().flatten() {
        lines.push(format!("  becomes shared  {parameter} = {}", value.as_str().unwrap_or_default()));
    }
    for (field, title) in [("roles", "role"), ("warnings", "warning"), ("restart", "restart"), ("problems", "problem")]
    {
        lines.extend(texts(&report[field]).into_iter().map(|text| format!("  {title:<15} {text}")));
    }
    lines.join("\n")
}
