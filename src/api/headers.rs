//! Headers that the operator adds to every answer, and the one that says who answers.
//!
//! Source: reference section 5, `http_extra_headers`, `https_extra_headers`, `server_tokens`.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;

use crate::config::node::{RestApiConfig, ServerTokens};
use crate::tls::Session;

/// What is added to answers. Replaced when the node's file is read again.
#[derive(Debug, Default)]
pub struct ExtraHeaders {
    /// Without TLS, and with it.
    sets: RwLock<Arc<[HeaderMap; 2]>>,
}

impl ExtraHeaders {
    /// From the configuration.
    pub fn new(config: &RestApiConfig) -> Self {
        Self { sets: RwLock::new(Arc::new(sets(config))) }
    }

    /// Takes over another configuration for all answers from now on.
    pub fn replace(&self, config: &RestApiConfig) {
        *self.sets.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(sets(config));
    }

    fn current(&self) -> Arc<[HeaderMap; 2]> {
        self.sets.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn sets(config: &RestApiConfig) -> [HeaderMap; 2] {
    let server = match config.server_tokens {
        ServerTokens::Original => concat!("howdah/", env!("CARGO_PKG_VERSION")),
        ServerTokens::ProductOnly => "howdah",
    };
    let mut plain = HeaderMap::new();
    plain.insert(header::SERVER, HeaderValue::from_static(server));
    add(&mut plain, &config.http_extra_headers);
    let mut secured = plain.clone();
    add(&mut secured, &config.https_extra_headers);
    [plain, secured]
}

/// The configuration's check has let through only what HTTP permits.
fn add(set: &mut HeaderMap, headers: &BTreeMap<String, String>) {
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            set.insert(name, value);
        }
    }
}

/// Adds them to every answer of `router`.
pub fn with_headers(router: Router, headers: Arc<ExtraHeaders>) -> Router {
    router.layer(from_fn_with_state(headers, layer))
}

async fn layer(State(headers): State<Arc<ExtraHeaders>>, request: Request, next: Next) -> Response {
    let [plain, secured] = &*headers.current();
    let set = if request.extensions().get::<Session>().is_some() { secured } else { plain };
    let mut response = next.run(request).await;
    for (name, value) in set {
        response.headers_mut().insert(name, value.clone());
    }
    response
}
