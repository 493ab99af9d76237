"""Every operation of the OpenAPI document, and a platform on which each finds something to work on."""

from __future__ import annotations

import datetime
import functools
import json
import re
import time
from dataclasses import dataclass
from typing import Any

from django.db.models import QuerySet
from django.utils import timezone
from drf_spectacular.generators import SchemaGenerator

from capacity.models import CostProfile, Pool, Reservation
from capacity.services import enrolment_token_create, invoice_issue, reservation_request
from capacity.usage.billing import begins, month_in
from capacity.usage.books import finalise_minutes
from capacity.usage.chain import anchors_take
from capacity.usage.guarantees import guarantees_judge
from capacity.usage.writer import write_batch
from serving.models import Replica
from serving.services import (
    calibration_start,
    incident_open,
    provider_credential_set,
    revision_create,
    scaling_decision_record,
)
from tenants.models import Limit, Membership, Tenant
from tenants.services import invitation_create, limit_set
from tests import factories
from tests.api.callers import NOWHERE
from tests.api.conftest import Api, World

METHODS = ("get", "post", "put", "patch", "delete")
PREFIX = "/api/v1"
_NAMES = ("kind", "name", "version")
"""Parameters that name what an id names elsewhere."""
_PARAMETER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, order=True)
class Operation:
    path: str
    """Below ``/api/v1``, with its parameters in braces."""
    method: str

    def __str__(self) -> str:
        return f"{self.method.upper()} {self.path}"

    @property
    def is_of_a_tenant(self) -> bool:
        return self.path.startswith("/tenants/{tenant}")


def document() -> dict[str, Any]:
    """What ``/api/schema`` serves, for the caller alone."""
    made: dict[str, Any] = json.loads(_text())
    return made


@functools.cache
def _text() -> str:
    """Made once: it takes seconds, and nothing that a test does changes it."""
    return json.dumps(SchemaGenerator().get_schema(request=None, public=True))


def operations(of: dict[str, Any]) -> list[Operation]:
    return sorted(
        Operation(path.removeprefix(PREFIX), method)
        for path, item in of["paths"].items()
        for method in METHODS
        if method in item
    )


def furnish(world: World) -> None:
    """Rows for what the platform lists, so that the addresses of single ones lead somewhere."""
    host = factories.host(name="node-1")
    deployment = factories.deployment(name="chat")
    revision_create(deployment=deployment, runtime="simulated", actor="test")
    replica = factories.replica(deployment, host=host)
    incident_open(kind="crash", summary="chat crashed", replica=replica, evidence={"log_tail": "last words"})
    ready = {"state": "ready", "address": "http://127.0.0.1:9"}
    Replica.objects.filter(pk=replica.pk).update(**ready)
    calibration_start(deployment=deployment, allow_outage=True, actor="test")
    scaling_decision_record(deployment=deployment, before=1, after=2, reason="load", inputs={"offered": 1.5})
    provider_credential_set(name="main", provider="openai", secret="sk-secret", actor="test")
    enrolment_token_create(name="rack 1", actor="test")
    now = timezone.now()
    for tenant in (world.acme, world.other):
        reservation_request(tenant=tenant, pool=deployment.pool, mu_per_min=10.0, starts_at=now, actor="test")
        key, _ = factories.api_key(tenant)
        for of in (None, key):
            limit_set(
                tenant=tenant, kind=Limit.Kind.REQUESTS_PER_MIN, value=60, set_by="operator", api_key=of, actor="test"
            )
        invitation_create(tenant=tenant, email="new@example.org", role=Membership.Role.VIEWER, actor="test")
        traffic = factories.Traffic(str(tenant.pk), str(key.pk), str(deployment.pool_id), str(deployment.pk))
        write_batch(factories.batch(traffic.pair(time.time() - 60), segment=tenant.slug, closed=True))
        promised(tenant, deployment.pool)
        last_month(traffic)
    anchors_take(now=timezone.now())
    finalise_minutes(timezone.now() + datetime.timedelta(minutes=5))
    guarantees_judge()
    for tenant in (world.acme, world.other):
        invoice_issue(tenant=tenant, month=month_in(now.replace(day=1) - datetime.timedelta(days=1)), actor="test")


def last_month(traffic: factories.Traffic) -> None:
    """A request that is to be invoiced."""
    QuerySet(CostProfile).filter(pool=traffic.pool).update(price_per_1000_mu=2.0)
    ended = begins(month_in(timezone.now())) - datetime.timedelta(days=2)
    write_batch(factories.batch(traffic.pair(ended.timestamp()), segment=f"last-{traffic.tenant}", closed=True))


def promised(tenant: Tenant, pool: Pool) -> Reservation:
    """A reservation whose first minutes have passed."""
    return Reservation.objects.create(
        tenant=tenant,
        pool=pool,
        profile=CostProfile.objects.get(pool=pool),
        mu_per_min=5.0,
        state=Reservation.State.ACTIVE,
        starts_at=timezone.now() - datetime.timedelta(minutes=5),
    )


def filled(client: Api, path: str, tenant: str = "acme") -> str:
    """``path`` with its parameters filled in: the first row of the list before each, or an id that is nobody's."""
    while found := _PARAMETER.search(path):
        name, before = found[1], path[: found.start()].rstrip("/")
        value = tenant if name == "tenant" else _first(client, before, name)
        path = path[: found.start()] + value + path[found.end() :]
    return path


def _first(client: Api, listed: str, name: str) -> str:
    answer = client.get(listed)
    rows = answer.json() if answer.status_code == 200 else []
    rows = rows.get("results", []) if isinstance(rows, dict) else rows
    return str(rows[0].get(name if name in _NAMES else "id", NOWHERE)) if rows else NOWHERE
