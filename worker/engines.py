"""The engine processes of one agent: launched, adopted, signalled, swept. Knows nothing of orders."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Container, Iterable
from pathlib import Path

import psutil

from worker import processes
from worker.config import AgentConfig
from worker.files import read_tail, rotate_in_place
from worker.runtimes import get_runtime
from worker.runtimes.base import MARKER_AGENT, MARKER_REPLICA, LaunchPlan
from worker.state import ReplicaState, replica_folder, save_state

log = logging.getLogger(__name__)

LOG_LIMIT_BYTES = 20_000_000
KEPT_FOLDERS = 20
"""Folders of replicas that nobody orders any more; the oldest beyond these are removed."""


class Engines:
    """All engine processes of one agent folder."""

    def __init__(self, config: AgentConfig) -> None:
        self.config = config
        self.adopted: set[str] = set()
        self._popens: dict[str, subprocess.Popen[bytes]] = {}
        self._rng = random.Random()  # noqa: S311  (spreads ports, guards nothing)

    def log_path(self, replica_id: str) -> Path:
        return replica_folder(self.config.replicas, replica_id) / "engine.log"

    # ------------------------------------------------------------------ launch
    def choose_port(self, states: Iterable[ReplicaState]) -> int:
        """Return a free loopback port that no other replica was given. Raises OSError."""
        return processes.choose_port({each.plan.port for each in states if each.plan is not None}, self._rng)

    def launch(self, state: ReplicaState, plan: LaunchPlan, *, is_light: bool, now: float) -> None:
        """Start the engine and note it in ``state``. Raises OSError, or ValueError for what no command line can hold.

        Noted before and after: of an agent that dies in between, the next one finds the process by its marker.
        """
        folder = replica_folder(self.config.replicas, state.replica_id)
        marks = {MARKER_REPLICA: state.replica_id, MARKER_AGENT: str(self.config.folder)}
        env = processes.engine_environment(os.environ, plan.env | marks)
        state.plan, state.launched_at, state.is_light = plan, now, is_light
        save_state(self.config.replicas, state)
        log_path = self.log_path(state.replica_id)
        try:
            # A log of its own: the last words of an earlier launch must not explain this one.
            if log_path.exists():
                log_path.replace(log_path.with_name("engine.log.1"))
            cwd = Path(plan.cwd) if plan.cwd else folder
            popen = processes.launch(plan.argv, env=env, cwd=cwd, log=log_path)
        except BaseException:
            state.plan = None
            raise
        started = processes.start_time(popen.pid)
        self._popens[state.replica_id] = popen
        state.process = processes.Launched(pid=popen.pid, started=started if started is not None else now)

    # ------------------------------------------------------------------ observation
    def is_alive(self, state: ReplicaState) -> bool:
        """Whether the launched process lives; notes its exit code, which only its own parent learns."""
        if (popen := self._popens.get(state.replica_id)) is not None:
            state.exit_code = popen.poll()
            return state.exit_code is None
        launched = state.process
        return launched is not None and processes.is_same_process(launched.pid, launched.started, state.replica_id)

    def members(self, state: ReplicaState) -> list[int]:
        """Return the living processes of the replica."""
        return processes.members(state.replica_id, self.config.folder, state.process)

    def exit_words(self, state: ReplicaState) -> str:
        """Why the engine ended or does not get ready, by its log; empty when that does not tell."""
        tail = read_tail(self.log_path(state.replica_id))
        return get_runtime(state.runtime).explain_exit(exit_code=state.exit_code, log_tail=tail)

    # ------------------------------------------------------------------ ending
    def signal(self, state: ReplicaState, number: signal.Signals) -> None:
        processes.signal_all(self.members(state), number)

    def forget(self, state: ReplicaState) -> None:
        """The process group is gone."""
        self._popens.pop(state.replica_id, None)
        self.adopted.discard(state.replica_id)
        state.process = state.plan = None

    # ------------------------------------------------------------------ after an agent's restart
    def adopt(self, states: dict[str, ReplicaState]) -> None:
        """Take over what an earlier agent of this folder started; end processes that belong to none of ``states``."""
        found = processes.marked(self.config.folder)
        for state in states.values():
            self._adopt_one(state, found)
        owned = {replica_id for replica_id, state in states.items() if state.process is not None}
        if orphans := [pid for pid, owner in found if owner and owner not in owned]:
            log.warning("ending %d processes of replicas this agent does not know: %s", len(orphans), orphans)
            processes.signal_all(orphans, signal.SIGKILL)

    def _adopt_one(self, state: ReplicaState, found: list[tuple[int, str]]) -> None:
        if state.plan is not None and state.process is None:
            leaders = [pid for pid, owner in found if owner == state.replica_id and _leads_session(pid)]
            started = processes.start_time(leaders[0]) if leaders else None
            if started is not None:
                state.process = processes.Launched(pid=leaders[0], started=started)
        if state.process is None:
            state.plan = None
        elif processes.is_same_process(state.process.pid, state.process.started, state.replica_id):
            self.adopted.add(state.replica_id)
            log.info("replica %s: adopted process %d (%s)", state.replica_id, state.process.pid, state.phase)
        elif (state.launched_at or 0.0) < psutil.boot_time():
            log.info("replica %s: the host was restarted, it begins anew", state.replica_id)
            state.process = state.plan = state.launched_at = state.ready_at = None
            state.term_sent_at = state.kill_sent_at = state.exit_code = None
            if state.phase not in ("failed", "stopped"):
                state.phase, state.reason = "environment", "the host was restarted"

    # ------------------------------------------------------------------ housekeeping
    def rotate_logs(self, replica_ids: Iterable[str]) -> None:
        for replica_id in replica_ids:
            rotate_in_place(self.log_path(replica_id), limit_bytes=LOG_LIMIT_BYTES)

    def remove_old_folders(self, known: Container[str]) -> None:
        """Remove the oldest folders of replicas that are not ``known`` any more; a few keep their logs for people."""
        old = []
        for folder in self.config.replicas.glob("*"):
            if folder.name not in known and not (folder / "state.json").exists():
                with contextlib.suppress(OSError):
                    old.append((folder.stat().st_mtime, folder))
        for _, folder in sorted(old)[:-KEPT_FOLDERS]:
            shutil.rmtree(folder, ignore_errors=True)


def _leads_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except OSError:
        return False
