//! What is refused before anybody is asked.

use super::*;
use crate::types::ByteSize;

fn snapshot() -> Snapshot {
    serde_json::from_str(include_str!("../../../tests/surface/three_nodes.json")).expect("a snapshot")
}

fn switchover(json: Value, kind: Kind, change: impl FnOnce(&mut Snapshot)) -> (u16, String) {
    let mut snapshot = snapshot();
    change(&mut snapshot);
    let fields = json.as_object().expect("an object");
    match switchover_request(fields, kind).and_then(|request| check_switchover(&snapshot, &request, kind)) {
        Ok(()) => (200, String::new()),
        Err(error) => (error.status().as_u16(), error.to_string()),
    }
}

fn pause(snapshot: &mut Snapshot) {
    if let Some(cluster) = &mut snapshot.cluster {
        cluster.settings.pause = true;
    }
}

#[test]
fn switchovers() {
    use Kind::{Failover, Switchover};
    let as_is = |_: &mut Snapshot| {};
    let code = |json, kind, change: fn(&mut Snapshot)| switchover(json, kind, change).0;
    assert_eq!(code(json!({"leader": "n1"}), Switchover, as_is), 200);
    assert_eq!(code(json!({"leader": "n1", "candidate": "n2"}), Switchover, as_is), 200);
    assert_eq!(code(json!({"leader": "n1", "member": "n2"}), Switchover, as_is), 200);
    assert_eq!(code(json!({"candidate": "n2"}), Switchover, as_is), 400);
    assert_eq!(code(json!({"leader": "n1", "candidate": "n1"}), Switchover, as_is), 400);
    assert_eq!(code(json!({"leader": "n2"}), Switchover, as_is), 412);
    assert_eq!(code(json!({"leader": "n1", "candidate": "n9"}), Switchover, as_is), 412);
    assert_eq!(code(json!({"leader": "n1", "candidate": "n3"}), Switchover, as_is), 412);
    assert_eq!(code(json!({"leader": "n1", "candidate": 7}), Switchover, as_is), 400);
    assert_eq!(code(json!({"leader": "n1", "scheduled_at": "2999-01-01T00:00+00:00"}), Switchover, as_is), 200);
    assert_eq!(code(json!({"leader": "n1", "scheduled_at": "2999-01-01T00:00"}), Switchover, as_is), 400);
    assert_eq!(code(json!({"leader": "n1", "scheduled_at": "2001-01-01T00:00Z"}), Switchover, as_is), 422);
    assert_eq!(code(json!({"leader": "n1", "scheduled_at": "tomorrow"}), Switchover, as_is), 422);
    assert_eq!(code(json!({"leader": "n1"}), Switchover, pause), 400);
    assert_eq!(code(json!({"leader": "n1", "candidate": "n2"}), Switchover, pause), 200);
    assert_eq!(code(json!({"leader": "n1"}), Switchover, |s| s.cluster = None), 503);
    assert_eq!(code(json!({}), Failover, as_is), 400);
    assert_eq!(code(json!({"candidate": "n2"}), Failover, as_is), 200);
    assert_eq!(switchover(json!({"leader": "n2"}), Switchover, as_is).1, "the leader is n1, not n2; name n1 as leader");
}

#[test]
fn a_failover_may_go_to_an_asynchronous_node_and_a_switchover_may_not() {
    let untag = |s: &mut Snapshot| {
        if let Some(cluster) = &mut s.cluster {
            cluster.members[0].tags.clear();
        }
    };
    assert_eq!(switchover(json!({"candidate": "n3"}), Kind::Failover, untag).0, 200);
    let (code, text) = switchover(json!({"leader": "n1", "candidate": "n3"}), Kind::Switchover, untag);
    assert_eq!(code, 412);
    assert!(text.contains("not a synchronous standby"), "{text}");
}

#[test]
fn restarts() {
    let parse = |json: Value| restart_request(json.as_object().expect("an object"));
    assert_eq!(parse(json!({})), Ok(RestartRequest::default()));
    let all =
        parse(json!({"role": "replica", "postgres_version": "16.4", "timeout": "1min", "restart_pending": false}));
    let wanted = RestartRequest {
        schedule: None,
        role: Some(Role::Replica),
        older_than: Some(160_004),
        timeout: Some(Duration::from_secs(60)),
        restart_pending: true,
    };
    assert_eq!(all, Ok(wanted));
    for bad in [json!({"role": "king"}), json!({"timeout": 0}), json!({"postgres_version": "9"}), json!({"odd": 1})] {
        assert!(matches!(parse(bad.clone()), Err(ControlError::BadRequest(_))), "{bad}");
    }
    let mut busy = snapshot();
    busy.task = Some(crate::agent::snapshot::LongTask {
        kind: "reinitialize".into(),
        since: WallTime(0),
        bytes_done: Some(ByteSize::mib(1).0),
        bytes_total: None,
    });
    let refused = check_restart(&busy, &RestartRequest::default()).map_err(|error| error.to_string());
    assert_eq!(refused, Err("reinitialize already in progress".to_owned()));
    assert!(check_reinitialize(&busy, ReinitializeRequest { force: true, from_leader: false }).is_ok());
    assert!(check_reinitialize(&busy, ReinitializeRequest::default()).is_err());
}

#[test]
fn times() {
    let now = WallTime(0);
    let ms = |text: &str| parse_time(text, now).map(|at| at.0);
    assert_eq!(ms("1970-01-01T00:00:01+00:00"), Ok(1000));
    assert_eq!(ms("1970-01-01 01:00:01+01"), Ok(1000));
    assert_eq!(ms("1970-01-01 00:00:01.5 Z"), Ok(1500));
}

#[test]
fn bodies() {
    let read = |text: &'static str| required_object(&Bytes::from_static(text.as_bytes())).map(|fields| fields.len());
    assert_eq!(read("{\"a\": 1}"), Ok(1));
    for bad in ["", "[]", "{", "null", "{\"a\": 1} x"] {
        assert!(matches!(read(bad), Err(ControlError::BadRequest(_))), "{bad:?}");
    }
}
