//! How PostgreSQL has commits wait for standbys: each of its processes reads a changed rule when it comes to it.
//!
//! A session shows the new text soon; each WAL sender counts by the old rule until it has read the new one; whether
//! commits wait at all is a switch of the checkpointer, which reads its files between two checkpoints.
//! Source: PostgreSQL `syncrep.c`, `checkpointer.c`.

use std::collections::{BTreeSet, VecDeque};

use crate::clock::{MS, SEC};
use crate::model_postgres::Source;
use crate::mutations::Mutation;
use crate::wal::Tip;
use crate::world::{Event, World};

/// Who must confirm, as PostgreSQL reads it.
#[derive(Debug, Clone, Default)]
pub struct Rule {
    pub count: usize,
    pub names: BTreeSet<usize>,
    /// Names of which nobody here is called so.
    pub unknown: usize,
}

/// A text of `synchronous_standby_names`, and when each process has read it.
#[derive(Debug, Clone, Default)]
struct Version {
    text: String,
    rule: Rule,
    shown_at: u64,
    switch_at: u64,
    senders_at: Vec<u64>,
}

/// Synchronous replication of a running primary.
#[derive(Debug, Clone, Default)]
pub struct SyncReplication {
    versions: Vec<Version>,
    /// What each standby has confirmed over its present connection.
    confirmed: Vec<u64>,
    /// Commits that wait.
    pub waiting: VecDeque<Tip>,
    pub checkpoint_began: u64,
}

impl SyncReplication {
    pub fn shown(&self, now: u64) -> &str {
        self.versions.iter().rev().find(|version| version.shown_at <= now).map_or("", |version| &version.text)
    }

    /// The rule by which one WAL sender counts.
    pub fn of_sender(&self, standby: usize, now: u64) -> Rule {
        let read = |version: &&Version| version.senders_at.get(standby).is_some_and(|at| *at <= now);
        self.versions.iter().rev().find(read).map(|version| version.rule.clone()).unwrap_or_default()
    }

    fn waits(&self, now: u64) -> bool {
        let last = self.versions.iter().rev().find(|version| version.switch_at <= now);
        last.is_some_and(|version| 0 < version.rule.count)
    }
}

impl World {
    /// PostgreSQL's grammar, as far as it is used here: `a`, `2 (a,b)`, `ANY 1 (a,b)`.
    fn rule(&self, text: &str) -> Rule {
        if text.is_empty() {
            return Rule::default();
        }
        let (head, list) = text.split_once('(').map_or(("1", text), |(head, rest)| (head, rest.trim_end_matches(')')));
        let count = head.split_whitespace().next_back().and_then(|word| word.parse().ok()).unwrap_or(1);
        let mut rule = Rule { count, ..Rule::default() };
        for name in list.split(',').map(|name| name.trim().trim_matches('"')) {
            match self.nodes.iter().position(|node| node.name.as_str() == name) {
                Some(node) => drop(rule.names.insert(node)),
                None => rule.unknown += 1,
            }
        }
        rule
    }

    /// A start reads the files once for all.
    pub fn sync_begins(&mut self, node: usize) {
        let text = self.data(node).names.clone();
        let rule = self.rule(&text);
        let count = self.nodes.len();
        let senders_at = vec![self.now; count];
        let (shown_at, switch_at) = (self.now, self.now);
        let sync = &mut self.nodes[node].pg.sync;
        sync.versions = vec![Version { text, rule, shown_at, switch_at, senders_at }];
        sync.confirmed = vec![0; count];
    }

    /// The files were changed and everybody was told.
    pub fn sync_reloads(&mut self, node: usize) {
        let text = self.data(node).names.clone();
        if self.nodes[node].pg.sync.versions.last().is_some_and(|version| version.text == text) {
            return;
        }
        let rule = self.rule(&text);
        let now = self.now;
        let shown_at = now + self.chance.skewed(MS, 200 * MS);
        let senders_at = (0..self.nodes.len()).map(|_| now + self.chance.skewed(MS, 900 * MS)).collect();
        let switch_at = now + self.chance.skewed(MS, 5 * SEC);
        let version = Version { text, rule, shown_at, switch_at, senders_at };
        let sync = &mut self.nodes[node].pg.sync;
        sync.versions.push(version);
        if 8 < sync.versions.len() {
            sync.versions.remove(0);
        }
        // A switch that goes off lets everybody go; looked at with the next write.
    }

    /// A checkpoint begins: the checkpointer has read its files.
    pub fn sync_checkpointer_reads(&mut self, node: usize) {
        let now = self.now;
        for version in &mut self.nodes[node].pg.sync.versions {
            version.switch_at = version.switch_at.min(now);
        }
    }

    /// Whether the client of a commit that was just written must wait. If so it does.
    pub fn sync_waits(&mut self, node: usize, end: Tip) -> bool {
        let now = self.now;
        let sync = &mut self.nodes[node].pg.sync;
        if sync.waits(now) {
            sync.waiting.push_back(end);
            return true;
        }
        let free: Vec<Tip> = sync.waiting.drain(..).collect();
        for end in free {
            self.client_is_told(node, end, false);
        }
        false
    }

    /// A standby will confirm what arrives there at `arrives`.
    pub fn sync_will_reply(&mut self, primary: Source, standby: usize, arrives: u64, position: u64) {
        // Outside nobody waits for anybody here.
        let Source::Member(primary) = primary else { return };
        if self.nodes[primary].pg.sync.waiting.is_empty() && self.nodes[primary].pg.sync.versions.len() < 2 {
            let sync = &self.nodes[primary].pg.sync;
            if sync.versions.first().is_none_or(|version| version.rule.count == 0) {
                return;
            }
        }
        let epoch = self.nodes[primary].pg.epoch;
        let back = self.net.delay(&mut self.chance);
        self.at(arrives + back, Event::SyncReply { node: primary, epoch, from: standby, position });
    }

    /// A WAL sender hears from its standby, and lets those go whom its rule allows.
    pub fn on_sync_reply(&mut self, node: usize, epoch: u32, from: usize, position: u64) {
        let connected = |world: &World, other: usize| {
            let receiver = world.nodes[other].pg.receiver.as_ref();
            receiver.is_some_and(|receiver| receiver.from == Source::Member(node) && receiver.from_epoch == epoch)
        };
        if self.nodes[node].pg.epoch != epoch || !connected(self, from) || !self.net.talk(node, from) {
            return;
        }
        if self.nodes[node].pg.frozen || self.nodes[node].suspended {
            self.nodes[node].deferred.push(Event::SyncReply { node, epoch, from, position });
            return;
        }
        self.settle(from);
        let has = self.nodes[from].disk.data.as_ref().map_or(0, |data| data.tip.1);
        if has < position {
            return;
        }
        let now = self.now;
        self.nodes[node].pg.sync.confirmed[from] = position;
        let rule = self.nodes[node].pg.sync.of_sender(from, now);
        if !rule.names.contains(&from) || rule.names.len() + rule.unknown < rule.count {
            return;
        }
        let mut positions: Vec<u64> = rule
            .names
            .iter()
            .filter(|other| connected(self, **other))
            .map(|other| self.nodes[node].pg.sync.confirmed[*other])
            .collect();
        positions.sort_unstable_by(|a, b| b.cmp(a));
        let Some(reached) = positions.get(rule.count - 1).copied() else { return };
        let mut free = Vec::new();
        while let Some(end) = self.nodes[node].pg.sync.waiting.front().copied().filter(|end| end.1 <= reached) {
            self.nodes[node].pg.sync.waiting.pop_front();
            free.push(end);
        }
        if self.nodes[node].pg.draining {
            return;
        }
        for end in free {
            self.client_is_told(node, end, true);
        }
    }

    /// Commits are acknowledged although nobody has confirmed them: what a bad change of the world does.
    pub fn sync_is_ignored(&self) -> bool {
        self.mutated(Mutation::CommitsDoNotWait)
    }
}
