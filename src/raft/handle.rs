//! [`Store`]: what the rest of the program does with the replicated store.
//!
//! Requests that only the leader can serve are forwarded to it inside one call. A change is sent a
//! second time only when the first attempt was provably not proposed; reads and renewals are asked
//! again, also of a new leader, until the deadline.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tokio::time::timeout;

use super::error::{Error, StoreError};
use super::forget::Retention;
use super::gather::Way;
use super::leader::{self, left};
use super::link::CallError;
use super::machine::Applied;
use super::node::Node;
use super::server::RaftServer;
use super::status::{MemberInfo, RaftStatus, Vitals};
use super::tally::Tally;
use super::types::Proposal;
use super::wire::{Class, ClientError, ClientRequest, ClientResponse, KeyGuard, RenewOutcome, Request};
use super::{FatalHook, between, bootstrap, codec, membership};
use crate::kv;
use crate::kv::command::{Command, RangeRequest, RangeResponse, Response};
use crate::telemetry::clock;
use crate::telemetry::histogram::Histogram;
use crate::telemetry::redact::Secret;
use crate::tls::Dialer;
use crate::types::{ClusterName, LeaseId, NodeName};

/// Leases shorter than that would not survive a change of the Raft leader.
const TTL_MIN: Duration = Duration::from_secs(1);
/// Largest command, as written. etcd's default limit is 1.5 MiB per request; this leaves room for framing.
const COMMAND_MAX: usize = 2 * 1024 * 1024;
const PAUSE: Duration = Duration::from_millis(20);
/// A reader asks again after this: the leader it asked may be gone without anybody knowing yet.
const TRY: Duration = Duration::from_millis(1500);
const MANAGE: Duration = Duration::from_secs(5);
/// Leadership is given away in milliseconds or not at all.
const ABDICATE: Duration = Duration::from_secs(1);
const GROW: Duration = Duration::from_secs(60);

/// What a store is started with.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The cluster's name; nodes of other clusters are refused.
    pub cluster: ClusterName,
    /// This node's name, unique in the cluster.
    pub name: NodeName,
    /// `host:port` under which the other members reach this node's main port.
    pub advertise: String,
    /// The first members, name to address, the same on all of them. For a node that joins later: any
    /// members. This node itself may be among them.
    pub members: BTreeMap<NodeName, String>,
    /// Where the log and the snapshots live; used by nothing else.
    pub data_dir: PathBuf,
    /// What members prove to each other.
    pub secret: Secret<String>,
    /// How other members are connected to.
    pub dialer: Dialer,
    /// Time between heartbeats; 100 ms.
    pub heartbeat: Duration,
    /// Shortest election timeout; 500 ms.
    pub election_min: Duration,
    /// Longest election timeout; 1000 ms.
    pub election_max: Duration,
    /// Entries after which a snapshot is taken; 5000, at most 6000.
    pub snapshot_after: u64,
    /// How much of the keys' history is kept.
    pub retention: Retention,
}

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every change that was acknowledged before the read began.
    Linearizable,
    /// Whatever this node has.
    Local,
}

/// Proof that local reads made after it see everything acknowledged before it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct ReadGuarantee {
    /// The local store's revision when it was given; later reads see this or more.
    pub revision: i64,
}

/// The replicated store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    node: Arc<Node>,
}

/// When a request may be sent again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// Only when it was certainly not proposed.
    IfUnsent,
    /// Whenever no answer came: asking twice does no harm.
    Always,
}

impl Store {
    /// Opens the store and starts to be a member; forming or joining a cluster goes on in the background.
    /// `fatal` is called when this node cannot be a member any more; it must end the process.
    ///
    /// # Errors
    /// [`Error`]: the data directory cannot be used, or the configuration is wrong.
    pub async fn start(config: StoreConfig, fatal: FatalHook) -> Result<(Store, RaftServer), Error> {
        let node = bootstrap::start(config, fatal).await?;
        let server = RaftServer::new(Arc::clone(&node));
        Ok((Store { node }, server))
    }

    /// Stops being a member, orderly: leadership goes to another member first, and what was accepted is
    /// on disk when this returns.
    pub async fn shutdown(&self) {
        membership::abdicate(&self.node, clock::now() + ABDICATE).await;
        self.node.stop().await;
    }

    /// Changes the store through the log and answers when the change is applied by the leader.
    ///
    /// # Errors
    /// `NoLeader`, `Rejected`, `Refused`, `Timeout { maybe_applied: false }`: nothing changed.
    /// `Timeout { maybe_applied: true }`: unknown; read before trying again.
    pub async fn propose(&self, command: Command, deadline: Duration) -> Result<Response, StoreError> {
        self.admit(&command)?;
        let proposal = Proposal::new(command);
        let size = codec::encode(&proposal).map_err(|e| StoreError::refused(e.to_string()))?.len();
        if size > COMMAND_MAX {
            return Err(StoreError::refused(format!(
                "the request has {size} bytes, at most {COMMAND_MAX} are allowed"
            )));
        }
        let response = call_leader(&self.node, ClientRequest::Propose(proposal), deadline, Again::IfUnsent).await?;
        leader::reply(response)
    }

    /// As [`Store::propose`], for those who are many and can wait for each other: on the way to another leader their
    /// commands travel together.
    ///
    /// # Errors
    /// As [`Store::propose`].
    pub async fn propose_together(&self, command: Command, deadline: Duration) -> Result<Response, StoreError> {
        if self.node.leader().is_none_or(|(id, _)| id == self.node.id()) {
            return self.propose(command, deadline).await;
        }
        self.admit(&command)?;
        let until = clock::now() + deadline;
        match self.node.gatherer(Way::Leader).propose(&self.node, Proposal::new(command), until).await {
            Ok(response) => leader::reply(response),
            Err(ClientError::Store(error)) => Err(error),
            Err(ClientError::NotLeader) => Err(StoreError::NoLeader),
        }
    }

    /// Refuses what no log should hold.
    fn admit(&self, command: &Command) -> Result<(), StoreError> {
        if !codec::nesting_is_bounded(command) {
            return Err(StoreError::refused("transactions are nested too deeply"));
        }
        self.read(|kv| kv.check(command)).map_err(StoreError::Rejected)
    }

    /// Makes local reads after this call see everything that was acknowledged before it.
    ///
    /// # Errors
    /// `NoLeader` or `Timeout`: read nothing, or read what may be old.
    pub async fn linearize(&self, deadline: Duration) -> Result<ReadGuarantee, StoreError> {
        let until = clock::now() + deadline;
        let index = match call_leader(&self.node, ClientRequest::ReadIndex, deadline, Again::Always).await? {
            ClientResponse::ReadIndex(index) => index,
            other => return Err(leader::unexpected(&other)),
        };
        if leader::applied(&self.node, index, until).await {
            Ok(ReadGuarantee { revision: self.read(kv::State::revision) })
        } else {
            Err(StoreError::Timeout { maybe_applied: false })
        }
    }

    /// Reads a range of keys.
    ///
    /// # Errors
    /// As [`Store::linearize`], and `Rejected` with the state machine's own error.
    pub async fn range(
        &self,
        request: RangeRequest,
        consistency: Consistency,
        deadline: Duration,
    ) -> Result<RangeResponse, StoreError> {
        if consistency == Consistency::Linearizable {
            let _guarantee = self.linearize(deadline).await?;
        }
        self.read(|kv| kv.range(&request)).map_err(StoreError::Rejected)
    }

    /// Reads the local state. `f` must be quick: applying waits for it.
    pub fn read<T>(&self, f: impl FnOnce(&kv::State) -> T) -> T {
        f(&self.node.machine.read().kv)
    }

    /// Waits until the local state is as asked; false when it is not within `limit`. `is` must be quick, as for
    /// [`Store::read`].
    pub async fn until(&self, is: impl Fn(&kv::State) -> bool, limit: Duration) -> bool {
        let mut applied = self.node.machine.applied();
        let seen = async {
            loop {
                // Before the look, so that nothing is missed; and not held during it: who applies holds the state.
                applied.borrow_and_update();
                if self.read(&is) {
                    return true;
                }
                if applied.changed().await.is_err() {
                    return false;
                }
            }
        };
        timeout(limit, seen).await.unwrap_or(false)
    }

    /// The local store's revision, each time it grows.
    pub fn applied(&self) -> watch::Receiver<i64> {
        self.node.machine.revision()
    }

    /// Changes of keys from now on, as they are applied here. A receiver that lags is told so and must
    /// read the state afresh; so must one that gets [`Applied::restored`].
    pub fn events(&self) -> broadcast::Receiver<Arc<Applied>> {
        self.node.machine.events()
    }

    /// Creates a lease of howdah's own, under a random number ([`LeaseId::own`]). At least one second.
    ///
    /// # Errors
    /// As [`Store::propose`].
    pub async fn lease_grant(&self, ttl: Duration, deadline: Duration) -> Result<LeaseId, StoreError> {
        let ttl_ms = u64::try_from(ttl.max(TTL_MIN).as_millis()).unwrap_or(u64::MAX);
        let id = LeaseId::own(rand::random());
        match self.propose(Command::LeaseGrant { id, ttl_ms }, deadline).await? {
            Response::LeaseGrant { id, .. } => Ok(id),
            other => Err(StoreError::refused(format!("a lease grant was answered with {other:?}"))),
        }
    }

    /// Extends a lease, without a log entry and without waiting for any disk. With a guard: only
    /// if that key still exists, is the same creation, and hangs on this lease.
    /// Count the time to live from before this call.
    ///
    /// # Errors
    /// `NoLeader` or `Timeout`: the lease was perhaps extended, but nothing may be built on it.
    pub async fn lease_renew(
        &self,
        id: LeaseId,
        guard: Option<KeyGuard>,
        deadline: Duration,
    ) -> Result<RenewOutcome, StoreError> {
        match call_leader(&self.node, ClientRequest::Renew(id, guard), deadline, Again::Always).await? {
            ClientResponse::Renewed(outcome) => Ok(outcome),
            other => Err(leader::unexpected(&other)),
        }
    }

    /// Ends a lease and deletes its keys.
    ///
    /// # Errors
    /// As [`Store::propose`].
    pub async fn lease_revoke(&self, id: LeaseId, deadline: Duration) -> Result<Response, StoreError> {
        self.propose(Command::LeaseRevoke { id }, deadline).await
    }

    /// How long a lease has left in the leader's view; none if there is no such lease.
    ///
    /// # Errors
    /// `NoLeader` or `Timeout`.
    pub async fn lease_remaining(&self, id: LeaseId, deadline: Duration) -> Result<Option<Duration>, StoreError> {
        match call_leader(&self.node, ClientRequest::Remaining(id), deadline, Again::Always).await? {
            ClientResponse::Remaining(millis) => Ok(millis.map(Duration::from_millis)),
            other => Err(leader::unexpected(&other)),
        }
    }

    /// What goes into the head of every answer; cheaper than [`Store::status`].
    pub fn vitals(&self) -> Vitals {
        Vitals::of(&self.node)
    }

    /// What was counted since the start, for dashboards.
    pub fn tally(&self) -> &Tally {
        &self.node.presence.tally
    }

    /// How long the log's syncs took since the start.
    pub fn syncs(&self) -> &Histogram {
        &self.node.log.progress().syncs
    }

    /// The store as this node sees it.
    pub fn status(&self) -> RaftStatus {
        RaftStatus::of(&self.node)
    }

    /// The leader's name, each time this node learns of another one.
    pub fn leader_changes(&self) -> watch::Receiver<Option<NodeName>> {
        self.node.leader_name.subscribe()
    }

    /// Gives the store's leadership to another member; milliseconds when it is healthy.
    ///
    /// # Errors
    /// `Refused` with the reason, `NoLeader` or `Timeout`.
    pub async fn transfer_leader(&self, to: &NodeName) -> Result<(), StoreError> {
        let request = ClientRequest::TransferTo(to.to_string());
        call_leader(&self.node, request, MANAGE, Again::Always).await.map(drop)
    }

    /// Whether this node leads and has not heard the voter `name` for longer than any heartbeat takes.
    pub fn leads_without(&self, name: &NodeName) -> bool {
        between::leads_without(&self.node, name)
    }

    /// A voter that reaches both this node, which leads, and `name`, which does not answer it.
    pub async fn between(&self, name: &NodeName) -> Option<NodeName> {
        between::find(&self.node, name).await
    }

    /// Takes in the node that runs at `addr` with an empty store: learner first, voter when it has caught up.
    ///
    /// # Errors
    /// `Refused` with the reason; `Timeout` when it has not caught up within a minute (it goes on trying).
    pub async fn member_add(&self, name: &NodeName, addr: &str) -> Result<(), StoreError> {
        let request = ClientRequest::AddMember { name: name.to_string(), addr: addr.to_owned() };
        call_leader(&self.node, request, GROW, Again::IfUnsent).await.map(drop)
    }

    /// Removes a member, dead or alive.
    ///
    /// # Errors
    /// `Refused` when it is the last voter, or when those who stay would have no living majority.
    pub async fn member_remove(&self, name: &NodeName) -> Result<(), StoreError> {
        let request = ClientRequest::RemoveMember(name.to_string());
        call_leader(&self.node, request, MANAGE, Again::IfUnsent).await.map(drop)
    }

    /// All members, voters first.
    pub fn members(&self) -> Vec<MemberInfo> {
        let RaftStatus { mut voters, learners, .. } = self.status();
        voters.extend(learners);
        voters
    }

    /// Makes this node's disk fail. For tests.
    #[doc(hidden)]
    pub fn break_disk(&self) {
        self.node.log.progress().broken.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Makes this node's disk slow: every sync of the log takes so much longer. For tests.
    #[doc(hidden)]
    pub fn slow_disk(&self, by: Duration) {
        let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        self.node.log.progress().slowness_us.store(micros, std::sync::atomic::Ordering::Relaxed);
    }
}

/// How one attempt at the leader ended.
enum Attempt {
    Done(Result<ClientResponse, StoreError>),
    /// Certainly not proposed.
    Unsent,
    /// Perhaps proposed.
    Unknown,
}

/// Asks the leader, wherever it is, until the deadline.
pub(super) async fn call_leader(
    node: &Arc<Node>,
    request: ClientRequest,
    within: Duration,
    again: Again,
) -> Result<ClientResponse, StoreError> {
    let until = clock::now() + within;
    let mut leaders = node.leader_name.subscribe();
    let mut met_leader = false;
    loop {
        if node.stopping.is_cancelled() {
            return Err(StoreError::Shutdown);
        }
        if left(until).is_zero() {
            return Err(if met_leader { StoreError::Timeout { maybe_applied: false } } else { StoreError::NoLeader });
        }
        leaders.mark_unchanged();
        let attempt = match again {
            Again::IfUnsent => attempt(node, &request, left(until)).await,
            // The leader that was asked may be frozen: when there is another one, ask that.
            Again::Always => tokio::select! {
                attempt = attempt(node, &request, left(until).min(TRY)) => attempt,
                _ = leaders.changed() => Attempt::Unsent,
            },
        };
        match attempt {
            Attempt::Done(result) => return result,
            Attempt::Unknown if again == Again::IfUnsent => return Err(StoreError::Timeout { maybe_applied: true }),
            Attempt::Unknown => met_leader = true,
            Attempt::Unsent => {}
        }
        // An error is the pause's end; a change of leader ends it early.
        let _ = timeout(PAUSE.min(left(until)), leaders.changed()).await;
    }
}

async fn attempt(node: &Arc<Node>, request: &ClientRequest, within: Duration) -> Attempt {
    let Some((id, member)) = node.leader() else { return Attempt::Unsent };
    let served = if id == node.id() {
        leader::serve(node, request.clone(), within).await
    } else {
        let link = node.peers.link(id, &member.addr, Class::Control);
        let budget = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        match link.call(&Request::Client(request.clone(), budget), within).await {
            Ok(super::wire::Response::Client(served)) => served,
            Ok(_) | Err(CallError::NotSent(_)) => return Attempt::Unsent,
            Err(CallError::Lost(_) | CallError::Timeout) => return Attempt::Unknown,
        }
    };
    match served {
        Ok(response) => Attempt::Done(Ok(response)),
        Err(ClientError::NotLeader) => Attempt::Unsent,
        Err(ClientError::Store(error)) => Attempt::Done(Err(error)),
    }
}
