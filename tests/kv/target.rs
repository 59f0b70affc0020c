//! What the suite talks to, in the store's own words.

use howdah::kv::command::{
    Command, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, Response,
    ResponseOp, TxnRequest, TxnResponse,
};
use howdah::kv::watch::{Delivery, WatchBatch, WatchId, WatchRequest, Watchers};
use howdah::kv::{Error, Event, State};
use howdah::types::LeaseId;

use crate::server::Server;

/// A refusal: gRPC code and text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub i32, pub String);

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self(error.code() as i32, error.to_string())
    }
}

/// An answer.
pub type Answer<T> = Result<T, Refused>;

/// A store under test.
pub enum Target {
    /// The pure state machine.
    Model(Box<Model>),
    /// A real one.
    Server(Server),
}

/// What a watch says next.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// Changes, in one answer.
    Events(Vec<Event>),
    /// Everything up to this revision was said.
    Progress(i64),
    /// It ends: history before this revision is gone.
    Compacted(i64),
}

/// The state machine with its watchers.
pub struct Model {
    state: State,
    watchers: Watchers,
    said: std::collections::VecDeque<(WatchId, Said)>,
}

impl Default for Model {
    fn default() -> Self {
        let state = State::new();
        let watchers = Watchers::new(&state);
        Self { state, watchers, said: std::collections::VecDeque::new() }
    }
}

impl Model {
    /// Does a command; watchers hear of it.
    pub fn apply(&mut self, command: &Command) -> (Answer<Response>, Vec<Event>) {
        let applied = self.state.apply(command);
        for (id, WatchBatch { events, .. }) in self.watchers.on_applied(&applied) {
            self.said.push_back((id, Said::Events(events)));
        }
        (applied.response.map(plain).map_err(Refused::from), applied.events)
    }

    /// Reads a range.
    pub fn range(&self, request: &RangeRequest) -> Answer<RangeResponse> {
        self.state.range(request).map_err(Refused::from)
    }

    fn lease_keys(&self, id: i64) -> Vec<Vec<u8>> {
        self.state.lease(LeaseId(id)).map_or(Vec::new(), |lease| lease.keys.iter().map(|key| key.to_vec()).collect())
    }

    /// Starts a watch.
    pub fn watch(&mut self, request: WatchRequest) -> WatchId {
        // Marks are asked for here, too: `Model::next`.
        self.watchers.create(&self.state, WatchRequest { progress_notify: true, ..request }).unwrap().id
    }

    /// Ends a watch.
    pub fn cancel(&mut self, id: WatchId) {
        assert!(self.watchers.cancel(id));
    }

    /// What a watch says next, if it has anything to say; a mark of progress when it has said all.
    pub fn next(&mut self, id: WatchId) -> Said {
        while self.watchers.is_behind() {
            for (id, delivery) in self.watchers.catch_up(&self.state, 7) {
                let said = match delivery {
                    Delivery::Events(batch) => Said::Events(batch.events),
                    Delivery::Compacted { compact_revision } => Said::Compacted(compact_revision),
                };
                self.said.push_back((id, said));
            }
        }
        match self.said.iter().position(|(to, _)| *to == id) {
            Some(place) => self.said.remove(place).unwrap().1,
            None => Said::Progress(self.watchers.progress_of(id).unwrap()),
        }
    }
}

impl Target {
    /// Its name, for messages.
    pub fn name(&self) -> &str {
        match self {
            Target::Model(_) => "the model",
            Target::Server(server) => server.name,
        }
    }

    /// Whether it is the etcd that Debian ships, 3.4.23, which later ones have corrected in some places.
    pub fn is_old_etcd(&self) -> bool {
        self.name() == "etcd"
    }

    /// Does one command.
    pub async fn apply(&mut self, command: &Command) -> Answer<Response> {
        match self {
            Target::Model(model) => match command {
                // Servers raise what is too short, before it is proposed.
                Command::LeaseGrant { id, ttl_ms } => {
                    model.apply(&Command::LeaseGrant { id: *id, ttl_ms: (*ttl_ms).max(2000) }).0
                }
                other => model.apply(other).0,
            },
            Target::Server(server) => server.apply(command).await,
        }
    }

    /// Reads a range.
    pub async fn range(&mut self, request: RangeRequest) -> Answer<RangeResponse> {
        match self {
            Target::Model(model) => model.range(&request),
            Target::Server(server) => server.range(&request).await,
        }
    }

    /// The keys that hang on a lease.
    pub async fn lease_keys(&mut self, id: i64) -> Vec<Vec<u8>> {
        match self {
            Target::Model(model) => model.lease_keys(id),
            Target::Server(server) => server.lease_keys(id).await,
        }
    }

    /// Puts a pair; with a lease if it is not zero.
    pub async fn put(&mut self, key: &str, value: &str, lease: i64) -> Answer<PutResponse> {
        self.put_with(PutRequest { lease: LeaseId(lease), ..put(key, value) }).await
    }

    /// Puts with all that a put may say.
    pub async fn put_with(&mut self, request: PutRequest) -> Answer<PutResponse> {
        match self.apply(&Command::Put(request)).await? {
            Response::Put(response) => Ok(response),
            other => panic!("{other:?}"),
        }
    }

    /// Deletes a range.
    pub async fn delete(&mut self, key: &str, range_end: &str, prev_kv: bool) -> Answer<DeleteRangeResponse> {
        let request = DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv };
        match self.apply(&Command::DeleteRange(request)).await? {
            Response::DeleteRange(response) => Ok(response),
            other => panic!("{other:?}"),
        }
    }

    /// Does a transaction.
    pub async fn txn(&mut self, request: TxnRequest) -> Answer<TxnResponse> {
        match self.apply(&Command::Txn(request)).await? {
            Response::Txn(response) => Ok(response),
            other => panic!("{other:?}"),
        }
    }

    /// Forgets history; the revision.
    pub async fn compact(&mut self, revision: i64) -> Answer<i64> {
        match self.apply(&Command::Compact { revision }).await? {
            Response::Compact { revision } => Ok(revision),
            other => panic!("{other:?}"),
        }
    }

    /// The present revision.
    pub async fn now(&mut self) -> i64 {
        self.range(get("a")).await.unwrap().revision
    }
}

/// A transaction's answer without what nested ones say in their own headers: etcd leaves it open.
fn plain(response: Response) -> Response {
    fn level(txn: &mut TxnResponse, revision: i64) {
        txn.revision = revision;
        for response in &mut txn.responses {
            if let ResponseOp::Txn(inner) = response {
                level(inner, revision);
            }
        }
    }
    match response {
        Response::Txn(mut txn) => {
            let revision = txn.revision;
            level(&mut txn, revision);
            Response::Txn(txn)
        }
        other => other,
    }
}

/// A plain put.
pub fn put(key: &str, value: &str) -> PutRequest {
    let (prev_kv, ignore_value, ignore_lease) = (false, false, false);
    PutRequest { key: key.into(), value: value.into(), lease: LeaseId(0), prev_kv, ignore_value, ignore_lease }
}

/// A plain read.
pub fn get(key: &str) -> RangeRequest {
    RangeRequest { key: key.into(), ..RangeRequest::default() }
}
