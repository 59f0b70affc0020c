//! What the record of the synchronous set proves about a candidate: that it has every acknowledged commit.

use super::reason::Reason;
use super::sync_set::ElectionRule;
use super::view::{ClusterView, PeerView, ServerView, SyncMode};
use crate::cluster::ClusterRecord;
use crate::cluster::records::SyncRecord;
use crate::types::{Fact, NodeName};

/// The record of the synchronous set, when it decides who may lead. It does from its first write to its removal,
/// whatever the configuration says meanwhile: it tells what PostgreSQL enforced.
pub(super) fn in_force(record: &ClusterRecord) -> Option<&SyncRecord> {
    record.sync.as_ref().filter(|sync| sync.leader.is_some())
}

/// Why the synchronous set is not known although it must be; none when it is, or need not be.
pub(super) fn unreadable(view: &ClusterView, record: &ClusterRecord) -> Option<Reason> {
    let why = record.sync_damage().filter(|_| view.settings.synchronous.mode != SyncMode::Off)?;
    Some(Reason::SyncUnreadable { why: why.to_owned() })
}

/// Whether this standby is proven to have every commit that was acknowledged under `sync`.
///
/// The last position of the dead primary does not matter, nor who else is ahead of the proof: what nobody confirmed
/// was not acknowledged.
pub(super) fn proves(view: &ClusterView, sync: &SyncRecord, server: &ServerView) -> Result<(), Reason> {
    if sync.leader.as_ref() == Some(&view.me) {
        return Ok(());
    }
    let rule = ElectionRule::of(sync);
    if !rule.voters.contains(&view.me) {
        let proven: Vec<&str> = sync.leader.iter().chain(&rule.voters).map(NodeName::as_str).collect();
        return Err(Reason::NotSynchronous { proven: proven.join(", ") });
    }
    let mut missing = Vec::new();
    let mut heard = 1;
    for voter in rule.voters.iter().filter(|voter| **voter != view.me) {
        match vote(voter, view.peers.get(voter), server)? {
            Ok(()) => heard += 1,
            Err(why) => missing.push(why),
        }
    }
    let needed = rule.quorum + 1;
    if heard < needed {
        return Err(Reason::SyncVotesMissing { heard, needed, missing: missing.join("; ") });
    }
    Ok(())
}

/// Whether `voter` has no more than this node, and can receive no more: then it counts. The outer error: it has more.
fn vote(voter: &NodeName, peer: Option<&Fact<PeerView>>, server: &ServerView) -> Result<Result<(), String>, Reason> {
    let peer = match peer {
        Some(Fact::Fresh(peer)) => peer,
        Some(Fact::Stale { .. }) => return Ok(Err(format!("{voter} did not answer in time"))),
        Some(Fact::Unknown { why }) => return Ok(Err(format!("{voter}: {why}"))),
        None => return Ok(Err(format!("{voter} is not a member now"))),
    };
    if peer.writable {
        return Err(Reason::LivePrimary { peer: voter.clone() });
    }
    let (Some(timeline), Some(position)) = (peer.timeline, peer.position) else {
        return Ok(Err(format!("{voter} does not know its position yet")));
    };
    if server.timeline < timeline {
        return Err(Reason::PeerTimelineAhead { peer: voter.clone(), timeline });
    }
    if timeline == server.timeline && server.position < position {
        return Err(Reason::PeerAhead { peer: voter.clone(), by: position.ahead_of(server.position) });
    }
    if timeline < server.timeline {
        // On an older timeline more bytes do not mean more: only what both share can be compared.
        return Ok(Err(format!("{voter} is still on timeline {timeline}")));
    }
    if peer.pending {
        return Ok(Err(format!("{voter} starts and cannot tell yet how much it has")));
    }
    if peer.receiving {
        return Ok(Err(format!("{voter} still receives from the former primary")));
    }
    Ok(Ok(()))
}
