//! What our keys mean: the shared record as typed values.
//!
//! ```text
//! kv::State --keys--> bytes --records--> ClusterRecord (what ha/ decides on)
//! ha::RecordStep --writes--> TxnRequest (always a compare-and-swap on what was read)
//! ```
//!
//! Keys are built and parsed here and nowhere else. Names and JSON are Patroni's, so that its tools
//! read them; what Patroni has no key for lives under `howdah/` beside them. Absent: I/O.

pub mod changes;
pub mod keys;
pub mod record;
pub mod records;
pub mod writes;

pub use keys::{Key, KeySpace};
pub use record::{ClusterRecord, Versioned};
