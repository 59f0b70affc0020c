//! A new cluster from one copy, when the majority of the old one is gone for good. Offline.
//!
//! Keeps the data of this node's log, makes the node the only voter, gives it a new id and a new
//! generation. Members of the old generation are refused from then on, so they cannot overrule it;
//! each must be emptied and joins again. Entries that the old majority had not acknowledged may become
//! part of the store; entries that this copy never received are lost. The report says what was found.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use openraft::entry::{EntryPayload, RaftEntry};
use serde::{Deserialize, Serialize};

use super::FatalHook;
use super::bootstrap::open;
use super::codec;
use super::disk::Fact;
use super::error::Error;
use super::identity::{Identity, Stage, random_id};
use super::types::{Entry, LogId, Member, Membership, Vote};
use crate::telemetry::clock;
use crate::types::WallTime;

/// What was done; also kept in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForceReport {
    /// When.
    pub at: WallTime,
    /// Why, in the operator's words.
    pub reason: String,
    /// This node's name.
    pub name: String,
    /// Its id before.
    pub old_id: u64,
    /// Its id now.
    pub new_id: u64,
    /// The new generation.
    pub generation: u64,
    /// Names of the members that are left behind.
    pub left_behind: Vec<String>,
    /// The last entry of this copy.
    pub last_entry: u64,
    /// The last entry that this copy knew to be acknowledged by the old majority.
    pub last_committed: u64,
}

/// Makes the node in `data_dir` the only voter of a new generation of its cluster. The node must be stopped.
///
/// # Errors
/// [`Error::Locked`] when it still runs, [`Error::Damaged`] when its copy is no use, [`Error::Force`] when
/// there is nothing to keep.
pub fn force_new_cluster(data_dir: &Path, reason: &str) -> Result<ForceReport, Error> {
    let refuse = |why: &str| Error::Force { path: data_dir.to_owned(), why: why.to_owned() };
    if !data_dir.join("FORMAT").exists() {
        return Err(refuse("there is no store in this directory"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| refuse(&e.to_string()))?;
    // In a thread of its own: the caller may be inside a runtime.
    let worked = std::thread::scope(|scope| scope.spawn(|| runtime.block_on(rewrite(data_dir, reason))).join());
    worked.unwrap_or_else(|_| Err(refuse("the work stopped on an inconsistency")))
}

fn members_of(entries: &[Entry]) -> Option<Membership> {
    entries.iter().rev().find_map(|entry| match &entry.payload {
        EntryPayload::Membership(membership) => Some(membership.clone()),
        EntryPayload::Blank | EntryPayload::Normal(_) => None,
    })
}

async fn rewrite(data_dir: &Path, reason: &str) -> Result<ForceReport, Error> {
    use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
    let refuse = |why: String| Error::Force { path: data_dir.to_owned(), why };
    // Errors come back through the calls below; there is no process to end.
    let fatal: FatalHook = Arc::new(|why: &str| tracing::error!(why, "raft: forcing a new cluster failed"));
    let (mut log, snapshots, contents) = open(data_dir, fatal)?;
    let identity =
        contents.facts.get(&Fact::Identity).ok_or_else(|| refuse("this node was never a member".to_owned()))?;
    let identity: Identity = codec::decode(identity).map_err(|e| refuse(e.to_string()))?;
    let last = log.last().ok_or_else(|| refuse("this copy holds no data".to_owned()))?;
    let entries = log.try_get_log_entries(0..).await.map_err(|e| refuse(e.to_string()))?;
    let snapshot = snapshots.current().map(|header| header.membership);
    let old = members_of(&entries).or(snapshot).unwrap_or_default();
    let committed = log.read_committed().await.map_err(|e| refuse(e.to_string()))?;
    let me = old.get_node(&identity.id).cloned();
    let term = log.vote().map_or(0, |vote| vote.leader_id.term).max(last.committed_leader_id().term) + 1;
    let (new_id, generation) = (random_id(), random_id());
    let report = ForceReport {
        at: clock::wall(),
        reason: reason.to_owned(),
        name: identity.name.clone(),
        old_id: identity.id,
        new_id,
        generation,
        left_behind: old.nodes().filter(|(id, _)| **id != identity.id).map(|(_, m)| m.name.clone()).collect(),
        last_entry: last.index,
        last_committed: committed.map_or(0, |id| id.index),
    };
    let member = me.unwrap_or(Member { name: identity.name.clone(), addr: String::new() });
    let membership = Membership::new(vec![BTreeSet::from([new_id])], BTreeMap::from([(new_id, member)]));
    let membership = membership.map_err(|e| refuse(e.to_string()))?;
    let position = LogId::new(openraft::vote::leader_id_std::CommittedLeaderId::new(term), last.index + 1);
    let entry = Entry::new(position, EntryPayload::Membership(membership));
    let failed = |e: std::io::Error| Error::Write { path: data_dir.to_owned(), why: e.to_string() };
    // The record first: if the rest is interrupted, the next attempt and its reader see that there was one.
    let record = codec::encode(&report).map_err(|e| refuse(e.to_string()))?;
    log.committer().fact(Fact::Forced, record).await.map_err(failed)?;
    let new = Identity { id: new_id, generation, stage: Stage::Member, ..identity };
    let bytes = codec::encode(&new).map_err(|e| refuse(e.to_string()))?;
    log.committer().fact(Fact::Identity, bytes).await.map_err(failed)?;
    log.save_vote(&Vote::new(term, new_id)).await.map_err(failed)?;
    log.append([entry], IOFlushed::noop()).await.map_err(failed)?;
    log.committer().stop().await;
    tracing::warn!(?report, "raft: a new cluster was forced");
    Ok(report)
}
