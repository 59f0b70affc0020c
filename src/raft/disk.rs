//! The log and its few facts on disk: the only file that names sled.
//!
//! `DIR/FORMAT` marks a finished store, `DIR/LOCK` is held while it is open, `DIR/log/` is sled's.
//! Tree `ring`: slot (index modulo [`RING`]) and part -> index, sealed bytes. Tree `meta`: name -> sealed bytes.
//! `DIR/WITNESS`: the number of the last finished commit, outside sled, to see when sled lost one.
//!
//! [`Disk::write`] changes both trees, [`Disk::sync`] makes all of it durable; that pair is the only commit point. What sled
//! takes for durable is so only because of `file_range.rs`. The ring keeps sled small: an ever-growing key space makes it swell.
//!
//! Absent on purpose: threads, group commit and callbacks (`commit.rs`), snapshots (`snapshot.rs`).
//! Values are cut into parts of [`PART`] bytes, because sled moves larger pages into files of their own.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::codec::{self, CodecError};
use super::error::Error;
use super::file_range;
use super::files::{damaged, file_error, lock, sync_dir, write_whole};

/// Number of slots in the ring; more entries than that cannot be kept.
pub const RING: u64 = 8192;
/// Largest value given to sled. Sixteen of them fit into one page below sled's limit for a page in its log.
const PART: usize = 4096;
/// Largest entry: its part count must fit, and it must fit into one frame of the wire.
pub const MAX_ENTRY: usize = 7 * 1024 * 1024;
/// The format that this build writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
const FORMAT_TEXT: &str = "howdah raft store, format ";
const CACHE_BYTES: u64 = 8 * 1024 * 1024;
const COMMITS: &str = "commits";

/// A fact beside the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fact {
    /// Who this node is.
    Identity,
    /// The last vote.
    Vote,
    /// How far the log is known to be committed. A hint: it may be older than the truth.
    Committed,
    /// Up to where the log was removed.
    Purged,
    /// What `force-new-cluster` did, if it was ever done.
    Forced,
}

impl Fact {
    const ALL: [Fact; 5] = [Fact::Identity, Fact::Vote, Fact::Committed, Fact::Purged, Fact::Forced];

    fn key(self) -> &'static str {
        match self {
            Fact::Identity => "identity",
            Fact::Vote => "vote",
            Fact::Committed => "committed",
            Fact::Purged => "purged",
            Fact::Forced => "forced",
        }
    }
}

/// Changes that reach the trees together.
#[derive(Debug, Default)]
pub struct Batch {
    /// Entries to write: index, bytes.
    pub entries: BTreeMap<u64, Vec<u8>>,
    /// Indexes to remove.
    pub removed: Vec<u64>,
    /// Facts to write.
    pub facts: BTreeMap<Fact, Vec<u8>>,
}

/// What was found when the store was opened.
#[derive(Debug, Default)]
pub struct Contents {
    /// All whole entries, by index; holes are the caller's to judge.
    pub entries: BTreeMap<u64, Vec<u8>>,
    /// Entries of which parts are missing: damage, unless they were removed before.
    pub incomplete: Vec<u64>,
    /// All facts.
    pub facts: BTreeMap<Fact, Vec<u8>>,
}

/// Reads entries while the writer works. Cheap to clone.
#[derive(Clone)]
pub struct Reader {
    ring: sled::Tree,
    path: PathBuf,
    /// sled's files are in use as long as its trees are.
    _lock: Arc<File>,
}

/// An open store, locked against other processes.
pub struct Disk {
    dir: PathBuf,
    db: sled::Db,
    ring: sled::Tree,
    meta: sled::Tree,
    file: File,
    witness: File,
    commits: u64,
    /// Number of parts of entries that have more than one.
    parts: BTreeMap<u64, u16>,
    lock: Arc<File>,
}

/// Reads `FORMAT`: true if the store was finished, false if there is none yet.
fn read_format(dir: &Path) -> Result<bool, Error> {
    let path = dir.join("FORMAT");
    let mut text = String::new();
    match File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(file_error("open file", &path)(e)),
        Ok(file) => {
            file.take(200).read_to_string(&mut text).map_err(|e| damaged(dir, path.clone(), e.to_string()))?;
        }
    }
    let found = text.trim_end().strip_prefix(FORMAT_TEXT).and_then(|n| n.parse::<u32>().ok());
    match found {
        None => Err(damaged(dir, path, "it does not say which format the store has")),
        Some(found) if found > FORMAT => Err(Error::NewerFormat { path, found, known: FORMAT }),
        Some(_) => Ok(true),
    }
}

/// A kill during sled's own snapshot leaves these; sled never removes them.
fn remove_leftovers(log: &Path) -> Result<(), Error> {
    let list = fs::read_dir(log).map_err(file_error("list directory", log))?;
    for item in list {
        let path = item.map_err(file_error("list directory", log))?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(&path).map_err(file_error("remove file", &path))?;
        }
    }
    Ok(())
}

fn open_log(log: &Path) -> Result<(sled::Db, sled::Tree, sled::Tree), String> {
    guarded(|| {
        let config = sled::Config::new().path(log).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        let db = config.open()?;
        let ring = db.open_tree("ring")?;
        let meta = db.open_tree("meta")?;
        Ok((db, ring, meta))
    })
}

/// Whether nothing in `dir` speaks of a store that was ever finished: no snapshot, and no more than the one commit with
/// which a creation ends.
fn never_used(dir: &Path) -> Result<bool, Error> {
    let witness = match fs::read(dir.join("WITNESS")) {
        Ok(bytes) => codec::unseal(b"witness", &bytes).ok().and_then(|number| number.try_into().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(file_error("read file", &dir.join("WITNESS"))(error)),
    };
    let snapshots = dir.join("snapshots");
    let snapshot = match fs::read_dir(&snapshots) {
        Ok(mut list) => list.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(file_error("list directory", &snapshots)(error)),
    };
    Ok(!snapshot && witness.map_or(0, u64::from_le_bytes) <= 1)
}

/// Runs sled code, which may panic on damaged files.
fn guarded<T>(work: impl FnOnce() -> sled::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the storage engine stopped on an inconsistency".to_owned()),
    }
}

fn slot_key(index: u64, part: u16) -> [u8; 4] {
    let slot = u16::try_from(index % RING).expect("the ring has fewer than 65536 slots").to_be_bytes();
    let part = part.to_be_bytes();
    [slot[0], slot[1], part[0], part[1]]
}

/// What the checksum of a part covers beside its bytes: where it belongs.
fn context(index: u64, part: u16, parts: u16) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&index.to_le_bytes());
    bytes[8..10].copy_from_slice(&part.to_le_bytes());
    bytes[10..].copy_from_slice(&parts.to_le_bytes());
    bytes
}

fn part_value(index: u64, part: u16, parts: u16, bytes: &[u8]) -> Vec<u8> {
    let context = context(index, part, parts);
    let mut value = context.to_vec();
    value.extend_from_slice(&codec::seal(&context, bytes));
    value
}

/// One part as read back.
struct Part {
    index: u64,
    part: u16,
    parts: u16,
    bytes: Vec<u8>,
}

fn read_part(value: &[u8]) -> Result<Part, CodecError> {
    let Some((head, sealed)) = value.split_at_checked(12) else {
        return Err(CodecError::Short(value.len()));
    };
    let bytes = codec::unseal(head, sealed)?.to_vec();
    let number = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let mut index = [0; 8];
    index.copy_from_slice(&head[..8]);
    Ok(Part { index: u64::from_le_bytes(index), part: number(8), parts: number(10), bytes })
}

impl Disk {
    /// Opens the store in `dir`, creating it if there is none, and reads all of it.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::Damaged`], [`Error::NewerFormat`] or [`Error::File`]; each says what to do.
    pub fn open(dir: &Path) -> Result<(Disk, Contents), Error> {
        fs::create_dir_all(dir).map_err(file_error("create directory", dir))?;
        let lock = lock(dir)?;
        let finished = read_format(dir)?;
        let log = dir.join("log");
        let db_path = log.join("db");
        if finished && !db_path.exists() {
            return Err(damaged(dir, db_path, "the log is missing"));
        }
        fs::create_dir_all(&log).map_err(file_error("create directory", &log))?;
        remove_leftovers(&log)?;
        let unreadable = |what: String| damaged(dir, db_path.clone(), what);
        let opened = match open_log(&log) {
            // The power failed while the store was being created: nobody has been promised anything yet.
            Err(_) if !finished && never_used(dir)? => {
                fs::remove_dir_all(&log).map_err(file_error("remove directory", &log))?;
                fs::create_dir_all(&log).map_err(file_error("create directory", &log))?;
                open_log(&log)
            }
            opened => opened,
        };
        let (db, ring, meta) = opened.map_err(unreadable)?;
        let file = File::open(&db_path).map_err(file_error("open file", &db_path))?;
        let witness_path = dir.join("WITNESS");
        let witness = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&witness_path)
            .map_err(file_error("open file", &witness_path))?;
        let mut disk = Disk {
            dir: dir.to_owned(),
            db,
            ring,
            meta,
            file,
            witness,
            commits: 0,
            parts: BTreeMap::new(),
            lock: Arc::new(lock),
        };
        let contents = if finished { disk.read_all()? } else { disk.finish_creation()? };
        Ok((disk, contents))
    }

    fn db_path(&self) -> PathBuf {
        self.dir.join("log").join("db")
    }

    fn damaged(&self, what: impl Into<String>) -> Error {
        damaged(&self.dir, self.db_path(), what)
    }

    /// Writes the format record and marks the store as finished.
    fn finish_creation(&mut self) -> Result<Contents, Error> {
        if guarded(|| Ok(!self.ring.is_empty() || self.meta.contains_key(Fact::Vote.key())?))
            .map_err(|e| self.damaged(e))?
        {
            let path = self.dir.join("FORMAT");
            return Err(damaged(&self.dir, path, "it is missing, but there is a log beside it"));
        }
        self.write(&Batch::default())?;
        self.sync()?;
        // sled writes a file of settings beside its log and leaves it to the kernel: without it nothing can be read.
        let settings = self.dir.join("log").join("conf");
        File::open(&settings).and_then(|file| file.sync_all()).map_err(file_error("sync file", &settings))?;
        sync_dir(&self.dir.join("log"))?;
        sync_dir(&self.dir)?;
        self.dir.parent().filter(|p| !p.as_os_str().is_empty()).map_or(Ok(()), sync_dir)?;
        write_whole(&self.dir.join("FORMAT"), format!("{FORMAT_TEXT}{FORMAT}\n").as_bytes())?;
        Ok(Contents::default())
    }

    fn read_all(&mut self) -> Result<Contents, Error> {
        let raw = guarded(|| {
            let ring = self.ring.iter().collect::<sled::Result<Vec<_>>>()?;
            let meta = self.meta.iter().collect::<sled::Result<Vec<_>>>()?;
            Ok((ring, meta))
        });
        let (ring, meta) = raw.map_err(|e| self.damaged(e))?;
        let mut found: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (key, value) in meta {
            let name = String::from_utf8_lossy(&key).into_owned();
            let bytes = codec::unseal(&key, &value).map_err(|e| self.record_error(&name, &e))?;
            found.insert(name, bytes.to_vec());
        }
        self.check_commits(found.get(COMMITS).map(Vec::as_slice))?;
        let mut contents = Contents::default();
        for fact in Fact::ALL {
            if let Some(bytes) = found.remove(fact.key()) {
                contents.facts.insert(fact, bytes);
            }
        }
        let mut parts: BTreeMap<u64, Vec<Part>> = BTreeMap::new();
        for (key, value) in ring {
            let part = read_part(&value).map_err(|e| self.record_error(&format!("entry at {key:02x?}"), &e))?;
            if key.as_ref() != slot_key(part.index, part.part) {
                return Err(self.damaged(format!("entry {} is in the wrong slot", part.index)));
            }
            parts.entry(part.index).or_default().push(part);
        }
        for (index, list) in parts {
            let count = list.first().map_or(0, |p| p.parts);
            let whole = list.len() == usize::from(count)
                && list.iter().enumerate().all(|(at, p)| usize::from(p.part) == at && p.parts == count);
            if count > 1 {
                self.parts.insert(index, count);
            }
            if whole {
                contents.entries.insert(index, list.into_iter().flat_map(|p| p.bytes).collect());
            } else {
                contents.incomplete.push(index);
            }
        }
        Ok(contents)
    }

    fn record_error(&self, name: &str, error: &CodecError) -> Error {
        match error {
            CodecError::Version(found) => {
                Error::NewerFormat { path: self.db_path(), found: u32::from(*found), known: u32::from(codec::TAG) }
            }
            CodecError::Short(_) | CodecError::Checksum | CodecError::Decode(_) | CodecError::Encode(_) => {
                self.damaged(format!("{name}: {error}"))
            }
        }
    }

    /// Compares sled's number of commits with the witness. sled takes a damaged middle for a torn
    /// end and drops what follows; then its number is smaller than one that was surely durable.
    fn check_commits(&mut self, stored: Option<&[u8]>) -> Result<(), Error> {
        let Some(stored) = stored.and_then(|b| <[u8; 8]>::try_from(b).ok()).map(u64::from_le_bytes) else {
            return Err(self.damaged("the record of commits is missing"));
        };
        self.commits = stored;
        let mut bytes = [0_u8; 13];
        // An absent or torn witness proves nothing: it is written without waiting for the disk.
        let witness = self.witness.read_exact_at(&mut bytes, 0).ok().and_then(|()| {
            let payload = codec::unseal(b"witness", &bytes).ok()?;
            payload.try_into().ok().map(u64::from_le_bytes)
        });
        match witness {
            Some(seen) if seen > stored => {
                Err(self.damaged(format!("{seen} commits were durable once, but only {stored} are left")))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Changes the trees, in this order: facts, removals from the last to the first, entries from the first to the last.
    /// Durable after [`Disk::sync`].
    ///
    /// A crash leaves a beginning of that, whatever its moment: at most the last entry is incomplete then, and no hole is in
    /// the log. Each change is an operation of its own, because the changes of sled's batches are in no order.
    ///
    /// # Errors
    /// [`Error::Write`]: the store must not be used any more.
    pub fn write(&mut self, batch: &Batch) -> Result<(), Error> {
        for (fact, bytes) in &batch.facts {
            self.put_meta(fact.key(), bytes)?;
        }
        let mut removed = batch.removed.clone();
        removed.sort_unstable();
        for index in removed.iter().rev() {
            let parts = self.parts.remove(index).unwrap_or(1);
            for part in (0..parts).rev() {
                self.put_part(*index, part, None)?;
            }
        }
        for (index, bytes) in &batch.entries {
            let parts = bytes.len().div_ceil(PART).max(1);
            let parts = u16::try_from(parts).map_err(|_| self.write_error("entry is too large"))?;
            // The slot may still hold more parts, of this entry before or of the one a round ago.
            let before = self.parts.remove(index).max(index.checked_sub(RING).and_then(|old| self.parts.remove(&old)));
            for part in parts..before.unwrap_or(0) {
                self.put_part(*index, part, None)?;
            }
            for part in 0..parts {
                let start = usize::from(part) * PART;
                let piece = &bytes[start..bytes.len().min(start + PART)];
                self.put_part(*index, part, Some(part_value(*index, part, parts, piece)))?;
            }
            if parts > 1 {
                self.parts.insert(*index, parts);
            }
        }
        // Last, so that [`Disk::check_commits`] can tell whether everything before it is there.
        self.commits += 1;
        self.put_meta(COMMITS, &self.commits.to_le_bytes())
    }

    fn put_meta(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        let sealed = codec::seal(key.as_bytes(), bytes);
        guarded(|| self.meta.insert(key, sealed)).map(drop).map_err(|why| self.write_error(why))
    }

    fn put_part(&self, index: u64, part: u16, value: Option<Vec<u8>>) -> Result<(), Error> {
        let key = slot_key(index, part);
        let changed = guarded(|| match value {
            Some(value) => self.ring.insert(key, value),
            None => self.ring.remove(key),
        });
        changed.map(drop).map_err(|why| self.write_error(why))
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// [`Error::Write`]: nothing is known about what reached the disk; the process must end.
    pub fn sync(&mut self) -> Result<(), Error> {
        guarded(|| self.db.flush()).map_err(|why| self.write_error(why))?;
        if !file_range::is_in_effect() {
            self.file.sync_data().map_err(|e| self.write_error(e.to_string()))?;
        }
        let record = codec::seal(b"witness", &self.commits.to_le_bytes());
        self.witness.write_all_at(&record, 0).map_err(|e| self.write_error(e.to_string()))
    }

    fn write_error(&self, why: impl Into<String>) -> Error {
        Error::Write { path: self.db_path(), why: why.into() }
    }

    /// A handle for reading entries.
    pub fn reader(&self) -> Reader {
        Reader { ring: self.ring.clone(), path: self.db_path(), _lock: Arc::clone(&self.lock) }
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Reader {
    /// The bytes of an entry, none if its slot holds another one or nothing.
    ///
    /// # Errors
    /// Damage, as an I/O error: the engine stops on it.
    pub fn read(&self, index: u64) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        let mut part = 0;
        loop {
            let value = guarded(|| self.ring.get(slot_key(index, part))).map_err(|why| self.error(index, &why))?;
            let Some(value) = value else { return Ok(None) };
            let piece = read_part(&value).map_err(|e| self.error(index, &e.to_string()))?;
            if piece.index != index || piece.part != part {
                return Ok(None);
            }
            bytes.extend_from_slice(&piece.bytes);
            part += 1;
            if part >= piece.parts {
                return Ok(Some(bytes));
            }
        }
    }

    fn error(&self, index: u64, why: &str) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, format!("read entry {index} of {}: {why}", self.path.display()))
    }
}
