"""Limits that the operator set and the tenant's own: both stand, the smaller holds."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from tenants.models import Limit
from tenants.selectors import limits_held
from tenants.services import limit_remove, limit_set
from tests import factories

pytestmark = pytest.mark.django_db


def test_the_operators_limit_and_the_tenants_own_stand_beside_each_other() -> None:
    key, _ = factories.api_key()
    for api_key in (None, key):
        for set_by, value in (("operator", 10), ("tenant", 4), ("operator", 12)):
            limit_set(tenant=key.tenant, api_key=api_key, kind="concurrency", value=value, set_by=set_by, actor="t")
        stored = Limit.objects.filter(api_key=api_key).order_by("set_by")
        assert [(one.set_by, one.value, one.is_in_force) for one in stored] == [
            ("operator", 12, False),
            ("tenant", 4, True),
        ]
        assert limit_remove(limit=stored[1], actor="t")
        assert [(one.set_by, one.is_in_force) for one in stored.all()] == [("operator", True)]
    with pytest.raises(ValidationError) as error:
        limit_set(tenant=key.tenant, kind="concurrency", value=1, set_by="somebody", actor="t")
    assert "set_by" in error.value.message_dict


def test_the_database_holds_to_whose_a_limit_is() -> None:
    key, _ = factories.api_key()
    for fields in ({"api_key": None}, {"api_key": key}):
        Limit.objects.create(tenant=key.tenant, kind="concurrency", value=1, set_by="operator", **fields)
        with pytest.raises(IntegrityError), transaction.atomic():
            Limit.objects.create(tenant=key.tenant, kind="concurrency", value=2, set_by="operator", **fields)
    with pytest.raises(IntegrityError), transaction.atomic():
        Limit.objects.create(tenant=key.tenant, kind="tokens_per_min", value=1, set_by="")


def test_limits_know_what_stands_beside_them_in_one_query(django_assert_num_queries: Any) -> None:
    key, _ = factories.api_key()
    other, _ = factories.api_key()
    for tenant, api_key in ((key.tenant, None), (key.tenant, key), (other.tenant, None), (other.tenant, other)):
        for model in ("", "chat"):
            for set_by, value in (("operator", 5), ("tenant", 3 if api_key else 8)):
                limit_set(
                    tenant=tenant,
                    api_key=api_key,
                    kind="concurrency",
                    model=model,
                    value=value,
                    set_by=set_by,
                    actor="t",
                )
    alone = {one.pk: (one.is_in_force, one.holding.in_force.pk) for one in Limit.objects.all()}
    rows = list(Limit.objects.all())
    with django_assert_num_queries(1):
        found = {one.pk: (one.is_in_force, one.holding.in_force.pk) for one in limits_held(rows)}
    assert found == alone
    in_force = {(one.api_key_id, one.set_by) for one in rows if one.is_in_force}
    assert in_force == {(None, "operator"), (key.pk, "tenant"), (other.pk, "tenant")}
