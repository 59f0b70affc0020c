//! Makes or finds the files of the cluster that `howdah dev` is about to start.
//!
//! arguments -> directory -> (moved aside if fresh) -> cluster.json, read or made with free ports
//! -> every node's files -> [`Prepared`], with all that has to be said about it. Nothing is started here.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};

use super::args::DevArgs;
use super::layout::{ClusterFile, Layout, LinkPorts, NodePaths, NodePorts, RouterPorts};
use super::node_yaml::{self, Passwords, Settings};
use super::{links, place, ports, processes};

/// The first REST port, the first PostgreSQL port, and the first port of the routers, which have two each.
const FIRST_PORTS: (u16, u16, u16) = (8008, 5432, 5000);

/// The first port of the links, two for each node. Below what the kernel gives to outgoing connections.
const FIRST_LINK: u16 = 18_008;

/// A cluster that is ready to be started.
#[derive(Debug)]
pub struct Prepared {
    /// Where it lies.
    pub layout: Layout,
    /// Its passwords.
    pub passwords: Passwords,
    /// What the user must be told.
    pub notes: Vec<String>,
    /// Whether it existed before.
    pub resumed: bool,
    /// Held as long as we run: one launcher per directory.
    pub lock: File,
}

/// Makes or finds the cluster.
///
/// # Errors
/// When the directory cannot be used, another launcher uses it, or its ports are taken.
pub fn prepare(args: &DevArgs) -> anyhow::Result<Prepared> {
    let user = place::postgres_user()?;
    let place = place::for_start(args.dir.as_deref(), user.as_ref())?;
    let mut notes: Vec<String> = place.note.into_iter().collect();
    if args.fresh && place.dir.exists() {
        // The lock tells whether another launcher is at work; it moves away with the directory.
        let _lock = lock(&place.dir)?;
        if let Some(old) = Layout::load(&place.dir).unwrap_or(None) {
            refuse_if_running(&old)?;
            links::end(&old)?;
        }
        let aside = place::move_aside(&place.dir)?;
        notes.push(format!("the old cluster is now in {} (nothing was deleted)", aside.display()));
    }
    place::create_passable(&place.dir)?;
    let lock = lock(&place.dir)?;
    let found = Layout::load(&place.dir)?;
    let resumed = found.is_some();
    let layout = match found {
        Some(layout) => {
            check_nodes(args.nodes, &layout)?;
            check_ports(&layout)?;
            layout
        }
        None => {
            let (nodes, moved) = choose_ports(args.nodes.unwrap_or(3), ports::is_free)?;
            notes.extend(moved);
            let os_user = user.as_ref().map(|user| user.name.clone());
            let layout =
                Layout { dir: place.dir, file: ClusterFile { format: 1, scope: "demo".to_owned(), os_user, nodes } };
            layout.save()?;
            layout
        }
    };
    for node in layout.nodes() {
        place::create_node_dir(&node.dir, user.as_ref())?;
    }
    let passwords = node_yaml::write_all(&layout, &Settings::default())?;
    Ok(Prepared { layout, passwords, notes, resumed, lock })
}

fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join("dev.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            bail!(
                "start the cluster in {}: another `howdah dev` runs it (see howdah dev status); \
                 stop that one with Ctrl-C, or name another --dir",
                dir.display()
            )
        }
        Err(error) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

fn refuse_if_running(layout: &Layout) -> anyhow::Result<()> {
    for node in layout.nodes() {
        let living = processes::of_node(&node);
        if !living.is_empty() {
            bail!(
                "move the old cluster aside: of {} still run {}; end them with: howdah dev kill {}",
                node.name,
                processes::describe(&living),
                node.name
            );
        }
    }
    Ok(())
}

fn check_nodes(wanted: Option<usize>, layout: &Layout) -> anyhow::Result<()> {
    let existing = layout.file.nodes.len();
    match wanted {
        Some(wanted) if wanted != existing => {
            bail!(
                "start {wanted} nodes: the cluster in {} has {existing}; add --fresh for a new one",
                layout.dir.display()
            )
        }
        _ => Ok(()),
    }
}

/// A known cluster keeps its ports, which its members know each other by. What a living process of a node
/// holds is its own.
fn check_ports(layout: &Layout) -> anyhow::Result<()> {
    for node in layout.nodes() {
        if !processes::of_node(&node).is_empty() {
            continue;
        }
        let routed = node.router.iter().flat_map(|router| [("router", router.primary), ("router", router.replicas)]);
        for (what, port) in [("REST", node.rest.port()), ("PostgreSQL", node.postgres.port())].into_iter().chain(routed)
        {
            if !ports::is_free(port) {
                bail!(
                    "start {}: its {what} port {port} is used by another program; end that program (ss -ltnp shows \
                     it), or make a new cluster on free ports with --fresh",
                    node.name
                );
            }
        }
    }
    Ok(())
}

fn choose_ports(count: usize, is_free: impl Fn(u16) -> bool) -> anyhow::Result<(Vec<NodePorts>, Vec<String>)> {
    let number = u16::try_from(count).context("count the nodes")?;
    let mut taken = Vec::new();
    let mut notes = Vec::new();
    let mut choose = |first, number, what| -> anyhow::Result<Vec<u16>> {
        let (chosen, moved) = ports::choose(first, number, &mut taken, &is_free);
        if chosen.len() != usize::from(number) {
            bail!("find free {what} ports: none left above {first}");
        }
        for ports::Moved { wanted, chosen } in moved {
            notes.push(format!("port {wanted} is in use, so {what} takes {chosen} instead"));
        }
        Ok(chosen)
    };
    let rest = choose(FIRST_PORTS.0, number, "REST")?;
    let postgres = choose(FIRST_PORTS.1, number, "PostgreSQL")?;
    let router = choose(FIRST_PORTS.2, number.saturating_mul(2), "the router")?;
    // Whose a connection is can be told on Linux alone; elsewhere links would be of no use.
    let linked =
        if cfg!(target_os = "linux") { choose(FIRST_LINK, number.saturating_mul(2), "the links")? } else { Vec::new() };
    let mut linked = linked.as_chunks().0.iter().map(|[rest, postgres]| LinkPorts { rest: *rest, postgres: *postgres });
    let nodes = rest
        .into_iter()
        .zip(postgres)
        .zip(router.as_chunks().0)
        .zip(1..)
        .map(|(((rest, postgres), [primary, replicas]), number)| NodePorts {
            name: format!("n{number}"),
            rest,
            postgres,
            router: Some(RouterPorts { primary: *primary, replicas: *replicas }),
            links: linked.next(),
            host: None,
        })
        .collect();
    Ok((nodes, notes))
}

/// The nodes of which something runs already, left behind by a launcher that was killed.
pub fn left_over(layout: &Layout) -> Vec<NodePaths> {
    layout.nodes().into_iter().filter(|node| !processes::of_node(node).is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn busy_ports_are_replaced_and_said() {
        let (nodes, notes) = choose_ports(3, |port| port != 5432).expect("enough ports");
        let numbers: Vec<(u16, u16)> = nodes.iter().map(|node| (node.rest, node.postgres)).collect();
        assert_eq!(numbers, [(8008, 5435), (8009, 5433), (8010, 5434)]);
        assert_eq!(notes, ["port 5432 is in use, so PostgreSQL takes 5435 instead"]);
    }

    #[test]
    fn one_directory_has_one_launcher() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let first = lock(dir.path()).expect("free");
        let error = lock(dir.path()).expect_err("taken").to_string();
        assert!(error.contains("another `howdah dev`"), "{error}");
        drop(first);
        lock(dir.path()).expect("free again");
    }

    #[test]
    fn a_known_cluster_with_a_stolen_port_names_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let thief = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let port = thief.local_addr().expect("address").port();
        let nodes =
            vec![NodePorts { name: "n1".to_owned(), rest: port, postgres: 1, router: None, links: None, host: None }];
        let layout = Layout {
            dir: dir.path().to_owned(),
            file: ClusterFile { format: 1, scope: "demo".to_owned(), os_user: None, nodes },
        };
        let error = check_ports(&layout).expect_err("stolen").to_string();
        assert!(error.contains(&port.to_string()) && error.contains("--fresh"), "{error}");
        assert!(check_nodes(Some(3), &layout).expect_err("one is not three").to_string().contains("--fresh"));
        assert!(check_nodes(None, &layout).is_ok());
    }
}
