//! A node without anything behind it, and the built binary to talk to it.

use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use howdah::agent::recorder::Recorder;
use howdah::agent::snapshot::{RaftMember, Snapshot};
use howdah::api::control::{Answer, NewMember, ReinitializeRequest, RestartRequest, SwitchoverRequest};
use howdah::api::{Access, ApiState, Control, ControlError, ControlOutcome, Port, routes, serve};
use howdah::config::cluster_settings::merge_patch;
use howdah::config::node::{Credentials, RestApiConfig};
use howdah::config::{HostPort, ListenAddresses};
use howdah::telemetry::clock;
use howdah::telemetry::redact::Secret;
use howdah::types::{NodeName, RaftId};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Writes down what it is asked, and publishes what a real node would.
pub(crate) struct FakeControl {
    pub(crate) calls: Mutex<Vec<String>>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    /// If set, every change fails with it.
    pub(crate) failure: Mutex<Option<ControlError>>,
    /// How long after its answer a change of the settings is shown.
    pub(crate) late: Mutex<Duration>,
}

impl FakeControl {
    fn called<T>(&self, call: String, answer: impl FnOnce() -> T) -> Result<T, ControlError> {
        self.calls.lock().unwrap().push(call);
        match self.failure.lock().unwrap().clone() {
            Some(error) => Err(error),
            None => Ok(answer()),
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot::clone(&self.snapshot.borrow())
    }

    pub(crate) fn publish(&self, change: impl FnOnce(&mut Snapshot)) {
        self.snapshot.send_modify(|snapshot| change(Arc::make_mut(snapshot)));
    }

    fn store(&self, config: &Value) {
        let (snapshot, config, late) = (self.snapshot.clone(), config.clone(), *self.late.lock().unwrap());
        let show = move || {
            snapshot.send_modify(|snapshot| {
                let cluster = Arc::make_mut(snapshot).cluster.as_mut().unwrap();
                cluster.settings = howdah::config::ClusterSettings::parse(&config).unwrap().0;
                cluster.settings_json = Some(config);
            });
        };
        if late.is_zero() {
            return show();
        }
        tokio::spawn(async move {
            tokio::time::sleep(late).await;
            show();
        });
    }
}

fn ready<'a, T: Send + 'a>(value: Result<T, ControlError>) -> Answer<'a, T> {
    Box::pin(std::future::ready(value))
}

impl Control for FakeControl {
    fn position(&self) -> Answer<'_, howdah::agent::peers::Position> {
        Box::pin(async { Err(ControlError::Missing("the fake has no PostgreSQL".to_owned())) })
    }
    fn switchover(&self, request: SwitchoverRequest) -> Answer<'_, ControlOutcome> {
        let name = |name: &Option<NodeName>| name.as_ref().map_or("-".to_owned(), NodeName::to_string);
        let call = format!("switchover {} -> {}", name(&request.leader), name(&request.candidate));
        let scheduled = request.scheduled_at.is_some();
        let to = request.candidate.unwrap_or_else(|| "n2".parse().unwrap());
        ready(self.called(call, || {
            if scheduled {
                return ControlOutcome::scheduled();
            }
            self.publish(|snapshot| snapshot.cluster.as_mut().unwrap().leader.as_mut().unwrap().name = to.clone());
            ControlOutcome::switched_over(&to)
        }))
    }
    fn failover(&self, request: SwitchoverRequest) -> Answer<'_, ControlOutcome> {
        let to = request.candidate.expect("the endpoint checks it");
        ready(self.called(format!("failover -> {to}"), || ControlOutcome::failed_over(&to)))
    }
    fn cancel_switchover(&self) -> Answer<'_, ControlOutcome> {
        ready(self.called("cancel switchover".into(), || ControlOutcome::Done("scheduled switchover deleted".into())))
    }
    fn patch_config(&self, patch: Value) -> Answer<'_, Value> {
        let mut config = self.snapshot.borrow().cluster.as_ref().unwrap().settings_json.clone().unwrap();
        merge_patch(&mut config, &patch);
        ready(self.called(format!("patch {patch}"), || {
            self.store(&config);
            config
        }))
    }
    fn put_config(&self, config: Value) -> Answer<'_, Value> {
        ready(self.called(format!("put {config}"), || {
            self.store(&config);
            config
        }))
    }
    fn restart(&self, request: RestartRequest) -> Answer<'_, ControlOutcome> {
        let call = format!("restart pending={} timeout={:?}", request.restart_pending, request.timeout);
        ready(self.called(call, || ControlOutcome::Done("restarted successfully".into())))
    }
    fn cancel_restart(&self) -> Answer<'_, ControlOutcome> {
        ready(Err(ControlError::NotFound("no restart is scheduled".into())))
    }
    fn reload(&self) -> Answer<'_, ControlOutcome> {
        ready(self.called("reload".into(), || ControlOutcome::Accepted("reload scheduled".into())))
    }
    fn reinitialize(&self, request: ReinitializeRequest) -> Answer<'_, ControlOutcome> {
        ready(self.called(format!("reinitialize {request:?}"), || ControlOutcome::Done("reinitialize started".into())))
    }
    fn preflight(&self) -> Answer<'_, Value> {
        ready(self.called("preflight".into(), || json!({"problems": []})))
    }
    fn adopt(&self) -> Answer<'_, ControlOutcome> {
        ready(self.called("adopt".into(), || ControlOutcome::Done("adopted".into())))
    }
    fn release(&self) -> Answer<'_, ControlOutcome> {
        ready(self.called("release".into(), || ControlOutcome::Done("released".into())))
    }
    fn add_member(&self, member: NewMember) -> Answer<'_, Vec<RaftMember>> {
        let mut members = self.snapshot.borrow().raft.members.clone();
        let NewMember { name, addr } = member;
        ready(self.called(format!("add {name} {addr}"), || {
            members.push(RaftMember {
                id: RaftId(4),
                name: name.to_string(),
                addr: addr.to_string(),
                voter: false,
                reachable: None,
            });
            members
        }))
    }
    fn remove_member(&self, name: NodeName) -> Answer<'_, Vec<RaftMember>> {
        let mut members = self.snapshot.borrow().raft.members.clone();
        ready(self.called(format!("remove {name}"), || {
            members.retain(|member| member.name != name.as_str());
            members
        }))
    }
    fn transfer(&self, to: Option<NodeName>) -> Answer<'_, ControlOutcome> {
        ready(self.called(format!("transfer {to:?}"), || ControlOutcome::Done("transferred".into())))
    }
}

/// A served snapshot. Stops when dropped.
pub(crate) struct FakeNode {
    pub(crate) port: u16,
    pub(crate) control: Arc<FakeControl>,
    pub(crate) recorder: Recorder,
    shutdown: CancellationToken,
}

/// What is asked for before a change.
#[derive(Default)]
pub(crate) struct Guard {
    pub(crate) password: Option<&'static str>,
    pub(crate) allowlist: Vec<&'static str>,
    pub(crate) include_members: bool,
}

impl FakeNode {
    pub(crate) async fn start(change: impl FnOnce(&mut Snapshot)) -> Self {
        Self::guarded(Guard::default(), change).await
    }

    /// The fixed snapshot, with its times moved to now and the leader's address to this server.
    pub(crate) async fn guarded(guard: Guard, change: impl FnOnce(&mut Snapshot)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut snapshot: Snapshot = serde_json::from_str(include_str!("three_nodes.json")).unwrap();
        snapshot.timeline = Arc::new(serde_json::from_str(include_str!("timeline.json")).unwrap());
        snapshot.last_tick = clock::now();
        let cluster = snapshot.cluster.as_mut().unwrap();
        cluster.seen_at = clock::now();
        for member in &mut cluster.members {
            member.api_url = format!("http://127.0.0.1:{port}/patroni");
        }
        for member in &mut snapshot.raft.members {
            member.addr = format!("127.0.0.1:{port}");
        }
        change(&mut snapshot);
        let (sender, receiver) = watch::channel(Arc::new(snapshot));
        let control = Arc::new(FakeControl {
            calls: Mutex::default(),
            snapshot: sender,
            failure: Mutex::default(),
            late: Mutex::default(),
        });
        let password =
            |password: &str| Credentials { username: "howdah".into(), password: Secret::new(password.to_owned()) };
        let config = RestApiConfig {
            listen: ListenAddresses { hosts: vec!["127.0.0.1".into()], port },
            connect_address: HostPort { host: "127.0.0.1".into(), port },
            authentication: guard.password.map(password),
            allowlist: guard.allowlist.iter().map(|entry| (*entry).to_owned()).collect(),
            allowlist_include_members: guard.include_members,
            tls: None,
            http_extra_headers: Default::default(),
            https_extra_headers: Default::default(),
            server_tokens: Default::default(),
        };
        let access = Arc::new(Access::resolve(&config).await);
        let shutdown = CancellationToken::new();
        let recorder = Recorder::default();
        crate::why::keep(&recorder, &crate::why::leading());
        let router = routes(ApiState {
            snapshot: receiver,
            control: control.clone(),
            access,
            router: None,
            recorder: recorder.clone(),
        });
        tokio::spawn(serve(listener, Port::plain(router), shutdown.clone()));
        Self { port, control, recorder, shutdown }
    }

    /// The leader n1 of the fixed snapshot, and its standbys n2 and n3, each a node of its own.
    pub(crate) async fn three(change: impl Fn(&mut Snapshot)) -> [Self; 3] {
        let one = async |name: &str, others: &[(&str, u16)]| {
            Self::start(|snapshot| {
                snapshot.name = name.parse().unwrap();
                for member in &mut snapshot.cluster.as_mut().unwrap().members {
                    if let Some((_, port)) = others.iter().find(|(other, _)| *other == member.name.as_str()) {
                        member.api_url = format!("http://127.0.0.1:{port}/patroni");
                    }
                }
                change(snapshot);
            })
            .await
        };
        let (n2, n3) = (one("n2", &[]).await, one("n3", &[]).await);
        let n1 = one("n1", &[("n2", n2.port), ("n3", n3.port)]).await;
        [n1, n2, n3]
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.control.calls.lock().unwrap().clone()
    }

    /// Runs the binary against this node.
    pub(crate) async fn howdah(&self, args: &[&str]) -> Ran {
        let url = format!("http://127.0.0.1:{}", self.port);
        howdah(&[args, &["--url", &url]].concat(), "").await
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// What a run of the binary gave.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs the binary with nothing of ours in its environment.
pub(crate) async fn howdah(args: &[&str], input: &str) -> Ran {
    howdah_with(args, input, &[]).await
}

/// As [`howdah`], with variables set.
pub(crate) async fn howdah_with(args: &[&str], input: &str, variables: &[(&str, &str)]) -> Ran {
    let ours = std::env::vars_os().filter(|(name, _)| {
        name.to_str().is_some_and(|name| ["HOWDAH_", "PATRONI"].iter().any(|prefix| name.starts_with(prefix)))
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_howdah"));
    for (name, _) in ours {
        command.env_remove(name);
    }
    command.args(args).envs(variables.iter().copied()).current_dir(std::env::temp_dir()).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A command that reads nothing may be gone before its input is written.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let Output { status, stdout, stderr } =
        timeout(Duration::from_secs(60), child.wait_with_output()).await.expect("ends in time").unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: status.code().unwrap_or(-1), out: text(stdout), err: text(stderr) }
}

/// A free loopback port on which nobody listens.
pub(crate) async fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// One HTTP/1.1 exchange on a connection of its own: status, head in lower case, body.
pub(crate) async fn exchange(port: u16, request: &str) -> (u16, String, String) {
    use tokio::io::AsyncReadExt;
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.expect("answers in time").unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (status, head.to_lowercase(), body.to_owned())
}

/// As [`exchange`], for a method, a target and an optional JSON body.
pub(crate) async fn ask(port: u16, method: &str, target: &str, body: Option<Value>) -> (u16, String) {
    let body = body.map_or(String::new(), |body| body.to_string());
    let (status, _, text) = exchange(
        port,
        &format!(
            "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ),
    )
    .await;
    (status, text)
}

/// A JSON object without contents.
pub(crate) fn nothing() -> Value {
    json!({})
}
