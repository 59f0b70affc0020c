//! A full disk under PostgreSQL's data, and under the store: safe, said in the log, and over when there is room again.

use std::path::PathBuf;

use crate::cluster::{Cluster, LIMIT, Options, now};
use crate::network::rounds::Rounds;
use crate::observe;
use crate::report::measured;

use super::room::{self, Room, with_mounts};
use super::until_supervised;

/// Room for a database, its WAL, and a copy beside it.
const DATA_MEGABYTES: u32 = 320;
const STORE_MEGABYTES: u32 = 48;

/// Where a node's data lies: its own file system, with room for what is moved aside.
fn data_disk(cluster: &Cluster, name: &str) -> PathBuf {
    cluster.node(name).dir.join("disk")
}

fn boot() -> Cluster {
    let mut cluster = Cluster::prepare("full", &Options::default());
    for name in cluster.names() {
        let (node, disk) = (cluster.node(&name), data_disk(&cluster, &name));
        let rooms =
            [Room::mount(&disk, DATA_MEGABYTES, cluster.user.as_ref()), Room::mount(&node.raft, STORE_MEGABYTES, None)];
        cluster.take_over(rooms);
        cluster.edit_yaml(&name, |tree| tree["postgresql"]["data_dir"] = serde_json::json!(disk.join("data")));
        // What looks for the data where it usually is finds it.
        std::os::unix::fs::symlink("disk/data", &node.data).expect("a link");
    }
    cluster.start();
    cluster
}

/// Lines of the node's log with a word in it.
fn said(cluster: &Cluster, name: &str, word: &str) -> bool {
    std::fs::read_to_string(cluster.node(name).log).unwrap_or_default().lines().any(|line| line.contains(word))
}

/// Writes WAL until the primary cannot any more, or is none.
fn write_until_it_fails(cluster: &Cluster, primary: &str) {
    let write = "select pg_logical_emit_message(true, 'howdah', repeat('x', 4 << 20))";
    cluster.until("the primary has no room for its WAL", LIMIT, |c| c.sql(primary, write).is_err());
}

#[test]
fn a_full_disk_costs_no_write_and_ends_when_there_is_room() {
    with_mounts("full", || {
        let mut rounds = Rounds::begin("full", boot());
        rounds.moves(
            "data of the primary",
            |cluster, old| {
                room::fill(&data_disk(cluster, old));
                write_until_it_fails(cluster, old);
            },
            |cluster, old| {
                assert!(said(cluster, old, "reason=crash"), "nothing says why it gave up\n{}", cluster.diagnosis());
                room::empty(&data_disk(cluster, old));
            },
        );

        // The member ends rather than to lie about its disk, and is started again and again until it can go on.
        let full = |c: &Cluster, name: &str| c.node(name).raft;
        let victim = std::cell::RefCell::new(String::new());
        rounds.stays(
            "store of a replica",
            |cluster, old| {
                let name = cluster.others(old).remove(0);
                room::fill(&full(cluster, &name));
                until_supervised(cluster, "it says why it ends", LIMIT, |c| said(c, &name, "No space left"));
                *victim.borrow_mut() = name;
            },
            |rounds| rounds.hold(),
            |cluster, _| {
                let name = victim.borrow().clone();
                room::empty(&full(cluster, &name));
                until_supervised(cluster, "it is back", LIMIT, |c| observe::is_streaming(&c.seen(), &name));
            },
        );
        let from = now();
        rounds.moves(
            "store of the primary's node",
            |cluster, old| {
                room::fill(&full(cluster, old));
                until_supervised(cluster, "it says why it ends", LIMIT, |c| said(c, old, "No space left"));
            },
            |cluster, old| {
                room::empty(&full(cluster, old));
                until_supervised(cluster, "it is back", LIMIT, |c| observe::is_streaming(&c.seen(), old));
            },
        );
        measured(&format!("full: store of the primary's node: {:.2?} in all", now().since(from)));
        rounds.judge();
    });
}
