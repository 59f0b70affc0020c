//! Power failures, at any moment and in any order that a disk may choose: a child works on a store, everything that it asks
//! of the file system is written down (`power_shim.c`), and what could be left of it is laid out and opened.
//!
//! ```text
//! child --C library--> shim --> real files
//!                        '----> trace: creations, writes, sizes, begins and ends of syncs, and what the child promised
//! trace, a moment -> durable: what was written before a sync began that ended in time
//!                 -> the rest: of each page a beginning of its writes, some pages torn; of the names a beginning of the changes
//!                 -> a directory -> opened as a node opens it -> every promise from before that moment is kept
//! ```
//!
//! The next child begins on what was left, so recoveries are interrupted too. Some run out of space first.
//! Deliberately absent: damage that no power failure does (`damage.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use howdah::raft::internals::{Disk, LogStore, Snapshots};
use howdah::telemetry::clock;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::storage::no_fatal;
use super::torture::{Promises, runtime};

/// At least so many; `POWER_SECONDS=3600` adds others for an hour, by a seed that nobody has seen before.
const ROUNDS: u64 = 200;
const PAGE: usize = 4096;
const SECTOR: usize = 512;

/// Which file, whatever it is called: its number, and how many files had that number before.
type Id = (u64, u32);

/// One thing that the child did.
#[derive(Debug)]
enum Done {
    Create(Id, PathBuf),
    Write(Id, usize, Vec<u8>),
    Size(Id, usize),
    Begin(Id),
    End(Id),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
    Mkdir(PathBuf),
    Said(String),
}

/// All files of a directory.
#[derive(Debug, Default, Clone)]
struct Files {
    names: BTreeMap<PathBuf, Id>,
    dirs: BTreeSet<PathBuf>,
    data: BTreeMap<Id, Vec<u8>>,
    /// Numbers of directories, to know which one is synced.
    dir_ids: BTreeMap<u64, PathBuf>,
}

impl Files {
    fn load(dir: &Path) -> Self {
        let mut files = Self::default();
        let mut left = vec![dir.to_owned()];
        while let Some(dir) = left.pop() {
            files.dir_ids.insert(std::fs::metadata(&dir).unwrap().ino(), dir.clone());
            for item in std::fs::read_dir(&dir).unwrap() {
                let path = item.unwrap().path();
                if path.is_dir() {
                    files.dirs.insert(path.clone());
                    left.push(path);
                } else {
                    let id = (std::fs::metadata(&path).unwrap().ino(), 0);
                    files.data.insert(id, std::fs::read(&path).unwrap());
                    files.names.insert(path, id);
                }
            }
        }
        files
    }

    fn lay_out(&self, from: &Path, to: &Path) {
        let place = |path: &Path| to.join(path.strip_prefix(from).unwrap());
        std::fs::create_dir_all(to).unwrap();
        for dir in &self.dirs {
            std::fs::create_dir_all(place(dir)).unwrap();
        }
        for (path, id) in &self.names {
            if path.parent().is_some_and(|parent| parent == from || self.dirs.contains(parent)) {
                std::fs::write(place(path), &self.data[id]).unwrap();
            }
        }
    }
}

/// What a child did, in order.
struct Trace {
    done: Vec<Done>,
    dir_ids: BTreeMap<u64, PathBuf>,
}

impl Trace {
    fn read(path: &Path, base: &Files) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let (mut done, mut dir_ids, mut said) = (Vec::new(), base.dir_ids.clone(), String::new());
        let mut generations: BTreeMap<u64, u32> = BTreeMap::new();
        let mut rest = bytes.as_slice();
        // The child was killed: its last record may be cut short.
        while let Some((head, tail)) = rest.split_at_checked(25) {
            let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
            let length = |at: usize| usize::try_from(u32::from_le_bytes(head[at..at + 4].try_into().unwrap())).unwrap();
            let Some((one, tail)) = tail.split_at_checked(length(17)) else { break };
            let Some((two, tail)) = tail.split_at_checked(length(21)) else { break };
            rest = tail;
            let path = |bytes: &[u8]| PathBuf::from(String::from_utf8(bytes.to_vec()).unwrap());
            let file = number(1);
            let offset = usize::try_from(number(9)).unwrap();
            let id = (file, generations.get(&file).copied().unwrap_or(0));
            match head[0] {
                b'O' => {
                    if path(one).is_dir() {
                        dir_ids.insert(file, path(one));
                    }
                }
                b'C' => {
                    let generation = generations.entry(file).or_default();
                    *generation += 1;
                    done.push(Done::Create((file, *generation), path(one)));
                }
                b'W' => done.push(Done::Write(id, offset, one.to_vec())),
                b'T' => done.push(Done::Size(id, offset)),
                b'B' => done.push(Done::Begin(id)),
                b'E' => done.push(Done::End(id)),
                b'R' => done.push(Done::Rename(path(one), path(two))),
                b'U' => done.push(Done::Unlink(path(one))),
                b'D' => done.push(Done::Mkdir(path(one))),
                b'M' => {
                    said.push_str(&String::from_utf8_lossy(one));
                    while let Some((line, more)) = said.split_once('\n') {
                        done.push(Done::Said(line.to_owned()));
                        said = more.to_owned();
                    }
                }
                other => panic!("no such record: {other}"),
            }
        }
        Self { done, dir_ids }
    }

    /// For each file and directory: everything before this step was durable at `moment`.
    fn durable(&self, moment: usize) -> BTreeMap<Id, usize> {
        let (mut begun, mut durable): (BTreeMap<Id, Vec<usize>>, BTreeMap<Id, usize>) = Default::default();
        for (at, done) in self.done[..moment].iter().enumerate() {
            match done {
                Done::Begin(id) => begun.entry(*id).or_default().push(at),
                Done::End(id) => {
                    // Of two at once the one that began first: at least that much is certain.
                    let begin = begun.get_mut(id).map(|begun| begun.remove(0)).unwrap();
                    durable.entry(*id).and_modify(|at| *at = begin.max(*at)).or_insert(begin);
                }
                _ => (),
            }
        }
        durable
    }

    /// What could be left if the power fails at `moment`.
    fn crash(&self, base: &Files, moment: usize, random: &mut StdRng) -> Files {
        let durable = self.durable(moment);
        let mut left = base.clone();
        self.names_left(&mut left, moment, &durable, random);
        // How eager the disk was: sometimes it wrote nothing by itself, sometimes everything.
        let eager = random.random_range(0..=4);
        let mut ids: BTreeSet<Id> = left.names.values().copied().collect();
        ids.extend(base.data.keys());
        for id in ids {
            let sure = durable.get(&id).copied().unwrap_or(0);
            let before = left.data.remove(&id).unwrap_or_default();
            left.data.insert(id, self.contents_left(id, before, sure..moment, eager, random));
        }
        left
    }

    /// Names change in order, as in a journal: a beginning of the changes is there, at least what was synced.
    fn names_left(&self, left: &mut Files, moment: usize, durable: &BTreeMap<Id, usize>, random: &mut StdRng) {
        let synced = |dir: Option<&Path>| {
            let mut ids = self.dir_ids.iter().filter(|(_, path)| Some(path.as_path()) == dir);
            ids.find_map(|(file, _)| durable.get(&(*file, 0)).copied()).unwrap_or(0)
        };
        let (mut changes, mut sure) = (Vec::new(), 0);
        for (at, done) in self.done[..moment].iter().enumerate() {
            let path = match done {
                Done::Create(_, path) | Done::Unlink(path) | Done::Mkdir(path) | Done::Rename(_, path) => path,
                Done::Write(..) | Done::Size(..) | Done::Begin(_) | Done::End(_) | Done::Said(_) => continue,
            };
            changes.push(done);
            if at < synced(path.parent()) {
                sure = changes.len();
            }
        }
        let kept = random.random_range(sure..=changes.len());
        for change in &changes[..kept] {
            match change {
                Done::Create(id, path) => drop(left.names.insert(path.clone(), *id)),
                Done::Unlink(path) => drop(left.names.remove(path)),
                Done::Rename(from, to) => {
                    if let Some(id) = left.names.remove(from) {
                        left.names.insert(to.clone(), id);
                    }
                }
                Done::Mkdir(path) => drop(left.dirs.insert(path.clone())),
                Done::Write(..) | Done::Size(..) | Done::Begin(_) | Done::End(_) | Done::Said(_) => (),
            }
        }
    }

    /// What is durable, and of the rest a beginning of what was written to each page.
    fn contents_left(
        &self,
        id: Id,
        before: Vec<u8>,
        unsure: std::ops::Range<usize>,
        eager: u32,
        random: &mut StdRng,
    ) -> Vec<u8> {
        let mut bytes = before;
        for done in &self.done[..unsure.start] {
            apply(&mut bytes, id, done);
        }
        let mut most = bytes.clone();
        let mut sizes = vec![bytes.len()];
        for done in &self.done[unsure.clone()] {
            if apply(&mut most, id, done) {
                sizes.push(most.len());
            }
        }
        let writes = sizes.len() - 1;
        if writes == 0 {
            return bytes;
        }
        // Until which of the writes each sector has come. Sectors of one page mostly go together.
        let reach = |random: &mut StdRng| match eager {
            0 => 0,
            4 => writes,
            _ => random.random_range(0..=writes),
        };
        let longest = sizes.iter().copied().max().unwrap_or(0);
        let mut reached = Vec::new();
        for _ in 0..longest.div_ceil(PAGE) {
            let (page, torn) = (reach(random), random.random_ratio(1, 8));
            for _ in 0..PAGE / SECTOR {
                reached.push(if torn { reach(random) } else { page });
            }
        }
        let size = sizes[reach(random)];
        bytes.resize(longest.max(bytes.len()), 0);
        let mut number = 0;
        for done in &self.done[unsure] {
            let mut one = bytes.clone();
            if !apply(&mut one, id, done) {
                continue;
            }
            one.resize(bytes.len(), 0);
            number += 1;
            for (at, sector) in one.chunks(SECTOR).enumerate() {
                let start = at * SECTOR;
                if number <= reached.get(at).copied().unwrap_or(0) {
                    bytes[start..start + sector.len()].copy_from_slice(sector);
                }
            }
        }
        bytes.truncate(size);
        bytes
    }
}

/// Carries out one step on one file's bytes. Whether it was about that file.
fn apply(bytes: &mut Vec<u8>, id: Id, done: &Done) -> bool {
    match done {
        Done::Write(other, at, new) if *other == id => {
            bytes.resize(bytes.len().max(at + new.len()), 0);
            bytes[*at..at + new.len()].copy_from_slice(new);
            true
        }
        Done::Size(other, size) if *other == id => {
            bytes.resize(*size, 0);
            true
        }
        _ => false,
    }
}

/// The library that is loaded into the child, built with the compiler that Rust needs anyway.
fn shim(root: &Path) -> PathBuf {
    let library = root.join("power_shim.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/raft_store/power_shim.c");
    let built = Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
    assert!(built.expect("cc is there: Rust links with it").success());
    library
}

/// Lets a child work for a while; returns everything that it did, and whether it ran out of space.
fn work(root: &Path, dir: &Path, base: &Files, round: u64, random: &mut StdRng) -> (Trace, bool) {
    let trace = root.join("trace");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["torture::child", "--exact", "--nocapture", "--test-threads=1"])
        .env("HOWDAH_TORTURE_DIR", dir)
        .env("HOWDAH_TORTURE_SEED", round.to_string())
        .env("LD_PRELOAD", root.join("power_shim.so"))
        .env("POWER_ROOT", dir)
        .env("POWER_TRACE", &trace);
    if round.is_multiple_of(4) {
        command.env("POWER_ROOM", random.random_range(0..500_000).to_string());
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut lines = lines.filter(|line| line.starts_with(['V', 'A', 'T', 'P', 'S']));
    // One that runs out of space says less, and ends.
    let _ = lines.by_ref().take(random.random_range(1..40)).count();
    child.kill().unwrap();
    let ended = child.wait().unwrap();
    assert!(!matches!(ended.code(), Some(98 | 99)), "the shim has given up");
    (Trace::read(&trace, base), ended.code().is_some())
}

/// Whether a store begins with this round: in turn many young ones, whose creation and first entries are cut short, and one
/// that becomes old.
fn is_new(round: u64) -> bool {
    (round / 100).is_multiple_of(2) && round.is_multiple_of(3)
}

/// What the trace says is what is there: nothing that the child did has gone by it.
fn assert_complete(trace: &Trace, base: &Files, dir: &Path) {
    let mut all = base.clone();
    let everything: BTreeMap<Id, usize> = trace.dir_ids.keys().map(|file| ((*file, 0), trace.done.len())).collect();
    trace.names_left(&mut all, trace.done.len(), &everything, &mut StdRng::seed_from_u64(0));
    let real = Files::load(dir);
    for (path, id) in &real.names {
        let mut bytes = all.names.get(path).and_then(|id| base.data.get(id)).cloned().unwrap_or_default();
        let own = all.names[path];
        for done in &trace.done {
            apply(&mut bytes, own, done);
        }
        assert!(bytes == real.data[id], "{} is not what the trace says", path.display());
    }
}

#[test]
fn what_was_acknowledged_survives_power_failures_at_any_moment() {
    let root = tempfile::tempdir().unwrap();
    shim(root.path());
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let (begun, asked) = (clock::now(), number("POWER_SECONDS"));
    let fresh = asked.map_or(13, |_| u64::try_from(clock::wall().0).unwrap());
    let seed = number("POWER_SEED").unwrap_or(fresh);
    println!("seed {seed}");
    let over = || Duration::from_secs(asked.unwrap_or(0)) <= clock::now().since(begun);
    let mut random = StdRng::seed_from_u64(seed);
    let mut promises = Promises::default();
    let (mut refused, mut steps, mut kept, mut ran_out) = (Vec::new(), 0, 0, 0);
    let mut dir = root.path().join("0");
    std::fs::create_dir(&dir).unwrap();
    let (mut rounds, mut worked) = (0, (0, false));
    for round in (1..).take_while(|round| *round <= ROUNDS || !over()) {
        rounds = round;
        if is_new(round) {
            worked.0 = worked.0.max(kept);
            worked.1 |= promises.purged > 0 && promises.snapshot.is_some();
            std::fs::remove_dir_all(&dir).unwrap();
            std::fs::create_dir(&dir).unwrap();
            promises = Promises::default();
        }
        let base = Files::load(&dir);
        let (trace, full) = work(root.path(), &dir, &base, round, &mut random);
        ran_out += u64::from(full);
        assert_complete(&trace, &base, &dir);
        let moment = random.random_range(0..=trace.done.len());
        steps += moment;
        let mut promised = promises.clone();
        for done in &trace.done[..moment] {
            if let Done::Said(line) = done {
                promised.hear(line);
            }
        }
        let left = trace.crash(&base, moment, &mut random);
        let next = root.path().join(round.to_string());
        left.lay_out(&dir, &next);
        let looked_at = root.path().join("looked-at");
        left.lay_out(&dir, &looked_at);
        match look(&looked_at) {
            Ok(mut log) => {
                promised.check(&looked_at, &mut log, round);
                runtime().block_on(log.committer().stop());
                kept = promised.entries.len();
                std::fs::remove_dir_all(&dir).unwrap();
                (dir, promises) = (next, promised);
            }
            Err(error) => {
                // Allowed if it says what to do; but then the node is lost, and that must be rare.
                let text = error.to_string();
                assert!(text.contains("start again"), "round {round}: {text}");
                refused.push(format!("round {round}: {text}"));
                std::fs::remove_dir_all(&next).unwrap();
                base.lay_out(&dir.clone(), &next);
                std::fs::remove_dir_all(&dir).unwrap();
                dir = next;
            }
        }
        std::fs::remove_dir_all(&looked_at).unwrap();
    }
    worked.0 = worked.0.max(kept);
    worked.1 |= promises.purged > 0 && promises.snapshot.is_some();
    let most = worked.0;
    println!(
        "{rounds} power failures after {steps} steps, {ran_out} of them on a full disk, {most} entries in one store"
    );
    assert!(most > 1000 && worked.1, "the children have worked");
    assert!(5 < ran_out, "some disks were full");
    assert!(refused.is_empty(), "a power failure costs no node: {refused:#?}");
}

/// A harness that finds nothing proves nothing: a disk that says that it has synced, and has not, is noticed.
#[test]
fn a_disk_that_lies_is_noticed() {
    let root = tempfile::tempdir().unwrap();
    shim(root.path());
    let mut random = StdRng::seed_from_u64(17);
    let dir = root.path().join("0");
    std::fs::create_dir(&dir).unwrap();
    let base = Files::load(&dir);
    let (mut trace, _) = work(root.path(), &dir, &base, 1, &mut random);
    trace.done.retain(|done| !matches!(done, Done::End(_)));
    let mut promised = Promises::default();
    for done in &trace.done {
        if let Done::Said(line) = done {
            promised.hear(line);
        }
    }
    assert!(!promised.entries.is_empty(), "it has promised something");
    let noticed = (0..10).any(|round| {
        let left = trace.crash(&base, trace.done.len(), &mut random);
        let looked_at = root.path().join(format!("looked-at-{round}"));
        left.lay_out(&dir, &looked_at);
        let Ok(mut log) = look(&looked_at) else { return true };
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            promised.check(&looked_at, &mut log, round);
        }));
        runtime().block_on(log.committer().stop());
        checked.is_err()
    });
    assert!(noticed);
}

/// Opens the store as a node does.
fn look(dir: &Path) -> Result<LogStore, howdah::raft::Error> {
    let (disk, contents) = Disk::open(dir)?;
    Snapshots::open(dir)?.load()?;
    LogStore::open(disk, &contents, no_fatal())
}
