//! Addresses that share their first bits: `10.0.0.0/8`, or a single address.

use std::net::IpAddr;
use std::str::FromStr;

/// A network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u32,
}

/// A text that names no network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no address and no network; write 10.0.0.1 or 10.0.0.0/8")]
pub struct InvalidNetwork;

impl Network {
    /// The network of one address.
    pub fn single(address: IpAddr) -> Self {
        Self { address, bits: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Whether `other` is one of them.
    pub fn contains(self, other: IpAddr) -> bool {
        match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => self.bits == 0 || (a.to_bits() ^ b.to_bits()) >> (32 - self.bits) == 0,
            (IpAddr::V6(a), IpAddr::V6(b)) => self.bits == 0 || (a.to_bits() ^ b.to_bits()) >> (128 - self.bits) == 0,
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;
    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let Some((address, bits)) = text.split_once('/') else {
            return text.parse().map(Self::single).map_err(|_| InvalidNetwork);
        };
        let (Ok(address), Ok(bits)) = (address.parse::<IpAddr>(), bits.parse::<u32>()) else {
            return Err(InvalidNetwork);
        };
        if bits <= Self::single(address).bits { Ok(Self { address, bits }) } else { Err(InvalidNetwork) }
    }
}
