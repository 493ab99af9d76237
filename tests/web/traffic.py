"""The seeded platform's traffic, minute by minute and second by second: one source of rings, roll-ups and decisions."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta

import redis

from capacity.models import UsageRollup
from serving.models import Deployment, Replica
from tenants.models import ApiKey, Tenant

PEAK = {"chat-32b": 255.0, "demo-sim": 90.0}
MEAN_MU = {"chat-32b": 0.29, "demo-sim": 0.12}
"""MU of a mean request: 1,450 input and 430 output tokens, and 620 and 180, by the profile of ``pool``."""
TTFT_MS = {"chat-32b": 268.0, "demo-sim": 121.0}
TOKENS = {"chat-32b": (1450, 640, 430), "demo-sim": (620, 80, 180)}

OF_RESERVATIONS = ("core-banking", "triage")
"""Keys whose requests stay inside their tenants' reservations; what others ask for is best effort."""
RESERVING = 0.8
"""Their share of what is offered to ``chat-32b``."""


def day_shape(at: datetime, phase: float) -> float:
    """Share of the daily peak asked for at ``at`` (0..1): a working day with ripples."""
    hour, minute = at.hour + at.minute / 60, at.timestamp() // 60
    ripple = 0.02 * math.sin(minute * 0.61 + phase) + 0.015 * math.sin(minute * 1.73 + 2 * phase)
    return (0.45 + 0.5 * math.exp(-(((hour - 13.5) / 4.5) ** 2))) * (1 + ripple)


def offered(deployment: str, at: datetime) -> float:
    """MU/min offered in the minute of ``at``: the one source of rings, roll-ups and decisions."""
    return PEAK[deployment] * day_shape(at, len(deployment))


def _rollup(period: str, at: datetime, mu: float, tenant: Tenant, key: ApiKey, deployment: Deployment) -> UsageRollup:
    requests = max(1, round(mu / MEAN_MU[deployment.name]))
    given, cached, out = TOKENS[deployment.name]
    return UsageRollup(
        period=period,
        starts_at=at,
        tenant_id=tenant.pk,
        key_id=key.pk,
        pool_id=deployment.pool_id,
        deployment_id=deployment.pk,
        service_class="reserved" if key.name in OF_RESERVATIONS else "best_effort",
        requests=requests,
        failed={"minute": 1 if at.minute % 20 == 0 else 0, "hour": 3}[period],
        input_tokens=requests * given,
        cached_tokens=requests * cached,
        output_tokens=requests * out,
        mu=mu,
        ttft_ms_sum=requests * TTFT_MS[deployment.name],
        ttft_count=requests,
        duration_ms_sum=requests * 6400.0,
        is_final=True,
    )


def history(now: datetime, hours: int, keys: dict, made: dict) -> None:
    rows = []
    minute = now.replace(second=0, microsecond=0)
    hour = now.replace(minute=0, second=0, microsecond=0)
    for name, (tenant, deployment, share) in keys.items():
        for back in range(1, min(hours, 26) * 60):
            at = minute - timedelta(minutes=back)
            rows.append(_rollup("minute", at, offered(deployment.name, at) * share, tenant, made[name], deployment))
        elapsed = (now - minute).total_seconds() / 60
        rows.append(
            _rollup(
                "minute", minute, offered(deployment.name, minute) * share * elapsed, tenant, made[name], deployment
            )
        )
        for back in range(hours):
            at = hour - timedelta(hours=back)
            sums = sum(
                offered(deployment.name, at + timedelta(minutes=step)) * share
                for step in range(60)
                if at + timedelta(minutes=step) < minute
            )
            if sums:
                rows.append(_rollup("hour", at, sums, tenant, made[name], deployment))
    UsageRollup.objects.bulk_create(rows, batch_size=500)


def settle(now: datetime) -> None:
    """Bring the roll-ups of the current minute up to ``now``, from those of the minute before."""
    minute = now.replace(second=0, microsecond=0)
    names = dict(Deployment.objects.values_list("pk", "name"))
    elapsed = (now - minute).total_seconds() / 60
    for row in UsageRollup.objects.filter(period="minute", starts_at=minute - timedelta(minutes=1)):
        whole = row.mu * offered(names[row.deployment_id], minute) / offered(names[row.deployment_id], row.starts_at)
        same = {"key_id": row.key_id, "deployment_id": row.deployment_id, "tenant_id": row.tenant_id}
        given = {"mu": whole * elapsed, "requests": int(row.requests * elapsed)}
        UsageRollup.objects.update_or_create(
            period="minute",
            starts_at=minute,
            pool_id=row.pool_id,
            service_class=row.service_class,
            **same,
            defaults=given,
        )


def rings(
    client: redis.Redis, now: datetime, hours: int, chat: Deployment, sim: Deployment, replicas: list[Replica]
) -> None:
    """Samples of each second, newest first, as the observe loop leaves them."""
    newest = now.timestamp()
    for deployment, ready, in_flight in ((chat, 3, 34), (sim, 2, 9)):
        refused_back = 11 if deployment == sim else None
        rows, minute, same = [], None, ""
        for back in range(hours * 3600):
            at = newest - back
            # What is offered changes with the minute only, and thousands of samples are made for each test.
            if at // 60 != minute:
                minute = at // 60
                mu = offered(deployment.name, datetime.fromtimestamp(at, UTC)) / 60
                sample = {
                    "offered_mu": mu,
                    "offered_requests": mu / MEAN_MU[deployment.name],
                    "queue_mu": 0.0,
                    "in_flight": in_flight,
                    "in_flight_mu": in_flight * MEAN_MU[deployment.name],
                    "completed": mu / MEAN_MU[deployment.name],
                    "ready": ready,
                    "capacity_mu_per_min": ready * 100.0,
                }
                same = json.dumps(sample)[1:]
            rows.append(f'{{"at": {at}, "refused": {int(back == refused_back)}, {same}')
        client.rpush(f"penstock:ring:deployment:{deployment.pk}", *rows)
    running = (12, 11, 11, 5, 4)
    for index, one in enumerate(replicas):
        sample = {"at": newest, "running": running[index], "waiting": 0, "kv_usage": 0.31 + 0.09 * index}
        client.rpush(f"penstock:ring:replica:{one.pk}", json.dumps(sample))
    # Two gateways' heartbeats, which live longer than real ones: nobody renews them.
    for number, shares in enumerate(((8, 5, 6, 5, 1), (4, 6, 5, 0, 3))):
        beat = {
            "gateway": f"gateway-{number}",
            "pid": 1,
            "sequence": 1,
            "at": newest,
            "started_at": newest,
            "replicas": {str(one.pk): {"n": share} for one, share in zip(replicas, shares, strict=True)},
        }
        client.set(f"penstock:gw:gateway-{number}", json.dumps(beat), ex=3600)
        client.zadd("penstock:gws", {f"gateway-{number}": newest * 1000})
