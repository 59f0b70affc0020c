//! Why: every action and every refusal as data, with a stable code and one sentence.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::{Lsn, NodeName, SystemId, TimelineId, WalBytes};

/// The reason of a decision. Logs, REST, CLI and history all show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the sentence of each variant is its documentation")]
pub enum Reason {
    // steady states
    LeaderHealthy { term: i64 },
    LeaderDegraded { term: i64, copies: u32, wanted: u32 },
    CommitsWait { term: i64, there: usize, needed: usize },
    Following { leader: NodeName, streaming: bool },
    ArchiveOnly { leader: NodeName },
    StandbyLeader { outside: String, streaming: bool },
    Paused,
    PausedWithoutPrimary,
    // waiting
    TaskRunning { task: String },
    TaskFailed { attempts: u32, wanted: String },
    StoreUnknown { why: String },
    StoreStale { age: Duration },
    RecordDamaged { keys: String },
    BootstrapRunningOn { node: NodeName },
    BootstrapForbidden,
    NoLeaderToCloneFrom,
    LeaderNotReady { leader: NodeName },
    LeaderCheckpointPending { leader: NodeName },
    LeaderTimelineUnknown { leader: NodeName },
    AwaitingRenewal,
    Starting { why: String },
    Recovering { position: Lsn },
    Stopping,
    GuardianUnreachable,
    ServerSilent { why: String },
    StandbyKeepsEnding { attempts: u32 },
    // refusals
    DataDirGone { what: String },
    ForeignDataDir { why: String },
    UnreadableDataDir { why: String },
    IncompleteDataDir { why: String },
    WrongSystemId { ours: SystemId, cluster: SystemId },
    StandbyWithoutCluster,
    ClusterForgotten { timeline: TimelineId },
    NoFailoverTag,
    LagTooHigh { lag: WalBytes, max: WalBytes },
    TimelineBehind { ours: TimelineId, cluster: TimelineId },
    PeerAhead { peer: NodeName, by: WalBytes },
    PeerTimelineAhead { peer: NodeName, timeline: TimelineId },
    PeerPreferred { peer: NodeName, priority: u32, ours: u32 },
    PrePromoteRefused { pause: Duration },
    LivePrimary { peer: NodeName },
    HandoverToOther { to: NodeName },
    RequestForOther { to: NodeName },
    WalStillFlowing { since: Duration },
    StillReplaying { position: Lsn },
    PeerStillReplaying { peer: NodeName },
    SyncUnreadable { why: String },
    ReservedUnreadable { why: String },
    NotSynchronous { proven: String },
    SyncVotesMissing { heard: usize, needed: usize, missing: String },
    // role changes
    NewCluster,
    AdoptCluster { system_id: SystemId },
    CreateDatabase,
    RemoveFailedCreation { why: String },
    DatabaseCreated { system_id: SystemId },
    CloneFrom { leader: NodeName, why: String },
    RewindFrom { leader: NodeName, timeline: TimelineId, ours: Lsn, shared: Lsn },
    RewindAfterCrash { leader: NodeName, timeline: TimelineId },
    StopToRewind { ours: Lsn, shared: Lsn, timeline: TimelineId },
    JoinAsStandby { leader: Option<NodeName> },
    FollowNewLeader { leader: NodeName },
    FollowByTag { upstream: NodeName },
    StartToPromote,
    PrePromote,
    ReserveTimeline { timeline: TimelineId },
    CopyOutside { outside: String },
    FollowOutside { outside: String },
    DemoteCluster { outside: String },
    ReleaseTo { to: NodeName },
    RestartForSlots { slots: String },
    CrashedRestartInPlace { attempt: usize },
    StartNewCluster,
    StartAfterOutage,
    CrashLoop { attempts: usize },
    FailoverRatherThanRestart,
    StartTooSlow { limit: Duration },
    BehindOwnCluster { ours: TimelineId, cluster: TimelineId },
    WonRace { position: Lsn },
    BestCandidate { leaderless_ms: u64, position: Lsn },
    ProvenCandidate { leaderless_ms: u64, position: Lsn },
    NamedSuccessor { from: NodeName, shutdown_lsn: Lsn },
    NamedByRequest,
    PermitLost,
    LeaderIsOther { leader: NodeName },
    LeaderKeyGone,
    ReleaseAgain,
    // by hand
    Unmanaged,
    RestartByHand,
    StartByHand,
    ReinitializeByHand { leader: NodeName },
    // the synchronous set
    StopReceiving,
    SyncRecord { needed: usize, voters: String },
    SyncNames { count: usize, of: String },
    SyncDegraded { copies: u32, wanted: u32 },
    SyncOff,
    // switchover and shutdown
    SwitchoverCheckpoint { to: NodeName },
    SwitchoverWaitsForCandidate { to: NodeName, behind: WalBytes },
    SwitchoverStop { to: NodeName },
    SwitchoverHandOver { to: NodeName, shutdown_lsn: Lsn },
    SwitchoverAwaitsProof { why: String },
    SwitchoverUnproven { why: String },
    RequestRefused { why: String },
    ShutdownStop,
    ShutdownRelease,
    ShutdownDone,
}

macro_rules! codes {
    ($($variant:ident => $code:literal,)*) => {
        /// The codes of all reasons, in the order of `src/docs/rules.md`.
        pub const CODES: &[&str] = &[$($code,)*];

        impl Reason {
            /// The stable code, for metrics, tests and documentation; the journal shows the same word.
            pub fn code(&self) -> String {
                match self {
                    $(Self::$variant { .. } => $code.to_owned(),)*
                }
            }
        }
    };
}

codes! {
    LeaderHealthy => "leader_healthy",
    LeaderDegraded => "leader_degraded",
    CommitsWait => "commits_wait",
    Following => "following",
    ArchiveOnly => "archive_only",
    StandbyLeader => "standby_leader",
    Paused => "paused",
    PausedWithoutPrimary => "paused_without_primary",
    TaskRunning => "task_running",
    TaskFailed => "task_failed",
    StoreUnknown => "store_unknown",
    StoreStale => "store_stale",
    RecordDamaged => "record_damaged",
    BootstrapRunningOn => "bootstrap_running_on",
    BootstrapForbidden => "bootstrap_forbidden",
    NoLeaderToCloneFrom => "no_leader_to_clone_from",
    LeaderNotReady => "leader_not_ready",
    LeaderCheckpointPending => "leader_checkpoint_pending",
    LeaderTimelineUnknown => "leader_timeline_unknown",
    AwaitingRenewal => "awaiting_renewal",
    Starting => "starting",
    Recovering => "recovering",
    Stopping => "stopping",
    GuardianUnreachable => "guardian_unreachable",
    ServerSilent => "server_silent",
    StandbyKeepsEnding => "standby_keeps_ending",
    DataDirGone => "data_dir_gone",
    ForeignDataDir => "foreign_data_dir",
    UnreadableDataDir => "unreadable_data_dir",
    IncompleteDataDir => "incomplete_data_dir",
    WrongSystemId => "wrong_system_id",
    StandbyWithoutCluster => "standby_without_cluster",
    ClusterForgotten => "cluster_forgotten",
    NoFailoverTag => "no_failover_tag",
    LagTooHigh => "lag_too_high",
    TimelineBehind => "timeline_behind",
    PeerAhead => "peer_ahead",
    PeerTimelineAhead => "peer_timeline_ahead",
    PeerPreferred => "peer_preferred",
    PrePromoteRefused => "pre_promote_refused",
    LivePrimary => "live_primary",
    HandoverToOther => "handover_to_other",
    RequestForOther => "request_for_other",
    WalStillFlowing => "wal_still_flowing",
    StillReplaying => "still_replaying",
    PeerStillReplaying => "peer_still_replaying",
    SyncUnreadable => "sync_unreadable",
    ReservedUnreadable => "reserved_unreadable",
    NotSynchronous => "not_synchronous",
    SyncVotesMissing => "sync_votes_missing",
    NewCluster => "new_cluster",
    AdoptCluster => "adopt_cluster",
    CreateDatabase => "create_database",
    RemoveFailedCreation => "remove_failed_creation",
    DatabaseCreated => "database_created",
    CloneFrom => "clone_from",
    RewindFrom => "rewind_from",
    RewindAfterCrash => "rewind_after_crash",
    StopToRewind => "stop_to_rewind",
    JoinAsStandby => "join_as_standby",
    FollowNewLeader => "follow_new_leader",
    FollowByTag => "follow_by_tag",
    StartToPromote => "start_to_promote",
    PrePromote => "pre_promote",
    ReserveTimeline => "reserve_timeline",
    CopyOutside => "copy_outside",
    FollowOutside => "follow_outside",
    DemoteCluster => "demote_cluster",
    ReleaseTo => "release_to",
    RestartForSlots => "restart_for_slots",
    CrashedRestartInPlace => "crashed_restart_in_place",
    StartNewCluster => "start_new_cluster",
    StartAfterOutage => "start_after_outage",
    CrashLoop => "crash_loop",
    FailoverRatherThanRestart => "failover_rather_than_restart",
    StartTooSlow => "start_too_slow",
    BehindOwnCluster => "behind_own_cluster",
    WonRace => "won_race",
    BestCandidate => "best_candidate",
    ProvenCandidate => "proven_candidate",
    NamedSuccessor => "named_successor",
    NamedByRequest => "named_by_request",
    PermitLost => "permit_lost",
    LeaderIsOther => "leader_is_other",
    LeaderKeyGone => "leader_key_gone",
    ReleaseAgain => "release_again",
    Unmanaged => "unmanaged",
    RestartByHand => "restart_by_hand",
    StartByHand => "start_by_hand",
    ReinitializeByHand => "reinitialize_by_hand",
    StopReceiving => "stop_receiving",
    SyncRecord => "sync_record",
    SyncNames => "sync_names",
    SyncDegraded => "sync_degraded",
    SyncOff => "sync_off",
    SwitchoverCheckpoint => "switchover_checkpoint",
    SwitchoverWaitsForCandidate => "switchover_waits_for_candidate",
    SwitchoverStop => "switchover_stop",
    SwitchoverHandOver => "switchover_hand_over",
    SwitchoverAwaitsProof => "switchover_awaits_proof",
    SwitchoverUnproven => "switchover_unproven",
    RequestRefused => "request_refused",
    ShutdownStop => "shutdown_stop",
    ShutdownRelease => "shutdown_release",
    ShutdownDone => "shutdown_done",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeaderHealthy { term } => write!(f, "this node leads in term {term}"),
            Self::LeaderDegraded { term, copies, wanted } => {
                write!(f, "this node leads in term {term}, and commits are on {copies} instead of {wanted} nodes")
            }
            Self::CommitsWait { term, there, needed } => write!(
                f,
                "this node leads in term {term}, and commits wait: {there} of {needed} standbys that must confirm them are there"
            ),
            Self::Following { leader, streaming: true } => write!(f, "following {leader}, streaming"),
            Self::Following { leader, streaming: false } => write!(f, "following {leader}, not streaming yet"),
            Self::ArchiveOnly { leader } => {
                write!(f, "the tag nostream: WAL comes from the archive by restore_command, not from {leader}")
            }
            Self::StandbyLeader { outside, streaming: true } => {
                write!(f, "this node leads a standby cluster and streams from {outside}")
            }
            Self::StandbyLeader { outside, streaming: false } => {
                write!(f, "this node leads a standby cluster and does not stream from {outside} yet")
            }
            Self::Paused => write!(f, "the cluster is paused: hands off"),
            Self::PausedWithoutPrimary => write!(
                f,
                "the cluster is paused, and this node holds the leader key without a running primary: resume to have it started"
            ),
            Self::TaskRunning { task } => write!(f, "{task} is running"),
            Self::TaskFailed { attempts, wanted } => {
                write!(f, "failed {attempts} times in a row, pausing before the next attempt: {wanted}")
            }
            Self::StoreUnknown { why } => write!(f, "the shared record has not been read yet: {why}"),
            Self::StoreStale { age } => {
                write!(f, "no majority of members has answered for {:.1} s", age.as_secs_f64())
            }
            Self::RecordDamaged { keys } => write!(f, "the shared record cannot be understood: {keys}"),
            Self::BootstrapRunningOn { node } => write!(f, "{node} is creating the cluster"),
            Self::BootstrapForbidden => {
                write!(f, "the tag nofailover, or bootstrap.adopt, forbids this node to create the cluster")
            }
            Self::NoLeaderToCloneFrom => write!(f, "there is no data here and no leader to copy from"),
            Self::LeaderNotReady { leader } => write!(f, "{leader} leads but does not accept connections yet"),
            Self::LeaderCheckpointPending { leader } => {
                write!(f, "{leader} has not written its checkpoint after promotion yet")
            }
            Self::LeaderTimelineUnknown { leader } => {
                write!(f, "{leader} has not published the history of its timeline yet")
            }
            Self::AwaitingRenewal => write!(f, "this node holds the leader key, but its permit must be renewed first"),
            Self::Starting { why } => write!(f, "PostgreSQL is starting: {why}"),
            Self::Recovering { position } => {
                write!(f, "the new cluster recovers from its backup, {position} so far, and leaves recovery by itself")
            }
            Self::Stopping => write!(f, "PostgreSQL is stopping"),
            Self::GuardianUnreachable => write!(f, "the guardian cannot be reached"),
            Self::ServerSilent { why } => write!(f, "PostgreSQL runs but does not answer: {why}"),
            Self::StandbyKeepsEnding { attempts } => {
                write!(
                    f,
                    "PostgreSQL was started as a standby {attempts} times in a row and never answered: see its log"
                )
            }
            Self::DataDirGone { what } => {
                write!(f, "PostgreSQL does not answer, and its data directory is gone: {what}")
            }
            Self::ForeignDataDir { why } => write!(f, "the data directory holds something else: {why}"),
            Self::UnreadableDataDir { why } => write!(f, "the data directory cannot be read: {why}"),
            Self::IncompleteDataDir { why } => write!(f, "the data here is not complete: {why}"),
            Self::WrongSystemId { ours, cluster } => write!(
                f,
                "the data directory belongs to database {ours}, the cluster is database {cluster}; move the directory away to get a copy of the cluster"
            ),
            Self::StandbyWithoutCluster => {
                write!(f, "the data is a standby's and the cluster is not known yet; start the former primary first")
            }
            Self::ClusterForgotten { timeline } => write!(
                f,
                "the record has the history of a cluster until timeline {timeline}, but not which database it is; put the key initialize back, or remove the key history to begin anew"
            ),
            Self::NoFailoverTag => write!(f, "the tag nofailover forbids this node to lead"),
            Self::LagTooHigh { lag, max } => {
                write!(
                    f,
                    "this node lacks {} bytes of WAL that the former primary had, maximum_lag_on_failover is {}; a failover by hand accepts the loss",
                    lag.0, max.0
                )
            }
            Self::TimelineBehind { ours, cluster } => {
                write!(f, "this node is on timeline {ours}, the cluster has reached {cluster}")
            }
            Self::PeerAhead { peer, by } => write!(f, "{peer} has {} more bytes of WAL", by.0),
            Self::PeerTimelineAhead { peer, timeline } => write!(f, "{peer} is on the newer timeline {timeline}"),
            Self::PeerPreferred { peer, priority, ours } => {
                write!(f, "{peer} has as much WAL and failover_priority {priority}, this node has {ours}")
            }
            Self::PrePromoteRefused { pause } => write!(
                f,
                "pre_promote said no (see the log); this node lets others lead for another {:.1} s",
                pause.as_secs_f64()
            ),
            Self::LivePrimary { peer } => write!(f, "{peer} still runs as a primary"),
            Self::HandoverToOther { to } => write!(f, "the former primary handed over to {to}"),
            Self::RequestForOther { to } => write!(f, "a failover to {to} was requested"),
            Self::StillReplaying { position } => {
                write!(f, "this node still replays its own WAL, {position} so far, and cannot tell yet how much it has")
            }
            Self::PeerStillReplaying { peer } => {
                write!(f, "{peer} starts and cannot tell yet how much WAL it has")
            }
            Self::SyncUnreadable { why } => {
                write!(
                    f,
                    "the record of the synchronous set cannot be understood, so nobody is proven to have every commit: {why}"
                )
            }
            Self::ReservedUnreadable { why } => {
                write!(
                    f,
                    "howdah/reserved cannot be understood, so nobody knows which timeline numbers are used up: {why}"
                )
            }
            Self::NotSynchronous { proven } => {
                write!(f, "this node may lack acknowledged commits; only these are proven to have them: {proven}")
            }
            Self::SyncVotesMissing { heard, needed, missing } => write!(
                f,
                "acknowledged commits may be where this node cannot look: {heard} of {needed} members are heard; {missing}"
            ),
            Self::WalStillFlowing { since } => {
                write!(f, "WAL still arrives from the former primary ({} ms ago)", since.as_millis())
            }
            Self::NewCluster => write!(f, "there is no cluster yet: this node creates it"),
            Self::AdoptCluster { system_id } => {
                write!(f, "there is no cluster yet: this node brings its database {system_id}")
            }
            Self::CreateDatabase => write!(f, "this node creates the database"),
            Self::RemoveFailedCreation { why } => write!(f, "an earlier attempt did not finish ({why})"),
            Self::DatabaseCreated { system_id } => write!(f, "database {system_id} is ready"),
            Self::CloneFrom { leader, why } => write!(f, "copying from {leader}: {why}"),
            Self::RewindFrom { leader, timeline, ours, shared } => write!(
                f,
                "rewinding from {leader}: this node reached {ours} on timeline {timeline}, {}",
                shared_part(*shared)
            ),
            Self::RewindAfterCrash { leader, timeline } => write!(
                f,
                "rewinding from {leader}: this node crashed as primary of timeline {timeline} and may have WAL that nobody received"
            ),
            Self::StopToRewind { ours, shared, timeline } => write!(
                f,
                "stopping to rewind: this node reached {ours} on timeline {timeline}, {}",
                shared_part(*shared)
            ),
            Self::JoinAsStandby { leader: Some(leader) } => write!(f, "starting as a standby of {leader}"),
            Self::JoinAsStandby { leader: None } => write!(f, "starting as a standby; nobody leads"),
            Self::FollowNewLeader { leader } => write!(f, "{leader} leads now: following it"),
            Self::FollowByTag { upstream } => write!(f, "the tag replicatefrom names {upstream}: following it"),
            Self::StartToPromote => {
                write!(f, "this node leads with a standby's data: starting as a standby first, to promote it")
            }
            Self::ReserveTimeline { timeline } => {
                write!(f, "this node leads: its promotion gets timeline {timeline}, which no other can use")
            }
            Self::PrePromote => write!(f, "this node leads: asking pre_promote before anything changes"),
            Self::CopyOutside { outside } => write!(f, "a new standby cluster is copied from {outside}"),
            Self::FollowOutside { outside } => write!(f, "this node leads a standby cluster: following {outside}"),
            Self::DemoteCluster { outside } => {
                write!(f, "the cluster shall follow {outside}: stopping the primary to start it as a standby")
            }
            Self::ReleaseTo { to } => write!(f, "a change of the standby cluster's leader to {to} was requested"),
            Self::RestartForSlots { slots } => {
                write!(f, "restarting this standby to put copies of the leader's logical slots in place: {slots}")
            }
            Self::CrashedRestartInPlace { attempt } => {
                write!(f, "PostgreSQL crashed; a restart in place loses nothing (attempt {attempt})")
            }
            Self::StartNewCluster => write!(f, "starting as the primary of the new cluster"),
            Self::StartAfterOutage => write!(f, "this node still holds the leader key: starting as primary"),
            Self::CrashLoop { attempts } => {
                write!(f, "PostgreSQL was started {attempts} times in a row and did not stay")
            }
            Self::FailoverRatherThanRestart => {
                write!(f, "PostgreSQL crashed and primary_start_timeout is 0: letting another node lead")
            }
            Self::StartTooSlow { limit } => write!(
                f,
                "PostgreSQL has not become ready within primary_start_timeout, {:.1} s: letting another node lead",
                limit.as_secs_f64()
            ),
            Self::BehindOwnCluster { ours, cluster } => write!(
                f,
                "this node holds the leader key but its data is on timeline {ours}, the cluster on {cluster}: releasing the key"
            ),
            Self::WonRace { position } => write!(f, "this node leads now: promoting at {position}"),
            Self::BestCandidate { leaderless_ms, position } => write!(
                f,
                "nobody has led for {leaderless_ms} ms and no member that answers and may lead has more WAL than this node's {position}"
            ),
            Self::ProvenCandidate { leaderless_ms, position } => write!(
                f,
                "nobody has led for {leaderless_ms} ms and this node, at {position}, is proven to have every acknowledged commit"
            ),
            Self::NamedSuccessor { from, shutdown_lsn } => {
                write!(f, "{from} handed over to this node, which has its shutdown checkpoint {shutdown_lsn}")
            }
            Self::NamedByRequest => write!(f, "a failover to this node was requested"),
            Self::PermitLost => write!(f, "the permit to write has ended and could not be renewed"),
            Self::LeaderIsOther { leader } => write!(f, "{leader} leads now"),
            Self::LeaderKeyGone => write!(f, "this node's leadership has ended"),
            Self::ReleaseAgain => {
                write!(f, "this node has asked to end its leadership, and the record still shows it: asking again")
            }
            Self::Unmanaged => {
                write!(
                    f,
                    "PostgreSQL runs here, and howdah has not started it: `howdah adopt` takes it over as it runs"
                )
            }
            Self::RestartByHand => write!(f, "a restart was asked for: stopping PostgreSQL"),
            Self::StartByHand => write!(f, "a restart was asked for: starting PostgreSQL again"),
            Self::ReinitializeByHand { leader } => {
                write!(f, "a new copy was asked for: replacing the data here by {leader}'s")
            }
            Self::StopReceiving => {
                write!(
                    f,
                    "nobody leads: receiving no more from the former primary, so that what was confirmed can be counted"
                )
            }
            Self::SyncRecord { voters, .. } if voters.is_empty() => {
                write!(f, "recording that nobody but this node may lead")
            }
            Self::SyncRecord { needed, voters } => {
                write!(f, "recording who may lead after this node: the most advanced of any {needed} of {voters}")
            }
            Self::SyncNames { count: 0, .. } => write!(f, "commits are to wait for nobody"),
            Self::SyncNames { count, of } => write!(f, "commits are to wait for {count} of {of}"),
            Self::SyncDegraded { copies, wanted } => {
                write!(f, "too few standbys: recording that commits will be on {copies} instead of {wanted} nodes")
            }
            Self::SyncOff => write!(
                f,
                "synchronous_mode is off: commits are to wait for nobody, and the record of the synchronous set goes"
            ),
            Self::SwitchoverCheckpoint { to } => write!(f, "switchover to {to}: writing a checkpoint first"),
            Self::SwitchoverWaitsForCandidate { to, behind } => {
                write!(f, "switchover to {to}: it is {} bytes behind", behind.0)
            }
            Self::SwitchoverStop { to } => write!(f, "switchover to {to}: stopping PostgreSQL"),
            Self::SwitchoverHandOver { to, shutdown_lsn } => {
                write!(f, "{to} has received the shutdown checkpoint {shutdown_lsn}: handing over")
            }
            Self::SwitchoverAwaitsProof { why } => {
                write!(f, "PostgreSQL has stopped; nobody proves to have its shutdown checkpoint yet: {why}")
            }
            Self::SwitchoverUnproven { why } => write!(f, "the hand-over is off, starting again as primary: {why}"),
            Self::RequestRefused { why } => write!(f, "the requested role change is refused: {why}"),
            Self::ShutdownStop => write!(f, "the node was asked to stop"),
            Self::ShutdownRelease => write!(f, "PostgreSQL has stopped: releasing the leader key"),
            Self::ShutdownDone => write!(f, "PostgreSQL has stopped; the node ends"),
        }
    }
}

fn shared_part(shared: Lsn) -> String {
    match shared {
        Lsn(0) => "of which the cluster knows nothing".to_owned(),
        shared => format!("of which the cluster shares the part until {shared}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_the_serialised_name() {
        let unit = Reason::Paused;
        let full = Reason::CrashLoop { attempts: 3 };
        assert_eq!(serde_json::to_value(&unit).expect("json"), serde_json::json!(unit.code()));
        assert!(serde_json::to_value(&full).expect("json").get(full.code()).is_some());
        let distinct: std::collections::BTreeSet<&&str> = CODES.iter().collect();
        assert_eq!(distinct.len(), CODES.len());
    }
}
