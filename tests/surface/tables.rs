//! The readers' output, whole.

use howdah::agent::snapshot::SwitchoverStatus;
use howdah::types::WallTime;
use serde_json::{Value, json};

use crate::fake_node::{FakeNode, ask, closed_port, howdah};

#[tokio::test]
async fn list_is_patronictls_table() {
    let node = FakeNode::start(|snapshot| {
        for member in &mut snapshot.cluster.as_mut().unwrap().members {
            member.tags.clear();
            member.pending_restart.clear();
        }
    })
    .await;
    let wanted = "\
+ Cluster: main (7508153532268044335) -------------------+----+-------------+-----+------------+-----+
| Member | Host     | Role         | State               | TL | Receive LSN | Lag | Replay LSN | Lag |
+--------+----------+--------------+---------------------+----+-------------+-----+------------+-----+
| n1     | 10.0.0.1 | Leader       | running             |  3 |             |     |            |     |
| n2     | 10.0.0.2 | Sync Standby | streaming           |  3 |   0/5000180 |   0 |  0/5000000 |   0 |
| n3     | 10.0.0.3 | Replica      | in archive recovery |  3 |   0/3200000 |  30 |  0/3000000 |  32 |
+--------+----------+--------------+---------------------+----+-------------+-----+------------+-----+
";
    let ran = node.howdah(&["list"]).await;
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, wanted, ""));
}

#[tokio::test]
async fn list_with_everything() {
    let node = FakeNode::start(|snapshot| {
        let cluster = snapshot.cluster.as_mut().unwrap();
        cluster.settings.pause = true;
        cluster.members[0].port = Some(5433);
        cluster.members[0].receive_lsn = None;
        cluster.switchover = Some(SwitchoverStatus {
            leader: Some("n1".parse().unwrap()),
            candidate: Some("n2".parse().unwrap()),
            scheduled_at: Some(WallTime(1_795_377_600_000)),
        });
    })
    .await;
    let wanted = "\
+ Cluster: main (7508153532268044335) --+---------------------+----+-------------+---------+------------+-----+-----------------+---------------------------+------------------+
| Member | Host          | Role         | State               | TL | Receive LSN |     Lag | Replay LSN | Lag | Pending restart | Pending restart reason    | Tags             |
+--------+---------------+--------------+---------------------+----+-------------+---------+------------+-----+-----------------+---------------------------+------------------+
| n1     | 10.0.0.1:5432 | Leader       | running             |  3 |             |         |            |     |                 |                           |                  |
+--------+---------------+--------------+---------------------+----+-------------+---------+------------+-----+-----------------+---------------------------+------------------+
| n2     | 10.0.0.2:5432 | Sync Standby | streaming           |  3 |   0/5000180 |       0 |  0/5000000 |   0 | *               | max_connections: 100->200 | clonefrom: true  |
|        |               |              |                     |    |             |         |            |     |                 |                           | zone: b          |
+--------+---------------+--------------+---------------------+----+-------------+---------+------------+-----+-----------------+---------------------------+------------------+
| n3     | 10.0.0.3:5433 | Replica      | in archive recovery |  3 |     unknown | unknown |  0/3000000 |  32 |                 |                           | nofailover: true |
+--------+---------------+--------------+---------------------+----+-------------+---------+------------+-----+-----------------+---------------------------+------------------+
 Maintenance mode: on
 Switchover scheduled at: 2026-11-22T20:00:00.000+00:00
                     from: n1
                       to: n2
";
    assert_eq!(node.howdah(&["status"]).await.out, wanted);
}

#[tokio::test]
async fn list_for_programs() {
    let node = FakeNode::start(|_| {}).await;
    let rows: Value = serde_json::from_str(&node.howdah(&["list", "-f", "json"]).await.out).unwrap();
    assert_eq!(
        rows[0],
        json!({"Cluster": "main", "Member": "n1", "Host": "10.0.0.1", "Role": "Leader", "State": "running", "TL": 3})
    );
    assert_eq!(
        rows[1],
        json!({
            "Cluster": "main", "Member": "n2", "Host": "10.0.0.2", "Role": "Sync Standby", "State": "streaming", "TL": 3,
            "Receive LSN": "0/5000180", "Receive Lag": 0, "Replay LSN": "0/5000000", "Replay Lag": 0,
            "Pending restart": "*", "Pending restart reason": {"max_connections": "100->200"},
            "Tags": {"clonefrom": true, "zone": "b"},
        })
    );
    assert!(rows[2].get("Replay").is_none(), "nobody's replay is paused");
    let yaml: Value = serde_yaml_ng::from_str(&node.howdah(&["list", "-f", "yml"]).await.out).unwrap();
    assert_eq!(yaml, rows);
    let tsv = node.howdah(&["list", "-f", "tsv"]).await.out;
    let lines: Vec<Vec<&str>> = tsv.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(lines[0][..3], ["Cluster", "Member", "Host"]);
    assert_eq!(lines[3][1..5], ["n3", "10.0.0.3", "Replica", "in archive recovery"]);
    assert_eq!(lines[2].last(), Some(&"{clonefrom: true, zone: b}"));
}

#[tokio::test]
async fn a_standby_that_does_not_replay_shows_it() {
    let node = FakeNode::start(|snapshot| {
        let members = &mut snapshot.cluster.as_mut().unwrap().members;
        members.iter_mut().filter(|member| member.name.as_str() == "n2").for_each(|member| member.replay_paused = true);
    })
    .await;
    let rows: Value = serde_json::from_str(&node.howdah(&["list", "-f", "json"]).await.out).unwrap();
    let shown = |row: usize| (rows[row]["State"].clone(), rows[row]["Replay"].clone());
    assert_eq!(shown(1), (json!("streaming"), json!("paused")));
    assert_eq!(shown(0), (json!("running"), Value::Null));
    let table = node.howdah(&["list"]).await.out;
    assert!(table.contains("| Replay |\n") && table.matches("| paused |\n").count() == 1, "{table}");
    let (_, text) = ask(node.port, "GET", "/cluster", None).await;
    let body: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&body["members"][1]["replay_paused"], &body["members"][2]["replay_paused"]),
        (&json!(true), &Value::Null)
    );
}

#[tokio::test]
async fn topology_shows_who_follows_whom() {
    let node = FakeNode::start(|snapshot| {
        let members = &mut snapshot.cluster.as_mut().unwrap().members;
        for member in members.iter_mut() {
            member.tags.clear();
            member.pending_restart.clear();
        }
        members[0].tags.insert("replicatefrom".into(), json!("n2"));
    })
    .await;
    let out = node.howdah(&["topology"]).await.out;
    let names: Vec<&str> = out.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next()).collect();
    let trimmed: Vec<&str> = names.iter().map(|name| name.trim_end()).collect();
    assert_eq!(trimmed, ["Member", "n1", "+ n2", "  + n3"]);
}

#[tokio::test]
async fn history_as_patronictl_has_it() {
    let node = FakeNode::start(|_| {}).await;
    let wanted = "\
+----+----------+------------------------------+-------------------------------+------------+
| TL |      LSN | Reason                       | Timestamp                     | New Leader |
+----+----------+------------------------------+-------------------------------+------------+
|  1 | 25165824 | no recovery target specified | 2026-11-22T18:00:00.000+00:00 | n2         |
|  2 | 41943040 | no recovery target specified |                               |            |
+----+----------+------------------------------+-------------------------------+------------+
";
    assert_eq!(node.howdah(&["history"]).await.out, wanted);
    let json: Value = serde_json::from_str(&node.howdah(&["history", "-f", "json"]).await.out).unwrap();
    assert_eq!(json[1], json!({"TL": 2, "LSN": 41943040, "Reason": "no recovery target specified"}));
}

#[tokio::test]
async fn members_of_the_store() {
    let node = FakeNode::start(|snapshot| snapshot.raft.members[1].voter = false).await;
    let address = format!("127.0.0.1:{}", node.port);
    let wide = "-".repeat(address.len() + 2);
    let pad = " ".repeat(address.len() - "Address".len());
    let wanted = format!(
        "\
+--------+{wide}+------------------+---------+-----------------+
| Member | Address{pad} | Id               | Vote    | Leads the store |
+--------+{wide}+------------------+---------+-----------------+
| n1     | {address} | 0000000000000001 | voter   |                 |
| n2     | {address} | 0000000000000002 | learner |                 |
| n3     | {address} | 0000000000000003 | voter   | *               |
+--------+{wide}+------------------+---------+-----------------+
"
    );
    assert_eq!(node.howdah(&["member", "list"]).await.out, wanted);
}

#[tokio::test]
async fn the_settings() {
    let node = FakeNode::start(|_| {}).await;
    assert_eq!(
        node.howdah(&["show-config"]).await.out,
        "loop_wait: 1\nretry_timeout: 2\nsynchronous_mode: on\nttl: 5\n"
    );
    let effective = node.howdah(&["show-config", "--effective", "-f", "json"]).await.out;
    let effective: Value = serde_json::from_str(&effective).unwrap();
    assert_eq!((&effective["synchronous_mode"], &effective["member_slots_ttl"]), (&json!("on"), &json!(1800)));
}

#[tokio::test]
async fn nobody_answers() {
    let (a, b) = (closed_port().await, closed_port().await);
    let urls = [format!("http://127.0.0.1:{a}"), format!("http://127.0.0.1:{b}")];
    let ran = howdah(&["list", "--url", &urls[0], "--url", &urls[1]], "").await;
    let said = format!(
        "howdah: no node answers: tried 127.0.0.1:{a} (connection refused), 127.0.0.1:{b} (connection refused); addresses are from --url; check that howdah runs there\n"
    );
    assert_eq!((ran.code, ran.err), (1, said));
}

#[tokio::test]
async fn the_first_node_that_has_a_quorum_is_believed() {
    let closed = format!("http://127.0.0.1:{}", closed_port().await);
    let blind = FakeNode::start(|snapshot| {
        snapshot.store_has_quorum = false;
        snapshot.cluster.as_mut().unwrap().leader = None;
    })
    .await;
    let seeing = FakeNode::start(|_| {}).await;
    let blind_url = format!("http://127.0.0.1:{}", blind.port);
    let ran = seeing.howdah(&["list", "--url", &closed, "--url", &blind_url]).await;
    assert!(ran.code == 0 && ran.out.contains("| Leader ") && ran.err.is_empty(), "{ran:?}");
    let alone = blind.howdah(&["list"]).await;
    assert_eq!(alone.err, "n2 sees no quorum of the store, and last saw it 0 s ago; what follows may be outdated\n");
    assert!(alone.code == 0 && !alone.out.contains("Leader"), "{alone:?}");
}

#[tokio::test]
async fn a_nodes_file_tells_the_addresses() {
    let node = FakeNode::start(|_| {}).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("n1.yml");
    let text = format!(
        "scope: main\nname: n1\nraft:\n  secret: twelve-characters\n  members: {{n1: '127.0.0.1:{}', n2: '127.0.0.1:{}'}}\n",
        closed_port().await,
        node.port
    );
    std::fs::write(&file, text).unwrap();
    let ran = howdah(&["-c", file.to_str().unwrap(), "history", "-f", "tsv"], "").await;
    assert_eq!((ran.code, ran.out.lines().count()), (0, 3), "{ran:?}");
    let other = node.howdah(&["list", "other"]).await;
    assert_eq!(other.code, 2);
    assert_eq!(
        other.err,
        "howdah: the cluster here is main, not other; leave the name out, or name another node by --url\n"
    );
}
