"""The supervisor tick by tick, without broker or agent process: faults stay where they are, failures can be retried."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from celery import Celery

from tests.worker.conftest import order, wait_for
from worker import environments, preparation, processes
from worker import supervisor as supervisor_module
from worker.agent import Agent
from worker.config import AgentConfig
from worker.engines import KEPT_FOLDERS
from worker.host import HostState
from worker.inbox import Inbox
from worker.runtimes import RUNTIMES
from worker.spec import HostOrders, HostReport, ReplicaOrder
from worker.state import load_states
from worker.supervisor import Supervisor

HOST = HostState(cores=8.0, memory_bytes=1 << 34, memory_available_bytes=1 << 33, load_1m=0.1, cpu_model="x")
TINY = {"kind": "tiny", "value": "", "revision": ""}


class Ticking:
    """A supervisor that looks when told to; ``reports`` holds what it told."""

    def __init__(self, config: AgentConfig, **changes: Any) -> None:
        self.reports: list[HostReport] = []
        self.config, self.children = config, set[subprocess.Popen[bytes]]()
        self.supervisor = Supervisor(
            config, on_report=lambda report, _: self.reports.append(report), **({"host_reader": lambda: HOST} | changes)
        )

    def give(self, *orders: ReplicaOrder) -> None:
        generation = self.supervisor.orders.generation + 1 if self.supervisor.orders else 1
        self.supervisor.give_orders(HostOrders(host_id="h", generation=generation, replicas=orders))

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.supervisor.tick()
            self.children |= set(self.supervisor._engines._popens.values())

    def told(self, replica_id: str) -> tuple[str, str]:
        """Phase and reason in the newest report."""
        found = {each.replica_id: each for each in self.reports[-1].replicas}
        return found[replica_id].phase, found[replica_id].reason

    def wait(self, replica_id: str, phase: str) -> str:
        def ask() -> bool:
            self.tick()
            return replica_id in self.supervisor.states and self.told(replica_id)[0] == phase

        wait_for(f"{phase} of {replica_id}", ask)
        return self.told(replica_id)[1]

    def clean_up(self) -> None:
        processes.signal_all([pid for pid, _ in processes.marked(self.config.folder)], signal.SIGKILL)
        for child in self.children:
            child.wait(60)


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    folder = tmp_path / "agent"
    (folder / "replicas").mkdir(parents=True)
    return AgentConfig(
        host_id="h", name="n", secret=b"s" * 32, broker_url="memory://", state_url="unix:///no/such/socket",
        folder=folder, environments=tmp_path / "environments",
    )  # fmt: skip


@pytest.fixture
def ticking(config: AgentConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ticking]:
    monkeypatch.setitem(RUNTIMES, "fake", "tests.worker.fake_runtime:FakeRuntime")
    made = Ticking(config)
    yield made
    made.clean_up()


# --------------------------------------------------------------------- a fault of one is no fault of others
def test_an_order_no_command_line_can_hold_fails_alone(ticking: Ticking, caplog: pytest.LogCaptureFixture) -> None:
    ticking.give(order("bad", options={"mode": "a\0b"}), order("good"))
    ticking.tick(4)
    phase, reason = ticking.told("bad")
    assert phase == "failed"
    assert "launch failed (ValueError: embedded null byte" in reason
    assert "Check the options of the revision." in reason
    assert ticking.told("good")[0] == "starting"
    assert ticking.supervisor.states["good"].process is not None
    assert ticking.supervisor.states["bad"].plan is None, "its port is free again"
    assert not [each for each in caplog.records if each.exc_info]


def test_a_runtime_that_trips_over_an_order_fails_that_replica_alone(
    ticking: Ticking, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trip_over_bad(self: object, *, order: ReplicaOrder) -> None:
        if order.replica_id == "bad":
            raise KeyError("no such key")

    monkeypatch.setattr("tests.worker.fake_runtime.FakeRuntime.weights", trip_over_bad)
    ticking.give(order("bad"), order("good"))
    ticking.tick(4)
    phase, reason = ticking.told("bad")
    assert (phase, "KeyError: 'no such key'" in reason) == ("failed", True)
    assert ticking.told("good")[0] == "starting"


def test_a_replica_that_cannot_be_looked_at_is_left_as_it_is(
    ticking: Ticking, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ticking.give(order("r1"))
    ticking.tick(4)
    running = ticking.supervisor.states["r1"].process
    assert running is not None
    real = ticking.supervisor._engines.is_alive

    def is_alive(state: Any) -> bool:
        if state.replica_id == "r1":
            raise RuntimeError("the process table is odd")
        return real(state)

    monkeypatch.setattr(ticking.supervisor._engines, "is_alive", is_alive)
    ticking.reports.clear()
    ticking.give(order("r2"))
    ticking.tick(6)
    assert ticking.told("r1")[0] == "starting", "no order names it, but nobody knows how it is"
    assert ticking.supervisor._engines.members(ticking.supervisor.states["r1"])
    assert ticking.supervisor.states["r2"].process is not None
    lines = [each for each in caplog.records if "the process table is odd" in each.getMessage()]
    assert [each.exc_info for each in lines] == [None], "said once, in one line"
    assert "replica r1: RuntimeError" in lines[0].getMessage()


def test_a_tick_that_fails_still_reports(ticking: Ticking, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(supervisor_module, "decide", fail)
    ticking.give(order("r1"))
    with pytest.raises(RuntimeError, match="boom"):
        ticking.tick()
    assert ticking.reports[-1].generation == 1


# --------------------------------------------------------------------- preparation is tried again
class Builders:
    """In place of builders and fetchers: short processes that fail."""

    def __init__(self, root: Path) -> None:
        self.path = environments.environment_path(root, "vllm-cpu")
        self.children: list[subprocess.Popen[bytes]] = []

    def launch(self, argv: Any, **more: Any) -> subprocess.Popen[bytes]:
        self.children.append(subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"]))
        return self.children[-1]

    @property
    def started(self) -> int:
        return len(self.children)

    def finish_environment(self) -> None:
        (self.path / "bin").mkdir(parents=True)
        (self.path / "bin" / "python").symlink_to(sys.executable)
        (self.path / environments.READY_MARKER).write_text("{}")


@pytest.fixture
def builders(config: AgentConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Builders]:
    made = Builders(config.environments)
    monkeypatch.setattr(preparation, "launch", made.launch)
    yield made
    for child in made.children:
        child.wait(60)


def vllm(replica_id: str, **changes: Any) -> ReplicaOrder:
    return order(replica_id, runtime="vllm", artifact=TINY, **changes)


def test_a_new_replica_tries_a_failed_build_again(ticking: Ticking, builders: Builders) -> None:
    ticking.give(vllm("r1"), vllm("r2"))
    for each in ("r1", "r2"):
        assert str(ticking.config.folder / "build-vllm-cpu.log") in ticking.wait(each, "failed")
    assert builders.started == 1, "both waited for one build"
    ticking.tick(3)
    assert builders.started == 1, "nothing is tried again by itself"
    ticking.give(vllm("r1"), vllm("r2"), vllm("r3"))
    ticking.wait("r3", "failed")
    assert builders.started == 2, "a new replica is a new try"
    assert ticking.told("r1")[0] == "failed"
    builders.finish_environment()
    ticking.give(vllm("r4"))
    ticking.wait("r4", "weights")
    ticking.wait("r4", "failed")


def test_a_new_replica_and_a_raised_attempt_try_a_failed_download_again(ticking: Ticking, builders: Builders) -> None:
    builders.finish_environment()
    for started, given in enumerate((vllm("r1"), vllm("r2"), vllm("r2", attempt=1)), start=1):
        ticking.give(given)
        ticking.wait(given.replica_id, "weights")
        assert "tiny model could not be built" in ticking.wait(given.replica_id, "failed")
        assert builders.started == started


# --------------------------------------------------------------------- accelerators
def test_an_accelerator_is_noted_with_the_launch_and_free_when_the_group_is_gone(ticking: Ticking) -> None:
    ticking.give(order("r1", accelerators=(0,)))
    ticking.tick(4)
    assert load_states(ticking.config.replicas)["r1"].accelerators == (0,), "the next agent knows it, too"
    ticking.give(order("r2", accelerators=(0,)))
    ticking.tick(2)
    assert ticking.told("r2") == ("starting", "waits for accelerator 0 to be freed by replica r1")
    wait_for("its launch", lambda: ticking.tick() or ticking.supervisor.states["r2"].process)
    assert "r1" not in ticking.supervisor.states or ticking.supervisor.states["r1"].process is None


def test_an_engine_that_does_not_start_tells_who_holds_its_accelerators(
    ticking: Ticking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the reports and on the disk; nothing is added where nobody does, or where the replica has none."""
    asked: list[tuple[tuple[int, ...], list[int]]] = []

    def held(indexes: tuple[int, ...], own: list[int]) -> str:
        asked.append((indexes, own))
        return "python3 (pid 575, 21.0 GiB)" if 0 in indexes else ""

    monkeypatch.setattr(ticking.supervisor._inventory, "held_by_others", held)
    for name, accelerators in (("r1", (0,)), ("r2", (1,)), ("r3", ())):
        ticking.give(order(name, accelerators=accelerators, options={"mode": "exit-at-start"}))
        reason = ticking.wait(name, "failed")
        assert reason.endswith(" Its accelerators are in use by python3 (pid 575, 21.0 GiB).") is (name == "r1")
        ticking.tick(3)
        assert ticking.told(name) == ("failed", reason), "a failed replica stays as it is"
        assert load_states(ticking.config.replicas)[name].reason == reason
    assert [indexes for indexes, _ in asked] == [(0,), (1,)]


# --------------------------------------------------------------------- folders
def old_folders(config: AgentConfig, number: int) -> list[Path]:
    """Folders of forgotten replicas, oldest first, the first with a folder of its own inside."""
    made = []
    for index in range(number):
        made.append(config.replicas / f"old-{index}")
        (made[-1] / "inside").mkdir(parents=True)
        (made[-1] / "inside" / "engine.log").write_text("x")
        os.utime(made[-1], (index, index))
    return made


def test_folders_of_forgotten_replicas_are_removed_while_the_agent_runs(
    ticking: Ticking, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticking.give(order("r1", options={"nonsense": 1}))
    ticking.tick(3)
    old = old_folders(ticking.config, KEPT_FOLDERS + 2)
    ticking.give()
    ticking.tick()
    assert "r1" not in ticking.supervisor.states
    assert [each.exists() for each in old[:4]] == [False, False, False, True], "r1's own folder is the newest"
    assert (ticking.config.replicas / "r1").exists(), "a few keep their logs for people"
    old_folders(ticking.config, 2)
    ticking.tick()
    assert old[0].exists()
    monkeypatch.setattr(supervisor_module, "ROTATE_S", 0.0)
    ticking.tick()
    assert not old[0].exists()


def test_a_replica_whose_state_is_not_on_disk_keeps_its_folder(ticking: Ticking) -> None:
    ticking.give(order("r1"))
    ticking.tick(4)
    folder = ticking.config.replicas / "r1"
    (folder / "state.json").unlink()
    os.utime(folder, (0, 0))
    old_folders(ticking.config, KEPT_FOLDERS + 1)
    ticking.supervisor._engines.remove_old_folders(ticking.supervisor.states)
    assert folder.exists()
    assert len(list(ticking.config.replicas.iterdir())) == KEPT_FOLDERS + 1


@pytest.mark.parametrize("damage", [b'{"replica_id": "\xff"}', b"\xff", b"5", b""])
def test_a_damaged_file_of_the_folder_is_no_file(config: AgentConfig, damage: bytes) -> None:
    (config.replicas / "r1").mkdir()
    (config.replicas / "r1" / "state.json").write_bytes(damage)
    (config.folder / "orders.json").write_bytes(damage)
    (config.folder / "learnt.json").write_bytes(damage)
    status = environments.sibling(environments.environment_path(config.environments, "vllm-cpu"), ".status.json")
    status.parent.mkdir()
    status.write_bytes(damage)
    inbox = Inbox(config)
    inbox.load()
    assert inbox.orders is None
    assert load_states(config.replicas) == {}
    assert environments.read_status(status.with_name(status.name.removesuffix(".status.json"))) is None
    ticking = Ticking(config)
    ticking.tick()
    assert ticking.reports[-1].replicas == ()


# --------------------------------------------------------------------- life of the threads
async def test_facts_that_cannot_be_read_once_are_read_again(
    config: AgentConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor_module, "HOST_S", 0.02)
    answers: list[HostState | Exception] = [HOST, ValueError("odd /proc"), ValueError("odd /proc")]

    def read() -> HostState:
        answer = answers.pop(0) if answers else msgspec.structs.replace(HOST, load_1m=7.0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    ticking, stop = Ticking(config, host_reader=read), asyncio.Event()
    running = asyncio.create_task(ticking.supervisor.run(stop))
    async with asyncio.timeout(20):
        while not ticking.reports or ticking.reports[-1].load_1m != 7.0:
            await asyncio.sleep(0.05)
    stop.set()
    await running
    lines = [each for each in caplog.records if "odd /proc" in each.getMessage()]
    assert [each.exc_info for each in lines] == [None], "said once, in one line"


async def test_ticks_that_fail_are_told_once_and_go_on(
    config: AgentConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ticking, stop, ticks = Ticking(config), asyncio.Event(), 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1
        raise RuntimeError("boom")

    monkeypatch.setattr(supervisor_module, "TICK_S", 0.01)
    monkeypatch.setattr(ticking.supervisor, "tick", tick)
    running = asyncio.create_task(ticking.supervisor.run(stop))
    async with asyncio.timeout(20):
        while ticks < 5:
            await asyncio.sleep(0.01)
    stop.set()
    await running
    assert [each.exc_info for each in caplog.records if "boom" in each.getMessage()] == [None]


def test_an_agent_whose_supervisor_breaks_ends(
    config: AgentConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)

    def load(_: object) -> None:
        raise PermissionError(13, "Permission denied", "replicas")

    monkeypatch.setattr(supervisor_module, "load_states", load)
    agent = Agent(config, Celery("test", set_as_current=False), Inbox(config))
    agent.start()
    try:
        wait_for("its end", lambda: codes)
    finally:
        agent.stop()
    assert codes == [1]
    line = next(each for each in caplog.records if each.levelno == logging.CRITICAL)
    assert "Permission denied" in line.getMessage()
    assert line.exc_info is None
