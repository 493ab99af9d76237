"""One list of calls by the official ``openai`` client, against real vLLM directly and through Penstock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from tests.e2e.conformance import address_of, body_of, require_alike, streamed
from tests.e2e.stack import Stack, wait_for
from tests.pictures import PIXEL_URL

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.together("stack"),
]

MODEL = "demo-tiny"
MESSAGES: list[Any] = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Say hello."}]
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
ZONE = {"type": "string", "enum": ["UTC", "CET"]}
PARAMETERS = {"type": "object", "properties": {"zone": ZONE}, "required": ["zone"], "additionalProperties": False}
TOOL: Any = {"type": "function", "function": {"name": "now", "parameters": PARAMETERS, "strict": True}}
FLAT_TOOL: Any = {"type": "function", "name": "now", "parameters": PARAMETERS, "strict": True}
NOW: Any = {"type": "function", "function": {"name": "now"}}
CALLED: list[Any] = [
    *MESSAGES,
    {
        "role": "assistant",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "noon"},
]
FIXED: dict[str, Any] = {"temperature": 0, "seed": 7}

Call = Callable[[openai.OpenAI], Any]


def refused(call: Call) -> Call:
    def ask(client: openai.OpenAI) -> Any:
        with pytest.raises(openai.APIStatusError) as caught:
            call(client)
        return {"status": caught.value.status_code, "class": type(caught.value).__name__, "body": caught.value.body}

    return ask


def chat(**fields: Any) -> Call:
    def ask(client: openai.OpenAI) -> Any:
        given = {"model": MODEL, "messages": MESSAGES, "max_tokens": 8} | FIXED | fields
        answer = client.chat.completions.create(**given)
        return streamed(answer) if given.get("stream") else body_of(answer)

    return ask


def completion(**fields: Any) -> Call:
    def ask(client: openai.OpenAI) -> Any:
        given = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 8} | FIXED | fields
        answer = client.completions.create(**given)
        return streamed(answer) if given.get("stream") else body_of(answer)

    return ask


def joined(call: Call) -> Call:
    """A stream of a tool's input, its pieces put together: how many there are hangs on how busy the engine is."""

    def ask(client: openai.OpenAI) -> Any:
        events = call(client)
        calls = [
            each
            for event in events
            for choice in event.get("choices", ())
            for each in choice["delta"].get("tool_calls") or ()
        ]
        return {
            "text": "".join(each["function"].get("arguments") or "" for each in calls)
            + "".join(event["delta"] for event in events if event.get("type", "").endswith("arguments.delta")),
            "names": [name for each in calls if (name := each["function"].get("name"))],
            "kinds": sorted({event["type"] for event in events if "type" in event}),
            "finish": [c["finish_reason"] for e in events for c in e.get("choices", ()) if c["finish_reason"]],
        }

    return ask


def response(**fields: Any) -> Call:
    def ask(client: openai.OpenAI) -> Any:
        given: dict[str, Any] = {
            "model": MODEL,
            "input": "Say hello.",
            "max_output_tokens": 8,
            "temperature": 0,
        } | fields
        answer = client.responses.create(**given)
        return streamed(answer) if given.get("stream") else body_of(answer)

    return ask


CALLS: dict[str, Call] = {
    "models": lambda client: body_of(client.models.list()),
    "chat": chat(),
    "chat stream": chat(stream=True),
    "chat stream with usage": chat(stream=True, stream_options={"include_usage": True}),
    "chat stop": chat(stop=["e"], max_tokens=32),
    "chat n": chat(n=2, temperature=0.5),
    "chat n, greedy": refused(chat(n=2)),
    "chat logprobs": chat(logprobs=True, top_logprobs=2),
    "chat max_completion_tokens": chat(max_tokens=None, max_completion_tokens=5),
    "chat json schema": chat(
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}},
        max_tokens=64,
    ),
    "chat tools, none chosen": chat(tools=[TOOL], tool_choice="none"),
    "chat tools, one chosen": chat(tools=[TOOL], tool_choice=NOW, max_tokens=64),
    "chat tools, stream": joined(chat(tools=[TOOL], tool_choice=NOW, max_tokens=64, stream=True)),
    "chat tool result": chat(messages=CALLED),
    "chat choice of words": chat(extra_body={"structured_outputs": {"choice": ["yes", "no"]}}),
    "chat logprobs stream": chat(logprobs=True, top_logprobs=1, stream=True),
    "chat parts": chat(messages=[{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]),
    "chat image to a text model": refused(
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL_URL}}]}])
    ),
    "response": response(),
    "response stream": response(stream=True),
    "response instructions and turns": response(
        instructions="You are terse.",
        input=[
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Yes?"},
            {"role": "user", "content": "So"},
        ],
    ),
    "response json schema": response(
        text={"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}},
        max_output_tokens=64,
    ),
    "response tool": response(tools=[FLAT_TOOL], tool_choice={"type": "function", "name": "now"}, max_output_tokens=64),
    "response tool stream": joined(
        response(tools=[FLAT_TOOL], tool_choice={"type": "function", "name": "now"}, max_output_tokens=64, stream=True)
    ),
    "response, unknown model": refused(response(model="no-such-model")),
    "response, temperature of a wrong type": refused(response(temperature="warm")),
    "embeddings of a model that generates": refused(lambda client: client.embeddings.create(model=MODEL, input="a")),
    "completion": completion(),
    "completion stream": completion(stream=True),
    "completion stream with usage": completion(stream=True, stream_options={"include_usage": True}),
    "completion echo": completion(echo=True),
    "completion list prompt": completion(prompt=["one", "two"]),
    "completion tokens as prompt": completion(prompt=[10, 11, 12, 13]),
    "completion logprobs": completion(logprobs=1),
    "unknown model": refused(chat(model="no-such-model")),
    "prompt over context": refused(completion(prompt="word " * 6000)),
    "temperature of a wrong type": refused(chat(temperature="warm")),
    "messages of a wrong type": refused(chat(messages="hello")),
    "negative max_tokens": refused(chat(max_tokens=-1)),
}

JUSTIFIED: dict[str, str] = {
    r".*\.(id|item_id|call_id)$": "Ids are made for each request; Penstock's lead from the client to the engine's log.",
    r".*\.(created|created_at|completed_at)$": "The two calls are made at different times.",
    r"^models\.data$": "Penstock lists every model the tenant may use, not one engine's, labelled where simulated.",
    r".*\.system_fingerprint$": "Names the engine process.",
    r".*\.cached_tokens$": "Prefix caches are separate per tenant (cache_salt), so hits differ.",
    r"^(.*unknown model|prompt over context|.*wrong type|negative max_tokens|chat n, greedy|chat image .*)\.body\..*": (
        "Error bodies carry OpenAI's type and code and say what to do; status and exception are the same."
    ),
    r"^embeddings of a model that generates\.body\b.*": (
        "vLLM has no such route then; Penstock says which the model answers."
    ),
}
RARE = frozenset({r".*\.cached_tokens$", r".*\.system_fingerprint$"})
"""Differences that need not occur."""


@pytest.fixture(scope="module")
def tiny(stack: Stack) -> Iterator[tuple[openai.OpenAI, openai.OpenAI]]:
    """The client that talks to the engine itself, and the one that talks to Penstock."""
    address = address_of(stack, MODEL)
    wait_for("demo-tiny at the gateways", lambda: stack.is_serving(MODEL), seconds=30)
    with (
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as direct,
        openai.OpenAI(base_url=stack.base_url, api_key=stack.key(), max_retries=0) as through,
    ):
        yield direct, through


def test_bodies_are_equal_but_for_justified_differences(tiny: tuple[openai.OpenAI, openai.OpenAI]) -> None:
    direct, through = tiny
    require_alike(CALLS, direct, through, JUSTIFIED, rare=RARE)


def test_streamed_answer_of_real_vllm_has_its_usage_row(
    stack: Stack, tiny: tuple[openai.OpenAI, openai.OpenAI]
) -> None:
    _, through = tiny
    with through.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=9,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
        extra_headers={"X-Request-Id": "conformance-usage"},
    ) as events:
        usage = [event.usage for event in events][-1]
    assert usage is not None
    assert usage.completion_tokens == 9
    row = wait_for("the usage row", lambda: stack.usage("client_request_id = 'conformance-usage'"), seconds=20)[0]
    assert (row["input_tokens"], row["output_tokens"]) == (usage.prompt_tokens, 9)
    assert row["actual_mu"] > 0
