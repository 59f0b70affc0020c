//! Reading: etcd's range, now or as of an older revision.
//!
//! ```text
//!   keys in range -> the pair at the revision -> count -> filters -> sort -> limit -> copy
//! ```
//!
//! Only pairs that end up in the answer are copied; with the usual order (by key, ascending) not
//! even references beyond the limit are kept. Counting still visits the whole range.

use std::cmp::Ordering;
use std::sync::Arc;

use super::command::{KeyValue, RangeRequest, RangeResponse, SortOrder, SortTarget};
use super::error::Error;
use super::key_index::{KeyHistory, Pair};
use super::key_range::KeyRange;
use super::state::State;

/// Whether `revision` can be read; zero and less mean "now".
pub(super) fn check_revision(state: &State, revision: i64) -> Result<(), Error> {
    if revision > state.revision {
        return Err(Error::FutureRevision { revision: state.revision });
    }
    if revision > 0 && revision < state.compact_revision {
        return Err(Error::Compacted { compact_revision: state.compact_revision });
    }
    Ok(())
}

/// The keys in a range with their histories, live or not, in key order.
pub(super) fn histories<'a>(
    state: &'a State,
    keys: KeyRange<'_>,
) -> impl Iterator<Item = (&'a Arc<[u8]>, &'a KeyHistory)> + use<'a> {
    keys.bounds().map(|bounds| state.keys.range::<[u8], _>(bounds)).into_iter().flatten()
}

/// The present pairs in a range, in key order.
pub(super) fn live<'a>(
    state: &'a State,
    keys: KeyRange<'_>,
) -> impl Iterator<Item = (&'a Arc<[u8]>, &'a KeyValue)> + use<'a> {
    histories(state, keys).filter_map(|(key, history)| Some((key, history.live()?)))
}

/// Answer a range whose revision has been checked. `shown` is the revision that the answer tells.
pub(super) fn read(state: &State, request: &RangeRequest, shown: i64) -> RangeResponse {
    let keys = KeyRange::new(&request.key, &request.range_end);
    // Inside a transaction that has written, "now" is later than the store's revision.
    let at = if request.revision <= 0 { i64::MAX } else { request.revision };
    let limit = usize::try_from(request.limit).ok().filter(|&limit| limit > 0).unwrap_or(usize::MAX);
    let presorted = request.sort_target == SortTarget::Key && request.sort_order != SortOrder::Descend;

    let (mut count, mut matched) = (0_i64, 0_usize);
    let mut picked: Vec<Pair<'_>> = Vec::new();
    for (key, history) in histories(state, keys) {
        let Some(pair) = history.as_of(key, at) else { continue };
        count += 1;
        if request.count_only || !passes_filters(request, &pair) {
            continue;
        }
        matched += 1;
        if !presorted || picked.len() < limit {
            picked.push(pair);
        }
    }
    if !presorted {
        sort(&mut picked, request.sort_target, request.sort_order);
        picked.truncate(limit);
    }
    let copy = if request.keys_only { Pair::without_value } else { Pair::to_key_value };
    let kvs = picked.into_iter().map(copy).collect();
    RangeResponse { revision: shown, kvs, more: matched > limit, count }
}

/// Zero is "no bound", for upper bounds too.
fn passes_filters(request: &RangeRequest, pair: &Pair<'_>) -> bool {
    let within = |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
    within(pair.mod_revision, request.min_mod_revision, request.max_mod_revision)
        && within(pair.create_revision, request.min_create_revision, request.max_create_revision)
}

/// Equal ones stay in key order.
fn sort(pairs: &mut [Pair<'_>], target: SortTarget, order: SortOrder) {
    let compare = |a: &Pair<'_>, b: &Pair<'_>| -> Ordering {
        match target {
            SortTarget::Key => a.key.cmp(b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(b.value),
        }
    };
    match order {
        SortOrder::None | SortOrder::Ascend => pairs.sort_by(compare),
        SortOrder::Descend => pairs.sort_by(|a, b| compare(b, a)),
    }
}
