//! A model of PostgreSQL: what it does to its log, its files and its clients, as far as a failover depends on it.
//!
//! ```text
//! start -> crash recovery, or replay of what is there -> up -> streaming from whom it follows
//! promote -> a new branch of the log under the newest known timeline plus one -> writable
//! fast stop -> shutdown checkpoint, sent to every connected standby -> gone      kill -> gone, as after a crash
//! ```
//!
//! Deliberately absent: pages, transactions, SQL. A commit is a number of bytes at the end of a log.

use std::collections::VecDeque;

use howdah::agent::observe::data_dir_view;
use howdah::guardian::status::{Exit, PostgresProcess};
use howdah::ha::view::{DataDirView, ServerView, StandbyView};
use howdah::postgres::{ControlData, ControlState, DataDir, PresentDataDir, StandbyFloors};
use howdah::types::{Fact, Lsn, Mono, NodeName, StopMode, SystemId, TimelineId};

use crate::clock::{MS, SEC};
use crate::mutations::Mutation;
use crate::sync_replication::SyncReplication;
use crate::wal::Tip;
use crate::world::{Event, World};

/// A shutdown checkpoint with its headers.
pub const SHUTDOWN_CHECKPOINT: u64 = 114;

/// What lies in a data directory.
#[derive(Debug, Clone)]
pub struct Data {
    pub system: u64,
    /// The end of the log that is safe here.
    pub tip: Tip,
    pub control: ControlState,
    pub checkpoint: u64,
    pub checkpoint_timeline: u32,
    pub min_recovery_end: u64,
    pub signal: bool,
    /// The newest timeline of which a history file is here.
    pub known: u32,
    /// In the middle of an operation.
    pub incomplete: Option<&'static str>,
    /// Pages of a half-done operation: whoever starts on them serves nonsense.
    pub torn: bool,
    /// Whom the configuration follows.
    pub follow: Option<Source>,
    /// Whom the configuration has commits wait for.
    pub names: String,
    /// Where the last checkpoint began.
    pub redo: u64,
}

/// The disk of a node; survives everything here.
#[derive(Debug, Default)]
pub struct Disk {
    pub data: Option<Data>,
    /// Directories that were renamed.
    pub aside: Vec<Data>,
    /// It cannot be read at the moment.
    pub unreadable: bool,
    /// It cannot be written at the moment.
    pub full: bool,
}

/// The postmaster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proc {
    Gone,
    Running,
    /// Asked to stop.
    Stopping {
        fast: bool,
    },
    /// Being killed; backends may be left until it is done.
    Killing,
}

/// Where log comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Member(usize),
    /// The primary outside the cluster.
    Outside,
}

/// A connection to whoever is followed.
#[derive(Debug, Clone)]
pub struct Receiver {
    pub from: Source,
    pub from_epoch: u32,
    /// What is on its way: when it arrives, and what.
    pub queue: VecDeque<(u64, Tip)>,
}

/// The server and its processes.
#[derive(Debug)]
pub struct Pg {
    pub proc: Proc,
    pub frozen: bool,
    /// Counts the starts.
    pub epoch: u32,
    /// The guardian's mark: it may accept writes.
    pub writable: bool,
    pub promoting: bool,
    /// Connections are accepted.
    pub up: bool,
    pub recovery: bool,
    /// It still reads the log that it had; the position is the one that it shows meanwhile.
    pub replaying: Option<u64>,
    pub receiver: Option<Receiver>,
    pub sync: SyncReplication,
    /// The position last changed then.
    pub moved_at: u64,
    /// Sessions have been ended; no commit is acknowledged any more.
    pub draining: bool,
    /// Backends that a bad fence forgot go on until then.
    pub ghosts_until: u64,
}

impl Default for Pg {
    fn default() -> Self {
        Self {
            proc: Proc::Gone,
            frozen: false,
            epoch: 0,
            writable: false,
            promoting: false,
            up: false,
            recovery: true,
            replaying: None,
            receiver: None,
            sync: SyncReplication::default(),
            moved_at: 0,
            draining: false,
            ghosts_until: 0,
        }
    }
}

/// Something that PostgreSQL comes to by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PgNews {
    Up,
    Replayed,
    Promoted,
    Connect,
    Restores,
    Stopped,
    Killed,
    Checkpointed,
    Reloaded,
}

impl World {
    pub fn pg_soon(&mut self, node: usize, after: u64, news: PgNews) {
        let epoch = self.nodes[node].pg.epoch;
        self.after(after, Event::Pg { node, epoch, news });
    }

    pub fn data(&mut self, node: usize) -> &mut Data {
        self.nodes[node].disk.data.as_mut().expect("a server runs on data")
    }

    /// Starts the postmaster. As a primary it recovers first.
    pub fn pg_start(&mut self, node: usize, primary: bool) {
        // What the guardian takes it for, and what it is.
        let writable = primary;
        let primary = primary || self.mutated(Mutation::StandbysStartWithoutSignal) && !self.data(node).signal;
        let recovery_time = self.chance.skewed(20 * MS, self.profile.recovery_max);
        let pg = &mut self.nodes[node].pg;
        pg.epoch += 1;
        let epoch = pg.epoch;
        *pg = Pg { proc: Proc::Running, epoch, writable, recovery: !primary, ..Pg::default() };
        self.sync_begins(node);
        let data = self.data(node);
        if data.torn {
            self.fail("P2", node, "a half-copied data directory was started".to_owned());
            return;
        }
        if primary {
            data.control = ControlState::InCrashRecovery;
            self.pg_soon(node, recovery_time, PgNews::Up);
        } else {
            data.control = ControlState::InArchiveRecovery;
            data.signal = true;
            let shown = data.checkpoint.max(data.min_recovery_end).min(data.tip.1);
            self.nodes[node].pg.replaying = Some(shown);
            let up = self.chance.skewed(10 * MS, recovery_time);
            self.pg_soon(node, up, PgNews::Up);
            self.pg_soon(node, recovery_time.max(up), PgNews::Replayed);
        }
    }

    pub fn on_pg(&mut self, node: usize, epoch: u32, news: PgNews) {
        if self.nodes[node].pg.epoch != epoch || self.nodes[node].pg.proc == Proc::Gone {
            return;
        }
        if self.nodes[node].suspended || self.nodes[node].pg.frozen && news != PgNews::Killed {
            self.nodes[node].deferred.push(Event::Pg { node, epoch, news });
            return;
        }
        match news {
            PgNews::Up => self.pg_up(node),
            PgNews::Replayed => {
                self.nodes[node].pg.replaying = None;
                self.archive_is_asked_by(node);
                self.pg_reconnect_all();
            }
            PgNews::Connect => self.pg_connect(node),
            PgNews::Restores => self.pg_restores(node),
            PgNews::Promoted => self.pg_promoted(node),
            PgNews::Stopped => self.pg_try_to_end(node),
            PgNews::Killed => self.pg_gone(node, true),
            PgNews::Checkpointed => self.pg_checkpointed(node),
            PgNews::Reloaded => self.pg_reloaded(node),
        }
    }

    fn pg_up(&mut self, node: usize) {
        if self.nodes[node].pg.proc != Proc::Running {
            return;
        }
        self.nodes[node].pg.up = true;
        if !self.nodes[node].pg.recovery {
            let tip = self.data(node).tip;
            let timeline = self.wal.timeline(tip.0);
            let data = self.data(node);
            data.redo = tip.1;
            // Recovery ends with a checkpoint.
            (data.control, data.checkpoint, data.checkpoint_timeline) = (ControlState::InProduction, tip.1, timeline);
            self.pg_write(node, SHUTDOWN_CHECKPOINT);
            self.became_writable(node);
        }
        self.pg_reconnect_all();
    }

    fn pg_checkpointed(&mut self, node: usize) {
        if self.nodes[node].pg.proc != Proc::Running {
            // It stops: its own checkpoint is the last one, and whoever asked for this one gets an error.
            self.nodes[node].agent.checkpointing = false;
            return;
        }
        let tip = self.data(node).tip;
        let timeline = self.wal.timeline(tip.0);
        let redo = self.nodes[node].pg.sync.checkpoint_began;
        let data = self.data(node);
        data.checkpoint = data.tip.1;
        data.redo = redo.min(data.tip.1);
        data.checkpoint_timeline = timeline;
        if !self.nodes[node].pg.recovery {
            // Its own record comes last, after where it began.
            self.pg_write(node, SHUTDOWN_CHECKPOINT);
        }
        self.checkpoint_done(node);
    }

    /// A checkpoint that somebody waits for.
    pub fn pg_checkpoint(&mut self, node: usize) {
        if self.nodes[node].pg.proc != Proc::Running || !self.nodes[node].pg.up {
            // Nobody to ask: an error, and asked again.
            self.nodes[node].agent.checkpointing = false;
            return;
        }
        self.settle(node);
        self.nodes[node].pg.sync.checkpoint_began = self.data(node).tip.1;
        self.sync_checkpointer_reads(node);
        let after = self.chance.skewed(MS, 3 * SEC);
        self.pg_soon(node, after, PgNews::Checkpointed);
    }

    /// The promote signal. Nothing happens unless it is a standby that runs.
    pub fn pg_promote(&mut self, node: usize) {
        let pg = &self.nodes[node].pg;
        if pg.proc == Proc::Running && pg.recovery && !pg.promoting {
            self.nodes[node].pg.promoting = true;
            // The startup process may sleep between two sources of log. Source: design section 6.
            let after = if self.chance.one_in(10) { 5 * SEC } else { self.chance.between(20 * MS, 200 * MS) };
            self.pg_soon(node, after, PgNews::Promoted);
        }
    }

    fn pg_promoted(&mut self, node: usize) {
        let pg = &self.nodes[node].pg;
        if pg.proc != Proc::Running || !pg.recovery {
            return;
        }
        if pg.replaying.is_some() || !pg.up {
            // It ends its replay first.
            self.pg_soon(node, 50 * MS, PgNews::Promoted);
            return;
        }
        self.settle(node);
        let tip = self.data(node).tip;
        let known = self.data(node).known;
        let newest = self.wal.timeline(tip.0).max(known);
        if self.wal.is_used(newest + 1, self.nodes.len()) {
            self.fail("one history", node, format!("its promotion is the second one to timeline {}", newest + 1));
        }
        let branch = self.wal.branch(newest + 1, Some(tip), node);
        let data = self.data(node);
        data.tip = (branch, tip.1);
        data.known = newest + 1;
        data.signal = false;
        data.control = ControlState::InProduction;
        let pg = &mut self.nodes[node].pg;
        (pg.recovery, pg.promoting, pg.receiver) = (false, false, None);
        self.note_promotion(node, tip);
        self.archive_takes((branch, tip.1));
        // Who streams from it is cut off for a moment and finds the new timeline.
        self.disconnect_from(Source::Member(node));
        self.became_writable(node);
        self.guardian_notices_promotion(node);
    }

    /// Has the server read its files; each of its processes does so when it comes to it.
    pub fn pg_reload(&mut self, node: usize) {
        self.sync_reloads(node);
        let after = self.chance.skewed(2 * MS, 200 * MS);
        self.pg_soon(node, after, PgNews::Reloaded);
    }

    fn pg_reloaded(&mut self, node: usize) {
        self.settle(node);
        let follow = self.data(node).follow;
        if self.nodes[node].pg.receiver.as_ref().is_some_and(|receiver| Some(receiver.from) != follow) {
            self.pg_is_cut_off(node);
        }
        let after = self.chance.between(5 * MS, 100 * MS);
        self.pg_soon(node, after, PgNews::Connect);
    }

    /// Whether a client gets its commit acknowledged here.
    pub fn acknowledges(&self, node: usize) -> bool {
        let it = &self.nodes[node];
        let ghosts = self.now < it.pg.ghosts_until;
        let serves =
            matches!(it.pg.proc, Proc::Running | Proc::Killing) && it.pg.up && !it.pg.recovery && !it.pg.draining;
        it.power && !it.suspended && !it.pg.frozen && (serves || ghosts) && it.disk.data.is_some()
    }

    /// Writes to the log and sends it to everybody who is connected.
    pub fn pg_write(&mut self, node: usize, bytes: u64) -> Tip {
        let tip = self.data(node).tip;
        let tip = self.wal.append(tip, bytes, node);
        let data = self.data(node);
        (data.tip, data.known) = (tip, data.known);
        self.nodes[node].pg.moved_at = self.now;
        self.archive_takes(tip);
        self.pg_sends(node, tip, self.now);
        tip
    }

    /// A fast stop begins. What a primary writes last is sent to everybody who is connected before it ends.
    pub fn pg_stop(&mut self, node: usize, mode: StopMode) {
        let fast = mode == StopMode::Fast;
        if let Proc::Stopping { .. } | Proc::Killing | Proc::Gone = self.nodes[node].pg.proc {
            return;
        }
        self.nodes[node].pg.proc = Proc::Stopping { fast };
        self.nodes[node].pg.draining = true;
        if !fast {
            self.pg_kill(node);
            return;
        }
        if !self.nodes[node].pg.recovery && self.nodes[node].pg.up {
            self.data(node).control = ControlState::ShuttingDown;
            let before = self.data(node).tip.1;
            self.pg_write(node, SHUTDOWN_CHECKPOINT);
            self.data(node).checkpoint = before;
        }
        let takes = if self.chance.one_in(50) { 70 * SEC } else { self.chance.skewed(15 * MS, 3 * SEC) };
        self.pg_soon(node, takes, PgNews::Stopped);
    }

    /// It ends when everybody who is connected has received everything; a silent connection is waited for.
    fn pg_try_to_end(&mut self, node: usize) {
        if !matches!(self.nodes[node].pg.proc, Proc::Stopping { .. }) {
            return;
        }
        self.settle_all();
        let tip = self.data(node).tip;
        let waits = !self.nodes[node].pg.recovery
            && (0..self.nodes.len()).any(|other| {
                let it = &self.nodes[other];
                it.pg.receiver.as_ref().is_some_and(|receiver| receiver.from == Source::Member(node))
                    && it.disk.data.as_ref().is_some_and(|data| data.tip != tip)
            });
        if waits {
            self.pg_soon(node, 100 * MS, PgNews::Stopped);
            return;
        }
        let recovery = self.nodes[node].pg.recovery;
        let timeline = self.wal.timeline(tip.0);
        let clean = self.nodes[node].pg.up;
        let data = self.data(node);
        if recovery {
            data.control = ControlState::ShutDownInRecovery;
        } else if clean {
            data.control = ControlState::ShutDown;
            data.checkpoint_timeline = timeline;
        }
        self.pg_gone(node, false);
    }

    /// Kills everything of it; a moment passes until the last backend is gone.
    pub fn pg_kill(&mut self, node: usize) {
        if self.nodes[node].pg.proc == Proc::Gone || self.nodes[node].pg.proc == Proc::Killing {
            return;
        }
        self.nodes[node].pg.proc = Proc::Killing;
        let takes = self.chance.between(3 * MS, 150 * MS);
        self.pg_soon(node, takes, PgNews::Killed);
    }

    /// Nothing of it is left. `killed`: as after a crash.
    pub fn pg_gone(&mut self, node: usize, killed: bool) {
        self.settle(node);
        if self.nodes[node].pg.proc == Proc::Gone {
            return;
        }
        let recovery = self.nodes[node].pg.recovery;
        let low = self.nodes[node].disk.data.as_ref().map_or(0, |data| data.min_recovery_end.max(data.checkpoint));
        let tip = self.data(node).tip.1;
        let reached = self.chance.between(low, tip.max(low) + 1);
        if recovery {
            // Pages reach the disk when they like, never ahead of the log.
            self.data(node).min_recovery_end = reached;
        }
        let forgotten = killed && self.mutated(Mutation::FencingForgetsBackends);
        if forgotten && self.nodes[node].pg.up && !recovery {
            self.nodes[node].pg.ghosts_until = self.now + 20 * SEC;
        }
        let pg = &mut self.nodes[node].pg;
        (pg.proc, pg.up, pg.receiver, pg.promoting) = (Proc::Gone, forgotten && pg.up, None, false);
        pg.sync.waiting.clear();
        self.nodes[node].agent.checkpointing = false;
        let pg = &mut self.nodes[node].pg;
        pg.epoch += 1;
        self.disconnect_from(Source::Member(node));
        self.guardian_sees_the_end(node);
    }

    /// PostgreSQL's own account, as an agent gets it now; an error is a text.
    pub fn sql(&mut self, node: usize) -> Result<ServerView, &'static str> {
        self.settle(node);
        let it = &self.nodes[node];
        if it.pg.proc == Proc::Gone {
            return Err("connection refused");
        }
        if !it.pg.up || it.pg.proc != Proc::Running {
            return Err("the database system is starting up or shutting down");
        }
        let data = it.disk.data.as_ref().expect("it runs");
        let shown = it.pg.replaying.unwrap_or(data.tip.1);
        let standbys = (0..self.nodes.len())
            .filter(|other| {
                let receiver = self.nodes[*other].pg.receiver.as_ref();
                receiver.is_some_and(|it| it.from == Source::Member(node) && it.from_epoch == self.nodes[node].pg.epoch)
            })
            .filter_map(|other| {
                let there = &self.nodes[other];
                let flushed = Lsn(there.disk.data.as_ref()?.tip.1);
                let counted = match self.mutated(Mutation::FilesAreTakenAsInForce) {
                    true => data.names.contains(there.name.as_str()),
                    false => it.pg.sync.of_sender(other, self.now).names.contains(&other),
                };
                Some((there.name.clone(), StandbyView { streaming: true, flushed, counted }))
            })
            .collect();
        Ok(ServerView {
            in_recovery: it.pg.recovery,
            timeline: TimelineId(self.wal.timeline(data.tip.0)),
            position: Lsn(shown),
            replaying: it.pg.replaying.is_some() && !self.mutated(Mutation::ReplayedIsTakenAsReceived),
            streaming: it.pg.receiver.is_some(),
            receiving: it.pg.receiver.is_some(),
            synchronous_standby_names: match self.mutated(Mutation::FilesAreTakenAsInForce) {
                true => data.names.clone(),
                false => it.pg.sync.shown(self.now).to_owned(),
            },
            checkpoint_redo: Lsn(data.redo),
            follows_outside: it.agent.follows_outside,
            follows: it.agent.follows.clone(),
            standbys,
        })
    }

    /// What an agent finds in the data directory.
    pub fn inspect(&mut self, node: usize) -> DataDirView {
        let newest = self.nodes[node].disk.data.as_ref().map(|data| TimelineId(self.wal.timeline(data.tip.0)));
        let agent = &mut self.nodes[node].agent;
        agent.newest_timeline = agent.newest_timeline.max(newest);
        let (newest, creating) = (agent.newest_timeline, agent.created);
        let disk = &self.nodes[node].disk;
        let state = if disk.unreadable {
            DataDir::Unreadable { why: "input/output error".to_owned() }
        } else {
            match &disk.data {
                None => DataDir::Missing,
                Some(data) => match data.incomplete {
                    Some(why) => DataDir::Incomplete { why: why.to_owned(), control: Some(control(data)) },
                    None => DataDir::Present(Box::new(present(data))),
                },
            }
        };
        let view = data_dir_view(state, newest, creating);
        match view {
            DataDirView::Unreadable { .. } if self.mutated(Mutation::UnreadableIsTakenAsAbsent) => DataDirView::Empty,
            DataDirView::Incomplete { .. } if self.mutated(Mutation::HalfCopiedIsTakenAsWhole) => {
                let data = self.nodes[node].disk.data.as_ref().expect("it is incomplete");
                data_dir_view(DataDir::Present(Box::new(present(data))), newest, creating)
            }
            view => view,
        }
    }

    /// The guardian's report of an end.
    pub fn exit_report(&self, expected: bool) -> PostgresProcess {
        PostgresProcess::Exited(Exit { code: Some(0), signal: None, at: Mono(0), expected, swept: 0 })
    }

    /// The name of a node, for a fact about it.
    pub fn name(&self, node: usize) -> NodeName {
        self.nodes[node].name.clone()
    }

    /// PostgreSQL's account as a fact for a decision, and how long the asking takes.
    pub fn server_fact(&mut self, node: usize) -> (Fact<ServerView>, u64) {
        let now = self.nodes[node].clock.at(self.now);
        if self.nodes[node].pg.frozen && self.nodes[node].pg.proc != Proc::Gone {
            return (self.old_sight(node, now, "no answer in time"), 2 * SEC);
        }
        match self.sql(node) {
            Ok(view) => {
                self.nodes[node].agent.sighted = Some(now);
                let timeline = Some(view.timeline);
                let agent = &mut self.nodes[node].agent;
                agent.newest_timeline = agent.newest_timeline.max(timeline);
                (Fact::Fresh(view), 0)
            }
            Err(why) => (self.old_sight(node, now, why), 0),
        }
    }

    fn old_sight(&self, node: usize, now: Mono, why: &str) -> Fact<ServerView> {
        let agent = &self.nodes[node].agent;
        match (agent.view.server.any(), agent.sighted) {
            (Some(value), Some(at)) => Fact::Stale { value: value.clone(), age: now.since(at) },
            _ => Fact::unknown(why),
        }
    }
}

fn control(data: &Data) -> ControlData {
    ControlData {
        system_id: SystemId(data.system),
        state: data.control,
        timeline: TimelineId(data.checkpoint_timeline),
        previous_timeline: TimelineId(data.checkpoint_timeline),
        checkpoint: Lsn(data.checkpoint),
        redo: Lsn(data.checkpoint),
        minimum_recovery_end: data.signal.then_some(Lsn(data.min_recovery_end)),
        minimum_recovery_timeline: None,
        backup_in_progress: false,
        wal_log_hints: true,
        checksums: true,
        wal_level: String::new(),
        floors: StandbyFloors {
            max_connections: 0,
            max_worker_processes: 0,
            max_wal_senders: 0,
            max_prepared_transactions: 0,
            max_locks_per_transaction: 0,
        },
        wal_segment_size: 1 << 24,
        wal_block_size: 8192,
    }
}

fn present(data: &Data) -> PresentDataDir {
    PresentDataDir {
        system_id: SystemId(data.system),
        major_version: 17,
        control: control(data),
        backup_label: false,
        standby_signal: data.signal,
        recovery_signal: false,
        history: None,
        postmaster_pid: None,
    }
}
