//! Queues of keys: what locks and elections are made of. Whoever created its key first is in front.
//!
//! ```text
//!   name/<lease a>   created at 7     in front
//!   name/<lease b>   created at 9     waits until nothing under name/ is older
//! ```
//! A key hangs on its holder's lease, so that whoever falls silent leaves the queue. The waiting is done on what this
//! member has applied, and confirmed with the leader before anybody is told that it is in front.
//!
//! Source: etcd, client library `concurrency`.

use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tonic::Status;

use super::caller::Caller;
use super::{Etcd, error, lease};
use crate::kv::command::{
    Command, Compare, CompareResult, CompareTarget, DeleteRangeRequest, KeyValue, PutRequest, RangeRequest, RequestOp,
    Response, ResponseOp, TxnRequest,
};
use crate::kv::{State, prefix_end};
use crate::types::LeaseId;

/// Time to live of a lease that is made for a caller who brings none. Source: etcd, 60 s.
const SESSION_TTL_MS: u64 = 60_000;

/// A key in a queue.
pub(super) struct Place {
    /// `<name>/<lease>`.
    pub key: Vec<u8>,
    /// When it was created.
    pub revision: i64,
    /// The lease that it hangs on.
    pub lease: LeaseId,
}

/// Takes a key out of its queue when its owner stops waiting before its turn.
struct Withdraw<'a> {
    etcd: &'a Etcd,
    caller: &'a Caller,
    place: Option<&'a Place>,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        let Some(place) = self.place else { return };
        let (etcd, caller, delete) = (self.etcd.clone(), self.caller.clone(), delete_if(&place.key, place.revision));
        tokio::spawn(async move {
            // If this fails, the key ends with its lease.
            let _ = etcd.change(&caller, delete).await;
        });
    }
}

/// The part of a key that all of a queue share.
pub(super) fn queue(name: &[u8]) -> Vec<u8> {
    [name, b"/"].concat()
}

/// The queue's pair that was created first.
pub(super) fn front<'a>(pairs: impl Iterator<Item = &'a KeyValue>) -> Option<&'a KeyValue> {
    pairs.min_by_key(|pair| pair.create_revision)
}

fn key_of(name: &[u8], lease: LeaseId) -> Vec<u8> {
    let sign = if lease.0 < 0 { "-" } else { "" };
    [&queue(name), format!("{sign}{:x}", lease.0.unsigned_abs()).as_bytes()].concat()
}

fn put(key: &[u8], value: Vec<u8>, lease: LeaseId) -> RequestOp {
    let (key, flags) = (key.to_vec(), false);
    RequestOp::Put(PutRequest { key, value, lease, prev_kv: flags, ignore_value: flags, ignore_lease: flags })
}

fn created_at(key: &[u8], revision: i64) -> Compare {
    Compare {
        key: key.to_vec(),
        range_end: Vec::new(),
        result: CompareResult::Equal,
        target: CompareTarget::Create(revision),
    }
}

/// Deletes a key if it is still the one that was created at a revision.
pub(super) fn delete_if(key: &[u8], revision: i64) -> Command {
    let delete = DeleteRangeRequest { key: key.to_vec(), range_end: Vec::new(), prev_kv: false };
    Command::Txn(TxnRequest {
        compare: vec![created_at(key, revision)],
        success: vec![RequestOp::DeleteRange(delete)],
        failure: Vec::new(),
    })
}

/// Writes a key if it is still the one that was created at a revision.
pub(super) fn put_if(place: &Place, value: Vec<u8>) -> Command {
    Command::Txn(TxnRequest {
        compare: vec![created_at(&place.key, place.revision)],
        success: vec![put(&place.key, value, place.lease)],
        failure: Vec::new(),
    })
}

impl Etcd {
    /// Does a transaction of one's own making; whether its conditions held, at which revision, and the answers.
    pub(super) async fn try_txn(
        &self,
        caller: &Caller,
        command: Command,
    ) -> Result<(bool, i64, Vec<ResponseOp>), Status> {
        match self.change(caller, command).await? {
            Response::Txn(txn) => Ok((txn.succeeded, txn.revision, txn.responses)),
            other => Err(Status::internal(format!("etcdserver: unexpected answer {other:?}"))),
        }
    }

    /// Takes a place in a queue, or finds the one that the lease already has; with the value that is there then.
    pub(super) async fn enqueue(
        &self,
        caller: &Caller,
        name: &[u8],
        lease: i64,
        value: &[u8],
    ) -> Result<(Place, Vec<u8>), Status> {
        let lease = match lease {
            0 => self.session(caller).await?,
            lease => LeaseId(lease),
        };
        let key = key_of(name, lease);
        // Who may not see the queue may not stand in it.
        let (first, limit) = (queue(name), 1);
        let sees = RequestOp::Range(RangeRequest {
            range_end: prefix_end(&first),
            key: first,
            limit,
            ..RangeRequest::default()
        });
        let own = RequestOp::Range(RangeRequest { key: key.clone(), ..RangeRequest::default() });
        let enter = Command::Txn(TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: vec![put(&key, value.to_vec(), lease), sees],
            failure: vec![own],
        });
        let (entered, revision, responses) = self.try_txn(caller, enter).await?;
        if entered {
            return Ok((Place { key, revision, lease }, value.to_vec()));
        }
        match responses.into_iter().next() {
            Some(ResponseOp::Range(mut range)) if !range.kvs.is_empty() => {
                let pair = range.kvs.swap_remove(0);
                Ok((Place { key, revision: pair.create_revision, lease }, pair.value))
            }
            other => Err(Status::internal(format!("etcdserver: unexpected answer {other:?}"))),
        }
    }

    async fn session(&self, caller: &Caller) -> Result<LeaseId, Status> {
        let id = LeaseId(lease::drawn_id());
        self.change(caller, Command::LeaseGrant { id, ttl_ms: SESSION_TTL_MS }).await?;
        Ok(id)
    }

    /// Waits until a place is in front of its queue; an error if it is lost on the way. The lease is kept alive for as
    /// long as the caller waits.
    pub(super) async fn wait_turn(&self, caller: &Caller, name: &[u8], place: &Place) -> Result<(), Status> {
        let queue = queue(name);
        let turn = |state: &State| match state.get(&place.key) {
            Some(pair) if pair.create_revision == place.revision => {
                let in_front = front(state.prefix(&queue)).is_some_and(|pair| pair.key == place.key);
                in_front.then_some(true)
            }
            _ => Some(false),
        };
        let mut withdraw = Withdraw { etcd: self, caller, place: Some(place) };
        // Seen before this member has applied the entry, its own key would be missing.
        self.linearize().await?;
        let arrived = tokio::select! {
            arrived = self.wait_for(turn) => arrived?,
            never = self.keep_waiting(place.lease) => match never {},
        };
        // Who believes that it is in front may have lost its lease meanwhile.
        self.linearize().await?;
        if arrived && self.store.read(turn) == Some(true) {
            withdraw.place = None;
            return Ok(());
        }
        Err(Status::failed_precondition("etcdserver: the session has ended while it waited"))
    }

    /// Keeps a lease alive; never ends.
    async fn keep_waiting(&self, lease: LeaseId) -> std::convert::Infallible {
        loop {
            let ttl = self.store.read(|state| state.lease(lease).map_or(SESSION_TTL_MS, |lease| lease.ttl_ms));
            tokio::time::sleep(Duration::from_millis(ttl / 3)).await;
            // What has gone wrong may be better at the next time; a lease that is gone takes the key with it.
            let _ = self.store.lease_renew(lease, None, self.patience()).await;
        }
    }

    /// Waits until something can be seen in what this member has applied.
    pub(super) async fn wait_for<T>(&self, mut look: impl FnMut(&State) -> Option<T>) -> Result<T, Status> {
        let mut news = self.store.events();
        loop {
            if let Some(seen) = self.store.read(&mut look) {
                return Ok(seen);
            }
            tokio::select! {
                () = self.closing.cancelled() => return Err(error::stopped()),
                heard = news.recv() => if matches!(heard, Err(RecvError::Closed)) {
                    return Err(error::stopped());
                },
            }
        }
    }
}
