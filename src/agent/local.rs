//! What a node's file says of things that may change while the node runs.
//!
//! node (start, SIGHUP, POST /reload) -> watch channel -> the loop takes it over with its next tick. Each value that is
//! sent counts as a request to have it in force, also if nothing in it is new.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::config::node::{CallbacksConfig, Tags};
use crate::ha::view::UpstreamTag;
use crate::postgres::LocalSettings;

/// The changeable part of a node's file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Local {
    /// Parameters and access lists of this server alone.
    pub postgres: LocalSettings,
    /// Who is told of what has happened.
    pub callbacks: CallbacksConfig,
    /// All tags as published.
    pub tags: BTreeMap<String, Value>,
    /// What decisions need of it.
    pub place: Place,
}

/// A node's place among the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The tag that forbids to lead.
    pub nofailover: bool,
    /// Between equals the higher one leads.
    pub failover_priority: u32,
    /// Whose WAL it takes.
    pub upstream: UpstreamTag,
    /// Whether a command decides before each promotion.
    pub pre_promote: bool,
}

impl Default for Place {
    fn default() -> Self {
        Self { nofailover: false, failover_priority: 1, upstream: UpstreamTag::Leader, pre_promote: false }
    }
}

impl Place {
    /// Of a node with these tags and commands.
    pub fn of(tags: &Tags, callbacks: &CallbacksConfig) -> Self {
        let upstream = match &tags.replicatefrom {
            _ if tags.nostream => UpstreamTag::Archive,
            Some(member) => UpstreamTag::Member(member.clone()),
            None => UpstreamTag::Leader,
        };
        Self {
            nofailover: tags.nofailover,
            failover_priority: tags.failover_priority,
            upstream,
            pre_promote: !callbacks.pre_promote.is_empty(),
        }
    }
}
