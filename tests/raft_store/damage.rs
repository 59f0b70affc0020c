//! Damaged stores: refused with a sentence that says what to do, or read without loss; never a panic.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use howdah::raft::Error;
use howdah::raft::internals::{
    Batch, Contents, Disk, Entry, Header, LogId, LogStore, Proposal, SnapshotMeta, Snapshots, Vote, encode,
};
use openraft::EntryPayload;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use openraft::vote::leader_id_std::CommittedLeaderId;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::cluster::{put, until};
use super::storage::no_fatal;

const FLIPS: u64 = 150;

fn log_id(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(1), index)
}

fn entry(index: u64) -> Entry {
    let value = "v".repeat(usize::try_from(index * 37 % 9000).expect("small"));
    let command = put(&format!("key{index}"), &value, howdah::types::LeaseId(0));
    Entry { log_id: log_id(index), payload: EntryPayload::Normal(Proposal::new(command)) }
}

/// A store with a vote, 200 entries and a snapshot.
fn build(dir: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (disk, contents) = Disk::open(dir).expect("opens");
    let mut log = LogStore::open(disk, &contents, no_fatal()).expect("opens");
    runtime.block_on(async {
        log.save_vote(&Vote::new(1, 1)).await.expect("votes");
        for index in 0..200 {
            log.blocking_append([entry(index)]).await.expect("appends");
        }
        log.committer().stop().await;
    });
    let snapshots = Snapshots::open(dir).expect("opens");
    let meta = SnapshotMeta { last_log_id: Some(log_id(50)), ..SnapshotMeta::default() };
    let body = Bytes::from(vec![7; 5000]);
    snapshots.save(&Header::new(&meta, &body), &body).expect("saves");
    drop(log);
    until("the disk is released", Duration::from_secs(10), || Disk::open(dir).ok().map(drop));
}

/// Opens a store as a node does, up to where the engine starts.
fn reopen(dir: &Path) -> Result<(Contents, Option<Bytes>), Error> {
    let (disk, contents) = Disk::open(dir)?;
    let snapshots = Snapshots::open(dir)?;
    let log = LogStore::open(disk, &contents, no_fatal())?;
    drop(log);
    Ok((contents, snapshots.load()?.map(|(_, body)| body)))
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("creates");
    for item in std::fs::read_dir(from).expect("lists") {
        let path = item.expect("lists").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() { copy(&path, &target) } else { std::fs::copy(&path, &target).map(|_| ()).expect("copies") }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut list = Vec::new();
    for item in std::fs::read_dir(dir).expect("lists") {
        let path = item.expect("lists").path();
        if path.is_dir() { list.extend(files(&path)) } else { list.push(path) }
    }
    list.sort();
    list
}

/// sled's recovery ends where its log is torn. The changes of a commit are there one by one and in order, so what is left is
/// a beginning.
#[test]
fn a_commit_that_is_torn_anywhere_leaves_a_beginning_of_it() {
    let root = tempfile::tempdir().expect("a directory");
    let (dir, pristine) = (root.path().join("store"), root.path().join("pristine"));
    let (mut disk, _) = Disk::open(&dir).expect("opens");
    copy(&dir, &pristine);
    let db = Path::new("log").join("db");
    let mut before = std::fs::read(dir.join(&db)).expect("reads");
    let entries = (0..5).map(|index| (index, vec![7; 10])).collect();
    disk.write(&Batch { entries, ..Batch::default() }).expect("writes");
    disk.sync().expect("syncs");
    let after = std::fs::read(dir.join(&db)).expect("reads");
    before.resize(after.len(), 0);
    let changed: Vec<usize> = (0..after.len()).filter(|at| before[*at] != after[*at]).collect();
    let mut lengths = std::collections::BTreeSet::new();
    for cut in changed[0]..=changed[changed.len() - 1] + 1 {
        // A new place each time: sled leaves files of its own beside a log that it has recovered.
        let torn = root.path().join(cut.to_string());
        copy(&pristine, &torn);
        std::fs::write(torn.join(&db), [&after[..cut], &before[cut..]].concat()).expect("writes");
        let (disk, contents) = Disk::open(&torn).expect("opens");
        let found: Vec<u64> = contents.entries.keys().copied().collect();
        assert_eq!(found, (0..found.len() as u64).collect::<Vec<_>>(), "torn at byte {cut}");
        lengths.insert(found.len());
        drop(disk);
    }
    assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5], "each beginning was met");
}

fn assert_helpful(error: &Error) {
    let text = error.to_string();
    let helpful = match error {
        Error::Damaged { .. } => text.contains("move") && text.contains("aside and start again"),
        Error::NewerFormat { .. } => text.contains("start the newer version"),
        Error::File { .. } => true,
        _ => false,
    };
    assert!(helpful, "{error:?}");
}

#[test]
fn flipped_bits_are_refused_or_harmless() {
    let original = tempfile::tempdir().expect("a directory");
    build(original.path());
    let (sound, body) = reopen(original.path()).expect("opens");
    let mut random = StdRng::seed_from_u64(3);
    let mut refused = 0;
    for round in 0..FLIPS {
        let dir = tempfile::tempdir().expect("a directory");
        copy(original.path(), dir.path());
        let list: Vec<PathBuf> =
            files(dir.path()).into_iter().filter(|f| f.metadata().is_ok_and(|m| m.len() > 0)).collect();
        // Mostly the log itself.
        let db = dir.path().join("log").join("db");
        let file = if round % 3 == 0 { list[random.random_range(0..list.len())].clone() } else { db };
        let mut bytes = std::fs::read(&file).expect("reads");
        let used = bytes.iter().rposition(|b| *b != 0).unwrap_or(0) + 1;
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..used);
            bytes[at] ^= 1 << random.random_range(0..8);
        }
        std::fs::write(&file, bytes).expect("writes");
        match reopen(dir.path()) {
            Ok((contents, found)) => {
                assert!(contents.entries == sound.entries, "round {round}: {} lost entries", file.display());
                assert!(contents.facts == sound.facts, "round {round}: {} lost facts", file.display());
                assert_eq!(found, body, "round {round}: {}", file.display());
            }
            Err(error) => {
                assert_helpful(&error);
                refused += 1;
            }
        }
    }
    assert!(refused > FLIPS / 4, "only {refused} of {FLIPS} were noticed");
}

#[test]
fn missing_and_newer_files_are_refused() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 7] = [
        ("log is missing", |dir| std::fs::remove_file(dir.join("log/db")).expect("removes")),
        ("log directory is missing", |dir| std::fs::remove_dir_all(dir.join("log")).expect("removes")),
        ("log is empty", |dir| std::fs::write(dir.join("log/db"), b"").expect("writes")),
        ("log is cut", |dir| {
            let bytes = std::fs::read(dir.join("log/db")).expect("reads");
            std::fs::write(dir.join("log/db"), &bytes[..bytes.len() / 8]).expect("writes");
        }),
        ("format is missing", |dir| std::fs::remove_file(dir.join("FORMAT")).expect("removes")),
        ("format is newer", |dir| {
            std::fs::write(dir.join("FORMAT"), b"howdah raft store, format 99\n").expect("writes")
        }),
        ("format is nonsense", |dir| std::fs::write(dir.join("FORMAT"), [0xff; 4000]).expect("writes")),
    ];
    for (what, harm) in harms {
        let dir = tempfile::tempdir().expect("a directory");
        build(dir.path());
        harm(dir.path());
        match reopen(dir.path()) {
            Ok((contents, _)) => panic!("{what}: opened with {} entries", contents.entries.len()),
            Err(error) => assert_helpful(&error),
        }
    }
}

#[test]
fn holes_and_foreign_entries_are_refused() {
    type Harm = fn(&mut Batch);
    let harms: [(&str, Harm); 4] = [
        ("a hole", |batch| batch.removed.push(100)),
        ("no beginning", |batch| batch.removed.push(0)),
        ("an entry that is another", |batch| {
            batch.entries.insert(200, encode(&entry(7)).expect("encodes"));
        }),
        ("an entry that is none", |batch| {
            batch.entries.insert(200, vec![0xff; 40]);
        }),
    ];
    for (what, harm) in harms {
        let dir = tempfile::tempdir().expect("a directory");
        build(dir.path());
        let (mut disk, _) = Disk::open(dir.path()).expect("opens");
        let mut batch = Batch::default();
        harm(&mut batch);
        disk.write(&batch).expect("writes");
        disk.sync().expect("syncs");
        drop(disk);
        match reopen(dir.path()) {
            Ok(_) => panic!("{what} was not noticed"),
            Err(error) => assert_helpful(&error),
        }
    }
}

#[test]
fn an_older_copy_of_the_log_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    build(dir.path());
    let older = tempfile::tempdir().expect("a directory");
    copy(dir.path(), older.path());
    let (mut disk, _) = Disk::open(dir.path()).expect("opens");
    disk.write(&Batch::default()).expect("writes");
    disk.sync().expect("syncs");
    drop(disk);
    // Somebody restores the log alone: votes and entries that others count on would be gone.
    std::fs::remove_dir_all(dir.path().join("log")).expect("removes");
    copy(&older.path().join("log"), &dir.path().join("log"));
    let error = reopen(dir.path()).map(drop).expect_err("must be noticed");
    assert!(error.to_string().contains("were durable once"), "{error}");
    assert_helpful(&error);
}

#[test]
fn leftovers_of_a_kill_are_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    build(dir.path());
    let leftovers =
        [dir.path().join("log/snap.0000000000000042.generating"), dir.path().join("snapshots/x.snapshot.tmp")];
    leftovers.iter().for_each(|path| std::fs::write(path, b"half").expect("writes"));
    reopen(dir.path()).expect("opens");
    assert!(leftovers.iter().all(|path| !path.exists()));
}
