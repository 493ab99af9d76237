"""Usage of before invoices were kept: this month's is added up, earlier months are not invoiced."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

pytestmark = pytest.mark.django_db(transaction=True)

BEFORE, AFTER = [("capacity", "0011_receipts_of_limits")], [("capacity", "0012_invoices")]


@pytest.fixture
def before() -> Iterator[Any]:
    """The models as they were; afterwards all migrations are applied again."""
    executor = MigrationExecutor(connection)
    newest = executor.loader.graph.leaf_nodes()
    executor.migrate(BEFORE)
    try:
        yield MigrationExecutor(connection).loader.project_state(BEFORE).apps
    finally:
        MigrationExecutor(connection).migrate(newest)


def test_this_month_is_added_up(before: Any) -> None:
    now = timezone.now()
    month = now.astimezone(datetime.UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    ids = {f"{name}_id": uuid.uuid4() for name in ("tenant", "key", "pool", "deployment", "revision")}
    said = {"model": "chat", "dialect": "chat", "service_class": "best_effort", "profile_version": 2, "gateway": "g"}
    records = before.get_model("capacity", "UsageRecord").objects
    for at, mu in ((month, 0.1), (month, 0.2), (month - datetime.timedelta(seconds=1), 5.0)):
        records.create(
            id=uuid.uuid4(),
            **ids,
            **said,
            estimated_mu=1.0,
            actual_mu=mu,
            input_tokens=7,
            outcome="completed",
            status=200,
            admitted_at=at,
            ended_at=at,
        )
    executor = MigrationExecutor(connection)
    executor.migrate(AFTER)
    apps = executor.loader.project_state(AFTER).apps
    (row,) = apps.get_model("capacity", "BilledDay").objects.all()
    assert (row.day, row.requests, row.input_tokens, row.profile_version) == (month.date(), 2, 14, 2)
    assert row.mu_whole + Decimal(row.mu_nano).scaleb(-9) == Decimal("0.3")
    assert apps.get_model("capacity", "BooksState").objects.get().billed_from == month.date()
