"""``penstock calibrate`` against the real API; the calibration's states are moved as the loops do."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection

from penstock.cli.remote import calibrate
from serving.models import Calibration, Deployment, Replica
from tenants.models import User
from tests import factories
from tests.api.test_calibrations import fitted
from tests.penstock.test_remote import Shell, people, shell, sign_in

__all__ = ["people", "shell"]
pytestmark = pytest.mark.django_db(transaction=True)

People = dict[str, tuple[User, str]]


WATCHING = threading.Event()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = calibrate._watch

    def watched(*arguments: Any) -> dict[str, Any]:
        WATCHING.set()
        return watch(*arguments)

    WATCHING.clear()
    monkeypatch.setattr(calibrate, "_LOOK_S", 0.05)
    monkeypatch.setattr(calibrate, "_watch", watched)


@pytest.fixture
def served() -> Deployment:
    deployment = factories.deployment(name="chat", max_replicas=3)
    host = factories.host(name="rack-1")
    for _ in range(2):
        made = factories.replica(deployment, host=host)
        Replica.objects.filter(pk=made.pk).update(state="ready", address="http://127.0.0.1:9", max_model_len=4096)
    return deployment


@contextmanager
def meanwhile(*steps: Callable[[Calibration], Any]) -> Iterator[None]:
    """Takes ``steps`` one after the other, in a thread of its own, once the command watches."""

    def act() -> None:
        assert WATCHING.wait(60)
        for step in steps:
            time.sleep(0.3)
            step(Calibration.objects.latest("created_at"))
        connection.close()

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def measuring(row: Calibration) -> None:
    progress = {"state": "measuring", "share": 0.5, "step": "cost grid", "detail": "4 of 8 shapes"}
    replica = Replica.objects.values_list("pk", flat=True).first()
    Calibration.objects.filter(pk=row.pk).update(state="measuring", replica_id=replica, progress=progress)


def test_from_the_question_to_what_a_request_costs(shell: Shell, people: People, served: Deployment) -> None:
    sign_in(shell, people, "operator")
    with meanwhile(measuring, fitted):
        code, out, err = shell("calibrate", "chat", "--grid", "small", "--wait")
    assert code == 0, err
    assert "measuring [############............]  50% cost grid 4 of 8 shapes" in err
    assert "chat on CPU: fitted" in out
    assert "beta           1.2" in out
    assert "R² 1.0000, mean error 0.0%" in out
    assert "knee: 4 requests/s, 62% of saturation" in out
    row = Calibration.objects.get()
    assert f"penstock calibrations adopt {row.pk}" in out
    code, out, err = shell(
        "calibrations", "adopt", str(row.pk), "--yes", "--effective-from", "2031-01-01T00:00:00Z", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["adopted_version"] == 2
    code, out, _ = shell("calibrations", "list")
    assert (code, "adopted" in out, "chat" in out) == (0, True, True)


def test_places_that_limit_the_supply_are_said_with_the_command_that_raises_them() -> None:
    limit = {"by": "concurrency", "recommended": 128, "text": "Supply is limited by the target concurrency."}
    row = {
        "id": "1", "deployment_name": "chat", "pool_name": "Llama 8B", "hardware_name": "H100", "state": "fitted",
        "reason": "measured", "adopted_version": None, "fit": {},
        "knee": {"rate_per_s": 31.0, "share": 1.0, "target_concurrency": 32, "warnings": [], "supply_limit": limit},
    }  # fmt: skip
    lines = calibrate.summary(row)
    assert "  Supply is limited by the target concurrency." in lines
    assert "  raise it with: penstock deploy 'Llama 8B' --name chat --target-concurrency 128" in lines
    full = row | {"knee": row["knee"] | {"supply_limit": limit | {"by": "memory", "recommended": None}}}
    assert not any("raise it with" in line for line in calibrate.summary(full))


def test_one_that_is_under_way_is_found_again(shell: Shell, people: People, served: Deployment) -> None:
    sign_in(shell, people, "operator")
    code, out, _ = shell("calibrate", "chat", "--grid", "small")
    row = Calibration.objects.get()
    assert (code, out.strip()) == (0, str(row.pk))
    code, _, err = shell("calibrate", "chat")
    assert code != 0
    assert "under way already" in err
    assert "penstock calibrate chat --wait" in err
    with meanwhile(measuring, fitted):
        code, out, err = shell("calibrate", "chat", "--wait")
    assert code == 0, err
    assert "fitted" in out
    assert Calibration.objects.count() == 1


def test_what_fails_says_why(shell: Shell, people: People, served: Deployment) -> None:
    sign_in(shell, people, "operator")

    def fail(row: Calibration) -> None:
        Calibration.objects.filter(pk=row.pk).update(state="failed", reason="the engine answers 400")

    with meanwhile(measuring, fail):
        code, _, err = shell("calibrate", "chat", "--wait")
    assert code != 0
    assert "the engine answers 400" in err


def test_a_date_needs_adopt_and_must_be_one(shell: Shell, people: People, served: Deployment) -> None:
    sign_in(shell, people, "operator")
    code, _, err = shell("calibrate", "chat", "--from", "2031-01-01")
    assert (code != 0, "--adopt" in err) == (True, True)
    assert not Calibration.objects.exists()
    code, _, err = shell("calibrate", "chat", "--grid", "small", "--adopt", "--from", "2031-01-01")
    assert code == 0, err
    row = Calibration.objects.get()
    assert row.adopt_when_fitted
    assert row.adopt_from is not None


def test_the_only_replica_needs_leave(shell: Shell, people: People, served: Deployment) -> None:
    sign_in(shell, people, "operator")
    Replica.objects.filter(pk=Replica.objects.values("pk")[:1]).update(state="starting")
    code, _, err = shell("calibrate", "chat")
    assert code != 0
    assert "only one replica is ready" in err
