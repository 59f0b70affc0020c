//! From the configuration to the parts of a node.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::agent::logins::{Logins, Role};
use crate::cluster::keys::KeySpace;
use crate::config::Config;
use crate::config::node::{PostgresqlConfig, RoleConfig, ToolOption, WatchdogMode};
use crate::config::tls::{ServerTls, VerifyClient};
use crate::etcd::Etcd;
use crate::guardian::{WatchdogConfig, WatchdogMode as GuardianWatchdog};
use crate::postgres::{Instance, InstanceConfig, Method, Restore};
use crate::raft::Store;
use crate::telemetry::redact::Secret;

/// The local PostgreSQL. Looks for its programs and its user; changes nothing.
pub(super) fn instance(config: &Config, pg: &PostgresqlConfig) -> Result<Arc<Instance>> {
    let mut run_dir = pg.data_dir.clone().into_os_string();
    run_dir.push(".howdah");
    let run_dir = std::path::PathBuf::from(run_dir);
    let instance = Instance::new(InstanceConfig {
        name: config.name.clone(),
        cluster: config.scope.clone(),
        data_dir: pg.data_dir.clone(),
        bin_dir: pg.bin_dir.clone(),
        listen: pg.listen.hosts.join(","),
        port: pg.listen.port,
        connect_address: (pg.connect_address.host.clone(), pg.connect_address.port),
        os_user: pg.os_user.clone(),
        log_file: run_dir.join("postgresql.log"),
        run_dir,
        parameters: pg.parameters.clone(),
        pg_hba: pg.pg_hba.clone(),
        pg_ident: pg.pg_ident.clone(),
        recovery: pg.recovery.clone(),
        base_conf: pg.custom_conf.clone(),
        database: pg.database.clone(),
        initdb: options(&config.bootstrap.initdb),
        basebackup: options(&pg.basebackup),
        copy_methods: pg.copy_methods.iter().map(method).collect(),
        restore: config.bootstrap.method.as_ref().map(|restore| Restore {
            method: method(&restore.method),
            keep_recovery: restore.keep_recovery,
            recovery: restore.recovery.clone(),
        }),
        use_unix_socket: pg.use_unix_socket,
        keep_aside: None,
    })
    .context("prepare postgresql")?;
    for warning in instance.warnings() {
        warn!("{warning}");
    }
    Ok(Arc::new(instance))
}

fn options(options: &[ToolOption]) -> Vec<(String, Option<String>)> {
    options.iter().map(|option| (option.name.clone(), option.value.clone())).collect()
}

fn method(method: &crate::config::node::Method) -> Method {
    Method {
        name: method.name.clone(),
        command: method.command.clone(),
        parameters: method.parameters.clone(),
        no_params: method.no_params,
    }
}

/// etcd's API. It asks for no password: where REST does, what REST guards is closed to it.
pub(super) fn etcd(config: &Config, store: &Store, space: &KeySpace, closing: &CancellationToken) -> Etcd {
    let restapi = &config.restapi;
    let asks = |tls: &Option<ServerTls>| tls.as_ref().map_or(VerifyClient::None, |tls| tls.verify_client);
    // REST tells requests with a certificate from those without; etcd's API can rely only on connections that have one.
    let certified = match asks(&restapi.tls) {
        VerifyClient::None => true,
        VerifyClient::Optional => false,
        VerifyClient::Required => config.etcd_listen.is_none() || asks(&config.etcd_tls) == VerifyClient::Required,
    };
    let record_open = restapi.authentication.is_none() && restapi.allowlist.is_empty() && certified;
    let (space, closing) = (space.clone(), closing.clone());
    Etcd::new(store.clone(), &config.scope, space, record_open, config.etcd_quota, config.scheme(), closing)
}

/// The roles, without the passwords that the file leaves out.
pub(super) fn logins(pg: &PostgresqlConfig) -> Logins {
    let role = |config: &RoleConfig| Role { username: config.username.clone(), password: config.password.clone() };
    let superuser = role(&pg.superuser);
    let rewind = pg.rewind.as_ref().map_or_else(|| superuser.clone(), role);
    Logins { superuser, replication: role(&pg.replication), rewind }
}

/// What members prove to each other. A cluster of one proves nothing to nobody: a random secret shuts the door.
pub(super) fn secret(config: &Config) -> Secret<String> {
    config.raft.secret.clone().unwrap_or_else(|| Secret::new(crate::postgres::generate_password()))
}

/// The watchdog device, as the guardian wants it.
pub(super) fn watchdog(config: &Config) -> WatchdogConfig {
    let ttl = config.bootstrap.settings.ttl;
    let timeout = ttl.saturating_sub(config.watchdog.safety_margin).max(Duration::from_secs(1));
    WatchdogConfig {
        mode: match config.watchdog.mode {
            WatchdogMode::Off => GuardianWatchdog::Off,
            WatchdogMode::Automatic => GuardianWatchdog::Automatic,
            WatchdogMode::Required => GuardianWatchdog::Required,
        },
        device: config.watchdog.device.clone(),
        testing: config.watchdog.testing,
        timeout_s: u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX),
    }
}

/// A member whose disk or consensus has failed must stop being one at once.
pub(super) fn fatal_hook() -> crate::raft::FatalHook {
    Arc::new(|why: &str| {
        tracing::error!("{why}");
        std::process::exit(1);
    })
}
