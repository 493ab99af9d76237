"""A tick that fails: what the log says of it. The next one starts from what is."""

from __future__ import annotations

import pytest
import redis
from django.db import InterfaceError, OperationalError

from penstock.loops.tasks import _tick

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    "error",
    [
        InterfaceError("connection already closed"),
        OperationalError("database is locked"),
        redis.ConnectionError("connection refused"),
    ],
)
def test_what_is_away_is_a_line_without_a_traceback(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise error

    _tick("observe", fail)
    (record,) = caplog.records
    assert record.exc_info is None
    assert record.getMessage() == f"observe: {error} ({type(error).__name__}); the next tick tries again"


def test_a_fault_that_stays_is_one_traceback_for_all_ticks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("penstock.loops.lease._SHARE_OF_PERIOD", 0.0)
    done = []

    def fail() -> None:
        done.append(1)
        raise ZeroDivisionError

    for _ in range(3):
        _tick("observe", fail)
    assert len(done) == 3
    (record,) = caplog.records
    assert record.exc_info, "nobody thought of it: where it was is needed"
    _tick("scale", fail)
    assert len(caplog.records) == 2
