"""The calibrations of one agent, as its supervisor sees them: begun, watched, ended.

One at a time, in a thread of its own with an event loop of its own: supervision waits for none of it, and two that
measured side by side would measure each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from worker.calibration.client import STOPPED_ANSWERING, MeasureError
from worker.calibration.measure import Engine, Measurement
from worker.calibration.record import Record, load_record, save_record
from worker.options import OptionError, speaks
from worker.runtimes import get_runtime
from worker.runtimes.vllm import max_num_seqs
from worker.spec import CalibrationReport, ReplicaOrder
from worker.state import ReplicaState
from worker.watch import EngineView
from worker.words import error_words

log = logging.getLogger(__name__)

ENGINE_ENDED = "The engine ended while it was measured"
_GONE = ("draining", "stopped", "failed")


class _Thread:
    """A measurement under way. ``keep`` is called from within the thread."""

    def __init__(self, replica_id: str, record: Record, engine: Engine, keep: Callable[[Record], None]) -> None:
        self.replica_id, self.record = replica_id, record
        self.report = record.report()
        self._measurement, self._keep = Measurement(record, engine, self._take), keep
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_cancelled = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="calibration", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def cancel(self, *, seconds: float = 0.0) -> None:
        """End it, and wait ``seconds`` for its requests to be withdrawn. What it has measured stays kept."""
        with self._lock:
            self._is_cancelled = True
            if self._loop is not None and self._task is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(seconds)

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._measure())

    async def _measure(self) -> None:
        with self._lock:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            if self._is_cancelled:
                return
        try:
            await self._measurement.run()
        except MeasureError as error:
            self._fail(str(error))
        except Exception as error:  # noqa: BLE001  (a measurement that trips must not look as if it went on)
            self._fail(f"The measurement broke ({error_words(error)}): see the agent's log.")
        log.info("replica %s: its calibration is %s %s", self.replica_id, self.record.state, self.record.reason)

    def _take(self, record: Record) -> None:
        """Show and keep what is measured."""
        self.report = record.report()
        self._keep(record)

    def _fail(self, reason: str) -> None:
        self.record.state, self.record.reason = "failed", reason
        self._take(self.record)


class Calibrations:
    """What is ordered to be calibrated. ``pids`` gives the living processes of a replica, to any thread."""

    def __init__(self, replicas: Path, *, pids: Callable[[ReplicaState], list[int]]) -> None:
        self._replicas, self._pids = replicas, pids
        self._records: dict[str, Record] = {}
        self._thread: _Thread | None = None

    def follow(self, order: ReplicaOrder, state: ReplicaState | None, view: EngineView | None) -> None:
        """Bring what is measured of one replica in line with its order. Never waits."""
        wanted, thread = order.calibration, self._thread_of(order.replica_id)
        if thread is not None and (wanted is None or thread.record.order != wanted):
            thread.cancel()
        if wanted is None:
            self._records.pop(order.replica_id, None)
            return
        if state is None:
            return
        record = self._record(order, state)
        if thread is not None and not thread.is_alive:
            self._thread = None
        if record.state == "done":
            return
        if self._has_ended(record, state):
            self._fail(order.replica_id, record, state)
        elif record.state != "failed" and thread is None:
            self._begin_or_wait(order, state, record, view)

    def end_all_but(self, replica_ids: Collection[str]) -> None:
        """End what is measured of a replica that nobody orders any more."""
        if self._thread is not None and self._thread.replica_id not in replica_ids:
            self._thread.cancel()
        for gone in [each for each in self._records if each not in replica_ids]:
            del self._records[gone]

    def report(self, replica_id: str) -> CalibrationReport | None:
        """What there is to tell of a replica; None when no calibration is ordered."""
        record, thread = self._records.get(replica_id), self._thread_of(replica_id)
        if record is None:
            return None
        return thread.report if thread is not None and thread.record is record else record.report()

    def stop(self) -> None:
        """End the measurement; a later agent goes on where it was."""
        if self._thread is not None:
            self._thread.cancel(seconds=1.0)

    # ------------------------------------------------------------------ small parts
    def _thread_of(self, replica_id: str) -> _Thread | None:
        return self._thread if self._thread is not None and self._thread.replica_id == replica_id else None

    def _record(self, order: ReplicaOrder, state: ReplicaState) -> Record:
        wanted, known = order.calibration, self._records.get(order.replica_id)
        if known is None:
            known = load_record(self._replicas, order.replica_id)
        if known is None or known.order != wanted:
            if wanted is None:
                raise ValueError("no calibration is ordered")
            known = Record(order=wanted)
        self._records[order.replica_id] = known
        return known

    def _has_ended(self, record: Record, state: ReplicaState) -> bool:
        """Whether the engine that was measured is there no more, and nobody has said so yet."""
        is_open = record.state in ("waiting", "measuring") or record.reason == STOPPED_ANSWERING
        if record.process is None or not is_open:
            return False
        return state.phase in _GONE or state.process != record.process

    def _fail(self, replica_id: str, record: Record, state: ReplicaState) -> None:
        if (thread := self._thread_of(replica_id)) is not None and thread.is_alive:
            thread.cancel()
            return
        why = f": {state.reason}" if state.phase in ("stopped", "failed") and state.reason else "."
        what = "The replica was drained while it was measured" if state.phase == "draining" else ENGINE_ENDED
        record.state, record.reason = "failed", f"{what}{why}"
        self._keep(replica_id, record)

    def _begin_or_wait(self, order: ReplicaOrder, state: ReplicaState, record: Record, view: EngineView | None) -> None:
        reason = self._why_not_yet(order, state, view)
        if reason:
            record.state, record.reason = "waiting", reason
            return
        try:
            engine = self._engine(order, state)
        except (OptionError, MeasureError) as error:
            record.state, record.reason = "failed", str(error)
            return
        record.state, record.reason, record.process = "measuring", "", state.process
        record.engine_version = state.engine_version
        self._thread = _Thread(order.replica_id, record, engine, functools.partial(self._keep, order.replica_id))
        log.info("replica %s: its calibration begins", order.replica_id)

    def _why_not_yet(self, order: ReplicaOrder, state: ReplicaState, view: EngineView | None) -> str:
        if self._thread is not None and self._thread.is_alive:
            return f"Replica {self._thread.replica_id} of this host is measured first."
        if state.phase != "ready":
            return f"The replica is not ready: {state.reason or state.phase}."
        if view is None or not view.is_healthy or state.plan is None or state.process is None:
            return "The engine does not answer its health check."
        if state.plan.metrics_path and view.metrics_at is None:
            return "The engine has not told its metrics yet."
        if view.in_engine:
            return f"The engine still serves {view.in_engine:.0f} requests of others."
        return ""

    def _engine(self, order: ReplicaOrder, state: ReplicaState) -> Engine:
        """Raises OptionError or MeasureError for one that cannot be calibrated."""
        if state.plan is None or order.calibration is None:
            raise MeasureError("The replica was not launched.")
        if "generate" not in speaks(order.runtime, order.options):
            raise MeasureError("Only engines that complete text can be calibrated: this one does not.")
        runtime = get_runtime(order.runtime)
        return Engine(
            base=f"http://{state.plan.host}:{state.plan.port}",
            model=order.served_name,
            method=runtime.cost_method(order=order),
            slots=max_num_seqs(min(order.target_concurrency, order.calibration.max_concurrency)),
            pids=lambda: self._pids(state),
            metrics_path=state.plan.metrics_path,
            metric_table=runtime.metric_table(state.engine_version),
            kv_tokens=state.kv_tokens,
            max_model_len=state.max_model_len,
        )

    def _keep(self, replica_id: str, record: Record) -> None:
        try:
            save_record(self._replicas, replica_id, record)
        except OSError as error:
            log.error("replica %s: its calibration could not be kept: %s", replica_id, error)
