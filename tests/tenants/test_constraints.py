"""A row's checks are asked of the database together, and say what each says alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import connection, models
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from capacity.models import CostProfile, HardwareType, Pool

PRICE = {"base": 0.0, "alpha": 0.01, "beta": 0.2, "gamma": 0.0, "epsilon": 0.0, "cached_factor": 0.1}


def profile(**fields: Any) -> CostProfile:
    given = {"version": 1, "effective_from": timezone.now(), **PRICE, **fields}
    return CostProfile(pool=Pool(slug="p", name="p"), hardware_type=HardwareType(slug="cpu", name="CPU"), **given)


def told(validate: Callable[..., None], exclude: set[str]) -> list[str]:
    try:
        validate(exclude=exclude)
    except ValidationError as error:
        return sorted(error.messages)
    return []


@pytest.mark.django_db
@pytest.mark.parametrize("exclude", [set(), {"base"}, {"cached_factor", "alpha"}])
@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 0),
        ({"price_per_1000_mu": None, "replica_mu_per_min": None}, 0),
        ({"base": -1.0, "replica_mu_per_min": None}, 1),
        ({"base": -1.0, "cached_factor": 1.5, "version": 0}, 3),
        ({"alpha": 0.0, "beta": 0.0, "price_per_1000_mu": -1.0}, 2),
    ],
)
def test_checks_say_together_what_each_says_alone(fields: dict[str, Any], count: int, exclude: set[str]) -> None:
    row = profile(**fields)
    alone = told(lambda **given: models.Model.validate_constraints(row, **given), exclude)
    assert told(row.validate_constraints, exclude) == alone
    assert exclude or len(alone) == count
    assert len(row.get_constraints()[0][1]) == len(CostProfile._meta.constraints)


@pytest.mark.django_db
def test_what_holds_is_asked_once() -> None:
    row = profile()
    checks = sum(isinstance(each, models.CheckConstraint) for each in CostProfile._meta.constraints)
    with CaptureQueriesContext(
        connection,
    ) as alone:
        models.Model.validate_constraints(row)
    with CaptureQueriesContext(connection) as together:
        row.validate_constraints()
    asked = [sum(query["sql"].startswith("SELECT") for query in each.captured_queries) for each in (alone, together)]
    assert asked[0] - asked[1] == checks - 1 > 2
