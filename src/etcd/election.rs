//! The service `Election`: who is in front of a queue leads, and says so with a value.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tonic::{Request, Response as Answer, Status};

use super::caller::Caller;
use super::pb::v3electionpb as pb;
use super::pb::v3electionpb::election_server::Election;
use super::wait::{Place, delete_if, front, put_if, queue};
use super::{Etcd, convert, error};
use crate::kv::command::{EventKind, KeyValue, RangeRequest};
use crate::kv::prefix_end;
use crate::raft::Applied;
use crate::types::LeaseId;

/// Leaders that wait for an observer to read them.
const QUEUE: usize = 16;

fn not_leader() -> Status {
    Status::failed_precondition("election: not leader")
}

fn place(leader: Option<pb::LeaderKey>) -> Result<Place, Status> {
    let leader = leader.ok_or_else(|| Status::invalid_argument("\"leader\" field must be provided"))?;
    Ok(Place { key: leader.key, revision: leader.rev, lease: LeaseId(leader.lease) })
}

/// Who leads, followed change by change.
struct Observer {
    etcd: Etcd,
    queue: Vec<u8>,
    /// All who stand in the queue.
    standing: BTreeMap<Vec<u8>, KeyValue>,
    /// The store's revision when they were looked at.
    seen: i64,
    told: Option<KeyValue>,
    answers: mpsc::Sender<Result<pb::LeaderResponse, Status>>,
}

impl Observer {
    fn look(&mut self) {
        let queue = &self.queue;
        (self.seen, self.standing) = self.etcd.store.read(|state| {
            let pairs = state.prefix(queue).map(|pair| (pair.key.clone(), pair.clone()));
            (state.revision(), pairs.collect())
        });
    }

    /// Tells the leader if it has not been told. False when nobody listens any more.
    async fn tell(&mut self) -> bool {
        let Some(leader) = front(self.standing.values()) else {
            self.told = None;
            return true;
        };
        if self.told.as_ref() == Some(leader) {
            return true;
        }
        let header = Some(self.etcd.header_at(self.seen));
        let answer = pb::LeaderResponse { header, kv: Some(convert::pair_out(leader.clone())) };
        self.told = Some(leader.clone());
        self.answers.send(Ok(answer)).await.is_ok()
    }

    async fn run(mut self, mut news: broadcast::Receiver<Arc<Applied>>) {
        self.look();
        let closing = self.etcd.closing.clone();
        while self.tell().await {
            let heard = tokio::select! {
                () = closing.cancelled() => {
                    let _ = self.answers.send(Err(error::stopped())).await;
                    return;
                }
                () = self.answers.closed() => return,
                heard = news.recv() => heard,
            };
            match heard {
                Ok(applied) if !applied.restored => {
                    for event in applied.events.iter().filter(|event| event.kv.key.starts_with(&self.queue)) {
                        if event.kv.mod_revision <= self.seen {
                            continue;
                        }
                        match event.kind {
                            EventKind::Put => drop(self.standing.insert(event.kv.key.clone(), event.kv.clone())),
                            EventKind::Delete => drop(self.standing.remove(&event.kv.key)),
                        }
                    }
                    self.seen = self.seen.max(applied.revision);
                }
                // Behind, or the state has jumped: the one who leads now is what is left to tell.
                Ok(_) | Err(RecvError::Lagged(_)) => self.look(),
                Err(RecvError::Closed) => return,
            }
        }
    }
}

impl Etcd {
    async fn change_as_leader(
        &self,
        caller: &Caller,
        command: crate::kv::Command,
    ) -> Result<super::pb::etcdserverpb::ResponseHeader, Status> {
        let (was_leader, revision, _) = self.try_txn(caller, command).await?;
        if was_leader { Ok(self.header_at(revision)) } else { Err(not_leader()) }
    }
}

#[tonic::async_trait]
impl Election for Etcd {
    type ObserveStream = Pin<Box<dyn Stream<Item = Result<pb::LeaderResponse, Status>> + Send>>;

    async fn campaign(&self, request: Request<pb::CampaignRequest>) -> Result<Answer<pb::CampaignResponse>, Status> {
        let caller = self.caller(request.metadata()).await?;
        let pb::CampaignRequest { name, lease, value } = request.into_inner();
        let (place, standing) = self.enqueue(&caller, &name, lease, &value).await?;
        if standing != value {
            // It stood here before, with another value.
            self.change_as_leader(&caller, put_if(&place, value)).await?;
        }
        self.wait_turn(&caller, &name, &place).await?;
        let leader = pb::LeaderKey { name, key: place.key, rev: place.revision, lease: place.lease.0 };
        Ok(Answer::new(pb::CampaignResponse { header: Some(self.header()), leader: Some(leader) }))
    }

    async fn proclaim(&self, request: Request<pb::ProclaimRequest>) -> Result<Answer<pb::ProclaimResponse>, Status> {
        let caller = self.caller(request.metadata()).await?;
        let pb::ProclaimRequest { leader, value } = request.into_inner();
        let header = self.change_as_leader(&caller, put_if(&place(leader)?, value)).await?;
        Ok(Answer::new(pb::ProclaimResponse { header: Some(header) }))
    }

    async fn leader(&self, request: Request<pb::LeaderRequest>) -> Result<Answer<pb::LeaderResponse>, Status> {
        self.linearize().await?;
        let caller = self.caller(request.metadata()).await?;
        let key = queue(&request.into_inner().name);
        let range = RangeRequest { range_end: prefix_end(&key), key, ..RangeRequest::default() };
        let response = self.read_range(&caller, &range)?;
        let leader = front(response.kvs.iter()).ok_or_else(|| Status::not_found("election: no leader"))?;
        let kv = Some(convert::pair_out(leader.clone()));
        Ok(Answer::new(pb::LeaderResponse { header: Some(self.header_at(response.revision)), kv }))
    }

    /// Each leader, and each value that it proclaims, in order.
    async fn observe(&self, request: Request<pb::LeaderRequest>) -> Result<Answer<Self::ObserveStream>, Status> {
        self.linearize().await?;
        let caller = self.caller(request.metadata()).await?;
        let queue = queue(&request.into_inner().name);
        let range = RangeRequest {
            range_end: prefix_end(&queue),
            key: queue.clone(),
            count_only: true,
            ..RangeRequest::default()
        };
        self.read_range(&caller, &range)?;
        let (answers, leaders) = mpsc::channel(QUEUE);
        // Before the look, so that nothing is missed in between.
        let news = self.store.events();
        let (standing, told) = (BTreeMap::new(), None);
        let observer = Observer { etcd: self.clone(), queue, standing, seen: 0, told, answers };
        tokio::spawn(observer.run(news));
        let leaders = futures_util::stream::unfold(leaders, |mut leaders| async move {
            leaders.recv().await.map(|leader| (leader, leaders))
        });
        Ok(Answer::new(leaders.boxed()))
    }

    async fn resign(&self, request: Request<pb::ResignRequest>) -> Result<Answer<pb::ResignResponse>, Status> {
        let caller = self.caller(request.metadata()).await?;
        let place = place(request.into_inner().leader)?;
        // Who no longer leads has nothing to give up. Source: etcd.
        let (_, revision, _) = self.try_txn(&caller, delete_if(&place.key, place.revision)).await?;
        Ok(Answer::new(pb::ResignResponse { header: Some(self.header_at(revision)) }))
    }
}
