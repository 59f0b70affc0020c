//! Cancel requests: they come on a connection of their own and name a session by its key.
//!
//! BackendKeyData passes by while a session starts; the key is remembered with its backend as long as the session
//! lives. A key that nobody knows (a session under TLS, or of another router) goes to the current primary or, on the
//! replicas' port, to every replica: a server ignores keys that are not its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;

use super::keeper::Routes;
use super::target::Target;
use super::{PortKind, socket};

/// A cancel request must be delivered within.
const DELIVERY: Duration = Duration::from_secs(5);

/// Which session's key belongs to which backend.
#[derive(Debug, Default)]
pub struct CancelKeys {
    by_key: Mutex<HashMap<Vec<u8>, Target>>,
}

/// A key that is known as long as this lives.
#[derive(Debug)]
pub struct KnownKey {
    keys: Arc<CancelKeys>,
    key: Vec<u8>,
    target: Target,
}

impl CancelKeys {
    /// Remembers a session's key.
    pub fn remember(self: &Arc<Self>, key: Vec<u8>, target: Target) -> KnownKey {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), target.clone());
        KnownKey { keys: Arc::clone(self), key, target }
    }

    fn find(&self, key: &[u8]) -> Option<Target> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }
}

impl Drop for KnownKey {
    fn drop(&mut self) {
        let mut by_key = self.keys.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        // Another server may have given out the same key meanwhile.
        if by_key.get(&self.key) == Some(&self.target) {
            by_key.remove(&self.key);
        }
    }
}

/// Whom a cancel request with this key may mean.
fn targets(keys: &CancelKeys, key: &[u8], kind: PortKind, routes: &Routes) -> Vec<Target> {
    match (keys.find(key), kind) {
        (Some(target), _) => vec![target],
        (None, PortKind::Primary) => routes.write.iter().cloned().collect(),
        (None, PortKind::Replicas) => routes.replicas.iter().chain(&routes.write).cloned().collect(),
    }
}

/// Delivers a cancel request. `rest` is all of it behind length and code.
pub async fn forward(keys: &CancelKeys, kind: PortKind, routes: &Routes, head: &[u8], rest: &[u8]) {
    for target in targets(keys, rest, kind, routes) {
        let delivery = async {
            let mut backend = TcpStream::connect((target.host.as_str(), target.port)).await?;
            socket::set_up(&backend);
            backend.write_all(&[head, rest].concat()).await?;
            // The server closes when it has sent the signal; a client that waits for our close then knows it too.
            let mut void = [0; 64];
            while backend.read(&mut void).await? != 0 {}
            Ok::<(), std::io::Error>(())
        };
        match timeout(DELIVERY, delivery).await {
            Ok(Ok(())) => debug!(target = %target.name, "cancel request delivered"),
            Ok(Err(error)) => debug!(target = %target.name, %error, "cancel request not delivered"),
            Err(_) => debug!(target = %target.name, "cancel request not delivered in time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(name: &str) -> Target {
        Target { name: name.parse().expect("a name"), host: "h".to_owned(), port: 5432 }
    }

    #[test]
    fn a_known_key_goes_to_its_session_and_others_to_whoever_may_have_it() {
        let keys = Arc::new(CancelKeys::default());
        let mut routes = Routes::unknown();
        routes.write = Ok(target("n1"));
        routes.replicas = vec![target("n2"), target("n3")];
        let known = keys.remember(b"key".to_vec(), target("n3"));
        assert_eq!(targets(&keys, b"key", PortKind::Primary, &routes), [target("n3")]);
        assert_eq!(targets(&keys, b"other", PortKind::Primary, &routes), [target("n1")]);
        let all = [target("n2"), target("n3"), target("n1")];
        assert_eq!(targets(&keys, b"other", PortKind::Replicas, &routes), all);
        drop(known);
        assert_eq!(targets(&keys, b"key", PortKind::Primary, &routes), [target("n1")]);
    }
}
