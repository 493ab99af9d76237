"""Embeddings, scores and ranks: what reaches the engine, what is charged, and who is asked."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from serving.gateway.dialects import Embeddings, Rerank, Score
from serving.gateway.errors import ApiError
from tests.gateway.conftest import Shared
from tests.gateway.harness import key_record, wait_for


def test_the_client_gets_vectors_in_either_encoding(shared: Shared) -> None:
    client = shared.client()
    # The official client asks for base64 unless told otherwise, and decodes it.
    packed = client.embeddings.create(model="vectors", input=["abcd", "abcdefgh"])
    plain = client.embeddings.create(model="vectors", input=["abcd", "abcdefgh"], encoding_format="float")
    assert [item.embedding for item in packed.data] == [item.embedding for item in plain.data] == [[1.0] * 8, [2.0] * 8]
    assert packed.usage.prompt_tokens == packed.usage.total_tokens == 3
    assert client.embeddings.create(model="vectors", input="abcd", dimensions=3).data[0].embedding == [1.0] * 3


@pytest.mark.parametrize(
    ("given", "tokens"), [("abcd" * 5, 5), (["abcd", "ab"], 2), ([1, 2, 3], 3), ([[1, 2], [3]], 3)]
)
def test_every_form_of_input_is_charged_by_the_engines_count(shared: Shared, given: Any, tokens: int) -> None:
    answer = shared.post("/v1/embeddings", {"model": "vectors", "input": given})
    assert answer.status_code == 200
    admitted, end = shared.books(answer)
    assert (admitted["dialect"], admitted["estimated"].get("output_tokens", 0)) == ("embeddings", 0)
    assert end["usage"] == {"input_tokens": tokens}
    assert (end["outcome"], end["status"]) == ("completed", 200)
    assert end["actual_mu"] == pytest.approx(0.5 + 0.01 * tokens)
    assert float(answer.headers["x-penstock-mu-estimated"]) == pytest.approx(admitted["estimated_mu"], rel=1e-4)


def test_the_body_is_the_engines_own_and_other_fields_stay_outside(shared: Shared) -> None:
    body = {"model": "vectors", "input": "abcd", "encoding_format": "float", "dimensions": 2, "normalize": True}
    answer = shared.post("/v1/embeddings", body | {"cache_salt": "x", "mm_processor_kwargs": {}, "stream": True})
    sent: Any = shared.served(answer.headers["x-penstock-request-id"])["body"]
    assert set(sent) == {"model", "input", "encoding_format", "dimensions", "priority", "cache_salt"}
    assert sent["cache_salt"] != "x"
    assert answer.json()["data"][0]["embedding"] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "encoding_format": "bytes"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "priority": -1}, "priority"),
    ],
)
def test_wrong_embeddings_name_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        Embeddings().parse(json.dumps({"model": "m", **fields}).encode())
    assert (caught.value.status, caught.value.param) == (400, param)


def test_a_rerank_and_a_score(shared: Shared) -> None:
    documents = ["abcdefgh", "abcd", "abcdefghijkl"]
    body = {"model": "vectors", "query": "abcd", "documents": documents, "top_n": 2, "return_tokens": True}
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        ranked = shared.post(path, body)
        assert [result["index"] for result in ranked.json()["results"]] == [0, 1]
        admitted, end = shared.books(ranked)
        assert (admitted["dialect"], end["usage"]) == ("rerank", {"input_tokens": 9})
        sent: Any = shared.served(ranked.headers["x-penstock-request-id"])
        assert sent["path"] == "/v1/rerank"
        assert set(sent["body"]) == {"model", "query", "documents", "top_n", "priority", "cache_salt"}
    scored = shared.post("/v1/score", {"model": "vectors", "text_1": "abcd", "text_2": documents})
    assert [item["score"] for item in scored.json()["data"]] == [1.0, 0.5, pytest.approx(1 / 3)]
    admitted, end = shared.books(scored)
    assert (admitted["dialect"], end["usage"], end["actual_mu"]) == ("score", {"input_tokens": 9}, pytest.approx(0.59))


@pytest.mark.parametrize(
    ("dialect", "fields", "param"),
    [
        (Rerank(), {"query": "a"}, "documents"),
        (Rerank(), {"query": "a", "documents": []}, "documents"),
        (Rerank(), {"query": ["a"], "documents": ["b"]}, "query"),
        (Rerank(), {"query": "a", "documents": [{"content": []}]}, "documents[0]"),
        (Rerank(), {"query": "a", "documents": ["b"], "top_n": -1}, "top_n"),
        (Score(), {"text_1": "a"}, "text_1"),
        (Score(), {"text_1": "a", "text_2": "b", "queries": "a", "documents": "b"}, "text_1"),
        (Score(), {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
        (Score(), {"queries": ["a"], "documents": []}, "documents"),
    ],
)
def test_wrong_pairs_name_the_field(dialect: Rerank | Score, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        dialect.parse(json.dumps({"model": "m", **fields}).encode())
    assert (caught.value.status, caught.value.param) == (400, param)


def test_pairs_are_estimated_as_a_cross_encoder_reads_them() -> None:
    body = {"model": "m", "query": "abc", "documents": ["d", "ef"]}
    ask = Rerank().parse(json.dumps(body).encode()).ask
    assert (ask.prompts, ask.choices, ask.text_bytes) == (2, 0, 9)
    both = {"model": "m", "text_1": ["ab", "c"], "text_2": ["d", "ef"]}
    assert Score().parse(json.dumps(both).encode()).ask.text_bytes == 6


def test_a_model_that_speaks_something_else_says_what(shared: Shared) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        shared.client().embeddings.create(model="alpha", input="a")
    assert caught.value.code == "model_not_supported"
    assert "/v1/chat/completions" in caught.value.message
    with pytest.raises(openai.NotFoundError) as caught:
        shared.client().completions.create(model="vectors", prompt="a", max_tokens=1)
    assert "/v1/embeddings, /v1/rerank, /v1/score" in caught.value.message
    answer = shared.post("/v1/rerank", {"model": "iris", "query": "a", "documents": ["a"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_supported")
    # What a tenant may not see does not exist, whatever it speaks.
    hidden = shared.post("/v1/embeddings", {"model": "secret", "input": "a"})
    assert hidden.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("status", [404, 405, 501])
def test_an_engine_without_the_route_is_no_broken_engine(shared: Shared, status: int) -> None:
    script = json.dumps({"fail": "status", "status": status})
    answer = shared.post("/v1/embeddings", {"model": "vectors", "input": "a", "user": script})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_supported")
    assert "/v1/embeddings" in answer.json()["error"]["message"]
    _, end = shared.books(answer)
    assert (end["outcome"], len(end["attempts"]), end["actual_mu"]) == ("refused", 1, 0.0)


def test_an_answer_that_is_too_large_is_charged_and_is_no_broken_engine(shared: Shared) -> None:
    body = {"model": "vectors", "input": ["abcd"] * 4, "user": json.dumps({"pad": 70 * 2**20})}
    answer = shared.post("/v1/embeddings", body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "answer_too_large")
    assert "64 MiB" in answer.json()["error"]["message"]
    admitted, end = shared.books(answer)
    assert (end["outcome"], end["status"], len(end["attempts"])) == ("completed", 400, 1)
    assert end["usage"]["input_tokens"] == admitted["estimated"]["input_tokens"] > 0
    assert end["lower_bound"]


def test_an_embedding_leaves_the_slot_and_the_limits_as_they_were(shared: Shared) -> None:
    limit = {"id": "embed-tokens", "kind": "tokens_per_min", "value": 100}
    shared.publish(("key", key_record("embed1", "acme", limits=[limit])))
    codes = []
    for _ in range(6):
        answer = shared.post("/v1/embeddings", {"model": "vectors", "input": list(range(30))}, key="embed1")
        codes.append(answer.status_code)
    assert codes == [200, 200, 200, 429, 429, 429]
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    wait_for("an idle gateway", lambda: shared.http.get("/readyz").json()["in_flight"] == 0)
