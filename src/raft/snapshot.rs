//! Snapshots of the state machine: one checksummed file each, the newest one counts.
//!
//! `DIR/snapshots/<index>-<term>.snapshot = magic | header length (u32 LE) | sealed header | body`
//!
//! A file appears under its name only when it is complete and synced, so an incomplete one under
//! that name is damage, not a crash. Older files are removed after a newer one is durable.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::codec;
use super::error::Error;
use super::files::{file_error, write_whole};
use super::types::{LogId, Membership, SnapshotMeta, StoredMembership};

const MAGIC: &[u8; 8] = b"HWDSNAP\n";
/// Largest body that is read or received.
pub const MAX_BODY: u64 = 1024 * 1024 * 1024;
const MAX_HEADER: usize = 1024 * 1024;

/// What is known about a snapshot beside its body. Also sent to a follower before the body.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// The last entry that the snapshot includes.
    pub last: Option<LogId>,
    /// Where the membership stands in the log.
    pub membership_at: Option<LogId>,
    /// The membership at that entry.
    pub membership: Membership,
    /// Length of the body.
    pub length: u64,
    /// Checksum of the body.
    pub crc32c: u32,
}

impl Header {
    /// Describes a body.
    pub fn new(meta: &SnapshotMeta, body: &[u8]) -> Self {
        Self {
            last: meta.last_log_id,
            membership_at: *meta.last_membership.log_id(),
            membership: meta.last_membership.membership().clone(),
            length: body.len() as u64,
            crc32c: crc32c::crc32c(body),
        }
    }

    /// The engine's form.
    pub fn meta(&self) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: self.last,
            last_membership: StoredMembership::new(self.membership_at, self.membership.clone()),
        }
    }

    /// Whether a body is the one described.
    pub fn fits(&self, body: &[u8]) -> bool {
        self.length == body.len() as u64 && self.crc32c == crc32c::crc32c(body)
    }
}

/// The directory of snapshots.
pub struct Snapshots {
    dir: PathBuf,
    store: PathBuf,
    current: Mutex<Option<(Header, PathBuf)>>,
}

impl Snapshots {
    /// Opens `store/snapshots`, removes unfinished files and verifies the newest finished one.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the newest file is not what was written.
    pub fn open(store: &Path) -> Result<Self, Error> {
        let dir = store.join("snapshots");
        fs::create_dir_all(&dir).map_err(file_error("create directory", &dir))?;
        let mut newest: Option<PathBuf> = None;
        for item in fs::read_dir(&dir).map_err(file_error("list directory", &dir))? {
            let path = item.map_err(file_error("list directory", &dir))?.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("tmp") => fs::remove_file(&path).map_err(file_error("remove file", &path))?,
                // Names begin with the index in fixed width: the greatest name is the newest file.
                Some("snapshot") => newest = newest.max(Some(path)),
                Some(_) | None => {}
            }
        }
        let this = Self { dir, store: store.to_owned(), current: Mutex::new(None) };
        if let Some(path) = newest {
            let (header, _) = this.read(&path)?;
            *this.current.lock().unwrap_or_else(PoisonError::into_inner) = Some((header, path));
        }
        Ok(this)
    }

    /// The newest snapshot's description.
    pub fn current(&self) -> Option<Header> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map(|(header, _)| header.clone())
    }

    /// The newest snapshot, read and verified.
    ///
    /// # Errors
    /// [`Error::Damaged`] or [`Error::File`].
    pub fn load(&self) -> Result<Option<(Header, Bytes)>, Error> {
        let path = {
            let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            current.as_ref().map(|(_, path)| path.clone())
        };
        path.map(|path| self.read(&path)).transpose()
    }

    /// Makes a snapshot durable and the newest, then removes older ones. Older than the newest: ignored.
    ///
    /// # Errors
    /// [`Error::File`]; the earlier snapshot then still counts.
    pub fn save(&self, header: &Header, body: &[u8]) -> Result<(), Error> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|(have, _)| have.last >= header.last) {
            return Ok(());
        }
        let (index, term) = header.last.map_or((0, 0), |id| (id.index, id.committed_leader_id().term));
        let path = self.dir.join(format!("{index:020}-{term:020}.snapshot"));
        let encoded = codec::encode(header).map_err(|e| file_error("encode", &path)(io::Error::other(e)))?;
        let sealed = codec::seal(MAGIC, &encoded);
        let mut bytes = Vec::with_capacity(12 + sealed.len() + body.len());
        bytes.extend_from_slice(MAGIC);
        let length = u32::try_from(sealed.len()).expect("a header is far below 4 GiB");
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&sealed);
        bytes.extend_from_slice(body);
        write_whole(&path, &bytes)?;
        *current = Some((header.clone(), path.clone()));
        self.remove_others(&path)
    }

    fn remove_others(&self, keep: &Path) -> Result<(), Error> {
        for item in fs::read_dir(&self.dir).map_err(file_error("list directory", &self.dir))? {
            let path = item.map_err(file_error("list directory", &self.dir))?.path();
            if path != keep && path.extension().is_some_and(|e| e == "snapshot") {
                fs::remove_file(&path).map_err(file_error("remove file", &path))?;
            }
        }
        Ok(())
    }

    fn read(&self, path: &Path) -> Result<(Header, Bytes), Error> {
        let damaged = |what: String| Error::Damaged { path: path.to_owned(), dir: self.store.clone(), what };
        let file = File::open(path).map_err(file_error("open file", path))?;
        let mut bytes = Vec::new();
        let limit = MAX_BODY + MAX_HEADER as u64 + 12;
        file.take(limit).read_to_end(&mut bytes).map_err(file_error("read file", path))?;
        let rest = bytes.strip_prefix(MAGIC.as_slice()).ok_or_else(|| damaged("it is no snapshot".to_owned()))?;
        let short = || damaged("it is cut short".to_owned());
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_HEADER {
            return Err(damaged("its header is too long".to_owned()));
        }
        let (sealed, body) = rest.split_at_checked(length).ok_or_else(short)?;
        let encoded = match codec::unseal(MAGIC, sealed) {
            Err(codec::CodecError::Version(found)) => {
                let (found, known) = (u32::from(found), u32::from(codec::TAG));
                return Err(Error::NewerFormat { path: path.to_owned(), found, known });
            }
            other => other.map_err(|e| damaged(e.to_string()))?,
        };
        let header: Header = codec::decode(encoded).map_err(|e| damaged(e.to_string()))?;
        if !header.fits(body) {
            return Err(damaged("its body does not match its checksum".to_owned()));
        }
        let body_at = bytes.len() - body.len();
        Ok((header, Bytes::from(bytes).slice(body_at..)))
    }
}
