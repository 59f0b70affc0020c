//! The disk's own thread: takes operations in order, commits them in groups.
//!
//! `log.rs -> bounded queue -> [write, write, write, sync] -> completions, in order`
//!
//! While one group is being synced the next one gathers. One slow disk therefore delays whoever
//! waits for it, and nobody else: no operation here is awaited by the engine's own loop except a vote.
//!
//! The first failure ends everything: the failed group's waiters hear it, the fatal hook is called
//! once, and nothing is written any more. What reached the disk is unknown then, so going on as a
//! member could break a promise given to others.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::FatalHook;
use super::disk::{Batch, Disk, Fact, RING};
use super::error::Error;
use crate::telemetry::clock;
use crate::telemetry::histogram::Histogram;

const QUEUE: usize = 1024;
const GROUP_OPERATIONS: usize = 1024;
const GROUP_BYTES: usize = 4 * 1024 * 1024;
const LATENCIES: usize = 256;
/// Purged entries that one group removes.
const LEFTOVERS: usize = 32;

/// Called when an operation is durable, or will never be.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// One thing to do on disk.
pub enum Operation {
    /// Write entries. `number` grows with each append.
    Append {
        /// Index and bytes, consecutive.
        entries: Vec<(u64, Vec<u8>)>,
        /// Which append it is, for [`Progress::written`].
        number: u64,
        /// Told when durable.
        done: Done,
    },
    /// Remove entries at the end: from, up to and including.
    Truncate(u64, u64),
    /// Remove entries at the start.
    Purge {
        /// Those that exist: from, up to and including.
        existing: std::ops::RangeInclusive<u64>,
        /// Up to where the log counts as removed; may lie beyond its last entry.
        upto: u64,
        /// The bytes of [`Fact::Purged`].
        fact: Vec<u8>,
    },
    /// Write a fact and say when it is durable.
    Fact(Fact, Vec<u8>, Done),
    /// Write a fact some time.
    Hint(Fact, Vec<u8>),
    /// Sync, say so and end.
    Stop(oneshot::Sender<()>),
}

/// What the thread has achieved, for those who do not wait for it.
pub struct Progress {
    /// Number of the last append that is durable and can be read back from the disk.
    pub written: AtomicU64,
    /// A test's way to make the disk slow: microseconds before each sync.
    pub slowness_us: AtomicU64,
    /// A test's way to make the next sync fail.
    pub broken: AtomicBool,
    failed: AtomicBool,
    latencies: Mutex<VecDeque<Duration>>,
    /// All syncs since the start. Bounds as etcd's: 1 ms to 8.2 s.
    pub syncs: Histogram,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            written: AtomicU64::new(0),
            slowness_us: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            latencies: Mutex::default(),
            syncs: Histogram::new(Duration::from_millis(1), 14),
        }
    }
}

impl Progress {
    /// The 99th percentile of the last syncs; none before the first.
    pub fn sync_p99(&self) -> Option<Duration> {
        let latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sorted: Vec<Duration> = latencies.iter().copied().collect();
        sorted.sort_unstable();
        let at = (sorted.len() * 99).div_ceil(100).saturating_sub(1);
        sorted.get(at).copied()
    }

    fn record(&self, latency: Duration) {
        self.syncs.observe(latency);
        let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        if latencies.len() == LATENCIES {
            latencies.pop_front();
        }
        latencies.push_back(latency);
    }

    /// Whether the disk has failed.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}

/// Sends operations to the disk thread. Cheap to clone; the thread ends with the last one.
#[derive(Clone)]
pub struct Committer {
    queue: mpsc::Sender<Operation>,
    /// What has been achieved.
    pub progress: Arc<Progress>,
}

impl Committer {
    /// Starts the thread. `purged` is the index up to which the log is durably removed, `leftovers` are
    /// entries up to there that are still on disk.
    ///
    /// # Errors
    /// [`Error::File`] when the system gives no thread.
    pub fn start(disk: Disk, purged: u64, leftovers: BTreeSet<u64>, fatal: FatalHook) -> Result<Self, Error> {
        let (queue, operations) = mpsc::channel(QUEUE);
        let progress = Arc::new(Progress::default());
        let path = disk.dir().to_owned();
        let worker = Worker {
            disk,
            operations,
            progress: Arc::clone(&progress),
            fatal,
            durably_purged: purged,
            group: Group::default(),
            leftovers,
        };
        thread::Builder::new()
            .name("raft-disk".to_owned())
            .spawn(move || worker.run())
            .map_err(|source| Error::File { operation: "start disk thread for", path, source })?;
        Ok(Self { queue, progress })
    }

    /// Hands an operation over; waits only while the queue is full.
    ///
    /// # Errors
    /// When the disk has failed or the thread has ended.
    pub async fn submit(&self, operation: Operation) -> io::Result<()> {
        self.queue.send(operation).await.map_err(|_| ended())
    }

    /// Writes a fact and waits until it is durable.
    ///
    /// # Errors
    /// When the disk has failed or the thread has ended.
    pub async fn fact(&self, fact: Fact, bytes: Vec<u8>) -> io::Result<()> {
        let (tell, told) = oneshot::channel();
        let done: Done = Box::new(move |result| drop(tell.send(result)));
        self.submit(Operation::Fact(fact, bytes, done)).await?;
        told.await.map_err(|_| ended())?
    }

    /// Makes everything durable and ends the thread.
    pub async fn stop(&self) {
        let (tell, told) = oneshot::channel();
        if self.submit(Operation::Stop(tell)).await.is_ok() {
            // An error means that the thread is gone already, which is what was asked for.
            let _ = told.await;
        }
    }
}

fn ended() -> io::Error {
    io::Error::other("the store's disk thread has ended")
}

#[derive(Default)]
struct Group {
    batch: Batch,
    waiting: Vec<Done>,
    written: u64,
    bytes: usize,
    operations: usize,
    purged: u64,
    stop: Option<oneshot::Sender<()>>,
}

struct Worker {
    disk: Disk,
    operations: mpsc::Receiver<Operation>,
    progress: Arc<Progress>,
    fatal: FatalHook,
    durably_purged: u64,
    group: Group,
    /// Purged entries, removed some at a time by later groups: first it is durable that they do not count.
    leftovers: BTreeSet<u64>,
}

impl Worker {
    fn run(mut self) {
        while let Some(first) = self.operations.blocking_recv() {
            if self.round(first) {
                return;
            }
        }
    }

    /// Takes what is there, commits it; true when it is time to end.
    fn round(&mut self, first: Operation) -> bool {
        let mut next = Some(first);
        while let Some(operation) = next.take() {
            if let Err(error) = self.take(operation) {
                return self.fail(&error);
            }
            let full = self.group.operations >= GROUP_OPERATIONS || self.group.bytes >= GROUP_BYTES;
            if !full && self.group.stop.is_none() {
                next = self.operations.try_recv().ok();
            }
        }
        if let Err(error) = self.commit() {
            return self.fail(&error);
        }
        if let Some(tell) = self.group.stop.take() {
            let _ = tell.send(());
            return true;
        }
        false
    }

    fn take(&mut self, operation: Operation) -> Result<(), Error> {
        self.group.operations += 1;
        match operation {
            Operation::Append { entries, number, done } => {
                // The slot may still hold an entry whose removal is not durable yet.
                let last = entries.last().map_or(0, |(index, _)| *index);
                if last > self.durably_purged + RING {
                    self.commit()?;
                }
                for (index, bytes) in entries {
                    // The slot is taken over; what is left in it goes with that.
                    self.leftovers.remove(&index.wrapping_sub(RING));
                    self.group.bytes += bytes.len();
                    self.group.batch.entries.insert(index, bytes);
                }
                self.group.written = number;
                self.group.waiting.push(done);
            }
            Operation::Truncate(from, to) => {
                self.group.batch.entries.retain(|index, _| *index < from);
                self.group.batch.removed.extend(from..=to);
            }
            Operation::Purge { existing, upto, fact } => {
                self.group.batch.entries.retain(|index, _| *index > upto);
                self.group.batch.facts.insert(Fact::Purged, fact);
                self.group.purged = upto;
                self.leftovers.extend(existing);
            }
            Operation::Fact(fact, bytes, done) => {
                self.group.batch.facts.insert(fact, bytes);
                self.group.waiting.push(done);
            }
            Operation::Hint(fact, bytes) => {
                self.group.batch.facts.insert(fact, bytes);
            }
            Operation::Stop(tell) => self.group.stop = Some(tell),
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), Error> {
        let mut group = std::mem::take(&mut self.group);
        if group.waiting.is_empty() && group.purged == 0 && group.stop.is_none() {
            // Nobody waits: hints and truncations travel with the next group that is synced.
            self.group = Group { operations: 0, ..group };
            return Ok(());
        }
        let removable = self.leftovers.range(..=self.durably_purged).take(LEFTOVERS).copied().collect::<Vec<_>>();
        self.leftovers.retain(|index| !removable.contains(index));
        group.batch.removed.extend(removable);
        let result = self.disk.write(&group.batch).and_then(|()| self.sync());
        for done in group.waiting {
            done(match &result {
                Ok(()) => Ok(()),
                Err(error) => Err(io::Error::other(error.to_string())),
            });
        }
        result?;
        self.progress.written.fetch_max(group.written, Ordering::AcqRel);
        self.durably_purged = self.durably_purged.max(group.purged);
        self.group.stop = group.stop;
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Error> {
        let before = clock::now();
        let slowness = self.progress.slowness_us.load(Ordering::Relaxed);
        if slowness > 0 {
            thread::sleep(Duration::from_micros(slowness));
        }
        if self.progress.broken.load(Ordering::Relaxed) {
            return Err(Error::Write { path: self.disk.dir().to_owned(), why: "broken by a test".to_owned() });
        }
        self.disk.sync()?;
        self.progress.record(clock::now().since(before));
        Ok(())
    }

    fn fail(&mut self, error: &Error) -> bool {
        self.progress.failed.store(true, Ordering::Release);
        (self.fatal)(&format!("{error}; this node stops being a member of its store"));
        for done in self.group.waiting.drain(..) {
            done(Err(io::Error::other(error.to_string())));
        }
        true
    }
}
