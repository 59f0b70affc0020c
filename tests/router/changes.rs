//! What clients see when the primary changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use howdah::telemetry::clock;

use crate::clients::{self, Line, To, WHO};
use crate::cluster::{Cluster, LIMIT};
use crate::report::measured;

/// Clients that write in a loop and connect again when their session ends.
const CLIENTS: usize = 16;

/// Commits that leave no object behind.
const WRITE: &str = "select pg_logical_emit_message(true, 'router', 'test')";

#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    commits: AtomicU64,
    sessions: AtomicU64,
    /// Connections that were refused, with the words.
    refused: std::sync::Mutex<Vec<String>>,
    /// Ends of sessions, by SQLSTATE.
    ends: std::sync::Mutex<Vec<String>>,
    /// Longest time between two commits of anybody, in microseconds; and the last commit.
    longest_us: AtomicU64,
    last_us: AtomicU64,
}

fn micros() -> u64 {
    clock::now().0 / 1000
}

async fn client(config: tokio_postgres::Config, counts: Arc<Counts>, reconnect_each: bool) {
    while !counts.stop.load(Ordering::Relaxed) {
        let line = match clients::connect(&config).await {
            Ok(line) => line,
            Err(error) => {
                counts.refused.lock().unwrap().push(format!("{error:?}"));
                continue;
            }
        };
        counts.sessions.fetch_add(1, Ordering::Relaxed);
        while !counts.stop.load(Ordering::Relaxed) {
            match line.ask(WRITE).await {
                Ok(_) => {
                    let now = micros();
                    let before = counts.last_us.swap(now, Ordering::Relaxed);
                    if before != 0 {
                        counts.longest_us.fetch_max(now.saturating_sub(before), Ordering::Relaxed);
                    }
                    counts.commits.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    let code = error.code().map_or("closed", |code| code.code()).to_owned();
                    counts.ends.lock().unwrap().push(code);
                    break;
                }
            }
            if reconnect_each {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn more_commits(cluster: &Cluster, counts: &Counts) {
    let before = counts.commits.load(Ordering::Relaxed);
    cluster.until("clients write", LIMIT, |_| before + 100 < counts.commits.load(Ordering::Relaxed));
}

#[test]
fn a_planned_switchover_fails_no_new_connection() {
    let cluster = Cluster::boot("router-switch");
    let runtime = clients::runtime();
    let counts = Arc::new(Counts::default());
    let names = cluster.names();
    for index in 0..CLIENTS {
        let config = clients::config(&cluster, &names[index % names.len()], To::Primary);
        // Half of them connect for each statement.
        runtime.spawn(client(config, Arc::clone(&counts), index % 2 == 0));
    }
    more_commits(&cluster, &counts);
    for round in 0..3 {
        cluster.until_healthy();
        let from = cluster.expect_primary();
        let to = cluster.others(&from)[round % 2].clone();
        counts.longest_us.store(0, Ordering::Relaxed);
        clients::switch_over(&cluster, &from, &to);
        more_commits(&cluster, &counts);
        let pause = Duration::from_micros(counts.longest_us.load(Ordering::Relaxed));
        measured(&format!("router: switchover {from} -> {to}: write pause of {CLIENTS} clients {pause:.2?}"));
    }
    counts.stop.store(true, Ordering::Relaxed);
    let drained: u64 = names.iter().map(|node| clients::sum(&cluster, node, "primary", "drained_total")).sum();
    let (sessions, ends) = (counts.sessions.load(Ordering::Relaxed), counts.ends.lock().unwrap().clone());
    measured(&format!("router: {sessions} connections, {drained} sessions ended at a boundary, ends {ends:?}"));
    assert_eq!(*counts.refused.lock().unwrap(), Vec::<String>::new(), "a new connection failed");
    assert!(drained > 0, "no session was ended at a boundary");
}

#[test]
fn an_idle_session_ends_at_its_boundary_and_the_replicas_readers_with_its_promotion() {
    let cluster = Cluster::boot("router-idle");
    let primary = cluster.expect_primary();
    let others = cluster.others(&primary);
    let (to, bystander) = (others[0].clone(), others[1].clone());
    clients::until_routed(&cluster, &bystander, &primary);
    clients::until_replicas(&cluster, &bystander, &others);
    let runtime = clients::runtime();
    let writers = clients::config(&cluster, &bystander, To::Primary);
    let readers = clients::config(&cluster, &bystander, To::Replicas);
    let (idle, on_promoted, on_bystander) = runtime.block_on(async {
        let idle = clients::connect(&writers).await.expect("a session");
        idle.ask("select 1").await.expect("an answer");
        let mut by_node: Vec<(String, Line)> = Vec::new();
        for _ in 0..2 {
            let line = clients::connect(&readers).await.expect("a session");
            by_node.push((clients::node_of(&cluster, &line.ask(WHO).await.expect("an answer")), line));
        }
        by_node.sort_by_key(|(name, _)| *name != to);
        let mut lines = by_node.into_iter().map(|(_, line)| line);
        (idle, lines.next().expect("one on each"), lines.next().expect("one on each"))
    });
    clients::switch_over(&cluster, &primary, &to);
    runtime.block_on(async {
        assert_eq!(idle.end().await.as_deref(), Some("57P01"));
        assert_eq!(on_promoted.end().await, None, "cut off");
        assert_eq!(on_bystander.ask("select 1").await.expect("it goes on"), "1");
        let again = clients::connect(&writers).await.expect("a session");
        assert_eq!(clients::node_of(&cluster, &again.ask(WHO).await.expect("an answer")), to);
    });
}

#[test]
fn when_the_primarys_node_dies_clients_of_another_router_write_again() {
    let mut cluster = Cluster::boot("router-kill");
    cluster.until_raft_leader_elsewhere();
    let old = cluster.expect_primary();
    let survivor = cluster.others(&old)[0].clone();
    clients::until_routed(&cluster, &survivor, &old);
    let runtime = clients::runtime();
    let config = clients::config(&cluster, &survivor, To::Primary);
    // The port does not answer while the node is frozen: nothing but the term tells the router that it is over.
    let session = runtime.block_on(async { clients::connect(&config).await.expect("a session") });
    cluster.freeze_node(&old);
    let fault = clock::now();
    let end = runtime.block_on(session.end());
    assert_eq!(end, None, "cut off, not told");
    let reset = clock::now().since(fault);
    let wrote = runtime.block_on(async {
        let line = clients::connect(&config).await.expect("held until there is a primary");
        line.ask(WRITE).await.expect("written");
        clients::node_of(&cluster, &line.ask(WHO).await.expect("an answer"))
    });
    assert_ne!(wrote, old);
    let written = clock::now().since(fault);
    measured(&format!("router: node frozen: old session reset after {reset:.2?}, written again after {written:.2?}"));

    cluster.kill_node(&old);
    cluster.start_agent(&old);
    cluster.until_healthy();
    // Now with SIGKILL: whoever connects meanwhile waits and then writes.
    let old = cluster.expect_primary();
    let survivor = cluster.others(&old)[0].clone();
    clients::until_routed(&cluster, &survivor, &old);
    cluster.until_raft_leader_elsewhere();
    let config = clients::config(&cluster, &survivor, To::Primary);
    cluster.kill_node(&old);
    let fault = clock::now();
    let held = runtime.spawn(async move {
        let line = clients::connect(&config).await.expect("held until there is a primary");
        line.ask(WRITE).await.expect("written");
        (line.ask(WHO).await.expect("an answer"), clock::now())
    });
    // Beside it one that tries the nodes themselves.
    let direct = cluster.others(&old);
    cluster.until("a node takes writes", LIMIT, |c| direct.iter().any(|node| c.sql(node, WRITE).is_ok()));
    let direct = clock::now().since(fault);
    let (wrote, at) = runtime.block_on(held).expect("no panic");
    assert_ne!(clients::node_of(&cluster, &wrote), old);
    let routed = at.since(fault);
    measured(&format!(
        "router: node killed: written again directly after {direct:.2?}, through the router {routed:.2?}"
    ));
}
