"""A calibration and what may come between: a killed agent, other orders, a dead engine, somebody else's request."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.worker.conftest import AgentUnderTest, order, wait_for
from worker.spec import CalibrationOrder, CalibrationReport, ReplicaOrder, ReplicaReport, Shape

pytestmark = [pytest.mark.slow, pytest.mark.timed]

SHAPES = tuple(Shape(input_tokens=32, output_tokens=each) for each in (1, 4, 8, 12))
PROFILE = {
    "base_ms": 5.0, "alpha_ms": 0.02, "beta_ms": 1.0, "gamma_ms": 1e-3, "epsilon_ms": 1e-5, "step_floor_ms": 0.01,
    "max_model_len": 2048, "kv_tokens": 16384,
}  # fmt: skip


def calibration(**changes: Any) -> CalibrationOrder:
    values: dict[str, Any] = {
        "calibration_id": "c1", "shapes": SHAPES, "repeats": 2, "max_concurrency": 2, "batch_s": 0.4, "window_s": 0.5,
    }  # fmt: skip
    return CalibrationOrder(**(values | changes))


def ordered(wanted: CalibrationOrder | None, replica_id: str = "r1", **changes: Any) -> ReplicaOrder:
    values: dict[str, Any] = {"runtime": "simulated", "options": PROFILE, "target_concurrency": 2}
    return order(replica_id, calibration=wanted, **(values | changes))


Told = tuple[ReplicaReport, CalibrationReport]


def wait_told(
    agent: AgentUnderTest, ask: Callable[[CalibrationReport], bool], *, replica_id: str = "r1", seconds: float = 40.0
) -> Told:
    """Wait for a report on the calibration of a replica of which ``ask`` holds."""
    told: list[str] = []

    def look() -> Told | None:
        for report in agent.reports():
            for each in report.replicas:
                found = each.calibration
                if each.replica_id == replica_id and found is not None:
                    told.append(f"{found.state} {found.step} {found.detail} {found.reason}")
                    if ask(found):
                        return each, found
        return None

    try:
        return wait_for("what is waited for", look, seconds=seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}; told: {told[-8:]}\n{agent.log.read_text()[-2000:]}") from None


def measured(found: CalibrationReport) -> int:
    return sum(len(each.engine_ms) for each in found.points)


def counters(report: ReplicaReport) -> dict[str, float]:
    assert report.address is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{report.address.port}/metrics", timeout=5) as page:
        lines = [line.rsplit(" ", 1) for line in page.read().decode().splitlines() if not line.startswith("#")]
    return {name.split("{")[0]: float(value) for name, value in lines}


def is_busy(report: ReplicaReport) -> bool:
    now = counters(report)
    return now["vllm:num_requests_running"] + now["vllm:num_requests_waiting"] > 0


def test_a_killed_agent_is_followed_by_one_that_goes_on(agent: AgentUnderTest) -> None:
    agent.give(ordered(calibration(repeats=3)))
    agent.start()
    replica, before = wait_told(agent, lambda each: measured(each) >= 3)
    agent.end(signal.SIGKILL)
    agent.reports()
    agent.start()
    again, first = wait_told(agent, lambda each: each.state == "measuring" and bool(each.points))
    assert again.pid == replica.pid, "the engine was adopted"
    kept = {each.shape: each.engine_ms for each in first.points}
    for point in before.points:
        assert kept[point.shape][: len(point.engine_ms)] == point.engine_ms, "nothing is measured twice"
    _, done = wait_told(agent, lambda each: each.state == "done")
    assert [each.shape for each in done.points] == list(SHAPES)
    assert all(len(each.engine_ms) == 3 for each in done.points)
    assert done.share == 1.0
    assert (done.levels, done.saturation_per_s) == ((), 0.0), "no mix, no knee"


def test_a_done_calibration_is_told_by_a_later_agent_too(agent: AgentUnderTest) -> None:
    agent.give(ordered(calibration(shapes=SHAPES[:1], repeats=1)))
    agent.start()
    replica, done = wait_told(agent, lambda each: each.state == "done")
    made = counters(replica)["vllm:generation_tokens_total"]
    agent.end()
    agent.reports()
    agent.start()
    again, told = wait_told(agent, lambda each: True)
    assert told == done
    assert counters(again)["vllm:generation_tokens_total"] == made, "nothing is measured again"


def test_without_an_order_it_stops_and_with_a_new_one_it_begins_anew(agent: AgentUnderTest) -> None:
    agent.give(ordered(calibration(repeats=50, batch_s=1.0)))
    agent.start()
    replica, _ = wait_told(agent, lambda each: measured(each) >= 1)
    agent.give(ordered(None))

    def is_gone() -> bool:
        return any(
            each.calibration is None and each.phase == "ready" for report in agent.reports() for each in report.replicas
        )

    wait_for("a report without a calibration", is_gone)
    wait_for("an idle engine", lambda: not is_busy(replica), seconds=5)
    made = counters(replica)["vllm:generation_tokens_total"]
    time.sleep(1.0)
    assert counters(replica)["vllm:generation_tokens_total"] == made, "its requests were withdrawn, no more are sent"
    agent.give(ordered(calibration(calibration_id="c2", shapes=SHAPES[:2], repeats=1)))
    _, done = wait_told(agent, lambda each: each.state == "done")
    assert done.calibration_id == "c2"
    assert [each.shape for each in done.points] == list(SHAPES[:2])


def test_an_engine_that_dies_fails_its_calibration_with_a_reason(agent: AgentUnderTest) -> None:
    agent.give(ordered(calibration(repeats=50)))
    agent.start()
    replica, before = wait_told(agent, lambda each: measured(each) >= 2)
    assert replica.pid is not None
    os.kill(replica.pid, signal.SIGKILL)
    ended, failed = wait_told(agent, lambda each: each.state == "failed" and "ended" in each.reason)
    assert ended.phase == "failed"
    assert failed.reason.startswith("The engine ended while it was measured: ")
    assert measured(failed) >= measured(before), "what was measured is kept"


@contextlib.contextmanager
def others_at_work(report: ReplicaReport) -> Iterator[None]:
    """Three clients that have nothing to do with the calibration, one request after the other (a minute at most)."""
    assert report.address is not None
    body = {"model": "demo", "prompt": "hello", "max_tokens": 300, "ignore_eos": True, "stream": False}
    url, enough = f"http://127.0.0.1:{report.address.port}/v1/completions", threading.Event()

    def ask() -> None:
        data, end = json.dumps(body).encode(), time.monotonic() + 60
        while not enough.is_set() and time.monotonic() < end:
            request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                answer.read()

    clients = [threading.Thread(target=ask) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        enough.set()
        for client in clients:
            client.join()


def test_it_begins_only_when_the_engine_has_no_request_of_others(agent: AgentUnderTest) -> None:
    agent.give(ordered(None))
    agent.start()
    ready = agent.wait_replica("r1", "ready")
    with others_at_work(ready):
        # The agent looks at the engine's metrics once a second.
        wait_for("a busy engine in the reports", lambda: _in_engine(agent))
        agent.give(ordered(calibration(shapes=SHAPES[:2], repeats=2)))
        _, waiting = wait_told(agent, lambda each: each.state == "waiting" and "still serves" in each.reason)
        assert waiting.points == ()
    _, done = wait_told(agent, lambda each: each.state == "done")
    assert all(len(each.engine_ms) == 2 for each in done.points)


def test_a_batch_that_others_disturbed_is_measured_again(agent: AgentUnderTest) -> None:
    agent.give(ordered(calibration(repeats=4)))
    agent.start()
    replica, _ = wait_told(agent, lambda each: measured(each) >= 2)
    with others_at_work(replica):
        wait_told(agent, lambda each: each.state == "waiting" and "of others" in each.reason)
    _, done = wait_told(agent, lambda each: each.state == "done")
    for point in done.points:
        assert len(point.engine_ms) == 4
        # Three others on four slots take more than half of the engine.
        assert max(point.engine_ms) < 1.6 * statistics.median(point.engine_ms), point


def _in_engine(agent: AgentUnderTest) -> bool:
    return any(each.metrics.get("running") for report in agent.reports() for each in report.replicas)


def test_two_replicas_of_a_host_are_measured_one_after_the_other(agent: AgentUnderTest) -> None:
    wanted = calibration(shapes=SHAPES[:2], repeats=2)
    agent.give(ordered(wanted), ordered(wanted, "r2"))
    agent.start()
    states: list[tuple[str, ...]] = []
    reasons: set[str] = set()

    def ask() -> bool:
        for report in agent.reports():
            found = [each.calibration for each in report.replicas if each.calibration is not None]
            states.append(tuple(each.state for each in found))
            reasons.update(each.reason for each in found)
        return bool(states) and states[-1] == ("done", "done")

    wait_for("two calibrations", ask, seconds=60)
    assert not [each for each in states if each.count("measuring") > 1]
    assert any("of this host is measured first" in each for each in reasons)


def test_what_cannot_be_measured_fails_with_words(agent: AgentUnderTest) -> None:
    agent.give(ordered(calibration(shapes=(Shape(input_tokens=2000, output_tokens=100),))))
    agent.start()
    _, failed = wait_told(agent, lambda each: each.state == "failed")
    assert "does not fit the engine's context of 2048" in failed.reason
    agent.give(ordered(calibration(calibration_id="c2", shapes=())))
    _, failed = wait_told(agent, lambda each: each.state == "failed" and each.calibration_id == "c2")
    assert "names no shapes" in failed.reason
