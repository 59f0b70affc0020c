//! What a fresh etcd answers, request by request.

use howdah::kv::command::{
    Command, Compare, CompareResult, CompareTarget, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, Response,
    ResponseOp, TxnRequest,
};
use howdah::types::LeaseId;

use crate::target::{Answer, Refused, Target, get, put};

fn compare(key: &str, range_end: &str, result: CompareResult, target: CompareTarget) -> Compare {
    Compare { key: key.into(), range_end: range_end.into(), result, target }
}

fn when(compare: Vec<Compare>) -> TxnRequest {
    TxnRequest { compare, ..TxnRequest::default() }
}

fn then(success: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { success, ..TxnRequest::default() }
}

fn op_put(key: &str) -> RequestOp {
    RequestOp::Put(put(key, "v"))
}

fn op_get(key: &str, range_end: &str, revision: i64) -> RequestOp {
    RequestOp::Range(RangeRequest { revision, ..range(key, range_end) })
}

fn op_delete(key: &str, range_end: &str) -> RequestOp {
    RequestOp::DeleteRange(DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv: false })
}

fn range(key: &str, range_end: &str) -> RangeRequest {
    RangeRequest { range_end: range_end.into(), ..get(key) }
}

fn puts(prefix: &str, count: usize) -> Vec<RequestOp> {
    (0..count).map(|number| op_put(&format!("{prefix}{number:03}"))).collect()
}

fn refused<T>(code: i32, text: &str) -> Answer<T> {
    Err(Refused(code, format!("etcdserver: {text}")))
}

async fn grant(target: &mut Target, id: i64, ttl_s: u64) -> Answer<u64> {
    match target.apply(&Command::LeaseGrant { id: LeaseId(id), ttl_ms: ttl_s * 1000 }).await? {
        Response::LeaseGrant { id: granted, ttl_ms, .. } => {
            assert_eq!(granted.0, id);
            Ok(ttl_ms / 1000)
        }
        other => panic!("{other:?}"),
    }
}

/// Runs all of it on a fresh store.
pub async fn run(target: &mut Target) {
    println!("vectors on {}", target.name());
    transactions(target).await;
    limits(target).await;
    leases(target).await;
    ranges(target).await;
    compaction(target).await;
}

async fn transactions(target: &mut Target) {
    use CompareResult::{Equal, Greater, NotEqual};
    let empty = target.range(get("a")).await.unwrap();
    assert_eq!((empty.revision, empty.kvs.len(), empty.count, empty.more), (1, 0, 0, false));
    // A key that is not there: no value compares, all numbers are zero.
    for (condition, held) in [
        (compare("nx", "", NotEqual, CompareTarget::Value("x".into())), false),
        (compare("nx", "", Equal, CompareTarget::Value(Vec::new())), false),
        (compare("nx", "", Equal, CompareTarget::Version(0)), true),
        (compare("nx", "", Equal, CompareTarget::Lease(LeaseId(0))), true),
        (compare("nx", "ny", Equal, CompareTarget::Create(0)), true),
        (compare("nx", "ny", Greater, CompareTarget::Create(0)), false),
    ] {
        let answer = target.txn(when(vec![condition.clone()])).await.unwrap();
        assert_eq!((answer.succeeded, answer.revision), (held, 1), "{condition:?}");
    }
    let nothing = target.txn(TxnRequest::default()).await.unwrap();
    assert!(nothing.succeeded && nothing.responses.is_empty() && nothing.revision == 1);

    let several = vec![op_put("t1"), op_put("t2"), op_delete("zz", ""), op_get("t", "u", 0)];
    let answer = target.txn(then(several)).await.unwrap();
    assert_eq!(answer.revision, 2);
    let [ResponseOp::Put(first), ResponseOp::Put(_), ResponseOp::DeleteRange(delete), ResponseOp::Range(seen)] =
        answer.responses.as_slice()
    else {
        panic!("{answer:?}")
    };
    assert_eq!((first.revision, delete.deleted, seen.count), (2, 0, 2));
    assert!(seen.kvs.iter().all(|pair| (pair.create_revision, pair.mod_revision, pair.version) == (2, 2, 1)));
    let answer = target.txn(then(vec![op_delete("t1", ""), op_put("t3")])).await.unwrap();
    assert_eq!(answer.revision, 3);
    assert!(matches!(&answer.responses[0], ResponseOp::DeleteRange(delete) if delete.deleted == 1));
    let past = target.range(RangeRequest { revision: 2, ..range("t", "u") }).await.unwrap();
    let keys: Vec<_> = past.kvs.iter().map(|pair| pair.key.as_slice()).collect();
    assert_eq!((past.revision, keys), (3, vec![&b"t1"[..], b"t2"]));

    // All or nothing. Debian's 3.4.23 keeps what was done before the mistake.
    if !target.is_old_etcd() {
        let answer = target.txn(then(vec![op_put("q"), op_get("q", "", 4)])).await;
        assert_eq!(answer, refused(11, "mvcc: required revision is a future revision"));
        let unknown = RequestOp::Put(PutRequest { lease: LeaseId(42), ..put("q", "v") });
        let answer = target.txn(then(vec![op_put("q2"), unknown])).await;
        assert_eq!(answer, refused(5, "requested lease not found"));
    }
    let q = target.range(range("q", "r")).await.unwrap();
    assert_eq!((q.revision, q.count), (3, 0));

    // One change per key; both branches of one transaction may make it, because one is taken.
    for overlap in [
        vec![op_put("d"), op_put("d")],
        vec![op_put("d"), op_delete("a", "z")],
        vec![RequestOp::Txn(then(vec![op_put("d")])), op_put("d")],
    ] {
        assert_eq!(target.txn(then(overlap)).await, refused(3, "duplicate key given in txn request"));
    }
}

async fn limits(target: &mut Target) {
    let too_many = || refused(3, "too many operations in txn request");
    assert_eq!(target.txn(then(puts("k", 129))).await, too_many());
    assert_eq!(target.txn(then(puts("k", 128))).await.unwrap().revision, 4);
    let nested = then(vec![RequestOp::Txn(then(puts("k", 128)))]);
    // Debian's 3.4.23 counts each level by itself, later ones along the nesting.
    if !target.is_old_etcd() {
        assert_eq!(target.txn(nested).await, too_many());
    }
    let large = |bytes: usize| PutRequest { value: vec![7; bytes], ..put("big", "") };
    assert_eq!(target.put_with(large(1_600_000)).await.err(), refused::<()>(3, "request is too large").err());
    assert_eq!(target.put_with(large(1_500_000)).await.unwrap().revision, 5);
    let without_key = target.put("", "x", 0).await;
    assert_eq!(without_key, refused(3, "key is not provided"));
    assert_eq!(target.delete("", "", false).await, refused(3, "key is not provided"));
    assert_eq!(target.range(get("")).await, refused(3, "key is not provided"));
    let kept = PutRequest { ignore_value: true, ..put("none", "") };
    assert_eq!(target.put_with(kept.clone()).await, refused(3, "key not found"));
    assert_eq!(target.put_with(PutRequest { value: "x".into(), ..kept }).await, refused(3, "value is provided"));
    let hung = PutRequest { ignore_lease: true, lease: LeaseId(3), ..put("none", "x") };
    assert_eq!(target.put_with(hung).await, refused(3, "lease is provided"));
    assert_eq!(target.now().await, 5);
}

async fn leases(target: &mut Target) {
    assert_eq!(grant(target, 11, 0).await, Ok(2), "less than an election makes no sense");
    assert_eq!(grant(target, -7, 5).await, Ok(5));
    assert_eq!(grant(target, 12, 9_000_000_001).await, refused(11, "too large lease TTL"));
    assert_eq!(grant(target, 900, 600).await, Ok(600));
    assert_eq!(grant(target, 900, 600).await, refused(9, "lease already exists"));
    for (key, lease, revision) in [("l3", 900, 6), ("l1", 900, 7), ("l2", 900, 8), ("l2", 0, 9)] {
        assert_eq!(target.put(key, "v", lease).await.unwrap().revision, revision);
    }
    let mut keys = target.lease_keys(900).await;
    keys.sort();
    assert_eq!(keys, [b"l1", b"l3"]);
    let kept = target.put_with(PutRequest { ignore_lease: true, ..put("l1", "w") }).await.unwrap();
    assert_eq!((kept.revision, target.lease_keys(900).await.len()), (10, 2));
    // Without a lease of its own this takes the key off.
    let taken_off = target.put_with(PutRequest { ignore_value: true, ..put("l1", "") }).await.unwrap();
    assert_eq!((taken_off.revision, target.lease_keys(900).await), (11, vec![b"l3".to_vec()]));
    let revoked = target.apply(&Command::LeaseRevoke { id: LeaseId(900) }).await.unwrap();
    assert_eq!(revoked, Response::LeaseRevoke { revision: 12 });
    let left = target.range(range("l", "m")).await.unwrap();
    let left: Vec<_> = left.kvs.iter().map(|pair| (pair.key.as_slice(), pair.version)).collect();
    assert_eq!(left, [(&b"l1"[..], 3), (b"l2", 2)]);
    grant(target, 901, 600).await.unwrap();
    let empty = target.apply(&Command::LeaseRevoke { id: LeaseId(901) }).await.unwrap();
    assert_eq!(empty, Response::LeaseRevoke { revision: 12 });
    let gone = target.apply(&Command::LeaseRevoke { id: LeaseId(901) }).await;
    assert_eq!(gone, refused(5, "requested lease not found"));
    assert_eq!(target.put("l9", "v", 901).await, refused(5, "requested lease not found"));
}

async fn ranges(target: &mut Target) {
    let all = || range("k", "l");
    let filtered = RangeRequest { limit: 3, min_mod_revision: 9999, ..all() };
    let answer = target.range(filtered).await.unwrap();
    assert_eq!((answer.kvs.len(), answer.count, answer.more), (0, 128, false));
    let answer = target.range(RangeRequest { limit: 3, ..all() }).await.unwrap();
    assert_eq!((answer.kvs.len(), answer.count, answer.more), (3, 128, true));
    let answer = target.range(RangeRequest { limit: 3, count_only: true, ..all() }).await.unwrap();
    assert_eq!((answer.kvs.len(), answer.count, answer.more), (0, 128, false));
    let answer = target.range(RangeRequest { limit: -3, ..all() }).await.unwrap();
    assert_eq!((answer.kvs.len(), answer.more), (128, false));
    let answer = target.range(RangeRequest { revision: -3, ..all() }).await.unwrap();
    assert_eq!((answer.kvs.len(), answer.revision), (128, 12));
    let nothing = target.range(range("z", "a")).await.unwrap();
    assert_eq!((nothing.kvs.len(), nothing.count), (0, 0));
    // From a key to the end: what howdah itself keeps is before it.
    let rest = target.range(RangeRequest { count_only: true, ..range("a", "\0") }).await.unwrap();
    assert_eq!(rest.count, 133);
    let deleted = target.delete("k", "l", true).await.unwrap();
    assert_eq!((deleted.deleted, deleted.prev_kvs.len(), deleted.revision), (128, 128, 13));
    assert_eq!(target.delete("k", "l", false).await.unwrap().revision, 13, "nothing is no change");
}

async fn compaction(target: &mut Target) {
    for (value, revision) in [("1", 14), ("2", 15), ("3", 16)] {
        assert_eq!(target.put("cc", value, 0).await.unwrap().revision, revision);
    }
    assert_eq!(target.compact(15).await, Ok(16));
    let at = |revision| RangeRequest { revision, ..get("cc") };
    let kept = target.range(at(15)).await.unwrap();
    assert_eq!((kept.kvs[0].value.as_slice(), kept.kvs[0].version), (&b"2"[..], 2));
    let compacted = "mvcc: required revision has been compacted";
    assert_eq!(target.range(at(14)).await, refused(11, compacted));
    assert_eq!(target.range(at(17)).await, refused(11, "mvcc: required revision is a future revision"));
    assert_eq!(target.compact(15).await, refused(11, compacted));
    assert_eq!(target.compact(-1).await, refused(11, compacted));
    assert_eq!(target.compact(99).await, refused(11, "mvcc: required revision is a future revision"));
    if !target.is_old_etcd() {
        let inside = then(vec![op_put("never"), op_get("cc", "", 14)]);
        assert_eq!(target.txn(inside).await, refused(11, compacted));
        assert_eq!(target.range(get("never")).await.unwrap().count, 0);
    }
}
