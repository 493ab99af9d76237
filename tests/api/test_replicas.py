"""Replicas, their logs, decisions, incidents and the feed of both over the REST API."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from serving.agents.logs import logs_keep
from serving.models import Deployment, Incident, Replica
from serving.services import incident_close, incident_evidence_add, incident_open, scaling_decision_record
from serving.shared_state import client
from tests import factories
from tests.api.callers import NOWHERE, codes, operators_only
from tests.api.conftest import World
from worker.spec import HostReport, LogPiece

START = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)


@pytest.fixture
def served(world: World) -> Deployment:
    return factories.deployment(name="chat")


@pytest.fixture
def broken(served: Deployment) -> Replica:
    """A replica with two incidents: the first kept a log, the second none."""
    replica = factories.replica(served, host=factories.host(name="node-1"))
    log = "".join(f"line {number}\n" for number in range(200))
    incident_open(
        kind="crash", summary="chat crashed", replica=replica, evidence={"log_tail": log, "exit_code": 137}, now=START
    )
    later = START + datetime.timedelta(minutes=1)
    incident_open(kind="hang", summary="chat hung", replica=replica, evidence={"running": 3}, now=later)
    return replica


def seconds(number: float) -> datetime.datetime:
    return START + datetime.timedelta(seconds=number)


def decide(deployment: Deployment, number: int, *, after: int = 2) -> None:
    scaling_decision_record(
        deployment=deployment,
        before=1,
        after=after,
        reason=f"reason {number}",
        inputs={"number": number},
        now=seconds(number),
    )


def asked(world: World, path: str) -> int:
    with CaptureQueriesContext(connection) as queries:
        assert world.by("operator").get(path).status_code == 200
    return len(queries)


def test_all_of_it_is_for_operators(world: World, broken: Replica) -> None:
    incident = Incident.objects.first()
    assert incident is not None
    for path in (
        "/replicas",
        f"/replicas/{broken.pk}",
        f"/replicas/{broken.pk}/logs",
        f"/deployments/{broken.deployment_id}/replicas",
        f"/deployments/{broken.deployment_id}/events",
        "/incidents",
        f"/incidents/{incident.pk}",
        "/decisions",
    ):
        assert codes(world, "get", path) == operators_only(200), path


def test_a_replica_tells_why_and_how_far_it_is(world: World, broken: Replica) -> None:
    Replica.objects.filter(pk=broken.pk).update(
        state="starting",
        reason="downloads weights",
        phase="weights",
        progress={"step": "download", "share": 0.5},
        address="http://127.0.0.1:9",
    )
    row = world.by("operator").get(f"/replicas/{broken.pk}").json()
    assert (row["state"], row["reason"], row["phase"]) == ("starting", "downloads weights", "weights")
    assert row["progress"] == {"step": "download", "share": 0.5}
    assert (row["host_name"], row["deployment_name"], row["revision_number"]) == ("node-1", "chat", 1)
    assert row["address"] == "http://127.0.0.1:9"
    assert [incident["kind"] for incident in row["incidents"]] == ["hang", "crash"]
    assert row["incidents"][1]["evidence"]["exit_code"] == 137
    assert "incidents" not in world.by("operator").get("/replicas").json()["results"][0]


def test_replicas_are_filtered(world: World, broken: Replica) -> None:
    other = factories.replica()
    operator = world.by("operator")

    def found(path: str) -> list[str]:
        return [row["id"] for row in operator.get(path).json()["results"]]

    assert found("/replicas") == [str(other.pk), str(broken.pk)]
    assert found(f"/replicas?host={broken.host_id}") == [str(broken.pk)]
    assert found(f"/replicas?deployment={other.deployment_id}") == [str(other.pk)]
    assert found("/replicas?state=ready") == []
    assert found(f"/deployments/{other.deployment_id}/replicas?state=pending") == [str(other.pk)]
    assert found("/replicas?ordering=created_at") == [str(broken.pk), str(other.pk)]
    for query in ("state=flying", "host=x"):
        answer = operator.get(f"/replicas?{query}")
        assert answer.status_code == 400
        assert answer.json()["errors"][0]["field"] == query.partition("=")[0]


def test_a_log_is_what_an_incident_kept(world: World, broken: Replica) -> None:
    path = f"/replicas/{broken.pk}/logs"
    answer = world.by("operator").get(f"{path}?lines=2").json()
    assert answer["lines"] == ["line 198", "line 199"]
    assert answer["incident"] == str(Incident.objects.get(kind="crash").pk)
    assert datetime.datetime.fromisoformat(answer["kept_at"]) == START
    assert "incident" in answer["note"]
    assert f"replicas/{broken.pk}/engine.log" in answer["note"]
    assert "node-1" in answer["note"]
    assert len(world.by("operator").get(path).json()["lines"]) == 100
    hang = Incident.objects.get(kind="hang")
    incident_evidence_add(incident=hang, evidence={"agent": {"log_tail": "stuck"}})
    assert world.by("operator").get(path).json()["lines"] == ["stuck"]
    for lines in ("0", "5001", "x"):
        refused = world.by("operator").get(f"{path}?lines={lines}")
        assert refused.status_code == 400
        assert refused.json()["errors"][0]["field"] == "lines"


def test_without_an_incident_the_answer_says_where_the_log_is(world: World, served: Deployment) -> None:
    answer = world.by("operator").get(f"/replicas/{factories.replica(served).pk}/logs").json()
    assert (answer["lines"], answer["incident"], answer["kept_at"]) == ([], None, None)
    assert answer["note"] == "It is on no host."


def tell(replica: Replica, data: bytes, end: int) -> None:
    """What the agent of the replica's host reports of its log."""
    report = HostReport(
        host_id=str(replica.host_id), boot_id="b", sequence=1, generation=0, agent_version="1", agent_pid=1,
        hostname="h", cores=1, memory_bytes=1, memory_available_bytes=1, load_1m=0.0,
        logs={str(replica.pk): LogPiece(data=data, end=end)},
    )  # fmt: skip
    assert replica.host is not None
    logs_keep(report, replica.host, client=client())


def test_a_log_is_read_on_from_where_it_was(world: World, served: Deployment, state_url: str, settings: Any) -> None:
    settings.REDIS_URL = state_url
    replica = factories.replica(served, host=factories.host(name="rack-7"))
    operator, path = world.by("operator"), f"/replicas/{replica.pk}/logs"
    answer = operator.get(path).json()
    assert (answer["is_live"], answer["lines"], answer["position"]) == (False, [], None)
    assert "ask again in a few seconds" in answer["note"]
    tell(replica, b"one\ntwo\nthr", 11)
    answer = operator.get(f"{path}?lines=1").json()
    assert (answer["is_live"], answer["lines"], answer["position"], answer["has_gap"]) == (True, ["two"], 8, False)
    tell(replica, b"one\ntwo\nthree\n", 14)
    answer = operator.get(f"{path}?after=8").json()
    assert (answer["lines"], answer["position"], answer["has_gap"]) == (["three"], 14, False)
    assert operator.get(f"{path}?after=14").json()["lines"] == []
    assert operator.get(f"{path}?after=-1").status_code == 400
    settings.REDIS_URL = "redis://127.0.0.1:1"
    assert "shared state does not answer" in operator.get(path).json()["note"]


def test_the_feed_joins_decisions_and_incidents(world: World, broken: Replica, served: Deployment) -> None:
    decide(served, 30)
    decide(factories.deployment(), 40)
    crash = Incident.objects.get(kind="crash")
    incident_close(incident=crash, what="replaced", now=START + datetime.timedelta(seconds=5))
    feed = world.by("operator").get(f"/deployments/{served.pk}/events").json()
    assert feed["next"] is None
    hang, decision, crashed = feed["results"]
    assert [hang["kind"], decision["kind"], crashed["kind"]] == ["hang", "scaling", "crash"]
    assert decision["reason"] == "reason 30"
    assert (decision["before"], decision["after"], decision["inputs"]) == (1, 2, {"number": 30})
    assert (decision["replica"], decision["closed_at"]) == (None, None)
    assert (crashed["reason"], crashed["inputs"]) == ("chat crashed", {"exit_code": 137}), "without the log"
    assert (crashed["replica"], crashed["before"]) == (str(broken.pk), None)
    assert crashed["closed_at"] is not None
    assert hang["closed_at"] is None


def test_the_feed_is_paged_by_a_cursor(world: World, served: Deployment) -> None:
    replica = factories.replica(served)
    for number in range(6):
        decide(served, number // 2)
    incident_open(kind="crash", summary="at the same moment", replica=replica, now=seconds(1))
    operator, path = world.by("operator"), f"/deployments/{served.pk}/events"
    whole = [event["id"] for event in operator.get(path).json()["results"]]
    assert len(whole) == 7
    seen: list[str] = []
    url: str | None = f"{path}?page_size=2"
    while url:
        page = operator.get(url.removeprefix("http://testserver")).json()
        seen += [event["id"] for event in page["results"]]
        url = page["next"]
        decide(served, 100 + len(seen))
    assert seen == whole, "what came in meanwhile neither repeats nor hides any"
    for wrong in ("x", "1-2", f"{'9' * 18}-{'0' * 32}"):
        answer = operator.get(f"{path}?cursor={wrong}")
        assert answer.status_code == 400
        assert answer.json()["errors"][0]["field"] == "cursor"
    assert operator.get(f"{path}?cursor={'9' * 17}-{'f' * 32}").status_code == 200
    for size in ("0", "-1", "x", "9" * 5000, "²"):
        assert len(operator.get(path, {"page_size": size}).json()["results"]) > 7, "passed over, as on other pages"


def test_incidents_are_listed_and_shown(world: World, broken: Replica) -> None:
    operator = world.by("operator")
    crash = Incident.objects.get(kind="crash")
    incident_close(incident=crash, what="replaced", now=timezone.now())

    def found(query: str) -> list[str]:
        return [row["kind"] for row in operator.get(f"/incidents?{query}").json()["results"]]

    assert found("") == ["hang", "crash"]
    assert found("is_open=true") == found("kind=hang") == ["hang"]
    assert found("is_open=false") == ["crash"]
    assert len(found(f"replica={broken.pk}")) == len(found(f"deployment={broken.deployment_id}")) == 2
    assert len(found(f"host={broken.host_id}")) == 2
    assert found(f"host={NOWHERE}") == []
    assert found("until=2026-01-02T03:04:30Z") == found("until=2026-01-02T20:12:30%2B17:08") == ["crash"]
    for moment in ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "x"):
        answer = operator.get(f"/incidents?since={moment}")
        assert answer.status_code == 400
        assert [(error["field"], error["code"]) for error in answer.json()["errors"]] == [("since", "invalid")]
    assert "evidence" not in operator.get("/incidents").json()["results"][0]
    shown = operator.get(f"/incidents/{crash.pk}").json()
    assert shown["evidence"]["exit_code"] == 137
    assert shown["timeline"][-1]["what"] == "replaced"
    assert (shown["is_open"], shown["deployment_name"]) == (False, "chat")


def test_decisions_are_listed_newest_first(world: World, served: Deployment) -> None:
    for number in range(5):
        decide(served, number, after=1 + number % 2)
    decide(factories.deployment(name="other"), 9)
    operator = world.by("operator")

    def found(query: str) -> list[str]:
        return [row["reason"] for row in operator.get(f"/decisions?{query}").json()["results"]]

    assert found("") == ["reason 9", *(f"reason {number}" for number in (4, 3, 2, 1, 0))]
    assert found(f"deployment={served.pk}&changed=true") == ["reason 3", "reason 1"]
    assert found("changed=false") == ["reason 4", "reason 2", "reason 0"]
    assert found("since=2026-01-02T03:04:09Z") == ["reason 9", "reason 4"]
    page = operator.get("/decisions?page_size=4").json()
    older = operator.get(page["next"].removeprefix("http://testserver")).json()
    assert [row["inputs"]["number"] for row in page["results"] + older["results"]] == [9, 4, 3, 2, 1, 0]


def test_lists_ask_a_constant_number_of_queries(world: World, broken: Replica) -> None:
    paths = (
        "/replicas",
        f"/replicas/{broken.pk}",
        f"/deployments/{broken.deployment_id}/replicas",
        f"/deployments/{broken.deployment_id}/events",
        "/incidents",
        "/decisions",
    )
    asked(world, paths[0])  # the first use of a token writes when that was
    few = [asked(world, path) for path in paths]
    for number in range(4):
        another = factories.replica(broken.deployment, host=factories.host())
        incident_open(kind="crash", summary="again", replica=another)
        decide(broken.deployment, number)
    assert [asked(world, path) for path in paths] == few


@pytest.mark.parametrize("path", ["/replicas/{}", "/replicas/{}/logs", "/incidents/{}"])
def test_what_is_not_there_is_not_found(world: World, path: str) -> None:
    for identifier in (NOWHERE, "x", "%00"):
        answer: Any = world.by("operator").get(path.format(identifier))
        assert answer.status_code == 404
        assert answer.headers["Content-Type"] == "application/problem+json"
