//! What the nodes of a development cluster reach each other through, so that a node can be cut off without root.
//!
//! ```text
//! node n2 -> 127.0.0.1:(n1's link) -> this process -> n1's REST or PostgreSQL
//!                                        | cut: whose socket is it? a node's on either side of the cut waits
//! ```
//! One process beside the launcher, which it outlives, as the nodes do. Cut off means silence: bytes of a connection
//! that crosses the cut wait until it is healed, its end included, as on a network that drops packets. Who opened a
//! connection is asked of the kernel, and only while something is cut; people's own connections are never held.
//! Deliberately absent: delay, loss of single packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::control;
use super::layout::{Layout, write_file};
use super::processes::{self, ProcessId};

mod whose;

use whose::Owners;

/// So often it is asked whose a connection is; then it counts as nobody's.
const LOOKS: u32 = 5;
/// Between two of them.
const AGAIN: std::time::Duration = std::time::Duration::from_millis(50);
/// Largest piece that is passed on at once.
const PIECE: usize = 32 * 1024;

/// One connection that passes through.
struct Session {
    client: SocketAddr,
    here: SocketAddr,
    target: String,
    /// The node that opened it; none: nobody's, or not known yet.
    from: Option<String>,
    /// How often it was asked for without an answer.
    looks: u32,
    open: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    cut: BTreeSet<String>,
    sessions: BTreeMap<u64, Session>,
    next: u64,
}

/// The running links.
#[derive(Clone)]
struct Links {
    layout: Layout,
    state: Arc<Mutex<State>>,
}

impl State {
    /// Lets each connection pass, or not. `owners` knows nothing of connections from number `unseen` on: they came while
    /// it was read. True: of some it is not known yet whose they are; they stay as they are.
    fn judge(&mut self, owners: &Owners, unseen: u64) -> bool {
        let cut = &self.cut;
        let mut unknown = false;
        for (id, session) in &mut self.sessions {
            if !cut.is_empty() && session.from.is_none() && session.looks < LOOKS {
                if *id < unseen {
                    session.from = owners.owner(session.client, session.here);
                    session.looks += 1;
                }
                if session.from.is_none() && session.looks < LOOKS {
                    unknown = true;
                    continue;
                }
            }
            session.open.send_replace(!crosses(cut, session.from.as_deref(), &session.target));
        }
        unknown
    }

    /// Cuts a node off. Whose the others are is asked anew.
    fn cut_off(&mut self, name: &str) {
        self.cut.insert(name.to_owned());
        for session in self.sessions.values_mut() {
            session.looks = 0;
        }
    }
}

/// Whether a connection from `from` to `target` crosses the cut. A node always reaches itself.
fn crosses(cut: &BTreeSet<String>, from: Option<&str>, target: &str) -> bool {
    from.is_some_and(|from| from != target && (cut.contains(from) || cut.contains(target)))
}

impl Links {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the kernel's tables. They may be long: not on the thread that passes bytes on.
    async fn owners(&self) -> Owners {
        let layout = self.layout.clone();
        tokio::task::spawn_blocking(move || Owners::read(&layout)).await.unwrap_or_default()
    }

    /// Lets each connection pass, or not, once it is known whose it is.
    async fn judge(&self) {
        loop {
            let unseen = self.state().next;
            let owners = self.owners().await;
            if !self.state().judge(&owners, unseen) {
                return;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn obey(&self, request: &str) -> anyhow::Result<String> {
        let (verb, name) = request.split_once(' ').unwrap_or((request, ""));
        if !name.is_empty() {
            self.layout.node(name)?;
        }
        match (verb, name) {
            ("show", _) => (),
            ("cut", name) if !name.is_empty() => self.state().cut_off(name),
            ("heal", "") => self.state().cut.clear(),
            ("heal", name) => drop(self.state().cut.remove(name)),
            _ => bail!("understand {request:?}: only show, cut NODE and heal [NODE] are known"),
        }
        if verb != "show" {
            self.judge().await;
        }
        let cut: Vec<String> = self.state().cut.iter().cloned().collect();
        Ok(if cut.is_empty() { "none".to_owned() } else { cut.join(" ") })
    }

    async fn accept(self, listener: TcpListener, to: SocketAddr, target: String) {
        loop {
            match listener.accept().await {
                Ok((stream, client)) => {
                    let (links, target) = (self.clone(), target.clone());
                    tokio::spawn(async move { links.session(stream, client, to, target).await });
                }
                // Out of file descriptors, for example.
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            }
        }
    }

    async fn session(&self, client_stream: TcpStream, client: SocketAddr, to: SocketAddr, target: String) {
        let Ok(here) = client_stream.local_addr() else { return };
        let (open, gate) = watch::channel(true);
        let (id, look) = {
            let mut state = self.state();
            let id = state.next;
            state.next += 1;
            let look = !state.cut.is_empty();
            // Nothing passes before it is known whose it is.
            open.send_replace(!look);
            state.sessions.insert(id, Session { client, here, target, from: None, looks: 0, open });
            (id, look)
        };
        if look {
            self.judge().await;
        }
        pass(client_stream, to, gate).await;
        self.state().sessions.remove(&id);
    }
}

/// Resolves when bytes may pass. The sender lives as long as the session.
async fn opened(gate: &mut watch::Receiver<bool>) {
    let _ = gate.wait_for(|open| *open).await.is_ok();
}

async fn pass(client: TcpStream, to: SocketAddr, gate: watch::Receiver<bool>) {
    let mut before = gate.clone();
    opened(&mut before).await;
    let Ok(server) = TcpStream::connect(to).await else { return };
    let _ = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let there = one_way(client_read, server_write, gate.clone());
    let back = one_way(server_read, client_write, gate);
    // When one way breaks, both ends are told.
    let _ = tokio::try_join!(there, back);
    // Not across a cut, though.
    opened(&mut before).await;
}

async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut gate: watch::Receiver<bool>) -> Result<(), ()> {
    let mut piece = vec![0; PIECE];
    loop {
        opened(&mut gate).await;
        let read = from.read(&mut piece).await;
        // The cut may have come while nothing was said.
        opened(&mut gate).await;
        match read {
            Ok(0) => return to.shutdown().await.map_err(|_| ()),
            Ok(count) => to.write_all(&piece[..count]).await.map_err(|_| ())?,
            Err(_) => return Err(()),
        }
    }
}

/// Runs the links of a cluster until SIGTERM: `howdah dev links`, started by the launcher.
///
/// # Errors
/// When a port cannot be opened.
pub async fn run(layout: Layout) -> anyhow::Result<ExitCode> {
    let own = i32::try_from(std::process::id()).ok().and_then(processes::identify).context("know the own process")?;
    let links = Links { layout: layout.clone(), state: Arc::default() };
    for node in layout.nodes() {
        let Some(ports) = node.links else { bail!("link {}: it has no ports for it", node.name) };
        for (port, to) in [(ports.rest, node.rest), (ports.postgres, node.postgres)] {
            let listener =
                TcpListener::bind(("127.0.0.1", port)).await.with_context(|| format!("listen on 127.0.0.1:{port}"))?;
            tokio::spawn(links.clone().accept(listener, to, node.name.clone()));
        }
    }
    let mut requests = control::listen(&layout.links_socket())?;
    write_file(&layout.links_pid(), &format!("{} {}\n", own.pid, own.started), 0o644)?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
            Some((request, stream)) = requests.recv() => {
                let links = links.clone();
                tokio::spawn(async move {
                    let answer = links.obey(&request).await;
                    control::answer(stream, &answer).await;
                });
            }
        }
    }
}

/// Whether this cluster's nodes reach each other through links.
pub fn are_used(layout: &Layout) -> bool {
    layout.file.nodes.iter().all(|node| node.links.is_some())
}

/// The process of the links, if it lives.
pub fn running(layout: &Layout) -> Option<ProcessId> {
    processes::read_agent_pid(&layout.links_pid()).filter(|id| id.is_alive())
}

/// Starts the links unless they run, and waits until they answer. None: they ran already, or are not used.
///
/// # Errors
/// When they do not come up; the message names their log.
pub fn ensure(program: &std::path::Path, layout: &Layout) -> anyhow::Result<Option<Child>> {
    use std::os::unix::process::CommandExt;
    if !are_used(layout) || running(layout).is_some() {
        return Ok(None);
    }
    let log = layout.dir.join("links.log");
    let output = std::fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let errors = output.try_clone().with_context(|| format!("open {}", log.display()))?;
    let mut child = Command::new(program)
        .args(["dev", "--dir"])
        .arg(&layout.dir)
        .arg("links")
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {} dev links", program.display()))?;
    let deadline = crate::telemetry::clock::now() + std::time::Duration::from_secs(10);
    loop {
        if running(layout).is_some() && control::ask(&layout.links_socket(), "show").is_ok_and(|said| said.is_some()) {
            return Ok(Some(child));
        }
        let ended = matches!(child.try_wait(), Ok(Some(_)));
        if ended || deadline < crate::telemetry::clock::now() {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            let _ = child.kill();
            let _ = child.wait();
            bail!("start the links between the nodes: {} ({})", said.trim(), log.display());
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// Ends the links.
///
/// # Errors
/// When they may not be signalled.
pub fn end(layout: &Layout) -> anyhow::Result<()> {
    if let Some(id) = running(layout) {
        id.signal(rustix::process::Signal::TERM)?;
    }
    Ok(())
}

/// The nodes that are cut off; none of them when no links run.
pub fn cut_off(layout: &Layout) -> BTreeSet<String> {
    if !are_used(layout) {
        return BTreeSet::new();
    }
    match control::ask(&layout.links_socket(), "show") {
        Ok(Some(names)) if names != "none" => names.split(' ').map(str::to_owned).collect(),
        Ok(_) | Err(_) => BTreeSet::new(),
    }
}

/// Asks for a change: `cut n2`, `heal n2`, `heal`. Returns who is cut off then.
///
/// # Errors
/// When this cluster has no links, or they do not answer.
pub fn order(layout: &Layout, request: &str) -> anyhow::Result<String> {
    if !are_used(layout) {
        bail!(
            "{request}: the nodes of this cluster reach each other directly, so nothing is there to cut; \
             make a new one with: howdah dev --fresh"
        );
    }
    match control::ask(&layout.links_socket(), request)? {
        Some(answer) => Ok(answer),
        None => bail!("{request}: the links between the nodes do not run; `howdah dev` starts them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::layout::{ClusterFile, LinkPorts, NodePorts};

    #[test]
    fn a_cut_is_between_the_node_and_all_others() {
        let cut: BTreeSet<String> = ["n2".to_owned()].into();
        assert!(crosses(&cut, Some("n1"), "n2") && crosses(&cut, Some("n2"), "n1"));
        assert!(!crosses(&cut, Some("n1"), "n3") && !crosses(&cut, Some("n2"), "n2"));
        assert!(!crosses(&cut, None, "n2"), "people are not part of it");
    }

    #[test]
    fn who_opened_a_connection_is_asked_until_it_is_known() {
        let mut state = State::default();
        state.cut_off("n2");
        let (client, here) = (SocketAddr::from(([127, 0, 0, 1], 1)), SocketAddr::from(([127, 0, 0, 1], 2)));
        let connect = |state: &mut State| {
            let (open, gate) = watch::channel(false);
            let session = Session { client, here, target: "n2".to_owned(), from: None, looks: 0, open };
            state.sessions.insert(state.next, session);
            state.next += 1;
            gate
        };
        let gate = connect(&mut state);
        let (nobody, n1) = (Owners::default(), Owners::of(client, here, "n1"));
        // Read before the connection came, any number of times: that says nothing about it.
        for _ in 0..2 * LOOKS {
            assert!(state.judge(&nobody, 0) && !*gate.borrow());
        }
        // Not found at first.
        assert!(state.judge(&nobody, 1) && !*gate.borrow());
        assert!(!state.judge(&n1, 1));
        assert!(!*gate.borrow(), "it crosses the cut");
        state.cut.clear();
        assert!(!state.judge(&nobody, 1) && *gate.borrow());
        // A person's is held no longer than it takes to know that, and looked at again with the next cut.
        state.cut_off("n2");
        let gate = connect(&mut state);
        for _ in 1..LOOKS {
            assert!(state.judge(&nobody, 2) && !*gate.borrow());
        }
        assert!(!state.judge(&nobody, 2) && *gate.borrow());
        state.cut_off("n1");
        assert!(!state.judge(&n1, 2) && !*gate.borrow());
    }

    #[test]
    fn a_cluster_without_links_says_how_to_get_some() {
        let nodes = vec![NodePorts { name: "n1".to_owned(), ..NodePorts::default() }];
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = ClusterFile { format: 1, scope: "demo".to_owned(), os_user: None, nodes };
        let layout = Layout { dir: dir.path().to_owned(), file };
        let error = order(&layout, "cut n1").expect_err("no links").to_string();
        assert!(error.contains("--fresh"), "{error}");
        assert_eq!(cut_off(&layout), BTreeSet::new());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_cut_holds_bytes_back_and_healing_lets_them_go() {
        let echo = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let to = echo.local_addr().expect("address");
        tokio::spawn(async move {
            while let Ok((stream, _)) = echo.accept().await {
                let (mut read, mut write) = stream.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut read, &mut write).await });
            }
        });
        let dir = tempfile::tempdir().expect("temporary directory");
        let link = LinkPorts { rest: 1, postgres: 2 };
        let named = |name: &str| NodePorts { name: name.to_owned(), links: Some(link), ..NodePorts::default() };
        let file =
            ClusterFile { format: 1, scope: "demo".to_owned(), os_user: None, nodes: vec![named("n1"), named("n2")] };
        let layout = Layout { dir: dir.path().to_owned(), file };
        for node in layout.nodes() {
            std::fs::create_dir_all(&node.dir).expect("create");
        }
        // This test's own process stands for n1's agent.
        let own = processes::identify(i32::try_from(std::process::id()).expect("a pid")).expect("it lives");
        let n1 = layout.node("n1").expect("n1");
        processes::write_agent_pid(&n1.agent_pid, own).expect("write");
        let links = Links { layout, state: Arc::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let here = listener.local_addr().expect("address");
        tokio::spawn(links.clone().accept(listener, to, "n2".to_owned()));
        let mut stream = TcpStream::connect(here).await.expect("connect");
        let mut byte = [0];
        stream.write_all(b"a").await.expect("write");
        stream.read_exact(&mut byte).await.expect("it comes back");
        assert_eq!(links.obey("cut n2").await.expect("known"), "n2");
        stream.write_all(b"b").await.expect("write");
        let mut late = TcpStream::connect(here).await.expect("the kernel takes it");
        late.write_all(b"c").await.expect("write");
        assert!(links.obey("cut n9").await.is_err());
        // Held, although whoever is not cut has had answers meanwhile.
        let mut direct = TcpStream::connect(to).await.expect("connect");
        for _ in 0..20 {
            direct.write_all(b"d").await.expect("write");
            direct.read_exact(&mut byte).await.expect("it comes back");
        }
        for held in [&stream, &late] {
            let nothing = held.try_read(&mut byte).expect_err("a byte has crossed the cut");
            assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
        }
        assert_eq!(links.obey("heal").await.expect("known"), "none");
        stream.read_exact(&mut byte).await.expect("it comes back");
        assert_eq!(&byte, b"b");
        late.read_exact(&mut byte).await.expect("it comes back");
        assert_eq!(&byte, b"c");
    }
}
