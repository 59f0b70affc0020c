//! A concurrent history against nodes that are killed and paused, checked in linear time.
//!
//! ```text
//! 8 clients -> puts, deletions, compare-and-swaps, reads -> what each was told, and when
//! a watch on each node, resumed when it breaks             -> what happened, revision by revision
//! afterwards: the history as one node tells it = the truth; everything above must agree with it
//! ```
//! Every answer carries the revision of the store, so the order need not be searched for: an acknowledged write is
//! in the truth at exactly its revision; a refused one nowhere; an unknown one at most once. What began after something
//! had ended has no smaller revision. A read equals the replayed state at its revision.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use howdah::telemetry::clock::now;
use howdah::types::Mono;
use rand::Rng;
use serde_json::{Value, json};

use crate::gateway::Lines;
use crate::nodes::{Nodes, try_post, until};

const CLIENTS: usize = 8;
const OPERATIONS: usize = 10_000;
const KEYS: usize = 5;

fn b64(text: &str) -> String {
    STANDARD.encode(text)
}

fn key(number: usize) -> String {
    format!("history/{number}")
}

fn text(value: &Value) -> String {
    String::from_utf8(STANDARD.decode(value.as_str().unwrap_or_default()).unwrap()).unwrap()
}

fn number(value: &Value) -> i64 {
    value.as_str().map_or(0, |text| text.parse().unwrap())
}

#[derive(Debug, Clone)]
enum Asked {
    Put {
        key: usize,
        value: String,
    },
    Delete {
        key: usize,
    },
    /// Put if the key was last changed at this revision.
    Swap {
        key: usize,
        expected: i64,
        value: String,
    },
    Get {
        key: usize,
        local: bool,
    },
}

#[derive(Debug, Clone)]
enum Told {
    /// Done, with the answer.
    Done(Value),
    /// Certainly nothing happened.
    Refused,
    /// It may have happened, or may still do.
    Unknown,
}

#[derive(Debug, Clone)]
struct Operation {
    asked: Asked,
    told: Told,
    from: Mono,
    to: Mono,
}

impl Operation {
    fn revision(&self) -> Option<i64> {
        match &self.told {
            Told::Done(answer) => Some(number(&answer["header"]["revision"])),
            Told::Refused | Told::Unknown => None,
        }
    }

    fn is_local(&self) -> bool {
        matches!(self.asked, Asked::Get { local: true, .. })
    }

    /// Whether it was told that it changed the store.
    fn wrote(&self) -> bool {
        let Told::Done(answer) = &self.told else { return false };
        match self.asked {
            Asked::Put { .. } => true,
            Asked::Delete { .. } => answer.get("deleted").is_some(),
            Asked::Swap { .. } => answer.get("succeeded").is_some(),
            Asked::Get { .. } => false,
        }
    }
}

async fn perform(address: &str, asked: Asked) -> Operation {
    let (path, body) = match &asked {
        Asked::Put { key: k, value } => ("kv/put", json!({"key": b64(&key(*k)), "value": b64(value)})),
        Asked::Delete { key: k } => ("kv/deleterange", json!({"key": b64(&key(*k))})),
        Asked::Swap { key: k, expected, value } => (
            "kv/txn",
            json!({
                "compare": [{"target": "MOD", "key": b64(&key(*k)), "mod_revision": expected}],
                "success": [{"request_put": {"key": b64(&key(*k)), "value": b64(value)}}],
            }),
        ),
        Asked::Get { key: k, local } => ("kv/range", json!({"key": b64(&key(*k)), "serializable": local})),
    };
    let from = now();
    let answer = try_post(address, &format!("/v3/{path}"), &body).await;
    let told = match answer {
        Ok((200, answer)) => Told::Done(answer),
        Ok((_, answer)) => match answer["error"].as_str().unwrap_or_default() {
            "etcdserver: no leader" | "etcdserver: request timed out" => Told::Refused,
            "etcdserver: request timed out, possibly due to connection lost" | "etcdserver: server stopped" => {
                Told::Unknown
            }
            other => panic!("{asked:?} at {address}: {other:?}"),
        },
        // Nobody listens there.
        Err(unsent) if unsent => Told::Refused,
        Err(_) => Told::Unknown,
    };
    Operation { asked, told, from, to: now() }
}

async fn client(me: usize, addresses: Vec<String>, count: Arc<AtomicUsize>) -> Vec<Operation> {
    let mut done = Vec::new();
    let mut node = me % addresses.len();
    let mut last_seen = [0; KEYS];
    while count.fetch_add(1, Ordering::Relaxed) < OPERATIONS {
        let (dice, key) = {
            let mut rng = rand::rng();
            (rng.random_range(0..10), rng.random_range(0..KEYS))
        };
        let value = format!("{me}.{}", done.len());
        let asked = match dice {
            0..3 => Asked::Put { key, value },
            3 => Asked::Delete { key },
            4..6 => Asked::Swap { key, expected: last_seen[key], value },
            6..9 => Asked::Get { key, local: false },
            _ => Asked::Get { key, local: true },
        };
        let operation = perform(&addresses[node], asked).await;
        match (&operation.told, &operation.asked) {
            (Told::Done(answer), Asked::Get { key, .. }) => last_seen[*key] = number(&answer["kvs"][0]["mod_revision"]),
            (Told::Done(_), _) => {}
            (Told::Refused | Told::Unknown, _) => {
                node = (node + 1) % addresses.len();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        done.push(operation);
    }
    done
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Change {
    key: String,
    /// None: deleted.
    value: Option<String>,
    create: i64,
    version: i64,
}

/// Changes by revision, as a watch tells them.
type History = BTreeMap<i64, Vec<Change>>;

/// Follows one node from `from` on, resuming where it broke, until `until` has been seen. Checks that nothing comes
/// twice or out of order.
async fn follow(address: String, from: i64, until: Arc<dyn Fn(i64) -> bool + Send + Sync>) -> History {
    let mut history = History::new();
    let mut next = from;
    while !until(next - 1) {
        let create = json!({"create_request": {
            "key": b64("history/"), "range_end": b64("history0"), "start_revision": next,
        }});
        let Ok(mut lines) = Lines::try_post(&address, "/v3/watch", &create).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        loop {
            let message = match tokio::time::timeout(Duration::from_millis(200), lines.try_next()).await {
                Ok(Ok(message)) => message,
                // Quiet: is it over?
                Err(_) if until(next - 1) => return history,
                // A line may have been read in part: begin again where this one was.
                Err(_) | Ok(Err(_)) => break,
            };
            assert_eq!(message["result"].get("canceled"), None, "{message}");
            for event in message["result"]["events"].as_array().into_iter().flatten() {
                let kv = &event["kv"];
                let revision = number(&kv["mod_revision"]);
                assert!(next <= revision, "revision {revision} again, or after {next}: {event}");
                let change = Change {
                    key: text(&kv["key"]),
                    value: event.get("type").is_none().then(|| text(&kv["value"])),
                    create: number(&kv["create_revision"]),
                    version: number(&kv["version"]),
                };
                history.entry(revision).or_default().push(change);
            }
            if let Some((last, _)) = history.last_key_value() {
                next = last + 1;
            }
        }
    }
    history
}

/// What a key holds: value, create revision, last change, version.
type Held = (String, i64, i64, i64);

/// The state after each revision, one key at a time.
struct Replay {
    /// By key: (revision, what it holds from then on).
    keys: BTreeMap<String, Vec<(i64, Option<Held>)>>,
}

impl Replay {
    fn of(truth: &History) -> Self {
        let mut keys: BTreeMap<String, Vec<(i64, Option<Held>)>> = BTreeMap::new();
        for (revision, changes) in truth {
            assert_eq!(changes.len(), 1, "one operation, one change: {changes:?}");
            let change = &changes[0];
            let past = keys.entry(change.key.clone()).or_default();
            let before = past.last().and_then(|(_, held)| held.clone());
            let held = change.value.clone().map(|value| {
                let (create, version) = before.as_ref().map_or((*revision, 1), |held| (held.1, held.3 + 1));
                assert_eq!((change.create, change.version), (create, version), "at {revision}: {change:?}");
                (value, create, *revision, version)
            });
            past.push((*revision, held));
        }
        Self { keys }
    }

    fn at(&self, key: &str, revision: i64) -> Option<&Held> {
        let past = self.keys.get(key)?;
        let reached = past.partition_point(|(at, _)| *at <= revision);
        past[..reached].last()?.1.as_ref()
    }
}

/// What the truth must hold for one answer.
fn check_answer(operation: &Operation, answer: &Value, truth: &History, replay: &Replay) {
    let revision = operation.revision().unwrap();
    let written = truth.get(&revision).and_then(|changes| changes.first());
    match &operation.asked {
        Asked::Put { key: k, value } => {
            let written = written.unwrap_or_else(|| panic!("lost: {operation:?}"));
            assert_eq!((&written.key, written.value.as_ref()), (&key(*k), Some(value)), "{operation:?}");
        }
        Asked::Delete { key: k } if answer.get("deleted").is_some() => {
            let written = written.unwrap_or_else(|| panic!("lost: {operation:?}"));
            assert_eq!((&written.key, written.value.as_ref()), (&key(*k), None), "{operation:?}");
        }
        Asked::Delete { key: k } => assert_eq!(replay.at(&key(*k), revision), None, "{operation:?}"),
        Asked::Swap { key: k, expected, value } => {
            let changed_at = |revision| replay.at(&key(*k), revision).map_or(0, |held| held.2);
            if operation.wrote() {
                let written = written.unwrap_or_else(|| panic!("lost: {operation:?}"));
                assert_eq!((&written.key, written.value.as_ref()), (&key(*k), Some(value)), "{operation:?}");
                assert_eq!(changed_at(revision - 1), *expected, "{operation:?}");
            } else {
                assert_ne!(changed_at(revision), *expected, "{operation:?}");
            }
        }
        Asked::Get { key: k, .. } => {
            let read = answer["kvs"].get(0).map(|kv| {
                let field = |name: &str| number(&kv[name]);
                (text(&kv["value"]), field("create_revision"), field("mod_revision"), field("version"))
            });
            assert_eq!(read.as_ref(), replay.at(&key(*k), revision), "{operation:?}");
        }
    }
}

/// Nothing goes back in time: what began after something had ended has no smaller revision, and a larger one if it
/// wrote. Reads from local state are old by right.
fn check_real_time(operations: &[Operation]) {
    let mut ended: Vec<(Mono, i64)> = operations
        .iter()
        .filter(|operation| !operation.is_local())
        .filter_map(|operation| Some((operation.to, operation.revision()?)))
        .collect();
    ended.sort_unstable();
    let mut begun: Vec<&Operation> = operations.iter().filter(|operation| !operation.is_local()).collect();
    begun.sort_by_key(|operation| operation.from);
    let (mut seen, mut at) = (0, 0);
    for operation in begun {
        while at < ended.len() && ended[at].0 < operation.from {
            seen = seen.max(ended[at].1);
            at += 1;
        }
        if let Some(revision) = operation.revision() {
            assert!(
                seen < revision || (seen == revision && !operation.wrote()),
                "{seen} was seen before {operation:?}"
            );
        }
    }
}

fn check(operations: &[Operation], truth: &History) {
    let replay = Replay::of(truth);
    let mut written: BTreeSet<&str> = BTreeSet::new();
    for change in truth.values().flatten() {
        if let Some(value) = &change.value {
            assert!(written.insert(value), "written twice: {change:?}");
        }
    }
    for operation in operations {
        match (&operation.told, &operation.asked) {
            (Told::Done(answer), _) => check_answer(operation, answer, truth, &replay),
            (Told::Refused, Asked::Put { value, .. } | Asked::Swap { value, .. }) => {
                assert!(!written.contains(value.as_str()), "refused and done: {operation:?}");
            }
            (Told::Refused | Told::Unknown, _) => {}
        }
    }
    check_real_time(operations);
}

/// Kills, restarts, freezes and thaws nodes until the clients have done their work. All of them run at the end.
fn torment(nodes: &mut Nodes, over: &AtomicBool) -> (usize, usize) {
    let (mut kills, mut pauses) = (0, 0);
    while !over.load(Ordering::Relaxed) {
        let victim = nodes.leader().unwrap_or(0);
        nodes.kill(victim);
        kills += 1;
        std::thread::sleep(Duration::from_millis(300));
        nodes.run(victim);
        std::thread::sleep(Duration::from_millis(1500));
        let victim = rand::rng().random_range(0..3);
        nodes.signal(victim, rustix::process::Signal::STOP);
        pauses += 1;
        std::thread::sleep(Duration::from_millis(1200));
        nodes.signal(victim, rustix::process::Signal::CONT);
        std::thread::sleep(Duration::from_millis(1000));
    }
    (kills, pauses)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_doubled_or_reordered_while_leaders_die_and_nodes_stand_still() {
    let mut nodes = tokio::task::spawn_blocking(Nodes::start).await.unwrap();
    let addresses: Vec<String> = (0..3).map(|node| nodes.main_port(node)).collect();
    let (_, answer) = try_post(&addresses[0], "/v3/kv/range", &json!({"key": b64("x")})).await.unwrap();
    let base = number(&answer["header"]["revision"]) + 1;
    let over = Arc::new(AtomicBool::new(false));
    let end = Arc::new(std::sync::OnceLock::<i64>::new());
    let watches: Vec<_> = addresses
        .iter()
        .map(|address| {
            let end = Arc::clone(&end);
            let seen_all = Arc::new(move |revision: i64| end.get().is_some_and(|end| *end <= revision));
            tokio::spawn(follow(address.clone(), base, seen_all))
        })
        .collect();
    let tormentor = {
        let over = Arc::clone(&over);
        tokio::task::spawn_blocking(move || {
            let done = torment(&mut nodes, &over);
            (nodes, done)
        })
    };
    let count = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> =
        (0..CLIENTS).map(|me| tokio::spawn(client(me, addresses.clone(), Arc::clone(&count)))).collect();
    let mut operations = Vec::new();
    for client in clients {
        operations.extend(client.await.unwrap());
    }
    over.store(true, Ordering::Relaxed);
    let (nodes, (kills, pauses)) = tormentor.await.unwrap();
    // A last write ends the history; all that was under way comes before it or never.
    let last = tokio::task::spawn_blocking(move || {
        until("a last write is possible", || nodes.etcdctl(0, &["put", "history/last", "last"]).status.success());
        nodes
    });
    let nodes = last.await.unwrap();
    let last = json!({"key": b64("history/last")});
    let (_, answer) = try_post(&addresses[0], "/v3/kv/range", &last).await.unwrap();
    end.set(number(&answer["kvs"][0]["mod_revision"])).unwrap();
    let mut histories = Vec::new();
    for watch in watches {
        histories.push(watch.await.unwrap());
    }
    let acknowledged = operations.iter().filter(|operation| operation.revision().is_some()).count();
    let unknown = operations.iter().filter(|operation| matches!(operation.told, Told::Unknown)).count();
    println!(
        "{} operations, {acknowledged} acknowledged, {unknown} unknown; {kills} leaders killed, {pauses} pauses; \
         {} changes",
        operations.len(),
        histories[0].len()
    );
    assert!(OPERATIONS <= operations.len() && OPERATIONS / 2 < acknowledged && 0 < kills && 0 < pauses);
    // Every watch saw the same, whatever broke it, and the first one is as good a truth as any.
    for history in &histories[1..] {
        assert!(*history == histories[0], "two nodes tell different histories");
    }
    check(&operations, &histories[0]);
    // All nodes are in the same state.
    let mut hashes = Vec::new();
    for address in &addresses {
        let read = json!({"key": b64("x")});
        assert_eq!(try_post(address, "/v3/kv/range", &read).await.unwrap().0, 200);
        let at = json!({"revision": end.get().unwrap()});
        hashes.push(try_post(address, "/v3/maintenance/hashkv", &at).await.unwrap().1["hash"].clone());
    }
    assert!(hashes[0].is_u64() && hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
    drop(nodes);
}

#[test]
fn the_checker_sees_what_is_wrong() {
    let done = |asked: Asked, answer: Value, from: u64, to: u64| Operation {
        asked,
        told: Told::Done(answer),
        from: Mono(from),
        to: Mono(to),
    };
    let header = |revision: i64| json!({"revision": revision.to_string()});
    let put = |value: &str, revision: i64, from: u64, to: u64| {
        done(Asked::Put { key: 0, value: value.into() }, json!({"header": header(revision)}), from, to)
    };
    let change = |value: &str, version| Change { key: key(0), value: Some(value.into()), create: 2, version };
    let truth: History = [(2, vec![change("a", 1)]), (3, vec![change("b", 2)])].into();
    let good = [put("a", 2, 1, 2), put("b", 3, 3, 4)];
    check(&good, &truth);
    let read = |value: &str, revision: i64, modified: i64, from: u64, to: u64| {
        let kv = json!({"value": b64(value), "create_revision": "2", "mod_revision": modified.to_string(),
                        "version": (modified - 1).to_string()});
        done(Asked::Get { key: 0, local: false }, json!({"header": header(revision), "kvs": [kv]}), from, to)
    };
    check(&[good[0].clone(), good[1].clone(), read("b", 3, 3, 5, 6)], &truth);
    let refused = Operation { told: Told::Refused, ..put("b", 3, 3, 4) };
    for (what, wrong) in [
        ("a lost write", vec![put("c", 4, 5, 6)]),
        ("a write at another's revision", vec![put("b", 2, 1, 2)]),
        ("a refusal that happened", vec![refused]),
        ("a stale read", vec![good[0].clone(), good[1].clone(), read("a", 2, 2, 5, 6)]),
        ("a read of something else", vec![read("x", 3, 3, 5, 6)]),
        ("a write that went back in time", vec![put("b", 3, 1, 2), put("a", 2, 3, 4)]),
    ] {
        let truth = truth.clone();
        let caught = std::panic::catch_unwind(move || check(&wrong, &truth)).is_err();
        assert!(caught, "{what} was not seen");
    }
    let doubled: History = [(2, vec![change("a", 1)]), (3, vec![change("a", 2)])].into();
    assert!(std::panic::catch_unwind(move || check(&[], &doubled)).is_err(), "a doubled write was not seen");
}
