//! The store as bytes, for snapshots, and back.
//!
//! ```text
//!   format (1 byte) | CRC-32C of the rest (4, little endian) | header | leases... | keys... | users and roles
//! ```
//!
//! The records are bincode (standard configuration), one after the other; counts are in the header.
//! What follows from the rest is not stored: the log of changes and the keys of a lease are rebuilt.
//! Damage gives an error, never a panic and never a store that breaks its own rules later: all that
//! the other modules rely on is checked again here.

use std::collections::BTreeMap;
use std::sync::Arc;

use bincode::config;
use serde::{Deserialize, Serialize};

use super::auth::AuthRecord;
use super::command::KeyValue;
use super::key_index::{Change, KeyHistory};
use super::lease::Leases;
use super::revision::Revision;
use super::state::{State, change_size, key_size};
use crate::types::LeaseId;

/// Change it with every change of the format, and keep reading the older ones.
///
/// 1: without users and roles. 2: users and roles after the last key.
const FORMAT: u8 = 2;
const PREFIX: usize = 5;

/// Why bytes are not a store.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Not even a format number and a checksum.
    #[error("read store snapshot: only {length} bytes, not a snapshot")]
    Short {
        /// All there is.
        length: usize,
    },
    /// Written by a version of the program that this one does not know.
    #[error("read store snapshot: format {found}, this version reads up to {FORMAT}: upgrade this node first")]
    Format {
        /// The number that was found.
        found: u8,
    },
    /// Damaged after it was written.
    #[error("read store snapshot: checksum is {found:08x}, {expected:08x} was written: the data is damaged")]
    Checksum {
        /// Of the bytes at hand.
        found: u32,
        /// As written.
        expected: u32,
    },
    /// A record that cannot be decoded.
    #[error("read store snapshot: {record} is unreadable")]
    Record {
        /// Which one.
        record: &'static str,
        /// What the decoder says.
        #[source]
        source: bincode::error::DecodeError,
    },
    /// Readable, but no store can look like this.
    #[error("read store snapshot: {broken}")]
    Rule {
        /// The rule that is broken.
        broken: &'static str,
    },
}

/// Bytes that are written and read in one piece instead of one by one; the format is the same.
#[derive(Clone, Copy)]
pub(super) struct Raw<'a>(pub &'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Raw<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&'de [u8]>::deserialize(deserializer).map(Raw)
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    revision: i64,
    compact_revision: i64,
    leases: u64,
    keys: u64,
}

#[derive(Serialize, Deserialize)]
struct LeaseRecord {
    id: LeaseId,
    ttl_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct KeyRecord<'a> {
    #[serde(borrow)]
    key: Raw<'a>,
    changes: u64,
}

#[derive(Serialize, Deserialize)]
struct ChangeRecord<'a> {
    main: i64,
    sub: u32,
    #[serde(borrow)]
    put: Option<VersionRecord<'a>>,
}

#[derive(Serialize, Deserialize)]
struct VersionRecord<'a> {
    #[serde(borrow)]
    value: Raw<'a>,
    create_revision: i64,
    version: i64,
    lease: LeaseId,
}

impl State {
    /// The whole store as bytes. Equal stores give equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![FORMAT, 0, 0, 0, 0];
        let header = Header {
            revision: self.revision,
            compact_revision: self.compact_revision,
            leases: self.leases.len() as u64,
            keys: self.keys.len() as u64,
        };
        write(&mut out, &header);
        for (id, ttl_ms) in self.leases.iter() {
            write(&mut out, &LeaseRecord { id, ttl_ms });
        }
        for (key, history) in &self.keys {
            write(&mut out, &KeyRecord { key: Raw(key), changes: history.len() as u64 });
            for change in history.changes(key) {
                write(&mut out, &change_record(&change));
            }
        }
        write(&mut out, &self.auth);
        let checksum = crc32c::crc32c(&out[PREFIX..]);
        out[1..PREFIX].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// The store that [`State::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let Some((prefix, body)) = bytes.split_first_chunk::<PREFIX>() else {
            return Err(SnapshotError::Short { length: bytes.len() });
        };
        let [found, checksum @ ..] = *prefix;
        if !(1..=FORMAT).contains(&found) {
            return Err(SnapshotError::Format { found });
        }
        let format = found;
        let (found, expected) = (crc32c::crc32c(body), u32::from_le_bytes(checksum));
        if found != expected {
            return Err(SnapshotError::Checksum { found, expected });
        }
        let mut reader = Reader { rest: body };
        let mut state = reader.state()?;
        if format > 1 {
            state.auth = reader.record::<AuthRecord<'_>>("the users and roles")?.restore()?;
        }
        rule(reader.rest.is_empty(), "there is something after the last record")?;
        Ok(state)
    }
}

fn write(out: &mut Vec<u8>, record: &impl Serialize) {
    bincode::serde::encode_into_std_write(record, out, config::standard())
        .expect("writing plain records to memory cannot fail");
}

fn change_record<'a>(change: &Change<'a>) -> ChangeRecord<'a> {
    let put = change.put.map(|pair| VersionRecord {
        value: Raw(pair.value),
        create_revision: pair.create_revision,
        version: pair.version,
        lease: pair.lease,
    });
    ChangeRecord { main: change.at.main, sub: change.at.sub, put }
}

pub(super) fn rule(holds: bool, broken: &'static str) -> Result<(), SnapshotError> {
    if holds { Ok(()) } else { Err(SnapshotError::Rule { broken }) }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn record<T: Deserialize<'a>>(&mut self, record: &'static str) -> Result<T, SnapshotError> {
        let (value, length) = bincode::serde::borrow_decode_from_slice(self.rest, config::standard())
            .map_err(|source| SnapshotError::Record { record, source })?;
        self.rest = &self.rest[length..];
        Ok(value)
    }

    fn state(&mut self) -> Result<State, SnapshotError> {
        let header: Header = self.record("the header")?;
        let compact_revision = header.compact_revision;
        // Half of all numbers are left for the future: no later addition can overflow.
        rule((1..=i64::MAX / 2).contains(&header.revision), "the revision is out of bounds")?;
        rule((-1..=header.revision).contains(&compact_revision), "the compact revision is out of bounds")?;
        let mut leases = Leases::default();
        for _ in 0..header.leases {
            let LeaseRecord { id, ttl_ms } = self.record("a lease")?;
            rule(leases.grant(id, ttl_ms).is_ok(), "a lease is there twice, or has impossible numbers")?;
        }
        let mut state = State { revision: header.revision, compact_revision, leases, ..State::new() };
        let mut log = BTreeMap::new();
        for _ in 0..header.keys {
            let key = self.key(&mut state, &mut log)?;
            rule(state.keys.last_key_value().is_none_or(|(last, _)| **last < *key.0), "the keys are not in order")?;
            state.keys.insert(key.0, key.1);
        }
        state.log = log.into_iter().collect();
        Ok(state)
    }

    fn key(
        &mut self,
        state: &mut State,
        log: &mut BTreeMap<Revision, Arc<[u8]>>,
    ) -> Result<(Arc<[u8]>, KeyHistory), SnapshotError> {
        let KeyRecord { key, changes } = self.record("a key")?;
        rule(!key.0.is_empty() && changes > 0, "a key is empty, or has no changes")?;
        let key: Arc<[u8]> = Arc::from(key.0);
        let mut history = KeyHistory::default();
        let mut last: Option<Revision> = None;
        state.data_bytes += key_size(&key);
        for _ in 0..changes {
            let record: ChangeRecord<'_> = self.record("a change")?;
            let at = Revision { main: record.main, sub: record.sub };
            rule((2..=state.revision).contains(&at.main), "a change lies outside the revisions")?;
            rule(last.is_none_or(|last| last < at), "the changes of a key are not in order")?;
            let forgotten =
                last.is_some_and(|last| last.main < state.compact_revision && at.main <= state.compact_revision);
            rule(!forgotten, "a change should have been compacted away")?;
            state.data_bytes += change_size(record.put.as_ref().map_or(0, |put| put.value.0.len()));
            // What was deleted may be forgotten only if the deletion is at the compact revision itself.
            let deletes_nothing = record.put.is_none() && history.live().is_none();
            let known = last.is_none() && at.main == state.compact_revision;
            rule(!deletes_nothing || known, "a deletion of nothing")?;
            restore(&mut history, &key, at, record.put)?;
            if at.main >= state.compact_revision {
                rule(log.insert(at, Arc::clone(&key)).is_none(), "two changes have one revision")?;
            } else {
                rule(history.live().is_some(), "a deletion should have been compacted away")?;
            }
            last = Some(at);
        }
        if let Some(pair) = history.live()
            && pair.lease != LeaseId(0)
        {
            rule(state.leases.contains(pair.lease), "a key hangs on a lease that does not exist")?;
            state.leases.move_key(&key, LeaseId(0), pair.lease);
        }
        Ok((key, history))
    }
}

fn restore(
    history: &mut KeyHistory,
    key: &[u8],
    at: Revision,
    put: Option<VersionRecord<'_>>,
) -> Result<(), SnapshotError> {
    let Some(put) = put else {
        history.delete(at);
        return Ok(());
    };
    // A key is put at most once in a revision.
    let lived = at.main.saturating_sub(put.create_revision);
    rule(put.create_revision >= 2 && (1..=lived + 1).contains(&put.version), "a pair has impossible numbers")?;
    let pair = KeyValue {
        key: key.to_vec(),
        value: put.value.0.to_vec(),
        create_revision: put.create_revision,
        mod_revision: at.main,
        version: put.version,
        lease: put.lease,
    };
    history.put(at.sub, pair);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Arc, FORMAT, KeyHistory, PREFIX, SnapshotError, State};
    use crate::kv::auth::{AuthChange, Permission, PermissionKind, ROOT};
    use crate::kv::command::{Command, DeleteRangeRequest, PutRequest, RangeRequest};
    use crate::types::LeaseId;
    use proptest::prelude::*;

    /// Several keys with several lives, leases, a compaction in the middle.
    fn store() -> State {
        let mut state = State::new();
        let mut apply = |command| drop(state.apply(&command).response.unwrap());
        apply(Command::LeaseGrant { id: LeaseId(-7), ttl_ms: 5000 });
        apply(Command::LeaseGrant { id: LeaseId(300), ttl_ms: 1 });
        for round in 0..6_u8 {
            for key in [b"alpha".to_vec(), b"beta".to_vec(), vec![b'g', round]] {
                let lease = LeaseId(if round % 2 == 0 { -7 } else { 0 });
                let value = vec![round; usize::from(round) * 30];
                apply(Command::Put(PutRequest {
                    key,
                    value,
                    lease,
                    prev_kv: false,
                    ignore_value: false,
                    ignore_lease: false,
                }));
            }
            let (key, range_end) = (b"b".to_vec(), b"c".to_vec());
            apply(Command::DeleteRange(DeleteRangeRequest { key, range_end, prev_kv: false }));
        }
        // The third deletion of `beta`: its tombstone stays.
        apply(Command::Compact { revision: 13 });
        let text = str::to_owned;
        let permission = Permission { kind: PermissionKind::Read, key: b"a".to_vec(), range_end: b"b".to_vec() };
        for change in [
            AuthChange::UserAdd { name: text(ROOT), password: Some(text("hash")) },
            AuthChange::UserAdd { name: text("u"), password: None },
            AuthChange::RoleAdd { name: text("r") },
            AuthChange::UserGrantRole { user: text(ROOT), role: text(ROOT) },
            AuthChange::UserGrantRole { user: text("u"), role: text("r") },
            AuthChange::RoleGrantPermission { role: text("r"), permission },
            AuthChange::Enable,
            AuthChange::TokenIssue { user: text(ROOT), token: text("t"), revision: 7 },
        ] {
            apply(Command::Auth(change));
        }
        state
    }

    fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
        let checksum = crc32c::crc32c(&bytes[PREFIX..]);
        bytes[1..PREFIX].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Everything that relies on a store's inner rules.
    fn exercise(mut state: State) {
        let all = RangeRequest { key: vec![0], range_end: vec![0], ..RangeRequest::default() };
        state.range(&all).unwrap();
        state.hash_kv(0).unwrap();
        state.events_since(state.compact_revision(), &[0], &[0], usize::MAX).unwrap();
        for (id, _) in state.leases().collect::<Vec<_>>() {
            state.apply(&Command::LeaseRevoke { id }).response.unwrap();
        }
        let put = PutRequest {
            key: b"alpha".to_vec(),
            value: Vec::new(),
            lease: LeaseId(0),
            prev_kv: true,
            ignore_value: false,
            ignore_lease: false,
        };
        state.apply(&Command::Put(put)).response.unwrap();
        state.apply(&Command::Compact { revision: state.revision() }).response.unwrap();
        let restored = State::from_bytes(&state.to_bytes()).unwrap();
        assert_eq!(restored, state);
    }

    #[test]
    fn a_store_comes_back_as_it_was() {
        let state = store();
        let bytes = state.to_bytes();
        let restored = State::from_bytes(&bytes).unwrap();
        assert_eq!(restored, state);
        assert_eq!(restored.size_bytes(), state.size_bytes());
        assert_eq!(restored.to_bytes(), bytes);
        assert_eq!(State::from_bytes(&State::new().to_bytes()).unwrap(), State::new());
        // Nothing but the data: keys once, values once, a few bytes for the numbers of each change.
        let data = |(key, history): (&Arc<[u8]>, &KeyHistory)| {
            let values = history.changes(key).map(|change| 10 + change.put.map_or(0, |pair| pair.value.len()));
            4 + key.len() + values.sum::<usize>()
        };
        let expected: usize = state.keys.iter().map(data).sum();
        assert!(bytes.len() < expected + 40 + 60, "{} bytes for {expected}", bytes.len());
        exercise(restored);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = store().to_bytes();
        for length in 0..bytes.len() {
            assert!(State::from_bytes(&bytes[..length]).is_err(), "{length} bytes");
            if length > PREFIX {
                let cut = with_checksum(bytes[..length].to_vec());
                assert!(State::from_bytes(&cut).is_err(), "{length} bytes with a new checksum");
            }
        }
        let longer = with_checksum([&bytes[..], b"x"].concat());
        assert!(matches!(State::from_bytes(&longer), Err(SnapshotError::Rule { .. })));
    }

    #[test]
    fn every_flipped_bit_is_an_error() {
        let bytes = store().to_bytes();
        for position in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[position / 8] ^= 1 << (position % 8);
            assert!(State::from_bytes(&damaged).is_err(), "bit {position}");
        }
    }

    /// Not damage but malice or a bug: what gets past the checksum is refused, or is a store that works.
    #[test]
    fn a_flipped_bit_under_a_new_checksum_never_breaks_the_store() {
        let bytes = store().to_bytes();
        let mut accepted = 0;
        for position in PREFIX * 8..bytes.len() * 8 {
            let mut forged = bytes.clone();
            forged[position / 8] ^= 1 << (position % 8);
            if let Ok(state) = State::from_bytes(&with_checksum(forged)) {
                accepted += 1;
                exercise(state);
            }
        }
        assert!(accepted > 0, "values may be anything");
    }

    #[test]
    fn a_store_from_before_users_and_roles_is_read() {
        let mut state = store();
        state.auth = crate::kv::auth::Auth::default();
        let bytes = state.to_bytes();
        let without = bincode::serde::encode_to_vec(&state.auth, bincode::config::standard()).unwrap().len();
        let mut older = with_checksum(bytes[..bytes.len() - without].to_vec());
        older[0] = 1;
        assert_eq!(State::from_bytes(&older).unwrap(), state);
    }

    #[test]
    fn a_newer_format_is_named() {
        let mut bytes = store().to_bytes();
        bytes[0] = FORMAT + 1;
        let error = State::from_bytes(&bytes).unwrap_err();
        assert!(error.to_string().contains("upgrade this node"), "{error}");
    }

    proptest! {
        #[test]
        fn noise_is_refused(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut forged = [&[FORMAT, 0, 0, 0, 0], &noise[..]].concat();
            prop_assert!(State::from_bytes(&noise).is_err());
            forged = with_checksum(forged);
            if let Ok(state) = State::from_bytes(&forged) {
                exercise(state);
            }
        }
    }
}
