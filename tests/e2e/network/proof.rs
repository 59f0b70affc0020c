//! Proves that the network does what the tests believe: real sockets on it, no howdah.

use std::net::UdpSocket;
use std::time::Duration;

use crate::cluster::{Ground, now};

use super::switch::{Traffic, Weather};
use super::{Cut, Lan, address};

const PORT: u16 = 7;
/// Longer than any packet of these tests is under way.
const SILENCE: Duration = Duration::from_millis(500);
/// As many as fit into a socket until somebody reads.
const COUNT: u32 = 200;

/// A socket in a node's namespace.
fn socket(lan: &Lan, place: usize) -> UdpSocket {
    let host = std::sync::Arc::clone(&lan.nodes[place]);
    let work = move || {
        host.enter();
        let socket = UdpSocket::bind((host.address(), PORT)).expect("a port in a namespace of its own");
        socket.set_read_timeout(Some(SILENCE)).expect("a time");
        socket
    };
    std::thread::spawn(work).join().expect("binding does not panic")
}

/// Sends numbers from the one to the other; returns those that arrive, in their order.
fn send(from: &UdpSocket, to: &UdpSocket, count: u32) -> Vec<u32> {
    for number in 0..count {
        from.send_to(&number.to_be_bytes(), to.local_addr().expect("bound")).expect("sent");
    }
    let mut arrived = Vec::new();
    let mut packet = [0; 4];
    while arrived.last() != Some(&(count - 1)) && to.recv(&mut packet).is_ok() {
        arrived.push(u32::from_be_bytes(packet));
    }
    arrived
}

#[test]
fn packets_arrive_as_the_table_says() {
    Lan::with("network", 2, |lan| {
        let (one, two) = (socket(lan, 0), socket(lan, 1));
        let all: Vec<u32> = (0..COUNT).collect();
        assert_eq!(send(&one, &two, COUNT), all);
        assert_eq!(send(&two, &one, COUNT), all);

        lan.cut_off("n1", Cut::Deaf);
        assert_eq!(send(&two, &one, 3), Vec::<u32>::new());
        assert_eq!(send(&one, &two, 3), [0, 1, 2]);
        lan.heal();
        lan.cut_off("n1", Cut::Mute);
        assert_eq!(send(&one, &two, 3), Vec::<u32>::new());
        assert_eq!(send(&two, &one, 3), [0, 1, 2]);
        // The clients' host is this thread's, and hears both.
        let client = UdpSocket::bind((address(3), PORT)).expect("a port in a namespace of its own");
        client.set_read_timeout(Some(SILENCE)).expect("a time");
        assert_eq!(send(&one, &client, 3), [0, 1, 2]);
        assert_eq!(send(&client, &one, 3), [0, 1, 2]);
        lan.heal();

        let delay = Duration::from_millis(100);
        lan.set_weather(Weather { delay, jitter: delay, ..Weather::default() });
        let from = now();
        assert_eq!(send(&one, &two, COUNT), all, "a delay keeps the order");
        assert!(now().since(from) >= delay, "they were under way");

        let before = lan.traffic();
        lan.set_weather(Weather { loss_percent: 20.0, ..Weather::default() });
        let arrived = u64::try_from(send(&one, &two, COUNT).len()).expect("few");
        let Traffic { forwarded, dropped } = lan.traffic();
        let (forwarded, dropped) = (forwarded - before.forwarded, dropped - before.dropped);
        assert_eq!((arrived, forwarded + dropped), (forwarded, u64::from(COUNT)), "every packet is accounted for");
        // Five standard deviations around a fifth.
        assert!((12..=68).contains(&dropped), "{dropped} of {COUNT} lost");
    });
}
