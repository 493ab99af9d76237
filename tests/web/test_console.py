"""The console's figures: decisions, what could be had, and what is sold."""

from __future__ import annotations

import uuid
from datetime import timedelta

from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from serving.models import ScalingDecision
from tests.web.seed import Seeded


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
