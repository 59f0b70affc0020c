//! Whose a connection is: from its two addresses to the node whose process has the socket.
//!
//! Linux: `/proc/net/tcp` knows each socket's inode, `/proc/PID/fd` who has it. Elsewhere nobody is found, so that nothing
//! is cut. Source: proc(5), "/proc/net/tcp" (addresses in hexadecimal, bytes of IPv4 in the machine's order).

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::dev::layout::Layout;

/// The sockets of all nodes at one moment.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// Own and other end, to the inode.
    inodes: BTreeMap<(SocketAddr, SocketAddr), u64>,
    /// Inode to the node.
    nodes: BTreeMap<u64, String>,
}

impl Owners {
    /// Reads the kernel's tables.
    #[cfg(target_os = "linux")]
    pub(super) fn read(layout: &Layout) -> Self {
        use crate::dev::{process_table, processes};
        let inodes = std::fs::read_to_string("/proc/net/tcp").map(|text| parse(&text)).unwrap_or_default();
        let table = process_table::read();
        let mut nodes = BTreeMap::new();
        for node in layout.nodes() {
            for process in processes::pick(&node, &table) {
                let Ok(files) = std::fs::read_dir(format!("/proc/{}/fd", process.id.pid)) else { continue };
                for file in files.flatten() {
                    let Ok(link) = std::fs::read_link(file.path()) else { continue };
                    let inode = link
                        .to_str()
                        .and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok());
                    if let Some(inode) = inode {
                        nodes.insert(inode, node.name.clone());
                    }
                }
            }
        }
        Self { inodes, nodes }
    }

    /// Reads nothing: this system does not tell.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn read(_layout: &Layout) -> Self {
        Self::default()
    }

    /// One socket of a node.
    #[cfg(test)]
    pub(super) fn of(own: SocketAddr, other: SocketAddr, node: &str) -> Self {
        Self { inodes: [((own, other), 1)].into(), nodes: [(1, node.to_owned())].into() }
    }

    /// The node that has the socket between `own` and `other`.
    pub(super) fn owner(&self, own: SocketAddr, other: SocketAddr) -> Option<String> {
        self.nodes.get(self.inodes.get(&(own, other))?).cloned()
    }
}

/// `sl local rem st ... inode`, a line each.
#[cfg(any(target_os = "linux", test))]
fn parse(text: &str) -> BTreeMap<(SocketAddr, SocketAddr), u64> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let inode = fields.get(9)?.parse().ok().filter(|inode| *inode != 0)?;
        Some(((address(fields.get(1)?)?, address(fields.get(2)?)?), inode))
    };
    text.lines().skip(1).filter_map(line).collect()
}

#[cfg(any(target_os = "linux", test))]
fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let host = u32::from_str_radix(host, 16).ok()?.to_ne_bytes();
    Some(SocketAddr::from((host, u16::from_str_radix(port, 16).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn the_kernels_table() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                    \x20  0: 0100007F:1F48 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 20 4 30 10 -1\n\
                    \x20  1: 0100007F:1F48 00000000:0000 06 00000000:00000000 00:00000000 00000000     0        0 0 1 0\n";
        let own = SocketAddr::from(([127, 0, 0, 1], 8008));
        let other = SocketAddr::from(([127, 0, 0, 1], 50000));
        let owners = Owners { inodes: parse(text), nodes: [(4711, "n1".to_owned())].into() };
        assert_eq!(owners.inodes.len(), 1);
        assert_eq!(owners.owner(own, other).as_deref(), Some("n1"));
        assert_eq!(owners.owner(other, own), None);
    }
}
