//! The rules, one file per situation. Each answers `None` when it does not apply.

pub(super) mod bootstrap;
pub(super) mod by_hand;
pub(super) mod primary;
pub(super) mod safety;
pub(super) mod shutdown;
pub(super) mod standby;
pub(super) mod standby_cluster;
pub(super) mod stopped;
pub(super) mod sync;
pub(super) mod task;
