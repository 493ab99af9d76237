"""Whose a limit is: the operator's, which the tenant sees and cannot change, or the tenant's own."""

from __future__ import annotations

from typing import Any

import pytest

from tenants.models import AuditEntry, Limit
from tests.api.callers import codes
from tests.api.conftest import World
from tests.api.test_foundation import problem

TENANT_PATH = "/tenants/acme/limits"
OF_TENANT = ("owner", "admin")


@pytest.fixture(params=["tenant", "key"])
def base(request: pytest.FixtureRequest, world: World) -> str:
    return TENANT_PATH if request.param == "tenant" else f"/tenants/acme/keys/{world.keys['inference'][0].pk}/limits"


def put(client: Any, base: str, value: int, **more: str) -> Any:
    return client.put(f"{base}/concurrency", {"value": value, **more}, format="json")


def said(row: Any) -> tuple[str, int, bool, int]:
    return row["set_by"], row["value"], row["is_in_force"], row["value_in_force"]


def listed(client: Any, base: str) -> list[tuple[str, int, bool, int]]:
    return [said(row) for row in client.get(base).json()["results"]]


def test_each_sets_their_own_and_the_smaller_holds(world: World, base: str) -> None:
    operator, admin = world.by("operator"), world.by("admin")
    assert said(put(operator, base, 10).json()) == ("operator", 10, True, 10)
    above = put(admin, base, 50)
    assert (above.status_code, said(above.json())) == (201, ("tenant", 50, False, 10)), (
        "allowed, and what holds is said"
    )
    assert listed(admin, base) == listed(operator, base) == [("operator", 10, True, 10), ("tenant", 50, False, 10)]
    assert said(put(admin, base, 4).json()) == ("tenant", 4, True, 4)
    assert listed(admin, base) == [("operator", 10, False, 4), ("tenant", 4, True, 4)]
    assert said(put(admin, base, 10).json()) == ("tenant", 10, False, 10), "of two of one size the operator's"
    assert admin.delete(f"{base}/concurrency").status_code == 204
    assert listed(admin, base) == [("operator", 10, True, 10)], "the other holds on"
    put(admin, base, 50)
    assert operator.delete(f"{base}/concurrency").status_code == 204
    assert listed(admin, base) == [("tenant", 50, True, 50)]


@pytest.mark.parametrize("who", ["owner", "admin", "key:manage"])
def test_what_the_operator_set_is_not_the_tenants_to_change(world: World, base: str, who: str) -> None:
    caller = world.by_key("manage") if who.startswith("key:") else world.by(who)
    put(world.by("operator"), base, 10)
    tries = (
        caller.delete(f"{base}/concurrency"),
        caller.delete(f"{base}/concurrency?set_by=operator"),
        put(caller, base, 99, set_by="operator"),
        caller.put(f"{base}/tokens_per_min", {"value": 1, "set_by": "operator"}, format="json"),
    )
    for refused in tries:
        body = problem(refused, 403, "set_by_operator")
        assert "set by the operator" in body["detail"]
        assert "Ask an operator" in body["hint"]
    put(caller, base, 20)
    etag = caller.get(f"{base}/concurrency?set_by=operator").headers["ETag"]
    again = caller.delete(f"{base}/concurrency?set_by=operator", headers={"if-match": etag})
    problem(again, 403, "set_by_operator")
    assert caller.delete(f"{base}/concurrency").status_code == 204, "their own"
    assert [(one.set_by, one.value) for one in Limit.objects.all()] == [("operator", 10)]


def test_every_member_sees_the_operators_limits(world: World) -> None:
    put(world.by("operator"), TENANT_PATH, 10)
    found = codes(world, "get", f"{TENANT_PATH}/concurrency")
    assert {who for who, code in found.items() if code == 200} == {
        *("owner", "admin", "developer", "viewer", "key:usage", "key:manage", "operator")
    }
    assert said(world.by("viewer").get(f"{TENANT_PATH}/concurrency").json()) == ("operator", 10, True, 10)


def test_one_is_named_by_whose_it_is(world: World, base: str) -> None:
    operator, admin = world.by("operator"), world.by("admin")
    put(operator, base, 10)
    put(admin, base, 4)
    assert said(operator.get(f"{base}/concurrency").json())[:2] == ("operator", 10)
    assert said(admin.get(f"{base}/concurrency").json())[:2] == ("tenant", 4)
    for client in (operator, admin):
        assert said(client.get(f"{base}/concurrency?set_by=tenant").json())[:2] == ("tenant", 4)
        assert said(client.get(f"{base}/concurrency?set_by=operator").json())[:2] == ("operator", 10)
        assert [row["value"] for row in client.get(f"{base}?set_by=tenant").json()["results"]] == [4]
        wrong = problem(client.get(f"{base}/concurrency?set_by=me"), 400, "invalid")
        assert [error["field"] for error in wrong["errors"]] == ["set_by"]
        problem(client.get(f"{base}/concurrency?set_by=tenant&model=chat"), 404, "not_found")


def test_an_operator_acts_for_the_tenant_by_name(world: World, base: str) -> None:
    operator, admin = world.by("operator"), world.by("admin")
    put(admin, base, 4)
    told = problem(operator.delete(f"{base}/concurrency"), 404, "not_found")
    assert told["detail"] == "Only the tenant's limit is set.", "never by accident"
    assert "?set_by=tenant in the address, --set-by tenant on the command line" in told["hint"]
    assert said(put(operator, base, 7, set_by="tenant").json()) == ("tenant", 7, True, 7)
    assert operator.delete(f"{base}/concurrency?set_by=tenant").status_code == 204
    entries = AuditEntry.objects.filter(action__startswith="limit.").order_by("at", "pk")
    assert [(entry.actor, entry.action, entry.tenant_id) for entry in entries] == [
        ("admin@acme.example", "limit.set", world.acme.pk),
        ("operator@penstock.example", "limit.set", world.acme.pk),
        ("operator@penstock.example", "limit.remove", world.acme.pk),
    ]
    assert entries[0].after["set_by"] == entries[2].before["set_by"] == "tenant"


def test_an_operator_who_is_a_member_is_an_operator(world: World, base: str) -> None:
    world.operator.memberships.create(tenant=world.acme, role="owner")
    assert said(put(world.by("operator"), base, 10).json())[0] == "operator"
