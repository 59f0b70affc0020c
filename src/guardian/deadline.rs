//! The rules of the permit's deadline, as pure functions.
//!
//! `verdict(now, permit held, writable) -> Fine | fence`, asked first on every wake-up; `accept(now, held, offered)`,
//! asked for every permit that arrives. Deliberately absent: clocks, timers, processes.

use std::time::Duration;

use super::protocol::Refusal;
use super::status::FenceReason;
use crate::types::{LeaderPermit, Mono};

/// How long PostgreSQL gets after SIGQUIT before everything is killed.
pub const QUIT_GRACE: Duration = Duration::from_millis(100);

/// How long after the deadline the kernel kills a guardian that has not acted. Whoever computes a permit's margin
/// must leave more than this, since a frozen node accepts writes until then.
pub const DEAD_MAN_SLACK: Duration = Duration::from_millis(300);

/// What the deadline says now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// PostgreSQL cannot accept writes: nothing to guard.
    NotWritable,
    /// The permit holds until this moment; look again then.
    Until(Mono),
    /// Kill.
    Fence(FenceReason),
}

/// Whether PostgreSQL may go on.
///
/// Source: design section 5.1 and 5.3; promise P1.
pub fn verdict(now: Mono, permit: Option<LeaderPermit>, writable: bool) -> Verdict {
    if !writable {
        return Verdict::NotWritable;
    }
    let Some(permit) = permit else {
        return Verdict::Fence(FenceReason::PromotedWithoutPermit);
    };
    if permit.holds_at(now) {
        return Verdict::Until(permit.valid_until);
    }
    Verdict::Fence(FenceReason::DeadlinePassed {
        term: permit.term,
        valid_until: permit.valid_until,
        late_ms: millis(now.since(permit.valid_until)),
    })
}

/// Whether an offered permit may take the place of the one held.
///
/// # Errors
/// `PermitExpired`, `TermTooLow` or `PermitShrinks`; the one held stays.
pub fn accept(now: Mono, held: Option<LeaderPermit>, offered: LeaderPermit) -> Result<(), Refusal> {
    if let Some(held) = held {
        if offered.term < held.term {
            return Err(Refusal::TermTooLow { held: held.term, offered: offered.term });
        }
        if offered.term == held.term && offered.valid_until < held.valid_until {
            let short_ms = millis(held.valid_until.since(offered.valid_until));
            return Err(Refusal::PermitShrinks { term: held.term, short_ms });
        }
    }
    if !offered.holds_at(now) {
        let late_ms = millis(now.since(offered.valid_until));
        return Err(Refusal::PermitExpired { term: offered.term, late_ms });
    }
    Ok(())
}

/// Whole milliseconds of a span.
pub fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Term;

    const MS: u64 = 1_000_000;

    fn permit(term: i64, until_ms: u64) -> LeaderPermit {
        LeaderPermit { term: Term(term), valid_until: Mono(until_ms * MS) }
    }

    #[test]
    fn a_standby_is_never_fenced_by_the_clock() {
        assert_eq!(verdict(Mono(u64::MAX), None, false), Verdict::NotWritable);
        assert_eq!(verdict(Mono(9 * MS), Some(permit(1, 5)), false), Verdict::NotWritable);
    }

    #[test]
    fn the_deadline_itself_is_too_late() {
        let held = permit(1, 5);
        assert_eq!(verdict(Mono(5 * MS - 1), Some(held), true), Verdict::Until(held.valid_until));
        let late = |at_ms, late_ms| {
            let why = FenceReason::DeadlinePassed { term: Term(1), valid_until: held.valid_until, late_ms };
            assert_eq!(verdict(Mono(at_ms * MS), Some(held), true), Verdict::Fence(why));
        };
        late(5, 0);
        late(3605, 3600);
    }

    #[test]
    fn writable_without_any_permit_is_fenced() {
        assert_eq!(verdict(Mono(0), None, true), Verdict::Fence(FenceReason::PromotedWithoutPermit));
    }

    #[test]
    fn a_permit_only_grows() {
        let now = Mono(10 * MS);
        assert_eq!(accept(now, None, permit(1, 20)), Ok(()));
        assert_eq!(accept(now, Some(permit(1, 20)), permit(1, 20)), Ok(()), "the same again");
        assert_eq!(accept(now, Some(permit(1, 20)), permit(1, 30)), Ok(()));
        assert_eq!(accept(now, Some(permit(1, 20)), permit(2, 15)), Ok(()), "a new term starts afresh");
        assert_eq!(
            accept(now, Some(permit(1, 20)), permit(1, 19)),
            Err(Refusal::PermitShrinks { term: Term(1), short_ms: 1 })
        );
        assert_eq!(
            accept(now, Some(permit(2, 20)), permit(1, 30)),
            Err(Refusal::TermTooLow { held: Term(2), offered: Term(1) })
        );
        assert_eq!(
            accept(now, Some(permit(1, 5)), permit(1, 10)),
            Err(Refusal::PermitExpired { term: Term(1), late_ms: 0 })
        );
    }
}
