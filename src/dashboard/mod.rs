//! The dashboard: one page, served by every node under `/ui`, that follows the node's published snapshot.
//!
//! ```text
//! browser -- GET /ui --> page, script and style, embedded in the binary
//!         -- GET /ui/events --> one server-sent event whenever the node has published something new
//!         -- POST /switchover ... --> REST, with REST's own authentication
//! ```
//! Reads only what REST shows to everybody, too. Nothing is fetched from anywhere else, and the browser is told to keep it
//! that way (Content-Security-Policy). Deliberately absent: any knowledge of PostgreSQL or Raft, and a build step.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use futures_util::{Stream, stream};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::agent::snapshot::Snapshot;
use crate::api::{RouterView, wire};
use crate::telemetry::clock;

/// At most one event in this time: a burst of changes is shown as one.
const PACE: Duration = Duration::from_millis(100);
/// So many changes of the leadership are shown; `/timeline` has all that are kept.
const CHANGES: usize = 10;
/// A silent stream says something in this time, so that proxies do not end it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What the browser may load and do: this node's own files and endpoints.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

#[derive(Clone)]
struct Feed {
    snapshot: watch::Receiver<Arc<Snapshot>>,
    router: Option<RouterView>,
    closing: CancellationToken,
}

/// The page and its events. Streams end when `closing` is cancelled.
pub fn routes(
    snapshot: watch::Receiver<Arc<Snapshot>>,
    router: Option<RouterView>,
    closing: CancellationToken,
) -> Router {
    Router::new()
        .route("/ui", get(|| async { file("text/html; charset=utf-8", include_str!("page.html")) }))
        .route("/ui/", get(|| async { Redirect::permanent("/ui") }))
        .route("/ui/app.js", get(|| async { file("text/javascript; charset=utf-8", include_str!("app.js")) }))
        .route("/ui/style.css", get(|| async { file("text/css; charset=utf-8", include_str!("style.css")) }))
        .route("/ui/events", get(events))
        .with_state(Feed { snapshot, router, closing })
}

/// The main port's `people` on a port of the dashboard's own: whoever comes to `/` wants to see it.
pub fn on_its_own(people: Router) -> Router {
    Router::new().route("/", get(|| async { Redirect::temporary("/ui") })).fallback_service(people)
}

fn file(kind: &'static str, text: &'static str) -> Response {
    const NOSNIFF: HeaderName = HeaderName::from_static("x-content-type-options");
    let mut response = text.into_response();
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        // Another version may answer on this address tomorrow.
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (NOSNIFF, "nosniff"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn events(State(feed): State<Feed>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let news = stream::unfold((feed, true), |(mut feed, first)| async move {
        if !first {
            tokio::select! {
                () = feed.closing.cancelled() => return None,
                changed = feed.snapshot.changed() => changed.ok()?,
            }
            sleep(PACE).await;
        }
        let snapshot = Arc::clone(&feed.snapshot.borrow_and_update());
        Some((Ok(Event::default().data(message(&snapshot, feed.router.as_ref()))), (feed, false)))
    });
    Sse::new(news).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

/// What one event says: the snapshot, what it means now, and the cluster in REST's words.
fn message(snapshot: &Snapshot, router: Option<&RouterView>) -> String {
    let now = clock::now();
    let router = router.map(|view| view());
    let newest = snapshot.timeline.len().saturating_sub(CHANGES);
    json!({
        "node": wire::full(snapshot, router.as_ref(), now),
        "cluster": wire::cluster(snapshot),
        "history": wire::history(snapshot),
        "timeline": snapshot.timeline[newest..],
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_names_no_other_place_and_no_inline_code() {
        let page = include_str!("page.html");
        for absent in ["http://", "https://", "style=", "onclick", "<style"] {
            assert!(!page.contains(absent), "{absent} would be refused by the policy");
        }
        assert_eq!(page.matches("<script").count(), 1);
        for file in ["/ui/app.js", "/ui/style.css"] {
            assert!(page.contains(file));
        }
        // Text goes into the page as text: a member's name may be anything.
        for risky in ["innerHTML", "outerHTML", "insertAdjacentHTML", "eval("] {
            assert!(!include_str!("app.js").contains(risky), "{risky}");
        }
    }
}
