//! Reading the node's file again: at SIGHUP and at `POST /reload`.
//!
//! ```text
//! file + environment -> checked whole -> access rules at once, the rest to the loop; what counts later is named
//! ```
//! A file that is not valid changes nothing.

use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tracing::{error, info, warn};

use crate::agent::local::{Local, Place};
use crate::api::Access;
use crate::config::node::CallbacksConfig;
use crate::config::reload::needs_start;
use crate::config::{self, Config};
use crate::postgres::LocalSettings;

/// Reads the file of a running node again.
pub(super) struct Reloader {
    started_with: Config,
    access: Arc<Access>,
    local: watch::Sender<Arc<Local>>,
    asked: Arc<Notify>,
}

impl Reloader {
    /// For a node that was started with `config`. The receiver gets what is read again, not what is there now.
    pub(super) fn new(
        config: Config,
        access: Arc<Access>,
        asked: Arc<Notify>,
    ) -> (Arc<Self>, watch::Receiver<Arc<Local>>) {
        let (local, receiver) = watch::channel(Arc::new(changeable(&config)));
        (Arc::new(Self { started_with: config, access, local, asked }), receiver)
    }

    /// Reads it, and says what of it needs another start of the node.
    ///
    /// # Errors
    /// Everything that is wrong with the file; nothing has changed then.
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
        self.access.replace(&config.restapi).await;
        let later = needs_start(&self.started_with, &config);
        self.local.send_replace(Arc::new(changeable(&config)));
        self.asked.notify_one();
        info!(needs_start_of_node = later.join(", "), "configuration read again");
        Ok(later)
    }
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
