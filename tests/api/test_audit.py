"""Audit entries over the REST API: each tenant its own, operators all."""

from __future__ import annotations

import datetime
from urllib.parse import urlencode

import pytest

from tenants.models import AuditEntry
from tenants.services import limit_set, user_create
from tests.api.callers import NOWHERE, codes, operators_only
from tests.api.conftest import Api, World
from tests.api.test_foundation import problem

PATH = "/tenants/acme/audit"


def filtered(client: Api, path: str, **filters: object) -> list[str]:
    answer = client.get(f"{path}?{urlencode(filters)}")
    assert answer.status_code == 200, answer.content
    return [row["action"] for row in answer.json()["results"]]


def test_who_reads_the_entries_of_a_tenant(world: World) -> None:
    entry = AuditEntry.objects.filter(tenant_id=world.acme.pk).latest("at")
    for path in (PATH, f"{PATH}/{entry.pk}"):
        assert codes(world, "get", path) == {
            "owner": 200,
            "admin": 200,
            "developer": 403,
            "viewer": 403,
            "outsider": 404,
            "nobody": 401,
            "key:inference": 404,
            "key:usage": 403,
            "key:manage": 200,
            "operator": 200,
        }


def test_operators_read_all_entries(world: World) -> None:
    entry = AuditEntry.objects.filter(tenant_id=None).latest("at")
    for path in ("/audit", f"/audit/{entry.pk}"):
        assert codes(world, "get", path) == operators_only(200)
    operator = world.by("operator")
    everything = filtered(operator, "/audit", page_size=1000)
    assert len(everything) == AuditEntry.objects.count()
    assert {"user.create", "tenant.create"} <= set(everything)
    of_other = filtered(operator, "/audit", tenant=world.other.pk)
    assert of_other == filtered(world.by("outsider"), "/tenants/other/audit")


@pytest.mark.parametrize("who", ["owner", "key:manage"])
def test_a_tenant_sees_nothing_of_another_and_of_the_platform(world: World, who: str) -> None:
    client = world.by_key("manage") if who.startswith("key") else world.by(who)
    rows = client.get(f"{PATH}?page_size=1000").json()["results"]
    assert {row["tenant_id"] for row in rows} == {str(world.acme.pk)}
    for foreign in AuditEntry.objects.exclude(tenant_id=world.acme.pk):
        assert client.get(f"{PATH}/{foreign.pk}").status_code == 404
    assert client.get(f"{PATH}/{NOWHERE}").status_code == 404
    assert client.get("/tenants/other/audit").status_code == 404


def test_an_entry_tells_who_did_what_and_no_secret(world: World) -> None:
    secret = world.by("admin").post("/tenants/acme/keys", {"name": "ci"}, format="json").json()["secret"]
    row = world.by("owner").get(f"{PATH}?page_size=1").json()["results"][0]
    assert (row["actor"], row["action"]) == ("admin@acme.example", "api_key.create")
    assert row["object_type"] == "tenants.apikey"
    assert row["actor_id"] == str(world.members["admin"].pk)
    assert row["after"]["name"] == "ci"
    assert secret.split("_")[2] not in str(row)
    assert "digest" not in str(row)
    assert world.by("owner").get(f"{PATH}/{row['id']}").json() == row


def test_entries_are_filtered(world: World) -> None:
    owner = world.by("owner")
    limit = limit_set(tenant=world.acme, kind="concurrency", value=4, set_by="tenant", actor=world.members["admin"])
    assert filtered(owner, PATH, action="limit.set") == ["limit.set"]
    assert filtered(owner, PATH, actor="Admin@acme.example") == ["limit.set"]
    assert filtered(owner, PATH, object_type="tenants.limit", object_id=limit.pk) == ["limit.set"]
    at = AuditEntry.objects.get(action="limit.set").at
    assert filtered(owner, PATH, since=at.isoformat()) == ["limit.set"]
    before = filtered(owner, PATH, until=at.isoformat())
    assert "limit.set" not in before
    assert "tenant.create" in before
    assert filtered(owner, PATH, since=(at + datetime.timedelta(seconds=1)).isoformat()) == []
    body = problem(owner.get(f"{PATH}?since=yesterday"), 400, "invalid")
    assert body["errors"][0]["field"] == "since"


def test_pages_neither_repeat_nor_miss_when_entries_come_in(world: World) -> None:
    operator = world.by("operator")
    known = set(AuditEntry.objects.values_list("pk", flat=True))
    url, seen = "/audit?page_size=4", []
    while url:
        page = operator.get(url).json()
        seen += [row["id"] for row in page["results"]]
        user_create(email=f"late{len(seen)}@example.org", actor="test")
        url = page["next"].removeprefix("http://testserver") if page["next"] else ""
    assert len(seen) == len(set(seen))
    assert set(seen) == {str(pk) for pk in known}
    assert seen == sorted(seen, reverse=True)


def test_entries_are_only_read(world: World) -> None:
    entry = AuditEntry.objects.filter(tenant_id=world.acme.pk).latest("at")
    for path in ("/audit", PATH, f"/audit/{entry.pk}", f"{PATH}/{entry.pk}"):
        for method in ("post", "put", "patch", "delete"):
            assert getattr(world.by("operator"), method)(path, {}, format="json").status_code == 405
