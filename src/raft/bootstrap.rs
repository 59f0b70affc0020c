//! Opening a store, and how an empty one becomes part of a cluster: forming it, or joining it.
//!
//! ```text
//!             all configured members are as empty as this one
//!   (empty) ------------------------------------------------> Forming --+-> Member
//!      |                                        all are Forming, or one  |
//!      |  one of them has a store                already went ahead      |
//!      +-----------------------> Joining (random id) -- is a voter ------+
//! ```
//!
//! Forming is a promise on disk: "I am empty, and I will form exactly this cluster under my founding
//! id". A node forms only when every configured member has promised, so a node that lost its disk
//! cannot form a second cluster beside the one it belonged to: the others' stores are not empty. And
//! a founding id is used only by a node that has its own promise, so it never comes back empty.
//!
//! Absent on purpose: any decision without hearing every configured member. When one is missing, the
//! node waits and says who. Starting from what is left is `force.rs`, and a person's decision.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::errors::{InitializeError, RaftError};
use tokio::time::sleep;

use super::FatalHook;
use super::auth::Local;
use super::codec;
use super::confirm::{self, Confirmer};
use super::disk::{Contents, Disk, Fact};
use super::error::{Error, StoreError};
use super::handle::{Again, StoreConfig, call_leader};
use super::identity::{Identity, Stage, founding_id, random_id, show};
use super::lease_clock;
use super::link::Presence;
use super::log::LogStore;
use super::machine::Machine;
use super::node::{Node, Parts};
use super::snapshot::Snapshots;
use super::tally::Tally;
use super::types::Member;
use super::wire::{Class, ClientError, ClientRequest, ClientResponse, Formation, NodeState, Request, Response};
use crate::telemetry::clock;
use crate::types::{Mono, NodeName};

const ROUND: Duration = Duration::from_millis(200);
const ASK: Duration = Duration::from_secs(1);
const JOIN: Duration = Duration::from_secs(5);
/// The same reason for waiting is logged once in this time.
const LOG_EVERY: Duration = Duration::from_secs(5);
/// More entries between snapshots would not fit into the log's ring with what must stay beside them.
const SNAPSHOT_AFTER_MAX: u64 = 6_000;

fn check(config: &StoreConfig) -> Result<(), Error> {
    let wrong = |why: String| Err(Error::Config { why });
    if config.secret.expose().len() < 8 {
        return wrong("the cluster's secret must have at least 8 characters".to_owned());
    }
    if config.heartbeat.is_zero() || config.heartbeat * 3 > config.election_min {
        return wrong("the shortest election timeout must be at least three heartbeats".to_owned());
    }
    if config.election_min >= config.election_max {
        return wrong("the longest election timeout must be longer than the shortest".to_owned());
    }
    if !(1..=SNAPSHOT_AFTER_MAX).contains(&config.snapshot_after) {
        return wrong(format!("snapshots must be taken after 1 to {SNAPSHOT_AFTER_MAX} entries"));
    }
    match config.members.get(&config.name) {
        Some(listed) if *listed != config.advertise => wrong(format!(
            "the list of members says that {} is at {listed}, but this node advertises {}",
            config.name, config.advertise
        )),
        Some(_) | None => Ok(()),
    }
}

/// Reads the identity and compares it with the configuration.
fn identity_of(config: &StoreConfig, contents: &Contents) -> Result<Option<Identity>, Error> {
    let Some(bytes) = contents.facts.get(&Fact::Identity) else {
        if contents.entries.is_empty() && !contents.facts.contains_key(&Fact::Vote) {
            return Ok(None);
        }
        return Err(damaged(config, "the node's identity is missing"));
    };
    let identity: Identity = codec::decode(bytes).map_err(|e| damaged(config, format!("identity: {e}")))?;
    if identity.name != config.name.as_str() || identity.cluster != config.cluster.as_str() {
        return Err(Error::WrongIdentity {
            path: config.data_dir.clone(),
            found_name: identity.name,
            found_cluster: identity.cluster,
            name: config.name.to_string(),
            cluster: config.cluster.to_string(),
        });
    }
    Ok(Some(identity))
}

fn damaged(config: &StoreConfig, what: impl Into<String>) -> Error {
    let dir = config.data_dir.clone();
    Error::Damaged { path: dir.join("log").join("db"), dir, what: what.into() }
}

/// Opens log and snapshots and checks that they fit together.
pub(super) fn open(config_dir: &std::path::Path, fatal: FatalHook) -> Result<(LogStore, Snapshots, Contents), Error> {
    let (disk, contents) = Disk::open(config_dir)?;
    let snapshots = Snapshots::open(config_dir)?;
    let log = LogStore::open(disk, &contents, fatal)?;
    let covered = snapshots.current().and_then(|header| header.last);
    if log.purged() > covered {
        let dir = config_dir.to_owned();
        let what = "the log begins after the newest snapshot ends".to_owned();
        return Err(Error::Damaged { path: dir.join("snapshots"), dir, what });
    }
    Ok((log, snapshots, contents))
}

/// The disk, the engine and others may all notice the same end.
fn only_once(fatal: FatalHook) -> FatalHook {
    let called = AtomicBool::new(false);
    Arc::new(move |why: &str| {
        if !called.swap(true, Ordering::AcqRel) {
            fatal(why);
        }
    })
}

/// Opens the store and starts what can be started at once.
pub async fn start(config: StoreConfig, fatal: FatalHook) -> Result<Arc<Node>, Error> {
    check(&config)?;
    let fatal = only_once(fatal);
    let (dir, hook) = (config.data_dir.clone(), Arc::clone(&fatal));
    let opened = tokio::task::spawn_blocking(move || open(&dir, hook)).await;
    let (log, snapshots, contents) = opened.map_err(|e| Error::Start { why: e.to_string() })??;
    let identity = identity_of(&config, &contents)?;
    let local =
        Local { cluster: config.cluster.to_string(), name: config.name.to_string(), identity: identity.clone() };
    let presence = Arc::new(Presence {
        secret: config.secret.clone(),
        dialer: config.dialer.clone().within(super::link::CONNECT),
        local: Mutex::new(local),
        addresses: Mutex::default(),
        tally: Tally::default(),
    });
    let (confirmer, requests) = Confirmer::new();
    let machine = Machine::new(snapshots);
    let node = Arc::new(Node::new(Parts { config, presence, log, machine, confirmer, fatal }));
    node.probe_disk().await?;
    tokio::spawn(confirm::run(Arc::downgrade(&node), requests));
    tokio::spawn(lease_clock::run(Arc::downgrade(&node)));
    // A founder that stopped between becoming a member and its first entry has only promised so far.
    let untouched = node.log.last().is_none() && node.log.vote().is_none() && node.machine.snapshot().is_none();
    match identity.map(|identity| identity.stage) {
        Some(Stage::Member) if untouched => {
            set_formation(&node, Formation::Forming);
            tokio::spawn(find_cluster(Arc::clone(&node)));
        }
        Some(Stage::Member) => {
            node.run_engine().await?;
            tokio::spawn(keep_address(Arc::clone(&node)));
        }
        Some(Stage::Joining) => {
            node.run_engine().await?;
            tokio::spawn(be_taken_in(Arc::clone(&node)));
        }
        stage @ (Some(Stage::Forming) | None) => {
            if stage.is_some() {
                set_formation(&node, Formation::Forming);
            }
            tokio::spawn(find_cluster(Arc::clone(&node)));
        }
    }
    Ok(node)
}

fn set_formation(node: &Node, formation: Formation) {
    *node.formation.lock().unwrap_or_else(PoisonError::into_inner) = formation;
}

/// What is to be done with what the configured members say.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Promise to form.
    Promise,
    /// All have promised: begin.
    Form,
    /// Another founder has begun; this node is in its membership.
    Follow,
    /// There is a cluster of this generation; ask to be taken in.
    Join(u64),
    /// Not yet, because.
    Wait(String),
}

/// Judges the answers of all other configured members; none means no answer.
fn judge(config: &StoreConfig, promised: bool, my_id: u64, answers: &BTreeMap<NodeName, Option<NodeState>>) -> Verdict {
    for state in answers.values().flatten() {
        if let Formation::Initialized(members) = &state.formation {
            if promised && members.iter().any(|(id, ..)| *id == my_id) {
                return Verdict::Follow;
            }
            // A member that has not heard of its own membership yet says nothing about the cluster.
            if !members.is_empty() {
                return Verdict::Join(state.generation);
            }
        }
    }
    if !config.members.contains_key(&config.name) {
        return Verdict::Wait("no configured member has a store yet, and this node is not among the first".to_owned());
    }
    let mine: Vec<(String, String)> = config.members.iter().map(|(n, a)| (n.to_string(), a.clone())).collect();
    let mut missing = Vec::new();
    for (name, state) in answers {
        match state {
            None => missing.push(format!("{name} does not answer")),
            Some(state) if state.configured != mine => missing.push(format!("{name} has another list of members")),
            Some(_) => {}
        }
    }
    if !missing.is_empty() {
        return Verdict::Wait(missing.join(", "));
    }
    if !promised {
        return Verdict::Promise;
    }
    let unpromised = answers.iter().find(|(_, s)| s.as_ref().is_some_and(|s| s.formation != Formation::Forming));
    match unpromised {
        Some((name, _)) => Verdict::Wait(format!("{name} has not agreed to form the cluster yet")),
        None => Verdict::Form,
    }
}

async fn ask(node: &Node, addr: &str) -> Option<NodeState> {
    let link = node.peers.link(0, addr, Class::Control);
    match link.call(&Request::State, ASK).await {
        Ok(Response::State(state)) => Some(state),
        Ok(_) | Err(_) => None,
    }
}

async fn ask_all(node: &Node) -> BTreeMap<NodeName, Option<NodeState>> {
    let others = node.config.members.iter().filter(|(name, _)| **name != node.config.name);
    let asked = others.map(|(name, addr)| async move { (name.clone(), ask(node, addr).await) });
    futures_util::future::join_all(asked).await.into_iter().collect()
}

/// Says why the node waits, now and then.
#[derive(Default)]
struct Waiting {
    logged: Option<Mono>,
}

impl Waiting {
    fn say(&mut self, what: &str, why: &str) {
        let now = clock::now();
        if self.logged.is_none_or(|at| now.since(at) >= LOG_EVERY) {
            self.logged = Some(now);
            tracing::info!(why, "raft: {what}");
        }
    }
}

/// Runs until this node has its part in a cluster.
async fn find_cluster(node: Arc<Node>) {
    let my_id = founding_id(&node.config.cluster, &node.config.name);
    let mut waiting = Waiting::default();
    while !node.stopping.is_cancelled() {
        let promised = node.identity().is_some();
        let invited = !node.invited.borrow().is_empty();
        let verdict =
            if invited { invitation(&node).await } else { judge(&node.config, promised, my_id, &ask_all(&node).await) };
        let step = match verdict {
            Verdict::Wait(why) => {
                waiting.say("waiting to form or join the cluster", &why);
                pause(&node, ROUND).await;
                continue;
            }
            Verdict::Promise => promise(&node, my_id).await.map(|()| false),
            Verdict::Form | Verdict::Follow => form(&node, verdict == Verdict::Form).await.map(|()| true),
            Verdict::Join(generation) => enter(&node, generation).await.map(|()| true),
        };
        match step {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => return (node.fatal)(&error.to_string()),
        }
    }
}

/// An operator has named members to join; the first that answers knows the generation.
async fn invitation(node: &Node) -> Verdict {
    let members = node.invited.borrow().clone();
    for (_, addr) in members {
        if let Some(state) = ask(node, &addr).await
            && matches!(&state.formation, Formation::Initialized(list) if !list.is_empty())
        {
            return Verdict::Join(state.generation);
        }
    }
    Verdict::Wait("none of the members that invited this node answers".to_owned())
}

fn identity(node: &Node, id: u64, generation: u64, stage: Stage) -> Identity {
    let name = node.config.name.to_string();
    Identity { id, name, cluster: node.config.cluster.to_string(), generation, stage }
}

async fn promise(node: &Node, my_id: u64) -> Result<(), Error> {
    node.adopt(identity(node, my_id, 0, Stage::Forming)).await?;
    set_formation(node, Formation::Forming);
    Ok(())
}

/// Starts the engine as a founder. Every founder initialises with the same membership, or follows.
async fn form(node: &Arc<Node>, initialize: bool) -> Result<(), Error> {
    let my_id = node.id();
    node.adopt(identity(node, my_id, 0, Stage::Member)).await?;
    let raft = node.run_engine().await?;
    if initialize {
        let founder = |(name, addr): (&NodeName, &String)| {
            let member = Member { name: name.to_string(), addr: addr.clone() };
            (founding_id(&node.config.cluster, name), member)
        };
        let members: BTreeMap<u64, Member> = node.config.members.iter().map(founder).collect();
        tracing::info!(members = members.len(), id = show(my_id), "raft: forming the cluster");
        match raft.initialize(members).await {
            // Not allowed: another founder was faster, its entries are here already.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(error) => return Err(Error::Start { why: error.to_string() }),
        }
    }
    tokio::spawn(keep_address(Arc::clone(node)));
    Ok(())
}

async fn enter(node: &Arc<Node>, generation: u64) -> Result<(), Error> {
    let id = random_id();
    tracing::info!(id = show(id), "raft: this node's store is empty, joining the cluster as a new member");
    node.adopt(identity(node, id, generation, Stage::Joining)).await?;
    node.run_engine().await?;
    tokio::spawn(be_taken_in(Arc::clone(node)));
    Ok(())
}

/// Asks until this node is a voter.
async fn be_taken_in(node: Arc<Node>) {
    let mut waiting = Waiting::default();
    let id = node.id();
    while !node.stopping.is_cancelled() {
        let votes = node.metrics().is_some_and(|m| m.membership_config.voter_ids().any(|voter| voter == id));
        if votes {
            break;
        }
        match ask_to_join(&node, id).await {
            Ok(ClientResponse::Joining { voter: false, waiting_for }) => {
                waiting.say("joining the cluster", &waiting_for);
            }
            Ok(_) => {}
            Err(error) => waiting.say("joining the cluster", &error.to_string()),
        }
        pause(&node, ROUND).await;
    }
    let Some(identity) = node.identity().filter(|_| !node.stopping.is_cancelled()) else { return };
    tracing::info!("raft: this node is a voting member now");
    if let Err(error) = node.adopt(Identity { stage: Stage::Member, ..identity }).await {
        (node.fatal)(&error.to_string());
    }
}

/// Asks the leader if it is known, else every configured member, one of which may be it.
async fn ask_to_join(node: &Arc<Node>, id: u64) -> Result<ClientResponse, StoreError> {
    let request = ClientRequest::Join { id, name: node.config.name.to_string(), addr: node.config.advertise.clone() };
    if node.leader().is_some() {
        return call_leader(node, request, JOIN, Again::Always).await;
    }
    let mut addresses: Vec<String> = node.invited.borrow().iter().map(|(_, addr)| addr.clone()).collect();
    addresses.extend(node.config.members.values().filter(|addr| **addr != node.config.advertise).cloned());
    // The members may have moved on since the configuration was written: ask those they know, too.
    let mut answer = Err(StoreError::NoLeader);
    let mut at = 0;
    while let Some(addr) = addresses.get(at).cloned() {
        at += 1;
        if let Some(NodeState { formation: Formation::Initialized(members), .. }) = ask(node, &addr).await {
            let more = members.into_iter().map(|(_, _, addr)| addr).filter(|a| *a != node.config.advertise);
            let new: Vec<String> = more.filter(|a| !addresses.contains(a)).collect();
            addresses.extend(new);
        }
        let link = node.peers.link(0, &addr, Class::Control);
        let budget = u64::try_from(JOIN.as_millis()).unwrap_or(u64::MAX);
        match link.call(&Request::Client(request.clone(), budget), JOIN).await {
            Ok(Response::Client(Ok(response))) => return Ok(response),
            Ok(Response::Client(Err(ClientError::Store(error)))) => answer = Err(error),
            Ok(_) | Err(_) => {}
        }
    }
    answer
}

/// Tells the leader when this node's address is not the one in the membership.
async fn keep_address(node: Arc<Node>) {
    let id = node.id();
    loop {
        let recorded = node.metrics().and_then(|m| m.membership_config.get_node(&id).map(|member| member.addr.clone()));
        let changed = match recorded {
            Some(addr) if addr == node.config.advertise => return,
            Some(_) => true,
            None => false,
        };
        if node.stopping.is_cancelled() {
            return;
        }
        if changed {
            let addr = node.config.advertise.clone();
            let asked = call_leader(&node, ClientRequest::SetAddress { id, addr }, JOIN, Again::Always).await;
            if let Err(error) = asked {
                tracing::debug!(%error, "raft: the new address is not recorded yet");
            }
        }
        pause(&node, ROUND * 5).await;
    }
}

async fn pause(node: &Node, span: Duration) {
    tokio::select! {
        () = sleep(span) => {}
        () = node.stopping.cancelled() => {}
    }
}
