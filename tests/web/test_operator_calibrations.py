"""Operators' pages of calibrations: what they show, and what is done there."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from capacity.models import CostProfile
from capacity.usage.lines import Usage
from capacity.usage.writer import write_batch
from penstock.web.operators.calibration_plots import HEIGHT, WIDTH, curve, residuals, throughput
from serving.measuring import levels_of
from serving.models import Calibration, Deployment, Incident, Replica
from serving.services import revision_create
from tenants.models import Tenant
from tests import factories
from tests.factories import Traffic, batch
from tests.web.acting import text
from tests.web.seed import Seeded

LIMIT = {"target_concurrency": 16, "recommended": 64, "estimate": [[10.0, 6.0], [40.0, 9.0]]}


@pytest.fixture
def rows(platform: Seeded) -> dict[str, Calibration]:
    return {row.state: row for row in Calibration.objects.all()}


def test_the_list_is_filtered_and_has_an_empty_state(as_operator: Client, platform: Seeded) -> None:
    page = text(as_operator.get("/console/calibrations/"))
    assert "1 of 2 pools have a measured price. 1 calibration is under way. 1 fitted, and not adopted." in page
    for query, count in (("", 4), ("q=chat", 3), ("state=failed", 1), ("q=CPU", 1), ("q=nothing", 0)):
        answer = as_operator.get(f"/console/calibrations/?{query}")
        assert len(answer.context["rows"]) == count, query
    assert "No calibration fits these filters" in text(as_operator.get("/console/calibrations/?q=nothing"))
    Calibration.objects.all().delete()
    assert "Nothing was measured yet" in text(as_operator.get("/console/calibrations/"))


def test_a_fitted_one_shows_what_it_found_and_who_would_pay_more(
    as_operator: Client, rows: dict[str, Calibration], platform: Seeded
) -> None:
    with CaptureQueriesContext(connection) as queries:
        answer = as_operator.get(f"/console/calibrations/{rows['fitted'].pk}/")
    assert len(queries) < 40
    page = text(answer)
    for words in (
        "The fit misses by",
        "Who would pay more or less",
        "northwind",
        "alder",
        "Adopt…",
        "Time to first token",
    ):
        assert words in page, words
    assert "62 % of saturation" in page
    assert answer.content.count(b"<circle") >= len(rows["fitted"].fit["points"])
    assert "js/live.js" not in answer.content.decode(), "it is over: it stands still"


def test_the_preview_prices_the_usage_of_the_last_week_anew(
    as_operator: Client, rows: dict[str, Calibration], platform: Seeded
) -> None:
    """Against the formula of a price, written out here, over requests that were booked as gateways book them."""
    pool, now = str(platform.chat.pool_id), timezone.now().timestamp()
    long, short = factories.tenant(), factories.tenant()
    of_long, of_short = (Traffic(tenant=str(one.pk), pool=pool) for one in (long, short))
    read, made = (
        Usage(input_tokens=2000, cached_tokens=500, output_tokens=10),
        Usage(input_tokens=100, output_tokens=400),
    )
    day_s = 86400.0
    write_batch(
        batch(
            of_long.pair(now - day_s, usage=read, mu=3.0),
            of_long.pair(now - 6 * day_s, usage=read, mu=3.0),
            of_short.pair(now - 3600.0, usage=made, mu=30.0),
            # What was before, and what was of another pool, is not of it.
            of_short.pair(now - 9 * day_s, usage=made, mu=500.0),
            Traffic(tenant=str(long.pk)).pair(now - 3600.0, usage=made, mu=900.0),
            gateway="gw-preview",
            segment="preview",
        )
    )
    answer = as_operator.get(f"/console/calibrations/{rows['fitted'].pk}/")
    price = answer.context["adoption"].price

    def cost(read: int, cached: int, made: int) -> float:
        prefill = price.alpha * (read - cached + price.cached_factor * cached) + price.epsilon * (read**2 - cached**2)
        return float(price.base + prefill + price.beta * made + price.gamma * made * (read + made / 2))

    wanted = {long.slug: (6.0, 2 * cost(2000, 500, 10)), short.slug: (30.0, cost(100, 0, 400))}
    found = {one["slug"]: one["row"] for one in answer.context["preview_rows"] if one["slug"] in wanted}
    assert {slug: (row.mu_now, pytest.approx(row.mu_new)) for slug, row in found.items()} == wanted
    page = text(answer)
    for slug, (before, after) in wanted.items():
        assert slug in page
        assert f"{after / before:.2f}" in page


def test_one_under_way_moves_and_refreshes_when_it_is_over(
    as_operator: Client, rows: dict[str, Calibration], platform: Seeded
) -> None:
    path = f"/console/calibrations/{rows['measuring'].pk}/"
    answer = as_operator.get(path)
    assert "js/live.js" in answer.content.decode()
    assert "41 % · cost grid" in text(answer)
    part = as_operator.get(path, headers={"HX-Request": "true"})
    assert "HX-Refresh" not in part
    Calibration.objects.filter(pk=rows["measuring"].pk).update(state="cancelled")
    assert as_operator.get(path, headers={"HX-Request": "true"})["HX-Refresh"] == "true"


def test_a_failed_one_says_why(as_operator: Client, rows: dict[str, Calibration], platform: Seeded) -> None:
    page = text(as_operator.get(f"/console/calibrations/{rows['failed'].pk}/"))
    assert "It was not calibrated: not drained after 900 s" in page
    assert "Nothing was measured" in page


def test_it_is_adopted_from_a_date(as_operator: Client, rows: dict[str, Calibration], platform: Seeded) -> None:
    path = f"/console/calibrations/{rows['fitted'].pk}/adopt"
    page = text(as_operator.get(path))
    assert "Version 2 of the price of chat-32b takes over" in page
    assert "The usage of the last seven days would have been" in page
    wrong = as_operator.post(path, {"effective_from": "2001-01-01T00:00"})
    assert wrong.status_code == 400
    assert "is in force since" in text(wrong)
    day = timezone.now() + timedelta(days=3)
    page = text(as_operator.post(path, {"effective_from": day.strftime("%Y-%m-%dT%H:%M")}, follow=True))
    assert "It is adopted as version 2 of the price." in page
    made = CostProfile.objects.get(pool=platform.chat.pool, version=2)
    assert made.calibrated
    assert abs(made.effective_from - day) < timedelta(minutes=1)
    again = text(as_operator.get(path, follow=True))
    assert "Only a calibration that is fitted" in again


def test_one_under_way_is_cancelled_after_a_question(
    as_operator: Client, rows: dict[str, Calibration], platform: Seeded
) -> None:
    path = f"/console/calibrations/{rows['measuring'].pk}/cancel"
    assert "another calibration begins anew" in text(as_operator.get(path))
    page = text(as_operator.post(path, follow=True))
    assert "It is cancelled: its replica goes back into rotation." in page
    rows["measuring"].refresh_from_db()
    assert rows["measuring"].state == "cancelled"
    assert "It is over already" in text(as_operator.get(path, follow=True))


def test_one_is_begun_from_the_deployment(as_operator: Client, platform: Seeded) -> None:
    path = f"/console/deployments/{platform.chat.pk}/calibrate"
    page = text(as_operator.get(path))
    assert "One of its 3 ready replicas leaves the rotation" in page
    assert "Thorough" in page
    assert "only ready replica" not in page
    answer = as_operator.post(path, {"grid": "small"}, follow=True)
    made = Calibration.objects.get(state="queued")
    assert (made.deployment_id, made.grid, made.requested_by) == (platform.chat.pk, "small", platform.operator.email)
    assert answer.request["PATH_INFO"] == f"/console/calibrations/{made.pk}/"
    again = as_operator.get(path, follow=True)
    assert "under way already" in text(again)
    assert again.request["PATH_INFO"] == f"/console/calibrations/{made.pk}/"


def test_the_only_replica_needs_leave(as_operator: Client, platform: Seeded) -> None:
    ready = Replica.objects.filter(deployment=platform.chat, state="ready")
    ready.exclude(pk=ready.values("pk")[:1]).delete()
    path = f"/console/deployments/{platform.chat.pk}/calibrate"
    refused = as_operator.post(path, {"grid": "small"})
    assert refused.status_code == 400
    assert "only one replica is ready" in text(refused)
    assert "Take the only ready replica too" in text(refused)
    assert as_operator.post(path, {"grid": "small", "allow_outage": "on"}).status_code == 302


def test_the_deployments_tab_tells_the_price_and_its_drift(as_operator: Client, platform: Seeded) -> None:
    path = f"/console/deployments/{platform.chat.pk}/?tab=calibration"
    page = text(as_operator.get(path))
    assert "Version 1 of the price of chat-32b" in page
    assert "measured" in page
    assert "Calibrate…" in page
    sim = text(as_operator.get(f"/console/deployments/{platform.sim.pk}/?tab=calibration"))
    assert "It is an estimate" in sim
    assert "See its progress" in sim
    Calibration.objects.filter(deployment_id=platform.chat.pk).delete()
    assert "It was not calibrated yet" in text(as_operator.get(path))
    assert Deployment.objects.count() == 2


def test_a_drift_is_told_in_the_list(as_operator: Client, platform: Seeded) -> None:
    Incident.objects.create(
        kind="cost_drift", deployment_id=platform.chat.pk, deployment_name="chat-32b", summary="chat-32b drifts"
    )
    assert "1 drifts from what was measured" in text(as_operator.get("/console/calibrations/"))


def test_a_tenant_that_is_gone_is_still_counted(
    as_operator: Client, rows: dict[str, Calibration], platform: Seeded
) -> None:
    Tenant.objects.filter(pk=platform.alder.pk).update(slug="renamed")
    page = text(as_operator.get(f"/console/calibrations/{rows['fitted'].pk}/"))
    assert "renamed" in page


def test_one_that_was_not_adopted_by_itself_says_why(
    as_operator: Client, rows: dict[str, Calibration], platform: Seeded
) -> None:
    path = f"/console/calibrations/{rows['fitted'].pk}/"
    assert "It waits for a person" not in text(as_operator.get(path))
    reason = "not adopted by itself: the knee is at 4% of saturation. Look at it"
    Calibration.objects.filter(pk=rows["fitted"].pk).update(reason=reason)
    page = text(as_operator.get(path))
    assert "It waits for a person" in page
    assert "Not adopted by itself: the knee is at 4% of saturation. Look at it." in page


def test_places_that_limit_the_supply_are_said_until_another_revision_answers_it(
    as_operator: Client, rows: dict[str, Calibration], platform: Seeded
) -> None:
    row, places = rows["fitted"], platform.chat.revisions.get(is_current=True).target_concurrency
    limit = {
        "by": "concurrency", "target_concurrency": places, "recommended": 4 * places, "factor": 1.5, "kv_requests": 0,
        "estimate": [[places, 6.0], [4.0 * places, 9.0]], "text": "Raise it to more and calibrate again.",
    }  # fmt: skip
    Calibration.objects.filter(pk=row.pk).update(knee=row.knee | {"supply_limit": limit})
    own, tab = f"/console/calibrations/{row.pk}/", f"/console/deployments/{platform.chat.pk}/?tab=calibration"
    for path in (own, tab):
        page = text(as_operator.get(path))
        assert "The target concurrency limits the supply" in page
        assert "Raise it to more and calibrate again." in page
        assert f"New revision with {4 * places}…" in page
    assert "9 are expected of" in as_operator.get(own).content.decode()
    form = as_operator.get(f"/console/deployments/{platform.chat.pk}/?tab=settings&target_concurrency={4 * places}")
    assert form.context["revision_form"]["target_concurrency"].value() == 4 * places
    current = platform.chat.revisions.get(is_current=True)
    revision_create(
        deployment=platform.chat, runtime=current.runtime, options=current.options, target_concurrency=4 * places,
        actor=platform.operator,
    )  # fmt: skip
    assert "limits the supply" not in text(as_operator.get(tab))
    page = text(as_operator.get(own))
    assert "Raise it to more" in page, "it stays on record"
    assert "New revision with" not in page
    Calibration.objects.filter(pk=row.pk).update(knee={k: v for k, v in row.knee.items() if k != "supply_limit"})
    assert "limits the supply" not in text(as_operator.get(own)), "one of before knows nothing of it"


def test_pictures_stay_in_their_frame(rows: dict[str, Calibration]) -> None:
    row = rows["fitted"]
    plots = [
        residuals(row.fit["points"]),
        curve(row.levels, name="ttft_ms", title="TTFT", objective_ms=800.0, knee_per_s=row.knee["rate_per_s"]),
        curve(row.levels, name="tpot_ms", title="TPOT", objective_ms=1e-3, knee_per_s=None),
        throughput(levels_of(row), limit=None),
        throughput(levels_of(row), limit=LIMIT),
        curve(row.levels[:1], name="tpot_ms", title="TPOT", objective_ms=45.0, knee_per_s=None),
    ]
    for plot in plots:
        assert plot is not None
        for dot in plot.dots:
            assert 0 <= dot.x <= WIDTH
            assert 0 <= dot.y <= HEIGHT
        assert all(0 <= tick.at <= WIDTH for tick in (*plot.x_ticks, *plot.marks))
    assert residuals([]) is None
    assert throughput([], limit=None) is None
    assert curve([], name="ttft_ms", title="", objective_ms=1.0, knee_per_s=None) is None
    one = [{**row.fit["points"][0], "measured_ms": 5.0}]
    assert residuals(one) is not None
