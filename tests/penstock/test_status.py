"""How far each deployment is, as ``penstock up`` shows it; and who may ask."""

import json
import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from asgiref.sync import sync_to_async
from django.db import connections
from django.utils import timezone

from penstock import demo, status
from penstock.loops.shared import client
from penstock.status import ReplicaView, Summary, Trouble, deployment_states, summarise, usage_of
from serving.gateway.state import policy_state_write
from serving.models import Deployment, Replica
from tests import factories


def view(state: str, phase: str = "", reason: str = "", **progress: Any) -> ReplicaView:
    return ReplicaView(state, phase, reason, progress)


STALE = ReplicaView("ready", "ready", "the engine answers", {}, is_current=False)


@pytest.mark.parametrize(
    ("replicas", "expected"),
    [
        ([], Summary("pending")),
        ([view("pending", reason="no host has room")], Summary("pending", detail="no host has room")),
        (
            [view("starting", "environment", step="installing torch", detail="120 of 800 MB", share=0.15)],
            Summary("environment", "installing torch", "120 of 800 MB", 0.15),
        ),
        ([view("starting", "environment"), view("starting", "warming", step="warming")], Summary("warming")),
        ([view("starting", "warming"), view("ready")], Summary("ready")),
        ([view("pending", reason="no host has room"), view("starting", "weights")], Summary("weights")),
        ([view("starting", "environment")], Summary("pending")),
        ([STALE], Summary("pending", detail="its host has not reported yet")),
        ([STALE, view("starting", "weights")], Summary("weights")),
        ([STALE, view("ready")], Summary("ready")),
    ],
)
@pytest.mark.parametrize("trouble", [None, Trouble("disk full", gave_up=False), Trouble("disk full", gave_up=True)])
def test_the_best_replica_speaks_for_its_deployment(
    replicas: list[ReplicaView], expected: Summary, trouble: Trouble | None
) -> None:
    assert summarise(replicas, trouble if replicas else None) == expected


def test_where_nothing_lives_a_failure_is_told_and_is_the_end_only_when_nobody_tries_again() -> None:
    tried_again = summarise([], Trouble("disk full", gave_up=False))
    assert (tried_again.state, tried_again.detail) == ("pending", "a launch failed and is tried again: disk full")
    assert summarise([], Trouble("8 launches failed in a row", gave_up=True)) == Summary(
        "failed", detail="8 launches failed in a row"
    )


@pytest.mark.django_db
class TestFailures:
    """What is told of a deployment whose launches failed, by what reconcile last thought of it."""

    @pytest.fixture
    def failed(self, settings: Any, state_url: str) -> Deployment:
        settings.REDIS_URL = state_url
        deployment = factories.deployment(name="demo-tiny")
        for number in range(3):
            replica = factories.replica(deployment)
            at = timezone.now() - timedelta(days=20 - number)
            Replica.objects.filter(pk=replica.pk).update(
                state="failed", state_since=at, created_at=at, reason=f"disk full {number}"
            )
        return deployment

    def think(self, deployment: Deployment, *, gave_up: bool, age_s: float = 0.0) -> None:
        at = time.time() - age_s
        state = {"at": at, "target": 1, "reason": "8 launches failed in a row", "wait_until": None, "gave_up": gave_up}
        policy_state_write(client(), "reconcile", str(deployment.pk), state)

    def test_an_old_failure_is_not_the_present_state(self, failed: Deployment) -> None:
        (told,) = deployment_states()
        assert (told.state, told.detail) == ("pending", "a launch failed and is tried again: disk full 2")
        self.think(failed, gave_up=True, age_s=20 * 86400)
        assert deployment_states()[0].state == "pending"
        self.think(failed, gave_up=False)
        assert deployment_states()[0].state == "pending"

    def test_it_has_failed_when_reconcile_gave_up(self, failed: Deployment) -> None:
        self.think(failed, gave_up=True)
        (told,) = deployment_states()
        assert (told.state, told.detail) == ("failed", "8 launches failed in a row")

    def test_a_fresh_replica_speaks_for_its_deployment(self, failed: Deployment) -> None:
        self.think(failed, gave_up=True)
        factories.replica(failed)
        assert deployment_states()[0].state == "pending"

    def test_ended_replicas_are_not_read(self, failed: Deployment, django_assert_num_queries: Any) -> None:
        with django_assert_num_queries(3) as queries:
            deployment_states()
        (replicas,) = [q["sql"] for q in queries if 'deployment_id" IN' in q["sql"] and "serving_replica" in q["sql"]]
        assert "'failed'" not in replicas

    def test_without_the_state_nobody_has_given_up(self, failed: Deployment, settings: Any) -> None:
        settings.REDIS_URL = "unix:///nowhere/valkey.sock"
        assert deployment_states()[0].state == "pending"


@pytest.mark.django_db
def test_deployments_are_told_with_engine_and_label() -> None:
    demo.seed_demo(engine="vllm")
    sim, tiny = deployment_states()
    assert (sim.name, sim.engine, sim.label, sim.state) == ("demo-sim", "simulated", "simulated", "pending")
    assert (tiny.name, tiny.engine, tiny.label, tiny.state) == ("demo-tiny", "vllm", "", "pending")
    Deployment.objects.filter(name="demo-tiny").update(is_enabled=False)
    assert deployment_states()[1].state == "disabled"


@pytest.mark.django_db
def test_the_number_of_queries_does_not_grow_with_the_deployments(django_assert_num_queries: Any) -> None:
    demo.seed_demo(engine="vllm")
    with django_assert_num_queries(3):
        deployment_states()


@pytest.mark.django_db
def test_usage_that_has_not_landed_is_not_told() -> None:
    assert usage_of([str(uuid4())]) == []
    with pytest.raises(ValueError, match="UUID"):
        usage_of(["nonsense"])


async def ask(token: str, query: bytes = b"") -> tuple[int, dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
    scope = {"type": "http", "path": status.PATH, "headers": headers, "query_string": query}
    await status.application(scope, None, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


async def test_without_the_token_of_this_run_there_is_no_such_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(status.TOKEN_VARIABLE, raising=False)
    assert (await ask(""))[0] == 404
    monkeypatch.setenv(status.TOKEN_VARIABLE, "right")
    assert (await ask(""))[0] == 404
    assert (await ask("wrong"))[0] == 404


@pytest.mark.django_db(transaction=True)
async def test_with_it_the_states_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(status.TOKEN_VARIABLE, "right")
    try:
        assert await ask("right") == (200, {"models": [], "usage": []})
        assert (await ask("right", b"usage=nonsense"))[0] == 400
    finally:
        # The endpoint's thread has a connection of its own, which would keep the test database from being dropped.
        await sync_to_async(connections.close_all)()
