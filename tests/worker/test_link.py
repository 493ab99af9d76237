"""The link: what stands in the shared state never ends it, and it sends no report that nobody stands for."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.worker.conftest import order, wait_for
from worker import link as link_module
from worker.config import AgentConfig
from worker.inbox import Inbox
from worker.link import Link
from worker.spec import HostOrders, HostReport, LogPiece, open_report, seal

SECRET = b"s" * 32


class SentMessages:
    """In place of Celery: notes what is sent, and can be made to fail."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.error: Exception | None = None

    def send_task(self, name: str, **call: Any) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append(call["args"][0])


class Setting:
    def __init__(self, folder: Path, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(link_module, "ORDERS_EVERY_S", 0.1)
        monkeypatch.setattr(link_module, "REPORT_EVERY_S", 0.1)
        monkeypatch.setattr(link_module, "SHORTEST_GAP_S", 0.01)
        self.config = AgentConfig(
            host_id="h", name="n", secret=SECRET, broker_url="", state_url=server.url,
            folder=folder, environments=folder,
        )  # fmt: skip
        self.state = redis.Redis.from_url(server.url)
        self.inbox, self.app = Inbox(self.config), SentMessages()
        self.link = Link(self.config, self.app, self.inbox)  # type: ignore[arg-type]

    def give(self, generation: int) -> None:
        orders = HostOrders(host_id="h", generation=generation, replicas=(order("r1"),))
        self.state.set("agent:orders:h", json.dumps(seal(orders, secret=SECRET)))

    def wait_generation(self, generation: int) -> None:
        wait_for("the orders", lambda: self.inbox.orders is not None and self.inbox.orders.generation == generation)


def report() -> HostReport:
    return HostReport(
        host_id="h", boot_id="", sequence=0, generation=0, agent_version="", agent_pid=1, hostname="", cores=1,
        memory_bytes=1, memory_available_bytes=1, load_1m=0.0,
    )  # fmt: skip


@pytest.fixture
def setting(tmp_path: Path, valkey_server: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Setting]:
    made = Setting(tmp_path, valkey_server(), monkeypatch)
    made.link.start()
    yield made
    made.link.stop()
    made.state.close()


@pytest.mark.parametrize(
    ("poison", "words"),
    [
        (
            json.dumps({**seal(HostOrders(host_id="h", generation=9, replicas=()), secret=SECRET), "mac": "é"}),
            "signature",
        ),
        (b"\xff\xfe", "Expecting value"),
        ("[" * 100_000, "recursion"),
        ("5", "malformed envelope"),
        (["a list"], "WRONGTYPE"),
    ],
)
def test_poisoned_orders_are_refused_once_and_the_next_ones_taken(
    setting: Setting, caplog: pytest.LogCaptureFixture, poison: Any, words: str
) -> None:
    if isinstance(poison, list):
        setting.state.lpush("agent:orders:h", *poison)
    else:
        setting.state.set("agent:orders:h", poison)
    wait_for("a refusal", lambda: "standing orders are refused" in caplog.text)
    setting.link.take(report(), True)
    wait_for("a report beside it", lambda: setting.app.sent)
    time.sleep(0.5)
    refusals = [each.getMessage() for each in caplog.records if "refused" in each.getMessage()]
    assert len(refusals) == 1, "said once, not each time they are read"
    assert words in refusals[0]
    setting.state.delete("agent:orders:h")
    setting.give(2)
    setting.wait_generation(2)


def test_an_unforeseen_fault_costs_one_exchange_and_no_traceback(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    setting.app.error = RuntimeError("nobody\nforesaw this")
    setting.link.take(report(), True)
    wait_for("a line about it", lambda: "nobody" in caplog.text)
    line = next(each for each in caplog.records if "nobody" in each.getMessage())
    assert line.exc_info is None
    assert "RuntimeError: nobody\\nforesaw this (link.py:" in line.getMessage()
    setting.app.error = None
    wait_for("a report", lambda: setting.app.sent)
    setting.give(3)
    setting.wait_generation(3)


def test_an_old_report_is_not_sent_again(
    setting: Setting, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(link_module, "STALE_S", 0.5)
    setting.link.take(report(), True)
    wait_for("some reports", lambda: len(setting.app.sent) >= 3)
    wait_for("a word about the silence", lambda: "no report is sent" in caplog.text)
    count = len(setting.app.sent)
    time.sleep(0.5)
    assert len(setting.app.sent) == count, "a dead supervisor must not look alive"
    setting.link.take(report(), False)
    wait_for("the next one", lambda: len(setting.app.sent) > count)
    assert caplog.text.count("no report is sent") == 1


def test_a_log_that_is_read_travels_with_the_reports(setting: Setting) -> None:
    folder = setting.config.replicas / "r1"
    folder.mkdir(parents=True)
    (folder / "engine.log").write_bytes(b"up\n\xff")

    def newest() -> HostReport:
        return open_report(setting.app.sent[-1], host_id="h", secret=SECRET)

    def tell() -> HostReport:
        count = len(setting.app.sent)
        setting.link.take(report(), True)
        wait_for("a report", lambda: len(setting.app.sent) > count)
        return newest()

    assert tell().logs == {}
    setting.state.set("agent:follow:h", json.dumps(["r1", "r2", "../x"]))
    wait_for("the log", lambda: tell().logs)
    assert newest().logs == {"r1": LogPiece(data=b"up\n\xff", end=4)}
    setting.state.delete("agent:follow:h")
    wait_for("its end", lambda: not tell().logs)
    setting.state.lpush("agent:follow:h", "of another type")
    assert tell().logs == {}
    setting.give(4)
    setting.wait_generation(4)
