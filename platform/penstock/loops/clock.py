"""Beat's scheduler: the timetable in memory, and one line in the log where the broker is away."""

import logging
import time
from typing import Any

from celery.beat import Scheduler

log = logging.getLogger(__name__)

_QUIET_S = 10.0


class Clock(Scheduler):
    """Sends ticks. One that cannot be sent is dropped: the next says the same."""

    _complained_at = 0.0

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send the tick of ``entry``; eight tracebacks a second would help nobody while the broker is away."""
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except Exception as error:  # noqa: BLE001  (celery wraps whatever the transport raises)
            if time.monotonic() - self._complained_at >= _QUIET_S:
                self._complained_at = time.monotonic()
                log.warning("ticks cannot be sent: %s", error)
