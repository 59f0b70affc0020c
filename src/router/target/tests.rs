//! Records, and where they send a client.

use serde_json::json;

use super::*;
use crate::cluster::Versioned;
use crate::cluster::records::StatusRecord;
use crate::types::{LeaseId, Lsn};

fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}

fn at<T>(create_revision: i64, mod_revision: i64, value: T) -> Versioned<T> {
    Versioned { value, create_revision, mod_revision, lease: LeaseId(1) }
}

fn member(name: &str, role: &str, state: &str) -> MemberRecord {
    MemberRecord {
        conn_url: format!("postgres://{name}.example:5432/postgres"),
        role: role.to_owned(),
        state: state.to_owned(),
        replication_state: (role == "replica").then(|| "streaming".to_owned()),
        ..MemberRecord::default()
    }
}

/// n1 leads since revision 10 and has said so at 12; n2 and n3 stream from it.
fn healthy() -> ClusterRecord {
    let mut record = ClusterRecord { revision: 20, leader: Some(at(10, 10, name("n1"))), ..ClusterRecord::default() };
    record.members.insert(name("n1"), at(2, 12, member("n1", "primary", "running")));
    record.members.insert(name("n2"), at(3, 13, member("n2", "replica", "running")));
    record.members.insert(name("n3"), at(4, 14, member("n3", "replica", "running")));
    record
}

fn change(record: &mut ClusterRecord, node: &str, change: impl FnOnce(&mut MemberRecord)) {
    let member = record.members.get_mut(&name(node)).expect("a member");
    change(&mut member.value);
    member.mod_revision = 20;
}

fn names(targets: &[Target]) -> Vec<&str> {
    targets.iter().map(|target| target.name.as_str()).collect()
}

#[test]
fn writes_go_to_the_leader() {
    let target = write_target(&healthy(), None).expect("a target");
    assert_eq!(target, Target { name: name("n1"), host: "n1.example".to_owned(), port: 5432 });
}

#[test]
fn a_leader_that_has_not_spoken_since_it_got_the_key_is_no_target() {
    let mut record = healthy();
    record.leader = Some(at(15, 15, name("n1")));
    assert_eq!(write_target(&record, Some(Term(10))), Err(Cause::TakingOver { leader: name("n1") }));
    record.leader = Some(at(15, 15, name("n2")));
    assert_eq!(write_target(&record, Some(Term(10))), Err(Cause::TakingOver { leader: name("n2") }));
    change(&mut record, "n2", |n2| n2.role = "primary".to_owned());
    assert_eq!(write_target(&record, None).map(|target| target.name), Ok(name("n2")));
}

#[test]
fn a_primary_without_the_key_is_no_target() {
    let mut record = healthy();
    record.leader = None;
    assert_eq!(write_target(&record, Some(Term(10))), Err(Cause::NoLeader));
}

#[test]
fn a_slow_monitor_turns_nobody_away_but_only_after_the_promotion() {
    let mut record = healthy();
    change(&mut record, "n1", |n1| n1.state = "starting".to_owned());
    assert!(write_target(&record, Some(Term(10))).is_ok());
    assert_eq!(write_target(&record, Some(Term(9))), Err(Cause::TakingOver { leader: name("n1") }));
    change(&mut record, "n1", |n1| n1.state = "crashed".to_owned());
    let down = Cause::NotRunning { leader: name("n1"), state: "crashed".to_owned() };
    assert_eq!(write_target(&record, Some(Term(10))), Err(down));
}

#[test]
fn a_leader_that_hands_over_takes_nobody_new() {
    let mut record = healthy();
    change(&mut record, "n1", |n1| n1.state = "stopping".to_owned());
    assert!(is_handing_over(&record));
    assert_eq!(write_target(&record, Some(Term(10))), Err(Cause::HandingOver { leader: name("n1") }));
}

#[test]
fn reads_go_to_replicas_that_stream() {
    let mut record = healthy();
    assert_eq!(names(&replica_targets(&record, None)), ["n2", "n3"]);
    change(&mut record, "n2", |n2| n2.replication_state = None);
    assert_eq!(names(&replica_targets(&record, None)), ["n3"]);
    change(&mut record, "n3", |n3| n3.state = "starting".to_owned());
    assert_eq!(names(&replica_targets(&record, None)), Vec::<&str>::new());
}

#[test]
fn reads_spare_those_who_asked_for_it_and_those_too_far_behind() {
    let mut record = healthy();
    change(&mut record, "n2", |n2| drop(n2.tags.insert("noloadbalance".to_owned(), json!(true))));
    assert_eq!(names(&replica_targets(&record, None)), ["n3"]);
    record.status = Some(at(5, 15, StatusRecord { optime: Lsn(5_000), ..StatusRecord::default() }));
    change(&mut record, "n3", |n3| n3.replay_lsn = Some(Lsn(3_000)));
    assert_eq!(names(&replica_targets(&record, Some(ByteSize(2_000)))), ["n3"]);
    assert_eq!(names(&replica_targets(&record, Some(ByteSize(1_999)))), Vec::<&str>::new());
    change(&mut record, "n1", |n1| n1.xlog_location = Some(Lsn(9_000)));
    assert_eq!(names(&replica_targets(&record, Some(ByteSize(2_000)))), Vec::<&str>::new());
    change(&mut record, "n3", |n3| n3.replay_lsn = None);
    assert_eq!(names(&replica_targets(&record, Some(ByteSize(0)))), ["n3"], "an unknown lag is no lag");
}

#[test]
fn the_fewest_sessions_win_and_equals_take_turns() {
    assert_eq!(least_connected(&[], 7), None);
    assert_eq!(least_connected(&[3, 1, 2], 7), Some(1));
    let chosen: Vec<_> = (0..4).map(|turn| least_connected(&[2, 5, 2], turn)).collect();
    assert_eq!(chosen, [Some(0), Some(2), Some(0), Some(2)]);
}
