//! Whose write-ahead log holds what: a tree of branches, one for each time that somebody began to write.
//!
//! Timeline numbers are what PostgreSQL knows; branches are what is true. Two nodes that promote from the same timeline
//! use the same number for different branches, and a node that goes on as a primary where it should not have forks a
//! branch without a new number.

/// The end of somebody's log: a branch and a position on it.
pub type Tip = (usize, u64);

#[derive(Debug)]
struct Branch {
    timeline: u32,
    parent: Option<Tip>,
    end: u64,
    writer: usize,
}

/// All the log that has ever been written.
#[derive(Debug, Default)]
pub struct Wal {
    branches: Vec<Branch>,
}

impl Wal {
    pub fn branch(&mut self, timeline: u32, parent: Option<Tip>, writer: usize) -> usize {
        let end = parent.map_or(0, |(_, at)| at);
        self.branches.push(Branch { timeline, parent, end, writer });
        self.branches.len() - 1
    }

    pub fn timeline(&self, branch: usize) -> u32 {
        self.branches[branch].timeline
    }

    /// Whether one of so many nodes has promoted to this number already. Elsewhere there is another record, if any.
    pub fn is_used(&self, timeline: u32, nodes: usize) -> bool {
        self.branches.iter().any(|branch| branch.timeline == timeline && branch.writer < nodes)
    }

    /// Where a branch leaves the one that it comes from.
    pub fn begins(&self, branch: usize) -> u64 {
        self.branches[branch].parent.map_or(0, |(_, at)| at)
    }

    /// A number that nobody has used.
    pub fn unused(&self) -> u32 {
        self.branches.iter().map(|branch| branch.timeline).max().map_or(1, |newest| newest + 1)
    }

    /// Writes `bytes` after `tip`. Who is not the writer of the branch, or not at its end, begins another of the same
    /// number.
    pub fn append(&mut self, tip: Tip, bytes: u64, writer: usize) -> Tip {
        let (mut branch, at) = tip;
        if self.branches[branch].writer != writer || self.branches[branch].end != at {
            branch = self.branch(self.branches[branch].timeline, Some(tip), writer);
        }
        self.branches[branch].end = at + bytes;
        (branch, at + bytes)
    }

    /// The timelines that ended on the way to `branch` and where, as the history file has them.
    pub fn history(&self, branch: usize) -> Vec<(u32, u64)> {
        let mut lines = Vec::new();
        let mut at = branch;
        while let Some((parent, end)) = self.branches[at].parent {
            if self.branches[parent].timeline != self.branches[at].timeline {
                lines.push((self.branches[parent].timeline, end));
            }
            at = parent;
        }
        lines.reverse();
        lines
    }

    /// The last position until which both hold the same.
    pub fn shared(&self, one: Tip, other: Tip) -> u64 {
        let mut at = Some(one);
        while let Some((branch, end)) = at {
            if let Some(theirs) = self.on(other, branch) {
                return end.min(theirs);
            }
            at = self.branches[branch].parent.map(|(parent, fork)| (parent, fork.min(end)));
        }
        0
    }

    /// Whether the log that ends at `tip` holds what was written until `position`.
    pub fn holds(&self, tip: Tip, position: Tip) -> bool {
        position.1 <= self.shared(tip, position)
    }

    fn on(&self, tip: Tip, branch: usize) -> Option<u64> {
        let mut at = Some(tip);
        while let Some((own, end)) = at {
            if own == branch {
                return Some(end);
            }
            at = self.branches[own].parent.map(|(parent, fork)| (parent, fork.min(end)));
        }
        None
    }
}

#[test]
fn branches_share_what_lies_before_the_fork() {
    let mut wal = Wal::default();
    let first = wal.branch(1, None, 0);
    let old = wal.append((first, 0), 100, 0);
    let second = wal.branch(2, Some((first, 60)), 1);
    let new = wal.append((second, 60), 50, 1);
    assert_eq!((wal.shared(old, new), wal.shared(new, old)), (60, 60));
    assert!(wal.holds(new, (first, 60)) && !wal.holds(new, (first, 61)) && wal.holds(old, old));
    assert_eq!(wal.history(second), [(1, 60)]);
    let stolen = wal.append((first, 80), 10, 2);
    assert_eq!((wal.timeline(stolen.0), wal.shared(stolen, old)), (1, 80));
    assert!(wal.history(stolen.0).is_empty(), "a fork without a new number leaves no trace");
}
