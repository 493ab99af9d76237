"""The agent's Celery app: its own broker user and prefix, JSON only, one task that does nothing but pass orders on.

Started by ``python -m worker --config FILE``. It runs without Django and without ``DJANGO_SETTINGS_MODULE``; the empty
``fixups`` keep Celery from loading Django where that variable is set all the same.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery, bootsteps

from worker.agent import Agent
from worker.config import AgentConfig, load_config
from worker.inbox import Inbox
from worker.link import PREFIX
from worker.spec import EnvelopeError

log = logging.getLogger(__name__)


def queue_name(host_id: str) -> str:
    """Return the queue on which a host is nudged."""
    return f"host.{host_id}"


def create_app(config: AgentConfig) -> Celery:
    """Return the app of one agent; its worker runs the supervisor."""
    app = Celery("penstock-agent", fixups=[], set_as_current=False)
    queue = queue_name(config.host_id)
    app.conf.update(
        broker_url=config.broker_url,
        # A silent broker must not hold the sender of reports for ever.
        broker_transport_options={
            "global_keyprefix": PREFIX,
            "socket_timeout": 5.0,
            "socket_connect_timeout": 2.0,
        },
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        worker_cancel_long_running_tasks_on_connection_loss=True,
        task_default_queue=queue,
        task_create_missing_queues=True,
        task_ignore_result=True,
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_prefetch_multiplier=1,
        worker_consumer="worker.consumer:Consumer",
        worker_pool="threads",
        worker_concurrency=1,
    )
    inbox = Inbox(config)

    @app.task(name="worker.orders", ignore_result=True)
    def take_orders(envelope: dict[str, Any]) -> None:
        """Pass sealed orders to the supervisor; what does not verify is refused and logged."""
        try:
            inbox.offer(envelope)
        except EnvelopeError as error:
            log.error("orders are refused: %s", error)

    class Supervision(bootsteps.StartStopStep):
        """Runs the agent beside the consumer; it starts before the broker is reached and needs none."""

        def __init__(self, parent: Any, **kwargs: Any) -> None:
            self.agent = Agent(config, app, inbox)
            super().__init__(parent, **kwargs)

        def start(self, parent: Any) -> None:
            self.agent.start()

        def stop(self, parent: Any) -> None:
            self.agent.stop()

        terminate = stop

    app.steps["worker"].add(Supervision)
    return app


def worker_arguments(config: AgentConfig) -> list[str]:
    """Return the command line of the agent's Celery worker."""
    return [
        "--quiet",
        "worker",
        "--pool=threads",
        "--concurrency=1",
        "--without-gossip",
        "--without-mingle",
        "--without-heartbeat",
        f"--queues={queue_name(config.host_id)}",
        f"--hostname=agent@{config.host_id}",
        "--loglevel=INFO",
    ]


def __getattr__(name: str) -> Celery:
    """``worker.celery:app`` for Celery's own command line, made from ``PENSTOCK_AGENT_CONFIG`` when first asked for."""
    if name != "app":
        raise AttributeError(name)
    app = globals()["app"] = create_app(load_config())
    return app
