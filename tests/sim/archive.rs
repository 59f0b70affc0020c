//! An archive of finished segments, and the node that takes its log from there and from nobody (the tag nostream).
//!
//! Whoever writes archives a segment when it is full, and the history file of a new timeline at once. `restore_command` is
//! asked again and again for what comes after the log that is there, on the newest timeline that goes on from it.
//!
//! Deliberately absent: an archive that is away, slow or forgets; nodes that stream *and* restore.

use howdah::ha::view::UpstreamTag;

use crate::clock::SEC;
use crate::model_postgres::{PgNews, Proc};
use crate::wal::Tip;
use crate::world::World;

/// Much smaller than a real one, so that some are filled.
const SEGMENT: u64 = 1 << 16;
/// As `wal_retrieve_retry_interval` for such nodes (`agent/follow.rs`).
const LOOKS_EVERY: u64 = 5 * SEC;

impl World {
    /// The log of a primary has grown to `tip`, or begins a timeline there.
    pub fn archive_takes(&mut self, tip: Tip) {
        let end = tip.1 / SEGMENT * SEGMENT;
        // What lies before a timeline begins is in the segments of the one before it.
        if self.profile.nostream && self.wal.begins(tip.0) < end {
            self.archived.insert(tip.0, end);
        }
    }

    pub fn restores(&self, node: usize) -> bool {
        self.nodes[node].standing.place.upstream == UpstreamTag::Archive
    }

    /// A server has started, or has ended its replay.
    pub fn archive_is_asked_by(&mut self, node: usize) {
        if self.restores(node) {
            self.pg_soon(node, LOOKS_EVERY, PgNews::Restores);
        }
    }

    /// What comes after the log of `node`, if there is any.
    pub fn archive_has(&self, node: usize) -> Option<Tip> {
        let own = self.nodes[node].disk.data.as_ref()?.tip;
        let goes_on = |tip: &Tip| own.1 < tip.1 && own.1 <= self.wal.shared(own, *tip);
        let all = self.archived.iter().map(|(branch, end)| (*branch, *end));
        all.filter(goes_on).max_by_key(|tip| (self.wal.timeline(tip.0), tip.1))
    }

    pub fn pg_restores(&mut self, node: usize) {
        let pg = &self.nodes[node].pg;
        if pg.proc != Proc::Running || !pg.recovery {
            return;
        }
        self.archive_is_asked_by(node);
        let Some(tip) = self.archive_has(node).filter(|_| !self.nodes[node].disk.full) else { return };
        let timeline = self.wal.timeline(tip.0);
        let data = self.data(node);
        (data.tip, data.known) = (tip, data.known.max(timeline));
        self.nodes[node].pg.moved_at = self.now;
        self.pg_sends(node, tip, self.now);
    }
}
