//! What is wrong with a command in itself, whatever the store holds.
//!
//! ```text
//!   form (keys, flags, counts, nesting) -> overlap (one change per key) -> size
//! ```
//!
//! The form comes first because it bounds the nesting: each level of a transaction spends at least
//! one of [`MAX_TXN_OPS`], so everything after it may recurse.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::auth::{AuthChange, Permission};
use super::command::{
    Command, Compare, CompareTarget, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use super::error::Error;
use super::key_range::KeyRange;
use super::lease::Leases;
use crate::types::LeaseId;

/// Operations in one level of a transaction; a nested one gets what its parent leaves.
/// Source: etcd's `--max-txn-ops` default.
pub const MAX_TXN_OPS: usize = 128;

/// The largest request, 1.5 MiB. Source: etcd's `--max-request-bytes` default.
pub const MAX_REQUEST_BYTES: usize = 1_572_864;

/// Stands for the numbers and flags of one operation in a request's size.
const OP_BYTES: usize = 16;

pub(super) fn command(command: &Command) -> Result<(), Error> {
    match command {
        Command::Put(request) => put(request)?,
        Command::DeleteRange(request) => delete_range(request)?,
        Command::Txn(request) => txn(request)?,
        Command::LeaseGrant { id, ttl_ms } => Leases::check_grant(*id, *ttl_ms)?,
        Command::Compact { .. } | Command::LeaseRevoke { .. } | Command::LeasesExpire { .. } | Command::Auth(_) => {}
        // One level only: nobody speaks for somebody who speaks for somebody else.
        Command::As { command: inner, .. } | Command::ByToken { command: inner, .. } => {
            if matches!(**inner, Command::As { .. } | Command::ByToken { .. } | Command::Many(_)) {
                return Err(Error::PermissionDenied);
            }
            return self::command(inner);
        }
        // Each is looked at by itself when its turn comes; one level only, here too.
        Command::Many(commands) if commands.iter().any(|command| matches!(command, Command::Many(_))) => {
            return Err(Error::PermissionDenied);
        }
        Command::Many(_) => {}
    }
    if size(command) > MAX_REQUEST_BYTES { Err(Error::RequestTooLarge) } else { Ok(()) }
}

pub(super) fn range(request: &RangeRequest) -> Result<(), Error> {
    key(&request.key)
}

pub(super) fn txn(request: &TxnRequest) -> Result<(), Error> {
    form(request, MAX_TXN_OPS)?;
    overlap(&request.success)?;
    overlap(&request.failure)?;
    Ok(())
}

fn key(key: &[u8]) -> Result<(), Error> {
    if key.is_empty() { Err(Error::KeyNotProvided) } else { Ok(()) }
}

fn put(request: &PutRequest) -> Result<(), Error> {
    key(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && request.lease != LeaseId(0) {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

fn delete_range(request: &DeleteRangeRequest) -> Result<(), Error> {
    key(&request.key)
}

fn form(request: &TxnRequest, allowed: usize) -> Result<(), Error> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    let left = allowed.checked_sub(ops).ok_or(Error::TooManyOps)?;
    request.compare.iter().try_for_each(|compare| key(&compare.key))?;
    request.success.iter().chain(&request.failure).try_for_each(|op| match op {
        RequestOp::Empty => Err(Error::KeyNotFound),
        RequestOp::Range(request) => range(request),
        RequestOp::Put(request) => put(request),
        RequestOp::DeleteRange(request) => delete_range(request),
        RequestOp::Txn(request) => form(request, left),
    })
}

/// What a list of operations may write, whichever way the transactions inside decide.
#[derive(Default)]
struct Writes<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Deletes<'a>,
}

/// Refuse a list that puts a key twice, or puts one that it deletes.
///
/// A list's own deletes count against all its puts, nested ones included. Transactions side by side
/// run in order: a delete of a later one may follow a put of an earlier one, but not the reverse.
/// Both branches of one transaction may put the same key, because only one is taken.
///
/// Source: etcd's `checkIntervals`.
fn overlap(ops: &[RequestOp]) -> Result<Writes<'_>, Error> {
    let mut writes = Writes::default();
    for op in ops {
        if let RequestOp::DeleteRange(request) = op {
            writes.deletes.insert(KeyRange::new(&request.key, &request.range_end));
        }
    }
    for op in ops {
        if let RequestOp::Txn(request) = op {
            let success = overlap(&request.success)?;
            let failure = overlap(&request.failure)?;
            let new = |key: &&[u8]| !writes.puts.contains(key) && !writes.deletes.contain(key);
            if !success.puts.iter().all(new) || !failure.puts.iter().all(new) {
                return Err(Error::DuplicateKey);
            }
            for branch in [success, failure] {
                writes.puts.extend(branch.puts);
                writes.deletes.extend(branch.deletes);
            }
        }
    }
    for op in ops {
        if let RequestOp::Put(request) = op
            && (writes.deletes.contain(&request.key) || !writes.puts.insert(&request.key))
        {
            return Err(Error::DuplicateKey);
        }
    }
    Ok(writes)
}

/// A union of key ranges; asking costs a tree look-up however many there are.
#[derive(Default)]
struct Deletes<'a> {
    keys: BTreeSet<&'a [u8]>,
    /// Disjoint: first key, and the first key not included (`None` for no end).
    spans: BTreeMap<&'a [u8], Option<&'a [u8]>>,
}

impl<'a> Deletes<'a> {
    fn insert(&mut self, range: KeyRange<'a>) {
        if range.is_empty() {
            return;
        }
        match range.single() {
            Some(key) => drop(self.keys.insert(key)),
            None => self.insert_span(range.span()),
        }
    }

    fn insert_span(&mut self, (mut start, mut end): (&'a [u8], Option<&'a [u8]>)) {
        if let Some((before, before_end)) = self.at_or_before(start)
            && before_end.is_none_or(|before_end| before_end >= start)
        {
            start = before;
            end = later(end, before_end);
        }
        while let Some((&next, &next_end)) =
            self.spans.range::<[u8], _>((Bound::Included(start), Bound::Unbounded)).next()
            && end.is_none_or(|end| next <= end)
        {
            self.spans.remove(next);
            end = later(end, next_end);
        }
        self.spans.insert(start, end);
    }

    fn extend(&mut self, other: Deletes<'a>) {
        self.keys.extend(other.keys);
        for span in other.spans {
            self.insert_span(span);
        }
    }

    /// The last span that begins at or before `key`.
    fn at_or_before(&self, key: &[u8]) -> Option<(&'a [u8], Option<&'a [u8]>)> {
        let bounds = (Bound::Unbounded, Bound::Included(key));
        self.spans.range::<[u8], _>(bounds).next_back().map(|(start, end)| (*start, *end))
    }

    fn contain(&self, key: &[u8]) -> bool {
        let in_span = || self.at_or_before(key).is_some_and(|(_, end)| end.is_none_or(|end| key < end));
        self.keys.contains(key) || in_span()
    }
}

/// The later of two ends, where `None` is no end.
fn later<'a>(a: Option<&'a [u8]>, b: Option<&'a [u8]>) -> Option<&'a [u8]> {
    Some(a?.max(b?))
}

/// About what the request takes on the wire.
pub(super) fn size(command: &Command) -> usize {
    match command {
        Command::Put(request) => put_size(request),
        Command::DeleteRange(request) => OP_BYTES + request.key.len() + request.range_end.len(),
        Command::Txn(request) => txn_size(request),
        Command::LeasesExpire { ids } => OP_BYTES + ids.len() * size_of::<LeaseId>(),
        Command::Compact { .. } | Command::LeaseGrant { .. } | Command::LeaseRevoke { .. } => OP_BYTES,
        Command::Auth(change) => auth_size(change),
        Command::As { user, command } => user.len() + size(command),
        Command::ByToken { command, .. } => OP_BYTES + size(command),
        Command::Many(commands) => commands.iter().map(size).sum(),
    }
}

fn auth_size(change: &AuthChange) -> usize {
    let texts = match change {
        AuthChange::Enable | AuthChange::Disable => 0,
        AuthChange::UserAdd { name, password } => name.len() + password.as_ref().map_or(0, String::len),
        AuthChange::UserDelete { name } | AuthChange::RoleAdd { name } | AuthChange::RoleDelete { name } => name.len(),
        AuthChange::UserChangePassword { name, password } => name.len() + password.len(),
        AuthChange::UserGrantRole { user, role } | AuthChange::UserRevokeRole { user, role } => user.len() + role.len(),
        AuthChange::RoleGrantPermission { role, permission: Permission { key, range_end, .. } }
        | AuthChange::RoleRevokePermission { role, key, range_end } => role.len() + key.len() + range_end.len(),
        AuthChange::TokenIssue { user, token, .. } => user.len() + token.len(),
    };
    OP_BYTES + texts
}

fn put_size(request: &PutRequest) -> usize {
    OP_BYTES + request.key.len() + request.value.len()
}

fn txn_size(request: &TxnRequest) -> usize {
    let compares: usize = request.compare.iter().map(compare_size).sum();
    let ops: usize = request.success.iter().chain(&request.failure).map(op_size).sum();
    OP_BYTES + compares + ops
}

fn compare_size(compare: &Compare) -> usize {
    let value = if let CompareTarget::Value(value) = &compare.target { value.len() } else { 0 };
    OP_BYTES + compare.key.len() + compare.range_end.len() + value
}

fn op_size(op: &RequestOp) -> usize {
    match op {
        RequestOp::Empty => OP_BYTES,
        RequestOp::Range(request) => OP_BYTES + request.key.len() + request.range_end.len(),
        RequestOp::Put(request) => put_size(request),
        RequestOp::DeleteRange(request) => OP_BYTES + request.key.len() + request.range_end.len(),
        RequestOp::Txn(request) => txn_size(request),
    }
}

#[cfg(test)]
mod tests {
    use super::{Command, Deletes, Error, KeyRange, MAX_REQUEST_BYTES, MAX_TXN_OPS, OP_BYTES, command};
    use crate::kv::command::{DeleteRangeRequest, PutRequest, RequestOp, TxnRequest};
    use crate::types::LeaseId;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn put(key: &[u8], value: Vec<u8>) -> PutRequest {
        let (key, lease) = (key.to_vec(), LeaseId(0));
        PutRequest { key, value, lease, prev_kv: false, ignore_value: false, ignore_lease: false }
    }

    fn nested(levels: usize) -> Command {
        let txn = |success| TxnRequest { success, ..TxnRequest::default() };
        let innermost = txn(vec![RequestOp::Put(put(b"k", Vec::new()))]);
        Command::Txn((1..levels).fold(innermost, |inner, _| txn(vec![RequestOp::Txn(inner)])))
    }

    #[test]
    fn nesting_is_bounded_by_the_operations_it_spends() {
        assert_eq!(command(&nested(MAX_TXN_OPS)), Ok(()));
        assert_eq!(command(&nested(MAX_TXN_OPS + 1)), Err(Error::TooManyOps));
        assert_eq!(command(&nested(2000)), Err(Error::TooManyOps));
    }

    #[test]
    fn a_request_may_be_as_large_as_the_limit() {
        let room = MAX_REQUEST_BYTES - OP_BYTES - 1;
        assert_eq!(command(&Command::Put(put(b"k", vec![0; room]))), Ok(()));
        assert_eq!(command(&Command::Put(put(b"k", vec![0; room + 1]))), Err(Error::RequestTooLarge));
        let half = || RequestOp::Put(put(b"k", vec![0; room / 2]));
        let txn = |success, failure| Command::Txn(TxnRequest { success, failure, ..TxnRequest::default() });
        assert_eq!(command(&txn(vec![half()], Vec::new())), Ok(()));
        assert_eq!(command(&txn(vec![half()], vec![half(), half()])), Err(Error::DuplicateKey));
        assert_eq!(command(&txn(vec![half()], vec![half()])), Err(Error::RequestTooLarge));
        let ids = vec![LeaseId(1); MAX_REQUEST_BYTES / 8 + 1];
        assert_eq!(command(&Command::LeasesExpire { ids }), Err(Error::RequestTooLarge));
    }

    /// As wide as it may be, with deletions everywhere: what the overlap check is quick for.
    #[test]
    fn the_widest_transaction_is_judged_without_comparing_all_with_all() {
        let delete = |number: usize| {
            let key = format!("d{number:06}").into_bytes();
            let range_end = format!("d{number:06}x").into_bytes();
            RequestOp::DeleteRange(DeleteRangeRequest { key, range_end, prev_kv: false })
        };
        let inner = |outer: usize| {
            let one = |number: usize| match number % 2 {
                0 => RequestOp::Put(put(format!("p{outer:03}{number:03}").as_bytes(), Vec::new())),
                _ => delete(outer * 1000 + number),
            };
            RequestOp::Txn(TxnRequest { success: (0..64).map(one).collect(), ..TxnRequest::default() })
        };
        let mut success: Vec<_> = (0..64).map(inner).collect();
        assert_eq!(command(&Command::Txn(TxnRequest { success: success.clone(), ..TxnRequest::default() })), Ok(()));
        success[63] = RequestOp::Put(put(b"d000001", Vec::new()));
        let clash = TxnRequest { success, ..TxnRequest::default() };
        assert_eq!(command(&Command::Txn(clash)), Err(Error::DuplicateKey));
    }

    proptest! {
        #[test]
        fn a_union_of_deletes_contains_what_any_of_them_contains(
            ranges in vec((vec(0_u8..3, 1..3), vec(0_u8..3, 0..3)), 0..8),
            split in 0..8_usize,
            key in vec(0_u8..3, 1..3),
        ) {
            let (mut all, mut rest) = (Deletes::default(), Deletes::default());
            for (number, (start, end)) in ranges.iter().enumerate() {
                let part = if number < split { &mut all } else { &mut rest };
                part.insert(KeyRange::new(start, end));
            }
            all.extend(rest);
            let expected = ranges.iter().any(|(start, end)| KeyRange::new(start, end).contains(&key));
            prop_assert_eq!(all.contain(&key), expected);
        }
    }
}
