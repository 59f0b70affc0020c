//! The router alone: the test speaks for the record, for the majority, and for the servers behind it.
//!
//! What a real cluster does not do on demand: a server that stays when its term ends, one that stops answering, a
//! client behind a proxy. Messages are written and read byte by byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use howdah::cluster::records::MemberRecord;
use howdah::cluster::{ClusterRecord, Versioned};
use howdah::config::ClusterSettings;
use howdah::config::node::RouterConfig;
use howdah::router::{Confirm, Listeners, Router, Source};
use howdah::types::LeaseId;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(30);

const READY: &[u8] = b"Z\0\0\0\x05I";
const IN_TRANSACTION: &[u8] = b"Z\0\0\0\x05T";
const KEY: &[u8] = b"K\0\0\0\x0c\0\0\0\x07abcd";
const QUERY: &[u8] = b"Q\0\0\0\x0dselect 1\0";

/// StartupMessage of protocol 3.0 with a user.
fn startup() -> Vec<u8> {
    let words = b"user\0u\0\0";
    let mut all = u32::try_from(words.len() + 8).unwrap().to_be_bytes().to_vec();
    all.extend((3u32 << 16).to_be_bytes());
    all.extend(words);
    all
}

/// A server that the test plays: its listener, as a member of the record.
struct Server {
    listener: TcpListener,
    port: u16,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        Self { listener, port }
    }

    async fn accept(&self) -> TcpStream {
        timeout(LIMIT, self.listener.accept()).await.expect("a connection in time").unwrap().0
    }

    /// Accepts a session and lets it in.
    async fn welcome(&self) -> TcpStream {
        let mut stream = self.accept().await;
        expect(&mut stream, &startup()).await;
        stream.write_all(b"R\0\0\0\x08\0\0\0\0").await.unwrap();
        stream.write_all(&[KEY, READY].concat()).await.unwrap();
        stream
    }
}

/// Reads exactly these bytes.
async fn expect(stream: &mut TcpStream, bytes: &[u8]) {
    let mut read = vec![0; bytes.len()];
    timeout(LIMIT, stream.read_exact(&mut read)).await.expect("bytes in time").expect("bytes");
    assert_eq!(String::from_utf8_lossy(&read), String::from_utf8_lossy(bytes));
}

/// Reads to the end; an error when it was a reset.
async fn rest(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut all = Vec::new();
    timeout(LIMIT, stream.read_to_end(&mut all)).await.expect("an end in time")?;
    Ok(String::from_utf8_lossy(&all).into_owned())
}

fn member(port: u16, role: &str, state: &str) -> MemberRecord {
    MemberRecord {
        conn_url: format!("postgres://127.0.0.1:{port}/postgres"),
        role: role.to_owned(),
        state: state.to_owned(),
        replication_state: (role == "replica").then(|| "streaming".to_owned()),
        ..MemberRecord::default()
    }
}

fn at<T>(revision: i64, value: T) -> Versioned<T> {
    Versioned { value, create_revision: revision, mod_revision: revision, lease: LeaseId(1) }
}

/// `leader` leads in `term`; members are (name, port, role, state).
fn record(leader: &str, term: i64, members: &[(&str, u16, &str, &str)]) -> Arc<ClusterRecord> {
    let mut record = ClusterRecord { leader: Some(at(term, leader.parse().unwrap())), ..ClusterRecord::default() };
    for (name, port, role, state) in members {
        record.members.insert(name.parse().unwrap(), at(term + 1, member(*port, role, state)));
    }
    Arc::new(record)
}

struct World {
    record: watch::Sender<Arc<ClusterRecord>>,
    majority: Arc<AtomicBool>,
    router: Router,
    primary: SocketAddr,
    replicas: SocketAddr,
}

impl World {
    async fn start(change: impl FnOnce(&mut RouterConfig)) -> Self {
        let listener = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (to_primary, to_replicas) = (listener().await, listener().await);
        let (primary, replicas) = (to_primary.local_addr().unwrap(), to_replicas.local_addr().unwrap());
        let mut config = RouterConfig {
            listen: Some(primary.to_string().parse().unwrap()),
            listen_replicas: Some(replicas.to_string().parse().unwrap()),
            hold_timeout: LIMIT,
            drain_timeout: LIMIT,
            maximum_lag: None,
            fallback_to_primary: false,
            max_connections: 100,
            allowlist: Vec::new(),
            proxy_protocol: Vec::new(),
        };
        change(&mut config);
        let (record, watched) = watch::channel(Arc::new(ClusterRecord::default()));
        let majority = Arc::new(AtomicBool::new(true));
        let heard = Arc::clone(&majority);
        let confirm: Confirm = Arc::new(move || {
            let heard = heard.load(Ordering::SeqCst);
            Box::pin(async move { heard })
        });
        let (mut settings, _) = ClusterSettings::parse(&json!({})).unwrap();
        (settings.ttl, settings.loop_wait) = (Duration::from_millis(800), Duration::from_millis(100));
        let listeners = Listeners { primary: vec![to_primary], replicas: vec![to_replicas] };
        let router = Router::start(config, listeners, Source { record: watched, confirm }, &settings);
        Self { record, majority, router, primary, replicas }
    }

    fn lead(&self, leader: &str, term: i64, members: &[(&str, u16, &str, &str)]) {
        self.record.send_replace(record(leader, term, members));
    }

    /// A client and the server's end of its session, idle.
    async fn session(&self, address: SocketAddr, server: &Server) -> (TcpStream, TcpStream) {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(&startup()).await.unwrap();
        let server = server.welcome().await;
        expect(&mut client, b"R\0\0\0\x08\0\0\0\0").await;
        expect(&mut client, KEY).await;
        expect(&mut client, READY).await;
        (client, server)
    }

    async fn until(&self, what: &str, condition: impl Fn(&Router) -> bool) {
        let waited = timeout(LIMIT, async {
            while !condition(&self.router) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(waited.await.is_ok(), "waited in vain until {what}: {:?}", self.router.status());
    }
}

#[tokio::test]
async fn when_a_term_ends_its_sessions_are_reset_though_the_server_stays() {
    let (world, one, two) = (World::start(|_| ()).await, Server::start().await, Server::start().await);
    world.lead("n1", 10, &[("n1", one.port, "primary", "running")]);
    let (mut client, mut server) = world.session(world.primary, &one).await;
    client.write_all(QUERY).await.unwrap();
    expect(&mut server, QUERY).await;
    world.lead("n2", 20, &[("n1", one.port, "primary", "running"), ("n2", two.port, "replica", "running")]);
    let error = rest(&mut client).await.expect_err("cut off, not closed");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(rest(&mut server).await.is_err(), "the server's end, too");
    // The next client waits for the new primary's word, and goes there and nowhere else.
    let mut next = TcpStream::connect(world.primary).await.unwrap();
    next.write_all(&startup()).await.unwrap();
    let held = |router: &Router| router.status().primary.unwrap().held == 1;
    world.until("the client is held", held).await;
    world.lead("n2", 20, &[("n1", one.port, "primary", "running"), ("n2", two.port, "primary", "running")]);
    let _server = two.welcome().await;
    expect(&mut next, b"R").await;
    let status = world.router.status().primary.unwrap();
    let counts: Vec<_> = status.backends.iter().map(|b| (b.name.as_str(), b.sessions, b.reset_total)).collect();
    assert_eq!(counts, [("n1", 0, 1), ("n2", 1, 0)]);
}

#[tokio::test]
async fn without_a_majority_writers_are_reset_and_readers_stay() {
    let (world, one, two) = (World::start(|_| ()).await, Server::start().await, Server::start().await);
    world.lead("n1", 10, &[("n1", one.port, "primary", "running"), ("n2", two.port, "replica", "running")]);
    let (mut writer, _one) = world.session(world.primary, &one).await;
    let (mut reader, mut two) = world.session(world.replicas, &two).await;
    world.majority.store(false, Ordering::SeqCst);
    assert!(rest(&mut writer).await.is_err(), "cut off");
    reader.write_all(QUERY).await.unwrap();
    expect(&mut two, QUERY).await;
    assert!(world.router.status().primary.unwrap().waits_for.unwrap().contains("has not heard a majority"));
}

#[tokio::test]
async fn a_planned_change_ends_sessions_at_their_boundary() {
    let (world, one) = (World::start(|_| ()).await, Server::start().await);
    world.lead("n1", 10, &[("n1", one.port, "primary", "running")]);
    let (mut idle, mut of_idle) = world.session(world.primary, &one).await;
    let (mut busy, mut of_busy) = world.session(world.primary, &one).await;
    busy.write_all(QUERY).await.unwrap();
    expect(&mut of_busy, QUERY).await;
    world.lead("n1", 10, &[("n1", one.port, "primary", "stopping")]);
    let said = rest(&mut idle).await.expect("told, not cut off");
    assert!(said.contains("57P01") && said.contains("n1 hands over to another node"), "{said}");
    assert_eq!(rest(&mut of_idle).await.expect("closed in order"), "X\0\0\0\x04");
    // In a transaction it goes on, through an answer and another query, to the end of the transaction.
    of_busy.write_all(IN_TRANSACTION).await.unwrap();
    expect(&mut busy, IN_TRANSACTION).await;
    busy.write_all(QUERY).await.unwrap();
    expect(&mut of_busy, QUERY).await;
    of_busy.write_all(READY).await.unwrap();
    expect(&mut busy, READY).await;
    let said = rest(&mut busy).await.expect("told, not cut off");
    assert!(said.contains("57P01"), "{said}");
    assert_eq!(world.router.status().primary.unwrap().backends[0].drained_total, 2);
}

#[tokio::test]
async fn stragglers_are_cut_off_and_a_change_that_does_not_come_lets_clients_in() {
    let world = World::start(|config| config.drain_timeout = Duration::from_millis(100)).await;
    let one = Server::start().await;
    world.lead("n1", 10, &[("n1", one.port, "primary", "running")]);
    let (mut busy, mut of_busy) = world.session(world.primary, &one).await;
    busy.write_all(QUERY).await.unwrap();
    expect(&mut of_busy, QUERY).await;
    world.lead("n1", 10, &[("n1", one.port, "primary", "stopping")]);
    assert!(rest(&mut busy).await.is_err(), "cut off");
    let mut held = TcpStream::connect(world.primary).await.unwrap();
    held.write_all(&startup()).await.unwrap();
    world.until("a client is held", |router| router.status().primary.unwrap().held == 1).await;
    world.lead("n1", 10, &[("n1", one.port, "primary", "running")]);
    let _server = one.welcome().await;
    expect(&mut held, b"R").await;
}

#[tokio::test]
async fn a_server_that_starts_or_vanishes_is_tried_again() {
    let (world, one) = (World::start(|_| ()).await, Server::start().await);
    world.lead("n1", 10, &[("n1", one.port, "primary", "running")]);
    let mut client = TcpStream::connect(world.primary).await.unwrap();
    client.write_all(&startup()).await.unwrap();
    let mut first = one.accept().await;
    expect(&mut first, &startup()).await;
    first.write_all(&howdah::router::startup::fatal("57P03", "the database system is starting up")).await.unwrap();
    drop(first);
    let mut second = one.accept().await;
    expect(&mut second, &startup()).await;
    drop(second);
    let _third = one.welcome().await;
    expect(&mut client, b"R").await;
    let backend = world.router.status().primary.unwrap().backends.remove(0);
    assert_eq!((backend.failed_total, backend.sessions_total), (2, 1));
}

#[tokio::test]
async fn who_asks_for_encryption_is_told_in_words_that_a_client_understands() {
    let world = World::start(|config| config.hold_timeout = Duration::from_millis(50)).await;
    let mut client = TcpStream::connect(world.primary).await.unwrap();
    client.write_all(b"\0\0\0\x08\x04\xd2\x16\x2f").await.unwrap();
    expect(&mut client, b"N").await;
    client.write_all(&startup()).await.unwrap();
    let said = rest(&mut client).await.unwrap();
    assert!(said.contains("57P03") && said.contains("no node leads the cluster"), "{said}");
    let mut reader = TcpStream::connect(world.replicas).await.unwrap();
    reader.write_all(&startup()).await.unwrap();
    let said = rest(&mut reader).await.unwrap();
    assert!(said.contains("no connection to a replica within 0.05 s: no replica runs"), "{said}");
}

#[tokio::test]
async fn a_refused_encryption_goes_on_with_the_same_server() {
    let (world, one) = (World::start(|_| ()).await, Server::start().await);
    world.lead("n1", 10, &[("n1", one.port, "primary", "running")]);
    let mut client = TcpStream::connect(world.primary).await.unwrap();
    let question = b"\0\0\0\x08\x04\xd2\x16\x2f";
    client.write_all(question).await.unwrap();
    let mut server = one.accept().await;
    expect(&mut server, question).await;
    server.write_all(b"N").await.unwrap();
    expect(&mut client, b"N").await;
    client.write_all(&startup()).await.unwrap();
    expect(&mut server, &startup()).await;
    // And granted: everything behind it is the client's and the server's own affair.
    let mut client = TcpStream::connect(world.primary).await.unwrap();
    client.write_all(question).await.unwrap();
    let mut server = one.accept().await;
    expect(&mut server, question).await;
    server.write_all(b"S").await.unwrap();
    expect(&mut client, b"S").await;
    client.write_all(b"\x16\x03\x01 anything").await.unwrap();
    expect(&mut server, b"\x16\x03\x01 anything").await;
    // TLS at once, without a question.
    let mut client = TcpStream::connect(world.primary).await.unwrap();
    client.write_all(b"\x16\x03\x01\x02\0\x01\0\x01and more").await.unwrap();
    let mut server = one.accept().await;
    expect(&mut server, b"\x16\x03\x01\x02\0\x01\0\x01and more").await;
}

#[tokio::test]
async fn the_port_for_reads_leads_to_the_primary_only_if_it_may() {
    let (world, one) = (World::start(|config| config.fallback_to_primary = true).await, Server::start().await);
    world.lead("n1", 10, &[("n1", one.port, "primary", "running")]);
    let (mut reader, _server) = world.session(world.replicas, &one).await;
    // It writes where the primary writes, so it ends with the term.
    world.record.send_replace(Arc::new(ClusterRecord::default()));
    assert!(rest(&mut reader).await.is_err(), "cut off");
}

#[tokio::test]
async fn a_cancel_request_goes_where_its_session_is() {
    let (world, one, two) = (World::start(|_| ()).await, Server::start().await, Server::start().await);
    let members = [("n1", one.port, "primary", "running"), ("n2", two.port, "replica", "running")];
    world.lead("n1", 10, &members);
    let (_client, _server) = world.session(world.replicas, &two).await;
    let request = b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x07abcd";
    // On the other port: the key alone tells.
    let mut canceler = TcpStream::connect(world.primary).await.unwrap();
    canceler.write_all(request).await.unwrap();
    let mut received = two.accept().await;
    expect(&mut received, request).await;
    drop(received);
    assert_eq!(rest(&mut canceler).await.unwrap(), "");
    assert_eq!(world.router.status().primary.unwrap().cancels_total, 1);
}

#[tokio::test]
async fn the_proxy_says_who_the_client_is() {
    let networks = |text: &str| vec![text.parse().unwrap()];
    let world = World::start(|config| {
        config.proxy_protocol = networks("127.0.0.1");
        config.allowlist = networks("10.0.0.0/8");
    })
    .await;
    let one = Server::start().await;
    world.lead("n1", 10, &[("n1", one.port, "primary", "running")]);
    let header = |first: u8| {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
        header.extend([first, 1, 2, 3, 10, 0, 0, 1, 0x30, 0x39, 0x13, 0x88]);
        header
    };
    let mut client = TcpStream::connect(world.primary).await.unwrap();
    client.write_all(&[header(10), startup()].concat()).await.unwrap();
    let _server = one.welcome().await;
    expect(&mut client, b"R").await;
    // Somebody from elsewhere, and somebody who does not say who he is.
    for bytes in [[header(11), startup()].concat(), startup()] {
        let mut client = TcpStream::connect(world.primary).await.unwrap();
        client.write_all(&bytes).await.unwrap();
        assert_eq!(rest(&mut client).await.unwrap_or_default(), "");
    }
    assert_eq!(world.router.status().primary.unwrap().refused_total, 2);
}

#[tokio::test]
async fn a_router_that_stops_ends_what_is_idle_politely() {
    let (world, one) = (World::start(|_| ()).await, Server::start().await);
    world.lead("n1", 10, &[("n1", one.port, "primary", "running")]);
    let (mut idle, _of_idle) = world.session(world.primary, &one).await;
    let (mut busy, mut of_busy) = world.session(world.primary, &one).await;
    busy.write_all(QUERY).await.unwrap();
    expect(&mut of_busy, QUERY).await;
    let router = world.router.clone();
    let stopping = tokio::spawn(async move { router.stop().await });
    let said = rest(&mut idle).await.expect("told");
    assert!(said.contains("57P01") && said.contains("this router stops"), "{said}");
    assert!(rest(&mut busy).await.is_err(), "cut off");
    timeout(LIMIT, stopping).await.expect("stops in time").unwrap();
}

#[tokio::test]
async fn large_answers_and_slow_readers_lose_nothing() {
    let (world, one) = (World::start(|_| ()).await, Server::start().await);
    world.lead("n1", 10, &[("n1", one.port, "primary", "running")]);
    let (mut client, mut server) = world.session(world.primary, &one).await;
    let size = 24 << 20;
    let (done, mut ended) = mpsc::channel(1);
    tokio::spawn(async move {
        let row: Vec<u8> = [b"d".as_slice(), &65_540u32.to_be_bytes()].concat();
        let mut sent = 0usize;
        while sent < size {
            let body: Vec<u8> = (0..65_536usize).map(|at| ((sent + at) % 251) as u8).collect();
            server.write_all(&[row.as_slice(), &body].concat()).await.unwrap();
            sent += body.len();
        }
        server.write_all(READY).await.unwrap();
        done.send(server).await.unwrap();
    });
    let mut received = 0usize;
    while received < size {
        let mut message = vec![0; 5 + 65_536];
        timeout(LIMIT, client.read_exact(&mut message)).await.expect("in time").unwrap();
        assert_eq!(message[0], b'd');
        assert!(message[5..].iter().enumerate().all(|(at, byte)| *byte == ((received + at) % 251) as u8));
        received += 65_536;
    }
    expect(&mut client, READY).await;
    let _server = ended.recv().await;
    // Still followed: the boundary is found.
    world.lead("n1", 10, &[("n1", one.port, "primary", "stopping")]);
    assert!(rest(&mut client).await.expect("told").contains("57P01"));
}
