"""Of the operator's limit and the tenant's own, gateways are told of one: the smaller, whatever came and went."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, Literal

import msgspec
import pytest
from django.utils import timezone
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.published import records
from serving.gateway.access import AccessBook
from serving.gateway.auth import Principal
from serving.gateway.records import DeploymentRecord, PoolRecord, ProfileRecord, decode_record
from serving.gateway.services import cost_profile
from tenants.models import ApiKey, Change, Limit
from tenants.services import limit_remove, limit_set, membership_add, membership_remove
from tests import factories

pytestmark = pytest.mark.django_db

Place = tuple[bool, str, str]
"""Whether it is of the key, the kind, the model."""
PLACES = st.tuples(st.booleans(), st.sampled_from(["tokens_per_min", "concurrency"]), st.sampled_from(["", "chat"]))
ACTS = st.lists(
    st.tuples(PLACES, st.sampled_from(["operator", "tenant"]), st.none() | st.integers(1, 6)), min_size=1, max_size=14
)
"""Where, whose, and the value; None: it is removed."""


def told(tenant: Any, key: Any) -> dict[Place, list[tuple[float, str]]]:
    """Value and id of what the records of the tenant and its key say, by place."""
    found: dict[Place, list[tuple[float, str]]] = {}
    for kind, row in (("tenant", tenant), ("key", key)):
        ((_, _, raw),) = records(kind, [row.pk], now=timezone.now())
        for limit in json.loads(raw).get("limits", ()):
            place = (kind == "key", limit["kind"], limit.get("model", ""))
            found.setdefault(place, []).append((limit["value"], limit["id"]))
    return found


@settings(max_examples=60, deadline=None)
@given(acts=ACTS)
def test_gateways_are_told_the_smaller_of_both(acts: list[tuple[Place, str, int | None]]) -> None:
    key, _ = factories.api_key()
    tenant = key.tenant
    stand: dict[Place, dict[str, int]] = {}
    for place, set_by, value in acts:
        of_key, kind, model = place
        before = told(tenant, key)
        had_operators = "operator" in stand.get(place, {})
        if value is not None:
            limit_set(
                tenant=tenant,
                api_key=key if of_key else None,
                kind=kind,
                model=model,
                value=value,
                set_by=set_by,
                actor="t",
            )
            stand.setdefault(place, {})[set_by] = value
        elif set_by in stand.get(place, {}):
            of = {"api_key__isnull": not of_key, "kind": kind, "model": model, "set_by": set_by}
            limit_remove(limit=Limit.objects.get(tenant=tenant, **of), actor="t")
            del stand[place][set_by]
        after = told(tenant, key)
        assert {where: [value for value, _ in both] for where, both in after.items()} == {
            where: [float(sorted(values.values())[0])] for where, values in stand.items() if values
        }
        if had_operators and set_by == "tenant":
            assert [name for _, name in after[place]] == [name for _, name in before[place]], (
                "what is used up stays used up, whatever the tenant does"
            )


def test_a_members_limits_are_told_with_the_tenant_and_with_the_keys_they_made() -> None:
    key, _ = factories.api_key()
    other, _ = factories.api_key(key.tenant)
    member = membership_add(tenant=key.tenant, user=factories.user(), actor="t")
    ApiKey.objects.filter(pk=key.pk).update(created_by=member.user)
    Change.objects.all().delete()
    for value, set_by in ((9, "operator"), (4, "tenant")):
        limit_set(tenant=key.tenant, member=member, kind="mu_per_min", value=value, set_by=set_by, actor="t")
    changed = set(Change.objects.values_list("kind", "object_id"))
    assert {("tenant", key.tenant_id), ("key", key.pk)} <= changed
    assert ("key", other.pk) not in changed
    ((_, _, raw),) = records("tenant", [key.tenant_id], now=timezone.now())
    told_of = json.loads(raw)
    assert "limits" not in told_of
    (limit,) = told_of["members"][str(member.user_id)]
    assert (limit["kind"], limit["value"]) == ("mu_per_min", 4.0)
    told = records("key", [key.pk, other.pk], now=timezone.now())
    of_keys = {pk: json.loads(raw).get("more_limits", []) for pk, _, raw in told}
    assert of_keys == {key.pk: [limit], other.pk: []}
    Change.objects.all().delete()
    membership_remove(membership=member, actor="t")
    assert {("tenant", key.tenant_id), ("key", key.pk)} <= set(Change.objects.values_list("kind", "object_id"))
    ((_, _, raw),) = records("key", [key.pk], now=timezone.now())
    assert "limits" not in json.loads(raw)


class LimitBefore(msgspec.Struct):
    """A limit as a gateway of the version before reads it."""

    id: str
    kind: Literal["requests_per_min", "tokens_per_min", "concurrency"]
    value: float


class HolderBefore(msgspec.Struct):
    """A tenant's or a key's record, as far as it matters here."""

    id: str
    limits: tuple[LimitBefore, ...] = ()


def test_a_gateway_of_the_version_before_goes_on_where_limits_of_new_kinds_are_set() -> None:
    key, _ = factories.api_key()
    member = membership_add(tenant=key.tenant, user=factories.user(), actor="t")
    ApiKey.objects.filter(pk=key.pk).update(created_by=member.user)
    for kind in Limit.Kind.values:
        for of in ({}, {"api_key": key}, {"member": member}):
            limit_set(tenant=key.tenant, kind=kind, value=7, set_by="operator", actor="t", **of)
    told = {}
    for kind, row, each in (("tenant", key.tenant, 1), ("key", key, 2)):
        ((_, _, raw),) = records(kind, [row.pk], now=timezone.now())
        old = msgspec.json.decode(raw, type=HolderBefore)
        assert sorted(one.kind for one in old.limits) == sorted(
            each * ["requests_per_min", "tokens_per_min", "concurrency"]
        )
        told[kind] = decode_record(kind, raw)[0]
        kinds = [one.kind for one in (*told[kind].limits, *told[kind].more_limits)]
        assert sorted(kinds) == sorted(each * Limit.Kind.values)
    # One of this version holds to all of them.
    deployment = DeploymentRecord(id="d", name="chat", pool="p", revision="r", runtime="vllm")
    price = ProfileRecord(
        version=1, base=0, alpha=1, beta=1, gamma=0, epsilon=0, cached_factor=0, price_per_1000_mu=1.0
    )
    view = SimpleNamespace(
        deployments_by_name={"chat": deployment}, pools={"p": PoolRecord(id="p", slug="p", profile=price)}
    )
    prices = SimpleNamespace(profile=lambda pool: cost_profile(pool.profile))
    access = AccessBook(prices).find(view, Principal(told["key"], told["tenant"]), "chat")
    assert len(access.demands(1, 1.0)) == 3 * len(Limit.Kind.values)
