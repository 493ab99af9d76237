"""The agent's report of its host and replicas. Pure but for the host's name and this process's number."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from importlib import metadata
from typing import NamedTuple

import msgspec

from worker.config import AgentConfig
from worker.host import HostState
from worker.spec import (
    AcceleratorReport,
    Address,
    CalibrationReport,
    EnvironmentReport,
    HostReport,
    Progress,
    ReplicaReport,
)
from worker.state import ReplicaState
from worker.watch import EngineView

DETAIL_S = 30.0
"""Log tail and evidence travel with every report for this long after a change, then with each 30th."""
DETAIL_EVERY = 30


class ReplicaView(NamedTuple):
    """What belongs to a replica only now: its engine's answers, the progress of its preparation, who launched it,
    what is measured of it."""

    engine: EngineView | None
    progress: Progress | None
    is_adopted: bool
    calibration: CalibrationReport | None = None


def agent_version() -> str:
    """Return the installed version of Penstock."""
    try:
        return metadata.version("penstock")
    except metadata.PackageNotFoundError:
        return "unknown"


def build_report(
    *,
    config: AgentConfig,
    generation: int,
    host: HostState,
    accelerators: tuple[AcceleratorReport, ...],
    environments: tuple[EnvironmentReport, ...],
    replicas: Iterable[tuple[ReplicaState, ReplicaView]],
    now: float,
) -> HostReport:
    """Return the report, without boot id and sequence: the sender numbers what it sends."""
    return HostReport(
        host_id=config.host_id,
        boot_id="",
        sequence=0,
        generation=generation,
        agent_version=agent_version(),
        agent_pid=os.getpid(),
        hostname=socket.gethostname(),
        cores=max(1, int(host.cores)),
        memory_bytes=host.memory_bytes,
        memory_available_bytes=host.memory_available_bytes,
        load_1m=host.load_1m,
        cpu_model=host.cpu_model,
        accelerators=accelerators,
        environments=environments,
        replicas=tuple(_replica(state, view) for state, view in replicas),
        sent_at=now,
    )


def _replica(state: ReplicaState, seen: ReplicaView) -> ReplicaReport:
    engine, plan, process = seen.engine, state.plan, state.process
    return ReplicaReport(
        replica_id=state.replica_id,
        phase=state.phase,
        reason=state.reason,
        pid=process.pid if process is not None else None,
        pid_started=process.started if process is not None else None,
        address=Address(host=plan.host, port=plan.port) if plan is not None and process is not None else None,
        engine_version=state.engine_version,
        max_model_len=state.max_model_len,
        kv_tokens=state.kv_tokens,
        progress=seen.progress,
        metrics=dict(engine.metrics) if engine is not None else {},
        metrics_at=engine.metrics_at if engine is not None else None,
        launched_at=state.launched_at,
        ready_at=state.ready_at,
        exit_code=state.exit_code,
        log_tail=state.log_tail,
        evidence=state.evidence,
        attempt=state.attempt,
        adopted=seen.is_adopted,
        calibration=seen.calibration,
    )


def without_details(report: HostReport, *, sequence: int, since: dict[str, float], now: float) -> HostReport:
    """Return ``report`` without log tails and evidence that were sent often enough.

    ``since`` gives for each replica when its phase or evidence last changed.
    """
    if sequence % DETAIL_EVERY == 0:
        return report
    replicas = tuple(
        each
        if now - since.get(each.replica_id, now) < DETAIL_S
        else msgspec.structs.replace(each, log_tail="", evidence={})
        for each in report.replicas
    )
    return msgspec.structs.replace(report, replicas=replicas)
