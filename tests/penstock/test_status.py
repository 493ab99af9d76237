"""How far each deployment is, as ``penstock up`` shows it; and who may ask."""

import json
from typing import Any
from uuid import uuid4

import pytest
from asgiref.sync import sync_to_async
from django.db import connections

from penstock import demo, status
from penstock.status import ReplicaView, Summary, deployment_states, summarise, usage_of
from serving.models import Deployment


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
        ([view("failed", reason="disk full"), view("starting", "weights")], Summary("weights")),
        ([view("starting", "environment")], Summary("pending")),
        ([STALE], Summary("pending", detail="its host has not reported yet")),
        ([STALE, view("starting", "weights")], Summary("weights")),
        ([STALE, view("ready")], Summary("ready")),
        ([view("failed", reason="old"), view("failed", reason="disk full")], Summary("failed", detail="disk full")),
        ([view("stopped"), view("draining")], Summary("pending")),
    ],
)
def test_the_best_replica_speaks_for_its_deployment(replicas: list[ReplicaView], expected: Summary) -> None:
    assert summarise(replicas) == expected


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
