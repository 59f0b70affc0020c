//! Partitions: of the primary, of a replica, of the Raft leader, in both directions and in one, and between two nodes only.

use crate::cluster::Cluster;
use crate::log_gate::LogGate;

use super::rounds::Rounds;
use super::{Cut, Lan, soak, soak_span};

/// What nodes say that were cut off: from the members, or for longer than their lease.
const CUT_OFF: [&str; 2] = ["connection closed during the handshake", "the node's lease has expired"];

/// A replica, by whether it leads Raft.
fn replica(cluster: &Cluster, primary: &str, leads_raft: bool) -> String {
    cluster.until_raft_leader_elsewhere();
    let leader = cluster.raft_leader().expect("a Raft leader");
    cluster.others(primary).into_iter().find(|name| (*name == leader) == leads_raft).expect("three nodes")
}

#[test]
fn whoever_is_cut_off_nothing_is_lost_and_only_a_lost_primary_is_replaced() {
    Lan::with("cuts", 3, |lan| {
        let mut rounds = Rounds::begin("cuts", Cluster::boot_with("cuts", &lan.options()));
        // A time takes about a minute and a half.
        let times = if soak() { (soak_span().as_secs() / 15).clamp(1, 5) } else { 1 };
        for _ in 0..times {
            for cut in [Cut::Both, Cut::Deaf, Cut::Mute] {
                rounds.moves(&format!("primary {cut:?}"), |_, old| lan.cut_off(old, cut), |_, _| lan.heal());
            }
            for cut in [Cut::Both, Cut::Deaf, Cut::Mute] {
                let harm = |c: &mut Cluster, old: &str| lan.cut_off(&replica(c, old, true), cut);
                rounds.stays(&format!("Raft leader {cut:?}"), harm, Rounds::hold, |_, _| lan.heal());
            }
            let harm = |c: &mut Cluster, old: &str| lan.cut_off(&replica(c, old, false), Cut::Both);
            rounds.stays("replica", harm, Rounds::hold, |_, _| lan.heal());
            for (what, leads_raft) in [("primary and Raft follower", false), ("primary and Raft leader", true)] {
                let harm = |c: &mut Cluster, old: &str| lan.cut_between(old, &replica(c, old, leads_raft));
                rounds.stays(&format!("between {what}"), harm, Rounds::hold, |_, _| lan.heal());
            }
        }
        let cluster = rounds.judge();
        LogGate::new().allow_all("*", &CUT_OFF).check(&cluster);
    });
}
