//! `/why`: who leads and why, what would happen if a node died now, and what keeps a member from leading.
//!
//! ```text
//! the newest recorded view -> ha::what_if, ha::why (the real core, on copies) -> codes and sentences
//! /why  /why?not=n3  /why?kill=n2  /why?about=restart-pending
//! ```
//! Answered by one node from what it knows. Deliberately absent: any effect, and any reason that the core does not have.

use serde_json::{Value, json};

use super::control::ControlError;
use super::health::Query;
use crate::agent::chronicle::of_timeline;
use crate::agent::recorder::{Recorded, Recorder};
use crate::agent::snapshot::Snapshot;
use crate::cluster::ClusterRecord;
use crate::ha::what_if::{self, Forecast, Outcome, Voter};
use crate::ha::{ClusterView, Reason, why};
use crate::types::NodeName;

/// The answer to a question.
///
/// # Errors
/// When this node cannot know, there is no such member, or the question is none.
pub fn answer(snapshot: &Snapshot, recorder: &Recorder, query: &Query) -> Result<Value, ControlError> {
    if let Some(about) = query.get("about") {
        return match about {
            "restart-pending" => restart_pending(snapshot),
            other => Err(ControlError::BadRequest(format!(
                "about={other}: only about=restart-pending, not=NAME and kill=NAME are answered"
            ))),
        };
    }
    let Some(newest) = recorder.newest() else {
        return Err(ControlError::Failed(
            "this node has decided nothing yet, or is a witness; ask a member with PostgreSQL".to_owned(),
        ));
    };
    let Some(record) = newest.view.record.any() else {
        return Err(ControlError::NoQuorum(newest.decision.reason.to_string()));
    };
    let name =
        |text: &str| text.parse::<NodeName>().map_err(|error| ControlError::BadRequest(format!("{text}: {error}")));
    match (query.get("not"), query.get("kill")) {
        (Some(not), _) => why_not(&newest, record, &name(not)?),
        (None, Some(kill)) => kill_answer(snapshot, &newest, &name(kill)?),
        (None, None) => who_leads(snapshot, &newest, record),
    }
}

fn coded(reason: &Reason) -> Value {
    json!({"reason": reason.code(), "sentence": reason.to_string()})
}

/// Who leads, as far as anybody here can know.
fn leader_of(view: &ClusterView, record: &ClusterRecord) -> Option<NodeName> {
    record.leader.as_ref().filter(|_| view.unconfirmed_for().is_none()).map(|leader| leader.value.clone())
}

/// What is to be said of a record that no majority confirms; none while one does.
fn doubt(view: &ClusterView, record: &ClusterRecord) -> Option<String> {
    let age = view.unconfirmed_for()?;
    let led = record.leader.as_ref().map_or("nobody", |leader| leader.value.as_str());
    Some(format!(
        "{} has heard no majority of the store for {:.0} s (then {led} led), and without a majority nobody can take over",
        view.me,
        age.as_secs_f64()
    ))
}

/// Slots that fill this node's disk. PostgreSQL stops when there is no room for WAL.
fn held_back(snapshot: &Snapshot, me: &NodeName) -> Vec<Value> {
    let held = snapshot.postgres.iter().flat_map(|postgres| &postgres.held_back);
    held.map(|(slot, held)| {
        let gibibytes = held.bytes as f64 / (1_u64 << 30) as f64;
        let rest = if held.active {
            "its reader is behind".to_owned()
        } else {
            format!(
                "nobody reads it: start its reader, or drop it there with SELECT pg_drop_replication_slot('{slot}')"
            )
        };
        let why = format!("slot {slot} keeps {gibibytes:.1} GB of WAL on {me}, and {rest}");
        json!({"what": "but WAL piles up", "node": me, "reason": "slot_keeps_wal", "sentence": why})
    })
    .collect()
}

fn who_leads(snapshot: &Snapshot, newest: &Recorded, record: &ClusterRecord) -> Result<Value, ControlError> {
    let me = &newest.view.me;
    let leader = leader_of(&newest.view, record);
    let doubt = doubt(&newest.view, record);
    let mut because: Vec<Value> = Vec::new();
    let mut sentence = match (&leader, doubt) {
        (Some(leader), _) => {
            format!("{leader} leads in term {}.", record.term().map_or(0, |term| term.0))
        }
        (None, Some(doubt)) => format!("Nobody is known to lead: {doubt}."),
        (None, None) => "Nobody leads.".to_owned(),
    };
    let made = of_timeline(&snapshot.timeline, record.timeline()).filter(|made| Some(&made.node) == leader.as_ref());
    match (made, &leader) {
        (Some(made), _) => {
            because.push(json!({"what": "the former leadership ended", "node": made.other, "reason": made.cause.code, "sentence": made.cause.sentence}));
            if let Some(choice) = &made.choice {
                because.push(json!({"what": "it was chosen", "node": made.node, "reason": choice.code, "sentence": choice.sentence}));
            }
            sentence.push_str(&format!(" Since {}, by a {}.", made.at.iso(), made.kind.as_str()));
        }
        (None, Some(leader)) if record.history.is_empty() => {
            let text = format!("{leader} created the cluster or brought its database, and nothing has ended that");
            because.push(json!({"what": "it began", "node": leader, "reason": "new_cluster", "sentence": text}));
        }
        (None, _) => (),
    }
    let lowered = snapshot.postgres.as_ref().map(|postgres| &postgres.lowered).filter(|lowered| !lowered.is_empty());
    if let Some(lowered) = lowered.filter(|_| leader.as_ref() == Some(me)) {
        let all: Vec<String> = lowered.iter().map(|(name, value)| format!("{name} is {value}")).collect();
        let all = all.join(", ");
        let why = format!(
            "{all} on {me} (by ALTER SYSTEM, a file of the node or the cluster's settings): acknowledged commits can be lost"
        );
        because.push(json!({"what": "but commits promise less than the cluster does", "node": me, "reason": "lowered_settings", "sentence": why}));
    }
    because.extend(held_back(snapshot, me));
    let decision = &newest.decision;
    let mut now = coded(&decision.reason);
    now["node"] = json!(me);
    now["action"] = json!(decision.action.code());
    let mut body = json!({
        "node": me,
        "leader": leader,
        "sentence": sentence,
        "because": because,
        "now": now,
    });
    if let Some(leader) = &leader {
        body["if_it_died"] = kill_answer(snapshot, newest, leader)?;
    } else {
        body["obstacles"] = json!(members(record).map(|name| obstacles_of(newest, &name)).collect::<Vec<_>>());
    }
    Ok(body)
}

fn members(record: &ClusterRecord) -> impl Iterator<Item = NodeName> + '_ {
    record.members.keys().cloned()
}

fn obstacles_of(newest: &Recorded, name: &NodeName) -> Value {
    let found = why::obstacles(&newest.view, name).unwrap_or_default();
    json!({"node": name, "obstacles": found.iter().map(coded).collect::<Vec<_>>()})
}

fn why_not(newest: &Recorded, record: &ClusterRecord, name: &NodeName) -> Result<Value, ControlError> {
    let view = &newest.view;
    let leader = leader_of(view, record);
    let leader = leader.as_ref();
    let Some(found) = why::obstacles(view, name) else {
        return Err(ControlError::NotFound(format!(
            "{name} is no member of the cluster, or has been silent for longer than its lease: who is not heard cannot lead"
        )));
    };
    let leads = leader == Some(name);
    let sentence = match (leads, leader, found.as_slice()) {
        (true, _, _) => format!("{name} leads."),
        (false, Some(leader), []) => format!(
            "{name} could lead. It does not because {leader} leads, and a leader is not replaced while it works; `howdah switchover --candidate {name}` moves it."
        ),
        (false, None, _) if view.unconfirmed_for().is_some() => {
            format!("{name} cannot be known to lead: {}.", doubt(view, record).unwrap_or_default())
        }
        (false, None, []) => format!("Nothing stops {name}: it takes the key with its next decision."),
        (false, _, found) => format!(
            "{name} would not lead if {} now, for {}.",
            leader.map_or("nobody led".to_owned(), |leader| format!("{leader} died")),
            if found.len() == 1 { "one reason".to_owned() } else { format!("{} reasons", found.len()) }
        ),
    };
    let own = *name == view.me;
    Ok(json!({
        "node": name,
        "seen_by": view.me,
        "own_word": own,
        "leader": leader,
        "leads": leads,
        "sentence": sentence,
        "obstacles": if leads { Vec::new() } else { found.iter().map(coded).collect::<Vec<_>>() },
    }))
}

fn kill_answer(snapshot: &Snapshot, newest: &Recorded, victim: &NodeName) -> Result<Value, ControlError> {
    let view = &newest.view;
    let Some(forecast) = what_if::kill(view, &voters(snapshot, newest), victim) else {
        return Err(ControlError::NoQuorum("the record has not been read yet".to_owned()));
    };
    if forecast.outcome == Outcome::UnknownNode {
        return Err(ControlError::NotFound(format!("there is no node {victim}, or it is dead already")));
    }
    let list = |rows: Vec<(&NodeName, &Reason, Option<&String>)>| -> Vec<Value> {
        rows.into_iter()
            .map(|(node, reason, action)| {
                let mut row = coded(reason);
                row["node"] = json!(node);
                if let Some(action) = action {
                    row["action"] = json!(action);
                }
                row
            })
            .collect()
    };
    let decisions = forecast.decisions.iter().map(|one| (&one.node, &one.reason, Some(&one.action))).collect();
    let others = forecast.others.iter().map(|(node, reason)| (node, reason, None)).collect();
    Ok(json!({
        "victim": victim,
        "leads": forecast.leads,
        "outcome": forecast.outcome,
        "sentence": match view.record.any().and_then(|record| doubt(view, record)) {
            Some(doubt) => format!("Nobody can say what the death of {victim} would change: {doubt}."),
            None => sentence(&forecast, view.settings.synchronous.strict),
        },
        "decisions": list(decisions),
        "others": list(others),
        "assumed": forecast.assumed,
    }))
}

/// Who votes, and what this node knows of whether it answers.
fn voters(snapshot: &Snapshot, newest: &Recorded) -> Vec<Voter> {
    let record = newest.view.record.any();
    let alive =
        |name: &NodeName| *name == newest.view.me || record.is_some_and(|record| record.members.contains_key(name));
    let voters = snapshot.raft.members.iter().filter(|member| member.voter);
    voters
        .filter_map(|member| {
            let name: NodeName = member.name.parse().ok()?;
            let up = if alive(&name) { Some(true) } else { member.reachable };
            Some(Voter { name, up })
        })
        .collect()
}

fn sentence(forecast: &Forecast, strict: bool) -> String {
    let victim = &forecast.victim;
    let mut text = match &forecast.outcome {
        Outcome::LeaderStays { leader, confirming: None } => {
            format!("If {victim} died now, {leader} would go on leading.")
        }
        Outcome::LeaderStays { leader, confirming: Some((there, needed)) } if needed <= there => format!(
            "If {victim} died now, {leader} would go on leading, and commits would go on: {there} of {needed} standbys that must confirm them would be there."
        ),
        Outcome::LeaderStays { leader, confirming: Some((there, needed)) } => format!(
            "If {victim} died now, {leader} would go on leading, but commits would wait: {there} of {needed} standbys that must confirm them would be there. {}",
            if strict {
                "They wait until one is back (synchronous_mode_strict)."
            } else {
                "After one ttl they go on with fewer copies, which is recorded first."
            }
        ),
        Outcome::TakenOver { by, within, proven, missing } => {
            let loss = match (proven, missing) {
                (true, _) => "It is proven to have every acknowledged commit: nothing would be lost.".to_owned(),
                (false, 0) => {
                    "It has everything that the leader has published; what came after that would be lost.".to_owned()
                }
                (false, bytes) => {
                    format!("It lacks {bytes} bytes of what the leader has published: these would be lost.")
                }
            };
            format!("If {victim} died now, {by} would take over within {:.1} s. {loss}", within.as_secs_f64())
        }
        Outcome::NoMajority { left, needed } => format!(
            "If {victim} died now, {left} of {needed} voters that the store needs would be left: nobody could write until one more is back."
        ),
        Outcome::Nobody => format!("If {victim} died now, nobody could take over by itself."),
        Outcome::Unconfirmed { .. } => format!("If {victim} died now, nobody could take over without a majority."),
        Outcome::UnknownNode => format!("There is no node {victim}."),
    };
    if !forecast.assumed.is_empty() {
        let names: Vec<&str> = forecast.assumed.iter().map(NodeName::as_str).collect();
        text.push_str(&format!(" Taken to answer in the store, which this node does not know: {}.", names.join(", ")));
    }
    text
}

fn restart_pending(snapshot: &Snapshot) -> Result<Value, ControlError> {
    let Some(cluster) = &snapshot.cluster else {
        return Err(ControlError::NoQuorum("the cluster is not known to this node yet".to_owned()));
    };
    let mut members = Vec::new();
    for member in cluster.members.iter().filter(|member| !member.pending_restart.is_empty()) {
        let settings: Vec<Value> = member
            .pending_restart
            .iter()
            .map(|(name, change)| {
                let sentence = format!(
                    "{name} is {} and becomes {}: PostgreSQL reads it when it starts, and not before",
                    change.old_value, change.new_value
                );
                json!({"setting": name, "old_value": change.old_value, "new_value": change.new_value, "sentence": sentence})
            })
            .collect();
        members.push(json!({"node": member.name, "settings": settings, "scheduled_restart": member.scheduled_restart}));
    }
    let sentence = match members.len() {
        0 => "No member waits for a restart.".to_owned(),
        1 => format!("One member waits for a restart; `howdah restart {} --pending` brings it.", snapshot.scope),
        many => format!(
            "{many} members wait for a restart; `howdah restart {} --pending` brings it, the leader last.",
            snapshot.scope
        ),
    };
    Ok(json!({"sentence": sentence, "members": members}))
}
