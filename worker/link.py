"""The agent's link to the shared state: fetches standing orders, sends reports. A thread of its own.

Everything here may fail at any time; engines and supervisor do not notice. Only the newest report matters, so nothing
is queued while the broker is away, and nothing is added to a queue that nobody empties.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable

import msgspec
import redis
from celery import Celery
from kombu.exceptions import OperationalError

import worker.spec as spec
from worker.config import AgentConfig
from worker.inbox import Inbox
from worker.report import without_details

log = logging.getLogger(__name__)

ORDERS_EVERY_S = 2.0
REPORT_EVERY_S = 1.0
SHORTEST_GAP_S = 0.25
"""Changes within this time travel in one report."""
BACKLOG = 30
"""Reports waiting on the broker above which only changes are sent."""
TASK, QUEUE = "serving.report", "reports"
PREFIX = "agent:"


def orders_key(host_id: str) -> str:
    """Return the key of the standing orders of a host."""
    return f"{PREFIX}orders:{host_id}"


class Link:
    """Exchanges orders and reports until stopped."""

    def __init__(
        self, config: AgentConfig, app: Celery, inbox: Inbox, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._config, self._app, self._inbox, self._clock = config, app, inbox, clock
        self._boot_id, self._sequence = uuid.uuid4().hex, 0
        self._state = redis.Redis.from_url(
            config.state_url, socket_timeout=2.0, socket_connect_timeout=2.0, decode_responses=True
        )
        self._newest: spec.HostReport | None = None
        self._since: dict[str, float] = {}
        self._seen: dict[str, tuple[str, bool]] = {}
        self._is_away = False
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, *, seconds: float = 5.0) -> None:
        self._stop.set()
        self._wake.set()
        self._thread.join(seconds)
        self._state.close()

    def take(self, report: spec.HostReport, is_change: bool) -> None:
        """Take the supervisor's newest report; a change is sent at once."""
        for each in report.replicas:
            now_seen = (each.phase, bool(each.evidence))
            if self._seen.get(each.replica_id) != now_seen:
                self._seen[each.replica_id], self._since[each.replica_id] = now_seen, self._clock()
        self._newest = report
        if is_change:
            self._wake.set()

    def _run(self) -> None:
        orders_at = reported_at = float("-inf")
        while not self._stop.is_set():
            now = time.monotonic()
            try:
                if now - orders_at >= ORDERS_EVERY_S:
                    orders_at = now
                    self._fetch_orders()
                is_change = self._wake.is_set()
                if is_change or now - reported_at >= REPORT_EVERY_S:
                    self._wake.clear()
                    self._send(is_change)
                    reported_at = now
                self._say_whether_away(None)
            except (redis.RedisError, OperationalError, OSError) as error:
                self._say_whether_away(error)
                self._stop.wait(1.0)
            self._stop.wait(SHORTEST_GAP_S)
            self._wake.wait(max(0.0, REPORT_EVERY_S - (time.monotonic() - now)))

    def _fetch_orders(self) -> None:
        kept = self._state.get(orders_key(self._config.host_id))
        if not isinstance(kept, str):
            return
        try:
            self._inbox.offer(json.loads(kept))
        except (spec.EnvelopeError, ValueError) as error:
            log.error("standing orders are refused: %s", error)

    def _send(self, is_change: bool) -> None:
        report = self._newest
        if report is None:
            return
        waiting = self._state.llen(PREFIX + QUEUE)
        if not is_change and isinstance(waiting, int) and waiting > BACKLOG:
            return
        self._sequence += 1
        now = self._clock()
        report = without_details(report, sequence=self._sequence, since=self._since, now=now)
        report = msgspec.structs.replace(report, boot_id=self._boot_id, sequence=self._sequence, sent_at=now)
        envelope = spec.seal(report, secret=self._config.secret)
        self._app.send_task(TASK, args=[envelope], queue=QUEUE, retry=False, ignore_result=True)

    def _say_whether_away(self, error: Exception | None) -> None:
        if (error is not None) != self._is_away:
            self._is_away = error is not None
            if error is not None:
                log.warning("the shared state is away (%s); engines go on", type(error).__name__)
            else:
                log.info("the shared state answers")
