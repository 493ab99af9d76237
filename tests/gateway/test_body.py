"""Bodies and answers that are no text, and bodies that would take long to read: what is refused, what is logged."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.gateway import logs
from serving.gateway.dialects import DIALECTS, structure
from serving.gateway.errors import ApiError
from serving.gateway.logs import describe
from tests.gateway.conftest import AUTH, Model, Shared
from tests.gateway.harness import wait_for

PRIVATE = "very private words"
WORDS = PRIVATE.encode() + b" \xff"
TURN = b'{"model":"alpha","max_tokens":1,"messages":[{"role":'
BROKEN = {
    "a tool's input": (
        "/v1/messages",
        TURN + b'"assistant","content":[{"type":"tool_use","id":"1","name":"a","input":{"' + WORDS + b'":1}}]}]}',
    ),
    "a text": ("/v1/messages", TURN + b'"user","content":"' + WORDS + b'"}]}'),
    "a schema": (
        "/v1/messages",
        TURN + b'"user","content":"a"}],"tools":[{"name":"a","input_schema":{"a":"' + WORDS + b'"}}]}',
    ),
    "a tool": ("/v1/chat/completions", TURN + b'"user","content":"a"}],"tools":[{"a":"' + WORDS + b'"}]}'),
    "a model": ("/invocations", b'{"model":"' + WORDS + b'"}'),
    "a column": ("/invocations/iris", b'{"inputs":{"' + WORDS + b'":[1]}}'),
    "a row": ("/invocations/iris", b'{"inputs":["' + WORDS + b'"]}'),
    "a field of its own": ("/v1/embeddings", b'{"model":"vectors","input":"a","x":"' + WORDS + b'"}'),
    "a text of a response": ("/v1/responses", b'{"model":"alpha","input":"a","tools":[],"metadata":"' + WORDS + b'"}'),
}


def has_logged(shared: Shared, answer: httpx.Response) -> str:
    """The gateway's log, once it tells of the request of ``answer``."""
    request_id = answer.headers["x-penstock-request-id"]
    wait_for("the request's line", lambda: request_id in shared.gateway.log_path.read_text())
    return shared.gateway.log_path.read_text()


@pytest.mark.parametrize("case", BROKEN)
def test_a_body_that_is_no_utf8_is_the_clients_mistake_and_stays_out_of_the_log(shared: Shared, case: str) -> None:
    path, body = BROKEN[case]
    answer = shared.http.post(path, content=body)
    assert answer.status_code == 400
    assert "not valid UTF-8" in answer.json()["error"]["message"]
    assert PRIVATE not in has_logged(shared, answer)


ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/completions": {"prompt": "a"},
    "/v1/messages": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    "/v1/responses": {"input": "a"},
}
EVENTS = {
    "/v1/responses": "event: response.completed\ndata: %s\n\n",
}


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "said",
    [
        '{"choices":[{"message":{"content":"%s"},"delta":{"content":"%s"}}],"status":"%s","type":"%s"}',
        '{"id":"1","choices":[{"index":0}],"usage":{"%s":"%s%s%s"}}',
        '{"error":{"message":"%s%s%s%s"}}',
    ],
)
def test_an_answer_that_is_no_utf8_is_the_engines_failure(
    shared: Shared, model: Model, path: str, is_stream: bool, said: str
) -> None:
    words = WORDS.decode("latin-1")
    told = said % (words, words, words, words)
    if is_stream:
        told = EVENTS.get(path, "data: %s\n\n") % told
    kind = "text/event-stream" if is_stream else "application/json"
    for engine in (model.a, model.b):
        engine.control(fail="bytes", bytes=told, kind=kind)
    body = {"model": model.name, "stream": is_stream, **ASKED[path]}
    answer = httpx.post(f"{model.gateway.url}{path}", json=body, headers=AUTH, timeout=20)
    # What the gateway need not read may well go through.
    assert answer.status_code in (200, 502)
    assert "gateway failed" not in answer.text
    assert model.end(answer).get("error") != "internal error of the gateway"
    assert PRIVATE not in has_logged(shared, answer)


def test_an_engines_refusal_that_is_no_utf8_is_told_without_its_words(shared: Shared, model: Model) -> None:
    told = '{"error":{"message":"' + WORDS.decode("latin-1") + '"}}'
    for engine in (model.a, model.b):
        engine.control(fail="bytes", bytes=told, status=400)
    answer = model.post()
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "The engine refused the request.")
    assert PRIVATE not in has_logged(shared, answer)


def test_a_logged_exception_does_not_tell_its_data(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    try:
        logs.configure("g")
        undecoded = UnicodeDecodeError("utf-8", PRIVATE.encode(), 0, 1, PRIVATE)
        for cause in (KeyError(PRIVATE), ValueError(PRIVATE), TypeError(PRIVATE), undecoded):
            try:
                raise RuntimeError("what we say ourselves") from cause
            except RuntimeError as error:
                logging.getLogger("asyncio").error("failed\nfuture: %r", cause, exc_info=error)
        text = capfd.readouterr().err
    finally:
        root.handlers[:] = kept
        root.setLevel(level)
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["error"] for line in lines] == ["RuntimeError: what we say ourselves"] * 4
    assert [line["event"] for line in lines] == ["failed"] * 4
    assert "test_body.py" in lines[0]["trace"]
    assert "KeyError" in lines[0]["trace"]
    assert PRIVATE not in text
    assert describe(UnicodeDecodeError("utf-8", b"abc", 1, 2, "x")) == "UnicodeDecodeError at 1"


MIB = 1024 * 1024


def filled(head: bytes, item: bytes, tail: bytes, size: int = 20 * MIB) -> bytes:
    """A body of about ``size`` bytes that repeats ``item``."""
    count = (size - len(head) - len(tail)) // (len(item) + 1)
    return head + b",".join([item] * count) + tail


USER = b'{"model":"alpha","max_tokens":1,"messages":[{"role":"user","content":['
CALLS = b'{"model":"alpha","max_tokens":1,"messages":[{"role":"assistant","content":['
LONG = {
    "parts": ("/v1/chat/completions", USER, b"{}", b"]}]}"),
    "texts": ("/v1/chat/completions", USER, b'""', b"]}]}"),
    "tools": ("/v1/chat/completions", TURN + b'"user","content":"a"}],"tools":[', b"{}", b"]}"),
    "blocks": ("/v1/messages", CALLS, b'{"type":"tool_use","id":"1","name":"a","input":{}}', b"]}]}"),
    "items": ("/v1/responses", b'{"model":"alpha","input":[', b"{}", b"]}"),
    "inputs": ("/v1/embeddings", b'{"model":"vectors","input":[', b"[]", b"]}"),
    "input ids": ("/v1/embeddings", b'{"model":"vectors","input":[', b"0", b"]}"),
    "prompts": ("/v1/completions", b'{"model":"alpha","prompt":[', b'""', b"]}"),
    "rows": ("/invocations/iris", b'{"inputs":[', b"0", b"]}"),
    "rows of a server of its own": ("/invocations/plain", b'{"rows":[', b"{}", b"]}"),
}


@pytest.mark.parametrize("case", LONG)
def test_a_body_that_would_take_seconds_to_read_is_refused_at_once(shared: Shared, case: str) -> None:
    path, head, item, tail = LONG[case]
    body = filled(head, item, tail)
    answer = shared.http.post(path, content=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert "at most" in error["message"]
    dialect = DIALECTS.get(path) or DIALECTS["/invocations"]
    began = time.thread_time()
    with pytest.raises(ApiError):
        dialect.read(body)
    assert time.thread_time() - began < 1.0


def test_a_long_text_of_commas_and_brackets_is_no_list(shared: Shared) -> None:
    text = 'a, "b": [1, {2}], \\ ' * 60_000
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    parsed = DIALECTS["/v1/chat/completions"].read(json.dumps(body).encode())
    assert parsed.ask.text_bytes == len(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='ab,[{}]"\\:'),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(alphabet='a,[{"\\', max_size=4), inner),
    max_leaves=40,
)


def marks_of(value: Any) -> int:
    """Commas and opening brackets that ``value`` is written with."""
    if isinstance(value, dict):
        return 1 + max(0, len(value) - 1) + sum(map(marks_of, value.values()))
    if isinstance(value, list):
        return 1 + max(0, len(value) - 1) + sum(map(marks_of, value))
    return 0


@given(json_values, st.booleans())
@settings(max_examples=300)
def test_values_are_counted_outside_of_texts(value: Any, is_ascii: bool) -> None:
    body = json.dumps({"a": value}, ensure_ascii=is_ascii).encode()
    marks = 1 + marks_of(value)
    assert structure.is_within(body, marks)
    assert not structure.is_within(body, marks - 1)
