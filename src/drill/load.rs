//! Writers and a reader that go on through whatever happens, and count.
//!
//! ```text
//! connect to every host at once, the first that lets in is taken -> insert (writer, number) -> acknowledged: the next
//!    no answer or an error: connect again, the same number once more
//! ```
//! Deliberately absent: batches and prepared statements; each write is one commit.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};
use tokio_util::sync::CancellationToken;

use crate::telemetry::clock;
use crate::telemetry::redact::Secret;
use crate::types::Mono;

/// A host that has not let in within this time is given up, and all are tried again.
const CONNECT: Duration = Duration::from_secs(12);
/// A statement without an answer counts as unanswered after this time.
const ANSWER: Duration = Duration::from_secs(1);
/// Pause between two rounds of connecting when nobody lets in.
const AGAIN: Duration = Duration::from_millis(20);
/// Errors that are kept as text.
const ERRORS_KEPT: usize = 100;

/// Where clients connect.
#[derive(Debug, Clone)]
pub struct Door {
    /// Hosts and ports.
    pub hosts: Vec<(String, u16)>,
    /// Each of them leads to the primary (a router). Otherwise only the one that takes writes is accepted.
    pub routed: bool,
    /// The user.
    pub user: String,
    /// Its password.
    pub password: Option<Secret<String>>,
    /// The database.
    pub database: String,
    /// The table that writers write to; made anew.
    pub table: &'static str,
}

/// How much is written.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// So many writers, a connection each.
    pub writers: usize,
    /// Each waits so long after an acknowledged write.
    pub pause: Duration,
    /// Every acknowledgement is kept, for a plot. Not for loads that go on for ever.
    pub samples: bool,
}

/// One acknowledged write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// When its client heard of it.
    pub at: Mono,
    /// How long it had waited.
    pub took: Duration,
}

/// What has been counted.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    /// Writes whose clients have been told that they are committed.
    pub acknowledged: u64,
    /// Writes that were sent once more because their outcome was not known.
    pub retried: u64,
    /// Writers that wait for an answer or a connection for longer than usual.
    pub blocked: usize,
    /// Connections that were refused or broke while they were opened, through routers.
    pub refused: u64,
    /// The longest time between two acknowledgements, whoever's.
    pub longest_gap: Duration,
    /// The last acknowledgement.
    pub last_ack: Option<Mono>,
    /// Reads that were answered.
    pub reads: u64,
}

#[derive(Debug, Default)]
struct Tally {
    counters: Counters,
    acks: Vec<Ack>,
    reads: Vec<Mono>,
    errors: Vec<(Mono, String)>,
    /// For each writer: the number of its last acknowledged write, and since when it waits.
    writers: Vec<(i64, Mono)>,
}

/// Running clients. Dropped: they stop.
pub struct Load {
    tally: Arc<Mutex<Tally>>,
    door: Door,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

/// What the database has, compared with what was acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Proof {
    /// Acknowledged, and not there.
    pub lost: u64,
    /// There more than once.
    pub duplicated: u64,
}

impl Load {
    /// Makes the table anew and starts the clients.
    ///
    /// # Errors
    /// When nobody takes a write.
    pub async fn start(door: Door, plan: Plan) -> anyhow::Result<Self> {
        let client = door.enter().await.context("connect to the primary")?.0;
        let table = door.table;
        let sql = format!(
            "drop table if exists {table}; create table {table} (writer int not null, number bigint not null); \
             create index on {table} (writer, number)"
        );
        client.batch_execute(&sql).await.context("create the table of the drill")?;
        let now = clock::now();
        let tally = Tally { writers: vec![(0, now); plan.writers], ..Tally::default() };
        let tally = Arc::new(Mutex::new(tally));
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for writer in 0..plan.writers {
            let worker = Worker { door: door.clone(), tally: tally.clone(), plan };
            let stop = stop.clone();
            tasks.spawn(async move {
                tokio::select! { () = worker.write(writer) => (), () = stop.cancelled() => () }
            });
        }
        let worker = Worker { door: door.clone(), tally: tally.clone(), plan };
        let token = stop.clone();
        tasks.spawn(async move {
            tokio::select! { () = worker.read() => (), () = token.cancelled() => () }
        });
        Ok(Self { tally, door, stop, tasks })
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        lock(&self.tally)
    }

    /// What has been counted until now.
    pub fn counters(&self) -> Counters {
        let tally = self.tally();
        let now = clock::now();
        let usual = Duration::from_millis(500);
        let blocked = tally.writers.iter().filter(|(_, since)| usual < now.since(*since)).count();
        let mut counters = Counters { blocked, ..tally.counters.clone() };
        // A gap that has not ended yet counts, too.
        if let Some(last) = counters.last_ack {
            counters.longest_gap = counters.longest_gap.max(now.since(last));
        }
        counters
    }

    /// The acknowledgements, in the order in which clients heard of them; empty unless they are kept.
    pub fn acks(&self) -> Vec<Ack> {
        self.tally().acks.clone()
    }

    /// When reads were answered; empty unless they are kept.
    pub fn reads(&self) -> Vec<Mono> {
        self.tally().reads.clone()
    }

    /// Errors that clients were given, the first ones.
    pub fn errors(&self) -> Vec<(Mono, String)> {
        self.tally().errors.clone()
    }

    /// Compares what has been acknowledged until now with what is there. Writers may go on meanwhile.
    ///
    /// # Errors
    /// When nobody can be asked.
    pub async fn check(&self) -> anyhow::Result<Proof> {
        let done: Vec<i64> = self.tally().writers.iter().map(|(number, _)| *number).collect();
        let client = self.door.enter().await.context("connect to the primary")?.0;
        let table = self.door.table;
        let mut proof = Proof::default();
        for (writer, number) in done.iter().enumerate() {
            let sql = format!(
                "select count(*), count(distinct number) from {table} where writer = {writer} and number <= {number}"
            );
            let (rows, distinct) = two_numbers(&client.simple_query(&sql).await.context("count what is there")?)?;
            proof.lost += u64::try_from(*number).unwrap_or(0).saturating_sub(distinct);
            proof.duplicated += rows.saturating_sub(distinct);
        }
        Ok(proof)
    }

    /// Ends the clients; what they have counted stays.
    pub async fn stop(&mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }

    /// Removes the table.
    ///
    /// # Errors
    /// When nobody takes a write.
    pub async fn tidy_up(&self) -> anyhow::Result<()> {
        let client = self.door.enter().await.context("connect to the primary")?.0;
        client
            .batch_execute(&format!("drop table if exists {}", self.door.table))
            .await
            .context("drop the table of the drill")
    }
}

fn two_numbers(rows: &[SimpleQueryMessage]) -> anyhow::Result<(u64, u64)> {
    for row in rows {
        if let SimpleQueryMessage::Row(row) = row {
            let number = |column: usize| row.get(column).and_then(|text| text.parse().ok()).context("a number");
            return Ok((number(0)?, number(1)?));
        }
    }
    bail!("no row came back")
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Door {
    /// Tries all hosts at once. With the client: how many refused before.
    async fn enter(&self) -> anyhow::Result<(Client, u64)> {
        let attempts: FuturesUnordered<_> = self.hosts.iter().map(|host| self.knock(host)).collect();
        let mut attempts = attempts;
        let mut refused = 0;
        let mut why = None;
        let entered = async {
            while let Some(attempt) = attempts.next().await {
                match attempt {
                    Ok(client) => return Some(client),
                    Err(error) => {
                        refused += 1;
                        why = Some(error);
                    }
                }
            }
            None
        };
        match timeout(CONNECT, entered).await {
            Ok(Some(client)) => Ok((client, refused)),
            Ok(None) => match why {
                Some(error) => Err(anyhow::Error::new(error).context(Refused(refused))),
                None => bail!("there is no host"),
            },
            Err(_) => bail!("nobody let in within {} s", CONNECT.as_secs()),
        }
    }

    async fn knock(&self, (host, port): &(String, u16)) -> Result<Client, tokio_postgres::Error> {
        let mut config = Config::new();
        config.host(host).port(*port).user(&self.user).dbname(&self.database).application_name("howdah drill");
        if let Some(password) = &self.password {
            config.password(password.expose());
        }
        if !self.routed {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        let (client, connection) = config.connect(NoTls).await?;
        // Ends with the client.
        tokio::spawn(connection);
        Ok(client)
    }
}

/// How many hosts refused when all did.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("{0} hosts refused")]
struct Refused(u64);

struct Worker {
    door: Door,
    tally: Arc<Mutex<Tally>>,
    plan: Plan,
}

impl Worker {
    fn failed(&self, error: &anyhow::Error) {
        let mut tally = lock(&self.tally);
        if tally.errors.len() < ERRORS_KEPT {
            tally.errors.push((clock::now(), format!("{error:#}")));
        }
    }

    async fn connect(&self) -> Client {
        loop {
            let (refused, client) = match self.door.enter().await {
                Ok((client, refused)) => (refused, Some(client)),
                Err(error) => {
                    self.failed(&error);
                    (error.downcast_ref::<Refused>().map_or(0, |refused| refused.0), None)
                }
            };
            // Without routers all but one host refuse by design.
            if self.door.routed {
                lock(&self.tally).counters.refused += refused;
            }
            match client {
                Some(client) => return client,
                None => sleep(AGAIN).await,
            }
        }
    }

    async fn write(&self, writer: usize) {
        let mut number = 1_i64;
        loop {
            let client = self.connect().await;
            loop {
                let asked = clock::now();
                let table = self.door.table;
                let sql = format!("insert into {table} values ({writer}, {number})");
                match timeout(ANSWER, client.batch_execute(&sql)).await {
                    Ok(Ok(())) => {
                        self.acknowledged(writer, number, asked);
                        number += 1;
                    }
                    Ok(Err(error)) => {
                        self.unanswered(&anyhow::Error::new(error));
                        break;
                    }
                    Err(_) => {
                        self.unanswered(&anyhow::anyhow!("no answer within {} s", ANSWER.as_secs()));
                        break;
                    }
                }
                sleep(self.plan.pause).await;
            }
        }
    }

    fn unanswered(&self, error: &anyhow::Error) {
        lock(&self.tally).counters.retried += 1;
        self.failed(error);
    }

    fn acknowledged(&self, writer: usize, number: i64, asked: Mono) {
        let at = clock::now();
        let mut tally = lock(&self.tally);
        if let Some(known) = tally.writers.get_mut(writer) {
            *known = (number, at);
        }
        let counters = &mut tally.counters;
        counters.acknowledged += 1;
        let gap = counters.last_ack.map_or(Duration::ZERO, |last| at.since(last));
        counters.longest_gap = counters.longest_gap.max(gap);
        counters.last_ack = Some(at);
        if self.plan.samples {
            tally.acks.push(Ack { at, took: at.since(asked) });
        }
    }

    async fn read(&self) {
        loop {
            let client = self.connect().await;
            loop {
                let table = self.door.table;
                let sql = format!("select max(number) from {table} where writer = 0");
                match timeout(ANSWER, client.simple_query(&sql)).await {
                    Ok(Ok(_)) => {
                        let mut tally = lock(&self.tally);
                        tally.counters.reads += 1;
                        if self.plan.samples {
                            tally.reads.push(clock::now());
                        }
                    }
                    Ok(Err(_)) | Err(_) => break,
                }
                sleep(self.plan.pause.max(Duration::from_millis(10))).await;
            }
        }
    }
}
