"""Of the operator's limit and the tenant's own, gateways are told of one: the smaller, whatever came and went."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.utils import timezone
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.published import records
from tenants.models import Limit
from tenants.services import limit_remove, limit_set
from tests import factories

pytestmark = pytest.mark.django_db

Place = tuple[bool, str, str]
"""Whether it is of the key, the kind, the model."""
PLACES = st.tuples(st.booleans(), st.sampled_from(["tokens_per_min", "concurrency"]), st.sampled_from(["", "chat"]))
ACTS = st.lists(
    st.tuples(PLACES, st.sampled_from(["operator", "tenant"]), st.none() | st.integers(1, 6)), min_size=1, max_size=14
)
"""Where, whose, and the value; None: it is removed."""


def told(tenant: Any, key: Any) -> dict[Place, list[tuple[float, str]]]:
    """Value and id of what the records of the tenant and its key say, by place."""
    found: dict[Place, list[tuple[float, str]]] = {}
    for kind, row in (("tenant", tenant), ("key", key)):
        ((_, _, raw),) = records(kind, [row.pk], now=timezone.now())
        for limit in json.loads(raw).get("limits", ()):
            place = (kind == "key", limit["kind"], limit.get("model", ""))
            found.setdefault(place, []).append((limit["value"], limit["id"]))
    return found


@settings(max_examples=60, deadline=None)
@given(acts=ACTS)
def test_gateways_are_told_the_smaller_of_both(acts: list[tuple[Place, str, int | None]]) -> None:
    key, _ = factories.api_key()
    tenant = key.tenant
    stand: dict[Place, dict[str, int]] = {}
    for place, set_by, value in acts:
        of_key, kind, model = place
        before = told(tenant, key)
        had_operators = "operator" in stand.get(place, {})
        if value is not None:
            limit_set(
                tenant=tenant,
                api_key=key if of_key else None,
                kind=kind,
                model=model,
                value=value,
                set_by=set_by,
                actor="t",
            )
            stand.setdefault(place, {})[set_by] = value
        elif set_by in stand.get(place, {}):
            of = {"api_key__isnull": not of_key, "kind": kind, "model": model, "set_by": set_by}
            limit_remove(limit=Limit.objects.get(tenant=tenant, **of), actor="t")
            del stand[place][set_by]
        after = told(tenant, key)
        assert {where: [value for value, _ in both] for where, both in after.items()} == {
            where: [float(sorted(values.values())[0])] for where, values in stand.items() if values
        }
        if had_operators and set_by == "tenant":
            assert [name for _, name in after[place]] == [name for _, name in before[place]], (
                "what is used up stays used up, whatever the tenant does"
            )
