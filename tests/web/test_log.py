"""What the web role logs: why a page could not be made, and never a link that signs in."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

import httpx
import pytest
from django.core.exceptions import DisallowedHost
from django.db import OperationalError

from penstock.loglines import Sieve
from penstock.web.log import LineFormatter
from tests.web.process import web_role

TOKEN = "a-token-that-signs-in"


def line(message: str, *args: object, error: Exception | None = None) -> str:
    try:
        if error is not None:
            raise error
        details = None
    except Exception:
        details = sys.exc_info()
    record = logging.LogRecord("django.request", logging.ERROR, __file__, 1, message, args, details)
    return LineFormatter().format(record)


def test_a_fault_of_ours_is_told_with_where_it_was() -> None:
    told = line("Internal Server Error: %s", "/console/", error=RuntimeError("what broke"))
    first, *rest = told.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d ERROR django.request Internal Server Error: /console/", first)
    assert rest[0].startswith("Traceback")
    assert rest[-1] == "RuntimeError: what broke"


def test_the_terminal_knows_its_level() -> None:
    assert Sieve().shown(line("Internal Server Error: /console/")).startswith("error: ")


def test_a_database_that_is_away_is_one_line() -> None:
    away = OperationalError("connection to server failed:\n\tIs the server running?")
    told = line("Internal Server Error: %s", "/console/", error=away)
    assert told.endswith(
        "Internal Server Error: /console/: connection to server failed: Is the server running? (OperationalError)"
    )


def test_a_request_that_is_none_is_one_line() -> None:
    message = "Invalid HTTP_HOST header: 'x!'."
    assert line(message, error=DisallowedHost(message)).endswith(message)


@pytest.mark.parametrize("error", [None, ValueError(f"no route to /sign-in/link/{TOKEN}?next=/")])
def test_a_link_that_signs_in_is_hidden(error: Exception | None) -> None:
    told = line("Forbidden (%s): %s", "CSRF cookie not set.", f"/sign-in/link/{TOKEN}", error=error)
    assert TOKEN not in told
    assert "/sign-in/link/(hidden)" in told


@pytest.mark.parametrize(
    "place", ["/invitations/", "https://host.example/invitations/", "/sign-in/?next=%2Finvitations%2F"]
)
def test_a_link_that_makes_a_member_is_hidden(place: str) -> None:
    told = line("Forbidden (%s): %s", f"Referer checking failed - {place}{TOKEN} does not match", f"{place}{TOKEN}")
    assert TOKEN not in told
    assert told.count(f"{place}(hidden)") == 2


def test_the_log_of_the_web_role_says_why(tmp_path: Path) -> None:
    with web_role(tmp_path) as (base, log), httpx.Client(base_url=base) as client:
        assert client.get("/healthz").status_code == 503
        assert client.get("/nothing-here").status_code == 404
        page = client.get(f"/sign-in/link/{TOKEN}").text
        form = {"csrfmiddlewaretoken": re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)[1]}
        refused = client.post(f"/sign-in/link/{TOKEN}")
        answer = client.post(f"/sign-in/link/{TOKEN}", data=form)
    assert (refused.status_code, answer.status_code) == (403, 500)
    assert "the log of the role web says why" in answer.text
    identifiers = [response.headers["X-Request-ID"] for response in (refused, answer)]
    forbidden, broken = log.read_text().splitlines()
    path = r"/sign-in/link/\(hidden\)"
    assert re.search(rf"WARNING django.security.csrf Forbidden .*{path} \[request {identifiers[0]}\]$", forbidden)
    assert re.search(rf"ERROR django.request .*{path} \[request {identifiers[1]}\]: no such table: \w+ \(Op", broken)
