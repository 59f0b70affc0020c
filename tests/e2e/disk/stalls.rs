//! Syncs that do not return: of the store's log, on the primary's node and on the Raft leader's, and of PostgreSQL's data.
//!
//! Design section 5.2: a renewal waits for no disk. So a stall of the store's disks, however long, must not move the
//! leadership; commits wait while PostgreSQL's own disk does.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::cluster::{Cluster, LIMIT, Options, now};
use crate::network::rounds::{Rounds, until_passed};
use crate::report::measured;

/// Programs that run with the library, and the file that tells it what to do.
struct Stalls {
    _dir: tempfile::TempDir,
    control: PathBuf,
    /// A file for each thread that waits.
    waiting: PathBuf,
    howdah: PathBuf,
    bin_dir: PathBuf,
}

impl Stalls {
    fn prepare(postgres_bin: &Path) -> Self {
        let tmp = tempfile::Builder::new().prefix("howdah-stalls-").tempdir().expect("temporary directory");
        let dir = tmp.path().to_owned();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("open to PostgreSQL's user");
        let (library, control) = (dir.join("stall_shim.so"), dir.join("control"));
        let waiting = dir.join("waiting");
        fs::create_dir(&waiting).expect("a directory");
        fs::set_permissions(&waiting, fs::Permissions::from_mode(0o777)).expect("open to PostgreSQL's user");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/disk/stall_shim.c");
        let built = Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
        assert!(built.expect("cc is there: Rust links with it").success());
        let wrap = |wrapper: &Path, program: &Path| {
            let text = format!(
                "#!/bin/sh\nLD_PRELOAD={} STALL_CONTROL={} STALL_WAITING={} exec {} \"$@\"\n",
                library.display(),
                control.display(),
                waiting.display(),
                program.display()
            );
            fs::write(wrapper, text).expect("writable");
            fs::set_permissions(wrapper, fs::Permissions::from_mode(0o755)).expect("its mode");
        };
        let (howdah, bin_dir) = (dir.join("howdah"), dir.join("bin"));
        wrap(&howdah, Path::new(env!("CARGO_BIN_EXE_howdah")));
        fs::create_dir(&bin_dir).expect("a directory");
        for entry in fs::read_dir(postgres_bin).expect("PostgreSQL's programs").flatten() {
            let (name, program) = (entry.file_name(), entry.path());
            match name.to_str() {
                Some("postgres") => wrap(&bin_dir.join(name), &program),
                _ => symlink(program, bin_dir.join(name)).expect("a link"),
            }
        }
        Self { _dir: tmp, control, waiting, howdah, bin_dir }
    }

    /// From now on syncs below `dir` wait.
    fn begin(&self, dir: &Path) {
        let draft = self.control.with_extension("new");
        fs::write(&draft, dir.display().to_string()).expect("writable");
        fs::rename(draft, &self.control).expect("in place at once");
    }

    /// How many threads wait.
    fn waiting(&self) -> usize {
        fs::read_dir(&self.waiting).map_or(0, |entries| entries.count())
    }

    /// All go on.
    fn end(&self) {
        fs::remove_file(&self.control).expect("it was there");
    }
}

/// Whose disk stalls.
#[derive(Debug, Clone, Copy)]
enum Disk {
    StoreOfPrimary,
    StoreOfRaftLeader,
    DataOfPrimary,
}

impl Disk {
    fn dir(self, cluster: &Cluster, primary: &str) -> PathBuf {
        match self {
            Disk::StoreOfPrimary => cluster.node(primary).raft,
            Disk::StoreOfRaftLeader => {
                cluster.until_raft_leader_elsewhere();
                cluster.node(&cluster.raft_leader().expect("a Raft leader")).raft
            }
            Disk::DataOfPrimary => cluster.node(primary).data,
        }
    }
}

#[test]
fn a_disk_that_stalls_moves_nothing_and_loses_nothing() {
    let found = crate::cluster::postgres_command(None, "postgres");
    let programs = Path::new(found.get_program()).canonicalize().expect("PostgreSQL is installed");
    let stalls = Stalls::prepare(programs.parent().expect("a directory"));
    let (bin_dir, program) = (Some(stalls.bin_dir.clone()), Some(stalls.howdah.clone()));
    let cluster = Cluster::boot_with("stalls", &Options { bin_dir, program, ..Options::default() });
    let mut rounds = Rounds::begin("stalls", cluster);
    let disks = [Disk::StoreOfPrimary, Disk::StoreOfRaftLeader, Disk::DataOfPrimary];
    // Longer than a lease lives.
    for disk in disks {
        stall(&mut rounds, &stalls, disk, Duration::from_secs(8));
    }
    if crate::network::soak() {
        for (disk, seconds) in disks.into_iter().flat_map(|disk| [3, 30, 60].map(|seconds| (disk, seconds))) {
            stall(&mut rounds, &stalls, disk, Duration::from_secs(seconds));
        }
    }
    rounds.judge();
}

fn stall(rounds: &mut Rounds, stalls: &Stalls, disk: Disk, span: Duration) {
    rounds.stays(
        &format!("{disk:?} for {span:?}"),
        |cluster, old| {
            let dir = disk.dir(cluster, old);
            stalls.begin(&dir);
            cluster.until("a sync waits", LIMIT, |_| stalls.waiting() > 0);
        },
        |rounds| {
            let from = now();
            until_passed(&rounds.cluster, from, span);
            let acks = rounds.ledger.follower_acks(from);
            measured(&format!("stalls: {disk:?} for {span:?}: {acks} writes acknowledged meanwhile"));
            match disk {
                Disk::StoreOfPrimary | Disk::StoreOfRaftLeader => {
                    assert!(acks > 0, "the store's disk stopped PostgreSQL")
                }
                Disk::DataOfPrimary => assert_eq!(acks, 0, "a commit did not wait for its disk"),
            }
            assert!(stalls.waiting() > 0, "nothing has waited all the time");
        },
        |_, _| stalls.end(),
    );
}
