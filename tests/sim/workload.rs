//! Clients that write wherever a server accepts it, and a ledger of what was acknowledged to them.

use howdah::cluster::records::Initialize;

use crate::clock::{MS, SEC};
use crate::quiet::Quiet;
use crate::wal::Tip;
use crate::world::{Event, World};

/// An acknowledged commit.
#[derive(Debug, Clone, Copy)]
pub struct Commit {
    pub end: Tip,
    pub lost: bool,
    /// While which promise it was acknowledged: it counts as long as that one stands.
    pub promise: Option<u32>,
}

/// What was acknowledged.
#[derive(Debug, Default)]
pub struct Ledger {
    pub commits: Vec<Commit>,
    /// Many writes until then, few afterwards.
    pub busy_until: u64,
    /// Nobody writes at all.
    pub asleep: bool,
}

impl World {
    /// Many clients write, at least until then.
    pub fn clients_write(&mut self, until: u64) {
        self.ledger.busy_until = self.ledger.busy_until.max(until);
        if std::mem::take(&mut self.ledger.asleep) {
            self.after(MS, Event::Write);
        }
        if let Some(outside) = &mut self.outside
            && std::mem::take(&mut outside.asleep)
        {
            self.after(MS, Event::Outside);
        }
    }

    pub fn on_write(&mut self) {
        let busy = self.now < self.ledger.busy_until;
        self.ledger.asleep = !busy && self.dangerous && self.profile.quiet != Quiet::No;
        if self.ledger.asleep {
            return;
        }
        let next = if busy { self.chance.between(10 * MS, 400 * MS) } else { self.chance.between(5 * SEC, 60 * SEC) };
        self.after(next, Event::Write);
        for node in 0..self.nodes.len() {
            if self.acknowledges(node) {
                self.client_commits(node);
            }
        }
    }

    fn client_commits(&mut self, node: usize) {
        if self.now < self.nodes[node].pg.ghosts_until {
            // A backend that outlived its postmaster says yes to what it had done.
            self.check_acknowledgement(node);
            return;
        }
        if self.nodes[node].disk.full {
            return;
        }
        let bytes =
            if self.chance.one_in(100) { self.chance.between(1 << 20, 4 << 20) } else { self.chance.between(60, 3000) };
        let end = self.pg_write(node, bytes);
        if self.sync_is_ignored() || !self.sync_waits(node, end) {
            self.client_is_told(node, end, false);
        }
    }

    /// The client is told that its commit is done: because it was `confirmed`, or because nobody needs to.
    pub fn client_is_told(&mut self, node: usize, end: Tip, confirmed: bool) {
        if !self.acknowledges(node) {
            return;
        }
        self.check_acknowledgement(node);
        let exists = self.store.truth().initialize.as_ref().is_some_and(|i| matches!(i.value, Initialize::Done(_)));
        if exists {
            self.stats.acknowledged += 1;
            let promise = self.promise(node, confirmed);
            self.ledger.commits.push(Commit { end, lost: false, promise });
        }
    }
}
