//! One running node: builds the parts, wires the channels, owns start and stop order.
//!
//! ```text
//! start: configuration -> ports -> PostgreSQL's programs -> store -> router -> guardian -> lock -> agent -> main port
//! stop:  agent hands over and stops PostgreSQL -> guardian ends -> router -> raft leadership moves -> store -> port
//! ```
//! A part that cannot start ends the start with one sentence, before the next one has changed anything.

mod control;
mod parts;
mod reload;
mod routing;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::agent::act::Actor;
use crate::agent::callbacks::Callbacks;
use crate::agent::chronicle::{ChangeLog, Chronicle};
use crate::agent::ended::EndedTerm;
use crate::agent::journal::Journal;
use crate::agent::kept::KeptSlots;
use crate::agent::local::{Local, Place};
use crate::agent::lock::{Lock, LockConfig};
use crate::agent::observe::{Observer, Sighting};
use crate::agent::orders::{Orders, Working};
use crate::agent::peers::Peers;
use crate::agent::publish::{self, Published};
use crate::agent::recorder::Recorder;
use crate::agent::snapshot::Snapshot;
use crate::agent::tick::Agent;
use crate::agent::upkeep::{Identity, Upkeep, heir};
use crate::api::{self, Access, ApiState, ExtraHeaders, Port};
use crate::cluster::ClusterRecord;
use crate::cluster::keys::KeySpace;
use crate::cluster::writes::Writes;
use crate::config::{ClusterSettings, Config};
use crate::guardian::client::{Guardian, GuardianConfig};
use crate::postgres::DataDir;
use crate::raft::{Retention, Store, StoreConfig};
use crate::telemetry::clock;
use crate::tls::Dialer;

/// How long the store may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(3);

/// Runs the node of `config` until it is told to stop.
///
/// # Errors
/// One sentence with its causes when a part cannot start. After that everything is handled inside.
pub async fn run(config: Config) -> Result<()> {
    let tls = Arc::new(tls::Tls::new(&config).context("set up TLS")?);
    let listeners = api::server::listen(&config.restapi.listen, "restapi.listen").await?;
    let etcd_listeners = match &config.etcd_listen {
        Some(addresses) => api::server::listen(addresses, "etcd.listen").await?,
        None => Vec::new(),
    };
    let dashboard_listeners = match &config.dashboard_listen {
        Some(addresses) => api::server::listen(addresses, "dashboard.listen").await?,
        None => Vec::new(),
    };
    let router_listeners = routing::listen(&config).await?;
    let instance = config.postgresql.as_ref().map(|pg| parts::instance(&config, pg)).transpose()?;
    if let Some(instance) = &instance {
        check_place(instance).await?;
    }
    let shutdown = CancellationToken::new();
    tokio::spawn(stop_on_signal(shutdown.clone()));
    let (store, raft_server) = Store::start(store_config(&config, tls.dialer.clone())?, parts::fatal_hook())
        .await
        .context("start the store")?;
    let space = KeySpace::new(&config.namespace, &config.scope);
    let mut initial = Snapshot::starting(config.scope.clone(), config.name.clone(), clock::now(), clock::wall());
    initial.postgres = config.postgresql.as_ref().map(|_| publish::unseen());
    let (snapshot_tx, snapshot) = watch::channel(Arc::new(initial));
    let asked = Arc::new(Notify::new());
    let orders = Arc::new(Orders::default());
    let access = Arc::new(Access::resolve(&config.restapi).await);
    let headers = Arc::new(ExtraHeaders::new(&config.restapi));
    let (reloader, local) = reload::Reloader::new(
        config.clone(),
        reload::AtOnce { access: access.clone(), headers: headers.clone(), tls: tls.clone() },
        asked.clone(),
    );
    let control = Arc::new(control::NodeControl {
        store: store.clone(),
        writes: Writes::new(space.clone()),
        me: config.name.clone(),
        snapshot: snapshot.clone(),
        asked: asked.clone(),
        instance: instance.clone(),
        asking: tokio::sync::Mutex::new(()),
        orders: orders.clone(),
        reloader: reloader.clone(),
    });
    let port_shutdown = CancellationToken::new();
    tokio::spawn(reload::on_signal(reloader.clone()));
    let etcd = parts::etcd(&config, &store, &space, &port_shutdown);
    let clients = routing::start(&config, router_listeners, &store, &space);
    let view = clients.clone().map(|clients| Arc::new(move || clients.status()) as api::RouterView);
    let recorder = match &config.postgresql {
        Some(_) => Recorder::with_file(&config.raft.data_dir),
        None => Recorder::default(),
    };
    let state =
        ApiState { snapshot: snapshot.clone(), control, access, router: view.clone(), recorder: recorder.clone() };
    let members = crate::raft::raft_routes(raft_server);
    let without_tls = config.raft.allow_plaintext.then(|| api::members_alone(state.clone()).merge(members.clone()));
    let people = api::routes(state).merge(crate::dashboard::routes(snapshot.clone(), view, port_shutdown.clone()));
    let people = api::headers::with_headers(people, headers);
    for listener in dashboard_listeners {
        let router = crate::dashboard::on_its_own(people.clone());
        let port = Port { router, tls: tls.main.clone(), without_tls: None };
        tokio::spawn(api::serve(listener, port, port_shutdown.clone()));
    }
    let router = people.merge(members).merge(etcd.main_port());
    let port = Port { router, tls: tls.main.clone(), without_tls };
    for listener in listeners {
        tokio::spawn(api::serve(listener, port.clone(), port_shutdown.clone()));
    }
    for listener in etcd_listeners {
        let port = Port { router: etcd.listener(), tls: tls.etcd.clone(), without_tls: None };
        tokio::spawn(api::serve(listener, port, port_shutdown.clone()));
    }
    info!(address = %config.restapi.connect_address, version = env!("CARGO_PKG_VERSION"), "node started");
    let ending = match (&config.postgresql, instance) {
        (Some(_), Some(instance)) => {
            let inlets = Inlets { asked, orders, local, dialer: tls.dialer.clone(), recorder };
            run_agent(&config, &store, &space, instance, snapshot_tx, inlets, shutdown.clone()).await
        }
        _ => {
            run_witness(&config, &store, &space, snapshot_tx, shutdown.clone()).await;
            Ok(())
        }
    };
    if let Some(clients) = clients {
        clients.stop().await;
    }
    leave(&store).await;
    port_shutdown.cancel();
    info!("node stopped");
    ending
}

/// Refuses what a person must put right before PostgreSQL can work here, before anything is changed.
async fn check_place(instance: &crate::postgres::Instance) -> Result<()> {
    let config = instance.config();
    let state = instance.inspect().await;
    if let DataDir::Foreign { why } = &state {
        bail!("use data directory {}: {why}", config.data_dir.display());
    }
    // A server of ours that outlived an agent has the port by right, also in the middle of its creation.
    if instance.postmaster().is_some() {
        return Ok(());
    }
    let host = match config.listen.split(',').next().map(str::trim) {
        None | Some("" | "*") => "0.0.0.0",
        Some(host) => host,
    };
    match tokio::net::TcpListener::bind((host, config.port)).await {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => bail!(
            "start PostgreSQL on {host}:{}: the port is in use; stop what uses it, or change postgresql.listen",
            config.port
        ),
        // Anything else PostgreSQL says better itself.
        Ok(_) | Err(_) => Ok(()),
    }
}

fn store_config(config: &Config, dialer: Dialer) -> Result<StoreConfig> {
    let raft = &config.raft;
    Ok(StoreConfig {
        cluster: config.scope.clone(),
        name: config.name.clone(),
        advertise: raft.self_addr.to_string(),
        members: raft.members.iter().map(|(name, address)| (name.clone(), address.to_string())).collect(),
        data_dir: raft.data_dir.clone(),
        secret: parts::secret(config),
        dialer,
        heartbeat: raft.heartbeat,
        election_min: raft.election_timeout_min,
        election_max: raft.election_timeout_max,
        snapshot_after: 5000,
        retention: Retention { time: raft.history_time, revisions: raft.history_revisions.into() },
    })
}

/// Through which people reach the loop.
struct Inlets {
    asked: Arc<Notify>,
    orders: Arc<Orders>,
    local: watch::Receiver<Arc<Local>>,
    dialer: Dialer,
    recorder: Recorder,
}

async fn run_agent(
    config: &Config,
    store: &Store,
    space: &KeySpace,
    instance: Arc<crate::postgres::Instance>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    inlets: Inlets,
    shutdown: CancellationToken,
) -> Result<()> {
    let Inlets { asked, orders, local, dialer, recorder } = inlets;
    let Some(pg) = &config.postgresql else { return Ok(()) };
    let guardian_config = GuardianConfig {
        socket: config.raft.data_dir.join("guardian.sock"),
        data_dir: pg.data_dir.clone(),
        program: std::env::current_exe().context("find this program's own file")?,
        name: config.name.clone(),
        log_file: Some(config.raft.data_dir.join("guardian.log")),
        watchdog: parts::watchdog(config),
    };
    let (guardian, guardian_feed) = Guardian::attach(guardian_config.clone()).await.context("start the guardian")?;
    let settings = config.bootstrap.settings.clone();
    let lock = Lock::start(LockConfig {
        store: store.clone(),
        guardian: Some(guardian.clone()),
        space: space.clone(),
        me: config.name.clone(),
        ttl: settings.ttl,
        every: settings.loop_wait,
    });
    let identity = Identity {
        me: config.name.clone(),
        conn_url: format!("postgres://{}/postgres", pg.connect_address),
        api_url: format!("{}://{}/patroni", config.scheme(), config.restapi.connect_address),
        tags: config.tags.all.clone(),
    };
    let callbacks = Callbacks::start(pg.callbacks.clone(), instance.clone(), config.scope.to_string());
    let agent = Agent {
        observer: Observer {
            store: store.clone(),
            space: space.clone(),
            me: config.name.clone(),
            instance: instance.clone(),
            guardian: guardian.clone(),
            lock: lock.clone(),
            peers: Peers::new(dialer),
            place: Place::of(&config.tags, &pg.callbacks),
            follows: None,
            follows_outside: false,
            data_dir: None,
            sighting: Sighting::default(),
            last_received: None,
            newest_timeline: None,
            creating: false,
            adopting: false,
            awaits_adoption: config.bootstrap.adopt,
        },
        actor: Actor {
            store: store.clone(),
            writes: Writes::new(space.clone()),
            me: config.name.clone(),
            instance,
            guardian,
            lock,
            logins: parts::logins(pg),
            credentials: None,
            initial_config: config.bootstrap.dcs.clone(),
            task: None,
            follows: None,
            follows_outside: false,
            slot_files: std::collections::BTreeMap::new(),
            given_up: None,
            hooks: pg.callbacks.clone(),
            post_bootstrap: config.bootstrap.post_bootstrap.clone(),
            names: None,
            promoted: false,
            created: false,
            configured: None,
            had_settings: false,
            told: None,
            raised_at: None,
            reload_asked: false,
            adopting: false,
            reloaded: false,
            ending: None,
            ended: EndedTerm::beside(&config.raft.data_dir),
        },
        upkeep: Upkeep::new(identity, KeptSlots::beside(&config.raft.data_dir)),
        journal: Journal::default(),
        recorder,
        chronicle: Chronicle::default(),
        published: Published {
            scope: config.scope.clone(),
            name: config.name.clone(),
            tags: config.tags.all.clone(),
            guardian: guardian_config,
        },
        snapshot,
        asked,
        shutdown,
        initial_settings: settings,
        callbacks,
        local,
        orders,
        working: Working::default(),
    };
    agent.run(guardian_feed).await.map_err(|reason| anyhow::anyhow!("join cluster {}: {reason}", config.scope))
}

/// A witness votes and shows the cluster; it has no PostgreSQL and decides nothing.
async fn run_witness(
    config: &Config,
    store: &Store,
    space: &KeySpace,
    snapshot: watch::Sender<Arc<Snapshot>>,
    shutdown: CancellationToken,
) {
    let mut settings = config.bootstrap.settings.clone();
    let lock = Lock::start(LockConfig {
        store: store.clone(),
        guardian: None,
        space: space.clone(),
        me: config.name.clone(),
        ttl: settings.ttl,
        every: settings.loop_wait,
    });
    let mut fixed = Snapshot::starting(config.scope.clone(), config.name.clone(), clock::now(), clock::wall());
    fixed.tags = config.tags.all.clone();
    let mut applied = store.applied();
    let mut log = ChangeLog::default();
    while !shutdown.is_cancelled() {
        let record = store.read(|kv| ClusterRecord::read(space, kv.revision(), kv.prefix(space.prefix())));
        if let Some(config) = &record.config
            && let Ok((parsed, _)) = ClusterSettings::parse(&config.value)
        {
            settings = parsed;
        }
        let mut seen = publish::witness(&fixed, store, &record, &settings, &lock.state());
        seen.timeline = log.read(store, space, record.timeline_revision);
        snapshot.send_replace(Arc::new(seen));
        tokio::select! {
            () = tokio::time::sleep(settings.loop_wait) => (),
            _ = applied.changed() => tokio::time::sleep(Duration::from_millis(50)).await,
            () = shutdown.cancelled() => (),
        }
    }
}

/// Says goodbye: another member leads the store before this one goes, so that nobody waits for an election.
async fn leave(store: &Store) {
    let status = store.status();
    if status.leader.as_ref().is_some_and(|(id, _)| Some(*id) == status.id)
        && let Some(to) = heir(&status, |_| true)
        && let Err(error) = store.transfer_leader(&to).await
    {
        info!(%error, "raft leadership could not be handed over");
    }
    if tokio::time::timeout(GOODBYE, store.shutdown()).await.is_err() {
        error!("the store did not stop in time");
    }
}

async fn stop_on_signal(shutdown: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        error!("signals cannot be caught; stop this node with SIGKILL only");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => info!("told to stop (SIGTERM)"),
        _ = interrupt.recv() => info!("told to stop (SIGINT)"),
    }
    shutdown.cancel();
}
