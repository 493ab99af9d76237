"""Orders on their way to an agent: the newest stand as a key in the state, a message nudges."""

import datetime
import json
import logging

import redis
from django.conf import settings
from kombu.exceptions import KombuError, OperationalError

from capacity.models import Host
from penstock.loops.broker import AGENT_PREFIX, ORDERS_TASK, agents_app, host_queue
from penstock.loops.isolation import is_news
from serving.agents.envelopes import ReportRejected, host_secret
from serving.agents.orders import SealedOrders, host_orders_refresh

log = logging.getLogger(__name__)

_NUDGE_AGAIN_S = 5
_LISTENING_S = 10.0
"""An agent that has been silent for longer reads the key when it is back: nudges would only pile up."""
_FAREWELL_S = 30 * 86_400
_UNOPENED_QUIET_S = 3600.0


def orders_key(host_id: str) -> str:
    """Where the newest sealed orders of a host stand."""
    return f"{AGENT_PREFIX}orders:{host_id}"


def orders_send(host: Host, *, client: redis.Redis, now: datetime.datetime) -> bool:
    """Bring the host's orders up to date, and nudge its agent until it has acknowledged them; True if they changed."""
    orders = _orders_write(host, client=client, now=now)
    return orders is not None and orders.changed


def _orders_write(host: Host, *, client: redis.Redis, now: datetime.datetime) -> SealedOrders | None:
    """The orders that now stand in the state; None: they could not be made, the log says why."""
    try:
        secret = host_secret(host)
    except ReportRejected as error:
        if is_news(f"{host.pk} has a secret that does not open", quiet_s=_UNOPENED_QUIET_S):
            log.error("no orders for host %s: %s%s", host.name, error, _remedy(host))
        return None
    orders = host_orders_refresh(host_id=str(host.pk), secret=secret, drain_limit_s=settings.PENSTOCK_DRAIN_LIMIT_S)
    if orders is None:
        return None
    key, sealed = orders_key(orders.host_id), _as_kept(orders)
    # The state may have come back empty, or hold what a slower process wrote after a faster one.
    is_stale = client.get(key) != sealed
    if is_stale:
        client.set(key, sealed)
    is_listening = host.last_report_at is not None and (now - host.last_report_at).total_seconds() < _LISTENING_S
    is_due = orders.changed or is_stale or host.acknowledged_generation < orders.generation
    if is_due and is_listening and _may_nudge(client, orders.host_id, orders.generation):
        _nudge(orders.host_id, orders.envelope)
    return orders


def farewell(host: Host, *, client: redis.Redis, now: datetime.datetime) -> None:
    """The last orders of a removed host, which holds no replica any more; once they stand, its secret is forgotten.

    They stand for a while: an agent that comes back late must not run on what was given up. Where they cannot be
    written the secret is kept, and the next tick tries again, for as long as they would have stood.
    """
    orders = _orders_write(host, client=client, now=now)
    key = orders_key(str(host.pk))
    # A slower process may have written older ones since: without the secret nobody could put them right.
    if orders is not None and client.get(key) == _as_kept(orders):
        client.expire(key, _FAREWELL_S)
    elif host.removed_at is None or (now - host.removed_at).total_seconds() < _FAREWELL_S:
        return
    else:
        log.error("host %s was removed 30 days ago, and its agent could not be told to stop: given up", host.name)
    Host.everything.filter(pk=host.pk).update(secret=b"", updated_at=now)


def _remedy(host: Host) -> str:
    """What else helps where the key is lost: the end of a sentence that asks for it."""
    if host.removed_at is not None:
        until = host.removed_at + datetime.timedelta(seconds=_FAREWELL_S)
        return (
            ". It was removed, and its agent is not told to stop what it runs: without the key, stop it on that "
            f"machine. This is tried until {until:%Y-%m-%d}"
        )
    return f", or run 'penstock hosts renew-secret {host.name}' and put the answer into its agent.json"


def _as_kept(orders: SealedOrders) -> bytes:
    return json.dumps(orders.envelope, sort_keys=True).encode()


def _may_nudge(client: redis.Redis, host_id: str, generation: int) -> bool:
    return bool(client.set(f"penstock:policy:nudge:{host_id}:{generation}", b"1", nx=True, ex=_NUDGE_AGAIN_S))


def _nudge(host_id: str, envelope: dict[str, object]) -> None:
    try:
        agents_app(settings.REDIS_URL).send_task(
            ORDERS_TASK, args=(envelope,), queue=host_queue(host_id), ignore_result=True, retry=False
        )
    except (KombuError, OperationalError, OSError, redis.RedisError) as error:
        log.warning("host %s was not nudged (%s); its agent reads the orders within 2 s", host_id, error)
