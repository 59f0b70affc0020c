//! Kinds of runs: how many nodes, which faults, how dense.

use serde_json::{Value, json};

use crate::chance::Chance;
use crate::clock::{MS, SEC};
use crate::outside::{First, address};
use crate::quiet::Quiet;

/// What a run is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Theme {
    /// Everything, at any moment.
    Anything,
    /// Only the store's leader changes; PostgreSQL must not notice (P4).
    StoreLeaders,
    /// Only agents restart, within the permit; PostgreSQL must not notice (P8).
    AgentRestarts,
}

/// One kind of run.
#[derive(Debug, Clone)]
pub struct Profile {
    pub theme: Theme,
    pub nodes: usize,
    /// So many of them have no PostgreSQL.
    pub witnesses: usize,
    /// Nodes have tags: priorities, other upstreams, offers to be copied from.
    pub tags: bool,
    /// How long faults happen.
    pub lasts: u64,
    /// The mean time between two faults, and between two operations by people.
    pub fault_every: u64,
    pub operator_every: u64,
    /// The longest that a fault lasts.
    pub fault_lasts: u64,
    /// A crash falls between two steps once in so many; zero for never.
    pub crash_between: u64,
    /// A long task fails once in so many.
    pub task_fails: u64,
    /// `synchronous_mode`, and its strictness and number.
    pub synchronous: &'static str,
    pub strict: bool,
    pub confirming: u64,
    /// The network is slow all the time.
    pub slow: bool,
    /// One fault in so many is a power failure of many machines, beside those that come up anyway; zero for none.
    pub blackouts: u64,
    /// People change who must confirm commits.
    pub modes_change: bool,
    /// One operation in so many is an order to one node: a restart, a new copy; zero for none.
    pub orders: u64,
    /// One fault in so many costs a node its disk; zero for none.
    pub lost_disks: u64,
    /// A node takes its log from an archive alone.
    pub nostream: bool,
    /// PostgreSQL's pg_rewind takes a standby's timeline from its last checkpoint, as before version 16.
    pub old_rewind: bool,
    /// There is a server outside, which the cluster follows or is followed by.
    pub outside: Option<First>,
    /// Hours pass in which nothing happens.
    pub quiet: Quiet,
    /// The longest crash recovery.
    pub recovery_max: u64,
}

impl Profile {
    /// The kind of run that a seed stands for.
    pub fn of(seed: u64) -> Self {
        let mut chance = Chance::new(seed ^ 0xABCD);
        let theme = match chance.below(20) {
            0 => Theme::StoreLeaders,
            1 => Theme::AgentRestarts,
            _ => Theme::Anything,
        };
        let about = Self::about(theme, &mut chance);
        if theme == Theme::Anything { about.wider(&mut chance) } else { about }
    }

    /// Days in which a few things happen, as in a real cluster.
    pub fn quiet(seed: u64, quiet: Quiet, hours: u64) -> Self {
        let mut chance = Chance::new(seed ^ 0x51E7);
        let about = Self::about(Theme::Anything, &mut chance).wider(&mut chance);
        let every = *chance.pick(&[1, 3, 8]) * 3600 * SEC;
        Self { quiet, fault_every: every, operator_every: 3 * every, lasts: hours * 3600 * SEC, ..about }
    }

    /// The lead goes to another site and comes back all the time.
    pub fn elsewhere(seed: u64) -> Self {
        let mut chance = Chance::new(seed ^ 0xE15E);
        let about = Self::about(Theme::Anything, &mut chance).wider(&mut chance);
        let first = *chance.pick(&[First::Outside, First::Cluster]);
        Self { outside: Some(first), operator_every: 8 * SEC, orders: 0, nostream: false, ..about }
    }

    /// What only some clusters have, and only some people do.
    fn wider(self, chance: &mut Chance) -> Self {
        Self {
            witnesses: if chance.one_in(5) { self.nodes / 2 } else { 0 },
            tags: chance.one_in(2),
            modes_change: self.synchronous != "off" && chance.one_in(3),
            orders: *chance.pick(&[0, 0, 3, 8]),
            lost_disks: *chance.pick(&[0, 0, 10, 30]),
            ..self
        }
        .with_outside(chance)
    }

    /// Some clusters follow another, or are followed by one.
    fn with_outside(self, chance: &mut Chance) -> Self {
        let outside = *chance.pick(&[None, None, None, None, None, Some(First::Outside), Some(First::Cluster)]);
        let people = if self.operator_every == 0 { 20 * SEC } else { self.operator_every };
        let operator_every = if outside.is_some() { people } else { self.operator_every };
        Self { outside, operator_every, old_rewind: outside.is_some() && chance.one_in(2), ..self }.with_archive(chance)
    }

    /// Some have an archive, and a node that takes its log from nowhere else. Not with a server outside, which archives
    /// nothing here.
    fn with_archive(self, chance: &mut Chance) -> Self {
        let nostream = chance.one_in(6) && self.outside.is_none() && 2 < self.nodes - self.witnesses;
        Self { nostream, ..self }
    }

    pub fn about(theme: Theme, chance: &mut Chance) -> Self {
        let calm = theme != Theme::Anything;
        let pace = *chance.pick(&[3, 8, 20, 60]);
        let nodes = if chance.one_in(5) { 5 } else { 3 };
        Self {
            theme,
            nodes,
            witnesses: 0,
            tags: false,
            lasts: *chance.pick(&[120, 300, 900]) * SEC,
            fault_every: if calm { 8 * SEC } else { pace * SEC },
            operator_every: if calm { 0 } else { *chance.pick(&[0, 10, 40]) * SEC },
            fault_lasts: if calm { 2 * SEC } else { *chance.pick(&[2, 10, 40]) * SEC },
            crash_between: if calm { 0 } else { *chance.pick(&[0, 10, 40, 200]) },
            task_fails: if calm { 0 } else { *chance.pick(&[0, 3, 10]) },
            synchronous: *chance.pick(&["off", "off", "on", "quorum"]),
            strict: chance.one_in(4),
            confirming: if chance.one_in(3) { 2 } else { 1 },
            slow: false,
            blackouts: 0,
            modes_change: false,
            orders: 0,
            lost_disks: 0,
            nostream: false,
            old_rewind: false,
            outside: None,
            quiet: Quiet::No,
            recovery_max: if calm { 200 * MS } else { *chance.pick(&[200 * MS, 3 * SEC, 20 * SEC]) },
        }
    }

    /// The cluster's configuration to begin with.
    pub fn config(&self, chance: &mut Chance) -> Value {
        let calm = self.theme != Theme::Anything;
        let ttl = if calm { 5 } else { *chance.pick(&[4, 5, 5, 8]) };
        let start_timeout = if calm { 300 } else { *chance.pick(&[300, 300, 5, 0]) };
        let mut config = json!({
            "ttl": ttl,
            "loop_wait": 1,
            "retry_timeout": 1.5,
            "maximum_lag_on_failover": if chance.one_in(4) { 10_000 } else { 1 << 20 },
            "primary_start_timeout": start_timeout,
            "synchronous_mode": self.synchronous,
            "synchronous_mode_strict": self.strict,
            "synchronous_node_count": self.confirming,
            "postgresql": { "use_pg_rewind": !chance.one_in(4), "use_slots": false },
        });
        if self.outside == Some(First::Outside) {
            config["standby_cluster"] = address();
        }
        config
    }
}
