//! Any method, path and body on the REST interface: an answer, never a panic, and nothing is asked of the node that it could
//! not do.

#![no_main]

use std::sync::{Arc, OnceLock};

use axum::body::Body;
use axum::http::Request;
use howdah::agent::peers::Position;
use howdah::agent::recorder::Recorder;
use howdah::agent::snapshot::{RaftMember, Snapshot};
use howdah::api::control::{Answer, NewMember, ReinitializeRequest, RestartRequest, SwitchoverRequest};
use howdah::api::{Access, ApiState, Control, ControlError, ControlOutcome, Routes, routes};
use howdah::config::node::RestApiConfig;
use howdah::config::{ClusterSettings, HostPort, ListenAddresses};
use howdah::types::NodeName;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tower::ServiceExt;

/// Says yes to everything that is well formed.
struct Willing;

fn done<'a>() -> Answer<'a, ControlOutcome> {
    Box::pin(std::future::ready(Ok(ControlOutcome::Done("done".to_owned()))))
}

fn settings<'a>(config: Value) -> Answer<'a, Value> {
    Box::pin(std::future::ready(Ok(config)))
}

impl Control for Willing {
    fn position(&self) -> Answer<'_, Position> {
        Box::pin(std::future::ready(Err(ControlError::Missing("no PostgreSQL here".to_owned()))))
    }
    fn switchover(&self, _: SwitchoverRequest) -> Answer<'_, ControlOutcome> {
        done()
    }
    fn failover(&self, request: SwitchoverRequest) -> Answer<'_, ControlOutcome> {
        assert!(request.candidate.is_some(), "a failover names whom it makes the leader");
        done()
    }
    fn cancel_switchover(&self) -> Answer<'_, ControlOutcome> {
        done()
    }
    fn patch_config(&self, patch: Value) -> Answer<'_, Value> {
        settings(patch)
    }
    fn put_config(&self, config: Value) -> Answer<'_, Value> {
        assert!(ClusterSettings::parse(&config).is_ok(), "settings that cannot be read: {config}");
        settings(config)
    }
    fn restart(&self, _: RestartRequest) -> Answer<'_, ControlOutcome> {
        done()
    }
    fn cancel_restart(&self) -> Answer<'_, ControlOutcome> {
        done()
    }
    fn reload(&self) -> Answer<'_, ControlOutcome> {
        done()
    }
    fn reinitialize(&self, _: ReinitializeRequest) -> Answer<'_, ControlOutcome> {
        done()
    }
    fn preflight(&self) -> Answer<'_, Value> {
        settings(Value::Null)
    }
    fn adopt(&self) -> Answer<'_, ControlOutcome> {
        done()
    }
    fn release(&self) -> Answer<'_, ControlOutcome> {
        done()
    }
    fn add_member(&self, _: NewMember) -> Answer<'_, Vec<RaftMember>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
    fn remove_member(&self, _: NodeName) -> Answer<'_, Vec<RaftMember>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
    fn transfer(&self, _: Option<NodeName>) -> Answer<'_, ControlOutcome> {
        done()
    }
}

fn node() -> &'static (Runtime, Routes) {
    static NODE: OnceLock<(Runtime, Routes)> = OnceLock::new();
    NODE.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let snapshot: Snapshot =
            serde_json::from_str(include_str!("../../surface/three_nodes.json")).expect("as the surface tests read it");
        let (sender, snapshot) = watch::channel(Arc::new(snapshot));
        // Kept for ever: a node whose loop has ended answers differently.
        std::mem::forget(sender);
        let config = RestApiConfig {
            listen: ListenAddresses { hosts: vec!["127.0.0.1".into()], port: 8008 },
            connect_address: HostPort { host: "127.0.0.1".into(), port: 8008 },
            authentication: None,
            allowlist: Vec::new(),
            allowlist_include_members: false,
            tls: None,
            http_extra_headers: Default::default(),
            https_extra_headers: Default::default(),
            server_tokens: Default::default(),
        };
        let access = Arc::new(runtime.block_on(Access::resolve(&config)));
        let state =
            ApiState { snapshot, control: Arc::new(Willing), access, router: None, recorder: Recorder::default() };
        (runtime, routes(state))
    })
}

const CALLS: [(&str, &str); 16] = [
    ("POST", "/switchover"),
    ("POST", "/failover"),
    ("DELETE", "/switchover"),
    ("PATCH", "/config"),
    ("PUT", "/config"),
    ("POST", "/restart"),
    ("DELETE", "/restart"),
    ("POST", "/reinitialize"),
    ("POST", "/reload"),
    ("POST", "/failsafe"),
    ("POST", "/adopt"),
    ("POST", "/release"),
    ("POST", "/raft/members"),
    ("DELETE", "/raft/members/n2"),
    ("POST", "/raft/transfer"),
    ("GET", "/replica?lag=10MB"),
];

fuzz_target!(|input: (u8, &str, &[u8])| {
    let (which, path, body) = input;
    let (method, known) = CALLS[usize::from(which) % CALLS.len()];
    let path = if which & 0x80 == 0 { known.to_owned() } else { format!("/{path}") };
    let Ok(request) = Request::builder().method(method).uri(path).body(Body::from(body.to_vec())) else { return };
    let (runtime, routes) = node();
    let answer = runtime.block_on(routes.clone().oneshot(request)).expect("there is always an answer");
    let code = answer.status().as_u16();
    assert!((200..600).contains(&code) && code != 500, "{code}");
});
