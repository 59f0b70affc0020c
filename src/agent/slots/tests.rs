//! Plans for a cluster of three, as it changes.

use serde_json::json;

use super::*;
use crate::cluster::record::Versioned;
use crate::types::LeaseId;

pub(super) fn node(name: &str) -> NodeName {
    name.parse().expect("valid")
}

pub(super) fn versioned<T>(value: T) -> Versioned<T> {
    Versioned { value, create_revision: 1, mod_revision: 1, lease: LeaseId(1) }
}

pub(super) fn slot(name: &str, logical: bool, at: u64) -> Slot {
    Slot {
        name: name.to_owned(),
        logical,
        database: logical.then(|| "app".to_owned()),
        plugin: logical.then(|| "pgoutput".to_owned()),
        temporary: false,
        active: false,
        restart_lsn: Some(Lsn(at)),
        confirmed_flush_lsn: logical.then_some(Lsn(at)),
        has_xmin: false,
        has_catalog_xmin: false,
        wal_status: None,
        failover: false,
        synced: false,
        invalidation_reason: None,
    }
}

pub(super) fn cluster(names: &[&str]) -> ClusterRecord {
    let mut record = ClusterRecord { leader: Some(versioned(node("n1"))), ..ClusterRecord::default() };
    for name in names {
        record.members.insert(node(name), versioned(MemberRecord::default()));
    }
    record
}

fn tag(record: &mut ClusterRecord, name: &str, tag: &str, value: serde_json::Value) {
    record.members.get_mut(&node(name)).expect("there").value.tags.insert(tag.to_owned(), value);
}

struct Server {
    me: &'static str,
    part: Part,
    keeper: Keeper,
    slots: Vec<Slot>,
    major: u32,
}

impl Server {
    fn new(me: &'static str, part: Part) -> Self {
        Self { me, part, keeper: Keeper::default(), slots: Vec::new(), major: 15 }
    }

    fn plan(&mut self, record: &ClusterRecord, settings: &ClusterSettings, seconds: u64) -> Plan {
        let me = node(self.me);
        self.keeper.plan(&Known {
            me: &me,
            part: self.part,
            record,
            settings,
            slots: &self.slots,
            major: self.major,
            now: Mono(1_000_000_000) + Duration::from_secs(seconds),
        })
    }
}

pub(super) fn names(set: &BTreeSet<String>) -> Vec<&str> {
    set.iter().map(String::as_str).collect()
}

pub(super) fn settings(json: serde_json::Value) -> ClusterSettings {
    ClusterSettings::parse(&json).expect("valid").0
}

#[test]
fn who_holds_back_much_is_named() {
    let gib = 1 << 30;
    let reading = Slot { active: true, ..slot("read", true, gib) };
    let slots = [slot("fine", false, 4 * gib), slot("left", false, 2 * gib), reading];
    let empty = Slot { restart_lsn: None, ..slot("empty", false, 0) };
    let held = held_back(&[slots.as_slice(), &[empty]].concat(), Lsn(5 * gib));
    let expected = [("left", 3, false), ("read", 4, true)];
    let expected = expected.map(|(name, gibs, active)| (name.to_owned(), HeldBack { bytes: gibs * gib, active }));
    assert_eq!(held, BTreeMap::from(expected), "a gibibyte is what is kept anyway");
    assert!(held_back(&[slot("ahead", false, 9)], Lsn(7)).is_empty());
}

#[test]
fn every_candidate_keeps_a_slot_for_every_other_member() {
    let (record, settings) = (cluster(&["n1", "n2", "n3"]), ClusterSettings::default());
    let mut leader = Server::new("n1", Part::Leader);
    assert_eq!(names(&leader.plan(&record, &settings, 0).physical), ["n2", "n3"]);
    let mut standby = Server::new("n2", Part::Candidate);
    assert_eq!(names(&standby.plan(&record, &settings, 0).physical), ["n1", "n3"]);
    let mut bystander = Server::new("n3", Part::Bystander);
    assert_eq!(names(&bystander.plan(&record, &settings, 0).physical), [""; 0]);
}

#[test]
fn a_silent_member_keeps_its_slot_for_a_while_and_everybody_hears_of_it() {
    let settings = settings(json!({"member_slots_ttl": "60s"}));
    let mut record = cluster(&["n1", "n2", "n3"]);
    let mut leader = Server::new("n1", Part::Leader);
    let mut standby = Server::new("n2", Part::Candidate);
    leader.plan(&record, &settings, 0);
    standby.plan(&record, &settings, 0);
    let plan = leader.plan(&record, &settings, 0);
    leader.slots = vec![slot("n2", false, 80), slot("n3", false, 70)];
    record.status = Some(versioned(published(&plan, &node("n1"), Lsn(100), &leader.slots)));
    record.members.remove(&node("n3"));
    assert_eq!(names(&standby.plan(&record, &settings, 58).physical), ["n1", "n3"], "the leader keeps it, too");
    let plan = leader.plan(&record, &settings, 59);
    assert_eq!((names(&plan.physical), names(&plan.retained)), (vec!["n2", "n3"], vec!["n3"]));
    leader.slots = vec![slot("n2", false, 80), slot("n3", false, 70), slot("foreign", false, 10)];
    record.status = Some(versioned(published(&plan, &node("n1"), Lsn(100), &leader.slots)));
    assert_eq!(
        serde_json::to_value(&record.status.as_ref().expect("there").value).expect("json"),
        json!({"optime": 100, "slots": {"n1": 100, "n2": 80, "n3": 70}, "retain_slots": ["n3"]})
    );
    assert_eq!(names(&standby.plan(&record, &settings, 59).physical), ["n1", "n3"]);
    // What it has published itself does not make it grant the time again; and it goes on until the slot is gone.
    for second in [61, 62] {
        let plan = leader.plan(&record, &settings, second);
        assert_eq!((names(&plan.physical), names(&plan.retired)), (vec!["n2"], vec!["n3"]));
    }
    // Somebody's logical slot of the same name is not the member's.
    assert_eq!(names(&leader.plan(&record, &settings, 62).retired_logical), [""; 0]);
    leader.slots.remove(1);
    let plan = leader.plan(&record, &settings, 63);
    record.status = Some(versioned(published(&plan, &node("n1"), Lsn(100), &leader.slots)));
    assert_eq!(names(&standby.plan(&record, &settings, 61).retired), ["n3"]);
    // A leader that comes to office finds the silent ones in the record.
    record.status = Some(versioned(StatusRecord { retain_slots: ["n3".to_owned()].into(), ..StatusRecord::default() }));
    let mut next = Server::new("n2", Part::Leader);
    record.leader = Some(versioned(node("n2")));
    assert_eq!(names(&next.plan(&record, &settings, 100).retained), [""; 0], "granted the whole time again");
    assert_eq!(names(&next.plan(&record, &settings, 120).physical), ["n1", "n3"]);
}

#[test]
fn without_retention_only_those_who_are_fed_here_have_slots() {
    let settings = settings(json!({"member_slots_ttl": 0}));
    let mut record = cluster(&["n1", "n2", "n3"]);
    tag(&mut record, "n3", "replicatefrom", json!("n2"));
    assert_eq!(names(&Server::new("n1", Part::Leader).plan(&record, &settings, 0).physical), ["n2"]);
    assert_eq!(names(&Server::new("n2", Part::Candidate).plan(&record, &settings, 0).physical), ["n3"]);
}

#[test]
fn a_cascaded_member_has_a_slot_at_its_source_and_one_that_follows_it_at_the_leader() {
    let (mut record, settings) = (cluster(&["n1", "n2", "n3"]), ClusterSettings::default());
    tag(&mut record, "n3", "replicatefrom", json!("n2"));
    record.members.get_mut(&node("n3")).expect("there").value.xlog_location = Some(Lsn(90));
    let mut source = Server::new("n2", Part::Bystander);
    assert_eq!(names(&source.plan(&record, &settings, 0).physical), ["n3"]);
    let mut leader = Server::new("n1", Part::Leader);
    leader.slots = vec![slot("n2", false, 10), slot("n3", false, 20)];
    let plan = leader.plan(&record, &settings, 0);
    assert_eq!(plan.advance, BTreeMap::from([("n3".to_owned(), Lsn(90))]), "n2 streams here by itself");
    tag(&mut record, "n3", "nostream", json!(true));
    assert_eq!(names(&Server::new("n1", Part::Leader).plan(&record, &settings, 0).physical), ["n2"]);
}

#[test]
fn permanent_slots_are_everywhere_and_unused_ones_follow_the_leaders() {
    let mut record = cluster(&["n1", "n2"]);
    let both = settings(json!({
        "slots": {"backup": {"type": "physical"}, "there": {"type": "physical", "cluster_type": "standby"},
                  "cdc": {"type": "logical", "database": "app", "plugin": "pgoutput"}},
        "postgresql": {"parameters": {"wal_level": "logical"}},
    }));
    let mut leader = Server::new("n1", Part::Leader);
    let plan = leader.plan(&record, &both, 0);
    assert_eq!(names(&plan.physical), ["backup", "n2"]);
    assert_eq!(plan.logical["cdc"], ("app".to_owned(), "pgoutput".to_owned()));
    leader.slots = vec![slot("backup", false, 50), slot("cdc", true, 60)];
    record.status = Some(versioned(published(&plan, &node("n1"), Lsn(100), &leader.slots)));
    let mut standby = Server::new("n2", Part::Candidate);
    let plan = standby.plan(&record, &both, 0);
    assert_eq!((names(&plan.physical), names(&plan.copies)), (vec!["backup", "n1"], vec!["cdc"]));
    standby.keeper.copying(plan.copies, Mono(1_000_000_000));
    assert_eq!(names(&standby.plan(&record, &both, 10).copies), [""; 0], "not again so soon");
    standby.slots = vec![slot("backup", false, 40), slot("cdc", true, 55), slot("n1", false, 100)];
    let plan = standby.plan(&record, &both, 20);
    assert_eq!(plan.advance, BTreeMap::from([("backup".to_owned(), Lsn(50)), ("cdc".to_owned(), Lsn(60))]));
    // PostgreSQL 17 does it itself.
    assert_eq!(
        names(&Server { major: 17, ..Server::new("n2", Part::Candidate) }.plan(&record, &both, 0).copies),
        [""; 0]
    );
    // Taken out of the settings they go, unless they are somebody else's business by then.
    let none = settings(json!({"ignore_slots": [{"name": "cdc", "type": "logical"}]}));
    let plan = standby.plan(&record, &none, 30);
    assert_eq!((names(&plan.retired), names(&plan.retired_logical)), (vec!["backup"], vec![]));
    let plan = standby.plan(&record, &settings(json!({})), 31);
    assert_eq!(names(&plan.retired_logical), [""; 0], "what was somebody else's when it went is nobody's here");
}
