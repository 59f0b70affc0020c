//! What a node that no majority answers any more tells: nobody is named leader, whatever it knew last.

use std::time::Duration;

use howdah::agent::snapshot::Snapshot;
use howdah::ha::view::ProcessView;
use howdah::types::Fact;
use serde_json::{Value, json};

use crate::fake_node::{FakeNode, ask};
use crate::why::{keep, leading};

const DOUBT: &str = "n2 has heard no majority of the store since 2026-11-22T20:00:00.100+00:00, when n1 led: nobody is \
                     known to lead now, and without a majority nobody can take over";

/// The lease in the view has run out since it was confirmed.
fn alone(snapshot: &mut Snapshot) {
    snapshot.store_has_quorum = false;
    snapshot.lock.ttl = Duration::ZERO;
    for member in &mut snapshot.cluster.as_mut().unwrap().members {
        member.tags.clear();
        member.pending_restart.clear();
    }
}

#[tokio::test]
async fn a_view_that_nobody_confirms_names_no_leader() {
    let node = FakeNode::start(alone).await;
    let ran = node.howdah(&["list"]).await;
    let wanted = format!(
        "\
+ Cluster: main (7508153532268044335) ---------+----+-------------+---------+------------+---------+-------------------------------+
| Member | Host     | Role         | State     | TL | Receive LSN |     Lag | Replay LSN |     Lag | Last confirmed                |
+--------+----------+--------------+-----------+----+-------------+---------+------------+---------+-------------------------------+
| n1     | 10.0.0.1 | Replica      | unknown   |  3 |     unknown | unknown |    unknown | unknown | 2026-11-22T20:00:00.100+00:00 |
| n2     | 10.0.0.2 | Sync Standby | streaming |  3 |   0/5000180 |       0 |  0/5000000 |       0 | 2026-11-22T20:00:00.100+00:00 |
| n3     | 10.0.0.3 | Replica      | unknown   |  3 |   0/3200000 |      30 |  0/3000000 |      32 | 2026-11-22T20:00:00.100+00:00 |
+--------+----------+--------------+-----------+----+-------------+---------+------------+---------+-------------------------------+
 {DOUBT}
"
    );
    assert_eq!((ran.code, ran.out), (0, wanted));
    let rows: Value = serde_json::from_str(&node.howdah(&["list", "-f", "json"]).await.out).unwrap();
    assert_eq!(rows[0]["Last confirmed"], json!("2026-11-22T20:00:00.100+00:00"));

    let (status, text) = ask(node.port, "GET", "/cluster", None).await;
    let body: Value = serde_json::from_str(&text).unwrap();
    let hint = json!({"since": "2026-11-22T20:00:00.100+00:00", "last_leader": "n1", "hint": DOUBT});
    assert_eq!((status, &body["unconfirmed"]), (200, &hint));
    let told = |name: &str| {
        let member = body["members"].as_array().unwrap().iter().find(|member| member["name"] == name).unwrap();
        (member["role"].clone(), member["state"].clone())
    };
    assert_eq!(told("n1"), (json!("replica"), json!("unknown")));
    assert_eq!(told("n2"), (json!("sync_standby"), json!("streaming")), "it knows its own state");

    for refused in [&["dsn"][..], &["dsn", "-r", "primary"], &["failover", "--candidate", "n1", "--force"]] {
        let ran = node.howdah(refused).await;
        assert!(ran.code == 4 && ran.err.contains(DOUBT), "{refused:?} {ran:?}");
    }
    assert_eq!(node.howdah(&["dsn", "-m", "n1"]).await.out, "host=10.0.0.1 port=5432\n", "asked for by name");
}

#[tokio::test]
async fn until_the_lease_has_run_out_its_holder_may_lead_still() {
    let node = FakeNode::start(|snapshot| {
        alone(snapshot);
        snapshot.lock.ttl = Duration::from_secs(86_400);
    })
    .await;
    assert_eq!(node.howdah(&["dsn"]).await.out, "host=10.0.0.1 port=5432\n");
    let (_, text) = ask(node.port, "GET", "/cluster", None).await;
    let body: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&body["unconfirmed"], &body["members"][0]["role"]), (&Value::Null, &json!("leader")));
}

#[tokio::test]
async fn why_and_what_if_promise_nothing_without_a_majority() {
    let node = FakeNode::start(alone).await;
    let mut view = leading();
    let Fact::Fresh(record) = view.record else { panic!("it is fresh") };
    view.record = Fact::Stale { value: record, age: Duration::from_secs(51) };
    // Fenced, and started again as a standby of nobody.
    view.permit = None;
    view.process = ProcessView::Running { writable: false };
    let Fact::Fresh(server) = &mut view.server else { panic!("it is fresh") };
    server.in_recovery = true;
    keep(&node.recorder, &view);
    let doubt =
        "n1 has heard no majority of the store for 51 s (then n1 led), and without a majority nobody can take over";
    let said = async |args: &[&str]| node.howdah(args).await.out;
    let out = said(&["why"]).await;
    assert!(out.starts_with(&format!("Nobody is known to lead: {doubt}.\n")), "{out}");
    for name in ["n1", "n2"] {
        let out = said(&["why", "not", name]).await;
        assert!(out.starts_with(&format!("{name} cannot be known to lead: {doubt}.\n")), "{out}");
        assert!(out.contains("no majority of members has answered for 51.0 s (store_stale)"), "{out}");
        let out = said(&["what-if", "kill", name]).await;
        assert_eq!(out, format!("Nobody can say what the death of {name} would change: {doubt}.\n"));
    }
}
