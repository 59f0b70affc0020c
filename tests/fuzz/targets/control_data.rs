//! What pg_controldata prints, or does not.

#![no_main]

use howdah::postgres::ControlData;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(control) = ControlData::parse(text) {
        let _ = (control.newest_timeline(), control.proven_position(), control.can_be_rewound());
    }
});
