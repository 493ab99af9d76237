"""Orders: the whole desired state, a new generation only for a change, the key in the state, nudges."""

from __future__ import annotations

import datetime
import json
import time
from typing import Any

import pytest
from kombu import Exchange, Queue

from capacity.models import Host
from penstock.loops import isolation
from penstock.loops.broker import ORDERS_TASK, agents_app, broker_url, host_queue
from penstock.loops.dispatch import farewell, orders_send
from serving.agents.orders import host_orders_refresh
from serving.models import Replica
from serving.services import replica_create
from tests.loops.conftest import World
from worker.spec import HostOrders, open_orders

pytestmark = pytest.mark.django_db


def place(world: World, state: str, **fields: Any) -> Replica:
    revision = world.deployment.revisions.get()
    replica = replica_create(deployment=world.deployment, revision=revision, reason="a test", host=world.host())
    Replica.objects.filter(pk=replica.pk).update(state=state, address="http://127.0.0.1:1", **fields)
    return replica


def standing(world: World) -> HostOrders:
    raw = world.client.get(f"agent:orders:{world.agent.host_id}")
    assert raw is not None
    return open_orders(json.loads(raw), host_id=world.agent.host_id, secret=world.agent.secret)  # type: ignore[arg-type]


def send(world: World) -> bool:
    return orders_send(world.host(), client=world.client, now=world.at)


def nudges(world: World) -> list[dict[str, Any]]:
    """What an agent would find on its queue, consumed as an agent does."""
    name = host_queue(world.agent.host_id)
    found = []
    with agents_app(world.client_url).connection_for_read() as connection:
        simple = connection.SimpleQueue(Queue(name, Exchange(name), routing_key=name), no_ack=True)
        try:
            while message := simple.get_nowait():
                assert message.headers["task"] == ORDERS_TASK
                found.append(json.loads(message.body)[0][0])
        except simple.Empty:
            simple.close()
    return found


@pytest.mark.parametrize(
    ("old", "intent"),
    [("pending", "run"), ("starting", "run"), ("ready", "run"), ("draining", "drain"), ("stopping", "stop")],
)
def test_a_state_says_what_the_agent_shall_do(world: World, old: str, intent: str) -> None:
    replica = place(world, old)
    send(world)
    orders = standing(world)
    assert [(order.replica_id, order.intent) for order in orders.replicas] == [(str(replica.pk), intent)]
    assert orders.replicas[0].served_name == world.deployment.name
    assert orders.replicas[0].artifact == {"kind": "none", "value": "", "revision": ""}


def test_what_has_ended_and_what_is_elsewhere_is_not_in_the_orders(world: World) -> None:
    other = world.add_host("host-2")
    place(world, "stopped")
    place(world, "failed")
    Replica.objects.filter(pk=place(world, "ready").pk).update(host=Host.objects.get(pk=other.host_id))
    send(world)
    assert standing(world).replicas == ()


def test_a_condemned_replica_is_killed_with_evidence(world: World) -> None:
    place(world, "stopping", kill=True)
    send(world)
    (order,) = standing(world).replicas
    assert (order.intent, order.kill, order.evidence) == ("stop", True, True)


def test_the_generation_rises_only_with_a_change(world: World) -> None:
    place(world, "pending")
    assert send(world)
    first = standing(world).generation
    assert not send(world)
    assert standing(world).generation == first
    Replica.objects.update(state="draining")
    assert send(world)
    assert standing(world).generation == first + 1


def test_what_does_not_concern_the_agent_is_no_change(world: World) -> None:
    place(world, "starting")
    send(world)
    Replica.objects.update(reason="another", phase="warming", progress={"step": "x"}, state="ready")
    assert not send(world)


def test_of_two_that_refresh_at_once_one_gives_the_generation(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    place(world, "pending")
    host = world.host()
    stale = Host.objects.get(pk=host.pk)
    send(world)
    Replica.objects.update(state="draining")
    monkeypatch.setattr(Host.everything, "get", lambda **kwargs: stale)
    refreshed = host_orders_refresh(host_id=str(host.pk), secret=world.agent.secret, drain_limit_s=30.0)
    assert refreshed is None


@pytest.mark.parametrize("why", ["its key is lost", "another process gives the generation"])
def test_a_removed_host_is_forgotten_only_once_its_last_orders_stand(
    world: World, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    place(world, "ready")
    send(world)
    host = world.host()
    kept = sealed = bytes(host.secret)
    Replica.objects.update(state="failed")
    Host.objects.update(removed_at=world.at)
    with monkeypatch.context() as meanwhile:
        if why == "its key is lost":
            kept = b"under a lost key"
            Host.everything.update(secret=kept)
        else:
            Host.everything.update(generation=host.generation + 1)
            meanwhile.setattr(Host.everything, "get", lambda **_: host)
        farewell(Host.everything.filter(pk=host.pk)[0], client=world.client, now=world.at)
    assert bytes(Host.everything.get(pk=host.pk).secret) == kept
    assert [order.intent for order in standing(world).replicas] == ["run"], "nobody has told the agent to stop"
    Host.everything.update(secret=sealed)
    farewell(Host.everything.get(pk=host.pk), client=world.client, now=world.at)
    assert bytes(Host.everything.get(pk=host.pk).secret) == b""
    assert standing(world).replicas == ()
    assert world.client.ttl(f"agent:orders:{world.agent.host_id}") > 0  # type: ignore[operator]


@pytest.fixture
def unopened(world: World, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host whose secret is under a key that nobody has any more, in a process that has told nothing yet."""
    monkeypatch.setattr(isolation, "_told", {})
    Host.everything.update(secret=b"under a lost key")
    return world.host()


def test_a_secret_that_does_not_open_is_told_once_an_hour_with_what_to_do(
    world: World, unopened: Host, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(30):
        assert not send(world)
    (line,) = caplog.messages
    assert line.startswith(f"no orders for host {unopened.name}: ")
    assert "PENSTOCK_FIELD_KEYS" in line
    assert line.endswith(f"penstock hosts renew-secret {unopened.name}' and put the answer into its agent.json")
    moment = time.monotonic()
    for later_s, lines in ((3590, 1), (3610, 2)):
        monkeypatch.setattr(isolation.time, "monotonic", lambda at=moment + later_s: at)
        send(world)
        assert len(caplog.messages) == lines


def test_of_a_removed_host_it_is_told_that_the_agent_runs_on_and_given_up_after_a_month(
    world: World, unopened: Host, caplog: pytest.LogCaptureFixture
) -> None:
    Host.everything.update(removed_at=world.at)

    def look(after: datetime.timedelta) -> bytes:
        farewell(Host.everything.get(pk=unopened.pk), client=world.client, now=world.at + after)
        return bytes(Host.everything.get(pk=unopened.pk).secret)

    for hours in range(3):
        assert look(datetime.timedelta(hours=hours)) != b""
    (line,) = caplog.messages
    assert "stop it on that machine" in line
    assert f"{world.at + datetime.timedelta(days=30):%Y-%m-%d}" in line
    assert "renew-secret" not in line, "a removed host has none to renew"
    assert look(datetime.timedelta(days=29, hours=23)) != b""
    assert look(datetime.timedelta(days=30)) == b"", "the next tick has nothing to try any more"
    assert caplog.messages[-1].endswith("could not be told to stop: given up")


def test_a_state_that_came_back_empty_gets_the_orders_again(world: World) -> None:
    place(world, "pending")
    send(world)
    before = standing(world)
    world.client.flushall()
    send(world)
    assert standing(world) == before


def test_a_listening_agent_is_nudged_until_it_acknowledges(world: World) -> None:
    place(world, "pending")
    Host.objects.update(last_report_at=world.at)
    send(world)
    assert [json.loads(nudge["payload"])["generation"] for nudge in nudges(world)] == [1]
    send(world)
    assert nudges(world) == []
    for key in world.client.scan_iter("penstock:policy:nudge:*"):
        world.client.delete(key)
    send(world)
    assert len(nudges(world)) == 1
    Host.objects.update(acknowledged_generation=1)
    for key in world.client.scan_iter("penstock:policy:nudge:*"):
        world.client.delete(key)
    send(world)
    assert nudges(world) == []


def test_a_silent_agent_is_not_nudged(world: World) -> None:
    place(world, "pending")
    send(world)
    assert nudges(world) == []
    assert standing(world).replicas


def test_agents_find_their_messages_under_their_own_prefix(world: World) -> None:
    place(world, "pending")
    Host.objects.update(last_report_at=world.at)
    send(world)
    keys = {key.decode() for key in world.client.scan_iter("*host.*")}  # type: ignore[union-attr]
    assert keys
    assert all(key.startswith("agent:") for key in keys)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("unix:///run/valkey.sock", "redis+socket:///run/valkey.sock"),
        ("unix:///run/valkey.sock?db=3", "redis+socket:///run/valkey.sock?virtual_host=3"),
        ("unix://agent:pw@/run/valkey.sock", "redis+socket://agent:pw@/run/valkey.sock"),
        ("redis://:pw@host:6379/1", "redis://:pw@host:6379/1"),
        ("rediss://host/0", "rediss://host/0"),
    ],
)
def test_broker_urls(url: str, expected: str) -> None:
    assert broker_url(url) == expected
