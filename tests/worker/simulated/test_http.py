"""The simulated engine as clients see it: a real process, the official client, real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import httpx
import pytest

from tests.worker.simulated.talking import EXACT, events
from worker.runtimes import get_runtime
from worker.spec import METRICS

# What is there


def test_it_says_what_it_is(engine):
    models = engine.sdk.models.list().data
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
    stream = engine.sdk.chat.completions.create(
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
    sdk = engine.sdk
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
