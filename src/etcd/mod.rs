//! etcd's v3 API over the replicated store: gRPC, and the same as JSON over HTTP.
//!
//! ```text
//! gRPC  /etcdserverpb.KV/Range ...  --+                       +-- reads: local state, after a leader's word
//!                                     +-> Etcd (kv, lease, ...) -- changes: guard, then one log entry
//! JSON  POST /v3/kv/range ...       --+                       +-- watches: one task and one queue per stream
//! ```
//! Any node serves everything; what only the Raft leader can do is forwarded inside one request. Texts, numbers and
//! odd corners are etcd's (identity 3.6), because clients match on them.
//!
//! The record that decides who may write to PostgreSQL lives in the same key space. [`guard`] sees to it that clients
//! change only what Patroni's own tools change there, and read no passwords: decision record 0007.
//!
//! Who asks is found in [`caller`]; what users may do is decided in [`crate::kv::auth`], here and once more when a change
//! is applied. While authentication is off, as at first, everybody may do what [`guard`] lets through.
//!
//! Deliberately absent: TLS (the listener's business), and when history is forgotten (the store's own).

mod acknowledged;
mod auth;
mod caller;
mod cluster;
mod convert;
mod election;
mod error;
mod gateway;
mod guard;
mod health;
mod http;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod pb;
mod snapshot;
mod traffic;
#[doc(hidden)]
pub mod untrusted;
mod wait;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::cluster::keys::KeySpace;
use crate::kv::command::{Command, RangeRequest, RangeResponse, RequestOp, Response, TxnRequest};
use crate::raft::Store;
use crate::types::ClusterName;
use acknowledged::{Acknowledged, CATCH_UP};
use auth::Passwords;
use caller::{Caller, Tokens};
use guard::Guard;
use pb::etcdserverpb::ResponseHeader;
use pb::etcdserverpb::auth_server::AuthServer;
use pb::etcdserverpb::cluster_server::ClusterServer;
use pb::etcdserverpb::kv_server::KvServer;
use pb::etcdserverpb::lease_server::LeaseServer;
use pb::etcdserverpb::maintenance_server::MaintenanceServer;
use pb::etcdserverpb::watch_server::WatchServer;
use pb::health::health_server::HealthServer;
use pb::v3electionpb::election_server::ElectionServer;
use pb::v3lockpb::lock_server::LockServer;
use traffic::Traffic;

/// The version that clients are told: digits only, because Patroni reads each part as a number.
const VERSION: &str = "3.6.8";
/// The version of cluster and storage that goes with it.
const MINOR_VERSION: &str = "3.6.0";

/// A request's time when there is a leader. Source: etcd's request timeout, 5 s and two elections.
const PATIENCE: Duration = Duration::from_secs(7);
/// A request's time when no leader is known: long enough for an election, and no longer. etcd lets clients wait.
const PATIENCE_WITHOUT_LEADER: Duration = Duration::from_millis(1500);

/// Largest message that is read. Source: etcd, 1.5 MiB of request and 512 KiB around it.
const MESSAGE_MAX: usize = crate::kv::MAX_REQUEST_BYTES + 512 * 1024;

/// What etcd's clients talk to. Cheap to clone.
#[derive(Clone)]
pub struct Etcd {
    store: Store,
    guard: Arc<Guard>,
    cluster_id: u64,
    quota: u64,
    /// How the members' main ports are spoken to: `http` or `https`.
    scheme: &'static str,
    closing: CancellationToken,
    tokens: Arc<Tokens>,
    passwords: Passwords,
    traffic: Arc<Traffic>,
    acknowledged: Arc<Acknowledged>,
}

/// Whether a command can make the store larger.
fn adds(command: &Command) -> bool {
    match command {
        Command::Put(_) | Command::LeaseGrant { .. } => true,
        Command::As { command, .. } | Command::ByToken { command, .. } => adds(command),
        Command::Many(commands) => commands.iter().any(adds),
        Command::Txn(txn) => puts(txn),
        Command::DeleteRange(_)
        | Command::Compact { .. }
        | Command::LeaseRevoke { .. }
        | Command::LeasesExpire { .. }
        | Command::Auth(_) => false,
    }
}

fn puts(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match op {
        RequestOp::Put(_) => true,
        RequestOp::Txn(inner) => puts(inner),
        RequestOp::Empty | RequestOp::Range(_) | RequestOp::DeleteRange(_) => false,
    })
}

impl Etcd {
    /// The API over a store. `record_open` lets clients ask for a failover and edit the configuration through their
    /// keys; to be false where REST asks for a password, which this API cannot. Streams end when `closing` is
    /// cancelled. Above `quota` bytes of data clients can only delete: howdah's own record must always find room.
    pub fn new(
        store: Store,
        cluster: &ClusterName,
        space: KeySpace,
        record_open: bool,
        quota: u64,
        scheme: &'static str,
        closing: CancellationToken,
    ) -> Self {
        let digest = Sha256::digest(cluster.as_str().as_bytes());
        let cluster_id = digest.iter().take(8).fold(0, |id: u64, byte| id << 8 | u64::from(*byte)).max(1);
        let guard = Arc::new(Guard::new(space, record_open));
        let (tokens, passwords, traffic) = (Arc::default(), Passwords::default(), Arc::default());
        let acknowledged = Arc::default();
        Self { store, guard, cluster_id, quota, scheme, closing, tokens, passwords, traffic, acknowledged }
    }

    /// What the main port serves: gRPC, the JSON gateway and `/version`.
    pub fn main_port(&self) -> Router {
        self.grpc().merge(gateway::routes(self.clone())).merge(http::version_route())
    }

    /// What a listener of etcd's own serves: all that, and etcd's health checks and metrics, whose paths mean
    /// something else on the main port.
    pub fn listener(&self) -> Router {
        self.main_port().merge(http::probe_routes(self.clone())).fallback(http::not_found)
    }

    fn grpc(&self) -> Router {
        let me = || self.clone();
        Router::new()
            .route_service(
                "/etcdserverpb.KV/{*method}",
                KvServer::new(me()).max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(usize::MAX),
            )
            .route_service(
                "/etcdserverpb.Watch/{*method}",
                WatchServer::new(me()).max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(usize::MAX),
            )
            .route_service("/etcdserverpb.Lease/{*method}", LeaseServer::new(me()))
            .route_service("/etcdserverpb.Cluster/{*method}", ClusterServer::new(me()))
            .route_service("/etcdserverpb.Maintenance/{*method}", MaintenanceServer::new(me()))
            .route_service("/etcdserverpb.Auth/{*method}", AuthServer::new(me()))
            .route_service("/v3lockpb.Lock/{*method}", LockServer::new(me()))
            .route_service("/v3electionpb.Election/{*method}", ElectionServer::new(me()))
            .route_service("/grpc.health.v1.Health/{*method}", HealthServer::new(me()))
            .layer(axum::middleware::from_fn_with_state(me(), traffic::layer))
    }

    /// The header of an answer, at a revision of the store. Zero leaves the revision out.
    fn header_at(&self, revision: i64) -> ResponseHeader {
        let vitals = self.store.vitals();
        ResponseHeader { cluster_id: self.cluster_id, member_id: vitals.id, revision, raft_term: vitals.term }
    }

    /// The header of an answer at the store's present revision.
    fn header(&self) -> ResponseHeader {
        self.header_at(self.revision())
    }

    fn revision(&self) -> i64 {
        self.store.read(crate::kv::State::revision)
    }

    /// Whether the data has outgrown the quota. Not an alarm that a person must clear, as etcd's: it ends when keys
    /// are deleted and forgotten.
    fn is_full(&self) -> bool {
        self.quota < self.store.read(crate::kv::State::size_bytes)
    }

    fn patience(&self) -> Duration {
        if self.store.vitals().has_leader { PATIENCE } else { PATIENCE_WITHOUT_LEADER }
    }

    /// Refuses a command that is wrong in itself, then one that is not this client's to give, then one that is not any
    /// client's to give: in etcd's order.
    fn allow(&self, caller: &Caller, command: &Command) -> Result<(), Status> {
        self.store.read(|state| {
            state.check(command).map_err(|refusal| error::rejected(&refusal))?;
            state.permits(&caller.user, command).map_err(|refusal| error::rejected(&refusal))?;
            self.guard.change(command, state)
        })
    }

    /// A range, as the store has it now, for who may read it.
    fn read_range(&self, caller: &Caller, range: &RangeRequest) -> Result<RangeResponse, Status> {
        self.guard.range(range)?;
        let result = self.store.read(|state| {
            let mut response = state.range(range)?;
            state.auth().permits_read(&caller.user, &range.key, &range.range_end)?;
            self.guard.hide(range, &mut response, state);
            Ok(response)
        });
        result.map_err(|refusal| error::rejected(&refusal))
    }

    /// A change, when the caller may make it and the guard lets it through.
    async fn change(&self, caller: &Caller, command: Command) -> Result<Response, Status> {
        self.allow(caller, &command)?;
        if adds(&command) && self.is_full() && self.linearize().await.is_ok() && self.is_full() {
            return Err(Status::resource_exhausted("etcdserver: mvcc: database space exceeded"));
        }
        // In the caller's name, because it may lose the permission, or its name, before this is applied.
        let compacts = if let Command::Compact { revision } = command { Some(revision) } else { None };
        let command = caller.give(command);
        let response = self.store.propose_together(command, self.patience()).await;
        let response = response.map_err(|failure| error::status(&failure))?;
        match &response {
            Response::Put(put) => self.acknowledged.keys(put.revision),
            Response::DeleteRange(delete) => self.acknowledged.keys(delete.revision),
            Response::Txn(txn) => self.acknowledged.keys(txn.revision),
            Response::LeaseRevoke { revision } => self.acknowledged.keys(*revision),
            Response::Compact { .. } => compacts.into_iter().for_each(|revision| self.acknowledged.compacted(revision)),
            // Nothing in the answer tells when this node has it; it happens rarely.
            Response::Auth { .. } => drop(tokio::time::timeout(CATCH_UP, self.linearize()).await),
            Response::LeaseGrant { .. } | Response::LeasesExpire { .. } | Response::Many(_) => {}
        }
        Ok(response)
    }

    /// After this, local reads see everything that was acknowledged before.
    async fn linearize(&self) -> Result<(), Status> {
        let _seen = self.store.linearize(self.patience()).await.map_err(|failure| error::status(&failure))?;
        Ok(())
    }

    /// Refuses when the request insists on a leader and none is known.
    ///
    /// Source: etcd, metadata `hasleader` (clientv3 `WithRequireLeader`).
    fn require_leader(&self, metadata: &tonic::metadata::MetadataMap) -> Result<bool, Status> {
        let required = metadata.get("hasleader").is_some_and(|value| value == "true");
        if required && !self.store.vitals().has_leader {
            return Err(error::no_leader());
        }
        Ok(required)
    }
}
