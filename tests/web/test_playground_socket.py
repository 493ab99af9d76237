"""The playground's websocket: its walls, and one answer from asking to the books, with a gateway that plays a script.

The same through the real gateway and a browser: ``tests/e2e/test_playground.py``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from typing import Any

import pytest
from aiohttp import web
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.conf import settings as django_settings

from capacity.models import UsageRecord
from penstock.web import socket_urls
from penstock.web.tenant import answers, playground_socket
from tenants.member_credentials import unseal
from tenants.models import Tenant
from tests.web.playground import ASK, HEADERS, REQUEST_ID, SECRET, Gateway, Place, ended, opened, scope
from tests.web.seed import usage_record

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("no_connection_is_left")]


async def turned_away(**made: Any) -> bool:
    communicator = ApplicationCommunicator(socket_urls.application, scope(made.pop("session"), **made))
    await communicator.send_input({"type": "websocket.connect"})
    event = await communicator.receive_output(5)
    await communicator.send_input({"type": "websocket.disconnect", "code": 1006})
    await communicator.wait(60)
    return bool(event["type"] == "websocket.close")


# ------------------------------------------------------------------------------ walls
def test_every_route_of_websockets_is_tried_here() -> None:
    assert [pattern.name for pattern in socket_urls.websocket_urlpatterns] == ["playground-socket"]


async def test_who_may_not_is_turned_away_before_anything_is_accepted(place: Place) -> None:
    assert await turned_away(session=None)
    assert await turned_away(session="made-up")
    assert await turned_away(session=place.sessions["stranger"])
    assert await turned_away(session=place.sessions["viewer"])
    assert await turned_away(session=place.sessions["owner"], slug="alder")
    assert await turned_away(session=place.sessions["owner"], slug="no-such-tenant")


async def test_another_sites_page_is_turned_away(place: Place) -> None:
    session = place.sessions["owner"]
    for origin in ("", "null", "https://evil.example", "http://localhost:9000", "http://localhost.evil.example:8000"):
        assert await turned_away(session=session, origin=origin), origin


async def test_behind_a_proxy_the_trusted_origins_hold(place: Place, settings: Any) -> None:
    settings.CSRF_TRUSTED_ORIGINS = ["https://console.example.org", "https://*.corp.example"]
    settings.SESSION_COOKIE_SECURE = True
    session = place.sessions["owner"]
    for origin in ("https://console.example.org", "https://a.corp.example"):
        async with opened(session, origin=origin):
            pass
    for origin in ("http://console.example.org", "https://corp.example.evil", "http://localhost:8000"):
        assert await turned_away(session=session, origin=origin), origin


async def test_a_name_that_the_console_does_not_have_is_turned_away(place: Place, settings: Any) -> None:
    settings.ALLOWED_HOSTS = ["console.example.org"]
    assert await turned_away(session=place.sessions["owner"])


async def test_a_socket_that_does_not_exist_is_refused(place: Place) -> None:
    away = scope(place.sessions["owner"]) | {"path": "/elsewhere"}
    communicator = ApplicationCommunicator(socket_urls.application, away)
    await communicator.send_input({"type": "websocket.connect"})
    assert (await communicator.receive_output(5))["type"] == "websocket.close"


@pytest.mark.parametrize("who", ["developer", "owner", "operator"])
async def test_those_who_may_get_in(place: Place, who: str) -> None:
    async with opened(place.sessions[who]):
        pass


# ------------------------------------------------------------------------------ one answer
async def test_an_answer_comes_through_a_gateway_as_the_members_own(place: Place, gateway: Gateway) -> None:
    async with opened(place.sessions["developer"]) as page:
        await page.say(ASK | {"system": "Be brief.", "temperature": 0.5, "max_tokens": 7})
        heard = await page.hear_until("done")
    headers, body = gateway.asked[0]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("chat-32b", 0.5, 7)
    peppers = {number: pepper.encode() for number, pepper in django_settings.PENSTOCK_KEY_PEPPERS.items()}
    text = headers["Authorization"].removeprefix("Bearer ")
    found = unseal(text, peppers=peppers, now=time.time())
    assert (found.tenant, found.member) == (str(place.tenant.pk), str(place.developer.pk))
    assert text not in json.dumps(heard)
    assert {message["id"] for message in heard} == {1}
    assert heard[0] | {"id": 1} == heard[0]
    assert heard[0]["request_id"] == REQUEST_ID
    assert (heard[0]["service_class"], heard[0]["replica"], heard[0]["mu_estimated"]) == (
        "best_effort",
        "replica-1",
        0.25,
    )
    assert "".join(message["text"] for message in heard if message["type"] == "delta") == "Hello"
    assert heard[-1]["tokens"] == {"input": 9, "cached": 4, "output": 2}
    assert heard[-1]["ttft_ms"] > 0
    assert heard[-1]["finish_reason"] == "stop"


async def test_the_books_own_figures_follow(place: Place, gateway: Gateway) -> None:
    async with opened(place.sessions["developer"]) as page:
        await page.say(ASK)
        await page.hear_until("done")
        # Of another tenant, and of another member: neither is theirs to see.
        alder = await Tenant.objects.aget(slug="alder")
        await sync_to_async(usage_record)(alder, place.developer.pk, place.pool, id=uuid.UUID(REQUEST_ID), actual_mu=9)
        await asyncio.sleep(0.6)
        await sync_to_async(swap_record)(place)
        settled = (await page.hear_until("settled"))[-1]
    assert settled["mu"] == 0.32
    assert settled["tokens"] == {"input": 1000, "cached": 400, "output": 500}


def swap_record(place: Place) -> None:
    UsageRecord.objects.filter(pk=REQUEST_ID)._raw_delete("default")
    usage_record(place.tenant, place.developer.pk, place.pool, id=uuid.UUID(REQUEST_ID))


async def test_stop_ends_the_request_itself(place: Place, gateway: Gateway) -> None:
    gateway.holds = True
    async with opened(place.sessions["developer"]) as page:
        await page.say(ASK)
        await page.hear_until("delta")
        await page.say({"type": "stop", "id": 99})
        await page.say({"type": "stop", "id": 1})
        assert (await page.hear_until("stopped"))[-1]["id"] == 1
        await asyncio.wait_for(gateway.left.wait(), 5)


async def test_a_page_that_is_closed_ends_the_request(place: Place, gateway: Gateway) -> None:
    gateway.holds = True
    async with opened(place.sessions["developer"]) as page:
        await page.say(ASK)
        await page.hear_until("delta")
    await asyncio.wait_for(gateway.left.wait(), 5)


async def test_one_answer_at_a_time(place: Place, gateway: Gateway) -> None:
    gateway.holds = True
    async with opened(place.sessions["developer"]) as page:
        await page.say(ASK)
        await page.hear_until("delta")
        await page.say(ASK | {"id": 2})
        assert "still coming" in (await page.hear_until("rejected"))[-1]["message"]
    assert len(gateway.asked) == 1


async def test_a_refusal_of_the_gateway_is_told_with_when_to_try_again(place: Place, gateway: Gateway) -> None:
    error = {"error": {"message": "Over the limit.", "code": "rate_limit_exceeded"}}
    gateway.answer = lambda _: web.json_response(error, status=429, headers={"retry-after": "3"})
    async with opened(place.sessions["developer"]) as page:
        await page.say(ASK)
        failed = (await page.hear_until("failed"))[-1]
    assert (failed["message"], failed["status"], failed["retry_after_s"]) == ("Over the limit.", 429, 3.0)


async def test_a_stream_that_breaks_off_is_told(place: Place, gateway: Gateway) -> None:
    gateway.answer = lambda _: web.Response(headers=HEADERS, body=b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n')
    async with opened(place.sessions["developer"]) as page:
        await page.say(ASK)
        assert "broke off" in (await page.hear_until("failed"))[-1]["message"]


async def test_a_gateway_that_is_not_there_is_told(place: Place, settings: Any) -> None:
    settings.PENSTOCK_GATEWAY_URL = "http://127.0.0.1:9/v1"
    async with opened(place.sessions["developer"]) as page:
        await page.say(ASK)
        assert "cannot be reached" in (await page.hear_until("failed"))[-1]["message"]


async def test_what_is_no_message_is_rejected_and_the_page_goes_on(place: Place, gateway: Gateway) -> None:
    async with opened(place.sessions["developer"]) as page:
        for text in ("", "nonsense", '{"type":"ask"}', json.dumps(ASK | {"turns": []})):
            await page.say(text)
            assert (await page.hear())["type"] == "rejected"
        await page.say(ASK)
        await page.hear_until("done")


# ------------------------------------------------------------------------------ bounds
async def test_a_person_opens_so_many_at_most(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playground_socket, "MOST_OPEN", 1)
    async with opened(place.sessions["developer"]):
        async with opened(place.sessions["developer"]) as second:
            await ended(second, 4429)
        async with opened(place.sessions["owner"]):
            pass
    async with opened(place.sessions["developer"]):
        pass


async def test_neither_prompt_nor_credential_is_logged(
    place: Place, gateway: Gateway, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(data: bytes) -> None:
        raise RuntimeError("a fault of our own")

    caplog.set_level(logging.DEBUG)
    async with opened(place.sessions["developer"]) as page:
        await page.say(ASK)
        await page.hear_until("done")
        await page.say('{"type":"ask","model":"' + SECRET)
        await page.hear_until("rejected")
        monkeypatch.setattr(answers, "read_event", broken)
        await page.say(ASK | {"id": 2})
        assert (await page.hear_until("failed"))[-1]["code"] == "internal_error"
    assert "an answer failed (RuntimeError)" in caplog.text
    assert "a fault of our own" not in caplog.text
    assert SECRET not in caplog.text
    assert "psm_" not in caplog.text
