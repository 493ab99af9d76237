"""The playground's websocket: from the console's own pages alone, for members who may use the tenant's models."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import aclosing, suppress
from uuid import UUID

import msgspec
from channels.generic.websocket import AsyncWebsocketConsumer
from django.db import Error as DatabaseError

from penstock.web.sockets import PolicyViolation, asker_of, is_own_origin
from penstock.web.tenant.answers import Asker, Told, answer, settled
from penstock.web.tenant.chat import Ask, AskError, read_message

logger = logging.getLogger(__name__)

RECHECK_S = 15.0
"""While an answer comes: a session or membership that has ended ends it within so long."""
LAST_WORD_S = 2.0
"""A page that takes nothing for so long is closed without hearing why."""
MOST_OPEN = 20
"""Sockets of one person at one web process."""
MOST_SETTLING = 32
TOO_MANY = 4429

_open: Counter[UUID] = Counter()


class PlaygroundSocket(AsyncWebsocketConsumer):  # type: ignore[misc]  # channels has no types
    """One page. At most one answer at a time; what is asked and answered is kept nowhere, and never logged."""

    asker: Asker | None = None
    answering: asyncio.Task[None] | None = None
    answer_id = -1

    async def connect(self) -> None:
        self.settling: set[asyncio.Task[None]] = set()
        self.sending = asyncio.Lock()
        if not is_own_origin(self.scope):
            await self.close()
            return
        try:
            asker = await self._asker()
        except PolicyViolation:
            # Closed before it is accepted, the same for whatever is not theirs: it does not exist for them.
            await self.close()
            return
        await self.accept()
        if _open[asker.user] >= MOST_OPEN:
            await self._end(TOO_MANY, f"You have {MOST_OPEN} playgrounds open: close some, then reload this page.")
            return
        self.asker = asker
        _open[asker.user] += 1

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if self.asker is None:
            return
        try:
            message = read_message(text_data or "")
        except AskError as error:
            await self._tell({"type": "rejected", "message": str(error)})
            return
        if isinstance(message, Ask):
            await self._ask(message)
        elif message.id == self.answer_id:
            await self._stop()

    async def disconnect(self, code: int) -> None:
        if self.asker is not None:
            _open[self.asker.user] -= 1
            if not _open[self.asker.user]:
                del _open[self.asker.user]
            self.asker = None
        await self._stop()
        for task in self.settling:
            task.cancel()

    # ------------------------------------------------------------- one answer
    async def _ask(self, ask: Ask) -> None:
        if self.answering is not None and not self.answering.done():
            await self._tell({"type": "rejected", "message": "An answer is still coming: stop it first."})
            return
        try:
            # Asked again each time: roles, memberships and sessions end while a page is open.
            asker = await self._asker()
        except PolicyViolation as error:
            await self._end(error.code, str(error))
            return
        except DatabaseError as error:
            logger.warning("playground: rights could not be asked for (%s)", type(error).__name__)
            await self._tell({"type": "rejected", "message": "The console could not look up your rights. Try again."})
            return
        self.answer_id = ask.id
        self.answering = asyncio.create_task(self._answer(ask, asker))

    async def _answer(self, ask: Ask, asker: Asker) -> None:
        request_id = ""
        watch = asyncio.create_task(self._watch())
        try:
            async with aclosing(answer(ask, asker)) as all_told:
                async for told in all_told:
                    request_id = told.get("request_id") or request_id
                    await self._tell(told | {"id": ask.id})
        except asyncio.CancelledError:
            with suppress(Exception):  # the page may be gone
                await self._tell_at_last({"type": "stopped", "id": ask.id})
            raise
        except Exception as error:  # noqa: BLE001  (told to the page; the others go on)
            # Its text may quote what was said.
            logger.error("playground: an answer failed (%s)", type(error).__name__)
            with suppress(Exception):
                told = {"type": "failed", "id": ask.id, "code": "internal_error", "status": 0, "retry_after_s": None}
                await self._tell(told | {"message": "The console failed on this. Try again."})
        finally:
            watch.cancel()
            if request_id and self.asker is not None and len(self.settling) < MOST_SETTLING:
                task = asyncio.create_task(self._settle(ask.id, request_id, asker))
                self.settling.add(task)
                task.add_done_callback(self.settling.discard)

    async def _settle(self, answer_id: int, request_id: str, asker: Asker) -> None:
        told = await settled(request_id, asker)
        with suppress(Exception):
            await self._tell((told or {"type": "unsettled"}) | {"id": answer_id, "request_id": request_id})

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(RECHECK_S)
            try:
                await self._asker()
            except PolicyViolation as error:
                await self._end(error.code, str(error))
                return
            except DatabaseError as error:
                # Whoever it is may still be allowed: asked again next time. No more than the kind: it may hold a row.
                logger.warning("playground: rights could not be asked for (%s); asked again", type(error).__name__)

    async def _stop(self) -> None:
        """End the answer that comes, and with it the request to the gateway."""
        task, self.answering = self.answering, None
        if task is not None and not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    # ------------------------------------------------------------- the page
    async def _asker(self) -> Asker:
        """Raises PolicyViolation."""
        slug: str = self.scope["url_route"]["kwargs"]["slug"]
        return await asker_of(self.scope, slug)

    async def _end(self, code: int, message: str) -> None:
        with suppress(TimeoutError):
            await self._tell_at_last({"type": "ended", "code": code, "message": message})
        await self.close(code)

    async def _tell_at_last(self, message: Told) -> None:
        """Raises TimeoutError. A page that has stalled holds the turn to speak: what ends must end all the same."""
        async with asyncio.timeout(LAST_WORD_S):
            await self._tell(message)

    async def _tell(self, message: Told) -> None:
        # Two tasks may speak, and a message is awaited until the page takes it.
        async with self.sending:
            await self.send(text_data=msgspec.json.encode(message).decode())
