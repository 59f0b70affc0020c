//! Who gets which client while nothing happens: writes, reads, cancel requests, limits.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use crate::clients::{self, To, WHO};
use crate::cluster::{Cluster, LIMIT, Options};

/// Adds lines to a node's file before it is started.
fn append(cluster: &Cluster, node: &str, text: &str) {
    let yaml = cluster.node(node).yaml;
    let old = std::fs::read_to_string(&yaml).expect("the node's file");
    std::fs::write(&yaml, old.replacen("router:\n", &format!("{text}router:\n"), 1)).expect("written");
}

#[test]
fn every_router_leads_writers_to_the_primary_and_readers_to_replicas() {
    let cluster = Cluster::boot("router");
    let primary = cluster.expect_primary();
    let replicas = cluster.others(&primary);
    for node in cluster.names() {
        clients::until_routed(&cluster, &node, &primary);
        clients::until_replicas(&cluster, &node, &replicas);
        let write = "create table if not exists t (i int); insert into t values (1)";
        clients::printed(&clients::psql(&cluster, clients::port(&cluster, &node, To::Primary), "", write));
        let port = clients::port(&cluster, &node, To::Primary);
        let who = clients::printed(&clients::psql(&cluster, port, "target_session_attrs=read-write", WHO));
        assert_eq!(clients::node_of(&cluster, &who), primary);
    }
    let runtime = clients::runtime();
    let readers = clients::config(&cluster, &primary, To::Replicas);
    // Sessions that stay open spread evenly.
    let (lines, seen) = runtime.block_on(async {
        let mut lines = Vec::new();
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..8 {
            let line = clients::connect(&readers).await.expect("a session");
            *seen.entry(line.ask(WHO).await.expect("an answer")).or_default() += 1;
            lines.push(line);
        }
        (lines, seen)
    });
    let seen: BTreeMap<String, usize> =
        seen.into_iter().map(|(port, count)| (clients::node_of(&cluster, &port), count)).collect();
    assert_eq!(seen, replicas.iter().map(|name| (name.clone(), 4)).collect());
    assert_eq!(clients::sum(&cluster, &primary, "replicas", "sessions"), 8);
    assert!(clients::sum(&cluster, &primary, "replicas", "bytes_to_clients") > 8 * 100);
    // Those who leave make room: the next two go to the emptier one.
    let emptier = replicas[0].clone();
    let kept = runtime.block_on(async {
        let mut kept = Vec::new();
        for line in lines {
            let who = clients::node_of(&cluster, &line.ask(WHO).await.expect("an answer"));
            if who == emptier { drop(line) } else { kept.push(line) }
        }
        kept
    });
    cluster.until("the sessions are gone", LIMIT, |c| clients::sum(c, &primary, "replicas", "sessions") == 4);
    runtime.block_on(async {
        let mut more = Vec::new();
        for _ in 0..4 {
            let line = clients::connect(&readers).await.expect("a session");
            assert_eq!(clients::node_of(&cluster, &line.ask(WHO).await.expect("an answer")), emptier);
            more.push(line);
        }
        drop((kept, more));
    });
    metrics_are_there(&cluster, &primary);
}

fn metrics_are_there(cluster: &Cluster, node: &str) {
    let page =
        howdah::dev::rest::get(cluster.node(node).rest, "/metrics", Duration::from_secs(2)).expect("a page").body;
    let labels = format!("scope=\"router\",name=\"{node}\",port=\"primary\"");
    assert!(page.contains(&format!("howdah_router_held{{{labels}}} 0\n")), "{page}");
    let sessions = format!("howdah_router_sessions_total{{{labels},backend=\"{node}\"}}");
    assert!(page.lines().any(|line| line.starts_with(&sessions) && !line.ends_with(" 0")), "{page}");
}

#[test]
fn replicas_with_noloadbalance_or_too_far_behind_get_no_readers() {
    let cluster = Cluster::prepare("router-replicas", &Options::default());
    append(&cluster, "n3", "tags: {noloadbalance: true}\n");
    for node in cluster.names() {
        let yaml = cluster.node(&node).yaml;
        let text = std::fs::read_to_string(&yaml).expect("the node's file");
        std::fs::write(&yaml, text.replacen("router:\n", "router:\n  maximum_lag: 64kB\n", 1)).expect("written");
    }
    let mut cluster = cluster;
    for node in ["n1", "n2", "n3"] {
        cluster.start_agent(node);
    }
    cluster.until_healthy();
    if cluster.expect_primary() == "n3" {
        clients::switch_over(&cluster, "n3", "n1");
        cluster.until_healthy();
    }
    let primary = cluster.expect_primary();
    let reader = if primary == "n1" { "n2" } else { "n1" }.to_owned();
    clients::until_replicas(&cluster, &primary, std::slice::from_ref(&reader));
    let port = clients::port(&cluster, &primary, To::Replicas);
    for _ in 0..3 {
        let who = clients::printed(&clients::psql(&cluster, port, "", WHO));
        assert_eq!(clients::node_of(&cluster, &who), reader);
    }
    // Replay stands still while WAL is written: the reader falls behind and is left out, and comes back.
    cluster.sql(&reader, "select pg_wal_replay_pause()").expect("paused");
    cluster.sql(&primary, "select pg_logical_emit_message(true, 'x', repeat('y', 300000))").expect("written");
    clients::until_replicas(&cluster, &primary, &[]);
    cluster.sql(&reader, "select pg_wal_replay_resume()").expect("resumed");
    clients::until_replicas(&cluster, &primary, std::slice::from_ref(&reader));
}

#[test]
fn a_cancel_request_finds_its_session_through_the_router() {
    let cluster = Cluster::boot("router-cancel");
    let primary = cluster.expect_primary();
    let runtime = clients::runtime();
    for to in [To::Primary, To::Replicas] {
        let config = clients::config(&cluster, &primary, to);
        runtime.block_on(async {
            let (one, two) = (clients::connect(&config).await.unwrap(), clients::connect(&config).await.unwrap());
            let cancel = two.client.cancel_token();
            let sleeping = tokio::spawn(async move { two.ask("select pg_sleep(600)").await });
            // The request may arrive before the query does; PostgreSQL then ignores it.
            let canceled = tokio::time::timeout(LIMIT, async {
                let mut sleeping = sleeping;
                loop {
                    cancel.cancel_query(tokio_postgres::NoTls).await.expect("delivered");
                    let patience = Duration::from_millis(200);
                    if let Ok(ended) = tokio::time::timeout(patience, &mut sleeping).await {
                        return ended.expect("no panic").expect_err("canceled");
                    }
                }
            });
            let error = canceled.await.expect("canceled in time");
            assert_eq!(error.code().map(|code| code.code()), Some("57014"), "{error:?}");
            assert_eq!(one.ask("select 1").await.expect("the other session goes on"), "1");
        });
    }
    assert_ne!(clients::status(&cluster, &primary)["primary"]["cancels_total"], json!(0));
}

#[test]
fn clients_beyond_the_limit_wait_for_their_turn() {
    let mut cluster = Cluster::prepare("router-limit", &Options { nodes: 1, ..Options::default() });
    let yaml = cluster.node("n1").yaml;
    let text = std::fs::read_to_string(&yaml).expect("the node's file");
    let limited = "router:\n  max_connections: 2\n  hold_timeout: 2s\n  allowlist: [127.0.0.1]\n";
    std::fs::write(&yaml, text.replacen("router:\n", limited, 1)).expect("written");
    cluster.start_agent("n1");
    clients::until_routed(&cluster, "n1", "n1");
    let runtime = clients::runtime();
    let config = clients::config(&cluster, "n1", To::Primary);
    runtime.block_on(async {
        let first = clients::connect(&config).await.expect("a session");
        let _second = clients::connect(&config).await.expect("a session");
        let refused = clients::connect(&config).await.err().expect("the limit is reached");
        assert_eq!(refused.code().map(|code| code.code()), Some("53300"), "{refused:?}");
        let waiting = tokio::spawn({
            let config = config.clone();
            async move { clients::connect(&config).await.map(drop) }
        });
        cluster_until_held(&cluster).await;
        drop(first);
        waiting.await.expect("no panic").expect("its turn came");
    });
}

async fn cluster_until_held(cluster: &Cluster) {
    let waited = async {
        while clients::status(cluster, "n1")["primary"]["held"] != json!(1) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, waited).await.expect("a client waits");
}
