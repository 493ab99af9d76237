"""Reservations over the REST API: who sees and does what, what a sale is refused with, and what is told of it."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from django.utils import timezone

from capacity.models import Pool, Reservation
from tenants.models import AuditEntry
from tests import selling
from tests.api import test_foundation
from tests.api.callers import NOWHERE, codes, operators_only
from tests.api.conftest import World

DAY = datetime.timedelta(days=1)


def problem(answer: Any, status: int) -> dict[str, Any]:
    """The refusal of a request that is wrong (400), or of a sale that does not fit (409)."""
    return test_foundation.problem(answer, status, "invalid" if status == 400 else "does_not_fit")


@pytest.fixture
def pool(world: World) -> Pool:
    """300 MU/min of it can be sold."""
    selling.host("node-1")
    made = selling.pool("Chat")
    selling.serve(made, name="chat")
    return made


def sell(world: World, mu: float = 100, **more: Any) -> Any:
    body = {"tenant": "acme", "pool": "chat", "mu_per_min": mu, **more}
    return world.by("operator").post("/reservations", body, format="json")


def ask(world: World, who: str = "admin", **more: Any) -> Any:
    body = {"pool": "chat", "mu_per_min": 50, "note": "For the shop", **more}
    return world.by(who).post("/tenants/acme/reservations", body, format="json")


# ----- who
def test_operators_alone_see_and_sell_across_tenants(world: World, pool: Pool) -> None:
    row = sell(world).json()
    for path in ("/reservations", f"/reservations/{row['id']}", f"/reservations/{row['id']}/conversion"):
        assert codes(world, "get", path) == operators_only(200)
    body = {"tenant": "acme", "pool": "chat", "mu_per_min": 1}
    assert codes(world, "post", "/reservations", body) == operators_only(201)
    for act in ("approve", "refuse", "change", "restore", "renew", "convert", "cancel"):
        found = codes(world, "post", f"/reservations/{row['id']}/{act}", {})
        assert found | {"operator": 0} == operators_only(0), act
    assert codes(world, "get", "/pools/chat/availability") == operators_only(200)
    shape = {"input_tokens": 10, "requests_per_min": 1}
    assert codes(world, "post", "/pools/chat/calculate", shape) == operators_only(200)


def test_a_tenant_sees_its_own_and_admins_ask(world: World, pool: Pool) -> None:
    row = sell(world).json()
    mine = {
        **dict.fromkeys(("owner", "admin", "developer", "viewer", "operator", "key:usage", "key:manage"), 200),
        "outsider": 404,
        "key:inference": 404,
        "nobody": 401,
    }
    for path in ("/tenants/acme/reservations", f"/tenants/acme/reservations/{row['id']}"):
        assert codes(world, "get", path) == mine
    made = codes(world, "post", "/tenants/acme/reservations", {"pool": "chat", "mu_per_min": 1})
    assert made == mine | {
        **dict.fromkeys(("owner", "admin", "operator", "key:manage"), 201),
        **dict.fromkeys(("developer", "viewer", "key:usage"), 403),
    }
    shape = {"input_tokens": 10, "requests_per_min": 1}
    assert codes(world, "post", "/tenants/acme/pools/chat/calculate", shape) == mine


def test_another_tenants_reservation_does_not_exist(world: World, pool: Pool) -> None:
    row = sell(world).json()
    for path in ("", "/conversion"):
        assert world.by("outsider").get(f"/tenants/other/reservations/{row['id']}{path}").status_code == 404
    assert world.by("outsider").post(f"/tenants/other/reservations/{row['id']}/cancel").status_code == 404
    assert world.by("outsider").get("/tenants/other/reservations").json()["results"] == []
    closed = selling.pool("Closed", is_public=False)
    refused = ask(world, pool=closed.slug)
    assert problem(refused, 400)["errors"][0]["field"] == "pool"


def test_a_tenant_is_not_told_what_the_ledger_said(world: World, pool: Pool) -> None:
    row = sell(world, 900, override_reason="a rack comes").json()
    assert (row["verdict"], row["is_overcommitted"], row["decided_by"]) == ("short", True, "operator@penstock.example")
    told = world.by("owner").get(f"/tenants/acme/reservations/{row['id']}").json()
    assert not {"verdict", "override_reason", "is_overcommitted", "decided_by"} & set(told)
    assert (told["mu_per_min"], told["profile_version"], told["pool"]) == (900.0, 1, "chat")


# ----- selling
def test_a_sale_that_does_not_fit_is_a_conflict_with_the_shortage(world: World, pool: Pool) -> None:
    assert sell(world, 200).status_code == 201
    body = problem(sell(world, 250), 409)
    assert (body["code"], body["verdict"], body["headroom_mu_per_min"]) == ("does_not_fit", "short", 100.0)
    (shortage,) = body["shortages"]
    assert (shortage["mu_per_min"], shortage["ends_at"]) == (150.0, None)
    assert body["detail"].startswith("Short by 150 MU/min from ")
    assert "override_reason" in body["hint"]
    assert Reservation.objects.count() == 1


def test_a_sale_happens_once_for_each_key(world: World, pool: Pool) -> None:
    client = world.by("operator")
    body = {"tenant": "acme", "pool": "chat", "mu_per_min": 200}
    first, second = (
        client.post("/reservations", body, format="json", headers={"Idempotency-Key": "once"}) for _ in "ab"
    )
    assert (first.status_code, second.status_code, second["Idempotency-Replayed"]) == (201, 201, "true")
    assert first.json()["id"] == second.json()["id"]
    refused = client.post(
        "/reservations", {**body, "mu_per_min": 201}, format="json", headers={"Idempotency-Key": "no"}
    )
    assert refused.status_code == 409
    fits = client.post("/reservations", {**body, "mu_per_min": 100}, format="json", headers={"Idempotency-Key": "no"})
    assert fits.status_code == 201


def test_terms_are_kept(world: World, pool: Pool) -> None:
    ends = (timezone.now() + 30 * DAY).isoformat()
    row = sell(world, 60, price="0.25", currency="EUR", ends_at=ends, burst_mu=99, note="n").json()
    assert (row["price"], row["currency"], row["burst_mu"], row["note"]) == ("0.250000", "EUR", 99.0, "n")
    assert row["state"] == "active"
    assert row["credit_tiers"] == pool.credit_tiers


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"mu_per_min": 0}, "mu_per_min"),
        ({"mu_per_min": "many"}, "mu_per_min"),
        ({"tenant": "nobody"}, "tenant"),
        ({"pool": "nothing"}, "pool"),
        ({"ends_at": "2020-01-01T00:00:00Z"}, "ends_at"),
        ({"starts_at": "2020-01-01T00:00:00Z"}, "starts_at"),
        ({"price": 1}, "currency"),
        ({"burst_mu": -1}, "burst_mu"),
    ],
)
def test_what_is_wrong_is_said_at_its_field(world: World, pool: Pool, body: dict[str, Any], field: str) -> None:
    assert [one["field"] for one in problem(sell(world, **{"mu": 1, **body}), 400)["errors"]] == [field]


# ----- asked for and decided upon
def test_a_request_is_approved_or_refused(world: World, pool: Pool) -> None:
    row = ask(world).json()
    assert (row["state"], row["requested_by"], row["note"]) == ("requested", "admin@acme.example", "For the shop")
    operator = world.by("operator")
    approved = operator.post(f"/reservations/{row['id']}/approve", {"price": "2", "currency": "usd"}, format="json")
    assert (approved.json()["state"], approved.json()["currency"]) == ("active", "USD")
    other = ask(world).json()
    assert problem(operator.post(f"/reservations/{other['id']}/refuse", {}, format="json"), 400)
    refused = operator.post(f"/reservations/{other['id']}/refuse", {"reason": "no rack"}, format="json")
    assert (refused.json()["state"], refused.json()["reason"]) == ("refused", "no rack")
    again = operator.post(f"/reservations/{other['id']}/restore", {}, format="json")
    assert again.json()["state"] == "requested"
    large = ask(world, mu_per_min=1000).json()
    assert problem(operator.post(f"/reservations/{large['id']}/approve", {}, format="json"), 409)["verdict"] == "short"


def test_a_tenant_takes_a_request_back_and_nothing_else(world: World, pool: Pool) -> None:
    row = ask(world).json()
    assert world.by("developer").post(f"/tenants/acme/reservations/{row['id']}/cancel").status_code == 403
    taken = world.by("owner").post(f"/tenants/acme/reservations/{row['id']}/cancel")
    assert taken.json()["state"] == "cancelled"
    assert AuditEntry.objects.get(action="reservation.withdraw").actor == "owner@acme.example"
    sold = sell(world).json()
    refused = problem(world.by("owner").post(f"/tenants/acme/reservations/{sold['id']}/cancel"), 400)
    assert "ask an operator" in refused["detail"]


def test_change_cancel_and_renew(world: World, pool: Pool) -> None:
    operator = world.by("operator")
    row = sell(world, 100, ends_at=(timezone.now() + DAY).isoformat()).json()
    new = operator.post(f"/reservations/{row['id']}/change", {"mu_per_min": 200}, format="json").json()
    assert (new["renews"], new["mu_per_min"], new["state"]) == (row["id"], 200.0, "active")
    assert operator.get(f"/reservations/{row['id']}").json()["state"] == "ended"
    assert problem(operator.post(f"/reservations/{new['id']}/change", {"mu_per_min": 301}, format="json"), 409)
    renewed = operator.post(f"/reservations/{new['id']}/renew", {}, format="json").json()
    assert (renewed["renews"], renewed["state"], renewed["ends_at"]) == (new["id"], "draft", None)
    ended = operator.post(f"/reservations/{new['id']}/cancel", {"reason": "moved"}, format="json").json()
    assert (ended["state"], ended["reason"]) == ("ended", "moved")
    same = operator.get(f"/reservations/{renewed['id']}/conversion").json()
    assert (same["factor"], same["basis"], same["mu_per_min"]) == (1.0, "same", 200.0)


def test_acts_insist_on_the_version_that_was_read(world: World, pool: Pool) -> None:
    operator = world.by("operator")
    row = sell(world).json()
    path = f"/reservations/{row['id']}"
    etag = operator.get(path)["ETag"]
    first = operator.post(f"{path}/change", {"note": "a"}, format="json", headers={"If-Match": etag})
    assert first.status_code == 200
    assert operator.post(f"{path}/change", {"note": "b"}, format="json", headers={"If-Match": etag}).status_code == 412
    assert operator.get(path).json()["note"] == "a"


def test_lists_filter_and_order(world: World, pool: Pool) -> None:
    sell(world, 10)
    sell(world, 20, tenant="other", starts_at=(timezone.now() + DAY).isoformat())
    ask(world)
    operator = world.by("operator")

    def rates(query: str) -> list[float]:
        return [row["mu_per_min"] for row in operator.get(f"/reservations?{query}").json()["results"]]

    assert sorted(rates("")) == [10.0, 20.0, 50.0]
    assert rates("tenant=other") == [20.0]
    assert sorted(rates("state=active&state=requested")) == [10.0, 50.0]
    assert rates("ordering=-mu_per_min")[0] == 50.0
    assert rates("verdict=short") == []
    assert rates("pool=nothing") == []
    assert len(operator.get("/reservations?page_size=1").json()["results"]) == 1
    assert operator.get(f"/reservations/{NOWHERE}").status_code == 404
    own = world.by("viewer").get("/tenants/acme/reservations?state=requested").json()["results"]
    assert [row["mu_per_min"] for row in own] == [50.0]


# ----- the ledger and the calculator
def test_availability_tells_what_is_sold_and_what_can_be(world: World, pool: Pool) -> None:
    operator = world.by("operator")
    sell(world, 100, starts_at=(timezone.now() + DAY).isoformat(), ends_at=(timezone.now() + 2 * DAY).isoformat())
    plain = operator.get("/pools/chat/availability").json()
    assert (plain["verdict"], plain["headroom_mu_per_min"]) == (None, 200.0)
    assert [piece["sold"] for piece in plain["pieces"]] == [0.0, 100.0, 0.0]
    assert plain["pieces"][0]["sellable"] == 300.0
    assert plain["pieces"][-1]["ends_at"] is None
    asked = operator.get("/pools/chat/availability", {"mu_per_min": 250}).json()
    assert (asked["verdict"], asked["shortages"][0]["mu_per_min"]) == ("without_spare", 50.0)
    assert asked["inputs"]["pool"]["deployments"][0]["max_replicas"] == 4
    before = operator.get(
        "/pools/chat/availability", {"mu_per_min": 250, "ends_at": (timezone.now() + DAY / 2).isoformat()}
    ).json()
    assert before["verdict"] == "fits"
    assert problem(operator.get("/pools/chat/availability", {"ends_at": "2020-01-01T00:00:00Z"}), 400)
    assert problem(operator.get("/pools/chat/availability", {"mu_per_min": -1}), 400)


def test_the_calculator_goes_both_ways(world: World, pool: Pool) -> None:
    operator = world.by("operator")
    shape = {"input_tokens": 1000, "output_tokens": 200}
    there = operator.post("/pools/chat/calculate", {**shape, "requests_per_min": 30}, format="json").json()
    back = operator.post("/pools/chat/calculate", {**shape, "mu_per_min": there["mu_per_min"]}, format="json").json()
    assert back["requests_per_min"] == pytest.approx(30)
    assert there["mu_per_min"] == pytest.approx(30 * there["mu_per_request"])
    assert (there["replicas"], there["accelerators"]) == (back["replicas"], 0)
    mine = (
        world.by("viewer").post("/tenants/acme/pools/chat/calculate", {**shape, "mu_per_min": 9}, format="json").json()
    )
    assert set(mine) == {"mu_per_request", "requests_per_min", "mu_per_min"}
    for wrong in (shape, {**shape, "mu_per_min": 1, "requests_per_min": 1}, {"units": {"parsec": 1}, "mu_per_min": 1}):
        assert problem(operator.post("/pools/chat/calculate", wrong, format="json"), 400)
    unpriced = Pool.objects.create(slug="free", name="Free", model=pool.model)
    path = f"/pools/{unpriced.slug}/calculate"
    refused = problem(operator.post(path, {**shape, "mu_per_min": 1}, format="json"), 400)
    assert "no price yet" in refused["detail"]
