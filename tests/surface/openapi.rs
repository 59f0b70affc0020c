//! The description of the interface against the interface, in both directions.

use howdah::api::openapi::{ENDPOINTS, document};
use serde_json::{Value, json};

use crate::fake_node::{FakeNode, ask};

/// As much of JSON Schema as the description uses.
fn validate(schema: &Value, value: &Value, document: &Value, at: &str) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document.pointer(reference.trim_start_matches('#')).ok_or(format!("{at}: no {reference}"))?;
        return validate(target, value, document, at);
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let fits = |name: &Value| name == kind || (name == "number" && kind == "integer");
    let fine = match &schema["type"] {
        Value::Null => true,
        Value::Array(kinds) => kinds.iter().any(fits),
        one => fits(one),
    };
    if !fine {
        return Err(format!("{at}: {kind} instead of {}", schema["type"]));
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        let name = name.as_str().unwrap();
        if value.get(name).is_none() {
            return Err(format!("{at}: {name} is missing"));
        }
    }
    for (name, below) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(value) = value.get(name) {
            validate(below, value, document, &format!("{at}.{name}"))?;
        }
    }
    if schema.get("items").is_some() {
        for (index, item) in value.as_array().into_iter().flatten().enumerate() {
            validate(&schema["items"], item, document, &format!("{at}[{index}]"))?;
        }
    }
    Ok(())
}

/// A body that the endpoint understands.
fn sample(path: &str) -> Option<Value> {
    Some(match path {
        "/switchover" => json!({"leader": "n1", "candidate": "n2"}),
        "/failover" => json!({"candidate": "n2"}),
        "/config" => json!({"ttl": 6}),
        "/raft/members" => json!({"name": "n4", "addr": "10.0.0.4:8008"}),
        _ => return None,
    })
}

#[tokio::test]
async fn everything_that_is_described_answers_as_described() {
    let node = FakeNode::start(|_| {}).await;
    let (status, served) = ask(node.port, "GET", "/openapi.json", None).await;
    assert_eq!((status, serde_json::from_str::<Value>(&served).unwrap()), (200, document()));
    let document = document();
    for endpoint in ENDPOINTS {
        let (method, path) = (endpoint.method, endpoint.path.replace("{name}", "n3"));
        let body = sample(endpoint.path).filter(|_| endpoint.body.is_some());
        if let (Some(body), Some(schema)) = (&body, endpoint.body) {
            let schema = &document["components"]["schemas"][schema];
            assert_eq!(validate(schema, body, &document, &path), Ok(()), "the body that the test sends");
        }
        let (status, text) = ask(node.port, method, &path, body).await;
        assert!(endpoint.statuses.contains(&status), "{method} {path} answers {status}: {text}");
        let schema = endpoint.answer.map(|name| &document["components"]["schemas"][name]);
        let has_body = status < 300 || endpoint.answer == Some("Patroni");
        if let Some(schema) = schema.filter(|_| has_body) {
            assert!(schema.is_object(), "{path}: its schema is not there");
            let value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{method} {path}: no JSON: {text}"));
            assert_eq!(validate(schema, &value, &document, &path), Ok(()));
        }
    }
}

/// The arms of the two places that tell requests apart, from their source.
fn arms() -> Vec<(String, String)> {
    let quoted = |text: &str| -> Vec<String> { text.split('"').skip(1).step_by(2).map(str::to_owned).collect() };
    let changes = include_str!("../../src/api/changes.rs").lines().filter_map(|line| {
        let arm = line.trim().strip_prefix("(\"")?;
        let (pattern, _) = arm.split_once("]) =>")?;
        let words = quoted(&format!("\"{pattern}"));
        let (method, segments) = words.split_first()?;
        let name = if pattern.contains(", name") { "/{name}" } else { "" };
        Some((method.clone(), format!("/{}{name}", segments.join("/"))))
    });
    let reads = include_str!("../../src/api/mod.rs").lines().filter_map(|line| {
        let (pattern, _) = line.trim().strip_prefix("[\"")?.split_once("] =>")?;
        Some(("GET".to_owned(), format!("/{}", quoted(&format!("\"{pattern}")).join("/"))))
    });
    changes.chain(reads).collect()
}

#[test]
fn everything_that_is_served_is_described() {
    let arms = arms();
    assert!(arms.len() > 20, "the arms were not found: {arms:?}");
    for (method, path) in &arms {
        let described = ENDPOINTS.iter().any(|endpoint| endpoint.method == method && endpoint.path == path);
        assert!(described, "{method} {path} is not in src/api/openapi.rs");
    }
    for endpoint in ENDPOINTS.iter().filter(|endpoint| endpoint.changes) {
        let served = arms.iter().any(|(method, path)| endpoint.method == method && endpoint.path == path);
        assert!(served, "{} {} is described and not served", endpoint.method, endpoint.path);
    }
}

#[test]
fn the_validator_finds_what_is_wrong() {
    let document = document();
    let schema = &document["components"]["schemas"]["Cluster"];
    let wrong = |value: Value| validate(schema, &value, &document, "x").unwrap_err();
    assert_eq!(wrong(json!({"members": []})), "x: scope is missing");
    assert_eq!(wrong(json!({"members": {}, "scope": "s"})), "x.members: object instead of \"array\"");
    let member = json!({"name": "n", "role": "r", "state": "s", "api_url": 1});
    assert_eq!(
        wrong(json!({"members": [member], "scope": "s"})),
        "x.members[0].api_url: integer instead of \"string\""
    );
}
