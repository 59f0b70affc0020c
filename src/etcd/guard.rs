//! What etcd's clients may do with the record that decides who writes to PostgreSQL.
//!
//! Everything outside of the cluster's own prefix is theirs. Inside of it they read all but the passwords, and write
//! what Patroni's tools write there: the configuration and a requested failover. Leases that howdah's keys hang on are
//! howdah's. Why, and what was weighed: `src/docs/decisions/0007-etcd-clients-and-the-record.md`.

use serde_json::Value;
use tonic::Status;

use super::error::permission_denied;
use crate::cluster::keys::{Key, KeySpace};
use crate::cluster::records::FailoverRecord;
use crate::config::ClusterSettings;
use crate::kv::command::{
    Command, CompareTarget, DeleteRangeRequest, Event, PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseOp,
    SortTarget, TxnRequest, TxnResponse,
};
use crate::kv::{KeyRange, State, prefix_end};
use crate::types::LeaseId;

/// The rules for one cluster.
pub struct Guard {
    space: KeySpace,
    prefix_end: Vec<u8>,
    secret: Vec<u8>,
    record_open: bool,
}

impl Guard {
    /// Rules for the record in `space`. `record_open`: the configuration and a requested failover may be written.
    pub fn new(space: KeySpace, record_open: bool) -> Self {
        let secret = space.key(&Key::Credentials);
        Self { prefix_end: prefix_end(space.prefix()), secret, record_open, space }
    }

    /// Whether a range holds keys of the record.
    fn touches_record(&self, key: &[u8], range_end: &[u8]) -> bool {
        let range = KeyRange::new(key, range_end);
        if let Some(single) = range.single() {
            return single.starts_with(self.space.prefix());
        }
        // Two stretches of keys meet when each begins before the other ends.
        let begins_before_ours_end = key < self.prefix_end.as_slice();
        let ends_after_ours_begin = range_end == [0] || self.space.prefix() < range_end;
        !range.is_empty() && begins_before_ours_end && ends_after_ours_begin
    }

    /// Refuses a change that is not a client's to make.
    pub fn change(&self, command: &Command, state: &State) -> Result<(), Status> {
        match command {
            Command::Put(put) => self.put(put, state),
            Command::DeleteRange(delete) => self.delete(delete, state),
            Command::Txn(txn) => self.txn(txn, state),
            Command::LeaseGrant { id, .. } | Command::LeaseRevoke { id } => self.lease(*id, state),
            Command::Compact { .. } | Command::Auth(_) => Ok(()),
            Command::LeasesExpire { .. } | Command::As { .. } | Command::ByToken { .. } | Command::Many(_) => {
                Err(permission_denied())
            }
        }
    }

    fn txn(&self, txn: &TxnRequest, state: &State) -> Result<(), Status> {
        self.compares(txn)?;
        for op in txn.success.iter().chain(&txn.failure) {
            match op {
                RequestOp::Empty => {}
                RequestOp::Range(range) => self.range(range)?,
                RequestOp::Put(put) => self.put(put, state)?,
                RequestOp::DeleteRange(delete) => self.delete(delete, state)?,
                RequestOp::Txn(inner) => self.txn(inner, state)?,
            }
        }
        Ok(())
    }

    /// Comparing with a value is reading it, a guess at a time.
    fn compares(&self, txn: &TxnRequest) -> Result<(), Status> {
        let tells = txn.compare.iter().any(|compare| {
            matches!(compare.target, CompareTarget::Value(_))
                && KeyRange::new(&compare.key, &compare.range_end).contains(&self.secret)
        });
        if tells { Err(permission_denied()) } else { Ok(()) }
    }

    fn put(&self, put: &PutRequest, state: &State) -> Result<(), Status> {
        self.lease(put.lease, state)?;
        if !put.key.starts_with(self.space.prefix()) {
            return Ok(());
        }
        if !self.is_open(state) || put.ignore_value || put.ignore_lease || put.lease != LeaseId(0) {
            return Err(permission_denied());
        }
        match self.space.parse(&put.key) {
            Some(Key::Config) => check_config(&put.value),
            Some(Key::Failover) => check_failover(&put.value),
            _ => Err(permission_denied()),
        }
    }

    /// Whoever has proved a right to those keys needs no open door.
    fn is_open(&self, state: &State) -> bool {
        self.record_open || state.auth().is_enabled()
    }

    fn delete(&self, delete: &DeleteRangeRequest, state: &State) -> Result<(), Status> {
        if !self.touches_record(&delete.key, &delete.range_end) {
            return Ok(());
        }
        let request = delete.range_end.is_empty() && self.space.parse(&delete.key) == Some(Key::Failover);
        if request && self.is_open(state) { Ok(()) } else { Err(permission_denied()) }
    }

    /// Refuses the use of a lease of howdah's own: whoever keeps it alive keeps a dead leader in office, and whoever ends
    /// it lets another one lead while the permit of the first still holds. Its number tells, and so do the keys that
    /// hang on it; the keys alone would not, because this node may not have heard of them yet.
    pub fn lease(&self, id: LeaseId, state: &State) -> Result<(), Status> {
        let ours = |keys: &std::collections::BTreeSet<std::sync::Arc<[u8]>>| {
            keys.iter().any(|key| key.starts_with(self.space.prefix()))
        };
        match state.lease(id) {
            _ if id.is_own() => Err(permission_denied()),
            Some(lease) if ours(lease.keys) => Err(permission_denied()),
            _ => Ok(()),
        }
    }

    /// Refuses to read the passwords by name. Where a wider range holds them, they are left out.
    pub fn read(&self, key: &[u8], range_end: &[u8]) -> Result<(), Status> {
        match KeyRange::new(key, range_end).single() {
            Some(key) if key == self.secret => Err(permission_denied()),
            _ => Ok(()),
        }
    }

    /// As [`Guard::read`], for a range. In the order of values, a limit would tell whether the passwords come before
    /// or after a value of the client's own.
    pub fn range(&self, request: &RangeRequest) -> Result<(), Status> {
        self.read(&request.key, &request.range_end)?;
        let orders = request.sort_target == SortTarget::Value && request.limit > 0;
        if orders && KeyRange::new(&request.key, &request.range_end).contains(&self.secret) {
            return Err(permission_denied());
        }
        Ok(())
    }

    /// Leaves the passwords out of an answer.
    pub fn hide(&self, request: &RangeRequest, response: &mut RangeResponse, state: &State) {
        response.kvs.retain(|kv| kv.key != self.secret);
        let counted = KeyRange::new(&request.key, &request.range_end).contains(&self.secret);
        if counted && state.get(&self.secret).is_some() {
            response.count = (response.count - 1).max(0);
        }
    }

    /// Leaves the passwords out of the answer to a transaction.
    pub fn hide_in_txn(&self, response: &mut TxnResponse) {
        for op in &mut response.responses {
            match op {
                ResponseOp::Range(range) => range.kvs.retain(|kv| kv.key != self.secret),
                ResponseOp::Txn(inner) => self.hide_in_txn(inner),
                ResponseOp::Put(_) | ResponseOp::DeleteRange(_) => {}
            }
        }
    }

    /// Whether watchers may see a change.
    pub fn shows(&self, event: &Event) -> bool {
        event.kv.key != self.secret
    }
}

/// What a node could not understand would stop all decisions, so it is refused here.
fn check_config(value: &[u8]) -> Result<(), Status> {
    let settings: Value =
        serde_json::from_slice(value).map_err(|why| Status::invalid_argument(format!("etcdserver: config: {why}")))?;
    ClusterSettings::parse(&settings)
        .map(drop)
        .map_err(|invalid| Status::invalid_argument(format!("etcdserver: config: {invalid}")))
}

fn check_failover(value: &[u8]) -> Result<(), Status> {
    serde_json::from_slice::<FailoverRecord>(value)
        .map(drop)
        .map_err(|why| Status::invalid_argument(format!("etcdserver: failover: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(record_open: bool) -> Guard {
        Guard::new(KeySpace::new("/service", &"demo".parse().unwrap()), record_open)
    }

    fn put(key: &str, value: &str) -> Command {
        Command::Put(PutRequest {
            key: key.into(),
            value: value.into(),
            lease: LeaseId(0),
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        })
    }

    fn delete(key: &str, range_end: &str) -> Command {
        Command::DeleteRange(DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv: false })
    }

    fn verdict(guard: &Guard, command: &Command) -> Option<tonic::Code> {
        guard.change(command, &State::new()).err().map(|status| status.code())
    }

    #[test]
    fn the_record_is_written_as_patronis_tools_write_it() {
        use tonic::Code::{InvalidArgument, PermissionDenied};
        let open = guard(true);
        for (command, expected) in [
            (put("/service/other/leader", "x"), None),
            (put("/service/demo", "x"), None),
            (put("/service/demo/leader", "n1"), Some(PermissionDenied)),
            (put("/service/demo/howdah/bootstrap", "n1"), Some(PermissionDenied)),
            (put("/service/demo/whatever", "n1"), Some(PermissionDenied)),
            (put("/service/demo/config", "{\"ttl\": 30, \"loop_wait\": 10, \"retry_timeout\": 10}"), None),
            (put("/service/demo/config", "{\"ttl\": \"soon\"}"), Some(InvalidArgument)),
            (put("/service/demo/config", "nonsense"), Some(InvalidArgument)),
            (put("/service/demo/failover", "{\"leader\": \"n1\", \"member\": \"n2\"}"), None),
            (put("/service/demo/failover", "n2"), Some(InvalidArgument)),
            (delete("/service/demo/failover", ""), None),
            (delete("/service/demo/leader", ""), Some(PermissionDenied)),
            (delete("/service/demo/", "/service/demo0"), Some(PermissionDenied)),
            (delete("/", "0"), Some(PermissionDenied)),
            (delete("\0", "\0"), Some(PermissionDenied)),
            (delete("/service/demo0", "\0"), None),
            (delete("/service/a", "/service/demo/"), None),
            (delete("z", "a"), None),
        ] {
            assert_eq!(verdict(&open, &command), expected, "{command:?}");
        }
        let closed = guard(false);
        assert_eq!(verdict(&closed, &put("/service/demo/failover", "{}")), Some(PermissionDenied));
        assert_eq!(verdict(&closed, &put("/service/other/failover", "{}")), None);
    }

    #[test]
    fn transactions_are_looked_into_on_both_sides() {
        let inner = TxnRequest {
            failure: vec![RequestOp::DeleteRange(DeleteRangeRequest {
                key: b"/service/demo/leader".to_vec(),
                range_end: Vec::new(),
                prev_kv: false,
            })],
            ..TxnRequest::default()
        };
        let txn = TxnRequest { failure: vec![RequestOp::Txn(inner)], ..TxnRequest::default() };
        assert_eq!(verdict(&guard(true), &Command::Txn(txn)), Some(tonic::Code::PermissionDenied));
    }

    #[test]
    fn a_lease_of_the_record_is_nobody_elses() {
        let mut state = State::new();
        let lease = LeaseId(7);
        state.apply(&Command::LeaseGrant { id: lease, ttl_ms: 5000 }).response.unwrap();
        let guard = guard(true);
        assert!(guard.lease(lease, &state).is_ok());
        let Command::Put(mut leader) = put("/service/demo/leader", "n1") else { unreachable!() };
        leader.lease = lease;
        state.apply(&Command::Put(leader)).response.unwrap();
        assert!(guard.lease(lease, &state).is_err());
        assert!(guard.change(&Command::LeaseRevoke { id: lease }, &state).is_err());
        let Command::Put(mut mine) = put("mine", "x") else { unreachable!() };
        mine.lease = lease;
        assert!(guard.change(&Command::Put(mine), &state).is_err());
    }

    #[test]
    fn a_lease_of_howdahs_own_is_known_before_anything_hangs_on_it() {
        let (guard, state, id) = (guard(true), State::new(), LeaseId::own(7));
        assert!(guard.lease(id, &state).is_err());
        assert!(guard.change(&Command::LeaseRevoke { id }, &state).is_err());
        assert!(guard.change(&Command::LeaseGrant { id, ttl_ms: 5000 }, &state).is_err());
        assert!(guard.change(&Command::LeaseGrant { id: LeaseId(7), ttl_ms: 5000 }, &state).is_ok());
        let Command::Put(mut mine) = put("mine", "x") else { unreachable!() };
        mine.lease = id;
        assert!(guard.change(&Command::Put(mine), &state).is_err());
    }

    #[test]
    fn passwords_are_not_shown() {
        let guard = guard(true);
        let mut state = State::new();
        for key in ["/service/demo/howdah/credentials", "/service/demo/leader"] {
            state.apply(&put(key, "x")).response.unwrap();
        }
        let key = b"/service/demo/howdah/credentials";
        assert!(guard.read(key, b"").is_err());
        let all = RangeRequest { key: vec![0], range_end: vec![0], ..RangeRequest::default() };
        assert!(guard.range(&all).is_ok());
        let by_value = RangeRequest { sort_target: SortTarget::Value, limit: 1, ..all.clone() };
        assert!(guard.range(&by_value).is_err());
        let mut response = state.range(&all).unwrap();
        guard.hide(&all, &mut response, &state);
        assert_eq!((response.kvs.len(), response.count), (1, 1));
        assert_eq!(response.kvs[0].key, b"/service/demo/leader");
    }
}
