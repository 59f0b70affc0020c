//! Keeps the routes: what the record says, as long as a majority confirms it.
//!
//! ```text
//! record changes ----+
//! majority answers --+-> Routes (published when they differ) -> sessions: go on, drain, reset; held clients: connect
//! ttl without one ---+
//! ```
//! A confirmation counts from the moment *before* it was asked for, on the clock that counts suspension. Without one
//! for longer than `ttl` the leadership may have passed on unseen: sessions that write are reset and new ones wait.
//! The gate says the same to a session that is about to forward bytes, so that a router that was frozen forwards
//! nothing before it has asked again. Source: design sections 1 (P1) and 5.3 (a).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::Port;
use super::backends::Backends;
use super::target::{self, Cause, Target};
use crate::cluster::ClusterRecord;
use crate::config::ClusterSettings;
use crate::telemetry::clock;
use crate::types::{ByteSize, Mono, NodeName, Term};

/// Pause after a confirmation that failed.
const RETRY: Duration = Duration::from_millis(50);

/// Asks a majority of the members; true when one has answered and the published record is not older than the question.
pub type Confirm = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync>;

/// A question on its way: when it was asked, and whether a majority has answered.
type Asking = Pin<Box<dyn Future<Output = (Mono, bool)> + Send>>;

/// Where the router knows from who leads.
#[derive(Clone)]
pub struct Source {
    /// The record, each time it changes.
    pub record: watch::Receiver<Arc<ClusterRecord>>,
    /// Whether it still holds.
    pub confirm: Confirm,
}

/// What a session depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bond {
    /// It may write, in this term alone.
    Term(Term),
    /// It reads, as long as this member does not lead.
    Replica(NodeName),
}

/// What becomes of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nothing.
    GoOn,
    /// It ends at the next boundary.
    Drain,
    /// It ends now, politely if it is at a boundary.
    End,
    /// It is cut off.
    Reset,
}

/// Where connections go now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routes {
    /// Who may be written to.
    pub write: Result<Target, Cause>,
    /// The confirmed term.
    pub term: Option<Term>,
    /// Who holds the leader key, confirmed or not.
    pub leader: Option<NodeName>,
    /// Whether the leader stops in good order.
    pub handing_over: bool,
    /// Who may be read from.
    pub replicas: Vec<Target>,
    /// Whether the router itself stops.
    pub stopping: bool,
}

impl Routes {
    /// Nothing is known yet.
    pub fn unknown() -> Self {
        let write = Err(Cause::NoLeader);
        Self { write, term: None, leader: None, handing_over: false, replicas: Vec::new(), stopping: false }
    }

    /// What becomes of a session with this bond.
    pub fn fate(&self, bond: &Bond) -> Fate {
        let ends = match bond {
            Bond::Term(term) => self.term != Some(*term),
            Bond::Replica(name) => self.leader.as_ref() == Some(name),
        };
        match bond {
            _ if ends => Fate::Reset,
            _ if self.stopping => Fate::End,
            Bond::Term(_) if self.handing_over => Fate::Drain,
            Bond::Term(_) | Bond::Replica(_) => Fate::GoOn,
        }
    }
}

/// Until when sessions that write may forward anything.
#[derive(Debug, Default)]
pub struct Gate(AtomicU64);

impl Gate {
    /// Whether it is open now.
    pub fn is_open(&self) -> bool {
        clock::now() < Mono(self.0.load(Ordering::Acquire))
    }

    fn set(&self, until: Mono) {
        self.0.store(until.0, Ordering::Release);
    }
}

/// The task that keeps the routes.
pub struct Keeper {
    source: Source,
    routes: watch::Sender<Arc<Routes>>,
    gate: Arc<Gate>,
    primary: Arc<Port>,
    maximum_lag: Option<ByteSize>,
    ttl: Duration,
    loop_wait: Duration,
    /// The newest term whose promotion was seen to be finished.
    established: Option<Term>,
    confirmed: Option<(Term, Mono)>,
    /// To whom clients were last said to go.
    told: Option<(Term, NodeName)>,
}

impl Keeper {
    /// A keeper that publishes to `routes`. `settings` hold until the record has some.
    pub fn new(
        source: Source,
        routes: watch::Sender<Arc<Routes>>,
        gate: Arc<Gate>,
        primary: Arc<Port>,
        maximum_lag: Option<ByteSize>,
        settings: &ClusterSettings,
    ) -> Self {
        let (ttl, loop_wait) = (settings.ttl, settings.loop_wait);
        let (established, confirmed, told) = (None, None, None);
        Self { source, routes, gate, primary, maximum_lag, ttl, loop_wait, established, confirmed, told }
    }

    /// Runs until `shutdown`, or until the node is gone.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut asking: Option<Asking> = None;
        let mut ask_at = clock::now();
        let mut newest = None;
        loop {
            let record = self.source.record.borrow_and_update().clone();
            let now = clock::now();
            self.follow(&record, now);
            if record.term() != newest {
                // Held clients wait for this word.
                newest = record.term();
                ask_at = now;
            }
            if asking.is_none() && ask_at <= now {
                let confirm = Arc::clone(&self.source.confirm);
                asking = Some(Box::pin(async move { (now, confirm().await) }));
            }
            let expiry = self.confirmed.map(|(_, at)| at + self.ttl).filter(|at| now < *at);
            let alarm = expiry.unwrap_or(now + self.ttl).min(if asking.is_none() { ask_at } else { now + self.ttl });
            tokio::select! {
                changed = self.source.record.changed() => if changed.is_err() { return },
                (asked_at, heard) = answer(asking.as_mut()) => {
                    asking = None;
                    let record = self.source.record.borrow().clone();
                    let usable = heard && !is_damaged(&record);
                    match record.term() {
                        Some(term) if usable => self.confirmed = Some((term, asked_at)),
                        Some(_) | None => (),
                    }
                    ask_at = if usable { asked_at + self.loop_wait } else { clock::now() + RETRY };
                }
                () = tokio::time::sleep(alarm.since(clock::now())) => (),
                () = shutdown.cancelled() => {
                    self.routes.send_modify(|routes| Arc::make_mut(routes).stopping = true);
                    return;
                }
            }
        }
    }

    /// Publishes what the record and the last confirmation come to at `now`.
    fn follow(&mut self, record: &ClusterRecord, now: Mono) {
        if let Some(config) = &record.config
            && let Ok((settings, _)) = ClusterSettings::parse(&config.value)
        {
            (self.ttl, self.loop_wait) = (settings.ttl, settings.loop_wait);
        }
        let open_until = |confirmed: Option<(Term, Mono)>| confirmed.map_or(Mono(0), |(_, at)| at + self.ttl);
        let mut routes = if is_damaged(record) {
            // Unreadable is not absent: what was known holds until its confirmation has run out.
            Routes::clone(&self.routes.borrow())
        } else {
            if target::is_established(record) {
                self.established = record.term();
            }
            Routes {
                write: target::write_target(record, self.established),
                term: record.term(),
                leader: record.leader.as_ref().map(|leader| leader.value.clone()),
                handing_over: target::is_handing_over(record),
                replicas: target::replica_targets(record, self.maximum_lag),
                stopping: false,
            }
        };
        let confirmed = self.confirmed.filter(|(term, at)| Some(*term) == routes.term && now < *at + self.ttl);
        self.gate.set(open_until(confirmed));
        if confirmed.is_none() && routes.term.is_some() {
            routes.term = None;
            routes.write = Err(Cause::Unconfirmed { ttl: self.ttl });
        }
        if *self.routes.borrow().as_ref() != routes {
            self.tell(&routes);
            self.routes.send_replace(Arc::new(routes));
        }
    }

    /// One line when clients that write go somewhere else, or when their sessions end.
    fn tell(&mut self, routes: &Routes) {
        if let Some((term, leader)) = &self.told
            && routes.term != Some(*term)
        {
            let sessions = self.primary.backends.sessions(leader);
            let reason = match &routes.write {
                Err(cause) => cause.to_string(),
                Ok(target) => format!("{} leads", target.name),
            };
            if 0 < sessions {
                info!(%leader, term = term.0, sessions, %reason, "router: resetting sessions of an ended term");
            }
            self.told = None;
        }
        if let (Ok(target), Some(term)) = (&routes.write, routes.term)
            && self.told.as_ref().is_none_or(|(told, _)| *told != term)
        {
            info!(leader = %target.name, term = term.0, "router: clients that write go to the primary of this term");
            self.told = Some((term, target.name.clone()));
        }
        if routes.handing_over && !self.routes.borrow().handing_over {
            let sessions =
                routes.leader.as_ref().map_or(0, |leader| Backends::sessions(&self.primary.backends, leader));
            let leader = routes.leader.as_ref().map_or("", NodeName::as_str);
            info!(leader, sessions, "router: the primary hands over: holding new connections, ending idle sessions");
        }
    }
}

/// Whether the leader key has a value that cannot be understood.
fn is_damaged(record: &ClusterRecord) -> bool {
    record.leader.is_none() && record.damaged.keys().any(|key| key.ends_with("/leader"))
}

async fn answer(asking: Option<&mut Asking>) -> (Mono, bool) {
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
