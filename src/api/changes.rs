//! The endpoints that change something: parse, check against the snapshot, hand over to [`Control`](super::Control).
//!
//! ```text
//! access -> body (bounded in size and time) -> request -> checks that need only the snapshot -> Control -> status, text
//! ```
//! Deliberately absent: the change itself.
//!
//! Source: reference section 1.5.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use http_body_util::{BodyExt, Limited};
use serde_json::{Map, Value, json};
use time::format_description::well_known::Iso8601;
use tokio::time::timeout;

use super::auth::Denied;
use super::control::{
    Answer, ControlError, ControlOutcome, NewMember, ReinitializeRequest, RestartRequest, SwitchoverRequest,
};
use super::{ApiState, CODE_HEADER, PLAIN, json_response, text_response};
use crate::agent::snapshot::{PostgresState, Role, Snapshot};
use crate::config::ClusterSettings;
use crate::config::cluster_settings::merge_patch;
use crate::config::reader::parse_duration;
use crate::telemetry::clock;
use crate::types::{NodeName, WallTime};

/// A body may not be larger. The whole cluster's settings fit many times.
const BODY_LIMIT: usize = 1 << 20;
/// Nor take longer to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(10);
/// A change is shown by the node that made it after this time at the latest; some milliseconds, unless it is busy.
const SHOWN: Duration = Duration::from_secs(2);
/// Bounds of last resort: `Control` has deadlines of its own, which come first.
const QUICK: Duration = Duration::from_secs(30);
const SLOW: Duration = Duration::from_secs(120);
const RESTART: Duration = Duration::from_secs(3600);

type Refusable<T> = Result<T, ControlError>;

/// Answers a request whose method is none of GET, HEAD, OPTIONS.
pub async fn handle(state: &ApiState, path: &str, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let snapshot = state.snapshot.borrow().told_at(clock::now());
    if let Err(denied) = state.access.check(&parts, &snapshot).await {
        return denied_response(denied);
    }
    let body = match timeout(BODY_DEADLINE, Limited::new(body, BODY_LIMIT).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return error_response(&bad_request("the body could not be read, or is larger than 1 MB")),
        Err(_) => return error_response(&bad_request("the body did not arrive within 10 s")),
    };
    let segments: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let answer = change(state, &snapshot, &parts.method, &segments, &body).await;
    answer.unwrap_or_else(|error| error_response(&error))
}

async fn change(
    state: &ApiState,
    snapshot: &Snapshot,
    method: &Method,
    segments: &[&str],
    body: &Bytes,
) -> Refusable<Response> {
    let control = &state.control;
    match (method.as_str(), segments) {
        ("POST", ["switchover", ..]) => {
            let request = switchover_request(&required_object(body)?, Kind::Switchover)?;
            check_switchover(snapshot, &request, Kind::Switchover)?;
            outcome(control.switchover(request), SLOW).await
        }
        ("POST", ["failover", ..]) => {
            // With a leader named it is a switchover: that is how the older patronictl asks for one.
            let fields = required_object(body)?;
            let kind = if fields.contains_key("leader") { Kind::Switchover } else { Kind::Failover };
            let request = switchover_request(&fields, kind)?;
            if request.scheduled_at.is_some() {
                return Err(bad_request("a failover cannot be scheduled; use /switchover, or leave scheduled_at out"));
            }
            check_switchover(snapshot, &request, kind)?;
            match kind {
                Kind::Switchover => outcome(control.switchover(request), SLOW).await,
                Kind::Failover => outcome(control.failover(request), SLOW).await,
            }
        }
        ("DELETE", ["switchover", ..]) => outcome(control.cancel_switchover(), QUICK).await,
        ("PATCH", ["config", ..]) => {
            let patch = Value::Object(required_object(body)?);
            let Some(mut merged) = snapshot.cluster.as_ref().and_then(|cluster| cluster.settings_json.clone()) else {
                return Err(ControlError::Failed(
                    "the cluster settings are not known to this node yet; try again later".into(),
                ));
            };
            merge_patch(&mut merged, &patch);
            check_settings(&merged)?;
            let merged = bounded(control.patch_config(patch), QUICK).await?;
            shown(state, &merged).await;
            Ok(json_response(StatusCode::OK, &merged))
        }
        ("PUT", ["config", ..]) => {
            let config = Value::Object(required_object(body)?);
            check_settings(&config)?;
            let stored = bounded(control.put_config(config), QUICK).await?;
            shown(state, &stored).await;
            Ok(json_response(StatusCode::OK, &stored))
        }
        ("POST", ["reload", ..]) => outcome(control.reload(), QUICK).await,
        ("POST", ["restart", ..]) => {
            let request = restart_request(&optional_object(body)?)?;
            check_restart(snapshot, &request)?;
            outcome(control.restart(request), RESTART).await
        }
        ("DELETE", ["restart", ..]) => outcome(control.cancel_restart(), QUICK).await,
        ("POST", ["reinitialize", ..]) => {
            let fields = optional_object(body)?;
            let request = ReinitializeRequest {
                force: is_set(fields.get("force")),
                from_leader: is_set(fields.get("from_leader")) || is_set(fields.get("from-leader")),
            };
            check_reinitialize(snapshot, request)?;
            outcome(control.reinitialize(request), SLOW).await
        }
        ("POST", ["adopt", ..]) => {
            if is_set(optional_object(body)?.get("dry_run")) {
                let report = bounded(control.preflight(), SLOW).await?;
                return Ok(json_response(StatusCode::OK, &report));
            }
            outcome(control.adopt(), SLOW).await
        }
        ("POST", ["release", ..]) => {
            if !snapshot.is_paused() {
                let text = "the cluster is not paused, and another node would take over; pause it first";
                return Err(ControlError::Refused(text.into()));
            }
            outcome(control.release(), SLOW).await
        }
        ("POST", ["raft", "members"]) => {
            let members = bounded(control.add_member(new_member(&required_object(body)?)?), SLOW).await?;
            Ok(json_response(StatusCode::OK, &json!(members)))
        }
        ("DELETE", ["raft", "members", name]) => {
            let members = bounded(control.remove_member(parsed("name", name)?), SLOW).await?;
            Ok(json_response(StatusCode::OK, &json!(members)))
        }
        ("POST", ["raft", "transfer"]) => {
            let to = optional_name(&optional_object(body)?, "to")?;
            outcome(control.transfer(to), QUICK).await
        }
        ("POST", ["failsafe", ..]) => Err(ControlError::Missing(
            "members vouch for each other through the store here; /failsafe takes no pings".into(),
        )),
        (method, segments) => Err(ControlError::Unsupported(format!(
            "there is no {method} /{}; see the list of endpoints",
            segments.join("/")
        ))),
    }
}

/// Waits until this node shows the settings: who reads them after the answer must not find the old ones.
async fn shown(state: &ApiState, settings: &Value) {
    let mut snapshot = state.snapshot.clone();
    let shows = snapshot.wait_for(|snapshot| {
        snapshot.cluster.as_ref().and_then(|cluster| cluster.settings_json.as_ref()) == Some(settings)
    });
    // It is stored whatever happens here; somebody else may have changed it again meanwhile.
    let _ = timeout(SHOWN, shows).await.is_ok();
}

fn bad_request(text: impl Into<String>) -> ControlError {
    ControlError::BadRequest(text.into())
}

async fn bounded<T>(answer: Answer<'_, T>, limit: Duration) -> Refusable<T> {
    let late =
        || ControlError::Failed(format!("no outcome within {} s; look at /cluster for what happened", limit.as_secs()));
    timeout(limit, answer).await.unwrap_or_else(|_| Err(late()))
}

async fn outcome(answer: Answer<'_, ControlOutcome>, limit: Duration) -> Refusable<Response> {
    Ok(match bounded(answer, limit).await? {
        ControlOutcome::Done(text) => text_response(StatusCode::OK, PLAIN, text),
        ControlOutcome::Accepted(text) => text_response(StatusCode::ACCEPTED, PLAIN, text),
    })
}

pub(super) fn error_response(error: &ControlError) -> Response {
    let mut response = text_response(error.status(), PLAIN, error.to_string());
    response.headers_mut().insert(CODE_HEADER, HeaderValue::from_static(error.code()));
    response
}

fn denied_response(denied: Denied) -> Response {
    match denied {
        Denied::Address => {
            text_response(StatusCode::FORBIDDEN, PLAIN, "this address is not in restapi.allowlist".to_owned())
        }
        Denied::Certificate => {
            let text = "a certificate is needed that restapi.cafile is good for; show one".to_owned();
            text_response(StatusCode::FORBIDDEN, PLAIN, text)
        }
        Denied::Password => {
            let text = "user name and password are needed, those of restapi.authentication".to_owned();
            let mut response: Response<Body> = text_response(StatusCode::UNAUTHORIZED, PLAIN, text);
            let realm = HeaderValue::from_static("Basic realm=\"Patroni\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, realm);
            response
        }
    }
}

fn required_object(body: &Bytes) -> Refusable<Map<String, Value>> {
    if body.is_empty() {
        return Err(bad_request("the body is empty; send a JSON object"));
    }
    optional_object(body)
}

fn optional_object(body: &Bytes) -> Refusable<Map<String, Value>> {
    if body.is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(bad_request("the body is JSON, but no object; send {...}")),
        Err(error) => Err(bad_request(format!("the body is not valid JSON: {error}"))),
    }
}

fn text_field<'a>(fields: &'a Map<String, Value>, name: &str) -> Refusable<Option<&'a str>> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(bad_request(format!("{name}: {other} is not a text"))),
    }
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(field: &str, text: &str) -> Refusable<T> {
    text.parse().map_err(|error| bad_request(format!("{field}: {error}")))
}

fn optional_name(fields: &Map<String, Value>, name: &str) -> Refusable<Option<NodeName>> {
    text_field(fields, name)?.map(|text| parsed(name, text)).transpose()
}

/// Patroni's "bool-ish": true, a number other than zero, or a text that means yes.
fn is_set(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Bool(set)) => *set,
        Some(Value::Number(number)) => number.as_i64() != Some(0),
        Some(Value::String(text)) => matches!(text.to_ascii_lowercase().as_str(), "true" | "on" | "yes" | "1"),
        _ => false,
    }
}

fn check_settings(settings: &Value) -> Refusable<()> {
    ClusterSettings::parse(settings).map(drop).map_err(|invalid| bad_request(invalid.to_string()))
}

fn new_member(fields: &Map<String, Value>) -> Refusable<NewMember> {
    let needed = |name: &str| {
        text_field(fields, name)?
            .ok_or_else(|| bad_request(format!("{name} is missing; send {{\"name\": ..., \"addr\": \"HOST:PORT\"}}")))
    };
    Ok(NewMember { name: parsed("name", needed("name")?)?, addr: parsed("addr", needed("addr")?)? })
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Switchover,
    Failover,
}

fn switchover_request(fields: &Map<String, Value>, kind: Kind) -> Refusable<SwitchoverRequest> {
    let candidate = optional_name(fields, "candidate")?;
    let request = SwitchoverRequest {
        leader: optional_name(fields, "leader")?,
        candidate: if candidate.is_some() { candidate } else { optional_name(fields, "member")? },
        scheduled_at: text_field(fields, "scheduled_at")?.map(|text| parse_time(text, clock::wall())).transpose()?,
    };
    match (kind, &request) {
        (Kind::Switchover, SwitchoverRequest { leader: None, .. }) => {
            Err(bad_request("a switchover starts from a named leader; send leader"))
        }
        (Kind::Failover, SwitchoverRequest { candidate: None, .. }) => {
            Err(bad_request("a failover goes to a named candidate; send candidate"))
        }
        (_, SwitchoverRequest { leader: Some(leader), candidate: Some(candidate), .. }) if leader == candidate => {
            Err(bad_request(format!("leader and candidate are both {leader}; name two members")))
        }
        _ => Ok(request),
    }
}

/// Reads a moment: ISO 8601 with a time zone, `T` or a space between date and time.
fn parse_time(text: &str, now: WallTime) -> Refusable<WallTime> {
    let trimmed = text.trim().replacen(' ', "T", 1).replace(' ', "");
    let unreadable =
        || ControlError::Unprocessable(format!("{text:?} is not a time; write it as 2026-11-22T20:00:00+00:00"));
    let at =
        time::OffsetDateTime::parse(&trimmed, &Iso8601::DEFAULT).map_err(|_| {
            match time::PrimitiveDateTime::parse(&trimmed, &Iso8601::DEFAULT) {
                Ok(_) => bad_request(format!("{text:?} has no time zone; add one, for example +00:00")),
                Err(_) => unreadable(),
            }
        })?;
    let at = i64::try_from(at.unix_timestamp_nanos() / 1_000_000).map(WallTime).map_err(|_| unreadable())?;
    if at <= now {
        return Err(ControlError::Unprocessable(format!("{text:?} is in the past; it is {now} now")));
    }
    Ok(at)
}

/// What the snapshot alone can tell about a switchover.
fn check_switchover(snapshot: &Snapshot, request: &SwitchoverRequest, kind: Kind) -> Refusable<()> {
    let Some(cluster) = &snapshot.cluster else {
        return Err(ControlError::NoQuorum(
            "this node has not read the cluster's state yet; ask another one, or try again later".into(),
        ));
    };
    if let Some(doubt) = cluster.doubt(&snapshot.name) {
        return Err(ControlError::NoQuorum(doubt));
    }
    let refuse = |text: String| Err(ControlError::Refused(text));
    if cluster.settings.pause && request.scheduled_at.is_some() {
        return Err(bad_request("the cluster is paused, and nothing scheduled runs in a pause; resume it first"));
    }
    if cluster.settings.pause && request.candidate.is_none() {
        return Err(bad_request("the cluster is paused; name a candidate"));
    }
    let leader = cluster.leader.as_ref().map(|leader| &leader.name);
    if kind == Kind::Switchover && leader != request.leader.as_ref() {
        let wanted = request.leader.as_ref().map_or("", NodeName::as_str);
        return refuse(match leader {
            Some(leader) => format!("the leader is {leader}, not {wanted}; name {leader} as leader"),
            None => "there is no leader to switch over from; use a failover to a named candidate".to_owned(),
        });
    }
    if let Some(candidate) = &request.candidate {
        if leader == Some(candidate) {
            return Err(bad_request(format!("{candidate} is the leader already; name another candidate")));
        }
        let Some(member) = cluster.member(candidate.as_str()) else {
            return refuse(format!("{candidate} is no member of the cluster; see /cluster for those that are"));
        };
        if is_set(member.tags.get("nofailover")) {
            return refuse(format!("{candidate} has the tag nofailover; name another candidate, or remove the tag"));
        }
        let in_set = cluster.sync.standbys.iter().any(|name| name.as_str().eq_ignore_ascii_case(candidate.as_str()));
        let sync_only = !cluster.sync.standbys.is_empty() && cluster.sync.quorum.is_none();
        if kind == Kind::Switchover && sync_only && !in_set {
            return refuse(format!(
                "{candidate} is not a synchronous standby, and commits could be lost; name one that is, or use a failover"
            ));
        }
    }
    let promotable = cluster.members.iter().any(|member| {
        Some(&member.name) != leader
            && member.state == PostgresState::Running
            && !is_set(member.tags.get("nofailover"))
            && request.candidate.as_ref().is_none_or(|candidate| *candidate == member.name)
    });
    if !promotable {
        return refuse("no candidate is running and may be promoted; see /cluster for the members' states".to_owned());
    }
    Ok(())
}

fn restart_request(fields: &Map<String, Value>) -> Refusable<RestartRequest> {
    const KNOWN: [&str; 5] = ["schedule", "role", "postgres_version", "timeout", "restart_pending"];
    if let Some(unknown) = fields.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        return Err(bad_request(format!(
            "Unknown filter for the scheduled restart: {unknown}; known are {}",
            KNOWN.join(", ")
        )));
    }
    let role = match text_field(fields, "role")? {
        None => None,
        Some("primary" | "master") => Some(Role::Primary),
        Some("standby_leader" | "standby-leader") => Some(Role::StandbyLeader),
        Some("replica") => Some(Role::Replica),
        Some(other) => {
            return Err(bad_request(format!(
                "PostgreSQL role should be either primary, standby_leader, or replica, not {other:?}"
            )));
        }
    };
    let timeout = match fields.get("timeout") {
        None | Some(Value::Null) => None,
        Some(value) => {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let span = parse_duration(&text).filter(|span| !span.is_zero());
            Some(span.ok_or_else(|| {
                bad_request(format!("Timeout should be a positive number of seconds, such as 60 or 1min, not {value}"))
            })?)
        }
    };
    Ok(RestartRequest {
        schedule: text_field(fields, "schedule")?.map(|text| parse_time(text, clock::wall())).transpose()?,
        role,
        older_than: text_field(fields, "postgres_version")?.map(version_number).transpose()?,
        timeout,
        // Its presence counts, whatever its value: Patroni's clients rely on it.
        restart_pending: fields.contains_key("restart_pending"),
    })
}

/// `16.4` as `server_version_num`, 160004.
fn version_number(text: &str) -> Refusable<u32> {
    let bad = || bad_request(format!("postgres_version: {text:?} is not a version such as 16.4"));
    let (major, minor) = text.trim().split_once('.').ok_or_else(bad)?;
    let (major, minor): (u32, u32) = (major.parse().map_err(|_| bad())?, minor.parse().map_err(|_| bad())?);
    if !(10..1000).contains(&major) || 9999 < minor {
        return Err(bad());
    }
    Ok(major * 10_000 + minor)
}

fn check_restart(snapshot: &Snapshot, request: &RestartRequest) -> Refusable<()> {
    if snapshot.postgres.is_none() {
        return Err(ControlError::Failed("this node is a witness and has no PostgreSQL to restart".into()));
    }
    if let Some(task) = &snapshot.task {
        return Err(ControlError::Failed(format!("{} already in progress", task.kind)));
    }
    if request.schedule.is_some() && snapshot.is_paused() {
        return Err(ControlError::Paused(
            "Can't schedule restart in the paused state; resume the cluster first".into(),
        ));
    }
    Ok(())
}

fn check_reinitialize(snapshot: &Snapshot, request: ReinitializeRequest) -> Refusable<()> {
    let failed = |text: String| Err(ControlError::Failed(text));
    if snapshot.postgres.is_none() {
        return failed("this node is a witness and has no PostgreSQL to reinitialize".into());
    }
    match snapshot.cluster.as_ref().and_then(|cluster| cluster.leader.as_ref()) {
        None => return failed("Cluster has no leader, can not reinitialize".into()),
        Some(leader) if leader.name == snapshot.name => {
            return failed("I am the leader, can not reinitialize".into());
        }
        Some(_) => {}
    }
    match &snapshot.task {
        // Tools match the end of this text.
        Some(task) if !request.force => failed(format!("{} already in progress", task.kind)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
