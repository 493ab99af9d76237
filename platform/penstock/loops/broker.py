"""Broker addresses: the loops' own, and the agents' namespace of the same server."""

from collections.abc import Callable
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from celery import Celery
from kombu import Connection

AGENT_PREFIX = "agent:"
"""Prefix of every key an agent may see (``docs/protocols.md``)."""

REPORT_QUEUE = "reports"
REPORT_TASK = "serving.report"
ORDERS_TASK = "worker.orders"


def broker_url(redis_url: str) -> str:
    """Kombu's form of a redis-py URL: ``unix:///path?db=1`` becomes ``redis+socket:///path?virtual_host=1``."""
    if not redis_url.startswith("unix://"):
        return redis_url
    parts = urlsplit(redis_url)
    login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    database = next((value[3:] for value in parts.query.split("&") if value.startswith("db=")), "")
    return f"redis+socket://{login}{parts.path}" + (f"?virtual_host={database}" if database else "")


def connected(
    connection: Connection,
    say: Callable[[Exception, float], None] | None = None,
    stop_if_asked: Callable[[], None] | None = None,
) -> Connection:
    """``connection``, once the broker answers. Kombu's own pauses grow to 30 s; these to one.

    ``say`` hears of each try that failed (error, pause in seconds); ``stop_if_asked`` may raise in every pause.
    """
    pauses: dict[str, Any] = {"max_retries": None, "interval_start": 0.2, "interval_step": 0.2, "interval_max": 1.0}
    connection.ensure_connection(say, callback=stop_if_asked, **pauses)
    return connection


def host_queue(host_id: str) -> str:
    """The queue that one host's agent listens on."""
    return f"host.{host_id}"


@cache
def agents_app(redis_url: str) -> Celery:
    """A producer and consumer in the agents' namespace. It registers no task: nothing can be called through it."""
    app = Celery("penstock.agents", broker=broker_url(redis_url), set_as_current=False, fixups=[])
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "global_keyprefix": AGENT_PREFIX,
            "socket_keepalive": True,
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
        },
    )
    return app
