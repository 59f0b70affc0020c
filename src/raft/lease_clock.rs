//! How long leases live: in the memory of the Raft leader, on a clock that counts suspension.
//!
//! `renew -> confirm leadership -> deadline = now + ttl`
//! `deadline passes -> confirm leadership -> still due? -> mark expiring -> LeasesExpire through the log`
//!
//! Rules, all in favour of the holder, who counts from *before* it sent its request:
//! - a renewal is acknowledged only after leadership was proven at a moment after it arrived;
//! - a new leader grants every lease its full time from when it starts to count, which is after it became leader;
//! - nothing expires without a fresh proof of leadership, so a leader that was frozen expires nothing on waking;
//! - a lease marked as expiring is never renewed: its end may already be in the log.
//!
//! So expiry may be late, never early. Nothing here is replicated, and nothing here waits for a disk
//! except the expiry itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::node::Node;
use super::types::Proposal;
use super::wire::{KeyGuard, RenewOutcome};
use crate::kv;
use crate::kv::command::Command;
use crate::telemetry::clock;
use crate::types::{LeaseId, Mono};

/// The clock looks again at least so often: its timer does not count suspension.
const LOOK: Duration = Duration::from_secs(1);
/// Waking later than planned by this much means that this process or machine stood still.
const STALL: Duration = Duration::from_millis(200);
/// After standing still, holders' renewals that queued up meanwhile are given so long to be read.
const GRACE: Duration = Duration::from_millis(500);
const EXPIRE: Duration = Duration::from_secs(2);
/// More changes than that are not kept one by one.
const FEED: usize = 4096;

/// What happened to leases in the state machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseChange {
    /// A new lease and its time to live in milliseconds.
    Granted(LeaseId, u64),
    /// Revoked or expired.
    Gone(LeaseId),
    /// The whole state was replaced.
    Everything,
}

/// From the state machine to the clock; bounded.
#[derive(Default)]
pub struct LeaseFeed {
    changes: Mutex<Vec<LeaseChange>>,
    news: Notify,
}

impl LeaseFeed {
    /// Tells the clock.
    pub fn push(&self, change: LeaseChange) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if changes.len() >= FEED || change == LeaseChange::Everything {
            changes.clear();
            changes.push(LeaseChange::Everything);
        } else {
            changes.push(change);
        }
        drop(changes);
        self.news.notify_one();
    }

    fn take(&self) -> Vec<LeaseChange> {
        std::mem::take(&mut *self.changes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Debug, Clone, Copy)]
struct Life {
    ttl: Duration,
    deadline: Mono,
    expiring: bool,
}

/// The deadlines of one leadership.
#[derive(Default)]
struct Reign {
    term: u64,
    lives: HashMap<LeaseId, Life>,
}

impl Reign {
    fn live(&mut self, id: LeaseId, ttl_ms: u64, now: Mono) {
        let ttl = Duration::from_millis(ttl_ms);
        self.lives.entry(id).or_insert(Life { ttl, deadline: now + ttl, expiring: false });
    }

    /// When to look next. Leases whose expiry failed are due at once.
    fn next(&self) -> Option<Mono> {
        self.lives.values().map(|life| life.deadline).min()
    }

    fn due(&self, now: Mono) -> Vec<LeaseId> {
        self.lives.iter().filter(|(_, life)| life.deadline <= now).map(|(id, _)| *id).collect()
    }
}

/// The deadlines of this node's last leadership, none before its first.
///
/// They end with the next leadership and with nothing else. Not with the news that this node leads no more: what the engine
/// publishes can be older than the proof that a reign began with, and whoever believes it ends a reign that has just begun,
/// for the whole term, in which no lease could be renewed then. Not in order to begin again in the same term either: the marks of
/// what is expiring would be lost. A reign that is over does no harm: nothing is renewed and nothing expires without a
/// proof of its term.
#[derive(Default)]
pub struct LeaseClock {
    reign: Mutex<Reigns>,
    changed: Notify,
}

#[derive(Default)]
struct Reigns(Option<Reign>);

impl Reigns {
    fn of(&mut self, term: u64) -> Option<&mut Reign> {
        self.0.as_mut().filter(|reign| reign.term == term)
    }
}

impl LeaseClock {
    fn reigns(&self) -> MutexGuard<'_, Reigns> {
        self.reign.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the deadlines of `term` up to date with the state machine, starting them if need be.
    /// The caller knows that the state machine has applied an entry of that term.
    fn follow<'a>(&'a self, node: &Node, term: u64) -> MutexGuard<'a, Reigns> {
        let mut guard = self.reigns();
        if guard.0.as_ref().is_some_and(|reign| reign.term > term) {
            return guard;
        }
        let mut changes = node.machine.leases().take();
        if guard.of(term).is_none() {
            guard.0 = Some(Reign { term, lives: HashMap::new() });
            changes = vec![LeaseChange::Everything];
            self.changed.notify_one();
        }
        let Some(reign) = guard.of(term) else { return guard };
        let now = clock::now();
        for change in changes {
            match change {
                LeaseChange::Granted(id, ttl_ms) => reign.live(id, ttl_ms, now),
                LeaseChange::Gone(id) => drop(reign.lives.remove(&id)),
                LeaseChange::Everything => {
                    let position = node.machine.read();
                    reign.lives.retain(|id, _| position.kv.lease(*id).is_some());
                    for (id, ttl_ms) in position.kv.leases() {
                        reign.live(id, ttl_ms, now);
                    }
                }
            }
        }
        guard
    }

    /// Extends a lease. The caller has proven leadership of `term` after the request arrived, and
    /// has applied everything up to the read index of that proof. None: no longer that leadership.
    pub fn renew(&self, node: &Node, term: u64, id: LeaseId, guard: Option<&KeyGuard>) -> Option<RenewOutcome> {
        let mut reigns = self.follow(node, term);
        let reign = reigns.of(term)?;
        let position = node.machine.read();
        if position.kv.lease(id).is_none() {
            return Some(RenewOutcome::LeaseGone);
        }
        let Some(life) = reign.lives.get_mut(&id) else { return Some(RenewOutcome::LeaseGone) };
        if life.expiring {
            return Some(RenewOutcome::LeaseGone);
        }
        if guard.is_some_and(|guard| !holds(&position.kv, id, guard)) {
            return Some(RenewOutcome::GuardBroken);
        }
        life.deadline = clock::now() + life.ttl;
        Some(RenewOutcome::Renewed { ttl: life.ttl })
    }

    /// How long a lease has left. Outer none: no longer that leadership; inner none: no such lease.
    pub fn remaining(&self, node: &Node, term: u64, id: LeaseId) -> Option<Option<Duration>> {
        let mut reigns = self.follow(node, term);
        let reign = reigns.of(term)?;
        Some(reign.lives.get(&id).map(|life| life.deadline.since(clock::now())))
    }
}

fn holds(kv: &kv::State, id: LeaseId, guard: &KeyGuard) -> bool {
    kv.get(&guard.key).is_some_and(|pair| pair.create_revision == guard.create_revision && pair.lease == id)
}

/// Lets leases expire while this node leads; ends with the node.
pub async fn run(node: Weak<Node>) {
    loop {
        let Some(node) = node.upgrade() else { return };
        if node.stopping.is_cancelled() {
            return;
        }
        let now = clock::now();
        let next = node
            .settled_term()
            .and_then(|term| node.lease_clock.follow(&node, term).of(term).and_then(|reign| reign.next()));
        let wait = next.map_or(LOOK, |at| at.since(now).min(LOOK));
        if !wait.is_zero() {
            idle(&node, wait).await;
            let stalled = clock::now().since(now + wait);
            if stalled > STALL {
                postpone(&node, stalled);
            }
            continue;
        }
        if let Err(why) = expire(&node).await {
            tracing::debug!(why, "raft: leases stay for now");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn idle(node: &Node, wait: Duration) {
    tokio::select! {
        () = sleep(wait) => {}
        () = node.machine.leases().news.notified() => {}
        () = node.lease_clock.changed.notified() => {}
        () = node.leadership_changed() => {}
        () = node.stopping.cancelled() => {}
    }
}

/// This process stood still: its holders could not reach it, which is not their fault.
fn postpone(node: &Node, stalled: Duration) {
    let until = clock::now() + GRACE;
    let Some(term) = node.settled_term() else { return };
    let mut reigns = node.lease_clock.reigns();
    let Some(reign) = reigns.of(term) else { return };
    let mut postponed = 0_usize;
    for life in reign.lives.values_mut().filter(|life| !life.expiring && life.deadline < until) {
        life.deadline = until;
        postponed += 1;
    }
    tracing::warn!(stalled_ms = stalled.as_millis(), postponed, "raft: this process stood still, leases postponed");
}

async fn expire(node: &Arc<Node>) -> Result<(), &'static str> {
    let confirmed = node.confirmer.confirm().await.map_err(|_| "leadership is not confirmed")?;
    let ids = {
        let mut reigns = node.lease_clock.follow(node, confirmed.term);
        let Some(reign) = reigns.of(confirmed.term) else {
            return Err("leadership has changed");
        };
        // Renewals that came in during the proof have moved their deadlines.
        let due = reign.due(clock::now());
        for id in &due {
            if let Some(life) = reign.lives.get_mut(id) {
                life.expiring = true;
            }
        }
        due
    };
    if ids.is_empty() {
        return Ok(());
    }
    tracing::info!(leases = ids.len(), first = %ids[0], "raft: leases expire");
    let raft = node.raft().ok_or("not started")?;
    let proposal = Proposal::new(Command::LeasesExpire { ids });
    // If this fails the leases stay marked: the entry may be in the log. They are proposed again
    // while this leadership lasts, and a later one starts afresh.
    match timeout(EXPIRE, raft.client_write(proposal)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err("the log refused"),
        Err(_) => Err("the log is slow"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::raft::bootstrap;
    use crate::raft::forget::Retention;
    use crate::raft::handle::StoreConfig;
    use crate::raft::leader;
    use crate::raft::wire::{ClientRequest, ClientResponse};
    use crate::telemetry::redact::Secret;
    use crate::tls::Dialer;

    /// A store of one node whose engine is always late in saying what it has done.
    async fn late_node(dir: &std::path::Path, stop: Arc<AtomicBool>) -> Arc<Node> {
        let (name, addr) = ("n1", "127.0.0.1:1");
        let config = StoreConfig {
            cluster: "test".parse().expect("a name"),
            name: name.parse().expect("a name"),
            advertise: addr.to_owned(),
            members: BTreeMap::from([(name.parse().expect("a name"), addr.to_owned())]),
            data_dir: dir.to_owned(),
            secret: Secret::new("correct horse battery".to_owned()),
            dialer: Dialer::plain(),
            heartbeat: Duration::from_millis(30),
            election_min: Duration::from_millis(100),
            election_max: Duration::from_millis(200),
            snapshot_after: 500,
            retention: Retention::default(),
        };
        let node = bootstrap::start(config, Arc::new(|why| panic!("{why}"))).await.expect("starts");
        let late = Arc::clone(&node);
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                match late.raft() {
                    // It publishes nothing while it answers.
                    Some(raft) => {
                        raft.with_raft_state(|_| std::thread::sleep(Duration::from_millis(5))).await.expect("runs")
                    }
                    None => sleep(Duration::from_millis(1)).await,
                }
            }
        });
        node
    }

    /// What a leader publishes of itself is older than what it proves. The deadlines of its leases once ended by the former,
    /// when they had just begun by the latter: no lease could be renewed then until there was another leader.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn every_new_leader_renews_from_the_start() {
        for _ in 0..10 {
            let dir = tempfile::tempdir().expect("a directory");
            let stop = Arc::new(AtomicBool::new(false));
            let node = late_node(dir.path(), Arc::clone(&stop)).await;
            // From before there is a leader, and until long after.
            let until = clock::now() + Duration::from_secs(20);
            let asked = (0..8).map(|_| tokio::spawn(renew_often(Arc::clone(&node), until)));
            for renewed in futures_util::future::join_all(asked).await {
                assert_eq!(renewed.expect("ends"), OFTEN, "no lease is renewed any more in this term");
            }
            stop.store(true, Ordering::Relaxed);
            node.stop().await;
        }
    }

    const OFTEN: usize = 10;

    /// How often the leader has answered in time; there is no such lease.
    async fn renew_often(node: Arc<Node>, until: Mono) -> usize {
        let mut renewed = 0;
        while renewed < OFTEN && clock::now() < until {
            let request = ClientRequest::Renew(LeaseId(7), None);
            let answer = leader::serve(&node, request, Duration::from_secs(1)).await;
            renewed += usize::from(matches!(answer, Ok(ClientResponse::Renewed(RenewOutcome::LeaseGone))));
        }
        renewed
    }
}
