"""Hardware types, hosts and accelerators over the REST API."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from capacity.models import Host
from serving.models import Replica
from tenants.crypto import decrypt
from tenants.models import AuditEntry
from tests import factories
from tests.api.callers import codes, operators_only
from tests.api.conftest import World
from tests.api.test_foundation import problem


@pytest.fixture
def host(world: World) -> Host:
    """Two accelerators, the second held by a replica that starts."""
    made = factories.host(name="rack-1", labels={"zone": "a"})
    for index in range(2):
        made.accelerators.create(index=index, uuid=f"u{index}", name="NVIDIA H100", memory_bytes=80 << 30)
    replica = factories.replica(host=made)
    Replica.objects.filter(pk=replica.pk).update(accelerators=[1])
    return made


READS = ("/hardware-types", "/hardware-types/cpu", "/hosts", "/hosts/rack-1", "/accelerators")


@pytest.mark.parametrize("path", READS)
def test_operators_look_at_what_there_is(world: World, host: Host, path: str) -> None:
    assert codes(world, "get", path) == operators_only(200)


def test_only_operators_change_hosts(world: World, host: Host) -> None:
    path = f"/hosts/{host.pk}"
    labels = {"labels": {"zone": "b"}}
    assert codes(world, "patch", path, labels) == operators_only(200)
    for action in ("cordon", "drain", "uncordon", "renew-secret"):
        assert codes(world, "post", f"{path}/{action}") == operators_only(200)
    assert codes(world, "delete", path) == operators_only(409)


def test_a_host_tells_its_accelerators_and_their_use(world: World, host: Host) -> None:
    seen = world.by("operator").get("/hosts/rack-1").json()
    replica = Replica.objects.get()
    assert [row["used_by"] and row["used_by"]["id"] for row in seen["accelerators"]] == [None, str(replica.pk)]
    assert seen["replicas"] == [
        {
            "id": str(replica.pk),
            "deployment": replica.deployment.name,
            "state": "pending",
            "reason": "wanted",
            "accelerators": [1],
        }
    ]
    assert (seen["hardware_type"], seen["labels"], seen["state"]) == ("cpu", {"zone": "a"}, "active")
    assert world.by("operator").get(f"/hosts/{host.pk}").json() == seen
    Replica.objects.update(state=Replica.State.STOPPED)
    assert world.by("operator").get("/hosts/rack-1").json()["replicas"] == []


@pytest.mark.parametrize(
    ("query", "seen"),
    [
        ("", [0, 1]),
        ("in_use=true", [1]),
        ("in_use=false", [0]),
        ("host=rack-1", [0, 1]),
        ("host=other", []),
        ("hardware=h100", [0, 1]),
        ("hardware=l4", []),
        ("is_healthy=false", []),
    ],
)
def test_accelerators_are_filtered(world: World, host: Host, query: str, seen: list[int]) -> None:
    rows = world.by("operator").get(f"/accelerators?{query}").json()["results"]
    assert [row["index"] for row in rows] == seen


def test_half_a_character_is_no_label(world: World, host: Host) -> None:
    operator = world.by("operator")
    answer = operator.patch("/hosts/rack-1", '{"labels": {"\\ud800": "a"}}', content_type="application/json")
    assert answer.status_code == 400
    assert [operator.get(path).status_code for path in ("/hosts", "/audit")] == [200, 200]


def test_hosts_are_filtered(world: World, host: Host) -> None:
    operator = world.by("operator")
    factories.host(name="rack-2")
    found = {
        query: [row["name"] for row in operator.get(f"/hosts?{query}").json()["results"]]
        for query in ("search=RACK-2", "state=lost", "hardware_type=cpu", "hardware_type=none", "ordering=-name")
    }
    assert found == {
        "search=RACK-2": ["rack-2"],
        "state=lost": [],
        "hardware_type=cpu": ["rack-1", "rack-2"],
        "hardware_type=none": [],
        "ordering=-name": ["rack-2", "rack-1"],
    }


def test_labels_are_replaced_as_a_whole_at_the_version_known(world: World, host: Host) -> None:
    operator = world.by("operator")
    seen = operator.get("/hosts/rack-1")
    tag = {"if-match": seen.headers["ETag"]}
    changed = operator.patch("/hosts/rack-1", {"labels": {"row": "7"}}, format="json", headers=tag)
    assert changed.json()["labels"] == {"row": "7"}
    assert operator.get("/hosts/rack-1").headers["ETag"] == changed.headers["ETag"]
    problem(operator.patch("/hosts/rack-1", {"labels": {}}, format="json", headers=tag), 412, "changed")
    entry = AuditEntry.objects.get(action="host.set_labels")
    assert (entry.before, entry.after) == ({"labels": {"zone": "a"}}, {"labels": {"row": "7"}})
    body = problem(operator.patch("/hosts/rack-1", {"labels": {"a": {}}}, format="json"), 400, "invalid")
    assert body["errors"][0]["field"] == "labels.a"
    for name in ("", "a\0b", "a" * 101):
        body = problem(operator.patch("/hosts/rack-1", {"labels": {name: "x"}}, format="json"), 400, "invalid")
        assert body["errors"][0]["field"] == "labels"


def test_a_host_is_cordoned_and_put_to_use_again(world: World, host: Host) -> None:
    operator = world.by("operator")
    for _ in range(2):
        answer = operator.post("/hosts/rack-1/cordon")
        assert (answer.status_code, answer.json()["state"]) == (200, "cordoned")
    assert AuditEntry.objects.filter(action="host.cordon").count() == 1
    stale = {"if-match": '"something-else"'}
    problem(operator.post("/hosts/rack-1/uncordon", headers=stale), 412, "changed")
    assert operator.post("/hosts/rack-1/uncordon").json()["state"] == "active"
    Host.objects.update(state=Host.State.LOST)
    assert "lost" in problem(operator.post("/hosts/rack-1/cordon"), 409, "conflict")["detail"]


def test_a_host_is_drained_with_its_reason_and_put_to_use_again(world: World, host: Host) -> None:
    operator = world.by("operator")
    seen = operator.get("/hosts/rack-1")
    stale = {"if-match": '"something-else"'}
    problem(operator.post("/hosts/rack-1/drain", headers=stale), 412, "changed")
    tag = {"if-match": seen.headers["ETag"]}
    body = operator.post("/hosts/rack-1/drain", {"reason": "a new fan"}, format="json", headers=tag).json()
    assert (body["state"], body["state_reason"], body["is_drained"]) == ("draining", "a new fan", False)
    assert body["state_since"] > seen.json()["state_since"]
    assert operator.post("/hosts/rack-1/drain").json()["state_reason"] == "a new fan", "it began once"
    assert AuditEntry.objects.filter(action="host.drain").count() == 1
    Replica.objects.update(state=Replica.State.STOPPED)
    assert operator.get("/hosts/rack-1").json()["is_drained"]
    assert operator.post("/hosts/rack-1/cordon").json()["state"] == "cordoned"
    body = operator.post("/hosts/rack-1/uncordon").json()
    assert (body["state"], body["state_reason"]) == ("active", "")
    Host.objects.update(state=Host.State.LOST)
    assert "remove it" in problem(operator.post("/hosts/rack-1/drain"), 409, "conflict")["hint"]
    body = problem(operator.post("/hosts/rack-1/drain", {"reason": "x" * 201}, format="json"), 400, "invalid")
    assert body["errors"][0]["field"] == "reason"


def test_a_host_is_removed_once_nothing_holds_it(world: World, host: Host) -> None:
    operator, replica = world.by("operator"), Replica.objects.get()
    Host.objects.update(last_report_at="2026-01-01T00:00:00Z")
    body = problem(operator.delete("/hosts/rack-1?force=true"), 409, "in_use")
    assert "1 replica still holds a part of it" in body["detail"]
    assert "Drain it first" in body["hint"]
    assert body["references"] == [{"kind": "replica", "name": str(replica.pk), "detail": replica.deployment.name}]
    tag = {"if-match": operator.get("/hosts/rack-1").headers["ETag"]}
    Host.objects.update(state=Host.State.LOST)
    assert "Force it" in problem(operator.delete("/hosts/rack-1", headers=tag), 409, "in_use")["hint"]
    problem(operator.delete("/hosts/rack-1?force=perhaps"), 400, "invalid")
    problem(operator.delete("/hosts/rack-1", headers={"if-match": '"something-else"'}), 412, "changed")
    assert operator.delete("/hosts/rack-1?force=true", headers=tag).status_code == 204
    assert operator.delete(f"/hosts/{host.pk}").status_code == 204, "once more by its id"
    problem(operator.delete("/hosts/rack-1"), 404, "not_found")
    # It can be looked at, and nothing else.
    assert operator.get(f"/hosts/{host.pk}").json()["removed_at"]
    for action in ("cordon", "drain", "uncordon", "renew-secret"):
        problem(operator.post(f"/hosts/{host.pk}/{action}"), 404, "not_found")
    problem(operator.patch(f"/hosts/{host.pk}", {"labels": {}}, format="json"), 404, "not_found")
    listed = {query: operator.get(f"/hosts{query}").json()["results"] for query in ("", "?removed=true")}
    assert [len(rows) for rows in listed.values()] == [0, 1]
    assert operator.get("/accelerators").json()["results"] == []
    assert operator.get("/replicas").json()["results"][0]["host_name"] == "rack-1"
    again = factories.host(name="rack-1")
    assert operator.get("/hosts/rack-1").json()["id"] == str(again.pk)
    assert operator.get("/audit?action=host.remove").json()["results"][0]["object_name"] == "rack-1"


def test_a_renewed_secret_is_shown_once(world: World, host: Host) -> None:
    operator = world.by("operator")
    made = [operator.post("/hosts/rack-1/renew-secret", headers={"idempotency-key": "k"}).json() for _ in range(2)]
    assert made[0] == made[1]
    host.refresh_from_db()
    assert made[0] == {"host_id": str(host.pk), "name": "rack-1", "secret": decrypt(host.secret).hex()}
    told = [operator.get(path).content.decode() for path in READS] + [str(list(AuditEntry.objects.values()))]
    assert not any(made[0]["secret"] in text or bytes(host.secret).decode() in text for text in told)


def test_what_is_not_there_is_not_found(world: World, host: Host) -> None:
    for path in ("/hosts/rack-9", "/hosts/01890000-0000-7000-8000-000000000000", "/hardware-types/tpu"):
        problem(world.by("operator").get(path), 404, "not_found")


@pytest.mark.parametrize("path", ["/hosts", "/accelerators"])
def test_lists_ask_no_more_with_more_rows(world: World, host: Host, path: str) -> None:
    operator = world.by("operator")
    operator.get(path)

    def asked() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert operator.get(path).status_code == 200
        return len(queries)

    few = asked()
    for number in range(3):
        more: Any = factories.host()
        more.accelerators.create(index=0, uuid=f"m{number}", name="NVIDIA L4", memory_bytes=24 << 30)
        Replica.objects.filter(pk=factories.replica(host=more).pk).update(accelerators=[0])
    assert asked() == few
