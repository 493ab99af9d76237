"""What breaks, and what the client, the replica and the journal see of it. Engines and gateways are killed here."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import threading
import time
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.gateway.conftest import AUTH, Model, Shared
from tests.gateway.harness import Engine, free_port, wait_for


def events(content: bytes) -> list[Any]:
    return [json.loads(b[6:]) if b != b"data: [DONE]" else "DONE" for b in content.split(b"\n\n") if b]


# -------------------------------------------------------------- before the first byte
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ({"fail": "status", "status": 500}, "engine_error"),
        ({"fail": "status", "status": 503}, "engine_error"),
        ({"fail": "drop"}, "engine_lost"),
    ],
)
def test_a_replica_that_fails_before_the_first_byte_is_replaced_once(
    model: Model, script: dict[str, Any], outcome: str, stream: bool
) -> None:
    model.a.control(**script)
    answer = model.post(stream=stream)
    assert answer.status_code == 200
    assert answer.headers["x-penstock-replica"] == f"{model.id}-b"
    end = model.end(answer)
    assert [(a["replica"], a["outcome"]) for a in end["attempts"]] == [
        (f"{model.id}-a", outcome),
        (f"{model.id}-b", "completed"),
    ]
    assert end["usage"] == {"input_tokens": 10, "output_tokens": 5} | ({} if stream else {"cached_tokens": 1})
    # The failed replica is left alone for a moment.
    assert model.post().headers["x-penstock-replica"] == f"{model.id}-b"


def test_a_replica_that_is_not_there_is_replaced(model: Model) -> None:
    gone = model.a.replica(model.id, address=f"http://127.0.0.1:{free_port()}")
    model.shared.publish(("replica", gone))
    answer = model.post()
    assert answer.status_code == 200
    assert model.end(answer)["attempts"][0]["outcome"] == "engine_lost"


def test_two_failures_are_told_and_billed_nothing(model: Model) -> None:
    for engine in (model.a, model.b):
        engine.control(fail="status", status=500)
    answer = model.post(stream=True)
    assert answer.status_code == 502
    assert answer.json()["error"]["type"] == "server_error"
    assert "EngineCore" not in answer.text
    end = model.end(answer)
    assert (end["outcome"], end["actual_mu"], len(end["attempts"])) == ("engine_error", 0.0, 2)


def test_a_busy_engine_is_not_a_broken_one(model: Model) -> None:
    for engine in (model.a, model.b):
        engine.control(fail="status", status=503)
    answer = model.post()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_busy")
    assert "retry-after" in answer.headers


def test_a_clients_mistake_is_not_tried_elsewhere(model: Model) -> None:
    answer = model.post(prompt="abcd" * 5000)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert len(model.log()) == 1
    assert model.end(answer)["status"] == 400


def test_an_image_too_large_for_the_engines_decoder_is_no_failure_of_the_engine(model: Model) -> None:
    """vLLM answers 500 with Pillow's words: nobody else is to be asked, and the replica stays in use."""
    words = "Image size (1600000000 pixels) exceeds limit of 178956970 pixels, could be decompression bomb DOS attack."
    said = json.dumps({"error": {"message": words, "type": "InternalServerError", "param": None, "code": 500}})
    for _ in range(2):
        answer = model.post({"fail": "bytes", "status": 500, "bytes": said})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "image_too_large")
        end = model.end(answer)
        assert (end["outcome"], end["actual_mu"], len(end["attempts"])) == ("refused", 0.0, 1)
    assert len(model.log()) == 2


# --------------------------------------------------------------- after the first byte
@pytest.mark.parametrize(
    ("fail", "outcome"), [("error_event", "engine_error"), ("drop", "engine_lost"), ("no_done", "engine_lost")]
)
def test_a_stream_that_breaks_ends_with_an_error_event(model: Model, fail: str, outcome: str) -> None:
    answer = model.post({"fail": fail, "at": 3}, stream=True, max_tokens=9)
    assert answer.status_code == 200
    seen = events(answer.content)
    assert [e["choices"][0]["text"] for e in seen[:-1]] == [" tok"] * 3
    assert seen[-1]["error"]["type"] == "server_error"
    assert "EngineCore" not in answer.text
    assert b"[DONE]" not in answer.content
    end = model.end(answer)
    assert (end["outcome"], end["usage"]) == (outcome, {"input_tokens": 10, "output_tokens": 3})
    assert len(end["attempts"]) == 1


def test_the_official_client_raises_on_a_broken_stream(model: Model) -> None:
    script = json.dumps({"fail": "error_event", "at": 2})
    with pytest.raises(openai.APIError):
        list(
            model.shared.client().completions.create(
                model=model.name, prompt="x", stream=True, max_tokens=5, user=script
            )
        )


def test_an_engine_killed_in_the_middle(shared: Shared, spare: Engine) -> None:
    model = Model(shared, "killed").place(spare)
    sent = model.body({"delay_ms": 20}, stream=True, max_tokens=500)
    with httpx.stream("POST", f"{shared.url}/v1/completions", json=sent, headers=AUTH) as answer:
        lines = answer.iter_lines()
        for _ in range(6):
            next(lines)
        spare.process.stop(signal.SIGKILL)
        rest = [line for line in lines if line]
    assert json.loads(rest[-1][6:])["error"]["code"] == "engine_lost"
    end = model.end(answer)
    assert end["outcome"] == "engine_lost"
    assert end["usage"]["output_tokens"] == 2 + len(rest)


# --------------------------------------------------------------------- client leaves
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_replica_within_100_ms(model: Model, stream: bool) -> None:
    sent = json.dumps(model.body({"delay_ms": 20}, stream=stream, max_tokens=2000)).encode()
    with socket.create_connection(("127.0.0.1", model.gateway.port)) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: {AUTH['authorization']}\r\n"
        client.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(sent) + sent)
        if stream:
            while client.recv(65536).count(b"data: ") < 1:
                continue
        entry = wait_for("the request at the engine", lambda: model.log())[0]
        time.sleep(0.3)
    left = time.time()

    def seen() -> dict[str, Any]:
        return next((e for e in model.log() if e["end"] == "aborted"), {})

    aborted = wait_for("the abort at the engine", seen, seconds=5)
    assert aborted["ended"] - left < 0.1
    end = model.cluster.ended(entry["id"])
    assert (end["outcome"], end["status"]) == ("client_closed", 499)
    if stream:
        # Exact as far as the gateway had relayed; the engine may have made a token more.
        assert 0 <= aborted["generated"] - end["usage"]["output_tokens"] <= 3
        assert end["usage"]["output_tokens"] > 5
        assert not end.get("lower_bound")
    else:
        # The engine never told its count: the input is charged as it was estimated at admission.
        assert end["lower_bound"]
        admitted = model.cluster.journal()[entry["id"]]["a"]
        assert end["usage"]["input_tokens"] == admitted["estimated"]["input_tokens"] > 0
    gauge = wait_for("an idle gateway", lambda: httpx.get(f"{model.gateway.url}/readyz").json()["in_flight"] == 0)
    assert gauge


def test_a_client_that_leaves_while_its_prompt_is_tokenized_is_seen(model: Model) -> None:
    def running() -> int:
        return int(httpx.get(f"{model.gateway.url}/readyz").json()["in_flight"])

    for engine in (model.a, model.b):
        engine.control(tokenize_ms=4000)
    sent = json.dumps({"model": model.name, "prompt": "hello"}).encode()
    before = running()
    with socket.create_connection(("127.0.0.1", model.gateway.port)) as client:
        head = f"POST /tokenize HTTP/1.1\r\nhost: x\r\nauthorization: {AUTH['authorization']}\r\n"
        client.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(sent) + sent)
        wait_for("the request is running", lambda: running() > before)
    wait_for("it is over", lambda: running() == before, seconds=2)


def test_a_client_that_does_not_read_holds_the_engine_back(model: Model) -> None:
    script = {"pad": 60_000}
    sent = json.dumps(model.body(script, stream=True, max_tokens=3000)).encode()
    gateway = psutil.Process(model.gateway.process.popen.pid)
    before = gateway.memory_info().rss
    with socket.create_connection(("127.0.0.1", model.gateway.port)) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: {AUTH['authorization']}\r\n"
        client.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(sent) + sent)
        generated = 0

        def is_stuck() -> bool:
            nonlocal generated
            last, generated = generated, max([e["generated"] for e in model.log()] or [0])
            time.sleep(0.3)
            return generated > 0 and generated == last

        wait_for("the engine to be held back", is_stuck)
        # 180 MB were asked for; what lies in socket buffers on the way is a small part of it.
        assert generated * 60_000 < 60_000_000
        assert gateway.memory_info().rss - before < 30_000_000
        received = 0
        while received < generated * 60_000 + 10_000_000:
            part = client.recv(1 << 20)
            assert part
            received += len(part)
    # What it did not read for is no time of the engine's: the journal tells it apart.

    def end_line() -> dict[str, Any] | None:
        mine = [one for one in model.cluster.journal().values() if one["a"]["model"] == model.name]
        return next((one["e"] for one in mine if one.get("e")), None)

    held = wait_for("its end line", end_line)["attempts"][-1]["held_ms"]
    assert held >= 300


# ------------------------------------------------------------------ waiting for a slot
def test_requests_wait_for_a_slot_and_are_refused_when_they_waited_too_long(shared: Shared, model: Model) -> None:
    narrow = Model(shared, f"{model.name}-narrow").place(model.a, target_concurrency=1)
    results: list[httpx.Response] = []

    def ask(delay_ms: int) -> threading.Thread:
        thread = threading.Thread(target=lambda: results.append(narrow.post({"first_ms": delay_ms})))
        thread.start()
        return thread

    threads = [ask(1200)]
    wait_for("the first request", lambda: len(narrow.log()) == 1)
    threads.append(ask(0))
    wait_for("the second to wait", lambda: httpx.get(f"{shared.url}/readyz").json()["waiting"] == 1)
    for thread in threads:
        thread.join()
    assert [r.status_code for r in results] == [200, 200]
    assert len(narrow.log()) == 2

    threads = [ask(3000)]
    wait_for("the third request", lambda: len(narrow.log()) == 3)
    late = narrow.post()
    assert late.status_code == 429
    assert late.json()["error"]["code"] == "capacity_exceeded"
    assert "retry-after" in late.headers
    assert narrow.end(late)["outcome"] == "refused"
    threads[0].join()


# ------------------------------------------------------------------------------ bounds
def test_bodies_over_the_limit_are_refused_before_they_are_read(shared: Shared) -> None:
    huge = b'{"model": "alpha", "prompt": "' + b"x" * (20 * 1024 * 1024) + b'"}'
    stated = shared.http.post("/v1/completions", content=huge)
    assert (stated.status_code, stated.json()["error"]["code"]) == (413, "request_too_large")
    chunked = shared.http.post("/v1/completions", content=(huge[i : i + 65536] for i in range(0, len(huge), 65536)))
    assert chunked.status_code == 413
    fits = b'{"model": "alpha", "nothing": "' + b"x" * (19 * 1024 * 1024) + b'", "prompt": "a", "max_tokens": 1}'
    assert shared.http.post("/v1/completions", content=fits).status_code == 200


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff", b"{" * 50_000])
def test_broken_bodies(shared: Shared, content: bytes) -> None:
    answer = shared.http.post("/v1/chat/completions", content=content)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


def test_headers_that_never_end_and_headers_that_are_too_large(shared: Shared) -> None:
    port = shared.strict.port
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n")
        slow.settimeout(5)
        assert slow.recv(100) == b""
    with socket.create_connection(("127.0.0.1", port)) as large:
        large.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 100_000 + b"\r\n\r\n")
        large.settimeout(5)
        assert b" 400 " in large.recv(100)
    with socket.create_connection(("127.0.0.1", port)) as half:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: {AUTH['authorization']}\r\n"
        half.sendall(head.encode() + b"content-length: 100\r\n\r\n{")
        half.settimeout(5)
        assert b" 408 " in half.recv(100)


def test_a_request_that_takes_too_long(model: Model) -> None:
    strict = model.shared.strict
    never = model.post({"fail": "hang"}, at=strict)
    assert (never.status_code, never.json()["error"]["code"]) == (504, "timeout")
    assert model.end(never)["outcome"] == "timeout"
    silent = model.post({"fail": "silent", "at": 2}, at=strict, stream=True)
    assert events(silent.content)[-1]["error"]["code"] == "engine_timeout"
    end = model.end(silent)
    assert (end["outcome"], end["usage"]["output_tokens"]) == ("engine_lost", 2)
    wait_for("both connections to close", lambda: [e["end"] for e in model.log()] == ["aborted", "aborted"])


def test_a_journal_that_cannot_be_written_serves_nothing(model: Model) -> None:
    folder = model.cluster.folder("unwritable")
    (folder / "journal").write_text("a file where the folder should be")
    gateway = model.cluster.gateway("gateway-4", data=folder)
    answer = model.post(at=gateway)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "journal_unavailable")
    assert "retry-after" in answer.headers
    assert model.log() == []
    assert httpx.get(f"{gateway.url}/readyz").status_code == 503
    (folder / "journal").unlink()
    wait_for("the journal to work again", lambda: model.post(at=gateway).status_code == 200)
    assert gateway.process.stop() == 0


# ---------------------------------------------------------------------- connections, stop
def test_connections_are_reused_and_stale_ones_replaced(shared: Shared, spare: Engine) -> None:
    model = Model(shared, "stale").place(spare)
    for stream in (True, False, True, True, False):
        assert model.post(stream=stream).status_code == 200
    assert spare.connections() == 1
    spare.process.stop(signal.SIGKILL)
    spare.start()
    answer = model.post()
    assert answer.status_code == 200
    assert len(model.end(answer)["attempts"]) == 1


def test_streams_drain_before_the_process_ends(model: Model) -> None:
    gateway = model.cluster.gateway("gateway-5", data=model.cluster.folder("drained"))
    sent = model.body({"delay_ms": 30}, stream=True, max_tokens=40)
    with httpx.stream("POST", f"{gateway.url}/v1/completions", json=sent, headers=AUTH) as answer:
        lines = answer.iter_lines()
        next(lines)
        gateway.process.popen.send_signal(signal.SIGTERM)
        rest = list(lines)
    assert rest[-2] == "data: [DONE]"
    assert gateway.process.popen.wait(15) == 0
    assert '"outcome":"completed"' in gateway.log_path.read_text()
    with pytest.raises(httpx.ConnectError):
        model.post(at=gateway)


def test_the_drain_is_bounded_and_what_is_cut_is_closed_in_the_books(model: Model) -> None:
    gateway = model.cluster.gateway("gateway-6", PENSTOCK_GATEWAY_DRAIN_S="1")
    sent = model.body({"delay_ms": 50}, stream=True, max_tokens=2000)
    with httpx.stream("POST", f"{gateway.url}/v1/completions", json=sent, headers=AUTH) as answer:
        lines = answer.iter_lines()
        next(lines)
        started = time.monotonic()
        gateway.process.popen.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert json.loads(rest[-1][6:])["error"]["code"] == "gateway_stopping"
    assert gateway.process.popen.wait(15) == 0
    assert time.monotonic() - started < 8
    end = model.end(answer)
    assert end["usage"]["output_tokens"] == len(rest)


def test_a_gateway_without_secrets_says_what_to_do(shared: Shared) -> None:
    folder = shared.cluster.folder("secretless")
    (folder / "secrets.json").unlink()
    lost = shared.cluster.start_gateway("gateway-9", data=folder)
    assert lost.process.popen.wait(60) == 2
    assert "penstock up" in lost.log_path.read_text()


def test_draining_replicas_get_nothing_new(model: Model) -> None:
    assert model.post().headers["x-penstock-replica"] == f"{model.id}-a"
    model.place(model.a, state="draining")
    assert {model.post().headers["x-penstock-replica"] for _ in range(3)} == {f"{model.id}-b"}


def test_load_spreads_over_replicas(model: Model) -> None:
    threads = [threading.Thread(target=model.post, args=({"first_ms": 2500},)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = [len(engine.log()) - model.before[engine.name] for engine in (model.a, model.b)]
    assert sum(taken) == 8
    assert min(taken) >= 3, "of replicas with as many requests, or one more, a gateway has one that it prefers"


def test_progress_is_written_at_most_once_a_second(model: Model) -> None:
    answer = model.post({"delay_ms": 25}, stream=True, max_tokens=100)
    request = model.cluster.journal()[answer.headers["x-penstock-request-id"]]
    counts = [line["usage"]["output_tokens"] for line in request["p"]]
    assert len(counts) >= 1
    assert counts == sorted(counts)
    times = [line["at"] for line in request["p"]]
    assert all(later - earlier >= 0.99 for earlier, later in itertools.pairwise(times))
    assert request["e"]["usage"]["output_tokens"] == 100
