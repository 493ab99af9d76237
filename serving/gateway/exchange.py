"""One admitted request on its way: placed on a replica, forwarded, relayed, and ended, whatever ends it.

Settlement comes before the last bytes to the client: a client that has seen the end of an answer finds its limits
settled, and a gateway killed a moment later has the whole request in its journal.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from serving.gateway import errors, refusals
from serving.gateway.books import Books
from serving.gateway.dispatch import Busy, Lent, NoReplica, Owned, Placement
from serving.gateway.errors import ApiError, Header
from serving.gateway.records import Outcome
from serving.gateway.refusals import EngineFailed, EngineRefused
from serving.gateway.relay import RelayError
from serving.gateway.request import EVENT_STREAM, JSON, Message, Request
from serving.gateway.upstream import AnswerTooLarge, ConnectFailed, Connection, ConnectionBroken, UpstreamError
from serving.gateway.usage import UNREADABLE
from serving.policy import gate
from serving.policy.classes import PRIORITY
from serving.policy.routing import Load

if TYPE_CHECKING:
    from serving.gateway.services import Services

Stop = Literal["client_closed", "timeout", "idle", "reclaimed"]

TICK_S = 5.0
PROGRESS_S = 1.0
LAST_WORD_S = 2.0
"""How long a client that must be told of a stopped request may take to hear it."""
MAX_ATTEMPTS = 2


class Exchange:
    """``run`` answers the client; nothing it raises is the client's to see. ``note`` hears why there was no room."""

    def __init__(
        self,
        services: Services,
        request: Request,
        books: Books,
        claim: Lent | Owned,
        note: Callable[[ApiError], None],
    ) -> None:
        self.services = services
        self.request = request
        self.send = request.send
        self.books = books
        self.claim = claim
        self.note = note
        self.deployment = books.deployment
        self.parsed = books.parsed
        self.is_own = books.dialect.is_own(books.deployment)
        self.connection: Connection | None = None
        self.has_started = self.is_sending = self.is_over = False
        self.stopped: Stop | None = None
        self.way = ""
        """The replica that it is to leave for an owner."""
        self.ways = 0
        self.failure: EngineFailed | None = None
        self.heard = request.arrived
        self.task: asyncio.Task[Any] | None = None
        self.watcher: asyncio.Task[Message] | None = None
        self.timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        self.task = asyncio.current_task()
        self.services.watches.add(self)
        try:
            await self._serve()
        except asyncio.CancelledError:
            if self.task is not None:
                self.task.uncancel()
            await self._stopped()
        except ApiError as error:
            self.books.settle(refusals.outcome_of(error), error.status, error.code or "")
            await self._answer_error(error)
        except Exception:
            self.books.settle("engine_error", 500, "internal error of the gateway")
            failed = ApiError(500, "The gateway failed on this request.", code="internal_error", type=errors.SERVER)
            with suppress(RuntimeError):  # an answer that cannot be begun any more: the cause is what matters
                await self._answer_error(failed)
            raise
        finally:
            self.is_over = True
            self._drop()
            if self.timer is not None:
                self.timer.cancel()
            if self.watcher is not None:
                self.watcher.cancel()

    async def _serve(self) -> None:
        tried: tuple[str, ...] = ()
        expected = self.books.estimate
        load = Load(self._workload(), expected.prefill_mu, expected.decode_mu, self.parsed.is_stream)
        failure: UpstreamError | None = None
        while True:
            placement = await self._place(load, tried, failure)
            try:
                await self._attempt(placement)
                return
            except asyncio.CancelledError:
                if not self._has_made_way():
                    raise
                continue
            except UpstreamError as error:
                self._drop()
                is_alive = isinstance(error, (EngineRefused, EngineFailed))
                self.books.leave("engine_error" if is_alive else "engine_lost")
                self.services.dispatcher.suspect(placement.replica.id)
                may_have_run = self.is_own and not isinstance(error, ConnectFailed)
                if self.has_started or may_have_run or len(tried) + 1 >= MAX_ATTEMPTS:
                    raise refusals.failure(error) from error
                failure = error
            tried = (*tried, placement.replica.id)
            self.services.metrics.retries[self.deployment.name] += 1

    async def _place(self, load: Load, tried: tuple[str, ...], failure: UpstreamError | None) -> Placement:
        by_class = self.services.metrics.models[self.deployment.name].classes[self.books.service_class]
        asked = time.monotonic()
        try:
            # Of what is not an engine of ours nobody knows what reading it twice would do.
            on_way = None if self.is_own or self.ways >= gate.WAYS else self._make_way
            placement = await self.services.dispatcher.place(
                self.deployment.id, load, tried, claim=self.claim, on_reclaim=self._reclaim, on_way=on_way
            )
        except NoReplica as error:
            if failure is not None:
                raise refusals.failure(failure) from error
            self.services.loads.refused(self.deployment.id)
            raise errors.no_replica(self.deployment.name, is_stopped=self.deployment.is_stopped) from error
        except Busy as error:
            by_class.refusals[error.reason] += 1
            self.services.loads.refused(self.deployment.id)
            raise self._no_room(error) from error
        by_class.admitted += not (tried or self.ways)
        by_class.wait.observe(time.monotonic() - asked)
        self.books.place(placement)
        return placement

    def _no_room(self, error: Busy) -> ApiError:
        told = refusals.no_room(self.deployment.name, error)
        self.note(told)
        return told

    async def _attempt(self, placement: Placement) -> None:
        body = self.books.dialect.engine_body(
            self.parsed,
            priority=PRIORITY[self.books.service_class],
            cache_salt=self.services.cache_salt(self.books.principal.tenant.id),
        )
        connection = self.connection = await self.services.call_replica(
            placement.replica,
            self.books.dialect.path_of(self.deployment),
            body,
            self.request.id,
            once=self.is_own,
        )
        if connection.status != 200 and not (self.is_own and connection.status // 100 in (2, 4)):
            await self._refused(connection)
        elif self.parsed.is_stream and connection.content_type.startswith(b"text/event-stream"):
            await self._stream(connection, placement)
        else:
            await self._whole(connection)

    async def _refused(self, connection: Connection) -> None:
        """The engine said no: a client's mistake goes to the client, anything else is the replica's failure."""
        status = connection.status
        body = await connection.read_all(1024 * 1024)
        self._keep(connection)
        error = refusals.mistake(status, body, model=self.deployment.name, path=self.request.path)
        self.books.leave("refused", ok=True)
        raise error

    async def _whole(self, connection: Connection) -> None:
        books, status = self.books, connection.status
        limit = self.services.config.max_answer
        try:
            body = await connection.read_all(limit)
        except AnswerTooLarge:
            # The work was done, and is charged; another replica would say as much.
            books.settle("completed", 400, "answer_too_large")
            raise refusals.too_large(limit) from None
        kind = (JSON[0], connection.content_type or JSON[1]) if books.dialect.keeps_type else JSON
        self._keep(connection)
        if status >= 400:
            books.leave("refused", ok=True)
            books.settle("refused", status)
            await self._answer_whole(status, kind, body)
            return
        try:
            body, books.usage, books.finish_reason = books.dialect.read_answer(self.parsed, body, self.request.id)
        except UNREADABLE as error:
            raise EngineRefused(200, "the engine's answer is not what its API sends") from error
        books.first_byte()
        books.settle("completed", status)
        await self._answer_whole(status, kind, body)

    async def _answer_whole(self, status: int, kind: Header, body: bytes) -> None:
        # An answer without content (204) has no header that speaks of any.
        headers = [] if status == 204 else [kind, (b"content-length", str(len(body)).encode())]
        await self._start(status, headers)
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def _stream(self, connection: Connection, placement: Placement) -> None:
        relay = self.books.relay = self.books.dialect.relay(self.parsed, self.request.id)
        direct = self.request.direct
        out = b""

        def take() -> bytes:
            """What the client is to get of what has just come from the engine. Raises RelayError."""
            made = relay.feed(connection.take())
            self.heard = time.monotonic()
            return made

        def pump() -> bool:
            """Relay from within the read callback: what needs no waiting needs no task to wake."""
            nonlocal out
            if direct is None or not direct.is_writable:
                return False
            try:
                out = take()
            except RelayError as error:
                self.failure = EngineFailed(str(error))
                return False
            if relay.is_over:
                return False
            if out:
                placement.ticket.token()
                direct.write(out)
                self._note_progress()
            return True

        while not relay.is_over:
            if connection.has_body:
                try:
                    out = take()
                except RelayError as error:
                    raise EngineFailed(str(error)) from error
                if out and not relay.is_over:
                    await self._send_part(placement, out)
            elif connection.is_complete or not connection.is_open:
                raise ConnectionBroken(connection.error or "the engine's stream ended before its last event")
            else:
                await connection.wait(pump if self.has_started else None)
                if self.failure is not None:
                    raise self.failure
        failure = relay.error if relay.broken is None else relay.broken
        if failure is not None:
            if out:
                await self._send_part(placement, out)
            raise EngineFailed(failure)
        await self._finish_stream(connection, out)

    async def _send_part(self, placement: Placement, part: bytes) -> None:
        if not self.has_started:
            self.books.first_byte()
            await self._start(200, list(EVENT_STREAM))
        placement.ticket.token()
        self.is_sending, began = True, time.monotonic()
        try:
            await self.send({"type": "http.response.body", "body": part, "more_body": True})
        finally:
            self.books.held_s += time.monotonic() - began
        self.is_sending = False
        self._note_progress()

    def _note_progress(self) -> None:
        if self.heard - self.books.progressed >= PROGRESS_S:
            self.books.progress(self.heard)

    async def _finish_stream(self, connection: Connection, out: bytes) -> None:
        self.connection = None
        connection.linger()
        self.books.first_byte()
        self.books.settle("completed", 200)
        if not self.has_started:
            await self._start(200, list(EVENT_STREAM))
        await self.send({"type": "http.response.body", "body": out, "more_body": False})

    def _keep(self, connection: Connection) -> None:
        self.connection = None
        connection.release()

    def _drop(self) -> None:
        """Close the connection to the replica at once: it must not generate for nobody."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abort()

    # ----------------------------------------------------------------- the client
    async def _start(self, status: int, headers: list[Header]) -> None:
        self.has_started = True
        if self.books.attempts:
            headers.append((b"x-penstock-replica", self.books.attempts[-1].replica.encode()))
        await self.send({"type": "http.response.start", "status": status, "headers": headers + self.request.base})

    async def _answer_error(self, error: ApiError) -> None:
        """An error answer, or, inside a stream, an error event that ends it: what ends a whole one does not follow."""
        if self.has_started:
            body = self.request.shape.event(error, self.request.id)
        else:
            body = self.request.shape.body(error, self.request.id)
            await self._start(error.status, [JSON, (b"content-length", str(len(body)).encode()), *error.headers])
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def _stopped(self) -> None:
        """The request was cancelled: by its watcher, by a clock, or by the server that is going down."""
        if self.books.is_settled:
            return
        if self.stopped == "client_closed":
            self.books.settle("client_closed", 499)
            return
        outcome: Outcome = "timeout"
        if self.stopped == "reclaimed":
            ended, claim = self.services.dispatcher.best_effort.ended, self.claim
            told = ended(self.deployment.id, claim) if isinstance(claim, Lent) else refusals.reclaimed()
            error, outcome = self._no_room(told), "refused"
            self.services.metrics.models[self.deployment.name].classes[self.books.service_class].refusals["cut"] += 1
        else:
            error = refusals.stopped(self.stopped, total_s=self.services.config.total_s)
            outcome = "engine_lost" if self.stopped == "idle" else outcome
        self.books.settle(outcome, error.status, error.code or "")
        # No clock watches over this any more, and the client may not be reading.
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD_S):
                await self._answer_error(error)

    def watch(self) -> None:
        """Look out for the client that leaves and for the clocks that run out, from now on."""
        self.watcher = asyncio.get_running_loop().create_task(self._next_message())
        self.watcher.add_done_callback(self._client_left)
        self._tick()

    async def _next_message(self) -> Message:
        return await self.request.receive()

    def _client_left(self, watcher: asyncio.Task[Message]) -> None:
        if not watcher.cancelled() and watcher.exception() is None:
            self._stop("client_closed")

    def _tick(self) -> None:
        now = time.monotonic()
        config = self.services.config
        if now - self.request.arrived >= config.total_s:
            self._stop("timeout")
        elif self.has_started and now - self.heard >= config.idle_s:
            # A client that reads nothing for as long is as good as gone.
            self._stop("client_closed" if self.is_sending else "idle")
        if not self.stopped:
            pause = min(TICK_S, config.idle_s, max(0.01, self.request.arrived + config.total_s - now))
            self.timer = asyncio.get_running_loop().call_later(pause, self._tick)

    def _stop(self, why: Stop) -> None:
        # Settled, it can only be waiting for a client that does not read: that ends with the clock alone.
        if self.stopped or self.task is None or (self.books.is_settled and why != "timeout"):
            return
        self.stopped = why
        self._drop()
        self.task.cancel()

    def _reclaim(self) -> None:
        """An owner waits for this request's place."""
        self._stop("reclaimed")

    def _make_way(self, replica: str, reason: str) -> None:
        """An owner is to be read there first, and nothing of the answer is there yet."""
        if self.stopped or self.has_started or self.task is None or self.books.is_settled:
            return
        self.way = replica
        self.services.log.info(
            "a best-effort prompt makes way for an owner", request_id=self.request.id, replica=replica, reason=reason
        )
        self.task.cancel()

    def _has_made_way(self) -> bool:
        """Whether it was that which cancelled the attempt. Then it has left its replica, and asks for a place again."""
        way, self.way = self.way, ""
        if not way or self.stopped or self.task is None or not isinstance(self.claim, Lent):
            return False
        if self.task.uncancel():
            # Somebody else has cancelled it, too.
            return False
        self._drop()
        self.ways += 1
        self.books.leave("made_way")
        self.claim = self.claim._replace(home=way)
        self.services.metrics.models[self.deployment.name].made_way += 1
        return True

    def _workload(self) -> str:
        principal = self.books.principal
        return f"{principal.tenant.id}:{self.deployment.id}:{self.parsed.workload or principal.key.id}"
