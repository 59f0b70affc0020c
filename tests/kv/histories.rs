//! Random histories: each answer is the model's.

use howdah::kv::command::{
    Command, Compare, CompareResult, CompareTarget, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, SortOrder,
    SortTarget, TxnRequest,
};
use howdah::types::LeaseId;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::target::{Model, Target, put};

/// Commands of one history.
const STEPS: usize = 250;
/// Histories that are the same in each run, beside a new one.
const SEEDS: [u64; 3] = [1, 2, 3];

/// Draws commands over a few keys, so that they meet.
pub struct Draw {
    random: StdRng,
    /// Numbers of the leases of this history.
    leases: i64,
    /// What all its keys begin with.
    prefix: String,
}

impl Draw {
    /// Keys and leases that no other seed uses.
    pub fn new(seed: u64) -> Self {
        let leases = i64::try_from(seed % 1_000_000_000).unwrap() * 16 + 16;
        Self { random: StdRng::seed_from_u64(seed), leases, prefix: format!("h{seed}/") }
    }

    /// One in so many.
    pub fn one_in(&mut self, many: u32) -> bool {
        self.random.random_ratio(1, many)
    }

    /// A number below a bound.
    pub fn below(&mut self, bound: i64) -> i64 {
        self.random.random_range(0..bound)
    }

    /// A key.
    pub fn key(&mut self) -> String {
        let letter = char::from(b'a' + u8::try_from(self.below(6)).unwrap());
        format!("{}{letter}", self.prefix)
    }

    /// A key, and an end: none, another key, or the end of all of this history's keys.
    pub fn range(&mut self) -> (String, String) {
        let key = self.key();
        let end = match self.below(4) {
            0 => self.key(),
            1 => format!("{}0", self.prefix.trim_end_matches('/')),
            _ => String::new(),
        };
        (key, end)
    }

    fn lease(&mut self) -> LeaseId {
        LeaseId(self.leases + self.below(4))
    }

    /// A revision that is mostly known, sometimes gone or still to come; zero for the present one.
    fn revision(&mut self, now: i64) -> i64 {
        match self.below(3) {
            0 => self.random.random_range(1..=now + 2),
            _ => 0,
        }
    }

    fn put(&mut self) -> PutRequest {
        let value = format!("v{}", self.below(5));
        let mut request = put(&self.key(), &value);
        if self.one_in(4) {
            request.lease = self.lease();
        }
        request.prev_kv = self.one_in(2);
        request.ignore_value = self.one_in(6);
        if request.ignore_value && !self.one_in(4) {
            request.value = Vec::new();
        }
        request.ignore_lease = self.one_in(6);
        if request.ignore_lease && !self.one_in(4) {
            request.lease = LeaseId(0);
        }
        request
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        let (key, end) = self.range();
        DeleteRangeRequest { key: key.into(), range_end: end.into(), prev_kv: self.one_in(2) }
    }

    fn read(&mut self, now: i64) -> RangeRequest {
        let (key, end) = self.range();
        let targets = [SortTarget::Key, SortTarget::Mod];
        let mut request = RangeRequest { key: key.into(), range_end: end.into(), ..RangeRequest::default() };
        request.revision = self.revision(now);
        request.limit = if self.one_in(3) { self.below(4) } else { 0 };
        request.keys_only = self.one_in(5);
        request.count_only = self.one_in(6);
        if self.one_in(2) {
            // Pairs that are equal by what they are sorted by stay in the order of their keys.
            request.sort_target = targets[usize::try_from(self.below(2)).unwrap()];
            request.sort_order = if self.one_in(2) { SortOrder::Descend } else { SortOrder::Ascend };
        }
        if self.one_in(4) {
            request.min_mod_revision = self.random.random_range(1..=now + 1);
        }
        if self.one_in(4) {
            request.max_create_revision = self.random.random_range(1..=now + 1);
        }
        request
    }

    fn compare(&mut self, now: i64) -> Compare {
        let results = [CompareResult::Equal, CompareResult::Greater, CompareResult::Less, CompareResult::NotEqual];
        let (key, range_end) = self.range();
        let target = match self.below(5) {
            0 => CompareTarget::Version(self.below(4)),
            1 => CompareTarget::Create(self.random.random_range(1..=now + 1)),
            2 => CompareTarget::Mod(self.random.random_range(1..=now + 1)),
            3 => CompareTarget::Value(format!("v{}", self.below(5)).into()),
            _ => CompareTarget::Lease(self.lease()),
        };
        let result = results[usize::try_from(self.below(4)).unwrap()];
        Compare { key: key.into(), range_end: range_end.into(), result, target }
    }

    fn ops(&mut self, now: i64, depth: u32) -> Vec<RequestOp> {
        let count = self.below(4);
        let op = |draw: &mut Self| match draw.below(if depth > 0 { 4 } else { 3 }) {
            0 => RequestOp::Put(draw.put()),
            1 => RequestOp::DeleteRange(draw.delete()),
            2 => RequestOp::Range(draw.read(now)),
            _ => RequestOp::Txn(draw.txn(now, depth - 1)),
        };
        (0..count).map(|_| op(self)).collect()
    }

    fn txn(&mut self, now: i64, depth: u32) -> TxnRequest {
        let compare = (0..self.below(3)).map(|_| self.compare(now)).collect();
        TxnRequest { compare, success: self.ops(now, depth), failure: self.ops(now, depth) }
    }

    /// A change of keys: no compaction, no lease.
    pub fn change(&mut self, now: i64) -> Command {
        match self.below(6) {
            0 => Command::DeleteRange(self.delete()),
            1 => Command::Txn(self.txn(now, 1)),
            _ => Command::Put(PutRequest { lease: LeaseId(0), ignore_value: false, ignore_lease: false, ..self.put() }),
        }
    }

    fn command(&mut self, now: i64) -> Command {
        match self.below(20) {
            0..=6 => Command::Put(self.put()),
            7..=9 => Command::DeleteRange(self.delete()),
            10..=15 => Command::Txn(self.txn(now, 2)),
            16..=17 => Command::LeaseGrant { id: self.lease(), ttl_ms: 3_600_000 },
            18 => Command::LeaseRevoke { id: self.lease() },
            _ => Command::Compact { revision: self.random.random_range(1..=now + 1) },
        }
    }
}

/// Runs the histories.
pub async fn run(target: &mut Target) {
    let fresh = rand::random::<u32>();
    for seed in SEEDS.into_iter().chain([u64::from(fresh)]) {
        println!("history of seed {seed} on {}", target.name());
        one(target, seed).await;
    }
}

async fn one(target: &mut Target, seed: u64) {
    let old_etcd = target.is_old_etcd();
    let Target::Server(server) = target else { panic!("the model is what others are compared with") };
    // The last history may have compacted up to its end.
    server.apply(&Command::Put(put(&format!("begin{seed}"), ""))).await.unwrap();
    server.begin_here().await;
    let mut model = Model::default();
    let mut draw = Draw::new(seed);
    for step in 0..STEPS {
        let now = model.range(&crate::target::get("a")).unwrap().revision;
        if draw.one_in(3) {
            let request = draw.read(now);
            let (expected, answer) = (model.range(&request), server.range(&request).await);
            assert_eq!(answer, expected, "seed {seed}, step {step}: {request:?}");
            continue;
        }
        let command = draw.command(now);
        let (expected, _) = model.apply(&command);
        // Debian's 3.4.23 keeps what a refused transaction had done before the mistake.
        if expected.is_err() && matches!(command, Command::Txn(_)) && old_etcd {
            continue;
        }
        let answer = server.apply(&command).await;
        assert_eq!(answer, expected, "seed {seed}, step {step}: {command:?}");
    }
}
