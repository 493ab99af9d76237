"""Ending everything an agent's folder has running, when the agent itself is gone: engines, builders, fetchers."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from worker import processes
from worker.agent import FolderLock
from worker.config import AgentConfig
from worker.state import load_states, save_state

LOCK_S = 5.0
"""An agent that was asked to stop before has left by then."""
TERM_S = 10.0
KILL_S = 5.0


def stop_engines(config: AgentConfig, *, say: Callable[[str], None]) -> int:
    """End all processes of ``config``'s folder; return how many are left (0 unless the kernel holds them).

    SIGTERM to each group, after ``TERM_S`` SIGKILL: ``LOCK_S + TERM_S + KILL_S`` at most. Replicas are noted as stopped
    on purpose: the next agent starts those that its orders want. Raises AlreadyRunning while an agent works in the
    folder: it would start them again.
    """
    lock = FolderLock(config.folder)
    lock.acquire(seconds=LOCK_S)
    try:
        sessions = _sessions(config)
        found = processes.marked(config.folder, sessions)
        if found:
            say(f"ending {len(found)} processes of {len({owner for _, owner in found if owner})} engines")
        _end(config, sessions, signal.SIGTERM, TERM_S)
        left = _end(config, sessions, signal.SIGKILL, KILL_S)
        if not left:
            _note_stopped(config)
        return len(left)
    finally:
        lock.release()


def _sessions(config: AgentConfig) -> dict[int, str]:
    """Session leaders of our engines, where their number was not given to another process."""
    sessions = {}
    for state in load_states(config.replicas).values():
        launched = state.process
        if launched is None:
            continue
        is_gone = processes.start_time(launched.pid) is None
        if is_gone or processes.is_same_process(launched.pid, launched.started, state.replica_id):
            sessions[launched.pid] = state.replica_id
    return sessions


def _end(config: AgentConfig, sessions: dict[int, str], number: signal.Signals, seconds: float) -> list[int]:
    end = time.monotonic() + seconds
    left = [pid for pid, _ in processes.marked(config.folder, sessions)]
    processes.signal_all(left, number)
    while left and time.monotonic() < end:
        time.sleep(0.1)
        left = [pid for pid, _ in processes.marked(config.folder, sessions)]
    return left


def _note_stopped(config: AgentConfig) -> None:
    for state in load_states(config.replicas).values():
        if state.process is None:
            continue
        state.process = state.plan = None
        if state.phase != "failed":
            state.phase, state.reason, state.since = "stopped", "stopped with its agent", time.time()
        save_state(config.replicas, state)
