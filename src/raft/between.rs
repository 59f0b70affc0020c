//! Who hears two members that do not hear each other.
//!
//! `leader -> every other voter: do you reach it? -> voter -> the silent member: are you there?`
//!
//! A cut between two nodes alone leaves a majority around each of them, so nobody elects anybody; yet the one that cannot
//! reach the leader renews no lease. Whoever is asked here makes the better leader. Absent: whether that is worth a change.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::membership::heard;
use super::node::Node;
use super::types::Member;
use super::wire::{Class, Request, Response};
use crate::types::NodeName;

/// How long the silent member may take to answer, and how long whoever asks it.
const ANSWER: Duration = Duration::from_millis(1000);
const ASKED: Duration = Duration::from_millis(1500);

/// Whether this node leads and has not heard the voter `name` for longer than any heartbeat takes.
pub fn leads_without(node: &Node, name: &NodeName) -> bool {
    let patience = node.election_min.get().copied().unwrap_or(node.config.election_min) * 2;
    // A leader of late has not heard anybody yet.
    if node.settled_term().is_none() || node.leading_for().is_none_or(|span| span < patience) {
        return false;
    }
    let Some(metrics) = node.metrics() else { return false };
    let mut voters = metrics.membership_config.voter_ids();
    voters.any(|id| {
        let named = metrics.membership_config.get_node(&id).is_some_and(|member| member.name == name.as_str());
        named && id != metrics.id && heard(&metrics, id).is_none_or(|ago| patience < ago)
    })
}

/// Whether the member with that id answers this node.
pub async fn reaches(node: &Node, id: u64) -> bool {
    let Some(metrics) = node.metrics() else { return false };
    let Some(Member { addr, .. }) = metrics.membership_config.get_node(&id) else { return false };
    let link = node.peers.link(id, addr, Class::Control);
    link.call(&Request::State, ANSWER).await.is_ok()
}

/// The first voter to answer that it reaches `name`, which does not answer this node.
pub async fn find(node: &Arc<Node>, name: &NodeName) -> Option<NodeName> {
    let metrics = node.metrics()?;
    let membership = &metrics.membership_config;
    let (silent, _) = membership.nodes().find(|(_, member)| member.name == name.as_str())?;
    let mut asked = FuturesUnordered::new();
    for id in membership.voter_ids().filter(|id| id != silent && *id != metrics.id) {
        let Some(member) = membership.get_node(&id) else { continue };
        let link = node.peers.link(id, &member.addr, Class::Control);
        let question = Request::Reaches(*silent);
        asked.push(async move { (member.name.clone(), link.call(&question, ASKED).await) });
    }
    while let Some((voter, answer)) = asked.next().await {
        if matches!(answer, Ok(Response::Confirm(true))) {
            return voter.parse().ok();
        }
    }
    None
}
