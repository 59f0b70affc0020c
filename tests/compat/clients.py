"""Two clients of etcd for Python, unchanged: python-etcd3 over gRPC, etcd3gw over JSON. Arguments: the endpoints."""

import sys
import threading

import etcd3
import etcd3gw


def grpc_client(endpoint, other):
    host, port = endpoint.split(":")
    client = etcd3.client(host=host, port=int(port), timeout=10)
    host, port = other.split(":")
    elsewhere = etcd3.client(host=host, port=int(port), timeout=10)

    client.put("py/a", "1")
    value, meta = elsewhere.get("py/a")
    assert (value, meta.version) == (b"1", 1), (value, meta.version)
    assert client.put("py/a", "2", prev_kv=True).prev_kv.value == b"1"
    assert elsewhere.put_if_not_exists("py/b", "x") is True
    assert client.put_if_not_exists("py/b", "y") is False
    assert client.replace("py/a", "2", "3") is True
    assert client.replace("py/a", "2", "4") is False
    pairs = [(meta.key, value) for value, meta in elsewhere.get_prefix("py/", sort_order="descend")]
    assert pairs == [(b"py/b", b"x"), (b"py/a", b"3")], pairs
    assert [value for value, _ in client.get_range("py/a", "py/b")] == [b"3"]

    done, answers = client.transaction(
        compare=[client.transactions.value("py/a") == "3", client.transactions.version("py/b") > 0],
        success=[client.transactions.put("py/c", "t"), client.transactions.get("py/a")],
        failure=[client.transactions.delete("py/a")],
    )
    assert done and answers[1][0][0] == b"3", answers
    inner = client.transactions.txn(compare=[client.transactions.version("py/none") == 0],
                                    success=[client.transactions.delete("py/c")], failure=[])
    done, _ = client.transaction(compare=[], success=[inner], failure=[])
    assert done and client.get("py/c") == (None, None)

    events, cancel = elsewhere.watch_prefix("py/watched/")
    client.put("py/watched/1", "a")
    client.put("py/watched/1", "b")
    client.delete("py/watched/1")
    seen = [(type(event).__name__, event.value) for event in (next(events) for _ in range(3))]
    assert seen == [("PutEvent", b"a"), ("PutEvent", b"b"), ("DeleteEvent", b"")], seen
    cancel()

    lease = client.lease(60)
    client.put("py/leased", "1", lease=lease)
    assert lease.granted_ttl == 60 and 0 < lease.remaining_ttl <= 60 and list(lease.keys) == [b"py/leased"]
    assert [answer.TTL for answer in lease.refresh()] == [60]
    lease.revoke()
    assert elsewhere.get("py/leased") == (None, None)

    order = []
    with client.lock("py-lock", ttl=10) as lock:
        assert lock.is_acquired()
        rival = elsewhere.lock("py-lock", ttl=10)
        waiter = threading.Thread(target=lambda: (rival.acquire(timeout=30), order.append("rival"), rival.release()))
        waiter.start()
        order.append("holder")
    waiter.join(30)
    assert order == ["holder", "rival"], order

    assert sorted(member.name for member in client.members) == ["n1", "n2", "n3"]
    status = client.status()
    assert status.leader.name in ("n1", "n2", "n3") and status.db_size > 0
    assert list(client.list_alarms()) == []
    assert client.hash() > 0
    client.compact(client.get("py/a")[1].mod_revision)
    assert client.delete_prefix("py/").deleted == 2


def json_client(endpoint):
    host, port = endpoint.split(":")
    client = etcd3gw.client(host=host, port=int(port), api_path="/v3/", timeout=10)
    assert client.put("gw/a", "1") and client.get("gw/a") == [b"1"]
    assert client.create("gw/b", "x") and not client.create("gw/b", "y")
    assert client.replace("gw/a", "1", "2") and not client.replace("gw/a", "1", "3")
    assert sorted(value for value, _ in client.get_prefix("gw/")) == [b"2", b"x"]
    lease = client.lease(ttl=60)
    client.put("gw/leased", "1", lease=lease)
    assert 0 < lease.ttl() <= 60 and lease.keys() == [b"gw/leased"] and lease.refresh() == 60
    assert lease.revoke() and client.get("gw/leased") == []
    lock = client.lock("gw-lock", ttl=30)
    assert lock.acquire() and lock.is_acquired() and not client.lock("gw-lock", ttl=30).acquire() and lock.release()
    events, cancel = client.watch_prefix("gw/watched")
    client.put("gw/watched", "a")
    client.delete("gw/watched")
    first, second = next(events), next(events)
    assert first["kv"]["value"] == b"a" and second["type"] == "DELETE", (first, second)
    cancel()
    assert client.delete_prefix("gw/") is True
    assert len(client.members()) == 3 and client.status()["version"].startswith("3.")


grpc_client(sys.argv[1], sys.argv[2])
json_client(sys.argv[3])
print("all of it works")
