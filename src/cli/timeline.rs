//! `history --verbose`: what has happened to the leadership, an entry for each change.

use serde_json::{Value, json};

use super::args::{Format, FormatArgs};
use super::client::Client;
use super::output::print;
use super::render::{Cell, Column, Table};
use super::{Failure, Outcome, exit};
use crate::cluster::changes::ChangeRecord;

/// `howdah history --verbose`
pub(super) async fn verbose(client: &Client, args: &FormatArgs) -> Outcome {
    // Also checks the cluster's name.
    client.status(args.cluster.as_deref()).await?;
    let body = client.read(&[], "/timeline").await?;
    let entries: Vec<ChangeRecord> = serde_json::from_value(body)
        .map_err(|error| Failure::new(exit::FAILED, format!("/timeline: {error}; is that node of another version?")))?;
    if entries.is_empty() && args.format == Format::Pretty {
        return print("Nothing has happened to the leadership yet.");
    }
    print(&table(&entries, args.format).render(args.format))
}

fn table(entries: &[ChangeRecord], format: Format) -> Table<'static> {
    let people = format == Format::Pretty;
    let columns = vec![
        Column::left("When"),
        Column::left("What"),
        Column::left("Node"),
        Column::left("From"),
        Column::right("TL"),
        Column { title: "ms", key: "Total ms", right: true },
        Column::left("Parts"),
        Column::left("Position"),
        Column::left("Lost"),
        Column::left("Why"),
    ];
    let rows = entries.iter().map(|entry| row(entry, people)).collect();
    Table { columns, rows, ..Table::default() }
}

fn row(entry: &ChangeRecord, people: bool) -> Vec<Cell> {
    let parts: serde_json::Map<String, Value> =
        entry.phases.named().into_iter().filter_map(|(name, span)| Some((name.to_owned(), json!(span?)))).collect();
    let people_parts = || {
        let known = entry.phases.named().into_iter().filter_map(|(name, span)| Some(format!("{name} {}", span?)));
        known.collect::<Vec<_>>().join("\n")
    };
    let mut why = vec![format!("{} ({})", entry.cause.sentence, entry.cause.code)];
    why.extend(entry.choice.iter().map(|choice| format!("{} ({})", choice.sentence, choice.code)));
    let why = if people {
        json!(why.iter().map(|line| wrapped(line)).collect::<Vec<_>>().join("\n"))
    } else {
        json!({"cause": entry.cause, "choice": entry.choice})
    };
    vec![
        json!(entry.at.iso()),
        json!(entry.kind.as_str()),
        json!(entry.node),
        json!(entry.other),
        json!(entry.timeline.map(|timeline| timeline.0)),
        json!(entry.total_ms),
        if people { json!(people_parts()) } else { Value::Object(parts) },
        json!(entry.position.map(|position| position.to_string())),
        if people { json!(entry.loss.to_string()) } else { json!(entry.loss) },
        why,
    ]
}

/// Lines of a cell are no longer than people like to read.
fn wrapped(text: &str) -> String {
    const WIDTH: usize = 60;
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) | None => lines.push(format!("  {word}")),
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_reasons_take_several_lines() {
        let text = wrapped(&"word ".repeat(30));
        assert!(text.lines().count() > 2 && text.lines().all(|line| line.chars().count() <= 64), "{text}");
        assert_eq!(wrapped("short"), "short");
    }
}
