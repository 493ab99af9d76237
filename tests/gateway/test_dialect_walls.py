"""Walls, for every route of the table of dialects: keys, tenants, scopes, and logs without a word of a request.

A route that has no body here fails the suite.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from serving.gateway.dialects import DIALECTS
from tests.gateway.conftest import Shared
from tests.gateway.harness import wait_for

PRIVATE = "very private words"
TURNS = [{"role": "user", "content": PRIVATE}]
BODIES: dict[str, dict[str, Any]] = {
    "chat": {"messages": TURNS, "max_tokens": 1},
    "completions": {"prompt": PRIVATE, "max_tokens": 1},
    "embeddings": {"input": PRIVATE},
    "messages": {"messages": TURNS, "max_tokens": 1},
    "count_tokens": {"messages": TURNS},
    "responses": {"input": PRIVATE, "max_output_tokens": 1},
    "rerank": {"query": PRIVATE, "documents": [PRIVATE]},
    "score": {"text_1": PRIVATE, "text_2": PRIVATE},
    "tokenize": {"prompt": PRIVATE},
    "invocations": {"inputs": [PRIVATE]},
}
ROUTES = sorted(DIALECTS)
SPOKEN = {"embed": "vectors", "score": "vectors", "invocations": "iris", "generate": "alpha"}

every = pytest.mark.parametrize("path", ROUTES)


def body(path: str, model: str) -> dict[str, Any]:
    return {"model": model, **BODIES[DIALECTS[path].name]}


def own_model(path: str) -> str:
    return SPOKEN[DIALECTS[path].speaks[0]]


def ask(shared: Shared, path: str, model: str, key: str | None = "acme1") -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer mu_{key}_secret"}
    return httpx.post(f"{shared.url}{path}", json=body(path, model), headers=headers, timeout=20)


def test_every_dialect_has_a_body_here() -> None:
    assert {dialect.name for dialect in DIALECTS.values()} == set(BODIES)


@every
def test_a_key_opens_the_models_of_its_tenant_alone(shared: Shared, path: str) -> None:
    assert ask(shared, path, own_model(path)).status_code == 200
    hidden, nothing = ask(shared, path, "secret"), ask(shared, path, "nothing")
    assert hidden.status_code == nothing.status_code == 404
    assert hidden.text.replace("secret", "X").replace(
        hidden.headers["x-penstock-request-id"], ""
    ) == nothing.text.replace("nothing", "X").replace(nothing.headers["x-penstock-request-id"], "")


@every
@pytest.mark.parametrize(
    ("key", "status"),
    [(None, 401), ("nobody1", 401), ("revoked1", 401), ("expired1", 401), ("idle1", 403), ("scopeless1", 403)],
)
def test_no_route_answers_without_a_good_key(shared: Shared, path: str, key: str | None, status: int) -> None:
    answer = ask(shared, path, own_model(path), key)
    assert answer.status_code == status
    told = answer.json()["error"]
    assert told["message"]
    assert set(told) == ({"type", "message"} if DIALECTS[path].name in ("messages", "count_tokens") else
                         {"type", "message", "param", "code"})  # fmt: skip


@every
def test_a_key_that_is_held_to_models_stays_with_them(shared: Shared, path: str) -> None:
    answer = ask(shared, path, own_model(path), "onemodel1")
    assert answer.status_code == (200 if own_model(path) == "alpha" else 403)


@every
def test_other_methods_are_refused(shared: Shared, path: str) -> None:
    for method in ("GET", "PUT", "DELETE"):
        answer = shared.http.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_no_word_of_a_request_is_in_a_log(shared: Shared) -> None:
    ids = []
    for path in ROUTES:
        for sent in (
            body(path, own_model(path)),
            body(path, PRIVATE),
            {"model": "alpha", "n": PRIVATE, "input": [PRIVATE]},
        ):
            answer = shared.http.post(path, json=sent)
            ids.append(answer.headers["x-penstock-request-id"])
        shared.http.post(path, content=json.dumps(body(path, "alpha")).encode()[:-3])
    last = shared.post("/v1/completions", {"model": "alpha", "prompt": PRIVATE, "max_tokens": 1})
    ids.append(last.headers["x-penstock-request-id"])

    def logged() -> bool:
        return any(line.get("request_id") == ids[-1] for line in shared.gateway.log())

    wait_for("the last line", logged)
    text = shared.gateway.log_path.read_text()
    assert PRIVATE not in text
    assert "_secret" not in text
