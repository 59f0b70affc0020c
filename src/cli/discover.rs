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
use crate::config::tls::{ClientTls, KeyPair};
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
    /// The database's superuser, from a node's file or the development cluster's.
    pub(super) superuser: Option<RoleConfig>,
    /// What a file says about TLS, whether they speak it or not.
    ctl: Option<ClientTls>,
    /// How they speak TLS; none = they do not.
    pub(super) tls: Option<ClientTls>,
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
        None => nowhere(String::new()),
    };
    let ctl = with_options(place.ctl.take().unwrap_or_default(), target);
    if !urls.is_empty() {
        let parsed = urls.iter().map(|url| parse_url(url)).collect::<Outcome<Vec<(bool, HostPort)>>>()?;
        let secure = parsed.iter().filter(|(secure, _)| *secure).count();
        if secure != 0 && secure != parsed.len() {
            let text = "--url: some begin with https:// and some do not; a cluster's nodes are spoken to in one way";
            return Err(Failure::new(exit::USAGE, text));
        }
        place.addresses = parsed.into_iter().map(|(_, address)| address).collect();
        place.tls = (secure != 0).then_some(ctl);
        place.source = "--url".to_owned();
        return Ok(place);
    }
    place.tls = place.tls.map(|_| ctl);
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
            ..nowhere("the default; name a node by --url, or its file by -c".to_owned())
        });
    }
    Ok(place)
}

fn nowhere(source: String) -> Place {
    Place { addresses: Vec::new(), credentials: None, superuser: None, ctl: None, tls: None, source }
}

/// What the command line says about certificates goes before what a file says.
fn with_options(mut tls: ClientTls, target: &Target) -> ClientTls {
    tls.insecure |= target.insecure;
    if let Some(cacert) = &target.cacert {
        tls.cacert = Some(cacert.clone());
    }
    if let Some(certfile) = &target.cert_file {
        let (certfile, keyfile) = (certfile.clone(), target.key_file.clone());
        tls.pair = Some(KeyPair { certfile, keyfile, keyfile_password: None });
    }
    tls
}

fn from_file(file: &Path, source: &str) -> Outcome<Place> {
    let config = config::load(file)
        .map_err(|error| anyhow::Error::new(error).context(format!("find the cluster by {source}")))?;
    // This machine's own node first: it is the nearest.
    let tls = config.restapi.tls.is_some().then(|| config.ctl_tls.clone());
    let own = config.restapi.connect_address;
    let others = config.raft.members.into_values().filter(|address| *address != own);
    let addresses = std::iter::once(own.clone()).chain(others).collect();
    let superuser = config.postgresql.map(|pg| pg.superuser);
    let source = format!("raft.members of {}", file.display());
    Ok(Place { addresses, credentials: config.ctl, superuser, ctl: Some(config.ctl_tls), tls, source })
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
    let superuser = dev::node_yaml::known_superuser_password(&layout)
        .map(|password| RoleConfig { username: "postgres".to_owned(), password: Some(password) });
    Ok(Some(Place { addresses, superuser, ..nowhere(source) }))
}

/// Whether it speaks TLS, and where it is.
fn parse_url(url: &str) -> Outcome<(bool, HostPort)> {
    let usage = |why: &str| Failure::new(exit::USAGE, format!("--url {url}: {why}"));
    let (secure, rest) = match url.strip_prefix("https://") {
        Some(rest) => (true, rest),
        None => (false, url.strip_prefix("http://").unwrap_or(url)),
    };
    let authority = rest.split('/').next().unwrap_or(rest);
    authority
        .parse()
        .map(|address| (secure, address))
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
        let node = |name: &str, rest| NodePorts {
            name: name.to_owned(),
            rest,
            postgres: 5432,
            router: None,
            links: None,
            host: None,
        };
        let nodes = vec![node("n1", 8008), node("n2", 8019)];
        let file = ClusterFile { format: 1, scope: "demo".to_owned(), os_user: None, nodes };
        let layout = Layout { dir: directory.path().to_owned(), file };
        layout.save().unwrap();
        let place = from_dev_cluster(directory.path()).unwrap().unwrap();
        assert!(
            place.superuser.is_none() && !directory.path().join("passwords.json").exists(),
            "a reader writes nothing"
        );
        let password = dev::node_yaml::superuser_password(&layout).unwrap();
        let superuser = from_dev_cluster(directory.path()).unwrap().unwrap().superuser.unwrap();
        assert_eq!((superuser.username.as_str(), superuser.password.unwrap().expose()), ("postgres", &password));
        let addresses: Vec<String> = place.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["127.0.0.1:8008", "127.0.0.1:8019"]);
    }

    #[test]
    fn urls() {
        let parse = |text: &str| {
            parse_url(text)
                .map(|(secure, address)| format!("{secure} {address}"))
                .map_err(|failure| failure.to_string())
        };
        assert_eq!(parse("http://10.0.0.1:8008/"), Ok("false 10.0.0.1:8008".to_owned()));
        assert_eq!(parse("https://10.0.0.1:8008"), Ok("true 10.0.0.1:8008".to_owned()));
        assert_eq!(parse("10.0.0.1:8008"), Ok("false 10.0.0.1:8008".to_owned()));
        assert_eq!(
            parse("http://10.0.0.1"),
            Err("--url http://10.0.0.1: \"10.0.0.1\" has no port; write it as 10.0.0.1:PORT; for example http://127.0.0.1:8008".to_owned())
        );
    }
}
