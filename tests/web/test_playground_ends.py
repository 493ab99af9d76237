"""The playground's websocket ends with the rights of whoever is behind it, whatever the page or the database does."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.sessions.backends.db import SessionStore
from django.db import OperationalError

from penstock.web import socket_urls
from penstock.web.tenant import playground_socket
from tenants.models import Membership, User
from tests.web.playground import ASK, SECRET, Gateway, Place, ended, opened, scope

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("no_connection_is_left")]


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


def broken_once(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """The next look-up of rights fails; the event says that it has."""
    real, failed = playground_socket.asker_of, asyncio.Event()

    async def asker_of(where: dict[str, Any], slug: str) -> Any:
        if not failed.is_set():
            failed.set()
            raise OperationalError(f"server closed the connection; {SECRET}")
        return await real(where, slug)

    monkeypatch.setattr(playground_socket, "asker_of", asker_of)
    return failed


async def test_a_fault_of_the_database_ends_neither_the_answer_nor_the_watch(
    place: Place, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(playground_socket, "RECHECK_S", 0.1)
    gateway.holds = True
    async with opened(place.sessions["developer"]) as page:
        await page.say(ASK)
        await page.hear_until("delta")
        failed = broken_once(monkeypatch)
        await asyncio.wait_for(failed.wait(), 5)
        assert not gateway.left.is_set()
        await Membership.objects.filter(user=place.developer).adelete()
        await ended(page, 4403)
    await asyncio.wait_for(gateway.left.wait(), 5)
    assert "OperationalError" in caplog.text
    assert SECRET not in caplog.text


async def test_a_fault_of_the_database_as_one_asks_is_told_and_the_page_goes_on(
    place: Place, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with opened(place.sessions["developer"]) as page:
        broken_once(monkeypatch)
        await page.say(ASK)
        assert "Try again" in (await page.hear())["message"]
        await page.say(ASK)
        await page.hear_until("done")
    assert SECRET not in caplog.text


async def test_a_page_that_takes_nothing_any_more_is_closed_all_the_same(
    place: Place, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(playground_socket, "RECHECK_S", 0.1)
    monkeypatch.setattr(playground_socket, "LAST_WORD_S", 0.2)
    gateway.holds = True
    said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    stalled, closed = asyncio.Event(), asyncio.Event()
    codes = []

    async def send(event: dict[str, Any]) -> None:
        if event["type"] == "websocket.close":
            codes.append(event["code"])
            closed.set()
        elif event["type"] == "websocket.send" and '"delta"' in event["text"]:
            stalled.set()
            await asyncio.Event().wait()

    app = asyncio.create_task(socket_urls.application(scope(place.sessions["developer"]), said.get, send))
    await said.put({"type": "websocket.connect"})
    await said.put({"type": "websocket.receive", "text": json.dumps(ASK)})
    await asyncio.wait_for(stalled.wait(), 5)
    await Membership.objects.filter(user=place.developer).adelete()
    await asyncio.wait_for(closed.wait(), 5)
    assert codes == [4403]
    await said.put({"type": "websocket.disconnect", "code": 1006})
    await asyncio.wait_for(app, 5)
    await asyncio.wait_for(gateway.left.wait(), 5)
