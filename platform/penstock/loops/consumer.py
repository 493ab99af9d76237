"""Celery's consumer for the loops: back within a second of the broker's return."""

from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.state import maybe_shutdown

from penstock.loops.broker import connected


class Consumer(CeleryConsumer):
    """Celery waits up to 30 s between two tries; the loops steer running engines and have nothing better to do."""

    def ensure_connected(self, conn: Any) -> Any:
        return connected(conn, stop_if_asked=maybe_shutdown)
