//! Which addresses to try, and with which password.
//!
//! ```text
//! --url | HOWDAH_URL  >  -c | HOWDAH_CONFIG | PATRONICTL_CONFIG_FILE  >  what `howdah dev` runs here  >  127.0.0.1:8008
//! ```

use std::path::{Path, PathBuf};

use anyhow::anyhow;

use super::args::Target;
use super::{Failure, Outcome, exit};
use crate::config::node::{Credentials, RoleConfig};
use crate::config::{self, HostPort};
use crate::dev;
use crate::dev::layout::Layout;

/// Where to look for the cluster.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Main ports, tried in this order. Never empty.
    pub(super) addresses: Vec<HostPort>,
    /// What changes need.
    pub(super) credentials: Option<Credentials>,
    /// The database's superuser, from a node's file.
    pub(super) superuser: Option<RoleConfig>,
    /// Where the addresses come from, for messages.
    pub(super) source: String,
}

/// Finds the addresses.
pub(super) fn find(target: &Target) -> Outcome<Place> {
    let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let named = target.config_file.clone().map(|file| (file, "-c".to_owned()));
    let from_environment = || {
        ["HOWDAH_CONFIG", "PATRONICTL_CONFIG_FILE"]
            .iter()
            .find_map(|name| Some((PathBuf::from(variable(name)?), (*name).to_owned())))
    };
    let urls: Vec<String> = match variable("HOWDAH_URL") {
        Some(text) if target.urls.is_empty() && named.is_none() => text.split(',').map(str::to_owned).collect(),
        _ => target.urls.clone(),
    };
    let file = if urls.is_empty() { named.or_else(from_environment) } else { named };
    let mut place = match file {
        Some((file, source)) => from_file(&file, &source)?,
        None => Place { addresses: Vec::new(), credentials: None, superuser: None, source: String::new() },
    };
    if !urls.is_empty() {
        place.addresses = urls.iter().map(|url| parse_url(url)).collect::<Outcome<Vec<HostPort>>>()?;
        place.source = "--url".to_owned();
        return Ok(place);
    }
    if place.addresses.is_empty() {
        let mut found = None;
        for dir in dev::place::candidates(None) {
            found = from_dev_cluster(&dir)?;
            if found.is_some() {
                break;
            }
        }
        place = found.unwrap_or_else(|| Place {
            addresses: vec![HostPort { host: "127.0.0.1".to_owned(), port: 8008 }],
            credentials: None,
            superuser: None,
            source: "the default; name a node by --url, or its file by -c".to_owned(),
        });
    }
    Ok(place)
}

fn from_file(file: &Path, source: &str) -> Outcome<Place> {
    let config = config::load(file)
        .map_err(|error| anyhow::Error::new(error).context(format!("find the cluster by {source}")))?;
    // This machine's own node first: it is the nearest.
    let own = config.restapi.connect_address;
    let others = config.raft.members.into_values().filter(|address| *address != own);
    let addresses = std::iter::once(own.clone()).chain(others).collect();
    let superuser = config.postgresql.map(|pg| pg.superuser);
    Ok(Place { addresses, credentials: config.ctl, superuser, source: format!("raft.members of {}", file.display()) })
}

/// The nodes of a cluster that `howdah dev` made in this directory.
fn from_dev_cluster(dir: &Path) -> Outcome<Option<Place>> {
    let Some(layout) = Layout::load(dir)? else { return Ok(None) };
    let addresses: Vec<HostPort> =
        layout.file.nodes.iter().map(|node| HostPort { host: "127.0.0.1".to_owned(), port: node.rest }).collect();
    let source = dir.join("cluster.json").display().to_string();
    if addresses.is_empty() {
        let text = format!("read {source}: it lists no nodes; remove it, or start `howdah dev` again");
        return Err(anyhow!(text).into());
    }
    Ok(Some(Place { addresses, credentials: None, superuser: None, source }))
}

fn parse_url(url: &str) -> Outcome<HostPort> {
    let usage = |why: &str| Failure::new(exit::USAGE, format!("--url {url}: {why}"));
    if url.starts_with("https://") {
        return Err(usage("TLS is not spoken here; write http://HOST:PORT"));
    }
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let authority = rest.split('/').next().unwrap_or(rest);
    authority
        .parse()
        .map_err(|error: config::address::InvalidAddress| usage(&format!("{error}; for example http://127.0.0.1:8008")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_development_cluster_is_found_by_its_file() {
        use crate::dev::layout::{ClusterFile, NodePorts};
        let directory = tempfile::tempdir().unwrap();
        assert!(from_dev_cluster(directory.path()).unwrap().is_none());
        let node = |name: &str, rest| NodePorts { name: name.to_owned(), rest, postgres: 5432, router: None };
        let nodes = vec![node("n1", 8008), node("n2", 8019)];
        let file = ClusterFile { format: 1, scope: "demo".to_owned(), os_user: None, nodes };
        Layout { dir: directory.path().to_owned(), file }.save().unwrap();
        let place = from_dev_cluster(directory.path()).unwrap().unwrap();
        let addresses: Vec<String> = place.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["127.0.0.1:8008", "127.0.0.1:8019"]);
    }

    #[test]
    fn urls() {
        let parse =
            |text: &str| parse_url(text).map(|address| address.to_string()).map_err(|failure| failure.to_string());
        assert_eq!(parse("http://10.0.0.1:8008/"), Ok("10.0.0.1:8008".to_owned()));
        assert_eq!(parse("10.0.0.1:8008"), Ok("10.0.0.1:8008".to_owned()));
        assert_eq!(
            parse("http://10.0.0.1"),
            Err("--url http://10.0.0.1: \"10.0.0.1\" has no port; write it as 10.0.0.1:PORT; for example http://127.0.0.1:8008".to_owned())
        );
    }
}
