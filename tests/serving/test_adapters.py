"""An adapter's name means one thing in the whole installation."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from penstock.published import records
from serving.models import Deployment, Replica
from serving.services import deployment_create, replica_transition, revision_create
from tenants.models import Change
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


def test_no_deployment_takes_an_adapters_name() -> None:
    made("base", law="/loras/law")
    with pytest.raises(ValidationError, match="law is an adapter of base"):
        made("law")


def told(served: Deployment) -> dict[str, Any]:
    ((_, _, raw),) = records("deployment", {served.pk}, now=timezone.now())
    found: dict[str, Any] = msgspec.json.decode(raw)
    return {name: found.get(name, []) for name in ("adapters", "speaks")}


def test_while_a_revision_takes_over_only_what_all_replicas_serve_is_published() -> None:
    served = made("base", law="/loras/law")
    old, host = factories.replica(served), factories.host()
    Replica.objects.filter(pk=old.pk).update(state="ready", host=host, address="http://127.0.0.1:9")
    options = {"adapters": {"tax": "/loras/tax", "law": "/loras/law"}}
    revision_create(deployment=served, runtime="vllm", options=options, actor="t")
    assert told(served)["adapters"] == ["law"], "the newest revision serves nothing yet"
    new = factories.replica(served)
    Replica.objects.filter(pk=new.pk).update(state="ready", host=host, address="http://127.0.0.1:8")
    assert told(served)["adapters"] == ["law"]
    before = Change.objects.filter(kind="deployment", object_id=str(served.pk)).count()
    old.refresh_from_db()
    assert replica_transition(replica=old, to="draining", reason="replaced")
    assert Change.objects.filter(kind="deployment", object_id=str(served.pk)).count() == before + 1
    assert sorted(told(served)["adapters"]) == ["law", "tax"]
    assert told(served)["speaks"]
