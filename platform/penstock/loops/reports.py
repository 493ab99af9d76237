"""The consumer of the agents' reports: two threads of a loops process, one that verifies and one that applies.

Reports are level-triggered and come each second, so nothing is acknowledged or kept: the newest of a host is applied,
what it overtook is dropped, and a backlog after a stop is gone in a moment. A lost broker is tried again for ever.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis.exceptions
from django.conf import settings
from django.db import close_old_connections
from kombu import Connection, Consumer, Exchange, Queue
from kombu.message import Message
from kombu.mixins import ConsumerMixin

from penstock.loops.broker import REPORT_QUEUE, REPORT_TASK, agents_app, connected
from penstock.loops.isolation import AWAY, is_news, isolated
from penstock.loops.shared import client, count
from serving.agents.envelopes import HostSecrets, ReportRejected, report_verify
from serving.agents.reports import report_apply
from worker.spec import HostReport

log = logging.getLogger(__name__)

_RETRY_S = 1.0


class _Stopped(Exception):
    """The consumer was asked to stop while it waited for the broker."""


class ReportConsumer(ConsumerMixin):
    """Start it once per loops process; several processes share the queue."""

    def __init__(self) -> None:
        self.connection: Connection = agents_app(settings.REDIS_URL).connection_for_read()
        self.should_stop = False
        self._secrets = HostSecrets()
        self._newest: dict[str, HostReport] = {}
        self._arrived = threading.Condition()
        self._threads = (
            threading.Thread(target=self._receive_forever, name="reports", daemon=True),
            threading.Thread(target=self._apply_forever, name="reports-apply", daemon=True),
        )

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float) -> None:
        """Stop within about ``timeout_s`` seconds; what has arrived and was not applied will be reported again."""
        self.ask_to_stop()
        for thread in self._threads:
            thread.join(timeout_s / len(self._threads))

    def ask_to_stop(self) -> None:
        """Do not wait: called from a signal handler, in which no lock may be taken."""
        self.should_stop = True

    def get_consumers(self, consumer: Callable[..., Consumer], channel: Any) -> list[Consumer]:
        queue = Queue(REPORT_QUEUE, Exchange(REPORT_QUEUE), routing_key=REPORT_QUEUE)
        return [consumer(queues=[queue], on_message=self._receive, no_ack=True)]

    @contextmanager
    def establish_connection(self) -> Iterator[Connection]:  # type: ignore[override]  # the stub forgets the decorator
        with self.connection.clone() as connection:
            yield connected(connection, self._complain_of_broker, self._stop_if_asked)

    def _complain_of_broker(self, error: Exception, pause_s: float) -> None:
        if is_news("the agents' broker is away"):
            log.warning("the agents' broker does not answer: %s", error)

    def _complain_of_away(self, error: Exception) -> None:
        what = "shared state" if isinstance(error, redis.exceptions.RedisError) else "database"
        if is_news(f"reports without {what}"):
            words = (str(error).strip() or type(error).__name__).splitlines()[0]
            log.warning("reports are passed over while the %s does not answer: %s", what, words)

    def _stop_if_asked(self) -> None:
        if self.should_stop:
            raise _Stopped

    def _receive_forever(self) -> None:
        while not self.should_stop:
            try:
                self.run()
            except _Stopped:
                break
            except Exception as error:
                if is_news(f"consuming reports {type(error).__name__}"):
                    log.exception("consuming reports failed; it is tried again each %.0f s", _RETRY_S)
                time.sleep(_RETRY_S)
        self.connection.release()
        close_old_connections()

    def _receive(self, message: Message) -> None:
        # Django looks for lost connections at the start of a request; here a message is one.
        close_old_connections()
        try:
            report = report_verify(_envelope(message), secrets=self._secrets)
        except ReportRejected as rejection:
            self._reject(rejection)
            return
        except AWAY as error:
            self._complain_of_away(error)
            return
        except Exception as error:  # noqa: BLE001  (whatever a stranger sends must not end the consumer for all hosts)
            self._reject(ReportRejected("malformed", f"it cannot be read ({type(error).__name__})"))
            return
        with self._arrived:
            waiting = self._newest.get(report.host_id)
            if waiting is None or waiting.boot_id != report.boot_id or waiting.sequence < report.sequence:
                self._newest[report.host_id] = report
                self._arrived.notify()

    def _apply_forever(self) -> None:
        while not self.should_stop:
            with self._arrived:
                while not self._newest and not self.should_stop:
                    self._arrived.wait(_RETRY_S)
                reports, self._newest = list(self._newest.values()), {}
            close_old_connections()
            for report in reports:
                self._apply(report)
            close_old_connections()

    def _apply(self, report: HostReport) -> None:
        try:
            with isolated(f"the report of host {report.host_id}", raising=(ReportRejected, *AWAY)):
                applied = report_apply(report, client=client())
                if applied.foreign:
                    message = f"host {report.host_id} spoke of {applied.foreign} replica(s) of other hosts"
                    self._reject(ReportRejected("foreign_replica", message), applied.foreign)
        except ReportRejected as rejection:
            self._reject(rejection)
        except AWAY as error:
            self._complain_of_away(error)

    def _reject(self, rejection: ReportRejected, number: int = 1) -> None:
        try:
            count("reports_rejected", rejection.reason, number)
        except redis.exceptions.RedisError:
            log.warning("a rejected report could not be counted: the shared state does not answer")
        # Each is counted; in the log, one of a kind stands for all: a stranger may send as many as it likes.
        if is_news(f"report rejected {rejection.reason}"):
            log.warning("report rejected (%s): %s", rejection.reason, rejection)


def _envelope(message: Message) -> object:
    """The one argument of the agent's ``serving.report`` call. Raises ReportRejected."""
    if message.headers.get("task") != REPORT_TASK:
        raise ReportRejected("unknown_task", "the reports queue takes nothing but reports")
    try:
        arguments = json.loads(message.body or "")[0]
        return arguments[0]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ReportRejected("malformed", "a report is one envelope, as JSON") from error
