//! The service `Lease`. Granting and revoking are log entries; keeping alive is a round of the quorum in memory.

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use tonic::{Request, Response as Answer, Status, Streaming};

use super::caller::Caller;
use super::pb::etcdserverpb as pb;
use super::pb::etcdserverpb::lease_server::Lease;
use super::{Etcd, error};
use crate::kv::command::{Command, Response};
use crate::kv::{MAX_LEASE_TTL_MS, State};
use crate::raft::RenewOutcome;
use crate::types::LeaseId;

/// Shortest time to live; less is raised to it. Source: etcd, one and a half elections, rounded up.
const TTL_MIN_S: i64 = 2;

/// Milliseconds of a requested time to live. One that is too long stays too long, for the store to refuse.
fn ttl_ms(seconds: i64) -> u64 {
    let seconds = u64::try_from(seconds.max(TTL_MIN_S)).unwrap_or(0);
    seconds.checked_mul(1000).unwrap_or(MAX_LEASE_TTL_MS + 1)
}

/// A free number, most probably, and not one of howdah's own.
pub(super) fn drawn_id() -> i64 {
    let id = (rand::random::<i64>() & i64::MAX).max(1);
    if LeaseId(id).is_own() { id & i64::from(u32::MAX) | 1 } else { id }
}

/// Refuses who may not read the keys that hang on a lease.
fn may_see(caller: &Caller, id: LeaseId, state: &State) -> Result<(), Status> {
    let mut keys = state.lease(id).into_iter().flat_map(|lease| lease.keys);
    keys.try_for_each(|key| state.auth().permits_read(&caller.user, key, &[]))
        .map_err(|refusal| error::rejected(&refusal))
}

fn whole_seconds(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX)
}

impl Etcd {
    /// Extends a lease; a dead one is answered with no time, not with an error.
    pub(super) async fn keep_alive(
        &self,
        caller: &Caller,
        request: pb::LeaseKeepAliveRequest,
    ) -> Result<pb::LeaseKeepAliveResponse, Status> {
        let id = LeaseId(request.id);
        self.store.read(|state| {
            state.permits_lease(&caller.user, id).map_err(|refusal| error::rejected(&refusal))?;
            self.guard.lease(id, state)
        })?;
        // Before the renewal, so that the revision is never beyond what the renewal saw. Source: etcd.
        let header = Some(self.header());
        let outcome = self.store.lease_renew(id, None, self.patience()).await;
        let ttl = match outcome.map_err(|failure| error::status(&failure))? {
            RenewOutcome::Renewed { ttl } => whole_seconds(ttl),
            RenewOutcome::LeaseGone | RenewOutcome::GuardBroken => 0,
        };
        Ok(pb::LeaseKeepAliveResponse { header, id: request.id, ttl })
    }
}

#[tonic::async_trait]
impl Lease for Etcd {
    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<pb::LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Answer<pb::LeaseGrantResponse>, Status> {
        let caller = self.caller(request.metadata()).await?;
        let pb::LeaseGrantRequest { ttl, id } = request.into_inner();
        let id = if id == 0 { drawn_id() } else { id };
        match self.change(&caller, Command::LeaseGrant { id: LeaseId(id), ttl_ms: ttl_ms(ttl) }).await? {
            Response::LeaseGrant { revision, id, ttl_ms } => Ok(Answer::new(pb::LeaseGrantResponse {
                header: Some(self.header_at(revision)),
                id: id.0,
                ttl: i64::try_from(ttl_ms / 1000).unwrap_or(i64::MAX),
                error: String::new(),
            })),
            other => Err(Status::internal(format!("etcdserver: unexpected answer {other:?}"))),
        }
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Answer<pb::LeaseRevokeResponse>, Status> {
        let caller = self.caller(request.metadata()).await?;
        let id = LeaseId(request.into_inner().id);
        match self.change(&caller, Command::LeaseRevoke { id }).await? {
            Response::LeaseRevoke { revision } => {
                Ok(Answer::new(pb::LeaseRevokeResponse { header: Some(self.header_at(revision)) }))
            }
            other => Err(Status::internal(format!("etcdserver: unexpected answer {other:?}"))),
        }
    }

    /// One answer for each request, in order; when the client has said all, the rest is answered and the stream ends.
    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Answer<Self::LeaseKeepAliveStream>, Status> {
        self.require_leader(request.metadata())?;
        let metadata = request.metadata().clone();
        let etcd = self.clone();
        let closing = self.closing.clone();
        let answers = request.into_inner().then(move |request| {
            let (etcd, metadata) = (etcd.clone(), metadata.clone());
            async move {
                // Asked each time: the stream may outlive its token, which each use makes live on.
                let caller = etcd.somebody(&metadata).await?;
                etcd.keep_alive(&caller, request?).await
            }
        });
        // The end of the requests ends the stream in order, the end of the node with an error: try another one.
        let farewell = {
            let closing = closing.clone();
            stream::once(async move { closing.is_cancelled().then(|| Err(error::stopped())) })
        };
        let answers = answers.take_until(closing.cancelled_owned());
        Ok(Answer::new(answers.chain(farewell.filter_map(std::future::ready)).boxed()))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Answer<pb::LeaseTimeToLiveResponse>, Status> {
        self.linearize().await?;
        let caller = self.somebody(request.metadata()).await?;
        let pb::LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        if keys {
            self.store.read(|state| may_see(&caller, LeaseId(id), state))?;
        }
        let header = Some(self.header());
        let remaining = self.store.lease_remaining(LeaseId(id), self.patience()).await;
        let remaining = remaining.map_err(|failure| error::status(&failure))?;
        let granted = self.store.read(|state| {
            let lease = state.lease(LeaseId(id))?;
            let attached = if keys { lease.keys.iter().map(|key| key.to_vec()).collect() } else { Vec::new() };
            Some((lease.ttl_ms / 1000, attached))
        });
        let (Some(remaining), Some((granted, keys))) = (remaining, granted) else {
            return Ok(Answer::new(pb::LeaseTimeToLiveResponse {
                header,
                id,
                ttl: -1,
                granted_ttl: 0,
                keys: Vec::new(),
            }));
        };
        let granted_ttl = i64::try_from(granted).unwrap_or(i64::MAX);
        Ok(Answer::new(pb::LeaseTimeToLiveResponse { header, id, ttl: whole_seconds(remaining), granted_ttl, keys }))
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Answer<pb::LeaseLeasesResponse>, Status> {
        self.linearize().await?;
        let caller = self.somebody(request.metadata()).await?;
        let leases = self.store.read(|state| {
            let leases = state.leases().map(|(id, _)| may_see(&caller, id, state).map(|()| id));
            leases.map(|id| Ok(pb::LeaseStatus { id: id?.0 })).collect::<Result<Vec<_>, Status>>()
        })?;
        Ok(Answer::new(pb::LeaseLeasesResponse { header: Some(self.header()), leases }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_live_are_raised_and_never_wrap() {
        assert_eq!([-5, 0, 1, 2, 60].map(ttl_ms), [2000, 2000, 2000, 2000, 60_000]);
        assert!(ttl_ms(i64::MAX) > MAX_LEASE_TTL_MS);
        assert!(ttl_ms(9_000_000_001) > MAX_LEASE_TTL_MS);
    }
}
