"""The operators' pages of pools: what is sold at what price by which rules, changed with audit and undo."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from capacity.models import CostProfile, Model, Pool, Reservation
from capacity.policy.cost import CostProfile as Price
from capacity.services import profile_add
from tenants.models import AuditEntry, Change
from tests.web.seed import Seeded

PAGE = "/console/pools/chat-32b/"
PRICE = Price(version=1, base=0.0, alpha=0.01, beta=0.05, gamma=0.0, epsilon=0.0, cached_factor=0.1)


def rules(**changed: Any) -> dict[str, Any]:
    """What the form sends: a box that is not ticked is not sent."""
    fields = {
        "name": "chat-32b",
        "ttft_objective_ms": 800,
        "tpot_objective_ms": 45,
        "tolerable_wait_s": 5.0,
        "slo_share": 0.01,
        "oversell_factor": 1.0,
        "adoption_error_limit": 0.1,
        "keep_spare": "on",
        "best_effort": "on",
    } | changed
    return {name: value for name, value in fields.items() if value is not None}


def undo(client: Client, page: str) -> None:
    """Press *Undo* on the page after an act."""
    offered = client.get(page).context["undo"]
    assert client.post(offered["path"], dict(offered["fields"])).status_code == 302


def test_the_list_tells_what_each_has_sold_and_is_found_by(as_operator: Client, platform: Seeded) -> None:
    page = as_operator.get("/console/pools/").content.decode()
    assert "2 pools, each served by a deployment." in page
    assert 'data-l="Sold, MU/min">240</td>' in page
    assert 'data-l="Have, MU/min">300</td>' in page
    Pool.objects.create(slug="idle", name="Idle", model=Model.objects.get(slug="simulated"), is_public=False)
    page = as_operator.get("/console/pools/?to=some").content.decode()
    assert "3 pools; nothing serves 1 of them." in page
    assert "/console/pools/idle/" in page
    assert PAGE not in page
    assert PAGE in as_operator.get("/console/pools/?q=qwen").content.decode()
    assert "No pool fits “none such”" in as_operator.get("/console/pools/?q=none+such").content.decode()


def test_a_pool_tells_its_promise_its_price_and_what_serves_it(as_operator: Client, platform: Seeded) -> None:
    page = as_operator.get(PAGE).content.decode()
    for text in ("300 MU/min ready, 240 sold.", "in force", "NVIDIA H200", "1 request for a reservation waits", "kept"):
        assert text in page, text
    assert f"/console/deployments/{platform.chat.pk}/" in page
    # 0.00002 and 0.0006 MU per token.
    assert 'data-l="Input, MU per 1,000 tokens">0.0200</td>' in page
    assert 'data-l="Output, MU per 1,000 tokens">0.600</td>' in page
    Reservation.objects.filter(state="active").update(mu_per_min=200.0)
    assert "short by 100 MU/min" in as_operator.get(PAGE).content.decode()
    assert as_operator.get("/console/pools/none/").status_code == 404


def test_without_a_price_it_says_what_is_missing(as_operator: Client, platform: Seeded) -> None:
    Pool.objects.create(slug="idle", name="Idle", model=Model.objects.get(slug="simulated"))
    page = as_operator.get("/console/pools/idle/").content.decode()
    assert "It has no price that is in force." in page
    assert "Nothing serves it" in page


def test_rules_are_changed_told_to_gateways_and_taken_back(as_operator: Client, platform: Seeded) -> None:
    pool = platform.chat.pool
    told = Change.objects.count()
    sent = rules(ttft_objective_ms=950, oversell_factor=1.25, keep_spare=None, best_effort=None)
    answer = as_operator.post(f"{PAGE}rules", sent)
    assert (answer.status_code, answer["Location"]) == (302, PAGE)
    pool.refresh_from_db()
    found = (pool.ttft_objective_ms, pool.oversell_factor, pool.keep_spare, pool.best_effort)
    assert found == (950, 1.25, False, False)
    entry = AuditEntry.objects.filter(action="pool.update").latest("at")
    assert (entry.actor, entry.after["oversell_factor"]) == (platform.operator.email, 1.25)
    assert Change.objects.count() > told
    undo(as_operator, PAGE)
    pool.refresh_from_db()
    found = (pool.ttft_objective_ms, pool.oversell_factor, pool.keep_spare, pool.best_effort)
    assert found == (800, 1.0, True, True)
    assert AuditEntry.objects.filter(action="pool.update").count() == 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"oversell_factor": 0.5}, "The oversell factor must be at least 1."),
        ({"slo_share": 1.5}, "The SLO share must lie between 0 and 1."),
        ({"ttft_objective_ms": 0}, "greater than or equal to 1"),
        ({"tolerable_wait_s": "nan"}, "Enter a number."),
        ({"name": ""}, "This field is required."),
    ],
)
def test_rules_that_cannot_hold_are_refused_at_their_field(
    as_operator: Client, platform: Seeded, changed: dict[str, Any], said: str
) -> None:
    before = Pool.objects.values().get(slug="chat-32b")
    answer = as_operator.post(f"{PAGE}rules", rules(**changed))
    assert answer.status_code == 400
    assert said in answer.content.decode()
    assert Pool.objects.values().get(slug="chat-32b") == before


def test_who_may_use_it_is_changed_and_taken_back(as_operator: Client, platform: Seeded) -> None:
    pool = platform.chat.pool
    assert as_operator.post(f"{PAGE}tenants", {"tenants": "alder\nnorthwind"}).status_code == 302
    pool.refresh_from_db()
    assert (pool.is_public, {row.slug for row in pool.tenants.all()}) == (False, {"alder", "northwind"})
    undo(as_operator, PAGE)
    pool.refresh_from_db()
    assert (pool.is_public, pool.tenants.count()) == (True, 0)
    answer = as_operator.post(f"{PAGE}tenants", {"tenants": "alder nobody"})
    assert answer.status_code == 400
    assert "There is no tenant nobody" in answer.content.decode()
    assert pool.tenants.count() == 0


def test_a_pool_is_removed_only_when_nothing_needs_it(as_operator: Client, platform: Seeded) -> None:
    assert "Remove chat-32b?" in as_operator.get(f"{PAGE}remove").content.decode()
    answer = as_operator.post(f"{PAGE}remove")
    assert answer.status_code == 409
    assert "cannot be removed" in answer.content.decode()
    idle = Pool.objects.create(slug="idle", name="Idle", model=Model.objects.get(slug="simulated"))
    assert as_operator.post("/console/pools/idle/remove")["Location"] == "/console/pools/"
    assert Pool.everything.get(pk=idle.pk).removed_at is not None
    assert as_operator.get("/console/pools/idle/").status_code == 404


def test_a_price_to_come_is_withdrawn_and_brought_back(as_operator: Client, platform: Seeded) -> None:
    pool, first = platform.chat.pool, CostProfile.objects.get(pool=platform.chat.pool)
    profile_add(
        pool=pool,
        hardware_type=first.hardware_type,
        profile=PRICE,
        effective_from=timezone.now() + datetime.timedelta(days=1),
        actor="t",
    )
    assert 'aria-label="Withdraw version 2"' in as_operator.get(PAGE).content.decode()
    assert as_operator.post(f"{PAGE}prices/2/withdraw").status_code == 302
    page = as_operator.get(PAGE).content.decode()
    assert "Version 2 of the price of chat-32b is withdrawn." in page
    assert ">withdrawn<" in page
    assert "Withdraw version" not in page
    as_operator.post(f"{PAGE}prices/2/restore")
    assert ">to come<" in as_operator.get(PAGE).content.decode()
    answer = as_operator.post(f"{PAGE}prices/1/withdraw", follow=True)
    assert "is in force since" in answer.content.decode()
    assert as_operator.post(f"{PAGE}prices/9/withdraw").status_code == 404


def test_older_versions_stay_to_be_read(as_operator: Client, platform: Seeded) -> None:
    pool, first = platform.chat.pool, CostProfile.objects.get(pool=platform.chat.pool)
    for version in range(2, 25):
        CostProfile.objects.create(
            pool=pool,
            version=version,
            hardware_type=first.hardware_type,
            effective_from=first.effective_from,
            alpha=0.00002,
            beta=0.0006,
            price_per_1000_mu=0.4,
        )
    page = as_operator.get(PAGE).content.decode()
    assert "4 older versions" in page
    assert "0.40 USD" in page
