"""A whole installation under test: every role its own process, started by ``penstock up`` in a folder of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from penstock.testing import SECRETS
from tests.migrated import NAME, migrated

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, ask: Callable[[], T | None], *, seconds: float, every: float = 0.1) -> T:
    """Poll ``ask`` until it answers something true. Raises AssertionError that names ``what``."""
    end = time.monotonic() + seconds
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not happen within {seconds:g} s")
        time.sleep(every)


class Stack:
    """One running installation. Everything asserted about it is read from outside: HTTP, SQLite file, process table."""

    def __init__(
        self, data: Path, *, engine: str = "simulated", gateways: int = 2, extra: tuple[str, ...] = ()
    ) -> None:
        self.data = data
        self.port, self.api_port = free_port(), free_port()
        self.engine, self.gateways, self.extra = engine, gateways, extra
        self.log = data.parent / f"{data.name}.up.log"
        self.process: subprocess.Popen[bytes] | None = None

    # ------------------------------------------------------------------ life
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PENSTOCK_", "DJANGO_", "PYTEST_"))}
        kept["PENSTOCK_DATA"] = str(self.data)
        if cache := os.environ.get("PENSTOCK_ENVIRONMENTS_DIR"):
            kept["PENSTOCK_ENVIRONMENTS_DIR"] = cache
        else:
            kept["PENSTOCK_ENVIRONMENTS_DIR"] = str(Path.home() / ".cache" / "penstock" / "environments")
        return kept

    def start(self, *, seconds: float = 60.0) -> Stack:
        if not self.data.exists():
            migrated(self.data / NAME)
        command = [sys.executable, "-m", "penstock", "up", "--data", str(self.data)]
        command += ["--port", str(self.port), "--api-port", str(self.api_port)]
        command += ["--gateways", str(self.gateways), "--engine", self.engine, *self.extra]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=self.environment(), start_new_session=True
            )
        wait_for("a first streamed answer", lambda: self.is_serving("demo-sim"), seconds=seconds, every=0.25)
        return self

    def stop(self, *, seconds: float = 60.0) -> int:
        """Stop in order, as Ctrl-C does, and return the exit code. Raises when a process of it is left."""
        assert self.process is not None
        family = self.family()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            for process in [*family, psutil.Process(self.process.pid)]:
                with_suppressed(process.kill)
            raise AssertionError(f"penstock up did not stop within {seconds:g} s:\n{self.tail()}") from None
        left = [p for p in [*family, *self.engines()] if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        for process in left:
            with_suppressed(process.kill)
        assert not left, f"processes left behind: {left}"
        assert self.leaks() == []
        return code

    def kill_all(self) -> None:
        for process in [*self.family(), *self.engines()]:
            with_suppressed(process.kill)
        if self.process is not None:
            with_suppressed(self.process.kill)
            self.process.wait(60)

    def leaks(self) -> list[str]:
        """Lines of roles' and engines' logs that hold a secret of the installation, or a prompt."""
        found = []
        literal = [text for text in self.secrets() if text]
        for path in [*self.data.glob("log/*"), *self.data.glob("agent/replicas/*/engine.log*")]:
            for line in path.read_text(errors="replace").splitlines():
                if SECRETS.search(line) or any(text in line for text in literal):
                    found.append(f"{path.name}: {line[:200]}")
        return found

    def secrets(self) -> Iterator[str]:
        made = json.loads((self.data / "secrets.json").read_text())
        yield from (made["django"], *made["key_peppers"].values(), *made["field_keys"])
        agent = json.loads((self.data / "agent" / "agent.json").read_text())
        yield agent["secret"]
        yield (self.data / "state" / "agent.password").read_text().strip()

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    # ------------------------------------------------------------- processes
    def family(self) -> list[psutil.Process]:
        assert self.process is not None
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def engines(self) -> list[psutil.Process]:
        """Engine processes of this data folder: they live in sessions of their own."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
            except (psutil.Error, OSError):
                continue
            if environment.get("PENSTOCK_REPLICA_ID") and str(self.data) in json.dumps(environment):
                found.append(process)
        return found

    def role(self, *words: str) -> list[psutil.Process]:
        """Processes of the installation whose command line holds all ``words``."""
        found = []
        for process in self.family():
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if all(word in line for word in words):
                found.append(process)
        return found

    def gateway_processes(self) -> list[psutil.Process]:
        return self.role("serving.gateway.server")

    # ------------------------------------------------------------------ HTTP
    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.api_port}/v1"

    @property
    def console_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def quickstart(self) -> dict[str, Any]:
        return json.loads((self.data / "quickstart.json").read_text())  # type: ignore[no-any-return]

    def key(self, index: int = 0) -> str:
        return str(self.quickstart()["tenants"][index]["api_key"])

    def is_serving(self, model: str) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"penstock up ended with {self.process.returncode}:\n{self.tail()}"
        try:
            answer = httpx.post(
                f"{self.base_url}/completions",
                json={"model": model, "prompt": "hello", "max_tokens": 1},
                headers={"Authorization": f"Bearer {self.key()}"},
                timeout=20,
            )
        except (httpx.HTTPError, OSError, ValueError, KeyError, IndexError):
            return False
        return answer.status_code == 200

    # -------------------------------------------------------------- database
    @contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(f"file:{self.data / 'penstock.sqlite3'}?mode=ro", uri=True, timeout=20)
        connection.row_factory = sqlite3.Row
        try:
            yield connection
        finally:
            connection.close()

    def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        with self.database() as connection:
            return [dict(row) for row in connection.execute(query, values)]

    def usage(self, where: str = "1=1", *values: object) -> list[dict[str, Any]]:
        return self.rows(f"select * from capacity_usagerecord where {where}", *values)

    def manage(self, code: str) -> str:
        """Run Python in the installation's Django shell, as an operator would, and return what it printed."""
        done = subprocess.run(
            [sys.executable, str(ROOT / "manage.py"), "shell", "--no-imports", "-c", code],
            cwd=ROOT,
            env=self.environment() | {"REDIS_URL": f"unix://{self.data / 'state' / 'valkey.sock'}"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def with_suppressed(call: Callable[[], object]) -> None:
    try:
        call()
    except (psutil.Error, OSError, subprocess.TimeoutExpired):
        return
