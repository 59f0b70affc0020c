//! TLS is between client and server: the router passes it through and still finds the session for a cancel request.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::clients::{self, To};
use crate::cluster::{Cluster, LIMIT};

/// A certificate of its own for each node, and `ssl = on`.
fn encrypt(cluster: &Cluster) {
    for node in cluster.layout.nodes() {
        let (key, certificate) = (node.data.join("server.key"), node.data.join("server.crt"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .stderr(Stdio::piped())
            .output()
            .expect("openssl runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("mode");
        if let Some(user) = &cluster.user {
            for file in [&key, &certificate] {
                std::os::unix::fs::chown(file, Some(user.uid), None).expect("owner");
            }
        }
        cluster.sql(&node.name, "alter system set ssl = on").or_else(|_| alter(cluster, &node.name)).expect("set");
    }
}

/// A standby takes no `alter system`; a reload takes the setting from its file.
fn alter(cluster: &Cluster, node: &str) -> Result<Vec<String>, String> {
    let file = cluster.node(node).data.join("postgresql.auto.conf");
    let old = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
    std::fs::write(&file, format!("{old}ssl = 'on'\n")).map_err(|error| error.to_string())?;
    Ok(Vec::new())
}

#[test]
fn tls_passes_through_untouched() {
    let cluster = Cluster::boot("router-tls");
    let primary = cluster.expect_primary();
    encrypt(&cluster);
    for node in cluster.names() {
        cluster.sql(&node, "select pg_reload_conf()").expect("reloaded");
    }
    let entry = cluster.others(&primary)[0].clone();
    let port = clients::port(&cluster, &entry, To::Primary);
    let ask = "select ssl::text || ' ' || (select pg_is_in_recovery()) from pg_stat_ssl where pid = pg_backend_pid()";
    cluster.until("PostgreSQL speaks TLS", LIMIT, |c| {
        clients::psql(c, port, "sslmode=require", "select 1").status.success()
    });
    assert_eq!(clients::printed(&clients::psql(&cluster, port, "sslmode=require", ask)), "true false");
    assert_eq!(clients::printed(&clients::psql(&cluster, port, "sslmode=disable", ask)), "false false");
    // psql sends its cancel request on ^C: the key went by encrypted, so the primary is asked.
    let mut sleeping = clients::psql_command(&cluster);
    let target = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres sslmode=require");
    sleeping.args(["-X", "-q", "-c", "select pg_sleep(600)", &target]).stderr(Stdio::piped());
    let child = sleeping.spawn().expect("psql starts");
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).expect("a pid")).expect("a pid");
    let sleeps = "select count(*) from pg_stat_activity where query like 'select pg_sleep%' and wait_event = 'PgSleep'";
    cluster.until("the query sleeps", LIMIT, |c| c.sql(&primary, sleeps).is_ok_and(|rows| rows == ["1"]));
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("signalled");
    cluster.until("the query is canceled", LIMIT, |c| c.sql(&primary, sleeps).is_ok_and(|rows| rows == ["0"]));
    let output = child.wait_with_output().expect("psql ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("canceling statement due to user request"), "{said}");
    // A session under TLS cannot be followed; a planned change ends it all the same.
    let mut open = clients::psql_command(&cluster);
    open.args(["-X", "-q", &target]).stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::piped());
    let mut child = open.spawn().expect("psql starts");
    let mut pipe = child.stdin.take().expect("a pipe");
    std::io::Write::write_all(&mut pipe, b"select 1;\n").expect("sent");
    cluster.until("it is connected", LIMIT, |c| clients::sum(c, &entry, "primary", "sessions") == 1);
    clients::switch_over(&cluster, &primary, &entry);
    cluster.until("it has ended", LIMIT, |c| clients::sum(c, &entry, "primary", "sessions") == 0);
    drop(pipe);
    let _ = child.wait_with_output().expect("psql ends");
    clients::until_routed(&cluster, &entry, &entry);
    assert_eq!(
        clients::printed(&clients::psql(&cluster, port, "sslmode=require connect_timeout=20", ask)),
        "true false"
    );
}
