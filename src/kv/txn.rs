//! Transactions: compare, then one of two lists, all or nothing.
//!
//! ```text
//!   decide   all comparisons, nested ones too, on the state before -> which branches are taken
//!   check    everything on the taken path that the state could refuse -> or no change at all
//!   execute  in order; reads see what was written before them; one revision; cannot fail
//! ```

use std::cmp::Ordering;

use super::check;
use super::command::{
    Compare, CompareResult, CompareTarget, Event, KeyValue, PutRequest, RequestOp, ResponseOp, TxnRequest, TxnResponse,
};
use super::error::Error;
use super::key_range::KeyRange;
use super::range;
use super::state::State;
use super::write::Writer;
use crate::types::LeaseId;

/// A transaction whose branches are chosen: the list to do, in order.
struct Chosen<'a> {
    succeeded: bool,
    ops: Vec<Op<'a>>,
}

enum Op<'a> {
    Plain(&'a RequestOp),
    Txn(Chosen<'a>),
}

/// Apply a transaction that passed [`check::txn`].
pub(super) fn apply(state: &mut State, request: &TxnRequest) -> Result<(TxnResponse, Vec<Event>), Error> {
    let chosen = decide(state, request);
    check_chosen(state, &chosen)?;
    let mut writer = Writer::new(state);
    let response = execute(&chosen, &mut Access::Write(&mut writer));
    Ok((response, writer.finish()))
}

/// Answer a transaction that cannot write; `None` if it might.
pub(super) fn read(state: &State, request: &TxnRequest) -> Option<Result<TxnResponse, Error>> {
    if !request.only_reads() {
        return None;
    }
    let answer = || {
        check::txn(request)?;
        let chosen = decide(state, request);
        check_chosen(state, &chosen)?;
        Ok(execute(&chosen, &mut Access::Read(state)))
    };
    Some(answer())
}

impl TxnRequest {
    /// Whether it cannot write, whichever way it goes. An operation that sets nothing does not count as a read.
    pub fn only_reads(&self) -> bool {
        only_reads(self, check::MAX_TXN_OPS)
    }
}

/// Whether all operations of all branches are reads. Gives up, with no, below `depth` levels.
fn only_reads(request: &TxnRequest, depth: usize) -> bool {
    request.success.iter().chain(&request.failure).all(|op| match op {
        RequestOp::Range(_) => true,
        RequestOp::Txn(inner) => depth > 0 && only_reads(inner, depth - 1),
        RequestOp::Empty | RequestOp::Put(_) | RequestOp::DeleteRange(_) => false,
    })
}

fn decide<'a>(state: &State, request: &'a TxnRequest) -> Chosen<'a> {
    let succeeded = request.compare.iter().all(|compare| holds(state, compare));
    let ops = if succeeded { &request.success } else { &request.failure };
    let choose = |op: &'a RequestOp| match op {
        RequestOp::Txn(inner) => Op::Txn(decide(state, inner)),
        plain => Op::Plain(plain),
    };
    Chosen { succeeded, ops: ops.iter().map(choose).collect() }
}

/// True if every key in the range agrees. No key at all counts as one missing key, whose numbers are
/// all zero and whose value equals nothing, not even "different".
fn holds(state: &State, compare: &Compare) -> bool {
    let keys = KeyRange::new(&compare.key, &compare.range_end);
    let mut pairs = range::live(state, keys).map(|(_, pair)| pair).peekable();
    if pairs.peek().is_none() {
        return !matches!(compare.target, CompareTarget::Value(_)) && agrees(&KeyValue::default(), compare);
    }
    pairs.all(|pair| agrees(pair, compare))
}

fn agrees(pair: &KeyValue, compare: &Compare) -> bool {
    let order = match &compare.target {
        CompareTarget::Version(version) => pair.version.cmp(version),
        CompareTarget::Create(revision) => pair.create_revision.cmp(revision),
        CompareTarget::Mod(revision) => pair.mod_revision.cmp(revision),
        CompareTarget::Value(value) => pair.value.cmp(value),
        CompareTarget::Lease(lease) => pair.lease.cmp(lease),
    };
    match compare.result {
        CompareResult::Equal => order == Ordering::Equal,
        CompareResult::NotEqual => order != Ordering::Equal,
        CompareResult::Greater => order == Ordering::Greater,
        CompareResult::Less => order == Ordering::Less,
    }
}

fn check_chosen(state: &State, chosen: &Chosen<'_>) -> Result<(), Error> {
    chosen.ops.iter().try_for_each(|op| match op {
        Op::Txn(inner) => check_chosen(state, inner),
        Op::Plain(RequestOp::Put(request)) => check_put(state, request),
        Op::Plain(RequestOp::Range(request)) => range::check_revision(state, request.revision),
        Op::Plain(_) => Ok(()),
    })
}

/// What the state may refuse of a put. Inside a transaction too the state before it decides: no key
/// is written twice, so nothing in the transaction can change the answer.
pub(super) fn check_put(state: &State, request: &PutRequest) -> Result<(), Error> {
    if (request.ignore_value || request.ignore_lease) && state.get(&request.key).is_none() {
        return Err(Error::KeyNotFound);
    }
    check_lease(state, request)
}

/// Whether the lease that a put names is there.
pub(super) fn check_lease(state: &State, request: &PutRequest) -> Result<(), Error> {
    let known = request.lease == LeaseId(0) || state.leases.contains(request.lease);
    if known { Ok(()) } else { Err(Error::LeaseNotFound) }
}

/// The store as a transaction may use it.
enum Access<'a, 'b> {
    Read(&'a State),
    Write(&'a mut Writer<'b>),
}

impl Access<'_, '_> {
    fn shown_revision(&self) -> i64 {
        match self {
            Access::Read(state) => state.revision,
            Access::Write(writer) => writer.shown_revision(),
        }
    }

    /// `None` for a write where only reads are possible, and for an operation that sets nothing:
    /// neither gets past the checks.
    fn plain(&mut self, op: &RequestOp) -> Option<ResponseOp> {
        match (op, self) {
            (RequestOp::Range(request), Access::Read(state)) => {
                Some(ResponseOp::Range(range::read(state, request, state.revision)))
            }
            (RequestOp::Range(request), Access::Write(writer)) => Some(ResponseOp::Range(writer.range(request))),
            (RequestOp::Put(request), Access::Write(writer)) => Some(ResponseOp::Put(writer.put(request))),
            (RequestOp::DeleteRange(request), Access::Write(writer)) => {
                Some(ResponseOp::DeleteRange(writer.delete_range(request)))
            }
            _ => None,
        }
    }
}

fn execute(chosen: &Chosen<'_>, access: &mut Access<'_, '_>) -> TxnResponse {
    let mut responses = Vec::with_capacity(chosen.ops.len());
    for op in &chosen.ops {
        responses.push(match op {
            Op::Txn(inner) => ResponseOp::Txn(execute(inner, access)),
            Op::Plain(op) => access.plain(op).expect("the checks let only fitting operations through"),
        });
    }
    TxnResponse { revision: access.shown_revision(), succeeded: chosen.succeeded, responses }
}
