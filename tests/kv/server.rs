//! A real store behind etcd's client library, with revisions counted from where the suite began.

use etcd_client::{
    Client, Compare as EtcdCompare, CompareOp, DeleteOptions, EventType, GetOptions, KeyValue as EtcdPair, PutOptions,
    SortOrder as EtcdOrder, SortTarget as EtcdTarget, Txn, TxnOp, TxnOpResponse, WatchFilterType, WatchOptions,
    WatchStream,
};
use howdah::kv::command::{
    Command, Compare, CompareResult, CompareTarget, DeleteRangeRequest, DeleteRangeResponse, Event, EventKind,
    KeyValue, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp, Response, ResponseOp, SortOrder,
    SortTarget, TxnRequest, TxnResponse,
};
use howdah::kv::watch::WatchRequest;
use howdah::types::LeaseId;

use crate::target::{Answer, Refused, Said};

/// A cluster; requests go to its members in turn.
pub struct Server {
    /// What it is.
    pub name: &'static str,
    clients: Vec<Client>,
    turn: usize,
    /// Its revision when the suite began, minus one: a fresh store begins at 1.
    base: i64,
}

/// A watch on one member.
pub struct Watch {
    stream: WatchStream,
    base: i64,
}

fn refused(error: etcd_client::Error) -> Refused {
    match error {
        etcd_client::Error::GRpcStatus(status) => Refused(status.code() as i32, status.message().to_owned()),
        other => panic!("{other}"),
    }
}

impl Server {
    /// Connects to all members, once they answer.
    pub async fn connect(name: &'static str, endpoints: &[String]) -> Self {
        let mut clients = Vec::new();
        for endpoint in endpoints {
            let mut client = Client::connect([endpoint], None).await.unwrap();
            while client.get("x", None).await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            clients.push(client);
        }
        let mut server = Self { name, clients, turn: 0, base: 0 };
        server.begin_here().await;
        server
    }

    /// Counts revisions from now on.
    pub async fn begin_here(&mut self) {
        let answer = self.client().get("x", None).await.unwrap();
        self.base = answer.header().unwrap().revision() - 1;
    }

    fn client(&mut self) -> Client {
        self.turn += 1;
        self.clients[self.turn % self.clients.len()].clone()
    }

    /// A revision of the suite as the store counts it; zero and less mean something else.
    fn theirs(&self, revision: i64) -> i64 {
        if revision > 0 { revision + self.base } else { revision }
    }

    fn ours(&self, revision: i64) -> i64 {
        if revision > 0 { revision - self.base } else { revision }
    }

    fn pair(&self, pair: &EtcdPair) -> KeyValue {
        KeyValue {
            key: pair.key().to_vec(),
            value: pair.value().to_vec(),
            create_revision: self.ours(pair.create_revision()),
            mod_revision: self.ours(pair.mod_revision()),
            version: pair.version(),
            lease: LeaseId(pair.lease()),
        }
    }

    fn get_options(&self, request: &RangeRequest) -> GetOptions {
        let order = match request.sort_order {
            SortOrder::None => EtcdOrder::None,
            SortOrder::Ascend => EtcdOrder::Ascend,
            SortOrder::Descend => EtcdOrder::Descend,
        };
        let target = match request.sort_target {
            SortTarget::Key => EtcdTarget::Key,
            SortTarget::Version => EtcdTarget::Version,
            SortTarget::Create => EtcdTarget::Create,
            SortTarget::Mod => EtcdTarget::Mod,
            SortTarget::Value => EtcdTarget::Value,
        };
        let mut options = GetOptions::new()
            .with_range(request.range_end.clone())
            .with_limit(request.limit)
            .with_revision(self.theirs(request.revision))
            .with_sort(target, order)
            .with_min_mod_revision(self.theirs(request.min_mod_revision))
            .with_max_mod_revision(self.theirs(request.max_mod_revision))
            .with_min_create_revision(self.theirs(request.min_create_revision))
            .with_max_create_revision(self.theirs(request.max_create_revision));
        if request.keys_only {
            options = options.with_keys_only();
        }
        if request.count_only {
            options = options.with_count_only();
        }
        options
    }

    fn put_options(request: &PutRequest) -> PutOptions {
        let mut options = PutOptions::new().with_lease(request.lease.0);
        if request.prev_kv {
            options = options.with_prev_key();
        }
        if request.ignore_value {
            options = options.with_ignore_value();
        }
        if request.ignore_lease {
            options = options.with_ignore_lease();
        }
        options
    }

    fn delete_options(request: &DeleteRangeRequest) -> DeleteOptions {
        let options = DeleteOptions::new().with_range(request.range_end.clone());
        if request.prev_kv { options.with_prev_key() } else { options }
    }

    fn compare(&self, compare: &Compare) -> EtcdCompare {
        let op = match compare.result {
            CompareResult::Equal => CompareOp::Equal,
            CompareResult::Greater => CompareOp::Greater,
            CompareResult::Less => CompareOp::Less,
            CompareResult::NotEqual => CompareOp::NotEqual,
        };
        let key = compare.key.clone();
        let built = match &compare.target {
            CompareTarget::Version(version) => EtcdCompare::version(key, op, *version),
            CompareTarget::Create(revision) => EtcdCompare::create_revision(key, op, self.theirs(*revision)),
            CompareTarget::Mod(revision) => EtcdCompare::mod_revision(key, op, self.theirs(*revision)),
            CompareTarget::Value(value) => EtcdCompare::value(key, op, value.clone()),
            CompareTarget::Lease(lease) => EtcdCompare::lease(key, op, lease.0),
        };
        if compare.range_end.is_empty() { built } else { built.with_range(compare.range_end.clone()) }
    }

    fn op(&self, op: &RequestOp) -> TxnOp {
        match op {
            RequestOp::Range(range) => TxnOp::get(range.key.clone(), Some(self.get_options(range))),
            RequestOp::Put(put) => TxnOp::put(put.key.clone(), put.value.clone(), Some(Self::put_options(put))),
            RequestOp::DeleteRange(delete) => TxnOp::delete(delete.key.clone(), Some(Self::delete_options(delete))),
            RequestOp::Txn(inner) => TxnOp::txn(self.txn(inner)),
            RequestOp::Empty => unreachable!("the client library has no such operation"),
        }
    }

    fn txn(&self, request: &TxnRequest) -> Txn {
        let ops = |ops: &[RequestOp]| ops.iter().map(|op| self.op(op)).collect::<Vec<_>>();
        let compares: Vec<_> = request.compare.iter().map(|compare| self.compare(compare)).collect();
        // The library refuses an empty list after another one, so that nothing is said where there is nothing.
        let mut txn = Txn::new();
        if !compares.is_empty() {
            txn = txn.when(compares);
        }
        if !request.success.is_empty() {
            txn = txn.and_then(ops(&request.success));
        }
        if !request.failure.is_empty() {
            txn = txn.or_else(ops(&request.failure));
        }
        txn
    }

    fn range_answer(&self, answer: &etcd_client::GetResponse) -> RangeResponse {
        RangeResponse {
            revision: self.ours(answer.header().unwrap().revision()),
            kvs: answer.kvs().iter().map(|pair| self.pair(pair)).collect(),
            more: answer.more(),
            count: answer.count(),
        }
    }

    fn put_answer(&self, answer: &etcd_client::PutResponse) -> PutResponse {
        let revision = self.ours(answer.header().unwrap().revision());
        PutResponse { revision, prev_kv: answer.prev_key().map(|pair| self.pair(pair)) }
    }

    fn delete_answer(&self, answer: &etcd_client::DeleteResponse) -> DeleteRangeResponse {
        DeleteRangeResponse {
            revision: self.ours(answer.header().unwrap().revision()),
            deleted: answer.deleted(),
            prev_kvs: answer.prev_kvs().iter().map(|pair| self.pair(pair)).collect(),
        }
    }

    /// `outer` is the whole transaction's revision: what a nested one says in its own header is nobody's business.
    fn txn_answer(&self, answer: &etcd_client::TxnResponse, outer: Option<i64>) -> TxnResponse {
        let revision = outer.unwrap_or_else(|| self.ours(answer.header().unwrap().revision()));
        let response = |response: TxnOpResponse| match response {
            TxnOpResponse::Get(get) => ResponseOp::Range(self.range_answer(&get)),
            TxnOpResponse::Put(put) => ResponseOp::Put(self.put_answer(&put)),
            TxnOpResponse::Delete(delete) => ResponseOp::DeleteRange(self.delete_answer(&delete)),
            TxnOpResponse::Txn(txn) => ResponseOp::Txn(self.txn_answer(&txn, Some(revision))),
        };
        let responses = answer.op_responses().into_iter().map(response).collect();
        TxnResponse { revision, succeeded: answer.succeeded(), responses }
    }

    /// Does one command, on the next member.
    pub async fn apply(&mut self, command: &Command) -> Answer<Response> {
        let mut client = self.client();
        Ok(match command {
            Command::Put(put) => {
                let answer = client.put(put.key.clone(), put.value.clone(), Some(Self::put_options(put))).await;
                Response::Put(self.put_answer(&answer.map_err(refused)?))
            }
            Command::DeleteRange(delete) => {
                let answer = client.delete(delete.key.clone(), Some(Self::delete_options(delete))).await;
                Response::DeleteRange(self.delete_answer(&answer.map_err(refused)?))
            }
            Command::Txn(txn) => {
                // etcd answers one without operations from what the member knows, however old that is.
                if txn.success.is_empty() && txn.failure.is_empty() {
                    client.get("x", None).await.unwrap();
                }
                let answer = client.txn(self.txn(txn)).await.map_err(refused)?;
                Response::Txn(self.txn_answer(&answer, None))
            }
            Command::Compact { revision } => {
                let answer = client.compact(self.theirs(*revision), None).await.map_err(refused)?;
                Response::Compact { revision: self.ours(answer.header().unwrap().revision()) }
            }
            Command::LeaseGrant { id, ttl_ms } => {
                let options = etcd_client::LeaseGrantOptions::new().with_id(id.0);
                let ttl = i64::try_from(*ttl_ms / 1000).unwrap();
                let answer = client.lease_grant(ttl, Some(options)).await.map_err(refused)?;
                Response::LeaseGrant {
                    revision: self.ours(answer.header().unwrap().revision()),
                    id: LeaseId(answer.id()),
                    ttl_ms: u64::try_from(answer.ttl()).unwrap() * 1000,
                }
            }
            Command::LeaseRevoke { id } => {
                let answer = client.lease_revoke(id.0).await.map_err(refused)?;
                Response::LeaseRevoke { revision: self.ours(answer.header().unwrap().revision()) }
            }
            other => unreachable!("no client's command: {other:?}"),
        })
    }

    /// Reads a range, on the next member.
    pub async fn range(&mut self, request: &RangeRequest) -> Answer<RangeResponse> {
        let options = self.get_options(request);
        let answer = self.client().get(request.key.clone(), Some(options)).await.map_err(refused)?;
        Ok(self.range_answer(&answer))
    }

    /// The keys that hang on a lease.
    pub async fn lease_keys(&mut self, id: i64) -> Vec<Vec<u8>> {
        let options = etcd_client::LeaseTimeToLiveOptions::new().with_keys();
        let answer = self.client().lease_time_to_live(id, Some(options)).await.unwrap();
        answer.keys().to_vec()
    }

    /// Starts a watch, on the next member.
    pub async fn watch(&mut self, request: WatchRequest) -> Watch {
        let mut filters = Vec::new();
        if request.no_put {
            filters.push(WatchFilterType::NoPut);
        }
        if request.no_delete {
            filters.push(WatchFilterType::NoDelete);
        }
        let mut options = WatchOptions::new()
            .with_range(request.range_end.clone())
            .with_start_revision(self.theirs(request.start_revision))
            .with_filters(filters);
        if request.prev_kv {
            options = options.with_prev_key();
        }
        let mut stream = self.client().watch(request.key, Some(options)).await.unwrap();
        let created = stream.message().await.unwrap().unwrap();
        assert!(created.created() && !created.canceled(), "{created:?}");
        Watch { stream, base: self.base }
    }

    /// What a watch says next.
    pub async fn next(&self, watch: &mut Watch) -> Said {
        let answer = tokio::time::timeout(std::time::Duration::from_secs(60), watch.stream.message()).await;
        let answer = answer.expect("the watch says something").unwrap().expect("the stream goes on");
        assert_eq!(watch.base, self.base);
        if answer.compact_revision() != 0 {
            return Said::Compacted(self.ours(answer.compact_revision()));
        }
        if answer.events().is_empty() {
            return Said::Progress(self.ours(answer.header().unwrap().revision()));
        }
        let event = |event: &etcd_client::Event| Event {
            kind: if event.event_type() == EventType::Put { EventKind::Put } else { EventKind::Delete },
            kv: self.pair(event.kv().unwrap()),
            prev_kv: event.prev_kv().map(|pair| self.pair(pair)),
        };
        Said::Events(answer.events().iter().map(event).collect())
    }
}

impl Watch {
    /// Asks how far everything was said.
    pub async fn ask_progress(&mut self) {
        self.stream.request_progress().await.unwrap();
    }
}
