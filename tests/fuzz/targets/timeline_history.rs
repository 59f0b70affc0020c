//! A timeline history file as PostgreSQL wrote it, or as a disk left it: refused, or a growing list that two nodes can compare.

#![no_main]

use howdah::types::{Lsn, TimelineHistory, TimelineId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u32, u64, &str, &str)| {
    let (timeline, position, one, other) = input;
    let Ok(ours) = TimelineHistory::parse(TimelineId(timeline), one) else { return };
    assert!(ours.ancestors.windows(2).all(|pair| pair[0].timeline < pair[1].timeline));
    assert!(ours.ancestors.iter().all(|entry| entry.timeline < ours.timeline));
    for entry in &ours.ancestors {
        assert_eq!(ours.switchpoint_of(entry.timeline), Some(entry.switchpoint));
    }
    assert_eq!(ours.shared_until(&ours, Lsn(position)), Some((ours.timeline, Lsn(position))), "all of it with itself");
    for timeline in [timeline, timeline.saturating_add(1)] {
        let Ok(theirs) = TimelineHistory::parse(TimelineId(timeline), other) else { continue };
        if let Some((shared, until)) = ours.shared_until(&theirs, Lsn(position)) {
            assert!(shared <= ours.timeline && shared <= theirs.timeline);
            let end = |history: &TimelineHistory| history.switchpoint_of(shared).unwrap_or(Lsn(u64::MAX));
            assert!(until <= end(&ours) && until <= end(&theirs), "no further than either went on it");
        }
    }
});
