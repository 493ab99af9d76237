"""The console's figures: decisions, what could be had, and what is sold."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from capacity.models import (
    Accelerator,
    BooksState,
    CostProfile,
    GuaranteeHour,
    GuaranteeMinute,
    HardwareType,
    Model,
    Pool,
    PoolRollup,
    Reservation,
    UsageRollup,
)
from penstock.web.console_rows import Totals
from serving.models import Deployment, ScalingDecision
from serving.services import deployment_remove
from tests.web.seed import Seeded

PAST = ("have", "offered", "used", "sold")


def decisions(name: str, minutes_ago: int, *, count: int = 1, before: int = 2, after: int = 2) -> None:
    """``count`` looks at a deployment ``name``, one a minute, the newest ``minutes_ago``."""
    now, deployment_id = timezone.now(), uuid.uuid4()
    ScalingDecision.objects.bulk_create(
        ScalingDecision(
            at=now - timedelta(minutes=minutes_ago + index),
            deployment_id=deployment_id,
            deployment_name=name,
            before=before,
            after=after,
            reason=f"look {index}",
        )
        for index in range(count)
    )


def feed(client: Client) -> list[tuple[str, str]]:
    rows = client.get("/console/live").context["console"].decisions
    return [(row.deployment_name, row.reason) for row in rows]


def test_the_feed_holds_changes_and_the_last_look_of_those_that_decide(as_operator: Client, platform: Seeded) -> None:
    decisions("grows", 90, before=1, after=2)
    decisions("holds", 1, count=4)
    decisions("switched-off", 30, count=20)
    decisions("grew-last-week", 60 * 24 * 7, before=1, after=2)
    shown = feed(as_operator)
    assert ("grows", "look 0") in shown
    assert [reason for name, reason in shown if name == "holds"] == ["look 0"]
    assert not {"switched-off", "grew-last-week"} & {name for name, _ in shown}
    assert len(shown) <= 6


def test_the_feed_is_read_without_asking_once_per_row(as_operator: Client) -> None:
    decisions("switched-off", 30, count=200)
    with CaptureQueriesContext(connection) as captured:
        as_operator.get("/console/live")
    asked = [row["sql"] for row in captured if 'FROM "serving_scalingdecision"' in row["sql"]]
    assert len(asked) == 2
    explain = "EXPLAIN QUERY PLAN " if connection.vendor == "sqlite" else "EXPLAIN "
    for sql in asked:
        with connection.cursor() as cursor:
            cursor.execute(explain + sql)
            plan = str(cursor.fetchall())
        assert "SUBQUERY" not in plan, plan
        assert "SubPlan" not in plan, plan


def totals(client: Client) -> Totals:
    found: Totals = client.get("/console/live").context["console"].totals
    return found


def sold_pool(platform: Seeded, *, replica_mu_per_min: float = 50.0) -> Pool:
    """A pool of which 100 MU/min are sold and that nothing serves."""
    pool = Pool.objects.create(slug="promised", name="promised", model=Model.objects.get(slug="simulated"))
    profile = CostProfile.objects.create(
        pool=pool,
        version=1,
        hardware_type=HardwareType.objects.get(slug="cpu"),
        effective_from=timezone.now() - timedelta(days=60),
        alpha=0.1,
        beta=0.2,
        replica_mu_per_min=replica_mu_per_min,
    )
    Reservation.objects.create(
        tenant=platform.northwind,
        pool=pool,
        profile=profile,
        mu_per_min=100.0,
        starts_at=timezone.now() - timedelta(days=2),
        state=Reservation.State.ACTIVE,
    )
    return pool


def newest_sold(client: Client, query: str = "") -> float | None:
    line: list[float | None] = client.get(f"/console/series.json{query}").json()["sold"]
    return line[-1]


def test_what_is_sold_counts_where_nothing_serves_it(as_operator: Client, platform: Seeded) -> None:
    assert (totals(as_operator).sold, newest_sold(as_operator)) == (pytest.approx(2.4), pytest.approx(2.4))
    sold_pool(platform)
    # Two of its reference replicas, and 2.4 of chat-32b's.
    assert (totals(as_operator).sold, newest_sold(as_operator)) == (pytest.approx(4.4), pytest.approx(4.4))
    assert newest_sold(as_operator, "?pool=promised") == 100.0
    assert b"?pool=promised" in as_operator.get("/console/").content


def test_a_sold_pool_beside_the_only_served_one_is_not_added_in_its_unit(as_operator: Client, platform: Seeded) -> None:
    platform.sim.replicas.all().delete()
    platform.sim.delete()
    assert totals(as_operator).unit == "MU/min"
    sold_pool(platform)
    assert (totals(as_operator).unit, totals(as_operator).sold) == ("replica-eq.", pytest.approx(4.4))


def test_what_is_sold_is_told_before_anything_is_deployed(as_operator: Client, platform: Seeded) -> None:
    for row in (platform.chat, platform.sim):
        row.replicas.all().delete()
        row.delete()
    assert (
        "240 MU/min are sold, and nothing is deployed to serve them." in as_operator.get("/console/").content.decode()
    )
    sold_pool(platform)
    assert "4.40 replica-equivalents are sold, and nothing" in as_operator.get("/console/").content.decode()


@pytest.mark.parametrize(("pinned", "most"), [(None, 6), (9, 9), (2, 2)])
def test_a_pinned_deployment_could_have_what_it_is_pinned_to(
    as_operator: Client, platform: Seeded, pinned: int | None, most: int
) -> None:
    Deployment.objects.filter(pk=platform.chat.pk).update(pinned_replicas=pinned)
    page = as_operator.get("/console/live").context["console"]
    (row,) = [row for row in page.deployments if row.deployment == platform.chat]
    assert row.could_mu_per_min == 100.0 * most
    assert row.marks_label.endswith(f"{most} at most")
    # Three ready and one starting, one failed beside them.
    assert [kind for kind, _ in row.marks].count("slot") == max(0, most - 4)
    assert page.totals.could == most + 4
    assert as_operator.get("/console/series.json").json()["could"][-1] == most + 4


@pytest.mark.parametrize(
    "address",
    ["/console/series.json?pool=a%00b", "/console/accelerators.json?hardware=a%00b",
     "/console/invoices/issue?tenant=a%00b&month=2026-09"],
)  # fmt: skip
def test_a_name_that_no_database_can_hold_breaks_nothing(as_operator: Client, platform: Seeded, address: str) -> None:
    answer = as_operator.get(address)
    assert answer.status_code in (200, 404)
    assert answer.resolver_match, "there is such a page"


def drawn(client: Client, query: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/console/series.json{query}").json()
    return found


def hours(count: int) -> list[datetime]:
    """``count`` hours of which nothing is told yet, oldest first: from two days ago on."""
    first = timezone.now().replace(minute=0, second=0, microsecond=0) - timedelta(hours=48)
    made = [first + timedelta(hours=number) for number in range(count)]
    PoolRollup.objects.filter(starts_at__in=made).delete()
    GuaranteeHour.objects.filter(starts_at__in=made).delete()
    return made


def test_weeks_are_read_from_hours_and_a_bucket_is_the_mean_of_its_own(as_operator: Client, platform: Seeded) -> None:
    chat, sold = platform.chat.pool_id, Reservation.objects.filter(state="active").order_by("-mu_per_min")
    past = hours(6)
    for index, at in enumerate(past):
        PoolRollup.objects.create(
            period="hour", starts_at=at, pool_id=chat, have=100.0 + index, could=600.0, offered=50.0
        )
        UsageRollup.objects.filter(period="hour", starts_at=at).delete()
        for of_class, mu in (("reserved", 1800.0), ("best_effort", 600.0)):
            UsageRollup.objects.create(
                period="hour",
                starts_at=at,
                tenant_id=platform.northwind.pk,
                key_id=uuid.uuid4(),
                pool_id=chat,
                deployment_id=platform.chat.pk,
                service_class=of_class,
                mu=mu,
            )
        for row in sold:
            GuaranteeHour.objects.create(
                reservation=row, starts_at=at, lent_mu=120.0, minutes=60, breach_minutes=3 if index == 2 else 0
            )
    week = drawn(as_operator, "?range=7d&pool=chat-32b")
    at = week["t"].index(past[0].timestamp())
    for name, expected in {
        "have": [100.0 + index for index in range(6)],
        "could": [600.0] * 6,
        "offered": [50.0] * 6,
        "sold": [240.0] * 6,
        "reserved": [30.0] * 6,
        "best": [10.0] * 6,
        "used": [40.0] * 6,
        # Two reservations, 2 MU/min of each.
        "lent": [4.0] * 6,
        "breached": [0.0, 0.0, 6.0, 0.0, 0.0, 0.0],
    }.items():
        assert week[name][at : at + 6] == pytest.approx(expected), name
    month = drawn(as_operator, "?range=30d&pool=chat-32b")
    (bucket,) = [index for index, minutes in enumerate(month["breached"]) if minutes]
    assert month["breached"][bucket] == 6.0
    assert month["have"][bucket] is not None
    # In replica-equivalents of 100 MU/min.
    assert drawn(as_operator, "?range=7d")["lent"][at] == pytest.approx(0.04)


def test_the_table_tells_what_the_chart_draws(as_operator: Client, platform: Seeded) -> None:
    page = as_operator.get("/console/?range=1h&pool=chat-32b").content.decode()
    told = drawn(as_operator, "?range=1h&pool=chat-32b")
    for name in ("have", "sold", "could"):
        known = [value for value in told[name] if value is not None]
        assert told["figures"][f"{name} most"] == f"{max(known):,.0f}"
        assert f'data-figure="{name} most">{max(known):,.0f}</td>' in page
    assert told["figures"]["breached sum"] == "0"
    for address in ("/console/deployments/?pool=chat-32b", "/console/reservations/?pool=chat-32b"):
        assert f'href="{address}"' in page


def test_breached_minutes_lead_to_the_month_of_the_newest(as_operator: Client, platform: Seeded) -> None:
    row = Reservation.objects.filter(state="active").first()
    at = timezone.now().replace(second=0, microsecond=0) - timedelta(minutes=20)
    GuaranteeMinute.objects.filter(reservation=row, starts_at=at).delete()
    GuaranteeMinute.objects.create(reservation=row, starts_at=at, is_breach=True, reason="x", requests=1)
    assert drawn(as_operator, "?range=1h&pool=chat-32b")["figures"]["breached sum"] == "1"
    assert sum(drawn(as_operator, "?range=1h&pool=demo-sim")["breached"]) == 0.0
    page = as_operator.get("/console/?range=1h&pool=chat-32b").content.decode()
    assert f'href="/console/guarantees/?month={at:%Y-%m}"' in page


def test_what_the_ledger_has_not_judged_yet_is_not_said_to_be_kept(as_operator: Client, platform: Seeded) -> None:
    until = timezone.now().replace(second=0, microsecond=0) - timedelta(minutes=30)
    BooksState.objects.update(guaranteed_until=until)
    GuaranteeMinute.objects.filter(starts_at__gte=until).delete()
    lines = drawn(as_operator, "?range=1h&pool=chat-32b")
    known = [at for at, lent in zip(lines["t"], lines["lent"], strict=True) if lent is not None]
    assert max(known) < until.timestamp() <= max(known) + lines["step_s"]
    assert lines["breached"][-1] is None


def test_accelerators_of_all_pools_are_drawn_by_their_kind(as_operator: Client, platform: Seeded) -> None:
    lines = as_operator.get("/console/accelerators.json?range=1h&hardware=h200").json()
    assert (lines["unit"], lines["have"][-1], lines["sold"][-1]) == ("accelerators", 4.0, 2.4)
    assert lines["figures"]["used most"] == "4"
    assert as_operator.get("/console/accelerators.json?range=1h").json()["have"] == lines["have"]
    assert as_operator.get("/console/accelerators.json?hardware=none").status_code == 404
    page = as_operator.get("/console/").content.decode()
    assert "NVIDIA H200, across pools: 4 had, 4 used, 2.40 sold, 0 free now" in page
    Accelerator.objects.all().delete()
    Reservation.objects.update(state="ended")
    assert as_operator.get("/console/accelerators.json").status_code == 404
    assert "No host has an accelerator" in as_operator.get("/console/").content.decode()


def test_the_charts_are_for_operators_alone(client: Client, platform: Seeded) -> None:
    for person in (platform.owner, platform.viewer, platform.stranger, None):
        if person is None:
            client.logout()
        else:
            client.force_login(person)
        for address in ("/console/", "/console/series.json", "/console/accelerators.json?hardware=h200"):
            answer = client.get(address)
            assert answer.status_code in (302, 403, 404), (person, address)
            assert b"h200" not in answer.content


@pytest.mark.parametrize("query", ["?range=6h", "?range=6h&pool=chat-32b"])
def test_the_past_stays_when_a_deployment_is_removed(as_operator: Client, platform: Seeded, query: str) -> None:
    def lines() -> dict[str, dict[float, float | None]]:
        drawn = as_operator.get(f"/console/series.json{query}").json()
        # But for the newest minutes, which the clock moves while this test runs.
        return {name: dict(zip(drawn["t"][:-3], drawn[name], strict=False)) for name in (*PAST, "could")}

    Reservation.objects.update(state=Reservation.State.ENDED)
    before = lines()
    assert sum(value or 0.0 for value in before["used"].values()) > 0.0
    deployment_remove(deployment=platform.chat, actor="t", confirm=platform.chat.name)
    after = lines()
    for name in PAST:
        both = before[name].keys() & after[name].keys()
        assert len(both) > 300
        assert {at: after[name][at] for at in both} == pytest.approx({at: before[name][at] for at in both}), name
    could = {(value or 0.0) for value in after["could"].values()}
    assert max(could) < max(value or 0.0 for value in before["could"].values())
    Deployment.everything.filter(pk=platform.chat.pk).update(removed_at=timezone.now() - timedelta(hours=9))
    gone = lines()
    assert sum(value or 0.0 for value in gone["have"].values()) < sum(value or 0.0 for value in before["have"].values())
    # What was booked stays booked, whatever became of what served it.
    assert sum(value or 0.0 for value in gone["used"].values()) > 0.0
