//! `show-config` and `edit-config`: the settings that all members share.

use std::io::Read;
use std::path::Path;

use anyhow::Context;
use hyper::Method;
use serde_json::{Map, Value};

use super::args::{EditConfigArgs, Format, ShowConfigArgs};
use super::change::leader_first;
use super::client::{Change, Client};
use super::output::{confirm, note, print};
use super::{Failure, Outcome, exit};
use crate::agent::snapshot::{MemberStatus, Snapshot};
use crate::config::cluster_settings::merge_patch;
use crate::config::{ClusterSettings, SynchronousMode};

/// `howdah show-config`
pub(super) async fn show(client: &Client, args: &ShowConfigArgs) -> Outcome {
    let status = client.status(args.cluster.as_deref()).await?;
    let stored = stored(client, &status.snapshot).await?;
    let settings = match args.effective {
        true => ClusterSettings::parse(&stored).map_err(anyhow::Error::new)?.0.to_json(),
        false => stored,
    };
    print(&match args.format {
        Format::Json => settings.to_string(),
        Format::Pretty | Format::Yaml => yaml(&settings),
        Format::Tsv => {
            let fields = settings.as_object().into_iter().flatten();
            fields.map(|(key, value)| format!("{key}\t{value}\n")).collect()
        }
    })
}

/// `howdah edit-config`
pub(super) async fn edit(client: &Client, args: &EditConfigArgs) -> Outcome {
    let patch = patch_of(args)?;
    let status = client.status(args.cluster.as_deref()).await?;
    let before = stored(client, &status.snapshot).await?;
    let after = match (&args.replace, patch.clone()) {
        (Some(file), _) => read_settings(file)?,
        (None, Some(patch)) => {
            let mut after = before.clone();
            merge_patch(&mut after, &patch);
            after
        }
        (None, None) => {
            let text = "nothing to change: give -s KEY=VALUE, -p NAME=VALUE, --apply FILE or --replace FILE";
            return Err(Failure::new(exit::USAGE, text));
        }
    };
    if before == after {
        return print("Not changed");
    }
    match ClusterSettings::parse(&after) {
        Ok((settings, mut warnings)) => {
            warnings.extend(more_than_there_are(&status.snapshot, &settings));
            warnings.iter().for_each(|warning| note(&format!("warning: {warning}")));
        }
        Err(invalid) => return Err(Failure::new(exit::REFUSED, format!("the settings would not be valid: {invalid}"))),
    }
    if !args.quiet {
        note(&changed_lines(&yaml(&before), &yaml(&after)));
    }
    let plan = format!("Changes the settings of cluster {}.", status.snapshot.scope);
    confirm(&plan, args.force)?;
    let change = match patch {
        Some(patch) => Change { method: Method::PATCH, path: "/config".into(), body: Some(patch) },
        None => Change { method: Method::PUT, path: "/config".into(), body: Some(after) },
    };
    client.change(&leader_first(&status.snapshot), &change).await?;
    print("Configuration changed")
}

/// As the leader has them: changes go there, so that it is the first that shows them.
async fn stored(client: &Client, snapshot: &Snapshot) -> Outcome<Value> {
    client.read(&leader_first(snapshot), "/config").await
}

/// A warning when more standbys are to confirm commits than could.
fn more_than_there_are(snapshot: &Snapshot, settings: &ClusterSettings) -> Option<String> {
    let cluster = snapshot.cluster.as_ref()?;
    let may = |member: &&MemberStatus| {
        !cluster.is_leader(member.name.as_str()) && member.tags.get("nosync") != Some(&Value::Bool(true))
    };
    let (standbys, wanted) = (cluster.members.iter().filter(may).count(), settings.synchronous_node_count);
    let too_many = settings.synchronous_mode != SynchronousMode::Off && standbys < wanted as usize;
    too_many.then(|| {
        format!("synchronous_node_count: {wanted} standbys are to confirm each commit, and {standbys} members could")
    })
}

/// All given changes as one; none when there are none.
fn patch_of(args: &EditConfigArgs) -> Outcome<Option<Value>> {
    let mut patch = match &args.apply {
        Some(file) => read_settings(file)?,
        None => Value::Object(Map::new()),
    };
    for pair in &args.set {
        let (key, value) = assignment("-s", pair)?;
        let path: Vec<&str> = key.split('.').collect();
        set(&mut patch, &path, value);
    }
    for pair in &args.pg {
        // Parameter names may hold a dot themselves: pg_stat_statements.max.
        let (name, value) = assignment("-p", pair)?;
        set(&mut patch, &["postgresql", "parameters", name], value);
    }
    let given = args.apply.is_some() || !args.set.is_empty() || !args.pg.is_empty();
    Ok(given.then_some(patch))
}

fn assignment<'a>(option: &str, pair: &'a str) -> Outcome<(&'a str, Value)> {
    let bad = |why: &str| Failure::new(exit::USAGE, format!("{option} {pair}: {why}"));
    let (key, text) = pair.split_once('=').ok_or_else(|| bad("write it as KEY=VALUE"))?;
    if key.is_empty() || key.split('.').any(str::is_empty) {
        return Err(bad("the key is empty, or has an empty part"));
    }
    let value = serde_yaml_ng::from_str(text).map_err(|error| bad(&format!("the value is not valid YAML: {error}")))?;
    Ok((key, value))
}

fn set(tree: &mut Value, path: &[&str], value: Value) {
    let mut here = tree;
    for part in path {
        if !here.is_object() {
            *here = Value::Object(Map::new());
        }
        let Value::Object(fields) = here else { return };
        here = fields.entry(*part).or_insert(Value::Null);
    }
    *here = value;
}

fn read_settings(file: &Path) -> Outcome<Value> {
    let text = if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().lock().read_to_string(&mut text).context("read settings from standard input")?;
        text
    } else {
        std::fs::read_to_string(file).with_context(|| format!("read settings from {}", file.display()))?
    };
    let settings: Value = serde_yaml_ng::from_str(&text)
        .with_context(|| format!("read settings from {}: not valid YAML", file.display()))?;
    if !settings.is_object() {
        return Err(Failure::new(exit::USAGE, format!("{} holds no `key: value` lines", file.display())));
    }
    Ok(settings)
}

fn yaml(settings: &Value) -> String {
    serde_yaml_ng::to_string(settings).unwrap_or_else(|_| settings.to_string())
}

/// The lines that go and come, with a line around them. Keys are sorted, so lines in common stand in the same order.
fn changed_lines(before: &str, after: &str) -> String {
    let (before, after): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    // Longest common subsequence; settings are some hundred lines at most.
    let mut common = vec![vec![0usize; after.len() + 1]; before.len() + 1];
    for i in (0..before.len()).rev() {
        for j in (0..after.len()).rev() {
            common[i][j] = match before[i] == after[j] {
                true => common[i + 1][j + 1] + 1,
                false => common[i + 1][j].max(common[i][j + 1]),
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut lines = Vec::new();
    while i < before.len() || j < after.len() {
        if i < before.len() && j < after.len() && before[i] == after[j] {
            lines.push((' ', before[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == after.len() || (i < before.len() && common[i + 1][j] >= common[i][j + 1]) {
            lines.push(('-', before[i]));
            i += 1;
        } else {
            lines.push(('+', after[j]));
            j += 1;
        }
    }
    let near = |index: usize| {
        let window = index.saturating_sub(1)..(index + 2).min(lines.len());
        lines[window].iter().any(|(mark, _)| *mark != ' ')
    };
    let shown = lines.iter().enumerate().filter(|(index, _)| near(*index));
    shown.map(|(_, (mark, line))| format!("{mark}{line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_lines_have_a_line_around_them() {
        assert_eq!(
            changed_lines("a: 1\nb: 2\nc: 3\nd: 4\n", "a: 1\nb: 2\nc: 5\nd: 4\ne: 6\n"),
            " b: 2\n-c: 3\n+c: 5\n d: 4\n+e: 6"
        );
    }

    #[test]
    fn assignments_nest_and_parameters_stay_flat() {
        let mut tree = Value::Object(Map::new());
        set(&mut tree, &["postgresql", "use_slots"], Value::Bool(true));
        set(&mut tree, &["postgresql", "parameters", "a.b"], Value::Null);
        assert_eq!(tree, serde_json::json!({"postgresql": {"use_slots": true, "parameters": {"a.b": null}}}));
    }
}
