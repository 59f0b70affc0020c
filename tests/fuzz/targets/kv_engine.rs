//! Histories of protobuf transactions and ranges on one store: what must always hold, holds.

#![no_main]

use howdah::etcd::untrusted::{Asked, protobuf_range, protobuf_txn};
use howdah::kv::command::RangeRequest;
use howdah::kv::watch::{WatchRequest, Watchers};
use howdah::kv::{Command, State};
use howdah::types::LeaseId;
use libfuzzer_sys::fuzz_target;

fn everything(revision: i64) -> RangeRequest {
    RangeRequest { key: vec![0], range_end: vec![0], revision, ..RangeRequest::default() }
}

/// One step: a kind, a length, and so many bytes.
fn next<'a>(bytes: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let [kind, length, rest @ ..] = *bytes else { return None };
    let (message, left) = rest.split_at(usize::from(*length).min(rest.len()));
    *bytes = left;
    Some((*kind, message))
}

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes;
    let mut state = State::new();
    let mut watchers = Watchers::new(&state);
    let all = WatchRequest {
        key: vec![0],
        range_end: vec![0],
        start_revision: 0,
        progress_notify: false,
        no_put: false,
        no_delete: false,
        prev_kv: true,
        watch_id: 0,
        fragment: false,
    };
    let watch = watchers.create(&state, all).expect("a range is a range").id;
    let mut lease = 0;
    while let Some((kind, message)) = next(&mut bytes) {
        let first = i64::from(message.first().copied().unwrap_or_default());
        let asked = match kind % 8 {
            0 => protobuf_range(message),
            1 => Some(Asked::Change(Command::Compact { revision: first })),
            2 => {
                lease += 1;
                Some(Asked::Change(Command::LeaseGrant { id: LeaseId(lease), ttl_ms: 2000 }))
            }
            3 => Some(Asked::Change(Command::LeaseRevoke { id: LeaseId(first) })),
            _ => protobuf_txn(message),
        };
        match asked {
            Some(Asked::Range(range)) => {
                if let Ok(answer) = state.range(&range) {
                    assert!(answer.kvs.len() as i64 <= answer.count, "more pairs than there are");
                    assert_eq!(answer.revision, state.revision());
                }
            }
            Some(Asked::Change(command)) => {
                let before = state.revision();
                let reads = state.range(&everything(0)).expect("the present is there");
                let done = state.apply(&command);
                let after = state.revision();
                assert!(after == before || after == before + 1, "one revision for one command");
                assert_eq!(after > before, !done.events.is_empty(), "a revision is a change");
                if done.response.is_err() {
                    assert_eq!(after, before, "a refusal changes nothing");
                }
                assert!(done.events.iter().all(|event| event.kv.mod_revision == after));
                if state.compact_revision() <= before {
                    let past = state.range(&everything(before.max(1)));
                    assert_eq!(past.expect("history is there").kvs, reads.kvs, "the past does not change");
                }
                let told = watchers.on_applied(&done);
                let events: Vec<_> = told.into_iter().filter(|(id, _)| *id == watch).flat_map(|(_, b)| b.events).collect();
                assert_eq!(events, done.events, "the watcher hears all of it");
            }
            Some(Asked::Other) | None => {}
        }
    }
    let copy = State::from_bytes(&state.to_bytes()).expect("what was written can be read");
    assert_eq!(copy.range(&everything(0)), state.range(&everything(0)));
    assert_eq!(copy.to_bytes(), state.to_bytes());
});
