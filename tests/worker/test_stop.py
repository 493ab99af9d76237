"""Ending what an agent left: bounded in time, whatever holds out."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from worker import __main__ as main_module
from worker import agent as agent_module
from worker import processes
from worker import stop as stop_module
from worker.agent import AlreadyRunning, FolderLock
from worker.config import AgentConfig
from worker.stop import stop_engines


class Time:
    """Time that passes only where somebody sleeps; ``alarm`` is called once at its time."""

    def __init__(self) -> None:
        self.now, self.alarms = 0.0, list[tuple[float, Callable[[], None]]]()

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        due = [each for each in self.alarms if each[0] <= self.now]
        self.alarms = [each for each in self.alarms if each not in due]
        for _, call in due:
            call()


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    return AgentConfig(
        host_id="h", name="n", secret=b"s" * 32, broker_url="", state_url="", folder=tmp_path, environments=tmp_path
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(stop_module, "time", made)
    monkeypatch.setattr(agent_module, "time", made)
    return made


def promised_s() -> float:
    found = re.search(r"within\s+(\d+) seconds", main_module.__doc__ or "")
    assert found
    return float(found[1])


@pytest.mark.parametrize("leaves_at", [0.0, 4.8, 9.8])
def test_it_keeps_the_promised_time_where_an_agent_leaves_late_and_a_process_holds_out(
    config: AgentConfig, clock: Time, monkeypatch: pytest.MonkeyPatch, leaves_at: float
) -> None:
    sent: list[tuple[float, signal.Signals]] = []
    monkeypatch.setattr(processes, "marked", lambda *_: [(4_000_000, "r")])
    monkeypatch.setattr(processes, "signal_all", lambda _, number: sent.append((clock.now, number)))
    leaving = FolderLock(config.folder)
    leaving.acquire()
    clock.alarms.append((leaves_at, leaving.release))
    try:
        left = stop_engines(config, say=lambda _: None)
    except AlreadyRunning:
        left = 0
        leaving.release()
    assert clock.now <= promised_s() + 0.2
    if leaves_at > 5:
        assert (left, sent) == (0, []), "told that an agent is there, it can be stopped and asked again"
        return
    assert left == 1
    assert [number for _, number in sent] == [signal.SIGTERM, signal.SIGKILL]
    assert sent[1][0] - sent[0][0] == pytest.approx(10.0, abs=0.2), "engines have the time to end by themselves"


def test_an_agent_that_stays_is_told_of_in_time(config: AgentConfig, clock: Time) -> None:
    staying = FolderLock(config.folder)
    staying.acquire()
    with pytest.raises(AlreadyRunning, match="stop it first"):
        stop_engines(config, say=lambda _: None)
    assert clock.now <= 5.2
    staying.release()
