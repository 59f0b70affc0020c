//! Bytes that claim to be a frame from another member: refused, or read as what they say and the same when written again.
//!
//! The checksum would keep nearly everything out: what fails it is tried once more as the payload of a sound frame.

#![no_main]

use bytes::{Bytes, BytesMut};
use howdah::raft::internals::{Frame, Kind, Request, decode, encode};
use libfuzzer_sys::fuzz_target;

fn read(frame: &Frame) {
    let again = Frame::from_bytes(BytesMut::from(&frame.to_bytes()[..])).expect("what was written can be read");
    assert_eq!((again.kind, again.id, &again.payload), (frame.kind, frame.id, &frame.payload));
    if let Ok(request) = decode::<Request>(&frame.payload) {
        let written = encode(&request).expect("what was read can be written");
        let once_more: Request = decode(&written).expect("what was written can be read");
        assert_eq!(encode(&once_more).expect("as before"), written);
    }
}

fuzz_target!(|bytes: &[u8]| {
    match Frame::from_bytes(BytesMut::from(bytes)) {
        Ok(frame) => read(&frame),
        Err(_) => read(&Frame { kind: Kind::Request, id: 7, payload: Bytes::copy_from_slice(bytes) }),
    }
});
