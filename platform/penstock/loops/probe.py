"""Probe, each 5 s: a real answer at top priority from replicas that showed no life lately; the dead are killed.

``serving.policy.health`` decides whom to ask, what an answer means, and how many may be killed for it.
"""

import datetime
import json
import logging
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import redis

from capacity.models import CostProfile, Host
from capacity.policy.profiles import engine_ms_per_mu
from capacity.selectors import profiles_in_force
from penstock.loops.asking import Question, ask, take_answer
from penstock.loops.dispatch import orders_send
from penstock.loops.isolation import is_news, isolated
from serving.agents.hangs import replica_condemn
from serving.gateway.loads import GatewayBeat, read_beats
from serving.gateway.state import policy_state_read, policy_state_write, replica_ring, ring_read_many
from serving.models import Incident, Replica, Revision
from serving.options import probe_of
from serving.policy import health
from worker.options import LONGEST_REQUEST_S, ProbeRequest

log = logging.getLogger(__name__)

_LOOP = "probe"
_KEEP_S = 3600
_BUDGET_WINDOW_S = 600.0
_CPU_BATCH_TOKENS, _BATCH_TOKENS = 2048, 8192
"""Input tokens of vLLM's longest step where a revision does not say ``max_num_batched_tokens``."""
CONFIG = health.Config()


@dataclass(slots=True)
class Watched:
    """A replica in the rotation and what is remembered of it."""

    replica: Replica
    request: ProbeRequest
    config: health.Config
    memory: health.Memory
    sighting: health.Sighting
    in_flight_by_gateway: dict[str, int] = field(default_factory=dict)


def probe(client: redis.Redis, *, now: float) -> list[uuid.UUID]:
    """Look at every replica in the rotation, ask where it is due, and condemn the dead; their ids.

    Answers are found by a later tick: none waits for an engine.
    """
    watched = _watch(client, now=now)
    questions = []
    for item in watched:
        if health.should_probe(item.config, item.memory, now=now).is_due:
            item.memory = health.asked(item.memory, now=now)
            replica, timeout_s = item.replica, item.config.probe_timeout_s
            questions.append(Question(str(replica.pk), replica.address, item.request, timeout_s))
        _remember(client, item)
    if questions:
        ask(client, questions)
    return _condemn(client, watched, now=now)


def _watch(client: redis.Redis, *, now: float) -> list[Watched]:
    replicas = list(
        # Nobody else may ask an engine that is being measured.
        Replica.objects.filter(state__in=(Replica.State.READY, Replica.State.DRAINING), calibration_id=None)
        .exclude(address="")
        .select_related("deployment", "revision")
    )
    beats = read_beats(client)
    rings = ring_read_many(client, [replica_ring(str(replica.id)) for replica in replicas], 1)
    at = datetime.datetime.fromtimestamp(now, datetime.UTC)
    profiles = profiles_in_force(at=at)
    watched: list[Watched] = []
    for replica in replicas:
        with isolated(f"the probe of {replica}"):
            replica_id = str(replica.id)
            config = CONFIG.for_steps(longest_step_s(replica, profiles.get(replica.deployment.pool_id)))
            memory = _with_answer(client, replica, _memory(client, replica_id))
            seen = sighting(replica_id, beats, rings[replica_ring(replica_id)])
            memory = health.look(memory, seen, now=now, config=config)
            by_gateway = {b.gateway: b.replicas[replica_id].n for b in beats if replica_id in b.replicas}
            revision = replica.revision
            request = probe_of(revision.runtime, revision.options, model=replica.deployment.name)
            watched.append(Watched(replica, request, config, memory, seen, by_gateway))
    return watched


def longest_step_s(replica: Replica, profile: CostProfile | None) -> float:
    """Seconds that one step of an engine may take: a whole batch of input tokens, by its price. 0 without a price.

    Of one without steps, the longest that a request may keep the others waiting, as its revision says.
    """
    if replica.revision.runtime in (Revision.Runtime.MLFLOW, Revision.Runtime.COMMAND):
        return float(replica.revision.options.get("longest_request_s", LONGEST_REQUEST_S))
    if profile is None:
        return 0.0
    tokens = replica.revision.options.get("max_num_batched_tokens")
    if not isinstance(tokens, int) or tokens < 1:
        tokens = _CPU_BATCH_TOKENS if profile.hardware_type.is_cpu else _BATCH_TOKENS
    return tokens * profile.alpha * engine_ms_per_mu(replica.supply_mu_per_min) / 1000.0


def _with_answer(client: redis.Redis, replica: Replica, memory: health.Memory) -> health.Memory:
    """``memory`` with the result of the probe that was asked by an earlier tick, when it is known."""
    if memory.asked_at is None:
        return memory
    answer = take_answer(client, str(replica.pk), since=memory.asked_at)
    if answer is None:
        return memory
    if answer.outcome == "rejected" and is_news(f"{replica} rejects probes"):
        log.error(
            "%s does not take the probe (%s), so nobody can tell whether it hangs: it serves another model name or "
            "API than was ordered. Look at its log, and make a new revision",
            replica,
            answer.detail,
        )
    return health.record_probe(memory, answer)


def sighting(replica_id: str, beats: Sequence[GatewayBeat], metrics: Sequence[Mapping[str, Any]]) -> health.Sighting:
    """What gateways and agent say of a replica now; ``metrics`` holds its newest ring sample, if any."""
    loads = {beat.gateway: load for beat in beats if (load := beat.replicas.get(replica_id))}
    newest = metrics[0] if metrics else {}
    return health.Sighting(
        token_marks={gateway: load.last_token_at for gateway, load in loads.items()},
        success_marks={gateway: load.last_success_at for gateway, load in loads.items()},
        in_flight=sum(load.n for load in loads.values()),
        generation_tokens=newest.get("generation_tokens_total"),
        prompt_tokens=newest.get("prompt_tokens_total"),
        process_start=newest.get("process_start_seconds"),
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
        verdict = health.judge(item.config, item.memory, now=now)
        if verdict.status == "dead" and item.replica.state == Replica.State.READY:
            dead[item.replica.deployment_id].append((item, verdict))
    condemned: list[uuid.UUID] = []
    for deployment_id, cases in dead.items():
        budget = _budget(deployment_id, [str(item.replica.pk) for item, _ in cases], now=at)
        for item, verdict in cases:
            with isolated(f"the end of {item.replica}, which hangs"):
                condemned += _end(item, verdict, budget, at=at)
    for host in Host.objects.filter(replicas__in=condemned).distinct() if condemned else ():
        with isolated(f"the orders of host {host}"):
            orders_send(host, client=client, now=at)
    return condemned


def _end(item: Watched, verdict: health.Verdict, budget: health.Budget, *, at: datetime.datetime) -> list[uuid.UUID]:
    """Condemn a dead replica unless the budget spares it; its id when it was condemned."""
    if why := budget.spared.get(str(item.replica.pk)):
        log.warning("%s looks dead (%s) and is spared for now: %s", item.replica, verdict.reason, why)
        return []
    done = replica_condemn(replica=item.replica, reason=verdict.reason, evidence=evidence(item, verdict), now=at)
    return [item.replica.pk] if done else []


def _budget(deployment_id: uuid.UUID, dead: Sequence[str], *, now: datetime.datetime) -> health.Budget:
    states = (Replica.State.READY, Replica.State.DRAINING)
    serving = Replica.objects.filter(deployment=deployment_id, state__in=states).count()
    window = now - datetime.timedelta(seconds=_BUDGET_WINDOW_S)
    hangs = Incident.objects.filter(deployment_id=deployment_id, kind=Incident.Kind.HANG)
    # A killed engine is gone within seconds; its place is empty until the incident closes.
    being_replaced = hangs.filter(closed_at=None).count()
    return health.restart_budget(
        dead,
        replicas=serving + being_replaced,
        being_replaced=being_replaced,
        killed_at=[at.timestamp() for at in hangs.filter(opened_at__gte=window).values_list("opened_at", flat=True)],
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
