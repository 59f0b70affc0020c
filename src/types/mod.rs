//! Vocabulary: the nouns that every other module speaks.
//!
//! Nothing here needs the world: no I/O, no clock, no async. Values are parsed once, at the edge,
//! and are valid from then on. Depends on `std` and `serde` only.

pub mod bytes;
pub mod fact;
pub mod ids;
pub mod lsn;
pub mod network;
pub mod permit;
pub mod pg;
pub mod time;
pub mod timeline;

pub use bytes::ByteSize;
pub use fact::Fact;
pub use ids::{ClusterName, LeaseId, NodeName, RaftId, SystemId, Term};
pub use lsn::{Lsn, WalBytes};
pub use network::Network;
pub use permit::LeaderPermit;
pub use pg::{PgVersion, StopMode};
pub use time::{Mono, WallTime};
pub use timeline::{TimelineHistory, TimelineId};
