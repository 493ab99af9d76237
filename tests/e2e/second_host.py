"""A second host on this machine: an agent of a folder of its own, with engines of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.e2e.stack import ROOT, Stack, with_suppressed


@dataclass
class SecondHost:
    """``labels`` are what placement asks for. ``first`` is the name of the host that was there."""

    stack: Stack
    folder: Path
    labels: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    first: str = ""

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

    def ready_on(self, name: str, deployment: str) -> int:
        rows = self.stack.rows(
            "select count(*) as number from serving_replica r join capacity_host h on h.id = r.host_id "
            "join serving_deployment d on d.id = r.deployment_id where h.name = ? and d.name = ? and r.state = 'ready'",
            name,
            deployment,
        )
        return int(rows[0]["number"])

    def held(self) -> list[str]:
        rows = self.stack.rows(
            "select r.state from serving_replica r join capacity_host h on h.id = r.host_id "
            "where h.name = 'second' and r.state not in ('stopped', 'failed')"
        )
        return [str(row["state"]) for row in rows]

    def start(self) -> None:
        """Enrol it, and start its agent."""
        told = self.stack.manage(
            "from capacity.models import Host\n"
            "from capacity.services import host_enrol\n"
            "first = Host.objects.get()\n"
            "host, secret = host_enrol(\n"
            f"    name='second', hardware_type=first.hardware_type, labels={self.labels!r}, actor='test'\n"
            ")\n"
            "print('HOST', host.pk, secret.hex(), first.name)"
        )
        host_id, secret, self.first = told.split("HOST ")[1].split()[:3]
        known = json.loads((self.stack.data / "agent" / "agent.json").read_text())
        self.folder.mkdir()
        config = self.folder / "agent.json"
        config.touch(mode=0o600)
        config.write_text(json.dumps({**known, "host_id": host_id, "name": "second", "secret": secret}))
        self.boot()

    def boot(self) -> None:
        """Start the agent, as the host's own start does."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "DJANGO_"))}
        with (self.folder / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker", "--config", str(self.folder / "agent.json")],
                cwd=ROOT,
                env=kept,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def lose(self) -> None:
        """Everything on it ends at once, as when the power goes."""
        engines = self.engines
        if self.process is not None:
            self.process.kill()
            self.process.wait(60)
        for engine in engines:
            with_suppressed(engine.kill)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)
        for engine in self.engines:
            with_suppressed(engine.kill)
