"""Numbers, days and pools of reservations at and beyond the edge of what makes sense."""

from __future__ import annotations

from typing import Any

import pytest

from capacity.models import Pool, Reservation
from tests import selling
from tests.api.conftest import World

REQUESTS = "/tenants/acme/reservations"


@pytest.fixture
def pool(world: World) -> Pool:
    """300 MU/min of it can be sold."""
    selling.host("node-1")
    made = selling.pool("Chat")
    selling.serve(made, name="chat")
    return made


def ask(world: World, **more: Any) -> Any:
    return world.by("admin").post(REQUESTS, {"pool": "chat", "mu_per_min": 50, **more}, format="json")


@pytest.mark.parametrize(
    "rate", [{"requests_per_min": 1e308}, {"mu_per_min": 1e308}, {"requests_per_min": 1, "units": {"x": 1e308}}]
)
def test_a_calculation_that_no_number_holds_is_refused(world: World, pool: Pool, rate: dict[str, Any]) -> None:
    body = {"input_tokens": 10**9, "output_tokens": 10**9, **rate}
    for path in ("/pools/chat/calculate", "/tenants/acme/pools/chat/calculate"):
        found = world.by("operator").post(path, body, format="json")
        assert found.status_code == 400, found.content


def test_a_rate_and_a_burst_have_a_largest(world: World, pool: Pool) -> None:
    assert ask(world, mu_per_min=1e308).status_code == 400
    body = {"tenant": "acme", "pool": "chat", "mu_per_min": 1, "burst_mu": 1e300, "override_reason": "big"}
    assert world.by("operator").post("/reservations", body, format="json").status_code == 400
    assert not Reservation.objects.exists()
    assert ask(world, mu_per_min=1e12).status_code == 201


@pytest.mark.parametrize("at", ["9999-12-31T23:59:59Z", "9999-12-31T23:59:59-12:00"])
def test_a_day_that_not_every_zone_has_is_refused(world: World, pool: Pool, at: str) -> None:
    assert ask(world, ends_at=at).status_code == 400
    assert ask(world, starts_at=at).status_code == 400
    assert ask(world, ends_at="9998-12-31T23:59:59Z").status_code == 201


def test_a_pool_that_a_tenant_may_not_use_does_not_exist_for_it(world: World, pool: Pool) -> None:
    hidden = selling.pool("Hidden", is_public=False)
    for name in (hidden.slug, str(hidden.pk), "no-such-pool"):
        refused = ask(world, pool=name)
        assert refused.status_code == 400
        assert [(error["field"], error["code"]) for error in refused.json()["errors"]] == [("pool", "does_not_exist")]
        assert "Hidden" not in refused.content.decode()
    hidden.tenants.add(world.acme)
    assert ask(world, pool=hidden.slug).status_code == 201


def test_so_many_requests_wait_at_once_and_no_more(world: World, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capacity.services.reservations.MOST_REQUESTED", 2)
    first, second, third = ask(world), ask(world), ask(world)
    assert [answer.status_code for answer in (first, second, third)] == [201, 201, 400]
    assert "2 requests wait for a decision already" in third.content.decode()
    assert world.by("admin").post(f"{REQUESTS}/{first.json()['id']}/cancel").status_code == 200
    assert ask(world).status_code == 201
