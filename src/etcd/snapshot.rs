//! A copy of all pairs for backup scripts, as `etcdctl snapshot save` fetches it.
//!
//! ```text
//!   {"howdah":"store","format":1,"cluster_id":"..","revision":"..","keys":".."}     one line
//!   {"key":"..","create_revision":"..","mod_revision":"..",...}                     a line per pair, by key
//!   newlines up to a multiple of 512 bytes | SHA-256 of all before (32 bytes)
//! ```
//! Lines of JSON in the gateway's form, so that anything reads them. etcd's own `snapshot restore` does not: it wants
//! a file of etcd's database. The passwords of howdah's record and of users are not in it.

use std::io::Write as _;

use serde_json::json;
use sha2::{Digest, Sha256};
use tonic::Status;

use super::pb::etcdserverpb::SnapshotResponse;
use super::{Etcd, VERSION, convert, error};
use crate::kv::command::RangeRequest;

/// Bytes of one message. Source: etcd.
const PIECE: usize = 32 * 1024;
/// etcd's tools tell by the length modulo this that a checksum follows.
const BLOCK: usize = 512;

impl Etcd {
    /// The copy, cut into messages.
    pub(super) fn export(&self) -> Result<Vec<SnapshotResponse>, Status> {
        let all = RangeRequest { key: vec![0], range_end: vec![0], ..RangeRequest::default() };
        let response = self.store.read(|state| {
            let mut response = state.range(&all)?;
            self.guard.hide(&all, &mut response, state);
            Ok(response)
        });
        let response = response.map_err(|refusal| error::rejected(&refusal))?;
        let unwritable = |why: serde_json::Error| Status::internal(format!("etcdserver: snapshot: {why}"));
        let head = json!({
            "howdah": "store",
            "format": 1,
            "cluster_id": self.cluster_id.to_string(),
            "revision": response.revision.to_string(),
            "keys": response.kvs.len().to_string(),
        });
        let mut blob = head.to_string().into_bytes();
        blob.push(b'\n');
        for pair in response.kvs {
            serde_json::to_writer(&mut blob, &convert::pair_out(pair)).map_err(unwritable)?;
            blob.push(b'\n');
        }
        blob.resize(blob.len().next_multiple_of(BLOCK), b'\n');
        let checksum = Sha256::digest(&blob);
        // Writing to memory cannot fail.
        let _ = blob.write_all(&checksum);
        let total = blob.len();
        let pieces = blob.chunks(PIECE).enumerate().map(|(number, piece)| SnapshotResponse {
            header: Some(self.header_at(response.revision)),
            remaining_bytes: (total - number * PIECE - piece.len()) as u64,
            blob: piece.to_vec(),
            version: VERSION.to_owned(),
        });
        Ok(pieces.collect())
    }
}
