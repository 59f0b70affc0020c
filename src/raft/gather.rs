//! Changes that arrive while others are on their way to the disks travel together, as one entry of the log.
//!
//! ```text
//!   propose --+                      +--> one entry: [a]           an idle leader waits for nobody
//!   propose --+--> queue --> drain --+
//!   propose --+                      +--> one entry: [b c d ...]   what came meanwhile
//! ```
//! An entry costs the engine, the disks and the network about the same whether it holds one command or a hundred.
//! Each command is still checked, applied and answered by itself, with a revision of its own: decision record 0008.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::error::StoreError;
use super::handle::{Again, call_leader};
use super::leader::{Served, left, write_error};
use super::node::Node;
use super::types::{Proposal, Reply};
use super::wire::{ClientError, ClientRequest, ClientResponse};
use crate::kv::command::{Command, Response};
use crate::telemetry::clock;
use crate::types::Mono;

/// Commands and bytes of one entry. A larger command travels alone.
const COMMANDS: usize = 512;
const BYTES: usize = 256 * 1024;
/// What an answer that comes in time may need to get here.
const GRACE: Duration = Duration::from_millis(200);
/// Commands that may wait.
const WAITING: usize = 8192;

struct Waiting {
    proposal: Proposal,
    until: Mono,
    answer: oneshot::Sender<Served>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    draining: usize,
}

/// Where commands go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Into this leader's log.
    Log,
    /// To the leader, wherever it is.
    Leader,
}

impl Way {
    /// Batches that may be under way at a time. Measured with 64 and 256 clients: a second entry on its way to the disks
    /// only makes both smaller; what goes to another leader is gathered there again and had better not wait here.
    const fn batches(self) -> usize {
        match self {
            Way::Log => 1,
            Way::Leader => 64,
        }
    }
}

/// The commands that wait for their turn on one way.
pub struct Gatherer {
    way: Way,
    queue: Mutex<Queue>,
}

/// One of those that write what waits. Counts itself off if it ends before its work does.
struct Draining {
    node: Arc<Node>,
    way: Way,
    counted: bool,
}

impl Drop for Draining {
    fn drop(&mut self) {
        if self.counted {
            self.node.gatherer(self.way).queue().draining -= 1;
        }
    }
}

fn unknown() -> ClientError {
    ClientError::Store(StoreError::Timeout { maybe_applied: true })
}

impl Gatherer {
    /// Nothing waits.
    pub fn new(way: Way) -> Self {
        Self { way, queue: Mutex::default() }
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Proposes together with others; answers when it is applied by the leader.
    pub async fn propose(&self, node: &Arc<Node>, proposal: Proposal, until: Mono) -> Served {
        let (answer, answered) = oneshot::channel();
        let starts = {
            let mut queue = self.queue();
            if queue.waiting.len() >= WAITING {
                return Err(ClientError::Store(StoreError::Timeout { maybe_applied: false }));
            }
            queue.waiting.push_back(Waiting { proposal, until, answer });
            let starts = queue.draining < self.way.batches();
            queue.draining += usize::from(starts);
            starts
        };
        if starts {
            // In the node's runtime: that of some caller may end before the others' commands are through.
            node.runtime.spawn(drain(Draining { node: Arc::clone(node), way: self.way, counted: true }));
        }
        // Who writes knows better whether it was proposed, and gives up at the same time.
        match timeout(left(until) + GRACE, answered).await {
            Ok(Ok(served)) => served,
            Ok(Err(_)) | Err(_) => Err(unknown()),
        }
    }

    /// Those that travel together next; if there are none the asker is counted off, in the same moment: who comes
    /// after that starts another one.
    fn next(&self, asker: &mut bool) -> Vec<Waiting> {
        let mut queue = self.queue();
        if queue.waiting.is_empty() {
            queue.draining -= 1;
            *asker = false;
        }
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(first) = queue.waiting.front() {
            bytes += first.proposal.0.size();
            if !batch.is_empty() && (bytes > BYTES || batch.len() >= COMMANDS) {
                break;
            }
            batch.extend(queue.waiting.pop_front());
        }
        batch
    }
}

async fn drain(mut draining: Draining) {
    while draining.counted {
        let mut batch = draining.node.gatherer(draining.way).next(&mut draining.counted);
        // Nobody waits for these any more, and nothing of them was proposed.
        let now = clock::now();
        batch.retain(|waiting| now < waiting.until && !waiting.answer.is_closed());
        match draining.way {
            Way::Log => write(&draining.node, Way::Log, batch).await,
            Way::Leader => {
                // A leader that is frozen must hold up nobody who comes after there is another one.
                let mut leaders = draining.node.leader_name.subscribe();
                let node = Arc::clone(&draining.node);
                let mut writing = draining.node.runtime.spawn(async move { write(&node, Way::Leader, batch).await });
                tokio::select! {
                    // A panic has ended the process.
                    _ = &mut writing => {}
                    _ = leaders.changed() => {}
                }
            }
        }
    }
}

/// Boxed, because the leader may be this node: what it does there ends in this module again.
fn ask_leader(node: Arc<Node>, proposal: Proposal, until: Mono) -> BoxFuture<'static, Served> {
    Box::pin(async move {
        let request = ClientRequest::Propose(proposal);
        call_leader(&node, request, left(until), Again::IfUnsent).await.map_err(ClientError::Store)
    })
}

/// Sends one command, or several as one.
async fn send(node: &Arc<Node>, way: Way, proposal: Proposal, until: Mono) -> Served {
    if way == Way::Leader {
        return ask_leader(Arc::clone(node), proposal, until).await;
    }
    let Some(raft) = node.raft() else { return Err(ClientError::NotLeader) };
    match timeout(left(until), raft.client_write(proposal)).await {
        Ok(Ok(written)) => Ok(ClientResponse::Applied(written.data)),
        Ok(Err(error)) => Err(write_error(&error).unwrap_or_else(unknown)),
        Err(_) => Err(unknown()),
    }
}

/// Several commands are one with several answers, also when some of them are several themselves.
fn together(proposals: Vec<Proposal>) -> Command {
    let mut commands = Vec::with_capacity(proposals.len());
    for proposal in proposals {
        match Arc::unwrap_or_clone(proposal.0) {
            Command::Many(several) => commands.extend(several),
            single => commands.push(single),
        }
    }
    Command::Many(commands)
}

async fn write(node: &Arc<Node>, way: Way, batch: Vec<Waiting>) {
    let Some(until) = batch.iter().map(|waiting| waiting.until).max() else { return };
    let (mut proposals, answers): (Vec<Proposal>, Vec<_>) =
        batch.into_iter().map(|waiting| (waiting.proposal, waiting.answer)).unzip();
    if proposals.len() == 1
        && let Some(alone) = proposals.pop()
    {
        let served = send(node, way, alone, until).await;
        return answers.into_iter().for_each(|answer| drop(answer.send(served.clone())));
    }
    let counts: Vec<Option<usize>> = proposals
        .iter()
        .map(|proposal| if let Command::Many(several) = &*proposal.0 { Some(several.len()) } else { None })
        .collect();
    let served = send(node, way, Proposal::new(together(proposals)), until).await;
    let Ok(ClientResponse::Applied(Reply::Done(Ok(Response::Many(outcomes))))) = served else {
        return answers.into_iter().for_each(|answer| drop(answer.send(served.clone())));
    };
    let mut outcomes = outcomes.into_iter();
    for (answer, count) in answers.into_iter().zip(counts) {
        let reply = match count {
            Some(count) => Some(Ok(Response::Many(outcomes.by_ref().take(count).collect()))),
            None => outcomes.next(),
        };
        if let Some(outcome) = reply {
            let _ = answer.send(Ok(ClientResponse::Applied(Reply::Done(outcome))));
        }
    }
}
