//! Who asks: the user behind a request's token.
//!
//! A token proves its user on every member, because the store holds it. When it is idle for [`IDLE`] a member takes it
//! no longer; each member counts for itself, as etcd's do, from when it first heard of the token or last saw it used.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use tonic::Status;
use tonic::metadata::MetadataMap;

use super::{Etcd, error};
use crate::kv;
use crate::kv::auth::Auth;
use crate::telemetry::clock;
use crate::types::Mono;

/// How long an unused token lives. Source: etcd's simple tokens.
const IDLE: Duration = Duration::from_secs(300);

/// Who asks. Where identities are not asked for, it is nobody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// The user; empty for nobody.
    pub user: String,
    /// The number of the token that proves it.
    token: Option<u64>,
}

impl Caller {
    /// The caller's command, for the log.
    pub(super) fn give(&self, command: kv::Command) -> kv::Command {
        let command = Box::new(command);
        match self.token {
            Some(token) => kv::Command::ByToken { token, command },
            None => kv::Command::As { user: self.user.clone(), command },
        }
    }
}

/// When each token was used last, on this member.
#[derive(Default)]
pub struct Tokens(Mutex<Uses>);

#[derive(Default)]
struct Uses {
    last: BTreeMap<String, Mono>,
    /// [`Auth::tokens_given`] when the tokens of other members were taken in.
    given: u64,
}

impl Tokens {
    /// Whether a token is alive, which this use makes it for longer.
    fn is_used(&self, token: &str, auth: &Auth, now: Mono) -> bool {
        let mut uses = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if uses.given != auth.tokens_given() {
            uses.given = auth.tokens_given();
            uses.last.retain(|token, _| auth.token(token).is_some());
            for token in auth.tokens() {
                uses.last.entry(token.to_owned()).or_insert(now);
            }
        }
        match uses.last.get_mut(token) {
            Some(last) if now.since(*last) <= IDLE => {
                *last = now;
                true
            }
            _ => false,
        }
    }
}

/// The token in a request's metadata. gRPC clients call it `token`, clients of the gateway `authorization`.
fn token(metadata: &MetadataMap) -> Option<&str> {
    let text = ["token", "authorization"].into_iter().find_map(|name| metadata.get(name))?.to_str().ok()?;
    // A password for REST on the same port is no token.
    if text.starts_with("Basic ") {
        return None;
    }
    Some(text.strip_prefix("Bearer ").unwrap_or(text))
}

impl Etcd {
    /// Who a request comes from: nobody if it does not say, an error if what it says is wrong.
    ///
    /// By what this member knows, which may be a moment old. A change is asked once more when it is applied
    /// ([`Caller::give`]); who reads what is true now calls this after [`Etcd::linearize`], as etcd does.
    pub(super) async fn caller(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        if !self.store.read(|state| state.auth().is_enabled()) {
            return Ok(Caller::default());
        }
        let Some(token) = token(metadata) else { return Ok(Caller::default()) };
        let known = |state: &kv::State| {
            let (user, number) = state.auth().token(token)?;
            let caller = Caller { user: user.to_owned(), token: Some(number) };
            self.tokens.is_used(token, state.auth(), clock::now()).then_some(caller)
        };
        if let Some(caller) = self.store.read(known) {
            return Ok(caller);
        }
        // Another member may have given it a moment ago.
        self.linearize().await?;
        self.store.read(known).ok_or_else(|| error::rejected(&kv::Error::InvalidAuthToken))
    }

    /// Refuses who is nobody.
    pub(super) async fn somebody(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let caller = self.caller(metadata).await?;
        let permitted = self.store.read(|state| state.auth().permits_anybody(&caller.user));
        permitted.map_err(|refusal| error::rejected(&refusal))?;
        Ok(caller)
    }

    /// Refuses who does not have the role `root`.
    pub(super) async fn root(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let caller = self.caller(metadata).await?;
        let permitted = self.store.read(|state| state.auth().permits_root(&caller.user));
        permitted.map_err(|refusal| error::rejected(&refusal))?;
        Ok(caller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::auth::{AuthChange, ROOT};
    use crate::kv::{Command, State};

    #[test]
    fn a_token_lives_as_long_as_it_is_used() {
        let mut state = State::new();
        let name = || ROOT.to_owned();
        let mut change = |change| drop(state.apply(&Command::Auth(change)).response.unwrap());
        change(AuthChange::UserAdd { name: name(), password: Some("hash".to_owned()) });
        change(AuthChange::UserGrantRole { user: name(), role: name() });
        change(AuthChange::Enable);
        let revision = 3;
        change(AuthChange::TokenIssue { user: name(), token: "a".to_owned(), revision });
        change(AuthChange::TokenIssue { user: name(), token: "b".to_owned(), revision });
        let (tokens, start) = (Tokens::default(), clock::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(tokens.is_used("a", state.auth(), start));
        assert!(tokens.is_used("a", state.auth(), at(300)));
        assert!(tokens.is_used("a", state.auth(), at(600)));
        assert!(!tokens.is_used("b", state.auth(), at(600)), "nobody has used it since it was heard of");
        assert!(!tokens.is_used("b", state.auth(), at(601)), "and it does not come back");
        assert!(!tokens.is_used("c", state.auth(), at(601)));
    }

    #[test]
    fn tokens_are_found_under_both_names() {
        let mut metadata = MetadataMap::new();
        assert_eq!(token(&metadata), None);
        metadata.insert("authorization", "Bearer x.1".parse().unwrap());
        assert_eq!(token(&metadata), Some("x.1"));
        metadata.insert("token", "y.2".parse().unwrap());
        assert_eq!(token(&metadata), Some("y.2"));
    }
}
