//! A network that a test can break: each node is a host of its own, and the test is the switch between them.
//!
//! ```text
//! n1 10.77.0.1 --wire--+
//! n2 10.77.0.2 --wire--+-- switch: a thread of the test, with a table     clients 10.77.0.4: the test's own thread
//! n3 10.77.0.3 --wire--+           that the test changes as it goes       and whatever it starts
//! ```
//! No traffic control, no firewall and no names are needed, so that nothing can be left behind. What it needs is Linux,
//! root and `/dev/net/tun`; without them a test says so and is skipped. Clients are never cut off: they see what each node
//! does, whether or not the nodes see each other.

use std::fs::File;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::{Ground, Options};
use crate::report::measured;

#[path = "network/cuts.rs"]
mod cuts;
#[path = "network/proof.rs"]
mod proof;
#[path = "network/rounds.rs"]
pub mod rounds;
#[path = "network/switch.rs"]
mod switch;
#[path = "network/weather.rs"]
mod weather;
#[path = "network/wire.rs"]
pub mod wire;

use switch::{Switch, Traffic, Weather};
use wire::Host;

/// A network of some nodes and one host for clients, which is the thread that uses it.
pub struct Lan {
    nodes: Vec<Arc<Host>>,
    switch: Switch,
}

/// Which packets of a node are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Those to it and those from it.
    Both,
    /// Those to it: it is heard, and hears nobody.
    Deaf,
    /// Those from it: it hears everybody, and nobody hears it.
    Mute,
}

impl Lan {
    /// Runs a test in a thread of its own, which becomes the clients' host. Skipped where there can be no such network.
    pub fn with(title: &str, nodes: u8, test: impl FnOnce(&Lan) + Send + 'static) {
        if let Some(why) = obstacle() {
            measured(&format!("{title}: SKIPPED: {why}"));
            return;
        }
        let seed = std::env::var("NETWORK_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
        measured(&format!("{title}: NETWORK_SEED={seed}"));
        let work = move || {
            let mut wires = Vec::new();
            let nodes = (1..=nodes).map(|number| {
                let settled = std::thread::spawn(move || wire::settle(address(number))).join();
                let (host, wire) = settled.expect("settling does not panic").expect("a network namespace");
                wires.push(wire);
                Arc::new(host)
            });
            let nodes: Vec<Arc<Host>> = nodes.collect();
            let clients = u8::try_from(nodes.len() + 1).expect("a handful of hosts");
            let (_here, wire) = wire::settle(address(clients)).expect("a network namespace");
            wires.push(wire);
            test(&Lan { nodes, switch: Switch::start(wires, seed) });
        };
        let thread = std::thread::Builder::new().name(title.to_owned()).spawn(work).expect("a thread");
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }

    /// What a cluster on this network is made with.
    pub fn options(&self) -> Options {
        let grounds = self.nodes.iter().map(|host| Arc::clone(host) as Arc<dyn Ground>).collect();
        Options { nodes: self.nodes.len(), grounds, ..Options::default() }
    }

    fn names(&self) -> impl Iterator<Item = u8> {
        1..=u8::try_from(self.nodes.len()).expect("a handful of hosts")
    }

    /// Cuts a node off from all other nodes.
    pub fn cut_off(&self, node: &str, cut: Cut) {
        let one = number(node);
        for other in self.names().filter(|other| *other != one) {
            if cut != Cut::Mute {
                self.switch.cut((other, one));
            }
            if cut != Cut::Deaf {
                self.switch.cut((one, other));
            }
        }
    }

    /// Cuts two nodes off from each other; everybody else still hears both.
    pub fn cut_between(&self, one: &str, other: &str) {
        let (one, other) = (number(one), number(other));
        self.switch.cut((one, other));
        self.switch.cut((other, one));
    }

    /// Everybody hears everybody.
    pub fn heal(&self) {
        self.switch.heal();
    }

    /// The weather on every link between nodes; clients keep theirs.
    pub fn set_weather(&self, weather: Weather) {
        for from in self.names() {
            for to in self.names().filter(|to| *to != from) {
                self.switch.set_weather((from, to), weather);
            }
        }
    }

    /// Packets between nodes so far.
    pub fn traffic(&self) -> Traffic {
        let clients = self.nodes.len() + 1;
        let between = self.switch.traffic().into_iter().filter(|((from, to), _)| usize::from(*from.max(to)) < clients);
        between.fold(Traffic::default(), |sum, (_, one)| Traffic {
            forwarded: sum.forwarded + one.forwarded,
            dropped: sum.dropped + one.dropped,
        })
    }
}

/// Why there can be no such network here.
pub fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces are for root".to_owned());
    }
    File::open("/dev/net/tun").err().map(|error| format!("open /dev/net/tun: {error}"))
}

/// `n2` is host 2.
fn number(node: &str) -> u8 {
    node.trim_start_matches('n').parse().expect("a node's name")
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, number)
}

/// `make soak` does more of everything.
pub fn soak() -> bool {
    std::env::var_os("SOAK").is_some()
}

/// How long a soak lets something last: ten minutes, or as many seconds as `SOAK_SECONDS` says.
pub fn soak_span() -> Duration {
    let asked = std::env::var("SOAK_SECONDS").ok().map(|text| text.parse().expect("a number of seconds"));
    Duration::from_secs(asked.unwrap_or(600))
}

/// Longer than any permit or lease of these clusters lives.
const HOLD: Duration = Duration::from_secs(6);
