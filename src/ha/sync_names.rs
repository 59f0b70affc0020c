//! `synchronous_standby_names`: from a rule to PostgreSQL's words and back.
//!
//! Names are quoted always: `first` and `any` are words of the language, and letters keep their case.
//! Source: PostgreSQL `syncrep_gram.y`, versions 13 to 18.

use std::collections::BTreeSet;

use super::sync_set::CommitRule;
use super::view::SyncMode;
use crate::types::NodeName;

/// The name of nobody: no member can be called so, because a node's name has no blank.
const NOBODY: &str = "no standby is proven yet";

/// The text that has PostgreSQL enforce `rule`.
pub fn render(rule: &CommitRule, mode: SyncMode) -> String {
    if rule.names.len() < rule.count {
        return format!("ANY 1 (\"{NOBODY}\")");
    }
    if rule.count == 0 {
        return String::new();
    }
    let names: Vec<String> = rule.names.iter().map(|name| format!("\"{name}\"")).collect();
    let list = names.join(",");
    match (mode, rule.count) {
        (SyncMode::On, 1) if names.len() == 1 => list,
        (SyncMode::On, count) if names.len() == count => format!("{count} ({list})"),
        (SyncMode::Off | SyncMode::On | SyncMode::Quorum, count) => format!("ANY {count} ({list})"),
    }
}

/// What `text` has PostgreSQL enforce; none when that says nothing about our members.
///
/// A list by priority confirms by *some* group of its size, which is all that counts here.
pub fn parse(text: &str) -> Option<CommitRule> {
    let text = text.trim();
    if text.is_empty() {
        return Some(CommitRule::default());
    }
    let (head, list) = match text.split_once('(') {
        Some((head, rest)) => (head.trim(), rest.trim_end().strip_suffix(')')?),
        None => ("1", text),
    };
    let number = head.split_ascii_whitespace().next_back()?;
    let method = head[..head.len() - number.len()].trim();
    if !(method.is_empty() || method.eq_ignore_ascii_case("any") || method.eq_ignore_ascii_case("first")) {
        return None;
    }
    let count: usize = number.parse().ok().filter(|count| 0 < *count)?;
    if list.trim() == format!("\"{NOBODY}\"") {
        return Some(CommitRule::nobody_confirms());
    }
    let names: Option<BTreeSet<NodeName>> = list.split(',').map(name).collect();
    names.map(|names| CommitRule { count, names })
}

fn name(text: &str) -> Option<NodeName> {
    let text = text.trim();
    let bare = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    bare.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(count: usize, names: &[&str]) -> CommitRule {
        CommitRule { count, names: names.iter().map(|name| name.parse().expect("valid")).collect() }
    }

    #[test]
    fn rules_become_text_and_come_back() {
        for (mode, rule, text) in [
            (SyncMode::Quorum, rule(1, &["n2", "n3"]), "ANY 1 (\"n2\",\"n3\")"),
            (SyncMode::Quorum, rule(1, &["n2"]), "ANY 1 (\"n2\")"),
            (SyncMode::On, rule(1, &["n2"]), "\"n2\""),
            (SyncMode::On, rule(2, &["n2", "n3"]), "2 (\"n2\",\"n3\")"),
            (SyncMode::On, rule(1, &["n2", "n3"]), "ANY 1 (\"n2\",\"n3\")"),
            (SyncMode::On, rule(0, &[]), ""),
            (SyncMode::Quorum, CommitRule::nobody_confirms(), "ANY 1 (\"no standby is proven yet\")"),
        ] {
            assert_eq!(render(&rule, mode), text);
            assert_eq!(parse(text), Some(rule));
        }
    }

    #[test]
    fn what_people_write_is_understood_or_refused() {
        assert_eq!(parse("first 2 (a, \"B\" , c)"), Some(rule(2, &["a", "B", "c"])));
        assert_eq!(parse("a, b"), Some(rule(1, &["a", "b"])));
        for foreign in ["*", "ANY 1 (*)", "ANY 0 (a)", "2 (a", "some 1 (a)", "ANY 1 ()", "\"two words\"", "(a)"] {
            assert_eq!(parse(foreign), None, "{foreign}");
        }
    }
}
