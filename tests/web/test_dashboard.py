"""The dashboard's figures: what a range holds, and paging back through requests."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest
from django.test import Client
from django.utils import timezone

from capacity.models import HardwareType, Pool, Reservation, UsageRecord, UsageRollup
from capacity.services import pool_create
from capacity.usage.rows import FINE
from penstock.web.dashboard_data import TENANT_RANGES, Place, gather_dashboard
from serving.services import deployment_create, deployment_remove
from tenants.models import ApiKey, Tenant
from tests.web.seed import Seeded

NOW = datetime(2026, 11, 25, 17, 47, 31, tzinfo=UTC)
"""Deep in a bucket of every range: 5 h 47 min into one of six hours, 2 min 31 s into one of 15 minutes."""


def fill(tenant: Tenant, length: timedelta) -> None:
    """One request in each minute of the last ``length`` and an hour, in roll-ups of minutes and hours."""
    key, deployment, pool = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    same = {"tenant_id": tenant.pk, "key_id": key, "deployment_id": deployment, "pool_id": pool, "mu": 1.0}
    rows = []
    minute, hour = NOW.replace(second=0, microsecond=0), NOW.replace(minute=0, second=0, microsecond=0)
    if length <= timedelta(hours=24):
        for back in range(int(length / timedelta(minutes=1)) + 60):
            at = minute - timedelta(minutes=back)
            rows.append(UsageRollup(period="minute", starts_at=at, requests=1, **same))
    else:
        for back in range(int(length / timedelta(hours=1)) + 12):
            requests = 60 if back else NOW.minute + 1
            rows.append(UsageRollup(period="hour", starts_at=hour - timedelta(hours=back), requests=requests, **same))
    UsageRollup.objects.bulk_create(rows)


@pytest.mark.parametrize("key", TENANT_RANGES)
@pytest.mark.django_db
def test_a_range_sums_no_more_than_its_label_says_and_up_to_now(key: str) -> None:
    tenant, chosen = Tenant.objects.create(slug="t", name="T"), TENANT_RANGES[key]
    fill(tenant, chosen.length)
    period = timedelta(minutes=1) if chosen.length <= timedelta(hours=24) else timedelta(hours=1)
    requests = gather_dashboard(tenant, chosen, NOW, None, False).total.requests
    assert timedelta(minutes=requests - 1) <= chosen.length < timedelta(minutes=requests) + period


def ended_at_once(tenant: Tenant, count: int, at: datetime) -> set[uuid.UUID]:
    """``count`` requests of a lost gateway: all closed at one moment."""
    key = ApiKey.objects.filter(tenant=tenant).first()
    assert key is not None
    like = UsageRecord.objects.filter(tenant_id=tenant.pk).values().first()
    assert like is not None
    lost = {"outcome": "gateway_lost", "status": 0, "ended_at": at, "admitted_at": at - timedelta(seconds=9)}
    fields = {**like, **lost, "first_byte_at": None, "routed_at": None}
    rows = UsageRecord.objects.bulk_create(UsageRecord(**{**fields, "id": uuid.uuid4()}) for _ in range(count))
    return {row.pk for row in rows}


def test_older_reaches_every_request_that_ended_at_one_moment(client: Client, platform: Seeded) -> None:
    lost = ended_at_once(platform.northwind, 70, timezone.now())
    client.force_login(platform.owner)
    seen: list[uuid.UUID] = []
    path = "/t/northwind/?outcome=failed"
    for _ in range(10):
        answer = client.get(path)
        seen += [row.record.pk for row in answer.context["data"].latest]
        older = re.search(r'href="([^"]+)">Older<', answer.content.decode())
        if older is None:
            break
        path = f"/t/northwind/{unescape(older[1]).removesuffix('#latest')}"
    assert len(seen) == len(set(seen))
    assert lost <= set(seen)
    failed = UsageRecord.objects.filter(tenant_id=platform.northwind.pk).exclude(outcome__in=FINE)
    assert set(seen) == set(failed.values_list("pk", flat=True))


def test_a_place_in_the_list_survives_its_url() -> None:
    place = Place(NOW, uuid.UUID(int=7))
    assert Place.parse(str(place)) == place


@pytest.mark.parametrize("text", ["", "yesterday", NOW.isoformat(), "2026-11-25T17:47:31_x", f"x_{uuid.NAMESPACE_DNS}"])
def test_a_place_that_is_none_shows_the_newest(client: Client, platform: Seeded, text: str) -> None:
    client.force_login(platform.owner)
    answer = client.get("/t/northwind/", {"before": text})
    assert answer.status_code == 200
    newest = UsageRecord.objects.filter(tenant_id=platform.northwind.pk).latest("ended_at")
    assert answer.context["data"].latest[0].record == newest


def test_a_name_that_is_used_again_stands_once(platform: Seeded) -> None:
    now = timezone.now()

    def shown() -> tuple[dict[tuple[str, str], int], dict[tuple[str, str], int]]:
        data = gather_dashboard(platform.northwind, TENANT_RANGES["24h"], now, None, False)
        for rows in (data.by_model, data.by_key):
            assert len({(row.name, row.sub) for row in rows}) == len(rows)
            assert sum(row.requests for row in rows) == data.total.requests
        models, keys = ({(row.name, row.sub): row.requests for row in rows} for rows in (data.by_model, data.by_key))
        return models, keys

    models, keys = shown()
    old, pool = platform.chat, platform.chat.pool
    Reservation.objects.update(state=Reservation.State.ENDED)
    deployment_remove(deployment=old, actor="t", confirm=old.name)
    Pool.objects.filter(pk=pool.pk).update(removed_at=timezone.now())
    again = pool_create(
        model=pool.model, name=pool.name, slug=pool.slug, hardware_type=HardwareType.objects.get(slug="cpu"), actor="t"
    )
    new = deployment_create(pool=again, name=old.name, runtime="simulated", actor="t")
    like = UsageRollup.objects.filter(tenant_id=platform.northwind.pk, deployment_id=old.pk, period="minute")
    row = like.order_by("-starts_at").values().first()
    assert row is not None
    UsageRollup.objects.create(**{**row, "id": None, "deployment_id": new.pk, "pool_id": again.pk, "requests": 11})
    key = ApiKey.objects.get(pk=row["key_id"])
    models[old.name, pool.name] += 11
    keys[key.name, old.name] += 11
    assert shown() == (models, keys)
