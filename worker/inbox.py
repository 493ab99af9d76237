"""Orders on their way to the supervisor: verified, newest kept, remembered on disk."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from worker.config import AgentConfig
from worker.files import write_atomic
from worker.spec import EnvelopeError, HostOrders, open_orders
from worker.state import replica_folder

log = logging.getLogger(__name__)


class Inbox:
    """Holds the orders of the highest generation that was verified. Safe to use from any thread."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._path = config.folder / "orders.json"
        self._lock = threading.Lock()
        self._orders: HostOrders | None = None
        self._listener: Callable[[HostOrders], None] = lambda orders: None

    @property
    def orders(self) -> HostOrders | None:
        return self._orders

    def listen(self, listener: Callable[[HostOrders], None]) -> None:
        """Call ``listener`` with the orders known, and with all that come."""
        with self._lock:
            self._listener = listener
            if self._orders is not None:
                listener(self._orders)

    def load(self) -> None:
        """Take the orders an earlier agent kept, as far as they are for this host: no broker is needed to go on."""
        try:
            envelope = msgspec.json.decode(self._path.read_bytes())
        except (OSError, ValueError):
            return
        try:
            self.offer(envelope)
        except EnvelopeError as error:
            log.warning("the kept orders are not used: %s", error)

    def offer(self, envelope: object) -> bool:
        """Verify ``envelope``; return whether it brought newer orders. Raises EnvelopeError."""
        orders = open_orders(envelope, host_id=self._config.host_id, secret=self._config.secret)
        for order in orders.replicas:
            try:
                replica_folder(Path(), order.replica_id)
            except ValueError as error:
                raise EnvelopeError(str(error)) from error
        with self._lock:
            if self._orders is not None and orders.generation <= self._orders.generation:
                return False
            # Kept before it is obeyed: no engine ever runs that a restarted agent would not know of.
            try:
                write_atomic(self._path, msgspec.json.encode(envelope))
            except OSError as error:
                log.error("orders could not be kept on disk: %s", error)
            self._orders = orders
            self._listener(orders)
        log.info("orders of generation %d for %d replicas", orders.generation, len(orders.replicas))
        return True
