//! Who may lead next. Each refusal is a typed reason.

use std::time::Duration;

use crate::cluster::ClusterRecord;
use crate::cluster::records::HandoverRecord;
use crate::types::{Fact, Lsn, NodeName};

use super::reason::Reason;
use super::sync_proof;
use super::sync_set::ElectionRule;
use super::view::{ClusterView, DataDirView, PeerView, ServerView};

/// A shutdown checkpoint record is at least this long: header 24, data header 2, `CheckPoint` 80 bytes or
/// more. A standby whose position is so far beyond the record's start has received it.
///
/// Source: PostgreSQL `xlogrecord.h`, `pg_control.h`, versions 13 to 18.
const SHUTDOWN_CHECKPOINT_BYTES: u64 = 106;

/// WAL that arrived this recently is evidence that the former primary lives.
const WAL_FRESH: Duration = Duration::from_millis(150);

/// Whether this standby may take the leader key now; the reason either way.
///
/// Positions are compared among those who answer; who does not answer cannot hold up the cluster. The
/// last known position of the dead leader bounds what may be lost (`maximum_lag_on_failover`).
pub fn may_lead(view: &ClusterView, record: &ClusterRecord, server: &ServerView) -> Result<Reason, Reason> {
    if view.settings.nofailover {
        return Err(Reason::NoFailoverTag);
    }
    if let Some(pause) = view.pre_promote_pause() {
        return Err(Reason::PrePromoteRefused { pause });
    }
    if let DataDirView::Incomplete { why } = &view.data_dir {
        return Err(Reason::IncompleteDataDir { why: why.clone() });
    }
    let cluster = record.timeline();
    if server.timeline < cluster {
        return Err(Reason::TimelineBehind { ours: server.timeline, cluster });
    }
    if let Some(reason) = sync_proof::unreadable(view, record) {
        return Err(reason);
    }
    if let Some(why) = record.reserved_damage() {
        return Err(Reason::ReservedUnreadable { why: why.to_owned() });
    }
    // After a hand-over the successor is known and proven: no comparison, no waiting. Others stand back
    // for one ttl, then the race is open.
    let patience = view.settings.ttl;
    if let Some(handover) = proven_successor(record, &view.me, server) {
        let shutdown_lsn = handover.shutdown_lsn;
        return Ok(Reason::NamedSuccessor { from: handover.from.clone(), shutdown_lsn });
    }
    if let Some(handover) = record.handover.as_ref().map(|h| &h.value)
        && handover.to != view.me
        && view.leaderless_for() < patience
    {
        return Err(Reason::HandoverToOther { to: handover.to.clone() });
    }
    let request = record.failover.as_ref().filter(|_| view.request_due).map(|f| &f.value);
    let requested = request.and_then(|request| request.member.as_ref());
    if let Some(to) = requested
        && *to != view.me
        && view.leaderless_for() < patience
    {
        return Err(Reason::RequestForOther { to: to.clone() });
    }
    let named = requested == Some(&view.me);
    // A failover by hand (it names no leader) accepts what this node lacks; a switchover that lost its
    // leader half-way does not.
    let forced = named && request.is_some_and(|request| request.leader.is_none());
    let sync = sync_proof::in_force(record).filter(|_| !forced);
    let optime = record.status.as_ref().map_or(Lsn(0), |status| status.value.optime);
    let lag = optime.ahead_of(server.position);
    if view.settings.maximum_lag_on_failover < lag && !forced && sync.is_none() {
        return Err(Reason::LagTooHigh { lag, max: view.settings.maximum_lag_on_failover });
    }
    if let Some(at) = view.memory.wal_advanced_at {
        let since = view.now.since(at);
        if since < WAL_FRESH && view.leaderless_for() < patience {
            return Err(Reason::WalStillFlowing { since });
        }
    }
    // After a power cut everybody starts at once: a position read too early elects the one that was asked first,
    // and what the others have and it has not is lost.
    if server.replaying && !forced {
        return Err(Reason::StillReplaying { position: server.position });
    }
    match sync {
        Some(sync) => {
            no_peer_writes(view)?;
            sync_proof::proves(view, sync, server)?;
        }
        None => compare_with_peers(view, server, forced)?,
    }
    if named {
        return Ok(Reason::NamedByRequest);
    }
    if let Some(reason) = preferred_peer(view, record, server) {
        return Err(reason);
    }
    let leaderless_ms = u64::try_from(view.leaderless_for().as_millis()).unwrap_or(u64::MAX);
    let position = server.position;
    Ok(match sync {
        Some(_) => Reason::ProvenCandidate { leaderless_ms, position },
        None => Reason::BestCandidate { leaderless_ms, position },
    })
}

/// A primary that answers is alive, whatever the record proves.
fn no_peer_writes(view: &ClusterView) -> Result<(), Reason> {
    let writes = view.peers.iter().find(|(_, peer)| peer.fresh().is_some_and(|peer| peer.writable));
    writes.map_or(Ok(()), |(name, _)| Err(Reason::LivePrimary { peer: name.clone() }))
}

fn compare_with_peers(view: &ClusterView, server: &ServerView, forced: bool) -> Result<(), Reason> {
    for (name, peer) in &view.peers {
        let Fact::Fresh(peer) = peer else { continue };
        if peer.writable {
            return Err(Reason::LivePrimary { peer: name.clone() });
        }
        if peer.pending && !forced && view.leaderless_for() < view.settings.ttl {
            return Err(Reason::PeerStillReplaying { peer: name.clone() });
        }
        if !peer.promotable {
            continue;
        }
        if let Some(timeline) = peer.timeline
            && server.timeline < timeline
        {
            return Err(Reason::PeerTimelineAhead { peer: name.clone(), timeline });
        }
        if let Some(position) = peer.position
            && !forced
            && peer.timeline == Some(server.timeline)
            && server.position < position
        {
            return Err(Reason::PeerAhead { peer: name.clone(), by: position.ahead_of(server.position) });
        }
    }
    Ok(())
}

/// A member that has no less WAL and a higher `failover_priority` takes the key rather than this one; if it has not
/// within a ttl, something else keeps it from leading.
fn preferred_peer(view: &ClusterView, record: &ClusterRecord, server: &ServerView) -> Option<Reason> {
    if view.settings.ttl <= view.leaderless_for() {
        return None;
    }
    let voters = sync_proof::in_force(record).map(|sync| &sync.sync_standby);
    let ours = view.settings.failover_priority;
    view.peers.iter().find_map(|(name, peer)| {
        let peer = peer.fresh().filter(|peer| peer.promotable && peer.timeline == Some(server.timeline))?;
        let priority = record.members.get(name)?.value.failover_priority();
        let able = voters.is_none_or(|voters| voters.contains(name));
        (able && peer.position.is_some_and(|position| server.position <= position) && ours < priority)
            .then(|| Reason::PeerPreferred { peer: name.clone(), priority, ours })
    })
}

/// The hand-over that names `me`, if what was proven then is still there: the node may have been restored
/// since. Without one the positions of the other members must be asked for.
pub fn proven_successor<'a>(
    record: &'a ClusterRecord,
    me: &NodeName,
    server: &ServerView,
) -> Option<&'a HandoverRecord> {
    let handover = &record.handover.as_ref()?.value;
    (handover.to == *me && received(server.position, handover.shutdown_lsn)).then_some(handover)
}

/// Whether `position` proves that the shutdown checkpoint starting at `shutdown_lsn` has been received.
fn received(position: Lsn, shutdown_lsn: Lsn) -> bool {
    shutdown_lsn.0.saturating_add(SHUTDOWN_CHECKPOINT_BYTES) <= position.0
}

/// The member that has received the shutdown checkpoint starting at `shutdown_lsn`: the one that is
/// wanted, else the one with the highest priority, of those the most advanced. The error says what is missing.
pub fn proven(view: &ClusterView, shutdown_lsn: Lsn, wanted: Option<&NodeName>) -> Result<NodeName, String> {
    let priority = |name: &NodeName| {
        let member = view.record.any().and_then(|record| record.members.get(name));
        member.map_or(1, |member| member.value.failover_priority())
    };
    let mut best: Option<((u32, Lsn), &NodeName)> = None;
    let mut missing = Vec::new();
    for (name, peer) in &view.peers {
        if wanted.is_some_and(|wanted| wanted != name) {
            continue;
        }
        match peer {
            Fact::Fresh(PeerView { promotable: true, position: Some(position), .. })
                if received(*position, shutdown_lsn) =>
            {
                let merit = (priority(name), *position);
                if best.is_none_or(|(most, _)| most < merit) {
                    best = Some((merit, name));
                }
            }
            Fact::Fresh(PeerView { promotable: false, .. }) => missing.push(format!("{name} cannot be promoted")),
            Fact::Fresh(PeerView { position: Some(position), .. }) => {
                missing.push(format!("{name} has WAL until {position} only"));
            }
            Fact::Fresh(PeerView { position: None, .. }) => missing.push(format!("{name} did not say its position")),
            Fact::Stale { .. } => missing.push(format!("{name} did not answer in time")),
            Fact::Unknown { why } => missing.push(format!("{name}: {why}")),
        }
    }
    match (best, wanted) {
        (Some((_, name)), _) => Ok(name.clone()),
        (None, Some(wanted)) if missing.is_empty() => Err(format!("{wanted} is not a member")),
        (None, _) if missing.is_empty() => Err("there is no other member".to_owned()),
        (None, _) => Err(missing.join("; ")),
    }
}

/// Why `name` could not take over from this running primary now; none if it could.
pub fn unfit(record: &ClusterRecord, server: &ServerView, name: &NodeName) -> Option<String> {
    let Some(member) = record.members.get(name) else {
        return Some(format!("{name} is not a member of the cluster or has been silent for longer than its lease"));
    };
    if member.value.failover_priority() == 0 {
        return Some(format!("{name} has the tag nofailover, or failover_priority 0"));
    }
    match server.standbys.get(name) {
        None => Some(format!("{name} does not replicate from the leader")),
        Some(standby) if !standby.streaming => Some(format!("{name} is still catching up from an older position")),
        Some(_) => None,
    }
}

/// The standby to hand over to: the wanted one if it is fit, else of the fit ones with the highest priority the most
/// advanced.
pub fn successor(
    record: &ClusterRecord,
    server: &ServerView,
    wanted: Option<&NodeName>,
) -> Result<(NodeName, Lsn), String> {
    let mut reasons = Vec::new();
    let priority = |name: &NodeName| record.members.get(name).map_or(0, |member| member.value.failover_priority());
    let mut best: Option<((u32, Lsn), &NodeName)> = None;
    for (name, standby) in &server.standbys {
        if wanted.is_some_and(|wanted| wanted != name) {
            continue;
        }
        match unfit(record, server, name) {
            Some(why) => reasons.push(why),
            None => {
                let merit = (priority(name), standby.flushed);
                if best.is_none_or(|(most, _)| most < merit) {
                    best = Some((merit, name));
                }
            }
        }
    }
    match (best, wanted) {
        (Some(((_, flushed), name)), _) => Ok((name.clone(), flushed)),
        (None, Some(wanted)) => {
            Err(unfit(record, server, wanted).unwrap_or_else(|| format!("{wanted} cannot take over")))
        }
        (None, None) if reasons.is_empty() => Err("no standby replicates from the leader".to_owned()),
        (None, None) => Err(reasons.join("; ")),
    }
}

/// Whether another member could lead if this node let go: it looks able to, and where the synchronous set decides, enough
/// of it do.
pub fn may_others_lead(view: &ClusterView, record: &ClusterRecord) -> bool {
    let Some(sync) = sync_proof::in_force(record) else { return anybody_else(view, record) };
    let rule = ElectionRule::of(sync);
    let able = rule.voters.iter().filter(|name| is_able(view, record, name)).count();
    rule.quorum < able
}

/// Whether another member looks able to lead, by its own record.
pub fn anybody_else(view: &ClusterView, record: &ClusterRecord) -> bool {
    record.members.keys().any(|name| is_able(view, record, name))
}

/// Whether `name` looks able to lead, by its own record.
pub(super) fn is_able(view: &ClusterView, record: &ClusterRecord, name: &NodeName) -> bool {
    record.members.get(name).is_some_and(|member| {
        *name != view.me
            && member.value.role == "replica"
            && member.value.state == "running"
            && 0 < member.value.failover_priority()
            && member.value.timeline == Some(record.timeline())
    })
}
