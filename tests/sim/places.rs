//! A node's place among the others: its tags, as its file would have them, or no PostgreSQL at all.

use std::collections::BTreeMap;

use howdah::agent::local::Place;
use howdah::ha::view::UpstreamTag;
use howdah::types::NodeName;
use serde_json::{Value, json};

use crate::chance::Chance;
use crate::profiles::Profile;

/// What does not change about a node.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// It votes and stores, and has no PostgreSQL.
    pub witness: bool,
    /// What decisions need of its tags.
    pub place: Place,
    /// All of them as published.
    pub tags: BTreeMap<String, Value>,
}

impl Standing {
    fn tag(&mut self, name: &str, value: Value) {
        self.tags.insert(name.to_owned(), value);
    }
}

/// Deals out tags. Whatever they are, two members with PostgreSQL may lead.
pub fn standings(profile: &Profile, names: &[NodeName], chance: &mut Chance) -> Vec<Standing> {
    let servers = profile.nodes - profile.witnesses;
    let mut all: Vec<Standing> =
        (0..profile.nodes).map(|node| Standing { witness: servers <= node, ..Standing::default() }).collect();
    if 2 < servers && chance.one_in(6) {
        let it = &mut all[chance.node(servers)];
        it.place.nofailover = true;
        it.tag("nofailover", json!(true));
    }
    if profile.nostream {
        let it = &mut all[servers - 1];
        it.place.upstream = UpstreamTag::Archive;
        it.tag("nostream", json!(true));
    }
    if !profile.tags {
        return all;
    }
    for (node, it) in all.iter_mut().enumerate().take(servers) {
        if chance.one_in(3) && !it.place.nofailover {
            it.place.failover_priority = *chance.pick(&[2, 3, 100]);
            it.tag("failover_priority", json!(it.place.failover_priority));
        }
        let upstream = chance.node(servers);
        if chance.one_in(3) && upstream != node && it.place.upstream == UpstreamTag::Leader {
            it.place.upstream = UpstreamTag::Member(names[upstream].clone());
            it.tag("replicatefrom", json!(names[upstream].as_str()));
        }
        if chance.one_in(3) {
            it.tag("clonefrom", json!(true));
        }
        match chance.below(8) {
            0 => it.tag("nosync", json!(true)),
            1 => it.tag("sync_priority", json!(chance.below(3))),
            _ => (),
        }
    }
    all
}
