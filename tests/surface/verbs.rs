//! The changers: what they say, whether they ask, what they send, how they exit.

use howdah::api::ControlError;
use serde_json::Value;

use crate::fake_node::{FakeNode, Guard, howdah};

#[tokio::test]
async fn switchover_says_what_it_will_do_and_shows_the_outcome() {
    let node = FakeNode::start(|_| {}).await;
    let ran = node.howdah(&["switchover", "--candidate", "n2", "--force"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.err, "Switches over cluster main from n1 to n2 now.\n");
    assert!(ran.out.contains("\nSuccessfully switched over to \"n2\"\n"), "{}", ran.out);
    let after = ran.out.split("Successfully").nth(1).unwrap();
    assert!(after.lines().any(|line| line.starts_with("| n2 ") && line.contains("Leader")), "{after}");
    assert_eq!(node.calls(), ["switchover n1 -> n2"]);
}

#[tokio::test]
async fn it_asks_and_takes_no_for_an_answer() {
    let node = FakeNode::start(|_| {}).await;
    let url = format!("http://127.0.0.1:{}", node.port);
    let cases = [
        ("n\n", 1, "Go on? [y/N]: howdah: aborted\n"),
        ("", 1, "Go on? [y/N]: howdah: aborted: there was no answer; add --force to go on without one\n"),
        ("y\n", 0, "Go on? [y/N]: "),
    ];
    for (input, code, end) in cases {
        let ran = howdah(&["switchover", "main", "--url", &url], input).await;
        assert_eq!(ran.code, code, "{ran:?}");
        assert_eq!(ran.err, format!("Switches over cluster main from n1 to the best standby now.\n{end}"));
    }
    assert_eq!(node.calls(), ["switchover n1 -> -"]);
}

#[tokio::test]
async fn refusals_have_their_exit_codes() {
    let node = FakeNode::start(|_| {}).await;
    let last_line = |text: &str| text.lines().last().unwrap_or_default().to_owned();
    let wrong_leader = node.howdah(&["switchover", "--leader", "n3", "--force"]).await;
    assert_eq!(
        (wrong_leader.code, last_line(&wrong_leader.err)),
        (3, "howdah: the leader is n1, not n3; name n1 as leader".to_owned())
    );
    let past = node.howdah(&["switchover", "--scheduled", "2001-01-01T00:00Z", "--force"]).await;
    assert!(past.code == 2 && past.err.contains("is in the past"), "{past:?}");
    assert_eq!(node.calls(), [""; 0]);
    for (error, code) in [
        (ControlError::NoQuorum("the store has no quorum".into()), 4),
        (ControlError::Refused("not now".into()), 3),
        (ControlError::Failed("it did not work".into()), 1),
    ] {
        *node.control.failure.lock().unwrap() = Some(error.clone());
        let ran = node.howdah(&["failover", "--candidate", "n2", "--force"]).await;
        assert_eq!(ran.code, code, "{ran:?}");
        assert!(last_line(&ran.err).ends_with(&error.to_string()), "{ran:?}");
    }
}

#[tokio::test]
async fn scheduled_and_cancelled() {
    let node = FakeNode::start(|_| {}).await;
    let ran = node.howdah(&["switchover", "--scheduled", "2999-01-01T00:00+00:00", "--force"]).await;
    assert!(ran.code == 0 && ran.out.contains("\nSwitchover scheduled\n"), "{ran:?}");
    let cancelled = node.howdah(&["switchover", "--cancel"]).await;
    assert_eq!((cancelled.code, cancelled.out.as_str()), (0, "scheduled switchover deleted\n"));
}

#[tokio::test]
async fn pause_and_resume() {
    let node = FakeNode::start(|_| {}).await;
    let ran = node.howdah(&["pause", "--wait", "--force"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "Success: cluster management is paused\n"), "{ran:?}");
    let again = node.howdah(&["pause", "--force"]).await;
    assert_eq!((again.code, again.err.as_str()), (3, "howdah: cluster main is paused already\n"));
    assert_eq!(node.howdah(&["resume", "--wait", "--force"]).await.code, 0);
    assert_eq!(node.calls(), [r#"patch {"pause":true}"#, r#"patch {"pause":null}"#]);
}

#[tokio::test]
async fn standby_clusters_are_made_and_ended_by_name() {
    let node = FakeNode::start(|_| {}).await;
    let ran = node.howdah(&["demote-cluster", "--force"]).await;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("--host"), "{ran:?}");
    let ran = node.howdah(&["promote-cluster", "--force"]).await;
    assert_eq!((ran.code, ran.err.as_str()), (3, "howdah: cluster main is no standby cluster\n"));
    let ran = node.howdah(&["remove", "main"]).await;
    assert_eq!(ran.code, 3);
    assert!(ran.err.contains("howdah member remove NAME"), "{ran:?}");
    assert_eq!(node.calls(), [""; 0]);
}

#[tokio::test]
async fn edit_config_shows_the_change_and_checks_it_first() {
    let node = FakeNode::start(|_| {}).await;
    let ran = node
        .howdah(&["edit-config", "-s", "ttl=8", "-p", "max_connections=200", "-s", "synchronous_mode=null", "--force"])
        .await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "Configuration changed\n"), "{ran:?}");
    let diff = " loop_wait: 1\n+postgresql:\n+  parameters:\n+    max_connections: 200\n retry_timeout: 2\n-synchronous_mode: on\n-ttl: 5\n+ttl: 8\n";
    assert_eq!(ran.err, format!("{diff}Changes the settings of cluster main.\n"));
    let bad = node.howdah(&["edit-config", "-s", "ttl=3", "-s", "ttll=1", "--force"]).await;
    assert_eq!(bad.code, 3);
    assert!(bad.err.contains("(rule C1)") && bad.err.contains("ttll: unknown key; did you mean ttl?"), "{bad:?}");
    assert_eq!(node.howdah(&["edit-config", "-s", "ttl=8", "--force"]).await.out, "Not changed\n");
    assert_eq!(node.howdah(&["edit-config"]).await.code, 2);
    let call: Value = serde_json::from_str(node.calls()[0].strip_prefix("patch ").unwrap()).unwrap();
    assert_eq!(call["postgresql"]["parameters"]["max_connections"], 200);
    assert_eq!(node.calls().len(), 1);
}

#[tokio::test]
async fn edit_config_replaces_from_standard_input() {
    let node = FakeNode::start(|_| {}).await;
    let url = format!("http://127.0.0.1:{}", node.port);
    let ran = howdah(&["edit-config", "--replace", "-", "--force", "--url", &url], "ttl: 6\n").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(node.calls(), [r#"put {"ttl":6}"#]);
}

#[tokio::test]
async fn members_join_and_leave() {
    let node = FakeNode::start(|_| {}).await;
    let added = node.howdah(&["member", "add", "n4", "10.0.0.4:8008", "--force"]).await;
    assert!(added.code == 0 && added.out.contains("| n4     | 10.0.0.4:8008"), "{added:?}");
    let removed = node.howdah(&["member", "remove", "n3", "--force"]).await;
    assert_eq!(removed.err, "Removes n3 from the store of cluster main. 2 voters remain, of which 2 must be up.\n");
    assert_eq!(node.calls(), ["add n4 10.0.0.4:8008", "remove n3"]);
    assert_eq!(node.howdah(&["member", "add", "n1", "10.0.0.4:8008", "--force"]).await.code, 3);
    assert_eq!(node.howdah(&["member", "add", "n4", "10.0.0.4", "--force"]).await.code, 2);
    assert_eq!(node.howdah(&["member", "remove", "n9", "--force"]).await.code, 3);
}

#[tokio::test]
async fn restarts_reloads_and_reinitializations_go_to_each_member() {
    let node = FakeNode::start(|_| {}).await;
    let ran = node.howdah(&["restart", "main", "n2", "--pending", "--timeout", "1min", "--force"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "n2: restarted successfully\n"), "{ran:?}");
    let ran = node.howdah(&["reload", "main", "--force"]).await;
    assert_eq!(ran.err, "Reloads the configuration of n2, n3, n1.\n");
    let ran = node.howdah(&["reinit", "main", "n3", "--from-leader", "--force"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(node.howdah(&["reinit", "main", "n9", "--force"]).await.code, 2);
    let mut wanted = vec!["restart pending=true timeout=Some(60s)".to_owned()];
    wanted.extend(vec!["reload".to_owned(); 3]);
    wanted.push("reinitialize ReinitializeRequest { force: true, from_leader: true }".to_owned());
    assert_eq!(node.calls(), wanted);
}

#[tokio::test]
async fn what_waits_for_a_restart_is_asked_of_each_member_once_it_has_the_newest_settings() {
    // n1's record of the others says that only n2 waits.
    let nodes = FakeNode::three(|snapshot| {
        let pg = snapshot.postgres.as_mut().unwrap();
        if snapshot.name.as_str() == "n3" {
            (pg.has_settings, pg.pending_restart) = (false, Default::default());
        }
    })
    .await;
    let [n1, n2, n3] = &nodes;
    let waiting = n2.control.snapshot().postgres.unwrap().pending_restart;
    let follow = async {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        n3.control.publish(|snapshot| {
            let pg = snapshot.postgres.as_mut().unwrap();
            (pg.has_settings, pg.pending_restart) = (true, waiting.clone());
        });
    };
    let (ran, ()) = tokio::join!(n1.howdah(&["restart", "main", "--pending", "--force"]), follow);
    let done = "n2: restarted successfully\nn3: restarted successfully\nn1: restarted successfully\n";
    assert_eq!((ran.code, ran.out.as_str()), (0, done), "{ran:?}");
    // Nothing waits any more.
    for node in &nodes {
        node.control.publish(|snapshot| snapshot.postgres.as_mut().unwrap().pending_restart.clear());
    }
    let ran = n1.howdah(&["restart", "main", "--pending", "--force"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "No setting waits for a restart\n"), "{ran:?}");
    assert_eq!(n1.howdah(&["restart", "main", "--pending", "-r", "standby-leader", "--force"]).await.code, 3);
    assert_eq!([n1, n2, n3].map(|node| node.calls().len()), [1, 1, 1]);
}

#[tokio::test]
async fn settings_are_those_of_the_leader_and_it_shows_a_change_with_its_answer() {
    let [n1, ..] = FakeNode::three(|_| {}).await;
    *n1.control.late.lock().unwrap() = std::time::Duration::from_millis(300);
    // Knows nothing of what follows.
    let outdated = FakeNode::start(|snapshot| {
        let members = &mut snapshot.cluster.as_mut().unwrap().members;
        let leader = members.iter_mut().find(|member| member.name.as_str() == "n1").unwrap();
        leader.api_url = format!("http://127.0.0.1:{}/patroni", n1.port);
    })
    .await;
    let ran = outdated.howdah(&["edit-config", "-s", "synchronous_node_count=99", "--force"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let warning = "warning: synchronous_node_count: 99 standbys are to confirm each commit, and 2 members could\n";
    assert!(ran.err.contains(warning), "{ran:?}");
    assert!(outdated.howdah(&["show-config"]).await.out.contains("synchronous_node_count: 99\n"));
    let ran = outdated.howdah(&["edit-config", "-s", "synchronous_node_count=null", "--force"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "Configuration changed\n"), "{ran:?}");
    assert!(!outdated.howdah(&["show-config"]).await.out.contains("synchronous_node_count"));
    assert_eq!(outdated.calls(), [""; 0]);
}

#[tokio::test]
async fn a_member_that_does_not_come_back_ends_a_rolling_restart() {
    let node = FakeNode::start(|_| {}).await;
    let failed = |text: &str| *node.control.failure.lock().unwrap() = Some(ControlError::Failed(text.to_owned()));
    failed("PostgreSQL did not start");
    let ran = node.howdah(&["restart", "main", "--force"]).await;
    let said = "howdah: n2 has not come back from its restart, so n3, n1 are left alone: a second member that is down \
                could be one too many; see the log of n2, and give the command again\n";
    assert!(ran.code == 1 && ran.err.ends_with(said), "{ran:?}");
    assert_eq!(node.calls().len(), 1, "the others have been touched");
    // Who is not meant has not failed. Other requests reach everybody.
    failed("restart conditions are not satisfied: its version is new enough");
    assert_eq!(node.howdah(&["restart", "main", "--pg-version", "16.4", "--force"]).await.code, 1);
    assert_eq!(node.calls().len(), 4);
    assert_eq!(node.howdah(&["reload", "main", "--force"]).await.code, 1);
    assert_eq!(node.calls().len(), 7);
}

#[tokio::test]
async fn members_are_named_or_chosen_by_role() {
    let node = FakeNode::start(|_| {}).await;
    let cases: [(&[&str], &str); 5] = [
        (&["restart", "n3", "--force"], "Restarts PostgreSQL on n3.\n"),
        (&["restart", "main", "-r", "leader", "--force"], "Restarts PostgreSQL on n1.\n"),
        (&["restart", "main", "--any", "--force"], "Restarts PostgreSQL on n2.\n"),
        (&["reload", "main", "--role", "replica", "--force"], "Reloads the configuration of n2, n3.\n"),
        (&["flush", "main", "switchover", "--force"], "Drops the scheduled switchover of cluster main.\n"),
    ];
    for (args, said) in cases {
        let ran = node.howdah(args).await;
        assert_eq!((ran.code, ran.err.as_str()), (0, said), "{args:?}");
    }
    for (args, code) in [
        (&["flush", "main", "restart", "--force"][..], 3),
        (&["flush", "main", "everything", "--force"], 2),
        (&["reinit", "main", "--force"], 2),
        (&["restart", "other", "--force"], 2),
    ] {
        assert_eq!(node.howdah(args).await.code, code, "{args:?}");
    }
    let dsn = |args: &'static [&'static str]| node.howdah(args);
    assert_eq!(dsn(&["dsn"]).await.out, "host=10.0.0.1 port=5432\n");
    assert_eq!(dsn(&["dsn", "-f", "json"]).await.out, "[{\"host\":\"10.0.0.1\",\"port\":5432}]\n");
    assert_eq!(dsn(&["dsn", "main", "-m", "n3"]).await.out, "host=10.0.0.3 port=5432\n");
    assert_eq!(dsn(&["dsn", "-r", "replica"]).await.out, "host=10.0.0.2 port=5432\n");
    assert_eq!(dsn(&["dsn", "-m", "n9"]).await.code, 3);
    let versions = node.howdah(&["version", "main", "n2", "-f", "tsv"]).await;
    assert!(versions.code == 0 && versions.out.contains("\nn2\t"), "{versions:?}");
    assert_eq!(node.howdah(&["query", "main"]).await.code, 2, "there is no SQL");
}

#[tokio::test]
async fn keys_are_explained() {
    let known = howdah(&["config", "explain", "raft.secret_file"], "").await;
    assert!(known.code == 0 && known.out.contains("HOWDAH_RAFT_SECRET_FILE"), "{known:?}");
    let unknown = howdah(&["config", "explain", "restapi.listn"], "").await;
    assert_eq!((unknown.code, unknown.err.as_str()), (2, "howdah: restapi.listn: unknown key; did you mean listen?\n"));
}

#[tokio::test]
async fn the_password_comes_from_the_nodes_file() {
    let node = FakeNode::guarded(Guard { password: Some("s3cret"), ..Guard::default() }, |_| {}).await;
    let without = node.howdah(&["pause", "--force"]).await;
    assert_eq!(without.code, 1);
    assert!(without.err.contains("give a node's file by -c"), "{without:?}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("n1.yml");
    let text = format!(
        "scope: main\nname: n1\nraft:\n  members: {{n1: '127.0.0.1:{}'}}\nctl: {{authentication: {{username: howdah, password: s3cret}}}}\n",
        node.port
    );
    std::fs::write(&file, text).unwrap();
    let ran = howdah(&["-c", file.to_str().unwrap(), "pause", "--force"], "").await;
    assert_eq!(ran.code, 0, "{ran:?}");
}
