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
use crate::kv::command::{Command, PutRequest, RequestOp, Response, TxnRequest};
use crate::raft::{KeyGuard, RenewOutcome, Store};
use crate::telemetry::clock;
use crate::types::{LeaderPermit, LeaseId, Mono, NodeName, Term};

/// One attempt to renew may take so long; another follows at once.
const ATTEMPT: Duration = Duration::from_millis(1000);

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
}

impl Keeper {
    async fn run(mut self, poke: Arc<Notify>) {
        loop {
            let pause = match self.round().await {
                Ok(()) => {
                    self.state.send_if_modified(|state| state.trouble.take().is_some());
                    self.config.every.min(*self.ttl.borrow() / 4)
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
        let lease = match self.state.borrow().lease {
            Some(lease) => Some(lease),
            None => self.find_lease(),
        };
        let Some(lease) = lease else { return self.grant().await };
        if self.refused_since.is_some_and(|since| *self.ttl.borrow() < clock::now().since(since)) {
            return self.let_go(lease).await;
        }
        let wanted = *self.wanted.borrow();
        let asked_at = clock::now();
        let guard = wanted.map(|term| KeyGuard { key: self.config.space.key(&Key::Leader), create_revision: term.0 });
        let outcome = self.config.store.lease_renew(lease, guard, ATTEMPT).await.map_err(|e| e.to_string())?;
        match (outcome, wanted) {
            (RenewOutcome::Renewed { ttl }, Some(term)) => {
                let held = self.state.borrow().permit;
                let Some(offered) = next_permit(held, term, asked_at, ttl, *self.ttl.borrow()) else {
                    self.state.send_modify(|state| {
                        state.lease = Some(lease);
                        state.last_contact = Some(asked_at);
                    });
                    return Ok(());
                };
                self.publish_permit(lease, offered, asked_at).await?;
                if self.lease_ttl == Duration::ZERO {
                    self.lease_ttl = ttl;
                }
            }
            (RenewOutcome::Renewed { ttl }, None) => {
                if self.lease_ttl == Duration::ZERO {
                    self.lease_ttl = ttl;
                }
                self.drop_permit(Some(lease), asked_at);
            }
            (RenewOutcome::GuardBroken, term) => {
                info!(term = term.map_or(0, |t| t.0), "the leader key is no longer this node's in that term");
                self.drop_permit(Some(lease), asked_at);
            }
            (RenewOutcome::LeaseGone, _) => {
                if self.state.borrow().lease.is_some() {
                    warn!(%lease, "the node's lease has expired; taking a new one");
                }
                self.drop_permit(None, asked_at);
                return self.grant().await;
            }
        }
        self.change_ttl(lease, wanted).await
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
    async fn change_ttl(&mut self, old: LeaseId, wanted: Option<Term>) -> Result<(), String> {
        let ttl = *self.ttl.borrow();
        if self.lease_ttl == ttl {
            return Ok(());
        }
        let lease = self.config.store.lease_grant(ttl, ATTEMPT).await.map_err(|e| e.to_string())?;
        if let Some(term) = wanted {
            let txn = self.move_leader_key(lease, term);
            match self.config.store.propose(Command::Txn(txn), ATTEMPT).await.map_err(|e| e.to_string())? {
                Response::Txn(txn) if txn.succeeded => (),
                _ => return Err("the leader key is no longer this node's".to_owned()),
            }
        }
        info!(ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX), "lease replaced for the new ttl");
        self.lease_ttl = ttl;
        self.state.send_modify(|state| state.lease = Some(lease));
        // The old lease carries the member key until it is published again; it ends by itself.
        debug!(%old, "the old lease ends by itself");
        Ok(())
    }

    fn move_leader_key(&self, lease: LeaseId, term: Term) -> TxnRequest {
        use crate::kv::command::{Compare, CompareResult, CompareTarget};
        let key = self.config.space.key(&Key::Leader);
        TxnRequest {
            compare: vec![Compare {
                key: key.clone(),
                range_end: Vec::new(),
                result: CompareResult::Equal,
                target: CompareTarget::Create(term.0),
            }],
            success: vec![RequestOp::Put(PutRequest {
                key,
                value: self.config.me.as_str().as_bytes().to_vec(),
                lease,
                prev_kv: false,
                ignore_value: false,
                ignore_lease: false,
            })],
            failure: Vec::new(),
        }
    }
}
