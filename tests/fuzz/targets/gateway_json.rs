//! JSON bodies: read, written and read again; what is about keys is done on a store.

#![no_main]

use howdah::etcd::untrusted::{Asked, ROUTES, json};
use howdah::kv::State;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((route, body)) = bytes.split_first() else { return };
    match json(usize::from(*route) % ROUTES, body) {
        Some(Asked::Change(command)) => {
            let mut state = State::new();
            let checked = state.check(&command);
            let done = state.apply(&command);
            assert!(checked.is_ok() || done.response.is_err(), "refused before, done after: {command:?}");
        }
        Some(Asked::Range(range)) => drop(State::new().range(&range)),
        Some(Asked::Other) | None => {}
    }
});
