//! Every write to the record, as a compare-and-swap on what it was decided from.
//!
//! The term guard is `create_revision(leader) == term`: a fencing token that no later leader shares.

use serde::Serialize;
use serde_json::Value;

use super::changes::{ChangeRecord, EndedRecord};
use super::keys::{Key, KeySpace};
use super::record::ClusterRecord;
use super::records::{
    BootstrapRecord, CredentialsRecord, FailoverRecord, HandoverRecord, MemberRecord, Promotions, ReservedTimeline,
    StatusRecord, SyncRecord,
};
use crate::kv::command::{
    Compare, CompareResult, CompareTarget, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest,
};
use crate::types::{LeaseId, NodeName, SystemId, Term, TimelineId};

/// Builds the transactions of one cluster.
#[derive(Debug, Clone)]
pub struct Writes {
    space: KeySpace,
}

impl Writes {
    /// For the cluster of `space`.
    pub fn new(space: KeySpace) -> Self {
        Self { space }
    }

    /// The key space.
    pub fn space(&self) -> &KeySpace {
        &self.space
    }

    /// If the cluster neither exists nor is led: create it, with `me` in the lead, all on `lease`.
    pub fn claim_bootstrap(&self, me: &NodeName, lease: LeaseId, record: &BootstrapRecord) -> TxnRequest {
        TxnRequest {
            compare: vec![self.absent(&Key::Initialize), self.absent(&Key::Leader)],
            success: vec![
                self.put(&Key::Initialize, Vec::new(), lease),
                self.put(&Key::Leader, me.as_str().as_bytes().to_vec(), lease),
                self.put(&Key::Bootstrap, json(record), lease),
            ],
            failure: Vec::new(),
        }
    }

    /// If `term` still stands: the cluster exists.
    pub fn finish_bootstrap(
        &self,
        term: Term,
        system_id: SystemId,
        config: Option<&Value>,
        credentials: Option<&CredentialsRecord>,
    ) -> TxnRequest {
        let mut success = vec![
            self.put(&Key::Initialize, system_id.to_string().into_bytes(), LeaseId(0)),
            self.delete(&Key::Bootstrap),
        ];
        if let Some(config) = config {
            success.push(self.put(&Key::Config, json(config), LeaseId(0)));
        }
        if let Some(credentials) = credentials {
            success.push(self.put(&Key::Credentials, json(credentials), LeaseId(0)));
        }
        TxnRequest { compare: vec![self.in_term(term)], success, failure: Vec::new() }
    }

    /// If nobody leads, and the synchronous set is the one that `me` was judged by: `me` leads, with the timeline
    /// number `reserve` for its promotion. Ends a hand-over, and answers a request that named `me` or nobody.
    pub fn take_leader(
        &self,
        me: &NodeName,
        lease: LeaseId,
        record: &ClusterRecord,
        reserve: Option<TimelineId>,
    ) -> TxnRequest {
        let mut success =
            vec![self.put(&Key::Leader, me.as_str().as_bytes().to_vec(), lease), self.delete(&Key::Handover)];
        if record.failover.is_some() {
            success.push(self.put(&Key::Failover, b"{}".to_vec(), LeaseId(0)));
        }
        let mut compare = vec![self.absent(&Key::Leader), self.unchanged(&Key::Sync, record.sync_revision)];
        if let Some(timeline) = reserve {
            compare.push(self.nothing_reserved_since(record));
            success.push(self.reserve(record, timeline));
        }
        TxnRequest { compare, success, failure: Vec::new() }
    }

    /// If `term` still stands and no number was given since: its promotion gets `timeline`.
    pub fn reserve_timeline(&self, term: Term, record: &ClusterRecord, timeline: TimelineId) -> TxnRequest {
        TxnRequest {
            compare: vec![self.in_term(term), self.nothing_reserved_since(record)],
            success: vec![self.reserve(record, timeline)],
            failure: Vec::new(),
        }
    }

    /// If `term` still stands: nobody leads. `history`, where the record does not have this leader's promotion yet.
    /// `creating`: nobody creates the cluster any more either, and it has no history.
    pub fn release_leader(
        &self,
        term: Term,
        status: Option<&StatusRecord>,
        history: Option<&Promotions>,
        creating: bool,
    ) -> TxnRequest {
        let mut success = vec![self.delete(&Key::Leader)];
        if creating {
            // Its lease would keep it as long as this node comes back in time, and nobody could create anything.
            success.extend([self.delete(&Key::Initialize), self.delete(&Key::Bootstrap)]);
        }
        let history = history.filter(|_| !creating);
        success.extend(history.into_iter().flat_map(|promotions| self.promotions(promotions)));
        if let Some(status) = status {
            success.push(self.put(&Key::Status, json(status), LeaseId(0)));
        }
        TxnRequest { compare: vec![self.in_term(term)], success, failure: Vec::new() }
    }

    /// If `term` still stands: nobody leads, the successor is named, the request is answered. `before` is what was
    /// published of this leader; `history` as for [`Writes::release_leader`].
    pub fn hand_over(
        &self,
        term: Term,
        handover: &HandoverRecord,
        before: &StatusRecord,
        history: Option<&Promotions>,
    ) -> TxnRequest {
        let status = StatusRecord { optime: handover.shutdown_lsn, ..before.clone() };
        let mut success = vec![
            self.delete(&Key::Leader),
            self.put(&Key::Handover, json(handover), LeaseId(0)),
            self.put(&Key::Status, json(&status), LeaseId(0)),
            self.put(&Key::Failover, b"{}".to_vec(), LeaseId(0)),
        ];
        success.extend(history.into_iter().flat_map(|promotions| self.promotions(promotions)));
        TxnRequest { compare: vec![self.in_term(term)], success, failure: Vec::new() }
    }

    /// If the request is unchanged: clear it.
    pub fn clear_request(&self, mod_revision: i64) -> TxnRequest {
        TxnRequest {
            compare: vec![self.unchanged(&Key::Failover, mod_revision)],
            success: vec![self.put(&Key::Failover, b"{}".to_vec(), LeaseId(0))],
            failure: Vec::new(),
        }
    }

    /// If the failover key is unchanged (zero: absent): request a role change.
    pub fn request(&self, request: &FailoverRecord, mod_revision: i64) -> TxnRequest {
        TxnRequest {
            compare: vec![self.unchanged(&Key::Failover, mod_revision)],
            success: vec![self.put(&Key::Failover, json(request), LeaseId(0))],
            failure: Vec::new(),
        }
    }

    /// A member's own words about itself; its own key, on its own lease.
    pub fn member(&self, me: &NodeName, record: &MemberRecord, lease: LeaseId) -> TxnRequest {
        let put = self.put(&Key::Member(me.clone()), json(record), lease);
        TxnRequest { compare: Vec::new(), success: vec![put], failure: Vec::new() }
    }

    /// If `term` still stands: the leader's position.
    pub fn status(&self, term: Term, status: &StatusRecord) -> TxnRequest {
        TxnRequest {
            compare: vec![self.in_term(term)],
            success: vec![self.put(&Key::Status, json(status), LeaseId(0))],
            failure: Vec::new(),
        }
    }

    /// If `term` still stands and the synchronous set is unchanged (zero: absent): replace it.
    pub fn sync(&self, term: Term, record: &SyncRecord, mod_revision: i64) -> TxnRequest {
        TxnRequest {
            compare: vec![self.in_term(term), self.unchanged(&Key::Sync, mod_revision)],
            success: vec![self.put(&Key::Sync, json(record), LeaseId(0))],
            failure: Vec::new(),
        }
    }

    /// If `term` still stands and the synchronous set is unchanged: there is none.
    pub fn remove_sync(&self, term: Term, mod_revision: i64) -> TxnRequest {
        TxnRequest {
            compare: vec![self.in_term(term), self.unchanged(&Key::Sync, mod_revision)],
            success: vec![self.delete(&Key::Sync)],
            failure: Vec::new(),
        }
    }

    /// If `term` still stands: the promotions so far.
    pub fn history(&self, term: Term, promotions: &Promotions) -> TxnRequest {
        TxnRequest {
            compare: vec![self.in_term(term)],
            success: self.promotions(promotions).into(),
            failure: Vec::new(),
        }
    }

    /// `txn`, which ends a leadership, with the word on how it was ended.
    pub fn with_ended(&self, mut txn: TxnRequest, ended: Option<&EndedRecord>) -> TxnRequest {
        txn.success.extend(ended.map(|ended| self.put(&Key::Ended, json(ended), LeaseId(0))));
        txn
    }

    /// If the timeline of changes is unchanged (zero: absent): replace it.
    pub fn timeline(&self, entries: &[ChangeRecord], mod_revision: i64) -> TxnRequest {
        TxnRequest {
            compare: vec![self.unchanged(&Key::Timeline, mod_revision)],
            success: vec![self.put(&Key::Timeline, json(entries), LeaseId(0))],
            failure: Vec::new(),
        }
    }

    /// If the configuration is unchanged (zero: absent): replace it.
    pub fn config(&self, value: &Value, mod_revision: i64) -> TxnRequest {
        TxnRequest {
            compare: vec![self.unchanged(&Key::Config, mod_revision)],
            success: vec![self.put(&Key::Config, json(value), LeaseId(0))],
            failure: Vec::new(),
        }
    }

    fn promotions(&self, promotions: &Promotions) -> [RequestOp; 2] {
        [
            self.put(&Key::History, json(&promotions.lines), LeaseId(0)),
            self.put(&Key::Reserved, json(&promotions.reserved), LeaseId(0)),
        ]
    }

    fn reserve(&self, record: &ClusterRecord, timeline: TimelineId) -> RequestOp {
        let reserved = ReservedTimeline { timeline, reached: record.timeline() };
        self.put(&Key::Reserved, json(&reserved), LeaseId(0))
    }

    fn nothing_reserved_since(&self, record: &ClusterRecord) -> Compare {
        self.unchanged(&Key::Reserved, record.reserved.as_ref().map_or(0, |reserved| reserved.mod_revision))
    }

    fn put(&self, key: &Key, value: Vec<u8>, lease: LeaseId) -> RequestOp {
        RequestOp::Put(PutRequest {
            key: self.space.key(key),
            value,
            lease,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        })
    }

    fn delete(&self, key: &Key) -> RequestOp {
        RequestOp::DeleteRange(DeleteRangeRequest { key: self.space.key(key), range_end: Vec::new(), prev_kv: false })
    }

    fn compare(&self, key: &Key, target: CompareTarget) -> Compare {
        Compare { key: self.space.key(key), range_end: Vec::new(), result: CompareResult::Equal, target }
    }

    fn absent(&self, key: &Key) -> Compare {
        self.compare(key, CompareTarget::Create(0))
    }

    fn in_term(&self, term: Term) -> Compare {
        self.compare(&Key::Leader, CompareTarget::Create(term.0))
    }

    fn unchanged(&self, key: &Key, mod_revision: i64) -> Compare {
        self.compare(key, CompareTarget::Mod(mod_revision))
    }
}

fn json<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("records have string keys and no values that JSON lacks")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by the simulation (seed 3003008): the creator of a standby cluster was stopped before the cluster existed and
    /// left the history of the copied timelines, by which every other node took the cluster for a forgotten one.
    #[test]
    fn a_creation_that_is_given_up_leaves_no_history() {
        let writes = Writes::new(KeySpace::new("service", &"demo".parse().expect("valid")));
        let (timeline, reached) = (TimelineId(3), TimelineId(3));
        let promotions = Promotions { lines: Vec::new(), reserved: ReservedTimeline { timeline, reached } };
        let puts = |creating: bool| {
            let txn = writes.release_leader(Term(7), None, Some(&promotions), creating);
            txn.success.iter().filter(|op| matches!(op, RequestOp::Put(_))).count()
        };
        assert_eq!((puts(false), puts(true)), (2, 0));
    }
}
