"""What an agent knows of a replica only while it runs: what was last seen, who watches the engine, its evidence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import aiohttp
import msgspec

from worker import evidence
from worker.engines import Engines
from worker.files import write_atomic
from worker.needs import Need
from worker.plan import Seen, start_progress
from worker.runtimes import get_runtime
from worker.spec import Progress
from worker.state import MISSING, ReplicaState
from worker.watch import EngineView, EngineWatcher

log = logging.getLogger(__name__)


class Live:
    """One replica's. Nothing of it is remembered: another agent finds all of it out again."""

    def __init__(self, need: Need) -> None:
        self.need = need
        self.seen: Seen | None = None
        self.trouble = ""
        self.watcher: EngineWatcher | None = None
        self.evidence_task: asyncio.Task[None] | None = None
        self.evidence_kept = False

    @property
    def view(self) -> EngineView | None:
        """What the engine told its watcher last."""
        return self.watcher.view if self.watcher is not None else None

    def begin_watch(
        self,
        session: aiohttp.ClientSession,
        state: ReplicaState,
        *,
        clock: Callable[[], float],
        on_news: Callable[[], None],
    ) -> None:
        if state.plan is not None:
            table = get_runtime(state.runtime).metric_table
            self.watcher = EngineWatcher(session, state.plan, table, clock, on_news)

    def end_watch(self) -> None:
        if self.watcher is not None:
            self.watcher.cancel()
            self.watcher = None

    def end(self) -> None:
        """The agent stops; the engine runs on."""
        self.end_watch()
        if self.evidence_task is not None:
            self.evidence_task.cancel()

    def look_at_process(self, state: ReplicaState, engines: Engines, *, is_alive: bool, is_late: bool) -> Seen:
        """What is seen of a process that was launched. What it tells of itself is taken into ``state``."""
        is_ending = state.phase in ("failed", "stopped") or state.term_sent_at or state.kill_sent_at
        view = self.view
        if view is not None and view.engine_version and not state.engine_version:
            state.engine_version, state.max_model_len = view.engine_version, view.max_model_len
        if view is not None and view.kv_tokens is not None:
            state.kv_tokens = view.kv_tokens
        return Seen(
            environment=MISSING,
            weights=MISSING,
            process="alive" if is_alive else "gone",
            # Reading every process of the host is worth it only where leftovers matter.
            has_members=bool(engines.members(state)) if is_ending or not is_alive else True,
            exit_words=engines.exit_words(state) if not is_alive or is_late else "",
            is_healthy=view is not None and view.is_healthy,
            health_error=view.health_error if view is not None else "",
            warm_up=view.warm_up if view is not None else "idle",
            warm_up_error=view.warm_up_error if view is not None else "",
            in_engine=view.in_engine if view is not None else None,
            evidence_kept=self.evidence_kept,
        )

    async def keep_evidence(self, state: ReplicaState, engines: Engines, *, clock: Callable[[], float]) -> None:
        """Write down what a process that is about to be killed looks like; a fault in it is said in the log alone."""
        path, view = engines.log_path(state.replica_id), self.view
        try:
            if self.watcher is not None:
                await self.watcher.look()
            pids, now = engines.members(state), clock()
            state.evidence = await asyncio.to_thread(evidence.gather, pids=pids, log=path, view=view, now=now)
            write_atomic(path.with_name("evidence.json"), msgspec.json.encode(state.evidence))
        except OSError as error:
            log.warning("replica %s: evidence could not be kept: %s", state.replica_id, error)
        finally:
            # Evidence that cannot be had must not keep a hanging engine alive.
            self.evidence_kept, self.evidence_task = True, None

    def progress(self, state: ReplicaState, now: float, *, learnt_start_s: float) -> Progress | None:
        """How far its start is; None where it is in no phase that takes its time."""
        if state.phase == "environment" and self.seen is not None:
            return self.seen.environment.progress
        if state.phase == "weights" and self.seen is not None:
            return self.seen.weights.progress
        if state.phase == "starting" and state.launched_at is not None and not state.is_light:
            return start_progress(now - state.launched_at, learnt_start_s)
        return None
