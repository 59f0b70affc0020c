//! Disks that are full, and disks that take their time.
//!
//! ```text
//! full.rs    small file systems in a mount namespace of the test's own: for data, and for the store
//! stalls.rs  a library between a program and the C library: syncs wait for as long as a file says so
//! ```
//! Rounds under one ledger, as on the network (`network/rounds.rs`). Linux alone; what needs root says so where there is none.

use std::time::Duration;

use crate::cluster::{Cluster, now};

#[path = "disk/full.rs"]
mod full;
#[path = "disk/room.rs"]
mod room;
#[path = "disk/stalls.rs"]
mod stalls;

/// How long a supervisor such as systemd waits before it starts an agent again that has ended.
const RESTART: Duration = Duration::from_secs(1);

/// Waits for a condition, and starts every agent again that has ended, as a supervisor does.
fn until_supervised(cluster: &mut Cluster, what: &str, limit: Duration, condition: impl Fn(&Cluster) -> bool) {
    let deadline = now() + limit;
    let mut next = now();
    while !condition(cluster) {
        assert!(now() < deadline, "waited {limit:?} in vain until {what}\n{}", cluster.diagnosis());
        if next < now() {
            for name in cluster.names() {
                if !cluster.agent_lives(&name) {
                    cluster.start_agent(&name);
                }
            }
            next = now() + RESTART;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
