//! Writes answers and events as lines of a story.

use super::super::command::{Event, EventKind, KeyValue, RangeResponse, Response, ResponseOp, TxnResponse};
use super::super::watch::{WatchBatch, WatchId};
use super::super::{Error, LeaseView};

/// What one line of a story answers.
#[derive(Default)]
pub(super) struct Page {
    text: String,
    indent: usize,
}

impl Page {
    pub fn into_text(self) -> String {
        self.text
    }

    pub fn line(&mut self, line: impl AsRef<str>) {
        self.text.push_str(&" ".repeat(2 * self.indent));
        self.text.push_str(line.as_ref());
        self.text.push('\n');
    }

    fn inside(&mut self, show: impl FnOnce(&mut Self)) {
        self.indent += 1;
        show(self);
        self.indent -= 1;
    }

    pub fn answer<T>(&mut self, answer: Result<T, Error>, show: impl FnOnce(&mut Self, T)) {
        match answer {
            Ok(value) => show(self, value),
            Err(error) => self.line(format!("{:?} {error}", error.code())),
        }
    }

    pub fn response(&mut self, response: &Result<Response, Error>) {
        self.answer(response.as_ref().map_err(Clone::clone), |page, response| match response {
            Response::Put(put) => page.op(&ResponseOp::Put(put.clone())),
            Response::DeleteRange(delete) => page.op(&ResponseOp::DeleteRange(delete.clone())),
            Response::Txn(txn) => page.txn(txn),
            Response::Compact { revision } => page.line(format!("rev {revision} compacted")),
            Response::LeaseGrant { revision, id, ttl_ms } => {
                page.line(format!("rev {revision} lease {} ttl {ttl_ms} ms", id.0));
            }
            Response::LeaseRevoke { revision } => page.line(format!("rev {revision} revoked")),
            Response::Many(responses) => responses.iter().for_each(|response| page.response(response)),
            Response::Auth { revision } => page.line(format!("rev {revision} users and roles")),
            Response::LeasesExpire { revision, expired } => {
                let ids: Vec<_> = expired.iter().map(|id| id.0.to_string()).collect();
                page.line(format!("rev {revision} expired [{}]", ids.join(" ")));
            }
        });
    }

    fn op(&mut self, op: &ResponseOp) {
        match op {
            ResponseOp::Range(response) => self.range(response.clone()),
            ResponseOp::Put(response) => {
                self.line(format!("rev {} put", response.revision));
                self.inside(|page| response.prev_kv.iter().for_each(|prev| page.line(format!("was {}", pair(prev)))));
            }
            ResponseOp::DeleteRange(response) => {
                self.line(format!("rev {} deleted {}", response.revision, response.deleted));
                self.inside(|page| page.pairs("was ", &response.prev_kvs));
            }
            ResponseOp::Txn(response) => self.txn(response),
        }
    }

    pub fn txn(&mut self, response: &TxnResponse) {
        let branch = if response.succeeded { "then" } else { "else" };
        self.line(format!("rev {} {branch}", response.revision));
        self.inside(|page| match response.responses.as_slice() {
            few if few.len() <= 8 => few.iter().for_each(|op| page.op(op)),
            many => page.line(format!("{} answers", many.len())),
        });
    }

    pub fn range(&mut self, response: RangeResponse) {
        let more = if response.more { " more" } else { "" };
        self.line(format!("rev {} count {}{more}", response.revision, response.count));
        self.inside(|page| page.pairs("", &response.kvs));
    }

    fn pairs(&mut self, what: &str, pairs: &[KeyValue]) {
        match pairs {
            few if few.len() <= 8 => few.iter().for_each(|kv| self.line(format!("{what}{}", pair(kv)))),
            many => self.line(format!("{what}{} pairs", many.len())),
        }
    }

    pub fn lease(&mut self, lease: LeaseView<'_>) {
        let keys: Vec<_> = lease.keys.iter().map(|key| text(key)).collect();
        self.line(format!("ttl {} ms keys [{}]", lease.ttl_ms, keys.join(" ")));
    }

    pub fn event(&mut self, event: &Event) {
        let kv = match event.kind {
            EventKind::Put => format!("PUT {}", pair(&event.kv)),
            EventKind::Delete => {
                let tombstone =
                    KeyValue { key: event.kv.key.clone(), mod_revision: event.kv.mod_revision, ..KeyValue::default() };
                assert_eq!(event.kv, tombstone, "a deletion tells the key and the revision only");
                format!("DELETE {} mod {}", text(&event.kv.key), event.kv.mod_revision)
            }
        };
        let prev = event.prev_kv.as_ref().map_or(String::new(), |prev| format!(" (was {})", pair(prev)));
        self.line(format!("{kv}{prev}"));
    }

    pub fn batch(&mut self, id: WatchId, batch: &WatchBatch) {
        let fragment = if batch.fragment { " fragment" } else { "" };
        self.line(format!("watcher {} at {}{fragment}", id.0, batch.revision));
        self.inside(|page| batch.events.iter().for_each(|event| page.event(event)));
    }
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn pair(kv: &KeyValue) -> String {
    let value = match kv.value.len() {
        0..=40 => text(&kv.value),
        length => format!("({length} bytes)"),
    };
    let lease = if kv.lease.0 == 0 { String::new() } else { format!(" lease {}", kv.lease.0) };
    let (key, create, changed, version) = (text(&kv.key), kv.create_revision, kv.mod_revision, kv.version);
    format!("{key}={value} create {create} mod {changed} version {version}{lease}")
}
