//! A router that hears no majority: it closes what may write, and says why it lets nobody in.

use howdah::telemetry::clock;
use rustix::process::Signal;
use serde_json::json;

use crate::clients::{self, To};
use crate::cluster::{Cluster, LIMIT};
use crate::report::measured;

#[test]
fn without_a_majority_sessions_that_write_end_and_new_ones_are_told() {
    let mut cluster = Cluster::boot("router-quorum");
    let primary = cluster.expect_primary();
    let others = cluster.others(&primary);
    let alone = others[0].clone();
    clients::until_routed(&cluster, &alone, &primary);
    let runtime = clients::runtime();
    let config = clients::config(&cluster, &alone, To::Primary);
    let session = runtime.block_on(async { clients::connect(&config).await.expect("a session") });
    // The other agents stand still, and the primary's PostgreSQL with them: `alone` hears nobody, and nobody closes
    // the session for it.
    cluster.freeze_node(&primary);
    cluster.freeze_node(&others[1]);
    let fault = clock::now();
    assert_eq!(runtime.block_on(session.end()), None, "cut off");
    measured(&format!("router: no majority: session reset after {:.2?}", clock::now().since(fault)));
    let refused = runtime.block_on(async { clients::connect(&config).await.err().expect("nobody may be written to") });
    let error = refused.as_db_error().unwrap_or_else(|| panic!("an error of the protocol: {refused:?}"));
    assert_eq!(error.code().code(), "57P03");
    assert!(error.message().contains("has not heard a majority"), "{}", error.message());
    assert!(error.message().starts_with("no connection to the primary within 10 s: "), "{}", error.message());
    cluster.thaw_node(&others[1]);
    cluster.thaw_node(&primary);
    cluster.until_healthy();
    let primary = cluster.expect_primary();
    clients::until_routed(&cluster, &alone, &primary);
    runtime.block_on(async { clients::connect(&config).await.expect("a session").ask("select 1").await.unwrap() });
    // A node whose router stops says goodbye to idle sessions.
    let session = runtime.block_on(async {
        let line = clients::connect(&config).await.expect("a session");
        line.ask("select 1").await.expect("an answer");
        line
    });
    cluster.signal_agent(&alone, Signal::TERM);
    assert_eq!(runtime.block_on(session.end()).as_deref(), Some("57P01"));
}

#[test]
fn nobody_comes_in_time() {
    let mut cluster = Cluster::boot("router-nobody");
    let primary = cluster.expect_primary();
    // With both other nodes away, nobody takes over; but a majority is needed to know it, so one comes back that may
    // not lead: here simply nobody does.
    let survivor = cluster.others(&primary)[0].clone();
    let other = cluster.others(&primary)[1].clone();
    cluster.kill_node(&other);
    cluster.kill_node(&primary);
    let port = clients::port(&cluster, &survivor, To::Primary);
    let output = clients::psql(&cluster, port, "sslmode=prefer", "select 1");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("no connection to the primary within 10 s"), "{said}");
    assert_eq!(clients::status(&cluster, &survivor)["primary"]["held"], json!(0));
    assert_eq!(clients::status(&cluster, &survivor)["primary"]["refused_total"], json!(1));
    cluster.start_agent(&other);
    cluster.until("a client writes", LIMIT, |c| {
        clients::psql(c, port, "", "select pg_logical_emit_message(true, 'x', 'y')").status.success()
    });
}
