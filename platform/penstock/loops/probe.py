"""Probe, each 5 s: a real token at top priority from replicas that showed no life lately; the dead are killed.

Probes go straight to the engine, past the gateways: they are nobody's usage. ``serving.policy.health`` decides whom to
ask, what an answer means, and how many may be killed for it.
"""

import asyncio
import datetime
import json
import logging
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp
import redis

from capacity.models import Host
from penstock.loops.dispatch import orders_send
from serving.agents.hangs import replica_condemn
from serving.gateway.loads import GatewayBeat, read_beats
from serving.gateway.state import policy_state_read, policy_state_write, replica_ring, ring_read_many
from serving.models import Incident, Replica
from serving.policy import health

log = logging.getLogger(__name__)

_LOOP = "probe"
_PRIORITY = -1000
"""Lower is sooner. Gateways never send one below 0 (the engine keeps a slot that only the probe can use)."""
_KEEP_S = 3600
_ANSWER_BYTES = 65536
_BUDGET_WINDOW_S = 600.0
CONFIG = health.Config()


@dataclass(slots=True)
class Watched:
    """A replica in the rotation and what is remembered of it."""

    replica: Replica
    memory: health.Memory
    sighting: health.Sighting
    in_flight_by_gateway: dict[str, int] = field(default_factory=dict)


def probe(client: redis.Redis, *, now: float) -> list[uuid.UUID]:
    """Look at every replica in the rotation, probe where it is due, and condemn the dead; their ids."""
    watched = _watch(client, now=now)
    due = [item for item in watched if health.should_probe(CONFIG, item.memory, now=now).is_due]
    results = asyncio.run(probe_all([item.replica for item in due])) if due else []
    for item, result in zip(due, results, strict=True):
        item.memory = health.record_probe(item.memory, result)
    for item in watched:
        _remember(client, item)
    return _condemn(client, watched, now=time.time() if due else now)


async def probe_all(replicas: Sequence[Replica]) -> list[health.Probe]:
    """Probe all of them at once; as many results, in the same order, within one timeout."""
    timeout = aiohttp.ClientTimeout(total=CONFIG.probe_timeout_s)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=256)) as session:
        return await asyncio.gather(*(_probe_one(session, replica) for replica in replicas))


async def _probe_one(session: aiohttp.ClientSession, replica: Replica) -> health.Probe:
    started_at = time.time()
    outcome, detail = await _ask(session, replica.address, replica.deployment.name)
    return health.Probe(started_at=started_at, ended_at=time.time(), outcome=outcome, detail=detail)


async def _ask(session: aiohttp.ClientSession, address: str, model: str) -> tuple[health.ProbeOutcome, str]:
    body = {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0, "priority": _PRIORITY}
    headers = {"X-Request-Id": f"probe-{uuid.uuid4()}"}
    try:
        async with session.post(f"{address}/v1/completions", json=body, headers=headers) as response:
            text = await response.content.read(_ANSWER_BYTES)
            return classify(response.status, text)
    except TimeoutError:
        return "timeout", ""
    except (aiohttp.ClientError, OSError) as error:
        return "refused", type(error).__name__


def classify(status: int, body: bytes) -> tuple[health.ProbeOutcome, str]:
    """What an answer to the probe says. A 200 counts only with a token in it."""
    if status in (429, 503):
        return "busy", f"HTTP {status}"
    if status != 200:
        return "server_error", f"HTTP {status}"
    try:
        answer = json.loads(body)
        if not isinstance(answer, dict) or answer.get("error") or not answer["choices"]:
            return "server_error", "HTTP 200 with an error in it"
    except (ValueError, KeyError):
        return "server_error", "HTTP 200 that is no completion"
    return "ok", ""


def _watch(client: redis.Redis, *, now: float) -> list[Watched]:
    replicas = list(
        Replica.objects.filter(state__in=(Replica.State.READY, Replica.State.DRAINING))
        .exclude(address="")
        .select_related("deployment", "host")
    )
    beats = read_beats(client)
    rings = ring_read_many(client, [replica_ring(str(replica.id)) for replica in replicas], 1)
    watched = []
    for replica in replicas:
        seen = sighting(replica, beats, rings[replica_ring(str(replica.id))])
        memory = health.look(_memory(client, str(replica.id)), seen, now=now, config=CONFIG)
        by_gateway = {b.gateway: b.replicas[str(replica.id)].n for b in beats if str(replica.id) in b.replicas}
        watched.append(Watched(replica, memory, seen, by_gateway))
    return watched


def sighting(replica: Replica, beats: Sequence[GatewayBeat], metrics: Sequence[Mapping[str, Any]]) -> health.Sighting:
    """What gateways and agent say of a replica now; ``metrics`` holds its newest ring sample, if any."""
    loads = {beat.gateway: load for beat in beats if (load := beat.replicas.get(str(replica.id)))}
    newest = metrics[0] if metrics else {}
    is_reported = replica.host is not None and replica.host.state != Host.State.LOST
    return health.Sighting(
        token_marks={gateway: load.last_token_at for gateway, load in loads.items()},
        success_marks={gateway: load.last_success_at for gateway, load in loads.items()},
        in_flight=sum(load.n for load in loads.values()),
        generation_tokens=newest.get("generation_tokens_total"),
        prompt_tokens=newest.get("prompt_tokens_total"),
        process_start=newest.get("process_start_seconds"),
        is_running=True if is_reported else None,
    )


def _memory(client: redis.Redis, replica_id: str) -> health.Memory:
    stored = policy_state_read(client, _LOOP, replica_id)
    try:
        return health.Memory() if stored is None else health.Memory.from_json(json.dumps(stored))
    except (ValueError, TypeError):
        return health.Memory()  # Of another version: it is learnt anew.


def _remember(client: redis.Redis, item: Watched) -> None:
    replica_id = str(item.replica.id)
    policy_state_write(client, _LOOP, replica_id, json.loads(item.memory.to_json()))
    client.expire(f"penstock:policy:{_LOOP}:{replica_id}", _KEEP_S)


def _condemn(client: redis.Redis, watched: Sequence[Watched], *, now: float) -> list[uuid.UUID]:
    """Kill those that are dead, as far as the restart budget of their deployment goes."""
    at = datetime.datetime.fromtimestamp(now, datetime.UTC)
    dead: dict[uuid.UUID, list[tuple[Watched, health.Verdict]]] = defaultdict(list)
    for item in watched:
        verdict = health.judge(CONFIG, item.memory, now=now)
        if verdict.status == "dead" and item.replica.state == Replica.State.READY:
            dead[item.replica.deployment_id].append((item, verdict))
    condemned: list[uuid.UUID] = []
    for deployment_id, cases in dead.items():
        budget = _budget(deployment_id, [str(item.replica.pk) for item, _ in cases], now=at)
        for item, verdict in cases:
            replica_id = str(item.replica.pk)
            if why := budget.spared.get(replica_id):
                log.warning("%s looks dead (%s) and is spared for now: %s", item.replica, verdict.reason, why)
            elif replica_condemn(replica=item.replica, reason=verdict.reason, evidence=evidence(item, verdict), now=at):
                condemned.append(item.replica.pk)
    if condemned:
        for host in Host.objects.filter(replicas__in=condemned).distinct():
            orders_send(host, client=client, now=at)
    return condemned


def _budget(deployment_id: uuid.UUID, dead: Sequence[str], *, now: datetime.datetime) -> health.Budget:
    rows = Replica.objects.filter(deployment=deployment_id)
    serving = rows.filter(state__in=(Replica.State.READY, Replica.State.DRAINING)).count()
    killed = rows.filter(state=Replica.State.STOPPING, kill=True).count()
    window = now - datetime.timedelta(seconds=_BUDGET_WINDOW_S)
    hangs = Incident.objects.filter(deployment_id=deployment_id, kind=Incident.Kind.HANG, opened_at__gte=window)
    return health.restart_budget(
        dead,
        replicas=serving + killed,
        being_replaced=killed,
        killed_at=[at.timestamp() for at in hangs.values_list("opened_at", flat=True)],
        now=now.timestamp(),
        window_s=_BUDGET_WINDOW_S,
    )


def evidence(item: Watched, verdict: health.Verdict) -> dict[str, Any]:
    """What the control plane knew when it gave up on a replica; the agent adds log, metrics and process states."""
    return {
        "verdict": verdict.reason,
        "in_flight": item.sighting.in_flight,
        "in_flight_by_gateway": item.in_flight_by_gateway,
        "token_marks": dict(item.sighting.token_marks),
        "success_marks": dict(item.sighting.success_marks),
        "last_token_at": item.memory.progressed_at,
        "generation_tokens_total": item.sighting.generation_tokens,
        "failed_probes": [asdict(probe) for probe in item.memory.failures],
    }
