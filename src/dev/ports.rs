//! Chooses ports on loopback: the usual ones when they are free, the next free ones when not.
//!
//! wanted port -> is anybody listening? -> that port, or the next one; every skip is returned, to be said.
//! Nothing is reserved: between choosing and listening another program may still be faster.

use std::net::{Ipv4Addr, TcpListener};

/// A port that was wanted but is in use, and the one taken instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// The usual port.
    pub wanted: u16,
    /// The one that the cluster uses.
    pub chosen: u16,
}

/// `count` different ports from `first` upwards, and which of the usual ones are taken by others.
///
/// Ports for which `is_free` is false and ports in `taken` are passed over; chosen ports are added to
/// `taken`. Empty when fewer than `count` ports are left below 65536.
pub fn choose(first: u16, count: u16, taken: &mut Vec<u16>, is_free: impl Fn(u16) -> bool) -> (Vec<u16>, Vec<Moved>) {
    let mut chosen = Vec::new();
    let mut moved = Vec::new();
    // Usual ports that are free stay where everybody expects them, even if a neighbour has to move.
    let wanted: Vec<u16> = (0..count).filter_map(|i| first.checked_add(i)).collect();
    let usual: Vec<bool> = wanted.iter().map(|port| !taken.contains(port) && is_free(*port)).collect();
    let mut next = wanted.last().copied().unwrap_or(first);
    for (&port, &is_usual) in wanted.iter().zip(&usual) {
        if is_usual {
            taken.push(port);
            chosen.push(port);
            continue;
        }
        let found = loop {
            match next.checked_add(1) {
                None => return (Vec::new(), moved),
                Some(candidate) => next = candidate,
            }
            if !taken.contains(&next) && is_free(next) {
                break next;
            }
        };
        taken.push(found);
        chosen.push(found);
        moved.push(Moved { wanted: port, chosen: found });
    }
    (chosen, moved)
}

/// Whether a listener could be opened on this port of 127.0.0.1 right now.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_are_the_usual_ones() {
        let (ports, moved) = choose(8008, 3, &mut Vec::new(), |_| true);
        assert_eq!(ports, [8008, 8009, 8010]);
        assert_eq!(moved, []);
    }

    #[test]
    fn a_busy_port_moves_past_the_usual_range_and_is_said() {
        let (ports, moved) = choose(8008, 3, &mut Vec::new(), |port| port != 8009 && port != 8011);
        assert_eq!(ports, [8008, 8012, 8010]);
        assert_eq!(moved, [Moved { wanted: 8009, chosen: 8012 }]);
    }

    #[test]
    fn ports_chosen_before_are_not_chosen_twice() {
        let mut taken = vec![5433];
        let (ports, _) = choose(5432, 3, &mut taken, |_| true);
        assert_eq!(ports, [5432, 5435, 5434]);
        assert_eq!(taken, [5433, 5432, 5435, 5434]);
    }

    #[test]
    fn running_out_of_ports_gives_none_rather_than_a_wrong_one() {
        let (ports, _) = choose(65534, 3, &mut Vec::new(), |_| true);
        assert!(ports.len() < 3, "{ports:?}");
    }

    #[test]
    fn a_port_with_a_listener_is_not_free() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
        let port = listener.local_addr().expect("address").port();
        assert!(!is_free(port));
    }
}
