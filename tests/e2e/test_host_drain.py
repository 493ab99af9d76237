"""A host is drained under streams: a second agent on this machine, engines and gateways as they run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import openai
import psutil
import pytest

from tests.e2e.stack import ROOT, Stack, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]
MODEL = "demo-sim"
CALLERS = 6


@dataclass
class Callers:
    """They stream one answer after the other, until they are told to stop."""

    stack: Stack
    whole: int = 0
    failed: list[str] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        self.threads = [threading.Thread(target=self._stream, daemon=True) for _ in range(CALLERS)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(60)

    def _stream(self) -> None:
        client = openai.OpenAI(base_url=self.stack.base_url, api_key=self.stack.key(), max_retries=0)
        while not self.stopping.is_set():
            try:
                with client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "Tell me."}], max_tokens=80, stream=True
                ) as events:
                    reasons = [choice.finish_reason for event in events for choice in event.choices]
                if not any(reasons):
                    self.failed.append("a stream ended without its end")
                self.whole += 1
            except openai.OpenAIError as error:
                self.failed.append(f"{type(error).__name__}: {error}")


@dataclass
class Second:
    """A second host: an agent of its own folder."""

    stack: Stack
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def engines(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("PENSTOCK_AGENT_DIR") == str(self.folder):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return [one for one in found if self.process is None or one.pid != self.process.pid]

    def ready_on(self, name: str) -> int:
        rows = self.stack.rows(
            "select count(*) as number from serving_replica r join capacity_host h on h.id = r.host_id "
            "join serving_deployment d on d.id = r.deployment_id where h.name = ? and d.name = ? and r.state = 'ready'",
            name,
            MODEL,
        )
        return int(rows[0]["number"])

    def held(self) -> list[str]:
        rows = self.stack.rows(
            "select r.state from serving_replica r join capacity_host h on h.id = r.host_id "
            "where h.name = 'second' and r.state not in ('stopped', 'failed')"
        )
        return [str(row["state"]) for row in rows]

    def start(self) -> None:
        told = self.stack.manage(
            "from capacity.models import Host\n"
            "from capacity.services import host_enrol\n"
            "first = Host.objects.get()\n"
            "host, secret = host_enrol(name='second', hardware_type=first.hardware_type, actor='test')\n"
            "print('HOST', host.pk, secret.hex(), first.name)"
        )
        host_id, secret, self.first = told.split("HOST ")[1].split()[:3]
        known = json.loads((self.stack.data / "agent" / "agent.json").read_text())
        self.folder.mkdir()
        config = self.folder / "agent.json"
        config.touch(mode=0o600)
        config.write_text(json.dumps({**known, "host_id": host_id, "name": "second", "secret": secret}))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "DJANGO_"))}
        with (self.folder / "agent.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker", "--config", str(config)],
                cwd=ROOT,
                env=kept,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
        for engine in self.engines:
            engine.kill()


@pytest.fixture
def second(stack: Stack, tmp_path: Path) -> Iterator[Second]:
    made = Second(stack, tmp_path / "second")
    try:
        yield made
    finally:
        made.stop()
        stack.manage(
            "from serving.models import Deployment\nfrom serving.services import deployment_update\n"
            f"deployment_update(deployment=Deployment.objects.get(name='{MODEL}'), actor='test', pinned_replicas=None)"
        )


def act(stack: Stack, what: str) -> None:
    stack.manage(
        "from capacity.models import Host\nfrom capacity.services import host_drain, host_remove\n"
        f"assert {what}(host=Host.objects.get(name='second'), actor='test')"
    )


def test_a_host_is_drained_and_removed_under_streams(stack: Stack, second: Second) -> None:
    second.start()
    wait_for(
        "the report of the second agent",
        lambda: stack.rows("select 1 from capacity_host where name = 'second' and last_report_at is not null"),
        seconds=30,
    )
    stack.manage(
        "from serving.models import Deployment\nfrom serving.services import deployment_update\n"
        f"deployment_update(deployment=Deployment.objects.get(name='{MODEL}'), actor='test', pinned_replicas=2)"
    )
    wait_for("a replica on the second host", lambda: second.ready_on("second") == 1, seconds=60)
    assert second.engines
    callers = Callers(stack)
    callers.start()
    wait_for("streams", lambda: callers.whole >= CALLERS, seconds=60)
    act(stack, "host_drain")
    fewest = 9

    def is_drained() -> bool:
        nonlocal fewest
        fewest = min(fewest, second.ready_on("second") + second.ready_on(second.first))
        return not second.held()

    wait_for("the end of the drain", is_drained, seconds=90)
    wait_for("the end of its engine", lambda: not second.engines, seconds=20)
    before = callers.whole
    wait_for("more streams", lambda: callers.whole >= before + CALLERS, seconds=60)
    callers.stop()
    assert callers.failed == []
    assert fewest == 2, "a replica stopped before its replacement was ready"
    assert second.ready_on(second.first) == 2
    act(stack, "host_remove")
    wait_for(
        "the end of its secret",
        lambda: stack.rows("select 1 from capacity_host where name = 'second' and length(secret) = 0"),
        seconds=20,
    )
