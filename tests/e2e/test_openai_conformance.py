"""One list of calls by the official ``openai`` client, against real vLLM directly and through Penstock.

Bodies must be equal but for the differences listed here, each with its reason. A difference that is not listed fails,
and so does a listed one that no longer occurs.

The engine does not repeat itself to the letter: the words of random weights hang on the last bit of a logit, which
changes with what else is in the batch and what is cached, and events are merged when the machine is busy. So a pair
that differs is asked for again. A gateway that changed something would change it every time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import openai
import pytest

from tests.e2e.stack import Stack, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1200)]

MODEL = "demo-tiny"
TRIES = 5
MESSAGES: list[Any] = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Say hello."}]
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
FIXED: dict[str, Any] = {"temperature": 0, "seed": 7}

Call = Callable[[openai.OpenAI], Any]


def body_of(result: Any) -> Any:
    return json.loads(result.to_json()) if hasattr(result, "to_json") else result


def streamed(events: Any) -> list[Any]:
    with events:
        return [body_of(event) for event in events]


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
    r".*\.id$": "Penstock makes the request id, so that one id leads from the client to the engine's log.",
    r".*\.created$": "The two calls are made at different times.",
    r"^models\.data$": "Penstock lists every model the tenant may use, not one engine's, labelled where simulated.",
    r".*\.system_fingerprint$": "Names the engine process.",
    r".*\.cached_tokens$": "Prefix caches are separate per tenant (cache_salt), so hits differ.",
    r"^(unknown model|prompt over context|.*wrong type|negative max_tokens|chat n, greedy)\.body\..*": (
        "Error bodies carry OpenAI's type and code and say what to do; status and exception are the same."
    ),
}


def differences(path: str, left: Any, right: Any) -> Iterator[str]:
    """Paths at which two JSON values differ."""
    if isinstance(left, dict) and isinstance(right, dict):
        for name in sorted({*left, *right}):
            yield from differences(f"{path}.{name}", left.get(name), right.get(name))
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            yield from differences(f"{path}[{index}]", a, b)
    elif left != right:
        yield path


class Comparison(NamedTuple):
    """``justified``: paths by the pattern that allows them; ``unexpected``: both values by path."""

    justified: dict[str, list[str]]
    unexpected: dict[str, tuple[Any, Any]]


def compare(name: str, left: Any, right: Any) -> Comparison:
    found = Comparison({}, {})
    for path in differences(name, left, right):
        reason = next((pattern for pattern in JUSTIFIED if re.match(pattern, path)), None)
        if reason is None:
            found.unexpected[path] = (at(left, path[len(name) :]), at(right, path[len(name) :]))
        else:
            found.justified.setdefault(reason, []).append(path)
    return found


@pytest.fixture(scope="module")
def tiny(stack: Stack) -> tuple[openai.OpenAI, openai.OpenAI]:
    """The client that talks to the engine itself, and the one that talks to Penstock."""
    address = wait_for(
        "demo-tiny on real vLLM",
        lambda: stack.rows(
            "select r.address from serving_replica r join serving_deployment d on d.id = r.deployment_id"
            " where d.name = ? and r.state = 'ready'",
            MODEL,
        ),
        seconds=900,
        every=1.0,
    )[0]["address"]
    wait_for("demo-tiny at the gateways", lambda: stack.is_serving(MODEL), seconds=30)
    direct = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    return direct, openai.OpenAI(base_url=stack.base_url, api_key=stack.key(), max_retries=0)


def test_bodies_are_equal_but_for_justified_differences(tiny: tuple[openai.OpenAI, openai.OpenAI]) -> None:
    direct, through = tiny
    unexpected: dict[str, tuple[Any, Any]] = {}
    used: set[str] = set()
    for name, call in CALLS.items():
        for tries in range(1, TRIES + 1):
            found = compare(name, call(direct), call(through))
            if not found.unexpected:
                break
            print(f"{name}, try {tries}: {json.dumps(found.unexpected, default=str)[:2000]}")
        unexpected |= found.unexpected
        used |= found.justified.keys()
        for reason, paths in found.justified.items():
            print(f"{', '.join(paths)}: {JUSTIFIED[reason]}")
    assert not unexpected, json.dumps(unexpected, indent=1, default=str)
    assert {"status", "class"}.isdisjoint(used)
    stale = set(JUSTIFIED) - used - {r".*\.cached_tokens$", r".*\.system_fingerprint$"}
    assert not stale, f"no longer a difference: {stale}"


def at(value: Any, path: str) -> Any:
    """The part of ``value`` that ``path`` (as ``differences`` writes it) leads to."""
    for name, index in re.findall(r"\.([^.\[\]]+)|\[(\d+)\]", path):
        if isinstance(value, list):
            value = value[int(index)] if index and int(index) < len(value) else None
        else:
            value = value.get(name) if isinstance(value, dict) else None
    return value


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
