//! `/openapi.json`: what can be asked of the main port, for generators of clients and for people.
//!
//! ```text
//! ENDPOINTS (this table) -> document() -> GET /openapi.json      tests/surface/openapi.rs asks for every line of it
//! ```
//! Deliberately absent: etcd's API, which has its own description, and the members' own protocol.

use serde_json::{Map, Value, json};

/// One method of one path.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    /// In capitals.
    pub method: &'static str,
    /// With names in braces.
    pub path: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// Every status that its own rules give; 401 and 403 come on top where `changes` is set.
    pub statuses: &'static [u16],
    /// The schema of the body that is sent.
    pub body: Option<&'static str>,
    /// The schema of the answer to a success; none = text, or nothing.
    pub answer: Option<&'static str>,
    /// Whether a password or an address may be asked for.
    pub changes: bool,
}

const fn read(
    path: &'static str,
    summary: &'static str,
    statuses: &'static [u16],
    answer: Option<&'static str>,
) -> Endpoint {
    Endpoint { method: "GET", path, summary, statuses, body: None, answer, changes: false }
}

const fn change(
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    statuses: &'static [u16],
    body: Option<&'static str>,
) -> Endpoint {
    Endpoint { method, path, summary, statuses, body, answer: None, changes: true }
}

const fn gives(endpoint: Endpoint, answer: &'static str) -> Endpoint {
    Endpoint { answer: Some(answer), ..endpoint }
}

const UP: &[u16] = &[200, 503];

/// All of them. Any other `GET` is answered as `/`, as Patroni does.
pub const ENDPOINTS: &[Endpoint] = &[
    read("/", "Whether this node is the primary; the check of HAProxy's plain httpchk.", UP, Some("Patroni")),
    read("/primary", "Whether this node holds the leader key.", UP, Some("Patroni")),
    read("/read-write", "The same.", UP, Some("Patroni")),
    read("/leader", "Whether this node leads, in a standby cluster too.", UP, Some("Patroni")),
    read("/standby-leader", "Whether this node leads a standby cluster.", UP, Some("Patroni")),
    read(
        "/replica",
        "Whether this node is a running replica; lag=16MB and tag_NAME=VALUE narrow it.",
        UP,
        Some("Patroni"),
    ),
    read("/read-only", "Whether reads may go here: a primary or a replica.", UP, Some("Patroni")),
    read("/sync", "Whether this node is a synchronous standby.", UP, Some("Patroni")),
    read("/quorum", "Whether this node is a quorum standby.", UP, Some("Patroni")),
    read("/async", "Whether this node is a replica that confirms no commits.", UP, Some("Patroni")),
    read("/read-only-sync", "A primary or a synchronous standby.", UP, Some("Patroni")),
    read("/read-only-quorum", "A primary or a quorum standby.", UP, Some("Patroni")),
    read("/health", "Whether PostgreSQL runs.", UP, Some("Patroni")),
    read("/liveness", "Whether howdah itself works.", UP, None),
    read("/readiness", "Whether PostgreSQL can be used: it leads, or replicates with little lag.", UP, None),
    read("/patroni", "This node.", &[200], Some("Patroni")),
    read("/cluster", "All members.", UP, Some("Cluster")),
    read("/history", "The changes of the timeline.", UP, Some("History")),
    read("/config", "The settings that all members share.", &[200, 502], Some("Settings")),
    read("/failsafe", "The members that vouch for a primary without a majority.", &[200, 502], Some("Failsafe")),
    read("/metrics", "For Prometheus.", &[200], None),
    read("/howdah", "Everything that this node knows, its decisions with their reasons.", &[200], Some("Howdah")),
    read(
        "/howdah/journal",
        "The last decisions with all that they were made on, one JSON object a line.",
        &[200],
        None,
    ),
    read(
        "/timeline",
        "What has happened to the leadership: who, why, how long each part took.",
        &[200],
        Some("Timeline"),
    ),
    read(
        "/why",
        "Why who leads; not=NAME: what keeps a member from it; kill=NAME: what would happen; about=restart-pending.",
        &[200, 400, 404, 503],
        Some("Why"),
    ),
    read("/howdah/position", "Where PostgreSQL is at this moment.", &[200, 502], Some("Position")),
    read("/raft/members", "The members of the store.", &[200], Some("StoreMembers")),
    read("/openapi.json", "This description.", &[200], Some("Document")),
    change(
        "POST",
        "/switchover",
        "Moves the primary in good order, now or at a time.",
        &[200, 202, 400, 409, 412, 422, 503],
        Some("RoleChange"),
    ),
    change("DELETE", "/switchover", "Drops the scheduled switchover.", &[200, 404, 409, 503], None),
    change(
        "POST",
        "/failover",
        "Makes a member the primary although the old one may be gone.",
        &[200, 400, 409, 412, 422, 503],
        Some("RoleChange"),
    ),
    gives(
        change(
            "PATCH",
            "/config",
            "Merges into the shared settings; null removes.",
            &[200, 400, 409, 503],
            Some("Settings"),
        ),
        "Settings",
    ),
    gives(
        change("PUT", "/config", "Replaces the shared settings.", &[200, 400, 409, 503], Some("Settings")),
        "Settings",
    ),
    change("POST", "/reload", "Reads the node's file again.", &[202, 400], None),
    change(
        "POST",
        "/restart",
        "Restarts PostgreSQL, now or at a time, if it is as described.",
        &[200, 202, 400, 409, 422, 500, 503],
        Some("Restart"),
    ),
    change("DELETE", "/restart", "Drops the scheduled restart.", &[200, 404], None),
    change(
        "POST",
        "/reinitialize",
        "Replaces the data directory by a new copy; the old one is moved aside.",
        &[200, 400, 503],
        Some("Reinitialize"),
    ),
    change(
        "POST",
        "/adopt",
        "Takes over the PostgreSQL that somebody else runs here, as it runs; dry_run only looks at it.",
        &[200, 400, 412, 503],
        Some("Adoption"),
    ),
    change(
        "POST",
        "/release",
        "Lets PostgreSQL go on without howdah, and ends the node; paused clusters only.",
        &[200, 412, 503],
        None,
    ),
    change("POST", "/failsafe", "Patroni's members vouch for each other; here the store does.", &[502], None),
    gives(
        change("POST", "/raft/members", "Lets a node join the store.", &[200, 400, 412, 503], Some("NewMember")),
        "StoreMembers",
    ),
    gives(
        change("DELETE", "/raft/members/{name}", "Takes a node out of the store.", &[200, 400, 412, 503], None),
        "StoreMembers",
    ),
    change("POST", "/raft/transfer", "Moves the store's own leadership.", &[200, 400, 412, 503], Some("Transfer")),
];

/// The whole description.
pub fn document() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for endpoint in ENDPOINTS {
        let path = paths.entry(endpoint.path.to_owned()).or_insert_with(|| json!({}));
        path[endpoint.method.to_lowercase()] = operation(endpoint);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "howdah",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The REST interface of Patroni, and a little more. HEAD and OPTIONS of any path are health checks without a body.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {"password": {"type": "http", "scheme": "basic"}},
        },
    })
}

fn operation(endpoint: &Endpoint) -> Value {
    let denied: &[u16] = if endpoint.changes { &[401, 403] } else { &[] };
    let mut responses = Map::new();
    for status in endpoint.statuses.iter().chain(denied) {
        let mut response = json!({"description": meaning(*status)});
        // A health check has its body also when it says no.
        let has_body = *status < 300 || endpoint.answer == Some("Patroni");
        if let Some(schema) = endpoint.answer.filter(|_| has_body) {
            response["content"] = content(schema);
        }
        responses.insert(status.to_string(), response);
    }
    let mut operation = json!({"summary": endpoint.summary, "responses": responses});
    if let Some(schema) = endpoint.body {
        operation["requestBody"] = json!({"content": content(schema)});
    }
    if endpoint.changes {
        operation["security"] = json!([{"password": []}, {}]);
    }
    if endpoint.path.contains("{name}") {
        operation["parameters"] =
            json!([{"name": "name", "in": "path", "required": true, "schema": {"type": "string"}}]);
    }
    operation
}

fn content(schema: &str) -> Value {
    json!({"application/json": {"schema": {"$ref": format!("#/components/schemas/{schema}")}}})
}

fn meaning(status: u16) -> &'static str {
    match status {
        200 => "yes, or done",
        202 => "it will be done",
        400 => "the request makes no sense; the text says why",
        401 => "a password is asked for",
        403 => "not from this address",
        404 => "there is nothing to act on",
        409 => "somebody else changed the same thing first",
        412 => "a rule says no; the text says which",
        422 => "a time that is past or unreadable",
        500 => "nothing is scheduled in a pause",
        502 => "it does not exist yet",
        _ => "no, not possible now, or no majority; the text says which",
    }
}

fn object(required: &[&str], properties: Value) -> Value {
    json!({"type": "object", "required": required, "properties": properties})
}

fn schemas() -> Value {
    let (text, number, flag, any) =
        (json!({"type": "string"}), json!({"type": "integer"}), json!({"type": "boolean"}), json!({"type": "object"}));
    let member = object(
        &["name", "role", "state", "api_url"],
        json!({
            "name": text, "role": text, "state": text, "api_url": text, "host": text, "port": number,
            "timeline": number, "pending_restart": flag, "pending_restart_reason": any, "scheduled_restart": any,
            "tags": any, "lag": {"type": ["integer", "string"]}, "lsn": text, "replay_paused": flag,
            "receive_lag": {"type": ["integer", "string"]}, "receive_lsn": text,
            "replay_lag": {"type": ["integer", "string"]}, "replay_lsn": text,
        }),
    );
    let store_member = object(&["id", "name", "addr", "voter"], json!({"name": text, "addr": text, "voter": flag}));
    let reason = object(&["code", "sentence"], json!({"code": text, "sentence": text}));
    let change_entry = object(
        &["at", "kind", "node", "cause", "phases", "total_ms", "loss"],
        json!({
            "at": number, "kind": text, "node": text, "other": text, "term": number, "timeline": number,
            "cause": reason, "choice": reason, "phases": any, "total_ms": number, "position": number,
            "reference": number, "loss": {"type": ["string", "object"]},
        }),
    );
    json!({
        "Patroni": object(
            &["state", "role", "patroni", "dcs_last_seen"],
            json!({
                "state": text, "role": text, "postmaster_start_time": text, "server_version": number,
                "timeline": number, "replication_state": text, "xlog": any, "replication": {"type": "array"},
                "pause": flag, "cluster_unlocked": flag, "pending_restart": flag, "pending_restart_reason": any,
                "scheduled_restart": any, "tags": any, "database_system_identifier": text, "dcs_last_seen": number,
                "patroni": object(&["version", "scope", "name"], json!({"version": text, "scope": text, "name": text})),
            }),
        ),
        "Cluster": object(
            &["members", "scope"],
            json!({
                "members": {"type": "array", "items": member}, "scope": text, "pause": flag,
                "scheduled_switchover": object(&["at"], json!({"at": text, "from": text, "to": text})),
                "unconfirmed": object(
                    &["since", "hint"],
                    json!({"since": text, "last_leader": {"type": ["string", "null"]}, "hint": text}),
                ),
            }),
        ),
        "History": {"type": "array", "items": {"type": "array"}},
        "Timeline": {"type": "array", "items": change_entry},
        "Why": object(&["sentence"], json!({"sentence": text, "node": text, "obstacles": {"type": "array"}})),
        "Settings": any,
        "Failsafe": any,
        "Howdah": object(
            &["is_leader", "snapshot", "last_tick_age_seconds"],
            json!({"is_leader": flag, "snapshot": any, "last_tick_age_seconds": {"type": "number"}}),
        ),
        "Position": object(
            &["name", "writable", "promotable"],
            json!({"name": text, "writable": flag, "promotable": flag, "pending": flag}),
        ),
        "StoreMembers": {"type": "array", "items": store_member},
        "Document": object(&["openapi", "info", "paths"], json!({"openapi": text, "info": any, "paths": any})),
        "RoleChange": object(&[], json!({"leader": text, "candidate": text, "member": text, "scheduled_at": text})),
        "Restart": object(
            &[],
            json!({
                "schedule": text, "role": text, "postgres_version": text, "restart_pending": flag,
                "timeout": {"type": ["integer", "string"]},
            }),
        ),
        "Reinitialize": object(&[], json!({"force": flag, "from_leader": flag})),
        "Adoption": object(&[], json!({"dry_run": flag})),
        "NewMember": object(&["name", "addr"], json!({"name": text, "addr": text})),
        "Transfer": object(&[], json!({"to": text})),
    })
}
