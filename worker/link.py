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
from worker.follow import follow_key, followed, read_piece
from worker.inbox import Inbox
from worker.report import without_details
from worker.words import error_words

log = logging.getLogger(__name__)

ORDERS_EVERY_S = 2.0
REPORT_EVERY_S = 1.0
SHORTEST_GAP_S = 0.25
"""Changes within this time travel in one report."""
BACKLOG = 30
"""Reports waiting on the broker above which only changes are sent."""
STALE_S = 5.0
"""A report older than this is not sent again: whoever reads it would believe that somebody looks after the engines."""
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
        self._state = redis.Redis.from_url(config.state_url, socket_timeout=2.0, socket_connect_timeout=2.0)
        self._newest: spec.HostReport | None = None
        self._taken_at = float("-inf")
        self._since: dict[str, float] = {}
        self._seen: dict[str, tuple[str, bool]] = {}
        self._followed: tuple[str, ...] = ()
        self._is_away = self._is_stale = False
        self._refused = ""
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
        self._newest, self._taken_at = report, time.monotonic()
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
                    self._followed = self._fetch_followed()
                is_change = self._wake.is_set()
                if is_change or now - reported_at >= REPORT_EVERY_S:
                    self._wake.clear()
                    self._send(is_change)
                    reported_at = now
                self._say_whether_away(None)
            except (redis.RedisError, OperationalError, OSError) as error:
                self._say_whether_away(error)
                self._stop.wait(1.0)
            except Exception as error:  # noqa: BLE001  (said in one line; the thread must live)
                # Whatever lies in the shared state, and whatever a report holds, the next exchange is tried.
                log.error("an exchange with the control plane failed: %s", error_words(error))
                self._stop.wait(1.0)
            self._stop.wait(SHORTEST_GAP_S)
            self._wake.wait(max(0.0, REPORT_EVERY_S - (time.monotonic() - now)))

    def _fetch_orders(self) -> None:
        refused = ""
        try:
            kept = self._state.get(orders_key(self._config.host_id))
            if isinstance(kept, bytes):
                self._inbox.offer(json.loads(kept))
        except (spec.EnvelopeError, ValueError, RecursionError, redis.ResponseError) as error:
            refused = str(error)
        if refused and refused != self._refused:
            # They stand there until the control plane writes new ones: said once, not every two seconds.
            log.error("standing orders are refused: %s", refused)
        self._refused = refused

    def _fetch_followed(self) -> tuple[str, ...]:
        try:
            return followed(self._state.get(follow_key(self._config.host_id)))
        except redis.ResponseError:
            return ()

    def _send(self, is_change: bool) -> None:
        report, age_s = self._newest, time.monotonic() - self._taken_at
        if report is None or self._say_whether_stale(age_s):
            return
        waiting = self._state.llen(PREFIX + QUEUE)
        if not is_change and isinstance(waiting, int) and waiting > BACKLOG:
            return
        self._sequence += 1
        now = self._clock()
        report = without_details(report, sequence=self._sequence, since=self._since, now=now)
        pieces = {name: read_piece(self._config.replicas, name) for name in self._followed}
        logs = {name: piece for name, piece in pieces.items() if piece is not None}
        report = msgspec.structs.replace(report, boot_id=self._boot_id, sequence=self._sequence, logs=logs, sent_at=now)
        envelope = spec.seal(report, secret=self._config.secret)
        self._app.send_task(TASK, args=[envelope], queue=QUEUE, retry=False, ignore_result=True)

    def _say_whether_away(self, error: Exception | None) -> None:
        if (error is not None) != self._is_away:
            self._is_away = error is not None
            if error is not None:
                log.warning("the shared state is away (%s); engines go on", type(error).__name__)
            else:
                log.info("the shared state answers")

    def _say_whether_stale(self, age_s: float) -> bool:
        is_stale = age_s > STALE_S
        if is_stale != self._is_stale:
            self._is_stale = is_stale
            if is_stale:
                log.error("the supervisor has told nothing for %.0f s: no report is sent", age_s)
            else:
                log.info("the supervisor tells of its engines again")
        return is_stale
