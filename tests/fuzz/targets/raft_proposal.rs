//! Bytes that claim to be a change from another member: refused, or the same when written again.

#![no_main]

use howdah::kv::State;
use howdah::raft::internals::{Proposal, decode, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(proposal) = decode::<Proposal>(bytes) {
        let written = encode(&proposal).expect("what was read can be written");
        let again: Proposal = decode(&written).expect("what was written can be read");
        assert_eq!(again.0, proposal.0);
        let _ = State::new().apply(&proposal.0);
    }
});
