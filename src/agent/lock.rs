//! The lease and the permit: the only place where permits are made.
//!
//! ```text
//! t0 = now -> renew(lease, guard: leader key still of our term) -> valid_until = t0 + ttl - margin
//!          -> guardian first, everybody else after it
//! ```
//!
//! A task of its own, so that no slow step of the loop delays a renewal. Source: design section 5.1,
//! decision record 0002. Absent: any decision; which term to hold is told from outside.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tracing::{debug, info, warn};

use crate::cluster::keys::{Key, KeySpace};
use crate::guardian::client::Guardian;
use crate::kv::command::{
    Command, Compare, CompareResult, CompareTarget, PutRequest, RequestOp, Response, ResponseOp, TxnRequest,
};
use crate::raft::{KeyGuard, RenewOutcome, Store};
use crate::telemetry::clock;
use crate::types::{LeaderPermit, LeaseId, Mono, NodeName, Term};

/// One attempt to renew may take so long; another follows at once. Between members that are 400 ms apart it takes three
/// round trips when it has just missed a round of confirmation.
const ATTEMPT: Duration = Duration::from_millis(1500);

/// Pause between failed attempts.
const RETRY: Duration = Duration::from_millis(50);

/// What the lock keeper knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LockState {
    /// The node's lease; its member key hangs on it too.
    pub lease: Option<LeaseId>,
    /// The newest permit, valid or not.
    pub permit: Option<LeaderPermit>,
    /// When the store last confirmed anything to this node: sent, not received.
    pub last_contact: Option<Mono>,
    /// Why the last attempt failed; none after a success.
    pub trouble: Option<String>,
}

/// Handle on the running keeper.
#[derive(Clone)]
pub struct Lock {
    state: watch::Receiver<LockState>,
    wanted: watch::Sender<Option<Term>>,
    ttl: watch::Sender<Duration>,
    guardian: watch::Sender<Option<Guardian>>,
    released: Arc<AtomicI64>,
    poke: Arc<Notify>,
}

/// What the keeper needs.
pub struct LockConfig {
    /// The store.
    pub store: Store,
    /// Who is told of each permit first; none on a witness.
    pub guardian: Option<Guardian>,
    /// Keys.
    pub space: KeySpace,
    /// This node.
    pub me: NodeName,
    /// Lifetime of the lease to begin with.
    pub ttl: Duration,
    /// Time between renewals.
    pub every: Duration,
}

/// What a permit loses against the lease: clock rates may differ by a percent, and the guardian needs
/// time to end every backend after the deadline.
pub fn margin(ttl: Duration) -> Duration {
    (ttl / 10).max(Duration::from_millis(500))
}

/// The permit that a renewal is worth: the lease's lifetime counted from *before* the request, less the margin.
pub fn permit(term: Term, asked_at: Mono, ttl: Duration) -> LeaderPermit {
    LeaderPermit { term, valid_until: asked_at + ttl.saturating_sub(margin(ttl)) }
}

/// The permit to hold after a renewal of a lease of `ttl`, while one of `wanted` is configured; none: the one that is
/// held stays as it is for now.
///
/// Before the leader key moves to a shorter lease the permits must have become as short, or the last long one would
/// outlive the key. The guardian takes no permit that ends earlier, so the long one is left to come to its end.
pub fn next_permit(
    held: Option<LeaderPermit>,
    term: Term,
    asked_at: Mono,
    ttl: Duration,
    wanted: Duration,
) -> Option<LeaderPermit> {
    let offered = permit(term, asked_at, ttl.min(wanted));
    let longer = held.is_some_and(|held| held.term == term && offered.valid_until < held.valid_until);
    (!longer).then_some(offered)
}

/// A change of the lease that the leader key hangs on. Its outcome may be unknown for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moving {
    /// The term whose key moves.
    pub term: Term,
    /// From this lease.
    pub from: LeaseId,
    /// To this one.
    pub to: LeaseId,
    /// The lifetime of the new lease.
    pub ttl: Duration,
}

impl Moving {
    /// The transaction: `leader` is the leader key, `me` its value. It keeps the term.
    ///
    /// It says from where: one that is carried out only when its asker has long given up and gone on must not bring the
    /// key to a lease that nobody renews any more.
    pub fn txn(&self, leader: &[u8], me: &NodeName) -> TxnRequest {
        let compare =
            |target| Compare { key: leader.to_vec(), range_end: Vec::new(), result: CompareResult::Equal, target };
        let put = |lease| {
            RequestOp::Put(PutRequest {
                key: leader.to_vec(),
                value: me.as_str().as_bytes().to_vec(),
                lease,
                prev_kv: false,
                ignore_value: false,
                ignore_lease: false,
            })
        };
        TxnRequest {
            compare: vec![compare(CompareTarget::Create(self.term.0)), compare(CompareTarget::Lease(self.from))],
            success: vec![put(self.to)],
            // Asked again after it had been done.
            failure: vec![RequestOp::Txn(TxnRequest {
                compare: vec![compare(CompareTarget::Create(self.term.0)), compare(CompareTarget::Lease(self.to))],
                success: vec![put(self.to)],
                failure: Vec::new(),
            })],
        }
    }

    /// Whether the key hangs on the new lease after this answer to [`Moving::txn`].
    pub fn is_done(answer: &Response) -> bool {
        let Response::Txn(answer) = answer else { return false };
        let before = answer.responses.first();
        answer.succeeded || matches!(before, Some(ResponseOp::Txn(before)) if before.succeeded)
    }
}

impl LockState {
    /// Without a permit of a term that this node has given up.
    pub fn less_given_up(mut self, given_up: i64) -> Self {
        self.permit = self.permit.filter(|permit| given_up < permit.term.0);
        self
    }
}

impl Lock {
    /// Starts the keeper.
    pub fn start(config: LockConfig) -> Self {
        let (state_tx, state) = watch::channel(LockState::default());
        let (wanted, wanted_rx) = watch::channel(None);
        let (ttl, ttl_rx) = watch::channel(config.ttl);
        let poke = Arc::new(Notify::new());
        let (guardian, guardian_rx) = watch::channel(config.guardian.clone());
        let keeper = Keeper {
            config,
            state: state_tx,
            wanted: wanted_rx,
            ttl: ttl_rx,
            guardian: guardian_rx,
            lease_ttl: Duration::ZERO,
            refused_since: None,
            moving: None,
        };
        tokio::spawn(keeper.run(poke.clone()));
        Self { state, wanted, ttl, guardian, released: Arc::new(AtomicI64::new(0)), poke }
    }

    /// The state now. A permit of a term that this node has given up is none, even if a renewal that was on its
    /// way says otherwise.
    pub fn state(&self) -> LockState {
        let state = self.state.borrow().clone();
        state.less_given_up(self.released.load(Ordering::SeqCst))
    }

    /// This node is about to give up `term`: from now on no permit of it counts here. Called before the write that
    /// makes it so, because after it another node may lead at any moment.
    pub fn give_up(&self, term: Term) {
        self.released.fetch_max(term.0, Ordering::SeqCst);
        self.hold(None);
    }

    /// To wait for changes.
    pub fn watch(&self) -> watch::Receiver<LockState> {
        self.state.clone()
    }

    /// Which leadership to keep; none to let go. Takes effect with the next renewal, which happens now.
    pub fn hold(&self, term: Option<Term>) {
        let changed = self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != term;
            *wanted = term;
            changed
        });
        if changed {
            self.poke.notify_one();
        }
    }

    /// Another guardian has taken the place of one that is gone.
    pub fn set_guardian(&self, guardian: Guardian) {
        self.guardian.send_replace(Some(guardian));
    }

    /// The lease's lifetime has been configured anew.
    pub fn set_ttl(&self, ttl: Duration) {
        let changed = self.ttl.send_if_modified(|old| {
            let changed = *old != ttl;
            *old = ttl;
            changed
        });
        if changed {
            self.poke.notify_one();
        }
    }
}

struct Keeper {
    config: LockConfig,
    state: watch::Sender<LockState>,
    wanted: watch::Receiver<Option<Term>>,
    ttl: watch::Receiver<Duration>,
    guardian: watch::Receiver<Option<Guardian>>,
    /// With which lifetime the lease was granted; zero when it was found, not granted.
    lease_ttl: Duration,
    /// Since when the guardian has refused every permit.
    refused_since: Option<Mono>,
    /// The leader key may have moved to another lease, or may still do so.
    moving: Option<Moving>,
}

impl Keeper {
    async fn run(mut self, poke: Arc<Notify>) {
        loop {
            let began = clock::now();
            let pause = match self.round().await {
                Ok(()) => {
                    self.state.send_if_modified(|state| state.trouble.take().is_some());
                    // From one question to the next: an answer from far away must not make them rarer.
                    let every = self.config.every.min(*self.ttl.borrow() / 4);
                    every.saturating_sub(clock::now().since(began))
                }
                Err(trouble) => {
                    debug!(%trouble, "lease not renewed");
                    self.state.send_modify(|state| state.trouble = Some(trouble));
                    RETRY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => (),
                () = poke.notified() => (),
            }
        }
    }

    async fn round(&mut self) -> Result<(), String> {
        if let Some(moving) = self.moving {
            self.finish_move(moving).await?;
        }
        // Read once: a permit of the old length and a move to a shorter lease must not come out of one round.
        let ttl = *self.ttl.borrow();
        let lease = match self.state.borrow().lease {
            Some(lease) => Some(lease),
            None => self.find_lease(),
        };
        let Some(lease) = lease else { return self.grant().await };
        if self.refused_since.is_some_and(|since| ttl < clock::now().since(since)) {
            return self.let_go(lease).await;
        }
        let wanted = *self.wanted.borrow();
        let asked_at = clock::now();
        let guard = wanted.map(|term| KeyGuard { key: self.config.space.key(&Key::Leader), create_revision: term.0 });
        let outcome = self.config.store.lease_renew(lease, guard, ATTEMPT).await.map_err(|e| e.to_string())?;
        match (outcome, wanted) {
            (RenewOutcome::Renewed { ttl: granted }, Some(term)) => {
                let held = self.state.borrow().permit;
                let Some(offered) = next_permit(held, term, asked_at, granted, ttl) else {
                    self.state.send_modify(|state| {
                        state.lease = Some(lease);
                        state.last_contact = Some(asked_at);
                    });
                    return Ok(());
                };
                self.publish_permit(lease, offered, asked_at).await?;
                if self.lease_ttl == Duration::ZERO {
                    self.lease_ttl = granted;
                }
            }
            (RenewOutcome::Renewed { ttl: granted }, None) => {
                if self.lease_ttl == Duration::ZERO {
                    self.lease_ttl = granted;
                }
                self.drop_permit(Some(lease), asked_at);
            }
            (RenewOutcome::GuardBroken, term) => {
                // The key may have been taken just when the lease was replaced.
                if let Some(other) = term.and_then(|term| self.lease_under_key(term)).filter(|other| *other != lease) {
                    self.lease_ttl = Duration::ZERO;
                    self.drop_permit(Some(other), asked_at);
                    return Err("the leader key hangs on another lease of this node".to_owned());
                }
                info!(term = term.map_or(0, |t| t.0), "the leader key is no longer this node's in that term");
                self.drop_permit(Some(lease), asked_at);
                return Ok(());
            }
            (RenewOutcome::LeaseGone, _) => {
                // One that this process has never renewed is of the time before it: no news.
                if self.lease_ttl != Duration::ZERO && self.state.borrow().lease.is_some() {
                    warn!(%lease, "the node's lease has expired; taking a new one");
                }
                self.drop_permit(None, asked_at);
                return self.grant().await;
            }
        }
        self.change_ttl(lease, wanted, ttl).await
    }

    /// A guardian that takes no permit makes this node useless as a leader: the lease is left to end, so that another
    /// can lead. A new lease comes when the old one is gone.
    async fn let_go(&mut self, lease: LeaseId) -> Result<(), String> {
        if self.config.store.read(|kv| kv.lease(lease).is_some()) {
            return Err("the guardian takes no permit: letting the lease end".to_owned());
        }
        self.refused_since = None;
        self.drop_permit(None, clock::now());
        self.grant().await
    }

    /// A permit is worth nothing before the guardian holds it too: its deadline must never be behind ours.
    async fn publish_permit(&mut self, lease: LeaseId, permit: LeaderPermit, asked_at: Mono) -> Result<(), String> {
        let guardian = self.guardian.borrow().clone();
        if let Some(guardian) = guardian
            && let Err(error) = guardian.permit(permit).await
        {
            self.refused_since = self.refused_since.or(Some(asked_at));
            return Err(format!("the guardian did not take the permit: {error}"));
        }
        self.refused_since = None;
        self.state.send_modify(|state| {
            state.lease = Some(lease);
            state.permit = Some(permit);
            state.last_contact = Some(asked_at);
        });
        Ok(())
    }

    fn drop_permit(&self, lease: Option<LeaseId>, asked_at: Mono) {
        self.state.send_modify(|state| {
            state.lease = lease;
            state.permit = None;
            state.last_contact = Some(asked_at);
        });
    }

    /// The lease that an earlier process of this node left: its leader key's, else its member key's.
    fn find_lease(&self) -> Option<LeaseId> {
        let me = &self.config.me;
        self.config.store.read(|kv| {
            let leader = kv.get(&self.config.space.key(&Key::Leader));
            let of_leader = leader.filter(|pair| pair.value == me.as_str().as_bytes());
            let pair = of_leader.or_else(|| kv.get(&self.config.space.key(&Key::Member(me.clone()))))?;
            (pair.lease != LeaseId(0)).then_some(pair.lease)
        })
    }

    /// The lease on which this node's leader key of `term` hangs, as far as is known here.
    fn lease_under_key(&self, term: Term) -> Option<LeaseId> {
        self.config.store.read(|kv| {
            let pair = kv.get(&self.config.space.key(&Key::Leader))?;
            let ours = pair.create_revision == term.0 && pair.value == self.config.me.as_str().as_bytes();
            (ours && pair.lease != LeaseId(0)).then_some(pair.lease)
        })
    }

    async fn grant(&mut self) -> Result<(), String> {
        let ttl = *self.ttl.borrow();
        let asked_at = clock::now();
        let lease = self.config.store.lease_grant(ttl, ATTEMPT).await.map_err(|e| e.to_string())?;
        self.lease_ttl = ttl;
        self.state.send_modify(|state| {
            state.lease = Some(lease);
            state.last_contact = Some(asked_at);
        });
        Ok(())
    }

    /// A new ttl needs a new lease. The leader key moves over in one transaction and keeps its term.
    async fn change_ttl(&mut self, old: LeaseId, wanted: Option<Term>, ttl: Duration) -> Result<(), String> {
        if self.lease_ttl == ttl {
            return Ok(());
        }
        let lease = self.config.store.lease_grant(ttl, ATTEMPT).await.map_err(|e| e.to_string())?;
        match wanted {
            Some(term) => self.move_leader_key(Moving { term, from: old, to: lease, ttl }).await,
            None => {
                self.has_moved(lease, ttl);
                Ok(())
            }
        }
    }

    /// As long as it is not known on which lease the key hangs, or will, no permit is renewed: the old lease may be the
    /// wrong one already, and the new one must not end before the last permit.
    async fn finish_move(&mut self, moving: Moving) -> Result<(), String> {
        match self.config.store.lease_renew(moving.to, None, ATTEMPT).await.map_err(|e| e.to_string())? {
            RenewOutcome::Renewed { .. } => self.move_leader_key(moving).await,
            // No key can move to a lease that is gone.
            RenewOutcome::LeaseGone | RenewOutcome::GuardBroken => {
                self.moving = None;
                Ok(())
            }
        }
    }

    async fn move_leader_key(&mut self, moving: Moving) -> Result<(), String> {
        self.moving = Some(moving);
        let txn = moving.txn(&self.config.space.key(&Key::Leader), &self.config.me);
        let answer = self.config.store.propose(Command::Txn(txn), ATTEMPT).await.map_err(|e| e.to_string())?;
        self.moving = None;
        if !Moving::is_done(&answer) {
            return Err("the leader key is no longer this node's".to_owned());
        }
        self.has_moved(moving.to, moving.ttl);
        Ok(())
    }

    fn has_moved(&mut self, lease: LeaseId, ttl: Duration) {
        info!(ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX), "lease replaced for the new ttl");
        self.lease_ttl = ttl;
        // The old lease carries the member key until it is published again; it ends by itself.
        self.state.send_modify(|state| state.lease = Some(lease));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::State;

    const LEADER: &[u8] = b"/service/test/leader";

    fn granted(state: &mut State, id: i64) -> LeaseId {
        state.apply(&Command::LeaseGrant { id: LeaseId(id), ttl_ms: 5000 }).response.expect("granted");
        LeaseId(id)
    }

    fn apply(state: &mut State, moving: &Moving, me: &NodeName) -> bool {
        let answer = state.apply(&Command::Txn(moving.txn(LEADER, me))).response;
        answer.is_ok_and(|answer| Moving::is_done(&answer))
    }

    #[test]
    fn a_move_that_comes_late_changes_nothing() {
        let me: NodeName = "n1".parse().expect("valid");
        let mut state = State::new();
        let leases = [1, 2, 3].map(|id| granted(&mut state, id));
        let put = PutRequest {
            key: LEADER.to_vec(),
            value: b"n1".to_vec(),
            lease: leases[0],
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        };
        let taken = TxnRequest { success: vec![RequestOp::Put(put)], ..TxnRequest::default() };
        state.apply(&Command::Txn(taken)).response.expect("taken");
        let term = Term(state.get(LEADER).expect("there").create_revision);
        let ttl = Duration::from_secs(5);
        let first = Moving { term, from: leases[0], to: leases[1], ttl };
        let second = Moving { term, from: leases[1], to: leases[2], ttl };
        assert!(apply(&mut state, &first, &me));
        assert!(apply(&mut state, &first, &me), "asked again, it says that it is done");
        assert!(apply(&mut state, &second, &me));
        assert!(!apply(&mut state, &first, &me), "the first once more, when the key has gone on");
        assert_eq!(state.get(LEADER).expect("there").lease, leases[2]);
        assert_eq!(state.get(LEADER).expect("there").create_revision, term.0, "still the same leadership");
        state.apply(&Command::LeasesExpire { ids: vec![leases[1]] });
        let back = Moving { term, from: leases[2], to: leases[1], ttl };
        assert!(!apply(&mut state, &back, &me), "nothing moves to a lease that is gone");
        assert!(state.get(LEADER).is_some());
    }
}
