"""Celery's consumer for the agent: no message can end it.

All agents share the broker, and what is no message of Celery's at all (no JSON, no headers) would end the worker that
takes it, with its supervisor: the orders it was to carry stand in the shared state anyway.
"""

from __future__ import annotations

from typing import Any

from celery.worker import loops
from celery.worker.consumer import Consumer as CeleryConsumer


class Consumer(CeleryConsumer):
    """Takes an unreadable message for a lost connection, which Celery renews."""

    hub: Any
    connection_errors: tuple[type[Exception], ...]
    channel_errors: tuple[type[Exception], ...]

    def loop(self, *arguments: Any) -> None:
        run = loops.asynloop if self.hub else loops.synloop
        try:
            run(*arguments)
        except (*self.connection_errors, *self.channel_errors):
            raise
        except Exception as error:
            raise ConnectionError(f"a message could not be read: {type(error).__name__}") from error
