"""Inputs that the engine is asked to cut: what they reserve, what they teach, and how long they may be nevertheless."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.gateway.dialects import DIALECTS
from tests.gateway.conftest import Model, Shared
from tests.pictures import png_url

LONG = "word " * 800


@pytest.fixture
def small(model: Model) -> Model:
    """A model of 512 tokens that embeds and scores."""
    deployment = {"id": model.id, "name": model.name, "pool": "open", "revision": "r1", "runtime": "command"}
    model.shared.publish(("deployment", deployment | {"speaks": ["embed", "score"], "max_model_len": 512}))
    return model


@pytest.mark.parametrize(
    ("path", "fields", "estimated"),
    [
        ("/v1/embeddings", {"input": [LONG, LONG]}, 16),
        ("/v1/score", {"text_1": LONG, "text_2": [LONG, LONG, LONG]}, 24),
        ("/v1/rerank", {"query": "a", "documents": [LONG]}, 8),
    ],
)
def test_a_cut_input_reserves_what_is_left_and_teaches_nothing(
    shared: Shared, model: Model, path: str, fields: dict[str, Any], estimated: int
) -> None:
    deployment = {"id": model.id, "name": model.name, "pool": "open", "revision": "r1", "runtime": "command"}
    model.shared.publish(("deployment", deployment | {"speaks": ["embed", "score"]}))
    for engine in (model.a, model.b):
        # As an engine answers that has cut what it read.
        cut = {"object": "list", "data": [], "results": [], "usage": {"prompt_tokens": estimated}}
        engine.control(fail="bytes", bytes=json.dumps(cut))
    for _ in range(3):
        answer = shared.post(path, {"model": model.name, "truncate_prompt_tokens": 8, **fields})
        assert answer.status_code == 200
        admitted, end = shared.books(answer)
        assert admitted["estimated"]["input_tokens"] == end["usage"]["input_tokens"] == estimated
    whole, _ = shared.books(shared.post("/v1/embeddings", {"model": model.name, "input": "abcd" * 100}))
    # Measured beforehand, of text that does not divide evenly.
    assert 95 <= whole["estimated"]["input_tokens"] <= 105


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_cut_prompt_reserves_what_is_left(shared: Shared, model: Model, path: str) -> None:
    said = {"prompt": LONG} if path == "/v1/completions" else {"messages": [{"role": "user", "content": LONG}]}
    answer = shared.post(path, {"model": model.name, "max_tokens": 1, "truncate_prompt_tokens": 8, **said})
    assert answer.status_code == 200
    assert shared.books(answer)[0]["estimated"]["input_tokens"] == 8
    wrong = shared.post(path, {"model": model.name, "max_tokens": 1, "truncate_prompt_tokens": -2, **said})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "truncate_prompt_tokens")


@pytest.mark.parametrize("cut", [{}, {"truncate_prompt_tokens": 8}], ids=["whole", "cut"])
def test_a_pair_is_bounded_by_what_reading_it_takes(small: Model, cut: dict[str, int]) -> None:
    for path, sides in (
        ("/v1/score", {"text_1": "a" * 66_000, "text_2": ["b", "c"]}),
        ("/v1/rerank", {"query": "a", "documents": ["b", "c" * 66_000, *["d"] * 50]}),
    ):
        answer = small.shared.post(path, {"model": small.name, **sides, **cut})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert small.log() == []
    sides = {"text_1": "a" * 2000, "text_2": ["b" * 2000]}
    assert (
        small.shared.post("/v1/score", {"model": small.name, **sides, "truncate_prompt_tokens": 8}).status_code == 200
    )


@pytest.mark.parametrize("cut", [{}, {"truncate_prompt_tokens": 8}], ids=["whole", "cut"])
def test_pairs_are_bounded_together(shared: Shared, cut: dict[str, int]) -> None:
    for path, sides in (
        ("/v1/score", {"text_1": "a" * 10_000_000, "text_2": ["b"] * 2048}),
        ("/v1/rerank", {"query": "a" * 20_000, "documents": ["b"] * 2048}),
    ):
        answer = shared.post(path, {"model": "vectors", **sides, **cut})
        assert answer.status_code == 400
        assert "send several requests" in answer.json()["error"]["message"]


def test_tokenizing_counts_text_as_a_chat_does(shared: Shared) -> None:
    picture = {"type": "image_url", "image_url": {"url": png_url(1000, 800)}}
    turns = [{"role": "user", "content": [picture, {"type": "text", "text": "what is it"}]}]
    # A model of 4,096 tokens: more than 4,096 × 128 bytes of text would be refused.
    assert shared.post("/v1/chat/completions", {"model": "alpha", "messages": turns}).status_code == 200
    assert shared.post("/tokenize", {"model": "alpha", "messages": turns}).status_code == 200
    many = [{"role": "user", "content": "a"}] * 4097
    for path in ("/v1/chat/completions", "/tokenize"):
        answer = shared.post(path, {"model": "alpha", "messages": many})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
    body = json.dumps({"model": "alpha", "prompt": "a" * 600_000}).encode()
    assert DIALECTS["/tokenize"].read(body).ask.text_bytes == 600_000
    assert shared.http.post("/tokenize", content=body).json()["error"]["code"] == "context_length_exceeded"


def test_parts_and_tools_are_bounded(shared: Shared) -> None:
    parts = [{"type": "text", "text": "a"}] * 4097
    tools = [{"type": "function", "function": {"name": "a"}}] * 1025
    said = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    for path, fields, param in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": parts}]}, "messages[0].content"),
        ("/v1/chat/completions", said | {"tools": tools}, "tools"),
        ("/v1/responses", {"input": "a", "tools": tools}, "tools"),
        ("/v1/responses", {"input": [{"role": "user", "content": parts}]}, "input[0].content"),
    ):
        answer = shared.post(path, {"model": "alpha", **fields})
        assert answer.status_code == 400
        assert (answer.json()["error"]["param"], "at most" in answer.json()["error"]["message"]) == (param, True)
    own: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": parts}]},
        {"tools": [{"name": "a", "input_schema": {}}] * 1025},
    ]
    for more in own:
        answer = shared.post("/v1/messages", {"model": "alpha", **said, **more})
        assert (answer.status_code, "at most" in answer.json()["error"]["message"]) == (400, True)
