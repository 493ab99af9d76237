"""The loops as they run: two Celery workers with beat, a real broker, a scripted agent that sends real Celery tasks.

What they did is read from the database file and the shared state, not through the code under test.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from penstock.secrets import ensure_secrets
from tests.conftest import ValkeyServer
from tests.loops.agent import ScriptedAgent
from tests.loops.test_probe import ScriptedEngine
from tests.migrated import NAME, migrated
from worker.spec import Address, seal

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(240)]

WORKER = ("celery", "--quiet", "-A", "penstock.celery", "worker", "--without-gossip", "--without-mingle")
ROOT = Path(__file__).resolve().parents[2]


def until(seconds: float, check: Callable[[], Any]) -> Any:
    """The first true value of ``check`` within ``seconds``; the last false one otherwise."""
    end = time.monotonic() + seconds
    while not (value := check()) and time.monotonic() < end:
        time.sleep(0.1)
    return value


class AgentProcess(threading.Thread):
    """The scripted agent on its own thread: it steps each half second and sends its report as a Celery task."""

    def __init__(self, agent: ScriptedAgent, broker: str, address: Address) -> None:
        super().__init__(daemon=True)
        self.agent, self.stopping = agent, threading.Event()
        self.agent.address = address
        self.celery = Celery("an agent", broker=broker, set_as_current=False, fixups=[])
        self.celery.conf.broker_transport_options = {"global_keyprefix": "agent:"}

    def send(self, envelope: object) -> None:
        self.celery.send_task("serving.report", args=(envelope,), queue="reports", ignore_result=True)

    def run(self) -> None:
        while not self.stopping.wait(0.5):
            with contextlib.suppress(OSError, redis.RedisError):
                self.agent.step(time.time())
                self.send(self.agent.envelope(time.time()))


@dataclass
class Loops:
    data: Path
    server: ValkeyServer
    seeded: dict[str, str]
    client: redis.Redis
    agent: AgentProcess
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> subprocess.Popen[bytes]:
        number = len(self.workers) + 1
        log = (self.data / f"loops-{number}.log").open("wb")
        argv = [sys.executable, "-P", "-m", *WORKER, "--without-heartbeat", "--hostname", f"loops-{number}@%h"]
        self.workers.append(subprocess.Popen(argv, env=environment(self.data), stdout=log, stderr=log, cwd=ROOT))
        log.close()
        return self.workers[-1]

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.data / "penstock.sqlite3", timeout=10)) as database:
            return database.execute(sql).fetchall()

    def states(self) -> list[str]:
        return sorted(state for (state,) in self.rows("select state from serving_replica"))

    def rejected(self, reason: str) -> int:
        return int(self.client.hget("penstock:count:reports_rejected", reason) or 0)  # type: ignore[arg-type]

    def samples(self) -> list[float]:
        """Times of the newest samples, oldest first."""
        raw = self.client.lrange(f"penstock:ring:deployment:{self.seeded['deployment_id']}", 0, 99)
        return sorted(json.loads(sample)["at"] for sample in raw)  # type: ignore[union-attr]

    def log(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.data.glob("loops-*.log")))


def environment(data: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
    return inherited | {
        "PENSTOCK_DATA": str(data),
        "DJANGO_SETTINGS_MODULE": "penstock.settings",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}",
    }


@pytest.fixture
def loops(valkey_server: Callable[[], ValkeyServer]) -> Iterator[Loops]:
    server = valkey_server()
    data, engine = server.data, ScriptedEngine()
    ensure_secrets(data)
    migrated(data / NAME)
    seeded = json.loads(
        subprocess.run(
            [sys.executable, "-P", str(ROOT / "tests/loops/scenario.py")],
            env=environment(data),
            check=True,
            capture_output=True,
        ).stdout
    )
    client = redis.Redis.from_url(server.url)
    scripted = ScriptedAgent(client, seeded["host_id"], bytes.fromhex(seeded["secret"]))
    broker = server.url.replace("unix://", "redis+socket://")
    agent = AgentProcess(scripted, broker, Address(host="127.0.0.1", port=engine.port))
    running = Loops(data, server, seeded, client, agent)
    agent.start()
    yield running
    agent.stopping.set()
    for worker in running.workers:
        with contextlib.suppress(ProcessLookupError):
            worker.kill()
        worker.wait(60)
    engine.stop()
    client.close()


def test_two_loops_bring_a_deployment_up_and_survive_deaths(loops: Loops) -> None:
    first, second = loops.start(), loops.start()
    assert until(60, lambda: loops.states() == ["ready", "ready"]), loops.log()

    # Two clocks tick, one sample a second is taken.
    time.sleep(6)
    gaps = [after - before for before, after in itertools.pairwise(loops.samples()[-6:])]
    assert len(gaps) == 5, loops.log()
    assert all(0.7 < gap < 2.5 for gap in gaps), gaps

    forged = loops.agent.agent.envelope(time.time()) | {"mac": "0" * 64}
    loops.agent.send(forged)
    assert until(10, lambda: loops.rejected("forged")), loops.log()
    stranger = loops.agent.agent.report(time.time())
    stranger = type(stranger)(
        **{name: getattr(stranger, name) for name in stranger.__struct_fields__} | {"host_id": str(uuid.uuid4())}
    )
    loops.agent.send(seal(stranger, secret=loops.agent.agent.secret))
    assert until(10, lambda: loops.rejected("unknown_host")), loops.log()
    loops.agent.send({"rubbish": 1})
    assert until(10, lambda: loops.rejected("malformed")), loops.log()

    first.kill()
    first.wait(60)
    crashed, _ = sorted(loops.agent.agent.engines)
    loops.agent.agent.engines[crashed].phase = "failed"
    assert until(40, lambda: loops.states() == ["failed", "ready", "ready"]), loops.log()
    kinds = loops.rows("select kind, closed_at is not null from serving_incident")
    assert until(20, lambda: loops.rows("select closed_at from serving_incident")[0][0]), loops.log()
    assert [kind for kind, _ in kinds] == ["crash"]

    # The broker dies with everything in memory and comes back from its file.
    loops.server.stop(signal.SIGKILL)
    time.sleep(2)
    loops.server.start()
    back_at = time.time()
    assert until(20, lambda: loops.samples()[-1] > back_at), loops.log()
    reported = loops.rows("select report_sequence from capacity_host")
    assert until(20, lambda: loops.rows("select report_sequence from capacity_host") > reported), loops.log()
    assert loops.states() == ["failed", "ready", "ready"]

    asked_at = time.monotonic()
    second.terminate()
    assert second.wait(60) == 0
    assert time.monotonic() - asked_at < 8
    assert "Traceback" not in loops.log()
