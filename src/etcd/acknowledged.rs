//! What clients have changed through this node they find here afterwards, also where local state answers: serializable
//! reads and watches.
//!
//! etcd's members answer a change when they have applied it themselves. Here the Raft leader answers when it has, and this
//! node may be some milliseconds behind; so it remembers up to where it has answered, and who reads here waits for that.
//! Writers wait for nothing.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use super::Etcd;

/// A node that lags behind for longer answers from what it has, as a serializable read may.
pub const CATCH_UP: Duration = Duration::from_secs(1);

/// The newest changes that were acknowledged through this node.
pub struct Acknowledged {
    revision: AtomicI64,
    compacted: AtomicI64,
}

impl Default for Acknowledged {
    fn default() -> Self {
        Self { revision: AtomicI64::new(i64::MIN), compacted: AtomicI64::new(i64::MIN) }
    }
}

impl Acknowledged {
    /// Keys were changed in this revision, or seen to be as they were in it.
    pub fn keys(&self, revision: i64) {
        self.revision.fetch_max(revision, Ordering::SeqCst);
    }

    /// What is older than this revision was forgotten.
    pub fn compacted(&self, revision: i64) {
        self.compacted.fetch_max(revision, Ordering::SeqCst);
    }
}

impl Etcd {
    /// Before a read of local state: waits until this node has what it has acknowledged.
    pub(super) async fn catch_up(&self) {
        let Acknowledged { revision, compacted } = &*self.acknowledged;
        let (revision, compacted) = (revision.load(Ordering::SeqCst), compacted.load(Ordering::SeqCst));
        let here = |state: &crate::kv::State| revision <= state.revision() && compacted <= state.compact_revision();
        self.store.until(here, CATCH_UP).await;
    }
}
