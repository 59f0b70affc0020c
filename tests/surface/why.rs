//! `why`, `what-if`, `explain`, and the timeline of changes: the binary and REST over a node that knows one view.

use std::collections::BTreeMap;
use std::time::Duration;

use howdah::agent::local::Place;
use howdah::agent::observe::rules;
use howdah::agent::recorder::Recorder;
use howdah::agent::snapshot::HeldBack;
use howdah::cluster::ClusterRecord;
use howdah::cluster::record::Versioned;
use howdah::cluster::records::{HistoryLine, Initialize, MemberRecord, StatusRecord, SyncRecord};
use howdah::config::ClusterSettings;
use howdah::ha::decide;
use howdah::ha::view::{
    ClusterView, ControlState, ControlView, DataDirView, Memory, ProcessView, ServerView, StandbyView,
};
use howdah::types::{Fact, LeaderPermit, LeaseId, Lsn, Mono, NodeName, SystemId, Term, TimelineId, WallTime};
use serde_json::{Value, json};

use crate::fake_node::{FakeNode, ask, howdah};

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn at<T>(revision: i64, value: T) -> Versioned<T> {
    Versioned { value, create_revision: revision, mod_revision: revision, lease: LeaseId(1) }
}

fn member(role: &str, position: u64) -> MemberRecord {
    MemberRecord {
        state: "running".to_owned(),
        role: role.to_owned(),
        timeline: Some(TimelineId(3)),
        xlog_location: Some(Lsn(position)),
        replication_state: (role == "replica").then(|| "streaming".to_owned()),
        ..MemberRecord::default()
    }
}

/// n1 leads with n2 in its synchronous set; n3 is behind, and must not lead.
pub(crate) fn leading() -> ClusterView {
    let second = Duration::from_secs(1);
    let now = Mono(1_000_000_000_000);
    let mut record = ClusterRecord { revision: 4711, ..ClusterRecord::default() };
    record.initialize = Some(at(2, Initialize::Done(SystemId(7))));
    record.leader = Some(at(4200, name("n1")));
    record.status = Some(at(4700, StatusRecord { optime: Lsn(0x500_0180), ..StatusRecord::default() }));
    let line = |timeline, lsn| HistoryLine(timeline, Lsn(lsn), String::new(), String::new(), String::new());
    record.history = vec![line(1, 0x180_0000), line(2, 0x280_0000)];
    let mut behind = member("replica", 0x320_0000);
    behind.tags.insert("nofailover".to_owned(), json!(true));
    let members = [("n1", member("primary", 0x500_0180)), ("n2", member("replica", 0x500_0180)), ("n3", behind)];
    record.members = members.into_iter().map(|(who, member)| (name(who), at(4600, member))).collect();
    record.sync = Some(SyncRecord {
        leader: Some(name("n1")),
        quorum: Some(0),
        sync_standby: [name("n2")].into(),
        degraded: None,
    });
    record.sync_revision = 4650;
    let (settings, _) = ClusterSettings::parse(&json!({"synchronous_mode": "on"})).expect("valid");
    let standby = |flushed| StandbyView { streaming: true, flushed: Lsn(flushed), counted: true };
    ClusterView {
        now,
        me: name("n1"),
        settings: rules(&settings, &Place::default()),
        record: Fact::Fresh(record),
        request_due: true,
        data_dir: DataDirView::Present(ControlView {
            system_id: SystemId(7),
            state: ControlState::InProduction,
            timeline: TimelineId(3),
            checkpoint: Lsn(0x400_0000),
            min_recovery_end: Lsn(0),
            standby_signal: false,
        }),
        process: ProcessView::Running { writable: true },
        server: Fact::Fresh(ServerView {
            in_recovery: false,
            timeline: TimelineId(3),
            position: Lsn(0x500_0180),
            replaying: false,
            streaming: false,
            receiving: false,
            follows: None,
            follows_outside: false,
            standbys: [(name("n2"), standby(0x500_0180)), (name("n3"), standby(0x320_0000))].into(),
            synchronous_standby_names: "ANY 1 (\"n2\")".to_owned(),
            checkpoint_redo: Lsn(0x400_0000),
        }),
        permit: Some(LeaderPermit { term: Term(4200), valid_until: now + 3 * second }),
        guardian_permit: None,
        peers: BTreeMap::new(),
        task: None,
        shutting_down: false,
        memory: Memory::default(),
    }
}

pub(crate) fn keep(recorder: &Recorder, view: &ClusterView) {
    recorder.keep(view, &decide(view), WallTime(1_795_377_600_000), true);
}

#[tokio::test]
async fn why_says_who_leads_and_what_its_death_would_mean() {
    let node = FakeNode::start(|_| {}).await;
    let out = node.howdah(&["why"]).await.out;
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "n1 leads in term 4200. Since 2026-11-22T19:50:00.000+00:00, by a failover.");
    assert_eq!(lines[1], "  the former leadership ended: n3 fell silent, and its lease ran out (leader_silent)");
    assert!(lines[2].ends_with("(proven_candidate)"), "{out}");
    assert!(lines[3].starts_with("Now n1 decides "), "{out}");
    assert_eq!(
        lines[4],
        "If n1 died now, n2 would take over within 5.0 s. It is proven to have every acknowledged commit: nothing would be lost."
    );
    assert!(lines.iter().any(|line| line.starts_with("  n2 would take leader: ")), "{out}");
    let rows = node.howdah(&["why", "-f", "tsv"]).await.out;
    assert!(rows.contains("would decide\tn2\tproven_candidate\t"), "{rows}");
    let (status, text) = ask(node.port, "GET", "/why", None).await;
    let body: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &body["if_it_died"]["outcome"]["taken_over"]["by"]), (200, &json!("n2")));
}

#[tokio::test]
async fn why_names_slots_that_fill_the_disk() {
    let node = FakeNode::start(|snapshot| {
        let postgres = snapshot.postgres.as_mut().unwrap();
        postgres.held_back = [
            ("cdc".to_owned(), HeldBack { bytes: 12 << 30, active: false }),
            ("n2".to_owned(), HeldBack { bytes: 3 << 29, active: true }),
        ]
        .into();
    })
    .await;
    let out = node.howdah(&["why"]).await.out;
    assert!(
        out.contains(
            "  but WAL piles up: slot cdc keeps 12.0 GB of WAL on n1, and nobody reads it: start its reader, or drop it \
             there with SELECT pg_drop_replication_slot('cdc') (slot_keeps_wal)\n"
        ) && out.contains(": slot n2 keeps 1.5 GB of WAL on n1, and its reader is behind (slot_keeps_wal)\n"),
        "{out}"
    );
}

#[tokio::test]
async fn why_not_lists_each_rule() {
    let node = FakeNode::start(|_| {}).await;
    let out = node.howdah(&["why", "not", "n3"]).await.out;
    let wanted = "\
n3 would not lead if n1 died now, for 3 reasons.
  the tag nofailover forbids this node to lead (no_failover_tag)
  this node may lack acknowledged commits; only these are proven to have them: n1, n2 (not_synchronous)
  n2 has 31457664 more bytes of WAL (peer_ahead)
  As seen by n1; n3 itself does not answer.
";
    assert_eq!(out, wanted);
    let out = node.howdah(&["why", "not", "n2"]).await.out;
    assert!(out.starts_with("n2 could lead. It does not because n1 leads"), "{out}");
    let ran = node.howdah(&["why", "not", "n9"]).await;
    assert!(ran.code == 1 && ran.err.contains("n9 is no member"), "{ran:?}");
    let ran = node.howdah(&["why", "me"]).await;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert_eq!(ask(node.port, "GET", "/why?about=weather", None).await.0, 400);
}

#[tokio::test]
async fn what_if_runs_the_core_on_a_copy() {
    let node = FakeNode::start(|_| {}).await;
    let out = node.howdah(&["what-if", "kill", "n2"]).await.out;
    assert_eq!(
        out,
        "If n2 died now, n1 would go on leading, but commits would wait: 0 of 1 standbys that must confirm them would be there. After one ttl they go on with fewer copies, which is recorded first.\n"
    );
    let ran = node.howdah(&["what-if", "kill", "n9"]).await;
    assert!(ran.code == 1 && ran.err.contains("there is no node n9"), "{ran:?}");
}

#[tokio::test]
async fn what_waits_for_a_restart_and_why() {
    let node = FakeNode::start(|_| {}).await;
    let wanted = "\
One member waits for a restart; `howdah restart main --pending` brings it.
  n2: max_connections is 100 and becomes 200: PostgreSQL reads it when it starts, and not before
";
    assert_eq!(node.howdah(&["why", "restart-pending"]).await.out, wanted);
}

#[tokio::test]
async fn a_journal_is_decided_once_more() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("decisions.jsonl");
    let recorder = Recorder::with_file(dir.path());
    keep(&recorder, &leading());
    let deadline = howdah::telemetry::clock::now() + Duration::from_secs(20);
    while std::fs::read_to_string(&file).map_or(true, |text| !text.ends_with('\n')) {
        assert!(howdah::telemetry::clock::now() < deadline, "the line is not written");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let path = file.to_str().unwrap();
    let ran = howdah(&["explain", "--journal", path, "-f", "json"], "").await;
    let rows: Value = serde_json::from_str(&ran.out).unwrap();
    let reason = decide(&leading()).reason;
    assert_eq!((ran.code, &rows[0]["Reason"], &rows[0]["As recorded"]), (0, &json!(reason.code()), &json!(true)));
    // Other facts than those it was decided on: the decision differs, and that is said.
    let text = std::fs::read_to_string(&file).unwrap();
    let other = text.replace("\"pause\":false,\"use_pg_rewind\"", "\"pause\":true,\"use_pg_rewind\"");
    assert_ne!(text, other);
    std::fs::write(&file, other).unwrap();
    let ran = howdah(&["explain", "--journal", path, "--facts"], "").await;
    assert!(ran.code == 1 && ran.out.contains("(paused)\n    DIFFERENT: "), "{ran:?}");
    assert!(ran.out.contains("    | me: n1\n") && ran.err.contains("1 of 1 decisions differ"), "{ran:?}");
    std::fs::write(&file, "{}\n").unwrap();
    let ran = howdah(&["explain", "--journal", path], "").await;
    assert!(ran.code == 1 && ran.err.contains("line 1 is no decision"), "{ran:?}");
    // What a node has in memory.
    let node = FakeNode::start(|_| {}).await;
    let ran = node.howdah(&["explain", "--member", "n1"]).await;
    assert!(ran.code == 0 && ran.out.contains(&format!("({})", reason.code())), "{ran:?}");
    assert_eq!(node.recorder.left_out(), 0);
}

#[tokio::test]
async fn the_timeline_says_what_happened_and_why() {
    let node = FakeNode::start(|_| {}).await;
    let out = node.howdah(&["history", "--verbose"]).await.out;
    for said in
        ["| failover | n1   | n3   |  3 | 4782 | detect 4700 ", "| promote 35 ", "| nothing ", "| 256 bytes given up |"]
    {
        assert!(out.contains(said), "{said}\n{out}");
    }
    let rows: Value = serde_json::from_str(&node.howdah(&["history", "-v", "-f", "json"]).await.out).unwrap();
    assert_eq!(rows[0]["Parts"]["detect"], json!(4700));
    assert_eq!(rows[1]["Why"]["cause"]["code"], json!("rewind_from"));
    let empty = FakeNode::start(|snapshot| snapshot.timeline = Default::default()).await;
    assert_eq!(empty.howdah(&["history", "-v"]).await.out, "Nothing has happened to the leadership yet.\n");
}
