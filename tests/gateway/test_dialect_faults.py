"""In every dialect: clients that leave, read slowly or stand still, engines that die, gateways that are killed.

Whatever happens, a request has one end in the books. ``test_failures`` looks closer, by completions alone.
"""

from __future__ import annotations

import json
import signal
import socket
import time
from typing import Any, NamedTuple

import httpx
import pytest

from tests.gateway.conftest import AUTH, Model
from tests.gateway.harness import Gateway, wait_for

ALL = ["generate", "embed", "score", "invocations"]
USER = [{"role": "user", "content": "say something"}]


class Case(NamedTuple):
    """A request of one dialect. ``path`` may name the model; ``most`` is the field that bounds the output."""

    name: str
    path: str
    body: dict[str, Any]
    most: str = ""

    def request(self, model: Model, *, tokens: int = 5, stream: bool = False) -> tuple[str, dict[str, Any]]:
        body = {"model": model.name, **self.body} | ({self.most: tokens} if self.most else {})
        return self.path.format(model.name), body | ({"stream": True} if stream else {})


CASES = [
    Case("chat", "/v1/chat/completions", {"messages": USER}, "max_tokens"),
    Case("completions", "/v1/completions", {"prompt": "say something"}, "max_tokens"),
    Case("messages", "/v1/messages", {"messages": USER}, "max_tokens"),
    Case("responses", "/v1/responses", {"input": "say something"}, "max_output_tokens"),
    Case("embeddings", "/v1/embeddings", {"input": ["a", "b"]}),
    Case("rerank", "/v1/rerank", {"query": "a", "documents": ["b", "c"]}),
    Case("score", "/v1/score", {"text_1": "a", "text_2": "b"}),
    Case("invocations", "/invocations/{}", {"inputs": [[1, 2], [3, 4]]}),
]
STREAMS = [case for case in CASES if case.most]
every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
streaming = pytest.mark.parametrize("case", STREAMS, ids=lambda case: case.name)


@pytest.fixture
def versatile(model: Model) -> Model:
    """A model that speaks everything."""
    deployment = {"id": model.id, "name": model.name, "pool": "open", "revision": "r1", "runtime": "command"}
    model.shared.publish(("deployment", deployment | {"speaks": ALL}))
    return model


def control(model: Model, **script: Any) -> None:
    for engine in (model.a, model.b):
        engine.control(**script)


def raw(case: Case, model: Model, **asked: Any) -> bytes:
    path, body = case.request(model, **asked)
    sent = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: {AUTH['authorization']}\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(sent) + sent


def post(case: Case, model: Model, at: Gateway | None = None, **asked: Any) -> httpx.Response:
    path, body = case.request(model, **asked)
    return httpx.post(f"{(at or model.gateway).url}{path}", json=body, headers=AUTH, timeout=20)


def is_in_shape(case: Case, error: dict[str, Any]) -> bool:
    if case.name == "messages":
        return set(error) == {"type", "error", "request_id"} and set(error["error"]) == {"type", "message"}
    return set(error) == {"error"} and set(error["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("case", "stream"),
    [*((case, False) for case in CASES), *((case, True) for case in STREAMS)],
    ids=lambda value: value.name if isinstance(value, Case) else "stream" if value else "whole",
)
def test_a_client_that_leaves_is_seen_at_once_and_booked_once(versatile: Model, case: Case, stream: bool) -> None:
    control(versatile, **({"delay_ms": 20} if stream else {"first_ms": 5000}))
    with socket.create_connection(("127.0.0.1", versatile.gateway.port)) as client:
        client.sendall(raw(case, versatile, tokens=2000, stream=stream))
        while stream and client.recv(65536).count(b"data: ") < 1:
            continue
        entry = wait_for("the request at the engine", lambda: versatile.log())[0]
        time.sleep(0.3)
    left = time.time()
    aborted = wait_for(
        "the abort", lambda: next((e for e in versatile.log() if e["end"] == "aborted"), None), seconds=5
    )
    assert aborted["ended"] - left < 0.2
    end = versatile.cluster.ended(entry["id"])
    assert (end["outcome"], end["status"], len(end["attempts"])) == ("client_closed", 499, 1)
    admitted = versatile.cluster.journal()[entry["id"]]["a"]
    assert admitted["dialect"] == case.name
    used, estimated = end["usage"], admitted["estimated"]
    if case.name == "invocations":
        assert used["units"] == estimated["units"]
    elif not stream or case.name == "responses":
        assert used["input_tokens"] == estimated["input_tokens"] > 0
        assert end["lower_bound"]
    if stream:
        assert used["output_tokens"] > 5
        assert 0 <= aborted["generated"] - used["output_tokens"] <= 3
    wait_for("an idle gateway", lambda: httpx.get(f"{versatile.gateway.url}/readyz").json()["in_flight"] == 0)


@every
def test_an_engine_that_breaks_before_the_first_byte_is_left_for_another(versatile: Model, case: Case) -> None:
    versatile.a.control(fail="drop", at=0)
    first = post(case, versatile)
    if first.headers["x-penstock-replica"].endswith("-b") and len(versatile.end(first)["attempts"]) == 1:
        versatile.a.control()
        versatile.b.control(fail="drop", at=0)
        first = post(case, versatile)
    assert first.status_code == 200
    end = versatile.end(first)
    assert [attempt["outcome"] for attempt in end["attempts"]] == ["engine_lost", "completed"]
    assert end["outcome"] == "completed"


@every
def test_engines_that_fail_are_told_in_the_dialects_own_shape(versatile: Model, case: Case) -> None:
    control(versatile, fail="status", status=500)
    answer = post(case, versatile)
    assert answer.status_code == 502
    assert is_in_shape(case, answer.json())
    assert "EngineCore" not in answer.text
    end = versatile.end(answer)
    assert (end["outcome"], end["actual_mu"], len(end["attempts"])) == ("engine_error", 0.0, 2)


@every
def test_an_answer_that_is_no_json_is_the_engines_failure(versatile: Model, case: Case) -> None:
    control(versatile, fail="garbage")
    answer = post(case, versatile)
    if case.name == "invocations":
        # MLflow's answers are the client's to read: they need not be JSON.
        assert answer.status_code == 200
        return
    assert answer.status_code == 502
    assert is_in_shape(case, answer.json())


@every
def test_an_engine_that_stands_still_is_left_when_the_time_is_over(versatile: Model, case: Case) -> None:
    control(versatile, fail="hang")
    answer = post(case, versatile, at=versatile.shared.strict)
    assert answer.status_code == 504
    assert is_in_shape(case, answer.json())
    assert versatile.end(answer)["outcome"] == "timeout"


@every
def test_a_body_that_never_ends_is_given_up(versatile: Model, case: Case) -> None:
    path, _ = case.request(versatile)
    with socket.create_connection(("127.0.0.1", versatile.shared.strict.port)) as half:
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: {AUTH['authorization']}\r\n"
        half.sendall(head.encode() + b"content-length: 100\r\n\r\n{")
        half.settimeout(5)
        answer = half.recv(4096)
        while part := half.recv(4096):
            answer += part
    assert b" 408 " in answer
    assert is_in_shape(case, json.loads(answer.partition(b"\r\n\r\n")[2]))
    assert versatile.log() == []


@streaming
def test_a_client_that_does_not_read_holds_the_engine_back(versatile: Model, case: Case) -> None:
    control(versatile, pad=60_000)
    with socket.create_connection(("127.0.0.1", versatile.gateway.port)) as client:
        client.sendall(raw(case, versatile, tokens=3000, stream=True))
        generated = -1

        def is_stuck() -> bool:
            nonlocal generated
            last, generated = generated, max([e["generated"] for e in versatile.log()] or [0])
            time.sleep(0.3)
            return 0 < generated == last

        wait_for("the engine to be held back", is_stuck)
        # 180 MB were asked for; what lies in buffers on the way is a small part of it.
        assert generated * 60_000 < 60_000_000
        received = 0
        while received < generated * 60_000 + 5_000_000:
            part = client.recv(1 << 20)
            assert part
            received += len(part)
    entry = versatile.log()[0]
    assert versatile.cluster.ended(entry["id"])["outcome"] == "client_closed"


@streaming
def test_a_stream_of_an_engine_that_falls_silent_ends_with_an_error(versatile: Model, case: Case) -> None:
    control(versatile, fail="silent", at=2)
    answer = post(case, versatile, at=versatile.shared.strict, tokens=5, stream=True)
    last = json.loads(answer.text.rstrip().rpartition("data: ")[2])
    assert "error" in last
    assert "[DONE]" not in answer.text
    end = versatile.end(answer)
    assert (end["outcome"], end["status"], end["usage"]["output_tokens"]) == ("engine_lost", 504, 2)


@streaming
def test_a_gateway_that_is_killed_leaves_what_was_seen_last(versatile: Model, case: Case) -> None:
    control(versatile, delay_ms=20)
    name = f"doomed-{case.name}"
    folder = versatile.cluster.folder(name)
    doomed = versatile.cluster.gateway(name, data=folder)
    path, body = case.request(versatile, tokens=2000, stream=True)
    with httpx.stream("POST", f"{doomed.url}{path}", json=body, headers=AUTH, timeout=20) as answer:
        request_id = answer.headers["x-penstock-request-id"]
        began = time.monotonic()
        # Kept until the gateway is dead: an iterator that is dropped closes the connection.
        parts = answer.iter_bytes()
        while time.monotonic() - began < 1.6:
            next(parts)
        doomed.process.stop(signal.SIGKILL)
    heir = versatile.cluster.gateway(f"heir-{case.name}", data=folder)
    lines: list[dict[str, Any]] = []

    def ended() -> dict[str, Any] | None:
        lines[:] = [
            json.loads(line) for p in (folder / "journal").glob("*.jsonl") for line in p.read_text().splitlines()
        ]
        return next((line for line in lines if line.get("t") == "e" and line["id"] == request_id), None)

    end = wait_for("the end of the orphan", ended, seconds=20)
    assert (end["outcome"], end["lower_bound"]) == ("gateway_lost", True)
    assert end["usage"]["output_tokens"] > 10
    assert end["usage"]["input_tokens"] > 0
    assert [line["t"] for line in lines if line.get("id") == request_id and line["t"] != "p"] == ["a", "e"]
    assert heir.process.stop() == 0
