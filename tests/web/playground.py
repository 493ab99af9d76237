"""What tests of the playground's websocket share: a gateway that plays a script, people with sessions, and a page."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from asgiref.testing import ApplicationCommunicator
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.db import SessionStore
from django.utils import timezone

from capacity.models import HardwareType, Model
from penstock.web import socket_urls
from tenants.models import Membership, User
from tests.web.seed import people, pool

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

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Its address."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.serve)
        runner = web.AppRunner(app, shutdown_timeout=0.5)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        await runner.cleanup()


def session_of(user: User) -> str:
    session = SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
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
    await communicator.wait(60)


async def ended(page: Page, code: int) -> None:
    message = (await page.hear_until("ended"))[-1]
    assert message["code"] == code
    event = await page.communicator.receive_output(5)
    assert (event["type"], event["code"]) == ("websocket.close", code)
