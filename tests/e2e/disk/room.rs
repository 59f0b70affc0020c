//! A small file system of one node, which can be filled and emptied.
//!
//! Mounted in a mount namespace that only the test's thread, and what it starts, can see: however the test ends, the kernel
//! ends the mounts with the last process in it.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;

use howdah::dev::place::OsUser;
use rustix::fs::FallocateFlags;
use rustix::thread::UnshareFlags;

use crate::network::wire;

/// Runs a test in a thread with a mount namespace of its own.
pub fn with_mounts(title: &str, test: impl FnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        crate::report::measured(&format!("{title}: SKIPPED: mounts are for root"));
        return;
    }
    let work = move || {
        wire::leave(UnshareFlags::NEWNS).expect("root may have a mount namespace of its own");
        run(Command::new("mount").args(["--make-rprivate", "/"]));
        test();
    };
    let thread = std::thread::Builder::new().name(title.to_owned()).spawn(work).expect("a thread");
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn run(command: &mut Command) {
    let output = command.output().expect("start mount");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A mounted file system; unmounted when dropped.
pub struct Room {
    dir: PathBuf,
}

impl Room {
    /// Mounts `megabytes` at a directory, which is created.
    pub fn mount(dir: &Path, megabytes: u32, owner: Option<&OsUser>) -> Self {
        std::fs::create_dir_all(dir).expect("a directory to mount at");
        let (uid, gid) = owner.map_or((0, 0), |user| (user.uid, user.groups[0]));
        let options = format!("size={megabytes}m,mode=0755,uid={uid},gid={gid}");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir));
        Self { dir: dir.to_owned() }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // Even while somebody works in it: the processes are ended by others.
        let _ = Command::new("umount").arg("--lazy").arg(&self.dir).output();
    }
}

fn filler(dir: &Path) -> PathBuf {
    dir.join("somebody-elses-file")
}

/// Takes every byte that is left in the file system of `dir`.
pub fn fill(dir: &Path) {
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(filler(dir)).expect("room for a name");
    let mut size = 0;
    for piece in [1_u64 << 20, 1 << 16, 1 << 12] {
        while take(&file, size, piece) {
            size += piece;
        }
    }
    assert!(size > 0, "there was no room to begin with");
}

fn take(file: &File, from: u64, count: u64) -> bool {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), from, count) {
        Ok(()) => true,
        Err(rustix::io::Errno::NOSPC) => false,
        Err(error) => panic!("fill the disk: {error}"),
    }
}

/// Gives the room back.
pub fn empty(dir: &Path) {
    std::fs::remove_file(filler(dir)).expect("the file that fills the disk");
}
