//! Bytes that claim to be a store: refused, or a store that can be written and read again.

#![no_main]

use howdah::kv::State;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(state) = State::from_bytes(bytes) {
        let written = state.to_bytes();
        let again = State::from_bytes(&written).expect("what was written can be read");
        assert_eq!(again.to_bytes(), written);
    }
});
