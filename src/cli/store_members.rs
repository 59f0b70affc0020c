//! `member list|add|remove`: who carries the store.

use hyper::Method;
use serde_json::{Value, json};

use super::args::{Format, MemberCommand};
use super::client::{Change, Client};
use super::output::{confirm, print};
use super::render::{Column, Table};
use super::{Failure, Outcome, exit};
use crate::agent::snapshot::{RaftMember, Snapshot};
use crate::config::HostPort;

/// `howdah member ...`
pub(super) async fn run(client: &Client, command: MemberCommand) -> Outcome {
    match command {
        MemberCommand::List(args) => {
            let status = client.status(args.cluster.as_deref()).await?;
            let leader = status.snapshot.raft.leader.clone();
            print(&table(&status.snapshot.raft.members, leader.as_deref()).render(args.format))
        }
        MemberCommand::Add { name, addr, force } => {
            let address: HostPort =
                addr.parse().map_err(|error| Failure::new(exit::USAGE, format!("ADDR: {error}")))?;
            let status = client.status(None).await?;
            if status.snapshot.raft.members.iter().any(|member| member.name == name) {
                return Err(Failure::new(exit::REFUSED, format!("{name} is a member already; remove it first")));
            }
            confirm(&format!("Adds {name} at {address} to the store of cluster {}.", status.snapshot.scope), force)?;
            let body = json!({"name": name, "addr": address});
            send(
                client,
                &status.snapshot,
                Change { method: Method::POST, path: "/raft/members".into(), body: Some(body) },
            )
            .await
        }
        MemberCommand::Remove { name, force } => {
            let status = client.status(None).await?;
            let members = &status.snapshot.raft.members;
            if !members.iter().any(|member| member.name == name) {
                let known: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
                let text = format!("{name} is no member of the store; members are {}", known.join(", "));
                return Err(Failure::new(exit::REFUSED, text));
            }
            let voters = members.iter().filter(|member| member.voter && member.name != name).count();
            let plan = format!(
                "Removes {name} from the store of cluster {}. {voters} voters remain, of which {} must be up.",
                status.snapshot.scope,
                voters / 2 + 1
            );
            confirm(&plan, force)?;
            let path = format!("/raft/members/{name}");
            send(client, &status.snapshot, Change { method: Method::DELETE, path, body: None }).await
        }
        // No cluster is asked for it.
        MemberCommand::ForceNewCluster { file, reason, force } => super::file::force_new_cluster(&file, &reason, force),
    }
}

/// To the store's leader first, who carries it out.
async fn send(client: &Client, snapshot: &Snapshot, change: Change) -> Outcome {
    let leader = snapshot.raft.leader.as_ref();
    let order: Vec<HostPort> = snapshot
        .raft
        .members
        .iter()
        .filter(|member| Some(&member.name) == leader)
        .filter_map(|member| member.addr.parse().ok())
        .collect();
    let text = client.change(&order, &change).await?;
    match serde_json::from_str::<Vec<RaftMember>>(&text) {
        Ok(members) => print(&table(&members, leader.map(String::as_str)).render(Format::Pretty)),
        Err(_) => print(&text),
    }
}

fn table(members: &[RaftMember], leader: Option<&str>) -> Table<'static> {
    let rows = members.iter().map(|member| {
        vec![
            json!(member.name),
            json!(member.addr),
            json!(member.id.to_string()),
            json!(if member.voter { "voter" } else { "learner" }),
            if Some(member.name.as_str()) == leader { json!("*") } else { Value::Null },
        ]
    });
    Table {
        columns: ["Member", "Address", "Id", "Vote", "Leads the store"].map(Column::left).to_vec(),
        rows: rows.collect(),
        ..Table::default()
    }
}
