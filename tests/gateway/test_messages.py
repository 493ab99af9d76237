"""Anthropic's API by its official client: what comes back, whole and as a stream, and what is charged."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx
import pytest

from tests.gateway.conftest import Shared

USER: dict[str, Any] = {"role": "user", "content": "say something"}
HEADERS = {"x-api-key": "mu_acme1_secret", "anthropic-version": "2023-06-01"}


# -------------------------------------------------------------------------------------------------- the answer
def test_an_answer(shared: Shared) -> None:
    answer = shared.claude.messages.create(model="alpha", max_tokens=5, messages=[USER])  # type: ignore[list-item]
    assert answer.type == "message"
    assert answer.content[0].text == "tok tok tok tok tok "  # type: ignore[union-attr]
    assert (answer.stop_reason, answer.stop_sequence, answer.model) == ("max_tokens", None, "alpha")
    assert (answer.usage.input_tokens, answer.usage.cache_read_input_tokens, answer.usage.output_tokens) == (7, 1, 5)
    assert answer._request_id
    end = shared.cluster.ended(answer._request_id)
    assert end["usage"] == {"input_tokens": 8, "cached_tokens": 1, "output_tokens": 5}
    assert end["actual_mu"] == pytest.approx(0.5 + 0.01 * 7 + 0.001 + 1.0)
    assert shared.cluster.journal()[answer._request_id]["a"]["dialect"] == "messages"


def scripted(**script: Any) -> dict[str, Any]:
    return {"model": "alpha", "max_tokens": 5, "messages": [USER], "metadata": {"user_id": json.dumps(script)}}


CALL = {"index": 0, "id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"zone": "UTC"}'}}


@pytest.mark.parametrize(
    ("say", "finish", "stop", "reason", "content"),
    [
        ({"content": "hi"}, "stop", None, "end_turn", [("text", "hi")]),
        ({"content": "hi"}, "stop", "X", "stop_sequence", [("text", "hi")]),
        ({"content": "hi"}, "stop", 7, "end_turn", [("text", "hi")]),
        ({"content": None}, "length", None, "max_tokens", [("text", "")]),
        ({"content": "", "reasoning": "hm"}, "stop", None, "end_turn", [("thinking", "hm")]),
        ({"content": "a", "reasoning_content": "hm"}, "stop", None, "end_turn", [("thinking", "hm"), ("text", "a")]),
        ({"content": "a", "tool_calls": [CALL]}, "tool_calls", None, "tool_use", [("text", "a"), ("tool_use", None)]),
        ({"tool_calls": [CALL]}, "stop", "X", "tool_use", [("tool_use", None)]),
    ],
)
def test_answers_of_every_kind(
    shared: Shared, say: dict[str, Any], finish: str, stop: Any, reason: str, content: list[tuple[str, Any]]
) -> None:
    answer = shared.claude.messages.create(**scripted(say=say, finish=finish, stop_reason=stop))
    assert answer.stop_reason == reason
    assert answer.stop_sequence == (stop if reason == "stop_sequence" else None)
    assert [(block.type, getattr(block, block.type, None)) for block in answer.content] == content
    used = [block for block in answer.content if block.type == "tool_use"]
    assert [(block.id, block.name, block.input) for block in used] == [("c1", "now", {"zone": "UTC"})] * len(used)


def test_a_tools_input_that_was_cut_off_is_told_as_such(shared: Shared) -> None:
    cut = {"tool_calls": [CALL | {"function": {"name": "now", "arguments": '{"zo'}}]}
    answer = shared.claude.messages.create(**scripted(say=cut, finish="length"))
    assert answer.stop_reason == "max_tokens"
    assert answer.content[0].input == {"INVALID_JSON": '{"zo'}  # type: ignore[union-attr]


# -------------------------------------------------------------------------------------------------- the stream
def test_a_stream(shared: Shared) -> None:
    with shared.claude.messages.stream(model="alpha", max_tokens=4, messages=[USER]) as stream:  # type: ignore[list-item]
        kinds = [event.type for event in stream if event.type not in ("text", "input_json")]
        message = stream.get_final_message()
        request_id = stream.response.headers["x-penstock-request-id"]
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert message.content[0].text == " tok" * 4  # type: ignore[union-attr]
    assert (message.stop_reason, message.usage.input_tokens, message.usage.output_tokens) == ("max_tokens", 8, 4)
    assert message.id == f"msg_{request_id}"
    end = shared.cluster.ended(request_id)
    assert (end["usage"], end["finish_reason"]) == ({"input_tokens": 8, "output_tokens": 4}, "length")


def arguments(index: int, text: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def begin(index: int, name: str, text: str = "") -> dict[str, Any]:
    call = {"index": index, "id": f"c{index}", "type": "function", "function": {"name": name, "arguments": text}}
    return {"tool_calls": [call]}


PIECES = [
    {"reasoning": "hm"},
    {"reasoning": ", so"},
    {"content": "I "},
    {"content": ""},
    {"content": "call"},
    begin(0, "now"),
    arguments(0, '{"zone"'),
    {"content": " (meanwhile)"},
    arguments(0, ': "UTC"}'),
    begin(1, "later", '{"in": 5}'),
]


def raw_events(shared: Shared, body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    answer = shared.http.post("/v1/messages", json=body | {"stream": True}, headers=HEADERS)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in answer.text.split("\n\n")[:-1]:
        kind, data = block.split("\n")
        events.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    assert all(kind == data["type"] for kind, data in events)
    return events


def test_blocks_of_a_stream_follow_one_another(shared: Shared) -> None:
    body = scripted(say=PIECES, finish="tool_calls", cached=3)
    with shared.claude.messages.stream(**body) as stream:
        message = stream.get_final_message()
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "text", "tool_use"]
    assert [getattr(block, "thinking", None) or getattr(block, "text", None) for block in message.content] == [
        "hm, so",
        "I call",
        None,
        " (meanwhile)",
        None,
    ]
    assert [block.input for block in message.content if block.type == "tool_use"] == [{"zone": "UTC"}, {"in": 5}]
    assert (message.stop_reason, message.usage.cache_read_input_tokens) == ("tool_use", 3)
    events = raw_events(shared, body)
    open_block = None
    for kind, data in events:
        if kind == "content_block_start":
            assert open_block is None
            open_block = data["index"]
        elif kind == "content_block_stop":
            assert open_block == data["index"]
            open_block = None
        elif kind == "content_block_delta":
            assert open_block == data["index"]
    assert [kind for kind, _ in events[-2:]] == ["message_delta", "message_stop"]
    assert events[1][0] == "ping"


def said_by(shared: Shared, say: list[dict[str, Any]], **script: Any) -> list[Any]:
    """The blocks of a stream's message, of which each is closed before the next begins."""
    body = scripted(say=say, finish="tool_calls", **script)
    with shared.claude.messages.stream(**body) as stream:
        blocks = stream.get_final_message().content
    marks = [kind for kind, _ in raw_events(shared, body) if kind in ("content_block_start", "content_block_stop")]
    assert marks == ["content_block_start", "content_block_stop"] * len(blocks)
    return [
        (block.name, block.input)
        if block.type == "tool_use"
        else block.thinking
        if block.type == "thinking"
        else block.text  # type: ignore[union-attr]
        for block in blocks
    ]


def test_thoughts_amid_a_tools_input_wait_for_its_end(shared: Shared) -> None:
    say = [
        begin(0, "now", '{"zone"'),
        {"reasoning": "hm"},
        {"reasoning": ", so"},
        {"content": "text"},
        arguments(0, ': "UTC"}'),
    ]
    assert said_by(shared, say) == [("now", {"zone": "UTC"}), "hm, so", "text"]


def test_tools_whose_inputs_come_by_turns_are_told_one_after_the_other(shared: Shared) -> None:
    say = [
        begin(0, "now", '{"zone"'),
        begin(1, "later", "{"),
        {"content": "text"},
        arguments(1, '"in": 5'),
        begin(2, "never"),
        arguments(0, ': "UTC"'),
        arguments(1, "}"),
        arguments(0, "}"),
        arguments(0, " "),
        arguments(2, "{}"),
    ]
    assert said_by(shared, say) == [("now", {"zone": "UTC"}), ("later", {"in": 5}), "text", ("never", {})]


def test_tools_whose_input_never_becomes_whole_hold_the_next_to_the_end_only(shared: Shared) -> None:
    assert said_by(shared, [begin(0, "now"), begin(1, "later", '{"in": 5}')]) == [("now", {}), ("later", {"in": 5})]


def test_what_follows_a_whole_input_is_told_at_once(shared: Shared) -> None:
    say = [begin(0, "now", "{}"), begin(1, "later", '{"in"'), arguments(1, ": 5}"), {"content": "so"}]
    told = [data for kind, data in raw_events(shared, scripted(say=say)) if kind == "content_block_delta"]
    assert [each["delta"].get("partial_json", each["delta"].get("text")) for each in told] == [
        "{}",
        '{"in"',
        ": 5}",
        "so",
    ]


def test_an_empty_stream_has_an_empty_block(shared: Shared) -> None:
    events = raw_events(shared, scripted(say=[{"content": ""}], finish="stop"))
    assert [kind for kind, _ in events] == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[-2][1]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


def test_a_stream_that_mixes_up_tools_is_an_error(shared: Shared) -> None:
    say = [begin(0, "now", "{}"), begin(1, "later", "{"), arguments(0, "}")]
    with pytest.raises(anthropic.APIStatusError, match="engine failed"):
        list(shared.claude.messages.create(**scripted(say=say), stream=True))


@pytest.mark.parametrize(("fail", "outcome"), [("error_event", "engine_error"), ("drop", "engine_lost")])
def test_a_stream_that_breaks_ends_with_an_error_event(shared: Shared, fail: str, outcome: str) -> None:
    events = raw_events(shared, scripted(fail=fail, at=2))
    kind, last = events[-1]
    assert kind == "error"
    assert last["error"]["type"] == "api_error"
    assert "message_stop" not in [kind for kind, _ in events]
    end = shared.cluster.ended(last["request_id"])
    assert (end["outcome"], end["usage"]) == (outcome, {"input_tokens": 8, "output_tokens": 2})


# -------------------------------------------------------------------------------------------------- the rest
def test_counting_tokens_costs_nothing(shared: Shared) -> None:
    before = len(shared.cluster.journal())
    counted = shared.claude.messages.count_tokens(model="alpha", messages=[USER], system="abcd")  # type: ignore[list-item]
    assert counted.input_tokens == 4 + 4 + 4 + 1
    assert len(shared.cluster.journal()) == before


def test_both_kinds_of_credential(shared: Shared) -> None:
    body = {"model": "alpha", "max_tokens": 1, "messages": [USER]}
    url = f"{shared.url}/v1/messages"
    bearer = {"authorization": "Bearer mu_acme1_secret"}
    assert httpx.post(url, json=body, headers={"x-api-key": "mu_acme1_secret"}).status_code == 200
    assert httpx.post(url, json=body, headers=bearer).status_code == 200
    # Where both are sent, as some clients do, the one of the standard counts.
    assert httpx.post(url, json=body, headers=bearer | {"x-api-key": "sk-ant-old"}).status_code == 200
    assert httpx.post(url, json=body, headers={"x-api-key": "mu_acme1_wrong"}).status_code == 401


@pytest.mark.parametrize(
    ("key", "fields", "status", "kind", "raised"),
    [
        ("mu_acme1_wrong", {}, 401, "authentication_error", anthropic.AuthenticationError),
        ("mu_scopeless1_secret", {}, 403, "permission_error", anthropic.PermissionDeniedError),
        ("mu_acme1_secret", {"model": "secret"}, 404, "not_found_error", anthropic.NotFoundError),
        ("mu_acme1_secret", {"model": "vectors"}, 404, "not_found_error", anthropic.NotFoundError),
        ("mu_acme1_secret", {"tool_choice": {"type": "x"}}, 400, "invalid_request_error", anthropic.BadRequestError),
        (
            "mu_acme1_secret",
            {"messages": [{"role": "user", "content": []}]},
            400,
            "invalid_request_error",
            anthropic.BadRequestError,
        ),
        ("mu_acme1_secret", {"model": "bare"}, 503, "overloaded_error", anthropic.InternalServerError),
    ],
)
def test_errors_are_anthropics(
    shared: Shared, key: str, fields: dict[str, Any], status: int, kind: str, raised: type[Exception]
) -> None:
    with (
        anthropic.Anthropic(api_key=key, base_url=shared.url, max_retries=0) as client,
        pytest.raises(raised) as caught,
    ):
        client.messages.create(**{"model": "alpha", "max_tokens": 1, "messages": [USER]} | fields)
    error: Any = caught.value
    assert error.status_code == status
    assert set(error.body) == {"type", "error", "request_id"}
    assert error.body["error"]["type"] == kind
    assert error.request_id == error.body["request_id"]
    if fields.get("tool_choice"):
        assert "tool_choice.type" in error.body["error"]["message"]


def test_the_engines_own_complaint_reaches_the_client(shared: Shared) -> None:
    long = {"role": "user", "content": "abcd" * 4096}
    with pytest.raises(anthropic.BadRequestError, match="4096"):
        shared.claude.messages.create(model="alpha", max_tokens=1, messages=[long])  # type: ignore[list-item]


def test_models_are_listed_in_the_same_shape(shared: Shared) -> None:
    listed = list(shared.claude.models.list())
    assert {model.id for model in listed} >= {"alpha", "beta"}
    assert "secret" not in {model.id for model in listed}
    one = shared.claude.models.retrieve("alpha")
    assert (one.type, one.display_name, one.created_at.year) == ("model", "alpha", 1970)
    with pytest.raises(anthropic.NotFoundError) as caught:
        shared.claude.models.retrieve("secret")
    assert caught.value.body["error"]["type"] == "not_found_error"  # type: ignore[index,call-overload]


def test_routes_that_are_not_there_say_so_in_the_same_shape(shared: Shared) -> None:
    answer = shared.http.post("/v1/messages/batches", json={}, headers=HEADERS)
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")
    answer = shared.http.get("/v1/messages", headers=HEADERS)
    assert (answer.status_code, answer.json()["type"]) == (405, "error")
