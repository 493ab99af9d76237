"""How the simulated engine fails, is stopped and is launched: a real process, real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time

import aiohttp
import httpx
import psutil
import pytest

from tests.worker.simulated.conftest import FAST
from tests.worker.simulated.talking import EXACT, events
from worker.runtimes import get_runtime
from worker.runtimes.base import HostFacts, OptionError
from worker.runtimes.simulated import REQUEST_LOG
from worker.spec import ReplicaOrder

# Faults


def test_a_hang_freezes_the_core_behind_a_healthy_face_and_can_be_lifted(own_engine):
    own_engine.complete(max_tokens=3, **EXACT)
    own_engine.fault(mode="hang")
    before = own_engine.metric("vllm:generation_tokens_total")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{own_engine.url}/v1/completions", json={"model": "sim", "prompt": "x"}, timeout=0.5)
    for path in ("/health", "/metrics", "/v1/models", "/ping"):
        assert httpx.get(f"{own_engine.url}{path}").status_code == 200
    assert own_engine.metric("vllm:num_requests_running") == 0, "stale, as with the real engine"
    assert own_engine.metric("vllm:generation_tokens_total") == before
    own_engine.fault(mode="none")
    assert own_engine.complete(max_tokens=3, **EXACT).status_code == 200


def test_a_hang_may_begin_after_some_tokens(own_engine):
    own_engine.fault(mode="hang", after_tokens=10)
    body = {"model": "sim", "prompt": "x", "stream": True, "max_tokens": 100, **EXACT}
    seen: list[str] = []
    with httpx.stream("POST", f"{own_engine.url}/v1/completions", json=body, timeout=0.5) as answer:
        lines = (line for line in answer.iter_lines() if line)
        with pytest.raises(httpx.ReadTimeout):
            seen.extend(lines)
    assert len(seen) == 10


def test_slow_is_slow_but_progresses(own_engine):
    def seconds() -> float:
        before = time.monotonic()
        own_engine.complete(max_tokens=20, **EXACT)
        return time.monotonic() - before

    usual = seconds()
    own_engine.fault(mode="slow", factor=30)
    assert seconds() > max(0.5, 3 * usual)


def test_an_engine_error_in_a_stream_is_followed_by_done(own_engine):
    own_engine.fault(mode="error_done", after_tokens=3)
    seen = events(own_engine.complete(stream=True, max_tokens=10, **EXACT).text)
    assert [bool(e.get("choices")) for e in seen[:3]] == [True] * 3
    assert seen[3]["error"]["code"] == 500
    assert "EngineCore encountered an issue" in seen[3]["error"]["message"]
    assert seen[4] == "[DONE]"
    whole = own_engine.complete(max_tokens=10, **EXACT)
    assert (whole.status_code, whole.json()["error"]["type"]) == (500, "InternalServerError")
    assert own_engine.complete(max_tokens=2, **EXACT).status_code == 200
    assert [line["finish"] for line in own_engine.log()] == ["error", "error", "length"]
    assert own_engine.metric("vllm:num_requests_running") == 0


def test_a_crash_kills_the_process_in_the_middle_of_a_stream(own_engine):
    own_engine.fault(mode="crash", after_tokens=5)
    with pytest.raises(httpx.RemoteProtocolError):
        own_engine.complete(stream=True, max_tokens=100, **EXACT)
    assert own_engine.process.wait(timeout=5) == -signal.SIGKILL


def test_refusing_is_503_and_can_be_set_at_the_start(start_engine):
    engine = start_engine("--fault", '{"mode": "refuse"}')
    assert engine.complete().status_code == 503
    assert httpx.get(f"{engine.url}/fault").json()["mode"] == "refuse"
    assert engine.post("/fault", {"mode": "explode"}).status_code == 400
    engine.fault(mode="none")
    assert engine.complete().status_code == 200


def test_a_stopped_process_hangs_and_goes_on_when_continued(own_engine):
    """The supervisor's own test of a hang: SIGSTOP."""
    os.kill(own_engine.process.pid, signal.SIGSTOP)
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{own_engine.url}/health", timeout=0.3)
    os.kill(own_engine.process.pid, signal.SIGCONT)
    assert own_engine.complete().status_code == 200


# Clients that leave, stops, the request log


async def test_a_client_that_leaves_frees_its_place_at_once(start_engine):
    engine = start_engine(step_floor_ms=20.0)
    async with httpx.AsyncClient(base_url=engine.url) as http:
        for is_stream in (True, False):
            body = {"model": "sim", "prompt": "x" * 100, "max_tokens": 5000, "stream": is_stream, **EXACT}
            task = asyncio.create_task(http.post("/v1/completions", json=body, headers={"X-Request-Id": "left"}))
            while engine.metric("vllm:num_requests_running") == 0:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            task.cancel()
            left = time.monotonic()
            while engine.metric("vllm:num_requests_running"):
                await asyncio.sleep(0.005)
            assert time.monotonic() - left < 0.5
    streamed, whole = engine.log()
    assert [streamed["finish"], whole["finish"]] == ["abort", "abort"]
    assert streamed["output_tokens"] >= 5
    assert (whole["output_tokens"], whole["generated_tokens"] >= 5) == (0, True)
    assert streamed["request_id"] == "left"
    assert engine.metric("vllm:request_success_total", finished_reason="abort") == 0, "as measured on vLLM"
    assert engine.metric("vllm:request_success_total") == 0


def test_the_log_agrees_with_what_the_client_received(own_engine):
    headers = {"X-Request-Id": "gateway-1"}
    body = {"model": "sim", "prompt": "Hello", "stream": True, "max_tokens": 17, **EXACT}
    seen = events(own_engine.post("/v1/completions", body, headers=headers).text)
    (line,) = own_engine.log()
    assert line["output_tokens"] == line["generated_tokens"] == len(seen) - 1 == 17
    assert (line["request_id"], line["id"], line["prompt_tokens"]) == ("gateway-1", "cmpl-gateway-1", 5)
    assert (line["finish"], line["path"], line["stream"]) == ("length", "/v1/completions", True)
    assert line["received_at"] <= line["first_token_at"] <= line["ended_at"]


def test_sigterm_ends_streams_with_an_error_event_and_done(start_engine):
    engine = start_engine(step_floor_ms=20.0)
    body = {"model": "sim", "prompt": "x", "stream": True, "max_tokens": 5000, **EXACT}
    with httpx.stream("POST", f"{engine.url}/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        engine.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert "error" in json.loads(rest[-2].removeprefix("data: "))
    assert rest[-1] == "data: [DONE]"
    assert engine.process.wait(timeout=5) == 0
    assert engine.log()[-1]["finish"] == "error"


def test_sigterm_with_a_timeout_lets_streams_finish_and_refuses_new_ones(start_engine):
    engine = start_engine("--shutdown-timeout", "10", step_floor_ms=20.0)
    body = {"model": "sim", "prompt": "x", "stream": True, "max_tokens": 60, **EXACT}
    with httpx.stream("POST", f"{engine.url}/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        engine.process.send_signal(signal.SIGTERM)
        engine.wait(lambda: engine.complete().status_code == 500)
        assert httpx.get(f"{engine.url}/health").status_code == 200
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert "length" in rest[-2]
    assert engine.process.wait(timeout=5) == 0


def test_a_profile_that_makes_no_sense_is_explained_and_exits_1(start_engine):
    engine = start_engine(ready=False, kv_tokens=10)
    _, error = engine.process.communicate(timeout=60)
    assert engine.process.returncode == 1
    assert "kv_tokens 10 cannot hold" in error.decode()
    explained = get_runtime("simulated").explain_exit(exit_code=1, log_tail=error.decode())
    assert "kv_tokens 10 cannot hold" in explained


def test_a_slow_load_is_seen_as_a_cold_start(start_engine):
    before = time.monotonic()
    start_engine(startup_s=1.0)
    assert time.monotonic() - before >= 1.0


async def test_hundreds_of_streams_cost_a_fraction_of_a_core(start_engine):
    """300 streams × 20 tokens/s, by the process's own CPU time."""
    engine = start_engine(step_floor_ms=50.0, max_num_seqs=512, kv_tokens=1 << 20)
    process = psutil.Process(engine.process.pid)
    before, began = sum(process.cpu_times()[:2]), time.monotonic()
    body = {"model": "sim", "prompt": "Hello", "stream": True, "max_tokens": 30, **EXACT}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:

        async def ask() -> bytes:
            async with http.post(f"{engine.url}/v1/completions", json=body) as answer:
                return await answer.read()

        answers = await asyncio.gather(*(ask() for _ in range(300)))
    cpu_s, wall_s = sum(process.cpu_times()[:2]) - before, time.monotonic() - began
    assert {answer.count(b"data: ") for answer in answers} == {31}
    # Per token rather than per second: the wall clock of a test belongs to its neighbours too.
    assert cpu_s / (300 * 30) * 6000 < 0.5, f"{cpu_s:.2f} s of CPU in {wall_s:.1f} s"


# The runtime


def order(**options) -> ReplicaOrder:
    return ReplicaOrder(
        replica_id="r",
        deployment_id="d",
        deployment_name="d",
        runtime="simulated",
        served_name="sim",
        intent="run",
        artifact={"kind": "none"},
        options=options,
        target_concurrency=8,
    )


HOST = HostFacts(cores=2, memory_bytes=1 << 30, has_cuda=False, engines=1, python="/usr/bin/python3")


def test_the_runtime_launches_the_engine_with_a_slot_for_the_probe():
    runtime = get_runtime("simulated")
    plan = runtime.launch_plan(order=order(**FAST, speed=2.0), host=HOST, environment=None, weights=None, port=1234)
    argv = dict(zip(plan.argv[1::2], plan.argv[2::2], strict=True))
    assert plan.argv[0] == HOST.python
    assert (argv["-m"], argv["--port"], argv["--served-model-name"]) == ("worker.simulated", "1234", "sim")
    assert (argv["--speed"], argv["--request-log"]) == ("2.0", REQUEST_LOG)
    assert json.loads(argv["--profile"])["max_num_seqs"] > 8
    assert json.loads(argv["--profile"])["step_floor_ms"] == FAST["step_floor_ms"]
    assert runtime.environment(order=order(), host=HOST) is None
    assert runtime.weights(order=order()) is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_num_seqs": 8}, "probe"),
        ({"nonsense": 1}, "nonsense"),
        ({"kv_tokens": 1}, "kv_tokens"),
        ({"speed": 0}, "speed"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(options, named):
    with pytest.raises(OptionError, match=named):
        get_runtime("simulated").launch_plan(order=order(**options), host=HOST, environment=None, weights=None, port=1)
