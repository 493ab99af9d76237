"""Reservations from the wish to the end: what each step asks of the ledger, writes, and leaves in the audit."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils import timezone

from capacity.models import Host, Pool, Reservation
from capacity.services import (
    CannotSell,
    pool_remove,
    pool_tenants_set,
    reservation_approve,
    reservation_cancel,
    reservation_refuse,
    reservation_request,
    reservation_restore,
    reservation_sell,
    reservations_end,
    reservations_start,
)
from serving.services import deployment_disable, deployment_update
from tenants.models import AuditEntry, Change
from tenants.needed import StillNeeded
from tests import factories, selling

pytestmark = pytest.mark.django_db

DAY = datetime.timedelta(days=1)


def sold(pool: Pool, mu: float = 100.0, **fields: Any) -> Reservation:
    return reservation_sell(
        **{"tenant": factories.tenant(), "pool": pool, "mu_per_min": mu, "actor": "op@example.org", **fields}
    )


def changes() -> list[tuple[str, str]]:
    rows = Change.objects.exclude(kind="tenant").order_by("pk").values_list("kind", "object_id")
    return [(kind, str(pk)) for kind, pk in rows]


# ----- selling
def test_a_sale_promises_is_published_and_told(pool: Pool) -> None:
    Change.objects.all().delete()
    version = Pool.objects.get(pk=pool.pk).version
    row = sold(pool, 200, price=Decimal("1.5"), currency="eur", note="The chat of the shop")
    assert (row.state, row.verdict, row.decided_by, row.is_overcommitted) == ("active", "fits", "op@example.org", False)
    assert (row.profile, row.price, row.currency) == (pool.profiles.get(), Decimal("1.5"), "EUR")
    assert row.burst_mu >= 200 / 6
    assert Pool.objects.get(pk=pool.pk).version == version + 1
    assert changes() == [("reservation", str(row.pk))]
    entry = AuditEntry.objects.get(action="reservation.sell")
    assert (entry.tenant_id, entry.after["mu_per_min"]) == (row.tenant_id, 200.0)


def test_what_starts_later_is_a_draft_until_then(pool: Pool) -> None:
    now = timezone.now()
    row = sold(pool, starts_at=now + DAY, ends_at=now + 2 * DAY)
    assert row.state == "draft"
    assert reservations_start(now=now, actor="t") == 0
    assert reservations_start(now=now + DAY, actor="t") == 1
    assert reservations_start(now=now + DAY, actor="t") == 0
    assert reservations_end(now=now + 2 * DAY, actor="t") == 1
    row.refresh_from_db()
    assert row.state == "ended"
    actions = AuditEntry.objects.filter(object_id=str(row.pk)).order_by("at").values_list("action", flat=True)
    assert list(actions) == ["reservation.sell", "reservation.start", "reservation.end"]


def test_what_does_not_fit_is_refused_with_the_shortage(pool: Pool) -> None:
    sold(pool, 200)
    with pytest.raises(CannotSell) as refused:
        sold(pool, 250)
    answer = refused.value.answer
    assert (answer.verdict, answer.shortages[0].mu_per_min) == ("short", 150.0)
    assert Reservation.objects.count() == 1
    with pytest.raises(CannotSell, match="fit only without N−1"):
        sold(pool, 150)


def test_an_operator_sells_beyond_with_a_reason_that_stays(pool: Pool) -> None:
    row = sold(pool, 500, override_reason="  A rack arrives on Monday ")
    assert (row.verdict, row.override_reason, row.is_overcommitted) == ("short", "A rack arrives on Monday", True)
    assert AuditEntry.objects.get(action="reservation.sell").after["override_reason"] == "A rack arrives on Monday"
    with pytest.raises(CannotSell):
        sold(pool, 1)


def test_a_reason_that_was_not_needed_marks_nothing(pool: Pool) -> None:
    row = sold(pool, 10, override_reason="to be sure")
    assert (row.verdict, row.override_reason, row.is_overcommitted) == ("fits", "", False)


def test_time_divides_what_is_sold(pool: Pool) -> None:
    now = timezone.now()
    sold(pool, 300, ends_at=now + DAY)
    assert sold(pool, 300, starts_at=now + DAY, ends_at=now + 2 * DAY).state == "draft"
    with pytest.raises(CannotSell):
        sold(pool, 1, ends_at=now + 3 * DAY)
    assert sold(pool, 300, starts_at=now + 2 * DAY).ends_at is None


def test_hosts_that_fell_silent_and_deployments_that_stopped_sell_nothing(pool: Pool) -> None:
    deployment = pool.deployments.get()
    selling.report(Host.objects.get(), ago_s=60)
    with pytest.raises(CannotSell, match="node-1: its agent has been silent for 60 s"):
        sold(pool, 1)
    selling.report(Host.objects.get())
    deployment_update(deployment=deployment, max_replicas=2, actor="t")
    with pytest.raises(CannotSell, match=f"{deployment.name} runs at most 2 replicas"):
        sold(pool, 150)
    deployment_disable(deployment=deployment, actor="t")
    with pytest.raises(CannotSell, match="nothing serves"):
        sold(pool, 1)


def test_what_changes_what_there_is_moves_the_version_on(pool: Pool) -> None:
    deployment = pool.deployments.get()
    before = Pool.objects.get(pk=pool.pk).version
    deployment_update(deployment=deployment, max_replicas=3, actor="t")
    deployment_disable(deployment=deployment, actor="t")
    assert Pool.objects.get(pk=pool.pk).version == before + 2


def test_two_pools_do_not_sell_the_same_accelerators() -> None:
    selling.host("gpu-1", accelerators=4)
    pools = [selling.pool(name, keep_spare=False) for name in ("Chat", "Code")]
    for made in pools:
        selling.serve(made, accelerators=1, most=4)
    sold(pools[0], 250)
    with pytest.raises(CannotSell) as refused:
        sold(pools[1], 101)
    assert refused.value.answer.pieces[0].replicas == 1
    assert sold(pools[1], 100).verdict == "fits"


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"mu_per_min": 0.0}, "mu_per_min"),
        ({"mu_per_min": float("inf")}, "mu_per_min"),
        ({"burst_mu": -1.0}, "burst_mu"),
        ({"ends_at": timezone.now() - DAY}, "ends_at"),
        ({"starts_at": timezone.now() - DAY}, "starts_at"),
        ({"price": Decimal(1)}, "currency"),
        ({"currency": "EUR"}, "currency"),
        ({"price": Decimal(1), "currency": "Euro"}, "currency"),
        ({"override_reason": "x" * 501}, "override_reason"),
    ],
)
def test_nonsense_is_refused_at_its_field(pool: Pool, fields: dict[str, Any], at: str) -> None:
    with pytest.raises(ValidationError) as refused:
        sold(pool, **fields)
    assert at in refused.value.message_dict
    assert not Reservation.objects.exists()


def test_a_pool_is_sold_only_to_those_who_may_use_it_and_while_it_is_there(pool: Pool) -> None:
    closed = selling.pool("Private", is_public=False)
    with pytest.raises(ValidationError) as refused:
        sold(closed)
    assert "pool" in refused.value.message_dict
    removed = selling.pool("Gone")
    assert pool_remove(pool=removed, actor="t")
    with pytest.raises(ValidationError, match="has been removed"):
        sold(removed)


def test_a_price_that_is_not_the_pools_own_cannot_be_pinned(pool: Pool) -> None:
    row = sold(pool)
    row.profile = selling.pool("Other").profiles.get()
    with pytest.raises(ValidationError) as refused:
        row.full_clean()
    assert "profile" in refused.value.message_dict


def test_the_database_holds_the_rules(pool: Pool) -> None:
    row = sold(pool)
    for wrong in (
        {"state": "maybe"},
        {"verdict": "perhaps"},
        {"verdict": "short", "override_reason": ""},
        {"state": "refused", "reason": ""},
        {"burst_mu": 0},
        {"currency": "EUR"},
    ):
        with pytest.raises(IntegrityError), transaction.atomic():
            Reservation.objects.filter(pk=row.pk).update(**wrong)


# ----- asked for and decided upon
def asked(pool: Pool, mu: float = 50.0, **fields: Any) -> Reservation:
    return reservation_request(
        **{
            "tenant": factories.tenant(),
            "pool": pool,
            "mu_per_min": mu,
            "actor": factories.user(),
            "note": "Please",
            **fields,
        }
    )


def test_a_request_promises_nothing_until_it_is_approved(pool: Pool) -> None:
    row = asked(pool, 1000)
    assert (row.state, row.verdict, row.note) == ("requested", "", "Please")
    assert sold(pool, 300).verdict == "fits"
    with pytest.raises(CannotSell):
        reservation_approve(reservation=row, actor="op@example.org")
    row.refresh_from_db()
    assert row.state == "requested"
    approved = reservation_approve(reservation=row, actor="op@example.org", override_reason="They are our largest")
    assert (approved.state, approved.verdict, approved.decided_by) == ("active", "short", "op@example.org")
    assert approved.requested_by.endswith("@example.org")
    assert [e.action for e in AuditEntry.objects.filter(object_id=str(row.pk)).order_by("at")] == [
        "reservation.request",
        "reservation.approve",
    ]


def test_a_request_that_waited_too_long_starts_when_it_is_approved_or_is_over(pool: Pool) -> None:
    now = timezone.now()
    late = asked(pool, starts_at=now, ends_at=now + 2 * DAY)
    Reservation.objects.filter(pk=late.pk).update(starts_at=now - DAY)
    assert reservation_approve(reservation=late, actor="t").starts_at >= now
    over = asked(pool)
    Reservation.objects.filter(pk=over.pk).update(starts_at=now - 2 * DAY, ends_at=now - DAY)
    with pytest.raises(ValidationError, match="Its time is over"):
        reservation_approve(reservation=over, actor="t")


def test_a_refusal_has_a_reason_and_can_be_taken_back(pool: Pool) -> None:
    row = asked(pool)
    with pytest.raises(ValidationError, match="Say why"):
        reservation_refuse(reservation=row, actor="t", reason=" ")
    refused = reservation_refuse(reservation=row, actor="op@example.org", reason="No rack left")
    assert (refused.state, refused.reason, refused.decided_by) == ("refused", "No rack left", "op@example.org")
    with pytest.raises(ValidationError, match="refused: it cannot be approved"):
        reservation_approve(reservation=row, actor="t")
    again = reservation_restore(reservation=row, actor="t")
    assert (again.state, again.reason, again.decided_by) == ("requested", "", "")


def test_a_pool_that_somebody_asks_for_cannot_be_removed(pool: Pool) -> None:
    wanted = selling.pool("Wanted")
    row = asked(wanted)
    with pytest.raises(StillNeeded):
        pool_remove(pool=wanted, actor="t")
    reservation_cancel(reservation=row, actor="t")
    assert pool_remove(pool=wanted, actor="t")


def test_of_two_decisions_the_second_is_told(pool: Pool) -> None:
    row = asked(pool)
    copy = Reservation.objects.get(pk=row.pk)
    reservation_approve(reservation=row, actor="t")
    with pytest.raises(ValidationError, match="active: it cannot be refused"):
        reservation_refuse(reservation=copy, actor="t", reason="No")


# ----- pools of which the tenant is no more
@pytest.mark.parametrize("was_promised", [False, True])
def test_nothing_is_promised_of_a_pool_that_the_tenant_may_not_use_any_more(pool: Pool, was_promised: bool) -> None:
    owner, other = factories.tenant(), factories.tenant()
    tomorrow = timezone.now() + DAY
    if was_promised:
        row = sold(pool, 50, tenant=owner, starts_at=tomorrow)
        row = reservation_cancel(reservation=row, actor="t")
    else:
        row = reservation_request(
            tenant=owner, pool=pool, mu_per_min=50, starts_at=tomorrow, actor="owner@acme.example"
        )
    pool_tenants_set(pool=pool, tenants=[other], is_public=False, actor="t")
    decide = reservation_restore if was_promised else reservation_approve
    with pytest.raises(ValidationError, match="may not use"):
        decide(reservation=row, actor="t")
    assert Reservation.objects.get(pk=row.pk).state == row.state
    pool_tenants_set(pool=pool, tenants=[other, owner], is_public=False, actor="t")
    assert decide(reservation=Reservation.objects.get(pk=row.pk), actor="t").is_promised
