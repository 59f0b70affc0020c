//! `howdah config check`: files that are right, and the exact sentence for each that is not.

use std::path::Path;

use crate::fake_node::{howdah, howdah_with};

const GOOD: &str = "\
scope: main
name: n1
raft:
  secret: twelve-characters
  members: {n1: '127.0.0.1:8008', n2: '127.0.0.1:8009', n3: '127.0.0.1:8010'}
postgresql:
  connect_address: 127.0.0.1:5432
  data_dir: /srv/n1/data
";

#[tokio::test]
async fn the_examples_pass() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let wanted = [
        ("minimal", "node n1 of cluster main, 3 members"),
        ("full", "node n1 of cluster main, 3 members"),
        ("n1", "node n1 of cluster main, 3 members"),
        ("n2", "node n2 of cluster main, 3 members"),
        ("n3", "node n3 of cluster main, 3 members"),
    ];
    for (name, what) in wanted {
        let file = examples.join(format!("{name}.yml"));
        let file = file.to_str().unwrap();
        let ran = howdah(&["config", "check", file], "").await;
        assert_eq!(
            (ran.code, ran.out.as_str(), ran.err.as_str()),
            (0, format!("{file}: valid: {what}\n").as_str(), "")
        );
    }
}

#[tokio::test]
async fn the_printed_examples_are_the_checked_in_ones() {
    for (args, file) in [(&["config", "example"][..], "full"), (&["config", "example", "--minimal"][..], "minimal")] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("config/{file}.yml"));
        assert_eq!(howdah(args, "").await.out, std::fs::read_to_string(path).unwrap(), "{file}");
    }
}

/// Checks `text` as a file; returns exit code and what was said, the file's path shown as FILE.
async fn check(text: &str) -> (i32, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.yml");
    std::fs::write(&file, text).unwrap();
    let path = file.to_str().unwrap();
    let ran = howdah(&["run", "--check", path], "").await;
    (ran.code, format!("{}{}", ran.err, ran.out).replace(path, "FILE"))
}

#[tokio::test]
async fn each_mistake_has_its_sentence() {
    let with = |from: &str, to: &str| {
        assert!(GOOD.contains(from), "{from}");
        GOOD.replacen(from, to, 1)
    };
    let cases = [
        (with("name: n1\n", ""), "name: is missing; add it, for example `name: n1`"),
        (
            with("scope: main", "scope: ma in"),
            "scope: cluster name \"ma in\" is not usable: only letters, digits, '-', '_' and '.' are allowed",
        ),
        (
            with("name: n1\n", "name: n4\n"),
            "raft.members: does not list this node, n4 (rule R3); add `n4: HOST:PORT`, or set name to one of n1, n2, n3",
        ),
        (
            with("  data_dir", "  data_dri"),
            "postgresql.data_dri: unknown key; did you mean data_dir?\n  postgresql.data_dir: is missing; add it, for example `data_dir: /var/lib/postgresql/16/main`",
        ),
        (
            with("127.0.0.1:5432", "127.0.0.1"),
            "postgresql.connect_address: \"127.0.0.1\" has no port; write it as 127.0.0.1:PORT",
        ),
        (
            with("127.0.0.1:5432", "127.0.0.1:99999"),
            "postgresql.connect_address: \"127.0.0.1:99999\" has the port \"99999\"; ports are numbers from 1 to 65535",
        ),
        (
            with("127.0.0.1:8010", "127.0.0.1:8009"),
            "raft.members.n3: has the address 127.0.0.1:8009 of n2; each member needs its own (rule R2)",
        ),
        (
            with("  secret: twelve-characters\n", ""),
            "raft.secret: is missing; give all nodes the same secret of at least 12 characters, here or by raft.secret_file",
        ),
        (
            with("secret: twelve-characters", "secret_file: /nonexistent/secret"),
            "raft.secret_file: read /nonexistent/secret: No such file or directory (os error 2); create it with the cluster's secret, readable by the user that runs howdah",
        ),
        (with("scope: main", "scope: main\nttl: 30"), "ttl: unknown key here; it belongs at bootstrap.dcs.ttl"),
        (
            with("scope: main", "scope: main\nbootstrap: {dcs: {ttl: 20, loop_wait: 10, retry_timeout: 10}}"),
            "bootstrap.dcs.ttl: loop_wait + 2*retry_timeout <= ttl (rule C1) does not hold: 10 s + 2*10 s = 30 s is more than 20 s; raise ttl or lower the others",
        ),
        (
            with("scope: main", "scope: main\nbootstrap: {dcs: {maximum_lag_on_failover: lots}}"),
            "bootstrap.dcs.maximum_lag_on_failover: \"lots\" is not a size; write bytes or a number with a unit, such as 1048576 or 16MB",
        ),
        (
            with("scope: main", "scope: main\nbootstrap: {dcs: {loop_wait: soon}}"),
            "bootstrap.dcs.loop_wait: \"soon\" is not a duration; write seconds or a number with a unit, such as 10, 0.5, 500ms or 30min",
        ),
        (
            with("scope: main", "scope: main\nbootstrap: {dcs: {synchronous_mode: always}}"),
            "bootstrap.dcs.synchronous_mode: \"always\" is not one of off, on, quorum; write one of them",
        ),
        (
            with("scope: main", "scope: main\nrestapi: {listen: '[::1:8008'}"),
            "restapi.listen: \"[::1:8008\" lacks the closing bracket; write [::1]:8008",
        ),
        (
            with("scope: main", "scope: main\nrestapi: {authentication: {username: me}}"),
            "restapi.authentication: needs both username and password; add the missing one, or remove the section",
        ),
        (
            with("scope: main", "scope: main\nrestapi: {verify_client: required}"),
            "restapi.verify_client: asks for certificates on a port without TLS; add restapi.certfile, or remove it",
        ),
        (
            GOOD.replace("scope: main", "scope: ma in").replace("twelve-characters", "short"),
            "scope: cluster name \"ma in\" is not usable: only letters, digits, '-', '_' and '.' are allowed\n  raft.secret: the secret has 5 characters; use at least 12 (rule R5)",
        ),
        (
            with("scope: main", "scope: main\nrouter: {listen: '127.0.0.1:8008', listen_replicas: '127.0.0.1:5001'}"),
            "router.listen: 127.0.0.1:8008 is where restapi.listen listens; each needs a port of its own (rule R7)",
        ),
        (
            with("scope: main", "scope: main\nlog: {level: chatty}"),
            "log.level: \"chatty\" is not one of debug, info, warn, warning, error, critical; write one of them",
        ),
    ];
    for (text, sentence) in cases {
        let problems = sentence.lines().count();
        let count = if problems == 1 { "1 problem".to_owned() } else { format!("{problems} problems") };
        assert_eq!(check(&text).await, (1, format!("howdah: configuration FILE: {count}\n  {sentence}\n")));
    }
}

#[tokio::test]
async fn files_that_are_no_configuration() {
    let cases = [
        (
            "",
            "howdah: read configuration FILE: the file holds nothing instead of `key: value` lines; start from `howdah config example`\n",
        ),
        (
            "- a\n- b\n",
            "howdah: read configuration FILE: the file holds a list instead of `key: value` lines; start from `howdah config example`\n",
        ),
        (
            "scope: main\nscope: other\n",
            "howdah: read configuration FILE: not valid YAML: duplicate entry with key \"scope\"\n",
        ),
        (
            "a: [1\nb: 2\n",
            "howdah: read configuration FILE: not valid YAML: did not find expected ',' or ']' at line 2 column 2, while parsing a flow sequence at line 1 column 4\n",
        ),
    ];
    for (text, said) in cases {
        assert_eq!(check(text).await, (1, said.to_owned()));
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("latin1.yml");
    std::fs::write(&file, b"scope: main\nname: M\xfcnchen\n").unwrap();
    let ran = howdah(&["config", "check", file.to_str().unwrap()], "").await;
    assert!(ran.code == 1 && ran.err.contains(": line 2 is not in UTF-8"), "{ran:?}");
    let ran = howdah(&["config", "check", "/nonexistent.yml"], "").await;
    let said = "howdah: read configuration /nonexistent.yml: give the path of an existing file that this user may read: No such file or directory (os error 2)\n";
    assert_eq!((ran.code, ran.err.as_str()), (1, said));
}

#[tokio::test]
async fn warnings_do_not_fail_a_check() {
    let text = format!(
        "{GOOD}etcd3: {{hosts: 'a:2379'}}\nbootstrap: {{dcs: {{ttl: 30, loop_wait: 10, retry_timeout: 10}}}}\n"
    );
    let said = "\
warning: etcd3: is ignored: howdah keeps its own store
warning: bootstrap.dcs.ttl: 30 s is honoured, but host loss then costs up to 31 s instead of 6 s; lower ttl to 5, loop_wait to 1 and retry_timeout to 2 unless your network needs more
FILE: valid: node n1 of cluster main, 3 members
";
    assert_eq!(check(&text).await, (0, said.to_owned()));
}

#[tokio::test]
async fn what_this_machine_does_not_have_is_mentioned() {
    let text = GOOD.replace("/srv/n1/data", "data\n  bin_dir: /nonexistent/bin\n  os_user: no-such-user")
        + "restapi: {certfile: /nonexistent.crt}\ntags: {failover_priority: -1}\n";
    let (code, said) = check(&text).await;
    assert_eq!(code, 0, "{said}");
    for part in [
        "warning: postgresql.data_dir: data counts from the directory that howdah is started in; write it from / on\n",
        "warning: tags.failover_priority: -1 counts as 0, which means never; write 0\n",
        "warning: restapi.certfile: /nonexistent.crt does not exist on this machine\n",
        "warning: postgresql.bin_dir: there is no /nonexistent/bin/postgres on this machine\n",
        "warning: postgresql.os_user: there is no user no-such-user on this machine\n",
    ] {
        assert!(said.contains(part), "{part}{said}");
    }
}

#[tokio::test]
async fn the_environment_completes_a_file_and_a_directory_is_merged() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("10-all.yml"), GOOD.replace("name: n1\n", "").replace("twelve-characters", "x"))
        .unwrap();
    std::fs::write(dir.path().join("20-here.yml"), "postgresql: {connect_address: '127.0.0.1:5433'}\n").unwrap();
    let path = dir.path().to_str().unwrap();
    let variables = [("PATRONI_NAME", "n3"), ("HOWDAH_NAME", "n2"), ("HOWDAH_RAFT_SECRET", "another-secret")];
    let ran = howdah_with(&["config", "check", path], "", &variables).await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert!(ran.out.ends_with("valid: node n2 of cluster main, 3 members\n"), "{}", ran.out);
}

#[tokio::test]
async fn usage_errors_exit_with_2() {
    for args in [&["frobnicate"][..], &["list", "-f", "xml"][..], &["switchover", "--leader"][..], &[][..]] {
        assert_eq!(howdah(args, "").await.code, 2, "{args:?}");
    }
}
