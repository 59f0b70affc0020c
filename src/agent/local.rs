//! What a node's file says of things that may change while the node runs.
//!
//! node (start, SIGHUP, POST /reload) -> watch channel -> the loop takes it over with its next tick. Each value that is
//! sent counts as a request to have it in force, also if nothing in it is new.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::config::node::CallbacksConfig;
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
    /// The tag that forbids to lead.
    pub nofailover: bool,
}
