//! Clients that write without pause, and a count of what they were told after a deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use howdah::telemetry::clock::now;
use howdah::types::Mono;

use crate::world::World;

/// The clients.
pub struct Load {
    tally: Arc<Tally>,
    ended: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Default)]
struct Tally {
    end: Mono,
    late: AtomicU32,
    total: AtomicU32,
    latest: AtomicU64,
}

/// What they were told.
pub struct Counts {
    /// Acknowledgements after the deadline.
    pub late: u32,
    /// All.
    pub total: u32,
    /// How long after the deadline the last one came.
    pub latest: Duration,
}

impl Tally {
    fn count(&self) {
        let at = now();
        self.total.fetch_add(1, Ordering::Relaxed);
        if at >= self.end {
            self.late.fetch_add(1, Ordering::Relaxed);
            self.latest.fetch_max(at.0 - self.end.0, Ordering::Relaxed);
        }
    }
}

impl Load {
    /// `depth` statements are on their way at a time in each session.
    pub async fn start(world: &World, sessions: usize, depth: usize, end: Mono) -> Self {
        let tally = Arc::new(Tally { end, ..Tally::default() });
        world.connect().await.batch_execute("create table acked (i int)").await.unwrap();
        let mut ended = Vec::new();
        for _ in 0..sessions {
            let client = Arc::new(world.connect().await);
            let insert = client.prepare("insert into acked values (1)").await.unwrap();
            let broken = Arc::new(AtomicBool::new(false));
            for _ in 0..depth {
                let (client, insert, broken, tally) = (client.clone(), insert.clone(), broken.clone(), tally.clone());
                ended.push(tokio::spawn(async move {
                    while !broken.load(Ordering::Relaxed) {
                        match client.execute(&insert, &[]).await {
                            Ok(_) => tally.count(),
                            Err(_) => broken.store(true, Ordering::Relaxed),
                        }
                    }
                }));
            }
        }
        Self { tally, ended }
    }

    /// Acknowledgements so far.
    pub fn total(&self) -> u32 {
        self.tally.total.load(Ordering::Relaxed)
    }

    /// Waits until every session has broken.
    pub async fn finish(self) -> Counts {
        for client in self.ended {
            client.await.unwrap();
        }
        Counts {
            late: self.tally.late.load(Ordering::Relaxed),
            total: self.tally.total.load(Ordering::Relaxed),
            latest: Duration::from_nanos(self.tally.latest.load(Ordering::Relaxed)),
        }
    }
}
