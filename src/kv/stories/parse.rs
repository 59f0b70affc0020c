//! Reads a story's lines. Panics on what it does not understand: a story is a test.

use std::collections::{BTreeMap, VecDeque};

use super::super::command::{
    Command, Compare, CompareResult, CompareTarget, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, SortOrder,
    SortTarget, TxnRequest,
};
use super::super::watch::WatchRequest;
use crate::types::LeaseId;

/// A command with its arguments and `name=value` options.
pub(super) struct Clause {
    pub name: String,
    words: VecDeque<String>,
    options: BTreeMap<String, String>,
}

impl Clause {
    /// A whole line. Transactions keep their options among the words, for the clauses inside.
    pub fn all(line: Vec<String>) -> Self {
        let mut words = VecDeque::from(line);
        let name = words.pop_front().unwrap();
        let mut clause = Self { name, words: VecDeque::new(), options: BTreeMap::new() };
        let whole = ["txn", "read-txn", "check"].contains(&clause.name.as_str());
        for word in words {
            match word.split_once('=') {
                Some((option, value)) if !whole && !option.is_empty() => {
                    clause.options.insert(option.to_owned(), value.to_owned());
                }
                _ => clause.words.push_back(word),
            }
        }
        clause
    }

    fn next(&mut self) -> String {
        self.words.pop_front().unwrap_or_else(|| panic!("{} wants more words", self.name))
    }

    fn peek(&self) -> Option<&str> {
        self.words.front().map(String::as_str)
    }

    pub fn number(&mut self) -> i64 {
        self.next().parse().unwrap()
    }

    pub fn option(&mut self, name: &str) -> Option<String> {
        self.options.remove(name)
    }

    pub fn option_number(&mut self, name: &str) -> Option<i64> {
        self.option(name).map(|value| value.parse().unwrap())
    }

    fn flag(&mut self, name: &str) -> bool {
        self.option(name).is_some_and(|value| value == "yes")
    }

    /// Nothing may be left over.
    pub fn finish(&self) {
        assert!(self.words.is_empty() && self.options.is_empty(), "{}: {:?} {:?}", self.name, self.words, self.options);
    }

    pub fn range(&mut self) -> (Vec<u8>, Vec<u8>) {
        let word = self.next();
        match word.split_once("..") {
            None => (word.into_bytes(), Vec::new()),
            Some((key, "")) => (key.into(), vec![0]),
            Some((key, end)) => (key.into(), end.into()),
        }
    }

    pub fn range_request(&mut self) -> RangeRequest {
        let (key, range_end) = self.range();
        let (sort_target, sort_order) = self.sort();
        RangeRequest {
            key,
            range_end,
            limit: self.option_number("limit").unwrap_or(0),
            revision: self.option_number("rev").unwrap_or(0),
            sort_order,
            sort_target,
            keys_only: self.flag("keys_only"),
            count_only: self.flag("count_only"),
            min_mod_revision: self.option_number("min_mod").unwrap_or(0),
            max_mod_revision: self.option_number("max_mod").unwrap_or(0),
            min_create_revision: self.option_number("min_create").unwrap_or(0),
            max_create_revision: self.option_number("max_create").unwrap_or(0),
        }
    }

    /// `sort=mod`, `sort=mod/up`, `sort=mod/down`.
    fn sort(&mut self) -> (SortTarget, SortOrder) {
        let Some(sort) = self.option("sort") else { return Default::default() };
        let (target, order) = sort.split_once('/').unwrap_or((&sort, ""));
        let target = match target {
            "key" => SortTarget::Key,
            "version" => SortTarget::Version,
            "create" => SortTarget::Create,
            "mod" => SortTarget::Mod,
            "value" => SortTarget::Value,
            other => panic!("sort by {other}?"),
        };
        let order = match order {
            "" => SortOrder::None,
            "up" => SortOrder::Ascend,
            "down" => SortOrder::Descend,
            other => panic!("sort order {other}?"),
        };
        (target, order)
    }

    fn put(&mut self) -> PutRequest {
        let key = self.next().into_bytes();
        // `put k bytes=1000` writes a value of that length.
        let value = match self.option_number("bytes") {
            Some(length) => vec![b'x'; length as usize],
            None => self.words.pop_front().unwrap_or_default().into_bytes(),
        };
        PutRequest {
            key,
            value,
            lease: LeaseId(self.option_number("lease").unwrap_or(0)),
            prev_kv: self.flag("prev"),
            ignore_value: self.flag("ignore_value"),
            ignore_lease: self.flag("ignore_lease"),
        }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        let (key, range_end) = self.range();
        DeleteRangeRequest { key, range_end, prev_kv: self.flag("prev") }
    }

    pub fn watch_request(&mut self) -> WatchRequest {
        let (key, range_end) = self.range();
        WatchRequest {
            key,
            range_end,
            start_revision: self.option_number("from").unwrap_or(0),
            progress_notify: self.flag("progress"),
            no_put: self.flag("no_put"),
            no_delete: self.flag("no_delete"),
            prev_kv: self.flag("prev"),
            watch_id: self.option_number("id").unwrap_or(0),
            fragment: self.flag("fragment"),
        }
    }

    pub fn rest_as_command(&mut self) -> Command {
        let mut inner = Self::all(self.words.drain(..).collect());
        let command = inner.command();
        inner.finish();
        command
    }

    pub fn command(&mut self) -> Command {
        match self.name.as_str() {
            "put" => Command::Put(self.put()),
            "del" => Command::DeleteRange(self.delete()),
            "txn" => Command::Txn(self.txn()),
            "bulk" => Command::Txn(self.bulk()),
            "compact" => Command::Compact { revision: self.number() },
            "grant" => {
                let (id, seconds) = (LeaseId(self.number()), self.number());
                Command::LeaseGrant { id, ttl_ms: seconds as u64 * 1000 }
            }
            "revoke" => Command::LeaseRevoke { id: LeaseId(self.number()) },
            "expire" => {
                let ids = self.words.drain(..).map(|id| LeaseId(id.parse().unwrap())).collect();
                Command::LeasesExpire { ids }
            }
            other => panic!("{other} is no command"),
        }
    }

    /// `bulk k 3` puts k000, k001, k002; `nested=yes` does it in a transaction inside one.
    fn bulk(&mut self) -> TxnRequest {
        let (prefix, count) = (self.next(), self.number());
        let mut put = |number| {
            let key = format!("{prefix}{number:03}").into_bytes();
            RequestOp::Put(Self::all(vec!["put".into(), String::from_utf8(key).unwrap(), "v".into()]).put())
        };
        let txn = TxnRequest { success: (0..count).map(&mut put).collect(), ..TxnRequest::default() };
        match self.flag("nested") {
            true => TxnRequest { success: vec![RequestOp::Txn(txn)], ..TxnRequest::default() },
            false => txn,
        }
    }

    /// `if <compare> , ... then <op> , ... else <op> , ...`; each part may be left out.
    pub fn txn(&mut self) -> TxnRequest {
        let mut txn = TxnRequest::default();
        while let Some(word) = self.peek() {
            match word {
                ")" => break,
                "if" => txn.compare = self.list(Self::compare),
                "then" => txn.success = self.list(Self::op),
                "else" => txn.failure = self.list(Self::op),
                other => panic!("{other} in a txn?"),
            }
        }
        txn
    }

    fn at_end(&self) -> bool {
        matches!(self.peek(), None | Some(")" | "if" | "then" | "else"))
    }

    fn list<T>(&mut self, item: fn(&mut Self) -> T) -> Vec<T> {
        self.next();
        let mut items = Vec::new();
        while !self.at_end() {
            items.push(item(self));
            if self.peek() == Some(",") {
                self.next();
            }
        }
        items
    }

    fn compare(&mut self) -> Compare {
        let target = self.next();
        let (key, range_end) = self.range();
        let result = match self.next().as_str() {
            "=" => CompareResult::Equal,
            "!=" => CompareResult::NotEqual,
            ">" => CompareResult::Greater,
            "<" => CompareResult::Less,
            other => panic!("compare by {other}?"),
        };
        let target = match target.as_str() {
            "version" => CompareTarget::Version(self.number()),
            "create" => CompareTarget::Create(self.number()),
            "mod" => CompareTarget::Mod(self.number()),
            "lease" => CompareTarget::Lease(LeaseId(self.number())),
            "value" => CompareTarget::Value(self.next().trim_matches('"').into()),
            other => panic!("compare {other}?"),
        };
        Compare { key, range_end, result, target }
    }

    fn op(&mut self) -> RequestOp {
        if self.peek() == Some("(") {
            self.next();
            let txn = self.txn();
            assert_eq!(self.next(), ")");
            return RequestOp::Txn(txn);
        }
        let mut words = Vec::new();
        while !self.at_end() && self.peek() != Some(",") {
            words.push(self.next());
        }
        let mut clause = Self::all(words);
        let op = match clause.name.as_str() {
            "get" => RequestOp::Range(clause.range_request()),
            "put" => RequestOp::Put(clause.put()),
            "del" => RequestOp::DeleteRange(clause.delete()),
            "nothing" => RequestOp::Empty,
            other => panic!("{other} is no operation"),
        };
        clause.finish();
        op
    }
}
