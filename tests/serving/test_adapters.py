"""An adapter's name means one thing in the whole installation."""

from __future__ import annotations

import msgspec
import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from penstock.published import records
from serving.models import Deployment
from serving.services import deployment_create, revision_create
from tests import factories

pytestmark = pytest.mark.django_db


def made(name: str, **loras: str) -> Deployment:
    return deployment_create(
        pool=factories.pool(), name=name, runtime="vllm", options={"adapters": loras} if loras else {}, actor="t"
    )


def test_gateways_are_told_of_adapters() -> None:
    served = made("base", law="/loras/law", tax="/loras/tax")
    published = [msgspec.json.decode(raw) for pk, _, raw in records("deployment", {served.pk}, now=timezone.now())]
    assert [record["adapters"] for record in published] == [["law", "tax"]]


def test_a_name_that_means_something_else_is_refused() -> None:
    base = made("base", law="/loras/law")
    made("other")
    for taken in ("law", "other", "own"):
        with pytest.raises(ValidationError, match="means something else already"):
            made("own", **{taken: "/loras/x"})
    assert not Deployment.objects.filter(name="own").exists()
    # A deployment may go on with its own adapters.
    again = revision_create(deployment=base, runtime="vllm", options={"adapters": {"law": "/loras/law2"}}, actor="t")
    assert again.is_current
