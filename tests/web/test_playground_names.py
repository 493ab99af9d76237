"""Whose requests a tenant's pages show by address, and whose not."""

from __future__ import annotations

from datetime import timedelta
from html import unescape

from django.test import Client
from django.utils import timezone

from capacity.models import UsageRollup
from penstock.web.people import playground_names
from tenants.models import Membership, User
from tests.web.seed import Seeded, usage_record


def test_a_tenant_is_not_told_who_operates_the_platform(client: Client, platform: Seeded) -> None:
    pool, tenant = platform.chat.pool, platform.northwind
    gone = User.objects.create_user("gone@northwind.example")
    records = {}
    for who in (platform.operator, gone, platform.owner):
        records[who.pk] = usage_record(tenant, who.pk, pool, deployment_id=platform.chat.pk)
        UsageRollup.objects.create(
            period="minute",
            starts_at=(timezone.now() - timedelta(minutes=2)).replace(second=0, microsecond=0),
            tenant_id=tenant.pk,
            key_id=who.pk,
            deployment_id=platform.chat.pk,
            pool_id=pool.pk,
            service_class="best_effort",
            requests=3,
        )
    client.force_login(platform.viewer)
    receipts = [f"usage/{record.pk}" for record in records.values()]
    pages = {path: client.get(f"/t/northwind/{path}") for path in ("", "usage/", "usage/?range=1h", *receipts)}
    for path, answer in pages.items():
        told = unescape(answer.content.decode())
        assert answer.status_code == 200, path
        assert "operator@penstock.example" not in told, path
        assert "gone@northwind.example" not in told, path
    usage = unescape(pages["usage/?range=1h"].content.decode())
    assert "operator (playground)" in usage
    assert "former member (playground)" in usage
    assert "owner@northwind.example (playground)" in usage
    assert "operator, in the playground" in unescape(pages[receipts[0]].content.decode())


def test_an_operator_who_is_a_member_is_named_as_one(platform: Seeded) -> None:
    Membership.objects.create(tenant=platform.northwind, user=platform.operator, role="viewer")
    operator = platform.operator
    assert playground_names(platform.northwind, [operator.pk]) == {operator.pk: operator.email}
    assert playground_names(platform.alder, [operator.pk]) == {operator.pk: "operator"}
    assert playground_names(platform.alder, [platform.owner.pk]) == {platform.owner.pk: "former member"}
