//! Reading the node's file again: at SIGHUP and at `POST /reload`.
//!
//! ```text
//! file + environment -> checked whole -> access rules at once, the rest to the loop; what counts later is named
//! ```
//! A file that is not valid changes nothing.

use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tracing::{error, info, warn};

use super::tls::Tls;
use crate::agent::local::{Local, Place};
use crate::api::{Access, ExtraHeaders};
use crate::config::node::CallbacksConfig;
use crate::config::reload::needs_start;
use crate::config::{self, Config};
use crate::postgres::LocalSettings;

/// Reads the file of a running node again.
pub(super) struct Reloader {
    started_with: Config,
    at_once: AtOnce,
    local: watch::Sender<Arc<Local>>,
    asked: Arc<Notify>,
}

/// Parts that take over another configuration at once.
pub(super) struct AtOnce {
    pub(super) access: Arc<Access>,
    pub(super) headers: Arc<ExtraHeaders>,
    pub(super) tls: Arc<Tls>,
}

impl Reloader {
    /// For a node that was started with `config`. The receiver gets what is read again, not what is there now.
    pub(super) fn new(config: Config, at_once: AtOnce, asked: Arc<Notify>) -> (Arc<Self>, watch::Receiver<Arc<Local>>) {
        let (local, receiver) = watch::channel(Arc::new(changeable(&config)));
        (Arc::new(Self { started_with: config, at_once, local, asked }), receiver)
    }

    /// Reads it, and says what of it needs another start of the node.
    ///
    /// # Errors
    /// Everything that is wrong with the file, or with a certificate that it names; nothing has changed then.
    pub(super) async fn reload(&self) -> Result<Vec<&'static str>, String> {
        let path = self.started_with.path.clone();
        let read = tokio::task::spawn_blocking(move || config::load(&path)).await;
        let config = match read {
            Ok(Ok(config)) => config,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(error) => return Err(error.to_string()),
        };
        for warning in &config.warnings {
            warn!("configuration: {warning}");
        }
        self.at_once.tls.replace(&config).map_err(|error| format!("{}; the old certificates stay", words(&error)))?;
        self.at_once.access.replace(&config.restapi).await;
        self.at_once.headers.replace(&config.restapi);
        let later = needs_start(&self.started_with, &config);
        self.local.send_replace(Arc::new(changeable(&config)));
        self.asked.notify_one();
        info!(needs_start_of_node = later.join(", "), "configuration read again");
        Ok(later)
    }
}

/// An error with its causes.
fn words(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn changeable(config: &Config) -> Local {
    let postgres = config.postgresql.as_ref().map_or_else(LocalSettings::default, |pg| LocalSettings {
        parameters: pg.parameters.clone(),
        pg_hba: pg.pg_hba.clone(),
        pg_ident: pg.pg_ident.clone(),
        recovery: pg.recovery.clone(),
    });
    let callbacks = config.postgresql.as_ref().map_or_else(CallbacksConfig::default, |pg| pg.callbacks.clone());
    let place = Place::of(&config.tags, &callbacks);
    Local { postgres, callbacks, tags: config.tags.all.clone(), place }
}

/// Reloads at each SIGHUP, as Patroni does.
pub(super) async fn on_signal(reloader: Arc<Reloader>) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut hangups) = signal(SignalKind::hangup()) else {
        error!("SIGHUP cannot be caught; POST /reload does the same");
        return;
    };
    while hangups.recv().await.is_some() {
        if let Err(why) = reloader.reload().await {
            error!("the configuration is not read again: {why}");
        }
    }
}
