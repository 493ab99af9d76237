"""A real agent under test: its own folder, its own process, a real shared state with the agents' own user."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import redis

from penstock import bundled_state
from worker.spec import HostOrders, HostReport, ReplicaOrder, ReplicaReport, open_report, seal

T = TypeVar("T")
MAIN = Path(__file__).with_name("agent_main.py")
ROOT = Path(__file__).resolve().parents[2]


def wait_for(what: str, ask: Callable[[], T | None], *, seconds: float = 20.0, every: float = 0.05) -> T:
    """Poll ``ask`` until it answers something true. Raises AssertionError that names ``what``."""
    end = time.monotonic() + seconds
    while True:
        if answer := ask():
            return answer
        assert time.monotonic() < end, f"{what} did not happen within {seconds:g} s"
        time.sleep(every)


def order(replica_id: str, *, runtime: str = "fake", **changes: Any) -> ReplicaOrder:
    values: dict[str, Any] = {
        "replica_id": replica_id,
        "deployment_id": "d1",
        "deployment_name": "demo",
        "runtime": runtime,
        "served_name": "demo",
        "intent": "run",
        "artifact": {"kind": "none", "value": "", "revision": ""},
        "options": {},
        "target_concurrency": 4,
    }
    return ReplicaOrder(**(values | changes))


class AgentUnderTest:
    """Starts and kills agents of one folder; gives orders and reads reports as the control plane does."""

    def __init__(self, folder: Path, server: Any, environments: Path | None = None) -> None:
        self.folder, self.server = folder / "agent", server
        self.folder.mkdir(mode=0o700)
        self.host_id, self.secret = "h-" + secrets.token_hex(4), secrets.token_bytes(32)
        self.environments = environments
        self.generation = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "agent.log"
        broker = bundled_state.agent_url(server.data)
        content = {
            "host_id": self.host_id,
            "name": "test",
            "secret": self.secret.hex(),
            "broker_url": broker,
            "state_url": broker.replace("redis+socket://", "unix://"),
        }
        self.config = self.folder / "agent.json"
        self.config.write_text(json.dumps(content))
        self.config.chmod(0o600)
        self.client = redis.Redis.from_url(server.url)

    # ------------------------------------------------------------------ life
    def start(self) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PENSTOCK_", "DJANGO_"))}
        if self.environments is not None:
            env["PENSTOCK_ENVIRONMENTS_DIR"] = str(self.environments)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(MAIN), "--config", str(self.config)],
                stdout=log, stderr=subprocess.STDOUT, env=env, cwd=ROOT, start_new_session=True,
            )  # fmt: skip

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(60)
        self.process = None
        return code

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, str(MAIN), "--config", str(self.config), *arguments]
        return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)

    def clean_up(self) -> None:
        if self.process is not None:
            self.end(signal.SIGKILL)
        for pid in self.processes():
            with_suppressed_kill(pid)

    # ------------------------------------------------------------------ orders and reports
    def give(self, *orders: ReplicaOrder, generation: int | None = None) -> int:
        """Set the standing orders, as the control plane does; the agent finds them within two seconds."""
        self.generation = self.generation + 1 if generation is None else generation
        message = HostOrders(host_id=self.host_id, generation=self.generation, replicas=orders)
        self.client.set(f"agent:orders:{self.host_id}", json.dumps(seal(message, secret=self.secret)))
        return self.generation

    def reports(self) -> list[HostReport]:
        """Take the waiting reports from the queue, oldest first."""
        found = []
        while raw := self.client.rpop("agent:reports"):
            message = json.loads(raw)
            assert message["headers"]["task"] == "serving.report"
            body = message["body"]
            if message["properties"]["body_encoding"] == "base64":
                import base64

                body = base64.b64decode(body)
            envelope = json.loads(body)[0][0]
            found.append(open_report(envelope, host_id=self.host_id, secret=self.secret))
        return found

    def wait_replica(self, replica_id: str, phase: str, *, seconds: float = 20.0, **fields: Any) -> ReplicaReport:
        """Wait for a report in which the replica is in ``phase`` and has ``fields``; phases seen go to ``history``."""
        history: list[str] = []

        def ask() -> ReplicaReport | None:
            for report in self.reports():
                for each in report.replicas:
                    if each.replica_id != replica_id:
                        continue
                    if not history or history[-1] != f"{each.phase}: {each.reason}":
                        history.append(f"{each.phase}: {each.reason}")
                    if each.phase == phase and all(getattr(each, k) == v for k, v in fields.items()):
                        return each
            return None

        try:
            return wait_for(f"{phase} of {replica_id}", ask, seconds=seconds)
        except AssertionError as error:
            log = self.log.read_text()[-3000:]
            raise AssertionError(f"{error}; seen: {history}\n{log}") from None

    # ------------------------------------------------------------------ the process table
    def processes(self, replica_id: str | None = None) -> list[int]:
        """Living processes with this folder's mark, read from the process table itself."""
        found = []
        for process in psutil.process_iter():
            try:
                env = process.environ()
                is_dead = process.status() == psutil.STATUS_ZOMBIE
            except psutil.Error:
                continue
            if is_dead or env.get("PENSTOCK_AGENT_DIR") != str(self.folder):
                continue
            if replica_id is None or env.get("PENSTOCK_REPLICA_ID") == replica_id:
                found.append(process.pid)
        return found


def with_suppressed_kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def agent(tmp_path: Path, valkey_server: Callable[[], Any]) -> Iterator[AgentUnderTest]:
    made = AgentUnderTest(tmp_path, valkey_server())
    try:
        yield made
    finally:
        made.clean_up()
        made.client.close()
