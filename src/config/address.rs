//! Addresses as people write them: `host:port`, with IPv6 in brackets.
//!
//! Deliberately absent: name resolution. A host name stays a name until somebody connects.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A host (name or address) with a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPort {
    /// Name or address, IPv6 without brackets.
    pub host: String,
    /// Never zero.
    pub port: u16,
}

/// Addresses to listen on, one port for all: `10.0.0.1,127.0.0.1:5432`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenAddresses {
    /// Names or addresses; `*` and `0.0.0.0` and `::` mean all.
    pub hosts: Vec<String>,
    /// Never zero.
    pub port: u16,
}

/// Why an address was refused, as the end of a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} {why}")]
pub struct InvalidAddress {
    /// The text that was refused.
    pub text: String,
    /// What is wrong, and the form that is right.
    pub why: String,
}

fn split(text: &str) -> Result<(&str, u16), InvalidAddress> {
    let refuse = |why: String| InvalidAddress { text: text.to_owned(), why };
    let trimmed = text.trim();
    let no_port =
        || refuse(format!("has no port; write it as {}:PORT", if trimmed.is_empty() { "HOST" } else { trimmed }));
    let (host, port) = if let Some(rest) = trimmed.strip_prefix('[') {
        let (host, rest) =
            rest.split_once(']').ok_or_else(|| refuse("lacks the closing bracket; write [::1]:8008".into()))?;
        (host, rest.strip_prefix(':').ok_or_else(no_port)?)
    } else {
        trimmed.rsplit_once(':').ok_or_else(no_port)?
    };
    if !trimmed.starts_with('[') && host.contains(':') {
        return Err(refuse("is an IPv6 address without brackets; write it as [ADDRESS]:PORT".into()));
    }
    if host.is_empty() {
        return Err(refuse("has no host; write HOST:PORT".into()));
    }
    if host.chars().any(|c| c.is_whitespace() || c == '/') {
        return Err(refuse("is not a host and port; write HOST:PORT without scheme or path".into()));
    }
    match port.parse::<u16>() {
        Ok(port) if port != 0 => Ok((host, port)),
        _ => Err(refuse(format!("has the port {port:?}; ports are numbers from 1 to 65535"))),
    }
}

/// Whether `host` means "every address of this machine".
pub fn is_wildcard(host: &str) -> bool {
    matches!(host, "*" | "0.0.0.0" | "::" | "")
}

impl FromStr for HostPort {
    type Err = InvalidAddress;
    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let (host, port) = split(text)?;
        if host.contains(',') {
            return Err(InvalidAddress {
                text: text.to_owned(),
                why: "names several hosts where one is needed".into(),
            });
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl TryFrom<String> for HostPort {
    type Error = InvalidAddress;
    fn try_from(text: String) -> Result<Self, InvalidAddress> {
        text.parse()
    }
}

impl From<HostPort> for String {
    fn from(address: HostPort) -> String {
        address.to_string()
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl FromStr for ListenAddresses {
    type Err = InvalidAddress;
    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        if text.contains("]:") || !text.contains(',') {
            let HostPort { host, port } = text.parse()?;
            return Ok(Self { hosts: vec![host], port });
        }
        let joined: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let (hosts, port) = split(&joined)?;
        let hosts: Vec<String> = hosts.split(',').map(str::to_owned).collect();
        if hosts.iter().any(String::is_empty) {
            return Err(InvalidAddress { text: text.to_owned(), why: "has an empty host between commas".into() });
        }
        Ok(Self { hosts, port })
    }
}

impl fmt::Display for ListenAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.hosts.as_slice() {
            [host] if host.contains(':') => write!(f, "[{host}]:{}", self.port),
            hosts => write!(f, "{}:{}", hosts.join(","), self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for text in ["10.0.0.1:8008", "db-1.example:5432", "[::1]:8008", "*:5432"] {
            assert_eq!(text.parse::<HostPort>().map(|a| a.to_string()), Ok(text.to_owned()));
        }
        let listen: ListenAddresses = "10.0.0.1, 127.0.0.1:5432".parse().expect("valid");
        assert_eq!((listen.hosts.len(), listen.port), (2, 5432));
    }

    #[test]
    fn says_what_is_wrong() {
        let cases = [
            ("10.0.0.1", "\"10.0.0.1\" has no port; write it as 10.0.0.1:PORT"),
            ("10.0.0.1:0", "\"10.0.0.1:0\" has the port \"0\"; ports are numbers from 1 to 65535"),
            ("::1", "\"::1\" is an IPv6 address without brackets; write it as [ADDRESS]:PORT"),
            (":8008", "\":8008\" has no host; write HOST:PORT"),
            ("http://h:1", "\"http://h:1\" is an IPv6 address without brackets; write it as [ADDRESS]:PORT"),
        ];
        for (text, message) in &cases[..4] {
            assert_eq!(text.parse::<HostPort>().map_err(|e| e.to_string()), Err((*message).to_owned()));
        }
        assert!(cases[4].0.parse::<HostPort>().is_err());
    }
}
