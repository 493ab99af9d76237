"""Whatever a signed-in person writes into an address, the page answers."""

from __future__ import annotations

import uuid
from urllib.parse import urlencode

import pytest
from django.test import Client

from penstock.web.moments import read_moment, read_place
from tests.web.seed import Seeded

ID = str(uuid.UUID(int=7))
OUT_OF_THE_CALENDAR = (
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    "0001-01-01",
    "9999-12-31T23:59",
    "2026-02-30T08:00",
    "2026-05-31T08:00+99:99",
)


@pytest.mark.parametrize("moment", OUT_OF_THE_CALENDAR)
def test_a_moment_out_of_the_calendar_is_answered(client: Client, platform: Seeded, moment: str) -> None:
    client.force_login(platform.operator)
    for page in ("/console/audit/", "/t/northwind/audit/"):
        for name in ("since", "until"):
            answer = client.get(f"{page}?{urlencode({name: moment})}")
            assert answer.status_code == 200
            assert "Write a day and a time since 1970" in answer.content.decode()
    client.force_login(platform.owner)
    for page in ("/t/northwind/audit/", "/t/northwind/usage/", "/t/northwind/"):
        for text in (f"{moment}_{ID}", f"{moment}_", moment):
            assert client.get(f"{page}?{urlencode({'before': text})}").status_code == 200


def test_moments_are_read_in_utc() -> None:
    for text in ("2026-05-31T08:00", "2026-05-31T10:00+02:00", "2026-05-31T08:00Z"):
        moment = read_moment(text)
        assert moment is not None
        assert moment.isoformat() == "2026-05-31T08:00:00+00:00"
    day = read_moment("2026-05-31")
    assert day is not None
    assert day.isoformat() == "2026-05-31T00:00:00+00:00"
    assert read_place(f"2026-05-31T08:00 00:00_{ID}") == (read_moment("2026-05-31T08:00Z"), uuid.UUID(ID))
    assert read_place(f"2026-05-31T08:00_{ID}") is None
