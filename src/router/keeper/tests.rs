//! A keeper with a record and a majority that the test speaks for.

use std::sync::atomic::AtomicBool;

use serde_json::json;
use tokio::time::timeout;

use super::*;
use crate::cluster::Versioned;
use crate::cluster::records::MemberRecord;
use crate::types::LeaseId;

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(20);

fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}

fn led_by(leader: &str, term: i64, state: &str) -> ClusterRecord {
    let at = |create_revision, mod_revision| (create_revision, mod_revision, LeaseId(1));
    let versioned =
        |(create_revision, mod_revision, lease), value| Versioned { value, create_revision, mod_revision, lease };
    let member = MemberRecord {
        conn_url: format!("postgres://{leader}:5432/postgres"),
        role: "primary".to_owned(),
        state: state.to_owned(),
        ..MemberRecord::default()
    };
    let mut record = ClusterRecord::default();
    let (create_revision, mod_revision, lease) = at(term, term);
    record.leader = Some(Versioned { value: name(leader), create_revision, mod_revision, lease });
    record.members.insert(name(leader), versioned(at(1, term + 1), member));
    record
}

struct World {
    record: watch::Sender<Arc<ClusterRecord>>,
    majority: Arc<AtomicBool>,
    routes: watch::Receiver<Arc<Routes>>,
    gate: Arc<Gate>,
    _stop: tokio_util::sync::DropGuard,
}

impl World {
    fn start(ttl: Duration) -> Self {
        let (record, watched) = watch::channel(Arc::new(ClusterRecord::default()));
        let majority = Arc::new(AtomicBool::new(true));
        let confirm: Confirm = {
            let majority = Arc::clone(&majority);
            Arc::new(move || {
                let heard = majority.load(Ordering::SeqCst);
                Box::pin(async move { heard })
            })
        };
        let (sender, routes) = watch::channel(Arc::new(Routes::unknown()));
        let gate = Arc::new(Gate::default());
        let (mut settings, _) = ClusterSettings::parse(&json!({})).expect("defaults");
        (settings.ttl, settings.loop_wait) = (ttl, ttl / 10);
        let source = Source { record: watched, confirm };
        let keeper = Keeper::new(source, sender, Arc::clone(&gate), Arc::default(), None, &settings);
        let stop = CancellationToken::new();
        tokio::spawn(keeper.run(stop.clone()));
        Self { record, majority, routes, gate, _stop: stop.drop_guard() }
    }

    async fn until(&mut self, what: &str, condition: impl FnMut(&Arc<Routes>) -> bool) -> Arc<Routes> {
        let found = timeout(LIMIT, self.routes.wait_for(condition)).await;
        Arc::clone(&found.unwrap_or_else(|_| panic!("waited in vain until {what}")).expect("the keeper runs"))
    }
}

#[tokio::test]
async fn a_session_belongs_to_one_term() {
    let mut world = World::start(Duration::from_secs(60));
    world.record.send_replace(Arc::new(led_by("n1", 10, "running")));
    let routes = world.until("n1 is the target", |routes| routes.write.is_ok()).await;
    let bond = Bond::Term(Term(10));
    assert_eq!(routes.fate(&bond), Fate::GoOn);
    assert!(world.gate.is_open());
    world.record.send_replace(Arc::new(led_by("n1", 10, "stopping")));
    let routes = world.until("n1 hands over", |routes| routes.handing_over).await;
    assert_eq!(routes.fate(&bond), Fate::Drain);
    assert_eq!(routes.fate(&Bond::Replica(name("n2"))), Fate::GoOn);
    world.record.send_replace(Arc::new(ClusterRecord::default()));
    let routes = world.until("nobody leads", |routes| routes.leader.is_none()).await;
    assert_eq!(routes.fate(&bond), Fate::Reset);
    assert_eq!(routes.write, Err(Cause::NoLeader));
    world.record.send_replace(Arc::new(led_by("n2", 20, "running")));
    let routes = world.until("n2 is the target", |routes| routes.write.is_ok()).await;
    assert_eq!(routes.fate(&bond), Fate::Reset);
    assert_eq!(routes.fate(&Bond::Term(Term(20))), Fate::GoOn);
    assert_eq!(routes.fate(&Bond::Replica(name("n2"))), Fate::Reset, "a promoted replica keeps no readers");
}

#[tokio::test]
async fn without_a_majority_nobody_writes_after_the_ttl() {
    let ttl = Duration::from_millis(300);
    let mut world = World::start(ttl);
    world.record.send_replace(Arc::new(led_by("n1", 10, "running")));
    world.until("n1 is the target", |routes| routes.write.is_ok()).await;
    world.majority.store(false, Ordering::SeqCst);
    let routes = world.until("the confirmation has run out", |routes| routes.write.is_err()).await;
    assert_eq!(routes.write, Err(Cause::Unconfirmed { ttl }));
    assert_eq!(routes.fate(&Bond::Term(Term(10))), Fate::Reset);
    assert!(!world.gate.is_open());
    world.majority.store(true, Ordering::SeqCst);
    world.until("the majority is back", |routes| routes.write.is_ok()).await;
    assert!(world.gate.is_open());
}

#[tokio::test]
async fn a_new_term_counts_only_when_a_majority_knows_it() {
    let mut world = World::start(Duration::from_secs(60));
    world.majority.store(false, Ordering::SeqCst);
    world.record.send_replace(Arc::new(led_by("n1", 10, "running")));
    let routes = world.until("n1 has the key", |routes| routes.leader.is_some()).await;
    assert!(matches!(routes.write, Err(Cause::Unconfirmed { .. })), "{routes:?}");
    assert!(!world.gate.is_open());
    world.majority.store(true, Ordering::SeqCst);
    world.until("a majority confirms n1", |routes| routes.write.is_ok()).await;
}

#[tokio::test]
async fn a_key_that_cannot_be_read_is_not_a_key_that_is_gone() {
    let ttl = Duration::from_millis(500);
    let mut world = World::start(ttl);
    world.record.send_replace(Arc::new(led_by("n1", 10, "running")));
    world.until("n1 is the target", |routes| routes.write.is_ok()).await;
    let mut damaged = ClusterRecord::default();
    damaged.damaged.insert("/service/main/leader".to_owned(), "no name".to_owned());
    world.record.send_replace(Arc::new(damaged));
    let routes = world.until("nobody confirms it any more", |routes| routes.write.is_err()).await;
    assert_eq!(routes.write, Err(Cause::Unconfirmed { ttl }), "not: nobody leads");
}
