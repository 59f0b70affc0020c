//! `kv get|put|del|txn|watch|lease`: the store's keys, for those without etcdctl. Prints what etcdctl prints.
//!
//! Over the JSON gateway of any node. Deliberately absent: binary keys, users and roles (etcdctl manages them).

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::args::{KvArgs, KvCommand, LeaseCommand};
use super::client::Client;
use super::kv_txn;
use super::output::print;
use super::{Failure, Outcome, exit};
use crate::kv::prefix_end;

pub(super) fn encoded(text: &str) -> Value {
    Value::String(STANDARD.encode(text))
}

/// Bytes as text; what is no UTF-8 is shown as well as it can be.
fn decoded(value: &Value) -> String {
    let bytes = STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The keys that a command is about: one, or all that begin with it.
pub(super) fn range(key: &str, prefix: bool) -> Map<String, Value> {
    let mut fields = Map::new();
    let everything = prefix && key.is_empty();
    let first = if everything { STANDARD.encode([0]) } else { STANDARD.encode(key) };
    fields.insert("key".to_owned(), Value::String(first));
    if prefix {
        let end = if everything { vec![0] } else { prefix_end(key.as_bytes()) };
        fields.insert("range_end".to_owned(), Value::String(STANDARD.encode(end)));
    }
    fields
}

fn with(mut fields: Map<String, Value>, more: &[(&str, Value)]) -> Value {
    fields.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    Value::Object(fields)
}

pub(super) fn pairs(kvs: &Value, keys_only: bool) -> Vec<String> {
    let each = kvs.as_array().into_iter().flatten();
    each.flat_map(|kv| [Some(decoded(&kv["key"])), (!keys_only).then(|| decoded(&kv["value"]))]).flatten().collect()
}

pub(super) fn lease_id(text: &str) -> Outcome<i64> {
    let wrong = || Failure::new(exit::USAGE, format!("{text:?} is no lease; write its id as `lease grant` printed it"));
    // Hexadecimal and perhaps negative, as etcdctl writes it.
    u64::from_str_radix(text, 16).map(u64::cast_signed).map_err(|_| wrong())
}

fn shown_id(id: &Value) -> String {
    let id: i64 = id.as_str().and_then(|text| text.parse().ok()).unwrap_or(0);
    format!("{id:016x}")
}

/// The token of `NAME:PASSWORD`.
async fn authenticate(client: &Client, user: &str) -> Outcome<String> {
    let Some((name, password)) = user.split_once(':') else {
        return Err(Failure::new(exit::USAGE, "--user: write NAME:PASSWORD"));
    };
    let answer = client.etcd("/v3/auth/authenticate", &json!({"name": name, "password": password})).await?;
    Ok(answer["token"].as_str().unwrap_or_default().to_owned())
}

/// `howdah kv ...`
pub(super) async fn run(client: &mut Client, args: KvArgs) -> Outcome {
    if let Some(user) = &args.user {
        let token = authenticate(client, user).await?;
        client.use_token(token);
    }
    match args.command {
        KvCommand::Get { key, prefix, keys_only, rev, local, json } => {
            let request = with(
                range(&key, prefix),
                &[("keys_only", json!(keys_only)), ("revision", json!(rev)), ("serializable", json!(local))],
            );
            let answer = client.etcd("/v3/kv/range", &request).await?;
            if json {
                return print(&answer.to_string());
            }
            let lines = pairs(&answer["kvs"], keys_only);
            if lines.is_empty() { Ok(()) } else { print(&lines.join("\n")) }
        }
        KvCommand::Put { key, value, lease } => {
            let lease = lease.map(|text| lease_id(&text)).transpose()?.unwrap_or(0);
            let request = json!({"key": encoded(&key), "value": encoded(&value), "lease": lease});
            client.etcd("/v3/kv/put", &request).await?;
            print("OK")
        }
        KvCommand::Del { key, prefix } => {
            let answer = client.etcd("/v3/kv/deleterange", &Value::Object(range(&key, prefix))).await?;
            print(answer["deleted"].as_str().unwrap_or("0"))
        }
        KvCommand::Txn => {
            let text = std::io::read_to_string(std::io::stdin()).context("read the transaction")?;
            let answer = client.etcd("/v3/kv/txn", &kv_txn::parse(&text)?).await?;
            print(&kv_txn::show(&answer))
        }
        KvCommand::Watch { key, prefix, rev } => {
            let create = with(range(&key, prefix), &[("start_revision", json!(rev))]);
            client.etcd_stream("/v3/watch", &json!({"create_request": create}), show_events).await
        }
        KvCommand::Lease(command) => lease(client, command).await,
    }
}

/// Prints the events of one answer; whether the watch goes on.
fn show_events(answer: &Value) -> Outcome {
    let result = &answer["result"];
    if result["canceled"] == true {
        let why = match &result["compact_revision"] {
            Value::String(revision) => format!("history is kept from revision {revision} on; watch from there"),
            _ => result["cancel_reason"].as_str().unwrap_or("the node gave no reason").to_owned(),
        };
        return Err(Failure::new(exit::FAILED, format!("the watch has ended: {why}")));
    }
    for event in result["events"].as_array().into_iter().flatten() {
        let kind = event["type"].as_str().unwrap_or("PUT");
        print(&format!("{kind}\n{}\n{}", decoded(&event["kv"]["key"]), decoded(&event["kv"]["value"])))?;
    }
    Ok(())
}

async fn lease(client: &Client, command: LeaseCommand) -> Outcome {
    match command {
        LeaseCommand::Grant { ttl } => {
            let answer = client.etcd("/v3/lease/grant", &json!({"TTL": ttl})).await?;
            let seconds = answer["TTL"].as_str().unwrap_or("0");
            print(&format!("lease {} granted with TTL({seconds}s)", shown_id(&answer["ID"])))
        }
        LeaseCommand::Revoke { id } => {
            client.etcd("/v3/lease/revoke", &json!({"ID": lease_id(&id)?})).await?;
            print(&format!("lease {id} revoked"))
        }
        LeaseCommand::KeepAlive { id } => {
            let answer = client.etcd("/v3/lease/keepalive", &json!({"ID": lease_id(&id)?})).await?;
            match answer["result"]["TTL"].as_str() {
                Some(ttl) => print(&format!("lease {id} keepalived with TTL({ttl})")),
                None => Err(Failure::new(exit::FAILED, format!("lease {id} expired or was revoked"))),
            }
        }
        LeaseCommand::Timetolive { id } => {
            let answer = client.etcd("/v3/lease/timetolive", &json!({"ID": lease_id(&id)?, "keys": true})).await?;
            let Some(granted) = answer["grantedTTL"].as_str() else {
                return print(&format!("lease {id} already expired"));
            };
            let keys: Vec<String> = answer["keys"].as_array().into_iter().flatten().map(decoded).collect();
            let left = answer["TTL"].as_str().unwrap_or("0");
            print(&format!(
                "lease {id} granted with TTL({granted}s), remaining({left}s), attached keys([{}])",
                keys.join(" ")
            ))
        }
        LeaseCommand::List => {
            let answer = client.etcd("/v3/lease/leases", &json!({})).await?;
            let mut ids: Vec<String> =
                answer["leases"].as_array().into_iter().flatten().map(|lease| shown_id(&lease["ID"])).collect();
            ids.insert(0, format!("found {} leases", ids.len()));
            print(&ids.join("\n"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_read_as_they_are_shown() {
        for id in [1, 0x7fff_0000_0000_0001, -7] {
            let shown = shown_id(&json!(id.to_string()));
            assert_eq!(lease_id(&shown).unwrap(), id, "{shown}");
        }
        assert_eq!(lease_id("xyz").unwrap_err().exit, exit::USAGE);
    }

    #[test]
    fn a_prefix_is_a_range() {
        let expected = json!({"key": "YXBwLw==", "range_end": "YXBwMA=="});
        assert_eq!(Value::Object(range("app/", true)), expected);
        assert_eq!(Value::Object(range("", true)), json!({"key": "AA==", "range_end": "AA=="}));
        assert_eq!(Value::Object(range("a", false)), json!({"key": "YQ=="}));
    }
}
