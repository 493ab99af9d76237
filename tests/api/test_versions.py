"""Changes that insist on a version, by callers who come at the same moment."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext
from psycopg.errors import DeadlockDetected, QueryCanceled, SerializationFailure

from tenants.models import Limit, Membership
from tenants.services import limit_set
from tests.api.conftest import World
from tests.api.test_foundation import problem


def tables_locked(ask: Any) -> list[str]:
    """Of the rows that a request updates or deletes, in order."""
    with CaptureQueriesContext(connection) as queries:
        answer = ask()
    assert answer.status_code in (200, 204), answer.content
    texts = [query["sql"].split('"') for query in queries]
    return [text[1] for text in texts if text[0].strip() in ("UPDATE", "DELETE FROM") and "last_used" not in str(text)]


@pytest.mark.parametrize("insists", [False, True])
def test_whoever_changes_what_belongs_to_a_tenant_takes_its_turn_first(world: World, insists: bool) -> None:
    """Always in the same order: two who lock the same rows in another order wait for each other for ever."""
    owner = world.by("owner")
    limit_set(tenant=world.acme, kind=Limit.Kind.CONCURRENCY, value=4, set_by="tenant", actor="test")
    member = Membership.objects.get(tenant=world.acme, user=world.members["viewer"])
    for path, method, body in (
        ("/tenants/acme/limits/concurrency", "put", {"value": 5}),
        ("/tenants/acme/limits/concurrency", "delete", None),
        (f"/tenants/acme/members/{member.pk}", "patch", {"role": "developer"}),
        (f"/tenants/acme/members/{member.pk}", "delete", None),
    ):
        headers = {"if-match": owner.get(path).headers["ETag"]} if insists else {}
        locked = tables_locked(lambda m=method, p=path, b=body, h=headers: getattr(owner, m)(p, b, "json", headers=h))
        assert locked[0] == "tenants_tenant", (method, path)
        assert len(locked) > 1


@pytest.mark.parametrize(
    ("cause", "code"), [(DeadlockDetected(), 409), (SerializationFailure(), 409), (QueryCanceled(), 500), (None, 500)]
)
def test_whoever_is_chosen_to_give_way_is_told_to_try_again(
    world: World, monkeypatch: pytest.MonkeyPatch, cause: Exception | None, code: int
) -> None:
    def fail(**_: Any) -> None:
        raise OperationalError("canceling: process 7 waits for ShareLock") from cause

    monkeypatch.setattr("tenants.api.tenants.tenant_update", fail)
    owner = world.by("owner")
    owner.raise_request_exception = False
    answer = owner.patch("/tenants/acme", {"name": "A"}, format="json")
    assert answer.status_code == code
    assert b"process" not in answer.content
    if code == 409:
        assert "again" in problem(answer, 409, "conflict")["detail"]


@pytest.mark.parametrize("stated", ["", " "])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tenants/acme/limits/concurrency", {"value": 1}),
        ("/provider-credentials/main", {"provider": "openai", "secret": "sk-secret"}),
    ],
)
def test_an_empty_version_is_none_where_something_is_made(
    world: World, path: str, body: dict[str, Any], stated: str
) -> None:
    operator = world.by("operator")
    for insisted in ('"x"', "*"):
        problem(operator.put(path, body, format="json", headers={"if-match": insisted}), 412, "changed")
    codes = [operator.put(path, body, format="json", headers={"if-match": stated}).status_code for _ in range(2)]
    assert codes == [201, 200]
