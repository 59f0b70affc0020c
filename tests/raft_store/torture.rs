//! Crashes: a child process writes and says what is durable, is killed, and everything it said must
//! be there. And power failures, simulated: of what was written after the last sync any part may be lost.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use howdah::raft::internals::{
    Batch, Disk, Entry, Fact, Header, LogId, LogStore, Proposal, SnapshotMeta, Snapshots, Vote, encode,
};
use openraft::EntryPayload;
use openraft::storage::{RaftLogReader, RaftLogStorage, RaftLogStorageExt};
use openraft::vote::leader_id_std::CommittedLeaderId;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::cluster::{put, until};
use super::storage::no_fatal;

const KILLS: u64 = 100;
const POWER_FAILURES: u64 = 100;

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term), index)
}

/// The entry that belongs at a position: its content can be recomputed by the reader.
fn entry(term: u64, index: u64) -> Entry {
    let mut random = StdRng::seed_from_u64(term << 32 | index);
    // Mostly small, some of several parts.
    let length =
        if random.random_ratio(1, 20) { random.random_range(5_000..40_000) } else { random.random_range(0..300) };
    let value: String = (0..length).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect();
    let command = put(&format!("key{index}"), &value, howdah::types::LeaseId(0));
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(Proposal::new(command)) }
}

/// The snapshot that belongs at a position.
fn snapshot(last: LogId) -> (Header, Bytes) {
    let mut random = StdRng::seed_from_u64(last.index);
    let body: Vec<u8> = (0..random.random_range(0..60_000)).map(|_| random.random()).collect();
    let body = Bytes::from(body);
    let meta = SnapshotMeta { last_log_id: Some(last), ..SnapshotMeta::default() };
    (Header::new(&meta, &body), body)
}

pub fn open(dir: &Path) -> LogStore {
    let (disk, contents) = until("the directory is free", Duration::from_secs(10), || match Disk::open(dir) {
        Ok(opened) => Some(opened),
        Err(howdah::raft::Error::Locked { .. }) => None,
        Err(error) => panic!("{error}"),
    });
    LogStore::open(disk, &contents, no_fatal()).expect("opens")
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

#[allow(clippy::print_stdout, reason = "this is how the child talks to the test")]
/// Writes for ever. Says `T`/`P` before it cuts, `V`/`A`/`S` after something is durable.
async fn write_for_ever(dir: PathBuf, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut log = open(&dir);
    let snapshots = Snapshots::open(&dir).expect("opens");
    let mut term = log.vote().map_or(0, |vote| vote.leader_id.term);
    let mut new_term = true;
    loop {
        if new_term {
            term += 1;
            log.save_vote(&Vote::new(term, 1)).await.expect("votes");
            println!("V {term}");
        }
        new_term = random.random_ratio(1, 10);
        let next = log.last().map_or(0, |id| id.index + 1);
        let count = random.random_range(1..30);
        let entries: Vec<Entry> = (next..next + count).map(|index| entry(term, index)).collect();
        log.blocking_append(entries).await.expect("appends");
        println!("A {next} {} {term}", next + count - 1);
        let last = next + count - 1;
        let purged = log.purged().map_or(0, |id| id.index);
        if new_term && last > purged + 10 {
            let keep = last - random.random_range(1..8);
            println!("T {keep}");
            let at = log.try_get_log_entries(keep..=keep).await.expect("reads")[0].log_id;
            log.truncate_after(Some(at)).await.expect("truncates");
        } else if random.random_ratio(1, 15) && last > purged + 100 {
            let upto = random.random_range(purged + 1..last - 20);
            println!("P {upto}");
            let at = log.try_get_log_entries(upto..=upto).await.expect("reads")[0].log_id;
            log.purge(at).await.expect("purges");
        }
        if random.random_ratio(1, 20) && last > purged + 30 {
            let at = log.try_get_log_entries(last - 25..=last - 25).await.expect("reads")[0].log_id;
            let (header, body) = snapshot(at);
            snapshots.save(&header, &body).expect("saves");
            println!("S {}", at.index);
        }
        log.save_committed(Some(log_id(term, last.saturating_sub(20)))).await.expect("hints");
    }
}

#[test]
/// The child process of the test below; does nothing by itself.
fn child() {
    let Ok(dir) = std::env::var("HOWDAH_TORTURE_DIR") else { return };
    let seed = std::env::var("HOWDAH_TORTURE_SEED").expect("a seed").parse().expect("a number");
    runtime().block_on(write_for_ever(PathBuf::from(dir), seed));
}

/// What the child has promised so far.
#[derive(Default, Clone)]
pub struct Promises {
    pub term: u64,
    pub entries: BTreeMap<u64, u64>,
    pub purged: u64,
    pub snapshot: Option<u64>,
}

impl Promises {
    pub fn hear(&mut self, line: &str) {
        let mut words = line.split(' ');
        let what = words.next();
        let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
        match (what, numbers.as_slice()) {
            (Some("V"), [term]) => self.term = *term,
            (Some("A"), [first, last, term]) => self.entries.extend((*first..=*last).map(|index| (index, *term))),
            (Some("T"), [keep]) => self.entries.retain(|index, _| index <= keep),
            (Some("P"), [upto]) => self.purged = *upto,
            (Some("S"), [index]) => self.snapshot = self.snapshot.max(Some(*index)),
            // The test harness of the child prints lines of its own; the last line may be cut short.
            _ => {}
        }
    }

    pub fn check(&self, dir: &Path, log: &mut LogStore, round: u64) {
        let found = Snapshots::open(dir).expect("opens").load().expect("reads");
        let at = found.as_ref().and_then(|(header, _)| header.last);
        assert!(at.map(|id| id.index) >= self.snapshot, "round {round}: {at:?}, promised {:?}", self.snapshot);
        if let (Some(at), Some((_, body))) = (at, found) {
            assert_eq!(body, snapshot(at).1, "round {round}: the snapshot at {at}");
        }
        let term = log.vote().map_or(0, |vote| vote.leader_id.term);
        assert!(term >= self.term, "round {round}: vote {term}, promised {}", self.term);
        let purged = log.purged();
        assert!(purged.is_none_or(|id| id.index <= self.purged), "round {round}: purged too much");
        let first = purged.map_or(0, |id| id.index + 1);
        let found = runtime().block_on(log.try_get_log_entries(0..)).expect("reads");
        let found: BTreeMap<u64, Entry> = found.into_iter().map(|entry| (entry.log_id.index, entry)).collect();
        let newest = self.entries.keys().next_back().map_or(0, |last| last.saturating_sub(100));
        for (index, term) in self.entries.range(first..) {
            let found = found.get(index);
            assert_eq!(found.map(|e| e.log_id), Some(log_id(*term, *index)), "round {round}: entry {index}");
            if *index > newest {
                assert_eq!(found, Some(&entry(*term, *index)), "round {round}: entry {index} of term {term}");
            }
        }
    }
}

#[test]
fn what_was_acknowledged_survives_kill() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut promises = Promises::default();
    let mut random = StdRng::seed_from_u64(7);
    for round in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["torture::child", "--exact", "--nocapture", "--test-threads=1"])
            .env("HOWDAH_TORTURE_DIR", dir.path())
            .env("HOWDAH_TORTURE_SEED", round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let wanted = random.random_range(1..40);
        let mut lines = lines.map_while(Result::ok);
        for line in lines.by_ref().filter(|line| line.starts_with(['V', 'A', 'T', 'P', 'S'])).take(wanted) {
            promises.hear(&line);
        }
        std::thread::sleep(Duration::from_micros(random.random_range(0..3_000)));
        child.kill().expect("kills");
        lines.for_each(|line| promises.hear(&line));
        child.wait().expect("ends");
        let mut log = open(dir.path());
        promises.check(dir.path(), &mut log, round);
        runtime().block_on(log.committer().stop());
        drop(log);
    }
    assert!(
        promises.entries.len() > 1000 && promises.purged > 0 && promises.snapshot.is_some(),
        "the child has worked"
    );
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("creates");
    for item in std::fs::read_dir(from).expect("lists") {
        let path = item.expect("lists").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() { copy(&path, &target) } else { std::fs::copy(&path, &target).map(|_| ()).expect("copies") }
    }
}

/// Lays pages of `later` over `now` at random: what a disk may have written on its own.
fn mix(now: &Path, later: &Path, random: &mut StdRng) {
    const PAGE: usize = 4096;
    let (mut bytes, newer) = (std::fs::read(now).expect("reads"), std::fs::read(later).expect("reads"));
    let share = random.random_range(0..=10);
    let grown = if random.random_bool(0.5) { newer.len() } else { bytes.len() };
    bytes.resize(grown.max(bytes.len()), 0);
    for (at, page) in newer.chunks(PAGE).enumerate() {
        let start = at * PAGE;
        if start + page.len() <= bytes.len() && random.random_ratio(share, 10) {
            bytes[start..start + page.len()].copy_from_slice(page);
        }
    }
    std::fs::write(now, bytes).expect("writes");
}

#[test]
fn what_was_synced_survives_power_failures() {
    let root = tempfile::tempdir().expect("a directory");
    let mut random = StdRng::seed_from_u64(11);
    let mut dir = root.path().join("0");
    let (mut disk, _) = Disk::open(&dir).expect("opens");
    let mut next = 0;
    for round in 1..=POWER_FAILURES {
        let write = |disk: &mut Disk, from: u64| {
            // As much as is ever written between two syncs.
            let mut batch = Batch::default();
            let (mut index, mut bytes) = (from, 0);
            while bytes < 28 * 1024 {
                let entry = encode(&entry(1, index)).expect("encodes");
                bytes += entry.len() + 600;
                batch.entries.insert(index, entry);
                batch.removed.extend(index.checked_sub(300));
                index += 1;
            }
            batch.facts.insert(Fact::Vote, from.to_le_bytes().to_vec());
            disk.write(&batch).expect("writes");
            index
        };
        for _ in 0..10 {
            next = write(&mut disk, next);
        }
        disk.sync().expect("syncs");
        let (kept, later) = (root.path().join(format!("{round}")), root.path().join("later"));
        copy(&dir, &kept);
        let mut unsynced = next;
        for _ in 0..2 {
            unsynced = write(&mut disk, unsynced);
        }
        copy(&dir, &later);
        drop(disk);
        mix(&kept.join("log/db"), &later.join("log/db"), &mut random);
        let (reopened, contents) = Disk::open(&kept).unwrap_or_else(|e| panic!("round {round}: {e}"));
        for index in next.saturating_sub(200)..next {
            // Removals of that entry may have become durable only if a later entry took its place.
            let bytes = encode(&entry(1, index)).expect("encodes");
            let removed = unsynced > index + 300;
            assert!(contents.entries.get(&index) == Some(&bytes) || removed, "round {round}: entry {index} is lost");
        }
        assert!(contents.facts.contains_key(&Fact::Vote));
        std::fs::remove_dir_all(&dir).expect("removes");
        std::fs::remove_dir_all(&later).expect("removes");
        next = contents.entries.keys().next_back().map_or(0, |last| last + 1).max(next);
        (disk, dir) = (reopened, kept);
    }
}
