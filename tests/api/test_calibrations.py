"""Calibrations over the REST API: who may, what is refused and why, and what adopting one would change."""

from __future__ import annotations

import time
import uuid
from typing import Any

import msgspec
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from capacity.models import CostProfile
from capacity.usage.writer import write_batch
from serving.measuring import measured
from serving.models import Calibration, Deployment, Replica
from serving.services import calibration_fitted
from tests import factories
from tests.api.callers import NOWHERE, codes, operators_only
from tests.api.conftest import World
from tests.loops.measuring import MeasuredEngine
from worker.spec import CalibrationOrder


@pytest.fixture
def served(world: World) -> Deployment:
    deployment = factories.deployment(name="org/model-1", max_replicas=3)
    host = factories.host()
    for _ in range(2):
        replica = factories.replica(deployment, host=host)
        Replica.objects.filter(pk=replica.pk).update(state="ready", address="http://127.0.0.1:9", max_model_len=4096)
    return deployment


def started(world: World, served: Deployment, **fields: Any) -> dict[str, Any]:
    body = {"deployment": served.name, "grid": "small", **fields}
    answer = world.by("operator").post("/calibrations", body, format="json")
    assert answer.status_code == 201, answer.content
    made: dict[str, Any] = answer.json()
    return made


def fitted(row: Calibration, engine: MeasuredEngine | None = None) -> Calibration:
    """As the loop would have it, with a scripted engine."""
    engine = engine or MeasuredEngine()
    order = msgspec.convert(row.order, CalibrationOrder)
    told = engine(order)
    row.points, row.levels = msgspec.to_builtins(told.points), msgspec.to_builtins(told.levels)
    hardware = CostProfile.objects.get(pool=row.pool_id).hardware_type
    row.hardware_type_id, row.hardware_name, row.state = hardware.pk, hardware.name, "measuring"
    row.replica_id, row.progress = uuid.uuid4(), {"saturation_per_s": told.saturation_per_s}
    row.save()
    found = measured(row)
    assert calibration_fitted(calibration=row, fit=found.fit, knee=found.knee, reason="measured", now=timezone.now())
    return row


def test_operators_only(world: World, served: Deployment) -> None:
    row = started(world, served)
    path = f"/calibrations/{row['id']}"
    assert codes(world, "get", "/calibrations") == operators_only(200)
    assert codes(world, "get", path) == operators_only(200)
    assert codes(world, "get", f"/calibrations/{NOWHERE}") == operators_only(404)
    assert codes(world, "post", f"{path}/cancel") == operators_only(200)
    assert codes(world, "get", f"{path}/preview") == operators_only(409)
    assert codes(world, "post", f"{path}/adopt", {}) == operators_only(400)
    assert codes(world, "post", "/calibrations", {"deployment": served.name}) == operators_only(201)


def test_it_is_asked_for_and_cancelled(world: World, served: Deployment) -> None:
    made = started(world, served)
    assert (made["state"], made["deployment_name"], made["grid"]) == ("queued", "org/model-1", "small")
    assert made["order"]["shapes"]
    again = world.by("operator").post("/calibrations", {"deployment": str(served.pk)}, format="json")
    assert again.status_code == 400
    assert "under way already" in str(again.json())
    listed = world.by("operator").get("/calibrations?is_under_way=true").json()["results"]
    assert [row["id"] for row in listed] == [made["id"]]
    assert "points" not in listed[0]
    ended = world.by("operator").post(f"/calibrations/{made['id']}/cancel").json()
    assert ended["state"] == "cancelled"
    assert world.by("operator").get("/calibrations?is_under_way=true").json()["results"] == []
    assert world.by("operator").get("/calibrations?state=cancelled").json()["results"] != []


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"deployment": "nobody"}, "deployment", "no such deployment"),
        ({"grid": "huge"}, "grid", "huge"),
        ({"adopt_from": "2030-01-01T00:00:00Z"}, "adopt_from", "to be adopted"),
    ],
)
def test_what_is_wrong_is_told_at_its_field(
    world: World, served: Deployment, body: dict[str, Any], field: str, words: str
) -> None:
    answer = world.by("operator").post("/calibrations", {"deployment": served.name, **body}, format="json")
    assert answer.status_code == 400
    errors = {one["field"]: one["message"] for one in answer.json()["errors"]}
    assert words in errors[field]


def test_the_only_replica_needs_leave(world: World, served: Deployment) -> None:
    Replica.objects.filter(pk=served.replicas.order_by("pk").values("pk")[:1]).update(state="starting")
    body = {"deployment": served.name}
    answer = world.by("operator").post("/calibrations", body, format="json")
    assert [one["field"] for one in answer.json()["errors"]] == ["allow_outage"]
    assert started(world, served, allow_outage=True)["allow_outage"] is True


def test_what_speaks_no_tokens_is_not_measured(world: World) -> None:
    classic = factories.deployment(runtime="mlflow")
    answer = world.by("operator").post("/calibrations", {"deployment": classic.name}, format="json")
    assert "generates no tokens" in str(answer.json())


def test_before_it_is_adopted_it_says_who_would_pay_more(world: World, served: Deployment) -> None:
    """Oracle: each request's new price by the definition of the cost, with the coefficients that the preview tells."""
    for tenant, shape in ((world.acme, (4000, 0, 5)), (world.other, (10, 0, 500))):
        traffic = factories.Traffic(str(tenant.pk), str(uuid.uuid4()), str(served.pool_id), str(served.pk))
        usage = factories.Usage(input_tokens=shape[0], cached_tokens=shape[1], output_tokens=shape[2])
        pairs = [traffic.pair(time.time() - 60, usage=usage, mu=2.0) for _ in range(10)]
        write_batch(factories.batch(*pairs, segment=tenant.slug))
    row = fitted(Calibration.objects.get(pk=started(world, served)["id"]))
    with CaptureQueriesContext(
        connection,
    ) as queries:
        answer = world.by("operator").get(f"/calibrations/{row.pk}/preview")
    assert answer.status_code == 200, answer.content
    assert len(queries) < 25
    found = answer.json()
    assert found["is_reference"] is True
    assert found["supply_mu_per_min"] == 100.0
    new = {one["name"]: one["new"] for one in found["coefficients"]}

    def price(inputs: int, outputs: int) -> float:
        return (
            new["base"]
            + new["alpha"] * inputs
            + new["epsilon"] * inputs**2
            + new["beta"] * outputs
            + new["gamma"] * outputs * (inputs + outputs / 2)
        )

    rows = {one["tenant"]: one for one in found["tenants"]}
    assert rows["acme"]["factor"] == pytest.approx(price(4000, 5) / 2.0, rel=1e-6)
    assert rows["other"]["factor"] == pytest.approx(price(10, 500) / 2.0, rel=1e-6)
    assert rows["acme"]["mu_now"] == pytest.approx(20.0)
    assert rows["acme"]["mu_new"] == pytest.approx(10 * price(4000, 5), rel=1e-6)
    assert sum(one["share_new"] for one in found["tenants"]) == pytest.approx(1.0)
    assert [one["factor"] for one in found["tenants"]] == sorted(
        (one["factor"] for one in found["tenants"]), reverse=True
    )


def test_adopted_from_a_date_it_is_the_next_version(world: World, served: Deployment) -> None:
    row = fitted(Calibration.objects.get(pk=started(world, served)["id"]))
    body = {"effective_from": "2031-01-01T00:00:00Z"}
    answer = world.by("operator").post(f"/calibrations/{row.pk}/adopt", body, format="json")
    assert answer.status_code == 200, answer.content
    assert (answer.json()["state"], answer.json()["adopted_version"]) == ("adopted", 2)
    profiles = world.by("operator").get(f"/pools/{served.pool.slug}/profiles").json()["results"]
    assert [(one["version"], one["calibrated"]) for one in profiles] == [(2, True), (1, False)]
    again = world.by("operator").post(f"/calibrations/{row.pk}/adopt", {}, format="json")
    assert again.status_code == 400
