"""The Responses API by OpenAI's client: passed to the engine's own route, without a store."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from serving.gateway.dialects import Responses
from serving.gateway.errors import ApiError
from tests.gateway.conftest import AUTH, Shared
from tests.gateway.harness import key_record
from tests.pictures import PIXEL_URL

TOOL: Any = {"type": "function", "name": "now", "parameters": {"type": "object", "properties": {}}}
PIXEL = PIXEL_URL


def parse(**fields: Any) -> Any:
    return Responses().parse(json.dumps({"model": "m", "input": "hi", **fields}).encode())


def engine(**fields: Any) -> dict[str, Any]:
    return json.loads(Responses().engine_body(parse(**fields), priority=3, cache_salt="salt"))  # type: ignore[no-any-return]


OWN = {"model": "m", "input": "hi", "store": False, "priority": 3, "cache_salt": "salt"}


def test_only_listed_fields_reach_the_engine() -> None:
    internal = {
        "cache_salt": "theirs",
        "request_id": "x",
        "session_id": "x",
        "kv_transfer_params": {},
        "mm_processor_kwargs": {},
        "vllm_xargs": {},
        "previous_input_messages": [],
        "enable_response_messages": True,
        "service_tier": "flex",
        "prompt_cache_key": "k",
        "whatever": 1,
    }
    assert engine(temperature=0.5, **internal) == OWN | {"temperature": 0.5}
    assert parse(prompt_cache_key="k").workload == "k"
    asked = {"instructions": "x", "tools": [TOOL], "text": {"format": {"type": "json_object"}}, "stream": True}
    assert engine(**asked) == OWN | asked


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL, {"type": "mcp", "server_url": "http://x"}]}, "tools[1].type"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input[0].content[0]"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://10.0.0.1/"}]}]},
            "input[0].content[0]",
        ),
        (
            {
                "input": [
                    {"type": "function_call_output", "output": [{"type": "input_image", "image_url": "file:///x"}]}
                ]
            },
            "input[0].output[0]",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": PIXEL, "uuid": "theirs"}]}]},
            "input[0].content[0].uuid",
        ),
        (
            {"input": [{"type": "function_call_output", "output": [{"type": "input_image", "uuid": "theirs"}]}]},
            "input[0].output[0].uuid",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x", "image_embeds": "AAAA"}]}]},
            "input[0].content[0].image_embeds",
        ),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].image_url"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs"),
        ({"priority": -1}, "priority"),
        ({"temperature": "hot"}, "temperature"),
    ],
)
def test_what_needs_a_store_or_another_service_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_not_storing_may_be_said() -> None:
    for fields in ({"store": False}, {"background": False, "previous_response_id": None, "prompt": None}):
        assert engine(**fields)["store"] is False


def test_items_are_counted_for_the_estimate() -> None:
    items = [
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "héllo"}, {"type": "input_image", "image_url": PIXEL}],
        },
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "abc"}], "encrypted_content": None},
        {"type": "function_call", "call_id": "c", "name": "now", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "noon"},
    ]
    ask = parse(input=items, instructions="x", max_output_tokens=7).ask
    assert (ask.text_bytes, ask.media, ask.messages, ask.max_output) == (1 + 6 + 3 + 2 + 4, 1, 4, 7)


def test_an_answer(shared: Shared) -> None:
    answer = shared.client().responses.create(model="alpha", input="abcd" * 4, max_output_tokens=5)
    assert answer.output_text == "tok " * 5
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (8, 5)
    request_id = answer._request_id
    assert request_id
    end = shared.cluster.ended(request_id)
    assert end["usage"] == {"input_tokens": 8, "cached_tokens": 1, "output_tokens": 5}
    assert (end["outcome"], end["finish_reason"]) == ("completed", "length")
    assert end["actual_mu"] == pytest.approx(0.5 + 0.01 * 7 + 0.001 + 1.0)
    assert shared.cluster.journal()[request_id]["a"]["dialect"] == "responses"


def test_a_stream_is_the_engines_own(shared: Shared) -> None:
    body = {"model": "alpha", "input": "abcd", "max_output_tokens": 3, "stream": True}
    answer = shared.post("/v1/responses", body)
    direct = shared.http.post(f"{shared.engines[0].url}/v1/responses", json=body)
    assert answer.text == direct.text
    _, end = shared.books(answer)
    assert end["usage"] == {"input_tokens": 5, "cached_tokens": 1, "output_tokens": 3}
    with shared.client().responses.stream(model="alpha", input="abcd", max_output_tokens=3) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert text == " tok" * 3


@pytest.mark.parametrize(
    ("fail", "outcome"), [("failed_event", "engine_error"), ("drop", "engine_lost"), ("no_done", "engine_lost")]
)
def test_a_stream_that_breaks_raises_and_is_charged_for_what_was_seen(shared: Shared, fail: str, outcome: str) -> None:
    user = json.dumps({"fail": fail, "at": 2, "delay_ms": 20})
    raw = shared.client().responses.with_raw_response.create(
        model="alpha", input="abcd", max_output_tokens=5, stream=True, user=user
    )
    kinds: list[str] = []
    with pytest.raises(openai.APIError, match="engine"):
        kinds.extend(event.type for event in raw.parse())
    assert kinds.count("response.output_text.delta") == 2
    assert not {"response.failed", "response.completed"} & set(kinds)
    request_id = raw.headers["x-penstock-request-id"]
    end = shared.cluster.ended(request_id)
    estimated = shared.cluster.journal()[request_id]["a"]["estimated"]
    # The engine tells its counts at the end alone: what was seen is charged, and said not to be the engine's count.
    assert end["usage"] == estimated | {"output_tokens": 2}
    assert (end["outcome"], end["lower_bound"]) == (outcome, True)


def test_a_cut_stream_is_charged_for_cached_input_as_a_whole_one_would_be(shared: Shared) -> None:
    shared.publish(("key", key_record("cached1", "acme")))
    long = "abcd" * 100
    cached = json.dumps({"cached": 200})
    for _ in range(5):
        body = {"model": "alpha", "messages": [{"role": "user", "content": long * 2}], "max_tokens": 1, "stream": True}
        shared.books(shared.post("/v1/chat/completions", body | {"user": cached}, key="cached1"))
    asked = {"model": "alpha", "input": long, "max_output_tokens": 5, "stream": True}
    cut = shared.post("/v1/responses", asked | {"user": json.dumps({"fail": "drop", "at": 2})}, key="cached1")
    admitted, end = shared.books(cut)
    found, given = end["usage"]["cached_tokens"], end["usage"]["input_tokens"]
    assert found == admitted["estimated"]["cached_tokens"] > 20
    assert end["actual_mu"] == pytest.approx(0.5 + 0.01 * (given - found) + 0.001 * found + 0.2 * 2)


def test_responses_are_not_kept(shared: Shared) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        answer = shared.http.request(method, f"/v1/responses/resp_1{path}", headers=AUTH)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "response_not_found")
    with pytest.raises(openai.BadRequestError) as caught:
        shared.client().responses.create(model="alpha", input="x", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"
    assert "whole conversation" in caught.value.message
