//! Steps that write to the shared record: each a transaction that compares what the decision was made from.

use std::time::Duration;

use tracing::info;

use super::{Actor, Failure};
use crate::agent::upkeep::promotions;
use crate::cluster::ClusterRecord;
use crate::cluster::records::{BootstrapRecord, HandoverRecord, Promotions, StatusRecord};
use crate::ha::view::{DataDirView, Memory};
use crate::ha::{ClusterView, RecordStep};
use crate::kv::command::{Command, Response, TxnRequest, TxnResponse};
use crate::telemetry::clock;
use crate::types::{LeaseId, Lsn, Term};

/// A write to the record must be answered within.
const WRITE: Duration = Duration::from_secs(2);

impl Actor {
    pub(super) async fn record(
        &mut self,
        step: &RecordStep,
        view: &ClusterView,
        memory: &mut Memory,
    ) -> Result<(), Failure> {
        match step {
            RecordStep::ClaimBootstrap => {
                let bootstrap = BootstrapRecord { by: self.me.clone(), at: clock::wall() };
                let txn = self.writes.claim_bootstrap(&self.me, self.lease()?, &bootstrap);
                let answer = self.write(txn).await?;
                self.lock.hold(Some(Term(answer.revision)));
            }
            RecordStep::FinishBootstrap { term, system_id } => {
                let present = view.record.any().is_some_and(|record| record.config.is_some());
                let config = (!present).then_some(&self.initial_config);
                let credentials = self.credentials.as_ref().and_then(|known| self.logins.generated(known));
                let txn = self.writes.finish_bootstrap(*term, *system_id, config, credentials.as_ref());
                self.write(txn).await?;
                info!(%system_id, "the cluster exists");
            }
            RecordStep::TakeLeader { reserve } => {
                let txn = self.writes.take_leader(&self.me, self.lease()?, decided_on(view)?, *reserve);
                let answer = self.write(txn).await?;
                self.lock.hold(Some(Term(answer.revision)));
                self.await_permit(Term(answer.revision)).await;
            }
            RecordStep::ReserveTimeline { term, timeline } => {
                self.write(self.writes.reserve_timeline(*term, decided_on(view)?, *timeline)).await?;
            }
            RecordStep::ReleaseLeader { term } => {
                let status = position(view).map(|optime| StatusRecord { optime, ..published_status(view) });
                self.ends(*term, memory).await;
                let history = self.unpublished_history(view);
                let creating = view.record.any().is_some_and(ClusterRecord::is_being_created);
                let txn = self.writes.release_leader(*term, status.as_ref(), history.as_ref(), creating);
                self.write(self.writes.with_ended(txn, self.ending.as_ref())).await?;
                memory.crash_restarts.clear();
            }
            RecordStep::HandOver { term, to, shutdown_lsn, why } => {
                let handover = HandoverRecord {
                    from: self.me.clone(),
                    to: to.clone(),
                    shutdown_lsn: *shutdown_lsn,
                    ended_term: term.0,
                    at: clock::wall(),
                    why: why.clone(),
                };
                self.ends(*term, memory).await;
                let history = self.unpublished_history(view);
                let txn = self.writes.hand_over(*term, &handover, &published_status(view), history.as_ref());
                self.write(self.writes.with_ended(txn, self.ending.as_ref())).await?;
                memory.stopped_for_handover = None;
            }
            RecordStep::WriteSync { term, record, mod_revision } => {
                let mut record = record.clone();
                if let Some(degraded) = &mut record.degraded {
                    degraded.since = degraded.since.or(Some(clock::wall()));
                }
                self.write(self.writes.sync(*term, &record, *mod_revision)).await?;
            }
            RecordStep::RemoveSync { term, mod_revision } => {
                self.write(self.writes.remove_sync(*term, *mod_revision)).await?;
            }
            RecordStep::ClearRequest { mod_revision } => {
                self.write(self.writes.clear_request(*mod_revision)).await?;
                memory.stopped_for_handover = None;
                memory.catching_up_since = None;
            }
        }
        Ok(())
    }

    /// What is asked for now may be done when this process is long gone.
    async fn ends(&self, term: Term, memory: &mut Memory) {
        self.lock.give_up(term);
        memory.ending_term = Some(term);
        self.ended.remember(term).await;
    }

    /// The permit follows the key by one quorum round; waiting here saves a tick.
    async fn await_permit(&self, term: Term) {
        let mut watch = self.lock.watch();
        let arrived = watch.wait_for(|state| state.permit.is_some_and(|permit| permit.term == term));
        // Not arriving in time is no error: the next decision sees it.
        let _ = tokio::time::timeout(Duration::from_secs(1), arrived).await.is_ok();
    }

    /// Proposes a transaction; an unmet comparison is `Lost`.
    pub async fn write(&self, txn: TxnRequest) -> Result<TxnResponse, Failure> {
        match self.store.propose(Command::Txn(txn), WRITE).await {
            Ok(Response::Txn(answer)) if answer.succeeded => {
                // The next decision must not be made on a record from before this write.
                let mut applied = self.store.applied();
                let seen = applied.wait_for(|revision| answer.revision <= *revision);
                match tokio::time::timeout(WRITE, seen).await {
                    Ok(Ok(_)) => Ok(answer),
                    Ok(Err(_)) | Err(_) => Err(Failure::Store("written, but not seen here in time".to_owned())),
                }
            }
            Ok(Response::Txn(_)) => Err(Failure::Lost),
            Ok(other) => Err(Failure::Store(format!("unexpected answer {other:?}"))),
            Err(error) => Err(Failure::Store(error.to_string())),
        }
    }

    /// The promotions until the timeline of the data here, if the record does not have the newest of them: this leader
    /// stops within a heartbeat of its promotion.
    fn unpublished_history(&self, view: &ClusterView) -> Option<Promotions> {
        let DataDirView::Present(control) = &view.data_dir else { return None };
        let record = view.record.any().filter(|record| record.timeline() < control.timeline)?;
        // Not to be read: then it is not published, and the key is released all the same.
        let history = self.instance.timeline_history(control.timeline).ok()?;
        Some(promotions(record, &history, &self.me, clock::wall()))
    }

    fn lease(&self) -> Result<LeaseId, Failure> {
        self.lock.state().lease.ok_or_else(|| Failure::Missing("this node has no lease yet".to_owned()))
    }
}

/// The record that the decision was made on.
pub(super) fn decided_on(view: &ClusterView) -> Result<&ClusterRecord, Failure> {
    view.record.any().ok_or_else(|| Failure::Missing("the shared record has not been read yet".to_owned()))
}

/// What was published of the leader last.
fn published_status(view: &ClusterView) -> StatusRecord {
    let status = view.record.any().and_then(|record| record.status.as_ref());
    status.map(|status| status.value.clone()).unwrap_or_default()
}

fn position(view: &ClusterView) -> Option<Lsn> {
    match &view.data_dir {
        DataDirView::Present(control) => Some(control.checkpoint),
        _ => None,
    }
}
