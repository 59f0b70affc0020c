//! Forwards packets between hosts, as a table says that can be changed at any moment.
//!
//! `wire of A -> to whom? cut? lost? -> at once, or when its delay is over -> wire of B`
//!
//! A cut drops packets of one direction and tells nobody: as a firewall does, or a broken cable. Packets of one pair keep
//! their order whatever the delay. Loss comes from a seeded generator; which packet it hits still depends on their
//! order in time. Absent: bandwidth, corruption, anything but IPv4.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use howdah::telemetry::clock;
use howdah::types::Mono;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// From one host to another; hosts are numbered from 1, as the last byte of their address.
pub type Pair = (u8, u8);

/// What happens to packets that are not cut off.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Weather {
    /// So many of a hundred are dropped, in each direction.
    pub loss_percent: f64,
    /// So long under way, in each direction.
    pub delay: Duration,
    /// Up to so much longer.
    pub jitter: Duration,
}

/// Packets of one pair so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub forwarded: u64,
    pub dropped: u64,
}

#[derive(Default)]
struct Table {
    cuts: BTreeSet<Pair>,
    weather: BTreeMap<Pair, Weather>,
    traffic: BTreeMap<Pair, Traffic>,
}

/// The running switch; its thread ends with it.
pub struct Switch {
    table: Arc<Mutex<Table>>,
    stop: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// Connects these wires; the first is host 1's.
    pub fn start(wires: Vec<File>, seed: u64) -> Self {
        let table = Arc::new(Mutex::new(Table::default()));
        let (stop, stopped) = UnixStream::pair().expect("a pair of sockets");
        let random = StdRng::seed_from_u64(seed);
        let (waiting, busy_until) = (BinaryHeap::new(), BTreeMap::new());
        let work = Work { table: Arc::clone(&table), wires, stopped, random, waiting, busy_until, number: 0 };
        let thread = std::thread::Builder::new().name("switch".to_owned()).spawn(|| work.run()).expect("a thread");
        Self { table, stop, thread: Some(thread) }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing of this pair arrives any more.
    pub fn cut(&self, pair: Pair) {
        self.table().cuts.insert(pair);
    }

    /// No pair is cut any more.
    pub fn heal(&self) {
        self.table().cuts.clear();
    }

    /// From now on, for one pair.
    pub fn set_weather(&self, pair: Pair, weather: Weather) {
        self.table().weather.insert(pair, weather);
    }

    /// What has passed so far, by pair.
    pub fn traffic(&self) -> BTreeMap<Pair, Traffic> {
        self.table().traffic.clone()
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = self.stop.write_all(b".");
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A packet under way: when it is due, its number, where it goes, its bytes.
type Waiting = Reverse<(Mono, u64, u8, Vec<u8>)>;

struct Work {
    table: Arc<Mutex<Table>>,
    wires: Vec<File>,
    stopped: UnixStream,
    random: StdRng,
    waiting: BinaryHeap<Waiting>,
    /// No packet of the pair may arrive before the one that was sent before it.
    busy_until: BTreeMap<Pair, Mono>,
    number: u64,
}

impl Work {
    fn run(mut self) {
        let mut packet = vec![0; 1 << 16];
        loop {
            self.deliver();
            let ready = self.wait();
            if ready.last() == Some(&true) {
                return;
            }
            for from in (0..self.wires.len()).filter(|place| ready[*place]) {
                // Not until it is empty: others have something to say too.
                for _ in 0..64 {
                    let Ok(length) = (&self.wires[from]).read(&mut packet) else { break };
                    self.forward(from, &packet[..length]);
                }
            }
        }
    }

    /// Waits for a packet, the next one that is due, or the end. Which wires have something; the last is the end.
    fn wait(&self) -> Vec<bool> {
        let patience = self.waiting.peek().map(|Reverse((due, ..))| due.since(clock::now()));
        let patience = patience.map(|span| Timespec::try_from(span).expect("a short time"));
        let mut polled: Vec<PollFd<'_>> = self.wires.iter().map(|wire| PollFd::new(wire, PollFlags::IN)).collect();
        polled.push(PollFd::new(&self.stopped, PollFlags::IN));
        // An interruption is a round with nothing to do.
        let _ = poll(&mut polled, patience.as_ref());
        polled.iter().map(|one| !one.revents().is_empty()).collect()
    }

    fn forward(&mut self, from: usize, packet: &[u8]) {
        let Some(to) = destination(packet).filter(|to| (1..=self.wires.len()).contains(&usize::from(*to))) else {
            return;
        };
        let pair = (u8::try_from(from + 1).expect("a handful of hosts"), to);
        let now = clock::now();
        let due = {
            let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            let Weather { loss_percent, delay, jitter } = table.weather.get(&pair).copied().unwrap_or_default();
            let dropped = table.cuts.contains(&pair) || self.random.random_range(0.0..100.0) < loss_percent;
            let traffic = table.traffic.entry(pair).or_default();
            if dropped {
                traffic.dropped += 1;
                return;
            }
            traffic.forwarded += 1;
            now + delay + jitter.mul_f64(self.random.random_range(0.0..1.0))
        };
        let due = due.max(self.busy_until.get(&pair).copied().unwrap_or(due));
        if due <= now {
            self.hand_over(to, packet);
            return;
        }
        self.busy_until.insert(pair, due);
        self.number += 1;
        self.waiting.push(Reverse((due, self.number, to, packet.to_vec())));
    }

    fn deliver(&mut self) {
        let now = clock::now();
        while self.waiting.peek().is_some_and(|Reverse((due, ..))| *due <= now) {
            if let Some(Reverse((_, _, to, packet))) = self.waiting.pop() {
                self.hand_over(to, &packet);
            }
        }
    }

    /// A host that takes nothing now loses the packet, as a host does.
    fn hand_over(&self, to: u8, packet: &[u8]) {
        let _ = (&self.wires[usize::from(to) - 1]).write(packet);
    }
}

/// The last byte of the address that an IPv4 packet is for.
fn destination(packet: &[u8]) -> Option<u8> {
    (packet.first()? >> 4 == 4).then(|| packet.get(19).copied())?
}

mod tests {
    use super::*;

    #[test]
    fn only_the_header_of_ipv4_is_understood() {
        let mut packet = vec![0; 20];
        packet[0] = 0x45;
        packet[19] = 3;
        assert_eq!(destination(&packet), Some(3));
        packet[0] = 0x60;
        assert_eq!(destination(&packet), None);
        assert_eq!(destination(&[0x45]), None);
        assert_eq!(destination(&[]), None);
    }
}
