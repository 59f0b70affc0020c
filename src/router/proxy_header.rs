//! The PROXY protocol's header, version 2: who the client is, in the words of the proxy before us.
//!
//! Source: "The PROXY protocol", section 2.2. Only sources that are configured as proxies are asked for it, and those
//! must send it: a header that may be left out could be sent by any client. Version 1 is not read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Signature, version and command, family, length of the rest.
pub const PREFIX: usize = 16;

/// Longest rest that is read; addresses take 36 bytes, the others are extensions.
const REST_MAX: usize = 2048;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// A header that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no PROXY header of version 2")]
pub struct NoHeader;

/// How many bytes follow the prefix.
///
/// # Errors
/// When it is no prefix of version 2.
pub fn rest_len(prefix: &[u8; PREFIX]) -> Result<usize, NoHeader> {
    let length = usize::from(u16::from_be_bytes([prefix[14], prefix[15]]));
    let command_known = matches!(prefix[12], 0x20 | 0x21);
    if prefix.starts_with(SIGNATURE) && command_known && length <= REST_MAX { Ok(length) } else { Err(NoHeader) }
}

/// The client's address; none when the proxy speaks for itself, or for something that has no IP address.
///
/// # Errors
/// When the addresses are cut short.
pub fn client(prefix: &[u8; PREFIX], rest: &[u8]) -> Result<Option<IpAddr>, NoHeader> {
    if prefix[12] == 0x20 {
        return Ok(None);
    }
    match prefix[13] >> 4 {
        1 if 12 <= rest.len() => {
            let source: [u8; 4] = rest.get(..4).and_then(|bytes| bytes.try_into().ok()).ok_or(NoHeader)?;
            Ok(Some(IpAddr::V4(Ipv4Addr::from(source))))
        }
        2 if 36 <= rest.len() => {
            let source: [u8; 16] = rest.get(..16).and_then(|bytes| bytes.try_into().ok()).ok_or(NoHeader)?;
            Ok(Some(IpAddr::V6(Ipv6Addr::from(source)).to_canonical()))
        }
        1 | 2 => Err(NoHeader),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(command: u8, family: u8, length: u16) -> [u8; PREFIX] {
        let mut prefix = [0; PREFIX];
        prefix[..12].copy_from_slice(SIGNATURE);
        prefix[12] = command;
        prefix[13] = family;
        prefix[14..].copy_from_slice(&length.to_be_bytes());
        prefix
    }

    #[test]
    fn the_client_is_who_the_proxy_says() {
        let four = prefix(0x21, 0x11, 12);
        assert_eq!(rest_len(&four), Ok(12));
        let rest = [10, 1, 2, 3, 10, 0, 0, 1, 0x30, 0x39, 0x13, 0x88];
        assert_eq!(client(&four, &rest), Ok(Some(IpAddr::from([10, 1, 2, 3]))));
        let mut six = [0; 36];
        six[15] = 1;
        assert_eq!(client(&prefix(0x21, 0x21, 36), &six), Ok(Some(IpAddr::V6(Ipv6Addr::LOCALHOST))));
        assert_eq!(client(&prefix(0x20, 0, 0), &[]), Ok(None), "a health check of the proxy itself");
        assert_eq!(client(&prefix(0x21, 0x31, 216), &[0; 216]), Ok(None), "a Unix socket");
    }

    #[test]
    fn what_is_no_header_is_refused() {
        assert_eq!(rest_len(b"PROXY TCP4 10.1."), Err(NoHeader), "version 1");
        assert_eq!(rest_len(&prefix(0x11, 0x11, 12)), Err(NoHeader));
        assert_eq!(rest_len(&prefix(0x21, 0x11, 9999)), Err(NoHeader));
        assert_eq!(client(&prefix(0x21, 0x11, 4), &[10, 1, 2, 3]), Err(NoHeader));
    }
}
