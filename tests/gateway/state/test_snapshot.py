"""The gateway's view: deltas, gaps, damage, and a start from the file alone. Records are published by hand here."""

import asyncio
import hashlib
import json
import os
import signal
import time

import pytest

from serving.gateway import snapshot as snapshot_module
from serving.gateway.snapshot import SnapshotStore
from serving.gateway.snapshot_file import SnapshotFile
from serving.gateway.state import State, connect


class Publisher:
    """The protocol's other side, written from its description."""

    def __init__(self, url):
        self.client = connect(url)
        self.records = {}
        self.version = 0

    def publish(self, *changes, log=True):
        self.version += 1
        for kind, name, record in changes:
            key = f"penstock:snap:{kind}"
            if record is None:
                self.records.pop((kind, name), None)
                self.client.hdel(key, name)
            else:
                self.records[kind, name] = json.dumps(record, separators=(",", ":")).encode()
                self.client.hset(key, name, self.records[kind, name])
        if log:
            delta = json.dumps([list(change) for change in changes], separators=(",", ":"))
            entry = {"version": self.version, "delta": delta}
            self.client.xadd("penstock:snap:log", entry, id=f"{self.version}-0")
        self.say()

    def say(self, digest=None):
        total = sum(
            int.from_bytes(hashlib.blake2b(f"{k}\0{n}\0".encode() + raw, digest_size=16).digest(), "big")
            for (k, n), raw in self.records.items()
        )
        meta = {
            "version": self.version,
            "digest": digest or str(total % 2**128),
            "published_at": repr(time.time()),
            "whole": 1,
        }
        self.client.hset("penstock:snap:meta", mapping=meta)


def tenant(name, **more):
    return ("tenant", name, {"id": name, "slug": name, **more})


def key(name):
    return ("key", name, {"id": name, "uuid": "u", "tenant": "t", "digest": "d", "pepper": 1})


def deployment(name, served):
    return ("deployment", name, {"id": name, "name": served, "pool": "p", "revision": "r", "runtime": "vllm"})


def replica(name, of, **more):
    record = {"id": name, "deployment": of, "revision": "r", "host": "h", "address": "http://127.0.0.1:1"}
    return ("replica", name, {**record, "state": "ready", "target_concurrency": 4, **more})


@pytest.fixture
def publisher(state_url):
    made = Publisher(state_url)
    yield made
    made.client.close()


@pytest.fixture
async def follow(state_url, tmp_path):
    made = []

    async def start(url=state_url, path=tmp_path / "snapshot.json"):
        state = State(url, timeout_s=0.3)
        store = SnapshotStore(state, path)
        await store.start()
        made.append((store, state))
        return store

    yield start
    for store, state in made:
        await store.stop()
        await state.close()


async def until(condition, timeout_s=5.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def test_deltas_are_followed_with_their_indexes(publisher, follow):
    publisher.publish(tenant("t"), deployment("d1", "demo"), replica("r2", "d1"), replica("r1", "d1"))
    store = await follow()
    view = store.view
    assert [r.id for r in view.replicas_by_deployment["d1"]] == ["r1", "r2"]
    assert view.deployments_by_name["demo"].id == "d1"
    assert store.age_s() < 2
    publisher.publish(deployment("d1", "old"), deployment("d2", "demo"), ("replica", "r1", None), replica("r2", "d2"))
    await until(lambda: view.version == 2)
    assert store.view is view, "in place"
    assert {name: d.id for name, d in view.deployments_by_name.items()} == {"old": "d1", "demo": "d2"}
    assert list(view.replicas_by_deployment) == ["d2"]
    publisher.publish(("deployment", "d2", None), ("replica", "r2", None))
    await until(lambda: view.version == 3)
    assert list(view.deployments_by_name) == ["old"]
    assert view.replicas_by_deployment == {}


async def test_names_may_be_swapped_in_any_order(publisher, follow):
    publisher.publish(deployment("a", "x"), deployment("b", "y"))
    store = await follow()
    publisher.publish(deployment("b", "x"), deployment("a", "y"))
    await until(lambda: store.view.version == 2)
    assert {name: d.id for name, d in store.view.deployments_by_name.items()} == {"x": "b", "y": "a"}


async def test_a_gap_in_the_log_reads_everything_anew(publisher, follow):
    publisher.publish(tenant("t1"), tenant("gone"))
    store = await follow()
    publisher.publish(("tenant", "gone", None), log=False)
    publisher.publish(tenant("t2"))
    await until(lambda: store.view.version == 3)
    assert set(store.view.tenants) == {"t1", "t2"}


async def test_a_changed_hash_behind_the_logs_back_is_noticed(publisher, follow):
    publisher.publish(tenant("t1"))
    store = await follow()
    publisher.records["tenant", "t9"] = b'{"id":"t9","slug":"t9"}'
    publisher.client.hset("penstock:snap:tenant", "t9", publisher.records["tenant", "t9"])
    publisher.say()
    await until(lambda: "t9" in store.view.tenants)


async def test_a_digest_that_fits_nothing_asks_for_a_rebuild_and_keeps_the_view(publisher, follow):
    publisher.publish(tenant("t1"))
    store = await follow()
    publisher.say(digest="12345")
    await until(lambda: publisher.client.exists("penstock:snap:rebuild"))
    assert set(store.view.tenants) == {"t1"}
    publisher.say()
    await until(lambda: store.age_s() < 0.2)


async def test_a_record_of_a_newer_publisher_does_not_stop_the_rest(publisher, follow, caplog):
    publisher.publish(tenant("t1", novelty={"x": 1}), ("tenant", "odd", {"id": 7}), ("galaxy", "g", {"a": 1}))
    publisher.records.pop(("galaxy", "g"))
    publisher.client.delete("penstock:snap:galaxy")
    publisher.say()
    store = await follow()
    assert set(store.view.tenants) == {"t1"}
    publisher.publish(tenant("t2"))
    await until(lambda: set(store.view.tenants) == {"t1", "t2"})


async def test_limits_of_kinds_that_a_newer_publisher_knows_are_left_out_and_told_of(publisher, follow, caplog):
    limits = [
        {"id": "a", "kind": "tokens_per_min", "value": 5},
        {"id": "b", "kind": "joules_per_day", "value": 5},
        {"id": "c", "kind": "concurrency", "value": 5, "holder": "team", "more": 1},
    ]
    members = {"u": limits[:2], "v": limits[:1]}
    publisher.publish(
        tenant("t1", limits=limits, more_limits=limits, members=members),
        ("key", "k1", {**key("k1")[2], "limits": limits}),
        ("tenant", "broken", {"id": 7, "slug": "x", "limits": limits}),
    )
    store = await follow()
    view = store.view
    assert set(view.tenants) == {"t1"}, "it is served on"
    for held in (view.tenants["t1"].limits, view.tenants["t1"].more_limits, view.keys["k1"].limits):
        assert [limit.id for limit in held] == ["a"]
    assert {name: len(held) for name, held in view.tenants["t1"].members.items()} == {"u": 1, "v": 1}
    assert view.limits_left_out == {("tenant", "t1"): 5, ("key", "k1"): 2}
    assert "upgrade this gateway" in caplog.text
    publisher.publish(tenant("t1", limits=limits[:1]), ("key", "k1", None))
    await until(lambda: not store.view.limits_left_out)


async def test_a_half_rebuilt_state_is_not_read(publisher, follow):
    publisher.publish(tenant("t1"), tenant("t2"))
    store = await follow()
    publisher.client.flushall()
    publisher.client.hset("penstock:snap:tenant", "t1", publisher.records["tenant", "t1"])
    publisher.client.hset("penstock:snap:meta", mapping={"version": 5, "digest": "0", "published_at": 1, "whole": 0})
    store._state.note_epoch("anew.1000")
    await asyncio.sleep(0.4)
    assert set(store.view.tenants) == {"t1", "t2"}


async def test_a_fault_that_stays_is_said_once_and_followed_by_the_next_good_word(publisher, follow, caplog):
    publisher.publish(tenant("t1"))
    store = await follow()
    publisher.client.hdel("penstock:snap:meta", "digest")
    await until(lambda: caplog.records)
    await asyncio.sleep(0.5)
    (record,) = caplog.records
    assert record.exc_info, "nobody thought of it: where it was is needed"
    publisher.publish(tenant("t2"))
    await until(lambda: "t2" in store.view.tenants)


async def test_it_starts_from_the_file_when_all_else_is_down(publisher, follow, tmp_path):
    path = tmp_path / "snapshot.json"
    publisher.publish(tenant("t1"), key("k1"), deployment("d1", "demo"), replica("r1", "d1"))
    store = await follow(path=path)
    await store.stop()
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["snapshot.json"]
    alone = await follow(url="unix:///nowhere/state.sock", path=path)
    assert alone.view.keys["k1"].digest == "d"
    assert alone.view.replicas_by_deployment["d1"][0].id == "r1"
    assert (alone.view.version, alone.view.digest) == (1, store.view.digest)
    assert 0 <= alone.age_s() < 60
    assert await alone.find_key("k2") is None


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
async def test_a_damaged_file_is_refused_with_a_line(publisher, follow, tmp_path, caplog, damage):
    path = tmp_path / "snapshot.json"
    publisher.publish(tenant("t1"))
    store = await follow(path=path)
    await store.stop()
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-5] ^= 1
    path.write_bytes({"flip": data, "cut": data[:-9], "empty": b"", "other": b'{"a": 1}\n'}[damage])
    alone = await follow(url="unix:///nowhere/state.sock", path=path)
    assert alone.view.version == 0
    assert alone.view.tenants == {}
    assert alone.age_s() == float("inf")
    assert "snapshot.json is" in caplog.text


async def test_the_file_is_written_on_change_and_by_one_gateway_of_several(publisher, follow, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot_module, "_SAVE_EVERY_S", 0.05)
    path = tmp_path / "snapshot.json"
    publisher.publish(tenant("t1"))
    a = await follow(path=path)
    await until(path.exists)

    def which():
        # The file of two writes ago has left its inode to whoever comes.
        found = path.stat()
        return found.st_ino, found.st_mtime_ns

    written = which()
    SnapshotFile(path).save(1, a.view.digest, 0.0, {})
    assert which() == written, "another gateway has written that version"
    b = await follow(path=path)
    publisher.publish(tenant("t2"))
    # One that has heard of nothing yet may still write what it knows: it writes again.
    await until(lambda: a._saved_version == b._saved_version == 2)
    await until(lambda: (stored := SnapshotFile(path).load()) is not None and stored.version == 2)
    assert which() != written
    alone = await follow(url="unix:///nowhere/state.sock", path=path)
    assert set(alone.view.tenants) == {"t1", "t2"}
    assert a.view.version == 2


async def test_unknown_keys_are_asked_for_once_a_second(publisher, follow, monkeypatch):
    publisher.publish(tenant("t"))
    store = await follow()
    asked = []
    original = store._state.call

    async def call(*command):
        if command[0] == "HGET" and command[1] == "penstock:snap:key":
            asked.append(command[2])
        return await original(*command)

    monkeypatch.setattr(store._state, "call", call)
    answers = await asyncio.gather(*(store.find_key("nope") for _ in range(50)))
    assert set(answers) == {None}
    assert await store.find_key("nope") is None
    assert asked == ["nope"]
    await asyncio.sleep(1.05)
    publisher.client.hset("penstock:snap:key", "nope", json.dumps(key("nope")[2]))
    assert (await store.find_key("nope")).id == "nope"
    monkeypatch.setattr(snapshot_module, "_NEGATIVE_MAX", 100)
    for i in range(500):
        await store.find_key(f"bad{i}")
    assert len(store._misses) <= 100
    assert await store.find_key("x" * 5000) is None


async def test_the_age_grows_while_nobody_publishes(publisher, follow):
    publisher.publish(tenant("t"))
    store = await follow()
    publisher.client.hset("penstock:snap:meta", "published_at", repr(time.time()))
    await until(lambda: store.age_s() < 0.2)
    await asyncio.sleep(0.5)
    assert 0.3 < store.age_s() < 2


async def test_the_view_survives_the_states_death_and_catches_up(valkey_server, follow):
    server = valkey_server()
    publisher = Publisher(server.url)
    publisher.publish(tenant("t1"))
    store = await follow(url=server.url)
    server.stop(signal.SIGKILL)
    await asyncio.sleep(0.3)
    assert set(store.view.tenants) == {"t1"}
    server.start()
    publisher.publish(tenant("t2"))
    await until(lambda: set(store.view.tenants) == {"t1", "t2"})
    publisher.client.close()
