"""Every request has an id: in its answer, its log lines and its audit entries."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponse
from django.test import Client

from penstock.web.log import LineFormatter
from penstock.web.request_id import HEADER, request_id
from tenants.audit import request_id_var
from tenants.models import AuditEntry
from tests.web.seed import Seeded


def test_an_entry_names_the_request_in_which_it_was_written(as_operator: Client, platform: Seeded) -> None:
    path = f"/console/deployments/{platform.chat.pk}/retry"
    answers = [as_operator.post(path, headers={HEADER: "made-up"}) for _ in range(2)]
    entries = AuditEntry.objects.filter(action="deployment.retry").order_by("at")
    assert [entry.request_id for entry in entries] == [answer[HEADER] for answer in answers]
    assert len({str(uuid.UUID(answer[HEADER])) for answer in answers}) == 2
    assert request_id_var.get() == ""


def test_a_fault_is_named_by_the_request_that_is_in_the_log(
    as_operator: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("penstock.web.console.gather", lambda now: 1 / 0)
    as_operator.raise_request_exception = False
    answer = as_operator.get("/console/")
    assert f"request {answer[HEADER]}" in answer.content.decode()
    (record,) = [row for row in caplog.records if row.name == "django.request"]
    assert f"/console/ [request {answer[HEADER]}]" in LineFormatter().format(record)


def test_requests_at_the_same_time_keep_their_own_ids() -> None:
    """As the web role runs: one task each, views in threads."""

    async def view(request: HttpRequest) -> HttpResponse:
        seen = [await sync_to_async(request_id_var.get, thread_sensitive=False)()]
        await asyncio.sleep(0.01)
        return HttpResponse(" ".join([*seen, await sync_to_async(request_id_var.get, thread_sensitive=False)()]))

    async def many() -> list[HttpResponse]:
        middleware = request_id(view)
        return list(await asyncio.gather(*[middleware(HttpRequest()) for _ in range(20)]))

    answers = asyncio.run(many())
    assert len({answer[HEADER] for answer in answers}) == 20
    assert all(answer.content.decode() == f"{answer[HEADER]} {answer[HEADER]}" for answer in answers)
