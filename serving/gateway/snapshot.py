"""What a gateway knows of tenants, keys, pools, what serves and what is sold of them, and how it keeps up."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import msgspec
from redis.exceptions import ResponseError

from serving.gateway.records import (
    RECORD_TYPES,
    DeploymentRecord,
    KeyRecord,
    PoolRecord,
    ReplicaRecord,
    ReservationRecord,
    TenantRecord,
    decode_record,
)
from serving.gateway.snapshot_file import SnapshotFile, SnapshotFileError
from serving.gateway.state import State, StateUnavailable

logger = logging.getLogger(__name__)

META = "penstock:snap:meta"
LOG = "penstock:snap:log"
KEY_IDS = "penstock:snap:key-ids"
REBUILD = "penstock:snap:rebuild"
"""Set by a gateway that found the published hashes and digest at odds: the publisher builds everything anew."""

_MODULUS = 1 << 128
_POLL_S = 0.1
_SAVE_EVERY_S = 3.0
_QUIET_S = 60.0
_NEGATIVE_S = 1.0
_NEGATIVE_MAX = 10_000
_LONGEST_KEY_ID = 64

Delta = tuple[str, str, msgspec.Raw]
"""Kind, id, and the record's JSON; ``null`` removes."""


def record_digest(kind: str, record_id: str, raw: bytes | memoryview) -> int:
    """BLAKE2b-128 over ``kind NUL id NUL record``; a snapshot's digest is the sum of all, modulo 2¹²⁸."""
    digest = hashlib.blake2b(f"{kind}\0{record_id}\0".encode(), digest_size=16)
    digest.update(raw)
    return int.from_bytes(digest.digest(), "big")


def add_digest(digest: int, difference: int) -> int:
    return (digest + difference) % _MODULUS


def hash_key(kind: str) -> str:
    return f"penstock:snap:{kind}"


class Snapshot:
    """The records by id, and indexes. Mutable: the store applies deltas in place, between two awaits."""

    def __init__(self) -> None:
        self.version = 0
        self.digest = 0
        self.published_at = 0.0
        self.tenants: dict[str, TenantRecord] = {}
        self.keys: dict[str, KeyRecord] = {}
        self.pools: dict[str, PoolRecord] = {}
        self.deployments: dict[str, DeploymentRecord] = {}
        self.replicas: dict[str, ReplicaRecord] = {}
        self.reservations: dict[str, ReservationRecord] = {}
        self.deployments_by_name: dict[str, DeploymentRecord] = {}
        self.replicas_by_deployment: dict[str, tuple[ReplicaRecord, ...]] = {}
        self.reservations_by_pool: dict[str, tuple[ReservationRecord, ...]] = {}
        self.limits_left_out: dict[tuple[str, str], int] = {}
        """Limits of a newer publisher that are not held here, by record."""
        self.raw: dict[str, dict[str, bytes]] = {kind: {} for kind in RECORD_TYPES}
        self._tables: dict[str, dict[str, Any]] = {
            "tenant": self.tenants,
            "key": self.keys,
            "pool": self.pools,
            "deployment": self.deployments,
            "replica": self.replicas,
            "reservation": self.reservations,
        }

    def apply(self, delta: Iterable[tuple[str, str, bytes | None]]) -> None:
        """Set or remove records. One that cannot be decoded (of a newer publisher) is kept for the digest only."""
        for kind, record_id, raw in delta:
            stored = self.raw.setdefault(kind, {})
            before = stored.pop(record_id, None)
            if before is not None:
                self.digest = add_digest(self.digest, -record_digest(kind, record_id, before))
            record = None
            self.limits_left_out.pop((kind, record_id), None)
            if raw is not None:
                stored[record_id] = raw
                self.digest = add_digest(self.digest, record_digest(kind, record_id, raw))
                try:
                    record, left_out = decode_record(kind, raw)
                    if left_out:
                        self._note_left_out(kind, record_id, left_out)
                except (KeyError, msgspec.DecodeError) as error:
                    logger.warning("snapshot: %s %s cannot be read: %s", kind, record_id, error)
            self._replace(kind, record_id, record)

    def _note_left_out(self, kind: str, record_id: str, count: int) -> None:
        self.limits_left_out[kind, record_id] = count
        logger.warning(
            "snapshot: %s %s has %d limits that this version does not know and does not hold: upgrade this gateway",
            kind,
            record_id,
            count,
        )

    def _replace(self, kind: str, record_id: str, record: Any) -> None:
        table = self._tables.get(kind)
        if table is None:
            return
        before = table.pop(record_id, None)
        if record is not None:
            table[record_id] = record
        if kind == "deployment":
            for name in {n for r in (before, record) if r is not None for n in (r.name, *r.adapters)}:
                self._resolve(name)
        elif kind == "replica":
            for deployment in {r.deployment for r in (before, record) if r is not None}:
                self._index_replicas(deployment, record_id, record)
        elif kind == "reservation":
            for pool in {r.pool for r in (before, record) if r is not None}:
                self._index_reservations(pool, record_id, record)

    def _resolve(self, name: str) -> None:
        """Find whose ``name`` is, from all that there is: the same in every gateway, whatever came first.

        Another deployment may take a name over before the first one lets go of it; its own name goes before adapters.
        """
        owners = [d for d in self.deployments.values() if d.name == name or name in d.adapters]
        if owners:
            self.deployments_by_name[name] = min(owners, key=lambda d: (d.name != name, d.id))
        else:
            self.deployments_by_name.pop(name, None)

    def _index_replicas(self, deployment: str, record_id: str, record: ReplicaRecord | None) -> None:
        others = [r for r in self.replicas_by_deployment.get(deployment, ()) if r.id != record_id]
        if record is not None and record.deployment == deployment:
            others.append(record)
        if others:
            self.replicas_by_deployment[deployment] = tuple(sorted(others, key=lambda r: r.id))
        else:
            self.replicas_by_deployment.pop(deployment, None)

    def _index_reservations(self, pool: str, record_id: str, record: ReservationRecord | None) -> None:
        others = [r for r in self.reservations_by_pool.get(pool, ()) if r.id != record_id]
        if record is not None and record.pool == pool:
            others.append(record)
        if others:
            self.reservations_by_pool[pool] = tuple(sorted(others, key=lambda r: r.id))
        else:
            self.reservations_by_pool.pop(pool, None)


class SnapshotStore:
    """Follows the published snapshot and keeps a checksummed copy of it on disk."""

    def __init__(self, state: State, path: Path) -> None:
        self.view = Snapshot()
        self._state = state
        self._file = SnapshotFile(path)
        self._saved_version = 0
        self._epoch = ""
        self._confirmed_at = float("-inf")
        self._complaint, self._complained_at = "", 0.0
        self._misses: dict[str, float] = {}
        self._asked: dict[str, asyncio.Future[KeyRecord | None]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Load from the state, else from the file, else empty; then follow in the background."""
        if not await self._follow():
            self._load_file()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._follow_on()), loop.create_task(self._save_on())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._tasks = []
        await self._save()

    async def find_key(self, public_id: str) -> KeyRecord | None:
        """The key's record, asking the state once when it is not in the view (negative answers are kept 1 s)."""
        record = self.view.keys.get(public_id)
        if record is not None or len(public_id) > _LONGEST_KEY_ID:
            return record
        now = time.monotonic()
        if self._misses.get(public_id, 0.0) > now:
            return None
        asked = self._asked.get(public_id)
        if asked is None:
            asked = self._asked[public_id] = asyncio.ensure_future(self._ask_key(public_id))
            asked.add_done_callback(lambda _: self._asked.pop(public_id, None))
        return await asyncio.shield(asked)

    def age_s(self) -> float:
        """Seconds since the publisher last confirmed this view; ``inf`` when it never did."""
        return max(0.0, time.monotonic() - self._confirmed_at)

    async def _ask_key(self, public_id: str) -> KeyRecord | None:
        try:
            raw = await self._state.call("HGET", hash_key("key"), public_id)
        except (StateUnavailable, ResponseError):
            return None
        if raw is not None:
            with suppress(msgspec.DecodeError):
                return msgspec.json.decode(raw, type=KeyRecord)
        if len(self._misses) >= _NEGATIVE_MAX:
            del self._misses[next(iter(self._misses))]
        self._misses.pop(public_id, None)
        self._misses[public_id] = time.monotonic() + _NEGATIVE_S
        return None

    async def _follow_on(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            try:
                await self._follow()
            except Exception as error:
                # A view that stands still would keep revoked keys alive.
                if self._is_news(type(error).__name__):
                    logger.exception("snapshot: it cannot be followed now; it is tried again")

    async def _follow(self) -> bool:
        """Bring the view up to date; whether that was possible."""
        try:
            meta, entries = await asyncio.gather(
                self._state.call("HMGET", META, "version", "digest", "published_at", "whole"),
                self._state.call("XRANGE", LOG, f"({self.view.version}-0", "+", "COUNT", "1000"),
            )
            if meta[0] is None:
                return False
            if self._epoch != self._state.epoch or not self._apply_log(self.view, entries):
                return meta[3] == b"1" and await self._read_all()
            if self.view.version == int(meta[0]):
                if self.view.digest != int(meta[1]):
                    logger.warning("snapshot: digest of version %d differs; reading everything anew", self.view.version)
                    return meta[3] == b"1" and await self._read_all()
                self._confirm(float(meta[2]))
        except StateUnavailable:
            return False
        except (ResponseError, ValueError, msgspec.DecodeError) as error:
            if self._is_news(str(error)):
                logger.error("snapshot: what is published cannot be read: %s", error)
            return False
        return True

    def _is_news(self, complaint: str) -> bool:
        """Whether it is another complaint than the last, or was not made for a minute: a look comes each 100 ms."""
        now = time.monotonic()
        if complaint == self._complaint and now - self._complained_at < _QUIET_S:
            return False
        self._complaint, self._complained_at = complaint, now
        return True

    @staticmethod
    def _apply_log(view: Snapshot, entries: Iterable[Any]) -> bool:
        """Apply log entries in order; False at a gap."""
        for _, fields in entries:
            entry = dict(zip(fields[::2], fields[1::2], strict=True))
            version = int(entry[b"version"])
            if version != view.version + 1:
                return False
            delta = msgspec.json.decode(entry[b"delta"], type=list[Delta])
            records = ((kind, record_id, bytes(raw)) for kind, record_id, raw in delta)
            view.apply((kind, record_id, None if raw == b"null" else raw) for kind, record_id, raw in records)
            view.version = version
        return True

    async def _read_all(self) -> bool:
        """Read every hash, then the log from where that began: so the result is one version although nothing stops."""
        fresh = Snapshot()
        epoch = self._state.epoch
        fresh.version = int(await self._state.call("HGET", META, "version") or 0)
        for kind in RECORD_TYPES:
            await self._scan(fresh, kind)
        entries = await self._state.call("XRANGE", LOG, f"({fresh.version}-0", "+")
        is_whole = self._apply_log(fresh, entries)
        version, digest, published_at = await self._state.call("HMGET", META, "version", "digest", "published_at")
        if is_whole and version is not None and fresh.version == int(version) and fresh.digest == int(digest):
            # Served from only now that it is known to be what was published.
            self.view = fresh
            self._epoch = epoch
            self._confirm(float(published_at))
            return True
        if is_whole and version is not None and fresh.version == int(version):
            logger.error("snapshot: the published records do not match their digest; asking for a new one")
            await self._state.call("SET", REBUILD, "1", "EX", "60")
        return False

    async def _scan(self, fresh: Snapshot, kind: str) -> None:
        cursor = b"0"
        while True:
            cursor, flat = await self._state.call("HSCAN", hash_key(kind), cursor, "COUNT", "1000")
            records = dict(zip(flat[::2], flat[1::2], strict=True))
            fresh.apply((kind, record_id.decode(), raw) for record_id, raw in records.items())
            if int(cursor) == 0:
                return

    def _confirm(self, published_at: float) -> None:
        """The view is what the publisher said at ``published_at``; it says so each second while it lives."""
        if published_at != self.view.published_at or self._confirmed_at == float("-inf"):
            # The age is counted on this process's clock from when the news came; at the start, by the wall clocks.
            is_first = self._confirmed_at == float("-inf")
            self._confirmed_at = time.monotonic() - (max(0.0, time.time() - published_at) if is_first else 0.0)
            self.view.published_at = published_at

    def _load_file(self) -> None:
        try:
            stored = self._file.load()
        except SnapshotFileError as error:
            logger.error("snapshot: %s", error)
            return
        if stored is None:
            logger.warning("snapshot: neither the state nor a file has one; nothing can be served yet")
            return
        fresh = Snapshot()
        for kind, records in stored.records.items():
            fresh.apply((kind, record_id, bytes(raw)) for record_id, raw in records.items())
        if fresh.digest != int(stored.digest):
            logger.error("snapshot: the file's records do not match their digest; it is not used")
            return
        fresh.version = self._saved_version = stored.version
        self.view = fresh
        self._confirm(stored.published_at)
        logger.warning("snapshot: started from the file, version %d, %.0f s old", fresh.version, self.age_s())

    async def _save_on(self) -> None:
        while True:
            await asyncio.sleep(_SAVE_EVERY_S)
            await self._save()

    async def _save(self) -> None:
        view = self.view
        if view.version == self._saved_version or not view.version:
            return
        self._saved_version = view.version
        raw = cast(Mapping[str, Mapping[str, bytes]], {kind: dict(records) for kind, records in view.raw.items()})
        try:
            await asyncio.to_thread(self._file.save, view.version, view.digest, view.published_at, raw)
        except OSError as error:
            self._saved_version = 0
            logger.error("snapshot: the file cannot be written: %s", error)
