//! Processes as libproc shows them.
//!
//! Weaker than on Linux: no handle on a process survives the reuse of its number, so a signal is sent right after the
//! look. Deliberately absent: everything that would need a mach port.

use std::mem::MaybeUninit;

use super::{Census, DirectoryId, Identity, Search, Stat, is_program};

/// The state of one process; `None` when there is no such process.
pub fn stat(pid: i32) -> Option<Stat> {
    let info: libc::proc_bsdinfo = ask(pid, libc::PROC_PIDTBSDINFO)?;
    let state = match info.pbi_status {
        libc::SZOMB => b'Z',
        libc::SSTOP => b'T',
        _ => b'S',
    };
    let start = info.pbi_start_tvsec.saturating_mul(1_000_000).saturating_add(info.pbi_start_tvusec);
    Some(Stat { who: Identity { pid, start }, parent: i32::try_from(info.pbi_ppid).ok()?, state })
}

/// One of the plain structures that libproc fills in.
#[allow(unsafe_code)]
fn ask<T: Copy>(pid: i32, flavor: libc::c_int) -> Option<T> {
    let mut info = MaybeUninit::<T>::zeroed();
    let size = i32::try_from(size_of::<T>()).ok()?;
    // SAFETY: the buffer is as long as is said, and the call writes only into it.
    let written = unsafe { libc::proc_pidinfo(pid, flavor, 0, info.as_mut_ptr().cast(), size) };
    // SAFETY: asked for are only structures of numbers, and it was written whole.
    (written == size).then(|| unsafe { info.assume_init() })
}

#[allow(unsafe_code)]
fn all_pids() -> Vec<i32> {
    let mut pids = vec![0_i32; 16 * 1024];
    let size = i32::try_from(size_of_val(pids.as_slice())).unwrap_or(0);
    // SAFETY: the buffer is as long as is said, and the call writes only numbers into it.
    let count = unsafe { libc::proc_listallpids(pids.as_mut_ptr().cast(), size) };
    pids.truncate(usize::try_from(count).unwrap_or(0));
    pids
}

impl Census {
    pub(super) fn enumerate(&mut self) {
        self.all.extend(all_pids().into_iter().filter(|pid| *pid > 0).filter_map(stat));
    }

    /// Adds the tenants of the home directory among the processes that are no descendants.
    pub(super) fn keep_tenants(&mut self, search: &Search<'_>) {
        let Some(home) = search.home else { return };
        let own = rustix::process::getpid().as_raw_nonzero().get();
        for candidate in &self.all {
            let pid = candidate.who.pid;
            if candidate.is_alive() && pid != own && lives_in(pid, home) && runs(pid, &self.program) {
                self.found.push(*candidate);
            }
        }
    }
}

fn lives_in(pid: i32, home: DirectoryId) -> bool {
    let info: Option<libc::proc_vnodepathinfo> = ask(pid, libc::PROC_PIDVNODEPATHINFO);
    info.is_some_and(|info| {
        let stat = info.pvi_cdir.vip_vi.vi_stat;
        DirectoryId { device: u64::from(stat.vst_dev), inode: stat.vst_ino } == home
    })
}

#[allow(unsafe_code)]
fn runs(pid: i32, program: &std::ffi::CStr) -> bool {
    let mut path = [0_u8; 4096];
    let size = u32::try_from(path.len()).unwrap_or(0);
    // SAFETY: the buffer is as long as is said, and the call writes only into it.
    let length = unsafe { libc::proc_pidpath(pid, path.as_mut_ptr().cast(), size) };
    usize::try_from(length).is_ok_and(|length| path.get(..length).is_some_and(|path| is_program(path, program)))
}

/// The user on the other side of a unix socket.
///
/// # Errors
/// When the system does not tell.
#[allow(unsafe_code)]
pub fn peer_uid(socket: &std::os::unix::net::UnixStream) -> std::io::Result<u32> {
    use std::os::fd::AsRawFd;
    let (mut uid, mut gid) = (0, 0);
    // SAFETY: the descriptor is open, and both addresses are those of numbers of the right type.
    match unsafe { libc::getpeereid(socket.as_raw_fd(), &raw mut uid, &raw mut gid) } {
        0 => Ok(uid),
        _ => Err(std::io::Error::last_os_error()),
    }
}
