//! The node's certificates: made when it starts, read again with its file.

use std::sync::Arc;

use crate::config::Config;
use crate::tls::{Acceptor, Dialer, Error, Peers};

/// Every place where this node speaks TLS.
pub(super) struct Tls {
    /// The main port's.
    pub(super) main: Option<Arc<Acceptor>>,
    /// The extra listener's, for etcd's clients.
    pub(super) etcd: Option<Arc<Acceptor>>,
    /// How other members are connected to.
    pub(super) dialer: Dialer,
}

impl Tls {
    /// By the files that the configuration names.
    ///
    /// # Errors
    /// The first file that is wrong.
    pub(super) fn new(config: &Config) -> Result<Self, Error> {
        let acceptor = |tls| Acceptor::new(tls).map(Arc::new);
        let dialer = match &config.restapi.tls {
            None => Dialer::plain(),
            Some(own) => Dialer::secure(&config.ctl_tls, Some(&own.pair), Peers::Members)?,
        };
        Ok(Self {
            main: config.restapi.tls.as_ref().map(acceptor).transpose()?,
            etcd: config.etcd_tls.as_ref().map(acceptor).transpose()?,
            dialer: dialer.plain_too(config.raft.allow_plaintext),
        })
    }

    /// Uses the files as they are now, wherever TLS has been spoken since the start.
    ///
    /// # Errors
    /// The first file that is wrong; nothing has changed then.
    pub(super) fn replace(&self, config: &Config) -> Result<(), Error> {
        // All of them are read before the first is used.
        let _good = Self::new(config)?;
        if let (Some(acceptor), Some(tls)) = (&self.main, &config.restapi.tls) {
            acceptor.replace(tls)?;
            self.dialer.replace(&config.ctl_tls, Some(&tls.pair), Peers::Members)?;
        }
        if let (Some(acceptor), Some(tls)) = (&self.etcd, &config.etcd_tls) {
            acceptor.replace(tls)?;
        }
        Ok(())
    }
}
