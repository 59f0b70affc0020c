//! The tether: makes the kernel kill every backend when the guardian dies, even on a node that is frozen as a whole.
//!
//! ```text
//! guardian holds the writing end of a pipe, into which nobody ever writes
//! tether (a forked companion) holds, for each process of PostgreSQL, a reading end whose owner is that process and
//!         whose signal is SIGKILL
//! guardian dies -> the kernel closes the writing end -> the kernel sends SIGKILL to every owner
//! ```
//!
//! The parent-death signal reaches the postmaster alone; its backends would notice after a thaw, and answer a client
//! or two before. The tether need not run for its work to take effect, it must only exist. It looks for new backends
//! every 100 ms while PostgreSQL is writable, so one that is younger than that may be missed by the kernel; the
//! tether itself kills it when it is able to run. Only Linux; elsewhere there is none.

use std::io;

use super::process::{DirectoryId, Identity};

/// Whom to tie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Followed {
    /// The postmaster.
    pub postmaster: i32,
    /// Its data directory, for the killing of what was too young to be tied.
    pub home: DirectoryId,
    /// It is not the guardian's child.
    pub adopted: bool,
}

/// How often new backends are looked for.
#[cfg(target_os = "linux")]
const LOOK: std::time::Duration = std::time::Duration::from_millis(100);

#[cfg(target_os = "linux")]
pub use linux::Tether;

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::HashMap;
    use std::os::fd::{AsFd, AsRawFd, OwnedFd};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::fs::{Mode, OFlags};
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    use super::{DirectoryId, Followed, Identity, LOOK, io};
    use crate::guardian::deadman::{aim_kill, arm_kill};
    use crate::guardian::kill::{Kill, Progress, Purpose};
    use crate::guardian::process::{Census, Search, children_of, stat};
    use crate::guardian::spawn::{companion, wake_pipe};
    use crate::telemetry::clock;

    /// The guardian's side. Dropping it kills what is tethered.
    #[derive(Debug)]
    pub struct Tether {
        who: Identity,
        control: OwnedFd,
        _life_line: OwnedFd,
        followed: Option<Followed>,
    }

    /// A control message: the postmaster (0 for nobody), the directory's two numbers, and whether it is adopted.
    const MESSAGE: usize = 25;

    fn encode(followed: Option<Followed>) -> [u8; MESSAGE] {
        let mut message = [0; MESSAGE];
        if let Some(Followed { postmaster, home, adopted }) = followed {
            let [device, inode] = home.numbers();
            message[..8].copy_from_slice(&i64::from(postmaster).to_le_bytes());
            message[8..16].copy_from_slice(&device.to_le_bytes());
            message[16..24].copy_from_slice(&inode.to_le_bytes());
            message[24] = u8::from(adopted);
        }
        message
    }

    fn decode(message: [u8; MESSAGE]) -> Option<Followed> {
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&message[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let postmaster = i32::try_from(number(0)).ok().filter(|pid| *pid != 0)?;
        let home = DirectoryId::from_numbers([number(8), number(16)]);
        Some(Followed { postmaster, home, adopted: message[24] != 0 })
    }

    impl Tether {
        /// Forks the companion.
        ///
        /// # Errors
        /// When the system cannot fork or has no descriptors.
        pub fn start() -> io::Result<Self> {
            let (control_out, control) = wake_pipe()?;
            let (life_line_out, life_line) = wake_pipe()?;
            // Both writing ends must end with the guardian, so the companion must not keep them: `companion` closes
            // everything but what it is given.
            let guardian = rustix::process::getpid().as_raw_nonzero().get();
            let pid = companion([control_out, life_line_out], |[control, life_line]| {
                Companion { guardian, control, life_line, tied: HashMap::new(), buffer: Vec::new() }.run()
            })?;
            let who = stat(pid).map_or(Identity { pid, start: 0 }, |stat| stat.who);
            Ok(Self { who, control, _life_line: life_line, followed: None })
        }

        /// The companion's process.
        pub fn who(&self) -> Identity {
            self.who
        }

        /// Ties this postmaster and its children from now on; `None` lets go of all.
        pub fn follow(&mut self, followed: Option<Followed>) {
            // So few bytes are written whole or not at all; if not, the next turn of the loop tries again.
            if followed != self.followed && rustix::io::write(&self.control, &encode(followed)).is_ok() {
                self.followed = followed;
            }
        }
    }

    /// The companion's side.
    struct Companion {
        guardian: i32,
        control: OwnedFd,
        life_line: OwnedFd,
        tied: HashMap<i32, OwnedFd>,
        buffer: Vec<i32>,
    }

    impl Companion {
        fn run(mut self) -> i32 {
            let _ = rustix::thread::set_name(c"howdah-tether");
            let limit = getrlimit(Resource::Nofile);
            let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
            let mut followed: Option<Followed> = None;
            loop {
                if let Some(followed) = followed {
                    self.tie(followed);
                }
                let mut fds = [PollFd::new(&self.control, PollFlags::IN), PollFd::new(&self.life_line, PollFlags::IN)];
                let look = Timespec { tv_sec: 0, tv_nsec: i64::try_from(LOOK.as_nanos()).unwrap_or(0) };
                let timeout = followed.is_some().then_some(&look);
                if poll(&mut fds, timeout).is_err() {
                    continue;
                }
                if fds[1].revents().contains(PollFlags::HUP) {
                    return self.finish(followed);
                }
                let mut message = [0_u8; MESSAGE];
                while rustix::io::read(&self.control, &mut message) == Ok(message.len()) {
                    followed = decode(message);
                    self.tied.clear();
                }
            }
        }

        /// Ties the postmaster and its children that are not tied yet, and lets go of those that are gone.
        fn tie(&mut self, followed: Followed) {
            let postmaster = followed.postmaster;
            let mut family = std::mem::take(&mut self.buffer);
            if children_of(postmaster, &mut family).is_none() {
                family.clear();
            }
            family.push(postmaster);
            self.tied.retain(|pid, _| family.contains(pid));
            for pid in &family {
                if !self.tied.contains_key(pid)
                    && let Ok(line) = self.tie_one(*pid, followed)
                {
                    self.tied.insert(*pid, line);
                }
            }
            self.buffer = family;
        }

        fn tie_one(&self, pid: i32, followed: Followed) -> io::Result<OwnedFd> {
            // Opened anew through /proc: the owner belongs to the open file, and a duplicate would share it.
            let path = format!("/proc/self/fd/{}", self.life_line.as_raw_fd());
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let line = rustix::fs::open(path.as_str(), flags, Mode::empty())?;
            aim_kill(line.as_fd(), pid)?;
            // Aimed first and looked at then: if the number had been reused before, the kin would be wrong now.
            let is_postmaster = pid == followed.postmaster;
            let parent = if is_postmaster { self.guardian } else { followed.postmaster };
            // An adopted postmaster's parent is anybody; the guardian has a handle on it and watches its end.
            let kin = is_postmaster && followed.adopted || stat(pid).is_some_and(|stat| stat.parent == parent);
            if !kin {
                return Err(io::ErrorKind::NotFound.into());
            }
            arm_kill(line.as_fd())?;
            Ok(line)
        }

        /// The guardian is dead, and the kernel has killed what was tied. What was too young is killed here. A new
        /// guardian ends this process before it starts anything (`lock.rs`), so nothing new can be hit.
        fn finish(self, followed: Option<Followed>) -> i32 {
            let Some(Followed { home, .. }) = followed else { return 0 };
            let Ok(mut census) = Census::new() else { return 1 };
            let own = rustix::process::getpid().as_raw_nonzero().get();
            let search = Search { ancestor: own, home: Some(home), except: &[] };
            let mut kill = Kill::begin(clock::now(), Purpose::Sweep, None);
            loop {
                match kill.step(clock::now(), None, &mut census, &search) {
                    Progress::Clear => return 0,
                    Progress::Again(at) => {
                        let wait = at.since(clock::now());
                        let nanos = i64::try_from(wait.as_nanos()).unwrap_or(0).min(999_999_999);
                        let _ = poll(&mut [], Some(&Timespec { tv_sec: 0, tv_nsec: nanos }));
                    }
                }
            }
        }
    }
}

/// There is none here.
#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
pub struct Tether {
    who: Identity,
}

#[cfg(not(target_os = "linux"))]
impl Tether {
    /// There is none here.
    ///
    /// # Errors
    /// Always.
    pub fn start() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Nobody.
    pub fn who(&self) -> Identity {
        self.who
    }

    /// Does nothing.
    pub fn follow(&mut self, _followed: Option<Followed>) {}
}
