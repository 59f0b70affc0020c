//! A state machine gets snapshots while it applies, builds snapshots of its own, is compacted and is watched. Whoever watches
//! has in the end what is there, and misses no change without being told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use howdah::kv::command::{Command, EventKind, RangeRequest};
use howdah::raft::internals::{Entry, LogId, Machine, Proposal, Snapshots};
use howdah::types::LeaseId;
use openraft::EntryPayload;
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};
use openraft::vote::leader_id_std::CommittedLeaderId;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::broadcast::error::RecvError;

use super::cluster::put;

const ENTRIES: u64 = 6000;

type Keys = BTreeMap<Vec<u8>, (i64, Vec<u8>)>;

fn machine() -> (tempfile::TempDir, Machine) {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(dir.path()).unwrap();
    (dir, Machine::new(snapshots))
}

fn command(index: u64, revision: i64, random: &mut StdRng) -> Command {
    if random.random_ratio(1, 40) && 20 < revision {
        return Command::Compact { revision: revision - random.random_range(1..15) };
    }
    put(&format!("key{}", random.random_range(0..40)), &format!("value of {index}"), LeaseId(0))
}

fn entry(index: u64, command: Command) -> Entry {
    let log_id = LogId::new(CommittedLeaderId::new(1), index);
    Entry { log_id, payload: EntryPayload::Normal(Proposal::new(command)) }
}

async fn apply(machine: &mut Machine, entries: Vec<Entry>) {
    let stream = futures_util::stream::iter(entries.into_iter().map(|entry| Ok((entry, None))));
    machine.apply(stream).await.unwrap();
}

fn everything() -> RangeRequest {
    RangeRequest { key: vec![0], range_end: vec![0], ..RangeRequest::default() }
}

fn keys(machine: &Machine) -> (i64, Keys) {
    let position = machine.read();
    let found = position.kv.range(&everything()).unwrap();
    (position.kv.revision(), found.kvs.into_iter().map(|pair| (pair.key, (pair.mod_revision, pair.value))).collect())
}

/// What a watcher has, kept up to date by what it is told; how often it had to read afresh.
async fn watch(machine: Machine, end: Arc<AtomicBool>) -> (Keys, u64) {
    let mut events = machine.events();
    let (mut at, mut mine) = keys(&machine);
    let mut afresh = 0;
    loop {
        let told = tokio::time::timeout(std::time::Duration::from_millis(20), events.recv()).await;
        match told {
            Ok(Ok(applied)) if applied.restored => {
                (at, mine) = keys(&machine);
                afresh += 1;
            }
            Ok(Ok(applied)) if applied.revision <= at => (),
            Ok(Ok(applied)) => {
                assert_eq!(applied.revision, at + 1, "a change was missed, and nobody said so");
                at = applied.revision;
                for event in &applied.events {
                    assert_eq!((event.kind, event.kv.mod_revision), (EventKind::Put, at));
                    mine.insert(event.kv.key.clone(), (at, event.kv.value.clone()));
                }
            }
            Ok(Err(RecvError::Lagged(_))) => {
                (at, mine) = keys(&machine);
                afresh += 1;
            }
            Ok(Err(RecvError::Closed)) => return (mine, afresh),
            Err(_) if end.load(Ordering::Acquire) => return (mine, afresh),
            Err(_) => (),
        }
    }
}

#[test]
fn installing_snapshots_races_with_compaction_and_watches() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut random = StdRng::seed_from_u64(23);
        let ((_dir, mut leader), (_other, mut follower)) = (machine(), machine());
        let end = Arc::new(AtomicBool::new(false));
        let watchers: Vec<_> = (0..3).map(|_| tokio::spawn(watch(follower.clone(), end.clone()))).collect();
        let builder = tokio::spawn({
            let (mut machine, end) = (follower.clone(), end.clone());
            async move {
                let mut built = 0_u64;
                while !end.load(Ordering::Acquire) {
                    machine.build_snapshot().await.unwrap();
                    built += 1;
                    tokio::task::yield_now().await;
                }
                built
            }
        });
        let (mut index, mut installed) = (0, 0_u64);
        while index < ENTRIES {
            let mut batch = Vec::new();
            for _ in 0..random.random_range(1..30) {
                let revision = leader.read().kv.revision();
                let entry = entry(index, command(index, revision, &mut random));
                apply(&mut leader, vec![entry.clone()]).await;
                batch.push(entry);
                index += 1;
            }
            if random.random_ratio(1, 6) {
                // It was away for a while, and the log before has been cut.
                let snapshot = leader.build_snapshot().await.unwrap();
                follower.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
                installed += 1;
            } else {
                apply(&mut follower, batch).await;
            }
        }
        end.store(true, Ordering::Release);
        let built = builder.await.unwrap();
        assert_eq!(keys(&leader), keys(&follower));
        let mut afresh = 0;
        for watcher in watchers {
            let (mine, times) = watcher.await.unwrap();
            assert!(mine == keys(&follower).1, "a watcher has something else than what is there");
            afresh += times;
        }
        // The history too is the same, as far as it has been kept.
        let (theirs, ours) = (leader.read(), follower.read());
        for revision in theirs.kv.revision() - 40..=theirs.kv.revision() {
            let then = RangeRequest { revision, ..everything() };
            assert_eq!(theirs.kv.range(&then), ours.kv.range(&then), "as of revision {revision}");
        }
        println!(
            "{ENTRIES} entries, {installed} snapshots installed, {built} built, watchers read afresh {afresh} times"
        );
        assert!(installed > 10 && built > 10 && afresh > 0);
    });
}
