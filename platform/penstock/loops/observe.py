"""Observe, each second: the gateways' heartbeats become one sample per deployment in its ring buffer."""

import msgspec
import redis

from serving.gateway.loads import GatewayBeat, read_beats
from serving.gateway.state import deployment_ring, policy_state_read, policy_state_write, ring_push
from serving.models import Deployment, Replica
from serving.policy.observation import Counts, GatewayCounts, Memory, Sample, differences

RING_SAMPLES = 7200
_LOOP, _OBJECT = "observe", "gateways"


def observe(client: redis.Redis, *, now: float) -> int:
    """Take one sample of every deployment; the number of samples. ``now`` is UNIX seconds."""
    beats = read_beats(client)
    rises, memory = differences(_read_memory(client), map(gateway_counts, beats), now=now)
    policy_state_write(client, _LOOP, _OBJECT, msgspec.to_builtins(memory))
    serving: dict[str, list[Replica]] = {}
    states = (Replica.State.READY, Replica.State.DRAINING)
    for replica in Replica.objects.filter(state__in=states).only("id", "deployment_id", "state", "supply_mu_per_min"):
        serving.setdefault(str(replica.deployment_id), []).append(replica)
    departed = _departed(serving, rises)
    samples = {
        deployment_ring(str(pk)): _sample(str(pk), serving.get(str(pk), []), beats, rises, departed, now=now).as_json()
        for pk in Deployment.objects.values_list("pk", flat=True)
    }
    if samples:
        ring_push(client, samples, keep=RING_SAMPLES)
    return len(samples)


def gateway_counts(beat: GatewayBeat) -> GatewayCounts:
    """The counters of a heartbeat."""
    counts: dict[str, dict[str, float]] = {
        deployment: {
            "offered_mu": counted.offered_mu,
            "offered_requests": counted.offered_requests,
            "refused": counted.refused,
            "completed": counted.completed,
            "reserved_mu": counted.reserved_mu,
            "lent_mu": counted.lent_mu,
        }
        for deployment, counted in beat.deployments.items()
    }
    counts |= {replica: {"departed": load.departed} for replica, load in beat.replicas.items()}
    return GatewayCounts(gateway=beat.gateway, started_at=beat.started_at, counts=counts)


def _read_memory(client: redis.Redis) -> Memory | None:
    stored = policy_state_read(client, _LOOP, _OBJECT)
    try:
        return None if stored is None else msgspec.convert(stored, Memory)
    except msgspec.ValidationError:
        return None  # Written by another version: the counters become the base line anew.


def _departed(serving: dict[str, list[Replica]], rises: dict[str, Counts]) -> dict[str, float]:
    """Requests that left the replicas of each deployment. Those of a replica that broke leave it when it has gone."""
    deployment_of = {str(replica.id): pk for pk, replicas in serving.items() for replica in replicas}
    gone = [key for key, rise in rises.items() if rise["departed"] and key not in deployment_of]
    if gone:
        rows = Replica.objects.filter(pk__in=gone).values_list("pk", "deployment_id")
        deployment_of |= {str(pk): str(deployment_id) for pk, deployment_id in rows}
    departed: dict[str, float] = {}
    for key, deployment_id in deployment_of.items():
        departed[deployment_id] = departed.get(deployment_id, 0.0) + rises.get(key, {}).get("departed", 0.0)
    return departed


def _sample(
    deployment_id: str,
    serving: list[Replica],
    beats: list[GatewayBeat],
    rises: dict[str, Counts],
    departed: dict[str, float],
    *,
    now: float,
) -> Sample:
    loads = [beat.replicas[str(r.id)] for r in serving for beat in beats if str(r.id) in beat.replicas]
    ready = [replica for replica in serving if replica.state == Replica.State.READY]
    rise = rises.get(deployment_id, {})
    return Sample(
        at=now,
        offered_mu=rise.get("offered_mu", 0.0),
        offered_requests=rise.get("offered_requests", 0.0),
        refused=rise.get("refused", 0.0),
        completed=rise.get("completed", 0.0),
        departed=departed.get(deployment_id, 0.0),
        queue_mu=sum(beat.deployments[deployment_id].queue_mu for beat in beats if deployment_id in beat.deployments),
        in_flight=sum(load.n for load in loads),
        in_flight_mu=sum(load.w + load.d for load in loads),
        ready=len(ready),
        capacity_mu_per_min=sum(replica.supply_mu_per_min for replica in ready),
        reserved_mu=rise.get("reserved_mu", 0.0),
        lent_mu=rise.get("lent_mu", 0.0),
    )
