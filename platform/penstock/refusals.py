"""What the shared state has of requests that were refused before they were admitted."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import cast

import msgspec
import redis

from capacity.usage.lines import REFUSALS_PREFIX, Refusal, refusals_key
from serving import shared_state

log = logging.getLogger(__name__)


def refusal_of(tenant_id: uuid.UUID | None, request_id: uuid.UUID) -> Refusal | None:
    """The tenant's refused request with this id, without ``tenant_id`` anybody's; None where it is not known, or the
    state does not answer."""
    wanted = str(request_id)
    try:
        for tenant, kept in _lists(tenant_id):
            if (found := _found(kept, wanted, tenant)) is not None:
                return found
    except redis.RedisError as error:
        log.warning("refusals cannot be looked up: %s", type(error).__name__)
    return None


def _lists(tenant_id: uuid.UUID | None) -> Iterator[tuple[str, list[bytes]]]:
    """Tenants with what is kept of them: of one, or of all who were refused anything within the hour.

    Of all a list at a time: each has at most some hundred entries, and no more than one is held here.
    """
    client = shared_state.client()
    keys: Iterable[bytes] = [refusals_key(str(tenant_id)).encode()]
    if tenant_id is None:
        keys = cast("Iterator[bytes]", client.scan_iter(match=f"{REFUSALS_PREFIX}*", count=1000))
    for key in keys:
        tenant = key.decode().removeprefix(REFUSALS_PREFIX)
        yield tenant, cast("list[bytes]", client.lrange(key.decode(), 0, -1))


def _found(kept: list[bytes], wanted: str, tenant: str) -> Refusal | None:
    for entry in kept:
        if wanted.encode() not in entry:
            continue
        # What a gateway of another version says differently is passed over.
        with suppress(msgspec.DecodeError):
            refusal = msgspec.json.decode(entry, type=Refusal)
            if refusal.id == wanted and refusal.tenant == tenant:
                return refusal
    return None
