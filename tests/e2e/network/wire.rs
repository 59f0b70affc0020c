//! One host: a network namespace without a name, and the end of its only wire.
//!
//! `unshare(network) -> lo up -> TUN device with an address -> its descriptor is the wire's other end`
//!
//! The namespace lives as long as a thread or process in it, or the descriptor in [`Host`]. Nothing is written under
//! `/run/netns`, so nothing can be left behind, however the test ends. Absent: where packets go (`switch.rs`).

use std::fs::{File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::net::{AddressFamily, SocketType};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::cluster::Ground;

/// The device's name, in every host.
const WIRE: &str = "wire";
/// Packets that wait for the switch before the kernel drops any.
const QUEUE: i32 = 10_000;

/// A network namespace that threads can enter.
#[derive(Debug)]
pub struct Host {
    address: Ipv4Addr,
    space: OwnedFd,
}

impl Ground for Host {
    fn address(&self) -> Ipv4Addr {
        self.address
    }

    fn enter(&self) {
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(self.space.as_fd(), network).expect("root may enter a network namespace");
    }
}

/// Moves the calling thread, and what it starts from now on, into a network namespace of its own. Returns it, and the
/// other end of its wire: what is read there was sent by the host, what is written there the host receives.
pub fn settle(address: Ipv4Addr) -> io::Result<(Host, File)> {
    leave(UnshareFlags::NEWNET)?;
    let space = File::open("/proc/thread-self/ns/net")?.into();
    let wire = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut device = named(WIRE);
    device.ifr_ifru.ifru_flags = short(libc::IFF_TUN | libc::IFF_NO_PI);
    ask(&wire, libc::TUNSETIFF, &mut device)?;
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    for (request, value) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, Ipv4Addr::new(255, 255, 255, 0))] {
        device.ifr_ifru.ifru_addr = internet(value);
        ask(&socket, request, &mut device)?;
    }
    device.ifr_ifru.ifru_ifindex = QUEUE;
    ask(&socket, libc::SIOCSIFTXQLEN, &mut device)?;
    for mut device in [device, named("lo")] {
        device.ifr_ifru.ifru_flags = short(libc::IFF_UP | libc::IFF_RUNNING);
        ask(&socket, libc::SIOCSIFFLAGS, &mut device)?;
    }
    Ok((Host { address, space }, wire))
}

/// Gives the calling thread something of its own that it shared before.
#[allow(unsafe_code)]
pub fn leave(what: UnshareFlags) -> io::Result<()> {
    // SAFETY: only a table of open files of its own would confuse a program, and none is asked for.
    Ok(unsafe { rustix::thread::unshare_unsafe(what) }?)
}

#[allow(unsafe_code)]
fn ask(of: &impl AsRawFd, request: impl TryInto<libc::Ioctl>, device: &mut libc::ifreq) -> io::Result<()> {
    let Ok(request) = request.try_into() else { return Err(io::Error::other("no request of this system")) };
    // SAFETY: all these requests read an ifreq, and write no more than one.
    match unsafe { libc::ioctl(of.as_raw_fd(), request, std::ptr::from_mut(device)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[allow(unsafe_code)]
fn named(name: &str) -> libc::ifreq {
    // SAFETY: all zeroes are a valid ifreq.
    let mut device: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in device.ifr_name.iter_mut().zip(name.bytes()) {
        *place = libc::c_char::try_from(byte).expect("a name in ASCII");
    }
    device
}

fn internet(address: Ipv4Addr) -> libc::sockaddr {
    let family = libc::sa_family_t::try_from(libc::AF_INET).expect("a small number");
    let mut data = [0; 14];
    // Behind the port.
    for (place, byte) in data.iter_mut().skip(2).zip(address.octets()) {
        *place = byte.cast_signed();
    }
    libc::sockaddr { sa_family: family, sa_data: data }
}

fn short(flags: libc::c_int) -> libc::c_short {
    libc::c_short::try_from(flags).expect("these flags are small")
}
