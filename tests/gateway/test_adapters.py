"""LoRA adapters are models of their own to clients, and the engine's own business to route."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from serving.gateway.records import DeploymentRecord, encode
from serving.gateway.snapshot import Snapshot
from tests.gateway.conftest import Model, Shared
from tests.gateway.harness import key_record

USER: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
def adapted(model: Model) -> Model:
    """A model with two adapters, named after it."""
    deployment = {"id": model.id, "name": model.name, "pool": "open", "revision": "r1", "runtime": "vllm"}
    model.shared.publish(("deployment", deployment | {"adapters": [f"{model.name}:law", f"{model.name}:tax"]}))
    return model


def test_an_adapter_is_asked_for_by_its_name_in_every_dialect(shared: Shared, adapted: Model) -> None:
    name = f"{adapted.name}:law"
    client = shared.client()
    answers = {
        "chat": client.chat.completions.with_raw_response.create(model=name, messages=USER, max_tokens=1),
        "completions": client.completions.with_raw_response.create(model=name, prompt="a", max_tokens=1),
        "responses": client.responses.with_raw_response.create(model=name, input="a", max_output_tokens=1),
        "messages": shared.claude.messages.with_raw_response.create(model=name, messages=USER, max_tokens=1),
    }
    for dialect, answer in answers.items():
        request_id = answer.headers["x-penstock-request-id"]
        sent: Any = shared.served(request_id)
        assert sent["body"]["model"] == name
        admitted = shared.cluster.journal()[request_id]["a"]
        assert (admitted["dialect"], admitted["model"], admitted["deployment"]) == (dialect, name, adapted.id)
        assert answer.parse().model == name


def test_adapters_are_listed_below_their_model(shared: Shared, adapted: Model) -> None:
    listed = {m["id"]: m for m in shared.http.get("/v1/models").json()["data"] if m["id"].startswith(adapted.name)}
    assert {name: m["parent"] for name, m in listed.items()} == {
        adapted.name: None,
        f"{adapted.name}:law": adapted.name,
        f"{adapted.name}:tax": adapted.name,
    }
    one = shared.http.get(f"/v1/models/{adapted.name}:tax").json()
    assert (one["id"], one["root"], one["parent"]) == (f"{adapted.name}:tax", adapted.name, adapted.name)


def test_keys_and_limits_speak_of_an_adapter_or_of_its_model(shared: Shared, adapted: Model) -> None:
    law = f"{adapted.name}:law"
    limit = {"id": f"limit-{adapted.name}", "kind": "requests_per_min", "value": 2, "model": adapted.name}
    shared.publish(
        ("key", key_record("lawyer1", "acme", models=[law])),
        ("key", key_record("limited1", "acme", limits=[limit])),
    )
    lawyer = shared.client("mu_lawyer1_secret")
    assert [m.id for m in lawyer.models.list()] == [law]
    assert lawyer.completions.create(model=law, prompt="a", max_tokens=1)
    with pytest.raises(openai.PermissionDeniedError):
        lawyer.completions.create(model=adapted.name, prompt="a", max_tokens=1)
    limited = shared.client("mu_limited1_secret")
    for name in (law, adapted.name):
        assert limited.completions.create(model=name, prompt="a", max_tokens=1)
    with pytest.raises(openai.RateLimitError):
        limited.completions.create(model=f"{adapted.name}:tax", prompt="a", max_tokens=1)


@pytest.fixture
def hidden(shared: Shared) -> Iterator[None]:
    """An adapter of a model that another tenant alone may use."""
    deployment = {"id": "d-secret", "name": "secret", "pool": "closed", "revision": "r1", "runtime": "simulated"}
    shared.publish(("deployment", deployment | {"adapters": ["secret:law"]}))
    yield
    shared.publish(("deployment", deployment))


@pytest.mark.usefixtures("hidden")
def test_an_adapter_of_a_model_that_a_tenant_may_not_see_does_not_exist(shared: Shared) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        shared.client().completions.create(model="secret:law", prompt="a", max_tokens=1)
    assert caught.value.code == "model_not_found"
    assert "secret:law" not in {m.id for m in shared.client().models.list()}
    assert shared.client("mu_other1_secret").completions.create(model="secret:law", prompt="a", max_tokens=1)


def record(identifier: str, name: str, *adapters: str) -> tuple[str, str, bytes]:
    made = DeploymentRecord(id=identifier, name=name, pool="p", revision="r", runtime="vllm", adapters=adapters)
    return "deployment", identifier, encode(made)


def test_a_deployments_own_name_goes_before_an_adapters() -> None:
    view = Snapshot()
    view.apply([record("a", "base", "x", "y"), record("b", "x")])
    assert {name: d.id for name, d in view.deployments_by_name.items()} == {"base": "a", "x": "b", "y": "a"}
    view.apply([record("a", "base", "z")])
    assert {name: d.id for name, d in view.deployments_by_name.items()} == {"base": "a", "x": "b", "z": "a"}
    view.apply([("deployment", "a", None)])
    assert list(view.deployments_by_name) == ["x"]


def test_whose_a_name_is_does_not_depend_on_the_order_of_the_news() -> None:
    news = [record("a", "base", "x"), record("b", "other", "x"), record("c", "x")]
    for order in itertools.permutations(news):
        view = Snapshot()
        view.apply(order)
        assert view.deployments_by_name["x"].id == "c"
        view.apply([("deployment", "c", None)])
        assert view.deployments_by_name["x"].id == "a"
        view.apply([("deployment", "a", None)])
        assert view.deployments_by_name["x"].id == "b"
        view.apply([record("b", "other")])
        assert set(view.deployments_by_name) == {"other"}
