//! One member at work: the engine with all that stands around it.
//!
//! `peers -> serve -> engine, or leader.rs` · `metrics -> leadership, fatal end, housekeeping`

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::AppendEntriesRequest;
use openraft::{Config, ServerState, SnapshotPolicy};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::FatalHook;
use super::commit::Operation;
use super::confirm::Confirmer;
use super::disk::Fact;
use super::error::Error;
use super::gather::{Gatherer, Way};
use super::handle::StoreConfig;
use super::identity::Identity;
use super::lease_clock::LeaseClock;
use super::link::Presence;
use super::log::LogStore;
use super::machine::Machine;
use super::network::Peers;
use super::types::{Member, Metrics, Raft, Snapshot, TypeConfig, Vote};
use super::wire::{ClientError, Formation, NodeState, Request, Response};
use super::{between, codec, leader, upkeep};
use crate::telemetry::clock;
use crate::types::{Mono, NodeName};

/// Entries that stay in the log behind a snapshot, for followers that are a little behind.
const KEEP: u64 = 500;
/// New entries are refused when the log's ring has less room than that.
pub const ROOM: u64 = 1024;
/// Log writes slower than this fraction of the election timeout make elections fail.
pub const SLOW_SYNC: u32 = 4;

/// Everything that one member consists of.
pub struct Node {
    pub(super) config: StoreConfig,
    pub(super) presence: Arc<Presence>,
    pub(super) peers: Peers,
    pub(super) log: LogStore,
    pub(super) machine: Machine,
    pub(super) confirmer: Confirmer,
    pub(super) lease_clock: LeaseClock,
    gatherers: [Gatherer; 2],
    /// Where what concerns several callers runs.
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) stopping: CancellationToken,
    pub(super) fatal: FatalHook,
    /// Held while the membership is being changed, so that two changes do not undo each other.
    pub(super) changing: tokio::sync::Mutex<()>,
    /// Members that an operator's invitation names, for a node that has none configured.
    pub(super) invited: watch::Sender<Vec<(String, String)>>,
    pub(super) leader_name: watch::Sender<Option<NodeName>>,
    /// Since when this node leads.
    pub(super) leading_since: Mutex<Option<Mono>>,
    /// When a leader last sent something that was accepted. The engine itself forgets a leader only for another one.
    heard_leader: Mutex<Option<Mono>>,
    /// What this node answers about its formation before the engine runs.
    pub(super) formation: Mutex<Formation>,
    pub(super) election_min: OnceLock<Duration>,
    raft: OnceLock<Raft>,
    started: watch::Sender<bool>,
}

/// What a node is made of, before it runs.
pub struct Parts {
    pub config: StoreConfig,
    pub presence: Arc<Presence>,
    pub log: LogStore,
    pub machine: Machine,
    pub confirmer: Confirmer,
    pub fatal: FatalHook,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How long an answer to a heartbeat counts, which is how far apart members may be, there and back: the engine's
/// `heartbeat_interval`. It is its pace as well, so `upkeep::keep_pace` sets a faster one. With the configured pace instead a
/// cluster whose members are further apart elected leaders for ever as soon as a member was gone (decision record 0020).
/// Below the shortest election timeout by more than the engine's ticks, which are a fifth of it.
pub(super) fn answer_within(election_min: Duration) -> Duration {
    election_min * 3 / 5
}

impl Node {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { config, presence, log, machine, confirmer, fatal } = parts;
        Self {
            peers: Peers::new(Arc::clone(&presence)),
            config,
            presence,
            log,
            machine,
            confirmer,
            lease_clock: LeaseClock::default(),
            gatherers: [Gatherer::new(Way::Log), Gatherer::new(Way::Leader)],
            runtime: tokio::runtime::Handle::current(),
            stopping: CancellationToken::new(),
            fatal,
            changing: tokio::sync::Mutex::new(()),
            invited: watch::Sender::new(Vec::new()),
            leader_name: watch::Sender::new(None),
            leading_since: Mutex::new(None),
            heard_leader: Mutex::new(None),
            formation: Mutex::new(Formation::Blank),
            election_min: OnceLock::new(),
            raft: OnceLock::new(),
            started: watch::Sender::new(false),
        }
    }

    /// Where commands wait that travel together.
    pub(super) fn gatherer(&self, way: Way) -> &Gatherer {
        match way {
            Way::Log => &self.gatherers[0],
            Way::Leader => &self.gatherers[1],
        }
    }

    /// The engine, once it runs.
    pub fn raft(&self) -> Option<&Raft> {
        self.raft.get()
    }

    /// This node's id; zero while it has none.
    pub fn id(&self) -> u64 {
        self.identity().map_or(0, |identity| identity.id)
    }

    /// Who this node is, once that is decided.
    pub fn identity(&self) -> Option<Identity> {
        self.presence.local().identity
    }

    /// Makes an identity durable, then uses it.
    pub async fn adopt(&self, identity: Identity) -> Result<(), Error> {
        let path = self.config.data_dir.clone();
        let written = |why: String| Error::Write { path, why };
        let bytes = codec::encode(&identity).map_err(|e| written(e.to_string()))?;
        let path = self.config.data_dir.clone();
        let written = |why: String| Error::Write { path, why };
        self.log.committer().fact(Fact::Identity, bytes).await.map_err(|e| written(e.to_string()))?;
        self.presence.local.lock().unwrap_or_else(PoisonError::into_inner).identity = Some(identity);
        Ok(())
    }

    /// The engine's published state, once it runs.
    pub fn metrics(&self) -> Option<Metrics> {
        self.raft().map(|raft| raft.metrics().borrow_watched().clone())
    }

    /// The term that this node leads and of which it has applied an entry.
    pub fn settled_term(&self) -> Option<u64> {
        let raft = self.raft()?;
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        let leads = metrics.state == ServerState::Leader && metrics.current_leader == Some(metrics.id);
        let applied = metrics.last_applied.map(|id| id.committed_leader_id().term);
        (leads && applied == Some(metrics.current_term)).then_some(metrics.current_term)
    }

    /// Returns when leadership may have changed. May return for nothing.
    pub async fn leadership_changed(&self) {
        let Some(raft) = self.raft() else {
            let mut started = self.started.subscribe();
            // An error cannot happen: the sender lives in this very node.
            let _ = started.wait_for(|started| *started).await;
            return;
        };
        let before = self.settled_term();
        let mut metrics = raft.metrics();
        while metrics.changed().await.is_ok() {
            if self.settled_term() != before {
                return;
            }
        }
        // The engine is gone; do not spin.
        self.stopping.cancelled().await;
    }

    pub(super) fn note_leading(&self, leads: bool) {
        let mut since = self.leading_since.lock().unwrap_or_else(PoisonError::into_inner);
        match (leads, since.is_some()) {
            (true, false) => *since = Some(clock::now()),
            (false, true) => *since = None,
            (true, true) | (false, false) => {}
        }
    }

    fn note_leader(&self) {
        *self.heard_leader.lock().unwrap_or_else(PoisonError::into_inner) = Some(clock::now());
    }

    /// How long ago a leader was last heard of; none if never.
    pub fn leader_heard(&self) -> Option<Duration> {
        let heard = *self.heard_leader.lock().unwrap_or_else(PoisonError::into_inner);
        heard.map(|at| clock::now().since(at))
    }

    /// How long this node has led; none while it does not.
    pub fn leading_for(&self) -> Option<Duration> {
        let since = self.leading_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.map(|since| clock::now().since(since))
    }

    /// The leader that this node knows of.
    pub fn leader(&self) -> Option<(u64, Member)> {
        let raft = self.raft()?;
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        let id = metrics.current_leader?;
        metrics.membership_config.get_node(&id).map(|member| (id, member.clone()))
    }

    /// Whether this node has, as far as it has promised anyone, seen no leader after (`term`, `leader`).
    /// See `confirm.rs` for why memory is enough.
    pub fn confirms(&self, term: u64, leader: u64) -> bool {
        self.log.vote().is_none_or(|vote| {
            let seen = vote.leader_id;
            seen.term < term || (seen.term == term && seen.voted_for == leader)
        })
    }

    /// Gives entries to the engine.
    pub async fn append(&self, rpc: AppendEntriesRequest<TypeConfig>) -> Response {
        let Some(raft) = self.raft() else { return Response::NotReady("not started".to_owned()) };
        if rpc.entries.len() as u64 + ROOM / 2 > self.log.room() {
            // The ring is full until a snapshot is taken; the leader will send these again.
            let _ = raft.trigger().snapshot().await;
            return Response::NotReady("the log is full".to_owned());
        }
        match raft.append_entries(rpc).await {
            Ok(response) => {
                if response.is_success() {
                    self.note_leader();
                }
                Response::Append(response)
            }
            Err(error) => Response::NotReady(error.to_string()),
        }
    }

    /// Gives a received snapshot to the engine.
    pub async fn install(&self, vote: Vote, snapshot: Snapshot) -> Response {
        let Some(raft) = self.raft() else { return Response::NotReady("not started".to_owned()) };
        match raft.install_full_snapshot(vote, snapshot).await {
            Ok(response) => {
                self.note_leader();
                Response::SnapshotDone(response)
            }
            Err(error) => Response::NotReady(error.to_string()),
        }
    }

    /// What this node tells others about its formation.
    pub fn state(&self) -> NodeState {
        let mut formation = self.formation.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(metrics) = self.metrics() {
            let members = metrics.membership_config.nodes();
            let list = members.map(|(id, m)| (*id, m.name.clone(), m.addr.clone())).collect();
            formation = Formation::Initialized(list);
        }
        let configured = self.config.members.iter().map(|(name, addr)| (name.to_string(), addr.clone())).collect();
        NodeState { formation, configured, generation: self.identity().map_or(0, |i| i.generation) }
    }

    /// Answers a member's request.
    pub async fn serve(self: &Arc<Self>, request: Request) -> Response {
        let not_ready = |why: String| Response::NotReady(why);
        match request {
            Request::State => return Response::State(self.state()),
            Request::Invite(members) => {
                self.invited.send_replace(members);
                return Response::State(self.state());
            }
            Request::Client(request, budget_ms) => {
                let within = Duration::from_millis(budget_ms);
                return Response::Client(leader::serve(self, request, within).await);
            }
            Request::Confirm { term, leader } => return Response::Confirm(self.confirms(term, leader)),
            Request::Reaches(id) => return Response::Confirm(between::reaches(self, id).await),
            Request::Append(rpc) => return self.append(rpc).await,
            Request::Vote(_) | Request::PreVote(_) | Request::Transfer(_) => {}
            Request::SnapshotBegin(..) | Request::SnapshotChunk(_) | Request::SnapshotEnd => {
                return not_ready("snapshots belong on their own connection".to_owned());
            }
        }
        let Some(raft) = self.raft() else { return not_ready("not started".to_owned()) };
        let served = match request {
            Request::Vote(rpc) => raft.vote(rpc).await.map(Response::Vote).map_err(|e| e.to_string()),
            Request::PreVote(rpc) => raft.pre_vote(rpc).await.map(Response::Vote).map_err(|e| e.to_string()),
            Request::Transfer(rpc) => {
                raft.handle_transfer_leader(rpc).await.map(Response::Transfer).map_err(|e| e.to_string())
            }
            _ => Ok(Response::Client(Err(ClientError::NotLeader))),
        };
        served.unwrap_or_else(not_ready)
    }

    fn engine_config(&self) -> Result<Config, Error> {
        let StoreConfig { election_min, election_max, snapshot_after, .. } = &self.config;
        // A vote is written before it is answered: elections cannot be faster than the disk.
        let slowest = self.log.progress().sync_p99().unwrap_or_default();
        let mut min = *election_min;
        let mut max = *election_max;
        if slowest * SLOW_SYNC > min {
            let factor = (slowest * SLOW_SYNC).div_duration_f64(min);
            tracing::warn!(
                sync_ms = slowest.as_millis(),
                configured_ms = min.as_millis(),
                used_ms = min.mul_f64(factor).as_millis(),
                "raft: this disk is slow, elections are given more time"
            );
            (min, max) = (min.mul_f64(factor), max.mul_f64(factor));
        }
        // Set once: the engine starts once.
        let _ = self.election_min.set(min);
        let config = Config {
            cluster_name: self.config.cluster.to_string(),
            heartbeat_interval: millis(answer_within(min)),
            election_timeout_min: millis(min),
            election_timeout_max: millis(max),
            enable_pre_vote: Some(true),
            quorum_loss_probe_interval: Some(millis(max) * 2),
            // A restarted leader must be elected again: deadlines of leases were in its memory.
            enable_leader_restore: Some(false),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(*snapshot_after),
            max_in_snapshot_log_to_keep: KEEP,
            replication_lag_threshold: *snapshot_after + 2 * KEEP,
            purge_batch_size: 64,
            max_payload_entries: 256,
            max_append_entries: Some(512),
            install_snapshot_timeout: 60_000,
            backoff: "50ms 100ms 100ms ..100ms".to_owned(),
            ..Config::default()
        };
        config.validate().map_err(|e| Error::Config { why: e.to_string() })
    }

    /// Starts the engine under the identity that was decided.
    pub async fn run_engine(self: &Arc<Self>) -> Result<&Raft, Error> {
        let config = Arc::new(self.engine_config()?);
        let started = Raft::new(self.id(), config, self.peers.clone(), self.log.clone(), self.machine.clone()).await;
        let raft = started.map_err(|e| Error::Start { why: e.to_string() })?;
        let raft = self.raft.get_or_init(|| raft);
        self.started.send_replace(true);
        tokio::spawn(upkeep::watch_engine(Arc::downgrade(self), raft.server_metrics(), raft.metrics()));
        tokio::spawn(upkeep::keep_house(Arc::downgrade(self)));
        tokio::spawn(upkeep::keep_pace(Arc::downgrade(self)));
        Ok(raft)
    }

    /// Makes everything durable and ends the disk's thread.
    pub async fn stop(&self) {
        self.stopping.cancel();
        if let Some(raft) = self.raft() {
            // An error says that the engine has already ended.
            let _ = raft.shutdown().await;
        }
        self.log.committer().stop().await;
    }

    /// Waits until the disk answers again and again: a measure of how slow it is.
    pub async fn probe_disk(&self) -> Result<(), Error> {
        for _ in 0..5 {
            let (tell, told) = tokio::sync::oneshot::channel();
            let done = Box::new(move |result| drop(tell.send(result)));
            let path = self.config.data_dir.clone();
            let failed = |why: String| Error::Write { path, why };
            self.log
                .committer()
                .submit(Operation::Append { entries: Vec::new(), number: 0, done })
                .await
                .map_err(|e| failed(e.to_string()))?;
            // The hook has been called if this fails.
            let _ = told.await;
        }
        Ok(())
    }
}
