//! Long tasks: creating a database, copying one, rewinding one. They can fail and be interrupted at every moment.

use howdah::ha::view::TaskKind;
use howdah::postgres::ControlState;

use crate::clock::{MS, SEC};
use crate::model_postgres::{Data, Proc, Source};
use crate::world::{Event, World};

/// The database that the cluster creates.
pub const DATABASE: u64 = 7_000_000_000;

impl World {
    pub fn task_begins(&mut self, node: usize, kind: TaskKind, serial: u64) {
        let takes = match kind {
            TaskKind::Initdb => self.chance.between(300 * MS, 3 * SEC),
            TaskKind::BaseBackup => self.chance.skewed(200 * MS, 30 * SEC),
            TaskKind::Rewind => self.chance.skewed(300 * MS, 10 * SEC),
        };
        // A rewind changes the files in place; whatever interrupts it leaves them half done, marked as such.
        if let (TaskKind::Rewind, Some(data)) = (kind, &mut self.nodes[node].disk.data) {
            data.incomplete = Some("a rewind");
            data.torn = true;
        }
        if kind == TaskKind::Initdb {
            self.check_room(node, "initdb");
            let number = self.created;
            self.created += 1;
            let branch = self.wal.branch(1, None, node);
            self.nodes[node].disk.data = Some(Data {
                system: DATABASE + number,
                tip: self.wal.append((branch, 0), 1000, node),
                control: ControlState::ShutDown,
                checkpoint: 900,
                checkpoint_timeline: 1,
                min_recovery_end: 0,
                signal: false,
                known: 1,
                incomplete: Some("a creation"),
                torn: true,
                follow: None,
                names: String::new(),
                redo: 900,
            });
        }
        let epoch = self.nodes[node].agent.epoch;
        self.after(takes, Event::TaskEnds { node, epoch, serial });
    }

    pub fn on_task_ends(&mut self, node: usize, epoch: u32, serial: u64) {
        let it = &mut self.nodes[node];
        if it.agent.epoch != epoch
            || !it.agent.alive
            || it.agent.task.as_ref().is_none_or(|task| task.serial != serial || task.ended.is_some())
        {
            return;
        }
        if it.agent.frozen || it.suspended {
            it.deferred.push(Event::TaskEnds { node, epoch, serial });
            return;
        }
        let Some(task) = it.agent.task.clone() else { return };
        let result = if task.cancelled {
            Err(("cancelled".to_owned(), true))
        } else if it.disk.full || self.chance.one_in(self.profile.task_fails) {
            Err(("no space left on device".to_owned(), false))
        } else {
            match (task.kind, task.from) {
                (TaskKind::Initdb, _) => {
                    self.data(node).torn = false;
                    Ok(())
                }
                (TaskKind::BaseBackup, Some(from)) => self.copy(node, from, task.from_epoch),
                (TaskKind::Rewind, Some(Source::Member(from))) => self.rewind(node, from, task.from_epoch),
                (TaskKind::Rewind, Some(Source::Outside)) | (TaskKind::BaseBackup | TaskKind::Rewind, None) => Ok(()),
            }
        };
        self.trace(node, || format!("task {:?}: {result:?}", task.kind));
        if let Some(task) = &mut self.nodes[node].agent.task {
            task.ended = Some(result);
        }
        self.wake(node);
    }

    /// Whether the source has been there all the time.
    fn source(&mut self, node: usize, from: usize, epoch: u32) -> Result<Data, (String, bool)> {
        let other = &self.nodes[from];
        let there = other.power && !other.suspended && !other.pg.frozen && other.pg.up;
        if !there || other.pg.epoch != epoch || other.pg.proc != Proc::Running || !self.net.talk(node, from) {
            return Err(("the source went away".to_owned(), true));
        }
        self.settle(from);
        Ok(self.data(from).clone())
    }

    fn source_outside(&mut self, node: usize, epoch: u32) -> Result<Data, (String, bool)> {
        let there = self.talks(node, Source::Outside) && self.epoch_of(Source::Outside) == epoch;
        let outside = self.outside.as_ref().filter(|outside| there && outside.up);
        let timeline = outside.and_then(|outside| outside.tip).map_or(1, |tip| self.wal.timeline(tip.0));
        outside.and_then(|outside| outside.copied(timeline)).ok_or_else(|| ("the source went away".to_owned(), true))
    }

    fn copy(&mut self, node: usize, from: Source, epoch: u32) -> Result<(), (String, bool)> {
        let source = match from {
            Source::Member(from) => self.source(node, from, epoch)?,
            Source::Outside => self.source_outside(node, epoch)?,
        };
        self.check_room(node, "base backup");
        // The control file of a copy is the source's: it says "in production", beside the signal file.
        self.nodes[node].disk.data = Some(Data { control: source.control, ..copied(&source) });
        Ok(())
    }

    /// By timeline numbers, as pg_rewind does: what is true is looked at afterwards.
    fn rewind(&mut self, node: usize, from: usize, epoch: u32) -> Result<(), (String, bool)> {
        let source = match self.source(node, from, epoch) {
            Ok(source) => source,
            Err(error) => {
                // Nothing was changed yet, more often than not.
                if self.chance.one_in(2) {
                    let data = self.data(node);
                    (data.incomplete, data.torn) = (None, false);
                }
                return Err(error);
            }
        };
        let data = self.data(node);
        let (own, theirs) = (data.tip, source.tip);
        // A standby's timeline is that of where it must recover to; older versions go by its last checkpoint.
        let old = source.signal && self.profile.old_rewind;
        if old && source.checkpoint_timeline == self.wal.timeline(own.0) {
            self.data_is_left_alone(node);
            return Ok(());
        }
        if !source.signal && source.checkpoint_timeline != self.wal.timeline(theirs.0) {
            let data = self.data(node);
            (data.incomplete, data.torn) = (None, false);
            return Err(("the source has not made its checkpoint yet".to_owned(), true));
        }
        let (own_timeline, their_timeline) = (self.wal.timeline(own.0), self.wal.timeline(theirs.0));
        if own_timeline == their_timeline {
            self.data_is_left_alone(node);
            return Ok(());
        }
        let (ours, others) = (self.wal.history(own.0), self.wal.history(theirs.0));
        let end = |history: &[(u32, u64)], timeline: u32, newest: u32, tip: u64| {
            if timeline == newest {
                return Some(tip);
            }
            history.iter().find(|(number, _)| *number == timeline).map(|(_, at)| *at)
        };
        let mut common = 0;
        for timeline in (1..=own_timeline).rev() {
            let here = end(&ours, timeline, own_timeline, own.1);
            let there = end(&others, timeline, their_timeline, theirs.1);
            if let (Some(here), Some(there)) = (here, there) {
                common = here.min(there);
                break;
            }
        }
        let shared = self.wal.shared(own, theirs);
        if shared < common {
            let why = format!("a rewind kept {common:x} bytes, but only {shared:x} are shared with its source");
            self.fail("one history", node, why);
        }
        let known = self.data(node).known.max(source.known);
        self.nodes[node].disk.data = Some(Data { known, ..copied(&source) });
        Ok(())
    }

    /// "no rewind required": equal numbers are taken for equal histories.
    fn data_is_left_alone(&mut self, node: usize) {
        let data = self.data(node);
        (data.incomplete, data.torn, data.signal) = (None, false, true);
        data.control = ControlState::InArchiveRecovery;
    }

    /// The agent's tools end with it, wherever they are.
    pub fn task_is_lost(&mut self, node: usize) {
        self.nodes[node].agent.task = None;
    }
}

fn copied(source: &Data) -> Data {
    Data {
        control: ControlState::InArchiveRecovery,
        min_recovery_end: source.tip.1,
        checkpoint: source.checkpoint,
        signal: true,
        follow: None,
        incomplete: None,
        torn: false,
        ..source.clone()
    }
}
