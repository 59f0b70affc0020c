//! What runs beside the engine: news of leadership, its fatal end, and the size of the log.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::MissedTickBehavior;

use super::forget::Calendar;
use super::handle::{Again, call_leader};
use super::node::{Node, SLOW_SYNC};
use super::types::{MetricsWatch, Proposal, ServerWatch, StoredMembership};
use super::wire::ClientRequest;
use crate::kv::command::Command;
use crate::telemetry::clock;
use crate::types::NodeName;

/// A snapshot is due when the log has grown by so many bytes, however few entries that are - and to this many times
/// the last one's size, so that a large store under load does not write itself whole every second. Never beyond the
/// second number: it is read again after a restart.
const LOG_BYTES: std::ops::RangeInclusive<u64> = 4 * 1024 * 1024..=64 * 1024 * 1024;
const LOG_PER_SNAPSHOT: u64 = 4;
const HOUSEKEEPING: Duration = Duration::from_millis(500);
/// How long a compaction may take to be agreed upon.
const COMPACT: Duration = Duration::from_secs(5);

/// Publishes leadership and ends the process when the engine ends on its own.
pub async fn watch_engine(node: Weak<Node>, mut server: ServerWatch, engine: MetricsWatch) {
    let mut known: Option<Arc<StoredMembership>> = None;
    loop {
        let Some(node) = node.upgrade() else { return };
        if node.stopping.is_cancelled() {
            return;
        }
        let (leader, moved) = {
            let now = server.borrow_and_update();
            node.note_leading(now.current_leader == Some(now.id));
            let leader = now.current_leader.and_then(|id| now.membership_config.get_node(&id).cloned());
            let moved = known.as_ref().is_none_or(|known| !Arc::ptr_eq(known, &now.membership_config));
            let moved = moved.then(|| Arc::clone(&now.membership_config));
            (leader, moved)
        };
        let name = leader.and_then(|member| member.name.parse::<NodeName>().ok());
        node.leader_name.send_if_modified(|known| {
            let changed = *known != name;
            if changed {
                // An election counts once, when it has a winner.
                node.presence.tally.leader_changes.fetch_add(u64::from(name.is_some()), Ordering::Relaxed);
                let shown = name.as_ref().map_or("none", NodeName::as_str);
                tracing::info!(leader = shown, "raft: leader changed");
                *known = name;
            }
            changed
        });
        if let Some(membership) = moved {
            node.peers.know(membership.nodes().map(|(id, member)| (*id, member.addr.clone())).collect());
            known = Some(membership);
        }
        let stopping = node.stopping.clone();
        drop(node);
        tokio::select! {
            changed = server.changed() => if changed.is_err() { break },
            () = stopping.cancelled() => return,
        }
    }
    if let Some(node) = node.upgrade().filter(|node| !node.stopping.is_cancelled()) {
        match &engine.borrow_watched().running_state {
            Err(error) => (node.fatal)(&format!("the store's consensus engine stopped: {error}")),
            Ok(()) => (node.fatal)("the store's consensus engine ended unexpectedly"),
        }
    }
}

/// Proposes to forget what is older, or more, than is to be kept. Only the leader's proposal counts; all members note
/// when which revision was reached, so that a new leader goes on.
async fn forget(node: &Arc<Node>, calendar: &mut Calendar) {
    let retention = node.config.retention;
    let (revision, compacted) = {
        let position = node.machine.read();
        (position.kv.revision(), position.kv.compact_revision())
    };
    let now = clock::now();
    calendar.note(now, revision, retention);
    let Some(revision) = calendar.due(now, revision, compacted, retention) else { return };
    if node.settled_term().is_none() {
        return;
    }
    let proposal = Proposal::new(Command::Compact { revision });
    match call_leader(node, ClientRequest::Propose(proposal), COMPACT, Again::IfUnsent).await {
        Ok(_) => tracing::debug!(revision, "raft: history compacted"),
        // The next round, or the next leader, does it.
        Err(error) => tracing::debug!(revision, %error, "raft: history not compacted"),
    }
}

/// Shows the members that the leader lives, as often as configured. The engine does it more seldom by itself, because it
/// counts an answer only until its own next turn: members may be further apart than that ([`super::node::answer_within`]).
pub async fn keep_pace(node: Weak<Node>) {
    let Some(pace) = node.upgrade().map(|node| node.config.heartbeat) else { return };
    let mut turns = tokio::time::interval(pace);
    // After a pause one turn is enough.
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        let Some(node) = node.upgrade() else { return };
        let Some(raft) = node.raft().filter(|_| !node.stopping.is_cancelled()) else { return };
        if node.leading_for().is_some() && raft.trigger().heartbeat().await.is_err() {
            return;
        }
    }
}

/// Takes snapshots when the log grows by bytes rather than by entries, and cuts it afterwards.
pub async fn keep_house(node: Weak<Node>) {
    let mut warned = false;
    let mut calendar = Calendar::default();
    loop {
        tokio::time::sleep(HOUSEKEEPING).await;
        let Some(node) = node.upgrade() else { return };
        let Some(raft) = node.raft().filter(|_| !node.stopping.is_cancelled()) else { return };
        let (entries, bytes) = node.log.size();
        let metrics = raft.metrics().borrow_watched().clone();
        let applied = metrics.last_applied.map_or(0, |id| id.index);
        let covered = metrics.snapshot.map_or(0, |id| id.index);
        let last = node.machine.snapshot().map_or(0, |header| header.length);
        let due = (LOG_PER_SNAPSHOT * last).clamp(*LOG_BYTES.start(), *LOG_BYTES.end());
        if bytes > due && applied > covered {
            let _ = raft.trigger().snapshot().await;
        }
        if bytes > 2 * due && entries > 1 && covered > 0 {
            let _ = raft.trigger().purge_log(covered).await;
        }
        forget(&node, &mut calendar).await;
        let min = node.election_min.get().copied().unwrap_or_default();
        let sync = node.log.progress().sync_p99().unwrap_or_default();
        if sync * SLOW_SYNC > min && !warned {
            warned = true;
            tracing::warn!(
                sync_ms = sync.as_millis(),
                election_ms = min.as_millis(),
                "raft: the disk is slow for these election times; restart the node to adapt, or give the store a faster disk"
            );
        }
    }
}
