//! Configuration: a node's file and environment, and the cluster's shared settings.
//!
//! ```text
//! node.yml -> raw (tree, keys known?) -> env (overrides) -> check (all problems at once) -> Config
//! the store's `config` key (JSON)     -> cluster_settings                                -> ClusterSettings
//! ```
//! Names are Patroni's wherever Patroni has one, so that its files and its users' knowledge carry over. Every key, with
//! its kind, default and documentation, stands once in [`keys`]; parsing, the check for unknown keys and the generated
//! example all read that table. Deliberately absent: any effect beyond reading the files that the operator named.

pub mod address;
pub mod check;
pub mod cluster_settings;
pub mod env;
pub mod example;
pub mod explain;
pub mod keys;
mod listeners;
pub mod node;
pub mod raw;
pub mod reader;
pub mod reload;
pub mod tls;

pub use address::{HostPort, ListenAddresses};
pub use check::{ConfigError, load};
pub use cluster_settings::{ClusterSettings, SynchronousMode};
pub use node::Config;
