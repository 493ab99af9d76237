"""The control plane's Celery app: the loops of ``penstock.loops`` and their timetable.

Run one or several (leases keep each tick single)::

    celery --quiet -A penstock.celery worker --without-gossip --without-mingle --without-heartbeat --loglevel WARNING

Pool, concurrency and queue come from the configuration below. The worker carries two threads of its own: the clock
(beat, in memory: the timetable is code and has nothing to remember) and the consumer of the agents' reports, which
live in a broker namespace of their own. SIGTERM stops it within a few seconds; ticks are idempotent.
"""

import os
import warnings
from typing import Any

from celery import Celery, bootsteps
from celery.beat import EmbeddedService
from celery.signals import setup_logging, worker_shutting_down
from kombu import Queue

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "penstock.settings")
# The launcher has run the checks; here they would import every page of the console.
os.environ.setdefault("CELERY_SKIP_CHECKS", "1")

from django.conf import settings

from penstock.loops.broker import broker_url
from penstock.loops.log import configure_logging
from penstock.loops.timetable import TIMETABLE

# Celery warns root of pickle, which is not accepted here; containers run as root.
warnings.filterwarnings("ignore", message="You're running the worker with superuser")

QUEUE = "loops"
_STOP_WAIT_S = 3.0

app = Celery("penstock", include=["penstock.loops.tasks"])
app.conf.update(
    broker_url=broker_url(settings.REDIS_URL),
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={"socket_keepalive": True, "socket_timeout": 10, "socket_connect_timeout": 5},
    accept_content=["json"],
    task_serializer="json",
    task_ignore_result=True,
    task_acks_late=False,
    task_default_queue=QUEUE,
    task_queues=[Queue(QUEUE)],
    task_create_missing_queues=False,
    timezone="UTC",
    worker_consumer="penstock.loops.consumer:Consumer",
    worker_pool="threads",
    worker_concurrency=6,
    worker_prefetch_multiplier=2,
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    # No task is acknowledged late, so this cancels none; unset, Celery warns at every loss.
    worker_cancel_long_running_tasks_on_connection_loss=True,
    beat_schedule={
        name: {"task": f"loops.{name}", "schedule": tick.every_s, "options": {"expires": tick.expires_s}}
        for name, tick in TIMETABLE.items()
    },
)


@setup_logging.connect
def _logging(loglevel: int | str | None = None, **kwargs: Any) -> None:
    configure_logging(loglevel)


class SafeSettings(bootsteps.Step):
    """Refuses to work with settings that are not safe, before any other step begins."""

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        from penstock.checks import refuse_unsafe_settings  # the settings are complete only after django.setup()

        refuse_unsafe_settings("loops")
        super().__init__(parent, **kwargs)


class Beat(bootsteps.StartStopStep):
    """Beat in a thread of the worker: a process of its own would cost 60 MB to send eight messages a second."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        self.beat: Any = None
        super().__init__(parent, **kwargs)

    def start(self, parent: Any) -> None:
        self.beat = EmbeddedService(app, thread=True, scheduler_cls="penstock.loops.clock:Clock")
        self.beat.start()
        # As soon as the signal comes: the steps stop one after another, and each would wait for its own second.
        worker_shutting_down.connect(lambda **_: self.beat.service.stop(), weak=False)

    def stop(self, parent: Any) -> None:
        if self.beat is not None:
            self.beat.service.stop()
            self.beat.join(_STOP_WAIT_S)

    terminate = stop


class Reports(bootsteps.StartStopStep):
    """The consumer of the agents' reports (``penstock.loops.reports``)."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        self.consumer: Any = None
        super().__init__(parent, **kwargs)

    def start(self, parent: Any) -> None:
        from penstock.loops.reports import ReportConsumer  # models can be imported only after django.setup()

        self.consumer = ReportConsumer()
        self.consumer.start()
        worker_shutting_down.connect(lambda **_: self.consumer.ask_to_stop(), weak=False)

    def stop(self, parent: Any) -> None:
        if self.consumer is not None:
            self.consumer.stop(_STOP_WAIT_S)

    terminate = stop


app.steps["worker"].add(SafeSettings)
app.steps["worker"].add(Beat)
app.steps["worker"].add(Reports)
