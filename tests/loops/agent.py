"""A scripted host agent: it speaks the sealed protocol and runs nothing."""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

from worker.spec import (
    AcceleratorReport,
    Address,
    CalibrationOrder,
    CalibrationReport,
    HostOrders,
    HostReport,
    Progress,
    ReplicaOrder,
    ReplicaReport,
    open_orders,
    seal,
)

HEALTHY = ("environment", "starting", "warming", "ready")
BROKEN = ("starting", "failed")


@dataclass
class Engine:
    """One scripted engine: ``script`` holds the phases it lives through, one per step."""

    order: ReplicaOrder
    script: list[str]
    phase: str = "environment"
    reason: str = ""
    launched_at: float = 0.0
    ready_at: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)
    measure: Callable[[CalibrationOrder], CalibrationReport | None] | None = None

    def step(self, now: float) -> None:
        if self.order.intent == "stop" and self.phase not in ("stopped", "failed"):
            self.phase = "stopped"
            if self.order.evidence:
                self.evidence = {"processes": [{"pid": 4711, "state": "T"}], "log_tail": "step 41\nstep 42"}
        elif self.order.intent == "drain" and self.phase == "ready":
            self.phase = "draining"
        elif self.order.intent == "run" and self.script:
            self.phase = self.script.pop(0)
            if self.phase == "ready":
                self.ready_at = now
            if self.phase == "failed":
                self.reason = "out of memory: lower the context length"

    def report(self, address: Address | None = None) -> ReplicaReport:
        address = address or Address(host="127.0.0.1", port=20000 + int(self.order.replica_id[-3:], 16))
        return ReplicaReport(
            replica_id=self.order.replica_id,
            phase=self.phase,  # type: ignore[arg-type]
            reason=self.reason,
            pid=4711,
            address=address if self.phase in ("warming", "ready", "draining") else None,
            engine_version="scripted 1.0",
            max_model_len=4096,
            progress=Progress(step=self.phase, share=0.5) if self.phase == "environment" else None,
            metrics=self.metrics,
            launched_at=self.launched_at,
            ready_at=self.ready_at,
            exit_code=1 if self.phase == "failed" else None,
            log_tail="Traceback: out of memory" if self.phase == "failed" else "",
            evidence=self.evidence,
            attempt=self.order.attempt,
            calibration=self.measure(self.order.calibration) if self.measure and self.order.calibration else None,
        )


class ScriptedAgent:
    """``behaviour`` gives the phases of a new engine."""

    def __init__(self, client: redis.Redis, host_id: str, secret: bytes) -> None:
        self.client, self.host_id, self.secret = client, host_id, secret
        self.boot_id = str(uuid.uuid4())
        self.sequence = 0
        self.orders = HostOrders(host_id=host_id, generation=0, replicas=())
        self.engines: dict[str, Engine] = {}
        self.behaviour: Callable[[ReplicaOrder], Sequence[str]] = lambda order: HEALTHY
        self.measure: Callable[[CalibrationOrder], CalibrationReport | None] | None = None
        """What its engines' measurements tell; None: this agent does not know how to measure."""
        self.address: Address | None = None
        """Where all its engines listen; None: a port each, on which nobody answers."""
        self.accelerators: tuple[AcceleratorReport, ...] = ()
        self.hostname = socket.gethostname()
        """Agents of this machine, unless told otherwise."""

    def restart(self) -> None:
        """A new agent process: it finds its engines running and reads the orders anew."""
        self.boot_id, self.sequence = str(uuid.uuid4()), 0
        self.orders = HostOrders(host_id=self.host_id, generation=0, replicas=())

    def step(self, now: float) -> None:
        """Read the orders, then let every engine live one phase further."""
        raw = self.client.get(f"agent:orders:{self.host_id}")
        if raw is not None:
            orders = open_orders(json.loads(raw), host_id=self.host_id, secret=self.secret)
            if orders.generation > self.orders.generation:
                self.orders = orders
        wanted = {order.replica_id: order for order in self.orders.replicas}
        for replica_id in list(self.engines):
            if replica_id not in wanted and self.orders.generation:
                del self.engines[replica_id]
        for replica_id, order in wanted.items():
            engine = self.engines.get(replica_id)
            if engine is None:
                self.engines[replica_id] = Engine(
                    order, list(self.behaviour(order)), launched_at=now, measure=self.measure
                )
            else:
                engine.order = order
                engine.step(now)

    def report(self, now: float) -> HostReport:
        self.sequence += 1
        return HostReport(
            host_id=self.host_id,
            boot_id=self.boot_id,
            sequence=self.sequence,
            generation=self.orders.generation,
            agent_version="1",
            agent_pid=1,
            hostname=self.hostname,
            cores=8,
            memory_bytes=32 << 30,
            memory_available_bytes=30 << 30,
            load_1m=0.5,
            accelerators=self.accelerators,
            replicas=tuple(engine.report(self.address) for engine in self.engines.values()),
            sent_at=now,
        )

    def envelope(self, now: float) -> dict[str, Any]:
        return seal(self.report(now), secret=self.secret)
