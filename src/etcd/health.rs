//! gRPC's own health check. Source: the gRPC health checking protocol; the empty name stands for the whole server.

use std::pin::Pin;

use futures_util::{Stream, StreamExt, stream};
use tonic::{Request, Response as Answer, Status};

use super::Etcd;
use super::pb::health::health_check_response::ServingStatus;
use super::pb::health::health_server::Health;
use super::pb::health::{HealthCheckRequest, HealthCheckResponse};

fn serving() -> HealthCheckResponse {
    HealthCheckResponse { status: ServingStatus::Serving.into() }
}

fn check(request: &HealthCheckRequest) -> Result<HealthCheckResponse, Status> {
    if request.service.is_empty() { Ok(serving()) } else { Err(Status::not_found("unknown service")) }
}

#[tonic::async_trait]
impl Health for Etcd {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Answer<HealthCheckResponse>, Status> {
        check(request.get_ref()).map(Answer::new)
    }

    /// Tells that it serves, and then stays open until the node stops.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Answer<Self::WatchStream>, Status> {
        let now = check(request.get_ref())?;
        let closing = self.closing.clone();
        let stopped = stream::once(async move {
            closing.cancelled().await;
            Err(super::error::stopped())
        });
        Ok(Answer::new(stream::once(std::future::ready(Ok(now))).chain(stopped).boxed()))
    }
}
