//! What the core decides on a view, as text: the action, why, when to look again, and the steps.

use std::time::Duration;

use howdah::ha::view::ClusterView;
use howdah::ha::what_if::{self, Voter};
use howdah::ha::{PgStep, RecordStep, Step, decide, plan, why};
use howdah::types::{LeaderPermit, Mono, NodeName, StopMode};

pub fn decision(view: &ClusterView) -> String {
    let decision = decide(view);
    let again = match decision.recheck_after {
        Duration::ZERO => "at once".to_owned(),
        after => format!("in {after:?}"),
    };
    let (action, reason) = (decision.action.code(), &decision.reason);
    let mut text = format!("{action}: {reason} [{}, again {again}]\n", reason.code());
    for step in plan(&decision.action, view) {
        text.push_str(&format!("  {}\n", step_line(&step, view.now)));
    }
    text
}

/// Each rule that keeps `name` from leading.
pub fn obstacles(view: &ClusterView, name: &NodeName) -> String {
    match why::obstacles(view, name) {
        None => "it is no member\n".to_owned(),
        Some(found) if found.is_empty() => "nothing\n".to_owned(),
        Some(found) => found.iter().map(|reason| format!("{reason} [{}]\n", reason.code())).collect(),
    }
}

/// What would happen without `victim`.
pub fn forecast(view: &ClusterView, voters: &[Voter], victim: &NodeName) -> String {
    let Some(forecast) = what_if::kill(view, voters, victim) else { return "nobody knows\n".to_owned() };
    let mut text = format!("{:?}\n", forecast.outcome);
    for one in &forecast.decisions {
        text.push_str(&format!("  {} {}: {} [{}]\n", one.node, one.action, one.reason, one.reason.code()));
    }
    text
}

fn step_line(step: &Step, now: Mono) -> String {
    let permit = |permit: &LeaderPermit| {
        format!("under the permit of term {}, {:?} left", permit.term, permit.valid_until.since(now))
    };
    match step {
        Step::Pg(PgStep::StartPrimary { permit: proof }) => format!("postgres: start_primary {}", permit(proof)),
        Step::Pg(PgStep::Promote { permit: proof, timeline }) => {
            format!("postgres: promote to timeline {timeline} {}", permit(proof))
        }
        Step::Pg(PgStep::Stop { mode: StopMode::Fast }) => "postgres: stop fast".to_owned(),
        Step::Pg(PgStep::Stop { mode: StopMode::Immediate }) => "postgres: stop immediate".to_owned(),
        Step::Pg(PgStep::Configure { follow }) => {
            format!("postgres: configure to follow {}", follow.as_ref().map_or("nobody", NodeName::as_str))
        }
        Step::Pg(step) => format!("postgres: {}", flat(step)),
        Step::Record(RecordStep::HandOver { term, to, shutdown_lsn, why }) => {
            format!("record: hand_over term {term} to {to}, which has {shutdown_lsn} ({why})")
        }
        Step::Record(step) => format!("record: {}", flat(step)),
        Step::Exit => "exit".to_owned(),
    }
}

/// A step in one line: its code and its fields.
fn flat<T: serde::Serialize>(step: &T) -> String {
    match serde_json::to_value(step).unwrap() {
        serde_json::Value::String(code) => code,
        serde_json::Value::Object(map) => {
            let mut text = String::new();
            for (code, fields) in map {
                text.push_str(&code);
                for (name, value) in fields.as_object().into_iter().flatten() {
                    let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    text.push_str(&format!(" {name}={value}"));
                }
            }
            text
        }
        other => other.to_string(),
    }
}
