//! Whom the local server follows, and what its files say beside that.
//!
//! Deliberately absent: writing them (`act.rs`), and deciding (`ha`).

use std::collections::BTreeMap;

use super::act::Failure;
use super::slots::FAILOVER_SLOTS;
use crate::cluster::ClusterRecord;
use crate::config::ClusterSettings;
use crate::config::cluster_settings::{PermanentSlot, SharedPostgresql, StandbyCluster};
use crate::ha::view::UpstreamTag;
use crate::postgres::Upstream;
use crate::types::NodeName;

/// Whom the local server follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom<'a> {
    /// Nobody.
    Nobody,
    /// A member.
    Member(&'a NodeName),
    /// The primary outside the cluster.
    Outside,
}

/// What of the shared settings goes into the server's files.
#[derive(Debug, Clone, PartialEq)]
pub struct Configured {
    postgresql: SharedPostgresql,
    standby_cluster: Option<StandbyCluster>,
    slots: BTreeMap<String, PermanentSlot>,
}

impl Configured {
    /// Of these settings.
    pub fn of(settings: &ClusterSettings) -> Self {
        Self {
            postgresql: settings.postgresql.clone(),
            standby_cluster: settings.standby_cluster.clone(),
            slots: settings.slots.clone(),
        }
    }
}

/// Where `leader`'s PostgreSQL listens, from its member record.
///
/// # Errors
/// `Missing` while the member has not published it.
pub fn upstream(leader: &NodeName, me: &NodeName, record: Option<&ClusterRecord>) -> Result<Upstream, Failure> {
    let member = record.and_then(|record| record.members.get(leader));
    let address = member.and_then(|member| member.value.postgres_address());
    let Some((host, port)) = address else {
        return Err(Failure::Missing(format!("{leader} has not published where its PostgreSQL listens")));
    };
    Ok(Upstream { name: Some(leader.clone()), host, port, slot: Some(me.slot_name()) })
}

/// Where the primary outside the cluster listens; none when only an archive is named.
///
/// # Errors
/// `Missing` when the settings name none.
pub fn outside(settings: &ClusterSettings) -> Result<Option<Upstream>, Failure> {
    let Some(remote) = &settings.standby_cluster else {
        return Err(Failure::Missing("standby_cluster is not set any more".to_owned()));
    };
    let slot = remote.primary_slot_name.clone();
    let port = remote.port.unwrap_or(5432);
    Ok(remote.host.clone().map(|host| Upstream { name: None, host, port, slot }))
}

/// What a standby is told beside whom it follows.
///
/// Source: reference section 3.13: replicas of a standby cluster inherit the archive's commands, not the delay.
pub fn recovery(settings: &ClusterSettings, follow: Whom<'_>) -> BTreeMap<String, String> {
    let mut all = settings.postgresql.recovery.clone();
    if let Some(remote) = &settings.standby_cluster {
        let delay = remote.recovery_min_apply_delay.as_ref().filter(|_| follow == Whom::Outside);
        for (name, value) in [
            ("restore_command", remote.restore_command.as_ref()),
            ("archive_cleanup_command", remote.archive_cleanup_command.as_ref()),
            ("recovery_min_apply_delay", delay),
        ] {
            all.extend(value.map(|value| (name.to_owned(), value.clone())));
        }
    }
    all
}

/// The shared parameters, and what permanent logical slots or a node without streaming need.
pub fn parameters(settings: &ClusterSettings, major: u32, upstream: &UpstreamTag) -> BTreeMap<String, String> {
    let mut all = settings.postgresql.parameters.clone();
    if *upstream == UpstreamTag::Archive {
        // Each attempt starts restore_command: not ten times a second, as is good where WAL is streamed.
        all.entry("wal_retrieve_retry_interval".to_owned()).or_insert_with(|| "5s".to_owned());
    }
    if settings.slots.values().any(|slot| matches!(slot, PermanentSlot::Logical { .. })) {
        // A standby's copy of a logical slot is worth something only while the primary keeps the rows that it needs.
        all.entry("hot_standby_feedback".to_owned()).or_insert_with(|| "on".to_owned());
        if FAILOVER_SLOTS <= major {
            all.entry("sync_replication_slots".to_owned()).or_insert_with(|| "on".to_owned());
        }
    }
    all
}
