"""What is published reaches a gateway's own view: soon, whole, and without reading everything anew."""

import asyncio
import threading
import time
import uuid

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from penstock import publish
from serving.gateway.snapshot import SnapshotStore
from serving.gateway.state import State
from tenants.changes import record_change
from tenants.models import ApiKey, Tenant
from tests.penstock.publishing import check, make_key, make_tenant


class Follower:
    """A gateway's snapshot store in a thread and loop of its own."""

    def __init__(self, url, path):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.state = None
        self.call(self._start(url, path))

    async def _start(self, url, path):
        self.state = State(url)
        self.store = SnapshotStore(self.state, path)
        await self.store.start()

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    @property
    def view(self):
        return self.store.view

    def close(self):
        self.call(self.store.stop())
        self.call(self.state.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def follow(state, tmp_path):
    made = []

    def start(name="snapshot.json"):
        made.append(Follower(publish.settings.REDIS_URL, tmp_path / name))
        return made[-1]

    yield start
    for follower in made:
        follower.close()


def wait_until(condition, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_revoked_key_reaches_a_gateway_within_two_seconds(state, served, follow):
    key = make_key(make_tenant())
    publish.publish_pending()
    follower = follow()
    assert follower.view.keys["abc"].revoked is False
    began = time.monotonic()
    ApiKey.objects.filter(pk=key.pk).update(revoked_at=timezone.now())
    record_change(kind="key", object_id=key.pk)
    publish.publish_pending()
    wait_until(lambda: follower.view.keys["abc"].revoked)
    assert time.monotonic() - began < 1.0


def test_a_new_key_works_at_once(state, served, follow, monkeypatch):
    publish.publish_all()
    follower = follow()
    assert follower.call(follower.store.find_key("abc")) is None
    follower.store._misses.clear()
    make_key(make_tenant())
    publish.publish_pending()
    assert follower.call(follower.store.find_key("abc")).id == "abc"


def test_a_view_follows_random_changes(state, served, follow):
    """After each round the gateway knows exactly what a fresh reader of the database would."""
    import random

    rng = random.Random(7)
    publish.publish_all()
    follower = follow()
    tenants = [make_tenant(f"t{i}") for i in range(5)]
    for _ in range(25):
        for _ in range(rng.randrange(1, 4)):
            tenant = rng.choice(tenants)
            action = rng.randrange(4)
            if action == 0:
                make_key(tenant, uuid.uuid4().hex[:12])
            elif action == 1:
                Tenant.objects.filter(pk=tenant.pk).update(is_active=rng.random() < 0.5)
                record_change(kind="tenant", object_id=tenant.pk)
            elif (key := ApiKey.objects.order_by("?").first()) is not None:
                record_change(kind="key", object_id=key.pk)
                key.delete() if action == 2 else ApiKey.objects.filter(pk=key.pk).update(revoked_at=timezone.now())
        if rng.random() < 0.1:
            state.flushall()
            follower.state.note_epoch("another.1000")
        publish.publish_pending()
        version = int(state.hget("penstock:snap:meta", "version"))
        wait_until(lambda version=version: follower.view.version == version)
        view = follower.view
        assert set(view.keys) == set(ApiKey.objects.values_list("public_id", flat=True))
        assert {k for k, r in view.keys.items() if r.revoked} == set(
            ApiKey.objects.exclude(revoked_at=None).values_list("public_id", flat=True)
        )
        assert {t.id for t in view.tenants.values() if t.active} == {
            str(pk) for pk in Tenant.objects.filter(is_active=True).values_list("pk", flat=True)
        }
    check(state)


def test_many_keys_are_read_once_and_not_each_second(state, served, follow):
    """What 100,000 take is measured by ``bench/snapshot.py``."""
    tenant = make_tenant()
    ApiKey.objects.bulk_create(
        (
            ApiKey(tenant=tenant, name="k", public_id=f"id{i}", digest="0" * 64, pepper=1, scopes=["inference"])
            for i in range(5000)
        ),
        batch_size=1000,
    )
    publish.publish_all()
    follower = follow()
    assert len(follower.view.keys) == 5000
    make_key(tenant)
    with CaptureQueriesContext(connection) as queries:
        assert publish.publish_pending() == 1
    of_keys = [query["sql"] for query in queries if 'FROM "tenants_apikey"' in query["sql"]]
    assert len(of_keys) == 1
    assert " WHERE " in of_keys[0]
    wait_until(lambda: "abc" in follower.view.keys)
    with CaptureQueriesContext(connection) as queries:
        assert publish.publish_pending() == 0
    assert not any("tenants_apikey" in query["sql"] for query in queries)
