//! What is accepted, and the exact sentences for what is not.

use super::*;

fn good() -> Value {
    json!({
        "scope": "main", "name": "n1",
        "raft": {"members": {"n1": "127.0.0.1:8008", "n2": "127.0.0.1:8009", "n3": "127.0.0.1:8010"}, "secret": "twelve-chars-or-more"},
        "postgresql": {"connect_address": "127.0.0.1:5432", "data_dir": "/srv/n1/data"},
    })
}

fn problems(change: impl FnOnce(&mut Value)) -> Vec<String> {
    let mut tree = good();
    change(&mut tree);
    check(&tree, Path::new("x.yml")).expect_err("must be refused").problems.iter().map(Problem::to_string).collect()
}

#[test]
fn a_short_file_is_enough() {
    let config = check(&good(), Path::new("x.yml")).expect("valid");
    assert_eq!(config.raft.self_addr.to_string(), "127.0.0.1:8008");
    assert_eq!(config.restapi.connect_address.to_string(), "127.0.0.1:8008");
    assert_eq!(config.raft.data_dir, Path::new("/var/lib/howdah/main/n1"));
    assert_eq!(config.raft.election_timeout_min, Duration::from_millis(500));
    assert_eq!(config.raft.election_timeout_max, Duration::from_secs(1));
    assert_eq!(config.namespace, "/service");
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let pg = config.postgresql.expect("has PostgreSQL");
    assert_eq!((pg.superuser.username.as_str(), pg.replication.username.as_str()), ("postgres", "replicator"));
    assert_eq!(config.bootstrap.initdb.len(), 2);
}

#[test]
fn no_postgresql_makes_a_witness() {
    let mut tree = good();
    tree.as_object_mut().expect("map").remove("postgresql");
    assert!(check(&tree, Path::new("x.yml")).expect("valid").is_witness());
}

#[test]
fn sentences_name_key_cause_and_remedy() {
    let cases: Vec<(Vec<String>, &str)> = vec![
        (problems(|t| t["postgresql"]["listn"] = json!("x:1")), "postgresql.listn: unknown key; did you mean listen?"),
        (
            problems(|t| t["name"] = json!("n9")),
            "raft.members: does not list this node, n9 (rule R3); add `n9: HOST:PORT`, or set name to one of n1, n2, n3",
        ),
        (
            problems(|t| t["raft"]["members"]["n3"] = json!("127.0.0.1:8009")),
            "raft.members.n3: has the address 127.0.0.1:8009 of n2; each member needs its own (rule R2)",
        ),
        (
            problems(|t| t["raft"]["members"]["n3"] = json!("10.0.0.3")),
            "raft.members.n3: \"10.0.0.3\" has no port; write it as 10.0.0.3:PORT",
        ),
        (
            problems(|t| t["raft"]["secret"] = json!("short")),
            "raft.secret: the secret has 5 characters; use at least 12 (rule R5)",
        ),
        (
            problems(|t| t["raft"]["data_dir"] = json!("/srv/n1/data/raft")),
            "raft.data_dir: /srv/n1/data/raft and postgresql.data_dir lie within each other (rule R4); base backups would copy it, so choose another directory",
        ),
        (
            problems(|t| t["raft"]["heartbeat"] = json!("300ms")),
            "raft.election_timeout: 3 * raft.heartbeat <= raft.election_timeout (rule R1) does not hold: 500 ms is less than 3 * 300 ms; raise it, or lower a heartbeat that is above zero",
        ),
        (
            problems(|t| t["restapi"] = json!({"connect_address": "0.0.0.0:8008"})),
            "restapi.connect_address: 0.0.0.0:8008 is no address that others can connect to; write this node's own (rule R6)",
        ),
        (
            problems(|t| t["bootstrap"] = json!({"dcs": {"ttl": 4}})),
            "bootstrap.dcs.ttl: loop_wait + 2*retry_timeout <= ttl (rule C1) does not hold: 1 s + 2*2 s = 5 s is more than 4 s; raise ttl or lower the others",
        ),
        (
            problems(|t| t["tags"] = json!({"nofailover": "perhaps"})),
            "tags.nofailover: \"perhaps\" is neither true nor false; write one of them",
        ),
        (problems(|t| t["ttl"] = json!(30)), "ttl: unknown key here; it belongs at bootstrap.dcs.ttl"),
        (problems(|t| t["log"] = json!("debug")), "log: is a section; write its keys below it, indented"),
    ];
    for (found, wanted) in cases {
        assert_eq!(found, [wanted]);
    }
}

#[test]
fn all_problems_come_at_once() {
    let found = problems(|t| {
        t["scope"] = json!("a/b");
        t["watchdog"] = json!({"mode": "sometimes"});
        t["postgresql"].as_object_mut().expect("map").remove("data_dir");
        t["citus"] = json!({"group": 0});
    });
    assert_eq!(found.len(), 4, "{found:#?}");
}

#[test]
fn secrets_stay_out_of_problems_and_debug_output() {
    let shown = format!("{:?}", check(&good(), Path::new("x.yml")).expect("valid"));
    assert!(!shown.contains("twelve-chars"), "{shown}");
    let found = problems(|t| t["raft"]["secret"] = json!(["leaked-secret"]));
    assert!(!found.concat().contains("leaked"), "{found:?}");
}

#[test]
fn a_patroni_file_is_accepted_with_warnings() {
    let mut tree = good();
    tree["etcd3"] = json!({"hosts": "a:2379"});
    tree["postgresql"]["callbacks"] = json!({"on_start": "/x"});
    tree["restapi"] = json!({"verify_client": "none"});
    tree["bootstrap"] = json!({"dcs": {"ttl": 30, "loop_wait": 10, "retry_timeout": 10}, "method": "initdb"});
    tree["postgresql"]["before_stop"] = json!("/y");
    let config = check(&tree, Path::new("x.yml")).expect("valid");
    let commands = config.postgresql.expect("a database").callbacks.commands;
    assert_eq!(commands["on_start"], ["/x"]);
    let warnings = config.warnings;
    assert_eq!(warnings.len(), 2, "{warnings:#?}");
    assert_eq!(warnings[0], "etcd3: is ignored: howdah keeps its own store");
}

#[test]
fn methods_have_sections_of_their_own() {
    let mut tree = good();
    tree["postgresql"]["create_replica_methods"] = json!(["barman", "basebackup"]);
    tree["postgresql"]["barman"] = json!({"command": "/bin/barman -v", "keep_data": true, "retries": 3});
    tree["postgresql"]["basebackup"] = json!([{"max-rate": "100M"}, "no-manifest"]);
    tree["postgresql"]["pre_promote"] = json!("/bin/ask 'me first'");
    tree["bootstrap"] = json!({
        "method": "restore",
        "restore": {"command": "/bin/restore", "recovery_conf": {"recovery_target_timeline": "latest"}},
        "post_init": "/bin/post",
    });
    let config = check(&tree, Path::new("x.yml")).expect("valid");
    let pg = config.postgresql.expect("a database");
    let names: Vec<&str> = pg.copy_methods.iter().map(|method| method.name.as_str()).collect();
    assert_eq!(names, ["barman", "basebackup"]);
    assert_eq!(pg.copy_methods[0].command, ["/bin/barman", "-v"]);
    assert_eq!(pg.copy_methods[0].parameters, [("retries".to_owned(), "3".to_owned())]);
    assert_eq!(pg.basebackup.len(), 2);
    assert_eq!(pg.callbacks.pre_promote, ["/bin/ask", "me first"]);
    let restore = config.bootstrap.method.expect("a command");
    assert_eq!(restore.recovery["recovery_target_timeline"], "latest");
    assert_eq!(config.bootstrap.post_bootstrap, ["/bin/post"]);
    assert_eq!(config.warnings.len(), 2, "{:#?}", config.warnings);
    tree["bootstrap"]["method"] = json!("elsewhere");
    tree["postgresql"]["barman"] = json!({"retries": 3});
    let found = problems(|t| *t = tree.clone());
    assert!(found.iter().any(|p| p.starts_with("bootstrap.elsewhere: is missing")), "{found:#?}");
    assert!(found.iter().any(|p| p.starts_with("postgresql.barman.command: is missing")), "{found:#?}");
}

#[test]
fn words_of_commands() {
    let of = |text: &str| super::words(text);
    assert_eq!(
        of("/bin/x  a 'b c' \"d \\\" e\""),
        Some(["/bin/x", "a", "b c", "d \" e"].iter().map(ToString::to_string).collect())
    );
    assert_eq!(of("/bin/x ''"), Some(vec!["/bin/x".to_owned(), String::new()]));
    assert_eq!(of("/bin/x 'open"), None);
    assert_eq!(of("  "), Some(Vec::new()));
}
