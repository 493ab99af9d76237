"""One list of calls by the official ``anthropic`` client, against real vLLM's own route and through the translation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import pytest

from tests.e2e.conformance import address_of, body_of, require_alike, streamed
from tests.e2e.stack import Stack, wait_for

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.together("stack"),
]

MODEL = "demo-tiny"
HELLO: Any = {"role": "user", "content": "Say hello."}
TOOL: Any = {
    "name": "now",
    "description": "The time.",
    "strict": True,
    "input_schema": {
        "type": "object",
        "properties": {"zone": {"type": "string", "enum": ["UTC", "CET"]}},
        "required": ["zone"],
        "additionalProperties": False,
    },
}
TURNS: list[Any] = [
    HELLO,
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "One moment."},
            {"type": "tool_use", "id": "t1", "name": "now", "input": {"zone": "UTC"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "noon"}]},
            {"type": "text", "text": "And now?", "cache_control": {"type": "ephemeral"}},
        ],
    },
]
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
FIXED: dict[str, Any] = {"temperature": 0}

Call = Callable[[anthropic.Anthropic], Any]


def message(**fields: Any) -> Call:
    def ask(client: anthropic.Anthropic) -> Any:
        given: dict[str, Any] = {"model": MODEL, "messages": [HELLO], "max_tokens": 8, "extra_body": FIXED} | fields
        answer = client.messages.create(**given)
        return with_prompts(told(streamed(answer)) if given.get("stream") else body_of(answer))

    return ask


def with_prompts(value: Any) -> Any:
    """With each usage's ``prompt_tokens``: however much of it was found in which cache, it is the same."""
    if isinstance(value, list):
        return [with_prompts(each) for each in value]
    if not isinstance(value, dict):
        return value
    found = {name: with_prompts(each) for name, each in value.items()}
    if "input_tokens" in found:
        parts = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
        found["prompt_tokens"] = sum(found.get(name) or 0 for name in parts)
    return found


def told(events: list[Any]) -> list[Any]:
    """Without pings, and with pieces put together: how many there are hangs on how busy the engine is."""
    found: list[Any] = []
    for event in events:
        if event["type"] == "ping":
            continue
        before = found[-1] if found else {}
        if event["type"] == before.get("type") == "content_block_delta" and event["index"] == before["index"]:
            for name, piece in event["delta"].items():
                before["delta"][name] = piece if name == "type" else before["delta"].get(name, "") + piece
        else:
            found.append(event)
    return found


def refused(call: Call) -> Call:
    def ask(client: anthropic.Anthropic) -> Any:
        with pytest.raises(anthropic.APIStatusError) as caught:
            call(client)
        return {"status": caught.value.status_code, "class": type(caught.value).__name__, "body": caught.value.body}

    return ask


def count(**fields: Any) -> Call:
    return lambda client: body_of(client.messages.count_tokens(**{"model": MODEL, "messages": [HELLO]} | fields))


CALLS: dict[str, Call] = {
    "message": message(),
    "message stream": message(stream=True),
    "message system": message(system="You are terse."),
    "message system blocks": message(system=[{"type": "text", "text": "You are "}, {"type": "text", "text": "terse."}]),
    "message stop sequence": message(stop_sequences=["e"], max_tokens=48),
    "message stop sequence stream": message(stop_sequences=["e"], max_tokens=48, stream=True),
    "message top_k": message(extra_body={"top_k": 1}),
    "message turns": message(messages=TURNS, tools=[TOOL], tool_choice={"type": "none"}),
    "message tool": message(tools=[TOOL], tool_choice={"type": "tool", "name": "now"}, max_tokens=64),
    "message tool stream": message(
        tools=[TOOL], tool_choice={"type": "tool", "name": "now"}, max_tokens=64, stream=True
    ),
    "message json schema": message(output_config={"format": {"type": "json_schema", "schema": SCHEMA}}, max_tokens=48),
    "message user": message(metadata={"user_id": "u1"}),
    "count": count(),
    "count turns": count(messages=TURNS, tools=[TOOL], system="You are terse."),
    "unknown model": refused(message(model="no-such-model")),
    "too long": refused(message(messages=[{"role": "user", "content": "word " * 6000}])),
    "stops of a wrong type": refused(message(stop_sequences={"a": 1})),
    "unknown role": refused(message(messages=[{"role": "tool", "content": "x"}])),
}

JUSTIFIED: dict[str, str] = {
    r"^message.*\.id$": "Ids are made for each request; Penstock's lead from the client to the engine's log.",
    r"^message.*\.(cache_read_input_tokens|cache_creation_input_tokens|input_tokens)$": (
        "What is found in the prefix cache is not counted as input; the caches are separate per tenant (cache_salt). "
        "The sum, prompt_tokens, is the same. "
        "Penstock charges nothing for filling the cache, and so tells nothing of it."
    ),
    r"^count.*\.context_management$": "An echo of the count, which Anthropic has only for what it edits of a context.",
    r"^(unknown|too long|stops).*\.body\b.*": (
        "Anthropic's error types and a request id, where vLLM has some of OpenAI's; status and exception are the same."
    ),
}
RARE: frozenset[str] = frozenset()


@pytest.fixture(scope="module")
def clients(stack: Stack) -> Iterator[tuple[anthropic.Anthropic, anthropic.Anthropic]]:
    """The client that talks to the engine itself, and the one that talks to Penstock."""
    address = address_of(stack, MODEL)
    wait_for("demo-tiny at the gateways", lambda: stack.is_serving(MODEL), seconds=30)
    base_url = stack.base_url.removesuffix("/v1")
    with (
        anthropic.Anthropic(base_url=address, api_key="none", max_retries=0) as direct,
        anthropic.Anthropic(base_url=base_url, api_key=stack.key(), max_retries=0) as through,
    ):
        yield direct, through


def test_answers_are_equal_but_for_justified_differences(
    clients: tuple[anthropic.Anthropic, anthropic.Anthropic],
) -> None:
    direct, through = clients
    require_alike(CALLS, direct, through, JUSTIFIED, rare=RARE)


def test_streamed_message_of_real_vllm_has_its_usage_row(
    stack: Stack, clients: tuple[anthropic.Anthropic, anthropic.Anthropic]
) -> None:
    _, through = clients
    asked: dict[str, Any] = {"model": MODEL, "messages": [HELLO], "max_tokens": 9}
    with through.messages.stream(**asked, extra_headers={"X-Request-Id": "anthropic-usage"}) as stream:
        usage = stream.get_final_message().usage
    row = wait_for("the usage row", lambda: stack.usage("client_request_id = 'anthropic-usage'"), seconds=20)[0]
    assert row["dialect"] == "messages"
    assert row["output_tokens"] == usage.output_tokens
    assert row["input_tokens"] == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert row["actual_mu"] > 0
