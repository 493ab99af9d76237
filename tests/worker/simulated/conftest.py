"""Simulated engines as real processes on free ports."""

from __future__ import annotations

import functools
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    import openai

FAST = {"step_floor_ms": 1.0, "alpha_ms": 0.001, "beta_ms": 0.01, "gamma_ms": 0.0, "epsilon_ms": 0.0, "base_ms": 0.0}
"""An engine that makes 1,000 steps a second."""


@dataclass
class RunningEngine:
    process: subprocess.Popen[bytes]
    url: str
    request_log: Path

    def metric(self, name: str, **labels: str) -> float:
        """Return a metric of the engine, summed over the samples that carry ``labels``."""
        total, found = 0.0, False
        for line in httpx.get(f"{self.url}/metrics").text.splitlines():
            match = re.fullmatch(rf"{re.escape(name)}(?:{{(.*)}})? (\S+)", line)
            if match and all(f'{key}="{value}"' in (match[1] or "") for key, value in labels.items()):
                total, found = total + float(match[2]), True
        assert found, name
        return total

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=20, **more)

    @functools.cached_property
    def sdk(self) -> openai.OpenAI:
        """OpenAI's official client, closed with the engine."""
        import openai  # seconds, which the tests that need it not do not wait for

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def complete(self, **body: Any) -> httpx.Response:
        return self.post("/v1/completions", {"model": "sim", "prompt": "Hello", "max_tokens": 4} | body)

    def fault(self, **fault: Any) -> None:
        assert self.post("/fault", fault).status_code == 200

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.request_log.read_text().splitlines()]

    def wait(self, what: Callable[[], bool], *, seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.02)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=10)


class Engines:
    """Starts engines and ends them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[RunningEngine] = []

    def start(self, *arguments: str, ready: bool = True, **profile: Any) -> RunningEngine:
        """Start one: keyword arguments of the profile, ``arguments`` for the command line."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        log = self.folder / f"requests-{len(self.started)}.jsonl"
        command = [sys.executable, "-m", "worker.simulated", "--port", str(port), "--served-model-name", "sim"]
        command += ["--profile", json.dumps(FAST | profile), "--request-log", str(log), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        engine = RunningEngine(process, f"http://127.0.0.1:{port}", log)
        self.started.append(engine)
        if ready:
            engine.wait(lambda: _answers(engine))
        return engine

    def end(self) -> None:
        for engine in self.started:
            if "sdk" in vars(engine):
                engine.sdk.close()
            engine.process.kill()
            engine.process.communicate()


@pytest.fixture
def start_engine(tmp_path: Path) -> Iterator[Callable[..., RunningEngine]]:
    engines = Engines(tmp_path)
    yield engines.start
    engines.end()


@pytest.fixture
def own_engine(start_engine: Callable[..., RunningEngine]) -> RunningEngine:
    """An engine of the test's own: it may count, break and read its log."""
    return start_engine()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    """An engine shared by tests that only ask."""
    engines = Engines(tmp_path_factory.mktemp("engine"))
    yield engines.start()
    engines.end()


def _answers(engine: RunningEngine) -> bool:
    assert engine.process.poll() is None, (engine.process.stderr or sys.stdin).read()
    try:
        return httpx.get(f"{engine.url}/health").status_code == 200
    except httpx.TransportError:
        return False
