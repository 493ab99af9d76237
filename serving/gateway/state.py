"""The shared state (Valkey or Redis, 6.2 commands only): keys, clients, scripts and ring buffers.

``State`` is the gateway's asyncio client; ``connect`` gives the loops a synchronous one. No Django.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.retry import Retry

EPOCH = "penstock:epoch"
GATEWAYS = "penstock:gws"
RUN = "penstock:run"
GRACE_UNTIL = "penstock:grace-until"
LIFETIME_MS = 2000
"""A gateway that has not beaten for this long is dead: its requests in flight vanish."""
GRACE_MS = 2000
"""The state grants nothing for so long after it was away: longer than any gateway's back-off."""
SILENCE_MS = 1000
"""Gateways write every 100 ms: when none has for so long, the state was away."""

Argument = str | bytes | int | float


class StateUnavailable(ConnectionError):
    """The shared state does not answer; the message says where it was looked for."""


class Script(NamedTuple):
    """A Lua script and the SHA-1 the server knows it by."""

    text: str
    sha: str


def script(name: str) -> Script:
    """The script ``lua/<name>.lua`` of this package."""
    text = (Path(__file__).parent / "lua" / f"{name}.lua").read_text(encoding="utf-8")
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


_EPOCH_SCRIPT = script("epoch")
_EPOCH_KEYS = (EPOCH, RUN, GRACE_UNTIL)


class State:
    """Asyncio client of one gateway process, over one connection.

    Calls made while another is on its way leave together in the next round trip, in the order they were made.
    After a failure calls fail at once until the back-off (50 ms, doubled up to 1 s) has passed.
    """

    def __init__(self, url: str, *, timeout_s: float = 1.0) -> None:
        """``url``: ``unix:///path`` or ``redis://[user:password@]host:port/db``."""
        self.url = url
        self.timeout_s = timeout_s
        self._pool: Any = redis.asyncio.ConnectionPool.from_url(
            url,
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=AsyncRetry(NoBackoff(), 0),
        )
        self._connection: Any = None
        self._waiting: list[tuple[tuple[Argument, ...], asyncio.Future[Any]]] = []
        self._runner: asyncio.Task[None] | None = None
        self._closed = False
        self._back_off_s = 0.0
        self._retry_at = 0.0
        self._epoch = ""

    @property
    def epoch(self) -> str:
        """Identity of the state's contents as last seen; empty before the first contact."""
        return self._epoch

    @property
    def connected(self) -> bool:
        """Whether the last call was answered."""
        return self._connection is not None

    def note_epoch(self, epoch: bytes | str) -> None:
        """An answer named the epoch."""
        self._epoch = (epoch.decode() if isinstance(epoch, bytes) else epoch) or self._epoch

    async def call(self, *command: Argument) -> Any:
        """One command. Raises StateUnavailable, or redis.ResponseError for a refused command."""
        loop = asyncio.get_running_loop()
        if self._closed:
            raise StateUnavailable("the client of the shared state is closed")
        if self._connection is None and loop.time() < self._retry_at:
            raise StateUnavailable(f"the shared state at {_place(self.url)} does not answer")
        answer: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((command, answer))
        if self._runner is None:
            self._runner = loop.create_task(self._run())
        return await answer

    async def run(self, lua: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Run a script by its SHA-1, sending its text when the server does not know it. Raises as ``call``."""
        try:
            return await self.call("EVALSHA", lua.sha, len(keys), *keys, *args)
        except NoScriptError:
            return await self.call("EVAL", lua.text, len(keys), *keys, *args)

    async def close(self) -> None:
        self._closed = True
        if self._runner is not None:
            self._runner.cancel()
            with suppress(asyncio.CancelledError):
                await self._runner
        self._fail(self._waiting, StateUnavailable("the client of the shared state is closed"))
        self._waiting = []
        await self._disconnect()

    async def _run(self) -> None:
        batch: list[tuple[tuple[Argument, ...], asyncio.Future[Any]]] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                try:
                    await self._exchange(batch)
                # RuntimeError: uvloop's word for a connection that was reset while nobody read from it.
                except (RedisError, OSError, asyncio.IncompleteReadError, RuntimeError) as error:
                    await self._disconnect()
                    self._back_off_s = min(1.0, self._back_off_s * 2 or 0.05)
                    loop = asyncio.get_running_loop()
                    # Jitter: gateways must not come back in step.
                    self._retry_at = loop.time() + self._back_off_s * random.uniform(0.75, 1.25)  # noqa: S311
                    message = f"the shared state at {_place(self.url)} does not answer: {error}"
                    self._fail(batch, StateUnavailable(message))
                    waiting, self._waiting = self._waiting, []
                    self._fail(waiting, StateUnavailable(message))
        finally:
            # Nobody may wait for an answer that cannot come any more, whatever ended this.
            self._runner = None
            self._fail(batch, StateUnavailable("the client of the shared state is closed"))

    async def _exchange(self, batch: list[tuple[tuple[Argument, ...], asyncio.Future[Any]]]) -> None:
        if self._connection is None:
            await self._connect()
        connection = self._connection
        await connection.send_packed_command(
            connection.pack_commands([command for command, _ in batch]), check_health=False
        )
        for _, answer in batch:
            try:
                value = await connection.read_response()
            except ResponseError as error:
                if not answer.done():
                    answer.set_exception(error)
            else:
                if not answer.done():
                    answer.set_result(value)

    async def _connect(self) -> None:
        connection = self._pool.make_connection()
        try:
            await connection.connect()
            lua = _EPOCH_SCRIPT
            name = secrets.token_hex(6)
            await connection.send_command("EVAL", lua.text, len(_EPOCH_KEYS), *_EPOCH_KEYS, name, GRACE_MS)
            epoch = await connection.read_response()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._connection = connection
        self._back_off_s = 0.0
        self.note_epoch(cast(bytes, epoch))

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)

    @staticmethod
    def _fail(batch: list[tuple[tuple[Argument, ...], asyncio.Future[Any]]], error: Exception) -> None:
        for _, answer in batch:
            if not answer.done():
                answer.set_exception(error)


def connect(url: str, *, timeout_s: float = 5.0) -> redis.Redis:
    """A synchronous client for the loops and the web (bytes in, bytes out). It reconnects by itself."""
    return redis.Redis.from_url(
        url,
        protocol=2,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.02), 3),
    )


def run_script(client: redis.Redis, lua: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
    """``State.run`` for a synchronous client."""
    try:
        return client.evalsha(lua.sha, len(keys), *keys, *args)
    except NoScriptError:
        return client.eval(lua.text, len(keys), *keys, *args)


def ensure_epoch(client: redis.Redis) -> str:
    """Make ``penstock:epoch`` if it is absent and return it."""
    return cast(bytes, run_script(client, _EPOCH_SCRIPT, _EPOCH_KEYS, [secrets.token_hex(6), GRACE_MS])).decode()


def deployment_ring(deployment_id: str) -> str:
    """Key of a deployment's ring buffer (one sample a second, 7,200 kept)."""
    return f"penstock:ring:deployment:{deployment_id}"


def replica_ring(replica_id: str) -> str:
    """Key of a replica's ring buffer of engine metrics (one sample a second, 900 kept)."""
    return f"penstock:ring:replica:{replica_id}"


def ring_push(client: redis.Redis, samples: Mapping[str, Any], *, keep: int) -> None:
    """Push one JSON-able sample per ring key, newest first, and trim each ring to ``keep``; one round trip."""
    if not samples:
        return
    pipeline = client.pipeline(transaction=False)
    for key, sample in samples.items():
        pipeline.lpush(key, msgspec.json.encode(sample))
        pipeline.ltrim(key, 0, keep - 1)
        # A ring that nobody feeds any more goes away by itself.
        pipeline.expire(key, max(3600, 2 * keep))
    pipeline.execute()


def ring_read(client: redis.Redis, key: str, count: int) -> list[dict[str, Any]]:
    """The newest ``count`` samples of a ring, newest first."""
    return ring_read_many(client, [key], count)[key]


def ring_read_many(client: redis.Redis, keys: Sequence[str], count: int) -> dict[str, list[dict[str, Any]]]:
    """``ring_read`` of several rings in one round trip."""
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.lrange(key, 0, count - 1)
    answers = pipeline.execute() if keys else []
    return {key: [msgspec.json.decode(entry) for entry in entries] for key, entries in zip(keys, answers, strict=True)}


def policy_state_read(client: redis.Redis, loop: str, object_id: str) -> dict[str, Any] | None:
    """A loop's policy state, or None."""
    value = cast("bytes | None", client.get(f"penstock:policy:{loop}:{object_id}"))
    return None if value is None else msgspec.json.decode(value, type=dict[str, Any])


def policy_state_write(client: redis.Redis, loop: str, object_id: str, value: Mapping[str, Any]) -> None:
    """Keep a loop's policy state for a week: longer than any look-back, shorter than for ever."""
    client.set(f"penstock:policy:{loop}:{object_id}", msgspec.json.encode(value), ex=7 * 86400)


def _place(url: str) -> str:
    """``url`` without its credentials."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
