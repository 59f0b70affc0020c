//! `drill` and `top` where they say no, and where they ask.

use howdah::agent::snapshot::ReplicationState;

use crate::fake_node::FakeNode;

#[tokio::test]
async fn a_real_cluster_is_not_harmed() {
    let node = FakeNode::start(|_| {}).await;
    for kind in ["kill-node", "kill-postgres", "freeze"] {
        let ran = node.howdah(&["drill", kind, "--force"]).await;
        assert_eq!(ran.code, 3, "{ran:?}");
        assert!(ran.err.contains("only `howdah drill switchover` is offered"), "{ran:?}");
    }
    let ran = node.howdah(&["drill", "partition", "--force"]).await;
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(node.calls().is_empty());
}

#[tokio::test]
async fn a_switchover_is_drilled_when_all_is_well_and_after_a_question() {
    let node = FakeNode::start(|_| {}).await;
    let ran = node.howdah(&["drill", "switchover", "--force"]).await;
    assert_eq!((ran.code, ran.err.as_str()), (3, "howdah: no drill now: not well: n3\n"));
    let node = FakeNode::start(|snapshot| {
        for member in &mut snapshot.cluster.as_mut().unwrap().members {
            member.replication_state = Some(ReplicationState::Streaming);
        }
    })
    .await;
    let ran = node.howdah(&["drill", "switchover"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    let asked = "Drills switchover on cluster main, whose primary is n1: 4 clients write to a table howdah_drill";
    assert!(ran.err.starts_with(asked) && ran.err.contains("Go on? [y/N]"), "{ran:?}");
    assert!(node.calls().is_empty());
}

#[tokio::test]
async fn top_is_for_terminals() {
    let node = FakeNode::start(|_| {}).await;
    let ran = node.howdah(&["top"]).await;
    assert!(ran.code == 2 && ran.err.contains("howdah list -f json"), "{ran:?}");
}
