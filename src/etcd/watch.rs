//! The service `Watch`: one task and one ordered queue per stream.
//!
//! ```text
//! requests --+                                            +-> bounded queue -> client
//!            +-> task: Watchers (who has seen what) ------+
//! applied  --+        | behind: reads history, piece by piece
//! ```
//! Whatever a stream sends goes through its queue in the order in which the task made it, so a progress mark cannot
//! overtake events. A client that does not read stops its own task and nothing else: what it misses meanwhile is read
//! from history afterwards, and memory stays bounded by the queue.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tokio::sync::{broadcast, mpsc};
use tonic::{Request, Response as Answer, Status, Streaming};

use super::caller::Caller;
use super::pb::etcdserverpb as pb;
use super::pb::etcdserverpb::watch_request::RequestUnion;
use super::pb::etcdserverpb::watch_server::Watch;
use super::{Etcd, convert, error};
use crate::kv::watch::{Delivery, WatchBatch, WatchId, WatchRequest, Watchers};
use crate::raft::Applied;
use crate::telemetry::clock;

/// Answers that wait for the client.
const QUEUE: usize = 16;
/// Events read from history at a time.
const PIECE: usize = 1000;
/// How often watchers that asked for it are told that nothing happened. Source: etcd's default.
const PROGRESS: Duration = Duration::from_secs(600);
/// A stream that insists on a leader ends after so long without one. Source: etcd, three elections.
const LEADERLESS: Duration = Duration::from_secs(3);

/// Watches of one stream; many thousands are usual, this many are a mistake.
const WATCHES: usize = 100_000;

/// Ends the task: the client is gone.
struct Gone;

/// What a stream answers.
pub type Answers = Pin<Box<dyn Stream<Item = Result<pb::WatchResponse, Status>> + Send>>;

struct Session {
    etcd: Etcd,
    caller: Caller,
    watchers: Watchers,
    applied: broadcast::Receiver<Arc<Applied>>,
    queue: mpsc::Sender<Result<pb::WatchResponse, Status>>,
    /// Watchers that got something since the last periodic progress mark.
    served: BTreeSet<WatchId>,
    leaderless_since: Option<crate::types::Mono>,
}

impl Etcd {
    /// Serves one stream. The end of the requests does not end it.
    pub(super) fn watch_stream(
        &self,
        requests: impl Stream<Item = Result<pb::WatchRequest, Status>> + Send + Unpin + 'static,
        needs_leader: bool,
        caller: Caller,
    ) -> Answers {
        let (queue, answers) = mpsc::channel(QUEUE);
        // Subscribed before the state is looked at: what comes in between is seen twice rather than never, and a
        // watcher takes nothing below where it stands.
        let applied = self.store.events();
        let watchers = self.store.read(Watchers::new);
        let served = BTreeSet::new();
        let session = Session { etcd: self.clone(), caller, watchers, applied, queue, served, leaderless_since: None };
        tokio::spawn(async move {
            // Gone: nobody is left to be told.
            let _ = session.run(requests, needs_leader).await;
        });
        futures_util::stream::unfold(answers, |mut answers| async move {
            answers.recv().await.map(|answer| (answer, answers))
        })
        .boxed()
    }
}

impl Session {
    async fn run(
        mut self,
        mut requests: impl Stream<Item = Result<pb::WatchRequest, Status>> + Unpin,
        needs_leader: bool,
    ) -> Result<(), Gone> {
        let closing = self.etcd.closing.clone();
        let mut more_requests = true;
        let mut progress = tokio::time::interval(PROGRESS);
        progress.reset();
        let mut leader = tokio::time::interval(Duration::from_millis(500));
        loop {
            let behind = self.watchers.is_behind();
            // In no fixed order: under a constant load of news those who are behind must get their turn, too.
            tokio::select! {
                () = closing.cancelled() => return self.fail(error::stopped()).await,
                () = self.queue.closed() => return Err(Gone),
                request = requests.next(), if more_requests => match request {
                    Some(Ok(request)) => self.request(request).await?,
                    // A client that broke off is gone; one that has said all still listens.
                    Some(Err(_)) => return Err(Gone),
                    None => more_requests = false,
                },
                news = self.applied.recv() => self.news(news).await?,
                _ = progress.tick() => self.tell_progress().await?,
                _ = leader.tick(), if needs_leader => {
                    if self.has_lost_its_leader() {
                        return self.fail(error::no_leader()).await;
                    }
                }
                () = std::future::ready(()), if behind => self.catch_up().await?,
            }
        }
    }

    async fn fail(&mut self, status: Status) -> Result<(), Gone> {
        self.queue.send(Err(status)).await.map_err(|_| Gone)
    }

    async fn send(&mut self, response: pb::WatchResponse) -> Result<(), Gone> {
        self.queue.send(Ok(response)).await.map_err(|_| Gone)
    }

    fn has_lost_its_leader(&mut self) -> bool {
        if self.etcd.store.vitals().has_leader {
            self.leaderless_since = None;
            return false;
        }
        let now = clock::now();
        LEADERLESS < now.since(*self.leaderless_since.get_or_insert(now))
    }

    async fn request(&mut self, request: pb::WatchRequest) -> Result<(), Gone> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create).await,
            Some(RequestUnion::CancelRequest(cancel)) => {
                if !self.watchers.cancel(WatchId(cancel.watch_id)) {
                    return Ok(());
                }
                let header = Some(self.etcd.header());
                let watch_id = cancel.watch_id;
                self.send(pb::WatchResponse { header, watch_id, canceled: true, ..pb::WatchResponse::default() }).await
            }
            Some(RequestUnion::ProgressRequest(_)) => self.progress().await,
            None => Ok(()),
        }
    }

    fn permits(&self, request: &WatchRequest) -> Result<(), Status> {
        self.etcd.guard.read(&request.key, &request.range_end)?;
        // No key means the first one. Source: etcd.
        let key = if request.key.is_empty() { &[0][..] } else { &request.key };
        let permitted =
            self.etcd.store.read(|state| state.auth().permits_read(&self.caller.user, key, &request.range_end));
        permitted.map_err(|refusal| error::rejected(&refusal))
    }

    async fn create(&mut self, create: pb::WatchCreateRequest) -> Result<(), Gone> {
        let filter = |kind: pb::watch_create_request::FilterType| create.filters.contains(&i32::from(kind));
        let request = WatchRequest {
            no_put: filter(pb::watch_create_request::FilterType::Noput),
            no_delete: filter(pb::watch_create_request::FilterType::Nodelete),
            key: create.key,
            range_end: create.range_end,
            start_revision: create.start_revision,
            progress_notify: create.progress_notify,
            prev_kv: create.prev_kv,
            watch_id: create.watch_id,
            fragment: create.fragment,
        };
        let refused = |header, cancel_reason: String| pb::WatchResponse {
            header: Some(header),
            watch_id: -1,
            created: true,
            canceled: true,
            cancel_reason,
            ..pb::WatchResponse::default()
        };
        self.etcd.catch_up().await;
        if let Err(denied) = self.permits(&request) {
            let reason = format!("rpc error: code = {:?} desc = {}", denied.code(), denied.message());
            return self.send(refused(self.etcd.header(), reason)).await;
        }
        if self.watchers.ids().count() >= WATCHES {
            let reason = "rpc error: code = ResourceExhausted desc = etcdserver: too many requests".to_owned();
            return self.send(refused(self.etcd.header(), reason)).await;
        }
        let created = self.etcd.store.read(|state| self.watchers.create(state, request));
        let response = match created {
            Ok(created) => pb::WatchResponse {
                header: Some(self.etcd.header_at(created.revision)),
                watch_id: created.id.0,
                created: true,
                ..pb::WatchResponse::default()
            },
            Err(why) => refused(self.etcd.header(), why.to_string()),
        };
        self.send(response).await
    }

    async fn news(&mut self, news: Result<Arc<Applied>, broadcast::error::RecvError>) -> Result<(), Gone> {
        match news {
            Ok(applied) if !applied.restored => {
                for (id, batch) in self.watchers.on_events(&applied.events) {
                    self.deliver(id, batch).await?;
                }
                Ok(())
            }
            // Behind, or the state has jumped: history knows what was missed.
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {
                self.etcd.store.read(|state| self.watchers.resync(state));
                Ok(())
            }
            Err(broadcast::error::RecvError::Closed) => Err(Gone),
        }
    }

    async fn catch_up(&mut self) -> Result<(), Gone> {
        let deliveries = self.etcd.store.read(|state| self.watchers.catch_up(state, PIECE));
        for (id, delivery) in deliveries {
            match delivery {
                Delivery::Events(batch) => self.deliver(id, batch).await?,
                Delivery::Compacted { compact_revision } => {
                    // Without a revision in the header. Source: etcd.
                    self.send(pb::WatchResponse {
                        header: Some(self.etcd.header_at(0)),
                        watch_id: id.0,
                        canceled: true,
                        compact_revision,
                        ..pb::WatchResponse::default()
                    })
                    .await?;
                }
            }
        }
        Ok(())
    }

    async fn deliver(&mut self, id: WatchId, batch: WatchBatch) -> Result<(), Gone> {
        let WatchBatch { revision, mut events, fragment } = batch;
        events.retain(|event| self.etcd.guard.shows(event));
        if events.is_empty() {
            return Ok(());
        }
        self.served.insert(id);
        self.send(pb::WatchResponse {
            header: Some(self.etcd.header_at(revision)),
            watch_id: id.0,
            fragment,
            events: events.into_iter().map(convert::event_out).collect(),
            ..pb::WatchResponse::default()
        })
        .await
    }

    /// The answer to a client that asks for progress; silence while a watcher is behind.
    async fn progress(&mut self) -> Result<(), Gone> {
        loop {
            match self.applied.try_recv() {
                Ok(applied) => self.news(Ok(applied)).await?,
                Err(broadcast::error::TryRecvError::Lagged(missed)) => {
                    self.news(Err(broadcast::error::RecvError::Lagged(missed))).await?;
                }
                Err(_) => break,
            }
        }
        match self.watchers.progress() {
            Some(revision) => {
                let header = Some(self.etcd.header_at(revision));
                self.send(pb::WatchResponse { header, watch_id: -1, ..pb::WatchResponse::default() }).await
            }
            None => Ok(()),
        }
    }

    async fn tell_progress(&mut self) -> Result<(), Gone> {
        let served = std::mem::take(&mut self.served);
        let idle: Vec<WatchId> = self.watchers.ids().filter(|id| !served.contains(id)).collect();
        for id in idle {
            if let Some(revision) = self.watchers.progress_of(id) {
                let header = Some(self.etcd.header_at(revision));
                self.send(pb::WatchResponse { header, watch_id: id.0, ..pb::WatchResponse::default() }).await?;
            }
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl Watch for Etcd {
    type WatchStream = Answers;

    async fn watch(&self, request: Request<Streaming<pb::WatchRequest>>) -> Result<Answer<Answers>, Status> {
        let needs_leader = self.require_leader(request.metadata())?;
        let caller = self.caller(request.metadata()).await?;
        Ok(Answer::new(self.watch_stream(request.into_inner(), needs_leader, caller)))
    }
}
