//! Several writers that never stop, and a book of every write that was acknowledged to one of them.
//!
//! ```text
//! direct-nX   one per node, talks to this node alone, role or no role: sees two primaries if there are two
//! follower-X  goes where libpq's multi-host search with target_session_attrs=read-write would go
//! ambush-X    idle connections to one node that all write on command, for example into a frozen node
//! ```
//! An attempt gets a new number every time, about every 10 ms, and counts as acknowledged only after the
//! commit has returned. Everything is on the clock that the product uses too. Deliberately absent:
//! retries. A write that failed may still be there later; it is counted as unconfirmed, never as lost.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use howdah::telemetry::clock;
use howdah::types::Mono;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{Client, Config, NoTls, Statement};

use crate::cluster::{Cluster, LIMIT};
use crate::report::{Ack, Failure, Id, Report, first_write};

/// Pause between two attempts of one writer.
const PACE: Duration = Duration::from_millis(10);
/// Pause after a connection that failed.
const RETRY: Duration = Duration::from_millis(40);
/// Longest wait for a connection, start-up and authentication included, to one host.
const CONNECT: Duration = Duration::from_millis(1500);
/// A follower's patience with one statement. Direct writers have more: they must see *late* acks.
const FOLLOWER_STATEMENT: Duration = Duration::from_millis(1500);
/// A direct writer's patience with one statement.
const DIRECT_STATEMENT: Duration = Duration::from_secs(120);
/// Followers by multi-host search.
const FOLLOWERS: usize = 2;

/// Without a key: a row that is there twice must show.
pub const CREATE: &str = "create table if not exists ledger (writer text not null, seq bigint not null)";

static RUNS: AtomicU32 = AtomicU32::new(1);

#[derive(Default)]
struct Book {
    acks: Mutex<Vec<Ack>>,
    failures: Mutex<Vec<Failure>>,
    stop: AtomicBool,
}

/// A connection that is ready to write.
struct Line {
    client: Client,
    insert: Statement,
    node: String,
}

/// The writers of one run, and what they were told so far.
pub struct Ledger {
    run: u32,
    hosts: BTreeMap<String, Config>,
    book: Arc<Book>,
    writers: Vec<JoinHandle<()>>,
    ambush: Vec<Line>,
    // Last: its threads must outlive the writers.
    runtime: Runtime,
}

impl Ledger {
    /// Starts the writers, and returns when every follower and the primary's direct writer write.
    pub fn start(cluster: &Cluster) -> Self {
        Self::start_on(cluster, &cluster.expect_primary())
    }

    /// As [`Ledger::start`], with `primary` known to the caller.
    pub fn start_on(cluster: &Cluster, primary: &str) -> Self {
        Self::start_with(cluster, primary, FOLLOWERS)
    }

    /// As [`Ledger::start_on`], with so many followers.
    pub fn start_with(cluster: &Cluster, primary: &str, followers: usize) -> Self {
        cluster.sql(primary, CREATE).expect("create the ledger's table");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let hosts = cluster.names().into_iter().map(|name| {
            let mut config = cluster.connection(&name);
            config.options("-c statement_timeout=1000").connect_timeout(CONNECT);
            (name, config)
        });
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let mut ledger = Self {
            run,
            hosts: hosts.collect(),
            book: Arc::default(),
            writers: Vec::new(),
            ambush: Vec::new(),
            runtime,
        };
        ledger.hire(cluster, primary, followers);
        ledger
    }

    fn hire(&mut self, cluster: &Cluster, primary: &str, followers: usize) {
        let started = clock::now();
        for name in self.hosts.keys() {
            let writer = format!("r{}/direct-{name}", self.run);
            let hosts = BTreeMap::from([(name.clone(), self.hosts[name].clone())]);
            let task = write_on(writer, hosts, DIRECT_STATEMENT, Arc::clone(&self.book));
            self.writers.push(self.runtime.spawn(task));
        }
        let mut read_write = self.hosts.clone();
        for config in read_write.values_mut() {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        let followers: Vec<String> = (1..=followers).map(|i| format!("r{}/follower-{i}", self.run)).collect();
        for writer in &followers {
            let task = write_on(writer.clone(), read_write.clone(), FOLLOWER_STATEMENT, Arc::clone(&self.book));
            self.writers.push(self.runtime.spawn(task));
        }
        cluster.until("all writers write", LIMIT, |_| {
            let acks = self.acks();
            first_write(&acks, primary, started).is_some()
                && followers.iter().all(|writer| acks.iter().any(|ack| ack.id.0 == *writer))
        });
    }

    fn acks(&self) -> std::sync::MutexGuard<'_, Vec<Ack>> {
        self.book.acks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many writes sent after `since` a node has acknowledged.
    pub fn acks_on(&self, node: &str, since: Mono) -> usize {
        self.acks().iter().filter(|ack| ack.node == node && ack.sent > since).count()
    }

    /// How many writes sent after `since` any node has acknowledged to followers.
    pub fn follower_acks(&self, since: Mono) -> usize {
        self.acks().iter().filter(|ack| ack.id.0.contains("follower") && ack.sent > since).count()
    }

    /// How many attempts on a node have failed since.
    #[allow(dead_code)] // not every program that includes this file needs it
    pub fn failures_on(&self, node: &str, since: Mono) -> usize {
        let failures = self.book.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.iter().filter(|failure| failure.node == node && since < failure.at).count()
    }

    /// The node, other than `old`, that has acknowledged a direct write sent after `since`.
    pub fn successor(&self, old: &str, since: Mono) -> Option<String> {
        let acks = self.acks();
        self.hosts.keys().find(|name| *name != old && first_write(&acks, name, since).is_some()).cloned()
    }

    /// Opens idle connections to a node, to be used by [`Ledger::fire`].
    pub fn arm(&mut self, node: &str, count: usize) {
        let config = self.hosts[node].clone();
        for _ in 0..count {
            let line = self.runtime.block_on(async { tokio::time::timeout(CONNECT, open(node, &config)).await });
            self.ambush.push(line.expect("a connection in time").expect("a connection"));
        }
    }

    /// Sends one write on every idle connection of [`Ledger::arm`]; answers are booked when they come.
    /// Returns when the writes have been handed to the kernel.
    pub fn fire(&mut self) {
        let sent = Arc::new(AtomicU32::new(0));
        let count = self.ambush.len();
        for (number, line) in self.ambush.drain(..).enumerate() {
            let (writer, book, sent) =
                (format!("r{}/ambush-direct-{number}", self.run), Arc::clone(&self.book), Arc::clone(&sent));
            self.writers.push(self.runtime.spawn(async move {
                let write = write_once(&line, (writer, 1), DIRECT_STATEMENT, &book);
                tokio::pin!(write);
                // The first poll hands the message to the connection's task, which runs on its own.
                let first = futures_util::poll!(&mut write);
                sent.fetch_add(1, Ordering::Release);
                if first.is_pending() {
                    write.await;
                }
            }));
        }
        let deadline = clock::now() + LIMIT;
        while usize::try_from(sent.load(Ordering::Acquire)).unwrap_or(0) < count {
            assert!(clock::now() < deadline, "the writes were never sent");
            std::thread::sleep(Duration::from_millis(1));
        }
        // The connections' tasks share the runtime: one round trip through it lets them write.
        self.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(50)).await });
    }

    /// Lets the writers go on until followers were acknowledged `count` more writes.
    pub fn until_more(&self, cluster: &Cluster, count: usize) {
        let from = clock::now();
        cluster.until("the followers write", LIMIT, |_| self.follower_acks(from) >= count);
    }

    /// Stops the writers and compares their acks with the rows of the present primary.
    pub fn finish(self, cluster: &Cluster) -> Report {
        cluster.until("there is a primary to read the ledger from", LIMIT, |c| c.primary().is_some());
        let primary = cluster.expect_primary();
        self.finish_on(&primary)
    }

    /// As [`Ledger::finish`], with `primary` known to the caller.
    pub fn finish_on(mut self, primary: &str) -> Report {
        self.book.stop.store(true, Ordering::Release);
        let writers = std::mem::take(&mut self.writers);
        self.runtime.block_on(async {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
            for writer in writers {
                // One that hangs on a frozen node has nothing more to tell.
                let abort = writer.abort_handle();
                if tokio::time::timeout_at(deadline, writer).await.is_err() {
                    abort.abort();
                }
            }
        });
        let rows = self.runtime.block_on(rows(&self.hosts[primary], self.run));
        let acks = std::mem::take(&mut *self.acks());
        let failures = std::mem::take(&mut *self.book.failures.lock().unwrap_or_else(PoisonError::into_inner));
        Report::new(acks, failures, &rows)
    }
}

/// Writes until told to stop, on one connection after another, each to the first host that takes it.
async fn write_on(writer: String, hosts: BTreeMap<String, Config>, patience: Duration, book: Arc<Book>) {
    let follower = hosts.len() > 1;
    let mut seq = 0;
    let mut line: Option<Line> = None;
    while !book.stop.load(Ordering::Acquire) {
        let current = match line.take() {
            Some(current) => current,
            None => match search(&hosts).await {
                Some(found) => found,
                None => {
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            },
        };
        seq += 1;
        let usable = write_once(&current, (writer.clone(), seq), patience, &book).await;
        // A follower looks for the primary anew after any error; a direct writer stays while it can.
        if usable == Usable::Yes || (usable == Usable::Refused && !follower) {
            line = Some(current);
        }
        tokio::time::sleep(PACE).await;
    }
}

/// Tries each host in order, each with its own patience, as libpq does.
async fn search(hosts: &BTreeMap<String, Config>) -> Option<Line> {
    for (node, config) in hosts {
        if let Ok(Ok(line)) = tokio::time::timeout(CONNECT, open(node, config)).await {
            return Some(line);
        }
    }
    None
}

async fn open(node: &str, config: &Config) -> Result<Line, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    let insert = client.prepare("insert into ledger (writer, seq) values ($1, $2)").await?;
    Ok(Line { client, insert, node: node.to_owned() })
}

/// What a connection is good for after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Usable {
    /// It wrote.
    Yes,
    /// The server said no, and stayed.
    Refused,
    /// It is broken, or hangs.
    No,
}

async fn write_once(line: &Line, id: Id, patience: Duration, book: &Book) -> Usable {
    let sent = clock::now();
    let answer = {
        let (writer, seq) = (&id.0, &id.1);
        tokio::time::timeout(patience, line.client.execute(&line.insert, &[writer, seq])).await
    };
    let at = clock::now();
    let node = line.node.clone();
    let (why, usable) = match answer {
        Ok(Ok(_)) => {
            let ack = Ack { id, node, sent, received: at };
            book.acks.lock().unwrap_or_else(PoisonError::into_inner).push(ack);
            return Usable::Yes;
        }
        Ok(Err(error)) => match error.code() {
            Some(code) if !line.client.is_closed() => (code.code().to_owned(), Usable::Refused),
            Some(code) => (code.code().to_owned(), Usable::No),
            None => (format!("connection lost: {error}"), Usable::No),
        },
        Err(_) => (format!("no answer within {patience:?}"), Usable::No),
    };
    book.failures.lock().unwrap_or_else(PoisonError::into_inner).push(Failure { id, node, at, why });
    usable
}

async fn rows(config: &Config, run: u32) -> Vec<Id> {
    let mut config = config.clone();
    config.options("");
    let read = async {
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        client.query("select writer, seq from ledger where writer like $1", &[&format!("r{run}/%")]).await
    };
    let rows = tokio::time::timeout(LIMIT, read).await.expect("the ledger is read in time").expect("read the ledger");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}
