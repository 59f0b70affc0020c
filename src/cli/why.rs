//! `why`, `what-if` and `explain`: the reasons, and the core run again on what was known.
//!
//! ```text
//! why, what-if -> /why of the node that knows best -> sentences, each with its code
//! explain      -> a journal (file, or a node's) -> ha::decide once more -> the same, or not
//! ```

use std::fs;

use serde_json::{Value, json};

use super::args::{ExplainArgs, Format, WhatIfArgs, WhatIfCommand, WhyArgs};
use super::change::{api_address, leader_first};
use super::client::Client;
use super::output::print;
use super::render::{Column, Table};
use super::{Failure, Outcome, exit};
use crate::agent::recorder::{self, Recorded};
use crate::agent::snapshot::Snapshot;
use crate::config::HostPort;
use crate::ha;

/// `howdah why`
pub(super) async fn why(client: &Client, args: &WhyArgs) -> Outcome {
    let words: Vec<&str> = args.question.iter().map(String::as_str).collect();
    let status = client.status(None).await?;
    let snapshot = &status.snapshot;
    let body = match words.as_slice() {
        [] => client.read(&leader_first(snapshot), "/why").await?,
        ["not", name] => {
            // Its own word first: it knows what nobody else does.
            let order: Vec<HostPort> = address_of(snapshot, name).into_iter().chain(leader_first(snapshot)).collect();
            client.read(&order, &format!("/why?not={name}")).await?
        }
        ["restart-pending"] => client.read(&[], "/why?about=restart-pending").await?,
        _ => {
            let text = "why what? `howdah why`, `howdah why not NAME` and `howdah why restart-pending` are answered";
            return Err(Failure::new(exit::USAGE, text));
        }
    };
    print(&shown(&body, args.format))
}

/// `howdah what-if`
pub(super) async fn what_if(client: &Client, args: &WhatIfArgs) -> Outcome {
    let WhatIfCommand::Kill { node } = &args.command;
    let status = client.status(None).await?;
    let body = client.read(&leader_first(&status.snapshot), &format!("/why?kill={node}")).await?;
    print(&shown(&body, args.format))
}

fn address_of(snapshot: &Snapshot, name: &str) -> Option<HostPort> {
    api_address(&snapshot.cluster.as_ref()?.member(name)?.api_url)
}

fn shown(body: &Value, format: Format) -> String {
    match format {
        Format::Pretty => lines(body).join("\n"),
        Format::Json => body.to_string(),
        Format::Yaml => serde_yaml_ng::to_string(body).unwrap_or_default(),
        Format::Tsv => {
            let columns = ["About", "Node", "Reason", "Sentence"].map(Column::left).to_vec();
            Table { columns, rows: flat(body), ..Table::default() }.render(Format::Tsv)
        }
    }
}

/// Lists of reasons in an answer, with what they are about.
const LISTS: [(&str, &str); 5] =
    [("because", ""), ("obstacles", ""), ("decisions", "would decide"), ("others", "would not lead"), ("settings", "")];

fn lines(body: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut lines = vec![text(&body["sentence"])];
    for row in body["because"].as_array().into_iter().flatten() {
        lines.push(format!("  {}: {} ({})", text(&row["what"]), text(&row["sentence"]), text(&row["reason"])));
    }
    for row in body["obstacles"].as_array().into_iter().flatten() {
        match row["obstacles"].as_array() {
            Some(of_one) => lines.extend(of_one.iter().map(|o| reason_line(&text(&row["node"]), o))),
            None => lines.push(format!("  {} ({})", text(&row["sentence"]), text(&row["reason"]))),
        }
    }
    if body["own_word"] == json!(false) {
        lines.push(format!("  As seen by {}; {} itself does not answer.", text(&body["seen_by"]), text(&body["node"])));
    }
    for member in body["members"].as_array().into_iter().flatten() {
        for setting in member["settings"].as_array().into_iter().flatten() {
            lines.push(format!("  {}: {}", text(&member["node"]), text(&setting["sentence"])));
        }
    }
    if body["now"].is_object() {
        let now = &body["now"];
        lines.push(format!(
            "Now {} decides {}: {} ({}).",
            text(&now["node"]),
            text(&now["action"]),
            text(&now["sentence"]),
            text(&now["reason"])
        ));
    }
    for row in body["decisions"].as_array().into_iter().flatten() {
        lines.push(format!("  {} would {}", text(&row["node"]), verb(row)));
    }
    if body["if_it_died"].is_object() {
        lines.extend(self::lines(&body["if_it_died"]));
    }
    lines
}

fn verb(row: &Value) -> String {
    let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
    format!("{}: {} ({})", text("action").replace('_', " "), text("sentence"), text("reason"))
}

fn reason_line(node: &str, reason: &Value) -> String {
    let text = |key: &str| reason[key].as_str().unwrap_or_default();
    format!("  {node}: {} ({})", text("sentence"), text("reason"))
}

fn flat(body: &Value) -> Vec<Vec<Value>> {
    let mut rows = vec![vec![json!("answer"), body["node"].clone(), Value::Null, body["sentence"].clone()]];
    for (list, about) in LISTS {
        for row in body[list].as_array().into_iter().flatten() {
            let about = if about.is_empty() { list } else { about };
            rows.push(vec![json!(about), row["node"].clone(), row["reason"].clone(), row["sentence"].clone()]);
        }
    }
    if body["if_it_died"].is_object() {
        rows.extend(flat(&body["if_it_died"]));
    }
    rows
}

/// `howdah explain`: every recorded decision is made once more by this binary's core.
pub(super) fn explain(text: &str, args: &ExplainArgs) -> Outcome {
    let recorded = recorder::parse(text).map_err(|why| Failure::new(exit::FAILED, why))?;
    let chosen: Vec<&Recorded> = match args.last {
        Some(last) => recorded.iter().skip(recorded.len().saturating_sub(last)).collect(),
        None => recorded.iter().collect(),
    };
    if chosen.is_empty() {
        return Err(Failure::new(exit::FAILED, "the journal has no decisions"));
    }
    let again: Vec<(&Recorded, ha::Decision)> = chosen.iter().map(|one| (*one, ha::decide(&one.view))).collect();
    let other = again.iter().filter(|(one, now)| one.decision != *now).count();
    let shown = match args.format {
        Format::Pretty => again.iter().flat_map(|(one, now)| told(one, now, args.facts)).collect::<Vec<_>>().join("\n"),
        format => table(&again).render(format),
    };
    print(&shown)?;
    if other == 0 {
        return Ok(());
    }
    Err(Failure::new(exit::FAILED, format!("{other} of {} decisions differ from what was recorded", again.len())))
}

fn told(one: &Recorded, now: &ha::Decision, facts: bool) -> Vec<String> {
    let record = one.view.record.any();
    let leader = record.and_then(|record| record.leader.as_ref()).map_or("nobody", |leader| leader.value.as_str());
    let revision = record.map_or(0, |record| record.revision);
    let mut lines = vec![format!(
        "{} {} (revision {revision}, led by {leader}) {}: {} ({})",
        one.at.iso(),
        one.view.me,
        now.action.code(),
        now.reason,
        now.reason.code()
    )];
    if one.decision != *now {
        lines.push(format!(
            "    DIFFERENT: {} was recorded: {} ({})",
            one.decision.action.code(),
            one.decision.reason,
            one.decision.reason.code()
        ));
    }
    for step in ha::plan(&now.action, &one.view) {
        lines.push(format!("    then {step:?}"));
    }
    if facts && let Ok(view) = serde_yaml_ng::to_string(&one.view) {
        lines.extend(view.lines().map(|line| format!("    | {line}")));
    }
    lines
}

fn table(again: &[(&Recorded, ha::Decision)]) -> Table<'static> {
    let columns = ["At", "Node", "Action", "Reason", "Sentence", "As recorded"].map(Column::left).to_vec();
    let rows = again
        .iter()
        .map(|(one, now)| {
            vec![
                json!(one.at.iso()),
                json!(one.view.me),
                json!(now.action.code()),
                json!(now.reason.code()),
                json!(now.reason.to_string()),
                json!(one.decision == *now),
            ]
        })
        .collect();
    Table { columns, rows, ..Table::default() }
}

/// The text of the journal: a file, or what the node of `--member` (else any) has in memory.
pub(super) async fn journal(client: &Client, args: &ExplainArgs) -> Outcome<String> {
    if let Some(file) = &args.journal {
        return fs::read_to_string(file)
            .map_err(|error| Failure::new(exit::FAILED, format!("read {}: {error}", file.display())));
    }
    let order: Vec<HostPort> = match &args.member {
        Some(name) => {
            let status = client.status(None).await?;
            let address = address_of(&status.snapshot, name);
            let unknown = || Failure::new(exit::FAILED, format!("{name} is no member of the cluster, or silent"));
            return client.text_only_at(&address.ok_or_else(unknown)?, "/howdah/journal").await;
        }
        None => Vec::new(),
    };
    client.text(&order, "/howdah/journal").await
}
