//! Log on its way from one server to those who stream from it, and on from there.
//!
//! ```text
//! primary --delay--> standby --delay--> standby of a standby          what is sent is worked out when it is written
//! a way is cut, a server ends, freezes or follows another:            what is on its way is lost, and sent again later
//! ```

use std::collections::VecDeque;

use crate::clock::{MS, SEC};
use crate::model_postgres::{PgNews, Proc, Receiver, Source};
use crate::wal::Tip;
use crate::world::World;

impl World {
    /// Ends every connection to a server that restarts, stops or switches its timeline.
    pub fn disconnect_from(&mut self, upstream: Source) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].pg.receiver.as_ref().is_some_and(|receiver| receiver.from == upstream) {
                self.settle(node);
                self.pg_is_cut_off(node);
                let retry = self.chance.between(20 * MS, 500 * MS);
                self.pg_soon(node, retry, PgNews::Connect);
            }
        }
    }

    /// Its connection has ended: nothing more arrives here, nor at those who stream from it, than is here now.
    pub fn pg_is_cut_off(&mut self, node: usize) {
        self.nodes[node].pg.receiver = None;
        self.pg_flow_restarts(node);
    }

    fn pg_flow_restarts(&mut self, node: usize) {
        for other in 0..self.nodes.len() {
            if self.nodes[other].pg.receiver.as_ref().is_none_or(|receiver| receiver.from != Source::Member(node)) {
                continue;
            }
            self.settle(other);
            if let Some(receiver) = &mut self.nodes[other].pg.receiver {
                receiver.queue.clear();
            }
            let (from, to) = (Source::Member(node), Source::Member(other));
            let tip = self.tip_of(from);
            if let Some(tip) = tip.filter(|_| self.talks(other, from) && self.flows(from) && self.flows(to)) {
                let at = self.now + self.net.delay(&mut self.chance);
                self.pg_arrives(from, other, tip, at);
                self.pg_passes_on(from, other);
            }
            self.pg_flow_restarts(other);
        }
    }

    /// Connects to the upstream, if there is one and it answers; else again later.
    pub fn pg_connect(&mut self, node: usize) {
        let pg = &self.nodes[node].pg;
        if pg.proc != Proc::Running || !pg.recovery || pg.replaying.is_some() || pg.receiver.is_some() {
            return;
        }
        let Some(upstream) = self.data(node).follow.filter(|upstream| *upstream != Source::Member(node)) else {
            return;
        };
        if !self.answers(upstream) || !self.talks(node, upstream) {
            // Somebody who heals, thaws or starts calls again; only refusals are retried by the clock.
            return;
        }
        let from_epoch = self.epoch_of(upstream);
        if !self.may_stream(node, upstream) {
            self.pg_soon(node, 5 * SEC, PgNews::Connect);
            return;
        }
        if let Source::Member(upstream) = upstream {
            self.settle(upstream);
        }
        let Some(tip) = self.tip_of(upstream) else { return };
        let known = match upstream {
            Source::Member(upstream) => self.data(upstream).known,
            Source::Outside => self.wal.timeline(tip.0),
        };
        let data = self.data(node);
        data.known = data.known.max(known);
        let arrives = self.now + self.net.delay(&mut self.chance);
        self.nodes[node].pg.receiver = Some(Receiver { from: upstream, from_epoch, queue: VecDeque::new() });
        self.pg_arrives(upstream, node, tip, arrives);
        self.pg_passes_on(upstream, node);
    }

    /// Everybody who has nobody to stream from tries again: something has changed for the better.
    pub fn pg_reconnect_all(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].pg.proc == Proc::Running && self.nodes[node].pg.receiver.is_none() {
                let after = self.chance.between(10 * MS, 500 * MS);
                self.pg_soon(node, after, PgNews::Connect);
            }
        }
    }

    /// What the upstream's WAL sender checks. By numbers, as PostgreSQL does: what is true is looked at afterwards.
    fn may_stream(&mut self, node: usize, upstream: Source) -> bool {
        let own = self.data(node).tip;
        let Some(theirs) = self.tip_of(upstream) else { return false };
        let (own_timeline, their_timeline) = (self.wal.timeline(own.0), self.wal.timeline(theirs.0));
        let end = if own_timeline == their_timeline {
            theirs.1
        } else {
            match self.wal.history(theirs.0).iter().find(|(timeline, _)| *timeline == own_timeline) {
                Some((_, switch)) => *switch,
                None => return false,
            }
        };
        if end < own.1 {
            return false;
        }
        let shared = self.wal.shared(own, theirs);
        if shared < own.1 {
            let why = format!(
                "it streams from {} as if they shared everything until {:x}, but they share only until {shared:x}",
                self.name_of(upstream),
                own.1
            );
            self.fail("one history", node, why);
            return false;
        }
        true
    }

    /// Takes in what has arrived until now.
    pub fn settle(&mut self, node: usize) {
        let now = self.now;
        let Some(receiver) = &mut self.nodes[node].pg.receiver else { return };
        let (from, epoch) = (receiver.from, receiver.from_epoch);
        let mut latest = None;
        while receiver.queue.front().is_some_and(|(at, _)| *at <= now) {
            latest = receiver.queue.pop_front();
        }
        if let Some((at, tip)) = latest {
            let data = self.data(node);
            if data.tip != tip {
                data.tip = tip;
                self.nodes[node].pg.moved_at = at;
            }
        }
        if self.epoch_of(from) != epoch {
            self.nodes[node].pg.receiver = None;
            self.pg_is_cut_off(node);
        }
    }

    /// Takes in what has arrived everywhere, before something happens to the ways.
    pub fn settle_all(&mut self) {
        for node in 0..self.nodes.len() {
            self.settle(node);
        }
    }

    /// What is on the way over a cut connection is sent again when it is whole.
    pub fn net_changed(&mut self) {
        for node in &mut self.nodes {
            if let Some(receiver) = &mut node.pg.receiver {
                receiver.queue.clear();
            }
        }
        for node in self.downstream() {
            let Some(receiver) = &self.nodes[node].pg.receiver else { continue };
            let from = receiver.from;
            let open = self.talks(node, from) && self.flows(from) && self.flows(Source::Member(node));
            let tip = self.tip_of(from);
            let at = self.now + self.net.delay(&mut self.chance);
            if let (true, Some(tip)) = (open, tip) {
                self.pg_arrives(from, node, tip, at);
                self.pg_passes_on(from, node);
            }
        }
        self.pg_reconnect_all();
    }

    /// Everybody who streams, whoever is nearer to the beginning first.
    fn downstream(&self) -> Vec<usize> {
        let depth = |node: usize| {
            let (mut at, mut steps) = (node, 0);
            while let Some(Receiver { from: Source::Member(from), .. }) = &self.nodes[at].pg.receiver
                && steps < self.nodes.len()
            {
                (at, steps) = (*from, steps + 1);
            }
            steps
        };
        let mut all: Vec<(usize, usize)> = (0..self.nodes.len()).map(|node| (depth(node), node)).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, node)| node).filter(|node| self.nodes[*node].pg.receiver.is_some()).collect()
    }

    /// `tip` will be at `node`, which streams from `from`, at the moment `at`, or as soon as what was sent before is there.
    pub fn pg_arrives(&mut self, from: Source, node: usize, tip: Tip, at: u64) -> u64 {
        let Some(receiver) = &mut self.nodes[node].pg.receiver else { return at };
        let at = receiver.queue.back().map_or(at, |(last, _)| at.max(*last));
        receiver.queue.push_back((at, tip));
        self.sync_will_reply(from, node, at, tip.1);
        at
    }

    /// What is still on its way to `from` goes on to `node`, which has just connected to it.
    fn pg_passes_on(&mut self, from: Source, node: usize) {
        let Source::Member(from) = from else { return };
        let waiting: Vec<(u64, Tip)> = self.nodes[from]
            .pg
            .receiver
            .as_ref()
            .map_or_else(Vec::new, |receiver| receiver.queue.iter().copied().collect());
        for (at, tip) in waiting {
            let at = at + self.net.delay(&mut self.chance);
            self.pg_arrives(Source::Member(from), node, tip, at);
        }
    }

    /// Sends what `node` has at the moment `at` to everybody who streams from it, and on from there.
    pub fn pg_sends(&mut self, node: usize, tip: Tip, at: u64) {
        let epoch = self.nodes[node].pg.epoch;
        for other in 0..self.nodes.len() {
            let connected = self.nodes[other].pg.receiver.as_ref();
            if !connected.is_some_and(|it| it.from == Source::Member(node) && it.from_epoch == epoch) {
                continue;
            }
            if self.net.talk(node, other) && self.flows(Source::Member(other)) {
                let arrives = at + self.net.delay(&mut self.chance);
                let arrives = self.pg_arrives(Source::Member(node), other, tip, arrives);
                self.pg_sends(other, tip, arrives);
            }
        }
    }

    /// Whether something comes out of it, or goes in.
    pub fn flows(&self, source: Source) -> bool {
        match source {
            Source::Member(node) => {
                let it = &self.nodes[node];
                it.power && !it.suspended && !it.pg.frozen && it.pg.proc != Proc::Gone
            }
            Source::Outside => self.outside.as_ref().is_some_and(|outside| outside.up),
        }
    }

    /// Whether it takes new connections.
    fn answers(&self, source: Source) -> bool {
        match source {
            Source::Member(node) => {
                let it = &self.nodes[node];
                let runs = it.power && !it.suspended && it.pg.proc == Proc::Running && it.pg.up;
                runs && !it.pg.frozen && it.pg.replaying.is_none()
            }
            Source::Outside => self.outside.as_ref().is_some_and(|outside| outside.up && outside.tip.is_some()),
        }
    }

    pub fn talks(&self, node: usize, source: Source) -> bool {
        match source {
            Source::Member(other) => self.net.talk(node, other),
            Source::Outside => self.net.talk(node, self.way_outside()),
        }
    }

    /// Counts its starts: a connection ends with the start that it was made to.
    pub fn epoch_of(&self, source: Source) -> u32 {
        match source {
            Source::Member(node) => self.nodes[node].pg.epoch,
            Source::Outside => self.outside.as_ref().map_or(0, |outside| outside.epoch),
        }
    }

    pub fn tip_of(&self, source: Source) -> Option<Tip> {
        match source {
            Source::Member(node) => self.nodes[node].disk.data.as_ref().map(|data| data.tip),
            Source::Outside => self.outside.as_ref()?.tip,
        }
    }

    fn name_of(&self, source: Source) -> String {
        match source {
            Source::Member(node) => self.nodes[node].name.to_string(),
            Source::Outside => "the primary outside".to_owned(),
        }
    }
}
