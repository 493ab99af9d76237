"""The publisher: builds snapshot records from the models and applies them to the shared state, in order.

Any loops or web process may publish; a lease lets one at a time. A version is given to what is applied together; the
state refuses one that does not follow the version it has, and whoever finds the state and the database at odds about
the newest version builds everything anew.
"""

from __future__ import annotations

import logging
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from typing import Any, NamedTuple, cast

import msgspec
import redis
from django.conf import settings
from django.db import OperationalError
from django.db.models import Max
from django.utils import timezone

from capacity.models import CostProfile
from penstock.loops.lease import acquire
from penstock.published import records, with_dependants
from serving.gateway.records import RECORD_TYPES, shape
from serving.gateway.snapshot import KEY_IDS, LOG, META, REBUILD, add_digest, hash_key, record_digest
from serving.gateway.state import connect, ensure_epoch, run_script, script
from tenants.models import Change, Lease

log = logging.getLogger(__name__)

LEASE = "publisher"
_LEASE_S = 30.0
_CHUNK = 500
_LOG_KEPT = 10_000
_CHANGES_KEPT = 20_000
_PRUNE_EVERY = 1_000
_NOBODY = uuid.UUID(int=0)
_PUBLISH = script("publish")
_CONFIRM = script("confirm")
_has_asked = False


class _Record(NamedTuple):
    """One entry of a delta; ``raw`` None removes; ``key_uuid`` for keys only: they go by another id in the snapshot."""

    kind: str
    id: str
    raw: bytes | None
    before: bytes | None
    key_uuid: str = ""


class _Meta(NamedTuple):
    version: int | None
    digest: int
    is_whole: bool
    profiles_at: float


class Outdated(RuntimeError):
    """Somebody else published in between; the next tick sees to it."""


def nudge() -> None:
    """Publish soon, after a commit, in this process. Never raises: what fails is mended by the 1 s tick."""
    try:
        publish_pending()
    except (redis.RedisError, OSError, OperationalError, Outdated) as error:
        log.warning("a change is not published yet (%s); the next tick does it", type(error).__name__)
    except Exception:
        log.exception("a change is not published yet; the next tick does it")


def publish_pending() -> int:
    """Publish what changed since the last time; the number of records sent. Run it each second.

    Raises redis.RedisError when the state does not answer.
    """
    client, now = _client(settings.REDIS_URL), timezone.now()
    meta, last = _read_meta(client), _last_version()
    if _is_of_another_version(client):
        return publish_all()
    if meta.version is None or not meta.is_whole or meta.version != last or client.exists(REBUILD):
        return publish_all()
    if not _has_news(meta, now):
        run_script(client, _CONFIRM, [META], [str(last), repr(now.timestamp())])
        return 0
    with _turn() as held:
        if not held:
            return 0
        sent = 0
        while True:
            count, found = _publish_some(client)
            sent += count
            if not found:
                return sent


def publish_all() -> int:
    """Rebuild the whole snapshot (state empty or different); the number of records that had to be sent.

    Records that no longer exist are removed. Raises redis.RedisError when the state does not answer.
    """
    client = _client(settings.REDIS_URL)
    with _turn() as held:
        return _rebuild(client) if held else 0


def _is_of_another_version(client: redis.Redis) -> bool:
    """Whether the records were built by a version that says less or more of objects. Asked in a process until they are
    of its own version, or it has built them: while an installation is upgraded, publishers of two versions must not
    build everything in turns."""
    global _has_asked
    if not _has_asked:
        _has_asked = client.hget(META, "shape") == shape().encode()
        return not _has_asked
    return False


@cache
def _client(url: str) -> redis.Redis:
    return connect(url, timeout_s=2.0)


@contextmanager
def _turn() -> Iterator[bool]:
    holder = acquire(LEASE, now=timezone.now(), limit_s=_LEASE_S)
    try:
        yield holder is not None
    finally:
        if holder is not None:
            Lease.objects.filter(name=LEASE, holder=holder).update(until=timezone.now())


def _read_meta(client: redis.Redis) -> _Meta:
    values = cast("list[bytes | None]", client.hmget(META, ["version", "digest", "whole", "profiles_at"]))
    version, digest, whole, profiles_at = values
    return _Meta(None if version is None else int(version), int(digest or 0), whole == b"1", float(profiles_at or 0.0))


def _last_version() -> int:
    return cast("int | None", Change.objects.aggregate(last=Max("version"))["last"]) or 0


def _due_pools(meta: _Meta, now: datetime) -> list[uuid.UUID]:
    """Pools with a profile that came into force since the last look: nobody changes anything on that day."""
    since = datetime.fromtimestamp(meta.profiles_at, UTC)
    due = CostProfile.objects.filter(effective_from__gt=since, effective_from__lte=now, withdrawn_at=None)
    return list(due.order_by().values_list("pool_id", flat=True).distinct())


def _has_news(meta: _Meta, now: datetime) -> bool:
    return Change.objects.filter(version=None).exists() or bool(_due_pools(meta, now))


def _publish_some(client: redis.Redis) -> tuple[int, bool]:
    """Publish up to ``_CHUNK`` changes as one version: the number of records, and whether there was any change."""
    now = timezone.now()
    meta = _read_meta(client)
    pending = list(Change.objects.filter(version=None).order_by("pk").values_list("pk", "kind", "object_id")[:_CHUNK])
    due = _due_pools(meta, now)
    if not pending and not due:
        return 0, False
    changed: dict[str, set[uuid.UUID]] = defaultdict(set)
    for _, kind, object_id in pending:
        changed[kind].add(object_id)
    changed["pool"].update(due)
    delta = _delta(client, with_dependants(changed), now)
    version = meta.version or 0
    if delta:
        version += 1
        _apply(client, meta, version, delta, now=now, is_whole=True)
    if due:
        client.hset(META, "profiles_at", repr(now.timestamp()))
    Change.objects.filter(pk__in=[pk for pk, _, _ in pending]).update(version=version)
    if delta and not pending:
        _mark(version)
    if version % _PRUNE_EVERY == 0:
        Change.objects.filter(version__lt=version - _CHANGES_KEPT).delete()
    return len(delta), True


def _delta(client: redis.Redis, changed: dict[str, set[uuid.UUID]], now: datetime) -> list[_Record]:
    """What must be set and removed so that the state says of ``changed`` what the database does."""
    delta: list[_Record] = []
    for kind in RECORD_TYPES:
        ids = changed.get(kind)
        if not ids:
            continue
        built = {pk: (record_id, raw) for pk, record_id, raw in records(kind, ids, now=now)}
        names = _published_names(client, kind, ids)
        # A key is found by its public id, which a deleted one no longer tells: the state remembers it.
        wanted = [(pk, built[pk][0] if pk in built else names[pk]) for pk in sorted(ids)]
        wanted = [(pk, name) for pk, name in wanted if name]
        stored = client.hmget(hash_key(kind), [name for _, name in wanted]) if wanted else []
        for (pk, name), before in zip(wanted, cast("list[bytes | None]", stored), strict=True):
            raw = built[pk][1] if pk in built else None
            if raw != before:
                delta.append(_Record(kind, name, raw, before, str(pk) if kind == "key" else ""))
    return delta


def _published_names(client: redis.Redis, kind: str, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, str]:
    """The id that each object has in the snapshot; empty for a key that is not there."""
    keys = list(ids)
    if kind != "key":
        return {pk: str(pk) for pk in keys}
    names = cast("list[bytes | None]", client.hmget(KEY_IDS, [str(pk) for pk in keys]))
    return {pk: (name or b"").decode() for pk, name in zip(keys, names, strict=True)}


def _apply(
    client: redis.Redis, meta: _Meta, version: int, delta: Sequence[_Record], *, now: datetime, is_whole: bool
) -> _Meta:
    """Move the state to ``version``; the new meta. Raises Outdated when it is not at ``meta`` any more."""
    digest = meta.digest
    for record in delta:
        if record.before is not None:
            digest = add_digest(digest, -record_digest(record.kind, record.id, record.before))
        if record.raw is not None:
            digest = add_digest(digest, record_digest(record.kind, record.id, record.raw))
    entries = [(record.kind, record.id, None if record.raw is None else msgspec.Raw(record.raw)) for record in delta]
    arguments: list[Any] = [
        "" if meta.version is None else str(meta.version),
        str(version),
        str(digest),
        repr(now.timestamp()),
        "1" if is_whole else "0",
        msgspec.json.encode(entries),
        str(_LOG_KEPT),
    ]
    for record in delta:
        arguments += [record.kind, record.id, record.raw or b"", record.key_uuid]
    if not run_script(client, _PUBLISH, [META, LOG, KEY_IDS], arguments):
        raise Outdated("another process has published in between")
    return meta._replace(version=version, digest=digest, is_whole=is_whole)


def _rebuild(client: redis.Redis) -> int:
    global _has_asked
    now = timezone.now()
    ensure_epoch(client)
    client.delete(REBUILD)
    # Read before the models: what is committed later stays pending and is published again.
    pending = list(Change.objects.filter(version=None).values_list("pk", flat=True))
    delta, digest = _difference(client, now)
    meta = _read_meta(client)._replace(digest=digest)
    version = max(meta.version or 0, _last_version())
    if meta.version is None:
        client.delete(LOG)
    chunks = [delta[start : start + _CHUNK] for start in range(0, len(delta), _CHUNK)] or [[]]
    for index, chunk in enumerate(chunks):
        version += 1
        meta = _apply(client, meta, version, chunk, now=now, is_whole=index == len(chunks) - 1)
    client.hset(META, mapping={"profiles_at": repr(now.timestamp()), "shape": shape()})
    _has_asked = True
    for start in range(0, len(pending), _CHUNK):
        Change.objects.filter(pk__in=pending[start : start + _CHUNK]).update(version=version)
    _mark(version)
    log.info("the snapshot was built anew: version %d, %d records sent", version, len(delta))
    return len(delta)


def _difference(client: redis.Redis, now: datetime) -> tuple[list[_Record], int]:
    """What must be sent so that the state says what the database does, and the digest of what it says now."""
    delta: list[_Record] = []
    digest = 0
    names: dict[str, str] = {}
    for kind in RECORD_TYPES:
        stored: dict[str, bytes] = {}
        for name, raw in client.hscan_iter(hash_key(kind), count=1000):
            stored[name.decode()] = raw
        for name, raw in stored.items():
            digest = add_digest(digest, record_digest(kind, name, raw))
        for pk, name, raw in records(kind, None, now=now):
            before = stored.pop(name, None)
            if kind == "key":
                names[str(pk)] = name
            if raw != before:
                delta.append(_Record(kind, name, raw, before))
        delta += [_Record(kind, name, None, raw) for name, raw in stored.items()]
    client.delete(KEY_IDS)
    listed = list(names.items())
    for start in range(0, len(listed), _CHUNK):
        client.hset(KEY_IDS, mapping=dict(listed[start : start + _CHUNK]))
    return delta, digest


def _mark(version: int) -> None:
    """Let the database know the newest version where no change carries it: a change of nothing."""
    Change.objects.create(kind="tenant", object_id=_NOBODY, version=version)
