//! etcd's promises about watches: ordered, unique, reliable, atomic, resumable, bookmarkable.
//!
//! A history is done on the store under test; the model says which changes each watch has to see. Watches begin in the
//! past, now and in the future, and each of them is broken off in the middle and taken up again, on another member.

use std::time::Duration;

use howdah::kv::KeyRange;
use howdah::kv::command::{Event, EventKind};
use howdah::kv::watch::{WatchId, WatchRequest};

use tokio::time::{sleep, timeout};

use crate::histories::Draw;
use crate::server::{Server, Watch};
use crate::target::{Model, Said, Target, get, put};

const STEPS: usize = 200;
const SEEDS: [u64; 2] = [11, 1_125_173_767];

/// A watch on either kind of store.
enum Open {
    Model(WatchId),
    Server(Box<Watch>),
}

fn request(draw: &mut Draw, start_revision: i64) -> WatchRequest {
    let (key, range_end) = draw.range();
    // An end before the start is refused, and has a test elsewhere.
    let range_end = if range_end.as_bytes() <= key.as_bytes() { String::new() } else { range_end };
    let filter = draw.below(4);
    WatchRequest {
        key: key.into(),
        range_end: range_end.into(),
        start_revision,
        progress_notify: false,
        no_put: filter == 0,
        no_delete: filter == 1,
        prev_kv: draw.one_in(2),
        watch_id: 0,
        fragment: false,
    }
}

/// What a watch has to see of a history.
fn expected(events: &[Event], request: &WatchRequest) -> Vec<Event> {
    let range = KeyRange::new(&request.key, &request.range_end);
    let passes = |event: &&Event| {
        let filtered = match event.kind {
            EventKind::Put => request.no_put,
            EventKind::Delete => request.no_delete,
        };
        range.contains(&event.kv.key) && !filtered && event.kv.mod_revision >= request.start_revision
    };
    let seen = |event: &Event| {
        let prev_kv = event.prev_kv.clone().filter(|_| request.prev_kv);
        Event { prev_kv, ..event.clone() }
    };
    events.iter().filter(passes).map(seen).collect()
}

async fn open(target: &mut Target, request: WatchRequest) -> Open {
    match target {
        Target::Model(model) => Open::Model(model.watch(request)),
        Target::Server(server) => Open::Server(Box::new(server.watch(request).await)),
    }
}

async fn next(target: &mut Target, watch: &mut Open) -> Said {
    match (target, watch) {
        (Target::Model(model), Open::Model(id)) => model.next(*id),
        (Target::Server(server), Open::Server(watch)) => server.next(watch).await,
        _ => unreachable!("a watch stays with its store"),
    }
}

fn close(target: &mut Target, watch: Open) {
    if let (Target::Model(model), Open::Model(id)) = (target, watch) {
        model.cancel(id);
    }
}

/// Reads until so many changes were seen, and checks what must hold of each answer.
async fn read(target: &mut Target, watch: &mut Open, wanted: usize, from: i64) -> Vec<Event> {
    let mut seen: Vec<Event> = Vec::new();
    while seen.len() < wanted {
        match next(target, watch).await {
            Said::Events(events) => {
                let last = seen.last().map_or(from - 1, |event| event.kv.mod_revision);
                // Atomic: what belongs to one revision comes in one answer.
                assert!(events[0].kv.mod_revision > last, "revision {last} was said before: {events:?}");
                let ordered = events.is_sorted_by_key(|event| event.kv.mod_revision);
                assert!(ordered, "{events:?}");
                seen.extend(events);
            }
            Said::Progress(_) => {}
            Said::Compacted(revision) => panic!("nothing was compacted, not at {revision} either"),
        }
    }
    seen
}

/// Everything was said up to the mark, and nothing is left to be said.
async fn bookmark(target: &mut Target, watch: &mut Open, now: i64) {
    let again = Duration::from_millis(200);
    let asked = async {
        loop {
            // Debian's 3.4.23 lets marks overtake changes (corrected in 3.4.25): here all of them have been seen already.
            if let Open::Server(watch) = watch {
                watch.ask_progress().await;
            }
            match timeout(again, next(target, watch)).await {
                Ok(Said::Progress(revision)) if revision >= now => return,
                // A member that is a little behind says how far it is, or nothing if that is before the watch's start.
                Ok(Said::Progress(_)) | Err(_) => sleep(Duration::from_millis(20)).await,
                Ok(other) => panic!("there was nothing more to say: {other:?}"),
            }
        }
    };
    timeout(Duration::from_secs(60), asked).await.expect("a mark is given");
}

/// Runs it all.
pub async fn run(target: &mut Target) {
    let fresh = rand::random::<u32>();
    for seed in SEEDS.into_iter().chain([u64::from(fresh)]) {
        println!("watches of seed {seed} on {}", target.name());
        one(target, seed).await;
    }
}

async fn one(target: &mut Target, seed: u64) {
    let mut truth = Model::default();
    match target {
        Target::Model(model) => **model = Model::default(),
        Target::Server(server) => begin(server, seed).await,
    }
    let mut draw = Draw::new(seed);
    let mut events = Vec::new();
    let mut watches = Vec::new();
    for step in 0..STEPS {
        let now = truth.range(&get("a")).unwrap().revision;
        if step % 10 == 0 {
            // In the past, now, in the future.
            for start in [draw.below(now) + 1, now + 1, now + 10] {
                let request = request(&mut draw, start);
                let watch = open(target, request.clone()).await;
                watches.push((request, watch));
            }
        }
        let command = draw.change(now);
        let (answer, news) = truth.apply(&command);
        if answer.is_err() && matches!(command, howdah::kv::Command::Txn(_)) && target.is_old_etcd() {
            continue;
        }
        assert_eq!(target.apply(&command).await, answer, "seed {seed}, step {step}: {command:?}");
        events.extend(news);
    }
    let now = truth.range(&get("a")).unwrap().revision;
    for (request, mut watch) in watches {
        let expected = expected(&events, &request);
        if request.start_revision > now {
            close(target, watch);
            continue;
        }
        // Broken off in the middle, and taken up after the last revision that was seen whole.
        let half = expected.len() / 2;
        let mut seen = read(target, &mut watch, half, request.start_revision).await;
        let resume = seen.last().map_or(request.start_revision, |event| event.kv.mod_revision + 1);
        close(target, watch);
        let again = WatchRequest { start_revision: resume, ..request.clone() };
        let mut watch = open(target, again).await;
        seen.extend(read(target, &mut watch, expected.len() - seen.len(), resume).await);
        assert_eq!(seen, expected, "seed {seed}: {request:?}");
        // Where the whole was seen at once, the second watch begins after the last change: it has no mark to give yet.
        if resume <= now {
            bookmark(target, &mut watch, now.min(events.last().map_or(now, |event| event.kv.mod_revision))).await;
        }
        close(target, watch);
    }
}

async fn begin(server: &mut Server, seed: u64) {
    server.apply(&howdah::kv::Command::Put(put(&format!("begin{seed}"), ""))).await.unwrap();
    server.begin_here().await;
}
