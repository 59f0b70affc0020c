//! Known-bad changes of the world around the core, to prove that the harness would notice. Only here; the product has no
//! such switch.

use crate::chance::Chance;
use crate::clock::{MS, SEC};
use crate::profiles::{Profile, Theme};

/// One thing that is done wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// The guardian does not look at the permit's end.
    GuardianSkipsTheDeadline,
    /// A permit is counted from the answer instead of from before the request.
    PermitCountsFromTheAnswer,
    /// A permit lasts as long as the lease: nothing for clocks that differ and for the time that fencing takes.
    PermitHasNoMargin,
    /// A new leader of the store goes on with deadlines that it has not confirmed.
    LeasesExpireUnconfirmed,
    /// A lease that is gone, or a key that is another's, is renewed all the same.
    RenewsAfterLosingTheLease,
    /// The leader key is taken without comparing: two leaderships with one number.
    TermIsReused,
    /// A node forgets that it has asked to end its leadership, and that the permit counts no more.
    PermitOutlivesTheRelease,
    /// A record that nobody has confirmed lately is taken as read now.
    StaleIsTakenAsFresh,
    /// Data that could not be read is taken as not there.
    UnreadableIsTakenAsAbsent,
    /// A directory in the middle of a copy or rewind is taken as whole.
    HalfCopiedIsTakenAsWhole,
    /// A fence kills the postmaster and leaves its backends.
    FencingForgetsBackends,
    /// A stop is called done as soon as it was asked for.
    StopIsDoneWhenAsked,
    /// A server is started as a standby without the file that makes it one.
    StandbysStartWithoutSignal,
    /// What has been replayed so far is taken for all that was received.
    ReplayedIsTakenAsReceived,
    /// A promotion uses the number that PostgreSQL finds free, whatever it has been given.
    PostgresNumbersItsTimelines,
    /// A paused cluster is managed on.
    PauseIsIgnored,
    /// PostgreSQL ends with its agent.
    PostgresEndsWithTheAgent,
    /// A change of the store's leader costs the permit.
    StoreLeaderCostsThePermit,
    /// Commits are acknowledged in the synchronous modes without waiting for anybody.
    CommitsDoNotWait,
    /// Whom commits wait for is taken from the files: PostgreSQL is not told, and nobody looks at what it does.
    FilesAreTakenAsInForce,
    /// PostgreSQL is told of a smaller synchronous set, or of another one, before the record says so.
    SyncRecordShrinksLast,
    /// The record names those who shall confirm before PostgreSQL waits for them.
    SyncRecordGrowsFirst,
    /// A standby is promoted before `synchronous_standby_names` is set, and the record that goes with it.
    PromotesBeforeNamesAreSet,
    /// Whoever may race reads the record as if it let everybody lead.
    SyncRecordIsTooGenerous,
    /// A directory that is to be replaced is not moved aside first.
    NothingIsMovedAside,
    /// A node does not know that its tag forbids it to lead.
    TagIsForgotten,
    /// A node does not know that its cluster follows another.
    StandbyClusterIsForgotten,
}

impl Mutation {
    /// The kind of run in which it can be noticed.
    pub fn profile(self, seed: u64) -> Profile {
        let mut chance = Chance::new(seed ^ 0xABCD);
        match self {
            Self::PostgresEndsWithTheAgent => Profile::about(Theme::AgentRestarts, &mut chance),
            Self::StoreLeaderCostsThePermit => Profile::about(Theme::StoreLeaders, &mut chance),
            // It needs an answer that comes late and a node that is cut off right after it.
            Self::PermitCountsFromTheAnswer => {
                let about = Profile::about(Theme::Anything, &mut chance);
                Profile { slow: true, fault_every: 3 * SEC, fault_lasts: 10 * SEC, lasts: 300 * SEC, ..about }
            }
            Self::CommitsDoNotWait | Self::FilesAreTakenAsInForce => {
                let about = Profile::about(Theme::Anything, &mut chance);
                Profile { synchronous: "quorum", lasts: 300 * SEC, ..about }
            }
            // Whoever writes must be lost between the two writes, and the one whom the first of them has left out comes back.
            Self::SyncRecordShrinksLast => {
                let about = Profile::about(Theme::Anything, &mut chance);
                let pace = Profile { fault_every: 8 * SEC, fault_lasts: 50 * SEC, lasts: 900 * SEC, ..about };
                let pace = Profile { operator_every: 0, recovery_max: 200 * MS, task_fails: 0, ..pace };
                Profile { synchronous: "on", confirming: 1, nodes: 3, crash_between: 6, ..pace }
            }
            // What nobody waits for must not have arrived yet when whoever wrote it is lost.
            Self::SyncRecordGrowsFirst => {
                let about = Profile::about(Theme::Anything, &mut chance);
                let pace = Profile { fault_every: 3 * SEC, fault_lasts: 10 * SEC, lasts: 300 * SEC, ..about };
                Profile { synchronous: "on", slow: true, crash_between: 10, ..pace }
            }
            Self::PromotesBeforeNamesAreSet => {
                let about = Profile::about(Theme::Anything, &mut chance);
                let pace = Profile { fault_every: 3 * SEC, fault_lasts: 10 * SEC, lasts: 300 * SEC, ..about };
                Profile { synchronous: "quorum", crash_between: 10, ..pace }
            }
            // One who has not received what another has confirmed must be alone with those who have not either.
            Self::SyncRecordIsTooGenerous => {
                let about = Profile::about(Theme::Anything, &mut chance);
                let pace = Profile { fault_every: 3 * SEC, fault_lasts: 10 * SEC, lasts: 300 * SEC, ..about };
                Profile { synchronous: "on", nodes: 5, confirming: 1, slow: true, ..pace }
            }
            // Everybody starts at once and has a lot to read.
            Self::ReplayedIsTakenAsReceived => {
                let about = Profile::about(Theme::Anything, &mut chance);
                let pace = Profile { fault_every: 8 * SEC, fault_lasts: 2 * SEC, lasts: 300 * SEC, ..about };
                let pace = Profile { slow: true, blackouts: 2, crash_between: 0, recovery_max: 20 * SEC, ..pace };
                Profile { synchronous: "quorum", nodes: 3, confirming: 1, ..pace }
            }
            // The release is done and its answer lost, and what it was for has passed.
            Self::PermitOutlivesTheRelease => {
                let about = Profile::about(Theme::Anything, &mut chance);
                let pace = Profile { fault_every: 2 * SEC, fault_lasts: 2 * SEC, lasts: 300 * SEC, ..about };
                Profile { crash_between: 2, operator_every: 10 * SEC, synchronous: "off", ..pace }
            }
            // A leadership must end before it has told of its promotion.
            Self::PostgresNumbersItsTimelines => {
                let about = Profile::about(Theme::Anything, &mut chance);
                Profile { fault_every: 3 * SEC, fault_lasts: 10 * SEC, lasts: 300 * SEC, slow: true, ..about }
            }
            Self::NothingIsMovedAside => {
                let about = Profile::about(Theme::Anything, &mut chance);
                Profile { operator_every: 10 * SEC, orders: 2, ..about }
            }
            Self::StandbyClusterIsForgotten => Profile::elsewhere(seed),
            Self::PauseIsIgnored => {
                let about = Profile::about(Theme::Anything, &mut chance);
                Profile { operator_every: 10 * SEC, ..about }
            }
            _ => Profile::about(Theme::Anything, &mut chance),
        }
    }
}

/// Each mutation, the promises of which one must be seen broken, and within how many seeds. Those with a budget of more
/// than a thousand are for long runs.
///
/// Whatever is noticed must not be seen in the same world without the change.
pub const ALL: &[(Mutation, &[&str], u64)] = &[
    (Mutation::GuardianSkipsTheDeadline, &["P1"], 200),
    (Mutation::PermitCountsFromTheAnswer, &["P1"], 10_000),
    (Mutation::PermitHasNoMargin, &["P1"], 500),
    (Mutation::LeasesExpireUnconfirmed, &["P1", "P4"], 200),
    (Mutation::RenewsAfterLosingTheLease, &["P1"], 500),
    (Mutation::TermIsReused, &["P1"], 200),
    (Mutation::UnreadableIsTakenAsAbsent, &["P5"], 500),
    (Mutation::HalfCopiedIsTakenAsWhole, &["P2"], 200),
    (Mutation::FencingForgetsBackends, &["P1"], 300),
    (Mutation::StopIsDoneWhenAsked, &["P1"], 500),
    (Mutation::PostgresNumbersItsTimelines, &["one history"], 1000),
    (Mutation::PauseIsIgnored, &["P7"], 200),
    (Mutation::PostgresEndsWithTheAgent, &["P8"], 200),
    (Mutation::StoreLeaderCostsThePermit, &["P4"], 200),
    (Mutation::CommitsDoNotWait, &["P2"], 300),
    (Mutation::FilesAreTakenAsInForce, &["P2"], 300),
    (Mutation::StandbysStartWithoutSignal, &["P1", "one history"], 200),
    (Mutation::SyncRecordShrinksLast, &["P2"], 1000),
    (Mutation::SyncRecordGrowsFirst, &["P2"], 300),
    (Mutation::PromotesBeforeNamesAreSet, &["P2"], 300),
    (Mutation::SyncRecordIsTooGenerous, &["P2"], 300),
    (Mutation::NothingIsMovedAside, &["P5"], 200),
    (Mutation::TagIsForgotten, &["tags"], 300),
    (Mutation::StandbyClusterIsForgotten, &["P1"], 200),
    (Mutation::ReplayedIsTakenAsReceived, &["P2"], 3000),
    (Mutation::PermitOutlivesTheRelease, &["P1"], 10_000),
];

/// Not noticed in thousands of seeds, and it need not be: what a node has of the record is never older than what it acted
/// on before; every write compares; a permit ends whatever the record says; whom commits wait for is PostgreSQL's own word.
/// What is lost is time: it acts on nobody's behalf until it hears again.
pub const UNNOTICED: &[(Mutation, &[&str], u64)] =
    &[(Mutation::StaleIsTakenAsFresh, &["P1", "P2", "one history"], 3000)];
