"""One host agent: supervisor thread, link thread, the lock that keeps a second agent out of the same folder."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import threading
import time
from pathlib import Path
from typing import IO

from celery import Celery

from worker.config import AgentConfig
from worker.inbox import Inbox
from worker.link import Link
from worker.spec import HostOrders
from worker.supervisor import Supervisor
from worker.words import error_words

log = logging.getLogger(__name__)


class AlreadyRunning(RuntimeError):
    """Another agent works in this folder."""


class FolderLock:
    """Held by the one agent of a folder; it falls with the process."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "agent.lock"
        self._file: IO[str] | None = None

    def acquire(self, *, seconds: float = 0.0) -> None:
        """Take the lock, waiting up to ``seconds`` for its holder. Raises AlreadyRunning."""
        file, end = self._path.open("a"), time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= end:
                    file.close()
                    raise AlreadyRunning(f"an agent is running in {self._path.parent}: stop it first") from None
                time.sleep(0.1)
            else:
                self._file = file
                return

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class Agent:
    """Starts and stops the threads. Stopping it leaves every engine running."""

    def __init__(self, config: AgentConfig, app: Celery, inbox: Inbox) -> None:
        self.inbox = inbox
        self._config = config
        self._link = Link(config, app, inbox)
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    def start(self) -> None:
        self._config.replicas.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.inbox.load()
        self._thread.start()
        self._link.start()

    def stop(self, *, seconds: float = 5.0) -> None:
        """End supervision and link; the engines go on."""
        if self._loop is not None and self._stop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(seconds)
        self._link.stop(seconds=seconds)

    def _supervise(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:  # noqa: BLE001  (said in one line, and nothing is left to go on with)
            # Without it the agent only looks alive. Its engines go on, and whoever started it starts it again.
            log.critical("the supervisor broke, the agent ends and leaves its engines: %s", error_words(error))
            os._exit(1)

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        supervisor = Supervisor(self._config, on_report=self._link.take)
        loop = self._loop

        def give(orders: HostOrders) -> None:
            # A loop that has just closed belongs to an agent on its way out: the orders are kept on disk.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(supervisor.give_orders, orders)

        # The first look must know the orders: a stopped replica that is ordered to run would else be told as stopped.
        supervisor.orders = self.inbox.orders
        self.inbox.listen(give)
        await supervisor.run(self._stop)
