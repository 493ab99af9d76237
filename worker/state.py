"""What the agent remembers of a replica: ``replicas/<id>/state.json``, enough for a later agent to take over."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from worker.files import write_atomic
from worker.processes import Launched
from worker.runtimes.base import LaunchPlan
from worker.spec import Progress, ReplicaPhase


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """Where a piece of preparation stands. ``path`` is set when it is ready, ``error`` when it failed."""

    state: Literal["missing", "working", "ready", "failed"]
    path: Path | None = None
    progress: Progress | None = None
    error: str = ""


MISSING = Prepared(state="missing")


class ReplicaState(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One replica. Times are UNIX seconds; ``since`` is when the phase began.

    ``plan`` and ``process`` are set from launch until the process group is known to be gone.
    """

    replica_id: str
    deployment_name: str
    runtime: str
    attempt: int
    phase: ReplicaPhase = "environment"
    since: float = 0.0
    reason: str = ""
    plan: LaunchPlan | None = None
    process: Launched | None = None
    accelerators: tuple[int, ...] = ()
    """Those it was launched on; they are its own until its process group is gone."""
    is_light: bool = False
    """The engine starts in about a second and takes no turn in the staggered starts."""
    launched_at: float | None = None
    ready_at: float | None = None
    term_sent_at: float | None = None
    kill_sent_at: float | None = None
    exit_code: int | None = None
    engine_version: str = ""
    max_model_len: int | None = None
    kv_tokens: int | None = None
    log_tail: str = ""
    evidence: dict[str, Any] = {}


def replica_folder(replicas: Path, replica_id: str) -> Path:
    """Return a replica's folder. Raises ValueError for an id that would lead elsewhere."""
    if not replica_id or not all(c.isalnum() or c in "-_" for c in replica_id):
        raise ValueError(f"{replica_id!r} is not a replica id")
    return replicas / replica_id


def save_state(replicas: Path, state: ReplicaState) -> None:
    """Write the state of a replica. Raises OSError."""
    folder = replica_folder(replicas, state.replica_id)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(folder / "state.json", msgspec.json.encode(state))


def load_states(replicas: Path) -> dict[str, ReplicaState]:
    """Read the states of all replicas; an unreadable one is left out, its processes are found by their marker."""
    found = {}
    for path in sorted(replicas.glob("*/state.json")):
        try:
            state = msgspec.json.decode(path.read_bytes(), type=ReplicaState)
        except (OSError, ValueError):
            continue
        if state.replica_id == path.parent.name:
            found[state.replica_id] = state
    return found
