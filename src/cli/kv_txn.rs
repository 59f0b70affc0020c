//! `kv txn`: reads a transaction in etcdctl's language and prints what it did.
//!
//! ```text
//!   value("a") = "1"        comparisons: value, version, create, mod, lease; =, !=, <, >
//!                           an empty line
//!   put a 2                 done if all of them hold
//!   get a
//!                           an empty line
//!   put a 9                 done otherwise
//! ```

use serde_json::{Value, json};

use super::kv::{encoded, lease_id, pairs, range};
use super::{Failure, Outcome, exit};

fn wrong(line: &str, why: &str) -> Failure {
    Failure::new(exit::USAGE, format!("txn: {line:?}: {why}"))
}

/// Splits at blanks; what is in quotes stays together.
fn words(line: &str) -> Outcome<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\\', quote) if quote != Some('\'') => word.get_or_insert_default().extend(letters.next()),
            (letter, Some(end)) if letter == end => quote = None,
            ('"' | '\'', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (letter, None) if letter.is_whitespace() => words.extend(word.take()),
            (letter, _) => word.get_or_insert_default().push(letter),
        }
    }
    if quote.is_some() {
        return Err(wrong(line, "a quote is not closed"));
    }
    words.extend(word);
    Ok(words)
}

/// `target("key") op "value"`
fn comparison(line: &str) -> Outcome<Value> {
    let form = || wrong(line, "a comparison is written as in: value(\"key\") = \"text\", or mod(\"key\") > \"7\"");
    let (target, rest) = line.split_once('(').ok_or_else(form)?;
    let (key, rest) = rest.split_once(')').ok_or_else(form)?;
    let rest = rest.trim_start();
    let (result, value) =
        ["!=", "=", "<", ">"].into_iter().find_map(|op| Some((op, rest.strip_prefix(op)?))).ok_or_else(form)?;
    let result = match result {
        "=" => "EQUAL",
        "!=" => "NOT_EQUAL",
        "<" => "LESS",
        _ => "GREATER",
    };
    let (key, value) = (words(key)?, words(value)?);
    let ([key], [value]) = (key.as_slice(), value.as_slice()) else { return Err(form()) };
    let number = || value.parse::<i64>().map_err(|_| wrong(line, "it compares with a number"));
    let (target, field, value) = match target.trim() {
        "value" | "val" => ("VALUE", "value", encoded(value)),
        "version" | "ver" => ("VERSION", "version", json!(number()?)),
        "create" | "c" => ("CREATE", "create_revision", json!(number()?)),
        "mod" | "m" => ("MOD", "mod_revision", json!(number()?)),
        "lease" => ("LEASE", "lease", json!(lease_id(value)?)),
        _ => return Err(form()),
    };
    Ok(json!({"key": encoded(key), "target": target, "result": result, field: value}))
}

/// `put key value`, `get key`, `del key`; with `--prefix` and `--lease=id`.
fn operation(line: &str) -> Outcome<Value> {
    let words = words(line)?;
    let (flags, words): (Vec<&str>, Vec<&str>) =
        words.iter().map(String::as_str).partition(|word| word.starts_with("--"));
    let prefix = flags.contains(&"--prefix");
    let lease = flags.iter().find_map(|flag| flag.strip_prefix("--lease="));
    let known = |flag: &&str| *flag == "--prefix" || flag.starts_with("--lease=");
    if let Some(unknown) = flags.iter().find(|flag| !known(flag)) {
        return Err(wrong(line, &format!("{unknown} is not known here; --prefix and --lease=ID are")));
    }
    match words.as_slice() {
        ["put", key, value] => {
            let lease = lease.map_or(Ok(0), lease_id)?;
            Ok(json!({"request_put": {"key": encoded(key), "value": encoded(value), "lease": lease}}))
        }
        ["get", key] => Ok(json!({"request_range": range(key, prefix)})),
        ["del", key] => Ok(json!({"request_delete_range": range(key, prefix)})),
        _ => Err(wrong(line, "an operation is one of: put KEY VALUE, get KEY, del KEY")),
    }
}

/// The request that a text describes.
pub(super) fn parse(text: &str) -> Outcome<Value> {
    let mut parts = [Vec::new(), Vec::new(), Vec::new()];
    let mut part = 0;
    for line in text.lines() {
        match (line.trim(), part) {
            ("", 2) => break,
            ("", _) => part += 1,
            (line, 0) => parts[0].push(comparison(line)?),
            (line, part) => parts[part].push(operation(line)?),
        }
    }
    let [compare, success, failure] = parts;
    Ok(json!({"compare": compare, "success": success, "failure": failure}))
}

/// What was done, as etcdctl prints it.
pub(super) fn show(answer: &Value) -> String {
    let mut lines = vec![if answer["succeeded"] == true { "SUCCESS" } else { "FAILURE" }.to_owned()];
    for response in answer["responses"].as_array().into_iter().flatten() {
        lines.push(String::new());
        if let Some(range) = response.get("response_range") {
            lines.extend(pairs(&range["kvs"], false));
        } else if let Some(deleted) = response.get("response_delete_range") {
            lines.push(deleted["deleted"].as_str().unwrap_or("0").to_owned());
        } else {
            lines.push("OK".to_owned());
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_read_as_etcdctl_reads_it() {
        let text = "value(\"a b\") = \"x \\\"y\\\"\"\nmod(k)>'7'\n\nput a 'two words'\nget --prefix app/\n\ndel a\n";
        let expected = json!({
            "compare": [
                {"key": encoded("a b"), "target": "VALUE", "result": "EQUAL", "value": encoded("x \"y\"")},
                {"key": encoded("k"), "target": "MOD", "result": "GREATER", "mod_revision": 7},
            ],
            "success": [
                {"request_put": {"key": encoded("a"), "value": encoded("two words"), "lease": 0}},
                {"request_range": {"key": encoded("app/"), "range_end": encoded("app0")}},
            ],
            "failure": [{"request_delete_range": {"key": encoded("a")}}],
        });
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse("").unwrap(), json!({"compare": [], "success": [], "failure": []}));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (text, part) in [
            ("value(a) ~ b", "a comparison is written as in"),
            ("mod(a) = x", "it compares with a number"),
            ("size(a) = 1", "a comparison is written as in"),
            ("\nput a", "an operation is one of"),
            ("\nget --rev=3 a", "--rev=3 is not known here"),
            ("\nput a \"b", "a quote is not closed"),
        ] {
            let failure = parse(text).unwrap_err();
            assert_eq!(failure.exit, exit::USAGE);
            assert!(failure.to_string().contains(part), "{failure}");
        }
    }
}
