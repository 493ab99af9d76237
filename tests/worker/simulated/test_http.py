"""The simulated engine as clients and the agent see it: a real process, the official client, real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time

import aiohttp
import httpx
import openai
import psutil
import pytest

from tests.worker.simulated.conftest import FAST
from worker.runtimes import get_runtime
from worker.runtimes.base import HostFacts, OptionError
from worker.runtimes.simulated import REQUEST_LOG
from worker.spec import METRICS, ReplicaOrder

EXACT = {"ignore_eos": True}


def client(engine, **more) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0, **more)


def events(text: str) -> list[dict | str]:
    """The data of server-sent events; every event must end with a blank line."""
    assert text.endswith("\n\n")
    lines = [event.removeprefix("data: ") for event in text.strip().split("\n\n")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


# What is there


def test_it_says_what_it_is(engine):
    models = client(engine).models.list().data
    assert [(m.id, m.owned_by, m.max_model_len) for m in models] == [("sim", "simulated", 8192)]
    assert httpx.get(f"{engine.url}/version").json()["version"].endswith("+simulated")
    health = httpx.get(f"{engine.url}/health")
    assert (health.status_code, health.content, health.headers["x-engine"]) == (200, b"", "simulated")


def test_it_is_ready_in_less_than_a_second(start_engine):
    before = time.monotonic()
    start_engine()
    assert time.monotonic() - before < 1.5, "with the interpreter's start on a busy machine"


def test_the_agent_finds_every_metric_it_reports(own_engine):
    own_engine.complete(max_tokens=3, **EXACT)
    text = httpx.get(f"{own_engine.url}/metrics").text
    names = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    table = get_runtime("simulated").metric_table("")
    assert set(table) == set(METRICS)
    assert [name for name, candidates in table.items() if not names & set(candidates)] == []
    assert own_engine.metric("vllm:generation_tokens_total") == 3
    assert own_engine.metric("vllm:inter_token_latency_seconds_count") == 2
    assert own_engine.metric("vllm:request_success_total", finished_reason="length") == 1
    assert abs(own_engine.metric("process_start_time_seconds") - time.time()) < 60


# Answers


def test_the_official_client_streams_chat_with_usage(engine):
    stream = client(engine).chat.completions.create(
        model="sim",
        messages=[{"role": "user", "content": "How does water flow?"}],
        stream=True,
        max_tokens=12,
        stream_options={"include_usage": True},
        extra_body=EXACT,
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [c.choices[0].delta.content for c in chunks[1:-1]]
    assert len(pieces) == 12
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * 12 + ["length"]
    assert chunks[-1].choices == []
    counted = engine.post("/tokenize", {"model": "sim", "prompt": "".join(pieces)}).json()["count"]
    assert chunks[-1].usage.completion_tokens == counted == 12
    assert all(c.usage is None for c in chunks[:-1])


def test_whole_and_streamed_answers_say_the_same(engine):
    asked = {"model": "sim", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20, "seed": 7}
    sdk = client(engine)
    whole = sdk.chat.completions.create(**asked, extra_body=EXACT)
    streamed = sdk.chat.completions.create(**asked, stream=True, extra_body=EXACT)
    text = "".join(chunk.choices[0].delta.content for chunk in streamed)
    assert whole.choices[0].message.content == text
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 20


def test_continuous_usage_counts_every_chunk(engine):
    body = {"stream": True, "max_tokens": 5, **EXACT}
    body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    seen = events(engine.complete(**body).text)
    assert [e["usage"]["completion_tokens"] for e in seen[:-1]] == [1, 2, 3, 4, 5, 5]
    assert {e["usage"]["prompt_tokens"] for e in seen[:-1]} == {5}
    assert seen[-2]["choices"] == []
    assert seen[-2]["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert seen[-1] == "[DONE]"
    chat = {"model": "sim", "messages": [{"role": "user", "content": "Hi"}]} | body
    first = events(engine.post("/v1/chat/completions", chat).text)[0]
    assert first["usage"]["completion_tokens"] == 0


def test_no_usage_in_a_stream_unless_asked(engine):
    seen = events(engine.complete(stream=True, max_tokens=3, **EXACT).text)
    assert len(seen) == 4
    assert not any("usage" in e for e in seen[:-1])


def test_lists_of_prompts_and_n_give_choices_in_order(engine):
    asked = {"prompt": ["Hello", "Hello", "Water"], "n": 2, "max_tokens": 6, **EXACT}
    body = engine.complete(**asked).json()
    assert [c["index"] for c in body["choices"]] == list(range(6))
    texts = [c["text"] for c in body["choices"]]
    assert texts[0] == texts[2]
    assert texts[0] != texts[1]
    assert body["usage"] == {
        "prompt_tokens": 15,
        "completion_tokens": 36,
        "total_tokens": 51,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    streamed = [""] * 6
    for event in events(engine.complete(stream=True, **asked).text)[:-1]:
        streamed[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert streamed == texts


def test_token_ids_are_a_prompt_and_echo_repeats_it(engine):
    ids = engine.post("/tokenize", {"prompt": "Hello there"}).json()["tokens"]
    by_text = engine.complete(prompt="Hello there").json()
    by_ids = engine.complete(prompt=ids).json()
    assert by_ids["choices"] == by_text["choices"]
    assert by_ids["usage"]["prompt_tokens"] == len(ids)
    echoed = engine.complete(prompt="Hello there", echo=True).json()["choices"][0]["text"]
    assert echoed == "Hello there" + by_text["choices"][0]["text"]
    assert engine.post("/detokenize", {"tokens": ids}).json() == {"prompt": "Hello there"}


def test_a_stop_string_is_cut_out_and_may_span_tokens(engine):
    text = engine.complete(max_tokens=40, **EXACT).json()["choices"][0]["text"]
    stop = text[20:29]
    at = text.index(stop)
    asked = {"max_tokens": 40, "stop": [stop, "never said"], **EXACT}
    choice = engine.complete(**asked).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (text[:at], "stop", stop)
    streamed = events(engine.complete(stream=True, **asked).text)[:-1]
    assert "".join(e["choices"][0]["text"] for e in streamed) == text[:at]
    assert streamed[-1]["choices"][0]["finish_reason"] == "stop"
    assert engine.metric("vllm:num_requests_running") == 0


def test_answers_end_by_themselves_at_about_the_profiles_mean(start_engine):
    engine = start_engine(mean_output_tokens=40)
    body = engine.complete(prompt=["Hello"], n=100, max_tokens=2000).json()
    assert {c["finish_reason"] for c in body["choices"]} == {"stop"}
    assert 25 < body["usage"]["completion_tokens"] / 100 < 60
    floor = engine.complete(min_tokens=30, max_tokens=2000, n=20).json()
    assert floor["usage"]["completion_tokens"] >= 600


def test_equal_engines_answer_equally_and_other_seeds_differ(start_engine):
    texts = [
        start_engine(*arguments).complete(max_tokens=20, **EXACT).json()["choices"][0]["text"]
        for arguments in ((), (), ("--seed", "1"))
    ]
    assert texts[0] == texts[1] != texts[2]


def test_the_request_id_becomes_the_id(engine):
    answer = engine.complete()
    assert answer.json()["id"].startswith("cmpl-")
    named = engine.post("/v1/completions", {"model": "sim", "prompt": "x"}, headers={"X-Request-Id": "abc123"})
    assert named.json()["id"] == "cmpl-abc123"
    chat = {"model": "sim", "messages": [{"role": "user", "content": "x"}]}
    assert engine.post("/v1/chat/completions", chat, headers={"X-Request-Id": "q"}).json()["id"] == "chatcmpl-q"


def test_max_tokens_is_capped_by_the_context(start_engine):
    engine = start_engine(max_model_len=64)
    usage = engine.complete(prompt="x" * 60, max_tokens=100, **EXACT).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (60, 4)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "other"}, 404, "model"),
        ({"prompt": "x" * 9000}, 400, "input_tokens"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": "many"}, 400, None),
        ({"n": 0}, 400, "n"),
        ({"prompt": {"a": 1}}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": [1, 99999]}, 400, "prompt"),
        ({"priority": "high"}, 400, None),
        ({"temperature": -1}, 400, "temperature"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
        ({"cache_salt": ""}, 400, "cache_salt"),
    ],
)
def test_bad_requests_get_vllms_error_shape(engine, body, status, param):
    answer = engine.complete(**body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, status, param)
    assert error["message"]
    assert error["type"] == ("NotFoundError" if status == 404 else "BadRequestError")


def test_other_mistakes_are_answered_cleanly(engine):
    broken = httpx.post(f"{engine.url}/v1/completions", content=b"{not json")
    assert broken.status_code == 400
    assert "parsing" in broken.json()["error"]["message"]
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}
    assert engine.post("/v1/chat/completions", {"model": "sim", "messages": [image]}).status_code == 400
    parts = {"role": "user", "content": [{"type": "text", "text": "Hi"}]}
    assert engine.post("/v1/chat/completions", {"model": "sim", "messages": [parts]}).status_code == 200
    assert engine.complete(unknown_field=1).status_code == 200
    assert httpx.get(f"{engine.url}/nothing").json() == {"detail": "Not Found"}
    assert httpx.get(f"{engine.url}/v1/completions").status_code == 405
    with socket.create_connection(("127.0.0.1", int(engine.url.rsplit(":", 1)[1]))) as raw:
        raw.sendall(b"nonsense\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 400")


def test_pipelined_requests_are_answered_in_order(engine):
    with socket.create_connection(("127.0.0.1", int(engine.url.rsplit(":", 1)[1]))) as raw:
        body = json.dumps({"model": "sim", "prompt": "x", "max_tokens": 5, **EXACT}).encode()
        post = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        raw.sendall(post + b"GET /version HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        received = b""
        while chunk := raw.recv(65536):
            received += chunk
    assert received.index(b"text_completion") < received.index(b"+simulated")
    assert received.count(b"HTTP/1.1 200") == 2


# Cache, queue, priority: by the engine's own counters


def test_prefix_hits_are_counted_and_kept_apart_by_salt(own_engine):
    prompt = "the water of the river " * 40

    def cached(**more) -> int:
        usage = own_engine.complete(prompt=prompt, **more).json()["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    assert cached() == 0
    hit = cached()
    assert hit == 192
    assert cached(cache_salt="tenant-a") == 0
    assert cached(cache_salt="tenant-a") == hit
    assert cached(cache_salt="tenant-b") == 0
    assert own_engine.metric("vllm:prefix_cache_hits_total") == 2 * hit
    assert own_engine.metric("vllm:prompt_tokens_cached_total") == 2 * hit


async def test_a_probe_at_top_priority_overtakes_a_queue(start_engine):
    engine = start_engine("--scheduling-policy", "priority", max_num_seqs=4, step_floor_ms=5.0)
    async with httpx.AsyncClient(base_url=engine.url, timeout=30, limits=httpx.Limits(max_connections=200)) as http:

        async def ask(**more) -> float:
            body = {"model": "sim", "prompt": "Hello", **EXACT} | more
            await http.post("/v1/completions", json=body)
            return time.monotonic()

        crowd = [asyncio.create_task(ask(max_tokens=20)) for _ in range(60)]
        while engine.metric("vllm:num_requests_waiting") < 40:
            await asyncio.sleep(0.01)
        ordinary = asyncio.create_task(ask(max_tokens=1))
        probe = asyncio.create_task(ask(max_tokens=1, priority=-1000))
        ends = await asyncio.gather(*crowd)
        probe_end, ordinary_end = await probe, await ordinary
        overtaken = sum(end > probe_end for end in ends)
        assert overtaken >= 30
        assert sum(end > ordinary_end for end in ends) <= 4
        assert engine.metric("vllm:request_queue_time_seconds_count") == 62


def test_a_full_queue_refuses_with_503(start_engine):
    engine = start_engine("--max-num-queued-reqs", "1", max_num_seqs=1)
    engine.fault(mode="hang")
    hung = []
    for _ in range(2):
        raw = socket.create_connection(("127.0.0.1", int(engine.url.rsplit(":", 1)[1])))
        body = json.dumps({"model": "sim", "prompt": "x"}).encode()
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        hung.append(raw)
    engine.wait(lambda: httpx.get(f"{engine.url}/load").json()["server_load"] >= 1)
    engine.wait(lambda: engine.complete().status_code == 503)
    assert engine.metric("vllm:admission_rejections_total", reason="max_num_queued_reqs") >= 1
    for raw in hung:
        raw.close()


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
    _, error = engine.process.communicate(timeout=10)
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
