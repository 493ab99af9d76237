"""The playground's websocket: its walls, and one answer from asking to the books, with a gateway that plays a script.

The same through the real gateway and a browser: ``tests/e2e/test_playground.py``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.conf import settings as django_settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.db import SessionStore
from django.db import connections
from django.utils import timezone

from capacity.models import HardwareType, Model, UsageRecord
from penstock.web import socket_urls
from penstock.web.tenant import answers, playground_socket
from tenants.member_credentials import unseal
from tenants.models import Membership, Tenant, User
from tests.web.seed import people, pool, usage_record

pytestmark = pytest.mark.django_db(transaction=True)
SECRET = "the prompt that no log may hold"
ASK = {"type": "ask", "id": 1, "model": "chat-32b", "turns": [{"role": "user", "text": SECRET}]}
REQUEST_ID = "0199aa00-0000-7000-8000-000000000001"
HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "x-penstock-request-id": REQUEST_ID,
    "x-penstock-class": "best_effort",
    "x-penstock-replica": "replica-1",
    "x-penstock-mu-estimated": "0.25",
}


class Gateway:
    """Streams ``pieces``, then usage and the end; or holds on after the first piece until the client leaves."""

    def __init__(self) -> None:
        self.asked: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.holds = False
        self.left = asyncio.Event()
        self.answer: Callable[[web.Request], web.StreamResponse] | None = None

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((dict(request.headers), await request.json()))
        if self.answer is not None:
            return self.answer(request)
        response = web.StreamResponse(headers=HEADERS)
        await response.prepare(request)
        try:
            for text in ("Hel", "lo"):
                await self.event(response, {"choices": [{"delta": {"content": text}}]})
                while self.holds:
                    await asyncio.sleep(0.02)
                    if request.transport is None or request.transport.is_closing():
                        raise ConnectionResetError
        except (ConnectionResetError, asyncio.CancelledError):
            self.left.set()
            raise
        await self.event(response, {"choices": [{"delta": {}, "finish_reason": "stop"}]})
        usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
        await self.event(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def event(self, response: web.StreamResponse, event: dict[str, Any]) -> None:
        await response.write(f"data: {json.dumps(event)}\n\n".encode())


@pytest.fixture(autouse=True)
async def _no_connection_is_left() -> AsyncIterator[None]:
    """Queries ran in a thread of asgiref's; PostgreSQL drops no database that is in use."""
    yield
    await sync_to_async(connections.close_all)()


@pytest.fixture
async def gateway(settings: Any) -> AsyncIterator[Gateway]:
    made = Gateway()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", made.serve)
    runner = web.AppRunner(app, shutdown_timeout=0.5)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    settings.PENSTOCK_GATEWAY_URL = f"http://127.0.0.1:{port}/v1"
    yield made
    await runner.cleanup()


def session_of(user: User) -> str:
    session = SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session[BACKEND_SESSION_KEY] = django_settings.AUTHENTICATION_BACKENDS[0]
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.save()
    return str(session.session_key)


class Place:
    """Two tenants, their people and their sessions."""

    def __init__(self) -> None:
        self.operator, self.owner, self.viewer, self.stranger, self.tenant, _ = people()
        self.developer = User.objects.create_user("developer@northwind.example")
        Membership.objects.create(tenant=self.tenant, user=self.developer, role="developer")
        hardware = HardwareType.objects.create(slug="cpu", name="CPU", is_cpu=True)
        model = Model.objects.create(slug="m", name="M", artifact_kind="none")
        self.pool = pool("chat-32b", model, hardware, calibrated=True, now=timezone.now())
        names = ("operator", "owner", "viewer", "stranger", "developer")
        self.sessions = {name: session_of(getattr(self, name)) for name in names}


@pytest.fixture
def place(transactional_db: None) -> Place:
    return Place()


def scope(session: str | None, slug: str = "northwind", origin: str = "http://localhost:8000") -> dict[str, Any]:
    headers = [(b"host", b"localhost:8000")]
    headers += [(b"origin", origin.encode())] if origin else []
    headers += [(b"cookie", f"sessionid={session}".encode())] if session else []
    path = f"/t/{slug}/playground/socket"
    return {"type": "websocket", "path": path, "scheme": "ws", "query_string": b"", "headers": headers}


class Page:
    def __init__(self, communicator: ApplicationCommunicator) -> None:
        self.communicator = communicator

    async def say(self, message: dict[str, Any] | str) -> None:
        text = message if isinstance(message, str) else json.dumps(message)
        await self.communicator.send_input({"type": "websocket.receive", "text": text})

    async def hear(self) -> dict[str, Any]:
        event = await self.communicator.receive_output(5)
        assert event["type"] == "websocket.send", event
        return json.loads(event["text"])  # type: ignore[no-any-return]

    async def hear_until(self, kind: str) -> list[dict[str, Any]]:
        heard = [await self.hear()]
        while heard[-1]["type"] != kind:
            heard.append(await self.hear())
        return heard


@asynccontextmanager
async def opened(session: str | None, **where: str) -> AsyncIterator[Page]:
    communicator = ApplicationCommunicator(socket_urls.application, scope(session, **where))
    await communicator.send_input({"type": "websocket.connect"})
    event = await communicator.receive_output(5)
    assert event["type"] == "websocket.accept", event
    yield Page(communicator)
    await communicator.send_input({"type": "websocket.disconnect", "code": 1001})
    await communicator.wait(5)


async def turned_away(**made: Any) -> bool:
    communicator = ApplicationCommunicator(socket_urls.application, scope(made.pop("session"), **made))
    await communicator.send_input({"type": "websocket.connect"})
    event = await communicator.receive_output(5)
    await communicator.send_input({"type": "websocket.disconnect", "code": 1006})
    await communicator.wait(5)
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


# ------------------------------------------------------------------------------ rights that end
async def ended(page: Page, code: int) -> None:
    message = (await page.hear_until("ended"))[-1]
    assert message["code"] == code
    event = await page.communicator.receive_output(5)
    assert (event["type"], event["code"]) == ("websocket.close", code)


async def test_a_membership_that_has_ended_ends_the_page(place: Place, gateway: Gateway) -> None:
    async with opened(place.sessions["developer"]) as page:
        await Membership.objects.filter(user=place.developer).adelete()
        await page.say(ASK)
        await ended(page, 4403)
    assert gateway.asked == []


async def test_a_role_that_is_too_small_now_ends_the_page(place: Place, gateway: Gateway) -> None:
    async with opened(place.sessions["developer"]) as page:
        await Membership.objects.filter(user=place.developer).aupdate(role="viewer")
        await page.say(ASK)
        await ended(page, 4403)


async def test_who_has_signed_out_is_out(place: Place, gateway: Gateway) -> None:
    async with opened(place.sessions["developer"]) as page:
        await sync_to_async(SessionStore(place.sessions["developer"]).delete)()
        await page.say(ASK)
        await ended(page, 4401)


async def test_a_new_password_ends_other_sessions_sockets(place: Place, gateway: Gateway) -> None:
    async with opened(place.sessions["developer"]) as page:
        await User.objects.filter(pk=place.developer.pk).aupdate(password="another-hash")
        await page.say(ASK)
        await ended(page, 4401)


async def test_an_answer_ends_soon_after_the_membership(
    place: Place, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(playground_socket, "RECHECK_S", 0.1)
    gateway.holds = True
    async with opened(place.sessions["developer"]) as page:
        await page.say(ASK)
        await page.hear_until("delta")
        await Membership.objects.filter(user=place.developer).adelete()
        await ended(page, 4403)
    await asyncio.wait_for(gateway.left.wait(), 5)


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
    assert "a fault of our own" in caplog.text
    assert SECRET not in caplog.text
    assert "psm_" not in caplog.text
