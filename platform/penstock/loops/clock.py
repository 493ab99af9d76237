"""Beat's scheduler: the timetable in memory, and one line in the log where the broker is away."""

import logging
from typing import Any

from celery.beat import Scheduler

from penstock.loops.broker import connected
from penstock.loops.isolation import is_news

log = logging.getLogger(__name__)


class Clock(Scheduler):
    """Sends ticks. One that cannot be sent is dropped: the next says the same."""

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except Exception as error:  # noqa: BLE001  (celery wraps whatever the transport raises)
            self._complain(error)

    def _ensure_connected(self) -> Any:
        return connected(self.connection, lambda error, pause_s: self._complain(error))

    def _complain(self, error: Exception) -> None:
        """Eight ticks a second fail alike while the broker is away: one line now and then is enough."""
        if is_news("ticks cannot be sent"):
            log.warning("ticks cannot be sent: %s", error)
