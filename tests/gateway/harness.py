"""A small installation of real processes: Valkey, scripted engines, gateways. The test itself is the publisher."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx

from penstock import bundled_state
from serving.gateway.snapshot import LOG, META, add_digest, record_digest
from serving.gateway.state import EPOCH, connect, run_script, script

ROOT = Path(__file__).resolve().parents[2]
PEPPER = "a pepper for tests"
T = TypeVar("T")
PROFILE = {"version": 3, "base": 0.5, "alpha": 0.01, "beta": 0.2, "gamma": 0.0, "epsilon": 0.0, "cached_factor": 0.1}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, ask: Callable[[], T], *, seconds: float = 10.0, every: float = 0.01) -> T:
    """Poll until ``ask`` answers something true; connection errors count as not yet."""
    end = time.monotonic() + seconds
    while True:
        answer = None
        with contextlib.suppress(httpx.HTTPError, OSError):
            answer = ask()
        if answer:
            return answer
        assert time.monotonic() < end, f"{what} did not happen within {seconds:g} s"
        time.sleep(every)


def key_record(public: str, tenant: str, secret: str = "secret", **more: Any) -> dict[str, Any]:
    digest = hmac.new(PEPPER.encode(), secret.encode(), hashlib.sha256).hexdigest()
    return {"id": public, "uuid": f"uuid-{public}", "tenant": tenant, "digest": digest, "pepper": 1, **more}


class Process:
    def __init__(self, argv: list[str], *, env: dict[str, str] | None = None, log: Path | None = None) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PENSTOCK_", "DJANGO_", "REDIS_"))}
        with open(log or os.devnull, "ab") as out:
            self.popen = subprocess.Popen(argv, cwd=ROOT, env={**kept, **(env or {})}, stdout=out, stderr=out)

    def stop(self, how: int = signal.SIGTERM, *, seconds: float = 15.0) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(how)
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait(60)
            raise


class Engine:
    """A scripted engine as its own process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        path = str(Path(__file__).with_name("scripted_engine.py"))
        self.process = Process([sys.executable, path, str(self.port)])
        wait_for(f"engine {self.name}", lambda: httpx.get(f"{self.url}/log").status_code == 200, seconds=20, every=0.05)

    def control(self, **script: Any) -> None:
        httpx.post(f"{self.url}/control", json=script).raise_for_status()

    def log(self, since: int = 0) -> list[dict[str, Any]]:
        """Its requests, but for the first ``since``."""
        return httpx.get(f"{self.url}/log?since={since}").json()["requests"]  # type: ignore[no-any-return]

    def connections(self) -> int:
        return int(httpx.get(f"{self.url}/log").json()["connections"])

    def entry(self, request_id: str) -> dict[str, Any]:
        found = [entry for entry in self.log() if entry["id"] == request_id]
        assert len(found) == 1, f"{len(found)} requests {request_id} at {self.name}"
        return found[0]

    def replica(self, deployment: str, **more: Any) -> dict[str, Any]:
        return {
            "id": f"{deployment}-{self.name}",
            "deployment": deployment,
            "revision": "r1",
            "host": "h1",
            "address": self.url,
            "state": "ready",
            "target_concurrency": 64,
            # Its prefill takes no time to speak of, whatever the prices say.
            "supply_mu_per_min": 1e6,
            **more,
        }


class Gateway:
    """One gateway process."""

    def __init__(self, cluster: Cluster, name: str, port: int, data: Path, **env: str) -> None:
        self.name, self.port = name, port
        self.url = f"http://127.0.0.1:{port}"
        self.log_path = cluster.data / f"{name}.log"
        argv = [sys.executable, "-m", "serving.gateway.server", "--data", str(data)]
        argv += ["--port", str(port), "--name", name]
        self.process = Process(argv, env={"REDIS_URL": cluster.state_url, **env}, log=self.log_path)

    def wait(self) -> Gateway:
        def is_up() -> bool:
            assert self.process.popen.poll() is None, self.log_path.read_text()
            return httpx.get(f"{self.url}/readyz").json()["gateway"] == self.name

        # It takes a second to start: who asks more often takes it the processor that it needs.
        wait_for(f"gateway {self.name}", is_up, seconds=30, every=0.05)
        return self

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]


class Cluster:
    """Everything in one private folder. ``publish`` writes the snapshot as the publisher does."""

    def __init__(self) -> None:
        self.data = Path(tempfile.mkdtemp(prefix="pg"))
        self.state_url = f"unix://{bundled_state.socket_path(self.data)}"
        self._running: list[Process] = []
        self._version = 0
        self._digest = 0
        self._records: dict[tuple[str, str], bytes] = {}
        (self.data / "secrets.json").write_text(json.dumps({"key_peppers": {"1": PEPPER}}))
        self.start_state()
        self.client = connect(self.state_url)
        self.client.set(EPOCH, "test.1000")

    def start_state(self) -> None:
        """Start the state, with whatever data it finds, and publish everything again if it finds none."""
        self._state = self._run(Process(bundled_state.command(self.data)))
        bundled_state.wait_ready(self.state_url, 10)
        if self._records and not self.client.exists(META):
            records = [(kind, json.loads(raw)) for (kind, _), raw in self._records.items()]
            self.publish(*records, anew=True)

    def kill_state(self, *, empty: bool = False) -> None:
        """SIGKILL. ``empty``: and all that it kept is gone."""
        self._state.stop(signal.SIGKILL)
        if empty:
            shutil.rmtree(self.data / "state" / "appendonlydir")

    def _run(self, process: Process) -> Process:
        self._running.append(process)
        return process

    def engine(self, name: str) -> Engine:
        engine = Engine(name)
        self._run(engine.process)
        return engine

    def start_gateway(self, name: str, *, port: int = 0, data: Path | None = None, **env: str) -> Gateway:
        """Start a gateway without waiting for it. ``data``: a folder of its own instead of the common one."""
        gateway = Gateway(self, name, port or free_port(), data or self.data, **env)
        self._run(gateway.process)
        return gateway

    def gateway(self, name: str, *, port: int = 0, data: Path | None = None, **env: str) -> Gateway:
        """Start a gateway and wait until it has seen everything that was published."""
        gateway = self.start_gateway(name, port=port, data=data, **env).wait()
        self.settle(gateway)
        return gateway

    def folder(self, name: str) -> Path:
        """A data folder of its own, with the same secrets."""
        made = self.data / name
        made.mkdir()
        shutil.copy(self.data / "secrets.json", made)
        return made

    def publish(
        self, *records: tuple[str, dict[str, Any]], remove: tuple[tuple[str, str], ...] = (), anew: bool = False
    ) -> int:
        """Publish a delta and return the new version. ``anew``: the state has no snapshot any more."""
        delta: list[tuple[str, str, dict[str, Any] | None]] = [(kind, record["id"], record) for kind, record in records]
        delta += [(kind, record_id, None) for kind, record_id in remove]
        rows: list[str | bytes] = []
        for kind, record_id, record in delta:
            before = self._records.pop((kind, record_id), None)
            if before is not None:
                self._digest = add_digest(self._digest, -record_digest(kind, record_id, before))
            raw = b"" if record is None else json.dumps(record).encode()
            if record is not None:
                self._records[(kind, record_id)] = raw
                self._digest = add_digest(self._digest, record_digest(kind, record_id, raw))
            rows += [kind, record_id, raw, ""]
        expected, self._version = str(self._version or "") if not anew else "", self._version + 1
        answer = run_script(
            self.client,
            script("publish"),
            [META, LOG, "penstock:snap:key-ids"],
            [expected, self._version, str(self._digest), str(time.time()), "1", json.dumps(delta), 10_000, *rows],
        )
        assert answer == 1
        return self._version

    def settle(self, *gateways: Gateway) -> None:
        """Wait until the gateways have seen everything that was published."""
        for gateway in gateways:
            wait_for(
                f"version {self._version} at {gateway.name}",
                lambda url=gateway.url: httpx.get(f"{url}/readyz").json()["snapshot"]["version"] == self._version,
            )

    def journal(self) -> dict[str, dict[str, Any]]:
        """All requests of all journal files by id: ``{"a": admit, "p": [progress], "e": end}``; one end at most."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted((self.data / "journal").glob("*.jsonl")):
            for line in path.read_text().splitlines():
                record = json.loads(line)
                if "id" not in record:
                    continue
                request = found.setdefault(record["id"], {"p": []})
                if record["t"] == "p":
                    request["p"].append(record)
                else:
                    assert record["t"] not in request, f"written twice: {record}"
                    request[record["t"]] = record
        return found

    def ended(self, request_id: str) -> dict[str, Any]:
        """The end line of a request, as soon as it is there."""
        return wait_for(f"the end of {request_id}", lambda: self.journal().get(request_id, {}).get("e"))  # type: ignore[no-any-return]

    def close(self) -> None:
        for process in reversed(self._running):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.stop(signal.SIGKILL)
        self.client.close()
        shutil.rmtree(self.data, ignore_errors=True)


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    try:
        yield made
    finally:
        made.close()
