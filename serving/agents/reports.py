"""Reports: what an agent sees becomes the state of its host and of the replicas that are placed there."""

from __future__ import annotations

import datetime
import ipaddress
import logging
import re
import socket
import uuid
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import redis
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from capacity.models import Accelerator, Host
from serving.agents.calibrations import calibration_told
from serving.agents.envelopes import ReportRejected
from serving.agents.logs import logs_keep
from serving.gateway.state import replica_ring, ring_push
from serving.models import Deployment, Incident, Replica
from serving.policy.lifecycle import State, Transition, intent_of, next_state
from serving.services import incident_evidence_add, incident_open, replica_transition
from tenants.changes import record_change
from worker.spec import Address, HostReport, ReplicaReport

log = logging.getLogger(__name__)

RING_SAMPLES = 900
_LARGEST = 2**62
"""Generations and sequences are kept in 63 bits, and count on."""
_FACTS_EVERY_S = 5.0
_BOOTS_KEPT = 32
_LOG_TAIL_CHARS = 8000
_COLD_START_WEIGHT = 0.3
"""Of the newest launch in the average of launches."""
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*|[0-9a-fA-F:]+")
_PUBLISHED = frozenset({"address", "max_model_len"})
"""Columns of a serving replica that the snapshot tells; the least context length is the deployment's."""
_GAUGES = frozenset({"memory_available_bytes", "load_1m", "accelerators"})
"""Facts that always move: they are written when it is time, not because they changed."""


@dataclass(slots=True)
class Applied:
    """``changed``: a replica's state, address or context length moved, so the snapshot should move at once."""

    changed: bool = False
    foreign: int = 0
    transitions: list[Transition] = field(default_factory=list)


def report_apply(report: HostReport, *, client: redis.Redis, now: datetime.datetime | None = None) -> Applied:
    """Apply a verified report. Raises ReportRejected for one that is older than what is known.

    ``foreign`` counts replicas it spoke of that are not placed on its host: they are passed over.
    """
    now = now or timezone.now()
    report = _without_nul(report)
    host = _accept(report, now=now)
    applied = Applied()
    applied.foreign += logs_keep(report, host, client=client)
    placed = {
        str(replica.id): replica
        for replica in Replica.objects.filter(host=host)
        .exclude(state__in=(Replica.State.STOPPED, Replica.State.FAILED))
        .select_related("deployment")
    }
    samples: dict[str, Any] = {}
    for seen in report.replicas:
        replica = placed.pop(seen.replica_id, None)
        if replica is None:
            applied.foreign += _is_foreign(seen.replica_id, host)
            continue
        if replica.calibration_id is not None and seen.calibration is not None:
            calibration_told(replica=replica, told=seen.calibration, kv_tokens=seen.kv_tokens, now=now)
        if seen.attempt >= replica.attempt:
            _apply_replica(replica, seen, applied, hostname=report.hostname, now=now)
        if seen.metrics:
            samples[replica_ring(seen.replica_id)] = {"at": seen.metrics_at or report.sent_at, **seen.metrics}
    if report.generation > host.generation:
        _catch_up(host, report, now=now)
    elif report.generation == host.generation and host.orders_digest:
        for replica in placed.values():
            _move(replica, _transition(replica, None, ""), {}, applied, now=now)
    if samples:
        ring_push(client, samples, keep=RING_SAMPLES)
    return applied


def _without_nul(report: HostReport) -> HostReport:
    """``report`` without NUL characters: an engine may write them into its log, and PostgreSQL stores none."""
    return msgspec.convert(_cleaned(msgspec.to_builtins(report)), HostReport)


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "")
    if isinstance(value, dict):
        return {_cleaned(name): _cleaned(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(item) for item in value]
    return value


def _accept(report: HostReport, *, now: datetime.datetime) -> Host:
    """Swap the host's sequence forward. Raises ReportRejected for a replay or an unknown host."""
    host = Host.objects.filter(pk=report.host_id).first()
    if host is None:
        raise ReportRejected("unknown_host", "it names a host that is not enrolled here")
    if not (0 <= report.generation <= _LARGEST and 0 <= report.sequence <= _LARGEST):
        raise ReportRejected("malformed", f"host {host.name}: its generation or sequence is no number to count with")
    known: dict[str, Any] = host.report
    boots: list[str] = known.get("boots", [])
    if report.boot_id != host.boot_id and report.boot_id in boots:
        raise ReportRejected("replayed", f"host {host.name}: it is of an agent process that has been replaced")
    fields: dict[str, Any] = {
        "boot_id": report.boot_id,
        "report_sequence": report.sequence,
        "last_report_at": now,
        "acknowledged_generation": report.generation,
        "updated_at": now,
    }
    facts = host_facts(report)
    is_due = now.timestamp() - known.get("at", 0.0) >= _FACTS_EVERY_S
    if is_due or report.boot_id != host.boot_id or _moved(known, facts):
        if report.boot_id not in boots:
            boots = [*boots, report.boot_id][-_BOOTS_KEPT:]
        fields["report"] = {**facts, "at": now.timestamp(), "boots": boots}
    newer = Q(boot_id=host.boot_id) if report.boot_id != host.boot_id else Q(report_sequence__lt=report.sequence)
    if not Host.objects.filter(newer, pk=host.pk, boot_id=host.boot_id).update(**fields):
        raise ReportRejected("replayed", f"host {host.name}: sequence {report.sequence} is not new")
    _sync_accelerators(host, report)
    return host


def _catch_up(host: Host, report: HostReport, *, now: datetime.datetime) -> None:
    """Count orders on from what the agent has: it takes none that are older.

    It knows newer ones than the database when that was restored from a backup. What it does not run of what the
    database believes in is not gone, but was never ordered: the next orders say.
    """
    swapped = Host.objects.filter(pk=host.pk, generation=host.generation).update(
        generation=report.generation, orders_digest="", updated_at=now
    )
    if swapped:
        log.warning(
            "host %s has orders of generation %d, the database only %d (restored from a backup?): counting on from it",
            host.name,
            report.generation,
            host.generation,
        )


def host_facts(report: HostReport) -> dict[str, Any]:
    """What is kept of a host: sizes in bytes, load as the kernel tells it."""
    return {
        "hostname": report.hostname,
        "agent_version": report.agent_version,
        "agent_pid": report.agent_pid,
        "cores": report.cores,
        "cpu_model": report.cpu_model,
        "memory_bytes": report.memory_bytes,
        "memory_available_bytes": report.memory_available_bytes,
        "load_1m": report.load_1m,
        "environments": [msgspec.to_builtins(environment) for environment in report.environments],
        "accelerators": [msgspec.to_builtins(accelerator) for accelerator in report.accelerators],
    }


def _moved(known: dict[str, Any], facts: dict[str, Any]) -> bool:
    return any(known.get(name) != value for name, value in facts.items() if name not in _GAUGES)


def _sync_accelerators(host: Host, report: HostReport) -> None:
    there = {row.index: row for row in Accelerator.objects.filter(host=host)}
    seen = {accelerator.index: accelerator for accelerator in report.accelerators}
    for index, accelerator in seen.items():
        facts = {"uuid": accelerator.uuid, "name": accelerator.name, "memory_bytes": accelerator.memory_bytes}
        row = there.get(index)
        if row is None or not row.is_healthy or any(getattr(row, name) != value for name, value in facts.items()):
            Accelerator.objects.update_or_create(host=host, index=index, defaults={**facts, "is_healthy": True})
    gone = [row.pk for index, row in there.items() if index not in seen and row.is_healthy]
    if gone:
        Accelerator.objects.filter(pk__in=gone).update(is_healthy=False, updated_at=timezone.now())


def _is_foreign(replica_id: str, host: Host) -> int:
    """1 for a replica that is not this host's; one that has ended is still being forgotten by the agent."""
    try:
        pk = uuid.UUID(replica_id)
    except ValueError:
        return 1
    return 0 if Replica.objects.filter(pk=pk, host=host).exists() else 1


def _transition(replica: Replica, seen: ReplicaReport | None, detail: str, unreachable: str = "") -> Transition:
    # A drain is ended by the reconcile loop, which knows what is in flight; a report must not.
    state = cast(State, replica.state)
    is_held = replica.calibration_id is not None
    return next_state(
        state,
        seen.phase if seen else None,
        "run" if is_held else intent_of(state),
        detail=detail,
        unreachable=unreachable,
        in_flight=1,
        state_age_s=0.0,
        drain_s=1.0,
        held=is_held,
    )


def _apply_replica(
    replica: Replica, seen: ReplicaReport, applied: Applied, *, hostname: str, now: datetime.datetime
) -> None:
    if replica.kill:
        _merge_evidence(str(replica.pk), seen, now=now)
    why_not = unreachable(seen.address, hostname)
    facts = _facts(replica, seen)
    if why_not:
        facts.pop("ready_at", None)
    _move(replica, _transition(replica, seen, seen.reason, why_not), facts, applied, now=now, seen=seen)


def unreachable(address: Address | None, hostname: str) -> str:
    """Why gateways cannot reach an engine at ``address`` on the machine called ``hostname``; empty when they can.

    Engines listen on loopback, and there is no ingress for other machines yet: an agent elsewhere would have requests
    sent to whatever listens on that port here.
    """
    if address is None or not _is_loopback(address.host) or hostname == socket.gethostname():
        return ""
    return (
        f"The engine serves, but listens on {address.host} of {hostname or 'another machine'} only, where no gateway "
        "can reach it. Run the agent on the machine of the gateways; cordon this host, so that nothing is placed there."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _facts(replica: Replica, seen: ReplicaReport) -> dict[str, Any]:
    """The columns that the report changes."""
    facts: dict[str, Any] = {
        "phase": seen.phase,
        "progress": msgspec.to_builtins(seen.progress) if seen.progress else {},
        "pid": seen.pid,
        "launched_at": _time(seen.launched_at),
        "ready_at": _time(seen.ready_at) or replica.ready_at,
    }
    if seen.address is not None and (address := engine_url(seen.address)):
        facts["address"] = address
    if seen.engine_version:
        facts["engine_version"] = seen.engine_version[:60]
    if seen.max_model_len is not None:
        facts["max_model_len"] = seen.max_model_len
    return {name: value for name, value in facts.items() if getattr(replica, name) != value}


def engine_url(address: Address) -> str:
    """The base URL of an engine; empty for an address that would name anything but a host and a port."""
    if not _HOST.fullmatch(address.host) or not 0 < address.port < 65536:
        return ""
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"http://{host}:{address.port}"


def _time(seconds: float | None) -> datetime.datetime | None:
    return None if seconds is None else datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _move(
    replica: Replica,
    transition: Transition,
    facts: dict[str, Any],
    applied: Applied,
    *,
    now: datetime.datetime,
    seen: ReplicaReport | None = None,
) -> None:
    """Write what the report changes: columns by compare-and-swap, and the state where the life cycle says so."""
    becomes_ready = transition.is_change and transition.state == "ready"
    if not transition.is_change or (becomes_ready and not facts.get("address", replica.address)):
        _update_facts(replica, transition, facts, applied, now=now)
        return
    was_ready = replica.ready_at is not None
    with transaction.atomic():
        if not replica_transition(replica=replica, to=transition.state, reason=transition.reason, now=now, **facts):
            return
        if transition.state == "failed":
            _open_incident(replica, transition, seen, was_ready=was_ready, now=now)
        if becomes_ready:
            _learn_from_ready(replica, seen)
    applied.changed = True
    applied.transitions.append(transition)
    log.info("%s: %s → %s (%s)", replica, transition.before, transition.state, transition.reason)


def _update_facts(
    replica: Replica, transition: Transition, facts: dict[str, Any], applied: Applied, *, now: datetime.datetime
) -> None:
    if replica.state == Replica.State.STARTING and replica.reason != transition.reason[:500]:
        facts = {**facts, "reason": transition.reason[:500]}
    if not facts:
        return
    is_serving = replica.state in (Replica.State.READY, Replica.State.DRAINING)
    is_published = is_serving and not _PUBLISHED.isdisjoint(facts)
    with transaction.atomic():
        swapped = Replica.objects.filter(pk=replica.pk, state=replica.state).update(**facts, updated_at=now)
        if swapped and is_published:
            record_change(kind="replica", object_id=replica.pk)
            applied.changed = True


def _learn_from_ready(replica: Replica, seen: ReplicaReport | None) -> None:
    """The deployment's cold start, as an average that follows the newest launches; its context length."""
    if replica.max_model_len is not None:
        record_change(kind="deployment", object_id=replica.deployment_id)
    if seen is None or seen.adopted or seen.launched_at is None or seen.ready_at is None:
        return
    took_s = max(0.1, seen.ready_at - seen.launched_at)
    known = Replica.objects.filter(deployment=replica.deployment_id, ready_at__isnull=False).exclude(pk=replica.pk)
    old_s = replica.deployment.cold_start_s
    # The first launch replaces the default, which nobody measured.
    new_s = old_s + (took_s - old_s) * (_COLD_START_WEIGHT if known.exists() else 1.0)
    Deployment.objects.filter(pk=replica.deployment_id, cold_start_s=old_s).update(cold_start_s=new_s)


def _open_incident(
    replica: Replica, transition: Transition, seen: ReplicaReport | None, *, was_ready: bool, now: datetime.datetime
) -> None:
    kind = Incident.Kind.CRASH if was_ready else Incident.Kind.START_FAILED
    what = "crashed" if was_ready else "did not start"
    incident_open(
        kind=kind,
        summary=f"{replica} {what}: {transition.reason}",
        replica=replica,
        evidence=_evidence(seen) if seen else {},
        now=now,
    )


def _evidence(seen: ReplicaReport) -> dict[str, Any]:
    """What the agent kept of a broken engine; it holds no prompt, and the agent has cut secrets out of the log."""
    found: dict[str, Any] = dict(seen.evidence)
    if seen.log_tail:
        found.setdefault("log_tail", seen.log_tail[-_LOG_TAIL_CHARS:])
    if seen.exit_code is not None:
        found["exit_code"] = seen.exit_code
    if seen.metrics:
        found.setdefault("metrics", seen.metrics)
    return found


def _merge_evidence(replica_id: str, seen: ReplicaReport, *, now: datetime.datetime) -> None:
    """Add the agent's evidence to the replica's hang; the report repeats it each second, one time is enough."""
    if not seen.evidence:
        return
    hang = Incident.objects.filter(kind=Incident.Kind.HANG, replica_id=replica_id).order_by("-opened_at").first()
    if hang is None or "agent" in hang.evidence:
        return
    incident_evidence_add(
        incident=hang,
        evidence={"agent": _evidence(seen)},
        what="the agent kept evidence and killed the engine",
        now=now,
    )
